"""Every setting: which form its value has, what its range is, and where it may stand.

Knows single values and says what a wrong one must be; who knows its place puts that before it (``config``).
Must not know what the settings do, nor put any together.  No message shows a key, nor what may hold one: the
value of ``api_key_file``, where a person may have put the key itself, or a URL.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_INTERVALS = (0.5, 3600.0)  # seconds: below, the looks themselves are a load; above, nobody waits
_BAUDRATES = (2400, 4_000_000)  # baud: 4000000 is the highest that Linux has a name for
_BOOTLOADER_BAUDRATE = 1200  # opening a port at 1200 baud sends many boards into their bootloader
_LONGEST_SOCKET = 107  # bytes of a Unix socket's path (unix(7): 108 with the final NUL)
MOST_SHOWN = 60  # characters of a wrong value
PRUSA = "2c99"  # USB's number of Prusa Research

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""A printer's name.  It is a file's, a credential's and an argument's: no slash, no dot or dash in front."""


class BadError(ValueError):
    """What a value must be; the path is put before it by whoever knows it."""


def shown(value: object) -> str:
    """A wrong value as it was written, on one line and not too long."""
    match value:
        case bool() | str():
            short = (
                value[:MOST_SHOWN] + "..." if isinstance(value, str) and len(value) > MOST_SHOWN else value
            )
            return json.dumps(short, ensure_ascii=not str(short).isprintable())
        case int() if abs(value) > 10**18:
            return "a huge number"  # and str() refuses more than 4300 digits
        case int() | float():
            return str(value)
        case dict() | list():
            return "a table" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise BadError(f"must be text, is {shown(value)}")
    return value


