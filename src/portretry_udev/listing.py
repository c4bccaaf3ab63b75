"""The serial ports as a person wants to see them: whose they are, and by which name to configure one.

Knows what the other modules found out (devices, holders, OctoPrint's answers), puts it together, and words
it.  Must not open a port, ask an OctoPrint or print: the commands do.

A name is *unusable* when it may be another board's as well.  udev makes a by-id name of maker, model and
serial number, so boards without a serial number share theirs (the last one plugged has the link), and so do
those with the number that the chip came with.
"""

import contextlib
import dataclasses
import json
import os
import re
import select
import stat
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import click

from portretry_udev import matching
from portretry_udev.config import Printer
from portretry_udev.devices import Missing, Node, Port, Uevent, Wanted
from portretry_udev.octoprint import Answer, offered
from portretry_udev.port import Holder, holders

WIDTH = 80  # columns; a narrower terminal gets fewer

_NODES = ("ttyUSB*", "ttyACM*")  # where a container may have nodes of devices that are not its own

# What a bridge chip or a chip maker's example calls itself says nothing of the printer.
_NAMELESS = re.compile(r"serial|uart|usb|bridge|cdc|acm|virtual|stm32|composite|ch34", re.IGNORECASE)
_NAME_LENGTH = 24  # characters of a proposed name; a configuration takes 64

_LOOK_PERIOD = 5.0  # seconds between looks while events are heard; PortRetry's interval
_QUICK_PERIOD = 1.0  # seconds, where no events can be heard, or udevd has yet to finish with a port


class Ports(Protocol):
    """What is used of `devices.Devices`."""

    def ports(self) -> list[Port]:
        """Give all serial ports that have hardware."""

    def find(self, wanted: Wanted, /) -> Node | Missing:
        """Look for one device."""


class Heard(Ports, Protocol):
    """What is used of a `devices.Devices` that listens."""

    @property
    def retry_at(self) -> float | None:
        """When to read though nothing was heard (monotonic seconds)."""

    @property
    def events(self) -> str:
        """``none``: no uevents can arrive here."""

    def fileno(self) -> int:
        """Give the descriptor to wait on."""

    def read(self) -> list[Uevent]:
        """Give the news; never waits."""


@dataclass(frozen=True)
class Row:
    """One serial port, with all that is known of it.

    Attributes:
        port: what udev and sysfs say.
        holders: the processes that have it open; None: it could not be looked at.
        trouble: why not.
        unusable: the names (fields of `Port`) that must not be configured, with the reason.
        printer: the configured printer that it is.
        octoprint: by printer, what the OctoPrint of that one calls it.
        stale: why its node does not lead to it (containers); None: it does.
        unseen: processes of other users that could not be looked into: one of them may have it open.
    """

    port: Port
    holders: tuple[Holder, ...] | None = ()
    trouble: str | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)
    printer: str | None = None
    octoprint: Mapping[str, str] = field(default_factory=dict)
    stale: str | None = None
    unseen: int = 0

    @property
    def links(self) -> list[str]:
        """Its stable names."""
        return [link for link in (self.port.by_id, self.port.by_path) if link]

    def as_json(self) -> dict[str, Any]:
        """The same for programs: the fields of `Port`, and beside them ours."""
        found = self.holders
        return {
            **dataclasses.asdict(self.port),
            "holders": None if found is None else [spoken(each) for each in found],
            "held_by": None if found is None else [dataclasses.asdict(each) for each in found],
            "trouble": self.trouble,
            "printer": self.printer,
            "octoprint": dict(self.octoprint),
            "unusable": dict(self.unusable),
            "stale": self.stale,
            "unseen": self.unseen,
        }


# -- putting it together -----------------------------------------------------------------------------------
def gather(
    devices: Ports, printers: Sequence[Printer], answers: Mapping[str, Answer], dev: Path = Path("/dev")
) -> list[Row]:
    """Every serial port: those with a USB identity first, in a person's order; nothing is opened.

    Also those that udev does not list by the name they have here: Klipper's pty, if a printer is configured
    there, and nodes in a container, where they may be stale or have other names.

    Args:
        devices: of this machine.
        printers: the configured ones.
        answers: what their OctoPrints said, by the printer's name.
        dev: where the nodes are, for tests.
    """
    listed = devices.ports()
    homes = {printer.name: _home(devices, printer, answers.get(printer.name)) for printer in printers}
    strangers = _unlisted(devices, listed, [node for node in homes.values() if node], dev)
    rows = []
    for port in [*listed, *strangers]:
        held, unseen, trouble = _held(port.node)
        found = devices.find(Wanted(port.node))
        links = [link for link in (port.by_id, port.by_path) if link]
        names = {name: offered(answer.ports, port.node, links) for name, answer in answers.items()}
        rows.append(
            Row(
                port,
                held,
                trouble,
                unusable(port, listed),
                next((name for name, node in homes.items() if node and _is_same(port.node, node)), None),
                {name: found for name, found in names.items() if found},
                found.why if isinstance(found, Missing) and not found.settling else None,
                unseen,
            )
        )
    return sorted(rows, key=lambda row: row.port.vendor is None)  # stable: built-in ports come last


