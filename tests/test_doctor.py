"""What `doctor` finds: each finding is provoked, the advised cure is applied, and it is gone."""

import dataclasses
import grp
import os
import pwd
import re
from pathlib import Path

import pytest

from bench import KEY
from clinic import ALL_CAPABILITIES, NOW, STRANGER, Scripted, clinic, no_room, no_writing
from helpers import Daemon, assert_eventually
from portretry_udev import control, control_server, doctor_facts
from portretry_udev.devices import Marks, Missing, Port, Wanted
from portretry_udev.doctor import CATALOGUE, Level
from portretry_udev.facts import Access, Process
from portretry_udev.keys import KeyTrouble
from portretry_udev.listing import Row
from portretry_udev.port import Holder

TTY, DAEMON = grp.getgrnam("tty").gr_gid, pwd.getpwnam("daemon").pw_uid
BY_ID = "/dev/serial/by-id/usb-1a86_USB_Serial-if00-port0"
BY_PATH = "/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0"


@pytest.fixture
def ill(tmp_path):
    with clinic(tmp_path) as machine:
        yield machine


def test_a_machine_that_is_well_has_no_finding_but_what_is_well(ill):
    """The exit status says it: a person with nothing wrong is not sent anywhere."""
    report = ill.examine()

    assert [finding.id for finding in report.all if finding.level is not Level.OK] == []
    assert report.healthy
    assert {finding.id for finding in report.all} >= {
        "configuration",
        "service",
        "unit",
        "key",
        "port",
        "events",
    }


# -- provoke, cure ---------------------------------------------------------------------------------------
def attribute(name, wrong, right):
    """What is wrong with the machine, and what it is after the cure."""
    return lambda ill: setattr(ill, name, wrong), lambda ill: setattr(ill, name, right)


def entry(table, key, wrong, right):
    return (
        lambda ill: getattr(ill, table).__setitem__(key, wrong),
        lambda ill: getattr(ill, table).__setitem__(key, right),
    )


def file(name, wrong, right):
    return lambda ill: ill.write(name, wrong), lambda ill: ill.write(name, right)


def both(*acts):
    def act(ill):
        for each in acts:
            each(ill)

    return act


def as_if_plugged(ill):
    """Its port is configured by what udev calls it, so that there are rules for it."""
    ill.settings |= {"port": None, "match": {"serial": "CZPX1", "vendor": "2c99"}}
    ill.devices.said = found(ill)
    ill.printers_rule()


def found(ill):
    """The printer's node, as the real `Devices` finds it."""
    return ill.devices._real.find(Wanted(str(ill.bench.link)))


def missing(kind, why, cure="", *, settling=False):
    wrong = Missing(why, settling, kind, cure)
    return lambda ill: setattr(ill.devices, "said", wrong), lambda ill: setattr(ill.devices, "said", None)


def marks(**properties):
    return Marks(frozenset({"systemd"}), properties, known=True)


def mark(**properties):
    return lambda ill: setattr(ill.devices, "marked", marks(**properties))


def state(name, why="for a reason"):
    def provoke(ill):
        ill.watched.state, ill.watched.why = name, why

    def cure(ill):
        ill.watched.state, ill.watched.why = "connected", "OctoPrint is connected"

    return provoke, cure


def key_file(act):
    return lambda ill: act(ill.bench.key_file)


def holder(name):
    def provoke(ill):
        ill.end = ill.hold(name)

    return provoke, lambda ill: ill.end()


def printers_rule_is_missing(ill):
    as_if_plugged(ill)
    ill.write("etc/udev/rules.d/99-portretry-printers.rules", None)


def rule_is_off(ill):
    rule = ill.write("etc/udev/rules.d/99-portretry.rules", None)
    rule.symlink_to("/dev/null")
    ill.write("usr/lib/udev/rules.d/99-portretry.rules", "# the vendor's\n")


def power_is_auto(ill):
    ill.devices.usb = ill.folder / "usb1"
    (ill.devices.usb / "power").mkdir(parents=True)
    (ill.devices.usb / "power/control").write_text("auto\n")


def unwatched(ill):
    ill.watched.name = "another"
    ill.server.replace([ill.watched])


def read_again(ill):
    ill.watched.name = ill.bench.name
    ill.server.replace([ill.watched])


