"""The questions of ``setup``: which OctoPrint, with which key, on which port, under which name.

Knows what can be taken without asking, what has to be asked, and which flag answers each question.  Must not
know the terminal, nor how anything is found, asked or written: who does that is handed in.
"""

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from portretry_udev import listing
from portretry_udev.config import Printer
from portretry_udev.devices import Port, resolved
from portretry_udev.events import Octo
from portretry_udev.finding import Found
from portretry_udev.keys import KeySource, KeyTrouble
from portretry_udev.listing import Row, plain
from portretry_udev.login import Account, LoginTrouble
from portretry_udev.octoprint import Answer, offered
from portretry_udev.questions import PREFERRED, Option, Person, Question
from portretry_udev.rest import Trouble
from portretry_udev.settings import NAME, octoprint_url

_ALONE = "printer"  # a name for those whose board says nothing of itself


# -- which OctoPrint ---------------------------------------------------------------------------------------
class OctoPrints(Protocol):
    """Who looks for OctoPrints."""

    def search(self, first: Sequence[str]) -> tuple[list[Found], Mapping[str, Trouble]]:
        """Those of this machine, and those at these addresses; and what came of other addresses."""

    def examine(self, url: str) -> Found:
        """The one at this address.

        Raises:
            Trouble: there is none.
        """


def octoprint(
    given: str | None, name: str | None, printers: Sequence[Printer], octoprints: OctoPrints, person: Person
) -> Found:
    """The OctoPrint that is meant.

    Args:
        given: its address, if a flag says it.
        name: the printer's, if a flag says it.
        printers: those that are configured.
        octoprints: where to look.
        person: who is asked.

    Raises:
        Trouble: there is none at the address that was given.
        Unanswered: nobody is there to say which.
    """
    named = next((printer.octoprint for printer in printers if printer.name == name), None)
    if given or named:
        return octoprints.examine(given or named or "")
    person.say("Looking for OctoPrint on this machine ...")
    found, others = octoprints.search([printer.octoprint for printer in printers])
    if not found:
        return _asked(others, octoprints, person)
    if len(found) == 1:
        return found[0]
    question = Question(
        "Several OctoPrints answer. Which one is it?",
        "--octoprint URL",
        f"several OctoPrints answer, at {', '.join(each.url for each in found)}",
    )
    options = [Option(spoken(each)) for each in found]
    return found[person.choose(question, options, 0)]


def spoken(found: Found) -> str:
    """An OctoPrint in words: what it calls itself, and where it is."""
    return f'"{found.name}" at {found.url}' if found.name else found.url


def _asked(others: Mapping[str, Trouble], octoprints: OctoPrints, person: Person) -> Found:
    """There is none here: it may be elsewhere, or not be running."""
    person.say("None answers here.")
    for trouble in others.values():
        if trouble.status is not None or "refused" not in str(trouble):  # something is there, or should be
            person.say(f"  {trouble}")
    question = Question(
        "OctoPrint's address, such as http://octopi.local",
        "--octoprint URL",
        "no OctoPrint answers on this machine",
    )
    while True:
        typed = person.ask(question).strip()
        try:
            return octoprints.examine(octoprint_url(typed if "://" in typed else f"http://{typed}"))
        except (Trouble, ValueError) as e:
            person.say(f"No: {e}.")


# -- with which key ----------------------------------------------------------------------------------------
class Keys(Protocol):
    """Who knows OctoPrint's keys."""

    def judged(self, key: str) -> Account:
        """Whose it is.

        Raises:
            LoginTrouble: OctoPrint does not know it, or it may not do what is needed.
            Trouble: OctoPrint did not tell.
        """

    def asked(self) -> str:
        """Have somebody click Allow.

        Raises:
            LoginTrouble: nobody did.
            Trouble: OctoPrint did not answer.
        """

    def made(self) -> str:
        """Have an administrator log in, and make an account for it.

        Raises:
            LoginTrouble: it was refused.
            Trouble: OctoPrint did not answer.
        """


@dataclass(frozen=True)
class Key:
    """An API key that works.

    Attributes:
        secret: itself.
        account: whose it is.
        stored: the file that holds it; None: it is yet to be stored.
    """

    secret: str = field(repr=False)
    account: Account
    stored: Path | None = None


def key(given: Path | None, stored: Path | None, keys: Keys, person: Person, *, make: bool = False) -> Key:
    """A key that works: the one in the file that was given, else the stored one, else a new one.

    Args:
        given: a file that a flag names.
        stored: where the printer's key is kept, if it is.
        keys: whom to ask.
        person: who is asked.
        make: an account is to be made for it.

    Raises:
        KeyTrouble: the file that was given cannot be used.
        LoginTrouble: its key cannot, or no new one was given.
        Trouble: OctoPrint did not answer.
        Unanswered: nobody is there to give one.
    """
    if given is not None:
        secret = KeySource.from_file(given).read()
        return Key(secret, keys.judged(secret), given)
    if stored is not None and stored.exists():
        try:
            secret = KeySource.from_file(stored).read()
            return Key(secret, keys.judged(secret), stored)
        except (KeyTrouble, LoginTrouble) as trouble:
            person.say(f"The stored key is to be replaced: {trouble}.")
    secret = keys.made() if make else _new_key(keys, person)
    return Key(secret, keys.judged(secret))


