"""A rollout as each agent's samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.instructions import InstructionWeights
from hmarl.trainer.networks.distributions import Distribution, stacked_distribution
from hmarl.trainer.networks.flat import Memory
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.policies import Context, GroupPolicy, context_of
from hmarl.trainer.together.descent import shape_of, stack_of


@dataclass(frozen=True)
class AgentSamples:
    """One agent's part of a rollout, M = T·B samples.

    Attributes:
        inputs: [M, input_size] network inputs (normalised observation, context, identity).
        mask: [M, A] bool or None; actions: [M, ...] raw.
        memory: how the rows follow one another, for recurrent policies; else None.
        active: [M] float32 weights, 0 where the agent had left; None when it never had.
        surrogate_weight, kl_weight: [M] extra weights of the two expectations (HCPO's instruction weights, or what
            corrects for older policies), or None.
        old: the distribution before the agent's turn, without gradient, from which its step is measured.
        old_log_prob: [M] of the actions before the first turn, when the samples were collected: under ``old``, unless
            others who share the parameters have had their turn since.
    """

    inputs: Tensor
    mask: Tensor | None
    memory: Memory | None
    actions: Tensor
    active: Tensor | None
    surrogate_weight: Tensor | None
    kl_weight: Tensor | None
    old: Distribution
    old_log_prob: Tensor

    def mean(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean over the steps at which the agent was there of ``weight · values``, [M] -> scalar, [S, M] -> [S]."""
        if weight is not None:
            values = values * weight
        if self.active is None:
            return values.mean(-1)
        return (values * self.active).sum(-1) / self.active.sum(-1).clamp(min=1.0)

    def under(self, policy: GroupPolicy, theta: Tensor) -> Distribution:
        """The distributions of all samples under the parameters ``theta`` [P], or [S, P] of a stack."""
        return policy.distribution(theta, self.inputs, self.mask, self.memory)

    def ratio(self, new: Distribution) -> Tensor:
        """[M] π_new / π_old of the samples' actions."""
        return (new.log_prob(self.actions) - self.old_log_prob).exp()

    def ratio_where_active(self, new: Distribution) -> Tensor:
        """[M] the same, 1 where the agent was not there: its factor in the next agents' advantages."""
        ratio = self.ratio(new)
        return ratio if self.active is None else torch.where(self.active > 0, ratio, 1.0)

    @property
    def units(self) -> int:
        """How many parts of the samples can be drawn apart: the samples themselves, or their chunks."""
        return len(self.inputs) if self.memory is None else self.memory.chunks

    def rows(self, units: Tensor) -> Tensor:
        """[m] int64: the samples that belong to ``units`` [u] int64, in the order of ``take``."""
        return units if self.memory is None else self.memory.rows(units)

    def take(self, units: Tensor) -> AgentSamples:
        """The samples of ``units`` [u] int64."""
        rows = self.rows(units)

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return replace(
            self,
            inputs=self.inputs[rows],
            mask=pick(self.mask),
            memory=None if self.memory is None else self.memory.take(units),
            actions=self.actions[rows],
            active=pick(self.active),
            surrogate_weight=pick(self.surrogate_weight),
            kl_weight=pick(self.kl_weight),
            old=self.old.take(rows),
            old_log_prob=self.old_log_prob[rows],
        )

    @property
    def shapes(self) -> Hashable:
        """Of the tensors: samples with equal ones can be stacked; None where rows follow one another in time."""
        if self.memory is not None:
            return None
        parts = (self.inputs, self.mask, self.actions, self.active, self.surrogate_weight, self.kl_weight)
        return tuple(shape_of(part) for part in parts)

    @staticmethod
    def stacked(samples: Sequence[AgentSamples]) -> AgentSamples:
        """Samples with equal ``shapes`` as a stack: all tensors [S, M, ...]."""
        return AgentSamples(
            inputs=torch.stack([each.inputs for each in samples]),
            mask=stack_of([each.mask for each in samples]),
            memory=None,
            actions=torch.stack([each.actions for each in samples]),
            active=stack_of([each.active for each in samples]),
            surrogate_weight=stack_of([each.surrogate_weight for each in samples]),
            kl_weight=stack_of([each.kl_weight for each in samples]),
            old=stacked_distribution([each.old for each in samples]),
            old_log_prob=torch.stack([each.old_log_prob for each in samples]),
        )


@dataclass(frozen=True)
class TeamSamples:
    """A rollout from which each agent's samples are taken when its turn has come.

    Attributes:
        rollout: full.
        policies: per group, as they are now.
        features: per group, normalised observations [T, B, N_group, observation_size].
        context: what the agents saw beside their observations, see ``Context``; or None.
        weights: of the samples, that a conductor's update has left; None without a conductor.
    """

    rollout: Rollout
    policies: list[GroupPolicy]
    features: list[Tensor]
    context: Context | None = None
    weights: InstructionWeights | None = None

    @property
    def spec(self) -> EnvironmentSpec:
        """The environment's."""
        return self.rollout.spec

    def place_of(self, agent: int) -> tuple[int, int]:
        """An agent's group, and which of its members it is."""
        for g, group in enumerate(self.spec.groups):
            if agent in group.agents:
                return g, group.agents.index(agent)
        raise IndexError(f"{self.spec.name} has no agent {agent}")

    def of_agent(self, agent: int) -> AgentSamples:
        """One agent's part of the rollout, M = T·B."""
        group, member = self.place_of(agent)
        samples = self.of_members(group, slice(member, member + 1))
        if self.weights is None:
            return samples
        surrogate_weight, kl_weight = self.weights.of(agent)
        return replace(samples, surrogate_weight=surrogate_weight, kl_weight=kl_weight)

    @torch.no_grad()
    def of_members(self, group: int, members: slice) -> AgentSamples:
        """The part of some members of a group who use one row of parameters, M = T·B·members."""
        policy, rollout = self.policies[group], self.rollout
        agents = on_device(self.spec.groups[group].agents[members], rollout.device)
        mask, memory = rollout.action_masks[group], self._memory(group, members)
        inputs = (
            policy.inputs(self.features[group], context_of(self.context, group))[:, :, members]
            .flatten(0, 2)
            .contiguous()
        )
        mask = None if mask is None else mask[:, :, members].flatten(0, 2)
        actions = rollout.actions[group][:, :, members].flatten(0, 2)
        active = None if rollout.all_active else rollout.active[:, :, agents].flatten().float()
        old = policy.distribution(policy.row(members.start), inputs, mask, memory)
        weight = None
        if rollout.correction is not None:
            weight = rollout.correction.unsqueeze(-1).expand(-1, -1, len(agents)).flatten()
        return AgentSamples(inputs, mask, memory, actions, active, weight, None, old, old.log_prob(actions))

    def _memory(self, group: int, members: slice) -> Memory | None:
        """How the rows [T·B·members] of some members of a group follow one another; None without memory."""
        if not self.policies[group].recurrent:
            return None
        rollout = self.rollout
        agents = on_device(self.spec.groups[group].agents[members], rollout.device)
        initial = torch.stack([memories[group][members] for memories in rollout.memories])  # [n, members, B, H]
        forgotten = rollout.begins.unsqueeze(-1).expand(-1, -1, initial.shape[1])  # [T, B, members]
        if rollout.restarted is not None:
            forgotten = forgotten | rollout.restarted[..., agents]
        kept = (~forgotten).float().reshape(len(rollout.memories), -1, rollout.batch_size * initial.shape[1], 1)
        there = None if rollout.all_active else rollout.active[:, :, agents].reshape(kept.shape)
        return Memory(initial.transpose(1, 2).flatten(0, 2), kept, there)
