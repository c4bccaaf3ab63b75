"""THE RULES: when to look, open, poke, connect and let go.  Only this module decides.

Pure: no I/O, no clock, no logging.  ``step(state, event, now)`` answers with the new state and with effects,
which are data; whoever carries an effect out feeds its outcome back as the next event.  ``deadline(state,
now)`` tells when to come back with a ``Tick`` though nothing happened.  Times are seconds of any one clock
that never goes backwards.

How a decision comes about: an event changes what is known (the ``_on_...`` functions), then ``_settle`` looks
at all that is known and does what follows from it.  Two things are only ever done on an answer of OctoPrint
that has just come in: opening the port (the answer says "offline"), and connecting (the answer says "offline"
and its question was asked after the firmware was known to be alive).

Section numbers are those of the design, promises those of its section 1.  Change a rule only together with
the story in ``tests/test_rules.py`` that shows why.
"""

import dataclasses
import enum
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import assert_never

from portretry_udev.events import (
    CONNECTED,
    OFFLINE,
    Accepted,
    Close,
    Connect,
    Count,
    Counted,
    Declined,
    Disconnecting,
    Effect,
    Erred,
    Event,
    Freed,
    Guard,
    Guarded,
    Heard,
    Hint,
    Hold,
    HungUp,
    Identified,
    Ill,
    Look,
    Mute,
    News,
    Node,
    NodeSeen,
    Octo,
    Open,
    Opened,
    OpenFailed,
    Pause,
    Poke,
    Policy,
    PushUp,
    Rebaud,
    Refusal,
    Remember,
    Resume,
    Retry,
    Started,
    Taken,
    Tick,
    Told,
    Untold,
    Unwedge,
    Unwedged,
)
from portretry_udev.firmware import BAUDRATES, Sign

# -- numbers: all in seconds -------------------------------------------------------------------------------
BACK_OFF_LIMIT = 300.0  # section 2: from the interval to 5 minutes
QUIET_START = 2.0  # bootloaders listen for about 2 s after a reset; a byte then could start a flash
POKE_PERIOD = 1.0  # section 4: "about once a second"
ALIVE_FOR = 3.0  # so long a sign of life is believed; three pokes would have been answered
BUSY_FOR = 10.0  # Marlin repeats `busy:` every 2 s (HOST_KEEPALIVE), Prusa too; five of them missed
PRINTING_FOR = 300.0  # M27 S<n> repeats "SD printing byte" at most every few minutes
OWN_RESET = (
    15.0  # a banner this soon after an open of ours may be our own doing: CR-10S and MK3 need up to 12 s
)
STEADY = 30.0  # connected for so long: earlier failures are forgotten
DEBOUNCE = 2.0  # OctoPrint 2.0 says "Offline" for a moment right after a connect; facts 2.1
QUICK_END = 1.5  # what OctoPrint itself gives up takes longer: its shortest timeout is 2 s, facts 7
ATTEMPT_LIMIT = 90.0  # OctoPrint itself gives up after 40-42 s, facts 2.3
FIRST_LOOK = 0.05  # the device is found meanwhile; before that OctoPrint's answer would be for nothing
AFTER_OTHER = 1.0  # somebody else had the port: look again after so long
EAGER_FOR = 10.0  # after a device event OctoPrint may lag behind: looked at more often
EAGER_PERIOD = 0.5
STARTING_FOR = 120.0  # OctoPrint on a Raspberry Pi is up within two minutes: looked at each second so long
SILENT_AFTER = 3  # pokes in a row, the last of which may yet be answered: the firmware is silent
LOST_SILENT_AFTER = 2  # the same where OctoPrint has just lost the printer: one more witness
PUSHED_PERIOD = 30.0  # while OctoPrint is connected and pushes its changes, looks are a safety net
PARTING = 10.0  # so long after `Disconnecting` or `Error` it may still answer that it is connected
OWN_WORD = 5.0  # its push may tell of our own disconnect command so much later than its answer to it
WEDGED_AFTER = 5.0  # an open takes milliseconds; and nobody holds the port, in two looks in a row
WEDGED_UNSEEN_AFTER = 60.0  # where holders cannot be seen: a real attempt is over after 40 s, facts 2.3
FRESH_BOOT = 120.0  # nobody starts a print from SD so soon after a boot, while OctoPrint tries to connect


# -- state -------------------------------------------------------------------------------------------------
class Line(enum.Enum):
    """Our end of the serial port."""

    CLOSED = "closed"
    LISTENING = "listening"  # open, read, and poked where that is allowed
    HANDED = "handed"  # open but never read again: OctoPrint is taking over


