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
# A shell's: replaces itself by the command after it, in a /dev of its own with one node; says who it is.
OWN_DEV = (
    "mount -t tmpfs none /run/udev && mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && "
    "mknod -m 666 /dev/urandom c 1 9 && mknod -m 660 /dev/ttyACM0 c 166 0 && echo $$ > /root/inside && "
    'exec "$0" "$@"'
)
_STATES = (
    "absent backing-off connected connecting faulted held in-use listening paused unconfigured unreachable"
)
_STATE = rf"^\S+ {{name}}: ({_STATES.replace(' ', '|')}): "
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
        name: the printer's, and its plug's; it has a port of the hub to itself.

    Attributes:
        octoprint: the OctoPrint's process; its lines are its states.
        service: the service's process; its lines are its log (with -v).
        board: the one plugged in last.
        control: the service's control socket.
    """

    control = CONTROL
    _plugs = itertools.count(1)

    def __init__(self, machine, kind, *options, patient=False, name="printer"):
        self.machine, self.kind, self.name = machine, kind, name
        self._options, self._patience = options, "real" if patient else "short"
        self.board = None
        self._plugged = False

    def __enter__(self):
        self.machine.check(f"rm -rf {STATE}")
        self.start_octoprint()
        self.start_client(self.url())
        return self

    def start_octoprint(self):
        """Start the OctoPrint, and wait for nothing."""
        self.machine.put("/root/key", KEY + "\n", 0o600)
        self.octoprint = self.python(
            f"{SOURCE}/octoprint.py", self._patience, KEY, "/dev/ttyACM*", "/dev/ttyUSB*"
        )

    def url(self):
        """Where it answers, as it says at its start."""
        return json.loads(self.octoprint.expect('"url"', PATIENCE)[0].string)["url"]

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
        """As by `portretry-udev pause NAME`, and `resume` at the end, also of a story that fails."""
        self._tell("pause")
        try:
            yield
        finally:
            self._tell("resume")

    def status(self):
        """What `portretry-udev status --json` says of the printer."""
        return self._tell("status")["printers"][self.name]

    def _tell(self, word):
        line = json.dumps({"version": control.VERSION, "command": word, "printer": self.name})
        asked = self.machine.spawn("python3", "-c", _TELL, self.control, line)
        assert asked.wait(PATIENCE) == 0, asked.text
        answer = json.loads(asked.text)
        assert "error" not in answer, asked.text
        return answer

    def press(self, button):
        """At OctoPrint's screen, waiting for nothing: a line that `guest/octoprint.py` understands."""
        self.octoprint.write(button + "\n")

    # -- the board -------------------------------------------------------------------------------------
    def board_of(self, boot_delay=BOOT, powered=True, kind=None):
        """A new board, not plugged in yet; the one before is cleared away."""
        self.clear()
        self.board = Board(kind or self.kind, self._path(), boot_delay=boot_delay, powered=powered)
        self.octoprint.catch_up()
        self.service.catch_up()
        return self.board

    def _path(self):
        """Of a socket for the next board."""
        return self.machine.dir / f"board{next(self._plugs)}.sock"

    def plug(self):
        """Plug it in; returns the time of the order (host's monotonic clock)."""
        self._plugged = True
        return self.machine.plug(self.name, self.board.path)

    def unplug(self):
        """Pull its plug; returns the time of the order."""
        self._plugged = False
        return self.machine.unplug(self.name)

    def clear(self):
        """No board, and the service has seen that."""
        if self.board is None:
            return
        board, self.board = self.board, None
        if self._plugged:
            self._plugged = False
            self.machine.unplug(self.name)
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
        pattern = _STATE.format(name=self.name)
        said = self.service.said(pattern)
        return re.search(pattern, said[-1])[1] if said else None

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

    @contextlib.contextmanager
    def stranger(self):
        """One more board, that is nobody's."""
        with contextlib.closing(Board(self.kind, self._path())) as board:
            self.machine.plug("stranger", board.path)
            try:
                yield board
            finally:
                self.machine.unplug("stranger")

    def nodes(self):
        """The serial nodes that there are."""
        return self.machine.check("ls /dev | grep -E 'tty(ACM|USB)' || true").split()

    def wait_node(self, name):
        """Wait until there is such a node in /dev, or a link of that name."""
        self.machine.check(f"until [ -e {name} ]; do sleep 0.02; done", PATIENCE)


