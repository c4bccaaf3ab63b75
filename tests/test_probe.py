"""One careful look at a simulated printer's port: what it finds, what it sends, and how it makes way."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from portretry_udev import inotify, probe, rules
from portretry_udev.events import Refusal
from portretry_udev.firmware import POKE, Firmware, Sign
from portretry_udev.port import HangUp, PortError
from portretry_udev.probe import Found
from portretry_udev.simulator import Printer

MARLIN = "Marlin 2.1.2.5 (Dec  2 2024 12:00:00)"


@pytest.fixture
def link(tmp_path):
    return tmp_path / "ttyFAKE0"


@pytest.fixture
def quick(monkeypatch):
    """The same look in tenths of the time: silence, and waiting for a boot, take long."""
    monkeypatch.setattr(rules, "QUIET_START", 0.2)
    monkeypatch.setattr(rules, "POKE_PERIOD", 0.1)
    monkeypatch.setattr(probe, "LISTEN", 1.0)


def look(printer, *baudrates, tried=lambda _baudrate: None):
    return probe.probe(str(printer.link), baudrates or (115200,), tried=tried)


def test_a_printer_that_answers(link):
    """Not a byte for the first 2 s (bootloaders listen then); one poke; its answer tells who it is."""
    with Printer(link=link) as printer:
        found = look(printer)
        assert found == Found(
            baudrate=115200,
            seconds=found.seconds,
            firmware=Firmware(MARLIN, "Simulated Printer", "cede2a2f-41a2-4748-9b12-c55c62f367ff"),
        )
        assert rules.QUIET_START <= found.seconds < rules.QUIET_START + rules.POKE_PERIOD
        assert printer.received() == POKE
        assert printer.wait_for(lambda stats: stats.closes == 1, 2)
        assert printer.stats().opens == 1


@pytest.mark.usefixtures("quick")
def test_silence(link):
    """A printer that is off is asked about once a second, with nothing but the poke, and then left alone."""
    with Printer(link=link, powered=False) as printer:
        assert look(printer) == Found()
        asked = printer.received()
        assert asked == POKE * asked.count(b"M115")
        assert 1 <= asked.count(b"M115") <= 9
        assert printer.wait_for(lambda stats: (stats.opens, stats.closes) == (1, 1), 2)


def test_an_mk3_has_time_to_boot():
    """The facts know of 12 s from the open's reset to the first line."""
    assert probe.LISTEN > 12


@pytest.mark.usefixtures("quick")
def test_another_baudrate_is_found_by_trying(link):
    """Rates are tried in order on the one open port; where only noise came is told too."""
    tried = []
    with Printer(link=link, baudrate=250000, autoreport=0.05) as printer:
        found = look(printer, 115200, 250000, 57600, tried=tried.append)
        assert tried == [115200, 250000]
        assert found.baudrate == 250000
        assert found.firmware is not None
        assert found.firmware.name == MARLIN
        assert found.garbage == (115200,)
        assert printer.stats().opens == 1


@pytest.mark.usefixtures("quick")
def test_noise_at_every_rate_is_no_life(link):
    """Garbage alone finds no baudrate, but says where it was heard."""
    with Printer(link=link, baudrate=250000, autoreport=0.05) as printer:
        assert look(printer, 115200, 57600) == Found(garbage=(115200, 57600))


@pytest.mark.usefixtures("quick")
def test_an_open_that_resets_the_board_is_told(link):
    """The banner after the open means that the open was a reset; the firmware is then asked as ever."""
    with Printer(link=link, reset_on_open=True, boot_delay=0.1) as printer:
        found = look(printer)
        assert found.reset
        assert found.firmware is not None
        assert printer.stats().resets == 1


@pytest.mark.usefixtures("quick")
def test_a_busy_printer_is_not_poked(link):
    """`busy:` means alive and hands off: not a byte is sent to it, and it is told as it is."""
    with Printer(link=link) as printer:
        printer.busy(60)
        found = look(printer, tried=lambda _: printer.say(b"echo:busy: processing\n"))
        assert dataclasses.replace(found, seconds=None) == Found(baudrate=115200, busy=True)
        assert printer.received() == b""


@pytest.mark.usefixtures("quick")
def test_a_printer_that_prints_from_sd_is_at_work(link):
    """`SD printing byte` is hands off too, and an `ok` in between does not end a print."""
    with Printer(link=link) as printer:
        found = look(printer, tried=lambda _: printer.say(b"SD printing byte 5/100\nok\n"))
        assert found.busy
        assert found.firmware is None
        assert printer.received() == b""


