"""What is clear is not asked, what is not clear is; and where nobody is, it is told which flag to give."""

import os
from dataclasses import replace
from types import MappingProxyType

import pytest

from portretry_udev import listing, wizard
from portretry_udev.config import Printer
from portretry_udev.devices import Port
from portretry_udev.events import Octo
from portretry_udev.finding import Found
from portretry_udev.keys import KeySource, KeyTrouble
from portretry_udev.listing import Row
from portretry_udev.login import Account, LoginTrouble, Why
from portretry_udev.octoprint import Answer
from portretry_udev.port import Holder
from portretry_udev.questions import PREFERRED, Nobody, Unanswered
from portretry_udev.rest import Kind, Trouble
from portretry_udev.wizard import Choice, Ports

URL, OTHER = "http://127.0.0.1:5000", "http://127.0.0.1:5001"
BY_ID = "/dev/serial/by-id/usb-Prusa_Research__prusa3d.com__Original_Prusa_i3_MK3_CZPX1234X004XK56789-if00"
SOCKET = "/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0"
MK3 = Port(
    "/dev/ttyACM0",
    BY_ID,
    "/dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0",
    "2c99",
    "0002",
    "CZPX1234X004XK56789",
    "Original Prusa i3 MK3",
    "cdc_acm",
)
CH340 = Port(
    "/dev/ttyUSB0",
    "/dev/serial/by-id/usb-1a86_USB_Serial-if00-port0",
    SOCKET,
    "1a86",
    "7523",
    None,
    "USB Serial",
    "ch341-uart",
)
BUILT_IN = Port("/dev/ttyS0", driver="serial")
ADMIN = Account("admin", ("admins",), frozenset({"ADMIN"}), "1.11.8")


