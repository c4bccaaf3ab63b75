"""Asks OctoPrint, in a thread of its own, one question after the other.

Knows which of OctoPrint's requests carries out which effect.  Must not know when to ask, or what follows from
an answer (``rules``), nor HTTP (``rest``).  It exists so that a watcher never waits for OctoPrint.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from portretry_udev import events
from portretry_udev.about import About
from portretry_udev.octoprint import Answer, Trouble

_QUIET = 0.5  # seconds without a question, after which there is time to ask what OctoPrint is

Question = events.Look | events.Connect | events.Unwedge


class OctoPrintClient(Protocol):
    """What is needed of OctoPrint."""

    def look(self) -> Answer:
        """Ask what it is doing; raises Trouble."""

    def connect(self, port: str, baudrate: int | None, profile: str | None) -> None:
        """Tell it to connect; raises Trouble."""

    def disconnect(self) -> None:
        """Tell it to give its connection up; raises Trouble."""

    def about(self) -> About:
        """Ask what it is; raises Trouble."""

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port that it was last reached at."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What was asked, when (seconds of the clock) and with which key, and what came of it.

    ``outcome`` is an Answer to a look; None: the command was taken.
    """

    question: Question
    asked_at: float
    key: str
    outcome: Answer | Trouble | None

    def __repr__(self) -> str:  # the key must not come into a trace
        return f"Reply({self.question!r}, {self.outcome!r})"


@dataclass(frozen=True, slots=True)
class Crash:
    """An unforeseen error, on its way to the thread that it must end."""

    error: BaseException


class Asker:
    """Asks until it is stopped.

    Args:
        name: of the printer.
        client: its OctoPrint; used by this thread alone, but for `OctoPrintClient.peer`.
        profile: OctoPrint's printer profile to connect with; None: its own choice.
        key: the API key as it is now, to tell a new one from a refused one.
        post: takes each Reply, About and Crash; must not wait.
        clock: seconds that never go backwards.
    """

    def __init__(  # noqa: PLR0913 - its parts
        self,
        name: str,
        client: OctoPrintClient,
        profile: str | None,
        key: Callable[[], str],
        post: Callable[[Reply | About | Crash], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._profile = profile
        self._key = key
        self._post = post
        self._clock = clock
        self._log = logging.getLogger(f"portretry_udev.printer.{name}")
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._unknown = threading.Event()  # it is to be asked what it is
        self._thread = threading.Thread(target=self._run, name=f"{name} octoprint", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the question that is under way."""
        self._questions.put(None)

    def ask(self, question: Question) -> None:
        """Have this asked after all that is to be asked already."""
        self._questions.put(question)

    def wonder(self) -> None:
        """Have OctoPrint asked, in the next quiet moment, what it is: it may be another one."""
        self._unknown.set()

    def _run(self) -> None:
        try:
            while (question := self._next()) is not None:
                # The key as it was before: one that is put right while this is under way counts as new.
                asked_at, key = self._clock(), self._key()
                try:
                    outcome: Answer | Trouble | None = self._carry_out(question)
                except Trouble as trouble:
                    outcome = trouble
                self._post(Reply(question, asked_at, key, outcome))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the watcher's thread
            self._post(Crash(error))

    def _carry_out(self, question: Question) -> Answer | None:
        match question:
            case events.Look():
                return self._client.look()
            case events.Connect(port, baudrate):
                self._client.connect(port, baudrate, self._profile)
            case events.Unwedge():
                self._client.disconnect()
        return None

    def _next(self) -> Question | None:
        """Wait for the next question; in a quiet moment, ask what OctoPrint is."""
        while True:
            try:
                return self._questions.get(timeout=_QUIET if self._unknown.is_set() else None)
            except queue.Empty:
                self._unknown.clear()
            try:
                self._post(self._client.about())
            except Trouble as trouble:
                self._log.debug("%s", trouble)
