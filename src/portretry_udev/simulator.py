"""A printer on a pty: the board's plug, its line and its node, for the demo and the tests.

Knows ptys, the node (a symlink to the pty), who opens it and at which baudrate.  Must not know what the
firmware says (`fake_marlin`), nor anything of OctoPrint or of this package's watching.

What a pty cannot show: it has no modem lines, so there is no DTR.  `reset_on_open` stands in for the edge:
the first open of a closed port resets the board, unless HUPCL was off at the last close, which is when a
real driver leaves DTR up.  Only what is said while somebody has the port open arrives, as on a real line.
"""

import contextlib
import fcntl
import os
import select
import struct
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from portretry_udev import inotify
from portretry_udev.fake_marlin import BANNER, HEATING_FAILED, Marlin

__all__ = ["BANNER", "HEATING_FAILED", "Printer", "Stats"]

# <asm-generic/ioctls.h> (x86, ARM, RISC-V): these tell any baudrate, also 250000, which termios has no name
# for, and a pty's master passes them on to its slave.
_TCGETS2: Final = 0x802C542A
_TCSETSF2: Final = 0x402C542D
_TERMIOS2: Final = struct.Struct("4I20B2I")  # the last field is the output's baudrate
_BAUDRATE_TOLERANCE: Final = 0.03  # of a UART: divisors round, and that still works
_FIFO: Final = 128  # bytes a board keeps for a host that has not opened the port yet
_KEPT: Final = 65536  # bytes of what was received that `received()` remembers


@dataclass(frozen=True)
class Stats:
    """What has happened to the printer so far, and how it is now."""

    opens: int
    """Opens of the node by anybody, since the printer was made."""
    closes: int
    holders: int
    """Open descriptions of the node now."""
    bytes_in: int
    """Bytes from the host, heard or not."""
    bytes_out: int
    """Bytes that went to a host; what nobody listened to is not counted."""
    commands: Counter[str]
    """Commands that the firmware heard, by their first word."""
    resets: int
    """Boots without a loss of power: by an open (`reset_on_open`) or by `reset()`."""
    sd_position: int
    """Bytes of the SD card's file that are printed; 0 again after a boot."""
    state: str
    """`off`, `booting`, `ready` or `dead`."""
    baud: int | None
    """The baudrate that the host has set; None while unplugged."""