def wanted(printer: Printer, answer: Answer | None) -> Wanted | None:
    """Which device a printer is: as configured, else as OctoPrint's settings name it; None: nobody does."""
    if printer.port or printer.match:
        return Wanted(printer.port, printer.match)
    told = printer.octoprint_settings.port if printer.octoprint_settings else None
    path = told or (answer.preferred_port if answer else None)
    return Wanted(path) if path else None


def _home(devices: Ports, printer: Printer, answer: Answer | None) -> Node | None:
    wish = wanted(printer, answer)
    found = devices.find(wish) if wish else None
    return found if isinstance(found, Node) else None


def _is_same(path: str, node: Node) -> bool:
    """By name or by number: a container may have the device under another name."""
    return path == node.real or _number(path) == node.number


def _number(path: str) -> int | None:
    """Major and minor of a device node; None: there is none."""
    with contextlib.suppress(OSError):
        found = Path(path).stat()
        return found.st_rdev if stat.S_ISCHR(found.st_mode) else None
    return None


def _unlisted(devices: Ports, listed: Sequence[Port], homes: Iterable[Node], dev: Path) -> Iterator[Port]:
    known = {port.node for port in listed}
    for node in homes:
        if node.real not in known and not any(_is_same(name, node) for name in known):
            known.add(node.real)
            yield _port(node)
    for path in sorted(str(each) for pattern in _NODES for each in dev.glob(pattern)):
        if path not in known and _number(path) is not None:
            found = devices.find(Wanted(path))
            yield _port(found) if isinstance(found, Node) else Port(path)


def _port(node: Node) -> Port:
    by_id, by_path = (
        next((link for link in node.links if part in link), None) for part in ("/by-id/", "/by-path/")
    )
    return Port(node.real, by_id, by_path, node.vendor, serial=node.serial, driver=node.driver)


def _held(node: str) -> tuple[tuple[Holder, ...] | None, int, str | None]:
    try:
        held = holders(node)
    except OSError as e:
        return None, 0, e.strerror
    return held.found, held.unseen, None


# -- which name can be relied on ---------------------------------------------------------------------------
def unusable(port: Port, ports: Iterable[Port]) -> dict[str, str]:
    """The names of a port that may be another board's as well, with the reason and the way out.

    Args:
        port: the one in question.
        ports: all that are there now.
    """
    reasons = {}
    traits = {key: getattr(port, key) for key in ("vendor", "product", "serial") if getattr(port, key)}
    if port.vendor is not None and matching.nameless(traits):
        shared = "shared by every board with this chip"
        reasons = {key: shared for key in ("by_id", "serial") if getattr(port, key)}
    for key in ("by_id", "by_path", "serial"):
        value = getattr(port, key)
        twins = [each.node for each in ports if each.node != port.node and getattr(each, key) == value]
        if value and twins:
            reasons[key] = f"{' and '.join(twins)} {'have' if len(twins) > 1 else 'has'} the same"
    way_out = "use by-path" if port.by_path and "by_path" not in reasons else "no other name tells it apart"
    if "by_id" not in reasons and port.by_id:
        way_out = "use by-id"
    return {key: f"{reason}: {way_out}" for key, reason in reasons.items()}


# -- what to configure -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Suggestion:
    """What to write into the configuration for a port.

    Attributes:
        name: proposed for the printer.
        setting: one line of TOML, to go below ``[printers.NAME]``.
        why: what to know about it; empty if there is nothing.
    """

    name: str
    setting: str
    why: str

    def lines(self, row: Row) -> list[str]:
        """TOML to paste below a printer's table; all but the setting is comment."""
        port = row.port
        about = " ".join(
            word for word in (port.node, port.name and plain(port.name), _usb(port)) if word and word != "-"
        )
        comments = [about, *textwrap.wrap(self.why, WIDTH - 2), f"[printers.{self.name}]"]
        return [*(f"# {comment}" for comment in comments), self.setting]


