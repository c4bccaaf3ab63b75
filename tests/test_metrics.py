"""The metrics' file: what it says, when it is written, and that it is in nobody's way."""

import ast
import contextlib
import errno
import logging
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench import Bench
from helpers import Daemon as Service
from helpers import assert_eventually
from portretry_udev import __version__, config, daemon, files, metrics, words
from portretry_udev.config import Config, Wrong
from portretry_udev.control import Snapshot
from portretry_udev.events import Hold
from portretry_udev.tally import BOUNDS, KINDS, Recoveries, Tally
from test_control import NoDevices, said_by

SOON = 5.0  # seconds; all here takes milliseconds, but the machine may be busy
SHOT = Snapshot(
    state="held",
    why="disconnected on purpose",
    port="/dev/serial/by-id/usb-1",
    node="/dev/ttyACM0",
    octoprint="Offline",
    since=1_700_000_000.0,
    next_look=0.0,
    connects=3,
    paused=False,
    holding=False,
    news=None,
    push=True,
    tally=Tally(3, 2, 1, (4, 5, 6), 7, Recoveries((0, 1, 0, 2, *[0] * (len(BOUNDS) - 3)), 4.5, 2.0)),
)


class FakeWatcher:
    def __init__(self, name, shot=SHOT):
        self.name, self.snapshot = name, shot

    def show(self, **changes):
        self.snapshot = replace(self.snapshot, **changes)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Written:
    """A writer with a clock of the test's own, and what it has written."""

    def __init__(self, folder):
        self.path = folder / "portretry.prom"
        self.watcher = FakeWatcher("mk3")
        self.clock = Clock()
        self.events = "udev"
        self.writer = metrics.Writer(
            self.path, [self.watcher], lambda: self.events, clock=self.clock, wall=lambda: 1_600_000_000.0
        )

    def after(self, seconds):
        """Whether a look after so many seconds writes the file."""
        self.clock.now += seconds
        before = self.path.stat().st_ino if self.path.exists() else None
        self.writer.look()
        return self.path.exists() and self.path.stat().st_ino != before

    def read(self):
        return parsed(self.path.read_text())


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path)


