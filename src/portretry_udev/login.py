"""How a key for one OctoPrint is got, judged and stored.

Knows OctoPrint's plugin "Application Keys", its accounts and permissions, and how a secret is written.  Must
not know the command line, nor how a configuration is found (``config``), nor HTTP (``rest``).

What is said of OctoPrint here was seen with 1.10.3, 1.11.8 and 2.0.0rc7; "appkeys" is its
``plugins/appkeys/__init__.py``.  No key, password or cookie is ever part of a text that is made here.
"""

import contextlib
import enum
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode, urlsplit

from portretry_udev import files
from portretry_udev.about import NEEDED, SETTINGS
from portretry_udev.rest import Kind, Reply, Rest, Trouble

APP = "portretry-udev"
"""What OctoPrint shows to the person who is to click Allow; also the account that is made on demand."""
OPTIONAL = (SETTINGS,)
"""What else is of use: it lets other plugins that reconnect be seen."""

ANSWERS_WITHIN = (3.05, 4.0)  # seconds, as ``Rest`` wants them: a poll must not outlast FORGETS_AFTER
POLL_PERIOD = 1.0  # seconds
FORGETS_AFTER = 5.0  # seconds without a poll; appkeys, POLL_TIMEOUT
LONGEST = 600.0  # seconds that OctoPrint keeps its question open; appkeys, CUTOFF_TIME
PATIENCE = 10.0  # seconds that an OctoPrint may be away while it is polled

_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,128}")  # appkeys makes 43 characters; it goes into an address
_KEY = re.compile(r"[!-~]{1,256}")  # as `keys` reads it
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
_LIKE_A_KEY = re.compile(rb"\s*[A-Za-z0-9_-]{0,256}\s*")
_MOST_BYTES = 1024  # of a key and the white space around it
_MOST_SHOWN = 100  # characters of a word of OctoPrint's
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Why(enum.Enum):
    """What kept a key from being stored."""

    DENIED = "denied"  # somebody clicked Deny
    TIMED_OUT = "timed out"  # nobody clicked
    REFUSED = "refused"  # the password, the account, or what the key may do
    NEW = "new"  # nobody has gone through OctoPrint's first-run wizard
    AWAY = "away"  # OctoPrint, long enough to have forgotten its question
    RATE_LIMITED = "rate limited"
    NOT_ALLOWED = "not allowed"  # we may not write there
    NOT_WRITABLE = "not writable"  # nobody could, or nobody should


class LoginTrouble(Exception):  # noqa: N818 - like ``Trouble``, it need not be an error
    """No key was stored; ``str()`` is one line for people, which never holds a secret."""

    def __init__(self, why: Why, text: str) -> None:
        super().__init__(text)
        self.why = why


@dataclass(frozen=True)
class Account:
    """Whose key it is.

    Attributes:
        name: of the user; None: OctoPrint does not know the key.
        groups: the user's.
        permissions: all that the user has, by groups or directly.
        version: OctoPrint's; None: it does not tell this user.
    """

    name: str | None
    groups: tuple[str, ...]
    permissions: frozenset[str]
    version: str | None

    def has(self, permission: str) -> bool:
        """Whether it may; administrators may everything."""
        return bool(self.permissions & {permission, "ADMIN"})

    @property
    def missing(self) -> tuple[str, ...]:
        """Which of `NEEDED` it has not."""
        return tuple(each for each in NEEDED if not self.has(each))

    @property
    def can_more(self) -> bool:
        """Whether it may do more than this program ever does."""
        return bool(self.permissions - {*NEEDED, *OPTIONAL})


# -- whose a key is -----------------------------------------------------------------------------------------


def whose(rest: Rest) -> Account:
    """Ask whose the key of ``rest`` is.

    To a key that it does not know OctoPrint 1.10 says 403 here, later ones give nobody's name.

    Raises:
        Trouble: it did not tell.
    """
    reply = rest.ask("GET", "/api/currentuser", expected=(200, 403))
    if reply.status == HTTPStatus.FORBIDDEN:
        return Account(None, (), frozenset(), None)
    name, groups, permissions = (_member(reply.body, each) for each in ("name", "groups", "permissions"))
    if not isinstance(groups, list) or not isinstance(permissions, list):
        raise Trouble(Kind.ODD, f"{rest.who} does not answer like one: is this OctoPrint's address?")
    return Account(
        _shown(name) if isinstance(name, str) else None,
        tuple(_shown(each) for each in groups),
        frozenset(_shown(each) for each in permissions),
        None if name is None else _version(rest),
    )


