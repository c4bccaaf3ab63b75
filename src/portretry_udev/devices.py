"""Which serial port is the printer, and when it comes and goes: the only module that knows udev.

Knows nodes, links, USB identities and uevents.  Must not open a port, decide anything, or know OctoPrint:
it says what is there and what has changed, and the rules do the rest.

Three facts shape it:

* A monitor that has overrun raises for ever (pyudev looks at POLLERR before it reads), so it is thrown away,
  a new one is started, and the caller is told to look at everything again (`Uevent.lost`).
* Where udevd cannot be heard (most containers) libudev raises nothing and stays silent for ever.
  `Devices.events` finds that out from the same conditions that libudev and the kernel go by.
* udev's database tells a device apart only when udevd has finished with it.  Until then a node has
  neither its links nor its permissions: it is *settling*.
"""

import os
import re
import select
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, Self

import pyudev

# Key of `Wanted.match` -> the udev property that 60-serial.rules and usb_id set, and the USB attribute in
# sysfs that stands in where there is no udev database (containers).
_PROPERTY = {
    "serial": "ID_SERIAL_SHORT",
    "vendor": "ID_VENDOR_ID",
    "product": "ID_MODEL_ID",
    "path": "ID_PATH",
    "interface": "ID_USB_INTERFACE_NUM",
}
_USB_ATTRIBUTE = {"serial": "serial", "vendor": "idVendor", "product": "idProduct"}
MATCH_KEYS = frozenset(_PROPERTY)
_HEX_KEYS = frozenset({"vendor", "product", "interface"})

# Majors of ptys (the kernel's Documentation/admin-guide/devices.txt): 136-143 Unix98 slaves, 3 BSD slaves.
_PTY_MAJORS = frozenset({3, *range(136, 144)})

# udevd needs about 50 ms for a USB tty (measured).  After 10 s it is not coming: the device was there before
# udevd and nobody ran `udevadm trigger`, or udevd is dead and has left its control socket behind.
_SETTLE = 10.0  # seconds

# A first overrun is met at once.  If another follows within a minute, pauses of 1, 2, 4 .. 60 seconds keep
# a storm of uevents from becoming a storm of enumerations; the interval looks meanwhile.
_FIRST_PAUSE = 1.0  # seconds
_LONGEST_PAUSE = 60.0  # seconds
_CALM = 60.0  # seconds

_AT_MOST = 1000  # uevents a read; the rest keeps the descriptor readable
_UEVENT_PROTOCOL = "15"  # NETLINK_KOBJECT_UEVENT in <linux/netlink.h>
_KERNEL_GROUP = 1  # the multicast group that udevd itself listens to


class NoLibudevError(Exception):
    """The shared library libudev is not installed; the message says how to get it."""


class Device(Protocol):
    """What is used of a `pyudev.Device`.

    Never ask one for its truth value: it is a mapping, and so false without properties.
    """

    action: str | None
    subsystem: str | None
    sys_name: str
    driver: str | None
    device_node: str | None
    device_number: int
    device_links: Iterable[str]
    is_initialized: bool
    properties: Mapping[str, str]
    attributes: "Attributes"
    ancestors: Iterable["Device"]


class Attributes(Protocol):
    """What is used of `pyudev.Attributes`: the files of a device in sysfs."""

    def get(self, attribute: str, /) -> bytes | None:
        """Give the content of a file, None if there is none or it may not be read."""


class Monitor(Protocol):
    """What is used of a `pyudev.Monitor`, which is started when it is handed over."""

    def fileno(self) -> int:
        """Give the descriptor to wait on."""

    def poll(self, timeout: float, /) -> Device | None:
        """Give the next device that has news; after an overrun every call raises OSError."""


class Udev(Protocol):
    """The seam for tests: all that is ever asked of libudev."""

    def monitor(self) -> Monitor:
        """Give a started monitor of tty uevents; raises OSError or ValueError."""

    def by_number(self, number: int) -> Device | None:
        """Give the character device of that number, if the kernel has one."""

    def ttys(self) -> Iterable[Device]:
        """Give all devices of the subsystem tty."""


