"""Tells systemd how the service is: the few words of sd_notify(3) that are of use here.

Knows the socket, its variables and the words.  Must not know what it means to be alive (``watchdog``), nor
anything of printers.  Where no systemd has started us, nothing is sent and nothing is different.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping

SOCKET = "NOTIFY_SOCKET"
WATCHDOG_USEC, WATCHDOG_PID = "WATCHDOG_USEC", "WATCHDOG_PID"

_PATIENCE = 1.0  # seconds that systemd may take to read; while it reloads itself it reads nothing
_log = logging.getLogger("portretry_udev.notify")


class Notifier:
    """The way to the service manager, from any thread.

    Args:
        address: of its datagram socket: a path, or ``@`` and a name in the abstract namespace; None: there is
            no service manager.
        watchdog: seconds within which it wants to hear `alive`, again and again; None: it does not.

    Attributes:
        watchdog: as given.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self.watchdog = watchdog if address else None
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._status: str | None = None
        self._complained = False

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """What systemd has told us of itself.

        It is taken out of ``environ``: a process that we start must not speak for us.
        """
        address = environ.pop(SOCKET, "")
        usec, pid = environ.pop(WATCHDOG_USEC, ""), environ.pop(WATCHDOG_PID, "")
        meant = pid in ("", str(os.getpid()))  # sd_watchdog_enabled(3): else it is our parent's
        watchdog = int(usec) / 1e6 if meant and usec.isdecimal() and int(usec) else None
        if not address.startswith(("/", "@")):  # vsock: is a virtual machine's, never a service's
            return cls()
        return cls(address, watchdog)

    @property
    def is_there(self) -> bool:
        """Whether anybody listens to what is said."""
        return bool(self._address)

    def ready(self) -> None:
        """Say that the service does its work: at its start, and after `reloading`."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends it."""
        # The time is what Type=notify-reload (systemd 253) wants; before, it is passed over.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the service ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Say that all is well, within `watchdog` seconds after the last time."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``; the same one is not sent twice."""
        if text != self._status and self._send(f"STATUS={text}"):
            self._status = text

    def _send(self, *words: str) -> bool:
        """Send one message; whether it has arrived."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_PATIENCE)
                sock.sendto("\n".join(words).encode(), self._address)
        except OSError as e:
            if not self._complained:
                self._complained = True
                _log.warning("systemd does not hear us (%s): %s", words[0], e.strerror or e)
            return False
        return True