def _version(rest: Rest) -> str | None:
    reply = rest.ask("GET", "/api/version", expected=(200, 403))
    return _shown(_member(reply.body, "server")) if reply.status == HTTPStatus.OK else None


def judge(account: Account, who: str) -> None:
    """Refuse a key that cannot do the job.

    Args:
        account: whose it is.
        who: OctoPrint and its address, for people.

    Raises:
        LoginTrouble: refused; it says what to give the user.
    """
    if account.name is None:
        raise LoginTrouble(Why.REFUSED, f"{who} does not know the key: revoked, or its user gone?")
    if account.missing:
        lacks = " and ".join(account.missing)
        raise LoginTrouble(
            Why.REFUSED,
            f"{who}: user {account.name} lacks the permission {lacks}; an administrator can give it in "
            "Settings, Access Control; then try again",
        )
    if account.version is None:  # 1.11 and later go on naming the permissions of a user who has none
        raise LoginTrouble(
            Why.REFUSED,
            f"{who} gives user {account.name} no answers: deactivated, in Settings, Access Control?",
        )


def _member(body: object, name: str) -> object:
    return body.get(name) if isinstance(body, dict) else None


def _shown(text: object) -> str:
    """A word of OctoPrint's, unable to steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:_MOST_SHOWN])


# -- Application Keys ---------------------------------------------------------------------------------------


class Question:
    """One request for a key: put to whoever sits at OctoPrint, and waited upon.

    Args:
        rest: without a key.
        user: OctoPrint's user who is to be asked; None: whoever is there.
        clock: seconds.
        wait: lets so many seconds pass.

    Raises:
        LoginTrouble: OctoPrint takes no requests, or no more of them for now.
        Trouble: OctoPrint did not answer, or not like one.
    """

    def __init__(
        self,
        rest: Rest,
        user: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rest, self._clock, self._wait = rest, clock, wait
        probe(rest)
        body: dict[str, object] = {"app": APP, **({"user": user} if user else {})}
        reply = rest.ask("POST", "/plugin/appkeys/request", body, expected=(201, 429))
        if reply.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise LoginTrouble(
                Why.RATE_LIMITED,
                f"{rest.who} takes 3 requests for a key a minute, 5 in 10 minutes and 10 an hour: try again "
                "in a minute, or if it refuses then too, later",
            )
        token = _member(reply.body, "app_token")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise Trouble(Kind.ODD, f"{rest.who} took the request, but gave no name for it")
        self._began = self._heard = clock()
        self._path = f"/plugin/appkeys/request/{token}"
        # Not the address that OctoPrint gives: behind a proxy that is another one, or of another scheme.
        query = f"?{urlencode({'user': user})}" if user else ""
        self.link = f"{rest.url}/plugin/appkeys/auth/{token}{query}"

    def answer(self, timeout: float = LONGEST) -> str:
        """Wait until somebody has clicked Allow.

        OctoPrint says 404 alike for: denied, too old, and not polled in time.  The clock tells them apart.

        Args:
            timeout: seconds.

        Returns:
            The key.  OctoPrint gives it out only once.

        Raises:
            LoginTrouble: denied, timed out, or OctoPrint was away for too long.
        """
        unbroken = True
        while True:
            self._wait(POLL_PERIOD)
            asked = self._clock()
            if asked - self._began >= timeout:
                raise LoginTrouble(Why.TIMED_OUT, f"nobody clicked Allow within {timeout:g} seconds")
            try:
                reply = self._rest.ask("GET", self._path, expected=(200, 202, 404))
            except Trouble as trouble:
                unbroken = False
                if self._clock() - self._heard < PATIENCE:
                    continue
                away = f"{trouble}; it was away for too long: when it is back, try again"
                raise LoginTrouble(Why.AWAY, away) from None
            if reply.status == HTTPStatus.OK:
                return _key(self._rest, reply)
            if reply.status == HTTPStatus.NOT_FOUND:
                raise self._ended(asked, unbroken=unbroken and asked - self._heard < FORGETS_AFTER)
            self._heard, unbroken = asked, True

    def _ended(self, asked: float, *, unbroken: bool) -> LoginTrouble:
        who = self._rest.who
        if not unbroken:
            return LoginTrouble(
                Why.AWAY,
                f"{who} has forgotten the request: it was restarted or too busy, or we were: try again",
            )
        if asked - self._began > LONGEST - FORGETS_AFTER:
            return LoginTrouble(Why.TIMED_OUT, f"{who} closed its question after 10 minutes without a click")
        return LoginTrouble(Why.DENIED, f"{who}: somebody clicked Deny")


def probe(rest: Rest) -> None:
    """See that this is an OctoPrint that gives keys to applications.

    Raises:
        LoginTrouble: its plugin is disabled, or its first-run wizard not finished.
        Trouble: it is none, or did not answer.
    """
    whose(rest)  # a 404 of a proxy's, or of an OctoPrint that starts, ends here
    try:
        rest.ask("GET", "/plugin/appkeys/probe", expected=(204,))
    except Trouble as trouble:
        kind = Why.REFUSED
        if trouble.status == HTTPStatus.NOT_FOUND:
            text = (
                f"{rest.who} gives no keys to applications: enable its plugin Application Keys (Settings, "
                "Plugin Manager), or write a user's own API key into the file by hand"
            )
        elif trouble.status == HTTPStatus.FORBIDDEN:
            kind = Why.NEW
            text = (
                f"{rest.who} is not set up yet: open it in a browser, go through its wizard, then try again"
            )
        else:
            raise
        why = LoginTrouble(kind, text)
    else:
        return
    raise why


def only_here(url: str) -> bool:
    """Whether an address leads to OctoPrint from this machine alone."""
    return urlsplit(url).hostname in _LOOPBACK


def _key(rest: Rest, reply: Reply) -> str:
    key = _member(reply.body, "api_key")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise Trouble(Kind.ODD, f"{rest.who} said yes, but gave no key")
    return key


# -- an account of our own ----------------------------------------------------------------------------------


def create_account(rest: Rest, admin: str, password: str, name: str = APP) -> str:
    """Make an account that can only look and connect, and a key for it.

    Done again, it finds the account that it made, and returns the same key.  The new account's password is
    random and told to nobody.

    Args:
        rest: without a key.
        admin: the name of an administrator.
        password: the administrator's; it is sent once and kept nowhere.
        name: the account's.

    Returns:
        The account's key.

    Raises:
        LoginTrouble: the password or the account was refused, or too many were tried.
        Trouble: OctoPrint did not answer, or not like one.
    """
    if not _ACCOUNT.fullmatch(name):
        raise LoginTrouble(Why.REFUSED, "an account's name has 1 to 64 letters, digits, or _ . @ -")
    probe(rest)
    with _Session(rest, admin, password) as session:
        _make_account(session, name)
        body = {"command": "generate", "app": APP, "user": name}
        return _key(rest, session.ask("POST", "/api/plugin/appkeys", body))


class _Session:
    """A login with name and password, as a browser has it; ended when the block is left."""

    def __init__(self, rest: Rest, admin: str, password: str) -> None:
        self.who, self.admin = rest.who, _shown(admin)
        self._rest, self._user, self._password = rest, admin, password
        self._cookies: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.ask("HEAD", "/login/")  # gives the first cookies
        body = {"user": self._user, "pass": self._password}
        reply = self.ask("POST", "/api/login", body, expected=(200, 400, 403, 429))
        if reply.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise LoginTrouble(
                Why.RATE_LIMITED,
                f"{self.who} has seen too many wrong passwords: try again in a minute, or if it refuses then "
                "too, in an hour",
            )
        if reply.status == HTTPStatus.BAD_REQUEST:  # "CSRF validation failed"
            raise LoginTrouble(
                Why.REFUSED, f"{self.who} has not got its cookies back: does a proxy in between drop them?"
            )
        if _member(reply.body, "mfa"):
            raise LoginTrouble(
                Why.REFUSED,
                f"{self.who} wants a second factor of {self.admin}, which cannot be given here: make the "
                "account in OctoPrint, and have it click Allow (leave out --create-user)",
            )
        if reply.status != HTTPStatus.OK:
            raise LoginTrouble(Why.REFUSED, f"{self.who} refuses that name and password of {self.admin}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Trouble):  # then the session ends by itself, as one in a closed browser
            self.ask("POST", "/api/logout")

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        expected: Collection[int] = (200,),
    ) -> Reply:
        """One request of the one who logged in; a POST needs the token beside the cookie that holds it."""
        headers = {}
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        for name, value in self._cookies.items():
            if name.startswith("csrf_token"):  # followed by _P and the port, and the prefix
                headers["X-CSRF-Token"] = value
        reply = self._rest.ask(method, path, body, expected=expected, headers=headers)
        self._cookies.update(reply.cookies)
        return reply


def _make_account(session: _Session, name: str) -> None:
    """Have an account with exactly our permissions; one that has others is left as it is, and refused."""
    path = f"/api/access/users/{quote(name, safe='')}"
    found = session.ask("GET", path, expected=(200, 403, 404))
    if found.status == HTTPStatus.FORBIDDEN:
        raise LoginTrouble(
            Why.REFUSED, f"{session.who}: {session.admin} is no administrator, and may not make accounts"
        )
    if found.status == HTTPStatus.OK:
        _judge_account(session, name, found.body)
        return
    body = {
        "name": name,
        "password": secrets.token_urlsafe(32),
        "active": True,
        "groups": [],
        "permissions": list(NEEDED),
    }
    session.ask("POST", "/api/access/users", body)


def _judge_account(session: _Session, name: str, body: object) -> None:
    groups, permissions = _member(body, "groups"), _member(body, "permissions")
    if not isinstance(groups, list) or not isinstance(permissions, list):
        raise Trouble(Kind.ODD, f"{session.who} does not tell what account {name} may do")
    faults = [f"is in the group {_shown(group)}" for group in groups]
    faults += [f"may do {_shown(each)}" for each in permissions if each not in (*NEEDED, *OPTIONAL)]
    faults += [f"lacks {each}" for each in NEEDED if each not in permissions]
    if not _member(body, "active"):
        faults.append("is deactivated")
    if faults:
        what = ", ".join(faults[:3]) + (", and more" if len(faults) > 3 else "")  # noqa: PLR2004 - enough
        raise LoginTrouble(
            Why.REFUSED,
            f"{session.who} has an account {name} already, which {what}: it is left as it is; name another "
            "one with --account",
        )


# -- the key's file -----------------------------------------------------------------------------------------


def judge_place(path: Path) -> None:
    """Refuse a place where a key could not or should not be written, before anybody is asked for one.

    Only a file of ours that holds one word, or nothing, is ever replaced: what is named by mistake survives.

    Raises:
        LoginTrouble: refused; it says why.
    """
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else kind
            raise LoginTrouble(Why.NOT_WRITABLE, f"{path} is {kind}, and is left alone: name another file")
        if found.st_uid != os.geteuid():
            raise LoginTrouble(
                Why.NOT_ALLOWED,
                f"{path} belongs to {_user(found.st_uid)}, and is left alone: name another file",
            )
        with path.open("rb") as file:
            if found.st_size > _MOST_BYTES or not _LIKE_A_KEY.fullmatch(file.read(_MOST_BYTES)):
                raise LoginTrouble(
                    Why.NOT_WRITABLE,
                    f"{path} holds something other than a key, and is left alone: name another",
                )
    except FileNotFoundError:
        pass  # the usual case: it is to be made
    except OSError as error:
        raise _unwritten(path, error) from None
    folder = next(each for each in path.parents if os.path.lexists(each))
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise LoginTrouble(
            Why.NOT_ALLOWED,
            f"{folder} cannot be written by {_user(os.geteuid())}: run this as root (sudo), or name another "
            "file with --api-key-file",
        )


def store(path: Path, key: str) -> None:
    """Write a key so that nobody else can read it at any moment, and that there is always a whole one.

    Args:
        path: the file; it is replaced, not changed.
        key: as OctoPrint gave it.

    Raises:
        LoginTrouble: it cannot be written.
    """
    try:
        files.write(path, f"{key}\n".encode("ascii"))
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> LoginTrouble:
    why = Why.NOT_ALLOWED if isinstance(error, PermissionError) else Why.NOT_WRITABLE
    return LoginTrouble(why, f"the key file {path} cannot be written: {error.strerror or error}")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
