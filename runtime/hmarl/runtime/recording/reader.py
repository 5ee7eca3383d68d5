"""Reads recordings, whatever became of their writer: a file that was cut off is read up to its last whole chunk.

Nothing that a file says is trusted: lengths are held against what is there before anything is read or unpacked.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from google.protobuf.message import DecodeError

from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.errors import RecordingError, one_line
from hmarl.runtime.recording.kept_files import ENDING, in_order
from hmarl.runtime.recording.library import (
    MAGIC,
    Channel,
    Chunk,
    McapRecord,
    Message,
    Metadata,
    Opcode,
    ReadDataStream,
    Schema,
    breakup_chunk,
    lz4_frame,
    zstandard,
)
from hmarl.runtime.recording.recorder import BUNDLE, RECORDER

LARGEST_CHUNK_BYTES = 2**25  # unpacked; more than any that is written
_HEADER = struct.Struct("<BQ")
# Of messages, by their names.
KINDS: dict[str, Any] = {kind.DESCRIPTOR.full_name: kind for kind in (pb.Episode, pb.Act, pb.Gap, pb.End)}
_INTO: dict[int, type[Any]] = {
    Opcode.SCHEMA: Schema,
    Opcode.CHANNEL: Channel,
    Opcode.METADATA: Metadata,
    Opcode.CHUNK: Chunk,
}
Said = pb.Episode | pb.Act | pb.Gap | pb.End


class Entry(NamedTuple):
    """One message of a recording.

    Attributes:
        file: in which it is.
        topic: its channel's.
        message: the message.
    """

    file: BoxFile
    topic: str
    message: Said


@dataclass
class BoxFile:
    """One file; what it says of itself is known once it has been read.

    Attributes:
        path: where it is.
        recorder: what it says of the process that wrote it.
        bundles: and of bundles, by their SHA-256.
        cut_at: the byte at which it was cut off; None for one that was finished.
    """

    path: Path
    recorder: dict[str, str] = field(default_factory=dict)
    bundles: dict[str, dict[str, str]] = field(default_factory=dict)
    cut_at: int | None = None

    @property
    def recording(self) -> str:
        """Which process wrote it; the same for all of its files."""
        return self.recorder.get("recording", self.path.name)

    @property
    def side(self) -> str:
        """``agent`` or ``client``."""
        return self.recorder.get("side", "agent")

    def glance(self) -> None:
        """Read no more than what the file says of its writer.

        Raises:
            RecordingError: it is no MCAP file, or damaged where it is not merely cut off.
        """
        for _, record in self._records():
            if isinstance(record, Metadata):
                self._take(record)
            if self.recorder:
                return

    def read(self) -> Iterator[Entry]:
        """All messages, in the order in which they were written.

        Raises:
            RecordingError: it is no MCAP file, or damaged where it is not merely cut off.
        """
        channels: dict[int, tuple[str, Any]] = {}
        schemas: dict[int, str] = {}
        for at, record in self._records():
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel):
                channels[record.id] = record.topic, KINDS.get(schemas.get(record.schema_id, ""))
            elif isinstance(record, Metadata):
                self._take(record)
            elif isinstance(record, Message):
                topic, kind = channels.get(record.channel_id, ("", None))
                if kind is not None:
                    yield Entry(self, topic, self._decoded(kind, record.data, at))

    def _decoded(self, kind: Any, data: bytes, at: int) -> Said:
        try:
            message: Said = kind.FromString(data)
        except DecodeError as error:
            raise self._damaged(at, f"a message is no {kind.DESCRIPTOR.full_name}: {one_line(error)}") from error
        return message

    def _take(self, metadata: Metadata) -> None:
        values = {str(name): str(value) for name, value in metadata.metadata.items()}
        if metadata.name == RECORDER:
            self.recorder = values
        elif metadata.name.startswith(f"{BUNDLE}."):
            self.bundles[values.get("sha256", "")] = values

    def _records(self) -> Iterator[tuple[int, McapRecord]]:
        """What matters of the file, each with the byte at which it begins."""
        try:
            with self.path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                head = stream.read(len(MAGIC))
                if head == MAGIC:
                    yield from self._framed(stream, size)
                elif MAGIC.startswith(head) or not any(head):  # as a power failure leaves it
                    self.cut_at = 0
                else:
                    raise RecordingError(f"{self.path}: got no MCAP file, expected one that hmarl has recorded")
        except OSError as error:
            raise RecordingError(f"{self.path}: cannot be read: {error.strerror or one_line(error)}") from error

    def _framed(self, stream: IO[bytes], size: int) -> Iterator[tuple[int, McapRecord]]:
        while True:
            at = stream.tell()
            header = stream.read(_HEADER.size)
            opcode, length = _HEADER.unpack(header) if len(header) == _HEADER.size else (0, size)
            if not opcode or stream.tell() + length > size:  # none is 0: zeros are what was never written
                self.cut_at = at
                return
            if opcode == Opcode.DATA_END:
                return
            kind = _INTO.get(opcode)
            if kind is None:
                stream.seek(length, os.SEEK_CUR)
                continue
            for record in self._parsed(kind, stream.read(length), at):
                yield at, record

    def _parsed(self, kind: type[Any], content: bytes, at: int) -> Sequence[McapRecord]:
        """A record, or all that a chunk holds."""
        try:
            record = kind.read(ReadDataStream(io.BytesIO(content)))
            if not isinstance(record, Chunk):
                return [record]
            _check_size(record)
            return breakup_chunk(record, validate_crc=True)
        except RecordingError as error:
            raise self._damaged(at, str(error)) from error
        except Exception as error:  # the library and what unpacks raise many unrelated types
            raise self._damaged(at, f"{type(error).__name__}: {one_line(error)}") from error

    def _damaged(self, at: int, why: str) -> RecordingError:
        return RecordingError(f"{self.path}: damaged at byte {at}: {why}")


def _check_size(chunk: Chunk) -> None:
    """Refuse a chunk that says, or whose content says, that it is larger than any that is written."""
    sizes = [chunk.uncompressed_size]
    if chunk.compression == "zstd":
        sizes.append(zstandard.frame_content_size(chunk.data))
    elif chunk.compression == "lz4":
        sizes.append(int(lz4_frame.get_frame_info(chunk.data)["content_size"]))
        if not sizes[-1]:
            raise RecordingError("got a chunk of LZ4 that does not say how large it is, expected one that does")
    if max(sizes) > LARGEST_CHUNK_BYTES:
        raise RecordingError(f"got a chunk of {max(sizes)} bytes, expected at most {LARGEST_CHUNK_BYTES}")


def open_recording(path: Path) -> list[BoxFile]:
    """The files of a recording, in the order in which they were written: a file, or all below a folder.

    Raises:
        RecordingError: there is none.
    """
    if path.is_dir():
        found = sorted(path.rglob(f"*{ENDING}"), key=in_order)
        if not found:
            raise RecordingError(f"{path}: got a folder without any *{ENDING}, expected a recording")
        return [BoxFile(each) for each in found]
    if not path.is_file():
        raise RecordingError(f"{path}: got no such file or folder, expected a recording")
    return [BoxFile(path)]


def read_recording(files: Sequence[BoxFile]) -> Iterator[Entry]:
    """All messages of some files, one file after the other."""
    for file in files:
        yield from file.read()


def said_by(files: Sequence[BoxFile]) -> Mapping[str, Mapping[str, str]]:
    """What files that have been read say of bundles, by their SHA-256."""
    return {sha256: said for file in files for sha256, said in file.bundles.items()}
