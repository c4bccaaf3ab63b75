"""The unit and its drop-ins under systemd: other users, other homes of the key, other kinds of ports.

What `setup` and packages make of them is in test_service.py; here the files are put in place by hand.
The stories go on from each other, on one machine: each start of the service takes an emulated one 5 seconds.
"""

import json
from pathlib import Path

import pytest

from helpers import assert_eventually
from portretry_udev.udev_rule import UNIT, rules_for
from vm.bench import KEY, PATIENCE, SOURCE, Bench, copy_package
from vm.boards import MEGA2560, Board
from vm.commands import Commands
from vm.machine import Machine, built

pytestmark = pytest.mark.vm

SYSTEMD = Path(__file__).parents[2] / "systemd"
PROGRAM = f'#!/bin/sh\nPYTHONPATH={SOURCE} exec python3 -m portretry_udev "$@"\n'
DROP_INS = f"/etc/systemd/system/{UNIT}.d"
FOLDER = "/etc/portretry-udev"
KEY_FILE, ENCRYPTED = f"{FOLDER}/mk3.key", "/etc/credstore.encrypted/mk3.key"
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
HOME, TMP = "/home/pi/printer_data/comms/klippy.serial", "/tmp/printer"


class Mk3:
    name, port, match = "mk3", None, {"serial": MEGA2560.chip.texts[2]}


class Unit(Bench):
    """The installed unit with drop-ins; an OctoPrint of user pi; a board; a user who is nobody here."""

    control = "/run/portretry-udev/control.sock"

    def __enter__(self):
        put, check = self.machine.put, self.machine.check
        put("/usr/bin/portretry-udev", PROGRAM, 0o755)
        put(f"/etc/systemd/system/{UNIT}", (SYSTEMD / UNIT).read_text())
        put("/etc/udev/rules.d/99-portretry-printers.rules", rules_for([Mk3]))
        put(KEY_FILE, KEY + "\n", 0o600)
        check("useradd -m -G dialout pi && useradd -G dialout guest && useradd stranger; chmod 700 /home/pi")
        check("systemctl daemon-reload; udevadm control --reload")
        self.command = Commands(self.machine, "fake_octoprint", "simulator")
        self.octoprint = self.of("pi", f"{SOURCE}/octoprint.py", "short", KEY, "/dev/ttyACM*", HOME, TMP)
        self._url = self.url()
        self.configure(f'match = {{ serial = "{MEGA2560.chip.texts[2]}" }}')
        self.board = Board(self.kind, self._path())
        return self

    def __exit__(self, *_):
        self.board.close()

    def of(self, user, *words):
        """Start a Python that is a user's."""
        as_user = ("runuser", "-u", user, "--", "env", f"PYTHONPATH={SOURCE}")
        return self.machine.spawn(*as_user, "python3", *words)

    def configure(self, line):
        """One printer; what is in the file is root's alone to read."""
        text = f'interval = 2\n[printers.mk3]\noctoprint = "{self._url}"\n{line}\n'
        self.machine.put(f"{FOLDER}/config.toml", text, 0o600)

    def drop_in(self, text):
        """Have this be all that is said beyond the unit."""
        self.machine.put(f"{DROP_INS}/it.conf", text)
        self.machine.check("systemctl daemon-reload")

    def wait_status(self, state, why=""):
        def is_so():
            said = self.command("status", "--json")
            found = said and json.loads(said)["printers"]["mk3"]
            return found and found["state"] == state and why in found["why"]

        assert_eventually(is_so, PATIENCE, lambda: f"{state}: {why}, but {self.account()}")

    def account(self):
        journal = self.machine.run(f"journalctl --no-pager -o short-precise -u {UNIT} -n 40")[1]
        texts = (journal, self.octoprint.text[-2000:], self.board.story()[-2000:])
        return "\n---\n".join(texts)

    def may_ask(self, user):
        """Whether the control socket lets a user connect."""
        asking = self.of(user, "-c", CONNECT, self.control)
        status = asking.wait(PATIENCE)
        assert (status == 0) != ("PermissionError" in asking.text), asking.text
        return status == 0

    def socket(self):
        """Its mode and group."""
        return self.machine.check(f"stat -c '%a %G' {self.control}").strip()

    def user(self):
        """Whose the service's process is."""
        main = f"$(systemctl show -P MainPID {UNIT})"
        return int(self.machine.check(f"stat -c %u /proc/{main}"))


