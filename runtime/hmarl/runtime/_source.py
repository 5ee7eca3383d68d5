"""The files of a bundle, read so that nothing that pretends to be one can hang the reader or fill its memory.

Names, kinds and sizes are checked before anything is read; what is read is a regular file, opened without following
a link, and no more of it than a file may have. The bundle's own path may be a symbolic link: that is the user's choice.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from hmarl.runtime._manifest_checks import FILES_LIMIT
from hmarl.runtime.errors import BundleError

REPAIR = "copy or export the bundle again"
# Policies take megabytes, manifests kilobytes; a manifest is several times larger once it is parsed.
FILE_LIMIT_BYTES = 2**28
MANIFEST_LIMIT_BYTES = 2**23
TOTAL_LIMIT_BYTES = 2**30
NAME_LIMIT = 512
_DEPTH_LIMIT = 16
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
# Without blocking: a FIFO that has no writer would hold up whoever opens it.
OPEN_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
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


class HeldSource(Source):
    """Files that are held already, as they came from elsewhere; they are judged as those of a directory are.

    Args:
        path: where they are to be, for messages.
        files: content by name.
    """

    def __init__(self, path: Path, files: Mapping[str, bytes]) -> None:
        self._path = path
        self._files = files

    def close(self) -> None:
        """Nothing is open."""

    def names(self) -> list[str]:
        """See ``Source``."""
        for name in self._files:
            check_name(self._path, name)
        check_sizes(self._path, {name: len(content) for name, content in self._files.items()}, {})
        return sorted(self._files)

    def read(self, name: str, limit: int = FILE_LIMIT_BYTES) -> bytes:
        """See ``Source``."""
        content = self._files[name]
        check_file_size(self._path, name, len(content), limit)
        return content


def open_source(path: Path) -> Source:
    """The files of the directory or zip at ``path``.

    Raises:
        BundleError: there is neither.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError, RuntimeError) as error:  # a name with a NUL, a loop of links
        raise BundleError(
            f"bundle {_shown(path)}: no such directory or zip file; a run's bundle is RUN/bundle, once "
            "hmarl-export has written it"
        ) from error
    if kind == stat.S_IFDIR:
        return _DirectorySource(path)
    if kind == stat.S_IFREG:
        from hmarl.runtime._zip_source import ZipSource  # noqa: PLC0415 - memory that agents of a directory do without

        return ZipSource(path)
    raise BundleError(
        f"bundle {_shown(path)}: got {KINDS.get(kind, 'a special file')}, expected a bundle directory or zip"
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
            f"bundle {path}: file name {quoted(name)} is not a plain relative path inside the bundle (printable, at "
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
        check_file_size(path, name, size, limits.get(name, FILE_LIMIT_BYTES))
    check_total(path, len(sizes), sum(sizes.values()))


def quoted(name: str) -> str:
    """A name in quotes, escaped where it is not printable and cut where it is long."""
    cut = name if len(name) <= 100 else name[:100] + "…"
    return f"'{cut}'" if cut.isprintable() else ascii(cut)


def _shown(path: Path) -> str:
    return str(path) if str(path).isprintable() else ascii(str(path))


def check_total(path: Path, files: int, total_bytes: int) -> None:
    if files > FILES_LIMIT:
        raise BundleError(f"bundle {path}: got more than {FILES_LIMIT:,} files, which no bundle has; is it one?")
    if total_bytes > TOTAL_LIMIT_BYTES:
        raise BundleError(
            f"bundle {path}: its files unpack to {total_bytes:,} bytes or more, expected at most {TOTAL_LIMIT_BYTES:,}"
        )


def check_file_size(path: Path, name: str, size: int, limit: int) -> None:
    if size > limit:
        raise BundleError(f"bundle {path}: file {quoted(name)} has {size:,} bytes, expected at most {limit:,}")


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
                check_file_size(self._path, name, status.st_size, FILE_LIMIT_BYTES)
                found.append(name)
                total += status.st_size
            check_total(self._path, seen, total)
        return sorted(found)

    def _walk(self, directory: int, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """All that lies below an open directory, links not followed."""
        if prefix.count("/") > _DEPTH_LIMIT:
            raise BundleError(f"bundle {self._path}: {quoted(prefix)} lies deeper than {_DEPTH_LIMIT} directories")
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
            raise BundleError(f"bundle {self._path}: cannot list {quoted(prefix or '.')}: {error.strerror}") from error

    def read(self, name: str, limit: int = FILE_LIMIT_BYTES) -> bytes:
        descriptor = self._open(name)
        try:
            status = os.fstat(descriptor)
            self._check_kind(name, status.st_mode)
            check_file_size(self._path, name, status.st_size, limit)
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                content = stream.read(status.st_size + 1)
        except OSError as error:
            raise BundleError(f"bundle {self._path}: cannot read {quoted(name)}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if len(content) != status.st_size:
            raise BundleError(f"bundle {self._path}: {quoted(name)} changed while it was being read; try again")
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
            return os.open(last, OPEN_FILE | os.O_NOFOLLOW, dir_fd=directory)
        except FileNotFoundError as error:
            raise KeyError(name) from error
        except OSError as error:
            raise BundleError(f"bundle {self._path}: cannot open {quoted(name)}: {error.strerror}") from error
        finally:
            os.close(directory)

    def _check_kind(self, name: str, mode: int, directory_too: bool = False) -> None:
        if not stat.S_ISREG(mode) and not (directory_too and stat.S_ISDIR(mode)):
            kind = KINDS.get(stat.S_IFMT(mode), "a special file")
            raise BundleError(f"bundle {self._path}: {quoted(name)} is {kind}; a bundle holds plain files only")
