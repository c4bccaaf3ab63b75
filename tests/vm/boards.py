"""Printers' boards: a USB chip, a reset circuit, the package's fake Marlin, and an account of it all.

Knows what a board feels of the host: plug, opens, DTR, rates, bytes.  Must not know who does it.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass

from portretry_udev.fake_marlin import Marlin, Power
from vm.usbredir import Chip, Device

BOOT = 2.0  # seconds from reset to banner: an AVR's bootloader and Marlin's start


@dataclass(frozen=True)
class Kind:
    """A kind of board.  ``resets_on_dtr``: a capacitor from DTR to the reset pin, as on an Arduino."""

    name: str
    chip: Chip
    resets_on_dtr: bool

    def __str__(self):
        return self.name


MEGA2560 = Kind(
    "mega2560",
    Chip(0x2341, 0x0042, 0x0001, ("Arduino (www.arduino.cc)", None, "95530343434351A012B1")),
    resets_on_dtr=True,
)
CH340 = Kind(
    "ch340",
    Chip(0x1A86, 0x7523, 0x0264, (None, "USB Serial", None), acm=False),
    resets_on_dtr=True,
)
SKR = Kind(
    "skr",
    Chip(0x1D50, 0x6029, 0x0200, ("marlinfw.org", "Marlin USB Device", "8E16C9A5F5D1")),
    resets_on_dtr=False,
)
PRUSA = Kind(  # a Buddy board: at 57600 baud it turns Marlin off
    "prusa",
    Chip(
        0x2C99, 0x000C, 0x0100, ("Prusa Research (prusa3d.com)", "Original Prusa MINI", "CZPX1234X017XC56789")
    ),
    resets_on_dtr=False,
)


@dataclass(frozen=True)
class Counts:
    """What has happened to a board."""

    opens: int
    """Opens of the closed port: one more, while it is open, cannot be felt."""
    closes: int
    rises: int
    """Of DTR."""
    drops: int
    resets: int
    """By DTR; those that a firmware without power did not feel are not counted."""
    bytes_in: int
    sd_position: int

    def __sub__(self, earlier):
        return Counts(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))


class Board:
    """A board that `vm.machine.Machine.plug` can plug in, from its making to `close()`.

    Args:
        kind: which one.
        path: the socket for its USB side.
        boot_delay: seconds from power or reset to the banner.
        powered: the firmware has been running for long; else it has no power, though the chip has.

    Attributes:
        log: (time.monotonic(), what, detail) of all that happened.
        received: all bytes from the host.
        commands: what the firmware has carried out, by its first word.
        device: its USB side.
    """

    def __init__(self, kind, path, *, boot_delay=BOOT, powered=True):
        self.kind, self.path = kind, path
        self.log = []
        self.received = bytearray()
        self._marlin = Marlin(powered=powered, boot_delay=boot_delay)
        self._happened = Counter()
        self._dtr = False
        self._ends = False
        self.lock = threading.RLock()  # of the whole board, its USB side too
        self._changed = threading.Condition(self.lock)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.device = Device(kind.chip, path, self)

    def close(self):
        """End it; the plug must have been pulled."""
        self.device.close()
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def commands(self):
        with self._changed:
            return Counter(self._marlin.commands)

    @property
    def counts(self):
        with self._changed:
            seen = self._happened
            words = ("opens", "closes", "rises", "drops", "resets")
            position = self._marlin.sd.position(time.monotonic())
            return Counts(*(seen[word] for word in words), len(self.received), position)

    def times(self, what):
        """When (host's monotonic clock) this has happened."""
        with self._changed:
            return [when for when, word, _ in self.log if word == what]

    def details(self, what):
        """The details of all that has happened of this sort."""
        with self._changed:
            return [detail for _, word, detail in self.log if word == what]

    def story(self):
        """The log as text, for a failed test."""
        with self._changed:
            start = self.log[0][0] if self.log else 0.0
            return "\n".join(f"{t - start:8.3f} {what} {detail or ''}" for t, what, detail in self.log)

    # -- what a test does to it ------------------------------------------------------------------------
    def power_on(self):
        with self._changed:
            self._note("power on")
            self._marlin.power_on(time.monotonic())

    def power_off(self):
        with self._changed:
            self._note("power off")
            self._marlin.power_off()

    def chatter(self, period):
        """Temperatures every so many seconds, unasked."""
        with self._changed:
            self._marlin._autoreport = period
            self._changed.notify_all()

    def say(self, text):
        """The firmware speaks by itself."""
        with self._changed:
            self._say(text)

    def start_sd_print(self):
        with self._changed:
            self._say(self._marlin.start_sd_print(time.monotonic()))

    def wait(self, condition, timeout):
        """Wait until ``condition(board)``; returns whether it came true."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout)

    # -- what the USB side tells -----------------------------------------------------------------------
    def attached(self):
        self._note("plugged")

    def detached(self):
        with self._changed:
            self._dtr = False
            self._note("unplugged")

    def opened(self):
        self._note("opens")

    def closed(self):
        self._note("closes")

    def line(self, dtr):
        with self._changed:
            if dtr == self._dtr:
                return
            self._dtr = dtr
            self._note("rises" if dtr else "drops")
            if dtr and self.kind.resets_on_dtr and self._marlin.reset(time.monotonic()):
                self._note("resets")

    def rate(self, baud):
        self._note("rate", baud)

    def heard(self, data):
        with self._changed:
            self.received += data
            self._note("heard", data)
            self._say(self._marlin.hear(data, time.monotonic()))

    # -- inside ----------------------------------------------------------------------------------------
    def _note(self, what, detail=None):
        with self._changed:
            self._happened[what] += 1
            self.log.append((time.monotonic(), what, detail))
            self._changed.notify_all()

    def _say(self, data):
        if data:
            self._note("said", data)
            self.device.say(data)

    def _run(self):
        """The firmware's own life: it boots, and reports unasked."""
        with self._changed:
            while not self._ends:
                booting = self._marlin.power is Power.BOOTING
                said = self._marlin.tick(time.monotonic())
                if booting and self._marlin.power is Power.READY:
                    self._note("booted")
                self._say(said)
                due = self._marlin.deadline()
                self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
