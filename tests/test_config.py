"""The configuration: its places and their order, its ranges, and all its mistakes at once."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portretry_udev import config
from portretry_udev import settings as forms
from portretry_udev.config import Printer, Wrong, load
from portretry_udev.devices import MATCH_KEYS
from portretry_udev.keys import KeySource
from portretry_udev.octoprint_config import OctoPrintSettings

KEY = "0123456789ABCDEF0123456789ABCDEF"
URL = "http://127.0.0.1:5000"
EXAMPLE = Path(__file__).parent.parent / "config.example.toml"
YAML = """\
plugins:
  portretry:
    interval: 7.5
serial:
  port: /dev/ttyACM0
  baudrate: 115200
server:
  host: 0.0.0.0
  port: 5001
"""


class Place:
    """A folder with a key, and what it takes to load a configuration from it."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "config.toml"
        self.key = self.write("mk3.key", KEY, 0o600)

    def write(self, name, text, mode=0o644):
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    def printers(self, *bodies, top=""):
        """Write a file with the printers mk3, mini, ...; each has a URL and a key unless its body says so."""
        text = f"{top}\n"
        for name, body in zip(("mk3", "mini", "xl"), bodies, strict=False):
            text += f"[printers.{name}]\n{body}\n"
            if "octoprint =" not in body:
                text += f'octoprint = "http://{name}"\n'
            if "api_key_file" not in body:
                text += f'api_key_file = "{self.key}"\n'
        return self.write("config.toml", text)

    def load(self, *only, environ=None, **flags):
        return load(flags, environ or {}, only, default_file=self.file)

    def wrong(self, *only, environ=None, **flags):
        with pytest.raises(Wrong) as wrong:
            self.load(*only, environ=environ, **flags)
        assert str(wrong.value) == "\n".join(wrong.value.mistakes)
        assert KEY not in str(wrong.value)
        return [mistake.replace(f"{self.file}: ", "") for mistake in wrong.value.mistakes]

    def alone(self, **flags):
        """The one printer that flags make."""
        (printer,) = self.load(octoprint=URL, api_key_file=str(self.key), **flags).printers
        return printer


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# --- what a file says -------------------------------------------------------------------------------------


def test_every_setting_of_a_file_is_taken(place):
    """What stands in the file is what the printer gets."""
    ca = place.write("ca.pem", "")
    yaml = place.write("config.yaml", YAML)
    place.printers(
        f"""octoprint = "HTTPS://Octo.Example:8443/one/"
port = "/dev/serial/by-id//x"
octoprint_port = "/dev/ttyACM0"
baudrate = 250000
profile = "_default"
interval = 2
reconnect = "always"
probe = "open"
avoid_reset = false
start = "wait"
octoprint_config = "{yaml}"
ca_file = "{ca}"
""",
        'match = { serial = "CZ 1", vendor = "0x2C99", product = "0002", path = "pci-0", interface = "00" }',
        top='state_dir = "/state"\ncontrol = "/run/c.sock"\ninterval = 9.5',
    )
    loaded = place.load()
    key = loaded.printers[0].key
    assert key.read() == KEY
    assert key.path == place.key
    mk3, mini = loaded.printers
    assert mk3 == Printer(
        name="mk3",
        octoprint="https://octo.example:8443/one",
        key=key,
        port="/dev/serial/by-id/x",
        octoprint_port="/dev/ttyACM0",
        baudrate=250000,
        profile="_default",
        interval=2.0,
        reconnect="always",
        probe="open",
        avoid_reset=False,
        start="wait",
        octoprint_config=yaml,
        octoprint_settings=OctoPrintSettings(
            interval=7.5, port="/dev/ttyACM0", baudrate=115200, host="0.0.0.0", server_port=5001
        ),
        ca_file=ca,
    )
    assert dict(mini.match) == {
        "serial": "CZ 1",
        "vendor": "2c99",
        "product": "0002",
        "path": "pci-0",
        "interface": "00",
    }
    assert mini.interval == 9.5
    assert (loaded.state_dir, loaded.control) == (Path("/state"), Path("/run/c.sock"))


def test_what_is_left_out_has_the_documented_default(place):
    """Five seconds, on return, by the firmware, sparing resets, connecting at the start, OctoPrint's port."""
    place.printers("")
    (mk3,) = place.load().printers
    assert mk3 == Printer("mk3", "http://mk3", mk3.key)
    assert (mk3.interval, mk3.reconnect, mk3.probe, mk3.avoid_reset, mk3.start) == (
        5.0,
        "on-return",
        "firmware",
        True,
        "connect",
    )
    assert (mk3.port, dict(mk3.match), mk3.baudrate, mk3.profile) == (None, {}, None, None)
    hash(mk3)
    with pytest.raises(TypeError):
        mk3.match["serial"] = "x"


def test_a_match_has_the_keys_that_devices_know():
    """A key that can be configured is one that a device is matched by, and the other way round."""
    assert frozenset(forms.MATCH) == MATCH_KEYS


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("http://octopi.local", "http://octopi.local"),
        ("http://octopi.local/", "http://octopi.local"),
        ("https://h/a/b//", "https://h/a/b"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("HTTP://H:80/A", "http://h:80/A"),
    ],
)
def test_a_url_may_have_a_prefix_and_loses_its_last_slash(place, value, url):
    """A path behind a proxy is kept, so that requests can be appended to it."""
    place.printers(f'octoprint = "{value}"')
    assert place.load().printers[0].octoprint == url


