"""One serial port: open it once, listen, poke, hand over, close; and who else holds it.

The only module that opens ports.  Knows termios, errno and /proc.  Must not know OctoPrint, udev, or when
any of this is wanted: that is for the rules.

Never locks (flock, TIOCEXCL): OctoPrint meeting a lock of ours is stuck for ever (facts, "the trap").
"""

import contextlib
import errno
import fcntl
import math
import os
import select
import stat
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import serial

from portretry_udev.events import Refusal
from portretry_udev.firmware import POKE

# ioctl numbers of asm-generic/ioctls.h (x86, arm, arm64, riscv); `termios` does not name them.
_TIOCGEXCL = 0x80045440
_TCGETS2 = 0x802C542A
_TCSETS2 = 0x402C542B
_TERMIOS2 = struct.Struct("=IIIIB19sII")  # iflag, oflag, cflag, lflag, line, cc, ispeed, ospeed
_CFLAG = 2
_PTY_SLAVES = 136  # their major number (Documentation/admin-guide/devices.txt); the minor is their index

BOOTLOADER_TOUCH = 1200  # baud: opening at it makes many boards wait for new firmware

# USB vendors and the rates (baud) never to be set on their ports: at 57600 Prusa's Buddy boards turn Marlin
# off and their log on (tud_cdc_line_coding_cb in Prusa-Firmware-Buddy).
SHUNNED = {"2c99": frozenset({57600})}

# Programs that write firmware.  Run by another user they may hold a port without our seeing it in /proc.
FLASHERS = frozenset({"avrdude", "bossac", "dfu-util", "stm32flash", "esptool", "esptool.py"})

# Closes of ours under way, by the device's number.  An open meanwhile would wait for them in the kernel: 26 s
# with cdc_acm and a board that takes no bytes, measured in tests/vm.
_lingering: dict[int, threading.Thread] = {}

_REFUSALS = {
    errno.ENOENT: Refusal.MISSING,
    errno.ENODEV: Refusal.MISSING,
    errno.ENOTDIR: Refusal.MISSING,
    errno.EACCES: Refusal.DENIED,
    errno.EPERM: Refusal.DENIED,
    errno.EBUSY: Refusal.BUSY,
    errno.ENXIO: Refusal.STALE,
    errno.EIO: Refusal.BROKEN,
}
_ADVICE = {
    Refusal.MISSING: "it is not there",
    Refusal.DENIED: "permission denied: put this user into the group of the port (dialout)",
    Refusal.BUSY: "another process has it",
    Refusal.STALE: "the node is there, its device is not: printer off, or an old node in a container",
    Refusal.BROKEN: "input/output error: check cable and board",
}
_VOID = (
    "permission denied: the kernel took all rights from this node when its device was unplugged; "
    "give the container one made by mknod (docs/containers.md)"
)
_OTHERS_LINK = (
    "permission denied: in such a folder the kernel lets only a link's owner follow it; "
    "have Klipper make its port in another one (its option -I)"
)
# EPERM is not the node's mode, but what the control group may use.
_NOT_ALLOWED = "not allowed here: give the container the device, or the service's unit a DeviceAllow= for it"


class PortError(Exception):
    """A port could not be opened: ``refusal`` says why for the rules, the text for people."""

    def __init__(self, refusal: Refusal, why: str) -> None:
        super().__init__(why)
        self.refusal = refusal


class HangUp(Exception):  # noqa: N818 - the field's word for it
    """The device behind the open port is gone."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has the port open, or that may well have; ``pid`` 0: it cannot be named."""

    pid: int
    name: str
    sure: bool = True

    def __str__(self) -> str:
        seems = "" if self.sure else " (run by another user; it may have the port)"
        which = f" (pid {self.pid})" if self.pid else ""
        return f"{self.name}{which}{seems}"


@dataclass(frozen=True, slots=True)
class Holders:
    """What a look into /proc found; ``unseen``: processes of other users that could not be looked into."""

    found: tuple[Holder, ...]
    unseen: int = 0


