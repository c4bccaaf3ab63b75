"""The rules of one installation: each configured printer, and nothing that a value could smuggle in.

That udev takes them for what they say is tested in tests/system/test_rule.py.
"""

import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portretry_udev.config import Printer as ConfiguredPrinter
from portretry_udev.keys import KeySource
from portretry_udev.udev_rule import Unwritable, rules_for

BY_ID = "/dev/serial/by-id/usb-Prusa_Research__prusa3d.com__Original_Prusa_i3_MK3_CZPX1234-if00"
KEY = r"(?P<key>[A-Z]+(?:\{[A-Z_]+\})?)"
TOKEN = re.compile(KEY + r'(?P<how>==|!=|\+=|=)"(?P<value>[^"]*)"(?:, |$)')
HARMLESS = {"ACTION", "GOTO", "LABEL", "SUBSYSTEM", "KERNEL", "SYMLINK", "TAG", "ENV"}
OURS = {"tty[A-Z]*", "?*"}  # the only patterns


@dataclass(frozen=True)
class Printer:
    name: str = "mk3"
    port: str | None = None
    match: dict[str, str] = field(default_factory=dict)


def lines(text):
    """The rules as udev reads them: comments left out, continued lines joined."""
    kept = [line for line in text.split("\n") if line and not line.startswith("#")]
    return re.sub(r" *\\\n *", " ", "\n".join(kept)).split("\n")


def tokens(line):
    """A rule as (key, how, value); every character of it belongs to one."""
    found = list(TOKEN.finditer(line))
    assert "".join(each[0] for each in found) == line
    return [(each["key"], each["how"], each["value"]) for each in found]


def of(line, how):
    return {(key, value) for key, each, value in tokens(line) if each == how}


def rules(*printers):
    """What is between the first line and the last, which are always the same."""
    first, *between, wants, last = lines(rules_for(printers))
    assert tokens(first) == [("ACTION", "==", "remove"), ("GOTO", "=", "portretry_printers_end")]
    asked = {("ACTION", "add"), ("SUBSYSTEM", "tty"), ("ENV{PORTRETRY_PRINTER}", "?*")}
    assert of(wants, "==") == asked
    assert of(wants, "+=") == {("ENV{SYSTEMD_WANTS}", "portretry-udev.service")}
    assert tokens(last) == [("LABEL", "=", "portretry_printers_end")]
    return between


SET = {
    ("TAG", "portretry"),
    ("TAG", "systemd"),
    ("SYMLINK", "printer-mk3"),
}
MARKS = {
    ("ENV{ID_MM_DEVICE_IGNORE}", "1"),
    ("ENV{ID_MM_PORT_IGNORE}", "1"),
    ("ENV{PORTRETRY_PRINTER}", "mk3"),
}


def test_a_port_by_id_is_known_by_this_very_link():
    """The port that has the link is marked, and the USB device behind it, so its other ports rest too."""
    device, port = rules(Printer(port=BY_ID))

    own = ("ENV{ID_SERIAL}", BY_ID.removeprefix("/dev/serial/by-id/usb-").removesuffix("-if00"))
    usb = {("SUBSYSTEM", "usb"), ("ENV{DEVTYPE}", "usb_device"), ("ENV{ID_BUS}", "usb")}
    assert of(device, "==") == usb | {own}
    assert of(device, "=") == {("ENV{ID_MM_DEVICE_IGNORE}", "1")}
    assert of(port, "==") == {("SUBSYSTEM", "tty"), ("SYMLINK", BY_ID.removeprefix("/dev/"))}
    assert of(port, "+=") == SET
    assert of(port, "=") == MARKS


@pytest.mark.parametrize(
    "port",
    [
        "/dev/serial/by-id/usb-1a86_USB_Serial-if00-port0",
        "/dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0-port0",
        "/dev/my-own-link",
    ],
)
def test_a_link_that_says_nothing_of_a_device_marks_its_port_alone(port):
    """A CH340 without a serial number is any CH340: no rule goes to the USB device by its name."""
    (line,) = rules(Printer(port=port))

    assert of(line, "==") == {("SUBSYSTEM", "tty"), ("SYMLINK", port.removeprefix("/dev/"))}
    assert of(line, "+=") == SET


def test_a_node_gets_no_stable_link():
    """ttyUSB0 may be another device tomorrow: a /dev/printer-NAME that leads to it would be a lie."""
    (line,) = rules(Printer(port="/dev/ttyUSB0"))

    assert of(line, "==") == {("SUBSYSTEM", "tty"), ("KERNEL", "ttyUSB0")}
    assert of(line, "+=") == SET - {("SYMLINK", "printer-mk3")}
    assert of(line, "=") == MARKS


def test_a_match_is_asked_for_in_full():
    """Every key of `match`, by the property that the service compares; blanks as udev writes them."""
    match = {"serial": "CZ  PX1", "vendor": "2c99", "product": "0002", "path": "pci-1:2.0", "interface": "00"}

    device, port = rules(Printer(match=match))

    asked = {("ENV{ID_SERIAL_SHORT}", "CZ_PX1"), ("ENV{ID_VENDOR_ID}", "2c99"), ("ENV{ID_MODEL_ID}", "0002")}
    usb = {("SUBSYSTEM", "usb"), ("ENV{DEVTYPE}", "usb_device"), ("ENV{ID_BUS}", "usb")}
    assert of(device, "==") == usb | asked
    of_the_port = {("ENV{ID_PATH}", "pci-1:2.0"), ("ENV{ID_USB_INTERFACE_NUM}", "00")}
    assert of(port, "==") == {("SUBSYSTEM", "tty"), ("KERNEL", "tty[A-Z]*")} | asked | of_the_port
    assert of(port, "+=") == SET


