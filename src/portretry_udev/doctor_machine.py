"""What the doctor thinks of the machine: configuration, events, inotify, rules, clock, state folder, power.

Pure: facts in, findings out.  Must not know where the facts come from, nor single printers.
"""

from collections.abc import Iterator

from portretry_udev.facts import Access, Machine, RuleFile, Service
from portretry_udev.findings import Finding, Level, fine, kind
from portretry_udev.install import printers_rules

NEWEST_PAST = 1735689600  # seconds since 1970: 2025 began; a clock before that is not set
ENOUGH = 1 << 20  # bytes of room for files of a few hundred each

INSTALL = "sudo portretry-udev install"
TRIGGER = "sudo udevadm control --reload"
TRIGGER_TTYS = "sudo udevadm trigger --subsystem-match=usb --subsystem-match=tty"

MISSING = kind(
    "configuration-missing",
    Level.PROBLEM,
    "There is no configuration file, so the service has nothing to watch.",
    "`sudo portretry-udev setup` asks for what is needed and writes it.",
)
WRONG = kind(
    "configuration-wrong",
    Level.PROBLEM,
    "There is a mistake in the configuration; the service does not start with one, or keeps the old one.",
    "Correct the line that is named; config.example.toml shows every setting.",
)
EVENTS_KERNEL = kind(
    "events-kernel",
    Level.NOTE,
    "udevd's events do not arrive here, only the kernel's own.",
    "Nothing must be done; docs/containers.md says how to have udevd's.",
)
EVENTS_NONE = kind(
    "events-none",
    Level.NOTE,
    "No device events arrive here; the interval does the job.",
    "Nothing must be done; docs/containers.md says which containers hear them.",
)
EVENTS_UNHEARD = kind(
    "events-unheard",
    Level.PROBLEM,
    "An event that the doctor sent to itself was not heard: udevd hangs, or is stopped.",
    "Restart udevd; the interval does the job meanwhile.",
)
EVENTS_UNTRIED = kind(
    "events-untried",
    Level.UNKNOWN,
    "Whether events arrive was not tried, only foretold.",
    "Run the doctor as root, on the machine itself.",
)
DEAF = kind(
    "inotify-exhausted",
    Level.PROBLEM,
    "inotify cannot be used: other programs of this user have taken all of it. The service then does not "
    "notice at once that another program opens the port.",
    "Raise the limits of inotify.",
)
CLOCK_WRONG = kind(
    "clock-wrong",
    Level.PROBLEM,
    "The clock is years behind: certificates of https are refused, and pauses do not end in time.",
    "Have the clock kept by the network.",
)
CLOCK_FREE = kind(
    "clock-unsynchronised",
    Level.NOTE,
    "Nobody keeps the clock right. A Raspberry Pi has none of its own while it is off.",
    "Have the clock kept by the network.",
)
STATE_READ_ONLY = kind(
    "state-read-only",
    Level.PROBLEM,
    "The file system of the state folder is read-only: a Disconnect is forgotten when the service restarts.",
    "Mount it for writing (an SD card that fails becomes read-only: look at `dmesg`), or set state_dir to "
    "another folder.",
)
STATE_FULL = kind(
    "state-full",
    Level.PROBLEM,
    "The disk of the state folder is full: a Disconnect is forgotten when the service restarts.",
    "Make room.",
)
STATE_DENIED = kind(
    "state-denied",
    Level.PROBLEM,
    "The service's user may not write the state folder: a Disconnect is forgotten when the service restarts.",
    "Give the folder to that user, or set StateDirectory= in its unit.",
)
STATE_SPOILT = kind(
    "state-spoilt",
    Level.NOTE,
    "A file in the state folder was not understood, so hands are off that printer until it returns.",
    "When the printer is back, delete the file that was set aside.",
)
UNDERVOLTAGE = kind(
    "undervoltage",
    Level.NOTE,
    "The Raspberry Pi gets too little voltage: USB devices vanish and return.",
    "Use the official power supply and a short cable, or a powered hub; tape over the 5 V of the printer's "
    "plug.",
)
RULE_MISSING = kind(
    "rule-missing",
    Level.NOTE,
    "The udev rule is not installed: nothing keeps ModemManager off the printer.",
    "Install it; the printer is brought back without it, too.",
)
RULE_OFF = kind(
    "rule-off",
    Level.NOTE,
    "A udev rule of ours is switched off, by an empty file or a link to /dev/null.",
    "Delete that file, if this is not as you want it.",
)
RULES_MISSING = kind(
    "printers-rule-missing",
    Level.NOTE,
    "The udev rule for your own printers is not installed: ModemManager may take a board with an ordinary "
    "chip, and plugging it in does not start the service.",
    "Install it.",
)
RULES_OLD = kind(
    "printers-rule-old",
    Level.NOTE,
    "The udev rule for your own printers is not what would be written for this configuration.",
    "Write it anew.",
)
RULES_UNWRITABLE = kind(
    "printers-rule-impossible",
    Level.NOTE,
    "A port cannot be put into a udev rule.",
    "Take the port's name as `portretry-udev ports` shows it.",
)