class Session(enum.Enum):
    """What was last seen of OctoPrint's own connection since OctoPrint started."""

    FRESH = "fresh"  # never seen connected
    TRYING = "trying"  # seen connecting, not by our doing
    CONNECTED = "connected"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connect command of ours, from the command to OctoPrint's last word on it."""

    began: float
    connecting: bool = False  # OctoPrint was seen at it


@dataclass(frozen=True, slots=True)
class State:
    """All that is known.  Times are those of ``now``; -inf: never."""

    policy: Policy
    at: float = -math.inf  # of the last step
    # the device
    node: Node | None = None
    first_look: bool = True  # nothing was looked for yet: what is there has not just appeared
    configured: bool = True
    missing: str = ""
    dtr_stays: bool = False  # an open would make no edge in this appearance of the node
    guarded: bool = False  # the guard was tried in this appearance
    # OctoPrint
    octo: Octo | None = None  # its last answer; None: none yet
    words: str = ""
    offered: str | None = None
    preferred_baudrate: int | None = None
    elsewhere: str | None = None
    aside: str | None = None
    push: bool = False  # OctoPrint tells of its changes by itself
    octo_since: float = -math.inf
    ill: Ill | None = None  # the last question stayed without an answer
    ill_why: str = ""
    ill_since: float = -math.inf
    ill_count: int = 0
    session: Session = Session.FRESH
    session_node: Hashable = None  # the node's identity when OctoPrint was last seen connected
    connected_at: float = -math.inf
    looking: bool = False
    look_again: bool = False  # ask once more after the question under way
    look_outdated: bool = False  # the question under way is older than something that it should know of
    next_look: float = -math.inf
    eager_until: float = -math.inf
    # the trap: OctoPrint's open has failed, and it does not notice
    opening_since: float | None = None
    unheld: int = 0  # times in a row that nobody was seen holding the port
    unseen: bool = False  # holders cannot be seen
    unwedged: bool = False  # it was freed already, since the printer's last return
    own_until: float = -math.inf  # a `Disconnecting` until then is our own doing
    # our end of the port
    line: Line = Line.CLOSED
    opened_at: float = -math.inf
    own_edge: bool = False  # our open may have reset the board
    next_open: float = -math.inf
    wants_open: bool = False
    refusal: Refusal | None = None
    refusal_why: str = ""
    # the firmware
    alive_at: float = -math.inf
    booted_at: float = -math.inf  # its last banner in this appearance; -inf again once it may be printing
    unanswered: int = 0
    garbled: bool = False
    next_poke: float = math.inf
    known: bool | None = None  # whether it is the printer that it must be; None: it has not said
    stranger: str = ""  # who it is instead, for people
    busy_until: float = -math.inf
    printing_until: float = -math.inf
    baud_index: int = 0
    rate: int | None = None  # what our end was last set to
    # deciding
    hold: Hold = Hold.NONE
    hold_identity: Hashable = None
    held_at: float = -math.inf
    fault_words: str = ""
    fault_held: bool = False  # the fault that OctoPrint speaks of has had its hold
    ready_since: float | None = None
    attempt: Attempt | None = None
    attempt_at: float = -math.inf  # of the last connect command
    lost: bool = False  # OctoPrint lost the printer, and nothing has come of it yet
    failures: int = 0
    failure_why: str = ""
    not_before: float = -math.inf  # back-off: no connect command sooner
    let_go: bool = False  # an attempt failed with the port held: the next one lets go first
    paused_until: float = -math.inf
    connects: int = 0  # commands given, for `status`


class _Turn:
    """One step in the making."""

    def __init__(self, state: State, event: Event, now: float) -> None:
        self.s = state
        self.event = event
        self.now = now
        self.effects: list[Effect] = []
        self.outdated = False  # the answer is: nothing is to be done on it

    def set(self, **changes: object) -> None:
        if any(getattr(self.s, name) != value for name, value in changes.items()):  # a copy costs 0.1 ms
            self.s = dataclasses.replace(self.s, **changes)  # type: ignore[arg-type]

    def do(self, *effects: Effect) -> None:
        self.effects.extend(effects)

    def kick(self, *, outdates: bool = True) -> None:
        """Look as soon as possible: at once, or once more after the question that is under way.

        ``outdates``: the answer to that one is from before, nothing is to be done on it.
        """
        self.outdated = self.outdated or outdates
        self.set(
            next_look=min(self.s.next_look, self.now),
            look_again=self.s.looking,
            look_outdated=self.s.looking and (self.s.look_outdated or outdates),
        )


