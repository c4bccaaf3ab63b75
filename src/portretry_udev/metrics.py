"""Metrics for Prometheus, in a file that node_exporter's textfile collector reads.

Knows Prometheus' names and types, and when the file is written.  Must not know the rules: what is counted,
and how, is `tally`'s business; of a watcher only its `Snapshot` is read, which is safe in any thread.

The library ``prometheus_client`` is an extra of ours (``[metrics]``), loaded only here, once it is needed.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from portretry_udev import __version__, files
from portretry_udev.control import Snapshot
from portretry_udev.tally import BOUNDS, KINDS
from portretry_udev.words import STATES

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PERIOD = 1.0  # seconds between looks for news: the file is written no more often
REFRESH = 60.0  # seconds after which it is written though there is no news: its age tells that we live
AGAIN = 10.0  # seconds after a write that failed
_SOURCES = ("udev", "kernel", "none")
_CURES = {
    errno.ENOENT: "make that folder",
    errno.EROFS: "the unit lets the service write nowhere else: add ReadWritePaths=, see docs/farms.md",
    errno.EACCES: "may the service's user write there?",
    errno.EPERM: "may the service's user write there?",
}

_log = logging.getLogger("portretry_udev.metrics")


class NoLibraryError(Exception):
    """``prometheus_client`` is not installed; says what to do."""


class Shown(Protocol):
    """What is needed of a watcher."""

    @property
    def name(self) -> str:
        """The printer's."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest one."""


