"""Other ways to bring a printer back, for comparison: what scripts and the plugin PortRetry do.

    rival.py PATTERN URL KEY NODE

`probe`: open the port, ask the firmware until it answers, close it, have OctoPrint connect.
`portretry`: every 5 s, if OctoPrint is offline and the port can be opened, have OctoPrint connect, whatever
the firmware says.
"""

import contextlib
import sys
import time

import requests
import serial

INTERVAL = 5.0  # seconds, PortRetry's default
AGAIN = 0.2  # seconds between looks of the script, which has no udev to wait for
ASK = 1.0  # seconds between two M115


def offline(session, url):
    return session.get(f"{url}/api/job", timeout=30).json()["state"].startswith("Offline")


def connect(session, url, node):
    body = {"command": "connect", "port": node, "baudrate": 115200}
    session.post(f"{url}/api/connection", json=body, timeout=30).raise_for_status()


def probe(session, url, node):
    """Once: whether the firmware has answered, and OctoPrint was told."""
    with serial.Serial(node, 115200, timeout=ASK) as port:
        heard = b""
        while b"ok" not in heard:
            port.write(b"M115\n")
            heard += port.read_until(b"ok")
    connect(session, url, node)


def portretry(session, url, node):
    """Once: the port could be opened, so OctoPrint is told; PortRetry closes it only afterwards."""
    with serial.Serial(node, 115200):
        connect(session, url, node)


def main():
    pattern, url, key, node = sys.argv[1:]
    once, period = {"probe": (probe, AGAIN), "portretry": (portretry, INTERVAL)}[pattern]
    with requests.Session() as session:
        session.headers["X-Api-Key"] = key
        print("ready", flush=True)
        while True:
            with contextlib.suppress(OSError):  # no node, or gone meanwhile: looked at again, as they do
                if offline(session, url):
                    once(session, url, node)
            time.sleep(period)


main()
