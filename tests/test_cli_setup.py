"""The whole command: a dialogue on a terminal of 80 columns, answers through a pipe, flags and no question.

It runs as its own process, on a machine of the tests' making (``setup_program``): a simulated printer, a
minimal OctoPrint, and a systemd that starts the real service.
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner

import portretry_udev
from bench import KEY, Bench
from helpers import assert_eventually
from keys_server import UUID, KeysServer
from portretry_udev.cli_setup import setup
from setup_program import MACHINE, OCTOPRINTS, PORTS

SOON = 20.0  # seconds; a start of Python, a few requests, a service, on a busy machine
PROGRAM = Path(__file__).with_name("setup_program.py")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LINK = "by-id-mk3"


class World:
    """A printer, an OctoPrint, and a machine on which nothing is set up."""

    def __init__(self, folder, bench, octoprint):
        self.folder, self.bench, self.octoprint = folder, bench, octoprint
        self.machine = folder / "machine"
        self.machine.mkdir()
        self.config = self.machine / "etc/portretry-udev/config.toml"
        self.key = self.machine / "etc/portretry-udev/mk3.key"
        self.link = folder / LINK
        self.link.symlink_to(bench.link)
        self.control = folder / "sock"
        self.ports = [
            {
                "node": os.path.realpath(bench.link),
                "by_id": str(self.link),
                "vendor": "2c99",
                "product": "0002",
                "serial": "CZPX1",
                "name": "Original Prusa i3 MK3",
                "driver": "cdc_acm",
            }
        ]
        self.plugged(True)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("PORTRETRY_")}
        self.env |= {
            "PYTHONPATH": os.pathsep.join(
                [str(Path(portretry_udev.__file__).parents[1]), str(PROGRAM.parent)]
            ),
            PORTS: str(folder / "ports"),
            OCTOPRINTS: octoprint.url,
            MACHINE: str(self.machine),
            "PORTRETRY_CONTROL": str(self.control),
            "TERM": "xterm",
        }

    def plugged(self, there):
        """What the machine sees of its ports from now on."""
        new = self.folder / "ports.new"
        new.write_text(json.dumps(self.ports if there else []))
        new.replace(self.folder / "ports")

    def give_key(self, key=KEY):
        self.key.parent.mkdir(parents=True, exist_ok=True)
        self.key.touch(0o600)
        self.key.write_text(key)
        return self.key

    def run(self, *arguments, typed=""):
        """It runs to its end, with pipes; what it said must hold no key."""
        done = subprocess.run(
            [sys.executable, PROGRAM, "setup", *map(str, arguments)],
            input=typed,
            capture_output=True,
            text=True,
            timeout=SOON * 2,
            env=self.env,
            check=False,
        )
        assert KEY not in done.stdout + done.stderr
        return done

    def terminal(self, *arguments, **env):
        """It runs on a terminal of 80 columns."""
        return pexpect.spawn(
            sys.executable,
            [str(PROGRAM), "setup", *map(str, arguments)],
            env=self.env | env,
            dimensions=(24, 80),
            timeout=SOON,
            encoding="utf-8",
        )

    def commands(self):
        path = self.machine / "run/commands"
        return path.read_text().splitlines() if path.exists() else []

    def files(self):
        """All files of the machine, with what is in them, but for the service's own."""
        return {
            path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in (self.machine / "etc").rglob("*")
            if path.is_file()
        }

    def stop(self):
        """End the service, if one was started."""
        pid = self.machine / "run/pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
            log = self.machine / "run/log"
            assert_eventually(lambda: not self.control.exists(), SOON, log.read_text)


@pytest.fixture
def world(tmp_path):
    with Bench(tmp_path) as bench, KeysServer(bench.octoprint, KEY, answer=None) as octoprint:
        world = World(tmp_path, bench, octoprint)
        yield world
        world.stop()


def lines_of(text):
    """What stands on the screen in the end, line by line: what was redrawn only once."""
    text = COLOUR.sub("", text).replace("\r\n", "\n")
    return [line.rpartition("\r\x1b[K")[2] for line in text.split("\n")]


