"""A printer that is plugged and pulled outside of a container, with OctoPrint and the service in it.

One container for each kind of events, with no package but systemd-nspawn's.  The table of docs/containers.md
row by row, with the managers themselves, is tried by hand: containers/recipes.py.
"""

import contextlib
import shlex

import pytest

from vm.bench import OWN_DEV, PATIENCE, SOURCE, copy_package
from vm.boards import MEGA2560, Board
from vm.machine import Machine, built
from vm.together import Together

pytestmark = pytest.mark.vm

ROOT = "/mnt/root"  # the machine's own, for a container to have
NSPAWN = (
    f"systemd-nspawn -q --register=no --keep-unit --as-pid2 --pipe --read-only -D {ROOT} "
    f"-E PYTHONPATH={SOURCE}"
)
NODE = "--bind=/dev/ttyACM0"  # what the kernel leaves of it, only root with all rights may open
OWN_USERS = "--private-users=65536:65536 --bind=/srv/ttyACM0:/dev/ttyACM0"

GATE, NETWORK = "/run/udev is not mounted", "no udevd is in this network namespace"
USERS, BOTH = "do not pass into this container's user namespace", "this unprivileged container's network"


# Where events arrive, what is noticed is noticed by them: the interval is longer than any patience here.
SELDOM = "interval = 300"


@contextlib.contextmanager
def beside(machine, container, *lines):
    """An OctoPrint and the service together in a container."""
    both = Together(machine, container, "\n".join(('port = "/dev/ttyACM0"', *lines)))
    try:
        yield both
    finally:
        both.process.kill()
        both.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def own():
    """A machine of its own: in the others' their service would be after the same board."""
    with Machine(built()) as machine:
        copy_package(machine)
        machine.check(f"mkdir -p {ROOT} && mount --bind / {ROOT}")
        machine.check("mknod -m 660 /srv/ttyACM0 c 166 0 && chown 65536:65536 /srv/ttyACM0")
        yield machine


@pytest.fixture
def board(own):
    """Plugged in, and for everybody: root in a user namespace is a stranger to the host's nodes."""
    with contextlib.closing(Board(MEGA2560, own.dir / "each.sock")) as board:
        own.plug("printer", board.path)
        own.check(
            "until [ -e /dev/ttyACM0 ]; do sleep 0.02; done; udevadm settle; chmod 666 /dev/ttyACM0", 60
        )
        yield board
        own.unplug("printer")
        own.check("while ls /dev/ttyACM*; do sleep 0.02; done 2> /dev/null", 60)


@pytest.mark.parametrize(
    ("container", "events", "reason", "off"),
    [
        pytest.param("unshare --net", "kernel", NETWORK, "not there", id="own network"),
        pytest.param("unshare -U -r --net", "none", BOTH, "not there", id="own users and network"),
        pytest.param(f"{NSPAWN} {OWN_USERS}", "none", USERS, "only a node", id="nspawn, own users"),
        pytest.param(
            f"{NSPAWN} {NODE} --bind-ro=/run/udev", "udev", "", "only a node", id="nspawn, /run/udev"
        ),
    ],
)
def test_the_printer_comes_back(own, board, container, events, reason, off):  # noqa: PLR0913, PLR0917 - one row of a table
    """Unplugged and plugged in again outside: told in the right words, and back, with events or without."""
    interval = "" if events == "none" else SELDOM
    with beside(own, container, interval) as both:
        assert both.connected(PATIENCE), both.process.text
        assert both.status()["events"] == events
        assert reason in both.process.text
        own.unplug("printer")
        assert both.says(f"/dev/ttyACM0 is {off}", PATIENCE), both.process.text
        both.mark()
        own.plug("printer", board.path)
        own.check("until [ -e /dev/ttyACM0 ]; do sleep 0.02; done; chmod 666 /dev/ttyACM0", 60)
        assert both.connected(PATIENCE), both.process.text


def test_behind_a_node_that_stays(own, board):
    """PortRetry's case: the printer is back, as before; or as ttyACM1, and what is told then helps."""
    with beside(own, f"unshare --mount sh -c {shlex.quote(OWN_DEV)}", SELDOM) as both:
        assert both.connected(PATIENCE), both.process.text
        assert both.status()["events"] == "kernel"
        own.unplug("printer")
        assert both.says("/dev/ttyACM0 is only a node, no device 166:0 is there", PATIENCE), both.process.text
        both.mark()
        own.plug("printer", board.path)
        assert both.connected(PATIENCE), both.process.text

        # The open makes it the keeper's terminal, and a hang-up would end it.
        keeper = own.spawn("sh", "-c", "trap '' HUP; exec 3<> /dev/ttyACM0; echo kept; exec sleep 600")
        keeper.expect("kept", PATIENCE)
        own.unplug("printer")
        assert both.says("/dev/ttyACM0 is only a node", PATIENCE), both.process.text
        both.mark()
        own.plug("printer", board.path)
        cure = "rm /dev/ttyACM0; mknod -m 660 /dev/ttyACM0 c 166 1"
        assert both.says(f"stale: it is for device 166:0, ttyACM1 is 166:1; in here: `{cure}`", PATIENCE), (
            both.process.text
        )
        own.check(f"nsenter --mount --target $(cat /root/inside) sh -c '{cure}'")
        assert both.connected(PATIENCE), both.process.text
        keeper.kill()
        keeper.wait(PATIENCE)