def chancy(ill):
    port = Port("/dev/ttyUSB0", BY_ID, BY_PATH, "1a86", "7523")
    ill.settings["port"] = BY_ID
    shared = "shared by every board with this chip: use by-path"
    ill.patient["row"] = Row(port, unusable={"by_id": shared})
    name(ill, BY_ID)


def name(ill, path):
    """The node that is found is called so, and can be reset by an open."""
    ill.devices.node |= {"path": path, "modem": True}
    ill.settings["port"] = str(ill.bench.link)


def hide_home(ill):
    ill.unit["ProtectHome"] = "yes"
    ill.settings["api_key_file"] = "/home/pi/mk3.key"


def strict(ill):
    """What may be written to only begins as the folder does."""
    ill.unit |= {"ProtectSystem": "strict", "ReadWritePaths": f"-{ill.state}s -{ill.socket.parent}s"}


def handed_over(ill, *lines):
    """These lines are in a drop-in of the unit."""
    ill.written += "\n# /etc/systemd/system/portretry-udev.service.d/k.conf\n[Service]\n" + "\n".join(lines)


def strange_name(ill):
    """The folder's name is one that a unit's line has to escape."""
    ill.top["state_dir"] = str(ill.folder / "at 100%")
    ill.unit |= {"ProtectSystem": "strict", "ReadWritePaths": f"{ill.socket.parent}"}


def rare(ill):
    """None of the entries is that of 216: neither a longer number, nor one that is only to be read."""
    ill.unit |= {"DevicePolicy": "closed", "DeviceAllow": "char-2160 rw; char-216 r; char-166 rw"}
    ill.write("proc/devices", "Character devices:\n  4 tty\n216 rfcomm\n\nBlock devices:\n216 char\n")
    ill.devices.node["number"] = os.makedev(216, 0)


