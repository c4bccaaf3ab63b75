"""Which OctoPrints can be seen from here, so that "nobody holds the port" means something."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import assert_eventually
from portretry_udev import whereabouts
from portretry_udev.whereabouts import is_ours, seen

HERE = ("127.0.0.1", 5000)
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
    assert seen(HERE, proc)
    assert not seen(("192.0.2.1", 5000), proc), "that is not the one on this machine"
    assert not seen(None, proc)


def test_an_octoprint_started_as_a_module(tmp_path, started):
    """``python -m octoprint``."""
    (tmp_path / "octoprint.py").write_text(SLEEPS)
    process = started("-m", "octoprint")
    proc = proc_of(tmp_path / "proc", process)
    assert_eventually(lambda: is_started(process), 5, "it is not started")
    assert seen(HERE, proc)


def test_none_is_there(tmp_path, started):
    """Other programs that speak of OctoPrint are none: we are one of them."""
    process = started("-c", SLEEPS, "http://octoprint", "--octoprint", "octoprint")
    assert_eventually(lambda: is_started(process), 5, "it is not started")
    assert not seen(HERE, proc_of(tmp_path / "proc", process))


def test_descriptors_that_cannot_be_followed(tmp_path):
    """As root without CAP_SYS_PTRACE sees them: listed, and no more (here a loop of links stands for it)."""
    pid = tmp_path / "proc" / "4242"
    (pid / "fd").mkdir(parents=True)
    (pid / "cmdline").write_bytes(b"/usr/bin/python3\0/usr/bin/octoprint\0serve\0")
    assert seen(HERE, tmp_path / "proc")
    (pid / "fd" / "3").symlink_to(pid / "fd" / "3")
    assert not seen(HERE, tmp_path / "proc")


def test_one_that_has_just_ended(tmp_path):
    """It holds nothing any more."""
    pid = tmp_path / "proc" / "4242"
    pid.mkdir(parents=True)
    (pid / "cmdline").write_bytes(b"/usr/bin/python3\0/usr/bin/octoprint\0serve\0")
    assert seen(HERE, tmp_path / "proc")


LISTENS = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def listener():
    """A process under another name, and the port that it listens on."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LISTENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process, int(process.stdout.readline())


def test_whatever_it_is_called_who_listens_there_is_it(tmp_path, listener):
    """As a module of another program, or renamed."""
    process, port = listener
    proc = proc_of(tmp_path / "proc", process)
    (proc / "net").symlink_to("/proc/net")
    assert seen(("127.0.0.1", port), proc)
    assert not seen(("127.0.0.1", port ^ 1), proc), "nobody is seen there"


def test_a_proxy_is_not_it(tmp_path, listener, monkeypatch):
    """OctoPrint is behind it, who knows where."""
    process, port = listener
    proc = proc_of(tmp_path / "proc", process)
    (proc / "net").symlink_to("/proc/net")
    monkeypatch.setattr(whereabouts, "PROXIES", {Path(f"/proc/{process.pid}/comm").read_text().strip()})
    assert not seen(("127.0.0.1", port), proc)


def test_we_ourselves_are_not_it():
    """An OctoPrint of a test, in this very process: whoever holds a port for it is not seen as another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not [pid for pid, _ in whereabouts._listening(server.getsockname()[1], Path("/proc"))]
