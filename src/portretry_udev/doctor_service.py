"""What the doctor thinks of our service: its unit, its process, and what it says of each printer.

Pure: facts in, findings out.  Knows systemd's words for a unit (org.freedesktop.systemd1(5)) and those of
``status``.  Must not know where they come from.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from portretry_udev import __version__
from portretry_udev import unit as units
from portretry_udev.config import Config
from portretry_udev.facts import Machine, Patient, Service
from portretry_udev.findings import Finding, Level, fine, kind
from portretry_udev.udev_rule import UNIT

_STATUSES = {  # ours, and those of systemd itself where it cannot begin (systemd.exec(5))
    "78": "a wrong configuration",
    "203": "its program cannot be run",
    "216": "its Group= is unknown",
    "217": "its User= is unknown",
    "226": "a folder that it names is missing",
    "243": "a credential that it names is missing",
}
_LOG = "journalctl -u portretry-udev -n 30 --no-pager"
_INSTALL = "sudo portretry-udev install"

NO_SYSTEMD = kind(
    "systemd-none",
    Level.NOTE,
    "systemd does not run here, and so no unit: whatever runs instead has to start the service.",
    "Have it run `portretry-udev watch`, as root.",
)
UNREAD = kind(
    "unit-unread",
    Level.UNKNOWN,
    "systemd does not tell about the unit.",
    "Run the doctor as root.",
)
UNIT_MISSING = kind(
    "unit-missing",
    Level.PROBLEM,
    "The unit is not installed, so the service is not started at boot.",
    "Install it.",
)
UNIT_MASKED = kind(
    "unit-masked",
    Level.PROBLEM,
    "The unit is masked: nothing can start it.",
    "Unmask it.",
)
UNIT_DISABLED = kind(
    "unit-disabled",
    Level.PROBLEM,
    "The unit is not enabled, so the service is not started at boot.",
    "Enable it.",
)
UNIT_FAILED = kind(
    "unit-failed",
    Level.PROBLEM,
    "The service has ended with an error, or does again and again. Status 78 is a wrong configuration: then "
    "it is not restarted.",
    "Look at its last lines, cure what they say, and start it.",
)
UNIT_STOPPED = kind(
    "unit-stopped",
    Level.PROBLEM,
    "The service does not run: somebody has stopped it, or it was never started.",
    "Start it.",
)
UNIT_CHANGED = kind(
    "unit-changed",
    Level.NOTE,
    "The unit's file has changed since systemd read it.",
    "Have it read again.",
)
UNIT_UNWATCHED = kind(
    "unit-unwatched",
    Level.NOTE,
    "The unit has no watchdog: a service that hangs is not restarted.",
    "Install the unit anew, or set Type=notify and WatchdogSec=2min in it.",
)
UNIT_LACKS = kind(
    "unit-lacks",
    Level.PROBLEM,
    "The configuration needs something that the unit keeps from the service: a file in a home or in /tmp, a "
    "folder to write to, or a port with a rare driver.",
    "Have the drop-in written that gives it.",
)
ABSENT = kind(
    "service-absent",
    Level.PROBLEM,
    "No service runs, so nothing is watched.",
    "Start it.",
)
SILENT = kind(
    "service-silent",
    Level.PROBLEM,
    "A service runs, but does not answer at its socket: it hangs, was told another socket, or has only just "
    "begun.",
    "Restart it, or name its socket with --control.",
)
CLOSED = kind(
    "service-closed",
    Level.UNKNOWN,
    "The service may not be asked by this user.",
    "Run the doctor as root, or join the group of its socket.",
)
OLD = kind(
    "service-old",
    Level.PROBLEM,
    "The service that runs is of another version than what is installed now: it was not restarted after an "
    "update.",
    "Restart it; a printer that is connected is not disturbed.",
)
DEAF = kind(
    "service-deaf",
    Level.PROBLEM,
    "Device events arrive on this machine, but not at the service: its unit keeps them from it.",
    "Take PrivateNetwork= out of the unit, and keep AF_NETLINK in RestrictAddressFamilies=.",
)
WEAK = kind(
    "service-weak",
    Level.NOTE,
    "The service may not look into other users' processes: it does not always see who has the port.",
    "Give its unit AmbientCapabilities=CAP_SYS_PTRACE CAP_DAC_READ_SEARCH, or run it as root.",
)
KEY_DENIED = kind(
    "key-denied",
    Level.PROBLEM,
    "The service does not run as root, and its user may not read the file of the API key.",
    "Have systemd hand it over, with LoadCredential=keys:/etc/portretry-udev in the unit; or give that user "
    "a file of its own.",
)
UNWATCHED = kind(
    "printer-unwatched",
    Level.PROBLEM,
    "The service does not know this printer: the configuration has changed since it was read.",
    "Have it read again.",
)
HELD = kind(
    "printer-held",
    Level.PROBLEM,
    "Somebody has pressed Disconnect, and that stands until the printer returns; or the service was told to "
    "wait.",
    "Switch the printer off and on, replug it, or end it by hand.",
)
FAULTED = kind(
    "printer-faulted",
    Level.PROBLEM,
    "The firmware has reported a fault, such as heating failed. Nothing is reconnected before somebody has "
    "looked.",
    "Look at the printer; then switch it off and on, or end it by hand.",
)
PAUSED = kind(
    "printer-paused",
    Level.PROBLEM,
    "Somebody has said `pause`.",
    "End the pause.",
)
SILENT_FIRMWARE = kind(
    "printer-silent",
    Level.PROBLEM,
    "The port is there, but the firmware does not answer: the printer is off, busy, or speaks at another "
    "baudrate.",
    "Switch the printer on; if it is on, have a look what answers (not while it prints).",
)
BACKING_OFF = kind(
    "printer-backing-off",
    Level.PROBLEM,
    "Attempts to connect have failed, and the next one waits.",
    "Look into OctoPrint's log for the reason; `retry` tries at once.",
)
WAITING = kind(
    "printer-waiting",
    Level.PROBLEM,
    "The service stands back, for a reason that the doctor does not see from here.",
    "Do what the sentence says; then `retry`.",
)


def unit(machine: Machine) -> Iterator[Finding]:
    """Is it installed, enabled, and well?"""
    service = machine.service
    if service.unit is None:
        yield NO_SYSTEMD.found(f"no systemd here: process 1 is {service.manager}")
        return
    if service.unread:
        yield UNREAD.found(f"systemd does not tell about {UNIT}: {service.unread}")
        return
    found = [*_unit(service, service.unit), *_lacks(machine, service.unit)]
    yield from found or [fine("unit", f"{service.unit.get('FragmentPath') or UNIT}, runs")]


def _unit(service: Service, of: Mapping[str, str]) -> Iterator[Finding]:
    load, active, result = of.get("LoadState"), of.get("ActiveState"), of.get("Result", "")
    if load == "masked":
        yield UNIT_MASKED.found(
            f"{UNIT} is masked", "", f"sudo systemctl unmask {UNIT}", f"sudo systemctl start {UNIT}"
        )
        return
    if load != "loaded":
        yield UNIT_MISSING.found(f"{UNIT} is not installed", "", _INSTALL)
        return
    status = of.get("ExecMainStatus", "0")
    if active == "failed" or of.get("SubState") == "auto-restart":
        again = "ends again and again" if active != "failed" else "has failed"
        meant = f" ({_STATUSES[status]})" if status in _STATUSES else ""
        why = f"exit status {status}{meant}" if result == "exit-code" else result
        yield UNIT_FAILED.found(f"the service {again}: {why}", "", _LOG, f"sudo systemctl restart {UNIT}")
    elif active == "inactive" and not service.processes:
        why = (
            "a condition of its unit is not met"
            if of.get("ConditionTimestamp") and of.get("ConditionResult") == "no"
            else "nothing has started it"
        )
        yield UNIT_STOPPED.found(f"the service does not run: {why}", "", f"sudo systemctl start {UNIT}")
    if of.get("UnitFileState") in ("disabled", "linked", "indirect"):
        yield UNIT_DISABLED.found("the service is not started at boot", "", f"sudo systemctl enable {UNIT}")
    if of.get("NeedDaemonReload") == "yes":
        restart = f"sudo systemctl restart {UNIT}"
        yield UNIT_CHANGED.found("the unit's file has changed", "", "sudo systemctl daemon-reload", restart)
    # Of a unit that does not run systemd (252) tells no watchdog.
    unwatched = of.get("WatchdogUSec") in ("0", "infinity") or of.get("Type") not in (
        "notify",
        "notify-reload",
    )
    if active == "active" and unwatched:
        yield UNIT_UNWATCHED.found("the unit has no watchdog", "", _INSTALL)


def _lacks(machine: Machine, of: Mapping[str, str]) -> Iterator[Finding]:
    """What the configuration needs of the unit, and what is not in it as it is now."""
    found = machine.survey
    if of.get("LoadState") != "loaded" or found.state_dir is None:
        return
    whole = Config(found.printers, found.state_dir, found.control, found.metrics_textfile)
    for need in units.needs(whole, machine.majors):
        if not _has(of, need.line, machine.drivers):
            yield UNIT_LACKS.found(f"the unit lacks {need.line}: {need.why}", "", _INSTALL)


def _has(of: Mapping[str, str], line: str, drivers: Mapping[int, frozenset[str]]) -> bool:
    """Whether a unit has a setting by now, in systemd's words for it."""
    setting, _, value = line.partition("=")
    now = of.get(setting, "")
    match setting:
        case "ProtectHome":
            return now not in ("yes", "tmpfs")  # what is not told is not taken away
        case "PrivateTmp":
            return now in ("", "no")
        case "DeviceAllow":
            closed = of.get("DevicePolicy") in ("closed", "strict") or bool(now)
            major = int(value.removeprefix("char-").partition(" ")[0])
            names = {str(major), *drivers.get(major, ())}
            return not closed or any(_allows(entry, names) for entry in now.split("; "))
    # ReadWritePaths=, which is told in quotes where there are blanks, but with its specifiers resolved.
    strict = of.get("ProtectSystem") in ("strict", "full")
    (wanted,) = shlex.split(value.replace("%%", "%"))
    folder = Path(wanted.lstrip("-"))
    return not strict or any(folder.is_relative_to(each.lstrip("-+")) for each in shlex.split(now))


