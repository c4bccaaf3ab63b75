"""OctoPrint's config.yaml: what we take from it, what we refuse to guess at, and how we follow it."""

import os
import re

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portretry_udev import octoprint_config
from portretry_udev.octoprint_config import (
    WANTED,
    Follow,
    NotUnderstood,
    OctoPrintConfigTrouble,
    OctoPrintSettings,
    read,
    wanted,
)

ONE = """\
accessControl:
  salt: abcdef
api:
  key: 0123456789ABCDEF0123456789ABCDEF
plugins:
  _disabled:
  - discovery
  - softwareupdate
  gcodeSnippets:
    text: |
      serial:
        port: /dev/ttyWRONG
      # not a comment
  portretry:
    _config_version: null
    interval: 7.5
serial:
  additionalPorts:
  - /run/fake/tty*
  autoconnect: false
  baudrate: 115200
  port: /dev/ttyACM0
server:
  firstRun: false
  host: 127.0.0.1
  port: 5001
  seenWizards:
    corewizard: 4
"""
TWO = """\
plugins:
  serial_connector:
    _config_version: 3
    log: true
printerConnection:
  autoconnect: true
  preferred:
    connector: serial
    parameters:
      baudrate: 250000
      port: /dev/serial/by-id/usb-1a86-if00-port0
server: {}
"""


def written(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def values(text):
    return {path: found.value for path, found in wanted(text).items()}


# --- OctoPrint's own files --------------------------------------------------------------------------------


def test_a_file_of_octoprint_1_gives_every_setting(tmp_path):
    """The interval, the port, the baudrate and the server's address are found where 1.x keeps them."""
    assert read(written(tmp_path, ONE)) == OctoPrintSettings(
        interval=7.5, port="/dev/ttyACM0", baudrate=115200, host="127.0.0.1", server_port=5001
    )


def test_a_file_of_octoprint_2_gives_its_preferred_port(tmp_path):
    """The port and the baudrate are found where 2.0 keeps them."""
    assert read(written(tmp_path, TWO)) == OctoPrintSettings(
        port="/dev/serial/by-id/usb-1a86-if00-port0", baudrate=250000, connector="serial"
    )


def test_a_file_that_2_took_over_names_no_connector(tmp_path):
    """2.0 moves the port of 1.x without writing which connector it is for: that is a serial port."""
    text = (
        "printerConnection:\n  preferred:\n    parameters:\n      baudrate: null\n      port: /dev/ttyUSB0\n"
    )
    assert read(written(tmp_path, text)) == OctoPrintSettings(port="/dev/ttyUSB0")


def test_another_connector_names_no_serial_port(tmp_path):
    """The port of a preferred connector that is not serial is not taken, nor a left-over one of 1.x."""
    text = (
        TWO.replace("connector: serial", "connector: bambu")
        + "serial:\n  port: /dev/ttyUSB0\n  baudrate: 9600\n"
    )
    assert read(written(tmp_path, text)) == OctoPrintSettings(connector="bambu")


def test_two_places_that_differ_are_not_guessed_at(tmp_path):
    """When 1.x and 2.0 each left another port behind, the trouble names both places."""
    path = written(tmp_path, TWO + "serial:\n  port: /dev/ttyUSB0\n")
    with pytest.raises(OctoPrintConfigTrouble) as trouble:
        read(path)
    assert str(trouble.value) == (
        f"{path}: line 14: serial.port and printerConnection.preferred.parameters.port differ; "
        "remove the one out of use"
    )


def test_two_places_that_agree_are_fine(tmp_path):
    """The same port in both places is that port; the baudrate of 2.0 comes first."""
    text = TWO + "serial:\n  port: /dev/serial/by-id/usb-1a86-if00-port0\n  baudrate: 9600\n"
    found = read(written(tmp_path, text))
    assert (found.port, found.baudrate) == ("/dev/serial/by-id/usb-1a86-if00-port0", 250000)


@pytest.mark.parametrize("port", ["AUTO", "'AUTO'", "auto"])
def test_auto_is_no_port_but_is_said(tmp_path, port):
    """AUTO is told apart from a port that was never set."""
    found = read(written(tmp_path, f"serial:\n  port: {port}\n  baudrate: 0\n"))
    assert found == OctoPrintSettings(auto=True)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "{}\n", "null\n", "serial:\n", "serial: {}\n", "serial: ~"]
)
def test_a_file_that_says_nothing_gives_nothing(tmp_path, text):
    """An empty file, an empty mapping and a null are no settings, and no trouble."""
    assert read(written(tmp_path, text)) == OctoPrintSettings()


