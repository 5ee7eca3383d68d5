"""HASAC: soft actor-critic for one agent after the other.

Off-policy. An iteration:

    1   collect with the agents' policies πⁱ as they are
    2   store every step of the rollout in the replay buffer, with the reward of the n steps after it
    3   several times, on transitions drawn from the buffer:
        a   Q_1, Q_2 regress on  y = Σ_{k<m} γ^k r_{t+k} + γ^m·( min_j Q_j⁻(s', a') − Σ_i α_i·ln πⁱ(a'ⁱ|o'ⁱ) ),  a' ∼ π
        b   for i_1 … i_N, a random permutation: θⁱ ← descent on
                E[ α_i·ln πⁱ(aⁱ|oⁱ) − min_j Q_j(s, a) ],  aⁱ ∼ πⁱ, and those before i of their new policies
        c   α_i ← descent on  −ln α_i · E[ ln πⁱ(aⁱ|oⁱ) + H̄_i ]  for all i
        d   the target networks follow

Source: Liu et al. 2024, "Maximum Entropy Heterogeneous-Agent Reinforcement Learning", Algorithm 1 and Eqs. 8 to 10;
Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", for c.
Differs: Q counts every agent's entropy by that agent's own α_i, the one that its policy is held to; no warm-up with
uniform actions; H̄ of choices is a smaller share of ln A, and their entropy is exact; rewards are scaled; see
docs/algorithms/hasac.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from gymnasium import spaces
from pydantic import Field
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.experience.replay import Replay, Rows, all_finite, cut_into_transitions
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.advice import given
from hmarl.trainer.learning.metrics import mean_metrics
from hmarl.trainer.learning.returns import weighted_mean
from hmarl.trainer.learning.reward_scale import RewardScale, runaway_advice
from hmarl.trainer.learning.twin_critic import TwinCritic
from hmarl.trainer.networks.distributions import ActionHead
from hmarl.trainer.networks.drawing import Drawn, draw, seen_action
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import AlgorithmSettings, HiddenSizes, SquashedGaussianFields
from hmarl.trainer.records.plots import Panel, PanelPlot, Plot

# In units of scaled rewards: beyond, entropy is all that counts.
_ALL_THAT_COUNTS = 10.0


class HasacSettings(SquashedGaussianFields, AlgorithmSettings):
    """Settings of HASAC."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"recurrent", "memory_size", "chunk_length"})

    hidden_sizes: HiddenSizes = Field((128, 128), description="hidden layers of the policies")
    normalise_values: bool = Field(True, description="rewards are scaled")
    learning_rate: float = Field(5e-4, gt=0, description="Adam's step size for the policies")
    critic_hidden_sizes: HiddenSizes = Field((128, 128), description="hidden layers of Q₁ and Q₂")
    critic_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for Q₁ and Q₂")
    gradient_steps: int = Field(16, ge=1, description="steps on replayed transitions per rollout")
    batch_transitions: int = Field(256, ge=1, description="transitions per gradient step")
    replay_capacity: int = Field(100_000, ge=1, description="transitions that are kept; all are part of checkpoints")
    n_step: int = Field(5, ge=1, description="n, rewards in a target before the values; run.rollout_length at most")
    target_rate: float = Field(0.005, gt=0, le=1, description="τ, what the target networks take on per step")
    automatic_temperature: bool = Field(True, description="α_i follows the entropy that is aimed at; else it stays")
    initial_temperature: float = Field(0.1, gt=0, description="α_i at first, in units of scaled rewards")
    temperature_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for ln α_i")
    target_entropy: float = Field(-1.0, description="H̄ of continuous actions in [-1, 1], per component, in nats")
    target_entropy_share: float = Field(0.3, ge=0, le=1, description="H̄ of choices, as a share of ln(legal ones)")


@dataclass(frozen=True)
class Moment:
    """What is seen in b moments, ready for the networks.

    Attributes:
        inputs: per group [N_g, b, input_size].
        masks: per group bool [N_g, b, A], or None.
        states: [b, state_size] normalised.
        present: [b, N] float32, 0 for agents that are not there.
    """

    inputs: list[Tensor]
    masks: list[Tensor | None]
    states: Tensor
    present: Tensor