def _new_key(keys: Keys, person: Person) -> str:
    question = Question(
        "An API key is needed. How is it to be got?",
        "--api-key-file FILE with a key that works (or run `portretry-udev login` first)",
        "there is no API key yet",
    )
    options = [
        Option("OctoPrint asks who is logged in there, and you click Allow"),
        Option(
            "from an account of its own, which can only look and connect",
            ("made now, with an administrator's password",),
        ),
        Option("it is in a file already"),
    ]
    chosen = person.choose(question, options, 0)
    if chosen == 0:
        return keys.asked()
    if chosen == 1:
        return keys.made()
    while True:
        typed = person.ask(Question("The file", "--api-key-file FILE", "there is no API key yet")).strip()
        try:
            return KeySource.from_file(Path(typed).expanduser()).read()
        except (KeyTrouble, RuntimeError) as trouble:  # RuntimeError: no such user's home
            person.say(f"No: {trouble}.")


# -- which port --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Choice:
    """A printer's port, as it is configured.

    Attributes:
        port: the setting; None: by ``match``, else as OctoPrint prefers.
        match: the setting.
        why: what to know of it; empty if there is nothing.
        row: the port that it is now; None: it is not here, or nobody knows.
    """

    port: str | None = None
    match: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    row: Row | None = None

    def __str__(self) -> str:
        """As it is said to people."""
        if self.match:
            return " ".join(f"{key}={value}" for key, value in self.match.items())
        return self.port or "the port that OctoPrint prefers"


class Plugging(Protocol):
    """Who sees the printer's cable being pulled and put in."""

    def __call__(self) -> Sequence[Port]:
        """Have it done; returns what came, or nothing if it was given up."""


@dataclass(frozen=True)
class Ports:
    """What there is to choose from.

    Attributes:
        rows: the serial ports.
        answer: what OctoPrint said.
        taken: names of configured printers, but for the one that is set up.
        old: how this printer is configured, if it is.
    """

    rows: Sequence[Row]
    answer: Answer
    taken: frozenset[str] = frozenset()
    old: Printer | None = None

    def free(self) -> list[Row]:
        """Those that may be this printer's: no other's, and there."""
        return [row for row in self.rows if not self.unfit(row)]

    def unfit(self, row: Row) -> str:
        """Why one cannot be this printer's; empty if it may be."""
        if row.printer in self.taken:
            return f"that is {row.printer}"
        return row.stale or (f"it cannot be looked at: {row.trouble}" if row.holders is None else "")

    def preferred(self) -> Row | None:
        """The one that OctoPrint prefers."""
        name = self.answer.preferred_port
        return None if name is None else self.at(name)

    def at(self, name: str) -> Row | None:
        """The one that a name leads to."""
        return next((row for row in self.rows if name in row.links or resolved(name) == row.port.node), None)

    def kept(self) -> Choice | None:
        """As it is configured, if it is."""
        if self.old is None:
            return None
        port = self.old.port
        return Choice(port, self.old.match, row=self.at(port) if port else None)

    def recommended(self, row: Row) -> Choice:
        """By which name to configure one, and why."""
        found = listing.suggestion(row, self.taken)
        setting: dict[str, Any] = tomllib.loads(found.setting)
        return Choice(setting.get("port"), setting.get("match", {}), found.why, row)

    def sure(self) -> Row | None:
        """The one that it is, without asking: the one that OctoPrint prefers, else the only one on USB."""
        preferred = self.preferred()
        if preferred in (free := self.free()):
            return preferred
        usb = [row for row in free if row.port.vendor]
        return usb[0] if len(usb) == 1 else None

    def unoffered(self, choice: Choice) -> str | None:
        """What to add to OctoPrint's settings, so that it offers the port; None: nothing, as far as seen."""
        row = choice.row
        if row is None or offered(self.answer.ports, row.port.node, row.links):
            return None
        return choice.port or row.port.by_id or row.port.node


def given_port(port: str | None, match: Mapping[str, str], ports: Ports) -> Choice | None:
    """What flags say; None: nothing."""
    if match:
        return Choice(match=match)
    if port is None:
        return None
    if port == PREFERRED:
        return Choice(row=ports.preferred())
    row = ports.at(port)
    if row is None:
        return Choice(port, why="it is not here now, and is taken as you say")
    return Choice(port, why=_doubt(port, row, ports), row=row)


def _doubt(port: str, row: Row, ports: Ports) -> str:
    """Why this name may be another board's next time; empty if there is no reason."""
    for trait in ("by_id", "by_path"):
        if getattr(row.port, trait) == port:
            return row.unusable.get(trait, "")
    better = ports.recommended(row)
    if port == row.port.node and better.port != port:
        return f"another board may get this node next time; a name that stays is {better}"
    return ""


