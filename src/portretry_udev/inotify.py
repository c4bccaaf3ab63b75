"""The kernel's file notifications (inotify(7)), and nothing else.

Knows descriptors and masks.  Must not know what a printer or a port is.  The standard library has no
inotify, and a dependency for three system calls would be the fifth of a project that has four.
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple, Self

# Values from <sys/inotify.h>; part of the kernel's ABI.
CLOSE_WRITE = 0x008
CLOSE_NOWRITE = 0x010
OPEN = 0x020
MOVED_FROM = 0x040
MOVED_TO = 0x080
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
OVERFLOW = 0x4000
IGNORED = 0x8000

_HEADER = struct.Struct("iIII")  # wd, mask, cookie, length of the name
_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One notification: the watch it belongs to, what happened, and the name inside a watched folder."""

    wd: int
    mask: int
    name: str


class Inotify:
    """One inotify instance: non-blocking, closed on exec.

    A user has 128 of them (fs.inotify.max_user_instances).  Where there is none left, this one is deaf: it
    takes no watch and tells of nothing.

    Raises:
        OSError: the instance or a watch could not be made (ENOSPC: the user's limit of watches).
    """

    def __init__(self) -> None:
        self._deaf = False
        try:
            self._fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as e:
            if e.errno != errno.EMFILE:
                raise
            self._deaf = True
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # to be waited on, in vain
        self._parts: list[Part] = []

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._fd

    def add(self, path: str | os.PathLike[str], mask: int) -> int:
        """Watch a path (links are followed) and return the watch's number."""
        if self._deaf:
            raise OSError(errno.EMFILE, "no inotify instance left, see fs.inotify.max_user_instances")
        return _check(_libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)), path)

    def remove(self, wd: int) -> None:
        """Stop a watch; one that has ended by itself (its file is gone) is no error."""
        if _libc.inotify_rm_watch(self._fd, wd) < 0 and (code := ctypes.get_errno()) != errno.EINVAL:
            raise OSError(code, os.strerror(code))

    def read(self) -> list[Event]:
        """All that has been notified since the last call, oldest first; never waits."""
        events: list[Event] = []
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return events
            at = 0
            while at < len(data):
                wd, mask, _cookie, length = _HEADER.unpack_from(data, at)
                at += _HEADER.size
                name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
                events.append(Event(wd, mask, name))
                at += length

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def part(self) -> "Part":
        """A part of it with watches of its own: the kernel gives a user 128 instances in all, not watches."""
        part = Part(self)
        self._parts.append(part)
        return part

    def waiting(self) -> bool:
        """Whether a part has what the reading of another one has brought."""
        return any(part.came for part in self._parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Part:
    """Watches of one kind; whoever reads them leaves to the other parts what is theirs."""

    def __init__(self, whole: Inotify) -> None:
        self._whole = whole
        self._watches: set[int] = set()
        self.came: list[Event] = []

    def add(self, path: str | os.PathLike[str], mask: int) -> int:
        """As `Inotify.add`."""
        wd = self._whole.add(path, mask)
        self._watches.add(wd)
        return wd

    def remove(self, wd: int) -> None:
        """As `Inotify.remove`."""
        self._whole.remove(wd)

    def read(self) -> list[Event]:
        """As `Inotify.read`, but of these watches only."""
        for event in self._whole.read():
            for part in self._whole._parts:  # noqa: SLF001 - two halves of one thing
                if event.wd in part._watches:  # noqa: SLF001
                    part.came.append(event)
                    if event.mask & IGNORED:
                        part._watches.discard(event.wd)  # noqa: SLF001
        came, self.came = self.came, []
        return came


def _check(result: int, path: str | os.PathLike[str] | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
