r"""What a printer's firmware says: bytes in, signs of life out.

Knows the words that 3D printer firmwares speak on their serial port.  Must not know ports, clocks, OctoPrint
or what follows from a sign: `port` brings the bytes, `rules` decides.

Each line gets at most one sign.  Readable text that no printer firmware is known to say gets *none*: a modem,
a GPS, a login prompt or our own poke echoed back is somebody, but not the printer, and unknown means hands
off.  Little is lost by it: a real firmware that muttered something unknown still answers the next poke.

Where no other source is named, the words are those that OctoPrint 1.11.8 acts on (`octoprint/util/comm.py`),
confirmed in logs that people posted (issues of OctoPrint, Marlin, Prusa-Firmware, Klipper, Smoothieware).
"""

import enum
import re
from dataclasses import dataclass

POKE: bytes = b"\nM115\n"
"""The only bytes ever sent: end whatever half line is there, then ask for the firmware's name."""

BAUDRATES: tuple[int, ...] = (115200, 250000, 230400, 57600, 38400, 19200, 9600)
"""Baud to try when nothing is configured: OctoPrint's order, by likelihood.  1200 would wake bootloaders."""

LINE_LIMIT = 512
"""Bytes kept of one line.  The longest real one known is an M115 answer of Smoothie with some 350."""

NOISE_LIMIT = 16
"""Bytes after which garbage is called garbage though its line has not ended: noise may hold no newline."""


class Sign(enum.Enum):
    """What one line from the port shows.

    One GARBAGE may be a board's noise at power-on; a wrong baudrate gives GARBAGE again and again.
    """

    BANNER = "banner"  # the firmware has just booted, or Klipper has its printer back
    ANSWER = "answer"  # somebody who reads G-code answered a line
    BUSY = "busy"  # it works on something long, or waits for a person at the printer
    PRINTING = "printing"  # it prints from its own storage
    NOT_PRINTING = "not printing"
    CHATTER = "chatter"  # alive, though nobody asked: idle `wait`, temperatures, notices
    ERROR = "error"  # a fault is talking: halted, killed, heating failed
    GARBAGE = "garbage"  # not text: a wrong baudrate, or a line in the air

    @property
    def alive(self) -> bool:
        """Whether a firmware runs that could take a connection.  Neither a fault nor noise counts."""
        return self not in (Sign.ERROR, Sign.GARBAGE)

    @property
    def hands_off(self) -> bool:
        """Whether the printer is at work, so that an open, a reset or a connect could ruin a print."""
        return self in (Sign.BUSY, Sign.PRINTING)


@dataclass(frozen=True)
class Firmware:
    """Who answered M115; None for what it did not tell.

    `machine` is what the firmware says it runs on: MACHINE_TYPE, else the ELECTRONICS of RepRapFirmware or
    the MODEL of Malyan.  A `uuid` alone proves no identity: countless printers share Marlin's default
    cede2a2f-41a2-4748-9b12-c55c62f367ff, and all Prusa MK3 have 00000000-0000-0000-0000-000000000000.
    """

    name: str | None
    machine: str | None
    uuid: str | None


# `Error:` lines that tell of no fault: a garbled line, a missing card (OctoPrint ignores both), and settings
# that Marlin could not load at boot: it runs with its defaults (only a warning since Marlin PR 26306).
_COMPLAINTS = (
    r"error:.*(?:line ?number|checksum|format error|expected line|volume\.init|openroot|workdir"
    r"|error writing to file|cannot open|open failed|cannot enter|eeprom)"
)

# The first that matches decides.  "Hands off" outranks all, wherever it stands in a line.
_WORDS: tuple[tuple[Sign, re.Pattern[str]], ...] = tuple(
    (sign, re.compile(words))
    for sign, words in (
        # Only while Marlin heats and waits (M109, M190) do its temperatures end in "W:".
        (Sign.BUSY, r"(?:echo: ?)?busy:|.*paused for user|T\d*:.* W:"),
        # Smoothie says "Not currently playing"; some Marlins say "byte 0/0" while nothing is printed.
        (Sign.NOT_PRINTING, r"(?:ok )?(?:Not SD printing|SD printing byte 0/0|Done printing file)"),
        (Sign.NOT_PRINTING, r"Not currently playing"),
        (Sign.PRINTING, r".*SD printing byte|SD print paused"),
        # What may follow "ok" is plain ASCII: "ok T:..", "ok N10 P15 B3", "ok 0", "ok FIRMWARE_NAME:Klipper".
        (Sign.ANSWER, r"ok(?:[\t :][\t -~]*)?$|FIRMWARE_NAME:|NAME[:.]\s*Malyan|(?:Resend|rs)[: ]\s*N?\d"),
        (Sign.ANSWER, r"(?i:(?:echo: ?|// ?|error: ?)?unknown command)"),
        # Grbl knows no M115: 1.1 answers with the number, 0.9 with the words.
        (Sign.ANSWER, r"error:(?:20$| ?Unsupported command)"),
        (Sign.CHATTER, rf"(?i:{_COMPLAINTS})"),
        # "!!" Klipper and Smoothie, "fatal:" Repetier, "ALARM:" Grbl and Smoothie, "HALTED" Smoothie.
        (Sign.ERROR, r"(?i:error:|fatal:)|!!|ALARM:|HALTED"),
        (Sign.BANNER, r"start$|Smoothie(?: Running.*)?$|Grbl(?:HAL)? \d|// Klipper state: Ready"),
        (Sign.BANNER, r"(?:echo:|Info:)?\s*(?:PowerUp|(?:External|Brown out|Watchdog|Software) Reset)$"),
        (Sign.BANNER, r"(?:echo: ?)?Marlin ?(?:\d|bugfix-)"),
        (Sign.CHATTER, r"wait$|[TB]\d*: ?-?\d|//|[Ee]cho:"),
    )
)

