"""The command `doctor` on this very machine: what a person sees, pipes, and pastes into a forum."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner

from bench import KEY
from clinic import Scripted, clinic
from portretry_udev import cli, doctor_facts
from portretry_udev.doctor import CATALOGUE

DOCS = Path(__file__).parents[1] / "docs" / "doctor.md"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
LEVELS = ("problem", "unknown", "note", "ok")


@pytest.fixture
def ill(tmp_path):
    with clinic(tmp_path) as machine:
        machine.write_config()
        yield machine


def environment(**more):
    not_its = ("PORTRETRY_", "NO_COLOR", "COLUMNS", "LINES")  # pytest-xdist sets the last two
    ours = {name: value for name, value in os.environ.items() if not name.startswith(not_its)}
    return {**ours, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), **more}


def command(ill, *arguments):
    return [
        "-m",
        "portretry_udev",
        "--config",
        str(ill.config),
        "doctor",
        "--control",
        str(ill.socket),
        *arguments,
    ]


def piped(ill, *arguments, **env):
    return subprocess.run(
        [sys.executable, *command(ill, *arguments)],
        capture_output=True,
        text=True,
        env=environment(**env),
        timeout=30,
        check=False,
    )


def at_a_terminal(ill, *arguments, columns=80, **env):
    """All that it writes to a terminal, and its exit status."""
    child = pexpect.spawn(
        sys.executable,
        command(ill, *arguments),
        env=environment(**env),
        dimensions=(24, columns),
        encoding="utf-8",
        timeout=30,
    )
    child.expect(pexpect.EOF)
    child.close()
    return child.before.replace("\r\n", "\n"), child.exitstatus


def too_wide(text, columns=80):
    """Lines that are longer, but for those that hold one word or command, which is to be copied."""
    lines = [ESCAPE.sub("", line) for line in text.splitlines()]
    commands = re.compile(r"\s*(sudo|portretry-udev|journalctl|echo|df) ")
    return [
        line for line in lines if len(line) > columns and " " in line.strip() and not commands.match(line)
    ]


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("arguments", [(), ("-v",)])
def test_at_a_terminal_it_is_coloured_and_no_wider_than_that(ill, arguments, columns):
    """A person reads it as it comes, problems first, in red."""
    ill.bench.octoprint.stop()

    shown, status = at_a_terminal(ill, *arguments, columns=columns)

    assert status == 1
    assert "\x1b[31mproblem" in shown
    assert "\x1b[32mok" in shown
    assert too_wide(shown, columns) == []
    assert f"Printer mk3, OctoPrint at {ill.bench.octoprint.url}" in " ".join(ESCAPE.sub("", shown).split())


def test_without_colour_and_in_a_pipe_it_says_the_same(ill):
    """NO_COLOR is obeyed at a terminal; a pipe gets no colour anyway; nothing goes to stderr."""
    ill.bench.octoprint.stop()
    plain, status = at_a_terminal(ill, NO_COLOR="1")
    into_a_pipe = piped(ill)

    assert not ESCAPE.search(plain)
    assert not ESCAPE.search(into_a_pipe.stdout)
    assert into_a_pipe.stderr == ""
    assert into_a_pipe.returncode == status == 1
    assert plain == into_a_pipe.stdout


def test_the_worst_stands_first_and_the_end_counts(ill):
    """Who reads only the beginning or only the end is not misled."""
    ill.bench.octoprint.stop()
    ill.bench.key_file.chmod(0o644)

    told = piped(ill).stdout
    for group in told.split("\n\n")[:-1]:
        levels = re.findall(rf"^  ({'|'.join(LEVELS)}) ", group, re.MULTILINE)
        assert levels == sorted(levels, key=LEVELS.index)
    problems = len(re.findall(r"^  problem ", told, re.MULTILINE))
    assert re.search(rf"^{problems} problems?\b", told.splitlines()[-1]) or f"{problems} problems" in told
    for name in re.findall(r"\[([a-z-]+)\]$", told, re.MULTILINE):
        assert name in CATALOGUE


def test_as_json_it_is_for_programs(ill):
    """The same findings, each with all of its parts; the exit status goes with it."""
    ill.bench.octoprint.stop()

    done = piped(ill, "--json")
    told = json.loads(done.stdout)

    assert (done.returncode, done.stderr) == (1, "")
    assert told["healthy"] is False
    everything = [*told["machine"], *told["printers"]["mk3"]]
    assert told["problems"] == sum(each["level"] == "problem" for each in everything)
    (down,) = [each for each in everything if each["id"] == "octoprint-down"]
    assert set(down) == {"id", "level", "what", "cure", "commands", "details"}
    assert ill.bench.octoprint.url in down["what"]


def test_what_it_finds_decides_its_exit_status(ill, monkeypatch):
    """0 where nothing is wrong, whatever notes there are; 1 else; a wrong configuration is a finding, too."""

    class Well(doctor_facts.Reader):
        def __init__(self, _):
            super().__init__(ill.devices, str(ill.root), ill.run, doctor_facts.Kernel(**ill.kernel))

    (ill.root / "run/systemd/system").mkdir(parents=True)
    monkeypatch.setattr(doctor_facts, "Reader", Well)

    def run(*arguments):
        words = ["--config", str(ill.config), "doctor", "--control", str(ill.socket), *arguments]
        return CliRunner().invoke(cli.main, words)

    well = run()
    assert (well.exit_code, well.stderr) == (0, "")
    assert well.stdout.splitlines()[-1].startswith("no problem found")
    assert run("mk3").exit_code == 0

    ill.config.write_text('interval = 0\n[printers.mk3]\noctoprint = "nowhere"\nbaudrat = 1\n')
    wrong = run("--json")
    assert wrong.exit_code == 1
    mistakes = [
        each["what"] for each in json.loads(wrong.stdout)["machine"] if each["id"] == "configuration-wrong"
    ]
    assert len(mistakes) == 3, "all mistakes at once"
    assert "there are: mk3" in run("mk4").stdout
    assert run("--no-such-flag").exit_code == 2
    assert run("a", "b").exit_code == 2


def test_a_mistake_at_one_printer_does_not_hide_the_others(ill):
    """A farm's owner is told of all printers that can be looked at."""
    ill.config.write_text(ill.config.read_text() + '[printers.other]\noctoprint = "nowhere"\n')

    told = json.loads(piped(ill, "--json").stdout)

    assert list(told["printers"]) == ["mk3"]
    assert "octoprint-down" not in str(told)
    (wrong,) = [each["what"] for each in told["machine"] if each["id"] == "configuration-wrong"]
    assert wrong.startswith(f"{ill.config}: printers.other.octoprint: must be a URL")


