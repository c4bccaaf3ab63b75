"""The simulated printer behaves as the boards that the facts describe, to any host on its node."""

import contextlib
import os
import select
import stat
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import serial

from portretry_udev.simulator import HEATING_FAILED, Printer

HELLO = b"N0 M110 N0*125\n"


@pytest.fixture
def link(tmp_path):
    return tmp_path / "ttyFAKE0"


@contextlib.contextmanager
def opened(link, baudrate=115200, **options):
    with serial.Serial(str(link), baudrate, timeout=2, **options) as port:
        yield port


def ask(port, line, last=b"ok\n"):
    """Send a line and return all up to the line that ends like `last`."""
    port.write(line)
    return port.read_until(last)


def clear_hupcl(port):
    settings = termios.tcgetattr(port.fileno())
    settings[2] &= ~termios.HUPCL
    termios.tcsetattr(port.fileno(), termios.TCSANOW, settings)


def fds():
    entries = list(Path("/proc/self/fd").iterdir())
    return {entry.name for entry in entries if entry.is_symlink()}  # without the listing's own


# -- the firmware's answers ---------------------------------------------------------------------------------


def test_answers_octoprints_handshake(link):
    """Each command of OctoPrint's handshake gets Marlin's answer, numbered and checksummed or not."""
    with Printer(link=link) as printer, opened(link) as port:
        assert ask(port, HELLO) == b"ok\n"
        answer = ask(port, b"N1 M115*39\n")
        assert answer.startswith(b"FIRMWARE_NAME:Marlin ")
        assert b"MACHINE_TYPE:Simulated Printer" in answer
        assert b"\nCap:AUTOREPORT_TEMP:1\n" in answer
        assert ask(port, b"M21\n", b"\nok\n") == b"echo:SD card ok\nok\n"
        assert ask(port, b"M20\n") == b"Begin file list\nbenchy.gco 1000000\nEnd file list\nok\n"
        assert ask(port, b"M105\n", b"@:0 B@:0\n").startswith(b"ok T:21.25 /0.00")
        assert ask(port, b"M27\n") == b"Not SD printing\nok\n"
        assert ask(port, b"G28 ; home\n") == b"ok\n"
        assert ask(port, b"HELLO you\n") == b'echo:Unknown command: "HELLO you"\nok\n'
        assert printer.stats().commands == {
            **dict.fromkeys(("M110", "M115", "M21", "M20", "M105", "M27", "G28", "HELLO"), 1)
        }


def test_lines_may_come_in_pieces_and_with_any_line_end(link):
    """A command split over several writes is one command; CR, LF and empty lines all end or are nothing."""
    with Printer(link=link) as printer, opened(link) as port:
        for piece in (b"\n\r\n;only a remark\nM1", b"1", b"5"):
            port.write(piece)
        sent = len(b"\n\r\n;only a remark\nM115")
        assert printer.wait_for(lambda stats: stats.bytes_in == sent, 2)
        assert not printer.stats().commands
        assert ask(port, b"\r\n").endswith(b"ok\n")
        assert printer.stats().commands == {"M115": 1}
        assert printer.received() == b"\n\r\n;only a remark\nM115\r\n"


def test_a_flood_without_a_line_end_is_bounded(link):
    """A line longer than any command is cut; the next one is heard as ever."""
    with Printer(link=link) as printer, opened(link, write_timeout=5) as port:
        port.write(b"x" * 200_000)
        assert b"Unknown command" in ask(port, b"\n")
        assert ask(port, b"M110\n") == b"ok\n"
        assert printer.stats().bytes_in == 200_006


def test_temperatures_come_by_themselves_when_asked_for(link):
    """M155 starts the reports and M155 S0 ends them; a boot forgets the request."""
    with Printer(link=link, boot_delay=0.01) as printer, opened(link) as port:
        assert ask(port, b"M155 S1\n") == b"ok\n"
        assert port.readline().startswith(b" T:21.25")
        assert ask(port, b"M155 S0\n") == b"ok\n"
        assert printer._firmware.deadline() is None
        ask(port, b"M155 S1\n")
        printer.reset()
        assert port.read_until(b"Settings Loaded\n").startswith(b"start\n")
        assert printer._firmware.deadline() is None


