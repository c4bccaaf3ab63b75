"""The package's minimal OctoPrint as a process in the guest, its states told on stdout, its buttons on stdin.

Knows nothing but that.  A line of JSON for each change: `state` (the words of /api/job), `error`, `port`
(which it has, by now), and `connects` (how many commands it has taken).  Lines on stdin: `connect`,
`disconnect`, `baudrate N`, `wait_for_start on` (or `off`).

    octoprint.py short|real KEY PATTERN...

KEY may be a file's path.  It answers on any free port, or on $TCP_PORT.
"""

import json
import os
import sys
import threading
from pathlib import Path

from portretry_udev.fake_comm import Timeouts
from portretry_udev.fake_octoprint import FakeOctoPrint

# Seconds.  The order of OctoPrint's own, shorter; long enough for an emulated machine and a board's boot.
SHORT = Timeouts(hello=6.0, connect=12.0, detect=1.0, poll=1.0, silence=8.0)


def say(**data):
    """One line, whole, though another thread, or process, speaks at the same time."""
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def tell(octoprint):
    """Print each change of its state, in order."""
    told = 0
    while True:
        octoprint.wait_for(lambda it, seen=told: len(it.history) > seen, 3600.0)
        for _, words in octoprint.history[told:]:
            told += 1
            error = octoprint.error if "error" in words else None
            change = {"state": words, "error": error, "port": octoprint.connection()["current"]["port"]}
            say(**change, connects=octoprint.connects)


def main():
    patience, key, *ports = sys.argv[1:]
    timeouts = {"short": SHORT, "real": Timeouts()}[patience]
    if key.startswith("/"):
        key = Path(key).read_text().strip()
    octoprint = FakeOctoPrint(api_key=key, ports=ports, timeouts=timeouts)
    octoprint._tcp_port = int(os.environ.get("TCP_PORT", "0"))
    with octoprint:
        say(url=octoprint.url)
        threading.Thread(target=tell, args=(octoprint,), daemon=True).start()
        for line in sys.stdin:
            match line.split():
                case ["connect"]:
                    octoprint.person_connects()
                case ["disconnect"]:
                    octoprint.person_disconnects()
                case ["baudrate", rate]:
                    octoprint.baud_preference = int(rate)
                case ["wait_for_start", switch]:
                    octoprint.wait_for_start = switch == "on"


if __name__ == "__main__":
    main()
