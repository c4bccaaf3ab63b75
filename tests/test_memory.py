"""What survives a restart: a hold is never lost, and what cannot be understood is one."""

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portretry_udev import memory
from portretry_udev.events import Hold
from portretry_udev.memory import Memory, Remembered

IDENTITY = (48128, 417, "/dev/ttyUSB0")


def kept(**changes):
    """The text of a file as `keep` writes it, with changes."""
    whole = {"version": 1, "hold": "fault", "identity": list(IDENTITY), "boot": "b1"}
    return json.dumps({**whole, **changes})


@pytest.mark.parametrize("hold", list(Hold))
@pytest.mark.parametrize("identity", [IDENTITY, None])
def test_round_trip(tmp_path, hold, identity):
    """Every hold comes back with the node for which it was made, from another object on the same boot."""
    Memory(tmp_path, "mk3").keep(hold, identity)
    assert Memory(tmp_path, "mk3").recall() == Remembered(hold, identity)


def test_nothing_kept_is_no_hold(tmp_path):
    """The first start of all: no file, no hold, no trouble; and looking makes nothing."""
    assert Memory(tmp_path / "state", "mk3").recall() == Remembered(Hold.NONE, None, 0.0, "")
    assert not (tmp_path / "state").exists()


def test_the_folder_is_made_and_printers_do_not_mix(tmp_path):
    """Each printer has its own file, also where a name is the beginning of another or has a dot."""
    names = ("mk3", "mk3.left", "mk3.right")
    for name, hold in zip(names, (Hold.DELIBERATE, Hold.FAULT, Hold.WAIT), strict=True):
        Memory(tmp_path / "a" / "state", name).keep(hold, IDENTITY)
    holds = [Memory(tmp_path / "a" / "state", name).recall().hold for name in names]
    assert holds == [Hold.DELIBERATE, Hold.FAULT, Hold.WAIT]


def test_the_last_word_counts(tmp_path):
    """What is kept replaces what was kept, and nothing else is left in the folder."""
    mind = Memory(tmp_path, "mk3")
    mind.keep(Hold.FAULT, IDENTITY)
    mind.keep(Hold.NONE, None)
    assert mind.recall() == Remembered(Hold.NONE, None)
    assert [path.name for path in tmp_path.iterdir()] == ["mk3.json"]


def test_another_boot(tmp_path):
    """A hold outlives a boot of the machine, the node's numbers do not."""
    Memory(tmp_path, "mk3", boot="b1").keep(Hold.FAULT, IDENTITY)
    assert Memory(tmp_path, "mk3", boot="b2").recall() == Remembered(Hold.FAULT, None)
    assert Memory(tmp_path, "mk3", boot="b1").recall() == Remembered(Hold.FAULT, IDENTITY)


def test_a_boot_without_a_name_is_equal_to_no_other(tmp_path, monkeypatch):
    """Where the kernel does not name its boot, numbers are not compared over restarts."""
    monkeypatch.setattr(
        memory, "Path", lambda path: tmp_path / "gone" if "boot_id" in str(path) else Path(path)
    )
    Memory(tmp_path, "mk3").keep(Hold.FAULT, IDENTITY)
    assert Memory(tmp_path, "mk3").recall() == Remembered(Hold.FAULT, None)


@pytest.mark.parametrize(
    ("paused_for", "restarted_at", "left"),
    [
        (math.inf, 5000.0, math.inf),  # until `resume`
        (0.0, 1000.0, 0.0),
        (60.0, 1000.0, 60.0),
        (60.0, 1045.0, 15.0),
        (60.0, 1060.0, 0.0),
        (60.0, 9000.0, 0.0),
        (60.0, 0.0, 60.0),  # a Raspberry Pi just booted, in 1970: never longer than was asked for
    ],
)
def test_a_pause_goes_on_over_a_restart(tmp_path, paused_for, restarted_at, left):
    """What is left of a pause comes back beside the hold; time runs while the service does not."""
    Memory(tmp_path, "mk3", wall=lambda: 1000.0).keep(Hold.FAULT, IDENTITY, paused_for)
    recalled = Memory(tmp_path, "mk3", wall=lambda: restarted_at).recall()
    assert recalled == Remembered(Hold.FAULT, IDENTITY, left)


def test_a_file_of_before_there_were_pauses_is_understood(tmp_path):
    """An update of the service loses no hold, and sets nothing aside."""
    (tmp_path / "mk3.json").write_text(kept())
    assert Memory(tmp_path, "mk3", boot="b1").recall() == Remembered(Hold.FAULT, IDENTITY)


def test_only_its_owner_can_read_it_from_the_first_byte(tmp_path, monkeypatch):
    """Whatever the umask, no file in the folder is ever open to others, while it is written either."""
    modes = []
    real_fsync = os.fsync

    def fsync(fd):
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    before = os.umask(0)
    try:
        Memory(tmp_path, "mk3").keep(Hold.FAULT, IDENTITY)
    finally:
        os.umask(before)
    assert set(modes) == {0o600}
    assert stat.S_IMODE((tmp_path / "mk3.json").stat().st_mode) == 0o600


