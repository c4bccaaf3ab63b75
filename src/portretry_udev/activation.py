"""What udev and systemd have to be told about our files: as commands with their reasons, and carried out.

Knows the command lines of udevadm and systemctl, and how to see whether either is at work here.  Must not
know what is in our files.  A command is data (`Step`) until `perform` runs it: it is shown by a dry run, and
tests see what would be run.
"""

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from portretry_udev.udev_rule import UNIT

PATIENCE = 120.0  # seconds for a command; systemd itself gives up after 90 on a service that is not ready
NOT_FOUND = 127  # as shells say it
_USB_PORTS = ("ttyACM*", "ttyUSB*")


@dataclass(frozen=True)
class Step:
    """A command, and what it is for."""

    command: tuple[str, ...]
    why: str


RELOAD = Step(("systemctl", "daemon-reload"), "so that systemd reads the unit")


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: its exit status.
        text: the last line that it said, of its errors if it told any.
        answer: what it wrote to stdout.
    """

    status: int
    text: str = ""
    answer: str = ""


class Run(Protocol):
    """Whoever runs commands."""

    def __call__(self, command: Sequence[str], /) -> Outcome:
        """Run it to its end; one that is not there ends with `NOT_FOUND`."""


def run(command: Sequence[str], /) -> Outcome:
    """Run a command on this machine."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        return Outcome(NOT_FOUND, "no such command here")
    except OSError as e:
        return Outcome(NOT_FOUND, e.strerror or str(e))
    except subprocess.TimeoutExpired:
        return Outcome(124, f"not done after {PATIENCE:g} s")
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return Outcome(done.returncode, said[-1] if said else "", done.stdout.strip())