# -- who holds it ------------------------------------------------------------------------------------------
def holders(path: str | os.PathLike[str], proc: Path = Path("/proc"), *, age: float = 0.0) -> Holders:
    """All other processes that hold a device node, by its number and by the kernel's list of locks.

    A path says nothing (links, bind mounts), a number does.  Processes in other PID namespaces are invisible
    from a container, and those of other users without CAP_SYS_PTRACE: of the latter, flashers are counted as
    holders, since disturbing one breaks a board.

    Args:
        path: of the node, or a link to it.
        proc: for tests.
        age: seconds that the walk through ``/proc`` may be old; at 0 it begins after this call.

    Raises:
        OSError: the node cannot be looked at (it is gone, for one).
    """
    node = Path(path).stat()
    walk = (_walks if proc == _walks.proc else _Walks(proc)).newest(age)
    found: dict[int, Holder] = {}
    unseen = 0
    for pid, numbers in walk.items():
        if node.st_rdev in numbers:
            if not _keeps_master(proc / str(pid), node.st_rdev):
                found[pid] = Holder(pid, _name(proc, pid))
        elif None in numbers and (name := _name(proc, pid)):
            unseen += 1
            if name in FLASHERS:
                found[pid] = Holder(pid, name, sure=False)
    for pid in _lockers(proc, node):
        if pid or not found:  # a lock without a pid is most likely that of one already found
            found.setdefault(pid, Holder(pid, _name(proc, pid) or "a process elsewhere"))
    return Holders(tuple(found[pid] for pid in sorted(found)), unseen)


class _Walks:
    """Walks through ``/proc``, one at a time: who asks during one gets the next, with all others who wait.

    One takes 10 ms and more.  A walk for each of 64 printers, each second, would take all of a processor.
    """

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self._changed = threading.Condition()
        self._begun = 0  # counts walks
        self._walking = False
        self._done = 0  # the newest one that has ended well, when it began, and what it found
        self._began_at = -math.inf
        self._found: dict[int, set[int | None]] = {}

    def newest(self, age: float) -> dict[int, set[int | None]]:
        """The devices of each process; None among them: there may be more.

        Raises:
            OSError: ``proc`` cannot be read.
        """
        with self._changed:
            wanted = self._begun + 1  # the next one: that under way may have passed the place already
            while True:
                if self._done >= wanted or time.monotonic() - self._began_at <= age:
                    return self._found
                if not self._walking:
                    break
                self._changed.wait()
            self._walking = True
            self._begun += 1
            number, began_at = self._begun, time.monotonic()
        found = None
        try:
            found = {pid: _devices(self.proc / str(pid)) for pid in _processes(self.proc)}
        finally:
            with self._changed:
                self._walking = False
                if found is not None:
                    self._done, self._began_at, self._found = number, began_at, found
                self._changed.notify_all()
        return found


_walks = _Walks(Path("/proc"))


def _processes(proc: Path) -> Iterator[int]:
    with os.scandir(proc) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    yield from (pid for pid in pids if pid != os.getpid())


def _devices(process: Path) -> set[int | None]:
    """The numbers of the devices that a process has open; None is one that cannot be told."""
    try:
        with os.scandir(process / "fd") as descriptors:
            return {_device(fd) for fd in descriptors}
    except (FileNotFoundError, ProcessLookupError):
        return set()  # it has ended
    except PermissionError:
        return {None}


def _device(descriptor: os.DirEntry[str]) -> int | None:
    """The number of the device behind a descriptor, 0 if there is none; None: it cannot be told."""
    try:
        info = descriptor.stat()
    except FileNotFoundError:
        return 0  # closed meanwhile
    except OSError:
        return None  # root without CAP_SYS_PTRACE may list descriptors, but not follow them
    return info.st_rdev if stat.S_ISCHR(info.st_mode) else 0


