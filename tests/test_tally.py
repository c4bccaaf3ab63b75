"""What is counted: each number by a story in which it is known, and all of them in any story whatever."""

import math

import pytest
from hypothesis import settings

from portretry_udev.events import Connect, Disconnecting, Erred, Hold, Ill, Octo
from portretry_udev.tally import BOUNDS, KINDS, Recoveries, Tally, counted
from story import Story
from test_rules_machine import LIMITS, World

COUNTS = ("connects", "failed", "short", "holds", "resets_avoided")


class Tallied(Story):
    """A story that is counted as it goes; the counts are judged after each step."""

    tally = Tally()

    def _step(self, event):
        before, seen, told = self.state, self.tally, len(self.out)
        super()._step(event)
        effects = [effect for _, effect in self.out[told:]]
        self.tally = counted(seen, before, event, self.state, effects, self.now)
        for was, now in zip(flat(seen), flat(self.tally), strict=True):
            self.check(was <= now <= was + 1, f"{seen} became {self.tally} in one step")
        done = self.tally.recoveries
        self.check(sum(done.classes) == 0 or done.last is not None, "no last recovery")
        self.check(0 <= done.seconds < math.inf, "seconds without end")
        self.check(done.since is None or done.since <= self.now, "begun in the future")

    def holds(self):
        return dict(zip(KINDS, self.tally.holds, strict=True))

    def begins(self, octo):
        """OctoPrint is in this state, and a while has passed."""
        self.wait(12)
        self.expect_octo(octo, within=60)
        return self


def flat(tally):
    """All counts in a row."""
    single = [getattr(tally, name) for name in COUNTS if name != "holds"]
    return [*single, *tally.holds, *tally.recoveries.classes]


def recoveries(story):
    return sum(story.tally.recoveries.classes)


class CountedWorld(World):
    """The world of the rules' own test, counted."""

    teller = Tallied


CountedWorld.TestCase.settings = settings(LIMITS, max_examples=50)
TestCountedWorld = CountedWorld.TestCase


def test_what_is_connected_once():
    """One command, one recovery in the time that it took, no failure, no hold."""
    story = Tallied().begins(Octo.IDLE)
    assert (story.tally.connects, story.tally.failed, story.tally.short) == (1, 0, 0)
    assert sum(story.tally.holds) == 0
    assert recoveries(story) == 1
    assert 0 < story.tally.recoveries.last < 1


def test_connects_are_those_of_status():
    """The count is the one that `status` shows."""
    story = Tallied()
    for _ in range(3):
        story.wait(40)
        story.replug()
    story.wait(40)
    assert story.tally.connects == story.state.connects == len(story.times(Connect)) == 4


def test_failed_attempts():
    """Each of ours that comes to nothing counts; so does one of OctoPrint's own."""
    story = Tallied(octo=Octo.OFFLINE)
    story.failing = Octo.OFFLINE
    story.wait(600)
    assert story.tally.failed == story.state.failures >= 3
    assert recoveries(story) == 0
    before = story.tally.failed
    story.answers = False
    story.wait(300)
    story.person_connects()
    story.wait(60)
    assert story.tally.failed == before + 1


def test_short_connections():
    """A connection that is lost at once is one, and no failed attempt; one that lasted is none."""
    story = Tallied().begins(Octo.IDLE)
    story.octoprint_says(Octo.LOST)
    story.wait(120)
    assert (story.tally.short, story.tally.failed) == (1, 0)
    story.octoprint_says(Octo.LOST)
    story.wait(120)
    assert (story.tally.short, story.tally.failed) == (1, 0)


@pytest.mark.parametrize("pushes", [False, True])
def test_a_disconnect_is_one_hold(pushes):
    """Told by push and by answers, it is counted once; a second one after a return is another."""
    story = Tallied(begin=False)
    story.pushes = pushes
    story.begin()
    story.begins(Octo.IDLE)
    story.person_disconnects()
    story.wait(60)
    assert story.holds() == {Hold.DELIBERATE: 1, Hold.FAULT: 0, Hold.WAIT: 0}
    story.replug()
    story.wait(60)
    story.person_disconnects()
    story.wait(60)
    assert story.holds() == {Hold.DELIBERATE: 2, Hold.FAULT: 0, Hold.WAIT: 0}


def test_a_fault_and_a_wait_are_holds_of_their_kinds():
    """By kind; a fault that is told twice is one."""
    story = Tallied(start="wait")
    assert story.holds() == {Hold.DELIBERATE: 0, Hold.FAULT: 0, Hold.WAIT: 1}
    story.retry()
    story.begins(Octo.IDLE)
    story.happens(Erred(True, "Heating failed"))
    story.octoprint_says(Octo.FAULT)
    story.wait(60)
    assert story.holds() == {Hold.DELIBERATE: 0, Hold.FAULT: 1, Hold.WAIT: 1}


def test_a_recalled_hold_was_counted_when_it_was_made():
    """A restart makes no hold."""
    story = Tallied(memory=(Hold.DELIBERATE, 1))
    story.wait(60)
    assert story.state.hold is Hold.DELIBERATE
    assert sum(story.tally.holds) == 0


