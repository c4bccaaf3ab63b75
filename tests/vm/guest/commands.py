"""The program's commands, without the start of a Python for each, which takes an emulated machine seconds.

    commands.py MODULE...

Knows nothing but that: it loads the program and these modules of it once.  Each line on stdin is a JSON list
of a command's words; it runs in a process of its own, and what it wrote is a line of JSON, `stdout`.
"""

import importlib
import json
import os
import sys
import tempfile

from portretry_udev.cli import main as portretry


def run(words):
    """Run a command to its end; returns what it wrote to stdout."""
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), sys.stdout.fileno())
            portretry(words, "portretry-udev")  # exits
        os.waitpid(child, 0)
        out.seek(0)
        return {"stdout": out.read().decode()}


def main():
    for name in sys.argv[1:]:
        importlib.import_module(f"portretry_udev.{name}")
    print("ready", flush=True)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


main()
