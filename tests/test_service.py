"""The service as systemd sees it: when it is ready, how things stand, and whether it is alive."""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from bench import KEY, SOON, logged
from helpers import Daemon, assert_eventually, assert_stays
from portretry_udev import control
from portretry_udev import daemon as daemons
from portretry_udev.config import Config, Printer
from portretry_udev.devices import Missing, Uevent
from portretry_udev.events import Pause
from portretry_udev.keys import KeySource
from portretry_udev.notify import Notifier
from service_manager import Systemd
from test_daemon import FakeDevices

WITHIN = 0.8  # seconds that systemd waits for a sign of life; in the unit it is 2 min
ALIVE = "WATCHDOG=1"
NOBODY = "http://127.0.0.1:9"  # where no OctoPrint answers


class Hanging(FakeDevices):
    """Devices of which one loop gets no answer meanwhile, as from a driver that hangs."""

    def __init__(self):
        super().__init__()
        self.hanging = None
        self.rounds = 0  # of the monitor's loop
        self.caught = threading.Event()  # that loop has asked
        self._going_on = threading.Event()

    @contextlib.contextmanager
    def hang(self, loop):
        self.hanging = loop
        try:
            yield
        finally:
            self.hanging = None
            self._going_on.set()

    def _answer(self, loop):
        if loop == self.hanging:
            self.caught.set()
            self._going_on.wait()

    def find(self, wanted):
        self._answer("mini" if wanted.path == "/dev/mini" else "mk3")
        return Missing("it is not there")

    def read(self):
        self.rounds += 1
        self._answer("monitor")
        return super().read()

    @property
    def events(self):
        self._answer(threading.current_thread().name)  # the control socket's thread asks it for each status
        return "udev"


@pytest.fixture(autouse=True)
def log():
    with logged() as log:
        yield log


@pytest.fixture
def systemd(tmp_path):
    with Systemd(str(tmp_path / "notify")) as ours:
        yield ours


@pytest.fixture
def service(tmp_path):
    """Runs a service for these printers, none of which is there; its socket is ``control.sock``."""
    with contextlib.ExitStack() as ended:

        def run(*names, notifier, devices=None):
            key = KeySource.from_environment(KEY)
            printers = tuple(
                Printer(name, NOBODY, key, port=f"/dev/{name}", interval=0.2, push=False) for name in names
            )
            config = Config(printers, tmp_path / "state", tmp_path / "control.sock")
            service = daemons.Daemon(config, devices=devices or Hanging(), notifier=notifier)
            thread = threading.Thread(target=service.run, daemon=True)
            ended.callback(thread.join, SOON)
            ended.callback(service.stop)
            thread.start()
            return service

        yield run


def ask_status(tmp_path):
    with contextlib.suppress(control.ControlError):
        control.ask(tmp_path / "control.sock", "status")


def test_it_is_ready_when_it_watches_and_says_how_things_stand(service, systemd):
    """READY comes when every watcher has begun; a line of status at each change; STOPPING at the end."""
    running = service("mk3", "mini", notifier=Notifier(systemd.address))
    assert systemd.hear() == "READY=1"
    assert all(watch.thread.is_alive() for watch in running._watches)
    systemd.hear_until("STATUS=2 printers: all unreachable")
    running.watchers[0].post(Pause(math.inf))
    systemd.hear_until("STATUS=2 printers: 1 paused, 1 unreachable")
    running.stop()
    assert systemd.hear() == "STOPPING=1"


def test_one_printer_needs_no_numbers(service, systemd):
    """With one printer the line says its state."""
    service("mk3", notifier=Notifier(systemd.address))
    systemd.hear_until("STATUS=1 printer: unreachable")


def test_it_says_that_it_lives(service, systemd):
    """While all is well, systemd hears so more often than it must."""
    service("mk3", "mini", notifier=Notifier(systemd.address, WITHIN))
    systemd.hear_until(ALIVE)
    began = time.monotonic()
    for _ in range(6):
        systemd.hear_until(ALIVE)
    assert (time.monotonic() - began) / 6 < WITHIN / 2


@pytest.mark.parametrize("loop", ["mini", "monitor", "control"])
def test_a_loop_that_hangs_is_not_called_alive(tmp_path, service, systemd, loop):
    """Whichever loop it is, and though all others come round: systemd hears nothing until it goes on."""
    devices = Hanging()
    service("mk3", "mini", notifier=Notifier(systemd.address, WITHIN), devices=devices)
    systemd.hear_until(ALIVE)
    with devices.hang(loop):
        devices.say(Uevent("change", "/dev/mini"))
        asking = threading.Thread(target=ask_status, args=(tmp_path,))
        asking.start()
        assert devices.caught.wait(SOON), f"{loop} asks nothing"
        assert systemd.count_until_silence(ALIVE, 2 * WITHIN) <= 2
    systemd.hear_until(ALIVE)
    asking.join(SOON)


