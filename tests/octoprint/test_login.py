"""A key is got from real OctoPrints: allowed, denied, timed out, by password, through proxies and TLS.

The command runs as its own process.  Each story's requests seem to come from an address of their own, as
OctoPrint takes only three requests for a key a minute from each: the proxy in front of it says so.
"""

import contextlib
import http.client
import itertools
import json
import os
import ssl
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import portretry_udev
from helpers import assert_eventually

pytestmark = pytest.mark.octoprint

SOON = 10.0  # seconds; a start of Python and a few requests, on a busy machine
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}
PASSWORD = "a password of the boss's"
CALL = "import sys; from portretry_udev.cli_login import login; login(sys.argv[1:], 'portretry-udev login')"
addresses = (f"10.0.{number // 250}.{number % 250 + 1}" for number in itertools.count())

# A certificate for 127.0.0.1, and its key, made for these tests alone.
CERTIFICATE_PEM = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg9QrFk5/s7RBgSh+j
sg2ehOLRv8vk+oANHHYuoOP6MpqhRANCAAQysyOeRWy+GSliT83QorPYS3i3kHqt
4THMNv5TdwCAf9VhtYap6pUkLgTiP0Z0DRXZmPrOzUZBB63WVqx5fLqt
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBoTCCAUagAwIBAgIUEy9yZJI6DmJCNYnoGq+6DHuqNUEwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJdGVzdCBvbmx5MCAXDTI2MTEyMjExMTgwNVoYDzIxMjYxMDI5
MTExODA1WjAUMRIwEAYDVQQDDAl0ZXN0IG9ubHkwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQysyOeRWy+GSliT83QorPYS3i3kHqt4THMNv5TdwCAf9VhtYap6pUk
LgTiP0Z0DRXZmPrOzUZBB63WVqx5fLqto3QwcjAdBgNVHQ4EFgQUVBdOs4a+RTPy
rHdJuzPDGh9KLAUwHwYDVR0jBBgwFoAUVBdOs4a+RTPyrHdJuzPDGh9KLAUwDwYD
VR0RBAgwBocEfwAAATAOBgNVHQ8BAf8EBAMCAoQwDwYDVR0TAQH/BAUwAwEB/zAK
BggqhkjOPQQDAgNJADBGAiEAupudAEHDY7o06s0X2WJkQDhg0Poez/5+Y0wmRCcb
cggCIQDIVpah6/Tq45HX6CNhlA57z5Ho612uyaz/drCHqXyzJg==
-----END CERTIFICATE-----
"""


class Proxy:
    """A reverse proxy before OctoPrint, under a path of its own and, if wished, with TLS."""

    def __init__(self, server, prefix="", tls=None):
        self.requests = 0
        proxy, address = self, next(addresses)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    super().handle_one_request()

            def forward(self):
                proxy.requests += 1
                if not self.path.startswith(f"{prefix}/"):
                    self.send_error(404)
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {
                    name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP
                }
                headers |= {"X-Forwarded-For": address, "X-Scheme": "https" if tls else "http"}
                headers |= {"X-Script-Name": prefix} if prefix else {}
                upstream = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=SOON)
                with contextlib.closing(upstream):
                    upstream.request(self.command, self.path.removeprefix(prefix), body, headers)
                    answer = upstream.getresponse()
                    content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {*HOP_BY_HOP, "content-length"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_HEAD = do_POST = forward  # noqa: N815 - the names that http.server calls

            def log_message(self, *_):
                """Not on the tests' stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}{prefix}"

    def __enter__(self):
        # A hand-shake that fails raises in accept(): socketserver passes over it, as it is an OSError.
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class Login:
    """``portretry-udev login`` as its own process, and what can be seen of it from outside."""

    def __init__(self, folder, *arguments, typed=None):
        self._out, self._err = folder / "stdout", folder / "stderr"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PORTRETRY_")}
        environment["PYTHONPATH"] = str(Path(portretry_udev.__file__).parents[1])
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CALL, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=environment,
            )
        self._seen = [self._look()]
        with self._process.stdin as stdin:
            stdin.write((typed or "").encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()

    def _look(self):
        """What others could read of it, and of its children."""
        me = self._process.pid
        seen = b""
        for process in (me, *Path(f"/proc/{me}/task/{me}/children").read_text().split()):
            seen += (
                Path(f"/proc/{process}/cmdline").read_bytes() + Path(f"/proc/{process}/environ").read_bytes()
            )
        return seen.decode(errors="replace")

    @property
    def out(self):
        return self._out.read_text()

    @property
    def err(self):
        return self._err.read_text()

    def asks(self):
        """Wait until it asks for a click; returns the link that it shows."""
        assert_eventually(lambda: "Waiting for" in self.err, SOON, lambda: f"it asks, but {self.err}")
        self._seen.append(self._look())
        return next(line for line in self.err.splitlines() if "/plugin/appkeys/auth/" in line)

    def ends(self, timeout=SOON):
        """Wait until it has ended; returns its exit status."""
        return self._process.wait(timeout)

    def everything(self):
        """All that it has shown to anybody."""
        return "\n".join([self.out, self.err, *self._seen])


class Desk:
    """A person with a configuration of one printer, and OctoPrint's administrator at hand."""

    def __init__(self, octoprint, folder):
        self.octoprint, self.folder = octoprint, folder
        self.key = folder / "keys" / "mk3.key"
        self._count = itertools.count(1)
        self._stack = contextlib.ExitStack()

    def close(self):
        self._stack.close()

    def proxy(self, prefix="", tls=None):
        return self._stack.enter_context(Proxy(self.octoprint, prefix, tls))

    def login(self, url, *arguments, ca_file=None, typed=None):
        config = f'[printers.mk3]\noctoprint = "{url}"\napi_key_file = "{self.key}"\n'
        config += f'ca_file = "{ca_file}"\n' if ca_file else ""
        folder = self.folder / str(next(self._count))
        folder.mkdir()
        (folder / "config.toml").write_text(config)
        login = Login(folder, "--config", folder / "config.toml", *arguments, typed=typed)
        return self._stack.enter_context(login)

    def pending(self):
        return self.octoprint.rest("GET", "/api/plugin/appkeys").json()["pending"]

    def decide(self, *, allow):
        """Click, as the administrator, on the one question that is open."""
        assert_eventually(
            lambda: len(self.pending()) == 1, SOON, lambda: f"one question, but {self.pending()}"
        )
        (question,) = self.pending().values()
        assert question["app_id"] == "portretry-udev"
        path = f"/plugin/appkeys/decision/{question['user_token']}"
        assert self.octoprint.rest("POST", path, {"decision": allow}).status_code == 204

    def stored(self):
        assert stat.S_IMODE(self.key.stat().st_mode) == 0o600
        return self.key.read_text().strip()

    def may(self, key):
        """Who OctoPrint says that the key is, and what it may do."""
        connection = http.client.HTTPConnection(urlsplit(self.octoprint.url).netloc, timeout=SOON)
        with contextlib.closing(connection):
            connection.request("GET", "/api/currentuser", headers={"X-Api-Key": key})
            found = json.loads(connection.getresponse().read())
        return found["name"], found["permissions"]

    def nowhere(self, secret, *logins):
        """The secret is in nothing that was shown, logged, or given to a process."""
        for login in logins:
            assert secret not in login.everything()
        for log in self.octoprint.logfile.parent.glob("*.log"):
            assert secret not in log.read_text(errors="replace")


@pytest.fixture
def desk(octoprint, tmp_path):
    desk = Desk(octoprint, tmp_path)
    assert_eventually(lambda: not desk.pending(), SOON, "the questions of earlier stories are closed")
    yield desk
    desk.close()


@pytest.fixture
def boss(octoprint):
    """An administrator with a password; gone afterwards, as are the accounts that were made."""
    user = {"name": "boss", "password": PASSWORD, "active": True, "groups": ["admins"], "permissions": []}
    assert octoprint.rest("POST", "/api/access/users", user).status_code == 200
    yield "boss"
    for name in ("boss", "portretry-udev"):
        octoprint.rest("DELETE", f"/api/access/users/{name}")


@pytest.fixture
def pem(tmp_path):
    path = tmp_path / "octoprint.pem"
    path.write_text(CERTIFICATE_PEM)
    return path


@pytest.fixture
def tls(pem):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


# -- Application Keys ---------------------------------------------------------------------------------------


def test_allowed(desk):
    """Straight to OctoPrint: one click, and a key that works lies in its file, and nowhere else."""
    login = desk.login(desk.octoprint.url)
    assert login.asks().startswith(f"{desk.octoprint.url}/plugin/appkeys/auth/")
    desk.decide(allow=True)
    assert (login.ends(), login.out) == (0, f"{desk.key}\n"), login.err
    key = desk.stored()
    assert desk.may(key)[0] == "admin"
    check = desk.login(desk.octoprint.url, "--check")
    assert check.ends() == 0, check.err
    assert "user           admin\n" in check.out
    assert f"{desk.octoprint.url}, {desk.octoprint.version}\n" in check.out
    again = desk.login(desk.octoprint.url)
    assert (again.ends(), again.out) == (0, f"{desk.key}\n"), again.err
    assert "Nothing to do" in again.err
    desk.nowhere(key, login, check, again)


def test_the_link_leads_to_octoprints_own_question(desk):
    """To its login first, for who is not logged in: and from there back to the question."""
    link = desk.login(desk.proxy().url).asks()
    connection = http.client.HTTPConnection(urlsplit(link).netloc, timeout=SOON)
    with contextlib.closing(connection):
        connection.request("GET", urlsplit(link).path)
        answer = connection.getresponse()
        assert answer.status == 302
        assert "/login/" in answer.headers["Location"]
        assert urlsplit(link).path.rpartition("/")[2] in answer.headers["Location"]
        answer.read()


def test_denied(desk):
    """A click on Deny ends it at once, in those words; nothing is stored."""
    login = desk.login(desk.proxy().url)
    login.asks()
    desk.decide(allow=False)
    assert (login.ends(), login.out) == (1, "")
    assert "somebody clicked Deny" in login.err
    assert not desk.key.exists()


def test_timed_out(desk):
    """Nobody clicks: said so, in other words than a Deny, and OctoPrint's question closes by itself."""
    login = desk.login(desk.proxy().url, "--timeout", "3")
    login.asks()
    assert len(desk.pending()) == 1
    assert (login.ends(), login.out) == (1, "")
    assert "nobody clicked Allow within 3 seconds" in login.err
    assert not desk.key.exists()
    assert_eventually(lambda: not desk.pending(), SOON, "the question is closed")


def test_asked_for_longer_than_octoprint_waits_for_a_poll(desk):
    """OctoPrint drops a question that is not polled for 5 s: ours stays open for twice that."""
    login = desk.login(desk.proxy().url)
    login.asks()
    (question,) = desk.pending()
    began = time.monotonic()
    assert_eventually(lambda: time.monotonic() - began > 10.0, 11.0, "time passes")
    assert list(desk.pending()) == [question]
    desk.decide(allow=True)
    assert login.ends() == 0, login.err


def test_behind_a_prefix(desk):
    """All goes through the proxy, under its path: link, polls, the key, and the check."""
    proxy = desk.proxy("/octo")
    login = desk.login(proxy.url)
    assert login.asks().startswith(f"{proxy.url}/plugin/appkeys/auth/")
    desk.decide(allow=True)
    assert login.ends() == 0, login.err
    assert desk.may(desk.stored())[0] == "admin"
    before = proxy.requests
    assert desk.login(proxy.url, "--check").ends() == 0
    assert proxy.requests > before


def test_a_wrong_prefix_is_no_disabled_plugin(desk):
    """A proxy's own 404 says nothing of OctoPrint."""
    proxy = desk.proxy("/octo")
    login = desk.login(proxy.url.removesuffix("/octo") + "/other")
    assert (login.ends(), login.out) == (69, "")
    assert "Application Keys" not in login.err


def test_a_certificate_of_ones_own(desk, tls, pem):
    """Refused unless its file is given, before anything is asked; with it, all goes through TLS."""
    proxy = desk.proxy("/octo", tls)
    login = desk.login(proxy.url)
    assert (login.ends(), login.out, proxy.requests) == (69, "", 0)
    assert "certificate" in login.err
    login = desk.login(proxy.url, ca_file=pem)
    assert login.asks().startswith("https://")
    desk.decide(allow=True)
    assert login.ends() == 0, login.err
    assert desk.login(proxy.url, "--check", "--ca-file", pem).ends() == 0
    assert desk.login(proxy.url, "--check").ends() == 69


def test_too_many_requests(desk):
    """OctoPrint's limit is told and not run against; 1.10 has none yet."""
    proxy = desk.proxy()
    assert_eventually(lambda: time.time() % 60 < 40, 25.0, "OctoPrint counts by the minute: one with room")
    for _ in range(3):
        connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=SOON)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/plugin/appkeys/request", '{"app": "another"}', headers)
            assert connection.getresponse().status == 201
    login = desk.login(proxy.url, "--timeout", "1")
    if desk.octoprint.version.startswith("1.10."):
        assert login.ends() == 1
        assert "nobody clicked" in login.err
    else:
        assert login.ends() == 75
        assert "3 requests for a key a minute" in login.err


