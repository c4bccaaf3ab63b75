"""Lines on a terminal that are drawn anew in place, as ``status --follow`` does; and the terminal as it was.

Knows terminals: escape sequences, sizes, echo, and the signals that come with them.  Must not know what the
lines mean.
"""

import contextlib
import os
import queue
import shutil
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

# xterm's alternate screen, no cursor, and lines that are cut at the edge instead of wrapped: one that is
# drawn while the window shrinks must not push the others away.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_CAUGHT = (signal.SIGWINCH, signal.SIGTSTP, *_ENDS)


def possible() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """The terminal at stdout, to be used with `showing`, in the main thread.

    Args:
        wake: called when there is a reason to draw anew, or to `rest`; it must be safe in a signal handler.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._out = sys.stdout.fileno()
        self._shown: tuple[Sequence[str], os.terminal_size] | None = None
        self._typed: list[Any] | None = None  # how the terminal was set
        self._wants_rest = False

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Take the terminal over; whatever ends this, it is as it was before."""
        before = {number: signal.signal(number, self._caught) for number in _CAUGHT}
        try:
            self._enter()
            yield
        finally:
            self._leave()
            for number, old in before.items():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, old)

    def size(self) -> os.terminal_size:
        """Its columns and lines now; whatever COLUMNS says, which no resize changes."""
        try:
            found = os.get_terminal_size(self._out)
        except OSError:
            return shutil.get_terminal_size()
        return found if found.columns and found.lines else os.terminal_size((80, 24))

    def draw(self, lines: Sequence[str]) -> None:
        """Show these and nothing else; those that find no room are counted."""
        size = self.size()
        if (lines, size) == self._shown:
            return
        self._shown = (lines, size)
        if len(lines) > size.lines:
            kept = size.lines - 1
            lines = [*lines[:kept], f"... {len(lines) - kept} lines more: make the window higher"]
        self._write(_HOME + "\r\n".join(line + _CLEAR_LINE for line in lines) + _CLEAR_BELOW)

    def rest(self) -> None:
        """Stop if Ctrl-Z was typed, with the terminal as it was, until the shell has us go on."""
        if not self._wants_rest:
            return
        self._wants_rest = False
        self._leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._caught)
        self._enter()

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDS:
            signal.signal(number, signal.SIG_IGN)  # a second one must not leave the way out half done
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)  # as shells say it
        self._wants_rest = self._wants_rest or number == signal.SIGTSTP
        self._wake()

    def _enter(self) -> None:
        self._shown = None
        with contextlib.suppress(termios.error, ValueError, OSError):  # stdin is no terminal
            keys = sys.stdin.fileno()
            self._typed = termios.tcgetattr(keys)
            quiet = [*self._typed]
            quiet[3] &= ~termios.ECHO  # what is typed would be written into the picture
            quiet[3] |= termios.NOFLSH  # a second Ctrl-C would throw away what gives the terminal back
            termios.tcsetattr(keys, termios.TCSANOW, quiet)
        self._write(_ENTER)

    def _leave(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            self._write(_LEAVE)
        if self._typed is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._typed)
            self._typed = None

    def _write(self, text: str) -> None:
        """Past Python's buffer, which a signal handler must not enter twice."""
        data = text.encode(sys.stdout.encoding or "utf-8", "replace")
        while data:
            data = data[os.write(self._out, data) :]


def waited(mail: "queue.SimpleQueue[Any]", seconds: float) -> object:
    """What comes within so many seconds; None: nothing."""
    try:
        return mail.get(timeout=max(0.0, seconds))
    except queue.Empty:
        return None