CURES = [
    # -- the machine
    ("configuration-wrong", *entry("top", "interval", -1, 5.0)),
    ("events-kernel", *file("proc/net/unix", "none\n", "0: 2 0 1 5 1 23456 /run/udev/control\n")),
    ("events-none", *file("proc/self/uid_map", "0 100000 65536\n", "0 0 4294967295\n")),
    (
        "events-unheard",
        lambda ill: setattr(ill.devices, "hears", False),
        lambda ill: setattr(ill.devices, "hears", True),
    ),
    ("events-untried", *entry("kernel", "user", STRANGER, 0)),
    ("events-untried", *file("sys/class/tty/tty62/uevent", None, "")),
    ("inotify-exhausted", *entry("kernel", "deaf", lambda: "no inotify instance left", lambda: "")),
    ("clock-wrong", *entry("kernel", "now", lambda: 12.0, lambda: NOW)),
    ("clock-unsynchronised", *entry("kernel", "synchronised", lambda: False, lambda: True)),
    ("state-read-only", *entry("kernel", "space", no_writing, os.statvfs)),
    ("state-full", *entry("kernel", "space", no_room, os.statvfs)),
    (
        "state-denied",
        both(lambda ill: ill.state.chmod(0o700), lambda ill: ill.serve(user=STRANGER, capabilities="0")),
        lambda ill: ill.state.chmod(0o777),
    ),
    (
        "state-spoilt",
        lambda ill: (ill.state / "mk3.json.corrupt").touch(),
        lambda ill: (ill.state / "mk3.json.corrupt").unlink(),
    ),
    (
        "undervoltage",
        both(
            file("sys/class/hwmon/hwmon1/name", "rpi_volt\n", None)[0],
            file("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n", None)[0],
        ),
        file("sys/class/hwmon/hwmon1/in0_lcrit_alarm", None, "0\n")[1],
    ),
    ("rule-missing", *file("etc/udev/rules.d/99-portretry.rules", None, "# installed\n")),
    ("rule-off", rule_is_off, lambda ill: (ill.root / "etc/udev/rules.d/99-portretry.rules").unlink()),
    ("printers-rule-missing", printers_rule_is_missing, lambda ill: ill.printers_rule()),
    (
        "printers-rule-old",
        both(as_if_plugged, lambda ill: ill.printers_rule("# of last year\n")),
        lambda ill: ill.printers_rule(),
    ),
    (
        "printers-rule-impossible",
        lambda ill: ill.settings.update(port="/dev/serial/by-id/usb-any*-if00"),
        as_if_plugged,
    ),
    # -- the service
    ("systemd-none", *attribute("systemd", False, True)),
    ("unit-unread", *attribute("systemctl", "Failed to connect to bus", None)),
    ("unit-missing", *entry("unit", "LoadState", "not-found", "loaded")),
    ("unit-masked", *entry("unit", "LoadState", "masked", "loaded")),
    ("unit-disabled", *entry("unit", "UnitFileState", "disabled", "enabled")),
    ("unit-failed", *entry("unit", "ActiveState", "failed", "active")),
    ("unit-failed", *entry("unit", "SubState", "auto-restart", "running")),
    (
        "unit-stopped",
        both(entry("unit", "ActiveState", "inactive", "")[0], lambda ill: ill.stop()),
        both(entry("unit", "ActiveState", "", "active")[1], lambda ill: ill.serve()),
    ),
    ("unit-lacks", hide_home, entry("unit", "ProtectHome", "", "read-only")[1]),
    ("unit-lacks", *entry("unit", "PrivateTmp", "yes", "no")),
    ("unit-lacks", strict, lambda ill: ill.unit.update(ReadWritePaths=f"-{ill.state} -{ill.socket.parent}")),
    ("unit-lacks", strict, lambda ill: ill.unit.update(ReadWritePaths=f'"-/srv/a b" {ill.state.parent}')),
    (
        "unit-lacks",
        strange_name,
        lambda ill: ill.unit.update(ReadWritePaths=f'"-{ill.folder}/at 100%" {ill.socket.parent}'),
    ),
    ("unit-lacks", rare, lambda ill: ill.unit.update(DeviceAllow="char-188 rw; char-216 rw")),
    ("unit-lacks", rare, lambda ill: ill.unit.update(DeviceAllow="char-rfc* rw; char-188 rw")),
    ("unit-changed", *entry("unit", "NeedDaemonReload", "yes", "no")),
    ("unit-unwatched", *entry("unit", "WatchdogUSec", "0", "2min")),
    ("unit-unwatched", *entry("unit", "Type", "simple", "notify")),
    (
        "service-absent",
        both(attribute("systemd", False, True)[0], lambda ill: ill.stop()),
        lambda ill: ill.serve(),
    ),
    ("service-silent", lambda ill: ill.hang(), lambda ill: ill.serve()),
    ("service-deaf", *attribute("told", "none", "udev")),
    (
        "key-denied",
        lambda ill: (
            ill.serve(user=STRANGER),
            handed_over(ill, "LoadCredential=keys:/etc", "LoadCredential="),
        ),
        lambda ill: handed_over(ill, "LoadCredential=keys:/etc/portretry-udev"),
    ),
    (
        "service-weak",
        lambda ill: ill.serve(capabilities="4"),
        lambda ill: ill.serve(capabilities=ALL_CAPABILITIES),
    ),
    ("printer-unwatched", unwatched, read_again),
    ("printer-held", *state("held")),
    ("printer-faulted", *state("faulted")),
    ("printer-paused", *state("paused")),
    ("printer-silent", *state("listening")),
    ("printer-backing-off", *state("backing-off")),
    ("printer-waiting", *state("in-use")),
    # -- the key and OctoPrint
    ("key-missing", key_file(lambda file: file.unlink()), lambda ill: ill.bench.write_key(KEY)),
    (
        "key-missing",
        lambda ill: ill.settings.update(api_key_file=None),
        lambda ill: ill.settings.update(api_key_file=str(ill.bench.key_file)),
    ),
    ("key-unusable", key_file(lambda file: file.chmod(0o644)), key_file(lambda file: file.chmod(0o600))),
    ("key-unusable", lambda ill: ill.bench.write_key("two words"), lambda ill: ill.bench.write_key(KEY)),
    (
        "key-refused",
        lambda ill: ill.bench.write_key("another_key_of_an_octoprint_0123"),
        lambda ill: ill.bench.write_key(KEY),
    ),
    ("octoprint-down", lambda ill: ill.bench.octoprint.stop(), lambda ill: ill.bench.octoprint.start()),
    (
        "octoprint-slow",
        lambda ill: ill.settings.update(octoprint="http://no-such-host.invalid"),
        lambda ill: ill.settings.update(octoprint=ill.bench.octoprint.url),
    ),
    # -- the port
    (
        "port-unknown",
        both(
            entry("settings", "port", None, None)[0],
            lambda ill: setattr(ill.bench.octoprint, "port_preference", None),
        ),
        lambda ill: ill.settings.update(port=str(ill.bench.link)),
    ),
    ("port-absent", lambda ill: ill.bench.printer.unplug(), lambda ill: ill.bench.printer.plug()),
    (
        "port-other",
        lambda ill: ill.settings.update(port="/dev/null"),
        lambda ill: ill.settings.update(port=str(ill.bench.link)),
    ),
    ("port-settling", *missing("absent", "udev is still preparing it", settling=True)),
    ("port-stale", *missing("stale", "it is stale; restart the container", "restart the container")),
    ("port-without-node", *missing("no node", "has no node here: `mknod`", "`mknod`")),
    ("port-ambiguous", *missing("ambiguous", "2 serial ports fit")),
    ("port-name", chancy, lambda ill: name(ill, BY_PATH)),
    (
        "brltty-takes-it",
        both(lambda ill: ill.bench.printer.unplug(), lambda ill: ill.runs("brltty")),
        lambda ill: ill.ends(),
    ),
    (
        "port-denied",
        both(
            lambda ill: ill.bench.link.resolve().chmod(0o600),
            lambda ill: ill.serve(user=STRANGER, capabilities="0"),
        ),
        lambda ill: ill.bench.link.resolve().chmod(0o666),
    ),
    (
        "port-denied-octoprint",
        both(
            lambda ill: ill.bench.link.resolve().chmod(0o600),
            entry("patient", "around", (Process(9, STRANGER, frozenset()),), ())[0],
        ),
        lambda ill: ill.bench.link.resolve().chmod(0o666),
    ),
    ("port-held", *holder("minicom")),
    ("port-held-octoprint", *holder("octoprint")),
    (
        "port-holders-unseen",
        both(
            entry("kernel", "user", STRANGER, 0)[0],
            lambda ill: ill.patient.update(row=Row(Port("/dev/ttyACM0"), unseen=3)),
        ),
        entry("kernel", "user", STRANGER, 0)[1],
    ),
    ("modemmanager-near", both(lambda ill: ill.runs("ModemManager"), mark()), mark(ID_MM_PORT_IGNORE="1")),
    ("modemmanager-near", both(lambda ill: ill.runs("ModemManager"), mark()), lambda ill: ill.ends()),
    ("rule-ineffective", both(as_if_plugged, mark()), mark(PORTRETRY_PRINTER="mk3")),
    (
        "port-not-offered",
        lambda ill: setattr(ill.bench.octoprint, "ports", []),
        lambda ill: setattr(ill.bench.octoprint, "ports", [str(ill.bench.link)]),
    ),
    (
        "baudrate-harmful",
        both(
            entry("settings", "baudrate", 57600, None)[0], lambda ill: ill.devices.node.update(vendor="2c99")
        ),
        entry("settings", "baudrate", 0, 115200)[1],
    ),
    ("baudrate-differs", *entry("settings", "baudrate", 250000, None)),
    ("usb-autosuspend", power_is_auto, lambda ill: (ill.devices.usb / "power/control").write_text("on\n")),
]


