"""A key is asked for, judged and stored as promised, every refusal is told apart, and no secret shows."""

import json
import os
import stat
import time

import pytest
import responses
from click.testing import CliRunner

from portretry_udev import config, login
from portretry_udev.cli_login import login as command
from portretry_udev.login import LoginTrouble, Question, Why
from portretry_udev.rest import Kind, Rest, Trouble

URL = "http://octopi.local:5000/octo"
KEY = "K3Y-0123456789abcdef-S3CR3T"
OLD = "0LD-0123456789abcdef-S3CR3T"
TOKEN = "T0ken_T0ken-T0ken"
PASSWORD = "open sesame"
NOBODY = {"name": None, "groups": ["guests"], "permissions": []}
OURS = {"name": "portretry-udev", "groups": [], "permissions": ["STATUS", "CONNECTION"]}
BOSS = {"name": "boss", "groups": ["admins"], "permissions": ["ADMIN", "STATUS", "CONNECTION", "PRINT"]}
VIEWER = {"name": "viewer", "groups": ["readonly"], "permissions": ["STATUS", "WEBCAM"]}


class Clock:
    """A clock that goes on only while somebody waits."""

    def __init__(self):
        self.now = 1000.0
        self.waits = []

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def octo():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as octo:
        yield octo


@pytest.fixture
def rest():
    rest = Rest(URL, None)
    yield rest
    rest.close()


def current_user(octo, otherwise=NOBODY, **of_key):
    """What OctoPrint says to these keys, and to all others; the version only to those with STATUS."""

    def user(request):
        return of_key.get(request.headers.get("X-Api-Key", ""), otherwise)

    def version(request):
        if {"STATUS", "ADMIN"} & set(user(request)["permissions"]) and not user(request).get("inactive"):
            return 200, {}, json.dumps({"api": "0.1", "server": "1.11.8"})
        return 403, {}, json.dumps({"error": "no"})

    octo.add_callback("GET", f"{URL}/api/currentuser", lambda request: (200, {}, json.dumps(user(request))))
    octo.add_callback("GET", f"{URL}/api/version", version)


def willing(octo, *answers, **of_key):
    """An OctoPrint that takes one request for a key and answers the polls in turn."""
    current_user(octo, **of_key)
    octo.get(f"{URL}/plugin/appkeys/probe", status=204)
    elsewhere = "https://other.example/plugin/appkeys"
    octo.post(
        f"{URL}/plugin/appkeys/request",
        status=201,
        json={"app_token": TOKEN, "auth_dialog": f"{elsewhere}/auth/{TOKEN}"},
        headers={"Location": f"{elsewhere}/request/{TOKEN}"},
    )
    for answer in answers:
        poll(octo, answer)


def poll(octo, answer):
    place = f"{URL}/plugin/appkeys/request/{TOKEN}"
    if isinstance(answer, Exception):
        octo.get(place, body=answer)
    elif answer == 200:
        octo.get(place, json={"api_key": KEY})
    else:
        octo.get(place, status=answer, json={"error": "Not found"})


def refusal_of(act):
    with pytest.raises(LoginTrouble) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert not [secret for secret in (KEY, OLD, PASSWORD, TOKEN) if secret in text]
    return caught.value.why, text


def ended(octo, rest, clock, *answers, timeout=600.0):
    """How a question ends that is answered so; the last answer goes on for ever."""
    willing(octo, *answers)
    question = Question(rest, clock=clock, wait=clock.wait)
    return refusal_of(lambda: question.answer(timeout))


# -- Application Keys ---------------------------------------------------------------------------------------


def test_allowed(octo, rest, clock):
    """The key is what OctoPrint gives once somebody has clicked, asked for each second."""
    willing(octo, 202, 202, 200)
    assert Question(rest, clock=clock, wait=clock.wait).answer() == KEY
    assert clock.waits == [1.0, 1.0, 1.0]


def test_the_link_and_the_polls_go_where_we_were_told_octoprint_is(octo, rest, clock):
    """OctoPrint's own idea of its address may be another host or scheme: nothing goes there."""
    willing(octo, 200)
    question = Question(rest, clock=clock, wait=clock.wait)
    question.answer()
    assert question.link == f"{URL}/plugin/appkeys/auth/{TOKEN}"
    assert all(call.request.url.startswith(f"{URL}/") for call in octo.calls)


