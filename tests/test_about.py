"""What OctoPrint is, is told as far as its key allows; printers that are not on a serial port are let be."""

import contextlib
import copy
import http.server
import json
import re
import socket
import threading

import pytest
import responses
from hypothesis import given, settings
from hypothesis import strategies as st

from portretry_udev.about import About
from portretry_udev.octoprint import Client, Kind, Octo, Trouble

KEY = "S3CR3T-0123456789ABCDEF-key"
URL = "http://octopi.local:5000"
LEAST = ["STATUS", "CONNECTION"]
USERS = [*LEAST, "SETTINGS_READ", "PLUGIN_PLUGINMANAGER_LIST"]  # the part of the group `users` that matters
JOB = {"job": {}, "progress": {}, "state": "Offline", "error": None}
USER, SERVER, SETTINGS = "/api/currentuser", "/api/server", "/api/settings"
PLUGINS = "/plugin/pluginmanager/plugins/versions"
PROBE = "/plugin/appkeys/probe"
NEWER = "/api/connection?api_version=2.0.0"


class Mocked:
    """An OctoPrint whose answers are a table: path with query -> status and body, or an exception."""

    def __init__(self, mock):
        self.table = {}
        self.keyed = []  # of each request, whether it carried the key
        self._asked = []
        mock.add_callback("GET", re.compile(re.escape(URL)), self._answer)

    def _answer(self, request):
        path = request.url.removeprefix(URL)
        self._asked.append(path)
        self.keyed.append("X-Api-Key" in request.headers)
        answer = self.table.get(path, (404, ""))
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return status, {}, body

    def says(self, path, body=None, *, status=200, html=None):
        """Say this from now on."""
        self.table[path] = (status, json.dumps(body) if html is None else html)

    def asked(self):
        """What has been asked since this was called last, in order."""
        asked, self._asked = self._asked, []
        return asked


@contextlib.contextmanager
def mocked():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield Mocked(mock)


@pytest.fixture
def rest():
    with mocked() as rest:
        yield rest


@pytest.fixture
def client():
    with contextlib.closing(Client(URL, lambda: KEY)) as client:
        yield client


def trouble_of(act):
    with pytest.raises(Trouble) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None, "a context could carry the request, and with it the key"
    return caught.value


# -- about --------------------------------------------------------------------------------------------------


def tells(rest, permissions, *, plugins=(), autoconnect=False, versions=None):
    """Have it tell all: settings of these plugins, and these of them with their versions as switched on."""
    rest.says(USER, {"name": "little", "groups": [], "permissions": permissions})
    rest.says(SERVER, {"version": "1.11.8", "safemode": None})
    rest.says(SETTINGS, {"serial": {"autoconnect": autoconnect}, "plugins": {name: {} for name in plugins}})
    rest.says(PLUGINS, versions or {})


def test_all_that_an_ordinary_user_may_know(rest, client):
    """Four questions: who, what, which settings, which plugins."""
    tells(rest, USERS, autoconnect=True, plugins=["portretry"])
    assert client.about() == About(
        version="1.11.8",
        safe_mode=None,
        user="little",
        missing=(),
        rivals=("PortRetry",),
        autoconnect=True,
    )
    assert rest.asked() == [USER, SERVER, SETTINGS, PLUGINS]


def test_what_a_key_may_not_know_is_not_asked(rest, client):
    """OctoPrint would log a warning for each; what is not known is not said."""
    tells(rest, LEAST)
    about = client.about()
    assert rest.asked() == [USER, SERVER]
    assert (about.rivals, about.autoconnect, about.missing) == ((), None, ())
    assert about.sayings() == []


@pytest.mark.parametrize(
    ("permissions", "missing"),
    [([], ("STATUS", "CONNECTION")), (["STATUS"], ("CONNECTION",)), (LEAST, ()), (["ADMIN"], ())],
)
def test_what_the_key_lacks_is_named(rest, client, permissions, missing):
    """With whose key it is, and what to do; an administrator lacks nothing."""
    tells(rest, permissions)
    about = client.about()
    assert about.missing == missing
    (said,) = about.sayings() or [None]
    if missing:
        assert f"user little lacks {' and '.join(missing)}" in said
        assert "Access Control" in said
    else:
        assert said is None


