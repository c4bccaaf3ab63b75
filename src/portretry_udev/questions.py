"""Questions, and who answers them: a person, or nobody.

Knows what a question is.  Must not know what is asked (``wizard``), nor the terminal (``terminal``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


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
