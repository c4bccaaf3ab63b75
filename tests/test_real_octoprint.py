"""Real OctoPrints are installed once and whole, and run as promised; stand-ins play pip and the server."""

import fcntl
import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import requests
import yaml

from helpers import assert_eventually
from portretry_udev import real_octoprint
from portretry_udev.fake_octoprint import FakeOctoPrint
from portretry_udev.real_octoprint import (
    InstallError,
    RealOctoPrint,
    ServeError,
    choose_interpreter,
    config_yaml,
    default_cache,
    ensure,
    explain_pip,
    users_yaml,
)
from portretry_udev.simulator import Printer

PORTS = ["/run/fake/tty*"]

# -- settings -----------------------------------------------------------------------------------------------


def test_1_x_has_its_port_under_serial():
    """1.10 and 1.11 are given ports, baudrate and timeouts in the block `serial`."""
    settings = config_yaml("1.11.8", PORTS, preferred="/run/fake/tty1", baudrate=250000, autoconnect=True)
    serial = settings["serial"]
    assert serial["additionalPorts"] == PORTS
    assert (serial["port"], serial["baudrate"], serial["autoconnect"]) == ("/run/fake/tty1", 250000, True)
    assert serial["timeout"]["communication"] == 2
    assert "printerConnection" not in settings


def test_2_0_has_its_port_under_printer_connection():
    """2.0 keeps the preferred port apart from the settings of its serial connector."""
    settings = config_yaml("2.0.0rc7", PORTS, preferred="/run/fake/tty1", baudrate=250000, autoconnect=True)
    assert settings["printerConnection"] == {
        "autoconnect": True,
        "preferred": {
            "connector": "serial",
            "parameters": {"port": "/run/fake/tty1", "baudrate": 250000},
        },
    }
    serial = settings["plugins"]["serial_connector"]
    assert serial["additionalPorts"] == PORTS
    assert serial["timeout"]["communication"] == 2
    assert "serial" not in settings


def test_no_preference_is_auto():
    """Without a preferred port and baudrate OctoPrint's own words for "find it yourself" are stored."""
    serial = config_yaml("1.10.3", PORTS, baudrate=None)["serial"]
    assert (serial["port"], serial["baudrate"]) == ("AUTO", 0)
    place = config_yaml("2.0.0rc7", PORTS, baudrate=None)["printerConnection"]["preferred"]["parameters"]
    assert place == {"port": "AUTO", "baudrate": 0}


@pytest.mark.parametrize("version", ["1.10.3", "1.11.8", "2.0.0rc7"])
def test_the_machines_own_ports_are_out_of_bounds(version):
    """Every version is told to leave this machine's serial ports alone, in its own word for it."""
    settings = config_yaml(version, PORTS)
    blocked = (
        settings["plugins"]["serial_connector"]["blocklistedPorts"]
        if version == "2.0.0rc7"
        else settings["serial"]["blacklistedPorts"]
    )
    assert "/dev/tty*" in blocked


def test_default_timeouts_are_octoprints():
    """Without short timeouts nothing is said about them."""
    assert "timeout" not in config_yaml("1.11.8", PORTS, short_timeouts=False)["serial"]


def test_extra_settings_are_merged_in():
    """More settings are laid over ours, folder by folder; ours beside them stay, also for the next server."""
    extra = {"serial": {"timeout": {"communication": 30}}, "plugins": {"_disabled": ["backup"]}, "x": 1}
    settings = config_yaml("1.11.8", PORTS, extra=extra)
    assert settings["serial"]["timeout"]["communication"] == 30
    assert settings["serial"]["timeout"]["connection"] == 1
    assert settings["serial"]["additionalPorts"] == PORTS
    assert settings["plugins"]["_disabled"] == ["backup"]
    assert settings["x"] == 1
    assert config_yaml("1.11.8", PORTS)["serial"]["timeout"]["communication"] == 2


def test_the_account_is_an_administrator_without_a_password():
    """The key opens everything; the stored hash is the hash of no password, in a form never migrated."""
    admin = users_yaml("KEY")["admin"]
    assert (admin["apikey"], admin["active"]) == ("KEY", True)
    assert "admins" in admin["groups"]
    assert admin["password"].startswith("$argon2id$")


