"""One printer: waits on its sources, feeds the rules, carries their effects out.

Knows all the parts and how they fit together: the node and its uevents, the port, OctoPrint.  Must not decide
anything: every outcome is the rules' next event.

One thread waits on the port, on inotify and on its mailbox until the rules' deadline.  OctoPrint is asked
and heard by threads beside it (``asker``, ``push``), so that a hung-up port is closed, and room is made for
another opener, within milliseconds even while OctoPrint takes its time.
"""

import contextlib
import itertools
import logging
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, assert_never

from portretry_udev import events, firmware, inotify, rules, tally, whereabouts, words
from portretry_udev import port as ports
from portretry_udev.about import About
from portretry_udev.asker import Asker, Crash, OctoPrintClient, Reply
from portretry_udev.config import Printer
from portretry_udev.control import Snapshot
from portretry_udev.devices import Missing, Node, Uevent, Wanted
from portretry_udev.memory import Memory
from portretry_udev.octoprint import RATES, Answer, Kind, Trouble, offered
from portretry_udev.octoprint_config import Follow, OctoPrintConfigTrouble, OctoPrintSettings
from portretry_udev.watchdog import Pulse

_SETTLE_PERIOD = 0.1  # seconds between looks at a node that udevd has not finished
_HINT_PERIOD = 0.2  # seconds between hints: one who opens and closes in a loop must not make us ask in one
_CLOSE_MASK = inotify.CLOSE_WRITE | inotify.CLOSE_NOWRITE
_NODE_MASK = inotify.OPEN | _CLOSE_MASK
_FOLDER_MASK = inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO
_GONE_MASK = inotify.DELETE | inotify.MOVED_FROM
_DEAD = select.POLLHUP | select.POLLERR | select.POLLNVAL
_SHARED_AGE = 0.25  # seconds that such a look may be old: printers share them
_SHARED_PERIOD = 0.9  # seconds between looks into /proc while listening: one for each poke, no more
_FLOOD = 65536  # bytes read in one go before the other sources get their turn

_ILLS = {
    Kind.DOWN: events.Ill.DOWN,
    Kind.SLOW: events.Ill.SLOW,
    Kind.KEY: events.Ill.KEY,
    Kind.REFUSED: events.Ill.DECLINED,
    Kind.ODD: events.Ill.ODD,
}


class Pusher(Protocol):
    """What a watcher needs of OctoPrint's push socket."""

    def start(self) -> None:
        """Begin to tell."""

    def stop(self) -> None:
        """End soon."""

    def wake(self) -> None:
        """OctoPrint can be reached again: try now."""


MakePusher = Callable[
    [Callable[[events.Event], None], Callable[[str], None], Callable[[BaseException], None]], Pusher
]
"""Makes one that posts events, says what people should know, and tells of what it did not foresee."""


class Finder(Protocol):
    """What a watcher needs of the devices."""

    def find(self, wanted: Wanted) -> Node | Missing:
        """Look for the device; nothing is opened."""

    @property
    def events(self) -> str:
        """``udev``, or ``none`` where no uevents arrive."""


