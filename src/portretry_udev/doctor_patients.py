"""Finds out what the doctor's checks want to know of each printer: its key, its OctoPrint, its port.

Knows which module to ask.  Must not open a port, nor judge anything: what follows from a fact is for the
checks.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from portretry_udev import listing, login, whereabouts
from portretry_udev.about import About
from portretry_udev.config import NOWHERE, Printer
from portretry_udev.devices import Marks, Missing, Node
from portretry_udev.doctor_facts import access
from portretry_udev.facts import Patient, Process
from portretry_udev.keys import KeyTrouble, roots_place
from portretry_udev.listing import Row
from portretry_udev.octoprint import Answer, Client
from portretry_udev.rest import Kind, Rest, Trouble

_MOST_ASKED = 16  # OctoPrints at once


class Looks(listing.Ports, Protocol):
    """What is used of `devices.Devices`."""

    def marks(self, node: Node, /) -> Marks | None:
        """Give what udev's database says of a port."""

    def usb_folder(self, node: Node, /) -> Path | None:
        """Give the folder of its USB device in sysfs."""


def patients(
    printers: Sequence[Printer], devices: Looks, process: Callable[[int], Process | None]
) -> list[Patient]:
    """All that is to be known of the printers; their OctoPrints are all asked at once.

    Args:
        printers: the configured ones, whatever their keys are like.
        devices: of this machine.
        process: tells who a process is.
    """
    with ThreadPoolExecutor(_MOST_ASKED) as pool:
        asked = list(pool.map(_asked, printers))
    answers = {each.name: each.answer for each in asked if isinstance(each.answer, Answer)}
    rows = listing.gather(devices, printers, answers)
    pids = set(whereabouts.like_octoprint())
    around = tuple(found for pid in sorted(pids) if (found := process(pid)))
    return [
        replace(_examined(each, devices, rows), octoprints=frozenset(pids), around=around) for each in asked
    ]


def majors(seen: Iterable[Patient]) -> frozenset[int]:
    """The device numbers of their ports."""
    return frozenset(os.major(patient.node.number) for patient in seen if patient.node is not None)


def _asked(printer: Printer) -> Patient:
    trouble = _key(printer)
    if trouble is not None:
        hidden = _is_hidden(printer)
        return Patient(printer, trouble, not hidden and _is_keyless(printer), hidden, _without_key(printer))
    told = _Told(printer)
    path = None if printer.key.credential else printer.key.path
    kept = None if path is None else access(path)
    return Patient(printer, answer=told.answer, about=told.about, verdict=told.verdict, kept=kept)


def _key(printer: Printer) -> KeyTrouble | None:
    if printer.key == NOWHERE:
        return KeyTrouble(
            "nobody has named the file of its API key", f"do: portretry-udev login {printer.name}"
        )
    try:
        printer.key.read()
    except KeyTrouble as trouble:
        return trouble
    return None


def _is_hidden(printer: Printer) -> bool:
    """Whether the key is somebody else's, and we could not have read it."""
    path = roots_place(printer.name) if printer.key == NOWHERE else printer.key.path
    if path is None or os.geteuid() == 0:
        return False
    try:
        return path.stat().st_uid != os.geteuid() and not os.access(path, os.R_OK)
    except PermissionError:
        return True
    except OSError:
        return False


def _is_keyless(printer: Printer) -> bool:
    path = printer.key.path
    return printer.key == NOWHERE or (path is not None and not os.path.lexists(path))


def _without_key(printer: Printer) -> Trouble | None:
    """Whether anything is there at all: without a key an OctoPrint says 403."""
    with contextlib.closing(Rest(printer.octoprint, None, ca_file=printer.ca_file)) as rest:
        try:
            rest.ask(
                "GET", "/api/version", expected=(HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
            )
        except Trouble as trouble:
            return trouble
    return None


@dataclass
class _Told:
    """What one OctoPrint says to a key."""

    answer: Answer | Trouble
    about: About | None
    verdict: str

    def __init__(self, printer: Printer) -> None:
        self.about, self.verdict = None, ""
        with contextlib.closing(
            Client(printer.octoprint, printer.key.read, ca_file=printer.ca_file)
        ) as client:
            try:
                self.answer = client.look()
            except Trouble as trouble:
                self.answer = trouble
            # A key without the permission to look may still ask whose it is.
            if isinstance(self.answer, Answer) or self.answer.kind is Kind.KEY:
                with contextlib.suppress(Trouble):
                    self.about = client.about()
        if isinstance(self.answer, Trouble) and self.answer.kind is Kind.KEY:
            self.verdict = _verdict(printer)


def _verdict(printer: Printer) -> str:
    """Why a key is refused."""
    with contextlib.closing(Rest(printer.octoprint, printer.key.read, ca_file=printer.ca_file)) as rest:
        try:
            login.judge(login.whose(rest), rest.who)
        except (login.LoginTrouble, Trouble) as trouble:
            return str(trouble)
    return ""


def _examined(patient: Patient, devices: Looks, rows: Sequence[Row]) -> Patient:
    """With its port."""
    answer = patient.answer if isinstance(patient.answer, Answer) else None
    wanted = listing.wanted(patient.printer, answer)
    found: Node | Missing | None = None if wanted is None else devices.find(wanted)
    if not isinstance(found, Node):
        return replace(patient, wanted=wanted, found=found)
    usb = devices.usb_folder(found)
    return replace(
        patient,
        wanted=wanted,
        found=found,
        row=next((row for row in rows if row.printer == patient.name), None),
        access=access(found.real),
        marks=devices.marks(found),
        usb=usb,
        power=_power(usb),
    )


def _power(usb: Path | None) -> str:
    if usb is not None:
        with contextlib.suppress(OSError):
            return (usb / "power/control").read_text().strip()
    return ""
