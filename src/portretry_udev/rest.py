"""HTTP to one OctoPrint: a request out, an answer or a ``Trouble`` in.  The only module that speaks it.

Knows requests, TLS, connections and whose fault a failure is.  Must not know what OctoPrint's words mean,
when to ask, or what follows from an answer.

The API key goes into one header of a request and nowhere else.  The exceptions of requests carry the request,
and with it the key: so they are translated first, and ``Trouble`` is raised outside of ``except``.
"""

import contextlib
import enum
import errno
import http.client
import http.cookiejar
import json
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3  # what requests is made of; its exceptions come through
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from portretry_udev import __version__

NOT_UP_YET = frozenset({404, 501, 502, 503})
"""OctoPrint's stand-in while it starts says 404 and 501, a reverse proxy 502 and 503; facts, section 4."""
KEY_REFUSED = frozenset({401, 403})
DECLINED = frozenset({400, 409, 412, 415})
TOO_SLOW = frozenset({408, 504})
UNREACHABLE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
)
BODY_LIMIT = 1 << 20  # bytes; a real answer has a few thousand
MESSAGE_LIMIT = 400  # characters


class Kind(enum.Enum):
    """Whose fault a ``Trouble`` is."""

    DOWN = "down"  # refused, reset, no HTTP, 404, 501, 502, 503: not up yet
    SLOW = "slow"  # timeouts, unreachable host, DNS: it may well be running
    KEY = "key"  # the API key: unreadable, wrong, or without permission
    REFUSED = "refused"  # OctoPrint understood this request and declined it
    ODD = "odd"  # redirect, HTML, broken JSON, TLS, any other status


