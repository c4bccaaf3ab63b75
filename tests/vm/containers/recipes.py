"""The recipes of docs/containers.md with Docker, Podman, LXC and systemd-nspawn themselves, in a VM.

By hand, half an hour:  PYTHONPATH=tests .venv/bin/python tests/vm/containers/recipes.py [WORD...]

Tries the rows whose names have one of the words in them, or all.  See README.md beside it.
"""

import contextlib
import os
import shlex
import sys
import time
from dataclasses import dataclass

from vm.bench import SOURCE, copy_package
from vm.boards import MEGA2560, Board
from vm.machine import Machine, MachineError, built
from vm.together import Together

PACKAGES = (
    "docker.io,apparmor,iptables,ca-certificates,podman,crun,netavark,slirp4netns,uidmap,fuse-overlayfs,lxc,"
    "dbus,dbus-user-session,libpam-systemd,iproute2"
)
MEMORY = 1536  # MB
START = 40.0  # seconds until a container's OctoPrint has the printer; all is emulated
BACK = 20.0  # seconds within which a printer must be back: the interval is 5 s, and all is emulated
SETTLED = 10.0  # seconds after which what it says is what it says

SERIAL = f'match = {{ serial = "{MEGA2560.chip.texts[2]}" }}'
NODE = 'port = "/dev/ttyACM0"'
BY_ID = "/dev/serial/by-id/usb-Arduino__www.arduino.cc__0042_95530343434351A012B1-if00"

# A root for all: its /usr, Python and all, is the machine's.
ROOT = "/var/lib/tiny"
PREPARE = f"""
set -e
mkdir -p {ROOT}{SOURCE} && cd {ROOT} && mkdir -p usr etc tmp run proc sys dev root var
chmod 1777 {ROOT}/tmp
for link in bin sbin lib lib64; do ln -sfn usr/$link {ROOT}/$link; done
cp /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache {ROOT}/etc/
grep -q ^root /etc/subuid 2> /dev/null || echo root:100000:65536 | tee -a /etc/subuid >> /etc/subgid
"""
WITHIN = f"-v /usr:/usr:ro -v {SOURCE}:{SOURCE}:ro -e PYTHONPATH={SOURCE} --name box"
WHOLE_DEV = "-v /dev:/dev --device-cgroup-rule 'c 166:* rmw' --device-cgroup-rule 'c 188:* rmw'"
RUN_UDEV = "-v /run/udev:/run/udev:ro"

LXC = f"""
lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = box
lxc.apparmor.profile = unconfined
lxc.rootfs.path = dir:/var/lib/lxc/box/rootfs
lxc.mount.entry = /usr usr none bind,ro 0 0
lxc.mount.entry = {SOURCE} {SOURCE[1:]} none bind,ro 0 0
lxc.environment = PYTHONPATH={SOURCE}
lxc.environment = PATH=/usr/sbin:/usr/bin
lxc.cgroup2.devices.allow = c 166:* rwm
lxc.cgroup2.devices.allow = c 188:* rwm
"""
LXC_IDS = """
lxc.include = /usr/share/lxc/config/userns.conf
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
"""
OWN_NETWORK, HOSTS_NETWORK = "lxc.net.0.type = empty\n", "lxc.net.0.type = none\n"
LXC_UDEV = "lxc.mount.entry = /run/udev run/udev none bind,ro,create=dir 0 0\n"
LXC_NODE = "lxc.mount.entry = /dev/ttyACM0 dev/ttyACM0 none bind,optional,create=file 0 0\n"
# Nodes that the kernel does not take away, for root in an unprivileged container.
OWN_NODES = (
    "rm -rf /srv/box && mkdir -p /srv/box && for n in 0 1; do mknod -m 660 /srv/box/ttyACM$n c 166 $n && "
    "chown 100000:100020 /srv/box/ttyACM$n; done"
)
LXC_OWN_NODES = "".join(
    f"lxc.mount.entry = /srv/box/ttyACM{n} dev/ttyACM{n} none bind,create=file 0 0\n" for n in (0, 1)
)

