"""The local socket behind ``status``, ``retry``, ``pause`` and ``resume``: its lines, and the clients' end.

Knows where the socket is, the lines that go over it, and how to ask.  Must not know how the service answers
(``control_server``), nor what a printer is up to beyond what its `Snapshot` says.

A client sends JSON objects, one a line of at most `LINE_LIMIT` bytes, and gets one line back for each::

    {"version": 1, "command": "status", "printer": "mk3", "follow": false}
    {"version": 1, "command": "pause", "seconds": 600}
    -> {"version": 1, "printers": {"mk3": {"state": "paused", ...}}, "push": {"mk3": true}, "pending": []}
    -> {"version": 1, "error": "no printer is named mk4; there are: mk3", "kind": "printer"}

``program`` in an answer is the version of the package that the service was started from.
``printer`` left out means all of them.  With ``follow``, one more line comes at each change.  ``pending``
names printers that have not yet done what was asked.  After a line that is not understood we hang up.
"""

import contextlib
import grp
import json
import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portretry_udev.tally import Tally

VERSION = 1
SYSTEM_PATH = Path("/run/portretry-udev/control.sock")
LINE_LIMIT = 4096  # bytes of a request; ours have some 80
PATIENCE = 10.0  # seconds for a client to send a request, or to take an answer and send the next
LONGEST_PAUSE = 366 * 86400.0  # seconds; who wants more leaves the duration out

DONE_PERIOD = 0.02  # seconds between looks whether it is done
_ANSWER_LIMIT = 1 << 20  # bytes; an answer has some 500 a printer
_PEER = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid; of a client, of whoever listened