def test_the_name_of_the_application_and_the_user_are_sent(octo, rest, clock):
    """Who is named is asked, and nobody else; the link says so too."""
    willing(octo)
    link = Question(rest, "a b&c", clock=clock, wait=clock.wait).link
    assert link == f"{URL}/plugin/appkeys/auth/{TOKEN}?user=a+b%26c"
    assert json.loads(octo.calls[-1].request.body) == {"app": "portretry-udev", "user": "a b&c"}


def test_denied(octo, rest, clock):
    """A 404 amid unbroken polling, before OctoPrint's ten minutes are over, is a person's no."""
    why, text = ended(octo, rest, clock, 202, 202, 404)
    assert why is Why.DENIED
    assert "Deny" in text


def test_timed_out_by_us(octo, rest, clock):
    """Nobody clicked for as long as we were to wait."""
    why, text = ended(octo, rest, clock, 202, timeout=5)
    assert (why, text) == (Why.TIMED_OUT, "nobody clicked Allow within 5 seconds")
    assert len(clock.waits) == 5


def test_timed_out_by_octoprint(octo, rest, clock):
    """OctoPrint closes its question after ten minutes: that is nobody's no."""
    why, _ = ended(octo, rest, clock, *[202] * 596, 404)
    assert why is Why.TIMED_OUT


@pytest.mark.parametrize("answers", [(202, ConnectionResetError(), 404), (202, 502, 502, 404)])
def test_an_octoprint_that_was_away_denies_nothing(octo, rest, clock, answers):
    """A restart forgets the question, which looks like a Deny but is none."""
    why, text = ended(octo, rest, clock, *answers)
    assert why is Why.AWAY
    assert "forgotten" in text


def test_a_poll_that_came_too_late_is_no_denial(octo, rest, clock):
    """OctoPrint drops what is not polled for 5 s: after a Ctrl-Z, for one."""
    willing(octo, 202, 404)
    question = Question(rest, clock=clock, wait=lambda _: clock.wait(6.0))
    why, _ = refusal_of(question.answer)
    assert why is Why.AWAY


def test_a_short_absence_is_survived(octo, rest, clock):
    """One lost answer is no reason to give up, nor does it make a later no less of one."""
    willing(octo, 202, ConnectionResetError(), 202, 200)
    assert Question(rest, clock=clock, wait=clock.wait).answer() == KEY


def test_a_no_after_a_short_absence_is_a_no(octo, rest, clock):
    """Once OctoPrint has said again that it waits, only a person ends it."""
    assert ended(octo, rest, clock, 202, ConnectionResetError(), 202, 404)[0] is Why.DENIED


def test_a_long_absence_is_told(octo, rest, clock):
    """Ten seconds are enough: the question is gone by then."""
    why, text = ended(octo, rest, clock, 202, ConnectionResetError())
    assert why is Why.AWAY
    assert "try again" in text
    assert len(clock.waits) == 11


def test_too_many_requests(octo, rest):
    """The limits are told, and nothing is repeated by itself."""
    current_user(octo)
    octo.get(f"{URL}/plugin/appkeys/probe", status=204)
    octo.post(f"{URL}/plugin/appkeys/request", status=429, json={"error": "too many"})
    why, text = refusal_of(lambda: Question(rest))
    assert why is Why.RATE_LIMITED
    assert "3 requests" in text
    assert len(octo.calls) == 3


@pytest.mark.parametrize(
    ("status", "cure"), [(404, "enable its plugin Application Keys"), (403, "go through its wizard")]
)
def test_an_octoprint_that_gives_no_keys_says_what_to_do(octo, rest, status, cure):
    """The plugin is disabled, or the wizard of the first run not finished."""
    current_user(octo)
    octo.get(f"{URL}/plugin/appkeys/probe", status=status, body="<html>")
    why, text = refusal_of(lambda: Question(rest))
    assert why is (Why.NEW if status == 403 else Why.REFUSED)
    assert cure in text


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 404, "body": "<html>nginx"},
        {"status": 200, "body": "<html>a router"},
        {"status": 200, "json": {"users": 3}},
        {"status": 200, "json": []},
        {"status": 502, "body": ""},
    ],
)
def test_what_is_no_octoprint_is_not_asked_for_a_key(octo, rest, answer):
    """A wrong address is not taken for a disabled plugin."""
    octo.get(f"{URL}/api/currentuser", **answer)
    with pytest.raises(Trouble):
        Question(rest)
    assert len(octo.calls) == 1