def step(state: State, event: Event, now: float) -> tuple[State, list[Effect]]:
    """One event in, the new state and what to do out.  The only entrance to the rules."""
    turn = _Turn(dataclasses.replace(state, at=now), event, now)
    _take_in(turn, event)
    _settle(turn)
    return turn.s, turn.effects


def deadline(state: State, now: float) -> float:
    """When a ``Tick`` is due (same clock as ``now``): never infinity, never past the next look."""
    s = state
    times = [s.next_look if not s.looking else s.at + s.policy.interval]
    if s.line is Line.LISTENING and _may_poke(s):
        times.append(_poke_at(s))
    if s.line is Line.CLOSED and s.octo in OFFLINE:
        times.append(s.next_open)
    times += [s.not_before, s.busy_until, s.printing_until, s.paused_until]
    # What was due at the last step was done in it; what has come due since is not past, but due now.
    return max(now, min((t for t in times if t > s.at), default=now))


def back_off(interval: float, failures: int) -> float:
    """Seconds to wait after so many failed attempts in a row: doubled each time, clamped to 5 minutes.

    The exponent is clamped too: 2.0 ** 1024 raises OverflowError.
    """
    return min(max(BACK_OFF_LIMIT, interval), interval * 2.0 ** min(max(failures - 1, 0), 16))


def baudrate(state: State) -> int | None:
    """The rate to listen at: configured, else preferred, else each of the list in turn; None: all shunned."""
    allowed = _baudrates(state)
    return allowed[state.baud_index % len(allowed)] if allowed else None


def wants_identity(policy: Policy) -> bool:
    """The firmware must say who it is before anything is done with it."""
    return policy.machine is not None or policy.uuid is not None


def paused(state: State, now: float) -> bool:
    """A person has asked to let go of the port."""
    return now < state.paused_until


def alive(state: State, now: float) -> bool:
    """The firmware has given a sign of life that is still fresh."""
    return now - state.alive_at <= ALIVE_FOR and state.unanswered < SILENT_AFTER


def opens_with_edge(state: State) -> bool:
    """Opening the port would raise DTR, which resets many boards (promise 5)."""
    return state.node is not None and state.node.modem and not state.dtr_stays


# -- taking events in --------------------------------------------------------------------------------------
def _take_in(t: _Turn, event: Event) -> None:  # noqa: C901, PLR0912, PLR0915 - one flat table of events
    match event:
        case Started():
            _on_started(t, event)
        case NodeSeen():
            _on_node(t, event)
        case Told():
            _on_told(t, event)
        case Untold():
            _on_untold(t, event)
        case Accepted():
            if t.s.attempt is not None:  # it begins now: OctoPrint may have taken its time to say yes
                t.set(attempt=Attempt(t.now))
            t.set(fault_held=False)  # it forgets the last fault as it connects: what it says now is a new one
            t.kick()
        case Declined():
            _on_declined(t, event)
        case Opened():
            _on_opened(t, event)
        case OpenFailed():
            wait = AFTER_OTHER if event.refusal is Refusal.BUSY else t.s.policy.interval
            t.set(next_open=t.now + wait, refusal=event.refusal, refusal_why=event.why)
        case Heard():
            _on_heard(t, event.sign)
        case Identified():
            _on_identified(t, event)
        case HungUp():
            # Not opened again before the interval is over, unless the node itself is made anew.
            _line_lost(t, next_open=t.now + t.s.policy.interval)
        case Taken():
            # Whoever it was may have set HUPCL again: from now on an open counts as one that makes an edge.
            t.set(dtr_stays=False, guarded=False, refusal=Refusal.BUSY)
            t.set(refusal_why="another process opened it")
            _line_lost(t, next_open=t.now + AFTER_OTHER)
        case Freed():
            if t.s.refusal is Refusal.BUSY:
                t.set(next_open=min(t.s.next_open, t.now + AFTER_OTHER))
        case Guarded():
            t.set(dtr_stays=t.s.dtr_stays or event.dtr_stays, guarded=True)
        case Counted():
            t.set(unheld=t.s.unheld + 1 if event.held is False else 0, unseen=event.held is None)
        case Unwedged():
            t.set(own_until=min(t.s.own_until, t.now + OWN_WORD))
            t.kick()
        case PushUp() | Disconnecting() | Erred() | News():
            _on_push(t, event)
        case Hint():
            t.set(eager_until=t.now + EAGER_FOR)  # OctoPrint may be slower to notice than the kernel
            t.kick(outdates=False)  # hints may come faster than answers: those still count
        case Retry() | Pause() | Resume():
            _on_person(t, event)
        case Tick():
            pass
        case _:  # pragma: no cover - mypy proves it
            assert_never(event)