def _keeps_master(process: Path, number: int) -> bool:
    """Whether a process is the far end of this pty: Klipper's is, and keeps the near end open too."""
    if os.major(number) != _PTY_SLAVES:
        return False
    master = f"tty-index:\t{os.minor(number)}"  # only masters have this line, see proc_pid_fdinfo(5)
    try:
        return any(master in info.read_text().splitlines() for info in (process / "fdinfo").iterdir())
    except OSError:
        return False


def _name(proc: Path, pid: int) -> str:
    """The process's name; empty for kernel threads, which hold no ports, and for what has ended."""
    try:
        if not (proc / str(pid) / "cmdline").read_bytes():
            return ""
        return (proc / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _lockers(proc: Path, node: os.stat_result) -> Iterator[int]:
    """Processes with a lock on the node's inode: world-readable, so users see root's and each other's."""
    where = f"{os.major(node.st_dev):02x}:{os.minor(node.st_dev):02x}:{node.st_ino}"
    try:
        lines = (proc / "locks").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # "1: FLOCK  ADVISORY  WRITE 1234 00:05:123 0 EOF"; "1: -> FLOCK ..." waits, but has it open too.
        words = line.split()
        if where in words:
            word = words[words.index(where) - 1]
            pid = int(word) if word.isdecimal() else 0  # -1: a lock of an open file, not of a process
            if pid != os.getpid():
                yield pid


# -- the port ----------------------------------------------------------------------------------------------
class _Serial(serial.Serial):
    """pyserial, but raw at the first moment and without throwing away what waits to be read."""

    clear_hupcl = True
    dtr_stays = False

    def _reconfigure_port(self, force_update: bool = False) -> None:  # noqa: FBT001, FBT002 - pyserial's own
        if force_update and self.fd is not None:
            _refuse_exclusive(self.fd, str(self.port))  # before a holder's settings are changed
            self.dtr_stays = _raw(self.fd, clear_hupcl=self.clear_hupcl)
        super()._reconfigure_port(force_update)  # type: ignore[misc]  # private, so not in its stubs

    def _reset_input_buffer(self) -> None:
        """Keep the input: the banner may already be waiting in it."""


def _refuse_exclusive(fd: int, path: str) -> None:
    """TIOCEXCL keeps others out, but not root: who has it may be invisible from this container."""
    try:
        exclusive = struct.unpack("i", fcntl.ioctl(fd, _TIOCGEXCL, b"\0" * 4))[0]
    except OSError:
        return  # a kernel before 3.8, or no terminal
    if exclusive:
        raise PortError(Refusal.BUSY, f"{path}: a process that is not seen has it alone (TIOCEXCL)")


def _raw(fd: int, *, clear_hupcl: bool) -> bool:
    """Raw at once: a new tty echoes, and a board would get what it says back as commands.

    What came in while open(2) was still on its way has been echoed by now; the cure for that is not a
    program's (docs/resets.md).  Returns whether DTR will stay up after a close.
    """
    hupcl = 0 if clear_hupcl else termios.tcgetattr(fd)[2] & termios.HUPCL  # as it was found
    cflag = termios.CS8 | termios.CREAD | termios.CLOCAL | hupcl
    cc: list[bytes | int] = [b"\0"] * 32
    cc[termios.VMIN] = 1
    cc[termios.VTIME] = 0
    settings: list[int | list[bytes | int]] = [0, 0, cflag, 0, termios.B115200, termios.B115200, cc]
    termios.tcsetattr(fd, termios.TCSANOW, settings)
    return not hupcl


class Port:
    """An open port.  Opening it raises DTR once; nothing else here does.

    Args:
        path: the node, or a link to it.
        baudrate: in baud; not 1200, which is a bootloader's signal.
        clear_hupcl: keep DTR up when the port is closed, so that later opens make no edge; else HUPCL is
            left as it was found.
        forget: called right after the open: whatever inotify has told of the node by then is our own doing,
            or that of somebody whom the second look at the holders finds.

    Attributes:
        dtr_stays: DTR will stay up when the port is closed.

    Raises:
        PortError: not opened, or closed again since another process has it.
    """

    def __init__(
        self,
        path: str,
        baudrate: int,
        *,
        clear_hupcl: bool = True,
        forget: Callable[[], object] = lambda: None,
    ) -> None:
        if baudrate == BOOTLOADER_TOUCH:
            raise ValueError("1200 baud starts the bootloader of many boards")
        self.path = path
        self._rest = b""
        self._closed = False
        _refuse_held(path)
        self._serial = _Serial(baudrate=baudrate, timeout=0)
        self._serial.clear_hupcl = clear_hupcl
        self._serial.port = path
        try:
            self._serial.open()
        except (OSError, termios.error, ValueError) as e:  # what pyserial makes of errors on the way
            raise _refused(path, e) from e
        self.dtr_stays = self._serial.dtr_stays
        try:
            forget()
            _refuse_held(path, self._itself())  # somebody may have come in between
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once the port is closed."""
        return -1 if self._serial.fd is None else int(self._serial.fd)

    def read(self, limit: int = 4096) -> bytes:
        """What has come in, at most ``limit`` bytes; never waits.

        Raises:
            HangUp: the device is gone; close the port at once, or its next node gets another name.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        happened = dict(poll.poll(0)).get(self.fileno(), 0)
        if happened & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            raise HangUp(self.path)
        if not happened & select.POLLIN:
            return b""
        try:
            return os.read(self.fileno(), limit)
        except BlockingIOError:
            return b""
        except OSError as e:
            raise HangUp(self.path) from e

    def poke(self) -> bool:
        r"""Send ``\nM115\n`` if the output is empty; False if the peer takes nothing.  Never waits.

        Never a part of it: a buffer with room for only "\nM1" would make an M1 (stop) of it.

        Raises:
            HangUp: the device is gone.
        """
        try:
            if not self._rest and self._queued():
                return False
            data = self._rest or POKE
            self._rest = data[os.write(self.fileno(), data) :]
        except BlockingIOError:
            return False
        except OSError as e:
            raise HangUp(self.path) from e
        return not self._rest

    def set_baudrate(self, baudrate: int) -> None:
        """Change the rate (baud) of the open port; makes no edge.

        Raises:
            HangUp: the device is gone.
        """
        if baudrate == BOOTLOADER_TOUCH:
            raise ValueError("1200 baud starts the bootloader of many boards")
        try:
            self._serial.baudrate = baudrate
        except (OSError, termios.error, ValueError) as e:
            raise HangUp(self.path) from e

    def close(self, *, drop_dtr: bool = False) -> None:
        """Close the port; never waits: a dead peer's unsent bytes would hold up a last close for 30 s.

        Args:
            drop_dtr: let DTR fall with it, so that the next open makes an edge and a board that resets on it
                says `start`; not where another process has the port too, whose own close would drop it.
        """
        if self._closed:
            return
        self._closed = True
        if drop_dtr:
            with contextlib.suppress(OSError):  # it may be hung up
                if not self.shared():
                    _set_hupcl(self.fileno(), on=True)
        slow = False
        with contextlib.suppress(OSError, termios.error):  # it may be hung up
            if self._queued():
                slow = True
                if not holders(self._itself()).found:  # else these may be another's bytes: OctoPrint's hello
                    termios.tcflush(self.fileno(), termios.TCOFLUSH)
                    slow = self._queued() > 0
        if slow:
            closing = threading.Thread(target=self._serial.close, name="close", daemon=True)
            _lingering[os.fstat(self.fileno()).st_rdev] = closing
            closing.start()
        else:
            self._serial.close()

    def shared(self, *, age: float = 0.0) -> bool:
        """Whether another process has the port open too, by a look that is at most ``age`` seconds old.

        Raises:
            OSError: /proc cannot be looked at.
        """
        return bool(holders(self._itself(), age=age).found)

    def _queued(self) -> int:
        """Bytes that wait to be sent; 0 where nobody counts them (an emulated tty without that ioctl)."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])
        except OSError as e:
            if e.errno in (errno.ENOTTY, errno.EINVAL):
                return 0
            raise

    def _itself(self) -> str:
        """What is really open, whatever the path leads to by now."""
        return f"/proc/self/fd/{self.fileno()}"


def guard(path: str) -> bool:
    """Clear HUPCL on a port that another process holds, so that DTR stays up when that one closes it.

    Reads and writes no byte.  An open of an open port makes no edge; where nobody is seen holding it, it is
    not opened at all.  Returns whether DTR will stay.
    """
    try:
        if not any(holder.sure for holder in holders(path).found):
            return False
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _set_hupcl(fd, on=False)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _set_hupcl(fd: int, *, on: bool) -> None:
    """Whether the last close drops DTR; all else stays as it is."""
    # termios2: tcsetattr would lose a special baudrate such as 250000.
    settings = list(_TERMIOS2.unpack(fcntl.ioctl(fd, _TCGETS2, b"\0" * _TERMIOS2.size)))
    settings[_CFLAG] = settings[_CFLAG] & ~termios.HUPCL | (termios.HUPCL if on else 0)
    fcntl.ioctl(fd, _TCSETS2, _TERMIOS2.pack(*settings))


def _refuse_held(path: str, opened: str | None = None) -> None:
    try:
        node = Path(opened or path).stat()
        found = holders(opened or path).found
    except OSError as e:
        raise _refused(path, e) from e
    if not stat.S_ISCHR(node.st_mode):
        raise PortError(Refusal.UNKNOWN, f"{path} is no serial port")
    if found:
        raise PortError(Refusal.BUSY, f"{path} is in use by " + ", ".join(str(holder) for holder in found))
    closing = _lingering.get(node.st_rdev)
    if closing is not None and closing.is_alive():
        raise PortError(
            Refusal.BUSY, f"{path}: its last close still waits for the printer to take some bytes"
        )


def _refused(path: str, error: Exception) -> PortError:
    """An errno as an outcome; what is not known by number is not understood, and means hands off."""
    code = _errno(error)
    refusal = _REFUSALS.get(code, Refusal.UNKNOWN)
    known = _NOT_ALLOWED if code == errno.EPERM else None
    if code == errno.EACCES:
        known = _VOID if _is_void(path) else _others_link(path)
    advice = known or _ADVICE.get(refusal) or (os.strerror(code) if code else str(error))
    return PortError(refusal, f"{path}: {advice}")


def _is_void(path: str) -> bool:
    """Whether this is devtmpfs's node of a device that was unplugged, kept by a container's bind mount.

    Before it unlinks a node, devtmpfs sets its mode to 0 (handle_remove in drivers/base/devtmpfs.c); the
    device that comes back has a new one.
    """
    with contextlib.suppress(OSError):
        return stat.S_IMODE(Path(path).stat().st_mode) == 0
    return False


def _others_link(path: str) -> str | None:
    """What to do if this is a link in /tmp, such as Klipper's /tmp/printer, and it is another user's.

    In a folder that everybody may write to, with the sticky bit, nobody follows a link but whose it is, not
    even root (fs.protected_symlinks, Documentation/admin-guide/sysctl/fs.rst).
    """
    with contextlib.suppress(OSError):
        link, folder = os.lstat(path), Path(path).parent.stat()
        open_to_all = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
        if stat.S_ISLNK(link.st_mode) and open_to_all and link.st_uid not in (os.geteuid(), folder.st_uid):
            return _OTHERS_LINK
    return None


def _errno(error: BaseException | None) -> int:
    """The number behind an error, 0 if there is none: pyserial wraps some and drops their number."""
    while error is not None:
        code = error.args[0] if isinstance(error, termios.error) else getattr(error, "errno", None)
        if isinstance(code, int):
            return code
        error = error.__cause__ or error.__context__
    return 0
