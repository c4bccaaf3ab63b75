"""OctoPrint's words in, ours out.

Knows two endpoints (``/api/connection``, ``/api/job``) and every state that OctoPrint 1.10.3, 1.11.8 and
2.0.0rc7 say there.  Must not know when to ask or what follows from an answer (``rules``), nor anything of
HTTP (``rest``) or of devices.  OctoPrint 2.0 speaks the shape of 1.x to a client that sends no version
header: so none is sent, and one code path serves all versions.  Only what that shape cannot hold, whether
the printer is on a serial port at all, is asked in 2.0's own.
"""

import contextlib
import dataclasses
import http
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portretry_udev.about import About, ask_about
from portretry_udev.events import OFFLINE, Octo
from portretry_udev.rest import Kind, Rest, Trouble, one_line

__all__ = ["About", "Answer", "Client", "Kind", "NotSetUp", "Octo", "Trouble", "classify", "offered"]

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
MAY_HAVE_FAILED_TO_OPEN = frozenset({"Opening serial connection", "Connecting"})
"""In which OctoPrint stays for ever once it could not open the port: the first in 1.x, the second in 2.0
(facts, section 3).  Detection ends by itself."""

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

MAY_BE_MISSING = frozenset(
    {"error", "portPreference", "baudratePreference", "connector", "connectors", "preferredConnector"}
)

RATES = range(2400, 4_000_001)
"""Baud; what lies beyond, 1200 above all, is no preference that could be followed."""

SERIAL = "serial"
"""2.0's name for the connector that we know; all others, known or not, are somebody else's printers."""
_MOST_PORTS = 1000  # of those that OctoPrint offers, that are resolved
_LONGEST_PATH = 512  # characters

SHAPE_OF_2_0 = "/api/connection?api_version=2.0.0"
"""As a query, not as the header: seen to do the same in 2.0.0rc7, and 1.x ignores it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What OctoPrint says of its connection: in our word, and in its own.

    ``restarted``: the connection of earlier looks was found closed, so OctoPrint has probably been restarted.
    ``opening``: its words are such that it may have failed to open the port, and be stuck for ever.
    ``aside``: why to stand back, a clause for people: its printer is not on a serial port (2.0 only).
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
    opening: bool = False
    aside: str | None = None


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
    real = {_real(name) for name in ours} - {None}
    return next((port for port in listed[:_MOST_PORTS] if _real(port) in real), None)


def _real(name: str) -> str | None:
    """The path behind a name; None if it is none ("VIRTUAL"), or cannot be followed."""
    if not name.startswith("/") or not _is_path(name):
        return None
    # Half a character, which no path can hold; or a link that vanishes meanwhile.
    with contextlib.suppress(ValueError, OSError):
        return os.path.realpath(name)
    return None


def _is_path(name: str) -> bool:
    """Whether the kernel could take it for a path; to resolve a far longer one would take minutes."""
    return len(name) <= _LONGEST_PATH and "\0" not in name


class NotSetUp(Trouble):
    """Nobody has gone through its setup wizard yet: so it knows no key."""


class Client:
    """One OctoPrint, in our words.  For one thread at a time; only ``close`` may come from another.

    Args:
        url: as that of ``Rest``; so are the others.
    """

    def __init__(
        self,
        url: str,
        key: Callable[[], str],
        *,
        ca_file: Path | None = None,
        timeout: tuple[float, float] = (3.05, 10.0),
    ) -> None:
        self._rest = Rest(url, key, ca_file=ca_file, timeout=timeout)
        self._keyless = Rest(url, None, ca_file=ca_file, timeout=timeout)
        self._seen = 0  # the connection that the last look ended with
        self._foreign = False  # the last look found a printer connected that is not on a serial port
        self._unsaid = -1  # the connection by which OctoPrint could not tell which connector it prefers
        self._autoconnect: bool | None = None  # as a look told it last; 1.x does not

    def look(self) -> Answer:
        """Ask what OctoPrint is doing.

        Raises:
            Trouble: it did not tell.
        """
        rest = self._rest
        try:
            return self._look()
        except Trouble as trouble:
            failure = trouble
        except _ShapeError as wrong:
            failure = Trouble(Kind.ODD, f"{rest.who} answers in a shape that is not OctoPrint's: {wrong}")
        if failure.kind is Kind.KEY and failure.status is not None and self._is_new():
            text = "is not set up yet, and so knows no API key: finish its setup wizard in a browser"
            failure = NotSetUp(Kind.KEY, f"{rest.who} {text}", failure.status)
        raise failure

    def _look(self) -> Answer:
        rest = self._rest
        expected = rest.kept
        connection, aside = self._connection()
        number = rest.number
        anew = number != self._seen
        rest.kept = not anew  # from here on only doubted, by the second answer
        job = rest.ask("GET", "/api/job").body
        rest.kept = rest.kept and rest.number == number
        self._seen = rest.number
        answer = _answer(connection, job, restarted=anew and expected)
        if not self._foreign:
            autoconnect = _field(connection, "options", dict).get("autoconnect")
            self._autoconnect = autoconnect if isinstance(autoconnect, bool) else None
        # Offline it says of a connector that is about to begin, or to end: not ours to judge.
        unclear = self._foreign and answer.octo in OFFLINE
        return dataclasses.replace(answer, aside=aside, octo=Octo.UNKNOWN if unclear else answer.octo)

    def _connection(self) -> tuple[object, str | None]:
        """What ``/api/connection`` says, in the shape of 1.x; and why to stand back.

        A printer of another connector may not fit that shape: for Moonraker's, whose port is a number,
        2.0.0rc7 answers HTTP 500 and logs a trace.  So while there is one, 2.0's shape is asked first, alone.
        """
        if self._foreign:
            connectors = self._connectors()
            if connectors.foreign:
                return connectors.in_the_shape_of_1_x(), connectors.aside()
            self._foreign = False
        connection, failure = None, None
        try:
            connection = self._rest.ask("GET", "/api/connection").body
        except Trouble as trouble:
            if trouble.status != http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            failure = trouble
        if failure is None and not _may_be_foreign(connection):
            return connection, None
        connectors = self._connectors()
        self._foreign = connectors.foreign
        if connectors.foreign:
            return connectors.in_the_shape_of_1_x(), connectors.aside()
        if failure is not None:
            raise failure
        return connection, connectors.aside()

    def _connectors(self) -> "_Connectors":
        """Asked anew at each look that needs it: a person may choose another at any time.

        When none is preferred, not even by default, 2.0.0rc7 answers HTTP 500 and logs a trace.
        """
        rest = self._rest
        if rest.number != self._unsaid:
            try:
                return _connectors(rest.ask("GET", SHAPE_OF_2_0).body)
            except Trouble as trouble:
                if trouble.status != http.HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
            self._unsaid = rest.number
        return _Connectors(None, None, {}, "")

    def _is_new(self) -> bool:
        """Whether nobody has set this OctoPrint up: then it refuses this too, which needs no key otherwise.

        Measured, 1.10.3, 1.11.8 and 2.0.0rc7 alike, without accounts: 403, and 204 with one, finished or not.
        """
        try:
            reply = self._keyless.ask("GET", "/plugin/appkeys/probe", expected=(204, 403))
        except Trouble:  # the application keys are switched off, or a proxy speaks: no proof
            return False
        return reply.status == http.HTTPStatus.FORBIDDEN

    def about(self) -> About:
        """Ask what OctoPrint is, and what the key may; once a run of OctoPrint, after a look, will do.

        Raises:
            Trouble: it did not even tell whose the key is.
        """
        return ask_about(self._rest, autoconnect=self._autoconnect)

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
        body: dict[str, object] = {"command": "connect", "port": port}
        if baudrate is not None:
            body["baudrate"] = baudrate
        if profile is not None:
            body["printerProfile"] = profile
        self._command(body)

    def disconnect(self) -> None:
        """Tell OctoPrint to give its connection up: the only way out of a failed open (facts, section 3).

        Raises:
            Trouble: it declined, or did not tell.
        """
        self._command({"command": "disconnect"})

    def _command(self, body: dict[str, object]) -> None:
        self._rest.ask("POST", "/api/connection", body, expected=(204,))

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port that the last connection was made to; None: there was none yet."""
        return self._rest.peer

    def close(self) -> None:
        """Let go of the connection; a request that is under way ends at once, in a ``Trouble``."""
        self._rest.close()
        self._keyless.close()


