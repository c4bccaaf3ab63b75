"""All printers: one monitor of uevents, one watcher thread each, the signals, and another configuration.

Knows threads and signals, that `control` and `metrics` need a thread too, what systemd is to be told and
when, and which watchers a new configuration leaves as they are.  Must not know what a printer is up to; each
watcher does.
"""

import logging
import os
import queue
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType

from portretry_udev import control, control_server, metrics
from portretry_udev.config import Config, Printer, Wrong
from portretry_udev.devices import Devices
from portretry_udev.memory import Memory
from portretry_udev.notify import Notifier
from portretry_udev.octoprint import Client
from portretry_udev.push import Push
from portretry_udev.watchdog import Pulse, Watchdog
from portretry_udev.watcher import MakePusher, Watcher

_log = logging.getLogger("portretry_udev.daemon")
_GRACE = 0.7  # seconds in all for the watchers to end; the whole must take less than one
_CONTROL_GRACE = 0.2  # seconds, after that, for the control socket's thread
_METRICS_GRACE = 0.1  # seconds, before the latter, for the metrics' last word
_LATE = 5.0  # seconds after which a watcher that does not end is told of; it takes milliseconds
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class _Watch:
    """One printer at work: what is configured of it, and what ends with it."""

    printer: Printer
    client: Client
    watcher: Watcher
    thread: threading.Thread


