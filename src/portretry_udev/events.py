"""What the rules hear and what they answer: events and effects, as data, and the words both are made of.

Nothing here decides anything or does anything; `rules` decides, `watcher` does.  Section numbers are those of
the design.
"""

import enum
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from portretry_udev.firmware import Sign


class Octo(enum.Enum):
    """What OctoPrint is doing, as far as it matters here."""

    OFFLINE = "offline"  # plainly: never connected, disconnected on purpose, or a failed attempt
    LOST = "lost"  # offline after an error that is no fault of the firmware: unplugged, silent, crashed
    FAULT = "fault"  # offline after an error of the firmware, or after one that is not understood
    CONNECTING = "connecting"
    IDLE = "idle"
    BUSY = "busy"  # connected and printing, pausing, transferring, ...
    UNKNOWN = "unknown"  # words not understood, or words that contradict each other


OFFLINE = frozenset({Octo.OFFLINE, Octo.LOST, Octo.FAULT})
CONNECTED = frozenset({Octo.IDLE, Octo.BUSY})


class Hold(enum.Enum):
    """Why nothing is to be done until the printer returns (promises 3 and 4)."""

    NONE = "none"
    DELIBERATE = "deliberate"  # a person or a plugin disconnected it
    FAULT = "fault"
    WAIT = "wait"  # start = "wait": the service has just begun


class Ill(enum.Enum):
    """Why OctoPrint did not answer a question."""

    DOWN = "down"  # refused, reset, starting: it is certainly not serving
    SLOW = "slow"  # no answer in time, or no way to the host: it may well be running
    KEY = "key"  # it does not take the API key
    DECLINED = "declined"  # it understood and refused
    ODD = "odd"  # it answered something that is not OctoPrint's


class Refusal(enum.Enum):
    """Why the port could not be opened."""

    MISSING = "missing"  # ENOENT, ENODEV
    DENIED = "denied"  # EACCES, EPERM
    BUSY = "busy"  # EBUSY, or another process holds it
    STALE = "stale"  # ENXIO: the node is there, its device is another one now
    BROKEN = "broken"  # EIO
    UNKNOWN = "unknown"  # any other errno, or holders that could not be counted: hands off


@dataclass(frozen=True, slots=True)
class Policy:
    """What a person configured for one printer.  Times in seconds, rates in baud."""

    interval: float = 5.0  # PortRetry's default
    reconnect: Literal["on-return", "always"] = "on-return"
    start: Literal["connect", "wait"] = "connect"
    probe: Literal["firmware", "open", "none"] = "firmware"
    avoid_reset: bool = True
    baudrate: int | None = None
    machine: str | None = None  # what the firmware must say that it runs on; None: anything
    uuid: str | None = None  # likewise
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One appearance of the printer's device node."""

    path: str
    identity: Hashable  # unequal: the node was made anew in between
    modem: bool = True  # False: opening it cannot raise DTR (a pty)
    shun: frozenset[int] = frozenset()  # baudrates that must never be set on it


# -- events ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Started:
    """The service begins; all this is what it remembers from its last run."""

    hold: Hold = Hold.NONE
    identity: Hashable = None  # of the node for which the hold was made; None: not comparable
    paused_until: float = -math.inf  # as ``Pause.until``


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """The device was looked for.  ``node`` None: it is not there, and ``why``."""

    node: Node | None
    why: str = ""
    configured: bool = True  # False: nobody has named a port


@dataclass(frozen=True, slots=True)
class Told:
    """OctoPrint answered a ``Look``."""

    octo: Octo
    asked_at: float  # when the question was asked
    words: str = ""  # what it said, for people
    offered: str | None = None  # OctoPrint's own name for our node; None: not in its list
    baudrate: int | None = None  # OctoPrint's preference
    restarted: bool = False  # it has probably been restarted since it last answered
    elsewhere: str | None = None  # it is connected to this port, which is not ours
    opening: bool = False  # in these words it also stays for ever after a failed open (facts, section 3)
    aside: str | None = None  # why to stand back though it is offline, for people; None: there is no reason


@dataclass(frozen=True, slots=True)
class Untold:
    """OctoPrint did not answer a ``Look``."""

    ill: Ill
    why: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """OctoPrint took our connect command (204): not a success yet."""


