"""What OctoPrint pushes is understood; push comes back by itself, ends at once, and never does any harm."""

import contextlib
import json
import logging
import os
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import portretry_udev
from helpers import assert_eventually
from portretry_udev import events, push
from portretry_udev.rest import Kind, Trouble, trusting
from portretry_udev.transport import Halt, Halted, Polling, Timing
from portretry_udev.websocket import Websocket
from push_server import KEY, WAIT, PushServer, Tcp, frame, http, upgraded
from test_octoprint import pem, tls

__all__ = ["pem", "tls"]  # fixtures

QUICK = Timing(
    first=0.02, longest=WAIT, stable=WAIT, nudge=0.02, patience=WAIT, ping=WAIT, dead=3 * WAIT, poll=WAIT
)
UP, DOWN = events.PushUp(up=True), events.PushUp(up=False)
STOPS_WITHIN = 0.5  # seconds; the promise of `Push.stop`
NO_UPGRADE = http(400, b"<html>no websocket here</html>")


def quick(**changes):
    fields = {name: getattr(QUICK, name) for name in QUICK.__slots__}
    return Timing(**(fields | changes))


class Ear:
    """Hears what a Push posts and says."""

    def __init__(self):
        self.posted, self.said = [], []
        self._changed = threading.Condition()

    def post(self, event):
        with self._changed:
            self.posted.append(event)
            self._changed.notify_all()

    def say(self, text):
        with self._changed:
            self.said.append(text)
            self._changed.notify_all()

    def wait(self, condition):
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), WAIT), (self.posted, self.said)

    def hears(self, *expected):
        self.wait(lambda ear: len(ear.posted) >= len(expected))
        assert self.posted == list(expected)


@contextlib.contextmanager
def listening(url, ear, *, key=lambda: KEY, timing=QUICK, **kwargs):
    """A Push at work; its stop keeps its promise."""
    line = push.Push(url, key, ear.post, say=ear.say, timing=timing, **kwargs)
    line.start()
    try:
        yield line
    finally:
        began = time.monotonic()
        line.stop()
        assert time.monotonic() - began < STOPS_WITHIN
        assert not line._thread.is_alive()


@pytest.fixture
def ear():
    return Ear()


@pytest.fixture(params=["websocket", "plain requests"])
def server(request):
    with PushServer() as server:
        if request.param == "plain requests":
            server.upgrade = NO_UPGRADE
        yield server


@pytest.fixture
def octopi():
    """One that takes websockets."""
    with PushServer() as server:
        yield server


# -- what messages mean -------------------------------------------------------------------------------------


def event(name, payload=None):
    return json.dumps({"event": {"type": name, "payload": payload}})


@pytest.mark.parametrize(
    "name", ["Connecting", "Connected", "Disconnected", "PrinterStateChanged", "ConnectionsAutorefreshed"]
)
@pytest.mark.parametrize("payload", [None, {"state_id": "OFFLINE"}, 17, "text"])
def test_a_change_is_news(name, payload):
    """Whatever else it says: what OctoPrint answers now is asked anew."""
    assert push.read(event(name, payload)) == events.News()


def test_a_commanded_disconnect_is_told_apart():
    """The one thing that only push tells (facts, section 2.2)."""
    assert push.read(event("Disconnecting")) == events.Disconnecting()
    assert push.read(event("Disconnecting", {"connector": "serial"})) == events.Disconnecting(), "2.0"


@pytest.mark.parametrize("reason", ["timeout", "connection", "autodetect", "crash"])
def test_some_errors_are_mere_losses(reason):
    """OctoPrint has closed the port, and sent no M112."""
    payload = {"error": "Too many consecutive timeouts", "reason": reason, "consequence": "disconnect"}
    told = events.Erred(fault=False, words="Too many consecutive timeouts")
    assert push.read(event("Error", payload)) == told


@pytest.mark.parametrize(
    "reason",
    ["firmware", "resend", "resend_loop", "start_print", "brand_new", "", None, 5, True, ["timeout"], {}],
)
@pytest.mark.parametrize("consequence", ["emergency", "disconnect", "cancel", None, 3])
def test_all_other_errors_are_faults(reason, consequence):
    """Those after which the printer is halted, and those that nobody here knows."""
    payload = {"error": "Heating failed", "reason": reason, "consequence": consequence}
    if (reason, consequence) == ("firmware", "cancel"):
        payload["consequence"] = "brand_new"
    assert push.read(event("Error", payload)) == events.Erred(fault=True, words="Heating failed")


@pytest.mark.parametrize("payload", [None, [], "firmware", 1, {}, {"error": None}, {"error": " \n\x1b "}])
def test_an_error_that_says_nothing_is_a_fault(payload):
    """Unknown means hands off."""
    assert push.read(event("Error", payload)) == events.Erred(fault=True, words="an error without a text")


def test_an_error_that_only_cancels_the_print_is_news():
    """2.0 tells of these, too: it stays connected; should the printer die of it, there will be another."""
    payload = {"error": "Probing failed", "reason": "firmware", "consequence": "cancel"}
    assert push.read(event("Error", payload)) == events.News()


