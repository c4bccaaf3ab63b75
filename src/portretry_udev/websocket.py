"""OctoPrint's push socket as a websocket, by the library of that name without its threads.

Knows sockets, TLS, the handshake, frames and pings.  Must not know what the messages say (``push``).  All
waits are ours: they have an end, and a `Halt` ends them at once, which no blocking call of a library would.
To be imported only where it is wanted: the library ``websockets`` need not be there.
"""

import errno
import logging
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from websockets.client import ClientProtocol
from websockets.exceptions import PayloadTooBig, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from portretry_udev import __version__
from portretry_udev.rest import Kind, Trouble, explained, trusting, without_secrets
from portretry_udev.transport import Halt, Halted, Timing

MESSAGE_LIMIT = 1 << 20  # bytes; OctoPrint's greeting, its longest, has 10,000
_CHUNK = 65536  # bytes read at a time
_ADDRESSES = 4  # of one name that are tried
_DATA = frozenset({Opcode.CONT, Opcode.TEXT, Opcode.BINARY})
_NOWHERE = logging.getLogger(f"{__name__}.nowhere")
_NOWHERE.disabled = True  # the library writes each frame to its log, the session token too
_Result = TypeVar("_Result")
_Address = tuple[Any, Any, int, str, Any]  # as of getaddrinfo


class NotUpgraded(Exception):  # noqa: N818 - it has a second way: SockJS over plain HTTP
    """The other side speaks HTTP, but answers the wish for a websocket with something else."""


