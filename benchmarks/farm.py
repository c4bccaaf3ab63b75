"""What a farm costs: 1, 16 and 64 simulated printers, each with its own OctoPrint, in one service process.

Measured is the process ``portretry-udev watch`` alone.  Printers and OctoPrints run in other processes, eight
in each, so that the service finds the holders of a port where it finds them in a farm.

* listening: the printers are off, their ports are held open and poked; OctoPrint is asked every 5 s;
* connected: all are operational, and OctoPrint is asked every 5 s;
* one boots: seconds from its banner to the arrival of the connect command, the others being connected;
* all boot: the same for each of them, when the power returns to all at the same moment.

The minimal OctoPrint has no push socket: these are the figures of a service that only asks.  Printers and
OctoPrints share the machine's processors with the service, so that "all boot" is an upper bound.

    python benchmarks/farm.py [--printers 1 16 64] [--seconds 10] [--rounds 7]
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import pwd
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from portretry_udev.fake_octoprint import FakeOctoPrint, Timeouts
from portretry_udev.simulator import BANNER, Printer

KEY = "TheKeyOfTheFarm_0123456789012345678901"
GROUP = 8  # printers, or OctoPrints, in a process
BOOT = 1.0  # seconds
POLL = Timeouts(hello=3.0, connect=4.0, detect=0.5, poll=1.0, silence=3.0)  # seconds; a loss is noticed soon
CLOSE_EYE = 12.0  # seconds; for ten after a connect the rules look twice a second
PATIENCE = 60.0  # seconds
TICKS = os.sysconf("SC_CLK_TCK")


# -- printers and OctoPrints, in processes of their own ------------------------------------------------------
class BootingPrinter(Printer):
    """Remembers when it last said its banner: seconds of the monotonic clock, which processes share."""

    banner_at = 0.0

    def _emit(self, data: bytes) -> None:
        if BANNER in data:
            self.banner_at = time.monotonic()
        super()._emit(data)

    def is_held(self) -> bool:
        """Whether somebody has its port open."""
        return self.stats().holders > 0


class TimedOctoPrint(FakeOctoPrint):
    """Remembers when it was last told to connect."""

    told_at = 0.0

    def note(self, method: str, path: str) -> None:
        """Remember a request."""
        if (method, path) == ("POST", "/api/connection"):
            self.told_at = time.monotonic()
        super().note(method, path)

    def is_operational(self) -> bool:
        """Whether it has its printer."""
        return self.job_state == "Operational"


class Group:
    """Some objects in a process of their own: what is asked here is done there, to each or to one."""

    def __init__(self, makes: list[Callable[[], Any]], user: int | None) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(makes, user, theirs), daemon=True)
        self._process.start()

    def ask(self, name: str, only: int | None = None) -> list[Any]:
        """Read an attribute, or call a method without arguments; the answers in their order."""
        self._ours.send((name, only))
        return list(self._ours.recv())

    def end(self) -> None:
        """End the process, and what is in it."""
        self._ours.send(None)
        self._process.join()


def _serve(makes: list[Callable[[], Any]], user: int | None, orders: Connection) -> None:
    if user is not None:
        os.setuid(user)
    with contextlib.ExitStack() as stack:
        things = [stack.enter_context(make()) for make in makes]
        while (order := orders.recv()) is not None:
            name, only = order
            found = [getattr(thing, name) for thing in (things if only is None else [things[only]])]
            orders.send([each() if callable(each) else each for each in found])


class Groups:
    """As many groups as it takes."""

    def __init__(self, makes: list[Callable[[], Any]], user: int | None = None) -> None:
        self._groups = [Group(makes[first : first + GROUP], user) for first in range(0, len(makes), GROUP)]

    def ask(self, name: str) -> list[Any]:
        """Of all."""
        return [answer for group in self._groups for answer in group.ask(name)]

    def ask_one(self, name: str, number: int) -> Any:  # noqa: ANN401 - whatever that attribute is
        """Of one."""
        return self._groups[number // GROUP].ask(name, number % GROUP)[0]

    def end(self) -> None:
        """End all."""
        for group in self._groups:
            group.end()


# -- the service ---------------------------------------------------------------------------------------------
class Service:
    """The process that is measured."""

    def __init__(self, folder: Path, octoprints: list[str], links: list[Path]) -> None:
        key = folder / "farm.key"
        key.touch(0o600)
        key.write_text(KEY)
        config = folder / "config.toml"
        tables = [
            f'[printers.p{number}]\noctoprint = "{url}"\nport = "{link}"\n'
            f'api_key_file = "{key}"\npush = false\n'
            for number, (url, link) in enumerate(zip(octoprints, links, strict=True))
        ]
        top = f'state_dir = "{folder}/state"\ncontrol = "{folder}/control.sock"\n'
        config.write_text(top + "".join(tables))
        self.log = folder / "log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "portretry_udev", "watch", "--config", str(config)]
            self._process = subprocess.Popen(command, stderr=log)
        self._proc = Path(f"/proc/{self._process.pid}")

    def cpu(self, seconds: float) -> float:
        """Per cent of one processor, over that time."""
        began, before = time.monotonic(), self._ticks()
        time.sleep(seconds)
        return 100 * (self._ticks() - before) / TICKS / (time.monotonic() - began)

    def _ticks(self) -> int:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # utime and stime, proc_pid_stat(5)

    def status(self, name: str) -> int:
        """A number from /proc/PID/status: kB, or a count."""
        lines = (self._proc / "status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))

    def descriptors(self) -> int:
        """How many are open."""
        return len(list((self._proc / "fd").iterdir()))

    def must_run(self) -> None:
        """See that it has not ended."""
        if self._process.poll() is not None:
            sys.exit(f"the service has ended, status {self._process.returncode}:\n{self.log.read_text()}")

    def end(self) -> None:
        """End it as systemd does."""
        self._process.terminate()
        self._process.wait()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it, without taking much of the processors that are measured."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.1)


# -- measuring -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Figures:
    """Of one size of farm: per cent of a processor, MB, counts, milliseconds."""

    printers: int
    listening: float
    connected: float
    resident: float
    threads: int
    descriptors: int
    one_boots: list[float]
    all_boot: list[float]

    def __str__(self) -> str:
        return (
            f"{self.printers:8}{self.listening:12.1f}{self.connected:12.1f}{self.resident:9.0f}"
            f"{self.threads:9}{self.descriptors:9}{_times(self.one_boots):>16}{_times(self.all_boot):>16}"
        )


HEAD = (
    f"{'printers':>8}{'listening':>12}{'connected':>12}{'memory':>9}{'threads':>9}{'open':>9}"
    f"{'one boots':>16}{'all boot':>16}\n"
    f"{'':8}{'CPU %':>12}{'CPU %':>12}{'MB':>9}{'':9}{'files':>9}{'ms (95 %)':>16}{'ms (95 %)':>16}"
)


def _times(milliseconds: list[float]) -> str:
    high = sorted(milliseconds)[math.ceil(0.95 * len(milliseconds)) - 1]
    return f"{statistics.median(milliseconds):.0f} ({high:.0f})"


class Farm:
    """So many printers, their OctoPrints, and the service."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        links = [folder / f"ttyFARM{number}" for number in range(count)]
        self.printers = Groups(
            [lambda link=link: BootingPrinter(link=link, boot_delay=BOOT, powered=False) for link in links],
            self._nobody(folder),
        )
        self.octoprints = Groups(
            [
                lambda link=link: TimedOctoPrint(
                    api_key=KEY, ports=[str(link)], port_preference=str(link), timeouts=POLL
                )
                for link in links
            ]
        )
        self.service = Service(folder, self.octoprints.ask("url"), links)

    @staticmethod
    def _nobody(folder: Path) -> int | None:
        """Who the simulated printers are: their inotify instances must not count as the service's.

        A user has 128 of them (fs.inotify.max_user_instances), and each simulated printer takes one.
        """
        if os.geteuid() != 0:
            return None
        folder.chmod(0o777)  # their nodes go there
        return pwd.getpwnam("nobody").pw_uid

    def end(self) -> None:
        """The service first, so that it sees nothing of the rest's end."""
        self.service.end()
        self.octoprints.end()
        self.printers.end()

    def all_are(self, groups: Groups, what: str) -> None:
        """Wait until that is true of all of them."""

        def true() -> bool:
            self.service.must_run()
            return all(groups.ask(what))

        until(true, what)

    def all_boot(self) -> list[float]:
        """Milliseconds from each one's banner to its connect command."""
        self.printers.ask("power_on")
        self.all_are(self.octoprints, "is_operational")
        pairs = zip(self.printers.ask("banner_at"), self.octoprints.ask("told_at"), strict=True)
        return [1000 * (told - said) for said, told in pairs]

    def one_boots(self, number: int) -> float:
        """The same for one that is switched off and on."""
        self.printers.ask_one("power_off", number)
        until(lambda: not self.octoprints.ask_one("is_operational", number), "a loss")
        until(lambda: self.printers.ask_one("is_held", number), "listening")
        time.sleep(1.5)  # the first pokes, and whatever follows from the loss, are over
        self.printers.ask_one("power_on", number)
        until(lambda: self.octoprints.ask_one("is_operational", number), "operational")
        said, told = self.printers.ask_one("banner_at", number), self.octoprints.ask_one("told_at", number)
        return 1000 * (told - said)


