"""Waits until the service has its printer connected, and tells what it says meanwhile.

Knows that a service takes a moment to come, and is asked again until it does.  Must not know the terminal.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from portretry_udev import control
from portretry_udev.control import ControlError

CONNECTED = "connected"
STARTING = "starting"  # no service answers yet, or not yet for this printer
_ASK_AGAIN = 0.3  # seconds between tries to reach the service
_TICK = 0.25  # seconds between two signs that time passes


@dataclass(frozen=True)
class Seen:
    """What the service says of the printer.

    Attributes:
        state: a state of `status`, or `STARTING`.
        why: one sentence for people.
    """

    state: str
    why: str


Follow = Callable[[Path | None, str | None], Iterator[dict[str, object]]]


def watch(
    path: Path | None, name: str, seconds: float, follow: "type[control.follow] | Callable" = control.follow
) -> Iterator[Seen | None]:
    """What is said of a printer from now on, as it changes; None: nothing new, but time has passed.

    Ends when the printer is connected, or the time is over.

    Args:
        path: of the service's socket; None: where it is by default.
        name: the printer's.
        seconds: how long to wait.
        follow: who asks the service.
    """
