"""The doctor on a machine with real USB, udevd and systemd: what it finds, and that its cures cure."""

from pathlib import Path

import pytest

from helpers import assert_eventually
from portretry_udev.udev_rule import rules_for
from vm.bench import PATIENCE, Bench, copy_package
from vm.boards import MEGA2560, Board
from vm.commands import Commands
from vm.machine import Machine, built

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
CONFIG, KEY_FILE = "/etc/portretry-udev/config.toml", "/etc/portretry-udev/mk3.key"
UNIT = "/etc/systemd/system/portretry-udev.service"
DROP_IN = f"{UNIT}.d/configuration.conf"
RULES = "/etc/udev/rules.d"
KEY = "a_key_that_no_octoprint_has_ever_known"
PORT = "/dev/serial/by-id/usb-Arduino__www.arduino.cc__0042_95530343434351A012B1-if00"


class House(Bench):
    """A guest without a service or an OctoPrint, and a board to plug in; the doctor comes by."""

    def __enter__(self):
        self.commands = Commands(self.machine)
        return self

    def __exit__(self, *_):
        self.commands.close()
        if self._plugged:
            self.unplug()
        if self.board is not None:
            self.board.close()
        self.machine.check(f"rm -rf /etc/portretry-udev {UNIT} {UNIT}.d {RULES}/99-portretry*")
        self.machine.check("systemctl daemon-reload; udevadm control --reload")

    def board_of(self):
        """A board, not plugged in yet."""
        self.board = Board(self.kind, self._path())
        return self.board

    def findings(self):
        """All of them, by their names."""
        found = self.commands.findings()
        assert KEY not in str(found)
        return found

    def cure(self, finding):
        """Type the commands that it advises."""
        assert finding["commands"]
        for command in finding["commands"]:
            self.machine.check(command.replace("sudo ", ""), PATIENCE)
        self.machine.check("udevadm settle")

    def configure(self, top=""):
        self.machine.check("mkdir -p /etc/portretry-udev")
        self.machine.put(KEY_FILE, KEY + "\n", 0o600)
        text = f'{top}[printers.mk3]\noctoprint = "http://127.0.0.1:9"\nport = "{PORT}"\n'
        self.machine.put(CONFIG, text)


class Mk3:
    name, port, match = "mk3", PORT, {}


@pytest.fixture
def own(machine):  # noqa: ARG001 - it skips where no machine can be built
    """A machine of its own: in the others' services of ours run, which a doctor would find."""
    with Machine(built()) as running:
        copy_package(running)
        yield running


def test_from_nothing_to_a_machine_that_is_well(own):
    """What a person meets who does one thing after the other; each finding goes when its cure was applied."""
    with House(own, MEGA2560) as house:
        assert house.findings().keys() >= {"configuration-missing", "unit-missing", "rule-missing"}

        house.configure()
        own.put(UNIT, (ROOT / "systemd/portretry-udev.service").read_text())
        own.check("systemctl daemon-reload")
        found = house.findings()
        assert found["events"]["what"].startswith("udev's arrive"), "by a real udevd"
        assert not found.keys() & {"configuration-missing", "unit-missing", "unit-lacks", "unit-unwatched"}
        assert found.keys() >= {"unit-disabled", "unit-stopped", "octoprint-down", "port-absent"}
        house.cure(found["unit-disabled"])
        assert "unit-disabled" not in house.findings()

        board = house.board_of()
        house.plug()
        house.wait_node(PORT)
        found = house.findings()
        assert "port-absent" not in found
        assert PORT in found["port"]["what"]
        assert found["permitted"]["level"] == "ok", "the unit has the group of the port"

        own.put(f"{RULES}/99-portretry.rules", (ROOT / "udev/99-portretry.rules").read_text())
        own.put(f"{RULES}/99-portretry-printers.rules", rules_for([Mk3]))
        found = house.findings()
        assert "rule-missing" not in found
        house.cure(found["rule-ineffective"])
        found = house.findings()
        assert "rule-ineffective" not in found
        assert found["udev"]["what"] == "has marked the port"

        asleep = (
            f"cd -P /sys/class/tty/$(basename $(readlink -f {PORT}))/device/../power && echo auto > control"
        )
        own.check(asleep)
        house.cure(house.findings()["usb-autosuspend"])
        assert "usb-autosuspend" not in house.findings()

        house.configure('state_dir = "/srv/holds"\n')
        lacks = house.findings()["unit-lacks"]
        line = lacks["what"].removeprefix("the unit lacks ").partition(": ")[0]
        own.check("mkdir -p /srv/holds")
        own.put(DROP_IN, f"[Service]\n{line}\n")
        own.check("systemctl daemon-reload")
        assert "unit-lacks" not in house.findings()

        holder = own.spawn("sh", "-c", f"exec 3<>{PORT}; sleep 600")
        assert_eventually(lambda: "port-held" in house.findings(), PATIENCE, house.findings)
        opens = board.counts.opens
        assert opens == 1, "the holder's; the doctor has opened it never"
        holder.kill()
        assert_eventually(lambda: "port-held" not in house.findings(), PATIENCE, house.findings)
        assert board.counts.opens == opens
