"""What `ports` shows: which name can be relied on, whose a port is, what to configure, what is plugged."""

import json
import os
import re
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench import KEY, Bench, logged, someone_else
from following import Watching, pasted
from portretry_udev import cli_common, cli_ports, config, listing
from portretry_udev.config import Printer
from portretry_udev.devices import Devices, Missing, Node, Port, Uevent
from portretry_udev.events import Octo
from portretry_udev.keys import KeySource
from portretry_udev.listing import Change, Follower, Row
from portretry_udev.octoprint import Answer
from portretry_udev.port import Holder, Holders

MK3_ID = (
    "/dev/serial/by-id/"
    "usb-Prusa_Research__prusa3d.com__Original_Prusa_i3_MK3_CZPX1234X004XK56789_0123456789-if00"
)
MK3 = Port(
    "/dev/ttyACM0",
    MK3_ID,
    "/dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0",
    "2c99",
    "0002",
    "CZPX1234X004XK56789",
    "Original Prusa i3 MK3",
    "cdc_acm",
)
CH340 = Port(
    "/dev/ttyUSB0",
    "/dev/serial/by-id/usb-1a86_USB_Serial-if00-port0",
    "/dev/serial/by-path/platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.3:1.0-port0",
    "1a86",
    "7523",
    None,
    "USB Serial",
    "ch341-uart",
)
CP2102 = Port(
    "/dev/ttyUSB1",
    "/dev/serial/by-id/usb-Silicon_Labs_CP2102_USB_to_UART_Bridge_Controller_0001-if00-port0",
    "/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0",
    "10c4",
    "ea60",
    "0001",
    "CP2102 USB to UART Bridge Controller",
    "cp210x",
)
FTDI = Port(
    "/dev/ttyUSB2",
    "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A10K3X7Z-if00-port0",
    "/dev/serial/by-path/pci-0000:00:14.0-usb-0:3:1.0-port0",
    "0403",
    "6001",
    "A10K3X7Z",
    "FT232R USB UART",
    "ftdi_sio",
)
BUILT_IN = Port("/dev/ttyS0", driver="serial")

NUMBERS = {port.node: number for number, port in enumerate((MK3, CH340, CP2102, FTDI, BUILT_IN), 1)}


class FakePorts:
    """`Devices` with the ports that a test puts in; their nodes lie in nobody's /dev."""

    def __init__(self, *ports):
        self.there = list(ports)
        self.stale = {}
        self.settling = set()

    def ports(self):
        return list(self.there)

    def find(self, wanted):
        if why := self.stale.get(wanted.path):
            return Missing(why)
        for port in self.there:
            names = {port.node, port.by_id, port.by_path}
            match = {key: getattr(port, key) for key in wanted.match}
            if wanted.path in names if wanted.path else match == wanted.match:
                if port.node in self.settling:
                    return Missing(f"udev is still preparing {port.node}", settling=True)
                return Node(wanted.path or port.node, port.node, NUMBERS[port.node], 1, modem=True)
        return Missing(f"{wanted.path} is not there: the printer is unplugged or switched off")


@pytest.fixture
def held(monkeypatch):
    """Who holds what: a node that is not in here is free."""
    found = {}
    monkeypatch.setattr(listing, "holders", lambda node: Holders(found.get(node, ())))
    return found


def printer(name="mk3", **settings):
    return Printer(name, "http://127.0.0.1:5000", KeySource(None), **settings)


def answer(*ports, preferred=None):
    return Answer(Octo.OFFLINE, "Closed", "Offline", None, None, ports, preferred, None, restarted=False)


def gather(tmp_path, devices, printers=(), answers=None):
    """Rows by node; /dev has none of the nodes that a container would have."""
    rows = listing.gather(devices, printers, answers or {}, dev=tmp_path)
    return {row.port.node: row for row in rows}


# -- which name can be relied on -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "reasons"),
    [
        (MK3, {}),
        (FTDI, {}),
        (CH340, {"by_id": "shared by every board with this chip: use by-path"}),
        (replace(FTDI, serial=None), {"by_id": "shared by every board with this chip: use by-path"}),
        (
            CP2102,
            dict.fromkeys(("by_id", "serial"), "shared by every board with this chip: use by-path"),
        ),
        (replace(MK3, serial=None, by_id=None, by_path=None), {}),
        (BUILT_IN, {}),
    ],
)
def test_a_name_that_every_board_with_the_chip_has_is_unusable(port, reasons):
    """Promise 7: generic ids alone never match, so they are not offered either."""
    assert listing.unusable(port, [port]) == reasons


