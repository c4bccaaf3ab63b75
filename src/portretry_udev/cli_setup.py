"""The command ``setup``: from nothing to a printer that comes back, in one dialogue or without one.

Knows the flags, the order of the steps, and the exit statuses of this command.  Must not know what is asked
(``wizard``), what is written (``setup``), nor how a dialogue looks (``terminal``).  stdout holds nothing but
what --json asks for.  No secret is ever an argument, in the environment, or on the screen.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from portretry_udev import activation, cli_install, cli_login, installation, matching, waiting
from portretry_udev import setup as setup_
from portretry_udev.cli_common import EX_CONFIG, EX_INTERRUPTED, EX_TEMPFAIL, devices_or_fail, fail, say
from portretry_udev.cli_install import EX_CANTCREAT, EX_DECLINED, EX_NOPERM
from portretry_udev.config import NOWHERE, Wrong, octoprint_url
from portretry_udev.config_edit import Unsure, table
from portretry_udev.install import InstallTrouble, Layout
from portretry_udev.interview import Given, Interview
from portretry_udev.keys import KeyTrouble
from portretry_udev.listing import plain
from portretry_udev.login import LoginTrouble
from portretry_udev.questions import Nobody, Person, Unanswered
from portretry_udev.rest import Trouble
from portretry_udev.setup import Answers, Existing, Installing, Plan
from portretry_udev.terminal import StatusLine, Terminal, echo
from portretry_udev.waiting import CONNECTED, Seen
from portretry_udev.wizard import PREFERRED

USUAL_WAIT = 60.0  # seconds; a printer that is on is connected within some ten

_HUES = {"connected": "green", "faulted": "red", "unreachable": "red", "unconfigured": "red"}
_NEXT = {
    "absent": "Switch the printer on, or put its cable in: then it is connected.",
    "listening": "Is the printer switched on?  As soon as it answers, it is connected.",
    "held": "To connect it nevertheless: portretry-udev retry {name}",
    "faulted": "Look at the printer.  To connect it nevertheless: portretry-udev retry {name}",
    "paused": "To end that: portretry-udev resume {name}",
    "in-use": "When that program has ended, it is connected.",
}
_OTHERWISE = ("What may be wrong:", "  sudo portretry-udev doctor")


def _url(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else octoprint_url(value)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None


def _match(_ctx: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> Sequence[str]:
    for value in values:
        key, sign, wish = value.partition("=")
        if not sign or not wish or key not in matching.KEYS:
            keys = ", ".join(sorted(matching.KEYS))
            raise click.BadParameter(f"{plain(value)!r} is no KEY=VALUE, of the keys {keys}")
    return values


_path = click.Path(dir_okay=False, path_type=Path)


@click.command("setup", short_help="From nothing to a printer that comes back: asks, writes, starts.")
@click.option("--octoprint", metavar="URL", callback=_url, help="Where OctoPrint is  [looked for here]")
@click.option("--name", metavar="NAME", help="What the printer is to be called.")
@click.option("--port", metavar="NODE", help='Its port, or "octoprint": always the one OctoPrint prefers.')
@click.option(
    "--match", metavar="KEY=VALUE", multiple=True, callback=_match, help="Instead: serial, vendor, path, ..."
)
@click.option("--api-key-file", type=_path, metavar="FILE", help="A file with an API key that works.")
@click.option("--create-user", is_flag=True, help="Make an account that can only look and connect.")
@click.option("--user", metavar="USER", help="Who is to be asked; with --create-user: who logs in.")
@click.option("--password-stdin", is_flag=True, help="With --create-user: read the password from stdin.")
@click.option("--ca-file", type=_path, metavar="FILE", help="The CA of OctoPrint's certificate.")
@click.option("--interval", type=click.FloatRange(0.5, 3600), metavar="S", help="Seconds between looks  [5]")
@click.option("--no-install", is_flag=True, help="Write the configuration alone: no rule, no service.")
@click.option("--no-start", is_flag=True, help="Neither start nor restart the service.")
@click.option(
    "--wait", type=click.FloatRange(0, 3600), metavar="S", help="Seconds to wait until it is connected  [60]"
)
@click.option("--program", metavar="PATH", help="What the service runs  [this program]")
@click.option(
    "--root",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=Path("/"),
    metavar="DIR",
    help="A system in that folder instead of this one.",
)
@click.option("--config", type=_path, metavar="FILE", help="Another configuration; no service.")
@click.option("-y", "--yes", is_flag=True, help="Ask nothing: what is not clear ends it.")
@click.option("--json", "as_json", is_flag=True, help="Say what came of it as JSON.")
@click.pass_context
def setup(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context,
    /,
    *,
    port: str | None,
    match: tuple[str, ...],
    no_install: bool,
    no_start: bool,
    wait: float | None,
    program: str | None,
    root: Path,
    config: Path | None,
    yes: bool,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - click's values, as `Flags` names them
) -> None:
    """Find OctoPrint, get a key, name the printer and its port; write, start, and see it connected.

    Each answer can be given as a flag.  What will be written is shown before; what was there is kept beside
    it.  A second time changes nothing.  With --yes nothing is asked: what is not given, and not clear, ends
    it with status 64.  Status 75: all is set up, but the printer was not connected in time.
    """
    if port is not None and match:
        raise click.UsageError("--port and --match exclude each other: give one")
    _judge_flags(given)
    layout = Layout(root.resolve())
    config = config or (ctx.obj or {}).get("config")
    path = _absolute(Path(config) if config else None) or layout.config
    _judge_rights(ctx, layout, path)
    here = installation.is_here(layout)
    installs = not no_install and path == layout.config
    runs = cli_install.runnable(program, packaged=not here) if installs else None
    files: dict[str, Any] = {name: _absolute(given.pop(name)) for name in ("api_key_file", "ca_file")}
    node = port if port is None or port == PREFERRED else str(_absolute(Path(port)))
    flags = Given(port=node, match=dict(each.split("=", 1) for each in match), **files, **given)
    person: Person = Nobody(say) if yes else Terminal()
    with _told(ctx):
        there = setup_.existing(path)
        with contextlib.closing(devices_or_fail()) as devices:
            answers = Interview(flags, there, layout, devices, person).answers()
        plan = _planned(answers, there, Installing(layout, runs, here and not no_start, activation.run))
        _judge_others(plan)
        if plan.is_needed:
            _agreed(plan, person)
            written = setup_.write(plan)
    if plan.is_needed:
        _echo(cli_install.backups(written))
        _started(plan)
    else:
        person.say("All is in place: nothing to do.")
    _say_next(plan, runs)
    seen = _waited(plan, wait)
    if as_json:
        click.echo(json.dumps(_summary(answers, plan, seen), indent=2))
    sys.exit(0 if seen is None or seen.state == CONNECTED else EX_TEMPFAIL)


def _judge_flags(given: Mapping[str, Any]) -> None:
    if given["password_stdin"] and not (given["create_user"] and given["user"]):
        raise click.UsageError("--password-stdin goes with --create-user and --user")
    if given["api_key_file"] and given["create_user"]:
        raise click.UsageError("--api-key-file and --create-user exclude each other: give one")


def _absolute(path: Path | None) -> Path | None:
    """From the folder that it was typed in; links are not followed, they may be the very point."""
    return None if path is None else Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would


def _judge_rights(ctx: click.Context, layout: Layout, path: Path) -> None:
    """Who may not write is told so before anything is asked."""
    if os.geteuid() == 0:
        return
    usual = installation.is_here(layout) and path == layout.config
    if usual or not os.access(cli_install.nearest(path.parent), os.W_OK | os.X_OK):
        what = "only root can install a service" if usual else f"{path.parent} is not yours to write"
        fail(EX_NOPERM, f"{what}; type:", f"  {cli_install.as_root(ctx)}")


# -- what ends it ------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _told(ctx: click.Context) -> Iterator[None]:
    """Turn what ends a setup, before anything is written, into its line and its exit status."""
    try:
        yield
    except Unanswered as question:
        _end(os.EX_USAGE, str(question))
    except LoginTrouble as trouble:
        _end(cli_login.STATUS[trouble.why], str(trouble))
    except Trouble as trouble:
        _end(cli_login.status_of(trouble), str(trouble))
    except KeyTrouble as trouble:
        _end(EX_CONFIG, str(trouble))
    except Wrong as wrong:
        _end(EX_CONFIG, *wrong.mistakes)
    except InstallTrouble as trouble:
        hint = [f"as root: {cli_install.as_root(ctx)}"] if trouble.forbidden else []
        end = fail if trouble.is_half else _end
        end(EX_NOPERM if trouble.forbidden else EX_CANTCREAT, str(trouble), *hint)
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        _end(EX_INTERRUPTED, "given up")


def _end(status: int, *lines: str) -> NoReturn:
    fail(status, *(plain(line) for line in lines), "nothing was changed")


# -- the plan ----------------------------------------------------------------------------------------------
def _planned(answers: Answers, there: Existing, installing: Installing) -> Plan:
    """What is to be written; what cannot be changed for certain is left to the person."""
    try:
        return setup_.plan(answers, there, installing)
    except Unsure as unsure:
        port = answers.port
        wishes = {"octoprint": answers.octoprint, "port": port.port, "match": port.match or None}
        lines = (f"  {line}" for line in table(answers.name, wishes).splitlines())
        _end(EX_CONFIG, f"{there.path}: {unsure}", "change it by hand, so that it says:", *lines)


def _judge_others(plan: Plan) -> None:
    """The service is started for all printers, or not at all."""
    if not _starts(plan):
        return
    if keyless := [
        each.name for each in plan.config.printers if each.key == NOWHERE and each.name != plan.name
    ]:
        commands = (f"  portretry-udev login {name}" for name in keyless)
        _end(
            EX_CONFIG, f"no API key for {', '.join(keyless)}, and the service needs one for each:", *commands
        )


def _agreed(plan: Plan, person: Person) -> None:
    """Show what will be written and run, and ask; who says no ends it."""
    echo()
    asks = isinstance(person, Terminal)
    echo(click.style("This is to be written:" if asks else "This is written:", bold=True))
    _echo(_shown(plan))
    if isinstance(person, Terminal):
        steps = " and run" if plan.planned.steps else ""
        if not person.agree(f"Write{steps} that?", lambda: _echo(_shown(plan, whole=True))):
            _end(EX_DECLINED, "as you wish")


def _shown(plan: Plan, *, whole: bool = False) -> Iterator[str]:
    """What will be written and run: the configuration in full, and all of the rest if wished."""
    if plan.key is not None:
        label, hue = ("new", "green") if plan.key_is_new else ("changed", "yellow")
        yield from cli_install.entry(label, hue, str(plan.key_file), "the API key, for its owner alone")
    for number, change in enumerate(plan.planned.changes):
        yield from cli_install.shown([change], [], would=False)
        if change.is_needed and not change.diff() and (whole or number == 0):
            yield from (f"    {plain(line)}" for line in change.file.data.decode().splitlines())
    yield from cli_install.shown([], plan.planned.steps, would=False)


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        echo(line)


# -- what comes after it -----------------------------------------------------------------------------------
def _started(plan: Plan) -> None:
    """Have udev and systemd read what was written."""
    try:
        failures = activation.perform(plan.planned.steps, activation.run)
    except KeyboardInterrupt:
        echo()
        fail(EX_INTERRUPTED, "given up; the files are in place", "to go on, type the same again")
    cli_install.say_failures(failures, "the files are in place")


def _say_next(plan: Plan, runs: Path | None) -> None:
    """What to know, and what is left to the person."""
    planned = plan.planned
    say(*(plain(trouble) for trouble in planned.troubles))
    cli_install.note(*cli_install.remarks(planned.changes[1:], planned.layout))
    if runs is None:
        path = planned.changes[0].file.path
        command = f"  portretry-udev watch --config {path}"
        cli_install.note("Nothing was installed.  To watch the printer:", command)
    elif installation.is_here(planned.layout):
        cli_install.note(*cli_install.surroundings(planned.machine, runs))


def _waited(plan: Plan, wait: float | None) -> Seen | None:
    """Wait until the printer is connected; None: nobody waits for it."""
    if wait is None:
        wait = USUAL_WAIT if plan.planned.machine.active or _starts(plan) else 0
    if not wait:
        return None
    environ = os.environ.get("PORTRETRY_CONTROL")
    socket = plan.config.control or (Path(environ) if environ else None)
    end = time.monotonic() + wait
    seen, live = Seen(waiting.STARTING, ""), StatusLine()
    try:
        for news in waiting.watch(socket, plan.name, wait):
            seen = news or seen
            live.show(seen.state, _HUES.get(seen.state, "yellow"), seen.why, end - time.monotonic())
    except KeyboardInterrupt:
        live.clear()
        echo()
        fail(EX_INTERRUPTED, "given up waiting; all is set up, and goes on without")
    live.clear()
    _say_seen(plan.name, seen, wait)
    return seen


def _starts(plan: Plan) -> bool:
    return any(step.command[:2] == ("systemctl", "enable") for step in plan.planned.steps)


def _say_seen(name: str, seen: Seen, seconds: float) -> None:
    """How it ended, and what to do next."""
    if seen.state == CONNECTED:
        cli_install.note(f"{name} is connected: {plain(seen.why)}.")
        return
    say(f"{name} is not connected after {seconds:g} s: {seen.state}: {plain(seen.why)}")
    cli_install.note(*(line.format(name=name) for line in (_NEXT.get(seen.state, ""), *_OTHERWISE) if line))


def _summary(answers: Answers, plan: Plan, seen: Seen | None) -> dict[str, Any]:
    """What came of it, for programs."""
    port = answers.port
    return {
        "printer": plan.name,
        "octoprint": answers.octoprint,
        "version": answers.key.account.version,
        "user": answers.key.account.name,
        "port": port.port,
        "match": dict(port.match),
        "config": str(plan.planned.changes[0].file.path),
        "key_file": str(plan.key_file),
        "changed": [str(path) for path in setup_.written_paths(plan)],
        "state": seen.state if seen else None,
        "why": seen.why if seen else None,
    }
