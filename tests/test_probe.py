"""One careful look at a port: what it finds and sends, how it makes way, and whom it leaves alone."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from bench import KEY, SOON, Bench, logged, someone_else
from helpers import Daemon
from portretry_udev import cli_common, cli_ports, config, control, inotify, probe, rules
from portretry_udev.devices import Devices, Missing, Node, Wanted
from portretry_udev.events import Octo, Refusal
from portretry_udev.firmware import POKE, Firmware, Sign
from portretry_udev.octoprint import Answer
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
        assert found.seconds <= found.answered < rules.QUIET_START + rules.POKE_PERIOD
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
        assert found.answered is None
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


# -- what is a serial port at all --------------------------------------------------------------------------

DRIVERS = """\
/dev/tty             /dev/tty        5       0 system:/dev/tty
/dev/console         /dev/console    5       1 system:console
/dev/ptmx            /dev/ptmx       5       2 system
/dev/vc/0            /dev/vc/0       4       0 system:vtmaster
usbserial            /dev/ttyUSB   188 0-511 serial
acm                  /dev/ttyACM   166 0-255 serial
ttyAMA               /dev/ttyAMA   204 64-77 serial
serial               /dev/ttyS       4 64-95 serial
pty_slave            /dev/pts      136 0-1048575 pty:slave
pty_master           /dev/ptm      128 0-1048575 pty:master
unknown              /dev/tty        4 1-63 console
"""


@pytest.mark.parametrize(
    ("major", "minor", "serial"),
    [
        (188, 0, True),
        (188, 512, False),
        (166, 3, True),
        (204, 64, True),
        (4, 64, True),  # ttyS0
        (136, 7, True),  # a pty: Klipper's, the simulator's
        (4, 1, False),  # a console
        (5, 0, False),  # /dev/tty
        (128, 0, False),
        (10, 130, False),  # /dev/watchdog: an open starts it
        (1, 3, False),
    ],
)
def test_the_kernel_says_what_is_a_serial_port(tmp_path, major, minor, serial):
    """By its list of drivers; whatever is not in there is none."""
    (tmp_path / "proc/tty").mkdir(parents=True)
    (tmp_path / "proc/tty/drivers").write_text(DRIVERS)
    assert probe.is_serial(os.makedev(major, minor), tmp_path) is serial


def test_without_that_list_sysfs_says_it(tmp_path):
    """A tty with hardware is one; a console, another class of device, and nothing at all are none."""
    for number, kind, hardware in (("188:0", "tty", True), ("4:1", "tty", False), ("10:130", "misc", True)):
        device = tmp_path / "sys/dev/char" / number
        device.mkdir(parents=True)
        (tmp_path / "sys/class" / kind).mkdir(parents=True, exist_ok=True)
        (device / "subsystem").symlink_to(tmp_path / "sys/class" / kind)
        if hardware:
            (device / "device").symlink_to(tmp_path)
    assert [
        probe.is_serial(os.makedev(*number), tmp_path) for number in ((188, 0), (4, 1), (10, 130), (9, 9))
    ] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("kind", ["character device", "file", "fifo"])
def test_what_is_no_serial_port_is_never_opened(tmp_path, monkeypatch, kind):
    """`probe /dev/watchdog` must not reboot the machine: the refusal comes before any open."""
    path = tmp_path / "it"
    if kind == "character device":
        path.symlink_to("/dev/null")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
    opened = []
    monkeypatch.setattr(probe, "Port", lambda *_, **__: opened.append(1))
    with pytest.raises(PortError, match="is not a serial port: it is never opened") as caught:
        probe.probe(str(path), (115200,))
    assert caught.value.refusal is Refusal.UNKNOWN
    said = run(path)
    assert (said.exit_code, said.stdout) == (69, "")
    assert "never opened" in said.stderr
    assert opened == []


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _log():
    """The log's set-up ends with the test."""
    with logged():
        yield


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch, tmp_path):
    """Neither this machine's configuration nor its environment counts."""
    for name in os.environ:
        if name.startswith("PORTRETRY_"):
            monkeypatch.delenv(name)
    none = tmp_path / "no-such-file.toml"
    monkeypatch.setattr(config.load, "__kwdefaults__", {"default_file": none})
    monkeypatch.setattr(cli_common, "DEFAULT_FILE", none)