def _allows(entry: str, names: Iterable[str]) -> bool:
    """Whether one entry of DeviceAllow= opens to read and write what has one of these names, or numbers."""
    who, _, how = entry.partition(" ")
    pattern = who.removeprefix("char-")
    return who != pattern and {"r", "w"} <= set(how) and any(fnmatchcase(name, pattern) for name in names)


def process(machine: Machine) -> Iterator[Finding]:
    """Does it run, and does it answer?"""
    service = machine.service
    start = f"sudo systemctl restart {UNIT}" if service.unit else "sudo portretry-udev watch"
    if service.answer is not None:
        version = service.answer.get("program")
        if version != __version__:
            running = f"version {version}" if isinstance(version, str) else "an older version"
            yield OLD.found(f"the service that runs is {running}, installed is {__version__}", "", start)
        elif machine.heard and _is_deaf(service.answer):
            yield DEAF.found("device events arrive here, but not at the service", "", start)
        elif not service.itself.sees_all and service.processes:
            yield WEAK.found(f"the service runs as user {service.itself.user}, without CAP_SYS_PTRACE")
        else:
            yield fine("service", f"answers, version {__version__}")
    elif service.refused:
        yield CLOSED.found(service.trouble)
    elif service.processes:
        yield SILENT.found(f"the service runs (pid {service.itself.pid}), but: {service.trouble}", "", start)
    elif (
        service.unit is None or not service.unit or service.unit.get("LoadState") not in ("loaded", "masked")
    ):
        yield ABSENT.found("no service runs", "", start)


