"""The questions of ``setup``, put with this machine and its OctoPrints behind them.

Knows who finds an OctoPrint, a key and a port, and in which order one needs the other.  Must not know which
answers are clear without asking (``wizard``), nor what is written (``setup``).
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from portretry_udev import cli_login, finding, listing, login, terminal, wizard
from portretry_udev.config import Place, Printer
from portretry_udev.devices import Devices, Port
from portretry_udev.finding import Found
from portretry_udev.install import Layout
from portretry_udev.listing import plain
from portretry_udev.login import Account, Why
from portretry_udev.octoprint import Answer, Client
from portretry_udev.questions import Given, Person
from portretry_udev.rest import Rest, Trouble
from portretry_udev.setup import Answers, Existing, key_place
from portretry_udev.terminal import Terminal
from portretry_udev.wizard import Choice, Key, Ports


@dataclass
class Interview:
    """One run of the questions.

    Attributes:
        given: what flags say.
        there: the configuration as it is.
        layout: where a key would be.
        devices: of this machine.
        person: who is asked.
    """

    given: Given
    there: Existing
    layout: Layout
    devices: Devices
    person: Person

    def answers(self) -> Answers:
        """All that has to be known.

        Raises:
            Unanswered: nobody is there, and something is not clear.
            KeyTrouble: a key's file cannot be used.
            LoginTrouble: a key cannot.
            Trouble: OctoPrint did not answer.
            Abort: the person has gone.
        """
        given, printers = self.given, self.there.printers
        found = wizard.octoprint(
            given.octoprint, given.name, printers, _OctoPrints(given.ca_file), self.person
        )
        self.person.say(plain(f"OctoPrint {wizard.spoken(found)} answers."))
        if found.trouble is not None and found.trouble.why is Why.NEW:  # it takes no key, and gives none
            raise found.trouble
        old = self.there.printer(given.name) if given.name else self.there.at(found.url)
        key = self._key(found, old)
        port = self._port(old, self._look(found, key))
        name = given.name or (old.name if old else None)
        if name is None:
            name = wizard.name(port, (printer.name for printer in printers), self.person)
        return Answers(name, found.url, key, port, given.interval, given.ca_file)

    def _key(self, found: Found, old: Printer | None) -> Key:
        """A key that works; whose it is, is said."""
        name = self.given.name or (old.name if old else None)
        stored = key_place(name, self.there, self.layout).file if name else None
        keys = _Keys(self.given, found.url)
        key = wizard.key(self.given.api_key_file, stored, keys, self.person, make=self.given.create_user)
        account = key.account
        more = "  It can do all that this user can." if account.can_more and key.stored is None else ""
        self.person.say(plain(f"OctoPrint {account.version} takes the key of its user {account.name}.{more}"))
        return key

    def _look(self, found: Found, key: Key) -> Answer:
        """What OctoPrint is doing; what should be known of it is said."""
        client = Client(found.url, lambda: key.secret, ca_file=self.given.ca_file)
        with contextlib.closing(client):
            answer = client.look()
            sayings = client.about().sayings()
        for saying in (*sayings, *([answer.aside] if answer.aside else [])):
            self.person.say(plain(f"Mind: {saying}."))
        return answer

    def _port(self, old: Printer | None, answer: Answer) -> Choice:
        """Which port it is; what to know of it is said."""
        printers = self.there.printers
        others = frozenset(printer.name for printer in printers if printer is not old)

        def look() -> Ports:
            return Ports(listing.gather(self.devices, printers, {}), answer, others, old)

        ports = look()
        choice = wizard.given_port(self.given.port, self.given.match, ports)
        choice = choice or wizard.port(look, self._plugging, self.person)
        self.person.say(plain(f"Port: {choice}{f' ({choice.why})' if choice.why else ''}"))
        if line := ports.unoffered(choice):
            self.person.say(
                "OctoPrint does not offer this port.  In its settings, Serial Connection, add this line to "
                "Additional serial ports:"
            )
            self.person.say(f"  {plain(line)}")
        return choice

    def _plugging(self) -> Sequence[Port]:
        if not isinstance(self.person, Terminal):
            return []
        return terminal.replug(self.devices, self.person)


class _OctoPrints:
    """OctoPrints of this machine, or where somebody says."""

    def __init__(self, ca_file: Path | None) -> None:
        self._ca_file = ca_file

    def search(self, first: Sequence[str]) -> tuple[list[Found], Mapping[str, Trouble]]:
        return finding.search([*first, *finding.addresses()], self.examine)

    def examine(self, url: str) -> Found:
        return finding.examine(url, self._ca_file)


@dataclass(frozen=True)
class _Keys:
    """The keys of one OctoPrint."""

    given: Given
    url: str

    def judged(self, key: str) -> Account:
        with contextlib.closing(Rest(self.url, lambda: key, ca_file=self.given.ca_file)) as rest:
            account = login.whose(rest)
            login.judge(account, rest.who)
        return account

    def asked(self) -> str:
        return cli_login.ask_for_key(self._place, self.given.user, login.LONGEST)

    def made(self) -> str:
        stdin = self.given.password_stdin
        return cli_login.key_of_new_account(self._place, self.given.user, login.APP, password_stdin=stdin)

    @property
    def _place(self) -> Place:
        return Place("", self.url, None, self.given.ca_file)