def test_the_check_of_a_key_that_cannot_work(desk):
    """What its user lacks is said, and that a user is deactivated, or gone."""
    viewer = {"name": "viewer", "password": "x", "active": True, "groups": ["readonly"], "permissions": []}
    assert desk.octoprint.rest("POST", "/api/access/users", viewer).status_code == 200
    generate = {"command": "generate", "app": "a test", "user": "viewer"}
    key = desk.octoprint.rest("POST", "/api/plugin/appkeys", generate).json()["api_key"]
    desk.key.parent.mkdir()
    desk.key.write_text(key)
    desk.key.chmod(0o600)
    check = desk.login(desk.octoprint.url, "--check", "--json")
    assert check.ends() == 1
    assert json.loads(check.out)["permissions"] == {
        "STATUS": True,
        "CONNECTION": False,
        "SETTINGS_READ": True,
    }
    assert "viewer lacks the permission CONNECTION" in json.loads(check.out)["trouble"]
    desk.nowhere(key, check)
    may = {"permissions": ["CONNECTION"], "groups": ["readonly"], "active": True, "admin": False}
    assert desk.octoprint.rest("PUT", "/api/access/users/viewer", may).status_code == 200
    assert desk.login(desk.octoprint.url, "--check").ends() == 0
    assert desk.octoprint.rest("PUT", "/api/access/users/viewer", {**may, "active": False}).status_code == 200
    check = desk.login(desk.octoprint.url, "--check")
    assert check.ends() == 1
    assert "deactivated" in check.err or "does not know the key" in check.err
    assert desk.octoprint.rest("DELETE", "/api/access/users/viewer").status_code == 200
    check = desk.login(desk.octoprint.url, "--check")
    assert check.ends() == 1
    assert "does not know the key" in check.err


