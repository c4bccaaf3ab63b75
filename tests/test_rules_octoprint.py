"""What OctoPrint tells by itself, and getting it unstuck: stories of its push socket and of its trap.

A story "by push" has a push socket, one "by looks" has none; where neither is said, it is told both ways.
"""

import pytest

from portretry_udev.events import (
    Accepted,
    Close,
    Connect,
    Count,
    Counted,
    Declined,
    Disconnecting,
    Erred,
    Hold,
    Ill,
    Look,
    News,
    NodeSeen,
    Octo,
    Open,
    Poke,
    PushUp,
    Unwedge,
    Unwedged,
)
from portretry_udev.firmware import Sign
from portretry_udev.rules import (
    FRESH_BOOT,
    OWN_WORD,
    PARTING,
    PUSHED_PERIOD,
    QUIET_START,
    WEDGED_AFTER,
    WEDGED_UNSEEN_AFTER,
    Line,
)
from story import BOOT, GIVES_UP, Story

SOON = QUIET_START + 0.5
FREED = WEDGED_AFTER + 2.5  # two looks in a row, a second apart, then the one it is done on


@pytest.fixture(params=[False, True], ids=["looks", "push"])
def either(request, monkeypatch):
    """Told twice."""
    monkeypatch.setattr(Story, "pushes", request.param)


@pytest.fixture
def pushing(monkeypatch):
    """Told by push."""
    monkeypatch.setattr(Story, "pushes", True)


both = pytest.mark.usefixtures("either")
push = pytest.mark.usefixtures("pushing")


def connected(**scene):
    """A story that begins with OctoPrint connected, and our guard done."""
    story = Story(octo=Octo.IDLE, **scene)
    story.wait(60)
    story.check(story.state.octo is Octo.IDLE)
    return story


def by_hand(**scene):
    """The same, with OctoPrint's answers given by the story."""
    story = Story(octo=Octo.IDLE, latency=None, **scene)
    story.told(Octo.IDLE, after=0)
    story.told(Octo.IDLE, after=0)
    story.happens(PushUp(True))
    story.told(Octo.IDLE, after=0)
    return story


# -- push brings looks forward -------------------------------------------------------------------------------
@push
def test_while_it_pushes_it_is_asked_rarely():
    """Connected and pushing: looks are a safety net (issue: 30 s or more)."""
    story = connected()
    begin = story.now
    story.wait(600)
    looks = story.times(Look, since=begin)
    assert 15 <= len(looks) <= 600 / PUSHED_PERIOD + 1


@push
def test_an_interval_of_minutes_stays_one():
    """Push makes nothing more frequent."""
    story = connected(interval=60.0)
    begin = story.now
    story.wait(600)
    assert len(story.times(Look, since=begin)) <= 11


@push
def test_offline_it_is_asked_on_the_interval():
    """While it is offline the interval stays the floor under all others."""
    story = Story(octo=Octo.OFFLINE, answers=False)
    story.wait(20)
    begin = story.now
    story.wait(60)
    assert len(story.times(Look, since=begin)) >= 11


@push
def test_push_breaks_off():
    """From then on the interval alone does the whole job, at once."""
    story = connected()
    story.happens(PushUp(False))
    story.check(story.asking, "it was not looked what push would have told")
    begin = story.now
    story.wait(60)
    assert len(story.times(Look, since=begin)) >= 11


@push
def test_news_are_looked_at_at_once():
    """A loss is known when OctoPrint tells it, not an interval later."""
    story = connected()
    story.octoprint_says(Octo.LOST)
    story.expect_octo(Octo.LOST, within=0.05)


def test_an_answer_from_before_the_news_counts_for_nothing():
    """OctoPrint says offline, then that something has changed: nothing is done on what it said before."""
    story = by_hand()
    story.happens(News())
    with story.nothing(Open):
        for _ in range(3):
            story.check(story.asking)
            story.happens(News())
            story.told(Octo.LOST)
    story.told(Octo.LOST)
    story.check(story.state.line is Line.LISTENING)


# -- a person's word -----------------------------------------------------------------------------------------
@push
def test_a_disconnect_is_a_hold_at_once():
    """`Disconnecting` comes before OctoPrint is offline; from then on nothing is done."""
    story = connected()
    story.person_disconnects()
    story.wait(0.006)
    story.check(story.state.hold is Hold.DELIBERATE)
    with story.nothing(Connect, Poke):
        story.wait(3600)
    story.replug()
    story.expect(Connect, within=BOOT + 0.5)


