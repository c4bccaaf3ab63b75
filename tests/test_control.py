"""The control socket: who gets in, what is answered, and that no client can do harm; then the commands."""

import contextlib
import dataclasses
import errno
import grp
import itertools
import json
import logging
import math
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from ctypes import CDLL
from pathlib import Path

import hypothesis.strategies as st
import pytest
from click.testing import CliRunner
from hypothesis import given, settings

import portretry_udev
from bench import Bench
from helpers import Daemon as Service
from helpers import assert_eventually
from portretry_udev import control, control_server
from portretry_udev.cli import main
from portretry_udev.config import Config
from portretry_udev.control import LINE_LIMIT, ControlError, Snapshot, ask, default_path, follow
from portretry_udev.control_server import Server
from portretry_udev.daemon import Daemon
from portretry_udev.events import Pause, Resume, Retry
from portretry_udev.port import Holder, Holders

SOON = 5.0  # seconds; all here takes milliseconds, but the machine may be busy
SINCE = 1_700_000_000.0  # 2023-11-14T22:13:20Z
FIRST = Snapshot(
    state="held",
    why="disconnected on purpose: hands off until the printer is switched off and on",
    port="/dev/serial/by-id/usb-1",
    node="/dev/ttyACM0",
    octoprint="Offline",
    since=SINCE,
    next_look=0.0,
    connects=3,
    paused=False,
    holding=True,
    news=("held", "disconnected"),
)
STATUS = {"version": 1, "command": "status"}
KEYS = ["state", "why", "port", "node", "octoprint", "holder", "since", "next_look", "connects", "events"]


class FakeWatcher:
    """A printer's watcher that does at once as it is told; `stubborn`: it keeps the port."""

    def __init__(self, name, *, stubborn=False):
        self.name = name
        self.snapshot = FIRST
        self.posted = []
        self.stubborn = stubborn

    def post(self, item):
        self.posted.append(item)
        if isinstance(item, Pause):
            self.show(paused=True, holding=self.stubborn, state="paused")
        else:
            self.show(paused=False)

    def show(self, **changes):
        self.snapshot = dataclasses.replace(self.snapshot, **changes)


class Served:
    """A server in a thread, its watchers, and plain clients."""

    def __init__(self, path, watchers, holders):
        self.path = path
        self.watchers = {watcher.name: watcher for watcher in watchers}
        self.looked_at = []
        self.holders = holders
        self.server = Server(path, watchers, lambda: "udev", holders=self._holders)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.failure = None
        self._clients = contextlib.ExitStack()
        self.thread.start()

    def _holders(self, node):
        self.looked_at.append(node)
        if isinstance(self.holders, OSError):
            raise self.holders
        return self.holders

    def _run(self):
        try:
            self.server.run()
        except BaseException as e:  # noqa: BLE001 - raised again at the end of the test
            self.failure = e

    def stop(self):
        if self.thread.is_alive():
            self.server.stop()
            self.thread.join(SOON)
            assert not self.thread.is_alive(), "the server does not end"

    def end(self):
        self._clients.close()
        self.stop()
        self.server.close()
        if self.failure is not None:
            raise self.failure

    def client(self):
        return self._clients.enter_context(RawClient(self.path))

    def posted(self):
        return [item for watcher in self.watchers.values() for item in watcher.posted]

    def works(self):
        """A newcomer is answered."""
        with RawClient(self.path) as client:
            return "printers" in client.ask(STATUS)


class RawClient:
    """Sends whatever it likes."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SOON)
        self.sock.connect(str(path))
        self.lines = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.sock.close()

    def send(self, data):
        """Send it all, or as much as they want to hear."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def ask(self, request):
        self.send(json.dumps(request).encode() + b"\n")
        return self.read()

    def read(self):
        line = self.lines.readline()
        return json.loads(line) if line else None

    def hung_up(self):
        """Nothing comes any more, and they are gone."""
        try:
            return self.lines.read() == b""
        except ConnectionResetError:
            return True


@contextlib.contextmanager
def serving(path, *watchers, holders=Holders(())):  # noqa: B008 - frozen
    served = Served(path, watchers or (FakeWatcher("mk3"), FakeWatcher("ender")), holders)
    try:
        yield served
    finally:
        served.end()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "control.sock"


@pytest.fixture
def served(path):
    with serving(path) as served:
        yield served


@pytest.fixture
def impatient(monkeypatch):
    """Clients are given 0.3 s instead of ten."""
    for end in (control, control_server):
        monkeypatch.setattr(end, "PATIENCE", 0.3)


@pytest.fixture
def one_group(monkeypatch):
    """The group of those who may use serial ports is one that any user may give files to: the own one."""
    own = grp.getgrgid(os.getegid())
    monkeypatch.setattr(grp, "getgrnam", {control_server.GROUP: own}.__getitem__)
    return own


@pytest.fixture
def other_group(monkeypatch):
    """The group of those who may use serial ports is not the one that our files get by themselves."""
    other = grp.struct_group((control_server.GROUP, "x", os.getegid() + 1, []))
    monkeypatch.setattr(grp, "getgrnam", {control_server.GROUP: other}.__getitem__)
    return other


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def make_stale(path):
    """What a killed service leaves behind."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


# -- the socket file ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize(
    ("user", "group"), [(0, "other_group"), (0, "one_group"), (1000, "other_group"), (1000, "one_group")]
)
def test_who_may_use_it(path, monkeypatch, request, umask, user, group):  # noqa: PLR0913, PLR0917
    """Root's socket is for the serial ports' group too, a user's for that user alone, whatever the umask.

    But a service may run as another user, in that group: then its socket is the group's already.
    """
    wanted = request.getfixturevalue(group)
    given = []
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((path, uid, gid)))
    before = os.umask(umask)
    try:
        with serving(path):
            assert mode(path.parent) == (0o755 if user == 0 else 0o700)
            assert mode(path) == (0o600 if (user, group) == (1000, "other_group") else 0o660)
            # Unless it must, nothing is given away: a service without CAP_CHOWN could not.
            assert given == ([(path, -1, wanted.gr_gid)] if (user, group) == (0, "other_group") else [])
    finally:
        os.umask(before)


@pytest.mark.usefixtures("one_group")
def test_nobody_gets_in_before_it_says_who_may(path, monkeypatch):
    """Even with an umask of 0 the file is private from its first moment."""
    modes = []
    inode = control_server._inode
    monkeypatch.setattr(control_server, "_inode", lambda path: modes.append(mode(path)) or inode(path))
    before = os.umask(0)
    try:
        with serving(path):
            assert modes == [0o600]
    finally:
        os.umask(before)


def test_no_such_group(path, monkeypatch):
    """Where the group does not exist, root's socket is for root alone."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    with serving(path) as served:
        assert mode(path) == 0o600
        assert served.works()