# -- an account of our own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/octo"])
def test_an_account_that_can_only_look_and_connect(desk, boss, prefix):
    """By an administrator's password; again gives the same key; neither secret is seen anywhere."""
    url = desk.proxy(prefix).url
    by_password = ("--create-user", "--user", boss, "--password-stdin")
    login = desk.login(url, *by_password, typed=f"{PASSWORD}\n")
    assert (login.ends(), login.out) == (0, f"{desk.key}\n"), login.err
    key = desk.stored()
    name, permissions = desk.may(key)
    assert (name, sorted(permissions)) == ("portretry-udev", ["CONNECTION", "STATUS"])
    again = desk.login(url, *by_password, "--force", typed=f"{PASSWORD}\n")
    assert again.ends() == 0, again.err
    assert desk.stored() == key
    desk.nowhere(key, login, again)
    desk.nowhere(PASSWORD, login, again)


def test_an_account_that_may_do_more_is_not_taken(desk, boss):
    """Somebody's account of that name is left as it is."""
    user = {"name": "portretry-udev", "password": "x", "active": True, "groups": ["users"], "permissions": []}
    assert desk.octoprint.rest("POST", "/api/access/users", user).status_code == 200
    by_password = ("--create-user", "--user", boss, "--password-stdin")
    login = desk.login(desk.proxy().url, *by_password, typed=f"{PASSWORD}\n")
    assert (login.ends(), login.out) == (1, "")
    assert "is in the group users" in login.err
    found = desk.octoprint.rest("GET", "/api/access/users/portretry-udev").json()
    assert (found["groups"], found["permissions"]) == (["users"], [])


def test_wrong_passwords(desk, boss):
    """Refused three times; then OctoPrint takes no more of them for now, and that is told apart."""
    url = desk.proxy().url
    by_password = ("--create-user", "--user", boss, "--password-stdin")
    assert_eventually(lambda: time.time() % 60 < 40, 25.0, "OctoPrint counts by the minute: one with room")
    refused = (1, "refuses that name and password")
    for status, words in (refused, refused, refused, (75, "too many wrong passwords")):
        login = desk.login(url, *by_password, typed="no such password\n")
        assert login.ends() == status, login.err
        assert words in login.err
        assert "no such password" not in login.everything()