def test_autoreport_is_there_from_the_start(link):
    """With autoreport set a host hears life without a question."""
    with Printer(link=link, autoreport=0.02), opened(link) as port:
        assert port.readline().startswith(b" T:21.25")
        assert port.readline().startswith(b" T:21.25")


# -- power --------------------------------------------------------------------------------------------------


def test_power_on_says_the_banner_after_the_boot_delay(link):
    """Between power and banner the board is silent and loses what it is sent; then it answers."""
    with (
        Printer(link=link, powered=False, boot_delay=0.2, banner=b"start\n") as printer,
        opened(link) as port,
    ):
        assert printer.stats().state == "off"
        switched_on = time.monotonic()
        printer.power_on()
        port.write(b"M115\n")
        assert printer.stats().state == "booting"
        assert port.readline() == b"start\n"
        assert time.monotonic() - switched_on >= 0.2
        assert printer.stats().state == "ready"
        assert not printer.stats().commands
        assert ask(port, b"M110 N0\n") == b"ok\n"


@pytest.mark.parametrize("banner", [None, b""])
def test_a_silent_boot_merely_begins_to_answer(link, banner):
    """Without a banner nothing is said until the host asks."""
    with Printer(link=link, powered=False, boot_delay=0.05, banner=banner) as printer, opened(link) as port:
        printer.power_on()
        assert printer.wait_for(lambda stats: stats.state == "ready", 2)
        assert printer.stats().bytes_out == 0
        assert ask(port, b"M110\n") == b"ok\n"


def test_power_off_leaves_the_node_and_swallows_input(link):
    """A printer switched off in place keeps its node open for the host, and says nothing more."""
    with Printer(link=link, autoreport=0.01) as printer, opened(link) as port:
        port.readline()
        printer.power_off()
        said = printer.stats().bytes_out
        port.write(b"M115\n")
        assert printer.wait_for(lambda stats: stats.bytes_in == 5, 2)
        stats = printer.stats()
        assert (stats.state, stats.holders, stats.commands, stats.bytes_out) == ("off", 1, {}, said)
        assert link.exists()


def test_power_on_twice_boots_once(link):
    """Switching on what is on does nothing."""
    with Printer(link=link, banner=b"start\n") as printer, opened(link) as port:
        printer.power_on()
        assert printer.stats().state == "ready"
        assert ask(port, b"M110\n") == b"ok\n"


def test_a_hung_board_swallows_everything_until_it_is_not(link):
    """Hung means: powered, node there, nothing said, nothing heard."""
    with Printer(link=link, autoreport=0.01) as printer, opened(link) as port:
        printer.hung = True
        said = printer.stats().bytes_out
        port.write(b"M115\n")
        assert printer.wait_for(lambda stats: stats.bytes_in == 5, 2)
        assert printer.stats().bytes_out == said
        assert printer.hung
        printer.hung = False
        assert ask(port, b"M110\n").endswith(b"ok\n")
        assert printer.stats().commands == {"M110": 1}


def test_a_board_may_be_deaf_to_one_command_alone(link):
    """What it is deaf to has no answer and no effect; all else is answered, and that too once it hears."""
    with Printer(link=link) as printer, opened(link) as port:
        printer.deaf_to = frozenset({"M110", "M112"})
        port.write(HELLO + b"m112 ; now\n")
        assert ask(port, b"M115\n").startswith(b"FIRMWARE_NAME:")
        assert printer.stats().commands == {"M115": 1}
        assert printer.stats().state == "ready"
        printer.deaf_to = frozenset()
        assert printer.deaf_to == frozenset()
        assert ask(port, HELLO) == b"ok\n"