def _is_deaf(answer: Mapping[str, Any]) -> bool:
    told = answer.get("printers")
    printers = told.values() if isinstance(told, dict) else ()
    return any(isinstance(each, dict) and each.get("events") == "none" for each in printers)


_STATES = {
    "held": HELD,
    "faulted": FAULTED,
    "paused": PAUSED,
    "listening": SILENT_FIRMWARE,
    "backing-off": BACKING_OFF,
}
_FINE = frozenset({"connected", "connecting"})


def key(patient: Patient, service: Service) -> Iterator[Finding]:
    """May the service read the key, too?"""
    of = service.unit or {}
    handed_over = any(
        of.get(f"{how}Credential{kept}") for how in ("Load", "Set") for kept in ("", "Encrypted")
    )
    if patient.kept is None or handed_over or service.itself.user in (0, patient.kept.owner):
        return
    yield KEY_DENIED.found(
        f"user {service.itself.user} of the service may not read {patient.printer.key.path}"
    )


def printer(name: str, service: Service, *, else_fine: bool) -> Iterator[Finding]:
    """What the service says of a printer.

    Args:
        name: the printer's.
        service: ours.
        else_fine: nothing else was found that could keep this printer; else what the service waits for has
            been told already, unless it is somebody's word that stands.
    """
    if service.answer is None:
        return
    told = service.answer.get("printers")
    found: Any = told.get(name) if isinstance(told, dict) else None
    if not isinstance(found, dict):
        yield UNWATCHED.found("the service does not watch this printer", "", f"sudo systemctl reload {UNIT}")
        return
    state, why = str(found.get("state")), str(found.get("why"))
    details = tuple(f"{key}: {value}" for key, value in found.items() if value is not None)
    retry = f"portretry-udev retry {name}"
    cures = {
        "paused": (f"portretry-udev resume {name}",),
        "listening": (f"sudo portretry-udev pause {name}", f"sudo portretry-udev probe {name}"),
    }
    if state in _STATES:
        yield _STATES[state].found(f"{state}: {why}", "", *cures.get(state, (retry,)), details=details)
    elif state not in _FINE and else_fine:
        yield WAITING.found(f"{state}: {why}", "", retry, details=details)
    elif state in _FINE:
        yield fine("watched", f"{state}: {why}", *details)


CHECKS = (unit, process)
