"""The minimal OctoPrint answers, opens, waits and gives up as the real ones do."""

import contextlib
import fcntl
import http.client
import os
import threading
from pathlib import Path

import pytest
import requests

from portretry_udev.fake_comm import NOTHING_FOUND, TOO_QUIET
from portretry_udev.fake_octoprint import SHORT, FakeOctoPrint, Timeouts
from portretry_udev.simulator import HEATING_FAILED, Printer

KEY = "0123456789ABCDEF"
UNPLUGGED = (
    "SerialException: device reports readiness to read but returned no data "
    "(device disconnected or multiple access on port?)"
)
PATIENT = Timeouts(hello=20.0, connect=30.0, detect=5.0, poll=5.0, silence=30.0)


@pytest.fixture
def link(tmp_path):
    return tmp_path / "ttyFAKE0"


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        session.headers["X-Api-Key"] = KEY
        yield session


def octoprint_at(link, **options):
    options.setdefault("port_preference", str(link))
    return FakeOctoPrint(api_key=KEY, ports=[str(link.parent / "tty*")], **options)


def look(octoprint, session):
    """Both states and the error, as a client sees them."""
    connection = session.get(f"{octoprint.url}/api/connection", timeout=5).json()
    job = session.get(f"{octoprint.url}/api/job", timeout=5).json()
    return connection["current"]["state"], job["state"], job.get("error", "no error")


def post(octoprint, session, **body):
    return session.post(f"{octoprint.url}/api/connection", json=body, timeout=5)


def connect(octoprint, session, link):
    answer = post(octoprint, session, command="connect", port=str(link), baudrate=115200)
    assert (answer.status_code, answer.content) == (204, b"")


def reaches(octoprint, state, timeout=5.0):
    return octoprint.wait_for(lambda it: it.state == state, timeout)


def ends(octoprint, job_state, timeout=5.0):
    return octoprint.wait_for(lambda it: it.job_state == job_state, timeout)


def fds():
    entries = list(Path("/proc/self/fd").iterdir())
    return {entry.name for entry in entries if entry.is_symlink()}  # without the listing's own


# -- REST: questions ----------------------------------------------------------------------------------------


def test_before_any_connect_1_11_says_closed_and_offline(link, session):
    """GET /api/connection has exactly 1.11.8's shape, and /api/job has no error."""
    with Printer(link=link), octoprint_at(link) as octoprint:
        assert session.get(f"{octoprint.url}/api/version", timeout=5).json()["server"] == "1.11.8"
        assert session.get(f"{octoprint.url}/api/connection", timeout=5).json() == {
            "current": {"baudrate": None, "port": None, "printerProfile": "_default", "state": "Closed"},
            "options": {
                "baudratePreference": 115200,
                "baudrates": [250000, 230400, 115200, 57600, 38400, 19200, 9600],
                "portPreference": str(link),
                "ports": [str(link)],
                "printerProfilePreference": "_default",
                "printerProfiles": [{"id": "_default", "name": "Default"}],
            },
        }
        assert look(octoprint, session) == ("Closed", "Offline", "no error")


def test_before_any_connect_2_0_says_offline_twice(link, session):
    """2.0 has its own words, a null profile and a null error."""
    with Printer(link=link), octoprint_at(link, style="2.0") as octoprint:
        assert session.get(f"{octoprint.url}/api/version", timeout=5).json()["server"] == "2.0.0rc7"
        answer = session.get(f"{octoprint.url}/api/connection", timeout=5).json()
        assert answer["current"]["printerProfile"] is None
        assert answer["options"]["autoconnect"] is False
        assert look(octoprint, session) == ("Offline", "Offline", None)


