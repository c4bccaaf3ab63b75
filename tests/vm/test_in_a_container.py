"""The service in a container with nodes of its own, and a printer that is plugged and pulled outside of it.

The container is made of namespaces: its /dev is a tmpfs with one node, made by mknod, and there is no
/run/udev.  The interval is a minute: what is noticed sooner is noticed by the kernel's own events.
"""

import os

import pytest

from vm.bench import CONTROL, OWN_DEV, PATIENCE, SOURCE, STATE, Bench, copy_package
from vm.boards import MEGA2560
from vm.machine import Machine, built

pytestmark = pytest.mark.vm


class Contained(Bench):
    """The service in a container, OctoPrint outside."""

    def start_client(self, url):
        self.service = self.machine.spawn(
            *("unshare", "--mount", "sh", "-c", OWN_DEV, "python3", "-m", "portretry_udev", "watch"),
            *("--octoprint", url, "--api-key-file", "/root/key", "--port", "/dev/ttyACM0"),
            *("--state-dir", STATE, "--control", CONTROL, "--interval", "60", "-v"),
            PYTHONPATH=SOURCE,
        )
        self.service.expect("absent", PATIENCE)

    def inside(self, line):
        """Have a shell in the container do a line."""
        return self.machine.check(f"nsenter --mount --target $(cat /root/inside) sh -c '{line}'")


@pytest.fixture(scope="module")
def container(machine):  # noqa: ARG001 - it skips where no machine can be built
    """In a machine of its own: in the others' their service would be after the same board."""
    with Machine(built()) as own:
        copy_package(own)
        with Contained(own, MEGA2560) as bench:
            yield bench


@pytest.fixture
def bench(container):
    yield container
    container.clear()


def test_a_printer_returns_behind_a_node_that_stays(bench):
    """PortRetry's case: the node is always there.  On and off are told by the kernel, and OctoPrint by us."""
    bench.board_of()
    bench.plug()
    bench.operational()
    bench.wait_state("connected")
    bench.unplug()
    bench.service.expect("/dev/ttyACM0 is only a node, no device 166:0 is there", PATIENCE)
    bench.plug()
    bench.operational()
    bench.wait_state("connected")


def test_a_stale_node_is_told_and_taken_when_it_is_right(bench):
    """The printer comes back as ttyACM1, since somebody has kept ttyACM0 open: said, with what to do."""
    bench.board_of()
    bench.plug()
    bench.operational()
    bench.wait_state("connected")
    # The open makes it the keeper's terminal, and a hang-up would end it.
    keeper = bench.machine.spawn("sh", "-c", "trap '' HUP; exec 3<> /dev/ttyACM0; echo kept; exec sleep 600")
    keeper.expect("kept", PATIENCE)
    bench.unplug()
    bench.service.expect("is only a node", PATIENCE)
    bench.plug()
    bench.service.expect(
        "/dev/ttyACM0 is stale: it is for device 166:0, ttyACM1 is 166:1; "
        "in here: `rm /dev/ttyACM0; mknod -m 660 /dev/ttyACM0 c 166 1`",
        PATIENCE,
    )
    bench.inside("rm /dev/ttyACM0; mknod -m 660 /dev/ttyACM0 c 166 1")
    number = os.makedev(166, 1)
    bench.service.expect(rf"NodeSeen\(node=Node\(path='/dev/ttyACM0', identity=\({number},", PATIENCE)
    keeper.kill()
    keeper.wait(PATIENCE)
    bench.inside("rm /dev/ttyACM0; mknod -m 660 /dev/ttyACM0 c 166 0")
