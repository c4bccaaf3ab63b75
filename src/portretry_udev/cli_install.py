"""The commands ``install`` and ``uninstall``: what they show, ask and say.

Knows the terminal and the exit statuses of these commands.  Must not know what belongs where (``install``,
``uninstall``) nor who is told of it (``activation``).  What is or would be done goes to stdout: it is what
was asked for.  What to know and what to do next goes to stderr, in the words of a dialogue; so does what
went wrong, with our name in front.
"""

import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click

from portretry_udev import activation, install, installation, program
from portretry_udev.activation import Failure, Machine, Step
from portretry_udev.cli_common import EX_CONFIG, EX_INTERRUPTED, EX_UNAVAILABLE, colour, fail, say, typed
from portretry_udev.config import Survey, Wrong, load, survey
from portretry_udev.install import Change, InstallTrouble, Kind, Layout, Written
from portretry_udev.installation import Planned, Removal
from portretry_udev.listing import plain
from portretry_udev.udev_rule import UNIT

EX_DECLINED = 1
EX_CANTCREAT = 73
EX_NOPERM = 77

WIDTH = 80
_LABEL = 9  # columns
_KINDS = {
    Kind.NEW: ("new", "green"),
    Kind.CHANGED: ("changed", "yellow"),
    Kind.SAME: ("as it is", None),
    Kind.OFF: ("off", None),
    Kind.PACKAGED: ("packaged", None),
}
_DIFF = {"+": "green", "-": "red", "@": "cyan"}

_root = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    metavar="DIR",
    help="A system in that folder instead of this one.",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask; without a terminal nobody is asked.")


# -- install ----------------------------------------------------------------------------------------------
@click.command("install", short_help="Put the udev rules and the service in place, and start it.")
@_dry_run
@_root
@click.option("--vendor", is_flag=True, help="To where packages put things: /usr/lib; for packagers.")
@click.option("--program", "named", metavar="PATH", help="What the service runs  [this program]")
@click.option("--no-start", is_flag=True, help="Neither start nor restart the service.")
@_yes
@click.pass_context
def install_(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context,
    *,
    dry_run: bool,
    root: Path,
    vendor: bool,
    named: str | None,
    no_start: bool,
    yes: bool,
) -> None:
    """Put the udev rules and the service in place, and start it if there is a configuration.

    Shows what it will write, and the difference to what is there; a file that was changed by hand is kept.
    A second time changes nothing.
    """
    layout = _layout(ctx, root, vendor=vendor)
    here = installation.is_here(layout)
    runs = runnable(named, packaged=vendor or not here)
    found = None if vendor else _configuration(layout)
    unready = _not_startable(layout, found, no_start=no_start)
    try:
        planned = installation.plan(
            layout,
            program=runs,
            config=found,
            run=activation.run,
            startable=unready is None,
        )
    except InstallTrouble as trouble:
        _fail(ctx, trouble)
    _echo(shown(planned.changes, planned.steps, would=dry_run))
    say(*planned.troubles)
    if planned.troubles:
        note("No rule is made for these; the service watches them all the same.")
    if dry_run or not planned.is_needed:
        if not planned.is_needed:
            note("All is in place: nothing to do.")
        _say_next(planned, unready, runs)
        return
    _judge_rights(ctx, layout, [change.file.path for change in planned.changes if change.is_needed])
    _confirm(yes=yes, question="Go on?")
    try:
        done = installation.carry_out(planned, activation.run)
    except InstallTrouble as trouble:
        _fail(ctx, trouble, *([] if trouble.is_half else ["nothing was changed"]))
    _echo(backups(done.written))
    say_failures(done.failures, "the files are in place")
    note("Done.")
    _say_next(planned, unready, runs)
    if any(step.command[1] == "enable" for step in planned.steps):
        _say_status()