def test_a_name_that_two_ports_have_is_unusable():
    """Two clones with one serial number: neither can be told by it, and the other one is named."""
    other = replace(MK3, node="/dev/ttyACM1", by_path="/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0")
    reason = "/dev/ttyACM1 has the same: use by-path"
    assert listing.unusable(MK3, [MK3, other]) == {"by_id": reason, "serial": reason}


def test_two_ports_of_one_board_are_told_apart_by_their_by_id():
    """The serial number is the board's, the interface is the port's."""
    second = replace(MK3, node="/dev/ttyACM1", by_id=MK3_ID.replace("if00", "if02"), by_path=None)
    assert listing.unusable(MK3, [MK3, second]) == {"serial": "/dev/ttyACM1 has the same: use by-id"}


def test_where_nothing_tells_two_boards_apart_that_is_said():
    """No way out is promised that is none."""
    bare = replace(CH340, by_path=None)
    assert listing.unusable(bare, [bare]) == {
        "by_id": "shared by every board with this chip: no other name tells it apart"
    }


# -- what to configure -----------------------------------------------------------------------------------


def row(port, *others):
    return Row(port, unusable=listing.unusable(port, [port, *others]))


@pytest.mark.parametrize(
    ("port", "name", "setting", "why"),
    [
        (MK3, "original-prusa-i3-mk3", f'port = "{MK3_ID}"', ""),
        (FTDI, "printer", f'port = "{FTDI.by_id}"', ""),
        (CH340, "printer", f'port = "{CH340.by_path}"', "will not do: shared by every board with this chip"),
        (CP2102, "printer", f'port = "{CP2102.by_path}"', "always use the same one"),
        (
            replace(FTDI, by_id=None, by_path=None),
            "printer",
            'match = { serial = "A10K3X7Z", vendor = "0403" }',
            "",
        ),
        (replace(CH340, by_path=None), "printer", 'port = "/dev/ttyUSB0"', "nothing tells it apart"),
        (BUILT_IN, "printer", 'port = "/dev/ttyS0"', ""),
    ],
)
def test_the_best_name_is_suggested(port, name, setting, why):
    """by-id if it is this board's alone, else the socket, else the serial number, else the node."""
    found = listing.suggestion(row(port))
    assert (found.name, found.setting) == (name, setting)
    assert why in found.why
    assert bool(why) == bool(found.why)


def test_no_name_is_suggested_twice():
    """Neither one that is configured, nor one that was suggested a line before."""
    names = ["printer", "printer-2"]
    assert listing.suggestion(row(CH340), names).name == "printer-3"
    assert listing.suggestion(replace(row(CH340), printer="ender"), ["ender"]).name == "ender"


def loaded(folder, lines):
    """The printer that a configuration with these lines has."""
    (found,) = config.load({"config": str(pasted(folder, lines))}, {}).printers
    return found


@pytest.mark.parametrize(
    "port", [MK3, CH340, CP2102, FTDI, BUILT_IN, replace(FTDI, by_id=None, by_path=None)]
)
def test_what_is_suggested_can_be_pasted(tmp_path, port):
    """Below a printer's table it is a configuration that loads, and means that port."""
    suggested = listing.suggestion(row(port))
    found = loaded(tmp_path, suggested.lines(row(port)))
    if found.match:
        assert dict(found.match) == {"serial": port.serial, "vendor": port.vendor}
    else:
        assert found.port in (port.node, port.by_id, port.by_path)
    # The name that is proposed is one that a printer may have.
    assert f"# [printers.{suggested.name}]" in suggested.lines(row(port))
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", suggested.name)


@given(
    name=st.text(max_size=80),
    serial=st.text(min_size=5, max_size=30),
    by_id=st.booleans(),
    links=st.booleans(),
)
def test_a_board_cannot_write_our_configuration(tmp_path_factory, name, serial, by_id, links):
    """Whatever it calls itself: one setting at most, a fit name, and no line of its own."""
    port = Port(
        "/dev/ttyUSB0",
        MK3_ID if by_id and links else None,
        MK3.by_path if links else None,
        "2c99",
        "0002",
        serial,
        name,
    )
    suggested = listing.suggestion(row(port))
    lines = suggested.lines(row(port))
    assert [line for line in lines if not line.startswith("# ")] == [suggested.setting]
    assert all(line.isprintable() for line in lines)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", suggested.name)
    found = loaded(tmp_path_factory.mktemp("conf"), lines)
    assert found.port or found.match["serial"] == serial