def test_a_hand_over_spares_one():
    """Our open raised DTR once, OctoPrint's did not."""
    story = Tallied(resets=True).begins(Octo.IDLE)
    assert story.edges == 1
    assert story.tally.resets_avoided == 1


def test_each_later_open_spares_one():
    """With HUPCL cleared: we open to listen, and OctoPrint opens, and there is still but one edge."""
    story = Tallied(resets=True).begins(Octo.IDLE)
    for count in (2, 4, 6):
        story.wait(60)
        story.octoprint_says(Octo.LOST)
        story.wait(20)
        story.expect_octo(Octo.IDLE, within=30)
        assert story.tally.resets_avoided == count + 1
    assert story.edges == 1


def test_a_guarded_port_spares_the_next_open():
    """OctoPrint connected by itself; the guard alone spares nothing, the open after a loss does."""
    story = Tallied(octo=Octo.IDLE, resets=True)
    story.wait(60)
    assert story.tally.resets_avoided == 0
    story.person_disconnects()
    story.wait(60)
    assert story.tally.resets_avoided == 1  # we listen, though hands are off
    assert story.edges == 1


def test_a_port_without_dtr_spares_none():
    """A pty has no DTR to raise."""
    story = Tallied(modem=False).begins(Octo.IDLE)
    story.octoprint_says(Octo.LOST)
    story.wait(60)
    assert story.tally.connects == 2
    assert story.tally.resets_avoided == 0


def test_where_dtr_cannot_be_kept_only_hand_overs_spare():
    """A driver that forgets HUPCL resets the board at each open of ours; the hand-over still spares one."""
    story = Tallied(begin=False)
    story.keeps_dtr = False
    story.begin()
    story.begins(Octo.IDLE)
    story.wait(60)
    story.octoprint_says(Octo.LOST)
    story.wait(60)
    assert story.tally.connects == story.tally.resets_avoided == 2


def test_a_connection_elsewhere_spares_none_and_is_no_recovery():
    """OctoPrint at another port says nothing of this one."""
    story = Tallied()
    story.failing = Octo.OFFLINE
    story.wait(100)
    before = story.tally
    assert before.recoveries.since is not None
    story.elsewhere = "VIRTUAL"
    story.octoprint_says(Octo.IDLE)
    story.expect_octo(Octo.IDLE, within=30)
    story.wait(60)
    assert story.tally.resets_avoided == before.resets_avoided
    assert story.tally.recoveries == Recoveries()
    assert story.tally.recoveries.since is None


def test_recovery_runs_from_the_first_sign_of_life():
    """Not from the moment at which the printer was lost, or plugged in: boots are the printer's own time."""
    story = Tallied(plugged=False)
    story.wait(3600)
    story.plug()
    story.wait(60)
    assert recoveries(story) == 1
    assert story.tally.recoveries.last < 1


def test_recovery_includes_failed_attempts():
    """A printer that answers while OctoPrint fails is not recovered until OctoPrint has it."""
    story = Tallied()
    story.failing = Octo.OFFLINE
    story.wait(200)
    story.failing = None
    story.wait(400)
    assert recoveries(story) == 1
    assert 200 <= story.tally.recoveries.last <= 600
    assert story.tally.recoveries.seconds == story.tally.recoveries.last


@pytest.mark.parametrize("what", ["hold", "pause", "silence", "no octoprint", "unplugged"])
def test_recovery_does_not_run_while_it_cannot_be(what):
    """What people, mains and OctoPrint take is no time of ours."""
    story = Tallied()
    story.failing = Octo.OFFLINE
    story.wait(100)
    assert story.tally.recoveries.since is not None
    match what:
        case "hold":
            story.happens(Disconnecting())
        case "pause":
            story.pause()
        case "silence":
            story.power_off()
        case "no octoprint":
            story.ill = Ill.DOWN
        case "unplugged":
            story.unplug()
    story.wait(400)
    assert story.tally.recoveries.since is None
    story.failing = story.ill = None
    story.resume()
    story.power_on()
    story.plug_if_absent()
    story.retry()
    story.wait(60)
    assert recoveries(story) == 1
    assert story.tally.recoveries.last < 30


@pytest.mark.parametrize("probe", ["open", "none"])
def test_recovery_where_the_firmware_is_not_asked(probe):
    """Then it is the open port, or the node, that counts."""
    story = Tallied(probe=probe, plugged=False)
    story.wait(100)
    story.plug()
    story.wait(60)
    assert recoveries(story) == 1
    assert story.tally.recoveries.last < 10


def test_classes_of_recoveries():
    """Each falls into the first class that holds it, ends included; the last has no end."""
    for took, place in (
        (0.0, 0),
        (BOUNDS[0], 0),
        (0.3, 1),
        (BOUNDS[-1], len(BOUNDS) - 1),
        (1e6, len(BOUNDS)),
    ):
        done = Recoveries(since=100.0).done(100.0 + took)
        assert done.classes.index(1) == place
        assert done.last == pytest.approx(took)
        assert done.since is None
    assert Recoveries().done(5.0) == Recoveries()


def test_what_is_under_way_is_no_news():
    """A sign of life alone changes nothing that is worth a write."""
    assert Tally(recoveries=Recoveries(since=1.0)) == Tally()