@pytest.mark.usefixtures("other_group")
def test_group_cannot_be_let_in(path, monkeypatch, caplog):
    """A service without the right to give files away says who is left out, and serves the rest."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", refuse)
    with said_by("control", caplog), serving(path) as served:
        assert mode(path) == 0o600
        assert served.works()
    assert caplog.messages == [
        f"{path}: only root may use it, as group dialout cannot be let in: Operation not permitted"
    ]


@contextlib.contextmanager
def said_by(module, caplog):
    """Have caplog hear a module's log even after another test has set the real log up."""
    log = logging.getLogger(f"portretry_udev.{module}")
    log.addHandler(caplog.handler)
    before, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.propagate = before
        log.removeHandler(caplog.handler)


def test_a_dead_services_socket_is_replaced(path):
    """What a killed service has left behind is no obstacle."""
    make_stale(path)
    with serving(path) as served:
        assert served.works()


def test_a_living_services_socket_is_left_alone(path):
    """A second service is told so, and the first one goes on."""
    with serving(path) as served:
        with pytest.raises(ControlError, match="another portretry-udev is running") as caught:
            Server(path, [], lambda: "udev")
        assert caught.value.status == os.EX_CONFIG
        assert served.works()


def test_a_living_socket_of_another_kind_is_left_alone(path):
    """Somebody's datagram socket cannot be asked, and so counts as in use."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ControlError, match="has it"):
            Server(path, [], lambda: "udev")
        assert path.is_socket()


def test_a_socket_with_a_full_queue_is_in_use(path):
    """A service that is too busy to let us in is not dead."""
    path.parent.mkdir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(full_listener(path))
        with pytest.raises(ControlError, match="has it"):
            Server(path, [], lambda: "udev")
        assert path.is_socket()


@contextlib.contextmanager
def full_listener(path):
    """A socket that nobody accepts from, its queue full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(10):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(path))
            except BlockingIOError:
                break
        else:
            raise AssertionError("the queue has no end")
        yield


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
def test_nothing_but_a_socket_is_ever_deleted(path, tmp_path, kind):
    """A wrong path costs nobody a file."""
    path.parent.mkdir()
    make_stale(tmp_path / "other.sock")
    make = {
        "file": lambda: path.write_text("precious"),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(tmp_path / "other.sock"),
        "fifo": lambda: os.mkfifo(path),
    }
    make[kind]()
    before = path.lstat()
    with pytest.raises(ControlError, match="no socket is there and is left alone"):
        Server(path, [], lambda: "udev")
    assert path.lstat() == before
    assert (tmp_path / "other.sock").is_socket()


def test_the_old_service_ends_just_now(path, monkeypatch):
    """A socket that goes away while it is looked at is no trouble."""
    make_stale(path)
    monkeypatch.setattr(control_server, "_is_served", lambda path: path.unlink(missing_ok=True))
    with serving(path):
        assert path.is_socket()


def test_another_service_begins_just_now(path, monkeypatch):
    """The socket that was found dead is not the one that is there now: that one is left alone."""
    make_stale(path)
    judged = path.with_name("judged.sock")  # kept, or the new one might get its inode

    def replaced(path):
        if not judged.exists():
            path.rename(judged)
            make_stale(path)
        return False

    monkeypatch.setattr(control_server, "_is_served", replaced)
    with pytest.raises(ControlError, match="already in use"):
        Server(path, [], lambda: "udev")
    assert path.is_socket()


def test_it_is_gone_at_the_end(path):
    """A service that ends leaves no socket behind."""
    with serving(path):
        assert path.is_socket()
    assert not path.exists()