# --- mistakes ---------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once_each_with_its_path(place):
    """Nobody has to start five times to find five mistakes."""
    place.write(
        "config.toml",
        """
intervall = 5
port = "/dev/ttyUSB0"
[printers.mk3]
octoprint = "http://a"
interval = "fast"
prot = "/dev/ttyUSB0"
state_dir = "/x"
api_key = "0123456789ABCDEF0123456789ABCDEF"
[printers."my printer"]
octoprint = "ftp://b"
api_key_file = "/nowhere/key"
[printers.xl]
match = { vendor = "1a86", colour = "orange" }
""",
    )
    assert place.wrong() == [
        "intervall: there is no such setting; did you mean interval?",
        "port: belongs to a printer: write it below its [printers.NAME]",
        'printers.mk3.interval: must be a number from 0.5 to 3600 seconds, is "fast"',
        "printers.mk3.prot: there is no such setting; did you mean port?",
        "printers.mk3.state_dir: belongs to the top of the file, above the first [printers.NAME]",
        (
            "printers.mk3.api_key: the key itself does not belong here; "
            "write it into a file and name that in api_key_file"
        ),
        (
            'printers."my printer": a printer\'s name has 1 to 64 letters, digits, _ . or -, '
            "and begins with none of . -"
        ),
        (
            'printers."my printer".octoprint: must be a URL such as "http://127.0.0.1:5000" or '
            '"https://octopi.example/octoprint"'
        ),
        (
            "printers.xl.match.colour: there is no such setting; "
            "there are: serial, vendor, product, path, interface"
        ),
        (
            "printers.mk3.api_key_file: is missing; "
            "name a file (mode 0600) that holds OctoPrint's API key, pass the credential mk3.key, or "
            "get a key with `portretry-udev login`"
        ),
        'printers."my printer".api_key_file: key file /nowhere/key: No such file or directory',
        'printers.xl.octoprint: is missing; name the URL of its OctoPrint, such as "http://127.0.0.1:5000"',
        (
            "printers.xl.api_key_file: is missing; "
            "name a file (mode 0600) that holds OctoPrint's API key, pass the credential xl.key, or "
            "get a key with `portretry-udev login`"
        ),
    ]


def test_a_mistake_begins_with_the_file(place):
    """The whole line, as a person sees it."""
    place.printers('interval = "fast"')
    with pytest.raises(Wrong) as wrong:
        place.load()
    assert wrong.value.mistakes == [
        f'{place.file}: printers.mk3.interval: must be a number from 0.5 to 3600 seconds, is "fast"'
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        *(
            (f"interval = {value}", f"interval: must be a number from 0.5 to 3600 seconds, is {shown}")
            for value, shown in [
                ("0", "0"),
                ("0.49", "0.49"),
                ("3600.1", "3600.1"),
                ("-5", "-5"),
                ("nan", "nan"),
                ("inf", "inf"),
                ("true", "true"),
                ("0x" + "f" * 5000, "a huge number"),
                ("[5]", "a list"),
                ("{}", "a table"),
                ("2024-01-01", "a date"),
            ]
        ),
        ("baudrate = 1200", "baudrate: 1200 baud is refused: it sends many boards into their bootloader"),
        (
            "baudrate = 0",
            "baudrate: must be a whole number from 2400 to 4000000 baud (left out: OctoPrint's), is 0",
        ),
        ("baudrate = 4000001", "is 4000001"),
        ("baudrate = 115200.0", "is 115200.0"),
        ('baudrate = "115200"', 'is "115200"'),
        ("baudrate = true", "is true"),
        (
            'baudrate = 57600\nmatch = { vendor = "2c99" }',
            "baudrate: 57600 baud is refused: it switches a Prusa board's firmware off; use 115200",
        ),
        (
            'baudrate = 57600\nport = "/dev/serial/by-id/usb-Prusa_Research__prusa3d.com__MK4-if00"',
            "baudrate: 57600 baud is refused: it switches a Prusa board's firmware off; use 115200",
        ),
        ('reconnect = "never"', 'reconnect: must be "on-return" or "always", is "never"'),
        ("reconnect = []", 'reconnect: must be "on-return" or "always", is a list'),
        ('probe = "close"', 'probe: must be "firmware", "open" or "none", is "close"'),
        ('start = ""', 'start: must be "connect" or "wait", is ""'),
        ("avoid_reset = 1", "avoid_reset: must be true or false, is 1"),
        ('avoid_reset = "no"', 'avoid_reset: must be true or false, is "no"'),
        ('port = "AUTO"', "port: AUTO is no port; left out, it is the port that OctoPrint prefers"),
        (
            'port = "ttyUSB0"',
            'port: must be the path of a node, such as "/dev/serial/by-id/...", is "ttyUSB0"',
        ),
        ('port = ""', 'port: must be text, is ""'),
        ('port = "/dev/\\u0000"', 'port: must be text, is "/dev/\\u0000"'),
        ('profile = "a\\nb"', 'profile: must be text, is "a\\nb"'),
        (f'profile = "{"x" * 60}\\n"', f'profile: must be text, is "{"x" * 60}..."'),
        ("octoprint_port = 5", "octoprint_port: must be text, is 5"),
        ('octoprint_config = "config.yaml"', "octoprint_config: must be an absolute path"),
        ('octoprint_config = "~nobody-at-all/c"', "octoprint_config: there is no such user's home"),
        (
            'octoprint_config = "/nowhere"',
            "octoprint_config: /nowhere: cannot be read: No such file or directory",
        ),
        ('ca_file = "/nowhere"', "ca_file: there is no file of certificates that can be read: /nowhere"),
        ("match = {}", 'match: must be a table such as { serial = "CZPX..." }, is a table'),
        ('match = "CZPX"', 'match: must be a table such as { serial = "CZPX..." }, is "CZPX"'),
        ("match = { serial = 5 }", "match.serial: must be text, is 5"),
        (
            "match = { vendor = 2099 }",
            'match.vendor: must be 4 hexadecimal digits in quotes, such as "2c99", is 2099',
        ),
        (
            'match = { interface = "0" }',
            'match.interface: must be 2 hexadecimal digits in quotes, such as "00"',
        ),
        ('match = { product = "0002" }', "match: fits devices of many makers; add serial, path or vendor"),
        ('match = { interface = "00" }', "match: fits devices of many makers; add serial, path or vendor"),
        ('match = { serial = "x" }\nport = "/dev/x"', "mk3: port and match exclude each other; keep one"),
        ('reconect = "always"', "reconect: there is no such setting; did you mean reconnect?"),
        ('zzz = "always"', "zzz: there is no such setting; there are: octoprint, api_key_file, port, "),
    ],
)
def test_a_wrong_value_says_what_it_must_be(place, line, complaint):
    """Every range and every choice is checked, and the message says what would do."""
    place.printers(line)
    (mistake,) = place.wrong()
    assert mistake.startswith("printers.mk3")
    assert complaint in mistake
    assert "\n" not in mistake


