"""USB serial devices made in Python, plugged into QEMU's `usb-redir` (the usbredir protocol, version 0.7).

Knows USB and the usbredir protocol: the guest's own cdc_acm and ch341 enumerate and drive what is made here.
Must not know what hangs on the chip: `boards` does, and is told of bytes, DTR, rates, opens and closes.

The protocol is that of spice's usbredir, docs/usb-redirection-protocol.md; QEMU is the usb-host there.
"""

import contextlib
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass
from enum import IntEnum


class _Packet(IntEnum):
    """The packets used here."""

    HELLO = 0
    DEVICE_CONNECT = 1
    INTERFACE_INFO = 4
    EP_INFO = 5
    SET_CONFIGURATION = 6
    GET_CONFIGURATION = 7
    CONFIGURATION_STATUS = 8
    SET_ALT_SETTING = 9
    GET_ALT_SETTING = 10
    ALT_SETTING_STATUS = 11
    START_INTERRUPT_RECEIVING = 15
    STOP_INTERRUPT_RECEIVING = 16
    INTERRUPT_RECEIVING_STATUS = 17
    CANCEL_DATA_PACKET = 21
    CONTROL = 100
    BULK = 101


_OK, _CANCELLED, _STALL = 0, 1, 4
# connect_device_version, device_disconnect_ack, ep_info_max_packet_size, 64bits_ids, 32bits_bulk_length: what
# QEMU insists on for a device on xhci.
_CAPABILITIES = 0b1111010
_HEAD, _HELLO_HEAD = struct.Struct("<IIQ"), struct.Struct("<III")  # type, length, id; the hello's id is short
_CONTROL = struct.Struct("<BBBBHHH")  # endpoint, request, its type, status, value, index, length
_BULK = struct.Struct("<BBHIH")  # endpoint, status, length, stream, length's upper half
_UNUSED = 255
_FIFO = 128  # bytes that a chip keeps while its port is closed
_TWIN = 3  # what is added to an endpoint's address for the second port's


@dataclass(frozen=True)
class Chip:
    """What a board shows on USB.  ``acm``: CDC-ACM, else a CH340.  Strings may be None.

    ``twin``: of CDC-ACM, a second port on which nothing is ever said.  Its bytes and opens count with the
    first's, its DTR and its rate do not.
    """

    vendor: int
    product: int
    release: int
    texts: tuple[str | None, str | None, str | None]  # manufacturer, product, serial number
    acm: bool = True
    twin: bool = False

    @property
    def node(self):
        """The name that the guest's kernel gives to the first one."""
        return "/dev/ttyACM0" if self.acm else "/dev/ttyUSB0"


