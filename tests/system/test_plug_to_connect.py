"""From the uevent of a plug to OctoPrint's "Operational": the service as its own process, against umockdev.

The interval is a minute, so that nothing but the events can be what brings the printer back in time.
"""

import contextlib
import os
from functools import partial

import pytest

from helpers import Daemon, assert_eventually
from portretry_udev.fake_octoprint import FakeOctoPrint
from portretry_udev.simulator import Printer

pytestmark = pytest.mark.system

KEY = "TheKeyOfTheTests_0123456789"
SERIAL = "CZPX1234X004XC00001"
BY_ID = f"/dev/serial/by-id/usb-2c99_Original_Prusa_i3_MK3_{SERIAL}-if00"
SOON = 8.0  # seconds: two for the quiet start, and slack for a busy machine


@pytest.fixture
def printer(tmp_path):
    with Printer(link=tmp_path / "ttyPTY0", boot_delay=0.3, plugged=False) as printer:
        yield printer


@pytest.fixture
def octoprint(printer):
    """OctoPrint runs outside of the fake /dev, and so has its own name for the port."""
    with FakeOctoPrint(api_key=KEY, ports=[str(printer.link)]) as octoprint:
        yield octoprint


@pytest.fixture
def service(testbed, octoprint, printer, tmp_path):
    key_file = tmp_path / "key"
    key_file.touch(0o600)
    key_file.write_text(KEY)
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
        interval = 60
        state_dir = "{tmp_path}/state"
        control = "{tmp_path}/control.sock"
        [printers.mk3]
        octoprint = "{octoprint.url}"
        api_key_file = "{key_file}"
        port = "{BY_ID}"
        octoprint_port = "{printer.link}"
        """
    )
    with contextlib.ExitStack() as stack:
        daemon = Daemon("--config", config, "-v", env=testbed.env)
        stack.callback(lambda: print(daemon.log()))  # noqa: T201 - pytest shows it when the story fails
        stack.enter_context(daemon)
        daemon.expect(" absent: ")
        yield daemon
        daemon.stop()


def heard(service, looks):
    return service.count("NodeSeen") >= looks


def says(octoprint, words):
    assert_eventually(
        lambda: octoprint.job_state == words, SOON, lambda: f"{words}, but {octoprint.job_state}"
    )


def test_plug_to_connect(testbed, service, octoprint, printer):
    """Plugged, pulled and plugged again under another name: connected each time, by events alone."""
    for connects, name in enumerate(("ttyACM0", "ttyACM1"), start=1):
        printer.plug()
        acm = testbed.add_acm(name, serial=SERIAL, pty=os.path.realpath(printer.link))
        says(octoprint, "Operational")
        assert octoprint.connects == connects
        service.expect(" connected: ")

        printer.unplug()
        testbed.remove(acm)
        says(octoprint, "Offline after error")
        service.expect(" absent: ")


def test_a_storm_of_changes_opens_nothing_that_a_hold_keeps_shut(testbed, service, octoprint, printer):
    """Promise 3: after a person's Disconnect, `udevadm trigger` a hundred times: nothing is opened."""
    printer.plug()
    acm = testbed.add_acm("ttyACM0", serial=SERIAL, pty=os.path.realpath(printer.link))
    says(octoprint, "Operational")
    service.expect(" connected: ")
    octoprint.person_disconnects()
    testbed.uevent(acm, "change")
    service.expect(" held: ")
    assert_eventually(lambda: printer.stats().holders == 1, SOON, "we alone listen")
    before = printer.stats()
    looks = service.count("NodeSeen")
    for number in range(1, 101):
        testbed.uevent(acm, "change")
        assert_eventually(partial(heard, service, looks + number), SOON, "the event was heard")
    assert printer.stats().opens == before.opens
    assert octoprint.connects == 1


def test_a_neighbour_is_left_alone(testbed, service, octoprint, printer):
    """Promise 7: another printer of the same make is plugged in; its port is not even opened."""
    printer.plug()
    testbed.add_acm("ttyACM0", serial="NEIGHBOUR", pty=os.path.realpath(printer.link))
    opens = printer.stats().opens
    testbed.add_acm("ttyACM1", serial=SERIAL, socket="1-2")
    service.expect(r"NodeSeen\(node=Node\(path='/dev/serial/by-id/")
    assert printer.stats().opens == opens
    assert octoprint.connects == 0
