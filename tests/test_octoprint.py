"""OctoPrint's words are understood in all versions, its failures told apart, and the key stays secret."""

import contextlib
import copy
import errno
import http.client
import http.server
import json
import logging
import os
import socket
import ssl
import struct
import threading
import traceback

import pytest
import requests
import responses
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from portretry_udev.octoprint import Answer, Client, Kind, Octo, Trouble, classify, offered

KEY = "S3CR3T-0123456789ABCDEF-key"
URL = "http://octopi.local:5000"
WAIT = 20.0  # seconds; far more than anything here takes

# Every text that /api/connection and /api/job can say, read from the sources of each version.
# 1.10.3 and 1.11.8: util/comm.py getStateString, printer/standard.py.
ONE = {
    "Opening serial connection": Octo.CONNECTING,
    "Detecting serial connection": Octo.CONNECTING,
    "Connecting": Octo.CONNECTING,
    "Operational": Octo.IDLE,
    "Starting": Octo.BUSY,
    "Starting print from SD": Octo.BUSY,
    "Starting to send file to SD": Octo.BUSY,
    "Printing": Octo.BUSY,
    "Printing from SD": Octo.BUSY,
    "Sending file to SD": Octo.BUSY,
    "Cancelling": Octo.BUSY,
    "Pausing": Octo.BUSY,
    "Paused": Octo.BUSY,
    "Resuming": Octo.BUSY,
    "Finishing": Octo.BUSY,
    "Transferring file to SD": Octo.BUSY,
    "Error": Octo.UNKNOWN,
    "Unknown State (17)": Octo.UNKNOWN,
}
# 2.0.0rc7: printer/connection.py ConnectedPrinterState, serial_connector/connector.py get_state_string.
TWO = {text: octo for text, octo in ONE.items() if not text.startswith(("Opening", "Unknown"))} | {
    "Detecting": Octo.CONNECTING,
    "Transferring file to printer": Octo.BUSY,
}
CLOSED = ["Closed", "Offline"]  # 1.x, 2.0

UNPLUGGED = (
    "SerialException: device reports readiness to read but returned no data "
    "(device disconnected or multiple access on port?)"
)
LOSSES = [
    UNPLUGGED,
    "SerialException: read failed: [Errno 5] Input/output error",
    "SerialException: write failed: [Errno 5] Input/output error",
    "SerialTimeoutException: Write timeout",
    "PortNotOpenError: Attempting to use a port that is not open",
    "OSError: [Errno 19] No such device",
    "TypeError: 'NoneType' object cannot be interpreted as an integer",
    "error: (5, 'Input/output error')",
    "Too many consecutive timeouts, printer still connected and alive?",
    "No more candidates to test, and no working port/baudrate combination detected.",
    "Connection error, see Terminal tab",
    "Could not write to serial port",
    "See octoprint.log for details",
]
FAULTS = [
    "Heating failed, system stopped! Heater_ID: 0 - Printer halted. kill() called!",
    "Thermal Runaway, system stopped! Heater_ID: bed - Printer halted. kill() called!",
    "MINTEMP triggered, system stopped! Heater_ID: 0",
    "MAXTEMP triggered, system stopped! Heater_ID: bed",
    "0: Extruder switched off. MAXTEMP triggered !",
    "Printer halted. kill() called!",
    "Printer stopped due to errors. Fix the error and use M999 to restart.",
    "KILL caused by KILL button/pin",
    "Thermal Error: heater 0",
    "fatal: Printer stopped due to heater failure",
    "Lost communication with MCU 'mcu'",
    "Probing failed",
    "Watchdog barked, please turn the printer off and on again.",
    "Closing serial port due to emergency stop M112.",
    # OctoPrint answers these with M112: the printer is halted
    "Printer keeps requesting line 23 again and again, communication stuck",
    "Should resend line 23 but no sufficient history is available, can't resend",
    "FileNotFoundError: 'gone' @ comm.py:startPrint:1500",
]


# -- the words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "octo"), [*ONE.items(), *TWO.items()])
def test_every_state_of_a_connection_is_understood(text, octo):
    """What all versions say while a port is in use is understood, with a port named or not yet."""
    assert classify(text, text, None, "/dev/ttyACM0") is octo
    assert classify(text, text, None, None) is octo


@pytest.mark.parametrize("connection", CLOSED)
class TestOffline:
    def test_cleanly(self, connection):
        """Both endpoints say that nothing is connected, and no error is told."""
        assert classify(connection, "Offline", None, None) is Octo.OFFLINE
        assert classify(connection, "Offline", "", None) is Octo.OFFLINE

    @pytest.mark.parametrize("error", [None, "", *LOSSES])
    def test_after_a_loss(self, connection, error):
        """A known loss, and the missing text of 2.0, are losses."""
        assert classify(connection, "Offline after error", error, None) is Octo.LOST

    @pytest.mark.parametrize("error", FAULTS)
    def test_after_a_fault(self, connection, error):
        """A firmware's fault, and whatever made OctoPrint halt the printer, is no loss."""
        assert classify(connection, "Offline after error", error, None) is Octo.FAULT
        assert classify(connection, "Error", error, None) is Octo.FAULT
        assert classify(connection, "Offline", error, None) is Octo.FAULT

    @given(error=st.text(min_size=1))
    def test_an_error_not_understood_is_a_fault(self, connection, error):
        """Unknown means hands off."""
        assert classify(connection, "Offline after error", error, None) is Octo.FAULT

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_text_that_merely_resembles_a_loss_is_a_fault(self, connection, loss):
        """Only the exact text, or the exact name of an exception, makes a loss."""
        assert classify(connection, "Offline after error", f"Fatal {loss}", None) is Octo.FAULT

    def test_not_while_a_port_is_named(self, connection):
        """1.x being built and 2.0 right after a connect say "Offline" with a port: not offline."""
        for job in ("Offline", "Offline after error"):
            assert classify(connection, job, None, "/dev/ttyACM0") is Octo.UNKNOWN