def suggestion(row: Row, taken: Iterable[str] = ()) -> Suggestion:
    """The name by which this port is found again for certain, or as nearly so as there is one.

    Args:
        row: the port.
        taken: names of printers that are not to be proposed again.
    """
    name = row.printer or _proposed(row.port, set(taken))
    port = row.port
    if port.by_id and "by_id" not in row.unusable:
        return Suggestion(name, _toml("port", port.by_id), "")
    if port.by_path and "by_path" not in row.unusable:
        why = "this is the USB socket that it is in: always use the same one"
        if port.by_id:
            why = f"{why}; its by-id name will not do: {row.unusable['by_id'].partition(':')[0]}"
        return Suggestion(name, _toml("port", port.by_path), why)
    if port.vendor and port.serial and port.serial.isprintable() and "serial" not in row.unusable:
        match = f"{{ serial = {_quoted(port.serial)}, vendor = {_quoted(port.vendor)} }}"
        return Suggestion(name, f"match = {match}", "")
    why = "" if port.vendor is None else "nothing tells it apart: another board may get this node next time"
    return Suggestion(name, _toml("port", port.node), why)


def _toml(key: str, value: str) -> str:
    return f"{key} = {_quoted(value)}"


def _quoted(value: str) -> str:
    """A TOML string; JSON's escapes are TOML's for all that is printable."""
    return json.dumps(value, ensure_ascii=False)


def _proposed(port: Port, taken: set[str]) -> str:
    """A printer's name from what the board calls itself, such as ``original-prusa-i3-mk3``."""
    name = ""
    for word in re.findall(r"[a-z0-9]+", (port.name or "").lower()):
        longer = f"{name}-{word}" if name else word[:_NAME_LENGTH]
        if len(longer) > _NAME_LENGTH:
            break
        name = longer
    if not name or _NAMELESS.search(port.name or ""):
        name = "printer"
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(each for each in (name, *numbered) if each not in taken)


# -- for people --------------------------------------------------------------------------------------------
_TITLES = ("NODE", "USB", "DRIVER", "PRINTER", "STATE")
_LONGEST_CELL = 20  # characters that the rest of the table makes room for
_LABEL = 9  # characters


def table(rows: Sequence[Row], width: int = WIDTH) -> list[str]:
    """The facts in columns, and below each port its names: whole, since they are there to be copied."""
    cells = [_cells(row) for row in rows]
    widths = [
        max(len(title), *(min(_LONGEST_CELL, len(each[column])) for each in cells))
        for column, title in enumerate(_TITLES[:-1])
    ]
    lines = [_columns(_TITLES, widths)]
    for row, each in zip(rows, cells, strict=True):
        lines += _facts(row, each, widths, width)
        lines += _names(row, width)
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    port = row.port
    return (plain(port.node), _usb(port), plain(port.driver or "-"), row.printer or "-", state(row))


def _usb(port: Port) -> str:
    return plain(f"{port.vendor}:{port.product or '?'}") if port.vendor else "-"


def state(row: Row) -> str:
    """Whether the port can be had, in a few words."""
    if row.holders is None or row.stale:
        return "not there"
    return "in use by " + ", ".join(spoken(each) for each in row.holders) if row.holders else "free"


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f"{cell:<{room}}" for cell, room in zip(cells, widths, strict=False))
    return "  ".join([*padded, cells[-1]]).rstrip()


def _facts(row: Row, cells: tuple[str, ...], widths: Sequence[int], width: int) -> list[str]:
    """The first line of a port; who holds it stands on the next if there is no room."""
    colour = "red" if row.stale or row.holders is None else "yellow" if row.holders else "green"
    line = _columns(cells, widths)
    if len(line) <= width:
        front = line[: len(line) - len(cells[-1])]
        return [front + click.style(cells[-1], fg=colour)]
    rest = textwrap.wrap(cells[-1], width - 4, break_long_words=False, break_on_hyphens=False)
    return [_columns((*cells[:-1], ""), widths), *(f"  {click.style(each, fg=colour)}" for each in rest)]


