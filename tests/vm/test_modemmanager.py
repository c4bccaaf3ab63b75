"""ModemManager itself, of Debian 12, against the udev rules: whom it opens, and whom it leaves alone.

The boards say who was opened.  A marked one is left alone while a neighbour of the same make, plugged in
after it, is opened and told AT: so "nothing came" is not said too early, and could have been false.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest

from portretry_udev.udev_rule import rules_for
from vm.bench import PATIENCE
from vm.boards import CH340, MEGA2560, PRUSA, Board, Counts
from vm.machine import Machine, built

pytestmark = pytest.mark.vm

RULES_D = Path("/etc/udev/rules.d")
RULE = Path(__file__).parents[2] / "udev" / "99-portretry.rules"
NOTHING = Counts(*[0] * len(fields(Counts)))


def modem_shaped(kind):
    """The same board with a second port: what claims AT commands and has two is a modem to ModemManager."""
    return replace(kind, name=f"{kind.name}-twin", chip=replace(kind.chip, twin=True))


def serial(kind, number):
    """The same kind with this serial number."""
    return replace(kind, chip=replace(kind.chip, texts=(*kind.chip.texts[:2], number)))


MEGA_TWIN, PRUSA_TWIN = modem_shaped(MEGA2560), modem_shaped(PRUSA)


@dataclass(frozen=True)
class Printer:
    name: str = "mk3"
    port: str | None = None
    match: dict[str, str] = field(default_factory=dict)


class Stage:
    """A machine with a D-Bus, the rules of one story, ModemManager, and boards.

    Attributes:
        manager: ModemManager's process; its lines are its debugging log.
    """

    def __init__(self, machine):
        self.machine = machine
        self.manager = None
        self._boards = {}

    def rules(self, **texts):
        """Have just these files in /etc/udev/rules.d, by the first words of their names."""
        self.machine.check(f"rm -f {RULES_D}/*.rules")
        for name, text in texts.items():
            self.machine.put(f"{RULES_D}/{name.lstrip('_').replace('_', '-')}.rules", text)
        self.machine.check("udevadm control --reload")

    def start_manager(self):
        """Run it, as its unit does but for the log; it has looked at all there is at the end."""
        self.manager = self.machine.spawn("ModemManager", "--debug", "--filter-policy=strict")
        self.manager.expect(r"net/lo\)", PATIENCE)  # the last of them

    def stop_manager(self):
        if self.manager is not None:
            self.manager.kill()
            self.manager.wait(PATIENCE)
        self.manager = None

    def plug(self, name, kind):
        """Plug in a board; returns it as soon as all its ports are there."""
        there = self._ports()
        board = self._boards[name] = Board(kind, self.machine.dir / f"{name}.sock")
        self.machine.plug(name, board.path)
        wanted = there + 1 + kind.chip.twin
        self.machine.check(f"until [ $(ls /dev | grep -cE 'tty(ACM|USB)') = {wanted} ]; do sleep 0.05; done")
        return board

    def _ports(self):
        return int(self.machine.check("ls /dev | grep -cE 'tty(ACM|USB)' || true"))

    def clear(self):
        """No ModemManager, no board, no rule."""
        self.stop_manager()
        for name in [*self._boards]:
            self.machine.unplug(name)
            self._boards.pop(name).close()
        self.machine.check("while ls /dev/ttyACM* /dev/ttyUSB*; do sleep 0.05; done 2> /dev/null")
        self.rules()

    def account(self):
        """All that was said and felt, for a failed test."""
        felt = "\n".join(f"--- {name}:\n{board.story()}" for name, board in self._boards.items())
        log = "\n".join(self.manager.said("tty(ACM|USB)")[-60:]) if self.manager else ""
        return f"{felt}\n--- ModemManager:\n{log}"

    def path(self, name):
        """The link to a printer's port by its place."""
        return f"/dev/serial/by-path/{self.machine.path(name)}"


@pytest.fixture(scope="module")
def _stage(machine):  # noqa: ARG001 - it skips where no machine can be built
    """In a machine of its own: the others have no D-Bus."""
    with Machine(built()) as own:
        own.check("rm /etc/systemd/system/{dbus.*,polkit.service}; systemctl daemon-reload")
        own.check("systemctl start dbus.socket dbus.service")
        yield Stage(own)


