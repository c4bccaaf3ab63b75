"""What of ours is in the system, and how it goes.

Knows how our files are told from others': rules and units by their first line, the rest by its name in
folders of our own.  Must not know the terminal, nor tell udev or systemd anything (``activation``).

What is not ours stays, whatever its name, and is said.  So do a person's settings: configuration, keys, what
the service remembers, and what was kept of files that were changed by hand; `purge` takes those, too.
"""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from portretry_udev.install import EXAMPLE, PRINTERS, RULE, InstallTrouble, Layout
from portretry_udev.udev_rule import UNIT

ECHO = "99-portretry-echo.rules"
_OURS = b"# portretry-udev"  # how each of our rules, units and drop-ins begins
_KEY = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\.key"
_SETTINGS = re.compile(rf"config\.toml|{_KEY}")
_NAMES = "|".join((*map(re.escape, (RULE, PRINTERS, ECHO, UNIT, EXAMPLE, "config.toml")), _KEY))
_KEPT = re.compile(rf"({_NAMES})~\d*")  # what `install` and `setup` keep of a file that was changed by hand
_HALF = re.compile(rf"\.({_NAMES})(~\d*)?\.[0-9a-f]{{8}}")  # what a power cut leaves of one (files.write)


@dataclass(frozen=True)
class Item:
    """A file or folder, and what it is, or why it stays."""

    path: Path
    what: str


@dataclass(frozen=True)
class Plan:
    """What goes and what stays.

    Attributes:
        goes: files, links, and the folder of the service's state with all that is in it.
        stays: a person's settings, and what is not ours.
        folders: our own; each goes if nothing is left in it, the inner ones first.
        packaged: the unit that a package has put here, which is the package's to take away.
    """

    goes: tuple[Item, ...]
    stays: tuple[Item, ...]
    folders: tuple[Path, ...]
    packaged: Path | None = None

    @property
    def rules(self) -> bool:
        """A rule goes."""
        return any(item.path.suffix == ".rules" for item in self.goes)

    @property
    def unit(self) -> bool:
        """The unit goes, or what is added to it."""
        return any(item.path.name == UNIT or item.path.parent.name == f"{UNIT}.d" for item in self.goes)


def plan(layout: Layout, *, purge: bool = False, ending: bool = False) -> Plan:
    """See what is there; nothing is taken away.

    Args:
        layout: where.
        purge: a person's settings go, too.
        ending: the service runs and will be ended before: its socket goes with it.

    Raises:
        InstallTrouble: a folder cannot be looked into.
    """
    found = _Found(purge=purge)
    vendor = Layout(layout.root, vendor=True)
    packaged = vendor.unit if vendor.unit.exists() else None
    for name in (RULE, PRINTERS, ECHO):
        found.marked(layout.rule.with_name(name), "a udev rule")
    found.marked(layout.unit, "the service")
    if packaged is None:
        for link in _wants(layout.unit.parent):
            found.goes(link, "the service's start at boot")
    for dropin in _inside(layout.dropins):
        found.marked(dropin, "a change of the service")
    for path in _inside(layout.config.parent):
        found.setting(path)
    found.state(layout.state)
    if not ending:
        found.socket(layout.runtime / "control.sock")
    for folder in (layout.rule.parent, layout.unit.parent):
        found.beside(folder)
    for path in (vendor.rule, vendor.unit):
        if path.exists():
            found.stays(path, "a package's; it goes with the package (apt remove portretry-udev)")
    folders = (layout.dropins, layout.config.parent, layout.state, layout.runtime)
    return Plan(
        tuple(found.going), tuple(found.staying), tuple(each for each in folders if each.is_dir()), packaged
    )