@pytest.mark.parametrize(
    ("word", "said"),
    [("flag", "started so"), ("settings", "asked to"), ("incomplete_startup", "did not end"), ("new", "new")],
)
def test_safe_mode_is_said_with_its_reason(rest, client, word, said):
    """The three that OctoPrint knows in people's words, any other in its own."""
    tells(rest, LEAST)
    rest.says(SERVER, {"version": "1.11.8", "safemode": word})
    about = client.about()
    assert about.safe_mode == word
    (line,) = about.sayings()
    assert "safe mode" in line
    assert said in line


RIVALS = {
    "portretry": "PortRetry",
    "portretryplus": "PortRetryPlus",
    "autoconnectplus": "AutoConnectPlus",
    "portlister": "PortLister",
}


@pytest.mark.parametrize(("identifier", "name"), RIVALS.items())
@pytest.mark.parametrize("place", ["plugins", "versions"])
def test_a_rival_is_found(rest, client, identifier, name, place):
    """In the settings, or in the list of plugins, whichever the key may read; it is named, with the cure."""
    may = {"plugins": "SETTINGS_READ", "versions": "PLUGIN_PLUGINMANAGER_LIST"}[place]
    tells(rest, [*LEAST, may], autoconnect=True, **{place: {identifier: "1.0.0", "other": "1.0.0"}})
    about = client.about()
    assert about.rivals == (name,)
    (said,) = about.sayings()
    assert f"plugin {name} " in said
    assert "disable it" in said


def test_a_rival_that_is_idle_is_none(rest, client):
    """PortLister connects only where OctoPrint connects at its start; AutoConnectPlus has a switch."""
    tells(rest, USERS, versions={"portlister": "0.1.10", "autoconnectplus": "0.1.0", "virtual_printer": None})
    switched_off = {"autoconnectplus": {"enabled": False}}
    rest.says(SETTINGS, {"serial": {"autoconnect": False}, "plugins": switched_off})
    assert client.about().rivals == ()


@pytest.mark.parametrize("path", [SERVER, SETTINGS, PLUGINS])
@pytest.mark.parametrize(
    "broken",
    [
        {"status": 403, "body": {"error": "no"}},
        {"status": 404},
        {"status": 500},
        {"html": "<html>"},
        {"body": None},
        {"body": []},
        {"body": {"plugins": [], "serial": "x", "version": 5, "safemode": True}},
    ],
)
def test_a_part_that_fails_spoils_nothing_else(rest, client, path, broken):
    """Each of the other parts is told as ever."""
    tells(rest, USERS, autoconnect=True, plugins=["portretry"], versions={"portretry": "0.1.4"})
    rest.says(path, **broken)
    about = client.about()
    assert about.user == "little"
    assert about.version == (None if path == SERVER else "1.11.8")
    assert about.autoconnect is (None if path == SETTINGS else True)
    assert about.rivals == ("PortRetry",)
    assert about.missing == ()
    assert rest.asked() == [USER, SERVER, SETTINGS, PLUGINS]


def test_without_the_first_part_there_is_nothing(rest, client):
    """Who may not even ask who he is may ask nothing else."""
    tells(rest, USERS)
    rest.says(USER, {"error": "Invalid API key"}, status=403)  # 1.10.3
    assert trouble_of(client.about).kind is Kind.KEY
    assert rest.asked() == [USER]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("portretry"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["plugins", "serial", "version", "safemode", "portlister"]), inner)
    ),
    max_leaves=8,
)