NSPAWN = (
    f"systemd-nspawn -q -M box -D {ROOT} --bind-ro=/usr --bind-ro={SOURCE} -E PYTHONPATH={SOURCE} --as-pid2 "
    "--console=pipe"
)


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        name: for people, and to choose it.
        run: a shell line that runs the container, with the command after it.
        stop: a shell line that ends it.
        printer: the printer's line of TOML.
        before: a shell line, done first.
        ready: a shell line, done once the container runs.
        cures: shell lines; done one after the other, when the printer has another number and does not come
            back; `RESTART LINE` is another line that runs the container.
    """

    name: str
    run: str
    stop: str
    printer: str = SERIAL
    before: str = "true"
    ready: str = "true"
    cures: tuple[str, ...] = ()


def docker(name, options, program="docker", **more):
    """A row of Docker or Podman."""
    return Row(
        f"{program} {name or options}",
        f"{program} run -i {WITHIN} {options} tiny:1",
        f"{program} rm -f -t 0 box" if "podman" in program else f"{program} rm -f box",
        **more,
    )


def lxc(name, config, ready="true", before="true", **more):
    """A row of LXC."""
    owner = "100000:100000" if LXC_IDS in config else "0:0"
    made = (
        f"rm -rf /var/lib/lxc/box && mkdir -p /var/lib/lxc/box && cp -a {ROOT} /var/lib/lxc/box/rootfs && "
        f"chown -R {owner} /var/lib/lxc/box/rootfs && chmod 755 /var/lib/lxc /var/lib/lxc/box && "
        f"printf %s {shlex.quote(LXC + config)} > /var/lib/lxc/box/config"
    )
    return Row(
        f"lxc {name}",
        "lxc-execute -n box --",
        "lxc-stop -k -n box",
        before=f"{made} && {before}",
        ready=ready,
        **more,
    )


def nspawn(options, name="", **more):
    """A row of systemd-nspawn."""
    return Row(
        f"nspawn {name or options or 'plain'}", f"{NSPAWN} {options}", "machinectl terminate box", **more
    )


def mknod(number):
    return f"lxc-attach -n box -- sh -c 'mknod -m 660 /dev/ttyACM{number} c 166 {number}'"


ALLOW = "--property='DeviceAllow=char-ttyACM rw' --property='DeviceAllow=char-ttyUSB rw'"
OPEN_TO_ALL = (  # what an unprivileged container needs on the host
    "mkdir -p /etc/udev/rules.d && "
    """echo 'SUBSYSTEM=="tty", KERNEL=="ttyACM*", MODE="0666"' > /etc/udev/rules.d/99-box.rules && """
    "udevadm control --reload && udevadm trigger -c change /dev/ttyACM0 && udevadm settle"
)
DEVICE = "--device /dev/ttyACM0"
ROWS = [
    docker("--device", DEVICE, cures=(f"RESTART docker run -i {WITHIN} {WHOLE_DEV} tiny:1",)),
    docker("--device, by node", DEVICE, printer=NODE, cures=("RESTART docker start -a box",)),
    docker(
        "--device of a link",
        f"--device {BY_ID}:/dev/ttyACM0",
        printer=NODE,
        cures=("RESTART docker start -a box",),
    ),
    docker("/dev and rules", WHOLE_DEV),
    docker("--privileged", "--privileged"),
    docker("--privileged and /dev", "--privileged -v /dev:/dev"),
    docker("--network=host, /dev and rules", f"--network=host {WHOLE_DEV}"),
    docker("--network=host, /run/udev, --device", f"--network=host {RUN_UDEV} {DEVICE}"),
    docker("--network=host, --device", f"--network=host {DEVICE}"),
    docker("--device", DEVICE, "podman", cures=(f"RESTART podman run -i {WITHIN} {WHOLE_DEV} tiny:1",)),
    docker(
        "--device of a link",
        f"--device {BY_ID}:/dev/ttyACM0",
        "podman",
        printer=NODE,
        cures=("RESTART podman start -a box",),
    ),
    docker("/dev and rules", WHOLE_DEV, "podman"),
    docker("--privileged", "--privileged", "podman"),
    docker("--network=host, /dev and rules", f"--network=host {WHOLE_DEV}", "podman"),
    docker("--network=host, /run/udev, --device", f"--network=host {RUN_UDEV} {DEVICE}", "podman"),
    lxc("privileged", OWN_NETWORK, ready=mknod(0), cures=(mknod(1),)),
    lxc(
        "privileged, by node",
        OWN_NETWORK,
        ready=mknod(0),
        printer=NODE,
        cures=("lxc-attach -n box -- sh -c 'rm /dev/ttyACM0; mknod -m 660 /dev/ttyACM0 c 166 1'",),
    ),
    lxc(
        "privileged, the host's network and /run/udev",
        HOSTS_NETWORK + LXC_UDEV,
        ready=mknod(0),
        cures=(mknod(1),),
    ),
    lxc("unprivileged", LXC_IDS + OWN_NETWORK + LXC_NODE),
    lxc("unprivileged, open to all", LXC_IDS + OWN_NETWORK + LXC_NODE, before=OPEN_TO_ALL),
    lxc("unprivileged, nodes made for it", LXC_IDS + OWN_NETWORK + LXC_OWN_NODES, before=OWN_NODES),
    nspawn(
        "--bind=/dev/ttyACM0",
        "and machinectl bind",
        cures=(
            "machinectl bind --mkdir box /dev/ttyACM1",
            "systemctl set-property --runtime machine-box.scope 'DeviceAllow=char-ttyACM rw'",
        ),
    ),
    nspawn("--bind=/dev/ttyACM0 --bind-ro=/run/udev"),
    nspawn("--bind=/dev/ttyACM0 --private-network"),
    nspawn(f"--bind=/dev {ALLOW}"),
    nspawn(f"--bind=/dev --bind-ro=/run/udev {ALLOW}"),
    nspawn(f"--bind=/dev --private-network {ALLOW}"),
]
VERSIONS = (
    "uname -r; docker version -f 'docker {{.Server.Version}}'; podman --version; "
    "echo lxc $(lxc-start --version); systemd-nspawn --version | head -n 1"
)


class Trial:
    """One row in a running machine."""

    def __init__(self, machine, row):
        self.machine, self.row = machine, row
        self.box = self.board = self.keeper = None

    def begin(self):
        """Have the printer there, and the container."""
        m = self.machine
        m.run("rm -f /etc/udev/rules.d/99-box.rules; udevadm control --reload")
        self.board = Board(MEGA2560, m.dir / f"board{time.monotonic()}.sock")
        self.plug()
        m.check("until [ -e /dev/ttyACM0 ]; do sleep 0.1; done; udevadm settle")
        m.check(self.row.before)
        self.run(self.row.run)

    def run(self, line):
        """The container runs, with the printer's node in it."""
        self.box = Together(self.machine, line, None if " start -a" in line else self.row.printer)
        self.box.process.expect('"status"', START)
        self.machine.check(self.row.ready)

    def stop(self):
        self.machine.run(self.row.stop, START)
        try:
            self.box.process.wait(30)
        except MachineError:
            self.box.process.kill(9)

    def plug(self):
        if self.box:
            self.box.mark()
        self.machine.plug("printer", self.board.path)

    def tell(self, what, back=False):
        s = self.box.status()
        how = "back" if back else "-"
        print(f"  {what:13} {how:5} events {s['events']}; {s['state']}: {s['why']}", flush=True)
        return back

    def unplug(self):
        self.machine.unplug("printer")
        self.box.says("unplugged", SETTLED)
        self.tell("unplugged")

    def story(self):
        """Print what becomes of it."""
        if not self.tell("start", self.box.connected(START)):
            print("    " + "\n    ".join(self.box.process.text.splitlines()[-5:]))
            return
        self.unplug()
        self.plug()
        self.tell("same number", self.box.connected(BACK))
        self.keeper = self.machine.spawn(
            "sh", "-c", "trap '' HUP; exec 3<> /dev/ttyACM0; echo kept; exec sleep 600"
        )
        self.keeper.expect("kept", 30)
        self.unplug()
        self.plug()
        if self.tell("other number", self.box.connected(BACK)):
            return
        for cure in self.row.cures:
            if cure.startswith("RESTART "):
                self.stop_for_restart(cure)
                self.run(cure.removeprefix("RESTART "))
            else:
                print("   ", cure, "->", *self.machine.run(cure))
            if self.tell("cured", self.box.connected(START)):
                return

    def stop_for_restart(self, cure):
        program = self.row.run.split()[0]
        if "start -a" in cure:
            self.machine.run(f"{program} stop -t 0 box", START)
        else:
            self.machine.run(self.row.stop, START)
        self.box.process.wait(60)

    def close(self):
        """No container, no printer."""
        if self.box:
            self.stop()
        if self.keeper:
            self.keeper.kill(9)
        with contextlib.suppress(MachineError):
            self.machine.unplug("printer")
        self.board.close()
        self.machine.run("while ls /dev/ttyACM*; do sleep 0.1; done")


def main():
    os.environ["MORE"] = PACKAGES
    with Machine(built(), MEMORY) as machine:
        copy_package(machine)
        machine.check(PREPARE)
        machine.check("modprobe -a overlay veth bridge fuse; systemctl start containerd docker", 240)
        machine.check(f"tar -C {ROOT} -c . | docker import - tiny:1", 120)
        machine.check(f"tar -C {ROOT} -c . | podman import - tiny:1", 120)
        print(machine.check(VERSIONS))
        chosen = [row for word in sys.argv[1:] for row in ROWS if word in row.name] or ROWS
        for row in chosen:
            print(f"{time.strftime('%H:%M:%S')} {row.name}", flush=True)
            with contextlib.closing(Trial(machine, row)) as trial:
                try:
                    trial.begin()
                    trial.story()
                except MachineError as e:
                    print(f"  failed: {str(e)[-1500:]}", flush=True)


if __name__ == "__main__":
    main()