# -- why pip failed -----------------------------------------------------------------------------------------


NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError(': Failed to
establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/octoprint/
ERROR: Could not find a version that satisfies the requirement OctoPrint==1.11.8 (from versions: none)
ERROR: No matching distribution found for OctoPrint==1.11.8
"""
NO_COMPILER = """\
  error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory
  ERROR: Failed building wheel for netifaces
"""


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (NO_NETWORK, "PyPI cannot be reached; check the network (or the proxy) and try again"),
        (NO_COMPILER, "cure: sudo apt install gcc python3.11-dev"),
        ("fatal error: Python.h: No such file or directory\n", "cure: sudo apt install gcc python3.11-dev"),
        ("ERROR: an OSError: [Errno 28] No space left on device\n", "the disk is full"),
        (NO_NETWORK.splitlines()[-1], "PyPI has no such version, or not for this Python"),
        ("Collecting x\nERROR: it is Tuesday\n", "ERROR: it is Tuesday"),
        ("", "pip failed without saying why"),
    ],
    ids=["network", "compiler", "headers", "disk", "version", "other", "silent"],
)
def test_pip_failures_are_explained(output, said):
    """Each known failure is one line with its cure; an unknown one is quoted."""
    explained = explain_pip("1.11.8", output, 11)
    assert explained == f"OctoPrint 1.11.8 cannot be installed: {explained.partition(': ')[2]}"
    assert explained.endswith(said)
    assert "\n" not in explained


# -- interpreters -------------------------------------------------------------------------------------------


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def python_that_says(path, version, status=0):
    return script(path, f"#!/bin/sh\necho {version}\nexit {status}\n")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An otherwise empty machine: the only programs are those in this folder, and /bin/sh."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "python3"))
    return folder


def test_our_own_python_is_taken_when_it_fits(programs):
    """The Python that runs this is the first choice, another in PATH is not even looked at."""
    python_that_says(programs / "python3", "3 12")
    python_that_says(programs / "python3.11", "3 11")
    chosen = choose_interpreter("1.11.8")
    assert (chosen.path, chosen.minor) == (str(programs / "python3"), 12)


def test_a_python_too_new_for_that_octoprint_is_passed_over(programs):
    """1.10 does not run on 3.13: the newest that it does run on is taken; 2.0 takes 3.13."""
    python_that_says(programs / "python3", "3 13")
    python_that_says(programs / "python3.11", "3 11")
    python_that_says(programs / "python3.12", "3 12")
    assert choose_interpreter("1.10.3").minor == 12
    assert choose_interpreter("2.0.0rc7").minor == 13


def test_a_name_in_the_path_that_does_not_run_is_passed_over(programs):
    """Pyenv leaves shims for versions that are not there: they fail when called."""
    python_that_says(programs / "python3", "3 14")
    script(programs / "python3.12", "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    python_that_says(programs / "python3.11", "3 11")
    assert choose_interpreter("1.10.3").path == str(programs / "python3.11")


def test_the_package_for_venvs_is_named(programs):
    """A fitting Python without ensurepip is met with the command that cures it."""
    python_that_says(programs / "python3", "3 11", status=1)
    with pytest.raises(InstallError, match=r"sudo apt install python3\.11-venv$"):
        choose_interpreter("1.11.8")


def test_a_python_without_venvs_is_passed_over_for_one_with(programs):
    """Debian's Python without its -venv package does not stand in the way of another."""
    python_that_says(programs / "python3", "3 12", status=1)
    python_that_says(programs / "python3.11", "3 11")
    assert choose_interpreter("1.11.8").minor == 11


def test_what_python_is_missing_is_said(programs):
    """Which Pythons would do, which one is here, and how to get another."""
    python_that_says(programs / "python3", "3 14")
    with pytest.raises(InstallError) as told:
        choose_interpreter("1.10.3")
    assert "needs a Python from 3.9 to 3.12" in str(told.value)
    assert f"here is 3.14 ({programs / 'python3'})" in str(told.value)
    assert "sudo apt install python3.12-venv" in str(told.value)


def test_an_unknown_line_is_treated_as_its_older_neighbour(programs):
    """A 1.12 would take what 1.11 takes; an ancient one what the oldest takes."""
    python_that_says(programs / "python3", "3 13")
    assert choose_interpreter("1.12.0").minor == 13
    with pytest.raises(InstallError, match=r"to 3\.12"):
        choose_interpreter("1.8.7")


# -- installing ---------------------------------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/sh
# A Python whose environments hold itself, and whose pip does what the file "pip" beside it says.
case "$2" in
  "import sys"*) echo 3 11 ;;
  venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo made >> "{folder}/made" ;;
  pip) . "{folder}/pip" ;;
