"""What `devices` promises, told with a small fake of libudev and with real ptys; no root, no hardware."""

import gc
import os
import select
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pyudev

from portretry_udev.devices import Devices, Libudev, Missing, Node, NoLibudevError, Uevent, Wanted

PROC = "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
HOST_DEV = "24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,mode=755\n"
OWN_DEV = "31 27 0:40 / /dev rw,nosuid - tmpfs tmpfs rw,mode=755\n"
SOCKETS = "Num       RefCount Protocol Flags    Type St Inode Path\n"
UDEVD = "000000006e0b4ad1: 00000002 00000000 00010000 0005 01 23456 /run/udev/control\n"


@dataclass(eq=False)
class FakeDevice:
    """A `pyudev.Device` as far as we use it; like the real one it must not be asked for its truth."""

    sys_name: str = "ttyACM0"
    device_node: str | None = "/dev/ttyACM0"
    device_number: int = os.makedev(166, 0)
    action: str | None = None
    subsystem: str | None = "tty"
    driver: str | None = None
    device_links: tuple[str, ...] = ()
    is_initialized: bool = True
    properties: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, bytes] = field(default_factory=dict)
    ancestors: tuple["FakeDevice", ...] = ()
    sys_path: str = "/no/such/folder"

    def __len__(self) -> int:
        raise AssertionError("pyudev warns about this, and it is 0 for a device without properties")


def usb(serial: str | None = "CZPX1", vendor: str = "2c99", product: str = "0002", driver: str = "cdc_acm"):
    """The ancestors of a USB port: interface, device, and a hub that has ids and a serial of its own."""
    ids = {"idVendor": f"{vendor}\n".encode(), "idProduct": f"{product}\n".encode(), "product": b"Printer\n"}
    if serial:
        ids["serial"] = f"{serial}\n".encode()
    return (
        FakeDevice(subsystem="usb", driver=driver, attributes={"bInterfaceNumber": b"00\n"}),
        FakeDevice(subsystem="usb", driver="usb", attributes=ids),
        FakeDevice(
            subsystem="usb", driver="usb", attributes={"idVendor": b"1d6b\n", "serial": b"0000:00:14.0\n"}
        ),
    )


class FakeMonitor:
    """A `pyudev.Monitor`: what is queued comes one by one; an error comes for ever, as after an overrun."""

    def __init__(self, *queue: FakeDevice | Exception) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._queue: list[FakeDevice | Exception] = []
        self.add(*queue)

    def __del__(self) -> None:
        os.close(self._fd)

    def add(self, *queue: FakeDevice | Exception) -> None:
        if queue:
            self._queue += queue
            os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        return self._fd

    def poll(self, timeout: float) -> FakeDevice | None:
        assert timeout == 0, "nothing here may wait"
        if not self._queue:
            return None
        if isinstance(self._queue[0], Exception):
            raise type(self._queue[0])(*self._queue[0].args)
        device = self._queue.pop(0)
        if not self._queue:
            os.eventfd_read(self._fd)
        return device


class FakeUdev:
    """libudev: devices, and monitors in the order they will be made (an error: it cannot be made)."""

    def __init__(self, *devices: FakeDevice) -> None:
        self.devices = list(devices)
        self.monitors: list[FakeMonitor | Exception] = []
        self.made = 0
        self.sources: list[str] = []

    def monitor(self, source: str) -> FakeMonitor:
        self.made += 1
        self.sources.append(source)
        following = self.monitors.pop(0) if self.monitors else FakeMonitor()
        if isinstance(following, Exception):
            raise following
        return following

    def by_number(self, number: int) -> FakeDevice | None:
        return next((device for device in self.devices if device.device_number == number), None)

    def ttys(self) -> list[FakeDevice]:
        return self.devices


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host: udevd runs, and /dev is the kernel's."""
    (tmp_path / "run/udev").mkdir(parents=True)
    (tmp_path / "run/udev/control").touch()
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(HOST_DEV)
    (tmp_path / "proc/net").mkdir()
    (tmp_path / "proc/net/unix").write_text(SOCKETS + UDEVD)
    return tmp_path


@pytest.fixture
def udev() -> FakeUdev:
    return FakeUdev()


@pytest.fixture
def devices(udev: FakeUdev, root: Path, clock: Clock) -> Iterator[Devices]:
    with Devices(udev, str(root), clock) as made:
        yield made


@pytest.fixture
def pty() -> Iterator[Callable[[], str]]:
    """Make ptys: char devices that anybody may have, standing in for nodes."""
    fds: list[int] = []

    def make() -> str:
        fds.extend(os.openpty())
        return os.ttyname(fds[-1])

    yield make
    for fd in fds:
        os.close(fd)


def port(node: str, **fields) -> FakeDevice:
    """A USB serial port whose node is really there."""
    return FakeDevice(
        **{
            "sys_name": Path(node).name,
            "device_node": node,
            "device_number": Path(node).stat().st_rdev,
            "ancestors": usb(),
        }
        | fields
    )


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def readable(devices: Devices) -> bool:
    return bool(select.select([devices.fileno()], [], [], 0)[0])


OVERRUN = OSError("Error while polling fd: 5")  # word for word what pyudev raises, without an errno


# Listening


def test_uevents_come_in_order_with_all_they_say(devices, udev):
    """Action, node, links and number of every event since the last call, oldest first; then nothing."""
    links = ("/dev/serial/by-id/usb-X-if00",)
    udev.monitors = [FakeMonitor(FakeDevice(action="add", device_links=links), FakeDevice(action="remove"))]
    devices.start()

    assert readable(devices)
    assert devices.read() == [
        Uevent("add", "/dev/ttyACM0", links, os.makedev(166, 0)),
        Uevent("remove", "/dev/ttyACM0", (), os.makedev(166, 0)),
    ]
    assert devices.read() == []
    assert not readable(devices)


