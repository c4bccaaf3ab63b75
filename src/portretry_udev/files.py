"""Files that are there whole or not at all, and private from their first byte if they are to be.

Knows how a file is replaced so that neither a crash nor a power cut leaves half of one.  Must not know what
is in it.
"""

import os
import secrets
from pathlib import Path

PRIVATE = 0o600
PUBLIC = 0o644


def write(path: Path, data: bytes, mode: int = PRIVATE, *, lasting: bool = True) -> None:
    """Write a file, in place of the one that may be there, which stays as it is until the new one is whole.

    Args:
        path: the file; what is replaced is the name, so a link is replaced and not followed.
        data: all of it.
        mode: of the file, whatever the umask; `PRIVATE` from the first byte on.  Its folders are made.
        lasting: it outlives a power cut.  False: who writes it often, and anew after a start, need not wait
            for the disk, nor wear it out; after a power cut there may be an empty file.

    Raises:
        OSError: it cannot be written; the old file, if any, is as it was.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")  # a name has 255 bytes at most
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            if lasting:
                os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if lasting:
        _sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make it, and what is missing above it.  Root's are for all to look into; a user's are the user's.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    mode = 0o755 if os.geteuid() == 0 else 0o700
    for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        missing.mkdir(mode, exist_ok=True)


def _sync(folder: Path) -> None:
    """The new name outlives a power cut, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