@given(
    connection=st.sampled_from([*CLOSED, *ONE, *TWO, "Offline after error"]) | st.text(),
    job=st.sampled_from([*CLOSED, *ONE, *TWO, "Offline after error"]) | st.text(),
    error=st.none() | st.sampled_from(LOSSES + FAULTS) | st.text(),
    port=st.none() | st.just("/dev/ttyACM0"),
)
@settings(max_examples=500)
def test_nothing_is_believed_that_the_two_endpoints_do_not_both_say(connection, job, error, port):
    """Offline needs both to say so and no port; connected and connecting need both to say the same of it."""
    octo = classify(connection, job, error, port)
    if octo in (Octo.OFFLINE, Octo.LOST, Octo.FAULT):
        assert connection in CLOSED
        assert job in ("Offline", "Offline after error", "Error")
        assert port is None
    elif octo is not Octo.UNKNOWN:
        known = ONE | TWO
        assert known[connection] is known[job] is octo


# -- OctoPrint's name for a device --------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path):
    (tmp_path / "ttyACM0").write_text("")
    for link in ("by-id", "by-path"):
        (tmp_path / link).symlink_to(tmp_path / "ttyACM0")
    (tmp_path / "ttyACM1").write_text("")
    return tmp_path / "ttyACM0"


def test_the_exact_name_goes_first(node):
    """The node itself, then its names in their order, before anything that merely leads there."""
    by_id, by_path = str(node.with_name("by-id")), str(node.with_name("by-path"))
    assert offered((by_id, str(node)), node, [by_id]) == str(node)
    assert offered((by_path, by_id), node, [by_id, by_path]) == by_id


def test_a_link_of_octoprints_own_is_followed(node):
    """OctoPrint may list the device under a name that is none of ours."""
    assert offered(("VIRTUAL", str(node.with_name("by-path"))), node, []) == str(node.with_name("by-path"))


def test_a_link_as_configured_finds_the_bare_node(node):
    """The other way round: ours is the link, OctoPrint's is the node."""
    assert offered((str(node),), node.with_name("by-id"), []) == str(node)


def test_a_name_that_exists_only_for_octoprint_is_found_literally(node):
    """In a container the device may have another name (octoprint_port)."""
    assert offered(("/dev/printer",), node, ["/dev/printer"]) == "/dev/printer"


@pytest.mark.parametrize("ports", [(), ("VIRTUAL", "AUTO", ""), ("/dev/\0",), ("ttyACM0",)])
def test_what_is_not_offered_is_none(node, ports, monkeypatch):
    """No neighbour, no AUTO, nothing relative, nothing malformed."""
    monkeypatch.chdir(node.parent)
    assert offered((*ports, str(node.with_name("ttyACM1"))), node, ["AUTO", ""]) is None


# -- REST, mocked -------------------------------------------------------------------------------------------

CONNECTION = {
    "current": {"baudrate": None, "port": None, "printerProfile": "_default", "state": "Closed"},
    "options": {
        "baudratePreference": 115200,
        "baudrates": [250000, 115200],
        "portPreference": "/dev/ttyACM0",
        "ports": ["/dev/ttyACM0", "VIRTUAL"],
        "printerProfilePreference": "_default",
        "printerProfiles": [{"id": "_default", "name": "Default"}],
    },
}
JOB = {"job": {}, "progress": {}, "state": "Offline"}


@pytest.fixture
def client():
    client = Client(URL, lambda: KEY)
    yield client
    client.close()


@pytest.fixture
def rest():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as rest:
        yield rest


def answers(rest, connection=CONNECTION, job=JOB):
    rest.get(f"{URL}/api/connection", json=connection)
    rest.get(f"{URL}/api/job", json=job)


def changed(doc, path, value):
    doc = copy.deepcopy(doc)
    *way, last = path
    inner = doc
    for step in way:
        inner = inner[step]
    inner[last] = value
    return doc


def trouble_of(act):
    with pytest.raises(Trouble) as caught:
        act()
    trouble = caught.value
    assert "\n" not in str(trouble)
    assert trouble.__cause__ is None, "a cause could carry the request, and with it the key"
    assert trouble.__context__ is None, "so could a context"
    return trouble


def outcome_of(client):
    try:
        return client.look()
    except Trouble as trouble:
        return trouble


