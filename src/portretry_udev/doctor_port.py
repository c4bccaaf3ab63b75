"""What the doctor thinks of a printer's port: which it is, who may open it, who has it, what udev says of it.

Pure: facts in, findings out.  Knows the programs that take serial ports, and how each is kept off.  Must not
know where the facts come from, nor look into an OctoPrint beyond which port it offers and has.
"""

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping

from portretry_udev import listing
from portretry_udev.devices import Missing, Node
from portretry_udev.doctor_machine import TRIGGER, TRIGGER_TTYS
from portretry_udev.events import CONNECTED, OFFLINE
from portretry_udev.facts import Access, Machine, Patient, Process
from portretry_udev.findings import Finding, Kind, Level, fine, kind
from portretry_udev.octoprint import Answer, offered
from portretry_udev.port import FLASHERS, SHUNNED, Holder
from portretry_udev.words import not_offered

UNKNOWN = kind(
    "port-unknown",
    Level.PROBLEM,
    "Nobody has said which port the printer is on: none is configured, and OctoPrint has AUTO.",
    "Set port to a name that `portretry-udev ports --suggest` shows, or choose one in OctoPrint.",
)
ABSENT = kind(
    "port-absent",
    Level.PROBLEM,
    "The printer's port is not there: it is switched off or unplugged, or has another name.",
    "Switch the printer on and look at its cable; then see whether it is listed, and under which name.",
)
SETTLING = kind(
    "port-settling",
    Level.NOTE,
    "The port has only just come, and udev has not finished with it.",
    "Run the doctor again in a moment.",
)
STALE = kind(
    "port-stale",
    Level.PROBLEM,
    "The container has an old node of the port: the printer has come back under another number.",
    "Make the node anew; docs/containers.md has a recipe for each kind of container.",
)
NO_NODE = kind(
    "port-without-node",
    Level.PROBLEM,
    "The printer is plugged in, but the container has no node for it.",
    "Give the container one; docs/containers.md has a recipe for each kind of container.",
)
AMBIGUOUS = kind(
    "port-ambiguous",
    Level.PROBLEM,
    "What is configured fits more than one board, so none is used.",
    "Set port to the by-path name of the right one.",
)
OTHER = kind(
    "port-other",
    Level.PROBLEM,
    "What is configured is no serial port, or another device than the printer.",
    "Compare port and match with what is there.",
)
CHANCY = kind(
    "port-name",
    Level.NOTE,
    "The configured name may be another board's the next time.",
    "Use a name that stays.",
)
BRLTTY = kind(
    "brltty-takes-it",
    Level.PROBLEM,
    "brltty runs: it takes boards with an ordinary USB chip (CH340, CP210x, FTDI) for braille displays, and "
    "their ports vanish.",
    "Remove it, if nobody here needs a braille display; then replug the printer.",
)
DENIED = kind(
    "port-denied",
    Level.PROBLEM,
    "The service's user may not open the port.",
    "Put that user into the port's group (dialout), and restart the service.",
)
DENIED_OCTOPRINT = kind(
    "port-denied-octoprint",
    Level.PROBLEM,
    "OctoPrint's user may not open the port; it is stuck when it is told to connect.",
    "Put that user into the port's group (dialout), and restart OctoPrint.",
)
HELD = kind(
    "port-held",
    Level.PROBLEM,
    "Another program has the port open: hands off as long as it has.",
    "End it, or keep it off this port.",
)
HELD_OCTOPRINT = kind(
    "port-held-octoprint",
    Level.PROBLEM,
    "An OctoPrint has the port open, though the configured one says that it is offline: it is another one, "
    "or stuck.",
    "Give each OctoPrint its own port and address in the configuration; else restart that one.",
)
UNSEEN = kind(
    "port-holders-unseen",
    Level.UNKNOWN,
    "Processes of other users could not be looked into: one of them may have the port.",
    "Run the doctor as root.",
)
MODEMMANAGER = kind(
    "modemmanager-near",
    Level.PROBLEM,
    "ModemManager runs, and nothing keeps it off this port: it may open it, and send AT commands to the "
    "printer.",
    "Install the udev rules; or remove ModemManager, if there is no modem.",
)
INEFFECTIVE = kind(
    "rule-ineffective",
    Level.NOTE,
    "The udev rule is installed, but udev has not applied it to this port: it came before the rule.",
    "Have udev go over the ports again, or replug the printer.",
)
NOT_OFFERED = kind(
    "port-not-offered",
    Level.PROBLEM,
    "The port is not in OctoPrint's list, and it connects to no other.",
    "Add it to Additional serial ports, in OctoPrint's settings, Serial Connection.",
)
ELSEWHERE = kind(
    "octoprint-elsewhere",
    Level.PROBLEM,
    "OctoPrint is connected, but to another port than this printer's.",
    "Press Disconnect there, and choose the right port; or correct port here.",
)
HARMFUL_RATE = kind(
    "baudrate-harmful",
    Level.PROBLEM,
    "57600 baud switches a Prusa board's firmware off, so it is never used there.",
    "Set 115200, in the configuration or in OctoPrint.",
)
OTHER_RATE = kind(
    "baudrate-differs",
    Level.NOTE,
    "The configuration and OctoPrint's settings name different baudrates; the configured one is used.",
    "Leave baudrate out of the configuration, or set the same in OctoPrint.",
)
AUTOSUSPEND = kind(
    "usb-autosuspend",
    Level.NOTE,
    "The kernel may put the printer's USB device to sleep, and some boards do not wake up from that.",
    "If the printer is lost while it is idle, keep the device awake.",
)

