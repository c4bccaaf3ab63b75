"""Which serial port is the printer, and when it comes and goes: the only module that knows udev.

Knows nodes, links, USB identities and uevents.  Must not open a port, decide anything, or know OctoPrint:
it says what is there and what has changed, and the rules do the rest.

Four facts shape it:

* A monitor that has overrun raises for ever (pyudev looks at POLLERR before it reads), so it is thrown away,
  a new one is started, and the caller is told to look at everything again (`Uevent.lost`).
* Where udevd cannot be heard (most containers) libudev raises nothing and stays silent for ever.
  `surroundings` foretells that, and the kernel's own events are listened to instead.
* The kernel's events come before a node has its mode and links, and do not name the links.  An arrival is
  told when the node can be opened, and again when its links have changed, for a few seconds.
* udev's database tells a device apart only when udevd has finished with it.  Until then a node has
  neither its links nor its permissions: it is *settling*.
"""

import os
import re
import select
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, Self

import pyudev

from portretry_udev.matching import HEX_KEYS, KEYS, Candidate, Unchosen, choose, unfit
from portretry_udev.surroundings import Hearing, Surroundings

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
MATCH_KEYS = KEYS

# Majors of ptys (the kernel's Documentation/admin-guide/devices.txt): 136-143 Unix98 slaves, 3 BSD slaves.
_PTY_MAJORS = frozenset({3, *range(136, 144)})

# udevd needs about 50 ms for a USB tty (measured).  After 10 s it is not coming: the device was there before
# udevd and nobody ran `udevadm trigger`, or udevd is dead and has left its control socket behind.
_SETTLE = 10.0  # seconds

# After the kernel's word of a new device: how long its node is watched for mode and links, and how often.
# udevd takes 50 ms (measured), on a busy Raspberry Pi more; in a container nobody may ever make any.
_ARRIVAL = 3.0  # seconds
_ARRIVAL_PERIOD = 0.05  # seconds

# How often it is asked anew which events can arrive: udevd may start, or end, after us.
_RECHECK = 60.0  # seconds

# A first overrun is met at once.  If another follows within a minute, pauses of 1, 2, 4 .. 60 seconds keep
# a storm of uevents from becoming a storm of enumerations; the interval looks meanwhile.
_FIRST_PAUSE = 1.0  # seconds
_LONGEST_PAUSE = 60.0  # seconds
_CALM = 60.0  # seconds

_AT_MOST = 1000  # uevents a read; the rest keeps the descriptor readable


class NoLibudevError(Exception):
    """The shared library libudev is not installed; the message says how to get it."""


class Device(Protocol):
    """What is used of a `pyudev.Device`.

    Never ask one for its truth value: it is a mapping, and so false without properties.
    """

    action: str | None
    subsystem: str | None
    sys_name: str
    sys_path: str
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

    def monitor(self, source: str) -> Monitor:
        """Give a started monitor of tty uevents, udevd's or the kernel's; raises OSError or ValueError."""

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

    def monitor(self, source: str) -> Monitor:
        """See `Udev.monitor`."""
        monitor = pyudev.Monitor.from_netlink(self._context, source=source)
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
        appearance: of the device behind the node, as a number; one that was plugged in anew has another, also
            behind a node that a container keeps for ever.
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
    appearance: int = 0

    @property
    def identity(self) -> tuple[int, int, str]:
        """Unequal in two looks: the node, or the device behind it, was made anew in between."""
        return (self.number, self.appearance << 64 | self.inode, self.real)  # inodes have 64 bits at most


@dataclass(frozen=True)
class Missing:
    """The wanted device is not there.

    Attributes:
        why: one line for people.
        settling: it is there, but udevd has not finished with it; a uevent follows, and a look a little later
            (a second is plenty) finds it.
        kind: the same for programs; ``other``: what is there is not the printer.
        cure: the end of ``why``, where that says what to do.
    """

    why: str
    settling: bool = False
    kind: Literal["absent", "stale", "no node", "ambiguous", "other"] = field(default="absent", compare=False)
    cure: str = field(default="", compare=False)

    @property
    def fact(self) -> str:
        """``why`` without the cure."""
        return self.why.removesuffix(self.cure).rstrip(":; ")


