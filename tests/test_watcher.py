"""The whole line, from the node to OctoPrint's "Operational": a real Watcher, told as stories.

Whatever is known here of the rules stands in `test_rules`; here it is seen to arrive at the printer and at
OctoPrint, in time, and to leave both alone otherwise.
"""

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import threading
import time

import pytest

from bench import INTERVAL, KEY, SOON, Bench, descriptors, logged, someone_else
from helpers import assert_eventually, assert_stays
from portretry_udev import events, inotify, rules, watcher
from portretry_udev.about import About
from portretry_udev.devices import Devices, Uevent
from portretry_udev.fake_octoprint import FakeOctoPrint
from portretry_udev.octoprint import Answer, Octo
from portretry_udev.simulator import Printer

AT_ONCE = 0.1  # seconds: "within milliseconds", on a machine that is busy with other things
QUIET = 3 * INTERVAL  # seconds in which several looks happen, and nothing else may
HELLO = b"N0 M110 N0*125\n"  # OctoPrint's first word to a printer


@pytest.fixture
def log():
    with logged() as log:
        yield log


@pytest.fixture
def bench(tmp_path):
    with Bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def dark(tmp_path):
    """A printer that is plugged in but has no power: it is listened to, and never connected."""
    with Bench(tmp_path, powered=False) as bench:
        yield bench


class OddOctoPrint(FakeOctoPrint):
    """One that may say something nobody has heard before."""

    odd = None

    def connection(self):
        answer = super().connection()
        if self.odd:
            answer["current"]["state"] = self.odd
        return answer

    def job(self):
        return super().job() | ({"state": self.odd} if self.odd else {})


class ScriptedOctoPrint:
    """An OctoPrint without a server: says what the test wants it to say, when it wants to."""

    peer = None

    def __init__(self, link, octo=Octo.OFFLINE, **answer):
        self.octo, self.link = octo, link
        self.answer = answer
        self.looks = 0
        self.abouts = 0
        self.disconnects = 0
        self.told = threading.Event()  # to connect
        self.go = threading.Event()  # the answer to that is held back until then

    def look(self):
        self.looks += 1
        answer = Answer(
            self.octo, "Closed", "Offline", None, None, (str(self.link),), None, 115200, restarted=False
        )
        return dataclasses.replace(answer, **self.answer)

    def about(self):
        self.abouts += 1
        return About("1.11.8", "flag", "pi", missing=(), rivals=(), autoconnect=False)

    def disconnect(self):
        self.disconnects += 1
        self.octo, self.answer = Octo.OFFLINE, {}

    def connect(self, *_):
        self.told.set()
        self.go.wait(5)
        self.octo = Octo.IDLE

    def close(self):
        self.go.set()


class ScriptedPush:
    """A push socket without an OctoPrint; given to a watcher as what makes it."""

    def __call__(self, post, say, crash):
        self.post, self.say, self.crash = post, say, crash
        self.calls = []
        return self

    def start(self):
        self.calls.append("start")

    def stop(self):
        self.calls.append("stop")

    def wake(self):
        self.calls.append("wake")


@contextlib.contextmanager
def again_and_again(do):
    """Have something done in a loop by another thread, as fast as it goes."""
    over = threading.Event()
    errors = []

    def loop():
        try:
            while not over.is_set():
                do()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not errors


def disconnect_and_see_it_respected(bench, watching, seconds=QUIET):
    before = bench.octoprint.connects
    bench.octoprint.person_disconnects()
    assert_stays(lambda: bench.octoprint.connects == before, seconds, "the Disconnect was not respected")
    assert watching.state == "held"


# -- the printer comes, OctoPrint comes ----------------------------------------------------------------------


def test_a_printer_that_appears_is_operational_a_moment_after_it_can_answer(tmp_path):
    """Plugged in and switched on, with nobody touching anything; told once, opened by us once."""
    with Bench(tmp_path, plugged=False, powered=False, autoreport=None) as bench, bench.watch() as watching:
        watching.expect("absent")
        bench.printer.plug()
        bench.printer.power_on()
        assert bench.printer.wait_for(lambda s: s.state == "ready", SOON)
        assert bench.expect_operational() < 0.5
        watching.expect("connected")
        assert bench.octoprint.connects == 1
        # Ours, and the two of OctoPrint's parity workaround.
        assert bench.printer.wait_for(lambda s: (s.opens, s.holders) == (3, 1), SOON)


def test_a_firmware_without_a_banner_is_asked(tmp_path, monkeypatch):
    """A board that was on all the time says nothing by itself: after a quiet start it is poked."""
    monkeypatch.setattr(rules, "QUIET_START", 0.5)
    with Bench(tmp_path, autoreport=None) as bench, bench.watch() as watching:
        watching.expect_listening()
        assert bench.expect_operational() > 0.3
        assert bench.printer.received().startswith(b"\nM115\n" + HELLO)


