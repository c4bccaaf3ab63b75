"""A front for the minimal OctoPrint that gives keys to applications, and says who it is.

What it answers of its own was seen with 1.11.8 (facts on Application Keys; octoprint/plugins/discovery); all
else is handed on.  There is nobody to click: a test says yes or no, beforehand or later.
"""

import contextlib
import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

UUID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
TOKEN = "T0ken_T0ken-T0ken"


class KeysServer:
    """A front for one `FakeOctoPrint`.

    Attributes:
        answer: to a request for a key: None is nobody's, yet; True allows, False denies.
        asked: set once a key was requested.
        sayings: its name and uuid, as the plugin Discovery tells them; None: the plugin is off.
        setup_done: False is an OctoPrint whose first-run wizard nobody has gone through.
    """

    def __init__(self, octoprint, key, *, answer=True, name="Kitchen", uuid=UUID):
        self.answer, self.asked, self.setup_done = answer, threading.Event(), True
        self.sayings = name, uuid
        self._key = key
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def route(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                own = front.own_answer(self.command, urlsplit(self.path).path)
                if own is None:
                    self.forward(body)
                else:
                    self.send(*own)

            do_GET = do_POST = route  # noqa: N815 - the names that http.server calls

            def forward(self, body):
                upstream = http.client.HTTPConnection(urlsplit(octoprint.url).netloc, timeout=10)
                with contextlib.closing(upstream):
                    upstream.request(self.command, self.path, body, dict(self.headers))
                    answer = upstream.getresponse()
                    self.send(answer.status, answer.read().decode())

            def send(self, status, answer=""):
                data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                """Not on the tests' stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def own_answer(self, method, path):
        """Status and body; None: OctoPrint answers it."""
        match method, path:
            case "GET", "/plugin/appkeys/probe":
                return (204 if self.setup_done else 403,)
            case "POST", "/plugin/appkeys/request":
                self.asked.set()
                return 201, {"app_token": TOKEN}
            case "GET", _ if path == f"/plugin/appkeys/request/{TOKEN}":
                return {None: (202, {}), True: (200, {"api_key": self._key}), False: (404, {})}[self.answer]
            case "GET", "/plugin/discovery/discovery.xml" if self.sayings:
                name, uuid = self.sayings
                return 200, (
                    f"<friendlyName>OctoPrint instance &#34;{name}&#34;</friendlyName><UDN>uuid:{uuid}</UDN>"
                )
        return None

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
