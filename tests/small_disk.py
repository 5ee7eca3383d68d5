"""A small file system, to be filled. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(path: Path, size: str = "256k") -> Iterator[Path]:
    """A file system of its own at a new folder, until the end of the block; skips where none can be mounted."""
    path.mkdir(parents=True)
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("a small file system can be mounted by root alone")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "hmarl-test", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(file: Path) -> None:
    """Write to a file until its disk is full, to the last byte."""
    with file.open("wb", buffering=0) as stream:
        for piece in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(b"x" * piece)
