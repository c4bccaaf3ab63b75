"""sdist and wheel, as Debian's own tools build them, without a network: what is in them, and that they agree.

`pip install .` in .ci/run does the same with the newest hatchling.
"""

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from portretry_udev import __version__

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"
NAME = f"portretry_udev-{__version__}"


def tracked() -> list[str]:
    """The files of this checkout that are not just lying there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"needs a git checkout: {listed.stderr.strip()}")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def build(kind: str, tree: Path, folder: Path) -> Path:
    """One of the two, of that tree."""
    # -x: what an editable installation needs (editables) is not wanted here.
    command = [PYTHON, "-m", "build", f"--{kind}", "--no-isolation", "-x", "--outdir", folder, tree]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout."""
    try:
        subprocess.run([PYTHON, "-c", "import build, hatchling"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs Debian's build and hatchling: apt install python3-build python3-hatchling")
    tree = tmp_path_factory.mktemp("tree")
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", tree, tmp_path_factory.mktemp("dist"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_has_all_that_a_packager_needs(sdist):
    """All files of the checkout, tests, unit, rules, docs and Debian's, as they are; but for our own CI's."""
    wanted = {name for name in tracked() if not name.startswith(".ci/")}
    found = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert wanted - found == set()
    assert found - wanted == {"PKG-INFO"}
    assert all((sdist / name).read_bytes() == (ROOT / name).read_bytes() for name in wanted)
    assert (sdist / "debian/rules").stat().st_mode & 0o111, "make(1) can run what it has to"


def test_the_wheel_of_the_sdist_is_that_of_the_checkout(sdist, wheel, tmp_path):
    """Byte for byte: nothing gets lost on the way, and nothing depends on the day."""
    again = build("wheel", sdist, tmp_path / "again")
    assert again.name == wheel.name == f"{NAME}-py3-none-any.whl"
    assert again.read_bytes() == wheel.read_bytes()


def test_the_wheel_has_the_program_and_what_it_installs(wheel):
    """All modules; unit, rule and example for `install`; man page and completions; no tests, no tools."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"portretry_udev/{path.name}" for path in (ROOT / "src/portretry_udev").glob("*.py")}
    installed = {
        f"portretry_udev/share/{name}"
        for name in ("99-portretry.rules", "portretry-udev.service", "config.example.toml")
    }
    beside = {
        f"{NAME}.data/data/{path.relative_to(ROOT)}" for path in (ROOT / "share").rglob("*") if path.is_file()
    }
    rest = names - modules - installed - beside
    assert modules | installed | beside <= names
    assert rest == {"portretry_udev/py.typed"} | {
        name for name in names if name.startswith(f"{NAME}.dist-info/")
    }