@pytest.mark.parametrize("vendor", ["1a86", "10C4", "0403", "067b"])
def test_a_bridge_alone_is_no_printer(place, vendor):
    """A chip that sits on every second board never matches by itself; with a serial or a path it does."""
    for more in ("", ', product = "7523"', ', product = "7523", interface = "00"'):
        place.printers(f'match = {{ vendor = "{vendor}"{more} }}')
        (mistake,) = place.wrong()
        assert 'a neighbour\'s too; add serial or path, or set port = "/dev/serial/by-path/..."' in mistake
    for more in ('serial = "1"', 'path = "pci-0"'):
        place.printers(f'match = {{ vendor = "{vendor}", {more} }}')
        assert place.load().printers[0].match["vendor"] == vendor.lower()


def test_a_makers_own_vendor_is_a_match(place):
    """A vendor that is no bridge's is enough: whether it fits one device alone is seen when one looks."""
    place.printers('match = { vendor = "2c99" }\nbaudrate = 115200')
    assert dict(place.load().printers[0].match) == {"vendor": "2c99"}


def test_57600_baud_is_fine_for_other_boards(place):
    """Only a Prusa board takes that rate for something else."""
    for device in ('match = { vendor = "1d50" }', 'port = "/dev/ttyUSB0"', ""):
        place.printers(f"baudrate = 57600\n{device}")
        assert place.load().printers[0].baudrate == 57600


@pytest.mark.parametrize(
    "url",
    [
        "",
        "octopi.local",
        "ftp://octopi",
        "http://",
        "http:///path",
        "http://:5000",
        f"http://me:{KEY}@octopi",
        f"http://{KEY}@octopi",
        f"http://octopi?apikey={KEY}",
        f"http://octopi#{KEY}",
        f"http://octopi/{KEY} x",
        "http://octopi:port",
        "http://octopi:0",
        "http://octopi:65536",
        "http://[::1",
        "http://a\\\\b",
        "http://a\\tb",
    ],
)
def test_a_wrong_url_is_refused_without_being_shown(place, url):
    """There may be a password or a key in it."""
    place.printers(f'octoprint = "{url}"')
    (mistake,) = place.wrong()
    assert mistake.startswith("printers.mk3.octoprint: must be a URL")
    assert "octopi:" not in mistake


@pytest.mark.parametrize("value", [f'"{KEY}"', f'"keys/{KEY}"', "5", '""', f'["{KEY}"]', f'"/etc/{KEY}\\n"'])
def test_a_key_in_the_place_of_its_file_is_not_shown(place, value):
    """Who writes the key itself there gets told what belongs there, and the key is not logged."""
    place.printers(f"api_key_file = {value}")
    assert place.wrong() == [
        (
            "printers.mk3.api_key_file: "
            "must be the absolute path of a file that holds the API key, not the key itself"
        )
    ]
    assert place.wrong(api_key_file=KEY)[0] == (
        "--api-key-file: must be the absolute path of a file that holds the API key, not the key itself"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a = 1\nb = = 2", r"is not TOML: Invalid value \(at line 2, column 5\)"),
        ("a = 1\na = 2\nb = 3", r"is not TOML: Cannot overwrite a value \(at line 2, column \d\)"),
        (f"a = {'9' * 5000}", "is not TOML: Exceeds the limit"),
        (f"a = {'[' * 5000}", "is not TOML: nested too deeply"),
        ("a = 1 #" + "x" * (1 << 20), "is too big for a configuration"),
    ],
)
def test_wrong_toml_is_told_with_line_and_column(place, text, complaint):
    """The parser's own place, as far as it gives one; and nothing else, since nothing else is known."""
    place.write("config.toml", text)
    with pytest.raises(Wrong) as wrong:
        place.load("mk3")
    (mistake,) = wrong.value.mistakes
    assert re.match(f"{re.escape(str(place.file))}: {complaint}", mistake)


def test_a_file_that_cannot_be_read_says_why(place):
    """Missing, a folder, no text: each is told with its name."""
    (place.folder / "latin1").write_bytes(b"# one\n# caf\xe9\n")
    for name, complaint in [
        ("none", "cannot be read: No such file or directory"),
        (".", "cannot be read: Is a directory"),
        ("latin1", "is not UTF-8 text (line 2)"),
    ]:
        path = os.path.normpath(place.folder / name)
        assert place.wrong(config=path) == [f"{path}: {complaint}"]


