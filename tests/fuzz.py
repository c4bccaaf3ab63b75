"""Feed the parsers with what a hostile peer might say, a million times: they must keep their promises.

    python tests/fuzz.py [--cases N] [--seed S] [TARGET]...

Knows real replies of OctoPrint and how to spoil them; must not know the network: what speaks it is replaced.
The same seed gives the same cases.  Each kind of failure is shown once, with its shortest case and how often
it came; then the exit status is 1.  A case that takes longer than `SLOW` is a failure, too; one that hangs
ends it all with a trace.

What each target promises stands in its docstring.  Nowhere may a planted secret come out in a text for
people, and each such text is one printable line of bounded length.
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import itertools
import json
import math
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

import urllib3.connection

from portretry_udev import (
    about,
    config,
    control,
    control_server,
    events,
    firmware,
    login,
    memory,
    octoprint,
    octoprint_config,
    push,
    rest,
    transport,
    websocket,
)
from portretry_udev.devices import Devices, Missing, Node, Wanted
from portretry_udev.events import Hold, Octo
from push_server import frame, upgraded

CASES = 100_000
SLOW = 0.5  # seconds of processor time; a case takes less than a millisecond
HANGS = 120.0  # seconds of a thousand cases
GROWTH = 64 << 20  # bytes that a target may need at most, with the cases themselves
LINE = 1000  # characters: MESSAGE_LIMIT of foreign text, and some of our own around it
URL = "http://127.0.0.1:5000"
SECRET = "S3CR3T-0123456789ABCDEF-key"
PASSWORD = "P4SSW0RD-of-the-administrator"

# -- what a hostile peer may say ----------------------------------------------------------------------------

WORDS = [
    *("Closed", "Offline", "Offline after error", "Error", *octoprint.CONNECTED_OR_CONNECTING),
    *octoprint.LOSS_TEXTS,
    *(f"{name}: it is gone" for name in octoprint.LOSS_EXCEPTIONS),
    *("Heating failed, system stopped! Heater_ID: 0 - Printer halted. kill() called!", "Printer halted"),
    *("serial", "moonraker", "AUTO", "VIRTUAL", "/dev/ttyACM0", "STATUS", "CONNECTION", "ADMIN"),
    *("SETTINGS_READ", "PLUGIN_PLUGINMANAGER_LIST", "portretry", "flag", "me", "status", "pause", "resume"),
    *(*push.TOLD, *push.LOSSES, "firmware", "cancel", "deliberate", "fault", "none", "wait"),
]


def _deep(inner, depth):
    for _ in range(depth):
        inner = [inner]
    return inner


ODD = [
    *(None, True, False, 0, -1, 1, 2, 1200, 57600, 115200, 2**31, 2**53, 2**63, 10**30, -(10**30)),
    *(1.5, -0.0, 1e308, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "\0",
        "\ud800",
        "a\r\n\x1b[31mb\u2028c",
        "/dev/\0",
        "/dev/\ud800",
        "/" + "a/" * 3000,
        "..",
        "~x",
    ),
    *("x" * 5000, "\N{SNOWMAN}" * 700, SECRET, f"{SECRET}\n{SECRET}", "a:b", '"', "\\", "%s %d {} {0}"),
    *(
        [],
        {},
        [[]],
        [None],
        [1, "a", {}],
        {"": None},
        {"\0": 1},
        {"a": {"a": {}}},
        _deep([], 60),
        ["x"] * 500,
    ),
]
NAMES = [
    *("current", "options", "state", "port", "ports", "error", "connector", "name", "session", "permissions"),
    *(
        "groups",
        "event",
        "type",
        "payload",
        "reason",
        "consequence",
        "reauthRequired",
        "timelapse",
        "version",
    ),
    *(
        "hold",
        "identity",
        "kept_at",
        "paused_until",
        "command",
        "printer",
        "seconds",
        "follow",
        "api_key",
        "mfa",
    ),
]


def _value(random):
    """A value that JSON can give."""
    if random.random() < 0.5:
        return random.choice(ODD)
    word = random.choice(WORDS)
    return word if random.random() < 0.6 else _near(random, word)


def _near(random, word):
    """Almost that word."""
    at = random.randrange(len(word) + 1)
    match random.randrange(5):
        case 0:
            return word[:at] + word[at + 1 :]
        case 1:
            return word[:at] + random.choice(" \n\0.:aZ9\xa0") + word[at:]
        case 2:
            return word.swapcase()
        case 3:
            return f"{word} {random.choice(WORDS)}"
    return f" {word}"


class Document:
    """A JSON document that is edited in place, and put back: a copy would take longer than most parsers."""

    def __init__(self, body):
        self._root = {"": copy.deepcopy(body)}  # targets share some
        self._places = list(_places(self._root))
        self._undo = []

    @property
    def body(self):
        return self._root[""]

    def spoil(self, random, edits=(0, 1, 1, 1, 2, 3)):
        for _ in range(random.choice(edits)):
            where, name = random.choice(self._places)
            if isinstance(where, list):
                self._undo.append((where, None, where[:]))
                where[name : name + random.randrange(2)] = [_value(random)] * random.randrange(3)
                continue
            if random.random() < 0.1:
                name = random.choice(NAMES)
            self._undo.append((where, name, where.get(name, ...)))
            if random.random() < 0.15 and name:
                where.pop(name, None)
            else:
                where[name] = _value(random)
        return self.body

    def mend(self):
        while self._undo:
            where, name, old = self._undo.pop()
            if name is None:
                where[:] = old
            elif old is ...:
                where.pop(name, None)
            else:
                where[name] = old


def _places(where):
    for name, value in where.items() if isinstance(where, dict) else enumerate(where):
        yield where, name
        if isinstance(value, dict | list):
            yield from _places(value)


_BITS = [
    b"\0",
    b"\n",
    b"\r\n",
    b'"',
    b"\\",
    b"\xff",
    b"\xed\xa0\x80",
    b"\x1b[2J",
    b"{",
    b"]",
    b" ",
    b"'",
    b":",
    b"9",
]


def _bytes(random, data, bits=_BITS):
    """Bytes with some of them cut out, doubled, changed, or put in."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(data) + 1)
        until = min(len(data), at + random.choice((1, 1, 2, 8, 64)))
        match random.randrange(5):
            case 0:
                data = data[:at] + data[until:]
            case 1:
                data = data[:at] + random.choice(bits) + data[at:]
            case 2:
                data = data[:at] + random.choice(bits) + data[until:]
            case 3:
                data = data[:until] + data[at:]
            case _ if random.random() < 0.01:
                data = (
                    data[:at] + data[at:until] * random.randrange(20_000 // (until - at + 1)) + data[until:]
                )
            case _:
                data = data[:at] + random.randbytes(until - at) + data[until:]
    return data


def _text(random, document):
    """A document as bytes, often not quite as JSON wants them."""
    data = json.dumps(document.spoil(random)).encode()
    document.mend()
    chance = random.random()
    if chance < 0.01:
        depth = random.choice((50, 500, 980, 990, 995, 2000))
        return b'{"event":' + b"[" * depth + b"1" + b"]" * depth + b"}"
    return data if chance < 0.7 else _bytes(random, data)


# -- what must hold -----------------------------------------------------------------------------------------


def for_people(text, most=LINE, secrets=(SECRET, PASSWORD)):
    """One printable line of bounded length without a secret."""
    assert type(text) is str, f"a text is of type {type(text).__name__}"
    assert len(text) <= most, f"a text has {len(text)} characters"
    assert text.isprintable(), "a text cannot be printed"
    assert not any(secret in text for secret in secrets), "a secret is told"


def of_kinds(value, *kinds):
    assert type(value) in kinds, f"a value is of type {type(value).__name__}"


class Replies:
    """Stands for ``Rest``: each path has its document, and each answer a status, at times an odd one."""

    who = f"OctoPrint at {URL}"
    url = URL
    peer = "127.0.0.1"

    def __init__(self, documents, statuses=()):
        self.documents = {path: Document(body) for path, body in ({"": {}} | documents).items()}
        self._statuses = dict(statuses)  # path: those that OctoPrint gives there
        self.kept, self.number = False, 1
        self.said = []  # (path, status, body) of a case

    def begin(self, random):
        for document in self.documents.values():
            document.mend()
        self._random = random
        self.said.clear()

    def ask(self, method, path, _body=None, *, expected=(200,), headers=None):
        random = self._random
        assert all(c.isascii() and c.isprintable() and c != " " for c in path), "an address is none"
        for name, value in (headers or {}).items():
            of_kinds(value, str), of_kinds(name, str)
        self.number += random.random() < 0.02
        usual = self._statuses.get(path) or (min(expected),)
        status = random.choice(usual) if random.random() < 0.9 else random.choice((200, 403, 404, 429, 500))
        document = self.documents.get(path, self.documents[""])
        asked_before = any(path == known for known, _, _ in self.said)
        answer = document.body if asked_before else document.spoil(random)
        self.said.append((path, status, answer))
        if status not in expected:
            raise rest.Trouble(random.choice(list(rest.Kind)), f"{self.who} says {status}", status)
        cookies = {"csrf_token_P5000": SECRET} if method == "HEAD" else {}
        return rest.Reply(status, None if status == 204 else answer, {}, cookies)


CONNECTION = {
    "current": {"baudrate": None, "port": None, "printerProfile": "_default", "state": "Closed"},
    "options": {
        "autoconnect": False,
        "baudratePreference": 115200,
        "baudrates": [250000, 230400, 115200],
        "portPreference": "/dev/ttyACM0",
        "ports": ["/dev/ttyACM0", "VIRTUAL"],
        "printerProfilePreference": "_default",
        "printerProfiles": [{"id": "_default", "name": "Default"}],
    },
}
CONNECTION_OF_2_0 = {
    "current": {
        "state": "Offline",
        "connector": None,
        "parameters": {},
        "capabilities": None,
        "profile": None,
    },
    "options": {
        "connectors": [{"connector": "serial", "name": "Serial Connection", "parameters": {"port": []}}],
        "preferredConnector": {"connector": "serial", "parameters": {"port": "/dev/ttyACM0"}},
        "preferredProfile": "_default",
        "profiles": [],
    },
}
JOB = {"job": {"file": {"name": None}}, "progress": {"completion": None}, "state": "Offline", "error": None}
USER = {"name": "me", "groups": ["users"], "permissions": ["STATUS", "CONNECTION", "SETTINGS_READ"]}
USER["permissions"].append("PLUGIN_PLUGINMANAGER_LIST")


# -- the targets --------------------------------------------------------------------------------------------


class Look:
    """What OctoPrint does: an Answer or a Trouble; offline only by the exact words of both endpoints."""

    share = 3

    def __init__(self):
        self._rest = Replies(
            {"/api/connection": CONNECTION, octoprint.SHAPE_OF_2_0: CONNECTION_OF_2_0, "/api/job": JOB}
        )
        self._client = octoprint.Client(URL, lambda: SECRET)
        self._client.close()
        self._client._rest = self._client._keyless = self._rest

    def case(self, random):
        self._rest.begin(random)
        self.given = self._rest.said
        try:
            answer = self._client.look()
        except rest.Trouble as trouble:
            for_people(str(trouble))
            return
        of_kinds(answer.octo, Octo), of_kinds(answer.restarted, bool), of_kinds(answer.opening, bool)
        of_kinds(answer.preferred_baudrate, int, type(None)), of_kinds(answer.ports, tuple)
        for text in (answer.port, answer.preferred_port, *answer.ports):
            of_kinds(text, str, type(None)), (text or "").encode()
        said = {path: body for path, status, body in self._rest.said if status == 200}
        assert answer.octo is _octo(said), f"it is {answer.octo}, and should be {_octo(said)}"
        for text in (answer.connection, answer.job, answer.error, answer.aside):
            assert text is None or for_people(text, secrets=()) is None


CONNECTED = dict(octoprint.CONNECTED_OR_CONNECTING)
HARMLESS = re.compile(
    r"Too many consecutive timeouts, printer still connected and alive\?"
    r"|No more candidates to test, and no working port/baudrate combination detected\."
    r"|Connection error, see Terminal tab|Could not write to serial port|See octoprint\.log for details"
    r"|(?:Serial(?:Timeout)?Exception|(?:PortNotOpen|OS|BlockingIO|BrokenPipe|Timeout|Type)Error|error): "
    r"(?s:.*)"
)


def _octo(said):
    """What may be believed of these bodies, found in another way than the client's."""
    connector = said.get(octoprint.SHAPE_OF_2_0, {}).get("current", {}).get("connector")
    if connector not in (None, "", "serial") or "/api/connection" not in said:
        state, port = said[octoprint.SHAPE_OF_2_0]["current"]["state"], None
    else:
        state, port = said["/api/connection"]["current"]["state"], said["/api/connection"]["current"]["port"]
    job, error = said["/api/job"]["state"], said["/api/job"].get("error")
    if state in ("Closed", "Offline") and port is None and job in ("Offline", "Offline after error", "Error"):
        if connector not in (None, "", "serial"):
            return Octo.UNKNOWN
        if error and not HARMLESS.fullmatch(error):
            return Octo.FAULT
        return Octo.OFFLINE if job == "Offline" else Octo.LOST
    one, other = CONNECTED.get(state), CONNECTED.get(job)
    return one if one is other and one is not None else Octo.UNKNOWN


class About:
    """What OctoPrint is: an About or a Trouble; its sayings are lines for people."""

    share = 3

    def __init__(self):
        self._rest = Replies(
            {
                "/api/currentuser": USER,
                "/api/server": {"safemode": None, "version": "1.11.8"},
                "/api/settings": {
                    "serial": {"autoconnect": False},
                    "plugins": {"portretry": {"interval": 5}},
                },
                "/plugin/pluginmanager/plugins/versions": {"portretry": "0.1.4", "autoconnectplus": "1"},
            }
        )

    def case(self, random):
        self._rest.begin(random)
        self.given = self._rest.said
        try:
            found = about.ask_about(self._rest, autoconnect=random.choice((None, True, False)))
        except rest.Trouble:
            return
        for text in (
            found.version,
            found.safe_mode,
            found.user,
            *found.missing,
            *found.rivals,
            *found.sayings(),
        ):
            assert text is None or for_people(text, secrets=()) is None
        of_kinds(found.autoconnect, bool, type(None))
        assert set(found.missing) <= set(about.NEEDED)
        assert set(found.rivals) <= {rival.name for rival in about.RIVALS.values()}


PUSHED = [
    {
        "event": {
            "type": "Error",
            "payload": {"error": "Heating failed", "reason": "firmware", "consequence": "emergency"},
        }
    },
    {"event": {"type": "Error", "payload": {"error": "Too many consecutive timeouts", "reason": "timeout"}}},
    {"event": {"type": "Disconnecting", "payload": None}},
    {"event": {"type": "Connected", "payload": {"port": "/dev/ttyACM0", "baudrate": 115200}}},
    {"event": {"type": "PrinterStateChanged", "payload": {"state_id": "OFFLINE", "state_string": "Offline"}}},
    {"connected": {"version": "1.11.8", "safe_mode": None}},
    {"reauthRequired": {"reason": "stale"}},
    {"timelapse": None},
]


def _pushed(text):
    """Read one message, and see that no more is believed than it says."""
    found = push.read(text)
    of_kinds(found, push.Sign, events.Disconnecting, events.News, events.Erred, type(None))
    if not isinstance(found, events.Disconnecting | events.Erred):
        return
    event = json.loads(text)["event"]
    if isinstance(found, events.Disconnecting):
        assert event["type"] == "Disconnecting"
        return
    for_people(found.words, secrets=())
    assert event["type"] in ("Error", "EStop")
    if not found.fault:
        assert event["payload"]["reason"] in ("timeout", "connection", "autodetect", "crash")


class Push:
    """A message of the push socket: an event, a sign or nothing; never PushUp, never a guessed loss."""

    share = 3

    def __init__(self):
        self._documents = [Document(body) for body in PUSHED]

    def case(self, random):
        self.given = _text(random, random.choice(self._documents)).decode("utf-8", "replace")
        _pushed(self.given)


class Sockjs:
    """A frame of SockJS over plain requests: messages as text, or a Trouble."""

    share = 3

    def __init__(self):
        pairs = zip(PUSHED, reversed(PUSHED), strict=True)
        self._documents = [Document([body, json.dumps(other)]) for body, other in pairs]
        self._line = transport.Polling.__new__(transport.Polling)
        self._line.who = Replies.who
        self._line._halt, self._line._clock, self._line._path = transport.Halt(), lambda: 0.0, "/sockjs/000/x"
        self._line._rest = self

    def close(self):
        """As ``Rest``; the halt does it."""

    def ask(self, *_, **__):
        self._asked += 1
        return rest.Reply(200, self.given if self._asked == 1 else 'c[3000,"Go away!"]\n', {})

    def case(self, random):
        self._asked = 0
        head = b"a" if random.random() < 0.9 else random.choice((b"", b"h", b"o", b"c", b"m", b"A", b"\xff"))
        self.given = (head + _text(random, random.choice(self._documents))).decode("utf-8", "replace") + "\n"
        try:
            messages = self._line.receive(1.0)
        except rest.Trouble as trouble:
            for_people(str(trouble), secrets=())
            return
        for message in messages:
            of_kinds(message, str)
            _pushed(message)


class Wire:
    """Stands for a websocket's connection: plays bytes that were made beforehand."""

    chunks = ()
    greet = True

    def __init__(self, *_, **__):
        self._left = list(self.chunks)
        self._greeting = b""

    def write(self, data, _until):
        if self.greet and (key := re.search(rb"Sec-WebSocket-Key: (.*)\r", data)):
            self._greeting = upgraded(key[1])

    def read(self, _until):
        if self._greeting:
            greeting, self._greeting = self._greeting, b""
            return greeting
        return self._left.pop(0) if self._left else b""

    def close(self):
        self._left.clear()


class Frames:
    """A websocket's handshake and frames, cut anywhere: messages as text, a Trouble, or no websocket."""

    share = 0.2

    def __init__(self):
        self._documents = [Document(body) for body in PUSHED]
        self._halt = transport.Halt()
        websocket._Wire = Wire

    def case(self, random):
        data = b"".join(self._frame(random) for _ in range(random.randrange(1, 4)))
        if random.random() < 0.5:
            data = _bytes(random, data)
        Wire.greet = random.random() < 0.8
        if not Wire.greet:
            data = _bytes(random, upgraded(b"x" * 22 + b"==")) + data
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(3)))
        ends = [0, *cuts, len(data)]
        self.given = Wire.chunks = [data[a:b] for a, b in itertools.pairwise(ends) if a < b]
        try:
            with contextlib.closing(websocket.Websocket(URL, self._halt)) as line:
                line.send(push.SUBSCRIPTION)
                while True:
                    for message in line.receive(time.monotonic() + 60):
                        _pushed(message)
        except rest.Trouble as trouble:
            for_people(str(trouble), secrets=())
        except websocket.NotUpgraded:
            return

    def _frame(self, random):
        length = random.choice((None, None, None, 0, 125, 126, 65536, 2**21, 2**63))
        opcode = random.choice((0, 1, 1, 1, 2, 3, 8, 9, 10, 15))
        payload = _text(random, random.choice(self._documents))[: 1 << 14]
        return frame(payload, opcode, fin=random.random() < 0.8, length=length)