class _Found:
    """What was found so far."""

    def __init__(self, *, purge: bool) -> None:
        self._purge = purge
        self.going: list[Item] = []
        self.staying: list[Item] = []

    def goes(self, path: Path, what: str) -> None:
        self.going.append(Item(path, what))

    def stays(self, path: Path, why: str) -> None:
        self.staying.append(Item(path, why))

    def _settings(self, path: Path, what: str) -> None:
        if self._purge:
            self.goes(path, what)
        else:
            self.stays(path, f"{what}; --purge takes it away, too")

    def marked(self, path: Path, what: str) -> None:
        """A file that says at its top whose it is."""
        if not os.path.lexists(path):
            return
        if path.is_symlink() and str(path.readlink()) == os.devnull:
            self.stays(path, "switches a file of ours off, as you said")
        elif _HALF.fullmatch(path.name):
            self.goes(path, "left by a power cut")
        elif _begins(path):
            self.goes(path, what)
        else:
            self.stays(path, f"not ours: it does not begin with {_OURS.decode()!r}")

    def setting(self, path: Path) -> None:
        """Something in the folder of the configuration."""
        if path.name == EXAMPLE:
            self.goes(path, "an example of a configuration")
        elif _HALF.fullmatch(path.name):
            self.goes(path, "left by a power cut")
        elif _SETTINGS.fullmatch(path.name):
            self._settings(path, "an API key" if path.suffix == ".key" else "the configuration")
        elif _KEPT.fullmatch(path.name):
            self._settings(path, "kept of a file that was changed")
        else:
            self.stays(path, "not ours")

    def state(self, folder: Path) -> None:
        private = folder.parent / "private" / folder.name  # systemd's, of a service with a user of its own
        if folder.is_symlink() and str(folder.readlink()) in (f"private/{folder.name}", str(private)):
            self._settings(folder, "what the service remembers")
            if self._purge:
                self.goes(private, "what the service remembers")
        elif folder.is_symlink():
            self.stays(folder, "a link, and not ours")
        elif next(_inside(folder), None) is not None:
            self._settings(folder, "what the service remembers")

    def socket(self, path: Path) -> None:
        """The control socket; systemd takes it away with the service, unless that was started by hand."""
        if not os.path.lexists(path):
            return
        if is_answered(path):
            self.stays(path, "somebody answers there: the service runs")
        else:
            self.goes(path, "left by a service that has gone")

    def beside(self, folder: Path) -> None:
        """What was kept of our files in a folder that is not ours, and what a power cut left of them."""
        for path in _inside(folder):
            if _KEPT.fullmatch(path.name):
                self._settings(path, "kept of a file that was changed")
            elif _HALF.fullmatch(path.name):
                self.goes(path, "left by a power cut")


def carry_out(plan: Plan) -> list[Path]:
    """Take away what goes; says which folders of ours had to stay because something is in them.

    Raises:
        InstallTrouble: something cannot be taken away; what is left goes with the next try.
    """
    for item in plan.goes:
        try:
            if item.path.is_dir() and not item.path.is_symlink():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
        except OSError as e:
            forbidden = isinstance(e, PermissionError) and os.geteuid() != 0
            text = f"{item.path} cannot be taken away: {e.strerror or e}"
            raise InstallTrouble(text, item.path, forbidden=forbidden) from e
    for folder in plan.folders:
        with contextlib.suppress(OSError):  # what stays in it has been told
            folder.rmdir()
    return [folder for folder in plan.folders if folder.is_dir()]


def is_answered(path: Path) -> bool:
    """Whether a service listens at that socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1)
            client.connect(str(path))
    except PermissionError:
        return True  # whoever is there does not answer us, and we may not take it away either
    except OSError:
        return False
    return True


def _inside(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as e:
        forbidden = isinstance(e, PermissionError) and os.geteuid() != 0
        raise InstallTrouble(f"{folder}: {e.strerror or e}", folder, forbidden=forbidden) from e


def _wants(units: Path) -> Iterator[Path]:
    """The links by which the service is enabled."""
    for folder in (*units.glob("*.wants"), *units.glob("*.requires")):
        if (folder / UNIT).is_symlink():
            yield folder / UNIT


def _begins(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_OURS)) == _OURS
    except OSError:
        return False  # a folder, or a link to nowhere: nothing that we have written