def test_an_emergency_stop_is_a_fault():
    """2.0 tells of it nowhere else: it looks like a loss."""
    assert push.read(event("EStop")) == events.Erred(fault=True, words="emergency stop (M112)")


def test_words_are_one_bounded_line():
    """What a firmware says may be anything."""
    read = push.read(event("Error", {"error": "a\r\n\x1b[31mb\ud800" + "x" * 10000, "reason": "firmware"}))
    assert read.words.startswith("a [31mb x")
    assert len(read.words) == 400


@pytest.mark.parametrize("name", ["timelapse", "history", "current"])
def test_what_only_a_user_with_status_gets_shows_that_we_are_let_in(name):
    """OctoPrint never says yes to a login."""
    assert push.read(json.dumps({name: None})) is push.Sign.ADMITTED
    assert push.read(event("ZChange")) is push.Sign.ADMITTED


def test_a_wish_for_a_new_login_is_understood():
    """It comes for a wrong session, a stale one, and a changed or removed user."""
    assert push.read('{"reauthRequired": {"reason": "stale"}}') is push.Sign.LOGIN
    assert push.read('{"reauthRequired": null}') is push.Sign.LOGIN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        "null",
        '"event"',
        '{"connected": {}}',
        '{"plugin": {}}',
        "[" * 100_000,
        "9" * 10_000,
        '{"event": null}',
        '{"event": []}',
        '{"event": {"type": 5}}',
        '{"event": {}}',
    ],
)
def test_what_does_not_matter_is_nothing(text):
    """Greetings, plugins, numbers, and texts that are no JSON."""
    assert push.read(text) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["event", "reauthRequired", "connected", "timelapse", "plugin", "x"])
names = st.sampled_from([*push.TOLD, "ZChange"]) | anything
fields = st.sampled_from(["error", "reason", "consequence", "logs", "faq"])
payloads = anything | st.dictionaries(fields, anything)
bodies = anything | st.fixed_dictionaries({}, optional={"type": names, "payload": payloads, "y": anything})


@given(st.text() | anything.map(json.dumps) | st.dictionaries(keys, bodies).map(json.dumps))
def test_anything_at_all_is_read(text):
    """Any JSON, any type in any field, any text: an event, a sign or nothing, and never a crash."""
    read = push.read(text)
    assert read is None or isinstance(read, push.Sign | events.Disconnecting | events.Erred | events.News), (
        read
    )
    if isinstance(read, events.Erred):
        assert read.words.isprintable()
        assert 0 < len(read.words) <= 400


# -- getting onto push --------------------------------------------------------------------------------------


def test_a_login_and_what_follows(server, ear):
    """Subscribed first, logged in by the key, let in; then each event comes as it is told, in order."""
    with listening(server.url, ear):
        ear.hears(UP)
        server.event("Disconnecting")
        server.push({"plugin": {}}, 5, {"event": {"type": "Disconnected"}})
        server.event("Error", {"error": "gone", "reason": "timeout"})
        ear.hears(UP, events.Disconnecting(), events.News(), events.Erred(fault=False, words="gone"))
    assert server.told == [
        {
            "subscribe": {
                "state": False,
                "plugins": False,
                "events": [
                    "Disconnecting",
                    "Error",
                    "EStop",
                    "Connected",
                    "Connecting",
                    "ConnectionsAutorefreshed",
                    "Disconnected",
                    "PrinterStateChanged",
                ],
            }
        },
        {"auth": "me:T0K3N0"},
    ]
    ((method, _, headers, body),) = server.asked("/api/login")
    assert (method, headers["x-api-key"], json.loads(body)) == ("POST", KEY, {"passive": True})
    assert ear.said == []
    assert ear.posted.count(DOWN) == 0, "nothing is posted by a stop"


def test_the_key_goes_into_the_login_only(server, ear):
    """Neither the handshake nor SockJS gets it, nor any message."""
    with listening(server.url, ear):
        ear.hears(UP)
    with_key = [path for _, path, headers, body in server.seen if KEY in f"{headers} {body}"]
    assert with_key == ["/api/login"]
    assert KEY not in str(server.told)


def test_a_prefix_is_kept(ear):
    """OctoPrint may live below a path."""
    with PushServer(prefix="/octo") as server:
        with listening(f"{server.url}/", ear):
            ear.hears(UP)
        assert [path for _, path, _, _ in server.seen] == ["/octo/sockjs/websocket", "/octo/api/login"]


def test_an_event_is_as_good_as_being_let_in(octopi, ear):
    """PushUp comes first, whatever comes first."""
    octopi.admits = False
    with listening(octopi.url, ear):
        octopi.wait(lambda: len(octopi.told) == 2)
        assert ear.posted == []
        octopi.event("Disconnecting")
        ear.hears(UP, events.Disconnecting())


def test_who_is_not_let_in_is_told_so(server, ear):
    """A user without STATUS: no yes, no no.  Then it waits long: each attempt is in OctoPrint's log."""
    server.admits = False
    server.heartbeat = 0.05
    with listening(server.url, ear, timing=quick(patience=0.3)):
        ear.wait(lambda ear: ear.said)
    assert "STATUS" in ear.said[0]
    assert ear.posted == []
    assert len(server.sessions) == 1


