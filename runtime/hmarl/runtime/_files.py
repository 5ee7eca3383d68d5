"""Files and directories that appear whole or not at all: temporary sibling, fsync, rename.

Whoever only reads bundles, as an agent does, does not pay for the modules that write: they are imported when needed.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = ".tmp"
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal content gives equal zips


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    path.write_bytes(content)
    sync_file(path)


@contextmanager
def replacing(path: Path, ending: str = "", mode: int | None = None) -> Iterator[Path]:
    """A temporary file to be written, which takes the name ``path`` once the block has ended well.

    Args:
        path: the final name; its directory is made where it is not there. A file that is there is replaced.
        ending: of the temporary file's name, for writers that go by it.
        mode: who may read it, also before it is whole; None: as the umask says.

    Raises:
        FileExistsError: ``path`` is a device, a pipe or a socket.
    """
    import tempfile  # noqa: PLC0415

    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY + ending, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        sync_file(temporary)
        temporary.chmod(0o666 & ~_umask() if mode is None else mode)
        _refuse_special(path)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names no file, and the temporary one's name tells the user nothing
        raise
    sync_directory(path.parent)


def replace_file(path: Path, content: bytes, mode: int | None = None) -> None:
    """Create or replace a file atomically; see ``replacing``."""
    with replacing(path, mode=mode) as temporary:
        temporary.write_bytes(content)


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what ``replace_file`` left in a folder when it was killed, of files called ``name`` (a glob pattern).

    For whoever alone writes these files: a temporary file of a process that still runs is not told from a left one.
    """
    for path in folder.glob(f".{name}.*{_TEMPORARY}"):
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def replace_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Create a directory with ``files``, or swap it for the one at ``path``, which stays when anything fails."""
    import shutil  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old = temporary.with_suffix(".old")
    try:
        temporary.chmod(0o777 & ~_umask())
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_synced(temporary / name, content)
        for directory in (temporary, *(entry for entry in temporary.rglob("*") if entry.is_dir())):
            sync_directory(directory)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_special(path: Path) -> None:
    """Raise FileExistsError for a device, a pipe or a socket, which a rename would take away."""
    if os.path.lexists(path) and not (stat.S_ISREG(mode := os.lstat(path).st_mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, "exists and is no regular file", str(path))


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """A zip of ``files``; equal content gives equal bytes."""
    import zipfile  # noqa: PLC0415

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _ZIP_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