class Trouble(Exception):  # noqa: N818 - not every trouble is an error: a starting OctoPrint is none
    """OctoPrint did not do what it was asked; ``str()`` is one line for people and never holds the key."""

    def __init__(self, kind: Kind, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.status = status  # of HTTP; None: there was no answer


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was hoped for: its status, its JSON (None: it has no body), and its headers.

    ``cookies`` are those that it sets, by name.  They are never kept here: who wants to be known by them
    sends them along.
    """

    status: int
    body: object
    headers: Mapping[str, str]
    cookies: Mapping[str, str] = field(default_factory=dict, repr=False)


class Rest:
    """One OctoPrint.  For one thread at a time; only ``close`` may come from another.

    Args:
        url: where OctoPrint is, with its path prefix, as a browser would need it.
        key: gives the API key, before each request, so that a new one is found without a restart; None: no
            key is sent.  The text of its OSError or ValueError is told to people.
        ca_file: certificates to trust instead of the public ones.
        timeout: seconds to connect, and between two bytes of an answer; together also the most that a whole
            request may take once it is connected.
        plain: the answers are text and not JSON: ``Reply.body`` is a str.

    Attributes:
        who: OctoPrint and its address, for people.
        kept: the connection that the last answer came by is one that OctoPrint would only close by ending.
    """

    def __init__(
        self,
        url: str,
        key: Callable[[], str] | None,
        *,
        ca_file: Path | None = None,
        timeout: tuple[float, float] = (3.05, 10.0),
        plain: bool = False,
    ) -> None:
        self.url = url.rstrip("/")
        self.who = f"OctoPrint at {without_secrets(self.url)}"
        self.kept = False
        self._key = key
        self._timeout = timeout
        self._plain = plain
        self._line = _Line()
        self._session = _session(self._line, ca_file)

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port that the last connection was made to; None: there was none yet."""
        return self._line.peer

    @property
    def number(self) -> int:
        """Which connection the last answer came by; it grows with each one made."""
        return self._line.number

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | Sequence[str] | None = None,
        *,
        expected: Collection[int] = (200,),
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request; redirects are not followed, and no answer is longer than `BODY_LIMIT`.

        Args:
            method: GET, HEAD or POST.
            path: below the URL, with its slash.
            body: to be sent as JSON.
            expected: the statuses that are no trouble.
            headers: to be sent besides; never logged.

        Raises:
            Trouble: there was no answer, or not one with an expected status and JSON.
        """
        key = self._read_key()
        kind, text, status = Kind.ODD, "", None
        try:
            return self._exchange(method, path, body, expected, {**(headers or {}), **_key_header(key)})
        except Trouble as trouble:
            kind, text, status = trouble.kind, str(trouble), trouble.status
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            kind, text = _explain(error)
        self.kept = False
        if self._line.is_cut:
            kind, text = Kind.SLOW, "did not answer in time"
        if key:
            text = text.replace(key, "(the API key)")
        raise Trouble(kind, one_line(f"{self.who} {text}"), status)

    def close(self) -> None:
        """Let go of the connection; a request that is under way ends at once, in a ``Trouble``."""
        self._line.cut(for_good=True)
        self._session.close()

    def _read_key(self) -> str | None:
        if self._key is None:
            return None
        problem = "it is empty, or holds characters that no API key has: store it anew"
        try:
            key = self._key()
        except (OSError, ValueError) as error:
            problem = str(error)
        else:
            if key and key.isascii() and key.isprintable() and " " not in key:
                return key
        self.kept = False
        raise Trouble(Kind.KEY, one_line(f"the API key for {self.who} cannot be used: {problem}"))

    def _exchange(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | Sequence[str] | None,
        expected: Collection[int],
        headers: Mapping[str, str],
    ) -> Reply:
        with (
            self._line.at_most(sum(self._timeout)),
            self._session.request(
                method,
                self.url + path,
                headers=headers,
                json=body,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,  # the limit below is ours
            ) as response,
        ):
            raw = response.raw.read(BODY_LIMIT + 1, decode_content=False)
        if self._line.is_cut or _will_close(response):
            self.kept = False
        if len(raw) > BODY_LIMIT:
            raise Trouble(Kind.ODD, f"sends more than {BODY_LIMIT} bytes: is this OctoPrint's address?")
        if response.status_code not in expected:
            raise _declined(method, path, response, raw)
        empty = method == "HEAD" or response.status_code == http.HTTPStatus.NO_CONTENT
        parsed = None if empty else raw.decode("utf-8", "replace") if self._plain else _parsed(raw, response)
        return Reply(response.status_code, parsed, response.headers, _cookies(response))


def _key_header(key: str | None) -> dict[str, str]:
    return {} if key is None else {"X-Api-Key": key}


class _Line:
    """The TCP connection under a client: counted, and cut when a request takes too long.

    requests limits the time between two bytes only: an answer that drips would never end.
    """

    def __init__(self) -> None:
        self.number = 0  # grows with each connection made
        self.peer: tuple[str, int] | None = None
        self.is_cut = False
        self._closed = False
        self._socket: socket.socket | None = None

    def made(self, sock: socket.socket) -> None:
        self.number += 1
        self._socket = sock
        with contextlib.suppress(OSError):  # it has closed the connection at once
            address, port = sock.getpeername()[:2]
            self.peer = (str(address), int(port))
        if self.is_cut:  # while it was being made
            self._shut()

    def cut(self, *, for_good: bool = False) -> None:
        self._closed = self._closed or for_good
        self.is_cut = True
        self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self.cut)
        timer.daemon = True
        self.is_cut = self._closed
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


class _Adapter(HTTPAdapter):
    """requests' own, with one connection at a time, which it reports when it is made."""

    def __init__(self, made: Callable[[socket.socket], None]) -> None:
        self._made = made
        super().__init__(pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - handed through
        super().init_poolmanager(*args, **kwargs)
        made = self._made

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                made(self.sock)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                made(self.sock)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: requests would read the whole body of a redirect, even of one that it does not follow."""


def _session(line: _Line, ca_file: Path | None) -> requests.Session:
    session = _Session()
    # Not from the environment: a proxy there would get the key even of a loopback address, and a .netrc would
    # add a password of its own.
    session.trust_env = False
    session.verify = True if ca_file is None else str(ca_file)
    # The key is all that speaks for us: a login kept in a cookie would outlive it.
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    session.headers.update({"User-Agent": f"portretry-udev/{__version__}", "Accept-Encoding": "identity"})
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(line.made))
    return session


def _will_close(response: requests.Response) -> bool:
    """Whether the server says that it closes idle connections of its own accord: now, or soon."""
    headers = response.headers
    return (
        "close" in headers.get("Connection", "").lower() or "timeout" in headers.get("Keep-Alive", "").lower()
    )


# -- what failures mean -------------------------------------------------------------------------------------


FAILURES: tuple[tuple[tuple[type[BaseException], ...], Kind, str], ...] = (
    (
        (ssl.SSLCertVerificationError,),
        Kind.ODD,
        "has a certificate that is not trusted: name the file with its CA as ca_file in the configuration",
    ),
    (
        (ssl.SSLError, requests.exceptions.SSLError),
        Kind.ODD,
        "fails at TLS: http or https? Is ca_file right?",
    ),
    ((TimeoutError, requests.Timeout), Kind.SLOW, "did not answer in time"),
    ((socket.gaierror,), Kind.SLOW, "cannot be found by that name"),
    ((http.client.BadStatusLine, ConnectionError), Kind.DOWN, "is not up yet"),
)
"""What ended a request without an answer; the first that fits."""


def _roots(error: BaseException) -> Iterator[BaseException]:
    """The causes that requests and urllib3 have wrapped, innermost first, then the wrappings."""
    if isinstance(error, requests.RequestException | urllib3.exceptions.HTTPError):
        for inner in (error.__cause__ or error.__context__, getattr(error, "reason", None), *error.args):
            if isinstance(inner, BaseException):
                yield from _roots(inner)
    yield error


def _explain(error: Exception) -> tuple[Kind, str]:
    for root in _roots(error):
        why = getattr(root, "verify_message", None) or getattr(root, "strerror", None) or type(root).__name__
        for classes, kind, text in FAILURES:
            if isinstance(root, classes):
                return kind, f"{text} ({why})"
        if isinstance(root, OSError) and root.errno in UNREACHABLE:
            return Kind.SLOW, f"cannot be reached ({why})"
    return Kind.ODD, f"could not be asked ({type(error).__name__}): are its address and ca_file right?"


def _declined(method: str, path: str, response: requests.Response, raw: bytes) -> Trouble:
    status, said = response.status_code, _error_text(raw)
    kind, text = Kind.ODD, f"answers {method} {path} with HTTP {status}: {said or 'no reason given'}"
    if status in range(300, 400):
        place = without_secrets(response.headers.get("Location", ""), base=response.url, drop=path)
        text = f"redirects to {place}: if that is right, write it as octoprint in the configuration"
    elif method == "POST" and status == http.HTTPStatus.FORBIDDEN:
        kind, text = Kind.KEY, "forbids us to connect: give the API key's user the permission CONNECTION"
    elif status in KEY_REFUSED or (status == http.HTTPStatus.BAD_REQUEST and "csrf" in said.lower()):
        # Without a key that it knows OctoPrint takes a POST for a browser's, and asks for a CSRF token.
        kind, text = Kind.KEY, "refuses the API key: its user needs the permissions STATUS and CONNECTION"
    elif status in NOT_UP_YET:
        kind, text = Kind.DOWN, f"is not up yet (HTTP {status})"
    elif status in TOO_SLOW:
        kind = Kind.SLOW
    elif status in DECLINED:
        kind = Kind.REFUSED
    return Trouble(kind, text, status)


def _error_text(raw: bytes) -> str:
    """The reason in an error's body, as OctoPrint gives it."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    reason = body.get("error") if isinstance(body, dict) else None
    return reason if isinstance(reason, str) else ""


def one_line(text: str) -> str:
    """Foreign text, fit for one line of a log."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def without_secrets(url: str, base: str = "", drop: str = "") -> str:
    """An address without user, password, query and the path ``drop`` at its end."""
    try:
        parts = urlsplit(urljoin(base, url))
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.removesuffix(drop)}"


def _cookies(response: requests.Response) -> dict[str, str]:
    """The cookies that an answer sets.

    From its raw lines: requests joins them by commas, and there are commas in their dates.
    """
    lines: list[str] = response.raw.headers.getlist("Set-Cookie")
    pairs = (line.partition(";")[0].partition("=") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _parsed(raw: bytes, response: requests.Response) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        pass
    what = response.headers.get("Content-Type", "something unnamed")
    raise Trouble(Kind.ODD, f"answers with what is not JSON ({what}): is this OctoPrint's address?")


# -- for a connection that is not requests' own -------------------------------------------------------------


def explained(who: str, error: Exception) -> Trouble:
    """What ended a connection without an answer, in the words of a request's."""
    kind, text = _explain(error)
    return Trouble(kind, one_line(f"{who} {text}"))


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """TLS as strict as a request's, with the same certificates.

    Raises:
        OSError: ``ca_file`` cannot be read, or holds no certificates (ssl.SSLError).
    """
    public = requests.utils.DEFAULT_CA_BUNDLE_PATH
    return ssl.create_default_context(cafile=public if ca_file is None else str(ca_file))
