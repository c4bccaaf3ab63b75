"""What the system tests stand on: umockdev's test bed and a real udevd, or the exact reason why not."""

import contextlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

import umock

UDEVD = Path("/lib/systemd/systemd-udevd")
RUN = Path("/run/udev")


@pytest.fixture
def testbed() -> Iterator[umock.Testbed]:
    """A fake /sys, /dev and netlink, empty at first."""
    try:
        bed = umock.Testbed()
    except umock.Unavailable as missing:
        pytest.skip(f"needs umockdev: {missing}")
    with bed:
        yield bed


@pytest.fixture
def untouched() -> Iterator[None]:
    """Whatever a test does to /dev and /run/udev is undone: udevd sets owners and modes, and makes links."""
    run_udev = RUN.exists()
    before = _owners()
    yield
    for path in sorted(_owners().keys() - before.keys(), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for path, owner in before.items():
        if owner is not None and path.exists() and _owner(path) != owner:
            os.chown(path, owner[1], owner[2])
            path.chmod(owner[0])
    if not run_udev:
        shutil.rmtree(RUN, ignore_errors=True)


@pytest.fixture
def udevd(request: pytest.FixtureRequest) -> Iterator["Udevd"]:
    """A udevd that hears the kernel: the one that runs here, else one of our own for the test."""
    if os.geteuid() != 0:
        pytest.skip("needs root: only root may run udevd and write to /sys/class/tty/*/uevent")
    if not os.access(_uevent_file(Udevd.SPARE), os.W_OK):
        pytest.skip(f"needs a writable /sys with {_uevent_file(Udevd.SPARE)}")
    if not shutil.which("udevadm"):
        pytest.skip("needs udevadm: apt install udev")
    request.getfixturevalue("untouched")
    with Udevd() as daemon:
        yield daemon


class Udevd:
    """A running udevd, and uevents made by hand."""

    SPARE = "tty62"  # a virtual console that no machine uses, so nobody minds its events

    def __init__(self) -> None:
        self.ours: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not self.answers():
            self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self.ours is not None:
            self.end()

    def answers(self) -> bool:
        """Whether a udevd is running."""
        command = ["udevadm", "control", "--ping", "--timeout=5"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def begin(self) -> None:
        """Start one of our own."""
        if not UDEVD.exists():
            pytest.skip(f"needs {UDEVD}: apt install udev")
        self.ours = subprocess.Popen([UDEVD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        try:
            while not self.answers():
                assert self.ours.poll() is None, f"{UDEVD} ended with status {self.ours.returncode}"
                assert time.monotonic() < deadline, f"{UDEVD} does not answer"
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End our own."""
        assert self.ours is not None
        self.ours.terminate()
        self.ours.wait(10)
        self.ours = None

    def trigger(self, action: str, name: str = SPARE, subsystem: str = "tty") -> None:
        """Let the kernel say that something happened to a device."""
        _uevent_file(name, subsystem).write_text(action)


def _uevent_file(name: str, subsystem: str = "tty") -> Path:
    return Path("/sys/class") / subsystem / name / "uevent"


def _owners() -> dict[Path, tuple[int, int, int] | None]:
    """Mode, owner and group of all that lies in /dev; links have none.

    Without the folders that live a life of their own, such as /dev/pts.
    """
    found = {}
    for folder, folders, files in os.walk("/dev"):
        folders[:] = [name for name in folders if name not in {"pts", "shm", "mqueue", "hugepages"}]
        for path in (Path(folder) / name for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):
                found[path] = _owner(path)
    return found


def _owner(path: Path) -> tuple[int, int, int] | None:
    status = path.lstat()
    return (
        None if stat.S_ISLNK(status.st_mode) else (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    )
