"""OctoPrint over REST: its words in, ours out.  The only module that speaks HTTP.

Knows two endpoints (``/api/connection``, ``/api/job``), every state that OctoPrint 1.10.3, 1.11.8 and
2.0.0rc7 say there, and what its errors and its silence mean.  Must not know when to ask or what follows from
an answer (``rules``), nor anything of devices.  OctoPrint 2.0 speaks the shape of 1.x to a client that sends
no version header: so none is sent, and one code path serves all versions.

The API key goes into one header of a request and nowhere else.  The exceptions of requests carry the request,
and with it the key: so they are translated first, and ``Trouble`` is raised outside of ``except``.
"""

import contextlib
import enum
import errno
import http.client
import http.cookiejar
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3  # what requests is made of; its exceptions come through
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from portretry_udev import __version__
from portretry_udev.events import Octo

__all__ = ["Answer", "Client", "Kind", "Octo", "Trouble", "classify", "offered"]

# -- OctoPrint's words --------------------------------------------------------------------------------------
# 1.x: util/comm.py MachineCom.getStateString and printer/standard.py get_current_connection.
# 2.0: printer/connection.py ConnectedPrinterState, printer/standard.py connection_state and
# plugins/serial_connector/connector.py get_state_string.

NO_CONNECTION = frozenset({"Closed", "Offline"})
"""``current.state`` of /api/connection without a connection, in 1.x and in 2.0."""
ENDED_CLEANLY = frozenset({"Offline"})
ENDED_IN_ERROR = frozenset({"Offline after error", "Error"})
"""``state`` of /api/job.  "Error" stays there in 2.0 when the connector could not even be made."""
CONNECTED_OR_CONNECTING = {
    "Opening serial connection": Octo.CONNECTING,  # 1.x
    "Detecting serial connection": Octo.CONNECTING,
    "Detecting": Octo.CONNECTING,  # 2.0, for the moment before the port is opened
    "Connecting": Octo.CONNECTING,
    "Operational": Octo.IDLE,
    "Starting": Octo.BUSY,
    "Starting print from SD": Octo.BUSY,
    "Starting to send file to SD": Octo.BUSY,
    "Printing": Octo.BUSY,
    "Printing from SD": Octo.BUSY,
    "Sending file to SD": Octo.BUSY,
    "Pausing": Octo.BUSY,
    "Paused": Octo.BUSY,
    "Resuming": Octo.BUSY,
    "Finishing": Octo.BUSY,
    "Cancelling": Octo.BUSY,
    "Transferring file to SD": Octo.BUSY,
    "Transferring file to printer": Octo.BUSY,  # 2.0
}
"""Both endpoints say these alike."""

# Errors after which OctoPrint merely closed the port.  After all others it has sent M112 (comm.py
# _trigger_error for "firmware", "resend", "resend_loop", "start_print"), or they tell of somebody's M112.
LOSS_EXCEPTIONS = frozenset(
    {
        "SerialException",  # unplugged, or two readers on one port
        "SerialTimeoutException",
        "PortNotOpenError",
        "OSError",
        "BlockingIOError",
        "BrokenPipeError",
        "TimeoutError",
        "TypeError",  # pyserial, when its port is closed under a read
        "error",  # termios.error
    }
)
"""comm.py _readline and _do_send_...: "{type}: {message}" of what reading or writing the port raised."""
LOSS_TEXTS = frozenset(
    {
        "Too many consecutive timeouts, printer still connected and alive?",
        "No more candidates to test, and no working port/baudrate combination detected.",
        "Connection error, see Terminal tab",  # the port could not be opened
        "Could not write to serial port",
        "See octoprint.log for details",  # OctoPrint's own loop crashed
    }
)
"""comm.py, the same in all three versions."""

# -- HTTP ---------------------------------------------------------------------------------------------------
NOT_UP_YET = frozenset({404, 501, 502, 503})
"""OctoPrint's stand-in while it starts says 404 and 501, a reverse proxy 502 and 503; facts, section 4."""
KEY_REFUSED = frozenset({401, 403})
DECLINED = frozenset({400, 409, 412, 415})
TOO_SLOW = frozenset({408, 504})
UNREACHABLE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
)
SUCCESS = {"GET": 200, "POST": 204}
MAY_BE_MISSING = frozenset({"error", "portPreference", "baudratePreference"})
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

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Answer:
    """What OctoPrint says of its connection: in our word, and in its own.

    ``restarted``: the connection of earlier looks was found closed, so OctoPrint has probably been restarted.
    """

    octo: Octo
    connection: str
    job: str
    error: str | None
    port: str | None
    ports: tuple[str, ...]
    preferred_port: str | None  # None also for "AUTO"
    preferred_baudrate: int | None  # baud; None also for 0, OctoPrint's "AUTO"
    restarted: bool


