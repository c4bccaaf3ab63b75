"""What udev and systemd have to be told about our files: as commands with their reasons, and carried out.

Knows the command lines of udevadm and systemctl, and how to see whether either is at work here.  Must not
know what is in our files.  A command is data (`Step`) until `perform` runs it: it is shown by a dry run, and
tests see what would be run.
"""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from portretry_udev.udev_rule import UNIT

PATIENCE = 90.0  # seconds for a command; a service that does not become ready is given up by systemd at 90
NOT_FOUND = 127  # as shells say it
_USB_PORTS = ("ttyACM*", "ttyUSB*")


@dataclass(frozen=True)
class Step:
    """A command, and what it is for."""

    command: tuple[str, ...]
    why: str


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
        active: the service runs.
        failed: it has ended, and not well.
        enabled: the service starts at boot.
        masked: the service is switched off by its administrator.
        known: systemd knows a unit of that name.
        init: what else starts services here, such as OpenRC; empty: unknown.
    """

    udevd: bool = False
    systemd: bool = False
    has_systemd: bool = False
    active: bool = False
    failed: bool = False
    enabled: bool = False
    masked: bool = False
    known: bool = False
    init: str = ""


def look(run: Run, root: Path = Path("/")) -> Machine:
    """See what is at work here; asks systemd only if it runs."""
    systemd = (root / "run/systemd/system").is_dir()
    found = {}
    if systemd:
        found = {asked: run(("systemctl", f"is-{asked}", UNIT)).answer for asked in ("active", "enabled")}
    enabled = found.get("enabled", "")
    return Machine(
        udevd=(root / "run/udev/control").exists(),
        systemd=systemd,
        has_systemd=systemd
        or any((root / place).is_dir() for place in ("usr/lib/systemd/system", "lib/systemd/system")),
        active=found.get("active") in ("active", "activating", "reloading"),
        failed=found.get("active") == "failed",
        enabled=enabled in ("enabled", "enabled-runtime"),
        masked=enabled.startswith("masked"),
        known=enabled in ("enabled", "enabled-runtime", "disabled", "static", "linked", "masked", "indirect"),
        init="OpenRC" if (root / "run/openrc").is_dir() or (root / "sbin/openrc").exists() else "",
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
    machine: Machine, *, unit_changed: bool, config_changed: bool = False, configured: bool, start: bool
) -> list[Step]:
    """After the unit has changed, or not: it is read, and the service runs.

    Args:
        machine: what is at work.
        unit_changed: the unit's file is another than before.
        config_changed: the configuration or a key is.
        configured: there is a configuration that the service can use.
        start: it may be started, or restarted.
    """
    if not machine.systemd:
        return []
    steps = []
    if unit_changed:
        steps.append(Step(("systemctl", "daemon-reload"), "so that systemd reads the unit"))
    if machine.masked or not start or not configured:
        return steps
    if not machine.enabled or not machine.active:
        steps.append(Step(("systemctl", "enable", "--now", UNIT), "so that it runs, now and after each boot"))
    elif unit_changed:
        steps.append(Step(("systemctl", "restart", UNIT), "so that it runs as the new unit says"))
    elif config_changed:
        steps.append(Step(("systemctl", "reload", UNIT), "so that it reads the configuration"))
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
    names |= {name for port in ports if (tty / (name := (root / port.lstrip("/")).resolve().name)).exists()}
    found: dict[Path, None] = {}
    for name in sorted(names):
        port = (tty / name).resolve()
        usb = [above for above in port.parents if (above / "idVendor").exists()][:1]
        found |= dict.fromkeys((*usb, port))
    return sorted(found, key=lambda path: len(path.parts))


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
