"""The whole story on this machine without hardware: a simulated printer, an OctoPrint, and the real watcher.

Knows the simulators, and the watcher only as everybody does: by its command line and its log.  Each step is
something that happens to a printer; a step that does not end as promised makes the demo fail.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import click

from portretry_udev import control
from portretry_udev.fake_octoprint import FakeOctoPrint
from portretry_udev.real_octoprint import InstallError, RealOctoPrint, ServeError
from portretry_udev.simulator import Printer

WIDTH = 79  # columns of a plain terminal, less one
INTERVAL = 1.0  # seconds, the watcher's; PortRetry's 5 would make the demo long
BOOT = 1.0  # seconds the simulated firmware needs
HANDS_OFF = 5 * INTERVAL  # seconds in which nothing may happen
PATIENCE = 60.0  # seconds for a step; a real OctoPrint needs a while to notice that a printer is silent
_LOOK = 0.02  # seconds between looks


class _OctoPrint(Protocol):
    """What the demo needs of either OctoPrint."""

    def address(self) -> str:
        """Its URL."""

    def key_file(self) -> Path:
        """A file with its API key."""

    def job_state(self) -> str:
        """What it says it is doing."""

    def connects(self) -> int:
        """How often it has been told to connect."""

    def disconnect(self) -> None:
        """A person presses Disconnect."""


class _Fake:
    """The built-in, minimal OctoPrint."""

    def __init__(self, server: FakeOctoPrint, key: str, folder: Path) -> None:
        self._server = server
        self._key_file = folder / "octoprint.key"
        with open(os.open(self._key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(key)

    def address(self) -> str:
        return self._server.url

    def key_file(self) -> Path:
        return self._key_file

    def job_state(self) -> str:
        return self._server.job_state

    def connects(self) -> int:
        return self._server.connects

    def disconnect(self) -> None:
        self._server.person_disconnects()


class _Real:
    """A real OctoPrint."""

    def __init__(self, server: RealOctoPrint) -> None:
        self._server = server

    def address(self) -> str:
        return self._server.url

    def key_file(self) -> Path:
        return self._server.key_file

    def job_state(self) -> str:
        return self._server.state()[1]

    def connects(self) -> int:
        return self._server.attempts()

    def disconnect(self) -> None:
        self._server.disconnect()


class StepFailed(Exception):  # noqa: N818 - what happened, not an error of the program
    """A step of the story did not end as promised."""


class _Story:
    """The narrator: times, what happens, what came of it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def tell(self, text: str, front: str = "", colour: str | None = None) -> None:
        """One thing that happens, with its time; what follows ``front`` is set below its first line."""
        stamp = f"{time.monotonic() - self._began:5.1f} s  {front}"
        told = textwrap.fill(
            text,
            WIDTH,
            initial_indent=stamp,
            subsequent_indent=" " * len(stamp),
            break_on_hyphens=False,
            break_long_words=False,
        )
        with self._lock:
            click.secho(told, fg=colour)

    def outcome(self, text: str) -> None:
        """What came of it."""
        self.tell(text, "-> ", "green")

    def seconds(self) -> float:
        """Since the story began."""
        return time.monotonic() - self._began


class _Watcher:
    """``portretry-udev watch`` as a process of its own; its log becomes part of the story."""

    def __init__(
        self, story: _Story, octoprint: _OctoPrint, link: Path, folder: Path, *, verbose: bool
    ) -> None:
        command = [sys.executable, "-m", "portretry_udev", "watch"]
        command += ["--octoprint", octoprint.address(), "--api-key-file", str(octoprint.key_file())]
        command += ["--port", str(link), "--interval", str(INTERVAL), "--state-dir", str(folder / "state")]
        self._socket = folder / "control.sock"
        command += ["--control", str(self._socket)] + ["-v"] * verbose
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PORTRETRY_")}
        environment["NO_COLOR"] = "1"
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self._reader = threading.Thread(target=self._read, args=(story, folder), daemon=True)
        self._reader.start()

    def _read(self, story: _Story, folder: Path) -> None:
        assert self._process.stderr is not None  # noqa: S101 - a pipe was asked for
        for line in self._process.stderr:
            # Without the time, which the story tells, and the name of the demo's folder, which tells nothing.
            said = re.sub(r"^\d\d:\d\d:\d\d (printer: )?", "", line.rstrip())
            story.tell(said.replace(f"{folder}/", ""), "   watcher: ", "bright_black")

    def running(self) -> bool:
        return self._process.poll() is None

    def state(self) -> str:
        """What it says of its only printer; empty: it does not say."""
        try:
            (printer,) = control.ask(self._socket, "status")["printers"].values()
        except control.ControlError:
            return ""
        return str(printer["state"])

    def stop(self) -> int:
        """End it as systemd would; its exit status."""
        if self.running():
            self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._reader.join(1)
        assert self._process.stderr is not None  # noqa: S101 - a pipe was asked for
        self._process.stderr.close()
        return status


