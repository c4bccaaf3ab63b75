"""What the doctor says: findings, and the catalogue of all kinds of them.

Knows the words ok, note, problem and unknown, and how a finding is made.  Must not know any single check:
those are in ``doctor_machine``, ``doctor_service``, ``doctor_octoprint`` and ``doctor_port``.
"""

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """What a finding means for the person who asks why nothing happens."""

    PROBLEM = "problem"  # because of it nothing happens, or will not the next time
    UNKNOWN = "unknown"  # it could not be looked at, and may be a problem
    NOTE = "note"  # worth knowing; the service does its job all the same
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        id: of its kind, in the catalogue; for `Level.OK` the name of the check.
        level: what it means.
        what: what was found, and why it is so, as far as that is known; one line, without a secret.
        cure: what to do, in words; empty for `Level.OK` alone.
        commands: to be typed for that, one a line.
        details: what a helper may want to know besides; one line each.
    """

    id: str
    level: Level
    what: str
    cure: str = ""
    commands: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding, as the catalogue has it.

    Attributes:
        id: its name.
        level: of all its findings.
        means: what it means, in general.
        cure: what to do, in general.
    """

    id: str
    level: Level
    means: str
    cure: str

    def found(self, what: str, cure: str = "", *commands: str, details: tuple[str, ...] = ()) -> Finding:
        """A finding of this kind; without a cure of its own it has the general one."""
        return Finding(self.id, self.level, what, cure or _clause(self.cure), commands, details)


def _clause(sentence: str) -> str:
    """A sentence in the style of all that is said on a terminal."""
    return f"{sentence[0].lower()}{sentence[1:]}".removesuffix(".")


CATALOGUE: dict[str, Kind] = {}
"""All kinds that there are, in the order of the checks; docs/doctor.md has the same as a table."""


def kind(name: str, level: Level, means: str, cure: str) -> Kind:
    """Add one to the catalogue."""
    if name in CATALOGUE:
        raise ValueError(f"{name} is in the catalogue already")
    CATALOGUE[name] = made = Kind(name, level, means, cure)
    return made


def fine(check: str, what: str, *details: str) -> Finding:
    """A check that has found nothing."""
    return Finding(check, Level.OK, what, details=details)
