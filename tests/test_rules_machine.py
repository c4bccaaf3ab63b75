"""Any events in any order: whatever happens, the promises hold and the rules are never stuck.

What holds after each single step stands in `story.Law` and `Story._check_deadline`; here is who stirs.
"""

import math

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from portretry_udev.events import (
    Accepted,
    Connect,
    Counted,
    Declined,
    Disconnecting,
    Erred,
    Guarded,
    Heard,
    Hold,
    HungUp,
    Ill,
    News,
    Octo,
    OpenFailed,
    PushUp,
    Refusal,
    Taken,
    Unwedged,
)
from portretry_udev.firmware import Sign
from portretry_udev.rules import ATTEMPT_LIMIT, BACK_OFF_LIMIT, PRINTING_FOR
from story import Story

LIMITS = settings(
    derandomize=True,
    deadline=None,
    max_examples=120,
    stateful_step_count=40,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes; a story is told in full anyhow
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

PAUSES = st.sampled_from([0.0, 0.004, 0.1, 0.5, 1.0, 2.9, 5.0, 12.0, 31.0, 95.0, 310.0])


class World(RuleBasedStateMachine):
    """People, plugins, cables, mains, OctoPrints and other processes, all at odds."""

    teller = Story  # who tells the story

    @initialize(
        interval=st.sampled_from([0.3, 5.0, 5.0, 60.0, 600.0]),
        reconnect=st.sampled_from(["on-return", "on-return", "always"]),
        start=st.sampled_from(["connect", "connect", "wait"]),
        probe=st.sampled_from(["firmware", "firmware", "firmware", "open", "none"]),
        avoid_reset=st.booleans(),
        baudrate=st.sampled_from([None, None, 115200, 57600]),
        octo=st.sampled_from(Octo),
        flags=st.tuples(*[st.booleans()] * 7),
        memory=st.sampled_from(
            [(Hold.NONE, None), (Hold.DELIBERATE, 1), (Hold.FAULT, 9), (Hold.FAULT, None)]
        ),
        shun=st.sampled_from([frozenset(), frozenset({57600})]),
    )
    def begin(self, octo, flags, memory, shun, **policy):
        answers, plugged, modem, resets, keeps_dtr, pushes, forgetful = flags
        self.story = self.teller(
            octo=octo,
            answers=answers,
            plugged=plugged,
            modem=modem,
            resets=resets,
            memory=memory,
            shun=shun,
            begin=False,
            **policy,
        )
        self.story.keeps_dtr = keeps_dtr
        self.story.pushes, self.story.forgetful = pushes, forgetful
        self.story.begin()

    # -- time and truth --------------------------------------------------------------------------------
    @rule(seconds=PAUSES)
    def wait(self, seconds):
        self.story.wait(seconds)

    @rule()
    def all_is_well(self):
        """Without such spells nothing would ever come about that could then go wrong."""
        self._heal()
        self.story.wait(12)

    @rule(seconds=PAUSES)
    def all_is_well_for_long(self, seconds):
        self._heal()
        self.story.plug_if_absent()
        self.story.wait(12 + seconds)

    @rule(sign=st.sampled_from(Sign), seconds=PAUSES, retry=st.booleans())
    def the_printer_speaks(self, sign, seconds, retry):
        self._heal()
        self.story.plug_if_absent()
        self.story.octoprint_says(Octo.LOST)
        self.story.answers = False
        self.story.wait(6)
        if retry:
            self.story.retry()
        self.story.heard(sign)
        self.story.wait(seconds)

    @rule(octo=st.sampled_from([Octo.OFFLINE, Octo.OFFLINE, Octo.FAULT, Octo.LOST]), seconds=PAUSES)
    def the_connection_ends(self, octo, seconds):
        self._heal()
        self.story.plug_if_absent()
        self.story.wait(12)
        self.story.octoprint_says(octo)
        self.story.wait(seconds)

    def _heal(self):
        story = self.story
        story.ill = story.declines = story.failing = story.refusal = story.elsewhere = None
        story.holder, story.latency, story.offered = False, 0.01, "/dev/ttyACM0"
        story.rate = story.preferred = story.policy.baudrate or 115200
        story.answers = story.powered = True
        story.words = story.aside = None
        story.open_fails = story.waits_for_start = story.unseen = False

    @rule(latency=st.sampled_from([0.0, 0.01, 0.3, 3.0, 12.0]))
    def octoprint_takes_its_time(self, latency):
        self.story.latency = latency

    # -- the device ------------------------------------------------------------------------------------
    @precondition(lambda self: self.story.node is None)
    @rule()
    def plug(self):
        self.story.plug()

    @rule()
    def unplug(self):
        self.story.unplug()

    @precondition(lambda self: self.story.node is not None)
    @rule(shun=st.sampled_from([frozenset(), frozenset({57600}), frozenset({115200})]))
    def change(self, shun):
        self.story.changed(shun=shun)

    @rule()
    def unheard_of_replug(self):
        self.story.unplug()
        self.story.plug()

    @rule()
    def power_off(self):
        self.story.power_off()

    @rule(banner=st.booleans())
    def power_on(self, banner):
        self.story.power_on(banner=banner)

    @rule(rate=st.sampled_from([115200, 250000, 57600]))
    def reflash(self, rate):
        self.story.rate = rate

    @rule(sign=st.sampled_from(Sign))
    def heard(self, sign):
        self.story.heard(sign)

    @rule(refusal=st.sampled_from([None, *Refusal]))
    def refuses(self, refusal):
        self.story.refusal = refusal

    @precondition(lambda self: self.story.law.fd)
    @rule()
    def hangs_up(self):
        self.story.happens(HungUp())

    # -- others ----------------------------------------------------------------------------------------
    @rule()
    def taken(self):
        self.story.taken()

    @rule()
    def freed(self):
        self.story.freed()

    @rule()
    def hint(self):
        self.story.hint()

    @rule()
    def retry(self):
        self.story.retry()

    @rule(seconds=st.sampled_from([0.0, 3.0, 100.0, math.inf]))
    def pause(self, seconds):
        self.story.pause(seconds)

    @rule()
    def resume(self):
        self.story.resume()

    @rule()
    def service_restarts(self):
        self.story.service_restarts()

    # -- OctoPrint -------------------------------------------------------------------------------------
    @rule()
    def person_connects(self):
        self.story.person_connects()

    @rule()
    def person_disconnects(self):
        self.story.person_disconnects()

    @rule(octo=st.sampled_from(Octo))
    def octoprint_says(self, octo):
        self.story.octoprint_says(octo)

    @rule(ill=st.sampled_from([None, *Ill]))
    def octoprint_is_ill(self, ill):
        self.story.ill = ill

    @rule(declines=st.sampled_from([None, *Ill]))
    def octoprint_declines(self, declines):
        self.story.declines = declines

    @rule(octo=st.sampled_from([None, Octo.OFFLINE, Octo.LOST, Octo.FAULT]))
    def octoprint_fails(self, octo):
        self.story.failing = octo

    @rule()
    def octoprint_restarts(self):
        self.story.octoprint_restarts(down_for=0.0)

    @rule(
        offered=st.sampled_from([None, "/dev/ttyACM0", "/dev/printer"]),
        preferred=st.sampled_from([None, 115200, 250000, 57600]),
        elsewhere=st.sampled_from([None, None, "VIRTUAL"]),
    )
    def octoprint_prefers(self, offered, preferred, elsewhere):
        self.story.offered, self.story.preferred, self.story.elsewhere = offered, preferred, elsewhere

    @rule(fails=st.booleans(), seconds=PAUSES)
    def octoprint_cannot_open(self, fails, seconds):
        self.story.open_fails = fails
        self.story.person_connects()
        self.story.wait(seconds)

    @rule(unseen=st.booleans())
    def octoprint_is_hidden(self, unseen):
        self.story.unseen = unseen

    @rule(waits=st.booleans())
    def octoprint_waits_for_start(self, waits):
        self.story.waits_for_start = waits

    @rule(aside=st.sampled_from([None, None, "it prefers Moonraker"]))
    def octoprint_prefers_another_connector(self, aside):
        self.story.aside = aside

    @rule(up=st.booleans())
    def push_comes_and_goes(self, up):
        self.story.happens(PushUp(up))

    @rule(event=st.sampled_from([Disconnecting(), Erred(True, "odd"), Erred(False, "odd"), News()]))
    def push_tells_what_is_not_so(self, event):
        self.story.happens(event)

    # -- what cannot be, and happens all the same --------------------------------------------------------
    @rule(
        event=st.sampled_from(
            [
                Accepted(),
                Declined(Ill.KEY, ""),
                Guarded(True),
                Guarded(False),
                Unwedged(),
                Counted(False),
                Counted(None),
            ]
        )
    )
    def late_outcome(self, event):
        self.story.happens(event)

    @rule(refusal=st.sampled_from(Refusal))
    def late_refusal(self, refusal):
        self.story.happens(OpenFailed(refusal, "late"))

    @rule(sign=st.sampled_from(Sign))
    def late_sign(self, sign):
        if not self.story.law.fd or self.story.law.muted:
            self.story.happens(Heard(sign))

    @rule()
    def taken_unheld(self):
        if not self.story.law.fd:
            self.story.happens(Taken())

    # -- the end -----------------------------------------------------------------------------------------
    def teardown(self):
        """Never stuck: when all is well again, OctoPrint is told to connect, and gets there."""
        story = getattr(self, "story", None)
        if story is None or story.failed:
            return
        self._heal()
        story.shun = frozenset()
        if not story.stuck:
            story.octoprint_says(Octo.LOST)
        story.wait(max(ATTEMPT_LIMIT, PRINTING_FOR, BACK_OFF_LIMIT) + story.policy.interval + 12)
        story.unplug()
        story.power_on()
        story.plug()
        story.retry()
        if story.octo not in {Octo.IDLE, Octo.CONNECTING}:
            story.expect(Connect, within=30 + 2 * story.policy.interval)
        story.expect_octo(Octo.IDLE, within=30 + 2 * story.policy.interval)


World.TestCase.settings = LIMITS
TestWorld = World.TestCase


@settings(LIMITS, max_examples=40)
@given(
    st.lists(st.tuples(PAUSES, st.sampled_from([Octo.OFFLINE, Octo.LOST])), max_size=6),
    st.sampled_from([0.3, 5.0, 60.0]),
)
def test_without_retry_never_stuck(losses, interval):
    """Lost again and again, the printer is in OctoPrint again within the back-off, with nobody's help."""
    story = Story(interval=interval, reconnect="always")
    for pause, octo in losses:
        story.wait(pause)
        story.octoprint_says(octo)
    story.expect_octo(Octo.IDLE, within=BACK_OFF_LIMIT + 30)


@pytest.mark.parametrize("probe", ["firmware", "open", "none"])
def test_a_dry_run_touches_nothing(probe):
    """`dry_run` neither opens, pokes, guards nor connects, whatever happens."""
    story = Story(probe=probe, dry_run=True)
    story.wait(20)
    story.replug()
    story.wait(20)
    story.retry()
    story.person_connects()
    story.wait(20)
    story.octoprint_says(Octo.LOST)
    story.wait(600)
    story.check({type(effect).__name__ for _, effect in story.out} <= {"Look", "Remember"})