class _Demo:
    """The steps."""

    def __init__(self, story: _Story, printer: Printer, octoprint: _OctoPrint, watcher: _Watcher) -> None:
        self._story, self._printer, self._octoprint, self._watcher = story, printer, octoprint, watcher
        self.steps = 0

    def run(self) -> None:
        """All steps, in their order; raises StepFailed at the first that does not end well."""
        for step in (self._power_on, self._cable, self._off_in_place, self._disconnect, self._power_cycle):
            step()
            self.steps += 1

    def _power_on(self) -> None:
        self._story.tell(f"The printer is switched on; its firmware takes {BOOT:.0f} s to boot.")
        self._printer.plug()
        self._printer.power_on()
        self._expect_return()

    def _cable(self) -> None:
        self._story.tell("The USB cable is pulled.")
        self._printer.unplug()
        self._expect_offline()
        self._story.tell("The cable is put back.")
        self._printer.plug()
        self._expect_return()

    def _off_in_place(self) -> None:
        self._story.tell(
            "The printer is switched off, but its port stays (as with Prusa printers, or in LXC)."
        )
        self._printer.power_off()
        self._expect_offline()
        before = self._octoprint.connects()
        self._nothing_for(
            HANDS_OFF / 2, lambda: self._octoprint.connects() == before, "it was told to connect"
        )
        self._story.outcome("in the dark OctoPrint is left alone: not one attempt to connect")
        self._story.tell("The printer is switched on again.")
        self._printer.power_on()
        self._expect_return()

    def _disconnect(self) -> None:
        # Nobody is as quick as to press it before: without push that would look like an attempt that failed.
        self._until(lambda: self._watcher.state() == "connected", "the watcher did not notice")
        self._story.tell("Somebody presses Disconnect in OctoPrint. The printer stays on.")
        self._octoprint.disconnect()
        self._expect_offline()
        before, bytes_in = self._octoprint.connects(), self._printer.stats().bytes_in
        self._nothing_for(
            HANDS_OFF,
            lambda: self._octoprint.connects() == before and self._printer.stats().bytes_in == bytes_in,
            "somebody's Disconnect was not respected",
        )
        self._story.outcome(
            f"respected: in {HANDS_OFF:.0f} s ({HANDS_OFF / INTERVAL:.0f} intervals) not one attempt, "
            "and not one byte to the printer"
        )

    def _power_cycle(self) -> None:
        self._story.tell(
            "The printer is switched off and on in place: it has returned, so the Disconnect is over."
        )
        self._printer.power_off()
        self._printer.power_on()
        self._expect_return()

    def _expect_return(self) -> None:
        self._until(lambda: self._printer.stats().state == "ready", "the simulated firmware did not boot")
        ready = time.monotonic()
        self._until(lambda: self._octoprint.job_state() == "Operational", "OctoPrint is not operational")
        self._story.outcome(
            f"OctoPrint is operational, {time.monotonic() - ready:.1f} s after the firmware could answer"
        )

    def _expect_offline(self) -> None:
        self._until(lambda: self._octoprint.job_state().startswith("Offline"), "OctoPrint did not notice")
        self._story.outcome(f"OctoPrint says {self._octoprint.job_state()!r}")

    def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            self._still_watching()
            if time.monotonic() > end:
                raise StepFailed(f"{otherwise} after {PATIENCE:.0f} s")
            time.sleep(_LOOK)

    def _nothing_for(self, seconds: float, condition: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._still_watching()
            if not condition():
                raise StepFailed(otherwise)
            time.sleep(_LOOK)

    def _still_watching(self) -> None:
        if not self._watcher.running():
            raise StepFailed("the watcher has ended by itself")


def run(version: str | None, cache: Path | None, *, verbose: bool) -> int:
    """Show the story; 0 if all steps ended as promised.

    Args:
        version: of a real OctoPrint to install and use; None: the built-in one.
        cache: where it is installed.
        verbose: show all that the watcher notices.
    """
    what = f"a real OctoPrint {version}" if version else "a minimal OctoPrint"
    click.echo(f"portretry-udev demo: a simulated printer, {what}, the real watcher.\n")
    with tempfile.TemporaryDirectory(prefix="portretry-udev-demo-") as name:
        folder = Path(name)
        link = folder / "ttyDEMO0"
        try:
            with (
                _octoprint(version, cache, link, folder) as octoprint,
                Printer(link=link, boot_delay=BOOT, powered=False, plugged=False) as printer,
            ):
                return _tell(printer, octoprint, link, folder, verbose=verbose)
        except (InstallError, ServeError) as e:
            click.echo(f"portretry-udev: {e}", err=True)
            return 1


def _tell(printer: Printer, octoprint: _OctoPrint, link: Path, folder: Path, *, verbose: bool) -> int:
    story = _Story()
    story.tell("The watcher is started. The printer is off, its cable not even plugged in.")
    watcher = _Watcher(story, octoprint, link, folder, verbose=verbose)
    demo = _Demo(story, printer, octoprint, watcher)
    failure = ""
    try:
        demo.run()
    except StepFailed as e:
        failure = str(e)
    finally:
        status = watcher.stop()  # after Ctrl-C too: it must not outlive the demo
    if not failure and status:
        failure = f"the watcher ended with status {status}"
    if failure:
        story.tell(f"FAILED: {failure}", colour="red")
        return 1
    connects = octoprint.connects()
    click.echo(
        f"\nAll {demo.steps} steps ended as promised, in {story.seconds():.0f} s: {connects} connects, "
        "each to a\nfirmware that had answered; none in the dark, none against a person's word."
    )
    return 0


@contextlib.contextmanager
def _octoprint(version: str | None, cache: Path | None, link: Path, folder: Path) -> Iterator[_OctoPrint]:
    ports = [str(link.with_name("ttyDEMO*"))]
    if version is None:
        key = secrets.token_hex(16)
        with FakeOctoPrint(api_key=key, ports=ports, port_preference=str(link)) as fake:
            yield _Fake(fake, key, folder)
        return
    say = click.echo
    with RealOctoPrint(
        version, folder / "octoprint", ports=ports, preferred=str(link), cache=cache, say=say
    ) as real:
        say(f"OctoPrint {version} is up at {real.url}\n")
        yield _Real(real)