def parsed(text):
    """Each sample's value, by its name and its labels' values, the printer first."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, *_labels(sample.labels)): sample.value for sample in samples}
    assert len(found) == len(samples), "a sample that is there twice"
    return found


def _labels(labels):
    return [labels[name] for name in sorted(labels, key=lambda name: (name != "printer", name))]


# -- what it says ------------------------------------------------------------------------------------------
def test_what_it_says():
    """Every number of a printer, by the names that the alerts and the dashboard use."""
    found = parsed(metrics.render([("mk3", SHOT)], "kernel", 1_600_000_000.0).decode())
    assert found["portretry_up",] == 1
    assert found["portretry_info", __version__] == 1
    assert found["portretry_start_time_seconds",] == 1_600_000_000
    sources = {source: found["portretry_device_events", source] for source in ("udev", "kernel", "none")}
    assert sources == {"udev": 0, "kernel": 1, "none": 0}
    states = {state: found["portretry_state", "mk3", state] for state in words.STATES}
    assert states == {state: float(state == "held") for state in words.STATES}
    assert found["portretry_state_since_timestamp_seconds", "mk3"] == 1_700_000_000
    assert found["portretry_push_up", "mk3"] == 1
    assert found["portretry_connects_total", "mk3"] == 3
    assert found["portretry_failed_attempts_total", "mk3"] == 2
    assert found["portretry_short_connections_total", "mk3"] == 1
    holds = {kind: found["portretry_holds_total", "mk3", kind.value] for kind in KINDS}
    assert holds == {Hold.DELIBERATE: 4, Hold.FAULT: 5, Hold.WAIT: 6}
    assert found["portretry_resets_avoided_total", "mk3"] == 7
    assert found["portretry_recovery_seconds_count", "mk3"] == 3
    assert found["portretry_recovery_seconds_sum", "mk3"] == 4.5
    assert found["portretry_last_recovery_seconds", "mk3"] == 2
    buckets = [found["portretry_recovery_seconds_bucket", "mk3", end] for end in [*map(str, BOUNDS), "+Inf"]]
    assert buckets == [0, 1, 1, *[3] * (len(BOUNDS) - 2)]


def test_every_metric_has_its_type_and_its_help():
    """Whoever meets a name in Prometheus can read there what it means."""
    text = metrics.render([("mk3", SHOT), ("ender", SHOT)], "udev", 0.0).decode()
    families = list(text_string_to_metric_families(text))
    assert len(families) == len({family.name for family in families}) == 14
    for family in families:
        assert family.type in ("gauge", "counter", "histogram")
        assert family.documentation.endswith(".")


def test_what_is_not_known_is_left_out():
    """Push that is turned off is not "down", and a recovery that never was took no seconds."""
    shot = replace(SHOT, push=None, tally=Tally())
    names = {key[0] for key in parsed(metrics.render([("mk3", shot)], "udev", 0.0).decode())}
    assert not names & {"portretry_push_up", "portretry_last_recovery_seconds"}
    assert "portretry_connects_total" in names


def test_a_service_that_is_down_tells_of_no_printer():
    """Up is 0, and nothing claims to know more."""
    found = parsed(metrics.render([], None, 5.0).decode())
    assert {key[0] for key in found} == {"portretry_up", "portretry_info", "portretry_start_time_seconds"}
    assert found["portretry_up",] == 0


def test_all_states_are_named():
    """What `words` may say of a printer is what the metrics have a row for."""
    tree = ast.parse(Path(words.__file__).read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Account"
    ]
    states = {
        text.value for call in calls for text in ast.walk(call.args[0]) if isinstance(text, ast.Constant)
    }
    assigned = {"in-use", "absent"}  # Account(state, ...) of a refusal
    assert states | assigned == set(words.STATES)


# -- when it is written ------------------------------------------------------------------------------------
def test_it_is_written_at_once_and_on_news(written):
    """A change is there at the next look; without one the file is left alone."""
    assert written.after(0)
    assert not written.after(1)
    written.watcher.show(state="connected")
    assert written.after(1)
    assert written.read()["portretry_state", "mk3", "connected"] == 1
    assert not written.after(1)
    for change in (
        {"push": False},
        {"since": 1.0},
        {"tally": replace(SHOT.tally, connects=4)},
        {"tally": replace(SHOT.tally, recoveries=Recoveries(last=1.0))},
    ):
        written.watcher.show(**change)
        assert written.after(1), change
    written.events = "none"
    assert written.after(1)


def test_seconds_that_pass_are_no_news(written):
    """Neither the next look, nor words that count seconds, nor a sign of life write to the disk."""
    written.after(0)
    written.watcher.show(why="the next attempt in 3 s", next_look=5.0)
    running = replace(SHOT.tally.recoveries, since=3.0)
    written.watcher.show(tally=replace(SHOT.tally, recoveries=running))
    assert not written.after(1)


def test_it_is_written_each_minute(written):
    """So that its age tells whether the service lives."""
    assert written.after(0)
    assert not written.after(59)
    assert written.after(1)


def test_others_in_their_place(written):
    """A printer that is taken out of the configuration is not told of any more."""
    written.after(0)
    written.writer.replace([FakeWatcher("ender")])
    assert written.after(1)
    printers = {key[1] for key in written.read() if key[0] == "portretry_connects_total"}
    assert printers == {"ender"}


def test_node_exporter_may_read_it(written):
    """Mode 0644 whatever the umask; nothing half written beside it."""
    before = os.umask(0o077)
    try:
        written.after(0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(written.path.stat().st_mode) == 0o644
    assert [each.name for each in written.path.parent.iterdir()] == ["portretry.prom"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.ENOSPC, "No space left on device; tried again"),
        (errno.EROFS, "add ReadWritePaths=, see docs/farms.md"),
        (errno.EACCES, "may the service's user write there?"),
    ],
)
def test_a_disk_that_is_full(written, monkeypatch, caplog, error, said):
    """Said once with its cure, tried again each ten seconds, and said when it is over."""
    tries = []

    def fail(*_args, **_kwargs):
        tries.append(1)
        raise OSError(error, os.strerror(error))

    write = files.write
    monkeypatch.setattr(files, "write", fail)
    with said_by("metrics", caplog), caplog.at_level(logging.INFO, "portretry_udev.metrics"):
        for _ in range(25):
            assert not written.after(1)
            written.watcher.show(since=written.clock.now)
        assert len(tries) == 3
        monkeypatch.setattr(files, "write", write)
        assert written.after(10)
    first, second = caplog.messages
    assert said in first
    assert str(written.path) in first
    assert "written again" in second


def test_a_folder_that_is_gone(tmp_path, caplog):
    """It is node_exporter's, and not made by us."""
    written = Written(tmp_path / "gone")
    with said_by("metrics", caplog):
        assert not written.after(0)
        assert not written.after(10)
        assert not written.path.parent.exists()
        written.path.parent.mkdir()
        assert written.after(10)
    assert [record.levelname for record in caplog.records][:1] == ["WARNING"]
    assert "its folder is not there" in caplog.messages[0]
    assert sum("not written" in message for message in caplog.messages) == 1