def _on_person(t: _Turn, e: Retry | Pause | Resume) -> None:
    if isinstance(e, Pause):
        t.set(paused_until=e.until)
        return
    t.set(paused_until=-math.inf)
    t.kick()
    if isinstance(e, Retry):
        _fresh_start(t)
        t.set(next_open=t.now)


def _on_started(t: _Turn, e: Started) -> None:
    hold = e.hold
    if hold is Hold.DELIBERATE and t.s.policy.reconnect == "always":
        hold = Hold.NONE  # made under another configuration
        t.do(Remember(Hold.NONE, None))
    if hold is Hold.NONE and t.s.policy.start == "wait":
        hold = Hold.WAIT
    t.set(hold=hold, hold_identity=e.identity, paused_until=e.paused_until, next_look=t.now + FIRST_LOOK)


def _on_node(t: _Turn, e: NodeSeen) -> None:
    s = t.s
    before, first = s.node, s.first_look
    # Nobody has named a port yet (or any more): what is there once it is named has not just appeared either.
    t.set(first_look=not e.configured, configured=e.configured, missing=e.why)
    if e.node is None:
        if before is not None:
            _let_go(t)
            # An attempt under way was one with that device: how it ends says nothing of the next.
            t.set(node=None, attempt=None, **_DARK, eager_until=t.now + EAGER_FOR)
            t.kick()
        return
    if before is not None and before.identity == e.node.identity:
        t.set(node=e.node)  # a `change` uevent alone: who it is, never a reason to open (section 2)
        return
    _let_go(t)
    t.set(
        node=e.node,
        attempt=None,
        **_DARK,
        booted_at=-math.inf,
        dtr_stays=False,
        guarded=False,
        next_open=t.now,
        refusal=None,
        let_go=False,
        baud_index=0,
        eager_until=t.now + EAGER_FOR,
    )
    # What is there at the service's start has not just appeared, but a hold made for another node is over.
    if not first or (s.hold_identity is not None and s.hold_identity != e.node.identity):
        _fresh_start(t)
    t.kick()


def _on_told(t: _Turn, e: Told) -> None:
    s = t.s
    if e.octo is not s.octo or s.ill is not None:
        t.set(octo_since=t.now)
    t.outdated = s.look_outdated
    since = s.opening_since if s.opening_since is not None else t.now
    t.set(
        looking=False,
        look_outdated=False,
        fault_held=s.fault_held and e.octo is Octo.FAULT,
        octo=e.octo,
        words=e.words,
        offered=e.offered,
        preferred_baudrate=e.baudrate,
        elsewhere=e.elsewhere,
        aside=e.aside,
        opening_since=since if e.opening else None,
        unheld=s.unheld if e.opening else 0,
        ill=None,
        ill_count=0,
    )
    if e.restarted:
        running = s.session in (Session.CONNECTED, Session.TRYING)
        t.set(unwedged=False, session=Session.FRESH if running else s.session)
    if e.octo in CONNECTED:
        _is_connected(t, before=s.octo)
    elif e.octo is Octo.CONNECTING:
        _is_connecting(t)
    elif e.octo in OFFLINE:
        _is_offline(t, e.octo)
    else:
        _is_unknown(t)
    t.set(next_look=t.now if t.s.look_again else t.now + _look_period(t.s, t.now), look_again=False)


def _is_unknown(t: _Turn) -> None:
    """Unknown means hands off: but an attempt of ours is followed to its end, its hold kept meanwhile."""
    if t.s.attempt is None:
        _let_go(t)
        return
    # Words that contradict each other: something is going on.
    t.set(attempt=dataclasses.replace(t.s.attempt, connecting=True))
    if t.now - t.s.attempt.began > ATTEMPT_LIMIT:
        _attempt_failed(t, f"OctoPrint says {t.s.words!r}, which is not understood")


def _is_connected(t: _Turn, before: Octo | None) -> None:
    s = t.s
    if s.session is not Session.CONNECTED:
        t.set(session=Session.CONNECTED, connected_at=t.now)
    identity = s.node.identity if s.node else None
    t.set(session_node=identity, attempt=None, ready_since=None, lost=False, unwedged=False)
    if s.octo is Octo.BUSY:
        t.set(booted_at=-math.inf)
    _let_go(t)
    # Connected again is somebody's newer word on this printer; still connected is none: a push is faster than
    # what it tells of.
    still = t.outdated or (before in CONNECTED and t.now - s.held_at <= PARTING)
    if s.hold is not Hold.NONE and s.elsewhere is None and not still:
        t.set(hold=Hold.NONE, hold_identity=None)
        t.do(Remember(Hold.NONE, None))
    if t.now - t.s.connected_at >= STEADY:
        t.set(failures=0, let_go=False)