def test_a_printer_that_hangs_for_a_while_is_not_the_end(service, systemd, log):
    """A driver keeps a watcher for a quarter of the time, as 30 s of 2 min: systemd never waits too long."""
    devices = Hanging()
    service("mk3", "mini", notifier=Notifier(systemd.address, WITHIN), devices=devices)
    systemd.hear_until(ALIVE)
    before = time.monotonic()
    with devices.hang("mini"):
        assert devices.caught.wait(SOON)
        threading.Event().wait(WITHIN / 4)  # which is how long the driver takes
    systemd.hear_until(ALIVE)
    systemd.hear_until(ALIVE)
    assert time.monotonic() - before < 2 * WITHIN
    assert log.count("does not come round") == 0


def test_without_systemd_nobody_is_woken(service):
    """Not under systemd there is nothing to tell, and no loop comes round for it."""
    devices = Hanging()
    running = service("mk3", notifier=Notifier(), devices=devices)
    assert_eventually(lambda: running.watchers[0].snapshot.state == "unreachable", SOON, "it looks")
    rounds = devices.rounds
    running.watchers[0].post(Pause(math.inf))
    assert_eventually(lambda: running.watchers[0].snapshot.paused, SOON, "it obeys")
    assert_stays(lambda: devices.rounds == rounds, 0.3, "the monitor's loop has come round")
    assert running.watchers[0].pulse._asked == running._server.pulse._asked == 0


# -- the process -------------------------------------------------------------------------------------------
@pytest.fixture
def process(tmp_path, systemd):
    """``portretry-udev watch`` as systemd starts it."""
    key, config = tmp_path / "mk3.key", tmp_path / "config.toml"
    key.touch(0o600)
    key.write_text(KEY)
    config.write_text(
        f'state_dir = "{tmp_path}/state"\ncontrol = "{tmp_path}/control.sock"\n'
        f'[printers.mk3]\noctoprint = "{NOBODY}"\napi_key_file = "{key}"\nport = "{tmp_path}/ttyTEST"\n'
    )
    environment = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": f"{WITHIN * 1e6:.0f}"}
    with Daemon("--config", config, env=environment) as daemon:
        yield daemon


def test_a_reload_is_framed(process, systemd, tmp_path):
    """SIGHUP: it says that it reloads, and that it is ready again, also after a mistake; and it lives."""
    systemd.hear_until("READY=1")
    process.expect("absent|unreachable")
    for mistake in ("", "intervall = 5\n"):
        config = tmp_path / "config.toml"
        config.write_text(mistake + config.read_text())
        process.send(signal.SIGHUP)
        systemd.hear_until(r"RELOADING=1\nMONOTONIC_USEC=\d+")
        process.expect("configuration (was not )?read again")
        systemd.hear_until("READY=1")
    systemd.hear_until(ALIVE)
    process.stop()
    systemd.hear_until("STOPPING=1")


def test_whom_systemd_ends_for_hanging_says_where(process, systemd):
    """SIGABRT is the watchdog's: each thread says where it is, and no key is in what they say."""
    systemd.hear_until("READY=1")
    process.expect("absent|unreachable")
    process.send(signal.SIGABRT)
    process.expect("Fatal Python error: Aborted")
    process.expect(r"watcher\.py.* in _once")
    process.expect(r"daemon\.py.* in _listen")
    assert_eventually(lambda: not process.running(), SOON, process.log)
    assert process.end() == -signal.SIGABRT
    assert not re.search(re.escape(KEY), process.log())


def test_a_wrong_configuration_is_an_error_in_the_journal(tmp_path):
    """Each line has its priority, and not our name: the journal puts that in front of it."""
    config = tmp_path / "config.toml"
    config.write_text("printers = 5\n")
    with (tmp_path / "journal").open("w+") as journal:
        found = os.fstat(journal.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        command = [sys.executable, "-m", "portretry_udev", "watch", "--config", str(config)]
        ended = subprocess.run(command, stderr=journal, env=environment, check=False, timeout=30)
        journal.seek(0)
        lines = journal.read().splitlines()
    assert ended.returncode == os.EX_CONFIG
    assert len(lines) >= 2
    assert all(re.match(r"<3>(?!portretry-udev: )", line) for line in lines), lines
