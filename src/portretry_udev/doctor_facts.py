"""Finds out what the doctor's checks want to know of the machine and of our service.

Knows /proc, /sys, systemctl and clocks.  Must not judge anything: what follows from a fact is for the checks.
It opens no serial port, and changes nothing; the one thing that it sends, as root, is an event of a spare
virtual console, which says that nothing has happened to that.
"""

import contextlib
import ctypes
import grp
import os
import pwd
import select
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from portretry_udev import control, inotify, listing
from portretry_udev.config import Survey
from portretry_udev.devices import Uevent
from portretry_udev.facts import ALL_CAPABILITIES, Access, Folder, Machine, Process, RuleFile, Service
from portretry_udev.surroundings import Surroundings
from portretry_udev.udev_rule import UNIT

RULE = "99-portretry.rules"
PRINTERS_RULE = "99-portretry-printers.rules"
_RULE_FOLDERS = (  # the first that has a file of that name counts (udev(7))
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
)
TAKERS = frozenset({"ModemManager", "brltty", "gpsd"})
"""Programs that take serial ports that nobody has given to them."""
_SPARES = ("tty62", "tty63", "ttyprintk")  # virtual consoles that no machine uses: nobody minds their events
_HEARD_WITHIN = 1.0  # seconds; udevd needs some 20 ms
_RUNS_FOR = 10.0  # seconds, at most
_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "FragmentPath",
    "ConditionResult",
    "ConditionTimestamp",
    "Result",
    "ExecMainStatus",
    "Type",
    "WatchdogUSec",
    "NeedDaemonReload",
    "ProtectHome",
    "ProtectSystem",
    "PrivateTmp",
    "ReadWritePaths",
    "User",
    "Group",
    "SupplementaryGroups",
    "CapabilityBoundingSet",
    "DevicePolicy",
    "DeviceAllow",
)
# Told by no `systemctl show` (252: "[unprintable]"), so they are read where they are written.
_CREDENTIALS = ("LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted")
_NOBODY = -1  # no user has this number
_TIME_ERROR = 5  # <linux/timex.h>: nobody keeps the clock
_THROTTLED = 0x10001  # vcgencmd get_throttled: under-voltage now, and since the boot

Run = Callable[[Sequence[str]], str]
"""Runs a program; its stdout.  OSError, with a text for people: it cannot be run, or fails."""


class Listens(Protocol):
    """What is used of `devices.Devices` to hear an event."""

    def start(self) -> None:
        """Begin to listen."""

    def fileno(self) -> int:
        """Give the descriptor to wait on."""

    def read(self) -> list[Uevent]:
        """Give the news; never waits."""


