"""Is that OctoPrint a process that can be seen from here?

Knows /proc and addresses.  Must not know ports (``port`` counts who holds one), nor what follows from it.

Nobody seen holding a port means nothing where OctoPrint's own process is hidden: in another container, on
another machine, or as another user's without CAP_SYS_PTRACE.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_NAME = "octoprint"


def seen(peer: str | None, proc: Path = Path("/proc")) -> bool:
    """Whether all that may be the OctoPrint at this address can be looked into, and something may be.

    Args:
        peer: the address that our own connection to it leads to; None: there is none.
        proc: for tests.
    """
    if peer is None or not is_ours(peer):
        return False
    found = [_readable(proc / str(pid)) for pid in _like_octoprint(proc)]
    return bool(found) and all(found)


def is_ours(address: str) -> bool:
    """Whether an address is one of this machine: only those can be bound to."""
    address = address.partition("%")[0] or "nowhere"  # an empty one would mean any
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def _like_octoprint(proc: Path) -> Iterator[int]:
    """Processes started as ``octoprint``, ``python .../octoprint`` or ``python -m octoprint``."""
    with os.scandir(proc) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended
            words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
            names = {
                PurePosixPath(os.fsdecode(word)).stem.lower() for word in words[:3] if b"://" not in word
            }
            if _NAME in names:
                yield pid


def _readable(process: Path) -> bool:
    """Whether its descriptors can be followed; a process that has ended is none that could hold anything."""
    try:
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                descriptor.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
