"""What the doctor finds about real OctoPrints, and that its cures cure there."""

import contextlib

import pytest

from helpers import assert_eventually
from portretry_udev import config, doctor_octoprint, doctor_port
from portretry_udev.devices import Devices
from portretry_udev.doctor_facts import Reader
from portretry_udev.doctor_patients import majors, patients
from portretry_udev.findings import Level
from portretry_udev.keys import KeySource
from portretry_udev.simulator import Printer

pytestmark = pytest.mark.octoprint

AT_ONCE = 10.0  # seconds; as in conftest.py

RIVAL = """
__plugin_name__ = "PortRetry"
__plugin_pythoncompat__ = ">=3,<4"
import octoprint.plugin
class Rival(octoprint.plugin.SettingsPlugin):
    def get_settings_defaults(self):
        return {"interval": 5}
__plugin_implementation__ = Rival()
"""


class Examined:
    """The doctor, sent to one OctoPrint."""

    def __init__(self, octoprint, folder, port):
        self._octoprint, self._port = octoprint, port
        self.key_file = folder / "doctor.key"
        self.key_file.touch(0o600)
        self.key(octoprint.api_key)

    def key(self, key):
        self.key_file.write_text(key)

    def ids(self):
        """What is found of OctoPrint, but for what is well."""
        key = KeySource.from_file(self.key_file)
        printer = config.Printer("mk3", self._octoprint.url, key, port=str(self._port))
        with contextlib.closing(Devices()) as devices:
            reader = Reader(devices)
            seen = patients([printer], devices, reader.process)
            machine = reader.machine(config.survey({}, {}), None, majors(seen))
        found = [each for check in doctor_octoprint.CHECKS for each in check(seen[0])]
        found += [each for check in doctor_port.CHECKS for each in check(seen[0], machine)]
        return {each.id for each in found if each.level is not Level.OK}


def account(server, *permissions):
    """Give an account exactly these permissions; a new key of its."""
    body = {"name": "doctor", "password": "never used", "active": True, "groups": []}
    server.rest("POST", "/api/access/users", body)  # 409: it is there
    changed = {"active": True, "admin": False, "groups": [], "permissions": permissions}
    server.rest("PUT", "/api/access/users/doctor", changed).raise_for_status()
    command = {"command": "generate", "app": "portretry-udev", "user": "doctor"}
    answer = server.rest("POST", "/api/plugin/appkeys", command)
    answer.raise_for_status()
    return answer.json()["api_key"]


def test_an_octoprint_that_is_well_and_what_its_keys_lack(octoprint, node, tmp_path):
    """Nothing is found where nothing is wrong; an unknown key is told from one that may too little."""
    with Printer(link=node):
        doctor = Examined(octoprint, tmp_path, node)
        assert doctor.ids() == set()

        doctor.key("F" * 32)
        assert doctor.ids() == {"key-refused"}

        doctor.key(account(octoprint, "STATUS"))
        assert doctor.ids() == {"permission-missing"}
        account(octoprint, "STATUS", "CONNECTION")
        assert doctor.ids() == set(), "it was granted, and the key stays"
        account(octoprint)
        assert doctor.ids() == {"permission-missing"}


def test_a_port_that_it_does_not_offer(octoprint, tmp_path):
    """Until the line is added that the cure names, to its own settings."""
    link = tmp_path / "printer"
    with Printer(link=link):
        doctor = Examined(octoprint, tmp_path, link)
        assert doctor.ids() == {"port-not-offered"}
        ports = octoprint.rest("GET", "/api/settings").json()
        serial = ports.get("serial") or ports["plugins"]["serial_connector"]
        before = serial["additionalPorts"]

        def additional(names):
            octoprint.rest("POST", "/api/settings", {"serial": {"additionalPorts": names}}).raise_for_status()
            if "serial" not in ports or ports["serial"] is None or "serial_connector" in ports["plugins"]:
                plugins = {"plugins": {"serial_connector": {"additionalPorts": names}}}
                octoprint.rest("POST", "/api/settings", plugins).raise_for_status()

        additional([*before, str(link)])
        try:
            assert_eventually(lambda: doctor.ids() == set(), AT_ONCE, doctor.ids)
        finally:
            additional(before)


def test_one_that_is_down_and_one_in_safe_mode_with_a_rival(make, tmp_path):
    """Each is gone when it is started, or started again, or the plugin is disabled."""
    server = make({"server": {"startOnceInSafeMode": True}}, {"portretry": RIVAL})
    doctor = Examined(server, tmp_path, tmp_path / "ttyFAKE1")
    with Printer(link=tmp_path / "ttyFAKE1"):
        assert doctor.ids() == {"octoprint-down"}
        server.start()
        assert doctor.ids() == {"octoprint-safe-mode"}
        server.restart()
        assert doctor.ids() == {"plugin-rival"}
        (server.basedir / "plugins" / "portretry.py").unlink()
        server.restart()
        assert doctor.ids() == set()


def test_one_that_nobody_has_set_up(make, tmp_path):
    """Its key is not blamed; after the setup wizard it is found well."""
    server = make({"server": {"firstRun": True}})
    accounts = server.basedir / "users.yaml"
    accounts.rename(accounts.with_suffix(".later"))
    doctor = Examined(server, tmp_path, tmp_path / "ttyFAKE1")
    server.start(wait=None)
    with Printer(link=tmp_path / "ttyFAKE1"):
        assert_eventually(lambda: doctor.ids() == {"octoprint-new"}, 60.0, doctor.ids)
        server.stop()
        accounts.with_suffix(".later").rename(accounts)
        server.start()
        assert doctor.ids() == set()