@pytest.mark.parametrize(
    ("finding", "provoke", "cure"), CURES, ids=[f"{row[0]}-{number}" for number, row in enumerate(CURES)]
)
def test_a_finding_is_made_and_its_cure_helps(ill, finding, provoke, cure):
    """Of everything that `doctor` says: it is said when it is so, and not any more when it is cured."""
    provoke(ill)
    made = [each for each in ill.examine().all if each.id == finding]

    assert made, f"{finding} is found, but there is {ill.ids()}"
    assert made[0].level is CATALOGUE[finding].level
    assert made[0].cure, "it says what to do"
    assert made[0].what[0] != " "
    assert "\n" not in made[0].what + made[0].cure

    cure(ill)

    assert finding not in ill.ids()


def test_there_is_no_configuration(ill):
    """A person who has just installed it is led to `setup`, and not told that a file is wrong."""
    assert "configuration-missing" in ill.ids(config=False)
    assert "configuration-missing" not in ill.ids(), "setup has written it"


# -- what an OctoPrint says of itself, told by a scripted one --------------------------------------------
USER = {"name": "pi", "groups": [], "permissions": ["STATUS", "CONNECTION"]}
LISTS = {**USER, "permissions": ["STATUS", "CONNECTION", "SETTINGS_READ", "PLUGIN_PLUGINMANAGER_LIST"]}
IN_2_0 = {"autoconnect": False}


