"""All printers in one process: none disturbs another, and the process ends as it should.

A new configuration disturbs only those printers that it changes.
"""

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import portretry_udev
from bench import INTERVAL, SOON, Bench, logged
from helpers import STOPS_WITHIN, Daemon, assert_eventually, assert_stays
from portretry_udev import control, daemon, rules, watcher
from portretry_udev.config import Config, Wrong
from portretry_udev.devices import Devices, Missing, Uevent
from portretry_udev.octoprint_config import OctoPrintSettings

pytestmark = pytest.mark.alone

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


# One that reads its configuration again because another thread was interrupted, and ends with that.
INTERRUPTED_BY_SIGHUP = """
import signal, sys, threading
from portretry_udev import cli, daemon, watcher
def open_(self, effect):
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
    return watcher.events.OpenFailed(watcher.events.Refusal.UNKNOWN, "the port is not of interest here")
watcher.Watcher._open = open_
daemon.Daemon._take_over = lambda self, config: self.stop()
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

    def monitor(self, _source):
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
        self.config = Config(printers, folder / "state", folder / "control.sock")
        self.daemon = daemon.Daemon(self.config, devices=devices or Devices(NoUdev()), again=self._again)
        self.error = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.daemon.run()
        except BaseException as error:  # noqa: BLE001 - it is raised where the test can see it
            self.error = error

    def _again(self):
        if isinstance(self.config, Wrong):
            raise self.config
        return self.config

    def reads(self, *printers):
        """As SIGHUP does it; there are no signals for this thread."""
        self.config = replace(self.config, printers=printers)
        self.daemon.read_again()

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

    def holds(self, number):
        return self.daemon.watchers[number].snapshot.holding

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
        (tmp_path / "root/proc/self").mkdir(parents=True)
        (tmp_path / "root/proc/self/uid_map").write_text("0 100000 65536\n")  # the host's root is nobody here
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


class Dripping:
    """Accepts everybody, and answers one byte at a time, without an end."""

    def __init__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.asked = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._server.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._server.close()

    def _accept(self):
        with contextlib.suppress(OSError):  # shut down: the end
            while True:
                sock, _ = self._server.accept()
                self._threads.append(threading.Thread(target=self._drip, args=(sock,), daemon=True))
                self._threads[-1].start()

    def _drip(self, sock):
        with sock, contextlib.suppress(OSError):  # they hung up
            sock.recv(4096)
            self.asked += 1
            sock.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self._ended.wait(0.2):
                sock.sendall(b"z")


@contextlib.contextmanager
def flapping(bench):
    """Its cable is plugged and pulled 20 times a second; gives the number of times so far, in a list."""
    ended, times = threading.Event(), [0]

    def flap():
        while not ended.wait(0.025):
            bench.printer.unplug()
            ended.wait(0.025)
            bench.printer.plug()
            times[0] += 1

    thread = threading.Thread(target=flap, daemon=True)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()


def test_a_dripping_octoprint_and_a_flapping_cable_harm_nobody_else(tmp_path):
    """One OctoPrint's answers never end, one cable has a loose contact: the third printer does not notice."""
    with (
        Dripping() as slow,
        Bench(tmp_path, "drips") as drips,
        Bench(tmp_path, "flaps") as flaps,
        Bench(tmp_path, "good", powered=False) as good,
    ):
        configured = (drips.configured(octoprint=slow.url), flaps.configured(), good.configured())
        with Running(*configured, folder=tmp_path) as running, flapping(flaps) as times:
            assert_eventually(lambda: slow.asked and times[0] > 10, SOON, "nothing drips or flaps")
            for _ in range(3):
                assert_eventually(lambda: running.holds(2), SOON, "it listens")
                good.printer.power_on()
                good.expect_operational()
                good.printer.power_off()
                assert_eventually(lambda: not good.operational(), 2 * SOON, "OctoPrint notices")
            assert drips.printer.stats().opens == 0  # its OctoPrint's state is not known: hands off
            assert times[0] > 40
        # The daemon has ended within its second, in the middle of a drop.


