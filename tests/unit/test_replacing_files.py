"""Files are replaced; what is no file is not taken away by a rename."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from hmarl.runtime.bundle import replace_file


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_what_is_no_file_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "target"
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(str(path))
        else:
            path.mkdir()
        before = os.lstat(path)
        with pytest.raises(OSError, match="target"):
            replace_file(path, b"content")
    assert os.path.samestat(os.lstat(path), before)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_and_a_link_too(tmp_path: Path) -> None:
    path, other = tmp_path / "target", tmp_path / "other"
    other.write_text("other")
    path.symlink_to(other)
    for content in (b"first", b"second"):
        replace_file(path, content)
        assert (path.read_bytes(), stat.S_ISREG(os.lstat(path).st_mode)) == (content, True)
    assert other.read_text() == "other"