class Recorder:
    """Keeps what a terminal was sent."""

    def __init__(self, child):
        self.text = ""
        child.logfile_read = self

    def write(self, text):
        self.text += text

    def flush(self):
        """Nothing waits here."""


# -- a dialogue --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours", [True, False])
def test_from_nothing_to_connected_in_a_dialogue(world, colours):
    """OctoPrint is found, Allow is clicked, the cable pulled and put in, the plan agreed to, and it runs."""
    child = world.terminal(**({} if colours else {"NO_COLOR": "1"}))
    record = Recorder(child)
    child.expect('OctoPrint "Kitchen" at http')
    child.expect(r"How is it to be got\?")
    child.expect(r"Which one\? \[1\] ")
    child.sendline("")
    child.expect("Click Allow in it, or on this page:")
    assert world.octoprint.asked.wait(SOON)
    world.octoprint.answer = True
    child.expect("takes the key of its user admin")
    child.expect("find out: unplug")
    child.expect(r"Which one\? \[1\] ")
    child.sendline("3")
    child.expect("Pull the printer's USB cable now")
    child.expect("Enter goes back to the list")
    world.plugged(False)
    child.expect("is gone.  Now plug it in again.")
    world.plugged(True)
    child.expect("has come .Original Prusa i3 MK3.")
    child.expect("(?s)Port:.*by-id-mk3")  # over two lines, where the folder's name is long
    child.expect("A name for the printer.*original-prusa-i3-mk3.: ")
    child.sendline("mk3")
    child.expect("This is to be written:")
    child.expect(r"\[printers.mk3\]")
    child.expect("Write and run that")
    assert not world.config.exists()
    assert not world.key.exists()
    child.sendline("show")
    child.expect(r"\[Unit\]")  # the unit, whole
    child.expect("Write and run that")
    child.sendline("yes")
    child.expect("mk3 is connected: OctoPrint is connected")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert world.bench.operational()
    assert world.commands() == ["systemctl daemon-reload", "systemctl enable --now portretry-udev.service"]
    assert KEY not in record.text
    assert bool(COLOUR.search(record.text)) == colours


def test_the_screen_is_80_columns_wide(world):
    """No line of ours wraps, but for names that are there to be copied and files that are shown whole."""
    world.give_key()
    child = world.terminal("--octoprint", world.octoprint.url, "--name", "mk3")
    record = Recorder(child)
    child.expect(r"Which one\? \[1\] ")
    child.sendline("")
    child.expect("Write and run that")
    child.sendline("yes")
    child.expect("is connected: ")
    child.expect(pexpect.EOF)
    long = [line for line in lines_of(record.text) if len(line) > 80]
    assert [line for line in long if str(world.folder) not in line] == []


@pytest.mark.parametrize(
    "at", ["How is it to be got", "Click Allow", "serial port", "cable", "A name", "Write and"]
)
def test_ctrl_c_leaves_nothing(world, at):
    """At any question: it is said, and nothing is written."""
    child = world.terminal()
    steps = [
        ("How is it to be got", ""),
        ("Click Allow", None),
        ("serial port", "3"),
        ("cable", None),
        ("A name", "mk3"),
        ("Write and", "yes"),
    ]
    world.octoprint.answer = None if at == "Click Allow" else True
    for text, answer in steps:
        child.expect(text)
        if text == at:
            break
        if text == "cable":
            child.expect("Enter goes back")
            world.plugged(False)
            child.expect("is gone")
            world.plugged(True)
        elif answer is not None:
            child.expect(r"\] |: ")
            child.sendline(answer)
    child.sendintr()
    child.expect("given up")
    child.expect("nothing was changed")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert not (world.machine / "etc").exists()
    assert world.commands() == []


def test_no_is_no(world):
    """Who does not agree changes nothing."""
    world.give_key()
    before = world.files()
    child = world.terminal("--name", "mk3", "--octoprint", world.octoprint.url, "--port", world.link)
    child.expect("Write and run that")
    child.sendline("no")
    child.expect("nothing was changed")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 1
    assert world.files() == before


