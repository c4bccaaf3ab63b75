"""Whether every loop that must be alive still comes round.

Knows time and loops.  Must not know what the loops do, nor who wants to know that they live (``notify``).

A loop may rightly wait for hours, so its silence says nothing: it is woken and asked, and comes round to
answer.  One that sits in open(2) answers late, and has a good part of the time for it; one that hangs never
does, and then nobody says any more that the service is alive.
"""

import logging
import time
from collections.abc import Callable, Iterable

LOOKS = 4  # in the time that is given: a loop that is late at two of them is in time at the third
_log = logging.getLogger("portretry_udev.watchdog")


class Pulse:
    """One loop's signs of life: asked for by the watchdog's thread, given by the loop's own.

    Args:
        name: of the loop, for people.
        wake: has the loop come round; from any thread, also when it has ended.
    """

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        self.name = name
        self._wake = wake
        self._asked = self._answered = 0
        self._over = False

    def beat(self) -> None:
        """Say, in the loop, that it has come round."""
        self._answered = self._asked

    def end(self) -> None:
        """Say that the loop has ended, as it should: nobody need ask it any more."""
        self._over = True

    def ask(self) -> None:
        """Have the loop come round and say so."""
        self._asked += 1
        self._wake()

    @property
    def answered(self) -> bool:
        """Whether it has come round since it was asked."""
        return self._over or self._answered == self._asked


class Watchdog:
    """Says that the service is alive, as long as each of its loops is.

    It lives in one more of these loops, which shows by calling `look` that it comes round itself.

    Args:
        within: seconds within which that must be said, again and again.
        loops: those that are at work now.
        alive: says it.
        clock: seconds that never go backwards.
    """

    def __init__(
        self,
        within: float,
        loops: Callable[[], Iterable[Pulse]],
        alive: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._within = within
        self._loops = loops
        self._alive = alive
        self._clock = clock
        self._late: set[str] = set()  # at the last look
        self._told: set[str] = set()  # of whom people know
        self.due = clock()

    def look(self) -> None:
        """Where it is time: see who has answered, say that all is well, and ask again.

        Call it when `due` has come, and it may be called at any time.
        """
        now = self._clock()
        if now < self.due:
            return
        self.due = now + self._within / LOOKS
        pulses = list(self._loops())
        late = {pulse.name for pulse in pulses if not pulse.answered}
        if not late:
            self._alive()
        self._tell(late)
        for pulse in pulses:
            if pulse.answered:
                pulse.ask()

    def _tell(self, late: set[str]) -> None:
        """Tell people of who is late a second time, once; a driver may well keep one for one look."""
        for name in sorted(late & self._late - self._told):
            _log.warning("%s does not come round any more; if it stays so, systemd ends the service", name)
            self._told.add(name)
        for name in sorted(self._told - late):
            _log.info("%s comes round again", name)
            self._told.remove(name)
        self._late = late