def test_an_answer_from_before_the_disconnect_ends_no_hold():
    """It was asked before, and says "connected": old words, and the hold stands."""
    story = by_hand()
    story.happens(Disconnecting())
    story.told(Octo.IDLE)
    story.check(story.state.hold is Hold.DELIBERATE)


def test_a_slow_answer_from_before_the_disconnect():
    """It takes its time, but it was asked before: the hold stands however late it comes."""
    story = by_hand(interval=60.0)
    story.happens(News())
    story.happens(Disconnecting())
    story.told(Octo.IDLE, after=PARTING + 2)
    story.check(story.state.hold is Hold.DELIBERATE)


def test_still_connected_ends_no_hold():
    """It is asked after `Disconnecting`, and has not come to it yet: the hold stands through that, too."""
    story = by_hand()
    story.happens(Disconnecting())
    story.told(Octo.IDLE)
    story.told(Octo.IDLE)
    story.check(story.state.hold is Hold.DELIBERATE)
    story.told(Octo.LOST)
    with story.nothing(Connect, Poke):
        for _ in range(20):
            story.told(Octo.LOST)


@both
def test_connected_again_ends_the_hold():
    """A person's newer word."""
    story = connected()
    story.person_disconnects()
    story.wait(20)
    story.person_connects()
    story.wait(6)
    story.check(story.state.hold is Hold.NONE)
    story.check(story.memory == (Hold.NONE, None))


def test_connected_again_between_two_looks():
    """Disconnect and Connect within moments: looks see only "connected", and after a while believe it."""
    story = by_hand()
    story.happens(Disconnecting())
    story.told(Octo.IDLE)
    story.told(Octo.IDLE)
    story.wait(PARTING)
    story.happens(News())
    story.told(Octo.IDLE)
    story.told(Octo.IDLE)
    story.check(story.state.hold is Hold.NONE)


@push
def test_a_disconnect_of_what_was_lost_before():
    """OctoPrint has lost the printer, and a person says Disconnect: only push can tell, and it stands."""
    story = connected()
    story.answers = False
    story.octoprint_says(Octo.LOST)
    story.wait(20)
    story.person_disconnects()
    story.wait(0.01)
    story.answers = True
    with story.nothing(Connect, Poke):
        story.wait(600)


@push
def test_a_disconnect_amid_our_attempt():
    """It ends the attempt, and our end of the port is closed: OctoPrint may have sent what it answers to."""
    story = Story(answers=False)
    story.wait(10)
    story.answers, story.waits_for_start = True, True
    story.expect(Connect, within=3)
    story.wait(1)
    story.check(story.state.line is Line.HANDED)
    story.person_disconnects()
    story.wait(0.02)
    story.check(story.state.attempt is None)
    story.check(story.state.hold is Hold.DELIBERATE)
    with story.nothing(Connect, Poke):
        story.wait(600)


@push
def test_always_means_always():
    """PortRetry's plain behaviour: a Disconnect is no word."""
    story = connected(reconnect="always")
    story.person_disconnects()
    story.expect(Connect, within=SOON + 0.1)


@push
def test_a_hold_by_push_survives_the_service():
    """It is remembered when it is made."""
    story = connected()
    story.person_disconnects()
    story.wait(0.006)
    story.service_restarts()
    with story.nothing(Connect, Poke, Open):
        story.wait(600)


@both
@pytest.mark.parametrize("node_stays", [True, False], ids=["stays", "vanishes"])
@pytest.mark.parametrize("first", ["disconnect", "power"])
def test_a_switched_socket(node_stays, first):
    """PSUControl disconnects and cuts the power, in whatever order; with the power the printer returns."""
    story = connected()

    def power_off():
        story.power_off()
        if not node_stays:
            story.unplug()

    acts = [story.person_disconnects, power_off]
    for act in acts if first == "disconnect" else reversed(acts):
        act()
        story.wait(0.3)
    with story.nothing(Connect, Poke):
        story.wait(1800)
    story.power_on()
    if not node_stays:
        story.plug()
    story.expect(Connect, within=BOOT + SOON + 0.5)
    story.expect_octo(Octo.IDLE, within=2)


# -- a fault -------------------------------------------------------------------------------------------------
@push
def test_a_fault_that_octoprint_forgets():
    """OctoPrint 2.0 answers a mere loss after a fault: its push has told what it was."""
    story = connected()
    story.forgetful = True
    story.octoprint_says(Octo.FAULT)
    story.wait(0.006)
    story.check(story.state.hold is Hold.FAULT)
    with story.nothing(Connect, Poke):
        story.wait(3600)
    story.check(story.state.fault_words == "Heating failed")
    story.power_off()
    story.power_on()
    story.expect(Connect, within=BOOT + 0.5)