def port(look: Callable[[], Ports], plugging: Plugging, person: Person) -> Choice:
    """Which port it is, as the person says, or as is clear.

    Args:
        look: finds what is there now.
        plugging: has the cable pulled and put in.
        person: who is asked.

    Raises:
        Unanswered: nobody is there to say which.
    """
    while True:
        ports = look()
        question, answers, default = _port_question(ports)
        chosen = person.choose(question, [option for option, _ in answers], default)
        answer = answers[chosen][1]
        if isinstance(answer, Choice):
            return answer
        found = _typed(ports, person) if answer == "type" else _plugged(look, plugging, person)
        if found is not None:
            return found


_Answer = Choice | Literal["type", "plug"]


def _port_question(ports: Ports) -> tuple[Question, list[tuple[Option, _Answer]], int | None]:
    """What can be chosen, and which of it is proposed."""
    answers: list[tuple[Option, _Answer]] = []
    sure, kept, default = ports.sure(), ports.kept(), None
    for row in ports.free():
        choice = ports.recommended(row)
        as_is = kept is not None and (kept.port, kept.match) == (choice.port, choice.match)
        if as_is or (row == sure and kept is None):
            default = len(answers)
        same = ["as it is configured now"] if as_is else []
        answers.append((Option(_label(row), (*same, *_remarks(row, ports), *_reason(choice))), choice))
    if kept is not None and default is None:
        default = len(answers)
        answers.append((Option("as it is configured now", (plain(str(kept)),)), kept))
    if ports.answer.preferred_port is not None:
        now = (f"now {plain(ports.answer.preferred_port)}; followed when it is changed there",)
        answers.append((Option("always the one that OctoPrint prefers", now), Choice(row=ports.preferred())))
    if ports.answer.octo is not Octo.BUSY:  # a cable is not pulled in a print
        answers.append((Option("find out: unplug the printer, and plug it in again"), "plug"))
        default = len(answers) - 1 if default is None else default
    answers.append((Option("another: type its path"), "type"))
    nodes = ", ".join(row.port.node for row in ports.free()) or "none is there"
    why = f"no serial port is clearly the printer's ({nodes})"
    flag = f"--port NODE, --match KEY=VALUE or --port {PREFERRED}"
    known = ports.old is not None or sure is not None
    unfit = {row.port.node: ports.unfit(row) for row in ports.rows}
    remarks = tuple(plain(f"(Not {node}: {what}.)") for node, what in unfit.items() if what)
    question = Question("Which serial port is the printer on?", flag, why, sure=known, remarks=remarks)
    return question, answers, default


def _label(row: Row) -> str:
    usb = f"{row.port.vendor}:{row.port.product or '?'}" if row.port.vendor else "built in"
    return "  ".join(plain(each) for each in (row.port.node, usb, row.port.name) if each)


def _remarks(row: Row, ports: Ports) -> list[str]:
    remarks = [listing.state(row)] if row.holders else []
    if row == ports.preferred():
        remarks.append("OctoPrint prefers it")
    return [plain("; ".join(remarks))] if remarks else []


def _reason(choice: Choice) -> list[str]:
    return [plain(str(choice)), *([plain(choice.why)] if choice.why else [])]


def _typed(ports: Ports, person: Person) -> Choice | None:
    question = Question("Its path, such as /dev/serial/by-id/...", "--port NODE", "no port was named")
    typed = person.ask(question).strip()
    if not typed.startswith("/"):
        person.say("No: a path begins with a slash.")
        return None
    return given_port(os.path.normpath(typed), {}, ports)


def _plugged(look: Callable[[], Ports], plugging: Plugging, person: Person) -> Choice | None:
    nodes = {port.node for port in plugging()}
    ports = look()
    rows = [row for row in ports.free() if row.port.node in nodes]
    if not rows:
        return None
    question = Question("Several ports came. Which one is it?", "--port NODE", "several ports came")
    options = [Option(_label(row), tuple(_reason(ports.recommended(row)))) for row in rows]
    return ports.recommended(rows[person.choose(question, options, 0) if len(rows) > 1 else 0])


# -- under which name --------------------------------------------------------------------------------------
def name(choice: Choice, taken: Iterable[str], person: Person) -> str:
    """What to call it; proposed is what its board calls itself."""
    taken = frozenset(taken)
    numbered = (f"{_ALONE}-{number}" for number in range(2, len(taken) + 3))
    proposed = next(each for each in (_ALONE, *numbered) if each not in taken)
    if choice.row is not None:
        proposed = listing.suggestion(choice.row, taken).name
    question = Question("A name for the printer", "--name NAME", "the printer has no name", sure=True)
    while not NAME.fullmatch(typed := person.ask(question, proposed).strip()):
        person.say("No: a name has 1 to 64 letters, digits, _ . or -, and begins with none of . -")
    return typed