def test_what_passes_the_kernel_s_filter_by_mistake_is_dropped_here(devices, udev):
    """The kernel filters by hash: a disk that got through is not told."""
    udev.monitors = [FakeMonitor(FakeDevice(subsystem="block", action="add"), FakeDevice(action="change"))]
    devices.start()

    assert [uevent.action for uevent in devices.read()] == ["change"]


def test_one_read_is_bounded_and_the_rest_is_not_forgotten(devices, udev):
    """A flood is read in portions: the descriptor stays readable until all is read."""
    udev.monitors = [FakeMonitor(*(FakeDevice(action="change", device_number=n) for n in range(1500)))]
    devices.start()

    first = devices.read()

    assert readable(devices)
    assert [uevent.number for uevent in first + devices.read()] == list(range(1500))


@pytest.mark.parametrize("error", [OVERRUN, ValueError("Invalid argument")], ids=["overrun", "cut short"])
def test_lost_events_are_told_when_a_new_monitor_listens(devices, udev, error):
    """Promise 9: "lost" comes after what could still be read; later events come through the new monitor."""
    fresh = FakeMonitor()
    udev.monitors = [FakeMonitor(FakeDevice(action="add"), error), fresh]
    devices.start()
    before = devices.fileno()

    uevents = devices.read()

    assert [uevent.action for uevent in uevents] == ["add", "lost"]
    assert uevents[-1].lost
    assert udev.made == 2, "the new one is there before the word is given"
    fresh.add(FakeDevice(action="remove"))
    assert devices.fileno() == before
    assert readable(devices)
    assert [uevent.action for uevent in devices.read()] == ["remove"]


def test_a_broken_monitor_is_let_go(devices, udev):
    """The old socket is closed at once: a full one would hold its memory for ever."""
    broken = FakeMonitor(OSError("overrun"))
    released = weakref.ref(broken)
    udev.monitors = [broken]
    devices.start()
    del broken
    gc.disable()
    try:
        devices.read()
        assert released() is None
    finally:
        gc.enable()


def test_a_broken_monitor_that_is_not_let_go_wakes_nobody(devices, udev):
    """Should anything hold it, it is no longer waited on: it would be readable for ever."""
    broken = FakeMonitor(OVERRUN)
    udev.monitors = [broken]
    devices.start()
    devices.read()

    assert select.select([broken], [], [], 0)[0] == [broken]
    assert not readable(devices)


def test_overruns_one_after_another_are_met_ever_more_slowly(devices, udev, clock):
    """The first is met at once, the next after 1, 2, 4 .. 60 seconds, with nothing to wake for meanwhile."""
    udev.monitors = [FakeMonitor(OVERRUN) for _ in range(12)]
    devices.start()
    assert devices.read() == [Uevent("lost")]
    pauses = []
    for _ in range(8):
        assert devices.read() == []
        assert not readable(devices)
        assert devices.events == "none"
        assert "lost" in devices.events_why
        pauses.append(devices.retry_at - clock.now)
        clock.now = devices.retry_at - 0.001
        assert devices.read() == [], "not before its time"
        clock.now = devices.retry_at
        assert devices.read() == [Uevent("lost")]
        assert devices.events == "udev"

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_after_a_calm_minute_an_overrun_is_met_at_once_again(devices, udev, clock):
    """The pauses are for storms: one overrun a day costs no pause."""
    udev.monitors = [FakeMonitor(OVERRUN), FakeMonitor(OVERRUN), FakeMonitor(OVERRUN)]
    devices.start()
    devices.read()
    clock.now += 60

    assert devices.read() == [Uevent("lost")]
    assert devices.events == "udev"


@pytest.mark.parametrize(
    "error", [OSError(97, "Address family not supported"), ValueError("Invalid argument")]
)
def test_without_netlink_nothing_is_raised_but_it_is_told_and_tried_again(devices, udev, clock, error):
    """Promise 9: a sandbox without netlink is survived; once it is lifted, everything is looked at."""
    udev.monitors = [error, error]
    devices.start()

    assert devices.events == "none"
    assert str(error) in devices.events_why
    assert devices.read() == []
    clock.now = devices.retry_at
    assert devices.read() == [], "still impossible"
    assert devices.retry_at > clock.now
    clock.now = devices.retry_at
    assert devices.read() == [Uevent("lost")]
    assert devices.events == "udev"


def test_a_year_without_netlink_does_not_hammer(devices, udev, clock):
    """The pause stays at a minute: it neither overflows nor shrinks."""
    udev.monitors = [OSError("no")] * 5000
    devices.start()
    end = clock.now + 24 * 3600
    while clock.now < end:
        clock.now = devices.retry_at
        assert devices.read() == []

    assert udev.made < 24 * 60 + 10


def test_before_the_start_and_after_the_end_nothing_is_heard(udev, root, clock):
    """Reading is harmless at any time, and what `events` says is true."""
    devices = Devices(udev, str(root), clock)
    assert (devices.events, devices.read()) == ("none", [])
    assert "not been started" in devices.events_why
    udev.monitors = [FakeMonitor(FakeDevice(action="add"))]
    devices.start()
    devices.close()

    assert (devices.events, devices.read()) == ("none", [])


def test_closing_gives_every_descriptor_back(udev, root):
    """No descriptor is left, whatever has happened before."""
    before = open_files()
    with Devices(udev, str(root)) as devices:
        udev.monitors = [FakeMonitor(OVERRUN)]
        devices.start()
        devices.read()

    assert open_files() == before