def _layout(ctx: click.Context, root: Path, *, vendor: bool = False) -> Layout:
    """Where; a configuration of one's own has no place in a service that reads /etc."""
    if (ctx.obj or {}).get("config"):
        raise click.UsageError("the service reads /etc/portretry-udev/config.toml: leave --config out")
    if not root.is_dir():
        raise click.BadParameter(f"there is no folder {root}", param_hint="--root")
    return Layout(root.resolve(), vendor=vendor)


def runnable(named: str | None, *, packaged: bool) -> Path:
    """What the service is to run; what root should not run has to be named to be taken."""
    if named is not None:
        path = Path(named)
        if not path.is_absolute() or not program.is_plain(path):
            raise click.BadParameter(
                f"{plain(named)} must be an absolute path of plain characters", param_hint="--program"
            )
        if not packaged:
            say(*(f"beware: {danger}" for danger in program.dangers([path])))
        return path
    if packaged:
        return install.PACKAGED_PROGRAM
    path_found = program.find(sys.argv[0], sys.executable)
    if path_found is None:
        fail(EX_CONFIG, f"there is no {program.NAME} beside {sys.executable}: name it with --program PATH")
    consists_of = (path_found, Path(sys.executable), Path(install.__file__).parent)
    if dangers := program.dangers(consists_of):
        say("root's service should not run this program:", *dangers)
        note(*program.CURE, "Or, if you know better, add:", f"  --program {path_found}")
        sys.exit(EX_CONFIG)
    if install.is_checkout():
        note("Beware: at each start the service runs what is then in this source tree:")
        note(f"  {install.checkout()}")
    return path_found


def _configuration(layout: Layout) -> Survey | None:
    """What is configured, without the keys; None: nothing.  A mistake ends the command, if it is ours."""
    if not os.path.lexists(layout.config):
        return None
    found = survey({"config": str(layout.config)}, {})
    if found.mistakes and installation.is_here(layout):
        fail(EX_CONFIG, *found.mistakes, "nothing was written or started")
    say(*found.mistakes)  # in another root, files that it names may well be missing here
    return found


def _not_startable(layout: Layout, found: Survey | None, *, no_start: bool) -> list[str] | None:
    """Why the service is not to be started, for people; None: it is."""
    if no_start or layout.vendor or not installation.is_here(layout):
        return []  # as was asked for
    if found is None:
        return [
            "Nothing is configured yet, so nothing is started.  What to do next:",
            f"  sudo {program.NAME} setup",
            f"Or write {layout.config} by hand, as {install.EXAMPLE} beside it shows, and install again.",
        ]
    if os.geteuid() != 0:
        return None  # the keys are not ours to read; the service's own start will tell
    try:
        load({"config": str(layout.config)}, {})
    except Wrong as wrong:
        enable = f"  sudo systemctl enable --now {UNIT}"
        return [
            "The service is neither started nor restarted:",
            *wrong.mistakes,
            "When that is done:",
            enable,
        ]
    return None


def _say_next(planned: Planned, unready: list[str] | None, runs: Path) -> None:
    """What to know, and what to do next."""
    note(*remarks(planned.changes, planned.layout))
    if not installation.is_here(planned.layout) or planned.layout.vendor:
        note(f"The service runs {runs} (another: --program PATH).")
        return
    is_told = any(change.kind is Kind.OFF and change.file.path.name == UNIT for change in planned.changes)
    machine = replace(planned.machine, masked=planned.machine.masked and not is_told)
    note(*(unready or ()), *surroundings(machine, runs))
    if unready is None and planned.machine.active:
        _say_status()


def _say_status() -> None:
    note("What the service sees and waits for:", f"  {program.NAME} status")


