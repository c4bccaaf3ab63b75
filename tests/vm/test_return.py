"""The printer comes back: plugged in, switched on, its cable pulled at any moment."""

import random
from pathlib import Path

import pytest

from helpers import assert_eventually, assert_stays
from portretry_udev.fake_marlin import BANNER
from vm.bench import PATIENCE, on, scaled
from vm.boards import CH340, MEGA2560, PRUSA, SKR

pytestmark = pytest.mark.vm

OFF = scaled(12.0, 180.0)  # seconds
REPLUGS = scaled(6, 50)
BANNERS = scaled(3, 50)
SAYS = {b"", b"M115", b"N0 M110 N0*125", b"M105"}  # all that the service and the minimal OctoPrint ever send
ECHO_RULE = "99-portretry-echo.rules"


@on(MEGA2560, CH340)
def test_plugged_in_it_is_reset_once_by_our_first_open(bench):
    """From plug to Operational a board that resets on DTR does so once: OctoPrint's two opens add nothing."""
    board = bench.board_of()
    bench.plug()
    bench.operational()
    bench.wait_state("connected")
    assert (board.counts.resets, board.counts.rises, board.counts.opens) == (1, 1, 1)
    assert board.times("booted") > board.times("opens"), "it was not connected to before it had booted"
    assert board.counts.drops == 0, "and our end is closed by now: DTR has stayed up"


@on(SKR, PRUSA)
def test_native_usb_is_operational_at_once(bench):
    """A board that boots before it shows on USB is connected as it answers: one open, one attempt."""
    board = bench.board_of()
    before = bench.connects()
    bench.plug()
    bench.operational()
    assert (board.counts.resets, board.counts.rises, board.counts.opens) == (0, 1, 1)
    assert bench.connects() - before == 1
    assert 1200 not in board.details("rate"), "that starts bootloaders"


@on(PRUSA)
def test_57600_baud_is_not_for_prusa_boards(bench):
    """A Buddy board turns its Marlin off at that rate: what OctoPrint prefers does not count then."""
    bench.press("baudrate 57600")
    board = bench.board_of()
    bench.plug()
    bench.service.expect("57600 baud is not for Prusa boards", PATIENCE)
    assert board.counts.opens == 0
    bench.press("baudrate 115200")
    bench.operational()
    assert 57600 not in board.details("rate")


@on(MEGA2560, CH340)
def test_switched_on_after_minutes_without_power(bench):
    """A node without firmware is opened once, and not connected to; its power-on is heard, and nothing reset.

    Three minutes with PORTRETRY_TEST_FULL=1, 12 s else.
    """
    board = bench.board_of(powered=False)
    before = bench.connects()
    bench.plug()
    assert board.wait(lambda it: it.counts.opens, PATIENCE)
    assert_stays(lambda: bench.connects() == before and board.counts.opens == 1, OFF, bench.account)
    board.power_on()
    bench.operational()
    assert (board.counts.rises, board.counts.opens, board.counts.resets) == (1, 1, 0)
    assert bench.connects() - before == 1


@on(MEGA2560, CH340)
def test_switched_off_and_on_while_connected(bench):
    """Power lost under OctoPrint's hands, the node staying: Operational again after power-on, no edge."""
    board = bench.board_of()
    bench.plug()
    bench.operational()
    before = board.counts
    board.power_off()
    bench.octoprint.expect('"Offline after error"', PATIENCE)
    bench.wait_state("listening")
    board.power_on()
    bench.operational()
    assert (board.counts - before).rises == 0
    assert (board.counts - before).resets == 0


