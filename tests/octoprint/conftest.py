"""What the stories with real OctoPrints share: a server, a printer, the service; and a scene of all three."""

import contextlib
import itertools
import os
import secrets
import subprocess
import sys

import pytest
import requests

from helpers import Daemon, assert_eventually, assert_stays
from portretry_udev import port
from portretry_udev.real_octoprint import VERSIONS, RealOctoPrint, ensure
from portretry_udev.simulator import Printer

OFFLINE = ("Offline", "Offline after error")  # /api/job's words, in all three versions

AT_ONCE = 20.0  # seconds: starting, the printer's boot, a banner or a poke, OctoPrint's handshake; and slack
GIVES_UP = 8.0  # seconds in which OctoPrint must have noticed a silent printer: 4.0 measured, and slack
SEVERAL_LOOKS = 4.0  # seconds; the service of a scene looks every 2 s
OTHER_USER = 65534  # of whom there is nothing on any machine: Debian's nobody

# "off" is what PSUControl does with "disconnect on power off": a plugin's word, without a request for it.
POWER_SWITCH = """
import octoprint.plugin
class PowerSwitch(octoprint.plugin.SimpleApiPlugin):
    def get_api_commands(self):
        return {"off": [], "log": ["text"]}
    def is_api_protected(self):
        return True
    def on_api_command(self, command, data):
        if command == "off":
            self._printer.disconnect()
        else:
            self._logger.info(data["text"])
__plugin_name__ = "Power switch"
__plugin_pythoncompat__ = ">=3,<4"
__plugin_implementation__ = PowerSwitch()
"""

# Another program on the port, for as long as its stdin is open.  A pty stays exclusive until that is taken
# back; a real port does until its last close.
RIVAL = """
import fcntl, os, sys, termios
port = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
if sys.argv[2] == "flock":
    fcntl.flock(port, fcntl.LOCK_EX)
else:
    fcntl.ioctl(port, termios.TIOCEXCL)
print("has it", flush=True)
sys.stdin.read()
fcntl.ioctl(port, termios.TIOCNXCL)
"""


def tell(text):
    """Say something that pytest shows when the story fails."""
    sys.stdout.write(f"{text}\n")


@pytest.fixture(params=VERSIONS, scope="session")
def octoprint_version(request):
    return request.param


@pytest.fixture(scope="session")
def ports(octoprint_version, tmp_path_factory):
    """The folder whose ``tty*`` OctoPrint offers: what /dev is on a real machine."""
    return tmp_path_factory.mktemp(f"ports-{octoprint_version}")


@pytest.fixture(scope="session")
def node(ports):
    """The printer's node, and OctoPrint's preferred port."""
    return ports / "ttyFAKE1"


@pytest.fixture(scope="session")
def programs(octoprint_version, tmp_path_factory):
    """A folder of OctoPrints that run as on real machines, where the service is root and they are not.

    Not as another user, who could not read root's cache of OctoPrints; but root without any capability is
    refused alike what others own or have for themselves.
    """
    home = ensure(octoprint_version, say=tell).parent
    if os.geteuid() != 0:
        return home.parent
    programs = tmp_path_factory.mktemp(f"programs-{octoprint_version}")
    (programs / octoprint_version / "bin").mkdir(parents=True)
    (programs / octoprint_version / ".complete").touch()
    program = programs / octoprint_version / "bin" / "octoprint"
    program.write_text(
        f'#!/bin/sh\nexec setpriv --bounding-set -all --inh-caps -all -- {home}/bin/octoprint "$@"\n'
    )
    program.chmod(0o700)
    return programs


@pytest.fixture(scope="session")
def server(octoprint_version, programs, ports, node, tmp_path_factory):
    """One OctoPrint a version, as starting it takes seconds; stories take it through ``octoprint``."""
    basedir = tmp_path_factory.mktemp(f"octoprint-{octoprint_version}")
    server = RealOctoPrint(
        octoprint_version, basedir, [str(ports / "tty*")], str(node), cache=programs, say=tell
    )
    (basedir / "plugins").mkdir()
    (basedir / "plugins" / "powerswitch.py").write_text(POWER_SWITCH)
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def octoprint(server, ports):
    """A real OctoPrint that is up, offline, and sees no port; what a story has done to it is undone.

    What stays is its memory of a loss: "Offline after error" until the next connect.
    """
    if not server.up():
        server.kill()
        server.start()
    elif "kill()" in (server.rest("GET", "/api/job").json().get("error") or ""):
        server.restart()  # a story with a fault did not come to its end
    for left_over in ports.iterdir():
        left_over.unlink()
    server.disconnect()
    assert_eventually(lambda: server.state()[1] in OFFLINE, AT_ONCE, lambda: f"offline, but {server.state()}")
    yield server
    tell(f"the end of {server}'s log:\n{server.log_tail(60)}")


