"""The Debian package of this checkout, for the suites that install it; or why there is none."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def built(folder):
    """Build it into a folder, as `make deb` does; returns the file."""
    for program, package in (("dpkg-buildpackage", "dpkg-dev"), ("dh", "debhelper"), ("git", "git")):
        if not shutil.which(program):
            pytest.skip(f"needs {program}: apt install {package}")
    missing = subprocess.run(["dpkg-checkbuilddeps"], cwd=ROOT, capture_output=True, text=True, check=False)
    if missing.returncode:
        pytest.skip(f"needs what builds it (sudo apt build-dep ./): {missing.stderr.strip()}")
    build = subprocess.run([ROOT / "tools/make-deb", folder], capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    (made,) = folder.glob("*.deb")
    assert build.stdout == f"{made}\n"
    return made