def test_ports_are_looked_up_at_each_request(link, session):
    """A node that comes or goes is offered or not at the very next request; the preference stays."""
    with Printer(link=link) as printer, octoprint_at(link) as octoprint:

        def options():
            return session.get(f"{octoprint.url}/api/connection", timeout=5).json()["options"]

        (link.parent / "ttyFAKE10").touch()
        (link.parent / "ttyFAKE2").touch()
        names = [str(link.parent / name) for name in ("ttyFAKE0", "ttyFAKE2", "ttyFAKE10")]
        assert options()["ports"] == names
        octoprint.style, octoprint.port_preference = "2.0", names[1]
        assert options()["ports"] == [names[1], names[0], names[2]]
        printer.unplug()
        octoprint.port_preference = str(link)
        assert options()["ports"] == names[1:]
        assert options()["portPreference"] == str(link)


@pytest.mark.parametrize("headers", [{"X-Api-Key": KEY}, {"Authorization": f"Bearer {KEY}"}])
def test_the_key_opens_by_either_header(link, headers):
    """X-Api-Key and a bearer token are both the key."""
    with octoprint_at(link) as octoprint:
        assert requests.get(f"{octoprint.url}/api/job", headers=headers, timeout=5).status_code == 200


@pytest.mark.parametrize("headers", [{"X-Api-Key": "WRONG"}, {"X-Api-Key": "WR\xd6NG"}, {}])
def test_a_wrong_key_is_403_for_questions_and_csrf_for_commands(link, headers):
    """As OctoPrint: GET 403, POST 400 CSRF, and /api/currentuser a guest with 200."""
    with octoprint_at(link) as octoprint:
        for path in ("version", "connection", "job"):
            answer = requests.get(f"{octoprint.url}/api/{path}", headers=headers, timeout=5)
            assert answer.status_code == 403
            assert answer.json()["error"].startswith("You don't have the permission")
        answer = requests.post(
            f"{octoprint.url}/api/connection", headers=headers, json={"command": "connect"}, timeout=5
        )
        assert (answer.status_code, answer.json()) == (400, {"error": "CSRF validation failed"})
        answer = requests.get(f"{octoprint.url}/api/currentuser", headers=headers, timeout=5)
        assert (answer.status_code, answer.json()["groups"]) == (200, ["guests"])
        assert octoprint.connects == 0


def test_current_user_with_the_key(link, session):
    """The right key is somebody."""
    with octoprint_at(link) as octoprint:
        assert session.get(f"{octoprint.url}/api/currentuser", timeout=5).json()["name"] == "admin"


# -- REST: commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"command": "connect", "port": "/dev/nope"}, "port is invalid"),
        ({"command": "connect", "baudrate": 12345}, "baudrate is invalid"),
        ({"command": "connect", "baudrate": "115200"}, "baudrate is invalid"),
        ({"command": "connect", "printerProfile": "nope"}, "printerProfile is invalid"),
        ({"command": "dance"}, "command is invalid"),
        ({}, "command is invalid"),
        ([], "command is invalid"),
    ],
)
def test_octoprints_own_refusals(link, session, body, reason):
    """Each wrong body gets 400 with OctoPrint's own words, and no port is opened."""
    with Printer(link=link) as printer, octoprint_at(link) as octoprint:
        answer = session.post(f"{octoprint.url}/api/connection", json=body, timeout=5)
        assert (answer.status_code, answer.json()) == (400, {"error": reason})
        assert (octoprint.connects, octoprint.history, printer.stats().opens) == (0, [], 0)


def test_the_realpath_of_a_listed_link_is_refused(link, session):
    """Only the exact string of the list is a port."""
    with Printer(link=link), octoprint_at(link) as octoprint:
        answer = post(octoprint, session, command="connect", port=str(link.resolve()))
        assert (answer.status_code, answer.json()) == (400, {"error": "port is invalid"})


def test_wrong_kinds_of_requests(link, session):
    """No JSON type 415, broken JSON 400, PUT 405, unknown address 404."""
    with octoprint_at(link) as octoprint:
        url = f"{octoprint.url}/api/connection"
        json_type = {"Content-Type": "application/json"}
        assert session.post(url, data="command=connect", timeout=5).status_code == 415
        assert session.post(url, data="{", headers=json_type, timeout=5).status_code == 400
        assert session.put(url, json={}, timeout=5).status_code == 405
        assert session.get(f"{octoprint.url}/api/files", timeout=5).status_code == 404