@given(
    name=ANY_JSON,
    permissions=st.just(USERS) | ANY_JSON,
    server=ANY_JSON,
    settings_=ANY_JSON,
    plugins=ANY_JSON,
)
@settings(max_examples=100, deadline=None)
def test_whatever_it_says_is_told_in_single_lines(name, permissions, server, settings_, plugins):
    """No shape of any part is an error, and no saying can break a log."""
    with (
        contextlib.closing(Client(URL, lambda: KEY)) as client,
        mocked() as rest,
    ):
        rest.says(USER, {"name": name, "permissions": permissions})
        rest.says(SERVER, server)
        rest.says(SETTINGS, settings_)
        rest.says(PLUGINS, plugins)
        about = client.about()
    assert set(about.rivals) <= set(RIVALS.values())
    assert all(line.isprintable() and line.encode() for line in about.sayings())


# -- nobody has set it up -----------------------------------------------------------------------------------


def refuses(rest, status=403):
    rest.says("/api/connection", {"error": "You don't have the permission"}, status=status)


def test_an_unfinished_wizard_is_said(rest, client):
    """The key is not to blame; one more question, and that without the key."""
    refuses(rest)
    rest.says(PROBE, {"error": "You don't have the permission"}, status=403)
    trouble = trouble_of(client.look)
    assert trouble.kind is Kind.KEY
    assert "setup wizard" in str(trouble)
    assert rest.keyed == [True, False]
    assert rest.asked() == ["/api/connection", PROBE]


@pytest.mark.parametrize(
    "probe",
    [(204, ""), (404, ""), (403, "<html>"), ConnectionError()],
    ids=["set up", "no such plugin", "a proxy's", "gone"],
)
def test_otherwise_the_key_is_to_blame(rest, client, probe):
    """Only OctoPrint's own refusal is a proof."""
    refuses(rest)
    rest.table[PROBE] = probe
    trouble = trouble_of(client.look)
    assert trouble.kind is Kind.KEY
    assert "refuses the API key" in str(trouble)


def test_only_a_refused_key_costs_the_question(rest, client):
    """Not a key that is not there, nor any other trouble, nor an answer."""
    refuses(rest, status=503)
    assert trouble_of(client.look).kind is Kind.DOWN
    assert rest.asked() == ["/api/connection"]
    with contextlib.closing(Client(URL, lambda: "")) as keyless:
        assert trouble_of(keyless.look).kind is Kind.KEY
    assert rest.asked() == []
    serial(rest)
    client.look()
    assert PROBE not in rest.asked()


# -- connectors ---------------------------------------------------------------------------------------------
# As 2.0.0rc7 has answered, with a connector of Moonraker's kind.

PROFILES = {
    "printerProfilePreference": "_default",
    "printerProfiles": [{"id": "_default", "name": "Default"}],
}
OLD = {
    "current": {"baudrate": None, "port": None, "printerProfile": None, "state": "Offline"},
    "options": {
        "autoconnect": False,
        "baudratePreference": 115200,
        "baudrates": [115200],
        "portPreference": "/dev/ttyACM0",
        "ports": ["/dev/ttyACM0"],
        **PROFILES,
    },
}
NEW = {
    "current": {
        "capabilities": None,
        "connector": None,
        "parameters": {},
        "profile": None,
        "state": "Offline",
    },
    "options": {
        "connectors": [
            {"connector": "moonraker", "name": "Klipper (Moonraker)", "parameters": {}},
            {"connector": "serial", "name": "Serial Connection", "parameters": {}},
        ],
        "preferredConnector": {"connector": "serial", "parameters": {}},
        "preferredProfile": "_default",
        "profiles": [],
    },
}


def serial(rest, **options):
    """2.0, with these of its options otherwise; nothing is connected."""
    old = copy.deepcopy(OLD)
    old["options"] |= options
    rest.says("/api/connection", old)
    rest.says("/api/job", JOB)


def newer(rest, *, current=None, preferred="serial", state="Offline"):
    new = copy.deepcopy(NEW)
    new["current"] |= {"connector": current, "state": state}
    new["options"]["preferredConnector"] = preferred and {"connector": preferred, "parameters": {}}
    rest.says(NEWER, new)


def test_a_serial_printer_costs_no_question(rest, client):
    """Nor does 1.x without a preferred port, which has no connectors."""
    serial(rest)
    assert client.look().aside is None
    serial(rest, portPreference=None)
    one = copy.deepcopy(OLD)
    one["options"] |= {"portPreference": None}
    del one["options"]["autoconnect"]
    rest.says("/api/connection", one)
    assert client.look().aside is None
    assert rest.asked() == ["/api/connection", "/api/job"] * 2