def test_a_failing_octoprint_is_no_disabled_plugin(octo, rest):
    """Only 404 and 403 have a meaning; the rest is told as it is."""
    current_user(octo)
    octo.get(f"{URL}/plugin/appkeys/probe", status=500, json={"error": "boom"})
    with pytest.raises(Trouble, match="boom"):
        Question(rest)


@pytest.mark.parametrize("token", [None, 7, "", "../../x", "a b", "\x1b[2Jxxxxxxxx", "x" * 200])
def test_a_token_that_is_none_is_not_shown_or_sent(octo, rest, token):
    """It would go into an address, and onto a terminal."""
    current_user(octo)
    octo.get(f"{URL}/plugin/appkeys/probe", status=204)
    octo.post(f"{URL}/plugin/appkeys/request", status=201, json={"app_token": token})
    with pytest.raises(Trouble) as caught:
        Question(rest)
    assert caught.value.kind is Kind.ODD
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("key", [None, "", "a b", "x" * 300, "ä"])
def test_a_key_that_is_none_is_not_taken(octo, rest, clock, key):
    """What could not be a header is no key; the last word of a strange OctoPrint."""
    willing(octo)
    octo.get(f"{URL}/plugin/appkeys/request/{TOKEN}", json={"api_key": key})
    with pytest.raises(Trouble, match="gave no key"):
        Question(rest, clock=clock, wait=clock.wait).answer()


# -- whose a key is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "missing", "can_more"),
    [
        (OURS, (), False),
        ({**OURS, "permissions": ["STATUS", "CONNECTION", "SETTINGS_READ"]}, (), False),
        (BOSS, (), True),
        ({**BOSS, "permissions": ["ADMIN"]}, (), True),
        (VIEWER, ("CONNECTION",), True),
        ({**OURS, "permissions": []}, ("STATUS", "CONNECTION"), False),
    ],
)
def test_what_a_key_may_do(octo, rest, user, missing, can_more):
    """Both permissions are needed; administrators have every one."""
    current_user(octo, user)
    account = login.whose(rest)
    assert account.name == user["name"]
    assert account.groups == tuple(user["groups"])
    assert account.permissions == frozenset(user["permissions"])
    assert (account.missing, account.can_more) == (missing, can_more)
    if missing:
        why, text = refusal_of(lambda: login.judge(account, "OctoPrint"))
        assert why is Why.REFUSED
        assert " and ".join(missing) in text
    else:
        login.judge(account, "OctoPrint")


@pytest.mark.parametrize("answer", [{"json": NOBODY}, {"json": {"error": "Invalid API key"}, "status": 403}])
def test_a_key_that_octoprint_does_not_know_is_refused(octo, rest, answer):
    """A revoked key is answered with nobody's name, and without an error; 1.10 says 403."""
    octo.get(f"{URL}/api/currentuser", **answer)
    account = login.whose(rest)
    assert account.name is None
    why, text = refusal_of(lambda: login.judge(account, "OctoPrint"))
    assert why is Why.REFUSED
    assert "does not know the key" in text


def test_a_deactivated_user_is_refused(octo, rest):
    """1.11 names the permissions of such a user as ever, and answers 403 to all else."""
    current_user(octo, {**OURS, "inactive": True})
    why, text = refusal_of(lambda: login.judge(login.whose(rest), "OctoPrint"))
    assert why is Why.REFUSED
    assert "deactivated" in text


# -- an account of our own ----------------------------------------------------------------------------------