@dataclass(frozen=True)
class Marks:
    """What udev's database says of a port for other programs to read.

    Attributes:
        tags: udev's, such as ``portretry``.
        properties: by their names, such as ``ID_MM_PORT_IGNORE``.
        known: udevd has been at it; without that there are none of either.
    """

    tags: frozenset[str]
    properties: Mapping[str, str] = field(hash=False)
    known: bool


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
        node: such as /dev/ttyACM0; empty if it has none in here.
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
        if self.lost or path is None or not self.node:  # without a node: ours may be a stale one of it
            return True
        if node is not None and (self.node == node.real or self.number == node.number):
            return True
        path = os.path.normpath(path)
        return path == self.node or path in self.links or resolved(path) == self.node


@dataclass
class _Arrival:
    """A device that the kernel has told of, whose node may not be ready.

    Attributes:
        since: when it was told of (monotonic seconds), as all times here.
        told: the links it had when we told of it; None: not yet.
        look_at: when to look at it next.
    """

    device: Device
    since: float
    told: tuple[str, ...] | None = None
    look_at: float = 0.0


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
        self._here = Surroundings(root)
        self._dev = Path(root) / "dev"
        self._clock = clock
        # libudev objects of one context must not be used by two threads at once (libudev(3)).
        self._lock = threading.Lock()
        # A descriptor of our own before the monitor's: that one changes when a monitor is replaced, and a
        # selector that has registered the old number would go deaf without an error.
        self._epoll = select.epoll()
        self._monitor: Monitor | None = None
        self._source: Literal["udev", "kernel"] = "udev"
        self._trouble = "the monitor has not been started"
        self._retry_at: float | None = None
        self._since = 0.0
        self._pause = 0.0
        self._unsettled: dict[tuple[int, int], float] = {}
        self._arrivals: dict[int, _Arrival] = {}

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
            self._arrivals.clear()
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
        """When to call `read` though nothing was heard (monotonic seconds); None before the start."""
        looks = [arrival.look_at for arrival in self._arrivals.values()]
        return min(looks, default=self._retry_at)

    def read(self) -> list[Uevent]:
        """All uevents since the last call, oldest first; never waits, and never raises for a broken monitor.

        An event with `lost` set comes *after* a new monitor has begun to listen: a look at everything that
        follows it misses nothing.
        """
        with self._lock:
            return [*self._news(), *self._arrived()]

    def _news(self) -> list[Uevent]:
        """What the monitor has; it is made anew when it is broken, or when another source is better."""
        due = self._retry_at is not None and self._clock() >= self._retry_at
        if self._monitor is None:
            return [Uevent("lost")] if due and self._listen() else []
        if due:
            self._retry_at = self._clock() + _RECHECK
            if self._source != self._better_source():
                return [Uevent("lost")] if self._listen() else []
        uevents: list[Uevent] = []
        try:
            uevents.extend(self._heard(self._monitor))
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

    def _heard(self, monitor: Monitor) -> Iterator[Uevent]:
        for _ in range(_AT_MOST):
            device = monitor.poll(0)
            if device is None:
                return
            # The kernel's filter works on hashes and lets strangers pass (device-monitor.c).
            if device.subsystem != "tty":
                continue
            number = device.device_number
            self._arrivals.pop(number, None)
            if self._source == "kernel" and device.action == "add":
                self._arrivals[number] = _Arrival(device, self._clock())
                continue
            node, links = device.device_node or "", tuple(device.device_links)
            yield Uevent(device.action or "change", node, links, number)

    def _arrived(self) -> list[Uevent]:
        """Tell of new devices that can be opened by now, and of those whose links have changed since."""
        uevents = []
        now = self._clock()
        for number, arrival in list(self._arrivals.items()):
            if now < arrival.look_at:
                continue
            arrival.look_at = now + _ARRIVAL_PERIOD
            now_there = self._udev.by_number(number)
            device = arrival.device if now_there is None else now_there
            node, links, over = self._node_of(device), _links(device), now >= arrival.since + _ARRIVAL
            if links != arrival.told and (over or (node and _openable(node))):
                action = "add" if arrival.told is None else "change"
                uevents.append(Uevent(action, node or "", links, number))
                arrival.told = links
            if over or (arrival.told is not None and device.is_initialized):
                del self._arrivals[number]
        return uevents

    def _listen(self) -> bool:
        """Make a new monitor; False, with a time to try again, if that is impossible."""
        self._drop("")
        self._source = self._better_source()
        try:
            monitor = self._udev.monitor(self._source)
        except (OSError, ValueError) as error:
            self._trouble = f"device events cannot be received here: {error}"
            self._wait()
            return False
        self._epoll.register(monitor.fileno(), select.EPOLLIN)
        self._monitor = monitor
        self._since = self._clock()
        self._retry_at = self._since + _RECHECK
        return True

    def _better_source(self) -> Literal["udev", "kernel"]:
        """Choose udevd's events where they can be heard: at the kernel's own a node is still root's alone."""
        return "udev" if self._here.hearing().events == "udev" else "kernel"

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
    def events(self) -> Literal["udev", "kernel", "none"]:
        """Whose uevents arrive here: udevd's, the kernel's, or none at all."""
        return self._hearing().events

    @property
    def events_why(self) -> str:
        """Why udevd's uevents do not arrive here, for people; empty if they do."""
        return self._hearing().why

    def _hearing(self) -> Hearing:
        """What `surroundings` foretells, as far as we listen to it."""
        if self._monitor is None:
            return Hearing("none", self._trouble)
        can = self._here.hearing()
        if can.events == self._source == "kernel":
            return Hearing("kernel", f"{can.why}; the kernel's own events are used")
        if can.events == "udev" and self._source == "kernel":
            return Hearing("kernel", "udevd can be heard since a moment ago; its events will be used soon")
        if can.events == "kernel":
            return Hearing("none", f"{can.why}; the kernel's own events will be used soon")
        return can

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
        real = path
        try:
            real = resolved(path)
            # Of `real`, not of `path`: a link that is moved between the two must not mix two devices.
            status = Path(real).stat()
        except ValueError:  # a NUL, or half a character
            return Missing("the port's name is none that a path could have", kind="other")
        except FileNotFoundError:
            return self._absent(path, real)
        except OSError as error:
            return Missing(f"{path} cannot be looked at: {error.strerror}", kind="other")
        device = self._udev.by_number(status.st_rdev) if stat.S_ISCHR(status.st_mode) else None
        if not stat.S_ISCHR(status.st_mode) or (device is not None and device.subsystem != "tty"):
            return Missing(f"{path} is not a serial port", kind="other")
        if missing := self._refused(path, real, status, device, match):
            return missing
        return _node(path, real, status, device)

    def _refused(
        self, path: str, real: str, status: os.stat_result, device: Device | None, match: Mapping[str, str]
    ) -> Missing | None:
        """Why a node that is a serial port's is not handed out."""
        if device is None:
            if os.major(status.st_rdev) not in _PTY_MAJORS and self._sees_devices():
                return self._stale(real, status.st_rdev, self._replacement(match))
        elif self._settles(device, real, status):
            return Missing(f"udev is still preparing {path}", settling=True)
        elif _is_udevs(path) and not _is_udevs(real) and device.device_node != real:
            # The link was made where nodes have the kernel's names.  This node has one that is another's.
            return self._stale(real, status.st_rdev, self._named(real))
        if complaint := unfit(_traits(device) if device is not None else {}, match):
            return Missing(f"{path} is another device: its {complaint}", kind="other")
        if device is not None and "/by-id/" in path and "path" not in match:
            return self._twins(path, device)
        return None

    def _by_match(self, match: Mapping[str, str]) -> Node | Missing:
        ports = self._real_ports()
        chosen = choose(map(_candidate, ports), match)
        if isinstance(chosen, Unchosen):
            # udevd may still be finding out the very properties that are asked for.
            settling = not chosen.fits and any(self._unready(port) for port in ports)
            return Missing(chosen.why, settling, kind="ambiguous" if chosen.fits else "absent")
        device = next(port for port in ports if port.device_node == chosen.node)
        if node := self._node_of(device):
            # With `match` again: the name may have passed to another device since.
            return self._by_path(node, match)
        return self._without_node(device)

    def _absent(self, path: str, real: str) -> Missing:
        """There is no such node.  In a container the device may be there all the same."""
        device = None if self._here.dev_is_the_kernels() else self._named(real)
        if device is None:
            return Missing(f"{path} is not there: the printer is unplugged or switched off")
        return self._without_node(device)

    def _without_node(self, device: Device) -> Missing:
        """The device is plugged in, but nothing in /dev leads to it."""
        node, number = device.device_node or "", device.device_number
        if (stale := _number(node)) is not None:
            return self._stale(node, stale, device)
        cure = self._here.cure(node, number)
        why = f"{node} is plugged in, but has no node here: {cure}"
        return Missing(why, settling=number in self._arrivals, kind="no node", cure=cure)

    def _stale(self, real: str, number: int, instead: Device | None) -> Missing:
        """The node is there, but not the device that it is for."""
        if instead is None:
            return Missing(
                f"{real} is only a node, no device {_text_of(number)} is there: "
                "the printer is unplugged or switched off"
            )
        cure = self._here.renewal(real, instead.device_number)
        return Missing(
            f"{real} is stale: it is for device {_text_of(number)}, {instead.sys_name} is "
            f"{_text_of(instead.device_number)}; {cure}",
            kind="stale",
            cure=cure,
        )

    def _replacement(self, match: Mapping[str, str]) -> Device | None:
        """What a stale node should be for: what fits, or the only USB port that has no node here."""
        ports = self._real_ports()
        if match:
            fits = [port for port in ports if not unfit(_traits(port), match)]
        else:
            fits = [port for port in ports if _usb(port) is not None and self._node_of(port) is None]
        return fits[0] if len(fits) == 1 else None

    def _named(self, node: str) -> Device | None:
        return next((port for port in self._real_ports() if port.device_node == node), None)

    def _twins(self, path: str, device: Device) -> Missing | None:
        """Two boards share one name in by-id, and the last one plugged in has it.

        Those without serial numbers do, and those whose maker gave all of them the same.
        """
        ours = _by_id_traits(device)
        twins = [port for port in self._real_ports() if _by_id_traits(port) == ours]
        if len(twins) <= 1:
            return None
        names = (_candidate(port).by_path or port.device_node or "" for port in twins)
        cure = f"set `port` to one of {', '.join(names)}"
        return Missing(f"{path} means {len(twins)} boards; {cure}", kind="ambiguous", cure=cure)

    def _node_of(self, device: Device) -> str | None:
        """Its node in here.  By its number: a container may call it anything (`docker run --device A:B`)."""
        number = device.device_number
        if device.device_node and _number(device.device_node) == number:
            return device.device_node
        if self._here.dev_is_the_kernels():
            return None
        nodes = (*sorted(self._dev.glob("*")), *sorted(self._dev.glob("serial/by-*/*")))
        return next((str(node) for node in nodes if _number(node) == number), None)

    def _sees_devices(self) -> bool:
        """Whether /sys is shown: where it is hidden, nothing can be said of what is plugged in."""
        return next(iter(self._udev.ttys()), None) is not None

    def _unready(self, device: Device) -> bool:
        node = device.device_node or ""
        try:
            return self._settles(device, node, Path(node).stat())
        except OSError:
            return False

    def _settles(self, device: Device, real: str, status: os.stat_result) -> bool:
        """Whether somebody has yet to finish with this device; true for a few seconds at most."""
        if status.st_rdev in self._arrivals and not _openable(real):
            return True
        key = (status.st_rdev, status.st_ino)
        if device.is_initialized or not self._here.udevd_is_here():
            self._unsettled.pop(key, None)
            return False
        return self._clock() - self._unsettled.setdefault(key, self._clock()) < _SETTLE

    def marks(self, node: Node) -> Marks | None:
        """What udev's database says of it; None: the kernel knows no such device (a pty, or no /sys)."""
        with self._lock:
            device = self._udev.by_number(node.number)
            if device is None:
                return None
            properties = dict(device.properties)
            tags = frozenset(properties.get("TAGS", "").split(":")) - {""}
            return Marks(tags, properties, device.is_initialized)

    def usb_folder(self, node: Node) -> Path | None:
        """Where sysfs has the USB device that a port belongs to; None: it belongs to none."""
        with self._lock:
            device = self._udev.by_number(node.number)
            usb = None if device is None else _usb(device)
            return None if usb is None else Path(usb.sys_path)

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
        _appearance(device),
    )