@pytest.fixture
def make(octoprint_version, tmp_path):
    """An OctoPrint of a story's own: ``make()``, with more settings, and with plugins, a file each."""
    count = itertools.count(1)
    with contextlib.ExitStack() as stack:

        def make(extra=None, plugins=(), **options):
            basedir = tmp_path / f"octoprint-{next(count)}"
            options.setdefault("preferred", str(tmp_path / "ttyFAKE1"))
            server = RealOctoPrint(octoprint_version, basedir, [f"{tmp_path}/tty*"], extra=extra, **options)
            (basedir / "plugins").mkdir(parents=True)
            for name, text in dict(plugins).items():
                (basedir / "plugins" / f"{name}.py").write_text(text)
            server.prepare()
            stack.callback(server.kill)
            stack.callback(lambda: sys.stdout.write(f"the end of {server}'s log:\n{server.log_tail(60)}\n"))
            return server

        yield make


def stop(daemon):
    """End the service, if it runs, with the patience of systemd: that it takes a second is another story."""
    if daemon.status is None:
        daemon.stop(within=AT_ONCE)


@pytest.fixture
def push(request):
    """Whether the service listens to OctoPrint's push, as it does by default.

    Stories that have to end well both ways take "push" and "polls" as an indirect parameter.
    """
    return getattr(request, "param", "push") == "push"


@pytest.fixture
def control(tmp_path):
    """The service's socket for `portretry-udev retry` and the like."""
    return tmp_path / "control.sock"


@pytest.fixture
def watch(octoprint, node, push, control, tmp_path):
    """Start the service: ``watch()``, with more flags, or with other than the usual values."""
    count = itertools.count(1)
    with contextlib.ExitStack() as stack:

        def start(*more, key_file=octoprint.key_file, port=node):
            usual = ["--octoprint", octoprint.url, "--api-key-file", key_file, "--port", port]
            usual += ["--interval", "2", "--state-dir", tmp_path / "state", "--control", control, "-v"]
            daemon = Daemon(*usual, *more, env={} if push else {"PORTRETRY_PUSH": "false"})
            way = "push" if push else "polls"
            title = f"service {next(count)} ({way}): watch {' '.join(daemon.arguments)}"
            stack.callback(daemon.end)
            stack.callback(lambda: tell(f"{title}\n{daemon.log()}"))
            daemon.start()
            stack.callback(stop, daemon)
            return daemon

        yield start


@pytest.fixture
def scene(octoprint, node, watch, request):
    """A printer that has been running for long, its OctoPrint, and the service yet to be started.

    Options of the printer are given as an indirect parameter.
    """
    options = {"boot_delay": 0.5} | getattr(request, "param", {})
    with Printer(link=node, **options) as printer, contextlib.ExitStack() as stack:
        yield Scene(octoprint, printer, watch, stack)


