"""The rule files in the hands of the real udev: who is marked, who is not, and when ModemManager sees it.

`udevadm test` goes over fake devices (umockdev), its builtins usb_id and path_id at work; a running udevd
shows what is in its database at which moment.
"""

import itertools
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pyudev

from portretry_udev.udev_rule import rules_for

pytestmark = pytest.mark.system

RULES = Path(__file__).parents[2] / "udev" / "99-portretry.rules"
RUN = Path("/run/udev/rules.d")
CONTROLLER = "/devices/pci0000:00/0000:00:14.0"
PRUSA, ULTIMAKER, ULTIMACHINE, MAKERBOT = "2c99", "28c7", "27b1", "23c1"
ARDUINO, CH340 = "2341", "1a86"


@dataclass(frozen=True)
class Printer:
    name: str = "mk3"
    port: str | None = None
    match: dict[str, str] = field(default_factory=dict)


class Tried:
    """What udev has decided about a device, by `udevadm test`."""

    def __init__(self, output: str, errors: str) -> None:
        known = dict(
            line.split("=", 1)
            for line in output.splitlines()
            if "=" in line and " " not in line.split("=")[0]
        )
        self.ignored = {key for key in ("ID_MM_DEVICE_IGNORE", "ID_MM_PORT_IGNORE") if known.get(key) == "1"}
        self.tags = set(known.get("CURRENT_TAGS", "").split(":")) - {""}
        self.links = set(known.get("DEVLINKS", "").split())
        self.wants = known.get("SYSTEMD_WANTS", "").split()
        self.errors = errors

    def complaints(self, name: str) -> list[str]:
        # What a rule does is told in the same words, with the device in front.
        return [line for line in self.errors.splitlines() if line.startswith(f"{RUN}/{name}:")]


class Bench:
    """Fake USB boards, and the rule files that udev is given for them beside its own."""

    def __init__(self, testbed, folder) -> None:
        self.testbed, self.folder = testbed, folder
        self._numbers = itertools.count(200)
        self.write(RULES.name, RULES.read_text())
        testbed._tell("add", f"P: {CONTROLLER}\nE: SUBSYSTEM=pci\n\n")  # path_id begins with it

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def plug(self, vendor=PRUSA, serial="CZPX1", *, tty="ttyACM0", socket="1-1", product="0002") -> str:
        """A CDC-ACM board in a socket of a hub or computer; returns the syspath of its port."""
        device = f"{CONTROLLER}/usb1/{'/'.join(_way(socket))}"
        port = f"{device}/{socket}:1.0/tty/{tty}"
        ids = [
            f"A: idVendor={vendor}\\n",
            f"A: idProduct={product}\\n",
            "A: product=Board\\n",
            "A: manufacturer=M\\n",
        ]
        number = [f"A: serial={serial}\\n"] if serial else []
        interface = [
            f"A: bInterface{key}\\n" for key in ("Class=02", "SubClass=02", "Protocol=01", "Number=00")
        ]
        minor = next(self._numbers)
        blocks = [
            [
                f"P: {device}",
                "E: SUBSYSTEM=usb",
                "E: DEVTYPE=usb_device",
                *ids,
                *number,
                f"L: driver={_up(device)}/bus/usb/drivers/usb",
            ],
            [
                f"P: {device}/{socket}:1.0",
                "E: SUBSYSTEM=usb",
                "E: DEVTYPE=usb_interface",
                *interface,
                f"L: driver={_up(device)}/../bus/usb/drivers/cdc_acm",
            ],
            [
                f"P: {port}",
                "E: SUBSYSTEM=tty",
                f"E: DEVNAME=/dev/{tty}",
                "E: MAJOR=166",
                f"E: MINOR={minor}",
                f"A: dev=166:{minor}\\n",
            ],
        ]
        for block in blocks:
            self.testbed._tell("add", "\n".join([*block, "", ""]))
        return f"/sys{port}"

    def try_(self, syspath: str, action: str = "add") -> Tried:
        script = (
            "set -e; mkdir -p /run/udev /dev/char; "
            "mount -t tmpfs none /run/udev; mount -t tmpfs none /dev/char; "
            'cp -r "$0" /run/udev/rules.d; exec env "$@"'
        )
        preload = [f"{name}={self.testbed.env[name]}" for name in ("LD_PRELOAD", "UMOCKDEV_DIR")]
        udevadm = ["udevadm", "test", f"--action={action}", syspath]
        command = ["unshare", "--mount", "sh", "-c", script, self.folder, *preload, *udevadm]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for file in self.folder.iterdir():
            assert f"Reading rules file: /run/udev/rules.d/{file.name}" in done.stderr
        return Tried(done.stdout, done.stderr)


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path) -> Bench:
    """What `udevadm test` needs; it writes its database and links for real."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a rule is tried in a mount namespace")
    if not shutil.which("udevadm"):
        pytest.skip("needs udevadm: apt install udev")
    testbed = request.getfixturevalue("testbed")
    request.getfixturevalue("untouched")
    folder = tmp_path / "rules.d"
    folder.mkdir()
    return Bench(testbed, folder)


@pytest.fixture
def rules_d(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of rules that the running udevd obeys, emptied again of what the test writes."""
    request.getfixturevalue("udevd")
    made = not RUN.exists()
    RUN.mkdir(parents=True, exist_ok=True)
    before = set(RUN.iterdir())
    yield RUN
    for file in set(RUN.iterdir()) - before:
        file.unlink()
    if made:
        RUN.rmdir()
    subprocess.run(["udevadm", "control", "--reload"], check=True)


