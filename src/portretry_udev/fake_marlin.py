"""What a simulated board's firmware says and does: a small Marlin, for the demo and the tests.

Knows the firmware's words, its SD card and how it boots, waits and dies.  Must not know ptys, threads or
the time of day: `now` (seconds, monotonic) is an argument, and the answer to everything is bytes to send.
The words are Marlin 2.1's, as OctoPrint 1.10 to 2.0 wants to hear them.
"""

import enum
from collections import Counter, deque
from typing import Final

BANNER: Final = (
    b"start\n"
    b"echo:Marlin 2.1.2.5\n"
    b"echo: Last Updated: 2024-12-02 | Author: (portretry-udev simulator)\n"
    b"echo: Free Memory: 4096  PlannerBufferBytes: 1152\n"
    b"echo:Hardcoded Default Settings Loaded\n"
)
"""A boot's text, as `Printer` says it unless told otherwise."""

HEATING_FAILED: Final = "Heating failed, system stopped! Heater_ID: 0"
"""A firmware fault that OctoPrint takes for one (its regex_marlinKillError)."""

_M115: Final = (
    b"FIRMWARE_NAME:Marlin 2.1.2.5 (Dec  2 2024 12:00:00) SOURCE_CODE_URL:github.com/MarlinFirmware/Marlin "
    b"PROTOCOL_VERSION:1.0 MACHINE_TYPE:Simulated Printer EXTRUDER_COUNT:1 "
    b"UUID:cede2a2f-41a2-4748-9b12-c55c62f367ff\n"
    b"Cap:SERIAL_XON_XOFF:0\nCap:EEPROM:1\nCap:AUTOREPORT_TEMP:1\nCap:AUTOREPORT_SD_STATUS:0\n"
    b"Cap:BUSY_PROTOCOL:1\nCap:EMERGENCY_PARSER:0\nCap:SDCARD:1\nok\n"
)
_TEMPERATURES: Final = b"T:21.25 /0.00 B:21.50 /0.00 @:0 B@:0\n"
# Lower case: OctoPrint 2.0.0rc7 lists and selects in different case, and crashes on a file it did not list.
_SD_FILE: Final = b"benchy.gco"
_SD_SIZE: Final = 1_000_000  # bytes
_OPENED: Final = b"File opened:%s Size:%d\nFile selected\n" % (_SD_FILE, _SD_SIZE)
_SD_SPEED: Final = 1_000  # bytes a second: slow enough never to end in a test, fast enough to be seen moving
_ANSWERS: Final = {
    "M20": b"Begin file list\n%s %d\nEnd file list\nok\n" % (_SD_FILE, _SD_SIZE),
    "M21": b"echo:SD card ok\nok\n",
    "M105": b"ok " + _TEMPERATURES,
    "M115": _M115,
}
_LINE_LIMIT: Final = 96  # bytes; Marlin's MAX_CMD_SIZE.  The rest of a longer line is dropped.
_COMMAND_LETTERS: Final = frozenset(b"GMT")


class Power(enum.StrEnum):
    """How far the board is: without power, starting, running, or stopped by a fault."""

    OFF = enum.auto()
    BOOTING = enum.auto()
    READY = enum.auto()
    DEAD = enum.auto()


class SdCard:
    """The print counter of a print from SD: it advances with time, and only a pause or an end stops it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._before = 0
        self._selected = False

    def select(self) -> None:
        """Choose the card's one file and go back to its start."""
        self._since, self._before, self._selected = None, 0, True

    def start(self, now: float) -> None:
        """Print, or go on printing."""
        if self._selected and self._since is None:
            self._since = now

    def pause(self, now: float) -> None:
        """Stop where it is."""
        self._before, self._since = self.position(now), None

    def position(self, now: float) -> int:
        """Bytes of the file printed so far."""
        if self._since is None:
            return self._before
        return min(_SD_SIZE, self._before + int((now - self._since) * _SD_SPEED))

    def report(self, now: float) -> bytes:
        """The answer to M27."""
        if self._since is None or self.position(now) >= _SD_SIZE:
            return b"Not SD printing\n"
        return b"SD printing byte %d/%d\n" % (self.position(now), _SD_SIZE)