def test_requests_are_kept_and_the_connection_too(link):
    """One TCP connection carries many requests, 204 and refusals included; all are remembered."""
    with octoprint_at(link) as octoprint:
        client = http.client.HTTPConnection(octoprint.url.removeprefix("http://"), timeout=5)
        with contextlib.closing(client):
            client.connect()
            ours = client.sock
            for method, path, body in (
                ("GET", "/api/job?x=1", None),
                ("POST", "/api/connection", '{"command": "disconnect"}'),
                ("GET", "/api/nothing", None),
                ("GET", "/api/connection", None),
            ):
                headers = {"X-Api-Key": KEY, "Content-Type": "application/json"}
                client.request(method, path, body, headers)
                client.getresponse().read()
            assert client.sock is ours
        assert octoprint.requests == [
            ("GET", "/api/job"),
            ("POST", "/api/connection"),
            ("GET", "/api/nothing"),
            ("GET", "/api/connection"),
        ]


# -- connecting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "first", "closed"),
    [("1.11", "Opening serial connection", "Closed"), ("2.0", "Connecting", "Offline")],
)
def test_connects_to_a_live_printer_and_disconnects(link, session, style, first, closed):
    """Two opens, hello, M115, then M105 again and again; a Disconnect is a plain Offline."""
    with Printer(link=link) as printer, octoprint_at(link, style=style) as octoprint:
        connect(octoprint, session, link)
        assert reaches(octoprint, "Operational")
        states = [state for _, state in octoprint.history]
        assert states[0] == first
        assert states[-2:] == ["Connecting", "Operational"]
        assert look(octoprint, session)[:2] == ("Operational", "Operational")
        current = session.get(f"{octoprint.url}/api/connection", timeout=5).json()["current"]
        assert (current["port"], current["baudrate"]) == (str(link), 115200)
        assert printer.wait_for(lambda stats: stats.commands["M105"] >= 3, 5)
        stats = printer.stats()
        assert (stats.opens, stats.closes, stats.holders) == (2, 1, 1)
        assert (stats.commands["M115"], stats.baud) == (1, 115200)
        assert printer.received().startswith(b"N0 M110 N0*125\n")
        assert post(octoprint, session, command="disconnect").status_code == 204
        assert printer.wait_for(lambda stats: stats.holders == 0, 2)
        assert look(octoprint, session) == (closed, "Offline", None if style == "2.0" else "no error")
        assert octoprint.connects == 1


def test_a_connect_while_connected_is_accepted_and_does_nothing(link, session):
    """204, the same connection, not one open more."""
    with Printer(link=link) as printer, octoprint_at(link) as octoprint:
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        connect(octoprint, session, link)
        assert reaches(octoprint, "Operational")
        assert (printer.stats().opens, octoprint.connects) == (2, 1)


def test_a_person_connects_and_disconnects(link):
    """A person's buttons use the stored port and end in the same words as the commands do."""
    with Printer(link=link), octoprint_at(link) as octoprint:
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        octoprint.person_disconnects()
        assert (octoprint.state, octoprint.job_state, octoprint.error) == ("Closed", "Offline", None)
        assert octoprint.connects == 0


def test_it_holds_a_lock_while_connected(link):
    """The port is held by flock, and another's flock is refused, as with OctoPrint's `exclusive`."""
    with Printer(link=link), octoprint_at(link) as octoprint:
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)


def test_a_banner_brings_another_hello(link):
    """A board that boots while OctoPrint waits is greeted at its `start`, long before the next hello."""
    with (
        Printer(link=link, powered=False, boot_delay=0.05) as printer,
        octoprint_at(link, timeouts=PATIENT) as octoprint,
    ):
        octoprint.person_connects()
        assert reaches(octoprint, "Connecting")
        assert printer.wait_for(lambda stats: stats.bytes_in > 0, 2)
        printer.power_on()
        assert reaches(octoprint, "Operational", 3)