class Accounts:
    """OctoPrint's accounts behind a login: cookies, tokens against forged requests, and who may what."""

    def __init__(self, octo, *, mfa=False, users=None, admin=True, keys=None):
        self.users = dict(users or {})
        self.created = []
        self.open = False
        self._mfa, self._admin = mfa, admin
        current_user(octo, **(keys or {}))
        octo.get(f"{URL}/plugin/appkeys/probe", status=204)
        octo.head(
            f"{URL}/login/",
            headers=[
                ("Set-Cookie", "csrf_token_P5000|R%2Focto=tok.en-1; Path=/octo/; SameSite=Lax"),
                ("Set-Cookie", "session_P5000=before; Expires=Thu, 01 Jan 2099 00:00:00 GMT; HttpOnly"),
            ],
        )
        for method, path, answer in (
            ("POST", "/api/login", self._login),
            ("POST", "/api/logout", self._logout),
            ("GET", "/api/access/users/portretry-udev", self._look),
            ("POST", "/api/access/users", self._create),
            ("POST", "/api/plugin/appkeys", self._generate),
        ):
            octo.add_callback(method, URL + path, self._guarded(answer))

    def _guarded(self, answer):
        def guarded(request):
            cookies = request.headers["Cookie"].split("; ")
            ours = "csrf_token_P5000|R%2Focto=tok.en-1" in cookies
            if request.method == "POST" and not (ours and request.headers["X-CSRF-Token"] == "tok.en-1"):
                return 400, {}, json.dumps({"error": "CSRF validation failed"})
            if answer != self._login and "session_P5000=after" not in cookies:
                return 403, {}, json.dumps({"error": "no session"})
            status, body = answer(json.loads(request.body) if request.body else None)
            headers = {"Set-Cookie": "session_P5000=after; Path=/"} if answer == self._login else {}
            return status, headers, json.dumps(body)

        return guarded

    def _login(self, body):
        if body != {"user": "boss", "pass": PASSWORD}:
            return 403, {"error": "no"}
        if self._mfa:
            return 403, {"error": "Two-factor authentication required", "mfa": ["totp"]}
        self.open = True
        return 200, {"name": "boss", "session": "x"}

    def _logout(self, _):
        self.open = False
        return 200, {}

    def _look(self, _):
        if not self._admin:
            return 403, {"error": "no"}
        found = self.users.get("portretry-udev")
        return (200, found) if found else (404, {"error": "no such user"})

    def _create(self, body):
        self.created.append(body)
        self.users[body["name"]] = {each: body[each] for each in ("active", "groups", "permissions")}
        return 200, {"users": []}

    def _generate(self, body):
        assert body == {"command": "generate", "app": "portretry-udev", "user": "portretry-udev"}
        return 200, {"api_key": KEY, **body}


MADE = {"active": True, "groups": [], "permissions": ["CONNECTION", "STATUS"]}


def test_an_account_is_made_with_two_permissions(octo, rest):
    """Active, in no group, with a password that nobody knows; then the administrator is logged out."""
    accounts = Accounts(octo)
    assert login.create_account(rest, "boss", PASSWORD) == KEY
    (made,) = accounts.created
    assert len(made.pop("password")) > 30
    assert made == {"name": "portretry-udev", "groups": [], **MADE, "permissions": ["STATUS", "CONNECTION"]}
    assert not accounts.open


def test_no_two_accounts_share_a_password(octo, rest):
    """It is random."""
    accounts = Accounts(octo)
    for _ in range(2):
        accounts.users.clear()
        login.create_account(rest, "boss", PASSWORD)
    first, second = accounts.created
    assert first["password"] != second["password"]


def test_the_account_of_last_time_is_taken(octo, rest):
    """Done twice, it is done once; a permission that is of use was added by a person, and stays."""
    made = {**MADE, "permissions": [*MADE["permissions"], "SETTINGS_READ"]}
    accounts = Accounts(octo, users={"portretry-udev": made})
    assert login.create_account(rest, "boss", PASSWORD) == KEY
    assert accounts.created == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"groups": ["admins"]}, "is in the group admins"),
        ({"permissions": ["STATUS", "CONNECTION", "PRINT"]}, "may do PRINT"),
        ({"permissions": ["STATUS"]}, "lacks CONNECTION"),
        ({"active": False}, "is deactivated"),
    ],
)
def test_another_account_of_that_name_is_left_alone(octo, rest, change, fault):
    """Somebody else's account is neither changed nor used; how it differs is said."""
    accounts = Accounts(octo, users={"portretry-udev": {**MADE, **change}})
    why, text = refusal_of(lambda: login.create_account(rest, "boss", PASSWORD))
    assert why is Why.REFUSED
    assert fault in text
    assert accounts.created == []
    assert not accounts.open, "logged out nevertheless"


def test_an_account_in_another_shape_is_not_taken(octo, rest):
    """What it may do is unknown: hands off."""
    accounts = Accounts(octo, users={"portretry-udev": {"active": True}})
    with pytest.raises(Trouble, match="does not tell"):
        login.create_account(rest, "boss", PASSWORD)
    assert not accounts.open


@pytest.mark.parametrize(
    ("password", "options", "words"),
    [
        ("wrong", {}, "refuses that name and password of boss"),
        (PASSWORD, {"mfa": True}, "second factor"),
        (PASSWORD, {"admin": False}, "boss is no administrator"),
    ],
)
def test_who_may_not_make_accounts_is_told_why(octo, rest, password, options, words):
    """A wrong password, a second factor, a user who is no administrator: three different things."""
    accounts = Accounts(octo, **options)
    why, text = refusal_of(lambda: login.create_account(rest, "boss", password))
    assert (why, accounts.created, accounts.open) == (Why.REFUSED, [], False)
    assert words in text


