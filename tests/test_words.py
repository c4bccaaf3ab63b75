"""What a person is told: each state of the design, and a sentence to act on."""

import dataclasses
import math

import pytest

from portretry_udev.events import (
    Hold,
    Ill,
    Node,
    NodeSeen,
    Octo,
    OpenFailed,
    Policy,
    Refusal,
    Started,
    Tick,
    Told,
)
from portretry_udev.rules import Attempt, Line, State, deadline, step
from portretry_udev.words import STATES, account

NOW = 1000.0
TTY = "/dev/ttyUSB0"
NODE = Node(TTY, identity=(48128, 417, TTY))
POLICY = Policy(baudrate=115200)

# OctoPrint is plainly offline and offers our port, which is open and silent.
SILENT = State(
    POLICY,
    node=NODE,
    first_look=False,
    octo=Octo.OFFLINE,
    octo_since=NOW - 100,
    words="Offline",
    offered=TTY,
    line=Line.LISTENING,
    dtr_stays=True,
)

# name: (what is different, the state, what the sentence must hold, whether somebody should look)
CASES = {
    "paused for good": ({"paused_until": math.inf}, "paused", "`portretry-udev resume` ends it", False),
    "paused for a while": ({"paused_until": NOW + 60}, "paused", "`portretry-udev resume` ends it", False),
    "OctoPrint is down": (
        {"ill": Ill.DOWN, "ill_why": "OctoPrint is not running at http://x"},
        "unreachable",
        "OctoPrint is not running at http://x",
        False,
    ),
    "OctoPrint is slow": (
        {"ill": Ill.SLOW, "ill_why": "no answer in 10 s"},
        "unreachable",
        "no answer",
        False,
    ),
    "a refused key": ({"ill": Ill.KEY, "ill_why": "make a new key"}, "unreachable", "make a new key", True),
    "something else answers": ({"ill": Ill.ODD, "ill_why": "this is nginx"}, "unreachable", "nginx", True),
    "declined": ({"ill": Ill.DECLINED, "ill_why": "no such profile"}, "unreachable", "no such profile", True),
    "not asked yet": ({"octo": None}, "unreachable", "asking OctoPrint", False),
    "idle": ({"octo": Octo.IDLE, "words": "Operational"}, "connected", "connected (Operational)", False),
    "printing": ({"octo": Octo.BUSY, "words": "Printing"}, "connected", "connected (Printing)", False),
    "connected to another": (
        {"octo": Octo.IDLE, "words": "Operational", "elsewhere": "/dev/ttyACM7"},
        "connected",
        "connected to /dev/ttyACM7, which is not this printer's port",
        True,
    ),
    "odd words, just now": (
        {"octo": Octo.UNKNOWN, "words": "Dancing", "octo_since": NOW - 1},
        "unreachable",
        "asking OctoPrint again",
        False,
    ),
    "odd words that stay": (
        {"octo": Octo.UNKNOWN, "words": "Dancing"},
        "unreachable",
        "hands off: OctoPrint says 'Dancing', which is not understood",
        True,
    ),
    "OctoPrint connects by itself, just now": (
        {"octo": Octo.CONNECTING, "octo_since": NOW - 0.5},
        "connecting",
        "by itself: hands off",
        False,
    ),
    "OctoPrint connects by itself": (
        {"octo": Octo.CONNECTING, "octo_since": NOW - 5},
        "connecting",
        "by itself: hands off",
        False,
    ),
    "our attempt": (
        {"octo": Octo.CONNECTING, "octo_since": NOW - 1, "attempt": Attempt(NOW - 1)},
        "connecting",
        "told OctoPrint to connect",
        False,
    ),
    "our attempt, not begun yet": (
        {"attempt": Attempt(NOW - 0.1)},
        "connecting",
        "told OctoPrint to connect",
        False,
    ),
    "wedged": (
        {"octo": Octo.CONNECTING, "words": "Opening serial connection"},
        "connecting",
        "seems stuck in 'Opening serial connection': `portretry-udev retry`",
        True,
    ),
    "wedged again": (
        {"octo": Octo.CONNECTING, "words": "Opening serial connection", "unwedged": True},
        "connecting",
        "is stuck in 'Opening serial connection' again: may its user open the port?",
        True,
    ),
    "a stranger": (
        {"known": False, "stranger": "Ender-3"},
        "listening",
        f"another printer answers on {TTY} (Ender-3), not the configured one",
        True,
    ),
    "another connector": (
        {"aside": "its preferred connector is Moonraker, not serial"},
        "unconfigured",
        "hands off: its preferred connector is Moonraker, not serial",
        False,
    ),
    "a fault that OctoPrint forgot": (
        {"hold": Hold.FAULT, "octo": Octo.LOST, "words": "Offline after error", "fault_words": "MINTEMP"},
        "faulted",
        "hands off after a fault (MINTEMP) until",
        True,
    ),
    "no port known": (
        {"configured": False, "node": None, "missing": "choose a port in OctoPrint's settings"},
        "unconfigured",
        "choose a port",
        True,
    ),
    "no node": (
        {"node": None, "missing": f"{TTY} is not there"},
        "absent",
        f"waiting for the printer: {TTY} is not there",
        False,
    ),
    "not offered": (
        {"offered": None},
        "unconfigured",
        f"add the line {TTY} to Additional serial ports",
        True,
    ),
    "shunned": (
        {"node": dataclasses.replace(NODE, shun=frozenset({115200}))},
        "unconfigured",
        "set another baudrate",
        True,
    ),
    "disconnected on purpose": (
        {"hold": Hold.DELIBERATE},
        "held",
        "hands off until the printer is switched off and on, or replugged, or `portretry-udev retry`",
        False,
    ),
    "disconnected on purpose, and an open would reset": (
        {"hold": Hold.DELIBERATE, "dtr_stays": False, "line": Line.CLOSED},
        "held",
        "until the printer is replugged, or `portretry-udev retry` (opening the port would reset it)",
        False,
    ),
    "start = wait": ({"hold": Hold.WAIT}, "held", "start = wait: hands off until", False),
    "fault": (
        {"hold": Hold.FAULT, "octo": Octo.FAULT, "words": "Offline after error: Heating failed"},
        "faulted",
        "(Offline after error: Heating failed) until the printer is switched off and on",
        True,
    ),
    "in use": (
        {"refusal": Refusal.BUSY, "refusal_why": f"{TTY} is in use by avrdude (pid 7)", "line": Line.CLOSED},
        "in-use",
        f"hands off: {TTY} is in use by avrdude (pid 7)",
        False,
    ),
    **{
        f"refused: {refusal.value}": (
            {"refusal": refusal, "refusal_why": f"{TTY}: do this", "line": Line.CLOSED},
            "absent",
            f"hands off: {TTY}: do this",
            True,
        )
        for refusal in Refusal
        if refusal is not Refusal.BUSY
    },
    "busy": ({"busy_until": NOW + 5}, "listening", "the printer is busy: hands off", False),
    "printing from SD": ({"printing_until": NOW + 200}, "listening", "the printer is busy: hands off", False),
    "dry run": (
        {"policy": dataclasses.replace(POLICY, dry_run=True), "line": Line.CLOSED},
        "listening",
        f"dry run: would open {TTY}",
        False,
    ),
    "backing off": (
        {"failures": 3, "failure_why": "no handshake", "not_before": NOW + 20},
        "backing-off",
        "no handshake: the next attempt in 20 s, or when the printer returns",
        True,
    ),
    "backing off for long": (
        {"failures": 9, "failure_why": "no handshake", "not_before": NOW + 300},
        "backing-off",
        "the next attempt in 5 min",
        True,
    ),
    "silent": ({}, "listening", f"waiting until the firmware on {TTY} answers", False),
    "lost": (
        {"octo": Octo.LOST, "words": "Offline after error: unplugged"},
        "listening",
        f"lost the printer (Offline after error: unplugged); waiting until the firmware on {TTY} answers",
        False,
    ),
    "garbage": ({"garbled": True}, "listening", f"garbage on {TTY} at 115200 baud: is this its", True),
    "about to be opened": ({"line": Line.CLOSED}, "listening", f"waiting until the firmware on {TTY}", False),
}
# Over in a moment: `status` tells them, the log does not.
PASSING = {
    "not asked yet",
    "odd words, just now",
    "OctoPrint connects by itself, just now",
    "about to be opened",
}