# Whether events can arrive at all


OVER = 3.0  # seconds for which an arrival is watched


def into_a_container(root: Path) -> None:
    """Its own /dev, no /run/udev: udevd cannot be heard, the kernel can."""
    (root / "run/udev/control").unlink()
    (root / "proc/self/mountinfo").write_text(OWN_DEV)
    (root / "dev").mkdir()


def test_udevd_is_listened_to_where_it_can_be_heard(devices, udev):
    """On a host: its events come when the node has its mode and links."""
    devices.start()

    assert udev.sources == ["udev"]
    assert (devices.events, devices.events_why) == ("udev", "")


def test_the_kernel_is_listened_to_where_udevd_cannot_be_heard(devices, udev, root):
    """Promise 9: libudev would listen to nothing there, without an error."""
    into_a_container(root)
    devices.start()

    assert udev.sources == ["kernel"]
    assert devices.events == "kernel"
    assert devices.events_why == (
        "this looks like a container: /run/udev is not mounted and /dev is not the host's; "
        "the kernel's own events are used"
    )


def test_where_nothing_can_be_heard_this_is_told(devices, root):
    """Promise 9: a container with users of its own hears nobody, and it is told what does the work."""
    (root / "proc/self/uid_map").write_text("0 100000 65536\n")
    devices.start()

    assert devices.events == "none"
    assert "the interval do the work" in devices.events_why


def test_a_udevd_that_starts_after_us_is_found(devices, udev, root, clock):
    """Within a minute its events are used, and all is looked at; until then the kernel's are heard."""
    (root / "proc/net/unix").write_text(SOCKETS)
    devices.start()
    (root / "proc/net/unix").write_text(SOCKETS + UDEVD)
    assert devices.events == "kernel"
    assert "can be heard" in devices.events_why
    assert devices.read() == []
    assert devices.retry_at - clock.now <= 60
    clock.now = devices.retry_at

    assert devices.read() == [Uevent("lost")]
    assert udev.sources == ["kernel", "udev"]
    assert (devices.events, devices.events_why) == ("udev", "")


def test_a_udevd_that_ends_for_good_is_done_without(devices, udev, root, clock):
    """Its end is told at once, and within a minute the kernel's events are used."""
    devices.start()
    (root / "proc/net/unix").write_text(SOCKETS)
    assert devices.events == "none"
    assert "no udevd" in devices.events_why
    clock.now = devices.retry_at

    assert devices.read() == [Uevent("lost")]
    assert udev.sources == ["udev", "kernel"]
    assert devices.events == "kernel"


def test_as_long_as_nothing_changes_a_minute_s_look_costs_no_event(devices, udev, clock):
    """The look at who can be heard wakes no printer's thread."""
    devices.start()
    for _ in range(100):
        clock.now = devices.retry_at
        assert devices.read() == []

    assert udev.made == 1


# Arrivals that the kernel tells of


@pytest.fixture
def arrival(devices, udev, root) -> Callable[..., None]:
    """In a container: the kernel says that a device has come."""
    into_a_container(root)
    monitor = FakeMonitor()
    udev.monitors = [monitor]
    devices.start()

    def say(node: str, action: str = "add", **fields) -> None:
        monitor.add(port(node, action=action, **fields))

    return say


def test_an_arrival_is_told_as_soon_as_its_node_can_be_opened(devices, udev, arrival, pty):
    """A node that is ready, as to root it is at once, is not waited for."""
    node = pty()
    udev.devices = [port(node)]
    arrival(node)

    assert devices.read() == [Uevent("add", node, (), Path(node).stat().st_rdev)]


def test_an_arrival_is_told_again_when_it_has_links(devices, udev, arrival, pty, clock):
    """The kernel knows no links: a printer named by one is found when the host's udevd has made it."""
    node = pty()
    number = Path(node).stat().st_rdev
    udev.devices = [port(node, is_initialized=False)]
    arrival(node, is_initialized=False)
    assert devices.read() == [Uevent("add", node, (), number)]
    assert devices.retry_at == clock.now + 0.05
    clock.now += 0.05
    assert devices.read() == []
    links = ("/dev/serial/by-id/usb-1",)
    udev.devices = [port(node, is_initialized=False, device_links=links)]
    clock.now += 0.05

    assert devices.read() == [Uevent("change", node, links, number)]


@pytest.mark.usefixtures("arrival")
def test_an_arrival_without_a_node_is_told_in_the_end(devices, udev, clock):
    """In a container that has not been given the node: bounded, and then said with what to give."""
    gone = FakeDevice(action="add", device_node="/dev/no-such-port", ancestors=usb())
    udev.devices = [gone]
    udev.monitors = []
    devices._monitor.add(gone)
    assert devices.read() == []
    assert devices.find(Wanted("/dev/no-such-port")).settling
    told_at = clock.now + OVER
    while clock.now < told_at:
        assert devices.read() == []
        assert devices.retry_at - clock.now <= 0.05
        clock.now = devices.retry_at

    assert devices.read() == [Uevent("add", "", (), gone.device_number)]
    assert devices.retry_at - clock.now > 1, "nothing more is to be seen of it"
    missing = devices.find(Wanted("/dev/no-such-port"))
    assert missing == Missing(
        "/dev/no-such-port is plugged in, but has no node here: in here: `mknod -m 660 /dev/no-such-port "
        "c 166 0`; a container must also be allowed to use `c 166:*`"
    )