def test_without_a_banner_the_next_hello_must_do(link):
    """A silent boot is only noticed when OctoPrint says hello for the last time."""
    timeouts = Timeouts(hello=0.5, connect=2.0, poll=0.2, silence=2.0)
    with (
        Printer(link=link, powered=False, boot_delay=0.01, banner=None) as printer,
        octoprint_at(link, timeouts=timeouts) as octoprint,
    ):
        octoprint.person_connects()
        assert printer.wait_for(lambda stats: stats.bytes_in == 15, 2)
        printer.power_on()
        assert reaches(octoprint, "Operational", 3)
        opening, operational = octoprint.history[0][0], octoprint.history[-1][0]
        assert 0.5 <= operational - opening < 1.5


def test_repetiers_wait_is_an_answer(link):
    """`wait` connects as `ok` does."""
    with Printer(link=link, powered=False) as printer, octoprint_at(link, timeouts=PATIENT) as octoprint:
        octoprint.person_connects()
        assert printer.wait_for(lambda stats: stats.bytes_in > 0, 2)
        printer.say(b"wait\n")
        assert reaches(octoprint, "Operational", 3)


@pytest.mark.parametrize(("style", "error"), [("1.11", "no error"), ("2.0", None)])
def test_a_silent_port_at_a_fixed_baudrate_ends_in_plain_offline(link, session, style, error):
    """Two hellos, then given up without an error: it looks like a person's Disconnect."""
    timeouts = Timeouts(hello=0.15, connect=0.3)
    with (
        Printer(link=link, powered=False) as printer,
        octoprint_at(link, style=style, timeouts=timeouts) as octoprint,
    ):
        connect(octoprint, session, link)
        assert ends(octoprint, "Offline")
        assert look(octoprint, session)[1:] == ("Offline", error)
        assert printer.received() == b"N0 M110 N0*125\n" * 2
        connect(octoprint, session, link)
        assert reaches(octoprint, "Connecting")
        assert octoprint.connects == 2


def test_one_that_waits_for_start_says_nothing_before_it(link):
    """Not a byte to a board that runs already, which then is given up without a word about an error."""
    timeouts = Timeouts(hello=0.2, connect=20.0)
    with (
        Printer(link=link) as printer,
        octoprint_at(link, timeouts=timeouts, wait_for_start=True) as octoprint,
    ):
        octoprint.person_connects()
        assert reaches(octoprint, "Connecting")
        assert ends(octoprint, "Offline")
        assert (printer.received(), octoprint.error) == (b"", None)


def test_one_that_waits_for_start_greets_a_board_that_boots(link):
    """The first `start` gets the one hello, whose answer connects."""
    with (
        Printer(link=link, powered=False, boot_delay=0.01) as printer,
        octoprint_at(link, timeouts=PATIENT, wait_for_start=True) as octoprint,
    ):
        octoprint.person_connects()
        assert reaches(octoprint, "Connecting")
        printer.power_on()
        assert reaches(octoprint, "Operational")
        assert printer.received().startswith(b"N0 M110 N0*125\n")
        assert printer.wait_for(lambda stats: stats.commands["M110"] == 2, 2)  # and the one when connected


def test_an_answer_nobody_asked_for_connects_one_that_waits_for_start_too(link):
    """An `ok` is enough for OctoPrint, whoever has asked for it."""
    with (
        Printer(link=link, powered=False) as printer,
        octoprint_at(link, timeouts=PATIENT, wait_for_start=True) as octoprint,
    ):
        octoprint.person_connects()
        assert reaches(octoprint, "Connecting")
        printer.say(b"ok\n")
        assert reaches(octoprint, "Operational")