_IDENTITY = re.compile(r"(?:ok )?(?:FIRMWARE_NAME:|NAME[:.]\s*Malyan)")
# Keys stand after a blank (Smoothie: a comma); values may hold blanks, commas and colons.
_KEY = re.compile(r"(?:^|[\s,])([A-Z][A-Z0-9_-]*):")

# Control characters, and bytes that are no UTF-8 (each a "surrogate").  Localised Marlins send real UTF-8.
_NOISE_CHARACTERS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\udc80-\udcff"
_NOISE = re.compile(rf"[{_NOISE_CHARACTERS}]")
_STRAY = re.compile(rf"^[\s{_NOISE_CHARACTERS}]+")

# A run of one kind of byte: text, or one line end.  "\r\n" is an end and an empty line, which says nothing.
_PIECES = re.compile(rb"[^\r\n]+|[\r\n]")


def _readable(line: bytes | bytearray) -> str | None:
    """Return the line as printable text, or None if more than a quarter of it is noise.

    NULs in front are not held against a line: boards send them at boot (OctoPrint issues 1003 and 1770).
    """
    text = line.lstrip(b"\0").decode("utf-8", "surrogateescape")
    if not text or len(_NOISE.findall(text)) * 4 > len(text):
        return None
    return _NOISE.sub("\N{REPLACEMENT CHARACTER}", _STRAY.sub("", text)).rstrip()


def _identity(text: str) -> Firmware:
    """Read the fields of an M115 answer."""
    text = "".join(c if c.isprintable() else " " for c in text)  # it is told to people
    if text.startswith("NAME."):  # Malyan, on some boards
        text = text.replace(".", ":", 1)
    _, *parts = _KEY.split(text)
    fields = {key: value.strip(" \t,") for key, value in zip(parts[::2], parts[1::2], strict=True)}

    def first(*keys: str) -> str | None:
        return next((fields[key] for key in keys if fields.get(key)), None)

    return Firmware(
        name=first("FIRMWARE_NAME", "NAME"),
        machine=first("MACHINE_TYPE", "ELECTRONICS", "MODEL"),
        uuid=first("UUID"),
    )


class Reader:
    r"""Turns the bytes of one port into signs, however they are split.

    A line ends at "\n", "\r" or both.  Memory is bounded by LINE_LIMIT; the work is linear in the bytes fed.

    Attributes:
        firmware: the last M115 answer that came whole, None before the first.  `reset` keeps it.
    """

    firmware: Firmware | None

    def __init__(self) -> None:
        self.firmware = None
        self._line = bytearray()
        self._judged = False  # the line in hand has had its say: drop the rest of it

    def feed(self, data: bytes) -> list[Sign]:
        """Take the next bytes; return the signs they complete, in order."""
        signs: list[Sign] = []
        for piece in _PIECES.findall(data):
            sign = self._end() if piece in (b"\r", b"\n") else self._more(piece)
            if sign is not None:
                signs.append(sign)
        return signs

    def reset(self) -> None:
        """Forget a partial line: after an open or a change of baudrate its beginning means nothing."""
        self._line.clear()
        self._judged = False

    def _more(self, piece: bytes) -> Sign | None:
        """Lengthen the line in hand; judge it now if it is noise, or longer than any real line."""
        if self._judged:
            return None
        had = len(self._line)
        self._line += piece[: LINE_LIMIT - had]
        if had < NOISE_LIMIT <= len(self._line) and _readable(self._line[:NOISE_LIMIT]) is None:
            self._judged = True
            return Sign.GARBAGE
        if len(self._line) == LINE_LIMIT:
            self._judged = True
            return self._judge()
        return None

    def _end(self) -> Sign | None:
        sign = self._judge() if self._line and not self._judged else None
        self.reset()
        return sign

    def _judge(self) -> Sign | None:
        text = _readable(self._line)
        if text is None:
            return Sign.GARBAGE
        if _IDENTITY.match(text) and len(self._line) < LINE_LIMIT:  # a cut answer would hold a cut value
            self.firmware = _identity(text)
        return next((sign for sign, words in _WORDS if words.match(text)), None)
