"""A language for stories about the rules: what happens goes in, what the rules do comes out.

Knows a small world (a node, a firmware, OctoPrint, who else has the port) and carries the rules' effects
out in it, in its own time: an hour of the story takes milliseconds.  Each step of every story is also held
against the promises (`Law`).  Must not know how the rules come to their decisions.

    story = Story()
    story.wait(60)
    story.person_disconnects()
    with story.nothing(Connect, Poke):
        story.wait(3600)
    story.replug()
    story.expect(Connect, within=5)

An expectation that fails prints the whole story.
"""

import contextlib
import dataclasses
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator

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
from portretry_udev.firmware import Sign
from portretry_udev.rules import (
    ALIVE_FOR,
    BACK_OFF_LIMIT,
    BUSY_FOR,
    FRESH_BOOT,
    OWN_RESET,
    PARTING,
    PRINTING_FOR,
    QUIET_START,
    Line,
    State,
    deadline,
    opens_with_edge,
    step,
)

NODE = "/dev/ttyACM0"
GIVES_UP = 40.0  # seconds until OctoPrint's own attempt at a silent port ends (facts 2.3)
HANDSHAKE = 0.05
BOOT = 2.0
CHECKS = 100  # steps of a story after which its deadlines are checked; a long one repeats itself
HOT = 9  # ticks at one instant that are still no loop