def test_garbage_is_no_answer(link):
    """At a wrong baudrate it waits for ever for a sensible line, as long as garbage comes."""
    timeouts = Timeouts(hello=0.2, connect=0.3)
    with (
        Printer(link=link, baudrate=250000, autoreport=0.02) as printer,
        octoprint_at(link, timeouts=timeouts) as octoprint,
    ):
        octoprint.person_connects()
        assert reaches(octoprint, "Connecting")
        assert printer.wait_for(lambda stats: stats.bytes_out > 300, 5)
        assert "Operational" not in [state for _, state in octoprint.history]


def test_busy_lines_keep_a_connection_waiting(link):
    """A board that says `busy:` is neither answering nor given up."""
    timeouts = Timeouts(hello=0.3, connect=0.4, poll=0.2, silence=2.0)
    with (
        Printer(link=link, busy_interval=0.05) as printer,
        octoprint_at(link, timeouts=timeouts) as octoprint,
    ):
        printer.busy(1.0)
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        assert octoprint.history[-1][0] - octoprint.history[0][0] > 0.8


def test_detection_tries_the_baudrates_in_octoprints_order(link, session):
    """Without a baudrate each is tried until the board answers."""
    with (
        Printer(link=link, baudrate=250000) as printer,
        octoprint_at(link, baud_preference=None) as octoprint,
    ):
        answer = post(octoprint, session, command="connect", port=str(link), baudrate=0)
        assert answer.status_code == 204
        assert octoprint.state == "Detecting serial connection"
        assert reaches(octoprint, "Operational")
        assert printer.stats().baud == 250000
        assert printer.stats().opens == 4


def test_detection_that_finds_nothing_is_an_error(link, session):
    """All baudrates silent: Offline after error, with the real text; so is a list of no ports."""
    timeouts = Timeouts(detect=0.01)
    with Printer(link=link, powered=False) as printer, octoprint_at(link, timeouts=timeouts) as octoprint:
        post(octoprint, session, command="connect", port="AUTO", baudrate=0)
        assert ends(octoprint, "Offline after error")
        assert look(octoprint, session) == ("Closed", "Offline after error", NOTHING_FOUND)
        assert printer.stats().opens == 14
        printer.unplug()
        octoprint.port_preference = None
        octoprint.person_connects()
        assert ends(octoprint, "Offline after error")


# -- losing the printer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "closed", "error"), [("1.11", "Closed", UNPLUGGED), ("2.0", "Offline", None)]
)
def test_an_unplug_is_an_error_at_once(link, session, style, closed, error):
    """The hang-up ends in pyserial's own text (which 2.0 does not tell), and the port is closed."""
    with (
        Printer(link=link) as printer,
        octoprint_at(link, style=style, timeouts=PATIENT) as octoprint,
    ):
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        assert printer.wait_for(lambda stats: stats.commands["M105"] == 1, 2)  # else the write may fail first
        printer.unplug()
        assert ends(octoprint, "Offline after error", 1)
        assert look(octoprint, session) == (closed, "Offline after error", error)
        assert octoprint.error == UNPLUGGED
        assert printer.wait_for(lambda stats: stats.closes == 2, 2)
        octoprint.person_disconnects()
        assert octoprint.job_state == "Offline after error"
        printer.plug()
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        assert octoprint.error is None


def test_silence_while_connected_is_an_error(link, session):
    """Switched off in place: after the timeouts, Offline after error with the real text."""
    timeouts = Timeouts(poll=0.1, silence=0.4)
    with Printer(link=link) as printer, octoprint_at(link, timeouts=timeouts) as octoprint:
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        printer.power_off()
        assert ends(octoprint, "Offline after error")
        assert look(octoprint, session) == ("Closed", "Offline after error", TOO_QUIET)
        assert printer.wait_for(lambda stats: stats.holders == 0, 2)