def test_the_flapping_printer_itself_comes_back(tmp_path, monkeypatch):
    """When the contact holds again, it is connected, and its node was let go of each time."""
    # OctoPrint may have been at its open when the cable went, and is freed then: here it takes no 5 s.
    monkeypatch.setattr(rules, "WEDGED_AFTER", 0.3)
    monkeypatch.setattr(watcher.whereabouts, "seen", lambda _peer: True)
    with Bench(tmp_path) as bench, Running(bench.configured(), folder=tmp_path) as running:
        with flapping(bench) as times:
            assert_eventually(lambda: times[0] > 20, SOON, "it flaps")
        bench.expect_operational(3 * SOON)
        assert_eventually(lambda: running.state(0) == "connected", SOON, "it is told")


def test_two_printers_at_one_octoprint(tmp_path):
    """It has one connection: the one that has it keeps it, the other waits, and comes when it is free."""
    with Bench(tmp_path, "one") as one, Bench(tmp_path, "two", powered=False) as two:
        one.octoprint.ports.append(f"{two.nodes}/tty*")
        configured = (one.configured(), two.configured(octoprint=one.octoprint.url))
        two.write_key(one.key_file.read_text())
        with Running(*configured, folder=tmp_path) as running:
            one.expect_operational()
            assert_eventually(lambda: not running.holds(1), SOON, "made way")
            opens = two.printer.stats().opens
            two.printer.power_on()
            assert_stays(one.operational, 4 * INTERVAL, "the other one's connection was taken")
            assert (one.octoprint.connects, two.printer.stats().opens) == (1, opens)
            one.printer.unplug()
            assert_eventually(lambda: two.printer.stats().holders == 1, SOON, "the other one is looked at")
            one.expect_operational(2 * SOON)
            assert one.octoprint.connects == 2
            one.printer.plug()
            assert_stays(one.operational, 4 * INTERVAL, "it was taken back")
            assert one.octoprint.connects == 2


# -- another configuration -------------------------------------------------------------------------------


def read_again(log):
    assert_eventually(lambda: log.count("configuration read again"), 2 * SOON, lambda: "\n".join(log.lines()))


def test_who_is_unchanged_is_not_touched(tmp_path, log):
    """One is changed, one added, one removed; the fourth keeps its watcher, its open port and its silence."""
    with contextlib.ExitStack() as stack:
        same, changed, added, removed = (
            stack.enter_context(Bench(tmp_path, name, powered=False))
            for name in ("same", "changed", "added", "removed")
        )
        before = (same.configured(), changed.configured(), removed.configured())
        with Running(*before, folder=tmp_path) as running:
            for bench in (same, changed, removed):
                assert bench.printer.wait_for(lambda s: s.holders == 1, SOON)
            untouched, *others = running.daemon.watchers
            running.reads(added.configured(), changed.configured(interval=0.3), same.configured())
            read_again(log)
            assert log.count(": added added, changed changed, same unchanged, removed removed") == 1
            assert [watcher.name for watcher in running.daemon.watchers] == ["added", "changed", "same"]
            assert running.daemon.watchers[2] is untouched
            assert removed.printer.wait_for(lambda s: s.holders == 0, SOON)
            assert added.printer.wait_for(lambda s: s.holders == 1, SOON)
            assert changed.printer.wait_for(lambda s: (s.holders, s.closes) == (1, 1), SOON)
            assert same.printer.stats().opens == 1
            assert same.printer.stats().closes == 0
            assert all(watcher not in running.daemon.watchers for watcher in others)
            for bench in (same, changed, added, removed):
                bench.printer.power_on()
            for bench in (same, changed, added):
                bench.expect_operational()
            assert_stays(lambda: not removed.octoprint.connects, INTERVAL, "the removed one was connected")


def test_who_follows_octoprints_own_settings_is_unchanged_by_them(tmp_path, log):
    """OctoPrint rewrites its config.yaml: that is followed anyway, and is no reason to begin anew."""
    bench = Bench(tmp_path, powered=False)
    before, after = (
        bench.configured(octoprint_settings=OctoPrintSettings(baudrate=baudrate))
        for baudrate in (None, 250000)
    )
    with bench, Running(before, folder=tmp_path) as running:
        (watcher,) = running.daemon.watchers
        running.reads(after)
        read_again(log)
        assert running.daemon.watchers == [watcher]
    assert log.count("mk3 unchanged") == 1


