"""What real OctoPrints tell of themselves, and what may happen to them while the service runs."""

import contextlib
import fcntl
import os

import pytest
import requests

from helpers import Daemon, assert_eventually
from portretry_udev import port
from portretry_udev.octoprint import Client, Kind, Octo, Trouble
from portretry_udev.simulator import Printer

pytestmark = pytest.mark.octoprint

AT_ONCE = 10.0  # seconds; as in conftest.py
TWO = "2.0.0rc7"
UP_IN = 60.0  # seconds in which an OctoPrint without accounts must be up

# The plugin manager is on here, for its list, and is kept from asking the internet.
PLUGIN_MANAGER = {"repository": "http://127.0.0.1:9/", "notices": "http://127.0.0.1:9/"}
OFFLINE = ["announcements", "discovery", "errortracking", "health_check", "softwareupdate", "tracking"]

RIVAL = """
import octoprint.plugin
class Rival(octoprint.plugin.SettingsPlugin):
    def get_settings_defaults(self):
        return {{"enabled": True}}
__plugin_name__ = "{name}"
__plugin_pythoncompat__ = ">=3,<4"
__plugin_implementation__ = Rival()
"""

CONNECTOR = """
import octoprint.plugin
from octoprint.printer.connection import ConnectedPrinter, ConnectedPrinterState
class Moonraker(ConnectedPrinter):
    connector = "moonraker"
    name = "Klipper (Moonraker)"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._place = {"host": kwargs.get("host"), "port": kwargs.get("port")}
    @property
    def connection_parameters(self):
        return super().connection_parameters | self._place
    def connect(self, *args, **kwargs):
        self.set_state(ConnectedPrinterState.OPERATIONAL)
    def disconnect(self, *args, **kwargs):
        self.set_state(ConnectedPrinterState.CLOSED)
class Plugin(octoprint.plugin.StartupPlugin):
    pass
__plugin_name__ = "A connector of Moonraker's kind"
__plugin_pythoncompat__ = ">=3,<4"
__plugin_implementation__ = Plugin()
"""


@contextlib.contextmanager
def client_of(server, key=None):
    with contextlib.closing(Client(server.url, lambda: key or server.api_key)) as client:
        yield client


def key_for(server, *permissions):
    """Make an account that may do this and no more, unless it is there; returns a new application key."""
    name = "-".join(["u", *permissions]).lower()
    account = {"name": name, "password": "never used: 1 key", "active": True, "groups": []}
    made = server.rest("POST", "/api/access/users", account | {"permissions": permissions})
    assert made.status_code in (200, 409)  # 409: it is there
    command = {"command": "generate", "app": "portretry-udev", "user": name}
    answer = server.rest("POST", "/api/plugin/appkeys", command)
    answer.raise_for_status()
    return answer.json()["api_key"]


def refusals(server):
    """How many requests it has refused, by its own log of requests."""
    return server.logfile.with_name("tornado.log").read_text().count(" 403 ")


def trouble_of(act):
    with pytest.raises(Trouble) as caught:
        act()
    return caught.value


# -- what it is ---------------------------------------------------------------------------------------------


def test_version_user_and_permissions_are_told(octoprint, octoprint_version):
    """By a few questions, none of which is refused, whatever the key may; serial is nothing to shun."""
    refused = refusals(octoprint)
    with client_of(octoprint) as client:
        assert client.look().aside is None
        about = client.about()
    assert (about.version, about.user, about.missing) == (octoprint_version, "admin", ())
    assert (about.safe_mode, about.rivals, about.autoconnect) == (None, (), False)
    assert about.sayings() == []
    with client_of(octoprint, key_for(octoprint, "STATUS")) as client:
        client.look()
        about = client.about()
    assert (about.version, about.user, about.missing) == (octoprint_version, "u-status", ("CONNECTION",))
    assert "u-status lacks CONNECTION" in "".join(about.sayings())
    assert refusals(octoprint) == refused