# -- whose it is -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("held")
def test_a_port_is_its_configured_printers(tmp_path):
    """By a link, by what it is, by the node, or, if nothing is configured, as OctoPrint prefers."""
    devices = FakePorts(MK3, CH340, CP2102, FTDI)
    printers = [
        printer("by-link", port=MK3.by_id),
        printer("by-match", match={"serial": "A10K3X7Z"}),
        printer("by-node", port="/dev/ttyUSB1"),
        printer("by-octoprint"),
        printer("absent", port="/dev/serial/by-id/usb-elsewhere"),
        printer("unknown"),
    ]
    answers = {"by-octoprint": answer(preferred="/dev/ttyUSB0"), "unknown": answer()}
    rows = gather(tmp_path, devices, printers, answers)
    assert {node: row.printer for node, row in rows.items()} == {
        "/dev/ttyACM0": "by-link",
        "/dev/ttyUSB0": "by-octoprint",
        "/dev/ttyUSB1": "by-node",
        "/dev/ttyUSB2": "by-match",
    }


@pytest.mark.usefixtures("held")
def test_each_octoprint_has_its_own_name_for_a_port(tmp_path):
    """Several OctoPrints: each has its own word for a port; one that does not offer it is left out."""
    answers = {
        "mk3": answer(MK3.by_id, "/dev/ttyUSB0"),
        "ender": answer("/dev/ttyACM0", "AUTO"),
        "off": answer(),
    }
    rows = gather(tmp_path, FakePorts(MK3, CH340), answers=answers)
    assert rows["/dev/ttyACM0"].octoprint == {"mk3": MK3.by_id, "ender": "/dev/ttyACM0"}
    assert rows["/dev/ttyUSB0"].octoprint == {"mk3": "/dev/ttyUSB0"}


@pytest.mark.usefixtures("held")
def test_built_in_ports_come_last(tmp_path):
    """Hardly anybody's printer is there; the others keep their order."""
    assert list(gather(tmp_path, FakePorts(BUILT_IN, MK3, CH340))) == [
        "/dev/ttyACM0",
        "/dev/ttyUSB0",
        "/dev/ttyS0",
    ]


@pytest.mark.usefixtures("held")
def test_a_stale_node_is_told(tmp_path):
    """The reason is that of `devices`; a port that udevd has just begun with is not stale."""
    devices = FakePorts(MK3, CH340)
    devices.stale["/dev/ttyACM0"] = "/dev/ttyACM0 is stale: it is for device 166:1"
    devices.settling.add("/dev/ttyUSB0")
    rows = gather(tmp_path, devices)
    assert rows["/dev/ttyACM0"].stale == "/dev/ttyACM0 is stale: it is for device 166:1"
    assert listing.state(rows["/dev/ttyACM0"]) == "not there"
    assert rows["/dev/ttyUSB0"].stale is None


def test_a_printer_on_a_pty_is_listed(tmp_path):
    """Klipper's port is none that udev knows; where it is configured, it is shown all the same."""
    with Bench(tmp_path) as bench:
        rows = listing.gather(Devices(), [bench.configured()], {}, dev=tmp_path)
        (ours,) = (row for row in rows if row.printer)
        assert (ours.port.node, ours.printer) == (str(bench.link.resolve()), "mk3")
        assert (ours.holders, ours.stale) == ((), None)


# -- for people --------------------------------------------------------------------------------------------

GOLDEN = f"""\
NODE          USB        DRIVER      PRINTER  STATE
/dev/ttyACM0  2c99:0002  cdc_acm     mk3
  in use by octoprint (pid 1234), avrdude (pid 99)
  product   Original Prusa i3 MK3, serial CZPX1234X004XK56789
  by-id     {MK3_ID}
  by-path   /dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0
  OctoPrint /dev/ttyACM0 (mk3)
/dev/ttyUSB0  1a86:7523  ch341-uart  -        free
  product   USB Serial, no serial number
  by-id     /dev/serial/by-id/usb-1a86_USB_Serial-if00-port0
            do not use: shared by every board with this chip: use by-path
  by-path   {CH340.by_path}
/dev/ttyUSB1  10c4:ea60  cp210x      -        in use by octoprint (pid 1234)
  product   CP2102 USB to UART Bridge Controller, serial 0001
  by-id     {CP2102.by_id}
            do not use: shared by every board with this chip: use by-path
  by-path   /dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0
/dev/ttyS0    -          serial      -        free
"""


