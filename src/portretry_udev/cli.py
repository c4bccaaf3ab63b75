"""The commands: flags in, the right module called, its outcome said.  Thin: nothing is decided here.

stdout holds only what was asked for; everything else goes to stderr.  Exit status follows sysexits(3).
"""

import json
import logging
import math
import os
import re
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from portretry_udev import __version__, cli_install, cli_login, cli_ports, cli_setup, control, logs
from portretry_udev.cli_common import (
    EX_CONFIG,
    EX_INTERRUPTED,
    EX_SOFTWARE,
    EX_TEMPFAIL,
    colour,
    common,
    devices_or_fail,
    fail,
    given,
    load_or_fail,
)
from portretry_udev.config import DEFAULT_FILE, load
from portretry_udev.daemon import Daemon
from portretry_udev.listing import plain

_log = logging.getLogger("portretry_udev")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="portretry-udev", message="%(prog)s %(version)s")
@click.option("--config", type=click.Path(dir_okay=False), help="Configuration for any of the commands.")
@click.pass_context
def main(ctx: click.Context, config: str | None) -> None:
    """Bring a 3D printer back into OctoPrint the moment it returns; never harm a print in doing so."""
    ctx.obj = {"config": config}


# -- watch -------------------------------------------------------------------------------------------------
@main.command(short_help="The service: watch the printers until a signal comes.")
@click.argument("name", nargs=-1)
@click.option("--octoprint", metavar="URL", help="Where OctoPrint is, such as http://127.0.0.1:5000")
@click.option("--api-key-file", metavar="FILE", help="File with OctoPrint's API key, mode 0600.")
@click.option("--port", metavar="NODE", help="The printer's port  [the one OctoPrint prefers]")
@click.option("--baudrate", type=int, metavar="N", help="Baud  [OctoPrint's]")
@click.option("--interval", type=float, metavar="S", help="Seconds between looks  [5, or PortRetry's]")
@click.option(
    "--reconnect", type=click.Choice(["on-return", "always"]), help="After a Disconnect  [on-return]"
)
@click.option("--probe", type=click.Choice(["firmware", "open", "none"]), help="What to ask for  [firmware]")
@click.option("--start", type=click.Choice(["connect", "wait"]), help="At the start  [connect]")
@click.option("--no-avoid-reset", is_flag=True, help="Let DTR drop whenever the port is closed.")
@click.option(
    "--octoprint-config", metavar="FILE", help="OctoPrint's config.yaml: take PortRetry's settings over."
)
@click.option("--ca-file", metavar="FILE", help="The CA of OctoPrint's certificate, if not a public one.")
@click.option("--state-dir", metavar="DIR", help="Where holds are remembered.")
@click.option("--control", metavar="PATH", help="The socket for status, retry, pause and resume.")
@click.option("--dry-run", is_flag=True, help="Open and connect nothing; say what would be done.")
@common
@click.pass_context
def watch(
    ctx: click.Context,
    /,
    name: tuple[str, ...],
    *,
    verbose: bool,
    dry_run: bool,
    no_avoid_reset: bool,
    **flags: Any,  # noqa: ANN401 - click's values, which `load` judges
) -> None:
    """Watch the printers, or those NAMEd, until a signal comes; SIGHUP has the configuration read again.

    Without a configuration file, one printer is watched as the flags say.
    """
    flags["avoid_reset"] = False if no_avoid_reset else None
    spoken = given(flags, ctx)
    config = load_or_fail(spoken, name)
    logs.set_up(verbose=verbose)
    devices_or_fail().close()  # libudev is there
    try:
        Daemon(config, dry_run=dry_run, again=lambda: load(spoken, os.environ, name)).run()
    except control.ControlError as e:
        fail(e.status, str(e), "nothing was started or changed")
    except Exception:  # noqa: BLE001 - the last place where it can be said
        _log.critical("unforeseen, please report it; the service ends:", exc_info=True)
        sys.exit(EX_SOFTWARE)


