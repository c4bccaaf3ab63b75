"""The service, as its own process, brings a simulated printer back into real OctoPrints, or rightly does not.

"In place" means: the node stays while the printer is off, as in LXC containers and with Prusa's boards.
``both_ways``: with OctoPrint's push, and without, when the service only asks (`push = false`).
"""

import pytest

from helpers import assert_eventually, assert_stays
from portretry_udev.real_octoprint import VERSIONS
from portretry_udev.simulator import HEATING_FAILED

pytestmark = pytest.mark.octoprint

AT_ONCE = 20.0  # seconds; as in conftest.py
SEVERAL_LOOKS = 4.0  # the same
ONE_TEN, ONE_ELEVEN, TWO = VERSIONS
FAULT = f"Error:{HEATING_FAILED}\nError:Printer halted. kill() called!\n".encode()

both_ways = pytest.mark.parametrize("push", ["push", "polls"], indirect=True)
by_asking = pytest.mark.parametrize("push", ["polls"], indirect=True)  # where it makes no difference

# -- the order of starting ----------------------------------------------------------------------------------


@both_ways
def test_a_printer_that_is_there_is_connected_when_the_service_starts(scene):
    """Printer and OctoPrint first, the service last: one command, one attempt, and it succeeds."""
    commands = scene.commands()
    daemon = scene.watch()
    scene.back(daemon)
    assert scene.commands() == commands + 1


@by_asking
@pytest.mark.parametrize("scene", [{"plugged": False, "powered": False}], indirect=True, ids=["unplugged"])
def test_a_printer_that_comes_last_is_connected(scene):
    """OctoPrint and the service first: nothing is tried without a printer, and one attempt with it."""
    daemon = scene.watch()
    daemon.expect(" absent: ")
    scene.left_alone()
    scene.printer.plug()
    scene.printer.power_on()
    scene.back(daemon)
    assert daemon.count(" absent: ") == 1


@both_ways
def test_an_octoprint_that_starts_last_is_given_its_printer(scene):
    """The service waits quietly for an OctoPrint that is down or starting, the printer's port untouched."""
    scene.octoprint.kill()
    daemon = scene.watch()
    daemon.expect(" unreachable: ")
    scene.unopened()
    scene.octoprint.start()
    scene.back(daemon)
    assert daemon.count(" unreachable: ") <= 3, "down and starting are worth a line each, not one a look"


# -- off and on, in and out ---------------------------------------------------------------------------------


def comes_back_in_place(scene):
    daemon = scene.watched()
    scene.lost()
    daemon.expect(" listening: ")
    scene.left_alone()
    scene.printer.power_on()
    scene.back(daemon)


@both_ways
def test_switched_off_and_on_in_place(scene):
    """OctoPrint waits for its timeouts; no attempt while the firmware is silent, one once it says `start`."""
    comes_back_in_place(scene)


@by_asking
@pytest.mark.parametrize("scene", [{"banner": None}], indirect=True, ids=["no banner"])
def test_switched_off_and_on_in_place_without_a_word(scene):
    """The same for a board that does not say that it has started: it is found answering."""
    comes_back_in_place(scene)


@both_ways
def test_unplugged_and_plugged(scene):
    """A pulled cable is seen at once, and its return ends in one attempt, which succeeds."""
    daemon = scene.watched()
    scene.printer.unplug()
    assert_eventually(lambda: scene.says("Offline after error"), 2.0, lambda: f"lost, but {scene}")
    daemon.expect(" absent: ", timeout=2.0)
    scene.printer.plug()
    scene.back(daemon)


@by_asking
@pytest.mark.parametrize("scene", [{"powered": False}], indirect=True, ids=["off"])
def test_unplugged_while_the_service_listens(scene):
    """A node that dies in the service's own hands is let go, and its successor is found."""
    daemon = scene.watch()
    daemon.expect(" listening: ")
    assert_eventually(lambda: scene.holders() == 1, 5.0, lambda: f"nobody listens: {scene}")
    scene.printer.unplug()
    daemon.expect(" absent: ", timeout=2.0)
    scene.printer.plug()
    scene.printer.power_on()
    scene.back(daemon)