def test_a_fault_is_told_and_lasts_until_the_power_comes_back(link):
    """kill() says Marlin's two lines; then there is silence until a power cycle."""
    with Printer(link=link, boot_delay=0.01, banner=b"start\n") as printer, opened(link) as port:
        printer.kill()
        assert port.readline() == f"Error:{HEATING_FAILED}\n".encode()
        assert port.readline() == b"Error:Printer halted. kill() called!\n"
        port.write(b"M115\n")
        assert printer.wait_for(lambda stats: stats.bytes_in == 5, 2)
        printer.power_on()
        assert (printer.stats().state, printer.stats().commands) == ("dead", {})
        said = printer.stats().bytes_out
        printer.kill("again")
        assert printer.stats().bytes_out == said
        printer.power_off()
        printer.power_on()
        assert port.readline() == b"start\n"


def test_m112_stops_the_board(link):
    """OctoPrint's emergency stop leaves the board dead, as on a real one."""
    with Printer(link=link) as printer, opened(link) as port:
        port.write(b"M112\n")
        assert port.read_until(b"called!\n").startswith(b"Error:M112 received\n")
        assert printer.stats().state == "dead"


def test_busy_lines_come_first_and_the_answers_afterwards(link):
    """While busy the board says so; what it was asked meanwhile is answered in order at the end."""
    with Printer(link=link, busy_interval=0.05) as printer, opened(link) as port:
        printer.busy(0.2)
        port.write(b"M110\nM27\n")
        said = port.read_until(b"Not SD printing\nok\n")
        assert said.endswith(b"busy: processing\nok\nNot SD printing\nok\n")
        assert 3 <= said.count(b"echo:busy: processing\n") <= 5


def test_the_sd_counter_advances_until_a_reset_or_a_power_cut(link):
    """M27 tells a growing position while a print from SD runs; a reset and a power cut both end it."""
    with Printer(link=link, boot_delay=0.01, banner=b"start\n") as printer, opened(link) as port:
        printer.start_sd_print()
        assert port.readline() == b"File opened:benchy.gco Size:1000000\n"
        assert port.readline() == b"File selected\n"
        assert printer.wait_for(lambda stats: stats.sd_position >= 50, 2)
        assert b"SD printing byte" in ask(port, b"M27\n")
        assert printer.wait_for(lambda stats: stats.sd_position >= 100, 2)
        printer.reset()
        assert (printer.stats().sd_position, printer.stats().resets) == (0, 1)
        assert port.readline() == b"start\n"
        assert ask(port, b"M27\n") == b"Not SD printing\nok\n"
        printer.start_sd_print()
        assert printer.wait_for(lambda stats: stats.sd_position > 0, 2)
        printer.power_off()
        assert (printer.stats().sd_position, printer.stats().resets) == (0, 1)
        printer.start_sd_print()
        assert printer.stats().sd_position == 0


def test_a_host_prints_from_sd_by_m23_m24_m25(link):
    """The host's own commands select, start and pause the print."""
    with Printer(link=link) as printer, opened(link) as port:
        ask(port, b"M24\n")
        assert ask(port, b"M27\n") == b"Not SD printing\nok\n"
        assert ask(port, b"M23 benchy.gco\n") == b"File opened:benchy.gco Size:1000000\nFile selected\nok\n"
        ask(port, b"M24\n")
        assert printer.wait_for(lambda stats: stats.sd_position > 0, 2)
        ask(port, b"M25\n")
        assert ask(port, b"M27\n") == b"Not SD printing\nok\n"
        assert printer.stats().sd_position == printer.stats().sd_position > 0


# -- the baudrate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baudrate", [115200, 250000, 9600])
def test_the_hosts_baudrate_is_seen_special_ones_too(link, baudrate):
    """Stats tell the rate that the host has set; the board answers at its own."""
    with Printer(link=link, baudrate=baudrate) as printer, opened(link, baudrate) as port:
        assert printer.stats().baud == baudrate
        assert ask(port, b"M110\n") == b"ok\n"


