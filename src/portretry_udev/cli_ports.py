"""The commands ``ports`` and ``probe``: what is there, and one careful look at one of it.

Must not know udev, /proc or OctoPrint's words: `listing` puts together what is shown, `probe` opens the port.
What is decided here is who must not be disturbed by that (promise 1): anything unknown means hands off.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from portretry_udev import cli_common as common
from portretry_udev import control, firmware, listing, logs
from portretry_udev import port as ports_
from portretry_udev import probe as probe_
from portretry_udev.config import Printer, Wrong, load
from portretry_udev.devices import Devices, Missing, Node, Wanted, resolved
from portretry_udev.events import OFFLINE
from portretry_udev.octoprint import Answer, Client, Kind, Trouble

_MOST_ASKED = 16  # OctoPrints at once
_SETTLE_PERIOD = 0.1  # seconds between looks at a node that udevd has not finished
_HIGHEST = 4_000_000  # baud: the highest that Linux has a name for


def _ask(printers: Sequence[Printer]) -> dict[str, Answer | Trouble]:
    """What the OctoPrints say, all asked at once: one that hangs takes ten seconds."""

    def ask(printer: Printer) -> Answer | Trouble:
        client = Client(printer.octoprint, printer.key.read, ca_file=printer.ca_file)
        try:
            return client.look()
        except Trouble as trouble:
            return trouble
        finally:
            client.close()

    with ThreadPoolExecutor(_MOST_ASKED) as pool:
        return dict(zip((printer.name for printer in printers), pool.map(ask, printers), strict=True))


# -- ports -------------------------------------------------------------------------------------------------
@click.command(short_help="The serial ports, who has them, what to configure.")
@click.argument("node", required=False)
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON; with --watch, one object a line.")
@click.option("--watch", is_flag=True, help="Tell what is plugged and pulled from now on, until Ctrl-C.")
@click.option("--suggest", is_flag=True, help="The lines of configuration to paste for each.")
@common.common
@click.pass_context
def ports(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context,
    node: str | None,
    *,
    as_json: bool,
    watch: bool,
    suggest: bool,
    verbose: bool,
    config: str | None,
) -> None:
    """List the serial ports: names, who holds them, which printer each is, what OctoPrint calls it.

    All of them, or the one that NODE leads to.  Names marked "do not use" may be another board's as well.
    Nothing is opened.
    """
    logs.set_up(verbose=verbose)
    if watch and node:
        raise click.UsageError("--watch takes no NODE: it tells of all of them")
    printers = _configured(common.given({"config": config}, ctx))
    told = _ask(printers)
    common.say(*(f"{name}: {each}" for name, each in told.items() if isinstance(each, Trouble)))
    answers = {name: each for name, each in told.items() if isinstance(each, Answer)}
    with contextlib.closing(common.devices_or_fail()) as devices:
        shown = _Shown(printers, as_json=as_json, suggest=suggest)
        if watch:
            _follow(devices, shown, answers)
        rows = listing.gather(devices, printers, answers)
    if node:
        rows = [row for row in rows if resolved(node) == row.port.node or node in row.links]
        if not rows:
            common.fail(common.EX_UNAVAILABLE, f"{node} is no serial port that is here: is it plugged in?")
    elif suggest and not as_json:
        rows = [row for row in rows if row.port.vendor]  # few have a printer on a port that is built in
    shown.all(rows)


def _configured(flags: dict[str, Any]) -> tuple[Printer, ...]:
    """The printers, if there is a configuration; the ports are for those, too, who have none yet."""
    if not common.is_configured(flags):
        return ()
    try:
        return load(flags, os.environ).printers
    except Wrong as wrong:
        common.say(*wrong.mistakes, "so it is not shown which port is which printer")
        return ()


class _Shown:
    """How the ports are shown: as a table, as JSON, or as configuration."""

    def __init__(self, printers: Sequence[Printer], *, as_json: bool, suggest: bool) -> None:
        self.printers = printers
        self._as_json = as_json
        self._suggest = suggest
        self._taken = {printer.name for printer in printers}
        self._colour = common.colour()

    def all(self, rows: Sequence[listing.Row]) -> None:
        """All ports at once."""
        if self._as_json:
            click.echo(json.dumps([self._object(row) for row in rows], indent=2))
        elif not rows:
            kind = "USB serial ports" if self._suggest else "serial ports"
            common.say(f"no {kind} are there: is the printer plugged in and switched on?")
        elif self._suggest:
            click.echo("\n\n".join("\n".join(self._lines(row)) for row in rows))
        else:
            for line in listing.table(rows, min(listing.WIDTH, shutil.get_terminal_size().columns)):
                click.echo(line, color=self._colour)
            if unseen := max(row.unseen for row in rows):
                common.say(
                    f"processes that are not ours to look into: {unseen}; run as root to be sure what is free"
                )

    def change(self, event: str, row: listing.Row) -> None:
        """One port that was plugged or pulled."""
        if self._as_json:
            click.echo(json.dumps({"event": event, **self._object(row)}))
            return
        sign, colour = ("+", "green") if event == "add" else ("-", "red")
        click.echo(f"{click.style(sign, fg=colour)} {listing.line(row)}", color=self._colour)
        if self._suggest and event == "add" and row.printer is None:
            for line in self._lines(row):
                click.echo(line)

    def _object(self, row: listing.Row) -> dict[str, Any]:
        return row.as_json() | ({"suggest": "\n".join(self._lines(row))} if self._suggest else {})

    def _lines(self, row: listing.Row) -> list[str]:
        found = listing.suggestion(row, self._taken)
        self._taken.add(found.name)
        return found.lines(row)


def _follow(devices: Devices, shown: _Shown, answers: Mapping[str, Answer]) -> NoReturn:
    """Tell of changes until Ctrl-C; each line is written out at once, also into a pipe."""
    try:
        devices.start()
        follower = listing.Follower(devices)
        rows = {row.port.node: row for row in listing.gather(devices, shown.printers, answers)}
        if devices.events == "none":
            common.say(f"{devices.events_why.partition(';')[0]}; looking once a second")
        common.say("watching the serial ports; Ctrl-C ends it")
        while True:
            follower.wait()
            for change in follower.changes():
                if change.event == "add":
                    rows |= {row.port.node: row for row in listing.gather(devices, shown.printers, answers)}
                shown.change(change.event, rows.get(change.port.node, listing.Row(change.port)))
    except KeyboardInterrupt:
        sys.exit(common.EX_INTERRUPTED)


# -- probe -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Target:
    """What is to be probed.

    Attributes:
        path: the node as it was named.
        node: the device.
        control: the socket of our own service, where one is configured.
        printer: the configured one that it is.
        baudrate: baud, if anybody has said.
    """

    path: str
    node: Node
    control: Path | None
    printer: str | None = None
    baudrate: int | None = None


@click.command(short_help="One careful look at one port: what answers there.")
@click.argument("port", required=False)
@click.option(
    "--baudrate",
    type=click.IntRange(1, _HIGHEST),
    metavar="N",
    help="Baud  [the configured one, else OctoPrint's, else 115200]",
)
@click.option("--all-bauds", is_flag=True, help="Try one baudrate after the other.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
@common.common
@click.pass_context
def probe(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context,
    port: str | None,
    *,
    baudrate: int | None,
    all_bauds: bool,
    as_json: bool,
    verbose: bool,
    config: str | None,
) -> None:
    """Look once, carefully, at one port: what answers there.

    PORT is a node, or the name of a configured printer (left out: the only one).  Nothing is done while the
    port is in use, or while it is not known whether it is.  Opening a port resets many boards: not for a port
    with a print running from SD.
    """
    logs.set_up(verbose=verbose)
    flags = common.given({"config": config}, ctx)
    with contextlib.closing(common.devices_or_fail()) as devices:
        target = _by_node(devices, port, flags) if port and "/" in port else _by_name(devices, port, flags)
    _refuse_if_watched(target)
    rates = _rates(baudrate, target, all_bauds=all_bauds)
    try:
        result = probe_.probe(
            target.path, rates, tried=lambda rate: None if as_json else _show_progress(target.path, rate)
        )
    except ports_.PortError as refused:
        common.fail(common.EX_UNAVAILABLE, str(refused))
    except ports_.HangUp:
        common.fail(common.EX_UNAVAILABLE, f"{target.path} went away meanwhile")
    except KeyboardInterrupt:
        sys.exit(common.EX_INTERRUPTED)
    if as_json:
        who = {"port": target.path, "node": target.node.real, "printer": target.printer}
        click.echo(json.dumps({**who, **dataclasses.asdict(result)}))
    else:
        _show_probe(target.path, result)
    sys.exit(0 if result.baudrate is not None else common.EX_SILENT)


def _by_name(devices: Devices, name: str | None, flags: dict[str, Any]) -> _Target:
    """A configured printer, whose OctoPrint must not be using it."""
    config = common.load_or_fail(flags, (name,) if name else ())
    if len(config.printers) != 1:
        names = ", ".join(printer.name for printer in config.printers)
        common.fail(common.EX_CONFIG, f"there are several printers, name one of them: {names}")
    (printer,) = config.printers
    answer = _ask([printer])[printer.name]
    _refuse_unless_offline(printer, answer)
    known = answer if isinstance(answer, Answer) else None
    wanted = listing.wanted(printer, known)
    if wanted is None:
        common.fail(common.EX_CONFIG, f"{printer.name} has no port: name a node, such as /dev/ttyUSB0")
    node = _found(devices, wanted)
    return _Target(wanted.path or node.path, node, config.control, printer.name, _baudrate(printer, known))


def _by_node(devices: Devices, path: str, flags: dict[str, Any]) -> _Target:
    """Any node; no OctoPrint that is configured may be using it, under whatever name."""
    path = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
    try:
        probe_.refuse_stranger(path)
    except ports_.PortError as refused:
        common.fail(common.EX_UNAVAILABLE, str(refused))
    node = _found(devices, Wanted(path))
    config = common.load_or_fail(flags) if common.is_configured(flags) else None
    printers = config.printers if config else ()
    socket = os.environ.get("PORTRETRY_CONTROL")
    target = _Target(path, node, config.control if config else Path(socket) if socket else None)
    for printer, answer in zip(printers, _ask(printers).values(), strict=True):
        known = answer if isinstance(answer, Answer) else None
        wanted = listing.wanted(printer, known)
        home = devices.find(wanted) if wanted else None
        if isinstance(home, Node) and home.number == node.number:
            target = dataclasses.replace(target, printer=printer.name, baudrate=_baudrate(printer, known))
            _refuse_unless_offline(printer, answer)
        elif wanted is None if known is None else _may_have(devices, known, node, elsewhere=bool(wanted)):
            _refuse_unless_offline(printer, answer)
    return target


def _found(devices: Devices, wanted: Wanted) -> Node:
    """The device; if it was plugged just now, udevd first has to finish with it, or to let its time pass."""
    found = devices.find(wanted)
    while isinstance(found, Missing) and found.settling:
        time.sleep(_SETTLE_PERIOD)
        found = devices.find(wanted)
    if isinstance(found, Missing):
        common.fail(common.EX_UNAVAILABLE, found.why)
    return found


def _may_have(devices: Devices, answer: Answer, node: Node, *, elsewhere: bool) -> bool:
    """Whether an OctoPrint may be at work on this port, though its printer is not configured to be there.

    A person may have connected it to any port, and while it detects one (AUTO) it opens them all.

    Args:
        devices: of this machine.
        answer: what it says.
        node: the port.
        elsewhere: its printer is known to be on another port.
    """
    if answer.port == "VIRTUAL":  # its own simulated printer
        return False
    if answer.port is None or not answer.port.startswith("/"):
        return True
    theirs = devices.find(Wanted(answer.port))
    if isinstance(theirs, Node):
        return theirs.number == node.number
    return not elsewhere  # a container's name for it, maybe


def _baudrate(printer: Printer, answer: Answer | None) -> int | None:
    return printer.baudrate or (answer.preferred_baudrate if answer else None)


def _refuse_unless_offline(printer: Printer, answer: Answer | Trouble) -> None:
    if isinstance(answer, Trouble):
        if answer.kind is not Kind.DOWN:  # whoever is not running has no port open
            common.fail(common.EX_UNAVAILABLE, f"{printer.name}: {answer}: hands off")
    elif answer.octo not in OFFLINE:
        common.fail(common.EX_UNAVAILABLE, f"{printer.name}: OctoPrint says {answer.job!r}: hands off")


def _refuse_if_watched(target: _Target) -> None:
    """Our own service holds its ports while it listens; a person may well want to look all the same.

    Raises nothing where the port cannot be looked at: the probe itself says why.
    """
    try:
        held = ports_.holders(target.node.real)
    except OSError:
        return
    service = next((holder for holder in held.found if listing.is_service(holder.pid)), None)
    if service is None and (held.found or not held.unseen):
        return  # it is another's, and named as such, or it is seen that nobody has it
    name, paused = _watched_as(target)
    if service is None and (name is None or paused):
        return
    name = name or target.printer
    who = f"portretry-udev itself (pid {service.pid})" if service else "portretry-udev itself"
    first = f"portretry-udev pause {name}" if name else "portretry-udev pause"
    common.fail(common.EX_UNAVAILABLE, f"{target.path} is watched by {who}: `{first}` first, `resume` after")


def _watched_as(target: _Target) -> tuple[str | None, bool]:
    """As which printer the running service watches the port, and whether that is paused.

    No name: it does not watch it, or does not run.
    """
    try:
        watched = control.ask(target.control, "status")["printers"]
    except control.ControlError as e:
        if e.status == os.EX_NOPERM:
            common.fail(common.EX_UNAVAILABLE, f"{target.path}: it may be watched, and we may not ask: {e}")
        return None, False
    for name, found in watched.items():
        if found["node"] == target.node.real:
            return name, found["state"] == "paused"
    return None, False


def _rates(asked: int | None, target: _Target, *, all_bauds: bool) -> list[int]:
    """The rates (baud) to try, without those that do harm on this port."""
    shun = _shunned(target.node) | {ports_.BOOTLOADER_TOUCH}
    first = asked or target.baudrate or firmware.BAUDRATES[0]
    rates = [first, *(rate for rate in firmware.BAUDRATES if rate != first)] if all_bauds else [first]
    allowed = [rate for rate in rates if rate not in shun]
    if asked in shun or not allowed:
        common.fail(
            common.EX_CONFIG,
            f"{first} baud is never used on this port: it starts a bootloader or ends host mode",
        )
    return allowed


def _shunned(node: Node) -> frozenset[int]:
    """Rates that are never set on a port; where nothing is known of the board, it may be any."""
    if node.modem and node.vendor is None and node.driver is None:
        return frozenset().union(*ports_.SHUNNED.values())
    return ports_.SHUNNED.get(node.vendor or "", frozenset())


def _show_progress(path: str, rate: int) -> None:
    click.echo(f"{path}: asking at {rate} baud", err=True)


def _show_probe(path: str, found: probe_.Found) -> None:
    if found.baudrate is None:
        click.echo(f"{path}: nothing answers")
        for rate in found.garbage:
            click.echo(f"  garbage at {rate} baud: another baudrate? try --all-bauds")
        if found.fault:
            click.echo("  the firmware reports a fault: look at the printer")
        return
    name = (found.firmware.name if found.firmware else None) or "a firmware that does not say its name"
    lines = {
        "machine": found.firmware.machine if found.firmware else None,
        "baudrate": found.baudrate,
        "life": f"after {found.seconds:.1f} s",
        "answer": None if found.answered is None else f"after {found.answered:.1f} s",
        "reset": "opening the port reset the board" if found.reset else "none was seen",
        "busy": "it is at work: hands off" if found.busy else None,
    }
    click.echo(f"{path}: {listing.plain(name)}")
    for label, value in lines.items():
        if value is not None:
            click.echo(f"  {label:<9} {listing.plain(str(value))}")
