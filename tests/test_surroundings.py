"""What `surroundings` foretells, from files as the kernel and container managers write them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from portretry_udev.surroundings import Hearing, Surroundings

PROC = "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
HOST_DEV = "24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,mode=755\n"
OWN_DEV = "31 27 0:40 / /dev rw,nosuid - tmpfs tmpfs rw,mode=755\n"
SOCKETS = "Num       RefCount Protocol Flags    Type St Inode Path\n"
UDEVD = "000000006e0b4ad1: 00000002 00000000 00010000 0005 01 23456 /run/udev/control\n"
OTHERS = "000000003c5e0c2d: 00000003 00000000 00000000 0001 03 7656 /tmp/run/udev/control\n"
HOST_IDS = "         0          0 4294967295\n"
OWN_IDS = "         0     100000      65536\n"
NEEDED = 166 << 8  # /dev/ttyACM0's number

Write = Callable[[str, str | None], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def write(root: Path) -> Write:
    """Put a file there; None takes it away."""

    def write(name: str, content: str | None) -> None:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True) if content is None else file.write_text(content)

    write("run/udev/control", "")
    write("proc/self/mountinfo", PROC + HOST_DEV)
    write("proc/net/unix", SOCKETS + UDEVD)
    write("proc/self/uid_map", HOST_IDS)
    return write


GATE = "/run/udev is not mounted and /dev is not the host's"
NETWORK = "no udevd is in this network namespace"
USERS = "do not pass into this container's user namespace"


@pytest.mark.parametrize(
    ("control", "mounts", "sockets", "ids", "events", "reason"),
    [
        pytest.param(True, HOST_DEV, UDEVD, HOST_IDS, "udev", "", id="host"),
        pytest.param(True, OWN_DEV, UDEVD, HOST_IDS, "udev", "", id="with /run/udev"),
        pytest.param(False, HOST_DEV, UDEVD, HOST_IDS, "udev", "", id="with the host's /dev"),
        pytest.param(False, OWN_DEV, UDEVD, HOST_IDS, "kernel", GATE, id="with its own /dev"),
        pytest.param(
            False, HOST_DEV + OWN_DEV, UDEVD, HOST_IDS, "kernel", GATE, id="its /dev covers the host's"
        ),
        pytest.param(
            False, OWN_DEV + HOST_DEV, UDEVD, HOST_IDS, "udev", "", id="the host's /dev over another"
        ),
        pytest.param(False, "", UDEVD, HOST_IDS, "kernel", GATE, id="no mounts known"),
        pytest.param(True, HOST_DEV, OTHERS, HOST_IDS, "kernel", NETWORK, id="its own network"),
        pytest.param(True, HOST_DEV, None, HOST_IDS, "udev", "", id="sockets unknown"),
        pytest.param(True, HOST_DEV, UDEVD, OWN_IDS, "none", USERS, id="users of its own"),
        pytest.param(True, HOST_DEV, UDEVD, None, "udev", "", id="users unknown"),
        pytest.param(True, HOST_DEV, UDEVD, "0 0 1\n", "udev", "", id="only root is a user"),
        pytest.param(True, HOST_DEV, UDEVD, "1 0 1\n0 1000 1\n", "none", USERS, id="root is another user"),
    ],
)
def test_what_can_be_heard_is_known_beforehand(root, write, control, mounts, sockets, ids, events, reason):  # noqa: PLR0913, PLR0917 - one row of a table
    """Promise 9: libudev says nothing where it hears nothing; the conditions are known here, and told."""
    write("run/udev/control", "" if control else None)
    write("proc/self/mountinfo", PROC + mounts + PROC)
    write("proc/net/unix", None if sockets is None else SOCKETS + sockets)
    write("proc/self/uid_map", ids)

    hearing = Surroundings(str(root)).hearing()

    assert hearing.events == events
    assert reason in hearing.why
    assert bool(reason) == bool(hearing.why)
    assert len(hearing.why) <= 150, "Devices adds to it, and all is one line"


def test_this_very_machine_can_be_asked():
    """With the real /proc nothing is raised, whatever this machine is."""
    hearing = Surroundings().hearing()

    assert (hearing == Hearing("udev")) == (hearing.why == "")


@pytest.mark.parametrize(
    ("file", "content", "manager"),
    [
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        ("run/host/container-manager", "systemd-nspawn\n", "systemd-nspawn"),
        ("run/systemd/container", "lxc\n", "lxc"),
        ("proc/1/environ", "PATH=/bin\0container=lxc\0TERM=linux\0", "lxc"),
        ("proc/1/environ", "PATH=/bin\0mycontainer=lxc\0", ""),
        ("proc/self/environ", "PATH=/bin\0container=lxc\0", "lxc"),
        ("proc/1/cmdline", "init", ""),
    ],
)
def test_the_manager_is_known_by_the_marks_it_leaves(root, write, file, content, manager):
    """The advice is in the words of what runs the container; without a mark there is none."""
    write(file, content)

    assert Surroundings(str(root)).manager() == manager


@pytest.mark.parametrize(
    ("manager", "ids", "cure"),
    [
        ("docker", HOST_IDS, "start the container with `-v /dev:/dev --device-cgroup-rule 'c 166:* rmw'`"),
        ("podman", HOST_IDS, "start the container with `-v /dev:/dev --device-cgroup-rule 'c 166:* rmw'`"),
        (
            "systemd-nspawn",
            HOST_IDS,
            "`machinectl bind --mkdir CONTAINER /dev/ttyACM0`, and for its unit DeviceAllow=char-ttyACM (",
        ),
        ("lxc", HOST_IDS, "`lxc.cgroup2.devices.allow: c 166:* rwm` in its configuration, and in it `mknod"),
        (
            "lxc",
            OWN_IDS,
            "a node `c 166 0` that its root may use, and in its configuration `lxc.mount.entry: NODE dev/tty",
        ),
        ("", HOST_IDS, "in here: `mknod -m 660 /dev/ttyACM0 c 166 0`"),
    ],
)
def test_what_to_give_to_a_container_fits_into_a_line(root, write, manager, ids, cure):
    """One line of 200 characters, together with what is missing, and it names the very numbers."""
    write("run/systemd/container", manager)
    write("proc/self/uid_map", ids)

    said = Surroundings(str(root)).cure("/dev/ttyACM0", NEEDED)

    assert cure in said
    assert "\n" not in said
    assert len(said) <= 145


@pytest.mark.parametrize(
    ("manager", "ids", "cure"),
    [
        (
            "docker",
            HOST_IDS,
            (
                "start the container with `-v /dev:/dev --device-cgroup-rule 'c 166:* rmw'`, "
                "or restart it if its --device is a link"
            ),
        ),
        ("podman", HOST_IDS, "start the container with `-v /dev:/dev --device-cgroup-rule 'c 166:* rmw'`"),
        ("lxc", HOST_IDS, "in here: `rm /dev/ttyACM3; mknod -m 660 /dev/ttyACM3 c 166 0`"),
        ("lxc", OWN_IDS, "on the host: bind a node `c 166 0` over it"),
    ],
)
def test_how_a_stale_node_is_renewed(root, write, manager, ids, cure):
    """Who may make a node inside is told how; who may not, where."""
    write("run/systemd/container", manager)
    write("proc/self/uid_map", ids)

    assert Surroundings(str(root)).renewal("/dev/ttyACM3", os.makedev(166, 0)) == cure