def test_uevents_reach_who_was_added(tmp_path, log):
    """From its beginning, as everybody else."""
    devices = FakeDevices()
    quiet = {"interval": 60.0, "start": "wait"}
    with (
        Bench(tmp_path, "one") as one,
        Bench(tmp_path, "two") as two,
        Running(one.configured(**quiet), folder=tmp_path, devices=devices) as running,
    ):
        running.reads(one.configured(**quiet), two.configured(**quiet))
        read_again(log)
        assert_eventually(lambda: running.holds(1), SOON, "listening")
        devices.looks.clear()
        devices.say(Uevent("change", str(two.link)))
        assert_eventually(lambda: devices.looks == [str(two.link)], SOON, lambda: devices.looks)


def test_a_hold_outlives_a_change(tmp_path, log):
    """What a person has disconnected stays so, until the printer returns, also with other settings."""
    with Bench(tmp_path) as bench, Running(bench.configured(), folder=tmp_path) as running:
        bench.expect_operational()
        assert_eventually(lambda: running.state(0) == "connected", SOON, "noticed")
        bench.octoprint.person_disconnects()
        assert_eventually(lambda: running.state(0) == "held", SOON, "held")
        running.reads(bench.configured(interval=0.3))
        read_again(log)
        assert_eventually(lambda: running.state(0) == "held", SOON, "held again")
        assert_stays(lambda: running.state(0) == "held", 4 * 0.3, "the hold is forgotten")
        assert bench.octoprint.connects == 1
        bench.printer.unplug()
        assert_eventually(lambda: running.state(0) == "absent", SOON, "noticed")
        bench.printer.plug()
        bench.expect_operational()


def test_a_pause_outlives_a_change(tmp_path, log):
    """A person's word holds for the printer, not for its settings."""
    bench = Bench(tmp_path, powered=False)
    with bench, Running(bench.configured(), folder=tmp_path) as running:
        assert_eventually(lambda: running.holds(0), SOON, "it listens")
        control.ask(tmp_path / "control.sock", "pause", printer="mk3")
        running.reads(bench.configured(interval=0.3))
        read_again(log)
        assert_eventually(lambda: running.state(0) == "paused", SOON, "paused again")
        bench.printer.power_on()
        assert_stays(lambda: not bench.octoprint.connects, 2 * INTERVAL, "it was connected")
        control.ask(tmp_path / "control.sock", "resume", printer="mk3")
        bench.expect_operational()


def test_the_socket_knows_who_is_there_now(tmp_path, log):
    """Status and commands are for the printers of the new configuration."""
    path = tmp_path / "control.sock"
    with (
        Bench(tmp_path, "one") as one,
        Bench(tmp_path, "two") as two,
        Running(one.configured(), folder=tmp_path) as running,
    ):
        running.reads(two.configured())
        read_again(log)
        assert list(control.ask(path, "status")["printers"]) == ["two"]
        assert control.ask(path, "pause", printer="two")["pending"] == []
        with pytest.raises(control.ControlError, match="no printer is named one; there are: two"):
            control.ask(path, "retry", printer="one")


class Stuck(FakeDevices):
    """A look for the node of `one` does not end while that is so."""

    def __init__(self):
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.waits = threading.Event()

    def find(self, wanted):
        if "one" in wanted.path and not self.free.is_set():
            self.waits.set()
            assert self.free.wait(30.0)
        return super().find(wanted)


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """`one` is renamed, so that its port is to be another's, and does not end; `two` is as before."""
    monkeypatch.setattr(daemon, "_LATE", 0.1)
    devices = Stuck()
    with (
        Bench(tmp_path, "one", powered=False) as one,
        Bench(tmp_path, "two", powered=False) as two,
        Running(one.configured(), two.configured(), folder=tmp_path, devices=devices) as running,
    ):
        assert_eventually(lambda: running.holds(0) and running.holds(1), SOON, "listening")
        devices.free.clear()
        assert devices.waits.wait(SOON)
        running.reads(replace(one.configured(), name="new"), two.configured())
        try:
            yield running, one, two
        finally:
            devices.free.set()


