"""The service, as its own process, brings a simulated printer back into real OctoPrints, or rightly does not.

"In place" means: the node stays while the printer is off, as in LXC containers and with Prusa's boards.
"""

import pytest

from helpers import assert_eventually, assert_stays

pytestmark = pytest.mark.octoprint

# -- the order of starting ----------------------------------------------------------------------------------


def test_a_printer_that_is_there_is_connected_when_the_service_starts(scene):
    """Printer and OctoPrint first, the service last: one command, one attempt, and it succeeds."""
    commands = scene.octoprint.answered("204 POST /api/connection")
    daemon = scene.watch()
    scene.connected()
    daemon.expect(" connected: ")
    assert scene.new_attempts() == 1
    assert scene.octoprint.answered("204 POST /api/connection") == commands + 1


@pytest.mark.parametrize("scene", [{"plugged": False, "powered": False}], indirect=True, ids=["unplugged"])
def test_a_printer_that_comes_last_is_connected(scene):
    """OctoPrint and the service first: nothing is tried without a printer, and one attempt with it."""
    daemon = scene.watch()
    daemon.expect(" absent: ")
    scene.left_alone()
    scene.printer.plug()
    scene.printer.power_on()
    scene.connected()
    daemon.expect(" connected: ")
    assert scene.new_attempts() == 1
    assert daemon.count(" absent: ") == 1


def test_an_octoprint_that_starts_last_is_given_its_printer(scene):
    """The service waits quietly for an OctoPrint that is down or starting, the printer's port untouched."""
    scene.octoprint.stop()
    daemon = scene.watch()
    daemon.expect(" unreachable: ")
    scene.unopened()
    scene.octoprint.start()
    scene.connected()
    daemon.expect(" connected: ")
    assert scene.new_attempts() == 1
    assert daemon.count(" unreachable: ") <= 3, "down and starting are worth a line each, not one a look"


# -- off and on, in and out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", [{}, {"banner": None}], indirect=True, ids=["banner", "no banner"])
def test_switched_off_and_on_in_place(scene):
    """No attempt while the firmware is silent; one as soon as it says `start`, or merely answers."""
    daemon = scene.watched()
    scene.lost()
    daemon.expect(" listening: ")
    scene.left_alone()
    scene.printer.power_on()
    scene.connected()
    daemon.expect(" connected: ")
    assert scene.new_attempts() == 1


def test_unplugged_and_plugged(scene):
    """A pulled cable is seen at once, and its return ends in one attempt, which succeeds."""
    daemon = scene.watched()
    scene.printer.unplug()
    assert_eventually(lambda: scene.says("Offline after error"), 2.0, lambda: f"lost, but {scene}")
    daemon.expect(" absent: ", timeout=2.0)
    scene.printer.plug()
    scene.connected()
    daemon.expect(" connected: ")
    assert scene.new_attempts() == 1


@pytest.mark.parametrize("scene", [{"powered": False}], indirect=True, ids=["off"])
def test_unplugged_while_the_service_listens(scene):
    """A node that dies in the service's own hands is let go, and its successor is found."""
    daemon = scene.watch()
    daemon.expect(" listening: ")
    assert scene.printer.wait_for(lambda stats: stats.holders == 1, 5.0), f"nobody listens: {scene}"
    scene.printer.unplug()
    daemon.expect(" absent: ", timeout=2.0)
    scene.printer.plug()
    scene.printer.power_on()
    scene.connected()
    assert scene.new_attempts() == 1


# -- OctoPrint goes and comes -------------------------------------------------------------------------------


def test_octoprint_stopped_and_started(scene):
    """An OctoPrint that comes back is given its printer, which the service did not touch meanwhile."""
    daemon = scene.watched()
    scene.octoprint.stop()
    daemon.expect(" unreachable: ")
    scene.unopened()
    scene.octoprint.start()
    scene.connected()
    daemon.expect(" connected: ")
    assert scene.new_attempts() == 1
    assert daemon.count(" unreachable: ") <= 4, "down and starting are worth a line each, not one a look"


def test_octoprint_killed_and_started(scene):
    """A power cut of OctoPrint alone ends the same way."""
    scene.watched()
    scene.octoprint.kill()
    scene.octoprint.start()
    scene.connected()
    assert scene.new_attempts() == 1


