"""An update asks a device for numbers once it is done, not while it goes on: every question makes the host wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.learning.metrics import numbers, read
from hmarl.trainer.runs.training import Training
from host_waits import HostWaits
from training_runs import of_use, tiny_config

ENVIRONMENT = "mpe/simple_spread"
AGENTS = 3
SMALL: dict[str, Any] = {"embedding_size": 8, "goal_size": 3, "conductor_hidden_sizes": (8,), "instructions": 3}
# Whether the next epoch follows (adaptive step sizes) and who is next (semi-greedy orders) is for the host to say, and
# is tested below; hierarchies have messages along edges, whose number only the device knows.
FIXED: dict[str, dict[str, Any]] = {"hamdpo": {"step_size_schedule": "linear"}, "a2po": {"semi_greedy": False}}
FEW = {"epochs": 1, "minibatches": 1, "critic_epochs": 1, "critic_minibatches": 1, "distillation_epochs": 1}
FEW |= {"gradient_steps": 1, "conjugate_gradient_steps": 1}
MANY = {"epochs": 3, "minibatches": 2, "critic_epochs": 3, "critic_minibatches": 2, "distillation_epochs": 3}
MANY |= {"gradient_steps": 4, "conjugate_gradient_steps": 6}


def waits_of(algorithm: str, settings: dict[str, Any], environment: str = ENVIRONMENT) -> HostWaits:
    """Those of a second update; in the first, numbers of agents are taken to the device."""
    config = tiny_config(
        algorithm, environment, of_use(algorithm, {**SMALL, **FIXED.get(algorithm, {}), **settings}), {}
    )
    training = Training(config)
    try:
        training.collect()
        training.update(0.0)
        training.collect()
        with HostWaits() as waits:
            _, divergence = training.update(0.1)
        assert divergence is None
        return waits
    finally:
        training.close()


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS.keys() - {"himpo"}))
def test_no_step_of_an_update_makes_the_host_wait(algorithm: str) -> None:
    few, many = waits_of(algorithm, FEW), waits_of(algorithm, MANY)
    for waits in (few, many):
        waits.places.pop("trust_region.py:_line_search", None)  # as many as there are tries
    assert many.places == few.places
    assert many.count >= 3


def test_no_step_of_a_factorised_guider_waits() -> None:
    """Of agents with a value each, which its network has in another order than the groups."""
    few, many = (waits_of("magpo", {**each, "guider": "factorised", "credit": "own"}) for each in (FEW, MANY))
    assert many.places == few.places


# Whether the rollout is finite, and whether what was learnt from it is.
FINITE = {"finite.py:broken_rollout": 1, "finite.py:<genexpr>": 1}
OF_AGENTS = {"turns.py:per_agent_metrics": 1, "critic.py:fit": 1}
OF_STEPS = {"trust_region.py:trust_region_step": AGENTS, "trust_region.py:_line_search": AGENTS}


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        *((algorithm, OF_AGENTS) for algorithm in ("happo", "mappo", "haa2c", "ippo", "a2po")),
        ("hatrpo", OF_AGENTS | OF_STEPS),
        ("mat", {"mat.py:update": 1, "trained.py:adopt_units": 1}),
    ],
)
def test_how_often_an_update_waits(algorithm: str, expected: dict[str, int]) -> None:
    """When all agents have improved, and when the critic has; a trust-region step asks for its gradient's size and for
    what each try brings.
    """
    waits = waits_of(algorithm, {**MANY, "backtracks": 1})
    assert waits.places == FINITE | expected


def test_who_goes_first_is_asked_at_every_other_place() -> None:
    random, greedy = waits_of("a2po", {"semi_greedy": False}), waits_of("a2po", {"semi_greedy": True})
    assert greedy.places - random.places == {"a2po.py:next_agent": -(-AGENTS // 2)}


def test_an_adaptive_step_size_asks_once_an_epoch_and_once_an_agent() -> None:
    # So large a target that no epoch is left out.
    adaptive = {"step_size_schedule": "adaptive", "kl_target": 10.0, "minibatches": 3}
    linear = waits_of("hamdpo", {"epochs": 4})
    waits = waits_of("hamdpo", {**adaptive, "epochs": 4})
    assert waits.count - linear.count <= AGENTS * (3 + 3)  # 3 further epochs; η, what came of it and the next η


@pytest.mark.parametrize("environment", ["mpe/simple_spread", "coordsum/3x10-30"])
def test_a_rollout_waits_no_more_often_the_longer_it_is(environment: str) -> None:
    counts = []
    for steps in (6, 18):
        config = tiny_config("happo", environment, {}, {"rollout_length": steps}, {"backend": "torch"})
        training = Training(config)
        with HostWaits() as waits:
            training.collect()
        training.close()
        counts.append({place: count for place, count in waits.places.items() if not _checks_on_the_cpu(place)})
    assert counts[0] == counts[1]


def _checks_on_the_cpu(place: str) -> bool:
    """Actions are looked at where they lie in the host's memory (``actions_on``)."""
    return place.startswith("__init__.py")


def test_reading_keeps_numbers_and_brings_tensors_as_they_are() -> None:
    third = torch.tensor(1.0) / 3.0
    figures = read({"a": 0.1, "b": third, "c": torch.tensor(7), "d": torch.tensor(True)})
    assert figures == {"a": 0.1, "b": float(third), "c": 7.0, "d": 1.0}
    assert list(figures) == ["a", "b", "c", "d"]
    assert numbers([]) == []


def test_reading_many_figures_is_one_wait() -> None:
    figures = {str(number): torch.tensor(float(number)) for number in range(5)}
    with HostWaits() as waits:
        assert read(figures)["4"] == 4.0
    assert waits.count == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("algorithm", ["happo", "mappo", "ippo", "haa2c", "magpo"])
def test_torch_itself_finds_no_wait_in_a_minibatch_loop(algorithm: str) -> None:
    from torch.cuda import set_sync_debug_mode  # noqa: PLC0415 - of a device

    from hmarl.trainer.networks.optimiser import FlatAdam  # noqa: PLC0415

    training = Training(tiny_config(algorithm, ENVIRONMENT, of_use(algorithm, {**SMALL, **MANY}), {"device": "cuda"}))
    step, steps = FlatAdam.step, 0

    def watched(self: FlatAdam, loss: torch.Tensor, schedule: float = 1.0) -> torch.Tensor:
        """From one step to the next nothing may be asked; the first step of an agent begins the watch."""
        nonlocal steps
        set_sync_debug_mode("error")
        steps += 1
        try:
            return step(self, loss, schedule)
        finally:
            set_sync_debug_mode("default")

    try:
        training.collect()
        training.update(0.0)
        training.collect()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FlatAdam, "step", watched)
            training.update(0.1)
    finally:
        set_sync_debug_mode("default")
        training.close()
    assert steps
