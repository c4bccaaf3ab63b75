"""A minimal OctoPrint on 127.0.0.1, for the demo and the tests.

Knows OctoPrint's answers and its words for its states, as observed on 1.11.8 and 2.0.0rc7.  Must not know
the serial line (`fake_comm` does) nor HTTP (`fake_http` does), nor anything of this package's watching.
Without settings, users, push socket or files: what a client of ours never asks is not here.
"""

import glob
import hmac
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Self

from portretry_udev.fake_comm import BAUDRATES, OVER, SHORT, Comm, Phase, Snapshot, Timeouts
from portretry_udev.fake_http import Refused, Server

__all__ = ["SHORT", "FakeOctoPrint", "Timeouts"]

Style = Literal["1.11", "2.0"]

_VERSIONS: Final[dict[Style, str]] = {"1.11": "1.11.8", "2.0": "2.0.0rc7"}
# The words of GET /api/connection; once it is over, whatever the end was, those of _CLOSED.
_CONNECTION: Final[dict[Style, dict[Phase, str]]] = {
    "1.11": {
        Phase.OPENING: "Opening serial connection",
        Phase.DETECTING: "Detecting serial connection",
        Phase.CONNECTING: "Connecting",
        Phase.OPERATIONAL: "Operational",
        Phase.PRINTING_SD: "Printing from SD",
    },
    "2.0": {
        Phase.OPENING: "Connecting",
        Phase.DETECTING: "Detecting serial connection",
        Phase.CONNECTING: "Connecting",
        Phase.OPERATIONAL: "Operational",
        Phase.PRINTING_SD: "Printing from SD",
    },
}
_CLOSED: Final[dict[Style, str]] = {"1.11": "Closed", "2.0": "Offline"}
_JOB: Final = {
    "job": {
        "estimatedPrintTime": None,
        "filament": None,
        "file": {"date": None, "name": None, "origin": None, "path": None, "size": None},
        "lastPrintTime": None,
        "user": None,
    },
    "progress": {
        "completion": None,
        "filepos": None,
        "printTime": None,
        "printTimeLeft": None,
        "printTimeLeftOrigin": None,
    },
}