@dataclass(frozen=True, slots=True)
class Declined:
    """Our connect command did not get through, or was refused."""

    ill: Ill
    why: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The port is open and read from now on.  ``dtr_stays``: HUPCL is cleared, later opens make no edge."""

    dtr_stays: bool


@dataclass(frozen=True, slots=True)
class OpenFailed:
    """The port was not opened."""

    refusal: Refusal
    why: str


@dataclass(frozen=True, slots=True)
class Heard:
    """The printer said something."""

    sign: Sign


@dataclass(frozen=True, slots=True)
class Identified:
    """The firmware has answered M115: who it says it is; None for what it did not say."""

    machine: str | None
    uuid: str | None


@dataclass(frozen=True, slots=True)
class HungUp:
    """The open port died; it has been closed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Another process opened the node; our end has been closed."""


@dataclass(frozen=True, slots=True)
class Freed:
    """Another process closed the node."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """The guard was tried; ``dtr_stays``: DTR will stay up when OctoPrint closes the port."""

    dtr_stays: bool


@dataclass(frozen=True, slots=True)
class Unwedged:
    """OctoPrint took our disconnect command (204)."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A ``Count`` of those who hold the port that OctoPrint is opening.

    ``held`` False: nobody does, and OctoPrint's own process could be looked into; None: it cannot be told.
    """

    held: bool | None


@dataclass(frozen=True, slots=True)
class PushUp:
    """OctoPrint's push socket tells of its changes from now on, or does not any more."""

    up: bool


@dataclass(frozen=True, slots=True)
class Disconnecting:
    """OctoPrint says by push that it was told to disconnect: by a person, a plugin, or us."""


@dataclass(frozen=True, slots=True)
class Erred:
    """OctoPrint says by push that its connection ends in an error.

    ``fault``: of the firmware, or of a kind that is not understood; else a mere loss.
    """

    fault: bool
    words: str


@dataclass(frozen=True, slots=True)
class News:
    """OctoPrint says by push that its connection has changed: what it answered before is old."""


@dataclass(frozen=True, slots=True)
class Hint:
    """Something happened nearby that makes a look worth while (a changed key or setting, for one)."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A person says: forget the hold and the back-off."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A person says: let go of the port, until the given time (seconds; infinity: until ``Resume``)."""

    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Resume:
    """A person says: go on."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has come."""


Event = (
    Started
    | NodeSeen
    | Told
    | Untold
    | Accepted
    | Declined
    | Opened
    | OpenFailed
    | Heard
    | Identified
    | HungUp
    | Taken
    | Freed
    | Guarded
    | Unwedged
    | Counted
    | PushUp
    | Disconnecting
    | Erred
    | News
    | Hint
    | Retry
    | Pause
    | Resume
    | Tick
)


# -- effects -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Look:
    """Ask OctoPrint what it is doing -> Told or Untold."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open the port unless anybody holds it -> Opened or OpenFailed.  ``clear_hupcl``: keep DTR up later."""

    path: str
    baudrate: int
    clear_hupcl: bool


@dataclass(frozen=True, slots=True)
class Rebaud:
    """Change the open port's baudrate (makes no edge)."""

    baudrate: int


@dataclass(frozen=True, slots=True)
class Poke:
    r"""Send ``\nM115\n`` if there is room for it."""


@dataclass(frozen=True, slots=True)
class Mute:
    """Read not a byte any more, keep the port open: OctoPrint takes over."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close our end of the port.  ``drop_dtr``: set HUPCL again, so that the next open makes an edge."""

    drop_dtr: bool = False


@dataclass(frozen=True, slots=True)
class Connect:
    """Tell OctoPrint to connect -> Accepted or Declined.  ``baudrate`` None: OctoPrint's own choice."""

    port: str
    baudrate: int | None


@dataclass(frozen=True, slots=True)
class Unwedge:
    """Tell OctoPrint to disconnect: it is stuck in an open that failed -> Unwedged or Declined."""


@dataclass(frozen=True, slots=True)
class Count:
    """See who holds the port that OctoPrint says it is opening -> Counted."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Clear HUPCL through a second, short open (an open port makes no edge) -> Guarded."""

    path: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep this hold over a restart of the service."""

    hold: Hold
    identity: Hashable


Effect = Look | Open | Rebaud | Poke | Mute | Close | Connect | Unwedge | Count | Guard | Remember
