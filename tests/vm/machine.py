"""The virtual machine: a stock Debian kernel with udev and systemd in QEMU, USB plugs, and processes inside.

Knows QEMU, its monitor protocol (QMP) and the guest's agent.  Must not know what is plugged in (`boards`) nor
what runs in the guest (`bench`).

A machine is booted once and saved; later ones start from there in half a second.  No kernel module is
loaded on the host, and without KVM nothing needs root.
"""

import atexit
import base64
import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path

BOOT = 180.0  # seconds for the one cold boot; emulated on a busy machine it takes 40
MEMORY = 512  # MB
_PORTS = range(1, 9)  # of the emulated USB hub
_APPEND = (
    "root=/dev/vda rw console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off audit=0 "
    "systemd.show_status=0 random.trust_cpu=on"
)


class MachineError(Exception):
    """The machine, or a command in it, did not do what was asked; the text says what it said."""


class NotHereError(MachineError):
    """This computer cannot build the machine; the text says why."""


def built():
    """The folder with all that the machine boots from, built now if need be (a minute, root)."""
    build = Path(__file__).parent / "build"
    result = subprocess.run([build], capture_output=True, text=True, check=False)
    if result.returncode == 77:  # automake's number for "cannot be tested here"
        raise NotHereError(result.stderr.strip())
    if result.returncode:
        raise MachineError(f"{build} failed:\n{result.stderr}")
    return Path(result.stdout.strip())


def accelerator():
    """KVM where it works: under pvm, a hypervisor in a hypervisor, a stock kernel does not come up in it."""
    if forced := os.environ.get("PORTRETRY_VM_ACCEL"):
        return forced
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and not Path("/sys/module/kvm_pvm").is_dir()
    return "kvm" if usable else "tcg"


