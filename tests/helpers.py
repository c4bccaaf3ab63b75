"""Helpers of several suites: waiting without guessing how long, and the service as a process of its own.

Must not know OctoPrint: what the service is pointed at is the business of the suite.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import portretry_udev

POLL_PERIOD = 0.05  # seconds between two looks at a condition
STOPS_WITHIN = 1.0  # seconds; the service's promise for SIGTERM and SIGINT


def assert_eventually(condition, timeout, why):
    """Wait until the condition is true; fail after so many seconds, saying why.

    Returns the seconds it took.  ``why`` is a text, or a function that is called when it fails and so can
    tell how things stood at the end.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            raise AssertionError(f"not within {timeout:g} s: {why() if callable(why) else why}")
        time.sleep(POLL_PERIOD)
    return time.monotonic() - began


def assert_stays(condition, seconds, why):
    """See that the condition is true, and stays so for that many seconds."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        if not condition():
            raise AssertionError(f"not any more after {passed:.1f} s: {why() if callable(why) else why}")
        time.sleep(POLL_PERIOD)


class Daemon:
    """``portretry-udev watch`` as its own process, its log read line by line.

    ``expect`` reads on from where the last ``expect`` ended: so a row of them asserts an order.  ``env`` is
    what its environment has beyond ours.
    """

    def __init__(self, *arguments, env=None):
        self._env = dict(env or {})
        self.arguments = [str(argument) for argument in arguments]
        self.lines = []  # (seconds since the start, text)
        self.status = None
        self._read = 0
        self._ended = False
        self._changed = threading.Condition()
        self._process = None

    def start(self):
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PORTRETRY_") and name != "JOURNAL_STREAM"
        }
        # The package under test, wherever this run found it: a checkout, or an installed wheel.
        environment["PYTHONPATH"] = str(Path(portretry_udev.__file__).parents[1])
        environment |= self._env
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "portretry_udev", "watch", *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # stdout is for what was asked for, and nothing was
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
        self._reader = threading.Thread(target=self._take, daemon=True)
        self._reader.start()
        return self

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.end()

    def _take(self):
        for line in self._process.stderr:
            with self._changed:
                self.lines.append((time.monotonic() - self._began, line.rstrip("\n")))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def expect(self, pattern, timeout=10.0):
        """Wait for a line that the pattern is found in, after those already expected; returns that line."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                while self._read < len(self.lines):
                    self._read += 1
                    line = self.lines[self._read - 1][1]
                    if re.search(pattern, line):
                        return line
                left = deadline - time.monotonic()
                if self._ended:
                    raise AssertionError(f"the service ended without saying {pattern!r}:\n{self.log()}")
                if left <= 0:
                    raise AssertionError(f"the service did not say {pattern!r} within {timeout:g} s")
                self._changed.wait(left)

    def count(self, pattern):
        """How many lines so far the pattern is found in."""
        with self._changed:
            return sum(bool(re.search(pattern, line)) for _, line in self.lines)

    def log(self):
        """All that it has said, with the seconds since its start."""
        with self._changed:
            return "\n".join(f"{when:8.3f} {line}" for when, line in self.lines)

    def running(self):
        return self._process is not None and self._process.poll() is None

    def send(self, number):
        """Send it a signal."""
        self._process.send_signal(number)

    def stop(self, how=signal.SIGTERM, within=STOPS_WITHIN):
        """End it as systemd does: it must be there, and gone in time, with status 0.

        A second is the promise, and what the quieter suites hold it to.
        """
        assert self.running(), f"the service had ended by itself, status {self.end()}:\n{self.log()}"
        began = time.monotonic()
        self._process.send_signal(how)
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"the service did not end within {within:g} s of {how.name}") from None
        took = time.monotonic() - began
        assert self.end() == 0, f"the service ended with status {self.status} on {how.name}:\n{self.log()}"
        return took

    def end(self):
        """Have it gone, however; returns its exit status."""
        if self._process is not None:
            self._process.kill()
            self.status = self._process.wait()
            self._reader.join()
            self._process.stderr.close()
            self._process = None
        return self.status
