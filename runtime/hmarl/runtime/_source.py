"""The files of a bundle, read so that nothing that pretends to be one can hang the reader or fill its memory.

Names, kinds and sizes are checked before anything is read; what is read is a regular file, opened without following
a link, and no more of it than a file may have. The bundle's own path may be a symbolic link: that is the user's choice.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from hmarl.runtime._manifest_checks import FILES_LIMIT
from hmarl.runtime.errors import BundleError, one_line

REPAIR = "copy or export the bundle again"
# Policies take megabytes, manifests kilobytes; a manifest is several times larger once it is parsed.
FILE_LIMIT_BYTES = 2**28
MANIFEST_LIMIT_BYTES = 2**23
TOTAL_LIMIT_BYTES = 2**30
NAME_LIMIT = 512
_DEPTH_LIMIT = 16
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
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
# Without blocking: a FIFO that has no writer would hold up whoever opens it.
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY


class Source:
    """The files of a bundle, by name; the same interface for a directory and a zip. A context manager."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Relative POSIX names of all files, whose kinds, sizes and number have been checked.

        Raises:
            BundleError: something is no plain file, or too large, or there is too much of it.
        """
        raise NotImplementedError

    def read(self, name: str, limit: int = FILE_LIMIT_BYTES) -> bytes:
        """Content of a file of at most ``limit`` bytes.

        Raises:
            KeyError: it is not there.
            BundleError: it cannot be read, or is no plain file, or too large.
        """
        raise NotImplementedError


def open_source(path: Path) -> Source:
    """The files of the directory or zip at ``path``.

    Raises:
        BundleError: there is neither.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError, RuntimeError) as error:  # a name with a NUL, a loop of links
        raise BundleError(f"bundle {_shown(path)}: no such directory or zip file") from error
    if kind == stat.S_IFDIR:
        return _DirectorySource(path)
    if kind == stat.S_IFREG:
        return _ZipSource(path)
    raise BundleError(
        f"bundle {_shown(path)}: got {_KINDS.get(kind, 'a special file')}, expected a bundle directory or zip"
    )


def check_name(path: Path, name: str) -> None:
    """Refuse names that could lead out of the bundle, mean different files on different systems, or deceive a reader.

    Raises:
        BundleError: names it.
    """
    parts = PurePosixPath(name).parts
    plain = "/".join(parts) == name and ".." not in parts and not name.startswith("/") and not set(name) & set("\\:")
    if not name or not plain or not name.isprintable() or len(name.encode(errors="replace")) > NAME_LIMIT:
        raise BundleError(
            f"bundle {path}: file name {_quoted(name)} is not a plain relative path inside the bundle (printable, at "
            f"most {NAME_LIMIT} bytes)"
        )


def check_sizes(path: Path, sizes: Mapping[str, int], limits: Mapping[str, int]) -> None:
    """Refuse more files, larger ones, or a larger sum than is ever read.

    Args:
        path: the bundle.
        sizes: bytes by name.
        limits: bytes that certain files may have; the others, ``FILE_LIMIT_BYTES``.

    Raises:
        BundleError: says what there is too much of.
    """
    for name, size in sizes.items():
        _check_file_size(path, name, size, limits.get(name, FILE_LIMIT_BYTES))
    _check_total(path, len(sizes), sum(sizes.values()))


def _quoted(name: str) -> str:
    """A name in quotes, escaped where it is not printable and cut where it is long."""
    cut = name if len(name) <= 100 else name[:100] + "…"
    return f"'{cut}'" if cut.isprintable() else ascii(cut)


def _shown(path: Path) -> str:
    return str(path) if str(path).isprintable() else ascii(str(path))


def _check_total(path: Path, files: int, total_bytes: int) -> None:
    if files > FILES_LIMIT:
        raise BundleError(f"bundle {path}: got more than {FILES_LIMIT:,} files, which no bundle has; is it one?")
    if total_bytes > TOTAL_LIMIT_BYTES:
        raise BundleError(
            f"bundle {path}: its files unpack to {total_bytes:,} bytes or more, expected at most {TOTAL_LIMIT_BYTES:,}"
        )


def _check_file_size(path: Path, name: str, size: int, limit: int) -> None:
    if size > limit:
        raise BundleError(f"bundle {path}: file {_quoted(name)} has {size:,} bytes, expected at most {limit:,}")


