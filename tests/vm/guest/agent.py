"""The suite's hands in the guest: starts processes, feeds and kills them, writes files.

Speaks lines of JSON on a virtio-serial port.  Knows processes and files.  Must not know what they are for:
`machine.py`, at the other end, does.

A request is `{"op": ..., "id": N, ...}`; whatever comes of it is `{"ev": ..., "id": N, ...}`, the last of it
`exit` with a status `rc`.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

PORT = "/dev/virtio-ports/agent"
_EMPTY_PERIOD = 0.05  # seconds; the port reads as ended while nobody is at the host's end
_ORPHAN_GRACE = 0.5  # seconds; a grandchild in the background may keep the pipe open


class Agent:
    """One connection to the host, and the processes started for it."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self._sending = threading.Lock()
        self._processes = {}

    def serve(self):
        self.send(id=0, ev="hello")
        buffer = b""
        while True:
            chunk = os.read(self._descriptor, 65536)
            if not chunk:
                time.sleep(_EMPTY_PERIOD)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                request = json.loads(line)
                try:
                    getattr(self, "on_" + request["op"])(request)
                except (OSError, ValueError, LookupError) as e:
                    self.send(id=request["id"], ev="out", data=f"agent: {e!r}\n")
                    self.send(id=request["id"], ev="exit", rc=125)

    def send(self, **message):
        data = (json.dumps(message) + "\n").encode()
        with self._sending:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def on_run(self, request):
        process = subprocess.Popen(
            request["command"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, **request["env"]},
            start_new_session=True,
        )
        self._processes[request["id"]] = process
        threading.Thread(target=self._follow, args=(request["id"], process), daemon=True).start()

    def _follow(self, number, process):
        reader = threading.Thread(target=self._pump, args=(number, process.stdout), daemon=True)
        reader.start()
        status = process.wait()
        reader.join(_ORPHAN_GRACE)
        del self._processes[number]
        self.send(id=number, ev="exit", rc=status)

    def _pump(self, number, stream):
        while chunk := os.read(stream.fileno(), 65536):
            self.send(id=number, ev="out", data=chunk.decode("utf-8", "backslashreplace"))

    def on_input(self, request):
        process = self._processes[request["target"]]
        process.stdin.write(request["data"].encode())
        process.stdin.flush()
        self.send(id=request["id"], ev="exit", rc=0)

    def on_kill(self, request):
        process = self._processes.get(request["target"])
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.Signals(request["signal"]))
        self.send(id=request["id"], ev="exit", rc=0)

    def on_put(self, request):
        path = Path(request["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(request["data"]))
        path.chmod(request["mode"])
        self.send(id=request["id"], ev="exit", rc=0)

    def on_clock(self, request):
        """Set the wall clock; a machine started from a saved state has that of its saving."""
        time.clock_settime(time.CLOCK_REALTIME, request["time"])
        self.send(id=request["id"], ev="exit", rc=0)


if __name__ == "__main__":
    Agent(os.open(PORT, os.O_RDWR)).serve()
