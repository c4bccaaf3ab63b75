"""Our files in the system: which, where, what would change, and how they come and go.

Knows the places of udev's rules, systemd's units and our own folders, on this machine or in a folder that
will be one (``Layout``).  Must not know the terminal, nor tell udev or systemd anything (``activation``).

A plan is data: it is shown, asked about and tested before anything is written, and `carry_out` does what was
shown or nothing.  What an administrator has said stands: a link to /dev/null, which is how udev and systemd
let a file be switched off, is left alone; a file that was changed by hand is kept beside the new one.
"""

import contextlib
import difflib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from portretry_udev import files
from portretry_udev.config import Config, Printer
from portretry_udev.udev_rule import UNIT, Unwritable, rules_for
from portretry_udev.unit import DROP_IN, drop_in, needs

RULE = "99-portretry.rules"
PRINTERS = "99-portretry-printers.rules"
EXAMPLE = "config.example.toml"
PACKAGED_PROGRAM = Path("/usr/bin/portretry-udev")  # what the unit runs as it is shipped

_RULES = "etc/udev/rules.d"
_UNITS = "etc/systemd/system"
_OURS = b"# portretry-udev"  # how each of our rules and units begins
_NEEDS = (
    "# portretry-udev: what its configuration needs beyond the unit.  Made from it; changes here are lost.\n"
)
_GENERATED = (b"# portretry-udev: the ports of the configured printers.", _NEEDS.encode())
_MOST = 1 << 20  # bytes of a file that is compared; ours have a few thousand


class InstallTrouble(Exception):  # noqa: N818 - as the other troubles
    """A file of ours cannot be read, written or taken away; the text is one line for people.

    Attributes:
        path: which.
        forbidden: it is a matter of who asks: root may.
        is_half: something was done before it, and could not be taken back.
    """

    def __init__(self, text: str, path: Path, *, forbidden: bool = False, is_half: bool = False) -> None:
        super().__init__(text)
        self.path = path
        self.forbidden = forbidden
        self.is_half = is_half


# -- where ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Layout:
    """The places of our files.

    Attributes:
        root: "/" is this machine; another folder is one in the making, and nothing outside it is touched.
        vendor: rule and unit where packages put them; printers' rules and configuration stay in /etc.
    """

    root: Path = Path("/")
    vendor: bool = False

    def at(self, place: str | Path) -> Path:
        """An absolute place of the system, as it is reached from here."""
        return self.root / str(place).lstrip("/")

    @property
    def rule(self) -> Path:
        """The rule for all machines."""
        return self.at("usr/lib/udev/rules.d" if self.vendor else _RULES) / RULE

    @property
    def printers(self) -> Path:
        """The rules of the configured printers."""
        return self.at(_RULES) / PRINTERS

    @property
    def unit(self) -> Path:
        """The service."""
        return self.at("usr/lib/systemd/system" if self.vendor else _UNITS) / UNIT

    @property
    def config(self) -> Path:
        """The configuration, which `install` never writes."""
        return self.at("etc/portretry-udev/config.toml")

    @property
    def example(self) -> Path:
        """Every setting, commented; nothing reads it."""
        if self.vendor:
            return self.at("usr/share/doc/portretry-udev/examples") / EXAMPLE
        return self.config.with_name(EXAMPLE)

    @property
    def state(self) -> Path:
        """What survives a restart of the service."""
        return self.at("var/lib/portretry-udev")

    @property
    def runtime(self) -> Path:
        """The control socket's folder."""
        return self.at("run/portretry-udev")

    @property
    def dropins(self) -> Path:
        """What `systemctl edit` makes."""
        return self.at(_UNITS) / f"{UNIT}.d"

    @property
    def needs(self) -> Path:
        """What a configuration needs of the service beyond the unit."""
        return self.dropins / DROP_IN.name


def shipped(name: str, place: str = "") -> bytes:
    """A file that came with the program: in its package, or in the checkout that it runs from.

    Args:
        name: the file's.
        place: its folder in a checkout.
    """
    packaged = Path(__file__).parent / "share" / name
    return (packaged if packaged.exists() else checkout() / place / name).read_bytes()


def checkout() -> Path:
    """The top of the source tree, if this is one."""
    return Path(__file__).parents[2]


def is_checkout() -> bool:
    """Whether the program runs from a source tree, which changes under a service's feet."""
    return not (Path(__file__).parent / "share").exists() and (checkout() / "pyproject.toml").exists()