class Libudev:
    """libudev by way of pyudev.

    Raises:
        NoLibudevError: the library is not installed.
    """

    def __init__(self) -> None:
        try:
            self._context = pyudev.Context()
        except ImportError as error:
            raise NoLibudevError("libudev is missing: install it with `apt install libudev1`") from error

    def monitor(self) -> Monitor:
        """See `Udev.monitor`.  Source "udev": at the kernel's own event the node is still root's alone."""
        monitor = pyudev.Monitor.from_netlink(self._context, source="udev")
        monitor.filter_by("tty")
        monitor.start()
        return monitor  # type: ignore[no-any-return]

    def by_number(self, number: int) -> Device | None:
        """See `Udev.by_number`; ptys are unknown to the kernel's device model and thus give None."""
        try:
            return pyudev.Devices.from_device_number(self._context, "char", number)  # type: ignore[no-any-return]
        except pyudev.DeviceNotFoundError:
            return None

    def ttys(self) -> Iterable[Device]:
        """See `Udev.ttys`."""
        return self._context.list_devices(subsystem="tty")  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Wanted:
    """Which device is the printer: a node or a link to it, or what udev must say of it, or both.

    Attributes:
        path: the node as configured, such as ``/dev/serial/by-id/...``.
        match: keys `MATCH_KEYS`; all of them must fit.

    Raises:
        ValueError: a key of `match` is unknown.
    """

    path: str | None = None
    match: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.match) - MATCH_KEYS):
            raise ValueError(f"match has unknown keys: {', '.join(unknown)}")
        object.__setattr__(self, "match", MappingProxyType(dict(self.match)))


@dataclass(frozen=True)
class Node:
    """A device node that is there and is the wanted one.

    Attributes:
        path: as configured.
        real: the same with all links followed.
        number: major and minor (st_rdev); what tells whether two nodes are one device.
        inode: of the real node; a node that was made anew has another one.
        modem: whether opening it can raise DTR and so reset a board; False for a pty.
        vendor: the USB vendor id in four lower-case hex digits.
        serial: the USB serial number.
        links: all links that udev has made to it, by-id before by-path.
        driver: the kernel driver, such as cdc_acm or ch341-uart.
    """

    path: str
    real: str
    number: int
    inode: int
    modem: bool
    vendor: str | None = None
    serial: str | None = None
    links: tuple[str, ...] = ()
    driver: str | None = None

    @property
    def identity(self) -> tuple[int, int, str]:
        """Unequal in two looks: the node was made anew in between."""
        return (self.number, self.inode, self.real)


@dataclass(frozen=True)
class Missing:
    """The wanted device is not there.

    Attributes:
        why: one line for people.
        settling: it is there, but udevd has not finished with it; a uevent follows, and a look a little later
            (a second is plenty) finds it.
    """

    why: str
    settling: bool = False


@dataclass(frozen=True)
class Port:
    """One serial port, for people who look for theirs; the fields are None where nothing is known."""

    node: str
    by_id: str | None = None
    by_path: str | None = None
    vendor: str | None = None
    product: str | None = None
    serial: str | None = None
    name: str | None = None
    driver: str | None = None


@dataclass(frozen=True)
class Uevent:
    """A serial port was added, changed or removed.

    Attributes:
        action: udev's word: add, change, remove, ..; or "lost": events were dropped, look at everything.
        node: such as /dev/ttyACM0.
        links: the links to it; a removal still carries those that have just gone.
        number: major and minor (st_rdev).
    """

    action: str
    node: str = ""
    links: tuple[str, ...] = ()
    number: int = 0

    @property
    def lost(self) -> bool:
        """Whether events were dropped, so that only a look at everything helps."""
        return self.action == "lost"

    def concerns(self, path: str | None, node: Node | None) -> bool:
        """Whether this may be about our printer.

        Args:
            path: as configured; None if the printer is matched by its properties: then every event may be.
            node: the printer's node as last seen, if it was there.
        """
        if self.lost or path is None:
            return True
        if node is not None and (self.node == node.real or self.number == node.number):
            return True
        path = os.path.normpath(path)
        return path == self.node or path in self.links or os.path.realpath(path) == self.node


