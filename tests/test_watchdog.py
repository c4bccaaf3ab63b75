"""Whether the service is said to be alive: only while each of its loops comes round."""

import pytest

from bench import logged
from portretry_udev.watchdog import Pulse, Watchdog

WITHIN = 120.0  # seconds, as in the unit


class Loop:
    """Comes round at once when it is woken, but not while it is blocked."""

    def __init__(self, name):
        self.pulse = Pulse(name, self._wake)
        self.blocked = False
        self.woken = 0

    def _wake(self):
        self.woken += 1
        if not self.blocked:
            self.pulse.beat()

    def unblock(self):
        self.blocked = False
        self.pulse.beat()


class Story:
    """A watchdog, its loops, and systemd, which kills after too long a silence; time is made here."""

    def __init__(self, *names):
        self.now = 1000.0
        self.loops = {name: Loop(name) for name in names}
        self.said_at = []
        self.watchdog = Watchdog(
            WITHIN,
            lambda: [loop.pulse for loop in self.loops.values()],
            lambda: self.said_at.append(self.now),
            lambda: self.now,
        )
        self.watchdog.look()

    def passes(self, seconds):
        """Let time pass, in the steps that the watchdog wants; whether systemd has been patient."""
        end = self.now + seconds
        while self.watchdog.due <= end:
            self.now = self.watchdog.due
            self.watchdog.look()
            if self.now - self.said_at[-1] >= WITHIN:
                return False
        self.now = end
        return self.now - self.said_at[-1] < WITHIN


@pytest.fixture
def story():
    return Story("mk3", "mini", "control socket")


@pytest.fixture(autouse=True)
def log():
    with logged() as log:
        yield log


def test_while_all_come_round_it_is_said_more_often_than_twice_in_the_time(story):
    """sd_watchdog_enabled(3) wants it at half the time; nothing is logged of it."""
    assert story.passes(3600)
    pauses = [b - a for a, b in zip(story.said_at, story.said_at[1:], strict=False)]
    assert max(pauses) < WITHIN / 2
    assert len(story.said_at) < 3600 / 20, "and no more often than is of use"


def test_loops_are_woken_and_no_more_often_than_that(story):
    """One that waits for hours is asked, or its silence would say nothing."""
    story.passes(3600)
    woken = {loop.woken for loop in story.loops.values()}
    assert woken == {len(story.said_at)}


def test_a_look_before_its_time_does_nothing(story):
    """The monitor's loop comes round at each uevent: that is no reason to wake all others."""
    for _ in range(1000):
        story.now += 0.001
        story.watchdog.look()
    assert (len(story.said_at), story.loops["mk3"].woken) == (1, 1)


def test_a_loop_that_hangs_is_the_end(story, log):
    """One watcher hangs for good: from then on nobody says that the service is alive, and people know why."""
    story.passes(100)
    story.loops["mini"].blocked = True
    before = len(story.said_at)
    assert not story.passes(WITHIN + 60)
    assert len(story.said_at) - before <= 2, "what had been answered before it hung"
    assert log.count("mini does not come round any more") == 1
    assert log.count("mk3") == 0


@pytest.mark.parametrize("offset", range(0, 31, 3))
def test_an_open_that_takes_30_seconds_is_not_the_end(story, log, offset):
    """A driver keeps a watcher in open(2), whenever it begins; and once more, right after it."""
    story.passes(100 + offset)
    for _ in range(2):
        story.loops["mk3"].blocked = True
        assert story.passes(30.1)
        story.loops["mk3"].unblock()
    assert story.passes(600)
    assert log.count("does not come round") == 0


def test_who_comes_round_late_is_told_of(story, log):
    """What was told as hanging and was not is taken back, once."""
    story.passes(100)
    story.loops["mk3"].blocked = True
    assert story.passes(85)
    story.loops["mk3"].unblock()
    assert story.passes(600)
    assert log.count("mk3 does not come round any more") == 1
    assert log.count("mk3 comes round again") == 1


def test_a_loop_that_has_ended_is_not_asked(story):
    """A printer was taken out of the configuration: its loop is gone, and nobody has died."""
    story.loops["mini"].blocked = True
    story.watchdog.look()
    story.loops["mini"].pulse.end()
    assert story.passes(600)


def test_a_new_loop_is_asked_too(story):
    """A printer was added: it counts like those from the start."""
    story.passes(100)
    story.loops["xl"] = Loop("xl")
    story.loops["xl"].blocked = True
    assert not story.passes(WITHIN * 2)


def test_nobody_else_need_be_there():
    """With no other loop, the one that looks is all that must be alive."""
    assert Story().passes(600)
