"""One printer's table in a configuration is changed, and nothing beside it: text surgery on TOML.

Knows how TOML lays tables out in lines, by asking tomllib.  Must not know what the settings mean, nor touch
a file (``config``, ``files``).

There is no parser here that could be wrong: a line begins a statement if what stands before it is TOML by
itself.  And every change is proved before it is given out: the new text, parsed, is the old one with exactly
the wished settings in that one table.  What cannot be changed so is refused, with the lines to paste.
"""

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Value = str | int | float | Mapping[str, str] | None
"""What a setting is to be; None: it is not to be there."""

_LONGEST = 200  # lines of one statement; ours have one

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class Unsure(ValueError):  # noqa: N818 - `except Unsure` reads well
    """The text cannot be changed for certain; one line for people."""


# -- what is asked for -------------------------------------------------------------------------------------
def table(name: str, wishes: Mapping[str, Value]) -> str:
    """A printer's table, to be pasted or appended."""
    lines = [f"[printers.{_key(name)}]", *(_line(key, value) for key, value in _given(wishes))]
    return "".join(f"{line}\n" for line in lines)


def with_printer(text: str, name: str, wishes: Mapping[str, Value]) -> str:
    """The configuration with these settings in the table of that printer, which is made if there is none.

    Its other settings, and all comments, stay.  What is so already stays as it is written.

    Args:
        text: the configuration; may be empty.
        name: the printer's.
        wishes: by the names of the settings.

    Raises:
        Unsure: it is no TOML, or its table is written in a way that is not to be changed by a program.
    """
    before = _parsed(text)
    if before is None:
        raise Unsure("it is not TOML")
    wanted = _wanted(before, name, wishes)
    if wanted == before:
        return text
    eol = "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"
    if text and not text.endswith("\n"):
        text += eol
    if name in before.get("printers", {}):
        changed = _Edit(text.split("\n"), name, eol.removesuffix("\n")).applied(wishes)
    else:
        gap = eol if text.strip() and not text.endswith(f"{eol}{eol}") else ""
        changed = text + gap + table(name, wishes).replace("\n", eol)
    if _parsed(changed) != wanted:
        raise Unsure(f"the table of {name} cannot be changed without changing others")
    return changed


def _wanted(before: Mapping[str, Any], name: str, wishes: Mapping[str, Value]) -> dict[str, Any]:
    """What the new text has to mean."""
    wanted = copy.deepcopy(dict(before))
    printers = wanted.setdefault("printers", {})
    found = printers.setdefault(name, {}) if isinstance(printers, dict) else None
    if not isinstance(found, dict):
        raise Unsure(f"printers.{_key(name)} is no table")
    for key, value in wishes.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = dict(value) if isinstance(value, Mapping) else value
    return wanted


# -- where it stands ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Statement:
    """Lines that are one statement: a setting, a table's header, or (no path) a comment or a blank line."""

    begin: int
    end: int
    path: tuple[str, ...] = ()
    header: bool = False

    @property
    def lines(self) -> range:
        return range(self.begin, self.end)


