"""The Debian package on a clean Debian 12: what apt brings in, what stays, and what goes.

The system is a folder that mmdebstrap makes, entered with chroot; nothing of it is the machine's.  Without
systemd in it, what the service does when it runs is not asked here: tests/vm does that.
"""

import gzip
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import debian_package
import portretry_udev

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
UNIT = "portretry-udev.service"
# In namespaces of its own: what is mounted and started in there ends with the command.
INSIDE = (
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"),
    (
        'mount -t proc none "$1/proc"; mount -t devpts -o newinstance,ptmxmode=666 none "$1/dev/pts"; '
        'mount -t tmpfs none "$1/run"; exec chroot "$@"'
    ),
    "inside",
)
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
# What dpkg and apt write whenever anything is done.
NOTES = ("proc", "run", "tmp", "var/cache", "var/log", "var/lib/apt", "var/lib/dpkg")

# One that needs rules of its printer, and something of the unit: keys are not read from a home otherwise.
CONFIGURATION = """\
[printers.mk3]
octoprint = "http://127.0.0.1:5000"
api_key_file = "/root/mk3.key"
port = "/dev/serial/by-id/usb-Prusa_Research__prusa3d.com__Original_Prusa_i3_MK3_CZPX0-if00"
"""
PERSONS = {  # what people have after a while: path -> text, mode
    "etc/portretry-udev/config.toml": ("[printers.mk3]\n", 0o644),
    "etc/portretry-udev/mk3.key": ("secret", 0o600),
    "var/lib/portretry-udev/mk3.json": ("{}", 0o600),
    "etc/udev/rules.d/99-portretry-printers.rules": ("# portretry-udev: the ports\n", 0o644),
    f"etc/systemd/system/{UNIT}.d/no-root.conf": ("# portretry-udev: without root\n", 0o644),
}


