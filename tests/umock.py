r"""Fake USB printers in a fake /sys, /dev and netlink (umockdev), for a program that runs as its own process.

    with umock.Testbed() as bed:
        daemon = subprocess.Popen([...], env=bed.env)
        acm = bed.add_acm("ttyACM0", serial="CZPX1")       # plugged: the daemon hears "add"
        os.write(bed.dev_fd(acm), b"start\n")              # the firmware speaks
        bed.remove(acm)                                    # pulled: hang-up, then "remove"

or with a simulated printer behind the node, whose pty the simulator owns:

    acm = bed.add_acm("ttyACM0", pty=os.path.realpath(printer.link))

Three things are arranged differently from what libumockdev does by itself, so that the whole program can be
tested and not only the part that asks udev:

* the node's number is the pty's own (136:N), in /sys too, so stat(), fstat() and /proc/*/fd agree and another
  process that holds the port is found (libumockdev would show 166:0 in stat() alone);
* links are relative: libumockdev's lead to the test bed's folder, and realpath() would show that;
* the udev database has an entry, so the device is initialized; ``settled=False`` leaves it out.

libumockdev wants its own process to be preloaded too.  pytest's is not: this file, run as a program, is that
process, and `Testbed` tells it what to do.  It needs Debian's packages umockdev and libumockdev0.
"""

import contextlib
import ctypes
import ctypes.util
import json
import os
import shutil
import subprocess
import sys
import tty
from dataclasses import dataclass
from pathlib import Path
from typing import Self

LIBRARY = "libumockdev.so.0"
PRELOAD = "libumockdev-preload.so.0"


@dataclass(frozen=True)
class Acm:
    """A fake ttyACM (or ttyUSB) as the program under test sees it."""

    node: str
    by_id: str
    by_path: str
    number: int
    syspath: str  # of the tty; its parents are the USB interface and the USB device

    @property
    def _parents(self) -> tuple[str, str]:
        interface = self.syspath.rsplit("/tty/", 1)[0]
        return interface, interface.rsplit("/", 1)[0]


class Unavailable(Exception):  # noqa: N818 - it is the reason of a skip
    """umockdev is not installed."""