@pytest.mark.parametrize("text", ["", "interval = 5", "[printers]"])
def test_a_file_without_printers_is_a_mistake(place, text):
    """A service that watches nothing would look alive."""
    place.write("config.toml", text)
    assert place.wrong() == ["printers: there are none; write one as [printers.NAME]"]


def test_printers_must_be_tables(place):
    """Both near misses are told apart from an unknown setting."""
    place.write("config.toml", "[[printers]]\n")
    assert place.wrong() == ["printers: must be tables, one [printers.NAME] each"]
    place.write("config.toml", f'[printers]\noctoprint = "{URL}"\n')
    assert place.wrong()[0] == f'printers.octoprint: must be a table, [printers.NAME], is "{URL}"'


@pytest.mark.parametrize("name", ["a", "MK3_s-1.2", "_", "x" * 64])
def test_names_of_printers(place, name):
    """A name is good for a file, a credential and an argument."""
    place.write("config.toml", f'[printers."{name}"]\noctoprint = "{URL}"\napi_key_file = "{place.key}"\n')
    assert place.load(name).printers[0].name == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "ü", "x" * 65, "a\\n"])
def test_wrong_names_of_printers(place, name):
    """A name that would leave its folder, or pass for a flag, is refused."""
    place.write("config.toml", f'[printers."{name}"]\noctoprint = "{URL}"\napi_key_file = "{place.key}"\n')
    (mistake,) = place.wrong()
    assert "a printer's name has 1 to 64 letters" in mistake


@pytest.mark.parametrize(
    ("one", "two", "complaint"),
    [
        ('port = "/dev/a"', 'port = "/dev//a"', "mini.port: mk3 and mini have the same port"),
        (
            'match = { serial = "1" }',
            'match = { serial = "1" }',
            "mini.match: mk3 and mini have the same match",
        ),
        (
            f'octoprint = "{URL}"',
            f'octoprint = "{URL}/"',
            "mini.octoprint: mk3 and mini have the same OctoPrint, and no port",
        ),
    ],
)
def test_two_printers_are_never_one_device(place, one, two, complaint):
    """The same port twice would have two watchers at one printer, also when only one of them is started."""
    place.printers(one, two)
    for only in ((), ("mk3",)):
        assert place.wrong(*only) == [f"printers.{complaint}; give each a port of its own"]


def test_two_printers_of_one_octoprint_with_their_own_ports_are_fine(place):
    """Two printers may take turns at one OctoPrint."""
    place.printers(f'octoprint = "{URL}"\nport = "/dev/a"', f'octoprint = "{URL}"\nport = "/dev/b"')
    assert len(place.load().printers) == 2


# --- which printers ---------------------------------------------------------------------------------------


def test_only_the_named_printers_are_watched(place):
    """`watch mini` takes that one alone; the key of another one need not even be there."""
    place.printers('api_key_file = "/nowhere"', "", "")
    assert [printer.name for printer in place.load("mini").printers] == ["mini"]
    assert [printer.name for printer in place.load("xl", "mini").printers] == ["mini", "xl"]


def test_a_mistake_of_another_printer_does_not_keep_this_one_from_being_watched(place):
    """It matters to who watches that one, or all; the top of the file, and its grammar, to everybody."""
    place.printers("", "interval = 0\nspeed = 1")
    assert [printer.name for printer in place.load("mk3").printers] == ["mk3"]
    assert len(place.wrong("mini")) == len(place.wrong()) == 2
    place.printers("", "", top="interval = 0")
    assert len(place.wrong("mk3")) == 1


def test_an_unknown_name_lists_those_there_are(place):
    """A typing error on the command line is answered with the names to choose from."""
    place.printers("", "")
    assert place.wrong("mk4") == ["printers.mk4: there is no such printer; there are: mk3, mini"]


# --- flags and environment --------------------------------------------------------------------------------


def test_the_order_of_the_places(place):
    """Flag before environment before printer before top of the file before config.yaml before default."""
    yaml = place.write("config.yaml", YAML)
    place.printers("interval = 2", top="interval = 3")
    environ = {"PORTRETRY_INTERVAL": "1"}
    assert place.load(interval=0.5, environ=environ).printers[0].interval == 0.5
    assert place.load(environ=environ).printers[0].interval == 1.0
    assert place.load().printers[0].interval == 2.0
    place.printers("", top="interval = 3")
    assert place.load(octoprint_config=str(yaml)).printers[0].interval == 3.0
    place.printers("")
    assert place.load(octoprint_config=str(yaml)).printers[0].interval == 7.5
    assert place.load().printers[0].interval == 5.0


