"""The service's end of the control socket: its file, its clients, and what they are answered.

Knows Unix sockets, who may use ours, and how the lines of ``control`` are answered.  Must not know what a
printer is up to beyond its watcher's `Snapshot`; a watcher is touched in no other way than by reading that
and by ``post``.
"""

import contextlib
import grp
import json
import logging
import math
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from portretry_udev import __version__
from portretry_udev import port as ports
from portretry_udev.control import (
    DONE_PERIOD,
    LINE_LIMIT,
    LONGEST_PAUSE,
    PATIENCE,
    VERSION,
    ControlError,
    Snapshot,
)
from portretry_udev.events import Pause, Resume, Retry
from portretry_udev.watchdog import Pulse

GROUP = "dialout"  # who may open the port may ask us
CLIENT_LIMIT = 64  # at once; further ones wait until one has gone
FOLLOWER_LIMIT = 32  # so that forgotten ones never keep a `pause` out
_BACKLOG = 128  # clients that wait to be let in
_DONE_WITHIN = 3.0  # seconds that a command may take before it is answered as pending; it takes milliseconds
_FOLLOW_PERIOD = 0.2  # seconds between looks for news
_HOLDER_PERIOD = 1.0  # seconds: a look into /proc takes 20 ms, and is not repeated sooner
_ACCEPT_PAUSE = 1.0  # seconds without letting anybody in when there are no descriptors left
_SHOWN = 64  # characters of a name that is none
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL

_log = logging.getLogger("portretry_udev.control")


class Watched(Protocol):
    """What the server needs of a watcher; both are safe in any thread."""

    @property
    def name(self) -> str:
        """The printer's."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest one."""

    def post(self, item: Retry | Pause | Resume) -> None:
        """Hand a person's word over."""


# -- the socket file ---------------------------------------------------------------------------------------
class _Socket:
    """The listening socket and its file.

    Raises:
        ControlError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode: tuple[int, int] | None = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(0)
        try:
            self._make()
        except OSError as e:
            self.close()
            raise ControlError(f"control socket {path}: {e.strerror or e}", os.EX_CONFIG) from e
        except ControlError:
            self.close()
            raise

    def _make(self) -> None:
        # Linux gives the file the mode of the socket: nobody gets in before it says who may.
        os.fchmod(self.listener.fileno(), 0o600)
        _make_folder(self.path.parent)
        _clear(self.path)
        self.listener.bind(str(self.path))
        self._inode = _inode(self.path)
        _admit(self.path, GROUP)
        self.listener.listen(_BACKLOG)

    def close(self) -> None:
        """Stop listening, and take the file away if it is still ours."""
        self.listener.close()
        with contextlib.suppress(OSError):
            if self._inode is not None and _inode(self.path) == self._inode:
                self.path.unlink()
        self._inode = None


def _make_folder(folder: Path) -> None:
    mode = 0o755 if os.geteuid() == 0 else 0o700
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode)
        folder.chmod(mode)  # whatever the umask left of it


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _clear(path: Path) -> None:
    """Take a dead service's socket away; nothing else is ever deleted."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ControlError(
            f"control socket {path}: a file that is no socket is there and is left alone; "
            "name another path with --control",
            os.EX_CONFIG,
        )
    served = _is_served(path)
    if not served:
        time.sleep(DONE_PERIOD)  # one that is only just being made does not listen yet
        served = _is_served(path)
    if served:
        raise ControlError(
            f"control socket {path}: another portretry-udev is running and has it; "
            "stop that one, or name another path with --control",
            os.EX_CONFIG,
        )
    with contextlib.suppress(FileNotFoundError):  # its service has ended meanwhile
        if _inode(path) == (found.st_dev, found.st_ino):
            path.unlink()


