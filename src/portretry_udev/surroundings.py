"""Where we run: which device events can arrive here, and what a container has to be given.

Knows namespaces, mounts, and the marks that containers leave.  Must not know ports or printers, and listens
to nothing: it foretells what would be heard, because whoever hears nothing gets no error.

Who sends what to whom (measured with tests/system/test_containers.py, kernels 6.1 and 6.18):

* udevd's events stay in its network namespace.  libudev asks for them only where /run/udev/control is, or
  where /dev is a devtmpfs (device_monitor_new_full in systemd's device-monitor.c).
* The kernel's go to every network namespace that belongs to the initial user namespace (Linux 4.18, "netns:
  restrict uevents").
* libudev drops both unless the sender is root; in a user namespace that has no name for the host's root, it
  is nobody.
"""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CONTROL = "run/udev/control"
_INITIAL_USER = 0xEFFFFFFD  # inode of the initial user namespace (PROC_USER_INIT_INO in <linux/proc_ns.h>)
_NS_GET_USERNS = 0xB701  # <linux/nsfs.h>; on x86, arm, arm64 and riscv

_DOCKER_DEV = "`-v /dev:/dev --device-cgroup-rule 'c {}:* rmw'`"


@dataclass(frozen=True)
class Hearing:
    """Which events can arrive: udevd's, else the kernel's, else none.

    ``why`` tells people why it is not udevd's; it is empty if it is.
    """

    events: Literal["udev", "kernel", "none"]
    why: str = ""


class Surroundings:
    """The machine or container that this process is in.

    Args:
        root: where /proc, /run and the rest are, for tests.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = Path(root)

    def hearing(self) -> Hearing:
        """Foretell which events can arrive here."""
        restricted = self._network_is_restricted()
        if not restricted and not self._knows_root():
            return Hearing(
                "none",
                "device events do not pass into this container's user namespace; "
                "file notifications and the interval do the work",
            )
        reason = self._udevd_is_silent()
        if not reason:
            return Hearing("udev")
        if restricted:
            return Hearing(
                "none",
                "device events do not pass into this unprivileged container's network; "
                "file notifications and the interval do the work",
            )
        return Hearing("kernel", reason)

    def _udevd_is_silent(self) -> str:
        if not (self.udevd_is_here() or self.dev_is_the_kernels()):
            return "this looks like a container: /run/udev is not mounted and /dev is not the host's"
        if not self._udevd_runs():
            return (
                "no udevd is in this network namespace: it is not running, or this is a container "
                "with a network of its own"
            )
        return ""

    def udevd_is_here(self) -> bool:
        """Whether udevd's own folder is, and with it its database."""
        return os.access(self._root / _CONTROL, os.F_OK)

    def dev_is_the_kernels(self) -> bool:
        """Whether /dev is a devtmpfs, where nodes come and go by themselves.

        Of several mounts there the last is seen (format: proc(5)).
        """
        kind = ""
        for line in self._lines("proc/self/mountinfo"):
            mount, _, source = line.partition(" - ")
            if mount.split()[4] == "/dev":
                kind = source.split()[0]
        return kind == "devtmpfs"

    def _udevd_runs(self) -> bool:
        """Whether a udevd has its control socket in this network namespace; an unreadable list says yes.

        The file itself may be another namespace's, bound into this one, or what a dead udevd has left.  Not
        by who listens to the kernel: others do so too, we among them.
        """
        sockets = self._lines("proc/net/unix")  # the path is the last column (unix(7))
        return not sockets or any(line.endswith(f" /{_CONTROL}") for line in sockets)

    def _network_is_restricted(self) -> bool:
        """Whether our network namespace belongs to another than the initial user namespace.

        The kernel tells the owner only to those who are in it or above it; so who is not told is below it.
        """
        try:
            network = os.open(self._root / "proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            owner = fcntl.ioctl(network, _NS_GET_USERNS)
        except OSError:
            return False
        finally:
            os.close(network)
        try:
            return os.fstat(owner).st_ino != _INITIAL_USER
        finally:
            os.close(owner)

    def _knows_root(self) -> bool:
        """Whether the host's root is root here too; columns: first id here, first id there, how many."""
        rows = [line.split() for line in self._lines("proc/self/uid_map")]
        return not rows or any(row[:2] == ["0", "0"] for row in rows)

    def manager(self) -> str:
        """What runs the container: docker, podman, lxc, systemd-nspawn, ..; empty if nothing says so."""
        for file, name in (("run/.containerenv", "podman"), (".dockerenv", "docker")):
            if (self._root / file).exists():
                return name
        # systemd's container interface: by the manager, and by the systemd inside.
        for file in ("run/host/container-manager", "run/systemd/container"):
            if lines := self._lines(file):
                return lines[0].strip()
        for file in ("proc/1/environ", "proc/self/environ"):  # the first one may be kept from us
            for word in "".join(self._lines(file)).split("\0"):
                if word.startswith("container="):
                    return word.removeprefix("container=")
        return ""

    def cure(self, node: str, number: int) -> str:
        """What makes a device that is plugged in a node in here, for people.

        The recipes are those of docs/containers.md.

        Args:
            node: what the kernel calls it, such as /dev/ttyUSB1.
            number: its major and minor (st_rdev).
        """
        major, minor = os.major(number), os.minor(number)
        manager = self.manager()
        if manager in {"docker", "podman"}:
            return f"start the container with {_DOCKER_DEV.format(major)}"
        if manager == "systemd-nspawn":
            kind = Path(node).name.rstrip("0123456789")  # its driver's name in /proc/devices
            return (
                f"on the host: `machinectl bind --mkdir CONTAINER {node}`, "
                f"and for its unit DeviceAllow=char-{kind} (systemctl set-property)"
            )
        if manager.startswith("lxc") and not self._knows_root():
            return (
                f"on the host: make a node `c {major} {minor}` that its root may use, and in its "
                f"configuration `lxc.mount.entry: NODE {node[1:]} none bind,create=file`"
            )
        made = f"`mknod -m 660 {node} c {major} {minor}`"
        if manager.startswith("lxc"):
            return f"`lxc.cgroup2.devices.allow: c {major}:* rwm` in its configuration, and in it {made}"
        return f"in here: {made}; a container must also be allowed to use `c {major}:*`"

    def renewal(self, node: str, number: int) -> str:
        """What makes a stale node the right one again, for people; arguments as for `cure`."""
        manager = self.manager()
        if manager in {"docker", "podman"}:
            # Docker's restart follows anew the link that --device was given; Podman's does not.
            restart = ", or restart it if its --device is a link" if manager == "docker" else ""
            return f"start the container with {_DOCKER_DEV.format(os.major(number))}{restart}"
        if not self._knows_root():
            return f"on the host: bind a node `c {os.major(number)} {os.minor(number)}` over it"
        return f"in here: `rm {node}; mknod -m 660 {node} c {os.major(number)} {os.minor(number)}`"

    def _lines(self, name: str) -> list[str]:
        with contextlib.suppress(OSError):
            return (self._root / name).read_text(encoding="utf-8", errors="replace").splitlines()
        return []