class Script:
    """A person whose answers are written down beforehand: a number, or a word."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.said, self.questions, self.offers = [], [], []

    def say(self, text=""):
        self.said.append(text)

    def ask(self, question, default=None):
        self.questions.append(question.text)
        answer = self.answers.pop(0)
        return default if answer == "" else answer

    def choose(self, question, options, default=None):
        self.questions.append(question.text)
        self.offers.append([option.label for option in options])
        self.default = default
        answer = self.answers.pop(0)
        if isinstance(answer, str):  # a part of a label
            return next(number for number, option in enumerate(options) if answer in option.label)
        return default if answer is None else answer


class Here:
    """OctoPrints, by their addresses."""

    def __init__(self, *found, **troubles):
        self.found = {each.url: each for each in found}
        self.troubles, self.firsts = troubles, None

    def search(self, first):
        self.firsts = list(first)
        return list(self.found.values()), self.troubles

    def examine(self, url):
        if url not in self.found:
            raise Trouble(Kind.DOWN, f"OctoPrint at {url} is not up yet")
        return self.found[url]


def nobody():
    said = []
    person = Nobody(said.append)
    person.said = said
    return person


def unanswered(act):
    with pytest.raises(Unanswered) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- which OctoPrint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("person", [nobody(), Script()])
def test_the_only_octoprint_is_it(person):
    """Nobody is asked about what is clear."""
    assert wizard.octoprint(None, None, [], Here(Found(URL)), person).url == URL


def test_one_of_several_is_chosen():
    """A person chooses, by what they call themselves; nobody is told the flag."""
    here = Here(Found(URL, "Kitchen"), Found(OTHER))
    person = Script(1)
    assert wizard.octoprint(None, None, [], here, person).url == OTHER
    assert person.offers == [[f'"Kitchen" at {URL}', OTHER]]
    text = unanswered(lambda: wizard.octoprint(None, None, [], here, nobody()))
    assert "--octoprint URL" in text
    assert URL in text


def test_none_here_is_asked_for_until_one_answers():
    """What is typed is judged as a configuration would, and seen to be one."""
    here = Here(Found("http://octopi.local"))
    here.search = lambda _: ([], {URL: Trouble(Kind.DOWN, "OctoPrint is not up yet (HTTP 503)", 503)})
    person = Script(" ", "http://a b", "http://user:secret@x", "elsewhere", "octopi.local")
    assert wizard.octoprint(None, None, [], here, person).url == "http://octopi.local"
    assert "  OctoPrint is not up yet (HTTP 503)" in person.said
    assert sum(line.startswith("No: ") for line in person.said) == 4
    assert not any("secret" in line for line in person.said)
    assert "--octoprint URL" in unanswered(lambda: wizard.octoprint(None, None, [], here, nobody()))


def test_what_is_given_or_configured_is_not_looked_for():
    """A flag, or the printer of that name, says where; a given one that is not there is no other."""
    here, printer = Here(Found(URL), Found(OTHER)), a_printer(octoprint=OTHER)
    assert wizard.octoprint(URL, "mk3", [printer], here, nobody()).url == URL
    assert wizard.octoprint(None, "mk3", [printer], here, nobody()).url == OTHER
    assert here.firsts is None
    with pytest.raises(Trouble):
        wizard.octoprint("http://x", None, [], here, nobody())


def test_configured_octoprints_are_asked_first():
    """One on another machine is found again, too."""
    here = Here(Found(URL))
    wizard.octoprint(None, None, [a_printer(octoprint="http://octopi.local")], here, nobody())
    assert here.firsts == ["http://octopi.local"]


# -- with which key ----------------------------------------------------------------------------------------


class FakeKeys:
    """One OctoPrint that knows one key."""

    def __init__(self, known="GOOD", trouble=None):
        self.known, self.trouble, self.did = known, trouble, []

    def judged(self, key):
        if self.trouble:
            raise self.trouble
        if key != self.known:
            raise LoginTrouble(Why.REFUSED, "OctoPrint does not know the key")
        return ADMIN

    def asked(self):
        self.did.append("asked")
        return self.known

    def made(self):
        self.did.append("made")
        return self.known


def a_file(folder, key, mode=0o600):
    path = folder / "mk3.key"
    path.touch(mode)
    path.write_text(key)
    return path


def test_a_stored_key_that_works_is_taken(tmp_path):
    """Nobody is asked, and nothing is to be stored."""
    stored, keys = a_file(tmp_path, "GOOD"), FakeKeys()
    found = wizard.key(None, stored, keys, nobody())
    assert (found.secret, found.stored, found.account, keys.did) == ("GOOD", stored, ADMIN, [])
    assert "GOOD" not in repr(found)


@pytest.mark.parametrize(("key", "mode"), [("BAD", 0o600), ("GOOD", 0o644), ("", 0o600)])
def test_a_stored_key_that_does_not_work_is_replaced(tmp_path, key, mode):
    """By a new one, after it was said why; nobody is told how to give one."""
    stored, person = a_file(tmp_path, key, mode), Script(None)
    assert wizard.key(None, stored, FakeKeys(), person).stored is None
    assert person.said[0].startswith("The stored key is to be replaced: ")
    assert "--api-key-file FILE" in unanswered(lambda: wizard.key(None, stored, FakeKeys(), nobody()))


def test_an_octoprint_that_is_away_is_no_reason_to_replace_a_key(tmp_path):
    """It may well know the key, when it is back."""
    away = Trouble(Kind.SLOW, "did not answer in time")
    with pytest.raises(Trouble):
        wizard.key(None, a_file(tmp_path, "GOOD"), FakeKeys(trouble=away), Script())


def test_a_key_that_was_given_is_the_one(tmp_path):
    """No other is taken instead of it: it works, or that is said."""
    keys = FakeKeys()
    given = a_file(tmp_path, "GOOD")
    assert wizard.key(given, None, keys, nobody()).stored == given
    with pytest.raises(LoginTrouble):
        wizard.key(a_file(tmp_path, "BAD"), None, keys, Script(None))
    with pytest.raises(KeyTrouble):
        wizard.key(tmp_path / "none", None, keys, Script(None))
    assert keys.did == []


@pytest.mark.parametrize(("answers", "did"), [([0], "asked"), ([1], "made")])
def test_a_new_key_is_asked_for_or_made(answers, did):
    """As the person says."""
    keys = FakeKeys()
    wizard.key(None, None, keys, Script(*answers))
    assert keys.did == [did]


def test_an_account_is_made_without_a_question_if_that_was_said():
    """So it can be scripted."""
    keys = FakeKeys()
    wizard.key(None, None, keys, nobody(), make=True)
    assert keys.did == ["made"]


def test_a_key_in_a_file_is_taken_from_there(tmp_path):
    """The person names it; a file that cannot be used is said, and asked for again."""
    person = Script(2, str(tmp_path / "none"), "~nosuchuser/x", str(a_file(tmp_path, "GOOD")))
    assert wizard.key(None, None, FakeKeys(), person).secret == "GOOD"
    assert len([line for line in person.said if line.startswith("No: ")]) == 2


# -- which port --------------------------------------------------------------------------------------------


def a_printer(name="mk3", octoprint=URL, **settings):
    return Printer(name, octoprint, KeySource(None), **settings)


def an_answer(*ports, preferred=None, octo=Octo.OFFLINE):
    return Answer(octo, "Closed", "Offline", None, None, ports, preferred, None, restarted=False)


def a_row(port, ports=(), **more):
    return Row(port, unusable=listing.unusable(port, ports or [port]), **more)


def there(*rows, answer=None, taken=(), old=None):
    rows = [row if isinstance(row, Row) else a_row(row) for row in rows]
    return Ports(rows, answer or an_answer(), frozenset(taken), old)


def asked(ports, person, *came):
    return wizard.port(lambda: ports, lambda: came, person)


@pytest.mark.parametrize("person", [nobody(), Script(None)])
def test_the_only_usb_port_is_it(person):
    """By the name that stays; ports that are built in are not taken for a printer's."""
    choice = asked(there(MK3, BUILT_IN), person)
    assert (choice.port, choice.match, choice.why) == (BY_ID, {}, "")