@pytest.fixture
def bench(tmp_path):
    with Bench(tmp_path) as bench:
        yield bench


def run(*arguments):
    """``probe`` in this process; stdout and stderr apart."""
    return CliRunner().invoke(cli_ports.probe, [str(argument) for argument in arguments])


def configuration(folder, *benches, port=True, **settings):
    """A configuration file for some printers; ``port`` False leaves it to OctoPrint."""
    path = folder / "config.toml"
    more = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    path.write_text(
        "".join(
            f'[printers.{bench.name}]\noctoprint = "{bench.octoprint.url}"\n'
            f'api_key_file = "{bench.key_file}"\n{more}' + (f'port = "{bench.link}"\n' if port else "")
            for bench in benches
        )
    )
    return path


@pytest.mark.usefixtures("quick")
def test_probe_tells_who_answers(bench):
    """The firmware, where, at which baudrate, and when; stdout holds that alone."""
    said = run(bench.link)
    assert said.exit_code == 0
    assert said.stdout.startswith(f"{bench.link}: {MARLIN}")
    for line in (
        r"machine +Simulated Printer",
        r"baudrate +115200",
        r"answer +after \d+\.\d s",
        r"reset +none was seen",
    ):
        assert re.search(rf"^  {line}$", said.stdout, re.MULTILINE), line
    assert said.stderr == f"{bench.link}: asking at 115200 baud\n"


@pytest.mark.usefixtures("quick")
def test_probe_for_programs(bench, tmp_path):
    """One object; its printer is named, also if the port was given by its node."""
    path = configuration(tmp_path, bench)
    answers = []
    for arguments in ([bench.link], [bench.link, "--config", path], ["mk3", "--config", path]):
        said = run(*arguments, "--json")
        assert (said.exit_code, said.stderr) == (0, "")
        answers.append(json.loads(said.stdout))
    assert [answer["printer"] for answer in answers] == [None, "mk3", "mk3"]
    for answer in answers:
        assert (answer["port"], answer["node"]) == (str(bench.link), str(bench.link.resolve()))
        assert (answer["baudrate"], answer["reset"], answer["busy"]) == (115200, False, False)
        assert answer["firmware"]["machine"] == "Simulated Printer"
        assert 0 < answer["seconds"] <= answer["answered"]
    assert bench.printer.wait_for(lambda s: (s.opens, s.holders) == (3, 0), SOON)


@pytest.mark.usefixtures("quick")
def test_probe_tells_of_a_reset(tmp_path):
    """A board that boots because it was opened is told to do so."""
    with Bench(tmp_path, reset_on_open=True) as bench:
        assert "opening the port reset the board" in run(bench.link).stdout


@pytest.mark.usefixtures("quick")
def test_probe_hears_nothing(tmp_path):
    """A printer that is off: said, with status 1."""
    with Bench(tmp_path, powered=False) as bench:
        said = run(bench.link)
        assert (said.exit_code, said.stdout) == (1, f"{bench.link}: nothing answers\n")
        said = run(bench.link, "--json")
        assert (said.exit_code, json.loads(said.stdout)["baudrate"]) == (1, None)


@pytest.mark.usefixtures("quick")
def test_probe_finds_the_baudrate(tmp_path):
    """Garbage at one rate is no answer; with ``--all-bauds`` the right one is found."""
    with Bench(tmp_path, baudrate=250000) as bench:
        said = run(bench.link)
        assert said.exit_code == 1
        assert "garbage at 115200 baud" in said.stdout
        said = run(bench.link, "--all-bauds")
        assert said.exit_code == 0
        assert re.search(r"baudrate +250000$", said.stdout, re.MULTILINE)


