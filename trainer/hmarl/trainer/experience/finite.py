"""Where the first number came from that is NaN or infinite."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec

if TYPE_CHECKING:
    from hmarl.trainer.experience.rollout import Rollout


def broken_rollout(rollout: Rollout) -> str | None:
    """Names the first observation, state or reward that is NaN or infinite, which is the environment's fault; or None.

    A sum is the cheapest test: it is finite unless a number is not, or the numbers are absurdly large.
    """
    spec, last = rollout.spec, rollout.last_observations
    blocks = [*rollout.observations, *last, rollout.states, rollout.rewards, rollout.final_states]
    blocks += [rollout.final_observations(group) for group in range(len(spec.groups))]
    if bool(torch.isfinite(torch.stack([block.sum() for block in blocks if block.is_floating_point()])).all()):
        return None
    found = [
        (step, f"{text} (step {step} of the rollout, environment {row})")
        for step, row, text in (
            *_observations(spec, rollout.observations, "observation"),
            *_states(rollout.states),
            *_rewards(spec, rollout.rewards),
            *(
                (rollout.steps, row, text)
                for _, row, text in _observations(spec, [x[None] for x in last], "observation")
            ),
            *_finals(rollout),
        )
    ]
    return min(found, key=lambda each: each[0])[1] if found else None


def broken_observation(spec: EnvironmentSpec, seen: Observation) -> str | None:
    """Names the first number of what is seen now (tensors) that is NaN or infinite; or None."""
    for _, row, text in _observations(spec, [block[None] for block in seen.observations], "observation"):
        return f"{text} (environment {row})"
    return None


def first_non_finite(tensors: Mapping[str, Tensor], metrics: Mapping[str, float]) -> str | None:
    """Name of the first parameter or metric that is NaN or infinite; or None."""
    if not are_finite(tensors.values()):
        return next(f"'{name}' is not finite" for name, tensor in tensors.items() if not are_finite([tensor]))
    for key, value in metrics.items():
        if not math.isfinite(value):
            return f"the metric '{key}' is {value}"
    return None


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number among the tensors is NaN or infinite; each device is asked once."""
    asked: dict[torch.device, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.is_floating_point():
            asked[tensor.device].append(torch.isfinite(tensor).all())
    return all(bool(torch.stack(answers).all()) for answers in asked.values())


Found = list[tuple[int, int, str]]


def _first(block: Tensor) -> list[int]:
    """Indices of the first number that is not finite; empty when all are."""
    broken = (~torch.isfinite(block)).nonzero()
    return [int(index) for index in broken[0]] if len(broken) else []


def _observations(spec: EnvironmentSpec, blocks: Sequence[Tensor], what: str) -> Found:
    """Step, row and name of each group's first: blocks [T, B, N_group, observation_size]."""
    found = []
    for group, block in zip(spec.groups, blocks, strict=True):
        if first := _first(block):
            step, row, member, index = first
            agent, value = spec.agents[group.agents[member]].id, float(block[step, row, member, index])
            found.append((step, row, f"the environment's {what} of agent '{agent}' is {value} at index {index}"))
    return found


def _states(states: Tensor) -> Found:
    """The same of the states [T, B, state_size]."""
    if not (first := _first(states)):
        return []
    step, row, index = first
    return [(step, row, f"the environment's state is {float(states[step, row, index])} at index {index}")]


def _rewards(spec: EnvironmentSpec, rewards: Tensor) -> Found:
    """The same of the rewards [T, B, N]."""
    if not (first := _first(rewards)):
        return []
    step, row, agent = first
    value = float(rewards[step, row, agent])
    return [(step, row, f"the environment's reward of agent '{spec.agents[agent].id}' is {value}")]


def _finals(rollout: Rollout) -> Found:
    """The same of what was seen last in the episodes that ended."""
    places = rollout.final_places
    blocks = [rollout.final_observations(group)[:, None] for group in range(len(rollout.spec.groups))]
    found = _observations(rollout.spec, blocks, "last observation of an episode") + _states(
        rollout.final_states[:, None]
    )
    return [(*places[episode], text) for episode, _, text in found]
