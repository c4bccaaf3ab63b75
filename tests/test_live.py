"""`status --follow` on a real terminal: drawn in place, and the terminal as it was in the end."""

import contextlib
import os
import re
import signal
import sys
import termios
import time
from pathlib import Path

import pexpect
import pytest

import portretry_udev
from helpers import assert_eventually
from portretry_udev import live
from test_control import FakeWatcher, serving

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

SOON = 15.0  # seconds; each begins with a Python of its own, and the machine may be busy
SEQUENCE = re.compile(r"\x1b\[(\?\d+[hl]|[\d;]*[A-Za-z])")
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
HOME, BELOW = "\x1b[H", "\x1b[J"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "control.sock"


@pytest.fixture
def served(path):
    with serving(path) as served:
        yield served


class Terminal:
    """A terminal with a person before it: what was written to it, and how that looks."""

    def __init__(self, command, *, rows=24, columns=80, **variables):
        environment = {
            k: v
            for k, v in os.environ.items()
            if k not in ("NO_COLOR", "COLUMNS", "LINES") and not k.startswith("PORTRETRY_")
        }
        environment |= {"PYTHONPATH": str(Path(portretry_udev.__file__).parents[1]), "TERM": "xterm"}
        self.child = pexpect.spawn(
            command[0],
            [str(each) for each in command[1:]],
            env=environment | variables,
            dimensions=(rows, columns),
            encoding="utf-8",
            timeout=SOON,
        )
        self.text = ""
        self.resized = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill(signal.SIGKILL)
        assert_eventually(lambda: not self.child.isalive(), SOON, "it survives SIGKILL")
        self.child.close()

    def read(self):
        """Take in what has come so far."""
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
            while True:
                self.text += self.child.read_nonblocking(65536, 0)
        return self.text

    def expect(self, what, why=""):
        """Wait until this is to be seen on the screen."""
        assert_eventually(
            lambda: self.read() and what in "\n".join(self.screen()), SOON, lambda: why or self.text
        )

    def expect_text(self, what):
        """Wait until this was written, ever."""
        assert_eventually(lambda: what in self.read(), SOON, lambda: self.text)

    def screen(self):
        """The lines of the picture, drawn as a terminal draws it."""
        rows, _ = self.child.getwinsize()
        text = self.text.rpartition(ENTER)[2].partition(LEAVE)[0]
        if self.resized:  # what was drawn before is somewhere else now: only a whole picture counts
            text = HOME + text.rpartition(BELOW)[0].rpartition(HOME)[2] + BELOW
            rows = max(rows, text.count("\n") + 1)
        return drawn(text, rows)

    def resize(self, rows, columns):
        """The window gets another size; whoever is in it is told."""
        self.resized = True
        self.child.setwinsize(rows, columns)

    def flags(self):
        """How the terminal is set: the local flags of termios(3)."""
        return termios.tcgetattr(self.child.child_fd)[3]

    def end(self):
        """Its exit status, once it has ended by itself."""
        assert_eventually(
            lambda: self.read() is not None and not self.child.isalive(), SOON, lambda: self.text
        )
        self.read()  # what it said last
        return self.child.exitstatus


def drawn(text, rows):
    """What a terminal shows after this; only what is known to be harmless may be in it."""
    lines, row, column = [""] * rows, 0, 0
    for index, part in enumerate(SEQUENCE.split(text)):
        if index % 2:
            if part == "H":
                row = column = 0
            elif part == "K":
                lines[row] = lines[row][:column]
            elif part == "J":
                lines[row] = lines[row][:column]
                lines[row + 1 :] = [""] * (rows - row - 1)
            else:
                assert part[-1] == "m" or part in ("?25l", "?7l", "?7h", "?25h"), (
                    f"a strange sequence: {part!r}"
                )
            continue
        for char in part:
            if char == "\r":
                column = 0
            elif char == "\n":
                assert row < rows - 1, "it scrolls"
                row += 1
            else:
                assert char.isprintable(), f"a strange character: {char!r}"
                lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
                column += 1
    return lines


def following(served, *more, **options):
    command = [sys.executable, "-m", "portretry_udev", "status", "--follow", "--control", served.path, *more]
    return Terminal(command, **options)


