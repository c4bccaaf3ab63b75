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
_LISTENS = "0A"  # TCP_LISTEN, in the kernel's include/net/tcp_states.h

# Programs that listen for an OctoPrint elsewhere, by the 15 characters that the kernel keeps of a name.
PROXIES = frozenset(
    {
        "apache2",
        "caddy",
        "cloudflared",
        "conmon",
        "docker-proxy",
        "envoy",
        "haproxy",
        "httpd",
        "lighttpd",
        "nginx",
        "pasta",
        "rootlessport",
        "slirp4netns",
        "socat",
        "ssh",
        "sshd",
        "stunnel",
        "stunnel4",
        "systemd",
        "systemd-socket-",
        "tailscaled",
        "traefik",
        "varnishd",
    }
)


def seen(peer: tuple[str, int] | None, proc: Path = Path("/proc")) -> bool:
    """Whether the OctoPrint at this address can be looked into.

    It can if all processes that are called like it can, or if the one that listens there can: unless that is
    a proxy, or we ourselves.

    Args:
        peer: address and port that our own connection to it leads to; None: there is none.
        proc: for tests.
    """
    if peer is None or not is_ours(peer[0]):
        return False
    found = [_readable(proc / str(pid)) for pid in like_octoprint(proc)]
    if found:
        return all(found)
    return any(name not in PROXIES and _readable(proc / str(pid)) for pid, name in _listening(peer[1], proc))


def is_ours(address: str) -> bool:
    """Whether an address is one of this machine: only those can be bound to."""
    address = address.partition("%")[0] or "nowhere"  # an empty one would mean any
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def _others(proc: Path) -> list[int]:
    with os.scandir(proc) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid()]


def _listening(port: int, proc: Path) -> Iterator[tuple[int, str]]:
    """Processes that listen on a TCP port in our network namespace, and their names."""
    sockets = {
        f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _inodes(proc / "net" / table, port)
    }
    if not sockets:
        return
    for pid in _others(proc):
        with contextlib.suppress(OSError):  # it has ended, or is not for us to see
            if any(str(fd.readlink()) in sockets for fd in (proc / str(pid) / "fd").iterdir()):
                yield pid, (proc / str(pid) / "comm").read_text(errors="replace").strip()


def _inodes(table: Path, port: int) -> Iterator[str]:
    """Those of the sockets that listen on it, whatever the address; proc_pid_net(5)."""
    with contextlib.suppress(OSError):  # no IPv6 here
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENS and words[1].endswith(f":{port:04X}"):
                yield words[9]


def like_octoprint(proc: Path = Path("/proc")) -> Iterator[int]:
    """Processes started as ``octoprint``, ``python .../octoprint`` or ``python -m octoprint``."""
    for pid in _others(proc):
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