class Daemon:
    """Watches all configured printers until a signal comes.

    Args:
        config: what to watch.
        dry_run: open and connect nothing.
        devices: for tests; else this machine's.
        again: reads the configuration again, at SIGHUP; raises `Wrong`.  Left out, SIGHUP ends the process.
        notifier: tells systemd; left out, nobody is told.
    """

    def __init__(
        self,
        config: Config,
        *,
        dry_run: bool = False,
        devices: Devices | None = None,
        again: Callable[[], Config] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self._devices = devices if devices is not None else Devices()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._config = config  # of its printers `_watches` knows better
        self._dry_run = dry_run
        self._again = again
        self._notifier = notifier if notifier is not None else Notifier()
        self._server: control_server.Server | None = None
        self._metrics: metrics.Writer | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._changing = threading.Lock()  # held while watchers are begun: none may be once we are stopping
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()  # to read again, or to look at `_stopping`
        self._watches = [self._watch(printer) for printer in config.printers]  # replaced, never changed

    def _watch(self, printer: Printer) -> _Watch:
        client = Client(printer.octoprint, printer.key.read, ca_file=printer.ca_file)
        watcher = Watcher(
            printer,
            self._devices,
            client,
            Memory(self._config.state_dir, printer.name),
            push=_push(printer),
            dry_run=self._dry_run,
            changed=self._wake if self._notifier.is_there else lambda: None,
        )
        thread = threading.Thread(target=self._guarded, args=(watcher.run,), name=printer.name, daemon=True)
        return _Watch(printer, client, watcher, thread)

    @property
    def watchers(self) -> list[Watcher]:
        """Those at work now, in the order of the configuration."""
        return [watch.watcher for watch in self._watches]

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT.

        Raises:
            ControlError: the configured control socket cannot be made; nothing was started.
            Exception: what no watcher foresaw; the process must end with it, since a deaf service that seems
                alive is worse than one that systemd starts anew.
        """
        with self._signals(), self._control(), self._measured():
            self._devices.start()  # before the first look, or what comes in between is missed
            if self._devices.events == "none":
                _log.warning("no device events here, the interval stands in: %s", self._devices.events_why)
            elif self._devices.events_why:
                _log.info("%s", self._devices.events_why)
            try:
                for watch in self._watches:
                    watch.thread.start()
                if self._again is not None:
                    rereading = (self._reread,)
                    threading.Thread(
                        target=self._guarded, args=rereading, name="configuration", daemon=True
                    ).start()
                self._notifier.ready()
                self._listen()
            finally:
                self._notifier.stopping()
                self._end()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End `run`, from any thread or signal handler."""
        self._stopping = True
        self._calls.put(None)
        self._wake()

    def read_again(self) -> None:
        """Have the configuration read again, soon; from any thread or signal handler."""
        self._calls.put(None)  # which, unlike a lock's, may be interrupted by itself

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            return  # full of wake-ups already

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def handler(number: int, _frame: FrameType | None) -> None:
            if number == signal.SIGHUP and (not attached or _has_terminal()):
                self.read_again()
                return
            _log.debug("%s: ending", signal.Signals(number).name)
            self.stop()

        if threading.current_thread() is not threading.main_thread():  # a test; there are no signals for it
            yield
            return
        # Who closes the terminal that a service was typed into means it to end; but for nohup(1).
        attached = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
        caught = _SIGNALS if self._again is None else (*_SIGNALS, signal.SIGHUP)
        # The handler runs in this thread only, and the kernel may interrupt another one, or this one just
        # before it begins to wait: the pipe wakes it in any case.
        woken = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        before = {number: signal.signal(number, handler) for number in caught}
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, old in before.items():
                signal.signal(number, old)

    @contextmanager
    def _control(self) -> Iterator[None]:
        """Serve the control socket.  Only one that was asked for must be there: watching matters more."""
        path = self._config.control or control.default_path()
        try:
            devices = self._devices
            server = control_server.Server(
                path, self.watchers, lambda: devices.events, events_why=lambda: devices.events_why or ""
            )
        except control.ControlError as e:
            if self._config.control is not None:
                raise
            _log.warning("%s (without it: no status, retry, pause, resume)", e)
            yield
            return
        self._server = server
        thread = threading.Thread(target=self._guarded, args=(server.run,), name="control", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.stop()
            thread.join(_CONTROL_GRACE)
            server.close()

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Write metrics, if that was asked for and can be done: watching matters more."""
        path = self._config.metrics_textfile
        try:
            writer = metrics.Writer(path, self.watchers, lambda: self._devices.events) if path else None
        except metrics.NoLibraryError as e:
            _log.warning("%s", e)
            writer = None
        if writer is None:
            yield
            return
        self._metrics = writer
        thread = threading.Thread(target=self._guarded, args=(writer.run,), name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            writer.stop()
            thread.join(_METRICS_GRACE)

    def _guarded(self, run: Callable[[], None]) -> None:
        """A thread's whole life: what it did not foresee ends the service."""
        try:
            run()
        except BaseException as e:  # noqa: BLE001 - raised again by `run`
            self._failure = self._failure or e
            self.stop()

    def _listen(self) -> None:
        """Hand out uevents until the end; and tell systemd how we are."""
        within = self._notifier.watchdog
        watchdog = None if within is None else Watchdog(within, self._pulses, self._notifier.alive)
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._devices.fileno(), select.POLLIN)
        while not self._stopping:
            if watchdog is not None:
                watchdog.look()
            if self._notifier.is_there:
                self._notifier.status(_summary(self.watchers))
            times = [self._devices.retry_at, watchdog.due if watchdog is not None else None]
            wake_at = min((each for each in times if each is not None), default=None)
            poll.poll(None if wake_at is None else max(0.0, wake_at - time.monotonic()) * 1000 + 1)
            with suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            for uevent in self._devices.read():
                for watcher in self.watchers:
                    watcher.post(uevent)

    def _pulses(self) -> list[Pulse]:
        """Of all loops but this thread's own."""
        served = [] if self._server is None else [self._server.pulse]
        return [*served, *(watcher.pulse for watcher in self.watchers)]

    def _end(self) -> None:
        self._stopping = True
        with self._changing:  # from here on nothing begins any more
            watches = self._watches
        end = time.monotonic() + _GRACE
        for watch in watches:
            watch.watcher.stop()
        for watch in watches:
            if watch.thread.is_alive():
                watch.thread.join(max(0.0, end - time.monotonic()))
        for watch in watches:
            watch.client.close()  # a request under way ends at once
        self._devices.close()

    # -- another configuration -------------------------------------------------------------------------
    def _reread(self) -> None:
        """Read the configuration again whenever that is asked for.

        In a thread of its own: a file on a slow disk, or a printer that takes its time to end, must not keep
        uevents from the others.
        """
        assert self._again is not None  # noqa: S101 - `run` has looked
        while True:
            self._calls.get()
            with suppress(queue.Empty):
                while True:  # what was asked several times meanwhile is done once
                    self._calls.get_nowait()
            if self._stopping:
                return
            self._notifier.reloading()
            try:
                config = self._again()
            except Wrong as wrong:
                for mistake in wrong.mistakes:
                    _log.warning("%s", mistake)
                _log.warning("the configuration was not read again: the old one stays")
            else:
                self._take_over(config)
            self._notifier.ready()
            self._wake()

    def _take_over(self, config: Config) -> None:
        """Watch what this configuration says; whoever is in it as before is not touched.

        Who has changed begins as after a restart of the service: a hold and a pause are recalled, but not
        whether an open would make an edge.
        """
        for setting in ("state_dir", "control", "metrics_textfile"):
            if getattr(config, setting) != getattr(self._config, setting):
                _log.warning("%s has changed: that takes a restart of the service", setting)
        before = {watch.printer.name: watch for watch in self._watches}
        staying = {
            printer.name: before[printer.name]
            for printer in config.printers
            if printer.name in before and _is_same(before[printer.name].printer, printer)
        }
        leaving = [watch for name, watch in before.items() if name not in staying]
        _retire(leaving)
        with self._changing:
            if self._stopping:
                return
            self._watches = [staying.get(each.name) or self._watch(each) for each in config.printers]
            # In the list before it begins: a uevent of that moment waits in its mailbox.
            for watch in self._watches:
                if watch.printer.name not in staying:
                    watch.thread.start()
            if self._server is not None:
                self._server.replace(self.watchers)
            if self._metrics is not None:
                self._metrics.replace(self.watchers)
        _log.info("configuration read again: %s", _changes(before, staying, config.printers))


def _retire(leaving: Iterable[_Watch]) -> None:
    """End these, and wait until none has a port open any more.

    However long it takes: two watchers at one port would steal each other's bytes, and whose port another
    one's successor will want cannot be told by its name.
    """
    for watch in leaving:
        watch.watcher.stop()
    late = time.monotonic() + _LATE
    for watch in leaving:
        watch.thread.join(max(0.0, late - time.monotonic()))
        if watch.thread.is_alive():
            name = watch.printer.name
            _log.warning("%s does not end, and what has changed waits for it: restart the service", name)
            watch.thread.join()
        watch.client.close()  # a request under way ends at once


def _is_same(old: Printer, new: Printer) -> bool:
    """Whether the configuration says the same of both; OctoPrint's own settings are followed anyway."""
    return replace(old, octoprint_settings=None) == replace(new, octoprint_settings=None)


def _changes(before: Iterable[str], staying: Iterable[str], printers: Iterable[Printer]) -> str:
    """What has become of whom, for people."""
    now = [printer.name for printer in printers]
    words = [
        f"{name} {'unchanged' if name in staying else 'changed' if name in before else 'added'}"
        for name in now
    ]
    return ", ".join([*words, *(f"{name} removed" for name in before if name not in now)])


def _summary(watchers: Iterable[Watcher]) -> str:
    """How things stand, in the one line that ``systemctl status`` has for it."""
    shots = [watcher.snapshot for watcher in watchers]
    states = Counter(shot.news[0] if shot.news else shot.state for shot in shots)
    printers = f"{len(shots)} printer{'' if len(shots) == 1 else 's'}"
    if len(states) == 1:
        return f"{printers}: {'' if len(shots) == 1 else 'all '}{next(iter(states))}"
    return f"{printers}: " + ", ".join(f"{number} {state}" for state, number in sorted(states.items()))


def _has_terminal() -> bool:
    """Whether this process has a terminal that it can be controlled from; tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _push(printer: Printer) -> MakePusher | None:
    if not printer.push:
        return None
    return lambda post, say, crash: Push(
        printer.octoprint, printer.key.read, post, ca_file=printer.ca_file, say=say, crash=crash
    )