def test_another_services_socket_is_left_at_the_end(path):
    """Whoever has taken the path over meanwhile keeps it."""
    with serving(path), contextlib.ExitStack() as stack:
        path.unlink()
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(str(path))
        theirs = path.lstat().st_ino
        stack.pop_all()
    assert path.lstat().st_ino == theirs
    other.close()


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("missing/folder/control.sock", "No such file or directory"),
        ("file/control.sock", "Not a directory"),
        ("x" * 120, "too long"),
    ],
)
def test_it_cannot_be_made(tmp_path, where, why):
    """One line says which socket and why not, and nothing is left open or lying about."""
    (tmp_path / "file").touch()
    with pytest.raises(ControlError, match=why) as caught:
        Server(tmp_path / where, [], lambda: "udev")
    assert str(caught.value).startswith(f"control socket {tmp_path / where}: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_half_made_socket_is_taken_away(path, monkeypatch):
    """Whatever goes wrong after the file was made, it does not stay."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(control_server, "_admit", refuse)
    with pytest.raises(ControlError, match="not permitted"):
        Server(path, [], lambda: "udev")
    assert not path.exists()


def test_default_path(monkeypatch):
    """The folder that systemd made, else root's, else the user's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_path({}) == Path("/run/portretry-udev/control.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_path({}) == Path("/run/user/1000/portretry-udev/control.sock")
    assert default_path({"XDG_RUNTIME_DIR": "/x"}) == Path("/x/portretry-udev/control.sock")
    assert default_path({"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path("/run/a/control.sock")


# -- answers -----------------------------------------------------------------------------------------------
def test_status(served):
    """Exactly what DESIGN section 6 promises, for each printer in the order of the configuration."""
    served.watchers["mk3"].show(next_look=time.monotonic() + 60)
    answer = served.client().ask(STATUS)
    assert list(answer) == ["version", "program", "printers", "push", "events_why"]
    assert answer["push"] == {"mk3": None, "ender": None}
    assert list(answer["printers"]) == ["mk3", "ender"]
    found = answer["printers"]["mk3"]
    assert list(found) == KEYS
    assert 0 < found.pop("next_look") <= 60
    assert found == {
        "state": "held",
        "why": FIRST.why,
        "port": "/dev/serial/by-id/usb-1",
        "node": "/dev/ttyACM0",
        "octoprint": "Offline",
        "holder": None,
        "since": "2023-11-14T22:13:20Z",
        "connects": 3,
        "events": "udev",
    }


@pytest.mark.parametrize("due", [-math.inf, 0.0])
def test_a_look_that_is_overdue(served, due):
    """The next look is never in the past, and always a number."""
    served.watchers["mk3"].show(next_look=due)
    assert served.client().ask(STATUS)["printers"]["mk3"]["next_look"] == 0


def test_status_of_one(served):
    """A name asks for that printer alone."""
    assert list(served.client().ask({**STATUS, "printer": "ender"})["printers"]) == ["ender"]


def test_no_such_printer(served):
    """The answer lists those that there are, and the client may go on."""
    client = served.client()
    answer = client.ask({**STATUS, "printer": "mk4" * 100})
    assert answer["kind"] == "printer"
    assert answer["error"].endswith("; there are: mk3, ender")
    assert len(answer["error"]) < 200
    assert "printers" in client.ask(STATUS)


def test_holder(path):
    """Who else has the port is looked up for those who ask, and not again within a second."""
    both = Holders((Holder(812, "octoprint"), Holder(900, "avrdude")))
    nowhere = FakeWatcher("ender")
    nowhere.show(node=None)
    with serving(path, FakeWatcher("mk3"), nowhere, holders=both) as served:
        assert served.looked_at == []
        for _ in range(20):
            printers = served.client().ask(STATUS)["printers"]
            assert printers["mk3"]["holder"] == "octoprint (pid 812), avrdude (pid 900)"
            assert printers["ender"]["holder"] is None
        assert set(served.looked_at) == {"/dev/ttyACM0"}
        assert len(served.looked_at) <= 1 + SOON
        served.watchers["mk3"].show(node="/dev/ttyACM1")
        assert served.client().ask(STATUS)["printers"]["mk3"]["holder"] is not None
        assert served.looked_at[-1] == "/dev/ttyACM1"


def test_a_node_that_goes_while_it_is_looked_at(path):
    """No node, no holder, no harm."""
    with serving(path, holders=FileNotFoundError(errno.ENOENT, "No such file")) as served:
        assert served.client().ask(STATUS)["printers"]["mk3"]["holder"] is None


def test_pause(served):
    """A pause is answered when the port is free, and ends when it was asked to."""
    before = time.monotonic()
    answer = served.client().ask({"version": 1, "command": "pause", "printer": "mk3", "seconds": 600})
    assert answer["pending"] == []
    assert answer["printers"]["mk3"]["state"] == "paused"
    (pause,) = served.watchers["mk3"].posted
    assert before + 600 <= pause.until <= time.monotonic() + 600
    assert served.watchers["ender"].posted == []


def test_pause_until_resume(served):
    """Without a time, it lasts; without a name, it is for all."""
    client = served.client()
    assert client.ask({"version": 1, "command": "pause"})["pending"] == []
    assert client.ask({"version": 1, "command": "resume"})["pending"] == []
    for watcher in served.watchers.values():
        assert watcher.posted == [Pause(math.inf), Resume()]


def test_retry(served):
    """A retry gets to the printer that was named."""
    answer = served.client().ask({"version": 1, "command": "retry", "printer": "ender"})
    assert list(answer["printers"]) == ["ender"]
    assert served.watchers["ender"].posted == [Retry()]
    assert served.watchers["mk3"].posted == []


def test_a_pause_that_must_wait(path, monkeypatch):
    """While OctoPrint is taking the port over, nobody is told that it is free."""
    monkeypatch.setattr(control_server, "_DONE_WITHIN", 0.2)
    with serving(path, FakeWatcher("mk3"), FakeWatcher("ender", stubborn=True)) as served:
        client = served.client()
        assert client.ask({"version": 1, "command": "pause"})["pending"] == ["ender"]
        assert "printers" in client.ask(STATUS)


def test_a_pause_waits_for_the_port(path):
    """The answer comes as soon as the port is free, and keeps no other client waiting meanwhile."""
    with serving(path, FakeWatcher("mk3", stubborn=True)) as served:
        client = served.client()
        client.send(b'{"version": 1, "command": "pause"}\n')
        assert_eventually(served.posted, SOON, "the pause did not arrive")
        assert served.works()
        served.watchers["mk3"].show(holding=False)
        assert client.read()["pending"] == []


# -- followers ---------------------------------------------------------------------------------------------
FOLLOW = {**STATUS, "follow": True}


@pytest.mark.usefixtures("impatient")
def test_follow(served):
    """A follower gets the state at once, then each change, and nothing for what is no news."""
    client = served.client()
    assert client.ask(FOLLOW)["printers"]["mk3"]["state"] == "held"
    watcher = served.watchers["mk3"]
    watcher.show(next_look=math.inf, why="in 12 s")  # as each look brings it
    client.sock.settimeout(1.0)  # longer than idle clients are kept
    with pytest.raises(TimeoutError):
        client.sock.recv(1)
    watcher.show(next_look=0.0, state="connected", news=("connected", ""))
    client.sock.settimeout(SOON)
    data = client.sock.recv(65536)
    assert data.count(b"\n") == 1
    assert json.loads(data)["printers"]["mk3"]["state"] == "connected"


def test_follow_one(served):
    """News of other printers are not for those who follow one."""
    client = served.client()
    client.ask({**FOLLOW, "printer": "ender"})
    served.watchers["mk3"].show(news=("connected", ""))
    served.watchers["ender"].show(news=("faulted", ""), state="faulted")
    answer = client.read()
    assert {name: found["state"] for name, found in answer["printers"].items()} == {"ender": "faulted"}


def test_followers_never_keep_a_pause_out(path):
    """There is a limit to followers, below that to clients."""
    with serving(path) as served:
        followers = [served.client() for _ in range(control_server.FOLLOWER_LIMIT)]
        assert all("printers" in follower.ask(FOLLOW) for follower in followers)
        late = served.client()
        assert late.ask(FOLLOW)["kind"] == "busy"
        assert late.ask({"version": 1, "command": "pause"})["pending"] == []
        followers[0].__exit__()
        assert_eventually(
            lambda: "printers" in late.ask(FOLLOW), SOON, "the place of one that has gone stays taken"
        )


@pytest.mark.usefixtures("impatient")
def test_a_follower_that_does_not_read(served):
    """It costs one answer's worth of memory, and goes after a while."""
    client = served.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client.ask(FOLLOW)
    count = iter(range(1_000_000))

    def gone():
        served.watchers["mk3"].show(why="x" * 100_000, news=("held", str(next(count))))
        return not served.server._peers

    assert_eventually(gone, 4 * SOON, "it is still there")
    assert served.works()


# -- other printers in flight --------------------------------------------------------------------------------
def test_others_in_their_place(served):
    """From then on those are asked and told of, and only those."""
    others = served.watchers["ender"], FakeWatcher("voron")
    served.server.replace(others)
    client = served.client()
    assert list(client.ask(STATUS)["printers"]) == ["ender", "voron"]
    assert client.ask({"version": 1, "command": "pause"})["pending"] == []
    assert [bool(watcher.posted) for watcher in (*others, served.watchers["mk3"])] == [True, True, False]


def test_who_follows_all_is_told_of_others(served):
    """Also where the newcomer has nothing new to say but its name."""
    client = served.client()
    client.ask(FOLLOW)
    served.server.replace([served.watchers["mk3"], FakeWatcher("voron")])
    assert list(client.read()["printers"]) == ["mk3", "voron"]


@pytest.mark.parametrize("command", [{"command": "status", "follow": True}, {"command": "pause"}])
def test_who_waits_for_one_that_is_taken_away(path, command):
    """A follower, or who waits until it is done, is told that there is no such printer any more."""
    with serving(path, FakeWatcher("mk3", stubborn=True), FakeWatcher("ender")) as served:
        client = served.client()
        client.send(json.dumps({"version": 1, "printer": "mk3", **command}).encode() + b"\n")
        if "follow" in command:
            client.read()
        else:
            assert_eventually(lambda: served.watchers["mk3"].posted, SOON, "it is not told to pause")
        served.server.replace([served.watchers["ender"]])
        assert client.read() == {
            "version": 1,
            "error": "no printer is named mk3; there are: ender",
            "kind": "printer",
        }
        assert list(client.ask(STATUS)["printers"]) == ["ender"]


def test_who_follows_one_that_is_changed_goes_on(served):
    """The successor has the same name: what it says is told."""
    client = served.client()
    client.ask({**FOLLOW, "printer": "mk3"})
    successor = FakeWatcher("mk3")
    served.server.replace([successor])
    successor.show(state="connected", news=("connected", ""))
    assert client.read()["printers"]["mk3"]["state"] == "connected"


# -- clients that mean no good -----------------------------------------------------------------------------
REFUSED = [
    b"status",
    b"",
    b"[]",
    b"1",
    b"null",
    b"\xff\xfe\x00",
    b"[" * 4000,
    b'{"a":' * 800,
    b"1" * 4090,
    b"{}",
    b'{"version": 1}',
    b'{"version": 2, "command": "status"}',
    b'{"version": true, "command": "status"}',
    b'{"version": 1, "command": "stop"}',
    b'{"version": 1, "command": ["status"]}',
    b'{"version": 1, "command": "status", "seconds": 5}',
    b'{"version": 1, "command": "status", "follow": 1}',
    b'{"version": 1, "command": "status", "printer": 7}',
    b'{"version": 1, "command": "pause", "secnods": 5}',
    b'{"version": 1, "command": "pause", "seconds": 0}',
    b'{"version": 1, "command": "pause", "seconds": -1}',
    b'{"version": 1, "command": "pause", "seconds": 1e999}',
    b'{"version": 1, "command": "pause", "seconds": NaN}',
    b'{"version": 1, "command": "pause", "seconds": true}',
    b'{"version": 1, "command": "pause", "seconds": "10m"}',
    b'{"version": 1, "command": "pause", "seconds": 1' + b"0" * 4000 + b"}",
    b'{"version": 1, "command": "pause", "follow": false}',
]


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line[:50].decode(errors="replace") or "empty")
def test_what_is_not_understood_is_refused(served, line):
    """The client is told, and hung up on; no watcher hears of it; the next one is served."""
    client = served.client()
    client.send(line + b'\n{"version": 1, "command": "retry"}\n')
    assert client.read()["kind"] in ("garbage", "version")
    assert client.hung_up()
    assert served.posted() == []
    assert served.works()


@pytest.mark.parametrize("size", [LINE_LIMIT + 1, 1_000_000])
def test_a_line_that_is_too_long(served, size):
    """No more of it is kept than a line may have."""
    client = served.client()
    client.send(b" " * size)
    assert client.read()["error"] == f"a line has at most {LINE_LIMIT} bytes"
    assert client.hung_up()
    assert served.works()


def test_a_line_as_long_as_may_be(served):
    """A request of just the limit is taken."""
    client = served.client()
    client.send(json.dumps(STATUS).encode().ljust(LINE_LIMIT) + b"\n")
    assert "printers" in client.read()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "version": st.just(1) | VALUES,
        "command": st.sampled_from(["status", "retry", "pause", "resume"]) | VALUES,
        "printer": st.sampled_from(["mk3", "ender"]) | VALUES,
        "seconds": st.integers(1, 10) | VALUES,
        "follow": st.booleans() | VALUES,
        "more": VALUES,
    },
).map(lambda request: json.dumps(request).encode())
LINES = st.lists(st.binary(max_size=200) | NEARLY, max_size=6).map(b"\n".join)


def test_any_bytes_at_all(tmp_path):
    """Whatever is sent, all that comes back is JSON lines, watchers get nothing but words, and it goes on."""
    with serving(tmp_path / "control.sock") as served:

        @settings(max_examples=300)
        @given(data=LINES)
        def any_bytes(data):
            with RawClient(served.path) as client:
                client.send(data + b"\n")
                client.sock.shutdown(socket.SHUT_WR)
                if b"follow" not in data:  # followers are never hung up on
                    answers = [json.loads(line) for line in client.lines]
                    assert all(answer["version"] == 1 for answer in answers)
            assert served.works()

        any_bytes()
        assert all(isinstance(word, Retry | Pause | Resume) for word in served.posted())


def test_a_request_in_pieces(served):
    """How the bytes are cut does not matter."""
    client = served.client()
    for byte in json.dumps(STATUS).encode() + b"\n":
        client.send(bytes([byte]))
    assert "printers" in client.read()


def test_many_requests_at_once(served):
    """Requests sent in one go are answered one after the other, in order."""
    client = served.client()
    names = ["mk3", "ender"] * 40
    client.send(b"".join(b'{"version":1,"command":"status","printer":"%s"}\n' % n.encode() for n in names))
    assert [next(iter(client.read()["printers"])) for _ in names] == names


def test_a_client_that_has_said_all(served):
    """One that closes its end after the request (`nc`) gets its answer."""
    client = served.client()
    client.send(json.dumps(STATUS).encode() + b"\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert "printers" in client.read()
    assert client.hung_up()


def test_a_client_that_does_not_wait(served):
    """A word counts though its sender has gone."""
    with RawClient(served.path) as client:
        client.send(b'{"version": 1, "command": "retry", "printer": "mk3"}\n')
    assert_eventually(lambda: served.posted() == [Retry()], SOON, served.posted)
    assert served.works()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", [b"", b'{"version": 1, '])
def test_a_client_that_says_nothing(served, sent):
    """It is dropped after a while."""
    client = served.client()
    client.send(sent)
    assert client.hung_up()


@pytest.mark.usefixtures("impatient")
def test_a_client_that_trickles(served):
    """A byte now and then keeps no place for ever."""
    client = served.client()

    def refused():
        try:
            client.sock.sendall(b" ")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    assert_eventually(refused, SOON, "it may trickle on")


@pytest.mark.usefixtures("impatient")
def test_a_client_that_does_not_read(served):
    """It cannot make the service keep its answers: nothing more of it is read, and it is dropped."""
    served.watchers["mk3"].show(why="x" * 100_000)
    client = served.client()
    request = json.dumps(STATUS).encode() + b"\n"

    def ask_for_ever():
        while True:
            client.sock.sendall(request * 50)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        ask_for_ever()
    assert served.works()


def test_a_client_that_reads_slowly(served):
    """A large answer arrives whole, however small the bites."""
    served.watchers["mk3"].show(why="x" * 1_000_000)
    client = served.client()
    client.send(json.dumps(STATUS).encode() + b"\n")
    data = b""
    while not data.endswith(b"\n"):
        data += client.sock.recv(5000)
    assert json.loads(data)["printers"]["mk3"]["why"] == "x" * 1_000_000


def test_a_client_that_goes_without_its_answer(served):
    """A reset connection is nothing special."""
    client = served.client()
    client.send(json.dumps(STATUS).encode() + b"\n")
    assert select.select([client.sock], [], [], SOON)[0]
    client.__exit__()
    assert_eventually(lambda: not served.server._peers, SOON, "it is still thought of")
    assert served.works()


def test_a_hundred_clients_at_once(served):
    """All of a hundred are answered, though no more than 64 are let in at a time."""
    clients = [served.client() for _ in range(100)]
    for client in clients:
        client.send(json.dumps(STATUS).encode() + b"\n")
    for client in clients:
        assert "printers" in client.read()
        assert len(served.server._peers) <= control_server.CLIENT_LIMIT
        client.__exit__()


@pytest.mark.usefixtures("impatient")
def test_a_hundred_silent_clients(served):
    """They keep the next one out no longer than the patience with them lasts."""
    silent = [served.client() for _ in range(100)]
    assert served.works()
    assert len(silent) == 100


def test_waiting_costs_nothing(served):
    """Clients that wait, and what followers say unasked, keep no processor busy."""
    follower = served.client()
    follower.ask(FOLLOW)
    follower.send(b"anybody there?\n" * 1000)
    waiting = [served.client() for _ in range(control_server.CLIENT_LIMIT + 5)]
    assert_eventually(
        lambda: len(served.server._peers) == control_server.CLIENT_LIMIT, SOON, "they are not let in"
    )
    rounds = []
    once = served.server._once
    served.server._once = lambda: (rounds.append(1), once())
    began = time.monotonic()
    assert_eventually(lambda: time.monotonic() - began > 1, SOON, "time stands still")
    assert len(rounds) <= 1.5 / control_server._FOLLOW_PERIOD
    assert len(waiting) == control_server.CLIENT_LIMIT + 5
    served.watchers["mk3"].show(news=("connected", ""))
    assert "printers" in follower.read()


def test_no_descriptors_left(served, monkeypatch):
    """The service outlives it, does not spin, and lets clients in afterwards."""
    real = served.server._socket.listener
    tries = []

    class Exhausted:
        def fileno(self):
            return real.fileno()

        def accept(self):
            tries.append(time.monotonic())
            if len(tries) < 4:
                raise OSError(errno.EMFILE, "Too many open files")
            return real.accept()

        def close(self):
            real.close()

    monkeypatch.setattr(control_server, "_ACCEPT_PAUSE", 0.1)
    served.server._socket.listener = Exhausted()
    assert served.works()
    assert all(later - sooner >= 0.1 for sooner, later in itertools.pairwise(tries[:4]))


# -- our own clients ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("stale", [False, True])
def test_no_service(path, stale):
    """One line: which socket, and what to do."""
    if stale:
        make_stale(path)
    with pytest.raises(ControlError) as caught:
        ask(path, "status")
    assert str(caught.value) == (
        f"no service answers at {path}: is it running? see: systemctl status portretry-udev"
    )
    assert caught.value.status == os.EX_UNAVAILABLE


def test_a_user_asks_roots_service(tmp_path, monkeypatch):
    """A user's own service is asked first, then root's; a dead one of the user's does not hide root's."""
    own, system = tmp_path / "own.sock", tmp_path / "system.sock"
    monkeypatch.setattr(control, "default_path", lambda: own)
    monkeypatch.setattr(control, "SYSTEM_PATH", system)
    with pytest.raises(ControlError, match=r"own\.sock or .*system\.sock"):
        ask(None, "status")
    with serving(system, FakeWatcher("roots")):
        make_stale(own)
        assert list(ask(None, "status")["printers"]) == ["roots"]
        with serving(own, FakeWatcher("mine")):
            assert list(ask(None, "status")["printers"]) == ["mine"]


@contextlib.contextmanager
def as_a_stranger():
    """This thread touches files as nobody (setfsuid(2) is per thread); needed only where we are root."""
    libc = CDLL(None)
    if os.geteuid() == 0:
        libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(os.geteuid())


def estrange(path, bits):
    """Make it somebody else's, as far as we may; returns owner and group."""
    owner, group = (54321, 54322) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, owner, group)
    path.chmod(bits)
    for folder in (path.parent, *path.parent.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o111)
    return control._user(owner), control._group(group)


@pytest.mark.parametrize(
    ("bits", "cure"),
    [(0o060, "it is for root and the group {group}; join that"), (0, "only {owner} may use it; try sudo")],
)
def test_permission_denied(served, bits, cure):
    """Who may not ask is told which group may."""
    owner, group = estrange(served.path, bits)
    with as_a_stranger(), pytest.raises(ControlError) as caught:
        ask(served.path, "status")
    assert str(caught.value).startswith(
        f"{served.path}: permission denied: {cure.format(owner=owner, group=group)}"
    )
    assert caught.value.status == os.EX_NOPERM


def test_permission_denied_by_the_folder(served):
    """Where not even the socket's owner can be seen, there is still something to do."""
    estrange(served.path, 0)
    served.path.parent.chmod(0)
    try:
        with as_a_stranger(), pytest.raises(ControlError, match="permission denied: try sudo"):
            ask(served.path, "status")
    finally:
        served.path.parent.chmod(0o700)


def test_another_users_service_is_left_alone(served):
    """A socket that we may not ask whether anybody listens counts as somebody's."""
    estrange(served.path, 0)
    with as_a_stranger(), pytest.raises(ControlError, match="Permission denied"):
        Server(served.path, [], lambda: "udev")
    assert served.path.is_socket()


HANGS_UP = object()


@contextlib.contextmanager
def answering(path, answer):
    """A service that says one thing only, whatever it is asked; None: nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            sock, _ = listener.accept()
            with sock:
                if answer is HANGS_UP:
                    select.select([sock], [], [], SOON)  # closed unread: they get ECONNRESET
                    return
                sock.recv(4096)
                if answer is None:
                    ended.wait(SOON)
                else:
                    sock.sendall(answer)

        ended = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b'{"version": 2, "printers": {}}\n', "another version: restart it"),
        (b'{"version": 1, "error": "speaks version 0 only", "kind": "version"}\n', "another version"),
        (b"HTTP/1.1 400 Bad Request\r\n", "another version"),
        (b"", "has ended"),
        (None, "does not answer"),
        (HANGS_UP, "hung up: Connection reset by peer"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_service_that_does_not_answer_as_it_should(tmp_path, answer, why):
    """Whatever is at the other end, the command ends with one line."""
    path = tmp_path / "odd.sock"
    with answering(path, answer), pytest.raises(ControlError, match=why) as caught:
        ask(path, "status")
    assert caught.value.status == os.EX_UNAVAILABLE


@pytest.mark.usefixtures("impatient")
def test_a_service_that_lets_nobody_in(tmp_path):
    """A stopped service with a full queue does not keep its clients for ever."""
    path = tmp_path / "full.sock"
    with full_listener(path), pytest.raises(ControlError, match="does not answer") as caught:
        ask(path, "status")
    assert caught.value.status == os.EX_UNAVAILABLE


def test_following_ends_with_the_service(served):
    """Who follows is told when there is nothing to follow any more."""
    answers = follow(served.path, "mk3")
    assert list(next(answers)["printers"]) == ["mk3"]
    served.stop()
    with pytest.raises(ControlError, match="has ended"):
        next(answers)


# -- the commands ------------------------------------------------------------------------------------------
def run(served, *arguments):
    return CliRunner().invoke(main, [*arguments, "--control", str(served.path)])


def test_status_json(served):
    """Scripts get exactly the printers, as JSON."""
    result = run(served, "status", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert list(answer) == ["printers"]
    assert [list(found) for found in answer["printers"].values()] == [KEYS, KEYS]


def test_status_for_people(path, monkeypatch):
    """A table: name, state and since when; below it why, and who has the port."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: SINCE + 3.5 * 86400)
    with serving(path, FakeWatcher("mk3"), holders=Holders((Holder(812, "avrdude"),))) as served:
        served.watchers["mk3"].show(next_look=time.monotonic() + 7.9)
        result = run(served, "status", "mk3")
    assert result.stdout.splitlines() == [
        "NAME  STATE         SINCE                FOR     NEXT LOOK",
        "mk3   held          2023-11-14 22:13:20  3 d     in 8 s",
        "  disconnected on purpose: hands off until the printer is switched off and on",
        "  /dev/serial/by-id/usb-1 -> /dev/ttyACM0, in use by avrdude (pid 812)",
    ]


def test_status_fits_a_terminal(path):
    """80 columns hold the longest names, ports and sentences; what others say cannot steer the terminal."""
    names = ["a", "p" * 30, "n" * 64]
    by_id = "/dev/serial/by-id/usb-Prusa_Research__prusa3d.com__Original_Prusa_i3_MK3_" + "C" * 40
    with serving(path, *map(FakeWatcher, names)) as served:
        for name in names:
            why = "OctoPrint says '\x1b[2J\r\n\u202e" + "word " * 60 + "'"
            served.watchers[name].show(state="unconfigured", why=why, port=by_id)
        lines = run(served, "status").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    assert "".join(by_id.split()) in "".join("".join(lines).split())


def test_status_without_a_port(served):
    """A printer that nobody has named a port for shows none."""
    served.watchers["mk3"].show(state="unconfigured", why="no port is known", port=None, node=None)
    result = run(served, "status", "mk3")
    assert result.stdout.splitlines()[2:] == ["  no port is known"]


def on_a_terminal(*arguments, **variables):
    """What a command writes to a terminal."""
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    environment |= {"PYTHONPATH": str(Path(portretry_udev.__file__).parents[1]), "TERM": "xterm", **variables}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "portretry_udev", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: they have closed it
            while data := os.read(ours, 65536):
                seen += data
    os.close(ours)
    return seen.decode()


def test_colours(served):
    """Colours are for terminals, and for nobody who asks for none."""
    command = ["status", "--control", str(served.path)]
    assert "\x1b[33mheld" in on_a_terminal(*command)
    plain = on_a_terminal(*command, NO_COLOR="1")
    assert "held" in plain
    assert "\x1b" not in plain
    assert "\x1b" not in run(served, "status").stdout


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_status_follow(served, flags):
    """It is said anew at each change, until the service ends."""
    results = []
    thread = threading.Thread(
        target=lambda: results.append(run(served, "status", "mk3", "--follow", *flags)), daemon=True
    )
    thread.start()

    def followed():
        return [peer for peer in served.server._peers.values() if peer.request and not peer.to_send]

    assert_eventually(followed, SOON, "nobody follows")
    peer = followed()[0]
    before = peer.shown
    served.watchers["mk3"].show(state="connected", news=("connected", ""))
    assert_eventually(lambda: peer.shown != before and not peer.to_send, SOON, "the change is not told")
    served.stop()
    thread.join(SOON)
    (result,) = results
    assert result.exit_code == os.EX_UNAVAILABLE
    assert "has ended" in result.stderr
    if flags:
        states = [json.loads(line)["printers"]["mk3"]["state"] for line in result.stdout.splitlines()]
    else:
        states = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("mk3")]
    assert states == ["held", "connected"]