# -- OctoPrint goes and comes -------------------------------------------------------------------------------


@both_ways
def test_octoprint_stopped_and_started(scene):
    """An OctoPrint that comes back is given its printer, which the service did not touch meanwhile."""
    daemon = scene.watched()
    scene.octoprint.stop()
    daemon.expect(" unreachable: ")
    scene.unopened()
    scene.octoprint.start()
    scene.back(daemon)
    assert daemon.count(" unreachable: ") <= 4, "down and starting are worth a line each, not one a look"


@by_asking
def test_octoprint_killed_and_started(scene):
    """A power cut of OctoPrint alone ends the same way."""
    daemon = scene.watched()
    scene.octoprint.kill()
    scene.octoprint.start()
    scene.back(daemon)


# -- a person's word ----------------------------------------------------------------------------------------


@both_ways
def test_a_disconnect_stands_until_the_printer_boots(scene, push):
    """Nobody connects or says a word to it, for 15 s (with push, 4); until it is switched off and on."""
    daemon = scene.watched()
    scene.disconnected(daemon)
    scene.unspoken_to(SEVERAL_LOOKS if push else 15.0)
    assert scene.says("Offline")
    scene.power_cycled(daemon)


@both_ways
def test_a_disconnect_stands_until_the_node_is_made_anew(scene):
    """Another person's: while the cable is in, and while it is out; the new node ends it."""
    daemon = scene.watched()
    scene.disconnected(daemon, scene.disconnect_as_another)
    scene.left_alone()
    scene.printer.unplug()
    daemon.expect(" absent: ")
    scene.left_alone()
    scene.printer.plug()
    scene.back(daemon)


@both_ways
def test_a_disconnect_during_a_print_from_sd(scene, push):
    """One's own, and somebody else's: the print goes on, not a byte disturbs it; one may connect again."""
    daemon = scene.watched()
    scene.printer.start_sd_print()
    assert_eventually(lambda: scene.says("Printing from SD"), AT_ONCE, lambda: f"printing, but {scene}")
    clients = (scene.disconnect, scene.disconnect_as_another)
    for disconnect in clients if push else clients[::-1]:
        disconnect()
        daemon.expect(" held: ")
        printed = scene.printer.stats().sd_position
        scene.unspoken_to()
        assert scene.printer.stats().sd_position > printed, f"the print has ended: {scene}"
        scene.octoprint.connect(str(scene.printer.link))
        scene.connected()
        daemon.expect(" connected: ")
        assert scene.new_attempts() == 1
    assert scene.printer.stats().resets == 0


@both_ways
def test_a_disconnect_outlives_both_processes(scene):
    """A restart and a SIGKILL of the service, and of OctoPrint; what the printer's return still ends."""
    daemon = scene.watched()
    scene.disconnected(daemon)
    scene.stopped(daemon)
    daemon = scene.watch()
    daemon.expect(" held: ")
    daemon.end()
    daemon = scene.watch()
    daemon.expect(" held: ")
    for end in (scene.octoprint.stop, scene.octoprint.kill):
        end()
        daemon.expect(" unreachable: ")
        scene.octoprint.start()
        daemon.expect(" held: ")
        assert scene.says("Offline")
    scene.unspoken_to()
    scene.power_cycled(daemon)


@both_ways
def test_a_power_switch_that_disconnects(scene):
    """PSUControl's pattern: the plugin disconnects and cuts the power, or the other way round.

    The node stays, or vanishes; nobody connects while the power is off; and when it returns the printer is
    connected by that alone.
    """
    daemon = scene.watched()
    for cut, restore in ((scene.printer.power_off, None), (scene.printer.unplug, scene.printer.plug)):
        for steps in ((scene.disconnect_by_plugin, cut), (cut, scene.disconnect_by_plugin)):
            for step in steps:
                step()
            daemon.expect(" held: | absent: ")
            scene.printer.power_off()
            scene.left_alone(3.0)
            if restore is not None:
                restore()
            scene.printer.power_on()
            scene.back(daemon)