def device_of(port: str) -> str:
    """The syspath of a port's USB device."""
    return str(Path(port).parents[2])


@pytest.mark.parametrize("vendor", [PRUSA, ULTIMAKER, ULTIMACHINE, MAKERBOT])
def test_modemmanager_is_kept_off_the_printers_of_printer_makers(bench, vendor):
    """The USB device, and so all its ports, and the port; on "change" as on "add"."""
    port = bench.plug(vendor)

    for action in ("add", "change"):
        assert bench.try_(device_of(port), action).ignored == {"ID_MM_DEVICE_IGNORE"}
        assert bench.try_(port, action).ignored == {"ID_MM_PORT_IGNORE"}


@pytest.mark.parametrize("vendor", [ARDUINO, CH340, "12d1"])
def test_boards_of_all_purposes_and_modems_are_left_to_modemmanager(bench, vendor):
    """What has an Arduino or a CH340 may be a modem: only the tag says that it may be a printer."""
    port = bench.plug(vendor)

    assert bench.try_(device_of(port)).ignored == set()
    tried = bench.try_(port)
    assert tried.ignored == set()
    assert "portretry" in tried.tags


def test_what_hangs_on_a_printers_hub_is_not_the_printer(bench):
    """A modem that is plugged into a printer is a modem."""
    bench.plug(PRUSA, tty="ttyACM0", socket="1-1")
    modem = bench.plug("12d1", tty="ttyACM1", socket="1-1.4")

    assert bench.try_(modem).ignored == set()


def test_the_rule_is_taken_whole_and_starts_nothing(bench):
    """No line is complained of; no service is wanted and no link made for a board that nobody configured."""
    # Since systemd 254 there is a check that needs no device, and is stricter.
    if int(subprocess.check_output(["udevadm", "--version"], text=True).split()[0]) >= 254:
        subprocess.run(["udevadm", "verify", RULES], check=True)
    tried = bench.try_(bench.plug())

    assert tried.complaints(RULES.name) == []
    assert tried.wants == []
    assert not any("printer" in link for link in tried.links)
    assert bench.try_(bench.plug(tty="ttyS7", socket="1-2")).tags == {"systemd"}
    assert "portretry" not in bench.try_(bench.plug(tty="ttyACM3", socket="1-3"), "remove").tags


@pytest.mark.parametrize(
    "printer",
    [
        Printer(port="/dev/serial/by-id/usb-M_Board_CZPX1-if00"),
        Printer(port="/dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0"),
        Printer(match={"serial": "CZPX1", "vendor": ARDUINO, "product": "0002", "interface": "00"}),
        Printer(match={"path": "pci-0000:00:14.0-usb-0:1:1.0"}),
    ],
    ids=["by-id", "by-path", "serial", "path"],
)
def test_a_configured_printer_is_marked_and_its_neighbour_is_not(bench, printer):
    """Link, ModemManager and service, on "change" too; a second board of its kind gets nothing of it."""
    name = "99-portretry-printers.rules"
    bench.write(name, rules_for([printer]))
    ours = bench.plug(ARDUINO)
    others = bench.plug(ARDUINO, "CZPX2", tty="ttyACM1", socket="1-2")

    for action in ("add", "change"):
        tried = bench.try_(ours, action)
        assert tried.ignored == {"ID_MM_DEVICE_IGNORE", "ID_MM_PORT_IGNORE"}
        assert "/dev/printer-mk3" in tried.links
        # systemd would start again, with any "change", what was stopped by hand.
        assert tried.wants == (["portretry-udev.service"] if action == "add" else [])
        assert {"systemd", "portretry"} <= tried.tags
    assert tried.complaints(name) == []
    neighbour = bench.try_(others)
    assert (neighbour.ignored, neighbour.wants) == (set(), [])
    assert "/dev/printer-mk3" not in neighbour.links
    removed = bench.try_(ours, "remove")
    assert (removed.ignored, removed.wants) == (set(), [])


