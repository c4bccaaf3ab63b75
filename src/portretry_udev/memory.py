"""What must survive a restart of the service: why hands are off one printer, and for how long.

Knows files, and the time of day.  Must not know what a hold or a pause means; that is for the rules.
"""

import json
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from portretry_udev import files
from portretry_udev.events import Hold

_VERSION = 1
_RESUME = "resume"  # paused until a person says so; JSON has no infinity
_LAST = 2.0**53  # seconds since 1970: times beyond are no times
_LIMIT = 65536  # bytes; the file has some 200


@dataclass(frozen=True, slots=True)
class Remembered:
    """A hold, and the node for which it was made; ``identity`` None: of an earlier boot, not comparable.

    ``paused_for`` is what is left of a pause, in seconds; infinity: until ``resume``.
    """

    hold: Hold = Hold.NONE
    identity: Hashable = None
    paused_for: float = 0.0
    trouble: str = ""  # one line for people, when the file could not be understood


class Memory:
    """The file ``NAME.json`` in the state folder.

    Args:
        folder: the state folder; made when something is kept for the first time.
        name: of the printer.
        boot: the kernel's name for this boot; for tests.
        wall: seconds since 1970.
    """

    def __init__(
        self, folder: Path, name: str, *, boot: str | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self.path = folder / f"{name}.json"
        self._wall = wall
        self._boot = boot if boot is not None else _boot_id()

    def recall(self) -> Remembered:
        """What was kept.  A file that is not understood is set aside, and reads as a hold (hands off)."""
        try:
            with self.path.open(encoding="utf-8") as file:
                text = file.read(_LIMIT + 1)
        except FileNotFoundError:
            return Remembered()
        except (OSError, ValueError) as e:
            return self._not_understood(str(e))
        try:
            return self._parse(text)
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            return self._not_understood(str(e) or type(e).__name__)

    def keep(self, hold: Hold, identity: Hashable, paused_for: float = 0.0) -> None:
        """Write it, atomically and readable for its owner alone.

        The end of a pause is kept as a time of day: it goes on while the machine is off.

        Raises:
            OSError: the folder cannot be written.
        """
        kept = {
            "version": _VERSION,
            "hold": hold.value,
            "identity": list(identity) if isinstance(identity, tuple) else None,
            "boot": self._boot,
            "kept_at": self._wall(),
            "paused_until": self._until(paused_for),
        }
        files.write(self.path, json.dumps(kept).encode())

    def _until(self, paused_for: float) -> float | str | None:
        if paused_for <= 0:
            return None
        return _RESUME if math.isinf(paused_for) else self._wall() + paused_for

    def _left(self, kept: dict[str, object]) -> float:
        """Seconds that are left of a pause; never more than there were, whatever the clock says now.

        A Raspberry Pi has none of its own: at boot it may be in 1970, and the end of the pause far off.
        """
        until, kept_at = kept.get("paused_until"), kept.get("kept_at")
        if until is None:
            return 0.0
        if until == _RESUME:
            return math.inf
        if not isinstance(until, int | float) or not isinstance(kept_at, int | float):
            raise TypeError("its pause is odd")
        if not 0 <= kept_at <= until <= _LAST:  # nan fits no range
            raise ValueError("its pause is odd")
        return max(0.0, min(until - self._wall(), until - kept_at))

    def _parse(self, text: str) -> Remembered:
        if len(text) > _LIMIT:
            raise ValueError("it is far too large")
        kept = json.loads(text)
        if kept["version"] != _VERSION:
            raise ValueError(f"it is of version {kept['version']!r}")
        identity = kept["identity"]
        hold = Hold(kept["hold"])
        left = self._left(kept)
        if identity is None:
            return Remembered(hold, paused_for=left)
        if not isinstance(identity, list) or not all(isinstance(part, str | int) for part in identity):
            raise ValueError("its identity is odd")
        same_boot = self._boot != "" and kept["boot"] == self._boot
        return Remembered(hold, tuple(identity) if same_boot else None, left)

    def _not_understood(self, why: str) -> Remembered:
        aside = self.path.with_suffix(".json.corrupt")
        trouble = f"{self.path} is not understood ({why[:200]}), set aside as {aside.name}: hands off for now"
        try:
            self.path.replace(aside)
            self.keep(Hold.DELIBERATE, None)  # or the next start would find no file, and so no hold
        except OSError as e:
            trouble = f"{self.path} cannot be used ({e.strerror}): hands off for now"
        return Remembered(Hold.DELIBERATE, trouble=trouble)


def _boot_id() -> str:
    """The kernel's name for this boot: device numbers and inodes mean nothing in the next one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
