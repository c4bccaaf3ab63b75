"""The real kernel and the real udevd: what is heard of it, what is told where it cannot be heard."""

import os
import re
import resource
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import umock
from helpers import assert_eventually
from portretry_udev.devices import Devices, Missing, Node, Uevent, Wanted
from remote_devices import RemoteDevices, make_the_socket_tiny

pytestmark = pytest.mark.system

RULES = Path(__file__).parents[2] / "udev" / "99-portretry.rules"


@pytest.fixture
def devices(udevd) -> Iterator[Devices]:
    assert_eventually(udevd.answers, 10, "udevd runs before we listen")  # it has 5 s for each ping
    with Devices() as listening:
        listening.start()
        yield listening


@pytest.fixture
def rule_bench(request: pytest.FixtureRequest) -> None:
    """What `udevadm test` needs; it writes its database and links for real."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a rule is tried in a mount namespace")
    if not shutil.which("udevadm"):
        pytest.skip("needs udevadm: apt install udev")
    request.getfixturevalue("untouched")


def wait_for(devices: Devices, wanted: Callable[[Uevent], bool], timeout: float = 10.0) -> list[Uevent]:
    """Everything that is heard up to the first uevent that is wanted."""
    ready = select.poll()
    ready.register(devices.fileno(), select.POLLIN)
    deadline = time.monotonic() + timeout
    heard: list[Uevent] = []
    while not any(map(wanted, heard)):
        left = deadline - time.monotonic()
        assert left > 0, f"not heard within {timeout} s, only {heard}"
        ready.poll(left * 1000)
        heard += devices.read()
    return heard


@pytest.mark.parametrize("action", ["add", "change", "remove"])
def test_an_event_of_the_kernel_is_heard_with_its_node_and_number(udevd, devices, action):
    """The whole line: kernel, udevd, netlink, libudev, pyudev, `Devices`."""
    udevd.trigger(action)

    uevent = wait_for(devices, lambda uevent: uevent.node == f"/dev/{udevd.SPARE}")[-1]

    assert (uevent.action, uevent.number) == (action, os.makedev(4, 62))
    assert devices.events == "udev"
    assert devices.events_why == ""


def test_other_subsystems_are_not_heard(udevd, devices):
    """Only ttys are told: a machine's disks and displays wake nobody."""
    udevd.trigger("change", "null", "mem")
    udevd.trigger("change")

    heard = wait_for(devices, lambda uevent: uevent.node == f"/dev/{udevd.SPARE}")

    assert [uevent.node for uevent in heard] == [f"/dev/{udevd.SPARE}"]


def test_a_node_is_settling_until_udevd_has_finished_with_it(udevd, devices):
    """A node that udevd has not yet prepared is not handed out, and the event that ends this is heard."""
    node = f"/dev/{udevd.SPARE}"
    udevd.trigger("remove")
    wait_for(devices, lambda uevent: uevent.action == "remove")
    before = devices.find(Wanted(node))
    udevd.trigger("add")
    wait_for(devices, lambda uevent: uevent.action == "add")
    after = devices.find(Wanted(node))

    assert isinstance(before, Missing)
    assert before.settling
    assert isinstance(after, Node)


def test_an_overrun_is_told_and_survived(udevd, devices):
    """Promise 9: more events than the socket holds end in one "lost"; hearing goes on, same descriptor."""
    make_the_socket_tiny(devices)
    before = devices.fileno()
    for _ in range(20):
        for number in range(1, 63):
            udevd.trigger("change", f"tty{number}")
    subprocess.run(["udevadm", "settle", "--timeout=30"], check=True)

    wait_for(devices, lambda uevent: uevent.lost)

    assert devices.events == "udev", "the first overrun is met at once"
    udevd.trigger("change")
    wait_for(devices, lambda uevent: uevent.node == f"/dev/{udevd.SPARE}")
    assert devices.fileno() == before


def test_overrun_upon_overrun_costs_no_processor_time(udevd, devices):
    """A storm that goes on is sat out: nothing spins, and the time to listen again is known."""
    for _ in range(2):
        make_the_socket_tiny(devices)
        for number in range(1, 63):
            udevd.trigger("change", f"tty{number}")
        subprocess.run(["udevadm", "settle", "--timeout=30"], check=True)
        devices.read()
    assert devices.retry_at is not None
    assert "lost" in devices.events_why

    ready = select.poll()
    ready.register(devices.fileno(), select.POLLIN)
    used = _processor_time()
    wakes = 0
    while time.monotonic() < devices.retry_at:
        ready.poll(max(0.0, devices.retry_at - time.monotonic()) * 1000 + 1)
        wakes += 1
    assert devices.read() == [Uevent("lost")]

    assert wakes <= 2
    assert _processor_time() - used < 0.2
    assert devices.events == "udev"


