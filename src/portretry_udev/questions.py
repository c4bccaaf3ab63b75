"""Questions, and who answers them: flags beforehand, a person, or nobody.

Knows what a question is, and what can be said by flags.  Must not know what is asked (``wizard``), nor the
terminal (``terminal``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from portretry_udev.install import Layout

PREFERRED = "octoprint"
"""As --port: the port that OctoPrint prefers, whichever that is."""


class Unanswered(Exception):  # noqa: N818 - nobody has erred
    """A question that nobody is there to answer; one line for people, which says by which flag."""


@dataclass(frozen=True)
class Question:
    """Something that has to be asked.

    Attributes:
        text: for who is there.
        flag: what answers it beforehand.
        why: why it has to be asked, in a clause, for who is not there.
        sure: what is proposed can be taken without asking.
        remarks: what to know before, for who is there.
    """

    text: str
    flag: str
    why: str
    sure: bool = False
    remarks: tuple[str, ...] = ()

    def unanswered(self) -> Unanswered:
        """For when nobody is there."""
        return Unanswered(f"{self.why}: give {self.flag}")


@dataclass(frozen=True)
class Option:
    """One answer of several: a line, and lines below it."""

    label: str
    details: tuple[str, ...] = ()


class Person(Protocol):
    """Whoever answers; `Nobody` does if nobody is there."""

    def say(self, text: str = "") -> None:
        """Tell a paragraph."""

    def ask(self, question: Question, default: str | None = None) -> str:
        """Have a word typed.

        Raises:
            Unanswered: nobody is there.
        """

    def choose(self, question: Question, options: Sequence[Option], default: int | None = None) -> int:
        """Have one of several chosen; returns its index.

        Raises:
            Unanswered: nobody is there.
        """


class Nobody:
    """Nobody is there: all has to be clear without asking.

    Args:
        say: what is told, is told there.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def say(self, text: str = "") -> None:
        """Tell it, if it is anything."""
        if text:
            self._say(text)

    def ask(self, question: Question, default: str | None = None) -> str:
        """Take what is sure."""
        if default is None or not question.sure:
            raise question.unanswered()
        return default

    def choose(self, question: Question, options: Sequence[Option], default: int | None = None) -> int:
        """Take what is sure."""
        del options
        if default is None or not question.sure:
            raise question.unanswered()
        return default


# -- what flags say -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Given:
    """What flags say; None, or nothing: they do not.

    Attributes:
        octoprint: its URL.
        name: the printer's.
        port: its node, or `PREFERRED`.
        match: udev properties instead.
        api_key_file: a file with a key that works.
        ca_file: certificates to trust.
        interval: seconds.
        create_user: the key's account is to be made.
        user: who is to be asked to click; with ``create_user``: the administrator who logs in.
        password_stdin: the password comes from there.
    """

    octoprint: str | None = None
    name: str | None = None
    port: str | None = None
    match: Mapping[str, str] = field(default_factory=dict)
    api_key_file: Path | None = None
    ca_file: Path | None = None
    interval: float | None = None
    create_user: bool = False
    user: str | None = None
    password_stdin: bool = False


@dataclass(frozen=True)
class Orders:
    """One run, as it was ordered.

    Attributes:
        given: the answers.
        layout: where things go.
        config: the configuration.
        program: what the service runs; None: nothing is installed.
        starts: the service may be started.
        wait: seconds to wait for the printer; None: as long as is usual.
        asks: there is somebody to ask.
    """

    given: Given
    layout: Layout
    config: Path
    program: Path | None
    starts: bool
    wait: float | None
    asks: bool