class Watcher:
    """Watches one printer until it is stopped.

    Args:
        printer: its configuration.
        devices: where nodes are looked for; shared between printers.
        client: its OctoPrint; used by one thread of the watcher's own.
        memory: what survives a restart.
        push: makes the end of its push socket; None: looks do the whole job.
        dry_run: say what would be done, open and connect nothing.
        changed: called by its thread when there is news in `snapshot`; must not wait.
        clock: seconds that never go backwards.
    """

    def __init__(  # noqa: PLR0913 - its parts, each of which a test may replace
        self,
        printer: Printer,
        devices: Finder,
        client: OctoPrintClient,
        memory: Memory,
        *,
        push: MakePusher | None = None,
        dry_run: bool = False,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.printer = printer
        self.name = printer.name
        self.log = logging.getLogger(f"portretry_udev.printer.{printer.name}")
        self._devices = devices
        self._client = client
        self._memory = memory
        self._changed = changed
        self._clock = clock
        self._policy = events.Policy(
            interval=printer.interval,
            reconnect=printer.reconnect,
            start=printer.start,
            probe=printer.probe,
            avoid_reset=printer.avoid_reset,
            baudrate=printer.baudrate,
            machine=printer.firmware.get("machine"),
            uuid=printer.firmware.get("uuid"),
            dry_run=dry_run,
        )
        self.state = rules.State(self._policy)
        self._tally = tally.Tally()
        self._stopping = False
        self._mail: deque[object] = deque()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waking = threading.Lock()
        self.pulse = Pulse(printer.name, self._wake)
        self._over = False  # both ends are closed: their numbers may be somebody else's by now
        self._asker = Asker(printer.name, client, printer.profile, self._current_key, self._put, clock=clock)
        self._push = push(self._put, self._say_of_push, self._crash) if push is not None else None
        self._opening_port: str | None = None  # the one that OctoPrint says it is opening
        self._poll = select.poll()
        self._port: ports.Port | None = None
        self._reader = firmware.Reader()
        self._named: firmware.Firmware | None = None
        self._node: Node | None = None
        self._notes = inotify.Inotify()
        self._node_notes, self._folder_notes = self._notes.part(), self._notes.part()
        self._node_watch: tuple[int, tuple[int, int, str]] | None = None
        self._folder_watch: tuple[int, str, str] | None = None
        self._follow = Follow(printer.octoprint_config) if printer.octoprint_config else None
        self._preferred: str | None = None  # the port that OctoPrint's answers name
        self._looked_for: str | None = None  # for people
        self._settle_at: float | None = None
        self._hint_at: float | None = None
        self._hinted_at = -_HINT_PERIOD
        self._shared_at = -math.inf
        self._refused_key: str | None = None
        self._said: tuple[str, str] | None = None
        self._said_once: set[str] = set()
        self._since = time.time()
        self.snapshot = self._snapshot(words.account(self.state, clock()), self._since)

    # -- what other threads may call, besides reading `snapshot` ---------------------------------------
    def post(self, item: Uevent | events.Event) -> None:
        """Put something into the mailbox; it is taken in at once."""
        self._put(item)

    def _put(self, item: object) -> None:
        self._mail.append(item)
        self._wake()

    def _crash(self, error: BaseException) -> None:
        """Have an unforeseen error of another thread end this one, and so the service."""
        self._put(Crash(error))

    def stop(self) -> None:
        """End `run` soon, whatever it is doing."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        with self._waking, contextlib.suppress(BlockingIOError):  # it is full of wake-ups already
            if not self._over:
                os.write(self._wake_write, b"!")

    # -- the thread ------------------------------------------------------------------------------------
    def run(self) -> None:
        """Watch until `stop`.

        Raises:
            Exception: whatever was not foreseen; the service ends with it and is started anew.
        """
        self._asker.start()
        if self._push is not None:
            self._push.start()
        try:
            for readable in (self._wake_read, self._notes.fileno()):
                self._poll.register(readable, select.POLLIN)
            self._begin()
            while not self._stopping:
                self._once()
        finally:
            self.pulse.end()
            self._asker.stop()
            self._close()
            if self._push is not None:
                self._push.stop()
            self._notes.close()
            with self._waking:
                self._over = True
                os.close(self._wake_read)
                os.close(self._wake_write)

    def _begin(self) -> None:
        remembered = self._memory.recall()
        if remembered.trouble:
            self.log.warning(remembered.trouble)
        paused_until = self._clock() + remembered.paused_for
        self._feed(events.Started(remembered.hold, remembered.identity, paused_until))
        self._find()

    def _once(self) -> None:
        """Wait for the next thing, and take all in that has happened."""
        happened = dict(self._poll.poll(self._timeout() * 1000))
        self.pulse.beat()
        if self._wake_read in happened:
            self._read_mail()
        if self._stopping:
            return
        if self._notes.fileno() in happened or self._notes.waiting():
            self._read_node_notes()
            self._read_folder_notes()
        if self._port is not None and (mask := happened.get(self._port.fileno(), 0)):
            self._read_port(mask)
        now = self._clock()
        if self._settle_at is not None and now >= self._settle_at:
            self._find()
        if self._hint_at is not None and now >= self._hint_at:
            self._hint()
        if self._refused_key is not None and self._current_key() != self._refused_key:
            self._refused_key = None
            self._feed(events.Hint())
        if now >= rules.deadline(self.state, now):
            self._feed(events.Tick())

    def _timeout(self) -> float:
        """Seconds to wait at most."""
        if self._notes.waiting():
            return 0.0
        now = self._clock()
        times = [rules.deadline(self.state, now), self._settle_at, self._hint_at]
        if self._refused_key is not None:
            times.append(now + self.printer.interval)
        return max(0.0, min(t for t in times if t is not None) - now)

    def _read_mail(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        for _ in range(len(self._mail)):  # what comes meanwhile waits for its turn
            if self._stopping:
                return
            match self._mail.popleft():
                case Reply() as reply:
                    self._take_reply(reply)
                case Crash() as crash:
                    raise crash.error
                case Uevent() as uevent:
                    self._take_uevent(uevent)
                case About() as about:
                    for line in about.sayings():
                        self._say_once(line)
                case event:
                    self._take_word(event)  # type: ignore[arg-type]

    def _take_word(self, event: events.Event) -> None:
        """A person's word.  A pause is kept: a restart of the service must not end it."""
        before = self.state.paused_until
        self._feed(event)
        if self.state.paused_until != before:
            self._remember(self.state.hold, self.state.hold_identity)

    # -- the rules -------------------------------------------------------------------------------------
    def _feed(self, event: events.Event) -> None:
        """Give the rules an event, carry out what they answer, and give them what comes of that."""
        pending: deque[events.Event] = deque([event])
        while pending:
            event = pending.popleft()
            now = self._clock()
            before = self.state
            self.state, effects = rules.step(before, event, now)
            self._tally = tally.counted(self._tally, before, event, self.state, effects, now)
            if not isinstance(event, events.Tick | events.Heard) or effects:
                self.log.debug("%s -> %s", event, effects)
            for effect in effects:
                outcome = self._carry_out(effect)
                if outcome is not None:
                    pending.append(outcome)
        self._tell()

    def _carry_out(  # noqa: C901, PLR0911 - one flat table of effects
        self, effect: events.Effect
    ) -> events.Event | None:
        match effect:
            case events.Look():
                self._find_later()
                self._asker.ask(effect)
                return self._make_way()
            case events.Connect():
                self._asker.ask(effect)
            case events.Unwedge():
                self.log.warning(words.freed(self.state))
                self._asker.ask(effect)
            case events.Count():
                return self._count()
            case events.Open():
                return self._open(effect)
            case events.Rebaud(baudrate):
                return self._rebaud(baudrate)
            case events.Poke():
                return self._poke()
            case events.Mute():
                self._register(0)  # only a hang-up is still told
            case events.Close(drop_dtr):
                self._close(drop_dtr=drop_dtr)
            case events.Guard(path):
                return self._guard(path)
            case events.Remember(hold, identity):
                self._remember(hold, identity)
            case _:
                assert_never(effect)
        return None

    def _remember(self, hold: events.Hold, identity: object) -> None:
        if self._policy.dry_run:
            return  # the memory is that of a real service
        try:
            self._memory.keep(hold, identity, max(0.0, self.state.paused_until - self._clock()))
        except OSError as e:
            self._say_once(f"{self._memory.path}: {e.strerror}: a hold or a pause will not survive a restart")

    # -- saying ----------------------------------------------------------------------------------------
    def _tell(self) -> None:
        """One line for each change, never one for each look."""
        account = words.account(self.state, self._clock())
        said = (account.state, account.key or account.why)
        if account.passing or said == self._said:
            self.snapshot = self._snapshot(account, self._since_of(account))
            return
        if self._said is None or self._said[0] != account.state:
            self._since = time.time()
        self._said = said
        self.snapshot = self._snapshot(account, self._since)
        # Logged then: who has read the line sees the state in `status`.
        self.log.log(logging.WARNING if account.warn else logging.INFO, "%s: %s", account.state, account.why)
        self._changed()

    def _since_of(self, account: words.Account) -> float:
        """When its state began; one that passes does not end the one before it."""
        if self._said is not None and self._said[0] == account.state:
            return self._since
        return self.snapshot.since if self.snapshot.state == account.state else time.time()

    def _snapshot(self, account: words.Account, since: float) -> Snapshot:
        """What `status` shows: made by this thread, read by others."""
        s = self.state
        answers = s.octo is not None and s.ill is None
        return Snapshot(
            account.state,
            account.why,
            port=self._looked_for,
            node=self._node.real if self._node else None,
            octoprint=(s.words or None) if answers else None,
            since=since,
            next_look=s.next_look,
            connects=s.connects,
            paused=rules.paused(s, self._clock()),
            holding=self._port is not None,
            news=self._said,
            push=s.push if self._push is not None else None,
            tally=self._tally,
        )

    def _say_once(self, what: str) -> None:
        if what not in self._said_once:
            self._said_once.add(what)
            self.log.warning(what)

    def _say_of_push(self, what: str) -> None:
        """Only where asking works, and push alone does not; called by push's own thread."""
        asking_works = self.state.octo is not None and self.state.ill is None
        self.log.log(logging.INFO if asking_works else logging.DEBUG, what)

    # -- the device ------------------------------------------------------------------------------------
    def _wanted(self) -> Wanted | None:
        """Which device it is: as configured, else as OctoPrint's own settings name it; None: nobody does."""
        if self.printer.port or self.printer.match:
            return Wanted(self.printer.port, self.printer.match)
        path = self._settings().port or self._preferred
        return Wanted(path) if path else None

    def _settings(self) -> OctoPrintSettings:
        """OctoPrint's config.yaml, if we were told of it, as it is now."""
        if self._follow is None:
            return OctoPrintSettings()
        try:
            settings = self._follow.current()
        except OctoPrintConfigTrouble as e:
            self._say_once(str(e))
            return OctoPrintSettings()
        if self._follow.trouble is not None:
            self._say_once(f"{self._follow.trouble}; what it said before still counts")
        return settings

    def _find_later(self) -> None:
        """Have the device looked for in the next round: not while the rules are at something else."""
        self._settle_at = self._clock()

    def _find(self) -> None:
        """Look for the device and tell the rules; while udevd is at it, wait."""
        self._settle_at = None
        wanted = self._wanted()
        self._looked_for = None
        if wanted is None:
            self._node = None
            why = (
                "no port is known: choose one in OctoPrint's settings (AUTO will not do), "
                f"or set `port` for {self.printer.name}"
            )
            self._feed(events.NodeSeen(None, why, configured=False))
            return
        self._looked_for = wanted.path or ", ".join(f"{k}={v}" for k, v in wanted.match.items())
        if wanted.path:
            self._watch_folder(wanted.path)
        found = self._devices.find(wanted)
        if isinstance(found, Missing):
            if found.settling:
                self._settle_at = self._clock() + _SETTLE_PERIOD
                return
            self._node = None
            self._feed(events.NodeSeen(None, found.why))
            return
        self._node = found
        self._watch_node(found)
        shun = ports.SHUNNED.get(found.vendor or "", frozenset())
        self._feed(events.NodeSeen(events.Node(found.path, found.identity, found.modem, shun)))

    def _take_uevent(self, uevent: Uevent) -> None:
        wanted = self._wanted()
        if wanted is not None and uevent.concerns(wanted.path, self._node):
            self._find()

    def _watch_node(self, node: Node) -> None:
        """Have the kernel tell who opens and closes the node."""
        if self._node_watch is not None and self._node_watch[1] == node.identity:
            return
        try:
            self._node_watch = (self._node_notes.add(node.real, _NODE_MASK), node.identity)
        except FileNotFoundError:
            self._node_watch = None  # gone since it was found: the next look tells
        except OSError as e:
            self._node_watch = None
            self._say_once(f"cannot watch {node.real} ({e.strerror}): other users of the port are seen late")

    def _watch_folder(self, path: str) -> None:
        """Have the kernel tell when the node's name comes and goes: the only news where no uevents come."""
        name = Path(path)
        while not name.parent.is_dir():
            name = name.parent
        watch = (str(name.parent), name.name)
        if self._folder_watch is not None and self._folder_watch[1:] == watch:
            return
        try:
            if self._folder_watch is not None:
                self._folder_notes.remove(self._folder_watch[0])
            self._folder_watch = (self._folder_notes.add(name.parent, _FOLDER_MASK), *watch)
        except OSError:
            self._folder_watch = None  # the interval looks all the same

    def _read_folder_notes(self) -> None:
        notes = [n for n in self._folder_notes.read() if self._folder_watch and n.wd == self._folder_watch[0]]
        if any(note.mask & inotify.IGNORED for note in notes):
            self._folder_watch = None
        elif not any(self._folder_watch and note.name == self._folder_watch[2] for note in notes):
            return
        # Two appearances of a device node differ in their inode; those of a pty need not.
        if self._node is not None and not self._node.modem and any(note.mask & _GONE_MASK for note in notes):
            # The words of the look that follows, so that it does not say the same once more.
            why = f"{self._node.path} is not there: the printer is unplugged or switched off"
            self._node = None
            self._feed(events.NodeSeen(None, why))
        self._find()

    def _read_node_notes(self) -> None:
        """Somebody opened or closed the node: make way at once, or look what it means."""
        current = self._node_watch[0] if self._node_watch else None
        masks = [note.mask for note in self._node_notes.read() if note.wd == current]
        if any(mask & inotify.IGNORED for mask in masks):
            self._node_watch = None
        opened = any(mask & inotify.OPEN for mask in masks)
        closed = any(mask & _CLOSE_MASK for mask in masks)
        if opened and self.state.line is rules.Line.LISTENING:
            self._close()
            self._feed(events.Taken())
        elif opened or closed:
            if closed:
                self._feed(events.Freed())
            self._hint_soon()

    def _hint_soon(self) -> None:
        self._hint_at = max(self._clock(), self._hinted_at + _HINT_PERIOD)

    def _hint(self) -> None:
        self._hint_at = None
        self._hinted_at = self._clock()
        self._feed(events.Hint())

    def _forget_own(self) -> None:
        """What inotify has told of the node so far is our own open or close, or that the node is gone."""
        current = self._node_watch[0] if self._node_watch else None
        if any(note.wd == current and note.mask & inotify.IGNORED for note in self._node_notes.read()):
            self._node_watch = None

    # -- the port --------------------------------------------------------------------------------------
    def _open(self, effect: events.Open) -> events.Event:
        try:
            self._port = ports.Port(
                effect.path, effect.baudrate, clear_hupcl=effect.clear_hupcl, forget=self._forget_own
            )
        except ports.PortError as e:
            self._forget_own()
            return events.OpenFailed(e.refusal, str(e))
        self._reader = firmware.Reader()
        self._register(select.POLLIN)
        return events.Opened(self._port.dtr_stays)

    def _register(self, mask: int) -> None:
        if self._port is not None:
            self._poll.register(self._port.fileno(), mask)

    def _close(self, *, drop_dtr: bool = False) -> None:
        if self._port is not None:
            self._poll.unregister(self._port.fileno())
            self._port.close(drop_dtr=drop_dtr)
            self._port = None
            self._forget_own()

    def _hang_up(self) -> events.Event:
        self._close()
        self._find_later()
        return events.HungUp()

    def _read_port(self, mask: int) -> None:
        """Read what has come; a flood is cut into portions, so that the other sources get their turn."""
        assert self._port is not None  # noqa: S101 - the caller has looked
        if self.state.line is not rules.Line.LISTENING:
            # Only its end counts.  Bytes may have come together with the answer that muted it.
            if mask & _DEAD:
                self._feed(self._hang_up())
            return
        size = 0
        while self._port is not None and size < _FLOOD:
            try:
                data = self._port.read()
            except ports.HangUp:
                self._feed(self._hang_up())
                return
            if not data:
                return
            size += len(data)
            for sign, _ in itertools.groupby(self._reader.feed(data)):  # a flood of one sign is one sign
                self._feed(events.Heard(sign))
                if self.state.line is not rules.Line.LISTENING:
                    return  # the decision to connect has been made: not a byte more
            self._take_identity()

    def _take_identity(self) -> None:
        found, self._reader.firmware = self._reader.firmware, None
        if found is None:
            return
        self._feed(events.Identified(found.machine, found.uuid))
        if found != self._named:
            self._named = found
            machine = f" on {found.machine}" if found.machine else ""
            baud = rules.baudrate(self.state)
            self.log.info("the firmware answers at %s baud: %s%s", baud, found.name, machine)

    def _make_way(self) -> events.Event | None:
        """Close the port if somebody else has it too: inotify is silent where he came by another inode."""
        if self._port is None or self.state.line is not rules.Line.LISTENING:
            return None
        # A look into /proc takes some 20 ms: not again on the way from a banner to OctoPrint.
        now = self._clock()
        if now - self._shared_at < _SHARED_PERIOD:
            return None
        self._shared_at = now
        if not self._port.shared(age=_SHARED_AGE):
            return None
        self._close()
        return events.Taken()

    def _poke(self) -> events.Event | None:
        if (taken := self._make_way()) is not None:
            return taken
        try:
            if self._port is not None and not self._port.poke():
                self.log.debug("not poked: the port takes nothing")
        except ports.HangUp:
            return self._hang_up()
        return None

    def _rebaud(self, baudrate: int) -> events.Event | None:
        self._reader = firmware.Reader()
        try:
            if self._port is not None:
                self._port.set_baudrate(baudrate)
        except ports.HangUp:
            return self._hang_up()
        return None

    def _count(self) -> events.Event:
        """See who else holds the port that OctoPrint is opening; what cannot be told is not guessed."""
        path = self._opening_path()
        if path is None or not whereabouts.seen(self._client.peer):
            return events.Counted(None)
        try:
            return events.Counted(bool(ports.holders(path).found))
        except FileNotFoundError:
            return events.Counted(held=False)  # what is not there is held by nobody
        except OSError as e:
            self.log.debug("%s: %s", path, e.strerror)
            return events.Counted(None)

    def _opening_path(self) -> str | None:
        """The port that OctoPrint is opening, by a name that is good here; None: it has none."""
        port = self._opening_port
        if port is None or self._name_in((port,)) is not None:
            return self._node.path if self._node else self.printer.port
        # Another one than ours.  Where OctoPrint has its own names for ports, that one says nothing here.
        return port if port.startswith("/") and self.printer.octoprint_port is None else None

    def _guard(self, path: str) -> events.Event:
        dtr_stays = ports.guard(path)
        self._forget_own()
        return events.Guarded(dtr_stays)

    # -- OctoPrint -------------------------------------------------------------------------------------
    def _take_reply(self, reply: Reply) -> None:
        look = isinstance(reply.question, events.Look)
        match reply.outcome:
            case None:
                taken = isinstance(reply.question, events.Connect)
                self._feed(events.Accepted() if taken else events.Unwedged())
            case Trouble() as trouble:
                # A refused key is tried ever more rarely (OctoPrint logs each try), a new one at once.
                self._refused_key = reply.key if trouble.kind is Kind.KEY else None
                ill = _ILLS[trouble.kind]
                self._feed(events.Untold(ill, str(trouble)) if look else events.Declined(ill, str(trouble)))
            case Answer() as answer:
                self._refused_key = None
                self._opening_port = answer.port
                if answer.restarted or self.state.octo is None or self.state.ill is not None:
                    self._is_back()
                if answer.preferred_port != self._preferred:
                    self._preferred = answer.preferred_port
                    self._find()
                self._feed(self._told(answer, reply.asked_at))

    def _is_back(self) -> None:
        """OctoPrint answers, for the first time or again: it may be another one."""
        self._asker.wonder()
        if self._push is not None:
            self._push.wake()

    def _current_key(self) -> str:
        try:
            return self.printer.key.read()
        except ValueError:
            return ""

    def _told(self, answer: Answer, asked_at: float) -> events.Told:
        settled = self._settings().baudrate
        said = answer.job if answer.error is None else f"{answer.job}: {answer.error}"
        elsewhere = None
        known = self._node is not None or self.printer.octoprint_port is not None
        if known and answer.octo in events.CONNECTED and answer.port and not self._name_in((answer.port,)):
            elsewhere = answer.port
        return events.Told(
            answer.octo,
            asked_at,
            words=said,
            offered=self._name_in(answer.ports),
            baudrate=settled if settled is not None and settled in RATES else answer.preferred_baudrate,
            restarted=answer.restarted,
            elsewhere=elsewhere,
            opening=answer.opening,
            aside=answer.aside,
        )

    def _name_in(self, names: tuple[str, ...]) -> str | None:
        """Which of these names of OctoPrint's is our device."""
        if self.printer.octoprint_port is not None:
            return self.printer.octoprint_port if self.printer.octoprint_port in names else None
        if self._node is None:
            return None
        return offered(names, self._node.path, (self._node.real, *self._node.links))