@pytest.mark.parametrize(("status", "why"), [(429, Why.RATE_LIMITED), (400, Why.REFUSED)])
def test_a_login_that_is_not_even_judged(octo, rest, status, why):
    """Too many wrong ones before, or a proxy that drops cookies."""
    current_user(octo)
    octo.get(f"{URL}/plugin/appkeys/probe", status=204)
    octo.head(f"{URL}/login/")
    octo.post(f"{URL}/api/login", status=status, json={"error": "no"})
    assert refusal_of(lambda: login.create_account(rest, "boss", PASSWORD))[0] is why


def test_the_password_goes_into_one_request(octo, rest):
    """It is in the body of the login, and in no other request, header or address."""
    Accounts(octo)
    login.create_account(rest, "boss", PASSWORD)
    holding = [
        call.request.url
        for call in octo.calls
        if PASSWORD in f"{call.request.url} {call.request.headers} {call.request.body}"
    ]
    assert holding == [f"{URL}/api/login"]


@pytest.mark.parametrize("name", ["", "../admin", "a b", "-x", "x" * 65, "a/b"])
def test_an_account_has_a_plain_name(octo, rest, name):
    """It goes into an address."""
    Accounts(octo)
    assert refusal_of(lambda: login.create_account(rest, "boss", PASSWORD, name))[0] is Why.REFUSED
    assert len(octo.calls) == 0


# -- the key's file -----------------------------------------------------------------------------------------


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_a_key_is_private_from_its_first_byte(tmp_path, monkeypatch):
    """Whatever the umask: no file exists that others could open before it is written."""
    made = []
    really = os.open

    def watched(path, flags, mode=0o777, **more):
        descriptor = really(path, flags, mode, **more)
        if flags & os.O_CREAT:
            made.append((flags & os.O_EXCL, stat.S_IMODE(os.fstat(descriptor).st_mode)))
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    login.store(tmp_path / "mk3.key", KEY)
    assert made == [(os.O_EXCL, 0o600)]
    assert stat.S_IMODE((tmp_path / "mk3.key").stat().st_mode) == 0o600
    assert (tmp_path / "mk3.key").read_text("ascii") == f"{KEY}\n"


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize(("uid", "mode"), [(0, 0o755), (1000, 0o700)])
def test_missing_folders_are_made(tmp_path, monkeypatch, uid, mode):
    """Root's for all to enter, as the configuration is there too; a user's for the user."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    login.store(tmp_path / "a" / "b" / "mk3.key", KEY)
    for folder in ("a", "a/b"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == mode


def test_a_full_disk_leaves_the_old_key(tmp_path, monkeypatch):
    """A key is replaced whole or not at all, and nothing half-written stays behind."""
    path = tmp_path / "mk3.key"
    login.store(path, OLD)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    why, text = refusal_of(lambda: login.store(path, KEY))
    assert why is Why.NOT_WRITABLE
    assert "No space left" in text
    assert path.read_text("ascii") == f"{OLD}\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_key_file_is_left_alone(tmp_path):
    """A link, a folder, a device, another file named by mistake: refused before anybody has to click."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "config.toml").write_text("[printers.mk3]\n", "ascii")
    (tmp_path / "big").write_text("x" * 2000, "ascii")
    for name, word in (
        ("folder", "folder"),
        ("link", "symbolic link"),
        ("fifo", "no regular file"),
        ("config.toml", "something other"),
        ("big", "something other"),
        ("big/mk3.key", "Not a directory"),
    ):
        why, text = refusal_of(lambda name=name: login.judge_place(tmp_path / name))
        assert why is Why.NOT_WRITABLE
        assert word in text


def test_a_key_a_gap_and_an_empty_file_may_be_replaced(tmp_path):
    """Those, and a folder that is yet to be made."""
    for name, text in (("key", f"{OLD}\n"), ("empty", "")):
        (tmp_path / name).write_text(text, "ascii")
        login.judge_place(tmp_path / name)
    login.judge_place(tmp_path / "a" / "b" / "new")


def test_somebody_elses_file_is_left_alone(tmp_path, monkeypatch):
    """Who owns the file of a key can read it: it is not ours to trust."""
    path = tmp_path / "mk3.key"
    path.write_text(OLD, "ascii")
    someone = path.stat().st_uid + 1
    monkeypatch.setattr(os, "geteuid", lambda: someone)
    why, text = refusal_of(lambda: login.judge_place(path))
    assert why is Why.NOT_ALLOWED
    assert "belongs to" in text