class Printer:
    """A simulated printer; works from `start()` or `with` until `close()`.

    Args:
        link: the symlink that is the printer's node; its folder must be there.
        boot_delay: seconds from power or reset until the firmware can answer.
        banner: what it says then; None for nothing.
        baudrate: the only baudrate it understands (within 3 %); None for any.
        powered: has been running for long.
        plugged: its node is there from the start.
        autoreport: seconds between temperature lines; None for none.
        reset_on_open: an open resets the board, as DTR does on an Arduino (see the module's text).
        fifo: the first 128 bytes said to nobody are kept for the next open, as USB boards do.
        cooked: a new node echoes and waits for line ends until a host sets it raw, as the kernel makes
            it; otherwise it is raw from the start.
        busy_interval: seconds between `echo:busy:` lines.

    All methods may be called from any thread; those that do something to the printer raise RuntimeError
    before `start()` and after `close()`.
    """

    def __init__(  # noqa: PLR0913 - each is a property of boards that a test or the demo varies
        self,
        *,
        link: Path,
        boot_delay: float = 1.0,
        banner: bytes | None = BANNER,
        baudrate: int | None = None,
        powered: bool = True,
        plugged: bool = True,
        autoreport: float | None = None,
        reset_on_open: bool = False,
        fifo: bool = False,
        cooked: bool = False,
        busy_interval: float = 2.0,
    ) -> None:
        self.link = link
        self._firmware = Marlin(
            powered=powered,
            boot_delay=boot_delay,
            banner=banner,
            autoreport=autoreport,
            busy_interval=busy_interval,
        )
        self._baudrate, self._plug_at_start = baudrate, plugged
        self._reset_on_open, self._use_fifo, self._cooked = reset_on_open, fifo, cooked
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._master = -1
        self._node = ""
        self._watch = -1
        self._stale = self._dtr_stays = False
        self._fifo = bytearray()
        self._received = bytearray()
        self._opens = self._closes = self._holders = self._resets = 0
        self._bytes_in = self._bytes_out = 0

    # -- life -------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to work; the node is there on return, if the printer is plugged.

        Raises:
            OSError: no pty, no inotify watch, or the folder of the link cannot be written.
        """
        with self._changed:
            if self._thread is not None:
                return self
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._inotify = inotify.Inotify()
            self._thread = threading.Thread(target=self._run, name=f"printer {self.link.name}", daemon=True)
            self._closing = False
            self._thread.start()
        if self._plug_at_start:
            try:
                self.plug()
            except OSError:
                self.close()
                raise
        return self

    def close(self) -> None:
        """Unplug and stop; a second call does nothing."""
        with self._changed:
            thread = self._thread
            if thread is None:
                return
            self.unplug()
            self._thread, self._closing = None, True
        thread.join()
        self._inotify.close()
        os.close(self._wake)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what a person or the mains does to the printer ---------------------------------------------------

    def plug(self) -> None:
        """Put its cable in: a new node, reached by the same link.  Power is another matter."""
        with self._working():
            if self._master >= 0:
                return
            self._master, slave = os.openpty()
            try:
                self._node = os.ttyname(slave)
                _make_new(slave, raw=not self._cooked)
            finally:
                os.close(slave)  # nobody but the host may hold it, and from here on POLLHUP says "closed"
            os.set_blocking(self._master, False)
            self._holders, self._stale, self._dtr_stays = 0, False, False
            self._watch = self._inotify.add(
                self._node, inotify.OPEN | inotify.CLOSE_WRITE | inotify.CLOSE_NOWRITE
            )
            new = self.link.with_name(f".{self.link.name}.{os.getpid()}")
            new.unlink(missing_ok=True)
            new.symlink_to(self._node)
            new.replace(self.link)

    def unplug(self) -> None:
        """Pull its cable: whoever has it open sees a hang-up, then the node is gone, as from the kernel."""
        with self._working():
            if self._master < 0:
                return
            os.close(self._master)
            self._master, self._holders = -1, 0
            self._fifo.clear()
            if self.link.is_symlink() and self.link.readlink() == Path(self._node):
                self.link.unlink()

    @property
    def plugged(self) -> bool:
        """Whether its node is there."""
        with self._changed:
            return self._master >= 0

    def power_on(self) -> None:
        """Switch it on: it boots, unless it is on already."""
        with self._working():
            self._firmware.power_on(time.monotonic())

    def power_off(self) -> None:
        """Switch it off in place: the node stays, and swallows what it is sent."""
        with self._working():
            self._firmware.power_off()

    def reset(self) -> None:
        """Press the board's reset button."""
        with self._working():
            self._reset()

    def say(self, data: bytes) -> None:
        """Say something that nobody asked for, powered or not."""
        with self._working():
            self._emit(data)

    def kill(self, text: str = HEATING_FAILED) -> None:
        """A firmware fault: two `Error:` lines, then dead until power or reset."""
        with self._working():
            self._emit(self._firmware.kill(text))

    def busy(self, seconds: float) -> None:
        """Say `echo:busy: processing` now and then, and answer only afterwards."""
        with self._working():
            self._firmware.busy(seconds, time.monotonic())

    def start_sd_print(self) -> None:
        """Start a print from its SD card at its own display."""
        with self._working():
            self._emit(self._firmware.start_sd_print(time.monotonic()))

    @property
    def hung(self) -> bool:
        """Swallows all it is sent without a word, though it has power; may be set."""
        with self._changed:
            return self._firmware.hung

    @hung.setter
    def hung(self, value: bool) -> None:
        with self._working():
            self._firmware.hung = value

    @property
    def deaf_to(self) -> frozenset[str]:
        """Commands that it swallows without a word or a deed, while it answers all others; may be set.

        Without M110, OctoPrint's hello, it answers us and not OctoPrint; without M112 it outlives a fault.
        """
        with self._changed:
            return self._firmware.deaf_to

    @deaf_to.setter
    def deaf_to(self, commands: frozenset[str]) -> None:
        with self._working():
            self._firmware.deaf_to = commands

    # -- what can be seen ---------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """What has happened up to now."""
        with self._changed:
            if self._thread is not None and self._look():
                self._wake_thread()  # it would sleep on: what its poll was to tell it is taken
            return Stats(
                opens=self._opens,
                closes=self._closes,
                holders=self._holders,
                bytes_in=self._bytes_in,
                bytes_out=self._bytes_out,
                commands=Counter(self._firmware.commands),
                resets=self._resets,
                sd_position=self._firmware.sd.position(time.monotonic()),
                state=str(self._firmware.power),
                baud=self._host_baudrate() if self._master >= 0 else None,
            )

    def received(self) -> bytes:
        """The last 64 KiB that hosts have sent, heard by the firmware or not."""
        with self._changed:
            return bytes(self._received)

    def wait_for(self, predicate: Callable[[Stats], bool], timeout: float) -> bool:
        """Wait until the predicate is true of the stats; False after `timeout` seconds."""
        end = time.monotonic() + timeout
        with self._changed:
            while not predicate(self.stats()):
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.05))  # the SD counter moves without an event
        return True

    # -- inside: every method below is called with the lock held -------------------------------------------

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the lock for a change to what is so far, and let the thread and the waiters see it.

        Raises:
            RuntimeError: not started, or closed.
        """
        with self._changed:
            if self._thread is None:
                raise RuntimeError(f"the simulated printer {self.link} is not started")
            self._look()
            yield
            self._wake_thread()

    def _wake_thread(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                self._look()
                self._changed.notify_all()
                poll = select.poll()
                poll.register(self._wake, select.POLLIN)
                poll.register(self._inotify.fileno(), select.POLLIN)
                # A master whose slave is closed says POLLHUP for ever: then inotify tells of the next open.
                if self._master >= 0 and self._is_open():
                    poll.register(self._master, select.POLLIN)
                deadline = self._firmware.deadline()
            wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000 + 1
            poll.poll(wait)

    def _look(self) -> bool:
        """Take in what the host has done, and let the firmware react and speak.

        Returns:
            Whether the host had done anything.
        """
        data, closed = b"", False
        if self._master >= 0:
            closed, data = not self._is_open(), self._read()
        # Read after the bytes: whoever sent them has opened the port before.
        masks = [self._count(event) for event in self._inotify.read()]
        if self._master < 0:
            return bool(masks)
        if closed and not any(mask & inotify.OPEN for mask in masks):
            # The kernel merges equal neighbours in the queue, so a count may be off: set it right.
            self._holders = 0
            if self._stale:
                self._forget_unread()
        now = time.monotonic()
        self._bytes_in += len(data)
        self._received += data
        del self._received[:-_KEPT]
        if data and self._understands():
            self._emit(self._firmware.hear(data, now))
        self._emit(self._firmware.tick(now))
        return bool(masks or data)

    def _count(self, event: inotify.Event) -> int:
        """Count one open or close; returns its mask if it is about the present node."""
        present = event.wd == self._watch and self._master >= 0
        if event.mask & inotify.OPEN:
            self._opens += 1
            if present:
                self._holders += 1
                if self._holders == 1:
                    self._first_open()
        elif event.mask & (inotify.CLOSE_WRITE | inotify.CLOSE_NOWRITE):
            self._closes += 1
            if present and self._holders > 0:
                self._holders -= 1
                if self._holders == 0:
                    self._last_close()
        return event.mask if present else 0

    def _first_open(self) -> None:
        self._stale = False  # too late to forget: setting termios now would race with the host's own
        if self._reset_on_open and not self._dtr_stays:
            self._reset()
        kept, self._fifo = self._fifo, bytearray()
        self._emit(bytes(kept))

    def _last_close(self) -> None:
        self._dtr_stays = not termios.tcgetattr(self._master)[2] & termios.HUPCL
        self._stale = True

    def _forget_unread(self) -> None:
        """Drop what the last host did not read: a real port does so at the last close, a pty does not.

        tcflush on a master does not reach what the slave's side has already taken in; setting the slave's
        own settings once more "after a flush" does.
        """
        termios.tcflush(self._master, termios.TCOFLUSH)
        fcntl.ioctl(self._master, _TCSETSF2, self._termios2())
        self._stale = False

    def _reset(self) -> None:
        self._resets += self._firmware.reset(time.monotonic())

    def _is_open(self) -> bool:
        poll = select.poll()
        poll.register(self._master, 0)
        return not any(events & select.POLLHUP for _, events in poll.poll(0))

    def _read(self) -> bytes:
        data = b""
        while True:
            try:
                data += os.read(self._master, 65536)
            except OSError:  # EAGAIN: no more.  EIO: no more, and the port is closed
                return data

    def _emit(self, data: bytes) -> None:
        """Send to whoever has the port open; dropped (or kept, `fifo`) when nobody has."""
        if not data or self._master < 0:
            return
        if not self._is_open():
            if self._use_fifo:
                self._fifo += data[: _FIFO - len(self._fifo)]
            return
        if not self._understands():
            data = bytes(byte ^ 0x5A | 0x80 for byte in data)
        while data:
            try:
                sent = os.write(self._master, data)
            except BlockingIOError:
                return  # the host does not read; a UART does not wait for it
            self._bytes_out += sent
            data = data[sent:]

    def _understands(self) -> bool:
        """Whether the host's baudrate is the board's."""
        if self._baudrate is None:
            return True
        return abs(self._host_baudrate() - self._baudrate) <= self._baudrate * _BAUDRATE_TOLERANCE

    def _host_baudrate(self) -> int:
        return int(_TERMIOS2.unpack(self._termios2())[-1])

    def _termios2(self) -> bytes:
        return fcntl.ioctl(self._master, _TCGETS2, bytes(_TERMIOS2.size))


def _make_new(slave: int, *, raw: bool) -> None:
    """Give a pty the settings of a new serial port: 9600 baud, and HUPCL, which ptys lack."""
    iflag, oflag, cflag, lflag, _, _, chars = termios.tcgetattr(slave)
    cflag |= termios.HUPCL | termios.CLOCAL | termios.CREAD
    if raw:
        iflag = oflag = lflag = 0
    termios.tcsetattr(
        slave, termios.TCSANOW, [iflag, oflag, cflag, lflag, termios.B9600, termios.B9600, chars]
    )