@pytest.mark.parametrize(
    ("preferred", "aside"),
    [
        ("moonraker", "its preferred connector is Klipper (Moonraker), not serial"),
        ("gone\n", 'its preferred connector is "gone ", not serial'),
        ("serial", None),
        (None, None),
    ],
)
def test_a_preferred_connector_that_is_not_serial_is_a_reason_to_stand_back(rest, client, preferred, aside):
    """By its name for people, or by its own; none at all is no reason.  And its preference ends, too."""
    serial(rest, portPreference=None)
    newer(rest, preferred=preferred)
    answer = client.look()
    assert (answer.aside, answer.octo) == (aside, Octo.OFFLINE)
    assert rest.asked() == ["/api/connection", NEWER, "/api/job"]
    serial(rest)
    assert client.look().aside is None


def test_none_set_at_all_is_asked_once_a_connection(rest, client):
    """2.0.0rc7 answers HTTP 500 to it, and logs a trace."""
    serial(rest, portPreference=None)
    rest.says(NEWER, {"error": "internal"}, status=500)
    for _ in range(3):
        assert client.look().aside is None
    assert rest.asked().count(NEWER) == 1


def test_connectors_that_cannot_be_asked_after_are_a_trouble(rest, client):
    """Unknown means hands off."""
    serial(rest, portPreference=None)
    rest.says(NEWER, html="<html>")
    assert trouble_of(client.look).kind is Kind.ODD
    rest.says(NEWER, {"current": []})
    assert trouble_of(client.look).kind is Kind.ODD


def connected(rest, port, state="Operational"):
    """2.0 through Moonraker, though serial is preferred; its port is a number, a text, or none."""
    old = copy.deepcopy(OLD)
    old["current"] |= {"port": port, "state": state}
    if isinstance(port, int):
        rest.says("/api/connection", {"error": "internal"}, status=500)
    else:
        rest.says("/api/connection", old)
    newer(rest, current="moonraker", state=state)
    rest.says("/api/job", {**JOB, "state": state})


@pytest.mark.parametrize("port", [7125, "7125", None], ids=["Moonraker", "a text", "Bambu"])
def test_a_connection_that_is_not_serial_is_a_reason_to_stand_back(rest, client, port):
    """It is connected, and to no port of ours; 1.x's shape, which may not fit it, is asked once."""
    for octo, state in [(Octo.IDLE, "Operational"), (Octo.BUSY, "Printing"), (Octo.UNKNOWN, "Offline")]:
        connected(rest, port, state)
        answer = client.look()
        assert answer.octo is octo, "never offline"
        assert (answer.port, answer.ports) == (None, ())
        assert answer.aside == "it is connected through Klipper (Moonraker), not over a serial port"
    assert rest.asked().count("/api/connection") == 1
    serial(rest)
    newer(rest)
    answer = client.look()
    assert (answer.aside, answer.octo) == (None, Octo.OFFLINE)
    assert rest.asked() == [NEWER, "/api/connection", "/api/job"]
    client.look()
    assert rest.asked() == ["/api/connection", "/api/job"]


def test_an_octoprint_that_is_merely_broken_is_a_trouble(rest, client):
    """HTTP 500 with a serial printer, or from something else altogether."""
    serial(rest)
    rest.says("/api/connection", {"error": "internal"}, status=500)
    newer(rest, current="serial", state="Operational")
    assert trouble_of(client.look).status == 500
    rest.says(NEWER, {"error": "internal"}, status=500)
    trouble = trouble_of(client.look)
    assert (trouble.kind, trouble.status) == (Kind.ODD, 500)
    serial(rest)
    assert client.look().octo is Octo.OFFLINE