# -- a person's word ----------------------------------------------------------------------------------------


def test_a_disconnect_stands_until_the_printer_boots(scene):
    """For 30 s nobody connects or says a word to the printer; then it is switched off and on in place."""
    daemon = scene.watched()
    scene.disconnected(daemon)
    heard = scene.printer.stats().bytes_in
    scene.left_alone(30.0)
    assert scene.says("Offline")
    assert scene.printer.stats().bytes_in == heard, "promise 3: while a hold stands, only listen"
    scene.printer.power_off()
    scene.printer.power_on()
    scene.connected()
    daemon.expect(" connected: ")
    assert scene.new_attempts() == 1


def test_a_disconnect_stands_until_the_node_is_made_anew(scene):
    """While the cable is in, and while it is out; the new node ends it."""
    daemon = scene.watched()
    scene.disconnected(daemon)
    scene.left_alone()
    scene.printer.unplug()
    daemon.expect(" absent: ")
    scene.left_alone()
    scene.printer.plug()
    scene.connected()
    assert scene.new_attempts() == 1


def test_a_disconnect_survives_a_restart_of_the_service(scene):
    """What a person said is remembered in the state folder, and a return of the printer still ends it."""
    first = scene.watched()
    scene.disconnected(first)
    first.stop()
    second = scene.watch()
    second.expect(" held: ")
    scene.left_alone()
    scene.printer.power_off()
    scene.printer.power_on()
    scene.connected()
    assert scene.new_attempts() == 1


# -- names --------------------------------------------------------------------------------------------------


def test_the_port_has_another_name_here(scene, node, tmp_path):
    """We are told a by-id link of the device; OctoPrint, which offers another, is given its own name."""
    by_id = tmp_path / "usb-Simulated_Printer-if00"
    by_id.symlink_to(node)
    scene.watch(port=by_id)
    scene.connected()
    current = scene.octoprint.rest("GET", "/api/connection").json()["current"]
    assert current["port"] == str(node)


def test_a_port_that_octoprint_does_not_offer(scene, node, tmp_path):
    """Which line OctoPrint's settings lack is said once; until it is there, nothing is opened or tried."""
    elsewhere = tmp_path / "ttyELSEWHERE"
    node.rename(elsewhere)
    daemon = scene.watch(port=elsewhere)
    assert f"add the line {elsewhere} to Additional serial ports" in daemon.expect("Additional serial ports")
    scene.unopened()
    assert scene.new_attempts() == 0
    assert daemon.count("Additional serial ports") == 1
    elsewhere.rename(node)
    assert scene.printer.stats().opens == 0


# -- the key ------------------------------------------------------------------------------------------------


def test_a_wrong_key(scene, tmp_path):
    """It is said once, asked rarely (OctoPrint logs each refusal), and a corrected file is picked up."""
    wrong = "FEDCBA9876543210FEDCBA9876543210"
    key_file = tmp_path / "mine.key"
    key_file.touch(0o600)
    key_file.write_text(f"{wrong}\n")
    refused = "403 GET /api/connection"
    before = scene.octoprint.answered(refused)
    daemon = scene.watch(key_file=key_file)
    daemon.expect(" unreachable: .*key")
    scene.unopened(10.0)
    assert scene.printer.stats().opens == 0, "promise 1: a state that is unknown means hands off"
    asked = scene.octoprint.answered(refused) - before
    assert 1 <= asked <= 3, f"{asked} times in 10 s, at an interval of 2 s"
    assert daemon.count(" unreachable: .*key") == 1
    key_file.write_text(scene.octoprint.key_file.read_text())
    scene.connected()
    daemon.expect(" connected: ")
    assert wrong not in daemon.log()
    assert scene.octoprint.api_key not in daemon.log()


# -- the end ------------------------------------------------------------------------------------------------


def test_the_end_of_the_service_leaves_the_printer_connected(scene):
    """SIGTERM ends it within a second with status 0, and OctoPrint goes on as if it had never been there."""
    daemon = scene.watched()
    daemon.stop()
    assert_stays(lambda: scene.says("Operational"), 7.0, lambda: f"operational, but {scene}")
    assert scene.printer.stats().holders == 1
