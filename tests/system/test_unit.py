"""What systemd itself makes of the unit: nothing to complain of, and little left to take away."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from portretry_udev import unit
from portretry_udev.config import Config, Printer
from portretry_udev.keys import KeySource

pytestmark = pytest.mark.system

SYSTEMD = Path(__file__).parents[2] / "systemd"
NAME = "portretry-udev.service"
EVERYTHING = Config(  # needs something back of all that the unit takes away
    (
        Printer(
            "mk3",
            "http://127.0.0.1:5000",
            KeySource.from_file(Path("/home/pi/mk3.key")),
            port="/tmp/printer",
        ),
    ),
    Path("/srv/printer's 100%"),
    Path("/run/printers/control.sock"),
    Path("/var/lib/prometheus/node-exporter/portretry.prom"),
)


@pytest.fixture
def analyze():
    """Runs systemd-analyze; systemd need not be running here."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt install systemd")

    def run(*words, path):
        environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{path.parent}:", "SYSTEMD_COLORS": "0"}
        return subprocess.run(
            ["systemd-analyze", "--no-pager", *words, path],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )

    return run


@pytest.fixture
def installed(tmp_path):
    """The unit as it is installed, with drop-ins, and a program that is there."""

    def put(**drop_ins):
        program = shutil.which("true")
        text = (SYSTEMD / NAME).read_text()
        (tmp_path / NAME).write_text(text.replace("/usr/bin/portretry-udev", program))
        for name, drop_in in drop_ins.items():
            path = tmp_path / f"{NAME}.d" / f"{name}.conf"
            path.parent.mkdir(exist_ok=True)
            path.write_text(drop_in)
        return tmp_path / NAME

    return put


def exposure(analyze, path):
    """What `systemd-analyze security` gives it, from 0 (safe) to 10."""
    result = analyze("security", "--offline=true", path=path)
    match = re.search(r"Overall exposure level for \S+: (\d+\.\d)", result.stdout)
    assert match, result.stdout + result.stderr
    return float(match[1])


def nonroot():
    return (SYSTEMD / "nonroot.conf").read_text()


def needed():
    text = unit.drop_in(unit.needs(EVERYTHING, (207,)))
    assert len(re.findall(r"^\w+=", text, re.MULTILINE)) >= 5, text
    return text


@pytest.mark.parametrize(
    "drop_ins", [{}, {"nonroot": nonroot()}, {"configuration": needed()}], ids=["alone", "nonroot", "needs"]
)
def test_there_is_nothing_to_complain_of(analyze, installed, drop_ins):
    """`systemd-analyze verify` is silent: no unknown setting, no value that is passed over."""
    result = analyze("verify", path=installed(**drop_ins))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_verify_would_complain(analyze, installed):
    """A setting that systemd does not know is told, also in a drop-in: silence means something."""
    result = analyze("verify", path=installed(wrong="[Service]\nProtectHouse=yes\n"))
    assert "ProtectHouse" in result.stderr


def test_what_is_left_as_root(analyze, installed):
    """2.4 or better, with all that the job needs left in."""
    assert exposure(analyze, installed()) <= 2.4


def test_what_is_left_without_root(analyze, installed):
    """2.0 or better with the drop-in."""
    assert exposure(analyze, installed(nonroot=nonroot())) <= 2.0
