"""Which program the service runs, and whether root should.

Knows how a program is named for good, and who else could change what root is going to run.  Must not know
the unit it gets into.

A service of root's is as safe as its program: whoever can write to it, to its interpreter, or to a folder on
the way to either, is root at the next start.
"""

import grp
import os
import pwd
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

NAME = "portretry-udev"

_LINKS = (Path("/usr/local/bin"), Path("/usr/bin"))  # where installers put a link that outlives a move
_HOMES = ("/home", "/root", "/run/user")  # the unit hides them (ProtectHome=)
_PASSING = ("/tmp", "/var/tmp", "/run", "/dev/shm")  # noqa: S108 - named because nothing stays there
# systemd takes blanks, quotes, backslashes, $ and % for something else than themselves (systemd.service(5)).
_PLAIN = re.compile(r"/[A-Za-z0-9_./+,:=@~-]+")

CURE = (
    "Put it where only root can write, and install from there; in a clone of its source:",
    f"  sudo python3 -m venv /opt/{NAME}",
    f"  sudo /opt/{NAME}/bin/pip install '.[push]'",
    f"  sudo /opt/{NAME}/bin/{NAME} install",
)


def find(argv0: str, executable: str, links: Iterable[Path] = _LINKS) -> Path | None:
    """The name by which this program can be run for good; None: it has none.

    Args:
        argv0: how it was called; of ``python -m`` that is a module, and its script is the interpreter's
            neighbour.
        executable: Python's, as called: in a virtual environment that is the environment's.
        links: folders whose link to the program is the better name: it outlives a move of what it leads to.
    """
    called = Path(argv0 if "/" in argv0 else shutil.which(argv0) or argv0)
    candidates = [called] if called.name == NAME else []
    for candidate in (*candidates, Path(executable).with_name(NAME)):
        if candidate.is_file():
            program = Path(os.path.abspath(candidate))  # noqa: PTH100 - resolve() would follow the link
            better = (folder / NAME for folder in links)
            return next((link for link in better if _leads_to(link, program)), program)
    return None


def _leads_to(link: Path, program: Path) -> bool:
    return link.is_symlink() and link.resolve() == program.resolve()


def is_plain(path: Path) -> bool:
    """Whether its name means itself in a unit."""
    return _PLAIN.fullmatch(str(path)) is not None


def dangers(paths: Iterable[Path]) -> list[str]:
    """Why root's service should not run what lies there, one line each; the same folder is told once.

    Args:
        paths: the program, and what it consists of: its interpreter, its package.
    """
    found: dict[str, None] = {}
    for path in paths:
        for seen in dict.fromkeys((path, path.resolve())):
            if why := _danger(seen):
                found[why] = None
                break
    return list(found)


def _danger(path: Path) -> str:
    if not is_plain(path):
        return f"{ascii(str(path))[1:-1]} has characters that mean something else in a unit"
    for home in _HOMES:
        if path.is_relative_to(home):
            return f"{path} is in a home, which the service does not see (ProtectHome=)"
    for place in _PASSING:
        if path.is_relative_to(place):
            return f"{path} is gone with the next boot: nothing stays in {place}"
    for each in (path, *path.parents):
        if writer := _writer(each):
            return f"{each} can be changed by {writer}, who would so become root"
    return ""


def is_hidden(path: Path) -> bool:
    """Whether the service would not see it, or not for long (ProtectHome=, PrivateTmp=)."""
    return any(path.is_relative_to(place) for place in (*_HOMES, *_PASSING))


def _writer(path: Path) -> str:
    """Who but root can change it, or what is in it; empty: nobody."""
    try:
        found = path.lstat()
    except OSError:
        return ""  # whether it is there, and can be run, is not judged here
    if found.st_uid != 0:
        return _name(found.st_uid)
    if stat.S_ISLNK(found.st_mode):
        return ""  # its mode says nothing
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return "everybody"
    # Debian's /usr/local belongs to the group staff, which has no members unless somebody makes some.
    if found.st_mode & stat.S_IWGRP and (members := _members(found.st_gid)):
        return f"the group {grp.getgrgid(found.st_gid).gr_name} ({', '.join(members)})"
    return ""


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _members(gid: int) -> list[str]:
    """The users of a group, but for root."""
    try:
        listed = grp.getgrgid(gid).gr_mem
    except KeyError:
        return []
    own = [user.pw_name for user in pwd.getpwall() if user.pw_gid == gid and user.pw_uid != 0]
    return sorted({*listed, *own} - {"root"})