def _is_connecting(t: _Turn) -> None:
    s = t.s
    if s.attempt is None:
        t.set(session=Session.TRYING)
        _let_go(t)
    elif t.now - s.attempt.began > ATTEMPT_LIMIT:
        _attempt_failed(t, f"OctoPrint has been saying {s.words!r} for too long")
        t.set(session=Session.TRYING)
    else:
        t.set(attempt=dataclasses.replace(s.attempt, connecting=True))


def _is_offline(t: _Turn, octo: Octo) -> None:
    s = t.s
    if s.attempt is not None:
        if not s.attempt.connecting and t.now - s.attempt.began < DEBOUNCE:
            return  # too early to tell
        _attempt_ended(t, s.attempt, octo)
    elif s.session is Session.TRYING:
        # A Connecting that ends offline is a failed attempt, not a person.
        _count_failure(t, "OctoPrint's own attempt failed")
    elif s.session is Session.CONNECTED:
        _connection_ended(t, octo)
    t.set(session=Session.OVER if s.session is not Session.FRESH else Session.FRESH)
    # Once per fault: OctoPrint goes on saying it until the next connect, also after the printer's return.
    if octo is Octo.FAULT and not s.fault_held:
        t.set(fault_held=True, fault_words=s.words)
        _hold(t, Hold.FAULT)
    if s.aside is not None:
        _let_go(t)


def _attempt_ended(t: _Turn, attempt: Attempt, octo: Octo) -> None:
    """Ours has ended.  So soon and without an error OctoPrint gives up nothing: that was a person.

    The firmware had just answered: OctoPrint was connected between two looks, and somebody disconnected it.
    """
    quick = attempt.connecting and t.now - attempt.began < QUICK_END
    if octo is Octo.OFFLINE and quick and t.s.policy.reconnect == "on-return":
        t.set(attempt=None)
        _let_go(t)
        _hold(t, Hold.DELIBERATE)
    else:
        _attempt_failed(t, f"the attempt ended in {t.s.words!r}")


def _connection_ended(t: _Turn, octo: Octo) -> None:
    s = t.s
    stayed = s.node is not None and s.node.identity == s.session_node
    if octo is Octo.OFFLINE and stayed and s.policy.reconnect == "on-return":
        _hold(t, Hold.DELIBERATE)
    elif octo is Octo.LOST:
        t.set(lost=True)
        if stayed and t.now - s.connected_at < STEADY:
            _count_short(t)


def _on_push(t: _Turn, e: PushUp | Disconnecting | Erred | News) -> None:
    """OctoPrint's push brings looks forward, and knows two things that no look can tell."""
    t.kick()  # what it has answered so far is old; after a change of `push` itself, it may be
    match e:
        case PushUp():
            t.set(push=e.up)
        case Disconnecting() if t.now < t.s.own_until:
            t.set(own_until=-math.inf)  # one word of it for one command of ours: the next is a person's
        case Disconnecting() if t.s.policy.reconnect == "on-return":
            _ended_by_word(t, Hold.DELIBERATE)
        case Erred(fault=True):
            # A mere loss is left to the look; OctoPrint 2.0 has forgotten a fault by then.
            if t.s.hold is not Hold.FAULT:  # else it is the echo of the first: an emergency stop, for one
                t.set(fault_words=e.words)
            t.set(fault_held=True)
            _ended_by_word(t, Hold.FAULT)


def _ended_by_word(t: _Turn, hold: Hold) -> None:
    t.set(attempt=None)
    if t.s.line is Line.HANDED:
        _let_go(t)
    _hold(t, hold)


def _on_untold(t: _Turn, e: Untold) -> None:
    s = t.s
    same = s.ill is e.ill
    t.set(
        looking=False,
        look_again=False,
        look_outdated=False,
        ill=e.ill,
        ill_why=e.why,
        ill_since=s.ill_since if same else t.now,
        ill_count=s.ill_count + 1 if same else 1,
        ready_since=None,
        opening_since=None,
        unheld=0,
    )
    if e.ill is Ill.DOWN:
        # Whatever it was connected to, it is not any more: the next answer is that of a new OctoPrint.
        t.set(session=Session.FRESH, octo=None, fault_held=False, unwedged=False)
        if s.attempt is not None:
            _attempt_failed(t, "OctoPrint went away meanwhile")
    elif s.attempt is not None and t.now - s.attempt.began > ATTEMPT_LIMIT:
        _attempt_failed(t, "OctoPrint did not say how it ended")
    t.set(next_look=t.now if s.look_again else t.now + _ill_period(t.s, t.now))


