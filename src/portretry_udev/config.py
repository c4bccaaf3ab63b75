"""What to watch and how: from flags, the environment, a TOML file and OctoPrint's config.yaml.

Knows every place of a setting (``settings`` knows its form), and reports all mistakes at once, each with its
path.  It must not know what the settings do: it asks no OctoPrint, no udev and opens no port.  It never looks
into a key beyond whether there is one (``keys``), and no message here shows one: neither the value of
``api_key_file``, where a person may have put the key itself, nor a URL, which may have a password in it.

Of the same setting in several places, the first of these counts: flag, environment (``PORTRETRY_INTERVAL``),
the printer's table in the file, the top of the file, OctoPrint's config.yaml, default.
"""

import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from portretry_udev import octoprint_config
from portretry_udev.keys import VARIABLE as KEY_VARIABLE
from portretry_udev.keys import KeySource, KeyTrouble, credential, usual_place
from portretry_udev.octoprint_config import OctoPrintConfigTrouble, OctoPrintSettings
from portretry_udev.settings import (
    FIRMWARE,
    FLAGS,
    MATCH,
    MOST_SHOWN,
    NAME,
    PRINTER,
    PRUSA,
    TABLES,
    TOP,
    BadError,
    absolute,
    shown,
    spoken,
)

DEFAULT_FILE = Path("/etc/portretry-udev/config.toml")
DEFAULT_INTERVAL = 5.0  # seconds, as PortRetry's
_LOG_BAUDRATE = 57600  # Prusa's Buddy firmware turns Marlin off and its log on (tud_cdc_line_coding_cb)
# Chips that sit on every second board: one of them says nothing about whose printer it is.
_BRIDGES = {"1a86": "CH340", "10c4": "CP210x", "0403": "FTDI", "067b": "PL2303"}
_OCTOPRINT_PORT = 5000  # OctoPrint's own default
_MOST_BYTES = 1 << 20
_ALONE = "printer"  # the name of the one printer that is set up by flags
NOWHERE = KeySource(None)  # stands for a key whose place nobody has named

_TYPE_THIS = (
    "portretry-udev watch --octoprint http://127.0.0.1:5000 --api-key-file /etc/portretry-udev/printer.key"
)


@dataclass(frozen=True)
class Printer:
    """One printer to watch.

    Attributes:
        name: letters, digits and ``_.-``, at most 64; also the name of its files and of its credential.
        octoprint: the URL of its OctoPrint, without a slash at the end.
        key: where the API key comes from; ``key.read`` gives it.
        port: the node, or a link to it, as configured; None: by ``match``, else as OctoPrint prefers.
        match: instead of ``port``, what udev must say of the device, by the keys serial, vendor, product,
            path and interface.
        firmware: what its firmware must say of itself (M115), by the keys machine and uuid.
        octoprint_port: OctoPrint's name for the port, where that differs (Docker).
        baudrate: baud; None: OctoPrint's.
        profile: OctoPrint's printer profile; None: OctoPrint's default.
        interval: seconds between two looks, from 0.5 to 3600.
        reconnect: ``on-return`` or ``always``.
        probe: ``firmware``, ``open`` or ``none``.
        avoid_reset: clear HUPCL, so that later opens do not reset the board.
        start: ``connect`` or ``wait``.
        push: listen to OctoPrint's push socket, too.
        octoprint_config: OctoPrint's config.yaml, to be followed for its port and baudrate.
        octoprint_settings: what that file said at load; its interval and address are taken over already.
        ca_file: certificates to trust instead of the system's, for https.
    """

    name: str
    octoprint: str
    key: KeySource
    port: str | None = None
    match: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    firmware: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    octoprint_port: str | None = None
    baudrate: int | None = None
    profile: str | None = None
    interval: float = DEFAULT_INTERVAL
    reconnect: Literal["on-return", "always"] = "on-return"
    probe: Literal["firmware", "open", "none"] = "firmware"
    avoid_reset: bool = True
    start: Literal["connect", "wait"] = "connect"
    push: bool = True
    octoprint_config: Path | None = None
    octoprint_settings: OctoPrintSettings | None = None
    ca_file: Path | None = None