def test_a_match_without_a_serial_number_marks_its_port_alone():
    """All of a vendor's devices are not one printer."""
    (port,) = rules(Printer(match={"vendor": "2c99", "path": "pci-1:2.0"}))

    assert ("SUBSYSTEM", "tty") in of(port, "==")


def test_a_printer_that_follows_octoprint_has_no_rule():
    """Without port and match nobody knows the device beforehand; the file says so."""
    assert rules(Printer()) == []
    assert "# mk3: " in rules_for([Printer()])


def test_each_printer_has_its_own_rules():
    """Two printers, two links, and neither's condition in the other's rule."""
    first, second = rules(Printer("a", "/dev/serial/by-path/x"), Printer("b", "/dev/serial/by-path/y"))

    assert {("SYMLINK", "serial/by-path/x")} < of(first, "==")
    assert {("SYMLINK", "printer-a")} < of(first, "+=")
    assert {("SYMLINK", "serial/by-path/y")} < of(second, "==")
    assert {("SYMLINK", "printer-b")} < of(second, "+=")


def test_the_service_can_have_another_name():
    """The unit is the caller's word."""
    assert 'ENV{SYSTEMD_WANTS}+="x.service"' in rules_for([Printer(port=BY_ID)], "x.service")


def test_what_the_configuration_gives_is_taken():
    """`config.Printer` has the shape that is asked for."""
    printer = ConfiguredPrinter("mk3", "http://127.0.0.1:5000", KeySource(None), port=BY_ID)

    assert 'SYMLINK+="printer-mk3"' in rules_for([printer])


@pytest.mark.parametrize(
    ("port", "hint"),
    [
        ("/dev/printer-mk3", "the link that this rule makes"),
        ("/root/copy", "udev makes no"),
        ("/dev/../etc/x", "udev makes no"),
        ("/dev/serial/by-id/a|b", "port has characters"),
    ],
)
def test_a_port_that_no_rule_can_name_is_refused(port, hint):
    """In one line, with the printer's name and what to do."""
    with pytest.raises(Unwritable, match=f"^printer mk3: .*{hint}") as refused:
        rules_for([Printer(port=port)])

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "evil",
    [
        'x", RUN+="/bin/sh',
        "x\nRUN",
        "a*",
        "a?",
        "[a]",
        "a|b",
        "a\\",
        "$env{X}",
        "%k",
        "a\r",
        "a\0",
        "#\u2028",
    ],
)
@pytest.mark.parametrize("key", ["serial", "path", "vendor"])
def test_a_value_that_would_mean_more_than_itself_is_refused(evil, key):
    """Quotation marks, line ends, patterns, alternatives, escapes, substitutions: none gets into a rule."""
    with pytest.raises(Unwritable, match=f"^printer mk3: match.{key} ") as value:
        rules_for([Printer(match={key: evil})])
    with pytest.raises(Unwritable, match=r"^printer mk3: port ") as port:
        rules_for([Printer(port=f"/dev/serial/by-id/{evil}")])

    assert all(str(refused.value).isprintable() for refused in (value, port)), "one line, for any terminal"


@pytest.mark.parametrize("evil", ["", ".", "-x", "a b", "a/b", 'a"', "a\n", "a$b", "%n", "x" * 65, "é"])
def test_a_name_that_is_no_link_is_refused(evil):
    """Whatever the configuration has let through: the name goes into a path in /dev."""
    with pytest.raises(Unwritable, match="its name cannot be that of a link"):
        rules_for([Printer(evil, BY_ID)])


@pytest.mark.parametrize("unit", ["", "x", 'x".service', "a b.service", "a.service\n", "../a.service"])
def test_a_unit_that_is_none_is_refused(unit):
    """SYSTEMD_WANTS is a list in which blanks part the units."""
    with pytest.raises(Unwritable):
        rules_for([], unit)


def test_unknown_keys_and_too_long_values_are_refused():
    """A match that cannot be asked for in full is not asked for at all."""
    with pytest.raises(Unwritable, match=r"no property for match\.'colour'"):
        rules_for([Printer(match={"colour": "red"})])
    with pytest.raises(Unwritable, match=r"match\.vendor must be small hexadecimal digits"):
        rules_for([Printer(match={"vendor": "xyz"})])
    with pytest.raises(Unwritable, match="port has characters") as refused:
        rules_for([Printer(port="/dev/" + "x" * 300)])
    assert len(str(refused.value)) < 250


words = st.text(max_size=12) | st.text('"\\|*?[]$%{}#\n\r,=+! abc09/.-_', max_size=12)
matches = st.dictionaries(st.sampled_from(["serial", "vendor", "product", "path", "interface"]), words)


@given(name=words, port=st.none() | words | words.map("/dev/{}".format), match=matches)
def test_nothing_is_smuggled_in(name, port, match):
    """Any text is refused or stands in a rule as itself: no key of udev's that runs or reads anything."""
    try:
        text = rules_for([Printer(name, port, match)])
    except Unwritable:
        return
    for key, _, value in (token for line in lines(text) for token in tokens(line)):
        assert key.partition("{")[0] in HARMLESS
        assert value in OURS or not set(value) & set('"\\|*?[]$%')
