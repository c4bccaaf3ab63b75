"""One serial port, on real ptys and against real processes: what it does, and what it never does."""

import array
import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import stat
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
import serial

from helpers import assert_eventually
from portretry_udev import inotify, port
from portretry_udev.events import Refusal
from portretry_udev.firmware import POKE, Reader, Sign
from portretry_udev.port import HangUp, Holder, Port, PortError, guard, holders
from portretry_udev.simulator import BANNER, Printer

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes, or is another user")

TIOCEXCL, TIOCGEXCL = 0x540C, 0x80045440
TCGETS2, TCSETS2 = 0x802C542A, 0x402C542B
IFLAG, OFLAG, CFLAG, LFLAG = range(4)

OPEN = "fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)\n"
LOCK = OPEN + "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
# What another user sees of processes that are not his.  Left as it is where the tests run without root.
AS_NOBODY = """
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""
TRY_TO_OPEN = (
    AS_NOBODY
    + """
try:
    port.Port(sys.argv[1], 115200).close()
except port.PortError as e:
    print(e.refusal.name, e)
else:
    print("OPENED")
"""
)
IMPORTS = "import fcntl, os, pathlib, pty, sys, termios\n"


@contextlib.contextmanager
def elsewhere(code, *args):
    """Another process runs this, says its first line (``said``), and stays until the block ends."""
    code = f"{IMPORTS}{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        try:
            child.said = child.stdout.readline().strip()
            assert child.said
            yield child
        finally:
            child.kill()


def run(code, *args, **options):
    """Another process runs this to its end; what it printed."""
    command = [sys.executable, "-c", f"{IMPORTS}from portretry_udev import port\n{code}", *args]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, **options)
    return done.stdout.strip()


def until(condition, timeout=5.0):
    """Poll for a condition; its last value."""
    end = time.monotonic() + timeout
    while not (value := condition()) and time.monotonic() < end:
        threading.Event().wait(0.005)
    return value


class Pty:
    """The far end of a line: what the device sees of us.  Its node is cooked, as the kernel makes it."""

    def __init__(self):
        self.master, slave = os.openpty()
        self.node = os.ttyname(slave)
        os.close(slave)
        os.set_blocking(self.master, False)

    def hang_up(self):
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def received(self):
        try:
            return os.read(self.master, 65536)
        except OSError:  # EAGAIN: nothing; EIO: nothing, and nobody has it open
            return b""

    def collect(self, size, timeout=5.0):
        """So many bytes, or what came of them in the time; the kernel delivers in pieces."""
        data, end = b"", time.monotonic() + timeout
        while len(data) < size and time.monotonic() < end:
            data += self.received()
        return data

    def settings(self):
        """All of termios2, as bytes."""
        return fcntl.ioctl(self.master, TCGETS2, bytes(44))

    def flags(self):
        return struct.unpack("4I", self.settings()[:16])

    def baudrate(self):
        return struct.unpack("I", self.settings()[-4:])[0]

    def set_hupcl(self, on):
        attributes = termios.tcgetattr(self.master)
        attributes[CFLAG] = attributes[CFLAG] | termios.HUPCL if on else attributes[CFLAG] & ~termios.HUPCL
        termios.tcsetattr(self.master, termios.TCSANOW, attributes)


@pytest.fixture
def pty():
    line = Pty()
    yield line
    line.hang_up()


@pytest.fixture
def opened(pty):
    """A port of ours on the pty."""
    ours = Port(pty.node, 115200)
    yield ours
    ours.close()


@pytest.fixture
def opens(pty):
    """How often the pty's node has been opened since the last call, by anybody."""
    with inotify.Inotify() as notes:
        notes.add(pty.node, inotify.OPEN)
        yield lambda: len(notes.read())


def refusal(path, baudrate=115200):
    with pytest.raises(PortError) as caught:
        Port(str(path), baudrate)
    return caught.value


# -- the open ------------------------------------------------------------------------------------------------


def test_a_new_line_is_raw_and_echoes_nothing(pty, opened):
    """A cooked new node is made raw by the open: the board does not get its own banner back as commands."""
    os.write(pty.master, BANNER)
    assert opened.read() == BANNER
    assert pty.received() == b""
    iflag, oflag, cflag, lflag = pty.flags()
    assert (iflag, oflag, lflag) == (0, 0, 0)
    assert cflag & termios.CSIZE == termios.CS8
    assert not cflag & (termios.PARENB | termios.CSTOPB | termios.CRTSCTS)


@pytest.mark.parametrize("found", [True, False])
def test_hupcl_is_cleared_or_left_as_it_was_found(pty, found):
    """With avoid_reset DTR stays up after our close; without it HUPCL is not touched, either way."""
    pty.set_hupcl(found)
    ours = Port(pty.node, 115200, clear_hupcl=False)
    assert bool(pty.flags()[CFLAG] & termios.HUPCL) is found
    assert ours.dtr_stays is not found
    ours.set_baudrate(57600)
    assert bool(pty.flags()[CFLAG] & termios.HUPCL) is found
    ours.close()
    ours = Port(pty.node, 115200)
    assert not pty.flags()[CFLAG] & termios.HUPCL
    assert ours.dtr_stays
    ours.close()


