"""The real libudev and the real pyudev, against a fake /sys, /dev and netlink (umockdev); needs no root."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import umock
from remote_devices import RemoteDevices

pytestmark = pytest.mark.system

SERIAL = "CZPX1234X004XC00001"
BY_ID = f"/dev/serial/by-id/usb-2c99_Original_Prusa_i3_MK3_{SERIAL}-if00"


@pytest.fixture
def devices(testbed: umock.Testbed) -> Iterator[RemoteDevices]:
    with RemoteDevices(env=testbed.env) as remote:
        yield remote


def test_a_plugged_printer_is_heard_of_and_found_by_its_lasting_name(testbed, devices):
    """Plug: the event carries node, links and number, and the by-id link leads to the node at once."""
    assert "unplugged" in devices.find(path=BY_ID)["why"]
    acm = testbed.add_acm("ttyACM0", serial=SERIAL)

    uevent = devices.wait_for(action="add")

    assert uevent["node"] == acm.node
    assert set(uevent["links"]) == {acm.by_id, acm.by_path}
    assert uevent["number"] == acm.number
    node = devices.find(path=BY_ID)
    assert node["real"] == "/dev/ttyACM0"
    assert node["number"] == acm.number
    assert (node["vendor"], node["serial"], node["driver"]) == ("2c99", SERIAL, "cdc_acm")
    assert node["links"] == [acm.by_id, acm.by_path]


def test_a_pulled_printer_still_tells_its_name(testbed, devices):
    """Unplug: the links are gone from /dev, but the event still carries them, so it is known whose it is."""
    acm = testbed.add_acm("ttyACM0", serial=SERIAL)
    devices.wait_for(action="add")
    testbed.remove(acm)

    uevent = devices.wait_for(action="remove")

    assert acm.by_id in uevent["links"]
    assert "unplugged" in devices.find(path=BY_ID)["why"]
    assert "unplugged" in devices.find(serial=SERIAL)["why"]


def test_a_printer_that_returns_under_another_name_is_followed(testbed, devices):
    """Promise 7: ttyACM0 that comes back as ttyACM1 is the same printer, and its node is known to be new."""
    first = testbed.add_acm("ttyACM0", serial=SERIAL)
    devices.wait_for(action="add")
    before = devices.find(path=BY_ID)
    testbed.remove(first)
    testbed.add_acm("ttyACM1", serial=SERIAL)
    devices.wait_for(action="add", node="/dev/ttyACM1")

    by_path, by_serial = devices.find(path=BY_ID), devices.find(serial=SERIAL)

    assert by_path["real"] == by_serial["real"] == "/dev/ttyACM1"
    assert (by_path["number"], by_path["inode"]) != (before["number"], before["inode"])


def test_the_neighbour_is_not_taken_for_the_printer(testbed, devices):
    """Promise 7: of two printers of one make only the one with the wanted serial number is found."""
    testbed.add_acm("ttyACM0", serial="NEIGHBOUR", socket="1-1")
    testbed.add_acm("ttyACM1", serial=SERIAL, socket="1-2")
    devices.wait_for(action="add", node="/dev/ttyACM1")

    assert devices.find(serial=SERIAL, vendor="2C99")["path"] == "/dev/ttyACM1"
    assert "2 serial ports fit vendor=2c99" in devices.find(vendor="2c99")["why"]
    assert "no serial port fits" in devices.find(serial="ELSE")["why"]


def test_two_boards_without_serial_numbers_are_told_apart_by_their_sockets(testbed, devices):
    """Two CH340 share one by-id link; the answer names both nodes and the paths that tell them apart."""
    for name, socket in (("ttyUSB0", "1-1"), ("ttyUSB1", "1-2")):
        testbed.add_acm(
            name,
            serial=None,
            vendor="1a86",
            product="7523",
            model="USB Serial",
            socket=socket,
            driver="ch341",
        )
    devices.wait_for(action="add", node="/dev/ttyUSB1")

    why = devices.find(vendor="1a86", product="7523")["why"]

    assert "/dev/ttyUSB0 has path=pci-0000:00:14.0-usb-0:1:1.0" in why
    assert "/dev/ttyUSB1 has path=pci-0000:00:14.0-usb-0:2:1.0" in why
    found = devices.ask("find", path=None, match={"path": "pci-0000:00:14.0-usb-0:2:1.0"})
    assert found["path"] == "/dev/ttyUSB1"


def test_without_a_udev_database_sysfs_tells_who_the_printer_is(testbed, devices):
    """As in a container without /run/udev: no properties, no links, and yet vendor, product and serial."""
    testbed.add_acm("ttyACM0", serial=SERIAL, settled=False)
    devices.wait_for(action="add")

    node = devices.find(vendor="2c99", product="0002", serial=SERIAL, interface="0")

    assert (node["path"], node["serial"], node["links"]) == ("/dev/ttyACM0", SERIAL, [])


def test_ports_shows_what_a_person_needs_to_name_the_printer(testbed, devices):
    """The list has lasting names, USB identity and driver, in the order of the names."""
    for number in (10, 2):
        testbed.add_acm(f"ttyACM{number}", serial=f"S{number}", socket=f"1-{number}")
    devices.wait_for(action="add", node="/dev/ttyACM2")

    ports = devices.ask("ports")

    assert [port["node"] for port in ports] == ["/dev/ttyACM2", "/dev/ttyACM10"]
    assert ports[0] == {
        "node": "/dev/ttyACM2",
        "by_id": "/dev/serial/by-id/usb-2c99_Original_Prusa_i3_MK3_S2-if00",
        "by_path": "/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0",
        "vendor": "2c99",
        "product": "0002",
        "serial": "S2",
        "name": "Original Prusa i3 MK3",
        "driver": "cdc_acm",
    }


def test_a_change_is_told_as_a_change(testbed, devices):
    """`udevadm trigger` changes every tty: the word must arrive, for a change alone opens nothing."""
    acm = testbed.add_acm("ttyACM0", serial=SERIAL)
    testbed.uevent(acm, "change")

    assert devices.wait_for(action="change")["node"] == acm.node


def test_the_test_bed_s_node_can_be_talked_through(testbed):
    """The fake is fit for whole programs: bytes pass, its number is one everywhere, unplugging hangs up."""
    acm = testbed.add_acm("ttyACM0", serial=SERIAL)
    program = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
numbers = {os.stat(sys.argv[1]).st_rdev, os.fstat(fd).st_rdev, os.stat(f"/proc/self/fd/{fd}").st_rdev}
os.write(fd, str(numbers).encode())
print(flush=True)
poll = select.poll()
poll.register(fd, 0)
assert poll.poll(10_000) and poll.poll(0)[0][1] & select.POLLHUP
"""
    command = [sys.executable, "-c", program, acm.by_id]
    with subprocess.Popen(command, env=testbed.env, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        heard = os.read(testbed.dev_fd(acm), 100)
        testbed.remove(acm)
        assert process.wait(10) == 0

    assert heard == b"{%d}" % acm.number


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.usefixtures("testbed")
def test_the_test_bed_leaves_nothing_behind():
    """Closing takes the folder, the process and the ptys away."""
    before = open_files()
    with umock.Testbed() as bed:
        bed.remove(bed.add_acm())
        bed.add_acm()

    assert not bed.root.exists()
    assert open_files() == before
