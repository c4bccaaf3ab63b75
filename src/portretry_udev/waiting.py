"""Waits until the service has its printer connected, and tells what it says meanwhile.

Knows that a service takes a moment to come, and is asked again until it does.  Must not know the terminal.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


Follow = Callable[[Path | None, str | None], Generator[dict[str, Any], None, None]]


def watch(
    path: Path | None, name: str, seconds: float, follow: Follow = control.follow
) -> Iterator[Seen | None]:
    """What is said of a printer from now on, as it changes; None: nothing new, but time has passed.

    Ends when the printer is connected, or the time is over.

    Args:
        path: of the service's socket; None: where it is by default.
        name: the printer's.
        seconds: how long to wait.
        follow: who asks the service.
    """
    news: queue.SimpleQueue[Seen] = queue.SimpleQueue()
    over = threading.Event()
    end = time.monotonic() + seconds
    # A thread, since the next change may be hours away; it ends with the process at the latest.
    threading.Thread(target=_listen, args=(path, name, follow, news, over), daemon=True).start()
    try:
        last = None
        while (left := end - time.monotonic()) > 0:
            try:
                seen = news.get(timeout=min(_TICK, left))
            except queue.Empty:
                yield None
                continue
            if seen != last:
                yield seen
                last = seen
            if seen.state == CONNECTED:
                return
    finally:
        over.set()


def _listen(
    path: Path | None, name: str, follow: Follow, news: "queue.SimpleQueue[Seen]", over: threading.Event
) -> None:
    """Listen to the service, and to the next one when it ends, as it does when it is restarted."""
    while not over.is_set():
        try:
            with closing(follow(path, name)) as answers:
                for answer in answers:
                    if over.is_set():
                        return
                    found = answer["printers"][name]
                    news.put(Seen(str(found["state"]), str(found["why"])))
        except ControlError as e:
            news.put(Seen(STARTING, str(e)))
        over.wait(_ASK_AGAIN)