def test_no_secret_is_in_it_whoever_says_one(ill):
    """It is pasted into a forum: even an OctoPrint that puts our key into its words gives nothing away."""
    with Scripted() as octoprint:
        ill.settings["octoprint"] = octoprint.url
        octoprint.told |= {
            "/api/currentuser": (200, {"name": KEY, "groups": [KEY], "permissions": ["STATUS"]}),
            "/api/server": (200, {"version": KEY, "safemode": KEY}),
            "/api/job": (200, {"state": KEY, "error": KEY}),
            "/api/connection": (200, Scripted.connection(KEY, portPreference=f"/dev/{KEY}")),
        }
        ill.settings["port"] = None
        ill.watched.state, ill.watched.why = "listening", f"says {KEY}"
        ill.write_config()
        for arguments in ((), ("-v",), ("--json",), ("-v", "--json")):
            done = piped(ill, *arguments)
            assert KEY not in done.stdout + done.stderr
            assert "(the API key)" in done.stdout
    ill.settings["octoprint"] = "http://pi:raspberry@127.0.0.1:5000"
    ill.settings["api_key_file"] = KEY
    ill.write_config()
    for arguments in ((), ("-v",), ("--json",)):
        done = piped(ill, *arguments)
        assert done.returncode == 1
        assert KEY not in done.stdout + done.stderr
        assert "raspberry" not in done.stdout + done.stderr


def test_words_of_others_do_not_steer_the_terminal(ill):
    """An escape sequence in what an OctoPrint says stays harmless text."""
    with Scripted() as octoprint:
        ill.settings["octoprint"] = octoprint.url
        octoprint.told["/api/job"] = (200, {"state": "\x1b[2J\x1b]0;owned\x07"})
        ill.write_config()
        assert "\x1b" not in piped(ill, "-v").stdout


def test_nothing_is_opened_and_nothing_written(ill):
    """It may be run while a print is running from SD: the port stays shut, and no file changes."""

    def files():
        return {path: path.stat().st_mtime_ns for path in sorted(ill.folder.rglob("*")) if path.is_file()}

    before, opens = files(), ill.bench.printer.stats().opens
    piped(ill)
    assert ill.bench.printer.stats().opens == opens
    assert files() == before
    assert [method for method, _ in ill.bench.octoprint.requests if method != "GET"] == []


def test_the_documented_table_is_the_catalogue():
    """docs/doctor.md has every finding, with its level, meaning and cure."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE)
    # Sorted: the catalogue's own order is that in which its modules were imported.
    assert sorted(rows) == sorted(
        (each.id, each.level.value, each.means, each.cure) for each in CATALOGUE.values()
    )