def test_at_the_end_it_says_so(written):
    """Whoever looks later is not told old news."""
    thread = threading.Thread(target=written.writer.run)
    thread.start()
    assert_eventually(written.path.exists, SOON, "nothing is written")
    written.writer.stop()
    thread.join(SOON)
    assert not thread.is_alive()
    assert written.read()["portretry_up",] == 0


# -- with the service --------------------------------------------------------------------------------------
def test_without_the_library_the_service_goes_on(tmp_path, monkeypatch, caplog):
    """One warning says what to install; printers matter more than their numbers."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    path = tmp_path / "portretry.prom"
    with running(Config((), tmp_path, tmp_path / "s", path), caplog) as thread:
        cure = "pip install prometheus-client"
        assert_eventually(lambda: cure in caplog.text, SOON, lambda: caplog.messages)
        assert_eventually((tmp_path / "s").exists, SOON, "it does not start")
        assert thread.is_alive()
    assert not path.exists()


def test_the_library_is_loaded_by_who_writes_metrics():
    """No command waits for it on a Raspberry Pi, nor a service without metrics."""
    code = "import sys, portretry_udev.cli; sys.exit('prometheus_client' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(metrics.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_hanging_disk_delays_nobody(tmp_path, monkeypatch, caplog):
    """The service works and ends in time while a write never comes back."""
    hanging, over = threading.Event(), threading.Event()

    def hang(*_args, **_kwargs):
        hanging.set()
        over.wait()

    monkeypatch.setattr(files, "write", hang)
    try:
        with running(Config((), tmp_path, tmp_path / "s", tmp_path / "x.prom"), caplog):
            assert hanging.wait(SOON)
    finally:
        over.set()


@contextlib.contextmanager
def running(what, caplog):
    """A service without printers, which ends within a second."""
    service = daemon.Daemon(what, devices=NoDevices())
    with said_by("daemon", caplog):
        thread = threading.Thread(target=service.run)
        thread.start()
        try:
            yield thread
        finally:
            service.stop()
            thread.join(1.0)
            ended = not thread.is_alive()
    assert ended, "it does not end"


def test_the_whole_way(tmp_path):
    """From a printer that is switched on to a number in a file; at the end the service is down."""
    path = tmp_path / "portretry.prom"
    with Bench(tmp_path, powered=False) as bench:
        service = Service(
            *("--octoprint", bench.octoprint.url, "--api-key-file", bench.key_file, "--port", bench.link),
            *("--interval", "0.5", "--state-dir", bench.state_dir, "--control", tmp_path / "s"),
            *("--metrics-textfile", path),
        )
        with service as watching:
            watching.expect("listening")
            bench.printer.power_on()
            watching.expect("connected")

            def is_connected():
                return path.exists() and parsed(path.read_text())["portretry_state", "printer", "connected"]

            assert_eventually(is_connected, SOON, "it is not told")
            found = parsed(path.read_text())
            assert found["portretry_connects_total", "printer"] == 1
            assert found["portretry_recovery_seconds_count", "printer"] == 1
            assert 0 <= found["portretry_last_recovery_seconds", "printer"] < SOON
            watching.stop()
        assert parsed(path.read_text()).get(("portretry_up",)) == 0
        assert bench.key_file.read_text().strip() not in path.read_text()


@pytest.mark.parametrize("name", ["metrics.txt", ".prom", ".hidden.prom", "prom"])
def test_a_name_that_node_exporter_does_not_read(tmp_path, name):
    """That is a mistake in the configuration: nothing is started."""
    flags = {"octoprint": "http://127.0.0.1:1", "metrics_textfile": str(tmp_path / name)}
    with pytest.raises(Wrong, match=r"--metrics-textfile: must end in \"\.prom\""):
        config.load(flags, {"PORTRETRY_API_KEY": "Zq3-k7x_TheKeyOfTheTests_0123456789"})


def test_where_it_is_configured(tmp_path, monkeypatch):
    """At the top of the file, by a variable, or by a flag, which is a path from here."""
    key = "Zq3-k7x_TheKeyOfTheTests_0123456789"
    file = tmp_path / "config.toml"
    file.write_text('metrics_textfile = "/a/b.prom"\n[printers.x]\noctoprint = "http://127.0.0.1:1"\n')
    environ = {"PORTRETRY_API_KEY": key}
    assert config.load({"config": str(file)}, environ).metrics_textfile == Path("/a/b.prom")
    environ["PORTRETRY_METRICS_TEXTFILE"] = "/c.prom"
    assert config.load({"config": str(file)}, environ).metrics_textfile == Path("/c.prom")
    monkeypatch.chdir(tmp_path)
    flags = {"config": str(file), "metrics_textfile": "d.prom"}
    assert config.load(flags, environ).metrics_textfile == tmp_path / "d.prom"