class Login:
    """Getting a key: a key, an account, a Trouble or a LoginTrouble; and nothing goes where it should not."""

    share = 1

    def __init__(self):
        self._documents = {
            "": {"api_key": "K" * 43, "app_token": "T" * 43, "name": "me"},
            "/api/currentuser": USER,
            "/api/version": {"api": "0.1", "server": "1.11.8"},
            "/api/access/users/portretry-udev": {
                "active": True,
                "admin": False,
                "groups": [],
                "name": "portretry-udev",
                "permissions": ["STATUS", "CONNECTION"],
            },
        }
        self._rest = Replies(self._documents, {"/plugin/appkeys/probe": (204,)})
        self._ways = (self._account, self._question, self._create)

    def case(self, random):
        self._rest.begin(random)
        self.given = self._rest.said
        try:
            random.choice(self._ways)()
        except (rest.Trouble, login.LoginTrouble) as trouble:
            # A server that says a secret back as a user's name is not meant here: it has to know it first.
            for_people(str(trouble), secrets=(PASSWORD,))

    def _account(self):
        account = login.whose(self._rest)
        for text in (account.name, account.version, *account.groups, *account.permissions):
            assert text is None or for_people(text, secrets=()) is None
        login.judge(account, self._rest.who)

    def _question(self):
        ticks = iter(range(10_000))
        question = login.Question(self._rest, "me", clock=lambda: next(ticks) / 2, wait=lambda _: None)
        assert question.link.startswith(f"{URL}/plugin/appkeys/auth/")
        self._is_a_key(question.answer())

    def _create(self):
        self._is_a_key(login.create_account(self._rest, "admin", PASSWORD))

    @staticmethod
    def _is_a_key(key):
        assert re.fullmatch(r"[!-~]{1,256}", key), "that is no key"