@contextlib.contextmanager
def running(count: int) -> Iterator[Farm]:
    with tempfile.TemporaryDirectory(prefix="portretry-udev-farm-") as name:
        farm = Farm(Path(name), count)
        try:
            yield farm
        finally:
            farm.end()


def measure(count: int, seconds: float, rounds: int) -> Figures:
    """One size of farm."""
    with running(count) as farm:
        farm.all_are(farm.printers, "is_held")
        time.sleep(3)  # the start is over
        listening = farm.service.cpu(seconds)
        all_boot = farm.all_boot()
        time.sleep(CLOSE_EYE)
        connected = farm.service.cpu(seconds)
        return Figures(
            count,
            listening,
            connected,
            farm.service.status("VmRSS") / 1024,
            farm.service.status("Threads"),
            farm.service.descriptors(),
            [farm.one_boots(number % count) for number in range(rounds)],
            all_boot,
        )


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--printers", type=int, nargs="+", default=[1, 16, 64], metavar="N")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of each measurement of CPU")
    arguments.add_argument("--rounds", type=int, default=7, help="of one printer's boot")
    chosen = arguments.parse_args()
    processes = sum(entry.name.isdigit() for entry in Path("/proc").iterdir())
    print(f"{os.cpu_count()} processors, {processes} other processes; CPU: 100 % is one processor")
    print(HEAD)
    for count in chosen.printers:
        print(measure(count, chosen.seconds, chosen.rounds), flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")  # what is made there is a lambda here
    main()
