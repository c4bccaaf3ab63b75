"""What containers see: namespaces as container managers make them, on the real kernel with a real udevd.

No container manager is needed: `unshare` makes the same namespaces.  What was tried with the managers
themselves stands in docs/containers.md.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import portretry_udev
import umock
from helpers import assert_eventually
from remote_devices import RemoteDevices
from system.conftest import Udevd

pytestmark = pytest.mark.system

SERIAL = "CZPX1234X004XC00001"

# Each replaces itself by the command that follows it.
OWN_NETWORK = ("unshare", "--net")
OWN_NETWORK_AND_USERS = ("unshare", "--user", "--map-root-user", "--net")
OWN_DEV = (
    *("unshare", "--mount", "sh", "-c"),
    # The ptys stay: they stand in for printers.
    (
        "mount --bind /dev/pts /mnt && mount -t tmpfs none /run && mount -t tmpfs none /dev && "
        "mkdir /dev/pts && mount --move /mnt /dev/pts && mknod -m 666 /dev/null c 1 3 && "
        'mknod -m 666 /dev/ptmx c 5 2 && mknod -m 666 /dev/urandom c 1 9 && exec "$0" "$@"'
    ),
)
HOSTS_DEV = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$0" "$@"')

ROWS = [  # of the table in docs/containers.md: where, whose events, and a word of why not udevd's
    pytest.param((), "udev", "", id="host"),
    pytest.param(OWN_NETWORK, "kernel", "no udevd is in this network namespace", id="own network"),
    pytest.param(OWN_NETWORK_AND_USERS, "none", "unprivileged", id="own network and users"),
    pytest.param("own users", "none", "user namespace", id="own users, the host's network"),
    pytest.param(OWN_DEV, "kernel", "/run/udev is not mounted", id="own /dev, the host's network"),
    pytest.param(HOSTS_DEV, "udev", "", id="the host's /dev, no /run/udev"),
    pytest.param((*OWN_NETWORK, *OWN_DEV), "kernel", "/run/udev is not mounted", id="own network and /dev"),
]


@pytest.fixture
def container(request: pytest.FixtureRequest) -> Iterator[Sequence[str]]:
    """The beginning of a command that is to run in a container."""
    if request.param == "own users":
        with own_users() as prefix:
            yield prefix
    else:
        yield request.param


@contextlib.contextmanager
def own_users() -> Iterator[Sequence[str]]:
    """The host's network, and a user namespace whose root is not the host's.

    As with 65536 ids of its own (nspawn --private-users), but with the host's root among them, under another
    number: its files are what root in here may read.
    """
    holder = subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE)
    try:
        own = Path(f"/proc/{holder.pid}/ns/user")
        assert_eventually(lambda: own.readlink() != Path("/proc/self/ns/user").readlink(), 5, "unshared")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text("0 100000 1\n1 0 1\n")
        yield ("nsenter", f"--target={holder.pid}", "--user", "--setuid=0", "--setgid=0")
    finally:
        holder.stdin.close()
        holder.wait(5)


@pytest.mark.parametrize(("container", "events", "reason"), ROWS, indirect=["container"])
def test_what_is_foretold_is_what_is_heard(udevd, container, events, reason):
    """Promise 9: whose events arrive is known, told with its reason, and true: they arrive, or none does."""
    with RemoteDevices() as witness, RemoteDevices(container) as inside:
        assert witness.ask("events") == ["udev", ""]
        foretold, why = inside.ask("events")
        udevd.trigger("change")
        # udevd speaks after the kernel, and a multicast is delivered to all or none: nothing is on its way.
        witness.wait_for(action="change", node=f"/dev/{Udevd.SPARE}")
        heard = inside.ask("read", timeout=0)

    assert (foretold, reason in why) == (events, True)
    assert bool(why) == (events != "udev")
    assert [uevent["node"] for uevent in heard] == ([] if events == "none" else [f"/dev/{Udevd.SPARE}"])


@pytest.mark.usefixtures("udevd")
@pytest.mark.parametrize(("container", "events", "reason"), ROWS, indirect=["container"])
def test_status_tells_whose_events_arrive(container, events, reason, tmp_path):
    """Each row's `events` in `status --json`; and where they are none, why, once in the log."""
    program = [*container, sys.executable, "-m", "portretry_udev"]
    sock = tmp_path / "control.sock"
    with service(
        *(*program, "watch", "--octoprint", "http://127.0.0.1:9", "--port", "/dev/no-such-port"),
        *("--control", sock, "--state-dir", tmp_path),
    ) as (process, log):
        assert_eventually(lambda: sock.exists() or process.poll() is not None, 20, "no control socket")
        status = [*program, "status", "--json", "--control", sock]
        said = subprocess.run(status, env=environment(), capture_output=True, check=False)
    assert said.returncode == 0, f"{said} {log}"

    (printer,) = json.loads(said.stdout)["printers"].values()
    assert printer["events"] == events
    assert "".join(log).count("no device events here, the interval stands in: ") == (events == "none")
    assert events != "none" or reason in "".join(log)


