"""Ways to OctoPrint's push messages: what they have in common, and the one over plain HTTP requests.

Knows lines of text, and how a wait for them is ended.  Must not know what the texts say, who may read them,
nor when to try again (``push``).
"""

import contextlib
import json
import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from portretry_udev.rest import Kind, Rest, Trouble, one_line


@dataclass(frozen=True, slots=True)
class Timing:
    """How long is waited for what.  All in seconds.

    OctoPrint sends nothing while nothing happens (facts, section 6), so a dead peer shows by missing pongs
    only; over plain HTTP by SockJS's own heartbeat, which comes each 25 s.
    """

    first: float = 1.0  # back-off after the first failure; doubled after each one more
    longest: float = 300.0  # back-off at most, and at once after a refused key
    stable: float = 60.0  # the socket was up for so long: the back-off starts afresh
    nudge: float = 1.0  # attempts are never closer together, whoever asks for one
    patience: float = 10.0  # for a connection, for a handshake, for being let in
    ping: float = 10.0  # between two pings
    dead: float = 25.0  # without a pong
    poll: float = 35.0  # for SockJS's heartbeat


class Transport(Protocol):
    """A connection to OctoPrint's push.  For one thread; a `Halt` ends its waits."""

    def send(self, text: str) -> None:
        """Send one message; raises Trouble, Halted."""

    def receive(self, until: float) -> list[str]:
        """Wait for messages, until that time of the clock or somewhat later; raises Trouble, Halted."""

    def close(self) -> None:
        """Let go of it."""


class Halted(Exception):  # noqa: N818 - no error: it was asked for
    """A wait was ended because all is to end."""


class Halt:
    """Ends the waits of one thread, from another one, once and for all."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._is_set = False
        self._closed = False
        self._rest: Rest | None = None

    @property
    def is_set(self) -> bool:
        """Whether all is to end."""
        return self._is_set

    def set(self) -> None:
        """End the wait that is under way, and all later ones."""
        with self._lock:
            self._is_set = True
            if not self._closed:  # else its number may be somebody else's by now
                os.eventfd_write(self._event, 1)
            if self._rest is not None:
                self._rest.close()

    def close(self) -> None:
        """Let go of the descriptor; nobody waits any more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._event)

    @contextlib.contextmanager
    def ends(self, rest: Rest) -> Iterator[None]:
        """Requests made meanwhile are cut off by `set`; what they raise then is no trouble.

        Raises:
            Halted: instead.
        """
        with self._lock:
            outer, self._rest = self._rest, rest
        try:
            if self._is_set:
                raise Halted
            yield
        except Trouble:
            if not self._is_set:
                raise
        finally:
            with self._lock:
                self._rest = outer
        if self._is_set:
            raise Halted

    def wait(self, descriptor: int, events: int, seconds: float) -> bool:
        """Wait for ``select.POLLIN`` or ``POLLOUT``; False: not within so many seconds.

        Raises:
            Halted: `set` was called.
        """
        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        poll.register(descriptor, events)
        happened = dict(poll.poll(max(0.0, seconds) * 1000))
        if self._is_set:
            raise Halted
        return descriptor in happened


class Polling:
    """SockJS over plain HTTP: each request is answered when there is something to tell, each 25 s at least.

    This is SockJS's ``xhr`` and not its ``xhr_streaming``: it needs no answer without an end, which is just
    what a proxy that lets no websocket through may hold back, and each answer has the bounds of any other.
    Between two requests OctoPrint keeps the messages, for 5 s (vendor/sockjs/tornado, ``disconnect_delay``).

    Raises:
        Trouble: OctoPrint does not open a session.
        Halted: the halt was set.
    """

    def __init__(
        self,
        url: str,
        halt: Halt,
        *,
        ca_file: Path | None = None,
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._halt = halt
        self._clock = clock
        # No key: who listens is said by a message.
        self._rest = Rest(
            url, None, ca_file=ca_file, timeout=(min(3.05, timing.poll), timing.poll), plain=True
        )
        self.who = self._rest.who
        self._path = f"/sockjs/{secrets.randbelow(1000):03}/{secrets.token_hex(8)}"
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def send(self, text: str) -> None:
        """As `Transport`."""
        with self._halt.ends(self._rest):
            self._rest.ask("POST", f"{self._path}/xhr_send", [text], expected=(204,))

    def receive(self, until: float) -> list[str]:
        """As `Transport`; later than ``until`` by one answer at most."""
        while self._clock() < until:
            frame = self._poll()
            if frame == "h":
                continue
            messages = _messages(frame)
            if messages is None:
                raise Trouble(Kind.DOWN, one_line(f"{self.who} ended the push session: {frame[:80]}"))
            return messages
        return []

    def close(self) -> None:
        """As `Transport`."""
        self._rest.close()

    def _begin(self) -> None:
        if self._poll() != "o":
            raise Trouble(Kind.ODD, f"{self.who} does not answer as SockJS does: is /sockjs passed on?")

    def _poll(self) -> str:
        with self._halt.ends(self._rest):
            return str(self._rest.ask("POST", f"{self._path}/xhr").body).removesuffix("\n")


def _messages(frame: str) -> list[str] | None:
    """The messages in a frame: ``a["..."]`` by SockJS, ``a[{...}]`` by OctoPrint; None: another kind."""
    try:
        found = json.loads(frame[1:]) if frame.startswith("a") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    return [message if isinstance(message, str) else json.dumps(message) for message in found]