TWO = "/api/connection?api_version=2.0.0"
OCTOPRINTS = [
    ("octoprint-new", {"/api/connection": (403, {}), "/plugin/appkeys/probe": (403, {})}),
    ("octoprint-odd", {"/api/connection": (200, "<html>Log in to the proxy</html>")}),
    ("octoprint-odd", {"/api/connection": (302, None)}),
    ("key-refused", {"/api/connection": (403, {}), "/api/currentuser": (403, {})}),
    (
        "key-refused",
        {
            "/api/connection": (403, {}),
            "/api/currentuser": (200, {"name": None, "groups": [], "permissions": []}),
        },
    ),
    ("permission-missing", {"/api/currentuser": (200, {**USER, "permissions": ["STATUS"]})}),
    (
        "permission-missing",
        {"/api/connection": (403, {}), "/api/currentuser": (200, {**USER, "permissions": []})},
    ),
    ("octoprint-old", {"/api/server": (200, {"version": "1.9.3", "safemode": None})}),
    ("octoprint-safe-mode", {"/api/server": (200, {"version": "1.11.8", "safemode": "settings"})}),
    (
        "plugin-rival",
        {
            "/api/currentuser": (200, LISTS),
            "/plugin/pluginmanager/plugins/versions": (200, {"portretry": "0.1.4"}),
        },
    ),
    (
        "octoprint-autoconnect",
        {"/api/currentuser": (200, LISTS), "/api/settings": (200, {"serial": {"autoconnect": True}})},
    ),
    ("octoprint-unclear", {"/api/job": (200, {"state": "Pondering"})}),
    (
        "octoprint-opening",
        {
            "/api/job": (200, {"state": "Opening serial connection"}),
            "/api/connection": (200, Scripted.connection("Opening serial connection")),
        },
    ),
    (
        "octoprint-elsewhere",
        {
            "/api/job": (200, {"state": "Operational"}),
            "/api/connection": (200, Scripted.connection("Operational", "/dev/ttyACM9")),
        },
    ),
    (
        "connector-foreign",
        {
            "/api/connection": (200, Scripted.connection("Offline", **IN_2_0)),
            TWO: (
                200,
                {
                    "current": {"state": "Offline", "connector": None},
                    "options": {
                        "preferredConnector": {"connector": "moonraker", "parameters": {"token": "hush"}},
                        "connectors": [{"connector": "moonraker", "name": "Klipper (Moonraker)"}],
                    },
                },
            ),
        },
    ),
]


@pytest.mark.parametrize(
    ("finding", "answers"), OCTOPRINTS, ids=[f"{row[0]}-{number}" for number, row in enumerate(OCTOPRINTS)]
)
def test_what_an_octoprint_is_and_may_is_found(ill, finding, answers):
    """By its own words; when it says what a healthy one says, the finding is gone."""
    with Scripted() as octoprint:
        ill.settings["octoprint"] = octoprint.url
        well = dict(octoprint.told)
        octoprint.told |= answers
        assert finding in ill.ids()
        assert finding == "permission-missing" or "permission-missing" not in ill.ids()

        for path in answers:
            octoprint.told.pop(path)
        octoprint.told |= well
        assert finding not in ill.ids()


def test_without_a_key_it_is_still_known_whether_octoprint_is_there(ill):
    """Two mistakes at once are told at once, and none hides the other."""
    ill.bench.key_file.chmod(0o644)
    assert ill.ids() >= {"key-unusable"}
    assert not ill.ids() & {"octoprint-down", "key-refused"}
    ill.bench.octoprint.stop()
    assert ill.ids() >= {"key-unusable", "octoprint-down"}


# -- what needs another user, or another version ---------------------------------------------------------
def test_a_service_of_another_version_is_found(ill, monkeypatch):
    """After an update that has not restarted it; a version before versions were told counts as older."""
    with monkeypatch.context() as older:
        older.setattr(control_server, "__version__", "0.0.9")
        (old,) = [each for each in ill.examine().machine if each.id == "service-old"]
        assert "0.0.9" in old.what
        assert old.commands == ("sudo systemctl restart portretry-udev.service",)
    assert "service-old" not in ill.ids()


