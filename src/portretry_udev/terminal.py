"""A dialogue on a terminal: what is told, what is asked, a cable that is pulled and put in, and a live line.

Knows columns, prompts and the terminal's modes.  Must not know what is asked or why (``wizard``), nor what is
waited for (``waiting``).  All of it goes to stderr: stdout is for what was asked for.
"""

import os
import select
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence

import click

from portretry_udev.cli_common import colour, typed
from portretry_udev.devices import Devices, Port
from portretry_udev.listing import Change, Follower, plain
from portretry_udev.questions import Option, Question

WIDTH = 80  # columns, where the terminal has no fewer
_SETTLED = 1.5  # seconds after which all ports of a board have come
_HINT_AFTER = 60.0  # seconds without a sign of the cable
_NUMBER = 4  # columns that an option's number takes

EXPLAINED = "Do not pull it in a print.  Enter goes back to the list."


def width() -> int:
    """Columns to write in."""
    return min(WIDTH, shutil.get_terminal_size().columns)


def wrapped(text: str, indent: str = "") -> Iterator[str]:
    """Lines that fit; what has no blanks, such as a path, is left whole."""
    for line in text.splitlines():
        own = indent + line[: len(line) - len(line.lstrip())]
        yield from textwrap.wrap(
            line.strip(),
            width(),
            initial_indent=own,
            subsequent_indent=own,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]


def echo(line: str = "") -> None:
    """A line to stderr, in colours where they are wanted."""
    click.echo(line, err=True, color=colour())


class Terminal:
    """Who sits at a terminal, or at the other end of a pipe."""

    def say(self, text: str = "") -> None:
        """Tell a paragraph."""
        if not text:
            echo()
        for line in wrapped(text):
            echo(line)

    def ask(self, question: Question, default: str | None = None) -> str:
        """Have a word typed; nothing typed is what is proposed."""
        proposed = f" [{default}]" if default else ""
        echo()
        while True:
            if answer := typed(f"{click.style(question.text, bold=True)}{proposed}: ") or default:
                return answer

    def choose(self, question: Question, options: Sequence[Option], default: int | None = None) -> int:
        """Have one of several chosen, by its number."""
        echo()
        echo(click.style(question.text, bold=True))
        for remark in question.remarks:
            self.say(remark)
        for number, option in enumerate(options, 1):
            label = click.style(str(number), bold=True)
            first, *more = wrapped(option.label, " " * (_NUMBER + 1))
            echo(f"{number:>{_NUMBER - 1}}".replace(str(number), label) + first[_NUMBER - 1 :])
            for line in (*more, *(each for text in option.details for each in wrapped(text, " " * 7))):
                echo(line)
        proposed = "" if default is None else f" [{default + 1}]"
        while True:
            answer = typed(f"Which one?{proposed} ")
            if not answer and default is not None:
                return default
            if answer.isascii() and answer.isdigit() and 1 <= int(answer[:9]) <= len(options):
                return int(answer) - 1
            self.say(f"A number from 1 to {len(options)}, please.")

    def agree(self, text: str, more: Callable[[], None]) -> bool:
        """Have a plan agreed to; ``more`` shows it in full."""
        echo()
        while True:
            match typed(f"{click.style(text, bold=True)} [yes, no, show] ").lower():
                case "y" | "yes":
                    return True
                case "n" | "no":
                    return False
                case "s" | "show":
                    more()


# -- a cable that is pulled and put in ---------------------------------------------------------------------
class Replug:
    """What comes while somebody pulls a cable and puts it in."""

    def __init__(self) -> None:
        self._came: dict[str, tuple[Port, float]] = {}

    def hear(self, change: Change, now: float) -> str:
        """One port came or went; returns what to say of it."""
        node = plain(change.port.node)
        if change.event == "remove":
            self._came.pop(change.port.node, None)
            return f"{node} is gone.  Now plug it in again."
        self._came[change.port.node] = (change.port, now)
        about = f" ({plain(change.port.name)})" if change.port.name else ""
        return f"{node} has come{about}."

    def ports(self, now: float) -> list[Port]:
        """What came, once no more is to be expected."""
        if not self._came or now - max(when for _, when in self._came.values()) < _SETTLED:
            return []
        return [port for port, _ in self._came.values()]


def replug(devices: Devices, terminal: Terminal) -> Sequence[Port]:
    """Have the printer's cable pulled and put in; returns what came, or nothing if that is given up."""
    devices.start()
    follower = Follower(devices, sys.stdin.fileno())
    terminal.say("Pull the printer's USB cable now, and put it in again; if it is out already, put it in.")
    terminal.say(EXPLAINED)
    replugged, hint_at = Replug(), time.monotonic() + _HINT_AFTER
    while not (found := replugged.ports(time.monotonic())):
        follower.wait(_SETTLED)
        for change in follower.changes():
            terminal.say(f"  {replugged.hear(change, time.monotonic())}")
            hint_at = time.monotonic() + _HINT_AFTER
        if time.monotonic() > hint_at:
            terminal.say(
                "Nothing was noticed: does the cable carry data, too?  In a container, nodes may stay."
            )
            hint_at += _HINT_AFTER
        if select.select([sys.stdin], [], [], 0)[0]:
            sys.stdin.readline()
            return []
    return found


# -- a live line -------------------------------------------------------------------------------------------
class StatusLine:
    """One line that tells how things are now; where there is no terminal, a line for each change."""

    def __init__(self) -> None:
        self._redraws = sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
        self._shown = ""

    def show(self, label: str, hue: str, text: str, seconds: float) -> None:
        """How things are, and how long it will be waited for."""
        text = plain(text)
        if not self._redraws:
            if text and f"{label} {text}" != self._shown:
                self._shown = f"{label} {text}"
                for line in wrapped(f"{label}: {text}"):
                    echo(line)
            return
        left = f" ({seconds:.0f} s)"
        room = width() - len(label) - len(left) - 3
        if len(text) > room:  # the last clause says what is waited for
            text = text.rpartition("; ")[2]
        short = text if len(text) <= room else f"{text[: max(0, room - 3)]}..."
        click.echo(f"\r\x1b[K{click.style(label, fg=hue)}  {short}{left}", err=True, nl=False, color=colour())
        self._shown = label

    def clear(self) -> None:
        """Nothing more is to come: what follows begins where the line stood."""
        if self._redraws and self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)
        self._shown = ""
