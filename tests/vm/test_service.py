"""The installed service under systemd, from the package to the purge: two machines, a story after the other.

Each story leaves the printer connected for the next one.  The boards count: what must not be felt, is not.
"""

import contextlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import debian_package
from helpers import assert_eventually
from vm.bench import KEY, PATIENCE
from vm.boards import MEGA2560
from vm.installed import CONFIG, ETC, KEY_FILE, NAME, UNIT, Installed
from vm.machine import Machine, built

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
BOOT = 0.5  # seconds, of the board
LONG = 180.0  # seconds, for what takes ten where nothing else runs
VENV = "/opt/portretry-udev"


# -- the packages ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def deb(tmp_path_factory):
    """As `make deb` builds it."""
    return debian_package.built(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def newer(deb):
    """The same as a later version, which says so."""
    tree = deb.parent / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", "Version: 99.0-1", control.read_text()))
    made = deb.parent / "newer.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, made], check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheel of this checkout, and those of all that it needs, for the guest's Python and offline."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (own,) = folder.iterdir()
    pure = ["--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none"]
    needed = [*pip, "download", *pure, "--python-version=3.11", "--dest", folder, own]
    subprocess.run(needed, check=True)
    return folder


# -- the machines ------------------------------------------------------------------------------------------
KEY_OF_ROOT = "/root/key"
SETUP = f"setup --yes --name {NAME} --api-key-file {KEY_OF_ROOT} 2>&1"


@contextlib.contextmanager
def new_machine():
    """One with an OctoPrint, and a printer that is on; nothing of ours was ever in there."""
    with Machine(built()) as own, Installed(own, MEGA2560) as house:
        house.board_of(boot_delay=BOOT)
        house.plug()
        house.wait_node("/dev/ttyACM0")
        own.put(KEY_OF_ROOT, KEY + "\n", 0o600)
        house.before = house.files()
        yield house


def put(machine, *files):
    """Copy files into the guest's /tmp."""
    for file in files:
        machine.put(f"/tmp/{file.name}", file.read_bytes())


def apt_install(machine, deb):
    put(machine, deb)
    machine.check(f"DEBIAN_FRONTEND=noninteractive apt-get install -qq -y /tmp/{deb.name} 2>&1", LONG)


@pytest.fixture(scope="module")
def by_pip(machine, wheels):  # noqa: ARG001 - it skips where no machine can be built
    """A machine that is just installing: pip takes its time there, and has it beside the first stories."""
    with new_machine() as house:
        put(house.machine, *wheels.iterdir())
        install = f"{VENV}/bin/pip install --quiet --no-index /tmp/*.whl"
        house.installing = house.machine.spawn("sh", "-c", f"python3 -m venv {VENV} && {install}")
        yield house


@pytest.fixture(scope="module")
def from_deb(deb, by_pip):  # noqa: ARG001 - begun now, that it is done when its story comes
    """The package is installed; nothing more."""
    with new_machine() as house:
        apt_install(house.machine, deb)
        yield house


@pytest.fixture(scope="module")
def set_up(from_deb):
    """And `setup` was run."""
    from_deb.said = from_deb.machine.check(f"portretry-udev {SETUP}", LONG)
    return from_deb


@pytest.fixture
def bench(set_up):
    """A printer that is connected, whatever the story before has left."""
    if set_up.unit("ActiveState") != ["active"]:
        set_up.machine.check(f"systemctl restart {UNIT}")
    if set_up.state() != "connected":
        set_up.unplug()
        set_up.wait_state("absent")
        set_up.plug()
        set_up.wait_state("connected")
    set_up.service.catch_up()
    set_up.octoprint.catch_up()
    return set_up


def felt(bench):
    """What the board has felt of opens and edges so far."""
    counts = bench.board.counts
    return counts.opens, counts.closes, counts.rises, counts.drops, counts.resets


@contextlib.contextmanager
def undisturbed(bench):
    """Whatever happens meanwhile: OctoPrint stays Operational, and the board feels no open or edge."""
    before, said = felt(bench), bench.octoprint.catch_up()
    yield
    assert felt(bench) == before
    assert bench.octoprint.said('"state"', since=said) == []


# -- the package of Debian ---------------------------------------------------------------------------------
def test_the_package_starts_nothing(from_deb):
    """Enabled for the next boot it is, but without a configuration there is nothing to run."""
    assert from_deb.unit("ActiveState", "UnitFileState") == ["inactive", "enabled"]
    assert from_deb.processes() == []
    assert from_deb.board.counts.opens == 0


def test_setup_brings_the_printer_to_octoprint(set_up):
    """One command without a question: OctoPrint is found, all is written, the service runs, it connects."""
    set_up.operational()
    assert f"{NAME} is connected" in set_up.said
    assert felt(set_up) == (1, 0, 1, 0, 1)
    assert set_up.unit("ActiveState", "UnitFileState") == ["active", "enabled"]
    modes = set_up.machine.check(f"stat -c '%a %U %n' {CONFIG} {KEY_FILE}").splitlines()
    assert modes == [f"644 root {CONFIG}", f"600 root {KEY_FILE}"]
    assert set_up.machine.check(f"readlink -f /dev/printer-{NAME}").strip() == "/dev/ttyACM0"


def test_setup_a_second_time_changes_nothing(bench):
    """It says so, and the service goes on as the same process."""
    pid = bench.pid()
    with undisturbed(bench):
        said = bench.machine.check(f"portretry-udev {SETUP}", LONG)
    assert "nothing to do" in said
    assert bench.pid() == pid


def test_the_hardened_service_brings_a_printer_back(bench):
    """It hears udev, opens the port, reads its key and connects; the board boots once."""
    bench.unplug()
    bench.wait_state("absent")
    before = felt(bench)
    bench.operational(after=bench.plug())
    bench.wait_state("connected")
    assert bench.status()["events"] == "udev"
    passed = [now - then for now, then in zip(felt(bench), before, strict=True)]
    assert passed == [1, 0, 1, 0, 1]


def test_the_hardened_service_sees_who_has_the_port(bench):
    """A process of another user: it is named, and the port left alone until it has gone."""
    bench.unplug()
    bench.wait_state("absent")
    with held_by_another(bench) as pid:
        bench.wait_state("in-use")
        opens, connects = bench.board.counts.opens, bench.connects()
        assert bench.status()["holder"] == f"sleep (pid {pid})"
        bench.octoprint.catch_up()
    bench.operational()
    assert bench.board.counts.opens == opens + 1
    assert bench.connects() == connects + 1


@contextlib.contextmanager
def held_by_another(bench):
    """The board is plugged in, and before the service looks another user's process has its port."""
    with bench.paused():
        bench.plug()
        bench.wait_node("/dev/ttyACM0")
        holds = "exec 3<> /dev/ttyACM0; echo $$; exec sleep 600"
        other = bench.machine.spawn("runuser", "-u", "pi", "--", "sh", "-c", holds)
        pid = other.expect(r"^\d+$", PATIENCE)[0][0]
    try:
        yield pid
    finally:
        other.kill()
        other.wait(PATIENCE)


def test_who_may_open_the_port_may_ask(bench):
    """In group dialout one may, without being root for it; another user is told what is missing."""
    assert bench.status(user="pi")["state"] == "connected"
    status, said = bench.machine.run("runuser -u stranger -- portretry-udev status")
    assert status != 0
    assert "dialout" in said
    assert bench.machine.check("stat -c '%a %U %G' /run/portretry-udev/control.sock").split() == [
        *("660", "root", "dialout")
    ]


def test_an_upgrade_disturbs_nothing(bench, newer):
    """The new version runs as another process; OctoPrint and the board have not noticed."""
    bench.drop_in("short", "[Service]\nWatchdogSec=5\nRestartSec=100ms\n")  # for this story and the next two
    with undisturbed(bench), succeeded(bench):
        apt_install(bench.machine, newer)
    assert bench.machine.check("dpkg-query --show portretry-udev").split()[1] == "99.0-1"


def test_killed_it_comes_back(bench):
    """By SIGKILL while OctoPrint has the printer: it is started again, and nothing was felt."""
    with undisturbed(bench), succeeded(bench):
        bench.machine.check(f"kill -KILL {bench.pid()}")


def test_stopped_in_its_tracks_it_is_started_anew(bench):
    """By SIGSTOP: the watchdog notices.  Its two minutes are made short here."""
    with undisturbed(bench), succeeded(bench):
        bench.machine.check(f"kill -STOP {bench.pid()}")
        bench.service.expect("Watchdog timeout", PATIENCE)
    bench.drop_in("short", None)


@contextlib.contextmanager
def succeeded(bench):
    """What happens makes another process of the service, which sees OctoPrint connected."""
    pid = bench.pid()
    yield
    bench.service.expect(f"{NAME}: connected: ", PATIENCE)
    assert bench.pid() not in (0, pid)


def test_a_wrong_configuration_is_not_tried_again(bench):
    """78: the mistake is in the journal as an error, and no start follows; put right, it works."""
    bench.machine.check(f"cp -p {CONFIG} /tmp/right && sed -i 's/^\\[printers/intervall = 1\\n&/' {CONFIG}")
    with undisturbed(bench):
        bench.machine.run(f"systemctl restart {UNIT}")
        assert_eventually(lambda: bench.unit("ActiveState") == ["failed"], PATIENCE, bench.account)
        names = ("SubState", "ExecMainStatus", "Result")
        assert bench.unit(*names) == ["failed", "78", "exit-code"], "auto-restart would be another SubState"
        bench.machine.check(f"cp -p /tmp/right {CONFIG} && systemctl restart {UNIT}")
        bench.service.expect(f"{NAME}: connected: ", PATIENCE)
    said = [line for line in bench.journal() if "intervall" in line["MESSAGE"]]
    assert {line["PRIORITY"] for line in said} == {"3"}


def test_a_full_disk_is_told_and_survived(bench):
    """What it wants to remember has no room: it says so, goes on, and the pause counts while it runs."""
    pid = bench.pid()
    bench.machine.run("fallocate -l $(($(stat -f -c '%f * %S' /))) /full; cat /dev/zero > /filled; sync")
    try:
        with bench.paused():
            bench.wait_state("paused")
            bench.service.expect(f"{NAME}: .*No space left on device", PATIENCE)
    finally:
        bench.machine.check("rm -f /full /filled")
    bench.wait_state("connected")
    assert bench.pid() == pid


def test_a_read_only_etc_is_told_and_survived(bench):
    """The service needs to write nothing there; `install` changes nothing, and says why."""
    example = f"{ETC}/config.example.toml"
    with undisturbed(bench):
        bench.machine.check(f"mv {example} /tmp && mount -o bind,ro /etc /etc")
        ended, said = bench.machine.run("portretry-udev install --yes 2>&1", LONG)
        bench.machine.check(f"umount /etc && mv /tmp/config.example.toml {example}")
    assert ended == 73, said
    assert "Read-only file system" in said
    assert bench.status()["state"] == "connected"


def test_the_journal_has_one_line_a_change_and_never_the_key(bench):
    """Of all that the stories before have made: changes as information, what wants a look as a warning."""
    journal = bench.journal()
    assert [line for line in journal if KEY in str(line)] == []
    said = [line for line in journal if line["MESSAGE"].startswith(f"{NAME}: ")]
    assert {line["_SYSTEMD_UNIT"] for line in said} == {UNIT}
    told = [(line["_PID"], line["MESSAGE"]) for line in said]
    assert [this for this, that in itertools.pairwise(told) if this == that] == []
    changes, rest = [], []
    for line in said:
        (changes if re.search(bench.state_line, line["MESSAGE"]) else rest).append(line)
    assert {line["PRIORITY"] for line in changes} == {"6"}
    assert {line["PRIORITY"] for line in rest if "No space left" in line["MESSAGE"]} == {"4"}


def test_after_a_reboot_it_is_there(bench):
    """Nobody does anything: the printer that is on is connected, and so it is when it comes back later."""
    bench.machine.reboot()
    bench.follow()
    bench.operational()
    assert bench.unit("ActiveState") == ["active"]
    bench.unplug()
    bench.wait_state("absent")
    bench.operational(after=bench.plug())
    assert bench.status()["events"] == "udev"


def test_without_root_it_does_the_job_too(bench):
    """With the drop-in `nonroot.conf`: the key comes as a credential; plugged in, it is Operational."""
    bench.drop_in("nonroot", (ROOT / "systemd/nonroot.conf").read_text())
    bench.machine.check(f"systemctl restart {UNIT}")
    owner = bench.machine.check(f"stat -c %u /proc/{bench.pid()}").strip()
    assert int(owner) > 60000, "one that systemd has made for it"
    bench.unplug()
    bench.wait_state("absent")
    bench.operational(after=bench.plug())
    bench.wait_state("connected")
    assert bench.status()["events"] == "udev"


def test_a_purge_leaves_nothing(bench):
    """No file, no folder, no process, no unit; OctoPrint goes on."""
    with undisturbed(bench):
        bench.machine.check("DEBIAN_FRONTEND=noninteractive apt-get purge -qq -y portretry-udev 2>&1", LONG)
    assert bench.processes() == []
    assert bench.unit("LoadState") == ["not-found"]
    assert bench.files() - bench.before == set()


# -- pip ---------------------------------------------------------------------------------------------------
def test_by_pip_from_venv_to_purge(by_pip):
    """In /opt: setup, connected, back after an unplug, `uninstall --purge`; then no file of ours is left."""
    program = f"{VENV}/bin/portretry-udev"
    assert by_pip.installing.wait(LONG) == 0, by_pip.installing.text
    after = by_pip.files()
    assert by_pip.processes() == []
    assert f"{NAME} is connected" in by_pip.machine.check(f"{program} {SETUP}", LONG)
    by_pip.wait_state("connected")
    by_pip.unplug()
    by_pip.wait_state("absent")
    by_pip.operational(after=by_pip.plug())
    by_pip.wait_state("connected")
    with undisturbed(by_pip):
        by_pip.machine.check(f"{program} uninstall --purge --yes 2>&1", LONG)
    assert by_pip.processes() == []
    assert by_pip.unit("LoadState") == ["not-found"]
    assert {file for file in by_pip.files() - after if "__pycache__" not in file} == set()
    by_pip.machine.check(f"rm -r {VENV}")
    assert by_pip.files() - by_pip.before == set()
