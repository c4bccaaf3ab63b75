"""A program that ends with bytes which the board has not taken: the kernel's close then waits for them.

    leaver.py NODE

Knows nothing of the service.  Says `full` once no byte more goes in, and ends at the next line on stdin.
"""

import contextlib
import os
import sys
import tty

PAGE = bytes(range(0x80, 0xC0))  # nothing a firmware would take for a command


def main():
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(fd)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, PAGE)
    print("full", flush=True)
    sys.stdin.readline()


main()