def _on_declined(t: _Turn, e: Declined) -> None:
    if t.s.attempt is not None:
        _attempt_failed(t, e.why)
    else:
        t.set(unwedged=False, own_until=min(t.s.own_until, t.now + OWN_WORD))  # it was that command
    if e.ill is not Ill.DECLINED:
        t.set(ill=e.ill, ill_why=e.why, ill_since=t.now, ill_count=1)
    t.set(next_look=t.now + _ill_period(t.s, t.now))


def _on_opened(t: _Turn, e: Opened) -> None:
    t.set(
        line=Line.LISTENING,
        **_DARK,
        opened_at=t.now,
        own_edge=opens_with_edge(t.s),
        dtr_stays=e.dtr_stays,
        next_poke=t.now + QUIET_START,
        refusal=None,
        refusal_why="",
    )


def _on_heard(t: _Turn, sign: Sign) -> None:
    s = t.s
    if s.line is not Line.LISTENING:
        return
    if not sign.alive:
        _on_no_life(t, sign)
        return
    was_silent = s.unanswered >= (LOST_SILENT_AFTER if s.lost else SILENT_AFTER)
    t.set(alive_at=t.now, unanswered=0, garbled=False)
    if sign is Sign.BANNER:
        t.set(busy_until=-math.inf, printing_until=-math.inf, booted_at=t.now, known=None)
        _on_banner(t)
    elif sign is Sign.BUSY:
        t.set(busy_until=t.now + BUSY_FOR)
    elif sign is Sign.PRINTING:
        t.set(printing_until=t.now + PRINTING_FOR, booted_at=-math.inf)
    elif sign is Sign.NOT_PRINTING:
        t.set(printing_until=-math.inf)
    elif sign is Sign.ANSWER:
        t.set(busy_until=-math.inf)
    if was_silent and t.s.hold is Hold.NONE:
        _afresh_unless_hammering(t)


def _on_identified(t: _Turn, e: Identified) -> None:
    """Promise 7: the right printer, also where its port could be another's."""
    pairs = [(t.s.policy.machine, e.machine), (t.s.policy.uuid, e.uuid)]
    wrong = [
        got for wanted, got in pairs if wanted is not None and (got or "").casefold() != wanted.casefold()
    ]
    t.set(known=not wrong, stranger=", ".join(got or "nothing" for got in wrong))


def _on_no_life(t: _Turn, sign: Sign) -> None:
    if sign is Sign.GARBAGE:
        t.set(garbled=True)
    else:  # a fault is talking: whatever the firmware said before, it may be halted now
        t.set(alive_at=-math.inf)


def _on_banner(t: _Turn) -> None:
    """A boot: the printer has returned, unless our own open may have caused it."""
    s = t.s
    if s.own_edge and t.now - s.opened_at <= OWN_RESET:
        return
    if s.hold is not Hold.NONE:
        _fresh_start(t)
    else:
        _afresh_unless_hammering(t)


def _afresh_unless_hammering(t: _Turn) -> None:
    """A return starts afresh; but a board that reboots in a loop must not be connected to in a loop."""
    if t.now - t.s.attempt_at >= t.s.policy.interval:
        _fresh_start(t)


# -- what several events do --------------------------------------------------------------------------------
_DARK: dict[str, object] = {  # nothing is known of the firmware
    "alive_at": -math.inf,
    "unanswered": 0,
    "garbled": False,
    "known": None,
    "busy_until": -math.inf,
    "printing_until": -math.inf,
    "ready_since": None,
}


def _fresh_start(t: _Turn) -> None:
    """The printer has returned, or a person said so: no hold, no back-off."""
    if t.s.hold is not Hold.NONE:
        t.do(Remember(Hold.NONE, None))
    t.set(hold=Hold.NONE, hold_identity=None, failures=0, lost=False, not_before=t.now, unwedged=False)


def _hold(t: _Turn, hold: Hold) -> None:
    identity = t.s.node.identity if t.s.node else None
    t.set(hold=hold, hold_identity=identity, held_at=t.now, ready_since=None)
    t.do(Remember(hold, identity))
    if opens_with_edge(t.s):
        _let_go(t)


def _let_go(t: _Turn, *, drop_dtr: bool = False) -> None:
    if t.s.line is not Line.CLOSED:
        t.do(Close(drop_dtr))
        t.set(line=Line.CLOSED, **_DARK, dtr_stays=t.s.dtr_stays and not drop_dtr)