@pytest.fixture(scope="module")
def bench(machine):  # noqa: ARG001 - it skips where no machine can be built
    """In a machine of its own: in the others' their service would be after the same board."""
    with Machine(built()) as own:
        copy_package(own)
        with Unit(own, MEGA2560, name="mk3") as unit:
            yield unit


def test_without_root_it_does_the_job(bench):
    """The plug starts it, enabled or not; it reads its key, connects, and sees a stranger at the port."""
    bench.drop_in((SYSTEMD / "nonroot.conf").read_text())
    bench.machine.check("udevadm trigger --action=change --subsystem-match=tty --settle")
    assert bench.machine.check(f"systemctl is-active {UNIT} || true").strip() == "inactive"
    bench.plug()
    bench.operational()
    bench.wait_status("connected")
    assert bench.user() > 0
    assert bench.socket() == "660 dialout"
    assert (bench.may_ask("pi"), bench.may_ask("stranger")) == (True, False)
    assert bench.machine.check("readlink -f /dev/printer-mk3").strip() == "/dev/ttyACM0"

    bench.press("disconnect")
    bench.wait_status("held")
    holds = "import os, sys; fd = os.open('/dev/ttyACM0', os.O_RDWR | os.O_NOCTTY); print('has it'); "
    guest = bench.of("guest", "-u", "-c", holds + "sys.stdin.read()")
    guest.expect("has it", PATIENCE)
    bench.command("retry")
    bench.wait_status("in-use", "in use by python3")
    guest.kill()
    bench.operational()
    bench.wait_status("connected")
    bench.command("pause")


def test_a_credential_that_is_missing_is_named(bench):
    """A single one that is not there keeps systemd from starting it, again and again; the doctor says why."""
    bench.machine.check(f"mkdir -p /etc/credstore.encrypted && systemd-creds encrypt {KEY_FILE} {ENCRYPTED}")
    bench.machine.check(f"rm {KEY_FILE}")
    bench.drop_in(f"[Service]\nLoadCredential=mk3.key:{KEY_FILE}\n")

    status, _ = bench.machine.run(f"systemctl restart {UNIT}")

    assert status
    found = bench.command.findings()["unit-failed"]
    assert "exit status 243 (a credential that it names is missing)" in found["what"]


def test_the_key_may_come_encrypted(bench):
    """Then it is in no file, and the doctor finds it where the service has it; as root it remembers, too."""
    bench.drop_in("[Service]\nLoadCredentialEncrypted=mk3.key\n")
    bench.machine.check(f"systemctl restart {UNIT}")
    bench.wait_status("paused")
    assert bench.user() == 0
    assert bench.socket() == "660 dialout"
    bench.command("resume")
    bench.wait_status("connected")
    assert bench.command.findings()["key"]["what"].startswith("credential /run/credentials/")


def test_klippers_port_is_a_pty_in_a_home(bench):
    """Of user pi, in a home that is closed to others: it takes the line that the doctor says is lacking."""
    bench.unplug()
    bench.octoprint.expect('"Offline', PATIENCE)
    klipper = bench.of("pi", f"{SOURCE}/klipper.py", HOME)
    klipper.expect("made", PATIENCE)
    bench.configure(f'port = "{HOME}"')
    lacks = bench.command.findings()["unit-lacks"]["what"]
    assert lacks.startswith("the unit lacks ProtectHome=read-only: ")
    bench.drop_in("[Service]\nLoadCredentialEncrypted=mk3.key\nProtectHome=read-only\nPrivateTmp=no\n")
    bench.machine.check(f"systemctl restart {UNIT}")
    bench.operational()
    bench.wait_status("connected")
    klipper.kill()
    klipper.wait(PATIENCE)


def test_nobody_follows_a_strangers_link_in_tmp(bench):
    """An old Klipper's /tmp/printer: not even root does (fs.protected_symlinks), and that is what is told."""
    klipper = bench.of("pi", f"{SOURCE}/klipper.py", TMP)
    klipper.expect("made", PATIENCE)
    bench.configure(f'port = "{TMP}"')
    bench.machine.check(f"systemctl reload {UNIT}")
    bench.wait_status("absent", "the kernel lets only a link's owner follow it")