@pytest.mark.parametrize(
    ("printer", "whole"),
    [
        (Printer(port="/dev/serial/by-id/usb-M_Board_CZPX1-if00"), True),
        (Printer(match={"serial": "CZPX1"}), True),
        (Printer(port="/dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0"), False),
    ],
    ids=["by-id", "serial", "by-path"],
)
def test_the_usb_device_of_a_configured_printer(bench, printer, whole):
    """All its ports are kept from ModemManager where the configuration names the device, not a socket."""
    bench.write("99-portretry-printers.rules", rules_for([printer]))
    ours, others = bench.plug(ARDUINO), bench.plug(ARDUINO, "CZPX2", tty="ttyACM1", socket="1-2")

    assert bench.try_(device_of(ours)).ignored == ({"ID_MM_DEVICE_IGNORE"} if whole else set())
    assert bench.try_(device_of(others)).ignored == set()


def test_what_is_installed_is_taken_whole(bench, tmp_path):
    """The files as `install` writes them for a configuration: no complaint, and each printer has its own."""
    folder = tmp_path / "etc" / "portretry-udev"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        '[printers.left]\noctoprint = "http://127.0.0.1:5000"\nmatch = { serial = "CZPX1" }\n'
        '[printers.right]\noctoprint = "http://127.0.0.1:5001"\n'
        'port = "/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0"\n'
        '[printers.odd]\noctoprint = "http://127.0.0.1:5002"\nport = "/srv/tty"\n'
    )
    command = [sys.executable, "-m", "portretry_udev", "install", "--root", tmp_path, "--yes"]
    subprocess.run(command, check=True, capture_output=True)
    rules = tmp_path / "etc" / "udev" / "rules.d"
    names = sorted(path.name for path in rules.iterdir())
    assert names == ["99-portretry-printers.rules", "99-portretry.rules"]
    for name in names:
        bench.write(name, (rules / name).read_text())

    left = bench.try_(bench.plug(ARDUINO))
    right = bench.try_(bench.plug(ARDUINO, "CZPX2", tty="ttyACM1", socket="1-2"))

    for tried, link in ((left, "/dev/printer-left"), (right, "/dev/printer-right")):
        assert [tried.complaints(name) for name in names] == [[], []]
        assert {each for each in tried.links if "printer-" in each} == {link}
        assert tried.wants == ["portretry-udev.service"]


def test_a_node_is_marked_without_a_link(bench):
    """ttyACM0 as configured: ModemManager stays off it, and no stable name pretends to know it."""
    bench.write("99-portretry-printers.rules", rules_for([Printer(port="/dev/ttyACM0")]))

    tried = bench.try_(bench.plug(ARDUINO))

    assert tried.ignored == {"ID_MM_DEVICE_IGNORE", "ID_MM_PORT_IGNORE"}
    assert "/dev/printer-mk3" not in tried.links


def test_a_complaint_of_udevs_would_be_found(bench):
    """The checks above are able to fail."""
    bench.write("99-broken.rules", 'KERNEL=="x", TAGG+="y"\n')

    (complaint,) = bench.try_(bench.plug()).complaints("99-broken.rules")

    assert "TAGG" in complaint


def test_99_is_early_enough_for_modemmanager(udevd, rules_d):
    """ModemManager asks for ID_MM_CANDIDATE, which its rule at 80 sets, before it looks at a port.

    It sees that in udev's event or database.  In neither is it ever without what a rule at 99 sets, though
    another rule between them takes its time.
    """
    name = udevd.SPARE
    (rules_d / "80-test-candidate.rules").write_text(f'KERNEL=="{name}", ENV{{ID_MM_CANDIDATE}}="1"\n')
    (rules_d / "85-test-slow.rules").write_text(f'KERNEL=="{name}", PROGRAM="/bin/sleep 0.3"\n')
    (rules_d / "99-test-ignore.rules").write_text(f'KERNEL=="{name}", ENV{{ID_MM_PORT_IGNORE}}="1"\n')
    subprocess.run(["udevadm", "control", "--reload"], check=True)
    context = pyudev.Context()
    monitor = pyudev.Monitor.from_netlink(context, "udev")
    monitor.filter_by("tty")
    monitor.start()
    ready = select.poll()
    ready.register(monitor.fileno(), select.POLLIN)
    udevd.trigger("remove")
    seen = []
    udevd.trigger("add")
    while True:
        looked = pyudev.Devices.from_name(context, "tty", name).properties
        seen.append({key for key in looked if key.startswith("ID_MM")})
        event = monitor.poll(0) if ready.poll(1) else None
        if event is not None and (event.sys_name, event.action) == (name, "add"):
            break

    both = {"ID_MM_CANDIDATE", "ID_MM_PORT_IGNORE"}
    assert both <= set(event.properties)
    assert all(marks in (set(), both) for marks in seen)
    assert seen[0] == set(), "looked at while the slow rule was at work"
    assert len(seen) > 20


def _way(socket: str) -> list[str]:
    """The folders of a USB device: 1-1.4 lies in that of its hub, 1-1."""
    parts = socket.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _up(device: str) -> str:
    return "/".join([".."] * device.count("/"))