def test_children_do_not_inherit_it(opened):
    """A program started meanwhile does not keep the port open."""
    assert fcntl.fcntl(opened.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert os.get_blocking(opened.fileno()) is False


def test_nobody_is_locked_out(pty, opened):
    """OctoPrint can open and lock the port while we hold it: there is no flock and no TIOCEXCL."""
    os.chmod(pty.node, 0o666)  # noqa: PTH101 - a node, not a path of ours
    code = AS_NOBODY + LOCK + f"print(fcntl.ioctl(fd, {TIOCGEXCL}, bytes(4)).hex())"
    assert run(code, pty.node) == "00000000"
    os.write(pty.master, b"ok\n")
    assert opened.read() == b"ok\n"


def test_what_waits_to_be_read_is_not_thrown_away(pty):
    """A banner that came before our open is read after it."""
    port.termios.tcsetattr(
        pty.master, termios.TCSANOW, [0, 0, termios.CS8 | termios.CREAD, 0, 15, 15, [b"\1"] * 32]
    )
    os.write(pty.master, BANNER)
    ours = Port(pty.node, 115200)
    assert until(ours.read) == BANNER
    ours.close()


def test_it_is_opened_once_and_closed_once(tmp_path):
    """One open for all of it, two looks at the holders and a change of baudrate included."""
    with Printer(link=tmp_path / "printer") as printer:
        ours = Port(str(printer.link), 115200)
        ours.set_baudrate(250000)
        ours.set_baudrate(115200)
        assert printer.wait_for(lambda stats: stats.opens == 1 and stats.baud == 115200, 2)
        assert printer.stats().closes == 0
        ours.close()
        ours.close()
        assert printer.wait_for(lambda stats: stats.closes == 1, 2)
        assert printer.stats().opens == 1


def test_what_inotify_told_of_our_own_open_is_forgotten_in_time(pty, opens):
    """``forget`` is called when our open has been told and nobody else's can be missed."""
    told = []
    Port(pty.node, 115200, forget=lambda: told.append(opens())).close()
    assert told == [1]
    assert opens() == 0


def test_a_failing_forget_closes_the_port(pty, opens):
    """An error between the open and its end leaves nothing open behind."""

    def fail():
        raise RuntimeError("inotify is broken")

    with pytest.raises(RuntimeError, match="inotify is broken"):
        Port(pty.node, 115200, forget=fail)
    assert opens() == 1
    with pytest.raises(OSError, match="Input/output error"):
        os.read(pty.master, 1)  # EIO: nobody has it open


# -- refused: nothing is opened ------------------------------------------------------------------------------


def test_held_by_another_process(pty, opens):
    """A port that somebody has is refused with his name and pid, and without an open of ours."""
    with elsewhere(OPEN, pty.node) as child:
        opens()
        refused = refusal(pty.node)
        assert refused.refusal is Refusal.BUSY
        assert f"{pty.node} is in use by python" in str(refused)
        assert f"(pid {child.pid})" in str(refused)
        assert opens() == 0


def test_locked_by_another_process(pty, opens):
    """A lock is seen in /proc/locks, also by a user who cannot look into the locker."""
    os.chmod(pty.node, 0o666)  # noqa: PTH101 - a node, not a path of ours
    with elsewhere(LOCK, pty.node) as child:
        opens()
        said = run(TRY_TO_OPEN, pty.node)
        assert said.startswith(f"BUSY {pty.node} is in use by python")
        assert f"(pid {child.pid})" in said
        assert opens() == 0
        assert list(port._lockers(port.Path("/proc"), os.stat(pty.node))) == [child.pid]  # noqa: PTH116


def test_somebody_comes_in_between(pty):
    """Who opens the port between our first look and our open is found by the second; ours is closed again."""
    with contextlib.ExitStack() as stack:
        refused = None
        try:
            Port(pty.node, 115200, forget=lambda: stack.enter_context(elsewhere(OPEN, pty.node)))
        except PortError as e:
            refused = e
        assert refused is not None
        assert refused.refusal is Refusal.BUSY
        assert [holder.pid for holder in holders(pty.node).found] == [_pid(refused)]
    assert until(lambda: _read_error(pty.master) == errno.EIO)  # he has ended, and we have long closed ours


def _pid(refused):
    return int(str(refused).partition("(pid ")[2].partition(")")[0])


def _read_error(fd, into=None):
    try:
        data = os.read(fd, 65536)
    except OSError as e:
        return e.errno
    if into is not None:
        into += data
    return 0


def test_taken_alone_by_somebody_who_is_not_seen(pty):
    """TIOCEXCL does not stop root: it is asked for before one setting of its holder's is changed."""
    fd = os.open(pty.node, os.O_RDWR | os.O_NOCTTY)  # ours, so that no holder is found in /proc
    fcntl.ioctl(fd, TIOCEXCL)
    before = pty.settings()
    assert refusal(pty.node).refusal is Refusal.BUSY
    assert pty.settings() == before
    os.close(fd)


def test_taken_alone_and_we_are_not_root(pty):
    """EBUSY from the kernel is an outcome of its own."""
    os.chmod(pty.node, 0o666)  # noqa: PTH101 - a node, not a path of ours
    fd = os.open(pty.node, os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(fd, TIOCEXCL)
    assert run(TRY_TO_OPEN, pty.node).startswith(f"BUSY {pty.node}")
    os.close(fd)


def test_permission_denied(pty, opens):
    """EACCES says which group to join."""
    os.chmod(pty.node, 0o600)  # noqa: PTH101 - a node, not a path of ours
    said = run(TRY_TO_OPEN, pty.node)
    assert said.startswith(f"DENIED {pty.node}: permission denied")
    assert "dialout" in said
    assert opens() == 0


def test_a_node_that_the_kernel_has_voided(pty):
    """What an unplug leaves of a node that is bound into a container helps no group: another node does."""
    os.chmod(pty.node, 0)  # noqa: PTH101 - a node, not a path of ours
    said = run(TRY_TO_OPEN, pty.node)
    assert said.startswith(f"DENIED {pty.node}: permission denied: the kernel took all rights")
    assert "dialout" not in said


def test_anothers_link_in_tmp(pty, tmp_path):
    """No group helps where the kernel follows a link for its owner only: the port must be made elsewhere."""
    os.chmod(pty.node, 0o400)  # noqa: PTH101 - a node, not a path of ours
    link = pathlib.Path("/tmp", f"{tmp_path.parent.name}-{tmp_path.name}")
    link.symlink_to(pty.node)
    try:
        if os.geteuid() == 0:  # who owns /tmp: whose links are followed for all
            os.chown(link, 12345, 12345, follow_symlinks=False)
        said = run(f"os.geteuid = lambda: 54321\n{TRY_TO_OPEN}", str(link))
    finally:
        link.unlink()
    assert said.startswith(f"DENIED {link}: permission denied: in such a folder the kernel lets only")
    assert "dialout" not in said


def test_missing(tmp_path):
    """No node, or no folder for one, is not there."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for path in ("gone", "dangling", "file/gone"):
        refused = refusal(tmp_path / path)
        assert refused.refusal is Refusal.MISSING
        assert str(refused) == f"{tmp_path / path}: it is not there"


def test_not_a_device(tmp_path):
    """A folder, a file or a pipe is refused without opening it."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with inotify.Inotify() as notes:
        for path in (tmp_path, tmp_path / "file", tmp_path / "pipe"):
            notes.add(path, inotify.OPEN)
            refused = refusal(path)
            assert refused.refusal is Refusal.UNKNOWN
            assert str(refused) == f"{path} is no serial port"
        assert notes.read() == []


def test_a_device_that_is_no_terminal():
    """What opens but has no settings of a line is refused, and closed again."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only counted
    refused = refusal("/dev/zero")
    assert refused.refusal in (Refusal.UNKNOWN, Refusal.BUSY)  # busy: some process here may have it
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_node_whose_device_is_gone():
    """ENXIO: /dev/tty of a process without a terminal is a node with nothing behind it."""
    said = run(TRY_TO_OPEN, "/dev/tty", start_new_session=True)
    assert said.startswith("STALE /dev/tty: the node is there, its device is not")


@needs_root
def test_a_node_made_by_hand_for_a_device_that_is_gone(tmp_path):
    """An old node in a container, as after a replug: the kernel knows no such device."""
    node = tmp_path / "ttyUSB250"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(188, 250))
    refused = refusal(node)
    assert refused.refusal in (Refusal.STALE, Refusal.MISSING)
    assert str(node) in str(refused)


@needs_root
def test_input_output_error(tmp_path, pty):
    """EIO: a copy of a pty's node outside of its file system cannot be opened."""
    node = tmp_path / "copy"
    os.mknod(node, stat.S_IFCHR | 0o600, os.stat(pty.node).st_rdev)  # noqa: PTH116
    refused = refusal(node)
    assert refused.refusal is Refusal.BROKEN
    assert "check cable and board" in str(refused)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOENT, Refusal.MISSING),
        (errno.ENODEV, Refusal.MISSING),
        (errno.ENOTDIR, Refusal.MISSING),
        (errno.EACCES, Refusal.DENIED),
        (errno.EPERM, Refusal.DENIED),
        (errno.EBUSY, Refusal.BUSY),
        (errno.ENXIO, Refusal.STALE),
        (errno.EIO, Refusal.BROKEN),
        (errno.ETXTBSY, Refusal.UNKNOWN),
        (errno.EMFILE, Refusal.UNKNOWN),
    ],
)
def test_each_errno_is_an_outcome(pty, monkeypatch, code, expected):
    """Each errno that an open can end in has its outcome; one not understood is named and means hands off."""
    real_open = os.open

    def failing_open(path, *args, **options):
        if path == pty.node:
            raise OSError(code, os.strerror(code), path)
        return real_open(path, *args, **options)

    monkeypatch.setattr(os, "open", failing_open)
    refused = refusal(pty.node)
    assert refused.refusal is expected
    assert str(refused).startswith(f"{pty.node}: ")
    if expected is Refusal.UNKNOWN:
        assert os.strerror(code) in str(refused)
    # A mode is cured by a group, a control group by what set it up.
    assert ("dialout" in str(refused)) is (code == errno.EACCES)
    assert ("DeviceAllow=" in str(refused)) is (code == errno.EPERM)


