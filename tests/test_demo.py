"""The demo keeps its word: under a minute, readable on any terminal, and red when a step fails."""

import os
import re
import subprocess
import sys

import pytest

from bench import logged
from portretry_udev import demo

EMPTY = "import sys; sys.stderr.close()"
DEAF = "import signal; signal.pause()"  # lives until a signal, does nothing, and does not end well


@pytest.fixture(autouse=True)
def _log():
    with logged():
        yield


def test_the_whole_story():
    """Every step is told, with its time and its outcome, in 80 columns; status 0 within a minute."""
    environment = os.environ | {"COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, "-m", "portretry_udev", "demo"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in ended.stdout, "colours are for terminals"
    story = re.sub(r"\n {6,}", " ", ended.stdout)  # as it was before it was wrapped
    told = [
        r"^ +0\.0 s  The watcher is started",
        r"^ +[\d.]+ s  The printer is switched on; its firmware takes 1 s to boot",
        r"-> OctoPrint is operational, \d\.\d s after the firmware could answer",
        r"The USB cable is pulled",
        r"-> OctoPrint says 'Offline after error'",
        r"The cable is put back",
        r"-> OctoPrint is operational",
        r"switched off, but its port stays",
        r"-> OctoPrint says 'Offline after error'",
        r"in the dark OctoPrint is left alone",
        r"The printer is switched on again",
        r"-> OctoPrint is operational",
        r"Somebody presses Disconnect",
        r"-> respected: in 5 s \(5 intervals\) not one attempt",
        r"switched off and on in place",
        r"-> OctoPrint is operational",
        r"^All 5 steps ended as promised, in \d+ s: 4 connects",
    ]
    at = 0
    for pattern in told:
        found = re.compile(pattern, re.MULTILINE).search(story, at)
        assert found, f"not told, or not in this order: {pattern}\n{ended.stdout}"
        at = found.end()
    assert re.search(r"watcher: held: disconnected on purpose", story), "the watcher's own log is shown"


@pytest.fixture
def watcher(monkeypatch, tmp_path):
    """Have the demo start another watcher: a Python program of the test's."""

    def start(program):
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S -c '{program}'\n")
        script.chmod(0o755)
        monkeypatch.setattr(demo.sys, "executable", str(script))

    return start


def test_a_watcher_that_ends_by_itself_fails_the_demo(watcher, capsys):
    """Noticed at once, said, and the status is not 0."""
    watcher(EMPTY)
    assert demo.run(None, None, verbose=False) == 1
    assert "FAILED: the watcher has ended by itself" in capsys.readouterr().out


def test_a_watcher_that_does_nothing_fails_the_demo(watcher, capsys, monkeypatch):
    """The step that was not kept is named, and no success is claimed."""
    watcher(DEAF)
    monkeypatch.setattr(demo, "BOOT", 0.1)
    monkeypatch.setattr(demo, "PATIENCE", 1.0)
    assert demo.run(None, None, verbose=False) == 1
    said = capsys.readouterr().out
    assert "FAILED: OctoPrint is not operational after 1 s" in said
    assert "as promised" not in said


def test_a_watcher_that_ends_badly_fails_the_demo(watcher, capsys, monkeypatch):
    """All steps were kept, but it did not end with status 0 on a signal."""
    watcher(DEAF)
    monkeypatch.setattr(demo._Demo, "run", lambda _: None)
    assert demo.run(None, None, verbose=False) == 1
    assert re.search(r"FAILED: the watcher ended with status \S+", capsys.readouterr().out)
