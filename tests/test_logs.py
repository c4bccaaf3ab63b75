"""How a log line looks: at a terminal, in the journal, in a file."""

import io
import logging
import os
import re
import select

import pytest

from portretry_udev import logs

TIME = r"\d\d:\d\d:\d\d "


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """Our logger is the process's: give it back as it was."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    log = logging.getLogger("portretry_udev")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


@pytest.fixture
def said(tmp_path):
    """A file to log into, and what is in it."""
    with (tmp_path / "log").open("w+") as file:

        def read():
            file.seek(0)
            return file.read()

        yield file, read


@pytest.fixture
def terminal():
    """A terminal to log to, and what it shows."""
    master, slave = os.openpty()
    with open(slave, "w") as stream:  # noqa: PTH123 - a descriptor

        def read(lines=1):
            shown = b""
            while shown.count(b"\n") < lines:  # a terminal delivers in pieces
                assert select.select([master], [], [], 5)[0], shown
                shown += os.read(master, 65536)
            return shown.decode().replace("\r\n", "\n")

        yield stream, read
    os.close(master)


def connect_to_journal(monkeypatch, stream):
    status = os.fstat(stream.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")


def log(name=""):
    return logging.getLogger(f"portretry_udev{name}")


def fail():
    raise ValueError("first line\nsecond line")


def fail_and_log(text):
    try:
        fail()
    except ValueError:
        log().exception(text)


def test_a_line_in_a_file_has_its_time_and_no_colour(said):
    """Plain text: the time of day, then what happened."""
    stream, read = said
    logs.set_up(verbose=False, stream=stream)
    log().warning("%s is %d", "it", 7)
    assert re.fullmatch(TIME + "it is 7\n", read())


def test_the_printers_name_is_in_front(said):
    """Each line of a printer's own log names it, dots and all; other modules' lines name nobody."""
    stream, read = said
    logs.set_up(verbose=False, stream=stream)
    log(".printer.mk3.left").info("held: disconnected on purpose")
    log(".daemon").info("watching")
    assert re.fullmatch(f"{TIME}mk3.left: held: disconnected on purpose\n{TIME}watching\n", read())


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
        (logging.INFO + 5, 6),
    ],
)
def test_the_journal_reads_the_priority_off_the_front(said, monkeypatch, level, priority):
    """Levels become syslog's numbers; the journal has its own time, and wants no colour."""
    stream, read = said
    connect_to_journal(monkeypatch, stream)
    logs.set_up(verbose=True, stream=stream)
    log(".printer.mk3").log(level, "told")
    assert read() == f"<{priority}>mk3: told\n"


def test_every_line_of_a_trace_has_the_journals_priority(said, monkeypatch):
    """Else a trace would be shown as plain information, and a firmware's words could forge a line."""
    stream, read = said
    connect_to_journal(monkeypatch, stream)
    logs.set_up(verbose=False, stream=stream)
    fail_and_log("it died")
    log().error("one\n<6>two\rthree")
    lines = read().splitlines()
    assert lines[0] == "<3>it died"
    assert "<3>ValueError: first line" in lines
    assert "<3>second line" in lines
    assert lines[-3:] == ["<3>one", "<3><6>two", "<3>three"]
    assert all(line.startswith("<3>") for line in lines)


def test_a_trace_at_a_terminal_follows_its_line(said):
    """What died and where: the whole trace, below the line that tells of it."""
    stream, read = said
    logs.set_up(verbose=False, stream=stream)
    fail_and_log("it died")
    first, *rest = read().splitlines()
    assert re.fullmatch(TIME + "it died", first)
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-2:] == ["ValueError: first line", "second line"]


def test_colours_at_a_terminal(terminal):
    """Warnings and errors stand out, information does not."""
    stream, read = terminal
    logs.set_up(verbose=True, stream=stream)
    log().info("fine")
    log().warning("look")
    log().error("bad")
    log().debug("detail")
    assert re.fullmatch(
        f"{TIME}fine\n{TIME}\x1b\\[33mlook\x1b\\[0m\n{TIME}\x1b\\[31mbad\x1b\\[0m\n{TIME}\x1b\\[2mdetail\x1b\\[0m\n",
        read(lines=4),
    )


@pytest.mark.parametrize(("value", "coloured"), [("1", False), ("", True)])
def test_no_color(terminal, monkeypatch, value, coloured):
    """NO_COLOR that is set and not empty (no-color.org) means none."""
    stream, read = terminal
    monkeypatch.setenv("NO_COLOR", value)
    logs.set_up(verbose=False, stream=stream)
    log().error("bad")
    assert ("\x1b" in read()) is coloured


def test_another_journal_stream_is_not_ours(said, monkeypatch, terminal):
    """JOURNAL_STREAM is inherited by children whose stderr leads elsewhere: they are no journal."""
    connect_to_journal(monkeypatch, said[0])
    assert logs.is_journal(said[0])
    assert not logs.is_journal(terminal[0])
    assert not logs.is_journal(io.StringIO())
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not logs.is_journal(said[0])


def test_details_only_when_asked_for_and_nobody_elses(said, capsys):
    """Debug lines need -v; what libraries log (urllib3: the address at every look) stays out."""
    stream, read = said
    logs.set_up(verbose=False, stream=stream)
    log().debug("an event")
    logging.getLogger("urllib3.connectionpool").info("Starting new HTTP connection")
    assert read() == ""
    logs.set_up(verbose=True, stream=stream)
    log().debug("an event")
    assert re.fullmatch(TIME + "an event\n", read())
    assert capsys.readouterr() == ("", "")


def test_stderr_is_the_default_and_stdout_stays_clean(capsys):
    """Stdout is for what was asked for."""
    logs.set_up(verbose=False)
    log().info("watching")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(TIME + "watching\n", err)