class ControlError(Exception):
    """What went wrong, in one line for people; ``status`` is the exit status that says so (sysexits(3))."""

    def __init__(self, what: str, status: int, kind: str = "") -> None:
        super().__init__(what)
        self.status = status
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a watcher shows of itself to other threads.

    Attributes:
        state: one of the states of DESIGN section 6.
        why: one sentence a person can act on.
        port: what is looked for: a path, or the properties that are matched; None: nobody named any.
        node: the real node that was found, or None.
        octoprint: what OctoPrint last said of itself; None: it does not answer.
        since: of the state, in seconds since 1970.
        next_look: when the interval looks again, in seconds of the monotonic clock.
        connects: how many connect commands were given.
        paused: a person's word that is obeyed now.
        holding: our end of the port is open.
        news: unequal when there is something worth telling; it counts no seconds.
        push: OctoPrint tells of its changes by itself; None: it is not asked to.
        tally: what was counted since the service began.
    """

    state: str
    why: str
    port: str | None
    node: str | None
    octoprint: str | None
    since: float
    next_look: float
    connects: int
    paused: bool
    holding: bool
    news: tuple[str, str] | None
    push: bool | None = None
    tally: Tally = field(default_factory=Tally)


# -- where it is -------------------------------------------------------------------------------------------
def default_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a service makes its socket: systemd's ``RuntimeDirectory=``, root's folder, or the user's."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        folder = given.split(":")[0]  # systemd.exec(5): several are separated by colons
        return Path(folder) / SYSTEM_PATH.name
    if os.geteuid() == 0:
        return SYSTEM_PATH
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Path(runtime) / "portretry-udev" / SYSTEM_PATH.name


def _candidates(path: Path | None) -> list[Path]:
    """Where a client looks for a service: its own user's, then root's."""
    return [path] if path is not None else list(dict.fromkeys([default_path(), SYSTEM_PATH]))


# -- the clients -------------------------------------------------------------------------------------------
_STATUSES = {"printer": os.EX_USAGE, "garbage": os.EX_USAGE, "busy": os.EX_TEMPFAIL}


def ask(path: Path | None, command: str, **wishes: object) -> dict[str, Any]:
    """Ask the service once.

    Args:
        path: of its socket; None: where one is by default.
        command: ``status``, ``retry``, ``pause`` or ``resume``.
        wishes: the rest of the request; None is: not given.

    Raises:
        ControlError: no service is there, it may not be asked, or it refuses.
    """
    with contextlib.closing(_answers(path, command, wishes)) as answers:
        return next(answers)


def server_pid(path: Path | None) -> int | None:
    """Which process is the service, by its socket; None: none is there, or it is out of our sight."""
    try:
        sock, _ = _connect(_candidates(path))
    except ControlError:
        return None
    with sock:
        pid, _, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(pid) or None


def follow(path: Path | None, printer: str | None) -> Generator[dict[str, Any], None, None]:
    """Get the state of things at once, and again at each change; ends with an error, since services do not.

    Raises:
        ControlError: as `ask`; also when the service ends.
    """
    return _answers(path, "status", {"printer": printer, "follow": True})


def _answers(
    path: Path | None, command: str, wishes: Mapping[str, object]
) -> Generator[dict[str, Any], None, None]:
    wanted = {key: value for key, value in wishes.items() if value is not None}
    request = json.dumps({"version": VERSION, "command": command, **wanted}).encode() + b"\n"
    sock, where = _connect(_candidates(path))
    with sock, sock.makefile("rb") as lines:
        try:
            sock.sendall(request)
            while line := lines.readline(_ANSWER_LIMIT):
                yield _understood(line, where)
                sock.settimeout(None)  # the next change may be hours away
        except TimeoutError:
            raise ControlError(f"the service at {where} does not answer", os.EX_UNAVAILABLE) from None
        except OSError as e:
            raise ControlError(f"the service at {where} hung up: {e.strerror or e}", os.EX_UNAVAILABLE) from e
    raise ControlError(f"the service at {where} has ended", os.EX_UNAVAILABLE)


def _understood(line: bytes, where: Path) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or answer.get("version") != VERSION or answer.get("kind") == "version":
        raise ControlError(
            f"the service at {where} is of another version: restart it (systemctl restart portretry-udev)",
            os.EX_UNAVAILABLE,
        )
    if "error" in answer:
        kind = str(answer.get("kind"))
        raise ControlError(str(answer["error"]), _STATUSES.get(kind, os.EX_UNAVAILABLE), kind)
    return answer


def _connect(candidates: list[Path]) -> tuple[socket.socket, Path]:
    """The first service that is there."""
    for path in candidates:
        sock = socket.socket(socket.AF_UNIX)
        try:
            _connect_within(sock, path, PATIENCE)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            sock.close()
        except PermissionError:
            sock.close()
            raise ControlError(_who_may(path), os.EX_NOPERM) from None
        except OSError as e:
            sock.close()
            raise ControlError(f"{path}: {e.strerror or e}", os.EX_UNAVAILABLE) from e
        else:
            return sock, path
    where = " or ".join(str(path) for path in candidates)
    raise ControlError(
        f"no service answers at {where}: is it running? see: systemctl status portretry-udev",
        os.EX_UNAVAILABLE,
    )


def _connect_within(sock: socket.socket, path: Path, seconds: float) -> None:
    sock.settimeout(seconds)
    end = time.monotonic() + seconds
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError:  # as many as can are waiting to be let in
            if time.monotonic() > end:
                raise TimeoutError("the service does not answer") from None
            time.sleep(DONE_PERIOD)
        else:
            return


def _who_may(path: Path) -> str:
    """What to do about a socket that is not for us."""
    try:
        found = path.stat()
    except OSError:
        return f"{path}: permission denied: try sudo"
    if not found.st_mode & stat.S_IWGRP:
        return f"{path}: permission denied: only {_user(found.st_uid)} may use it; try sudo"
    group = _group(found.st_gid)
    return (
        f"{path}: permission denied: it is for root and the group {group}; join that "
        f"(sudo usermod -aG {group} {_user(os.geteuid())}, then log in again), or use sudo"
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
