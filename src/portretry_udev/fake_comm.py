"""OctoPrint's serial side in small: opens, greets, polls and gives up as the real one does.

Knows the order of OctoPrint's opens, hellos and timeouts, and how each connection ends (1.11.8's
util/comm.py; 2.0 does the same).  Must not know HTTP, nor in which words a version of OctoPrint tells of
its state: that is `fake_octoprint`.
"""

import contextlib
import enum
import re
import termios
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import serial

BAUDRATES: Final = (250000, 230400, 115200, 57600, 38400, 19200, 9600)
"""What OctoPrint offers, in its order."""

DETECTION_BAUDRATES: Final = (115200, 250000, 230400, 57600, 38400, 19200, 9600)
"""What it tries without a configured one, by likelihood."""

TOO_QUIET: Final = "Too many consecutive timeouts, printer still connected and alive?"
NOTHING_FOUND: Final = "No more candidates to test, and no working port/baudrate combination detected."
OPEN_CRASHED: Final = "Connection error, see Terminal tab"

_HELLO: Final = b"N0 M110 N0*125\n"
_DETECTION_ATTEMPTS: Final = 3
_PARITY_PAUSE: Final = 0.015  # seconds between its two opens, by strace
_SLICE: Final = 0.02  # seconds; how soon the thread sees that it is to end
_LINE_LIMIT: Final = 4096  # bytes
_KILL = re.compile(  # regex_marlinKillError: the next line belongs to it
    r"Heating failed|Thermal Runaway|Thermal Malfunction|MAXTEMP triggered|MINTEMP triggered"
    r"|Invalid extruder number|Watchdog barked|KILL caused"
)
_HARMLESS_ERRORS: Final = (
    "line number",
    "linenumber",
    "checksum",
    "format error",
    "expected line",
    "volume.init",
    "openroot",
    "workdir",
    "error writing to file",
    "cannot open",
    "open failed",
    "cannot enter",
    "unknown command",
)


class Phase(enum.Enum):
    """Where the one connection is."""

    NEVER = enum.auto()
    OPENING = enum.auto()
    """Opening, or the trap: the open failed, and nothing but a disconnect gets it out of here."""
    DETECTING = enum.auto()
    CONNECTING = enum.auto()
    OPERATIONAL = enum.auto()
    PRINTING_SD = enum.auto()
    CLOSED = enum.auto()
    """Closed by command, or given up on a silent port: the two look alike."""
    FAILED = enum.auto()
    """Closed with an error."""


OVER: Final = frozenset({Phase.NEVER, Phase.CLOSED, Phase.FAILED})
"""The phases in which nothing is open and a connect begins anew."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds; the defaults are OctoPrint's own, measured (the facts say which setting each comes from)."""

    hello: float = 30.0
    """Silence after a hello until it is said again; of one that waits for `start`, until it gives up."""
    connect: float = 40.0
    """Silence until a connect at a fixed baudrate is given up."""
    detect: float = 2.0
    """Silence until the next of three attempts at a baudrate, or the next baudrate."""
    poll: float = 5.0
    """Between two M105."""
    silence: float = 90.0
    """Silence while connected until the printer is given up."""


SHORT: Final = Timeouts(hello=1.5, connect=2.0, detect=0.1, poll=0.2, silence=1.0)
"""The same life in seconds, for the demo and the tests."""


class _Ended(Exception):  # noqa: N818 - not an error: how a connection ends, and with which text
    def __init__(self, phase: Phase, error: str | None = None) -> None:
        super().__init__(error or phase.name)
        self.phase, self.error = phase, error


@dataclass(frozen=True)
class Snapshot:
    """The connection at one moment."""

    phase: Phase
    port: str | None
    baudrate: int | None
    error: str | None