def test_an_answer_of_one(rest, client):
    """1.11.8 after an unplug."""
    answers(rest, job={**JOB, "state": "Offline after error", "error": UNPLUGGED})
    assert client.look() == Answer(
        octo=Octo.LOST,
        connection="Closed",
        job="Offline after error",
        error=UNPLUGGED,
        port=None,
        ports=("/dev/ttyACM0", "VIRTUAL"),
        preferred_port="/dev/ttyACM0",
        preferred_baudrate=115200,
        restarted=False,
    )


def test_an_answer_of_two(rest, client):
    """2.0.0rc7, connected and idle: a null for the error, and more options."""
    connection = changed(CONNECTION, ["options", "autoconnect"], value=False)
    connection["current"] = {
        "baudrate": 115200,
        "port": "/dev/ttyACM0",
        "printerProfile": None,
        "state": "Operational",
    }
    answers(rest, connection, {**JOB, "state": "Operational", "error": None})
    answer = client.look()
    assert (answer.octo, answer.port, answer.error) == (Octo.IDLE, "/dev/ttyACM0", None)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("portPreference", None, "preferred_port"),
        ("portPreference", "AUTO", "preferred_port"),
        ("portPreference", "", "preferred_port"),
        ("baudratePreference", None, "preferred_baudrate"),
        ("baudratePreference", 0, "preferred_baudrate"),
    ],
)
def test_auto_is_no_preference(rest, client, name, value, field):
    """AUTO, 0, nothing: OctoPrint prefers none."""
    answers(rest, changed(CONNECTION, ["options", name], value))
    assert getattr(client.look(), field) is None


def test_the_key_goes_into_its_header_and_the_version_header_is_never_sent(rest, client):
    """The key is in X-Api-Key and nowhere else; nothing asks 2.0 for its new shape."""
    answers(rest)
    rest.post(f"{URL}/api/connection", status=204)
    client.look()
    client.connect("/dev/ttyACM0", None, None)
    assert len(rest.calls) == 3
    for call in rest.calls:
        assert call.request.headers["X-Api-Key"] == KEY
        del call.request.headers["X-Api-Key"]
        assert "X-OctoPrint-Api-Version" not in call.request.headers
        assert KEY not in f"{call.request.url} {call.request.headers} {call.request.body}"


@pytest.mark.parametrize(
    ("baudrate", "profile", "more"),
    [
        (None, None, {}),
        (115200, None, {"baudrate": 115200}),
        (None, "mk3", {"printerProfile": "mk3"}),
        (250000, "mk3", {"baudrate": 250000, "printerProfile": "mk3"}),
    ],
)
def test_a_connect_names_its_port_and_saves_nothing(rest, client, baudrate, profile, more):
    """The body is this and no more: no save, no autoconnect."""
    rest.post(f"{URL}/api/connection", status=204)
    client.connect("/dev/ttyACM0", baudrate, profile)
    assert json.loads(rest.calls[0].request.body) == {"command": "connect", "port": "/dev/ttyACM0", **more}


@pytest.mark.parametrize("port", ["", "AUTO"])
def test_a_connect_without_a_port_is_never_sent(rest, client, port):
    """OctoPrint could wedge itself."""
    with pytest.raises(ValueError, match="explicit port"):
        client.connect(port, None, None)
    assert len(rest.calls) == 0


GET_KINDS = {
    400: Kind.REFUSED,
    401: Kind.KEY,
    403: Kind.KEY,
    404: Kind.DOWN,
    408: Kind.SLOW,
    409: Kind.REFUSED,
    412: Kind.REFUSED,
    415: Kind.REFUSED,
    418: Kind.ODD,
    429: Kind.ODD,
    500: Kind.ODD,
    501: Kind.DOWN,
    502: Kind.DOWN,
    503: Kind.DOWN,
    504: Kind.SLOW,
    201: Kind.ODD,
    204: Kind.ODD,
    304: Kind.ODD,
}


@pytest.mark.parametrize(("status", "kind"), GET_KINDS.items())
@pytest.mark.parametrize("path", ["connection", "job"])
def test_a_status_says_whose_fault_it_is(rest, client, status, kind, path):
    """At both endpoints; the message names the place."""
    answers(rest)
    rest.replace("GET", f"{URL}/api/{path}", json={"error": "because"}, status=status)
    trouble = trouble_of(client.look)
    assert trouble.kind is kind
    assert URL in str(trouble)


@pytest.mark.parametrize("status", [status for status in GET_KINDS if status != 204])
def test_a_status_of_a_connect(rest, client, status):
    """The same for the command."""
    rest.post(f"{URL}/api/connection", json={"error": "because"}, status=status)
    assert trouble_of(lambda: client.connect("/dev/x", None, None)).kind is GET_KINDS[status]


def test_only_204_is_a_yes(rest, client):
    """200 to a connect is not OctoPrint's."""
    rest.post(f"{URL}/api/connection", json={}, status=200)
    assert trouble_of(lambda: client.connect("/dev/x", None, None)).kind is Kind.ODD


def test_a_wrong_key_is_told_by_a_csrf_error(rest, client):
    """POST with a wrong key: 400 CSRF, not 403; the message says what the key needs."""
    rest.post(f"{URL}/api/connection", json={"error": "CSRF validation failed"}, status=400)
    trouble = trouble_of(lambda: client.connect("/dev/x", None, None))
    assert trouble.kind is Kind.KEY
    assert "STATUS and CONNECTION" in str(trouble)