class Websocket:
    """A websocket at ``/sockjs/websocket`` below OctoPrint's URL.

    Raises:
        NotUpgraded: an answer that is none to a websocket.
        Trouble: no connection.
        Halted: the halt was set.
    """

    def __init__(
        self,
        url: str,
        halt: Halt,
        *,
        ca_file: Path | None = None,
        timing: Timing = Timing(),  # noqa: B008 - it cannot be changed
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.who = f"OctoPrint at {without_secrets(url)}"
        self._timing = timing
        self._clock = clock
        self._parts = bytearray()  # of the message that is coming in
        try:
            uri = parse_uri(f"ws{url.removeprefix('http').rstrip('/')}/sockjs/websocket")
        except (WebSocketException, ValueError) as error:
            raise explained(self.who, ValueError(type(error).__name__)) from None  # its text has the address
        self._protocol = ClientProtocol(uri, max_size=MESSAGE_LIMIT, logger=_NOWHERE)
        self._wire = _Wire(self.who, uri, ca_file=ca_file, patience=timing.patience, halt=halt, clock=clock)
        try:
            self._shake_hands()
        except BaseException:
            self._wire.close()
            raise
        self._ponged_at = self._ping_at = clock()

    def send(self, text: str) -> None:
        """As `Transport`."""
        self._check()
        self._protocol.send_text(text.encode())
        self._flush()

    def receive(self, until: float) -> list[str]:
        """As `Transport`."""
        while True:
            messages = self._messages()
            if messages:
                return messages
            now = self._clock()
            if now >= until:
                return []
            # Bytes alone are no sign of life: they could drip out of one message for ever.
            dead_at = self._ponged_at + self._timing.dead
            if now >= dead_at:
                raise Trouble(Kind.SLOW, f"{self.who} does not answer on the push socket any more")
            if now >= self._ping_at:
                self._ping_at = now + self._timing.ping
                self._protocol.send_ping(b"there?")
                self._flush()
            data = self._wire.read(min(until, dead_at, self._ping_at))
            if data is not None:
                self._feed(data)
                self._flush()

    def close(self) -> None:
        """As `Transport`; without a farewell, for which there may be no time."""
        self._wire.close()

    def _shake_hands(self) -> None:
        request = self._protocol.connect()
        request.headers["User-Agent"] = f"portretry-udev/{__version__}"
        self._protocol.send_request(request)
        until = self._clock() + self._timing.patience
        self._flush()
        start, size = b"", 0
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            data = self._wire.read(until)
            if data is None:
                raise Trouble(Kind.SLOW, f"{self.who} did not answer in time (websocket)")
            size += len(data)
            if size > MESSAGE_LIMIT:  # older versions of the library believe any Content-Length
                raise NotUpgraded
            start = (start + data[:8])[:8]
            self._feed(data)
        if self._protocol.handshake_exc is None:
            return
        if start.startswith(b"HTTP/"):
            raise NotUpgraded
        raise Trouble(Kind.DOWN, f"{self.who} is not up yet (no HTTP)")

    def _feed(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()

    def _flush(self) -> None:
        until = self._clock() + self._timing.patience
        for data in self._protocol.data_to_send():
            if data:  # else: the library would half-close; `close` closes in full, soon
                self._wire.write(data, until)

    def _messages(self) -> list[str]:
        """The messages that have come in whole, and a note of pongs.

        Raises:
            Trouble: none can come any more.
        """
        found: list[str] = []
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue  # the answer to the handshake
            if event.opcode is Opcode.PONG:
                self._ponged_at = self._clock()
            elif event.opcode in _DATA:
                self._parts += event.data
                if event.fin:
                    found.append(self._parts.decode("utf-8", "replace"))
                    self._parts.clear()
        if not found:
            self._check()
        return found

    def _check(self) -> None:
        if self._protocol.state is State.OPEN:
            return
        broken = self._protocol.parser_exc
        if isinstance(broken, PayloadTooBig):
            raise Trouble(Kind.ODD, f"{self.who} pushes a message of more than {MESSAGE_LIMIT} bytes")
        if broken is not None and not isinstance(broken, EOFError):
            raise Trouble(Kind.ODD, f"{self.who} pushes what is no websocket message")
        raise Trouble(Kind.DOWN, f"{self.who} closed the push socket")


class _Wire:
    """A TCP or TLS connection all of whose waits have an end, and can be halted.

    Args:
        who: the other side, for people.
        uri: its address.
        ca_file: certificates to trust instead of the public ones.
        patience: seconds until it is made, but for finding the address, which the system bounds.
        halt: ends all waits.
        clock: seconds that never go backwards.

    Raises:
        Trouble: no connection.
        Halted: the halt was set.
    """

    def __init__(  # noqa: PLR0913 - an address, its bounds, and whom to blame
        self,
        who: str,
        uri: WebSocketURI,
        *,
        ca_file: Path | None,
        patience: float,
        halt: Halt,
        clock: Callable[[], float],
    ) -> None:
        self._who = who
        self._halt = halt
        self._clock = clock
        until = clock() + patience
        try:
            addresses = socket.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM)[:_ADDRESSES]
            self._socket = self._dial(addresses, until)
            try:
                if uri.secure:
                    self._encrypt(uri.host, trusting(ca_file), until)
            except BaseException:
                self.close()
                raise
        except (OSError, ValueError) as error:  # a name may be none that IDNA knows
            raise explained(who, error) from None

    def _dial(self, addresses: Sequence[_Address], until: float) -> socket.socket:
        """A connection to the first address that takes one; each has its share of the time."""
        failure: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
        for tried, (family, kind, protocol, _, address) in enumerate(addresses):
            fresh = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                self._reach(fresh, address, (until - self._clock()) / (len(addresses) - tried))
            except OSError as error:
                failure = error
                fresh.close()
            except Halted:
                fresh.close()
                raise
            else:
                return fresh
        raise failure

    def _reach(self, fresh: socket.socket, address: Any, seconds: float) -> None:  # noqa: ANN401 - by family
        code = fresh.connect_ex(address)
        if code == errno.EINPROGRESS:
            if not self._halt.wait(fresh.fileno(), select.POLLOUT, seconds):
                raise _too_late()
            code = fresh.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def _encrypt(self, host: str, context: ssl.SSLContext, until: float) -> None:
        secure = context.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
        self._socket = secure
        self._do(secure.do_handshake, select.POLLIN, until)

    def read(self, until: float) -> bytes | None:
        """Some bytes; none: the connection has ended; None: nothing came until that time.

        Raises:
            Trouble: the connection broke.
        """
        try:
            return self._do(lambda: self._socket.recv(_CHUNK), select.POLLIN, until)
        except TimeoutError:
            return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError, ConnectionError):
            return b""
        except OSError as error:
            raise explained(self._who, error) from None

    def write(self, data: bytes, until: float) -> None:
        """Send it all.

        Raises:
            Trouble: the connection broke, or the other side does not take it.
        """
        try:
            while data:
                sent = self._do(partial(self._socket.send, data), select.POLLOUT, until)
                data = data[sent:]
        except OSError as error:
            raise explained(self._who, error) from None

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()

    def _do(self, action: Callable[[], _Result], events: int, until: float) -> _Result:
        """Do it as soon as it can be done without waiting; raises TimeoutError when that is too late."""
        while not self._halt.is_set:
            try:
                return action()
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            except BlockingIOError:
                wanted = events
            if not self._halt.wait(self._socket.fileno(), wanted, until - self._clock()):
                raise _too_late()
        raise Halted


def _too_late() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