def test_nobody_begins_before_the_port_is_free(stuck, log):
    """Two readers at one port steal each other's bytes: one waits, which is told; others are as ever."""
    running, one, two = stuck
    assert_eventually(lambda: log.count("one does not end") == 1, SOON, "told")
    two.printer.power_on()
    two.expect_operational()
    assert [watcher.name for watcher in running.daemon.watchers] == ["one", "two"]
    assert one.printer.stats().opens == 1
    running.daemon._devices.free.set()
    read_again(log)
    assert log.count("new added, two unchanged, one removed") == 1
    one.printer.power_on()
    one.expect_operational()


def test_the_end_does_not_wait_for_who_does_not_end(stuck, log):
    """A stop in the middle of a change ends the service within its second, and nobody begins after it."""
    running, _, _ = stuck
    assert_eventually(lambda: log.count("one does not end") == 1, SOON, "told")
    running.daemon.stop()
    running.join()
    running.daemon._devices.free.set()
    assert_stays(lambda: not log.count("configuration read again"), INTERVAL, "it was read again")
    assert [watcher.name for watcher in running.daemon.watchers] == ["one", "two"]


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


def test_sighup_that_another_thread_gets_is_heard(tmp_path):
    """As that of every other signal."""
    with Bench(tmp_path) as bench:
        ended = program(INTERRUPTED_BY_SIGHUP, bench, interval=60.0)
    assert (ended.returncode, ended.stdout) == (0, "")


class Written:
    """A configuration file, and a service that runs with it."""

    def __init__(self, folder, *benches):
        self.file = folder / "config.toml"
        self._top = f'state_dir = "{folder}/state"\ncontrol = "{folder}/control.sock"\ninterval = 0.5\n'
        self.write(*map(self.table, benches))
        self.service = Daemon("--config", self.file)

    def table(self, bench, more=""):
        return (
            f'[printers.{bench.name}]\noctoprint = "{bench.octoprint.url}"\n'
            f'api_key_file = "{bench.key_file}"\nport = "{bench.link}"\n{more}\n'
        )

    def write(self, *tables, top=""):
        self.file.write_text(top + self._top + "".join(tables))

    def hang_up(self):
        self.service._process.send_signal(signal.SIGHUP)


def test_sighup(tmp_path):
    """The whole of it, with a file: an unchanged printer has not a line in the log and not an open more."""
    with (
        Bench(tmp_path, "mk3", powered=False) as mk3,
        Bench(tmp_path, "ender") as ender,
        Bench(tmp_path, "voron") as voron,
    ):
        written = Written(tmp_path, mk3, ender)
        with written.service as service:
            service.expect("ender: connected")
            assert mk3.printer.wait_for(lambda s: s.holders == 1, SOON)
            lines = service.count("mk3")
            written.write(*map(written.table, (mk3, ender, voron), ["", "interval = 1.0", ""]))
            written.hang_up()
            service.expect("configuration read again: mk3 unchanged, ender changed, voron added$")
            service.expect("voron: connected")
            assert service.count("mk3") == lines + 1
            assert mk3.printer.stats().opens == 1
            assert ender.operational()
            written.write(written.table(voron))
            written.hang_up()
            service.expect("configuration read again: voron unchanged, mk3 removed, ender removed")
            assert mk3.printer.wait_for(lambda s: s.holders == 0, SOON)
            assert ender.operational()  # that it is not watched any more is no Disconnect
            service.stop()