class Writer:
    """Writes the file, in a thread of its own, so that a slow disk never delays a watcher.

    At its end the file says that the service is down, and nothing more: numbers that nobody keeps any more
    would read as if all were well, and a file taken away is hard to tell from a host that never had one.

    Args:
        path: of the file; its folder must be there.
        watchers: of the printers; others may come in their place (`replace`).
        events: tells which device events arrive: ``udev``, ``kernel`` or ``none``.
        clock: seconds that never go backwards.
        wall: seconds since 1970.

    Raises:
        NoLibraryError: nothing can be written here.
    """

    def __init__(
        self,
        path: Path,
        watchers: Iterable[Shown],
        events: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        try:
            import prometheus_client  # noqa: F401, PLC0415 - takes a while, and few need it
        except ImportError:
            raise NoLibraryError(
                "metrics_textfile: no metrics are written, as the library prometheus_client is missing: "
                "pip install prometheus-client, or for the deb: apt install python3-prometheus-client"
            ) from None
        self._path = path
        self._events = events
        self._clock = clock
        self._started = wall()
        self._stopping = threading.Event()
        self._written: object = None  # what the file tells, as far as it is news
        self._due = -float("inf")
        self._failed: int | None = None  # the errno of the last write
        self.replace(watchers)

    def replace(self, watchers: Iterable[Shown]) -> None:
        """From now on these are the printers; from any thread."""
        self._watchers = list(watchers)

    def run(self) -> None:
        """Write until `stop`."""
        try:
            while True:
                self.look()
                if self._stopping.wait(PERIOD):
                    return
        finally:
            self._write(self._render([], up=False))

    def stop(self) -> None:
        """End `run`; from any thread."""
        self._stopping.set()

    def look(self) -> None:
        """Write if there is news, or if it is time."""
        shots = [(watcher.name, watcher.snapshot) for watcher in self._watchers]
        news = (
            self._events(),
            [(name, shot.state, shot.since, shot.push, shot.tally) for name, shot in shots],
        )
        now = self._clock()
        if now < self._due and (news == self._written or self._failed is not None):
            return
        if self._write(self._render(shots, up=True)):
            self._written, self._due = news, now + REFRESH
        else:
            self._due = now + AGAIN

    def _render(self, shots: list[tuple[str, Snapshot]], *, up: bool) -> bytes:
        return render(shots, self._events() if up else None, self._started)

    def _write(self, text: bytes) -> bool:
        """Whether it was written.  What went wrong is said once, and once more when it is over."""
        try:
            if not self._path.parent.is_dir():  # a folder of node_exporter's is not ours to make
                raise FileNotFoundError(errno.ENOENT, "its folder is not there")
            files.write(self._path, text, files.PUBLIC, lasting=False)
        except OSError as e:
            if e.errno != self._failed:
                cure = f" ({_CURES[e.errno]})" if e.errno in _CURES else ""
                _log.warning(
                    "%s: metrics are not written: %s%s; tried again every %g s",
                    self._path,
                    e.strerror or e,
                    cure,
                    AGAIN,
                )
            self._failed = e.errno
            return False
        if self._failed is not None:
            _log.info("%s: metrics are written again", self._path)
        self._failed = None
        return True


def render(shots: list[tuple[str, Snapshot]], events: str | None, started: float) -> bytes:
    """The metrics in Prometheus' text format.

    Args:
        shots: the printers' names, and what their watchers show.
        events: which device events arrive; None: the service is down.
        started: when the service began, in seconds since 1970.
    """
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - as above

    class Collector:
        def collect(self) -> Iterator["Metric"]:
            yield from _of_service(events, started)
            if events is not None:
                yield from _of_printers(shots)
                yield from _counts(shots)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def _of_service(events: str | None, started: float) -> Iterator["Metric"]:
    from prometheus_client.core import GaugeMetricFamily as Gauge  # noqa: PLC0415 - as above

    yield Gauge("portretry_up", "1: the service runs; 0: it was stopped.", 0 if events is None else 1)
    info = Gauge("portretry_info", "Always 1; the version is in its label.", labels=["version"])
    info.add_metric([__version__], 1)
    yield info
    yield Gauge("portretry_start_time_seconds", "When the service began, in seconds since 1970.", started)
    if events is not None:
        source = Gauge(
            "portretry_device_events",
            "1 for the source of device events: udev, kernel, or none (the interval stands in).",
            labels=["source"],
        )
        for name in _SOURCES:
            source.add_metric([name], name == events)
        yield source


def _of_printers(shots: list[tuple[str, Snapshot]]) -> Iterator["Metric"]:
    """What is so now."""
    from prometheus_client.core import GaugeMetricFamily as Gauge  # noqa: PLC0415 - as above

    state = Gauge("portretry_state", "1 for the state the printer is in.", labels=["printer", "state"])
    since = Gauge(
        "portretry_state_since_timestamp_seconds",
        "When its state last changed, in seconds since 1970.",
        labels=["printer"],
    )
    push = Gauge(
        "portretry_push_up",
        "1: OctoPrint tells of changes by push; 0: they are seen at the next look.  Not there with "
        "push = false.",
        labels=["printer"],
    )
    last = Gauge(
        "portretry_last_recovery_seconds",
        "The last of portretry_recovery_seconds.",
        labels=["printer"],
    )
    for name, shot in shots:
        for each in STATES:
            state.add_metric([name, each], each == shot.state)
        since.add_metric([name], shot.since)
        if shot.push is not None:
            push.add_metric([name], shot.push)
        if shot.tally.recoveries.last is not None:
            last.add_metric([name], shot.tally.recoveries.last)
    yield from (state, since, push, last)


def _counts(shots: list[tuple[str, Snapshot]]) -> Iterator["Metric"]:
    """What has happened since the service began."""
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily  # noqa: PLC0415 - as above

    def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"portretry_{name}", text, labels=["printer", *labels])

    connects = counter("connects", "Connect commands given to OctoPrint.")
    failed = counter(
        "failed_attempts",
        "Attempts to connect, the service's or OctoPrint's own, that ended without a connection.",
    )
    short = counter("short_connections", "Connections that were lost within 30 s, the cable staying in.")
    holds = counter(
        "holds",
        "How often hands were taken off until the printer returns, by kind: deliberate (a Disconnect), "
        'fault, wait (start = "wait").',
        "kind",
    )
    spared = counter(
        "resets_avoided",
        "Opens of the port, by the service or by OctoPrint, that would have raised DTR, which resets many "
        "boards, had the service not kept it up: by a hand-over with its own end open, or with HUPCL cleared "
        "before.  One connection counts once; what cannot be told is not counted.",
    )
    recovery = HistogramMetricFamily(
        "portretry_recovery_seconds",
        "From the firmware's first sign of life (with probe = none the node's appearance, with probe = open "
        "the open port) until OctoPrint was connected.  It does not run during a hold, a pause or a print "
        "from SD, nor while OctoPrint is away.",
        labels=["printer"],
    )
    for name, shot in shots:
        tally = shot.tally
        connects.add_metric([name], tally.connects)
        failed.add_metric([name], tally.failed)
        short.add_metric([name], tally.short)
        spared.add_metric([name], tally.resets_avoided)
        for kind, count in zip(KINDS, tally.holds, strict=True):
            holds.add_metric([name, kind.value], count)
        recovery.add_metric([name], _buckets(tally.recoveries.classes), tally.recoveries.seconds)
    yield from (connects, failed, short, holds, spared, recovery)


def _buckets(classes: tuple[int, ...]) -> list[tuple[str, float]]:
    """A histogram's buckets, each of which counts those before it too."""
    ends = [*map(str, BOUNDS), "+Inf"]
    return [(end, float(sum(classes[: i + 1]))) for i, end in enumerate(ends)]
