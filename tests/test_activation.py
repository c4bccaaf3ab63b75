"""Udev and systemd are told what is needed and no more, by how things stand; what fails is told."""

from pathlib import Path

import pytest

from portretry_udev import activation
from portretry_udev.activation import Machine, Outcome
from portretry_udev.udev_rule import UNIT

RUNNING = Machine(
    udevd=True, systemd=True, has_systemd=True, known=True, active=True, enabled=True
)  # fmt: skip
BARE = Machine(udevd=True, systemd=True, has_systemd=True)


@pytest.mark.parametrize(
    ("machine", "unit_changed", "config_changed", "start", "told"),
    [
        (BARE, True, False, True, ["daemon-reload", f"enable --now {UNIT}"]),
        (BARE, True, False, False, ["daemon-reload"]),
        (RUNNING, False, False, True, []),
        (RUNNING, True, False, True, ["daemon-reload", f"restart {UNIT}"]),
        (RUNNING, True, True, True, ["daemon-reload", f"restart {UNIT}"]),
        (RUNNING, False, True, True, [f"reload {UNIT}"]),
        (RUNNING, True, False, False, ["daemon-reload"]),
        (Machine(systemd=True, known=True, enabled=True), False, False, True, [f"enable --now {UNIT}"]),
        (Machine(systemd=True, known=True, active=True), False, False, True, [f"enable --now {UNIT}"]),
        (Machine(systemd=True, known=True, masked=True), True, True, True, ["daemon-reload"]),
        (Machine(has_systemd=True), True, True, True, []),
        # The last time, it was interrupted between the file and the reload.
        (Machine(systemd=True, active=True, enabled=True, stale=True), False, False, True,
         ["daemon-reload", f"restart {UNIT}"]),
    ],
)  # fmt: skip
def test_systemd_is_told_what_is_needed_and_no_more(machine, unit_changed, config_changed, start, told):
    """By what has changed, and by how things stand."""
    steps = activation.for_unit(
        machine, unit_changed=unit_changed, config_changed=config_changed, start=start
    )
    assert [" ".join(step.command) for step in steps] == [f"systemctl {each}" for each in told]


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (RUNNING, [f"systemctl disable --now {UNIT}"]),
        (Machine(systemd=True, known=True, enabled=True), [f"systemctl disable --now {UNIT}"]),
        (Machine(systemd=True, known=True), []),
        (Machine(systemd=True, known=False, active=True), [f"systemctl stop {UNIT}"]),
        (Machine(systemd=True, known=True, masked=True, active=True), [f"systemctl stop {UNIT}"]),
        (Machine(has_systemd=True), []),
    ],
)
def test_the_service_is_ended_however_it_stands(machine, told):
    """Also when its unit has been taken away under its feet."""
    assert [" ".join(step.command) for step in activation.before_removal(machine)] == told


def test_a_failure_is_forgotten_with_the_unit():
    """Else `systemctl --failed` shows it for ever."""
    failed = Machine(systemd=True, known=True, failed=True)

    told = [step.command[1] for step in activation.after_removal(failed, packaged=False)]

    assert told == ["daemon-reload", "reset-failed"]


def test_udev_is_told_only_of_devices_that_are_here():
    """With no serial port, there is nothing to trigger; without udevd, nobody to tell."""
    assert [step.command[1] for step in activation.for_rules(BARE, [])] == ["control"]
    assert activation.for_rules(Machine(), [Path("/sys/x")]) == []


def test_how_things_stand_is_asked_of_systemd_only_where_it_runs(tmp_path):
    """And understood."""
    ran = []
    assert activation.look(ran.append, tmp_path) == Machine()
    assert ran == []

    for folder in ("run/systemd/system", "run/udev"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "run/udev/control").touch()
    answers = {
        "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\n": RUNNING,
        "NeedDaemonReload=no\nUnitFileState=\nActiveState=inactive\nLoadState=not-found\n": BARE,
        "LoadState=masked\nActiveState=inactive\nUnitFileState=masked\nNeedDaemonReload=yes\n": Machine(
            True, True, True, known=True, masked=True, stale=True
        ),
        "LoadState=loaded\nActiveState=failed\nUnitFileState=disabled\nNeedDaemonReload=no\n": Machine(
            True, True, True, known=True, failed=True
        ),
        "": BARE,  # it does not answer: what is needed is tried, and told if it fails
    }
    for answer, machine in answers.items():
        assert activation.look(lambda _, answer=answer: Outcome(0, "", answer), tmp_path) == machine


def test_a_command_is_run_and_its_end_told():
    """Its last word on stderr; one that is not there is no surprise."""
    outcome = activation.run(["sh", "-c", "echo out; echo first >&2; echo last >&2; exit 3"])
    assert outcome == Outcome(3, "last", "out")
    assert activation.run(["sh", "-c", "echo only"]) == Outcome(0, "only", "only")
    assert activation.run(["portretry-no-such-command"]).status == activation.NOT_FOUND


def test_a_command_that_never_ends_is_given_up(monkeypatch):
    """And told as that."""
    monkeypatch.setattr(activation, "PATIENCE", 0.1)

    assert activation.run(["sleep", "60"]) == Outcome(124, "not done after 0.1 s")


def test_only_usb_serial_ports_and_what_is_configured_are_triggered(tmp_path):
    """The device before its port; neither a console, nor a mouse, nor a hub."""
    hub = tmp_path / "sys/devices/pci/usb1/1-1"
    board = hub / "1-1.2"
    port = board / "1-1.2:1.0/tty/ttyACM0"
    uart = tmp_path / "sys/devices/platform/serial/tty/ttyAMA0"
    console = tmp_path / "sys/devices/virtual/tty/tty1"
    for folder in (port, uart, console):
        folder.mkdir(parents=True)
    for usb in (hub, board):
        (usb / "idVendor").touch()
    tty = tmp_path / "sys/class/tty"
    tty.mkdir(parents=True)
    for each in (port, uart, console):
        (tty / each.name).symlink_to(each)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/serial0").symlink_to("ttyAMA0")
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv/tty1").touch()  # no device has that path, whatever its name

    assert activation.serial_devices(root=tmp_path) == [board, port]
    found = activation.serial_devices(["/dev/serial0", "/dev/ttyUSB7", "/srv/tty1"], tmp_path)
    assert set(found) == {board, port, uart}


def test_what_depends_on_a_failed_command_is_not_tried():
    """The rest is: udev has nothing to do with systemd's troubles."""
    steps = [activation.Step((name, str(number)), "") for number, name in enumerate(("a", "a", "b", "b"))]
    ran = []

    def failing(command):
        ran.append(command)
        return Outcome(int(command[0] == "a"), "why")

    (failure,) = activation.perform(steps, failing)

    assert ran == [("a", "0"), ("b", "2"), ("b", "3")]
    assert str(failure) == "`a 0` failed (1): why"
