"""Seconds from "the firmware can answer" to OctoPrint's "Operational": ours, an ideal client's, and polling.

A real OctoPrint and the simulated printer, whose port stays while it is switched off and on (the case for
which PortRetry was made).  Three clients, one after the other in the same run, so that only ratios count:

* ours: ``portretry-udev watch`` with its default interval;
* ideal: knows the truth, and tells OctoPrint to connect at that very instant;
* polling: as PortRetry does it, opens the port every 5 s and, if that works, tells OctoPrint to connect.

Each with a banner at boot, and with a firmware that merely begins to answer.  By hand, and in CI as a report:

    make benchmark            python benchmarks/recovery.py [--rounds N] [--octoprint VERSION]
"""

import argparse
import math
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import serial

from portretry_udev.real_octoprint import RealOctoPrint
from portretry_udev.simulator import BANNER, Printer

BOOT = 1.0  # seconds
POLLING = 5.0  # seconds, PortRetry's default
PATIENCE = 90.0  # seconds: PortRetry needs up to 45 when it hits OctoPrint's 40 s timeout
OFFLINE = ("Offline", "Offline after error")

Client = Callable[[RealOctoPrint, Printer], AbstractContextManager[None]]


@contextmanager
def ours(octoprint: RealOctoPrint, printer: Printer) -> Iterator[None]:
    """Run the real command."""
    command = [sys.executable, "-m", "portretry_udev", "watch", "--octoprint", octoprint.url]
    command += ["--api-key-file", str(octoprint.key_file), "--port", str(printer.link)]
    command += ["--state-dir", str(octoprint.basedir / "state")]
    command += ["--control", str(octoprint.basedir / "control.sock")]
    watcher = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        watcher.terminate()
        watcher.wait()


@contextmanager
def ideal(octoprint: RealOctoPrint, printer: Printer) -> Iterator[None]:
    """Tell OctoPrint to connect the moment the firmware can answer."""
    with _thread(lambda ended: _ideal(octoprint, printer, ended)):
        yield


def _ideal(octoprint: RealOctoPrint, printer: Printer, ended: threading.Event) -> None:
    while not ended.is_set():
        dark = printer.wait_for(lambda s: s.state != "ready", 0.2)
        if dark and printer.wait_for(lambda s: s.state == "ready", 0.5 + PATIENCE) and not ended.is_set():
            octoprint.connect(str(printer.link), 115200)


@contextmanager
def polling(octoprint: RealOctoPrint, printer: Printer) -> Iterator[None]:
    """Open the port on an interval and connect if that works, firmware or not."""
    with _thread(lambda ended: _polling(octoprint, printer, ended)):
        yield


def _polling(octoprint: RealOctoPrint, printer: Printer, ended: threading.Event) -> None:
    while not ended.wait(POLLING):
        if octoprint.state()[1] in OFFLINE:
            port = serial.Serial(str(printer.link), 115200)
            octoprint.connect(str(printer.link), 115200)
            port.close()


@contextmanager
def _thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def until(condition: Callable[[], bool]) -> float:
    """Wait for it; the time at which it was seen."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not recover")
        time.sleep(0.01)
    return time.monotonic()


def one_round(octoprint: RealOctoPrint, printer: Printer, wait: float) -> float:
    """Switch the printer off, and some seconds later on; seconds until it is back, infinity for never."""
    printer.power_off()
    until(lambda: octoprint.state()[1] in OFFLINE)
    time.sleep(wait)
    printer.power_on()
    ready = until(lambda: printer.stats().state == "ready")
    try:
        return until(lambda: octoprint.state()[1] == "Operational") - ready
    except TimeoutError:
        octoprint.disconnect()  # a client that tries once, or that got OctoPrint stuck: on to the next round
        return math.inf


def measure(version: str, rounds: int, *, banner: bool, client: Client, seed: int) -> list[float]:
    """All rounds of one client."""
    phases = random.Random(seed)  # the same moments of power-on for each client
    with tempfile.TemporaryDirectory(prefix="portretry-udev-benchmark-") as name:
        link = Path(name) / "ttyBENCH0"
        with (
            Printer(link=link, boot_delay=BOOT, banner=BANNER if banner else None) as printer,
            RealOctoPrint(version, Path(name) / "octoprint", [str(link)], str(link)) as octoprint,
        ):
            octoprint.connect(str(link), 115200)
            until(lambda: octoprint.state()[1] == "Operational")
            with client(octoprint, printer):
                return [one_round(octoprint, printer, 2 + phases.random() * POLLING) for _ in range(rounds)]


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--octoprint", default="1.11.8")
    chosen = arguments.parse_args()
    print(f"OctoPrint {chosen.octoprint}, {chosen.rounds} rounds each; seconds from ready to Operational")
    print(f"{'':24}{'client':10}{'median':>8}{'min':>8}{'max':>8}{'x ideal':>9}{'- ideal':>9}")
    for banner, title in ((True, "a banner at boot"), (False, "merely begins to answer")):
        base = 0.0
        for client in (ideal, ours, polling):
            times = measure(chosen.octoprint, chosen.rounds, banner=banner, client=client, seed=1)
            if client is ours and math.inf in times:
                sys.exit("our watcher did not bring the printer back")
            median = statistics.median(times)
            base = base or median
            print(
                f"{title:24}{client.__name__:10}{median:8.2f}{min(times):8.2f}{max(times):8.2f}"
                f"{median / base:9.1f}{median - base:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