def test_it_is_drawn_in_place(served):
    """A change replaces what it changes; nothing scrolls, and nothing is left of the old."""
    with following(served) as terminal:
        terminal.expect("Ctrl-C ends this")
        before = [line.rstrip() for line in terminal.screen()]
        assert before[0].startswith("NAME   STATE")
        served.watchers["mk3"].show(state="connected", why="OctoPrint is connected", news=("connected", ""))
        terminal.expect("OctoPrint is connected")
        after = [line.rstrip() for line in terminal.screen()]
        assert after[1].startswith("mk3    connected ")
        assert sum(line.startswith("NAME") for line in after) == 1
        assert [line for line in after if line.startswith("ender")]
        assert sum("disconnected on purpose" in line for line in after) == 1
        assert terminal.text.count(ENTER) == 1


def test_seconds_go_by(served):
    """Without any news the countdown goes on, and starts anew when the service has looked."""
    now = [0.0]
    served.server._clock = lambda: now[0]
    served.watchers["mk3"].show(next_look=2.9)
    served.watchers["ender"].show(next_look=60.0)
    with following(served) as terminal:
        for said in ("in 3 s", "in 2 s", "in 1 s"):
            terminal.expect(said)
        served.watchers["mk3"].show(next_look=30.0)
        terminal.expect("in 30 s")


def test_a_quiet_view_asks_rarely(served):
    """The service is asked when a look is over, not each second: that costs it a look into /proc."""
    asked = []
    take = served.server._take
    served.server._take = lambda peer, line: (asked.append(line), take(peer, line))
    far = 3600 + 1e9
    for watcher in served.watchers.values():
        watcher.show(next_look=far)
    with following(served) as terminal:
        terminal.expect("Ctrl-C ends this")
        drawings = terminal.read().count("\x1b[H")
        served.watchers["mk3"].show(since=time.time())
        served.watchers["mk3"].show(news=("held", "again"))
        terminal.expect("3 s ", "no second goes by")
        assert terminal.read().count("\x1b[H") > drawings
        assert len(asked) == 2, asked  # one to begin with, one to follow


def test_ctrl_c_leaves_a_sane_terminal(served):
    """Status 130; cursor, screen, wrapping and echo are back; what was seen last stays to be read."""
    with following(served) as terminal:
        terminal.expect("Ctrl-C ends this")
        assert not terminal.child.getecho()
        assert {"\x1b[?25l", "\x1b[?7l"} <= set(re.findall(r"\x1b\[\?\d+[hl]", terminal.text))
        terminal.child.send("typed in between")
        terminal.child.sendintr()
        assert terminal.end() == 130
        assert "typed" not in terminal.text
        left = terminal.text.rpartition(LEAVE)[2]
        assert re.findall(r"\x1b\[\?\d+[hl]", terminal.text)[-3:] == ["\x1b[?7h", "\x1b[?25h", LEAVE]
        assert "disconnected on purpose" in left
        assert "Ctrl-C" not in left


def test_in_a_shell_with_job_control(served):
    """Ctrl-Z gives the terminal back as it was, `fg` takes it again, Ctrl-C ends it with 130."""
    command = f"{sys.executable} -m portretry_udev status --follow --control {served.path}"
    with Terminal(["/bin/bash", "--norc", "--noprofile", "--noediting", "-i"], PS1="ready> ") as terminal:
        terminal.expect_text("ready> ")
        terminal.child.sendline(command)
        terminal.expect_text("Ctrl-C ends this")
        terminal.child.sendcontrol("z")
        terminal.expect_text("Stopped")
        assert terminal.text.count(LEAVE) == 1
        terminal.child.sendline("stty -a | grep -ow -e '-*echo'; echo is=$?")
        terminal.expect_text("is=0")
        assert re.search(r"^echo\r?$", terminal.text, re.MULTILINE)
        served.watchers["mk3"].show(state="faulted", news=("faulted", ""))
        terminal.child.sendline("fg")
        assert_eventually(lambda: terminal.read().count(ENTER) == 2, SOON, lambda: terminal.text)
        assert_eventually(
            lambda: "faulted" in terminal.read().rpartition(ENTER)[2], SOON, lambda: terminal.text
        )
        terminal.child.sendintr()
        terminal.expect_text("ready> ")
        terminal.child.sendline("echo status=$?")
        terminal.expect_text("status=130")
        terminal.child.sendline("exit")
        terminal.end()
        assert terminal.text.count(LEAVE) == 2