# A network of its own begins with its loopback down: SIOCSIFFLAGS, IFF_UP.  The host's is up.
DEMO = """
import contextlib, fcntl, os, socket, struct, sys
with socket.socket() as s, contextlib.suppress(PermissionError):
    fcntl.ioctl(s, 0x8914, struct.pack("16sh22x", b"lo", 1))
os.execv(sys.executable, [sys.executable, "-m", "portretry_udev", "demo"])
"""


@pytest.mark.usefixtures("udevd")
def test_the_printer_comes_back_in_every_container():
    """The demo's steps, in all rows at once: no event of its printer, a pty, comes; notes and interval do."""
    with own_users() as users, contextlib.ExitStack() as stack:
        demos = {}
        for row in ROWS:
            prefix = users if row.values[0] == "own users" else row.values[0]
            command = [*prefix, sys.executable, "-c", DEMO]
            demos[row.id] = stack.enter_context(
                subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            )
        said = {row: demo.communicate(timeout=120)[0].decode() for row, demo in demos.items()}

    assert {row: demo.returncode for row, demo in demos.items()} == dict.fromkeys(demos, 0), said
    assert all("steps ended as promised" in text for text in said.values())


@pytest.fixture
def in_container(testbed: umock.Testbed) -> Iterator[RemoteDevices]:
    """A `Devices` with fake printers in the kernel (umockdev), in a container that keeps its nodes."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a mount namespace")
    with RemoteDevices(OWN_DEV, env=testbed.env) as devices:
        yield devices


def test_a_stale_node_is_recognised_named_and_recovered_from(testbed, in_container):
    """The printer was ttyACM0 when the node was made and is ttyACM1 now; then the node is made right."""
    testbed.add_acm("ttyACM7", serial="NEIGHBOUR", socket="1-7")
    testbed.leave("/dev/ttyACM0", os.makedev(166, 0))
    off = in_container.find(path="/dev/ttyACM0")
    now = testbed.add_acm("ttyACM1", serial=SERIAL)
    testbed.take("/dev/ttyACM1")
    stale = in_container.find(path="/dev/ttyACM0")

    assert off["why"] == (
        "/dev/ttyACM0 is only a node, no device 166:0 is there: the printer is unplugged or switched off"
    )
    assert stale["why"].startswith(
        "/dev/ttyACM0 is stale: it is for device 166:0, "
        f"ttyACM1 is {os.major(now.number)}:{os.minor(now.number)}; "
    )
    assert len(stale["why"]) <= 200
    assert in_container.find(path="/dev/ttyACM0", serial=SERIAL)["why"] == stale["why"]
    testbed.leave("/dev/ttyACM0", now.number)
    assert in_container.find(path="/dev/ttyACM0", serial=SERIAL)["serial"] == SERIAL


def test_a_link_to_a_node_that_is_another_s_is_not_followed(testbed, in_container):
    """The host's /dev/serial shown in a container that has given the name to another device: promise 7."""
    ours = testbed.add_acm("ttyACM0", serial=SERIAL)
    neighbour = testbed.add_acm("ttyACM1", serial="NEIGHBOUR", socket="1-2")
    testbed.leave("/dev/ttyACM0", neighbour.number)

    assert in_container.find(path=ours.by_id)["why"].startswith(
        f"/dev/ttyACM0 is stale: it is for device 136:{os.minor(neighbour.number)}, "
        f"ttyACM0 is 136:{os.minor(ours.number)}; "
    )


def test_a_printer_without_a_node_is_told_with_what_to_give(testbed, in_container):
    """Plugged in after the container's start, which has not been given /dev: said, with the cure."""
    testbed.add_acm("ttyACM0", serial=SERIAL)
    testbed.take("/dev/ttyACM0")

    for wanted in ({"path": "/dev/ttyACM0"}, {"serial": SERIAL}):
        why = in_container.find(**wanted)["why"]
        assert why.startswith("/dev/ttyACM0 is plugged in, but has no node here: ")
        assert "c 136" in why
        assert len(why) <= 200


@pytest.mark.parametrize("name", ["/dev/printer", "/dev/serial/by-id/usb-X-if00"])
def test_a_printer_is_followed_through_a_node_of_another_name(testbed, in_container, name):
    """`docker run --device /dev/ttyACM0:NAME`: by name, and by what it is."""
    acm = testbed.add_acm("ttyACM0", serial=SERIAL)
    for path in (acm.node, acm.by_id, acm.by_path):
        testbed.take(path)
    testbed.leave(name, acm.number)

    assert in_container.find(path=name)["serial"] == SERIAL
    assert in_container.find(serial=SERIAL)["path"] == name


@contextlib.contextmanager
def service(*command) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run it; its log is there when it has ended."""
    log: list[str] = []
    words = [str(word) for word in command]
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        yield process, log
    finally:
        process.terminate()
        log += process.communicate(timeout=10)[1].splitlines(keepends=True)


def environment() -> dict[str, str]:
    package = Path(portretry_udev.__file__).parents[1]  # an installed one, or the checkout's src
    return os.environ | {"PYTHONPATH": str(package), "PORTRETRY_API_KEY": "K" * 32}
