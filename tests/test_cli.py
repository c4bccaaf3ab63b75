"""The commands: what they accept, print and refuse, and with which exit status."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import KEY, Bench, logged
from portretry_udev import __version__, cli, config

_ASKS = re.compile(r"click\.(prompt|confirm)\(")
README = Path(__file__).parents[1] / "README.md"
EXAMPLE = README.with_name("config.example.toml")
# DESIGN's section 6, word for word.
FLAGS_OF_WATCH = """
--octoprint URL --api-key-file FILE --port NODE --baudrate N --interval S --reconnect on-return|always
--probe firmware|open|none --no-avoid-reset --octoprint-config FILE --state-dir DIR --control PATH
--dry-run -v
"""


@pytest.fixture(autouse=True)
def log():
    """What a command says through the log; its set-up ends with the test."""
    with logged() as log:
        yield log


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch, tmp_path):
    """Neither this machine's configuration nor its environment counts."""
    for name in os.environ:
        if name.startswith("PORTRETRY_"):
            monkeypatch.delenv(name)
    defaults = {"default_file": tmp_path / "no-such-file.toml"}
    monkeypatch.setattr(config.load, "__kwdefaults__", defaults)


@pytest.fixture
def bench(tmp_path):
    with Bench(tmp_path) as bench:
        yield bench


