"""What the doctor thinks of a printer's OctoPrint, and of the key for it.

Pure: facts in, findings out.  Must not know where the facts come from, nor ports.
"""

import re
from collections.abc import Iterator

from portretry_udev.about import About
from portretry_udev.events import Octo
from portretry_udev.facts import Patient
from portretry_udev.findings import Finding, Level, fine, kind
from portretry_udev.octoprint import Answer, NotSetUp
from portretry_udev.rest import Kind as Fault
from portretry_udev.rest import Trouble

OLDEST_TRIED = (1, 10)

KEY_MISSING = kind(
    "key-missing",
    Level.PROBLEM,
    "The printer has no API key, or its file is not there.",
    "Get one from OctoPrint, and click Allow there.",
)
KEY_UNUSABLE = kind(
    "key-unusable",
    Level.PROBLEM,
    "The file of the API key can be read by others, belongs to somebody else, or holds no key.",
    "Give it to the service's user alone (chmod 600), or store a key anew.",
)
KEY_UNREAD = kind(
    "key-unread",
    Level.UNKNOWN,
    "The key is for root alone, so OctoPrint was not asked anything that needs one.",
    "Run the doctor as root.",
)
DOWN = kind(
    "octoprint-down",
    Level.PROBLEM,
    "OctoPrint does not run at the configured address, or is only just starting.",
    "Start it, and compare the address with that in your browser.",
)
SLOW = kind(
    "octoprint-slow",
    Level.PROBLEM,
    "OctoPrint does not answer in time, or its host is not found or not reached.",
    "Look whether your browser reaches it at that address; restart it if it hangs.",
)
ODD = kind(
    "octoprint-odd",
    Level.PROBLEM,
    "Something answers that is not OctoPrint, or only after a proxy's login, a redirect, or with a "
    "certificate that is not trusted.",
    "Set octoprint to the address that answers directly; for a certificate of your own set ca_file.",
)
NEW = kind(
    "octoprint-new",
    Level.PROBLEM,
    "OctoPrint is not set up yet, and so knows no API key.",
    "Finish its setup wizard in a browser.",
)
KEY_REFUSED = kind(
    "key-refused",
    Level.PROBLEM,
    "OctoPrint does not know the key: it was revoked, or its user is gone or deactivated.",
    "Get a new one, and click Allow in OctoPrint.",
)
PERMISSION = kind(
    "permission-missing",
    Level.PROBLEM,
    "The key's user may not look (STATUS), or not connect (CONNECTION).",
    "Grant it in OctoPrint's settings, Access Control.",
)
OLD = kind(
    "octoprint-old",
    Level.NOTE,
    "This OctoPrint is older than any that was tried (1.10).",
    "Update it, if something does not work.",
)
SAFE_MODE = kind(
    "octoprint-safe-mode",
    Level.NOTE,
    "OctoPrint runs in safe mode, without third-party plugins.",
    "Restart it to end that.",
)
RIVAL = kind(
    "plugin-rival",
    Level.PROBLEM,
    "A plugin of OctoPrint reconnects, too (PortRetry, PortRetryPlus, AutoConnectPlus, PortLister): it opens "
    "the port at the wrong moment, or undoes your Disconnect.",
    "Disable it in OctoPrint's plugin manager.",
)
AUTOCONNECT = kind(
    "octoprint-autoconnect",
    Level.NOTE,
    "OctoPrint connects by itself when it starts, before anybody has asked the firmware.",
    "Switch off its setting Auto-connect on startup, in Serial Connection: it is not needed any more.",
)
CONNECTOR = kind(
    "connector-foreign",
    Level.PROBLEM,
    "OctoPrint 2.0 prefers, or has, a printer that is not on a serial port (Moonraker, Bambu).",
    "If that is not as you want it, choose the serial connector in OctoPrint.",
)
UNCLEAR = kind(
    "octoprint-unclear",
    Level.PROBLEM,
    "OctoPrint says something that is not understood, so hands are off.",
    "Try again in a moment; if it stays, restart OctoPrint, and report what it says.",
)
STUCK = kind(
    "octoprint-opening",
    Level.NOTE,
    "OctoPrint is opening the port; if it could not, it stays so for ever. The service frees it, once.",
    "Try again in a moment; if it stays, `retry`, or press Disconnect there.",
)