def test_without_the_library_plain_requests_serve(octopi, ear, monkeypatch):
    """It is an optional extra."""
    monkeypatch.delattr(portretry_udev, "websocket", raising=False)
    monkeypatch.delitem(sys.modules, "portretry_udev.websocket", raising=False)
    monkeypatch.setitem(sys.modules, "websockets.client", None)
    with listening(octopi.url, ear):
        ear.hears(UP)
        octopi.event("Disconnecting")
        ear.hears(UP, events.Disconnecting())
    assert octopi.asked("/websocket") == []


@pytest.mark.parametrize(
    "answer",
    [
        NO_UPGRADE,
        http(200, b"<html>"),
        http(502, b""),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(3_000_000),
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(3_000_000),
        b"HTTP/1.1 200 OK\r\nX: " + bytes(3_000_000),
    ],
    ids=["400", "200", "502", "chunks", "no accept", "long", "endless", "long header"],
)
def test_a_refused_upgrade_leads_to_plain_requests(octopi, ear, answer):
    """Proxies do not all know websockets; and what they say instead is not read for long."""
    octopi.upgrade = answer
    with listening(octopi.url, ear):
        ear.hears(UP)
    assert ear.said == []


# -- losing it ----------------------------------------------------------------------------------------------


def test_a_restart_of_octoprint_is_survived(server, ear):
    """Lost is told once, and with a new login push is up again."""
    with listening(server.url, ear, timing=quick(first=0.1)):
        ear.hears(UP)
        server.stop()
        ear.hears(UP, DOWN)
        server.start()
        ear.hears(UP, DOWN, UP)
    assert [told["auth"] for told in server.told if "auth" in told] == ["me:T0K3N0", "me:T0K3N1"]
    assert ear.said == []


def test_a_wish_for_a_new_login_is_granted(server, ear):
    """Sessions become stale, and users are changed."""
    with listening(server.url, ear):
        ear.hears(UP)
        server.push({"reauthRequired": {"reason": "modified"}})
        ear.hears(UP, DOWN, UP)
    assert len(server.sessions) == 2
    assert ear.said == []


def test_a_session_that_is_not_taken_is_not_used_twice(server, ear):
    """A fresh login each time."""
    server.login = (200, {"name": "me", "session": "WRONG"})
    with listening(server.url, ear, timing=quick(longest=0.02)):
        server.wait(lambda: len(server.asked("/api/login")) >= 3)
        server.login = None
        ear.hears(UP)


def test_a_dead_peer_is_noticed(octopi, ear):
    """One who does not answer pings is gone, though TCP knows nothing of it."""
    octopi.pongs = False
    with listening(octopi.url, ear, timing=quick(ping=0.05, dead=0.3)):
        ear.wait(lambda ear: ear.posted.count(UP) == 2)
        assert ear.posted[:3] == [UP, DOWN, UP]
        assert octopi.pings >= 3


def test_a_living_peer_is_kept(octopi, ear):
    """Pongs are all that an idle OctoPrint sends."""
    with listening(octopi.url, ear, timing=quick(ping=0.02, dead=0.3)):
        octopi.wait(lambda: octopi.pings > 40)
        assert ear.posted == [UP]


def test_drops_are_no_sign_of_life(octopi, ear):
    """A message that drips without an end, and no pong: dead."""
    octopi.pongs = False
    with listening(octopi.url, ear, timing=quick(ping=0.1, dead=0.3)):
        ear.hears(UP)
        octopi.raw(frame(b"", length=100_000))
        pause = threading.Event()
        while ear.posted == [UP]:
            octopi.raw(b" ")
            pause.wait(0.01)
        assert ear.posted[1] == DOWN


def test_a_silent_peer_of_plain_requests_is_noticed(octopi, ear):
    """SockJS's heartbeat is missed."""
    octopi.upgrade = NO_UPGRADE
    with listening(octopi.url, ear, timing=quick(poll=0.3)):
        ear.wait(lambda ear: ear.posted[:2] == [UP, DOWN])


def test_a_heartbeat_keeps_plain_requests_up(octopi, ear):
    """And is no message."""
    octopi.upgrade, octopi.heartbeat = NO_UPGRADE, 0.01
    with listening(octopi.url, ear):
        octopi.wait(lambda: len(octopi.asked("/xhr")) > 20)
        assert ear.posted == [UP]


@pytest.mark.parametrize("line", ['c[3000,"Go away!"]', "o", "a{}", "a[", "", "x" * 1000])
def test_the_end_of_a_polled_session_is_noticed(octopi, ear, line):
    """Closed by OctoPrint, begun anew by it, or nonsense."""
    octopi.upgrade = NO_UPGRADE
    with listening(octopi.url, ear):
        ear.hears(UP)
        octopi.line(line)
        ear.hears(UP, DOWN, UP)