def test_status_follow_is_interrupted(served):
    """Ctrl-C ends it without a word."""
    environment = {**os.environ, "PYTHONPATH": str(Path(portretry_udev.__file__).parents[1])}
    command = [sys.executable, "-m", "portretry_udev", "status", "--follow", "--control", str(served.path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdout.readline().startswith("NAME")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SOON)
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "paused", "seconds", "said"),
    [
        ([], ["mk3", "10m"], math.inf, "mk3: paused until `portretry-udev resume`"),
        (["mk3"], ["mk3"], math.inf, "mk3: paused until `portretry-udev resume`"),
        (["90s"], ["mk3", "10m"], 90, "mk3: paused for 90 s"),
        (["1h30m"], ["mk3", "10m"], 5400, "mk3: paused for 90 min"),
        (["10m"], ["10m"], math.inf, "10m: paused until `portretry-udev resume`"),
        (["mk3", "--for", "2h"], ["mk3"], 7200, "mk3: paused for 2 h"),
        (["--for", "3d"], ["mk3", "10m"], 259200, "mk3: paused for 3 d"),
    ],
)
def test_pause_command(path, arguments, paused, seconds, said):
    """A name, a time, both or none; a printer with the name of a time is a printer."""
    with serving(path, FakeWatcher("mk3"), FakeWatcher("10m")) as served:
        result = run(served, "pause", *arguments)
        assert result.exit_code == 0, result.output
        assert said in result.stdout.splitlines()
        words = {name: watcher.posted for name, watcher in served.watchers.items() if watcher.posted}
        assert list(words) == paused
        for (word,) in words.values():
            assert seconds == math.inf == word.until or abs(word.until - time.monotonic() - seconds) < SOON


