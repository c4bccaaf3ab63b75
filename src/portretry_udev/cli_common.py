"""What several commands share: exit statuses, how a command fails, and the flags that stand anywhere.

Knows click and sysexits(3).  Must not know any single command.
"""

import logging
import os
import select
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from portretry_udev import logs
from portretry_udev.config import DEFAULT_FILE, Config, Wrong, load
from portretry_udev.devices import Devices, NoLibudevError

EX_SILENT = 1  # a probe that heard nothing
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_TEMPFAIL = 75
EX_CONFIG = 78  # systemd is told not to restart the service on it
EX_INTERRUPTED = 130  # as shells say it: 128 + SIGINT
_HEARS_WITHIN = 0.5  # seconds

# The variables that make a configuration without a file.
_CONFIGURE = ("PORTRETRY_CONFIG", "PORTRETRY_OCTOPRINT", "PORTRETRY_OCTOPRINT_CONFIG")


def say(*lines: str) -> None:
    """Put lines on stderr, each with our name in front; in the journal systemd does that."""
    front = logs.priority(logging.ERROR) if logs.is_journal(sys.stderr) else "portretry-udev: "
    for line in lines:
        click.echo(f"{front}{line}", err=True)


def fail(status: int, *lines: str) -> NoReturn:
    """Say why, and exit with that status."""
    say(*lines)
    sys.exit(status)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what may stand anywhere: --config and -v."""
    verbose = click.option("-v", "--verbose", is_flag=True, help="Say each event and each effect.")
    config = click.option(
        "--config", type=click.Path(dir_okay=False), help="Configuration  [/etc/portretry-udev/config.toml]"
    )
    return config(verbose(command))


def given(flags: dict[str, Any], ctx: click.Context) -> dict[str, Any]:
    """A command's flags, with those given before its name."""
    return {**flags, "config": flags.get("config") or (ctx.obj or {}).get("config")}


def load_or_fail(flags: dict[str, Any], only: tuple[str, ...] = ()) -> Config:
    """The configuration; its mistakes end the command, all of them told."""
    try:
        return load(flags, os.environ, only)
    except Wrong as wrong:
        fail(EX_CONFIG, *wrong.mistakes, "nothing was started or changed")


def is_configured(flags: dict[str, Any]) -> bool:
    """Whether anybody has configured anything; if not, no mistake of theirs needs to be told."""
    named = flags.get("config") or any(os.environ.get(variable) for variable in _CONFIGURE)
    try:
        return bool(named) or DEFAULT_FILE.exists()
    except OSError:
        return True  # its folder is not for us: reading the file tells so


def devices_or_fail() -> Devices:
    """The serial ports; without libudev the command ends."""
    try:
        return Devices()
    except NoLibudevError as missing:
        fail(EX_UNAVAILABLE, str(missing))


def colour() -> bool | None:
    """For ``click.echo``: no colours where NO_COLOR is set (no-color.org), else on a terminal only."""
    return False if os.environ.get("NO_COLOR") else None


def typed(prompt: str) -> str:
    """A line, without the blanks around it.

    click's own prompt writes a part of itself to stdout.

    Raises:
        Abort: there is nobody any more.
    """
    click.echo(prompt, err=True, nl=False, color=colour())
    if sys.stdin.isatty():
        # A Ctrl-C just before read(2) is noticed only when that returns, and nobody may type any more.
        while not select.select([sys.stdin], [], [], _HEARS_WITHIN)[0]:
            pass
    line = sys.stdin.readline()
    if not line:
        raise click.Abort
    if not sys.stdin.isatty():  # then nobody has ended the prompt's line
        click.echo(err=True)
    return line.strip()