def test_a_live_line_tells_what_is_waited_for(world):
    """The printer is off: that is redrawn in place; when it comes it is connected."""
    world.give_key()
    world.bench.printer.power_off()
    child = world.terminal("--yes", "--name", "mk3", "--octoprint", world.octoprint.url)
    child.expect("\r\x1b\\[K\x1b\\[33mlistening\x1b\\[0m  .* s\\)\r")
    world.bench.printer.power_on()
    child.expect("mk3 is connected")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_ends_the_waiting_only(world):
    """All is set up, and goes on without us."""
    world.give_key()
    world.bench.printer.power_off()
    child = world.terminal("--yes", "--name", "mk3", "--octoprint", world.octoprint.url)
    child.expect("listening")
    child.sendintr()
    child.expect("given up waiting; all is set up")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert world.config.exists()
    world.bench.printer.power_on()
    assert_eventually(world.bench.operational, SOON, "connected by the service")


def test_enter_goes_back_from_the_cable(world):
    """Who cannot pull it chooses from the list."""
    world.give_key()
    child = world.terminal("--name", "mk3", "--octoprint", world.octoprint.url, "--no-start")
    child.expect(r"Which one\? \[1\] ")
    child.sendline("3")
    child.expect("Enter goes back")
    child.sendline("")
    child.expect(r"Which one\? \[1\] ")
    child.sendline("1")
    child.expect("Write and run that")
    child.sendline("y")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_an_octoprint_that_nobody_has_set_up(world):
    """It gives no key and takes none: what to do is said, before anything is asked."""
    world.octoprint.setup_done = False
    world.give_key()
    for flags in ([], ["--yes", "--name", "mk3"]):
        done = world.run(*flags)
        assert done.returncode == 1
        assert "is not set up yet: open it in a browser, go through its wizard" in done.stderr
        assert "key is needed" not in done.stderr
        assert not world.config.exists()


# -- through a pipe ----------------------------------------------------------------------------------------


def test_answers_through_a_pipe(world):
    """Plain lines, no colours, nothing redrawn; stdout holds the summary and nothing else."""
    world.octoprint.answer = True
    done = world.run("--json", typed="1\n1\nmk3\nyes\n")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    summary = json.loads(done.stdout)
    assert summary["state"] == "connected"
    assert summary["changed"][:2] == [str(world.key), str(world.config)]
    assert (summary["printer"], summary["port"], summary["version"]) == ("mk3", str(world.link), "1.11.8")


def test_a_pipe_that_ends_is_nobody(world):
    """Nothing is taken for granted, and nothing is written."""
    world.octoprint.answer = True
    done = world.run(typed="1\n")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("portretry-udev: given up\nportretry-udev: nothing was changed\n")
    assert not (world.machine / "etc").exists()


def test_a_denied_key_is_told(world):
    """Somebody clicked Deny."""
    world.octoprint.answer = False
    done = world.run(typed="1\n")
    assert done.returncode == 1
    assert "somebody clicked Deny" in done.stderr
    assert "nothing was changed" in done.stderr


# -- without a question ------------------------------------------------------------------------------------


def test_yes_asks_nothing_and_twice_changes_nothing(world):
    """As a farm runs it: all that was not given is clear; the second time not a file is touched."""
    world.give_key()
    flags = ["--yes", "--json", "--name", "mk3", "--octoprint", world.octoprint.url]
    first = world.run(*flags)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["state"] == "connected"
    before, commands = world.files(), world.commands()
    second = world.run(*flags)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["changed"] == []
    assert "nothing to do" in second.stderr
    assert world.files() == before
    assert world.commands() == commands
    bare = world.run("--yes", "--json")  # all of it is known by now
    assert bare.returncode == 0, bare.stderr
    assert json.loads(bare.stdout) == json.loads(second.stdout)