def run(command: Sequence[str]) -> str:
    """See `Run`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RUNS_FOR, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} does not end") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise OSError(lines[0] if lines else f"{command[0]} fails with status {done.returncode}")
    return done.stdout


@dataclass(frozen=True)
class Kernel:
    """What can only be asked of the kernel that runs here; the seam for tests.

    Attributes:
        user: who we are.
        now: gives seconds since 1970.
        synchronised: says whether anybody keeps its clock; None: it does not tell.
        deaf: says why inotify cannot be used; empty if it can.
        space: as os.statvfs.
    """

    user: int = field(default_factory=os.geteuid)
    now: Callable[[], float] = time.time
    synchronised: Callable[[], bool | None] = lambda: _synchronised()  # noqa: PLW0108 - it stands below
    deaf: Callable[[], str] = lambda: _deaf()  # noqa: PLW0108
    space: Callable[[Path], os.statvfs_result] = os.statvfs


class Reader:
    """Reads them.

    Args:
        devices: to hear an event by.
        root: where /proc, /sys, /etc and the rest are, for tests.
        run: runs a program.
        kernel: the one that runs here.
    """

    def __init__(
        self, devices: Listens, root: str = "/", run: Run = run, kernel: Kernel | None = None
    ) -> None:
        self._devices = devices
        self._root = Path(root)
        self._run = run
        self._kernel = kernel or Kernel()

    def machine(self, survey: Survey, socket: Path | None, majors: frozenset[int] = frozenset()) -> Machine:
        """All of it.

        Args:
            survey: of the configuration.
            socket: of the service; None: where one is by default.
            majors: the device numbers of the printers' ports.
        """
        hearing = Surroundings(str(self._root)).hearing()
        heard, unsent = (None, "") if hearing.events == "none" else self._send()
        return Machine(
            root=self._kernel.user == 0,
            survey=survey,
            majors=majors,
            drivers=self._drivers(),
            hearing=hearing,
            heard=heard,
            unsent=unsent,
            deaf=self._kernel.deaf(),
            now=self._kernel.now(),
            synchronised=self._kernel.synchronised(),
            state=None if survey.state_dir is None else self._folder(survey.state_dir),
            running=self._running(),
            undervoltage=self._undervoltage(),
            rule=self._rule(RULE),
            printers_rule=self._rule(PRINTERS_RULE),
            service=self.service(socket),
        )

    # -- events ------------------------------------------------------------------------------------------
    def _send(self) -> tuple[bool | None, str]:
        """Send ourselves an event that is about nothing; whether it was heard, or why none was sent."""
        if self._kernel.user != 0:
            return None, "only root may send one"
        folder = self._root / "sys/class/tty"
        name = next((each for each in _SPARES if (folder / each / "uevent").exists()), None)
        if name is None:
            return None, "there is no spare console to send one for"
        self._devices.start()
        try:
            (folder / name / "uevent").write_text("change")
        except OSError as error:
            return None, f"none can be sent: {error.strerror}"
        poll = select.poll()
        poll.register(self._devices.fileno(), select.POLLIN)
        end = time.monotonic() + _HEARD_WITHIN
        while (left := end - time.monotonic()) > 0:
            poll.poll(left * 1000)
            if any(uevent.node == f"/dev/{name}" for uevent in self._devices.read()):
                return True, ""
        return False, ""

    # -- files -------------------------------------------------------------------------------------------
    def _rule(self, name: str) -> RuleFile:
        for folder in _RULE_FOLDERS:
            path = self._root / folder / name
            if not os.path.lexists(path):
                continue
            if path.is_symlink() and str(path.readlink()) == os.devnull:
                return RuleFile(path, off=True)
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                return RuleFile(path)
            return RuleFile(path, not text.strip(), text)
        return RuleFile(None)

    def _folder(self, path: Path) -> Folder:
        there = next((each for each in (path, *path.parents) if each.exists()), Path("/"))
        space, spoilt = self._kernel.space(there), []
        with contextlib.suppress(OSError):
            spoilt = sorted(each.name for each in path.glob("*.json.corrupt"))
        return Folder(
            path,
            bool(space.f_flag & os.ST_RDONLY),
            space.f_bavail * space.f_frsize,
            _access(there, there.stat()),
            tuple(spoilt),
        )

    def _undervoltage(self) -> str:
        for name in sorted((self._root / "sys/class/hwmon").glob("*/name")):
            with contextlib.suppress(OSError):
                if name.read_text().strip() == "rpi_volt":
                    alarm = (name.parent / "in0_lcrit_alarm").read_text().strip()
                    return "the kernel's sensor rpi_volt has seen it" if alarm == "1" else ""
        if shutil.which("vcgencmd"):
            with contextlib.suppress(OSError, ValueError):
                told = self._run(["vcgencmd", "get_throttled"]).strip()
                if int(told.partition("=")[2], 16) & _THROTTLED:
                    return f"vcgencmd get_throttled says {told}"
        return ""

    # -- processes ---------------------------------------------------------------------------------------
    def _pids(self) -> Iterator[int]:
        with contextlib.suppress(OSError):
            yield from sorted(
                int(each.name) for each in (self._root / "proc").iterdir() if each.name.isdigit()
            )

    def _running(self) -> frozenset[str]:
        found = set()
        for pid in self._pids():
            with contextlib.suppress(OSError):
                found.add((self._root / "proc" / str(pid) / "comm").read_text(errors="replace").strip())
        return frozenset(found) & TAKERS

    def process(self, pid: int) -> Process | None:
        """Who a process is; None: it has ended."""
        fields: dict[str, list[str]] = {}
        try:
            for line in (self._root / "proc" / str(pid) / "status").read_text(errors="replace").splitlines():
                name, _, value = line.partition(":")
                fields[name] = value.split()
            groups = frozenset(map(int, [*fields["Gid"][1:2], *fields["Groups"]]))
            return Process(pid, int(fields["Uid"][1]), groups, int(fields["CapEff"][0], 16))
        except (OSError, LookupError, ValueError):
            return None

    # -- the service -------------------------------------------------------------------------------------
    def service(self, socket: Path | None) -> Service:
        """What is there of our service."""
        # There may be more than one; what is asked is the one to be spoken of.
        pid = control.server_pid(socket)
        answers = None if pid is None else self.process(pid)
        ours = [answers] if answers else map(self.process, self._pids_of_services())
        answer, trouble, refused = None, "", False
        try:
            answer = control.ask(socket, "status")
        except control.ControlError as error:
            trouble, refused = str(error), error.status == os.EX_NOPERM
        unit, unread = self._unit()
        return Service(
            self._manager(),
            unit,
            unread,
            tuple(each for each in ours if each is not None),
            answer,
            trouble,
            refused,
            _would_be(unit),
        )

    def _pids_of_services(self) -> list[int]:
        return [pid for pid in self._pids() if listing.is_service(pid, self._root / "proc")]

    def _manager(self) -> str:
        if (self._root / "run/systemd/system").is_dir():
            return "systemd"
        with contextlib.suppress(OSError):
            return (self._root / "proc/1/comm").read_text(errors="replace").strip()
        return "something unknown"

    def _unit(self) -> tuple[Mapping[str, str] | None, str]:
        if self._manager() != "systemd":
            return None, ""
        try:
            told = self._run(["systemctl", "show", UNIT, f"--property={','.join(_PROPERTIES)}"])
        except OSError as error:
            return {}, str(error)
        found: dict[str, str] = {}
        for name, _, value in (line.partition("=") for line in told.splitlines()):
            found[name] = f"{found[name]}; {value}" if name in found else value  # DeviceAllow: one a line
        if found.get("LoadState") == "loaded":
            with contextlib.suppress(OSError):  # one that systemd-run has made is in no file
                found |= _credentials(self._run(["systemctl", "cat", UNIT]))
        return found, ""

    def _drivers(self) -> dict[int, frozenset[str]]:
        found: dict[int, frozenset[str]] = {}
        with contextlib.suppress(OSError):
            characters = (self._root / "proc/devices").read_text(errors="replace").partition("\n\n")[0]
            for line in characters.splitlines():
                major, _, name = line.strip().partition(" ")
                if major.isdigit():
                    found[int(major)] = found.get(int(major), frozenset()) | {name}
        return found


def _credentials(unit: str) -> dict[str, str]:
    """What a unit and its drop-ins hand over; an empty line takes back those before it."""
    found = dict.fromkeys(_CREDENTIALS, "")
    for name, _, value in (line.partition("=") for line in unit.splitlines()):
        if name in found:
            found[name] = f"{found[name]}; {value}" if found[name] and value else value
    return found


def _would_be(unit: Mapping[str, str] | None) -> Process:
    """Who the service is when it runs: as its unit says, else who we are."""
    if not unit:
        mine = frozenset({os.getegid(), *os.getgroups()})
        return Process(0, os.geteuid(), mine, ALL_CAPABILITIES if os.geteuid() == 0 else 0)
    user, groups, number = unit.get("User") or "root", set(), _NOBODY
    with contextlib.suppress(KeyError):  # one that systemd will make (DynamicUser=)
        who = pwd.getpwnam(user)
        number, groups = who.pw_uid, set(os.getgrouplist(user, who.pw_gid))
    for name in (*unit.get("Group", "").split(), *unit.get("SupplementaryGroups", "").split()):
        with contextlib.suppress(KeyError):
            groups.add(grp.getgrnam(name).gr_gid)
    capable = number == 0 and "cap_dac_override" in unit.get("CapabilityBoundingSet", "cap_dac_override")
    return Process(0, number, frozenset(groups), ALL_CAPABILITIES if capable else 0)


def access(path: str | Path) -> Access | None:
    """Who may open a node or a file; None: it cannot be looked at."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return _access(path, found)


def _access(path: str | Path, found: os.stat_result) -> Access:
    listed = False
    with contextlib.suppress(OSError):
        listed = bool(os.getxattr(path, "system.posix_acl_access"))
    return Access(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, listed)


def _deaf() -> str:
    """Why inotify cannot be used; empty if it can."""
    try:
        with inotify.Inotify() as made:
            made.add("/dev", inotify.CREATE)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _synchronised() -> bool | None:
    """Whether anybody keeps the kernel's clock; asking (modes = 0) needs no right (adjtimex(2))."""
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # struct timex has 208 bytes
    return None if answer < 0 else answer != _TIME_ERROR