class Comm:
    """OctoPrint's one serial connection, with a thread while it lasts.

    Args:
        timeouts: how patient it is.
        told: called at each change, with the lock held; must be quick and must not call back.
    """

    def __init__(self, timeouts: Timeouts, told: Callable[[Snapshot], None] = lambda _: None) -> None:
        self._timeouts, self._told = timeouts, told
        self._lock = threading.Lock()
        self._now = Snapshot(Phase.NEVER, None, None, None)
        self._life: _Connection | None = None

    def snapshot(self) -> Snapshot:
        """The connection now."""
        with self._lock:
            return self._now

    def connect(self, ports: Sequence[str], baudrate: int | None, *, wait_for_start: bool = False) -> None:
        """Begin to connect and return at once; does nothing while a connection is there, stuck ones included.

        Args:
            ports: one port, or several to try one after the other.
            baudrate: None (or 0) to try OctoPrint's baudrates one after the other.
            wait_for_start: say no hello before the board has said `start` (serial.waitForStartOnConnect);
                with a fixed port and baudrate only, as there.
        """
        with self._lock:
            if self._now.phase not in OVER:
                return
            fixed = len(ports) == 1 and bool(baudrate)
            phase = Phase.OPENING if fixed else Phase.DETECTING
            life = _Connection(
                self, self._timeouts, list(ports), baudrate if fixed else None, wait_for_start=wait_for_start
            )
            self._life = life
            self._set(Snapshot(phase, ports[0] if fixed else None, baudrate if fixed else None, None))
            life.start()

    def disconnect(self) -> None:
        """Close by command, and return when the port is closed; leaves an error's text where it is."""
        with self._lock:
            life, self._life = self._life, None
        if life is not None:
            life.stop()
            with self._lock:
                if self._now.phase not in OVER:
                    self._set(Snapshot(Phase.CLOSED, None, None, None))

    def changed(self, life: "_Connection", snapshot: Snapshot) -> None:
        """A connection tells where it is; one that was disconnected meanwhile is not heard."""
        with self._lock:
            if life is self._life:
                self._set(snapshot)

    def _set(self, snapshot: Snapshot) -> None:
        if snapshot != self._now:
            self._now = snapshot
            self._told(snapshot)


