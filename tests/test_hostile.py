"""The whole service, as its own process, against servers that mean ill: it stays small, quiet, and hands off.

What each part makes of each such answer is told by its own tests; here only what the process as a whole
promises.
"""

import contextlib
import gzip
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import IMPATIENT
from helpers import Daemon, assert_eventually
from portretry_udev import inotify
from portretry_udev.fake_octoprint import FakeOctoPrint
from portretry_udev.simulator import Printer
from push_server import Tcp, frame, http, upgraded

KEY = "S3CR3T-0123456789ABCDEF-key"
SESSION = "T0K3N-of-a-hostile-login"
GROWTH = 20 << 10  # kB of memory that a service may need more after some looks
LINES = 3  # different ones, that it may say of a server
LONGEST = 1000  # characters of a line: 400 of foreign text, and some of our own around it
LOOKS = 3  # each takes twice as long to come as the one before
PATIENCE = 45.0  # seconds; two looks at a server that does not answer take 26
ENDLESS = 1 << 16  # parts; far more than anybody takes
PAGE = http(200, b"<html><body>Welcome to your router!</body></html>", "Content-Type: text/html")


class Server(Tcp):
    """Answers each request as it likes, and keeps what it was sent.

    ``answer`` is asked with the path and how many requests for it came before; it gives the parts of an
    answer.  Between two parts `pause` seconds pass; None: the last one is never followed by the end.
    """

    def __init__(self, answer, pause=0.0):
        self._answer, self._pause = answer, pause
        self.received = b""
        self.looks = 0
        self._counts = {}
        super().__init__(self._talk)

    @property
    def port(self):
        return self._port

    def _talk(self, connection, gone):
        stream = connection.makefile("rb")
        with stream:
            head = b""
            while (line := stream.readline()) != b"\r\n":
                if not line:
                    return  # it has gone without asking
                head += line
            length = re.search(rb"(?i)content-length: (\d+)", head)
            self.received += head + stream.read(int(length[1]) if length else 0)
            path = head.split(b" ")[1].decode()
            before = self._counts[path] = self._counts.get(path, -1) + 1
            self.looks += path == "/api/connection"
            for part in self._answer(path, before, head):
                connection.sendall(part)
                if self._pause and gone.wait(self._pause):
                    return
            if self._pause is None:
                gone.wait()


def endless(head, part):
    return lambda *_: itertools.chain([head], itertools.repeat(part, ENDLESS))


def always(data):
    return lambda *_: [data]


def random_bytes(path, before, _head):
    return [random.Random(f"{path} {before}").randbytes(before * 100)]


def drips(*_):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n"
    return [head[i : i + 1] for i in range(len(head))]


# Each place of an answer, with each type that it should not have.
ODD = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    math.nan,
    "",
    "\0",
    "\ud800",
    "x\r\n\x1b[31m" * 999,
    [],
    {},
    [[]],
    [1],
    {"": {}},
]
CONNECTION = {
    "current": {"port": None, "state": "Closed", "baudrate": None},
    "options": {"autoconnect": False, "ports": [], "portPreference": "/dev/x", "baudratePreference": 115200},
}
JOB = {"state": "Printing", "error": None}  # no two answers say that it is offline
PLACES = [[], *([name] for name in CONNECTION), *([a, b] for a, inner in CONNECTION.items() for b in inner)]


def spoiled(place, value):
    body = json.loads(json.dumps({"": CONNECTION}))
    *way, last = ["", *place]
    where = body
    for step in way:
        where = where[step]
    where[last] = value
    return body[""]


WRONG_TYPES = [spoiled(place, value) for place in PLACES for value in ODD]


