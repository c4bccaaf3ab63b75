"""Make the manual: docs/commands.md for the web, and from that the man page.  `make manual` runs it.

What both say of the commands comes from the commands themselves (click), the rest from tools/manual.md.  So
they cannot tell what is not so, and tests/test_manual.py fails when they are older than the commands.

    manual.py [--check]      --check: change nothing; status 1 says that they are old

Knows click, the Markdown that stands in tools/manual.md and no more, and man(7).
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from portretry_udev import __version__
from portretry_udev.cli import main

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/commands.md"
MAN = HERE.parent / "share/man/man1/portretry-udev.1"
_NOTE = "<!-- Made by `make manual` of tools/manual.md and the commands' own help; changes here are lost. -->"
_COMMANDS = "<!-- commands -->"
_WIDTH = 110  # columns of the page as a file
_OPTION = re.compile(r"\* `(?P<tag>[^`]+)`(?P<more>(?:, `[^`]+`)*): (?P<text>.*)", re.DOTALL)


# -- the commands, as Markdown -----------------------------------------------------------------------------
def commands(group: click.Group) -> Iterator[str]:
    """The blocks about all commands, in the order of the alphabet."""
    yield "## Options of all commands"
    yield "These stand before the command's name; `--help` also after it."
    yield _list([*_options(group), "* `-h, --help`: Show what there is, and exit."])
    yield "## Commands"
    yield "What stands in brackets holds where an option is left out."
    for name, command in sorted(group.commands.items()):
        if not command.hidden:
            yield from _command(name, command)


def _command(name: str, command: click.Command) -> Iterator[str]:
    yield f"### {name}"
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    usage = [f"portretry-udev {name}", "[OPTION]...", *map(_argument, arguments)]
    yield f"    {' '.join(usage)}"
    yield from _prose(command.help or "")
    yield _list(_options(command))


def _argument(argument: click.Argument) -> str:
    called = argument.metavar or (argument.name or "").upper()
    if not argument.required:
        called = f"[{called}]"
    return called if argument.nargs == 1 else f"{called}..."


def _options(command: click.Command) -> list[str]:
    shown = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    return [f"* `{_flags(option)}`: {_one_line(option.help or '')}" for option in shown]


def _flags(option: click.Option) -> str:
    """An option as it is typed: ``-v, --verbose`` or ``--interval S``."""
    flags = ", ".join([*option.opts, *option.secondary_opts])
    return flags if option.is_flag or option.count else f"{flags} {_value(option)}"


def _value(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    if isinstance(option.type, click.Path):
        return "FILE" if option.type.file_okay else "DIR"
    return option.type.name.upper()


def _prose(text: str) -> Iterator[str]:
    r"""A docstring's paragraphs; what click is told to leave as it is, by a line of \b, is an example."""
    for paragraph in inspect.cleandoc(text.partition("\f")[0]).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield "\n".join(f"    {line}" for line in paragraph.splitlines()[1:])
        elif paragraph.strip():
            yield textwrap.fill(_one_line(paragraph), _WIDTH, break_on_hyphens=False, break_long_words=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _list(items: list[str]) -> str:
    return "\n".join(items)


def page(group: click.Group, frame: str) -> str:
    """The whole page, for the web; ``frame`` has the place where the commands belong."""
    title, rest = frame.split("\n", 1)
    made = "\n\n".join(block for block in commands(group) if block)
    return f"{title}\n\n{_NOTE}\n{rest.replace(_COMMANDS, made)}"


# -- Markdown, as man(7) -----------------------------------------------------------------------------------
def man(page: str, version: str) -> str:
    """The same as a man page."""
    lines = [
        f'.\\" {_NOTE.removeprefix("<!-- ").removesuffix(" -->")}',
        f'.TH PORTRETRY\\-UDEV 1 "" "portretry\\-udev {version}"',
        # Long paths and command lines would leave holes in lines that are flush on both sides.
        ".ad l",
        ".nh",
    ]
    for block in re.split(r"\n\n+", page.strip()):
        lines += _block(block)
    return "\n".join(lines) + "\n"


def _block(block: str) -> list[str]:
    if block.startswith(("# ", "<!--")):
        return []
    if block.startswith("## "):
        return [f".SH {_plain(block[3:].upper())}"]
    if block.startswith("### "):
        return [f".SS {_plain(block[4:])}"]
    if block.startswith("    "):
        code = [_plain(line[4:]) for line in block.splitlines()]
        return [".PP", ".RS 4", ".nf", *code, ".fi", ".RE"]
    if block.startswith("* "):
        return [line for item in re.split(r"\n(?=\* )", block) for line in _item(item)]
    return [".PP", _text(block)]


def _item(item: str) -> list[str]:
    found = _OPTION.fullmatch(item)
    if found is None:
        return [".IP \\(bu 2", _text(item[2:])]
    tags = [found["tag"], *re.findall(r"`([^`]+)`", found["more"])]
    return [".TP", ", ".join(map(_tag, tags)), _text(found["text"])]


def _tag(tag: str) -> str:
    """What is explained: bold where it is typed as it stands, italic where something stands for it."""
    if not tag.startswith("-"):
        return f"\\fB{_plain(tag)}\\fR"
    return " ".join(
        f"\\fB{_plain(word)}\\fR" if word.startswith("-") or word.islower() else f"\\fI{_plain(word)}\\fR"
        for word in tag.split(" ")
    )


def _text(text: str) -> str:
    """A paragraph on one line, so that none begins as a request does."""
    parts = re.split(r"`([^`]+)`", _one_line(text))
    made = "".join(
        f"\\fB{_plain(part)}\\fR" if place % 2 else _emphasis(part) for place, part in enumerate(parts)
    )
    return f"\\&{made}" if made.startswith((".", "'")) else made


def _emphasis(text: str) -> str:
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)  # its target is a page beside this one
    text = _plain(text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"\\fB\1\\fR", text)
    return re.sub(r"\*([^*]+)\*", r"\\fI\1\\fR", text)


def _plain(text: str) -> str:
    """Text that means itself; a hyphen is one that can be copied into a command line."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("~", "\\(ti")
    text = text.replace("^", "\\(ha").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith(".") else text


# -- the files ---------------------------------------------------------------------------------------------
def run(*, check: bool) -> int:
    """Write both, or say which are old; the exit status."""
    web = page(main, (HERE / "manual.md").read_text())
    old = 0
    for path, made in ((PAGE, web), (MAN, man(web, __version__))):
        if path.exists() and path.read_text() == made:
            continue
        old = 1
        if check:
            print(f"{path.relative_to(HERE.parent)} is old: make manual", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made)
            print(f"wrote {path.relative_to(HERE.parent)}")
    return old if check else 0


if __name__ == "__main__":
    sys.exit(run(check="--check" in sys.argv[1:]))