def test_every_flag_and_its_variable_do_the_same(place):
    """A container is set up by variables just as a command line is by flags; both go to every printer."""
    yaml = place.write("config.yaml", YAML)
    given = {
        "octoprint": "http://other:1/",
        "api_key_file": str(place.key),
        "port": "/dev/p",
        "baudrate": "250000",
        "interval": "2.5",
        "reconnect": "always",
        "probe": "none",
        "avoid_reset": "false",
        "start": "wait",
        "push": "false",
        "octoprint_config": str(yaml),
        "ca_file": str(place.write("ca.pem", "")),
        "state_dir": "/s",
        "control": "/c",
        "metrics_textfile": "/m.prom",
    }
    file = place.printers('match = { serial = "1" }')
    by_flags = place.load(config=str(file), **given)
    environ = {f"PORTRETRY_{name.upper()}": value for name, value in given.items()}
    assert place.load(environ=environ | {"PORTRETRY_CONFIG": str(file)}) == by_flags
    assert (
        place.load(
            **given | {"baudrate": 250000, "interval": 2.5, "avoid_reset": False, "state_dir": Path("/s")},
            config=file,
        )
        == by_flags
    )
    (mk3,) = by_flags.printers
    assert mk3 == Printer(
        "mk3",
        "http://other:1",
        mk3.key,
        port="/dev/p",
        baudrate=250000,
        interval=2.5,
        reconnect="always",
        probe="none",
        avoid_reset=False,
        start="wait",
        push=False,
        octoprint_config=yaml,
        octoprint_settings=mk3.octoprint_settings,
        ca_file=place.folder / "ca.pem",
    )
    found = (by_flags.state_dir, by_flags.control, by_flags.metrics_textfile)
    assert found == (Path("/s"), Path("/c"), Path("/m.prom"))
    assert set(given) | {"config"} == set(forms.FLAGS)


def test_a_port_by_flag_replaces_a_match(place):
    """Port and match exclude each other within a place; between two, the stronger one wins."""
    place.printers('match = { serial = "1" }')
    (mk3,) = place.load(port="/dev/p").printers
    assert (mk3.port, dict(mk3.match)) == ("/dev/p", {})


def test_wrong_flags_and_variables_are_told_by_their_names(place):
    """Each is named as it was typed; one for several printers is told once."""
    place.printers("", "")
    environ = {
        "PORTRETRY_BAUDRATE": "fast",
        "PORTRETRY_BUADRATE": "1",
        "PORTRETRY_TEST_CACHE": "x",
        "PORTRETRYX": "x",
        "PORTRETRY_AVOID_RESET": "maybe",
    }
    baudrate, misspelt, *rest = place.wrong(interval="1e3", reconnect="never", environ=environ)
    assert baudrate.startswith("PORTRETRY_BAUDRATE: must be a whole number from 2400 to 4000000 baud")
    assert misspelt == "PORTRETRY_BUADRATE: there is no such setting; did you mean PORTRETRY_BAUDRATE?"
    assert rest == [
        'PORTRETRY_AVOID_RESET: must be true or false, is "maybe"',
        '--interval: must be a number from 0.5 to 3600 seconds, is "1e3"',
        '--reconnect: must be "on-return" or "always", is "never"',
    ]


def test_an_unknown_variable_is_refused_without_its_value(place):
    """A key in a variable of the wrong name is not shown; the names there are, are."""
    place.printers("")
    (mistake,) = place.wrong(environ={"PORTRETRY_TOKEN": KEY})
    assert mistake.startswith("PORTRETRY_TOKEN: there is no such setting; ")


def test_an_empty_variable_is_not_given(place):
    """`PORTRETRY_PORT=` in a compose file means nothing."""
    place.printers('port = "/dev/p"')
    environ = dict.fromkeys(("PORTRETRY_PORT", "PORTRETRY_API_KEY", "PORTRETRY_CONFIG"), "")
    assert place.load(environ=environ).printers[0].port == "/dev/p"


def test_the_same_port_for_two_printers_by_flag(place):
    """A flag that would put two printers at one port is refused by its name."""
    place.printers("", "")
    assert place.wrong(port="/dev/p") == [
        "--port: mk3 and mini have the same port; give each a port of its own"
    ]
    assert place.load("mk3", port="/dev/p").printers[0].port == "/dev/p"


def test_an_unknown_flag_is_our_own_mistake(place):
    """The command line's code and this module cannot drift apart unnoticed."""
    with pytest.raises(TypeError, match="no such flags: dry_run"):
        place.load(dry_run=True)


def test_relative_paths_are_for_command_lines_only(place, monkeypatch):
    """A path that is typed starts from the folder it is typed in; ~ is one's home."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("HOME", str(place.folder))
    yaml = place.write("config.yaml", YAML)
    printer = place.alone(octoprint_config="config.yaml")
    assert printer.octoprint_config == yaml
    assert place.alone(octoprint_config="~/config.yaml").octoprint_config == yaml
    (printer,) = place.load(octoprint=URL, api_key_file="mk3.key").printers
    assert printer.key.path == place.key
    place.printers('octoprint_config = "~/config.yaml"')
    assert place.load(config="config.toml").printers[0].octoprint_config == yaml


def test_a_socket_has_a_short_path(place):
    """The kernel takes 107 bytes; a longer path would fail when the service starts."""
    assert place.wrong(octoprint=URL, api_key_file=place.key, control="/" + "x" * 107) == [
        "--control: must be a path of at most 107 bytes, as for every Unix socket"
    ]
    control = Path("/" + "x" * 106)
    assert place.load(octoprint=URL, api_key_file=place.key, control=control).control == control


# --- with and without a file ------------------------------------------------------------------------------


def test_flags_alone_make_one_printer(place):
    """Without a file, an OctoPrint and a key are all it takes."""
    printer = place.alone()
    assert printer == Printer("printer", URL, printer.key)


def test_an_octoprint_by_flag_passes_over_the_default_file(place):
    """The file's printers belong to other OctoPrints, whose keys must not be sent to this one."""
    place.printers("", "")
    assert [printer.name for printer in place.load(octoprint=URL, api_key_file=place.key).printers] == [
        "printer"
    ]
    environ = {"PORTRETRY_OCTOPRINT": URL, "PORTRETRY_API_KEY": KEY}
    assert [printer.name for printer in place.load(environ=environ).printers] == ["printer"]


