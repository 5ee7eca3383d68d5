"""The frames of HTTP/2 by hand, for what no gRPC client does: calls without a body, resets in masses, silence."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

ACT = "/hmarl.agent.v1.AgentService/Act"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_CANCEL = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: str, stream: int) -> bytes:
    """A call's beginning, without compression; its body may follow or not."""
    block = b"\x83\x86\x04" + bytes([len(path)]) + path.encode() + b"\x01\x04test"
    block += b"\x0f\x10\x10application/grpc" + b"\x00\x02te\x08trailers"
    return frame(HEADERS, _END_HEADERS, stream, block)


def message(stream: int, body: bytes, end: bool = True) -> bytes:
    """A message of a call, up to 16 KiB."""
    return frame(DATA, _END_STREAM if end else 0, stream, b"\0" + struct.pack(">I", len(body)) + body)


def reset(stream: int) -> bytes:
    """The end of a call at once."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", _CANCEL))


def acknowledge_settings() -> bytes:
    """What every client answers to the server's settings."""
    return frame(SETTINGS, _ACK, 0)


GREETING = _PREFACE + frame(SETTINGS, 0, 0)


def connected(address: str) -> socket.socket:
    """A socket that is connected to ``HOST:PORT`` or ``unix:PATH``."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


class RawConnection:
    """A connection that says only what it is told to; stream ids are the odd numbers."""

    def __init__(self, address: str) -> None:
        self.socket = connected(address)
        self.socket.sendall(GREETING)

    def send(self, content: bytes) -> bool:
        """Send, reading meanwhile what comes so that neither side waits for the other; False when cut off."""
        self.socket.setblocking(False)
        view = memoryview(content)
        while view:
            readable, writable, _ = select.select([self.socket], [self.socket], [], 10)
            try:
                if readable and not self.socket.recv(1 << 16):
                    return False
                if writable:
                    view = view[self.socket.send(view) :]
            except BlockingIOError:
                continue
            except OSError:
                return False
            if not readable and not writable:
                return False
        return True

    def closed_within(self, seconds: float) -> bool:
        """Whether the other side closes the connection within so long; everything that comes is dropped."""
        self.socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            try:
                while self.socket.recv(1 << 16):
                    pass
            except ConnectionError:
                return True
            return True
        return False

    def ended_stream(self) -> int:
        """Wait for the first stream that the other side ends, and return its number."""
        for kind, _, stream, _ in self.frames():
            if kind in (HEADERS, RST_STREAM):
                return stream
        raise AssertionError("the connection was closed")

    def kinds_until(self, kind: int, payload: bytes) -> set[int]:
        """The kinds of all frames that come, up to one of a kind and content."""
        kinds = set()
        for each, _, _, content in self.frames():
            kinds.add(each)
            if each in (kind, GOAWAY) and payload in (content, b""):
                return kinds
        return kinds | {GOAWAY}

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """What comes: kind, flags, stream and content of each frame, until the connection is closed."""
        if not self.socket.gettimeout():
            self.socket.settimeout(20)
        stream = self.socket.makefile("rb")
        while len(head := stream.read(9)) == 9:
            kind, flags, number = struct.unpack(">BBI", head[3:])
            yield kind, flags, number, stream.read(int.from_bytes(head[:3], "big"))


@contextmanager
def raw_connections(address: str, count: int) -> Iterator[list[RawConnection]]:
    """As many connections, closed afterwards."""
    opened: list[RawConnection] = []
    try:
        for _ in range(count):
            opened.append(RawConnection(address))
        yield opened
    finally:
        for each in opened:
            each.socket.close()
