"""An OctoPrint and the service in one container of the guest, and what both say.

Knows `guest/together.py`.  Must not know what makes the container: that is a shell line.
"""

import json
import shlex
import time

from vm.bench import KEY, SOURCE

PERIOD = 0.1  # seconds between two looks at what was said


class Together:
    """Both, from now on.

    Args:
        machine: where.
        line: begins a shell line that goes on with the command to run in the container.
        printer: the printer's line of TOML; None if the line is all, and starts an old container again.

    Attributes:
        process: of that shell; it says what both say.
    """

    def __init__(self, machine, line, printer):
        words = ["python3", "-u", f"{SOURCE}/together.py", KEY, printer]
        command = "" if printer is None else shlex.join(words)
        self.process = machine.spawn("bash", "-c", f"{line} {command}", PYTHONPATH=SOURCE)
        self._seen = 0

    def status(self):
        """What the service has told of the printer last: a dict with state, events and why."""
        said = self.process.said('"status": {')
        return json.loads(said[-1])["status"] if said else {"state": "", "events": "", "why": ""}

    def mark(self):
        """Only what comes after this counts for `connected`."""
        self._seen = len(self.process.said('"Operational"'))

    def connected(self, patience):
        """Whether OctoPrint becomes Operational within so many seconds, and the service sees it."""
        return self._wait(
            lambda: (
                len(self.process.said('"Operational"')) > self._seen and self.status()["state"] == "connected"
            ),
            patience,
        )

    def says(self, words, patience):
        """Whether the service tells, within so many seconds, why, with these words."""
        return self._wait(lambda: words in self.status()["why"], patience)

    def _wait(self, condition, patience):
        deadline = time.monotonic() + patience
        while not (met := condition()) and self.process.status is None and time.monotonic() < deadline:
            time.sleep(PERIOD)
        return met
