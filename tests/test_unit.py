"""The unit and its drop-in as texts, and what a configuration needs of the unit beyond what that has."""

import shlex
from pathlib import Path

import pytest

from bench import KEY
from portretry_udev import cli, cli_common, unit, watchdog
from portretry_udev.config import Config, Printer
from portretry_udev.keys import KeySource

SYSTEMD = Path(__file__).parents[1] / "systemd"
TEXTS = ("portretry-udev.service", "nonroot.conf")
STATE = Path("/var/lib/portretry-udev")


def configured(config=None, **printer):
    settings = {
        "key": KeySource.from_file(Path("/etc/portretry-udev/mk3.key")),
        "port": "/dev/ttyACM0",
    } | printer
    return Config(
        (Printer("mk3", "http://127.0.0.1:5000", **settings),), **({"state_dir": STATE} | (config or {}))
    )


def lines(config, *majors):
    return [need.line for need in unit.needs(config, majors)]


def settings(name="portretry-udev.service"):
    """The settings of a unit: each name, and what it is set to each time."""
    found = {}
    for line in (SYSTEMD / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


# -- the texts ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TEXTS)
def test_each_line_has_its_reason(name):
    """Right above each setting a comment says why."""
    above = ""
    for line in (SYSTEMD / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            assert above.startswith("# "), f"{line}: why?"
        above = line


@pytest.mark.parametrize("name", TEXTS)
def test_the_texts_can_be_read_in_a_terminal(name):
    """Plain ASCII, in lines that fit."""
    text = (SYSTEMD / name).read_text(encoding="ascii")
    assert max(map(len, text.splitlines())) <= 110


def test_it_starts_a_command_that_there_is():
    """ExecStart is the program with one of its commands, and nothing that the command does not know."""
    (start,) = settings()["ExecStart"]
    program, command, *rest = shlex.split(start)
    assert (program, rest) == ("/usr/bin/portretry-udev", [])
    assert command in cli.main.commands


def test_it_is_not_restarted_where_only_a_person_can_help():
    """The status of a wrong configuration, as the commands have it, and no other; and restarts never end."""
    unit_ = settings()
    assert unit_["RestartPreventExitStatus"] == [str(cli_common.EX_CONFIG)]
    assert (unit_["Restart"], unit_["StartLimitIntervalSec"]) == (["always"], ["0"])


def test_a_driver_that_takes_30_seconds_twice_is_not_its_death():
    """WatchdogSec leaves a loop that much time, whenever in the watchdog's round it begins."""
    assert settings()["WatchdogSec"] == ["2min"]
    assert 120 - 120 / watchdog.LOOKS > 2 * 30


def test_what_the_drop_in_is_made_from_is_what_the_unit_has():
    """Majors, folders and what is hidden: said in two places, and the same in both."""
    unit_ = settings()
    assert unit_["DeviceAllow"] == [f"char-{major} rw" for major in (188, 166, 204, 4)]
    assert {188, 166, 204, 4} == unit.MAJORS
    assert (
        Path("/run", *unit_["RuntimeDirectory"]),
        Path("/var/lib", *unit_["StateDirectory"]),
    ) == unit.FOLDERS
    assert (unit_["ProtectHome"], unit_["PrivateTmp"], unit_["ProtectSystem"]) == (
        ["yes"],
        ["yes"],
        ["strict"],
    )


# -- what a configuration needs ----------------------------------------------------------------------------
def test_most_need_nothing():
    """The unit is made for an ordinary configuration: no drop-in at all."""
    config = configured({"control": Path("/run/portretry-udev/other.sock")})
    assert unit.needs(config, (188, 166, 4, 204, 136)) == ()
    assert unit.drop_in(()) == ""


@pytest.mark.parametrize("home", ["/home/pi", "/root", "/run/user/1000"])
@pytest.mark.parametrize("setting", ["octoprint_config", "ca_file"])
def test_a_file_in_a_home(setting, home):
    """The unit hides homes: one that is configured is shown, and not to be changed."""
    assert lines(configured(**{setting: Path(home) / "file"})) == ["ProtectHome=read-only"]
    assert lines(configured(**{setting: Path("/homes/file")})) == []


def test_a_key_in_a_home():
    """A key file is read by the service, a credential by systemd itself."""
    path = Path("/home/pi/mk3.key")
    assert lines(configured(key=KeySource.from_file(path))) == ["ProtectHome=read-only"]
    assert lines(configured(key=KeySource.from_credential(path.parent, "mk3"))) == []
    assert lines(configured(key=KeySource.from_environment(KEY))) == []


def test_klippers_ports():
    """Klipper's port is a link in a home, or in the /tmp that all share."""
    assert lines(configured(port="/home/pi/printer_data/comms/klippy.serial")) == ["ProtectHome=read-only"]
    assert lines(configured(port="/tmp/printer")) == ["PrivateTmp=no"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"state_dir": Path("/srv/portretry")}, 'ReadWritePaths="-/srv/portretry"'),
        ({"control": Path("/run/printers/c.sock")}, 'ReadWritePaths="-/run/printers"'),
        (
            {"metrics_textfile": Path("/var/lib/prometheus/node-exporter/portretry.prom")},
            'ReadWritePaths="-/var/lib/prometheus/node-exporter"',
        ),
        ({"state_dir": Path('/srv/my "100%"')}, r'ReadWritePaths="-/srv/my \"100%%\""'),
    ],
)
def test_what_is_written_elsewhere(settings, line):
    """All but the unit's two folders is read-only; one that is missing does not keep it from starting."""
    assert lines(configured(settings)) == [line]


def test_a_port_with_another_driver():
    """Only the usual majors are in the unit; each other one is allowed once."""
    assert lines(configured(), 216, 207, 216, 188) == ["DeviceAllow=char-207 rw", "DeviceAllow=char-216 rw"]


def test_a_line_that_serves_several_is_there_once_with_each_reason():
    """Reasons stand above their line, and the whole is a drop-in that systemd reads."""
    config = configured(
        octoprint_config=Path("/home/pi/.octoprint/config.yaml"), ca_file=Path("/home/pi/ca.pem")
    )
    assert unit.drop_in(unit.needs(config)) == (
        "# What the configuration of portretry-udev needs beyond its unit.\n"
        "[Service]\n"
        "# octoprint_config of mk3 is in a home: /home/pi/.octoprint/config.yaml\n"
        "# ca_file of mk3 is in a home: /home/pi/ca.pem\n"
        "ProtectHome=read-only\n"
    )
