"""The table of docs/resets.md: what a recovery costs a board, with this service and with two other ways.

By hand, some ten minutes:  PYTHONPATH=tests .venv/bin/python -m vm.measure [ROUNDS]

Each way has an OctoPrint with its real timeouts, and for mega2560 and ch340 these recoveries:

* plug: the cable is put in, the firmware runs from USB power: seconds from the plug to Operational;
* power: the node is there for 20 s without a firmware, then the power comes: seconds from power-on.
"""

import statistics
import sys

from vm import bench as benches
from vm.boards import BOOT, CH340, MEGA2560
from vm.machine import Machine, built

DARK = 20.0  # seconds
WAYS = ("ours", "probe", "portretry")


class Rival(benches.Bench):
    """A bench with another client in the service's place."""

    def start_client(self, url):
        node = self.kind.chip.node
        self.service = self.python(f"{benches.SOURCE}/rival.py", *self._options, url, benches.KEY, node)
        self.service.expect("ready", benches.PATIENCE)

    def wait_state(self, state):
        """It says nothing."""


def plugged(bench):
    """Plug it in; returns the seconds to Operational."""
    bench.board_of()
    began = bench.plug()
    return bench.operational(after=began) - began


def powered(bench):
    """Have the node there in the dark, then power; returns the seconds to Operational."""
    board = bench.board_of(powered=False)
    bench.plug()
    board.wait(lambda _: False, DARK)
    board.power_on()
    began = board.times("power on")[0]
    return bench.operational(after=began) - began


def row(bench, way, recovery, rounds):
    """Measure and print one line of the table."""
    seconds, counts, connects = [], [], []
    for _ in range(rounds):
        before = bench.connects()
        seconds.append(recovery(bench))
        counts.append(bench.board.counts)
        connects.append(bench.connects() - before)
        bench.clear()
    middle = [
        f"{statistics.median(values):g}"
        for values in (
            [c.resets for c in counts],
            [c.rises for c in counts],
            [c.opens for c in counts],
            connects,
        )
    ]
    cells = (bench.kind.name, recovery.__name__, way, *middle, f"{statistics.median(seconds):.1f}")
    sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    sys.stdout.write(f"boot: {BOOT:g} s, {rounds} rounds, medians\n")
    sys.stdout.write("| board | recovery | way | resets | DTR rises | opens | connects | seconds |\n")
    for way in WAYS:
        with Machine(built()) as machine:
            benches.copy_package(machine)
            for kind in (MEGA2560, CH340):
                options = () if way == "ours" else (way,)
                make = benches.Bench if way == "ours" else Rival
                with make(machine, kind, *options, patient=True) as bench:
                    for recovery in (plugged, powered):
                        row(bench, way, recovery, rounds)


if __name__ == "__main__":
    main()
