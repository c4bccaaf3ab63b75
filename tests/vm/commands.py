"""The program's commands as root in the guest, without a start of Python for each.

Knows `guest/commands.py`.  Must not know what a command is for.
"""

import json

from vm.bench import PATIENCE, SOURCE

_LOADED = ("doctor", "doctor_facts", "doctor_patients", "doctor_screen")


class Commands:
    """Ready for them, until `close`.

    Args:
        machine: where; with the package in it.
        modules: of it to load besides, and so to compile, before others who may write nothing there run them.
    """

    def __init__(self, machine, *modules):
        words = (f"{SOURCE}/commands.py", *_LOADED, *modules)
        self._process = machine.spawn("python3", *words, PYTHONPATH=SOURCE)
        self._process.expect("ready", PATIENCE)

    def close(self):
        """No more of them."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def __call__(self, *words):
        """Run one; returns what it wrote to stdout."""
        self._process.write(json.dumps(words) + "\n")
        return json.loads(self._process.expect(r'^\{"stdout".*', PATIENCE)[0][0])["stdout"]

    def findings(self):
        """What `doctor` finds of the machine and of all printers, by their names."""
        told = json.loads(self("doctor", "--json"))
        return {each["id"]: each for each in sum(told["printers"].values(), told["machine"])}
