"""What `setup` writes: the answers become a configuration, and with it an installation.

Knows where a printer's key belongs, and what of the configuration changes.  Must not know the terminal, nor
who gave the answers (``wizard``).  All of it is a plan first, checked as the service will check it; then all
of it is written, or nothing.
"""

import contextlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from portretry_udev import config_edit, files, install, installation, login, program
from portretry_udev.activation import Machine, Run
from portretry_udev.config import Config, Printer, Wrong, judge
from portretry_udev.install import File, InstallTrouble, Kind, Layout, Written
from portretry_udev.installation import Planned
from portretry_udev.keys import KeySource, KeyTrouble
from portretry_udev.wizard import Choice, Key

_HEAD = f"# portretry-udev's printers; {install.EXAMPLE} explains every setting.\n"


# -- what is there -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Existing:
    """The configuration as it is.

    Attributes:
        path: its file.
        text: what is in it; empty: it is not there.
        printers: those in it.
    """

    path: Path
    text: str = ""
    printers: tuple[Printer, ...] = ()

    def printer(self, name: str | None) -> Printer | None:
        """The one of that name."""
        return next((printer for printer in self.printers if printer.name == name), None)

    def at(self, octoprint: str) -> Printer | None:
        """The one of that OctoPrint, if there is one and no other."""
        found = [printer for printer in self.printers if printer.octoprint == octoprint]
        return found[0] if len(found) == 1 else None


def existing(path: Path) -> Existing:
    """Read it.

    Raises:
        Wrong: there are mistakes in it, which have to be mended first; or it cannot be read.
    """
    try:
        text = path.read_bytes().decode()
        printers = tomllib.loads(text).get("printers")
    except FileNotFoundError:
        return Existing(path)
    except OSError as e:
        raise Wrong([f"{path}: cannot be read: {e.strerror}"]) from None
    except (ValueError, RecursionError):
        printers = True  # `judge` has the words for it
        text = path.read_bytes().decode(errors="replace")
    return Existing(path, text, judge(text, path).printers if printers else ())