def test_an_error_without_a_number_means_hands_off(pty, monkeypatch):
    """An error that has no errno at all is told in its own words."""

    def fail(*_args):
        raise serial.SerialException("the moon is in the wrong phase")

    monkeypatch.setattr(port._Serial, "_update_dtr_state", fail)
    refused = refusal(pty.node)
    assert refused.refusal is Refusal.UNKNOWN
    assert "the moon is in the wrong phase" in str(refused)


@pytest.mark.parametrize(
    ("step", "baudrate"), [("_reconfigure_port", 115200), ("_set_special_baudrate", 250000)]
)
def test_unplugged_during_the_open(pty, monkeypatch, step, baudrate):
    """A hang-up between the open and its settings is an input/output error like any other, not a crash."""
    real_step = getattr(port._Serial, step)

    def unplugged(self, *args, **options):
        pty.hang_up()
        return real_step(self, *args, **options)

    monkeypatch.setattr(port._Serial, step, unplugged)
    assert refusal(pty.node, baudrate).refusal is Refusal.BROKEN


def test_unplugged_before_the_second_look(pty):
    """A port that dies between the open and the second look is told of by its first use."""
    ours = Port(pty.node, 115200, forget=pty.hang_up)
    with pytest.raises(HangUp):
        ours.read()
    ours.close()


