"""What the packages say of themselves is what the program says."""

import re
import tomllib
from pathlib import Path

from portretry_udev import __version__

ROOT = Path(__file__).parents[1]


def test_debians_changelog_is_of_this_version():
    """The package would have another version than the program."""
    newest = (ROOT / "debian/changelog").read_text().splitlines()[0]
    assert re.match(rf"portretry-udev \({re.escape(__version__)}-\d+\) ", newest), newest


def test_debian_wants_the_same_versions():
    """The oldest Python and optional libraries are the same for pip and for apt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    control = (ROOT / "debian/control").read_text()
    assert f"X-Python3-Version: {project['requires-python'].replace('>=', '>= ')}\n" in control
    for extra in ("push", "metrics"):
        name, _, version = project["optional-dependencies"][extra][0].partition(">=")
        assert f" python3-{name} (>= {version}),\n" in control
