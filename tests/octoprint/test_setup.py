"""From nothing to connected with real OctoPrints: a key by a click, a configuration, and a service that runs.

The service is started as soon as its configuration is there, in systemd's place.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import portretry_udev
from helpers import Daemon, assert_eventually
from portretry_udev.simulator import Printer

pytestmark = pytest.mark.octoprint

SOON = 20.0  # seconds; a start of Python, a few requests, OctoPrint's handshake
CALL = "import sys; from portretry_udev.cli import main; main(sys.argv[1:], 'portretry-udev')"


class Newcomer:
    """A person at a machine with an OctoPrint and a printer, and nothing else yet."""

    def __init__(self, octoprint, node, folder):
        self.octoprint, self.node, self.folder = octoprint, node, folder
        self.config = folder / "config/config.toml"
        self.key = folder / "config/mk3.key"
        self.control = folder / "control.sock"
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("PORTRETRY_")}
        self._env["PYTHONPATH"] = str(Path(portretry_udev.__file__).parents[1])
        self._env["PORTRETRY_CONTROL"] = str(self.control)

    def setup(self, *more):
        """Begin it; what it says is read in the background."""
        flags = ["--octoprint", self.octoprint.url, "--name", "mk3", "--port", self.node, "--json"]
        command = ["setup", *flags, "--config", self.config, "--wait", SOON, *more]
        process = subprocess.Popen(
            [sys.executable, "-c", CALL, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env,
        )
        process.said = []
        process.reader = threading.Thread(target=lambda: process.said.extend(process.stderr), daemon=True)
        process.reader.start()
        return process

    def ended(self, process):
        """Its summary, when it has ended well."""
        process.stdin.close()
        process.wait(2 * SOON)
        process.reader.join()
        out = process.stdout.read()
        for stream in (process.stdout, process.stderr):
            stream.close()
        said = "".join(process.said)
        assert process.returncode == 0, said
        for secret in (self.octoprint.api_key, self.key.read_text().strip()):
            assert secret not in out + said
        return json.loads(out)

    def service(self):
        """In systemd's place."""
        arguments = ["--config", self.config, "--state-dir", self.folder / "state", "--interval", "2"]
        return Daemon(*arguments, "--control", self.control)

    def click_allow(self):
        """As the administrator, on the one question that is open."""

        def pending():
            return self.octoprint.rest("GET", "/api/plugin/appkeys").json()["pending"]

        assert_eventually(lambda: len(pending()) == 1, SOON, lambda: f"one question, but {pending()}")
        (question,) = pending().values()
        path = f"/plugin/appkeys/decision/{question['user_token']}"
        assert self.octoprint.rest("POST", path, {"decision": True}).status_code == 204


@pytest.fixture
def newcomer(octoprint, node, tmp_path):
    return Newcomer(octoprint, node, tmp_path)


def test_from_nothing_to_connected(newcomer, node):
    """Its questions are answered, Allow is clicked, the service is started: OctoPrint is operational.

    A second time, with --yes, nothing is asked and nothing changes.
    """
    with Printer(link=node, boot_delay=0.5):
        first = newcomer.setup()
        first.stdin.write("1\n")  # OctoPrint asks, and Allow is clicked
        first.stdin.flush()
        newcomer.click_allow()
        assert_eventually(
            lambda: any("This is to be written" in line for line in first.said),
            SOON,
            lambda: "".join(first.said),
        )
        assert not newcomer.config.exists()
        first.stdin.write("yes\n")
        first.stdin.flush()
        assert_eventually(newcomer.config.exists, SOON, lambda: "".join(first.said))
        with newcomer.service() as daemon:
            summary = newcomer.ended(first)
            assert summary["state"] == "connected"
            assert summary["version"] == newcomer.octoprint.version
            assert summary["changed"] == [str(newcomer.key), str(newcomer.config)]
            assert newcomer.octoprint.state() == ("Operational", "Operational")
            before = newcomer.config.stat()
            second = newcomer.ended(newcomer.setup("--yes"))
            assert (second["changed"], second["state"]) == ([], "connected")
            assert newcomer.config.stat() == before
            daemon.stop(within=SOON)
