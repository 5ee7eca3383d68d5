"""Rollouts as arrays: the shares of several workers become the rollout that one would have collected."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmarl.trainer.experience.packing import in_final_order, pack, share_sizes, share_slices, unpack
from hmarl.trainer.experience.rollout import Rollout
from training_runs import new_algorithm

SIZES = (3, 2)


def shares(environment: str, steps: int = 23, **settings: object) -> list[Rollout]:
    """Full rollouts, as two workers collect them."""
    rollouts = []
    for size in SIZES:
        algorithm, rollout, collector = new_algorithm("happo", environment, size, steps, **settings)
        collector.observation = collector._to_device(collector.environment.reset(np.arange(size) + 7 * size))
        collector.collect(algorithm)
        rollouts.append(rollout)
    return rollouts


def whole(rollouts: list[Rollout]) -> Rollout:
    made = Rollout(rollouts[0].spec, rollouts[0].steps, sum(SIZES), torch.device("cpu"))
    unpack([pack(each) for each in rollouts], made)
    return made


def beside(tensors: list[torch.Tensor], axis: int = 1) -> torch.Tensor:
    return torch.cat(tensors, dim=axis)


@pytest.mark.parametrize("environment", ["toy_environments:masked_discrete", "toy_environments:leaving"])
def test_shares_lie_side_by_side(environment: str) -> None:
    parts = shares(environment)
    made = whole(parts)
    for name in ("states", "rewards", "team_rewards", "terminated", "truncated", "active"):
        torch.testing.assert_close(getattr(made, name), beside([getattr(each, name) for each in parts]))
    assert made.all_active == all(each.all_active for each in parts)
    assert sum(len(each.final_places) for each in parts) > len(SIZES), "episodes must end, or nothing is tested"
    torch.testing.assert_close(made.next_states(), beside([each.next_states() for each in parts]))
    torch.testing.assert_close(made.next_active(), beside([each.next_active() for each in parts]))
    torch.testing.assert_close(made.last_active, beside([each.last_active for each in parts], 0))
    for g in range(len(made.observations)):
        torch.testing.assert_close(made.observations[g], beside([each.observations[g] for each in parts]))
        torch.testing.assert_close(made.actions[g], beside([each.actions[g] for each in parts]))
        torch.testing.assert_close(made.next_observations(g), beside([each.next_observations(g) for each in parts]))
        if (masks := made.next_action_masks(g)) is not None:
            torch.testing.assert_close(masks, beside([each.next_action_masks(g) for each in parts]))  # type: ignore[misc]


def test_episodes_ends_are_in_the_order_of_their_steps() -> None:
    parts = shares("toy_environments:masked_discrete")
    made = whole(parts)
    assert made.final_places == sorted(made.final_places)
    said = [np.array([step for step, _ in each.final_places]) for each in parts]
    assert in_final_order([pack(each) for each in parts], said).tolist() == [step for step, _ in made.final_places]


def test_what_agents_remembered_is_put_together() -> None:
    parts = shares("toy_environments:masked_discrete", steps=12, recurrent=True, chunk_length=4)
    made = whole(parts)
    assert len(made.memories) == 3
    for index, memories in enumerate(made.memories):
        for g, memory in enumerate(memories):
            torch.testing.assert_close(memory, beside([each.memories[index][g] for each in parts]))


def test_a_second_rollout_leaves_nothing_of_the_first() -> None:
    parts = shares("toy_environments:leaving")
    made = whole(parts)
    for each in parts:
        each.all_active = True
        each.active[:] = True
        each._finals = []
    unpack([pack(each) for each in parts], made)
    assert made.all_active
    assert bool(made.active.all())
    assert made.final_places == []


def test_environments_are_shared_out() -> None:
    assert share_sizes(7, 3) == [3, 2, 2]
    assert share_slices(7, 3) == [slice(0, 3), slice(3, 5), slice(5, 7)]