@pytest.mark.usefixtures("quick")
def test_probe_asks_at_octoprints_baudrate(tmp_path):
    """Where no other is configured: so the named printer is found at once."""
    with Bench(tmp_path, baudrate=250000, octoprint={"baud_preference": 250000}) as bench:
        said = run("--config", configuration(tmp_path, bench))
        assert re.search(r"baudrate +250000$", said.stdout, re.MULTILINE)
        assert run("--config", configuration(tmp_path, bench), "--baudrate", 115200).exit_code == 1


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_probe_leaves_a_port_in_use_alone(bench, as_json):
    """Another process has it: refused in one line, with its name, and not opened."""
    with someone_else(bench.link):
        said = run(bench.link, *as_json)
        assert (said.exit_code, said.stdout) == (69, "")
        assert re.fullmatch(r"portretry-udev: .* in use by python\S* \(pid \d+\)\n", said.stderr)
        assert bench.printer.stats().opens == 1


@pytest.mark.parametrize("by", ["mk3", "link", "node"])
def test_probe_leaves_a_connected_printer_alone(bench, tmp_path, by):
    """OctoPrint has it, in whatever PID namespace and under whatever name: refused, and not opened."""
    path = configuration(tmp_path, bench)
    bench.octoprint.person_connects()
    bench.expect_operational()
    opens = bench.printer.stats().opens
    named = {"mk3": "mk3", "link": bench.link, "node": bench.link.resolve()}[by]
    said = run(named, "--config", path, "--json")
    assert (said.exit_code, said.stdout) == (69, "")
    assert said.stderr == "portretry-udev: mk3: OctoPrint says 'Operational': hands off\n"
    assert bench.printer.stats().opens == opens


@pytest.mark.parametrize("by", ["mk3", "link"])
@pytest.mark.parametrize("port", [True, False])
def test_probe_leaves_alone_what_it_cannot_know(bench, tmp_path, by, port):
    """OctoPrint is there but does not tell (the key is refused): unknown means hands off."""
    path = configuration(tmp_path, bench, port=port)
    bench.write_key("wrong")
    said = run("mk3" if by == "mk3" else bench.link, "--config", path)
    assert said.exit_code == 69
    assert "hands off" in said.stderr
    assert bench.printer.stats().opens == 0


def test_probe_leaves_alone_whose_configuration_it_cannot_read(bench, tmp_path):
    """Which OctoPrints to ask is in there: with mistakes in it, that is not known."""
    path = tmp_path / "config.toml"
    path.write_text("[printers.mk3]\n")
    said = run(bench.link, "--config", path)
    assert (said.exit_code, said.stdout) == (78, "")
    assert "mk3.octoprint: is missing" in said.stderr
    assert bench.printer.stats().opens == 0


@pytest.mark.usefixtures("quick")
def test_the_neighbours_octoprint_is_no_reason(tmp_path):
    """It is connected, but to its own printer."""
    with Bench(tmp_path, "one") as one, Bench(tmp_path, "two") as two:
        one.octoprint.person_connects()
        one.expect_operational()
        path = configuration(tmp_path, one, two)
        assert run(two.link, "--config", path).exit_code == 0
        assert run(one.link, "--config", path).exit_code == 69


class SomeNodes:
    """`Devices` that knows some nodes by their numbers."""

    def __init__(self, **numbers):
        self._numbers = {f"/dev/{name}": number for name, number in numbers.items()}

    def find(self, wanted: Wanted):
        number = self._numbers.get(wanted.path)
        return Node(wanted.path, wanted.path, number, 1, modem=True) if number else Missing("it is not there")