@on(MEGA2560)
def test_an_octoprint_that_waits_for_start_gets_one(bench):
    """It says nothing to a board that runs already, so its attempt fails with the port held.

    The next one lets go first, and DTR falls: OctoPrint's own two opens reset the board, which says `start`.
    """
    bench.press("wait_for_start on")
    try:
        board = bench.board_of()
        before = bench.connects()
        bench.plug()
        bench.octoprint.expect('"Connecting"', PATIENCE)
        bench.octoprint.expect('"Offline"', PATIENCE)
        assert (board.counts.rises, board.counts.drops, bench.connects() - before) == (1, 0, 1)
        bench.operational()
        bench.wait_state("connected")
    finally:
        bench.press("wait_for_start off")
    assert bench.connects() - before == 2
    assert (board.counts.rises, board.counts.drops, board.counts.resets) == (3, 2, 3)
    bench.service.expect(r"Guarded\(dtr_stays=True\)", PATIENCE)
    bench.press("disconnect")
    bench.wait_state("held")
    assert board.counts.drops == 2, "the edges were for that one attempt: from now on DTR stays up again"


@on(MEGA2560, CH340)
def test_cable_pulled_at_random_moments(bench):
    """Whatever moment the cable is pulled at, the node gets its old name and OctoPrint the printer.

    50 times with PORTRETRY_TEST_FULL=1, 6 else.
    """
    moments = random.Random(3)
    board = bench.board_of(boot_delay=0.5)
    for _ in range(REPLUGS):
        bench.plug()
        pulled_after = moments.uniform(0.2, 3.0)  # from the bus' first reset to well after Operational
        board.wait(lambda _: False, pulled_after)
        bench.unplug()
        board.wait(lambda _: False, moments.uniform(0.5, 1.2))
        again = bench.plug()
        bench.operational(after=again)
        assert bench.nodes() == [bench.kind.chip.node.removeprefix("/dev/")], (
            f"pulled after {pulled_after:.2f} s"
        )
        bench.unplug()
    assert board.counts.resets <= 2 * REPLUGS, "at most one for each appearance"


@pytest.fixture
def _echo_rule(bench):
    """The udev rule of that name is installed; taken back at the end with all that it has done."""
    text = (Path(__file__).parents[2] / "udev" / ECHO_RULE).read_text()
    run, ids = bench.machine.check, "/sys/bus/usb/drivers/cdc_acm"
    bench.machine.put(f"/etc/udev/rules.d/{ECHO_RULE}", text)
    run("udevadm control --reload")
    yield
    bench.clear()
    run(f"rm /etc/udev/rules.d/{ECHO_RULE}; udevadm control --reload; udevadm settle")
    run(f"while read -r v p _; do echo $v $p > {ids}/remove_id; done < {ids}/new_id")


def lines_heard(board, since=0.0):
    """The whole lines that the board has been sent since then (host's monotonic clock)."""
    data = b"".join(what[2] for what in board.log if what[1] == "heard" and what[0] >= since)
    return set(data.split(b"\n")[:-1])


def plug_with_a_waiting_banner(bench):
    """A board whose chip holds a banner from before; Operational, and asked by OctoPrint, at the end."""
    board = bench.board_of(boot_delay=0.5)
    board.say(BANNER)
    again = bench.plug()
    bench.operational(after=again)
    assert_eventually(lambda: board.commands["M105"], PATIENCE, bench.account)
    return board


@on(MEGA2560, SKR)
@pytest.mark.usefixtures("_echo_rule")
def test_a_banner_that_waits_is_not_echoed(bench):
    """With the rule, from a board's second appearance on: what waits is read, and not a byte of it goes back.

    50 times with PORTRETRY_TEST_FULL=1, 3 else.
    """
    plug_with_a_waiting_banner(bench)
    for _ in range(BANNERS):
        board = plug_with_a_waiting_banner(bench)
        assert lines_heard(board) <= SAYS


@on(MEGA2560)
def test_an_echo_does_not_outlast_the_reset_of_our_open(bench):
    """Without the rule the kernel echoes before we can forbid it: to a firmware that the same open resets.

    What it hears from its boot on is nobody's but ours and OctoPrint's.
    """
    for _ in range(BANNERS):
        board = plug_with_a_waiting_banner(bench)
        (booted,) = board.times("booted")
        assert lines_heard(board, booted) <= SAYS