def test_a_key_without_permission_to_connect_is_told_so(rest, client):
    """POST 403: the key is known, its user may not."""
    rest.post(f"{URL}/api/connection", json={"error": "You don't have the permission"}, status=403)
    trouble = trouble_of(lambda: client.connect("/dev/x", None, None))
    assert trouble.kind is Kind.KEY
    assert "permission CONNECTION" in str(trouble)


def test_a_refusal_is_told_in_octoprints_words(rest, client):
    """400 "port is invalid" reaches the person."""
    rest.post(f"{URL}/api/connection", json={"error": "port is invalid"}, status=400)
    trouble = trouble_of(lambda: client.connect("/dev/x", None, None))
    assert trouble.kind is Kind.REFUSED
    assert "port is invalid" in str(trouble)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": 5}', b"\xff", b"[" * 100_000])
def test_an_error_in_any_shape_is_told(rest, client, body):
    """What a proxy says instead of OctoPrint does not matter."""
    rest.post(f"{URL}/api/connection", body=body, status=400)
    assert "no reason given" in str(trouble_of(lambda: client.connect("/dev/x", None, None)))


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "place"),
    [
        (
            "https://user:pass@elsewhere.example/octo/api/connection?apikey=1#x",
            "https://elsewhere.example/octo:",
        ),
        ("/login/?redirect=x", f"{URL}/login/:"),
        ("http://[", "an address that is none:"),
        (f"https://elsewhere.example/{KEY}", "https://elsewhere.example/(the API key):"),
        (None, URL),
    ],
)
def test_a_redirect_is_told_and_never_followed(rest, client, status, location, place):
    """The key stays here; the place is named without what may be secret in it."""
    rest.get(
        f"{URL}/api/connection", status=status, headers={} if location is None else {"Location": location}
    )
    trouble = trouble_of(client.look)
    assert trouble.kind is Kind.ODD
    assert f"redirects to {place}" in str(trouble)
    assert "octoprint in the configuration" in str(trouble)
    assert len(rest.calls) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>hello</html>", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b"x" * 10_000_000]
)
@pytest.mark.parametrize("path", ["connection", "job"])
def test_what_is_not_json_is_odd(rest, client, body, path):
    """HTML with 200, broken JSON, broken text, nesting without end, ten megabytes."""
    answers(rest)
    rest.replace("GET", f"{URL}/api/{path}", body=body, content_type="text/html")
    assert trouble_of(client.look).kind is Kind.ODD


WRONG = {
    ("current",): [None, [], "x", 1],
    ("options",): [None, [], "x", 1],
    ("current", "state"): [None, 1, True, [], {}],
    ("current", "port"): [1, False, [], {}],
    ("options", "ports"): [None, "x", {}, [1], [None], ["/dev/x", []]],
    ("options", "portPreference"): [1, False, [], {}],
    ("options", "baudratePreference"): ["115200", "AUTO", True, 1.5, [], {}],
}


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in WRONG.items() for value in values]
)
def test_a_wrong_type_is_odd(rest, client, path, value):
    """A field of another type than OctoPrint's is no answer, and the message names the field."""
    answers(rest, changed(CONNECTION, path, value))
    trouble = trouble_of(client.look)
    assert trouble.kind is Kind.ODD
    assert path[-1] in str(trouble)


@pytest.mark.parametrize("job", [None, [], "x", {}, {"state": None}, {"state": 1}, {**JOB, "error": 1}])
def test_a_wrong_job_is_odd(rest, client, job):
    """The same for the other endpoint."""
    answers(rest, job=job)
    assert trouble_of(client.look).kind is Kind.ODD


@pytest.mark.parametrize(
    "path", [("current",), ("options",), ("current", "state"), ("current", "port"), ("options", "ports")]
)
def test_a_missing_field_is_odd(rest, client, path):
    """A missing port most of all: it is what "offline" is believed by."""
    connection = changed(CONNECTION, path, None)
    (connection[path[0]] if path[1:] else connection).pop(path[-1])
    answers(rest, connection)
    assert trouble_of(client.look).kind is Kind.ODD


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PATHS = [*WRONG, ("current", "baudrate"), ("options", "baudrates"), ("options", "printerProfiles")]


@given(
    path=st.sampled_from(PATHS),
    value=ANY_JSON,
    job=st.dictionaries(st.sampled_from(["state", "error"]), ANY_JSON),
)
@settings(max_examples=300, deadline=None)
def test_whatever_it_says_ends_in_an_answer_or_in_a_trouble(path, value, job):
    """No other exception, and every text in an answer can be printed."""
    client = Client(URL, lambda: KEY)
    with responses.RequestsMock(assert_all_requests_are_fired=False) as rest, contextlib.closing(client):
        answers(rest, changed(CONNECTION, path, value), JOB | job)
        outcome = outcome_of(client)
    if isinstance(outcome, Trouble):
        assert outcome.kind is Kind.ODD
    else:
        assert isinstance(outcome.octo, Octo)
        assert str(outcome).encode()


def test_half_a_character_can_be_printed(rest, client):
    """JSON can name a lone surrogate; a log could not take it."""
    rest.get(f"{URL}/api/connection", json=CONNECTION)
    rest.get(f"{URL}/api/job", body=rb'{"state": "Offline after error", "error": "\ud800"}')
    assert client.look().error == "?"


