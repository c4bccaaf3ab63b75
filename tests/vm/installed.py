"""A printer's computer as its owner has it: people, OctoPrint as a service, and our package installed.

Knows units, users, files and the journal.  Must not know the stories, nor how the package gets there.
"""

import json

from vm.bench import KEY, PATIENCE, SOURCE, Bench, copy_package

NAME = "mk3"
UNIT = "portretry-udev.service"
ETC, STATE = "/etc/portretry-udev", "/var/lib/portretry-udev"
CONFIG, KEY_FILE = f"{ETC}/config.toml", f"{ETC}/{NAME}.key"
DROPINS = f"/etc/systemd/system/{UNIT}.d"
PIS_KEY = "/home/pi/key"

# Its buttons are lines in a file.
_OCTOPRINT = f"""\
[Unit]
Description=OctoPrint
[Service]
User=pi
Environment=PYTHONPATH={SOURCE} PYTHONDONTWRITEBYTECODE=1 TCP_PORT=5000
ExecStart=sh -c 'tail -n 0 -f buttons | exec python3 {SOURCE}/octoprint.py short {PIS_KEY} "/dev/ttyACM*"'
WorkingDirectory=/home/pi
[Install]
WantedBy=multi-user.target
"""
_PEOPLE = """\
useradd --create-home --groups dialout pi && useradd --create-home stranger &&
touch /home/pi/buttons && chown pi: /home/pi/* && systemctl --quiet enable --now octoprint
"""
# Where a system writes of its own accord, or with any package; and what is only here for the tests.
_NOTES = f"""
    /proc /sys /dev /tmp /run/udev /run/log /run/systemd /run/mount {SOURCE}
    /var/tmp /var/log /var/cache /var/lib/apt /var/lib/dpkg /var/lib/systemd
""".split()


class Installed(Bench):
    """One machine with one printer, whose stories follow each other.

    Attributes:
        service: the journal of our unit from here on.
        octoprint: that of OctoPrint's.
    """

    control = "/run/portretry-udev/control.sock"

    def __init__(self, machine, kind):
        super().__init__(machine, kind, name=NAME)

    def __enter__(self):
        copy_package(self.machine)
        self.machine.put("/etc/systemd/system/octoprint.service", _OCTOPRINT)
        self.machine.put(PIS_KEY, KEY + "\n", 0o600)
        self.machine.check(_PEOPLE)
        self.follow()
        return self

    def __exit__(self, *_):
        """The rest ends with the machine."""
        if self.board is not None:
            if self._plugged:
                self.unplug()
            self.board.close()

    def follow(self):
        """Read both journals, from now on and from the boot on; once more after each boot."""
        self.service, self.octoprint = (
            self.machine.spawn("journalctl", "-f", "-b", "-o", "cat", "-n", lines, "-u", unit)
            for unit, lines in ((UNIT, "0"), ("octoprint.service", "all"))
        )
        self.octoprint.expect('"url"', PATIENCE)

    def press(self, button):
        self.machine.check(f"echo {button} >> /home/pi/buttons")

    # -- our unit --------------------------------------------------------------------------------------
    def unit(self, *names):
        """What systemd says of it, by these names of properties."""
        words = self.machine.check(f"systemctl show {UNIT} --property={','.join(names)}").splitlines()
        said = dict(word.split("=", 1) for word in words)
        return [said[name] for name in names]

    def pid(self):
        return int(self.unit("MainPID")[0])

    def drop_in(self, name, text):
        """Have the unit say more from its next start on, or no more if there is no text."""
        place = f"{DROPINS}/{name}.conf"
        if text:
            self.machine.put(place, text)
        else:
            self.machine.check(f"rm {place}; rmdir --ignore-fail-on-non-empty {DROPINS}")
        self.machine.check("systemctl daemon-reload")

    # -- the system ------------------------------------------------------------------------------------
    def files(self):
        """All files, folders and links that somebody has put there."""
        pruned = " -o ".join(f"-path {place}" for place in _NOTES)
        return set(self.machine.check(f"find / \\( {pruned} \\) -prune -o -print").splitlines())

    def processes(self):
        """Those that run our program."""
        ours = "grep -lzxE '.*/bin/portretry-ude[v]' /proc/[0-9]*/cmdline 2> /dev/null || true"
        return self.machine.check(ours).split()

    def journal(self):
        """All that the journal has, of all units: dicts."""
        lines = self.machine.check("journalctl --output=json --all", PATIENCE).splitlines()
        return [json.loads(line) for line in lines]
