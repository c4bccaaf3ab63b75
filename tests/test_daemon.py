"""All printers in one process: they do not disturb each other, and the process ends as it should."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from bench import INTERVAL, SOON, Bench, logged
from helpers import STOPS_WITHIN, Daemon, assert_eventually, assert_stays
from portretry_udev import daemon
from portretry_udev.config import Config
from portretry_udev.devices import Devices, Missing, Uevent

# A service in which something breaks that nobody has thought of.
BREAKS = """
import sys
from portretry_udev import cli, devices
def find(self, wanted):
    raise ZeroDivisionError("nobody has thought of this")
devices.Devices.find = find
cli.main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def log():
    with logged() as log:
        yield log


# A service in which the kernel interrupts another thread than the one that handles signals.
INTERRUPTS_ANOTHER = """
import signal, sys, threading
from portretry_udev import cli, watcher
def open_(self, effect):
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    return watcher.events.OpenFailed(watcher.events.Refusal.UNKNOWN, "the port is not of interest here")
watcher.Watcher._open = open_
cli.main(sys.argv[1:])
"""


class FakeDevices(Devices):
    """Finds as the real one; its uevents come from the test."""

    def __init__(self):
        super().__init__(udev=NoUdev())
        self.looks = []  # every path that was looked for
        self.queue = []
        self._readable = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def say(self, *uevents):
        self.queue += uevents
        os.eventfd_write(self._readable, 1)

    def fileno(self):
        return self._readable

    def read(self):
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._readable)
        uevents, self.queue = self.queue, []
        return uevents

    def find(self, wanted):
        self.looks.append(wanted.path)
        return super().find(wanted)

    def close(self):
        super().close()
        os.close(self._readable)


class NoUdev:
    """libudev on a machine without devices; its monitors are lost as often as the test wants."""

    def __init__(self, lost=0):
        self.lost = lost
        self.monitors = 0

    def monitor(self):
        self.monitors += 1
        return NoMonitor(lost=self.monitors <= self.lost)

    def by_number(self, _number):
        return None

    def ttys(self):
        return []


class NoMonitor:
    """Nothing is ever heard; one that is lost raises for ever, as after an overrun."""

    def __init__(self, *, lost):
        self._lost = lost
        self._fd = os.eventfd(int(lost), os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self):
        os.close(self._fd)

    def fileno(self):
        return self._fd

    def poll(self, _timeout):
        if self._lost:
            raise OSError(105, "No buffer space available")


class Running:
    """A Daemon in a thread."""

    def __init__(self, *printers, folder, devices=None):
        self.daemon = daemon.Daemon(
            Config(printers, folder / "state", folder / "control.sock"), devices=devices or Devices(NoUdev())
        )
        self.error = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.daemon.run()
        except BaseException as error:  # noqa: BLE001 - it is raised where the test can see it
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.daemon.stop()
        self.join()
        if self.error is not None:
            raise self.error

    def join(self, within=STOPS_WITHIN):
        self._thread.join(within)
        assert not self._thread.is_alive(), f"the daemon did not end within {within:g} s"

    def state(self, number):
        return self.daemon.watchers[number].snapshot.state