def test_frames_in_pieces_are_put_together(octopi, ear):
    """A message in three fragments, with pings between them, byte by byte; and bytes that are no UTF-8."""
    text = event("Disconnecting").encode()
    parts = [frame(text[:5], fin=False), frame(b"?", 9), frame(text[5:9], 0, fin=False), frame(text[9:], 0)]
    with listening(octopi.url, ear):
        ear.hears(UP)
        octopi.raw(frame(b"\xff\xfe") + frame(b"\xff", 2))
        for byte in b"".join(parts):
            octopi.raw(bytes([byte]))
        ear.hears(UP, events.Disconnecting())


# -- hostile ones -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        frame(b"", length=10_000_000) + bytes(100_000),
        frame(b"", length=2**62),
        frame(bytes(600_000), fin=False) + frame(bytes(600_000), 0),
    ],
    ids=["long", "endless", "in parts"],
)
def test_a_long_message_drops_the_connection(octopi, ear, data):
    """More than 1 MiB: not taken in, said, and not tried again for long."""
    with listening(octopi.url, ear):
        ear.hears(UP)
        octopi.raw(data)
        ear.wait(lambda ear: ear.said)
        assert "1048576 bytes" in ear.said[0]
        assert ear.posted == [UP, DOWN]
    assert octopi.accepted == 2, "one websocket, one login"


def test_a_long_answer_to_a_poll_drops_the_connection(octopi, ear):
    """The same, over plain requests."""
    octopi.upgrade = NO_UPGRADE
    with listening(octopi.url, ear):
        ear.hears(UP)
        octopi.line("a" * 1_100_000)
        ear.wait(lambda ear: ear.said)
        assert ear.posted == [UP, DOWN]


@pytest.mark.parametrize(
    "data", [b"\xff" * 100, b"HTTP/1.1 200 OK\r\n\r\n" * 9, frame(b"", 3), frame(b"", 0)]
)
def test_what_is_no_websocket_message_drops_the_connection(octopi, ear, data):
    """Said once, and not tried again for long."""
    with listening(octopi.url, ear):
        ear.hears(UP)
        octopi.raw(data)
        ear.wait(lambda ear: ear.said)
        assert ear.posted == [UP, DOWN]
        assert len(ear.said) == 1


def test_a_flood_of_messages_drops_the_connection(server, ear):
    """What others must take in is bounded."""
    with listening(server.url, ear):
        ear.hears(UP)
        server.push(*[{"event": {"type": "Connecting"}}] * 1100)
        ear.wait(lambda ear: ear.said)
        assert "1000 messages" in ear.said[0]
        assert len(ear.posted) <= 1002


@given(st.binary(max_size=300))
def test_random_bytes_do_no_harm(data):
    """In the place of a websocket's messages: at worst the connection is lost."""
    ear = Ear()
    with PushServer() as server, listening(server.url, ear):
        ear.hears(UP)
        server.raw(data)
        server.cut()
        ear.wait(lambda ear: DOWN in ear.posted)


@pytest.mark.parametrize("data", [b"", b"\0" * 5000, b"Not found\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\n\n"])
def test_what_is_no_http_is_not_up_yet(ear, data):
    """OctoPrint's stand-in while it starts, for one: quiet, and tried again with a back-off."""
    asked = []

    def talk(connection, _gone):
        asked.append(connection.recv(4))
        connection.sendall(data)

    with Tcp(talk) as other, listening(other.url, ear, timing=quick(longest=0.02)):
        assert_eventually(lambda: other.accepted >= 5, WAIT, "not tried again")
    assert set(asked) - {b""} == {b"GET "}, "who speaks no HTTP is not asked twice"
    assert ear.said == []
    assert ear.posted == []


@pytest.mark.parametrize("drop", [b"H", b"HTTP/1.1 200 OK\r\n", b""])
def test_a_dripping_handshake_ends(ear, drop):
    """By the time that it may take as a whole."""

    def talk(connection, gone):
        while not gone.wait(0.02):
            connection.sendall(drop)

    with Tcp(talk) as other, listening(other.url, ear, timing=quick(patience=0.2, longest=0.02)):
        assert_eventually(lambda: other.accepted >= 3, WAIT, "not tried again")


def test_a_tcp_handshake_that_is_not_answered_ends(ear):
    """A host that is off: by the time that it may take."""
    with amid_a_tcp_handshake() as (url, begun), listening(url, ear, timing=quick(patience=0.1)) as line:
        begun()
        wake_until_said(line, ear)
    assert "did not answer in time" in ear.said[0]


@pytest.mark.parametrize("host", ["255.255.255.255", f"{'long' * 20}.local", "127.0.0.1:99999"])
def test_an_address_that_leads_nowhere_is_told(ear, host):
    """One that the system refuses at once, and some that are none."""
    with listening(f"http://{host}", ear) as line:
        wake_until_said(line, ear)
    assert f"OctoPrint at http://{host} " in ear.said[0]


def test_a_reset_is_a_loss(octopi, ear):
    """As when OctoPrint's host is switched off and on."""
    with listening(octopi.url, ear):
        ear.hears(UP)
        octopi.reset()
        ear.hears(UP, DOWN, UP)


