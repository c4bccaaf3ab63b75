"""What the rules did, counted: for those who watch many printers and read no logs.

Knows what a step of the rules means in numbers.  Pure: no I/O, no clock.  Decides nothing, and must not be
asked by anything that decides; nor does it know who reads the numbers.

A tally begins at zero with the service; no number in it ever gets smaller.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from portretry_udev.events import (
    CONNECTED,
    OFFLINE,
    Connect,
    Effect,
    Event,
    Heard,
    Hold,
    Octo,
    Opened,
    Started,
    Told,
)
from portretry_udev.rules import SILENT_AFTER, Line, Session, State, opens_with_edge, paused

BOUNDS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper ends of the classes of recoveries, in seconds; one more class has no end."""


KINDS = tuple(hold for hold in Hold if hold is not Hold.NONE)
"""Those of ``Tally.holds``, in their order."""


@dataclass(frozen=True, slots=True)
class Recoveries:
    """How long it took from the firmware's first sign of life until OctoPrint was connected.

    Attributes:
        classes: how many took how long, by `BOUNDS`.
        seconds: all of them together.
        last: the last one, in seconds; None: there was none.
        since: when the one under way began, in seconds of the rules' clock; None: none is.  It is no count.
    """

    classes: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    seconds: float = 0.0
    last: float | None = None
    since: float | None = field(default=None, compare=False)

    def done(self, now: float) -> "Recoveries":
        """With the one under way, if any, at its end."""
        if self.since is None:
            return self
        took = max(0.0, now - self.since)
        place = bisect.bisect_left(BOUNDS, took)
        classes = tuple(count + (i == place) for i, count in enumerate(self.classes))
        return Recoveries(classes, self.seconds + took, took)


@dataclass(frozen=True, slots=True)
class Tally:
    """The counts of one printer.

    Attributes:
        connects: connect commands given to OctoPrint.
        failed: attempts to connect, ours or OctoPrint's own, that ended without a connection.
        short: connections that OctoPrint lost within 30 s, the printer's node staying where it was.
        holds: how often hands were taken off until the printer returns, by `KINDS`; a hold that is recalled
            at the start was counted when it was made.
        resets_avoided: opens of the port, ours or OctoPrint's, that would have raised DTR but for our
            keeping it up.  One connection of OctoPrint's counts once, however often it opens the port for it.
        recoveries: see there.
    """

    connects: int = 0
    failed: int = 0
    short: int = 0
    holds: tuple[int, ...] = (0,) * len(KINDS)
    resets_avoided: int = 0
    recoveries: Recoveries = Recoveries()


def counted(  # noqa: PLR0913, PLR0917 - one step of the rules, and when it was
    tally: Tally, before: State, event: Event, after: State, effects: Iterable[Effect], now: float
) -> Tally:
    """The tally after one step of the rules, from ``before`` to ``after``."""
    failures = max(0, after.failures - before.failures)
    short = failures if before.session is Session.CONNECTED and before.attempt is None else 0
    new_hold = after.hold if _is_new_hold(before, event, after) else None
    return Tally(
        connects=tally.connects + sum(isinstance(effect, Connect) for effect in effects),
        failed=tally.failed + failures - short,
        short=tally.short + short,
        holds=tuple(count + (kind is new_hold) for kind, count in zip(KINDS, tally.holds, strict=True)),
        resets_avoided=tally.resets_avoided + _is_edge_spared(before, event, after),
        recoveries=_recovery(tally.recoveries, before, event, after, now),
    )


def _is_new_hold(before: State, event: Event, after: State) -> bool:
    """OctoPrint's push and its answers may tell of the same Disconnect: that is one hold."""
    return after.hold is not before.hold and not (isinstance(event, Started) and event.hold is after.hold)


def _is_edge_spared(before: State, event: Event, after: State) -> bool:
    """Whether the port was opened just now without a rise of DTR that there would have been without us.

    OctoPrint counts only where it was seen offline or connecting before, in the same appearance of the node:
    what cannot be told is not counted.
    """
    if before.node is None or not before.node.modem:
        return False
    if isinstance(event, Opened):
        return not opens_with_edge(before)
    connects = isinstance(event, Told) and event.octo in CONNECTED and event.elsewhere is None
    was_not = before.octo in OFFLINE or before.octo is Octo.CONNECTING
    kept = before.line is Line.HANDED or before.dtr_stays
    return connects and was_not and kept and after.octo in CONNECTED


def _recovery(so_far: Recoveries, before: State, event: Event, after: State, now: float) -> Recoveries:
    """Begin one, end one, or give one up."""
    if after.octo in CONNECTED and after.ill is None:
        return so_far.done(now) if after.elsewhere is None else replace(so_far, since=None)
    wanted = _is_wanted(after, now)
    since = so_far.since if wanted and _is_same_node(before, after) else None
    if since is None and wanted and _is_there(event, after):
        since = now
    return so_far if since == so_far.since else replace(so_far, since=since)


def _is_same_node(before: State, after: State) -> bool:
    return before.node is None or after.node is None or before.node.identity == after.node.identity


def _is_there(event: Event, after: State) -> bool:
    """The printer can be connected: its firmware is heard, or nobody asks it."""
    if after.policy.probe == "none":
        return True
    if after.policy.probe == "open":
        return after.line is Line.LISTENING
    return isinstance(event, Heard) and event.sign.alive and after.line is Line.LISTENING


def _is_wanted(s: State, now: float) -> bool:
    """Nothing stands against a connection but that it takes its time."""
    if s.node is None or s.hold is not Hold.NONE or paused(s, now) or s.policy.dry_run:
        return False
    if s.attempt is not None:
        return True  # OctoPrint may take its time to answer, and nothing more is heard of the firmware
    if s.ill is not None or s.octo is None or s.offered is None or s.aside is not None or s.known is False:
        return False
    return s.unanswered < SILENT_AFTER and now >= s.busy_until and now >= s.printing_until