@pytest.fixture
def silence():
    """An address where somebody accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody():
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


# -- several printers ------------------------------------------------------------------------------------


def test_printers_do_not_disturb_each_other(tmp_path, nobody, silence):
    """One OctoPrint is down, one hangs: the two other printers are operational as soon as ever."""
    with (
        Bench(tmp_path, "one") as one,
        Bench(tmp_path, "two") as two,
        Bench(tmp_path, "down") as down,
        Bench(tmp_path, "hangs") as hangs,
    ):
        configured = (
            down.configured(octoprint=nobody),
            hangs.configured(octoprint=silence),
            one.configured(),
            two.configured(),
        )
        with Running(*configured, folder=tmp_path) as running:
            one.expect_operational()
            two.expect_operational()
            one.printer.unplug()
            assert_eventually(lambda: running.state(2) == "absent", SOON, "noticed")
            assert_stays(two.operational, INTERVAL, "the neighbour's connection was disturbed")
            one.printer.plug()
            one.expect_operational()
            assert running.state(0) == "unreachable"
            assert (down.printer.stats().opens, hangs.printer.stats().opens) == (0, 0)
        assert (one.octoprint.connects, two.octoprint.connects) == (2, 1), two.octoprint.history


def test_uevents_reach_every_watcher(tmp_path):
    """Each looks for its printer, if the uevent is about it, or if events were lost."""
    devices = FakeDevices()
    quiet = {"interval": 60.0, "start": "wait"}
    with Bench(tmp_path, "one") as one, Bench(tmp_path, "two") as two:
        configured = (one.configured(**quiet), two.configured(**quiet))
        with Running(*configured, folder=tmp_path, devices=devices) as running:
            for watcher in running.daemon.watchers:
                assert_eventually(lambda it=watcher: it.snapshot.holding, SOON, "listening")

            def looked_for(*uevents):
                devices.looks.clear()
                devices.say(*uevents)
                return lambda: set(devices.looks)

            both = {str(one.link), str(two.link)}
            found = looked_for(Uevent("lost"))
            assert_eventually(lambda: found() == both, SOON, found)
            found = looked_for(Uevent("change", str(two.link)))
            assert_eventually(lambda: found() == {str(two.link)}, SOON, found)


def test_a_lost_monitor_is_replaced_and_everything_looked_at(tmp_path):
    """An overrun raises for ever: a new monitor is made, and what was missed is found by a look."""
    udev = NoUdev(lost=1)
    found = []

    class Counting(Devices):
        def find(self, wanted):
            found.append(wanted)
            return Missing("it is not there")

    bench = Bench(tmp_path)
    configured = bench.configured(interval=60.0)
    with Running(configured, folder=tmp_path, devices=Counting(udev)):
        # At the start, before OctoPrint is asked, and because of the loss.
        assert_eventually(lambda: len(found) >= 3, SOON, lambda: f"{len(found)} looks")
        assert udev.monitors == 2


def test_no_device_events_are_told(tmp_path, log):
    """In a container nothing is ever heard of udev: that is said, once, and the interval does the work."""
    with Bench(tmp_path) as bench:
        (tmp_path / "root").mkdir()
        devices = Devices(NoUdev(), root=str(tmp_path / "root"))
        with Running(bench.configured(), folder=tmp_path, devices=devices):
            bench.expect_operational()
    assert log.count("no device events here") == 1


def test_an_unforeseen_error_in_one_watcher_ends_all(tmp_path):
    """A deaf service that seems alive is worse than one that is started anew: `run` raises the error."""

    class Broken(Devices):
        def find(self, wanted):
            if "two" in wanted.path:
                raise ZeroDivisionError("find")
            return super().find(wanted)

    with Bench(tmp_path, "one") as one, Bench(tmp_path, "two") as two:
        running = Running(one.configured(), two.configured(), folder=tmp_path, devices=Broken(NoUdev()))
        with pytest.raises(ZeroDivisionError), running:
            running.join(SOON)


# -- the process -----------------------------------------------------------------------------------------


def arguments(bench, **more):
    given = {
        "octoprint": bench.octoprint.url,
        "api-key-file": bench.key_file,
        "port": bench.link,
        "interval": 0.5,
        "state-dir": bench.state_dir,
        "control": bench.nodes / "control.sock",
    } | more
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def program(text, bench, **more):
    """Run a program that starts the service in its own way, to its end."""
    command = [sys.executable, "-c", text, "watch", *map(str, arguments(bench, **more))]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)


def is_down(bench, service):
    bench.octoprint.stop()
    service.expect("unreachable")


def hangs(bench, service):
    service.expect("listening")
    bench.octoprint.delay = 5.0
    asked = len(bench.octoprint.requests)
    assert_eventually(lambda: len(bench.octoprint.requests) > asked, SOON, "OctoPrint was asked")


def listens(bench, service):
    service.expect("listening")
    assert bench.printer.wait_for(lambda s: s.holders == 1, SOON)


def is_connected(bench, service):
    bench.printer.power_on()
    service.expect("connected")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("situation", [is_down, hangs, listens, is_connected])
def test_a_signal_ends_it_within_a_second(tmp_path, how, situation):
    """Whatever it is waiting for: status 0, no trace, and the port is free."""
    with Bench(tmp_path, powered=False) as bench, Daemon(*arguments(bench)) as service:
        situation(bench, service)
        service.stop(how)
        assert "Traceback" not in service.log()
        ours = 1 if situation is is_connected else 0  # OctoPrint's
        assert bench.printer.wait_for(lambda s: s.holders == ours, SOON)


def test_a_signal_that_another_thread_gets_ends_it_too(tmp_path):
    """The kernel may interrupt any thread, Python handles it in the main one: that one must not sleep on."""
    with Bench(tmp_path) as bench:
        ended = program(INTERRUPTS_ANOTHER, bench, interval=60.0)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_a_signal_while_it_is_connected_leaves_octoprint_alone(tmp_path):
    """The end of the service is no Disconnect."""
    with Bench(tmp_path) as bench, Daemon(*arguments(bench)) as service:
        service.expect("connected")
        service.stop()
        assert_stays(bench.operational, INTERVAL, "OctoPrint lost the printer")


def test_an_unforeseen_error_ends_the_process_with_a_trace(tmp_path):
    """Status 70 (EX_SOFTWARE), so that systemd starts it anew, and a trace to be reported."""
    ended = program(BREAKS, Bench(tmp_path))
    assert ended.returncode == 70
    assert "Traceback" in ended.stderr
    assert "ZeroDivisionError: nobody has thought of this" in ended.stderr
    assert ended.stdout == ""