@pytest.fixture
def nobody(monkeypatch) -> None:
    """Nothing may be opened; by root, as which tests may run, everything may."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK and access(path, mode))


@pytest.mark.usefixtures("nobody")
def test_a_node_that_cannot_be_opened_yet_is_settling(devices, udev, arrival, pty, clock):
    """At the kernel's word a node is root's alone; in a few seconds whoever makes it ours has done so."""
    node = pty()
    udev.devices = [port(node, is_initialized=False)]
    arrival(node, is_initialized=False)

    assert devices.read() == []
    assert devices.find(Wanted(node)) == Missing(f"udev is still preparing {node}", settling=True)
    clock.now += OVER
    assert [uevent.action for uevent in devices.read()] == ["add"]
    assert isinstance(devices.find(Wanted(node)), Node), "what is wrong with it, an open will say"


@pytest.mark.usefixtures("arrival")
def test_an_arrival_that_goes_again_is_not_told(devices, clock):
    """Plugged and pulled within the wait: only the removal counts."""
    arrived = FakeDevice(action="add", device_node="/dev/no-such-port", ancestors=usb())
    devices._monitor.add(arrived)
    devices.read()
    devices._monitor.add(FakeDevice(action="remove", device_node="/dev/no-such-port"))

    assert [uevent.action for uevent in devices.read()] == ["remove"]
    clock.now += OVER
    assert devices.read() == []


def test_an_arrival_is_watched_also_while_no_monitor_listens(devices, udev, clock, arrival, pty):
    """Overrun upon overrun, and a device has just come: it is told of, and nothing spins meanwhile."""
    node = pty()
    udev.monitors = [FakeMonitor(OVERRUN)]
    arrival(node, is_initialized=False, device_node="/dev/no-such-port")
    assert devices.read() == []
    devices._monitor.add(OVERRUN)
    assert devices.read() == [Uevent("lost")]
    told = devices.read()
    rounds = 0
    while not told:
        assert devices.events == "none", "held back"
        assert devices.retry_at > clock.now
        clock.now = devices.retry_at
        told = devices.read()
        rounds += 1

    assert told == [Uevent("lost")]
    assert rounds <= 1.0 / 0.05 + 2
    clock.now += OVER
    assert [uevent.action for uevent in devices.read()] == ["add"]


def test_udevd_s_own_arrivals_are_not_waited_for(devices, udev, pty):
    """On a host udevd has finished when it speaks."""
    node = pty()
    udev.monitors = [FakeMonitor(port(node, action="add", is_initialized=False))]
    devices.start()

    assert [uevent.action for uevent in devices.read()] == ["add"]


# Nodes that a container keeps


TTYUSB0, TTYUSB1 = os.makedev(188, 0), os.makedev(188, 1)


@pytest.fixture
def kept(root, pty, monkeypatch) -> str:
    """A node in a container, for a number of our choice: 188:0."""
    into_a_container(root)
    node = pty()
    real = Path.stat

    def stat(self, **options):
        status = real(self, **options)
        return os.stat_result((*status[:10],), {"st_rdev": TTYUSB0}) if str(self) == node else status

    monkeypatch.setattr(Path, "stat", stat)
    return node


def test_a_node_without_its_device_is_an_absent_printer(devices, udev, kept):
    """PortRetry's case: a container keeps the node though the printer is off; sysfs knows better."""
    udev.devices = [FakeDevice("ttyS0", "/dev/ttyS0", os.makedev(4, 64), ancestors=usb(driver="serial"))]
    udev.devices[0].ancestors = (FakeDevice(driver="serial"),)

    assert devices.find(Wanted(kept)).why == (
        f"{kept} is only a node, no device 188:0 is there: the printer is unplugged or switched off"
    )


def test_a_stale_node_is_recognised_and_named_with_its_cure(devices, udev, kept):
    """The printer has come back as ttyUSB1: that is said, and what to write."""
    udev.devices = [FakeDevice("ttyUSB1", "/dev/no-such-port", TTYUSB1, ancestors=usb())]
    said = (
        f"{kept} is stale: it is for device 188:0, ttyUSB1 is 188:1; "
        f"in here: `rm {kept}; mknod -m 660 {kept} c 188 1`"
    )

    found = devices.find(Wanted(kept))
    assert found.why == said
    assert (found.kind, f"{found.fact}; {found.cure}") == ("stale", said)
    assert devices.find(Wanted(kept, {"serial": "CZPX1"})).why == said


def test_a_stale_node_is_not_said_to_be_a_neighbour(devices, udev, kept):
    """Which of two other printers it should be nobody knows; with `match` it is known not to be one."""
    udev.devices = [
        FakeDevice(f"ttyUSB{n}", f"/dev/no-such-port{n}", os.makedev(188, n), ancestors=usb(f"S{n}"))
        for n in (1, 2)
    ]

    assert "only a node" in devices.find(Wanted(kept)).why
    assert "only a node" in devices.find(Wanted(kept, {"serial": "CZPX1"})).why
    assert "ttyUSB2 is 188:2" in devices.find(Wanted(kept, {"serial": "S2"})).why


def test_a_stale_node_that_is_made_right_is_the_printer(devices, udev, kept):
    """Recovered from without a restart: the next look takes it."""
    udev.devices = [FakeDevice("ttyUSB1", "/dev/no-such-port", TTYUSB1, ancestors=usb())]
    assert isinstance(devices.find(Wanted(kept)), Missing)
    udev.devices = [FakeDevice("ttyUSB0", kept, TTYUSB0, ancestors=usb())]

    assert devices.find(Wanted(kept)).number == TTYUSB0


def test_a_printer_plugged_in_anew_behind_a_kept_node_has_another_identity(devices, udev, kept, tmp_path):
    """Off and on between two looks, with no event: the node is the same, the device is not."""
    identities = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        udev.devices = [FakeDevice("ttyUSB0", kept, TTYUSB0, ancestors=usb(), sys_path=str(tmp_path / name))]
        identities |= {devices.find(Wanted(kept)).identity for _ in range(2)}

    assert len(identities) == 2


