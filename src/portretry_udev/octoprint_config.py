"""Reads the few settings that matter here out of OctoPrint's own ``config.yaml``.

Knows where OctoPrint 1.x and 2.0 keep the preferred port and the interval of the plugin PortRetry, and as
much YAML as OctoPrint writes: block mappings by PyYAML's dumper, ``|`` for texts of several lines.  What a
person's edit may have put beside the settings we want is stepped over; a setting we want that is written in a
way not understood here is an `OctoPrintConfigTrouble` with its line, never a guess.  This is no YAML library.
It must not know what the settings are used for, it never writes, and it takes no API key from that file,
though there may be one.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

Value = str | int | float | bool | None

_MOST_BYTES = 4 << 20  # a config.yaml has some kilobytes
_PREFERRED = "printerConnection.preferred"
WANTED = (
    "plugins.portretry.interval",
    "serial.port",  # OctoPrint 1.x
    "serial.baudrate",
    f"{_PREFERRED}.connector",  # OctoPrint 2.0
    f"{_PREFERRED}.parameters.port",
    f"{_PREFERRED}.parameters.baudrate",
    "server.host",
    "server.port",
)


class OctoPrintConfigTrouble(Exception):  # noqa: N818 - "trouble" says as much as "error"
    """A config.yaml that cannot be read or understood where it matters; one line for people."""


@dataclass(frozen=True)
class OctoPrintSettings:
    """What OctoPrint's config.yaml says, each None where it says nothing.

    Attributes:
        interval: PortRetry's interval in seconds, not yet checked for its range.
        port: the preferred port; None also for ``AUTO``.
        auto: the port is ``AUTO`` in so many letters.
        baudrate: the preferred baudrate in baud; None also for OctoPrint's 0 and ``AUTO``.
        host: the address that OctoPrint's server listens on.
        server_port: the TCP port that it listens on.
        connector: OctoPrint 2.0's preferred connector, such as ``serial``.
    """

    interval: float | None = None
    port: str | None = None
    auto: bool = False
    baudrate: int | None = None
    host: str | None = None
    server_port: int | None = None
    connector: str | None = None


def read(path: Path) -> OctoPrintSettings:
    """Read one config.yaml.

    Raises:
        OctoPrintConfigTrouble: it cannot be read, or a wanted setting in it cannot be understood.
    """
    return _read(path)[0]


class Follow:
    """OctoPrint's settings as they are now: the file is read again whenever it changed."""

    def __init__(self, path: Path) -> None:
        """Follow the file at ``path``; nothing is read before the first `current`."""
        self._path = path
        self._good: OctoPrintSettings | None = None
        self._stamp: tuple[int, int, int] | None = None
        self.trouble: str | None = None
        """Why the last good settings still stand in for the file, or None when the file is fine."""

    def current(self) -> OctoPrintSettings:
        """The settings now, or the last good ones while the file is missing or broken (see `trouble`).

        Raises:
            OctoPrintConfigTrouble: there never were any good ones.
        """
        if self._good is not None and self.trouble is None and self._stamp == self._look():
            return self._good
        try:
            self._good, self._stamp = _read(self._path)
        except OctoPrintConfigTrouble as trouble:
            self.trouble = str(trouble)
            if self._good is None:
                raise
        else:
            self.trouble = None
        return self._good

    def _look(self) -> tuple[int, int, int] | None:
        try:
            return _stamp(self._path.stat())
        except OSError:
            return None


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(path: Path) -> tuple[OctoPrintSettings, tuple[int, int, int]]:
    """The settings, and the stamp of the very file that they came from."""
    try:
        with path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise OctoPrintConfigTrouble(f"{path}: too big to be OctoPrint's config.yaml")
        return settings(wanted(raw.decode("utf-8-sig"))), stamp
    except OSError as error:
        raise OctoPrintConfigTrouble(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OctoPrintConfigTrouble(f"{path}: is not UTF-8 text") from None
    except NotUnderstood as error:
        raise OctoPrintConfigTrouble(f"{path}: {error}") from None


# --- from values to settings ------------------------------------------------------------------------------


class NotUnderstood(Exception):  # noqa: N818 - see above
    """What is wrong and on which line, without the file's name."""


@dataclass(frozen=True)
class Found:
    """A value that the file gives for a wanted path, and its line (from 1)."""

    value: Value
    line: int


def settings(found: Mapping[str, Found]) -> OctoPrintSettings:
    """Make sense of the values, wherever 1.x or 2.0 put them."""
    connector = _text(found, f"{_PREFERRED}.connector")
    port, baudrate = None, None
    if connector in (None, "serial"):  # 2.0 writes no connector when it takes over the settings of 1.x
        old, new = _port(found, "serial.port"), _port(found, f"{_PREFERRED}.parameters.port")
        if old is not None and new is not None and old != new:
            # 2.0 moves serial.port to its place, but only once: after a way back to 1.x either may be stale.
            line = found["serial.port"].line
            _refuse(line, f"serial.port and {_PREFERRED}.parameters.port differ; remove the one out of use")
        port = new or old
        places = (f"{_PREFERRED}.parameters.baudrate", "serial.baudrate")
        baudrate = _baudrate(found, places[0]) or _baudrate(found, places[1])
    return OctoPrintSettings(
        interval=_number(found, "plugins.portretry.interval"),
        port=None if port == "AUTO" else port,
        auto=port == "AUTO",
        baudrate=baudrate,
        host=_text(found, "server.host"),
        server_port=_whole(found, "server.port"),
        connector=connector,
    )


def _port(found: Mapping[str, Found], path: str) -> str | None:
    text = _text(found, path)
    return "AUTO" if text is not None and text.upper() == "AUTO" else text


def _baudrate(found: Mapping[str, Found], path: str) -> int | None:
    here = found.get(path)
    if here is not None and isinstance(here.value, str) and here.value.upper() == "AUTO":
        return None
    return _whole(found, path) or None


def _text(found: Mapping[str, Found], path: str) -> str | None:
    here = found.get(path)
    if here is None or here.value is None or here.value == "":
        return None
    if not isinstance(here.value, str):
        _refuse(here.line, f"{path} must be text")
    return here.value


def _whole(found: Mapping[str, Found], path: str) -> int | None:
    number = _number(found, path)
    if number is None:
        return None
    if not number.is_integer() or number < 0:
        _refuse(found[path].line, f"{path} must be a whole number")
    return int(number)


def _number(found: Mapping[str, Found], path: str) -> float | None:
    """A number, or a text that is one: OctoPrint's settings dialogues save what was typed."""
    here = found.get(path)
    if here is None or here.value is None or here.value == "":
        return None
    value = here.value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(here.line, f"{path} must be a number")
    return float(value)


# --- from YAML to values ----------------------------------------------------------------------------------

_Tree = dict[str, "_Tree | None"]  # the wanted paths as a tree; None is a leaf

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # YAML 1.1's line breaks
_QUOTED = re.compile(r"'(?:[^']|'')*+'|\"(?:[^\"\\]|\\.)*+\"", re.DOTALL)
_ODD_START = re.compile(r"[,\[\]{}#&*!|>'\"%@`]|[-?:](?:\s|$)", re.ASCII)  # no plain word starts like this
_WORD = r"(?:[^\s:]|:(?=\S))++"
# Possessive: nothing is tried twice, however long a run of blanks is.
_PLAIN_KEY = re.compile(
    rf"(?!{_ODD_START.pattern})(?P<key>{_WORD}(?:\s++(?!\#){_WORD})*+)\s*+:(?=\s|$)", re.ASCII
)
_COLON = re.compile(r"\s*:(?=\s|$)", re.ASCII)
_PROPERTY = re.compile(r"[&!]\S*\s*", re.ASCII)  # an anchor or a tag
_FLOW_PROPERTY = re.compile(r"[&*!][^\s,\[\]{}]*", re.ASCII)
_INDICATOR = re.compile(r"[-?:](?=\s|$)\s*", re.ASCII)  # an entry of a list, a long key, its value
_COMMENT = re.compile(r"(?:^|(?<=\S))\s++#.*$|^#.*$", re.ASCII)

# What a plain word means, by the resolver of PyYAML, which OctoPrint reads and writes with.  Other spellings
# of numbers (octal, base 60, 1_000) and dates are never written by it, so they are not guessed at.
_WORDS: dict[str, Value] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **{w: True for word in ("yes", "true", "on") for w in (word, word.title(), word.upper())},
    **{w: False for word in ("no", "false", "off") for w in (word, word.title(), word.upper())},
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(
    r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
)
_ODD_WORD = re.compile(
    r"[-+]?(?:0[0-7_]+|0b[01_]+|0x[0-9a-fA-F_]+|[1-9][0-9_]*)"
    r"|(?:[-+]?[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?|=|<<",
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = dict(
    zip('0abt\tnvfre "\\/N_LP', '\0\a\b\t\t\n\v\f\r\x1b "\\/\x85\xa0\u2028\u2029', strict=True),
)
_BLANK = " \t"


def wanted(text: str) -> dict[str, Found]:
    """The values at the `WANTED` paths of a config.yaml; a path that is not there is left out.

    Raises:
        NotUnderstood: one of them, or something on the way to it, is written in a way not understood here.
    """
    return _Reader(text).document(_tree(path.split(".") for path in WANTED))


def _tree(paths: Iterable[list[str]]) -> _Tree:
    below: dict[str, list[list[str]]] = {}
    for first, *rest in paths:
        below.setdefault(first, []).append(rest)
    return {name: None if rests == [[]] else _tree(rests) for name, rests in below.items()}


def _refuse(line: int, what: str) -> NoReturn:
    raise NotUnderstood(f"line {line}: {what}")


class _Reader:
    """Walks over a document, a line at a time, and takes down what is wanted.

    ``at`` is a line (from 0), ``column`` a place in it, and ``indent`` the column of the key or list entry
    that a value belongs to: what is indented deeper still belongs to that value.
    """

    def __init__(self, text: str) -> None:
        self._lines = _BREAK.split(text)
        # One kind of line break, so that a place in the text is a line and a column.
        self._text = "\n".join(self._lines)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def document(self, tree: _Tree) -> dict[str, Found]:
        """The first document, which must be the only one and a mapping, as for OctoPrint itself."""
        at = self._next(0)
        while at < len(self._lines) and self._lines[at].startswith("%"):
            at = self._next(at + 1)
        if self._is_marker(at, "---"):
            if self._rest(at, 3):
                _refuse(at + 1, "cannot understand what follows the ---")
            at = self._next(at + 1)
        found: dict[str, Found] = {}
        if at < len(self._lines) and not self._is_marker(at, "..."):
            if self._rest(at, 0) in ("{}", "null"):
                at = self._next(at + 1)
            else:
                found, at = self._mapping(at, self._indent(at), tree, "")
        if self._is_marker(at, "..."):
            at = self._next(at + 1)
        if at < len(self._lines):
            _refuse(at + 1, "cannot understand this line")
        return found

    # -- what is wanted

    def _mapping(self, at: int, indent: int, tree: _Tree, path: str) -> tuple[dict[str, Found], int]:
        """Take the wanted values out of the block mapping that starts here."""
        found: dict[str, Found] = {}
        while at < len(self._lines) and self._indent(at) == indent and not self._is_marker(at):
            key, column = self._key(at, indent)
            if key is None and _INDICATOR.match(self._lines[at], indent) and self._lines[at][indent] != "-":
                self._refuse_long_key(at, indent, tree, path)
                at = self._past_block(self._past_line(at), indent)
                continue
            if key is None or key == "<<":
                _refuse(at + 1, f"cannot understand this line{f' in {path}' if path else ''}")
            if key not in tree:
                at = self._past_block(self._past_value(at, column, indent), indent)
                continue
            here = f"{path}.{key}".lstrip(".")
            if _PROPERTY.match(self._lines[at], indent):
                _refuse(at + 1, f"cannot understand {here} with an anchor or a tag")
            for known in [k for k in found if k == here or k.startswith(f"{here}.")]:
                del found[known]  # said twice: the last one counts, as for PyYAML
            new, at = self._value(at, column, indent, tree[key], here)
            found |= new
        if at < len(self._lines) and self._indent(at) > indent:
            _refuse(at + 1, "cannot understand this indentation")
        return found, at

    def _value(
        self, at: int, column: int, indent: int, tree: _Tree | None, path: str
    ) -> tuple[dict[str, Found], int]:
        """The value of a wanted key: a single one at a leaf of the tree, a mapping elsewhere."""
        rest = self._rest(at, column)
        below = self._next(at + 1)
        deeper = below < len(self._lines) and self._indent(below) > indent
        listed = below < len(self._lines) and not rest and self._is_entry(below, indent)
        if tree is not None and not rest and deeper and not listed:
            return self._mapping(below, self._indent(below), tree, path)
        if deeper or listed:
            _refuse(at + 1, f"{path} must be {'a single value on one line' if tree is None else 'a mapping'}")
        if tree is None:
            return {path: Found(self._scalar(at, rest, path), at + 1)}, below
        if rest != "{}" and _WORDS.get(rest, rest) is not None:
            _refuse(at + 1, f"{path} must be a mapping, one setting a line")
        return {}, below

    def _scalar(self, at: int, rest: str, path: str) -> Value:
        if quoted := _QUOTED.fullmatch(rest):
            inner = quoted[0][1:-1]
            if rest[0] == "'":
                return inner.replace("''", "'")
            return _ESCAPE.sub(lambda escape: self._unescaped(at, escape[1], path), inner)
        if rest in _WORDS:
            return _WORDS[rest]
        if _INTEGER.fullmatch(rest):
            return int(rest)
        if _FLOAT.fullmatch(rest):
            return float(rest.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if _ODD_START.match(rest) or _ODD_WORD.fullmatch(rest) or re.search(r":(?:\s|$)", rest):
            _refuse(at + 1, f"cannot understand {path}; write it as plain or quoted text")
        return rest

    def _unescaped(self, at: int, escape: str, path: str) -> str:
        if len(escape) > 1 and int(escape[1:], 16) <= 0x10FFFF:  # noqa: PLR2004 - Unicode ends there
            return chr(int(escape[1:], 16))
        if escape not in _ESCAPES:
            _refuse(
                at + 1, f"cannot understand {path}: there is no escape \\{ascii(escape[0])[1:-1]} in YAML"
            )
        return _ESCAPES[escape]

    def _refuse_long_key(self, at: int, indent: int, tree: _Tree, path: str) -> None:
        """A key on lines of its own (``? key``) is stepped over, unless it may be one that we want."""
        if self._lines[at][indent] != "?":
            return
        start = self._starts[at] + self._content(at, indent + 1)
        if quoted := _QUOTED.match(self._text, start):
            joined = re.sub(r"\\\n[ \t]*", "", quoted[0])  # a backslash at the end joins two lines
            refused = str(self._scalar(at, joined, "this key")) in tree
        else:
            below = self._text[start : self._starts[self._past_line(at)]]
            key = re.sub(r"^[|>][-+0-9]*\s|\s#.*", "", below).strip()
            refused = key in tree or below[:1] in ("\n", "#", "*")
        if refused:
            _refuse(at + 1, f"cannot understand this key{f' in {path}' if path else ''}")

    # -- what is stepped over

    def _past_block(self, at: int, indent: int) -> int:
        """Over a block below a key or list entry: deeper lines, or a list with its dashes below the key."""
        while at < len(self._lines) and (self._indent(at) > indent or self._is_entry(at, indent)):
            at = self._past_line(at)
        return at

    def _past_line(self, at: int) -> int:
        """Over one line of a block and all that goes on from it: quoted or plain text, block text, flow."""
        line, column = self._lines[at], self._indent(at)
        indent = column
        while entry := _INDICATOR.match(line, column):
            indent, column = column, entry.end()
        key, after = self._key(at, column)
        if key is not None:
            indent, column = column, after
        return self._past_value(at, column, indent)

    def _past_value(self, at: int, column: int, indent: int) -> int:
        """Over a value that starts at this place, but not over a block that starts on the next line."""
        column = self._content(at, column)
        first = self._lines[at][column : column + 1]
        if first in ("'", '"'):
            return self._next(self._line_of(self._past_quote(self._starts[at] + column)) + 1)
        if first in ("[", "{"):
            return self._next(self._past_flow(at, column) + 1)
        if first in ("|", ">"):
            return self._past_deeper(at, indent, text=True)
        return self._past_deeper(at, indent) if self._rest(at, column) else self._next(at + 1)

    def _past_deeper(self, at: int, indent: int, *, text: bool = False) -> int:
        """Over deeper lines: the rest of a plain word, or (``text``) a block text, where # is no comment."""
        at += 1
        while at < len(self._lines):
            first = self._lines[at].lstrip(_BLANK)[:1]
            if self._indent(at) <= indent and first and (text or first != "#"):
                break
            at += 1
        return self._next(at)

    def _past_flow(self, at: int, column: int) -> int:
        """The line on which the [...] or {...} that starts here is closed."""
        place, depth, fresh = self._starts[at] + column, 0, True  # fresh: a new word may start here
        while place < len(self._text):
            char, follows = self._text[place], self._text[place + 1 : place + 2]
            if fresh and char in "'\"":
                place = self._past_quote(place)
                fresh = self._text[place : place + 1] == ":"  # "key":value needs no space
                place += fresh
                continue
            if fresh and (named := _FLOW_PROPERTY.match(self._text, place)):
                place = named.end()
                continue
            if char == "#" and self._text[place - 1] in " \t\n":
                place = self._starts[self._line_of(place) + 1]
                continue
            depth += (char in "[{") - (char in "]}")
            if depth == 0:
                return self._line_of(place)
            word_ends = char in "[{," or (char in ":?" and follows in (*" \t\n[{,",))
            fresh = word_ends or (fresh and char in " \t\n")
            place += 1
        _refuse(at + 1, "this bracket is never closed")

    def _past_quote(self, place: int) -> int:
        quoted = _QUOTED.match(self._text, place)
        if quoted is None:
            _refuse(self._line_of(place) + 1, "this quote is never closed")
        return quoted.end()

    # -- lines

    def _key(self, at: int, column: int) -> tuple[str | None, int]:
        """The key that starts at this place and the column after its colon, or None and the place."""
        line, start = self._lines[at], column
        while named := _PROPERTY.match(line, column):
            column = named.end()
        if plain := _PLAIN_KEY.match(line, column):
            return plain["key"], plain.end()
        quoted = _QUOTED.match(line, column)
        after = quoted and _COLON.match(line, quoted.end())
        if quoted is None or after is None:
            return None, start
        key = self._scalar(at, quoted[0], "this key")
        return str(key), after.end()

    def _content(self, at: int, column: int) -> int:
        """The column where a value begins, after white space, anchors and tags."""
        line = self._lines[at]
        column = len(line) - len(line[column:].lstrip(_BLANK))
        while named := _PROPERTY.match(line, column):
            column = named.end()
        return column

    def _rest(self, at: int, column: int) -> str:
        """The value on the rest of a line, without a comment."""
        rest = self._lines[at][column:].strip(_BLANK)
        if rest[:1] in ("'", '"') and (quoted := _QUOTED.match(rest)):
            return quoted[0] + _COMMENT.sub("", rest[quoted.end() :]).rstrip(_BLANK)
        return _COMMENT.sub("", rest).rstrip(_BLANK)

    def _next(self, at: int) -> int:
        """This line or the first one after it that holds more than white space and a comment."""
        while at < len(self._lines) and self._lines[at].lstrip(_BLANK)[:1] in ("", "#"):
            at += 1
        return at

    def _indent(self, at: int) -> int:
        return len(self._lines[at]) - len(self._lines[at].lstrip(" "))

    def _is_entry(self, at: int, indent: int) -> bool:
        """A line that starts a list entry right below its key, as PyYAML writes lists."""
        entry = _INDICATOR.match(self._lines[at], indent)
        return self._indent(at) == indent and entry is not None and entry[0][0] == "-"

    def _is_marker(self, at: int, *markers: str) -> bool:
        return (
            at < len(self._lines)
            and self._lines[at][:3] in (markers or ("---", "..."))
            and (not self._lines[at][3:4].strip())
        )

    def _line_of(self, place: int) -> int:
        return bisect_right(self._starts, place) - 1
