"""The service is waited for until its printer is connected, also while it is only just starting."""

import threading
import time

from portretry_udev import waiting
from portretry_udev.control import ControlError
from portretry_udev.waiting import CONNECTED, STARTING, Seen

SOON = 5.0  # seconds


class Service:
    """Says one thing after the other; an error ends one connection, `hangs` is a change that never comes."""

    def __init__(self, *says):
        self.says = list(says)
        self.asked = []
        self.over = threading.Event()

    def follow(self, path, name):
        self.asked.append((path, name))
        while self.says:
            said = self.says.pop(0)
            if isinstance(said, ControlError):
                raise said
            yield {"printers": {name: {"state": said, "why": f"it is {said}"}}}
        self.over.wait()


def watched(service, seconds=SOON):
    try:
        return [seen for seen in waiting.watch(None, "mk3", seconds, service.follow) if seen is not None]
    finally:
        service.over.set()


def seen(state):
    return Seen(state, f"it is {state}")


def test_it_ends_when_the_printer_is_connected():
    """Each change is told, and nothing after the end."""
    service = Service("absent", "listening", CONNECTED, "absent")
    assert watched(service) == [seen("absent"), seen("listening"), seen(CONNECTED)]


def test_a_service_that_is_just_starting_is_asked_again():
    """Not there yet, not yet with that printer, gone for a moment: none of it is the end."""
    troubles = [
        ControlError("no service answers", 69),
        ControlError("no printer is named mk3", 64, "printer"),
    ]
    service = Service(*troubles, "listening", ControlError("the service has ended", 69), CONNECTED)
    assert watched(service) == [
        Seen(STARTING, "no service answers"),
        Seen(STARTING, "no printer is named mk3"),
        seen("listening"),
        Seen(STARTING, "the service has ended"),
        seen(CONNECTED),
    ]
    assert service.asked == [(None, "mk3")] * 4


def test_it_ends_when_the_time_is_over():
    """With signs of life meanwhile, and without the printer."""
    service = Service("absent")
    began = time.monotonic()
    found = list(waiting.watch(None, "mk3", 0.7, service.follow))
    service.over.set()
    assert 0.6 < time.monotonic() - began < 0.7 + SOON
    assert found[0] == seen("absent")
    assert found[1:]
    assert set(found[1:]) == {None}


def test_the_same_is_not_told_twice():
    """A service that only counts seconds is no news."""
    assert watched(Service("absent", "absent", CONNECTED)) == [seen("absent"), seen(CONNECTED)]
