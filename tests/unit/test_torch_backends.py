"""Families of ours in torch: the NumPy ones, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hmarl.sdk.environment import StepResult, VectorEnvironment, as_array, as_numpy
from hmarl.sdk.environments import backends, make
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.errors import MissingExtraError, UsageError
from hmarl.sdk.team import RandomTeam
from hmarl.trainer.runs.training import Training
from training_runs import tiny_config

BATCH = 5
SEEDS = np.arange(BATCH) + 3
CASES: list[tuple[str, dict[str, Any]]] = [
    ("coordsum/3x10-30", {}),
    ("coordsum/5x20-80", {"record": "reference"}),
    ("mpe/simple_reference", {"max_cycles": 7}),
    ("mpe/simple_reference", {"max_cycles": 7, "continuous_actions": True, "local_ratio": 0.3}),
    ("mpe/simple_speaker_listener", {"max_cycles": 7}),
    ("mpe/simple_speaker_listener", {"max_cycles": 7, "continuous_actions": True}),
    ("mpe/simple_spread", {"max_cycles": 7}),
    ("mpe/simple_spread", {"max_cycles": 30, "N": 5, "local_ratio": 0.2}),
    ("mpe/simple_spread", {"max_cycles": 7, "continuous_actions": True}),
    ("mpe/simple_spread", {"max_cycles": 60, "N": 1, "terminate_on_success": True, "continuous_actions": True}),
]
IDS = [f"{name}-{'-'.join(map(str, arguments))}" for name, arguments in CASES]


def both(name: str, arguments: dict[str, Any]) -> tuple[VectorEnvironment, VectorEnvironment]:
    """In NumPy and in torch."""
    return make(name, BATCH, **arguments), make(name, BATCH, backend="torch", **arguments)


def assert_alike(name: str, expected: Any, got: Any) -> None:
    """To the last bit; where agents touch, but for the last digits of a softplus."""
    if expected is None or got is None:
        assert expected is got
        return
    assert isinstance(got, torch.Tensor)
    values = as_array(got)
    assert (values.shape, values.dtype) == (expected.shape, expected.dtype)
    if "spread" in name and values.dtype.kind == "f":
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(values, expected)


def assert_same_step(name: str, expected: StepResult, got: StepResult) -> None:
    """All that a step hands over."""
    for field in ("rewards", "terminated", "truncated", "success"):
        assert_alike(name, getattr(expected, field), getattr(got, field))
    for first, second in ((expected.observation, got.observation), (expected.final, got.final)):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert_alike(name, first.observations[0], second.observations[0])
            assert_alike(name, first.state, second.state)
            assert_alike(name, first.active, second.active)


def drawn_actions(environment: VectorEnvironment, team: RandomTeam, seen: Any) -> tuple[np.ndarray, ...]:
    """Random ones."""
    running = np.ones(environment.batch_size, dtype=bool)
    return tuple(np.asarray(each) for each in team.act(as_numpy(seen), running))


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_torch_plays_the_same_episodes_from_the_same_seeds(name: str, arguments: dict[str, Any]) -> None:
    plain, device = both(name, arguments)
    first, second = plain.reset(SEEDS), device.reset(SEEDS)
    assert_alike(name, first.state, second.state)
    team = RandomTeam(plain.spec)
    team.reset(SEEDS)
    ends = 0
    for _ in range(210 if "coordsum" in name else 120):
        actions = drawn_actions(plain, team, first)
        expected, got = plain.step(actions), device.step(tuple(torch.from_numpy(each) for each in actions))
        assert_same_step(name, expected, got)
        ends += int(expected.truncated.sum()) * (not arguments.get("terminate_on_success"))
        ends += int(expected.terminated.sum())
        first = expected.observation
    assert ends, "no episode ended"


@pytest.mark.parametrize(("name", "arguments"), [CASES[0], CASES[2], CASES[5], CASES[6]], ids=str)
def test_either_backend_goes_on_from_the_others_state(name: str, arguments: dict[str, Any]) -> None:
    plain, device = both(name, arguments)
    plain.reset(SEEDS)
    device.reset(SEEDS + 50)
    team = RandomTeam(plain.spec)
    team.reset(SEEDS)
    seen = plain.reset(SEEDS)
    for _ in range(4):
        seen = plain.step(drawn_actions(plain, team, seen)).observation
    saved = plain.get_state()
    assert saved is not None
    assert_alike(name, seen.state, device.set_state(saved).state)
    again = device.get_state()
    assert again is not None
    assert again.keys() == saved.keys()
    for key, value in saved.items():
        np.testing.assert_array_equal(again[key], value)
    for _ in range(10):
        actions = drawn_actions(plain, team, seen)
        expected, got = plain.step(actions), device.step(actions)
        assert_same_step(name, expected, got)
        seen = expected.observation
    assert_alike(
        name, plain.set_state(device.get_state() or {}).state, device.set_state(device.get_state() or {}).state
    )
    picture = device.render(1)
    assert picture is not None
    assert picture.ndim == 3


@pytest.mark.parametrize(("name", "steps"), [("coordsum/3x10-30", 102), ("mpe/simple_spread", 27)])
def test_torch_backends_conform(name: str, steps: int) -> None:
    results = check_environment(lambda batch: make(name, batch, backend="torch"), batch_size=2, steps=steps)
    assert [result for result in results if not result.passed] == []


def test_the_same_picture_is_drawn() -> None:
    plain, device = both("mpe/simple_reference", {})
    plain.reset(SEEDS)
    device.reset(SEEDS)
    np.testing.assert_array_equal(plain.render(2), device.render(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "jax"}, "backend: got 'jax', expected 'numpy' or 'torch'"),
        ({"device": "cuda"}, "device: got 'cuda' with backend=numpy, expected 'cpu'; add backend=torch"),
        ({"backend": "torch", "device": "gpu"}, "device: got 'gpu', expected 'cpu' or a CUDA device of this machine"),
        ({"backend": "torch", "device": "meta"}, "device: got 'meta', expected 'cpu' or a CUDA device of this machine"),
        ({"backend": "torch", "device": 3}, "device: got 3, expected the name of a torch device"),
    ],
)
@pytest.mark.parametrize("name", ["coordsum/3x10-30", "mpe/simple_spread"])
def test_what_cannot_be_is_refused_by_name(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        make(name, 2, **arguments)
    assert message in str(refusal.value)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"mpe/simple_spread with backend=torch needs .*hmarl\[train\]"):
        make("mpe/simple_spread", 2, backend="torch")


def test_actions_out_of_range_are_refused() -> None:
    environment = make("coordsum/3x10-30", 2, backend="torch")
    environment.reset(SEEDS[:2])
    with pytest.raises(UsageError, match="got 0 to 10, expected 0 to 9"):
        environment.step((torch.tensor([[0, 1, 10], [0, 0, 0]]),))


@pytest.mark.parametrize(
    ("algorithm", "environment"), [("happo", "coordsum/3x10-30"), ("mappo", "mpe/simple_reference")]
)
def test_learning_from_tensors_is_learning_from_arrays(algorithm: str, environment: str) -> None:
    learnt, returns = [], []
    for arguments in ({}, {"backend": "torch"}):
        training = Training(tiny_config(algorithm, environment, {}, {"rollout_length": 52}, arguments))
        for progress in (0.0, 0.5):
            returns.append(training.collect())
            training.update(progress)
        learnt.append(training.tensors())
        training.close()
    assert returns[:2] == returns[2:]
    assert returns[1].returns, "no episode ended"
    assert learnt[0].keys() == learnt[1].keys()
    for name, tensor in learnt[0].items():
        assert torch.equal(tensor, learnt[1][name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_a_gpu_plays_the_same_episodes(name: str, arguments: dict[str, Any]) -> None:
    plain, device = make(name, BATCH, **arguments), make(name, BATCH, backend="torch", device="cuda", **arguments)
    seen = plain.reset(SEEDS)
    device.reset(SEEDS)
    team = RandomTeam(plain.spec)
    team.reset(SEEDS)
    for _ in range(20):
        actions = drawn_actions(plain, team, seen)
        expected = plain.step(actions)
        got = device.step(tuple(torch.from_numpy(each).cuda() for each in actions))
        assert got.observation.state.is_cuda
        np.testing.assert_allclose(as_array(got.rewards), expected.rewards, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(as_array(got.observation.state), expected.observation.state, rtol=1e-5, atol=1e-5)
        seen = expected.observation


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("environment", ["coordsum/3x10-30", "mpe/simple_spread"])
def test_a_rollout_on_a_gpu_does_not_make_the_host_wait(environment: str) -> None:
    """But when episodes begin, whose numbers the host draws: none does in these steps."""
    from torch.cuda import set_sync_debug_mode  # noqa: PLC0415 - of a device

    config = tiny_config(
        "happo", environment, {}, {"rollout_length": 20, "device": "cuda"}, {"backend": "torch", "device": "cuda"}
    )
    training = Training(config)
    training.collect()
    training.close()
    made = make(environment, 4, backend="torch", device="cuda")
    seen = made.reset(np.arange(4))
    actions = tuple(torch.zeros(4, len(group.agents), dtype=torch.int64, device="cuda") for group in made.spec.groups)
    made.step(actions)
    set_sync_debug_mode("error")
    try:
        for _ in range(10):
            seen = made.step(actions).observation
    finally:
        set_sync_debug_mode("default")
    assert seen.state.is_cuda