def test_a_board_without_a_number_is_known_by_its_socket():
    """As `ports --suggest` says, with the reason."""
    choice = asked(there(CH340), nobody())
    assert choice.port == SOCKET
    assert "always use the same one" in choice.why


def test_the_port_that_octoprint_prefers_is_it():
    """Of several; nobody has to be asked."""
    answer = an_answer("/dev/ttyACM0", preferred=CH340.node)
    assert asked(there(MK3, CH340, answer=answer), nobody()).port == SOCKET


def test_of_several_ports_none_is_taken_for_it():
    """A neighbour's printer would be touched: nobody is told the flags, with the ports."""
    text = unanswered(lambda: asked(there(MK3, CH340), nobody()))
    assert "--port NODE" in text
    assert "/dev/ttyACM0, /dev/ttyUSB0" in text
    person = Script("ttyUSB0")
    assert asked(there(MK3, CH340), person).port == SOCKET
    assert "find out" in person.offers[0][person.default]  # not sure: it is proposed to find out


def test_no_port_at_all():
    """Nobody is told; a person can plug it in, or name it."""
    assert "none is there" in unanswered(lambda: asked(there(), nobody()))
    person = Script("another", "ttyUSB0", "another", "/tmp/printer")
    assert asked(there(), person).port == "/tmp/printer"
    assert "No: a path begins with a slash." in person.said


def test_what_is_configured_stays():
    """A second time nothing is asked and nothing changes; a person can have it otherwise."""
    old = a_printer(port=SOCKET)
    ports = there(MK3, CH340, answer=an_answer(preferred=MK3.node), old=old)
    assert asked(ports, nobody()).port == SOCKET
    assert asked(ports, Script(None)).port == SOCKET
    assert asked(ports, Script("ttyACM0")).port == BY_ID
    match = MappingProxyType({"serial": "1", "vendor": "2c99"})
    kept = asked(there(MK3, old=a_printer(match=match)), Script(None))
    assert (kept.port, kept.match) == (None, match)


def test_no_port_configured_stays_so():
    """The one that OctoPrint prefers, whichever that is."""
    choice = asked(there(MK3, CH340, old=a_printer()), nobody())
    assert (choice.port, choice.match, str(choice)) == (None, {}, "the port that OctoPrint prefers")


def test_always_the_one_that_octoprint_prefers():
    """It can be chosen, if OctoPrint prefers any."""
    ports = there(MK3, answer=an_answer(preferred=MK3.node))
    choice = asked(ports, Script("always the one"))
    assert (choice.port, choice.match, choice.row) == (None, {}, ports.rows[0])
    person = Script(None)
    asked(there(MK3), person)
    assert not any("always" in label for label in person.offers[0])


def test_a_port_that_cannot_be_it_is_not_offered():
    """Another printer's, one that is stale, one that is not there; and why is said."""
    ports = there(
        a_row(MK3, printer="ender"),
        a_row(CH340, stale="its node leads to another device"),
        a_row(replace(BUILT_IN, node="/dev/ttyS1"), holders=None, trouble="No such file or directory"),
        taken=["ender"],
    )
    question, answers, _ = wizard._port_question(ports)
    assert [option.label for option, _ in answers] == [
        "find out: unplug the printer, and plug it in again",
        "another: type its path",
    ]
    assert question.remarks == (
        "(Not /dev/ttyACM0: that is ender.)",
        "(Not /dev/ttyUSB0: its node leads to another device.)",
        "(Not /dev/ttyS1: it cannot be looked at: No such file or directory.)",
    )


