"""The files of a bundle in one zip, judged by its own list of files before anything is unpacked."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import IO

from hmarl.runtime import _source
from hmarl.runtime._source import KINDS, OPEN_FILE, REPAIR, Source, check_file_size, check_name, check_total, quoted
from hmarl.runtime.errors import BundleError, one_line

# Compressing stops where nothing is left to say: only a file of one repeated byte is larger than this for its size.
_RATIO_LIMIT = 200
_RATIO_FROM_BYTES = 2**24
# What a zip may have besides its files' content: two headers and two names for each of them, and a comment.
_ZIP_OVERHEAD_BYTES = 2**24
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_COMMENT_LIMIT_BYTES = 2**16 - 1
_WIDE_LOCATOR = b"PK\x06\x07"  # of zip64: 20 bytes before the end record
_WIDE_LOCATOR_BYTES = 20
_COMPRESSIONS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


class ZipSource(Source):
    """The files of a zip."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._stream: IO[bytes] = os.fdopen(os.open(path, OPEN_FILE), "rb")
        except OSError as error:
            raise BundleError(f"bundle {path}: cannot open the file: {error.strerror}") from error
        try:
            self._check_end()
            self._zip = zipfile.ZipFile(self._stream)
            self._entries = {entry.filename: entry for entry in self._checked_entries()}
        except BundleError:
            self._stream.close()
            raise
        except Exception as error:  # zipfile raises many unrelated types
            self._stream.close()
            raise BundleError(
                f"bundle {path}: got a file that is not a readable zip ({one_line(error)}), expected a bundle "
                f"directory or zip; {REPAIR}"
            ) from error

    def close(self) -> None:
        self._zip.close()
        self._stream.close()

    def names(self) -> list[str]:
        return list(self._entries)

    def read(self, name: str, limit: int = _source.FILE_LIMIT_BYTES) -> bytes:
        entry = self._entries[name]
        check_file_size(self._path, name, entry.file_size, limit)
        try:
            with self._zip.open(entry) as stream:
                return stream.read(entry.file_size)  # no more, whatever it unpacks to
        except Exception as error:  # zipfile raises many unrelated types
            raise BundleError(
                f"bundle {self._path}: cannot read {quoted(name)}: {one_line(error)}; {REPAIR}"
            ) from error

    def _check_end(self) -> None:
        """Judge the zip by its last record, found as zipfile finds it, before zipfile reads all that it points to.

        Raises:
            BundleError: too many files, or too much of anything.
            zipfile.BadZipFile: there is no such record.
        """
        status = os.fstat(self._stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"bundle {self._path}: expected a bundle directory or zip")
        check_total(self._path, 0, max(0, status.st_size - _ZIP_OVERHEAD_BYTES))
        tail_bytes = min(status.st_size, _END.size + _COMMENT_LIMIT_BYTES + _WIDE_LOCATOR_BYTES)
        self._stream.seek(status.st_size - tail_bytes)
        tail = self._stream.read(tail_bytes)
        at = len(tail) - _END.size
        if tail[at : at + 4] != _END_SIGNATURE or tail[-2:] != b"\0\0":
            at = tail.rfind(_END_SIGNATURE)
        if at < 0 or len(tail) - at < _END.size:
            raise zipfile.BadZipFile("File is not a zip file")
        _, disk, first_disk, _, entries, directory_bytes, *_ = _END.unpack_from(tail, at)
        locator = at - _WIDE_LOCATOR_BYTES
        if (disk, first_disk) != (0, 0) or (locator >= 0 and tail[locator : locator + 4] == _WIDE_LOCATOR):
            raise BundleError(
                f"bundle {self._path}: a zip in several parts or of the zip64 kind, which no bundle needs"
            )
        check_total(self._path, entries, 0)
        if directory_bytes > _ZIP_OVERHEAD_BYTES:
            raise BundleError(f"bundle {self._path}: its list of files has {directory_bytes:,} bytes, no zip's has")

    def _checked_entries(self) -> list[zipfile.ZipInfo]:
        """The entries of all files; names, kinds and stated sizes are right, and no name is there twice."""
        entries = self._zip.infolist()
        check_total(self._path, len(entries), sum(entry.file_size for entry in entries))
        names: set[str] = set()
        for entry in entries:
            check_name(self._path, entry.filename.removesuffix("/"))
            if entry.filename in names:
                raise BundleError(f"bundle {self._path}: '{entry.filename}' is in the zip more than once; {REPAIR}")
            names.add(entry.filename)
            if not entry.is_dir():
                self._check_entry(entry)
        return [entry for entry in entries if not entry.is_dir()]

    def _check_entry(self, entry: zipfile.ZipInfo) -> None:
        check_file_size(self._path, entry.filename, entry.file_size, _source.FILE_LIMIT_BYTES)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        problem = None
        if entry.flag_bits & 1:
            problem = "is encrypted, expected plain content"
        elif entry.compress_type not in _COMPRESSIONS:
            problem = f"is compressed by method {entry.compress_type}, expected {' or '.join(_COMPRESSIONS.values())}"
        elif kind not in (0, stat.S_IFREG):
            problem = f"is {KINDS.get(kind, 'a special file')}; a bundle holds plain files only"
        elif entry.file_size > max(_RATIO_FROM_BYTES, _RATIO_LIMIT * entry.compress_size):
            problem = f"unpacks from {entry.compress_size:,} to {entry.file_size:,} bytes, which no policy does"
        if problem:
            raise BundleError(f"bundle {self._path}: '{entry.filename}' {problem}; {REPAIR}")