@pytest.mark.parametrize("secure", [False, True])
def test_who_takes_nothing_is_left(tls, pem, ear, secure):
    """Its buffers full of our pongs, it is not waited for without an end."""
    with (
        PushServer(tls=tls if secure else None) as octopi,
        listening(octopi.url, ear, ca_file=pem, timing=quick(patience=0.2)),
    ):
        ear.hears(UP)
        octopi.deaf.set()
        pings = frame(b"x" * 125, 9) * 500
        sender = threading.Thread(
            target=lambda: [octopi.raw(pings) for _ in range(1000) if DOWN not in ear.posted]
        )
        sender.start()
        ear.wait(lambda ear: DOWN in ear.posted)
        octopi.deaf.clear()
        sender.join(WAIT)
        assert not sender.is_alive()


@pytest.mark.parametrize("path", ["/sockjs/websocket", "/api/login", "/xhr"])
def test_a_redirect_is_not_followed(octopi, ear, path):
    """Neither key nor session reaches another host; where to look is said."""
    with PushServer() as other:
        away = f"HTTP/1.1 302 So\r\nLocation: {other.url}/x\r\nContent-Length: 0\r\n\r\n".encode()
        reply = octopi._reply
        octopi._reply = lambda asked, *rest: away if asked.endswith(path) else reply(asked, *rest)
        if path != "/api/login":
            octopi.upgrade = away
        with listening(octopi.url, ear):
            ear.wait(lambda ear: ear.said or ear.posted)
        if path == "/sockjs/websocket":
            assert ear.posted == [UP], "plain requests are not redirected here"
        else:
            assert f"redirects to {other.url}" in ear.said[0]
        assert (other.accepted, other.seen) == (0, [])


# -- trying again -------------------------------------------------------------------------------------------


@pytest.fixture
def back_offs(monkeypatch, ear):
    """The first so many back-offs of a Push, none of which it really waits for.

    One that no wake-up cuts short is negative; those numbered in ``woken`` are.
    """

    def run(url, count, *, key=lambda: KEY, woken=(), **changes):
        timing, delays = Timing(**changes), []

        def pause(_self, _began, delay, *, deaf):
            delays.append(-delay if deaf else delay)
            if len(delays) == count:
                raise Halted
            return len(delays) in woken

        monkeypatch.setattr(push.Push, "_pause", pause)
        line = push.Push(url, key, ear.post, say=ear.say, timing=timing)
        line.start()
        line._thread.join(WAIT)
        line.stop()
        return delays

    return run


@pytest.fixture
def nobody():
    """The address of a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_a_back_off_is_doubled_up_to_its_limit(back_offs, nobody, ear):
    """From one second to five minutes, in silence: that OctoPrint is down is told elsewhere."""
    delays = back_offs(nobody, 12)
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert (ear.said, ear.posted) == ([], [])


def test_a_wake_up_starts_the_back_off_afresh(back_offs, nobody, ear):
    """And if that does not help, none is heard until the back-off has been gone through."""
    delays = back_offs(nobody, 15, woken=(3, 14))
    assert delays == [1, 2, 4, -1, -2, -4, -8, -16, -32, -64, -128, -256, -300, 300, -1]
    assert len(ear.said) == 1, "that it is down is news to who has just been answered"


@pytest.mark.parametrize("status", [400, 403])
def test_a_refused_key_waits_long_at_once(back_offs, octopi, ear, status):
    """OctoPrint logs each refusal, by 403 in 1.10.3, by 400 later; it is said once."""
    octopi.login = (status, {"error": "CSRF validation failed"})
    assert back_offs(octopi.url, 5, woken=(2, 4)) == [300, 300, -300, 300, -300]
    assert len(ear.said) == 1
    assert "refuses the API key" in ear.said[0]


def test_a_key_that_cannot_be_read_waits_long_at_once(back_offs, octopi, ear):
    """Its reason is said."""

    def key():
        raise OSError("key file is gone")

    assert back_offs(octopi.url, 2, key=key) == [300, 300]
    assert "key file is gone" in ear.said[0]
    assert octopi.asked("/api/login") == []


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"name": "me"},
        {"name": None, "session": "s"},
        {"name": "me", "session": 5},
        {"name": "", "session": "s"},
        {"name": "a:b", "session": "s"},
    ],
)
def test_an_odd_login_is_said(back_offs, octopi, ear, body):
    """Also a name that OctoPrint's own push cannot take."""
    octopi.login = (200, body)
    assert back_offs(octopi.url, 2) == [300, 300]
    assert len(ear.said) == 1


def test_the_back_off_starts_afresh_after_a_while_up(back_offs, octopi, ear):
    """A lost connection is tried anew at once, one that never lasts is not."""

    def let_in_and_cut(text, _answer):
        if "auth" in text:
            octopi.push({"timelapse": None})
            octopi.cut()

    octopi._take = let_in_and_cut
    assert back_offs(octopi.url, 4, stable=WAIT) == [1, 2, 4, 8]
    assert back_offs(octopi.url, 4, stable=1e-9, woken=(2,)) == [1, 1, 1, 1]
    assert back_offs(octopi.url, 4, stable=WAIT, woken=(2,)) == [1, 2, -1, -2]
    assert ear.posted == [UP, DOWN] * 12