esac
"""
FAKE_PIP = """
echo "Collecting OctoPrint==1.11.8"
echo "  Downloading OctoPrint-1.11.8.whl (2 MB)"
echo "Collecting flask<3.1"
echo "  Building wheel for netifaces (setup.py): started"
echo "  Building wheel for netifaces (setup.py): finished with status 'done'"
echo "Installing collected packages: flask, OctoPrint"
printf '#!/bin/sh\\necho octoprint, version 1.11.8\\n' > "${0%/*}/octoprint"
chmod +x "${0%/*}/octoprint"
"""


def is_gone(pid):
    """Whether a process is gone, or dead and merely not yet collected by init."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def fake_pip(programs, monkeypatch):
    """Set what pip does on this machine; it starts with a successful one of OctoPrint 1.11.8."""
    script(programs / "python3", FAKE_PYTHON.format(folder=programs))
    (programs / "pip").write_text(FAKE_PIP)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs / "pip"


def times_made(fake_pip):
    made = fake_pip.with_name("made")
    return made.read_text().count("made") if made.exists() else 0


def test_an_install_is_told_step_by_step_and_done_once(fake_pip, tmp_path):
    """A person sees each step; the second call finds it all there and says nothing."""
    said = []
    cache = tmp_path / "cache"
    assert ensure("1.11.8", cache, said.append) == cache / "1.11.8" / "bin"
    assert said == [
        f"OctoPrint 1.11.8: making an environment with Python 3.11 in {cache / '1.11.8'}",
        "OctoPrint 1.11.8: collecting OctoPrint",
        "OctoPrint 1.11.8: collecting flask",
        "OctoPrint 1.11.8: building wheel for netifaces",
        "OctoPrint 1.11.8: installing 2 packages",
        "OctoPrint 1.11.8: installed",
    ]
    said.clear()
    ensure("1.11.8", cache, said.append)
    assert (said, times_made(fake_pip)) == ([], 1)


def test_a_failed_install_is_explained_and_not_taken_for_whole(fake_pip, tmp_path):
    """What pip left half-made is not taken for whole, although its program runs."""
    cache = tmp_path / "cache"
    fake_pip.write_text(FAKE_PIP + "echo 'ERROR: No space left on device'\nexit 1\n")
    with pytest.raises(InstallError, match="the disk is full"):
        ensure("1.11.8", cache)
    with pytest.raises(InstallError, match="the disk is full"):
        ensure("1.11.8", cache)
    fake_pip.write_text(FAKE_PIP)
    (cache / "1.11.8" / "bin" / "octoprint").unlink()
    ensure("1.11.8", cache)
    assert times_made(fake_pip) == 2


def test_an_environment_that_somebody_else_made_is_taken(fake_pip, tmp_path):
    """One that works, though without our mark, is not made anew; pip adds what it may lack."""
    cache = tmp_path / "cache"
    bin_dir = ensure("1.11.8", cache)
    mark = bin_dir.with_name(".complete")
    mark.unlink()
    said = []
    ensure("1.11.8", cache, said.append)
    assert mark.exists()
    assert times_made(fake_pip) == 1
    assert "OctoPrint 1.11.8: installing 2 packages" in said


def test_an_environment_whose_python_has_gone_is_made_anew(fake_pip, tmp_path):
    """The mark alone is not believed: a distribution's upgrade takes the Python away below it."""
    cache = tmp_path / "cache"
    bin_dir = ensure("1.11.8", cache)
    (bin_dir / "octoprint").write_text("#!/nowhere/python3.9\n")
    ensure("1.11.8", cache)
    assert times_made(fake_pip) == 2