def test_a_folder_that_may_not_be_written_says_what_to_do(tmp_path, monkeypatch):
    """Before anybody clicks."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    why, text = refusal_of(lambda: login.judge_place(tmp_path / "a" / "mk3.key"))
    assert why is Why.NOT_ALLOWED
    assert "sudo" in text
    assert str(tmp_path) in text


# -- the command --------------------------------------------------------------------------------------------


class Desk:
    """A person at a terminal, with a configuration of one printer."""

    def __init__(self, folder):
        self.key = folder / "keys" / "mk3.key"
        self.config = folder / "config.toml"
        self.write(f'api_key_file = "{self.key}"')

    def write(self, *lines):
        text = "\n".join(["[printers.mk3]", f'octoprint = "{URL}"', *lines])
        self.config.write_text(f"{text}\n", "utf-8")

    def type(self, *arguments, typed=None, env=None):
        result = CliRunner().invoke(
            command, ["--config", str(self.config), *arguments], input=typed, env=env, catch_exceptions=False
        )
        shown = result.output + result.stderr
        assert not [secret for secret in (KEY, OLD, PASSWORD) if secret in shown]
        assert "Traceback" not in shown
        return result


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.setattr(login, "POLL_PERIOD", 0.0)
    for name in [name for name in os.environ if name.startswith("PORTRETRY_")]:
        monkeypatch.delenv(name)
    return Desk(tmp_path)


def test_the_command_stores_the_key(octo, desk):
    """On stdout is the file and nothing else; the question, the link and the result go to stderr."""
    willing(octo, 202, 200, **{KEY: OURS})
    result = desk.type("mk3")
    assert (result.exit_code, result.stdout) == (0, f"{desk.key}\n")
    assert desk.key.read_text("ascii") == f"{KEY}\n"
    assert stat.S_IMODE(desk.key.stat().st_mode) == 0o600
    assert f"\n{URL}/plugin/appkeys/auth/{TOKEN}\n" in result.stderr
    for words in ("Allow", "portretry-udev", "Stored a key of OctoPrint's user portretry-udev."):
        assert words in result.stderr
    assert "--create-user" not in result.stderr


@pytest.mark.parametrize(
    ("url", "only_here"),
    [
        ("http://127.0.0.1:5000", True),
        ("http://localhost/octo", True),
        ("http://[::1]:5000", True),
        ("http://octopi.local", False),
        ("https://192.168.1.7", False),
    ],
)
def test_a_link_that_others_cannot_open_is_known(url, only_here):
    """A person often sits at another computer: an address of this one leads nowhere there."""
    assert login.only_here(url) is only_here


def test_what_people_read_fits_a_terminal(octo, desk):
    """80 columns, but for addresses and paths, which cannot be broken."""
    willing(octo, 202, 200, **{KEY: BOSS})
    lines = desk.type().stderr.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if len(line) > 80 and URL not in line and str(desk.key) not in line] == []


def test_a_key_that_can_more_says_how_to_get_one_that_cannot(octo, desk):
    """An administrator's key is taken, and it is said once what else it can."""
    willing(octo, 200, **{KEY: BOSS})
    result = desk.type()
    assert result.exit_code == 0
    assert result.stderr.count("--create-user") == 1
    assert "all that boss can" in result.stderr


@pytest.mark.parametrize(
    ("answers", "status", "words"),
    [
        ([404], 1, "somebody clicked Deny"),
        ([202], 1, "nobody clicked Allow"),
        ([ConnectionResetError(), 404], 69, "forgotten"),
    ],
)
def test_the_command_tells_the_ends_apart(octo, desk, answers, status, words):
    """Denied, timed out and lost each have their words; no file is left."""
    willing(octo, *answers)
    result = desk.type("--timeout", "1")
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in result.stderr
    assert result.stderr.endswith("portretry-udev: no key was stored\n")
    assert not desk.key.exists()


def test_a_key_that_cannot_work_is_not_stored(octo, desk):
    """A good key is not replaced by it, not even with --force."""
    login.store(desk.key, OLD)
    willing(octo, 200, **{KEY: VIEWER, OLD: OURS})
    result = desk.type("--force")
    assert result.exit_code == 1
    assert "viewer lacks the permission CONNECTION" in result.stderr
    assert desk.key.read_text("ascii") == f"{OLD}\n"