class _Connection(threading.Thread):
    """One connection's life, from the first open to its end."""

    def __init__(
        self,
        comm: Comm,
        timeouts: Timeouts,
        ports: list[str],
        baudrate: int | None,
        *,
        wait_for_start: bool,
    ) -> None:
        super().__init__(name="fake OctoPrint's comm", daemon=True)
        self._comm, self._timeouts = comm, timeouts
        self._ports, self._fixed, self._wait_for_start = ports, baudrate, wait_for_start
        self._ending = threading.Event()
        self._serial: serial.Serial | None = None
        self._port, self._baudrate = "", 0
        self._buffer = bytearray()
        self._phase = Phase.OPENING

    def stop(self) -> None:
        """End it; the port is closed on return."""
        self._ending.set()
        self.join()

    def run(self) -> None:
        """Live; every way this ends is one of OctoPrint's."""
        try:
            if self._fixed is None:
                self._detect()
            elif self._open(self._ports[0], self._fixed):
                self._greet()
            else:
                return  # THE TRAP: OctoPrint's monitor just returns here, and its state stays as it is
            self._serve()
        except _Ended as ended:
            self._close()
            self._comm.changed(self, Snapshot(ended.phase, None, None, ended.error))
        finally:
            self._close()

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._comm.changed(self, Snapshot(phase, self._port, self._baudrate, None))

    # -- the port -----------------------------------------------------------------------------------------

    def _open(self, port: str, baudrate: int) -> bool:
        """Open, close and open again, as OctoPrint's parity workaround on Debian does; pyserial as there."""
        self._close()
        self._port, self._baudrate = port, baudrate
        self._buffer.clear()
        device = serial.Serial(baudrate=baudrate, timeout=_SLICE, write_timeout=0, exclusive=True)
        device.port = port
        try:
            device.parity = serial.PARITY_ODD
            device.open()
            device.close()
            device.parity = serial.PARITY_NONE
            self._ending.wait(_PARITY_PAUSE)
            device.open()
        except serial.SerialException:
            device.close()
            return False
        except (OSError, termios.error) as error:  # gone in the middle of it
            device.close()
            raise _Ended(Phase.FAILED, OPEN_CRASHED) from error
        self._serial = device
        return True

    def _close(self) -> None:
        if self._serial is not None:
            self._serial.close()
            self._serial = None

    def _write(self, data: bytes) -> None:
        if self._serial is None:
            return
        try:
            self._serial.write(data)
        except OSError as error:
            raise _Ended(Phase.FAILED, f"SerialException: {error}") from error

    def _line(self, until: float) -> str | None:
        """The next whole line, without its end; None when there is none by the time `until`.

        Raises:
            _Ended: by command, or because the port is gone.
        """
        while True:
            if self._ending.is_set() or self._serial is None:
                raise _Ended(Phase.CLOSED)
            try:
                byte = self._serial.read(1)
            except OSError as error:
                raise _Ended(Phase.FAILED, f"SerialException: {error}") from error
            if byte == b"\n" or len(self._buffer) >= _LINE_LIMIT:
                line = bytes(self._buffer).decode("latin-1").strip()
                self._buffer.clear()
                return line
            self._buffer += byte
            if not byte and time.monotonic() >= until:
                return None

    # -- the talk -----------------------------------------------------------------------------------------

    def _detect(self) -> None:
        """Three attempts at each baudrate of each port until one answers."""
        for port in self._ports:
            for baudrate in DETECTION_BAUDRATES:
                if not self._open(port, baudrate):
                    break
                for _attempt in range(_DETECTION_ATTEMPTS):
                    self._write(b"\n" + _HELLO)
                    until = time.monotonic() + self._timeouts.detect
                    while (line := self._line(until)) is not None:
                        if line.startswith("ok") or "start" in line:
                            return
                        if time.monotonic() >= until:
                            break
        raise _Ended(Phase.FAILED, NOTHING_FOUND)

    def _greet(self) -> None:
        """Say hello until the firmware answers; given up without a word about an error.

        One that waits for `start` says none of its own accord, so it gives up when its first silence ends.
        """
        self._enter(Phase.CONNECTING)
        hellos = 0
        if not self._wait_for_start:
            self._write(_HELLO)
            hellos = 2  # OctoPrint's second one waits in its queue for the first one's answer
        start_seen = False
        patience = self._timeouts.hello
        while True:
            line = self._line(time.monotonic() + patience)
            if line is None:
                if self._wait_for_start or hellos >= 3:  # noqa: PLR2004 - comm.py: `self._hello_sent < 3`
                    raise _Ended(Phase.CLOSED)
                self._write(_HELLO)
                hellos += 1
                patience = self._timeouts.connect - self._timeouts.hello
            elif "start" in line and not start_seen:
                start_seen = True
                self._write(_HELLO)
                hellos += 1
            elif line.startswith("ok") or line == "wait":
                return
            elif line.startswith(("Error:", "!!")):
                self._firmware_error(line)
            elif line:
                patience = self._timeouts.hello

    def _serve(self) -> None:
        """Be connected: ask for temperatures, hear errors, notice silence; ends only by _Ended."""
        self._enter(Phase.OPERATIONAL)
        self._write(_HELLO + b"M115\n")
        heard = time.monotonic()
        ask_at = heard
        while True:
            now = time.monotonic()
            if now >= ask_at:
                self._write(b"M105\nM27\n" if self._phase is Phase.PRINTING_SD else b"M105\n")
                ask_at = now + self._timeouts.poll
            if now - heard >= self._timeouts.silence:
                raise _Ended(Phase.FAILED, TOO_QUIET)
            line = self._line(min(ask_at, heard + self._timeouts.silence))
            if line:
                heard = time.monotonic()
                self._heed(line)

    def _heed(self, line: str) -> None:
        if line.startswith(("Error:", "!!")):
            self._firmware_error(line)
        elif line == "start":  # a reset under its hands: it stays connected and greets again
            self._enter(Phase.OPERATIONAL)
            self._write(_HELLO)
        elif line == "File selected":
            self._enter(Phase.PRINTING_SD)
        elif line == "Not SD printing" and self._phase is Phase.PRINTING_SD:
            self._enter(Phase.OPERATIONAL)

    def _firmware_error(self, line: str) -> None:
        """Close on a firmware's error, with its text; what can be gone past is passed over.

        Raises:
            _Ended: for every error but the harmless ones.
        """
        text = line.removeprefix("Error:").removeprefix("!!").strip()
        if _KILL.search(line):
            more = self._line(time.monotonic() + self._timeouts.poll) or ""
            text += " - " + more.removeprefix("Error:").strip()
        if any(harmless in text.lower() for harmless in _HARMLESS_ERRORS):
            return
        with contextlib.suppress(_Ended):  # it says so to a board that may be gone already
            self._write(b"M112\n")
        raise _Ended(Phase.FAILED, text)
