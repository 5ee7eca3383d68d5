"""The skeleton of the heterogeneous-agent family: collect → advantage → agents one after the other → critic.

A member of the family is one short file in ``algorithms/`` that says how a single agent's policy is improved
(``improve_agent``); HCPO also puts a conductor above the agents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hmarl.sdk.spaces import AgentGroup, EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.returns import generalised_advantages, normalise_advantages, weighted_mean
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.flat import Memory
from hmarl.trainer.networks.policies import GroupPolicy, group_head
from hmarl.trainer.networks.settings import ActorCriticSettings, AlgorithmSettings


@dataclass(frozen=True)
class Estimate:
    """What the critic makes of a rollout.

    Attributes:
        states: [T·B, state_size] normalised.
        values: [T, B] V(s_t); next_values: [T, B] of the states that followed (0 after termination).
        advantages: [T, B] joint advantage Â(s_t, a_t), not normalised.
        returns: [T, B] λ-returns, the critic's targets.
    """

    states: Tensor
    values: Tensor
    next_values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class AgentSamples:
    """One agent's part of a rollout, M = T·B samples.

    Attributes:
        inputs: [M, input_size] network inputs (normalised observation, context, identity).
        mask: [M, A] bool or None; actions: [M, ...] raw.
        memory: how the rows follow one another, for recurrent policies; else None.
        active: [M] float32 weights, 0 where the agent had left; None when it never had.
        surrogate_weight, kl_weight: [M] extra weights of the two expectations (HCPO's instruction weights), or None.
        old: the distribution before the update, without gradient; old_log_prob: [M] of the actions under it.
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
        """Mean over the steps at which the agent was there of ``weight · values``, [M] -> scalar."""
        if weight is not None:
            values = values * weight
        if self.active is None:
            return values.mean()
        return weighted_mean(values, self.active)

    def under(self, policy: GroupPolicy, theta: Tensor) -> Distribution:
        """The distributions of all samples under the parameters ``theta`` [P]."""
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


@dataclass(frozen=True)
class Improvement:
    """What one agent's update made.

    Attributes:
        policy: the new policy at the agent's samples, without gradient.
        metrics: of the update.
    """

    policy: Distribution
    metrics: dict[str, float]


class HeterogeneousAgents(Algorithm):
    """Sequentially updated agents with a centralised critic.

    Args:
        spec: the environment.
        settings: of the member's own class.
        generator: CPU generator of the initial weights, the agents' order and minibatches.
        device: where networks and rollouts live.

    Source: Kuba et al. 2022, Algorithm 1 (HATRPO); Zhong et al. 2024.
    """

    settings_class: ClassVar[type[AlgorithmSettings]] = ActorCriticSettings
    settings: ActorCriticSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: ActorCriticSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.critics = self.create_critics()
        self.progress = 0.0

    def head(self, group: AgentGroup) -> ActionHead:
        """Continuous actions as the settings say."""
        return group_head(group, self.settings)

    def create_critics(self) -> dict[str, Critic]:
        """Fresh critics by name: one centralised V(s)."""
        return {"critic": Critic(self.spec.state_size, self.settings, self.generator, self.device)}

    # --- updating ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """One iteration of the family's algorithm.

        Args:
            rollout: full.
            progress: share of the training done, in [0, 1), for schedules.
        """
        self.progress = progress
        schedule = self.schedule(progress)
        estimate = self.estimate(rollout)
        metrics = self.update_conductor(rollout, estimate, schedule)
        metrics |= self.update_agents(rollout, estimate, schedule)
        metrics |= self.update_critic(rollout, estimate, schedule)
        self.update_normalisers(rollout)
        return metrics

    def update_agents(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """One agent after the other, each with the ratios of those before it in its advantage."""
        joint = self.agents_advantages(rollout, estimate).flatten()
        features = self.features(rollout)
        factor = torch.ones_like(joint)  # F, product of the earlier agents' ratios
        remaining = list(range(len(self.spec.agents)))
        per_agent: dict[int, dict[str, float]] = {}
        while remaining:
            agent = self.next_agent(remaining, rollout, joint, factor)
            remaining.remove(agent)
            samples = self.samples(rollout, features, agent)
            advantages = self.advantages_given(factor, joint, rollout, estimate)
            improvement = self.improve_agent(agent, samples, advantages, schedule)
            per_agent[agent] = improvement.metrics
            if remaining:
                factor = factor * samples.ratio_where_active(improvement.policy)
        return per_agent_metrics(self.spec, per_agent) | {"sequential_factor_max": float(factor.max())}

    def next_agent(self, remaining: list[int], rollout: Rollout, advantages: Tensor, factor: Tensor) -> int:
        """Who is updated next: a random one, so that the order is a random permutation."""
        return remaining[int(torch.randint(len(remaining), (), generator=self.generator))]

    def advantages_given(self, factor: Tensor, joint: Tensor, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[M] the next agent's advantage, given the updates before it: F · Â."""
        return factor * joint

    @torch.no_grad()
    def estimate(self, rollout: Rollout) -> Estimate:
        """Values, joint advantages by GAE and λ-returns of a rollout."""
        critic = self.critics["critic"]
        states = self.state_normaliser(rollout.states)
        values = critic.values(states)
        final_values = critic.values(self.state_normaliser(rollout.final_states))
        next_values = rollout.next_values(values, final_values)
        advantages = generalised_advantages(
            rollout.team_rewards, values[:-1], next_values, rollout.ended, self.settings.gamma, self.settings.gae_lambda
        )
        return Estimate(states[:-1].flatten(0, 1), values[:-1], next_values, advantages, advantages + values[:-1])

    def agents_advantages(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B] what the agents' updates maximise: the normalised joint advantage."""
        return normalise_advantages(estimate.advantages)

    def update_conductor(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """A level above the agents updates here, before them; the flat algorithms have none."""
        return {}

    def context(self, rollout: Rollout) -> Tensor | None:
        """[T, B, C] what all agents saw alike, or None."""
        return None

    def instruction_weights(self, rollout: Rollout, agent: int) -> tuple[Tensor | None, Tensor | None]:
        """[M] weights of one agent's samples in the surrogate and in the KL, or None."""
        return None, None

    @torch.no_grad()
    def samples(self, rollout: Rollout, features: list[Tensor], agent: int) -> AgentSamples:
        """One agent's part of the rollout, M = T·B; ``features`` as ``self.features`` returns them."""
        group, member = self.position[agent]
        surrogate_weight, kl_weight = self.instruction_weights(rollout, agent)
        samples = self.samples_of(rollout, features, group, slice(member, member + 1))
        return replace(samples, surrogate_weight=surrogate_weight, kl_weight=kl_weight)

    @torch.no_grad()
    def samples_of(self, rollout: Rollout, features: list[Tensor], group: int, members: slice) -> AgentSamples:
        """The rollout of some members of a group who use one row of parameters, M = T·B·members."""
        policy = self.policies[group]
        agents = list(self.spec.groups[group].agents[members])
        mask, memory = rollout.action_masks[group], self.memory(rollout, group, members)
        inputs = policy.inputs(features[group], self.context(rollout))[:, :, members].flatten(0, 2).contiguous()
        mask = None if mask is None else mask[:, :, members].flatten(0, 2)
        actions = rollout.actions[group][:, :, members].flatten(0, 2)
        active = None if rollout.all_active else rollout.active[:, :, agents].flatten().float()
        old = policy.distribution(policy.row(members.start), inputs, mask, memory)
        return AgentSamples(inputs, mask, memory, actions, active, None, None, old, old.log_prob(actions))

    def memory(self, rollout: Rollout, group: int, members: slice) -> Memory | None:
        """How the rows [T·B·members] of some members of a group follow one another; None without memory."""
        if not self.settings.recurrent:
            return None
        initial = torch.stack([memories[group][members] for memories in rollout.memories])  # [n, members, B, H]
        kept = (~rollout.begins).float().view(len(rollout.memories), self._chunk_length, rollout.batch_size, 1)
        return Memory(initial.transpose(1, 2).flatten(0, 2), kept.repeat_interleave(initial.shape[1], dim=2))

    def improve_agent(self, agent: int, samples: AgentSamples, advantages: Tensor, schedule: float) -> Improvement:
        """Improve one agent's policy in place; ``advantages`` [M] = F · Â."""
        raise NotImplementedError

    def update_critic(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """Regress V on the λ-returns."""
        return self.critics["critic"].fit(estimate.states, estimate.returns.flatten(), self.noise_generator, schedule)

    # --- persistence ------------------------------------------------------------------------------------------------

    def components(self) -> StateDict:
        """The shared parts and the critics."""
        return {**self.critics, **super().components()}


def per_agent_metrics(spec: EnvironmentSpec, rows: dict[int, dict[str, float]]) -> dict[str, float]:
    """Mean over agents of every metric; for divergences also the largest and every agent's."""
    names = next(iter(rows.values()))
    merged = {name: sum(row[name] for row in rows.values()) / len(rows) for name in names}
    merged |= {f"{name}_max": max(row[name] for row in rows.values()) for name in names if name.endswith("kl")}
    return merged | {f"agent_kl/{spec.agents[agent].id}": row["agent_kl"] for agent, row in rows.items()}