def classify(connection: str, job: str, error: str | None, port: str | None) -> Octo:
    """Our word for what the two endpoints say.

    They are asked one after the other, so they may speak of different moments: where they disagree, nothing
    is known.  Offline is believed only when no ``port`` is named either: with one, OctoPrint still has, or
    already has, a connection (1.x while it is built, 2.0 right after a connect).

    An error that is not a known loss is taken for a fault of the firmware.  There is no list of faults:
    firmware words them as it likes, and the two mistakes do not weigh the same.  A loss taken for a fault
    waits for the printer's return; a fault taken for a loss is reset behind a person's back.  OctoPrint 2.0
    forgets the text (on_comm_state_change of its serial connector drops the job, and that overwrites it):
    there a fault, and an emergency stop too, look like a loss.

    Args:
        connection: ``current.state`` of /api/connection.
        job: ``state`` of /api/job.
        error: ``error`` of /api/job.
        port: ``current.port`` of /api/connection.
    """
    if connection in NO_CONNECTION and port is None:
        if job not in ENDED_CLEANLY | ENDED_IN_ERROR:
            return Octo.UNKNOWN
        if error and not _is_loss(error):
            return Octo.FAULT  # even if job says plainly "Offline": a fault may come amid a disconnect
        return Octo.OFFLINE if job in ENDED_CLEANLY else Octo.LOST
    first, second = CONNECTED_OR_CONNECTING.get(connection), CONNECTED_OR_CONNECTING.get(job)
    return first if first is not None and first is second else Octo.UNKNOWN


def _is_loss(error: str) -> bool:
    name, colon, _ = error.partition(": ")
    return error in LOSS_TEXTS or (bool(colon) and name in LOSS_EXCEPTIONS)


def offered(ports: Iterable[str], node: str | Path, names: Iterable[str]) -> str | None:
    """OctoPrint's own name for a device: it connects to no other (400 "port is invalid").

    Args:
        ports: ``Answer.ports``.
        node: the device as it is known here.
        names: its other names: links, and what the configuration says OctoPrint calls it.

    Returns:
        A member of ``ports``: literally a name of the device, else one that leads to the same node.
    """
    ours = [str(node), *names]
    listed = [port for port in ports if port not in ("", "AUTO")]
    for name in ours:
        if name in listed:
            return name
    real = {os.path.realpath(name) for name in ours if name.startswith("/")}
    for port in listed:
        with contextlib.suppress(ValueError):  # a NUL, which no path can hold
            if port.startswith("/") and os.path.realpath(port) in real:  # not "VIRTUAL"
                return port
    return None


class Client:
    """One OctoPrint.  For one thread at a time; only ``close`` may come from another.

    Args:
        url: where OctoPrint is, with its path prefix, as a browser would need it.
        key: gives the API key, before each request, so that a new one is found without a restart.  The text
            of its OSError or ValueError is told to people.
        ca_file: certificates to trust instead of the public ones.
        timeout: seconds to connect, and between two bytes of an answer; together also the most that a whole
            request may take once it is connected.
    """

    def __init__(
        self,
        url: str,
        key: Callable[[], str],
        *,
        ca_file: Path | None = None,
        timeout: tuple[float, float] = (3.05, 10.0),
    ) -> None:
        self._url = url.rstrip("/")
        self._who = f"OctoPrint at {_without_secrets(self._url)}"
        self._key = key
        self._timeout = timeout
        self._line = _Line()
        self._session = _session(self._line, ca_file)
        self._seen_line = 0  # which connection the last look ended with
        self._kept = False  # that connection had been kept since the look before

    def look(self) -> Answer:
        """Ask what OctoPrint is doing.

        Raises:
            Trouble: it did not tell.
        """
        expected = self._kept
        connection = self._ask("GET", "/api/connection")
        number = self._line.number
        anew = number != self._seen_line
        self._kept = not anew  # from here on only doubted, by the second answer
        job = self._ask("GET", "/api/job")
        self._kept = self._kept and self._line.number == number
        self._seen_line = self._line.number
        try:
            return _answer(connection, job, restarted=anew and expected)
        except _ShapeError as error:
            wrong = str(error)
        raise Trouble(Kind.ODD, f"{self._who} answers in a shape that is not OctoPrint's: {wrong}")

    def connect(self, port: str, baudrate: int | None, profile: str | None) -> None:
        """Tell OctoPrint to connect.  Its yes (204) means that it heard, not that it connected.

        Args:
            port: a name from ``Answer.ports``; OctoPrint without one may wedge itself (facts, section 3).
            baudrate: baud; None leaves it to OctoPrint.
            profile: id of a printer profile; None leaves it to OctoPrint.

        Raises:
            Trouble: it declined, or did not tell.
            ValueError: ``port`` names none.
        """
        if port in ("", "AUTO"):
            raise ValueError("a connect needs an explicit port")
        body: dict[str, str | int] = {"command": "connect", "port": port}
        if baudrate is not None:
            body["baudrate"] = baudrate
        if profile is not None:
            body["printerProfile"] = profile
        self._ask("POST", "/api/connection", body)

    def close(self) -> None:
        """Let go of the connection; a request that is under way ends at once, in a ``Trouble``."""
        self._line.cut(for_good=True)
        self._session.close()

    def _ask(self, method: str, path: str, body: dict[str, str | int] | None = None) -> object:
        key = self._read_key()
        kind, text = Kind.ODD, ""
        try:
            return self._exchange(method, path, body, key)
        except Trouble as trouble:
            kind, text = trouble.kind, str(trouble)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            kind, text = _explain(error)
        self._kept = False
        if self._line.is_cut:
            kind, text = Kind.SLOW, "did not answer in time"
        raise Trouble(kind, _one_line(f"{self._who} {text}".replace(key, "(the API key)")))

    def _read_key(self) -> str:
        problem = "it is empty, or holds characters that no API key has: store it anew"
        try:
            key = self._key()
        except (OSError, ValueError) as error:
            problem = str(error)
        else:
            if key and key.isascii() and key.isprintable() and " " not in key:
                return key
        self._kept = False
        raise Trouble(Kind.KEY, _one_line(f"the API key for {self._who} cannot be used: {problem}"))

    def _exchange(self, method: str, path: str, body: dict[str, str | int] | None, key: str) -> object:
        with (
            self._line.at_most(sum(self._timeout)),
            self._session.request(
                method,
                self._url + path,
                headers={"X-Api-Key": key},
                json=body,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,  # the limit below is ours
            ) as response,
        ):
            raw = response.raw.read(BODY_LIMIT + 1, decode_content=False)
        if self._line.is_cut or _will_close(response):
            self._kept = False
        if len(raw) > BODY_LIMIT:
            raise Trouble(Kind.ODD, f"sends more than {BODY_LIMIT} bytes: is this OctoPrint's address?")
        if response.status_code != SUCCESS[method]:
            raise _declined(method, path, response, raw)
        return _parsed(raw, response) if method == "GET" else None