# -- a firmware that fails ----------------------------------------------------------------------------------


@both_ways
def test_a_firmware_that_halts_itself(scene, push, octoprint_version):
    """Heating failed, kill(): nobody connects, for 60 s (with push, 10); and the first boot ends that.

    The service holds the port meanwhile, so that nobody's next open can be the edge that resets the board.

    OctoPrint 2.0 forgets the error: who only asks it takes the fault for a loss, and there the firmware's
    silence has to do.  It is asked, as after any loss, and nobody connects to who does not answer.
    """
    daemon = scene.watched()
    scene.printer.kill()
    forgotten = octoprint_version == TWO and not push
    daemon.expect(" listening: " if forgotten else " faulted: .*Heating failed")
    assert_eventually(lambda: scene.holders() == 1, 5.0, lambda: f"nobody holds the port: {scene}")
    opens = scene.printer.stats().opens
    wait = scene.left_alone if forgotten else scene.unspoken_to
    wait(10.0 if push else 60.0)
    stats = scene.printer.stats()
    assert (stats.state, stats.opens, scene.holders()) == ("dead", opens, 1)
    scene.power_cycled(daemon)


@pytest.mark.parametrize(
    ("octoprint_version", "push"),
    [(ONE_TEN, "push"), (ONE_ELEVEN, "push"), (TWO, "push"), (ONE_TEN, "polls"), (ONE_ELEVEN, "polls")],
    indirect=True,
)
def test_a_firmware_that_answers_after_its_fault(scene):
    """It does not halt, whatever OctoPrint sends it: it is as little connected as one that does.

    Of 2.0 without push nothing is promised: to who only asks, this is a printer that was lost and answers,
    and he may connect it.
    """
    daemon = scene.watched()
    scene.printer.deaf_to = frozenset({"M112"})
    scene.printer.say(FAULT)
    daemon.expect(" faulted: .*Heating failed")
    scene.unspoken_to()
    assert scene.printer.stats().state == "ready"
    scene.power_cycled(daemon)


@both_ways
def test_a_firmware_that_answers_us_but_not_octoprint(scene):
    """Failed attempts: ever more rarely, as said; and at once and afresh when the printer returns."""
    scene.printer.deaf_to = frozenset({"M110"})  # OctoPrint's hello; ours is M115
    daemon = scene.watch()
    for seconds in (2, 4):
        daemon.expect(f" backing-off: .* {seconds} s", 30.0)  # OctoPrint takes its own time to give up
    assert scene.new_attempts() == 2
    scene.left_alone(2.0)
    scene.printer.deaf_to = frozenset()
    scene.power_cycled(daemon)
    assert daemon.count(" backing-off: ") == 2


# -- names --------------------------------------------------------------------------------------------------


@by_asking
def test_the_port_has_another_name_here(scene, node, tmp_path):
    """We are told a by-id link of the device; OctoPrint, which offers another, is given its own name."""
    by_id = tmp_path / "usb-Simulated_Printer-if00"
    by_id.symlink_to(node)
    scene.watch(port=by_id)
    scene.connected()
    current = scene.octoprint.rest("GET", "/api/connection").json()["current"]
    assert current["port"] == str(node)


@by_asking
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


@by_asking
def test_the_end_of_the_service_leaves_the_printer_connected(scene):
    """SIGTERM ends it with status 0, and OctoPrint goes on as if it had never been there."""
    daemon = scene.watched()
    daemon.stop(within=AT_ONCE)  # six OctoPrints beside it: a second is what other suites hold it to
    assert_stays(lambda: scene.says("Operational"), SEVERAL_LOOKS, lambda: f"operational, but {scene}")
    assert scene.holders() == 1
