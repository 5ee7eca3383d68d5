"""The file that a fleet writes: its own is replaced and removed, anything else stays as it is."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.endpoints_file import EndpointsFile
from hmarl.runtime.errors import UsageError
from hmarl.sdk.clients.endpoints import load_endpoints
from processes import LIMIT_S, alive, children, fleet_process, wait_for
from terminal_process import terminal_process

FOREIGN = {
    "text": b"precious",
    "nothing": b"",
    "bytes": bytes(range(256)),
    "other JSON": b'{"agents": {"agent_0": "127.0.0.1:1"}, "pid": 1}\n',
    "a list": b"[1, 2]",
    "deep JSON": b"[" * 100_000,
}


def refused(bundle: Bundle, out: Path) -> str:
    """What a fleet says that does not start because of ``out``."""
    command = [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(bundle.path), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "", "nothing has been started"
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_no_fleet_wrote_is_left_alone(toy_bundle: Bundle, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.json"
    out.write_bytes(FOREIGN[kind])
    before = out.stat()
    message = refused(toy_bundle, out)
    assert f"--out: '{out}' is there already, and no fleet wrote it" in message
    after = out.stat()
    assert (out.read_bytes(), after.st_ino, after.st_mtime_ns) == (FOREIGN[kind], before.st_ino, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "dangling link", "device"])
def test_what_is_no_file_is_left_alone(toy_bundle: Bundle, tmp_path: Path, kind: str) -> None:
    out, target = tmp_path / "out.json", tmp_path / "target"
    if kind == "folder":
        out.mkdir()
    elif kind == "pipe":
        os.mkfifo(out)
    elif kind == "device":
        try:  # one of our own: a fleet that did remove it must not harm the machine
            os.mknod(out, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root may make a device node")
    else:
        out.symlink_to(target)
    if kind == "link":
        target.write_text("precious")
    before = os.lstat(out)
    assert f"--out: '{out}' is no regular file" in refused(toy_bundle, out)
    assert os.path.samestat(os.lstat(out), before)
    assert target.exists() == (kind == "link")


def test_a_folder_that_cannot_be_made_is_named(toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"--out: cannot make the folder '{tmp_path}/file'" in refused(toy_bundle, tmp_path / "file" / "out.json")


def test_of_two_fleets_with_one_file_the_second_does_not_start(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with fleet_process(toy_bundle, out) as first:
        assert first.stdout is not None
        first.stdout.readline()
        before = out.read_bytes()
        assert f"belongs to a fleet that is running, process {first.pid}" in refused(toy_bundle, out)
        assert out.read_bytes() == before
        assert load_endpoints(out).keys() == set(toy_bundle.agent_ids)
    assert not out.exists()


def test_the_file_of_a_fleet_that_was_killed_is_replaced(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with fleet_process(toy_bundle, out) as first:
        assert first.stdout is not None
        first.stdout.readline()
        members = children(first.pid)
        first.kill()
        first.wait()
        wait_for(lambda: not any(alive(pid) for pid in members), "the end of the members")
    stale = json.loads(out.read_text())
    with fleet_process(toy_bundle, out) as second:
        assert second.stdout is not None
        assert json.loads(second.stdout.readline()) == json.loads(out.read_text()) != stale
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_took_the_place_of_ours_stays(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with fleet_process(toy_bundle, out) as process:
        assert process.stdout is not None
        process.stdout.readline()
        copy = tmp_path / "copy"
        copy.write_bytes(out.read_bytes())  # even with the same content
        copy.replace(out)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
        assert out.exists()


def test_a_file_that_appears_while_the_fleet_starts_stays(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with fleet_process(toy_bundle, out) as process:
        wait_for(lambda: children(process.pid), "the first member")
        out.write_text("precious")
        assert process.wait(LIMIT_S) == 2
        assert process.stderr is not None
        assert f"--out: '{out}' is there already, and no fleet wrote it" in process.stderr.read()
        assert out.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out]


def test_the_end_of_the_terminal_leaves_nothing_behind(toy_bundle: Bundle, tmp_path: Path) -> None:
    out, sockets = tmp_path / "out.json", tmp_path / "sockets"
    words = ["-m", "hmarl.runtime.commands.fleet", str(toy_bundle.path), "--out", str(out), "--json"]
    with terminal_process(*words, "--socket-dir", str(sockets)) as (process, hang_up):
        assert process.stdout is not None
        control = Path(json.loads(process.stdout.readline())["control"])
        assert control.is_socket()
        members = children(process.pid)
        hang_up()
        assert process.wait(LIMIT_S) == 0
        assert not any(alive(pid) for pid in members)
    assert not out.exists()
    assert not control.parent.exists()
    assert list(sockets.iterdir()) == []


def test_a_file_that_changes_is_locked_all_the_while_and_never_half_written(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    file = EndpointsFile(path)
    seen, free, ended = [], [], threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.append(json.loads(path.read_bytes())["number"])
            with path.open() as stream, suppress(BlockingIOError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                    free.append(seen[-1])  # and it was not replaced in between

    file.write({"number": 0})
    looking = threading.Thread(target=look)
    looking.start()
    for number in range(1, 50):
        file.write({"number": number})
    ended.set()
    looking.join(LIMIT_S)
    assert seen == sorted(seen)
    assert (seen != [], free) == (True, [])
    assert json.loads(path.read_bytes())["number"] == 49
    with pytest.raises(UsageError, match="belongs to a fleet that is running"):
        EndpointsFile(path)
    assert list(tmp_path.iterdir()) == [path]
    file.remove()
    file.write({"number": 50})  # a reload that ends while the fleet stops
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_took_its_place_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    file = EndpointsFile(path)
    file.write({"number": 0})
    path.unlink()
    file.write({"number": 1})
    assert json.loads(path.read_bytes())["number"] == 1
    path.unlink()
    path.write_text("precious")
    with pytest.raises(UsageError, match="no fleet wrote it"):
        file.write({"number": 2})
    file.remove()
    assert path.read_text() == "precious"
