"""API keys: private files only, nothing of a key in any text."""

import os
import re
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portretry_udev.keys import KeySource, KeyTrouble

KEY = "0123456789ABCDEF0123456789abcdef_-x"


def key_file(tmp_path, content=KEY, mode=0o600):
    path = tmp_path / "mk3.key"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def refusal(source):
    """What `read` says when it refuses; neither that nor its trace may hold the key."""
    with pytest.raises(KeyTrouble) as trouble:
        source.read()
    text = str(trouble.value)
    assert "\n" not in text
    assert KEY not in "".join(traceback.format_exception(trouble.value))
    return text


def disown(path, monkeypatch):
    """Make the file somebody else's: really, if we may, else by being somebody else."""
    if os.geteuid() == 0:
        os.chown(path, 54321, -1)
        return 54321, "root"
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    return owner, "54321"


def denied(*_args):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("content", [KEY, f"{KEY}\n", f"\t {KEY} \r\n\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_private_file_gives_its_key(tmp_path, content, mode):
    """White space around the key, as editors leave it, does not matter."""
    assert KeySource.from_file(key_file(tmp_path, content, mode)).read() == KEY


def test_a_new_key_works_without_a_restart(tmp_path):
    """The file is read whenever the key is asked for."""
    path = key_file(tmp_path)
    source = KeySource.from_file(path)
    assert source.read() == KEY
    path.write_text("another", encoding="ascii")
    assert source.read() == "another"
    path.unlink()
    assert refusal(source) == f"key file {path}: No such file or directory"


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o644, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused_with_the_cure(tmp_path, mode):
    """The line to type is there, whole; a name with blanks in it is quoted."""
    path = key_file(tmp_path, mode=mode)
    assert refusal(KeySource.from_file(path)) == (
        f"key file {path} can be read or changed by others (mode {mode:04o}); do: chmod 600 {path}"
    )
    blank = path.rename(tmp_path / "my key")
    assert refusal(KeySource.from_file(blank)).endswith(f"; do: chmod 600 '{blank}'")


def test_a_mode_opened_up_later_is_noticed(tmp_path):
    """A file is judged at each reading, not at the first alone."""
    path = key_file(tmp_path)
    source = KeySource.from_file(path)
    source.read()
    path.chmod(0o644)
    assert "mode 0644" in refusal(source)


def test_somebody_elses_file_is_refused_with_the_cure(tmp_path, monkeypatch):
    """An owner can change a file at any time: it must be root or we."""
    path = key_file(tmp_path)
    owner, user = disown(path, monkeypatch)
    text = refusal(KeySource.from_file(path))
    assert re.fullmatch(rf"key file {path} belongs to \S+; do: chown {user} {path}", text)
    assert str(owner) in text or os.geteuid() != 0
    path.chmod(0o644)
    assert refusal(KeySource.from_file(path)).endswith(f"; do: chown {user} {path} && chmod 600 {path}")


def test_roots_private_file_is_fine_for_any_user(tmp_path, monkeypatch):
    """Who may read root's file was given it: the owner root is trusted, whoever we are."""
    path = key_file(tmp_path)
    real = os.fstat

    def as_roots(descriptor):
        found = list(real(descriptor))
        found[4] = 0
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", as_roots)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert KeySource.from_file(path).read() == KEY


def test_a_file_that_we_may_not_read_says_who_we_are(tmp_path, monkeypatch):
    """The cure names the user to give the file to."""
    path = key_file(tmp_path)
    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert refusal(KeySource.from_file(path)) == (
        f"key file {path} cannot be read by user 54321; run as root, or do: chown 54321 {path}"
    )


def test_what_is_no_file_is_never_opened(tmp_path, monkeypatch):
    """A serial port named by mistake is not opened (that resets printers), nor does a FIFO hang us."""
    opened = []
    monkeypatch.setattr(os, "open", lambda *args: opened.append(args))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path):
        assert refusal(KeySource.from_file(path)) == f"key file {path} is not a regular file"
    assert "is not a regular file" in refusal(KeySource.from_file(type(fifo)("/dev/null")))
    assert opened == []


def test_a_file_swapped_between_look_and_opening_is_judged_as_opened(tmp_path, monkeypatch):
    """What counts is the open file: a swap behind our back does not get around the check."""
    path = key_file(tmp_path)
    real = os.open

    def swapped(name, flags):
        path.unlink()
        key_file(tmp_path, mode=0o644)
        return real(name, flags)

    monkeypatch.setattr(os, "open", swapped)
    assert "mode 0644" in refusal(KeySource.from_file(path))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        (f"{KEY} {KEY}", "holds more than one word"),
        (f"# key\n{KEY}\n", "holds more than one word"),
        (f"{KEY}\0", "holds more than one word"),
        (f"{KEY}é", "characters that no API key has"),
        (b"\xef\xbb\xbf" + KEY.encode(), "characters that no API key has"),
        ("x" * 257, "more than 256 characters"),
        (f"{KEY}{' ' * 2000}{KEY}", "more than 256 characters"),
    ],
)
def test_what_is_no_key_is_refused_in_every_home(tmp_path, content, complaint):
    """A file, a credential and the environment are held to the same."""
    path = key_file(tmp_path, content)
    for source in (KeySource.from_file(path), KeySource.from_credential(tmp_path, "mk3")):
        text = refusal(source)
        assert complaint in text
        assert str(path) in text
    said = content if isinstance(content, str) else content.decode("utf-8-sig", "surrogateescape")
    if said != KEY:
        text = refusal(KeySource.from_environment(said))
        assert complaint in text
        assert "PORTRETRY_API_KEY" in text


