"""Large observations: what is compared and recorded is bounded in bytes, and what no ONNX file holds is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hmarl.runtime.verify import verify_bundle
from hmarl.sdk.environments import make
from hmarl.trainer.contract import deployable
from hmarl.trainer.export import export, samples
from training_runs import tiny_config, train

TEAM = "pettingzoo/named_teams:make"
SIZE = 100_000
ROW_BYTES = 4 * SIZE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "run"
    arguments = {"workers": 0, "observation_size": SIZE}
    # One row of weights an input, so that the observations are what is large.
    settings = {"hidden_sizes": (2,), "critic_hidden_sizes": (2,)}
    run = {"environments": 1, "rollout_length": 5, "steps": 5, "evaluation_episodes": 1}
    train(tiny_config("happo", TEAM, settings, run, arguments), folder)
    return folder


def test_samples_are_bounded_in_bytes(run: Path, tmp_path: Path) -> None:
    bundle = export.export_run(run, tmp_path / "bundle")
    parity = bundle.manifest.parity[0]
    assert parity.batch_sizes == [1, 2, 7, 64]
    seen = parity.samples - 2 * sum(parity.batch_sizes)
    assert seen * ROW_BYTES <= samples.COMPARED_BYTES
    recorded = {name: len(bundle.read(name)) for name in bundle.manifest.files if name.startswith("parity/")}
    assert sum(recorded.values()) <= 2 * samples.RECORDED_BYTES
    rows = [report.parity_samples for report in verify_bundle(bundle)]
    assert rows == [samples.RECORDED_BYTES // ROW_BYTES] * 2
    assert not any(report.problems for report in verify_bundle(bundle))


def test_rollouts_never_hold_more_than_is_compared() -> None:
    """However large the observation, every agent's first one is there."""
    for size, rows in ((3, 1024), (SIZE, 80), (2**23, 1)):
        arguments = {"workers": 0, "observation_size": size, "names": ["a", "b"]}
        environment = make(TEAM, 1, **arguments)
        environment.close()
        seen = samples.rollout_observations(TEAM, arguments, environment.spec)
        assert [each["observation"].shape for each in seen] == [(rows, size)] * 2
        assert all(each["observation"].abs().max() > 0 for each in seen)


def test_a_policy_too_large_for_a_file_is_refused_before_any_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr(deployable, "LARGEST_GRAPH_BYTES", 1_000_000)
    monkeypatch.setattr(export, "onnx_bytes", lambda graph: pytest.fail("it was exported all the same"))
    code, _, errors = call("export", str(run), "--out", str(tmp_path / "bundle"))
    assert code == 2
    assert "agent 'a': its policy has 1,6" in errors
    assert "expected at most 1,000,000, which an ONNX file holds; it observes 100,000 numbers" in errors
    assert not (tmp_path / "bundle").exists()


def test_students_too_large_for_a_file_are_refused_before_they_are_distilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    config = tiny_config("magpo", TEAM, {"embedding_size": 8}, None, {"workers": 0, "observation_size": 1000})
    train(config, tmp_path / "run")
    monkeypatch.setattr(deployable, "LARGEST_GRAPH_BYTES", 100_000)
    code, _, errors = call("export", str(tmp_path / "run"), "--distil", "--set", "distillation.hidden_sizes=[64]")
    assert code == 2
    assert "agent 'a': its policy has " in errors
    assert "make distillation.hidden_sizes smaller" in errors
    assert not list((tmp_path / "run").glob("students/*.safetensors"))