class _Edit:
    """Changes to the lines of one printer's table.

    Args:
        lines: of the whole text, without their line feeds; the last one is empty.
        name: the printer's.
        eol: what each line has before its line feed.
    """

    def __init__(self, lines: Sequence[str], name: str, eol: str) -> None:
        self._lines = list(lines)
        self._eol = eol
        self._new: dict[int, str] = {}  # line -> what stands in its place
        self._gone: set[int] = set()
        own = [block for block in _blocks(self._lines) if block.path[:2] == ("printers", name)]
        heads = [block for block in own if len(block.path) == 2]  # noqa: PLR2004 - printers and its name
        if len(heads) != 1:
            raise Unsure(f"printers.{_key(name)} is not written below a line [printers.{_key(name)}]")
        (head,) = heads
        self._own = list(_statements(self._lines, head.begin + 1, head.end))
        self._tables = {  # settings that are tables with a header of their own, such as [printers.mk3.match]
            block: [
                _Statement(block.begin, block.begin + 1, block.path, header=True),
                *list(_statements(self._lines, block.begin + 1, block.end)),
            ]
            for block in own
            if block is not head
        }
        self._last = max([head.begin, *(each.end - 1 for each in self._own if each.path)])

    def applied(self, wishes: Mapping[str, Value]) -> str:
        added = []
        for key, value in wishes.items():
            places = [each for each in self._own if each.path[:1] == (key,)]
            tables = [part for block, part in self._tables.items() if block.path[2:3] == (key,)]
            if value is not None and self._means(places, tables) == {key: value}:
                continue
            for part in tables:
                self._gone |= {line for each in part if each.path for line in each.lines}
            self._gone |= {line for each in places for line in each.lines}
            if value is not None and places:
                self._put(places[0], key, value)
            elif value is not None:
                added.append(self._indent() + _line(key, value) + self._eol)
        return "\n".join(self._joined(added))

    def _means(
        self, places: Sequence[_Statement], tables: Sequence[Sequence[_Statement]]
    ) -> dict[str, Any] | None:
        """What is written so far, if it is written without a header of its own."""
        if tables:
            return None
        return _parsed(_text([self._lines[line] for each in places for line in each.lines]))

    def _put(self, place: _Statement, key: str, value: Value) -> None:
        """In place of a statement; a comment behind it, and the blanks around its sign, stay."""
        line = self._lines[place.begin].removesuffix("\r")
        front = re.match(rf"\s*{re.escape(key)}\s*=\s*", line)
        whole = f"{front[0]}{_shown(value)}" if front else self._indent() + _line(key, value)
        self._new[place.begin] = whole + _comment(line) + self._eol
        self._gone.discard(place.begin)

    def _indent(self) -> str:
        line = self._lines[self._last]
        return line[: len(line) - len(line.lstrip(" \t"))]

    def _joined(self, added: Sequence[str]) -> Iterator[str]:
        for number, line in enumerate(self._lines):
            if number not in self._gone:
                yield self._new.get(number, line)
            if number == self._last:
                yield from added


def _comment(line: str) -> str:
    """The comment behind a statement of one line, with the blanks before it."""
    for place in (match.start() for match in re.finditer("#", line)):
        front = line[:place].rstrip(" \t")
        if _parsed(front) is not None:  # inside of a text it would be unfinished
            return line[len(front) :]
    return ""


def _blocks(lines: Sequence[str]) -> list[_Statement]:
    """The tables with a header, each with the lines up to the next one."""
    found: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    for number, line in enumerate(lines):
        if line.lstrip(" \t").startswith("[") and _are_whole(lines[found[-1][0] : number]):
            found.append((number, _path(_text([line]))))
    ends = [*(begin for begin, _ in found[1:]), len(lines)]
    return [_Statement(begin, end, path) for (begin, path), end in zip(found, ends, strict=True)]


def _statements(lines: Sequence[str], begin: int, end: int) -> Iterator[_Statement]:
    """The statements of a table, in their order."""
    while begin < end:
        sizes = range(1, min(_LONGEST, end - begin) + 1)
        size = next((size for size in sizes if _are_whole(lines[begin : begin + size])), None)
        if size is None:
            raise Unsure(f"line {begin + 1} begins something too long to be changed by a program")
        yield _Statement(begin, begin + size, _path(_text(lines[begin : begin + size])))
        begin += size


def _path(statement: str) -> tuple[str, ...]:
    """The key that a statement sets or begins a table for, part by part; empty for a comment.

    Of a setting that is a table itself, the keys in it may be added; of an array of tables, none is told.
    """
    found: Any = _parsed(statement)
    path = []
    while isinstance(found, dict) and len(found) == 1:
        ((key, found),) = found.items()
        path.append(key)
    return () if isinstance(found, list) and statement.lstrip(" \t").startswith("[[") else tuple(path)


def _are_whole(lines: Sequence[str]) -> bool:
    return _parsed(_text(lines)) is not None


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _parsed(text: str) -> dict[str, Any] | None:
    """What it means; None: it is no TOML by itself."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


# -- how it is written -------------------------------------------------------------------------------------
def _given(wishes: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
    return ((key, value) for key, value in wishes.items() if value is not None)


def _line(key: str, value: Value) -> str:
    return f"{_key(key)} = {_shown(value)}"


def _shown(value: Value) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_shown(each)}' for key, each in value.items())} }}"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _quoted(key)


def _quoted(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's, but for one character that JSON lets pass."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
