"""Where a printer's API key comes from, and whether it is kept well enough to be used.

Knows the three homes of a key: a file that nobody else can read, a systemd credential, and, for containers,
``PORTRETRY_API_KEY``.  It must not know what the key opens, and no text made here ever holds any of it:
messages name the file, its mode and its owner, never its content.
"""

import os
import pwd
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "PORTRETRY_API_KEY"

# OctoPrint's keys have 43 characters (older ones 32); anything much longer is some other file.
_LONGEST = 256
_MOST_BYTES = 1024  # with the white space around it
# A header can carry these and no others: requests would put a bad one into its error, key and all.
_KEY = re.compile(r"[!-~]+")
_READ_OR_WRITE_BY_OTHERS = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


class KeyTrouble(ValueError):  # noqa: N818 - "trouble" says as much as "error"
    """A key that cannot be had or must not be used; one line for people, which never holds the key.

    Attributes:
        fault: that line without what to do.
        cure: what to do; empty if there is nothing but to look.
    """

    def __init__(self, fault: str, cure: str = "") -> None:
        super().__init__(f"{fault}; {cure}" if cure else fault)
        self.fault = fault
        self.cure = cure


@dataclass(frozen=True)
class KeySource:
    """Where one printer's API key comes from.  Make one with the class methods.

    Attributes:
        path: the file that holds the key, or None when it came from the environment.
        credential: the file is a systemd credential.  systemd made it and guards it (mode 0400, or 0440 with
            an access list), so its mode and owner are not judged here.
    """

    path: Path | None
    credential: bool = False
    _given: str = field(default="", repr=False)

    @classmethod
    def from_file(cls, path: Path) -> "KeySource":
        """A file of ours: it must be private, see `read`."""
        return cls(path)

    @classmethod
    def from_credential(cls, directory: Path, printer: str) -> "KeySource":
        """The printer's systemd credential in ``$CREDENTIALS_DIRECTORY``, see `credential`."""
        return cls(credential(directory, printer), credential=True)

    @classmethod
    def from_environment(cls, key: str) -> "KeySource":
        """The value of `VARIABLE`."""
        return cls(None, _given=key)

    def __str__(self) -> str:
        """The source in words, fit for a message: ``key file /etc/portretry-udev/mk3.key``."""
        if self.path is None:
            return f"key in {VARIABLE}"
        return f"{'credential' if self.credential else 'key file'} {self.path}"

    def read(self) -> str:
        """The key as it is now.

        A file is read at every call (it is tiny), so that a new key works without a restart, and is judged at
        every call, so that a mode that was opened up later is noticed too.

        Raises:
            KeyTrouble: no such file, not ours to read, readable by others, or nothing like a key in it.
        """
        raw = (
            self._given.encode(errors="surrogateescape") if self.path is None else self._read_file(self.path)
        )
        return self._checked(raw)

    def _read_file(self, path: Path) -> bytes:
        try:
            # Looked at before it is opened: if a serial port is named here by mistake, opening it would reset
            # the printer.  What counts is the second look, at the open file: nobody can swap that one.
            self._judge_kind(path.stat())
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
                found = os.fstat(descriptor)
                self._judge_kind(found)
                if not self.credential:
                    _judge_privacy(str(self), path, found)
                return file.read(_MOST_BYTES + 1)
        except PermissionError:
            user = _user(os.geteuid())
            cure = "" if self.credential else f"run as root, or do: chown {user} {shlex.quote(str(path))}"
            raise KeyTrouble(f"{self} cannot be read by user {user}", cure) from None
        except OSError as error:
            raise KeyTrouble(f"{self}: {error.strerror}") from None

    def _judge_kind(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise KeyTrouble(f"{self} is not a regular file")

    def _checked(self, raw: bytes) -> str:
        # `from None` and no value in the texts: an error here must not carry the key along.
        try:
            key = raw.decode("ascii").strip()
        except UnicodeDecodeError:
            raise KeyTrouble(f"{self} holds characters that no API key has (only plain ASCII is)") from None
        if not key:
            raise KeyTrouble(f"{self} is empty", "put OctoPrint's API key into it")
        if len(key) > _LONGEST or len(raw) > _MOST_BYTES:
            raise KeyTrouble(f"{self} holds more than {_LONGEST} characters: that is no API key")
        if not _KEY.fullmatch(key):
            raise KeyTrouble(f"{self} holds more than one word: only the API key belongs in there")
        return key


def credential(directory: Path, printer: str) -> Path:
    """The file of a printer's systemd credential.

    ``PRINTER.key``; or ``keys_PRINTER.key``, as systemd calls it when it was given the whole folder
    (``LoadCredential=keys:/etc/portretry-udev``, systemd.exec(5)).
    """
    single, of_a_folder = directory / f"{printer}.key", directory / f"keys_{printer}.key"
    return of_a_folder if os.access(of_a_folder, os.F_OK) and not os.access(single, os.F_OK) else single


def usual_place(printer: str, environ: Mapping[str, str]) -> Path:
    """Where a printer's key is kept if nobody says otherwise: root's in /etc, a user's as XDG has it."""
    if os.geteuid() == 0:
        return roots_place(printer)
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '')}/.config"
    return Path(home) / "portretry-udev" / f"{printer}.key"


def roots_place(printer: str) -> Path:
    """Where root's service finds a printer's key if nobody says otherwise."""
    return Path(f"/etc/portretry-udev/{printer}.key")


def _judge_privacy(what: str, path: Path, found: os.stat_result) -> None:
    """Refuse a key file that others can read or write, with the line that cures it.

    The owner counts as well: who owns a file can change its mode and its content at any time.
    """
    cures, faults = [], []
    name = shlex.quote(str(path))
    if found.st_uid not in (0, os.geteuid()):
        faults.append(f"belongs to {_user(found.st_uid)}")
        cures.append(f"chown {_user(os.geteuid())} {name}")
    if found.st_mode & _READ_OR_WRITE_BY_OTHERS:
        faults.append(f"can be read or changed by others (mode {stat.S_IMODE(found.st_mode):04o})")
        cures.append(f"chmod 600 {name}")
    if faults:
        raise KeyTrouble(f"{what} {' and '.join(faults)}", f"do: {' && '.join(cures)}")


def _user(uid: int) -> str:
    """A user's name, or the number of one who has none (containers)."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
