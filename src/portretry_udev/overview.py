"""What ``status`` shows to people: the service's answer as the lines of a table.

Knows the answers of `control` and how long a line may be.  Pure: no I/O, no clock.  It must not know whether
the lines are drawn in place, or once.
"""

import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from portretry_udev.listing import plain

WIDTH = 80  # columns, where the terminal has no fewer
_STATE = len("unconfigured")
_STAMP = len("2000-01-01 00:00:00")
_FOR, _LOOK = len("59 min"), len("NEXT LOOK")
_ROOM_FOR_ALL = 60  # columns; with fewer, what can be reckoned from the rest is left out
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_COLOURS = {"connected": "green", "faulted": "red", "unreachable": "red", "unconfigured": "red"}


def lines(answer: Mapping[str, Any], width: int, now: float, age: float = 0.0) -> list[str]:
    """The state of all printers: a row of short words for each, and below it what is long.

    Args:
        answer: the service's, to ``status``.
        width: columns; no line is longer.
        now: seconds since 1970.
        age: of the answer, in seconds; its next looks are so much nearer now.
    """
    printers: dict[str, dict[str, Any]] = answer["printers"]
    width = min(WIDTH, width)
    more = width >= _ROOM_FOR_ALL
    taken = 2 + _STATE + 2 + _STAMP + (2 + _FOR + 2 + _LOOK if more else 0)
    names = max(len("NAME"), min(width - taken, max(map(len, printers), default=0)))
    head = f"{'NAME':<{names}}  {'STATE':<{_STATE}}  {'SINCE':<{_STAMP}}"
    shown = [f"{head}  {'FOR':<{_FOR}}  NEXT LOOK" if more else head.rstrip()]
    for name, found in printers.items():
        since = datetime.fromisoformat(found["since"])
        row = f"{_short(name, names)}  {_state(found['state'])}  {since.astimezone():%Y-%m-%d %H:%M:%S}"
        if more:
            passed = _span(max(0.0, now - since.astimezone(UTC).timestamp()))
            row += f"  {passed:<{_FOR}}  {_look(found['next_look'] - age)}"
        shown.append(row)
        push = (answer.get("push") or {}).get(name)
        for text in (found["why"], _whereabouts(found), _deaf(found, push)):
            shown += _wrapped(text, width, "  ")
    return shown + _wrapped(_events(answer), width, "")


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """What the printer, OctoPrint or the system said, made harmless."""
    return textwrap.wrap(
        plain(text),
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )


def _short(name: str, room: int) -> str:
    return f"{name if len(name) <= room else name[: room - 3] + '...':<{room}}"


def _state(state: str) -> str:
    return click.style(f"{state:<{_STATE}}", fg=_COLOURS.get(state, "yellow"))


def _span(seconds: float) -> str:
    """How long ago, in the largest unit that has passed."""
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return "0 s"


def _look(seconds: float) -> str:
    """When the interval looks again."""
    whole = round(seconds)
    return f"in {_span(whole)}" if whole > 0 else "now"


def _whereabouts(found: Mapping[str, Any]) -> str:
    """Port, node and holder in a few words; none of them, no words."""
    port, node, holder = found["port"], found["node"], found["holder"]
    where = " -> ".join(dict.fromkeys(name for name in (port, node) if name))
    return f"{where}, in use by {holder}" if where and holder else where


def _deaf(found: Mapping[str, Any], push: object) -> str:
    """That OctoPrint's push is wanted and does not come; while OctoPrint is away, that is no wonder."""
    if push is not False or found["state"] == "unreachable":
        return ""
    return "OctoPrint's push messages do not arrive: its changes are seen at the next look"


def _events(answer: Mapping[str, Any]) -> str:
    """Once for all printers: where device events come from, if not from where they should."""
    sources = {found["events"] for found in answer["printers"].values()}
    why = f" ({answer['events_why']})" if answer.get("events_why") else ""
    if "none" in sources:
        return f"no device events arrive here, the interval stands in{why}"
    if "kernel" in sources:
        return f"device events come from the kernel, not from udev{why}"
    return ""