@pytest.mark.parametrize("time_", ["10", "0s", "m", "-5m", "10m ", "1e3s", "367d", "\u0661m"])
def test_no_duration(served, time_):
    """What is no duration pauses nothing."""
    result = run(served, "pause", f"--for={time_}")
    assert result.exit_code == 2
    assert "no duration" in result.stderr
    assert run(served, "pause", "--", time_).exit_code != 0
    assert served.posted() == []


def test_pause_says_who_else_has_the_port(path):
    """Whoever pauses to flash learns that the port is not free."""
    with serving(path, FakeWatcher("mk3"), holders=Holders((Holder(812, "octoprint"),))) as served:
        result = run(served, "pause")
    assert result.stdout == (
        "mk3: paused until `portretry-udev resume`; the port is in use by octoprint (pid 812)\n"
    )


def test_pause_that_must_wait(path, monkeypatch):
    """`pause && flash` does not flash while OctoPrint is taking the port over."""
    monkeypatch.setattr(control_server, "_DONE_WITHIN", 0.1)
    with serving(path, FakeWatcher("mk3", stubborn=True)) as served:
        result = run(served, "pause")
    assert result.exit_code == os.EX_TEMPFAIL
    assert result.stdout == ""
    assert "mk3: OctoPrint is just connecting" in result.stderr