def test_the_longest_key_is_taken(tmp_path):
    """256 characters are still a key."""
    assert KeySource.from_file(key_file(tmp_path, "x" * 256)).read() == "x" * 256


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o444])
def test_a_credential_is_not_judged_by_its_mode(tmp_path, mode, monkeypatch):
    """Systemd guards its credentials itself, with modes such as 0440."""
    path = key_file(tmp_path, mode=mode)
    disown(path, monkeypatch)
    source = KeySource.from_credential(tmp_path, "mk3")
    assert source.read() == KEY
    assert str(source) == f"credential {path}"


def test_a_credential_of_a_folder(tmp_path):
    """Systemd, given the whole folder as ``keys``, puts that in front; the single one is meant more."""
    (tmp_path / "keys_mk3.key").write_text("of-a-folder")
    assert KeySource.from_credential(tmp_path, "mk3").read() == "of-a-folder"
    (tmp_path / "mk3.key").write_text("single")
    assert KeySource.from_credential(tmp_path, "mk3").read() == "single"


def test_a_credential_that_cannot_be_read_is_told_without_a_chown(tmp_path, monkeypatch):
    """Nobody can chown a credential; it is named all the same."""
    source = KeySource.from_credential(tmp_path, "mk3")
    assert refusal(source) == f"credential {tmp_path}/mk3.key: No such file or directory"
    key_file(tmp_path)
    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert refusal(source) == f"credential {tmp_path}/mk3.key cannot be read by user 54321"


def test_the_environment_gives_a_key():
    """For containers the key itself may be a variable."""
    assert KeySource.from_environment(f" {KEY}\n").read() == KEY


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=300))
def test_no_text_made_of_a_source_holds_the_key(key):
    """Neither repr nor str nor a refusal of a source shows the key, whatever it looks like."""
    source = KeySource.from_environment(key)
    texts = f"{source} {source!r} {[source]}"
    try:
        assert source.read() == key
    except KeyTrouble as trouble:
        texts += str(trouble)
    assert key not in texts.replace("PORTRETRY_API_KEY", "").replace("KeySource", "").replace(
        "credential", ""
    )


def test_a_wrong_key_never_shows_in_its_trace():
    """Even the trace of a refusal holds nothing of the key: not in its text, not in its causes."""
    for bad in (f"{KEY} {KEY}", f"{KEY}é", KEY * 20):
        refusal(KeySource.from_environment(bad))
