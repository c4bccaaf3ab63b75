"""One careful look at one port: what answers there.

Knows the port, the firmware's signs, and the kernel's list of what is a serial port at all.  Must not know
OctoPrint: who asks for a probe sees to it that it is not connected.  The port itself refuses while any other
process holds it.
"""

import contextlib
import os
import select
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from portretry_udev import events, inotify, rules
from portretry_udev.firmware import Firmware, Reader, Sign
from portretry_udev.port import Port, PortError

POKES = 4  # at each rate; a Marlin that is awake answers within milliseconds
LISTEN = 14.0  # seconds at a single rate: an MK3 that the open has reset needs up to 12 s

# The last column of /proc/tty/drivers (show_tty_driver in the kernel's fs/proc/proc_tty.c).  The rest are
# consoles, /dev/tty, and the far ends of ptys.
_SERIAL_TYPES = frozenset({"serial", "pty:slave"})


@dataclass(frozen=True, slots=True)
class Found:
    """What a probe found.

    Attributes:
        baudrate: in baud, at which there was life; None if there was none.
        seconds: from the open to the first sign of life.
        firmware: what it says of itself, if it answered M115.
        reset: opening the port made the board boot (its banner was heard).
        garbage: the rates (baud) at which there was noise.
        fault: an error was heard.
        busy: it is at work.
        answered: seconds from the open until it had said who it is; None if it did not.
    """

    baudrate: int | None = None
    seconds: float | None = None
    firmware: Firmware | None = None
    reset: bool = False
    garbage: tuple[int, ...] = ()
    fault: bool = False
    busy: bool = False
    answered: float | None = field(default=None, compare=False)


def is_serial(number: int, root: Path = Path("/")) -> bool:
    """Whether a character device is a serial port or a pty: opening others can do anything.

    Opening a watchdog, for one, starts it, and the machine reboots a minute later.  A console is a tty too,
    but no port.

    Args:
        number: major and minor (st_rdev).
        root: where /proc and /sys are, for tests.
    """
    major, minor = os.major(number), os.minor(number)
    with contextlib.suppress(OSError):
        for line in (root / "proc/tty/drivers").read_text(encoding="utf-8", errors="replace").splitlines():
            # "usbserial            /dev/ttyUSB   188 0-511 serial"; a lone minor has no dash
            words = line.split()
            if len(words) < 5 or words[-3] != str(major):  # noqa: PLR2004 - the columns
                continue
            first, _, last = words[-2].partition("-")
            if int(first) <= minor <= int(last or first):
                return words[-1] in _SERIAL_TYPES
    # A kernel that does not list its drivers: a tty that belongs to hardware is no console.
    device = root / f"sys/dev/char/{major}:{minor}"
    return (device / "subsystem").resolve().name == "tty" and (device / "device").exists()


def probe(
    path: str, baudrates: Sequence[int], *, tried: Callable[[int], None] = lambda _baudrate: None
) -> Found:
    r"""Open the port once, listen, then ask ``\nM115\n`` about once a second, at one rate after the other.

    Args:
        path: the node.
        baudrates: baud, at least one, in the order to try them.
        tried: called before each rate, for whoever shows progress.

    Raises:
        PortError: it was not opened, or another process opened it meanwhile.
        HangUp: it went away meanwhile.
    """
    refuse_stranger(path)
    with inotify.Inotify() as others:
        with contextlib.suppress(OSError):  # a missing node is the port's to tell, a full system no reason
            others.add(path, inotify.OPEN)
        return _probe(path, baudrates, tried, others)


def refuse_stranger(path: str) -> None:
    """See that a path leads to a serial port, or to nothing.

    Raises:
        PortError: it leads to something else.
    """
    try:
        found = Path(path).stat()
    except OSError:
        return  # the port says why
    if not stat.S_ISCHR(found.st_mode) or not is_serial(found.st_rdev):
        raise PortError(events.Refusal.UNKNOWN, f"{path} is not a serial port: it is never opened")


def _probe(
    path: str, baudrates: Sequence[int], tried: Callable[[int], None], others: inotify.Inotify
) -> Found:
    began = time.monotonic()
    port = Port(path, baudrates[0], forget=others.read)
    try:
        look = _Look(port, began, others)
        for index, baudrate in enumerate(baudrates):
            tried(baudrate)
            if index:
                port.set_baudrate(baudrate)
            # Bootloaders listen for about 2 s after the edge of the open: not a byte until then.
            first = rules.QUIET_START if index == 0 else 0.0
            patience = LISTEN if len(baudrates) == 1 else first + POKES * rules.POKE_PERIOD
            found = look.at(baudrate, first, patience)
            if found.baudrate is not None:
                return found
        return look.nothing()
    finally:
        port.close()


class _Look:
    """The listening of one probe, over several rates."""

    def __init__(self, port: Port, began: float, others: inotify.Inotify) -> None:
        self._port = port
        self._began = began
        self._others = others
        self._poll = select.poll()
        self._poll.register(port.fileno(), select.POLLIN)
        self._poll.register(others.fileno(), select.POLLIN)
        self._garbage: list[int] = []
        self._fault = False
        self._reset = False

    def at(self, baudrate: int, first: float, patience: float) -> Found:
        """Listen at one rate until its firmware has said who it is, or ``patience`` seconds are over."""
        reader = Reader()
        start = time.monotonic()
        next_poke, end = start + first, start + patience
        alive_at: float | None = None
        work = Sign.NOT_PRINTING  # or BUSY, or PRINTING
        while (now := time.monotonic()) < end and reader.firmware is None:
            if now >= next_poke:
                if not work.hands_off:
                    self._port.poke()
                next_poke = now + rules.POKE_PERIOD
            self._poll.poll(max(0.0, min(next_poke, end) - now) * 1000)
            self._make_way()
            for sign in reader.feed(self._port.read()):
                self._note(sign, baudrate)
                work = _work(work, sign)
                if sign.alive and alive_at is None:
                    alive_at = time.monotonic()
                    # It lives: the answer to one of the next pokes tells who it is.
                    end = max(next_poke, alive_at) + POKES * rules.POKE_PERIOD
        if alive_at is None:
            return self.nothing()
        answered = time.monotonic() - self._began if reader.firmware is not None else None
        return Found(
            baudrate,
            alive_at - self._began,
            reader.firmware,
            self._reset,
            tuple(self._garbage),
            self._fault,
            work.hands_off,
            answered,
        )

    def nothing(self) -> Found:
        """No rate had life."""
        return Found(garbage=tuple(self._garbage), fault=self._fault)

    def _make_way(self) -> None:
        if any(note.mask & inotify.OPEN for note in self._others.read()):
            raise PortError(events.Refusal.BUSY, f"{self._port.path}: another process opened it: made way")

    def _note(self, sign: Sign, baudrate: int) -> None:
        self._fault |= sign is Sign.ERROR
        self._reset |= sign is Sign.BANNER
        if sign is Sign.GARBAGE and baudrate not in self._garbage:
            self._garbage.append(baudrate)


def _work(before: Sign, sign: Sign) -> Sign:
    """What it is at, after one more sign: an answer ends being busy, but not a print."""
    if sign.hands_off or sign is Sign.NOT_PRINTING:
        return sign
    if sign is Sign.BANNER or (sign is Sign.ANSWER and before is Sign.BUSY):
        return Sign.NOT_PRINTING
    return before