# How each is kept off, by the 15 characters that the kernel keeps of a name.
_KEPT_OFF: dict[str, tuple[str, tuple[str, ...]]] = {
    "ModemManager": (
        "keep it off by our udev rules, or remove it if there is no modem here",
        ("sudo portretry-udev install", "sudo apt purge modemmanager"),
    ),
    "brltty": ("remove it, unless somebody needs a braille display", ("sudo apt purge brltty",)),
    "gpsd": (
        'take the port out of DEVICES in /etc/default/gpsd, and set USBAUTO="false" there',
        ("sudo systemctl restart gpsd",),
    ),
    "agetty": (
        "it is a login on that port: switch it off",
        ("sudo systemctl disable --now serial-getty@{node}.service",),
    ),
}
_BY_CHANCE = re.compile(r"/dev/tty(ACM|USB)[0-9]+")


def known(patient: Patient, machine: Machine) -> Iterator[Finding]:
    """Which port is it, and is it there?"""
    del machine
    found = patient.found
    if found is None:
        # Without OctoPrint's answer nobody knows which port it prefers.
        if isinstance(patient.answer, Answer) and not patient.answer.aside:
            yield UNKNOWN.found(
                "no port is known: none is configured, and OctoPrint has AUTO",
                "",
                "portretry-udev ports --suggest",
            )
        return
    if isinstance(found, Missing):
        yield from _missing(found)
        return
    shown = found.path if found.path == found.real else f"{found.path} -> {found.real}"
    driver = [f"driver: {found.driver}"] if found.driver else []
    yield fine("port", shown, *driver, *found.links)
    yield from _chancy(patient, found)


def _missing(found: Missing) -> Iterator[Finding]:
    if found.settling:
        yield SETTLING.found(found.fact)
        return
    kinds: Mapping[str, Kind] = {
        "absent": ABSENT,
        "stale": STALE,
        "no node": NO_NODE,
        "ambiguous": AMBIGUOUS,
        "other": OTHER,
    }
    look = () if found.cure else ("portretry-udev ports",)
    yield kinds[found.kind].found(found.fact, found.cure, *look)


def _chancy(patient: Patient, node: Node) -> Iterator[Finding]:
    row = patient.row
    if row is None or patient.printer.match or not node.modem:
        return
    by_chance = _BY_CHANCE.fullmatch(node.path) and row.links
    shared = next(
        (
            row.unusable[key]
            for key in ("by_id", "by_path")
            if key in row.unusable and getattr(row.port, key) == node.path
        ),
        "",
    )
    if by_chance or shared:
        why = shared.partition(":")[0] or "it is given in the order of plugging"
        suggested = listing.suggestion(row)
        if suggested.setting.endswith(f'"{node.path}"'):
            return  # there is no better one
        yield CHANCY.found(f"{node.path} may be another board next time: {why}", f"set {suggested.setting}")