def _choice(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            known = ", ".join(f'"{word}"' for word in words[:-1])
            raise BadError(f'must be {known} or "{words[-1]}", is {shown(value)}')
        return value

    return check


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadError(f"must be true or false, is {shown(value)}")
    return value


def _interval(value: object) -> float:
    low, high = _INTERVALS
    # Compared before it is made a float: that fails for a whole number of 400 digits.  nan fits no range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadError(f"must be a number from {low:g} to {high:g} seconds, is {shown(value)}")
    return float(value)


def _baudrate(value: object) -> int:
    low, high = _BAUDRATES
    if value == _BOOTLOADER_BAUDRATE and not isinstance(value, bool):
        raise BadError("1200 baud is refused: it sends many boards into their bootloader")
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadError(
            f"must be a whole number from {low} to {high} baud (left out: OctoPrint's), is {shown(value)}"
        )
    return value


def absolute(value: object) -> Path:
    """A path that means the same wherever it is read.

    Raises:
        BadError: it is none.
    """
    text = _text(value)
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise BadError(f"there is no such user's home: {shown(value)}") from None
    if not path.is_absolute():
        raise BadError(f'must be an absolute path, such as "/etc/portretry-udev/...", is {shown(value)}')
    return path


def _key_path(value: object) -> Path:
    try:
        return absolute(value)
    except BadError:
        # Without the value: it may well be the key itself.
        raise BadError(
            "must be the absolute path of a file that holds the API key, not the key itself"
        ) from None


def _ca_file(value: object) -> Path:
    path = absolute(value)
    if not os.path.isfile(path) or not os.access(path, os.R_OK):  # noqa: PTH113 - is_file raises for a long name
        raise BadError(f"there is no file of certificates that can be read: {path}")
    return path


def _socket(value: object) -> Path:
    path = absolute(value)
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise BadError(f"must be a path of at most {_LONGEST_SOCKET} bytes, as for every Unix socket")
    return path


def _textfile(value: object) -> Path:
    path = absolute(value)
    if path.suffix != ".prom" or path.name.startswith("."):
        raise BadError(f'must end in ".prom", or node_exporter does not read it, is {shown(str(path))}')
    return path


def _node(value: object) -> str:
    text = _text(value)
    if text.upper() == "AUTO":
        raise BadError("AUTO is no port; left out, it is the port that OctoPrint prefers")
    if not text.startswith("/"):
        raise BadError(f'must be the path of a node, such as "/dev/serial/by-id/...", is {shown(value)}')
    return os.path.normpath(text)


def _url(value: object) -> str:
    """An address of OctoPrint's.  No message shows it: there may be a password or a key in it."""
    if not isinstance(value, str) or not re.fullmatch(
        r"https?://[^\s\\\x00-\x20\x7f]+", value, re.IGNORECASE
    ):
        raise BadError('must be a URL such as "http://127.0.0.1:5000" or "https://octopi.example/octoprint"')
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadError("must be a URL with a host and, if any, a port from 1 to 65535") from None
    if "@" in parts.netloc:
        raise BadError("must be a URL without a user and password in it")
    if "?" in value or "#" in value:
        raise BadError("must be a URL without ? and # (the API key goes into api_key_file)")
    if not host or port == 0:
        raise BadError("must be a URL with a host and, if any, a port from 1 to 65535")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def octoprint_url(text: str) -> str:
    """An address of OctoPrint's as it belongs into a configuration.

    Raises:
        ValueError: it is none; the text says what it must be, and does not show it.
    """
    return _url(text)


def _hex(example: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        text = value.lower().removeprefix("0x") if isinstance(value, str) else ""
        if len(text) != len(example) or not re.fullmatch(r"[0-9a-f]+", text):
            wish = f'{len(example)} hexadecimal digits in quotes, such as "{example}"'
            raise BadError(f"must be {wish}, is {shown(value)}")
        return text

    return check


MATCH: dict[str, Callable[[object], str]] = {
    "serial": _text,
    "vendor": _hex(PRUSA),
    "product": _hex(PRUSA),
    "path": _text,
    "interface": _hex("00"),
}
FIRMWARE: dict[str, Callable[[object], str]] = {"machine": _text, "uuid": _text}
TABLES = ("match", "firmware")
"""The settings of a printer that are tables: `MATCH` and `FIRMWARE`."""

TOP: dict[str, Callable[[object], Any]] = {
    "interval": _interval,
    "state_dir": absolute,
    "control": _socket,
    "metrics_textfile": _textfile,
}
PRINTER: dict[str, Callable[[object], Any]] = {
    "octoprint": _url,
    "api_key_file": _key_path,
    "port": _node,
    "octoprint_port": _text,
    "baudrate": _baudrate,
    "profile": _text,
    "interval": _interval,
    "reconnect": _choice("on-return", "always"),
    "probe": _choice("firmware", "open", "none"),
    "avoid_reset": _flag,
    "start": _choice("connect", "wait"),
    "push": _flag,
    "octoprint_config": absolute,
    "ca_file": _ca_file,
}
FLAGS = (
    "config",
    "octoprint",
    "api_key_file",
    "port",
    "baudrate",
    "interval",
    "reconnect",
    "probe",
    "avoid_reset",
    "start",
    "push",
    "octoprint_config",
    "ca_file",
    "state_dir",
    "control",
    "metrics_textfile",
)
"""The settings that flags and the environment can give; ``match`` and the rest need a file."""

_PATHS = ("config", "api_key_file", "octoprint_config", "ca_file", "state_dir", "control", "metrics_textfile")
_SPOKEN_FLAGS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def spoken(setting: str, value: object) -> object:
    """A value from a command line or the environment, which is text, in the type it has in a file."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return value
    if setting == "baudrate" and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if setting == "interval" and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    if setting in ("avoid_reset", "push") and value.lower() in _SPOKEN_FLAGS:
        return _SPOKEN_FLAGS[value.lower()]
    # A command is typed in some folder, and means a path from there; a file in /etc has no such folder.
    # A long bare word for the key file is likely the key: left as it is, it is refused without being shown.
    bare_key = setting == "api_key_file" and re.fullmatch(r"[A-Za-z0-9_-]{16,}", value)
    if setting in _PATHS and value and not value.startswith("~") and not bare_key:
        return os.path.abspath(value)  # noqa: PTH100 - resolve() would follow links
    return value