def configuration(machine: Machine) -> Iterator[Finding]:
    """Is there one, and is it right?"""
    survey = machine.survey
    if survey.mistakes:
        # The only mistake that is made without a file and without a word about a printer.
        if survey.file is None and not survey.printers and survey.mistakes[0].startswith("no configuration"):
            yield MISSING.found(survey.mistakes[0], "", "sudo portretry-udev setup")
            return
        yield from (WRONG.found(mistake) for mistake in survey.mistakes)
    else:
        count = len(survey.printers)
        where = survey.file or "flags and PORTRETRY_* variables"
        yield fine("configuration", f"{where}, {count} {'printer' if count == 1 else 'printers'}")


def events(machine: Machine) -> Iterator[Finding]:
    """Do device events arrive?"""
    hearing = machine.hearing
    if hearing.events == "none":
        yield EVENTS_NONE.found(hearing.why)
        return
    if hearing.events == "kernel":
        yield EVENTS_KERNEL.found(hearing.why)
    if machine.heard is False:
        yield EVENTS_UNHEARD.found(
            "an event that the doctor sent to itself was not heard within a second",
            "",
            "sudo systemctl restart systemd-udevd",
        )
    elif machine.heard is None:
        yield EVENTS_UNTRIED.found(f"events should arrive, but that was not tried: {machine.unsent}")
    else:
        yield fine("events", f"{hearing.events}'s arrive: one that was sent was heard")


def notifications(machine: Machine) -> Iterator[Finding]:
    """Can inotify be used?"""
    if not machine.deaf:
        yield fine("inotify", "works")
        return
    yield DEAF.found(
        f"inotify cannot be used: {machine.deaf}",
        "raise its limits; to keep that, write these two into a file in /etc/sysctl.d",
        "sudo sysctl fs.inotify.max_user_instances=1024",
        "sudo sysctl fs.inotify.max_user_watches=524288",
    )


def rules(machine: Machine) -> Iterator[Finding]:
    """Are the udev rules there, and those for this configuration?"""
    if machine.hearing.events != "udev":
        return  # without a udevd here, nobody would read them here
    found = [*_rule(machine.rule), *_printers_rule(machine)]
    yield from found or [fine("udev rules", "both are installed")]


def _rule(rule: RuleFile) -> Iterator[Finding]:
    if rule.off:
        yield RULE_OFF.found(f"{rule.path} switches the udev rule off", "", f"sudo rm {rule.path}", TRIGGER)
    elif rule.path is None:
        yield RULE_MISSING.found("99-portretry.rules is not installed", "", INSTALL)


def _printers_rule(machine: Machine) -> Iterator[Finding]:
    rule, survey = machine.printers_rule, machine.survey
    # udev makes no names outside of /dev: a port there, such as Klipper's, needs no rule.
    ours = [each for each in survey.printers if each.match or (each.port or "").startswith("/dev/")]
    if survey.mistakes or not ours:
        return
    _, troubles = printers_rules(ours)
    yield from (RULES_UNWRITABLE.found(trouble) for trouble in troubles)
    text, _ = printers_rules(survey.printers)
    if rule.off:
        yield RULE_OFF.found(
            f"{rule.path} switches the printers' rule off", "", f"sudo rm {rule.path}", INSTALL
        )
    elif rule.path is None:
        yield RULES_MISSING.found("99-portretry-printers.rules is not installed", "", INSTALL)
    elif rule.text is not None and rule.text != text:
        yield RULES_OLD.found(f"{rule.path} is not what this configuration needs", "", INSTALL)


def clock(machine: Machine) -> Iterator[Finding]:
    """Is the time of day right?"""
    keep = "sudo timedatectl set-ntp true"
    if machine.now < NEWEST_PAST:
        yield CLOCK_WRONG.found("the clock of this machine is years behind", "", keep)
    elif machine.synchronised is False:
        yield CLOCK_FREE.found("nobody keeps the clock of this machine right", "", keep)
    else:
        yield fine("clock", "right" if machine.synchronised else "plausible")


def state(machine: Machine) -> Iterator[Finding]:
    """Can a Disconnect be remembered?"""
    folder = machine.state
    if folder is None:
        return
    path = folder.path
    if folder.read_only:
        yield STATE_READ_ONLY.found(f"{path} is on a file system that is read-only")
    elif folder.free < ENOUGH:
        yield STATE_FULL.found(
            f"the disk of {path} is full", "make room; this shows how much there is", f"df -h {path}"
        )
    elif folder.access is not None and not _may_write(machine.service, folder.access):
        yield STATE_DENIED.found(f"user {machine.service.itself.user} may not write {path}")
    elif not folder.spoilt:
        yield fine("state folder", str(path))
    for name in folder.spoilt:
        yield STATE_SPOILT.found(
            f"{path / name} was not understood, and set aside", "", f"sudo rm {path / name}"
        )


def _may_write(service: Service, access: Access) -> bool:
    if not service.processes and (service.unit or {}).get("LoadState") == "loaded":
        return True  # systemd makes it for the unit
    return service.itself.user == 0 or service.itself.may_open(access) is not False


def power(machine: Machine) -> Iterator[Finding]:
    """Does a Raspberry Pi have enough?"""
    if machine.undervoltage:
        yield UNDERVOLTAGE.found(f"too little voltage since the last boot: {machine.undervoltage}")


CHECKS = (configuration, events, notifications, rules, clock, state, power)
