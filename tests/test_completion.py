"""What the shell offers after TAB, as each shell asks for it; and that it never gets in the way."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from portretry_udev import cli, completion, config, control
from portretry_udev.devices import NoLibudevError, Port

VARIABLE = completion.VARIABLE


@pytest.fixture(autouse=True)
def taught(monkeypatch, tmp_path):
    """The commands as they are while a shell asks, and afterwards as they were; nothing is configured."""
    for command in [cli.main, *cli.main.commands.values()]:
        for parameter in command.params:
            monkeypatch.setattr(parameter, "type", parameter.type)
    completion.teach(cli.main)
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")
    monkeypatch.setattr(control, "SYSTEM_PATH", tmp_path / "none.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in os.environ:
        if name.startswith("PORTRETRY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def configured(tmp_path):
    """A configuration of two printers, which need not be right otherwise."""
    path = tmp_path / "config.toml"
    path.write_text("[printers.mk3]\n[printers.mini]\ninterval = -1\n")
    return path


def offered(*words):
    """What stands to choose for the last of these words."""
    *before, incomplete = words
    found = ShellComplete(cli.main, {}, "portretry-udev", VARIABLE).get_completions(before, incomplete)
    return [item.value if item.type == "plain" else item.type for item in found]


def test_commands_and_choices():
    """What click knows by itself: commands, options, and the words of a choice."""
    assert offered("st") == ["status"]
    assert offered("watch", "--recon") == ["--reconnect"]
    assert offered("watch", "--reconnect", "") == ["on-return", "always"]


@pytest.mark.parametrize("command", ["watch", "login", "status", "retry", "pause", "resume", "probe"])
def test_printers_of_the_configuration(command, configured):
    """Every command that takes a printer's name offers those that are configured."""
    assert offered("--config", str(configured), command, "m") == ["mk3", "mini"]
    assert offered(command, "--config", str(configured), "mi") == ["mini"]


def test_a_printer_is_not_offered_twice(configured):
    """Of several names, those that stand there already are left out."""
    assert offered("--config", str(configured), "watch", "mk3", "") == ["mini"]


def test_the_configuration_of_the_environment(configured, monkeypatch):
    """PORTRETRY_CONFIG names it as well."""
    monkeypatch.setenv("PORTRETRY_CONFIG", str(configured))
    assert offered("status", "") == ["mk3", "mini"]


@contextlib.contextmanager
def service(path, answer):
    """A service that gives this one answer; None: that takes questions, and is silent."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            peer, _ = listener.accept()
            with peer, peer.makefile("rb") as lines:
                lines.readline()
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        yield
        if answer is not None:
            thread.join(5)


def test_printers_of_the_service(tmp_path):
    """Who may not read the configuration, or has none, gets the names from the running service."""
    path = tmp_path / "control.sock"
    answer = {"version": control.VERSION, "printers": {"mk3": {}, "mini": {}}, "pending": []}
    with service(path, json.dumps(answer).encode() + b"\n"):
        assert offered("status", "--control", str(path), "m") == ["mk3", "mini"]


@pytest.mark.parametrize("answer", [b"", b"[]\n", b'{"version": 1}\n', b'{"version": 1, "error": "no"}\n'])
def test_a_strange_service_offers_nothing(answer, tmp_path, capfd):
    """Whatever answers there: no word and no message."""
    path = tmp_path / "control.sock"
    with service(path, answer):
        assert offered("status", "--control", str(path), "") == []
    assert capfd.readouterr() == ("", "")


def test_a_service_that_hangs_is_not_waited_for(tmp_path):
    """Half a second, and there is nothing to offer."""
    path = tmp_path / "control.sock"
    began = time.monotonic()
    with service(path, None):
        assert offered("status", "--control", str(path), "") == []
    assert completion._PATIENCE <= time.monotonic() - began < control.PATIENCE / 2


@pytest.mark.parametrize("text", ["", "printers = 3", "[[", "\0", "[printers]\n[other]"])
def test_a_broken_configuration_offers_nothing(text, configured):
    """No word, and no message into the line that is being typed."""
    configured.write_text(text)
    assert offered("--config", str(configured), "status", "") == []


class Two:
    """Two ports."""

    def ports(self):
        return [Port("/dev/ttyACM0", "/dev/serial/by-id/usb-A-if00"), Port("/dev/ttyS0")]

    def close(self):
        pass


def test_ports(monkeypatch, configured):
    """All names of all ports, the lasting ones first; `probe` takes printers, too."""
    monkeypatch.setattr(completion, "Devices", Two)
    nodes = ["/dev/serial/by-id/usb-A-if00", "/dev/ttyACM0", "/dev/ttyS0"]
    assert offered("ports", "") == nodes
    assert offered("watch", "--port", "/dev/ttyA") == ["/dev/ttyACM0"]
    assert offered("--config", str(configured), "probe", "") == [*nodes, "mk3", "mini"]


def test_ports_without_libudev(monkeypatch):
    """None are offered."""

    def missing():
        raise NoLibudevError

    monkeypatch.setattr(completion, "Devices", missing)
    assert offered("ports", "") == []


def test_files_and_folders():
    """The shell is told to do what it does best."""
    assert offered("--config", "") == ["file"]
    assert offered("watch", "--api-key-file", "/etc/p") == ["file"]
    assert offered("watch", "--state-dir", "") == ["dir"]
    assert offered("status", "--control", "") == ["file"]


def test_what_is_no_file_completes_as_none():
    """A URL or a number is the person's."""
    assert offered("watch", "--octoprint", "") == []
    assert offered("watch", "--baudrate", "") == []


def test_a_taught_command_works_as_before():
    """The words that a person gives arrive unchanged."""
    said = CliRunner().invoke(cli.main, ["watch", "--port", "nonsense", "--octoprint", "http://127.0.0.1"])
    assert said.exit_code == 78
    assert 'must be the path of a node, such as "/dev/serial/by-id/...", is "nonsense"' in said.stderr


def test_the_program_answers_a_shell(configured):
    """As a process: the words on stdout, nothing on stderr, and nothing is done."""
    asked = {"COMP_WORDS": "portretry-udev watch mk3 ", "COMP_CWORD": "3", VARIABLE: "bash_complete"}
    said = subprocess.run(
        [sys.executable, "-c", "from portretry_udev.cli import main; main(prog_name='portretry-udev')"],
        env=os.environ | asked | {"PORTRETRY_CONFIG": str(configured)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (said.stdout, said.stderr) == ("plain,mini\n", "")