def test_a_file_or_a_printer_that_is_named_is_used_with_an_octoprint_by_flag(place):
    """Who names the file, or a printer in it, means it."""
    file = place.printers("", "")
    assert [each.name for each in place.load("mini", octoprint=URL).printers] == ["mini"]
    named = place.load("mk3", octoprint=URL, config=file)
    assert [(each.name, each.octoprint) for each in named.printers] == [("mk3", URL)]


def test_without_anything_it_says_what_to_type(place):
    """The shortest command that works is in the message."""
    assert place.wrong() == [
        (
            f"no configuration: {place.folder}/config.toml is not there; write it, or type: "
            "portretry-udev watch --octoprint http://127.0.0.1:5000 "
            "--api-key-file /etc/portretry-udev/printer.key"
        )
    ]


def test_a_default_file_that_cannot_be_reached_is_not_taken_for_missing(place):
    """Whoever may not look into its folder is told so, and not that there is no file."""
    loop = place.folder / "loop"
    loop.symlink_to(loop)
    place.file = loop / "config.toml"
    with pytest.raises(Wrong) as wrong:
        place.load()
    assert wrong.value.mistakes == [f"{place.file}: cannot be read: Too many levels of symbolic links"]


def test_without_a_file_there_is_one_name(place):
    """A name on the command line is a printer in a file, or the only one there is."""
    assert place.wrong("mk3", octoprint=URL, api_key_file=place.key) == [
        'mk3: there is no such printer: without a file there is only "printer"'
    ]
    assert place.load("printer", octoprint=URL, api_key_file=place.key).printers[0].name == "printer"


def test_what_is_missing_on_the_command_line_is_named_as_a_flag(place):
    """Without a file, the mistake is the flag that is missing."""
    assert place.wrong(octoprint=URL) == [
        (
            "--api-key-file: is missing; "
            "name a file (mode 0600) that holds OctoPrint's API key, pass the credential printer.key, or "
            "get a key with `portretry-udev login`"
        )
    ]


# --- OctoPrint's config.yaml ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("", "http://127.0.0.1:5000"),
        ("  host: 0.0.0.0\n", "http://127.0.0.1:5000"),
        ("  host: '::'\n  port: 80\n", "http://127.0.0.1:80"),
        ("  host: '::1'\n", "http://[::1]:5000"),
        ("  host: octopi\n  port: 5001\n", "http://octopi:5001"),
    ],
)
def test_the_address_comes_from_octoprints_config(place, server, url):
    """Who names config.yaml need not say where OctoPrint answers, with or without a file of ours."""
    yaml = place.write("config.yaml", f"server:\n{server}")
    (printer,) = place.load(octoprint_config=str(yaml), api_key_file=place.key).printers
    assert (printer.name, printer.octoprint) == ("printer", url)
    place.write("config.toml", f'[printers.mk3]\noctoprint_config = "{yaml}"\napi_key_file = "{place.key}"\n')
    (printer,) = place.load().printers
    assert (printer.name, printer.octoprint) == ("mk3", url)


def test_the_port_of_octoprints_config_stays_alive(place):
    """It is not made fixed at the start: a port chosen in OctoPrint later is followed."""
    printer = place.alone(octoprint_config=place.write("config.yaml", YAML))
    assert (printer.port, printer.baudrate, printer.interval) == (None, None, 7.5)
    assert printer.octoprint_settings.port == "/dev/ttyACM0"
    assert printer.octoprint == URL


def test_what_is_wrong_in_octoprints_config_is_told_with_its_file(place):
    """PortRetry took intervals that are refused here; the path leads there, and a setting of ours wins."""
    yaml = place.write("config.yaml", YAML.replace("7.5", "0.1").replace("0.0.0.0", "a b"))
    assert place.wrong(octoprint_config=yaml, api_key_file=place.key) == [
        (
            f"--octoprint-config: {yaml}: server.host and server.port: "
            'must be a URL such as "http://127.0.0.1:5000" or "https://octopi.example/octoprint"'
        ),
        (
            f"--octoprint-config: {yaml}: plugins.portretry.interval: "
            "must be a number from 0.5 to 3600 seconds, is 0.1"
        ),
    ]
    assert place.alone(octoprint_config=yaml, interval=1).interval == 1.0


def test_a_config_yaml_that_is_not_understood_is_one_mistake(place):
    """It is told once for all printers, with its line, and a missing address is not complained of as well."""
    yaml = place.write("config.yaml", "serial: {port: x}\n")
    place.printers("", "")
    mistake = f"--octoprint-config: {yaml}: line 1: serial must be a mapping, one setting a line"
    assert place.wrong(octoprint_config=yaml) == [mistake]
    place.file.unlink()
    assert place.wrong(octoprint_config=yaml, api_key_file=place.key) == [mistake]


# --- keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mk3.key", "keys_mk3.key"])
def test_a_credential_stands_in_for_a_key_file(place, name):
    """Systemd's credential NAME.key is found by the printer's name; a named file comes first."""
    credentials = place.folder / "credentials"
    credentials.mkdir()
    (credentials / name).write_text("of-systemd", encoding="ascii")
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    place.write("config.toml", f'[printers.mk3]\noctoprint = "{URL}"\n')
    key = place.load(environ=environ).printers[0].key
    assert (key.read(), key.credential) == ("of-systemd", True)
    assert place.load(environ=environ, api_key_file=place.key).printers[0].key.read() == KEY
    place.printers("")
    assert place.load(environ=environ).printers[0].key.read() == KEY
    place.write("config.toml", f'[printers.xl]\noctoprint = "{URL}"\n')
    assert "pass the credential xl.key" in place.wrong(environ=environ)[0]


