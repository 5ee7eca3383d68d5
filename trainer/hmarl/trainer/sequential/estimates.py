"""What critics make of a rollout: values, advantages and the returns that they learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.critic import Critic, CriticSettings
from hmarl.trainer.learning.returns import generalised_advantages, normalise_advantages
from hmarl.trainer.networks.images import beside
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.normalisation import RunningNormaliser


class Discounting(Protocol):
    """The settings of an advantage estimate: γ and λ."""

    gamma: float
    gae_lambda: float


@dataclass(frozen=True)
class Estimate:
    """What critics make of a rollout: of the team, [T, B], or of every agent by its own reward, [T, B, N].

    Attributes:
        states: [T·B, state_size] normalised.
        values: [T, B] V(s_t), or [T, B, N] V^i; next_values: of what followed (0 after termination, and to an agent who
            has left).
        advantages: joint advantage Â(s_t, a_t), or Â^i; not normalised.
        returns: λ-returns, the critics' targets.
    """

    states: Tensor
    values: Tensor
    next_values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def of_agents(self) -> bool:
        """Whether every agent has an estimate of its own."""
        return self.values.dim() == 3


def estimate_by(
    rollout: Rollout, states: Tensor, values: Tensor, final_values: Tensor, discounting: Discounting
) -> Estimate:
    """Advantages by GAE, and λ-returns.

    Args:
        rollout: full.
        states: [T·B, state_size] normalised.
        values: [T + 1, B] V of all states, which judge the team's reward; or [T + 1, B, N] V^i, each its agent's own.
        final_values: [F] or [F, N] of what was seen last in episodes that ended.
        discounting: γ and λ.
    """
    if values.dim() == 3:
        rewards = rollout.rewards
        following, ended = rollout.next_values_of_agents(values, final_values)
    else:
        rewards, ended = rollout.team_rewards, rollout.ended
        following = rollout.next_values(values, final_values)
    correction = rollout.correction
    if correction is not None and values.dim() == 3:
        correction = correction.unsqueeze(-1).expand_as(rewards)
    advantages = generalised_advantages(
        rewards, values[:-1], following, ended, discounting.gamma, discounting.gae_lambda, correction
    )
    surplus = advantages if correction is None else correction * advantages
    return Estimate(states, values[:-1], following, advantages, surplus + values[:-1])


def counted(rollout: Rollout, values: Tensor) -> Tensor:
    """The values that count: all [T, B]; of [T, B, N] those at the steps at which the agents were there."""
    return values[rollout.active] if values.dim() == 3 and not rollout.all_active else values


def advantages_of_agents(rollout: Rollout, estimate: Estimate) -> Tensor:
    """[T, B, N] of mean 0 and standard deviation 1 over all samples that count: Â, the same for each agent, or Â^i."""
    if not estimate.of_agents:
        return normalise_advantages(estimate.advantages).unsqueeze(-1).expand_as(rollout.rewards)
    return normalise_advantages(estimate.advantages, None if rollout.all_active else rollout.active.float())


def valued_agents(spec: EnvironmentSpec, credit: Literal["team", "own"]) -> int:
    """How many values a critic of states says: one, or one an agent."""
    return len(spec.agents) if credit == "own" else 1


@torch.no_grad()
def joint_estimate(
    rollout: Rollout, critic: Critic, normaliser: RunningNormaliser, discounting: Discounting
) -> Estimate:
    """V(s), the joint advantage by GAE and λ-returns; or every agent's own, where the critic says a value for each.

    Args:
        rollout: full.
        critic: V(s), or V^1(s) … V^N(s).
        normaliser: of the states.
        discounting: γ and λ.
    """
    states = normaliser(rollout.states)
    final_values = critic.values(normaliser(rollout.final_states))
    return estimate_by(rollout, states[:-1].flatten(0, 1), critic.values(states), final_values, discounting)


def fit_joint(
    critic: Critic, rollout: Rollout, estimate: Estimate, generator: torch.Generator, schedule: float = 1.0
) -> dict[str, float]:
    """φ ← argmin E[ (V_φ(s) − R)² ], or E[ (V_φ^i(s) − R^i)² ] over the agents who were there.

    Args:
        critic: that has estimated.
        rollout: full.
        estimate: of it.
        generator: of the minibatches.
        schedule: factor on the step size.

    Returns:
        Metrics.
    """
    there = rollout.active.flatten(0, 1) if estimate.of_agents and not rollout.all_active else None
    return critic.fit(estimate.states, estimate.returns.flatten(0, 1), generator, schedule, there=there)


class LocalCritics:
    """One V(o^i, i) a group: every agent's value of its own observation.

    Args:
        spec: the environment.
        settings: of the critics.
        normalisers: per group, of the observations.
        generator: CPU generator of the initial weights.
        device: where the networks live.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        settings: CriticSettings,
        normalisers: Sequence[RunningNormaliser],
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.spec, self.device, self.normalisers = spec, device, normalisers
        self.critics = [
            Critic(
                group.example.observation_size + len(group.agents),
                settings,
                generator,
                device,
                image=group.example.image,
            )
            for group in spec.groups
        ]

    @torch.no_grad()
    def estimate(self, rollout: Rollout, discounting: Discounting) -> Estimate:
        """As the joint estimate, for every agent and its own reward: all fields but ``states`` are [T, B, N]."""
        values = torch.empty(rollout.steps + 1, *rollout.rewards.shape[1:], device=self.device)
        final_values = torch.empty(len(rollout.final_states), len(self.spec.agents), device=self.device)
        for g, group in enumerate(self.spec.groups):
            members = on_device(group.agents, self.device)
            values[:-1, :, members] = self._values(g, rollout.observations[g])
            values[-1, :, members] = self._values(g, rollout.last_observations[g])
            final_values[:, members] = self._values(g, rollout.final_observations(g))
        return estimate_by(rollout, rollout.states[:-1].flatten(0, 1), values, final_values, discounting)

    def _values(self, group: int, observations: Tensor) -> Tensor:
        """[..., N_group] of observations [..., N_group, D]."""
        return self.critics[group].values(self._inputs(group, observations))

    def _inputs(self, group: int, observations: Tensor) -> Tensor:
        """[..., N_group, D + N_group]: normalised observations, or pixels, with a one-hot identity."""
        features = self.normalisers[group](observations)
        members = observations.shape[-2]
        identity = torch.eye(members, device=features.device).expand(*features.shape[:-1], members)
        return beside(features, [identity])

    def fit(
        self, rollout: Rollout, returns: Tensor, generator: torch.Generator, schedule: float = 1.0
    ) -> dict[str, float]:
        """Every V(o^i) regresses on its agents' own λ-returns at the steps at which they were there.

        Args:
            rollout: full.
            returns: [T, B, N].
            generator: of the minibatches.
            schedule: factor on the step size.

        Returns:
            Metrics, means over the groups.
        """
        rows = []
        for g, group in enumerate(self.spec.groups):
            members = on_device(group.agents, self.device)
            inputs, targets = self._inputs(g, rollout.observations[g]), returns[:, :, members]
            if rollout.all_active:
                inputs, targets = inputs.flatten(0, 2), targets.flatten()
            else:
                there = rollout.active[:, :, members]
                inputs, targets = inputs[there], targets[there]
            if len(targets):
                rows.append(self.critics[g].fit(inputs, targets, generator, schedule))
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def components(self) -> dict[str, object]:
        """The critics, as ``Algorithm.components`` names them."""
        return {f"critics.{g}": critic for g, critic in enumerate(self.critics)}