class _Line:
    """The TCP connection under a client: counted, and cut when a request takes too long.

    requests limits the time between two bytes only: an answer that drips would never end.
    """

    def __init__(self) -> None:
        self.number = 0  # grows with each connection made
        self.is_cut = False
        self._closed = False
        self._socket: socket.socket | None = None

    def made(self, sock: socket.socket) -> None:
        self.number += 1
        self._socket = sock
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
        place = _without_secrets(response.headers.get("Location", ""), base=response.url, drop=path)
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
    return Trouble(kind, text)


def _error_text(raw: bytes) -> str:
    """The reason in an error's body, as OctoPrint gives it."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    reason = body.get("error") if isinstance(body, dict) else None
    return reason if isinstance(reason, str) else ""


def _one_line(text: str) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def _without_secrets(url: str, base: str = "", drop: str = "") -> str:
    """An address without user, password, query and the path ``drop`` at its end."""
    try:
        parts = urlsplit(urljoin(base, url))
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.removesuffix(drop)}"


# -- the shape of an answer ---------------------------------------------------------------------------------


class _ShapeError(ValueError):
    pass


def _parsed(raw: bytes, response: requests.Response) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        pass
    what = response.headers.get("Content-Type", "something unnamed")
    raise Trouble(Kind.ODD, f"answers with what is not JSON ({what}): is this OctoPrint's address?")


def _field(where: object, name: str, *kinds: type) -> Any:  # noqa: ANN401 - of one of the kinds
    if not isinstance(where, dict) or (name not in where and name not in MAY_BE_MISSING):
        raise _ShapeError(f"no {name!r}")
    value = where.get(name)
    if type(value) not in kinds:  # a bool is no int here
        raise _ShapeError(f"{name!r} is of type {type(value).__name__}")
    return (
        value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
    )  # halves of surrogates


def _answer(connection: object, job: object, *, restarted: bool) -> Answer:
    none = type(None)
    current = _field(connection, "current", dict)
    options = _field(connection, "options", dict)
    ports = [_field({"ports": port}, "ports", str) for port in _field(options, "ports", list)]
    preferred_port = _field(options, "portPreference", str, none)
    preferred_baudrate = _field(options, "baudratePreference", int, none)
    state, port = _field(current, "state", str), _field(current, "port", str, none)
    job_state, error = _field(job, "state", str), _field(job, "error", str, none)
    return Answer(
        octo=classify(state, job_state, error, port),
        connection=state,
        job=job_state,
        error=error or None,
        port=port,
        ports=tuple(ports),
        preferred_port=preferred_port if preferred_port not in ("", "AUTO") else None,
        preferred_baudrate=preferred_baudrate or None,
        restarted=restarted,
    )
