"""What a configuration needs of the unit beyond what that has."""

from pathlib import Path

import pytest

from bench import KEY
from portretry_udev import unit
from portretry_udev.config import Config, Printer
from portretry_udev.keys import KeySource

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