# -- what is at work here ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """What is at work on a machine.

    Attributes:
        udevd: runs, and takes commands.
        systemd: is process 1 (as sd_booted(3) sees it).
        has_systemd: is installed: it may be at work after the next boot.
        known: there is a unit of our name.
        active: the service runs, or is about to.
        failed: it has ended, and not well.
        enabled: it starts at boot.
        masked: its administrator has switched it off.
        stale: systemd has not read the unit since it was changed.
    """

    udevd: bool = False
    systemd: bool = False
    has_systemd: bool = False
    known: bool = False
    active: bool = False
    failed: bool = False
    enabled: bool = False
    masked: bool = False
    stale: bool = False


def look(run: Run, root: Path = Path("/")) -> Machine:
    """See what is at work here.  systemd is asked only if it runs.

    Args:
        run: runs commands.
        root: where /run and /usr are, for tests.
    """
    udevd = (root / "run/udev/control").exists()
    places = ("usr/lib/systemd/system", "lib/systemd/system")
    has_systemd = any((root / place).is_dir() for place in places)
    if not (root / "run/systemd/system").is_dir():
        return Machine(udevd, has_systemd=has_systemd)
    asked = ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload")
    outcome = run(("systemctl", "show", f"--property={','.join(asked)}", UNIT))
    said = dict(line.split("=", 1) for line in outcome.answer.splitlines() if "=" in line)
    load, active, file, stale = (said.get(key, "") for key in asked)
    return Machine(
        udevd,
        systemd=True,
        has_systemd=True,
        known=load not in ("", "not-found"),
        active=active in ("active", "activating", "reloading"),
        failed=active == "failed",
        enabled=file in ("enabled", "enabled-runtime"),
        masked=load == "masked" or file.startswith("masked"),
        stale=stale == "yes",
    )


# -- what to tell them ------------------------------------------------------------------------------------
def for_rules(machine: Machine, devices: Iterable[Path]) -> list[Step]:
    """After rules have changed: they are read, and applied to the devices that are here.

    Args:
        machine: what is at work.
        devices: those whose rules they are, by `serial_devices`.
    """
    if not machine.udevd:
        return []
    steps = [Step(("udevadm", "control", "--reload"), "so that udev reads the rules")]
    if here := [str(device) for device in devices]:
        # "change": systemd starts nothing because of it, and the service opens no port because of it.
        command = ("udevadm", "trigger", "--action=change", "--settle", *here)
        steps.append(Step(command, "so that they count for the ports that are here, and for no other device"))
    return steps


def for_unit(
    machine: Machine, *, unit_changed: bool, config_changed: bool = False, start: bool
) -> list[Step]:
    """After the unit has changed, or not: it is read, and the service runs.

    Args:
        machine: what is at work.
        unit_changed: the unit's file is another than before.
        config_changed: the configuration or a key is.
        start: it may be started, or restarted: it has a configuration, and nobody said no.
    """
    if not machine.systemd:
        return []
    steps = []
    if unit_changed or machine.stale:
        steps.append(RELOAD)
    if machine.masked or not start:
        return steps
    if not machine.enabled or not machine.active:
        steps.append(Step(("systemctl", "enable", "--now", UNIT), "so that it runs, now and after each boot"))
    elif unit_changed or machine.stale:
        steps.append(Step(("systemctl", "restart", UNIT), "so that it runs as the new unit says"))
    elif config_changed:
        steps.append(Step(("systemctl", "reload", UNIT), "so that it reads the configuration"))
    return steps


def before_removal(machine: Machine) -> list[Step]:
    """Before the unit goes: nothing runs that has no unit, and nothing is left of its start at boot."""
    if machine.systemd and machine.known and not machine.masked and (machine.active or machine.enabled):
        command = ("systemctl", "disable", "--now", UNIT)
        return [Step(command, "so that it ends, and does not start at boot")]
    if machine.systemd and machine.active:  # its unit has been taken away, or switched off, under its feet
        return [Step(("systemctl", "stop", UNIT), "so that it ends")]
    return []


def after_removal(machine: Machine, *, packaged: bool) -> list[Step]:
    """After the unit has gone.

    Args:
        machine: what was at work before.
        packaged: another unit of that name, a package's, takes its place.
    """
    if not machine.systemd:
        return []
    steps = [Step(RELOAD.command, "so that systemd forgets the unit")]
    if packaged and machine.active:
        steps.append(Step(("systemctl", "try-restart", UNIT), "so that it runs as the package's unit says"))
    elif machine.failed and not packaged:
        steps.append(Step(("systemctl", "reset-failed", UNIT), "so that its failure is forgotten, too"))
    return steps


def serial_devices(ports: Iterable[str] = (), root: Path = Path("/")) -> list[Path]:
    """What our rules say something of: the USB serial ports that are here, and their USB devices.

    Each device before its ports: ModemManager asks for it when it sees them.

    Args:
        ports: nodes, or links to them, that are configured; they may be no USB ports.
        root: where /sys and /dev are.
    """
    tty = root / "sys/class/tty"
    names = {path.name for pattern in _USB_PORTS for path in tty.glob(pattern)}
    for node in ((root / port.lstrip("/")).resolve() for port in ports):
        if node.parent == (root / "dev").resolve() and (tty / node.name).exists():
            names.add(node.name)
    found: dict[Path, None] = {}
    for name in sorted(names):
        port = (tty / name).resolve()
        usb = [above for above in port.parents if (above / "idVendor").exists()][:1]
        found |= dict.fromkeys((*usb, port))
    return sorted(found, key=lambda path: len(path.parts))


def majors(ports: Iterable[str]) -> set[int]:
    """The device numbers of the ports that are here: the service is allowed devices by these."""
    found = set()
    for port in ports:
        with contextlib.suppress(OSError):  # it is not plugged in; the next `install`, or the doctor, sees it
            status = Path(port).stat()
            if stat.S_ISCHR(status.st_mode):
                found.add(os.major(status.st_rdev))
    return found


# -- telling them -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Failure:
    """A step that failed."""

    step: Step
    outcome: Outcome

    def __str__(self) -> str:
        """One line for people."""
        return f"`{' '.join(self.step.command)}` failed ({self.outcome.status}): {self.outcome.text}"


def perform(steps: Iterable[Step], run: Run) -> list[Failure]:
    """Run the commands.  Where one fails, what is left of the same program's is not tried."""
    failures: list[Failure] = []
    for step in steps:
        if any(failure.step.command[0] == step.command[0] for failure in failures):
            continue
        outcome = run(step.command)
        if outcome.status:
            failures.append(Failure(step, outcome))
    return failures