class _DirectorySource(Source):
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._root = os.open(path, _DIRECTORY)
        except OSError as error:
            raise BundleError(f"bundle {path}: cannot open the directory: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._root)

    def names(self) -> list[str]:
        found, total = [], 0
        for seen, (name, status) in enumerate(self._walk(self._root, ""), start=1):
            check_name(self._path, name)
            self._check_kind(name, status.st_mode, directory_too=True)
            if stat.S_ISREG(status.st_mode):
                _check_file_size(self._path, name, status.st_size, FILE_LIMIT_BYTES)
                found.append(name)
                total += status.st_size
            _check_total(self._path, seen, total)
        return sorted(found)

    def _walk(self, directory: int, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """All that lies below an open directory, links not followed."""
        if prefix.count("/") > _DEPTH_LIMIT:
            raise BundleError(f"bundle {self._path}: {_quoted(prefix)} lies deeper than {_DEPTH_LIMIT} directories")
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    name, status = prefix + entry.name, entry.stat(follow_symlinks=False)
                    yield name, status
                    if stat.S_ISDIR(status.st_mode):
                        inner = os.open(entry.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                        try:
                            yield from self._walk(inner, name + "/")
                        finally:
                            os.close(inner)
        except OSError as error:
            raise BundleError(f"bundle {self._path}: cannot list {_quoted(prefix or '.')}: {error.strerror}") from error

    def read(self, name: str, limit: int = FILE_LIMIT_BYTES) -> bytes:
        descriptor = self._open(name)
        try:
            status = os.fstat(descriptor)
            self._check_kind(name, status.st_mode)
            _check_file_size(self._path, name, status.st_size, limit)
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                content = stream.read(status.st_size + 1)
        except OSError as error:
            raise BundleError(f"bundle {self._path}: cannot read {_quoted(name)}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if len(content) != status.st_size:
            raise BundleError(f"bundle {self._path}: {_quoted(name)} changed while it was being read; try again")
        return content

    def _open(self, name: str) -> int:
        """A descriptor of a file that is reached without any link, whatever is renamed meanwhile."""
        *folders, last = name.split("/")
        directory = os.dup(self._root)
        try:
            for folder in folders:
                inner = os.open(folder, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                os.close(directory)
                directory = inner
            # Kinds are judged by their names before anything is opened: opening a device may do something already.
            self._check_kind(name, os.stat(last, dir_fd=directory, follow_symlinks=False).st_mode)
            return os.open(last, _FILE | os.O_NOFOLLOW, dir_fd=directory)
        except FileNotFoundError as error:
            raise KeyError(name) from error
        except OSError as error:
            raise BundleError(f"bundle {self._path}: cannot open {_quoted(name)}: {error.strerror}") from error
        finally:
            os.close(directory)

    def _check_kind(self, name: str, mode: int, directory_too: bool = False) -> None:
        if not stat.S_ISREG(mode) and not (directory_too and stat.S_ISDIR(mode)):
            kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
            raise BundleError(f"bundle {self._path}: {_quoted(name)} is {kind}; a bundle holds plain files only")


class _ZipSource(Source):
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._stream: IO[bytes] = os.fdopen(os.open(path, _FILE), "rb")
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

    def read(self, name: str, limit: int = FILE_LIMIT_BYTES) -> bytes:
        entry = self._entries[name]
        _check_file_size(self._path, name, entry.file_size, limit)
        try:
            with self._zip.open(entry) as stream:
                return stream.read(entry.file_size)  # no more, whatever it unpacks to
        except Exception as error:  # zipfile raises many unrelated types
            raise BundleError(
                f"bundle {self._path}: cannot read {_quoted(name)}: {one_line(error)}; {REPAIR}"
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
        _check_total(self._path, 0, max(0, status.st_size - _ZIP_OVERHEAD_BYTES))
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
        _check_total(self._path, entries, 0)
        if directory_bytes > _ZIP_OVERHEAD_BYTES:
            raise BundleError(f"bundle {self._path}: its list of files has {directory_bytes:,} bytes, no zip's has")

    def _checked_entries(self) -> list[zipfile.ZipInfo]:
        """The entries of all files; names, kinds and stated sizes are right, and no name is there twice."""
        entries = self._zip.infolist()
        _check_total(self._path, len(entries), sum(entry.file_size for entry in entries))
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
        _check_file_size(self._path, entry.filename, entry.file_size, FILE_LIMIT_BYTES)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        problem = None
        if entry.flag_bits & 1:
            problem = "is encrypted, expected plain content"
        elif entry.compress_type not in _COMPRESSIONS:
            problem = f"is compressed by method {entry.compress_type}, expected {' or '.join(_COMPRESSIONS.values())}"
        elif kind not in (0, stat.S_IFREG):
            problem = f"is {_KINDS.get(kind, 'a special file')}; a bundle holds plain files only"
        elif entry.file_size > max(_RATIO_FROM_BYTES, _RATIO_LIMIT * entry.compress_size):
            problem = f"unpacks from {entry.compress_size:,} to {entry.file_size:,} bytes, which no policy does"
        if problem:
            raise BundleError(f"bundle {self._path}: '{entry.filename}' {problem}; {REPAIR}")
