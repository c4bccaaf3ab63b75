"""What `status` shows to people, at any width."""

import click
import pytest

from portretry_udev import overview

NOW = 1_700_000_000.0 + 300
FOUND = {
    "state": "held",
    "why": "disconnected on purpose: hands off until the printer is switched off and on",
    "port": "/dev/ttyACM0",
    "node": "/dev/ttyACM0",
    "octoprint": "Offline",
    "holder": None,
    "since": "2023-11-14T22:13:20Z",
    "next_look": 3.2,
    "connects": 1,
    "events": "udev",
}


def shown(width=80, age=0.0, names=("mk3",), **changes):
    beside = {key: changes.pop(key) for key in ("push", "events_why") if key in changes}
    answer = {"printers": dict.fromkeys(names, FOUND | changes)} | beside
    return [click.unstyle(line) for line in overview.lines(answer, width, NOW, age)]


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3599, "59 min"),
        (7300, "2 h"),
        (86400 * 400, "400 d"),
        (-5, "0 s"),
    ],
)
def test_for_how_long(passed, said):
    """In the largest unit that has passed; a clock that was set back makes no nonsense."""
    answer = {"printers": {"mk3": FOUND}}
    row = overview.lines(answer, 80, NOW - 300 + passed)[1]
    assert f"  {said} " in row


@pytest.mark.parametrize(
    ("due", "age", "said"),
    [(3.2, 0, "in 3 s"), (3.2, 2, "in 1 s"), (3.2, 9, "now"), (0, 0, "now"), (300, 0, "in 5 min")],
)
def test_the_next_look_comes_nearer(due, age, said):
    """The age of the answer is taken off."""
    assert shown(next_look=due, age=age)[1].endswith(f"  {said}")


@pytest.mark.parametrize("width", [80, 200, 60, 59, 40])
def test_no_line_is_longer_than_the_terminal(width):
    """With the longest state and names; where there is no room, columns are left out and names cut."""
    lines = shown(
        width, names=("n" * 64, "m" * 64), state="unconfigured", port="/dev/serial/by-id/" + "x" * 90
    )
    assert max(map(len, lines)) <= min(width, 80)
    assert ("NEXT LOOK" in lines[0]) == (width >= 60)


def test_names_that_fit_are_whole():
    """A name as people give them is never cut at 80 columns."""
    name = "voron-in-the-far-corner-26"
    assert any(line.startswith(f"{name} ") for line in shown(names=(name,)))


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ("udev", None),
        ("kernel", "device events come from the kernel, not from udev (why)"),
        ("none", "no device events arrive here, the interval stands in (why)"),
    ],
)
def test_where_device_events_come_from(events, said):
    """Once, below all printers; nothing where all is as it should be."""
    lines = shown(names=("a", "b"), events=events, events_why="why")
    found = [line for line in lines if "device events" in line]
    assert found == ([said] if said else [])
    assert said is None or lines[-1] == said


@pytest.mark.parametrize(
    ("push", "state", "told"),
    [
        (False, "connected", True),
        (False, "unreachable", False),
        (True, "connected", False),
        (None, "connected", False),
    ],
)
def test_push_that_does_not_come(push, state, told):
    """Told where it is wanted and OctoPrint answers, but for that."""
    lines = shown(push={"mk3": push}, state=state)
    assert any("push messages do not arrive" in line for line in lines) == told


def test_an_older_service():
    """One that tells less is shown all the same."""
    assert shown() == shown(push={"mk3": True}, events_why="")


def test_words_of_others_cannot_steer_the_terminal():
    """Neither what OctoPrint says, nor what the kernel is called to be silent for."""
    lines = shown(why="\x1b[2J\r\n\u202e", events="none", events_why="\x1b[2J")
    assert all(line.isprintable() for line in lines)
