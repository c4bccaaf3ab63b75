"""The manual says what is so: of every command, every option, every variable and every exit status."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from portretry_udev import cli, config, keys, settings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/commands.md").read_text()
MAN = (ROOT / "share/man/man1/portretry-udev.1").read_text()
SOURCES = sorted((ROOT / "src/portretry_udev").glob("*.py"))


def section(title):
    """The text between that heading and the next one of its level."""
    return re.split(rf"^## {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1].partition("\n## ")[0]


def explained(text):
    """What the items of a list are about."""
    leads = re.findall(r"^\* (`[^`]+`(?:, `[^`]+`)*): \S", text, re.MULTILINE)
    return {word for lead in leads for word in re.findall(r"`([^`]+)`", lead)}


def test_it_is_as_new_as_the_commands():
    """The page and the man page are what `make manual` would make now."""
    check = [sys.executable, ROOT / "tools/manual.py", "--check"]
    said = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def test_an_old_one_is_noticed(tmp_path):
    """A command whose help has changed makes the manual old; it is said which file, and how to cure it."""
    for name in ("tools", "docs", "share"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "tools").unlink()
    (tmp_path / "tools").mkdir()
    for name in ("manual.py", "manual.md"):
        text = (ROOT / "tools" / name).read_text()
        (tmp_path / "tools" / name).write_text(text.replace("What `watch` does on a signal", "Of signals"))
    check = [sys.executable, tmp_path / "tools/manual.py", "--check"]
    said = subprocess.run(check, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "docs/commands.md is old: make manual" in said.stderr


@pytest.mark.parametrize("name", cli.main.commands)
def test_every_command_and_option_is_in_it(name):
    """A chapter for each command, an item for each option with its words, a place for each argument."""
    chapter = re.split(rf"^### {name}$", PAGE, flags=re.MULTILINE)[1].partition("\n##")[0]
    items = explained(chapter)
    for parameter in cli.main.commands[name].params:
        if isinstance(parameter, click.Option):
            flag = max(parameter.opts, key=len)
            assert any(re.search(rf"{flag}\b", item) for item in items), flag
            assert " ".join(parameter.help.split()) in chapter
        else:
            assert parameter.name.upper() in chapter.splitlines()[2]


def test_every_variable_is_in_it():
    """All settings that the environment can give, the key, and whatever else the program reads there."""
    told = explained(section("Environment"))
    ours = {f"PORTRETRY_{name.upper()}" for name in settings.FLAGS} | {keys.VARIABLE}
    assert {name for name in told if name.startswith("PORTRETRY_")} == ours
    read = {
        name
        for path in SOURCES
        for name in re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', path.read_text())
        if not name.startswith("_")
    }
    assert len(read) > 5, "the pattern finds what is read"
    assert read <= told


def test_every_exit_status_is_in_it():
    """All that any module ends with, by the number of its name in sysexits(3) or in our own sources."""
    told = {int(status) for status in explained(section("Exit status"))}
    used = set()
    for path in SOURCES:
        text = path.read_text()
        used |= {int(number) for number in re.findall(r"^EX_[A-Z]+ = (\d+)", text, re.MULTILINE)}
        used |= {getattr(os, name) for name in re.findall(r"\bos\.(EX_[A-Z]+)", text)}
    assert {69, 78, 130} <= used, "the patterns find them"
    assert used <= told


def test_every_path_is_in_it():
    """The files that are used where nobody names others."""
    told = section("Files")
    for path in (config.DEFAULT_FILE, "/run/portretry-udev/control.sock", "/var/lib/portretry-udev"):
        assert f"`{path}`: " in told


def test_the_man_page_says_the_same():
    """No block got lost on the way: all headings, all items, and no Markdown is left."""
    plain = re.sub(r"\\f[BIR]|\\&", "", MAN.partition("\n")[2]).replace("\\-", "-").replace("\\(aq", "'")
    for level, request in (("## ", ".SH "), ("### ", ".SS ")):
        titles = re.findall(rf"^{level}(.+)$", PAGE, re.MULTILINE)
        made = re.findall(rf"^\{request}(.+)$", plain, re.MULTILINE)
        assert made == [title.upper() if level == "## " else title for title in titles]
    assert len(re.findall(r"^\.TP$", plain, re.MULTILINE)) == len(re.findall(r"^\* `", PAGE, re.MULTILINE))
    assert not re.search(r"`|\*\*|^#|^\* ", plain, re.MULTILINE)