class Played:
    """Stands for a TCP connection: says what was made beforehand, whatever it is asked."""

    says = b""

    def __init__(self, nowhere):
        self._nowhere = nowhere

    def makefile(self, *_):
        return io.BytesIO(self.says)

    def fileno(self):
        return self._nowhere  # always readable: so it counts as ended, and the next case makes a new one

    def getpeername(self):
        return ("127.0.0.1", 5000)

    def sendall(self, *_): ...

    settimeout = setsockopt = shutdown = sendall

    def close(self): ...


HTTP = [
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{"state":"Closed"}',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 400 BAD\r\nContent-Length: 50\r\n\r\n" + json.dumps({"error": f"no {SECRET}, csrf"}).encode(),
    b"HTTP/1.1 302 Found\r\nLocation: http://me:p@evil.example/%s?k=%s\r\n\r\n" % ((SECRET.encode(),) * 2),
    b"HTTP/1.1 403 FORBIDDEN\r\nContent-Length: 0\r\nSet-Cookie: session=x; Expires=Thu, 01 Jan\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: %s\r\n\r\n\x1f\x8b\x08\0" % SECRET.encode(),
    b"HTTP/1.1 500 %s\r\nConnection: close\r\nKeep-Alive: timeout=5\r\n\r\n<html>" % SECRET.encode(),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 NO CONTENT\r\n\r\n",
    b"HTTP/1.0 501 Unsupported method ('POST')\r\n\r\nNot found",
]
_HTTP_BITS = [
    *(
        *_BITS,
        b"HTTP/1.1 ",
        b"\r\n\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"ffffffff\r\n",
    ),
    *(
        b"X: y\r\n" * 120,
        b"Location: http://[::1\r\n",
        b"Location: \r\n",
        b"Set-Cookie: =;;=,\xff\r\n",
        b"\t",
        b"-1\r\n",
    ),
    *(b"Content-Length: 9" + b"9" * 5000 + b"\r\n", b"y" * 70_000, b"Location: //\xe2\x84\x80@x\r\n"),
]