def test_another_answer_changes_what_it_is_about(world):
    """The configuration of before is kept, and the service reads the new one."""
    world.give_key()
    world.run("--yes", "--name", "mk3")
    old = world.config.read_text()
    done = world.run("--yes", "--json", "--interval", "2.5")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"][0] == str(world.config)
    assert "+interval = 2.5" in done.stderr
    assert world.config.with_name("config.toml~").read_text() == old
    assert world.commands()[-1] == "systemctl reload portretry-udev.service"


def test_a_key_given_in_a_file_is_kept_where_the_service_sees_it(world, tmp_path):
    """A file in a folder that is gone with the next boot is none: the key is stored in its usual place."""
    given = tmp_path / "given.key"
    given.touch(0o600)
    given.write_text(KEY)
    done = world.run("--yes", "--json", "--api-key-file", given, "--name", "mk3", "--no-start")
    assert done.returncode == 0, done.stderr
    assert world.key.read_text() == f"{KEY}\n"
    assert "api_key_file" not in world.config.read_text()
    assert json.loads(done.stdout)["state"] is None


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        (["--name", "mk3"], "--api-key-file FILE"),
        (["--name", "mk3", "--octoprint", "NONE"], "not up yet"),
    ],
)
def test_what_is_not_clear_names_its_flag(world, flags, flag):
    """One line, a status, and nothing was changed."""
    flags = ["http://127.0.0.1:1" if each == "NONE" else each for each in flags]
    done = world.run("--yes", *flags)
    assert done.returncode == (69 if "http://127.0.0.1:1" in flags else 64)
    assert flag in done.stderr
    assert done.stderr.endswith("nothing was changed\n")
    assert not (world.machine / "etc").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--name", "../x"],
        ["--octoprint", "octopi.local"],
        ["--octoprint", f"http://user:{KEY}@octopi.local"],
        ["--port", "/dev/ttyUSB0", "--match", "serial=1"],
        ["--match", "serial"],
        ["--match", "colour=red"],
        ["--interval", "0.1"],
        ["--password-stdin"],
        ["--create-user", "--api-key-file", "x"],
        ["--root", "/nowhere"],
    ],
)
def test_flags_that_cannot_be_meant(flags):
    """They are refused at once; a password in an address is not shown."""
    done = CliRunner().invoke(setup, flags)
    assert done.exit_code == 2
    assert "Usage: " in done.output
    assert KEY not in done.output


def test_no_clear_port_and_no_clear_octoprint(world):
    """Two of either: the flag is told; the same OctoPrint by two addresses is one."""
    world.give_key()
    world.ports.append({**world.ports[0], "node": "/dev/null", "by_id": "/dev/disk", "serial": "CZPX2"})
    world.plugged(True)
    world.bench.octoprint.port_preference = None
    done = world.run("--yes", "--name", "mk3")
    assert done.returncode == 64
    assert "--port NODE" in done.stderr
    with KeysServer(world.bench.octoprint, KEY) as same:
        world.env[OCTOPRINTS] = f"{world.octoprint.url} {same.url}"
        assert "--port NODE" in world.run("--yes", "--name", "mk3").stderr
        same.sayings = "Garage", UUID.replace("1", "2")
        done = world.run("--yes", "--name", "mk3")
    assert done.returncode == 64
    assert "--octoprint URL" in done.stderr


def test_a_printer_that_does_not_come_is_told(world):
    """All is set up; the status says that it is not connected, and what is missing and what next is said."""
    world.give_key()
    world.bench.printer.power_off()
    done = world.run("--yes", "--json", "--name", "mk3", "--wait", "2")
    assert done.returncode == 75
    assert json.loads(done.stdout)["state"] == "listening"
    assert "mk3 is not connected after 2 s: listening: waiting until the firmware" in done.stderr
    assert "Is the printer switched on?" in done.stderr
    assert "sudo portretry-udev doctor" in done.stderr


def test_an_octoprint_that_does_not_offer_the_port(world):
    """The line to add is said."""
    world.give_key()
    world.bench.octoprint.ports = []
    done = world.run("--yes", "--name", "mk3", "--no-start")
    assert done.returncode == 0
    assert f"Additional serial ports:\nportretry-udev:   {world.link}" in done.stderr


