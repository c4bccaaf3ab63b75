"""What a configuration needs of the service's unit beyond what that has: the lines of a drop-in.

Knows what ``systemd/portretry-udev.service`` takes away, and where a configuration wants some of it back.
Pure: it looks at names alone.  Must not know where the lines go (``install``), or what is missing by now
(``doctor``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from portretry_udev.config import Config

DROP_IN = Path("/etc/systemd/system/portretry-udev.service.d/configuration.conf")

# The unit's own settings, which a test compares with the unit itself.
MAJORS = frozenset({188, 166, 204, 4})  # DeviceAllow=
FOLDERS = (Path("/run/portretry-udev"), Path("/var/lib/portretry-udev"))  # RuntimeDirectory=, StateDirectory=
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # ProtectHome=
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - PrivateTmp=

# DevicePolicy=closed leaves ptys alone; their majors are those of the kernel's devices.txt.
_PTYS = frozenset(range(136, 144))


@dataclass(frozen=True)
class Need:
    """One line of a unit, and the reason why this configuration needs it."""

    line: str
    why: str


def needs(config: Config, majors: Iterable[int] = ()) -> tuple[Need, ...]:
    """What this configuration needs beyond the unit; nothing, in most cases.

    Args:
        config: root's.
        majors: the device numbers of the configured ports that are there.
    """
    return tuple(dict.fromkeys([*_reads(config), *_writes(config), *_opens(majors)]))


def drop_in(found: Iterable[Need]) -> str:
    """These needs as a drop-in; empty if there are none.  A line that serves several has several reasons."""
    lines: dict[str, list[str]] = {}
    for need in found:
        lines.setdefault(need.line, []).append(f"# {need.why}\n")
    if not lines:
        return ""
    text = "# What the configuration of portretry-udev needs beyond its unit.\n[Service]\n"
    return text + "".join(f"{''.join(reasons)}{line}\n" for line, reasons in lines.items())


def _reads(config: Config) -> Iterator[Need]:
    for printer in config.printers:
        key = None if printer.key.credential else printer.key.path
        for setting, path in (
            ("api_key_file", key),
            ("octoprint_config", printer.octoprint_config),
            ("ca_file", printer.ca_file),
            ("port", None if printer.port is None else Path(printer.port)),
        ):
            if path is None:
                continue
            if _is_in(path, HOMES):
                yield Need("ProtectHome=read-only", f"{setting} of {printer.name} is in a home: {path}")
            elif _is_in(path, TEMPORARY):
                yield Need(
                    "PrivateTmp=no", f"{setting} of {printer.name} is not in a /tmp of its own: {path}"
                )


def _writes(config: Config) -> Iterator[Need]:
    textfile, control = config.metrics_textfile, config.control
    for setting, folder in (
        ("state_dir", config.state_dir),
        ("control", None if control is None else control.parent),
        ("metrics_textfile", None if textfile is None else textfile.parent),
    ):
        if folder is None or _is_in(folder, FOLDERS):
            continue
        if _is_in(folder, TEMPORARY):
            yield Need("PrivateTmp=no", f"{setting} is not in a /tmp of its own: {folder}")
        # With "-" a folder that is missing is told by the service, which goes on; else it would not start.
        yield Need(f'ReadWritePaths="-{_escaped(folder)}"', f"{setting} is written there")


def _opens(majors: Iterable[int]) -> Iterator[Need]:
    for major in sorted(set(majors) - MAJORS - _PTYS):
        yield Need(f"DeviceAllow=char-{major} rw", "a port with a driver that is unlike most")


def _escaped(path: Path) -> str:
    """A path as it stands between quotes in a unit (systemd.syntax(7), and specifiers of systemd.unit(5))."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _is_in(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