def wrong_types(path, before, _head):
    """Another wrongness each second look; between them types are right, so that the next look comes soon."""
    if path.startswith("/api/connection"):
        order = [spoiled(["current", "state"], {"": []}), *random.Random(1).sample(WRONG_TYPES, 20)]
        body = CONNECTION if before % 2 else order[before // 2 % len(order)]
        return [http(200, json.dumps(body).encode())]
    if path == "/api/login":
        return [http(200, json.dumps({"name": [SESSION], "session": {SESSION: 1}}).encode())]
    return [http(200, json.dumps(JOB if path == "/api/job" else ODD[before % len(ODD)]).encode())]


def offers(options):
    """It says that it is offline, in the right words, and names what no system call would take."""

    def answer(path, before, _head):
        odd = options[before % len(options)]
        body = CONNECTION | {"options": CONNECTION["options"] | odd}
        said = {"/api/connection": body, "/api/job": JOB | {"state": "Offline"}}.get(path, {})
        return [http(200, json.dumps(said).encode())]

    return answer


NO_PORTS = [
    "/dev/\0",
    "/dev/\ud800",
    "/" + "a/" * 3000,
    "/" + "a" * 300,
    "..",
    "\n",
    "x" * 300_000,
    "/a" * 300_000,
]
NO_RATES = [10**30, 2**31, -1, 1200, 10**4000]


def pushes(upgrade, *frames):
    """The page of a router, but where push is: there it begins well."""

    def answer(path, before, head):
        if path == "/api/login":
            return [http(200, json.dumps({"name": "me", "session": SESSION}).encode())]
        if path == "/sockjs/websocket" and upgrade:
            return [upgraded(re.search(rb"(?i)sec-websocket-key: (.*)\r", head)[1]), *frames]
        if path.endswith("/xhr"):
            return [http(200, frames[before - 1] if before else b"o\n")]
        return [http(204, b"") if path.endswith("/xhr_send") else http(404, b"") if "sock" in path else PAGE]

    return answer


def redirects_push(away):
    """A login that is good, and a push that is said to be elsewhere."""
    login = http(200, json.dumps({"name": "me", "session": SESSION}).encode())
    return lambda path, *_: [login if path == "/api/login" else away if "/sockjs" in path else PAGE]


BOMB = gzip.compress(bytes(100_000_000))
GARBAGE = [
    random.Random(1).randbytes(5000),
    *(frame(text) for text in (b"[" * 5000, b'{"event": {"type": []}}', b"\xff\xfe", b'"' * 9, b"9" * 5000)),
    frame(b"", length=2**62),
]
SOCKJS = [
    b"a" + b"[" * 990 + b"]" * 990,
    b"a[" + b"0," * 300 + b"{}]",
    b"\xff\n",
    b"c[]",
    b"a" + b"x" * 2_000_000,
]
ADMITS = frame(b'{"timelapse": null}')
FLOOD = frame(b'{"event": {"type": "Connected", "payload": null}}') * 2000


@dataclass(frozen=True)
class Hostility:
    """A server that means ill, and what may be expected of a service that has to do with it.

    Attributes:
        answer: as that of `Server`, and so is ``pause``.
        looks: at how many of its answers the service is watched.
        lines: how many different ones may be said of it; one a look where it never says the same twice.
        named: the service is told which port it is; else OctoPrint's word counts.
        opens: it says that it is offline, and offers the port: then a service may open it.
    """

    answer: Callable[[str, int, bytes], Iterable[bytes]]
    pause: float | None = 0.0
    looks: int = LOOKS
    lines: int = LINES
    named: bool = True
    opens: bool = False


def hostilities(elsewhere, link):
    """All of them; ``elsewhere`` is a server to which nothing may ever go, ``link`` the printer's port."""
    away = f"Content-Length: 0\r\nLocation: {elsewhere}/api/connection\r\n\r\n".encode()
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    chunk = b"2710\r\n" + b"1" * 10_000 + b"\r\n"
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    ports = [{"portPreference": name, "ports": [name]} for name in NO_PORTS]
    rates = [{"baudratePreference": rate, "ports": [link]} for rate in NO_RATES]
    each = {"looks": 9, "lines": 10}
    return {
        "random bytes": Hostility(random_bytes),
        "endless headers": Hostility(endless(ok, b"X-Endless: yes\r\n" * 500)),
        "a header without an end": Hostility(endless(ok + b"X-Endless: ", b"x" * 10_000)),
        "endless body": Hostility(endless(ok + b"\r\n", b" " * 10_000)),
        "endless chunks": Hostility(endless(ok + b"Transfer-Encoding: chunked\r\n\r\n", chunk)),
        "endless interim answers": Hostility(endless(b"", interim), pause=0.02, looks=2),
        "10 MB of JSON": Hostility(always(http(200, json.dumps(["x" * 1000] * 10_000).encode()))),
        "deep JSON": Hostility(always(http(200, b"[" * 500_000))),
        "a byte a second": Hostility(drips, pause=1.0, looks=2),
        "no answer": Hostility(always(b""), pause=None, looks=2),
        "a page": Hostility(always(PAGE)),
        "wrong types": Hostility(wrong_types, **each),
        "ports that are none": Hostility(offers(ports), named=False, **each),
        "rates that are none": Hostility(offers(rates), opens=True, **each),
        "a redirect": Hostility(always(b"HTTP/1.1 302 Found\r\n" + away)),
        "a permanent redirect": Hostility(always(b"HTTP/1.1 308 Moved\r\n" + away)),
        "a redirect of push": Hostility(redirects_push(b"HTTP/1.1 307 Moved\r\n" + away)),
        "a gzip bomb": Hostility(always(http(200, BOMB, "Content-Encoding: gzip"))),
        "a websocket of garbage": Hostility(pushes(True, *GARBAGE)),
        "a websocket of news": Hostility(pushes(True, ADMITS, *[FLOOD] * 5)),
        "SockJS of garbage": Hostility(pushes(False, *SOCKJS)),
    }


NAMES = list(hostilities("", ""))


class Scene:
    """A printer, a hostile server, an OctoPrint for the same address, and a service."""

    def __init__(self, folder, hostility, server):
        self.hostility, self.server = hostility, server
        self.link = folder / "ttyTEST0"
        self.printer = Printer(link=self.link, boot_delay=0.1, autoreport=0.05)
        self.octoprint = FakeOctoPrint(
            api_key=KEY, ports=[str(self.link)], port_preference=str(self.link), timeouts=IMPATIENT
        )
        self.octoprint._tcp_port = server.port
        key_file = folder / "key"
        key_file.touch(0o600)
        key_file.write_text(KEY)
        usual = ["--octoprint", server.url, "--api-key-file", key_file, "--interval", "0.5"]
        named = ["--port", self.link] if hostility.named else []
        places = ["--state-dir", folder / "state", "--control", folder / "control.sock"]
        self.service = Daemon(*usual, *named, *places)
        self._opens = inotify.Inotify()

    def __enter__(self):
        self.printer.start()
        self._opens.add(self.link, inotify.OPEN)
        self.service.start()
        return self

    def __exit__(self, *_):
        self.service.end()
        self.octoprint.stop()
        self.printer.close()
        self._opens.close()

    def opened(self):
        """How many times anybody has opened the port since this was last asked."""
        return sum(bool(note.mask & inotify.OPEN) for note in self._opens.read())

    def memory(self, what):
        """The service's, in kB: VmRSS is what it has now, VmHWM the most that it ever had."""
        status = Path(f"/proc/{self.service._process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s*(\d+) kB", status)[1])

    def expect_looks(self, count):
        """The service has asked once more than that, so it has taken in as many answers."""
        assert_eventually(
            lambda: self.server.looks > count or not self.service.running(),
            PATIENCE,
            lambda: f"{count} looks, there were {self.server.looks}:\n{self.service.log()}",
        )
        assert self.service.running(), f"it has ended:\n{self.service.log()}"

    def expect_good_end(self):
        """A good OctoPrint at the same address is told to connect; afterwards the hostile one is back."""
        self.server.stop()
        self.octoprint.start()
        assert_eventually(
            lambda: self.octoprint.job_state == "Operational",
            PATIENCE,
            lambda: f"OctoPrint says {self.octoprint.job_state!r}:\n{self.service.log()}",
        )
        self.octoprint.stop()
        self.server.start()

    def said(self):
        """What it has said of the printer and its OctoPrint, without the time."""
        lines = (text.partition(" ")[2] for _, text in list(self.service.lines))
        return [line for line in lines if not line.startswith("no device events here")]


