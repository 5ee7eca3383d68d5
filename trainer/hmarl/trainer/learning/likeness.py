"""Agents who observe the same: nothing but a network of its own, or its number, tells one from another."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.sdk.spaces import AgentGroup
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.metrics import numbers
from hmarl.trainer.networks.indices import on_device


def who_observe_the_same(rollout: Rollout) -> list[AgentGroup]:
    """The groups of several agents who, whenever they were there, observed the same throughout a rollout, and had the
    same actions to choose from.
    """
    groups = rollout.spec.groups
    same = [
        _the_same(group, observations, mask, rollout.active)
        for group, observations, mask in zip(groups, rollout.observations, rollout.action_masks, strict=True)
    ]
    return [group for group, holds in zip(groups, numbers(same), strict=True) if holds]


def _the_same(group: AgentGroup, observations: Tensor, mask: Tensor | None, active: Tensor) -> Tensor:
    """Bool; False where no two were there at once."""
    there = active[:, :, on_device(group.agents, active.device)]
    first = there.int().argmax(dim=-1)
    differs = torch.zeros_like(there)
    # Step by step: of pictures a whole rollout is as large as memory allows.
    for step in range(len(there)):
        for shown in [observations] if mask is None else [observations, mask]:
            flat = shown[step].flatten(2)
            of_first = flat.gather(1, first[step, :, None, None].expand(-1, 1, flat.shape[-1]))
            differs[step] |= (flat != of_first).any(dim=-1)
    return (there.sum(dim=-1) > 1).any() & ~(differs & there).any()
