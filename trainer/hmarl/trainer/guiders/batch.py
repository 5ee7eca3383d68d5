"""A whole team's rollout as sequences, for algorithms that learn one network for all agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.guider import TeamView
from hmarl.trainer.learning.returns import normalise_advantages, weighted_mean
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.sequential.estimates import Estimate


@dataclass(frozen=True)
class TeamBatch:
    """A rollout, or a part of it, as C sequences of L steps; L is 1 where no agent remembers.

    Attributes:
        view: [L, C, ...] what the guider sees; the local policies see their observations and the instruction of it.
        actions: per group [L, C, N_group, ...] raw.
        active: [N, L·C] float32, agents group by group, 0 where one had left; None when none ever had.
        begins: [L, C] bool, True where a step begins an episode.
        acting_order: in which the agents decided.
        acting_log_prob: [N, L·C] of the actions when they were drawn, agents group by group.
        advantages: [L, C] of the team, or [L, C, N] of each agent by its own reward, agents group by group.
        targets: the same of λ-returns, in the units of the guider's value.
        values: the same of what the guider's network said when it acted, in the units of then.
        guider_memory: [C, *memory_shape] before the first step.
        memories: per group [N_group, C, H] of the local policies; H is 0 where they remember nothing.
        weight: [L, C] of the steps in the policies' surrogates, or None.
    """

    view: TeamView
    actions: list[Tensor]
    active: Tensor | None
    begins: Tensor
    acting_order: tuple[int, ...]
    acting_log_prob: Tensor
    advantages: Tensor
    targets: Tensor
    values: Tensor
    guider_memory: Tensor
    memories: list[Tensor]
    weight: Tensor | None = None

    @property
    def sequences(self) -> int:
        """C."""
        return self.begins.shape[1]

    def take(self, units: Tensor | slice) -> TeamBatch:
        """The sequences ``units``: [c] int64, or a slice."""
        view = self.view

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:, units]

        return TeamBatch(
            TeamView(
                [features[:, units] for features in view.features],
                [pick(mask) for mask in view.action_masks],
                pick(view.context),
                pick(view.instruction),
                None if view.there is None else [there[:, units] for there in view.there],
            ),
            [actions[:, units] for actions in self.actions],
            None if self.active is None else self.rows(self.active, units),
            self.begins[:, units],
            self.acting_order,
            self.rows(self.acting_log_prob, units),
            self.advantages[:, units],
            self.targets[:, units],
            self.values[:, units],
            self.guider_memory[units],
            [memory[:, units] for memory in self.memories],
            pick(self.weight),
        )

    def rows(self, values: Tensor, units: Tensor | slice) -> Tensor:
        """[N, L·c] of values [N, L·C] at the sequences ``units``."""
        return values.unflatten(1, self.begins.shape)[..., units].flatten(1)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over agents and steps, where the agents were there, of [N, L·C] -> scalar."""
        if self.active is None:
            return values.mean()
        return weighted_mean(values, self.active)

    def log_prob(self, distributions: Sequence[Distribution]) -> Tensor:
        """[N, L·C] of the recorded actions, agents group by group, under [N_group, L·C] of every group."""
        return torch.cat([self.group_log_prob(g, distribution) for g, distribution in enumerate(distributions)])

    def group_log_prob(self, group: int, distribution: Distribution) -> Tensor:
        """[N_group, L·C] of a group's recorded actions under its distributions [N_group, L·C]."""
        return distribution.log_prob(self.actions[group].flatten(0, 1).transpose(0, 1))

    @property
    def valued(self) -> Tensor | None:
        """[L, C, N] 0 or 1, which values count; None where all do."""
        if self.active is None or self.values.dim() == 2:
            return None
        return self.active.T.unflatten(0, self.begins.shape)

    @torch.no_grad()
    def moved(self, log_ratio: Tensor) -> Tensor:
        """KL(old ‖ new) by E[ r − 1 − log r ], a scalar; ``log_ratio`` [N, L·C] is log new/old of the actions."""
        return self.mean(log_ratio.exp() - 1.0 - log_ratio)

    def normalised_advantages(self) -> Tensor:
        """[N, L·C] of mean 0 and standard deviation 1, then weighted."""
        if self.advantages.dim() == 3:
            advantages = normalise_advantages(self.advantages.flatten(0, 1).T, self.active)
        else:
            advantages = normalise_advantages(self.advantages.flatten()).expand(len(self.acting_order), -1)
        return advantages if self.weight is None else advantages * self.weight.flatten()


@torch.no_grad()
def team_batch(
    rollout: Rollout,
    view: TeamView,
    estimate: Estimate,
    targets: Tensor,
    acting_order: Sequence[int],
    nothing_remembered: Tensor,
    policies: Sequence[GroupPolicy],
    *,
    instruction: Tensor | None = None,
    weight: Tensor | None = None,
) -> TeamBatch:
    """A rollout as sequences: from one recording of what was remembered to the next, or of single steps.

    Args:
        rollout: full.
        view: [T, B, ...] what the guider sees of it.
        estimate: of it.
        targets: [T, B] or [T, B, N] what the guider's value is to say.
        acting_order: in which the agents decided.
        nothing_remembered: [1, *memory_shape] of a guider at an episode's beginning.
        policies: the local ones, per group.
        instruction: [T, B, K] of a conductor, or None.
        weight: [T, B] of the steps in the policies' surrogates, or None.
    """
    chunks = len(rollout.memories) or rollout.steps
    count, length = chunks * rollout.batch_size, rollout.steps // chunks

    def sequences(x: Tensor) -> Tensor:
        """[T, B, ...] -> [L, n·B, ...]."""
        return x.unflatten(0, (chunks, length)).transpose(0, 1).flatten(1, 2)

    grouped = on_device([agent for group in rollout.spec.groups for agent in group.agents], rollout.device)

    def judged(x: Tensor) -> Tensor:
        """[T, B] -> [L, n·B], or [T, B, N] -> [L, n·B, N] group by group."""
        return sequences(x[..., grouped] if estimate.of_agents else x)

    guider_memory = nothing_remembered.expand(count, *nothing_remembered.shape[1:])
    memories = [torch.zeros(policy.members, count, 0, device=rollout.device) for policy in policies]
    if rollout.memories:
        *local, of_guider = zip(*rollout.memories, strict=True)
        guider_memory = torch.cat(of_guider, dim=1).squeeze(0)
        memories = [torch.stack(group).transpose(0, 1).flatten(1, 2) for group in local] or memories
    return TeamBatch(
        view=TeamView(
            [sequences(features) for features in view.features],
            [None if mask is None else sequences(mask) for mask in view.action_masks],
            None if view.context is None else sequences(view.context),
            None if instruction is None else sequences(instruction),
            None if view.there is None else [sequences(there) for there in view.there],
        ),
        actions=[sequences(actions) for actions in rollout.actions],
        active=None if rollout.all_active else sequences(rollout.active[:, :, grouped]).flatten(0, 1).T.float(),
        begins=sequences(rollout.begins),
        acting_order=tuple(acting_order),
        acting_log_prob=sequences(rollout.extras["log_prob"][..., grouped]).flatten(0, 1).T,
        advantages=judged(estimate.advantages),
        targets=judged(targets),
        values=judged(rollout.extras["value"]),
        guider_memory=guider_memory,
        memories=memories,
        weight=None if weight is None else sequences(weight),
    )
