"""Checkpoints: what goes in comes out, and what is damaged is recognised."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.records.checkpoint import (
    CheckpointError,
    Counters,
    find_checkpoint,
    flatten,
    mark_best,
    newest_checkpoint,
    prune,
    read_checkpoint,
    read_object,
    restore,
    write_checkpoint,
)
from training_runs import new_algorithm

pytestmark = pytest.mark.usefixtures("single_thread")


def tensors(number: float) -> dict[str, Tensor]:
    return {"a.b": torch.full((2, 3), number), "count": torch.tensor(7), "empty": torch.zeros(0)}


def write(folder: Path, steps: int) -> Path:
    return write_checkpoint(folder, tensors(float(steps)), Counters(update=steps // 10, steps=steps, best_return=-1.5))


def write_several(run: Path, *steps: int) -> Path:
    for each in steps:
        write(run / "checkpoints", each)
    return run / "checkpoints"


def test_written_tensors_and_counters_come_back(tmp_path: Path) -> None:
    strided = torch.arange(12.0).view(3, 4).T
    everything = {
        "strided": strided,
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "mask": torch.tensor([True, False]),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    counters = Counters(update=3, steps=75, episodes=2, best_return=-3.25, last_evaluation=50)
    path = write_checkpoint(tmp_path, everything, counters)
    read = read_checkpoint(path)
    assert path.name == "step-000000000075.safetensors"
    assert read.counters == counters
    assert set(read.tensors) == set(everything)
    for name, tensor in everything.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)


def test_a_checkpoint_is_safetensors_and_json_without_pickle(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    content = path.read_bytes()
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    assert header["a.b"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": header["a.b"]["data_offsets"]}
    assert json.loads(path.with_suffix(".json").read_text())["format"] == 1
    # Neither a zip archive (torch.save) nor a pickle's opcode; no temporary file stays behind.
    assert not content.startswith((b"PK", b"\x80"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-000000000010.json", path.name]


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        (name, environment)
        for name, algorithm in ALGORITHMS.items()
        for environment in ("toy_environments:leaving", "toy_environments:masked_discrete")
        if not (algorithm.discrete_only and environment.endswith("leaving"))
    ],
)
def test_a_trained_algorithm_survives_flatten_and_restore(name: str, environment: str, tmp_path: Path) -> None:
    """The restored copy makes the same next update to the last bit, optimisers and normalisers included."""
    settings = {"critic": "q"} if name == "hcpo" else {}
    first, rollout, collector = new_algorithm(name, environment, 3, 8, **settings)
    collector.collect(first)
    first.update(rollout, 0.0)
    episodes = collector.get_state()
    assert episodes is not None
    learnt = {"components": first.components(), "experience": first.experience()}
    path = write_checkpoint(tmp_path, flatten(learnt), Counters())
    second, another_rollout, another_collector = new_algorithm(name, environment, 3, 8, **settings)
    restore({"components": second.components(), "experience": second.experience()}, read_checkpoint(path).tensors)
    another_collector.set_state(episodes)
    for generator in ("generator", "noise_generator"):
        getattr(second, generator).set_state(getattr(first, generator).get_state())
    second.load_acting_state(first.acting_state())
    for algorithm, buffer, source in ((first, rollout, collector), (second, another_rollout, another_collector)):
        source.collect(algorithm)
        algorithm.update(buffer, 0.5)
    expected, got = flatten(first.components()), flatten(second.components())
    assert set(expected) == set(got)
    for key, tensor in expected.items():
        assert torch.equal(tensor, got[key]), key


def test_restoring_does_not_tie_the_algorithm_to_the_tensors(tmp_path: Path) -> None:
    algorithm, rollout, collector = new_algorithm("happo", "toy_environments:masked_discrete", 3, 8)
    collector.collect(algorithm)
    algorithm.update(rollout, 0.0)
    before = {key: tensor.clone() for key, tensor in flatten(algorithm.components()).items()}
    kept = {key: tensor.clone() for key, tensor in before.items()}
    restore(algorithm.components(), before)
    algorithm.update(rollout, 0.0)
    for key, tensor in kept.items():
        assert torch.equal(before[key], tensor), f"{key}: an update changed what had been restored from"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("policies.0", r"'policies\.0' has shape \(1, 1\), expected \(2, \d+\)"),
        ("critic.network.theta", r"'critic\.network\.theta' has shape \(1, 1\), expected \(\d+,\)"),
        ("observation_normalisers.0.mean", r"'observation_normalisers\.0\.mean' has shape \(1, 1\), expected \(2, 3\)"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(key: str, message: str) -> None:
    algorithm, _, _ = new_algorithm("hatrpo", "toy_environments:masked_discrete", 3, 8)
    saved = {name: tensor.clone() for name, tensor in flatten(algorithm.components()).items()}
    with pytest.raises(CheckpointError, match=message):
        restore(algorithm.components(), {**saved, key: torch.zeros(1, 1)})


@pytest.mark.parametrize(
    ("key", "message"),
    [("policies.0", "'policies.0' has shape nothing"), ("state_normaliser.mean", "'state_normaliser' lacks 'mean'")],
)
def test_a_missing_tensor_is_named(key: str, message: str) -> None:
    algorithm, _, _ = new_algorithm("hatrpo", "toy_environments:masked_discrete", 3, 8)
    saved = flatten(algorithm.components())
    del saved[key]
    with pytest.raises(CheckpointError, match=message):
        restore(algorithm.components(), saved)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flipped":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no description":
        path.with_suffix(".json").unlink()
    elif how == "description cut off":
        path.with_suffix(".json").write_text('{"format": 1, "sha2')
    else:
        description = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps({**description, "format": 99}))


HOW = ["flipped", "cut off", "empty", "no description", "description cut off", "future format"]


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_several(tmp_path, 10, 20, 30)
    damage(folder / "step-000000000030.safetensors", how)
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(folder)
    assert found.counters.steps == 20
    assert torch.equal(found.tensors["a.b"], torch.full((2, 3), 20.0))
    (record,) = caplog.records
    assert "step-000000000030" in record.getMessage()
    assert "trying the one before it" in record.getMessage()


def test_without_a_good_checkpoint_the_error_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no usable checkpoint .* \(found none\)") as none:
        newest_checkpoint(tmp_path / "checkpoints")
    assert none.value.exit_code == 3
    folder = write_several(tmp_path, 10, 20)
    for path in folder.glob("*.safetensors"):
        damage(path, "flipped")
    with pytest.raises(CheckpointError, match="found 2 damaged ones"):
        newest_checkpoint(folder)


def test_checkpoints_are_found_by_name(tmp_path: Path) -> None:
    folder = write_several(tmp_path, 10, 20, 30)
    assert find_checkpoint(tmp_path, "last").counters.steps == 30
    assert find_checkpoint(tmp_path, "20").counters.steps == 20
    with pytest.raises(CheckpointError, match=r"no best checkpoint: it has not been evaluated yet; use --che.* last"):
        find_checkpoint(tmp_path, "best")
    mark_best(folder, folder / "step-000000000010.safetensors", 4.0)
    assert find_checkpoint(tmp_path, "best").counters.steps == 10
    (folder / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json: damaged \(.*; use --checkpoint last"):
        find_checkpoint(tmp_path, "best")
    for wrong in ("25", "newest", "-10", ""):
        with pytest.raises(CheckpointError, match=r"got '.*', expected best, last or one of \[10, 20, 30\]"):
            find_checkpoint(tmp_path, wrong)


def test_files_that_are_no_checkpoints_are_left_alone(tmp_path: Path) -> None:
    folder = write_several(tmp_path, 10, 20)
    stray = folder / "step-old.safetensors"
    stray.write_bytes(b"mine")
    assert find_checkpoint(tmp_path, "10").counters.steps == 10
    assert find_checkpoint(tmp_path, "last").counters.steps == 20
    prune(folder, keep=1, steps=20)
    assert {path.stem for path in folder.glob("*.safetensors")} == {"step-000000000020", "step-old"}


@pytest.mark.parametrize("content", ["", '{"final": ', "[1]", "3"])
def test_a_damaged_object_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"summary.json: damaged \("):
        read_object(path)


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    folder = write_several(tmp_path, 10, 20, 30, 40, 50)
    mark_best(folder, folder / "step-000000000020.safetensors", 4.0)
    prune(folder, keep=2, steps=50)
    assert sorted(path.stem[-2:] for path in folder.glob("step-*.safetensors")) == ["20", "40", "50"]
    assert sorted(path.stem[-2:] for path in folder.glob("step-*.json")) == ["20", "40", "50"]
    assert find_checkpoint(tmp_path, "best").counters.steps == 20
    prune(folder, keep=9, steps=50)
    assert len(list(folder.glob("step-*.safetensors"))) == 3


def test_prune_deletes_nothing_while_the_best_one_is_unknown(tmp_path: Path) -> None:
    folder = write_several(tmp_path, 10, 20, 30)
    (folder / "best.json").write_text("{")
    prune(folder, keep=1, steps=30)
    assert len(list(folder.glob("step-*.safetensors"))) == 3


def test_what_resuming_passed_over_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    folder = write_several(tmp_path, 400, 500, 600)
    (folder / "step-000000000600.safetensors").write_bytes(b"cut short")
    prune(folder, keep=1, steps=500)
    assert find_checkpoint(tmp_path, "last").counters.steps == 500
    assert sorted(path.stem[-3:] for path in folder.glob("step-*.safetensors")) == ["500", "600"]
