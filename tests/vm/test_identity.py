"""Several boards that are alike: each printer gets its own, whatever the kernel calls it, and never another.

That nobody was at the wrong board is read off the boards: the two printers have different baudrates.
"""

import contextlib
import re
from dataclasses import fields, replace

import pytest

from helpers import assert_stays
from vm.bench import PATIENCE, Several, copy_package, scaled
from vm.boards import CH340, MEGA2560, Counts
from vm.machine import Machine, built

pytestmark = pytest.mark.vm

RATES = {"a": 230400, "b": 38400}  # baud
FIRST_RATES = [9600, 115200]  # baud: the driver's for a new tty, and what ours has while it is set raw
BY_ID = "/dev/serial/by-id/usb-1a86_USB_Serial-if00-port0"  # of any CH340: it has no serial number
BOOT = 0.5  # seconds
PULLS = scaled(10, 100)
HANDS_OFF = scaled(3.0, 60.0)  # seconds, with an interval of two
NOTHING = Counts(*[0] * len(fields(Counts)))


@pytest.fixture(scope="module")
def pair(machine):  # noqa: ARG001 - it skips where no machine can be built
    """In a machine of its own: in the others' their service would be after the same boards."""
    with Machine(built()) as own:
        copy_package(own)
        with Several(own, CH340, *RATES) as pair:
            yield pair


@pytest.fixture
def bench(pair):
    yield pair
    pair.clear()


@pytest.fixture
def told_apart(bench):
    """The service tells the boards apart by their ports of the hub: one by a link, one by `match`."""
    a, b = bench.seats.values()
    bench.watch(
        a=f'port = "/dev/serial/by-path/{a.path}-port0"\nbaudrate = {RATES["a"]}',
        b=f'match = {{ path = "{b.path}" }}\nbaudrate = {RATES["b"]}',
    )
    return a, b


def rates(board):
    """At which rates it was used; a CH340 only comes near them."""
    known = [*FIRST_RATES, *RATES.values()]
    return {min(known, key=lambda rate: abs(rate - it)) for it in board.details("rate")} - {*FIRST_RATES}


def come_back(seat):
    """Plug its board in, and wait until its OctoPrint has it and the service is done."""
    seat.operational(after=seat.plug())
    seat.wait_state("connected")


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_identical_boards_are_not_crossed(bench, told_apart, order):
    """Two CH340 without serial numbers, in both orders: each is opened once, for its own OctoPrint."""
    first, second = (bench.seats[name] for name in order)
    for seat in told_apart:
        seat.board_of()
    plugged = first.plug()
    assert first.board.wait(lambda it: it.counts.opens, PATIENCE)
    second_plugged = second.plug()  # the first boots meanwhile
    first.operational(after=plugged)
    second.operational(after=second_plugged)
    for seat, node in ((first, "/dev/ttyUSB0"), (second, "/dev/ttyUSB1")):
        seat.wait_state("connected")
        assert (seat.node(), seat.opened()) == (node, node)
        assert rates(seat.board) == {RATES[seat.name]}
        counts = seat.board.counts
        assert (counts.opens, counts.rises, counts.resets) == (1, 1, 1)


def test_renumbered_since_another_board_has_its_name(told_apart):
    """Back as ttyUSB1 it is followed, and OctoPrint told that name; the board on ttyUSB0 feels nothing."""
    a, _ = told_apart
    a.board_of(boot_delay=BOOT)
    come_back(a)
    assert a.opened() == "/dev/ttyUSB0"
    a.unplug()
    a.wait_state("absent")
    with a.stranger() as stranger:
        a.wait_node("/dev/ttyUSB0")
        before = a.board.counts
        come_back(a)
        assert (a.node(), a.opened()) == ("/dev/ttyUSB1", "/dev/ttyUSB1")
        passed = a.board.counts - before
        assert (passed.opens, passed.rises, passed.resets) == (1, 1, 1)
        assert stranger.counts == NOTHING


@contextlib.contextmanager
def kept_open(machine, node):
    """A process has the node open, and keeps it whatever becomes of the device."""
    # The open makes it the keeper's terminal, and a hang-up would end it.
    keeper = machine.spawn("sh", "-c", f"trap '' HUP; exec 3<> {node}; echo kept; exec sleep 600")
    try:
        keeper.expect("kept", PATIENCE)
        yield
    finally:
        keeper.kill()
        keeper.wait(PATIENCE)


