"""What the doctor has found out, as data: of the machine, of our service, and of each printer.

Must not know where it comes from (``doctor_facts``), nor what follows from it (the checks).
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portretry_udev.about import About
from portretry_udev.config import Printer, Survey
from portretry_udev.devices import Marks, Missing, Node, Wanted
from portretry_udev.keys import KeyTrouble
from portretry_udev.listing import Row
from portretry_udev.octoprint import Answer
from portretry_udev.rest import Trouble
from portretry_udev.surroundings import Hearing

_CAP_DAC_OVERRIDE = 1 << 1  # <linux/capability.h>
_CAP_SYS_PTRACE = 1 << 19
ALL_CAPABILITIES = -1


@dataclass(frozen=True, slots=True)
class Process:
    """A process, or one that would be started: who it is, and what it may.

    Attributes:
        pid: 0: it does not run.
        user: its effective user's number.
        groups: all of its groups.
        capabilities: the effective ones, as the kernel has them; `ALL_CAPABILITIES`.
    """

    pid: int
    user: int
    groups: frozenset[int]
    capabilities: int = 0

    def may_open(self, access: "Access") -> bool | None:
        """Whether it may read and write such a node; None: an access list says, which is not read."""
        if self.capabilities & _CAP_DAC_OVERRIDE:
            return True
        if self.user == access.owner:
            wanted = stat.S_IRUSR | stat.S_IWUSR
        elif access.list:
            return None
        elif access.group in self.groups:
            wanted = stat.S_IRGRP | stat.S_IWGRP
        else:
            wanted = stat.S_IROTH | stat.S_IWOTH
        return access.mode & wanted == wanted

    @property
    def sees_all(self) -> bool:
        """Whether it can look into other users' processes."""
        return bool(self.capabilities & _CAP_SYS_PTRACE)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may open a node; ``list``: it has an access list besides (acl(5))."""

    mode: int
    owner: int
    group: int
    list: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is to be written; that of which is not there, its nearest parent's."""

    path: Path
    read_only: bool = False
    free: int = 1 << 40  # bytes
    access: Access | None = None
    spoilt: tuple[str, ...] = ()  # files that were not understood, and set aside


@dataclass(frozen=True, slots=True)
class RuleFile:
    """A udev rule file of ours, as udev sees it.

    Attributes:
        path: the one that counts; None: there is none.
        off: it is a link to /dev/null, or empty: udev reads nothing.
        text: its content; None: it cannot be read.
    """

    path: Path | None
    off: bool = False
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """Our service.

    Attributes:
        manager: what PID 1 is called.
        unit: what systemd says of our unit, by its own names of properties; None: systemd does not run here.
        unread: why systemd did not tell; empty if it did.
        processes: those that are a ``portretry-udev watch``.
        answer: of the control socket, to ``status``; None: there was none.
        trouble: why not.
        refused: since we may not ask.
        would_be: who it would run as, if it ran.
    """

    manager: str = "systemd"
    unit: Mapping[str, str] | None = None
    unread: str = ""
    processes: tuple[Process, ...] = ()
    answer: Mapping[str, Any] | None = None
    trouble: str = ""
    refused: bool = False
    would_be: Process = field(default=Process(0, 0, frozenset(), ALL_CAPABILITIES))

    @property
    def itself(self) -> Process:
        """Who opens the ports."""
        return self.processes[0] if self.processes else self.would_be


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, or container.

    Attributes:
        root: we are root, and see all.
        survey: the configuration.
        majors: the device numbers of the printers' ports that are there.
        drivers: the names of the drivers that the kernel has for each such number.
        hearing: which events can arrive, as was foretold.
        heard: an event that we sent was heard; None: none was sent.
        unsent: why not.
        deaf: why inotify cannot be used; empty if it can.
        now: the time of day, in seconds since 1970.
        synchronised: the kernel says that somebody keeps its clock; None: it does not tell.
        state: the state folder.
        running: which of the programs that are known to take ports run here.
        undervoltage: what tells of it, on a Raspberry Pi; empty: nothing.
        rule: 99-portretry.rules.
        printers_rule: 99-portretry-printers.rules.
        service: our own.
    """

    root: bool
    survey: Survey
    majors: frozenset[int]
    drivers: Mapping[int, frozenset[str]]
    hearing: Hearing
    heard: bool | None
    unsent: str
    deaf: str
    now: float
    synchronised: bool | None
    state: Folder | None
    running: frozenset[str]
    undervoltage: str
    rule: RuleFile
    printers_rule: RuleFile
    service: Service


@dataclass(frozen=True, slots=True)
class Patient:
    """One configured printer, its port and its OctoPrint.

    Attributes:
        printer: as configured.
        key: why its key cannot be used; None: it can.
        keyless: nobody has put a key there, or said where it is.
        kept: who may read the file of the key; None: it is in none, or it cannot be looked at.
        hidden: the key is root's, and we are not: nothing can be said of it.
        answer: what its OctoPrint says; None: it was not asked, for want of a key, but something is there.
        about: what that is; None: it did not tell.
        verdict: whose fault a refused key is, in ``login``'s words.
        wanted: which device it is; None: nobody says.
        found: that device.
        row: the port, with its holders and names.
        octoprints: those of the holders that are an OctoPrint, by their pid.
        access: who may open the node.
        marks: udev's.
        usb: the folder of its USB device in sysfs.
        power: what ``power/control`` there says.
        around: OctoPrints that run here.
    """

    printer: Printer
    key: KeyTrouble | None = None
    keyless: bool = False
    hidden: bool = False
    answer: Answer | Trouble | None = None
    about: About | None = None
    verdict: str = ""
    wanted: Wanted | None = None
    found: Node | Missing | None = None
    row: Row | None = None
    kept: Access | None = None
    octoprints: frozenset[int] = frozenset()
    access: Access | None = None
    marks: Marks | None = None
    usb: Path | None = None
    power: str = ""
    around: tuple[Process, ...] = ()

    @property
    def name(self) -> str:
        """The printer's."""
        return self.printer.name

    @property
    def node(self) -> Node | None:
        """The device, if it is there."""
        return self.found if isinstance(self.found, Node) else None
