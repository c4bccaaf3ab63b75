"""The whole line on one machine, without root: a simulated printer, a minimal OctoPrint and a real Watcher.

Each `Bench` has a folder of nodes, a key file and a state folder of its own, so that several of them are
several printers.
"""

import contextlib
import logging
import subprocess
import sys
import threading
from pathlib import Path

from helpers import STOPS_WITHIN, assert_eventually
from portretry_udev.config import Printer as Configured
from portretry_udev.devices import Devices
from portretry_udev.fake_octoprint import FakeOctoPrint, Timeouts
from portretry_udev.keys import KeySource
from portretry_udev.memory import Memory
from portretry_udev.octoprint import Client
from portretry_udev.simulator import Printer
from portretry_udev.watcher import Watcher

KEY = "Zq3-k7x_TheKeyOfTheTests_0123456789"
INTERVAL = 0.2  # seconds; a person may configure 0.5 at least, but a test has no time for that
IMPATIENT = Timeouts(hello=0.8, connect=1.2, detect=0.1, poll=0.1, silence=0.8)
SOON = 2.0  # seconds; what follows from an event comes far sooner, but the machine may be busy

OPENS_IT = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
print(time.monotonic(), flush=True)
sys.stdin.read()
"""


class Bench:
    """A printer and an OctoPrint; neither is started by itself.

    Args:
        folder: where all its files go.
        name: the printer's.
        octoprint: settings of the minimal OctoPrint.
        printer: settings of the simulated printer; it is on, and says its temperature all the time.
    """

    def __init__(self, folder, name="mk3", *, octoprint=None, **printer):
        self.name = name
        self.nodes = folder / name
        self.nodes.mkdir()
        self.link = self.nodes / "ttyTEST0"
        self.state_dir = folder / "state"
        self.key_file = folder / f"{name}.key"
        self.write_key(KEY)
        self.printer = Printer(link=self.link, **{"boot_delay": 0.1, "autoreport": 0.05} | printer)
        options = {
            "port_preference": str(self.link),
            "ports": [f"{self.nodes}/tty*"],
            "timeouts": IMPATIENT,
        } | (octoprint or {})
        self.octoprint = options.pop("kind", FakeOctoPrint)(api_key=KEY, **options)
        self.octoprint.start().stop()  # it has an address from now on

    def write_key(self, key):
        self.key_file.touch(0o600)
        self.key_file.write_text(key)

    def __enter__(self):
        """Start both."""
        self.octoprint.start()
        self.printer.start()
        return self

    def __exit__(self, *_):
        self.printer.close()
        self.octoprint.stop()

    def configured(self, **settings):
        given = {"octoprint": self.octoprint.url, "port": str(self.link), "interval": INTERVAL} | settings
        return Configured(self.name, key=KeySource.from_file(self.key_file), **given)

    def watch(self, *, devices=None, client=None, memory=None, push=None, dry_run=False, **settings):
        """A Watcher of this printer, to be used with `with`."""
        configured = self.configured(**settings)
        return Watching(
            configured,
            devices or Devices(),  # not started: no uevent tells of a pty
            client or Client(configured.octoprint, configured.key.read),
            memory or Memory(self.state_dir, self.name),
            push=push,
            dry_run=dry_run,
        )

    def operational(self):
        return self.octoprint.job_state == "Operational"

    def expect_operational(self, within=SOON):
        return assert_eventually(
            self.operational, within, lambda: f"OctoPrint says {self.octoprint.job_state!r}"
        )


class Watching:
    """A Watcher at work in a thread of its own; an error that ends it is raised at the end of the `with`."""

    def __init__(self, configured, devices, client, memory, **options):
        self.watcher = Watcher(configured, devices, client, memory, **options)
        self._devices, self._client = devices, client
        self._error = None
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def _run(self):
        try:
            self.watcher.run()
        except BaseException as error:  # noqa: BLE001 - it is raised where the test can see it
            self._error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            self._devices.close()
            self._client.close()
        if self._error is not None:
            raise self._error

    def stop(self):
        """End it: within a second, whatever it is doing."""
        self.watcher.stop()
        self._thread.join(STOPS_WITHIN)
        assert not self._thread.is_alive(), f"the watcher did not stop within {STOPS_WITHIN:g} s"

    def ends_with_error(self, within=SOON):
        """The error that ends it, which then is none of the test's."""
        self._thread.join(within)
        assert not self._thread.is_alive(), "the watcher goes on"
        error, self._error = self._error, None
        return error

    # -- what can be seen --------------------------------------------------------------------------------

    @property
    def state(self):
        return self.watcher.snapshot.state

    @property
    def why(self):
        return self.watcher.snapshot.why

    @property
    def listening(self):
        """Whether it has the port open."""
        return self.watcher.snapshot.holding

    def expect(self, state, within=SOON):
        return assert_eventually(
            lambda: self.state == state, within, lambda: f"{state}; it is {self.state}: {self.why}"
        )

    def expect_listening(self, within=SOON):
        return assert_eventually(
            lambda: self.listening, within, lambda: f"listening; it is {self.state}: {self.why}"
        )


class Log(logging.Handler):
    """All that was logged by our package, whatever `logs.set_up` did to it before."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.records = []

    def emit(self, record):
        self.records.append((record.levelno, record.getMessage()))

    def lines(self, least=logging.INFO):
        return [text for level, text in list(self.records) if level >= least]

    def states(self):
        """The first word of each line about a change."""
        return [line.partition(":")[0] for line in self.lines()]

    def count(self, part):
        return sum(part in line for line in self.lines())


@contextlib.contextmanager
def logged():
    """What our package logs meanwhile, down to DEBUG."""
    logger = logging.getLogger("portretry_udev")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    log = Log()
    logger.handlers[:], logger.propagate = [log], False
    logger.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def descriptors(node):
    """How many descriptors of this process lead to a node."""
    found = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own has gone
            found += str(entry.readlink()).removesuffix(" (deleted)") == str(node)
    return found


@contextlib.contextmanager
def someone_else(link):
    """Another process that has the port open meanwhile; gives the time (monotonic seconds) of its open."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", OPENS_IT, str(link)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:  # ends it by closing its stdin
        yield float(process.stdout.readline())