# -- what is to be -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answers:
    """What the questions came to.

    Attributes:
        name: the printer's.
        octoprint: its OctoPrint's URL.
        key: that works there.
        port: as it is to be configured.
        interval: seconds; None: nobody has said.
        ca_file: certificates to trust; None: nobody has said.
    """

    name: str
    octoprint: str
    key: Key
    port: Choice
    interval: float | None = None
    ca_file: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be written and done.

    Attributes:
        name: the printer's.
        config: the configuration to be.
        key_file: where the printer's key is, or will be.
        key: to be stored there; None: it is there.
        planned: the files, the configuration first, and the commands after them.
    """

    name: str
    config: Config
    key_file: Path
    key: str | None = field(repr=False)
    planned: Planned

    @property
    def is_needed(self) -> bool:
        """Something would be written or done."""
        return self.key is not None or self.planned.is_needed

    @property
    def key_is_new(self) -> bool:
        """No key is there yet; otherwise one is replaced."""
        return not self.key_file.exists()


@dataclass(frozen=True)
class KeyPlace:
    """Where a key belongs.

    Attributes:
        file: as it is reached from here.
        setting: as the configuration names it; None: it is found without.
    """

    file: Path
    setting: str | None = None


def key_place(name: str, there: Existing, layout: Layout, stored: Path | None = None) -> KeyPlace:
    """Where the key of a printer is, or is to be stored.

    A file that was given is used where it is, unless the service would not see it there: in a home, in a
    folder for a moment, or beside the system that is in the making.
    """
    old = there.printer(name)
    if old is not None and old.key.path is not None and stored in (None, layout.at(old.key.path)):
        return KeyPlace(layout.at(old.key.path), str(old.key.path))
    if stored is not None and installation.is_here(layout) and not program.is_hidden(stored):
        usual = stored == layout.config.with_name(f"{name}.key") and there.path == layout.config
        return KeyPlace(stored, None if usual else str(stored))
    file = there.path.with_name(f"{name}.key")
    return KeyPlace(file, None if there.path == layout.config else str(file))


def composed(answers: Answers, there: Existing, place: KeyPlace) -> str:
    """The configuration to be.  Of a printer that is there already, only what differs is changed.

    Raises:
        Unsure: its table cannot be changed for certain.
    """
    port = answers.port
    wishes: dict[str, config_edit.Value] = {
        "octoprint": answers.octoprint,
        "ca_file": str(answers.ca_file) if answers.ca_file else None,
        "api_key_file": place.setting,
        "port": port.port,
        "match": dict(port.match) or None,
        "interval": answers.interval,
    }
    old = there.printer(answers.name)
    if old is not None:
        known: dict[str, object] = {
            "octoprint": old.octoprint,
            "ca_file": wishes["ca_file"] or (str(old.ca_file) if old.ca_file else None),
            "api_key_file": str(old.key.path) if old.key.path else None,
            "port": old.port,
            "match": dict(old.match) or None,
            "interval": old.interval,
        }
        kept = {"ca_file": answers.ca_file, "interval": answers.interval}  # nobody has said otherwise
        wishes = {
            setting: value
            for setting, value in wishes.items()
            if value != known[setting] and not (setting in kept and kept[setting] is None)
        }
    return config_edit.with_printer(there.text or _HEAD, answers.name, wishes)


@dataclass(frozen=True)
class Installing:
    """How the installation is to be.

    Attributes:
        layout: where.
        program: what the service runs; None: rule and unit are not installed.
        start: the service may be started.
        run: asks systemd how things are.
    """

    layout: Layout
    program: Path | None
    start: bool
    run: Run


def plan(answers: Answers, there: Existing, installing: Installing) -> Plan:
    """See what is to be written and done; nothing is.

    Raises:
        Wrong: the configuration would have mistakes; they are told as the service would tell them.
        Unsure: it cannot be changed for certain.
        InstallTrouble: what is there cannot be read.
        LoginTrouble: the key cannot be stored where it belongs.
    """
    layout, key = installing.layout, answers.key
    place = key_place(answers.name, there, layout, key.stored)
    text = composed(answers, there, place)
    config = judge(text, there.path)
    new_key = None if _holds(place.file, key.secret) else key.secret
    if new_key is not None:
        login.judge_place(place.file)
    root = layout.root if there.path.is_relative_to(layout.root) else Path("/")
    (change,) = install.changes([File(there.path, text.encode(), "the configuration")], root)
    if change.kind is Kind.OFF:
        raise InstallTrouble(
            f"{there.path} is a link to /dev/null: name another file with --config", there.path
        )
    planned = Planned(layout, Machine(), (), ())
    if installing.program is not None:
        planned = installation.plan(
            layout,
            program=installing.program,
            config=config,
            run=installing.run,
            startable=installing.start,
            config_changed=change.is_needed or new_key is not None,
        )
    whole = replace(planned, changes=(change, *planned.changes))
    return Plan(answers.name, config, place.file, new_key, whole)


def _holds(path: Path, secret: str) -> bool:
    """Whether a key is there already, and kept well enough."""
    try:
        return KeySource.from_file(path).read() == secret
    except KeyTrouble:
        return False


# -- how it comes ------------------------------------------------------------------------------------------
def write(planned: Plan) -> Sequence[Written]:
    """Write the key and all files, or nothing: also if it is interrupted.

    Raises:
        InstallTrouble: a file cannot be written.
        LoginTrouble: the key cannot.
    """
    with contextlib.ExitStack() as undo:
        if planned.key is not None:
            old = None if planned.key_is_new else planned.key_file.read_bytes()
            undo.callback(_put_back, planned.key_file, old)
            login.store(planned.key_file, planned.key)
        written = install.carry_out(planned.planned.changes)
        undo.pop_all()
    return written


def _put_back(path: Path, old: bytes | None) -> None:
    if old is None:
        path.unlink(missing_ok=True)
    else:
        files.write(path, old)


def written_paths(planned: Plan) -> list[Path]:
    """The files that this writes, the key's first."""
    changed = [change.file.path for change in planned.planned.changes if change.is_needed]
    return changed if planned.key is None else [planned.key_file, *changed]