def test_retry_and_resume_commands(served):
    """Each gets to the printer that was named, or to all."""
    assert run(served, "retry", "mk3").stdout.startswith("mk3: looking anew")
    assert run(served, "resume").stdout == "mk3: watched again\nender: watched again\n"
    assert served.watchers["mk3"].posted == [Retry(), Resume()]
    assert served.watchers["ender"].posted == [Resume()]


@pytest.mark.parametrize("command", ["status", "retry", "pause", "resume"])
def test_a_name_that_is_none(served, command):
    """The message lists the names; nothing is done; exit status 64."""
    result = run(served, command, "mk4\x1b")
    assert result.exit_code == os.EX_USAGE
    assert result.stderr == "portretry-udev: no printer is named mk4?; there are: mk3, ender\n"
    assert served.posted() == []


@pytest.mark.parametrize("command", [["status"], ["status", "--follow"], ["retry"], ["pause"], ["resume"]])
def test_commands_without_a_service(path, command):
    """One line on stderr, nothing on stdout, exit status 69."""
    result = CliRunner().invoke(main, [*command, "--control", str(path)])
    assert result.exit_code == os.EX_UNAVAILABLE
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert str(path) in result.stderr


def test_where_the_socket_is(served, tmp_path, monkeypatch):
    """By flag, variable or configuration file, of which nothing else needs to be right or readable."""
    file = tmp_path / "config.toml"
    file.write_text(f'control = "{served.path}"\n[printers.mk3]\napi_key_file = "/root/secret"\n')
    runner = CliRunner(env={"PORTRETRY_CONTROL": None, "PORTRETRY_CONFIG": None})
    assert runner.invoke(main, ["status", "--config", str(file)]).exit_code == 0
    assert runner.invoke(main, ["--config", str(file), "status"]).exit_code == 0
    assert runner.invoke(main, ["status"], env={"PORTRETRY_CONFIG": str(file)}).exit_code == 0
    assert runner.invoke(main, ["status"], env={"PORTRETRY_CONTROL": str(served.path)}).exit_code == 0
    monkeypatch.chdir(served.path.parent)
    assert runner.invoke(main, ["status", "--control", served.path.name]).exit_code == 0


