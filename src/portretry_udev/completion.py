"""What the shell offers after TAB: printers' names, ports, files, beside the words that click knows itself.

Knows what stands behind the words of the commands' help (NAME, NODE, FILE, ...).  Must not know any single
command: a parameter completes by what it is called there.  A person is in the middle of typing a line, so
whatever goes wrong here is no suggestion, and never a message.

The shells' ends of it are in ``share/``; they start the program with ``_PORTRETRY_UDEV_COMPLETE`` set.
"""

import os
import threading
import tomllib
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from portretry_udev import config, control
from portretry_udev.devices import Devices, NoLibudevError

VARIABLE = "_PORTRETRY_UDEV_COMPLETE"  # as click makes it of the program's name
_PATIENCE = 0.5  # seconds for the service; who types waits for no more


def teach(group: click.Group) -> None:
    """Let every text parameter of every command complete as what it is called."""
    for command in [group, *group.commands.values()]:
        for parameter in command.params:
            called = parameter.metavar or (parameter.name or "").upper()
            if parameter.type is click.STRING and called in _MEANT:
                parameter.type = _Completed(called, _MEANT[called])


class _Completed(click.types.StringParamType):
    """Text that is completed."""

    def __init__(self, name: str, found: Callable[[click.Context], Iterable[str]] | str) -> None:
        self.name = name
        self._found = found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """What begins as the incomplete word does, and was not said before."""
        if isinstance(self._found, str):
            return [CompletionItem(incomplete, type=self._found)]  # the shell itself knows files best
        said = ctx.params.get(param.name or "") if param.nargs == -1 else ()
        return [
            CompletionItem(word)
            for word in dict.fromkeys(self._found(ctx))
            if word.startswith(incomplete) and word not in (said or ())
        ]


def _names(ctx: click.Context) -> list[str]:
    """The printers of the configuration; where none can be read, those of the running service."""
    place: click.Context | None = ctx
    named = None
    while place is not None and not named:
        named, place = place.params.get("config"), place.parent
    try:
        with Path(named or os.environ.get("PORTRETRY_CONFIG") or config.DEFAULT_FILE).open("rb") as file:
            return list(tomllib.load(file)["printers"])
    except (OSError, ValueError, KeyError, TypeError):
        return _watched(ctx.params.get("path") or os.environ.get("PORTRETRY_CONTROL"))


def _watched(socket: str | None) -> list[str]:
    """The printers that the service watches, if it says so at once."""
    found: list[str] = []

    def ask() -> None:
        try:
            found.extend(control.ask(Path(socket) if socket else None, "status")["printers"])
        except (control.ControlError, KeyError, TypeError):
            return  # no service, or none that answers us: nothing to suggest

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return list(found)


def _nodes(_: click.Context) -> list[str]:
    """The serial ports by all their names; those that stay the same come first."""
    try:
        with closing(Devices()) as devices:
            ports = devices.ports()
    except NoLibudevError:
        return []
    links = [link for port in ports for link in (port.by_id, port.by_path) if link]
    return links + [port.node for port in ports]


def _nodes_and_names(ctx: click.Context) -> list[str]:
    return _nodes(ctx) + _names(ctx)


_MEANT: dict[str, Any] = {
    "NAME": _names,
    "NODE": _nodes,
    "PORT": _nodes_and_names,
    "FILE": "file",
    "PATH": "file",
    "DIR": "dir",
}