def test_renumbered_since_a_process_keeps_its_name(bench, told_apart):
    """The same where somebody still has the vanished ttyUSB0 open."""
    a, _ = told_apart
    a.board_of(boot_delay=BOOT)
    come_back(a)
    with kept_open(bench.machine, "/dev/ttyUSB0"):
        a.unplug()
        a.wait_state("absent")
        before = a.board.counts
        come_back(a)
        assert (a.node(), a.opened()) == ("/dev/ttyUSB1", "/dev/ttyUSB1")
        passed = a.board.counts - before
        assert (passed.opens, passed.rises, passed.resets) == (1, 1, 1)


def test_one_off_the_other_on(bench, told_apart):
    """B has the name that A had, and A is away: B is not opened for A, and `status` says what A waits for."""
    a, b = told_apart
    a.board_of(boot_delay=BOOT)
    come_back(a)
    assert a.opened() == "/dev/ttyUSB0"
    a.unplug()
    a.wait_state("absent")
    connects = a.connects()
    board = b.board_of(boot_delay=BOOT)
    with b.paused():
        b.plug()
        a.wait_node("/dev/ttyUSB0")
        assert_stays(lambda: board.counts == NOTHING, HANDS_OFF, bench.account)
        status = a.status()
        assert status["state"] == "absent"
        assert f"{a.path}-port0 is not there: the printer is unplugged or switched off" in status["why"]
        assert status["node"] is None
    b.operational()
    assert rates(board) == {RATES["b"]}
    assert a.connects() == connects


def test_an_unplug_storm_beside_a_print(told_apart):
    """One is plugged and pulled as fast as it goes; the other's print feels nothing but its own OctoPrint.

    100 times with PORTRETRY_TEST_FULL=1, 10 else.  The one is back at the end.
    """
    a, b = told_apart
    board = b.board_of(boot_delay=BOOT)
    come_back(b)
    board.start_sd_print()
    b.octoprint.expect('"Printing from SD"', PATIENCE)
    a.board_of(boot_delay=BOOT)
    before, said = board.counts, b.octoprint.catch_up()
    for round_ in range(PULLS):
        opens = a.board.counts.opens
        a.plug()
        if round_ % 3 == 1:  # else it is gone before or while the kernel looks at it
            assert a.board.wait(lambda it, opens=opens: it.counts.opens > opens, PATIENCE)
        a.unplug()
    come_back(a)
    passed = board.counts - before
    assert replace(passed, bytes_in=0, sd_position=0) == NOTHING
    assert passed.bytes_in > 0
    assert passed.sd_position > 0
    assert b.octoprint.said('"state"', since=said) == []
    assert rates(a.board) == {RATES["a"]}


@pytest.fixture
def ambiguous(bench):
    """What the printers are configured by fits any such board, and there are two."""
    a, b = bench.seats.values()
    bench.watch(a='match = { vendor = "2341", product = "0042" }', b=f'port = "{BY_ID}"')
    return a, b


def assert_refused(seats, wants, kind, refusal):
    """See that two boards of that kind feel nothing, though one printer wants them, and that it says why."""
    boards = [seat.board_of(kind=kind) for seat in seats]
    with wants.paused():  # while there is but one it is not ambiguous
        for number, seat in enumerate(seats):
            seat.plug()
            seat.wait_node(kind.chip.node.replace("0", str(number)))
    wants.service.expect(f"{wants.name}: absent: .*{re.escape(refusal)}", PATIENCE)
    assert_stays(lambda: all(board.counts == NOTHING for board in boards), HANDS_OFF, wants.account)


def test_a_match_that_fits_both_is_refused(ambiguous):
    """Two of one make, even with the same serial number: neither is opened, and both nodes are named."""
    a, b = ambiguous
    nodes = f"/dev/ttyACM0 has path={a.path}, /dev/ttyACM1 has path={b.path}; add one of these to `match`"
    assert_refused(ambiguous, a, MEGA2560, f"2 serial ports fit vendor=2341 product=0042: {nodes}")


def test_a_link_that_two_boards_share_is_refused(ambiguous):
    """The link in by-id leads to whichever CH340 came last: neither is opened, and what to set is said."""
    a, b = ambiguous
    links = f"/dev/serial/by-path/{a.path}-port0, /dev/serial/by-path/{b.path}-port0"
    assert_refused(ambiguous, b, CH340, f"{BY_ID} means 2 boards; set `port` to one of {links}")
