"""A person has disconnected OctoPrint: a print from SD that goes on by itself must not notice us."""

import pytest

from helpers import assert_stays
from vm.bench import PATIENCE, on, scaled
from vm.boards import MEGA2560

pytestmark = pytest.mark.vm

HELD = scaled(10.0, 60.0)  # seconds
SD_SPEED = 1000  # bytes a second, the fake Marlin's


def print_and_disconnect(bench):
    """Start a print at the printer, press Disconnect, and see that the board feels nothing any more."""
    board = bench.board
    board.start_sd_print()
    bench.octoprint.expect('"Printing from SD"', PATIENCE)
    bench.press("disconnect")
    bench.octoprint.expect('"Offline"', PATIENCE)
    before = board.counts
    bench.wait_state("held")

    def untouched():
        passed = board.counts - before
        return (passed.resets, passed.rises, passed.drops, passed.bytes_in) == (0, 0, 0, 0)

    assert_stays(untouched, HELD, bench.account)
    printed = (board.counts - before).sd_position
    assert printed >= HELD * SD_SPEED * 0.9, "the print goes on"
    assert bench.state() == "held"


@on(MEGA2560)
def test_disconnected_while_it_prints_from_sd(bench):
    """Connected by us, disconnected by a person: not an edge, not a byte, and the print goes on.

    60 s with PORTRETRY_TEST_FULL=1, 10 s else.
    """
    bench.board_of()
    bench.plug()
    bench.operational()
    bench.wait_state("connected")
    print_and_disconnect(bench)


@on(MEGA2560)
def test_octoprint_had_connected_by_itself(bench):
    """The same where OctoPrint's own open was the first: the guard has cleared HUPCL while it was idle."""
    board = bench.board_of()
    with bench.paused():
        bench.plug()
        bench.machine.check(f"until [ -e {bench.kind.chip.node} ]; do sleep 0.1; done")
        bench.press("connect")
        bench.operational()
        before = board.counts
    bench.service.expect(r"Guarded\(dtr_stays=True\)", PATIENCE)
    assert (board.counts - before).rises == 0, "an open of an open port makes no edge"
    print_and_disconnect(bench)


@on(MEGA2560)
def test_a_held_printer_that_returns_is_connected(bench):
    """After a deliberate Disconnect the power switch is enough: its banner is heard, without an edge."""
    board = bench.board_of()
    bench.plug()
    bench.operational()
    bench.wait_state("connected")
    bench.service.catch_up()
    bench.press("disconnect")
    bench.service.expect(r"Opened\(", PATIENCE)
    bench.wait_state("held")
    before = board.counts
    board.power_off()
    board.power_on()
    bench.operational()
    assert (board.counts - before).resets == 0