# -- who holds it --------------------------------------------------------------------------------------------


def test_held_counts_the_device_and_not_the_name(tmp_path, pty):
    """A holder is found through a link, and under any name of the same device."""
    link = tmp_path / "by-id"
    link.symlink_to(pty.node)
    with elsewhere(OPEN, pty.node) as child:
        found = holders(link).found
        assert [(holder.pid, holder.sure) for holder in found] == [(child.pid, True)]
        assert found[0].name.startswith("python")
    assert holders(link).found == ()


@needs_root
def test_held_through_another_node(tmp_path, pty):
    """A second node of the same device, as in a container, is the same device."""
    node = tmp_path / "copy"
    os.mknod(node, stat.S_IFCHR | 0o600, os.stat(pty.node).st_rdev)  # noqa: PTH116
    with elsewhere(OPEN, pty.node) as child:
        assert [holder.pid for holder in holders(node).found] == [child.pid]


def test_an_open_port_is_shared_while_another_process_has_it_too(pty, opened):
    """Where inotify sees nothing of an open, this does."""
    assert not opened.shared()
    with elsewhere(OPEN, pty.node):
        assert opened.shared()
    assert not opened.shared()


def test_we_are_no_holder_of_our_own_port(pty, opened):
    """What this process has open is not counted."""
    assert opened.fileno() >= 0
    assert holders(pty.node).found == ()


def test_klipper_holds_both_ends_of_its_pty():
    """A process that has the pty's master is the printer, not a holder; another process beside it is one."""
    with elsewhere("m, s = pty.openpty()\nprint(os.ttyname(s), flush=True)") as klippy:
        node = klippy.said
        assert holders(node).found == ()
        Port(node, 115200).close()
        with elsewhere(OPEN, node) as octoprint:
            assert [holder.pid for holder in holders(node).found] == [octoprint.pid]


def test_the_master_of_another_pty_is_no_excuse(pty):
    """A terminal program has ptys of its own: it holds ours all the same."""
    with elsewhere("m, s = pty.openpty()\n" + OPEN, pty.node) as child:
        assert [holder.pid for holder in holders(pty.node).found] == [child.pid]


@needs_root
def test_a_flasher_of_another_user_counts(pty):
    """Root's processes cannot be looked into by a user: a flasher among them may have the port."""
    os.chmod(pty.node, 0o666)  # noqa: PTH101 - a node, not a path of ours
    name = f"flash-{os.getpid()}"  # not avrdude: that would be in the way of tests that run beside these
    with elsewhere(f"pathlib.Path('/proc/self/comm').write_text('{name}')\n") as child:
        said = run(f"port.FLASHERS = {{'{name}'}}\n{TRY_TO_OPEN}", pty.node)
        assert f"{name} (pid {child.pid}) (run by another user; it may have the port)" in said
        assert said.startswith("BUSY")
        seen = run(AS_NOBODY + "print(port.holders(sys.argv[1]).unseen > 0)", pty.node)
        assert seen == "True"


