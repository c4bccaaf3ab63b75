r"""The udev rules of one installation: what is set on the ports of the printers that were configured.

Knows udev's rule syntax and which of its properties say what a configuration says.  Must not know who writes
the file, nor touch one: it goes over descriptions.

A rule file is obeyed by root, so nothing gets into a rule that could mean more there than itself.  A value
in a rule ends at a quotation mark, the line at its end, ``|`` separates alternatives, ``* ? [`` are patterns,
and a backslash and (in what is set) ``$`` and ``%`` are not themselves either (udev(7)).  None of them is
ever quoted here: older udevs know no way to.  A value that has one is refused, which costs nothing: udev
itself replaces them in serial numbers and links (``udev_replace_chars``, systemd's src/shared/udev-util.c).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from portretry_udev.settings import NAME

UNIT = "portretry-udev.service"

_HEAD = """\
# portretry-udev: the ports of the configured printers.  Made from the configuration; changes here are lost.
#
# On the port of each printer:
# * /dev/printer-NAME leads to it, as long as it is there, and PORTRETRY_PRINTER is its name;
# * ModemManager leaves it alone (ID_MM_PORT_IGNORE; of ID_MM_DEVICE_IGNORE it takes the port's as well);
# * its arrival starts {unit} if that does not run, also if it is disabled, but not if it is masked
#   (SYSTEMD_WANTS).  Without such a unit nothing comes of it.  Only at "add": systemd (252) starts it at any
#   event that says so, and one that was stopped by hand would be back with the next udevadm trigger.
#
# Why 99: after 60-serial.rules, whose properties and links are asked for here; 99-portretry.rules says why
# that is early enough for ModemManager.

ACTION=="remove", GOTO="portretry_printers_end"
"""
_TAIL = """
ACTION=="add", SUBSYSTEM=="tty", ENV{{PORTRETRY_PRINTER}}=="?*", ENV{{SYSTEMD_WANTS}}+="{unit}"

LABEL="portretry_printers_end"
"""

_PROPERTY = {  # key of `match` -> the property that 60-serial.rules sets on the port
    "serial": "ID_SERIAL_SHORT",
    "vendor": "ID_VENDOR_ID",
    "product": "ID_MODEL_ID",
    "path": "ID_PATH",
    "interface": "ID_USB_INTERFACE_NUM",
}
_OF_THE_DEVICE = ("serial", "vendor", "product")  # the USB device has these too, by the same properties

# What udev leaves as it is in a serial number or a link of its own; letters of other alphabets too.
_PLAIN = re.compile(r"(?:[A-Za-z0-9#+.:=@_/-]|[^\W_])+")
_LONGEST = 255  # characters: a file name's limit, and far from the 16384 of a line (UDEV_LINE_SIZE)
_UNIT = re.compile(r"[A-Za-z0-9_.-]+\.service")
_HEX = re.compile(r"[0-9a-f]+")
_NODE = re.compile(r"tty[A-Za-z]*[0-9]+")
# usb-MAKER_MODEL_SERIAL-if00.  With -port0 at its end it is a bridge's, whose USB device may be anybody's.
_BY_ID = re.compile(r"serial/by-id/usb-(.+)-if[0-9a-f]{2}")


class Unwritable(ValueError):  # noqa: N818 - `except Unwritable` reads well
    """A printer's port cannot be put into a udev rule; the text is one line for people."""


class Printer(Protocol):
    """What is needed of `config.Printer`."""

    @property
    def name(self) -> str:
        """Letters, digits and ``_.-``."""

    @property
    def port(self) -> str | None:
        """A node, or a link to it."""

    @property
    def match(self) -> Mapping[str, str]:
        """What udev says of it, by the keys serial, vendor, product, path and interface."""