class Http:
    """An answer of HTTP, byte by byte: a Reply or a Trouble, which never holds the key."""

    share = 0.05

    def __init__(self):
        nowhere = os.open(os.devnull, os.O_RDONLY)
        urllib3.connection.HTTPConnection._new_conn = lambda _: Played(nowhere)
        self._rests = [rest.Rest(URL, lambda: SECRET, plain=plain) for plain in (False, True)]

    def case(self, random):
        data = random.choice(HTTP)
        self.given = Played.says = data if random.random() < 0.1 else _bytes(random, data, _HTTP_BITS)
        try:
            reply = random.choice(self._rests).ask(random.choice(("GET", "POST", "HEAD")), "/api/job")
        except rest.Trouble as trouble:
            for_people(str(trouble))
            of_kinds(trouble.kind, rest.Kind)
            # Either could carry the request, and with it the key.
            of_kinds(trouble.__cause__, type(None)), of_kinds(trouble.__context__, type(None))
            return
        of_kinds(reply.status, int)
        assert all(type(text) is str for pair in reply.cookies.items() for text in pair)


SERIAL = [
    *(
        b"start\r\n",
        b"ok T:21.3 /0.0 B:21.0 /0.0 @:0 B@:0\n",
        b"echo:busy: processing\n",
        b"wait\n",
        b"\0\0\0start\n",
    ),
    *(
        b"Error:Heating failed, system stopped! Heater_ID: 0\n",
        b"Error:Printer halted. kill() called!\n",
        b"!!\n",
    ),
    b"FIRMWARE_NAME:Marlin 2.1.2 SOURCE_CODE_URL:x PROTOCOL_VERSION:1.0 MACHINE_TYPE:Ender-3 UUID:cede2a2f\n",
    *(b"SD printing byte 12/900\n", b"Not SD printing\n", b"Resend: 5\nok\n", b"// Klipper state: Ready\n"),
    *(
        b"NAME. Malyan VER: 2.9 MODEL: M200\r\n",
        b"Grbl 1.1h ['$' for help]\n",
        b"\xfe\x1c\x9e" * 9,
        b"T:9 E:0 W:?\n",
    ),
]


