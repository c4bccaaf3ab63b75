"""systemd's end of the socket that services notify it by."""

import contextlib
import re
import secrets
import socket
import time

_PATIENCE = 5  # seconds in which something must be said


class Systemd:
    """Hears what is said.

    Args:
        path: of its socket; None: it has a name in the abstract namespace.

    Attributes:
        address: what it tells services of the socket.
    """

    def __init__(self, path=None):
        self.address = path or f"@portretry-test-{secrets.token_hex(8)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path or f"\0{self.address[1:]}")
        self._socket.settimeout(_PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def hear(self):
        return self._socket.recv(4096).decode()

    def heard_all(self):
        """What has come and was not read; nothing is waited for."""
        messages = []
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(self.hear())
        self._socket.settimeout(_PATIENCE)
        return messages

    def hear_until(self, pattern):
        """Read on until a message is all of that pattern; returns those before it."""
        messages = []
        while not re.fullmatch(pattern, message := self.hear()):
            messages.append(message)
        return messages

    def count_until_silence(self, word, seconds):
        """Read until that word has not come for so many seconds; returns how often it came before."""
        count = 0
        quiet_at = time.monotonic() + seconds
        while (left := quiet_at - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                if self.hear() == word:
                    count += 1
                    quiet_at = time.monotonic() + seconds
        self._socket.settimeout(_PATIENCE)
        return count