def taken_as_braille(patient: Patient, machine: Machine) -> Iterator[Finding]:
    """Is it gone because brltty has it?"""
    gone = isinstance(patient.found, Missing) and patient.found.kind == "absent"
    if gone and "brltty" in machine.running:
        yield BRLTTY.found(
            "brltty runs, and takes boards with ordinary USB chips", "", "sudo apt purge brltty"
        )


def permitted(patient: Patient, machine: Machine) -> Iterator[Finding]:
    """May the service open it, and may OctoPrint?"""
    node, access = patient.node, patient.access
    if node is None or access is None:
        return
    service = machine.service
    found = []
    if service.itself.may_open(access) is False:
        found.append(
            DENIED.found(
                f"the service's user ({service.itself.user}) may not open {node.real}: "
                f"mode {access.mode:04o}, of user {access.owner} and group {access.group}",
                *_granted(node, access, service.itself),
            )
        )
    # Which of several is this printer's cannot be told; if none may, this one may not.
    refused = [each for each in patient.around if each.may_open(access) is False]
    if refused and len(refused) == len(patient.around):
        users = ", ".join(sorted({str(each.user) for each in refused}))
        found.append(
            DENIED_OCTOPRINT.found(
                f"OctoPrint's user ({users}) may not open {node.real}, mode {access.mode:04o}",
                *_granted(node, access, refused[0]),
            )
        )
    yield from found or [fine("permitted", f"mode {access.mode:04o}")]


def _granted(node: Node, access: Access, whom: Process) -> tuple[str, str]:
    """What lets somebody open a node, in words and as a command."""
    group = f"$(stat -Lc %G {shlex.quote(node.real)})"
    if not access.mode & stat.S_IRGRP or not access.mode & stat.S_IWGRP:
        return "let the group of the port use it, as udev does", f"sudo chmod g+rw {shlex.quote(node.real)}"
    if whom.user == 0:
        edit = "sudo systemctl edit portretry-udev"
        return (
            "give the unit the group of the port",
            f"{edit}   # [Service] SupplementaryGroups={access.group}",
        )
    cure = "put that user into the group of the port, and start the program anew"
    return cure, f"sudo usermod -aG {group} $(id -nu {whom.user})"


def held(patient: Patient, machine: Machine) -> Iterator[Finding]:
    """Who has it?"""
    node, row = patient.node, patient.row
    if node is None or row is None or row.holders is None:
        return
    ours = {each.pid for each in machine.service.processes}
    found = []
    for holder in row.holders:
        if holder.pid in ours:
            continue
        if holder.pid in patient.octoprints:
            if isinstance(patient.answer, Answer) and patient.answer.octo in OFFLINE:
                found.append(
                    HELD_OCTOPRINT.found(f"{holder} has {node.real}, but OctoPrint says it is offline")
                )
            continue
        if holder.name not in {*_KEPT_OFF, *FLASHERS} and _may_be_octoprint(patient):
            continue
        found.append(_held_by(holder, node))
    if not found and row.unseen and not machine.root:
        found.append(UNSEEN.found(f"{row.unseen} processes of other users may have {node.real}"))
    yield from found or [fine("holders", listing.state(row))]


def _may_be_octoprint(patient: Patient) -> bool:
    """Whether OctoPrint has this port, under whatever name its process goes (containers)."""
    answer, node = patient.answer, patient.node
    if not isinstance(answer, Answer) or node is None or answer.octo in OFFLINE:
        return False
    return answer.port is None or _is_ours(patient, answer.port)


def _held_by(holder: Holder, node: Node) -> Finding:
    cure, commands = _KEPT_OFF.get(holder.name, ("", ()))
    if holder.name in FLASHERS:
        cure = "it writes firmware: let it end, and do not disturb it"
    elif not cure:
        cure = "end it, or keep it off this port"
    name = os.path.basename(node.real)  # noqa: PTH119 - a name, not a path
    return HELD.found(f"{holder} has {node.real}", cure, *(each.format(node=name) for each in commands))


