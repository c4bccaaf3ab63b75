"""The bench: the service as root in the guest, the minimal OctoPrint beside it, and a board to plug in.

Knows how the three fit together.  Must not know the stories: the tests tell them.
"""

import contextlib
import itertools
import json
import os
import re
import signal
from pathlib import Path

import pytest

import portretry_udev
from helpers import assert_eventually
from portretry_udev import control
from vm.boards import BOOT, Board

FULL = os.environ.get("PORTRETRY_TEST_FULL") == "1"
KEY = "K" * 32
SOURCE = "/opt/source"  # in the guest: the package, and what runs beside it
CONTROL = "/run/portretry.sock"
STATE = "/var/lib/portretry"
# The command's own line to the control socket: to start the command itself takes an emulated machine seconds.
_TELL = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.sendall(sys.argv[2].encode() + b"\\n")
    print(s.makefile().readline())
"""
_STATES = (
    "absent backing-off connected connecting faulted held in-use listening paused unconfigured unreachable"
)
_STATE = re.compile(rf"^\S+ \S+: ({_STATES.replace(' ', '|')}): ")
OPERATIONAL = r'"Operational"'
# Seconds.  Emulated on a busy machine all takes many times longer than on a printer's computer; nothing here
# is a promise of how fast the service is.
PATIENCE = 60.0


def on(*kinds):
    """A mark: this story is about these kinds of boards."""
    return pytest.mark.parametrize("shared", kinds, indirect=True, ids=str, scope="session")


def scaled(in_ci, in_full):
    """A number of rounds, or of seconds: the issue's with PORTRETRY_TEST_FULL=1, a smaller one in CI."""
    return in_full if FULL else in_ci


class Bench:
    """One service and one OctoPrint in a running machine, for boards of one kind.

    Args:
        machine: where.
        kind: of the boards; its node's name is the service's port.
        options: more of `portretry-udev watch`.
        patient: OctoPrint has its real timeouts, of up to 90 s, instead of short ones.

    Attributes:
        octoprint: the OctoPrint's process; its lines are its states.
        service: the service's process; its lines are its log (with -v).
        board: the one plugged in last.
    """

    _plugs = itertools.count(1)

    def __init__(self, machine, kind, *options, patient=False):
        self.machine, self.kind = machine, kind
        self._options, self._patience = options, "real" if patient else "short"
        self.board = None
        self._plugged = False

    def __enter__(self):
        self.machine.check(f"rm -rf {STATE}")
        self.machine.put("/root/key", KEY + "\n", 0o600)
        self.octoprint = self.python(
            f"{SOURCE}/octoprint.py", self._patience, KEY, "/dev/ttyACM*", "/dev/ttyUSB*"
        )
        url = json.loads(self.octoprint.expect('"url"', PATIENCE)[0].string)["url"]
        self.start_client(url)
        return self

    def start_client(self, url):
        """Start what is to bring the printer back to the OctoPrint there, and wait until it looks."""
        self.service = self.python(
            *("-m", "portretry_udev", "watch", "--octoprint", url, "--api-key-file", "/root/key"),
            *("--port", self.kind.chip.node, "--state-dir", STATE, "--control", CONTROL),
            *("-v", *self._options),
        )
        self.service.expect("absent", PATIENCE)

    def __exit__(self, *_):
        self.clear()
        for process in (self.service, self.octoprint):
            process.kill(signal.SIGKILL)
            process.wait(PATIENCE)

    def python(self, *words):
        """Start a Python in the guest that has the package."""
        return self.machine.spawn("python3", *words, PYTHONPATH=SOURCE)

    @contextlib.contextmanager
    def paused(self):
        """As by `portretry-udev pause`, and `resume` at the end, also of a story that fails."""
        self._tell("pause")
        try:
            yield
        finally:
            self._tell("resume")

    def status(self):
        """What `portretry-udev status --json` says of the printer."""
        (status,) = self._tell("status")["printers"].values()
        return status

    def _tell(self, word):
        line = json.dumps({"version": control.VERSION, "command": word})
        asked = self.machine.spawn("python3", "-c", _TELL, CONTROL, line)
        assert asked.wait(PATIENCE) == 0, asked.text
        answer = json.loads(asked.text)
        assert "error" not in answer, asked.text
        return answer

    def press(self, button):
        """At OctoPrint's screen, waiting for nothing: a line that `guest/octoprint.py` understands."""
        self.octoprint.write(button + "\n")

    # -- the board -------------------------------------------------------------------------------------
    def board_of(self, boot_delay=BOOT, powered=True):
        """A new board, not plugged in yet; the one before is cleared away."""
        self.clear()
        path = self.machine.dir / f"board{next(self._plugs)}.sock"
        self.board = Board(self.kind, path, boot_delay=boot_delay, powered=powered)
        self.octoprint.catch_up()
        self.service.catch_up()
        return self.board

    def plug(self):
        """Plug it in; returns the time of the order (host's monotonic clock)."""
        self._plugged = True
        return self.machine.plug("printer", self.board.path)

    def unplug(self):
        """Pull its plug; returns the time of the order."""
        self._plugged = False
        return self.machine.unplug("printer")

    def clear(self):
        """No board, and the service has seen that."""
        if self.board is None:
            return
        board, self.board = self.board, None
        if self._plugged:
            self._plugged = False
            self.machine.unplug("printer")
        board.close()
        self.wait_state("absent")

    def operational(self, after=0.0):
        """Wait until OctoPrint says once more, or first after that time, that it is Operational.

        Returns when (host's monotonic clock).
        """
        while (when := self.octoprint.expect(OPERATIONAL, PATIENCE)[1]) < after:
            pass
        return when

    def state(self):
        """What the service has said last of itself: `absent`, `listening`, ..."""
        said = self.service.said(_STATE)
        return re.search(_STATE, said[-1])[1] if said else None

    def wait_state(self, state):
        """Wait until the service has said so last."""
        assert_eventually(lambda: self.state() == state, PATIENCE, lambda: f"{state}, but {self.account()}")

    def account(self):
        """All that was said and felt, for a failed test."""
        felt = self.board.story() if self.board else "no board"
        texts = (self.service.text[-6000:], self.octoprint.text[-2000:], felt[-4000:])
        return "\n".join(
            f"--- {who}:\n{text}" for who, text in zip(("service", "OctoPrint", "board"), texts, strict=True)
        )

    def connects(self):
        """How many connect commands OctoPrint has taken, by its last word."""
        said = self.octoprint.said('"connects"')
        return json.loads(said[-1])["connects"] if said else 0

    def nodes(self):
        """The serial nodes that there are."""
        return self.machine.check("ls /dev | grep -E 'tty(ACM|USB)' || true").split()


def copy_package(machine):
    """Put the package under test into the guest, wherever this run has found it."""
    machine.put_tree(Path(portretry_udev.__file__).parent, f"{SOURCE}/portretry_udev")
    machine.put_tree(Path(__file__).parent / "guest", SOURCE)
