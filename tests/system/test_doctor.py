"""The doctor with a real udevd, real limits, real file systems, and as a user who is not root."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import assert_eventually
from portretry_udev.config import Printer, survey
from portretry_udev.devices import Devices
from portretry_udev.doctor import examine
from portretry_udev.doctor_facts import Reader
from portretry_udev.doctor_patients import patients
from portretry_udev.keys import KeySource
from portretry_udev.udev_rule import rules_for

pytestmark = pytest.mark.system

SPARE = "/dev/tty61"  # a virtual console that no machine uses; another than the one for events
RULES = Path("/run/udev/rules.d/99-portretry-printers.rules")
STRANGER = 64123  # a user that is on no machine
SOURCE = Path(__file__).parents[2] / "src"

EXHAUST = """
import sys
from portretry_udev import doctor_facts, inotify
taken = []
while not (made := inotify.Inotify())._deaf:
    taken.append(made)
print(doctor_facts._deaf())
for each in taken:
    each.close()
made.close()
print(doctor_facts._deaf())
"""

DISKS = """
set -e
mount -t tmpfs -o size=64k tmpfs "$1"
look() { "$2" -m portretry_udev --config "$3" doctor --json || test $? = 1; }
dd if=/dev/zero of="$1/full" bs=1k 2>/dev/null || true
look "$@" >"$4/full.json"
rm "$1/full"
mount -o remount,ro "$1"
look "$@" >"$4/read-only.json"
mount -o remount,rw,size=4m "$1"
look "$@" >"$4/well.json"
"""


def needs_root():
    if os.geteuid() != 0:
        pytest.skip("needs root: to be another user, or to mount")


def ids(folder, printer=None):
    """What the doctor of this very machine finds."""
    with contextlib.closing(Devices()) as devices:
        reader = Reader(devices)
        printers = () if printer is None else (printer,)
        found = dataclasses.replace(
            survey({}, {}, default_file=folder / "none.toml"), printers=printers, mistakes=()
        )
        seen = patients(printers, devices, reader.process)
        report = examine(reader.machine(found, folder / "no.sock"), seen)
        return {finding.id: finding for finding in report.all}


def test_an_event_that_it_sends_itself_is_heard_by_way_of_udevd(udevd, tmp_path):
    """With a udevd that works; with one that hangs it is not, until that works again."""
    assert_eventually(lambda: ids(tmp_path)["events"].what.startswith("udev's arrive"), 10, "udevd is heard")
    if udevd.ours is None:
        return  # the machine's own is not for us to stop
    udevd.ours.send_signal(signal.SIGSTOP)
    try:
        assert "events-unheard" in ids(tmp_path)
    finally:
        udevd.ours.send_signal(signal.SIGCONT)
    assert_eventually(lambda: "events-unheard" not in ids(tmp_path), 10, "udevd is heard again")


def test_a_rule_that_came_after_the_port_is_found_and_the_commands_apply_it(udevd, tmp_path):
    """The very commands of the cure, with a real udevd and its real database."""
    printer = Printer("mk3", "http://127.0.0.1:9", KeySource(None), port=SPARE)
    RULES.parent.mkdir(parents=True, exist_ok=True)
    RULES.unlink(missing_ok=True)
    udevd.trigger("change", "tty61")
    subprocess.run(["udevadm", "settle"], check=True)
    assert "rule-ineffective" not in ids(tmp_path, printer)

    RULES.write_text(rules_for([printer]))
    try:
        finding = ids(tmp_path, printer)["rule-ineffective"]
        assert SPARE in finding.what
        for command in finding.commands:
            subprocess.run(command.removeprefix("sudo "), shell=True, check=True)
        subprocess.run(["udevadm", "settle"], check=True)
        found = ids(tmp_path, printer)
    finally:
        RULES.unlink()
    assert "rule-ineffective" not in found
    assert found["udev"].what == "has marked the port"


def as_stranger(*command):
    needs_root()
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv: apt install util-linux")
    user = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "HOME": "/nonexistent"}
    return subprocess.run(
        [*user, *command], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def test_inotify_that_others_have_used_up_is_found(tmp_path):
    """By the kernel's own limit, for a user that nobody else is."""
    del tmp_path
    done = as_stranger(sys.executable, "-c", EXHAUST)

    assert done.returncode == 0, done.stderr
    full, free = done.stdout.splitlines() if done.stdout.count("\n") == 2 else (done.stdout.strip(), "")
    assert "no inotify instance left" in full
    assert free == ""


def test_who_is_not_root_is_told_what_could_not_be_seen(tmp_path):
    """A key of root's is neither missing nor wrong; it says so, and how to see more."""
    needs_root()
    key = tmp_path / "mk3.key"
    key.touch(0o600)
    key.write_text("a_key_that_only_root_may_read_0123456789")
    config = tmp_path / "config.toml"
    config.write_text(f'[printers.mk3]\noctoprint = "http://127.0.0.1:9"\napi_key_file = "{key}"\n')
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)

    done = as_stranger(sys.executable, "-m", "portretry_udev", "--config", str(config), "doctor", "--json")

    told = json.loads(done.stdout)
    found = {each["id"]: each for each in (*told["machine"], *told["printers"]["mk3"])}
    assert found["key-unread"]["level"] == "unknown"
    assert not found.keys() & {"key-missing", "key-unusable", "configuration-wrong"}
    assert found["octoprint-down"]["level"] == "problem"
    assert "events-untried" in found
    assert told["root"] is False
    assert "a_key_that" not in done.stdout + done.stderr


def test_a_full_and_a_read_only_disk_are_found(tmp_path):
    """With real file systems, in a mount namespace of its own."""
    needs_root()
    state, told = tmp_path / "state", tmp_path / "told"
    state.mkdir()
    told.mkdir()
    config = tmp_path / "config.toml"
    config.write_text(f'state_dir = "{state}"\n[printers.mk3]\noctoprint = "http://127.0.0.1:9"\n')
    script = ["unshare", "--mount", "sh", "-c", DISKS, "sh", state, sys.executable, config, told]
    done = subprocess.run(
        list(map(str, script)),
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    def found(name):
        machine = json.loads((told / f"{name}.json").read_text())["machine"]
        return {each["id"] for each in machine if each["id"].startswith("state")}

    assert found("full") == {"state-full"}
    assert found("read-only") == {"state-read-only"}
    assert found("well") == {"state folder"}