def remarks(changes: Iterable[Change], layout: Layout) -> Iterator[str]:
    """What an administrator or a package has said about the same file."""
    own = Layout(layout.root)
    for change in changes:
        path, packaged = change.file.path, change.file.packaged
        if change.kind is Kind.OFF:
            how = "is empty" if change.link is None else "is a link to /dev/null"
            yield f"{path} {how}: you have switched it off, and it stays so (delete it to have it back)."
        elif packaged is not None and change.kind is not Kind.PACKAGED and path.name != install.EXAMPLE:
            if packaged.exists():
                yield f"{path} counts instead of the package's {packaged}."
        elif layout.vendor:
            for above in (own.rule, own.unit):
                if above.name == path.name and os.path.lexists(above):
                    yield f"{above} counts instead of {path}."


def surroundings(machine: Machine, runs: Path) -> Iterator[str]:
    """Where udev or systemd are not at work, what to do without them."""
    if not machine.udevd:
        yield "udevd is not at work here.  In a container: the rules belong on the host (docs/install.md)."
    if machine.masked:
        yield f"{UNIT} is masked: you have switched it off, and it stays so.  To have it back:"
        yield f"  sudo systemctl unmask {UNIT}"
    if machine.systemd:
        return
    if machine.has_systemd:
        yield "systemd is not at work here.  If it will be after the next boot, have it start the service:"
        yield f"  systemctl enable {UNIT}"
        yield "If not, have this run, as root, by whatever starts things here:"
    else:
        yield "There is no systemd here.  Have this run, as root, by what starts things (docs/install.md):"
    yield f"  {runs} watch"


# -- uninstall --------------------------------------------------------------------------------------------
@click.command("uninstall", short_help="End the service, and take away what install has put in place.")
@_dry_run
@_root
@click.option("--purge", is_flag=True, help="Configuration, API keys and remembered holds, too.")
@_yes
@click.pass_context
def uninstall_(ctx: click.Context, *, dry_run: bool, root: Path, purge: bool, yes: bool) -> None:
    """End the service and take away what is ours: rules, unit, start at boot.

    Configuration, API keys and what the service remembers stay, unless --purge.  What is not ours stays.
    The program itself is taken away by what has brought it: pip, pipx, apt.
    """
    layout = _layout(ctx, root)
    try:
        removal = installation.plan_removal(layout, purge=purge, run=activation.run, ports=_ports(layout))
    except InstallTrouble as trouble:
        _fail(ctx, trouble)
    _echo(_going(removal, would=dry_run))
    if not removal.is_needed:
        note("Nothing to take away.")
        return
    if dry_run:
        return
    _judge_rights(ctx, layout, [item.path for item in removal.plan.goes])
    _confirm(yes=yes, question="Take that away?")
    try:
        left, failures = installation.remove(layout, removal, purge=purge, run=activation.run)
    except InstallTrouble as trouble:
        _fail(ctx, trouble, "what is left goes with the next try")
    first = bool(failures) and failures[0].step in removal.before
    say_failures(failures, "nothing was taken away" if first else "the files are gone")
    note("Done.", *(f"{folder} stays: there is something in it." for folder in left))
    if installation.is_here(layout):
        note("The program itself goes the way it came: by pip, pipx or apt.")


def _ports(layout: Layout) -> list[str]:
    """What is configured, as far as it can be made out: mistakes are nobody's trouble any more."""
    if not os.path.lexists(layout.config):
        return []
    return [printer.port for printer in survey({"config": str(layout.config)}, {}).printers if printer.port]


def _going(removal: Removal, *, would: bool) -> Iterator[str]:
    """What goes, what stays, and the commands before and after."""
    yield from _steps(removal.before, would=would)
    for item in removal.plan.goes:
        yield from entry("goes", "red", str(item.path), item.what)
    for item in removal.plan.stays:
        yield from entry("stays", None, str(item.path), item.what)
    yield from _steps(removal.after, would=would)


