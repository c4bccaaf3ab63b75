"""Where OctoPrint is, if nobody has said: looked for on this machine, and on no other.

Knows its usual addresses, its homes and its processes, and by what several addresses are seen to be one
OctoPrint.  Must not know how it answers (``login``, ``rest``), nor ask a person which one is meant.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from portretry_udev import login, octoprint_config
from portretry_udev.config import address
from portretry_udev.login import LoginTrouble
from portretry_udev.octoprint_config import OctoPrintConfigTrouble
from portretry_udev.rest import Rest, Trouble, one_line

USUAL = ("http://127.0.0.1:5000", "http://127.0.0.1", "https://127.0.0.1")
"""OctoPrint itself, and the proxy that OctoPi has before it (haproxy, on 80 and 443)."""
PATIENCE = (2.0, 5.0)  # seconds, as ``Rest`` wants them; it is this machine

# OctoPrint's folder, and those of several OctoPrints as octoprint_deploy makes them (~/.NAME).
_HOMES = ("home/*/.*/config.yaml", "root/.octoprint/config.yaml", "var/lib/octoprint/.octoprint/config.yaml")
_MOST = 32  # addresses that are asked
_NAME = re.compile(r"<friendlyName>OctoPrint instance (?:on )?([^<]{1,200})</friendlyName>")
_UUID = re.compile(r"<UDN>uuid:([0-9A-Za-z-]{8,64})</UDN>")


@dataclass(frozen=True)
class Found:
    """An OctoPrint that answers.

    Attributes:
        url: where.
        name: what it calls itself; None: it does not tell.
        trouble: why it gives no keys to applications; None: it does.
        uuid: the same for all addresses of one OctoPrint; None: it does not tell.
    """

    url: str
    name: str | None = None
    trouble: LoginTrouble | None = None
    uuid: str | None = None


def examine(url: str, ca_file: Path | None = None) -> Found:
    """See whether an OctoPrint is there, by its answers and not by its mere being up; without any key.

    Raises:
        Trouble: it did not answer, or not like one.
    """
    trouble = None
    with contextlib.closing(Rest(url, None, ca_file=ca_file, timeout=PATIENCE)) as rest:
        try:
            login.probe(rest)
        except LoginTrouble as refusal:
            trouble = refusal
    described = _description(url, ca_file)
    name, uuid = _NAME.search(described), _UUID.search(described)
    # &#34; are the quotation marks around a name that somebody gave it
    shown = one_line(name[1].replace("&#34;", "")) if name else None
    return Found(url, shown, trouble, uuid[1] if uuid else None)


def _description(url: str, ca_file: Path | None) -> str:
    """What its plugin Discovery tells everybody (octoprint/plugins/discovery); empty where that is off."""
    with contextlib.closing(Rest(url, None, ca_file=ca_file, timeout=PATIENCE, plain=True)) as rest:
        try:
            return str(rest.ask("GET", "/plugin/discovery/discovery.xml").body)
        except Trouble:
            return ""


def search(
    urls: Iterable[str], look: Callable[[str], Found] = examine
) -> tuple[list[Found], dict[str, Trouble]]:
    """Ask at all these addresses at once.

    Returns:
        The OctoPrints, each once, in the order of the addresses; and what came of the other addresses.
    """

    def asked(url: str) -> Found | Trouble:
        try:
            return look(url)
        except Trouble as trouble:
            return trouble

    places = list(dict.fromkeys(urls))[:_MOST]
    with ThreadPoolExecutor(_MOST) as pool:
        answers = dict(zip(places, pool.map(asked, places), strict=True))
    found: dict[str, Found] = {}
    for url, answer in answers.items():
        if isinstance(answer, Found):
            found.setdefault(answer.uuid or url, answer)
    return list(found.values()), {url: each for url, each in answers.items() if isinstance(each, Trouble)}


# -- where to ask ------------------------------------------------------------------------------------------
def addresses(system: Path = Path("/")) -> list[str]:
    """Where OctoPrints of this machine may answer: the usual places first.

    Args:
        system: the root folder, for tests.
    """
    return list(dict.fromkeys([*USUAL, *_by_processes(system / "proc"), *_by_homes(system)]))


def _by_homes(system: Path) -> Iterator[str]:
    for path in itertools.chain.from_iterable(sorted(system.glob(pattern)) for pattern in _HOMES):
        with contextlib.suppress(OctoPrintConfigTrouble):  # not for us to read, or some other program's
            settings = octoprint_config.read(path)
            if settings.server_port is not None:
                yield address(settings)


def _by_processes(proc: Path) -> Iterator[str]:
    """Ports that were given by argument, as octoprint_deploy's services do."""
    for path in sorted(proc.glob("[0-9]*/cmdline")):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has just ended
        if "serve" in words and any(os.path.basename(word) == "octoprint" for word in words):  # noqa: PTH119 - any text
            found = re.search(r"\0--port[=\0]([0-9]{1,5})\0", "\0".join(words))
            if found:
                yield f"http://127.0.0.1:{found[1]}"