def test_a_quick_power_cycle_keeps_it_operational(link):
    """A `start` while connected is greeted, and nothing is lost."""
    with Printer(link=link, boot_delay=0.05) as printer, octoprint_at(link, timeouts=PATIENT) as octoprint:
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        assert printer.wait_for(lambda stats: stats.commands["M110"] == 2, 2)
        printer.power_off()
        printer.power_on()
        assert printer.wait_for(lambda stats: stats.commands["M110"] == 3, 3)
        assert octoprint.state == "Operational"


@pytest.mark.parametrize("connected", [True, False])
def test_a_firmware_fault_closes_with_its_text(link, session, connected):
    """Marlin's two lines become one text, and M112 is the last thing said."""
    with (
        Printer(link=link, powered=connected) as printer,
        octoprint_at(link, timeouts=PATIENT) as octoprint,
    ):
        octoprint.person_connects()
        assert reaches(octoprint, "Operational" if connected else "Connecting")
        assert printer.wait_for(lambda stats: stats.bytes_in >= 15, 2)
        if connected:
            printer.kill()
        else:
            printer.say(f"Error:{HEATING_FAILED}\nError:Printer halted. kill() called!\n".encode())
        assert ends(octoprint, "Offline after error")
        text = f"{HEATING_FAILED} - Printer halted. kill() called!"
        assert look(octoprint, session) == ("Closed", "Offline after error", text)
        assert printer.wait_for(lambda stats: stats.holders == 0, 2)
        assert printer.received().endswith(b"M112\n")


def test_harmless_errors_are_passed_over(link):
    """A checksum's or the SD card's error does not disconnect."""
    with Printer(link=link) as printer, octoprint_at(link) as octoprint:
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        printer.say(b"Error:checksum mismatch, Last Line: 1\nError:volume.init failed\n")
        asked = printer.stats().commands["M105"]
        assert printer.wait_for(lambda stats: stats.commands["M105"] > asked + 1, 5)
        assert octoprint.state == "Operational"


@pytest.mark.parametrize("style", ["1.11", "2.0"])
def test_a_print_from_sd_started_at_the_printer_is_seen(link, style):
    """It is "Printing from SD" while the card's print runs, and Operational again after a reset."""
    with (
        Printer(link=link, boot_delay=0.01) as printer,
        octoprint_at(link, style=style) as octoprint,
    ):
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        printer.start_sd_print()
        assert reaches(octoprint, "Printing from SD")
        assert printer.wait_for(lambda stats: stats.commands["M27"] >= 2, 5)
        printer.reset()
        assert reaches(octoprint, "Operational")


# -- the trap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "words"), [("1.11", "Opening serial connection"), ("2.0", "Connecting")])
def test_a_locked_port_is_the_trap(link, session, style, words):
    """An open that fails leaves it stuck for ever: connects do nothing, only a disconnect frees it."""
    with Printer(link=link) as printer, octoprint_at(link, style=style) as octoprint:
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            connect(octoprint, session, link)
            assert printer.wait_for(lambda stats: (stats.opens, stats.closes) == (2, 1), 2)
        finally:
            os.close(fd)
        opens = printer.stats().opens
        connect(octoprint, session, link)
        assert not octoprint.wait_for(lambda it: it.state != words, 0.3)
        assert look(octoprint, session)[:2] == (words, words)
        assert (printer.stats().opens, octoprint.connects) == (opens, 2)
        assert post(octoprint, session, command="disconnect").status_code == 204
        assert look(octoprint, session)[1] == "Offline"
        connect(octoprint, session, link)
        assert reaches(octoprint, "Operational")


def test_detection_is_immune_to_the_trap(link):
    """A locked port under an AUTO baudrate ends in an error, and the lock's end lets it connect again."""
    with Printer(link=link), octoprint_at(link, baud_preference=None) as octoprint:
        fd = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            octoprint.person_connects()
            assert ends(octoprint, "Offline after error")
            assert octoprint.error == NOTHING_FOUND
        finally:
            os.close(fd)
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")