@pytest.mark.parametrize("autoconnect", [True, False])
def test_2_0_tells_every_user_of_autoconnect(rest, client, autoconnect):
    """Its settings would tell administrators only."""
    serial(rest, autoconnect=autoconnect)
    client.look()
    tells(rest, USERS, autoconnect=None, versions={"portlister": "0.1.10"})
    about = client.about()
    assert about.autoconnect is autoconnect
    assert about.rivals == (("PortLister",) if autoconnect else ())


# -- stuck while opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connection", "job", "opening"),
    [
        ("Opening serial connection", "Opening serial connection", True),
        ("Connecting", "Connecting", True),
        ("Opening serial connection", "Connecting", False),
        ("Connecting", "Offline", False),
        ("Detecting serial connection", "Detecting serial connection", False),
        ("Detecting", "Detecting", False),
        ("Operational", "Operational", False),
        ("Offline", "Offline", False),
    ],
)
def test_where_it_may_be_stuck_for_ever(rest, client, connection, job, opening):
    """In the words of a failed open, when both endpoints say them; detection ends by itself."""
    serial(rest)
    old = copy.deepcopy(OLD)
    old["current"] |= {"state": connection, "port": "/dev/ttyACM0"}
    rest.says("/api/connection", old)
    rest.says("/api/job", {**JOB, "state": job})
    assert client.look().opening is opening


def test_the_way_out_is_a_disconnect_and_no_more(client):
    """The command is this, and only 204 is a yes."""
    with responses.RequestsMock() as mock:
        mock.post(f"{URL}/api/connection", status=204)
        client.disconnect()
        assert json.loads(mock.calls[0].request.body) == {"command": "disconnect"}
        mock.upsert("POST", f"{URL}/api/connection", status=200, json={})
        assert trouble_of(client.disconnect).kind is Kind.ODD


# -- what else may happen to it -----------------------------------------------------------------------------


class SixServer(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = False


@contextlib.contextmanager
def octoprint_at(address, says):
    """An OctoPrint at that address; ``says(path)`` is its answer, a dict as JSON, a text as HTML."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            answer = says(self.path)
            html = isinstance(answer, str)
            body = (answer if html else json.dumps(answer)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if html else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.server.hosts.append(self.headers["Host"])

        def log_message(self, *_):
            pass

    with (SixServer if ":" in address else http.server.ThreadingHTTPServer)((address, 0), Handler) as server:
        server.hosts = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def plain(path):
    return OLD if path == "/api/connection" else JOB


def test_ipv6():
    """An address in brackets is asked, and named, as it is written."""
    with octoprint_at("::1", plain) as server:
        url = f"http://[::1]:{server.server_port}"
        with contextlib.closing(Client(url, lambda: KEY)) as client:
            assert [client.look().octo for _ in range(2)] == [Octo.OFFLINE] * 2
            assert set(server.hosts) == {url.removeprefix("http://")}
    with contextlib.closing(Client(url, lambda: KEY)) as client:
        trouble = trouble_of(client.look)
    assert trouble.kind is Kind.DOWN
    assert url in str(trouble)


def test_a_proxy_that_answers_html_with_200_is_got_over():
    """Its page is odd, and what it is in front of is understood again as soon as it speaks."""
    page = ["<html>Sign in to the hotel's network</html>"]
    with octoprint_at("127.0.0.1", lambda path: page[0] if page else plain(path)) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        with contextlib.closing(Client(url, lambda: KEY)) as client:
            for _ in range(2):
                trouble = trouble_of(client.look)
                assert trouble.kind is Kind.ODD
                assert "text/html" in str(trouble)
            page.clear()
            assert client.look().octo is Octo.OFFLINE


def test_what_comes_may_say_more(rest, client):
    """Unknown fields are ignored, at every depth."""
    serial(rest)
    before = client.look()

    def more(thing):
        if isinstance(thing, dict):
            return {name: more(value) for name, value in thing.items()} | {"new": {"a": [1, None]}}
        return thing

    rest.says("/api/connection", more(OLD))
    rest.says("/api/job", more(JOB))
    assert client.look() == before
    tells(rest, USERS)
    about = client.about()
    rest.says(SERVER, {"version": "1.11.8", "safemode": None, "new": [1]})
    assert client.about() == about
