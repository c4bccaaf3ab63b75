"""Lines for a person at a terminal, or for the journal.

Knows how a line looks.  Must not know what is worth one.
"""

import logging
import os
import sys
import time
from typing import TextIO

# sd-daemon(3): the journal reads the priority off the front of a line.
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOUR = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1"}
_PRINTER = "portretry_udev.printer."


class _Lines(logging.Formatter):
    """``12:30:05 mk3: held: disconnected on purpose ...``."""

    def __init__(self, *, journal: bool, colour: bool) -> None:
        super().__init__()
        self._journal = journal
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line; a trace, if there is one, below it with the same front."""
        text = record.getMessage()
        if record.name.startswith(_PRINTER):
            text = f"{record.name.removeprefix(_PRINTER)}: {text}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if self._journal:
            front = priority(record.levelno)
            return "\n".join(front + line for line in text.splitlines())
        if self._colour and (code := _COLOUR.get(record.levelno)):
            text = f"\x1b[{code}m{text}\x1b[0m"
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {text}"


def priority(level: int) -> str:
    """What stands in front of a line for the journal."""
    return f"<{_PRIORITY.get(level, 6)}>"


def is_journal(stream: TextIO) -> bool:
    """Whether systemd has connected this stream to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    wanted = os.environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return wanted == f"{found.st_dev}:{found.st_ino}"


def set_up(*, verbose: bool, stream: TextIO | None = None) -> None:
    """Have our own log written to a stream (stderr): changes, and with ``verbose`` each event and effect."""
    stream = stream or sys.stderr
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Lines(journal=is_journal(stream), colour=colour))
    log = logging.getLogger("portretry_udev")
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False  # the libraries' own logs stay out: urllib3 would name addresses at every look
