"""When it connects, and when not: a story for each row of the design's section 2 and for each promise.

A story reads like the row: what happens to the printer, to OctoPrint and between people, and what is done
about it.  Every step is held against the promises besides (`story.Law`).
"""

import dataclasses
import math
from itertools import pairwise

import pytest

from portretry_udev.events import (
    Close,
    Connect,
    Declined,
    Guard,
    Heard,
    Hold,
    HungUp,
    Identified,
    Ill,
    Look,
    Mute,
    NodeSeen,
    Octo,
    Open,
    Poke,
    Policy,
    Rebaud,
    Refusal,
    Remember,
    Started,
    Taken,
    Tick,
    Untold,
)
from portretry_udev.firmware import BAUDRATES, POKE, Sign
from portretry_udev.rules import (
    ATTEMPT_LIMIT,
    FIRST_LOOK,
    OWN_RESET,
    QUIET_START,
    Line,
    State,
    alive,
    back_off,
    baudrate,
    deadline,
    step,
)
from story import BOOT, GIVES_UP, NODE, Story


@pytest.fixture(params=[False, True], ids=["polls", "pushed"], autouse=True)
def pushes(request, monkeypatch):
    """Every story is told twice: polling does the whole job, and push must not spoil it."""
    monkeypatch.setattr(Story, "pushes", request.param)
    return request.param


SOON = QUIET_START + 0.5  # the port is opened, a bootloader is given its time, the firmware is asked


def connected(**scene):
    """A story that begins with OctoPrint connected, and our guard done."""
    story = Story(octo=Octo.IDLE, **scene)
    story.wait(60)
    story.check(story.state.octo is Octo.IDLE)
    return story


def held(**scene):
    """A story in which somebody has just pressed Disconnect."""
    story = connected(**scene)
    story.person_disconnects()
    story.wait(6)
    story.check(story.state.hold is Hold.DELIBERATE)
    return story


def listening(**scene):
    """A story told by hand that begins with our end of the port open and nothing heard yet."""
    story = Story(latency=None, answers=False, **scene)
    story.told(Octo.OFFLINE, after=0)
    story.check(story.state.line is Line.LISTENING)
    return story


def attempting(**scene):
    """A story told by hand that begins with a connect of ours."""
    story = listening(**scene)
    story.heard(Sign.BANNER)
    story.told(Octo.OFFLINE)
    story.check(isinstance(story.out[-1][1], Connect))
    return story


# -- row 1: the service or OctoPrint (re)starts --------------------------------------------------------------
def test_service_starts():
    """OctoPrint is offline and the firmware answers: connect."""
    story = Story()
    connect = story.expect(Connect, within=SOON)
    story.check(connect == Connect(NODE, 115200))
    story.expect_octo(Octo.IDLE, within=1)
    story.check(story.edges == 1, "one edge an appearance (promise 5)")


def test_service_starts_before_the_firmware():
    """As soon as the firmware answers, and not sooner."""
    story = Story(answers=False)
    with story.nothing(Connect):
        story.wait(600)
    story.power_on(banner=False)
    story.expect(Connect, within=BOOT + 1.1)


def test_banner():
    """A boot banner is an answer: connect at once."""
    story = Story(answers=False)
    story.wait(60)
    story.power_on()
    story.expect(Connect, within=BOOT + 0.05)


def test_at_the_start_one_question_will_do():
    """The device is found before OctoPrint is asked; an answer from before that would be for nothing."""
    story = Story()
    story.wait(0.5)
    story.check(len(story.times(Look)) == 1 + Story.pushes, "and one for what push had not told yet")


def test_service_starts_while_connected():
    """OctoPrint has the printer: nothing but looking, and the guard once."""
    story = Story(octo=Octo.IDLE)
    with story.nothing(Open, Poke, Connect):
        story.wait(3600)
    story.check(len(story.times(Guard)) == 1)


@pytest.mark.parametrize("down_for", [0.0, 3.0, 300.0])
def test_octoprint_restarts(down_for):
    """OctoPrint comes up again, offline: connect, be its restart seen as DOWN or only told by itself."""
    story = connected()
    story.octoprint_restarts(down_for)
    story.expect(Connect, within=SOON + 5.1)
    story.check(story.state.hold is Hold.NONE)


def test_octoprint_restarts_while_connecting():
    """Its own attempt before the restart is no failure after it."""
    story = Story(answers=False)
    story.wait(10)
    story.person_connects()
    story.expect_octo(Octo.CONNECTING, within=6)
    story.octoprint_restarts(0)
    story.wait(10)
    story.check(story.state.failures == 0)


def test_octoprint_starts_last():
    """OctoPrint is not up yet: looked at each second, and connected as soon as it is."""
    story = Story()
    story.ill = Ill.DOWN
    with story.nothing(Open, Connect):
        story.wait(30)
    story.check(len(story.times(Look)) >= 30)
    story.ill = None
    story.expect(Connect, within=1.1 + SOON)


@pytest.mark.parametrize("hold", [Hold.DELIBERATE, Hold.FAULT])
def test_remembered_hold(hold):
    """A hold stands over a restart of the service, the host's sleep, and years."""
    story = Story(memory=(hold, 1))
    with story.nothing(Connect, Poke, Open):
        story.wait(7200)
    story.replug()
    story.expect(Connect, within=BOOT + 0.1)
    story.check(story.memory == (Hold.NONE, None))


def test_remembered_hold_for_another_appearance():
    """The printer has returned while the service was away: the hold is over."""
    story = Story(memory=(Hold.DELIBERATE, "an earlier appearance"))
    story.expect(Connect, within=SOON)
    story.check(story.memory == (Hold.NONE, None))


def test_remembered_hold_without_an_identity():
    """What cannot be compared stands."""
    story = Story(memory=(Hold.FAULT, None))
    with story.nothing(Connect, Poke, Open):
        story.wait(600)


def test_remembered_hold_and_the_node_comes_later():
    """The printer is off at the start: its node's appearance is a return."""
    story = Story(memory=(Hold.DELIBERATE, 1), plugged=False)
    story.wait(60)
    story.plug()
    story.expect(Connect, within=BOOT + 0.1)


def test_remembered_hold_and_the_port_is_named_later():
    """The port is OctoPrint's preference, known only after its first answer: that is no return."""
    story = Story(memory=(Hold.DELIBERATE, 1), begin=False)
    story.happens(Started(*story.memory))
    story.happens(NodeSeen(None, "no port is known", configured=False))
    story.wait(1)
    with story.nothing(Connect, Poke, Open):
        story.happens(NodeSeen(story.node))
        story.wait(600)


def test_service_restarts_after_a_deliberate_disconnect():
    """What one run learned the next one knows."""
    story = held()
    story.service_restarts()
    with story.nothing(Connect, Poke):
        story.wait(600)
    story.replug()
    story.expect(Connect, within=BOOT + 0.1)


def test_start_wait():
    """`start = "wait"`: nothing before the printer returns."""
    story = Story(start="wait")
    with story.nothing(Connect, Poke, Open):
        story.wait(3600)
    story.replug()
    story.expect(Connect, within=BOOT + 0.1)