def test_octoprint_starts_later_than_the_printer(tmp_path):
    """Until OctoPrint answers, the port is not even opened; then it has the printer a moment later."""
    bench = Bench(tmp_path)
    with bench.printer, bench.watch() as watching:
        watching.expect("unreachable")
        assert_stays(lambda: bench.printer.stats().opens == 0, QUIET, "opened without a word from OctoPrint")
        with bench.octoprint.start(intermediary=0.5):  # its start-up server says "not yet"
            bench.expect_operational()


def test_octoprint_restarts_under_a_connected_printer(bench, log):
    """After a restart OctoPrint knows nothing: it is told again, and it was nobody's Disconnect."""
    with bench.watch():
        bench.expect_operational()
        bench.octoprint.stop()
        assert_eventually(lambda: log.count("unreachable:"), SOON, "the stop was not noticed")
        bench.octoprint.start()
        bench.expect_operational()
        assert log.count("held:") == 0


def test_unplugged_and_plugged_again(bench):
    """The cable's return is noticed without a uevent, and alone brings the printer back."""
    with bench.watch() as watching:
        bench.expect_operational()
        bench.printer.unplug()
        watching.expect("absent")
        bench.printer.plug()
        bench.expect_operational()
        assert bench.octoprint.connects == 2


def test_switched_off_and_on_in_place(bench):
    """While it is dark nothing is tried; OctoPrint has it back when its banner is heard."""
    with bench.watch() as watching:
        bench.expect_operational()
        bench.printer.power_off()
        assert_eventually(lambda: not bench.operational(), SOON, "OctoPrint noticed")
        watching.expect_listening()
        assert_stays(lambda: bench.octoprint.connects == 1, QUIET, "told to connect in the dark")
        bench.printer.power_on()
        bench.expect_operational()


# -- the port: milliseconds ----------------------------------------------------------------------------------


def test_a_hung_up_port_is_closed_at_once_while_octoprint_takes_its_time(dark, tmp_path):
    """A held descriptor would make the next node ttyUSB1: it goes within 100 ms, whatever OctoPrint does."""
    stable = tmp_path / "by-id"  # this one stays: only the hang-up tells
    stable.symlink_to(dark.link)
    with dark.watch(port=str(stable)) as watching:
        watching.expect_listening()
        node = dark.link.resolve()
        assert descriptors(node) == 1
        dark.octoprint.delay = 5.0
        asked = len(dark.octoprint.requests)
        assert_eventually(lambda: len(dark.octoprint.requests) > asked, SOON, "OctoPrint was asked")
        dark.printer.unplug()
        assert_eventually(lambda: descriptors(node) == 0, AT_ONCE, "the port is still open")
        watching.expect("absent")


def test_way_is_made_at_once_for_another_process(dark, monkeypatch):
    """Closed within 100 ms of its open, not opened while it has the port, and listened to again after it."""
    monkeypatch.setattr(rules, "AFTER_OTHER", 0.3)
    with dark.watch() as watching:
        watching.expect_listening()
        node = dark.link.resolve()
        with someone_else(dark.link) as opened_at:
            assert_eventually(lambda: descriptors(node) == 0, SOON, "the port is still open")
            assert time.monotonic() - opened_at < AT_ONCE
            watching.expect("in-use")
            assert_stays(
                lambda: descriptors(node) == 0, rules.AFTER_OTHER + INTERVAL, "opened under its hands"
            )
            assert dark.printer.stats().holders == 1
        watching.expect_listening()


def test_way_is_made_where_inotify_sees_nothing(dark, monkeypatch):
    """One who came by another inode of the device, as in a container, is found in /proc by the next look."""
    monkeypatch.setattr(watcher.Watcher, "_watch_node", lambda *_: None)
    with dark.watch() as watching:
        watching.expect_listening()
        node = dark.link.resolve()
        with someone_else(dark.link):
            watching.expect("in-use")
            assert descriptors(node) == 0


def test_way_is_made_after_a_replug_too(dark):
    """A pty that returns under the same number and inode (Klipper's) is watched anew."""
    with dark.watch() as watching:
        for _ in range(3):
            watching.expect_listening()
            dark.printer.unplug()
            watching.expect("absent")
            dark.printer.plug()
        watching.expect_listening()
        node = dark.link.resolve()
        with someone_else(dark.link):
            assert_eventually(lambda: descriptors(node) == 0, AT_ONCE, "the port is still open")