class Marlin:
    """The firmware of one board.

    Args:
        powered: it has been running for long already; otherwise it is off.
        boot_delay: seconds from power or reset until it can answer; what it is sent before is lost.
        banner: said at the end of a boot; None or empty for a board that merely begins to answer.
        autoreport: seconds between temperature lines that nobody asked for; None for none until M155.
        busy_interval: seconds between `echo:busy:` lines while it is busy (Marlin's M113, 2 s).
    """

    def __init__(
        self,
        *,
        powered: bool = True,
        boot_delay: float = 1.0,
        banner: bytes | None = BANNER,
        autoreport: float | None = None,
        busy_interval: float = 2.0,
    ) -> None:
        self.boot_delay, self.banner, self.busy_interval = boot_delay, banner, busy_interval
        self.power = Power.READY if powered else Power.OFF
        self.hung = False
        """A board that has power and swallows all it is sent, without a word."""
        self.deaf_to: frozenset[str] = frozenset()
        """Commands, by their first word, that it swallows without a word or a deed; all others it answers."""
        self.commands: Counter[str] = Counter()
        """How often each command was carried out or refused, by its first word: M115, M105, ..."""
        self._autoreport_default = autoreport
        self._forget()

    def _forget(self) -> None:
        """Lose all that does not survive a boot."""
        self.sd = SdCard()
        self._line = bytearray()
        self._waiting: deque[bytes] = deque()
        self._boot_at = self._report_at = self._busy_until = self._busy_line_at = 0.0
        self._autoreport = self._autoreport_default

    # -- what is done to the board ----------------------------------------------------------------------

    def power_on(self, now: float) -> None:
        """Give it power; no effect on a board that has it."""
        if self.power is Power.OFF:
            self._boot(now)

    def power_off(self) -> None:
        """Take its power: print, faults and half-heard lines are gone."""
        self._forget()
        self.power = Power.OFF

    def reset(self, now: float) -> bool:
        """Press its reset button; returns whether that did anything (not without power)."""
        if self.power is Power.OFF:
            return False
        self._boot(now)
        return True

    def _boot(self, now: float) -> None:
        self._forget()
        self.power, self._boot_at = Power.BOOTING, now + self.boot_delay

    def kill(self, text: str) -> bytes:
        """A firmware fault: Marlin says why, says that it halts, and is dead until it boots again."""
        if self.power is not Power.READY:
            return b""
        self._forget()
        self.power = Power.DEAD
        return b"Error:%s\nError:Printer halted. kill() called!\n" % text.encode()

    def busy(self, seconds: float, now: float) -> None:
        """Keep it busy: it says so now and then, and answers what it is sent only afterwards."""
        self._busy_until, self._busy_line_at = now + seconds, now

    def start_sd_print(self, now: float) -> bytes:
        """Start the print from its own display, as a person at the printer does."""
        if self.power is not Power.READY:
            return b""
        self.sd.select()
        self.sd.start(now)
        return _OPENED

    # -- time and bytes ---------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When it has something to say or do by itself next; None for never."""
        if self.power is Power.BOOTING:
            return self._boot_at
        if self.power is not Power.READY or self.hung:
            return None
        times = []
        if self._busy_until:
            times += [self._busy_until, self._busy_line_at]
        if self._autoreport:
            times.append(self._report_at)
        return min(times, default=None)

    def tick(self, now: float) -> bytes:
        """What it says by itself, now that it is `now`."""
        said = b""
        if self.power is Power.BOOTING and now >= self._boot_at:
            self.power = Power.READY
            said += self.banner or b""
        if self.power is not Power.READY or self.hung:
            return said
        if self._busy_until:
            said += self._tick_busy(now)
        elif self._autoreport and now >= self._report_at:
            self._report_at = now + self._autoreport
            said += b" " + _TEMPERATURES
        return said

    def _tick_busy(self, now: float) -> bytes:
        if now < self._busy_until:
            if now < self._busy_line_at:
                return b""
            self._busy_line_at = now + self.busy_interval
            self._report_at = max(self._report_at, self._busy_until)
            return b"echo:busy: processing\n"
        self._busy_until = 0.0
        waiting, self._waiting = self._waiting, deque()
        return b"".join(self._carry_out(line, now) for line in waiting)

    def hear(self, data: bytes, now: float) -> bytes:
        """Take bytes from the host, split anywhere, and return the answers."""
        if self.power is not Power.READY or self.hung:
            self._line.clear()
            return b""
        answers = b""
        for byte in data:
            if byte not in b"\r\n":
                if len(self._line) < _LINE_LIMIT:
                    self._line.append(byte)
                continue
            line = bytes(self._line)
            self._line.clear()
            if self._busy_until:
                self._waiting.append(line)
            else:
                answers += self._carry_out(line, now)
        return answers

    def _carry_out(self, line: bytes, now: float) -> bytes:
        """One line: line number and checksum are accepted as they come, not checked."""
        words = line.partition(b";")[0].partition(b"*")[0].split()
        if words and words[0][:1] == b"N" and words[0][1:].lstrip(b"-").isdigit():
            del words[0]
        if not words or self.power is not Power.READY:
            return b""
        name = words[0].decode("latin-1").upper()
        if name in self.deaf_to:
            return b""
        self.commands[name] += 1
        answer = self._special(name, words, now)
        if answer is not None:
            return answer
        if words[0][0] in _COMMAND_LETTERS and words[0][1:].isdigit():
            return b"ok\n"
        return b'echo:Unknown command: "%s"\nok\n' % b" ".join(words)

    def _special(self, name: str, words: list[bytes], now: float) -> bytes | None:
        """The answer of a command that says or does more than `ok`; None for the others."""
        match name:
            case "M23":
                self.sd.select()
                return _OPENED + b"ok\n"
            case "M24":
                self.sd.start(now)
            case "M25":
                self.sd.pause(now)
            case "M27":
                return self.sd.report(now) + b"ok\n"
            case "M112":
                return self.kill("M112 received")
            case "M155":
                self._set_autoreport(words[1:], now)
        return _ANSWERS.get(name)

    def _set_autoreport(self, words: list[bytes], now: float) -> None:
        for word in words:
            if word[:1] == b"S" and word[1:].isdigit():
                self._autoreport = float(word[1:]) or None
                self._report_at = now + float(word[1:])