@dataclass(frozen=True)
class Config:
    """All that was configured.

    Attributes:
        printers: the selected ones, in the order of the file.
        state_dir: the folder for what must survive a restart.
        control: the path of the control socket; None: the default.
        metrics_textfile: where metrics are written for node_exporter; None: nowhere.
    """

    printers: tuple[Printer, ...]
    state_dir: Path
    control: Path | None = None
    metrics_textfile: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where a key is to be got, and where it belongs.

    Attributes:
        name: the printer's.
        octoprint: the URL of its OctoPrint, without a slash at the end.
        key: where the configuration says that the key comes from; None: it does not say.
        ca_file: certificates to trust instead of the system's, for https.
    """

    name: str
    octoprint: str
    key: KeySource | None
    ca_file: Path | None


@dataclass(frozen=True)
class Survey:
    """What is there of a configuration, whole or not.

    Attributes:
        file: that was read; None: there is none.
        mistakes: as those of `Wrong`, but for keys: reading a printer's key tells.
        printers: those without a mistake of their own; ``key`` is `NOWHERE` where nobody has named its place.
        state_dir: as in `Config`; None: it could not be made out.
        control: likewise.
        metrics_textfile: likewise.
    """

    file: Path | None
    mistakes: tuple[str, ...]
    printers: tuple[Printer, ...]
    state_dir: Path | None = None
    control: Path | None = None
    metrics_textfile: Path | None = None


class Wrong(Exception):  # noqa: N818 - `except Wrong` reads well
    """The configuration cannot be used.

    Attributes:
        mistakes: all of them, one line for people each, with its path in the file, its flag or its variable.
    """

    def __init__(self, mistakes: Iterable[str]) -> None:
        # The same mistake may concern several printers; it is one mistake.
        self.mistakes = list(dict.fromkeys(mistakes))
        super().__init__("\n".join(self.mistakes))


# --- layers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """A setting as one place gives it; ``wrong`` stands for a value that was refused already."""

    value: Any
    where: str
    wrong: bool = False


_Layer = dict[str, _Given]


class _Loader:
    """Collects mistakes while it puts the layers together.

    Args:
        environ: the environment.
        keys_wanted: a key that is missing or cannot be used is a mistake.
        draft: what the file is taken to hold, instead of what it does.
    """

    def __init__(
        self, environ: Mapping[str, str], *, keys_wanted: bool = True, draft: bytes | None = None
    ) -> None:
        self.mistakes: list[str] = []
        self._draft = draft
        self._environ = environ
        self._keys_wanted = keys_wanted
        self._settings: dict[Path, OctoPrintSettings | None] = {}
        self.read: Path | None = None  # the file
        self.sound: tuple[Printer, ...] = ()  # printers without a mistake of their own

    def wrong(self, where: str, what: object) -> None:
        self.mistakes.append(f"{where}: {what}")

    def given(self, check: Callable[[object], Any], value: object, where: str) -> _Given:
        try:
            return _Given(check(value), where)
        except BadError as bad:
            self.wrong(where, bad)
            return _Given(None, where, wrong=True)

    # -- flags and environment

    def flags(self, flags: Mapping[str, object]) -> _Layer:
        """What the command line gives; None is: not given."""
        unknown = set(flags) - set(FLAGS)
        if unknown:
            raise TypeError(f"no such flags: {', '.join(sorted(unknown))}")  # our own mistake, not a person's
        return {
            name: self._spoken(name, value, f"--{name.replace('_', '-')}")
            for name, value in flags.items()
            if value is not None
        }

    def environment(self) -> _Layer:
        """What ``PORTRETRY_*`` gives; an empty variable is not given, as in compose files."""
        known = {f"PORTRETRY_{name.upper()}": name for name in FLAGS} | {KEY_VARIABLE: "api_key"}
        layer: _Layer = {}
        for variable, value in self._environ.items():
            if not variable.startswith("PORTRETRY_") or variable.startswith("PORTRETRY_TEST_"):
                continue
            if variable not in known:
                self.wrong(variable, f"there is no such setting{_meant(variable, known)}")
            elif value and variable == KEY_VARIABLE:
                layer["api_key"] = _Given(KeySource.from_environment(value), variable)
            elif value:
                layer[known[variable]] = self._spoken(known[variable], value, variable)
        if "api_key" in layer and "api_key_file" in layer:
            self.wrong(f"{KEY_VARIABLE} and PORTRETRY_API_KEY_FILE", "give one of them, not both")
        return layer

    def _spoken(self, name: str, value: object, where: str) -> _Given:
        check = {"config": absolute, **TOP, **PRINTER}[name]
        return self.given(check, spoken(name, value), where)

    # -- the file

    def file(self, path: Path, only: Collection[str]) -> tuple[_Layer, dict[str, _Layer]]:
        """The top of the file, and its printers; of those not selected, mistakes are for another start."""
        table = self._toml(path)
        if table is None:
            return {}, {}
        top: _Layer = {}
        for key, value in table.items():
            where = f"{path}: {_quoted(key)}"
            if key in TOP:
                top[key] = self.given(TOP[key], value, where)
            elif key in PRINTER or key in TABLES:
                self.wrong(where, "belongs to a printer: write it below its [printers.NAME]")
            elif key != "printers":
                self._unknown(key, where, [*TOP, "printers"])
        tables = table.get("printers", {})
        if not isinstance(tables, dict):
            self.wrong(f"{path}: printers", "must be tables, one [printers.NAME] each")
            return top, {}
        if not tables:
            self.wrong(f"{path}: printers", "there are none; write one as [printers.NAME]")
        layers: dict[str, _Layer] = {}
        for name, table in tables.items():
            before = len(self.mistakes)
            layers[name] = self._table(name, table, f"{path}: printers.{_quoted(name)}")
            if only and name not in only:
                del self.mistakes[before:]
        return top, layers

    def _toml(self, path: Path) -> dict[str, Any] | None:
        try:
            raw = self._draft if self._draft is not None else _start_of(path)
            if len(raw) > _MOST_BYTES:
                self.wrong(str(path), "is too big for a configuration")
                return None
            return tomllib.loads(raw.decode("utf-8"))
        except OSError as error:
            self.wrong(str(path), f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            self.wrong(str(path), f"is not UTF-8 text (line {line})")
        except ValueError as error:  # tomllib's own, and int()'s for a number of more than 4300 digits
            self.wrong(str(path), f"is not TOML: {error}")
        except RecursionError:
            self.wrong(str(path), "is not TOML: nested too deeply")
        return None

    def _table(self, name: str, table: object, where: str) -> _Layer:
        if not NAME.fullmatch(name):
            self.wrong(
                where, "a printer's name has 1 to 64 letters, digits, _ . or -, and begins with none of . -"
            )
        if not isinstance(table, dict):
            self.wrong(where, f"must be a table, [printers.NAME], is {shown(table)}")
            return {}
        layer: _Layer = {}
        for key, value in table.items():
            place = f"{where}.{_quoted(key)}"
            if key == "match":
                layer[key] = self._match(value, place)
            elif key == "firmware":
                layer[key] = self._words(value, place, FIRMWARE, 'machine = "Original Prusa i3 MK3S"')
            elif key in PRINTER:
                layer[key] = self.given(PRINTER[key], value, place)
            elif key in TOP:
                self.wrong(place, "belongs to the top of the file, above the first [printers.NAME]")
            else:
                self._unknown(key, place, [*PRINTER, *TABLES])
        if "port" in layer and "match" in layer:
            self.wrong(where, "port and match exclude each other; keep one")
        return layer

    def _unknown(self, key: str, where: str, known: Collection[str]) -> None:
        if key in ("api_key", "apikey", "key"):
            self.wrong(
                where,
                "the key itself does not belong here; write it into a file and name that in api_key_file",
            )
        else:
            self.wrong(where, f"there is no such setting{_meant(key, known)}")

    def _match(self, table: object, where: str) -> _Given:
        given = self._words(table, where, MATCH, 'serial = "CZPX..."')
        if not given.wrong and (fault := _too_wide(given.value)):
            self.wrong(where, fault)
            return _Given(given.value, where, wrong=True)
        return given

    def _words(
        self, table: object, where: str, known: Mapping[str, Callable[[object], str]], example: str
    ) -> _Given:
        """A small table of words."""
        if not isinstance(table, dict) or not table:
            self.wrong(where, f"must be a table such as {{ {example} }}, is {shown(table)}")
            return _Given({}, where, wrong=True)
        found: dict[str, str] = {}
        before = len(self.mistakes)
        for key, value in table.items():
            place = f"{where}.{_quoted(key)}"
            if key not in known:
                self._unknown(key, place, known)
                continue
            given = self.given(known[key], value, place)
            if not given.wrong:
                found[key] = given.value
        return _Given(MappingProxyType(found), where, wrong=len(self.mistakes) > before)

    # -- a printer from its layers

    def printer(self, name: str, given: _Layer, place: Callable[[str], str]) -> Printer | None:
        """Make one printer of all that was given for it; None if there is a mistake in it.

        Args:
            name: the printer's.
            given: the layers, merged.
            place: the path, in the file or as a flag, of a setting that is missing.
        """
        before = len(self.mistakes)
        settings = self._octoprint_config(given)
        self._judge_baudrate(given)
        self._judge_probe(given)
        url = self._octoprint(given, settings, place("octoprint"))
        interval = self._interval(given, settings)
        key = self._key(name, given, place("api_key_file"))
        if len(self.mistakes) > before or any(each.wrong for each in given.values()) or not url or not key:
            return None
        plain = (PRINTER.keys() | set(TABLES)) - {"octoprint", "api_key_file", "interval"}
        values = {setting: each.value for setting, each in given.items() if setting in plain}
        return Printer(name, url, key, interval=interval, octoprint_settings=settings, **values)

    def _octoprint_config(self, given: _Layer) -> OctoPrintSettings | None:
        named = given.get("octoprint_config")
        if named is None or named.wrong:
            return None
        path: Path = named.value
        if path not in self._settings:
            try:
                self._settings[path] = octoprint_config.read(path)
            except OctoPrintConfigTrouble as trouble:
                self.wrong(named.where, trouble)
                self._settings[path] = None
        return self._settings[path]

    def _judge_probe(self, given: _Layer) -> None:
        firmware, probe = given.get("firmware"), given.get("probe")
        if firmware is not None and probe is not None and probe.value in ("open", "none"):
            self.wrong(
                firmware.where, f'needs probe = "firmware": with "{probe.value}" nobody asks who answers'
            )

    def _judge_baudrate(self, given: _Layer) -> None:
        baudrate = given.get("baudrate")
        if baudrate is None or baudrate.value != _LOG_BAUDRATE:
            return
        match, port = given.get("match"), given.get("port")
        vendor = match.value.get("vendor") if match else None
        # by-id names begin with the maker's: usb-Prusa_Research__prusa3d.com__...
        if vendor == PRUSA or (port and "Prusa_Research" in str(port.value)):
            self.wrong(
                baudrate.where, "57600 baud is refused: it switches a Prusa board's firmware off; use 115200"
            )

    def _octoprint(self, given: _Layer, settings: OctoPrintSettings | None, missing: str) -> str | None:
        url = given.get("octoprint")
        if url is not None:
            return None if url.wrong else str(url.value)
        named = given.get("octoprint_config")
        if settings is not None and named is not None:
            place = f"{named.where}: {named.value}: server.host and server.port"
            derived = self.given(PRINTER["octoprint"], address(settings), place)
            return None if derived.wrong else str(derived.value)
        if named is None:  # else its trouble was told already
            self.wrong(missing, 'is missing; name the URL of its OctoPrint, such as "http://127.0.0.1:5000"')
        return None

    def _interval(self, given: _Layer, settings: OctoPrintSettings | None) -> float:
        interval, named = given.get("interval"), given.get("octoprint_config")
        if interval is None and settings is not None and named is not None and settings.interval is not None:
            place = f"{named.where}: {named.value}: plugins.portretry.interval"
            interval = self.given(TOP["interval"], settings.interval, place)
        return DEFAULT_INTERVAL if interval is None or interval.wrong else float(interval.value)

    def _key(self, name: str, given: _Layer, missing: str) -> KeySource | None:
        """The printer's key, and whether it can be read: a service without its key should not even start."""
        credentials = self._environ.get("CREDENTIALS_DIRECTORY")
        file, said = given.get("api_key_file"), given.get("api_key")
        if file is not None and file.wrong:
            return None
        source: KeySource
        if said is not None:
            source, place = said.value, said.where
        elif file is not None:
            source, place = KeySource.from_file(file.value), file.where
        elif credentials and _exists(credential(Path(credentials), name)):
            source, place = KeySource.from_credential(Path(credentials), name), missing
        elif _exists(usual := usual_place(name, self._environ)):
            source, place = KeySource.from_file(usual), missing
        elif not self._keys_wanted:
            return NOWHERE
        else:
            hint = (
                f"name a file (mode 0600) that holds OctoPrint's API key, pass the credential {name}.key, or "
                "get a key with `portretry-udev login`"
            )
            self.wrong(missing, f"is missing; {hint}")
            return None
        try:
            if self._keys_wanted:
                source.read()
        except KeyTrouble as trouble:
            self.wrong(place, trouble)
            return None
        return source

    # -- what printers must not share

    def judge_devices(self, claims: Mapping[str, _Layer]) -> None:
        """No two printers are one device (promise: a neighbour's printer is never touched)."""
        seen: dict[tuple[str, object], list[tuple[str, _Given]]] = {}
        for name, given in claims.items():
            setting = next((str(each) for each in ("port", "match", "octoprint") if each in given), None)
            if setting is not None and not given[setting].wrong:
                value = given[setting].value
                claim = tuple(sorted(value.items())) if setting == "match" else value
                seen.setdefault((setting, claim), []).append((name, given[setting]))
        for (setting, _), sharers in seen.items():
            if len(sharers) > 1:
                names = " and ".join(name for name, _ in sharers)
                what = "the same OctoPrint, and no port" if setting == "octoprint" else f"the same {setting}"
                self.wrong(sharers[-1][1].where, f"{names} have {what}; give each a port of its own")

    def judge_shared_key(self, spoken: _Layer, printers: Iterable[Printer | None]) -> None:
        """A key from a flag or the environment goes to one OctoPrint: another must not get to see it."""
        urls = {printer.octoprint for printer in printers if printer is not None}
        source = spoken.get("api_key_file") or spoken.get("api_key")
        if source is not None and len(urls) > 1:
            self.wrong(
                source.where,
                f"one key for {len(urls)} OctoPrints; name one printer, or set each api_key_file",
            )