_NEW_KEY = "portretry-udev login {}"
_TROUBLES = {Fault.DOWN: DOWN, Fault.SLOW: SLOW, Fault.ODD: ODD, Fault.REFUSED: ODD}


def key(patient: Patient) -> Iterator[Finding]:
    """Can the key be used?"""
    trouble, login = patient.key, f"sudo portretry-udev login {patient.name}"
    if trouble is None:
        yield fine("key", str(patient.printer.key))
    elif patient.hidden:
        yield KEY_UNREAD.found("the key is for root alone", "", "sudo portretry-udev doctor")
    elif patient.keyless:
        yield KEY_MISSING.found(trouble.fault, "", login)
    else:
        command = trouble.cure.removeprefix("do: ")
        yield KEY_UNUSABLE.found(trouble.fault, "", f"sudo {command}" if command != trouble.cure else login)


def _is_refused(patient: Patient) -> bool:
    """Whether OctoPrint does not know the key; to one that it knows it names its user."""
    answer, found = patient.answer, patient.about
    if not isinstance(answer, Trouble) or answer.kind is not Fault.KEY or isinstance(answer, NotSetUp):
        return False
    return found is None or found.user is None or not found.missing


def reach(patient: Patient) -> Iterator[Finding]:
    """Is it there, and does it take our key?"""
    answer = patient.answer
    if not isinstance(answer, Trouble):
        return
    if isinstance(answer, NotSetUp):
        yield NEW.found(str(answer))
    elif answer.kind is not Fault.KEY:
        yield _TROUBLES[answer.kind].found(str(answer))
    elif _is_refused(patient):
        yield KEY_REFUSED.found(patient.verdict or str(answer), "", _NEW_KEY.format(patient.name))


def about(patient: Patient) -> Iterator[Finding]:
    """What is it, and what may we?"""
    found = patient.about
    if found is None or _is_refused(patient) or isinstance(patient.answer, NotSetUp):
        return  # what nobody's key may is no news
    kinds = {"permissions": PERMISSION, "safe mode": SAFE_MODE, "rival": RIVAL}
    for remark in found.remarks():
        yield kinds[remark.subject].found(remark.what, remark.cure)
    if _is_old(found):
        yield OLD.found(f"OctoPrint {found.version} is older than any that was tried")
    if found.autoconnect:
        yield AUTOCONNECT.found("OctoPrint connects by itself when it starts")
    if not found.missing and isinstance(patient.answer, Answer):
        user = f", key of user {found.user}" if found.user else ""
        yield fine("OctoPrint", f"{found.version or 'of an unknown version'}{user}")


def _is_old(found: About) -> bool:
    parts = re.match(r"(\d{1,4})\.(\d{1,4})", found.version or "")
    return parts is not None and (int(parts[1]), int(parts[2])) < OLDEST_TRIED


def connection(patient: Patient) -> Iterator[Finding]:
    """What is it doing?"""
    answer = patient.answer
    if not isinstance(answer, Answer):
        return
    words = answer.job if answer.job == answer.connection else f"{answer.connection} / {answer.job}"
    if answer.aside:
        yield CONNECTOR.found(answer.aside)
    elif answer.octo is Octo.UNKNOWN:
        yield UNCLEAR.found(f"OctoPrint says {words!r}, which is not understood")
    elif answer.opening:
        yield STUCK.found(f"OctoPrint says {words!r}", "", f"portretry-udev retry {patient.name}")
    else:
        error = f" ({answer.error})" if answer.error else ""
        yield fine("connection", f"{answer.job}{error}")


CHECKS = (key, reach, about, connection)
