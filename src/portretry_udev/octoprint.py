"""OctoPrint's words in, ours out.

Knows two endpoints (``/api/connection``, ``/api/job``) and every state that OctoPrint 1.10.3, 1.11.8 and
2.0.0rc7 say there.  Must not know when to ask or what follows from an answer (``rules``), nor anything of
HTTP (``rest``) or of devices.  OctoPrint 2.0 speaks the shape of 1.x to a client that sends no version
header: so none is sent, and one code path serves all versions.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portretry_udev.events import Octo
from portretry_udev.rest import Kind, Rest, Trouble

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

MAY_BE_MISSING = frozenset({"error", "portPreference", "baudratePreference"})


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
        self._seen = 0  # the connection that the last look ended with

    def look(self) -> Answer:
        """Ask what OctoPrint is doing.

        Raises:
            Trouble: it did not tell.
        """
        rest = self._rest
        expected = rest.kept
        connection = rest.ask("GET", "/api/connection").body
        number = rest.number
        anew = number != self._seen
        rest.kept = not anew  # from here on only doubted, by the second answer
        job = rest.ask("GET", "/api/job").body
        rest.kept = rest.kept and rest.number == number
        self._seen = rest.number
        try:
            return _answer(connection, job, restarted=anew and expected)
        except _ShapeError as error:
            wrong = str(error)
        raise Trouble(Kind.ODD, f"{rest.who} answers in a shape that is not OctoPrint's: {wrong}")

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

    def close(self) -> None:
        """Let go of the connection; a request that is under way ends at once, in a ``Trouble``."""
        self._rest.close()


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
        connection=state,
        job=job_state,
        error=error or None,
        port=port,
        ports=tuple(ports),
        preferred_port=preferred_port if preferred_port not in ("", "AUTO") else None,
        preferred_baudrate=preferred_baudrate or None,
        restarted=restarted,
    )