def test_an_unplug_while_it_writes_is_an_error_too(link):
    """However the hang-up meets it, it is a SerialException and the port is closed."""
    with Printer(link=link) as printer, octoprint_at(link, timeouts=Timeouts(poll=0.0)) as octoprint:
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        printer.unplug()
        assert ends(octoprint, "Offline after error", 2)
        assert octoprint.error.startswith("SerialException: ")
        assert printer.wait_for(lambda stats: stats.closes == 2, 2)


def test_a_connect_without_a_port_falls_into_the_trap(link, session):
    """A stored port that is gone is tried all the same."""
    with octoprint_at(link) as octoprint:
        assert post(octoprint, session, command="connect").status_code == 204
        assert not octoprint.wait_for(lambda it: it.state != "Opening serial connection", 0.2)


# -- restarts -----------------------------------------------------------------------------------------------


def test_a_restart_keeps_the_address_and_forgets_the_error(link, session):
    """stop() closes the port and refuses connections; start() is a fresh OctoPrint at the same address."""
    with Printer(link=link) as printer, octoprint_at(link) as octoprint:
        url = octoprint.url
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        printer.unplug()
        assert ends(octoprint, "Offline after error")
        printer.plug()
        octoprint.person_connects()
        assert reaches(octoprint, "Operational")
        octoprint.stop()
        octoprint.stop()
        assert printer.wait_for(lambda stats: stats.holders == 0, 2)
        with pytest.raises(requests.ConnectionError):
            session.get(f"{url}/api/job", timeout=5)
        octoprint.start()
        assert octoprint.start() is octoprint
        assert octoprint.url == url
        assert look(octoprint, session) == ("Closed", "Offline", "no error")


def test_a_stop_cuts_a_request_under_way(link, session):
    """A client that waits for an answer is cut off, and stop() does not wait for it."""
    with octoprint_at(link) as octoprint:
        octoprint.delay = 60.0
        seen = []

        def ask():
            try:
                session.get(f"{octoprint.url}/api/job", timeout=30)
            except requests.ConnectionError as error:
                seen.append(error)

        client = threading.Thread(target=ask)
        client.start()
        assert octoprint.wait_for(lambda it: it.requests == [("GET", "/api/job")], 5)
        octoprint.stop()
        client.join(5)
        assert len(seen) == 1


def test_while_starting_it_answers_like_the_intermediary_server(link, session):
    """`Not found` without a status line, 501 for a POST, a page at /, and then the real answers."""
    with octoprint_at(link) as octoprint:
        octoprint.stop()
        octoprint.start(intermediary=60.0)
        with pytest.raises(requests.ConnectionError, match="BadStatusLine"):
            session.get(f"{octoprint.url}/api/connection", timeout=5)
        assert post(octoprint, session, command="connect").status_code == 501
        page = session.get(f"{octoprint.url}/", timeout=5)
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html")
        octoprint.stop()
        octoprint.start(intermediary=0.1)
        assert octoprint.wait_for(lambda it: not it.starting(), 2)
        assert look(octoprint, session)[1] == "Offline"


def test_nothing_is_left_behind(link):
    """After stop no descriptor and no thread is left, whatever state it was in, clients or not."""
    before, threads = fds(), threading.active_count()
    with Printer(link=link), requests.Session() as session:
        session.headers["X-Api-Key"] = KEY
        for wanted in ("Operational", "Closed"):
            with octoprint_at(link, timeouts=SHORT) as octoprint:
                look(octoprint, session)
                if wanted == "Operational":
                    octoprint.person_connects()
                assert reaches(octoprint, wanted)
    assert fds() <= before
    assert threading.active_count() == threads


def test_the_key_is_nowhere_to_be_seen(link, capfd):
    """Neither the output nor a repr holds the key."""
    with octoprint_at(link) as octoprint:
        requests.get(f"{octoprint.url}/api/job", headers={"X-Api-Key": KEY}, timeout=5)
        requests.get(f"{octoprint.url}/api/job", headers={"X-Api-Key": "x"}, timeout=5)
        assert KEY not in repr(octoprint)
    assert capfd.readouterr() == ("", "")