def test_where_sysfs_is_hidden_a_node_is_taken_as_it_is(devices, kept):
    """Nothing can be said of what is plugged in; the open will tell."""
    assert isinstance(devices.find(Wanted(kept)), Node)


def test_a_node_of_another_name_is_found_by_its_number(devices, udev, root, pty):
    """`docker run --device /dev/ttyACM0:/dev/printer`: a match finds it, and an arrival names it."""
    into_a_container(root)
    node = pty()
    (root / "dev/printer").symlink_to(node)
    device = FakeDevice("ttyACM0", "/dev/no-such-port", Path(node).stat().st_rdev, ancestors=usb())
    udev.devices = [device]
    udev.monitors = [FakeMonitor(FakeDevice(**(vars(device) | {"action": "add"})))]
    devices.start()

    assert devices.find(Wanted(match={"serial": "CZPX1"})).real == node
    assert [uevent.node for uevent in devices.read()] == [str(root / "dev/printer")]


def test_a_link_that_vanishes_while_it_is_followed(devices, monkeypatch):
    """An unplug in that very moment is an unplug: Python 3.11's realpath raises then."""

    def vanishes(_path):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.path.realpath", vanishes)
    assert "is not there" in devices.find(Wanted("/dev/serial/by-id/usb-gone-if00")).why
    assert not Uevent("add", "/dev/ttyACM1").concerns("/dev/serial/by-id/usb-gone-if00", None)


def test_two_boards_that_share_a_name_are_not_taken_by_it(devices, udev, pty, tmp_path):
    """Promise 7: two CH340 have one by-id link, and it leads to the one that was plugged in last."""
    one, two = pty(), pty()
    (tmp_path / "by-id").mkdir()
    link = tmp_path / "by-id/usb-1a86_USB_Serial-if00-port0"
    link.symlink_to(two)
    boards = [
        port(node, ancestors=usb(None, "1a86", "7523"), device_links=(f"/dev/serial/by-path/{n}",))
        for n, node in enumerate((one, two))
    ]
    udev.devices = boards

    found = devices.find(Wanted(str(link)))
    assert (found.kind, found.fact) == ("ambiguous", f"{link} means 2 boards")
    assert found.why == (
        f"{link} means 2 boards; set `port` to one of /dev/serial/by-path/0, /dev/serial/by-path/1"
    )
    assert isinstance(devices.find(Wanted(two)), Node), "by its node or by-path link it is one"
    udev.devices = boards[1:]
    assert isinstance(devices.find(Wanted(str(link))), Node), "alone it has the name for itself"
    udev.devices = [port(one, ancestors=usb("A1")), port(two, ancestors=usb("A2"))]
    assert isinstance(devices.find(Wanted(str(link))), Node), "serial numbers make names of their own"
    udev.devices = [port(one, ancestors=usb("A1")), port(two, ancestors=usb("A1"))]
    assert "means 2 boards" in devices.find(Wanted(str(link))).why, "but not if all are given the same"


# Looking for a device by its path


def test_a_node_is_described_by_its_number_and_what_udev_knows(devices, udev, pty, tmp_path):
    """Links are followed, and the printer's identity comes along."""
    node = pty()
    link = tmp_path / "printer"
    link.symlink_to(node)
    by_path, by_id = "/dev/serial/by-path/pci-1", "/dev/serial/by-id/usb-1"
    udev.devices = [
        port(node, device_links=("/dev/zzz", by_path, by_id), properties={"ID_VENDOR_ID": "2C99"})
    ]

    found = devices.find(Wanted(str(link)))

    status = Path(node).stat()
    assert found == Node(
        path=str(link),
        real=node,
        number=status.st_rdev,
        inode=status.st_ino,
        modem=False,
        vendor="2c99",
        serial="CZPX1",
        links=(by_id, by_path, "/dev/zzz"),
        driver="cdc_acm",
    )


def test_a_pty_is_a_port_without_modem_lines(devices, pty):
    """To udev there are no ptys: the node is good all the same, and opening it resets no board."""
    node = pty()

    found = devices.find(Wanted(node))

    assert isinstance(found, Node)
    assert (found.modem, found.vendor, found.serial, found.links, found.driver) == (
        False,
        None,
        None,
        (),
        None,
    )


def test_any_other_tty_is_taken_to_have_modem_lines(devices, udev):
    """What is not known to be a pty may reset its board when it is opened."""
    udev.devices = [port("/dev/null", is_initialized=True)]

    found = devices.find(Wanted("/dev/null"))

    assert isinstance(found, Node)
    assert found.modem


def test_a_node_made_anew_has_another_identity(devices, pty, tmp_path):
    """Two looks, and the cable was pulled in between: seen without any event."""
    link = tmp_path / "printer"
    identities = []
    for node in (pty(), pty()):
        link.unlink(missing_ok=True)
        link.symlink_to(node)
        identities.append(devices.find(Wanted(str(link))).identity)

    assert identities[0] != identities[1]
    assert devices.find(Wanted(str(link))).identity == identities[1]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/dev/no-such-port", "/dev/no-such-port is not there: the printer is unplugged or switched off"),
        ("/dev/null/port", "/dev/null/port cannot be looked at: Not a directory"),
        ("/dev", "/dev is not a serial port"),
        ("/proc/version", "/proc/version is not a serial port"),
        ("/dev/zero", "/dev/zero is not a serial port"),
    ],
)
def test_what_is_no_port_is_told_in_one_line(devices, udev, path, why):
    """Every kind of wrong path has its reason, and none is an exception."""
    udev.devices = [FakeDevice(subsystem="mem", device_number=os.makedev(1, 5))]

    found = devices.find(Wanted(path))
    assert found == Missing(why)
    assert (found.fact, found.kind) == (why, "absent" if "unplugged" in why else "other")


