"""What avrdude does to a port: open, lock, reset the board by DTR, write; and what others do meanwhile.

    flasher.py NODE SECONDS WATCHED

Knows nothing of the service.  WATCHED is the node whose opens are counted; where NODE is another inode of the
same device, inotify tells nobody of this process.  The last line is JSON: what the others did meanwhile.
"""

import fcntl
import json
import os
import struct
import sys
import termios
import time
import tty
from pathlib import Path

from portretry_udev import inotify

PAGE = bytes(range(0x80, 0xC0))  # nothing a firmware would take for a command
PERIOD = 0.1  # seconds between pages


def toggle(fd):
    """DTR and RTS down and up: the board's bootloader starts."""
    lines = struct.pack("I", termios.TIOCM_DTR | termios.TIOCM_RTS)
    fcntl.ioctl(fd, termios.TIOCMBIC, lines)
    time.sleep(0.05)  # avrdude's arduino_open waits as long
    fcntl.ioctl(fd, termios.TIOCMBIS, lines)


def others(number):
    """The processes that have the device open, besides this one."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                held = {fd.stat().st_rdev for fd in (process / "fd").iterdir() if fd.exists()}
            except OSError:
                continue  # it has ended
            if number in held:
                found.append(int(process.name))
    return found


def main():
    node, seconds, watched = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    notes = inotify.Inotify()
    notes.add(watched, inotify.OPEN | inotify.CLOSE_WRITE | inotify.CLOSE_NOWRITE)
    began = time.monotonic()
    fd = os.open(node, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    tty.setraw(fd)
    number = os.fstat(fd).st_rdev
    while others(number) and time.monotonic() - began < seconds:
        pass
    alone = time.monotonic() - began  # so long the others took to make way
    toggle(fd)
    print("toggled", flush=True)
    written, together = 0, 0
    while time.monotonic() - began < seconds:
        written += os.write(fd, PAGE)
        together += len(others(number))
        time.sleep(PERIOD)
    masks = [note.mask for note in notes.read()]
    opens = sum(bool(mask & inotify.OPEN) for mask in masks)
    print(json.dumps({"written": written, "alone": alone, "together": together, "opens": opens}), flush=True)
    os.close(fd)


main()
