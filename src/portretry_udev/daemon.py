"""All printers: one monitor of uevents, one watcher thread each, and the signals.

Knows threads and signals, and that `control` needs a thread too.  Must not know what a printer is up to;
each watcher does.
"""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from portretry_udev import control
from portretry_udev.config import Config, Printer
from portretry_udev.devices import Devices
from portretry_udev.memory import Memory
from portretry_udev.octoprint import Client
from portretry_udev.watcher import Watcher

_log = logging.getLogger("portretry_udev.daemon")
_GRACE = 0.7  # seconds in all for the watchers to end; the whole must take less than one
_CONTROL_GRACE = 0.2  # seconds, after that, for the control socket's thread
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Daemon:
    """Watches all configured printers until a signal comes.

    Args:
        config: what to watch.
        dry_run: open and connect nothing.
        devices: for tests; else this machine's.
    """

    def __init__(self, config: Config, *, dry_run: bool = False, devices: Devices | None = None) -> None:
        self._devices = devices if devices is not None else Devices()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._control_path = config.control
        self._failure: BaseException | None = None
        self._stopping = False
        self._clients = [_client(printer) for printer in config.printers]
        self.watchers = [
            Watcher(printer, self._devices, client, Memory(config.state_dir, printer.name), dry_run=dry_run)
            for printer, client in zip(config.printers, self._clients, strict=True)
        ]

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT.

        Raises:
            ControlError: the configured control socket cannot be made; nothing was started.
            Exception: what no watcher foresaw; the process must end with it, since a deaf service that seems
                alive is worse than one that systemd starts anew.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(watcher.run,), name=watcher.name, daemon=True)
            for watcher in self.watchers
        ]
        with self._signals(), self._control():
            self._devices.start()  # before the first look, or what comes in between is missed
            if self._devices.events == "none":
                _log.warning("no device events here, the interval stands in: %s", self._devices.events_why)
            for thread in threads:
                thread.start()
            try:
                self._listen()
            finally:
                self._end(threads)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End `run`, from any thread or signal handler."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            return  # full of wake-ups already

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def handler(number: int, _frame: FrameType | None) -> None:
            _log.debug("%s: ending", signal.Signals(number).name)
            self.stop()

        if threading.current_thread() is not threading.main_thread():  # a test; there are no signals for it
            yield
            return
        # The handler runs in this thread only, and the kernel may interrupt another one, or this one just
        # before it begins to wait: the pipe wakes it in any case.
        woken = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        before = {number: signal.signal(number, handler) for number in _SIGNALS}
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, old in before.items():
                signal.signal(number, old)

    @contextmanager
    def _control(self) -> Iterator[None]:
        """Serve the control socket.  Only one that was asked for must be there: watching matters more."""
        path = self._control_path or control.default_path()
        try:
            server = control.Server(path, self.watchers, lambda: self._devices.events)
        except control.ControlError as e:
            if self._control_path is not None:
                raise
            _log.warning("%s (without it: no status, retry, pause, resume)", e)
            yield
            return
        thread = threading.Thread(target=self._guarded, args=(server.run,), name="control", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.stop()
            thread.join(_CONTROL_GRACE)
            server.close()

    def _guarded(self, run: Callable[[], None]) -> None:
        """A thread's whole life: what it did not foresee ends the service."""
        try:
            run()
        except BaseException as e:  # noqa: BLE001 - raised again by `run`
            self._failure = self._failure or e
            self.stop()

    def _listen(self) -> None:
        """Hand out uevents until the end."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._devices.fileno(), select.POLLIN)
        while not self._stopping:
            retry_at = self._devices.retry_at
            wait = None if retry_at is None else max(0.0, retry_at - time.monotonic()) * 1000 + 1
            poll.poll(wait)
            for uevent in self._devices.read():
                for watcher in self.watchers:
                    watcher.post(uevent)

    def _end(self, threads: list[threading.Thread]) -> None:
        end = time.monotonic() + _GRACE
        for watcher in self.watchers:
            watcher.stop()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        for client in self._clients:
            client.close()  # a request under way ends at once
        self._devices.close()


def _client(printer: Printer) -> Client:
    return Client(printer.octoprint, printer.key.read, ca_file=printer.ca_file)
