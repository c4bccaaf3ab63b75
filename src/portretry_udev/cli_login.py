"""The command ``login``: asks, and says, what `login` needs and finds.

Knows the terminal and the exit statuses of this command.  Must not know how OctoPrint gives keys or judges
them (``login``).  stdout holds only what was asked for: the key file's path, or what ``--check`` found.
No secret is ever an argument, in the environment, or on the screen.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from portretry_udev import login as login_
from portretry_udev.cli_common import (
    EX_CONFIG,
    EX_INTERRUPTED,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    fail,
    given,
    say,
    typed,
)
from portretry_udev.config import Place, Wrong, load_place
from portretry_udev.keys import VARIABLE, KeySource, KeyTrouble, usual_place
from portretry_udev.login import Account, LoginTrouble, Why
from portretry_udev.rest import Kind, Rest, Trouble

EX_REFUSED = 1
EX_CANTCREAT = 73
EX_NOPERM = 77

STATUS = {
    Why.DENIED: EX_REFUSED,
    Why.TIMED_OUT: EX_REFUSED,
    Why.REFUSED: EX_REFUSED,
    Why.NEW: EX_REFUSED,
    Why.AWAY: EX_UNAVAILABLE,
    Why.RATE_LIMITED: EX_TEMPFAIL,
    Why.NOT_ALLOWED: EX_NOPERM,
    Why.NOT_WRITABLE: EX_CANTCREAT,
}
_TYPE_THIS = "to get a key first, type: portretry-udev login --octoprint http://127.0.0.1:5000"
_USES = {
    "STATUS": "needed, to see what OctoPrint is doing",
    "CONNECTION": "needed, to connect the printer",
    "SETTINGS_READ": "optional, to see other plugins that reconnect",
}


@click.command(short_help="Get an API key from OctoPrint and store it.")
@click.argument("name", required=False)
@click.option("--octoprint", metavar="URL", help="Where OctoPrint is  [the printer's, of the configuration]")
@click.option("--api-key-file", metavar="FILE", help="Where the key is stored  [likewise, else NAME.key]")
@click.option(
    "--ca-file", metavar="FILE", help="The CA of OctoPrint's certificate, if it is not a public one."
)
@click.option("--user", metavar="USER", help="Who is to be asked; with --create-user: who logs in.")
@click.option(
    "--timeout",
    type=click.FloatRange(1, int(login_.LONGEST)),
    default=login_.LONGEST,
    metavar="S",
    help="Seconds to wait for the click  [600]",
)
@click.option("--force", is_flag=True, help="Replace a key that works.")
@click.option(
    "--create-user", is_flag=True, help="Make an account that can only look and connect; asks for a password."
)
@click.option("--account", metavar="ACCOUNT", help=f"That account's name  [{login_.APP}]")
@click.option("--password-stdin", is_flag=True, help="With --create-user: read the password from stdin.")
@click.option("--check", "checking", is_flag=True, help="Say whose the stored key is, and what it may do.")
@click.option("--json", "as_json", is_flag=True, help="With --check: answer as JSON.")
@click.option("--config", metavar="FILE", help="Configuration  [/etc/portretry-udev/config.toml]")
@click.pass_context
def login(  # noqa: PLR0913 - one argument a flag
    ctx: click.Context,
    name: str | None,
    *,
    octoprint: str | None,
    api_key_file: str | None,
    ca_file: str | None,
    user: str | None,
    timeout: float,
    force: bool,
    create_user: bool,
    account: str | None,
    password_stdin: bool,
    checking: bool,
    as_json: bool,
    config: str | None,
) -> None:
    """Get an API key from OctoPrint and store it; for the only printer, or the one NAMEd.

    OctoPrint shows a question to whoever is logged in there: click Allow.  The key can do what that user can.
    With --create-user it belongs to an account that can only look and connect instead.
    """
    _judge_flags(
        {
            "--account": (account is not None, "--create-user", create_user),
            "--password-stdin": (password_stdin, "--create-user and --user", create_user and bool(user)),
            "--json": (as_json, "--check", checking),
        }
    )
    if checking and (create_user or force):
        raise click.UsageError("--check changes nothing: leave out --create-user and --force")
    flags = {"octoprint": octoprint, "api_key_file": api_key_file, "ca_file": ca_file, "config": config}
    place = _place(given(flags, ctx), name)
    if checking:
        sys.exit(_check(place, as_json=as_json))
    with _told():
        path = _file(place)
        if not force and _works(place, path):
            click.echo(path)
            return
        if create_user:
            key = key_of_new_account(place, user, account or login_.APP, password_stdin=password_stdin)
        else:
            key = ask_for_key(place, user, timeout)
        _keep(place, path, key, created=create_user)


def _judge_flags(flags: Mapping[str, tuple[bool, str, bool]]) -> None:
    for flag, (is_given, needed, there) in flags.items():
        if is_given and not there:
            raise click.UsageError(f"{flag} goes with {needed}")


def _place(flags: Mapping[str, object], name: str | None) -> Place:
    try:
        return load_place(flags, os.environ, name)
    except Wrong as wrong:
        hint = [_TYPE_THIS] if wrong.mistakes[0].startswith("no configuration") else []
        fail(EX_CONFIG, *wrong.mistakes, *hint, "nothing was asked or stored")


def _say(text: str = "") -> None:
    """Talk to the person, as a dialogue does: without our name in front."""
    click.echo(text, err=True)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what ends a login into its line and its exit status."""
    try:
        yield
    except LoginTrouble as trouble:
        fail(STATUS[trouble.why], str(trouble), "no key was stored")
    except Trouble as trouble:
        fail(status_of(trouble), str(trouble), "no key was stored")
    except (KeyboardInterrupt, click.Abort):  # click makes the one into the other at a prompt
        _say()
        fail(EX_INTERRUPTED, "given up, no key was stored")