def test_a_wake_up_cuts_the_back_off_short(server, ear):
    """OctoPrint answers over REST: push is there, too."""
    with listening(server.url, ear, timing=quick(first=WAIT)) as line:
        ear.hears(UP)
        line.wake()
        assert not line._nudged, "of no use now, and not to be remembered"
        server.stop()
        ear.hears(UP, DOWN)
        server.start()
        line.wake()
        ear.hears(UP, DOWN, UP)
        server.stop()
        ear.hears(UP, DOWN, UP, DOWN)
    assert ear.said == [], "each loss was told by its event"


def test_a_trouble_is_said_anew_after_push_has_worked(octopi, ear):
    """Once for each time that it begins."""
    refusal = (400, {"error": "CSRF validation failed"})
    octopi.login = refusal
    with listening(octopi.url, ear, timing=quick(longest=0.02, stable=1e-9)):
        octopi.wait(lambda: len(octopi.asked("/api/login")) > 3)
        assert len(ear.said) == 1
        octopi.login = None
        ear.hears(UP)
        octopi.login = refusal
        octopi.cut()
        ear.wait(lambda ear: len(ear.said) == 2)


def test_wake_ups_do_not_hammer(octopi, ear):
    """REST may be fine each time and push never: one wake-up is believed, till the back-off is over."""
    octopi.login = (400, {"error": "CSRF validation failed"})
    with listening(octopi.url, ear) as line:
        for count in (1, 2):
            octopi.wait(lambda count=count: len(octopi.asked("/api/login")) == count)
            ear.wait(lambda ear: ear.said)
            line.wake()
        deadline, pause = time.monotonic() + 0.5, threading.Event()
        while time.monotonic() < deadline:
            line.wake()
            pause.wait(0.01)
        assert len(octopi.asked("/api/login")) == 2


def test_a_wake_up_waits_for_its_turn(octopi, ear):
    """Attempts are a while apart, whoever asks for them."""
    octopi.login = (400, {"error": "CSRF validation failed"})
    began = time.monotonic()
    with listening(octopi.url, ear, timing=quick(nudge=0.3)) as line:
        ear.wait(lambda ear: ear.said)
        line.wake()
        octopi.wait(lambda: len(octopi.asked("/api/login")) == 2)
    assert time.monotonic() - began >= 0.3


def wake_until_said(line, ear):
    """As a watcher does whose looks are answered."""
    deadline, pause = time.monotonic() + WAIT, threading.Event()
    while not ear.said:
        assert time.monotonic() < deadline
        line.wake()
        pause.wait(0.01)


def test_down_is_said_only_to_who_knows_better(nobody, ear):
    """OctoPrint has just answered over REST, and yet there is no push: that is worth a line."""
    with listening(nobody, ear, timing=quick(first=WAIT)) as line:
        wake_until_said(line, ear)
    assert len(ear.said) == 1
    assert "is not up yet" in ear.said[0]
    assert "not heard by push" in ear.said[0]


# -- TLS and secrets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("upgrade", [None, NO_UPGRADE])
def test_a_certificate_must_be_trusted(tls, pem, ear, monkeypatch, upgrade):
    """Without ca_file nothing is sent, whatever the environment trusts; with it push is up."""
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(pem))
    with PushServer(tls=tls) as server:
        server.upgrade = upgrade
        with listening(server.url, ear):
            ear.wait(lambda ear: ear.said)
        assert "ca_file" in ear.said[0]
        assert server.seen == []
        with listening(server.url, ear, ca_file=pem):
            ear.hears(UP)
            server.event("Disconnecting")
            ear.hears(UP, events.Disconnecting())


def test_the_name_must_be_the_certificates(tls, pem, ear):
    """A good certificate of another host is none."""
    with PushServer(tls=tls) as server:
        with listening(server.url.replace("127.0.0.1", "localhost"), ear, ca_file=pem):
            ear.wait(lambda ear: ear.said)
        assert "certificate" in ear.said[0]
        assert server.seen == []


def test_a_useless_ca_file_is_said(tls, tmp_path, ear):
    """The setting is named."""
    with PushServer(tls=tls) as server, listening(server.url, ear, ca_file=tmp_path / "none"):
        ear.wait(lambda ear: ear.said)
    assert "ca_file" in ear.said[0]


def test_no_proxy_of_the_environment_is_used(server, ear, monkeypatch):
    """It would get the key."""
    with PushServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "ws_proxy", "socks_proxy"):
            monkeypatch.setenv(name, proxy.url)
        with listening(server.url, ear):
            ear.hears(UP)
        assert proxy.seen == []