def test_what_udev_has_marked_a_port_with_is_told(devices, udev, pty):
    """For whoever wants to know whether a rule was applied; before udevd has been there, nothing is known."""
    node = pty()
    properties = {"TAGS": ":portretry:systemd:", "ID_MM_PORT_IGNORE": "1"}
    interface, board, hub = usb()
    board.sys_path, hub.sys_path = "/sys/devices/usb1/1-1", "/sys/devices/usb1"
    udev.devices = [port(node, properties=properties, ancestors=(interface, board, hub))]
    found = devices.find(Wanted(node))

    marks = devices.marks(found)
    assert (marks.tags, marks.known) == ({"portretry", "systemd"}, True)
    assert marks.properties["ID_MM_PORT_IGNORE"] == "1"
    assert devices.usb_folder(found) == Path(board.sys_path), "not the hub's above it"

    udev.devices = [port(node, properties={}, is_initialized=False)]
    assert devices.marks(found).known is False
    assert devices.marks(found).tags == set()
    udev.devices = []
    assert devices.marks(found) is None, "a pty has no device"
    assert devices.usb_folder(found) is None


def test_a_dangling_link_is_a_missing_printer(devices, tmp_path):
    """An unplugged printer's own link, kept by hand, is no error."""
    link = tmp_path / "printer"
    link.symlink_to("/dev/no-such-port")

    assert "is not there" in devices.find(Wanted(str(link))).why


def test_nothing_named_is_told_with_what_to_set(devices):
    """Neither port nor match: nothing is guessed."""
    assert devices.find(Wanted()) == Missing("no port is named: set `port`, or `match`")


def test_a_named_port_that_is_another_device_is_refused(devices, udev, pty):
    """Promise 7: with both `port` and `match`, both must fit."""
    node = pty()
    udev.devices = [port(node)]

    assert isinstance(devices.find(Wanted(node, {"serial": "CZPX1"})), Node)
    assert devices.find(Wanted(node, {"serial": "OTHER"})).why == (
        f"{node} is another device: its serial is CZPX1, not OTHER"
    )
    udev.devices = []
    assert "its serial is unknown, not CZPX1" in devices.find(Wanted(node, {"serial": "CZPX1"})).why


# Settling


def test_a_node_is_settling_until_udevd_has_finished(devices, udev, pty):
    """Before that it may have neither mode nor links: it is not handed out, and a later look will find it."""
    node = pty()
    udev.devices = [port(node, is_initialized=False)]

    assert devices.find(Wanted(node)) == Missing(f"udev is still preparing {node}", settling=True)
    assert devices.find(Wanted(match={"serial": "CZPX1"})).settling
    udev.devices = [port(node)]
    assert isinstance(devices.find(Wanted(node)), Node)


def test_settling_ends_even_if_udevd_never_does(devices, udev, pty, clock):
    """Never stuck: a dead udevd leaves its control socket behind, and the printer is used all the same."""
    node = pty()
    udev.devices = [port(node, is_initialized=False)]
    devices.find(Wanted(node))
    clock.now += 9.9
    assert isinstance(devices.find(Wanted(node)), Missing)
    clock.now += 0.1

    assert isinstance(devices.find(Wanted(node)), Node)


def test_a_second_settling_is_waited_for_again(devices, udev, pty, clock):
    """The bound counts from each appearance, not from the first one ever."""
    node = pty()
    udev.devices = [port(node, is_initialized=False)]
    devices.find(Wanted(node))
    udev.devices = [port(node)]
    devices.find(Wanted(node))
    clock.now += 3600
    udev.devices = [port(node, is_initialized=False)]

    assert devices.find(Wanted(node)).settling


def test_without_udevd_nothing_settles(devices, udev, root, pty):
    """A container has no udevd to wait for: the node is used as it is."""
    (root / "run/udev/control").unlink()
    node = pty()
    udev.devices = [port(node, is_initialized=False)]

    assert isinstance(devices.find(Wanted(node)), Node)


def test_a_match_that_udevd_may_yet_confirm_is_settling(devices, udev, pty):
    """Only udevd knows ID_PATH: while it works on any port, "none fits" is not the last word."""
    udev.devices = [
        port(pty()),
        port(pty(), is_initialized=False),
        FakeDevice("0", "/dev/no-such-port", ancestors=usb()),
    ]
    missing = devices.find(Wanted(match={"path": "pci-1"}))

    assert missing == Missing(
        "no serial port fits path=pci-1: the printer is unplugged or switched off", settling=True
    )


# Looking for a device by what it is


@pytest.mark.parametrize(
    "match",
    [
        {"serial": "CZPX1"},
        {"vendor": "2c99", "product": "0002"},
        {"vendor": "0x2C99"},
        {"product": "2"},
        {"path": "pci-0000:00:14.0-usb-0:1:1.0"},
        {"interface": "00"},
        {"interface": "0"},
        {"serial": "CZPX1", "vendor": "2C99", "product": "0002", "interface": "00"},
    ],
    ids=str,
)
@pytest.mark.parametrize("database", [True, False], ids=["with udev's database", "sysfs alone"])
def test_a_printer_is_found_by_what_it_is(devices, udev, pty, match, database):
    """All keys must fit, hex ids in any form; without a database sysfs knows all but the path."""
    properties = {
        "ID_SERIAL_SHORT": "CZPX1",
        "ID_VENDOR_ID": "2c99",
        "ID_MODEL_ID": "0002",
        "ID_PATH": "pci-0000:00:14.0-usb-0:1:1.0",
        "ID_USB_INTERFACE_NUM": "00",
    }
    node = pty()
    neighbour = port(pty(), ancestors=usb("OTHER", "1a86", "7523")[1:])
    printer = port(node, properties=properties, ancestors=()) if database else port(node)
    if database:
        printer.ancestors = (FakeDevice(subsystem="usb"),)
    udev.devices = [neighbour, printer]

    found = devices.find(Wanted(match=match))

    if "path" in match and not database:
        assert isinstance(found, Missing)
    else:
        assert isinstance(found, Node)
        assert (found.path, found.real) == (node, node)