def test_a_wrong_baudrate_makes_garbage_and_loses_input(link):
    """At another rate the board's words arrive without one sensible byte, and the host's do not arrive."""
    with Printer(link=link, baudrate=250000, autoreport=0.02) as printer, opened(link, 115200) as port:
        garbage = port.read(40)
        assert len(garbage) == 40
        assert min(garbage) >= 0x80
        port.write(b"M115\n")
        assert printer.wait_for(lambda stats: stats.bytes_in == 5, 2)
        assert not printer.stats().commands
        port.baudrate = 250000
        port.reset_input_buffer()
        assert b"FIRMWARE_NAME" in ask(port, b"\nM115\n")


# -- the node -----------------------------------------------------------------------------------------------


def test_unplug_hangs_up_and_takes_the_node_away(link):
    """Whoever has the port open reads its end; the link is gone, and nothing else in the folder."""
    with Printer(link=link) as printer, opened(link) as port:
        assert printer.plugged
        printer.unplug()
        assert not printer.plugged
        with pytest.raises(serial.SerialException, match="returned no data"):
            port.read(1)
        assert list(link.parent.iterdir()) == []
        assert printer.stats().baud is None
        printer.unplug()
        printer.say(b"nobody hears this\n")
        assert printer.stats().bytes_out == 0


def test_plug_makes_a_new_node_that_works(link):
    """After unplug and plug the same link leads to a working port, and the power was never off."""
    with Printer(link=link, plugged=False) as printer:
        assert not link.is_symlink()
        for times in (1, 2, 3):
            printer.plug()
            printer.plug()
            assert stat.S_ISCHR(link.stat().st_mode)
            with opened(link) as port:
                assert ask(port, b"M110\n") == b"ok\n"
            assert printer.wait_for(lambda stats, n=times: stats.closes == n, 2)
            printer.unplug()
        assert printer.stats().opens == 3
        assert printer.stats().commands == {"M110": 3}


def test_a_host_that_keeps_a_dead_node_gets_another_one_next_time(link):
    """A held hung-up descriptor does not disturb the new node; its late close is counted as a close."""
    with Printer(link=link) as printer, opened(link) as old:
        first = link.readlink()
        printer.unplug()
        printer.plug()
        assert link.readlink() != first
        with opened(link) as port:
            assert ask(port, b"M110\n") == b"ok\n"
            old.close()
            assert printer.wait_for(lambda stats: stats.closes == 1, 2)
            assert printer.stats().holders == 1
            assert ask(port, b"M110\n") == b"ok\n"


def test_the_link_is_there_at_every_moment_of_a_replug_or_not_at_all(link):
    """A link that somebody else put in its place is replaced at plug, and left alone at unplug."""
    link.symlink_to("/nonexistent")
    with Printer(link=link) as printer:
        assert link.exists()
        link.unlink()
        link.symlink_to("/nonexistent")
        printer.unplug()
        assert link.readlink() == Path("/nonexistent")


def test_opens_and_closes_are_counted_also_octoprints_pattern(link):
    """Open, close, open within milliseconds are two opens; a second holder is seen as such."""
    with Printer(link=link) as printer:
        assert (printer.stats().opens, printer.stats().holders) == (0, 0)
        with opened(link):
            pass
        with opened(link) as port:
            assert printer.wait_for(lambda stats: (stats.opens, stats.closes, stats.holders) == (2, 1, 1), 2)
            with opened(link):
                assert printer.wait_for(lambda stats: stats.holders == 2, 2)
            assert printer.wait_for(lambda stats: (stats.opens, stats.closes, stats.holders) == (3, 2, 1), 2)
            assert ask(port, b"M110\n") == b"ok\n"
        assert printer.wait_for(lambda stats: (stats.closes, stats.holders) == (3, 0), 2)


