"""A real OctoPrint: installed from PyPI into a cache folder, and run headless on this machine.

For the tests, the benchmarks and ``demo --octoprint``; the service itself never comes here.

Knows venv, pip, OctoPrint's files (``config.yaml``, ``users.yaml``) and its command line, for the lines 1.10,
1.11 and 2.0.  Must not know the watcher, its rules or the simulated printer.
"""

import contextlib
import fcntl
import json
import logging
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

log = logging.getLogger(__name__)

Say = Callable[[str], None]
Settings = dict[str, Any]

VERSIONS = ("1.10.3", "1.11.8", "2.0.0rc7")
"""The versions that the tests run against: the last of each line that is supported."""

REAL_PORTS = ("/dev/tty*", "/dev/cu*", "/dev/rfcomm*")
"""fnmatch patterns (``*`` matches ``/`` too) that keep OctoPrint's hands off this machine's own ports."""

# ------------------------------------------------------------------------------------------------ installing

NEWEST_PYTHON = {(1, 10): 12, (1, 11): 13, (2, 0): 14}
"""The newest Python 3.x for each line of OctoPrint: Requires-Python of 1.10.3, 1.11.8 and 2.0.0rc7."""
OLDEST_PYTHON = 9
"""2.0.0rc7 requires 3.9; 1.x would take 3.7."""
CONSTRAINTS = {(1, 10): ("limits<5", "setuptools<81")}
"""What a line of OctoPrint needs and does not say.

Seen with 1.10.3: limits 5 dropped the rate limiting strategy that it names (it ends at once with a
ConfigurationError), and setuptools dropped the pkg_resources that it imports (80 has it, 84 has not).
"""

_VERSION = re.compile(r"\d+(\.\d+)+((a|b|rc|\.dev|\.post)\d+)?")
_PROGRESS = re.compile(r"\s*(Collecting|Building wheel for|Installing collected packages)\b:?\s*([\w.-]*)")
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeoutError|ReadTimeoutError|NameResolutionError|ProxyError|SSLError"
    r"|name resolution|Network is unreachable|Connection refused|Connection reset",
)
_NO_COMPILER = re.compile(r"Python\.h: No such file|error: command '[^']*(gcc|cc|clang)[^']*' failed")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")


class InstallError(Exception):
    """An OctoPrint could not be installed; the text says why, and what cures it, in one line."""


class ServeError(Exception):
    """An OctoPrint did not start, or died; the text ends with the tail of its log."""


@dataclass(frozen=True)
class Interpreter:
    """A Python of this machine.

    Attributes:
        path: as it is to be called.
        minor: 11 for Python 3.11.
        makes_venvs: whether ensurepip is there (Debian keeps it in the package python3.X-venv).
    """

    path: str
    minor: int
    makes_venvs: bool


def _quiet(_line: str) -> None:
    """Say nothing."""


