"""The files of one black box: MCAP, readable by their owner alone, bounded together in size and age.

A file is whole up to its last flush whatever becomes of the process: chunks follow one another, and only the index at
the end, which readers can do without, is missing when it is not closed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hmarl.runtime.errors import UsageError
from hmarl.runtime.recording.kept_files import KeptFiles
from hmarl.runtime.recording.library import CompressionType, MessageEncoding, Writer, build_file_descriptor_set
from hmarl.runtime.recording.settings import RecordSettings

PROFILE = ""  # of MCAP: none of the well-known ones
LIBRARY = "hmarl"
_CHUNK_BYTES = 2**20
_OLDEST_PART = 8  # a file is closed when it holds this part of the time for which files are kept
_OWNER_ALONE = 0o600
_SHOWN = 80


class BoxFiles:
    """Writes messages to one file after the other.

    Args:
        settings: where, and how much.
        name: of the agent: that of a folder, and what the files begin with.
        metadata: what each file says at its beginning, by name.

    Raises:
        UsageError: the folder cannot be made, or is not to be written to.
    """

    def __init__(self, settings: RecordSettings, name: str, metadata: Mapping[str, Mapping[str, str]]) -> None:
        self.metadata = {title: dict(values) for title, values in metadata.items()}
        self._settings = settings
        self._name = safe_name(name)
        self.folder = settings.folder / self._name
        self._file: _BoxFile | None = None
        self._count = 0
        self._writer = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
        self._kept = KeptFiles(self.folder, settings.total_bytes, settings.keep_s)
        self._kept_at = -float("inf")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            reason = "something else is there" if isinstance(error, FileExistsError) else error.strerror
            raise UsageError(f"--record: '{self.folder}' cannot be made a folder: {reason}; choose another") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise UsageError(f"--record: '{self.folder}' is not to be written to by this user; choose another")

    @property
    def file_number(self) -> int:
        """Counts the files; 0 while there is none."""
        return self._count

    def write(self, topic: str, kind: type[Any], content: bytes, sequence: int, wall_ns: int) -> None:
        """Add a message of a kind, and its serialised content, to the present file; begins one where there is none.

        Raises:
            OSError: it cannot be written.
        """
        self.opened().write(topic, kind, content, sequence, wall_ns)

    def describe(self, title: str, values: Mapping[str, str]) -> None:
        """Add to what this file and all further ones say at their beginning.

        Raises:
            OSError: it cannot be written.
        """
        if title not in self.metadata:
            self.metadata[title] = dict(values)
            if self._file is not None:
                self._file.describe(title, values)

    def opened(self) -> _BoxFile:
        """The present file; a new one where there is none."""
        if self._file is None:
            while self._file is None:
                with contextlib.suppress(FileExistsError):  # of another client in this process
                    self._file = _BoxFile(self._kept.next_path(self._name, self._writer))
            self._count += 1
            for title, values in self.metadata.items():
                self._file.describe(title, values)
        return self._file

    def flush(self) -> None:
        """Give what was written to the operating system; begin another file when this one is large or old enough.

        Raises:
            OSError: it cannot be written.
        """
        file = self._file
        if file is not None:
            file.flush()
            oldest_s = self._settings.keep_s / _OLDEST_PART
            full = file.size >= self._settings.file_bytes or time.monotonic() - file.begun_s >= oldest_s
            if full or file.deleted:
                self.close()
        self._keep_bounds()

    def close(self) -> None:
        """Finish the present file with its index.

        Raises:
            OSError: it cannot be written.
        """
        file, self._file = self._file, None
        if file is not None:
            file.finish()

    def abandon(self) -> None:
        """Leave the present file as it was flushed last: nothing more can be written to it."""
        file, self._file = self._file, None
        if file is not None:
            file.cut()

    def _keep_bounds(self) -> None:
        """Delete files that are too old, or too much; not at each flush."""
        now = time.monotonic()
        if self._file is None or now - self._kept_at >= 1.0:
            self._kept_at = now
            self._kept.keep_bounds(None if self._file is None else self._file.path)


class _Unbuffered:
    """A new file, written at once and whole: what a full disk does not take is known, and a fork inherits nothing."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, _OWNER_ALONE)
        self._written = 0

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            taken = os.write(self._descriptor, rest)
            self._written += taken
            rest = rest[taken:]
        return len(data)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """Nothing waits."""

    @property
    def deleted(self) -> bool:
        """Whether the file has no name any more."""
        return os.fstat(self._descriptor).st_nlink == 0

    def close(self, size: int) -> None:
        """Close the file as it was when it had so many bytes."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, size)
        os.close(self._descriptor)


class _BoxFile:
    """One MCAP file that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun_s = time.monotonic()
        self._stream = _Unbuffered(path)
        self._flushed = 0
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        stream: Any = self._stream  # all of a stream that the library uses
        self._writer = Writer(stream, chunk_size=_CHUNK_BYTES, compression=CompressionType.ZSTD)
        try:
            self._writer.start(profile=PROFILE, library=LIBRARY)
        except OSError:
            self.cut()
            raise

    @property
    def size(self) -> int:
        """Bytes that were flushed."""
        return self._flushed

    @property
    def deleted(self) -> bool:
        """Whether another writer of this folder took it for too much."""
        return self._stream.deleted

    def write(self, topic: str, kind: type[Any], content: bytes, sequence: int, wall_ns: int) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = self._channel(topic, kind)
        self._writer.add_message(channel, wall_ns, content, wall_ns, sequence & 0xFFFFFFFF)

    def describe(self, title: str, values: Mapping[str, str]) -> None:
        """Paths among the values need not be text."""
        written = {name: value.encode(errors="backslashreplace").decode() for name, value in values.items()}
        self._writer.add_metadata(title, written)

    def flush(self) -> None:
        self._writer.flush()  # type: ignore[no-untyped-call]
        self._flushed = self._stream.tell()

    def finish(self) -> None:
        try:
            self.flush()
            self._writer.finish()  # type: ignore[no-untyped-call]
            self._flushed = self._stream.tell()
        finally:
            self.cut()

    def cut(self) -> None:
        """Close the file as it was flushed last; of what is half written nothing stays, nor a file without content."""
        self._stream.close(self._flushed)
        if not self._flushed:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _channel(self, topic: str, kind: Any) -> int:
        name = kind.DESCRIPTOR.full_name
        if name not in self._schemas:
            schema = build_file_descriptor_set(kind).SerializeToString()
            self._schemas[name] = self._writer.register_schema(name, "protobuf", schema)
        return int(self._writer.register_channel(topic, MessageEncoding.Protobuf, self._schemas[name]))


def safe_name(agent_id: str) -> str:
    """A file name for an agent; ids that are none themselves are told apart by a digest."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", agent_id)[:_SHOWN].lstrip(".")
    if plain == agent_id:
        return plain
    return f"{plain or 'agent'}-{hashlib.blake2b(agent_id.encode(), digest_size=4).hexdigest()}"