def test_a_key_in_the_environment_comes_before_the_files(place):
    """For containers; a flag still beats it, and two ways in one place are a mistake."""
    environ = {"PORTRETRY_API_KEY": "from-the-environment"}
    place.printers("")
    assert place.load(environ=environ).printers[0].key.read() == "from-the-environment"
    assert place.load(environ=environ, api_key_file=place.key).printers[0].key.read() == KEY
    assert place.wrong(environ=environ | {"PORTRETRY_API_KEY_FILE": str(place.key)}) == [
        "PORTRETRY_API_KEY and PORTRETRY_API_KEY_FILE: give one of them, not both"
    ]
    assert "from-the-environment" not in repr(place.load(environ=environ))


def test_a_key_that_cannot_be_used_is_told_at_the_start(place):
    """Modes, missing and empty files are found before the service runs, with the cure."""
    place.key.chmod(0o644)
    place.printers("")
    assert place.wrong() == [
        (
            f"printers.mk3.api_key_file: key file {place.key} can be read or changed by others (mode 0644); "
            f"do: chmod 600 {place.key}"
        )
    ]
    place.key.write_text("", encoding="ascii")
    place.key.chmod(0o600)
    assert place.wrong() == [
        f"printers.mk3.api_key_file: key file {place.key} is empty; put OctoPrint's API key into it"
    ]
    (mistake,) = place.wrong(environ={"PORTRETRY_API_KEY": f"{KEY} {KEY}"})
    assert mistake.startswith("PORTRETRY_API_KEY: key in PORTRETRY_API_KEY holds more than one word")


def test_one_spoken_key_is_never_sent_to_two_octoprints(place):
    """A key is one OctoPrint's: the other must not get to see it."""
    place.printers("", "")
    complaint = "one key for 2 OctoPrints; name one printer, or set each api_key_file"
    assert place.wrong(api_key_file=place.key) == [f"--api-key-file: {complaint}"]
    assert place.wrong(environ={"PORTRETRY_API_KEY": KEY}) == [f"PORTRETRY_API_KEY: {complaint}"]
    assert place.load("mk3", api_key_file=place.key).printers[0].name == "mk3"


# --- where a key belongs ----------------------------------------------------------------------------------


def test_the_place_of_a_key_is_known_before_there_is_a_key(place):
    """`login` runs when the key file is missing: that, and a bad one, are no mistakes to it."""
    missing, ca_file = place.folder / "none" / "mk3.key", place.write("ca.pem", "")
    place.printers(f'api_key_file = "{missing}"\nca_file = "{ca_file}"')
    expected = config.Place("mk3", "http://mk3", KeySource.from_file(missing), ca_file)
    assert config.load_place({}, {}, default_file=place.file) == expected
    assert config.load_place({}, {}, "mk3", default_file=place.file) == expected


def test_a_key_without_a_place_is_told_from_one_of_the_environment(place):
    """A key that nobody has named may be put anywhere; one from a variable or a credential may not."""
    place.write("config.toml", '[printers.mk3]\noctoprint = "http://mk3"\n')
    assert config.load_place({}, {}, default_file=place.file).key is None
    said = config.load_place({}, {"PORTRETRY_API_KEY": KEY}, default_file=place.file)
    assert said.key == KeySource.from_environment(KEY)
    place.write("mk3.key", KEY)
    environ = {"CREDENTIALS_DIRECTORY": str(place.folder)}
    assert config.load_place({}, environ, default_file=place.file).key.credential


def test_the_place_of_a_key_is_one_printers(place):
    """Of several printers one must be named; and all other mistakes are told as ever."""
    place.printers('port = "/dev/a"', 'port = "/dev/b"')
    assert config.load_place({}, {}, "mini", default_file=place.file).octoprint == "http://mini"
    for wish, mistake in ((None, "name one of them: mk3, mini"), ("xl", "there is no such printer")):
        with pytest.raises(Wrong, match=mistake):
            config.load_place({}, {}, wish, default_file=place.file)
    flags = {"octoprint": URL, "api_key_file": place.folder / "new.key", "ca_file": place.key}
    alone = config.load_place(flags, {}, default_file=Path("/nowhere/config.toml"))
    assert (alone.name, alone.octoprint, alone.ca_file) == ("printer", URL, place.key)


# --- the state folder -------------------------------------------------------------------------------------


def test_the_state_folder_has_a_default(place, monkeypatch):
    """Systemd's folder, else root's or the user's own."""
    flags = {"octoprint": URL, "api_key_file": place.key}
    assert place.load(**flags, environ={"STATE_DIRECTORY": "/a:/b"}).state_dir == Path("/a")
    monkeypatch.setattr(config.os, "geteuid", lambda: 0)
    place_of_root = config._default_state_dir({"HOME": "/h"})
    monkeypatch.setattr(config.os, "geteuid", lambda: 1000)
    assert place_of_root == Path("/var/lib/portretry-udev")
    assert config._default_state_dir({"HOME": "/h"}) == Path("/h/.local/state/portretry-udev")
    assert config._default_state_dir({"XDG_STATE_HOME": "/x"}) == Path("/x/portretry-udev")


# --- the example ------------------------------------------------------------------------------------------