@pytest.mark.parametrize("name", CASES)
def test_each_situation_is_told(name):
    """Which state it is, a sentence to act on, and whether somebody should look."""
    changes, state, words, warn = CASES[name]
    told = account(dataclasses.replace(SILENT, **changes), NOW)
    assert told.state == state
    assert words in told.why
    assert "\n" not in told.why
    assert told.warn is warn
    assert told.passing is (name in PASSING)


def test_every_state_of_the_design_can_be_told():
    """Section 6 names eleven; none is told that it does not name, none is left out."""
    design = {
        "connected",
        "connecting",
        "absent",
        "listening",
        "held",
        "faulted",
        "paused",
        "in-use",
        "backing-off",
        "unreachable",
        "unconfigured",
    }
    assert {state for _, state, _, _ in CASES.values()} == design
    assert set(STATES) == design, "which metrics count by"


@pytest.mark.parametrize("name", CASES)
def test_time_alone_is_nothing_new(name):
    """One line a change, never one a tick: as seconds pass within a state there is nothing new to say."""
    changes, *_ = CASES[name]
    state = dataclasses.replace(SILENT, **changes)
    first = account(state, NOW)
    news = {
        told.key or told.why
        for told in (account(state, NOW + tenths / 10) for tenths in range(3000))
        if told.state == first.state and not told.passing and told.why != first.why
    }
    # What time does change is another situation: odd words that stay, an end of being busy.
    assert len(news - {first.key}) <= 1