class Serial:
    """What a port says, cut anywhere: the same signs however it is cut, and no more kept than a line."""

    share = 1

    def case(self, random):
        data = b"".join(random.choices(SERIAL, k=random.randrange(1, 4)))
        if random.random() < 0.7:
            data = _bytes(random, data)
        self.given = data
        whole, cut = firmware.Reader(), firmware.Reader()
        signs, at = [], 0
        while at < len(data):
            until = at + random.choice((1, 2, 7, 30, 200))
            signs += cut.feed(data[at:until])
            assert len(cut._line) <= firmware.LINE_LIMIT, "more than a line is kept"
            at = until
        assert signs == whole.feed(data), "other signs when it comes in pieces"
        assert cut.firmware == whole.firmware
        assert all(type(sign) is firmware.Sign for sign in signs)
        if cut.firmware is not None:
            for text in (cut.firmware.name, cut.firmware.machine, cut.firmware.uuid):
                assert text is None or for_people(text, firmware.LINE_LIMIT) is None


YAML = b"""# OctoPrint's
accessControl: {autologinLocal: false, salt: 'it''s'}
api:
    key: S3CR3T-0123456789ABCDEF-key
plugins:
    _disabled: [discovery, "soft, ware"]
    portretry:
        interval: 5.0
    virtual_printer: {enabled: true}
printerConnection:
    autoconnect: false
    preferred:
        connector: serial
        parameters: {}
serial:
    additionalPorts:
    - /dev/tty*
    log: |
        a text: with
        lines
    port: "/dev/serial/by-id/usb-\\x41"
    baudrate: 115200
server:
    host: '::'
    port: 5000
    "long key": >-
        folded
"""
_YAML_BITS = [
    *(
        *_BITS,
        b"port: ",
        b"- ",
        b"? ",
        b"&a ",
        b"!!str ",
        b"{",
        b"[",
        b"'",
        b"|\n",
        b"\t",
        b"# ",
        b"    ",
        b"---\n",
    ),
    *(
        b"...\n",
        b"\\u0000",
        b"\\ud800",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b".inf",
        b"1:30",
        b"0x1f",
        b"1e400",
        b"~",
        b"<<: ",
    ),
]