def test_a_configuration_with_mistakes_is_not_touched(world):
    """They are told before anything is asked of anybody."""
    world.give_key()
    world.config.write_text("[printers.mk3]\nprot = 1\n")
    done = world.run("--yes")
    assert done.returncode == 78
    assert "did you mean port?" in done.stderr
    assert world.config.read_text() == "[printers.mk3]\nprot = 1\n"


def test_a_table_that_a_program_must_not_change(world):
    """The lines to write by hand are said."""
    world.give_key()
    text = f'[printers]\nmk3.octoprint = "{world.octoprint.url}"\n'
    world.config.write_text(text)
    done = world.run("--yes", "--port", world.link)
    assert done.returncode == 78
    assert f'portretry-udev:   port = "{world.link}"' in done.stderr
    assert world.config.read_text() == text


def test_a_neighbour_without_a_key(world):
    """The service starts for all printers or not at all: that is told before anything is written."""
    world.give_key()
    text = '[printers.ender]\noctoprint = "http://127.0.0.1:1"\nport = "/dev/ttyS9"\n'
    world.config.write_text(text)
    done = world.run("--yes", "--name", "mk3", "--octoprint", world.octoprint.url)
    assert done.returncode == 78
    assert "portretry-udev login ender" in done.stderr
    assert world.config.read_text() == text


# -- elsewhere ---------------------------------------------------------------------------------------------


def test_a_system_in_the_making(world, tmp_path):
    """Everything is written below it, and nothing is run."""
    del world.env[MACHINE]
    root = tmp_path / "image"
    root.mkdir()
    given = tmp_path / "given.key"
    given.touch(0o600)
    given.write_text(KEY)
    flags = ["--yes", "--root", root, "--name", "mk3", "--api-key-file", given]
    assert world.run(*flags).returncode == 0
    assert (root / "etc/portretry-udev/mk3.key").read_text() == f"{KEY}\n"
    assert (root / "etc/systemd/system/portretry-udev.service").exists()
    assert "All is in place: nothing to do." in world.run(*flags).stderr


def test_a_configuration_of_ones_own(world, tmp_path):
    """Nothing is installed; what to run is said, and that works."""
    del world.env[MACHINE]
    config = tmp_path / "mine/config.toml"
    given = tmp_path / "given.key"
    given.touch(0o600)
    given.write_text(KEY)
    done = world.run("--yes", "--config", config, "--name", "mk3", "--api-key-file", given)
    assert done.returncode == 0, done.stderr
    assert f"  portretry-udev watch --config {config}" in done.stderr
    assert sorted(path.name for path in config.parent.iterdir()) == ["config.toml", "mk3.key"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_who_is_not_root_is_told_before_anything_is_asked(world):
    """With the line to type, as it was typed."""
    for folder in PROGRAM.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"needs a checkout that another user may run: {folder} is closed to others")
    del world.env[MACHINE]
    command = [
        sys.executable,
        PROGRAM,
        "setup",
        "--name",
        "mk3",
        "--match",
        "serial=1",
        "--match",
        "vendor=2c99",
    ]
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command],
        capture_output=True,
        text=True,
        timeout=SOON,
        env=world.env,
        check=False,
    )
    assert done.returncode == 77, done.stderr
    assert "only root can install a service" in done.stderr
    assert "portretry-udev setup --name mk3 --match serial=1 --match vendor=2c99" in done.stderr
    assert done.stderr.count("\n") == 2


def test_every_flag_is_in_the_docs():
    """And no other: who writes a playbook reads docs/setup.md."""
    text = (PROGRAM.parents[1] / "docs/setup.md").read_text()
    table = text.partition("| flag | answers |")[2].partition("\n\n")[0]
    told = set(re.findall(r"--[a-z][a-z-]*", table)) | {"--yes"}
    assert told == {option for parameter in setup.params for option in parameter.opts if option[:2] == "--"}