# --- putting it together ----------------------------------------------------------------------------------


def load(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    only: Collection[str] = (),
    *,
    default_file: Path = DEFAULT_FILE,
) -> Config:
    """Everything that was configured, checked.

    The file is the one named by ``config`` (flag or variable), else ``default_file`` if it is there.  The
    latter is passed over when an OctoPrint is named by flag or variable but no printer by name: its printers
    belong to other OctoPrints, and would all have their keys sent to this one.  Then, and without any file,
    there is a single printer with the name ``printer``, made of flags and environment alone.  Otherwise what
    those give for a printer holds for every selected printer of the file.

    Args:
        flags: what the command line gave, by the names in `FLAGS`; None is: not given.
        environ: the environment: ``PORTRETRY_*``, and what systemd sets for credentials and the state.
        only: names of the printers to watch; empty is all.
        default_file: the file to use if none is named.

    Raises:
        Wrong: there are mistakes; it holds all of them.
        TypeError: ``flags`` has a name that is none of ours.
    """
    return _load(_Loader(environ), flags, environ, only, default_file)


def load_place(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    name: str | None = None,
    *,
    default_file: Path = DEFAULT_FILE,
) -> Place:
    """The place for the key of one printer: everything is checked as in `load`, but the key itself.

    Args:
        flags: as for `load`, and so are the others.
        environ: the environment.
        name: of the printer; None: the only one.
        default_file: the file to use if none is named.

    Raises:
        Wrong: there are mistakes, or several printers and none is named.
    """
    loader = _Loader(environ, keys_wanted=False)
    printers = _load(loader, flags, environ, () if name is None else (name,), default_file).printers
    if len(printers) > 1:
        names = ", ".join(printer.name for printer in printers)
        raise Wrong([f"there are several printers, name one of them: {names}"])
    (printer,) = printers
    key = None if printer.key == NOWHERE else printer.key
    return Place(printer.name, printer.octoprint, key, printer.ca_file)