class Scene:
    """What the stories say, in their words."""

    def __init__(self, octoprint, printer, watch, stack):
        self.octoprint = octoprint
        self.printer = printer
        self.watch = watch
        self._stack = stack
        self._log_is_written()
        self._attempts = octoprint.attempts()

    # -- what is asked of OctoPrint ---------------------------------------------------------------------

    def _log_is_written(self):
        """Wait for OctoPrint's log, which a thread of its own writes: what is asked for now comes last."""
        last = secrets.token_hex(8)
        self._switch("log", text=last)
        log = self.octoprint.logfile
        assert_eventually(lambda: last in log.read_text(errors="replace"), AT_ONCE, "it logs what it is told")

    def _switch(self, command, **data):
        self.octoprint.rest(
            "POST", "/api/plugin/powerswitch", {"command": command, **data}
        ).raise_for_status()

    def new_attempts(self):
        """Attempts to connect, by anybody, since the scene began or since this was asked last."""
        self._log_is_written()
        before, self._attempts = self._attempts, self.octoprint.attempts()
        return self._attempts - before

    def says(self, *words):
        """Whether OctoPrint's word on the printer is one of these; no answer is no such word."""
        try:
            return self.octoprint.state()[1] in words
        except requests.RequestException:
            return False

    def commands(self):
        """Commands that OctoPrint has taken from its clients: connects and disconnects."""
        return self.octoprint.answered("204 POST /api/connection")

    # -- what is done to it -----------------------------------------------------------------------------

    def disconnect(self):
        """Press Disconnect, as the person whose key the service has."""
        self.octoprint.disconnect()

    def disconnect_as_another(self):
        """Press Disconnect, as somebody else with an account."""
        account = {"name": "second", "password": "never used", "active": True, "groups": ["users"]}
        made = self.octoprint.rest("POST", "/api/access/users", account)
        assert made.status_code in (200, 409)  # 409: it is there
        command = {"command": "generate", "app": "a telephone", "user": "second"}
        answer = self.octoprint.rest("POST", "/api/plugin/appkeys", command)
        answer.raise_for_status()
        told = requests.post(
            f"{self.octoprint.url}/api/connection",
            json={"command": "disconnect"},
            headers={"X-Api-Key": answer.json()["api_key"]},
            timeout=AT_ONCE,
        )
        told.raise_for_status()

    def disconnect_by_plugin(self):
        """Have a plugin disconnect it."""
        self._switch("off")

    # -- what is waited for -----------------------------------------------------------------------------

    def connected(self, timeout=AT_ONCE):
        """Wait until OctoPrint is operational and, the port handed over, alone with it."""
        assert_eventually(lambda: self.says("Operational"), timeout, lambda: f"operational, but {self}")
        assert_eventually(lambda: self.holders() == 1, AT_ONCE, lambda: f"handed over, but {self}")

    def holders(self):
        """How many processes have the port open.

        The printer's own count is made of the kernel's notes of opens and closes, and two closes within
        moments may be one note.
        """
        return len(port.holders(self.printer.link).found)

    def watched(self, *more):
        """Start the service on a printer that it will connect."""
        daemon = self.watch(*more)
        self.connected()
        daemon.expect(" connected: ")
        self.new_attempts()
        return daemon

    def lost(self):
        """Switch the printer off in place, and wait until OctoPrint has given it up."""
        self.printer.power_off()
        assert_eventually(lambda: self.says("Offline after error"), GIVES_UP, lambda: f"given up, but {self}")

    def stopped(self, daemon):
        """Stop the service."""
        stop(daemon)

    def disconnected(self, daemon, disconnect=None):
        """Disconnect, as a person does, and wait until the service has understood."""
        (disconnect or self.disconnect)()
        daemon.expect(" held: ")
        assert self.says("Offline")
        assert self.printer.stats().state == "ready"

    def back(self, daemon):
        """See the printer that has just returned connected, by one attempt."""
        self.connected()
        daemon.expect(" connected: ")
        assert self.new_attempts() == 1

    def power_cycled(self, daemon):
        """Switch the printer off and on in place, and see it connected, by one attempt."""
        self.printer.power_off()
        self.printer.power_on()
        self.back(daemon)

    # -- what must not be -------------------------------------------------------------------------------

    def left_alone(self, seconds=SEVERAL_LOOKS):
        """See that nobody connects for that long."""
        assert_stays(
            lambda: self.octoprint.attempts() == self._attempts, seconds, lambda: f"left alone, but {self}"
        )

    def unopened(self, seconds=SEVERAL_LOOKS):
        """See that nobody opens the port for that long."""
        opens = self.printer.stats().opens
        assert_stays(lambda: self.printer.stats().opens == opens, seconds, lambda: f"unopened, but {self}")

    def unspoken_to(self, seconds=SEVERAL_LOOKS):
        """See that nobody connects for that long, nor says a word to the printer."""
        heard = self.printer.stats().bytes_in
        self.left_alone(seconds)
        assert self.printer.stats().bytes_in == heard, "promise 3: while a hold stands, only listen"

    # -- others -----------------------------------------------------------------------------------------

    def rival(self, how):
        """Have another program take the port, ``flock`` or ``exclusive``; returns how to end it."""
        process = subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(self.printer.link), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        def end():
            process.stdin.close()
            assert process.wait(AT_ONCE) == 0
            process.stdout.close()

        self._stack.callback(process.kill)
        assert process.stdout.readline() == b"has it\n"
        return end

    def forbid(self):
        """Have the port belong to somebody else, as it does until udev has given it to its group.

        That is root's word alone: those who are not root have no port that their OctoPrint must not open.
        """
        node = self.printer.link.resolve()
        os.chown(node, OTHER_USER, -1)
        node.chmod(0o600)

    def allow(self):
        """Let all open the port again."""
        self.printer.link.resolve().chmod(0o666)

    def __str__(self):
        try:
            state = self.octoprint.state()
        except requests.RequestException as error:
            state = error
        return f"{state}, {self.octoprint.attempts() - self._attempts} new attempts, {self.printer.stats()}"
