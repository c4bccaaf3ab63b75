"""The computer sleeps (S3, "suspend to RAM"): what becomes of the printer meanwhile is noticed at the waking.

While it sleeps no event is made; the kernel looks at its USB ports when it wakes.
"""

import pytest

from vm.bench import PATIENCE, on
from vm.boards import CH340, MEGA2560

pytestmark = pytest.mark.vm

BOOT = 0.5  # seconds


def connected(bench):
    """A printer that is on, and that OctoPrint has."""
    board = bench.board_of(boot_delay=BOOT)
    bench.plug()
    bench.operational()
    bench.wait_state("connected")
    return board


@on(MEGA2560, CH340)
def test_pulled_while_the_computer_sleeps(bench):
    """It is absent after the waking; plugged in then, it is Operational."""
    connected(bench)
    with bench.machine.asleep():
        bench.unplug()
    bench.wait_state("absent")
    bench.operational(after=bench.plug())
    bench.wait_state("connected")


@on(MEGA2560, CH340)
def test_plugged_in_while_the_computer_sleeps(bench):
    """Nobody was there to hear of it; after the waking it is opened once, and Operational."""
    board = bench.board_of(boot_delay=BOOT)
    with bench.machine.asleep():
        bench.plug()
    bench.operational()
    bench.wait_state("connected")
    assert (board.counts.opens, board.counts.rises, board.counts.resets) == (1, 1, 1)


@on(MEGA2560, CH340)
def test_left_alone_while_the_computer_sleeps(bench):
    """Whatever the waking kernel makes of its port, OctoPrint goes on with it, or gets it back."""
    board = connected(bench)
    with bench.machine.asleep():
        polls = board.received.count(b"M105")
    assert board.wait(lambda it: it.received.count(b"M105") >= polls + 3, PATIENCE)
    bench.wait_state("connected")
