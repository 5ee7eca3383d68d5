"""The skeleton of the heterogeneous-agent family: collect → advantage → agents one after the other → critic.

A member of the family is one short file in ``algorithms/`` that says how a single agent's policy is improved
(``improve_agent``); HCPO also puts a conductor above the agents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.config import AlgorithmSettings
from hmarl.trainer.critic import Critic
from hmarl.trainer.deployable import DeployablePolicy
from hmarl.trainer.distributions import Distribution
from hmarl.trainer.normalisation import RunningNormaliser
from hmarl.trainer.policies import GroupPolicy, group_head
from hmarl.trainer.returns import generalised_advantages, normalise_advantages
from hmarl.trainer.rollout import Decision, Rollout

StateDict = dict[str, Any]


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
        active: [M] float32 weights, 0 where the agent had left; None when it never had.
        surrogate_weight, kl_weight: [M] extra weights of the two expectations (HCPO's instruction weights), or None.
        old: the distribution before the update, without gradient; old_log_prob: [M] of the actions under it.
    """

    inputs: Tensor
    mask: Tensor | None
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
        return (values * self.active).sum() / self.active.sum().clamp(min=1.0)

    def take(self, rows: Tensor) -> AgentSamples:
        """The samples at ``rows`` [m] int64; the old distribution is not needed there and left whole."""

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return replace(
            self,
            inputs=self.inputs[rows],
            mask=pick(self.mask),
            actions=self.actions[rows],
            active=pick(self.active),
            surrogate_weight=pick(self.surrogate_weight),
            kl_weight=pick(self.kl_weight),
            old_log_prob=self.old_log_prob[rows],
        )


