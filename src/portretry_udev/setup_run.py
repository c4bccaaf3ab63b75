"""One run of ``setup``, from its orders to its exit status.

Knows the order of the steps, and what is said at each end.  Must not know what is asked (``wizard``), what is
written (``setup``), nor how a dialogue looks (``terminal``).
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from portretry_udev import activation, cli_install, cli_login, installation, waiting
from portretry_udev import setup as setup_
from portretry_udev.cli_common import EX_CONFIG, EX_INTERRUPTED, EX_TEMPFAIL, devices_or_fail, fail, say
from portretry_udev.cli_install import EX_CANTCREAT, EX_DECLINED, EX_NOPERM
from portretry_udev.config import NOWHERE, Wrong
from portretry_udev.config_edit import Unsure, table
from portretry_udev.install import InstallTrouble
from portretry_udev.interview import Interview
from portretry_udev.keys import KeyTrouble
from portretry_udev.listing import plain
from portretry_udev.login import LoginTrouble
from portretry_udev.questions import Nobody, Orders, Person, Unanswered
from portretry_udev.rest import Trouble
from portretry_udev.setup import Answers, Existing, Installing, Plan
from portretry_udev.terminal import StatusLine, Terminal, echo
from portretry_udev.waiting import CONNECTED, Seen

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


def run(orders: Orders, as_root: Callable[[], str]) -> tuple[int, dict[str, Any]]:
    """Ask, show, write, start, and wait.

    Args:
        orders: what flags say.
        as_root: gives the line that does the same as root.

    Returns:
        The exit status, and a summary for programs.  What ends it early exits the process.
    """
    person: Person = Terminal() if orders.asks else Nobody(say)
    with _told(as_root):
        there = setup_.existing(orders.config)
        with contextlib.closing(devices_or_fail()) as devices:
            answers = Interview(orders.given, there, orders.layout, devices, person).answers()
        plan = _planned(
            answers, there, Installing(orders.layout, orders.program, orders.starts, activation.run)
        )
        _judge_others(plan)
        written = None
        if plan.is_needed:
            _agreed(plan, person)
            written = setup_.write(plan)
    if written is None:
        person.say("All is in place: nothing to do.")
    else:
        _echo(cli_install.backups(written))
        _started(plan)
    _say_next(plan, orders.program)
    seen = _waited(plan, orders.wait)
    status = 0 if seen is None or seen.state == CONNECTED else EX_TEMPFAIL
    return status, _summary(answers, plan, seen)


# -- what ends it ------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _told(as_root: Callable[[], str]) -> Iterator[None]:
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
        hint = [f"as root: {as_root()}"] if trouble.forbidden else []
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