def test_blanks_in_a_serial_number_are_as_udev_writes_them(devices, udev, pty):
    """A serial number copied from dmesg or lsusb fits as well as one from udevadm."""
    udev.devices = [port(pty(), ancestors=usb("CZPX 12"))]

    assert isinstance(devices.find(Wanted(match={"serial": "CZPX_12"})), Node)
    assert isinstance(devices.find(Wanted(match={"serial": "CZPX 12"})), Node)


def test_a_hub_s_serial_number_is_not_the_printer_s(devices, udev, pty):
    """A board without a serial number has none, though the controller above it has."""
    node = pty()
    udev.devices = [port(node, ancestors=usb(serial=None))]

    assert devices.find(Wanted(node)).serial is None
    assert isinstance(devices.find(Wanted(match={"serial": "0000:00:14.0"})), Missing)


def test_odd_bytes_in_a_serial_number_do_no_harm(devices, udev, pty):
    """Cheap boards have garbage in their descriptors."""
    node = pty()
    device, *above = usb()[1:]
    device.attributes = dict(device.attributes) | {"serial": b"\xff\xfe1\n"}
    udev.devices = [port(node, ancestors=(device, *above))]

    assert devices.find(Wanted(node)).serial == "\ufffd\ufffd1"


def test_of_several_that_fit_none_is_taken_and_the_difference_is_named(devices, udev, pty):
    """Promise 7: both nodes are named, and what to add to mean one of them."""
    one, two = pty(), pty()
    udev.devices = [port(one), port(two, ancestors=usb("CZPX2"))]

    assert devices.find(Wanted(match={"vendor": "2c99"})).why == (
        f"2 serial ports fit vendor=2c99: {one} has serial=CZPX1, {two} has serial=CZPX2; "
        "add one of these to `match`"
    )


def test_a_difference_may_be_that_one_has_none(devices, udev, pty):
    """A board with a serial number beside one without."""
    one, two = pty(), pty()
    udev.devices = [port(one, ancestors=usb(None)), port(two)]

    assert (
        f"{one} has serial=(none), {two} has serial=CZPX1"
        in devices.find(Wanted(match={"vendor": "2c99"})).why
    )


def test_twins_are_told_apart_by_their_sockets(devices, udev, pty):
    """Two boards of one make without serial numbers, in a container: only a link by path helps."""
    one, two = pty(), pty()
    udev.devices = [port(one, ancestors=usb(None)), port(two, ancestors=usb(None))]

    assert devices.find(Wanted(match={"vendor": "2c99"})).why == (
        f"2 serial ports fit vendor=2c99: {one}, {two}; nothing tells them apart: "
        "set `port` to a link in /dev/serial/by-path"
    )


def test_a_device_whose_node_is_not_in_dev_is_told(devices, udev, root):
    """A container sees the host's /sys, but a node plugged in later is not in its /dev."""
    udev.devices = [FakeDevice(device_node="/dev/no-such-port", ancestors=usb())]

    into_a_container(root)
    (root / ".dockerenv").touch()

    for wanted in (Wanted(match={"serial": "CZPX1"}), Wanted("/dev/no-such-port")):
        found = devices.find(wanted)
        assert (found.kind, found.fact) == (
            "no node",
            "/dev/no-such-port is plugged in, but has no node here",
        )
        assert found == Missing(
            "/dev/no-such-port is plugged in, but has no node here: "
            "start the container with `-v /dev:/dev --device-cgroup-rule 'c 166:* rmw'`"
        )


def test_a_name_that_has_passed_to_another_device_is_not_taken(devices, udev, pty):
    """Promise 7: a stale node of the right name and another number is a neighbour's printer."""
    node = pty()
    number = Path(node).stat().st_rdev
    udev.devices = [
        port(node, sys_name="ttyUSB7", device_number=os.makedev(188, 7)),
        port(node, device_node=None, ancestors=usb("NEIGHBOUR")),
    ]

    assert f"{node} is stale: it is for device 136:{os.minor(number)}, ttyUSB7 is 188:7" in (
        devices.find(Wanted(match={"serial": "CZPX1"})).why
    )


def test_an_unknown_key_is_refused():
    """A typing mistake must not widen a match."""
    with pytest.raises(ValueError, match="serail"):
        Wanted(match={"serail": "CZPX1"})


def test_what_is_wanted_cannot_be_changed_from_outside():
    """It is frozen through and through, and may be a key."""
    match = {"serial": "CZPX1"}
    wanted = Wanted(match=match)
    match["serial"] = "OTHER"

    assert wanted.match == {"serial": "CZPX1"}
    assert hash(wanted) == hash(Wanted(match={"serial": "CZPX1"}))


# The list of ports