def default_cache() -> Path:
    """Where OctoPrints are kept between runs, one folder a version."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "portretry-udev" / "octoprint"


def ensure(version: str, cache: Path | None = None, say: Say = _quiet) -> Path:
    """Install an OctoPrint unless it is there already.

    Safe beside other processes that do the same: they wait for each other.  What was left half-made, by a
    crash or a full disk, is made anew.

    Args:
        version: as on PyPI, "1.11.8".
        cache: the folder that holds one folder a version; default_cache() when left out.
        say: is told what happens, a line at a time, so that a person sees that it is alive.

    Returns:
        The folder with the programs ``octoprint`` and ``python``.

    Raises:
        InstallError: with the cure, when there is one.
    """
    if not _VERSION.fullmatch(version):
        raise InstallError(f"{version!r} is not a version of OctoPrint: name one like {VERSIONS[-2]}")
    root = cache or default_cache()
    home = root / version
    if _whole(home, version):
        return home / "bin"
    try:
        root.mkdir(parents=True, exist_ok=True)
        waiting = f"OctoPrint {version}: another process is installing it, waiting"
        with _alone(root / f".{version}.lock", waiting, say):
            if not _whole(home, version) and not _adopt(home, version, say):
                _build(home, version, say)
    except OSError as error:
        raise InstallError(
            f"OctoPrint {version} cannot be kept in {root}: {error.strerror or error}"
        ) from error
    return home / "bin"


def interpreters(newest: int) -> Iterator[Interpreter]:
    """Find Pythons that run: our own, then ``python3.X`` in PATH from 3.newest downwards.

    A name in PATH proves nothing (pyenv's shims are there for versions that are not), so each one is run.
    """
    names = [sys.executable, *(f"python3.{minor}" for minor in range(newest, OLDEST_PYTHON - 1, -1))]
    for name in names:
        path = shutil.which(name)
        found = path and _look_at(path)
        if found:
            yield found


def choose_interpreter(version: str) -> Interpreter:
    """Choose the Python that an OctoPrint is to run on.

    Raises:
        InstallError: none fits; says which would, and how to get one.
    """
    newest = NEWEST_PYTHON[_line(version)]
    seen = []
    for found in interpreters(newest):
        fits = OLDEST_PYTHON <= found.minor <= newest
        if fits and found.makes_venvs:
            return found
        seen.append(found)
    for found in seen:
        if OLDEST_PYTHON <= found.minor <= newest:
            raise InstallError(
                f"OctoPrint {version} cannot be installed: {found.path} (Python 3.{found.minor}) cannot make "
                f"environments; cure: sudo apt install python3.{found.minor}-venv",
            )
    have = ", ".join(f"3.{found.minor} ({found.path})" for found in seen) or "none"
    raise InstallError(
        f"OctoPrint {version} needs a Python from 3.{OLDEST_PYTHON} to 3.{newest}, here is {have}; cure: "
        f"sudo apt install python3.{newest}-venv (or pyenv, or uv, where apt has none), or a newer OctoPrint",
    )


def explain_pip(version: str, output: str, minor: int) -> str:
    """Say in one line why pip failed, and what to do about it.

    Args:
        version: of the OctoPrint that pip was to install.
        output: all that pip wrote.
        minor: of the Python 3.x that pip ran on.
    """
    prefix = f"OctoPrint {version} cannot be installed: "
    if _DISK_FULL.search(output):
        return prefix + "the disk is full"
    if _NO_COMPILER.search(output):
        return prefix + (
            "one of its parts has to be compiled here, which needs a C compiler and Python's headers; "
            f"cure: sudo apt install gcc python3.{minor}-dev"
        )
    if _NO_NETWORK.search(output):
        return prefix + "PyPI cannot be reached; check the network (or the proxy) and try again"
    if "No matching distribution found for OctoPrint" in output:
        return prefix + "PyPI has no such version, or not for this Python"
    errors = [line for line in output.splitlines() if line.lower().lstrip().startswith("error")]
    return prefix + (errors[-1].strip() if errors else "pip failed without saying why")


def _line(version: str) -> tuple[int, int]:
    """Tell the line of a version, (1, 11) for "1.11.8"; of one that is not in our table, its neighbour's."""
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    older = [line for line in NEWEST_PYTHON if line <= (major, minor)]
    return max(older, default=min(NEWEST_PYTHON))


def _look_at(python: str) -> Interpreter | None:
    # The version is printed before the import that may fail.
    done = _run([python, "-c", "import sys; print(*sys.version_info[:2]); import ensurepip, venv"])
    found = re.match(r"3 (\d+)\n", done.stdout)
    return Interpreter(python, int(found[1]), done.returncode == 0) if found else None


def _clean_environment() -> dict[str, str]:
    """Our environment, less what would make another Python load our packages."""
    unwanted = {"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a short command; one that does not run or hangs counts as failed (127, as in a shell)."""
    try:
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=_clean_environment(),
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _runs(home: Path, version: str) -> bool:
    """Whether the program in there starts and is what its folder says.

    Asked even of a finished environment: it breaks when the distribution replaces the Python below it.
    """
    return _run([home / "bin" / "octoprint", "--version"]).stdout.strip().endswith(f" {version}")


def _whole(home: Path, version: str) -> bool:
    return (home / ".complete").exists() and _runs(home, version)


def _adopt(home: Path, version: str, say: Say) -> bool:
    """Take an environment that somebody else made, if it runs; what it lacks is added."""
    python = _look_at(str(home / "bin" / "python"))
    if not python or not _runs(home, version):
        return False
    _pip_install(home, version, python, say)  # needs no network when nothing is missing
    _mark(home, version)
    return True


def _mark(home: Path, version: str) -> None:
    (home / ".complete").write_text(f"{version}\n", encoding="ascii")


def _build(home: Path, version: str, say: Say) -> None:
    """Make the environment in its final place (venvs cannot be moved), and mark it as the last step."""
    python = choose_interpreter(version)
    if home.exists():
        shutil.rmtree(home)
    say(f"OctoPrint {version}: making an environment with Python 3.{python.minor} in {home}")
    made = _run([python.path, "-m", "venv", home])
    if made.returncode:
        words = (made.stderr or made.stdout).strip().splitlines() or ["it said nothing"]
        raise InstallError(
            f"OctoPrint {version} cannot be installed: {python.path} -m venv failed: {words[-1]}; cure: "
            f"sudo apt install python3.{python.minor}-venv",
        )
    _pip_install(home, version, python, say)
    if not _runs(home, version):
        raise InstallError(f"OctoPrint {version} was installed in {home} but does not run there")
    _mark(home, version)
    say(f"OctoPrint {version}: installed")


def _pip_install(home: Path, version: str, python: Interpreter, say: Say) -> None:
    command: list[str | Path] = [
        home / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--progress-bar", "off", f"OctoPrint=={version}", *CONSTRAINTS.get(_line(version), ())]
    output: list[str] = []
    packages = 0
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_clean_environment(),
    ) as pip:
        try:
            for line in pip.stdout or ():
                output.append(line)
                step = _PROGRESS.match(line)
                if step and step[1] == "Installing collected packages":
                    say(f"OctoPrint {version}: installing {packages} packages")
                elif step and "finished with status" not in line:
                    packages += step[1] == "Collecting"
                    say(f"OctoPrint {version}: {step[1][0].lower()}{step[1][1:]} {step[2]}")
                elif line.startswith("WARNING: Retrying"):
                    say(f"OctoPrint {version}: PyPI does not answer, trying again")
        except BaseException:  # Ctrl-C or a say() that fails: pip must not go on alone
            pip.terminate()
            raise
    if pip.returncode:
        raise InstallError(explain_pip(version, "".join(output), python.minor))


@contextlib.contextmanager
def _alone(path: Path, waiting: str, say: Say) -> Iterator[None]:
    """Be the only process in here; the kernel lets go of the lock even when we are killed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------------------- running

SHORT_TIMEOUTS: Settings = {
    "timeout": {"connection": 1, "communication": 2, "communicationBusy": 2, "temperature": 1},
    "maxCommunicationTimeouts": {"idle": 1, "printing": 1, "long": 1},
    "capabilities": {"autoreport_temp": False},
}
"""Seconds of silence, and silences in a row, until OctoPrint gives a printer up; 1.x and 2.0 are alike.

OctoPrint waits for max(communication, temperature + 1) seconds, and once more for each timeout allowed; 0 of
them means for ever (octoprint/util/comm.py 1.11.8, _get_communication_timeout_interval and _handle_timeout).
Without autoreport it asks for the temperature itself, every ``temperature`` seconds: so an idle printer is
not silent, whatever its firmware reports unasked.

Measured, 1.10.3, 1.11.8 and 2.0.0rc7 alike: an idle printer that falls silent is given up after 3.4 to 4.0 s,
a connect to a silent one after 3.0 s.  The shortest that still ran was 2.4 and 1.6 s (communication 0.5,
temperature 0.25, connection 0.2): too close to what a busy machine takes from a living printer.
"""

_NO_CHATTER = [
    "announcements",
    "discovery",
    "errortracking",
    "health_check",
    "pluginmanager",
    "softwareupdate",
    "tracking",
]
"""Bundled plugins that would call home or announce this server to the network."""

_NEVER_A_PASSWORD = "$argon2id$nobody-can-log-in"  # noqa: S105 -- the point is that it is none
"""Looks like a hash, so that no migration touches it, and is the hash of nothing: only the API key opens."""


def config_yaml(  # noqa: PLR0913 -- one argument a setting, all but two by name
    version: str,
    ports: Sequence[str],
    *,
    preferred: str | None = None,
    baudrate: int | None = 115200,
    autoconnect: bool = False,
    short_timeouts: bool = True,
    blocked: Sequence[str] = REAL_PORTS,
    extra: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings for an OctoPrint without wizard, webcam or calls to the network, in the shape of its version.

    See RealOctoPrint for the arguments.
    """
    settings: Settings = {
        "server": {
            "firstRun": False,  # else most of the API answers 403 until the wizard was clicked through
            "onlineCheck": {"enabled": False},
            "pluginBlacklist": {"enabled": False},
            "seenWizards": {"corewizard": 4, "tracking": 1, "backup": 1, "classicwebcam": 1},
        },
        "accessControl": {"autologinLocal": False},
        "webcam": {"webcamEnabled": False, "timelapseEnabled": False},
        "temperature": {"sendAutomatically": False},
        "plugins": {"_disabled": _NO_CHATTER},
    }
    serial = {"additionalPorts": list(ports), "log": True, **(SHORT_TIMEOUTS if short_timeouts else {})}
    place = {"port": preferred or "AUTO", "baudrate": baudrate or 0}
    if _is_2(version):
        settings["plugins"]["serial_connector"] = serial | {"blocklistedPorts": list(blocked)}
        settings["printerConnection"] = {
            "autoconnect": autoconnect,
            "preferred": {"connector": "serial", "parameters": place},
        }
    else:
        settings["serial"] = serial | {
            "blacklistedPorts": list(blocked),
            "autoconnect": autoconnect,
            **place,
        }
    return _merged(settings, extra or {})


def users_yaml(key: str) -> Settings:
    """Make one account, an administrator with an API key and without a password."""
    return {
        "_version": 2,
        "admin": {
            "active": True,
            "apikey": key,
            "groups": ["admins", "users"],
            "password": _NEVER_A_PASSWORD,
            "permissions": [],
            "settings": {},
        },
    }


class RealOctoPrint:
    """One OctoPrint server on 127.0.0.1, with its own folder, account and API key.

    As a context manager it is up inside the block and stopped after it.  Without one: start(), then stop().

    Args:
        version: as on PyPI; installed by ensure() if it is not there.
        basedir: an empty or missing folder for its settings, accounts and logs.
        ports: globs of the ports that it is to offer (its *Additional serial ports*).
        preferred: its stored port; None is AUTO.
        baudrate: its stored baudrate, in baud; None is AUTO.
        autoconnect: whether it connects by itself when it starts.
        short_timeouts: whether a silent printer is given up within seconds rather than in 90 s.
        blocked: patterns of ports that it must never see.
        extra: more settings, in the shape of that version's config.yaml.
        cache, say: for ensure().
    """

    def __init__(  # noqa: PLR0913 -- one argument a setting, most by name
        self,
        version: str,
        basedir: Path,
        ports: Sequence[str],
        preferred: str | None = None,
        *,
        baudrate: int | None = 115200,
        autoconnect: bool = False,
        short_timeouts: bool = True,
        blocked: Sequence[str] = REAL_PORTS,
        extra: Mapping[str, Any] | None = None,
        cache: Path | None = None,
        say: Say = _quiet,
    ) -> None:
        self.version = version
        self.basedir = basedir
        self.key_file = basedir / "admin.key"
        self.api_key = secrets.token_hex(16).upper()
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._cache, self._say = cache, say
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared = False
        self._settings = config_yaml(
            version,
            ports,
            preferred=preferred,
            baudrate=baudrate,
            autoconnect=autoconnect,
            short_timeouts=short_timeouts,
            blocked=blocked,
            extra=extra,
        )

    def __repr__(self) -> str:
        """Tell it apart from others, without its key."""
        return f"<OctoPrint {self.version} {self.url} {self.basedir}>"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def logfile(self) -> Path:
        """Where OctoPrint logs; ``serial.log`` lies beside it."""
        return self.basedir / "logs" / "octoprint.log"

    def prepare(self) -> None:
        """Write the settings, the account and the key file, once; the first start() does so too.

        Raises:
            FileExistsError: the folder is another OctoPrint's.
        """
        if self._prepared:
            return
        (self.basedir / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        # JSON is YAML: no need for a YAML library.
        _write_secret(self.basedir / "config.yaml", json.dumps(self._settings, indent=2))
        _write_secret(self.basedir / "users.yaml", json.dumps(users_yaml(self.api_key), indent=2))
        _write_secret(self.key_file, f"{self.api_key}\n")
        self._prepared = True

    def start(self, wait: float | None = 60.0) -> None:
        """Start the server.

        Args:
            wait: seconds to wait until it answers; None returns at once.

        Raises:
            InstallError: from ensure().
            ServeError: it died, or was not up in time.
        """
        if self.running():
            raise ServeError(f"{self!r} is running already")
        programs = ensure(self.version, self._cache, self._say)
        self.prepare()
        command: list[str | Path] = [
            programs / "octoprint",
            "serve",
            "--iknowwhatimdoing",
            "--host",
            "127.0.0.1",
        ]
        command += ["--port", str(self.port), "-b", str(self.basedir)]
        with (self.basedir / "logs" / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=_clean_environment(),
                start_new_session=True,  # a Ctrl-C in our terminal is ours; and kill() reaches its children
            )
        if wait is not None:
            self.wait_up(wait)

    def wait_up(self, timeout: float = 60.0) -> None:
        """Wait until the real server answers; the one that stands in while OctoPrint loads does not count.

        Args:
            timeout: seconds.

        Raises:
            ServeError: it died, or was not up in time.
        """
        deadline = time.monotonic() + timeout
        while not self.up():
            if self._process is None:
                raise ServeError(f"{self!r} was not started")
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(0.05)
                raise ServeError(f"{self!r} ended with status {code} while it started:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServeError(f"{self!r} was not up after {timeout:g} s:\n{self.log_tail()}")

    def up(self) -> bool:
        """Whether it answers requests right now."""
        try:
            return self.rest("GET", "/api/version", timeout=5.0).status_code == HTTPStatus.OK
        except requests.RequestException:
            return False

    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self, timeout: float = 20.0) -> None:
        """End it, if it runs, as systemd does: SIGTERM, then SIGKILL after ``timeout`` seconds."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                log.warning("OctoPrint %s ignored SIGTERM for %g s: killed", self.version, timeout)
        self.kill()

    def kill(self) -> None:
        """End it at once, with whatever it started, as a power cut would."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self, wait: float | None = 60.0) -> None:
        """Stop it and start it again, on the same port and in the same folder."""
        self.stop()
        self.start(wait)

    def rest(
        self,
        method: str,
        path: str,
        json: object = None,
        timeout: float = 10.0,
    ) -> requests.Response:
        """Send one request with the administrator's key.

        Args:
            method: "GET" or "POST".
            path: from the root, "/api/connection".
            json: the body.
            timeout: seconds, for the connection and for each read.

        Raises:
            requests.RequestException: no answer.
        """
        with requests.Session() as session:
            session.trust_env = False  # a proxy from the environment has no business on 127.0.0.1
            return session.request(
                method,
                self.url + path,
                json=json,
                headers={"X-Api-Key": self.api_key},
                timeout=timeout,
                allow_redirects=False,
            )

    def state(self) -> tuple[str, str]:
        """Ask for OctoPrint's two words on the printer: /api/connection's state and /api/job's.

        They are two requests: between them the state may have changed.

        Raises:
            requests.RequestException: no answer, or none with a state.
        """
        connection = self.rest("GET", "/api/connection")
        connection.raise_for_status()
        job = self.rest("GET", "/api/job")
        job.raise_for_status()
        return connection.json()["current"]["state"], job.json()["state"]

    def connect(self, port: str | None = None, baudrate: int | None = None) -> None:
        """Press Connect as a person would.

        Raises:
            requests.RequestException: no answer, or a refusal.
        """
        body: Settings = {"command": "connect"}
        body |= {"port": port} if port else {}
        body |= {"baudrate": baudrate} if baudrate else {}
        self.rest("POST", "/api/connection", body).raise_for_status()

    def disconnect(self) -> None:
        """Press Disconnect as a person would.

        Raises:
            requests.RequestException: no answer, or a refusal.
        """
        self.rest("POST", "/api/connection", {"command": "disconnect"}).raise_for_status()

    def attempts(self) -> int:
        """Count the attempts to open a port that its log tells of, since its first start, by whomever."""
        text = self._read_log("octoprint.log")
        return text.count('to "Opening serial connection"') + text.count('to "Detecting serial connection"')

    def answered(self, what: str) -> int:
        """Count the requests that it has answered so, "403 GET /api/connection", since its first start.

        It keeps a log of them all, ``tornado.log``.
        """
        return self._read_log("tornado.log").count(f" {what} (")

    def _read_log(self, name: str) -> str:
        path = self.logfile.with_name(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def log_tail(self, lines: int = 30) -> str:
        """Quote the end of its log, or of its console while there is no log yet; never the key."""
        text = self._read_log("octoprint.log") or self._read_log("console.log")
        text = text.replace(self.api_key, "***") or "(it has not logged anything)"
        return "\n".join(text.splitlines()[-lines:])


def _is_2(version: str) -> bool:
    return int(version.partition(".")[0]) >= 2  # noqa: PLR2004 -- OctoPrint 2


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> Settings:
    """Lay settings over settings; folders are merged, everything else is replaced."""
    result = dict(base)
    for name, value in more.items():
        old = result.get(name)
        deeper = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[name] = _merged(result[name], value) if deeper else value
    return result


def _write_secret(path: Path, text: str) -> None:
    """Write a new file that only its owner can read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _free_port() -> int:
    """Find a TCP port that nobody listens on.

    Below the kernel's ephemeral range (from 32768 on): a client that keeps trying a port of that range while
    the server is down can be given that very port as its own, connect to itself, and so keep the server out.
    """
    for _ in range(100):
        port = random.SystemRandom().randrange(20000, 32768)
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", port))
                return port
    raise ServeError("no free TCP port between 20000 and 32767 on 127.0.0.1")
