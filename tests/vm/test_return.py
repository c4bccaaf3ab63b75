"""The printer comes back: plugged in, switched on, its cable pulled at any moment."""

import random

import pytest

from helpers import assert_stays
from vm.bench import PATIENCE, on, scaled
from vm.boards import CH340, MEGA2560, PRUSA, SKR

pytestmark = pytest.mark.vm

OFF = scaled(20.0, 180.0)  # seconds
REPLUGS = scaled(10, 50)


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

    Three minutes with PORTRETRY_TEST_FULL=1, 20 s else.
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


@on(MEGA2560, CH340)
def test_cable_pulled_at_random_moments(bench):
    """Whatever moment the cable is pulled at, the node gets its old name and OctoPrint the printer.

    50 times with PORTRETRY_TEST_FULL=1, 10 else.
    """
    moments = random.Random(3)
    board = bench.board_of(boot_delay=0.5)
    for _ in range(REPLUGS):
        bench.plug()
        pulled_after = moments.uniform(0.2, 3.0)  # from the bus' first reset to well after Operational
        board.wait(lambda _: False, pulled_after)
        bench.unplug()
        board.wait(lambda _: False, moments.uniform(0.5, 1.2))
        if bench.octoprint_state() == "Opening serial connection":
            # OctoPrint's own trap, when pulled within its open: here a person gets it out.
            bench.press("disconnect")
        again = bench.plug()
        bench.operational(after=again)
        assert bench.nodes() == [bench.kind.chip.node.removeprefix("/dev/")], (
            f"pulled after {pulled_after:.2f} s"
        )
        bench.unplug()
    assert board.counts.resets <= 2 * REPLUGS, "at most one for each appearance"
