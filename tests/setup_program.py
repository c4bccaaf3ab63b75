"""``setup`` as a process of its own, on a machine of a test's making: its ports, OctoPrints and systemd.

Run with the command's arguments.  What the machine is, the variables say: PORTRETRY_TEST_PORTS names a file
with the ports, as JSON, read anew at each look; PORTRETRY_TEST_OCTOPRINTS the addresses where an OctoPrint
may be; PORTRETRY_TEST_MACHINE a folder that is the machine's root, with a systemd that runs the service as a
process that outlives this one.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from portretry_udev import activation, cli, finding, installation, setup_run
from portretry_udev.activation import Machine, Outcome
from portretry_udev.devices import Devices, Node, Port

PORTS, OCTOPRINTS, MACHINE = (f"PORTRETRY_TEST_{name}" for name in ("PORTS", "OCTOPRINTS", "MACHINE"))


class FakeDevices(Devices):
    """The ports that a file lists; no events arrive here."""

    def __init__(self):
        super().__init__()
        self._ears = socket.socketpair()

    def start(self):
        """Nothing is heard here."""

    def fileno(self):
        return self._ears[0].fileno()

    def read(self):
        return []

    def ports(self):
        return [Port(**port) for port in json.loads(Path(os.environ[PORTS]).read_text())]

    def find(self, wanted):
        for port in self.ports():
            names = {port.node, port.by_id, port.by_path}
            match = {key: getattr(port, key, None) for key in wanted.match}
            if wanted.path in names if wanted.path else match == wanted.match:
                return Node(wanted.path or port.node, port.node, hash(port.node), 1, modem=True)
        return super().find(wanted)


class Systemd:
    """Starts the service as its unit would: the key is a credential, and what it says goes into a file."""

    def __init__(self, root):
        self.root = root
        self.pid = root / "run/pid"

    def look(self, *_):
        return Machine(
            udevd=False, systemd=True, has_systemd=True, active=self.active(), enabled=self.active()
        )

    def active(self):
        return self.pid.exists()

    def run(self, command):
        with (self.root / "run/commands").open("a") as log:
            log.write(" ".join(command) + "\n")
        if command[:2] == ("systemctl", "enable"):
            self._start()
        return Outcome(0)

    def _start(self):
        folder = self.root / "etc/portretry-udev"
        arguments = [
            "--config",
            folder / "config.toml",
            "--state-dir",
            self.root / "state",
            "--interval",
            "0.5",
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "portretry_udev", "watch", *map(str, arguments)],
            env={**os.environ, "CREDENTIALS_DIRECTORY": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.root / "run/log").open("w"),
            start_new_session=True,
        )
        self.pid.write_text(str(process.pid))


def main():
    if OCTOPRINTS in os.environ:
        finding.USUAL = tuple(os.environ[OCTOPRINTS].split())
        finding.addresses = lambda: list(finding.USUAL)
    if PORTS in os.environ:
        setup_run.devices_or_fail = FakeDevices
    if MACHINE in os.environ:
        root = Path(os.environ[MACHINE])
        (root / "run").mkdir(parents=True, exist_ok=True)
        systemd = Systemd(root)
        activation.look, activation.run = systemd.look, systemd.run
        installation.is_here = lambda layout: layout.root == root.resolve()
        sys.argv[2:2] = ["--root", str(root), "--program", "/usr/bin/portretry-udev"]
    cli.main(prog_name="portretry-udev")


if __name__ == "__main__":
    main()