def marked(patient: Patient, machine: Machine) -> Iterator[Finding]:
    """Has udev applied our rules to it, and is ModemManager kept off?"""
    node, marks = patient.node, patient.marks
    if node is None or marks is None or not marks.known:
        return  # a pty; or no udevd has been at it
    found, printer = [], patient.printer
    kept_off = any(marks.properties.get(name) == "1" for name in ("ID_MM_PORT_IGNORE", "ID_MM_DEVICE_IGNORE"))
    if "ModemManager" in machine.running and not kept_off:
        install = () if machine.printers_rule.text else ("sudo portretry-udev install",)
        found.append(
            MODEMMANAGER.found(
                f"ModemManager runs, and may open {node.real}", "", *install, TRIGGER, TRIGGER_TTYS
            )
        )
    tagged = "portretry" in marks.tags or not re.match(r"/dev/tty(ACM|USB)", node.real)
    rule, rules = machine.rule, machine.printers_rule
    configured = bool(printer.port or printer.match) and _names(rules.text or "", patient.name)
    named = marks.properties.get("PORTRETRY_PRINTER") == patient.name or not configured
    if (rule.text and not tagged) or not named:
        which = "99-portretry.rules" if named else "99-portretry-printers.rules"
        found.append(
            INEFFECTIVE.found(f"udev has not applied {which} to {node.real}", "", TRIGGER, TRIGGER_TTYS)
        )
    yield from found or [fine("udev", "has marked the port" if marks.tags else "knows the port")]


def _names(rules: str, printer: str) -> bool:
    return f'ENV{{PORTRETRY_PRINTER}}="{printer}"' in rules


def listed(patient: Patient, machine: Machine) -> Iterator[Finding]:
    """Does OctoPrint have it in its list, and is it connected there?"""
    del machine
    node, answer = patient.node, patient.answer
    if node is None or not isinstance(answer, Answer) or answer.aside:
        return
    if answer.octo in CONNECTED and answer.port and not _is_ours(patient, answer.port):
        yield ELSEWHERE.found(f"OctoPrint is connected to {answer.port}, not to {node.path}")
    elif name := offered(answer.ports, node.real, _names_of(patient)):
        yield fine("offered", f"OctoPrint calls it {name}")
    elif answer.octo in OFFLINE:  # else its list may be that of another connection
        what, cure = not_offered(node.path)
        yield NOT_OFFERED.found(what, cure)


def _names_of(patient: Patient) -> list[str]:
    assert patient.node is not None  # noqa: S101 - the callers have looked
    own = patient.printer.octoprint_port
    return [*([own] if own else []), patient.node.path, *patient.node.links]


def _is_ours(patient: Patient, port: str) -> bool:
    assert patient.node is not None  # noqa: S101 - the callers have looked
    return offered([port], patient.node.real, _names_of(patient)) is not None


def rate(patient: Patient, machine: Machine) -> Iterator[Finding]:
    """Is its baudrate sensible?"""
    del machine
    node, answer, configured = patient.node, patient.answer, patient.printer.baudrate
    preferred = answer.preferred_baudrate if isinstance(answer, Answer) else None
    used = configured or preferred
    if node is not None and used in SHUNNED.get(node.vendor or "", frozenset()):
        yield HARMFUL_RATE.found(f"{used} baud is never used on {node.path}: it switches its firmware off")
    elif configured and preferred and configured != preferred:
        yield OTHER_RATE.found(f"{configured} baud is configured, OctoPrint's settings say {preferred}")
    elif used:
        yield fine("baudrate", f"{used}")


def awake(patient: Patient, machine: Machine) -> Iterator[Finding]:
    """May the kernel put it to sleep?"""
    del machine
    if patient.power == "auto" and patient.usb is not None:
        yield AUTOSUSPEND.found(
            "the kernel may put the printer's USB device to sleep",
            "",
            f"echo on | sudo tee {patient.usb}/power/control",
        )


CHECKS = (known, taken_as_braille, permitted, held, marked, listed, rate, awake)