def wrapped(error):
    """An exception as requests hands it over: under urllib3's, under its own."""
    reason = urllib3.exceptions.ProtocolError("Connection aborted.", error)
    outer = urllib3.exceptions.MaxRetryError(None, "/api/connection", reason)
    return requests.ConnectionError(outer, request=requests.Request("GET", URL, headers={"X-Api-Key": KEY}))


CERTIFICATE = ssl.SSLCertVerificationError(1, "certificate verify failed")
CERTIFICATE.verify_message = "self-signed certificate"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (wrapped(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")), Kind.DOWN),
        (wrapped(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")), Kind.DOWN),
        (wrapped(BrokenPipeError(errno.EPIPE, "Broken pipe")), Kind.DOWN),
        (wrapped(http.client.BadStatusLine("Not found")), Kind.DOWN),
        (wrapped(http.client.RemoteDisconnected("no response")), Kind.DOWN),
        (wrapped(TimeoutError("timed out")), Kind.SLOW),
        (wrapped(OSError(errno.EHOSTUNREACH, "No route to host")), Kind.SLOW),
        (wrapped(OSError(errno.ENETUNREACH, "Network is unreachable")), Kind.SLOW),
        (wrapped(OSError(errno.ETIMEDOUT, "Connection timed out")), Kind.SLOW),
        (wrapped(socket.gaierror(socket.EAI_NONAME, "Name or service not known")), Kind.SLOW),
        (requests.ConnectTimeout(), Kind.SLOW),
        (requests.ReadTimeout(), Kind.SLOW),
        (wrapped(CERTIFICATE), Kind.ODD),
        (wrapped(ssl.SSLError(1, "wrong version number")), Kind.ODD),
        (requests.exceptions.SSLError("tls"), Kind.ODD),
        (wrapped(http.client.IncompleteRead(b"")), Kind.ODD),
        (wrapped(OSError(errno.EMFILE, "Too many open files")), Kind.ODD),
        (requests.exceptions.InvalidHeader(f"Invalid header value: {KEY}"), Kind.ODD),
        (requests.ConnectionError(f"headers: X-Api-Key: {KEY}"), Kind.ODD),
        (urllib3.exceptions.LocationParseError(URL), Kind.ODD),
    ],
)
def test_an_exception_says_whose_fault_it_is(rest, client, error, kind):
    """By what lies under the wrappings, not by its text."""
    rest.get(f"{URL}/api/connection", body=error)
    trouble = trouble_of(client.look)
    assert trouble.kind is kind
    assert KEY not in str(trouble)


def test_tls_trouble_comes_with_advice(rest, client):
    """A certificate that is not trusted: what to set."""
    rest.get(f"{URL}/api/connection", body=wrapped(CERTIFICATE))
    text = str(trouble_of(client.look))
    assert "ca_file" in text
    assert "self-signed" in text


@pytest.mark.parametrize("url", ["octopi:5000", "http://", "ftp://octopi", "http://[", "http://.octopi"])
def test_an_address_that_is_none_is_odd(url):
    """The configuration is at fault: told, never a crash."""
    with contextlib.closing(Client(url, lambda: KEY)) as client:
        assert trouble_of(client.look).kind is Kind.ODD


# -- the key ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["", "two words", "new\nline", "line\r\nX-Evil: 1", "schlüssel", "🔑", "\0", "tab\t"]
)
def test_a_key_that_no_header_can_carry_is_never_sent(rest, key):
    """It is the key's fault, told without the key."""
    with contextlib.closing(Client(URL, lambda: key)) as client:
        trouble = trouble_of(client.look)
    assert trouble.kind is Kind.KEY
    assert not key or key not in str(trouble)
    assert len(rest.calls) == 0


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/etc/x.key"), ValueError("x.key is empty")]
)
def test_a_key_that_cannot_be_read_is_told_in_its_own_words(rest, error):
    """The reader of the key knows best what is wrong with it."""

    def key():
        raise error

    with contextlib.closing(Client(URL, key)) as client:
        trouble = trouble_of(client.look)
    assert trouble.kind is Kind.KEY
    assert str(error) in str(trouble)
    assert len(rest.calls) == 0


def test_a_new_key_is_picked_up(rest):
    """The key is read for each request."""
    keys = iter(["old", "old", "new", "new"])
    with contextlib.closing(Client(URL, lambda: next(keys))) as client:
        answers(rest)
        client.look()
        client.look()
    assert [call.request.headers["X-Api-Key"] for call in rest.calls] == ["old", "old", "new", "new"]


# -- real sockets -------------------------------------------------------------------------------------------