def judge(text: str, path: Path) -> Config:
    """What a service would make of a file with this text, which need not be there yet; nor need its keys.

    Args:
        text: of the file.
        path: its place, for the words of mistakes.

    Raises:
        Wrong: there are mistakes.
    """
    loader = _Loader({}, keys_wanted=False, draft=text.encode("utf-8", "surrogatepass"))
    return _load(loader, {"config": str(path)}, {}, (), DEFAULT_FILE)


def survey(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    only: Collection[str] = (),
    *,
    default_file: Path = DEFAULT_FILE,
) -> Survey:
    """What can be made of a configuration, by whoever wants to know what is wrong; arguments as `load`."""
    loader = _Loader(environ, keys_wanted=False)
    try:
        found = _load(loader, flags, environ, only, default_file)
    except Wrong as wrong:
        return Survey(loader.read, tuple(wrong.mistakes), loader.sound)
    return Survey(loader.read, (), found.printers, found.state_dir, found.control, found.metrics_textfile)


def _load(
    loader: _Loader,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    only: Collection[str],
    default_file: Path,
) -> Config:
    environment, arguments = loader.environment(), loader.flags(flags)
    spoken = _merged([environment, arguments])
    named = spoken.get("config")
    top: _Layer = {}
    printers: list[Printer | None] = []
    if named is not None and named.wrong:
        raise Wrong(loader.mistakes)
    if named is not None or ((only or "octoprint" not in spoken) and _exists(default_file)):
        path = loader.read = default_file if named is None else named.value
        top, tables = loader.file(path, only)
        printers = _printers(loader, path, [top, environment, arguments], tables, only)
    elif "octoprint" in spoken or "octoprint_config" in spoken:
        if unknown := set(only) - {_ALONE}:
            loader.wrong(min(unknown), f'there is no such printer: without a file there is only "{_ALONE}"')
        printers = [loader.printer(_ALONE, spoken, lambda setting: f"--{setting.replace('_', '-')}")]
    else:
        loader.wrong("no configuration", f"{default_file} is not there; write it, or type: {_TYPE_THIS}")
    loader.judge_shared_key(spoken, printers)
    loader.sound = tuple(printer for printer in printers if printer is not None)
    if loader.mistakes:
        raise Wrong(loader.mistakes)
    state_dir, control, metrics_textfile = (
        _merged([top, environment, arguments]).get(name)
        for name in ("state_dir", "control", "metrics_textfile")
    )
    return Config(
        printers=loader.sound,
        state_dir=_default_state_dir(environ) if state_dir is None else state_dir.value,
        control=None if control is None else control.value,
        metrics_textfile=None if metrics_textfile is None else metrics_textfile.value,
    )