def test_each_further_failure_is_news():
    """The same failure once more is a line of its own: the waiting grows with it."""
    keys = {
        account(
            dataclasses.replace(SILENT, failures=failures, failure_why="no handshake", not_before=NOW + 9),
            NOW,
        ).key
        for failures in (1, 2, 3)
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("paused for good", "OctoPrint is down"),
        ("OctoPrint is down", "idle"),
        ("idle", "no node"),
        ("no port known", "disconnected on purpose"),
        ("no node", "not offered"),
        ("not offered", "disconnected on purpose"),
        ("disconnected on purpose", "in use"),
        ("in use", "busy"),
        ("busy", "backing off"),
        ("backing off", "silent"),
    ],
)
def test_what_stands_in_the_way_first_is_told_first(earlier, later):
    """Of two situations at once a person hears of the one that has to end before the other matters."""
    told = account(dataclasses.replace(SILENT, **{**CASES[later][0], **CASES[earlier][0]}), NOW)
    assert told.state == CASES[earlier][1]


def test_a_question_under_way_may_change_what_octoprint_offers():
    """A port that has just been plugged is missing from the last answer: not worth a line until the next."""
    plugged = dataclasses.replace(SILENT, offered=None)
    assert account(dataclasses.replace(plugged, looking=True), NOW).passing
    assert not account(plugged, NOW).passing


def test_an_hour_of_a_port_in_use_is_one_line():
    """Through the rules themselves: hundreds of looks and refused opens, and one thing to say."""
    state, now, said = State(POLICY), 0.0, []
    queue = [Started(), NodeSeen(NODE)]
    while now < 3600:
        state, effects = step(state, queue.pop(0) if queue else Tick(), now)
        for effect in effects:
            match type(effect).__name__:
                case "Look":
                    queue.append(Told(Octo.OFFLINE, now, words="Offline", offered=TTY))
                case "Open":
                    queue.append(OpenFailed(Refusal.BUSY, f"{TTY} is in use by klippy (pid 7)"))
        told = account(state, now)
        if not told.passing and (told.state, told.key or told.why) not in said[-1:]:
            said.append((told.state, told.key or told.why))
        now = now + 0.001 if queue else max(now + 0.001, deadline(state, now))
    assert said == [("in-use", f"hands off: {TTY} is in use by klippy (pid 7)")]