class Yaml:
    """OctoPrint's config.yaml: settings of the right types, or `NotUnderstood`."""

    share = 0.5

    def case(self, random):
        data = _bytes(random, YAML, _YAML_BITS)
        if random.random() < 0.5:
            lines = data.splitlines(keepends=True)
            at, to = random.randrange(len(lines)), random.randrange(len(lines))
            lines[at], lines[to] = lines[to], lines[at]
            data = b"".join(lines)
        self.given = data
        try:
            found = octoprint_config.settings(octoprint_config.wanted(data.decode("utf-8", "replace")))
        except octoprint_config.NotUnderstood as trouble:
            for_people(str(trouble))
            return
        none = type(None)
        of_kinds(found.interval, float, none), of_kinds(found.server_port, int, none)
        of_kinds(found.baudrate, int, none), of_kinds(found.auto, bool)
        for text in (found.port, found.host, found.connector):
            of_kinds(text, str, none)


class Place:
    """A port's name from OctoPrint or its config.yaml: a device, or why there is none."""

    share = 0.1

    def __init__(self):
        self._devices = Devices()

    def case(self, random):
        self.given = _near(
            random, random.choice(("/dev/ttyNONE", "/dev/serial/by-id/x", "/proc/self/no", "/dev/null"))
        )
        if random.random() < 0.5:
            odd = random.choice([value for value in ODD if isinstance(value, str)])
            self.given = odd if random.random() < 0.5 else f"{self.given}{odd}"
        found = self._devices.find(Wanted(self.given or "x"))
        of_kinds(found, Node, Missing)
        octoprint.offered((self.given,), "/dev/null", [])