def test_safe_mode_is_told(make):
    """With its reason; the third-party plugins that it has switched off are no rivals."""
    server = make({"server": {"startOnceInSafeMode": True}}, {"portretry": RIVAL.format(name="PortRetry")})
    server.start()
    with client_of(server) as client:
        client.look()
        about = client.about()
    assert (about.safe_mode, about.rivals) == ("settings", ())
    assert "safe mode" in "".join(about.sayings())


def test_rivals_are_found_where_the_key_may_look(make):
    """By their settings or in the list of plugins; none that is disabled; nothing that may not be asked."""
    names = {"portretry": "PortRetry", "portretryplus": "PortRetryPlus", "autoconnectplus": "AutoConnectPlus"}
    idle = {"autoconnectplus": {"enabled": False}, "_disabled": [*OFFLINE, "portretryplus"]}
    server = make(
        {"plugins": idle | {"pluginmanager": PLUGIN_MANAGER}},
        {identifier: RIVAL.format(name=name) for identifier, name in names.items()},
    )
    server.start()
    refused = refusals(server)
    listed = ("PortRetry", "AutoConnectPlus")  # that AutoConnectPlus is idle, only its settings tell
    for permission, rivals in {
        "SETTINGS_READ": ("PortRetry",),
        "PLUGIN_PLUGINMANAGER_LIST": listed,
        "CONNECTION": (),
    }.items():
        with client_of(server, key_for(server, "STATUS", permission)) as client:
            client.look()
            assert client.about().rivals == rivals
    assert refusals(server) == refused


def test_an_octoprint_that_nobody_has_set_up_is_told(make):
    """Instead of blaming the key; once it is set up, a wrong key is to blame again."""
    server = make({"server": {"firstRun": True}})
    accounts = server.basedir / "users.yaml"
    accounts.rename(accounts.with_suffix(".later"))
    server.start(wait=None)

    def up():
        with contextlib.suppress(requests.RequestException):
            return server.rest("GET", "/api/currentuser").status_code in (200, 403)  # 403 in 1.10.3
        return False

    assert_eventually(up, UP_IN, server.log_tail)
    with client_of(server) as client:
        trouble = trouble_of(client.look)
        assert trouble.kind is Kind.KEY
        assert "setup wizard" in str(trouble)
        server.stop()
        accounts.with_suffix(".later").rename(accounts)
        server.start()
        assert client.look().octo is Octo.OFFLINE
    with client_of(server, "F" * 32) as client:
        trouble = trouble_of(client.look)
    assert trouble.kind is Kind.KEY
    assert "refuses the API key" in str(trouble)


# -- where its printer is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("octoprint_version", [TWO], indirect=True)
def test_a_preferred_connector_that_is_not_serial(make):
    """A reason to stand back, with its name; nothing is logged for the question."""
    preferred = {"connector": "moonraker", "parameters": {"host": "127.0.0.1", "port": 7125}}
    server = make({"printerConnection": {"preferred": preferred}}, {"moonraker": CONNECTOR})
    server.start()
    with client_of(server) as client:
        answer = client.look()
        assert answer.octo is Octo.OFFLINE
        assert answer.aside == "its preferred connector is Klipper (Moonraker), not serial"
    assert "ERROR" not in server.log_tail(1000)


def traces_of(server):
    """How many requests have left a trace in its log, which is whole only when it has ended."""
    server.stop()
    return server.log_tail(1000).count("Exception on")


@pytest.mark.parametrize("octoprint_version", [TWO], indirect=True)
@pytest.mark.parametrize(("port", "traces"), [(7125, 1), ("7125", 0), (None, 0)], ids=["int", "text", "none"])
def test_a_connection_that_is_not_serial(make, port, traces):
    """Never offline, never on a port of ours; and when it is over, all is as before.

    A port that is a number costs one trace in OctoPrint's log, not one a look.
    """
    server = make(plugins={"moonraker": CONNECTOR})
    server.start()
    command = {"command": "connect", "connector": "moonraker", "parameters": {"host": "h", "port": port}}
    with client_of(server) as client:
        assert client.look().aside is None
        server.rest("POST", "/api/connection?api_version=2.0.0", command).raise_for_status()
        for _ in range(3):
            answer = client.look()
            assert (answer.octo, answer.port) == (Octo.IDLE, None)
            assert answer.aside == "it is connected through Klipper (Moonraker), not over a serial port"
        server.disconnect()
        answer = client.look()
        assert (answer.octo, answer.aside) == (Octo.OFFLINE, None)
    assert traces_of(server) == traces


