"""A machine that can be made ill and cured, for the tests of the doctor.

A simulated printer and a minimal OctoPrint are real, and so are the service's socket, the files in its
folders, and processes that hold the port.  The machine around them (/proc, /sys, /etc, systemd) is a folder
and a table of what systemctl would say.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench import Bench
from portretry_udev import control, control_server
from portretry_udev.config import survey
from portretry_udev.devices import Devices, Uevent
from portretry_udev.doctor import examine
from portretry_udev.doctor_facts import Kernel, Reader
from portretry_udev.doctor_patients import majors, patients
from portretry_udev.install import printers_rules

STRANGER = 64123  # a user that is on no machine
ALL_CAPABILITIES = "000001ffffffffff"
HEALTHY = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "FragmentPath": "/etc/systemd/system/portretry-udev.service",
    "ConditionResult": "yes",
    "ConditionTimestamp": "Fri 2026-11-27 20:50:49 UTC",
    "Result": "success",
    "ExecMainStatus": "0",
    "Type": "notify",
    "WatchdogUSec": "2min",
    "NeedDaemonReload": "no",
    "ProtectHome": "no",
    "ProtectSystem": "no",
    "PrivateTmp": "no",
    "ReadWritePaths": "",
    "User": "",
    "DevicePolicy": "auto",
    "DeviceAllow": "",
}
NOW = 1_790_000_000.0  # in 2026
SPARE = "/dev/tty62"

HOLDS_IT = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
print("has it", flush=True)
sys.stdin.read()
"""


class Watched:
    """A watcher's face, as the control socket sees it."""

    def __init__(self, name):
        self.name = name
        self.state, self.why = "connected", "OctoPrint is connected (Operational)"
        self.posted = []

    @property
    def snapshot(self):
        return control.Snapshot(
            self.state,
            self.why,
            None,
            None,
            "Operational",
            NOW,
            0.0,
            0,
            paused=False,
            holding=False,
            news=None,
        )

    def post(self, item):
        self.posted.append(type(item).__name__)


class Around:
    """Real `Devices`, but for what a test says of them."""

    def __init__(self, real):
        self._real = real
        self.said = None  # by `find`, of whatever is wanted
        self.node = {}  # what is different in the node that is found
        self.marked = None
        self.usb = None
        self.hears = True
        self._read, self._write = os.pipe()

    def close(self):
        self._real.close()
        os.close(self._read)
        os.close(self._write)

    def ports(self):
        return []  # none of this machine's

    def find(self, wanted):
        if self.said is not None:
            return self.said
        found = self._real.find(wanted)
        is_node = dataclasses.is_dataclass(found) and hasattr(found, "real")
        return dataclasses.replace(found, **self.node) if is_node else found

    def marks(self, node):
        return self.marked or self._real.marks(node)

    def usb_folder(self, node):
        return self.usb or self._real.usb_folder(node)

    def start(self):
        if self.hears:
            os.write(self._write, b"!")

    def fileno(self):
        return self._read

    def read(self):
        return [Uevent("change", SPARE)] if self.hears else []