def run(*arguments):
    """A command in this process; stdout and stderr apart."""
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def process(*arguments):
    """The same as a process of its own."""
    command = [sys.executable, "-m", "portretry_udev", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture
def started(monkeypatch):
    """The configurations with which a service would have been started; none is."""
    found = []

    class NoDaemon:
        def __init__(self, config, **options):
            found.append((config, options))

        def run(self):
            pass

    monkeypatch.setattr(cli, "Daemon", NoDaemon)
    return found


def configuration(folder, *benches, **settings):
    """A configuration file for some printers."""
    path = folder / "config.toml"
    more = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    path.write_text(
        "".join(
            f'[printers.{bench.name}]\noctoprint = "{bench.octoprint.url}"\n'
            f'api_key_file = "{bench.key_file}"\nport = "{bench.link}"\n{more}'
            for bench in benches
        )
    )
    return path


# -- all commands ----------------------------------------------------------------------------------------


def test_the_version_is_the_packages():
    """``--version`` says it, on stdout, in a process as people start it."""
    said = process("--version")
    assert (said.returncode, said.stdout, said.stderr) == (0, f"portretry-udev {__version__}\n", "")


@pytest.mark.parametrize("name", ["", *cli.main.commands])
def test_every_command_has_help_that_fits(name):
    """Every command and every flag is told of, in at most 80 columns."""
    said = run(*name.split(), "--help")
    assert said.exit_code == 0
    assert max(map(len, said.stdout.splitlines())) <= 80
    command = cli.main.commands[name] if name else cli.main
    assert command.help
    for parameter in command.params:
        assert parameter.param_type_name == "argument" or parameter.help, parameter.name


def test_libudev_is_missing(monkeypatch):
    """The command that cures it is told, not a trace."""

    def no_libudev(*_):
        raise ImportError("No library named udev")

    monkeypatch.setattr("pyudev.Context", no_libudev)
    said = run("ports")
    assert said.exit_code == 69
    assert "apt install libudev1" in said.stderr
    assert said.stdout == ""


# -- watch -----------------------------------------------------------------------------------------------


def test_watch_takes_the_flags_of_the_design(started, tmp_path):
    """All of them together; each arrives in the configuration."""
    key_file = tmp_path / "key"
    key_file.touch(0o600)
    key_file.write_text(KEY)
    settings = tmp_path / "config.yaml"
    settings.write_text("serial:\n  port: AUTO\n")
    words = FLAGS_OF_WATCH.split()
    given = {
        "URL": "http://127.0.0.1:5000",
        "NODE": "/dev/ttyACM0",
        "N": "250000",
        "S": "2.5",
        "on-return|always": "always",
        "firmware|open|none": "open",
        "DIR": str(tmp_path / "state"),
        "PATH": str(tmp_path / "control.sock"),
    }
    files = {"--api-key-file": str(key_file), "--octoprint-config": str(settings)}
    arguments = [
        files[before] if word == "FILE" else given.get(word, word)
        for before, word in zip(["", *words], words, strict=False)
    ]
    said = run("watch", *arguments)
    assert said.exit_code == 0, said.stderr
    ((found, options),) = started
    (printer,) = found.printers
    assert options["dry_run"] is True
    assert (found.state_dir, found.control) == (tmp_path / "state", tmp_path / "control.sock")
    assert (printer.octoprint, printer.port, printer.baudrate) == (given["URL"], given["NODE"], 250000)
    assert (printer.interval, printer.reconnect, printer.probe) == (2.5, "always", "open")
    assert (printer.avoid_reset, printer.octoprint_config) == (False, settings)
    assert printer.key.read() == KEY


def test_watch_without_a_flag_leaves_the_defaults(started, tmp_path):
    """What was not said is not overridden."""
    bench = Bench(tmp_path)
    path = configuration(tmp_path, bench, avoid_reset=False, reconnect="always")
    assert run("watch", "--config", path).exit_code == 0
    ((found, options),) = started
    assert (found.printers[0].avoid_reset, found.printers[0].reconnect) == (False, "always")
    assert options["dry_run"] is False
    assert options["again"]() == found, "what SIGHUP reads"


def test_config_may_stand_before_and_after_the_command(started, tmp_path):
    """``--config FILE`` means the same in both places; after it counts for more."""
    bench = Bench(tmp_path)
    path = configuration(tmp_path, bench)
    assert run("--config", path, "watch").exit_code == 0
    assert run("watch", "--config", path).exit_code == 0
    assert run("--config", tmp_path / "none.toml", "watch", "--config", path).exit_code == 0
    assert [[printer.name for printer in found.printers] for found, _ in started] == [[bench.name]] * 3


def test_watch_takes_names(started, tmp_path):
    """Only the named printers are watched, in the order of the file."""
    one, two, three = (Bench(tmp_path, name) for name in ("one", "two", "three"))
    path = configuration(tmp_path, one, two, three)
    assert run("watch", "--config", path, "three", "one").exit_code == 0
    ((found, _),) = started
    assert [printer.name for printer in found.printers] == ["one", "three"]


@pytest.mark.parametrize("command", ["watch", "probe"])
def test_an_unknown_name_is_refused(started, tmp_path, command):
    """Status 78, the names that there are, and nothing is started."""
    path = configuration(tmp_path, Bench(tmp_path))
    said = run(command, "--config", path, "mk4")
    assert (said.exit_code, said.stdout, started) == (78, "", [])
    assert "mk4" in said.stderr
    assert "mk3" in said.stderr


def test_all_mistakes_are_told_at_once_and_nothing_is_started(tmp_path):
    """A line each, with its place; status 78, so that systemd does not try again; no file is made."""
    path = tmp_path / "config.toml"
    path.write_text(
        'interval = 0\n[printers.mk3]\noctoprint = "octopi"\nprobe = "often"\nbaudrate = 1200\nspeed = 1\n'
    )
    state, control = tmp_path / "state", tmp_path / "control.sock"
    said = process("watch", "--config", path, "--state-dir", state, "--control", control)
    assert (said.returncode, said.stdout) == (78, "")
    lines = said.stderr.splitlines()
    assert len(lines) == 7
    assert all(line.startswith("portretry-udev: ") for line in lines)
    for place in ("interval", "octoprint", "probe", "baudrate", "speed", "api_key_file"):
        assert sum(f"{place}: " in line for line in lines) == 1, place
    assert lines[-1] == "portretry-udev: nothing was started or changed"
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_a_key_in_place_of_its_file_is_not_shown():
    """A person may take the flag for the key itself: refused, and not repeated on the screen."""
    key = "A1B2C3D4E5F60718293A4B5C6D7E8F90"
    said = run("watch", "--octoprint", "http://127.0.0.1:5000", "--api-key-file", key)
    assert said.exit_code == 78
    assert "--api-key-file" in said.stderr
    assert key not in said.output
    assert run("watch", "--api-key", key).exit_code == 2, "there is no flag for the key itself"


def test_watch_says_nothing_on_stdout_and_the_key_nowhere(bench, tmp_path):
    """Its log goes to stderr; the key is neither there, at its most talkative, nor in what ``ps`` shows."""
    path = configuration(tmp_path, bench)
    command = [sys.executable, "-m", "portretry_udev", "watch", "--config", str(path), "-v"]
    command += ["--interval", "0.5", "--state-dir", str(tmp_path), "--control", str(tmp_path / "c")]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with service:
        try:
            bench.expect_operational(within=4.0)
            ps = Path(f"/proc/{service.pid}/cmdline").read_text()
        finally:
            service.send_signal(signal.SIGTERM)
        out, err = service.communicate(timeout=2.0)
    assert (service.returncode, out) == (0, "")
    assert "Connect(" in err
    assert KEY not in err
    assert KEY not in ps


# -- the README ------------------------------------------------------------------------------------------


def blocks():
    """The README's code blocks: runs of lines that are indented by four blanks."""
    return [
        "\n".join(line[4:] for line in block.splitlines())
        for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", README.read_text(), re.MULTILINE)
    ]


def test_every_command_is_in_the_readme():
    """In its table of commands; and the table tells of none that is not there."""
    table = README.read_text().partition("## Commands\n")[2].partition("\n## ")[0]
    cells = [row.split(" | ")[0] for row in table.splitlines() if row.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([a-z]+)", cell)}
    assert named == set(cli.main.commands)


def test_the_readmes_commands_are_understood():
    """Whatever the README tells to type has the flags and arguments that there are."""
    text = "\n".join(blocks()).replace("\\\n", " ")
    typed = re.findall(r"^(?:\$ |sudo )?portretry-udev (.*)$", text, re.MULTILINE)
    assert len(typed) >= 2
    for line in typed:
        name, *arguments = shlex.split(line)
        cli.main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("source", ["README.md", "config.example.toml"])
def test_configuration_that_is_shown_loads(source, tmp_path):
    """Nobody copies a mistake of ours; only the key file is made up here."""
    shown = [EXAMPLE.read_text()] if source == EXAMPLE.name else blocks()
    found = [text for text in shown if re.search(r"^\[printers\.", text, re.MULTILINE)]
    assert found
    key = tmp_path / "mk3.key"
    key.touch(0o600)
    key.write_text(KEY)
    for text in found:
        path = tmp_path / "config.toml"
        path.write_text(text.replace("/etc/portretry-udev/mk3.key", str(key)))
        (printer,) = config.load({"config": str(path)}, {}).printers
        assert printer.key.read() == KEY


def test_a_question_leaves_nothing_on_stdout():
    """So that `login --print` and the like can be redirected; click's own prompts put a blank there."""
    program = "from portretry_udev.cli_common import typed; raise SystemExit(typed('Name: ') != 'boss')"
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, input="boss \n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "Name: \n")


def test_no_command_asks_by_clicks_own_prompt():
    """But for what is typed unseen: that goes to the terminal itself."""
    source = Path(cli.__file__).parent
    asked = [
        line for file in source.glob("*.py") for line in file.read_text().splitlines() if _ASKS.search(line)
    ]
    assert [line for line in asked if "hide_input=True" not in line] == []