@pytest.mark.parametrize("content", [None, "control = \n"])
def test_a_configuration_that_was_named_must_be_there(tmp_path, content):
    """A slip in --config is told, and not taken for the default."""
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_text(content)
    result = CliRunner().invoke(main, ["status", "--config", str(file)])
    assert result.exit_code == os.EX_CONFIG
    assert str(file) in result.stderr


# -- with the real service ---------------------------------------------------------------------------------
class NoDevices:
    """A machine without printers and without events."""

    events = "none"
    events_why = "a test"
    retry_at = None

    def __init__(self):
        self._ends = os.pipe()

    def start(self):
        pass

    def fileno(self):
        return self._ends[0]

    def read(self):
        return []

    def close(self):
        for end in self._ends:
            os.close(end)


def test_a_default_socket_that_cannot_be_made(tmp_path, monkeypatch, caplog):
    """Watching matters more: one warning, and the service goes on."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(control, "default_path", lambda: tmp_path / "file" / "control.sock")
    daemon = Daemon(Config((), tmp_path), devices=NoDevices())
    with said_by("daemon", caplog):
        thread = threading.Thread(target=daemon.run)
        thread.start()
        assert_eventually(lambda: len(caplog.messages) == 2, SOON, lambda: caplog.messages)
        assert thread.is_alive()
        daemon.stop()
        thread.join(SOON)
    assert caplog.messages[0] == (
        f"control socket {tmp_path}/file/control.sock: Not a directory "
        "(without it: no status, retry, pause, resume)"
    )


def test_an_unforeseen_error_in_the_server_ends_the_service(path, monkeypatch):
    """A service that cannot be asked any more does not seem alive."""

    def fail(_self):
        raise ZeroDivisionError

    monkeypatch.setattr(Server, "run", fail)
    with pytest.raises(ZeroDivisionError):
        Daemon(Config((), path.parent, path), devices=NoDevices()).run()
    assert not path.exists()


@pytest.fixture
def bench(tmp_path):
    """A printer that is off, so that it is listened to, and an OctoPrint."""
    with Bench(tmp_path, powered=False) as bench:
        yield bench


def service(bench, path):
    return Service(
        *("--octoprint", bench.octoprint.url, "--api-key-file", bench.key_file, "--port", bench.link),
        *("--interval", "0.5", "--state-dir", bench.state_dir, "--control", path),
    )


def state(path):
    return ask(path, "status")["printers"]["printer"]["state"]


def test_a_pause_lets_go_of_the_port_and_survives_a_restart(bench, path):
    """When `pause` has answered, the port is free; it stays so over a restart, until `resume`."""
    with service(bench, path) as watching:
        watching.expect("listening")
        assert_eventually(lambda: bench.printer.stats().holders == 1, SOON, "the port is not listened to")
        found = ask(path, "status")["printers"]["printer"]
        assert (found["port"], found["node"]) == (str(bench.link), os.path.realpath(bench.link))
        assert (found["state"], found["connects"]) == ("listening", 0)
        assert ask(path, "pause", seconds=3600)["pending"] == []
        assert bench.printer.stats().holders == 0
        watching.stop()
    assert not path.exists()
    with service(bench, path) as watching:
        watching.expect("paused")
        opens = bench.printer.stats().opens
        asked = len(bench.octoprint.requests)
        assert_eventually(lambda: len(bench.octoprint.requests) > asked + 4, SOON, "it does not look")
        assert bench.printer.stats().opens == opens
        assert ask(path, "resume")["pending"] == []
        assert_eventually(lambda: state(path) == "listening", SOON, lambda: state(path))
        watching.stop()
    with service(bench, path) as watching:
        watching.expect("listening")
        watching.stop()


def test_retry_after_a_disconnect(bench, path):
    """`held` by a person's word until a person says `retry`."""
    bench.printer.power_on()
    with service(bench, path) as watching:
        watching.expect("connected")
        bench.octoprint.person_disconnects()
        watching.expect("held")
        assert state(path) == "held"
        ask(path, "retry", printer="printer")
        watching.expect("connected")
        assert ask(path, "status")["printers"]["printer"]["connects"] == 2
        watching.stop()