TOML = f"""
interval = 5.0
state_dir = "/var/lib/portretry-udev"
[printers.mk3]
octoprint = "http://127.0.0.1:5000"
api_key_file = "/nowhere/mk3.key"
port = "/dev/serial/by-id/usb-1"
baudrate = 115200
[printers.ender]
octoprint = "https://me:{SECRET}@octopi.example/ender"
api_key_file = "{SECRET}"
match = {{ serial = "CZPX", vendor = "2c99", interface = "00" }}
firmware = {{ machine = "Ender-3" }}
ca_file = "/nowhere/ca.pem"
reconnect = "always"
avoid_reset = true
push = false
""".encode()
_TOML_BITS = [
    *(
        b"\n",
        b'"',
        b"'''",
        b"=",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"\\",
        b"\xff",
        b"\0",
        b"#",
        b".",
        b"-",
        b"nan",
        b"inf",
    ),
    *(
        b"1979-05-27T07:32:00Z",
        b"99999999999999999999",
        b"0x",
        b"1e999",
        b"[[a]]\n",
        b"[" * 2000,
        b"9" * 5000,
        b"~x",
    ),
    *(
        b"\\u0000",
        b"\\u001b",
        b"true",
        b"/" + b"a" * 5000,
        b"http://[",
        b"AUTO",
        b"1200",
        b'port = ""\n',
        b"api_key = ",
    ),
]


class Toml:
    """The configuration: what it says, or `Wrong`, whose mistakes are lines without key or password."""

    share = 0.1

    def __init__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_memory_disk()))
        self._file = self._folder / "config.toml"

    def close(self):
        self._file.unlink(missing_ok=True)
        self._folder.rmdir()

    def case(self, random):
        at = TOML.index(b'api_key_file = "S')  # no bytes are moved there: a key that became a port is shown
        first, rest_ = TOML[: TOML.index(b'octoprint = "https')], TOML[TOML.index(b"match") :]
        secret = TOML[len(first) : len(TOML) - len(rest_)]
        assert len(first) < at
        self.given = _bytes(random, first, _TOML_BITS) + b"\n" + secret + _bytes(random, rest_, _TOML_BITS)
        self._file.write_bytes(self.given)
        try:
            found = config.load({"config": str(self._file)}, {})
        except config.Wrong as wrong:
            of_kinds(wrong.mistakes[0], str)  # there is one at least
            for mistake in wrong.mistakes:
                for_people(
                    mistake.replace(str(self._file), "FILE"), LINE + len(self.given)
                )  # paths are told whole
            return
        assert found.printers


def _memory_disk():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Requests:
    """A line of the control socket: a request that is wholly understood, or a refusal."""

    share = 3

    def __init__(self):
        self._documents = [
            Document({"version": 1, "command": "status", "printer": "mk3", "follow": False}),
            Document({"version": 1, "command": "pause", "seconds": 600}),
            Document({"version": 1, "command": "retry"}),
        ]

    def case(self, random):
        self.given = _text(random, random.choice(self._documents))
        try:
            request = control_server._parse(self.given)
        except control_server._RefusedError as refused:
            for_people(str(refused))
            return
        assert request.command in ("status", "retry", "pause", "resume")
        of_kinds(request.printer, str, type(None)), of_kinds(request.follow, bool)
        assert request.seconds is None or 0 < request.seconds <= control.LONGEST_PAUSE


