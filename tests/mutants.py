"""Break the rules, their tally and the firmware reader in ways that matter, one by one: tests notice each.

    python tests/mutants.py [PART OF A NAME]...

Each mutant is one exact replacement in a copy of the package, and names the tests that show why not to do
it.  A text that is not found exactly once is an error, and so is a test that is not there: no mutant dies out
unseen.  Exits with 1 if one survives.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "portretry_udev"
AT_ONCE = 2  # the smallest machine that this is run on has two cores
LIMIT = 60  # seconds; a mutant that loops is noticed, too


@dataclass(frozen=True)
class Mutant:
    """One way to break a module."""

    module: str
    name: str
    noticed_by: str  # the tests that say why not, as pytest's -k understands it
    text: str
    broken: str


def _rules(name: str, noticed_by: str, text: str, broken: str) -> Mutant:
    return Mutant("rules", name, noticed_by, text, broken)


def _firmware(name: str, noticed_by: str, text: str, broken: str) -> Mutant:
    return Mutant("firmware", name, noticed_by, text, broken)


def _tally(name: str, noticed_by: str, text: str, broken: str) -> Mutant:
    return Mutant("tally", name, noticed_by, text, broken)


MUTANTS = (
    _rules(
        "takes its own disconnect for a person's",
        "test_only_one_word_is_ours",
        "case Disconnecting() if t.now < t.s.own_until:",
        "case Disconnecting() if t.now < 0.0:",
    ),
    _rules(
        "takes a person's disconnect for its own",
        "test_only_one_word_is_ours",
        "            t.set(own_until=-math.inf)  # one word",
        "            t.kick()  # one word",
    ),
    _rules(
        "expects its own word for ever",
        "test_a_word_long_after_ours_is_a_persons",
        "        case Unwedged():\n            t.set(own_until=min(t.s.own_until, t.now + OWN_WORD))",
        "        case Unwedged():\n            t.set(own_until=math.inf)",
    ),
    _rules(
        "lets an answer from before end a hold",
        "test_a_slow_answer_from_before_the_disconnect",
        "still = t.outdated or (",
        "still = bool(",
    ),
    _rules(
        "lets an OctoPrint that is about to disconnect end a hold",
        "test_still_connected_ends_no_hold",
        "before in CONNECTED and t.now - s.held_at <= PARTING",
        "before is None",
    ),
    _rules(
        "does not hear of a fault",
        "test_a_fault_that_octoprint_forgets",
        "case Erred(fault=True):",
        "case Erred(fault=True) if t.now < 0.0:",
    ),
    _rules(
        "asks an OctoPrint that pushes",
        "test_while_it_pushes_it_is_asked_rarely",
        "if s.push and s.octo in CONNECTED:",
        "if s.push and s.octo is None:",
    ),
    _rules(
        "goes deaf when push breaks off",
        "test_push_breaks_off",
        "t.set(push=e.up)",
        "t.set(push=True)",
    ),
    _rules(
        "connects to a stranger",
        "test_another_printer_on_the_port",
        "if wants_identity(s.policy) and not s.known:",
        "if wants_identity(s.policy) and s.known is None:",
    ),
    _rules(
        "connects before it knows who it is",
        "test_a_firmware_that_never_says_who_it_is",
        "if wants_identity(s.policy) and not s.known:",
        "if wants_identity(s.policy) and s.known is False:",
    ),
    _rules(
        "believes a name from before the reboot",
        "test_another_printer_after_a_reboot",
        "booted_at=t.now, known=None)",
        "booted_at=t.now)",
    ),
    _rules(
        "frees OctoPrint on one count",
        "test_one_count_is_no_proof",
        "s.unheld < 2",
        "s.unheld < 1",
    ),
    _rules(
        "frees OctoPrint though it may hold the port",
        "test_what_was_not_seen_proves_nothing_later",
        "t.s.unheld + 1 if event.held is False",
        "t.s.unheld + 1 if not event.held",
    ),
    _rules(
        "frees OctoPrint at once where it cannot be seen",
        "test_a_slow_attempt_is_left_alone",
        "WEDGED_UNSEEN_AFTER if s.unseen else WEDGED_AFTER",
        "WEDGED_AFTER",
    ),
    _rules(
        "frees OctoPrint again and again",
        "test_freed_once_per_return",
        "if s.unwedged or paused(s, now)",
        "if paused(s, now)",
    ),
    _rules(
        "frees OctoPrint only once in its life",
        "test_freed_once_per_return",
        "lost=False, not_before=t.now, unwedged=False)",
        "lost=False, not_before=t.now)",
    ),
    _rules(
        "resets what may be printing",
        "test_what_may_print_is_not_reset_for_it",
        "drop_dtr=now - s.booted_at <= FRESH_BOOT",
        "drop_dtr=True",
    ),
    _rules(
        "never lets an OctoPrint have its start",
        "test_waits_for_start",
        "drop_dtr=now - s.booted_at <= FRESH_BOOT",
        "drop_dtr=False",
    ),
    _rules(
        "connects though another connector is preferred",
        "test_another_connector",
        "s.ill is not None or s.aside is not None or now < s.not_before",
        "s.ill is not None or now < s.not_before",
    ),
    _rules(
        "opens the port though another connector is preferred",
        "test_another_connector",
        "s.octo not in OFFLINE or s.aside is not None or paused(s, now)",
        "s.octo not in OFFLINE or paused(s, now)",
    ),
    _rules(
        "punishes one short connection",
        "test_a_short_connection_is_tried_again_at_once",
        "    if before:\n        t.set(not_before",
        "    if True:\n        t.set(not_before",
    ),
    _rules(
        "talks to a printer that prints",
        "test_busy_means_not_a_byte",
        "max(s.next_poke, s.busy_until, s.printing_until)",
        "max(s.next_poke, s.busy_until)",
    ),
    _rules(
        "takes a connection elsewhere for a word on this printer",
        "test_a_connection_elsewhere_ends_no_hold",
        "s.hold is not Hold.NONE and s.elsewhere is None",
        "s.hold is not Hold.NONE",
    ),
    _rules(
        "lets an attempt begin before OctoPrint has accepted it",
        "test_octoprint_takes_its_time_to_accept",
        "t.set(attempt=Attempt(t.now))",
        "t.set(attempt=t.s.attempt)",
    ),
    _rules(
        "acts on outdated answers",
        "test_a_node_from_after_the_question",
        "isinstance(t.event, Told) and not t.outdated",
        "isinstance(t.event, Told)",
    ),
    Mutant(
        "events",
        "takes words that it does not know for offline",
        "test_unknown_words",
        "OFFLINE = frozenset({Octo.OFFLINE,",
        "OFFLINE = frozenset({Octo.UNKNOWN, Octo.OFFLINE,",
    ),
    _rules(
        "makes an edge while a hold stands",
        "test_deliberate_where_an_open_would_reset",
        "(s.hold is Hold.NONE and now >= s.not_before)",
        "now >= s.not_before",
    ),
    _rules(
        "makes an edge in a back-off",
        "test_no_edge_in_a_back_off",
        "(s.hold is Hold.NONE and now >= s.not_before)",
        "s.hold is Hold.NONE",
    ),
    _rules(
        "takes every Disconnect for a loss",
        "test_deliberate",
        "    if octo is Octo.OFFLINE and stayed and",
        "    if octo is Octo.LOST and stayed and",
    ),
    _rules(
        "takes a failed attempt for a person",
        "test_octoprints_own_attempt_failed",
        "    elif s.session is Session.TRYING:\n",
        "    elif False:\n",
    ),
    _rules(
        "forgets that a fault stands",
        "test_fault",
        "octo is Octo.FAULT and not s.fault_held",
        "octo is Octo.FAULT and s.fault_held",
    ),
    _rules(
        "holds a fault again after the return",
        "test_fault_is_held_once",
        "s.fault_held and e.octo is Octo.FAULT",
        "False",
    ),
    _rules(
        "misses a fault right after its own connect",
        "test_fault_before_the_first_look_at_an_attempt",
        "t.set(fault_held=False)  # it forgets",
        "t.set(fault_held=True)  # it forgets",
    ),
    _rules(
        "remembers no hold",
        "test_service_restarts_after_a_deliberate_disconnect",
        "    t.do(Remember(hold, identity))\n",
        "",
    ),
    _rules(
        "takes the first look at the start for a return",
        "test_remembered_hold",
        "first_look=not e.configured",
        "first_look=False",
    ),
    _rules(
        "takes its own reset for a return",
        "test_our_own_banner_is_no_return",
        "s.own_edge and t.now - s.opened_at <= OWN_RESET",
        "False",
    ),
    _rules(
        "hammers a boot-looping board",
        "test_boot_loop",
        "if t.now - t.s.attempt_at >= t.s.policy.interval",
        "if True",
    ),
    _rules(
        "does not back off", "test_back_off", "interval * 2.0 ** min(max(failures - 1, 0), 16)", "interval"
    ),
    _rules(
        "overflows after years",
        "test_a_year_of_failures",
        "2.0 ** min(max(failures - 1, 0), 16)",
        "2.0 ** max(failures - 1, 0)",
    ),
    _rules(
        "backs off for ever",
        "test_back_off_is_clamped",
        "return min(max(BACK_OFF_LIMIT, interval), ",
        "return max(interval, ",
    ),
    _rules(
        "pokes while a hold stands",
        "test_deliberate",
        's.policy.probe == "firmware" and s.hold is Hold.NONE and',
        's.policy.probe == "firmware" and',
    ),
    _rules(
        "pokes while OctoPrint may be connected",
        "test_ill_while_listening",
        "s.octo in OFFLINE and s.ill is None\n",
        "True\n",
    ),
    _rules("pokes a bootloader", "test_quiet_start", "next_poke=t.now + QUIET_START", "next_poke=t.now"),
    _rules(
        "connects to a busy printer",
        "test_busy_means_hands_off",
        "if now < s.busy_until or now < s.printing_until or not",
        "if not",
    ),
    _rules("tells OctoPrint a shunned rate", "test_a_shunned_preference", " or not _baudrates(s):", ":"),
    _rules("searches at a shunned rate", "test_never_57600_where_it_is_shunned", " if b not in shun]", "]"),
    _rules(
        "keeps reading after the decision",
        "test_let_go_after_a_failed_attempt_with_the_port_held",
        "            t.do(Mute())\n",
        "",
    ),
    _rules(
        "keeps the port when OctoPrint connects",
        "test_octoprint_is_seen_connecting",
        "        t.set(session=Session.TRYING)\n        _let_go(t)\n    elif",
        "        t.set(session=Session.TRYING)\n    elif",
    ),
    _rules(
        "keeps the port in a pause",
        "test_pause_and_resume",
        "    if paused(t.s, now) and t.s.attempt is None:\n        _let_go(t)\n",
        "",
    ),
    _rules(
        "acts in a dry run",
        "test_a_dry_run_touches_nothing",
        "if s.policy.dry_run:\n        return\n    if told.opening",
        "if told.opening",
    ),
    _rules(
        "guards a printing OctoPrint",
        "test_guard",
        "s.octo is Octo.IDLE and _may_guard",
        "s.octo in CONNECTED and _may_guard",
    ),
    _rules(
        "guards again and again",
        "test_guard",
        "dtr_stays=t.s.dtr_stays or event.dtr_stays, guarded=True",
        "guarded=False",
    ),
    _rules(
        "trusts DTR after somebody else's open",
        "test_guard_again_after_somebody_elses_open",
        "dtr_stays=False, guarded=False, refusal=Refusal.BUSY",
        "refusal=Refusal.BUSY",
    ),
    _rules(
        "loses a kick",
        "test_a_kick_while_a_question_is_under_way",
        "            look_again=self.s.looking,\n",
        "            look_again=False,\n",
    ),
    _rules(
        "loses a kick when a question fails",
        "test_a_kick_while_a_question_fails",
        "t.now if s.look_again else t.now + _ill_period",
        "t.now + _ill_period",
    ),
    _rules("lets hints postpone", "test_hints_do_not_postpone", "t.kick(outdates=False)", "t.kick()"),
    _rules(
        "sleeps through what has come due",
        "test_a_late_look_at_the_deadline",
        "for t in times if t > s.at)",
        "for t in times if t > now)",
    ),
    _rules(
        "forgets a pause that ends",
        "test_pause_ends",
        ", s.printing_until, s.paused_until]",
        ", s.printing_until]",
    ),
    _rules(
        "opens anew on a change uevent",
        "test_change_event",
        "if before is not None and before.identity == e.node.identity:",
        "if False:",
    ),
    _rules(
        "keeps a hold over the node's return",
        "test_remembered_hold_and_the_node_comes_later",
        "if not first or (s.hold_identity",
        "if (s.hold_identity",
    ),
    _rules(
        "takes silence for an answer",
        "test_a_sign_of_life_is_believed_for_three_seconds",
        "now - state.alive_at <= ALIVE_FOR and",
        "state.alive_at > -math.inf and",
    ),
    _rules(
        "gives up on a stuck attempt never",
        "test_the_trap",
        "ATTEMPT_LIMIT = 90.0",
        "ATTEMPT_LIMIT = math.inf",
    ),
    _rules(
        "calls an attempt failed at once",
        "test_octoprint_says_offline_right_after_a_connect",
        "DEBOUNCE = 2.0",
        "DEBOUNCE = 0.0",
    ),
    _rules(
        "does not follow OctoPrint's baudrate",
        "test_the_preference_changes_while_listening",
        "    elif rate != t.s.rate:\n",
        "    elif t.s.rate is None:\n",
    ),
    _rules(
        "hammers an OctoPrint that refuses the key",
        "test_ill",
        "return back_off(s.policy.interval, s.ill_count)",
        "return s.policy.interval",
    ),
    _rules(
        "hands over again what failed before",
        "test_let_go_after_a_failed_attempt_with_the_port_held",
        "let_go=t.s.let_go or (tried and t.s.line is Line.HANDED)",
        "let_go=False",
    ),
    _rules("ignores `always`", "test_always", 'stayed and s.policy.reconnect == "on-return"', "stayed"),
    _rules(
        "ignores `start = wait`",
        "test_start_wait",
        "        hold = Hold.WAIT\n",
        "        hold = Hold.NONE\n",
    ),
    _firmware(
        "takes noise for life",
        "test_what_signs_allow",
        "return self not in (Sign.ERROR, Sign.GARBAGE)",
        "return self is not Sign.ERROR",
    ),
    _firmware(
        "takes a fault for life",
        "test_what_signs_allow",
        "return self not in (Sign.ERROR, Sign.GARBAGE)",
        "return self is not Sign.GARBAGE",
    ),
    _firmware(
        "says more than M115",
        "test_the_only_bytes",
        'POKE: bytes = b"\\nM115\\n"',
        'POKE: bytes = b"\\nM112\\n"',
    ),
    _firmware(
        "pokes without ending the half line",
        "test_the_only_bytes",
        'POKE: bytes = b"\\nM115\\n"',
        'POKE: bytes = b"M115\\n"',
    ),
    _firmware(
        "grows without bound",
        "test_a_flood_costs_linear_time_and_bounded_memory",
        "self._line += piece[: LINE_LIMIT - had]",
        "self._line += piece",
    ),
    _firmware(
        "never forgets a partial line",
        "test_a_line_counts_when_it_is_complete",
        "        self._line.clear()\n",
        "",
    ),
    _firmware("tries 1200 baud", "test_the_only_bytes", "38400, 19200, 9600)", "38400, 19200, 1200)"),
    _firmware(
        "takes half noise for text",
        "test_garbage_is_told_before_its_line_ends or test_wrong_baudrates_are_garbage or test_garbage_that",
        ") * 4 > len(text)",
        ") > len(text)",
    ),
    _firmware("misses `busy:`", "test_line", "(?:echo: ?)?busy:|.*paused", ".*paused"),
    _tally(
        "counts a short connection as a failed attempt",
        "test_short_connections",
        "failed=tally.failed + failures - short,",
        "failed=tally.failed + failures,",
    ),
    _tally(
        "counts a failed attempt as a short connection",
        "test_failed_attempts",
        "short = failures if before.session is Session.CONNECTED and before.attempt is None else 0",
        "short = failures",
    ),
    _tally(
        "counts a Disconnect each time that it is told",
        "test_a_disconnect_is_one_hold",
        "return after.hold is not before.hold and not (",
        "return after.held_at == after.at and not (",
    ),
    _tally(
        "counts a hold that is recalled",
        "test_a_recalled_hold",
        "isinstance(event, Started) and event.hold is after.hold",
        "False",
    ),
    _tally(
        "counts an open that raised DTR",
        "test_a_hand_over_spares_one",
        "        return not opens_with_edge(before)",
        "        return True",
    ),
    _tally(
        "does not count a hand-over",
        "test_where_dtr_cannot_be_kept",
        "kept = before.line is Line.HANDED or before.dtr_stays",
        "kept = before.dtr_stays",
    ),
    _tally(
        "counts hand-overs alone",
        "test_each_later_open",
        "        return not opens_with_edge(before)",
        "        return False",
    ),
    _tally(
        "counts where there is no DTR",
        "test_a_port_without_dtr",
        "if before.node is None or not before.node.modem:",
        "if before.node is None:",
    ),
    _tally(
        "counts each answer of a connected OctoPrint",
        "test_a_guarded_port or test_each_later_open",
        "    return connects and was_not and kept",
        "    return connects and kept",
    ),
    _tally(
        "counts a connection elsewhere as a recovery",
        "test_a_connection_elsewhere",
        "return so_far.done(now) if after.elsewhere is None else",
        "return so_far.done(now) if True else",
    ),
    _tally(
        "counts a connection elsewhere as an edge spared",
        "test_a_connection_elsewhere",
        "and event.octo in CONNECTED and event.elsewhere is None",
        "and event.octo in CONNECTED",
    ),
    _tally(
        "begins a recovery when the node appears",
        "test_recovery_runs_from",
        "    return isinstance(event, Heard) and event.sign.alive and after.line is Line.LISTENING",
        "    return True",
    ),
    _tally(
        "lets a recovery run in a hold",
        "test_recovery_does_not_run",
        "if s.node is None or s.hold is not Hold.NONE or",
        "if s.node is None or",
    ),
    _tally(
        "lets a recovery run in a pause",
        "test_recovery_does_not_run",
        " or paused(s, now) or s.policy.dry_run:",
        " or s.policy.dry_run:",
    ),
    _tally(
        "lets a recovery run while the firmware is silent",
        "test_recovery_does_not_run",
        "return s.unanswered < SILENT_AFTER and ",
        "return ",
    ),
    _tally(
        "gives a recovery up when an attempt fails",
        "test_recovery_includes",
        "    if s.attempt is not None:\n        return True",
        "    if s.failures:\n        return False",
    ),
)

TESTS = {
    "events": ["test_rules.py", "test_rules_machine.py"],
    "rules": ["test_rules.py", "test_rules_octoprint.py", "test_rules_machine.py"],
    "firmware": ["test_firmware.py", "test_rules.py"],
    "tally": ["test_tally.py"],
}


def _telling(mutant: Mutant) -> list[str]:
    """The files that have a test which should notice it: to read the others takes as long as the test."""
    names = re.findall(r"\w+", mutant.noticed_by.replace(" or ", " "))
    files = TESTS[mutant.module]
    telling = [each for each in files if any(name in (ROOT / "tests" / each).read_text() for name in names)]
    return telling or files


def _dies(mutant: Mutant) -> bool:
    """Whether the tests notice it.

    Raises:
        SystemExit: the text to break is not there exactly once.
    """
    source = (PACKAGE / f"{mutant.module}.py").read_text()
    found = source.count(mutant.text)
    if found != 1:
        raise SystemExit(
            f"{mutant.name}: its text is found {found} times in {mutant.module}.py:\n{mutant.text}"
        )
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        package = Path(folder, "src", "portretry_udev")
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        (package / f"{mutant.module}.py").write_text(source.replace(mutant.text, mutant.broken))
        tests = Path(folder, "tests")
        tests.mkdir()
        telling = _telling(mutant)
        for name in ("conftest.py", "story.py", "test_rules_machine.py", *telling):
            shutil.copy(ROOT / "tests" / name, tests)
        shutil.copy(ROOT / "pyproject.toml", folder)
        return _fails(Path(folder), ["-k", mutant.noticed_by, *(f"tests/{name}" for name in telling)])


def _fails(folder: Path, which: list[str]) -> bool:
    """Whether one of the tests fails there; that there is none, or an error of pytest's own, ends it all."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *which]
    environment = os.environ | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    if run.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run:\n{run.stdout}{run.stderr}")
    return run.returncode == 1


def main() -> int:
    """Run the mutants whose names hold one of the arguments, or all; say one line each."""
    wanted = [m for m in MUTANTS if not sys.argv[1:] or any(part in m.name for part in sys.argv[1:])]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        died = list(pool.map(_dies_and_says, wanted))
    sys.stdout.write(f"{sum(died)} of {len(died)} mutants died\n")
    return 0 if died and all(died) else 1


def _dies_and_says(mutant: Mutant) -> bool:
    died = _dies(mutant)
    sys.stdout.write(f"{'died    ' if died else 'SURVIVED'}  {mutant.module}: {mutant.name}\n")
    sys.stdout.flush()
    return died


if __name__ == "__main__":
    sys.exit(main())