class Testbed:
    """A fake /sys, /dev and udev; programs started with `env` live in it."""

    __test__ = False  # not a test class, pytest

    def __init__(self) -> None:
        self._masters: dict[str, int] = {}
        self._hung_up: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"LD_PRELOAD": PRELOAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        answer = self._answer()
        if "root" not in answer:
            self._stop()
            raise Unavailable(f"{LIBRARY}: {answer.get('error', 'did not start')}; apt install umockdev")
        self.root = Path(answer["root"])

    @property
    def env(self) -> dict[str, str]:
        """The environment for a program under test."""
        return os.environ | {"LD_PRELOAD": PRELOAD, "UMOCKDEV_DIR": str(self.root)}

    def add_acm(  # noqa: PLR0913 - each is a property of boards that a test varies
        self,
        name: str = "ttyACM0",
        serial: str | None = "CZPX1234X004XC00001",
        *,
        vendor: str = "2c99",
        product: str = "0002",
        model: str = "Original Prusa i3 MK3",
        socket: str = "1-1",
        driver: str = "cdc_acm",
        pty: str | None = None,
        number: int | None = None,
        settled: bool = True,
    ) -> Acm:
        """Plug a printer in: the node, its links and its database entry appear, then "add" is sent.

        Args:
            name: the kernel's name.
            serial: the USB serial number, None for a board without.
            vendor: USB vendor id, four hex digits.
            product: USB product id, four hex digits.
            model: what the device calls itself.
            socket: the kernel's name of the USB socket; the same socket gives the same by-path link.
            driver: the driver of the USB interface.
            pty: path of the pty slave behind the node; None makes one whose other end is `dev_fd`.
            number: st_rdev to pretend; None takes the pty's own (see above).
            settled: False leaves it as it is before udevd has seen it: no links, no database entry, and an
                event that says nothing of the USB device.
        """
        interface = f"/sys/devices/pci0000:00/0000:00:14.0/usb1/{socket}/{socket}:1.0"
        pty = pty or self._openpty(f"/dev/{name}")
        number = number or Path(pty).stat().st_rdev
        words = "_".join(model.split())
        identity = f"usb-{vendor}_{words}" + (f"_{serial}" if serial else "")
        acm = Acm(
            node=f"/dev/{name}",
            by_id=f"/dev/serial/by-id/{identity}-if00",
            by_path=f"/dev/serial/by-path/pci-0000:00:14.0-usb-0:{socket.split('-')[1]}:1.0",
            number=number,
            syspath=f"{interface}/tty/{name}",
        )
        properties = {
            "ID_BUS": "usb",
            "ID_SERIAL": identity.removeprefix("usb-"),
            "ID_VENDOR_ID": vendor,
            "ID_MODEL_ID": product,
            "ID_MODEL": words,
            "ID_PATH": Path(acm.by_path).name,
            "ID_USB_INTERFACE_NUM": "00",
            "ID_USB_DRIVER": driver,
        }
        if serial:
            properties["ID_SERIAL_SHORT"] = serial
        attributes = {"idVendor": vendor, "idProduct": product, "product": model}
        self._tell("add", _usb_device(interface, attributes | ({"serial": serial} if serial else {}), driver))
        self._link(acm.node, pty)
        if settled:
            self._settle(acm, properties)
        self._tell("add", _tty(acm, properties if settled else {}))
        return acm

    def uevent(self, acm: Acm, action: str) -> None:
        """Send an event about a device that is plugged in."""
        self._tell("uevent", acm.syspath, action)

    def remove(self, acm: Acm) -> None:
        """Pull the printer out: links and node go, whoever holds the port is hung up on, "remove" is sent.

        A pty from outside is hung up on by its owner.
        """
        kernel = (f"/sys/class/tty/{Path(acm.node).name}", f"/sys/dev/char/{_number(acm.number)}")
        pty = self._inside(acm.node).readlink()
        for path in (acm.node, acm.by_id, acm.by_path, _database(acm.number), *kernel):
            self._inside(path).unlink(missing_ok=True)
        if (master := self._masters.pop(acm.node, None)) is not None:
            # Held, so that the next pty is another one: a pty's inode follows from its number, and a printer
            # that has returned would look as if it had never been away.
            self._hung_up.append(os.open(pty, os.O_RDWR | os.O_NOCTTY))
            os.close(master)
        self._tell("uevent", acm.syspath, "remove")
        for syspath in (acm.syspath, *acm._parents):
            self._tell("remove", syspath)

    def leave(self, node: str, number: int) -> None:
        """Put a node there that nobody looks after, as a container keeps it: its number may be another's.

        It can be looked at, not opened.
        """
        self._link(node, "/dev/null")
        self._note_number(node, number)

    def take(self, node: str) -> None:
        """Take a node away though its device stays, as a container does not have it."""
        self._inside(node).unlink(missing_ok=True)

    def dev_fd(self, acm: Acm) -> int:
        """The firmware's end of the pty that `add_acm` made; it is closed by `remove`.

        While nobody has the node open, a read of it fails with EIO.
        """
        return self._masters[acm.node]

    def close(self) -> None:
        """Take it all down; end the programs in it first."""
        for fd in (*self._masters.values(), *self._hung_up):
            os.close(fd)
        self._masters.clear()
        self._hung_up.clear()
        self._stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _openpty(self, node: str) -> str:
        master, slave = os.openpty()
        tty.setraw(slave)
        name = os.ttyname(slave)
        os.close(slave)  # or this process would be seen as another one that holds the port
        self._masters[node] = master
        return name

    def _settle(self, acm: Acm, properties: dict[str, str]) -> None:
        links = (acm.by_id, acm.by_path)
        for link in links:
            self._link(link, os.path.relpath(acm.node, Path(link).parent))
            self._note_number(link, acm.number)
        database = self._inside(_database(acm.number))
        database.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"S:{link.removeprefix('/dev/')}" for link in links] + ["I:1"]
        lines += [f"E:{key}={value}" for key, value in properties.items()]
        database.write_text("\n".join(lines) + "\n")

    def _note_number(self, path: str, number: int) -> None:
        """What stat() of the path says of its number; libumockdev writes it for a device's node alone."""
        self._link("/dev/.node/" + path.removeprefix("/dev/").replace("/", "_"), _number(number))

    def _link(self, path: str, target: str) -> None:
        inside = self._inside(path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.unlink(missing_ok=True)
        inside.symlink_to(target)

    def _inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _tell(self, *command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        if (answer := self._answer()) != {}:
            raise RuntimeError(f"umockdev: {command}: {answer}")

    def _answer(self) -> dict[str, str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("{"):  # GLib prints "**" and its complaint, and aborts
            return {"error": "its process has ended"}
        return json.loads(line)

    def _stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def _number(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _database(number: int) -> str:
    return f"/run/udev/data/c{_number(number)}"


def _usb_device(interface: str, attributes: dict[str, str], driver: str) -> str:
    """The USB device and its interface in umockdev's text format."""
    interface = interface.removeprefix("/sys")
    device = interface.rsplit("/", 1)[0]
    drivers = "/".join([".."] * device.count("/")) + "/bus/usb/drivers"
    return "\n".join(
        [
            f"P: {device}",
            "E: SUBSYSTEM=usb",
            "E: DEVTYPE=usb_device",
            *(f"A: {name}={value}\\n" for name, value in attributes.items()),
            f"L: driver={drivers}/usb",
            "",
            f"P: {interface}",
            "E: SUBSYSTEM=usb",
            "E: DEVTYPE=usb_interface",
            "A: bInterfaceNumber=00\\n",
            f"L: driver=../{drivers}/{driver}",
            "",
            "",
        ]
    )


def _tty(acm: Acm, properties: dict[str, str]) -> str:
    """The tty in umockdev's text format.  Without an N: line: libumockdev would make a pty of its own."""
    if properties:
        properties = properties | {"DEVLINKS": f"{acm.by_id} {acm.by_path}", "USEC_INITIALIZED": "1"}
    return "\n".join(
        [
            f"P: {acm.syspath.removeprefix('/sys')}",
            "E: SUBSYSTEM=tty",
            f"E: DEVNAME={acm.node}",
            f"E: MAJOR={os.major(acm.number)}",
            f"E: MINOR={os.minor(acm.number)}",
            *(f"E: {key}={value}" for key, value in properties.items()),
            f"A: dev={_number(acm.number)}",
            "",
            "",
        ]
    )


def _serve() -> None:
    """The process that holds libumockdev's test bed: commands in JSON on stdin, answers on stdout."""
    say = sys.stdout
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        print(json.dumps({"error": str(error)}), file=say, flush=True)
        return
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    library.umockdev_testbed_new.restype = pointer
    library.umockdev_testbed_get_root_dir.restype = text
    library.umockdev_testbed_get_root_dir.argtypes = [pointer]
    library.umockdev_testbed_add_from_string.argtypes = [pointer, text, pointer]
    library.umockdev_testbed_uevent.argtypes = [pointer, text, text]
    library.umockdev_testbed_remove_device.argtypes = [pointer, text]
    library.g_object_unref.argtypes = [pointer]
    bed = library.umockdev_testbed_new()
    root = library.umockdev_testbed_get_root_dir(bed).decode()
    print(json.dumps({"root": root}), file=say, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        words = [argument.encode() for argument in arguments]
        answer = {}
        if name == "add" and not library.umockdev_testbed_add_from_string(bed, *words, None):
            answer = {"error": "the description was refused"}
        elif name == "uevent":
            library.umockdev_testbed_uevent(bed, *words)
        elif name == "remove":
            library.umockdev_testbed_remove_device(bed, *words)
        print(json.dumps(answer), file=say, flush=True)
    library.g_object_unref(bed)


if __name__ == "__main__":
    _serve()