class Devices:
    """The serial ports of this machine, and the news of them.

    `start` it before the first `find`, or a printer plugged in between is missed.  `fileno` stays the same
    for the life of the object, also across a lost monitor, so it is registered once; wait on it
    level-triggered (poll, select, epoll's default), and call `read` also when `retry_at` has come.
    `find` and `ports` may be called from any thread; `start`, `read` and `close` belong to one.

    Args:
        udev: libudev, or a fake of it.
        root: where /run/udev and /proc are, for tests.
        clock: monotonic seconds.

    Raises:
        NoLibudevError: libudev is not installed.
    """

    def __init__(
        self, udev: Udev | None = None, root: str = "/", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._udev = udev if udev is not None else Libudev()
        self._root = Path(root)
        self._clock = clock
        # libudev objects of one context must not be used by two threads at once (libudev(3)).
        self._lock = threading.Lock()
        # A descriptor of our own before the monitor's: that one changes when a monitor is replaced, and a
        # selector that has registered the old number would go deaf without an error.
        self._epoll = select.epoll()
        self._monitor: Monitor | None = None
        self._trouble = "the monitor has not been started"
        self._retry_at: float | None = None
        self._since = 0.0
        self._pause = 0.0
        self._unsettled: dict[tuple[int, int], float] = {}

    def start(self) -> None:
        """Begin to listen.

        Where that is impossible nothing is raised: `events` says so, and `read` tries again.
        """
        with self._lock:
            self._listen()

    def close(self) -> None:
        """Stop listening and give the descriptors back."""
        with self._lock:
            self._drop("the monitor is closed")
            self._retry_at = None
            self._epoll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._epoll.fileno()

    @property
    def retry_at(self) -> float | None:
        """When to call `read` though nothing was heard (monotonic seconds); None while listening."""
        return self._retry_at

    def read(self) -> list[Uevent]:
        """All uevents since the last call, oldest first; never waits, and never raises for a broken monitor.

        An event with `lost` set comes last and *after* a new monitor has begun to listen: a look at
        everything that follows it misses nothing.
        """
        with self._lock:
            if self._monitor is None:
                due = self._retry_at is not None and self._clock() >= self._retry_at
                return [Uevent("lost")] if due and self._listen() else []
            uevents: list[Uevent] = []
            try:
                uevents.extend(_heard(self._monitor))
            # ValueError is pyudev's word for EINVAL: a message that was cut short.
            except (OSError, ValueError) as error:
                trouble = f"device events were lost ({error}); listening again soon"
            else:
                return uevents
            # Not in the handler: there the traceback would keep the old monitor, and so its socket, alive.
            self._drop(trouble)
            if self._hold_back() or not self._listen():
                return uevents
            return [*uevents, Uevent("lost")]

    def _listen(self) -> bool:
        """Make a new monitor; False, with a time to try again, if that is impossible."""
        self._drop("")
        try:
            monitor = self._udev.monitor()
        except (OSError, ValueError) as error:
            self._trouble = f"device events cannot be received here: {error}"
            self._wait()
            return False
        self._epoll.register(monitor.fileno(), select.EPOLLIN)
        self._monitor = monitor
        self._retry_at = None
        self._since = self._clock()
        return True

    def _hold_back(self) -> bool:
        """Whether the monitor was lost again so soon that the next one has to wait."""
        if self._clock() - self._since >= _CALM:
            self._pause = 0.0
        if self._pause:
            self._wait()
            return True
        self._pause = _FIRST_PAUSE
        return False

    def _wait(self) -> None:
        self._pause = max(self._pause, _FIRST_PAUSE)
        self._retry_at = self._clock() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _drop(self, why: str) -> None:
        if self._monitor is not None:
            self._epoll.unregister(self._monitor.fileno())
        self._monitor = None
        self._trouble = why

    @property
    def events(self) -> Literal["udev", "none"]:
        """Whether uevents can arrive here at all."""
        return "none" if self.events_why else "udev"

    @property
    def events_why(self) -> str:
        """Why no uevents can arrive here, for people; empty if they can.

        The conditions are libudev's own (device_monitor_new_full: without /run/udev/control it listens
        only if /dev is a devtmpfs) and the kernel's (multicasts stay in their network namespace).  One case
        is not found: a user namespace of 65536 ids in the host's network, where libudev drops all messages.
        """
        if self._monitor is None:
            return self._trouble
        if not (self._udevd_is_here() or _is_devtmpfs(self._root / "proc/self/mountinfo")):
            return (
                "this looks like a container: /run/udev is not mounted and /dev is not the host's, "
                "so libudev listens to nothing; the interval does the work"
            )
        if not _has_udevd(self._root / "proc/net/netlink"):
            return (
                "no udevd is in this network namespace: it is not running, or this is a container "
                "with a network of its own; the interval does the work"
            )
        return ""

    def _udevd_is_here(self) -> bool:
        return os.access(self._root / "run/udev/control", os.F_OK)

    def find(self, wanted: Wanted) -> Node | Missing:
        """Look for the wanted device; nothing is opened.

        Where udev has no database, vendor, product, serial and interface come from sysfs.
        """
        with self._lock:
            if wanted.path is not None:
                return self._by_path(wanted.path, wanted.match)
            if wanted.match:
                return self._by_match(wanted.match)
        return Missing("no port is named: set `port`, or `match`")

    def _by_path(self, path: str, match: Mapping[str, str]) -> Node | Missing:
        real = os.path.realpath(path)
        try:
            # Of `real`, not of `path`: a link that is moved between the two must not mix two devices.
            status = Path(real).stat()
        except FileNotFoundError:
            return Missing(f"{path} is not there: the printer is unplugged or switched off")
        except OSError as error:
            return Missing(f"{path} cannot be looked at: {error.strerror}")
        device = self._udev.by_number(status.st_rdev) if stat.S_ISCHR(status.st_mode) else None
        if not stat.S_ISCHR(status.st_mode) or (device is not None and device.subsystem != "tty"):
            return Missing(f"{path} is not a serial port")
        if device is not None and self._settles(device, status):
            return Missing(f"udev is still preparing {path}", settling=True)
        if unfit := _unfit(device, match):
            return Missing(f"{path} is another device: its {unfit}")
        return _node(path, real, status, device)

    def _by_match(self, match: Mapping[str, str]) -> Node | Missing:
        ports = self._real_ports()
        fits = [port for port in ports if not _unfit(port, match)]
        wish = " ".join(f"{key}={value}" for key, value in match.items())
        if len(fits) > 1:
            return Missing(f"{len(fits)} serial ports fit {wish}: {_apart(fits)}")
        if not fits:
            # udevd may still be finding out the very properties that are asked for.
            settling = any(self._unready(port) for port in ports)
            return Missing(f"no serial port fits {wish}: the printer is unplugged or switched off", settling)
        node = fits[0].device_node or ""
        if not os.access(node, os.F_OK):
            return Missing(f"{node} fits {wish}, but that node is not in /dev: a container must be given it")
        # With `match` again: the name may have passed to another device since.
        return self._by_path(node, match)

    def _unready(self, device: Device) -> bool:
        try:
            return self._settles(device, Path(device.device_node or "").stat())
        except OSError:
            return False

    def _settles(self, device: Device, status: os.stat_result) -> bool:
        """Whether udevd runs and has yet to finish with this device; true for `_SETTLE` seconds at most."""
        key = (status.st_rdev, status.st_ino)
        if device.is_initialized or not self._udevd_is_here():
            self._unsettled.pop(key, None)
            return False
        return self._clock() - self._unsettled.setdefault(key, self._clock()) < _SETTLE

    def ports(self) -> list[Port]:
        """All serial ports that have hardware, in the order a person would put them."""
        with self._lock:
            return [_port(device) for device in self._real_ports()]

    def _real_ports(self) -> list[Device]:
        return sorted(filter(_has_hardware, self._udev.ttys()), key=lambda device: _natural(device.sys_name))


def _heard(monitor: Monitor) -> Iterator[Uevent]:
    for _ in range(_AT_MOST):
        device = monitor.poll(0)
        if device is None:
            return
        # The kernel's filter works on hashes and lets strangers pass (device-monitor.c).
        if device.subsystem == "tty":
            yield Uevent(
                device.action or "change",
                device.device_node or "",
                tuple(device.device_links),
                device.device_number,
            )


def _node(path: str, real: str, status: os.stat_result, device: Device | None) -> Node:
    modem = os.major(status.st_rdev) not in _PTY_MAJORS
    if device is None:  # a pty; or a container that hides /sys
        return Node(path, real, status.st_rdev, status.st_ino, modem)
    traits = _traits(device)
    return Node(
        path,
        real,
        status.st_rdev,
        status.st_ino,
        modem,
        traits.get("vendor"),
        traits.get("serial"),
        _links(device),
        _driver(device),
    )


def _port(device: Device) -> Port:
    traits = _traits(device)
    links = _links(device)
    properties = device.properties
    name = properties.get("ID_MODEL_FROM_DATABASE") or properties.get("ID_MODEL", "").replace("_", " ")
    return Port(
        device.device_node or "",
        next((link for link in links if "/by-id/" in link), None),
        next((link for link in links if "/by-path/" in link), None),
        traits.get("vendor"),
        traits.get("product"),
        traits.get("serial"),
        _usb_attribute(device, "product") or name or None,
        _driver(device),
    )


def _has_hardware(device: Device) -> bool:
    """Tell real ports from virtual consoles and from the 8250 driver's spare places (ttyS1, ttyS2, ..)."""
    if device.device_node is None or next(iter(device.ancestors), None) is None:
        return False
    # 0 is PORT_UNKNOWN in <linux/serial_core.h>; older kernels show the type to root and dialout only.
    kind = device.attributes.get("type")
    return _driver(device) != "serial8250" if kind is None else kind.strip() != b"0"


def _driver(device: Device) -> str | None:
    """The driver of the nearest ancestor that has one; Linux 6.5 put two empty "serial-base" ones before."""
    return next(
        (each.driver for each in device.ancestors if each.driver and each.subsystem != "serial-base"), None
    )


def _links(device: Device) -> tuple[str, ...]:
    """by-id before by-path before others.  Where udev has no database, those that lie in /dev."""
    links = set(device.device_links)
    if not device.is_initialized and device.device_node:
        links |= {
            str(link)
            for link in Path("/dev/serial").glob("by-*/*")
            if os.path.realpath(link) == device.device_node
        }
    return tuple(sorted(links, key=lambda link: ("/by-id/" not in link, "/by-path/" not in link, link)))


def _traits(device: Device) -> dict[str, str]:
    """What is known of a device, by the keys of `Wanted.match`."""
    traits = {key: device.properties.get(name) for key, name in _PROPERTY.items()}
    for key, name in _USB_ATTRIBUTE.items():
        traits[key] = traits[key] or _usb_attribute(device, name)
    if not traits["interface"]:
        numbers = (each.attributes.get("bInterfaceNumber") for each in device.ancestors)
        traits["interface"] = next((_text(number) for number in numbers if number), None)
    return {key: value.lower() if key in _HEX_KEYS else value for key, value in traits.items() if value}


def _usb_attribute(device: Device, name: str) -> str | None:
    """An attribute of the USB device a port belongs to, not of the hubs above it: they have serials too."""
    usb = next((each for each in device.ancestors if each.attributes.get("idVendor")), None)
    value = usb.attributes.get(name) if usb is not None else None
    return _text(value) if value else None


def _text(value: bytes) -> str:
    return value.decode(errors="replace").strip()


def _unfit(device: Device | None, match: Mapping[str, str]) -> str:
    """The first key that does not fit, with what is there instead; empty if all fit."""
    if not match:
        return ""
    traits = _traits(device) if device is not None else {}
    for key, wish in match.items():
        found = traits.get(key)
        if found is None:
            return f"{key} is unknown, not {wish}"
        if _plain(key, found) != _plain(key, wish):
            return f"{key} is {found}, not {wish}"
    return ""


def _plain(key: str, value: str) -> str:
    if key in _HEX_KEYS:
        return value.lower().removeprefix("0x").lstrip("0")
    return "_".join(value.split())  # as udev writes blanks in a serial number


def _apart(devices: Sequence[Device]) -> str:
    """Name the devices, and what a person could add to `match` to mean one of them."""
    nodes = [device.device_node or "" for device in devices]
    traits = [_traits(device) for device in devices]
    for key in ("serial", "path", "interface", "product", "vendor"):
        values = [each.get(key, "") for each in traits]
        if len(set(values)) == len(values):
            told = ", ".join(
                f"{node} has {key}={value or '(none)'}" for node, value in zip(nodes, values, strict=True)
            )
            return f"{told}; add one of these to `match`"
    return f"{', '.join(nodes)}; nothing tells them apart: set `port` to a link in /dev/serial/by-path"


def _natural(name: str) -> list[tuple[str, int]]:
    """A sort key by which ttyUSB2 comes before ttyUSB10, and both after ttyACM11."""
    return [(letters, int(digits or 0)) for letters, digits in re.findall(r"(\D*)(\d*)", name)]


def _is_devtmpfs(mountinfo: Path) -> bool:
    """Whether /dev is the kernel's own; of several mounts there the last is seen (format: proc(5))."""
    kind = ""
    for line in _lines(mountinfo):
        mount, _, source = line.partition(" - ")
        if mount.split()[4] == "/dev":
            kind = source.split()[0]
    return kind == "devtmpfs"


def _has_udevd(netlink: Path) -> bool:
    """Whether anybody in this network namespace listens to the kernel's uevents; an unreadable list says yes.

    Columns: socket, protocol, port, groups in hex (net/netlink/af_netlink.c, netlink_native_seq_show).
    """
    rows = [line.split() for line in _lines(netlink)]
    listening = (row for row in rows[1:] if row[1] == _UEVENT_PROTOCOL and int(row[3], 16) & _KERNEL_GROUP)
    return not rows or any(listening)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