def example(place):
    """The example, with its files where this test has them."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for name, path in [
        ("/etc/portretry-udev/mk3.key", place.key),
        ("/home/pi/.octoprint/config.yaml", place.write("config.yaml", YAML)),
        ("/etc/ssl/certs/my-octoprint.pem", place.write("ca.pem", "")),
    ]:
        assert name in text
        text = text.replace(name, str(path))
    return text


def test_the_example_loads(place):
    """What we hand out as an example works, and what it shows as defaults are the defaults."""
    place.write("config.toml", example(place))
    (mk3,) = place.load().printers
    assert mk3 == Printer("mk3", URL, mk3.key, port=mk3.port)


def test_every_line_that_the_example_shows_loads_when_it_is_uncommented(place):
    """A setting that is taken into use by removing its # is right as it stands."""
    text = example(place)
    shown = re.findall(r"^# (\w+) = ", text, re.MULTILINE)
    for setting in shown:
        used = re.sub(rf"^# ({setting} = )", r"\1", text, flags=re.MULTILINE)
        if setting == "match":
            used = re.sub(r"^port = ", "# port = ", used, flags=re.MULTILINE)
        place.write("config.toml", used)
        assert len(place.load().printers) == 1, setting


def test_the_example_shows_every_setting():
    """None is left to be guessed, and each choice's other words are there."""
    text = EXAMPLE.read_text(encoding="utf-8")
    shown = set(re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE))
    assert shown == {*forms.TOP, *forms.PRINTER, *forms.TABLES}
    for word in ("on-return", "always", "firmware", "open", "none", "connect", "wait"):
        assert f'"{word}"' in text


def test_firmware_says_who_must_answer(place):
    """What M115 must tell, by one or both of two words."""
    place.printers('firmware = { machine = "Original Prusa i3 MK3S", uuid = "cede2a2f" }')
    (printer,) = place.load().printers
    assert dict(printer.firmware) == {"machine": "Original Prusa i3 MK3S", "uuid": "cede2a2f"}


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        ("firmware = {}", 'firmware: must be a table such as { machine = "Original Prusa i3 MK3S" }'),
        ('firmware = "MK3S"', "firmware: must be a table"),
        ('firmware = { name = "Marlin" }', "firmware.name: there is no such setting"),
        ("firmware = { uuid = 1 }", "firmware.uuid: must be text"),
        (
            'firmware = { uuid = "1" }\nprobe = "open"',
            'firmware: needs probe = "firmware": with "open" nobody asks who answers',
        ),
    ],
)
def test_firmware_that_cannot_be_judged(place, given, mistake):
    """Told with its place, like all mistakes."""
    place.printers(given)
    with pytest.raises(Wrong) as wrong:
        place.load()
    (said,) = wrong.value.mistakes
    assert mistake in said


# --- anything at all --------------------------------------------------------------------------------------

NAMES = [
    *forms.TOP,
    *forms.PRINTER,
    *forms.TABLES,
    *forms.MATCH,
    *forms.FIRMWARE,
    "printers",
    "mk3",
    "api_key",
    "x y",
]
VALUE = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["/dev/p", "http://h", "http://[", "1a86", "always", "~x/y", "AUTO", "/", "\0"])
    | st.dates()
    | st.sampled_from([16**100, -(16**100)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
PRINTER = st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=6)
TABLE = st.fixed_dictionaries(
    {},
    optional={"printers": st.dictionaries(st.sampled_from(["mk3", "x y", ""]), PRINTER, max_size=2) | VALUE},
)


def mistakes_of(flags, environ):
    with pytest.raises(Wrong) as wrong:
        load(flags, environ, default_file=Path("/nowhere/config.toml"))
    return wrong.value.mistakes


@given(st.builds(lambda a, b: {**a, **b}, st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=3), TABLE))
@settings(max_examples=400, deadline=None)
def test_no_table_raises_anything_but_wrong(table):
    """Whatever a file holds, what is wrong is a list of one-line mistakes (there is no key: some are)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config.tomllib, "loads", lambda _: table)
        mistakes = mistakes_of({"config": os.devnull}, {})
    assert mistakes
    assert not [mistake for mistake in mistakes if not mistake.isprintable()]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(forms.FLAGS))
@settings(max_examples=200, deadline=None)
def test_no_text_on_a_command_line_raises_anything_but_wrong(text, flag):
    """Whatever is typed or set, what is wrong is a list of one-line mistakes."""
    for flags, environ in [({flag: text}, {}), ({}, {f"PORTRETRY_{flag.upper()}": text})]:
        mistakes = mistakes_of(flags, environ)
        assert mistakes
        assert not [mistake for mistake in mistakes if not mistake.isprintable()]


# --- a draft ----------------------------------------------------------------------------------------------


def test_a_draft_is_judged_as_the_file_would_be(tmp_path, monkeypatch):
    """What is not written yet is checked like what is; its key may come later, our variables are not its."""
    monkeypatch.setenv("PORTRETRY_INTERVAL", "nonsense")
    path = tmp_path / "config.toml"
    path.write_text("what is there is not looked at")
    draft = '[printers.a]\noctoprint = "http://127.0.0.1:5000/"\nport = "/dev/ttyS0"\n'
    (printer,) = config.judge(draft, path).printers
    assert (printer.octoprint, printer.port) == ("http://127.0.0.1:5000", "/dev/ttyS0")
    with pytest.raises(config.Wrong) as wrong:
        config.judge(draft + 'probe = "no"\nprob = 1\n', path)
    assert len(wrong.value.mistakes) == 2
    assert all(mistake.startswith(f"{path}: printers.a.prob") for mistake in wrong.value.mistakes)