# -- how a plan is shown ----------------------------------------------------------------------------------
def shown(changes: Iterable[Change], steps: Iterable[Step], *, would: bool) -> Iterator[str]:
    """A plan for people: each file, the difference where one is changed, and the commands after that."""
    for change in changes:
        label, hue = _KINDS[change.kind]
        kept = "; what is there is kept beside it" if change.keeps_old else ""
        what = change.file.what + kept if change.is_needed else ""
        where = change.file.packaged if change.kind is Kind.PACKAGED else change.file.path
        yield from entry(label, hue, str(where), what)
        for line in change.diff():
            yield "    " + click.style(plain(line), fg=_DIFF.get(line[:1]))
    yield from _steps(steps, would=would)


def _steps(steps: Iterable[Step], *, would: bool) -> Iterator[str]:
    for step in steps:
        yield from entry("would run" if would else "runs", "cyan", shlex.join(step.command), step.why)


def entry(label: str, hue: str | None, what: str, why: str) -> Iterator[str]:
    """What it is about, and below it, what is to be said of it."""
    indent = " " * (_LABEL + 2)
    lines = textwrap.wrap(
        plain(what), WIDTH, initial_indent=indent, subsequent_indent=indent + "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    yield click.style(f"{label:<{_LABEL}}", fg=hue) + lines[0][_LABEL:]
    yield from lines[1:]
    yield from textwrap.wrap(why, WIDTH, initial_indent=indent, subsequent_indent=indent)


def backups(written: Iterable[Written]) -> Iterator[str]:
    """Where what was there before is kept."""
    for each in written:
        if each.backup is not None:
            yield from entry("kept", None, str(each.backup), "as it was before")


def note(*paragraphs: str) -> None:
    """Talk to the person, as a dialogue does; what is indented is a line to type, and stays whole."""
    for text in paragraphs:
        wrapped = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
        lines = [text] if text.startswith(" ") else wrapped
        for line in lines:
            click.echo(plain(line), err=True)


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line, color=colour())


# -- what ends a command ----------------------------------------------------------------------------------
def _judge_rights(ctx: click.Context, layout: Layout, paths: Iterable[Path]) -> None:
    """Who may not do it is told who may, before anything is asked."""
    if os.geteuid() == 0:
        return
    if not installation.is_here(layout):
        closed = [path for path in paths if not os.access(nearest(path.parent), os.W_OK)]
        if not closed:
            return
        fail(EX_NOPERM, f"{closed[0]} is not yours to write; type:", f"  {as_root(ctx)}")
    fail(EX_NOPERM, "only root can do that; type:", f"  {as_root(ctx)}")


def nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def as_root(ctx: click.Context) -> str:
    """This very command, as root."""
    words = ["sudo", str(program.find(sys.argv[0], sys.executable) or program.NAME), str(ctx.info_name)]
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name or "")
        flag = parameter.opts[-1]
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [word for each in value for word in (flag, str(each))]
        elif value and value != parameter.default:
            words += [flag, str(value)]
    return shlex.join(words)


def _confirm(*, yes: bool, question: str) -> None:
    """Ask who can be asked.  A script means what it says: what it was shown it has in its log."""
    if yes or not sys.stdin.isatty():
        return
    try:
        agreed = typed(f"{question} [y/N]: ").lower() in ("y", "yes")
    except click.Abort:
        click.echo(err=True)
        fail(EX_INTERRUPTED, "nothing was changed")
    if not agreed:
        fail(EX_DECLINED, "nothing was changed")


def _fail(ctx: click.Context, trouble: InstallTrouble, *lines: str) -> NoReturn:
    if trouble.forbidden:
        fail(EX_NOPERM, plain(str(trouble)), *lines, "as root:", f"  {as_root(ctx)}")
    fail(EX_CANTCREAT, plain(str(trouble)), *lines)


def say_failures(failures: Iterable[Failure], state: str) -> None:
    """A command that failed ends ours, with what is so nevertheless."""
    lines = [plain(str(failure)) for failure in failures]
    if lines:
        hint = [f"what the service says: journalctl -u {UNIT}"] if any(UNIT in line for line in lines) else []
        fail(EX_UNAVAILABLE, *lines, *hint, state)