class Kept:
    """The file of what must survive: what it says, or a hold; and why, in one line."""

    share = 0.1

    def __init__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_memory_disk()))
        self._memory = memory.Memory(self._folder, "mk3", boot="b1", wall=lambda: 1.7e9)
        self._document = Document(
            {
                "version": 1,
                "hold": "deliberate",
                "identity": [1, 2, "/dev/ttyACM0"],
                "boot": "b1",
                "kept_at": 1.7e9,
                "paused_until": 1.7e9 + 60,
            }
        )

    def close(self):
        for left in self._folder.iterdir():
            left.unlink()
        self._folder.rmdir()

    def case(self, random):
        self.given = _text(random, self._document)
        self._memory.path.write_bytes(self.given)
        found = self._memory.recall()
        of_kinds(found.hold, Hold), hash(found.identity)
        assert found.paused_for >= 0
        if found.trouble:
            assert found.hold is Hold.DELIBERATE
            for_people(found.trouble, secrets=())
        elif found.hold is Hold.NONE:
            assert json.loads(self.given)["hold"] == "none", "a hold was lost"


TARGETS = {
    "octoprint": Look,
    "about": About,
    "push": Push,
    "sockjs": Sockjs,
    "websocket": Frames,
    "login": Login,
    "http": Http,
    "firmware": Serial,
    "yaml": Yaml,
    "place": Place,
    "toml": Toml,
    "control": Requests,
    "memory": Kept,
}


# -- the run ------------------------------------------------------------------------------------------------


class Failures:
    """What went wrong: by kind and place, the shortest case, and how often."""

    def __init__(self):
        self._found = {}

    def add(self, error, given, number):
        place = next(
            (
                f
                for f in reversed(traceback.extract_tb(error.__traceback__))
                if "portretry_udev" in f.filename
            ),
            None,
        )
        where = f"{Path(place.filename).name}:{place.lineno} {place.name}" if place else "a promise"
        told = re.sub(r"\d+", "N", str(error).partition("\n")[0])[:80]
        kind = (type(error).__name__, told if place is None else "", where)
        case = repr(given)
        count, shortest, first, text = self._found.get(kind, (0, case, number, f"{error}"[:200]))
        self._found[kind] = (count + 1, min(case, shortest, key=len), first, text)

    def tell(self):
        for (name, _, where), (count, case, first, text) in self._found.items():
            shown = case if len(case) <= 600 else f"{case[:400]} ... {case[-200:]} ({len(case)} characters)"
            _say(f"  {count} x {name} at {where}, first in case {first}: {text!a}\n    {shown}")

    def __bool__(self):
        return bool(self._found)


def _say(text):
    sys.stdout.write(f"{text.encode('ascii', 'backslashreplace').decode()}\n")
    sys.stdout.flush()


def run(name, cases, seed):
    """Run one target; whether it kept its promises."""
    target, random, failures = TARGETS[name](), Random(f"{seed} {name}"), Failures()
    memory_before, began, used = _memory(), time.monotonic(), time.process_time()
    for number in range(cases):
        if number % 1000 == 0:
            faulthandler.dump_traceback_later(HANGS, exit=True)
        since = time.thread_time()
        try:
            target.case(random)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            failures.add(error, target.given, number)
        if time.thread_time() - since > SLOW:
            failures.add(TimeoutError("a slow case"), target.given, number)
    faulthandler.cancel_dump_traceback_later()
    used, took, grew = time.process_time() - used, time.monotonic() - began, _memory() - memory_before
    if grew > GROWTH:
        failures.add(MemoryError(f"grew by {grew >> 20} MB"), None, cases)
    if hasattr(target, "close"):
        target.close()
    rate = cases / used if used else 0
    _say(f"{name:10} {cases:8} cases  {took:6.1f} s  {rate:7.0f}/s of processor  {grew >> 10:6} kB  "
         f"{'FAILED' if failures else 'ok'}")  # fmt: skip
    failures.tell()
    return not failures


def _memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main():
    """Run the named targets, or all; ``--cases`` are for an ordinary one, the slow have fewer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("target", nargs="*", choices=[[], *TARGETS], metavar="TARGET")
    given = parser.parse_args()
    warnings.simplefilter("error")  # a library that warns of what it was fed does so on our stderr
    counts = {name: max(1, int(given.cases * TARGETS[name].share)) for name in given.target or TARGETS}
    kept = [run(name, cases, given.seed) for name, cases in counts.items()]
    _say(f"{sum(counts.values())} cases of seed {given.seed}: {sum(kept)} of {len(kept)} targets are fine")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