class Octopi:
    """A small HTTP/1.1 server on the loopback; ``stop`` also closes the connections that are being kept."""

    def __init__(self, headers=(), status=200, tls=None, port=0, delayed=None):
        self.seen = []  # (client's address, method, headers)
        self.connections = []
        octopi = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                octopi.connections.append(self.connection)

            def do_GET(self):
                octopi.seen.append((self.client_address, self.command, dict(self.headers)))
                if octopi.delay is not None:
                    octopi.delay.wait(WAIT)
                body = json.dumps(CONNECTION if self.path.endswith("connection") else JOB).encode()
                self.send_response(status if self.command == "GET" else 204)
                if self.command == "GET":
                    self.send_header("Content-Length", str(len(body)))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # the client may have left
                    self.wfile.write(body if self.command == "GET" else b"")

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = False
            request_queue_size = 16

            def handle_error(self, *args):
                pass  # a connection that a test cut

        self.delay = delayed
        self.server = Server(("127.0.0.1", port), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def cut(self):
        while self.connections:
            with contextlib.suppress(OSError):
                self.connections.pop().shutdown(socket.SHUT_RDWR)

    def stop(self):
        self.server.shutdown()
        self.cut()
        self.server.server_close()
        self.thread.join(WAIT)

    def lines(self):
        """The distinct connections, in the order of their first request."""
        return list(dict.fromkeys(address for address, *_ in self.seen))


@contextlib.contextmanager
def raw_server(talk):
    """``talk(connection, gone)`` for each connection; ``gone`` is set when the test is over."""
    gone = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while not gone.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(WAIT)
                connection.recv(65536)
                talk(connection, gone)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        gone.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(WAIT)


def client_of(url, timeout=(3.0, 10.0), **kwargs):
    return contextlib.closing(Client(url, lambda: KEY, timeout=timeout, **kwargs))


def test_one_connection_serves_all():
    """Both questions, the command and the next look go over the same TCP connection."""
    with Octopi() as octopi, client_of(octopi.url) as client:
        client.look()
        client.connect("/dev/ttyACM0", 115200, None)
        client.look()
        assert len(octopi.seen) == 5
        assert len(octopi.lines()) == 1


def test_a_restart_between_two_looks_is_noticed_once():
    """The kept connection is gone and a new one is answered: OctoPrint has been restarted."""
    with Octopi() as first, client_of(first.url) as client:
        assert [client.look().restarted for _ in range(3)] == [False, False, False]
        first.stop()
        with Octopi(port=first.port):
            assert [client.look().restarted for _ in range(3)] == [True, False, False]


def test_a_restart_before_a_command_is_noticed_by_the_next_look():
    """A connect that made the new connection does not hide the restart."""
    with Octopi() as first, client_of(first.url) as client:
        client.look()
        client.look()
        first.stop()
        with Octopi(port=first.port):
            client.connect("/dev/ttyACM0", None, None)
            assert client.look().restarted


def test_a_restart_between_the_two_questions_of_a_look_is_not_taken_for_trust():
    """A connection made within a look has not been kept: its end later says nothing."""
    with Octopi() as octopi, client_of(octopi.url) as client:
        client.look()
        rest = client._rest
        ask, rest.ask = (
            rest.ask,
            lambda *args: (octopi.cut() if args[1] == "/api/job" else None, ask(*args))[1],
        )
        client.look()
        rest.ask = ask
        octopi.cut()
        assert not client.look().restarted


def test_a_server_that_closes_each_time_is_never_restarted():
    """Connections of one answer prove nothing."""
    with Octopi(headers=[("Connection", "close")]) as octopi, client_of(octopi.url) as client:
        assert [client.look().restarted for _ in range(4)] == [False] * 4
        assert len(octopi.lines()) == 8


@pytest.mark.parametrize("header", [("Connection", "close"), ("Keep-Alive", "timeout=5, max=100")])
def test_a_server_that_announces_an_end_is_not_restarted(header):
    """A proxy may close a connection of its own accord, after so many requests or seconds, and says so."""
    headers = []
    with Octopi(headers=headers) as octopi, client_of(octopi.url) as client:
        client.look()
        client.look()
        headers.append(header)
        client.connect("/dev/ttyACM0", None, None)
        octopi.cut()
        assert not client.look().restarted


def test_a_server_that_closes_unannounced_after_each_look_is_never_restarted():
    """Connections never survive from look to look: nothing can be told from it."""
    with Octopi() as octopi, client_of(octopi.url) as client:
        for _ in range(4):
            assert not client.look().restarted
            octopi.cut()
        assert len(octopi.lines()) == 4


def test_a_mere_timeout_is_no_restart():
    """After a timeout we drop the connection ourselves."""
    with Octopi() as octopi, client_of(octopi.url, timeout=(3.0, 0.2)) as client:
        client.look()
        client.look()
        octopi.delay = threading.Event()
        try:
            assert trouble_of(client.look).kind is Kind.SLOW
        finally:
            octopi.delay.set()
        octopi.delay = None
        assert not client.look().restarted
        assert len(octopi.lines()) == 2


def test_nobody_there_is_down():
    """Connection refused."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with client_of(url) as client:
        trouble = trouble_of(client.look)
    assert trouble.kind is Kind.DOWN
    assert "Connection refused" in str(trouble)


def test_a_callers_own_exception_is_not_mistaken_for_the_cause():
    """Looked from within an except block: what was caught there has nothing to do with it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        taken.settimeout(0.01)
        try:
            taken.accept()
        except TimeoutError:
            taken.close()
            with client_of(url) as client, pytest.raises(Trouble) as caught:
                client.look()
    assert caught.value.kind is Kind.DOWN


def reset(connection, _gone):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    "talk",
    [
        lambda connection, _gone: connection.sendall(b"Not found"),
        lambda connection, _gone: connection.sendall(b"\xff\x00\r\n\r\n"),
        lambda _connection, _gone: None,
        reset,
    ],
    ids=["no status line", "garbage", "closed", "reset"],
)
def test_octoprints_stand_in_while_it_starts_is_down(talk):
    """A "Not found" without a status line, no word at all, a reset: not up yet."""
    with raw_server(talk) as url, client_of(url) as client:
        assert trouble_of(client.look).kind is Kind.DOWN


