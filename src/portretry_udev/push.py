"""OctoPrint's push socket -> events.

Knows how to get onto OctoPrint's push, what its messages mean, and when to try again.  Must not know what
follows from them (``rules``), nor how they travel (``transport``, ``websocket``).

Push only tells sooner, and more: a deliberate disconnect and a fault look alike to who only asks.  Without it
the interval does the job; so its failures are told once, and never stand in the way of anything.
"""

import contextlib
import enum
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

from portretry_udev import events
from portretry_udev.rest import Kind, Rest, Trouble, one_line, without_secrets
from portretry_udev.transport import Halt, Halted, Polling, Timing, Transport

NEWS = frozenset(
    {"Connecting", "Connected", "Disconnected", "PrinterStateChanged", "ConnectionsAutorefreshed"}
)
"""Events that say no more than that something about the connection has changed."""
TOLD = ("Disconnecting", "Error", "EStop", *sorted(NEWS))
SUBSCRIPTION = json.dumps({"subscribe": {"state": False, "plugins": False, "events": TOLD}})
"""Without one OctoPrint would push everything: each temperature, each G4 of a print."""

LOSSES = frozenset({"timeout", "connection", "autodetect", "crash"})
"""Reasons of the event Error after which OctoPrint merely closes the port; facts, section 2.2.

There are four more, ``firmware``, ``resend``, ``resend_loop`` and ``start_print``: after these it sends M112
(1.x util/comm.py, 2.0 plugins/serial_connector/serial_comm.py, _trigger_error), so the printer is halted.
"""
ADMITTED = frozenset({"timelapse", "history", "current"})
"""Messages that OctoPrint sends only to who has the permission STATUS (server/util/sockjs.py, _emit); events
are more of them.

It does not answer a login with a yes.  But when it takes one, it registers the socket for the events, and
right after that it tells the timelapse's settings, subscribed to or not (_register).
"""
_FLOOD = 1000  # messages, within _FLOOD_PERIOD; a busy OctoPrint sends a few
_FLOOD_PERIOD = 10.0  # seconds
_STOP_PERIOD = 0.5  # seconds that `Push.stop` may take
_QUIET = frozenset({Kind.DOWN, Kind.SLOW})  # of these the looks over REST tell as well


class Sign(enum.Enum):
    """What a message says about the socket itself."""

    ADMITTED = "admitted"  # we are known, and subscribed
    LOGIN = "login"  # we are not known, or not any more


