"""What OctoPrint's push is good for: who hears it asks less, and knows sooner.  Without it nobody listens."""

import functools
import time
from collections import deque

import pytest

from helpers import assert_eventually

pytestmark = pytest.mark.octoprint

IDLE = 12.0  # seconds; six looks at the service's interval of 2 s
SETTLED_WITHIN = 15.0  # seconds after a connect in which the service may still look twice a second
NEWS_WITHIN = 1.0  # seconds, from a person's click to the line in the log


class Looks:
    """How often the service has asked OctoPrint what it is doing, in any stretch of seconds up to now."""

    def __init__(self, octoprint):
        self._octoprint = octoprint
        self._began = time.monotonic()
        self._seen = deque([(self._began, self._count())])

    def _count(self):
        return self._octoprint.answered("200 GET /api/connection")

    def within(self, seconds):
        """Looks in the last seconds; None: not so long ago was the beginning."""
        now = time.monotonic()
        self._seen.append((now, self._count()))
        if now - self._began < seconds:
            return None
        while self._seen[1][0] <= now - seconds:
            self._seen.popleft()
        return self._seen[-1][1] - self._seen[0][1]


def listening(octoprint):
    """Requests that there are for push alone."""
    log = octoprint.logfile.with_name("tornado.log").read_text()
    return log.count("/sockjs") + log.count("/api/login")


def within_a_second(daemon, word, happen, undo):
    """See that the service says so within a second; in one of three tries, as a busy machine may stall."""
    for _ in range(3):
        began = time.monotonic()
        happen()
        daemon.expect(word)
        took = time.monotonic() - began
        if took <= NEWS_WITHIN:
            return
        undo()
        daemon.expect(" connected: ")
    raise AssertionError(f"it says {word!r}, but only after {took:.1f} s")


def test_with_push_the_service_asks_rarely_and_knows_at_once(scene):
    """Asked at most once in 12 s; yet a Disconnect and a pulled cable are known within a second."""
    before = listening(scene.octoprint)
    daemon = scene.watched()
    looks = Looks(scene.octoprint)
    assert_eventually(
        lambda: looks.within(IDLE) in (0, 1), SETTLED_WITHIN + IDLE, lambda: f"{looks.within(IDLE)} looks"
    )
    connect = functools.partial(scene.octoprint.connect, str(scene.printer.link))
    within_a_second(daemon, " held: ", scene.disconnect, connect)
    assert daemon.count(r" Disconnecting\(\) -> \[Remember\(hold=<Hold.DELIBERATE"), "known by push alone"
    connect()
    daemon.expect(" connected: ")
    within_a_second(daemon, " absent: ", scene.printer.unplug, scene.printer.plug)
    scene.stopped(daemon)
    assert_eventually(lambda: listening(scene.octoprint) > before, NEWS_WITHIN, "OctoPrint logs its listener")


@pytest.mark.parametrize("push", ["polls"], indirect=True)
def test_without_push_it_asks_at_its_interval(scene):
    """At least five times in 12 s; and nobody logs in to listen, from the service's start to its end."""
    before = listening(scene.octoprint)
    daemon = scene.watched()
    looks = Looks(scene.octoprint)
    assert_eventually(lambda: looks.within(IDLE) is not None, IDLE + SETTLED_WITHIN, "time passes")
    assert looks.within(IDLE) >= 5
    scene.disconnected(daemon)
    scene.stopped(daemon)
    assert listening(scene.octoprint) == before