def test_start_wait_keeps_a_remembered_hold():
    """A remembered hold says more than `wait`."""
    story = Story(start="wait", memory=(Hold.FAULT, 1))
    story.check(story.state.hold is Hold.FAULT)


# -- row 2: the node appears ---------------------------------------------------------------------------------
def test_node_appears():
    """As soon as the firmware answers; the port is open by then and hears the banner."""
    story = Story(plugged=False)
    with story.nothing(Open, Connect):
        story.wait(60)
    story.plug()
    story.expect(Connect, within=BOOT + 0.05)


def test_node_appears_anew_with_another_name():
    """Another identity without a removal in between: ours is closed, the new one opened."""
    story = Story(answers=False)
    story.wait(10)
    story.answers = True
    story.node = dataclasses.replace(story.node, path="/dev/ttyACM1", identity="new")
    story.happens(NodeSeen(story.node))
    story.check(isinstance(story.out[-2][1], Close))
    story.check(story.expect(Open, within=0.1).path == "/dev/ttyACM1")


def test_node_does_not_appear_twice():
    """A look that finds what was found before is nothing new."""
    story = Story()
    story.expect_octo(Octo.IDLE, within=5)
    with story.nothing(Look):
        story.happens(NodeSeen(story.node))
    story.unplug()
    with story.nothing(Look, Close):
        story.happens(NodeSeen(None, "unplugged"))


# -- row 3: OctoPrint lost the printer -----------------------------------------------------------------------
def test_unplug_and_plug():
    """The cable is pulled and put back."""
    story = connected()
    with story.nothing(Connect):
        story.unplug()
        story.wait(30)
    story.plug()
    story.expect(Connect, within=BOOT + 0.05)
    story.expect_octo(Octo.IDLE, within=0.5)
    story.check(story.edges == 1, "one edge an appearance (promise 5)")


def test_unplug_and_plug_faster_than_octoprint_notices():
    """The node is back before OctoPrint has said that it lost the printer: looked at more often."""
    story = connected()
    story.unplug()
    story.plug()
    story.expect(Connect, within=BOOT + 0.1)


@pytest.mark.parametrize("banner", [True, False])
def test_switched_off_and_on_in_place(banner):
    """The node stays; OctoPrint gives up after 90 s; the printer answers again, with a banner or without."""
    story = connected()
    story.power_off()
    story.expect_octo(Octo.LOST, within=100)
    with story.nothing(Connect):
        story.wait(600)
    story.power_on(banner=banner)
    story.expect(Connect, within=BOOT + (0.05 if banner else 1.1))
    story.check(story.edges == 1, "OctoPrint's own edge only: the guard keeps DTR up")


def test_detection_failed():
    """OctoPrint's search for a baudrate ended in an error: connect when the firmware answers."""
    story = Story(octo=Octo.LOST, answers=False)
    story.wait(60)
    story.power_on(banner=False)
    story.expect(Connect, within=BOOT + 1.1)


def test_lost_again_and_again():
    """A connection that does not last counts as a failed attempt; one that lasted does not."""
    story = connected()
    story.octoprint_says(Octo.LOST)
    story.wait(6)
    story.check(story.state.failures == 0)
    story.expect_octo(Octo.IDLE, within=6)
    story.octoprint_says(Octo.LOST)
    story.wait(5.1)
    story.check(story.state.failures == 1)
    story.check("last" in story.state.failure_why)
    story.expect_octo(Octo.IDLE, within=15)
    story.wait(60)
    story.check(story.state.failures == 0)


def test_a_short_connection_is_tried_again_at_once_and_a_row_of_them_ever_more_rarely():
    """The first loss soon after a connect is bad luck; then the cable or the board is to blame."""
    story = Story()
    story.expect(Connect, within=SOON + 1)
    waits = []
    for _ in range(4):
        story.expect_octo(Octo.IDLE, within=6)
        story.wait(6)  # connected, but not for long
        story.octoprint_says(Octo.LOST)
        story.expect(Open, within=6)
        noticed = story.now
        story.expect(Connect, within=60)
        waits.append(story.now - noticed)
    first, second, third, fourth = waits
    story.check(first < SOON, "no wait but the quiet start")
    story.check(second < third < fourth, f"{waits}")


def test_a_short_connection_that_ended_in_silence_is_no_reason_to_wait():
    """OctoPrint lost it, and two questions of ours went unanswered: when it speaks again, it has returned."""
    story = Story()
    for _ in range(4):
        story.expect_octo(Octo.IDLE, within=20)
        story.wait(6)
        story.power_off()
        story.octoprint_says(Octo.LOST)
        story.wait(10)
        story.power_on(banner=False)
        story.expect(Connect, within=BOOT + 1.1)
        story.check(story.state.failures == 0)


