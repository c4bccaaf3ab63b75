"""The command ``setup``: from nothing to a printer that comes back, in one dialogue or without one.

Knows the flags, and who may.  Must not know what follows from them (``setup_run``).  stdout holds nothing but
what --json asks for.  No secret is ever an argument, in the environment, or on the screen.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from portretry_udev import cli_install, installation, matching
from portretry_udev.cli_common import fail
from portretry_udev.cli_install import EX_NOPERM
from portretry_udev.install import Layout
from portretry_udev.listing import plain
from portretry_udev.questions import PREFERRED, Given, Orders
from portretry_udev.settings import NAME, octoprint_url


def _url(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else octoprint_url(value)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None


def _match(_ctx: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> Sequence[str]:
    for value in values:
        key, sign, wish = value.partition("=")
        if not sign or not wish or key not in matching.KEYS:
            keys = ", ".join(sorted(matching.KEYS))
            raise click.BadParameter(f"{plain(value)!r} is no KEY=VALUE, of the keys {keys}")
    return values


def _name(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not NAME.fullmatch(value):
        raise click.BadParameter("has 1 to 64 letters, digits, _ . or -, and begins with none of . -")
    return value


_path = click.Path(dir_okay=False, path_type=Path)


@click.command("setup", short_help="From nothing to a printer that comes back: asks, writes, starts.")
@click.option("--octoprint", metavar="URL", callback=_url, help="Where OctoPrint is  [looked for here]")
@click.option("--name", metavar="NAME", callback=_name, help="What the printer is to be called.")
@click.option("--port", metavar="NODE", help='Its port, or "octoprint": always the one OctoPrint prefers.')
@click.option(
    "--match", metavar="KEY=VALUE", multiple=True, callback=_match, help="Instead: serial, vendor, path, ..."
)
@click.option("--api-key-file", type=_path, metavar="FILE", help="A file with an API key that works.")
@click.option("--create-user", is_flag=True, help="Make an account that can only look and connect.")
@click.option("--user", metavar="USER", help="Who is to be asked; with --create-user: who logs in.")
@click.option("--password-stdin", is_flag=True, help="With --create-user: read the password from stdin.")
@click.option("--ca-file", type=_path, metavar="FILE", help="The CA of OctoPrint's certificate.")
@click.option("--interval", type=click.FloatRange(0.5, 3600), metavar="S", help="Seconds between looks  [5]")
@click.option("--no-install", is_flag=True, help="Write the configuration alone: no rule, no service.")
@click.option("--no-start", is_flag=True, help="Neither start nor restart the service.")
@click.option(
    "--wait", type=click.FloatRange(0, 3600), metavar="S", help="Seconds to wait until it is connected  [60]"
)
@click.option("--program", metavar="PATH", help="What the service runs  [this program]")
@click.option(
    "--root",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=Path("/"),
    metavar="DIR",
    help="A system in that folder instead of this one.",
)
@click.option("--config", type=_path, metavar="FILE", help="Another configuration; no service.")
@click.option("-y", "--yes", is_flag=True, help="Ask nothing: what is not clear ends it.")
@click.option("--json", "as_json", is_flag=True, help="Say what came of it as JSON.")
@click.pass_context
def setup(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context,
    /,
    *,
    port: str | None,
    match: tuple[str, ...],
    no_install: bool,
    no_start: bool,
    wait: float | None,
    program: str | None,
    root: Path,
    config: Path | None,
    yes: bool,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - click's values, as `Given` names them
) -> None:
    """Find OctoPrint, get a key, name the printer and its port; write, start, and see it connected.

    Each answer can be given as a flag.  What will be written is shown before; what was there is kept beside
    it.  A second time changes nothing.  With --yes nothing is asked: what is not given, and not clear, ends
    it with status 64.  Status 75: all is set up, but the printer was not connected in time.
    """
    if port is not None and match:
        raise click.UsageError("--port and --match exclude each other: give one")
    _judge_flags(given)
    layout = Layout(root.resolve())
    config = config or (ctx.obj or {}).get("config")
    path = _absolute(Path(config) if config else None) or layout.config
    _judge_rights(ctx, layout, path)
    here = installation.is_here(layout)
    installs = not no_install and path == layout.config
    files: dict[str, Any] = {name: _absolute(given.pop(name)) for name in ("api_key_file", "ca_file")}
    node = port if port is None or port == PREFERRED else str(_absolute(Path(port)))
    orders = Orders(
        Given(port=node, match=dict(each.split("=", 1) for each in match), **files, **given),
        layout,
        path,
        cli_install.runnable(program, packaged=not here) if installs else None,
        starts=here and not no_start,
        wait=wait,
        asks=not yes,
    )
    from portretry_udev import setup_run  # noqa: PLC0415 - other commands need not wait for it

    status, summary = setup_run.run(orders, lambda: cli_install.as_root(ctx))
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    sys.exit(status)


def _judge_flags(given: Mapping[str, Any]) -> None:
    if given["password_stdin"] and not (given["create_user"] and given["user"]):
        raise click.UsageError("--password-stdin goes with --create-user and --user")
    if given["api_key_file"] and given["create_user"]:
        raise click.UsageError("--api-key-file and --create-user exclude each other: give one")


def _absolute(path: Path | None) -> Path | None:
    """From the folder that it was typed in; links are not followed, they may be the very point."""
    return None if path is None else Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would


def _judge_rights(ctx: click.Context, layout: Layout, path: Path) -> None:
    """Who may not write is told so before anything is asked."""
    if os.geteuid() == 0:
        return
    usual = installation.is_here(layout) and path == layout.config
    if usual or not os.access(cli_install.nearest(path.parent), os.W_OK | os.X_OK):
        what = "only root can install a service" if usual else f"{path.parent} is not yours to write"
        fail(EX_NOPERM, f"{what}; type:", f"  {cli_install.as_root(ctx)}")