def status_of(trouble: Trouble) -> int:
    """The exit status that says whose fault it was."""
    return EX_REFUSED if trouble.kind in (Kind.KEY, Kind.REFUSED) else EX_UNAVAILABLE


@contextmanager
def _octoprint(place: Place, key: Callable[[], str] | None = None) -> Iterator[Rest]:
    rest = Rest(place.octoprint, key, ca_file=place.ca_file, timeout=login_.ANSWERS_WITHIN)
    try:
        yield rest
    finally:
        rest.close()


# -- where the key goes ------------------------------------------------------------------------------------
def _file(place: Place) -> Path:
    """The file to write; checked first, so that nobody clicks in vain."""
    source = place.key
    path = usual_place(place.name, os.environ) if source is None else source.path
    if path is None:
        fail(EX_CONFIG, f"{place.name}: its key comes from {VARIABLE}, which cannot be written: unset it")
    if source is not None and source.credential:
        fail(
            EX_CONFIG,
            f"{place.name}: its key is the systemd credential {path.name}, which cannot be written: name the "
            "file that the unit loads it from with --api-key-file, then restart the service",
        )
    login_.judge_place(path)
    return path


def _works(place: Place, path: Path) -> bool:
    """Whether the file holds a key that can do the job already; says so, or why not."""
    if not path.exists():
        return False
    try:
        with _octoprint(place, KeySource.from_file(path).read) as rest:
            account = login_.whose(rest)
            login_.judge(account, rest.who)
    except (LoginTrouble, Trouble) as trouble:
        if isinstance(trouble, Trouble) and status_of(trouble) == EX_UNAVAILABLE:
            raise
        _say(f"The stored key is to be replaced: {trouble}.")
        return False
    _say(f"Nothing to do: the stored key is {account.name}'s, and works (--force replaces it).")
    return True


