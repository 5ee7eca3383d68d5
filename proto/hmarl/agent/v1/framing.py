"""Messages in a stream of bytes: each after its length, as a varint (protobuf's delimited form)."""

from __future__ import annotations

from typing import Any

SCHEME = "frames:"  # of addresses
CHUNK_BYTES = 4096  # that are read at once while no frame has begun
_LARGEST_CHUNK_BYTES = 2**18
_LENGTH_BYTES = 5  # a length has at most


class LengthError(ValueError):
    """The length of a frame is no length, or larger than is taken. What follows cannot be read either."""


def framed(message: Any) -> bytes:
    """The frame of a message."""
    body: bytes = message.SerializeToString()
    length = len(body)
    if length < 0x80:
        return b"%c%b" % (length, body)
    prefix = bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + body


class FrameReader:
    """Finds the frames in what is received, however it was cut into pieces.

    Args:
        limit_bytes: the largest message that is taken. No more than one, and what was received at once, is held.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._rest = bytearray()
        self._end = 0  # of the frame that has begun, in ``_rest``; 0: not known yet

    @property
    def begun(self) -> bool:
        """Whether a part of a frame is here."""
        return bool(self._rest)

    @property
    def wanted_bytes(self) -> int:
        """How many bytes to receive next: at most a frame's rest, so that large ones come in few pieces."""
        if not self._end:
            return CHUNK_BYTES
        return min(max(self._end - len(self._rest), CHUNK_BYTES), _LARGEST_CHUNK_BYTES)

    def take(self, data: bytes) -> list[bytes]:
        """The messages that are whole now.

        Args:
            data: what was received, at least one byte.

        Raises:
            LengthError: a length is none, or too large; what came before it in ``data`` is lost, and the rest is.
        """
        if not self._rest:
            begin, end = self._bounds(data, 0)
            if end == len(data):  # nearly always: one frame, and nothing else
                return [data[begin:]]
        self._rest += data
        if self._end > len(self._rest):
            return []
        rest, found, position = bytes(self._rest), [], 0
        while position < len(rest):
            begin, self._end = self._bounds(rest, position)
            if not self._end or self._end > len(rest):
                break
            found.append(rest[begin : self._end])
            position, self._end = self._end, 0
        if self._end:
            self._end -= position
        self._rest = bytearray(rest[position:])
        return found

    def _bounds(self, data: bytes, position: int) -> tuple[int, int]:
        """Where the message at a position begins and ends; 0 for an end that is not known yet."""
        length = shift = 0
        for index in range(position, min(position + _LENGTH_BYTES, len(data))):
            byte = data[index]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                if length > self._limit_bytes:
                    raise LengthError(f"got a message of {length} bytes, expected at most {self._limit_bytes}")
                return index + 1, index + 1 + length
            shift += 7
        if len(data) - position >= _LENGTH_BYTES:
            raise LengthError(f"got a length of more than {_LENGTH_BYTES} bytes, expected a shorter varint")
        return 0, 0