def _is_served(path: Path) -> bool:
    """Whether a process listens there; unless that is surely not so, it counts as one."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except PermissionError:
            raise
        except OSError:
            return True  # too many are waiting to be let in, or it is of another kind
    return True


def _admit(path: Path, group: str) -> None:
    """Let the group use the socket: root's, where there is such a group, and whose own group it is.

    By the group, not by who we are: a service may run as another user than root, as group dialout; and root
    without CAP_CHOWN can give nothing away, but need not if the file is the group's already.
    """
    try:
        wanted = grp.getgrnam(group).gr_gid
        if path.lstat().st_gid != wanted:
            if os.geteuid() != 0:
                return  # a person's own service
            os.chown(path, -1, wanted)
        path.chmod(0o660)
    except KeyError:
        return
    except OSError as e:
        _log.warning("%s: only root may use it, as group %s cannot be let in: %s", path, group, e.strerror)


# -- requests ----------------------------------------------------------------------------------------------
class _RefusedError(Exception):
    """A request that is not carried out; ``kind`` tells the client's program why."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Request:
    """What a client wants; ``printer`` None: of all of them, ``seconds`` None: until ``resume``."""

    command: str
    printer: str | None = None
    seconds: float | None = None
    follow: bool = False


_KEYS = {
    "status": {"printer", "follow"},
    "retry": {"printer"},
    "pause": {"printer", "seconds"},
    "resume": {"printer"},
}


def _parse(line: bytes) -> _Request:
    """A line as a request; what is not wholly understood is refused."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise _RefusedError("garbage", "that line is no JSON") from None
    if not isinstance(said, dict):
        raise _RefusedError("garbage", "that line is no JSON object")
    version = said.pop("version", None)
    if version != VERSION or isinstance(version, bool):
        raise _RefusedError("version", f"this service speaks version {VERSION} of the protocol only")
    command = said.pop("command", None)
    if not isinstance(command, str) or command not in _KEYS:
        raise _RefusedError("garbage", f"there is no such command; there are: {', '.join(_KEYS)}")
    if not said.keys() <= _KEYS[command]:
        raise _RefusedError("garbage", f"{command} takes no more than {', '.join(sorted(_KEYS[command]))}")
    printer, seconds, follow = said.get("printer"), said.get("seconds"), said.get("follow", False)
    if not isinstance(printer, str | None) or not isinstance(follow, bool):
        raise _RefusedError("garbage", "printer must be text, and follow true or false")
    if seconds is not None and not _is_pause(seconds):
        raise _RefusedError("garbage", f"seconds must be a number, above 0 and at most {LONGEST_PAUSE:.0f}")
    return _Request(command, printer, seconds, follow)


def _is_pause(seconds: object) -> bool:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return number and 0 < seconds <= LONGEST_PAUSE  # type: ignore[operator]  # nan fits no range


# -- the server --------------------------------------------------------------------------------------------
class _Peer:
    """One client, and how far it is: sending, waiting for something to be done, following, or taking."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.received = bytearray()
        self.to_send = b""
        self.deadline = now + PATIENCE  # for a whole line, or a whole answer: no trickle keeps a place
        self.request: _Request | None = None  # waited for, or followed
        self.wait_until = 0.0
        self.shown: object = None
        self.ends = False

    def wants(self) -> int:
        """What to wait for; nothing is read before the last answer was taken."""
        if self.to_send:
            return select.POLLOUT
        return select.POLLIN if self.request is None else 0

    def next_line(self) -> bytes | None:
        end = self.received.find(b"\n")
        if end < 0:
            return None
        line = bytes(self.received[:end])
        del self.received[: end + 1]
        return line