# -- what stands in modules of its own ---------------------------------------------------------------------
main.add_command(cli_install.install_)
main.add_command(cli_install.uninstall_)
main.add_command(cli_login.login)
main.add_command(cli_ports.ports)
main.add_command(cli_ports.probe)
main.add_command(cli_setup.setup)


# -- status, retry, pause, resume --------------------------------------------------------------------------
_WIDTH = 80  # columns, where the terminal has no fewer
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_COLOURS = {"connected": "green", "faulted": "red", "unreachable": "red", "unconfigured": "red"}


def _seconds(text: str) -> float | None:
    """The length of a duration; None: the text is none."""
    parts = r"(\d{1,9})(s|min|m|h|d)"
    if not re.fullmatch(f"({parts})+", text, re.ASCII):
        return None
    return float(sum(int(number) * _SECONDS[unit] for number, unit in re.findall(parts, text)))


def _duration(text: str) -> float:
    """A span of time as people write it, in seconds."""
    seconds = _seconds(text)
    if seconds is None or not 0 < seconds <= control.LONGEST_PAUSE:
        raise click.BadParameter(f"{text!r} is no duration from 1s to 366d, such as 90s, 10m, 1h30m")
    return seconds


def _asks_service(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what all that ask the running service have: NAME, --control and --config."""
    name = click.argument("name", required=False)
    path = click.option(
        "--control", "path", metavar="PATH", envvar="PORTRETRY_CONTROL", help="The service's socket."
    )
    config = click.option("--config", metavar="FILE", help="Configuration that may name the socket.")
    return name(path(config(command)))


def _socket(ctx: click.Context, path: str | None, config: str | None) -> Path | None:
    """The socket that was named, by flag, variable or configuration; None: the default.

    Of the configuration nothing else is read: who asks the service need not be able to read its keys.
    """
    if path:
        return Path(path).absolute()
    named = config or (ctx.obj or {}).get("config") or os.environ.get("PORTRETRY_CONFIG")
    try:
        with Path(named or DEFAULT_FILE).open("rb") as file:
            found = tomllib.load(file).get("control")
    except (OSError, ValueError) as e:
        if named:
            fail(EX_CONFIG, f"{named}: {getattr(e, 'strerror', None) or e}")
        return None
    return Path(found).expanduser() if isinstance(found, str) else None


def _ask(path: Path | None, command: str, **wishes: object) -> dict[str, Any]:
    try:
        return control.ask(path, command, **wishes)
    except control.ControlError as e:
        fail(e.status, plain(str(e)))


@main.command(short_help="What the running service sees and waits for.")
@_asks_service
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
@click.option("--follow", is_flag=True, help="Say it again at each change, until Ctrl-C.")
@click.pass_context
def status(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context, name: str | None, path: str | None, config: str | None, *, as_json: bool, follow: bool
) -> None:
    """Say what the running service sees, waits for and has done; for all printers, or the one NAMEd."""
    socket = _socket(ctx, path, config)
    if not follow:
        _show_status(_ask(socket, "status", printer=name)["printers"], as_json=as_json, indent=2)
        return
    try:
        for count, answer in enumerate(control.follow(socket, name)):
            if count and not as_json:
                click.echo()
            _show_status(answer["printers"], as_json=as_json)
    except control.ControlError as e:
        fail(e.status, plain(str(e)))
    except KeyboardInterrupt:
        sys.exit(EX_INTERRUPTED)


@main.command(short_help="Forget a Disconnect, a fault, a back-off: try now.")
@_asks_service
@click.pass_context
def retry(ctx: click.Context, name: str | None, path: str | None, config: str | None) -> None:
    """Forget why hands are off: look again now, also after a Disconnect or a fault.

    For all printers, or the one NAMEd.
    """
    for printer in _ask(_socket(ctx, path, config), "retry", printer=name)["printers"]:
        click.echo(f"{printer}: looking anew; what comes of it: portretry-udev status {printer}")


@main.command(short_help="Let go of the port, to flash the printer.")
@_asks_service
@click.option("--for", "seconds", type=_duration, metavar="TIME", help="Such as 90s, 10m, 1h30m.")
@click.pass_context
def pause(
    ctx: click.Context, name: str | None, path: str | None, config: str | None, *, seconds: float | None
) -> None:
    """Let go of the port, for TIME or until `resume`; to flash the printer, for one.

    For all printers, or the one NAMEd; `pause 10m` is short for `pause --for 10m`.  When the command has
    ended with status 0, the service has no port open any more.
    """
    socket = _socket(ctx, path, config)
    try:
        answer = control.ask(socket, "pause", printer=name, seconds=seconds)
    except control.ControlError as e:
        if e.kind != "printer" or name is None or _seconds(name) is None or seconds is not None:
            fail(e.status, plain(str(e)))
        seconds = _duration(name)
        answer = _ask(socket, "pause", seconds=seconds)
    until = "until `portretry-udev resume`" if seconds is None else f"for {_span(seconds)}"
    for printer, found in answer["printers"].items():
        if printer not in answer["pending"]:
            held = f"; the port is in use by {plain(found['holder'])}" if found["holder"] else ""
            click.echo(f"{printer}: paused {until}{held}")
    if answer["pending"]:
        names = ", ".join(answer["pending"])
        fail(EX_TEMPFAIL, f"{names}: OctoPrint is just connecting: the port is let go when that is over")


@main.command(short_help="End a pause.")
@_asks_service
@click.pass_context
def resume(ctx: click.Context, name: str | None, path: str | None, config: str | None) -> None:
    """End a pause; of all printers, or of the one NAMEd."""
    for printer in _ask(_socket(ctx, path, config), "resume", printer=name)["printers"]:
        click.echo(f"{printer}: watched again")


def _span(seconds: float) -> str:
    """A duration in the largest unit that does it justice."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size and math.isclose(seconds % size, 0):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"


def _show_status(printers: dict[str, Any], *, as_json: bool, indent: int | None = None) -> None:
    if as_json:
        click.echo(json.dumps({"printers": printers}, indent=indent))
        return
    for line in _table(printers, min(_WIDTH, shutil.get_terminal_size().columns)):
        click.echo(line, color=colour())


def _table(printers: dict[str, Any], width: int) -> list[str]:
    """The state of all printers for people: two columns of short words, and below them what is long."""
    room = max(len("NAME"), width - 2 - len("unconfigured") - 2 - len("2000-01-01 00:00:00"))
    names = min(room, max(len(name) for name in ("NAME", *printers)))
    lines = [f"{'NAME':<{names}}  {'STATE':<12}  SINCE"]
    for name, found in printers.items():
        short = name if len(name) <= names else name[: names - 3] + "..."
        state = click.style(f"{found['state']:<12}", fg=_COLOURS.get(found["state"], "yellow"))
        since = datetime.fromisoformat(found["since"]).astimezone()
        lines.append(f"{short:<{names}}  {state}  {since:%Y-%m-%d %H:%M:%S}")
        for text in (found["why"], _whereabouts(found)):
            lines += textwrap.wrap(
                plain(text), width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
    return lines


def _whereabouts(found: dict[str, Any]) -> str:
    """Port, node and holder in a few words; none of them, no words."""
    port, node, holder = found["port"], found["node"], found["holder"]
    where = " -> ".join(dict.fromkeys(name for name in (port, node) if name))
    return f"{where}, in use by {holder}" if where and holder else where


# -- demo --------------------------------------------------------------------------------------------------
@main.command(short_help="The whole story on this machine, without hardware.")
@click.option(
    "--octoprint", "version", metavar="VERSION", help="Against this real OctoPrint, such as 1.11.8."
)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Where it is installed.")
@common
def demo(*, version: str | None, cache: Path | None, verbose: bool, config: str | None) -> None:
    """Show the whole story on this machine, without hardware, in under a minute."""
    del config  # the demo makes its own
    from portretry_udev import demo as demo_  # noqa: PLC0415 - only the demo needs the simulators

    logs.set_up(verbose=verbose)
    sys.exit(demo_.run(version, cache, verbose=verbose))