@pytest.mark.parametrize(
    ("said", "at_work"),
    [
        ([Sign.BUSY], True),
        ([Sign.BUSY, Sign.ANSWER], False),
        ([Sign.BUSY, Sign.CHATTER], True),
        ([Sign.PRINTING, Sign.ANSWER], True),
        ([Sign.PRINTING, Sign.NOT_PRINTING], False),
        ([Sign.PRINTING, Sign.BANNER], False),
        ([Sign.ANSWER], False),
    ],
)
def test_what_begins_and_ends_work(said, at_work):
    """An answer ends being busy but not a print; a boot and "Not SD printing" end both."""
    work = Sign.NOT_PRINTING
    for sign in said:
        work = probe._work(work, sign)
    assert work.hands_off is at_work


@pytest.mark.usefixtures("quick")
def test_a_fault_is_no_life(link):
    """A firmware that has just been killed is told as a fault, not as a printer that answers."""
    with Printer(link=link) as printer:
        assert look(printer, tried=lambda _: printer.kill()) == Found(fault=True)


def test_a_firmware_that_does_not_know_m115(link, quick, monkeypatch):  # noqa: ARG001 - set up before ours
    """Life without a name is found as such, after a few pokes and not only when all patience is over."""
    monkeypatch.setattr(probe, "LISTEN", 60.0)
    with Printer(link=link) as printer:
        printer.hung = True
        began = time.monotonic()
        found = look(printer, tried=lambda _: printer.say(b"\r\nGrbl 1.1h ['$' for help]\r\n"))
        assert time.monotonic() - began < 30
        assert dataclasses.replace(found, seconds=None) == Found(baudrate=115200, reset=True)
        asked = printer.received()
        assert asked == POKE * asked.count(b"M115")
        assert 1 <= asked.count(b"M115") <= 4


def test_life_at_the_last_moment_is_still_asked_who_it_is(link, quick, monkeypatch):  # noqa: ARG001
    """A sign of life before the first poke is waited on, though the time for listening is over by then."""
    monkeypatch.setattr(probe, "LISTEN", 0.1)
    with Printer(link=link) as printer:
        found = look(printer, tried=lambda _: printer.say(b"wait\n"))
        assert found.firmware is not None


def test_hang_up_meanwhile(link):
    """A cable pulled during the look ends it at once."""
    with Printer(link=link) as printer:
        began = time.monotonic()
        with pytest.raises(HangUp):
            look(printer, tried=lambda _: printer.unplug())
        assert time.monotonic() - began < 5


def test_held_by_somebody(link):
    """A port in use is not opened; who has it is told."""
    code = "import os, sys\nos.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)\nprint('open', flush=True)\ninput()"
    with (
        Printer(link=link) as printer,
        subprocess.Popen(
            [sys.executable, "-c", code, str(link)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        try:
            assert child.stdout.readline() == b"open\n"
            with pytest.raises(PortError, match=rf"in use by python.* \(pid {child.pid}\)") as caught:
                look(printer)
            assert caught.value.refusal is Refusal.BUSY
            assert printer.wait_for(lambda stats: stats.opens == 1, 2)
        finally:
            child.kill()


def test_somebody_opens_it_meanwhile(link):
    """Who opens the port during the look is made way for at once, and not a byte more is read."""
    with Printer(link=link) as printer:
        fds = []

        def open_and_ask(_baudrate):
            fds.append(os.open(link, os.O_RDWR | os.O_NOCTTY))
            printer.say(b"ok for the other one\n")

        with pytest.raises(PortError, match="another process opened it") as caught:
            look(printer, tried=open_and_ask)
        assert caught.value.refusal is Refusal.BUSY
        assert printer.wait_for(lambda stats: stats.closes == 1, 2)
        assert os.read(fds[0], 100) == b"ok for the other one\n"
        os.close(fds[0])
        assert printer.received() == b""


def test_a_missing_node(link):
    """The port says why, not the watch on it."""
    with pytest.raises(PortError, match="it is not there") as caught:
        probe.probe(str(link), (115200,))
    assert caught.value.refusal is Refusal.MISSING


@pytest.mark.usefixtures("quick")
def test_a_full_system_is_no_reason_not_to_look(link, monkeypatch):
    """Without a watch on the node (the user's limit is used up) the look is done all the same."""

    def fail(_self, path, _mask):
        raise OSError(28, "No space left on device", str(path))

    with Printer(link=link) as printer:
        monkeypatch.setattr(inotify.Inotify, "add", fail)
        assert look(printer).baudrate == 115200
