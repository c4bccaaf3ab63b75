"""What the stories with real OctoPrints share: a server, a printer, the service; and a scene of all three."""

import contextlib
import itertools
import sys

import pytest
import requests

from helpers import Daemon, assert_eventually, assert_stays
from portretry_udev.real_octoprint import VERSIONS, RealOctoPrint
from portretry_udev.simulator import Printer

OFFLINE = ("Offline", "Offline after error")  # /api/job's words, in all three versions

AT_ONCE = (
    10.0  # seconds: the printer's boot, a banner or a poke, OctoPrint's handshake; slack for a busy machine
)
GIVES_UP = 8.0  # seconds in which OctoPrint must have noticed a silent printer: 4.0 measured, and slack
SEVERAL_LOOKS = 7.0  # seconds; the service of a scene looks every 2 s


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
def server(octoprint_version, ports, node, tmp_path_factory):
    """One OctoPrint a version, as starting it takes seconds; stories take it through ``octoprint``."""
    basedir = tmp_path_factory.mktemp(f"octoprint-{octoprint_version}")
    server = RealOctoPrint(octoprint_version, basedir, [str(ports / "tty*")], str(node), say=tell)
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def octoprint(server, ports):
    """A real OctoPrint that is up, offline, and sees no port; what a story has done to it is undone.

    What stays is its memory of an error: "Offline after error" until the next connect.
    """
    if not server.up():
        server.kill()
        server.start()
    for left_over in ports.iterdir():
        left_over.unlink()
    server.disconnect()
    assert_eventually(lambda: server.state()[1] in OFFLINE, AT_ONCE, lambda: f"offline, but {server.state()}")
    yield server
    tell(f"the end of {server}'s log:\n{server.log_tail(60)}")


@pytest.fixture
def watch(octoprint, node, tmp_path):
    """Start the service: ``watch()``, with more flags, or with other than the usual values."""
    count = itertools.count(1)
    with contextlib.ExitStack() as stack:

        def start(*more, key_file=octoprint.key_file, port=node):
            usual = ["--octoprint", octoprint.url, "--api-key-file", key_file, "--port", port]
            usual += ["--interval", "2", "--state-dir", tmp_path / "state", "-v"]
            daemon = Daemon(*usual, *more)
            title = f"service {next(count)}: watch {' '.join(daemon.arguments)}"
            stack.callback(daemon.end)
            stack.callback(lambda: tell(f"{title}\n{daemon.log()}"))
            daemon.start()
            stack.callback(lambda: daemon.stop() if daemon.status is None else None)
            return daemon

        yield start


@pytest.fixture
def scene(octoprint, node, watch, request):
    """A printer that has been running for long, its OctoPrint, and the service yet to be started.

    Options of the printer are given as an indirect parameter.
    """
    with Printer(link=node, boot_delay=0.5, **getattr(request, "param", {})) as printer:
        yield Scene(octoprint, printer, watch)


class Scene:
    """What the stories say, in their words."""

    def __init__(self, octoprint, printer, watch):
        self.octoprint = octoprint
        self.printer = printer
        self.watch = watch
        self._attempts = octoprint.attempts()

    def new_attempts(self):
        """Attempts to connect, by anybody, since the scene began or since this was asked last."""
        before, self._attempts = self._attempts, self.octoprint.attempts()
        return self._attempts - before

    def says(self, *words):
        """Whether OctoPrint's word on the printer is one of these; no answer is no such word."""
        try:
            return self.octoprint.state()[1] in words
        except requests.RequestException:
            return False

    def connected(self, timeout=AT_ONCE):
        """Wait until OctoPrint is operational and, the port handed over, alone with it."""
        assert_eventually(lambda: self.says("Operational"), timeout, lambda: f"operational, but {self}")
        assert self.printer.wait_for(lambda stats: stats.holders == 1, AT_ONCE), f"not handed over: {self}"

    def watched(self):
        """Start the service on a printer that it will connect."""
        daemon = self.watch()
        self.connected()
        daemon.expect(" connected: ")
        self.new_attempts()
        return daemon

    def lost(self):
        """Switch the printer off in place, and wait until OctoPrint has given it up."""
        self.printer.power_off()
        assert_eventually(lambda: self.says("Offline after error"), GIVES_UP, lambda: f"given up, but {self}")

    def disconnected(self, daemon):
        """Disconnect as a person does, and wait until the service has understood."""
        self.octoprint.disconnect()
        daemon.expect(" held: ")
        assert self.says("Offline")
        assert self.printer.stats().state == "ready"

    def left_alone(self, seconds=SEVERAL_LOOKS):
        """See that nobody connects for that long."""
        assert_stays(
            lambda: self.octoprint.attempts() == self._attempts, seconds, lambda: f"left alone, but {self}"
        )

    def unopened(self, seconds=SEVERAL_LOOKS):
        """See that nobody opens the port for that long."""
        opens = self.printer.stats().opens
        assert_stays(lambda: self.printer.stats().opens == opens, seconds, lambda: f"unopened, but {self}")

    def __str__(self):
        try:
            state = self.octoprint.state()
        except requests.RequestException as error:
            state = error
        return f"{state}, {self.octoprint.attempts() - self._attempts} new attempts, {self.printer.stats()}"