def test_silence_is_slow():
    """A server that takes the question and says nothing."""
    with (
        raw_server(lambda _connection, gone: gone.wait(WAIT)) as url,
        client_of(url, timeout=(3.0, 0.1)) as client,
    ):
        assert trouble_of(client.look).kind is Kind.SLOW


HEAD = b"HTTP/1.1 200 OK\r\n"
JUST_A_LENGTH = HEAD + b"Content-Length: 100000\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (JUST_A_LENGTH, b" "),
        (HEAD + b"Connection: close\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD, b"X: y\r\n"),
        (b"", b"H"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 100000\r\n\r\n", b" "),
    ],
    ids=["body", "body to the end", "chunks", "headers", "status line", "redirect"],
)
def test_an_answer_that_drips_is_slow(first, drop):
    """Each drop comes in time, the whole never would: the request as a whole is bounded."""

    def talk(connection, gone):
        connection.sendall(first)
        while not gone.wait(0.02):
            connection.sendall(drop)

    with raw_server(talk) as url, client_of(url, timeout=(0.3, 0.3)) as client:
        trouble = trouble_of(client.look)
        assert trouble.kind is Kind.SLOW
        assert trouble_of(client.look).kind is Kind.SLOW, "and again: a cut is not for good"


@pytest.mark.parametrize(
    "head", [JUST_A_LENGTH.replace(b"100000", b"9999999"), HEAD + b"Connection: close\r\n\r\n"]
)
def test_a_flood_is_cut_off(head):
    """Ten megabytes, with a length or without: odd, and not read to the end."""
    sent = []

    def talk(connection, _gone):
        connection.sendall(head)
        for _ in range(10):
            connection.sendall(b" " * 1_000_000)
            sent.append(1)

    with raw_server(talk) as url, client_of(url) as client:
        trouble = trouble_of(client.look)
        assert trouble.kind is Kind.ODD
        assert "1048576 bytes" in str(trouble)
    assert len(sent) < 10


def test_an_answer_cut_short_is_odd():
    """Less than was announced is no answer."""
    with (
        raw_server(lambda connection, _gone: connection.sendall(JUST_A_LENGTH + b"{}")) as url,
        client_of(url) as client,
    ):
        assert trouble_of(client.look).kind is Kind.ODD


def test_close_ends_a_request_under_way():
    """A service that stops need not wait for OctoPrint."""
    asked = threading.Event()

    def talk(_connection, gone):
        asked.set()
        gone.wait(WAIT)

    with raw_server(talk) as url, client_of(url, timeout=(WAIT, WAIT)) as client:
        troubles = []
        thread = threading.Thread(
            target=lambda: troubles.extend([trouble_of(client.look), trouble_of(client.look)])
        )
        thread.start()
        assert asked.wait(WAIT)
        client.close()
        thread.join(WAIT / 2)
        assert len(troubles) == 2, "the next one ends as soon"


def test_an_unreachable_host_is_slow(monkeypatch):
    """It may be a network that is not up yet: the printer's OctoPrint may well be running."""

    def connect(_self, _address):
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(socket.socket, "connect", connect, raising=False)
    with client_of("http://127.0.0.1:5000") as client:
        trouble = trouble_of(client.look)
    assert trouble.kind is Kind.SLOW
    assert "No route to host" in str(trouble)


