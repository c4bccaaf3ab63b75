"""What systemd itself makes of the unit: nothing to complain of, and little left to take away."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import portretry_udev
from helpers import assert_eventually
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


def documented():
    """The drop-ins that docs/service.md tells people to make."""
    text = (SYSTEMD.parent / "docs" / "service.md").read_text()
    blocks = re.findall(r"^    \[Service\]\n(?:    .+\n)+", text, re.MULTILINE)
    assert len(blocks) >= 4
    return [textwrap.dedent(block) for block in blocks]


@pytest.mark.parametrize("drop_in", documented())
def test_what_the_docs_say_is_understood(analyze, installed, drop_in):
    """Each drop-in of docs/service.md is taken without a complaint, with the unit and without root."""
    for others in ({}, {"a": nonroot()}):
        result = analyze("verify", path=installed(**others, b=drop_in))
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_docs_numbers_are_right(analyze, installed):
    """What docs/service.md promises of two of them holds."""
    (local,) = [text for text in documented() if "IPAddressAllow=localhost" in text]
    (blind,) = [text for text in documented() if "AmbientCapabilities=\n" in text]
    assert exposure(analyze, installed(b=local)) <= 2.3
    assert exposure(analyze, installed(a=nonroot(), b=blind)) <= 1.7


# -- the look at who has a port, with the rights that are left ---------------------------------------------
LOOK = "import sys; from portretry_udev import port; print([h.pid for h in port.holders(sys.argv[1]).found])"


@pytest.fixture
def strangers_port():
    """A port that a process of somebody else's has open: its node, and the process's number."""
    master, slave = os.openpty()
    as_stranger = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "sleep", "60"]
    with subprocess.Popen(as_stranger, stdin=slave, stdout=slave, stderr=slave) as holder:
        node = os.ttyname(slave)
        os.close(slave)
        status = Path(f"/proc/{holder.pid}/status")
        assert_eventually(lambda: "Uid:\t12345" in status.read_text(), 5, "it has become a stranger's")
        yield node, holder.pid
        holder.kill()
    os.close(master)


@pytest.fixture
def look(strangers_port):
    """Looks who has the port, as this user, with these capabilities and this ProtectProc=."""
    if os.geteuid() != 0:
        pytest.skip("needs root: only root can run something with other rights")
    if not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("needs setpriv and unshare: apt install util-linux")
    node, _ = strangers_port

    def run(user, capabilities, protect_proc):
        wanted = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)])
        ambient = [f"--inh-caps={wanted}", f"--ambient-caps={wanted}"] if user else []
        as_service = ["setpriv", f"--reuid={user}", "--regid=20", "--clear-groups", "--no-new-privs"]
        mount = f"mount -t proc -o hidepid={protect_proc} proc /proc && " if protect_proc else ""
        in_a_proc = ["unshare", "--mount", "sh", "-c", f'{mount}exec "$@"', "sh"]
        result = subprocess.run(
            [*in_a_proc, *as_service, f"--bounding-set={wanted}", *ambient, sys.executable, "-c", LOOK, node],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(portretry_udev.__file__).parents[1])},
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


def setting(text, name):
    """What a unit or a drop-in says of it; empty if nothing."""
    found = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return found[-1].split() if found else []


def test_as_root_all_holders_are_seen(look, strangers_port):
    """Root with the two capabilities of the unit sees who has a port, whoever that is."""
    left = setting((SYSTEMD / NAME).read_text(), "CapabilityBoundingSet")
    assert look(0, left, "") == [strangers_port[1]]
    assert look(0, [name for name in left if name != "CAP_SYS_PTRACE"], "") == [], "it is needed"
    assert look(0, [name for name in left if name != "CAP_DAC_READ_SEARCH"], "") == [], "it is needed"


def test_without_root_all_holders_are_seen(look, strangers_port):
    """So does the user of nonroot.conf, in a /proc that shows no more than it may look into."""
    (protect_proc,) = setting(nonroot(), "ProtectProc")
    assert look(54321, setting(nonroot(), "AmbientCapabilities"), protect_proc) == [strangers_port[1]]
    assert look(54321, [], "") == [], "what docs/service.md says of a service without them"
