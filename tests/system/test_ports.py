"""``ports --watch`` follows real uevents of the real libudev, in a fake /sys and /dev (umockdev)."""

import json

import pytest

from following import Watching, pasted
from portretry_udev import config

pytestmark = pytest.mark.system


def port_in(folder, lines):
    """The port that a configuration with these lines means."""
    (found,) = config.load({"config": str(pasted(folder, lines))}, {}).printers
    return found.port


def block_of(watching):
    """The lines to paste, up to the setting: the rest is comment."""
    lines = [watching.line()]
    while lines[-1].startswith("# "):
        lines.append(watching.line())
    return lines


def test_plug_and_unplug_are_followed_live(testbed, tmp_path):
    """A line each, at once though stdout is a pipe; with what to paste, unless it is a printer already."""
    with Watching("--suggest", env=testbed.env) as watching:
        acm = testbed.add_acm("ttyACM0", serial="CZPX1")
        assert watching.line() == (f"+ /dev/ttyACM0  2c99:0002  cdc_acm  Original Prusa i3 MK3  {acm.by_id}")
        block = block_of(watching)
        assert port_in(tmp_path, block) == acm.by_id
        testbed.remove(acm)
        assert watching.line().startswith("- /dev/ttyACM0  2c99:0002")
        ch340 = testbed.add_acm("ttyUSB0", None, vendor="1a86", product="7523", model="USB Serial")
        assert watching.line().startswith("+ /dev/ttyUSB0  1a86:7523")
        block = block_of(watching)
        assert port_in(tmp_path, block) == ch340.by_path
        assert watching.interrupt() == ("", "", 130)


def test_plug_and_unplug_are_followed_by_programs(testbed, tmp_path):
    """One JSON object a line; the configured printer is named in it, also when it is pulled."""
    path = pasted(tmp_path, ['match = { serial = "CZPX1" }'])
    with Watching("--json", "--config", path, env=testbed.env) as watching:
        first = testbed.add_acm("ttyACM0", serial="CZPX1")
        second = testbed.add_acm("ttyACM1", serial="CZPX2", socket="1-2")
        found = [json.loads(watching.line()) for _ in range(2)]
        testbed.remove(first)
        found.append(json.loads(watching.line()))
        assert [(each["event"], each["node"], each["printer"]) for each in found] == [
            ("add", "/dev/ttyACM0", "x"),
            ("add", "/dev/ttyACM1", None),
            ("remove", "/dev/ttyACM0", "x"),
        ]
        assert found[1]["by_id"] == second.by_id
        assert watching.interrupt()[2] == 130