def _names(row: Row, width: int) -> Iterator[str]:
    port = row.port
    if port.vendor is not None or port.name:
        product = _named("product", port.name or "without a name")
        serial = f", serial {plain(port.serial)}" if port.serial else ", no serial number"
        if len(product + serial) <= width:
            yield product + serial
        else:
            yield from (product, *([_named("serial", port.serial)] if port.serial else []))
        same_reason = row.unusable.get("serial") == row.unusable.get("by_id")
        if "serial" in row.unusable and not same_reason:
            yield from _warned(f"this serial: {row.unusable['serial']}", width)
    for label, key in (("by-id", "by_id"), ("by-path", "by_path")):
        if value := getattr(port, key):
            yield _named(label, value)
            if key in row.unusable:
                yield from _warned(f"do not use: {row.unusable[key]}", width)
    for printer, name in row.octoprint.items():
        yield _named("OctoPrint", f"{name} ({printer})")
    if trouble := row.stale or row.trouble:
        yield from _warned(trouble, width)


def _named(label: str, value: str) -> str:
    return f"  {label:<{_LABEL}} {plain(value)}"


def _warned(text: str, width: int) -> Iterator[str]:
    room = " " * (_LABEL + 3)
    for line in textwrap.wrap(plain(text), width - len(room), break_on_hyphens=False):
        yield room + click.style(line, fg="red")


def line(row: Row) -> str:
    """A port on one line, for news: node, identity, whose it is, and the name to go by."""
    port = row.port
    about = [f"is {row.printer}"] if row.printer else []
    known = [port.node, _usb(port), port.driver or "-", port.name or "-", *about, *row.links[:1]]
    return "  ".join(plain(each) for each in known)


def plain(text: str) -> str:
    """Words of others (a board's name, for one), unable to steer a terminal or to end a comment."""
    return "".join(c if c.isprintable() else "?" for c in text)


# -- who holds it ------------------------------------------------------------------------------------------
def spoken(holder: Holder, proc: Path = Path("/proc")) -> str:
    """A holder as people know it: our service may run as ``python3``."""
    return str(dataclasses.replace(holder, name="portretry-udev") if is_service(holder.pid, proc) else holder)


def is_service(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a process is a ``portretry-udev watch``: by its command line, which all may read."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    names = {os.path.basename(word) for word in words}  # noqa: PTH119 - of bytes
    ours = names & {b"portretry-udev", b"portretry_udev"} or any(
        b"portretry_udev/__main__.py" in w for w in words
    )
    return bool(ours) and b"watch" in words


# -- news --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Change:
    """A port was plugged or pulled; ``port`` is as it was when it was last there."""

    event: Literal["add", "remove"]
    port: Port


class Follower:
    """What is plugged and pulled from now on.

    uevents make it quick, and tell of a cable that was pulled and put back between two looks; the looks make
    it complete: also where no uevents arrive, or some were lost.

    Args:
        devices: listening already, so that nothing is missed between this and the first look.
        also: other descriptors that are waited on, for whoever has more to listen to.
    """

    def __init__(self, devices: Heard, *also: int) -> None:
        self._devices = devices
        self._poll = select.poll()
        for descriptor in (devices.fileno(), *also):
            self._poll.register(descriptor, select.POLLIN)
        self._settling = False
        self._known = {port.node: (port, _appearance(port.node)) for port in devices.ports()}

    def wait(self, at_most: float = _LOOK_PERIOD) -> None:
        """Wait until there may be news, at most five seconds, or so many."""
        quick = self._settling or self._devices.events == "none"
        timeout = min(at_most, _QUICK_PERIOD if quick else _LOOK_PERIOD)
        if self._devices.retry_at is not None:
            timeout = min(timeout, max(0.0, self._devices.retry_at - time.monotonic()))
        self._poll.poll(timeout * 1000)

    def changes(self) -> Iterator[Change]:
        """What has come and gone since the last call, oldest first; never waits."""
        pulled = {uevent.node for uevent in self._devices.read() if uevent.action == "remove"}
        now = {port.node: (port, _appearance(port.node)) for port in self._devices.ports()}
        for node, (port, appearance) in list(self._known.items()):
            if node in pulled or node not in now or now[node][1] != appearance:
                del self._known[node]
                yield Change("remove", port)
        self._settling = False
        for node, (port, appearance) in now.items():
            if node not in self._known and self._is_settling(node):
                self._settling = True  # udevd has yet to say who it is; a uevent or the next look tells
                continue
            new = node not in self._known
            self._known[node] = (port, appearance)
            if new:
                yield Change("add", port)

    def _is_settling(self, node: str) -> bool:
        found = self._devices.find(Wanted(node))
        return isinstance(found, Missing) and found.settling


def _appearance(node: str) -> tuple[int, int] | None:
    """Unequal in two looks: the node was made anew in between."""
    try:
        found = Path(node).stat()
    except OSError:
        return None
    return found.st_rdev, found.st_ino
