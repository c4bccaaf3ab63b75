"""An OctoPrint and the service beside it, as in a container that has both; the OctoPrint's states on stdout.

    together.py KEY LINE...

LINE: of TOML, in the printer's table.  Beside what `octoprint.py` prints there are the service's log, and a
line of JSON `{"status": ...}` whenever it says something new of the printer.
"""

import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

from octoprint import SHORT, say, tell
from portretry_udev import control
from portretry_udev.cli import main as portretry
from portretry_udev.fake_octoprint import FakeOctoPrint

NEWS = ("state", "events", "why")
PERIOD = 0.5  # seconds
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # <linux/sockios.h>, <linux/if.h>


def raise_loopback():
    """What an init does: a network of its own begins with it down.  Where it is up already, nobody need."""
    with socket.socket() as s, contextlib.suppress(PermissionError):
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def status(path):
    """What `portretry-udev status --json` says of the printer; None while nobody answers."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(str(path))
        client.sendall(json.dumps({"version": control.VERSION, "command": "status"}).encode() + b"\n")
        return json.loads(client.makefile().readline())["printers"]["printer"]
    return None


def fork(config):
    """The service as a process of its own, from what is loaded already; its number, and what has it begin.

    Forked before there are threads.
    """
    beginning, begins = os.pipe()
    pid = os.fork()
    if pid:
        return pid, lambda: os.write(begins, b"!")
    os.read(beginning, 1)
    os.dup2(1, 2)
    portretry(["watch", "--config", str(config), "-v"], "portretry-udev")
    return None  # it has exited


def main():
    key, *lines = sys.argv[1:]
    raise_loopback()
    folder = Path(tempfile.mkdtemp())
    path = folder / "control.sock"
    config = folder / "config.toml"
    service, go = fork(config)
    ports = ["/dev/ttyACM*", "/dev/ttyUSB*"]
    with FakeOctoPrint(api_key=key, ports=ports, timeouts=SHORT) as octoprint:
        threading.Thread(target=tell, args=(octoprint,), daemon=True).start()
        file = folder / "key"
        file.touch(0o600)
        file.write_text(key)
        top = f'state_dir = "{folder}"\ncontrol = "{path}"\n[printers.printer]\n'
        printer = [f'octoprint = "{octoprint.url}"', f'api_key_file = "{file}"', *lines]
        config.write_text(top + "\n".join(printer) + "\n")
        go()
        told = None
        while os.waitpid(service, os.WNOHANG) == (0, 0):
            said = status(path)
            news = said and {word: said.get(word) for word in NEWS}
            if news != told:
                told = news
                say(status=news)
            time.sleep(PERIOD)


main()
