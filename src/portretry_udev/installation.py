"""An installation, and its end, from the plan to what runs: our files, and what udev and systemd are told.

Knows the order: first the files, all or none, then who reads them.  Must not know how a plan is shown or
asked about; `install` and `setup` do that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from portretry_udev import activation, install, uninstall
from portretry_udev.activation import Failure, Machine, Run, Step
from portretry_udev.install import Change, Configured, Kind, Layout, Written
from portretry_udev.udev_rule import UNIT


@dataclass(frozen=True)
class Planned:
    """What an installation would do.

    Attributes:
        layout: where.
        machine: what is at work there; in a folder that is no machine yet, nothing.
        changes: our files.
        steps: the commands after them.
        troubles: printers whose ports no rule can name, one line each.
    """

    layout: Layout
    machine: Machine
    changes: tuple[Change, ...]
    steps: tuple[Step, ...]
    troubles: tuple[str, ...] = ()

    @property
    def is_needed(self) -> bool:
        """Something would be done."""
        return bool(self.steps) or any(change.is_needed for change in self.changes)


@dataclass(frozen=True)
class Done:
    """What an installation has done."""

    written: tuple[Written, ...]
    failures: tuple[Failure, ...]


def is_here(layout: Layout) -> bool:
    """Whether this is about the machine that runs, and not about a folder that will be one."""
    return layout.root.resolve() == Path("/")


def plan(  # noqa: PLR0913 - each is a choice of its own
    layout: Layout,
    *,
    program: Path,
    config: Configured | None,
    run: Run,
    startable: bool,
    config_changed: bool = False,
) -> Planned:
    """See what is to be done; nothing is.

    Args:
        layout: where.
        program: what the service is to run.
        config: whose printers get rules; None: nobody has configured any.
        run: asks systemd how things are.
        startable: the service may be started: it has a configuration, and nobody said no.
        config_changed: a service that runs has to read its configuration again.

    Raises:
        InstallTrouble: what is there cannot be read.
    """
    here = is_here(layout)
    machine = activation.look(run) if here else Machine(has_systemd=True)
    ports = [printer.port for printer in (config.printers if config else ()) if printer.port]
    wanted = install.wanted(
        layout,
        program=program,
        config=config,
        unit=layout.vendor or machine.has_systemd,
        majors=activation.majors(ports) if here else (),
    )
    changes = install.changes(wanted.files, layout.root)
    steps: list[Step] = []
    if here:
        changed = {change.file.path for change in changes if change.is_needed}
        if any(path.suffix == ".rules" for path in changed):
            steps += activation.for_rules(machine, activation.serial_devices(ports))
        off = any(change.kind is Kind.OFF and change.file.path.name == UNIT for change in changes)
        steps += activation.for_unit(
            machine,
            unit_changed=bool(changed & {layout.unit, layout.needs}),
            config_changed=config_changed,
            start=startable and not off,
        )
    return Planned(layout, machine, changes, tuple(steps), wanted.troubles)


def carry_out(planned: Planned, run: Run) -> Done:
    """Do what was planned.

    Raises:
        InstallTrouble: a file cannot be written; then nothing has been done.
    """
    written = install.carry_out(planned.changes)
    return Done(written, tuple(activation.perform(planned.steps, run)))


# -- its end ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Removal:
    """What the end of an installation would do.

    Attributes:
        plan: what goes and what stays.
        before: commands before anything goes; if one fails, nothing does.
        after: commands when it has gone.
    """

    plan: uninstall.Plan
    before: tuple[Step, ...]
    after: tuple[Step, ...]

    @property
    def is_needed(self) -> bool:
        """Something would be done."""
        return bool(self.plan.goes or self.before)


def plan_removal(layout: Layout, *, purge: bool, run: Run, ports: Iterable[str] = ()) -> Removal:
    """See what is to be taken away; nothing is.

    Args:
        layout: where.
        purge: a person's settings, too.
        run: asks systemd how things are.
        ports: that are configured: what the rules have said of them is to be forgotten.

    Raises:
        InstallTrouble: a folder cannot be looked into.
    """
    here = is_here(layout)
    machine = activation.look(run) if here else Machine()
    found = uninstall.plan(layout, purge=purge, ending=machine.active)
    # A package's service is the package's to end, not ours.
    before = activation.before_removal(machine) if found.packaged is None else []
    after = activation.after_removal(machine, packaged=found.packaged is not None) if found.unit else []
    if found.rules and here:
        after = [*activation.for_rules(machine, activation.serial_devices(ports)), *after]
    return Removal(found, tuple(before), tuple(after))


def remove(
    layout: Layout, removal: Removal, *, purge: bool, run: Run
) -> tuple[Sequence[Path], list[Failure]]:
    """Take away what was planned; returns our folders that are left, and what failed.

    Raises:
        InstallTrouble: a file cannot be taken away.
    """
    if failed := activation.perform(removal.before, run):
        return (), failed
    # Looked at anew: a service that has ended has taken its socket along, or has not.
    left = uninstall.carry_out(uninstall.plan(layout, purge=purge))
    return left, activation.perform(removal.after, run)