class Clinic:
    """The machine, well at first.

    Attributes:
        settings: of the printer, as in the configuration; None: not given.
        top: settings at the top of the file.
        unit: what systemd says of it.
        patient: what is different in the facts of the printer.
        kernel: what is different in the kernel.
    """

    def __init__(self, folder, bench, stack):
        self.folder, self.bench = folder, bench
        self._stack = stack
        self.config = folder / "config.toml"
        self.root = folder / "root"
        self.socket = folder / "run" / "control.sock"
        self.state = folder / "state"
        self.state.mkdir()
        self.top = {"state_dir": str(self.state)}
        self.settings = {
            "octoprint": bench.octoprint.url,
            "api_key_file": str(bench.key_file),
            "port": str(bench.link),
        }
        self.unit = dict(HEALTHY)
        self.written = "# /etc/systemd/system/portretry-udev.service\n[Service]\nType=notify\n"
        self.systemd = True
        self.systemctl = None  # what it complains about
        self.kernel = {"user": 0, "now": lambda: NOW, "synchronised": lambda: True, "deaf": lambda: ""}
        self.patient = {"around": ()}
        self.watched = Watched(bench.name)
        self.server = None
        self.told = "udev"
        self.devices = Around(Devices())
        stack.callback(self.devices.close)
        self._lay_out()
        self.serve()

    def _lay_out(self):
        self.write("run/udev/control", "")
        self.write("proc/self/mountinfo", "24 27 0:6 / /dev rw - devtmpfs devtmpfs rw\n")
        self.write("proc/net/unix", "0: 2 0 1 5 1 23456 /run/udev/control\n")
        self.write("proc/self/uid_map", "0 0 4294967295\n")
        self.write("proc/1/comm", "openrc-init\n")
        self.write("sys/class/tty/tty62/uevent", "")
        self.write("etc/udev/rules.d/99-portretry.rules", "# the rule\n")

    # -- the machine -------------------------------------------------------------------------------------
    def write(self, name, content):
        """Put a file into the machine; None takes it away."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True) if content is None else path.write_text(content)
        return path

    def runs(self, name, pid=4242, *, words=(), user=0, capabilities=ALL_CAPABILITIES):
        """Have a process."""
        self.write(f"proc/{pid}/comm", f"{name}\n")
        self.write(f"proc/{pid}/cmdline", "".join(f"{word}\0" for word in words or (name,)))
        status = f"Uid:\t{user} {user} {user} {user}\nGid:\t{user} {user} {user} {user}\nGroups:\t{user}\n"
        self.write(f"proc/{pid}/status", f"{status}CapEff:\t{capabilities}\n")

    def ends(self, pid=4242):
        for name in ("comm", "cmdline", "status"):
            self.write(f"proc/{pid}/{name}", None)

    def run(self, command):
        """What programs say."""
        if command[0] == "systemctl":
            if self.systemctl:
                raise OSError(self.systemctl)
            return self.written if command[1] == "cat" else "".join(self._told(command[-1]))
        raise OSError(f"there is no {command[0]} here")

    def _told(self, asked):
        """As systemd (252) tells it: each device that is allowed in a line of its own, and no credential."""
        for name in asked.removeprefix("--property=").split(","):
            value = "[unprintable]" if "Credential" in name else self.unit.get(name, "")
            for each in value.split("; ") if name == "DeviceAllow" else (value,):
                yield f"{name}={each}\n"

    def printers_rule(self, text=None):
        """Write the rule for the configured printers, as `install` does, or another text."""
        self.write_config()
        found = survey({"config": str(self.config)}, {})
        self.write("etc/udev/rules.d/99-portretry-printers.rules", text or printers_rules(found.printers)[0])

    # -- the service -------------------------------------------------------------------------------------
    def serve(self, **process):
        """Start the service: a real socket, and a process that is one by its looks."""
        self.runs(
            "portretry-udev", 77, words=("/usr/bin/python3", "/usr/bin/portretry-udev", "watch"), **process
        )
        if self.server is None:
            self.server = control_server.Server(self.socket, [self.watched], lambda: self.told)
            self._thread = threading.Thread(target=self.server.run)
            self._thread.start()
            self._stack.callback(self.stop)

    def stop(self):
        """End it."""
        self.ends(77)
        self.hang()

    def hang(self):
        """Have it not answer any more, but be there."""
        if self.server is not None:
            self.server.stop()
            self._thread.join()
            self.server.close()
            self.server = None

    # -- others ------------------------------------------------------------------------------------------
    def hold(self, name):
        """Have a process of that name hold the port; returns how to end it."""
        program = self.folder / name
        program.write_text(HOLDS_IT)
        process = subprocess.Popen(
            [sys.executable, program, self.bench.link],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        def end():
            process.stdin.close()
            process.wait(5)
            process.stdout.close()

        self._stack.callback(process.kill)
        assert process.stdout.readline() == b"has it\n"
        return end

    # -- the doctor --------------------------------------------------------------------------------------
    def write_config(self):
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.top.items()]
        lines.append(f"[printers.{self.bench.name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in self.settings.items() if value is not None]
        self.config.write_text("\n".join(lines) + "\n")

    def examine(self, *, config=True):
        """Have the doctor look; returns the report."""
        if config:
            self.write_config()
        folder = self.root / "run/systemd/system"
        folder.mkdir(parents=True, exist_ok=True) if self.systemd else _remove(folder)
        found = survey({}, {}, default_file=self.config)
        reader = Reader(self.devices, str(self.root), self.run, Kernel(**self.kernel))
        seen = [
            dataclasses.replace(each, **self.patient)
            for each in patients(found.printers, self.devices, reader.process)
        ]
        return examine(reader.machine(found, self.socket, majors(seen)), seen)

    def ids(self, **options):
        """What it finds, but for what is well."""
        return {finding.id for finding in self.examine(**options).all if finding.cure}


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def _remove(folder):
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


@contextlib.contextmanager
def clinic(folder):
    """A machine; its printer is on, OctoPrint is offline."""
    with contextlib.ExitStack() as stack:
        bench = stack.enter_context(Bench(folder))
        yield Clinic(folder, bench, stack)


class Scripted:
    """An OctoPrint that says whatever a test wants: by path, a status and JSON, or text."""

    def __init__(self):
        told = self.told = {
            "/api/currentuser": (200, {"name": "pi", "groups": [], "permissions": ["STATUS", "CONNECTION"]}),
            "/api/version": (200, {"api": "0.1", "server": "1.11.8"}),
            "/api/server": (200, {"version": "1.11.8", "safemode": None}),
            "/api/job": (200, {"state": "Offline"}),
            "/api/connection": (200, self.connection("Closed")),
            "/plugin/appkeys/probe": (204, None),
        }

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                status, body = told.get(self.path, (404, {"error": "not found"}))
                data = (
                    body.encode()
                    if isinstance(body, str)
                    else b""
                    if body is None
                    else json.dumps(body).encode()
                )
                self.send_response(status)
                if body is not None:
                    kind = "text/html" if isinstance(body, str) else "application/json"
                    self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @staticmethod
    def connection(state, port=None, **options):
        return {
            "current": {"state": state, "port": port, "baudrate": None, "printerProfile": "_default"},
            "options": {
                "ports": [],
                "baudrates": [115200],
                "portPreference": None,
                "baudratePreference": None,
                **options,
            },
        }

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def no_room(_path):
    """A disk that is full, as statvfs(2) tells it."""
    return types.SimpleNamespace(f_flag=0, f_bavail=0, f_frsize=4096)


def no_writing(_path):
    """A file system that is read-only."""
    return types.SimpleNamespace(f_flag=os.ST_RDONLY, f_bavail=1000000, f_frsize=4096)