def test_the_simulator_itself_never_holds_the_node(link):
    """No process has the node open until a host does, so a search of /proc/*/fd finds hosts only."""
    with Printer(link=link, autoreport=0.01):
        node = link.stat().st_rdev
        held = []
        for fd in fds():
            with contextlib.suppress(OSError):
                held.append(Path("/proc/self/fd", fd).stat().st_rdev)
        assert node not in held


def test_what_is_said_to_nobody_is_lost(link):
    """Bytes said while the port is closed, or left unread by the last host, do not reach the next one."""
    with Printer(link=link) as printer:
        printer.say(b"before any open\n")
        with opened(link) as port:
            printer.say(b"unread\n")
            assert select.select([port], [], [], 2)[0] == [port]
            assert port.in_waiting == 7
        assert printer.wait_for(lambda stats: stats.holders == 0, 2)
        printer.say(b"after the close\n")
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)  # pyserial would flush
        try:
            assert printer.wait_for(lambda stats: stats.holders == 1, 2)
            printer.say(b"now\n")
            assert os.read(fd, 100) == b"now\n"
        finally:
            os.close(fd)
        assert printer.stats().bytes_out == len(b"unread\nnow\n")


def test_a_fifo_keeps_its_first_128_bytes_for_the_next_open(link):
    """With fifo=True a late host gets the beginning of what was said to nobody, once."""
    with Printer(link=link, fifo=True) as printer:
        printer.say(b"start\n" + b"x" * 200)
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            assert printer.wait_for(lambda stats: stats.bytes_out == 128, 2)
            assert os.read(fd, 500) == b"start\n" + b"x" * 122
            with pytest.raises(BlockingIOError):
                os.read(fd, 500)
        finally:
            os.close(fd)


def test_a_cooked_node_echoes_until_it_is_set_raw(link):
    """As the kernel makes a tty: what waits in it at an open comes back to the board as a command."""
    with Printer(link=link, fifo=True, cooked=True) as printer:
        printer.say(b"start\n")
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            assert printer.wait_for(lambda stats: stats.commands["START"] == 1, 2)
        finally:
            os.close(fd)
    with Printer(link=link) as printer:
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            assert termios.tcgetattr(fd)[3] & termios.ECHO == 0
            assert termios.tcgetattr(fd)[2] & termios.HUPCL
        finally:
            os.close(fd)


def test_looking_at_the_stats_takes_nothing_from_the_host(link):
    """A look right after an open does not leave the printer asleep to what the host says next."""
    with Printer(link=link) as printer:
        for opens in range(1, 51):
            with opened(link) as port:
                while printer.stats().opens < opens:
                    pass
                assert ask(port, b"M110\n") == b"ok\n"


# -- the reset at an open -----------------------------------------------------------------------------------


def test_each_first_open_resets_a_board_that_does_so(link):
    """An open of the closed port reboots the board; an open beside another one does not."""
    with Printer(link=link, reset_on_open=True, boot_delay=0.02, banner=b"start\n") as printer:
        for times in (1, 2):
            with opened(link) as port:
                assert port.readline() == b"start\n"
                with opened(link):
                    assert printer.wait_for(lambda stats: stats.holders == 2, 2)
                assert printer.stats().resets == times
            assert printer.wait_for(lambda stats: stats.holders == 0, 2)


def test_hupcl_cleared_at_the_last_close_spares_the_next_open_its_reset(link):
    """With HUPCL off DTR stays up: no edge and no reset, and the print from SD goes on."""
    with Printer(link=link, reset_on_open=True, boot_delay=0.02, banner=b"start\n") as printer:
        with opened(link) as port:
            assert port.readline() == b"start\n"
            clear_hupcl(port)
            printer.start_sd_print()
        for opens in (2, 3):
            with opened(link) as port:
                assert printer.wait_for(lambda stats, n=opens: stats.opens == n, 2)
                assert b"SD printing byte" in ask(port, b"M27\n")
            assert printer.wait_for(lambda stats: stats.holders == 0, 2)
        assert printer.stats().resets == 1
        printer.unplug()
        printer.plug()
        with opened(link) as port:
            assert port.readline() == b"start\n"
        assert printer.stats().resets == 2