@pytest.mark.parametrize("octoprint_version", [TWO], indirect=True)
def test_no_preferred_connector_at_all(make):
    """No reason to stand back; its one trace in OctoPrint's log is not repeated at each look."""
    server = make({"printerConnection": {"preferred": {"connector": None, "parameters": None}}})
    server.start()
    with client_of(server) as client:
        assert [client.look().aside for _ in range(3)] == [None] * 3
    assert traces_of(server) == 1


def test_a_failed_open_is_seen_in_its_words(octoprint, node):
    """Stuck for ever on a port that was locked at the wrong moment: said so until it is freed."""
    with Printer(link=node), client_of(octoprint) as client:
        locked = os.open(node, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            fcntl.flock(locked, fcntl.LOCK_EX)
            assert not client.look().opening
            octoprint.connect(str(node))
            assert_eventually(lambda: client.look().opening, AT_ONCE, lambda: f"stuck, but {client.look()}")
            octoprint.disconnect()
            assert_eventually(
                lambda: client.look().octo is Octo.OFFLINE, AT_ONCE, lambda: f"freed, but {client.look()}"
            )
            assert not client.look().opening
        finally:
            os.close(locked)


# -- what may happen to it ----------------------------------------------------------------------------------


def test_a_key_that_is_revoked_while_the_service_runs(scene, tmp_path):
    """Said at the next look, once, and asked rarely; a new key in the file is taken at once."""
    octoprint = scene.octoprint
    key_file = tmp_path / "mine.key"
    key_file.touch(0o600)
    key_file.write_text(key_for(octoprint, "STATUS", "CONNECTION"))
    revoked = {"command": "revoke", "app": "portretry-udev", "user": "u-status-connection"}
    daemon = scene.watch(key_file=key_file)
    scene.connected()
    daemon.expect(" connected: ")
    before = octoprint.answered("403 GET /api/connection")
    octoprint.rest("POST", "/api/plugin/appkeys", revoked).raise_for_status()
    daemon.expect(" unreachable: .*refuses the API key", timeout=3.0)  # its interval is 2 s
    scene.unopened(6.0)
    assert daemon.count(" unreachable: ") == 1
    assert octoprint.answered("403 GET /api/connection") - before <= 3
    assert scene.says("Operational"), "the printer itself is none of the key's business"
    key_file.write_text(key_for(octoprint, "STATUS", "CONNECTION"))
    daemon.expect(" connected: ", timeout=5.0)


@pytest.mark.parametrize("octoprint_version", ["1.11.8"], indirect=True)
def test_an_upgrade(make, tmp_path):
    """Down, then 2.0 on the same port, with 1.11's settings: a line each way, and connected again."""
    node = tmp_path / "ttyFAKE1"
    server = make()
    server.start()
    with Printer(link=node, boot_delay=0.5) as printer:
        flags = ["--octoprint", server.url, "--api-key-file", server.key_file, "--port", node]
        daemon = Daemon(*flags, "--interval", "2", "--state-dir", tmp_path / "state", "-v")
        with daemon:
            daemon.expect(" connected: ")
            server.stop()
            daemon.expect(" unreachable: ")
            server.version = TWO
            server.start()
            daemon.expect(" connected: ", timeout=20.0)
            assert daemon.count(" connected: ") == 2
            assert daemon.count(" unreachable: ") <= 3, "down and starting are worth a line each"
            assert server.state()[1] == "Operational"
            with client_of(server) as client:
                client.look()
                assert client.about().version == TWO
            assert_eventually(lambda: len(port.holders(printer.link).found) == 1, AT_ONCE, "not handed over")
            daemon.stop(within=AT_ONCE)