class Configured(Protocol):
    """What is needed of `config.Config`, or of `config.Survey`."""

    @property
    def printers(self) -> Sequence[Printer]:
        """Those that were configured."""

    @property
    def state_dir(self) -> Path | None:
        """Where the service remembers holds; None: unknown."""

    @property
    def control(self) -> Path | None:
        """The control socket, if it is not the usual one."""

    @property
    def metrics_textfile(self) -> Path | None:
        """Where metrics go, if anywhere."""


# -- what belongs there -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class File:
    """A file of ours.

    Attributes:
        path: where, from here.
        data: all of it.
        what: it is, for people.
        packaged: where a package may have put the same.
    """

    path: Path
    data: bytes
    what: str
    packaged: Path | None = None


@dataclass(frozen=True)
class Wanted:
    """What belongs there, and which printers' ports no rule can name (one line each)."""

    files: tuple[File, ...]
    troubles: tuple[str, ...] = ()


def wanted(
    layout: Layout,
    *,
    program: Path,
    config: Configured | None,
    unit: bool = True,
    majors: Iterable[int] = (),
) -> Wanted:
    """The files of an installation.

    Args:
        layout: their places.
        program: what the unit is to run.
        config: whose printers get rules; None: nobody has configured any.
        unit: there is a systemd that could use one.
        majors: device numbers of configured ports.
    """
    vendor = Layout(layout.root, vendor=True)
    rule = shipped(RULE, "udev")
    found = [File(layout.rule, rule, "the udev rule", None if layout.vendor else vendor.rule)]
    troubles: list[str] = []
    if config is not None and not layout.vendor:
        text, troubles = printers_rules(config.printers)
        found.append(File(layout.printers, text.encode(), "the udev rules of your printers"))
    if unit:
        text = unit_for(program)
        found.append(File(layout.unit, text.encode(), "the service", None if layout.vendor else vendor.unit))
        if config is not None and not layout.vendor:
            found += _needs(layout, config, majors)
    example = File(
        layout.example,
        shipped(EXAMPLE),
        "an example of a configuration",
        None if layout.vendor else vendor.example,
    )
    return Wanted((*found, example), tuple(troubles))


def _needs(layout: Layout, config: Configured, majors: Iterable[int]) -> Iterator[File]:
    """The drop-in, if the configuration needs one, or has needed one before."""
    whole = Config(
        tuple(config.printers), config.state_dir or layout.state, config.control, config.metrics_textfile
    )
    text = drop_in(needs(whole, majors))
    if text or layout.needs.exists():
        yield File(
            layout.needs,
            (_NEEDS + (text.partition("\n")[2] or "# Nothing, by now.\n")).encode(),
            "what your configuration needs of the service",
        )


def unit_for(program: Path) -> str:
    """The text of the unit, running that program."""
    shipped_start, start = f"ExecStart={PACKAGED_PROGRAM} ", f"ExecStart={program} "
    text = shipped(UNIT, "systemd").decode()
    if text.count(shipped_start) != 1:
        raise RuntimeError(f"{UNIT} does not run {PACKAGED_PROGRAM} exactly once")
    return text.replace(shipped_start, start)


def printers_rules(printers: Iterable[Printer]) -> tuple[str, list[str]]:
    """Rules for all printers that a rule can name, and why it cannot name the others."""
    good, troubles = [], []
    for printer in printers:
        try:
            rules_for([printer])
        except Unwritable as trouble:
            troubles.append(str(trouble))
        else:
            good.append(printer)
    return rules_for(good), troubles


# -- what would change ------------------------------------------------------------------------------------
class Kind(Enum):
    """What becomes of a file."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"
    OFF = "off"
    """An administrator has switched it off, by a link to /dev/null (or, a unit, by an empty file)."""
    PACKAGED = "packaged"
    """A package has put the very same where packages do."""


@dataclass(frozen=True)
class Change:
    """A file, and what is in its place now.

    Attributes:
        file: as it is to be.
        kind: what becomes of it.
        old: what is there, or what a link there leads to; None: nothing.
        link: what leads elsewhere, if it is a link; the link is replaced, and what it leads to left alone.
    """

    file: File
    kind: Kind
    old: bytes | None = None
    link: str | None = None

    @property
    def is_needed(self) -> bool:
        """Something would be written."""
        return self.kind in (Kind.NEW, Kind.CHANGED)

    @property
    def keeps_old(self) -> bool:
        """What is there may be somebody's work; not so where it says itself that changes are lost."""
        is_generated = self.link is None and (self.old or b"").startswith(_GENERATED)
        return self.kind is Kind.CHANGED and not is_generated

    def diff(self) -> list[str]:
        """The difference for people; empty if there is none."""
        if self.kind is not Kind.CHANGED:
            return []
        old, new = (data.decode(errors="replace").splitlines() for data in (self.old or b"", self.file.data))
        path = str(self.file.path)
        lines = list(difflib.unified_diff(old, new, path, f"{path} (new)", n=1, lineterm=""))
        return lines or ["(only the ends of lines differ)"]