class Image:
    """A Debian in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in there; if it fails, so does the test, with what was said."""
        done = subprocess.run(
            [*INSIDE, str(self.root), *command],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def install(self, deb: Path) -> subprocess.CompletedProcess[str]:
        """As `apt install ./FILE`, which fetches what it needs."""
        place = f"/tmp/{deb.name}"
        shutil.copyfile(deb, self.at(place))
        return self.run("apt-get", "install", "--yes", "--no-install-recommends", place)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def files(self) -> dict[str, str]:
        """All files, folders and links, but for the notes of dpkg and apt."""
        found = {}
        for folder, folders, names in os.walk(self.root):
            here = Path(folder).relative_to(self.root)
            folders[:] = [name for name in folders if str(here / name) not in NOTES]
            for name in (*folders, *names):
                path = self.root / here / name
                found[str(here / name)] = str(path.readlink()) if path.is_symlink() else ""
        return found


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of this checkout, as `make deb` builds it."""
    return debian_package.built(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def newer(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a later version, with a changed unit."""
    tree = tmp_path_factory.mktemp("newer") / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    version = f"{portretry_udev.__version__}-1"
    control.write_text(control.read_text().replace(f"Version: {version}\n", "Version: 99.0-1\n"))
    unit = tree / "usr/lib/systemd/system" / UNIT
    unit.write_text(f"{unit.read_text()}# newer\n")
    made = tree.parent / "portretry-udev_99.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--build", tree, made], check=True, stdout=subprocess.DEVNULL)
    return made


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """A Debian 12 as small as it comes, with apt."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a Debian in a folder has devices, owners, and is entered by chroot")
    if not shutil.which("mmdebstrap"):
        pytest.skip("needs mmdebstrap: apt install mmdebstrap")
    root = tmp_path_factory.mktemp("debian") / "root"
    made = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=apt", "--skip=cleanup/apt/lists", "bookworm", root],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    yield Image(root)
    shutil.rmtree(root)


@pytest.fixture
def image(clean: Image, deb: Path) -> Iterator[Image]:
    """It with the package, which is purged afterwards."""
    clean.install(deb)
    yield clean
    clean.run("dpkg", "--purge", "portretry-udev")


def leave(image: Image) -> None:
    """What people have after a while."""
    for place, (text, mode) in PERSONS.items():
        path = image.at(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)


def kept(image: Image) -> bool:
    """Whether that is as it was."""
    return all(
        image.at(place).read_text() == text and image.at(place).stat().st_mode & 0o777 == mode
        for place, (text, mode) in PERSONS.items()
    )


def test_it_works_with_debians_own_libraries(image):
    """What apt brings is enough: the version is told, and the whole story of the demo ends well.

    Also with Debian 12's websockets, which is too old: push comes by plain requests then, and not a word is
    said about it.
    """
    image.run("apt-get", "install", "--yes", "--no-install-recommends", "python3-websockets")
    said = image.run("portretry-udev", "--version")
    assert (said.stdout, said.stderr) == (f"portretry-udev {portretry_udev.__version__}\n", "")
    script = image.at("usr/bin/portretry-udev").read_text()
    assert script.startswith("#!/usr/bin/python3\n"), "Debian's Python, whatever PATH and venvs there are"
    assert "ended as promised" in image.run("portretry-udev", "demo").stdout


def test_nothing_is_started_before_there_is_a_configuration(image):
    """It is enabled for the next boot, and there it waits for a configuration, which nobody has made yet."""
    wanted = image.at(f"etc/systemd/system/multi-user.target.wants/{UNIT}")
    assert wanted.readlink().name == UNIT
    unit = image.at(f"usr/lib/systemd/system/{UNIT}").read_text()
    assert unit == (ROOT / "systemd" / UNIT).read_text()
    assert "ConditionPathExists=/etc/portretry-udev/config.toml\n" in unit
    assert "ExecStart=/usr/bin/portretry-udev watch\n" in unit
    assert not image.at("etc/portretry-udev").exists()


def test_rule_docs_and_examples_are_where_they_are_looked_for(image):
    """The rule under its own name, the man page, an example that is a configuration, and the licence."""
    rule = image.at("usr/lib/udev/rules.d/99-portretry.rules")
    assert rule.read_text() == (ROOT / "udev/99-portretry.rules").read_text()
    page = gzip.decompress(image.at("usr/share/man/man1/portretry-udev.1.gz").read_bytes()).decode()
    assert page == (ROOT / "share/man/man1/portretry-udev.1").read_text()
    docs = image.at("usr/share/doc/portretry-udev")
    assert tomllib.loads((docs / "examples/config.example.toml").read_text())["printers"]
    assert gzip.decompress((docs / "LICENSE.gz").read_bytes()) == (ROOT / "LICENSE").read_bytes()
    for completion in (
        "usr/share/bash-completion/completions/portretry-udev",
        "usr/share/zsh/vendor-completions/_portretry-udev",
        "usr/share/fish/vendor_completions.d/portretry-udev.fish",
    ):
        assert image.at(completion).is_file()


def test_install_knows_that_the_package_has_done_it(image):
    """The command finds rule and unit in /usr/lib, and puts no copies into /etc that would go before them."""
    before = image.files()
    image.run("portretry-udev", "install", "--yes")
    assert image.files() == before


def test_an_upgrade_keeps_what_people_made(image, newer):
    """Configuration, keys, state and drop-ins are as they were; the new unit is there, and enabled."""
    leave(image)
    image.install(newer)
    assert "99.0-1" in image.run("dpkg-query", "--show", "portretry-udev").stdout
    assert kept(image)
    assert image.at(f"usr/lib/systemd/system/{UNIT}").read_text().endswith("# newer\n")
    assert image.at(f"etc/systemd/system/multi-user.target.wants/{UNIT}").is_symlink()


def test_a_disabled_service_stays_disabled_over_an_upgrade(image, newer):
    """Who has taken it out of the boot does not get it back with a new version."""
    wanted = image.at(f"etc/systemd/system/multi-user.target.wants/{UNIT}")
    wanted.unlink()  # as `systemctl disable`
    image.install(newer)
    assert not wanted.is_symlink()


def test_remove_keeps_what_people_made(image, deb):
    """The package may come back, to find everything."""
    leave(image)
    image.run("apt-get", "remove", "--yes", "portretry-udev")
    assert kept(image)
    assert not image.at("usr/bin/portretry-udev").exists()
    assert not image.at("usr/lib/udev/rules.d/99-portretry.rules").exists()
    image.install(deb)
    assert kept(image)


def test_purge_leaves_nothing(clean, deb):
    """Every file and folder is as before; also those that the program made while it was there."""
    clean.install(deb)  # with what it needs, which may well stay
    clean.run("dpkg", "--purge", "portretry-udev")
    before = clean.files()
    clean.install(deb)
    for folder, text in (("root", "A" * 32), ("etc/portretry-udev", CONFIGURATION)):
        clean.at(folder).mkdir(exist_ok=True)
        path = clean.at(folder) / ("mk3.key" if folder == "root" else "config.toml")
        path.touch(0o600)
        path.write_text(text)
    clean.run("portretry-udev", "install", "--yes")
    made = set(clean.files()) - set(before)
    assert made > {
        "etc/udev/rules.d/99-portretry-printers.rules",
        f"etc/systemd/system/{UNIT}.d/configuration.conf",
    }
    clean.at("root/mk3.key").unlink()  # it was put there by hand
    clean.run("dpkg", "--purge", "portretry-udev")
    assert clean.files() == before


def test_purge_leaves_what_is_others(image):
    """A drop-in that `systemctl edit` has made is its owner's."""
    leave(image)
    theirs = image.at(f"etc/systemd/system/{UNIT}.d/override.conf")
    theirs.write_text("[Service]\nNice=5\n")
    image.run("dpkg", "--purge", "portretry-udev")
    assert [path.name for path in theirs.parent.iterdir()] == [theirs.name]
    shutil.rmtree(theirs.parent)


def test_copies_in_etc_are_told_of(image, deb):
    """A unit that an earlier way of installing has left goes before the package's: nobody expects that."""
    older = image.at(f"etc/systemd/system/{UNIT}")
    older.write_text("# portretry-udev as a service\n")
    said = image.run("apt-get", "install", "--yes", "--reinstall", f"/tmp/{deb.name}")
    older.unlink()
    assert (
        f"portretry-udev: /etc/systemd/system/{UNIT} goes before the package's" in said.stderr + said.stdout
    )
