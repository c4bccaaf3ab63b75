"""Others on the same port: a flasher, a person's Connect, and a board that takes no bytes."""

import json

import pytest

from vm.bench import PATIENCE, SOURCE, on, scaled
from vm.boards import CH340, MEGA2560

pytestmark = pytest.mark.vm

ROUNDS = scaled(15, 100)
FLASHING = 10.0  # seconds
COPY = "/root/copy"  # of the node, as containers have them: another inode, so our inotify watch sees nothing


def flash(bench, node):
    """Let a flasher at the port while the service listens; returns what it saw of others."""
    board = bench.board_of(powered=False)
    bench.plug()
    bench.service.expect(r"Opened\(", PATIENCE)
    connects = bench.connects()
    if node == COPY:
        bench.machine.check(f"rm -f {COPY}; cp -a {bench.kind.chip.node} {COPY}")
    flasher = bench.python(f"{SOURCE}/flasher.py", node, str(FLASHING), bench.kind.chip.node)
    flasher.expect("toggled", PATIENCE)
    seen = json.loads(flasher.expect(r"^\{", PATIENCE)[0].string)
    assert board.wait(lambda it: it.counts.closes, PATIENCE), (
        "the flasher has ended, and it was the last to close"
    )
    assert bench.connects() == connects
    board.power_on()
    bench.operational()
    assert board.counts.resets == 0, "the flasher's own was before the power: none since"
    happened = [(what, detail) for _, what, detail in board.log]
    kinds = [what for what, _ in happened]
    toggled = kinds.index("drops") + 1
    during = happened[toggled : kinds.index("closes")]
    assert [what for what, _ in during if what != "heard"] == ["rises"], "that of its own toggling"
    assert sum(len(detail) for what, detail in during if what == "heard") == seen["written"] > 0
    assert seen["together"] == 0
    return seen


@on(MEGA2560)
def test_a_flasher_is_not_disturbed(bench):
    """A process opens, locks, toggles DTR and writes, as avrdude: no open, byte or edge of ours meanwhile.

    The firmware must answer afterwards; then OctoPrint is connected again.
    """
    seen = flash(bench, bench.kind.chip.node)
    assert seen["opens"] == 1, "its own"
    assert seen["alone"] < 2.0, "milliseconds, but the machine is emulated"


@on(MEGA2560)
def test_a_flasher_that_inotify_cannot_see(bench):
    """The same through another inode of the same device: /proc tells of it before the next byte of ours."""
    seen = flash(bench, COPY)
    assert seen["opens"] == 0, "not even ours"
    assert seen["alone"] < 4.0, "a second, from one poke to the next, but the machine is emulated"


@on(CH340)
def test_octoprint_opens_while_we_read(bench):
    """A person's Connect while the printer talks and we listen: we make way before OctoPrint misses a byte.

    100 rounds with PORTRETRY_TEST_FULL=1, 15 else.
    """
    board = bench.board_of()
    board.chatter(0.02)
    bench.plug()
    bench.operational()
    bench.wait_state("connected")
    before = board.counts
    bench.service.catch_up()
    bench.press("disconnect")
    for _ in range(ROUNDS):
        bench.service.expect(r"Opened\(", PATIENCE)
        bench.press("connect")
        bench.operational()
        bench.service.expect(r"Guarded\(dtr_stays=True\)", PATIENCE)
        bench.press("disconnect")
    assert bench.octoprint.said("multiple access") == []
    assert (board.counts - before).resets == 0


@on(MEGA2560)
def test_a_board_that_takes_no_bytes(bench):
    """Its full buffer never holds us up, not even the next open; and an unplug leaves the name free."""
    board = bench.board_of(powered=False)
    board.device.deaf = True
    bench.plug()
    bench.service.expect("not poked: the port takes nothing", PATIENCE)
    with bench.paused():
        bench.wait_state("paused")
    bench.service.expect("in-use: .* its last close", PATIENCE)
    bench.service.expect("Tick", PATIENCE)
    assert board.counts.closes == 0, (
        "the kernel waits up to 30 s for the bytes, and nothing of us waited with it"
    )
    bench.unplug()
    bench.wait_state("absent")
    board.device.deaf = False
    board.power_on()
    again = bench.plug()
    bench.operational(after=again)
    assert bench.nodes() == [bench.kind.chip.node.removeprefix("/dev/")]


@on(MEGA2560)
def test_the_close_of_another_lingers(bench):
    """A program has ended with bytes that the board does not take, and the kernel keeps our open waiting.

    Meanwhile the control socket answers, with nothing untrue; the unplug that ends it leaves the name free.
    """
    board = bench.board_of(powered=False)
    bench.plug()
    bench.service.expect(r"Opened\(", PATIENCE)
    board.device.deaf = True
    leaver = bench.python(f"{SOURCE}/leaver.py", bench.kind.chip.node)
    leaver.expect("full", PATIENCE)
    bench.service.expect("in-use: hands off: .* is in use by python3", PATIENCE)
    bench.service.catch_up()
    leaver.write("\n")
    bench.service.expect(r"Told\(.* -> \[Open\(", PATIENCE)
    assert bench.status()["state"] == "in-use"
    assert leaver.status is None, "its close still waits"
    bench.unplug()
    bench.wait_state("absent")
    board.device.deaf = False
    board.power_on()
    again = bench.plug()
    bench.operational(after=again)
    assert bench.nodes() == [bench.kind.chip.node.removeprefix("/dev/")]
