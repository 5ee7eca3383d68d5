"""One question at a time over frames, by who watches an agent: the process itself, and its supervisor."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time

from google.protobuf.message import DecodeError

from hmarl.agent.v1.frames_pb2 import FrameRequest, FrameResponse
from hmarl.agent.v1.framing import SCHEME, FrameReader, LengthError, framed

_LIMIT_BYTES = 64 * 2**20


class FramesCall:
    """A connection that is made when it is needed, and again when it has broken.

    Args:
        address: ``frames:path``.
    """

    def __init__(self, address: str) -> None:
        self._path = address.removeprefix(SCHEME)
        self._ids = itertools.count(1)
        self._stream: socket.socket | None = None

    def exchange(self, request: FrameRequest, timeout_s: float) -> FrameResponse | None:
        """Send a request and wait for its response; None when there is none in time.

        A connection may have been closed since it was used last, because it was idle: then another one is made.
        """
        deadline = time.monotonic() + timeout_s
        request.id = next(self._ids)
        known = self._stream is not None
        response = self._try(request, deadline)
        if response is None and known and time.monotonic() < deadline:
            response = self._try(request, deadline)
        return response

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _try(self, request: FrameRequest, deadline: float) -> FrameResponse | None:
        with contextlib.suppress(OSError, LengthError, DecodeError):
            if self._stream is None:
                self._stream = socket.socket(socket.AF_UNIX)
                self._wait_until(self._stream, deadline)
                self._stream.connect(self._path)
            self._stream.sendall(framed(request))
            response = self._received(self._stream, request.id, deadline)
            if response is not None:
                return response
        self.close()  # whatever still comes is not for the next request
        return None

    def _received(self, stream: socket.socket, number: int, deadline: float) -> FrameResponse | None:
        reader = FrameReader(_LIMIT_BYTES)
        while True:
            self._wait_until(stream, deadline)
            data = stream.recv(reader.wanted_bytes)
            if not data:
                return None
            for body in reader.take(data):
                response: FrameResponse = FrameResponse.FromString(body)
                if response.id == number:
                    return response
                if not response.id:
                    return None

    @staticmethod
    def _wait_until(stream: socket.socket, deadline: float) -> None:
        stream.settimeout(max(deadline - time.monotonic(), 0.001))
