"""hmarl-export --sign: the bundle is signed when it appears, and a wrong key is told before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.signing.keys import new_key
from training_runs import tiny_config, train

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of a second."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config("happo", "toy_environments:masked_discrete"), folder)
    return folder


def test_an_export_is_signed_and_otherwise_the_same(run: Path, tmp_path: Path, call: Call) -> None:
    public, fingerprint = new_key(tmp_path / "team.pem")
    found = []
    for name, more in (("plain", []), ("signed.zip", ["--sign", str(tmp_path / "team.pem")])):
        code, output, error = call("export", str(run), "--name", "same", "--out", str(tmp_path / name), "--json", *more)
        assert code == 0, error
        assert (f"signed by key {fingerprint}" in " ".join(error.split())) == bool(more)
        found.append(json.loads(output.splitlines()[-1])["sha256"])
    assert found[0] == found[1] == load_bundle(tmp_path / "signed.zip", public).sha256


def test_a_wrong_key_is_told_and_nothing_is_written(run: Path, tmp_path: Path, call: Call) -> None:
    target = tmp_path / "b"
    code, _, error = call("export", str(run), "--out", str(target), "--sign", str(tmp_path / "nowhere.pem"))
    assert code == 2
    assert "nowhere.pem: cannot read: No such file or directory" in error
    code, _, error = call("export", str(run), "--out", str(target), "--certificate", str(tmp_path / "chain.pem"))
    assert code == 2
    assert "--certificate: got" in error
    assert not target.exists()