def test_a_key_that_works_stays(octo, desk):
    """Done twice, it is done once: nobody is asked, unless it is forced."""
    login.store(desk.key, OLD)
    willing(octo, 200, **{OLD: BOSS, KEY: OURS})
    result = desk.type()
    assert (result.exit_code, result.stdout) == (0, f"{desk.key}\n")
    assert "the stored key is boss's, and works" in result.stderr
    assert {call.request.method for call in octo.calls} == {"GET"}
    assert desk.type("--force").exit_code == 0
    assert desk.key.read_text("ascii") == f"{KEY}\n"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_key_that_does_not_work_is_replaced(octo, desk, mode):
    """A revoked one, and one that others could read."""
    login.store(desk.key, OLD)
    desk.key.chmod(mode)
    willing(octo, 200, **{KEY: OURS})
    assert desk.type().exit_code == 0
    assert desk.key.read_text("ascii") == f"{KEY}\n"
    assert stat.S_IMODE(desk.key.stat().st_mode) == 0o600


def test_an_unreachable_octoprint_is_not_a_bad_key(octo, desk):
    """The stored key stays, as nothing is known of it."""
    login.store(desk.key, OLD)
    octo.get(f"{URL}/api/currentuser", body=ConnectionRefusedError())
    result = desk.type()
    assert (result.exit_code, result.stdout) == (69, "")
    assert desk.key.read_text("ascii") == f"{OLD}\n"


def test_a_key_without_a_place_goes_to_the_usual_one(octo, desk, tmp_path, monkeypatch):
    """There the service finds it without being told."""
    path = tmp_path / "xdg" / "portretry-udev" / "mk3.key"
    for module in ("cli_login", "config"):
        monkeypatch.setattr(
            f"portretry_udev.{module}.usual_place", lambda name, _: path.with_name(f"{name}.key")
        )
    desk.write()
    with pytest.raises(config.Wrong, match="portretry-udev login"):
        config.load({"config": str(desk.config)}, {})
    willing(octo, 200, **{KEY: OURS})
    result = desk.type()
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    (printer,) = config.load({"config": str(desk.config)}, {}).printers
    assert printer.key.read() == KEY


@pytest.mark.parametrize(
    ("uid", "env", "path"),
    [
        (0, {"XDG_CONFIG_HOME": "/x"}, "/etc/portretry-udev/mk3.key"),
        (1000, {"XDG_CONFIG_HOME": "/x"}, "/x/portretry-udev/mk3.key"),
        (1000, {"XDG_CONFIG_HOME": "", "HOME": "/home/pi"}, "/home/pi/.config/portretry-udev/mk3.key"),
    ],
)
def test_the_usual_place(desk, monkeypatch, uid, env, path):
    """Beside root's configuration, or where a user's programs keep theirs."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    desk.write()
    result = desk.type("--check", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["key"] == f"key file {path}"


def test_a_key_that_cannot_be_written_is_told_before_anybody_clicks(octo, desk, tmp_path):
    """A variable and a credential are not ours to write; what to do instead is said."""
    desk.write()
    result = desk.type(env={"PORTRETRY_API_KEY": OLD})
    assert result.exit_code == 78
    assert "PORTRETRY_API_KEY" in result.stderr
    (tmp_path / "mk3.key").write_text(OLD, "ascii")
    result = desk.type(env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert result.exit_code == 78
    assert "--api-key-file" in result.stderr
    assert desk.type("--api-key-file", str(tmp_path)).exit_code == 73
    assert len(octo.calls) == 0


def test_a_place_that_is_not_ours_to_write_has_its_status(octo, desk, monkeypatch):
    """77, EX_NOPERM: run it as root."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert desk.type().exit_code == 77
    assert len(octo.calls) == 0


def test_a_wrong_configuration_is_told_as_ever(desk):
    """All its mistakes, status 78; several printers are one of them."""
    assert "there is no such printer" in desk.type("xl").stderr
    desk.write('reconnect = "never"')
    result = desk.type()
    assert result.exit_code == 78
    assert "printers.mk3.reconnect" in result.stderr


def test_a_key_can_come_before_any_configuration(octo, desk, tmp_path, monkeypatch):
    """What to type is said; then OctoPrint's address and a file are enough."""
    monkeypatch.setitem(config.load_place.__kwdefaults__, "default_file", tmp_path / "none.toml")
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    assert result.exit_code == 78
    assert "portretry-udev login --octoprint" in result.stderr
    willing(octo, 200, **{KEY: OURS})
    flags = ["--octoprint", URL, "--api-key-file", str(desk.key)]
    assert CliRunner().invoke(command, flags, catch_exceptions=False).exit_code == 0
    assert desk.key.read_text("ascii") == f"{KEY}\n"