@push
def test_a_fault_amid_our_attempt():
    """The firmware reports a fault while OctoPrint shakes hands: no second try."""
    story = Story(answers=False)
    story.wait(10)
    story.answers, story.waits_for_start = True, True
    story.expect(Connect, within=3)
    story.wait(1)
    story.happens(Erred(True, "MINTEMP triggered"))
    story.octoprint_says(Octo.LOST)
    with story.nothing(Connect, Poke):
        story.wait(600)


@push
def test_an_error_that_is_none_of_the_firmware():
    """Timeouts, a cable: a loss, connected again as the firmware answers."""
    story = connected()
    story.happens(Erred(False, "Too many consecutive timeouts"))
    story.octoprint_says(Octo.LOST)
    story.expect(Connect, within=SOON + 0.5)


# -- the trap (facts, section 3) -----------------------------------------------------------------------------
@both
def test_our_attempt_is_stuck():
    """OctoPrint's open failed: freed once, and connected as soon as its open works again."""
    story = Story()
    story.open_fails = True
    story.expect(Connect, within=SOON)
    story.expect(Unwedge, within=FREED)
    story.open_fails = False
    story.expect(Connect, within=12)
    story.expect_octo(Octo.IDLE, within=2)
    story.check(len(story.times(Unwedge)) == 1)


@both
def test_its_own_attempt_is_stuck():
    """A person's Connect, or autoconnect, into a port that cannot be opened: freed, and not held."""
    story = Story(answers=False)
    story.wait(10)
    story.open_fails = True
    story.person_connects()
    story.expect(Unwedge, within=FREED + 5)
    story.open_fails, story.answers = False, True
    story.expect(Connect, within=SOON + 1.5)
    story.check(story.state.hold is Hold.NONE, "our own disconnect is no person's")


@both
def test_pulled_within_its_open():
    """The cable is out before OctoPrint has the port, and in again: nobody else would ever get it out."""
    story = connected()
    story.unplug()
    story.wait(1)
    story.person_connects()
    story.wait(1)
    story.plug()
    story.expect(Unwedge, within=FREED + 1)
    story.expect(Connect, within=BOOT + SOON)
    story.expect_octo(Octo.IDLE, within=2)


@both
def test_stuck_without_a_node():
    """A connect to a port that is not there: freed before the printer comes back."""
    story = Story(plugged=False)
    story.wait(10)
    story.person_connects()
    story.expect(Unwedge, within=FREED + 5)
    story.plug()
    story.expect(Connect, within=BOOT + SOON)


@both
@pytest.mark.parametrize("unseen", [False, True])
def test_a_slow_attempt_is_left_alone(unseen):
    """A real Connecting lasts 40 s: OctoPrint holds the port, or it is not over in less than a minute."""
    story = Story(answers=False)
    story.unseen = unseen
    story.wait(10)
    story.person_connects()
    with story.nothing(Unwedge):
        story.wait(GIVES_UP + 5)


@both
def test_stuck_where_its_processes_cannot_be_seen():
    """In a container nobody is seen holding the port: only a minute of it is proof."""
    story = Story()
    story.unseen = story.open_fails = True
    story.expect(Connect, within=SOON)
    with story.nothing(Unwedge):
        story.wait(WEDGED_UNSEEN_AFTER - 2)
    story.expect(Unwedge, within=4)


def test_seen_again_after_a_while():
    """A count that could not be made says nothing of the next one."""
    story = Story(answers=False)
    story.wait(10)
    story.unseen = True
    story.person_connects()
    story.wait(GIVES_UP - 5)
    story.unseen = False
    with story.nothing(Unwedge):
        story.wait(60)


def test_one_count_is_no_proof():
    """OctoPrint opens, closes and opens again: between the two nobody holds the port."""
    story = Story(latency=None, answers=False)
    for _ in range(3):
        story.told(Octo.OFFLINE)
    story.told(Octo.CONNECTING, opening=True)
    begin = story.now
    story.holder = True
    while story.now < begin + WEDGED_AFTER:
        story.told(Octo.CONNECTING, opening=True)
    story.holder, story.stuck = False, True
    story.told(Octo.CONNECTING, opening=True)  # counted once: none
    with story.nothing(Unwedge):
        story.holder = True
        story.told(Octo.CONNECTING, opening=True)
        story.holder = False
        story.told(Octo.CONNECTING, opening=True)
        story.told(Octo.CONNECTING, opening=True)
    story.told(Octo.CONNECTING, opening=True)
    story.check(len(story.times(Unwedge)) == 1, "twice in a row is proof")


