"""Which OctoPrints can be seen from here, so that "nobody holds the port" means something."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import assert_eventually
from portretry_udev.whereabouts import is_ours, seen

SLEEPS = "import sys; sys.stdin.read()"


@pytest.fixture
def started(tmp_path):
    """Start a process with these arguments to Python; it ends with the test."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], stdin=subprocess.PIPE, cwd=tmp_path
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.communicate()


def proc_of(folder, *processes):
    """A /proc in which only these processes are."""
    folder.mkdir()
    for process in processes:
        (folder / str(process.pid)).symlink_to(f"/proc/{process.pid}")
    return folder


def is_started(process):
    """Its arguments are not those of the process that it was forked from."""
    return b"octoprint" in Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_our_own_addresses(address):
    """Loopback, in both families."""
    assert is_ours(address)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "fe80::1%9", "", "nonsense"])
def test_the_addresses_of_others(address):
    """Those of documentation, and what is none."""
    assert not is_ours(address)


@pytest.mark.parametrize("name", ["octoprint", "octoprint.py", "OctoPrint"])
def test_an_octoprint_on_this_machine(tmp_path, started, name):
    """Started by its script, it can be looked into."""
    script = tmp_path / name
    script.write_text(SLEEPS)
    process = started(script, "serve")
    assert_eventually(lambda: is_started(process), 5, "it is not started")
    proc = proc_of(tmp_path / "proc", process)
    assert seen("127.0.0.1", proc)
    assert not seen("192.0.2.1", proc), "that is not the one on this machine"
    assert not seen(None, proc)


def test_an_octoprint_started_as_a_module(tmp_path, started):
    """``python -m octoprint``."""
    (tmp_path / "octoprint.py").write_text(SLEEPS)
    process = started("-m", "octoprint")
    proc = proc_of(tmp_path / "proc", process)
    assert_eventually(lambda: is_started(process), 5, "it is not started")
    assert seen("127.0.0.1", proc)


def test_none_is_there(tmp_path, started):
    """Other programs that speak of OctoPrint are none: we are one of them."""
    process = started("-c", SLEEPS, "http://octoprint", "--octoprint", "octoprint")
    assert_eventually(lambda: is_started(process), 5, "it is not started")
    assert not seen("127.0.0.1", proc_of(tmp_path / "proc", process))


def test_descriptors_that_cannot_be_followed(tmp_path):
    """As root without CAP_SYS_PTRACE sees them: listed, and no more (here a loop of links stands for it)."""
    pid = tmp_path / "proc" / "4242"
    (pid / "fd").mkdir(parents=True)
    (pid / "cmdline").write_bytes(b"/usr/bin/python3\0/usr/bin/octoprint\0serve\0")
    assert seen("127.0.0.1", tmp_path / "proc")
    (pid / "fd" / "3").symlink_to(pid / "fd" / "3")
    assert not seen("127.0.0.1", tmp_path / "proc")


def test_one_that_has_just_ended(tmp_path):
    """It holds nothing any more."""
    pid = tmp_path / "proc" / "4242"
    pid.mkdir(parents=True)
    (pid / "cmdline").write_bytes(b"/usr/bin/python3\0/usr/bin/octoprint\0serve\0")
    assert seen("127.0.0.1", tmp_path / "proc")
