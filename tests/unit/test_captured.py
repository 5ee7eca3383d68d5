"""Steps that a GPU repeats by itself are those that the host would have made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hmarl.trainer.learning.captured import CapturedSteps, layout, tensors_of, with_tensors
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.runs.training import Training
from training_runs import CPU, of_use, tiny_config

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
SMALL: dict[str, Any] = {"embedding_size": 8, "epochs": 3, "minibatches": 2, "conductor_hidden_sizes": (8,)}
# Every guider, groups of unlike agents, epochs in which local policies learn alone, numbers that change, real actions.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("magpo", "mpe/simple_spread", {}),
    ("magpo", "mpe/simple_spread", {"guider_epochs": 1, "credit": "own", "recurrent": False}),
    ("magpo", "mpe/simple_speaker_listener", {"delta": "auto", "learning_rate_decay": "linear"}),
    ("magpo", "mpe/simple_spread", {"guider": "sable", "share_parameters": True}),
    ("magpo", "mpe/simple_spread", {"guider": "factorised", "minibatches": 1}),
    ("magpo", "mpe/simple_speaker_listener", {"guider": "factorised", "credit": "own", "guider_sees_state": True}),
    ("magpo", "vmas/navigation", {"value_encoder": "own"}),
    ("magpo", "toy_environments:masked_discrete", {}),
    ("ctds", "mpe/simple_spread", {}),
    ("guided-hcpo", "mpe/simple_spread", {}),
    ("mat", "mpe/simple_spread", {"reshuffle": False}),
    ("sable", "mpe/simple_spread", {}),
]


@dataclass(frozen=True)
class Part:
    """What a step may learn from."""

    seen: list[Tensor]
    mask: Tensor | None
    order: tuple[int, ...]
    teacher: Categorical


def part(scale: float) -> Part:
    """Of three numbers."""
    return Part([scale * torch.ones(2), scale * torch.zeros(1)], None, (1, 0), Categorical(scale * torch.eye(2)))


def test_a_copy_has_the_other_tensors_and_leaves_the_first_alone() -> None:
    first, second = part(1.0), part(2.0)
    copied = with_tensors(first, tensors_of(second))
    assert [each.tolist() for each in tensors_of(copied)] == [each.tolist() for each in tensors_of(second)]
    assert (copied.mask, copied.order) == (None, (1, 0))
    torch.testing.assert_close(copied.teacher.entropy(), second.teacher.entropy())
    assert len(list(tensors_of(copied))) == 4, "what was worked out of the copy"
    assert len(list(tensors_of(first))) == 3
    assert first.teacher.logits.tolist() == torch.eye(2).tolist()


def test_what_differs_by_more_than_what_its_tensors_say_is_recorded_by_itself() -> None:
    first = part(1.0)
    assert layout(first) == layout(part(2.0)) == layout(replace(first, order=(0, 1)))
    masked = replace(first, mask=torch.ones(2))
    longer = replace(first, seen=[torch.ones(2), torch.zeros(2)])
    assert len({layout(each) for each in (first, masked, longer)}) == 3


def test_what_tensors_could_be_overlooked_in_is_refused() -> None:
    with pytest.raises(TypeError, match="got dict"):
        list(tensors_of([{"seen": torch.ones(2)}]))


def test_on_the_cpu_a_step_is_taken_as_it_is() -> None:
    given = part(1.0)
    taken: list[tuple[Any, ...]] = []

    def step(*arguments: Any) -> dict[str, Tensor]:
        taken.append(arguments)
        return {}

    steps = CapturedSteps([], CPU, wanted=True).of(step, 0.2, 0.5)
    steps(given)
    assert taken == [(given, 0.2, 0.5)]
    assert taken[0][0] is given


def test_a_step_whose_rates_lie_on_the_device_goes_as_far() -> None:
    theta, gradient = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.3, -0.1, 20.0])
    host, device = FlatAdam(theta.clone(), 0.1, 5.0), FlatAdam(theta.clone(), 0.1, 5.0)
    rates = device.rates = torch.empty(2)
    for schedule in (1.0, 1.0, 0.5, 0.25):
        host.descend(gradient, schedule)
        # A step that is repeated is told the same as one that the host makes, and so has the same arithmetic.
        steps = device.steps
        device.repeat(schedule)
        told, device.steps = rates.clone(), steps
        device.descend(gradient, schedule)
        assert torch.equal(rates, told)
        torch.testing.assert_close(device.parameter, host.parameter, rtol=1e-6, atol=1e-7)
        assert (device.steps, device.step_size) == (host.steps, host.step_size)


def test_a_restored_optimiser_keeps_its_moments_where_they_are() -> None:
    optimiser = FlatAdam(torch.zeros(2), 0.1, 5.0)
    optimiser.descend(torch.ones(2))
    moments = [each.data_ptr() for name, each in optimiser.state_dict().items() if name != "step"]
    kept = {name: each.clone() for name, each in optimiser.state_dict().items()}
    optimiser.descend(torch.ones(2))
    optimiser.load_state_dict(kept)
    assert [each.data_ptr() for name, each in optimiser.state_dict().items() if name != "step"] == moments
    assert all(torch.equal(each, kept[name]) for name, each in optimiser.state_dict().items())
    optimiser.load_state_dict({})
    assert (optimiser.steps, optimiser.state_dict()) == (0, {})


def training_of(algorithm: str, environment: str, settings: dict[str, Any]) -> Training:
    """On the GPU."""
    return Training(tiny_config(algorithm, environment, of_use(algorithm, {**SMALL, **settings}), {"device": "cuda"}))


def updated(training: Training, updates: range) -> list[dict[str, float]]:
    """What updates said of themselves."""
    said = []
    for number in updates:
        training.collect()
        metrics, divergence = training.update(number / 4)
        assert divergence is None
        said.append(metrics)
    return said


def assert_close(got: Training, expected: Training) -> None:
    """All that was learnt; sums of many numbers are in no fixed order on a GPU."""
    mine, others = (
        {name: tensor for name, tensor in each.tensors().items() if name.startswith("algorithm.")}
        for each in (expected, got)
    )
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        if name.endswith(".step"):
            assert torch.equal(others[name], tensor), name
        elif "optimiser" not in name:
            torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-3, msg=partial(_named, name))


def _named(name: str, text: str) -> str:
    return f"{name}: {text}"


@NO_GPU
@pytest.mark.parametrize(("algorithm", "environment", "settings"), CASES)
def test_what_is_captured_comes_to_the_same(algorithm: str, environment: str, settings: dict[str, Any]) -> None:
    plain = training_of(algorithm, environment, settings)
    captured = training_of(algorithm, environment, {**settings, "cuda_graphs": True})
    for metrics, expected in zip(updated(captured, range(4)), updated(plain, range(4)), strict=True):
        assert metrics == pytest.approx(expected, rel=1e-2, abs=1e-4)
    for training, graphs in ((plain, False), (captured, True)):
        of_steps = getattr(training.algorithm, "guidance", training.algorithm)
        recordings = of_steps.steps._recordings
        assert any(recording is not None for recording in recordings.values()) == graphs
        training.close()
    assert_close(captured, plain)


@NO_GPU
def test_what_was_restored_is_what_graphs_go_on_from() -> None:
    first, second = (training_of("magpo", "mpe/simple_spread", {"cuda_graphs": True}) for _ in range(2))
    updated(first, range(2))
    updated(second, range(1))
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()}, 2)
    for training in (first, second):
        updated(training, range(2, 4))
        training.close()
    assert_close(second, first)