def test_what_was_not_seen_proves_nothing_later():
    """Counts that could not be made are no part of the proof."""
    story = Story(latency=None, answers=False)
    for _ in range(3):
        story.told(Octo.OFFLINE)
    story.stuck = story.unseen = True
    story.told(Octo.CONNECTING, opening=True)
    begin = story.now
    while story.now < begin + WEDGED_AFTER + 2:
        story.told(Octo.CONNECTING, opening=True)
    story.unseen = False
    story.told(Octo.CONNECTING, opening=True)  # counted once: none
    with story.nothing(Unwedge):
        story.told(Octo.CONNECTING, opening=True)
    story.told(Octo.CONNECTING, opening=True)
    story.check(len(story.times(Unwedge)) == 1)


@both
def test_freed_once_per_return():
    """What is stuck again at once is not freed for ever: only after the printer's return, or on retry."""
    story = Story()
    story.open_fails = True
    story.expect(Unwedge, within=SOON + FREED)
    with story.nothing(Unwedge):
        story.wait(1800)
    story.retry()
    story.expect(Unwedge, within=FREED)
    with story.nothing(Unwedge):
        story.wait(600)
    story.replug()
    story.expect(Unwedge, within=FREED + 10)


@both
def test_freed_again_after_it_was_connected():
    """Months later it is another matter."""
    story = Story()
    story.open_fails = True
    story.expect(Unwedge, within=SOON + FREED)
    story.open_fails = False
    story.expect_octo(Octo.IDLE, within=20)
    story.wait(3600)
    story.octoprint_says(Octo.LOST)
    story.open_fails = True
    story.expect(Unwedge, within=SOON + FREED + 6)


@both
@pytest.mark.parametrize("down_for", [0.0, 20.0])
def test_a_new_octoprint_is_stuck_again(down_for):
    """Freed once, restarted, stuck by its autoconnect: that is another OctoPrint."""
    story = Story(plugged=False)
    story.wait(10)
    story.person_connects()
    story.expect(Unwedge, within=FREED + 5)
    story.wait(1)
    story.person_connects()
    with story.nothing(Unwedge):
        story.wait(600)
    story.octoprint_restarts(down_for)
    story.person_connects()
    story.expect(Unwedge, within=FREED + 10)


@push
def test_only_one_word_is_ours():
    """OctoPrint tells of our disconnect; the next `Disconnecting` is a person's, even a moment later."""
    story = Story()
    story.open_fails = True
    story.expect(Unwedge, within=SOON + FREED)
    story.open_fails = False
    story.wait(0.1)
    story.check(story.state.hold is Hold.NONE)
    story.person_disconnects()
    story.wait(0.1)
    story.check(story.state.hold is Hold.DELIBERATE)


def test_a_word_long_after_ours_is_a_persons():
    """Push was down when we freed it, and tells of a Disconnect much later."""
    story = Story()
    story.open_fails = True
    story.expect(Unwedge, within=SOON + FREED)
    story.wait(OWN_WORD + 1)
    story.happens(PushUp(True))
    story.happens(Disconnecting())
    story.check(story.state.hold is Hold.DELIBERATE)


@both
def test_freeing_is_declined():
    """The command did not get through: it is given again."""
    story = Story()
    story.open_fails = True
    story.declines = None
    story.expect(Connect, within=SOON)
    story.wait(0.1)
    story.declines = Ill.SLOW
    story.expect(Unwedge, within=FREED)
    story.wait(0.1)
    story.declines = None
    story.expect(Unwedge, within=5 + FREED + 2)


@both
def test_stuck_while_a_hold_stands():
    """A person's Connect after a fault is stuck: freed, but the hold is not ended by that."""
    story = Story(memory=(Hold.FAULT, 1), answers=True)
    story.wait(10)
    story.open_fails = True
    story.person_connects()
    story.expect(Unwedge, within=FREED + 5)
    story.open_fails = False
    with story.nothing(Connect, Poke):
        story.wait(600)


@both
def test_stuck_in_a_pause_or_a_dry_run():
    """Hands off means that, too."""
    paused = Story(answers=False)
    paused.wait(10)
    paused.pause()
    paused.open_fails = True
    paused.person_connects()
    dry = Story(answers=False, dry_run=True)
    dry.wait(10)
    dry.open_fails = True
    dry.person_connects()
    for story in (paused, dry):
        with story.nothing(Unwedge, Count):
            story.wait(600)