def _line_lost(t: _Turn, next_open: float) -> None:
    t.set(line=Line.CLOSED, **_DARK, next_open=next_open, eager_until=t.now + EAGER_FOR)
    t.kick()


def _attempt_failed(t: _Turn, why: str) -> None:
    # Whether holding on was to blame can only be where OctoPrint was seen to try.
    tried = t.s.attempt is not None and t.s.attempt.connecting
    t.set(attempt=None, let_go=t.s.let_go or (tried and t.s.line is Line.HANDED))
    _let_go(t)
    _count_failure(t, why)


def _count_short(t: _Turn) -> None:
    """The connection did not last.  Once is bad luck; a row of them is a bad cable, and tried more rarely."""
    before = t.s.failures
    t.set(failures=before + 1, failure_why="the connection did not last", ready_since=None)
    if before:
        t.set(not_before=max(t.s.not_before, t.now + back_off(t.s.policy.interval, before)))


def _count_failure(t: _Turn, why: str) -> None:
    failures = t.s.failures + 1
    t.set(
        failures=failures,
        failure_why=why,
        not_before=t.now + back_off(t.s.policy.interval, failures),
        ready_since=None,
    )


def _look_period(s: State, now: float) -> float:
    """Seconds until the next look after an answer."""
    if s.attempt is not None:
        return min(1.0, 0.05 + 0.1 * (now - s.attempt.began), s.policy.interval)
    if s.octo is Octo.CONNECTING:
        return min(1.0, s.policy.interval)
    if now < s.eager_until and (s.octo in CONNECTED or s.octo is Octo.UNKNOWN):
        return min(EAGER_PERIOD, s.policy.interval)
    if s.octo is Octo.UNKNOWN and now - s.octo_since < EAGER_FOR:
        return min(EAGER_PERIOD, s.policy.interval)
    if s.push and s.octo in CONNECTED:
        return max(PUSHED_PERIOD, s.policy.interval)
    return s.policy.interval


def _ill_period(s: State, now: float) -> float:
    """Seconds until the next look after none: OctoPrint logs every refused key, so those are asked rarely."""
    if s.ill is Ill.DOWN and now - s.ill_since < STARTING_FOR:
        return min(1.0, s.policy.interval)
    if s.ill in (Ill.KEY, Ill.ODD):
        return back_off(s.policy.interval, s.ill_count)
    return s.policy.interval


def _baudrates(s: State) -> list[int]:
    known = s.policy.baudrate or s.preferred_baudrate
    shun = s.node.shun if s.node else frozenset()
    return [b for b in ((known,) if known else BAUDRATES) if b not in shun]


# -- deciding ----------------------------------------------------------------------------------------------
def _settle(t: _Turn) -> None:
    """From all that is known to what is done."""
    now = t.now
    if paused(t.s, now) and t.s.attempt is None:
        _let_go(t)
    if t.s.line is Line.LISTENING:
        _keep_rate(t)
    _notice_wishes(t)
    if isinstance(t.event, Told) and not t.outdated:
        _act_on_answer(t, t.event)
    if t.s.line is Line.LISTENING and _may_poke(t.s) and now >= _poke_at(t.s):
        _poke(t)
    if now >= t.s.next_look and not t.s.looking:
        t.set(looking=True, look_again=False)
        t.do(Look())


def _keep_rate(t: _Turn) -> None:
    """The rate to listen at changes with OctoPrint's preference, and with what is known of the node."""
    rate = baudrate(t.s)
    if rate is None:
        _let_go(t)
    elif rate != t.s.rate:
        t.set(rate=rate, alive_at=-math.inf)
        t.do(Rebaud(rate))


def _notice_wishes(t: _Turn) -> None:
    """A new wish to open or to connect asks OctoPrint at once; the answer decides."""
    s, now = t.s, t.now
    wants_open = _may_open(s, now)
    if wants_open and not s.wants_open and not isinstance(t.event, Told):
        t.kick()
    t.set(wants_open=wants_open)
    if not _is_ready(t.s, now):
        t.set(ready_since=None)
    elif t.s.ready_since is None:
        t.set(ready_since=now)
        t.kick()


def _act_on_answer(t: _Turn, told: Told) -> None:
    s, now = t.s, t.now
    if s.policy.dry_run:
        return
    if told.opening:
        _unwedge_or_count(t)
    if s.node is None:
        return
    if s.octo is Octo.IDLE and _may_guard(s, now):
        t.do(Guard(s.node.path))
    elif s.octo in OFFLINE and s.offered is not None:
        if s.ready_since is not None and told.asked_at >= s.ready_since:
            _connect(t, s.offered)
        elif _may_open(s, now) and (rate := baudrate(s)) is not None:
            t.set(rate=rate)
            t.do(Open(s.node.path, rate, s.policy.avoid_reset))


