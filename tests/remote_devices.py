"""A `Devices` in a process of its own: in umockdev's test bed, or in namespaces like a container's.

with RemoteDevices(env=bed.env) as devices:
    devices.wait_for(action="add", node="/dev/ttyACM0")
    node = devices.find(path="/dev/ttyACM0")
"""

import contextlib
import dataclasses
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import portretry_udev
from portretry_udev.devices import Devices, Wanted


class RemoteDevices:
    """Drives the process; every answer is plain JSON data."""

    def __init__(self, prefix: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        package = Path(portretry_udev.__file__).parents[1]  # an installed one, or the checkout's src
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", __file__],
            env=(os.environ if env is None else env) | {"PYTHONPATH": str(package)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.heard: list[dict[str, Any]] = []
        self.ask("hello")

    def ask(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def find(self, path: str | None = None, **match: str) -> dict[str, Any]:
        return self.ask("find", path=path, match=match)

    def wait_for(self, *, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
        """The first uevent with these fields; everything heard on the way is kept in `heard`."""
        deadline = time.monotonic() + timeout
        seen = 0
        while True:
            for uevent in self.heard[seen:]:
                if fields.items() <= uevent.items():
                    return uevent
            seen = len(self.heard)
            left = deadline - time.monotonic()
            assert left > 0, f"no uevent with {fields} within {timeout} s, only {self.heard}"
            self.heard += self.ask("read", timeout=left)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing for so long."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(10) == 0


def make_the_socket_tiny(devices: Devices) -> None:
    """Room for one or two events; libudev gives root 128 MiB, and anybody else what the kernel allows."""
    assert devices._monitor is not None
    with socket.socket(fileno=os.dup(devices._monitor.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


def _serve() -> None:
    devices = Devices()
    devices.start()
    # Registered once: the descriptor must stay good across a lost monitor.
    ready = select.poll()
    ready.register(devices.fileno(), select.POLLIN)
    for line in sys.stdin:
        what, arguments = json.loads(line)
        answer: Any = None
        if what == "find":
            answer = dataclasses.asdict(devices.find(Wanted(**arguments)))
        elif what == "ports":
            answer = [dataclasses.asdict(port) for port in devices.ports()]
        elif what == "events":
            answer = [devices.events, devices.events_why]
        elif what == "shrink":
            make_the_socket_tiny(devices)
        elif what == "seconds":
            answer = time.process_time()
        elif what == "read":
            due = math.inf if devices.retry_at is None else max(0.0, devices.retry_at - time.monotonic())
            ready.poll(min(arguments["timeout"], due) * 1000)
            answer = [dataclasses.asdict(uevent) for uevent in devices.read()]
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer
    devices.close()


if __name__ == "__main__":
    _serve()