def test_a_name_that_is_found_too_late_is_slow(monkeypatch):
    """The time of a request is over while its connection is being made: the request ends right then."""
    look_up = socket.getaddrinfo
    drops = []

    def talk(connection, gone):
        while len(drops) < 100 and not gone.wait(0.02):
            connection.sendall(b"H")
            drops.append(1)

    with raw_server(talk) as url, client_of(url, timeout=(0.1, 0.1)) as client:

        def late(*args, **kwargs):
            pause = threading.Event()
            while not client._rest._line.is_cut:
                pause.wait(0.01)
            return look_up(*args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", late)
        assert trouble_of(client.look).kind is Kind.SLOW
    assert len(drops) < 50


def test_a_name_that_is_not_found_is_slow(monkeypatch):
    """DNS may be late at boot."""

    def getaddrinfo(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with client_of("http://octopi.local:5000") as client:
        assert trouble_of(client.look).kind is Kind.SLOW


def test_the_environment_adds_nothing(monkeypatch, tmp_path):
    """No proxy gets the key, no .netrc adds a password, though the environment names both."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Octopi() as proxy, Octopi() as octopi, client_of(octopi.url) as client:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        client.look()
        assert proxy.seen == []
        assert all("Authorization" not in headers for _, _, headers in octopi.seen)


def test_cookies_are_not_kept():
    """A login in a cookie could outlive the key."""
    with (
        Octopi(headers=[("Set-Cookie", "session_P5000=abc; Path=/")]) as octopi,
        client_of(octopi.url) as client,
    ):
        client.look()
        assert all("Cookie" not in headers for _, _, headers in octopi.seen)


# A certificate for 127.0.0.1, and its key, made for these tests alone.
CERTIFICATE_PEM = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7jMPgigNFdB/bdG5
8x1h/dpXaY7acqWh8e6lrWovjauhRANCAAT3VolW65KTnZ2XtRjIsexH9tH3+7I7
BGVPIKRQEm8nTIML2JU2UWLjeaZKsfvLfSrPXCbnq5jRuTIefh9asITZ
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBjzCCATagAwIBAgIUSRxbIMNX9YPLbmXIr3uTNXivbgYwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJdGVzdCBvbmx5MCAXDTI2MTEyMjA4MTEzOVoYDzIxMjYxMDI5
MDgxMTM5WjAUMRIwEAYDVQQDDAl0ZXN0IG9ubHkwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAT3VolW65KTnZ2XtRjIsexH9tH3+7I7BGVPIKRQEm8nTIML2JU2UWLj
eaZKsfvLfSrPXCbnq5jRuTIefh9asITZo2QwYjAdBgNVHQ4EFgQU/sYvgx8JJsMG
ACs6wRY9T7hbTVMwHwYDVR0jBBgwFoAU/sYvgx8JJsMGACs6wRY9T7hbTVMwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0cAMEQC
IAnMWepLgTiHn4BG/YicqzPmK8xTed9G4h7qYLU8QLSaAiBU7Nolh12lDnahC83H
nsE6i5DjDfXftmczYFs5Vh10Uw==
-----END CERTIFICATE-----
"""


@pytest.fixture
def pem(tmp_path):
    path = tmp_path / "octopi.pem"
    path.write_text(CERTIFICATE_PEM)
    return path


@pytest.fixture
def tls(pem):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_a_certificate_must_be_trusted(tls, pem, monkeypatch):
    """Without ca_file no key is sent, whatever the environment trusts; with it the certificate is good."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
    with Octopi(tls=tls) as octopi:
        with client_of(octopi.url) as client:
            trouble = trouble_of(client.look)
        assert trouble.kind is Kind.ODD
        assert "ca_file" in str(trouble)
        assert octopi.seen == []
        with client_of(octopi.url, ca_file=pem) as client:
            assert [client.look().octo for _ in range(2)] == [Octo.OFFLINE] * 2
        assert len(octopi.lines()) == 1


def test_a_restart_is_noticed_under_tls_too(tls, pem):
    """The connection is watched below TLS."""
    with Octopi(tls=tls) as octopi, client_of(octopi.url, ca_file=pem) as client:
        client.look()
        client.look()
        octopi.cut()
        assert client.look().restarted


def test_tls_to_a_plain_server_is_odd():
    """TLS where http is meant: advice, not silence."""
    with Octopi() as octopi, client_of(octopi.url.replace("http:", "https:"), timeout=(1.0, 1.0)) as client:
        assert trouble_of(client.look).kind is Kind.ODD


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_useless_ca_file_is_odd(tmp_path, tls, content):
    """Missing or senseless: the message names the setting."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with Octopi(tls=tls) as octopi, client_of(octopi.url, ca_file=path) as client:
        trouble = trouble_of(client.look)
    assert trouble.kind is Kind.ODD
    assert "ca_file" in str(trouble)


def echo(connection, _gone):
    """Say the key back wherever a server can."""
    error = json.dumps({"error": f"bad key {KEY}"}).encode()
    head = f"HTTP/1.1 400 {KEY}\r\nX-Echo: {KEY}\r\nContent-Type: text/{KEY}\r\n"
    connection.sendall(f"{head}Content-Length: {len(error)}\r\n\r\n".encode())
    connection.sendall(error)


def echo_html(connection, _gone):
    connection.sendall(
        f"HTTP/1.1 200 OK\r\nContent-Type: text/{KEY}\r\nConnection: close\r\n\r\n{KEY}".encode()
    )


def echo_status_line(connection, _gone):
    connection.sendall(f"X-Api-Key {KEY}\r\n\r\n".encode())


@pytest.mark.parametrize("talk", [echo, echo_html, echo_status_line, reset], ids=lambda talk: talk.__name__)
def test_the_key_is_never_told(talk, caplog, capfd):
    """Whatever a server says back: not in a message, a trace, a repr or a log at DEBUG."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.DEBUG)
    told = []
    with raw_server(talk) as url, client_of(url) as client:
        for act in (client.look, lambda: client.connect("/dev/ttyACM0", 115200, "p")):
            trouble = trouble_of(act)
            told += [str(trouble), repr(trouble), repr(trouble.args), *traceback.format_exception(trouble)]
        told.append(repr(client))
    assert "urllib3" in caplog.text, "else this test listens in the wrong place"
    assert all(str(told_) for told_ in told)
    assert KEY not in "".join([*told, caplog.text, *capfd.readouterr()])


def test_a_password_in_the_address_is_never_told():
    """An address may carry a reverse proxy's login."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with client_of(f"http://me:{KEY}@127.0.0.1:{port}/octo") as client:
        text = str(trouble_of(client.look))
    assert f"http://127.0.0.1:{port}/octo" in text
    assert "me:" not in text