def test_a_wrong_configuration_changes_nothing(tmp_path):
    """Each mistake is told with its place; the old configuration stays and works until it is right."""
    with Bench(tmp_path, "mk3", powered=False) as mk3, Bench(tmp_path, "ender") as ender:
        written = Written(tmp_path, mk3)
        with written.service as service:
            service.expect("mk3: listening")
            opens = mk3.printer.stats().opens
            written.write(written.table(mk3, "baudrate = 1200"), written.table(ender, "prot = 1"))
            written.hang_up()
            service.expect("config.toml: printers.mk3.baudrate: 1200 baud is refused")
            service.expect("config.toml: printers.ender.prot: there is no such setting; did you mean port")
            service.expect("the old one stays")
            written.file.unlink()
            written.hang_up()
            service.expect("config.toml: cannot be read: No such file or directory")
            service.expect("the old one stays")
            assert mk3.printer.stats().opens == opens
            assert ender.printer.stats().opens == 0
            mk3.printer.power_on()
            service.expect("mk3: connected")
            written.write(written.table(mk3), written.table(ender))
            written.hang_up()
            service.expect("configuration read again: mk3 unchanged, ender added")
            service.expect("ender: connected")
            service.stop()


def test_what_takes_a_restart_is_told(tmp_path):
    """Another folder, socket or file is not taken over in flight, and all else is."""
    with Bench(tmp_path, powered=False) as bench:
        written = Written(tmp_path, bench)
        with written.service as service:
            service.expect("mk3: listening")
            text = written.file.read_text()
            moved = text.replace("/state", "/elsewhere").replace("control.sock", "c.sock")
            written.file.write_text(f'metrics_textfile = "{tmp_path}/m.prom"\n{moved}')
            written.hang_up()
            service.expect("state_dir has changed: that takes a restart")
            service.expect("control has changed: that takes a restart")
            service.expect("metrics_textfile has changed: that takes a restart")
            service.expect("configuration read again: mk3 unchanged")
            assert list(control.ask(tmp_path / "control.sock", "status")["printers"]) == ["mk3"]
            service.stop()


def test_a_row_of_signals_is_answered(tmp_path):
    """However many come at once: it is read at least once after the last, and nothing is lost or doubled."""
    with Bench(tmp_path, "mk3", powered=False) as mk3, Bench(tmp_path, "ender", powered=False) as ender:
        written = Written(tmp_path, mk3)
        with written.service as service:
            service.expect("mk3: listening")
            for number in range(20):
                written.write(*map(written.table, (mk3, ender)[: 1 + number % 2]))
                written.hang_up()
            written.write(written.table(mk3), written.table(ender))
            written.hang_up()
            opened = ender.printer.wait_for(lambda s: s.holders == 1, 2 * SOON)
            assert opened, service.log()
            assert mk3.printer.stats().opens == 1
            service.stop()


def test_sighup_does_not_make_it_busy(tmp_path):
    """The wake-up that it comes with is taken in, or the service would run in circles from then on."""
    with Bench(tmp_path, powered=False) as bench:
        written = Written(tmp_path, bench)
        with written.service as service:
            service.expect("mk3: listening")
            written.hang_up()
            service.expect("configuration read again: mk3 unchanged")
            times = Path(f"/proc/{service._process.pid}/stat")

            def worked():
                fields = times.read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc_pid_stat(5)

            before = worked()
            assert_stays(service.running, 1.0, "it has ended")
            assert worked() - before < 0.5, "it works without a pause"
            service.stop()


@pytest.mark.parametrize("before", [[], ["nohup"]])
def test_it_ends_with_its_terminal(tmp_path, before):
    """Typed into a terminal that is then closed, it lets go of the port; with nohup(1) it goes on."""
    with Bench(tmp_path, powered=False) as bench:
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(tmp_path)  # where nohup writes its file
            os.environ["PYTHONPATH"] = str(Path(portretry_udev.__file__).parents[1])
            command = [*before, sys.executable, "-m", "portretry_udev", "watch", *arguments(bench)]
            os.execvp(command[0], list(map(str, command)))
        try:
            assert bench.printer.wait_for(lambda s: s.holders == 1, 5 * SOON)
            os.close(terminal)
            ended = [0, None]

            def is_over():
                ended[:] = os.waitpid(child, os.WNOHANG)
                return ended[0] == child

            if before:
                assert_stays(lambda: not is_over(), STOPS_WITHIN, "it has ended")
                os.kill(child, signal.SIGTERM)
            assert_eventually(is_over, STOPS_WITHIN, "it goes on")
            assert os.waitstatus_to_exitcode(ended[1]) == 0
            assert bench.printer.wait_for(lambda s: s.holders == 0, SOON)
        finally:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


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