# -- row 4: a connect attempt failed -------------------------------------------------------------------------
def test_back_off():
    """Failed attempts are repeated after the interval, its double, and so on up to five minutes."""
    story = Story()
    story.failing = Octo.LOST
    story.wait(4000)
    spaces = [b - a for a, b in pairwise(story.times(Connect))]
    pauses = [round(space - GIVES_UP) for space in spaces]
    story.check([p // 5 * 5 for p in pauses][:8] == [5, 10, 20, 40, 80, 160, 300, 300], f"{pauses}")


@pytest.mark.parametrize(
    ("interval", "failures", "seconds"),
    [
        (5, 0, 5),
        (5, 1, 5),
        (5, 2, 10),
        (5, 7, 300),
        (5, 10**6, 300),
        (600, 1, 600),
        (600, 9, 600),
        (0.1, 3, 0.4),
    ],
)
def test_back_off_is_clamped(interval, failures, seconds):
    """Doubled up to 300 s, never less than the interval, and it cannot overflow."""
    assert back_off(interval, failures) == seconds


def test_a_year_of_failures():
    """A year of refused attempts: no overflow, at most one attempt per back-off, no other hammering."""
    story = Story(interval=6 * 3600.0, probe="none")
    story.declines = Ill.DECLINED
    story.wait(365 * 86400)
    story.check(1024 < story.state.failures <= 4 * 365, "2.0 ** 1024 overflows")
    story.check(len(story.times(Connect)) == story.state.failures)
    story.check(len(story.times(Look)) <= 3 * 4 * 365)


def test_hours_of_silence():
    """A printer that is off for hours is asked about once a second, and never connected to."""
    story = Story(answers=False, interval=60.0)
    with story.nothing(Connect):
        story.wait(7200)
    story.check(7100 <= len(story.times(Poke)) <= 7200)
    story.check(len(story.times(Open)) == 1)


@pytest.mark.parametrize("how", ["node", "banner", "silence", "retry"])
def test_return_starts_afresh(how):
    """The printer's node, its banner, an answer after silence, or `retry` ends the back-off."""
    story = Story()
    story.failing = Octo.LOST
    story.wait(700)
    while story.state.attempt is not None or story.state.not_before - story.now < 100:
        story.wait(1)
    story.failing = None
    with story.nothing(Connect):
        story.wait(10)
    if how == "node":
        story.replug()
    elif how == "banner":
        story.power_off()
        story.power_on()
    elif how == "silence":
        story.power_off()
        story.wait(20)
        story.power_on(banner=False)
    else:
        story.retry()
    story.expect(Connect, within=BOOT + 1.1)
    story.check(story.state.failures == 0)


def test_while_backing_off_it_is_asked_rarely():
    """In a back-off nobody waits for an answer: asked on the interval, and right when the back-off ends."""
    story = Story(interval=20.0)
    story.failing = Octo.LOST
    story.expect(Connect, within=SOON)
    story.expect_octo(Octo.LOST, within=50)
    begin = story.now
    story.expect(Connect, within=25)
    pokes = story.times(Poke, begin)
    story.check(len(pokes) == 2, f"{pokes}")
    story.check(story.now - story.state.attempt_at < 0.1)


def test_octoprints_own_attempt_failed():
    """A Connecting that ends in plain "Offline" is a failed attempt, not a person."""
    story = Story(answers=False)
    story.wait(10)
    story.person_connects()
    story.wait(GIVES_UP + 6)
    story.check(story.state.hold is Hold.NONE)
    story.check(story.state.failures == 1)
    story.power_on(banner=False)
    story.expect(Connect, within=BOOT + 6.1)


def test_octoprint_says_offline_right_after_a_connect():
    """OctoPrint 2.0 does so for a moment: the attempt is not over before two seconds are."""
    story = attempting()
    story.wait(0.1)
    story.told(Octo.OFFLINE, after=0.2)
    story.wait(0.1)
    story.check(story.state.attempt is not None)
    story.told(Octo.OFFLINE, after=3)
    story.check(story.state.failures == 1)


def test_octoprint_takes_its_time_to_accept():
    """The attempt begins with OctoPrint's yes: before, it cannot have ended."""
    story = listening()
    story.accepts_after = 5.0
    story.heard(Sign.BANNER)
    story.told(Octo.OFFLINE)
    story.wait(5.1)
    story.told(Octo.OFFLINE, after=0)
    story.check(story.state.attempt is not None, "too early to tell")
    story.told(Octo.OFFLINE, after=3)
    story.check(story.state.attempt is None)


def test_disconnected_right_after_our_connect():
    """OctoPrint gives up nothing in a second: that was a person, faster than our looks."""
    story = attempting()
    story.wait(0.1)
    story.told(Octo.CONNECTING, after=0.1)
    story.told(Octo.OFFLINE, after=0.3)
    story.check(story.state.hold is Hold.DELIBERATE)
    story.check(story.state.failures == 0)


def test_attempt_ends_quickly_with_always():
    """With `reconnect = "always"` there are only failed attempts."""
    story = attempting(reconnect="always")
    story.wait(0.1)
    story.told(Octo.CONNECTING, after=0.1)
    story.told(Octo.OFFLINE, after=0.3)
    story.check(story.state.failures == 1)


def test_attempt_ends_as_unknown():
    """An attempt is followed to its end also where nobody understands OctoPrint, but not for ever."""
    story = Story()
    story.failing = Octo.LOST
    story.expect(Connect, within=SOON)
    story.octoprint_says(Octo.UNKNOWN, "Frobnicating")
    with story.nothing(Close):
        story.wait(60)
    story.wait(ATTEMPT_LIMIT)
    story.check(story.state.failures == 1 and "Frobnicating" in story.state.failure_why)
    story.check(story.state.line is Line.CLOSED)


@pytest.mark.parametrize("ill", [Ill.SLOW, Ill.KEY, Ill.ODD])
def test_attempt_without_an_end(ill):
    """OctoPrint does not say how an attempt ended: our end is closed, and the attempt counts as failed."""
    story = Story()
    story.failing = Octo.LOST
    story.expect(Connect, within=SOON)
    story.wait(0.1)
    story.ill = ill
    with story.nothing(Close):
        story.wait(60)
    story.expect(Close, within=400)
    story.check(story.state.failures == 1)


def test_octoprint_dies_of_the_attempt():
    """OctoPrint goes down in the attempt: failed."""
    story = Story()
    story.failing = Octo.LOST
    story.expect(Connect, within=SOON)
    story.wait(0.1)
    story.ill = Ill.DOWN
    story.expect(Close, within=2)
    story.check(story.state.failures == 1)


def test_let_go_after_a_failed_attempt_with_the_port_held():
    """What fails with the port held is tried without: the first attempt is handed over, the second is not."""
    story = Story()
    story.failing = Octo.LOST
    story.expect(Connect, within=SOON)
    story.check([type(e) for _, e in story.out[-2:]] == [Mute, Connect])
    story.check(story.state.line is Line.HANDED)
    story.expect(Close, within=GIVES_UP + 1)
    story.expect(Open, within=60)
    story.expect(Connect, within=60)
    story.check([type(e) for _, e in story.out[-2:]] == [Close, Connect])
    story.failing = None
    story.expect_octo(Octo.IDLE, within=60)
    story.wait(60)
    story.check(not story.state.let_go, "it lasts: forgotten")


@pytest.mark.parametrize("ill", [Ill.DECLINED, Ill.SLOW, Ill.KEY, Ill.DOWN, Ill.ODD])
def test_declined(ill):
    """A connect that does not get through is a failed attempt; our end of the port is closed."""
    story = Story()
    story.declines = ill
    story.expect(Connect, within=SOON)
    story.expect(Close, within=0.1)
    story.check(story.state.failures == 1)
    story.check(story.state.ill is (None if ill is Ill.DECLINED else ill))
    story.declines = None
    story.expect_octo(Octo.IDLE, within=20)


def test_declined_too_late():
    """A refusal that comes after the attempt was given up counts no second time."""
    story = Story()
    with story.nothing(Connect):
        story.happens(Declined(Ill.SLOW, "no answer in time"))
    story.check(story.state.failures == 0)


# -- row 5: deliberate ---------------------------------------------------------------------------------------
def test_deliberate():
    """A person's word stands; the port is held without an edge, and listened to in silence."""
    story = held()
    with story.nothing(Connect, Poke):
        story.wait(7200)
    story.check(story.state.line is Line.LISTENING)
    story.check(story.edges == 1)
    story.check(story.memory == (Hold.DELIBERATE, 1))


def test_deliberate_where_an_open_would_reset():
    """Where DTR does not stay up nothing is opened either."""
    story = Story(octo=Octo.IDLE)
    story.keeps_dtr = False
    story.wait(20)
    story.person_disconnects()
    with story.nothing(Connect, Poke, Open):
        story.wait(3600)


@pytest.mark.parametrize("how", ["replug", "banner", "retry", "a person connects"])
def test_deliberate_is_over(how):
    """The printer returns (its node, its banner), or a person says so."""
    story = held()
    if how == "replug":
        story.replug()
        story.expect(Connect, within=BOOT + 0.1)
    elif how == "banner":
        story.power_off()
        story.wait(10)
        story.power_on()
        story.expect(Connect, within=BOOT + 0.1)
    elif how == "retry":
        story.retry()
        story.expect(Connect, within=SOON)
    else:
        story.person_connects()
        story.expect_octo(Octo.IDLE, within=10)
    story.check(story.state.hold is Hold.NONE)
    story.check(story.memory == (Hold.NONE, None))


def test_deliberate_without_a_banner():
    """Chatter is no return: temperatures go on by themselves after a Disconnect."""
    story = held()
    with story.nothing(Connect, Poke):
        for sign in (Sign.CHATTER, Sign.ANSWER, Sign.BUSY, Sign.PRINTING, Sign.NOT_PRINTING, Sign.ERROR):
            story.heard(sign)
            story.wait(400)


def test_deliberate_while_octoprint_is_slow():
    """Answers that do not come are not a new OctoPrint: the Disconnect between them counts."""
    story = connected()
    story.ill = Ill.SLOW
    story.wait(20)
    story.person_disconnects()
    story.ill = None
    with story.nothing(Connect, Poke):
        story.wait(600)


def test_deliberate_and_octoprint_restarts():
    """A hold outlives OctoPrint."""
    story = held()
    with story.nothing(Connect, Poke):
        story.octoprint_restarts(20)
        story.wait(600)


def test_offline_with_the_node_gone():
    """Plain "Offline" because the node went is no person's word."""
    story = connected()
    story.unplug()
    story.octoprint_says(Octo.OFFLINE)
    story.wait(6)
    story.plug()
    story.expect(Connect, within=BOOT + 0.1)


def test_always():
    """`reconnect = "always"`: deliberate or not, on the interval, and no remembered hold either."""
    story = connected(reconnect="always", memory=(Hold.DELIBERATE, 1))
    story.person_disconnects()
    story.expect(Connect, within=5.1 + SOON)
    fresh = Story(reconnect="always", memory=(Hold.DELIBERATE, 1))
    fresh.expect(Connect, within=SOON)
    fresh.check(fresh.memory == (Hold.NONE, None))


def test_always_still_respects_faults():
    """A fault is not a Disconnect."""
    story = connected(reconnect="always")
    story.octoprint_says(Octo.FAULT)
    with story.nothing(Connect, Poke):
        story.wait(600)
    again = Story(reconnect="always", memory=(Hold.FAULT, 1))
    with again.nothing(Connect, Poke, Open):
        again.wait(600)


# -- row 6: firmware fault -----------------------------------------------------------------------------------
def test_fault():
    """No reconnect after a fault, not even when the firmware is lively; until the printer returns."""
    story = connected()
    story.octoprint_says(Octo.FAULT, "Heating failed")
    with story.nothing(Connect, Poke):
        story.wait(600)
        story.heard(Sign.ANSWER)
        story.wait(600)
    story.check(story.memory == (Hold.FAULT, 1))
    story.power_off()
    story.power_on()
    story.expect(Connect, within=BOOT + 0.1)


def test_fault_is_held_once():
    """OctoPrint goes on saying it until it connects again: after the printer's return it is no new fault."""
    story = Story(octo=Octo.FAULT, answers=False)
    story.wait(10)
    story.check(story.state.hold is Hold.FAULT)
    story.unplug()
    story.plug()
    story.wait(60)
    story.check(story.state.hold is Hold.NONE)
    story.expect_octo(Octo.IDLE, within=10)


def test_fault_before_the_first_look_at_an_attempt():
    """A fault as fast as that, and of the same words as the last one, is a new one all the same."""
    for before in (Octo.OFFLINE, Octo.FAULT):
        story = Story(octo=before)
        story.wait(1)
        story.retry()
        story.failing = Octo.FAULT
        story.expect(Connect, within=SOON)
        story.wait(0.012)
        story.octoprint_says(Octo.FAULT)
        with story.nothing(Connect):
            story.wait(600)
        story.check(story.state.hold is Hold.FAULT)


def test_fault_after_a_declined_connect():
    """OctoPrint was not reached: what it says is still the fault of before the return."""
    story = Story(octo=Octo.FAULT)
    story.wait(1)
    story.retry()
    story.declines = Ill.DECLINED
    story.expect(Connect, within=SOON)
    story.declines = None
    story.expect_octo(Octo.IDLE, within=20)


def test_fault_after_deliberate():
    """The stronger word is remembered."""
    story = held()
    story.octoprint_says(Octo.FAULT)
    story.wait(6)
    story.check(story.memory == (Hold.FAULT, 1))


def test_a_connection_elsewhere_ends_no_hold():
    """Somebody connects OctoPrint to another port (VIRTUAL, for one): that says nothing of our printer."""
    story = listening()
    story.told(Octo.FAULT)
    story.told(Octo.IDLE, elsewhere="VIRTUAL", offered=None)
    story.check(story.state.hold is Hold.FAULT)
    story.check(story.memory == (Hold.FAULT, story.state.node.identity))
    story.told(Octo.IDLE)
    story.check(story.state.hold is Hold.NONE)


def test_fault_of_an_absent_printer():
    """No node, no identity: the next node that appears is the return."""
    story = Story(octo=Octo.FAULT, plugged=False)
    story.wait(10)
    story.check(story.memory == (Hold.FAULT, None))
    story.plug()
    story.expect(Connect, within=BOOT + 0.1)


def test_a_fault_is_heard():
    """An answer just before a fault that we hear ourselves is no reason to connect."""
    story = listening()
    story.heard(Sign.ANSWER)
    story.heard(Sign.ERROR)
    with story.nothing(Connect):
        story.told(Octo.OFFLINE)


# -- row 7: paused, or somebody else has the port ------------------------------------------------------------
def test_pause_and_resume():
    """`pause` lets go of the port at once; `resume` goes on at once."""
    story = Story(answers=False)
    story.wait(10)
    story.pause()
    story.check(isinstance(story.out[-1][1], Close))
    story.answers = True
    with story.nothing(Open, Poke, Connect):
        story.wait(7200)
    story.resume()
    story.expect(Connect, within=SOON)


@pytest.mark.parametrize("probe", ["firmware", "open", "none"])
def test_pause_ends(probe):
    """A pause for a time ends by itself, without waiting for the interval."""
    story = Story(interval=600.0, probe=probe, answers=False)
    story.pause(100)
    story.answers = True
    with story.nothing(Open, Poke, Connect):
        story.wait(99.9)
    story.expect(Connect, within=SOON)


def test_pause_in_an_attempt():
    """What OctoPrint was told to do is done; then the port is let go."""
    story = Story()
    story.failing = Octo.LOST
    story.expect(Connect, within=SOON)
    with story.nothing(Close):
        story.pause()
        story.wait(10)
    story.expect(Close, within=GIVES_UP)
    with story.nothing(Open, Connect):
        story.wait(3600)


def test_retry_ends_a_pause():
    """`retry` means now."""
    story = Story()
    story.pause()
    story.retry()
    story.expect(Connect, within=SOON)


def test_flasher():
    """Another process has the port: made way for, asked for again each second, taken up when it is over."""
    story = Story(answers=False)
    story.wait(10)
    story.taken()
    story.answers = True
    with story.nothing(Poke, Connect):
        story.wait(60)
    story.check(story.state.refusal is Refusal.BUSY)
    story.check(len(story.times(Open, story.now - 59.5)) <= 60)
    story.freed()
    story.expect(Connect, within=1.1 + SOON)


def test_freed_brings_the_open_forward():
    """Who was refused as busy tries again soon after the port was freed, and only then."""
    story = Story(interval=600.0, latency=None)
    story.holder = True
    story.told(Octo.OFFLINE)
    story.told(Octo.OFFLINE)
    story.check(story.state.next_open == story.now + 1)
    story.happens(Taken())
    story.freed()
    story.check(story.state.next_open <= story.now + 1)
    denied = Story(interval=600.0, answers=False)
    denied.refusal = Refusal.DENIED
    denied.wait(1)
    due = denied.state.next_open
    denied.freed()
    denied.check(denied.state.next_open == due)


@pytest.mark.parametrize("refusal", Refusal)
def test_refused(refusal):
    """A port that cannot be opened is tried again on the interval, a busy one sooner."""
    story = Story(interval=20.0)
    story.refusal = refusal
    with story.nothing(Connect, Poke):
        story.wait(600)
    opens = len(story.times(Open))
    story.check(500 <= opens <= 600 if refusal is Refusal.BUSY else 28 <= opens <= 31, f"{opens} opens")
    story.refusal = None
    story.expect(Connect, within=20 + SOON)


def test_hang_up_without_a_word_of_the_node():
    """The line dies and the node stays: tried again on the interval, not at once."""
    story = Story(answers=False)
    story.wait(10)
    with story.nothing(Open):
        story.happens(HungUp())
        story.wait(4.9)
    story.expect(Open, within=0.2)


# -- row 8: OctoPrint is unreachable, or not ours ------------------------------------------------------------
@pytest.mark.parametrize(
    ("ill", "looks"),
    [
        (Ill.DOWN, (115, 130)),
        (Ill.SLOW, (23, 26)),
        (Ill.KEY, (5, 8)),
        (Ill.ODD, (5, 8)),
        (Ill.DECLINED, (23, 26)),
    ],
)
def test_ill(ill, looks):
    """Nothing is done; a starting OctoPrint is asked each second, one that logs each refused key rarely."""
    story = Story()
    story.ill = ill
    with story.nothing(Open, Poke, Connect):
        story.wait(120)
    story.check(looks[0] <= len(story.times(Look)) <= looks[1], f"{len(story.times(Look))} looks")
    story.ill = None
    story.expect(Connect, within=300 + SOON)


def test_down_for_long():
    """After two minutes the interval will do."""
    story = Story()
    story.ill = Ill.DOWN
    story.wait(3600)
    story.check(10 <= len(story.times(Look, story.now - 60)) <= 13)


def test_the_first_refused_key_is_not_punished_for_an_outage():
    """The back-off of a refused key counts refused keys only."""
    story = Story()
    story.ill = Ill.DOWN
    story.wait(100)
    story.ill = Ill.KEY
    story.wait(2)
    story.ill = None
    story.expect(Connect, within=6 + SOON)


def test_ill_while_listening():
    """While OctoPrint's state is not known nothing is sent to the printer; the port stays open."""
    story = Story(answers=False)
    story.wait(10)
    story.ill = Ill.SLOW
    story.wait(6)
    with story.nothing(Poke, Close):
        story.wait(60)
    story.ill = None
    story.expect(Poke, within=6)


def test_unknown_words():
    """Unknown means hands off: the port is let go, and nothing is done."""
    story = Story(answers=False)
    story.wait(10)
    story.octoprint_says(Octo.UNKNOWN, "Frobnicating")
    story.expect(Close, within=5.1)
    story.answers = True
    with story.nothing(Open, Poke, Connect):
        story.wait(600)
    story.check(len(story.times(Look, story.now - 100)) <= 21)
    story.octoprint_says(Octo.OFFLINE)
    story.expect(Connect, within=5.1 + SOON)


# -- row 9: no port known, or not offered --------------------------------------------------------------------
def test_unconfigured():
    """Nobody has named a port: only looks; named later, it is used without a restart."""
    story = Story(begin=False)
    story.happens(Started())
    story.happens(NodeSeen(None, "no port is known", configured=False))
    with story.nothing(Open, Connect):
        story.wait(60)
        looks = len(story.times(Look))
        for _ in range(100):
            story.happens(NodeSeen(None, "no port is known", configured=False))
        story.check(len(story.times(Look)) == looks, "saying so again asks nobody")
    story.check(not story.state.configured and "no port" in story.state.missing)
    story.happens(NodeSeen(story.node))
    story.expect(Connect, within=SOON)


def test_the_port_is_unnamed_and_named_again():
    """Turning OctoPrint's preference to AUTO and back is no return of the printer."""
    story = held()
    with story.nothing(Connect, Poke):
        story.happens(NodeSeen(None, "no port is known", configured=False))
        story.wait(10)
        story.happens(NodeSeen(story.node))
        story.wait(600)


def test_not_offered():
    """OctoPrint does not offer the port: neither opened nor connected, until it does."""
    story = Story()
    story.offered = None
    with story.nothing(Open, Connect):
        story.wait(60)
    story.offered = "/dev/printer"
    story.check(story.expect(Connect, within=5.1 + SOON) == Connect("/dev/printer", 115200))


def test_not_offered_any_more():
    """A port that is open stays open when OctoPrint's list is short for a moment; no connect meanwhile."""
    story = Story(answers=False)
    story.wait(10)
    story.offered = None
    story.wait(6)
    story.answers = True
    with story.nothing(Connect):
        story.wait(60)
    story.offered = NODE
    story.expect(Connect, within=5.1)


# -- row 10: a change uevent ---------------------------------------------------------------------------------
def test_change_event():
    """Who the device is is read again; a port held back is not opened by it, and nobody is asked."""
    story = Story(octo=Octo.IDLE)
    story.keeps_dtr = False
    story.wait(20)
    story.person_disconnects()
    story.wait(6)
    with story.nothing(Open, Connect, Poke, Remember):
        story.changed(path="/dev/serial/by-id/printer")
        story.wait(600)
    story.check(story.state.node.path == "/dev/serial/by-id/printer")
    with story.nothing(Look):
        story.changed(path=NODE)


# -- promise 1: hands off ------------------------------------------------------------------------------------
def test_octoprint_connects_by_itself():
    """Somebody presses Connect while we listen: made way for at once, and no word to the printer."""
    story = Story(answers=False)
    story.wait(60)
    with story.nothing(Open, Poke, Connect, Mute):
        story.person_connects()
        story.check(story.state.line is Line.CLOSED)
        story.wait(30)


def test_octoprint_is_seen_connecting():
    """Where nobody tells that the port was opened, OctoPrint's word closes ours."""
    story = Story(answers=False)
    story.wait(10)
    story.octoprint_says(Octo.CONNECTING)
    story.expect(Close, within=5.1)
    with story.nothing(Open, Poke, Connect):
        story.wait(600)


def test_a_connecting_octoprint_is_looked_at_each_second():
    """So that its end is seen soon."""
    story = Story(octo=Octo.CONNECTING)
    story.wait(30)
    story.check(29 <= len(story.times(Look)) <= 31)


@pytest.mark.parametrize("octo", [Octo.IDLE, Octo.BUSY])
def test_octoprint_is_seen_connected(octo):
    """The same for a connected one, printing or not."""
    story = Story(answers=False, modem=False)
    story.wait(10)
    story.octoprint_says(octo)
    story.expect(Close, within=5.1)
    with story.nothing(Open, Poke, Connect, Guard):
        story.wait(600)


def test_the_trap():
    """An OctoPrint stuck in Connecting is left alone, and what we do about it is bounded."""
    story = Story()
    story.expect(Connect, within=SOON)
    story.octoprint_says(Octo.CONNECTING, "Opening serial connection")
    story.expect(Close, within=ATTEMPT_LIMIT + 2)
    story.check(story.state.failures == 1 and "too long" in story.state.failure_why)
    with story.nothing(Open, Poke, Connect):
        story.wait(3600)
    story.check(len(story.times(Look, story.now - 60)) <= 61)
    story.octoprint_says(Octo.OFFLINE)
    story.expect(Connect, within=30)


# -- promise 2: asked twice ----------------------------------------------------------------------------------
def test_asked_twice():
    """The answer that came before the sign of life opens the way to nothing: asked again, then told."""
    story = listening()
    story.wait(1)
    with story.nothing(Connect):
        story.heard(Sign.BANNER)
    story.check(story.asking)
    with story.nothing(Connect):
        story.told(Octo.CONNECTING)
    story.check(story.state.line is Line.CLOSED)


def test_a_question_from_before_the_banner():
    """A question that is under way when the firmware answers is asked once more."""
    story = listening(interval=1.0)
    story.wait(1.1)
    story.check(story.asking)
    story.heard(Sign.BANNER)
    with story.nothing(Connect):
        story.told(Octo.OFFLINE)
    story.check(story.asking)
    story.told(Octo.OFFLINE)
    story.check(isinstance(story.out[-1][1], Connect))


def test_the_answer_comes_too_late():
    """The printer fell silent while OctoPrint took its time."""
    story = listening()
    story.wait(1)
    story.heard(Sign.BANNER)
    with story.nothing(Connect):
        story.told(Octo.OFFLINE, after=3.5)


def test_a_node_from_after_the_question():
    """An answer is no word on a node that appeared after the question."""
    story = Story(latency=None, plugged=False)
    story.wait(FIRST_LOOK)
    story.plug()
    with story.nothing(Open):
        story.told(Octo.OFFLINE)
    story.told(Octo.OFFLINE)
    story.check(isinstance(story.out[-1][1], Open))


# -- promise 5: no needless reset ----------------------------------------------------------------------------
def test_one_edge_on_a_board_that_resets():
    """The board boots once: our open makes its edge, the banner is heard, OctoPrint makes no second one."""
    story = Story(resets=True)
    story.expect_octo(Octo.IDLE, within=BOOT + 1)
    story.check(story.edges == 1)
    story.octoprint_says(Octo.LOST)
    story.wait(60)
    story.check(story.edges == 1)


def test_our_own_banner_is_no_return():
    """A banner soon after our own edge may be our own doing: the back-off stands."""
    story = Story(resets=True, avoid_reset=False)
    story.failing = Octo.LOST
    story.wait(1500)
    story.check(story.state.failures > 3, f"{story.state.failures} failures")


def test_a_banner_long_after_our_own_edge_is_a_return():
    """A board does not take that long."""
    story = listening()
    story.check(story.state.own_edge)
    story.state = dataclasses.replace(story.state, failures=5)
    story.wait(OWN_RESET + 0.1)
    story.heard(Sign.BANNER)
    story.check(story.state.failures == 0)


def test_guard():
    """OctoPrint connected by itself: guarded once, idle only, and so DTR stays up over its Disconnect."""
    story = Story(octo=Octo.BUSY)
    with story.nothing(Guard):
        story.wait(60)
    story.octoprint_says(Octo.IDLE)
    story.expect(Guard, within=5.1)
    with story.nothing(Guard):
        story.wait(60)
        story.person_disconnects()
        story.wait(60)
    story.check(story.edges == 1 and story.dtr)


@pytest.mark.parametrize(
    "why", ["avoid_reset", "pty", "elsewhere", "not offered", "paused", "dry_run", "no node"]
)
def test_no_guard(why):
    """No guard where it is not wanted, not needed, or the port may not be OctoPrint's."""
    story = Story(
        octo=Octo.IDLE,
        avoid_reset=why != "avoid_reset",
        modem=why != "pty",
        dry_run=why == "dry_run",
        plugged=why != "no node",
        latency=None,
    )
    if why == "paused":
        story.pause()
    with story.nothing(Guard):
        more = {"elsewhere": {"elsewhere": "VIRTUAL"}, "not offered": {"offered": None}}.get(why, {})
        for _ in range(3):
            story.told(Octo.IDLE, **more)
            story.wait(6)


def test_guard_again_after_somebody_elses_open():
    """Whoever opened the port may have set HUPCL again."""
    story = connected()
    story.octoprint_says(Octo.LOST)
    story.answers = False
    story.wait(20)
    story.taken()
    story.check(not story.state.dtr_stays)
    story.freed()
    story.octoprint_says(Octo.IDLE)
    story.expect(Guard, within=6)


def test_avoid_reset_off():
    """`avoid_reset = false`: HUPCL is left alone, and an open counts as an edge each time."""
    story = Story(avoid_reset=False)
    story.check(not story.expect(Open, within=1).clear_hupcl)
    story.expect_octo(Octo.IDLE, within=5)
    story.person_disconnects()
    with story.nothing(Open):
        story.wait(600)


def test_no_edge_in_a_back_off():
    """Where each open resets the board it is not opened before the next attempt is due."""
    story = Story(avoid_reset=False)
    story.failing = Octo.LOST
    story.wait(1000)
    story.check(len(story.times(Connect)) > 5)
    for opened in story.times(Open):
        soon = [at for at in story.times(Connect, opened) if at < opened + SOON]
        story.check(soon or opened > story.now - SOON, f"opened at {opened} for nothing")


# -- promise 6: nothing is said that could hurt --------------------------------------------------------------
def test_the_only_bytes():
    """An empty line and a question, no line number, no checksum; and OctoPrint's rates, never 1200."""
    assert POKE == b"\nM115\n"
    assert BAUDRATES == (115200, 250000, 230400, 57600, 38400, 19200, 9600)


def test_quiet_start():
    """A bootloader is left in peace for two seconds after the open; then about one question a second."""
    story = Story(answers=False)
    opened = story.expect(Open, within=1) and story.now
    story.wait(20)
    pokes = story.times(Poke)
    story.check(pokes[0] == opened + QUIET_START)
    story.check(all(0.99 < b - a < 1.01 for a, b in pairwise(pokes)))


def test_a_talkative_printer_is_not_asked():
    """Who speaks unasked need not be asked."""
    story = listening()
    story.wait(1.9)
    with story.nothing(Poke):
        for _ in range(20):
            story.heard(Sign.CHATTER)
            story.wait(0.9)
    story.expect(Poke, within=0.11)


@pytest.mark.parametrize("sign", [Sign.BUSY, Sign.PRINTING])
def test_busy_means_hands_off(sign):
    """The printer says that it is busy, or prints from its card: hands off, until it says otherwise."""
    story = Story(answers=False)
    story.wait(1)
    with story.nothing(Connect):
        for _ in range(200):
            story.heard(sign)
            story.wait(3)
    story.heard(Sign.NOT_PRINTING if sign is Sign.PRINTING else Sign.ANSWER)
    story.expect(Connect, within=0.1)


@pytest.mark.parametrize("sign", [Sign.BUSY, Sign.PRINTING])
def test_busy_means_not_a_byte(sign):
    """Promise 6: a printer at work is not even asked for its name."""
    story = Story(answers=False)
    story.wait(10)
    story.heard(sign)
    with story.nothing(Poke):
        story.wait(9.9)
        story.heard(sign)
        story.wait(9.9)


@pytest.mark.parametrize(("sign", "seconds"), [(Sign.BUSY, 10), (Sign.PRINTING, 300)])
def test_busy_is_over(sign, seconds):
    """Said no more, it is over; the deadline does not sleep through it."""
    story = Story(interval=600.0, answers=False)
    story.wait(1)
    story.heard(sign)
    story.answers = True
    with story.nothing(Connect):
        story.wait(seconds - 0.1)
    story.expect(Connect, within=1.2)


@pytest.mark.parametrize("sign", [Sign.BUSY, Sign.PRINTING])
def test_a_boot_ends_what_was_busy(sign):
    """After a banner nothing of before counts."""
    story = Story(answers=False)
    story.wait(20)
    story.heard(sign)
    story.heard(Sign.BANNER)
    story.expect(Connect, within=0.1)


def test_auto_baudrate():
    """No baudrate is known: OctoPrint's list in its order, two questions each, garbage being no life."""
    story = Story()
    story.preferred, story.rate = None, 9600
    opened = story.expect(Open, within=1)
    story.check(opened.baudrate == BAUDRATES[0])
    connect = story.expect(Connect, within=QUIET_START + 2 * len(BAUDRATES))
    rates = [effect.baudrate for _, effect in story.out if isinstance(effect, Rebaud)]
    story.check([opened.baudrate, *rates] == list(BAUDRATES))
    story.check(connect.baudrate == 9600)


def test_never_57600_where_it_is_shunned():
    """57600 turns some boards off: left out of the search, and of every connect."""
    story = Story(shun=frozenset({57600}), answers=False)
    story.preferred = None
    story.wait(60)
    rates = {effect.baudrate for _, effect in story.out if isinstance(effect, Rebaud | Open)}
    story.check(rates == set(BAUDRATES) - {57600})


@pytest.mark.parametrize("probe", ["firmware", "open", "none"])
def test_a_shunned_preference(probe):
    """OctoPrint prefers what must not be set: neither opened nor connected, until that changes."""
    story = Story(shun=frozenset({57600}), probe=probe)
    story.preferred = 57600
    with story.nothing(Open, Connect):
        story.wait(60)
    story.check(baudrate(story.state) is None)
    story.preferred = 115200
    story.expect(Connect, within=5.1 + SOON)


def test_shunned_while_listening():
    """Once it is known who the board is, a port at a rate it must not have is let go."""
    story = Story(answers=False)
    story.preferred = 57600
    story.wait(10)
    story.changed(shun=frozenset({57600}))
    story.check(story.state.line is Line.CLOSED)
    with story.nothing(Open):
        story.wait(60)


def test_the_preference_changes_while_listening():
    """The open port follows OctoPrint's baudrate; what was heard at the old one does not count."""
    story = Story(answers=False)
    story.rate = 250000
    story.wait(10)
    story.preferred = 250000
    story.check(story.expect(Rebaud, within=5.1) == Rebaud(250000))
    story.answers = True
    story.check(story.expect(Connect, within=1.1) == Connect(NODE, 250000))


def test_configured_baudrate():
    """What a person configured beats OctoPrint's preference."""
    story = Story(baudrate=250000)
    story.rate = 250000
    story.check(story.expect(Open, within=1).baudrate == 250000)
    story.check(story.expect(Connect, within=SOON).baudrate == 250000)


def test_garbage():
    """Garbage is no life, and is known for what it is until something is understood."""
    story = Story()
    story.rate = 250000
    with story.nothing(Connect):
        story.wait(60)
    story.check(story.state.garbled)
    story.rate = 115200
    story.expect(Connect, within=1.1)


# -- promise 7: the right printer ----------------------------------------------------------------------------
MK3 = {"machine": "Original Prusa i3 MK3S", "uuid": "uuid-of-the-mk3"}


@pytest.mark.parametrize("names", [["machine", "uuid"], ["machine"], ["uuid"]])
def test_the_printer_that_it_must_be(names):
    """It says who it is, and is connected."""
    story = Story(**{name: MK3[name] for name in names})
    story.expect(Connect, within=SOON + 0.1)


def test_names_are_compared_as_people_write_them():
    """Upper and lower case are the same."""
    state = State(Policy(machine="Original PRUSA i3 mk3s"))
    assert step(state, Identified(MK3["machine"], None), 1.0)[0].known


@pytest.mark.parametrize("who", [("Ender-3", MK3["uuid"]), (MK3["machine"], "another"), (None, None)])
def test_another_printer_on_the_port(who):
    """Never connected, and asked no more often than a printer that must wait; its replacement is."""
    story = Story(**MK3)
    right, story.identity = story.identity, Identified(*who)
    with story.nothing(Connect):
        story.wait(600)
    story.check(story.state.known is False)
    story.check(len(story.times(Poke)) <= 600 / 5 + 2)
    story.identity = right
    story.replug()
    story.expect(Connect, within=BOOT + 1.2)


def test_a_banner_alone_does_not_say_who_it_is():
    """The firmware is asked for its name before it is connected to."""
    story = Story(answers=False, **MK3)
    story.wait(60)
    story.power_on()
    story.wait(BOOT + 0.001)
    story.check(not story.times(Connect))
    story.expect(Connect, within=1.2)


def test_a_firmware_that_never_says_who_it_is():
    """It answers, but not that: hands off."""
    story = Story(**MK3)
    story.identity = None
    with story.nothing(Connect):
        story.wait(600)


def test_another_printer_after_a_reboot():
    """Behind a switch the port stays, and the printer is another: what was said before counts for nothing."""
    story = Story(answers=False, **MK3)
    story.wait(10)
    story.failing = Octo.OFFLINE
    story.power_on()
    story.expect(Connect, within=BOOT + 1.2)
    story.wait(GIVES_UP + 4)
    story.check(story.state.known, "it has been asked again, and waits for the back-off to be over")
    story.identity = Identified("Ender-3", None)
    story.power_off()
    story.power_on()
    with story.nothing(Connect):
        story.wait(60)


# -- promise 8: no hammering ---------------------------------------------------------------------------------
def test_boot_loop():
    """A board that boots again and again, and fails OctoPrint each time, is not connected to in a loop."""
    story = Story(answers=False, latency=0.001)
    story.failing = Octo.LOST
    for _ in range(3000):
        story.wait(0.2)
        story.heard(Sign.BANNER)
        if story.octo is Octo.CONNECTING:
            story.octoprint_says(Octo.LOST)
    connects = story.times(Connect)
    story.check(len(connects) > 5)
    story.check(min(b - a for a, b in pairwise(connects)) >= 5)


def test_an_answer_now_and_then():
    """Silence and answers in turn start afresh, but not faster than the interval."""
    story = Story(interval=60.0, probe="firmware")
    story.declines = Ill.DECLINED
    for _ in range(200):
        story.wait(5)
        story.answers = not story.answers
    connects = story.times(Connect)
    story.check(min(b - a for a, b in pairwise(connects)) >= 60)


# -- promise 9: never stuck, never deaf ----------------------------------------------------------------------
def test_a_kick_while_a_question_is_under_way():
    """It asks again as soon as that one is answered."""
    story = Story(latency=None)
    story.hint()
    with story.nothing(Connect):
        story.told(Octo.OFFLINE)
    story.check(story.asking)


def test_a_kick_while_a_question_fails():
    """It asks again at once also when that one is not answered: the key may have been changed meanwhile."""
    story = Story(latency=None)
    for _ in range(9):
        story.untold(Ill.KEY)
        story.wait(300)
    story.check(story.asking)
    story.hint()
    story.untold(Ill.KEY)
    story.check(story.asking)
    story.untold(Ill.KEY)
    story.check(not story.asking)


def test_hints_do_not_postpone():
    """Hints that come faster than OctoPrint answers put nothing off."""
    story = Story(latency=0.5)
    for _ in range(40):
        story.wait(0.2)
        story.hint()
    story.check(story.times(Open) and story.times(Connect))


def test_a_hint_does_not_make_an_old_answer_good():
    """What outdated the question still does."""
    story = Story(latency=None, plugged=False)
    story.wait(FIRST_LOOK)
    story.plug()
    story.hint()
    with story.nothing(Open):
        story.told(Octo.OFFLINE)


def test_kicks_when_idle_ask_at_once():
    """A hint, an accepted connect, a device: asked in the same instant."""
    story = Story(octo=Octo.IDLE)
    story.wait(12.5)
    story.check(not story.asking)
    story.hint()
    story.check(story.asking)


@pytest.mark.parametrize("latency", [0.0, 1.0, 3.0, 9.0])
def test_slow_octoprint(latency):
    """OctoPrint takes seconds for each answer, and is connected all the same."""
    story = Story(latency=latency)
    story.expect_octo(Octo.IDLE, within=6 * latency + SOON + 1)


def test_a_late_look_at_the_deadline():
    """Waking up late finds what has come due in between, and does not sleep on."""
    story = listening()
    due = deadline(story.state, story.now)
    assert due == story.state.next_poke
    for late in (due + 0.001, due + 1, due + 2.9):
        assert deadline(story.state, late) == late


def test_a_deadline_before_the_first_event():
    """A new state has nothing to wait for."""
    assert deadline(State(Policy()), 7.0) == 7.0


def test_no_loop_while_a_question_is_under_way():
    """A kick with a question under way leaves nothing to do at this instant."""
    story = Story(latency=None)
    story.retry()
    assert deadline(story.state, story.now) > story.now


def test_down_forgets_the_connection_slow_does_not():
    """DOWN is certainly a new OctoPrint, SLOW may be the old one."""
    for ill, hold in ((Ill.DOWN, Hold.NONE), (Ill.SLOW, Hold.DELIBERATE)):
        story = Story(octo=Octo.IDLE, latency=None)
        story.told(Octo.IDLE)
        story.wait(6)
        story.untold(ill)
        story.wait(6)
        story.told(Octo.OFFLINE)
        story.check(story.state.hold is hold)


# -- probe = "open" and "none" -------------------------------------------------------------------------------
def test_probe_open():
    """The port opens: connect, with not a byte sent."""
    story = Story(probe="open", answers=False)
    with story.nothing(Poke):
        story.expect(Connect, within=0.1)
        story.check([type(e) for _, e in story.out[-2:]] == [Mute, Connect])
        story.wait(600)


def test_probe_none():
    """The node is there: connect, with nothing opened; and again with back-off."""
    story = Story(probe="none", plugged=False)
    story.power_off()
    story.plug()
    with story.nothing(Open, Poke):
        story.expect(Connect, within=0.1)
        story.wait(600)
    story.check(3 < len(story.times(Connect)) < 8)


def test_probe_none_after_a_deliberate_disconnect():
    """A hold stands without a probe, too: until the node, or a person."""
    story = held(probe="none")
    with story.nothing(Connect, Open):
        story.wait(3600)
    story.replug()
    story.expect(Connect, within=0.2)


@pytest.mark.parametrize("probe", ["open", "none"])
@pytest.mark.parametrize(("preferred", "told"), [(None, None), (250000, 250000)])
def test_unproven_baudrate(probe, preferred, told):
    """A rate that no firmware has answered at is not told to OctoPrint, unless it is known: it may search."""
    story = Story(probe=probe)
    story.preferred = preferred
    story.check(story.expect(Connect, within=SOON).baudrate == told)


# -- small print ---------------------------------------------------------------------------------------------
def test_signs_on_no_line_are_nothing():
    """A sign that comes after the port was closed or handed over changes nothing."""
    story = Story(octo=Octo.IDLE)
    story.wait(20)
    before = dataclasses.replace(story.state, at=math.nan)
    story.happens(Heard(Sign.BANNER))
    assert repr(dataclasses.replace(story.state, at=math.nan)) == repr(before)


def test_a_sign_of_life_is_believed_for_three_seconds():
    """No longer; and not over three unanswered questions."""
    state = dataclasses.replace(State(Policy()), alive_at=10.0)
    assert alive(state, 13.0)
    assert not alive(state, 13.1)
    assert not alive(dataclasses.replace(state, unanswered=3), 11.0)


def test_the_answer_to_nothing():
    """An OctoPrint that is offline with no printer there is only looked at."""
    story = Story(plugged=False, octo=Octo.LOST)
    story.wait(600)
    story.check({type(effect) for _, effect in story.out} == {Look})


def test_untold_before_anything():
    """The very first question fails: nothing is known, nothing is done."""
    state, effects = step(State(Policy()), Started(), 1.0)
    assert effects == [], "the device is looked for first: one question will do"
    state, effects = step(state, Tick(), 1.0 + FIRST_LOOK)
    assert effects == [Look()]
    state, effects = step(state, Untold(Ill.SLOW, "no answer"), 2.0)
    assert effects == []
    assert deadline(state, 2.0) == 7.0