@pytest.fixture
def bench(_stage):
    yield _stage
    _stage.clear()


def told_at(board):
    """Whether it was opened and told what one tells a modem."""
    return board.wait(lambda it: b"AT" in it.received.replace(b"AA", b"A").replace(b"TT", b"T"), PATIENCE)


def assert_left_alone(bench, board, neighbour):
    """Plug in a neighbour that is nobody's printer: it is told AT, the board has felt nothing; returns it."""
    other = bench.plug("neighbour", neighbour)
    assert told_at(other), bench.account()
    assert board.counts == NOTHING
    return other


def assert_left_alone_anew(bench, board, other):
    """The same when ModemManager starts anew and finds both there."""
    bench.stop_manager()
    opens, heard = other.counts.opens, len(other.received)
    bench.start_manager()
    assert other.wait(lambda it: it.counts.opens > opens and len(it.received) > heard, PATIENCE)
    assert board.counts == NOTHING


def test_without_the_rule_it_tells_a_printer_at_commands(bench):
    """A printer maker's board with two ports; one with one port, and a CH340, it leaves alone by itself."""
    bench.start_manager()
    others = [bench.plug("mega", MEGA2560), bench.plug("ch340", CH340)]

    board = bench.plug("printer", PRUSA_TWIN)

    assert told_at(board)
    assert board.counts.opens > 0
    assert [other.counts for other in others] == [NOTHING] * 2


def test_a_printer_makers_board_is_left_alone(bench):
    """By the rule at 99: hot-plugged, and when ModemManager starts while it is there."""
    bench.rules(_99_portretry=RULE.read_text())
    bench.start_manager()

    board = bench.plug("printer", PRUSA_TWIN)

    other = assert_left_alone(bench, board, MEGA_TWIN)
    assert_left_alone_anew(bench, board, other)


def test_99_is_early_enough(bench):
    """Also where udev takes its time between ModemManager's rule at 80 and ours, then by `change`."""
    slow = 'KERNEL=="ttyACM*", PROGRAM="/bin/sleep 1"\n'
    bench.rules(_85_slow=slow, _99_portretry=RULE.read_text())
    board = bench.plug("printer", PRUSA_TWIN)
    bench.start_manager()  # while udev is still at it
    bench.machine.check("udevadm trigger --settle --subsystem-match=usb --subsystem-match=tty")

    assert_left_alone(bench, board, MEGA_TWIN)


@pytest.mark.parametrize("by", ["serial", "by-path"])
def test_a_configured_board_of_any_maker_is_left_alone(bench, by):
    """By the file for one's own printers; its neighbour, the same but for the serial number, is a modem."""
    ours, others = serial(MEGA_TWIN, "11"), serial(MEGA_TWIN, "22")
    printer = {
        "serial": Printer(match={"serial": "11"}),
        "by-path": Printer(port=bench.path("printer")),
    }[by]
    bench.rules(_99_portretry=RULE.read_text(), _99_portretry_printers=rules_for([printer]))
    bench.start_manager()

    board = bench.plug("printer", ours)
    bench.machine.check("[ -e /dev/printer-mk3 ]")

    other = assert_left_alone(bench, board, others)
    if by == "serial":  # which is in more rules: the device's, too
        assert_left_alone_anew(bench, board, other)


def test_a_configured_ch340_is_left_alone(bench):
    """Though another rule takes all CH340 for modems; by its place, as it has no serial number."""
    modem = 'SUBSYSTEM=="tty", ENV{ID_VENDOR_ID}=="1a86", ENV{ID_MM_LONGCHEER_TAGGED}="1"\n'
    printer = Printer(port=f"{bench.path('printer')}-port0")
    bench.rules(_78_modem=modem, _99_portretry_printers=rules_for([printer]))
    bench.start_manager()

    board = bench.plug("printer", CH340)
    bench.machine.check("[ -e /dev/printer-mk3 ]")

    assert_left_alone(bench, board, CH340)