# -- the shape of an answer ---------------------------------------------------------------------------------


class _ShapeError(ValueError):
    pass


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
        connection=one_line(state),
        job=one_line(job_state),
        error=one_line(error) if error else None,
        port=port,
        ports=tuple(ports),
        preferred_port=(
            preferred_port if preferred_port not in (None, "", "AUTO") and _is_path(preferred_port) else None
        ),
        preferred_baudrate=preferred_baudrate if preferred_baudrate and preferred_baudrate in RATES else None,
        restarted=restarted,
        opening=state == job_state and state in MAY_HAVE_FAILED_TO_OPEN,
    )


# -- connectors, of 2.0 -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Connectors:
    """Which way OctoPrint 2.0 goes to its printer.

    Their parameters stay unread: another connector's may hold its password.
    """

    current: str | None  # of the connection that there is
    preferred: str | None
    names: dict[str, str]  # for people
    state: str

    @property
    def foreign(self) -> bool:
        return self.current not in (None, SERIAL)

    def aside(self) -> str | None:
        if self.current not in (None, SERIAL):
            return f"it is connected through {self._name(self.current)}, not over a serial port"
        if self.preferred not in (None, SERIAL):
            return f"its preferred connector is {self._name(self.preferred)}, not serial"
        return None

    def _name(self, connector: str | None) -> str:
        return one_line(self.names.get(connector or "") or f'"{connector}"')

    def in_the_shape_of_1_x(self) -> object:
        """Without a port and without ports: those are not for us now."""
        return {"current": {"state": self.state, "port": None}, "options": {"ports": []}}


def _may_be_foreign(connection: object) -> bool:
    """Whether an answer in the shape of 1.x could hide a connector that is not serial."""
    current, options = _field(connection, "current", dict), _field(connection, "options", dict)
    if "autoconnect" not in options:
        return False  # 1.x has no connectors
    port, ports = current.get("port"), options.get("ports")
    if options.get("portPreference") is None:
        return True  # nothing is preferred, or something else
    if port is None:
        return _field(current, "state", str) not in NO_CONNECTION
    return isinstance(ports, list) and port not in ports


def _connectors(body: object) -> _Connectors:
    none = type(None)
    current, options = _field(body, "current", dict), _field(body, "options", dict)
    preferred = _field(options, "preferredConnector", dict, none) or {}
    names = {}
    for known in _field(options, "connectors", list, none) or []:
        names[_field(known, "connector", str)] = _field(known, "name", str)
    return _Connectors(
        current=_field(current, "connector", str, none) or None,
        preferred=_field(preferred, "connector", str, none) or None,
        names=names,
        state=_field(current, "state", str),
    )
