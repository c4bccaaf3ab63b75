"""`install` on real file systems that are full, read-only or not ours; what systemd says of the unit.

Everything happens in folders of the test's own; the mounts are gone with its namespace.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

UNIT = "portretry-udev.service"
SERVICE = f"etc/systemd/system/{UNIT}"


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: file systems are mounted, and files made that are not the tests' own")
    if not shutil.which("unshare"):
        pytest.skip("needs unshare: apt install util-linux")


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def install(root, before="true", after="true", *, program="/usr/bin/portretry-udev"):
    """`install` into a folder, with a line of shell before and after it in the same mount namespace."""
    script = f'{before}; "$@"; status=$?; {after}; exit $status'
    command = [
        sys.executable,
        "-m",
        "portretry_udev",
        "install",
        "--root",
        root,
        "--program",
        program,
        "--yes",
    ]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def left(done):
    """What `find` has told after the command."""
    return [line.removeprefix("left: ") for line in done.stdout.splitlines() if line.startswith("left: ")]


def test_a_file_system_that_is_really_full(root):
    """The rule fits and the unit does not: neither is there afterwards, nor half of one."""
    # Room for two pages: the rule has one, the unit two.
    done = install(
        root, f"mount -t tmpfs -o size=8k tmpfs {root}", f"find {root} -mindepth 1 -printf 'left: %P\\n'"
    )

    assert done.returncode == 73
    assert f"{root / SERVICE} cannot be written: No space left on device" in done.stderr
    assert "nothing was changed" in done.stderr
    assert left(done) == []
    assert "Traceback" not in done.stderr


def test_a_read_only_file_system(root):
    """One line, and the same status: it is no matter of rights."""
    done = install(root, f"mount -t tmpfs -o ro tmpfs {root}")

    assert done.returncode == 73
    (line,) = [line for line in done.stderr.splitlines() if "Read-only file system" in line]
    assert line.startswith("portretry-udev: ")


def test_the_old_rule_survives_a_full_disk(root):
    """Its content and its mode, though a copy of it was made already."""
    rule = f"{root}/etc/udev/rules.d/99-portretry.rules"
    done = install(
        root,
        f"mount -t tmpfs -o size=12k tmpfs {root} && mkdir -p {root}/etc/udev/rules.d && "
        f"echo '# mine' >{rule} && chmod 640 {rule}",
        f"echo left: $(stat -c %a {rule}) $(cat {rule}) $(ls -A {root}/etc/udev/rules.d)",
    )

    assert done.returncode == 73
    assert left(done) == ["640 # mine 99-portretry.rules"]


def test_somebody_elses_folder(root):
    """A user is told the line to type as root, and nothing is there."""
    # The tests' Python may lie where only root can read, so the command becomes nobody when it is loaded.
    script = (
        "import os, sys; from portretry_udev.cli import main; sys.executable = '/usr/bin/python3';"
        "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3); main()"
    )
    for folder in (root, *list(root.parents)[:3]):
        folder.chmod(0o755)  # pytest's own are private
    command = [sys.executable, "-c", script, "install", "--root", str(root), "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 77
    assert f"  sudo portretry-udev install --root {root} --yes" in done.stderr
    assert list(root.iterdir()) == []


def test_systemd_takes_the_unit_as_it_is_installed(root, tmp_path):
    """With the program that it will run."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt install systemd")
    program = tmp_path / "bin" / "portretry-udev"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert install(root, program=program).returncode == 0

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", root / SERVICE], capture_output=True, text=True, check=False
    )

    assert [line for line in verified.stderr.splitlines() if UNIT in line] == []
    program.unlink()  # the check is able to fail
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", root / SERVICE], capture_output=True, text=True, check=False
    )
    assert str(program) in verified.stderr