@pytest.mark.parametrize(
    ("line", "baudrate"),
    [
        ("0", None),
        ("AUTO", None),
        ("null", None),
        ("", None),
        ("'115200'", 115200),
        ("250000 # fast", 250000),
    ],
)
def test_baudrates_as_octoprint_writes_them(tmp_path, line, baudrate):
    """0, AUTO and nothing are OctoPrint's choice; a number in quotes is a number."""
    assert read(written(tmp_path, f"serial:\n  baudrate: {line}\n")).baudrate == baudrate


def test_an_interval_in_quotes_is_a_number(tmp_path):
    """A settings dialogue saves what was typed: '10' is ten seconds."""
    assert read(written(tmp_path, "plugins:\n  portretry:\n    interval: '10'\n")).interval == 10.0


def test_a_mark_at_the_start_and_windows_line_ends_are_read(tmp_path):
    """A file saved by a Windows editor says the same."""
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + ONE.replace("\n", "\r\n").encode())
    assert read(path).port == "/dev/ttyACM0"


# --- trouble ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("serial: {port: /dev/ttyUSB0}\n", "line 1: serial must be a mapping, one setting a line"),
        ("serial: &x\n  port: a\n", "line 1: serial must be a mapping"),
        ("serial: *x\n", "line 1: serial must be a mapping"),
        ("serial: yes\n", "line 1: serial must be a mapping"),
        ("serial:\n- a\n", "line 1: serial must be a mapping"),
        ("serial:\n  - a\n", "line 2: cannot understand this line in serial"),
        ("serial:\n  <<: *base\n", "line 2: cannot understand this line in serial"),
        ("serial:\n  *base : 1\n", "line 2: cannot understand this line in serial"),
        ("serial:\n  port /dev/ttyUSB0\n", "line 2: cannot understand this line in serial"),
        ("serial:\n\tport: x\n", "line 2: cannot understand this line"),
        ("serial:\n  ? port\n  : x\n", "line 2: cannot understand this key in serial"),
        ('? "ser\\\n  ial"\n: x\n', "line 1: cannot understand this key"),
        ("? |-\n  serial\n: x\n", "line 1: cannot understand this key"),
        ("? !!str serial\n: x\n", "line 1: cannot understand this key"),
        ("? serial # c\n: x\n", "line 1: cannot understand this key"),
        ("?\n  serial\n: x\n", "line 1: cannot understand this key"),
        ("? *serial\n: x\n", "line 1: cannot understand this key"),
        ("serial:\n  &a port: x\n", "line 2: cannot understand serial.port with an anchor or a tag"),
        ("serial:\n  port: &a x\n", "line 2: cannot understand serial.port"),
        ("serial:\n  port: !!str x\n", "line 2: cannot understand serial.port"),
        ("serial:\n  port: |\n    x\n", "line 2: serial.port must be a single value on one line"),
        ("serial:\n  port: >-\n", "line 2: cannot understand serial.port"),
        ("serial:\n  port: [x]\n", "line 2: cannot understand serial.port"),
        ("serial:\n  port: 'a' b\n", "line 2: cannot understand serial.port"),
        ("serial:\n  port: 'a\n", "line 2: cannot understand serial.port"),
        ('serial:\n  port: "\\q"\n', "line 2: cannot understand serial.port: there is no escape \\q in YAML"),
        (
            'serial:\n  port: "\\xzz"\n',
            "line 2: cannot understand serial.port: there is no escape \\x in YAML",
        ),
        ('serial:\n  port: "\\UFFFFFFFF"\n', "there is no escape \\U in YAML"),
        ("serial:\n  port: a: b\n", "line 2: cannot understand serial.port"),
        ("serial:\n  port:\n    a: b\n", "line 2: serial.port must be a single value on one line"),
        ("serial:\n  port:\n  - a\n", "line 2: serial.port must be a single value on one line"),
        ("serial:\n  port: a\n    b\n", "line 2: serial.port must be a single value on one line"),
        ("serial:\n    port: a\n  baudrate: 1\n", "line 3: cannot understand this indentation"),
        ("serial:\n  port: 5\n", "line 2: serial.port must be text"),
        ("serial:\n  baudrate: fast\n", "line 2: serial.baudrate must be a number"),
        ("serial:\n  baudrate: true\n", "line 2: serial.baudrate must be a number"),
        ("serial:\n  baudrate: 1.5\n", "line 2: serial.baudrate must be a whole number"),
        ("serial:\n  baudrate: -1\n", "line 2: serial.baudrate must be a whole number"),
        ("serial:\n  baudrate: .inf\n", "line 2: serial.baudrate must be a whole number"),
        ("serial:\n  baudrate: 0x1c200\n", "line 2: cannot understand serial.baudrate"),
        ("serial:\n  baudrate: 115_200\n", "line 2: cannot understand serial.baudrate"),
        ("server:\n  port: 1:20\n", "line 2: cannot understand server.port"),
        ("a: 'never closed\n", "line 1: this quote is never closed"),
        ("a: [1, 'never closed]\n", "line 1: this quote is never closed"),
        ("a: [1,\n", "line 1: this bracket is never closed"),
        ("just words\n", "line 1: cannot understand this line"),
        ("--- a\n", "line 1: cannot understand what follows the ---"),
        ("a: 1\n---\nb: 2\n", "line 2: cannot understand this line"),
        ("a: 1\n...\nb: 2\n", "line 3: cannot understand this line"),
    ],
)
def test_what_is_not_understood_is_said_with_its_line(tmp_path, text, complaint):
    """Nothing is guessed: a wanted setting in a form that OctoPrint never writes is named, with its line."""
    path = written(tmp_path, text)
    with pytest.raises(OctoPrintConfigTrouble) as trouble:
        read(path)
    assert str(trouble.value).startswith(f"{path}: ")
    assert complaint in str(trouble.value)
    assert "\n" not in str(trouble.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    """A missing file, a folder, no text and an endless file are each their own trouble."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, complaint in [
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "binary", "is not UTF-8 text"),
        (octoprint_config.Path("/dev/zero"), "too big to be OctoPrint's config.yaml"),
    ]:
        with pytest.raises(OctoPrintConfigTrouble, match=re.escape(f"{path}: ") + ".*" + complaint):
            read(path)


# --- what stands beside the wanted settings ---------------------------------------------------------------


@pytest.mark.parametrize(
    "beside",
    [
        "a: &id001\n- x: 1\n- y\nb: *id001\n",
        "a: &id001\n  serial:\n    port: wrong\nb:\n  <<: *id001\n",
        "? a long key\n: - its\n  - value\n",
        "? |\n  serial:\n    port: wrong\n: x\n",
        "? [a, b]\n: x\n",
        "? !tag &x key\n:\n  serial: x\n",
        "a: 'serial:\n\n  it''s: port\n\n  '\n",
        'a: "serial:\nserial:\n  port: wrong \\"\n "  # over\n',
        "a: it's plain\n  'tis\n\n  # over\n",
        "a: |2-\n    text\n   'text\n\n  \ttext\n# comment\n",
        "a: >\n\n  serial: 'x\n",
        "a:\n- - |\n    text\n  - 'quoted\n    on'\n- b: |\n    c: 'x\n  d: [1,\n  2]\n-\n  e: {f: 'g'}\n",
        "a: {b: [it's, 'o''clock, ', \"]\", d], \"e\":'}', ? f : g, h: !t 'i}', j: *k} # '\n",
        "a: [b, # ]\n  c]\n",
        "a: !!binary |\n  abc=\n",
        "a: !!set\n  ? x\n  ? y\n",
        '"a": 1\n',
        "'it''s': 1\n",
        "a b - c: d:e #f\n",
        "port: wrong\ninterval: wrong\n",
        "other:\n  serial:\n    port: wrong\n",
        '? "two\n  lines"\n: x\n',
        "? 'sserial'\n: x\n",
    ],
)
@pytest.mark.parametrize("head", ["", "%YAML 1.1\n---\n", "--- # here\n# there\n"])
def test_what_stands_beside_is_stepped_over(beside, head):
    """Anchors, lists, block texts, flow, quotes beside a wanted setting neither hide it nor stand for it."""
    setting = "serial:\n  port: /dev/right\n"
    for text in (f"{head}{beside}{setting}", f"{head}{setting}{beside}...\n"):
        assert values(text) == {"serial.port": yaml.safe_load(setting)["serial"]["port"]}, text


def test_beside_a_setting_in_its_own_mapping(tmp_path):
    """The same holds within the mapping of a wanted setting."""
    text = (
        "serial:\n  log: &a\n  - 'x\n\n    port: wrong'\n  ? long\n  : port: wrong\n"
        "  ignored: [port, {port: wrong}]\n  port: right # '\n  text: |\n    port: wrong\n"
    )
    assert read(written(tmp_path, text)).port == "right"


def test_said_twice_the_last_counts():
    """A key that is there twice means what it means to OctoPrint: the last one, whole."""
    text = "serial:\n  port: a\n  baudrate: 1\nserial:\n  port: b\n  port: c\n"
    assert values(text) == {"serial.port": "c"}
    assert yaml.safe_load(text)["serial"] == {"port": "c"}


# --- agreement with PyYAML --------------------------------------------------------------------------------


class OctoPrintDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
    """Writes as OctoPrint does (octoprint/util/yaml.py)."""


def _block_text(dumper, text):
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


OctoPrintDumper.add_representer(str, _block_text)

PARTS = sorted({part for path in WANTED for part in path.split(".")})
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30) | st.text(
    st.sampled_from("ab:-?#'\"[]{}|>&*!%@,\n \t\\_0.1é\u2028\x85\xa0😀"), max_size=120
)
WORD = st.sampled_from(
    ["AUTO", "null", "~", "yes", "No", "1", "0x1", "1_0", "1:20", "1e3", "1.", "-.5", "2001-01-01"]
)
SCALAR = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats() | TEXT | WORD
KEY = st.sampled_from(PARTS) | TEXT
ANYTHING = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEY, inner, max_size=4),
    max_leaves=12,
)


def _shaped(paths):
    """Dictionaries in the shape of a config.yaml, with anything beside and below the wanted paths."""
    heads = {}
    for first, *rest in paths:
        heads.setdefault(first, []).append(rest)
    optional = {
        name: (ANYTHING if rests == [[]] else _shaped(rests) | ANYTHING) for name, rests in heads.items()
    }
    known = st.fixed_dictionaries({}, optional=optional)
    return st.builds(lambda a, b: {**a, **b}, st.dictionaries(TEXT, ANYTHING, max_size=3), known)


CONFIG = _shaped([path.split(".") for path in WANTED])
DUMPER = st.sampled_from([yaml.SafeDumper, OctoPrintDumper])
WIDTH = st.sampled_from([20, 80, 4096])


def lookup(data, path):
    """The value at a path, and whether it (and the way to it) has a form that the reader promises to read."""
    for part in path.split("."):
        if data is None:
            return None, True
        if not isinstance(data, dict):
            return None, False
        data = data.get(part)
    plain = isinstance(data, str | int | float | None) and not (
        isinstance(data, str) and len(data.splitlines()) > 1
    )
    return data, plain


def compare(text, *, must):
    """Agree with PyYAML about every wanted path; refuse only what has no business there."""
    data = yaml.safe_load(text)
    expected = {path: lookup(data, path) for path in WANTED}
    readable = all(plain for _, plain in expected.values())
    try:
        found = values(text)
    except NotUnderstood:
        if must and readable:
            raise
        return
    for path, (value, plain) in expected.items():
        assert plain or isinstance(value, str), (path, text)
        assert repr(found.get(path)) == repr(value), (path, text)
    assert {path for path in WANTED if path in found} == set(found)


# float's nan is unequal to itself, hence the repr above; a text folded at a narrow width may be refused.
@given(CONFIG, DUMPER, WIDTH, st.booleans(), st.booleans())
@settings(max_examples=400, deadline=None)
@example(
    {"x" * 200: {"serial": {"port": "wrong"}}, "serial": {"port": "right"}}, yaml.SafeDumper, 80, False, True
)
@example({"a\nb": ["c\nd"], "serial": {"x\ny": 1, "port": "right"}}, OctoPrintDumper, 80, True, True)
def test_block_style_means_what_pyyaml_says(data, dumper, width, sort_keys, allow_unicode):
    """Whatever OctoPrint may write, the reader finds the very values that OctoPrint would."""
    text = yaml.dump(
        data,
        Dumper=dumper,
        default_flow_style=False,
        width=width,
        sort_keys=sort_keys,
        allow_unicode=allow_unicode,
    )
    compare(text, must=width > 1000)


@given(CONFIG, DUMPER, WIDTH, st.sampled_from([None, True]), st.integers(2, 8))
@settings(max_examples=200, deadline=None)
def test_flow_style_is_understood_or_refused(data, dumper, width, flow, indent):
    """With flow style in it, the reader may refuse, but it never finds a wrong value."""
    text = yaml.dump(
        data, Dumper=dumper, default_flow_style=flow, width=width, explicit_start=indent > 4, indent=indent
    )
    compare(text, must=False)


@given(st.lists(ANYTHING, min_size=1, max_size=3), st.booleans(), DUMPER)
@settings(max_examples=100, deadline=None)
def test_shared_parts_with_anchors_are_stepped_over(parts, wrapped, dumper):
    """Anchors and aliases, which PyYAML writes for parts used twice, disturb nothing beside them."""
    shared = {"serial": {"port": "wrong"}, "parts": parts}
    data = {"a": [shared, shared] if wrapped else shared, "b": shared, "serial": {"port": "right"}}
    assert values(yaml.dump(data, Dumper=dumper)) == {"serial.port": "right"}


@given(st.text(st.sampled_from("serialpot: -'\"[]{}|>&*!?#%\n\n  \\,."), max_size=60) | st.text(max_size=60))
@settings(max_examples=500, deadline=None)
def test_no_text_breaks_the_reader(text):
    """Any text at all is read or refused: no other exception, no endless loop."""
    try:
        found = wanted(text)
    except NotUnderstood:
        return
    assert set(found) <= set(WANTED)


# --- following a file -------------------------------------------------------------------------------------


def test_a_change_is_seen(tmp_path):
    """A port saved in OctoPrint's settings is there at the next look, however the file was written."""
    path = written(tmp_path, "serial:\n  port: AUTO\n")
    follow = Follow(path)
    assert follow.current() == OctoPrintSettings(auto=True)
    new = tmp_path / "new"
    new.write_text("serial:\n  port: /a\n", encoding="utf-8")
    new.replace(path)
    assert follow.current().port == "/a"
    path.write_text("serial:\n  port: /abc\n", encoding="utf-8")
    assert follow.current().port == "/abc"


def test_a_change_of_the_same_length_is_seen(tmp_path):
    """The time of the change alone is enough."""
    path = written(tmp_path, "serial:\n  port: /a\n")
    follow = Follow(path)
    assert follow.current().port == "/a"
    before = path.stat()
    path.write_text("serial:\n  port: /b\n", encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert follow.current().port == "/b"


def test_an_unchanged_file_is_not_read_again(tmp_path):
    """As long as nothing changed, the file is only looked at."""
    path = written(tmp_path, "serial:\n  port: /a\n")
    follow = Follow(path)
    before = follow.current()
    assert follow.current() is before
    os.utime(path, ns=(1, 1))
    assert follow.current() is not before


def test_a_broken_file_in_between_keeps_the_last_good_settings(tmp_path):
    """While the file is half written or gone, the last good settings stand, and why is told."""
    path = written(tmp_path, "serial:\n  port: /a\n")
    follow = Follow(path)
    good = follow.current()
    assert follow.trouble is None
    path.write_text("serial: [", encoding="utf-8")
    assert follow.current() == good
    assert "line 1: serial must be a mapping" in follow.trouble
    path.unlink()
    assert follow.current() == good
    assert "No such file" in follow.trouble
    path.write_text("serial:\n  port: /b\n", encoding="utf-8")
    assert follow.current().port == "/b"
    assert follow.trouble is None


def test_a_file_that_goes_away_keeps_the_last_good_settings(tmp_path):
    """OctoPrint's folder may be unmounted: what was read last still holds."""
    path = written(tmp_path, ONE)
    follow = Follow(path)
    good = follow.current()
    path.unlink()
    assert follow.current() == good
    assert "No such file" in follow.trouble


def test_without_any_good_settings_the_trouble_is_raised_until_there_are(tmp_path):
    """There is nothing to fall back on before the first good read; afterwards there is."""
    follow = Follow(tmp_path / "config.yaml")
    with pytest.raises(OctoPrintConfigTrouble, match="No such file"):
        follow.current()
    written(tmp_path, ONE)
    assert follow.current().port == "/dev/ttyACM0"