@pytest.fixture
def proc(tmp_path):
    """A made-up /proc; processes are added with `process`."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "locks").write_text("")
    return folder


def process(proc, pid, name, *, fds=(), cmdline=b"x\0"):
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_bytes(cmdline)
    for number, target in enumerate(fds):
        (folder / "fd" / str(number)).symlink_to(target)
    return folder


def test_what_cannot_be_looked_into_is_counted(proc, pty, monkeypatch):
    """Processes of others are numbered; flashers among them count as holders, kernel threads not at all."""
    locked_up = process(proc, 11, "sshd")
    process(proc, 12, "bossac", fds=["1"])  # 0 -> 1, which is not there: closed meanwhile
    (proc / "12" / "fd" / "9").symlink_to("9")  # a descriptor that may be listed but not followed
    process(proc, 13, "kworker/0:1", cmdline=b"").joinpath("fd", "9").symlink_to("9")
    process(proc, 14, "init", fds=["/dev/null", "/etc/passwd", pty.node + "-gone"])
    process(proc, 15, "ended").joinpath("fd").rmdir()
    real_scandir = os.scandir

    def scandir(path):
        if str(path) == str(locked_up / "fd"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = holders(pty.node, proc)
    assert found.found == (Holder(12, "bossac", sure=False),)
    assert found.unseen == 2


def test_an_open_descriptor_beside_one_that_cannot_be_followed(proc, pty):
    """What can be seen decides: a holder is a holder, though not all of it can be looked into."""
    process(proc, 21, "screen", fds=["0", pty.node])
    assert holders(pty.node, proc).found == (Holder(21, "screen"),)


def test_holders_that_cannot_be_counted_mean_hands_off(pty, opens, monkeypatch):
    """A look into /proc that fails is not a look that found nobody."""

    def scandir(_path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "scandir", scandir)
    refused = refusal(pty.node)
    assert refused.refusal is Refusal.UNKNOWN
    assert "Too many open files" in str(refused)
    assert opens() == 0


def test_odd_lines_among_the_locks(proc, pty):
    """Each shape of a line in /proc/locks is read; one with our node in it always counts."""
    node = os.stat(pty.node)  # noqa: PTH116
    where = f"{os.major(node.st_dev):02x}:{os.minor(node.st_dev):02x}:{node.st_ino}"
    process(proc, 31, "octoprint")

    def with_locks(*lines):
        (proc / "locks").write_text("".join(f"{line}\n" for line in lines))
        return [str(holder) for holder in holders(pty.node, proc).found]

    assert with_locks(f"1: FLOCK  ADVISORY  WRITE 31 {where} 0 EOF") == ["octoprint (pid 31)"]
    assert with_locks(f"1: POSIX  ADVISORY  READ  32 {where} 0 EOF") == ["a process elsewhere (pid 32)"]
    assert with_locks(f"1: -> FLOCK  ADVISORY  WRITE 31 {where} 0 EOF") == ["octoprint (pid 31)"]
    assert with_locks(f"1: OFDLCK ADVISORY  WRITE -1 {where} 0 EOF") == ["a process elsewhere"]
    assert with_locks(f"1: FLOCK  ADVISORY  WRITE 0 {where} 0 EOF") == ["a process elsewhere"]
    assert with_locks(where, "", "nonsense") == ["a process elsewhere"]
    assert with_locks(f"1: FLOCK  ADVISORY  WRITE {os.getpid()} {where} 0 EOF") == []
    assert with_locks("1: FLOCK  ADVISORY  WRITE 31 00:00:1 0 EOF", f"2: FLOCK {where}9") == []
    both = with_locks(f"1: FLOCK  ADVISORY  WRITE 31 {where} 0 EOF", f"2: OFDLCK WRITE -1 {where} 0 EOF")
    assert both == ["octoprint (pid 31)"]
    (proc / "locks").unlink()
    assert holders(pty.node, proc).found == ()


def test_a_lock_of_an_open_file_is_seen(pty):
    """A real OFD lock, which has no pid, does not upset the look: its holder is found once."""
    lock = "import struct\nfcntl.fcntl(fd, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))\n"
    with elsewhere(OPEN + lock, pty.node) as child:
        assert "OFDLCK" in port.Path("/proc/locks").read_text()
        assert [holder.pid for holder in holders(pty.node).found] == [child.pid]


def test_one_look_into_proc_serves_all_who_wait_for_it(pty, monkeypatch):
    """64 printers ask each second: who asks during a look gets the next, together with all others."""
    looks, inside, go = [], threading.Event(), threading.Event()
    real = port._processes

    def slow(proc):
        looks.append(proc)
        inside.set()
        assert go.wait(5)
        return real(proc)

    monkeypatch.setattr(port, "_processes", slow)
    threads = [threading.Thread(target=holders, args=(pty.node,)) for _ in range(5)]
    threads[0].start()
    assert inside.wait(5)
    for thread in threads[1:]:
        thread.start()
    assert_eventually(lambda: len(port._walks._changed._waiters) == 4, 5, "all others wait")
    go.set()
    for thread in threads:
        thread.join(5)
    assert len(looks) == 2, "the first one's own, and one for those who came later"
    holders(pty.node, age=60.0)
    assert len(looks) == 2, "an old one will do where that is said"
    holders(pty.node)
    assert len(looks) == 3, "and else never"


def test_a_look_into_proc_that_fails_fails_for_one(pty, monkeypatch):
    """The next one looks for itself, and nobody waits for ever."""
    monkeypatch.setattr(port, "_processes", lambda _proc: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        holders(pty.node)
    monkeypatch.undo()
    assert holders(pty.node).found is not None


def test_a_node_that_is_gone_has_no_holders_to_tell_of(tmp_path):
    """Asking for the holders of what is not there is an error, not an empty answer."""
    with pytest.raises(FileNotFoundError):
        holders(tmp_path / "gone")


# -- reading -------------------------------------------------------------------------------------------------


def test_reading_never_waits_and_never_reads_too_much(pty, opened):
    """Nothing there is an empty answer; a limit is a limit; the rest comes next."""
    assert opened.read() == b""
    os.write(pty.master, b"x" * 100)
    assert opened.read(64) == b"x" * 64
    assert opened.read(64) == b"x" * 36
    assert opened.read() == b""


def test_partial_lines_become_whole_ones(pty, opened):
    """A line that arrives byte by byte is one sign."""
    reader, signs = Reader(), []
    for byte in b"start\nok T:20":
        os.write(pty.master, bytes([byte]))
        signs += reader.feed(opened.read())
    assert signs == [Sign.BANNER]
    os.write(pty.master, b"\n")
    assert reader.feed(opened.read()) == [Sign.ANSWER]


def test_garbage_comes_through_as_it_is(pty, opened):
    """All 256 bytes arrive unchanged, ^C, ^S and ^D among them; noise is noise to the reader."""
    os.write(pty.master, bytes(range(256)))
    assert opened.read() == bytes(range(256))
    os.write(pty.master, b"\xf8\x80\xfe" * 40)
    assert set(Reader().feed(opened.read())) == {Sign.GARBAGE}


def test_a_flood_is_kept_up_with_in_bounded_portions(pty, opened):
    """A megabyte in one go arrives whole, in portions of the limit at most, and memory does not grow."""
    flood = b"echo:busy: processing\n" * 48000
    os.set_blocking(pty.master, True)
    writer = threading.Thread(target=_write_all, args=(pty.master, flood))
    writer.start()
    reader, size, signs = Reader(), 0, 0
    end = time.monotonic() + 8
    while size < len(flood) and time.monotonic() < end:
        data = opened.read(4096)
        assert len(data) <= 4096
        size += len(data)
        signs += len(reader.feed(data))
    writer.join()
    assert (size, signs) == (len(flood), 48000)


def _write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]


@pytest.mark.parametrize(
    "use",
    [Port.read, Port.poke, lambda ours: ours.set_baudrate(57600), lambda ours: ours.set_baudrate(250000)],
)
def test_hang_up_in_the_middle(pty, opened, use):
    """Whatever is done to a port whose device is gone says so; it can still be closed, and is."""
    os.write(pty.master, b"ok T:2")
    pty.hang_up()
    with pytest.raises(HangUp, match=pty.node):
        use(opened)
    fd = opened.fileno()
    opened.close()
    assert _read_error(fd) == errno.EBADF


@pytest.mark.parametrize(("code", "expected"), [(errno.EAGAIN, b""), (errno.EIO, HangUp)])
def test_what_poll_promised_is_gone_when_it_is_read(pty, opened, monkeypatch, code, expected):
    """Somebody else has read it: nothing.  The device went away just then: a hang-up."""
    os.write(pty.master, b"ok\n")

    def failing_read(_fd, _size):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", failing_read)
        if expected is HangUp:
            with pytest.raises(HangUp):
                opened.read()
        else:
            assert opened.read() == expected


# -- poking --------------------------------------------------------------------------------------------------


def test_a_poke_is_these_bytes_and_no_other(pty, opened):
    """A newline and M115, as often as asked."""
    assert opened.poke()
    assert opened.poke()
    assert pty.collect(12) == b"\nM115\n" * 2


def test_a_full_buffer_is_never_waited_for_and_gets_no_part_of_a_poke(pty, opened):
    """With no room at all a poke is given up at once; with room again it goes out whole."""
    filled = _fill(opened.fileno())
    began = time.monotonic()
    assert not opened.poke()
    assert time.monotonic() - began < 0.5
    assert pty.collect(filled) == b"x" * filled
    assert until(opened.poke)
    assert pty.collect(len(POKE)) == POKE


def _fill(fd):
    """Write until nothing more goes in, also not after the kernel has moved it on, which it does later."""
    size = vain = 0
    while vain < 20:
        try:
            size += os.write(fd, b"x" * 1000 if not vain else b"x")
            vain = 0
        except BlockingIOError:
            vain += 1
            threading.Event().wait(0.002)
    return size


def test_nothing_is_added_to_what_waits_to_be_sent(pty, opened, monkeypatch):
    """While the last poke is still unsent there is no next one."""
    with monkeypatch.context() as patch:
        patch.setattr(Port, "_queued", lambda _self: 1)
        assert not opened.poke()
    assert pty.received() == b""


def test_a_poke_cut_short_is_ended_before_the_next(pty, opened, monkeypatch):
    """Where a part did go out ("M1" would be a stop), its rest follows, and nothing else in between."""
    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real_write(fd, data[:3]))
        assert not opened.poke()
    assert opened.poke()
    assert opened.poke()
    assert pty.collect(12) == b"\nM115\n\nM115\n"


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EINVAL])
def test_a_tty_that_does_not_count_its_output_is_poked(pty, opened, monkeypatch, code):
    """Emulated ttys (umockdev's) have no TIOCOUTQ; a write to them still never waits."""
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", _raises(code))
        assert opened.poke()
    assert pty.collect(6) == POKE


def test_a_count_of_the_output_that_fails_otherwise_is_a_hang_up(opened, monkeypatch):
    """EIO is what a tty says whose device is gone."""
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", _raises(errno.EIO))
        with pytest.raises(HangUp):
            opened.poke()


def _raises(code):
    def call(*_):
        raise OSError(code, os.strerror(code))

    return call


# -- the baudrate --------------------------------------------------------------------------------------------


def test_the_baudrate_is_really_set(pty):
    """Also one that termios has no name for; and back."""
    ours = Port(pty.node, 250000)
    assert pty.baudrate() == 250000
    for rate in (115200, 250000, 57600):
        ours.set_baudrate(rate)
        assert pty.baudrate() == rate
    ours.close()


def test_1200_baud_is_refused(pty, opens, opened):
    """It makes boards wait for new firmware: never at the open, and never later."""
    opens()
    with pytest.raises(ValueError, match="bootloader"):
        Port(pty.node, 1200)
    assert opens() == 0
    with pytest.raises(ValueError, match="bootloader"):
        opened.set_baudrate(1200)
    assert pty.baudrate() == 115200


def test_prusas_57600_is_on_the_list_of_the_shunned():
    """The rate that turns Marlin off on Buddy boards, by Prusa's vendor number."""
    assert port.SHUNNED["2c99"] == {57600}


# -- closing -------------------------------------------------------------------------------------------------


def test_unread_input_does_not_hold_up_a_close(pty, opened):
    """A pty full of what nobody reads, both ways, is closed at once."""
    _fill(opened.fileno())
    os.write(pty.master, b"x" * 1000)
    began = time.monotonic()
    opened.close()
    assert time.monotonic() - began < 0.5


def test_our_own_unsent_bytes_are_thrown_away_at_the_close(pty, opened, monkeypatch):
    """A dead printer's port is not kept waiting for bytes that nobody will take."""
    filled = _fill(opened.fileno())
    queue = iter([filled, 0])
    monkeypatch.setattr(Port, "_queued", lambda _self: next(queue))  # a pty always says 0
    opened.close()
    assert list(queue) == []
    assert len(_until_closed(pty)) < filled


def test_octoprints_unsent_bytes_survive_our_close(pty, opened, monkeypatch):
    """After the handover the output is OctoPrint's: its hello is not flushed away with our port."""
    with elsewhere(OPEN + "os.write(fd, b'x' * 10000)", pty.node):
        monkeypatch.setattr(Port, "_queued", lambda _self: 10000)
        opened.close()
        assert until(lambda: not _descriptors_of_ours(pty.node))
        assert len(pty.collect(10000)) == 10000


@pytest.mark.parametrize("baudrate", [115200, 250000])
def test_a_close_can_let_dtr_fall(pty, baudrate):
    """For an OctoPrint that waits for `start`: HUPCL is back, and every other setting is as it was."""
    ours = Port(pty.node, baudrate)
    before = array.array("I", pty.settings())
    assert not before[CFLAG] & termios.HUPCL
    ours.close(drop_dtr=True)
    after = array.array("I", pty.settings())
    assert after[CFLAG] == before[CFLAG] | termios.HUPCL
    assert pty.baudrate() == baudrate
    after[CFLAG] = before[CFLAG]
    assert after == before


def test_a_close_that_lets_dtr_fall_does_not_under_another_process(pty, opened):
    """Whoever has the port too keeps what protects a print from SD: HUPCL stays cleared."""
    with elsewhere(OPEN, pty.node):
        opened.close(drop_dtr=True)
        assert not pty.flags()[CFLAG] & termios.HUPCL


def test_a_close_that_lets_dtr_fall_closes_a_dead_port(pty, opened):
    """A device that is gone has no DTR: its port is closed all the same."""
    fd = opened.fileno()
    pty.hang_up()
    opened.close(drop_dtr=True)
    assert _read_error(fd) == errno.EBADF


def _until_closed(pty):
    """All that is left to read, to the end that a closed node makes (EIO)."""
    data = bytearray()
    assert until(lambda: _read_error(pty.master, data) == errno.EIO)
    return data


def _descriptors_of_ours(node):
    number = os.stat(node).st_rdev  # noqa: PTH116
    return [fd for fd in port.Path("/proc/self/fd").iterdir() if fd.exists() and fd.stat().st_rdev == number]


def test_a_close_that_the_kernel_holds_up_holds_up_nobody(opened, monkeypatch):
    """The last close of a line that takes nothing lasts up to 30 s: not ours to wait for."""
    let_go, closed = threading.Event(), threading.Event()
    real_close = opened._serial.close

    def slow_close():
        let_go.wait(5)
        real_close()
        closed.set()

    monkeypatch.setattr(Port, "_queued", lambda _self: 6)
    monkeypatch.setattr(opened._serial, "close", slow_close)
    opened.close()
    opened.close()  # the second does not close again what is being closed
    with pytest.raises(PortError, match="its last close still waits") as caught:
        Port(opened.path, 115200)  # the kernel would keep us waiting for it
    assert caught.value.refusal is Refusal.BUSY
    assert not closed.is_set()
    let_go.set()
    assert closed.wait(5)


# -- the guard -----------------------------------------------------------------------------------------------


def test_the_guard_clears_hupcl_and_nothing_else(pty):
    """DTR will stay up when OctoPrint closes; its baudrate, also 250000, and all other settings stay."""
    ours = Port(pty.node, 250000)
    ours.close()
    pty.set_hupcl(on=True)
    # setting HUPCL through tcsetattr has lost the 250000: set it again
    settings = array.array("I", pty.settings())
    settings[CFLAG] = settings[CFLAG] & ~0o10017 | 0o10000
    settings[-2:] = array.array("I", [250000, 250000])
    fcntl.ioctl(pty.master, TCSETS2, settings.tobytes())
    os.write(pty.master, b"ok T:20\n")
    with elsewhere(OPEN, pty.node):
        before = array.array("I", pty.settings())
        assert before[CFLAG] & termios.HUPCL
        assert guard(pty.node)
        after = array.array("I", pty.settings())
        assert after[CFLAG] == before[CFLAG] & ~termios.HUPCL
        assert pty.baudrate() == 250000
        after[CFLAG] = before[CFLAG]
        assert after == before
        assert pty.received() == b""
    ours = Port(pty.node, 115200)
    assert until(ours.read) == b"ok T:20\n"  # not a byte was read
    ours.close()


def test_the_guard_never_opens_a_free_port(pty, opens):
    """Without a holder an open would be the edge that the guard is there to avoid."""
    pty.set_hupcl(on=True)
    assert not guard(pty.node)
    assert opens() == 0
    assert pty.flags()[CFLAG] & termios.HUPCL


def test_the_guard_is_not_sure_of_a_flasher_it_cannot_look_into(pty, opens, monkeypatch):
    """A process that may have the port may also not have it: no open."""
    unsure = port.Holders((Holder(1, "avrdude", sure=False),))
    monkeypatch.setattr(port, "holders", lambda _path: unsure)
    assert not guard(pty.node)
    assert opens() == 0


def test_the_guard_survives_what_it_cannot_do(tmp_path, pty):
    """A missing node, one that is no terminal, and one that does not open: DTR may fall, that is all."""
    assert not guard(str(tmp_path / "gone"))
    with elsewhere(OPEN, "/dev/null"):
        assert not guard("/dev/null")
    os.chmod(pty.node, 0o666)  # noqa: PTH101 - a node, not a path of ours
    with elsewhere(LOCK + f"fcntl.ioctl(fd, {TIOCEXCL})", pty.node):
        assert run(AS_NOBODY + "print(port.guard(sys.argv[1]))", pty.node) == "False"


def test_a_stopped_process_still_holds_its_port(pty):
    """A program that hangs has the port as much as one that runs."""
    with elsewhere(OPEN, pty.node) as child:
        child.send_signal(signal.SIGSTOP)
        assert [holder.pid for holder in holders(pty.node).found] == [child.pid]