@pytest.mark.parametrize(
    ("port", "elsewhere", "may"),
    [
        ("/dev/ttyUSB0", True, True),
        ("/dev/serial0", False, True),  # the same device by another name
        ("/dev/ttyUSB1", False, False),
        ("VIRTUAL", False, False),
        ("AUTO", True, True),  # it detects: it opens one port after the other
        (None, True, True),
        ("/dev/printer", True, False),  # a container's name for the printer that is elsewhere
        ("/dev/printer", False, True),  # for one that may be here
    ],
)
def test_what_a_connected_octoprint_may_have(port, elsewhere, may):
    """Whatever it is not known to leave alone, it may have."""
    devices = SomeNodes(ttyUSB0=1, serial0=1, ttyUSB1=2)
    answer = Answer(Octo.CONNECTING, "Connecting", "Connecting", None, port, (), None, None, restarted=False)
    node = devices.find(Wanted("/dev/ttyUSB0"))
    assert cli_ports._may_have(devices, answer, node, elsewhere=elsewhere) is may


@pytest.mark.usefixtures("quick")
def test_probe_by_name(tmp_path):
    """The only printer needs no name; of several, one must be named.  OctoPrint need not run."""
    with Bench(tmp_path, "one") as one, Bench(tmp_path, "two") as two:
        one.octoprint.stop()
        two.octoprint.stop()
        assert run("--config", configuration(tmp_path, one)).exit_code == 0
        path = configuration(tmp_path, one, two)
        said = run("--config", path)
        assert said.exit_code == 78
        assert "one, two" in said.stderr
        assert run("two", "--config", path).stdout.startswith(f"{two.link}: Marlin")
        said = run("three", "--config", path)
        assert (said.exit_code, said.stdout) == (78, "")
        assert "there are: one, two" in said.stderr


@pytest.mark.usefixtures("quick")
def test_probe_goes_where_octoprint_would(bench, tmp_path):
    """No port is configured: it is the one that OctoPrint prefers; if that is not known, nothing is done."""
    path = configuration(tmp_path, bench, port=False)
    assert run("--config", path).stdout.startswith(f"{bench.link}: Marlin")
    bench.octoprint.stop()
    said = run("--config", path)
    assert (said.exit_code, said.stdout) == (78, "")
    assert "mk3 has no port" in said.stderr


def test_probe_tells_to_pause_our_own_service(tmp_path):
    """It listens on the port: the command that makes it let go is told, and then the look is possible."""
    with Bench(tmp_path, powered=False) as bench:
        bench.octoprint.start()
        path = configuration(tmp_path, bench)
        socket = tmp_path / "control.sock"
        path.write_text(f'control = "{socket}"\n{path.read_text()}')
        with Daemon("--config", path, "--state-dir", tmp_path / "state") as service:
            service.expect("listening")
            assert bench.printer.wait_for(lambda stats: stats.holders == 1, SOON)
            for named in ("mk3", bench.link):
                said = run(named, "--config", path)
                assert (said.exit_code, said.stdout) == (69, "")
                assert re.search(r"watched by portretry-udev itself \(pid \d+\)", said.stderr)
                assert "`portretry-udev pause mk3` first" in said.stderr
            assert bench.printer.stats().opens == 1
            control.ask(socket, "pause")
            bench.printer.power_on()
            assert run("mk3", "--config", path).exit_code == 0


@pytest.mark.parametrize(("state", "refused"), [("listening", True), ("paused", False)])
@pytest.mark.usefixtures("quick")
def test_a_service_whose_descriptors_are_not_ours_to_see_is_asked(bench, monkeypatch, state, refused):
    """Without root /proc does not show them; the service itself tells what it watches."""
    real = cli_ports.ports_.holders
    monkeypatch.setattr(cli_ports.ports_, "holders", lambda node: dataclasses.replace(real(node), unseen=7))
    watched = {"ender": {"node": str(bench.link.resolve()), "state": state}}
    monkeypatch.setattr(control, "ask", lambda _path, _command: {"printers": watched})
    said = run(bench.link)
    assert said.exit_code == (69 if refused else 0)
    assert ("`portretry-udev pause ender` first" in said.stderr) is refused
    assert bench.printer.stats().opens == (0 if refused else 1)