def test_an_install_that_does_not_run_is_an_error(fake_pip, tmp_path):
    """A pip that says it went well is not believed either, and the next call starts anew."""
    fake_pip.write_text("true\n")
    for _ in range(2):
        with pytest.raises(InstallError, match="does not run there"):
            ensure("1.11.8", tmp_path)
    assert times_made(fake_pip) == 2


def test_old_octoprints_get_what_they_do_not_ask_for(fake_pip, tmp_path):
    """1.10 does not start with the newest of its own parts: pip is given bounds for them."""
    args = tmp_path / "args"
    fake_pip.write_text(f'echo "$@" > {args}\nexit 1\n')
    with pytest.raises(InstallError):
        ensure("1.10.3", tmp_path)
    assert "OctoPrint==1.10.3 limits<5 setuptools<81" in args.read_text()


def test_a_failed_venv_quotes_it_and_names_the_package(fake_pip, tmp_path):
    """When the environment itself cannot be made, the cure is the distribution's package."""
    fake_pip.with_name("python3").write_text(
        '#!/bin/sh\n[ "$2" = venv ] && { echo "ensurepip is not available" >&2; exit 1; }\necho 3 11\n'
    )
    with pytest.raises(InstallError, match=r"ensurepip is not available; cure: .*python3\.11-venv"):
        ensure("1.11.8", tmp_path)


def test_a_slow_network_is_told_too(fake_pip, tmp_path):
    """Without a network pip tries for half a minute: a person is told why it takes so long."""
    fake_pip.write_text(f"cat <<'.'\n{NO_NETWORK}.\nexit 1\n")
    said = []
    with pytest.raises(InstallError, match="PyPI cannot be reached"):
        ensure("1.11.8", tmp_path, said.append)
    assert said[-1] == "OctoPrint 1.11.8: PyPI does not answer, trying again"


def test_pip_does_not_go_on_alone(fake_pip, tmp_path):
    """Ctrl-C while it is told what pip does ends pip too."""
    pid = tmp_path / "pid"
    fake_pip.write_text(f"echo $$ > {pid}\necho Collecting OctoPrint\nexec sleep 600\n")

    def interrupted(line):
        if "collecting" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure("1.11.8", tmp_path / "cache", interrupted)
    assert is_gone(int(pid.read_text()))


@pytest.mark.usefixtures("fake_pip")
def test_a_second_process_waits_for_the_first(tmp_path):
    """While another holds the lock nothing is touched, and that is said; then it goes on."""
    cache = tmp_path / "cache"
    cache.mkdir()
    said, done = [], threading.Event()
    with (cache / ".1.11.8.lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: (ensure("1.11.8", cache, said.append), done.set()))
        second.start()
        assert_eventually(lambda: len(said) == 1, 10, "it was said that another process is at it")
        assert "another process is installing it, waiting" in said[0]
        assert not (cache / "1.11.8").exists()
    second.join(10)
    assert done.is_set()
    assert said[-1] == "OctoPrint 1.11.8: installed"


@pytest.mark.parametrize("version", ["", "latest", "1", "../1.11.8", "1.11.8; rm", "--help", "1.11.8/x"])
def test_only_versions_are_versions(tmp_path, version):
    """A name that could leave the cache folder, or mean something to pip, is refused."""
    with pytest.raises(InstallError, match="is not a version of OctoPrint"):
        ensure(version, tmp_path)


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    """The folder and the reason are in the error."""
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match=r"cannot be kept in .*/file/cache: Not a directory"):
        ensure("1.11.8", tmp_path / "file" / "cache")


def test_the_cache_follows_the_freedesktop_variable(monkeypatch, tmp_path):
    """$XDG_CACHE_HOME, else ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(default_cache()) == "/elsewhere/portretry-udev/octoprint"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "portretry-udev" / "octoprint"


# -- running ------------------------------------------------------------------------------------------------

FAKE_OCTOPRINT = '''#!{python}
"""OctoPrint's command line and log, and of its server what says that it is up."""
import http.server, json, os, pathlib, signal, sys

if "--version" in sys.argv:
    print("octoprint, version 1.11.8")
    sys.exit()
