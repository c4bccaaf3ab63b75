"""What an OctoPrint is, beyond what it is doing: version, mode, what our key may, and who else reconnects.

Knows the four endpoints that tell, and the plugins that reconnect by themselves.  Must not know the printer's
states (``octoprint``), nor when to ask or what follows (``watcher``).

Each endpoint is asked only when the key's permissions allow it: OctoPrint logs every refusal as a warning.
None of them but the first is needed; what is not told stays unknown.
"""

import contextlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

from portretry_udev.rest import Rest, Trouble, one_line

__all__ = ["RIVALS", "About", "Remark", "ask_about"]

NEEDED = ("STATUS", "CONNECTION")
"""The permissions without which nothing works: to look, and to connect (facts, section 4)."""
ALL = "ADMIN"  # all three versions list the others beside it; what comes need not
SETTINGS = "SETTINGS_READ"
PLUGINS = "PLUGIN_PLUGINMANAGER_LIST"
"""To list the plugins that are switched on; it belongs to OctoPrint's group of users.  It is not there at all
when the plugin manager is off."""

SAFE_MODES = {
    "flag": "it was started so",
    "settings": "it was asked to, once",
    "incomplete_startup": "its last start did not end well, see its octoprint.log",
}
"""octoprint/cli/server.py, the same in 1.10.3, 1.11.8 and 2.0.0rc7."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A plugin that reconnects by itself; what it does was seen by running it (facts, section 8), or read."""

    name: str
    does: str


RIVALS = {
    "portretry": Rival(
        "PortRetry", "opens the port and reconnects every few seconds, also after a deliberate Disconnect"
    ),
    "portretryplus": Rival(
        "PortRetryPlus", "opens the port and reconnects every few seconds, also after a deliberate Disconnect"
    ),
    "autoconnectplus": Rival(
        "AutoConnectPlus", "reconnects every few seconds, also after a deliberate Disconnect"
    ),
    "portlister": Rival("PortLister", "connects too, a while after the port has appeared"),
}
"""By their identifiers (plugin_identifier of their setup.py, entry point of AutoConnectPlus)."""
PORT_LISTER = "portlister"


class Remark(NamedTuple):
    """One thing that a person should know of an OctoPrint, and what to do about it."""

    subject: Literal["permissions", "safe mode", "rival"]
    what: str
    cure: str


@dataclass(frozen=True, slots=True)
class About:
    """What one OctoPrint is; for one run of it.

    Attributes:
        version: "1.11.8"; None: not told.
        safe_mode: why it runs without third-party plugins, in OctoPrint's word; None: it does not.
        user: whose the key is.
        missing: which of `NEEDED` the key lacks.
        rivals: names of other plugins that reconnect, and are active; empty also when it cannot be known.
        autoconnect: whether it connects by itself when it starts; None: not told.
    """

    version: str | None
    safe_mode: str | None
    user: str | None
    missing: tuple[str, ...]
    rivals: tuple[str, ...]
    autoconnect: bool | None

    def sayings(self) -> list[str]:
        """What a person should know of it, and do: a line each."""
        return [f"{remark.what}: {remark.cure}" for remark in self.remarks()]

    def remarks(self) -> list[Remark]:
        """The same, in parts."""
        said = []
        if self.missing:
            whose = "the API key's user" + (f" {self.user}" if self.user else "")
            lacks = " and ".join(self.missing)
            cure = "grant it in OctoPrint's settings, Access Control"
            said.append(Remark("permissions", f"{whose} lacks {lacks}", cure))
        if self.safe_mode:
            why = SAFE_MODES.get(self.safe_mode, self.safe_mode)
            what = f"OctoPrint runs in safe mode ({why}), without third-party plugins"
            said.append(Remark("safe mode", what, "restart it to end that"))
        for rival in RIVALS.values():
            if rival.name in self.rivals:
                cure = "disable it in OctoPrint's plugin manager"
                said.append(Remark("rival", f"OctoPrint's plugin {rival.name} {rival.does}", cure))
        return said


def ask_about(rest: Rest, *, autoconnect: bool | None) -> About:
    """Ask all that may be asked.

    Args:
        rest: with the key.
        autoconnect: as ``/api/connection`` told it (2.0); None: it did not (1.x).

    Raises:
        Trouble: it did not even tell whose the key is.
    """
    user = rest.ask("GET", "/api/currentuser").body
    told = _part(user, "permissions")
    permissions = [name for name in told if isinstance(name, str)] if isinstance(told, list) else []

    def ask(permission: str, path: str) -> object:
        if permission in permissions:
            with contextlib.suppress(Trouble):  # that part stays unknown
                return rest.ask("GET", path).body
        return None

    server = ask("STATUS", "/api/server")
    settings = ask(SETTINGS, "/api/settings")
    # Of those that are switched on; and OctoPrint fetches no notices for it, as it does for .../plugins.
    plugins = ask(PLUGINS, "/plugin/pluginmanager/plugins/versions")
    if autoconnect is None:
        autoconnect = _bool(_part(settings, "serial"), "autoconnect")
    return About(
        version=_text(server, "version"),
        safe_mode=_text(server, "safemode"),
        user=_text(user, "name"),
        missing=() if ALL in permissions else tuple(name for name in NEEDED if name not in permissions),
        rivals=_active_rivals(plugins, _part(settings, "plugins"), autoconnect=autoconnect),
        autoconnect=autoconnect,
    )


def _active_rivals(plugins: object, settings: object, *, autoconnect: bool | None) -> tuple[str, ...]:
    """Which rivals are at work.

    Args:
        plugins: those switched on, by identifier.
        settings: of plugins, by identifier; one that is switched off has none there.
        autoconnect: as that of `About`.
    """
    known = {name for told in (plugins, settings) if isinstance(told, dict) for name in told}
    idle = {name for name in RIVALS if _bool(_part(settings, name), "enabled") is False}  # AutoConnectPlus
    if autoconnect is False:
        idle.add(PORT_LISTER)  # it only refreshes the list of ports then
    return tuple(rival.name for name, rival in RIVALS.items() if name in known - idle)


# -- foreign data: what has not the expected shape is not told ----------------------------------------------


def _part(where: object, name: str) -> object:
    return where.get(name) if isinstance(where, dict) else None


def _text(where: object, name: str) -> str | None:
    value = _part(where, name)
    return one_line(value.encode("utf-8", "replace").decode()) if isinstance(value, str) and value else None


def _bool(where: object, name: str) -> bool | None:
    value = _part(where, name)
    return value if isinstance(value, bool) else None