class Law:
    """The promises, checked against each step, from what was said alone and not from the rules' own state."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now = 0.0
        self.turn = 0  # order of events that happen at the same instant
        self.node: Node | None = None
        self.first = True
        self.changed = 0  # the turn of the last event that an older question cannot know of
        self.memory: object = None
        self.edge = False  # an open now would raise DTR
        self.asked = -1  # the turn of the question under way; -1: there is none
        self.answered = -1  # the turn of the question that has just been answered
        self.told: Octo | None = None
        self.connected_node: object = None  # OctoPrint was last seen connected, and this was the node
        self.known = False  # OctoPrint has answered the last question
        self.words: set[Hold] = set()  # what stands until the printer returns
        self.word_at = -math.inf
        self.own_words = 0  # disconnects of ours that OctoPrint has not told of
        self.unwedges = 0  # since the printer's last return
        self.booted_at = -math.inf  # the last boot that was heard; -inf: the printer may be printing since
        self.fd = False
        self.muted = False
        self.opened_at = -math.inf
        self.own_edge = False
        self.life_turn: int | None = None  # when the firmware was first known to be alive
        self.life_at = -math.inf
        self.said: Identified | None = None  # who answers
        self.busy_until = -math.inf
        self.printing_until = -math.inf
        self.paused_until = -math.inf
        self.connected_at = -math.inf  # the last connect command
        self.returned = True  # since the last connect command

    def event(self, event: Event, now: float) -> None:  # noqa: C901, PLR0912 - one flat table of events
        """Take in what happens, before the rules do."""
        self.now = now
        self.turn += 1
        if isinstance(event, Told | Untold):
            self.answered, self.asked = self.asked, -1
        match event:
            case Started(hold):
                if hold is not Hold.NONE and not (
                    self.policy.reconnect == "always" and hold is Hold.DELIBERATE
                ):
                    self.words.add(hold)
                self.memory = event.identity
            case NodeSeen():
                self._node(event)
            case Told():
                self._told(event)
            case Untold(ill):
                self.known = False
                if ill is Ill.DOWN:
                    self.told = self.connected_node = None
                    self.unwedges = 0
            case Declined():
                self.unwedges = 0
            case Opened():
                self.fd, self.muted, self.opened_at = True, False, now
                self._dark()
            case HungUp() | Taken():
                self.fd = False
                self._dark()
            case Heard(sign):
                self._heard(sign)
            case Identified():
                self.said = event
            case PushUp() | News() | Unwedged():
                self.changed = self.turn
            case Disconnecting():
                self.changed = self.turn
                if self.own_words:
                    self.own_words = 0
                elif self.policy.reconnect == "on-return":
                    self._word(Hold.DELIBERATE)
            case Erred(fault):
                self.changed = self.turn
                if fault:
                    self._word(Hold.FAULT)
            case Retry():
                self.paused_until = -math.inf
                self._return()
            case Pause(until):
                self.paused_until = until
            case Resume():
                self.paused_until = -math.inf

    def effects(self, event: Event, effects: list[Effect]) -> None:  # noqa: C901 - one flat table of effects
        """Judge what the rules do about it."""
        for effect in effects:
            match effect:
                case Look():
                    assert self.asked < 0, "asked while a question is under way"
                    self.asked = self.turn
                case Open(_, rate, _):
                    self._open(event, rate)
                case Rebaud(rate):
                    assert self.reads, "a rate set on no port of ours"
                    self._rate(rate)
                    self._dark()
                case Poke():
                    self._poke()
                case Mute():
                    assert self.reads, "muted twice"
                    self.muted = True
                case Close(drop_dtr):
                    assert self.fd, "closed twice"
                    self.fd = False
                    fresh = self.now - self.booted_at <= FRESH_BOOT
                    assert fresh or not drop_dtr, "a reset of what may be printing"
                case Unwedge():
                    self._unwedge(event)
                case Connect(port, rate):
                    self._connect(event, port, rate)
                case Guard(path):
                    self._fresh(event, frozenset({Octo.IDLE}))
                    assert not self.fd, "guarded an open port"
                    assert path == self.node.path

    @property
    def reads(self) -> bool:
        """Our end is open and not handed over."""
        return self.fd and not self.muted

    # -- what follows from what happened ---------------------------------------------------------------
    def _dark(self) -> None:
        self.changed = self.turn
        self.life_turn, self.life_at, self.said = None, -math.inf, None
        self.busy_until = self.printing_until = -math.inf

    def _word(self, hold: Hold) -> None:
        self.words.add(hold)
        self.word_at = self.now

    def _return(self) -> None:
        self.words.clear()
        self.returned = True
        self.unwedges = 0

    def _node(self, event: NodeSeen) -> None:
        before, self.node = self.node, event.node
        first, self.first = self.first, not event.configured
        if event.node is None:
            if before is not None:
                self._dark()
        elif before is None or before.identity != event.node.identity:
            self._dark()
            self.booted_at, self.unwedges = -math.inf, 0
            if not first or self.memory not in (None, event.node.identity):
                self._return()

    def _told(self, event: Told) -> None:
        was, self.told, self.known = self.told, event.octo, True
        if event.restarted:
            self.connected_node, self.unwedges = None, 0
        if event.octo in CONNECTED:
            self.connected_node = self.node.identity if self.node else None
            self.unwedges = 0
            if event.octo is Octo.BUSY:
                self.booted_at = -math.inf
            late = self.answered < self.changed or (was in CONNECTED and self.now - self.word_at <= PARTING)
            if not late:
                self.words.clear()
        elif event.octo is Octo.CONNECTING:
            self.connected_node = None
        elif event.octo in OFFLINE:
            if event.octo is Octo.FAULT and was is not Octo.FAULT:
                self._word(Hold.FAULT)
            stayed = self.node is not None and self.node.identity == self.connected_node
            if event.octo is Octo.OFFLINE and stayed and self.policy.reconnect == "on-return":
                self._word(Hold.DELIBERATE)
            self.connected_node = None

    def _heard(self, sign: Sign) -> None:
        if not self.reads or not sign.alive:
            if sign is Sign.ERROR:
                self.life_at = -math.inf
            return
        if self.life_turn is None:
            self.life_turn = self.turn
        self.life_at = self.now
        if sign is Sign.BANNER:
            self.busy_until = self.printing_until = -math.inf
            self.booted_at, self.said = self.now, None
            if not self.own_edge or self.now - self.opened_at > OWN_RESET:
                self._return()
        elif sign is Sign.BUSY:
            self.busy_until = self.now + BUSY_FOR
        elif sign is Sign.ANSWER:
            self.busy_until = -math.inf
        elif sign is Sign.PRINTING:
            self.printing_until = self.now + PRINTING_FOR
            self.booted_at = -math.inf
        elif sign is Sign.NOT_PRINTING:
            self.printing_until = -math.inf

    # -- what is allowed -------------------------------------------------------------------------------
    def _fresh(self, event: Event, octos: frozenset[Octo]) -> None:
        """Promises 1 and 2: done on an answer only, to a question that was asked after all that matters."""
        assert isinstance(event, Told), "done on no answer"
        assert event.octo in octos, f"done while OctoPrint is {event.octo}"
        assert self.answered >= self.changed, "done on an answer from before"
        assert self.now >= self.paused_until, "done in a pause"
        assert not self.policy.dry_run, "done in a dry run"

    def _rate(self, rate: int | None) -> None:
        shun = self.node.shun if self.node else frozenset()
        assert rate not in {1200, *shun}, f"{rate} baud"

    def _open(self, event: Event, rate: int) -> None:
        self._fresh(event, OFFLINE)
        assert not self.fd, "opened twice"
        self._rate(rate)
        self.own_edge = self.edge
        assert not (self.edge and self.words), "an edge while a hold stands"

    def _unwedge(self, event: Event) -> None:
        self._fresh(event, frozenset({Octo.CONNECTING}))
        assert event.opening, "freed though it was not stuck"
        assert not self.unwedges, "freed twice"
        assert not self.fd, "freed with our end open"
        self.unwedges += 1
        self.own_words += 1

    def _poke(self) -> None:
        assert self.reads, "poked no port of ours"
        assert not self.words, f"poked while {self.words} stands"
        assert self.known, "poked though OctoPrint may be connected"
        assert self.told in OFFLINE, "poked though OctoPrint is not offline"
        assert self.now >= self.opened_at + QUIET_START, "poked a bootloader"
        assert self.now >= self.busy_until, "poked a busy printer"
        assert self.policy.probe == "firmware"
        self._rate(None)

    def _connect(self, event: Event, port: str, rate: int | None) -> None:
        self._fresh(event, OFFLINE)
        assert port == event.offered, "a port that is not OctoPrint's"
        wanted = (self.policy.machine, self.policy.uuid)
        if wanted != (None, None):
            assert self.said is not None, "connected to nobody knows whom"
            said = (self.said.machine, self.said.uuid)
            assert all(want in (None, got) for want, got in zip(wanted, said, strict=True)), "a stranger"
        assert not self.words, f"connected while {self.words} stands"
        self._rate(rate)
        if self.policy.probe == "firmware":
            assert self.life_turn is not None, "connected to what never answered"
            assert self.answered >= self.life_turn, "not asked after the answer"
            assert self.now - self.life_at <= ALIVE_FOR, "connected to a silent firmware"
        assert self.now >= max(self.busy_until, self.printing_until), "connected to a busy printer"
        soon = self.now < self.connected_at + self.policy.interval
        assert self.returned or not soon, "hammering"
        self.connected_at, self.returned = self.now, False


class Story:
    """A printer, an OctoPrint, and the rules between them."""

    pushes = False  # OctoPrint's push socket can be had

    def __init__(  # noqa: PLR0913 - the first scene
        self,
        *,
        octo: Octo = Octo.OFFLINE,
        answers: bool = True,
        plugged: bool = True,
        memory: tuple[Hold, object] = (Hold.NONE, None),
        modem: bool = True,
        shun: frozenset[int] = frozenset(),
        resets: bool = False,
        latency: float | None = 0.01,
        begin: bool = True,
        **policy: object,
    ) -> None:
        """`memory`: what the service remembers; `resets`: the board reboots on a rising DTR.

        `latency`: seconds OctoPrint takes for each answer; None: the story answers itself, by `told`.
        """
        self.policy = Policy(**policy)
        self.state = State(self.policy)
        self.law = Law(self.policy)
        self.now = 1000.0
        self.log: list[tuple[float, str, object]] = []
        self.out: list[tuple[float, Effect]] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._events: deque[Event] = deque()
        self._ticks_now = 0
        self.failed = False  # a promise was broken: the story is over
        self.checks = CHECKS  # of deadlines that are still to be made
        # the device
        self.node: Node | None = None
        self._identity = itertools.count(1)
        self.modem, self.shun, self.resets = modem, shun, resets
        self.edges = 0  # rises of DTR in this appearance of the node
        self.dtr, self.hupcl = False, True
        self.keeps_dtr = True  # clearing HUPCL works on this driver
        self.refusal: Refusal | None = None
        self.holder = False  # a process that is neither ours nor OctoPrint
        # the firmware
        self.powered, self.answers, self.rate = True, answers, 115200
        self.identity = Identified("Original Prusa i3 MK3S", "uuid-of-the-mk3")
        self._boots = 0
        # OctoPrint
        self.octo, self.latency = octo, latency
        self.words: str | None = None
        self.ill: Ill | None = None
        self.declines: Ill | None = None
        self.accepts_after: float | None = None  # seconds that it takes over a connect; None: the latency
        self.failing: Octo | None = None  # how its attempts end though the firmware answers
        self.offered: str | None = NODE
        self.preferred: int | None = 115200
        self.elsewhere: str | None = None
        self.aside: str | None = None
        self.restarted = False
        self.forgetful = False  # as 2.0: it answers a loss where there was a fault
        self.waits_for_start = False  # says nothing to a printer before its banner
        self.open_fails = False  # the trap: it stays for ever in what it was doing
        self.stuck = False
        self.unseen = False  # who holds the port cannot be seen
        self._session = 0
        self._asked_at: float | None = None
        self.memory = memory
        if plugged:
            self._make_node()
        if octo in CONNECTED:
            self._edge()
        if begin:
            self.begin()

    # -- what happens --------------------------------------------------------------------------------------
    def begin(self) -> None:
        """The service starts: it recalls, then looks for the device."""
        self.happens(Started(*self.memory))
        self.happens(NodeSeen(self.node, "" if self.node else "not there"))
        if self.pushes and self.ill is None and self.latency is not None:  # told by hand, it only polls
            self.happens(PushUp(True))

    def service_restarts(self) -> None:
        """A new service with what the old one remembered; its end of the port is closed by the kernel."""
        if self.state.line is not Line.CLOSED:
            self._close()
        self.state = State(self.policy)
        self.law = Law(self.policy)
        self._asked_at = None
        self._agenda = [x for x in self._agenda if x[2] != self._answer]
        heapq.heapify(self._agenda)
        self.begin()

    def plug(self, *, same: bool = False) -> None:
        """The node appears; `same`: with the identity it had."""
        self._make_node(same=same)
        if self.powered:
            self._boot()
        self.happens(NodeSeen(self.node))

    def plug_if_absent(self) -> None:
        """The node is there, or appears."""
        if self.node is None:
            self.plug()

    def unplug(self) -> None:
        """The node disappears; whoever has the port learns it from the kernel."""
        if self.node is None:
            return
        self.node, self.answers, self.dtr = None, False, False
        self._boots += 1
        if self.octo in CONNECTED or self.octo is Octo.CONNECTING:
            self._later(0.02, self._if_session(lambda: self._octo_closes(Octo.LOST)))
        if self.law.fd:
            self.happens(HungUp())
        self.happens(NodeSeen(None, "unplugged"))

    def replug(self, after: float = 1.0) -> None:
        """Unplug, wait so many seconds, plug."""
        self.unplug()
        self.wait(after)
        self.plug()

    def changed(self, **what: object) -> None:
        """A `change` uevent: the same appearance of the node, described anew."""
        self.node = dataclasses.replace(self.node, **what)
        self.happens(NodeSeen(self.node))

    def power_off(self) -> None:
        """Switched off in place: the node stays, the firmware falls silent."""
        self.powered = self.answers = False
        self._boots += 1
        if self.octo in CONNECTED:
            lost = self._if_session(lambda: None if self.answers else self._octo_closes(Octo.LOST))
            self._later(90.0, lost)

    def power_on(self, *, banner: bool = True) -> None:
        """Switched on in place."""
        self.powered = True
        if self.node is not None:
            self._boot(banner=banner)

    def heard(self, sign: Sign) -> None:
        """The firmware says something; we hear it if we listen."""
        if self.law.reads:
            self.happens(Heard(sign))

    def person_disconnects(self) -> None:
        """Somebody presses Disconnect in OctoPrint."""
        self._push(Disconnecting())
        self._octo_closes(Octo.OFFLINE if self.octo not in OFFLINE else self.octo)

    def person_connects(self) -> None:
        """Somebody presses Connect in OctoPrint."""
        if self.octo in OFFLINE:
            self._octo_opens()

    def octoprint_says(self, octo: Octo, words: str | None = None) -> None:
        """OctoPrint comes into this state, for whatever reason."""
        self.words = words
        self._octo_closes(octo) if octo not in CONNECTED else self._octo_is(octo)

    def octoprint_restarts(self, down_for: float = 10.0) -> None:
        """OctoPrint goes down and comes up again, offline."""
        self.stuck = False
        self._octo_closes(Octo.OFFLINE, told=False)
        self.ill = Ill.DOWN
        if self.pushes:
            self.happens(PushUp(False))
        self.wait(down_for)
        self.ill, self.restarted = None, True
        if self.pushes:
            self._later(0.5, lambda: self.happens(PushUp(True)))

    def taken(self) -> None:
        """Another process opens the node; whoever listens makes way."""
        self.holder = True
        self.happens(Taken())

    def freed(self) -> None:
        """The other process closes the node."""
        self.holder = False
        self.happens(Freed())

    def retry(self) -> None:
        self.happens(Retry())

    def pause(self, seconds: float = math.inf) -> None:
        self.happens(Pause(self.now + seconds))

    def resume(self) -> None:
        self.happens(Resume())

    def hint(self) -> None:
        self.happens(Hint())

    def told(self, octo: Octo, after: float = 0.01, **more: object) -> None:
        """OctoPrint answers the question under way, or the next one (with `latency=None`)."""
        self._run(self.now + self.policy.interval, lambda: self.asking)
        self.check(self.asking, "nobody has asked")
        self.wait(after)
        asked_at, self._asked_at = self._asked_at, None
        self.octo = octo
        self.happens(Told(octo, asked_at, **({"offered": NODE, "baudrate": 115200} | more)))

    def untold(self, ill: Ill, after: float = 0.01) -> None:
        """OctoPrint does not answer the question under way (with `latency=None`)."""
        self.check(self.asking, "nobody has asked")
        self.wait(after)
        self._asked_at = None
        self.happens(Untold(ill, ill.value))

    @property
    def asking(self) -> bool:
        """A question to OctoPrint is under way."""
        return self._asked_at is not None

    # -- time ----------------------------------------------------------------------------------------------
    def wait(self, seconds: float) -> None:
        """Let time pass, with all that is due in it."""
        self._run(self.now + seconds, lambda: False)

    def expect(self, kind: type[Effect], within: float) -> Effect:
        """Wait until the rules do something of this kind (from now on); fail if they do not in time."""
        begin = len(self.out)
        found = self._run(
            self.now + within, lambda: any(isinstance(effect, kind) for _, effect in self.out[begin:])
        )
        assert found, f"no {kind.__name__} within {within} s of {self.now - within:.3f}\n{self}"
        return next(effect for _, effect in self.out[begin:] if isinstance(effect, kind))

    def expect_octo(self, octo: Octo, within: float) -> None:
        """Wait until the rules have been told of this state."""
        assert self._run(self.now + within, lambda: self.state.octo is octo), f"never {octo}\n{self}"

    @contextlib.contextmanager
    def nothing(self, *kinds: type[Effect]) -> Iterator[None]:
        """Nothing of these kinds is done inside the block."""
        begin = len(self.out)
        yield
        done = [(at, effect) for at, effect in self.out[begin:] if isinstance(effect, kinds)]
        assert not done, f"{done[:3]} though nothing of the kind was to be done\n{self}"

    def times(self, kind: type[Effect], since: float = -math.inf) -> list[float]:
        """When the rules did something of this kind."""
        return [at for at, effect in self.out if isinstance(effect, kind) and at >= since]

    def check(self, truth: object, what: str = "it is not so") -> None:
        """Assert something; a failure prints the story."""
        assert truth, f"{what}\n{self}"

    def __str__(self) -> str:
        """The story so far, its beginning and its end if it is long."""
        lines = [f"  {at - 1000:10.3f} {arrow} {what}" for at, arrow, what in self.log]
        if len(lines) > 500:
            lines[60:-400] = [f"  ... {len(lines) - 460} lines ..."]
        return "the story:\n" + "\n".join(lines)

    def _run(self, end: float, over: Callable[[], bool]) -> bool:
        while not over():
            tick = deadline(self.state, self.now)
            due = min(tick, self._agenda[0][0]) if self._agenda else tick
            if due > end:
                self.now = end
                return False
            if due > self.now:
                self._ticks_now = 0
            self.now = max(self.now, due)
            if self._agenda and self._agenda[0][0] <= tick:
                heapq.heappop(self._agenda)[2]()
            else:
                self.happens(Tick())
        return True

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._order), what))

    # -- the rules -----------------------------------------------------------------------------------------
    def happens(self, event: Event) -> None:
        """Feed the rules an event, then the outcomes of what they do about it."""
        self._events.append(event)
        if len(self._events) > 1:
            return  # an outcome: it is taken in below, next
        try:
            while self._events:
                self._step(self._events[0])
                self._events.popleft()
            self._check_deadline()
        except AssertionError:
            self.failed = True
            self._events.clear()
            raise

    def _step(self, event: Event) -> None:
        self._ticks_now += isinstance(event, Tick)
        self.log.append((self.now, "->", event))
        self.law.edge = opens_with_edge(self.state)
        self.law.event(event, self.now)
        self.state, effects = step(self.state, event, self.now)
        for effect in effects:
            self.log.append((self.now, "   <-", effect))
            self.out.append((self.now, effect))
        try:
            self.law.effects(event, effects)
            assert self._ticks_now < HOT, "a hot loop"
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self}") from e
        for effect in effects:
            self._carry_out(effect)
        assert self.law.fd == (self.state.line is not Line.CLOSED), f"{self}"

    def _check_deadline(self) -> None:
        """The deadline is neither past, nor far away, nor later than there is something to do."""
        if not self.checks:
            return
        self.checks -= 1
        due = deadline(self.state, self.now)
        limit = max(self.policy.interval, BACK_OFF_LIMIT)
        self.check(self.now <= due <= self.now + limit, f"the deadline {due} is never, or past")
        for at in (self.now, (self.now + due) / 2):
            if at < due:
                self.check(not step(self.state, Tick(), at)[1], f"overslept: something was due by {at}")
        for at in (self.now, due, due + 0.3):
            later = deadline(self.state, at)
            self.check(later == max(at, due), f"a look at the deadline at {at} moves it to {later}")

    def _carry_out(self, effect: Effect) -> None:  # noqa: C901 - one flat table of effects
        match effect:
            case Look():
                self._asked_at = self.now
                if self.latency is not None:
                    self._later(self.latency, self._answer)
            case Open():
                self._events.append(self._open(effect))
            case Poke():
                self._later(0.005, self._poked)
            case Rebaud(rate):
                self.line_rate = rate
            case Close(drop_dtr):
                self.hupcl = self.hupcl or drop_dtr
                self._close()
            case Count():
                held = self.holder or (self.octo is Octo.CONNECTING and not self.stuck)
                self._events.append(Counted(None if self.unseen else held))
            case Unwedge():
                self._later(self.latency or 0.0, self._is_unwedged)
            case Connect():
                self._later(self.accepts_after or self.latency or 0.0, self._accept)
            case Guard():
                self.hupcl = self.hupcl and not self.keeps_dtr
                self._events.append(Guarded(not self.hupcl))
            case Remember(hold, identity):
                self.memory = (hold, identity)

    def _open(self, effect: Open) -> Event:
        if self.node is None:
            return OpenFailed(Refusal.MISSING, "no such file")
        if self.holder or self.octo in CONNECTED or self.octo is Octo.CONNECTING:
            return OpenFailed(Refusal.BUSY, "another process has it")
        if self.refusal is not None:
            return OpenFailed(self.refusal, self.refusal.value)
        self.line_rate = effect.baudrate
        self._edge()
        self.hupcl = self.hupcl and not (effect.clear_hupcl and self.keeps_dtr)
        return Opened(not self.hupcl)

    def _close(self) -> None:
        if self.hupcl and self.octo in OFFLINE:
            self.dtr = False

    def _poked(self) -> None:
        if self.answers:
            self.heard(Sign.ANSWER if self.line_rate == self.rate else Sign.GARBAGE)
            if self.identity is not None and self.line_rate == self.rate and self.law.reads:
                self.happens(self.identity)

    # -- the device ----------------------------------------------------------------------------------------
    def _make_node(self, *, same: bool = False) -> None:
        identity = next(self._identity) if not same else 1
        self.node = Node(NODE, identity, modem=self.modem, shun=self.shun)
        self.edges, self.dtr, self.hupcl = 0, False, True

    def _edge(self) -> None:
        if self.modem and not self.dtr:
            self.dtr = True
            self.edges += 1
            if self.resets and self.powered:
                self._boot()

    def _boot(self, *, banner: bool = True) -> None:
        self.answers = False
        self._boots += 1
        boot = self._boots

        def up() -> None:
            if boot == self._boots and self.powered and self.node is not None:
                self.answers = True
                if banner:
                    self.heard(Sign.BANNER)
                    if self.octo is Octo.CONNECTING and not self.stuck:
                        self._later(0.01, self._if_session(lambda: self._octo_succeeds(booted=True)))

        self._later(BOOT, up)

    # -- OctoPrint -----------------------------------------------------------------------------------------
    def _answer(self) -> None:
        asked_at, self._asked_at = self._asked_at, None
        if self.ill is not None:
            self.happens(Untold(self.ill, self.ill.value))
            return
        restarted, self.restarted = self.restarted, False
        octo = Octo.LOST if self.forgetful and self.octo is Octo.FAULT else self.octo
        told = Told(
            octo,
            asked_at,
            words=self.words or octo.value,
            offered=self.offered if self.node else None,
            baudrate=self.preferred,
            restarted=restarted,
            elsewhere=self.elsewhere,
            opening=octo is Octo.CONNECTING,
            aside=self.aside,
        )
        self.happens(told)

    def _accept(self) -> None:
        if self.ill or self.declines:
            self.happens(Declined(self.ill or self.declines, "declined"))
            return
        if self.octo in OFFLINE:
            self._octo_opens()
        self.happens(Accepted())

    def _if_session(self, what: Callable[[], None]) -> Callable[[], None]:
        """What OctoPrint does only if it has not changed its mind meanwhile."""
        session = self._session
        return lambda: what() if session == self._session else None

    def _is_unwedged(self) -> None:
        if self.ill or self.declines:
            self.happens(Declined(self.ill or self.declines, "declined"))
            return
        self.person_disconnects()
        self.happens(Unwedged())

    def _push(self, event: Event) -> None:
        """OctoPrint's push tells of it, a moment later."""
        if self.pushes and self.ill is None:
            self._later(0.005, lambda: self.happens(event))

    def _octo_is(self, octo: Octo, *, told: bool = True) -> None:
        self._session += 1
        self.octo, self.stuck = octo, False
        if told:
            self._push(News())

    def _octo_opens(self) -> None:
        """OctoPrint opens the port; a listener of ours makes way."""
        self._octo_is(Octo.CONNECTING)
        if self.node is None or self.open_fails:
            self.stuck = True  # the trap: it says so for ever
            return
        self._edge()
        if self.law.reads:
            self.happens(Taken())
        self._later(HANDSHAKE, self._if_session(self._octo_succeeds))
        self._later(GIVES_UP, self._if_session(lambda: self._octo_closes(self.failing or Octo.OFFLINE)))

    def _octo_succeeds(self, *, booted: bool = False) -> None:
        if self.waits_for_start and not booted:
            return
        if self.answers and self.failing is None:
            self._octo_is(Octo.IDLE)

    def _octo_closes(self, octo: Octo, *, told: bool = True) -> None:
        if octo is Octo.FAULT:
            self._push(Erred(True, "Heating failed"))
        self._octo_is(octo, told=told)
        if self.hupcl and not self.law.fd:
            self.dtr = False
