"""The commands: flags in, the right module called, its outcome said.  Thin: nothing is decided here.

stdout holds only what was asked for; everything else goes to stderr.  Exit status follows sysexits(3).
"""

import faulthandler
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from portretry_udev import (
    __version__,
    cli_doctor,
    cli_install,
    cli_login,
    cli_ports,
    cli_setup,
    cli_status,
    control,
    logs,
)
from portretry_udev.cli_common import (
    EX_SOFTWARE,
    common,
    devices_or_fail,
    fail,
    given,
    load_or_fail,
)
from portretry_udev.config import load
from portretry_udev.daemon import Daemon
from portretry_udev.notify import Notifier

_log = logging.getLogger("portretry_udev")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="portretry-udev", message="%(prog)s %(version)s")
@click.option("--config", type=click.Path(dir_okay=False), help="Configuration for any of the commands.")
@click.pass_context
def main(ctx: click.Context, config: str | None) -> None:
    """Bring a 3D printer back into OctoPrint the moment it returns; never harm a print in doing so."""
    ctx.obj = {"config": config}


# -- watch -------------------------------------------------------------------------------------------------
@main.command(short_help="The service: watch the printers until a signal comes.")
@click.argument("name", nargs=-1)
@click.option("--octoprint", metavar="URL", help="Where OctoPrint is, such as http://127.0.0.1:5000")
@click.option("--api-key-file", metavar="FILE", help="File with OctoPrint's API key, mode 0600.")
@click.option("--port", metavar="NODE", help="The printer's port  [the one OctoPrint prefers]")
@click.option("--baudrate", type=int, metavar="N", help="Baud  [OctoPrint's]")
@click.option("--interval", type=float, metavar="S", help="Seconds between looks  [5, or PortRetry's]")
@click.option(
    "--reconnect", type=click.Choice(["on-return", "always"]), help="After a Disconnect  [on-return]"
)
@click.option("--probe", type=click.Choice(["firmware", "open", "none"]), help="What to ask for  [firmware]")
@click.option("--start", type=click.Choice(["connect", "wait"]), help="At the start  [connect]")
@click.option("--no-avoid-reset", is_flag=True, help="Let DTR drop whenever the port is closed.")
@click.option(
    "--octoprint-config", metavar="FILE", help="OctoPrint's config.yaml: take PortRetry's settings over."
)
@click.option("--ca-file", metavar="FILE", help="The CA of OctoPrint's certificate, if not a public one.")
@click.option("--state-dir", metavar="DIR", help="Where holds are remembered.")
@click.option("--control", metavar="PATH", help="The socket for status, retry, pause and resume.")
@click.option("--metrics-textfile", metavar="PATH", help="Metrics for node_exporter, NAME.prom.")
@click.option("--dry-run", is_flag=True, help="Open and connect nothing; say what would be done.")
@common
@click.pass_context
def watch(
    ctx: click.Context,
    /,
    name: tuple[str, ...],
    *,
    verbose: bool,
    dry_run: bool,
    no_avoid_reset: bool,
    **flags: Any,  # noqa: ANN401 - click's values, which `load` judges
) -> None:
    """Watch the printers, or those NAMEd, until a signal comes; SIGHUP has the configuration read again.

    Without a configuration file, one printer is watched as the flags say.
    """
    flags["avoid_reset"] = False if no_avoid_reset else None
    spoken = given(flags, ctx)
    config = load_or_fail(spoken, name)
    logs.set_up(verbose=verbose)
    devices_or_fail().close()  # libudev is there
    notifier = Notifier.from_environment(os.environ)
    if notifier.watchdog is not None:
        faulthandler.enable()  # whom systemd ends for hanging says where it hangs (SIGABRT)
    try:
        Daemon(config, dry_run=dry_run, again=lambda: load(spoken, os.environ, name), notifier=notifier).run()
    except control.ControlError as e:
        fail(e.status, str(e), "nothing was started or changed")
    except Exception:  # noqa: BLE001 - the last place where it can be said
        _log.critical("unforeseen, please report it; the service ends:", exc_info=True)
        sys.exit(EX_SOFTWARE)


# -- what stands in modules of its own ---------------------------------------------------------------------
main.add_command(cli_install.install_)
main.add_command(cli_install.uninstall_)
main.add_command(cli_login.login)
main.add_command(cli_ports.ports)
main.add_command(cli_ports.probe)
main.add_command(cli_setup.setup)
main.add_command(cli_doctor.doctor)
main.add_command(cli_status.status)
main.add_command(cli_status.retry)
main.add_command(cli_status.pause)
main.add_command(cli_status.resume)


# -- demo --------------------------------------------------------------------------------------------------
@main.command(short_help="The whole story on this machine, without hardware.")
@click.option(
    "--octoprint", "version", metavar="VERSION", help="Against this real OctoPrint, such as 1.11.8."
)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Where it is installed.")
@common
def demo(*, version: str | None, cache: Path | None, verbose: bool, config: str | None) -> None:
    """Show the whole story on this machine, without hardware, in under a minute."""
    del config  # the demo makes its own
    from portretry_udev import demo as demo_  # noqa: PLC0415 - only the demo needs the simulators

    logs.set_up(verbose=verbose)
    sys.exit(demo_.run(version, cache, verbose=verbose))


# -- the shell's TAB ---------------------------------------------------------------------------------------
if "_PORTRETRY_UDEV_COMPLETE" in os.environ:  # the shell wants words, and nothing is to be done
    from portretry_udev import completion

    completion.teach(main)
