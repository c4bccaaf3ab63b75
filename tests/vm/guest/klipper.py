"""A printer on a pty, made and linked as Klipper does it (klippy/util.py, create_pty), until stdin ends.

    klipper.py LINK

Knows nothing of the service.
"""

import sys
from pathlib import Path

from portretry_udev.simulator import Printer

link = Path(sys.argv[1])
link.parent.mkdir(parents=True, exist_ok=True)
with Printer(link=link, boot_delay=0.5):
    link.chmod(0o660)  # of the pty behind it: pi's, and the group's (tty)
    print("made", flush=True)
    sys.stdin.read()