class HeterogeneousAgents:
    """Sequentially updated agents with a centralised critic.

    Args:
        spec: the environment.
        settings: of the member's own class.
        generator: CPU generator of the initial weights, the agents' order and minibatches.
        device: where networks and rollouts live.

    Source: Kuba et al. 2022, Algorithm 1 (HATRPO); Zhong et al. 2024.
    """

    settings_class: ClassVar[type[AlgorithmSettings]] = AlgorithmSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: AlgorithmSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        self.spec, self.settings, self.device, self.generator = spec, settings, device, generator
        self.noise_generator = torch.Generator(device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
        self.policies = [
            GroupPolicy.create(
                len(group.agents),
                group.example.observation_size + self.context_size,
                group_head(group, settings),
                settings,
                generator,
                shared=settings.share_parameters,
            )
            for group in spec.groups
        ]
        for policy in self.policies:
            policy.theta = policy.theta.to(device)
        normalise = settings.normalise_observations
        self.observation_normalisers = [
            RunningNormaliser((len(group.agents), group.example.observation_size), device, normalise)
            for group in spec.groups
        ]
        self.state_normaliser = RunningNormaliser((spec.state_size,), device, normalise)
        self.critic = Critic(spec.state_size, settings, generator, device)
        self.position = {
            agent: (g, member) for g, group in enumerate(spec.groups) for member, agent in enumerate(group.agents)
        }
        self._perturbations: list[Tensor] = []

    @property
    def context_size(self) -> int:
        """C, the width of what all agents see beside their observations (HCPO's one-hot instruction)."""
        return 0

    # --- acting -----------------------------------------------------------------------------------------------------

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the rollout's action noise: [T, N_group, B, A] per group."""
        self._perturbations = [
            policy.head.draw_perturbations((steps, policy.members, batch_size), self.noise_generator)
            for policy in self.policies
        ]

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """Sample everybody's action, a group at a time."""
        return self.decide(observation, None, [perturbation[step] for perturbation in self._perturbations])

    def decide(self, observation: Observation, context: Tensor | None, perturbations: list[Tensor] | None) -> Decision:
        """Everybody's action given the shared ``context`` [B, C]; the modes when ``perturbations`` is None."""
        raw_actions, environment_actions = [], []
        for g, policy in enumerate(self.policies):
            features = self.observation_normalisers[g](observation.observations[g])
            mask = observation.action_masks[g]
            distribution = policy.all_distributions(
                policy.inputs(features, context).transpose(0, 1), None if mask is None else mask.transpose(0, 1)
            )
            raw = distribution.mode() if perturbations is None else distribution.select(perturbations[g])
            raw_actions.append(raw.transpose(0, 1))
            environment_actions.append(policy.head.to_environment(raw).transpose(0, 1))
        return Decision(tuple(raw_actions), tuple(environment_actions))

    def episodes_ended(self, ended: Tensor) -> None:
        """Nothing to forget: the policies have no memory."""

    def acting_state(self) -> dict[str, Tensor]:
        """What ``act`` remembers from step to step, so that a resumed run acts on as if never stopped."""
        return {}

    def load_acting_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``acting_state`` returned."""

    # --- updating ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """One iteration of the family's algorithm.

        Args:
            rollout: full.
            progress: share of the training done, in [0, 1), for schedules.
        """
        schedule = 1.0 - progress if self.settings.learning_rate_decay == "linear" else 1.0
        estimate = self.estimate(rollout)
        metrics = self.update_conductor(rollout, estimate, schedule)
        advantages = self.agents_advantages(rollout, estimate).flatten()
        features = [
            normaliser(x) for normaliser, x in zip(self.observation_normalisers, rollout.observations, strict=True)
        ]
        factor = torch.ones_like(advantages)  # F, product of the earlier agents' ratios
        order = torch.randperm(len(self.spec.agents), generator=self.generator).tolist()
        per_agent: list[dict[str, float]] = []
        for position, agent in enumerate(order):
            samples = self.samples(rollout, features, agent)
            per_agent.append(self.improve_agent(agent, samples, factor * advantages, schedule))
            if position + 1 < len(order):
                factor = factor * self._ratio(agent, samples)
        metrics |= _mean_and_extremes(per_agent)
        metrics |= {
            f"agent_kl/{self.spec.agents[a].id}": row["agent_kl"] for a, row in zip(order, per_agent, strict=True)
        }
        metrics["sequential_factor_max"] = float(factor.max())
        metrics |= self.update_critic(rollout, estimate, schedule)
        self._update_normalisers(rollout)
        return metrics

    @torch.no_grad()
    def estimate(self, rollout: Rollout) -> Estimate:
        """Values, joint advantages by GAE and λ-returns of a rollout."""
        states = self.state_normaliser(rollout.states)
        values = self.critic.values(states)
        final_values = self.critic.values(self.state_normaliser(rollout.final_states))
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
        """One agent's part of the rollout; ``features``: normalised observations per group [T, B, N_group, D]."""
        group, member = self.position[agent]
        policy = self.policies[group]
        context = self.context(rollout)
        inputs = policy.inputs(features[group], context)[:, :, member].flatten(0, 1).contiguous()
        _, mask, actions, active = rollout.agent_fields(agent)
        surrogate_weight, kl_weight = self.instruction_weights(rollout, agent)
        old = policy.distribution(policy.row(member), inputs, mask)
        return AgentSamples(
            inputs, mask, actions, None if rollout.all_active else active.float(),
            surrogate_weight, kl_weight, old, old.log_prob(actions),
        )  # fmt: skip

    def improve_agent(self, agent: int, samples: AgentSamples, advantages: Tensor, schedule: float) -> dict[str, float]:
        """Improve one agent's policy in place; ``advantages`` [M] = F · Â."""
        raise NotImplementedError

    @torch.no_grad()
    def _ratio(self, agent: int, samples: AgentSamples) -> Tensor:
        """[M] π_new / π_old of the agent's actions; 1 where it was not there."""
        group, member = self.position[agent]
        policy = self.policies[group]
        new = policy.distribution(policy.row(member), samples.inputs, samples.mask)
        ratio = (new.log_prob(samples.actions) - samples.old_log_prob).exp()
        return ratio if samples.active is None else torch.where(samples.active > 0, ratio, 1.0)

    def update_critic(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """Regress V on the λ-returns."""
        return self.critic.fit(estimate.states, estimate.returns.flatten(), self.noise_generator, schedule)

    def _update_normalisers(self, rollout: Rollout) -> None:
        for group, normaliser, observations in zip(
            self.spec.groups, self.observation_normalisers, rollout.observations, strict=True
        ):
            weight = None if rollout.all_active else rollout.active[:, :, list(group.agents)].flatten(0, 1)
            normaliser.update(observations.flatten(0, 1), weight)
        self.state_normaliser.update(rollout.states[:-1].flatten(0, 1))

    # --- deployment and persistence ---------------------------------------------------------------------------------

    def local_conductor(self, group: int) -> tuple[GroupPolicy | None, int]:
        """Who chooses a group's instructions when deployed, and for how many steps each holds; nobody here."""
        return None, 1

    def deployable(self, agent: int) -> DeployablePolicy:
        """The agent's local policy as one module, with a copy of the parameters."""
        group, member = self.position[agent]
        conductor, interval = self.local_conductor(group)
        return DeployablePolicy.create(
            self.spec.agents[agent],
            normaliser=self.observation_normalisers[group],
            policy=self.policies[group],
            member=member,
            conductor=conductor,
            interval=interval,
        )

    def components(self) -> StateDict:
        """What a checkpoint holds, by name: tensors, or objects with ``state_dict`` and ``load_state_dict``."""
        parts: StateDict = {"critic": self.critic, "state_normaliser": self.state_normaliser}
        for g, (policy, normaliser) in enumerate(zip(self.policies, self.observation_normalisers, strict=True)):
            parts[f"policies.{g}"] = policy.theta
            parts[f"observation_normalisers.{g}"] = normaliser
        return parts


def _mean_and_extremes(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean over agents of every metric; for divergences also the largest."""
    merged = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    merged |= {f"{key}_max": max(row[key] for row in rows) for key in rows[0] if key.endswith("kl")}
    return merged
