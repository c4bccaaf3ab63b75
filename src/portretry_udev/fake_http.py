"""The HTTP side of the minimal OctoPrint: addresses, keys and refusals, and nothing of printers.

Knows HTTP as OctoPrint speaks it (statuses, error texts, keep-alive, the start-up server's odd answers).
Must not know what the answers say: `fake_octoprint` does.
"""

import contextlib
import json
import socket
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol, cast

_FORBIDDEN: Final = (
    "You don't have the permission to access the requested resource. "
    "It is either read-protected or not readable by the server."
)
_INTERMEDIARY_PAGE: Final = b"<html><body>OctoPrint is still starting up, please wait...</body></html>"


class Answers(Protocol):
    """What the HTTP side asks of an OctoPrint."""

    def starting(self) -> bool:
        """Whether only the start-up server answers yet."""

    def note(self, method: str, path: str) -> None:
        """Remember a request."""

    def knows(self, key: str) -> bool:
        """Whether this is the key."""

    def version(self) -> dict[str, Any]:
        """GET /api/version."""

    def connection(self) -> dict[str, Any]:
        """GET /api/connection."""

    def job(self) -> dict[str, Any]:
        """GET /api/job."""

    def command(self, body: object) -> None:
        """POST /api/connection.

        Raises:
            Refused: with OctoPrint's status and reason.
        """


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """OctoPrint declines a request with a status and a text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Server(ThreadingHTTPServer):
    """Keeps its connections in sight, so that a stop can cut them as the end of a process does."""

    daemon_threads = False  # joined by server_close, so that no socket outlives a stop

    def __init__(self, octoprint: Answers, tcp_port: int) -> None:
        self.octoprint = octoprint
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", tcp_port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection and keep it in sight."""
        connection, address = super().get_request()
        with self._guard:
            self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the base class says so
        """Close a connection."""
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Cut every connection."""
        with self._guard:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Pass over clients that hang up, and cuts by a stop; let everything else be seen."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            raise error


class _Handler(BaseHTTPRequestHandler):
    """One client's connection, kept alive between requests as Tornado does."""

    protocol_version = "HTTP/1.1"
    server_version = "TornadoServer/fake"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Say nothing: the demo's screen and the tests' output belong to others."""

    @property
    def _octoprint(self) -> Answers:
        return cast("Server", self.server).octoprint

    def do_GET(self) -> None:
        """Answer a question."""
        self._answer()

    def do_POST(self) -> None:
        """Carry out a command."""
        self._answer()

    def do_PUT(self) -> None:
        """Refuse."""
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.urlsplit(self.path).path
        self._octoprint.note(self.command, path)
        if self._octoprint.starting():
            self._answer_as_intermediary(path)
            return
        try:
            self._send(200, self._route(path, body))
        except Refused as refused:
            self._send(refused.status, {"error": refused.text})

    def _answer_as_intermediary(self, path: str) -> None:
        self.close_connection = True
        if self.command == "POST":
            self.wfile.write(b"HTTP/1.0 501 Unsupported method ('POST')\r\nConnection: close\r\n\r\n")
        elif path == "/":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + _INTERMEDIARY_PAGE)
        else:
            self.wfile.write(b"Not found")

    def _route(self, path: str, body: bytes) -> dict[str, Any] | None:
        """The answer to a request; None for 204.

        Raises:
            Refused: for all that OctoPrint refuses.
        """
        if path == "/api/login" or path.startswith("/sockjs"):
            raise Refused(404, "There is no push here.")
        known = self._has_key()
        if self.command == "POST" and not known:
            raise Refused(400, "CSRF validation failed")  # without a key it takes us for a browser
        match self.command, path:
            case "GET", "/api/currentuser":
                return self._current_user(known=known)
            case "GET", "/api/version" | "/api/connection" | "/api/job" if not known:
                raise Refused(403, _FORBIDDEN)
            case "GET", "/api/version":
                return self._octoprint.version()
            case "GET", "/api/connection":
                return self._octoprint.connection()
            case "GET", "/api/job":
                return self._octoprint.job()
            case "POST", "/api/connection":
                self._octoprint.command(self._json(body))
                return None
            case _, "/api/version" | "/api/connection" | "/api/job" | "/api/currentuser":
                raise Refused(405, "The method is not allowed for the requested URL.")
        raise Refused(404, "The requested URL was not found on the server.")

    def _has_key(self) -> bool:
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self._octoprint.knows(self.headers.get("X-Api-Key") or bearer)

    @staticmethod
    def _current_user(*, known: bool) -> dict[str, Any]:
        if not known:
            return {"name": None, "groups": ["guests"], "permissions": []}
        return {"name": "admin", "groups": ["admins"], "permissions": ["STATUS", "CONNECTION"]}

    def _json(self, body: bytes) -> object:
        if self.headers.get_content_type() != "application/json":
            raise Refused(
                415,
                "Did not attempt to load JSON data because the request Content-Type was not "
                "'application/json'.",
            )
        try:
            return json.loads(body)
        except ValueError as error:
            raise Refused(
                400, "The browser (or proxy) sent a request that this server could not understand."
            ) from error

    def _send(self, status: int, answer: dict[str, Any] | None) -> None:
        data = b"" if answer is None else json.dumps(answer).encode() + b"\n"
        self.send_response(204 if answer is None else status)
        if answer is not None:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