class Device:
    """One USB serial chip, served on a Unix socket until `close()`.

    Args:
        chip: what it is.
        path: the socket.
        circuit: what hangs on it; told by ``attached()``, ``detached()``, ``opened()``, ``closed()``,
            ``line(dtr)``, ``rate(baud)`` and ``heard(data)``, with its ``lock`` (an RLock) held.

    Attributes:
        deaf: takes no bytes from the host any more, as a hung chip, or one under flow control.
    """

    def __init__(self, chip, path, circuit):
        self._chip, self._path, self._circuit = chip, path, circuit
        self.deaf = False
        if chip.acm:
            self._in, self._out, self._interrupt, self._packet_size = 0x83, 0x04, 0x82, 64
        else:
            self._in, self._out, self._interrupt, self._packet_size = 0x82, 0x02, 0x81, 32
        self._coding = struct.pack("<IBBB", 9600, 0, 0, 8)
        self._lock = circuit.lock
        self._connection = None
        self._wanted = deque()  # the host's requests for bytes, oldest first: (id, length, endpoint)
        self._fifo = bytearray()
        self._is_open = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self):
        """End it; the plug must have been pulled."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._path.unlink()

    def say(self, data):
        """Bytes towards the host."""
        with self._lock:
            if not self._is_open:
                data = data[: max(0, _FIFO - len(self._fifo))]
            self._fifo += data
            self._flush()

    # -- the protocol ----------------------------------------------------------------------------------
    def _serve(self):
        while True:
            try:
                self._connection = self._listener.accept()[0]
            except OSError:
                return
            with self._connection:
                hello = b"portretry-udev".ljust(64, b"\0") + struct.pack("<I", _CAPABILITIES)
                with contextlib.suppress(
                    OSError
                ):  # pulled as soon as it was plugged: then no talk comes of it
                    self._connection.sendall(_HELLO_HEAD.pack(_Packet.HELLO, len(hello), 0) + hello)
                self._talk()
            with self._lock:
                self._connection = None
                self._wanted.clear()
                self._fifo.clear()
                self._is_open = False
                self._circuit.detached()

    def _talk(self):
        buffer, head = b"", _HELLO_HEAD
        while chunk := self._received():
            buffer += chunk
            while len(buffer) >= head.size:
                kind, length, number = head.unpack_from(buffer)
                if len(buffer) < head.size + length:
                    break
                body, buffer = buffer[head.size : head.size + length], buffer[head.size + length :]
                head = _HEAD
                with self._lock:
                    self._take(kind, number, body)

    def _received(self):
        try:
            return self._connection.recv(65536)
        except OSError:
            return b""

    def _send(self, kind, body, number=0):
        if self._connection is not None:
            with contextlib.suppress(OSError):  # QEMU has ended, or has let go of the device
                self._connection.sendall(_HEAD.pack(kind, len(body), number) + body)

    def _take(self, kind, number, body):
        match kind:
            case _Packet.HELLO:
                self._introduce()
                speed, device_class = 1, 2 if self._chip.acm else 0xFF
                ids = (self._chip.vendor, self._chip.product, self._chip.release)
                self._send(_Packet.DEVICE_CONNECT, struct.pack("<BBBBHHH", speed, device_class, 0, 0, *ids))
                self._circuit.attached()
            case _Packet.SET_CONFIGURATION:
                self._introduce()
                self._send(_Packet.CONFIGURATION_STATUS, bytes([_OK, body[0]]), number)
            case _Packet.GET_CONFIGURATION:
                self._send(_Packet.CONFIGURATION_STATUS, bytes([_OK, 1]), number)
            case _Packet.SET_ALT_SETTING:
                self._send(_Packet.ALT_SETTING_STATUS, bytes([_OK, body[0], body[1]]), number)
            case _Packet.GET_ALT_SETTING:
                self._send(_Packet.ALT_SETTING_STATUS, bytes([_OK, body[0], 0]), number)
            case _Packet.START_INTERRUPT_RECEIVING | _Packet.STOP_INTERRUPT_RECEIVING:
                self._send(_Packet.INTERRUPT_RECEIVING_STATUS, bytes([_OK, body[0]]), number)
            case _Packet.CONTROL:
                self._take_control(number, body)
            case _Packet.BULK:
                self._take_bulk(number, body)
            case _Packet.CANCEL_DATA_PACKET:
                self._cancel(number)

    def _introduce(self):
        """Interfaces and endpoints, in the protocol's tables of 32."""
        acm, functions = self._chip.acm, 1 + self._chip.twin
        classes, subclasses, protocols = ([2, 10], [2, 0], [1, 0]) if acm else ([0xFF], [1], [2])
        classes, subclasses, protocols = classes * functions, subclasses * functions, protocols * functions
        tables = (range(len(classes)), classes, subclasses, protocols)
        info = struct.pack("<I", len(classes)) + b"".join(bytes(t).ljust(32, b"\0") for t in tables)
        self._send(_Packet.INTERFACE_INFO, info)
        types, intervals, interfaces, sizes = [_UNUSED] * 32, [0] * 32, [0] * 32, [0] * 32
        data = int(acm)  # the interface of the data endpoints
        endpoints = (
            (0x00, 0, 0, 0, 64),
            (0x80, 0, 0, 0, 64),
            (self._interrupt, 3, 255 if acm else 1, 0, 8),
            (self._in, 2, 1, data, self._packet_size),
            (self._out, 2, 1, data, self._packet_size),
        )
        if self._chip.twin:
            endpoints += tuple(
                (address + _TWIN, kind, interval, 2 + interface, size)
                for address, kind, interval, interface, size in endpoints[2:]
            )
        for address, *properties in endpoints:
            slot = (address & 0x80) >> 3 | address & 0x0F
            types[slot], intervals[slot], interfaces[slot], sizes[slot] = properties
        self._send(_Packet.EP_INFO, bytes([*types, *intervals, *interfaces]) + struct.pack("<32H", *sizes))

    # -- bytes -----------------------------------------------------------------------------------------
    def _take_bulk(self, number, body):
        endpoint, _, length, stream, more = _BULK.unpack_from(body)
        if endpoint & 0x80:
            if not self._is_open:  # both drivers ask for bytes from a port's open to its close
                self._is_open = True
                self._circuit.opened()
            self._wanted.append((number, length | more << 16, endpoint))
            self._flush()
        elif not self.deaf:
            data = body[_BULK.size :]
            self._send(_Packet.BULK, _BULK.pack(endpoint, _OK, len(data), stream, 0), number)
            self._circuit.heard(data)

    def _flush(self):
        while self._fifo and (wanted := next((it for it in self._wanted if it[2] == self._in), None)):
            self._wanted.remove(wanted)
            number, length, _ = wanted
            size = min(length, self._packet_size - 1, len(self._fifo))  # a short packet ends its transfer
            data = bytes(self._fifo[:size])
            del self._fifo[:size]
            self._send(_Packet.BULK, _BULK.pack(self._in, _OK, size, 0, 0) + data, number)

    def _cancel(self, number):
        for wanted in self._wanted:
            if wanted[0] == number:
                self._wanted.remove(wanted)
                self._send(_Packet.BULK, _BULK.pack(wanted[2], _CANCELLED, 0, 0, 0), number)
                break
        else:  # bytes that a deaf chip has not taken
            self._send(_Packet.BULK, _BULK.pack(self._out, _CANCELLED, 0, 0, 0), number)
        if self._is_open and not self._wanted:
            self._is_open = False
            self._circuit.closed()

    # -- control requests ------------------------------------------------------------------------------
    def _take_control(self, number, body):
        endpoint, request, kind, _, value, index, length = _CONTROL.unpack_from(body)
        answer = self._control(kind, request, value, index, body[_CONTROL.size :])
        status, data = (_STALL, b"") if answer is None else (_OK, answer[:length])
        inward = bool(kind & 0x80)
        size = len(data) if inward else length
        head = _CONTROL.pack(endpoint, request, kind, status, value, index, size)
        self._send(_Packet.CONTROL, head + (data if inward else b""), number)

    def _control(self, kind, request, value, index, data):
        """The answer's data; None: the request is refused."""
        if (kind, request) == (0x80, 6):  # GET_DESCRIPTOR
            return self._descriptor(value >> 8, value & 0xFF)
        if kind & 0x60 == 0:  # a standard request: GET_STATUS, CLEAR_FEATURE, ...
            return b"\0\0" if request == 0 else b""
        return (
            self._acm(kind, request, value, index, data)
            if self._chip.acm
            else self._ch340(kind, request, value, index)
        )

    def _acm(self, kind, request, value, index, data):
        """CDC PSTN requests (USB CDC PSTN 1.2, 6.3)."""
        if (kind, request) == (0xA1, 0x21):  # GET_LINE_CODING
            return self._coding
        if index:  # the interface: the twin's
            return b""
        if (kind, request) == (0x21, 0x22):  # SET_CONTROL_LINE_STATE
            self._circuit.line(bool(value & 1))
        elif (kind, request) == (0x21, 0x20) and len(data) >= 7:  # SET_LINE_CODING
            self._coding = data[:7]
            self._circuit.rate(struct.unpack_from("<I", data)[0])
        return b""

    def _ch340(self, kind, request, value, index):
        """What drivers/usb/serial/ch341.c asks and sets."""
        if kind == 0xC0:  # the chip's version, and pairs of registers
            return b"\x31\x00" if request == 0x5F else b"\xff\xee" if value == 0x0706 else b"\0\0"
        if (kind, request) == (0x40, 0xA4):  # modem control, active low
            self._circuit.line(not value & 0x20)
        elif (kind, request, value) == (0x40, 0x9A, 0x1312):  # divisor and prescaler
            divisor, prescaler, factor = 0x100 - (index >> 8), index & 3, index >> 2 & 1
            self._circuit.rate(round(48e6 / ((1 << (12 - 3 * prescaler - factor)) * divisor)))
        return b""

    # -- descriptors -----------------------------------------------------------------------------------
    def _descriptor(self, kind, number):
        if kind == 1:
            return self._device_descriptor()
        if kind == 2:
            return self._configuration_descriptor()
        if kind == 3 and number == 0:
            return b"\x04\x03\x09\x04"  # the languages: English
        if kind == 3 and number <= 3 and (text := self._chip.texts[number - 1]):
            encoded = text.encode("utf-16-le")
            return bytes([len(encoded) + 2, 3]) + encoded
        return None

    def _device_descriptor(self):
        device_class, packet = (2, 64) if self._chip.acm else (0xFF, 8)
        ids = (self._chip.vendor, self._chip.product, self._chip.release)
        texts = [number if text else 0 for number, text in enumerate(self._chip.texts, 1)]
        return struct.pack("<BBHBBBBHHHBBBB", 18, 1, 0x0110, device_class, 0, 0, packet, *ids, *texts, 1)

    def _configuration_descriptor(self):
        size = self._packet_size

        def endpoint(address, kind, packet, interval):
            return struct.pack("<BBBBHB", 7, 5, address, kind, packet, interval)

        def acm(number, added):  # its interface, and what its endpoints are further on
            return (
                bytes([9, 4, number, 0, 1, 2, 2, 1, 0])
                + bytes([5, 0x24, 0, 0x10, 0x01, 4, 0x24, 2, 6])  # header, ACM
                + bytes([5, 0x24, 6, number, number + 1])  # union
                + endpoint(self._interrupt + added, 3, 8, 255)
                + bytes([9, 4, number + 1, 0, 2, 0x0A, 0, 0, 0])
                + endpoint(self._out + added, 2, size, 1)
                + endpoint(self._in + added, 2, size, 1)
            )

        if self._chip.acm:
            body = acm(0, 0) + (acm(2, _TWIN) if self._chip.twin else b"")
        else:
            body = (
                bytes([9, 4, 0, 0, 3, 0xFF, 1, 2, 0])
                + endpoint(self._in, 2, size, 0)
                + endpoint(self._out, 2, size, 0)
                + endpoint(self._interrupt, 3, 8, 1)
            )
        interfaces = 2 * (1 + self._chip.twin) if self._chip.acm else 1
        return struct.pack("<BBHBBBBB", 9, 2, 9 + len(body), interfaces, 1, 0, 0x80, 50) + body
