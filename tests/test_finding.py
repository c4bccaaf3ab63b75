"""OctoPrints of this machine are found where they are, each once, and nothing else is taken for one."""

import pytest
import responses

from portretry_udev import finding
from portretry_udev.finding import Found
from portretry_udev.rest import Kind, Trouble

URL = "http://127.0.0.1:5000"
UUID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"


@pytest.fixture
def octo():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as octo:
        yield octo


def an_octoprint(octo, url=URL, *, user=200, probe=204, description=None):
    nobody = {"name": None, "groups": ["guests"], "permissions": []}
    octo.get(f"{url}/api/currentuser", status=user, json=nobody if user == 200 else {"error": "no"})
    octo.get(f"{url}/plugin/appkeys/probe", status=probe, body="")
    status = 404 if description is None else 200
    octo.get(f"{url}/plugin/discovery/discovery.xml", status=status, body=description or "no")


def described(name, uuid=UUID):
    return f"<friendlyName>OctoPrint instance {name}</friendlyName><UDN>uuid:{uuid}</UDN>"


@pytest.mark.parametrize(
    ("description", "name"),
    [
        (described("&#34;Kitchen&#34;"), "Kitchen"),
        (described("on octopi"), "octopi"),
        (described("\x1b[2Jx"), "[2Jx"),
        (None, None),
        ("<html>", None),
    ],
)
def test_an_octoprint_says_who_it_is(octo, description, name):
    """By its plugin Discovery, if that is on; the terminal is not steered by it."""
    an_octoprint(octo, description=description)
    found = finding.examine(URL)
    assert (found.url, found.name, found.trouble) == (URL, name, None)
    assert found.uuid == (UUID if name else None)
    assert not any("X-Api-Key" in call.request.headers for call in octo.calls)


def test_version_1_10_is_one_too(octo):
    """Without a key it says 403 to the question who we are."""
    an_octoprint(octo, user=403)
    assert finding.examine(URL) == Found(URL)


@pytest.mark.parametrize(("probe", "why"), [(403, "go through its wizard"), (404, "Application Keys")])
def test_one_that_gives_no_keys_says_why(octo, probe, why):
    """It is one all the same: not set up yet, or with that plugin disabled."""
    an_octoprint(octo, probe=probe)
    assert why in str(finding.examine(URL).trouble)


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 200, "body": "<html>Fluidd"},
        {"status": 200, "json": {"result": "ok"}},
        {"status": 403, "body": "<html>nginx"},
        {"status": 404, "body": "Not found"},
        {"status": 302, "headers": {"Location": "https://elsewhere/"}},
        {"body": ConnectionRefusedError()},
    ],
)
def test_what_merely_answers_is_none(octo, answer):
    """A bare 200 proves nothing: another web server is not taken for OctoPrint."""
    octo.get(f"{URL}/api/currentuser", **answer)
    with pytest.raises(Trouble):
        finding.examine(URL)


def test_each_is_told_once_at_its_first_address():
    """The proxy before it leads to the same one; those that do not say who they are may be several."""
    there = {
        "http://a": Found("http://a", "x", uuid="1" * 8),
        "http://b": Found("http://b", "x", uuid="1" * 8),
        "http://c": Found("http://c"),
        "http://d": Found("http://d"),
    }
    down = Trouble(Kind.DOWN, "is not up yet")

    def look(url):
        if url not in there:
            raise down
        return there[url]

    found, others = finding.search(
        ["http://a", "http://b", "http://e", "http://c", "http://a", "http://d"], look
    )
    assert [each.url for each in found] == ["http://a", "http://c", "http://d"]
    assert others == {"http://e": down}


def test_homes_and_processes_tell_where_to_ask(tmp_path):
    """Beside the usual places: config.yaml's, also octoprint_deploy's, and what a process was told."""
    for home, text in {
        "home/pi/.octoprint": "server:\n  port: 5001\n",
        "home/pi/.ender3": "server:\n  host: 127.0.0.2\n  port: 5002\n",
        "home/pi/.other": "server:\n  name: no port\n",
        "home/pi/.broken": "server:\n  port: [\n",
        "home/pi/visible": "server:\n  port: 5009\n",
    }.items():
        (tmp_path / home).mkdir(parents=True)
        (tmp_path / home / "config.yaml").write_text(text)
    for pid, words in {
        "7": ["/home/pi/oprint/bin/python", "/home/pi/oprint/bin/octoprint", "serve", "--port=5003", ""],
        "8": ["octoprint", "serve", "--port", "5004", ""],
        "9": ["vi", "octoprint", "--port=1", ""],
        "10": ["octoprint", "serve", ""],
    }.items():
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "cmdline").write_text("\0".join(words))
    assert finding.addresses(tmp_path) == [
        *finding.USUAL,
        "http://127.0.0.1:5003",
        "http://127.0.0.1:5004",
        "http://127.0.0.2:5002",
        "http://127.0.0.1:5001",
    ]


def test_a_description_that_is_too_long_is_none(octo):
    """Foreign data: nothing is made of it but what fits."""
    an_octoprint(octo, description=described("x" * 300, "../../" * 20))
    assert finding.examine(URL) == Found(URL)