def test_a_configured_socket_that_cannot_be_made(bench, path):
    """That is a mistake in the configuration: nothing is started, and systemd does not try again (78)."""
    with serving(path) as served, service(bench, path) as watching:
        watching.expect("another portretry-udev is running and has it")
        assert_eventually(lambda: not watching.running(), SOON, "it goes on")
        assert watching.end() == os.EX_CONFIG
        assert served.works()
    assert bench.octoprint.requests == []


def test_pause_by_command_ends_by_itself_also_over_a_restart(bench, path):
    """`pause 6s`: the port is free when the command has ended, and watched again when the time is over."""
    with service(bench, path) as watching:
        watching.expect("listening")
        assert_eventually(lambda: bench.printer.stats().holders == 1, SOON, "the port is not listened to")
        began = time.monotonic()
        result = CliRunner().invoke(main, ["pause", "6s", "--control", str(path)])
        assert bench.printer.stats().holders == 0
        assert (result.exit_code, result.stdout) == (0, "printer: paused for 6 s\n")
        watching.stop(within=SOON)
    with service(bench, path) as watching:
        watching.expect("paused")
        watching.expect("listening")
        assert 6 <= time.monotonic() - began < 6 + SOON
        watching.stop(within=SOON)


def test_a_hundred_clients_keep_no_printer_waiting(bench, path):
    """Silent, flooding, following and half-spoken ones at once: the printer comes back as if nobody asked."""
    with service(bench, path) as watching, contextlib.ExitStack() as stack:
        watching.expect("listening")
        over = threading.Event()

        def flood(client):
            while not over.is_set():
                try:
                    client.sock.sendall(b'{"version": 1, "command": "status"}\n' * 20)
                except OSError:  # hung up, or nobody reads any more
                    return

        floods = []
        for number in range(100):
            client = stack.enter_context(RawClient(path))
            match number % 4:
                case 0:
                    client.send(b"\xff{" * 3000)
                case 1:
                    client.send(json.dumps(STATUS | {"follow": True}).encode() + b"\n")
                case 2:
                    client.send(b'{"version": 1, "comm')
                case 3:
                    floods.append(threading.Thread(target=flood, args=(client,)))
                    floods[-1].start()
        try:
            bench.printer.power_on()
            watching.expect("connected", timeout=SOON)
        finally:
            over.set()
            stack.close()
            for thread in floods:
                thread.join(SOON)
        assert_eventually(lambda: state(path) == "connected", 2 * SOON, "it does not answer any more")
        watching.stop(within=SOON)