@dataclass(frozen=True)
class Batch:
    """b replayed transitions.

    Attributes:
        now: before the actions.
        actions: of every agent [b, A], as critics see them; 0 for agents that are not there.
        rewards: [b] of the steps that are counted, scaled.
        discounts: [b] of what follows, 0 after termination.
        then: after those steps.
    """

    now: Moment
    actions: list[Tensor]
    rewards: Tensor
    discounts: Tensor
    then: Moment


class Hasac(Algorithm):
    """Soft actor-critic, off-policy: one agent after the other climbs the twin critic's value and its own entropy."""

    settings_class: ClassVar[type[AlgorithmSettings]] = HasacSettings
    live_metrics: ClassVar[tuple[str, ...]] = ("critic_loss", "agent_entropy")
    plots: ClassVar[tuple[Plot, ...]] = (
        PanelPlot(
            "diagnostics.png",
            (
                Panel("loss of the values", ("critic_loss",)),
                Panel("entropy (nats)", ("agent_entropy", "target_entropy")),
                Panel("temperature", ("temperature",)),
            ),
        ),
    )
    settings: HasacSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HasacSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        width = sum(head.action_size * len(group.agents) for head, group in zip(self.heads, spec.groups, strict=True))
        self.critic = TwinCritic(spec.state_size, width, settings, generator, device)
        self.optimisers = [
            [FlatAdam(row, settings.learning_rate, settings.max_gradient_norm) for row in policy.theta]
            for policy in self.policies
        ]
        start = math.log(settings.initial_temperature)
        self.log_temperatures = torch.full((len(spec.agents), 1), start, device=device)
        self.temperature_optimiser = FlatAdam(
            self.log_temperatures, settings.temperature_learning_rate, settings.max_gradient_norm
        )
        self.scale = RewardScale(settings.gamma, spec, device, settings.normalise_values)
        self.replay = Replay(settings.replay_capacity)

    # --- learning ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Store the rollout, and learn from replayed transitions."""
        settings, schedule = self.settings, self.schedule(progress)
        # 2: every step, with what was earned in the n steps after it
        rows = cut_into_transitions(rollout, settings.n_step, settings.gamma)
        if all_finite(rows):
            self.replay.add(rows)
        self.update_normalisers(rollout)
        self.scale.update(rollout)
        # 3
        steps = settings.gradient_steps if len(self.replay) else 0
        metrics = mean_metrics(self._improve(schedule) for _ in range(steps))
        return metrics | {"replay_transitions": float(len(self.replay))}

    def _improve(self, schedule: float) -> dict[str, Tensor]:
        """One step of all that is learnt, on transitions drawn from the buffer."""
        batch = self.prepare(self.replay.sample(self.settings.batch_transitions, self.noise_generator))
        now = batch.now
        # a: φ_j ← descent on E[ (Q_j(s, a) − y)² ]
        metrics = self.critic.fit(now.states, batch.actions, self.soft_targets(batch), schedule)
        # b: for i_1 … i_N at random: θⁱ ← descent on E[ α_i·ln πⁱ − min_j Q_j ], given the others' newest
        actions, log_probs = self.draw_all(now)
        norms = []
        for agent in torch.randperm(len(self.spec.agents), generator=self.generator).tolist():
            norm, log_probs[:, agent] = self._improve_agent(agent, now, actions, schedule)
            norms.append(norm)
        # c: α_i ← descent on −ln α_i · E[ ln πⁱ + H̄_i ]
        targets = self.target_entropies(now)
        if self.settings.automatic_temperature:
            parameter = self.temperature_optimiser.parameter
            loss = temperature_loss(parameter.squeeze(-1), log_probs, targets, now.present)
            self.temperature_optimiser.step(loss, schedule)
        # d: φ⁻ ← (1 − τ)·φ⁻ + τ·φ
        self.critic.follow()
        return metrics | {
            "agent_entropy": -weighted_mean(log_probs, now.present),
            "target_entropy": weighted_mean(targets, now.present),
            "temperature": self.temperatures.mean(),
            "agent_gradient_norm": torch.stack(norms).mean(),
        }

    def _improve_agent(self, agent: int, now: Moment, actions: list[Tensor], schedule: float) -> tuple[Tensor, Tensor]:
        """One step of an agent's policy, given all agents' ``actions``, of which its own are drawn anew afterwards.

        Returns:
            The gradient's norm, and [b] ln πⁱ(aⁱ|oⁱ) before the step.
        """
        group, member = self.position[agent]
        optimiser = self.optimisers[group][0 if self.policies[group].shared else member]
        drawn = self._draw_one(agent, optimiser.parameter, now)
        actions[agent] = drawn.seen
        values = self.critic.smaller(self.critic.theta, now.states, actions)
        loss = policy_loss(values, drawn.log_prob, self.temperatures[agent], now.present[:, agent])
        norm = optimiser.step(loss, schedule)
        with torch.no_grad():
            actions[agent] = self._draw_one(agent, self.policies[group].row(member), now).seen
        return norm, drawn.log_prob.detach()

    @torch.no_grad()
    def soft_targets(self, batch: Batch) -> Tensor:
        """[b] y = R + γ^m·( min_j Q_j⁻(s', a') − Σ_i α_i·ln πⁱ(a'ⁱ|o'ⁱ) ), a' of the policies as they are."""
        actions, log_probs = self.draw_all(batch.then)
        values = self.critic.smaller(self.critic.target, batch.then.states, actions)
        bonus = -(self.temperatures * log_probs * batch.then.present).sum(-1)
        return batch.rewards + batch.discounts * (values + bonus)

    @property
    def temperatures(self) -> Tensor:
        """[N] α_i."""
        return self.log_temperatures.squeeze(-1).exp()

    def target_entropies(self, moment: Moment) -> Tensor:
        """[b, N] H̄_i, in nats."""
        settings, targets = self.settings, torch.empty_like(moment.present)
        for head, group, mask in zip(self.heads, self.spec.groups, moment.masks, strict=True):
            for member, agent in enumerate(group.agents):
                legal = None if mask is None else mask[member]
                targets[:, agent] = target_entropy(head, legal, settings.target_entropy, settings.target_entropy_share)
        return targets

    # --- what is seen and done --------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, rows: Rows) -> Batch:
        """Replayed transitions as the networks want them; ``rows`` as ``cut_into_transitions`` returns them."""
        now = self._moment(rows, "")
        actions: list[Tensor] = [now.states] * len(self.spec.agents)
        for g, (head, group) in enumerate(zip(self.heads, self.spec.groups, strict=True)):
            seen = seen_action(head, rows[f"actions.{g}"])
            for member, agent in enumerate(group.agents):
                actions[agent] = seen[:, member] * now.present[:, agent, None]
        rewards = rows["rewards"] * self.scale.factor
        return Batch(now, actions, rewards, rows["discounts"], self._moment(rows, "next_"))

    def _moment(self, rows: Rows, prefix: str) -> Moment:
        """What was seen in the rows whose names have a prefix."""
        features = self.normalised([rows[f"{prefix}observations.{g}"] for g in range(len(self.policies))])
        masks = [rows.get(f"{prefix}action_masks.{g}") for g in range(len(features))]
        return Moment(
            [policy.inputs(each).transpose(0, 1) for policy, each in zip(self.policies, features, strict=True)],
            [None if mask is None else mask.transpose(0, 1) for mask in masks],
            self.state_normaliser(rows[f"{prefix}states"]),
            rows[f"{prefix}active"].float(),
        )

    @torch.no_grad()
    def draw_all(self, moment: Moment) -> tuple[list[Tensor], Tensor]:
        """Of every agent [b, A] actions as critics see them, and [b, N] their log-probabilities."""
        log_probs = torch.empty_like(moment.present)
        actions = [moment.states] * len(self.spec.agents)
        for g, (policy, group) in enumerate(zip(self.policies, self.spec.groups, strict=True)):
            rows = (len(group.agents), len(moment.states))
            noise = self.heads[g].draw_perturbations(rows, self.noise_generator)
            drawn = draw(policy.all_distributions(moment.inputs[g], moment.masks[g]), noise)
            for member, agent in enumerate(group.agents):
                actions[agent] = drawn.seen[member] * moment.present[:, agent, None]
                log_probs[:, agent] = drawn.log_prob[member]
        return actions, log_probs

    def _draw_one(self, agent: int, theta: Tensor, moment: Moment) -> Drawn:
        """An agent's actions under parameters ``theta`` [P], with gradients."""
        group, member = self.position[agent]
        mask = moment.masks[group]
        noise = self.heads[group].draw_perturbations((len(moment.states),), self.noise_generator)
        distribution = self.policies[group].distribution(
            theta, moment.inputs[group][member], None if mask is None else mask[member]
        )
        drawn = draw(distribution, noise)
        return Drawn(drawn.seen * moment.present[:, agent, None], drawn.log_prob)

    # --- advice and persistence -------------------------------------------------------------------------------------

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Values that run away, and temperatures that leave nothing of the rewards."""
        settings = self.settings
        of_values = runaway_advice(metrics, settings.gamma, settings.normalise_values, "critic_learning_rate")
        return given(_temperature_advice(metrics), of_values)

    def components(self) -> StateDict:
        """The shared parts, the critic, the temperatures and the optimisers."""
        parts = super().components() | {
            "critic": self.critic,
            "log_temperatures": self.log_temperatures,
            "temperature_optimiser": self.temperature_optimiser,
            "step_moments": self.scale.moments,
        }
        return parts | {
            f"optimisers.{g}.{row}": optimiser
            for g, rows in enumerate(self.optimisers)
            for row, optimiser in enumerate(rows)
        }

    def experience(self) -> StateDict:
        """The replay buffer."""
        return {"replay": self.replay}


def policy_loss(values: Tensor, log_prob: Tensor, temperature: Tensor, present: Tensor) -> Tensor:
    """Scalar E[ α·ln π(a|o) − min_j Q_j(s, a) ] over the rows in which the agent is there.

    Args:
        values: [b] min_j Q_j, with the gradient of the agent's action.
        log_prob: [b] ln π(a|o).
        temperature: scalar α.
        present: [b] 1 where the agent is there, else 0.
    """
    return weighted_mean(temperature * log_prob - values, present)


def temperature_loss(log_temperatures: Tensor, log_probs: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Scalar −Σ_i ln α_i · E[ ln πⁱ(aⁱ|oⁱ) + H̄_i ]: α_i rises where πⁱ has less entropy than H̄_i.

    Args:
        log_temperatures: [N] ln α_i.
        log_probs: [b, N] ln πⁱ(aⁱ|oⁱ), without gradient.
        targets: [b, N] H̄_i.
        present: [b, N] 1 where the agent is there, else 0.
    """
    missing = ((log_probs + targets) * present).sum(0) / present.sum(0).clamp(min=1.0)
    return -(log_temperatures * missing).sum()


def target_entropy(head: ActionHead, legal: Tensor | None, per_component: float, share: float) -> Tensor:
    """H̄ in nats, a scalar, or [b] where choices are masked.

    Args:
        head: of the actions.
        legal: [b, A] bool, or None.
        per_component: of continuous actions.
        share: of the largest entropy that choices can have, summed over branches.
    """
    if head.continuous:
        return torch.full((), per_component * head.action_size)
    space = head.space
    sizes = [int(n) for n in space.nvec] if isinstance(space, spaces.MultiDiscrete) else [head.action_size]
    if legal is None:
        return torch.full((), share * sum(math.log(size) for size in sizes))
    counts = torch.stack([part.sum(-1) for part in legal.split(sizes, dim=-1)])
    return share * counts.clamp(min=1).log().sum(0)


def _temperature_advice(metrics: dict[str, float]) -> str | None:
    if metrics.get("temperature", 0.0) <= _ALL_THAT_COUNTS:
        return None
    return (
        f"the temperature is above {_ALL_THAT_COUNTS:g}, and the agents learn to be random: they cannot reach the "
        "entropy that is aimed at. Lower algorithm.target_entropy or algorithm.target_entropy_share, or set "
        "algorithm.automatic_temperature=false"
    )