def test_a_service_that_ends(served):
    """The terminal is given back, and one line says why; status 69."""
    with following(served) as terminal:
        terminal.expect("Ctrl-C ends this")
        served.stop()
        served.server.close()
        served.server.close = lambda: None
        for peer in list(served.server._peers.values()):
            served.server._drop(peer)
        assert terminal.end() == os.EX_UNAVAILABLE
        left = terminal.text.rpartition(LEAVE)[2]
        assert left.rstrip().splitlines()[-1].startswith("portretry-udev: ")
        assert terminal.text.count(LEAVE) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_leave_a_sane_terminal(served, number):
    """As Ctrl-C, with the status of that signal."""
    with following(served) as terminal:
        terminal.expect("Ctrl-C ends this")
        terminal.child.kill(number)
        assert terminal.end() == 128 + number
        assert terminal.text.count(LEAVE) == 1
        assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")


def test_impatient_people(served):
    """Ctrl-C again and again leaves nothing half done."""
    with following(served) as terminal:
        terminal.expect("Ctrl-C ends this")
        assert terminal.flags() & termios.NOFLSH  # the kernel keeps what was written when ^C is typed
        for _ in range(20):
            terminal.child.kill(signal.SIGINT)
        assert terminal.end() == 130
        assert not terminal.flags() & termios.NOFLSH
        assert re.findall(r"\x1b\[\?\d+[hl]", terminal.text)[-3:] == ["\x1b[?7h", "\x1b[?25h", LEAVE]
        assert "Traceback" not in terminal.text


def test_a_window_that_changes(path):
    """Made small, it is drawn anew without scrolling; what has no room is counted; made big, all is there."""
    many = serving(path, *(FakeWatcher(f"printer{i}") for i in range(6)))
    with many as served, following(served) as terminal:
        terminal.expect("Ctrl-C ends this")
        terminal.resize(8, 50)
        terminal.expect("lines more: make the window higher")
        screen = terminal.screen()
        assert max(map(len, screen)) <= 50
        assert len(screen) == 8
        assert "NEXT LOOK" not in screen[0]
        terminal.resize(40, 100)
        terminal.expect("Ctrl-C ends this")
        assert "NEXT LOOK" in terminal.screen()[0]
        assert max(map(len, terminal.screen())) <= 80


def test_eighty_columns_and_colours(served):
    """Colours, in 80 columns."""
    with following(served) as terminal:
        terminal.expect("Ctrl-C ends this")
        assert max(len(line) for line in terminal.screen()) <= 80
        assert "\x1b[33mheld" in terminal.text


def test_no_colours(served):
    """NO_COLOR is obeyed; it is drawn in place all the same."""
    with following(served, NO_COLOR="1") as terminal:
        terminal.expect("Ctrl-C ends this")
        assert "m" not in {sequence[-1] for sequence in SEQUENCE.findall(terminal.text)}
        assert ENTER in terminal.text


@pytest.mark.parametrize("more", [{"TERM": "dumb"}, {"flags": ["--json"]}])
def test_not_drawn_in_place(served, more):
    """A terminal that cannot, or JSON: one block, or one line, for each change, and no escape sequences."""
    flags = more.get("flags", [])
    with following(
        served, *flags, NO_COLOR="1", **{k: v for k, v in more.items() if k == "TERM"}
    ) as terminal:
        terminal.expect_text("ender")
        served.watchers["mk3"].show(state="connected", news=("connected", ""))
        terminal.expect_text('"connected"' if flags else " connected ")
        terminal.child.sendintr()
        assert terminal.end() == 130
        assert "\x1b" not in terminal.text
        assert terminal.text.count("NAME") == (0 if flags else 2)


def test_without_a_service(path):
    """The terminal is not even touched."""
    command = [sys.executable, "-m", "portretry_udev", "status", "--follow", "--control", path]
    with Terminal(command) as terminal:
        assert terminal.end() == os.EX_UNAVAILABLE
        assert "\x1b" not in terminal.text


def test_it_is_possible_on_a_terminal_only(monkeypatch):
    """Not here."""
    monkeypatch.setenv("TERM", "xterm")
    assert not live.possible()