def test_a_late_word_of_freeing_is_nothing():
    """Outcomes of commands that are long over change nothing."""
    story = connected()
    for event in (Unwedged(), Counted(held=False), Counted(held=None)):
        story.happens(event)
    with story.nothing(Unwedge, Connect, Open):
        story.wait(60)


def test_an_old_answer_frees_nothing():
    """Stuck by all that is known, but something has happened since that was asked."""
    story = Story(latency=None, answers=False)
    for _ in range(3):
        story.told(Octo.OFFLINE)
    story.stuck = True
    story.told(Octo.CONNECTING, opening=True)
    while story.state.unheld < 2 or story.now - story.state.opening_since < WEDGED_AFTER - 1:
        story.told(Octo.CONNECTING, opening=True)
    story.wait(1)
    story.check(story.asking)
    story.happens(News())
    with story.nothing(Unwedge):
        story.told(Octo.CONNECTING, opening=True)
    story.told(Octo.CONNECTING, opening=True)
    story.check(len(story.times(Unwedge)) == 1)


# -- OctoPrint waits for `start` -----------------------------------------------------------------------------
@both
def test_waits_for_start():
    """The attempt with the port held fails: the next one lets DTR drop, and the board boots once more."""
    story = Story(plugged=False, resets=True)
    story.waits_for_start = True
    story.wait(5)
    story.plug()
    story.expect(Connect, within=BOOT + SOON)
    story.wait(GIVES_UP + 1)
    close = story.expect(Close, within=20)
    story.check(close.drop_dtr)
    story.expect_octo(Octo.IDLE, within=BOOT + 2)
    story.check(story.edges == 2, "that of our open, and that of OctoPrint's")


def waiting_in_vain(**scene):
    """A story in which an OctoPrint that waits for `start` has given up once, with our end open."""
    story = Story(plugged=False, resets=True, **scene)
    story.waits_for_start = True
    story.wait(5)
    story.plug()
    story.expect(Connect, within=BOOT + SOON)
    story.wait(GIVES_UP + 1)
    story.check(story.state.let_go)
    return story


@pytest.mark.parametrize("sign", [Sign.PRINTING, None])
def test_what_may_print_is_not_reset_for_it(sign):
    """It prints from SD, or booted too long ago to know: OctoPrint is not helped at that price."""
    story = waiting_in_vain()
    if sign is None:
        story.pause()
        story.wait(FRESH_BOOT)
        story.resume()
    else:
        story.wait(1)
        story.heard(sign)
    story.expect(Connect, within=400)
    story.check(story.edges == 1)


def test_what_prints_for_octoprint_is_not_reset():
    """OctoPrint has printed since the boot: a print from SD may go on."""
    story = waiting_in_vain()
    story.octoprint_says(Octo.BUSY)
    story.wait(6)
    story.octoprint_says(Octo.LOST)
    story.check(story.edges == 1)
    story.wait(600)
    story.check(story.edges == 1)


# -- standing back -------------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("probe", ["firmware", "open", "none"])
def test_another_connector_is_preferred(probe):
    """OctoPrint 2.0 with a printer that is not on a serial port: nothing is opened or connected."""
    story = Story(begin=False, probe=probe)
    story.aside = "its preferred connector is Moonraker"
    story.begin()
    with story.nothing(Open, Connect, Poke):
        story.wait(600)
    story.aside = None
    story.expect(Connect, within=5 + SOON)


@both
def test_another_connector_becomes_preferred():
    """While we listen: the port is let go."""
    story = Story(answers=False)
    story.wait(20)
    story.aside = "its preferred connector is Moonraker"
    story.expect(Close, within=6)
    with story.nothing(Open, Connect, Poke):
        story.wait(600)


def test_it_is_named_while_an_attempt_is_under_way():
    """The attempt is followed to its end, and is the last."""
    story = Story(latency=None, answers=False)
    story.told(Octo.OFFLINE)
    story.told(Octo.OFFLINE)
    story.heard(Sign.BANNER)
    story.told(Octo.OFFLINE)
    story.happens(Accepted())
    story.told(Octo.CONNECTING, opening=True)
    story.told(Octo.OFFLINE, after=3, aside="its preferred connector is Bambu")
    with story.nothing(Open, Connect):
        for _ in range(20):
            story.told(Octo.OFFLINE, aside="its preferred connector is Bambu")


def test_declined_without_an_attempt():
    """A refusal of what is over already says only how OctoPrint is."""
    story = connected()
    story.happens(Declined(Ill.SLOW, "late"))
    story.happens(NodeSeen(story.node))
    story.wait(30)
    story.check(story.state.ill is None)