def test_a_cable_is_not_pulled_in_a_print():
    """While OctoPrint is printing, that is not offered."""
    person = Script("ttyACM0")
    asked(there(MK3, CH340, answer=an_answer(octo=Octo.BUSY)), person)
    assert not any("unplug" in label for label in person.offers[0])


def test_what_was_plugged_is_it():
    """One that came is taken; of several one is chosen; if none came, it is asked again."""
    ports = there(MK3, CH340, a_row(BUILT_IN))
    assert asked(ports, Script("find out"), CH340).port == SOCKET
    both = Script("find out", "ttyACM0")
    assert asked(ports, both, MK3, CH340).port == BY_ID
    assert both.offers[1] == [
        "/dev/ttyACM0  2c99:0002  Original Prusa i3 MK3",
        "/dev/ttyUSB0  1a86:7523  USB Serial",
    ]
    assert asked(ports, Script("find out", "ttyUSB0")).port == SOCKET


def test_who_has_a_port_is_shown():
    """It may be the clue: what OctoPrint has open is likely its printer's."""
    _, answers, _ = wizard._port_question(there(a_row(MK3, holders=(Holder(7, "octoprint"),))))
    assert answers[0][0].details[0] == "in use by octoprint (pid 7)"


@pytest.mark.parametrize(
    ("port", "why"),
    [
        (BY_ID, ""),
        (MK3.by_path, ""),
        (MK3.node, "another board may get this node next time; a name that stays is " + BY_ID),
        (CH340.by_id, "shared by every board with this chip: use by-path"),
        (SOCKET, ""),
        ("/dev/ttyUSB7", "it is not here now, and is taken as you say"),
    ],
)
def test_a_port_that_was_given_is_taken(port, why):
    """As it was given, and with what is to be said of it."""
    choice = wizard.given_port(port, {}, there(MK3, CH340, BUILT_IN))
    assert (choice.port, choice.why) == (port, why)


def test_flags_may_say_a_match_or_what_octoprint_prefers():
    """Then there is no port."""
    ports = there(MK3, answer=an_answer(preferred=MK3.node))
    assert wizard.given_port(None, {}, ports) is None
    assert wizard.given_port(None, {"serial": "1"}, ports).match == {"serial": "1"}
    preferred = wizard.given_port(PREFERRED, {}, ports)
    assert (preferred.port, preferred.match, preferred.row.port) == (None, {}, MK3)


def test_what_octoprint_does_not_offer_is_to_be_added(monkeypatch):
    """By the name that is configured; what leads to the same node is offered."""
    monkeypatch.setattr(os.path, "realpath", lambda path: {BY_ID: MK3.node}.get(path, path))
    ports = there(MK3, answer=an_answer("VIRTUAL", "/dev/ttyACM0"))
    assert ports.unoffered(ports.recommended(ports.rows[0])) is None
    ports = there(MK3, answer=an_answer("VIRTUAL"))
    assert ports.unoffered(ports.recommended(ports.rows[0])) == BY_ID
    assert ports.unoffered(Choice(None, {"serial": "1"})) is None


# -- under which name --------------------------------------------------------------------------------------


def test_the_name_proposed_is_what_the_board_calls_itself():
    """Nobody is asked; one that is taken is not proposed again."""
    row = a_row(MK3)
    assert wizard.name(Choice(row=row), [], nobody()) == "original-prusa-i3-mk3"
    assert wizard.name(Choice(row=row), ["original-prusa-i3-mk3"], nobody()) == "original-prusa-i3-mk3-2"
    assert wizard.name(Choice(), [], nobody()) == "printer"
    assert wizard.name(Choice(), ["printer", "printer-2"], nobody()) == "printer-3"


def test_a_name_that_is_none_is_asked_for_again():
    """It becomes a file's and an argument's."""
    person = Script("-x", "../x", "ä", "x" * 65, "mk3")
    assert wizard.name(Choice(), [], person) == "mk3"
    assert len(person.said) == 4