def test_the_table_at_80_columns(tmp_path, held):
    """Nothing is wider, save the names that are there to be copied; those are whole."""
    held["/dev/ttyACM0"] = (Holder(1234, "octoprint"), Holder(99, "avrdude"))
    held["/dev/ttyUSB1"] = (Holder(1234, "octoprint"),)
    printers = [printer(port=MK3.by_id)]
    rows = listing.gather(
        FakePorts(BUILT_IN, MK3, CH340, CP2102), printers, {"mk3": answer("/dev/ttyACM0")}, dev=tmp_path
    )
    lines = listing.table(rows, 80)
    assert re.sub(r"\x1b\[\d*m", "", "".join(f"{line}\n" for line in lines)) == GOLDEN
    assert [line for line in GOLDEN.splitlines() if len(line) > 80 and "/dev/serial/" not in line] == []


def test_a_long_name_leaves_the_serial_number_whole():
    """It may be wanted for ``match``, so it gets a line of its own."""
    shown = listing.table(
        [Row(replace(MK3, name="Original Prusa " + "of the series with a long name " * 2))], 80
    )
    assert "  serial    CZPX1234X004XK56789" in shown


def test_words_of_a_board_cannot_steer_the_terminal():
    """Whoever builds a USB stick chooses its name: no escape sequence of its gets through."""
    evil = replace(MK3, name="nice\x1b]0;pwned\x07\nprinter")
    shown = listing.table([Row(evil)], 80)
    assert "nice?]0;pwned??printer" in "".join(shown)
    assert listing.line(Row(evil)).isprintable()