def test_a_person_connects_while_we_listen(tmp_path, monkeypatch):
    """Two readers steal each other's bytes, and OctoPrint dies of it: in 20 rounds not once."""
    monkeypatch.setattr(rules, "AFTER_OTHER", 0.05)  # or each round would take a second
    monkeypatch.setattr(watcher, "_HINT_PERIOD", 0.02)
    with Bench(tmp_path, autoreport=0.005) as bench, bench.watch(interval=0.1, start="wait") as watching:
        for _ in range(20):
            watching.expect_listening()
            bench.octoprint.person_connects()
            bench.expect_operational()
            watching.expect("connected")
            bench.octoprint.person_disconnects()
        assert bench.octoprint.connects == 0
        ends = {words for _, words in bench.octoprint.history} - {"Operational"}
        assert "Offline after error" not in ends


def test_after_the_decision_not_one_byte_is_read(dark):
    """What the printer says from then on is OctoPrint's, all of it; the port is held until it has it."""
    octoprint = ScriptedOctoPrint(dark.link)
    with dark.watch(client=octoprint) as watching:
        watching.expect_listening()
        dark.printer.say(b"start\n")
        assert octoprint.told.wait(SOON)
        said = b"".join(b"echo: line %d\n" % number for number in range(200))
        theirs = os.open(dark.link.resolve(), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            heard = bytearray()

            def all_heard():
                with contextlib.suppress(BlockingIOError):
                    heard.extend(os.read(theirs, 65536))
                return len(heard) >= len(said)

            dark.printer.say(said)
            assert_eventually(all_heard, SOON, lambda: f"{len(heard)} of {len(said)} bytes")
            assert bytes(heard) == said
            assert watching.listening, "our end keeps DTR up"
            octoprint.go.set()
            assert_eventually(lambda: not watching.listening, SOON, "our end is still open")
        finally:
            os.close(theirs)


def test_the_port_is_held_until_octoprint_has_it_though_the_printer_talks(bench):
    """Bytes that come together with the decision are no hang-up: a second edge would reset the board."""
    octoprint = ScriptedOctoPrint(bench.link)
    chatter = again_and_again(lambda: bench.printer.say(b"T:20.0 /0.0\n" * 20))
    with chatter, bench.watch(client=octoprint) as watching:
        assert octoprint.told.wait(SOON)
        assert_stays(lambda: watching.listening, QUIET, "our end was closed before OctoPrint had the port")
        assert bench.printer.stats().opens == 1


def test_bytes_that_are_left_to_octoprint_keep_nobody_busy(dark, monkeypatch):
    """What is not read stays readable; the wait must not return for it again and again."""
    rounds = []
    once = watcher.Watcher._once
    monkeypatch.setattr(watcher.Watcher, "_once", lambda self: (rounds.append(1), once(self)))
    octoprint = ScriptedOctoPrint(dark.link)
    with dark.watch(client=octoprint) as watching:
        watching.expect_listening()
        dark.printer.say(b"start\n")
        assert octoprint.told.wait(SOON)
        dark.printer.say(b"echo: nobody reads this\n")
        before = len(rounds)
        assert_stays(lambda: len(rounds) - before < 20, INTERVAL, lambda: f"{len(rounds) - before} rounds")


# -- which port ------------------------------------------------------------------------------------------


def test_octoprints_preference_is_followed(tmp_path, log):
    """AUTO: nothing, said once with what to do.  A port: that one.  Another one: that, without a restart."""
    with Bench(tmp_path, octoprint={"port_preference": None}) as bench:
        other = bench.nodes / "ttyTEST1"
        with Printer(link=other, autoreport=0.05) as second, bench.watch(port=None) as watching:
            watching.expect("unconfigured")
            assert "AUTO" in watching.why
            assert_stays(lambda: bench.printer.stats().opens == 0, QUIET, "opened a port nobody named")
            bench.octoprint.port_preference = str(bench.link)
            bench.expect_operational()
            bench.printer.power_off()
            assert_eventually(lambda: not bench.operational(), SOON, "OctoPrint noticed")
            assert second.stats().opens == 0
            bench.octoprint.port_preference = str(other)
            bench.expect_operational()
            assert bench.octoprint.connection()["current"]["port"] == str(other)
    assert log.count("AUTO") == 1


def test_octoprints_config_yaml_is_followed(tmp_path, log):
    """AUTO there: nothing, said once.  A port written there later: that one, without a restart."""
    settings = tmp_path / "config.yaml"
    settings.write_text("serial:\n  port: AUTO\n")
    with (
        Bench(tmp_path, octoprint={"port_preference": None}) as bench,
        bench.watch(port=None, octoprint_config=settings) as watching,
    ):
        watching.expect("unconfigured")
        assert_stays(lambda: bench.printer.stats().opens == 0, QUIET, "opened a port nobody named")
        settings.write_text(f"serial:\n  port: {bench.link}\n  baudrate: 250000\n")
        bench.expect_operational()
        assert bench.printer.stats().baud == 250000
    assert log.count("AUTO") == 1


def test_a_broken_config_yaml_is_told_and_the_last_good_one_stands_in(bench, tmp_path, log):
    """It is being written, or a person erred: the port known from it is watched on; said once."""
    settings = tmp_path / "config.yaml"
    settings.write_text(f"serial:\n  port: {bench.link}\n")
    with bench.watch(port=None, octoprint_config=settings):
        bench.expect_operational()
        settings.write_text("serial:\n  port: [\n")
        assert_eventually(lambda: log.count("config.yaml"), SOON, "said that it is broken")
        bench.printer.unplug()
        bench.printer.plug()
        bench.expect_operational()
    assert log.count("config.yaml") == 1


def test_a_port_that_octoprint_does_not_offer(tmp_path, log):
    """Nothing is opened; the line to add to OctoPrint's settings is told, once; once added, it connects."""
    with Bench(tmp_path, octoprint={"ports": []}) as bench, bench.watch() as watching:
        watching.expect("unconfigured")
        assert_stays(lambda: bench.printer.stats().opens == 0, QUIET, "opened")
        assert log.count("Additional serial ports") == 1
        assert f"add the line {bench.link} " in watching.why
        bench.octoprint.ports.append(str(bench.link))
        bench.expect_operational()


def test_a_link_to_what_octoprint_offers(bench, tmp_path):
    """Configured by a stable name, connected by the name that OctoPrint knows."""
    stable = tmp_path / "by-id"
    stable.symlink_to(bench.link)
    with bench.watch(port=str(stable)):
        bench.expect_operational()
        assert bench.octoprint.connection()["current"]["port"] == str(bench.link)


def test_what_octoprint_offers_is_the_node_itself(tmp_path):
    """Configured by a link, offered by its real name: the same device."""
    with Bench(tmp_path) as bench:
        bench.octoprint.ports = [str(bench.link.resolve())]
        with bench.watch():
            bench.expect_operational()
            assert bench.octoprint.connection()["current"]["port"] == str(bench.link.resolve())


def test_octoprints_own_name_for_the_port(bench):
    """``octoprint_port`` is the name it is told, whatever else it offers (in Docker names differ)."""
    named = bench.nodes / "ttyZ"
    named.symlink_to(bench.link)
    with bench.watch(octoprint_port=str(named)):
        bench.expect_operational()
        assert bench.octoprint.connection()["current"]["port"] == str(named)


def test_octoprint_is_connected_to_another_printer(tmp_path, log):
    """It is not ours: told once, and not a finger is lifted."""
    with Bench(tmp_path) as bench:
        other = bench.nodes / "ttyTEST1"
        bench.octoprint.port_preference = str(other)
        with Printer(link=other, autoreport=0.05):
            bench.octoprint.person_connects()
            bench.expect_operational()
            with bench.watch() as watching:
                watching.expect("connected")
                assert str(other) in watching.why
                assert_stays(lambda: bench.printer.stats().opens == 0, QUIET, "opened")
    assert log.count(str(other)) == 1


# -- a person's word -------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["1.11", "2.0"])
def test_a_disconnect_is_respected_until_the_printer_returns(tmp_path, style):
    """Not one attempt and not one byte, though the printer is on and talks; its power cycle ends it."""
    with Bench(tmp_path, octoprint={"style": style}) as bench, bench.watch() as watching:
        bench.expect_operational()
        watching.expect("connected")
        bench.octoprint.person_disconnects()
        sent = bench.printer.stats().bytes_in
        disconnect_and_see_it_respected(bench, watching)
        assert bench.printer.stats().bytes_in == sent
        bench.printer.power_off()
        bench.printer.power_on()
        bench.expect_operational()


@pytest.mark.parametrize("style", ["1.11", "2.0"])
def test_a_disconnect_right_after_operational_is_respected(tmp_path, style, monkeypatch):
    """10 ms later, before anybody has asked again: still somebody's word."""
    monkeypatch.setattr(rules, "DEBOUNCE", 0.5)  # over well before the end of this story
    with Bench(tmp_path, octoprint={"style": style}) as bench, bench.watch() as watching:
        assert bench.octoprint.wait_for(lambda it: it.job_state == "Operational", SOON)
        assert not bench.octoprint.wait_for(lambda it: it.job_state != "Operational", 0.01)
        disconnect_and_see_it_respected(bench, watching, rules.DEBOUNCE + INTERVAL)


def test_a_hold_survives_a_restart_of_the_service(bench):
    """A new Watcher finds it in the state folder; the printer's return ends it there too."""
    with bench.watch() as watching:
        bench.expect_operational()
        watching.expect("connected")
        bench.octoprint.person_disconnects()
        watching.expect("held")
    with bench.watch() as watching:
        watching.expect("held")
        assert_stays(lambda: bench.octoprint.connects == 1, QUIET, "the hold was forgotten")
        watching.expect_listening()
        bench.printer.power_off()
        bench.printer.power_on()
        bench.expect_operational()
    bench.octoprint.stop()
    bench.octoprint.start()
    with bench.watch():
        bench.expect_operational()


def test_a_state_folder_that_cannot_be_written_is_said_once(bench, log):
    """Watching goes on; only the memory of a hold is lost, and that is told."""
    bench.state_dir.symlink_to(bench.state_dir.parent / "gone" / "away")  # no mkdir goes through this
    with bench.watch() as watching:
        for _ in range(2):
            bench.expect_operational()
            watching.expect("connected")
            bench.octoprint.person_disconnects()
            watching.expect("held")
            watching.watcher.post(events.Retry())
        bench.expect_operational()
    assert log.count("will not survive a restart") == 1


@pytest.mark.parametrize(("code", "times"), [(errno.ENOSPC, 1), (errno.ENOENT, 0)])
def test_a_node_that_cannot_be_watched_is_told_once_unless_it_has_just_gone(
    bench, log, monkeypatch, code, times
):
    """Without notes of others on the port it goes on; one that was pulled meanwhile is only absent."""

    def add(watch, path, mask):
        if mask == watcher._NODE_MASK:
            raise OSError(code, os.strerror(code))
        return real(watch, path, mask)

    real = inotify.Part.add
    monkeypatch.setattr(inotify.Part, "add", add)
    with bench.watch() as watching:
        bench.expect_operational()
        watching.expect("connected")
    assert log.count("cannot watch") == times


def test_reconnect_always_overrules_a_disconnect(bench):
    """PortRetry's plain behaviour, for those who want it."""
    with bench.watch(reconnect="always") as watching:
        bench.expect_operational()
        watching.expect("connected")
        bench.octoprint.person_disconnects()
        assert_eventually(lambda: bench.octoprint.connects == 2, SOON, "told to connect again")


def test_start_wait(bench):
    """Started with it, the service leaves alone what is there, until the printer returns."""
    with bench.watch(start="wait") as watching:
        watching.expect("held")
        watching.expect_listening()
        assert_stays(lambda: bench.octoprint.connects == 0, QUIET, "connected at the start")
        assert bench.printer.stats().bytes_in == 0
        bench.printer.power_off()
        bench.printer.power_on()
        bench.expect_operational()


# -- other ways of asking --------------------------------------------------------------------------------


def test_probe_open_asks_nothing_of_the_firmware(dark):
    """The port can be opened: that is enough, and not a byte of ours reaches the printer."""
    with dark.watch(probe="open"):
        assert_eventually(lambda: dark.octoprint.connects == 1, SOON, "told to connect")
        assert dark.printer.wait_for(lambda s: s.bytes_in > 0, SOON)
        assert dark.printer.received().startswith(HELLO)
        assert dark.printer.stats().opens == 3


def test_probe_none_does_not_open_the_port(bench):
    """The node is there: that is enough.  All opens are OctoPrint's."""
    with bench.watch(probe="none"):
        bench.expect_operational()
        assert bench.printer.stats().opens == 2


def test_a_dry_run_opens_and_connects_nothing(bench):
    """It says what it would do, and does not."""
    with bench.watch(dry_run=True) as watching:
        watching.expect("listening")
        assert "would open" in watching.why
        assert_stays(
            lambda: (bench.printer.stats().opens, bench.octoprint.connects) == (0, 0), QUIET, "it did it"
        )


def test_a_dry_run_leaves_the_memory_of_the_service_alone(bench):
    """What a real service remembers is not overwritten by somebody who only looks."""
    with bench.watch():
        bench.expect_operational()
    before = sorted((path.name, path.read_bytes()) for path in bench.state_dir.glob("*"))
    with bench.watch(dry_run=True) as watching:
        watching.expect("connected")
        bench.octoprint.person_disconnects()
        watching.expect("held")
    assert sorted((path.name, path.read_bytes()) for path in bench.state_dir.glob("*")) == before


# -- OctoPrint is not well -------------------------------------------------------------------------------


def test_a_refused_key_is_said_once_and_a_new_one_found_by_itself(bench, log):
    """OctoPrint logs each refused request, so they become few; a new key in the file is tried at once."""
    interval = 0.4
    bench.write_key("wrong-" + KEY[:6])
    with bench.watch(interval=interval) as watching:
        began = time.monotonic()
        watching.expect("unreachable")
        looks = ("GET", "/api/connection")
        assert_eventually(lambda: bench.octoprint.requests.count(looks) == 3, SOON, "three looks")
        assert time.monotonic() - began > 1.5 * interval, (
            "back-off: twice at the start, then after 2 intervals"
        )
        assert bench.printer.stats().opens == 0
        assert log.count("unreachable:") == 1
        bench.write_key(KEY)
        assert bench.expect_operational() < 3.5 * interval, "the fourth would be due after 4"


def test_words_that_nobody_understands_mean_hands_off(tmp_path):
    """OctoPrint says something new: the port is given back, and nothing done until it is understood again."""
    with (
        Bench(tmp_path, octoprint={"kind": OddOctoPrint}, powered=False, autoreport=None) as bench,
        bench.watch() as watching,
    ):
        watching.expect_listening()
        bench.octoprint.odd = "Frobnicating"
        assert_eventually(lambda: not watching.listening, SOON, "the port was given back")
        bench.printer.power_on()
        assert_stays(
            lambda: not watching.listening and bench.octoprint.connects == 0, QUIET, "it was not hands off"
        )
        bench.octoprint.odd = None
        watching.expect_listening()


# -- floods ----------------------------------------------------------------------------------------------


def test_a_flood_of_bytes_does_not_starve_the_other_sources(dark):
    """A board that talks without a pause: a person's word, and a hang-up, still count at once."""
    flood = again_and_again(lambda: dark.printer.say(b"\xff\xfe\xfd\n" * 1000))
    with dark.watch() as watching:
        watching.expect_listening()
        with flood:
            watching.watcher.post(events.Pause())
            watching.expect("paused", within=0.5)
            watching.watcher.post(events.Resume())
            watching.expect_listening()
        node = dark.link.resolve()
        dark.printer.unplug()
        assert_eventually(lambda: descriptors(node) == 0, 2 * AT_ONCE, "the port is still open")


def test_opening_in_a_loop_does_not_make_us_ask_in_one(bench):
    """Somebody who opens and closes the port all the time: OctoPrint is asked some five times a second."""
    with bench.watch(interval=5.0):
        bench.expect_operational()
        asked = len(bench.octoprint.requests)
        with again_and_again(lambda: os.close(os.open(bench.link, os.O_RDONLY | os.O_NOCTTY))):
            assert_stays(bench.operational, 0.6, "OctoPrint lost it")
        looks = (len(bench.octoprint.requests) - asked) / 2
        assert looks <= 5


# -- the end ---------------------------------------------------------------------------------------------


def hanging(bench, _watching):
    bench.octoprint.delay = 5.0
    asked = len(bench.octoprint.requests)
    assert_eventually(lambda: len(bench.octoprint.requests) > asked, SOON, "OctoPrint was asked")
    return contextlib.nullcontext()


def flooded(bench, watching):
    watching.expect_listening()
    return again_and_again(lambda: bench.printer.say(b"\xff\xfe\xfd\n" * 1000))


def buried(bench, watching):
    uevent = Uevent("change", str(bench.link))
    return again_and_again(lambda: [watching.watcher.post(uevent) for _ in range(100)])


@pytest.mark.parametrize("busy", [hanging, flooded, buried])
def test_it_stops_within_a_second(dark, busy):
    """Whatever it is doing: OctoPrint hangs, the printer never pauses, events come by the hundred."""
    with dark.watch() as watching, busy(dark, watching):
        watching.stop()
        assert descriptors(dark.link.resolve()) == 0


def test_the_right_printer_is_connected(bench):
    """It is asked who it is, though it talks all the time, and says what was configured."""
    machine = "Simulated Printer"
    with bench.watch(firmware={"machine": machine.upper()}):
        bench.expect_operational(within=4.0)
    assert bench.printer.stats().commands["M115"] >= 1


def test_a_stranger_on_the_port_is_not_connected(bench, log):
    """Another printer in the same socket: told once, with its name, and never handed to OctoPrint."""
    with bench.watch(firmware={"machine": "Voron 2.4", "uuid": "another"}) as watching:
        assert_eventually(lambda: "another printer answers" in watching.why, 4.0, lambda: watching.why)
        assert_stays(lambda: not bench.octoprint.connects, QUIET, "it was connected")
    assert log.count("another printer answers") == 1
    assert log.count("(Simulated Printer, cede2a2f") >= 1


def test_what_octoprint_pushes_is_taken_in_at_once(bench, log):
    """A Disconnect is known before any look, and stands; push lives as long as the watcher."""
    push = ScriptedPush()
    with bench.watch(push=push, interval=30.0) as watching:
        bench.expect_operational()
        watching.expect("connected")
        assert push.calls[:2] == ["start", "wake"]
        push.post(events.PushUp(True))
        bench.octoprint.person_disconnects()
        push.post(events.Disconnecting())
        watching.expect("held")
        push.say("it is not heard by push")
    assert push.calls[-1] == "stop"
    assert log.count("it is not heard by push") == 1


def test_push_is_woken_when_octoprint_is_back(bench):
    """Not at each answer: a push that is refused has its own patience."""
    push = ScriptedPush()
    with bench.watch(push=push) as watching:
        watching.expect("connected")
        bench.octoprint.stop()
        watching.expect("unreachable")
        bench.octoprint.start()
        watching.expect("connected")
        assert push.calls == ["start", "wake", "wake"]


def test_an_unforeseen_error_of_push_ends_it(bench):
    """A deaf service that seems alive is worse than one that is started anew."""
    push = ScriptedPush()
    with bench.watch(push=push) as watching:
        watching.expect("connected")
        push.crash(RuntimeError("no such frame"))
        assert str(watching.ends_with_error()) == "no such frame"


def test_what_octoprint_is_is_said_once(bench, log):
    """Asked in a quiet moment of each run of OctoPrint, said once."""
    octoprint = ScriptedOctoPrint(bench.link, Octo.IDLE)
    with bench.watch(client=octoprint, interval=5.0) as watching:
        watching.expect("connected")
        assert_eventually(lambda: octoprint.abouts == 1, 3.0, "it is asked what it is")
        octoprint.answer = {"restarted": True}
        watching.watcher.post(events.Hint())
        assert_eventually(lambda: octoprint.abouts == 2, 3.0, "another one may be another")
    assert log.count("safe mode") == 1


def test_octoprint_prefers_another_connector(bench, log):
    """OctoPrint 2.0 with a printer that is not on a serial port: hands off, said once."""
    octoprint = ScriptedOctoPrint(bench.link, aside="its preferred connector is Moonraker, not serial")
    with bench.watch(client=octoprint) as watching:
        watching.expect("unconfigured")
        looks = octoprint.looks
        assert_eventually(lambda: octoprint.looks > looks + 2, SOON, "it is asked again")
    assert bench.printer.stats().opens == 0
    assert log.count("Moonraker") == 1


@pytest.fixture
def visible(monkeypatch):
    """OctoPrint's process can be looked into, wherever the test has put it."""
    monkeypatch.setattr(watcher.whereabouts, "seen", lambda _peer: True)


@pytest.mark.usefixtures("visible")
def test_an_octoprint_that_is_stuck_is_freed(bench, log, monkeypatch):
    """It says that it opens the port, nobody holds it: told to disconnect, said once, and then connected."""
    monkeypatch.setattr(rules, "WEDGED_AFTER", 0.3)
    octoprint = ScriptedOctoPrint(bench.link, Octo.CONNECTING, opening=True, port=str(bench.link))
    octoprint.go.set()
    with bench.watch(client=octoprint) as watching:
        watching.expect("connected", within=5.0)
        assert octoprint.told.is_set(), "by our own connect"
    assert octoprint.disconnects == 1
    assert log.count("was stuck in") == 1


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize("whose", ["ours", "its own name", "another", "gone"])
def test_an_octoprint_that_holds_the_port_is_not_freed(tmp_path, monkeypatch, whose):
    """By whatever name it calls the port that it is opening, what counts is who has it here."""
    monkeypatch.setattr(rules, "WEDGED_AFTER", 0.3)
    with Bench(tmp_path) as bench, Bench(tmp_path, "other") as other:
        names = {
            "ours": str(bench.link),
            "its own name": "/dev/ttyINSIDE",
            "another": str(other.link),
            "gone": "/dev/ttyGONE",
        }
        octoprint = ScriptedOctoPrint(bench.link, Octo.CONNECTING, opening=True, port=names[whose])
        settings = {"octoprint_port": names[whose]} if whose == "its own name" else {}
        octoprint.answer["ports"] = (names[whose],)
        with (
            someone_else(bench.link if whose != "another" else other.link),
            bench.watch(client=octoprint, **settings) as watching,
        ):
            watching.expect("connecting")
            looks = octoprint.looks
            assert_eventually(lambda: octoprint.looks > looks + 8, 5.0, "it is asked again and again")
            assert octoprint.disconnects == (1 if whose == "gone" else 0)


def test_an_octoprint_that_cannot_be_seen_is_not_freed_soon(bench, monkeypatch):
    """Nobody is seen holding the port, but OctoPrint may be in another container."""
    monkeypatch.setattr(rules, "WEDGED_AFTER", 0.3)
    octoprint = ScriptedOctoPrint(bench.link, Octo.CONNECTING, opening=True, port=str(bench.link))
    with bench.watch(client=octoprint) as watching:
        watching.expect("connecting")
        looks = octoprint.looks
        assert_eventually(lambda: octoprint.looks > looks + 8, 5.0, "it is asked again and again")
        assert octoprint.disconnects == 0
        monkeypatch.setattr(rules, "WEDGED_UNSEEN_AFTER", 0.5)
        assert_eventually(lambda: octoprint.disconnects == 1, 3.0, "after a minute that is proof enough")


def test_an_unforeseen_error_while_asking_octoprint_ends_it(bench):
    """The error comes out of `run`, so that the service can end with it."""

    class Broken(ScriptedOctoPrint):
        def look(self):
            raise ZeroDivisionError("look")

    with bench.watch(client=Broken(bench.link)) as watching:
        assert isinstance(watching.ends_with_error(), ZeroDivisionError)


def test_an_unforeseen_error_of_the_devices_ends_it_and_closes_the_port(dark):
    """The port is given back on the way out."""

    class Broken(Devices):
        broken = False

        def find(self, wanted):
            if self.broken:
                raise ZeroDivisionError("find")
            return super().find(wanted)

    devices = Broken()
    with dark.watch(devices=devices) as watching:
        watching.expect_listening()
        devices.broken = True
        assert isinstance(watching.ends_with_error(), ZeroDivisionError)
        assert descriptors(dark.link.resolve()) == 0


def test_it_leaves_no_descriptor_behind(dark):
    """After `run` all that it had opened is closed."""

    def opened():
        return sum(1 for _ in os.scandir("/proc/self/fd"))

    before = opened()
    for _ in range(3):
        client = ScriptedOctoPrint(dark.link)
        with dark.watch(client=client) as watching:
            watching.expect_listening()
    assert_eventually(lambda: opened() <= before, SOON, lambda: f"{opened() - before} are left")


# -- what is said ----------------------------------------------------------------------------------------


def test_each_change_is_one_line(tmp_path, log):
    """A printer's day: what happened can be read from the log, and nothing twice in a row."""
    with Bench(tmp_path, plugged=False, powered=False, autoreport=None) as bench, bench.watch() as watching:
        watching.expect("absent")
        bench.printer.plug()
        watching.expect("listening")
        bench.printer.power_on()
        watching.expect("connected")
        bench.octoprint.person_disconnects()
        watching.expect("held")
        bench.printer.unplug()
        watching.expect("absent")
    expected = ["absent", "listening", "connecting", "connected", "held", "absent"]
    assert log.states() == expected, log.lines()


def dark_printer(bench):
    bench.printer.power_off()
    return "listening"


def connected(_bench):
    return "connected"


def unplugged(bench):
    bench.printer.unplug()
    return "absent"


def stopped(bench):
    bench.octoprint.stop()
    return "unreachable"


def no_port(bench):
    bench.octoprint.ports.clear()
    return "unconfigured"


def wrong_key(bench):
    bench.write_key("wrong-" + KEY[:6])
    return "unreachable"


@pytest.mark.parametrize("situation", [dark_printer, connected, unplugged, stopped, no_port, wrong_key])
def test_no_line_is_repeated_each_tick(bench, log, situation):
    """While nothing changes, 20 intervals pass without a word."""
    interval = 0.02
    state = situation(bench)
    with bench.watch(interval=interval) as watching:
        watching.expect(state)
        assert_stays(lambda: watching.state == state, 2 * interval, "it changed")
        lines = log.lines()
        assert_stays(lambda: log.lines() == lines, 20 * interval, lambda: log.lines()[len(lines) :])
    assert lines


def test_the_key_is_in_no_line_even_at_debug(bench, log):
    """Refused, accepted, used to connect: it is never written anywhere, nor is the wrong one."""
    wrong = "wrong-" + KEY[:6]
    bench.write_key(wrong)
    with bench.watch() as watching:
        watching.expect("unreachable")
        bench.write_key(KEY)
        bench.expect_operational()
        watching.expect("connected")
        shown = [*log.lines(logging.DEBUG), repr(watching.watcher.printer), repr(watching.watcher.snapshot)]
    assert any("Look" in line for line in shown)
    assert not [line for line, key in itertools.product(shown, (wrong, KEY)) if key in line]