def test_a_board_without_power_is_not_reset(link):
    """DTR reaches no MCU that has no power."""
    with Printer(link=link, reset_on_open=True, powered=False) as printer, opened(link):
        assert printer.wait_for(lambda stats: stats.holders == 1, 2)
        printer.reset()
        assert (printer.stats().resets, printer.stats().state) == (0, "off")


def test_an_open_that_resets_also_clears_a_fault(link):
    """Why a fault must not be opened behind a person's back: the board comes up as if nothing were."""
    with Printer(link=link, reset_on_open=True, boot_delay=0.01, banner=b"start\n") as printer:
        with opened(link) as port:
            port.readline()
            printer.kill()
        assert printer.wait_for(lambda stats: (stats.holders, stats.state) == (0, "dead"), 2)
        with opened(link) as port:
            assert port.readline() == b"start\n"


# -- life ---------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind(link):
    """After close no descriptor, thread or link is left, also after many plugs; a second close is nothing."""
    before, threads = fds(), threading.active_count()
    with Printer(link=link) as printer:
        for _ in range(5):
            printer.unplug()
            printer.plug()
    printer.close()
    assert fds() <= before
    assert threading.active_count() == threads
    assert not link.is_symlink()
    assert printer.stats().state == "ready"


def test_it_must_be_started(link):
    """A printer that is not started says so instead of half working."""
    printer = Printer(link=link)
    with pytest.raises(RuntimeError, match="not started"):
        printer.plug()
    assert printer.stats().opens == 0


def test_an_unusable_folder_is_an_error_and_leaves_nothing(tmp_path):
    """A link in a folder that is not there raises, and no descriptor leaks."""
    before = fds()
    with pytest.raises(FileNotFoundError):
        Printer(link=tmp_path / "none" / "ttyFAKE0").start()
    assert fds() <= before


def test_waiting_costs_nothing(link):
    """With the port closed, before and after an open, the printer's thread sleeps; start() twice is once."""
    with Printer(link=link) as printer:
        assert printer.start() is printer
        with opened(link) as port:
            ask(port, b"M110\n")
        assert printer.wait_for(lambda stats: stats.holders == 0, 2)
        used = time.process_time()
        assert not threading.Event().wait(0.3)
        assert time.process_time() - used < 0.05


def test_a_waiter_gives_up_in_time(link):
    """wait_for returns False when its time is over."""
    with Printer(link=link) as printer:
        begun = time.monotonic()
        assert not printer.wait_for(lambda stats: stats.opens > 0, 0.1)
        assert 0.1 <= time.monotonic() - begun < 1


def test_another_process_can_be_the_host(link):
    """An open from outside counts like one from inside."""
    script = (
        f"import serial; s = serial.Serial({str(link)!r}, 115200, timeout=5); s.write(b'M110\\n'); s.read(3)"
    )
    with Printer(link=link) as printer:
        subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
        assert printer.wait_for(lambda stats: (stats.opens, stats.closes) == (1, 1), 2)
        assert printer.stats().commands == {"M110": 1}


def test_many_threads_may_use_it_at_once(link):
    """Concurrent plugs, words and looks neither fail nor lose count."""
    with Printer(link=link, autoreport=0.001) as printer:
        wrong = []

        def play(action):
            try:
                for _ in range(50):
                    action()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test tells it
                wrong.append(error)

        actions = (printer.plug, printer.unplug, printer.stats, lambda: printer.say(b"x"), printer.power_on)
        threads = [threading.Thread(target=play, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        printer.plug()
        with opened(link) as port:
            assert ask(port, b"M110\n").endswith(b"ok\n")
