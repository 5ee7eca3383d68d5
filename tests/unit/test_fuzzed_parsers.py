"""What fuzzing found in readers of what strangers wrote; see ``scripts/fuzz_parsers.py``."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from hmarl.sdk import UsageError, load_endpoints
from hmarl.sdk.clients.endpoints import bundle_of_endpoints
from hmarl.sdk.commands._common import parse_settings
from hmarl.trainer.records.checkpoint import CheckpointError, read_checkpoint, read_object

ENDPOINTS = {
    "deep": (b'{"agents":' * 100_000, "lie too deep in each other"),
    "deep lists": (b"[" * 100_000, "lie too deep in each other"),
    "large": (b" " * (2**24 + 1), "got more than 16,777,216 bytes"),
    "a number without end": (b"1" * 10_000, "Exceeds the limit"),
    "not UTF-8": (b"\xff\xfe", "not UTF-8"),
    "no agents": (b"{}", "expected an object 'agents'"),
    "an address that is none": (json.dumps({"agents": {"a": ["x" * 100_000]}}).encode(), "agents.a: got"),
    "a name that is shown": (json.dumps({"agents": {"a\x1b[2J\n": 1}}).encode(), "got 1, expected an address"),
    "a name without end": (json.dumps({"agents": {"a" * 100_000: 1}}).encode(), "got 1, expected an address"),
}


@pytest.mark.parametrize("case", ENDPOINTS)
def test_an_endpoints_file_that_is_none_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    content, message = ENDPOINTS[case]
    (tmp_path / "e.json").write_bytes(content)
    with pytest.raises(UsageError) as error:
        load_endpoints(tmp_path / "e.json")
    assert message in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("case", ["deep", "deep lists", "large", "not UTF-8"])
def test_the_bundle_of_an_endpoints_file_that_is_none_is_refused_alike(tmp_path: Path, case: str) -> None:
    content, message = ENDPOINTS[case]
    (tmp_path / "e.json").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        bundle_of_endpoints(tmp_path / "e.json")


def test_deep_lists_in_a_runs_files_are_damage(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CheckpointError, match=r"summary\.json: damaged \(lists or objects lie too deep"):
        read_object(tmp_path / "summary.json")
    (tmp_path / "step-000000000001.json").write_bytes(b'{"a":' * 100_000)
    with pytest.raises(CheckpointError, match=r"unreadable \(lists or objects lie too deep"):
        read_checkpoint(tmp_path / "step-000000000001.safetensors")


def test_deep_lists_in_a_setting_are_a_text() -> None:
    deep = "[" * 100_000
    assert parse_settings([f"env.key={deep}"]) == {"env": {"key": deep}}


def test_an_endpoints_file_may_come_through_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text('{"agents": {"a": "127.0.0.1:1"}}'))
    writer.start()
    assert load_endpoints(tmp_path / "pipe") == {"a": "127.0.0.1:1"}
    writer.join()