def _unwedge_or_count(t: _Turn) -> None:
    """OctoPrint's open may have failed, which it never notices: free it, once per return (promise 9)."""
    s, now = t.s, t.now
    assert s.opening_since is not None  # noqa: S101 - the answer in hand says so
    lasts = now - s.opening_since
    if s.unwedged or paused(s, now) or lasts < WEDGED_AFTER / 2:
        return
    if lasts < (WEDGED_UNSEEN_AFTER if s.unseen else WEDGED_AFTER) or (s.unheld < 2 and not s.unseen):  # noqa: PLR2004 - looks in a row
        t.do(Count())
        return
    if s.attempt is not None:
        _attempt_failed(t, f"OctoPrint was stuck in {s.words!r}")
    t.do(Unwedge())
    # Its end is no failure of anybody's, nor a person's word.
    t.set(session=Session.FRESH, unwedged=True, opening_since=None, unheld=0, own_until=now + STARTING_FOR)


def _may_open(s: State, now: float) -> bool:
    if s.node is None or s.line is not Line.CLOSED or s.policy.probe == "none" or s.attempt is not None:
        return False
    if s.octo not in OFFLINE or s.aside is not None or paused(s, now) or now < s.next_open:
        return False
    # A hold, or a back-off, is no time for an edge; listening without one harms nobody.
    return not opens_with_edge(s) or (s.hold is Hold.NONE and now >= s.not_before)


def _may_guard(s: State, now: float) -> bool:
    wanted = s.policy.avoid_reset and opens_with_edge(s) and not s.guarded
    return wanted and s.elsewhere is None and s.offered is not None and not paused(s, now)


def _may_poke(s: State) -> bool:
    """Section 4: never while a hold stands; and only while OctoPrint is known to be offline."""
    allowed = s.policy.probe == "firmware" and s.hold is Hold.NONE and s.aside is None
    return allowed and s.octo in OFFLINE and s.ill is None


def _poke_at(s: State) -> float:
    """When the next question is due; promise 6: while the printer is at work it is left alone."""
    return max(s.next_poke, s.busy_until, s.printing_until)


def _is_ready(s: State, now: float) -> bool:
    """All is well but OctoPrint's own last word."""
    if s.node is None or s.hold is not Hold.NONE or s.attempt is not None or paused(s, now):
        return False
    if s.octo not in OFFLINE or s.ill is not None or s.aside is not None or now < s.not_before:
        return False
    if now < s.busy_until or now < s.printing_until or not _baudrates(s):
        return False  # promise 6: alive, hands off; and OctoPrint is not told a rate that must not be set
    if s.policy.probe == "none":
        return True
    if wants_identity(s.policy) and not s.known:
        return False
    return s.line is Line.LISTENING and (s.policy.probe == "open" or alive(s, now))


def _poke(t: _Turn) -> None:
    s, now = t.s, t.now
    # While it is known to live there is no hurry to ask again: less so while no connect can follow.  A silent
    # one is asked each second, so as to notice its return.
    waits = now < s.not_before or s.known is False
    due = s.alive_at + (max(POKE_PERIOD, s.policy.interval) if waits else POKE_PERIOD)
    if now < s.not_before < due:
        due = s.not_before
    if now < due and s.unanswered == 0 and (s.known is not None or not wants_identity(s.policy)):
        t.set(next_poke=due)
        return
    rates = _baudrates(s)
    if len(rates) > 1 and s.unanswered and s.unanswered % 2 == 0 and not alive(s, now):
        t.set(baud_index=s.baud_index + 1)
        _keep_rate(t)
    t.do(Poke())
    t.set(next_poke=now + POKE_PERIOD, unanswered=s.unanswered + 1)


def _connect(t: _Turn, port: str) -> None:
    s, now = t.s, t.now
    if s.line is Line.LISTENING:
        if s.let_go:
            # An OctoPrint that waits for `start` needs the board to boot: harmless just after a boot, but it
            # would end a print from SD.
            _let_go(t, drop_dtr=now - s.booted_at <= FRESH_BOOT)
        else:
            t.do(Mute())
            t.set(line=Line.HANDED)
    found = baudrate(s) if s.policy.probe == "firmware" else s.policy.baudrate or s.preferred_baudrate
    t.do(Connect(port, found))
    t.set(
        attempt=Attempt(now),
        lost=False,
        attempt_at=now,
        connects=s.connects + 1,
        ready_since=None,
        not_before=now + s.policy.interval,
        next_look=now + 0.05,
    )