def test_a_service_that_may_not_be_asked_is_no_problem_but_unknown(ill, monkeypatch):
    """Who is in no group of the socket's is told what could not be seen."""

    def refuse(*_):
        raise control.ControlError("permission denied: it is for root and the group dialout", os.EX_NOPERM)

    with monkeypatch.context() as stranger:
        stranger.setattr(control, "ask", refuse)
        report = ill.examine()
        assert ("service-closed", Level.UNKNOWN) in {(each.id, each.level) for each in report.machine}
    assert "service-closed" not in ill.ids()


def test_a_key_of_roots_is_not_called_wrong(ill, monkeypatch):
    """For a user who is not root the check is left out, and said to be."""
    with monkeypatch.context() as user:
        user.setattr("portretry_udev.keys.KeySource.read", _denied)
        user.setattr("portretry_udev.doctor_patients._is_hidden", lambda _: True)
        assert "key-unread" in ill.ids()
        assert not ill.ids() & {"key-missing", "key-unusable"}
    assert "key-unread" not in ill.ids()


def _denied(source):
    raise KeyTrouble(f"{source} cannot be read by user pi", "run as root")


# -- with the real service -------------------------------------------------------------------------------
@pytest.fixture
def served(ill):
    """The real service in the place of the faked one."""
    ill.stop()
    ill.settings |= {"interval": 0.5, "push": False}
    ill.write_config()
    service = Daemon("--config", ill.config, "--control", ill.socket)
    with service:
        pid = service._process.pid
        ill.runs("portretry-udev", 77, words=("portretry-udev", "watch"))
        ill.patient["octoprints"] = frozenset()
        assert_eventually(lambda: Path(ill.socket).exists(), 10, "the service has a socket")
        # Its process is real, and so it may be seen to hold the real port: it is no stranger.
        ill.write("proc/77/status", None)
        real = doctor_facts.Reader(ill.devices).process(pid)
        ill.runs("portretry-udev", pid, words=("portretry-udev", "watch"), user=real.user)
        yield ill


def eventually(ill, finding, *, there):
    assert_eventually(
        lambda: (finding in ill.ids()) == there, 10, lambda: f"{finding} {there}, but {ill.ids()}"
    )


def connected(ill):
    assert_eventually(ill.bench.operational, 10, lambda: ill.bench.octoprint.job_state)
    eventually(ill, "printer-silent", there=False)


REAL = [
    (
        "printer-held",
        lambda ill: ill.bench.octoprint.person_disconnects(),
        lambda ill: control.ask(ill.socket, "retry"),
    ),
    (
        "printer-paused",
        lambda ill: control.ask(ill.socket, "pause"),
        lambda ill: control.ask(ill.socket, "resume"),
    ),
    (
        "printer-faulted",
        lambda ill: ill.bench.printer.kill(),
        lambda ill: (ill.bench.printer.power_off(), ill.bench.printer.power_on()),
    ),
    ("printer-silent", lambda ill: ill.bench.printer.power_off(), lambda ill: ill.bench.printer.power_on()),
]


@pytest.mark.parametrize(("finding", "provoke", "cure"), REAL, ids=[row[0] for row in REAL])
def test_what_the_service_waits_for_is_found_and_its_cure_helps(served, finding, provoke, cure):
    """From the real service over its socket, with the command that the cure names, or by the printer."""
    connected(served)

    provoke(served)
    eventually(served, finding, there=True)
    cure(served)

    eventually(served, finding, there=False)


# -- the catalogue ---------------------------------------------------------------------------------------
ELSEWHERE = {"configuration-missing", "service-old", "service-closed", "key-unread"}  # tests of their own


def test_every_kind_of_finding_is_provoked_and_cured():
    """None is added to the catalogue without a test that shows that its cure cures."""
    proven = {row[0] for row in (*CURES, *OCTOPRINTS, *REAL)} | ELSEWHERE
    assert set(CATALOGUE) - proven == set()
    assert proven - set(CATALOGUE) == set()