class Server:
    """Answers the clients, in a thread of its own, so that they never delay a watcher.

    Args:
        path: of the socket.
        watchers: of the printers; others may come in their place (`replace`).
        events: tells which device events arrive: ``udev``, ``kernel`` or ``none``.
        events_why: tells why no others do, for people; empty: there is nothing to tell.
        holders: who has a node open; for tests.
        clock: seconds that never go backwards, the watchers' own.

    Raises:
        ControlError: the socket cannot be made.
    """

    def __init__(  # noqa: PLR0913 - its parts, each of which a test may replace
        self,
        path: Path,
        watchers: Iterable[Watched],
        events: Callable[[], str],
        *,
        events_why: Callable[[], str] = str,
        holders: Callable[[str], ports.Holders] = ports.holders,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watchers: dict[str, Watched] = {}
        self.replace(watchers)
        self._events = events
        self._events_why = events_why
        self._holders = holders
        self._clock = clock
        self._held: dict[str, tuple[float, str, str | None]] = {}  # name -> looked at, node, holder
        self._peers: dict[int, _Peer] = {}
        self._accept_at = -math.inf
        self._stopping = False
        self._socket = _Socket(path)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.pulse = Pulse("control socket", self._wake)

    def replace(self, watchers: Iterable[Watched]) -> None:
        """From now on these are the printers; from any thread.  Who follows is told within 0.2 s."""
        self._newest = {watcher.name: watcher for watcher in watchers}

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            while not self._stopping:
                self._once()
        finally:
            self.pulse.end()
            for peer in list(self._peers.values()):
                self._drop(peer)

    def stop(self) -> None:
        """End `run` soon; from any thread."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of wake-ups already
            os.write(self._wake_write, b"!")

    def close(self) -> None:
        """Take the socket away; after `run` has ended."""
        self._socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _once(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        listener = self._socket.listener
        if len(self._peers) < CLIENT_LIMIT and self._clock() >= self._accept_at:
            poll.register(listener, select.POLLIN)
        for fd, peer in self._peers.items():
            poll.register(fd, peer.wants())
        happened = poll.poll(self._timeout())
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        self.pulse.beat()
        self._watchers = self._newest  # here alone, so that one round speaks of the same printers throughout
        for fd, mask in happened:
            if fd == listener.fileno():
                self._accept()
            elif fd in self._peers:
                self._hear(self._peers[fd], mask)
        for peer in list(self._peers.values()):
            self._go_on(peer)

    def _timeout(self) -> float | None:
        """Milliseconds to wait at most."""
        now = self._clock()
        times = [self._accept_at] if self._accept_at > now else []
        for peer in self._peers.values():
            if peer.to_send or peer.request is None:
                times.append(peer.deadline)
            else:
                times.append(now + (_FOLLOW_PERIOD if peer.request.follow else DONE_PERIOD))
        return max(0.0, min(times) - now) * 1000 + 1 if times else None

    # -- clients
    def _accept(self) -> None:
        while len(self._peers) < CLIENT_LIMIT:
            try:
                sock, _ = self._socket.listener.accept()
            except BlockingIOError:
                return
            except OSError as e:  # no descriptors left, for one: theirs is not to end the service
                _log.debug("cannot let a client in: %s", e)
                self._accept_at = self._clock() + _ACCEPT_PAUSE
                return
            sock.settimeout(0)
            self._peers[sock.fileno()] = _Peer(sock, self._clock())

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.sock.fileno()]
        peer.sock.close()

    def _hear(self, peer: _Peer, mask: int) -> None:
        """Take in what a client sends, or that it has gone."""
        if mask & select.POLLIN and peer.wants() == select.POLLIN:
            try:
                data = peer.sock.recv(LINE_LIMIT + 1 - len(peer.received))
            except OSError:  # they hung up without having read all
                data = b""
            peer.received += data
            if data:
                return
        elif not mask & _GONE:
            return
        self._drop(peer)

    def _go_on(self, peer: _Peer) -> None:
        """Bring one client as far as it goes without waiting."""
        while peer.sock.fileno() in self._peers:
            if peer.to_send:
                if not self._send(peer):
                    return
            elif peer.ends:
                self._drop(peer)
            elif peer.request is not None:
                if not self._attend(peer, peer.request):
                    return
            elif (line := peer.next_line()) is not None:
                self._take(peer, line)
            elif len(peer.received) > LINE_LIMIT:
                self._refuse(peer, _RefusedError("garbage", f"a line has at most {LINE_LIMIT} bytes"))
            elif self._clock() >= peer.deadline:
                self._drop(peer)
            else:
                return

    def _send(self, peer: _Peer) -> bool:
        """Send what there is room for; whether there is more to do for this client now."""
        try:
            peer.to_send = peer.to_send[peer.sock.send(peer.to_send) :]
        except BlockingIOError:
            if self._clock() >= peer.deadline:
                self._drop(peer)
            return False
        except OSError:
            self._drop(peer)
            return False
        return True

    def _answer(self, peer: _Peer, answer: Mapping[str, object]) -> None:
        peer.to_send = json.dumps({"version": VERSION, **answer}).encode() + b"\n"
        peer.deadline = self._clock() + PATIENCE

    # -- what they want
    def _refuse(self, peer: _Peer, refused: _RefusedError) -> None:
        self._answer(peer, {"error": str(refused), "kind": refused.kind})
        # Whoever spoke garbage may go on in the middle of a line.
        peer.ends = refused.kind in ("garbage", "version")

    def _take(self, peer: _Peer, line: bytes) -> None:
        try:
            request = _parse(line)
            watchers = self._meant(request)
            self._limit_followers(request)
        except _RefusedError as refused:
            self._refuse(peer, refused)
            return
        if request.command == "status":
            peer.request = request if request.follow else None
            peer.shown = self._news(request)
            self._answer(peer, self._report(request))
            return
        word = self._word(request)
        for watcher in watchers:
            watcher.post(word)
        peer.request = request
        peer.wait_until = self._clock() + _DONE_WITHIN

    def _meant(self, request: _Request) -> list[Watched]:
        if request.printer is None:
            return list(self._watchers.values())
        if request.printer not in self._watchers:
            names = ", ".join(self._watchers)
            raise _RefusedError(
                "printer", f"no printer is named {request.printer[:_SHOWN]}; there are: {names}"
            )
        return [self._watchers[request.printer]]

    def _limit_followers(self, request: _Request) -> None:
        followers = [
            peer for peer in self._peers.values() if peer.request is not None and peer.request.follow
        ]
        if request.follow and len(followers) >= FOLLOWER_LIMIT:
            raise _RefusedError("busy", f"{len(followers)} clients are following already")

    def _word(self, request: _Request) -> Retry | Pause | Resume:
        match request.command:
            case "pause":
                return Pause(math.inf if request.seconds is None else self._clock() + request.seconds)
            case "resume":
                return Resume()
            case _:
                return Retry()

    def _attend(self, peer: _Peer, request: _Request) -> bool:
        """See whether there is something to answer to a client that waits; whether there was."""
        try:
            watchers = self._meant(request)
        except _RefusedError as refused:  # its printer was taken out of the configuration
            peer.request = None
            self._refuse(peer, refused)
            return True
        if request.follow:
            news = self._news(request)
            if news == peer.shown:
                return False
            peer.shown = news
            self._answer(peer, self._report(request))
            return True
        pending = [w.name for w in watchers if not _is_done(request.command, w.snapshot)]
        if pending and self._clock() < peer.wait_until:
            return False
        peer.request = None
        self._answer(peer, {**self._report(request), "pending": pending})
        return True

    def _news(self, request: _Request) -> object:
        return [(w.name, w.snapshot.news, w.snapshot.node) for w in self._meant(request)]

    # -- what they get
    def _report(self, request: _Request) -> dict[str, object]:
        events = self._events()
        watchers = self._meant(request)
        # Beside the printers stands what people like to know and `status --json` does not promise.
        return {
            "program": __version__,
            "printers": {watcher.name: self._status(watcher, events) for watcher in watchers},
            "push": {watcher.name: watcher.snapshot.push for watcher in watchers},
            "events_why": self._events_why(),
        }

    def _status(self, watcher: Watched, events: str) -> dict[str, object]:
        """One printer, as DESIGN section 6 has it."""
        shot = watcher.snapshot
        since = datetime.fromtimestamp(shot.since, UTC).isoformat(timespec="seconds")
        return {
            "state": shot.state,
            "why": shot.why,
            "port": shot.port,
            "node": shot.node,
            "octoprint": shot.octoprint,
            "holder": self._holder(watcher.name, shot.node),
            "since": since.replace("+00:00", "Z"),
            "next_look": round(max(0.0, shot.next_look - self._clock()), 1),
            "connects": shot.connects,
            "events": events,
        }

    def _holder(self, name: str, node: str | None) -> str | None:
        """Which other processes have the node open, as far as can be seen."""
        if node is None:
            return None
        looked_at, known_node, holder = self._held.get(name, (-math.inf, "", None))
        if node == known_node and self._clock() - looked_at < _HOLDER_PERIOD:
            return holder
        try:
            holder = ", ".join(str(each) for each in self._holders(node).found) or None
        except OSError:
            holder = None  # it has just gone
        self._held[name] = (self._clock(), node, holder)
        return holder


def _is_done(command: str, shot: Snapshot) -> bool:
    """Whether the watcher has done what was asked; a pause is done when the port is free of us."""
    return shot.paused and not shot.holding if command == "pause" else not shot.paused
