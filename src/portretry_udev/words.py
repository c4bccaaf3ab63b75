"""The rules' state in sentences for people: which state it is, and why, in words one can act on.

Knows the rules' state.  Decides nothing, and must not be asked by anything that decides.
"""

from typing import NamedTuple

from portretry_udev.events import CONNECTED, Hold, Ill, Octo, Refusal
from portretry_udev.rules import Line, State, baudrate, opens_with_edge, paused

_STUCK_AFTER = 60.0  # seconds of "Connecting"; OctoPrint itself gives up after 42 (facts 2.3)
_ODD_AFTER = 2.0  # seconds: words that contradict each other are mostly a change under way


STATES = (
    "connected",
    "connecting",
    "absent",
    "listening",
    "held",
    "faulted",
    "paused",
    "in-use",
    "backing-off",
    "unreachable",
    "unconfigured",
)
"""All that an account may be, as DESIGN section 6 has them."""


class Account(NamedTuple):
    """What ``status`` and the log say.

    Attributes:
        state: one of `STATES`.
        why: one sentence a person can act on.
        warn: somebody should look.
        key: unequal when there is something new to say; ``why`` itself where that counts no seconds.
        passing: over in a moment; not worth a line in the log.
    """

    state: str
    why: str
    warn: bool = False
    key: str = ""
    passing: bool = False


def account(s: State, now: float) -> Account:  # noqa: PLR0911 - one line a state
    """The state of things, in the order in which a person would want to hear it."""
    if paused(s, now):
        return Account("paused", "paused on request; `portretry-udev resume` ends it")
    if s.ill is not None:
        return _ill(s)
    if s.octo is None:
        return Account("unreachable", "asking OctoPrint", passing=True)
    if s.octo in CONNECTED:
        where = f" to {s.elsewhere}, which is not this printer's port" if s.elsewhere else ""
        return Account("connected", f"OctoPrint is connected{where} ({s.words})", warn=bool(s.elsewhere))
    if s.octo is Octo.UNKNOWN:
        return _unknown(s, now)
    if s.octo is Octo.CONNECTING or s.attempt is not None:
        return _connecting(s, now)
    return _offline(s, now)


def _ill(s: State) -> Account:
    warn = s.ill in (Ill.KEY, Ill.ODD, Ill.DECLINED)
    return Account("unreachable", s.ill_why, warn=warn)


def _unknown(s: State, now: float) -> Account:
    if now - s.octo_since < _ODD_AFTER:
        return Account("unreachable", "asking OctoPrint again", passing=True)
    why = f"hands off: OctoPrint says {s.words!r}, which is not understood"
    return Account("unreachable", why, warn=True)


def _connecting(s: State, now: float) -> Account:
    if s.octo is Octo.CONNECTING and now - s.octo_since > _STUCK_AFTER:
        cure = "`portretry-udev retry` gets it out; else press Disconnect and Connect there"
        stuck = f"is stuck in {s.words!r} again: may its user open the port?"
        seems = f"seems stuck in {s.words!r}:"
        return Account("connecting", f"OctoPrint {stuck if s.unwedged else seems} {cure}", warn=True)
    if s.attempt is None:
        # Most connects take less than a second, and then there is nothing to say of them.
        passing = now - s.octo_since < 1.0
        return Account("connecting", "OctoPrint is connecting by itself: hands off", passing=passing)
    return Account("connecting", "told OctoPrint to connect, waiting until it is operational")


def _offline(s: State, now: float) -> Account:  # noqa: C901, PLR0911 - one line a state
    if not s.configured:
        return Account("unconfigured", s.missing, warn=True)
    if s.aside is not None:
        why = f"hands off: {s.aside}; if it is to be, choose the serial connector in OctoPrint"
        return Account("unconfigured", why)
    if s.node is None:
        return Account("absent", f"waiting for the printer: {s.missing}")
    if s.offered is None:
        why = ": ".join(not_offered(s.node.path))
        return Account("unconfigured", why, warn=True, passing=s.looking)  # it may have been asked too early
    if s.hold is not Hold.NONE:
        return _held(s)
    if s.refusal is not None and s.line is Line.CLOSED:
        state = "in-use" if s.refusal is Refusal.BUSY else "absent"
        return Account(state, f"hands off: {s.refusal_why}", warn=s.refusal is not Refusal.BUSY)
    if now < s.busy_until or now < s.printing_until:
        return Account("listening", "the printer is busy: hands off until it is free")
    if s.policy.dry_run:
        return Account("listening", f"dry run: would open {s.node.path}, ask the firmware, and connect")
    if now < s.not_before and s.failures:
        why = f"{s.failure_why}: the next attempt in {_span(s.not_before - now)}, or when the printer returns"
        return Account("backing-off", why, warn=True, key=f"{s.failures} {s.failure_why}")
    if baudrate(s) is None:
        return Account("unconfigured", "57600 baud is not for Prusa boards: set another baudrate", warn=True)
    return _listening(s)


def not_offered(path: str) -> tuple[str, str]:
    """That OctoPrint has no such port in its list; and what to do."""
    cure = f"in its settings, Serial Connection, add the line {path} to Additional serial ports"
    return f"OctoPrint does not offer {path}", cure


def _held(s: State) -> Account:
    fault = s.fault_words or s.words
    ends = "until the printer is switched off and on, or replugged, or `portretry-udev retry`"
    if opens_with_edge(s):
        ends = "until the printer is replugged, or `portretry-udev retry` (opening the port would reset it)"
    match s.hold:
        case Hold.FAULT:
            return Account("faulted", f"hands off after a fault ({fault}) {ends}", warn=True)
        case Hold.WAIT:
            return Account("held", f"start = wait: hands off {ends}")
        case _:
            return Account("held", f"disconnected on purpose: hands off {ends}")


def _listening(s: State) -> Account:
    assert s.node is not None  # noqa: S101 - the caller has looked
    if s.garbled:
        why = f"garbage on {s.node.path} at {baudrate(s)} baud: is this its baudrate?"
        return Account("listening", why, warn=True)
    cause = f"OctoPrint lost the printer ({s.words}); " if s.octo in (Octo.LOST, Octo.FAULT) else ""
    if s.known is False:
        why = f"another printer answers on {s.node.path} ({s.stranger}), not the configured one: hands off"
        return Account("listening", why, warn=True)
    passing = s.line is Line.CLOSED  # about to be opened
    why = f"{cause}waiting until the firmware on {s.node.path} answers"
    return Account("listening", why, passing=passing)


def freed(s: State) -> str:
    """What is said when OctoPrint is told to disconnect because it is stuck (promise 9)."""
    return f"OctoPrint was stuck in {s.words!r} since it could not open the port: told it to disconnect"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"  # noqa: PLR2004 - as people say it
