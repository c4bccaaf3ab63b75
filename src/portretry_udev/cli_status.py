"""The commands that ask the running service: ``status``, ``retry``, ``pause`` and ``resume``.

Knows the flags, and what is said of the answers.  Must not know how the service is asked (``control``), nor
how a terminal is drawn on (``live``).
"""

import json
import math
import os
import queue
import re
import shutil
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from portretry_udev import control, live, overview
from portretry_udev.cli_common import EX_CONFIG, EX_INTERRUPTED, EX_TEMPFAIL, colour, fail
from portretry_udev.config import DEFAULT_FILE
from portretry_udev.listing import plain

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_REFRESH_PAUSE = 1.0  # seconds between two questions of `status --follow` on a terminal


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


@click.command(short_help="What the running service sees and waits for.")
@_asks_service
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
@click.option("--follow", is_flag=True, help="Live, until Ctrl-C; piped: again at each change.")
@click.pass_context
def status(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context, name: str | None, path: str | None, config: str | None, *, as_json: bool, follow: bool
) -> None:
    """Say what the running service sees, waits for and has done; for all printers, or the one NAMEd."""
    socket = _socket(ctx, path, config)
    if not follow:
        _show(_ask(socket, "status", printer=name), as_json=as_json, indent=2)
        return
    try:
        if as_json or not live.possible():
            _follow_in_blocks(socket, name, as_json=as_json)
        else:
            _follow_in_place(socket, name)
    except control.ControlError as e:
        fail(e.status, plain(str(e)))
    except KeyboardInterrupt:
        sys.exit(EX_INTERRUPTED)


def _show(answer: dict[str, Any], *, as_json: bool, indent: int | None = None) -> None:
    if as_json:
        click.echo(json.dumps({"printers": answer["printers"]}, indent=indent))
        return
    for line in overview.lines(answer, shutil.get_terminal_size().columns, time.time()):
        click.echo(line, color=colour())


def _follow_in_blocks(socket: Path | None, name: str | None, *, as_json: bool) -> None:
    for count, answer in enumerate(control.follow(socket, name)):
        if count and not as_json:
            click.echo()
        _show(answer, as_json=as_json)
        sys.stdout.flush()


def _follow_in_place(socket: Path | None, name: str | None) -> None:
    """Draw the newest state, each second anew; at the end what was seen last stays on the terminal.

    The service tells of changes by itself.  It is asked again when the look that was announced is over, since
    looks that find nothing are no change.
    """
    mail: queue.SimpleQueue[Any] = queue.SimpleQueue()
    wishes: queue.SimpleQueue[None] = queue.SimpleQueue()
    answer, answered_at = _ask(socket, "status", printer=name), time.monotonic()
    for talk in (lambda: control.follow(socket, name), lambda: _asked(socket, name, wishes)):
        threading.Thread(target=_talk, args=(talk, mail), daemon=True).start()
    screen = live.Screen(lambda: mail.put(None))
    asked_at = answered_at
    try:
        with screen.showing():
            while True:
                age = time.monotonic() - answered_at
                screen.draw(_picture(answer, screen.size().columns, age))
                match live.waited(mail, 1.0 - age % 1.0):
                    case dict() as answer:
                        answered_at = time.monotonic()
                    case BaseException() as error:
                        raise error
                screen.rest()
                now = time.monotonic()
                due = answered_at + min(each["next_look"] for each in answer["printers"].values())
                if now > max(due, asked_at + _REFRESH_PAUSE):
                    asked_at = now
                    wishes.put(None)
    finally:
        _show(answer, as_json=False)


def _picture(answer: dict[str, Any], columns: int, age: float) -> list[str]:
    lines = [
        *overview.lines(answer, columns, time.time(), age),
        "",
        click.style("Ctrl-C ends this", dim=True),
    ]
    return lines if colour() is None else [click.unstyle(line) for line in lines]


def _asked(socket: Path | None, name: str | None, wishes: "queue.SimpleQueue[None]") -> Iterator[Any]:
    """An answer for each wish."""
    while True:
        wishes.get()
        yield control.ask(socket, "status", printer=name)


def _talk(talk: Callable[[], Iterator[Any]], mail: "queue.SimpleQueue[Any]") -> None:
    """A thread's whole life: what the service says, and why it says no more."""
    try:
        for answer in talk():
            mail.put(answer)
    except BaseException as e:  # noqa: BLE001 - raised again where it can be told
        mail.put(e)


@click.command(short_help="Forget a Disconnect, a fault, a back-off: try now.")
@_asks_service
@click.pass_context
def retry(ctx: click.Context, name: str | None, path: str | None, config: str | None) -> None:
    """Forget why hands are off: look again now, also after a Disconnect or a fault.

    For all printers, or the one NAMEd.
    """
    for printer in _ask(_socket(ctx, path, config), "retry", printer=name)["printers"]:
        click.echo(f"{printer}: looking anew; what comes of it: portretry-udev status {printer}")


@click.command(short_help="Let go of the port, to flash the printer.")
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


@click.command(short_help="End a pause.")
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