def test_the_catalogue_is_one_sentence_each_and_no_two_are_alike():
    """They are read in a table, and looked for by their names."""
    for found in CATALOGUE.values():
        assert re.fullmatch(r"[a-z0-9-]+", found.id)
        assert found.level is not Level.OK
        assert found.means.endswith(".")
        assert found.cure.endswith(".")
    assert len({found.means for found in CATALOGUE.values()}) == len(CATALOGUE)


@pytest.mark.parametrize(
    ("holder", "cure", "command"),
    [
        ("ModemManager", "udev rules", "sudo portretry-udev install"),
        ("brltty", "braille", "sudo apt purge brltty"),
        ("gpsd", "USBAUTO", "sudo systemctl restart gpsd"),
        ("agetty", "login", "sudo systemctl disable --now serial-getty@ttyAMA0.service"),
        ("avrdude", "let it end", None),
        ("minicom", "end it", None),
    ],
)
def test_each_taker_of_ports_has_its_own_cure(ill, holder, cure, command):
    """Who has the port is named, with what keeps it off for good, not only how to kill it."""
    node = dataclasses.replace(found(ill), real="/dev/ttyAMA0")
    row = Row(Port("/dev/ttyAMA0"), (Holder(815, holder),))
    ill.patient |= {"found": node, "row": row}

    (held,) = [each for each in ill.examine().printers["mk3"] if each.id == "port-held"]

    assert f"{holder} (pid 815)" in held.what
    assert cure in held.cure
    assert command is None or command in held.commands


@pytest.mark.parametrize(
    ("process", "access", "may"),
    [
        (Process(1, 0, frozenset(), -1), Access(0o000, 7, 7), True),
        (Process(1, 0, frozenset()), Access(0o660, 0, 20), True),
        (Process(1, 0, frozenset()), Access(0o660, 7, 20), False),
        (Process(1, 7, frozenset()), Access(0o600, 7, 20), True),
        (Process(1, 7, frozenset({20})), Access(0o660, 0, 20), True),
        (Process(1, 7, frozenset({20})), Access(0o640, 0, 20), False),
        (Process(1, 7, frozenset({20})), Access(0o066, 7, 20), False),
        (Process(1, 7, frozenset()), Access(0o660, 0, 20, list=True), None),
        (Process(1, 7, frozenset()), Access(0o666, 0, 20), True),
    ],
)
def test_who_may_open_a_node_is_what_the_kernel_would_say(process, access, may):
    """As in path_resolution(7): the owner's bits, else the group's, else the others'; lists are not read."""
    assert process.may_open(access) is may


@pytest.mark.parametrize(
    ("unit", "user", "groups", "capable"),
    [
        ({"User": "", "CapabilityBoundingSet": "cap_sys_ptrace cap_dac_override"}, 0, {0}, True),
        ({"User": "", "CapabilityBoundingSet": "cap_sys_ptrace", "Group": "tty"}, 0, {0, TTY}, False),
        ({"User": "root", "CapabilityBoundingSet": ""}, 0, {0}, False),
        ({"User": "made-by-systemd", "Group": "tty", "CapabilityBoundingSet": ""}, -1, {TTY}, False),
        ({"User": "daemon", "SupplementaryGroups": "tty no-such-group"}, DAEMON, {TTY}, False),
    ],
)
def test_who_the_service_would_be_is_read_from_its_unit(unit, user, groups, capable):
    """Also while it does not run: then it is most wanted whether it could open the port."""
    found = doctor_facts._would_be(unit)

    assert (found.user, bool(found.capabilities)) == (user, capable)
    assert found.groups >= groups


def test_what_is_not_told_by_this_machine_is_no_finding():
    """Neither the real kernel's clock nor its inotify raises."""
    assert doctor_facts._synchronised() in (True, False, None)
    assert isinstance(doctor_facts._deaf(), str)


def test_the_firmware_of_a_raspberry_pi_tells_of_too_little_voltage(ill, tmp_path, monkeypatch):
    """By vcgencmd, where the kernel has no such sensor; in the past, too."""
    program = tmp_path / "vcgencmd"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for told, found_ in (("throttled=0x50000", True), ("throttled=0x20000", False), ("error", False)):
        program.write_text(f"#!/bin/sh\necho {told}\n")
        ill.run = doctor_facts.run
        ill.systemd = False
        assert ("undervoltage" in ill.ids()) == found_