base = pathlib.Path(sys.argv[sys.argv.index("-b") + 1])
key = json.loads((base / "users.yaml").read_text())["admin"]["apikey"]
(base / "logs" / "octoprint.log").open("a").write(f"started by {{key}}\\n")
{behaviour}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers["X-Api-Key"] == key else 403)
        self.end_headers()
    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
'''


@pytest.fixture
def make(tmp_path):
    """Make a server from a stand-in program, which does something special before it serves."""
    python = sys.executable
    made = []

    def make(behaviour="", **options):
        home = tmp_path / "cache" / "1.11.8"
        script(home / "bin" / "octoprint", FAKE_OCTOPRINT.format(python=python, behaviour=behaviour))
        (home / ".complete").touch()
        made.append(RealOctoPrint("1.11.8", tmp_path / "base", PORTS, cache=tmp_path / "cache", **options))
        return made[-1]

    yield make
    for server in made:
        server.kill()


def test_it_is_up_inside_the_block_and_gone_after_it(make):
    """The block begins when it answers with our key, and no process is left behind."""
    server = make()
    with server:
        assert server.up()
        assert server.running()
    assert not server.running()
    assert not server.up()


def test_it_comes_back_on_the_same_port_with_the_same_key(make):
    """A restart is the same OctoPrint to all its clients."""
    with make() as server:
        url, key = server.url, server.api_key
        server.restart()
        assert server.up()
        assert (server.url, server.api_key) == (url, key)
    assert server.logfile.read_text().count("started") == 2


def test_its_secrets_can_be_read_by_nobody_else(make):
    """Settings, accounts and key file are 0600 whatever the umask; no command line has the key."""
    before = os.umask(0)
    try:
        server = make()
        server.prepare()
    finally:
        os.umask(before)
    for name in ("config.yaml", "users.yaml", "admin.key"):
        assert (server.basedir / name).stat().st_mode & 0o777 == 0o600, name
    assert server.key_file.read_text() == f"{server.api_key}\n"
    assert server.api_key not in repr(server)
    with server:
        command = Path(f"/proc/{server._process.pid}/cmdline").read_text()
        assert "serve" in command
        assert server.api_key not in command


def test_each_has_its_own_key_and_a_port_below_the_ephemeral_ones(make, tmp_path):
    """Keys are random; a port of the ephemeral range could be given to a client that waits for the server."""
    one, other = make(), RealOctoPrint("1.11.8", tmp_path / "other", PORTS)
    assert one.api_key != other.api_key
    assert len(one.api_key) == 32
    assert 20000 <= one.port < 32768


def test_anothers_folder_is_not_taken_over(make):
    """A folder that already holds an OctoPrint, with another key, is refused rather than half-used."""
    make().prepare()
    with pytest.raises(FileExistsError):
        make().prepare()


def test_one_that_dies_at_its_start_is_explained_by_its_log(make):
    """The error quotes the end of its log, with the key taken out, and comes at once."""
    server = make("sys.exit(3)")
    with pytest.raises(ServeError, match="ended with status 3 while it started") as told:
        server.start()
    assert "started by ***" in str(told.value)
    assert server.api_key not in str(told.value)
    assert not server.running()


def test_before_there_is_a_log_its_console_is_quoted(make):
    """One that fails before it can log has said why on its console."""
    server = make()
    program = server._cache / "1.11.8" / "bin" / "octoprint"
    text = program.read_text()
    program.write_text(text.replace("base = pathlib", "raise RuntimeError('no such plugin')\nbase = pathlib"))
    with pytest.raises(ServeError, match="no such plugin"):
        server.start()


def test_one_that_never_answers_is_given_up(make):
    """The wait is bounded, and the block leaves no process behind."""
    server = make("signal.pause()")
    with pytest.raises(ServeError, match=r"was not up after 0\.5 s"):
        server.start(wait=0.5)
    assert server.running()
    server.kill()
    assert not server.running()


def test_a_block_that_fails_to_begin_leaves_no_process(make, monkeypatch):
    """No process outlives a context manager that raised."""
    server = make("signal.pause()")

    def give_up(_timeout=0):
        raise ServeError("not up")

    monkeypatch.setattr(server, "wait_up", give_up)
    with pytest.raises(ServeError), server:
        raise AssertionError("the block began")
    assert not server.running()


def test_one_that_ignores_sigterm_is_killed(make):
    """stop() ends it for certain, and with it what it has started."""
    child = "import subprocess; child = subprocess.Popen(['sleep', '600']); "
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); (base / 'child').write_text(str(child.pid))"
    server = make(child + ignore)
    server.start()
    child_pid = int((server.basedir / "child").read_text())
    server.stop(timeout=0.2)
    assert not server.running()
    assert_eventually(lambda: is_gone(child_pid), 5, "its child is gone too")


def test_stopping_what_does_not_run_does_nothing(make):
    """stop() and kill() may be called at any time, and again."""
    server = make()
    server.stop()
    server.start()
    os.kill(server._process.pid, signal.SIGKILL)
    assert_eventually(lambda: not server.running(), 5, "it is dead")
    server.stop()
    server.kill()
    assert not server.running()


def test_starting_twice_is_a_mistake(make):
    """Two servers in one folder would spoil each other."""
    with make() as server, pytest.raises(ServeError, match="is running already"):
        server.start()


def test_waiting_for_one_that_was_never_started_is_a_mistake(make):
    """It is said, instead of waiting the time out."""
    with pytest.raises(ServeError, match="was not started"):
        make().wait_up()


def test_a_persons_buttons_and_octoprints_words(make, tmp_path):
    """connect() and disconnect() send what OctoPrint's own buttons send; state() gives its two words."""
    server = make()
    link = tmp_path / "ttyFAKE0"
    fake = FakeOctoPrint(api_key=server.api_key, ports=[str(link)], port_preference=None)
    with Printer(link=link), fake:
        server.url = fake.url
        assert server.state() == ("Closed", "Offline")
        server.connect(str(link), 115200)
        assert_eventually(lambda: server.state() == ("Operational", "Operational"), 5, server.state)
        server.disconnect()
        assert_eventually(lambda: server.state() == ("Closed", "Offline"), 5, server.state)
        with pytest.raises(requests.HTTPError, match="400"):
            server.connect("/dev/ttyNOBODY")
        server.api_key = "wrong"
        with pytest.raises(requests.HTTPError, match="403"):
            server.state()
        with pytest.raises(requests.HTTPError, match="400"):
            server.disconnect()


def test_attempts_are_counted_from_its_log(make):
    """Every version logs when it opens a port, for a known baudrate and for one to be detected."""
    server = make()
    assert server.attempts() == 0
    server.prepare()
    change = 'octoprint.util.comm - INFO - Changing monitoring state from "{}" to "{}"\n'
    states = ["Offline", "Opening serial connection", "Connecting", "Offline", "Detecting serial connection"]
    server.logfile.write_text("".join(change.format(*two) for two in itertools.pairwise(states)))
    assert server.attempts() == 2


def test_requests_are_counted_from_its_log(make):
    """Every version keeps a log of the requests, with their answers."""
    server = make()
    assert server.answered("403 GET /api/connection") == 0
    server.prepare()
    line = "2026-11-22 08:04:01 - tornado.access - INFO - {} (127.0.0.1) 16.13ms\n"
    what = [
        "200 GET /api/connection",
        "403 GET /api/connection",
        "403 GET /api/job",
        "403 GET /api/connection",
    ]
    server.logfile.with_name("tornado.log").write_text("".join(map(line.format, what)))
    assert server.answered("403 GET /api/connection") == 2


def test_the_files_are_yaml(make):
    """OctoPrint reads YAML; JSON is a part of it."""
    server = make(extra={"server": {"note": 'quotes " and \\ and ü'}})
    server.prepare()
    for name in ("config.yaml", "users.yaml"):
        text = (server.basedir / name).read_text(encoding="utf-8")
        assert yaml.safe_load(text) == json.loads(text)


def test_no_free_port_is_said(monkeypatch):
    """When nothing can be bound, an error says so instead of a wrong address later."""

    class Taken:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def setsockopt(self, *_):
            return None

        def bind(self, _address):
            raise OSError

    monkeypatch.setattr(real_octoprint.socket, "socket", Taken)
    with pytest.raises(ServeError, match="no free TCP port"):
        real_octoprint._free_port()