def _keep(place: Place, path: Path, key: str, *, created: bool) -> None:
    """Store a key that was seen to work."""
    with _octoprint(place, lambda: key) as rest:
        account = login_.whose(rest)
        login_.judge(account, rest.who)
    login_.store(path, key)
    _say(f"Stored a key of OctoPrint's user {account.name}.")
    if account.can_more and not created:
        _say(f"It can do all that {account.name} can. With --create-user you get one that can only")
        _say("look and connect.")
    if place.key is None:
        _say("It is found there without being named in the configuration.")
    click.echo(path)


# -- asking people -----------------------------------------------------------------------------------------
def ask_for_key(place: Place, user: str | None, timeout: float) -> str:
    """Have somebody click Allow, and tell where.

    Raises:
        LoginTrouble: nobody did.
        Trouble: OctoPrint did not answer.
    """
    with _octoprint(place) as rest:
        question = login_.Question(rest, user)
        _say(f'OctoPrint now shows an "Access Request" of {login_.APP} to')
        _say(f"{user or 'everybody who is logged in there'}. Click Allow in it, or on this page:")
        _say()
        _say(question.link)
        _say()
        if login_.only_here(place.octoprint):
            _say("From another computer, put this machine's name in place of the address.")
        _say(f"Waiting for {timeout:g} seconds at most; Ctrl-C gives up.")
        return question.answer(timeout)


def key_of_new_account(place: Place, admin: str | None, account: str, *, password_stdin: bool) -> str:
    """Have an administrator log in, and make an account that can only look and connect; its key.

    Raises:
        LoginTrouble: it was refused.
        Trouble: OctoPrint did not answer.
    """
    if admin is None:
        _say("An administrator of OctoPrint has to log in, once; the password is kept nowhere.")
        while not admin:
            admin = typed("Name: ")
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt(f"Password of {admin}", hide_input=True, err=True)
    with _octoprint(place) as rest:
        return login_.create_account(rest, admin, password, account)


# -- check -------------------------------------------------------------------------------------------------
def _check(place: Place, *, as_json: bool) -> int:
    """Say whose the stored key is and what it may do; returns the exit status."""
    source = place.key or KeySource.from_file(usual_place(place.name, os.environ))
    found: dict[str, Any] = {"printer": place.name, "octoprint": place.octoprint, "key": str(source)}
    try:
        source.read()  # its own words are better than those of a request that cannot be made
        with _octoprint(place, source.read) as rest:
            account = login_.whose(rest)
            found |= _described(account)
            login_.judge(account, rest.who)
    except (LoginTrouble, Trouble, KeyTrouble) as trouble:
        status = status_of(trouble) if isinstance(trouble, Trouble) else EX_REFUSED
        found["trouble"] = str(trouble)
    else:
        status = 0
    if as_json:
        click.echo(json.dumps({**found, "ok": status == 0}, indent=2))
    else:
        _show(found)
        if status == EX_REFUSED:
            say(f"a new one: portretry-udev login {place.name}")
    return status


def _described(account: Account) -> dict[str, Any]:
    return {
        "version": account.version,
        "user": account.name,
        "groups": list(account.groups),
        "permissions": {each: account.has(each) for each in _USES},
        "can_more": account.can_more,
    }


def _show(found: Mapping[str, Any]) -> None:
    """The check for people; what is wrong goes to stderr, below it."""
    version = f", {found['version']}" if found.get("version") else ""
    click.echo(f"printer        {found['printer']}")
    click.echo(f"OctoPrint      {found['octoprint']}{version}")
    click.echo(f"key            {found['key']}")
    if "user" in found:
        click.echo(f"user           {found['user'] or 'nobody: the key is not known'}")
        click.echo(f"groups         {', '.join(found['groups']) or 'none'}")
        for permission, has in found["permissions"].items():
            click.echo(f"{permission:<13}  {'yes' if has else 'no ':<3}  {_USES[permission]}")
        click.echo(f"more           {'yes  it can do more than is needed' if found['can_more'] else 'no'}")
    if "trouble" in found:
        say(f"{found['printer']}: {found['trouble']}")
