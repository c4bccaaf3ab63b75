"""The trap: OctoPrint could not open its port, and does not notice; the service gets it out (promise 9).

Each of its four causes, in all versions: a lock, exclusive use, no permission, a port that is not there.
"""

import os
import subprocess
import sys

import pytest

from helpers import assert_eventually, assert_stays
from portretry_udev.real_octoprint import RealOctoPrint
from portretry_udev.simulator import Printer

pytestmark = pytest.mark.octoprint

AT_ONCE = 20.0  # seconds; as in conftest.py
OPENING = ("Opening serial connection", "Connecting")  # the trap's words, in 1.x and in 2.0
STUCK = " OctoPrint was stuck in .*told it to disconnect"
FREED_WITHIN = 9.0  # seconds: the rules' 5, a look each second, and slack; by the slow rule it were 60
STAYS = 8.0  # seconds: so long it would certainly not be left in the trap, were it to be freed again
PATIENCE = 10.0  # seconds that one OctoPrint waits for a firmware's first word; and one more

by_asking = pytest.mark.parametrize("push", ["polls"], indirect=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a port that only root may open")


class Trap:
    """A scene in which OctoPrint gets stuck."""

    def __init__(self, scene):
        self._scene = scene
        self._before = scene.commands()
        scene.new_attempts()

    def shut(self):
        """Wait until OctoPrint is in it."""
        scene = self._scene
        assert_eventually(lambda: scene.says(*OPENING), AT_ONCE, lambda: f"trapped, but {scene}")

    def opened(self, daemon):
        """See OctoPrint freed by the quick rule, as its process can be seen not to hold the port."""
        daemon.expect(STUCK, timeout=FREED_WITHIN)

    def over(self, daemon, attempts, freed=1):
        """See the printer connected after so many attempts and disconnects, and no hold made of these."""
        scene = self._scene
        scene.connected()
        daemon.expect(" connected: ")
        assert scene.new_attempts() == attempts
        assert scene.commands() - self._before == attempts + freed
        assert daemon.count(STUCK) == freed
        assert daemon.count(" held: | faulted: ") == 0


@pytest.fixture
def trap(scene):
    return Trap(scene)


# -- its causes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("push", "how"),
    [("push", "flock"), ("polls", "flock"), ("push", "exclusive")],
    indirect=["push"],
)
def test_another_program_had_the_port(scene, trap, how):
    """Locked, or for itself alone, as a person pressed Connect; once it has let go, OctoPrint is freed."""
    end = scene.rival(how)
    daemon = scene.watch()
    daemon.expect(" in-use: ")
    scene.octoprint.connect(str(scene.printer.link))
    trap.shut()
    end()
    trap.opened(daemon)
    trap.over(daemon, attempts=2)


@needs_root
def test_the_port_was_not_octoprints_yet(scene, trap):
    """Its permissions came after the service's attempt: freed, and connected."""
    scene.forbid()
    daemon = scene.watch()
    trap.shut()
    scene.allow()
    trap.opened(daemon)
    trap.over(daemon, attempts=2)


@pytest.mark.parametrize("scene", [{"plugged": False}], indirect=True, ids=["unplugged"])
def test_the_port_was_not_there(scene, trap, node):
    """A person pressed Connect, naming no port, too early: freed, even before the printer is there.

    Another port is: 2.0 refuses to connect where there is none at all.
    """
    node.with_name("ttyFAKE2").symlink_to(os.devnull)
    daemon = scene.watch()
    daemon.expect(" absent: ")
    scene.octoprint.connect()
    trap.shut()
    trap.opened(daemon)
    daemon.expect(" absent: ")
    assert_eventually(lambda: scene.says("Offline"), AT_ONCE, lambda: f"freed, but {scene}")
    scene.printer.plug()
    trap.over(daemon, attempts=2)


# -- once, and not by mistake -------------------------------------------------------------------------------


@needs_root
@by_asking
def test_a_cause_that_stays(scene, trap, control):
    """OctoPrint is freed once, tried once more, and left alone; until `retry`, or the printer's return."""
    scene.forbid()
    daemon = scene.watch()
    trap.shut()
    trap.opened(daemon)
    daemon.expect(" told OctoPrint to connect")
    trap.shut()
    assert_stays(lambda: scene.says(*OPENING), STAYS, lambda: f"left, but {scene}")
    command = [sys.executable, "-m", "portretry_udev", "retry", "--control", control]
    subprocess.run(command, check=True, timeout=AT_ONCE, capture_output=True)
    trap.opened(daemon)
    daemon.expect(" told OctoPrint to connect")
    trap.shut()
    scene.printer.unplug()
    scene.printer.plug()
    trap.opened(daemon)
    trap.over(daemon, attempts=4, freed=3)


@pytest.fixture
def patient(octoprint_version, programs, tmp_path):
    """An OctoPrint that waits for a silent printer for longer than the trap's rule does."""
    place = ("plugins", "serial_connector") if octoprint_version.startswith("2.") else ("serial",)
    extra = {"timeout": {"communication": PATIENCE}}
    for name in reversed(place):
        extra = {name: extra}
    node = str(tmp_path / "ttyFAKE1")
    with RealOctoPrint(
        octoprint_version, tmp_path / "octoprint", [node], node, extra=extra, cache=programs
    ) as server:
        yield server


@by_asking
def test_a_slow_printer_is_no_trap(patient, watch, tmp_path):
    """A person pressed Connect, and OctoPrint waits for a silent printer: it is left to it, to its end."""
    node = tmp_path / "ttyFAKE1"
    with Printer(link=node) as printer:
        printer.hung = True
        daemon = watch("--octoprint", patient.url, key_file=patient.key_file, port=node)
        daemon.expect(" listening: ")
        patient.connect(str(node))
        daemon.expect(" connecting: .*hands off")
        took = assert_eventually(lambda: patient.state()[1] == "Offline", PATIENCE + AT_ONCE, daemon.log)
        assert took > FREED_WITHIN, "too short to prove anything"
        daemon.expect(" backing-off: ")
        assert patient.answered("204 POST /api/connection") == 1
        assert daemon.count(STUCK) == 0
        printer.hung = False
        daemon.expect(" connected: ", timeout=AT_ONCE)
