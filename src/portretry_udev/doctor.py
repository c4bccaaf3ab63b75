"""Why nothing happens: all checks, over the machine and each printer, in the order in which to read them.

Pure: facts in, a report out.  Must not know where the facts come from (``doctor_facts`` and
``doctor_patients``), nor how a report looks (``doctor_screen``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from portretry_udev import doctor_machine, doctor_octoprint, doctor_port, doctor_service
from portretry_udev.facts import Machine, Patient
from portretry_udev.findings import CATALOGUE, Finding, Level

__all__ = ["CATALOGUE", "Finding", "Level", "Report", "examine"]

_ORDER = list(Level)


@dataclass(frozen=True)
class Report:
    """All findings, the worst first.

    Attributes:
        machine: of the machine and the service.
        printers: of each printer, by its name.
        octoprints: the printers' addresses, for the report's reader.
    """

    machine: tuple[Finding, ...]
    printers: dict[str, tuple[Finding, ...]]
    octoprints: dict[str, str]

    @property
    def all(self) -> tuple[Finding, ...]:
        """All of them."""
        return (*self.machine, *(finding for found in self.printers.values() for finding in found))

    def count(self, level: Level) -> int:
        """How many there are of a level."""
        return sum(finding.level is level for finding in self.all)

    @property
    def healthy(self) -> bool:
        """Whether there is no problem; notes and what could not be looked at are none."""
        return self.count(Level.PROBLEM) == 0


def examine(machine: Machine, patients: Sequence[Patient]) -> Report:
    """Make all checks."""
    general = [
        finding
        for checks in (doctor_machine.CHECKS, doctor_service.CHECKS)
        for check in checks
        for finding in check(machine)
    ]
    return Report(
        _sorted(general),
        {patient.name: _sorted(_examined(patient, machine)) for patient in patients},
        {patient.name: patient.printer.octoprint for patient in patients},
    )


def _examined(patient: Patient, machine: Machine) -> list[Finding]:
    found = [finding for check in doctor_octoprint.CHECKS for finding in check(patient)]
    found += [finding for check in doctor_port.CHECKS for finding in check(patient, machine)]
    found += doctor_service.key(patient, machine.service)
    healthy = all(finding.level is not Level.PROBLEM for finding in found)
    return [*found, *doctor_service.printer(patient.name, machine.service, else_fine=healthy)]


def _sorted(found: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda finding: _ORDER.index(finding.level)))  # stable