class Seat(Bench):
    """One of several printers: its OctoPrint, its port of the hub, and the board in there.

    Attributes:
        path: of its port of the hub, in udev's words.
    """

    def __init__(self, machine, kind, name):
        super().__init__(machine, kind, name=name)
        self.path = machine.path(name)

    def node(self):
        """What the kernel calls the board that is plugged in there now."""
        return self.machine.check(f"readlink -f /dev/serial/by-path/{self.path}*").strip()

    def opened(self):
        """What OctoPrint calls the port that it has."""
        return json.loads(self.octoprint.said('"port"')[-1])["port"]


class Several:
    """Several printers, each with an OctoPrint and a port of the hub, and one service for them.

    Args:
        machine: where.
        kind: of the boards.
        names: of the printers.

    Attributes:
        seats: the printers, by name.
        service: the service's process, once it watches.
    """

    def __init__(self, machine, kind, *names):
        self.machine = machine
        self.seats = {name: Seat(machine, kind, name) for name in names}
        self.service = self._watches = None

    def __enter__(self):
        for seat in self.seats.values():
            seat.start_octoprint()
        self._urls = {name: seat.url() for name, seat in self.seats.items()}
        return self

    def __exit__(self, *_):
        self.stop()
        for seat in self.seats.values():
            seat.octoprint.kill(signal.SIGKILL)
            seat.octoprint.wait(PATIENCE)

    def watch(self, **tables):
        """Have the service run with these lines of TOML for each printer; it has looked at the end."""
        if tables == self._watches:
            return
        self.stop()
        where = 'octoprint = "{}"\napi_key_file = "/root/key"\n'
        text = f'state_dir = "{STATE}"\ncontrol = "{CONTROL}"\ninterval = 2\n'
        for name, lines in tables.items():
            text += f"[printers.{name}]\n{where.format(self._urls[name])}{lines}\n"
        self.machine.put("/root/config.toml", text)
        self.machine.check(f"rm -rf {STATE}")
        words = ("-m", "portretry_udev", "watch", "--config", "/root/config.toml", "-v")
        self.service = self.machine.spawn("python3", *words, PYTHONPATH=SOURCE)
        self._watches = tables
        for name in tables:
            seat = self.seats[name]
            seat.service = self.service
            assert_eventually(lambda it=seat: it.state() or self.service.status, PATIENCE, self.account)
        assert self.service.status is None, self.service.text

    def stop(self):
        """No service."""
        if self.service is not None:
            self.service.kill(signal.SIGKILL)
            self.service.wait(PATIENCE)
        self._watches = None

    def clear(self):
        """Nothing is plugged in any more, and the service has seen that."""
        with contextlib.ExitStack() as all_of_them:  # also where one fails
            for seat in self.seats.values():
                all_of_them.callback(seat.clear)
        self.machine.check("while ls /dev/ttyACM* /dev/ttyUSB*; do sleep 0.02; done 2> /dev/null", PATIENCE)

    def account(self):
        """All that was said and felt, for a failed test."""
        return "\n".join(f"=== {name}\n{seat.account()}" for name, seat in self.seats.items())


def copy_package(machine):
    """Put the package under test into the guest, wherever this run has found it."""
    machine.put_tree(Path(portretry_udev.__file__).parent, f"{SOURCE}/portretry_udev")
    machine.put_tree(Path(__file__).parent / "guest", SOURCE)