def test_our_own_service_is_called_by_its_name(tmp_path):
    """It may run as `python3 -m portretry_udev watch`; other commands of ours are not the service."""
    for number, (words, ours) in enumerate(
        [
            (["python3", "-m", "portretry_udev", "watch", "mk3"], True),
            (["/usr/bin/python3", "/usr/local/bin/portretry-udev", "watch"], True),
            (["python3", "/opt/x/portretry_udev/__main__.py", "watch"], True),
            (["portretry-udev", "probe", "/dev/ttyUSB0"], False),
            (["vi", "portretry-udev.service"], False),
        ],
        start=1,
    ):
        process = tmp_path / str(number)
        process.mkdir()
        (process / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
        assert listing.is_service(number, tmp_path) is ours, words
    assert listing.spoken(Holder(1, "python3"), tmp_path) == "portretry-udev (pid 1)"
    assert listing.spoken(Holder(5, "vi"), tmp_path) == "vi (pid 5)"
    assert not listing.is_service(99, tmp_path)


# -- news --------------------------------------------------------------------------------------------------


class FakeHeard(FakePorts):
    """`Devices` that has heard what a test says."""

    def __init__(self, *ports):
        super().__init__(*ports)
        self.news = []
        self.events = "udev"
        self.retry_at = None
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def close(self):
        os.close(self._fd)

    def fileno(self):
        return self._fd

    def say(self, *news):
        self.news += news
        os.eventfd_write(self._fd, 1)

    def read(self):
        found, self.news = self.news, []
        return found


@pytest.fixture
def heard():
    devices = FakeHeard(MK3)
    yield devices
    devices.close()


def test_plug_and_unplug_are_told_once(heard):
    """What was there before is no news."""
    follower = Follower(heard)
    assert list(follower.changes()) == []
    heard.there.append(CH340)
    heard.say(Uevent("add", CH340.node))
    assert list(follower.changes()) == [Change("add", CH340)]
    assert list(follower.changes()) == []
    heard.there.remove(MK3)
    heard.say(Uevent("remove", MK3.node))
    assert list(follower.changes()) == [Change("remove", MK3)]
    assert list(follower.changes()) == []


def test_a_cable_that_is_pulled_and_put_back_at_once_is_told(heard):
    """Both came between two looks: the node is there as before."""
    follower = Follower(heard)
    heard.say(Uevent("remove", MK3.node), Uevent("add", MK3.node))
    assert list(follower.changes()) == [Change("remove", MK3), Change("add", MK3)]


def test_a_change_alone_is_no_news(heard):
    """`udevadm trigger` sends one to every port."""
    follower = Follower(heard)
    heard.say(Uevent("change", MK3.node))
    assert list(follower.changes()) == []


def test_without_events_the_looks_do_the_work(heard):
    """Containers hear nothing, and a storm of events overruns: what has come and gone is found anyway."""
    follower = Follower(heard)
    heard.there[:] = [CH340]
    assert list(follower.changes()) == [Change("remove", MK3), Change("add", CH340)]


def test_a_node_that_was_made_anew_is_another_port(heard, tmp_path):
    """No event told, but the node is a new one: it was pulled and put back."""
    node = tmp_path / "ttyACM7"
    node.touch()
    first = node.stat().st_ino
    port = replace(MK3, node=str(node))
    NUMBERS[port.node] = 7
    heard.there[:] = [port]
    follower = Follower(heard)
    node.rename(tmp_path / "kept")  # so that its inode is not given again
    node.touch()
    assert node.stat().st_ino != first
    assert list(follower.changes()) == [Change("remove", port), Change("add", port)]


def test_a_port_is_told_when_udevd_has_finished_with_it(heard):
    """Before that it has no names: nothing could be suggested.  The next look comes sooner meanwhile."""
    follower = Follower(heard)
    heard.there.append(replace(CH340, by_id=None, by_path=None))
    heard.settling.add(CH340.node)
    assert list(follower.changes()) == []
    began = time.monotonic()
    follower.wait()
    assert 0.9 < time.monotonic() - began < 3
    heard.settling.clear()
    heard.there[-1] = CH340
    assert list(follower.changes()) == [Change("add", CH340)]


def test_news_end_the_wait(heard):
    """Not one second passes, let alone five."""
    follower = Follower(heard)
    heard.say(Uevent("add", CH340.node))
    began = time.monotonic()
    follower.wait()
    heard.retry_at = began  # long over
    heard.read()
    os.eventfd_read(heard.fileno())
    follower.wait()
    assert time.monotonic() - began < 0.9


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
        if name.startswith("PORTRETRY_") or name == "NO_COLOR":
            monkeypatch.delenv(name)
    none = tmp_path / "no-such-file.toml"
    monkeypatch.setattr(config.load, "__kwdefaults__", {"default_file": none})
    monkeypatch.setattr(cli_common, "DEFAULT_FILE", none)


@pytest.fixture
def bench(tmp_path):
    with Bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def listed(monkeypatch):
    """The serial ports of this machine, as the test wants them."""
    found = []
    monkeypatch.setattr(Devices, "ports", lambda _: found)
    monkeypatch.setattr(listing, "_NODES", ())
    return found


def run(*arguments, **options):
    """``ports`` in this process; stdout and stderr apart."""
    return CliRunner().invoke(cli_ports.ports, [str(argument) for argument in arguments], **options)


def configuration(folder, *benches):
    path = folder / "config.toml"
    path.write_text(
        "".join(
            f'[printers.{bench.name}]\noctoprint = "{bench.octoprint.url}"\n'
            f'api_key_file = "{bench.key_file}"\nport = "{bench.link}"\n'
            for bench in benches
        )
    )
    return path


def test_ports_for_people(listed, bench, tmp_path):
    """Node, identity, names, whose it is, who holds it; one that nobody holds is free."""
    listed.append(replace(MK3, node=str(bench.link.resolve())))
    free = run("--config", configuration(tmp_path, bench))
    assert free.exit_code == 0
    title, facts, *names = free.stdout.splitlines()
    assert title.split() == ["NODE", "USB", "DRIVER", "PRINTER", "STATE"]
    assert facts.split() == [str(bench.link.resolve()), "2c99:0002", "cdc_acm", "mk3", "free"]
    assert f"  by-id     {MK3_ID}" in names
    assert f"  OctoPrint {bench.link} (mk3)" in names
    with someone_else(bench.link):
        assert re.search(r"cdc_acm  -  +in use by python\S* \(pid \d+\)$", run().stdout, re.MULTILINE)
    assert bench.printer.stats().opens == 1, "looking opens nothing"


def test_what_is_not_seen_is_told(listed, bench, monkeypatch):
    """Without root another user's program may have the port: free is then no more than a guess."""
    listed.append(Port(str(bench.link.resolve())))
    monkeypatch.setattr(listing, "holders", lambda _node: Holders((), unseen=7))
    said = run()
    assert "processes that are not ours to look into: 7; run as root" in said.stderr
    (row,) = json.loads(run("--json").stdout)
    assert (row["holders"], row["unseen"]) == ([], 7)


def test_colours_are_for_terminals_that_want_them(listed, bench, monkeypatch):
    """None in a pipe, and none with NO_COLOR."""
    listed.append(Port(str(bench.link.resolve())))
    assert "\x1b[" not in run().stdout
    assert "\x1b[32mfree" in run(color=True).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run(color=True).stdout


def test_ports_for_programs(listed, bench, tmp_path):
    """``--json``: objects of one shape; with a configuration they name the printer, and OctoPrint's name."""
    listed += [Port(str(bench.link.resolve())), replace(CH340, node="/dev/ttyGONE")]
    said = run("--json")
    gone, ours = json.loads(said.stdout)  # the USB port first
    assert (said.stderr, ours["node"], ours["holders"]) == ("", str(bench.link.resolve()), [])
    assert (ours["printer"], ours["octoprint"], ours["unusable"], ours["stale"]) == (None, {}, {}, None)
    assert (gone["holders"], gone["trouble"]) == (None, "No such file or directory")
    assert "not there" in gone["stale"]
    assert gone["unusable"] == {"by_id": "shared by every board with this chip: use by-path"}
    assert ours.keys() == gone.keys()
    with someone_else(bench.link):
        gone, ours = json.loads(run("--json", "--config", configuration(tmp_path, bench)).stdout)
    assert (ours["printer"], ours["octoprint"]) == ("mk3", {"mk3": str(bench.link)})
    (holder,) = ours["held_by"]
    assert ours["holders"] == [f"{holder['name']} (pid {holder['pid']})"]


def test_one_port_can_be_named(listed, bench):
    """By any of its names; one that is not there is an error, and stdout stays empty."""
    node = str(bench.link.resolve())
    listed += [replace(MK3, node=node), CH340]
    for name in (node, bench.link, MK3_ID):
        (found,) = json.loads(run(name, "--json").stdout)
        assert found["node"] == node
    said = run("/dev/ttyNONE", "--json")
    assert (said.exit_code, said.stdout) == (69, "")
    assert said.stderr == "portretry-udev: /dev/ttyNONE is no serial port that is here: is it plugged in?\n"


def test_ports_without_any(listed):
    """An empty list is said so on stderr; stdout stays empty, or an empty list."""
    del listed
    said = run()
    assert (said.exit_code, said.stdout) == (0, "")
    assert "no serial ports" in said.stderr
    assert json.loads(run("--json").stdout) == []


def test_ports_says_why_octoprint_does_not_tell(listed, bench, tmp_path):
    """The ports are listed all the same; the reason goes to stderr, without the key."""
    listed.append(Port(str(bench.link.resolve())))
    bench.octoprint.stop()
    said = run("--config", configuration(tmp_path, bench))
    assert said.exit_code == 0
    assert said.stdout.splitlines()[1].split() == [str(bench.link.resolve()), "-", "-", "mk3", "free"]
    assert "mk3: OctoPrint at" in said.stderr
    assert KEY not in said.output


def test_a_wrong_configuration_is_told_and_hides_no_port(listed, bench, tmp_path):
    """`ports` is what one needs to mend it."""
    listed.append(Port(str(bench.link.resolve())))
    path = tmp_path / "config.toml"
    path.write_text("[printers.mk3]\n")
    said = run("--config", path)
    assert (said.exit_code, len(said.stdout.splitlines())) == (0, 2)
    assert "mk3.octoprint: is missing" in said.stderr


def test_suggestions_for_the_ports_that_are_there(listed, tmp_path):
    """One block a USB port, a name each; built-in ports only if they are named; in JSON with the rest."""
    listed += [CH340, CP2102, BUILT_IN]
    said = run("--suggest")
    blocks = said.stdout.split("\n\n")
    assert (said.exit_code, said.stderr, len(blocks)) == (0, "", 2)
    assert [loaded(tmp_path, block.splitlines()).port for block in blocks] == [CH340.by_path, CP2102.by_path]
    assert ["# [printers.printer]" in blocks[0], "# [printers.printer-2]" in blocks[1]] == [True, True]
    assert run("--suggest", "/dev/ttyS0").stdout.splitlines()[-1] == 'port = "/dev/ttyS0"'
    assert [row["suggest"].splitlines()[-1] for row in json.loads(run("--suggest", "--json").stdout)] == [
        f'port = "{CH340.by_path}"',
        f'port = "{CP2102.by_path}"',
        'port = "/dev/ttyS0"',
    ]
    listed[:] = [BUILT_IN]
    assert "no USB serial ports" in run("--suggest").stderr


# -- the command, followed ---------------------------------------------------------------------------------


def test_watching_ends_with_ctrl_c():
    """No trace, nothing on stdout, and the status that shells give to it."""
    with Watching() as watching:
        assert watching.interrupt() == ("", "", 130)