def changes(wanted: Iterable[File], root: Path = Path("/")) -> tuple[Change, ...]:
    """Compare what is there with what belongs there; nothing is written.

    Raises:
        InstallTrouble: a file cannot be read, or its folder is a link that leads out of ``root``.
    """
    return tuple(_change(file, root) for file in wanted)


def _change(file: File, root: Path) -> Change:
    _judge_place(file.path, root)
    old, link = _read(file.path), _link(file.path)
    if old is None and link is None:
        packaged = None if file.packaged is None else _read(file.packaged)
        return Change(file, Kind.PACKAGED if packaged == file.data else Kind.NEW)
    if link == os.devnull or (old == b"" and file.path.suffix == ".service"):
        return Change(file, Kind.OFF, old, link)
    return Change(file, Kind.SAME if old == file.data else Kind.CHANGED, old, link)


def _judge_place(path: Path, root: Path) -> None:
    """What is written below a root stays below it, also where its folders are links."""
    if root != Path("/") and not path.parent.resolve().is_relative_to(root.resolve()):
        raise InstallTrouble(f"{path.parent} leads out of {root}: nothing is written there", path)


def _read(path: Path) -> bytes | None:
    """What is there; None: nothing.  A device such as /dev/null is empty."""
    try:
        found = path.stat()
        if stat.S_ISCHR(found.st_mode):
            return b""
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST:
            raise InstallTrouble(f"{path} is in the way: it is no file of ours", path)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise _trouble(e, path, "read") from e


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None  # it is none, or nothing is there; reading it has told what else may be


def _trouble(error: OSError, path: Path, verb: str) -> InstallTrouble:
    forbidden = isinstance(error, PermissionError) and os.geteuid() != 0
    return InstallTrouble(f"{path} cannot be {verb}: {error.strerror or error}", path, forbidden=forbidden)


# -- how they come ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Written:
    """A file that was written, and where what was there before is kept."""

    change: Change
    backup: Path | None = None


def carry_out(planned: Iterable[Change]) -> tuple[Written, ...]:
    """Write what is needed: all of it, or nothing.

    Raises:
        InstallTrouble: a file cannot be written; what was written before it has been taken back, unless
            that failed as well (``is_half``).
    """
    with contextlib.ExitStack() as undo:
        written = tuple(_write(change, undo) for change in planned if change.is_needed)
        undo.pop_all()
    return written


def _write(change: Change, undo: contextlib.ExitStack) -> Written:
    path = change.file.path
    try:
        for folder in _missing(path.parent):
            undo.callback(_remove_if_empty, folder)
        files.make_folder(path.parent)
        mode = _mode(path)
        backup, is_new = _keep(change) if change.keeps_old else (None, False)
        undo.callback(_put_back, change, mode, backup if is_new else None)
        files.write(path, change.file.data, mode)
    except OSError as e:
        raise _trouble(e, path, "written") from e
    return Written(change, backup)


def _missing(folder: Path) -> Iterator[Path]:
    """The folders that will have to be made, the outer ones first."""
    yield from reversed([each for each in (folder, *folder.parents) if not each.exists()])


def _keep(change: Change) -> tuple[Path, bool]:
    """Put what is there aside; returns where, and whether it was not there already.

    That is under the first name beside it that is free or holds the same.
    """
    path, number = change.file.path, 1
    while os.path.lexists(backup := path.with_name(f"{path.name}~{number if number > 1 else ''}")):
        if change.link is None and not backup.is_symlink() and _read(backup) == change.old:
            return backup, False
        number += 1
    if change.link is None:
        files.write(backup, change.old or b"", _mode(path))
    else:
        backup.symlink_to(change.link)
    return backup, True


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else files.PUBLIC


def _put_back(change: Change, mode: int, kept: Path | None) -> None:
    """As it was before: by moving what was kept of it, which needs no room on the disk, if there is such."""
    path = change.file.path
    try:
        if kept is not None:
            kept.replace(path)
        elif change.old is None and change.link is None:
            path.unlink(missing_ok=True)
        elif _read(path) != change.old:
            files.write(path, change.old or b"", mode)
    except OSError as e:
        kept_as = "" if kept is None else f"; what was there is kept as {kept}"
        text = f"{path} cannot be put back as it was: {e.strerror or e}{kept_as}"
        raise InstallTrouble(text, path, is_half=True) from e


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else has put something there, and it is theirs
        folder.rmdir()
