"""What systemd is told, heard at a real datagram socket as systemd has one."""

import os
import re
import time

import pytest

from bench import logged
from portretry_udev.notify import Notifier
from service_manager import Systemd


@pytest.fixture(params=["a path", "an abstract name"])
def systemd(request, tmp_path):
    """What systemd has: its end of the socket."""
    with Systemd(str(tmp_path / "notify") if request.param == "a path" else None) as ours:
        yield ours


def test_each_word_arrives_as_sd_notify_has_it(systemd):
    """It hears the words of sd_notify(3), one message each."""
    notifier = Notifier(systemd.address, 120.0)
    notifier.ready()
    notifier.status("2 printers: 1 absent, 1 connected")
    notifier.alive()
    notifier.stopping()
    assert systemd.heard_all() == [
        "READY=1",
        "STATUS=2 printers: 1 absent, 1 connected",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_a_reload_tells_when_it_began(systemd):
    """Type=notify-reload wants the time of the monotonic clock, in microseconds."""
    before = time.monotonic_ns() // 1000
    Notifier(systemd.address).reloading()
    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", systemd.hear())
    assert before <= int(match[1]) <= time.monotonic_ns() // 1000


def test_the_same_status_is_said_once(systemd):
    """Only a change is worth a message; what was said before a change may be said again after it."""
    notifier = Notifier(systemd.address)
    for text in ("one", "one", "two", "two", "one"):
        notifier.status(text)
    assert systemd.heard_all() == ["STATUS=one", "STATUS=two", "STATUS=one"]


def test_the_variables_are_taken_and_not_left_to_children(systemd):
    """A process that the service starts finds nothing by which it could speak for it."""
    environ = {
        "NOTIFY_SOCKET": systemd.address,
        "WATCHDOG_USEC": "120000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/root",
    }
    notifier = Notifier.from_environment(environ)
    assert environ == {"HOME": "/root"}
    assert (notifier.is_there, notifier.watchdog) == (True, 120.0)
    notifier.ready()
    assert systemd.hear() == "READY=1"


@pytest.mark.parametrize(
    ("usec", "pid", "within"),
    [
        ("10000000", None, 10.0),  # a service manager that names no process
        ("10000000", str(os.getppid()), None),  # it is our parent's
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_whose_watchdog_it_is(systemd, usec, pid, within):
    """It counts if it is a number, and meant for this process (sd_watchdog_enabled(3))."""
    environ = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": usec}
    if pid is not None:
        environ["WATCHDOG_PID"] = pid
    assert Notifier.from_environment(environ).watchdog == within


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative"])
def test_without_systemd_nothing_is_said(address):
    """Nobody is there: no socket, no watchdog, no error."""
    environ = {"WATCHDOG_USEC": "10000000"} if address is None else {"NOTIFY_SOCKET": address}
    notifier = Notifier.from_environment(environ)
    assert (notifier.is_there, notifier.watchdog, environ) == (False, None, {})
    notifier.ready()
    notifier.status("unheard")


def test_a_deaf_systemd_is_told_of_once_and_ends_nothing(tmp_path):
    """Its socket has gone: one warning, whatever else is said; and a status counts as unsaid."""
    path = str(tmp_path / "notify")
    with logged() as log:
        notifier = Notifier(path)
        notifier.ready()
        notifier.status("one")
        assert log.count("systemd does not hear us (READY=1): No such file or directory") == 1
        assert log.count("does not hear us") == 1
    with Systemd(path) as systemd:
        notifier.status("one")
        assert systemd.hear() == "STATUS=one"