@pytest.fixture(scope="module")
def stranger():
    """A server that nobody has named to the service."""
    with Server(always(PAGE)) as server:
        yield server


@pytest.fixture(scope="module")
def stories(request, stranger, tmp_path_factory):
    """What became of each that this run wants; all are told at once, as some of the servers are slow."""
    names = [item.callspec.params["name"] for item in request.session.items if item.path == Path(__file__)]
    scenes = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            folder = tmp_path_factory.mktemp("hostile")
            hostility = hostilities(stranger.url, str(folder / "ttyTEST0"))[name]
            server = stack.enter_context(Server(hostility.answer, hostility.pause))
            scenes[name] = stack.enter_context(Scene(folder, hostility, server))
        for scene in scenes.values():  # their starts keep the machine busy, and are not what is measured
            scene.expect_looks(0)
        pool = stack.enter_context(ThreadPoolExecutor(len(names)))
        yield {name: pool.submit(story, scene) for name, scene in scenes.items()}


def story(scene):
    """Have a service meet a hostile server, then a good one at the same address, then that again."""
    before = scene.memory("VmRSS")
    scene.expect_looks(scene.hostility.looks)
    assert scene.memory("VmHWM") - before < GROWTH
    assert scene.opened() == 0 or scene.hostility.opens
    judge_lines(scene)
    assert KEY.encode() in scene.server.received, "the server that was named gets the key"
    scene.expect_good_end()
    scene.expect_looks(scene.server.looks)
    scene.service.stop()
    judge_lines(scene, more=4)  # connected, and lost again


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_server_is_borne(stories, stranger, name):
    """Little memory, few lines, no open, no secret elsewhere; a good one is served, a stop obeyed."""
    stories[name].result()
    assert stranger.received == b""


def judge_lines(scene, more=0):
    said = set(scene.said())
    assert len(said) <= scene.hostility.lines + more, scene.service.log()
    for line in said:
        assert len(line) <= LONGEST
        assert line.isprintable()
        assert KEY not in line
        assert SESSION not in line
