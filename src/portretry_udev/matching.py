"""Which of several serial ports is the printer, by what is known of each: never a wrong one, never two.

Knows the words of `match` and USB chips that say nothing of what they are built into.  Must not ask udev or
touch a file: it goes over descriptions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

KEYS = frozenset({"serial", "vendor", "product", "path", "interface"})
HEX_KEYS = frozenset({"vendor", "product", "interface"})

# USB-serial chips by vendor and product id, as Linux knows them (ch341.c, ch343 in cdc-acm, cp210x.c,
# ftdi_sio_ids.h, pl2303.h).  They are in printers, and in GPS mice and Zigbee sticks as well.
_BRIDGES = {
    "1a86": frozenset({"5512", "5523", "7522", "7523", "55d2", "55d3", "55d4", "55d5", "55d8"}),
    "10c4": frozenset({"ea60", "ea61", "ea63", "ea70", "ea71"}),
    "0403": frozenset({"6001", "6010", "6011", "6014", "6015"}),
    "067b": frozenset({"2303", "2304", "23a3", "23b3", "23c3", "23d3", "23e3", "23f3"}),
}


@dataclass(frozen=True)
class Candidate:
    """A serial port, and what is known of it.

    Attributes:
        node: such as /dev/ttyUSB0.
        traits: by the keys `KEYS`; those that are unknown are left out.
        by_path: its link in /dev/serial/by-path, which names the USB socket.
    """

    node: str
    traits: Mapping[str, str] = field(default_factory=dict)
    by_path: str | None = None


@dataclass(frozen=True)
class Unchosen:
    """None was chosen: why, for people, and how many there were to choose from."""

    why: str
    fits: int


def choose(candidates: Iterable[Candidate], match: Mapping[str, str]) -> Candidate | Unchosen:
    """The one port that fits; none if two do, or if any other board with that chip would fit as well."""
    wish = " ".join(f"{key}={value}" for key, value in match.items())
    fits = [candidate for candidate in candidates if not unfit(candidate.traits, match)]
    if not match or not fits:
        return Unchosen(f"no serial port fits {wish}: the printer is unplugged or switched off", 0)
    if len(fits) > 1:
        return Unchosen(f"{len(fits)} serial ports fit {wish}: {_apart(fits)}", len(fits))
    if refusal := _too_common(fits[0], match):
        return Unchosen(f"{fits[0].node} fits {wish}, but so does any board with that chip: {refusal}", 1)
    return fits[0]


def unfit(traits: Mapping[str, str], match: Mapping[str, str]) -> str:
    """The first key that does not fit, with what is there instead; empty if all fit."""
    for key, wish in match.items():
        found = traits.get(key)
        if found is None:
            return f"{key} is unknown, not {wish}"
        if _plain(key, found) != _plain(key, wish):
            return f"{key} is {found}, not {wish}"
    return ""


def nameless(traits: Mapping[str, str]) -> bool:
    """Whether a board has nothing of its own by which to tell it from others of its make.

    A serial number that was left as it comes from the chip's maker is none: 0001 with CP210x (data sheet of
    the CP2102), zeros with copies of FTDI's.
    """
    serial = traits.get("serial", "")
    return not serial or (_is_bridge(traits) and serial.lstrip("0") in {"", "1"})


def _too_common(candidate: Candidate, match: Mapping[str, str]) -> str:
    """Why a bridge is not taken by this match alone, as what to set instead; empty if it may be taken."""
    if not _is_bridge(candidate.traits) or "path" in match:
        return ""
    if not nameless(candidate.traits):
        return "" if "serial" in match else f"add serial={candidate.traits['serial']} to `match`"
    if candidate.by_path:
        return f"set `port` to {candidate.by_path} instead"
    if path := candidate.traits.get("path"):
        return f"add path={path} to `match`"
    return "set `port` to its link in /dev/serial/by-path instead"


def _is_bridge(traits: Mapping[str, str]) -> bool:
    return traits.get("product", "") in _BRIDGES.get(traits.get("vendor", ""), ())


def _plain(key: str, value: str) -> str:
    if key in HEX_KEYS:
        return value.lower().removeprefix("0x").lstrip("0")
    return "_".join(value.split())  # as udev writes blanks in a serial number


def _apart(fits: Sequence[Candidate]) -> str:
    """Name the ports, and what a person could add to `match` to mean one of them."""
    for key in ("serial", "path", "interface", "product", "vendor"):
        values = [_plain(key, fit.traits.get(key, "")) for fit in fits]
        if len(set(values)) == len(values):
            told = ", ".join(f"{fit.node} has {key}={fit.traits.get(key, '(none)')}" for fit in fits)
            return f"{told}; add one of these to `match`"
    nodes = ", ".join(fit.node for fit in fits)
    return f"{nodes}; nothing tells them apart: set `port` to a link in /dev/serial/by-path"