def test_a_service_that_we_may_not_ask_means_hands_off(bench, monkeypatch):
    """It is there, and may have the port: unknown."""

    def not_for_us(_path, _command):
        raise control.ControlError("permission denied: try sudo", os.EX_NOPERM)

    real = cli_ports.ports_.holders
    monkeypatch.setattr(cli_ports.ports_, "holders", lambda node: dataclasses.replace(real(node), unseen=7))
    monkeypatch.setattr(control, "ask", not_for_us)
    said = run(bench.link)
    assert said.exit_code == 69
    assert "try sudo" in said.stderr
    assert bench.printer.stats().opens == 0


@pytest.mark.parametrize("more", [[], ["--all-bauds"]])
def test_probe_never_uses_1200_baud(bench, more):
    """It starts the bootloader of many boards: refused before anything is opened."""
    said = run(bench.link, "--baudrate", 1200, *more)
    assert said.exit_code == 78
    assert "bootloader" in said.stderr
    assert bench.printer.stats().opens == 0


@pytest.mark.parametrize(
    ("known", "tried"),
    [
        ({"vendor": "2c99", "driver": "cdc_acm", "modem": True}, False),
        ({"modem": True}, False),  # a container that shows nothing: it may be a Prusa
        ({"vendor": "1a86", "driver": "ch341-uart", "modem": True}, True),
        ({"driver": "serial", "modem": True}, True),  # built in
        ({"modem": False}, True),  # a pty
    ],
)
@pytest.mark.usefixtures("quick")
def test_probe_never_uses_57600_baud_on_a_prusa(tmp_path, monkeypatch, known, tried):
    """It turns the firmware of a Buddy board off (promise 6); nor where it is not known what the board is."""
    monkeypatch.setattr(probe, "POKES", 1)
    monkeypatch.setattr(probe, "LISTEN", 0.3)
    with Bench(tmp_path, powered=False) as bench:
        real = Devices.find
        monkeypatch.setattr(
            Devices,
            "find",
            lambda self, wanted: dataclasses.replace(real(self, wanted), **known),
        )
        assert ("at 57600 baud" in run(bench.link, "--all-bauds").stderr) is tried
        assert run(bench.link, "--baudrate", 57600).exit_code == (1 if tried else 78)
        assert bench.printer.stats().opens == (2 if tried else 1)


def test_probe_of_a_port_that_is_not_there(tmp_path):
    """Status 69, what is missing, and stdout stays empty."""
    said = run(tmp_path / "ttyNONE", "--json")
    assert (said.exit_code, said.stdout) == (69, "")
    assert said.stderr.startswith(f"portretry-udev: {tmp_path / 'ttyNONE'} is not there")
    assert said.stderr.count("\n") == 1


def test_probe_waits_for_udevd(bench, monkeypatch):
    """A port that was plugged just now is looked at when udevd has finished with it."""
    real, looks = Devices.find, []

    def find(self, wanted):
        looks.append(wanted)
        if len(looks) <= 3:
            return Missing("udev is still preparing it", settling=True)
        return real(self, wanted)

    monkeypatch.setattr(Devices, "find", find)
    with someone_else(bench.link):
        said = run(bench.link)
    assert "in use by" in said.stderr
    assert len(looks) == 4


def test_ctrl_c_is_no_verdict(tmp_path, monkeypatch):
    """Status 1 would say that nothing answers; the port is closed, and stdout stays empty."""

    def interrupted(_path, _rate):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_ports, "_show_progress", interrupted)
    with Bench(tmp_path, powered=False) as bench:
        said = run(bench.link)
        assert (said.exit_code, said.output) == (130, "")
        assert bench.printer.wait_for(lambda stats: (stats.opens, stats.holders) == (1, 0), SOON)


def test_no_key_is_shown(bench, tmp_path):
    """Not even where OctoPrint refuses it."""
    path = configuration(tmp_path, bench)
    bench.octoprint.stop()
    assert KEY not in run("mk3", "--config", path, "-v", "--baudrate", 1200).output
