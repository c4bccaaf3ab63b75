"""The completions in the shells themselves, and the man page in man: what a person sees who asks for it."""

import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from helpers import assert_eventually

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
SHARE = ROOT / "share"
BASH = SHARE / "bash-completion/completions/portretry-udev"
ZSH = SHARE / "zsh/site-functions/_portretry-udev"
FISH = SHARE / "fish/vendor_completions.d/portretry-udev.fish"


def needs(program: str, package: str | None = None) -> None:
    if not shutil.which(program):
        pytest.skip(f"needs {program}: apt install {package or program}")


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    """Two printers are configured, one of them with a name that has a colon's worth of trouble."""
    config = tmp_path / "config.toml"
    config.write_text('[printers.mk3]\n[printers.mini]\n[printers."a:b:c"]\n[printers."a:b:d"]\n')
    program = tmp_path / "bin/portretry-udev"
    program.parent.mkdir()
    start = "from portretry_udev.cli import main; main(prog_name='portretry-udev')"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT / "src"}" exec "{sys.executable}" -c "{start}" "$@"\n',
    )
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "PORTRETRY_CONFIG": str(config),
    }


# What is typed, and what is offered for the last word of it.
TYPED = [
    ("portretry-udev stat", {"status"}),
    ("portretry-udev watch --reconnect ", {"on-return", "always"}),
    ("portretry-udev status m", {"mk3", "mini"}),
    ("portretry-udev watch mk3 m", {"mini"}),
    ("portretry-udev watch --octoprint ", set()),
]


@pytest.mark.parametrize(("typed", "offered"), [*TYPED, ("portretry-udev status a:b", {"a:b:c", "a:b:d"})])
def test_bash(environment, typed, offered):
    """Bash offers it, also where a name has colons, which part words there."""
    library = Path("/usr/share/bash-completion/bash_completion")
    if not library.exists():
        pytest.skip("needs bash-completion: apt install bash-completion")
    # As readline takes the line apart: at blanks, and at colons, which are words of their own.
    words = re.findall(r":|[^ :]+", typed) + ([""] if typed.endswith(" ") else [])
    script = """
        . "$1"; . "$2"; COMP_LINE=$3; COMP_POINT=${#3}; shift 3
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _portretry_udev portretry-udev
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    said = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", library, BASH, typed, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert said.stderr == ""
    # Only what follows the last colon that was typed is put in, in the place of what follows it.
    colon = typed.rpartition(" ")[2].rfind(":") + 1
    assert set(said.stdout.split()) == {each[colon:] for each in offered}


@pytest.mark.parametrize(("typed", "offered"), TYPED)
def test_fish(environment, typed, offered):
    """Fish offers it, with the help of each where there is one."""
    needs("fish")
    said = subprocess.run(
        ["fish", "--no-config", "--command", f"source {FISH}; complete --do-complete '{typed}'"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert said.stderr == ""
    assert {line.partition("\t")[0] for line in said.stdout.splitlines()} == offered


class Zsh:
    """An interactive zsh on a terminal, for its completion exists nowhere else."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = os.openpty()
        self.terminal = ours
        self.seen = ""
        self.process = subprocess.Popen(
            ["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def has_said(self, *words: str) -> bool:
        """Whether all of these stand on the terminal by now."""
        while select.select([self.terminal], [], [], 0)[0]:
            self.seen += (
                os.read(self.terminal, 65536).decode(errors="replace").replace("\a", "")
            )  # it beeps while it thinks
        return all(word in self.seen for word in words)

    def forget(self) -> None:
        self.has_said()
        self.seen = ""

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture
def zsh(environment) -> Iterator[Zsh]:
    """One that has our completion, by the way of $fpath."""
    needs("zsh")
    shell = Zsh(environment)
    try:
        shell.type(
            f"PS1=''; fpath=({ZSH.parent} $fpath); autoload -U compinit; compinit -u -D; print rea''dy\n"
        )
        assert_eventually(lambda: shell.has_said("ready"), 20, lambda: f"zsh said: {shell.seen!r}")
        shell.forget()
        yield shell
    finally:
        shell.end()


@pytest.mark.parametrize(("typed", "offered"), [each for each in TYPED if each[1]])
def test_zsh(zsh, typed, offered):
    """Zsh offers it, from the very first TAB on."""
    word = typed.rpartition(" ")[2]
    zsh.type(f"{typed}\t")
    # What is the only one is typed for the person, in place; several are listed.
    assert_eventually(lambda: zsh.has_said(*offered), 20, lambda: f"{word!r}: zsh said: {zsh.seen!r}")


def test_zsh_reads_all_of_it():
    """No mistake in its syntax, also where no test comes by; fish and bash read theirs whole."""
    needs("zsh")
    said = subprocess.run(["zsh", "-n", ZSH], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.fixture
def page() -> str:
    """The man page as it stands on a terminal of 80 columns; troff has nothing to say about it."""
    needs("man", "man-db")
    needs("groff")
    said = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", SHARE / "man/man1/portretry-udev.1"],
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    return said.stdout


def test_the_man_page_fits(page):
    """In 80 columns, with what can be copied into a command line in one piece."""
    assert max(map(len, page.splitlines())) <= 80
    assert "/etc/portretry-udev/config.toml" in page
    assert "portretry-udev pause mk3 && avrdude" in page
    assert "\N{HYPHEN}" not in page, "a hyphen that no shell takes for one"


def test_man_finds_it():
    """In the folder where it is installed, by its name, and with its line for whatis(1)."""
    needs("man", "man-db")
    found = subprocess.run(
        ["man", "-M", SHARE / "man", "-w", "portretry-udev"], capture_output=True, text=True, check=False
    )
    assert found.stdout.strip().endswith("man/man1/portretry-udev.1")
    needs("lexgrog", "man-db")
    line = subprocess.run(
        ["lexgrog", SHARE / "man/man1/portretry-udev.1"], capture_output=True, text=True, check=False
    )
    assert "portretry-udev - bring a 3D printer back into OctoPrint" in line.stdout
