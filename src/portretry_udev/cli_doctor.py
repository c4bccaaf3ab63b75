"""The command ``doctor``: has everything examined, and shows the report.

Knows the flags and the exit statuses.  Must not know a single check, nor how a report looks
(``doctor_screen``).
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import click

from portretry_udev import cli_common as common
from portretry_udev import logs
from portretry_udev.config import survey
from portretry_udev.listing import WIDTH
from portretry_udev.udev_rule import UNIT

EX_FOUND = 1
# The service's own while it runs, for root to look into; a key may be nowhere else.
CREDENTIALS = Path("/run/credentials", UNIT)


@click.command(short_help="Every reason why nothing might happen, and its cure.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
@click.option("--control", metavar="PATH", envvar="PORTRETRY_CONTROL", help="The service's socket.")
@click.option("-v", "--verbose", is_flag=True, help="Say more of each finding.")
@click.option("--config", metavar="FILE", help="Configuration  [/etc/portretry-udev/config.toml]")
@click.pass_context
def doctor(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context,
    name: str | None,
    *,
    as_json: bool,
    control: str | None,
    verbose: bool,
    config: str | None,
) -> None:
    """Say every reason why nothing might happen, each with its cure; for all printers, or the one NAMEd.

    Nothing is changed, and no port is opened.  Exit status 0: no problem found, 1: at least one.  The output
    holds no key and no password, so that it can be shown to others; serial numbers of devices are in it.
    """
    # What is only needed here is not loaded for `portretry-udev --version` on a Raspberry Pi.
    from portretry_udev import doctor_screen as screen  # noqa: PLC0415
    from portretry_udev.doctor import examine  # noqa: PLC0415
    from portretry_udev.doctor_facts import Reader  # noqa: PLC0415
    from portretry_udev.doctor_patients import majors, patients  # noqa: PLC0415

    logs.set_up(verbose=False)
    flags = common.given({"config": config}, ctx)
    environment = {"CREDENTIALS_DIRECTORY": str(CREDENTIALS), **os.environ}
    found = survey(flags, environment, () if name is None else (name,))
    socket = Path(control).absolute() if control else found.control
    with contextlib.closing(common.devices_or_fail()) as devices:
        reader = Reader(devices)
        seen = patients(found.printers, devices, reader.process)
        report = examine(reader.machine(found, socket, majors(seen)), seen)
    report = screen.without(screen.keys(found.printers), report)
    if as_json:
        click.echo(json.dumps(screen.as_json(report), indent=2))
    else:
        shown = screen.Screen(min(WIDTH, shutil.get_terminal_size().columns))
        for line in shown.text(report, verbose=verbose):
            click.echo(line, color=common.colour())
    sys.exit(0 if report.healthy else EX_FOUND)