class Process:
    """A command in the guest; each line of its output carries the host's clock at its arrival."""

    def __init__(self, machine, number):
        self._machine, self.number = machine, number
        self.status = None
        self.text = ""
        self.lines = []  # (time.monotonic() here, text)
        self._tail = ""
        self._read = 0
        self._changed = threading.Condition()

    def take(self, message, now):
        """What the agent tells of it."""
        with self._changed:
            if message["ev"] == "out":
                self.text += message["data"]
                *full, self._tail = (self._tail + message["data"]).split("\n")
                self.lines += [(now, line) for line in full]
            elif message["ev"] == "exit":
                if self._tail:
                    self.lines.append((now, self._tail))
                self.status = message["rc"]
            self._changed.notify_all()

    def wait(self, timeout):
        """Wait for its end; returns its exit status."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.status is not None, timeout):
                raise MachineError(f"still running after {timeout:g} s; it said:\n{self.text[-3000:]}")
        return self.status

    def expect(self, pattern, timeout=30.0):
        """Wait for a line that the pattern is found in, after those already expected.

        Returns the match and the time (host's monotonic clock) of the line.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                while self._read < len(self.lines):
                    self._read += 1
                    when, line = self.lines[self._read - 1]
                    if match := re.search(pattern, line):
                        return match, when
                left = deadline - time.monotonic()
                if self.status is not None or left <= 0:
                    how = f"ended with {self.status}" if self.status is not None else f"within {timeout:g} s"
                    raise MachineError(f"did not say {pattern!r} ({how}); it said:\n{self.text[-3000:]}")
                self._changed.wait(left)

    def catch_up(self):
        """Count all that was said so far as expected; returns how many lines that are in all."""
        with self._changed:
            self._read = len(self.lines)
            return self._read

    def said(self, pattern, since=0):
        """The lines so far that the pattern is found in, after the first ``since`` ones."""
        with self._changed:
            return [line for _, line in self.lines[since:] if re.search(pattern, line)]

    def write(self, text):
        """Give it something to read."""
        self._machine.request(op="input", target=self.number, data=text).wait(10)

    def kill(self, how=signal.SIGTERM):
        """Send a signal to it and to its children."""
        self._machine.request(op="kill", target=self.number, signal=int(how)).wait(10)


class Machine:
    """A running guest, from `start()` or `with` until `close()`.

    Args:
        image: the folder that `built` returns.
        memory: in MB.
    """

    def __init__(self, image, memory=MEMORY):
        self._image, self._memory = image, memory
        self._accelerator = accelerator()
        self.dir = Path(tempfile.mkdtemp(prefix="portretry-vm-"))
        self._numbers = itertools.count(1)
        self._processes = {}
        self._hello = threading.Event()
        self._qmp_lock = threading.Lock()
        self._ports = {}
        self._open = contextlib.ExitStack()

    # -- life ------------------------------------------------------------------------------------------
    def start(self):
        """Run from a machine that was saved after its boot; the first one ever boots and is saved."""
        saved = self._saved()
        with Path(self._image, "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not saved.with_suffix(".state").exists():
                with contextlib.closing(Machine(self._image, self._memory)) as first:
                    first.boot_and_save(saved)
        disk = self.dir / "disk.qcow2"
        shutil.copyfile(saved.with_suffix(".qcow2"), disk)
        self._launch(disk, "-incoming", f"exec:cat {saved.with_suffix('.state')}")
        deadline = time.monotonic() + BOOT
        while self.qmp("query-status")["status"] != "running":
            self._not_after(deadline)
            with contextlib.suppress(MachineError):  # it is still being loaded
                self.qmp("cont")
        self.request(op="clock", time=time.time()).wait(BOOT)
        return self

    def boot_and_save(self, saved):
        """Boot, bring in what every test needs, and keep the whole as ``saved``.qcow2 and .state."""
        disk = self.dir / "disk.qcow2"
        base = self._image / "root.ext4"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk]
        subprocess.run(create, check=True)
        self._launch(disk)
        self._wait_hello()
        self.run("systemctl is-system-running --wait; udevadm settle; modprobe -a cdc_acm ch341", BOOT)
        # Read from the disk once, not by each machine anew.
        self.run("python3 -c 'import click, pyudev, requests, serial, http.server'; sync", BOOT)
        self.qmp("stop")
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 8 << 30})
        self.qmp("migrate", uri=f"exec:cat > {self.dir}/state")
        deadline = time.monotonic() + BOOT
        while (status := self.qmp("query-migrate").get("status")) != "completed":
            if status == "failed":
                raise MachineError("the machine could not be saved")
            self._not_after(deadline)
        self.close(keep=True)
        shutil.move(disk, saved.with_suffix(".qcow2"))
        shutil.move(self.dir / "state", saved.with_suffix(".state"))
        shutil.rmtree(self.dir)

    def _wait_hello(self):
        if not self._hello.wait(BOOT):
            console = (self.dir / "console.log").read_text(errors="replace")
            raise MachineError(f"no agent within {BOOT:g} s; the console:\n{console[-3000:]}")

    def _saved(self):
        """A saved machine runs only in the same QEMU, made in the same way."""
        version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True).stdout
        shape = repr((version, self._arguments("disk")[1:], self._accelerator))
        shape = shape.replace(str(self.dir), "")
        return self._image / f"booted-{hashlib.sha256(shape.encode()).hexdigest()[:8]}"

    def _arguments(self, disk):
        cpu = "host" if self._accelerator == "kvm" else "max"
        engine = "kvm" if self._accelerator == "kvm" else "tcg,thread=multi,tb-size=256"
        return [
            *("setpriv", "--pdeathsig", "KILL"),  # it ends with us, however we do
            *("qemu-system-x86_64", "-machine", "pc,usb=off,vmport=off", "-accel", engine, "-cpu", cpu),
            *("-smp", "2", "-m", str(self._memory), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-kernel", f"{self._image}/vmlinuz", "-initrd", f"{self._image}/initrd", "-append", _APPEND),
            *("-no-reboot", "-drive", f"if=none,id=root,format=qcow2,file={disk}"),
            *("-device", "virtio-blk-pci,drive=root", "-device", "virtio-rng-pci"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"),
            *("-chardev", f"socket,id=agent,path={self.dir}/agent.sock,server=off"),
            *("-device", "qemu-xhci,id=xhci,p2=8,p3=8", "-serial", f"file:{self.dir}/console.log"),
            *("-chardev", f"socket,id=qmp,path={self.dir}/qmp.sock,server=off"),
            *("-mon", "chardev=qmp,mode=control"),
        ]

    def _launch(self, disk, *more):
        agent, qmp = self._listen("agent.sock"), self._listen("qmp.sock")
        self._log = (self.dir / "qemu.log").open("w+")
        self._qemu = subprocess.Popen(
            [*self._arguments(disk), *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        atexit.register(self.close)
        try:
            self._agent = self._open.enter_context(agent.accept()[0])
            monitor = self._open.enter_context(qmp.accept()[0])
            self._qmp = self._open.enter_context(monitor.makefile("rwb", buffering=0))
        except TimeoutError:
            self._qemu.kill()
            raise MachineError(f"QEMU did not start: {self._complaint()}") from None
        finally:
            agent.close()
            qmp.close()
        self._agent.settimeout(None)
        self._reader = threading.Thread(target=self._read_agent, daemon=True)
        self._reader.start()
        self._qmp_answer()  # its greeting
        self.qmp("qmp_capabilities")

    def _listen(self, name):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.dir / name))
        listener.listen(1)
        listener.settimeout(20)
        return listener

    def _complaint(self):
        return (self.dir / "qemu.log").read_text()[-2000:]

    def _not_after(self, deadline):
        if self._qemu.poll() is not None or time.monotonic() > deadline:
            raise MachineError(f"QEMU does not get any further: {self._complaint()}")
        time.sleep(0.02)

    def close(self, *, keep=False):
        """End it; ``keep``: but not its folder."""
        atexit.unregister(self.close)
        if hasattr(self, "_qemu") and self._qemu.poll() is None:
            with contextlib.suppress(MachineError):
                self.qmp("quit")
            try:
                self._qemu.wait(10)
            except subprocess.TimeoutExpired:
                self._qemu.kill()
                self._qemu.wait()
            self._reader.join()
            self._log.close()
        self._open.close()
        if not keep:
            shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()

    # -- the agent -------------------------------------------------------------------------------------
    def _read_agent(self):
        buffer = b""
        while chunk := self._received():
            now = time.monotonic()
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if message["ev"] == "hello":
                    self._hello.set()
                elif process := self._processes.get(message["id"]):
                    process.take(message, now)

    def _received(self):
        try:
            return self._agent.recv(65536)
        except OSError:
            return b""

    def request(self, **request):
        """Have the agent do something; returns the `Process` that hears what comes of it."""
        number = next(self._numbers)
        process = self._processes[number] = Process(self, number)
        self._agent.sendall((json.dumps({**request, "id": number}) + "\n").encode())
        return process

    def spawn(self, *command, **environment):
        """Start a command."""
        return self.request(op="run", command=[str(word) for word in command], env=environment)

    def run(self, line, timeout=60.0):
        """Have the shell do a line; returns its exit status and what it said."""
        process = self.spawn("bash", "-c", line)
        try:
            return process.wait(timeout), process.text
        except MachineError:
            process.kill(signal.SIGKILL)
            raise

    def check(self, line, timeout=60.0):
        """Have the shell do a line that must succeed; returns what it said."""
        status, text = self.run(line, timeout)
        if status:
            raise MachineError(f"{line!r} ended with {status}: {text}")
        return text

    def put(self, path, data, mode=0o644):
        """Write a file."""
        data = base64.b64encode(data.encode() if isinstance(data, str) else data).decode()
        process = self.request(op="put", path=path, data=data, mode=mode)
        if process.wait(30):
            raise MachineError(process.text)

    def put_tree(self, folder, path):
        """Copy a folder of Python files."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for file in sorted(folder.rglob("*.py")):
                tar.add(file, f"{path}/{file.relative_to(folder)}")
        self.put("/tmp/tree.tar", packed.getvalue())
        self.check("tar -C / -xf /tmp/tree.tar && rm /tmp/tree.tar")

    def reboot(self):
        """Restart the guest as a person does, and wait until its agent is back; what was plugged in stays."""
        self.qmp("set-action", reboot="reset")  # else QEMU ends: no loop of a kernel that panics
        self._hello.clear()
        self.spawn("systemctl", "reboot")
        self._wait_hello()
        self.qmp("set-action", reboot="shutdown")

    @contextlib.contextmanager
    def asleep(self):
        """Suspended to RAM (S3), as `systemctl suspend` has the kernel do it; awake at the end."""
        sleeper = self.spawn("sh", "-c", "echo mem > /sys/power/state")
        deadline = time.monotonic() + BOOT
        while self.qmp("query-status")["status"] != "suspended":
            self._not_after(deadline)
        yield
        self.qmp("system_wakeup")
        if sleeper.wait(BOOT):
            raise MachineError(f"it does not sleep: {sleeper.text}")

    # -- QEMU's monitor --------------------------------------------------------------------------------
    def _qmp_answer(self):
        line = self._qmp.readline()
        if not line:
            raise MachineError(f"QEMU has ended: {self._complaint()}")
        return json.loads(line)

    def qmp(self, command, **arguments):
        """Give a command to QEMU's monitor; returns its answer."""
        with self._qmp_lock:
            try:
                self._qmp.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            except OSError as e:
                raise MachineError(f"QEMU has ended: {self._complaint()}") from e
            while True:
                message = self._qmp_answer()
                if "error" in message:
                    raise MachineError(f"{command}: {message['error']['desc']}")
                if "return" in message:
                    return message["return"]

    # -- USB -------------------------------------------------------------------------------------------
    def _port(self, name):
        """The port of the hub that is this name's from now on."""
        free = next(port for port in _PORTS if port not in self._ports.values())
        return self._ports.setdefault(name, free)

    def path(self, name):
        """What udev is to call the first interface of whatever has this name: its ID_PATH."""
        hub = self.check("readlink -f /sys/bus/usb/devices/usb1").strip()
        return f"pci-{Path(hub).parent.name}-usb-0:{self._port(name)}:1.0"

    def plug(self, name, path):
        """Plug the device that serves the socket ``path``; a name returns to the same port of the hub.

        Returns the time (host's monotonic clock) of the order.
        """
        port = self._port(name)
        address = {"type": "unix", "data": {"path": str(path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.qmp("chardev-add", id=f"ch-{name}", backend=backend)
        now = time.monotonic()
        try:
            self.qmp(
                "device_add", driver="usb-redir", id=name, chardev=f"ch-{name}", bus="xhci.0", port=str(port)
            )
        except MachineError:
            self.qmp("chardev-remove", id=f"ch-{name}")
            raise
        return now

    def unplug(self, name):
        """Pull a plug; returns the time (host's monotonic clock) of the order."""
        now = time.monotonic()
        self.qmp("device_del", id=name)
        while True:  # its socket is free once the device is gone
            try:
                self.qmp("chardev-remove", id=f"ch-{name}")
            except MachineError as e:
                if "not found" in str(e):
                    return now  # usb-redir took it along
                self._not_after(now + 10)
            else:
                return now
