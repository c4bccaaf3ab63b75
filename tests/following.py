"""``ports --watch`` as a process of its own, for several suites."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import portretry_udev


def pasted(folder, lines):
    """A configuration file with these lines below a printer's table."""
    key = folder / "key"
    key.touch(0o600)
    key.write_text("Zq3-k7x_TheKeyOfTheTests_0123456789")
    path = folder / "config.toml"
    head = f'[printers.x]\noctoprint = "http://127.0.0.1:1"\napi_key_file = "{key}"\n'
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return path


class Watching:
    """``ports --watch`` as a process of its own, whose stdout is a pipe."""

    def __init__(self, *arguments, env=None):
        environment = {
            name: value for name, value in (env or os.environ).items() if not name.startswith("PORTRETRY_")
        }
        environment["PYTHONPATH"] = str(Path(portretry_udev.__file__).parents[1])
        code = "from portretry_udev.cli_ports import ports; ports(prog_name='portretry-udev ports')"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "--watch", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._unread = {self._process.stdout: b"", self._process.stderr: b""}

    def __enter__(self):
        while "Ctrl-C" not in self._line(self._process.stderr):
            pass
        return self

    def line(self):
        """The next line of stdout, within ten seconds."""
        return self._line(self._process.stdout)

    def _line(self, stream):
        deadline = time.monotonic() + 10
        while b"\n" not in self._unread[stream]:
            assert select.select([stream], [], [], max(0, deadline - time.monotonic()))[0], "no line in 10 s"
            some = os.read(stream.fileno(), 4096)
            assert some, f"it has ended, and said {self._unread[stream]!r}"
            self._unread[stream] += some
        line, _, self._unread[stream] = self._unread[stream].partition(b"\n")
        return line.decode()

    def interrupt(self):
        """Ctrl-C; what it said since, and its exit status."""
        self._process.send_signal(signal.SIGINT)
        out, err = self._process.communicate(timeout=5)
        out, err = self._unread[self._process.stdout] + out, self._unread[self._process.stderr] + err
        return out.decode(), err.decode(), self._process.returncode

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()