@pytest.mark.parametrize("network", [(), ("unshare", "--net")], ids=["udev", "kernel"])
def test_ten_thousand_events_are_heard_and_cost_little(udevd, network):
    """A burst while we are busy elsewhere: none is lost as long as the socket holds, and then it is quiet."""
    with RemoteDevices(network) as devices:
        for _ in range(162):
            for number in range(1, 63):
                udevd.trigger("change", f"tty{number}")
        udevd.trigger("remove")
        subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)
        used = devices.ask("seconds")
        devices.wait_for(action="remove", timeout=60)
        while more := devices.ask("read", timeout=0.5):  # udevd's workers overtake each other
            devices.heard += more
        used = devices.ask("seconds") - used

    lost = [uevent for uevent in devices.heard if uevent["action"] == "lost"]
    assert len(devices.heard) > 10_000 or lost, "all of it, or the word that it was not all"
    assert used < 5.0, "seconds of processor time"


@pytest.mark.parametrize("network", [(), ("unshare", "--net")], ids=["udev", "kernel"])
def test_a_process_that_slept_through_a_storm_finds_what_is_there(udevd, network):
    """Stopped as in a suspend, the socket overrun meanwhile: told as lost, heard again, found."""
    with RemoteDevices(network) as devices:
        devices.ask("shrink")
        with devices.stopped():
            for number in range(1, 63):
                udevd.trigger("change", f"tty{number}")
            subprocess.run(["udevadm", "settle", "--timeout=30"], check=True)
        devices.wait_for(action="lost")
        udevd.trigger("change")
        devices.wait_for(action="change", node=f"/dev/{udevd.SPARE}")
        assert devices.find(path=f"/dev/{udevd.SPARE}")["number"] == os.makedev(4, 62)


def test_a_restart_of_udevd_is_survived(udevd, devices):
    """Promise 9: events of the new udevd are heard by the old monitor, and its absence is told meanwhile."""
    if udevd.ours is None:
        pytest.skip("the udevd of this machine is not ours to restart")
    udevd.end()
    assert devices.events == "none"
    assert "no udevd" in devices.events_why
    udevd.begin()
    udevd.trigger("change")

    wait_for(devices, lambda uevent: uevent.node == f"/dev/{udevd.SPARE}")

    assert devices.events == "udev"


@pytest.mark.usefixtures("rule_bench")
def test_the_rule_is_valid_and_marks_usb_serial_ports_alone(testbed):
    """Every line of the file is taken; a fake ttyACM gets the tag, a console and a removal do not."""
    acm = testbed.add_acm("ttyACM0")
    testbed.add_acm("tty62", socket="1-2")
    console = acm.syspath.replace("1-1", "1-2").replace("ttyACM0", "tty62")

    # Since systemd 254 there is a check that needs no device, and is stricter.
    if int(subprocess.check_output(["udevadm", "--version"], text=True).split()[0]) >= 254:
        subprocess.run(["udevadm", "verify", RULES], check=True)
    marked, complaints = _udevadm_test(testbed, acm.syspath, "add")
    others = [_udevadm_test(testbed, console, "add"), _udevadm_test(testbed, acm.syspath, "remove")]

    assert "portretry" in marked
    assert complaints == []
    assert [tags & {"portretry"} for tags, _ in others] == [set(), set()]


@pytest.mark.usefixtures("rule_bench")
def test_a_mistake_in_a_rule_would_be_found(testbed, tmp_path):
    """The check above is able to fail: udev's complaint about a broken line is seen."""
    broken = tmp_path / RULES.name
    broken.write_text(RULES.read_text() + 'KERNEL=="x", TAGG+="y"\n')

    _, complaints = _udevadm_test(testbed, testbed.add_acm("ttyACM0").syspath, "add", broken)

    assert len(complaints) == 1
    assert "TAGG" in complaints[0]


def _udevadm_test(
    testbed: umock.Testbed, syspath: str, action: str, rules: Path = RULES
) -> tuple[set[str], list[str]]:
    """The tags that the rules give to a fake device, and what udev says about the file."""
    script = (
        "set -e; mkdir -p /run/udev /dev/char; mount -t tmpfs none /run/udev; mount -t tmpfs none /dev/char; "
        'mkdir /run/udev/rules.d; cp "$0" /run/udev/rules.d; exec env "$@"'
    )
    preload = [f"{name}={testbed.env[name]}" for name in ("LD_PRELOAD", "UMOCKDEV_DIR")]
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        rules,
        *preload,
        "udevadm",
        "test",
        f"--action={action}",
    ]
    done = subprocess.run([*command, syspath], capture_output=True, text=True, check=True)
    assert f"Reading rules file: /run/udev/rules.d/{rules.name}" in done.stderr
    tags = re.search(r"^CURRENT_TAGS=(.*)$", done.stdout, re.MULTILINE)
    complaints = [line for line in done.stderr.splitlines() if f"rules.d/{rules.name}:" in line]
    return set(tags[1].split(":")) if tags else set(), complaints


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
