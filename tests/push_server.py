"""A fake of OctoPrint's push: its login, its websocket, and SockJS over plain requests; and hostile ones.

Speaks just enough of each to be believed, and tells what it was sent.  The websocket is written out here, and
not the library's: a hostile one must be able to say anything.
"""

import base64
import contextlib
import hashlib
import json
import queue
import socket
import struct
import threading

KEY = "S3CR3T-0123456789ABCDEF-key"
WAIT = 20.0  # seconds; far more than anything here takes
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def frame(payload, opcode=1, *, fin=True, length=None):
    """A frame as a server sends it; ``length`` may lie."""
    length = len(payload) if length is None else length
    head = bytes([opcode | (0x80 if fin else 0)])
    if length < 126:
        return head + bytes([length]) + payload
    if length < 65536:
        return head + b"\x7e" + struct.pack(">H", length) + payload
    return head + b"\x7f" + struct.pack(">Q", length) + payload


def read_frame(stream):
    """The opcode and the payload of a client's frame; None: the end."""
    head = stream.read(2)
    if len(head) < 2:
        return None
    length = head[1] & 0x7F
    if length == 126:
        length = struct.unpack(">H", stream.read(2))[0]
    elif length == 127:
        length = struct.unpack(">Q", stream.read(8))[0]
    mask = stream.read(4)
    return head[0] & 0x0F, bytes(byte ^ mask[i % 4] for i, byte in enumerate(stream.read(length)))