def _printers(
    loader: _Loader, path: Path, around: list[_Layer], tables: Mapping[str, _Layer], only: Collection[str]
) -> list[Printer | None]:
    """The selected printers of a file; ``around`` is its top, the environment and the flags."""
    top, *spoken = around
    for name in only:
        if tables and name not in tables:
            known = ", ".join(tables)
            loader.wrong(f"{path}: printers.{_quoted(name)}", f"there is no such printer; there are: {known}")
    selected = [name for name in tables if not only or name in only]
    claims = {
        name: _merged([top, table, *(spoken if name in selected else [])]) for name, table in tables.items()
    }
    loader.judge_devices(claims)
    return [
        loader.printer(name, claims[name], f"{path}: printers.{_quoted(name)}.{{}}".format)
        for name in selected
    ]


def _merged(layers: Iterable[_Layer]) -> _Layer:
    """The layers in one, the last the strongest; what excludes each other gives way to the stronger."""
    merged: _Layer = {}
    for layer in layers:
        for rivals in ({"port", "match"}, {"api_key", "api_key_file"}):
            if rivals & layer.keys():
                merged = {name: given for name, given in merged.items() if name not in rivals}
        merged |= layer
    return merged


def _too_wide(match: Mapping[str, str]) -> str:
    """Why a match would fit a neighbour's printer too; empty if it is narrow enough."""
    if "serial" in match or "path" in match:
        return ""
    if "vendor" not in match:
        return "fits devices of many makers; add serial, path or vendor"
    if chip := _BRIDGES.get(match["vendor"]):
        return (
            f"fits every board with a {chip} ({match['vendor']}), a neighbour's too; add serial or path, "
            'or set port = "/dev/serial/by-path/..." instead'
        )
    return ""


def address(settings: OctoPrintSettings) -> str:
    """Where an OctoPrint with these settings answers on this machine."""
    host = settings.host or ""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - every address, so the loopback one too
        host = "127.0.0.1"
    port = _OCTOPRINT_PORT if settings.server_port is None else settings.server_port
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    """The folder of systemd's ``StateDirectory=``, else by the Filesystem Hierarchy or XDG standard."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])  # systemd.exec(5): several are separated by colons
    if os.geteuid() == 0:
        return Path("/var/lib/portretry-udev")
    home = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME', '')}/.local/state"
    return Path(home) / "portretry-udev"


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES + 1)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it will tell why not
    return True


def _quoted(key: str) -> str:
    """A key as TOML writes it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) else shown(key)


def _meant(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name[:MOST_SHOWN], known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}"