def test_ports_lists_real_hardware_in_natural_order(devices, udev):
    """ttyUSB2 before ttyUSB10; no virtual consoles, no spare places of the 8250 driver."""
    serial8250 = (FakeDevice(subsystem="platform", driver="serial8250"),)
    uart = (
        FakeDevice(subsystem="serial-base", driver="port"),
        FakeDevice(subsystem="serial-base", driver="ctrl"),
        FakeDevice(subsystem="pnp", driver="serial"),
    )
    udev.devices = [
        FakeDevice("ttyUSB10", "/dev/ttyUSB10", ancestors=usb()),
        FakeDevice("ttyUSB2", "/dev/ttyUSB2", ancestors=usb()),
        FakeDevice("ttyACM11", "/dev/ttyACM11", ancestors=usb()),
        FakeDevice("tty1", "/dev/tty1"),
        FakeDevice("ptmx", None, ancestors=usb()),
        FakeDevice("ttyS0", "/dev/ttyS0", attributes={"type": b"4\n"}, ancestors=uart),
        FakeDevice("ttyS1", "/dev/ttyS1", attributes={"type": b"0\n"}, ancestors=uart),
        FakeDevice("ttyS2", "/dev/ttyS2", ancestors=serial8250),
        FakeDevice("ttyAMA0", "/dev/ttyAMA0", ancestors=(FakeDevice(driver="uart-pl011"),)),
    ]

    ports = devices.ports()

    assert [port.node for port in ports] == [
        "/dev/ttyACM11",
        "/dev/ttyAMA0",
        "/dev/ttyS0",
        "/dev/ttyUSB2",
        "/dev/ttyUSB10",
    ]
    assert [port.driver for port in ports] == ["cdc_acm", "uart-pl011", "serial", "cdc_acm", "cdc_acm"]


def test_a_port_is_shown_with_all_that_helps_to_name_it(devices, udev):
    """Lasting names, USB identity, what it calls itself, and its driver."""
    by_id, by_path = "/dev/serial/by-id/usb-1-if00", "/dev/serial/by-path/pci-1"
    udev.devices = [FakeDevice(device_links=(by_path, by_id), ancestors=usb())]

    (port,) = devices.ports()

    assert (port.by_id, port.by_path) == (by_id, by_path)
    assert (port.vendor, port.product, port.serial) == ("2c99", "0002", "CZPX1")
    assert (port.name, port.driver) == ("Printer", "cdc_acm")


def test_a_port_on_a_card_has_the_name_from_udev_s_database(devices, udev):
    """A PCI card has no USB device to ask."""
    properties = {"ID_MODEL_FROM_DATABASE": "Quad UART", "ID_VENDOR_ID": "0x13a8"}
    udev.devices = [FakeDevice(properties=properties, ancestors=(FakeDevice(driver="exar_serial"),))]

    (port,) = devices.ports()

    assert (port.name, port.vendor, port.serial, port.by_id) == ("Quad UART", "0x13a8", None, None)


# Whose event it is

ACM = Uevent("add", "/dev/ttyACM0", ("/dev/serial/by-id/usb-1",), os.makedev(166, 0))
NODE = Node("/dev/serial/by-id/usb-1", "/dev/ttyACM0", os.makedev(166, 0), 1, modem=True)


@pytest.mark.parametrize(
    ("uevent", "path", "node", "ours"),
    [
        (ACM, "/dev/ttyACM0", None, True),
        (ACM, "/dev//ttyACM0", None, True),
        (ACM, "/dev/serial/by-id/usb-1", None, True),
        (ACM, "/dev/serial//by-id/usb-1", None, True),
        (ACM, "/dev/serial/by-id/usb-2", None, False),
        (ACM, "/dev/ttyACM1", None, False),
        (ACM, "/dev/serial/by-id/usb-2", NODE, True),
        (Uevent("remove", "/dev/other", (), NODE.number), "/dev/x", NODE, True),
        (Uevent("add", NODE.real, (), os.makedev(166, 9)), "/dev/x", NODE, True),
        (Uevent("add", "/dev/ttyACM1", (), os.makedev(166, 1)), NODE.path, NODE, False),
        (ACM, None, None, True),
        (Uevent("lost"), "/dev/ttyACM1", None, True),
        (Uevent("add", "", (), os.makedev(166, 1)), "/dev/ttyACM0", None, True),
    ],
    ids=[
        "its node",
        "its node, written oddly",
        "its link",
        "its link, written oddly",
        "another link",
        "another node",
        "its node as last seen",
        "its number",
        "its name with another number",
        "the neighbour",
        "matched by properties",
        "events were lost",
        "it has no node in here",
    ],
)
def test_an_event_is_ours_by_node_link_or_number(uevent, path, node, ours):
    """A neighbour's events wake nobody, and none of ours is missed."""
    assert uevent.concerns(path, node) is ours


def test_an_event_is_ours_through_a_link_of_our_own(tmp_path):
    """A link that udev knows nothing of is followed."""
    link = tmp_path / "printer"
    link.symlink_to("/dev/ttyACM0")

    assert ACM.concerns(str(link), None)


# libudev itself


def test_the_real_libudev_answers_without_root(pty):
    """The seam fits: monitor, enumeration and look-up by number work as the fake says."""
    with Devices() as devices:
        devices.start()
        assert devices.read() == []
        assert isinstance(devices.find(Wanted(pty())), Node)
        assert devices.find(Wanted("/dev/null")) == Missing("/dev/null is not a serial port")
        assert isinstance(devices.find(Wanted(match={"serial": "no such printer"})), Missing)
        assert all(Path(port.node).is_absolute() for port in devices.ports())


def test_a_missing_libudev_is_told_with_its_cure(monkeypatch):
    """The library is not a Python package, so pip cannot bring it."""

    def context() -> None:
        raise ImportError("No library named udev")

    monkeypatch.setattr(pyudev, "Context", context)

    with pytest.raises(NoLibudevError, match="apt install libudev1"):
        Libudev()