def test_a_crash_while_writing_leaves_the_old(tmp_path):
    """A process that dies with the new file half done has changed nothing of what is recalled."""
    Memory(tmp_path, "mk3").keep(Hold.FAULT, IDENTITY)
    code = (
        "import os, pathlib, sys\n"
        "from portretry_udev.memory import Memory\n"
        "from portretry_udev.rules import Hold\n"
        "os.fsync = lambda fd: os._exit(9)\n"
        "Memory(pathlib.Path(sys.argv[1]), 'mk3').keep(Hold.NONE, None)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 9
    assert Memory(tmp_path, "mk3").recall() == Remembered(Hold.FAULT, IDENTITY)


def test_a_full_disk_leaves_the_old_and_no_rubbish(tmp_path, monkeypatch):
    """A write that fails is told, and nothing but the old file is there afterwards."""
    mind = Memory(tmp_path, "mk3")
    mind.keep(Hold.FAULT, IDENTITY)

    def fail(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        mind.keep(Hold.NONE, None)
    assert [path.name for path in tmp_path.iterdir()] == ["mk3.json"]
    assert mind.recall() == Remembered(Hold.FAULT, IDENTITY)


def test_an_unwritable_folder_is_an_error(tmp_path):
    """Who keeps a hold is told that it will not survive."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Memory(tmp_path / "file" / "state", "mk3").keep(Hold.FAULT, IDENTITY)


def test_what_cannot_be_reached_is_a_hold(tmp_path):
    """A state folder that cannot be looked into may hold a hold: hands off, and said so."""
    (tmp_path / "file").touch()
    recalled = Memory(tmp_path / "file" / "state", "mk3").recall()
    assert recalled.hold is Hold.DELIBERATE
    assert "cannot be used (Not a directory): hands off" in recalled.trouble


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "1",
        '"version"',
        "{}",
        "[" * 60000,
        "1" * 5000,
        " " * 70000 + "{}",
        kept(version=2),
        kept(version="x" * 10000),
        kept(version="1\n2"),
        kept(hold="some"),
        kept(hold=None),
        kept(hold=[]),
        kept(identity=5),
        kept(identity="abc"),
        kept(identity={"a": 1}),
        kept(identity=[1, [2]]),
        kept(identity=[None]),
        '{"version": 1, "hold": "none", "boot": "b1"}',
        '{"version": 1, "hold": "none", "identity": [1]}',
        kept() + "}",
        kept(kept_at=100, paused_until="soon"),
        kept(kept_at=None, paused_until=100),
        kept(kept_at=100, paused_until=99),
        kept(kept_at=100, paused_until=math.nan),
        kept(kept_at=100, paused_until=math.inf),
        kept(kept_at=-1, paused_until=10),
    ],
)
def test_what_is_not_understood_is_set_aside_and_is_a_hold(tmp_path, text):
    """Hands off, one line that says why, the file kept for whoever wants to look: and still so next time."""
    path = tmp_path / "mk3.json"
    path.write_text(text)
    recalled = Memory(tmp_path, "mk3").recall()
    assert (recalled.hold, recalled.identity) == (Hold.DELIBERATE, None)
    assert str(path) in recalled.trouble
    assert "set aside as mk3.json.corrupt: hands off" in recalled.trouble
    assert "\n" not in recalled.trouble
    assert len(recalled.trouble) < len(str(path)) + 300
    assert (tmp_path / "mk3.json.corrupt").read_text() == text
    # The service is restarted before anybody has looked: the hold stands.
    assert Memory(tmp_path, "mk3").recall() == Remembered(Hold.DELIBERATE)


def test_a_folder_in_its_place_is_set_aside_too(tmp_path):
    """Whatever stands where the file should be is put away, and the hold is kept."""
    (tmp_path / "mk3.json").mkdir()
    assert "Is a directory" in Memory(tmp_path, "mk3").recall().trouble
    assert (tmp_path / "mk3.json.corrupt").is_dir()
    assert Memory(tmp_path, "mk3").recall() == Remembered(Hold.DELIBERATE)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["none", "fault", "b1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["version", "hold", "identity", "boot", "kept_at", "paused_until"]), inner
        )
    ),
)


@given(st.binary(max_size=300) | JUNK.map(lambda junk: json.dumps(junk).encode()))
def test_any_bytes_are_either_understood_or_a_hold(tmp_path_factory, data):
    """Random bytes and random JSON never crash the start; no file but a whole one means "no hold"."""
    folder = tmp_path_factory.mktemp("state")
    (folder / "mk3.json").write_bytes(data)
    recalled = Memory(folder, "mk3", boot="b1").recall()
    if recalled.trouble:
        assert recalled.hold is Hold.DELIBERATE
        assert "\n" not in recalled.trouble
        assert (folder / "mk3.json.corrupt").read_bytes() == data
    else:
        whole = json.loads(data)
        assert whole["version"] == 1
        assert recalled.hold is Hold(whole["hold"])
        assert recalled.paused_for >= 0


@given(st.integers(0), st.integers(0), st.text())
def test_any_name_of_a_node_comes_back(tmp_path_factory, number, inode, real):
    """Names with quotes, line ends or bytes that are no UTF-8 are kept as they are."""
    folder = tmp_path_factory.mktemp("state")
    for name in (real, os.fsdecode(b"/dev/\xff\xfe")):
        Memory(folder, "mk3", boot="b1").keep(Hold.FAULT, (number, inode, name))
        assert Memory(folder, "mk3", boot="b1").recall() == Remembered(Hold.FAULT, (number, inode, name))