def rules_for(printers: Iterable[Printer], unit: str = UNIT) -> str:
    """The text of a rule file; its place is /etc/udev/rules.d/99-portretry-printers.rules.

    Args:
        printers: those that were configured.
        unit: the systemd service that their arrival starts.

    Raises:
        Unwritable: a name or a value would not mean itself in a rule, or udev does not make such a port.
    """
    if not _UNIT.fullmatch(unit):
        raise Unwritable(f"{unit!a} is no name of a service, such as {UNIT}")
    return _HEAD.format(unit=unit) + "".join(map(_rules, printers)) + _TAIL.format(unit=unit)


def _rules(printer: Printer) -> str:
    if not NAME.fullmatch(printer.name):
        raise Unwritable(f"printer {printer.name!a}: its name cannot be that of a link in /dev")
    if printer.port is not None:
        return _by_port(printer.name, printer.port)
    if printer.match:
        return _by_match(printer.name, printer.match)
    return f"\n# {printer.name}: has no port of its own, it follows OctoPrint's choice.\n"


def _by_port(name: str, port: str) -> str:
    place = _value(name, "port", port)
    if not place.startswith("/dev/") or "/../" in place:
        raise Unwritable(f"printer {name}: udev makes no {place}; set port to a link in /dev/serial/by-id")
    inside = place.removeprefix("/dev/")
    if inside == f"printer-{name}":
        raise Unwritable(
            f"printer {name}: {place} is the link that this rule makes; set port to one in /dev/serial/by-id"
        )
    if _NODE.fullmatch(inside):
        why = f"\n# {name}: no link, since {place} may be another device tomorrow.\n"
        return why + _line(f'KERNEL=="{inside}"', name, link=False)
    device = _BY_ID.fullmatch(inside)
    whole = _device_line(f'ENV{{ID_BUS}}=="usb", ENV{{ID_SERIAL}}=="{device[1]}"') if device else ""
    return f"\n# {name}\n{whole}" + _line(f'SYMLINK=="{inside}"', name)


def _by_match(name: str, match: Mapping[str, str]) -> str:
    conditions = {key: f'ENV{{{_property(name, key)}}}=="{_wish(name, key, match[key])}"' for key in match}
    whole = ""
    if "serial" in conditions:  # without one it would be all of a kind
        own = ", ".join(conditions[key] for key in _OF_THE_DEVICE if key in conditions)
        whole = _device_line(f'ENV{{ID_BUS}}=="usb", {own}')
    port = ", ".join(conditions.values())
    return f"\n# {name}\n{whole}" + _line(f'KERNEL=="tty[A-Z]*", {port}', name)


def _device_line(conditions: str) -> str:
    return f'SUBSYSTEM=="usb", ENV{{DEVTYPE}}=="usb_device", {conditions}, ENV{{ID_MM_DEVICE_IGNORE}}="1"\n'


def _line(conditions: str, name: str, *, link: bool = True) -> str:
    made = f'SYMLINK+="printer-{name}", ' if link else ""
    return (
        f'SUBSYSTEM=="tty", {conditions}, \\\n'
        f'    {made}TAG+="portretry", TAG+="systemd", ENV{{PORTRETRY_PRINTER}}="{name}", \\\n'
        f'    ENV{{ID_MM_DEVICE_IGNORE}}="1", ENV{{ID_MM_PORT_IGNORE}}="1"\n'
    )


def _property(name: str, key: str) -> str:
    try:
        return _PROPERTY[key]
    except KeyError:
        raise Unwritable(f"printer {name}: udev has no property for match.{key!a}") from None


def _wish(name: str, key: str, wish: str) -> str:
    value = _value(name, f"match.{key}", re.sub(" +", "_", wish.strip(" ")))  # as udev writes blanks
    if key in ("vendor", "product", "interface") and not _HEX.fullmatch(value):
        raise Unwritable(f"printer {name}: match.{key} must be small hexadecimal digits, is {value!a}")
    return value


def _value(name: str, setting: str, value: str) -> str:
    """The value, which means itself between quotation marks in any rule."""
    if len(value) > _LONGEST or not _PLAIN.fullmatch(value):
        raise Unwritable(
            f"printer {name}: {setting} has characters that udev would not have left there: {value[:60]!a}; "
            "take it as `portretry-udev ports` shows it"
        )
    return value