def test_ctrl_c_ends_it_cleanly(octo, desk):
    """130, one line, no trace and no file."""
    willing(octo)

    def interrupted(_):
        raise KeyboardInterrupt

    octo.add_callback("GET", f"{URL}/plugin/appkeys/request/{TOKEN}", interrupted)
    result = desk.type()
    assert (result.exit_code, result.stdout) == (130, "")
    assert "given up" in result.stderr
    assert not desk.key.exists()


def test_too_many_requests_have_their_status(octo, desk):
    """75, EX_TEMPFAIL: try again later."""
    current_user(octo)
    octo.get(f"{URL}/plugin/appkeys/probe", status=204)
    octo.post(f"{URL}/plugin/appkeys/request", status=429, json={"error": "too many"})
    assert desk.type().exit_code == 75


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["--create-user"], f"boss\n{PASSWORD}\n"),
        (["--create-user", "--user", "boss"], f"{PASSWORD}\n"),
        (["--create-user", "--user", "boss", "--password-stdin"], f"{PASSWORD}\n"),
    ],
)
def test_an_account_by_password(octo, desk, arguments, typed):
    """Asked for on the terminal, unseen, or read from stdin; the prompts do not go to stdout."""
    accounts = Accounts(octo, keys={KEY: OURS})
    result = desk.type(*arguments, typed=typed)
    assert (result.exit_code, result.stdout) == (0, f"{desk.key}\n")
    assert desk.key.read_text("ascii") == f"{KEY}\n"
    assert len(accounts.created) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--account", "x"],
        ["--password-stdin"],
        ["--create-user", "--password-stdin"],
        ["--json"],
        ["--check", "--force"],
        ["--check", "--create-user"],
        ["--timeout", "0"],
        ["--timeout", "601"],
    ],
)
def test_flags_that_do_not_go_together_are_refused(octo, desk, arguments):
    """Nothing is asked then."""
    assert desk.type(*arguments).exit_code == 2
    assert len(octo.calls) == 0


# -- --check ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "status", "lines"),
    [
        (OURS, 0, ["user           portretry-udev", "groups         none", "more           no"]),
        (BOSS, 0, ["groups         admins", "more           yes  it can do more than is needed"]),
        (VIEWER, 1, ["CONNECTION     no   needed, to connect the printer"]),
        (NOBODY, 1, ["user           nobody: the key is not known"]),
    ],
)
def test_the_check(octo, desk, user, status, lines):
    """Whose it is, what it may do and what it lacks, as a table on stdout; the fault on stderr."""
    login.store(desk.key, KEY)
    current_user(octo, user)
    result = desk.type("--check")
    assert result.exit_code == status
    table = result.stdout.splitlines()
    assert f"OctoPrint      {URL}{', 1.11.8' if user is not NOBODY else ''}" in table
    assert [line for line in lines if line not in table] == []
    assert [line for line in table if len(line) > 80 and str(desk.key) not in line] == []
    assert bool(result.stderr) == (status != 0)


def test_the_check_as_json(octo, desk):
    """The same for programs; a key without STATUS hides the version only."""
    login.store(desk.key, KEY)
    current_user(octo, {**OURS, "permissions": ["CONNECTION"]})
    result = desk.type("--check", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"], found["version"]) == (1, False, None)
    assert found["user"] == "portretry-udev"
    assert found["permissions"] == {"STATUS": False, "CONNECTION": True, "SETTINGS_READ": False}
    assert "STATUS" in found["trouble"]


def test_the_check_of_what_cannot_be_asked(octo, desk):
    """No key: 1, and OctoPrint is not asked; no OctoPrint: 69."""
    result = desk.type("--check")
    assert result.exit_code == 1
    assert str(desk.key) in result.stderr
    assert len(octo.calls) == 0
    login.store(desk.key, KEY)
    octo.get(f"{URL}/api/currentuser", body=ConnectionRefusedError())
    result = desk.type("--check", "--json")
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (69, False)


def test_waiting_is_real_by_default():
    """What the other tests replace is the machine's own clock and sleep."""
    defaults = Question.__init__.__kwdefaults__
    assert defaults == {"clock": time.monotonic, "wait": time.sleep}
