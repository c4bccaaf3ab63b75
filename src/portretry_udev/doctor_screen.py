"""How the doctor's report looks: on a screen, and as JSON; and that no key is in it.

Knows columns and colours.  Must not know a single check, nor where a report goes.
"""

import contextlib
import dataclasses
import os
import platform
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from portretry_udev import __version__
from portretry_udev.config import Printer
from portretry_udev.doctor import CATALOGUE, Finding, Level, Report
from portretry_udev.keys import KeyTrouble
from portretry_udev.listing import plain
from portretry_udev.rest import without_secrets

_COLOURS = {Level.PROBLEM: "red", Level.UNKNOWN: "yellow", Level.NOTE: "yellow", Level.OK: "green"}
_SHORTEST_KEY = 16  # characters; OctoPrint's have 32 and more, and a word is not to be taken for one
_MARGIN = 2
_LEVEL = 9  # columns for the level and a blank


# -- secrets -----------------------------------------------------------------------------------------------
def keys(printers: Iterable[Printer]) -> list[str]:
    """The keys that must not be seen, whoever has said them: an OctoPrint could put ours into its words."""
    keys = []
    for printer in printers:
        with contextlib.suppress(KeyTrouble):
            keys.append(printer.key.read())
    return [key for key in keys if len(key) >= _SHORTEST_KEY]


def without(secrets: Sequence[str], report: Report) -> Report:
    """The report, with none of these in it."""

    def clean(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "(the API key)")
        return text

    def cleaned(found: Iterable[Finding]) -> tuple[Finding, ...]:
        return tuple(
            dataclasses.replace(
                each,
                what=clean(each.what),
                cure=clean(each.cure),
                commands=tuple(map(clean, each.commands)),
                details=tuple(map(clean, each.details)),
            )
            for each in found
        )

    printers = {name: cleaned(found) for name, found in report.printers.items()}
    return dataclasses.replace(report, machine=cleaned(report.machine), printers=printers)


# -- for programs ------------------------------------------------------------------------------------------
def as_json(report: Report) -> dict[str, Any]:
    """The report for programs."""
    return {
        "version": __version__,
        "system": _system(),
        "root": os.geteuid() == 0,
        "healthy": report.healthy,
        "problems": report.count(Level.PROBLEM),
        "machine": [_finding(finding) for finding in report.machine],
        "printers": {name: [_finding(each) for each in found] for name, found in report.printers.items()},
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {**dataclasses.asdict(finding), "level": finding.level.value}


# -- for people --------------------------------------------------------------------------------------------
class Screen:
    """How a report looks in so many columns."""

    def __init__(self, width: int) -> None:
        self._width = width

    def text(self, report: Report, *, verbose: bool) -> Iterator[str]:
        """All of it, the worst first in each group."""
        yield from self._wrapped(f"portretry-udev {__version__}, {_system()}", "")
        yield ""
        yield from self._group("This machine", report.machine, verbose=verbose)
        for name, found in report.printers.items():
            yield ""
            title = f"Printer {name}, OctoPrint at {without_secrets(report.octoprints[name])}"
            yield from self._group(title, found, verbose=verbose)
        yield ""
        yield from self._wrapped(_sum(report), "")

    def _group(self, title: str, found: Sequence[Finding], *, verbose: bool) -> Iterator[str]:
        yield from (click.style(line, bold=True) for line in self._wrapped(title, ""))
        for finding in found:
            yield from self._finding(finding, verbose=verbose)

    def _finding(self, finding: Finding, *, verbose: bool) -> Iterator[str]:
        room = " " * (_MARGIN + _LEVEL)
        label = f"{finding.level.value:<{_LEVEL}}"
        is_fine = finding.level is Level.OK
        text = f"{finding.id}: {finding.what}" if is_fine else f"{finding.what} [{finding.id}]"
        first, *rest = self._wrapped(text, room)
        yield f"{' ' * _MARGIN}{click.style(label, fg=_COLOURS[finding.level])}{first[len(room) :]}"
        yield from rest
        if finding.cure:
            yield from self._wrapped(f"-> {finding.cure}", room, hang="   ")
        # Whole, since they are there to be copied.
        yield from (f"{room}   {plain(command)}" for command in finding.commands)
        if verbose:
            means = [CATALOGUE[finding.id].means] if finding.id in CATALOGUE else []
            for detail in (*means, *finding.details):
                yield from self._wrapped(detail, f"{room}   ", hang="  ")

    def _wrapped(self, text: str, room: str, hang: str = "") -> list[str]:
        """Names that are longer than a line stay whole: they, too, are copied."""
        return textwrap.wrap(
            plain(text),
            self._width,
            initial_indent=room,
            subsequent_indent=room + hang,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _system() -> str:
    """What everybody asks who is to help."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = "Linux of an unknown kind"
    kernel = f"Linux {platform.release()} {platform.machine()}"
    return f"{name}, {kernel}, Python {platform.python_version()}"


def _sum(report: Report) -> str:
    counts = [
        (report.count(Level.PROBLEM), "problem", "problems"),
        (report.count(Level.NOTE), "note", "notes"),
        (report.count(Level.UNKNOWN), "check could not be made", "checks could not be made"),
    ]
    told = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    if report.healthy:
        told.insert(0, "no problem found")
    hint = "" if os.geteuid() == 0 else " (not root: sudo portretry-udev doctor sees more)"
    more = "" if len(told) == report.healthy else "; -v explains each"
    return f"{', '.join(told)}{hint}{more}"