@pytest.mark.parametrize("how", ["up", "refused"])
def test_secrets_are_never_told(server, ear, how, caplog, capfd):
    """Neither key nor session is said, or in any log at DEBUG, even if a server says them back."""
    caplog.set_level(logging.DEBUG)
    for name in ("websockets", "websockets.client", "urllib3"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    if how == "refused":
        server.login = (400, {"error": f"no such key: {KEY}"})
    with listening(server.url, ear) as line:
        ear.wait(lambda ear: ear.posted or ear.said)
        told = [repr(line), str(vars(line)), *ear.said]
    assert caplog.text, "else this test listens in the wrong place"
    assert KEY not in "".join([*told, caplog.text, *capfd.readouterr()])
    assert "T0K3N" not in "".join([*ear.said, caplog.text])


def test_a_session_that_is_said_back_is_not_said(octopi, ear):
    """SockJS's refusal may quote the message."""
    octopi.upgrade = NO_UPGRADE
    reply = octopi._reply
    said = http(400, b'{"error": "what is T0K3N0?"}')
    octopi._reply = lambda path, body, gone: said if b"auth" in body else reply(path, body, gone)
    with listening(octopi.url, ear, timing=quick(longest=0.02)):
        ear.wait(lambda ear: ear.said)
    assert "what is" in ear.said[0]
    assert "T0K3N" not in ear.said[0]


def test_a_password_in_the_address_is_never_told(nobody, ear):
    """An address may carry a reverse proxy's login; a broken one may, too."""
    for address in (nobody.replace("//", f"//me:{KEY}@") + "/octo", f"http://me:{KEY}@[::1"):
        with listening(address, ear) as line:
            wake_until_said(line, ear)
    assert KEY not in "".join(ear.said)


# -- ending -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def amid_a_back_off():
    with PushServer() as server:
        server.login = (400, {})
        yield server.url, lambda: server.wait(lambda: server.asked("/api/login"))


@contextlib.contextmanager
def amid_a_tcp_handshake():
    """A listener that accepts nobody, its backlog full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]

        def waiting():
            lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
            syn_sent = "02"
            return sum(line.split()[2:4] == [f"0100007F:{port:04X}", syn_sent] for line in lines)

        while not waiting():
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        fillers = waiting()
        yield (
            f"http://127.0.0.1:{port}",
            lambda: assert_eventually(lambda: waiting() > fillers, WAIT, "no SYN"),
        )


@contextlib.contextmanager
def amid(talk, scheme="http"):
    began = threading.Event()

    def noted(connection, gone):
        connection.recv(1)
        began.set()
        talk(connection, gone)

    with Tcp(noted) as server:
        yield server.url.replace("http", scheme), lambda: began.wait(WAIT)


def silent(_connection, gone):
    gone.wait(WAIT)


def dripping(connection, gone):
    while not gone.wait(0.01):
        connection.sendall(b"H")


def flooding(connection, gone):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not gone.is_set():
        connection.sendall(b"H" * 100)


@contextlib.contextmanager
def amid_an_answer(path, upgrade=None):
    with PushServer() as server:
        server.hangs, server.upgrade = (path,), upgrade
        yield server.url, lambda: server.wait(lambda: server.asked(path))


@contextlib.contextmanager
def amid_being_let_in(upgrade=None):
    with PushServer() as server:
        server.admits, server.upgrade = False, upgrade
        yield server.url, lambda: server.wait(lambda: len(server.told) == 2)


PHASES = {
    "back-off": amid_a_back_off,
    "TCP": amid_a_tcp_handshake,
    "TLS": lambda: amid(silent, "https"),
    "TLS drip": lambda: amid(dripping, "https"),
    "handshake": lambda: amid(silent),
    "handshake drip": lambda: amid(dripping),
    "handshake flood": lambda: amid(flooding),
    "login": lambda: amid_an_answer("/api/login"),
    "session": lambda: amid_an_answer("/xhr", NO_UPGRADE),
    "login, plain": lambda: amid_an_answer("/api/login", NO_UPGRADE),
    "send, plain": lambda: amid_an_answer("/xhr_send", NO_UPGRADE),
    "let in": amid_being_let_in,
    "let in, plain": lambda: amid_being_let_in(NO_UPGRADE),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_stop_ends_it_at_once(phase, ear):
    """In whatever it is amid: within half a second the thread has ended, and its sockets are closed."""
    with PHASES[phase]() as (url, begun), listening(url, ear):
        begun()
    assert ear.posted == []


@pytest.mark.parametrize("drip", [False, True])
def test_a_stop_while_up_ends_it_at_once(server, ear, drip):
    """Nothing is posted by it, or after it."""
    with listening(server.url, ear):
        ear.hears(UP)
        if drip:
            server.raw(frame(b"", length=1000) + b"x")
    server.event("Disconnecting")
    assert ear.posted == [UP]


def test_a_stop_may_come_twice_and_at_any_time(octopi, ear):
    """Before the start, after it, from the thread itself; and it is for good."""
    line = push.Push(octopi.url, lambda: KEY, ear.post, say=ear.say, timing=QUICK)
    line.stop()
    line.stop()
    line.start()
    line.wake()
    assert line._thread is None
    with listening(octopi.url, ear) as line:
        line.start()
        ear.hears(UP)
        line.stop()
        line.start()
        assert not line._thread.is_alive()
    assert octopi.asked("/websocket") == octopi.asked("/websocket")[:1]


def test_a_stop_by_its_own_thread_ends_it(octopi, ear):
    """Who is told that the key is refused may give up."""
    octopi.login = (400, {})
    lines = []
    ear.say = lambda _text: lines[0].stop()
    line = push.Push(octopi.url, lambda: KEY, ear.post, say=ear.say, timing=QUICK)
    lines.append(line)
    line.start()
    line._thread.join(WAIT)
    assert not line._thread.is_alive()


def test_a_slow_name_server_does_not_hold_up_a_stop(ear, monkeypatch):
    """That wait nobody can cut short: the stop does not wait for it, and nothing comes of it."""
    asked, answer = threading.Event(), threading.Event()

    def getaddrinfo(*_args, **_kwargs):
        asked.set()
        answer.wait(WAIT)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    line = push.Push("http://octopi.local", lambda: KEY, ear.post, say=ear.say, timing=QUICK)
    line.start()
    assert asked.wait(WAIT)
    monkeypatch.setattr(push, "_QUIET", frozenset())  # else nothing would be said anyhow
    began = time.monotonic()
    line.stop()
    assert time.monotonic() - began < 2 * STOPS_WITHIN
    answer.set()
    line._thread.join(WAIT)
    assert not line._thread.is_alive()
    assert (ear.posted, ear.said) == ([], [])


def test_what_was_not_foreseen_is_handed_over(octopi, ear, monkeypatch):
    """The service ends with it; until then nobody believes that push is up."""
    crashes = []
    with listening(octopi.url, ear, crash=crashes.append) as line:
        ear.hears(UP)
        monkeypatch.setattr(push, "read", lambda _text: 1 / 0)
        octopi.event("Connecting")
        line._thread.join(WAIT)
    assert [type(crash) for crash in crashes] == [ZeroDivisionError]
    assert ear.posted == [UP, DOWN]


def test_what_was_not_foreseen_is_raised_where_nobody_takes_it(octopi, ear, monkeypatch):
    """With a trace, by the thread."""
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))
    monkeypatch.setattr(push, "read", lambda _text: 1 / 0)
    with listening(octopi.url, ear) as line:
        line._thread.join(WAIT)
    assert raised == [ZeroDivisionError]


# -- the parts ----------------------------------------------------------------------------------------------


def test_a_server_that_is_no_sockjs_is_said(ear):
    """A web server that answers everything with its page."""
    with Tcp(
        lambda connection, _gone: connection.recv(9999) and connection.sendall(http(200, b"hello"))
    ) as other:
        with listening(other.url, ear):
            ear.wait(lambda ear: ear.said)
        assert "SockJS" in ear.said[0]


def test_a_halt_is_for_good(octopi):
    """What begins after it ends at once; it may be set and closed again."""
    halt = Halt()
    halt.set()
    with pytest.raises(Halted):
        Polling(octopi.url, halt)
    halt.close()
    halt.set()
    halt.close()
    assert octopi.seen == []


def test_a_halt_ends_a_websocket_too(octopi):
    """Not only its waits: also what could be done without one."""
    halt = Halt()
    with (
        contextlib.closing(halt),
        contextlib.closing(Websocket(f"{octopi.url}/", halt, timing=QUICK)) as line,
    ):
        halt.set()
        with pytest.raises(Halted):
            line.send("{}")


@pytest.mark.parametrize("way", [Polling, Websocket])
def test_a_closed_line_leaves_no_connection(way):
    """The other side sees its end, without waiting for a collection of garbage."""
    ended = threading.Event()

    def talk(connection, _gone):
        lines = connection.recv(9999).splitlines()
        key = next((line for line in lines if line.lower().startswith(b"sec-websocket-key")), None)
        connection.sendall(upgraded(key.partition(b": ")[2]) if key else http(200, b"o\n"))
        if not connection.recv(1):
            ended.set()

    with Tcp(talk) as other, contextlib.closing(Halt()) as halt:
        line = way(other.url, halt, timing=QUICK)
        line.close()
        assert ended.wait(WAIT)


def test_broken_tls_is_trouble(pem, tls):
    """Bytes that are no TLS, on a connection that was."""

    def talk(secure, gone):
        key = next(
            line for line in secure.recv(9999).splitlines() if line.lower().startswith(b"sec-websocket-key")
        )
        secure.sendall(upgraded(key.partition(b": ")[2]))
        with socket.socket(fileno=os.dup(secure.fileno())) as plain:
            plain.sendall(b"no TLS" * 100)
        gone.wait(WAIT)

    halt = Halt()
    with (
        Tcp(talk, tls) as other,
        contextlib.closing(halt),
        contextlib.closing(Websocket(other.url, halt, ca_file=pem, timing=QUICK)) as line,
        pytest.raises(Trouble) as caught,
    ):
        line.receive(time.monotonic() + WAIT)
    assert caught.value.kind is Kind.ODD


def test_a_message_to_a_lost_session_is_trouble(octopi):
    """OctoPrint answers it with 404."""
    halt = Halt()
    with contextlib.closing(halt), contextlib.closing(Polling(octopi.url, halt, timing=QUICK)) as line:
        octopi._mailboxes.clear()
        with pytest.raises(Trouble) as caught:
            line.send("{}")
    assert caught.value.kind is Kind.DOWN


def test_a_context_is_as_strict_as_a_requests(pem):
    """Certificates and names are checked."""
    for context in (trusting(None), trusting(pem)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