def read(text: str) -> events.Event | Sign | None:
    """Understand one message; None: it does not matter here, or is not understood."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    if "reauthRequired" in message:
        return Sign.LOGIN
    event = message.get("event")
    if isinstance(event, dict) and isinstance(event.get("type"), str):
        return _event(event["type"], event.get("payload")) or Sign.ADMITTED
    return Sign.ADMITTED if message.keys() & ADMITTED else None


def _event(name: str, payload: object) -> events.Event | None:
    match name:
        case "Disconnecting":
            return events.Disconnecting()
        case "Error":
            return _error(payload if isinstance(payload, dict) else {})
        case "EStop":  # OctoPrint 2.0 shows an emergency stop nowhere else: it looks like a loss
            return events.Erred(fault=True, words="emergency stop (M112)")
    return events.News() if name in NEWS else None


def _error(payload: dict[str, object]) -> events.Event:
    reason, text = payload.get("reason"), payload.get("error")
    if reason == "firmware" and payload.get("consequence") == "cancel":
        return events.News()  # in 2.0: the print is cancelled, the connection stays
    words = one_line(text) if isinstance(text, str) else ""
    fault = not (isinstance(reason, str) and reason in LOSSES)
    return events.Erred(fault=fault, words=words or "an error without a text")


class Push:
    """Tells what one OctoPrint pushes, by a thread of its own.

    Args:
        url: where OctoPrint is, with its path prefix, as a browser would need it.
        key: gives the API key, before each login.
        post: takes the events, in the thread of this; it must not wait, nor call this.
        ca_file: certificates to trust instead of the public ones.
        say: takes one line for people; once per kind of trouble, until push has worked again.
        crash: takes an error that was not foreseen; left out, it ends the thread with a trace.
        timing: how long is waited for what.
        clock: seconds that never go backwards.
    """

    def __init__(  # noqa: PLR0913 - its parts, each of which a test may replace
        self,
        url: str,
        key: Callable[[], str],
        post: Callable[[events.Event], None],
        *,
        ca_file: Path | None = None,
        say: Callable[[str], None],
        crash: Callable[[BaseException], None] | None = None,
        timing: Timing = Timing(),  # noqa: B008 - it cannot be changed
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url.rstrip("/")
        self._who = f"OctoPrint at {without_secrets(self._url)}"
        self._key = key
        self._post_event = post
        self._ca_file = ca_file
        self._say = say
        self._crash = crash
        self._timing = timing
        self._clock = clock
        self._halt = Halt()
        self._changed = threading.Condition()  # guards what follows
        self._nudged = False
        self._up = False
        self._thread: threading.Thread | None = None
        self._up_at = 0.0  # these are the thread's own
        self._said: set[Kind] = set()
        self._session: str | None = None
        self._came: deque[float] = deque(maxlen=_FLOOD)

    # -- what other threads may call -------------------------------------------------------------------
    def start(self) -> None:
        """Begin, once; after `stop` nothing begins."""
        with self._changed:
            if self._thread is None and not self._halt.is_set:
                self._thread = threading.Thread(target=self._run, name="push", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End it within 0.5 s.  When this returns nothing is posted any more.

        The thread has ended then, too, and its sockets are closed.  One wait cannot be cut short: that of
        the system for a name, or of a request for its TCP or TLS connection.  Then the thread ends after it,
        within seconds, and in silence.
        """
        with self._changed:
            self._halt.set()
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            self._halt.close()
        elif thread is not threading.current_thread():
            thread.join(_STOP_PERIOD)

    def wake(self) -> None:
        """OctoPrint has just answered over REST: if push is not up, try now instead of waiting for long."""
        with self._changed:
            if not self._up:
                self._nudged = True
                self._changed.notify_all()

    # -- the thread ------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            with contextlib.suppress(Halted):
                self._keep_trying()
        except Exception as error:
            if self._crash is None:
                raise
            self._crash(error)
        finally:
            self._set_up(up=False)  # what was not foreseen must not look like an open ear
            self._halt.close()

    def _keep_trying(self) -> None:
        """Attempt after attempt, with a back-off between them.

        A wake-up starts the back-off afresh: OctoPrint is there.  If that attempt fails, too, no other is
        heard until the back-off has been gone through: OctoPrint logs each refused key, and it may answer
        over REST each few seconds and never let us listen.
        """
        delay, nudged, deaf = self._timing.first, False, False
        while True:
            with self._changed:
                self._nudged = False
            began = self._clock()
            up_for, trouble, long = self._attempt()
            self._tell(trouble, up_for, nudged=nudged)
            if up_for >= self._timing.stable:
                delay, deaf = self._timing.first, False
                self._said.clear()
            elif nudged:
                delay, deaf = self._timing.first, True
            if long:
                delay = self._timing.longest
            nudged = self._pause(began, delay, deaf=deaf)
            deaf = deaf and delay < self._timing.longest
            delay = min(delay * 2, self._timing.longest)

    def _attempt(self) -> tuple[float, Trouble, bool]:
        """Get onto push, and listen until it ends: seconds it was up, why it ended, whether to wait long."""
        opened = False
        self._came.clear()
        try:
            with contextlib.closing(self._open()) as line:
                opened = True
                self._listen(line)
        except Trouble as trouble:
            why = trouble
        up_for = max(self._clock() - self._up_at, 1e-9) if self._up else 0.0
        self._set_up(up=False)
        # What is odd about one who let us in will be so in a second, too.
        return up_for, why, why.kind is Kind.KEY or (opened and why.kind is Kind.ODD)

    def _pause(self, began: float, delay: float, *, deaf: bool) -> bool:
        """Wait for the next attempt; whether `wake` cut that short."""
        end, nudge_at = self._clock() + delay, began + self._timing.nudge
        with self._changed:
            while True:
                if self._halt.is_set:
                    raise Halted
                heard = self._nudged and not deaf
                now, at = self._clock(), min(end, nudge_at) if heard else end
                if now >= at:
                    return heard and now < end
                self._changed.wait(at - now)

    # -- one connection --------------------------------------------------------------------------------
    def _open(self) -> Transport:
        """A websocket; or plain requests, where its library is missing or a proxy lets none through."""
        try:
            from portretry_udev import websocket  # noqa: PLC0415 - its library is optional
        except ImportError:
            pass
        else:
            with contextlib.suppress(websocket.NotUpgraded):
                return websocket.Websocket(
                    self._url, self._halt, ca_file=self._ca_file, timing=self._timing, clock=self._clock
                )
        return Polling(self._url, self._halt, ca_file=self._ca_file, timing=self._timing, clock=self._clock)

    def _listen(self, line: Transport) -> NoReturn:
        """Be let in, then post what comes; ends by raising."""
        line.send(SUBSCRIPTION)  # before the login, which would unleash everything
        line.send(json.dumps({"auth": self._log_in()}))
        let_in_by = self._clock() + self._timing.patience
        while True:
            for text in line.receive(self._clock() + self._timing.longest if self._up else let_in_by):
                self._count()
                self._take(read(text))
            if not self._up and self._clock() >= let_in_by:
                raise Trouble(
                    Kind.KEY, f"{self._who} does not let this API key's user listen: STATUS is missing"
                )

    def _log_in(self) -> str:
        """A name and a session for the socket, from the API key; a secret, and good for a few minutes."""
        with (
            contextlib.closing(Rest(self._url, self._key, ca_file=self._ca_file)) as rest,
            self._halt.ends(rest),
        ):
            try:
                body = rest.ask("POST", "/api/login", {"passive": True}).body
            except Trouble as trouble:
                if trouble.status != HTTPStatus.FORBIDDEN:
                    raise
                # So 1.10.3 answers a wrong key; elsewhere it would speak of a permission to connect.
                text = (
                    f"{self._who} refuses the API key: its user needs the permissions STATUS and CONNECTION"
                )
                raise Trouble(Kind.KEY, text, trouble.status) from None
        name, session = (body.get("name"), body.get("session")) if isinstance(body, dict) else (None, None)
        if not (isinstance(name, str) and isinstance(session, str) and name and session):
            raise Trouble(Kind.ODD, f"{self._who} answers a login in a shape that is not OctoPrint's")
        if ":" in name + session:  # OctoPrint parts them at the colon, and takes no second one
            raise Trouble(Kind.ODD, f"{self._who} takes no push login of a user with a colon in the name")
        self._session = session
        return f"{name}:{session}"

    def _take(self, sign: events.Event | Sign | None) -> None:
        if sign is None:
            return
        if sign is Sign.LOGIN:
            raise Trouble(Kind.DOWN, f"{self._who} wants a new login for its push")
        if not self._up:
            self._up_at = self._clock()
            self._set_up(up=True)
        if not isinstance(sign, Sign):
            self._post(sign)

    def _count(self) -> None:
        """Bound what others must take in."""
        now = self._clock()
        if len(self._came) == _FLOOD and now - self._came[0] < _FLOOD_PERIOD:
            raise Trouble(Kind.ODD, f"{self._who} pushes {_FLOOD} messages in {_FLOOD_PERIOD:g} s")
        self._came.append(now)

    # -- telling ---------------------------------------------------------------------------------------
    def _set_up(self, *, up: bool) -> None:
        with self._changed:
            changed, self._up = self._up is not up, up
        if changed:
            self._post(events.PushUp(up))

    def _post(self, event: events.Event) -> None:
        with self._changed:
            if not self._halt.is_set:
                self._post_event(event)

    def _tell(self, trouble: Trouble, up_for: float, *, nudged: bool) -> None:
        """Say what is wrong, unless it has been said, or says no more than ``PushUp(False)`` did."""
        expected = trouble.kind in _QUIET and (up_for or not nudged)
        if not (expected or trouble.kind in self._said or self._halt.is_set):
            self._said.add(trouble.kind)
            text = str(trouble).replace(self._session or "\0", "(a session)")  # a server may quote it
            self._say(f"{text} (so it is not heard by push; it is asked each few seconds all the same)")
