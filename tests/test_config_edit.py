"""One printer's table is changed, and nothing beside it: not another setting, not a comment, not a blank."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portretry_udev.config_edit import Unsure, table, with_printer

PORT = "/dev/serial/by-id/usb-Prusa-if00"
WISHES = {"octoprint": "http://127.0.0.1:5000", "port": PORT, "match": None}
WHOLE = f'[printers.mk3]\noctoprint = "http://127.0.0.1:5000"\nport = "{PORT}"\n'

TWO = """\
# my printers
interval = 5.0   # seconds

[printers.ender]                # the old one
octoprint = "http://127.0.0.1:5001"
match = { path = "pci-1", vendor = "1a86" }

# the good one
[printers.mk3]
octoprint = 'http://127.0.0.1:5000'  # by the window
port   =   "/dev/ttyUSB0"            # to be bettered
reconnect = "always"                 # as with PortRetry
# baudrate = 250000

# the end
"""


def test_the_first_printer():
    """Without a configuration the table is all there is."""
    assert with_printer("", "mk3", WISHES) == WHOLE == table("mk3", WISHES)


def test_another_printer_is_appended():
    """What was there is the beginning of what there is."""
    assert with_printer(TWO, "new", WISHES) == f"{TWO}\n{table('new', WISHES)}"


def test_a_printer_is_changed_where_it_stands():
    """Two settings of one table change; its other ones, its comments and its blanks stay."""
    wishes = {"octoprint": "http://127.0.0.1:5002", "port": PORT, "match": None, "interval": 2.5}
    assert with_printer(TWO, "mk3", wishes) == TWO.replace(
        "'http://127.0.0.1:5000'", '"http://127.0.0.1:5002"'
    ).replace('"/dev/ttyUSB0"', f'"{PORT}"').replace("PortRetry\n", "PortRetry\ninterval = 2.5\n")


def test_what_is_so_already_stays_as_it_is_written():
    """Run again, nothing changes: not even quotation marks."""
    wishes = {"octoprint": "http://127.0.0.1:5000", "port": "/dev/ttyUSB0", "match": None}
    assert with_printer(TWO, "mk3", wishes) is TWO


def test_a_match_gives_way_to_a_port():
    """Where the one stood, or behind it, stands the other."""
    assert with_printer(TWO, "ender", {"port": PORT, "match": None}) == TWO.replace(
        'match = { path = "pci-1", vendor = "1a86" }', f'port = "{PORT}"'
    )


@pytest.mark.parametrize(
    "match",
    [
        'match.serial = "1"\nmatch.vendor = "2c99"\n',
        'baudrate = 115200\n[printers.mk3.match]\nserial = "1"\n',
        '[printers.mk3.match]\n# by its number\nserial = "1"\n',
        'match = { serial = "1" } # ours\n',
    ],
)
def test_a_match_in_any_form_is_found(match):
    """Dotted, as a table of its own, inline: it goes, or is another one, and what follows stays."""
    rest = '\n# next\n[printers.x]\nport = "/dev/ttyS0"\n'
    text = f'[printers.mk3]\noctoprint = "http://a"\n{match}{rest}'
    without = with_printer(text, "mk3", {"match": None})
    assert "match" not in tomllib.loads(without)["printers"]["mk3"]
    changed = with_printer(text, "mk3", {"match": {"serial": "2"}})
    assert tomllib.loads(changed)["printers"]["mk3"]["match"] == {"serial": "2"}
    assert without.endswith(rest)
    assert changed.endswith(rest)


@pytest.mark.parametrize("header", ['[printers."mk3"]', " [ printers . mk3 ] # x", "['printers'.'mk3']"])
def test_a_header_in_any_form_is_found(header):
    """The keys of TOML may be quoted, and have blanks around."""
    text = f'{header}\nport = "/dev/ttyS0"\n'
    assert with_printer(text, "mk3", {"port": PORT}) == f'{header}\nport = "{PORT}"\n'


def test_a_text_that_looks_like_a_table_is_none():
    """Headers in texts and arrays of several lines are not taken for some."""
    text = f'x = """\n[printers.mk3]\nport = 1\n"""\ny = [\n["[printers.mk3]"],\n[1],\n]\n{WHOLE}'
    changed = with_printer(text, "mk3", {"port": "/dev/ttyS0"})
    assert changed == text.replace(f'"{PORT}"', '"/dev/ttyS0"')


def test_a_value_of_several_lines_is_replaced_as_a_whole():
    """None of it is left behind."""
    text = '[printers.mk3]\nport = """\\\n  /dev/\\\n  ttyUSB0"""  # odd\nprobe = "open"\n'
    assert with_printer(text, "mk3", {"port": PORT}) == f'[printers.mk3]\nport = "{PORT}"\nprobe = "open"\n'


def test_the_ends_of_lines_stay_what_they_are():
    """A file from Windows stays one, also where something is added."""
    text = '[printers.mk3]\r\nport = "/dev/ttyS0"'
    assert with_printer(text, "mk3", {"port": PORT, "interval": 1.0}) == (
        f'[printers.mk3]\r\nport = "{PORT}"\r\ninterval = 1.0\r\n'
    )
    assert with_printer(text, "b", {"port": PORT}) == f'{text}\r\n\r\n[printers.b]\r\nport = "{PORT}"\r\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x =", "not TOML"),
        ("printers = 3", "no table"),
        ("printers.mk3 = 3", "no table"),
        ('printers.mk3.port = "x"', "not written below"),
        ('printers = { mk3 = { port = "x" } }', "not written below"),
        ('[printers]\nmk3.port = "x"', "not written below"),
        ('[printers.mk3.match]\nserial = "1"', "not written below"),
        ("printers = { a = {} }", "not written below|changing others"),
        (f"[printers.mk3]\nx = [\n{'1,' * 5}\n{chr(10) * 300}]\n", "too long"),
    ],
)
def test_what_cannot_be_changed_for_certain_is_refused(text, why):
    """Rather than half right: the person changes it."""
    with pytest.raises(Unsure, match=why):
        with_printer(text, "mk3", WISHES)


# -- any file ----------------------------------------------------------------------------------------------
KEYS = st.text("abcxyz_-", min_size=1, max_size=6) | st.sampled_from(["port", "match", "mk3"])
COMMENTS = st.sampled_from(["", "# a comment", '  # "quoted" # [x]', "\t# ümlaut", '# """'])
SCALARS = st.one_of(
    st.integers(-9, 99).map(str),
    st.sampled_from(["true", "1.5", "[]", '[ "#", 1 ]', "[\n  [1], # one\n]", '"""\n[printers.mk3]\n"""']),
    st.text("ab #[]=\\\"'\n", max_size=8).map(
        lambda text: table("x", {"v": text}).partition("= ")[2].strip()
    ),
    st.text('ab #[]=\\"', max_size=8).map(lambda text: f"'{text}'"),
)