class FakeOctoPrint:
    """A minimal OctoPrint; serves from `start()` or `with` until `stop()`, and again on the same TCP port.

    Args:
        api_key: the one key that opens it.
        ports: globs of the ports it offers, looked up anew at each request.
        port_preference: the stored port; None for AUTO.
        baud_preference: the stored baudrate; None for AUTO.
        style: whose words and order: 1.11's or 2.0's.
        timeouts: how patient its serial side is.
        wait_for_start: it says nothing to a board before that has said `start`; as in OctoPrint's settings,
            looked at when a connection begins.

    Attributes:
        requests: every request so far, as (method, path).
        connects: how many POSTs told it to connect and were answered with 204.
        history: (time.monotonic(), words of /api/job) at each change of its state.
        delay: seconds it takes over each answer from now on.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of OctoPrint that a test or the demo varies
        self,
        *,
        api_key: str,
        ports: Sequence[str],
        port_preference: str | None = None,
        baud_preference: int | None = 115200,
        style: Style = "1.11",
        timeouts: Timeouts = SHORT,
        wait_for_start: bool = False,
    ) -> None:
        self._key = api_key.encode()
        self.ports = list(ports)
        self.port_preference, self.baud_preference, self.style = port_preference, baud_preference, style
        self.timeouts, self.wait_for_start = timeouts, wait_for_start
        self.requests: list[tuple[str, str]] = []
        self.connects = 0
        self.history: list[tuple[float, str]] = []
        self.delay = 0.0
        self._changed = threading.Condition()
        self._halt = threading.Event()
        self._really_up_at = 0.0
        self._tcp_port = 0
        self._server: Server | None = None
        self._comm = Comm(timeouts)

    # -- life -------------------------------------------------------------------------------------------

    def start(self, *, intermediary: float = 0.0) -> Self:
        """Serve, on the same TCP port as before; the memory of earlier connections is gone.

        Args:
            intermediary: seconds in which only OctoPrint's start-up server answers: `Not found` without a
                status line, 501 for a POST, a page at `/`.

        Raises:
            OSError: the TCP port is taken by now.
        """
        if self._server is None:
            self._halt.clear()
            self._comm = Comm(self.timeouts, self._comm_changed)
            self._really_up_at = time.monotonic() + intermediary
            self._server = Server(self, self._tcp_port)
            self._tcp_port = self._server.server_address[1]
            # The interval only bounds how long stop() takes.
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """End as by SIGTERM: connections are cut, the serial port is closed; a second call does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.hang_up()
        self._halt.set()
        server.server_close()
        self._thread.join()
        self._comm.disconnect()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its base address; the same for ever once it was started."""
        return f"http://127.0.0.1:{self._tcp_port}"

    # -- what can be seen and done at its screen ------------------------------------------------------------

    @property
    def state(self) -> str:
        """What /api/connection says: `Closed`, `Operational`, ..."""
        return self._connection_words(self._comm.snapshot())

    @property
    def job_state(self) -> str:
        """What /api/job says: `Offline`, `Offline after error`, `Operational`, ..."""
        return self._job_words(self._comm.snapshot())

    @property
    def error(self) -> str | None:
        """The text of the error that ended the last connection, whatever the style tells of it."""
        return self._comm.snapshot().error

    def person_connects(self) -> None:
        """A person presses Connect, with the stored port and baudrate."""
        self._connect({})

    def person_disconnects(self) -> None:
        """A person presses Disconnect; the port is closed on return."""
        self._comm.disconnect()

    def wait_for(self, predicate: Callable[[Self], bool], timeout: float) -> bool:
        """Wait until the predicate is true of this OctoPrint; False after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not predicate(self):
            left = end - time.monotonic()
            if left <= 0:
                return False
            with self._changed:
                self._changed.wait(min(left, 0.02))
        return True

    # -- OctoPrint's answers; called by the handler ---------------------------------------------------------

    def starting(self) -> bool:
        """Whether only the start-up server answers yet."""
        return time.monotonic() < self._really_up_at

    def note(self, method: str, path: str) -> None:
        """Remember a request, and take `delay` seconds over it."""
        with self._changed:
            self.requests.append((method, path))
            self._changed.notify_all()
        self._halt.wait(self.delay)

    def knows(self, key: str) -> bool:
        """Whether this is the key."""
        return hmac.compare_digest(key.encode(), self._key)

    def version(self) -> dict[str, Any]:
        """GET /api/version."""
        server = _VERSIONS[self.style]
        return {"api": "0.1", "server": server, "text": f"OctoPrint {server}"}

    def connection(self) -> dict[str, Any]:
        """GET /api/connection, without an X-OctoPrint-Api-Version."""
        now = self._comm.snapshot()
        over = now.phase in OVER
        profile = None if over and self.style == "2.0" else "_default"
        options: dict[str, Any] = {
            "baudratePreference": self.baud_preference,
            "baudrates": list(BAUDRATES),
            "portPreference": self.port_preference,
            "ports": self._offered(),
            "printerProfilePreference": "_default",
            "printerProfiles": [{"id": "_default", "name": "Default"}],
        }
        if self.style == "2.0":
            options["autoconnect"] = False
        return {
            "current": {
                "baudrate": None if over else now.baudrate,
                "port": None if over else now.port,
                "printerProfile": profile,
                "state": self._connection_words(now),
            },
            "options": options,
        }

    def job(self) -> dict[str, Any]:
        """GET /api/job: 1.11 tells the error's text, 2.0 has a null there."""
        now = self._comm.snapshot()
        answer: dict[str, Any] = {**_JOB, "state": self._job_words(now)}
        if self.style == "2.0":
            answer["error"] = None
        elif now.error:
            answer["error"] = now.error
        return answer

    def command(self, body: object) -> None:
        """POST /api/connection.

        Raises:
            Refused: 400, with OctoPrint's reason.
        """
        if not isinstance(body, dict) or body.get("command") not in ("connect", "disconnect"):
            raise Refused(400, "command is invalid")
        if body["command"] == "disconnect":
            self._comm.disconnect()
            return
        if "port" in body and body["port"] not in [*self._offered(), "AUTO"]:
            raise Refused(400, "port is invalid")
        if "baudrate" in body and body["baudrate"] not in [*BAUDRATES, 0]:
            raise Refused(400, "baudrate is invalid")
        if "printerProfile" in body and body["printerProfile"] != "_default":
            raise Refused(400, "printerProfile is invalid")
        with self._changed:
            self.connects += 1
        self._connect(body)

    # -- inside -------------------------------------------------------------------------------------------

    def _connect(self, wanted: dict[str, Any]) -> None:
        port = wanted.get("port", self.port_preference)
        baudrate = wanted.get("baudrate", self.baud_preference)
        ports = self._offered() if port in (None, "AUTO") else [port]
        self._comm.connect(ports, baudrate or None, wait_for_start=self.wait_for_start)

    def _offered(self) -> list[str]:
        found = sorted({path for pattern in self.ports for path in glob.glob(pattern)}, key=_natural)  # noqa: PTH207 - globs are absolute here
        if self.style == "2.0" and self.port_preference in found:
            found.remove(self.port_preference)
            found.insert(0, self.port_preference)
        return found

    def _comm_changed(self, snapshot: Snapshot) -> None:
        with self._changed:
            self.history.append((time.monotonic(), self._job_words(snapshot)))
            self._changed.notify_all()

    def _connection_words(self, now: Snapshot) -> str:
        return _CONNECTION[self.style].get(now.phase, _CLOSED[self.style])

    def _job_words(self, now: Snapshot) -> str:
        ended = "Offline after error" if now.phase is Phase.FAILED else "Offline"
        return _CONNECTION[self.style].get(now.phase, ended)


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key that puts ttyACM2 before ttyACM10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]