def _appearance(device: Device) -> int:
    """The inode of a device's folder in sysfs; the kernel counts them up, and gives none twice in a row."""
    try:
        return Path(device.sys_path).stat().st_ino
    except OSError:
        return 0


def _candidate(device: Device) -> Candidate:
    by_path = next((link for link in _links(device) if "/by-path/" in link), None)
    return Candidate(device.device_node or "", _traits(device), by_path)


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


def resolved(path: str) -> str:
    """The path behind all links; of one that vanishes meanwhile, itself.

    os.path.realpath raises FileNotFoundError when a link is gone between its two looks at it (Python 3.11).

    Raises:
        ValueError: no path could have that name.
    """
    try:
        return os.path.realpath(path)
    except OSError:
        return path


def _links(device: Device) -> tuple[str, ...]:
    """by-id before by-path before others.  Where udev has no database, those that lie in /dev."""
    links = set(device.device_links)
    if not device.is_initialized and device.device_node:
        links |= {
            str(link)
            for link in Path("/dev/serial").glob("by-*/*")
            if resolved(str(link)) == device.device_node
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
    return {key: value.lower() if key in HEX_KEYS else value for key, value in traits.items() if value}


def _by_id_traits(device: Device) -> dict[str, str]:
    """What the name in /dev/serial/by-id is made of (60-serial.rules)."""
    traits = {key: value for key, value in _traits(device).items() if key != "path"}
    return traits | {"name": _usb_attribute(device, "product") or ""}


def _usb(device: Device) -> Device | None:
    """The USB device a port belongs to, not the hubs above it: they have serials too."""
    return next((each for each in device.ancestors if each.attributes.get("idVendor")), None)


def _usb_attribute(device: Device, name: str) -> str | None:
    usb = _usb(device)
    value = usb.attributes.get(name) if usb is not None else None
    return _text(value) if value else None


def _text(value: bytes) -> str:
    return value.decode(errors="replace").strip()


def _is_udevs(path: str) -> bool:
    return os.path.normpath(path).startswith("/dev/serial/")


def _number(node: str | Path) -> int | None:
    """Major and minor of a node that is there."""
    try:
        status = Path(node).stat()
    except OSError:
        return None
    return status.st_rdev if stat.S_ISCHR(status.st_mode) else None


def _openable(node: str) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def _text_of(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _natural(name: str) -> list[tuple[str, int]]:
    """A sort key by which ttyUSB2 comes before ttyUSB10, and both after ttyACM11."""
    return [(letters, int(digits or 0)) for letters, digits in re.findall(r"(\D*)(\d*)", name)]