@st.composite
def bodies(draw, taken=()):
    """Lines of settings, comments and blanks, all of them valid below a header."""
    lines, seen = [], set(taken)
    for key in draw(st.lists(KEYS, max_size=5)):
        lines += draw(st.lists(COMMENTS, max_size=2))
        if key not in seen:
            seen.add(key)
            lines.append(f"{key} = {draw(SCALARS)}{draw(COMMENTS) or ''}")
    return lines


@st.composite
def files(draw):
    """A configuration with any tables: what stands before our printer's, that one (or nothing), the rest."""
    parts = ["\n".join([*draw(bodies(taken=["printers", "a", "b"])), ""]), "", ""]
    names = st.lists(
        st.sampled_from(["printers.x", "a", "b.c", "printers.mk3-b", "printers.mk3"]), unique=True
    )
    for name in draw(names):
        lines = [f"[{name}]{draw(COMMENTS)}", *draw(bodies()), ""]
        place = 1 if name == "printers.mk3" else 2 if parts[1] else 0
        parts[place] += "\n".join(lines)
    eol = draw(st.sampled_from(["\n", "\r\n"]))
    return [part.replace("\n", eol) for part in parts]


def comments(text):
    """How often each comment that stands on a line of its own stands in a text."""
    return sorted(line.strip() for line in text.splitlines() if line.lstrip().startswith("#"))


SETTINGS = st.dictionaries(
    st.sampled_from(["octoprint", "port", "match", "abc", "x"]),
    st.none()
    | st.text(max_size=8).filter(lambda text: text.isprintable() or "\x7f" in text)
    | st.floats(0.5, 60)
    | st.dictionaries(st.sampled_from(["serial", "vendor"]), st.text('ab"\\ü', max_size=4), min_size=1),
)


@given(files(), SETTINGS)
def test_in_any_file_only_that_table_changes(parts, wishes):
    """Of every valid file: the settings are as wished, all others as before, and every comment is there."""
    text = "".join(parts)
    before, changed = tomllib.loads(text), with_printer(text, "mk3", wishes)
    after = tomllib.loads(changed)
    theirs = before.setdefault("printers", {}).pop("mk3", {})
    ours = after.setdefault("printers", {}).pop("mk3", {})
    assert after == before
    assert ours == {key: value for key, value in {**theirs, **wishes}.items() if value is not None}
    assert comments(changed) == comments(text)
    assert with_printer(changed, "mk3", wishes) == changed


@given(files(), SETTINGS, st.booleans())
def test_what_stands_around_the_table_stays_letter_for_letter(parts, wishes, whole):
    """Before it and behind it; only a line feed that a file lacks at its end may come."""
    front, own, back = parts
    if not whole:
        back = back.rstrip("\r\n")
    changed = with_printer(front + own + back, "mk3", wishes)
    assert changed.startswith(front)
    assert changed.rstrip("\r\n").endswith(back.rstrip("\r\n")) if own else changed.startswith(front + back)