class Tcp:
    """A listener that talks to each connection in a thread of its own, and can be stopped and started."""

    def __init__(self, talk, tls=None):
        self._talk, self._tls = talk, tls
        self._port = 0
        self.gone = threading.Event()
        self.accepted = 0
        self._threads, self._connections, self._abrupt = [], [], set()
        self._lock = threading.Lock()
        self.start()

    def start(self):
        self.gone.clear()
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[-1].start()

    @property
    def url(self):
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    def _accept(self):
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with self._lock:
                if self.gone.is_set():
                    connection.close()
                    return
                self.accepted += 1
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            if self._tls:
                with self._tls.wrap_socket(connection, server_side=True) as secure:
                    self._talk(secure, self.gone)
            else:
                self._talk(connection, self.gone)
            if connection not in self._abrupt:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """End all connections, as the death of a process does."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def reset(self):
        """End all connections with a reset, as a host does that knows nothing of them any more."""
        with self._lock:
            for connection in self._connections:
                self._abrupt.add(connection)
                with contextlib.suppress(OSError):  # closed already
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.shutdown(socket.SHUT_RD)  # its thread closes it
            self._connections.clear()

    def stop(self):
        self.gone.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(WAIT)
            assert not thread.is_alive()
        self._threads.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class PushServer(Tcp):
    """OctoPrint's push.

    What it does may be changed at any time: ``upgrade`` is its answer to a wish for a websocket, if it is not
    to be taken; ``login`` the status and the body of its answer to a login, if it is not a new session;
    ``admits`` whether a right session is let in; ``hangs`` paths that get no answer; ``pongs`` whether pings
    get one; ``heartbeat`` seconds between those of plain requests.
    """

    def __init__(self, tls=None, prefix=""):
        self.prefix = prefix
        self.upgrade = self.login = None
        self.admits = self.pongs = True
        self.hangs = ()
        self.deaf = threading.Event()  # while it is set, websockets are not read
        self.heartbeat = WAIT
        self.seen = []  # (method, path, headers, body), of each request
        self.told = []  # messages of clients
        self.sessions = []  # given out, in order
        self.pings = 0
        self._sockets = []  # functions that send bytes, one for each websocket
        self._mailboxes = {}
        self._changed = threading.Condition()
        super().__init__(self._answer, tls)

    @property
    def url(self):
        return super().url + self.prefix

    def push(self, *messages):
        """Tell all who listen."""
        for message in messages:
            text = json.dumps(message)
            self.raw(frame(text.encode()))
            self.line(f"a[{text}]")

    def event(self, name, payload=None):
        self.push({"event": {"type": name, "payload": payload}})

    def raw(self, data):
        """Any bytes, to the websockets."""
        for send in list(self._sockets):
            with contextlib.suppress(OSError):
                send(data)

    def line(self, text):
        """Any frame, to those who poll."""
        for mailbox in list(self._mailboxes.values()):
            mailbox.put(text)

    def wait(self, condition):
        with self._changed:
            assert self._changed.wait_for(condition, WAIT), (self.seen, self.told)

    def asked(self, ending):
        """The requests for a path."""
        return [request for request in self.seen if request[1].endswith(ending)]

    def _note(self, what, where):
        with self._changed:
            where.append(what)
            self._changed.notify_all()

    def _answer(self, connection, gone):
        with connection.makefile("rb") as stream:
            while (line := stream.readline()) and not gone.is_set():
                method, path, _ = line.decode().split()
                headers = {}
                while line := stream.readline().decode().strip():
                    name, _, value = line.partition(": ")
                    headers[name.lower()] = value
                body = stream.read(int(headers.get("content-length", 0)))
                self._note((method, path, headers, body), self.seen)
                if any(path.endswith(ending) for ending in self.hangs):
                    gone.wait(WAIT)
                    return
                path = path.removeprefix(self.prefix)
                if path == "/sockjs/websocket" and self.upgrade is None:
                    self._be_websocket(connection, stream, headers)
                    return
                connection.sendall(self._reply(path, body, gone))

    def _reply(self, path, body, gone):
        if path == "/sockjs/websocket":
            return self.upgrade
        if path == "/api/login":
            return self._reply_login()
        if path.endswith("/xhr"):
            return http(200, self._wait_for_frame(path.removesuffix("/xhr"), gone))
        if path.endswith("/xhr_send"):
            mailbox = self._mailboxes.get(path.removesuffix("/xhr_send"))
            if mailbox is None:
                return http(404, b"")
            for text in json.loads(body):
                self._take(text, lambda answer: mailbox.put(f"a[{json.dumps(answer)}]"))
            return http(204, b"")
        return http(404, b"")

    def _reply_login(self):
        if self.login is not None:
            status, body = self.login
            return http(status, json.dumps(body).encode())
        session = f"T0K3N{len(self.sessions)}"
        self.sessions.append(session)
        return http(200, json.dumps({"name": "me", "session": session}).encode())

    def _wait_for_frame(self, name, gone):
        if name not in self._mailboxes:
            mailbox = self._mailboxes[name] = queue.SimpleQueue()
            mailbox.put('a[{"connected":{}}]')
            return b"o\n"
        for _ in range(int(self.heartbeat * 100)):
            if gone.is_set():
                break
            with contextlib.suppress(queue.Empty):
                return f"{self._mailboxes[name].get(timeout=0.01)}\n".encode()
        return b"h\n"

    def _be_websocket(self, connection, stream, headers):
        connection.sendall(upgraded(headers["sec-websocket-key"].encode()))
        lock = threading.Lock()

        def send(data):
            with lock:
                connection.sendall(data)

        send(frame(b'{"connected":{"version":"1.11.8"}}'))
        self._sockets.append(send)
        try:
            while (got := read_frame(stream)) is not None:
                while self.deaf.is_set() and not self.gone.wait(0.01):
                    pass
                opcode, payload = got
                if opcode == 1:
                    self._take(payload.decode(), lambda answer: send(frame(json.dumps(answer).encode())))
                elif opcode == 9:
                    with self._changed:
                        self.pings += 1
                        self._changed.notify_all()
                    if self.pongs:
                        send(frame(payload, 10))
        finally:
            self._sockets.remove(send)

    def _take(self, text, answer):
        message = json.loads(text)
        self._note(message, self.told)
        if "auth" in message:
            if message["auth"] not in [f"me:{session}" for session in self.sessions]:
                answer({"reauthRequired": {"reason": "stale"}})
            elif self.admits:
                answer({"timelapse": None})


def http(status, body, *headers):
    """An answer of HTTP."""
    lines = [f"HTTP/1.1 {status} So", f"Content-Length: {len(body)}", "Content-Type: text/plain", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def upgraded(key):
    """A websocket's yes; ``key`` is that of the request."""
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
    return b"\r\n".join([*lines, b"Sec-WebSocket-Accept: " + accept, b"", b""])
