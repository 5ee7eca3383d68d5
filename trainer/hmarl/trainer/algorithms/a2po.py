"""A2PO: agent by agent, with the advantage itself corrected for the agents updated before.

Where HAPPO multiplies one fixed advantage by the earlier agents' ratios, A2PO estimates it anew for every agent:

    Â^i_t = δ_t + Σ_{k≥1} γᵏ ( Π_{j=1..k} λ · min(1, F_{t+j}) ) δ_{t+k}        F: ratios of the agents updated before

and clips the joint ratio l = r^i · clip(F, 1 ± ε/2) to 1 ± ε^i, where ε^i grows with the agent's place in the order.
Agents are picked semi-greedily: at every other place the one with the largest advantage, at the others a random one.

Source: Wang et al. 2023, "Order Matters: Agent-by-agent Policy Optimization", Eqs. 4 and 7 and section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.advice import given
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.metrics import Figure, numbers
from hmarl.trainer.learning.returns import generalised_advantages, normalise_advantages
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.settings import (
    AlgorithmSettings,
    CreditFields,
    CriticFields,
    GradientStepFields,
    PolicyGradientFields,
)
from hmarl.trainer.sequential.advice import went_far
from hmarl.trainer.sequential.estimates import (
    Discounting,
    Estimate,
    advantages_of_agents,
    fit_joint,
    joint_estimate,
    valued_agents,
)
from hmarl.trainer.sequential.gradient_steps import GradientSteps, clipped_surrogate
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import Order, Turn, one_after_the_other, random_order


class A2poSettings(CreditFields, CriticFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields):
    """Settings of A2PO."""

    clip: float = Field(0.2, gt=0, lt=1, description="ε, the ratio is clipped to [1−ε, 1+ε]")
    first_clip_share: float = Field(0.5, gt=0, le=1, description="c, the first agent's clip as a share of ε")
    semi_greedy: bool = Field(True, description="False draws the whole order at random")


class A2po(Algorithm):
    """Clipped steps, one agent after the other, on advantages corrected for those before."""

    settings_class: ClassVar[type[AlgorithmSettings]] = A2poSettings
    sees_images: ClassVar[bool] = True
    settings: A2poSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: A2poSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        outputs = valued_agents(spec, settings.credit)
        self.critic = Critic(spec.state_size, settings, generator, device, outputs, spec.state_image)
        self.steps = GradientSteps(self.policies, settings, self.noise_generator)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """θ^{i_m} ← descent on −E[ min(l·Â^i, clip(l, 1 ± ε^i)·Â^i) ] − c·H for m = 1 … N (Eq. 7)."""
        settings, schedule = self.settings, self.schedule(progress)
        # Â(s, a) by GAE, and the λ-returns R; or each agent's own, Âⁱ and Rⁱ
        estimate = joint_estimate(rollout, self.critic, self.state_normaliser, settings)
        advantages = advantages_of_agents(rollout, estimate)
        team = TeamSamples(rollout, self.policies, self.features(rollout))
        # section 4.2: at every other place the agent with the largest advantage
        order = random_order(self.generator)
        if settings.semi_greedy:
            order = semi_greedy(scores(team), advantages.flatten(0, 1).T, order)
        # for i_1 … i_N: Â^i given F (Eq. 4); θ^i ← descent on the loss of the joint ratio; F ← F · π^i_new / π^i_old
        loss, report = partial(joint_ratio_loss, settings=settings), partial(joint_ratio_report, settings=settings)
        metrics = one_after_the_other(
            team,
            order,
            advantage=lambda agent, factor: corrected_advantages(rollout, estimate, agent, factor, settings),
            improve=lambda turn: self.steps.descend(turn, loss, report),
            schedule=schedule,
        )
        # φ ← argmin E[ (V_φ(s) − R)² ]
        metrics |= fit_joint(self.critic, rollout, estimate, self.noise_generator, schedule)
        self.update_normalisers(rollout)
        return metrics

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Steps that have become too long."""
        return given(went_far(metrics, self.settings))

    def components(self) -> StateDict:
        """The shared parts, the critic and the optimisers."""
        return {"critic": self.critic, **super().components(), **self.steps.components()}


def corrected_advantages(
    rollout: Rollout, estimate: Estimate, agent: int, factor: Tensor, discounting: Discounting
) -> Tensor:
    """[M] Â^i of an agent given F [M] (Eq. 4), normalised; F stays behind for the clipped joint ratio."""
    rewards, values, following, ended = rollout.team_rewards, estimate.values, estimate.next_values, rollout.ended
    there = None
    if estimate.of_agents:
        rewards, values, following = (each[..., agent] for each in (rollout.rewards, values, following))
        ended = ended | ~rollout.next_active()[..., agent]  # to leave is to terminate
        there = None if rollout.all_active else rollout.active[..., agent].float()
    before = factor.view(ended.shape).clamp(max=1.0)
    if rollout.correction is not None:
        before = before * rollout.correction
    corrected = generalised_advantages(
        rewards,
        values,
        following,
        ended,
        discounting.gamma,
        discounting.gae_lambda,
        before,
    )
    return normalise_advantages(corrected, there).flatten()


def clip_of(turn: Turn, settings: A2poSettings) -> float:
    """ε^i = ε · (c + (1 − c) · place / N): the earlier an agent, the more the others build on its step."""
    share = settings.first_clip_share
    return settings.clip * (share + (1.0 - share) * turn.place / turn.agents)


def joint_ratio(new: Distribution, turn: Turn, clip: float) -> Tensor:
    """[M] l = r^i · clip(F, 1 ± ε/2)."""
    return turn.samples.ratio(new) * turn.factor.clamp(1.0 - clip / 2, 1.0 + clip / 2)


def joint_ratio_loss(new: Distribution, turn: Turn, settings: A2poSettings) -> Tensor:
    """−E[ min(l·Â, clip(l, 1 ± ε^i)·Â) ] − c·H (Eq. 7)."""
    samples, joint = turn.samples, joint_ratio(new, turn, settings.clip)
    surrogate = clipped_surrogate(joint, turn.advantages, clip_of(turn, settings))
    objective = samples.mean(surrogate, samples.surrogate_weight)
    return -objective - settings.entropy_coefficient * samples.mean(new.entropy())


def joint_ratio_report(new: Distribution, turn: Turn, settings: A2poSettings) -> dict[str, Figure]:
    """The share of joint ratios beyond the agent's clipping range."""
    beyond = (joint_ratio(new, turn, settings.clip) - 1.0).abs() > clip_of(turn, settings)
    return {"agent_clipped": turn.samples.mean(beyond.float())}


def scores(team: TeamSamples) -> list[Tensor]:
    """Per agent [M, A] the gradient of log π^i with respect to its distribution's parameters, of the policies as they
    are; zero where an agent is absent.
    """
    found = []
    for agent in range(len(team.spec.agents)):
        samples = team.of_agent(agent)
        score = samples.old.score(samples.actions)
        found.append(score if samples.active is None else score * samples.active.unsqueeze(-1))
    return found


def semi_greedy(scores: Sequence[Tensor], advantages: Tensor, otherwise: Order) -> Order:
    """At the first, third, … place the agent whose action explains most of F·Â, at the others ``otherwise``.

    Args:
        scores: per agent, see ``explained_advantage``.
        advantages: [N, M] Â of every agent.
        otherwise: the order at the other places.
    """

    def next_agent(remaining: Sequence[int], factor: Tensor) -> int:
        if (len(scores) - len(remaining)) % 2:
            return otherwise(remaining, factor)
        sizes = numbers([explained_advantage(scores[agent], factor * advantages[agent]) for agent in remaining])
        return remaining[max(range(len(remaining)), key=sizes.__getitem__)]

    return next_agent


def explained_advantage(score: Tensor, advantages: Tensor) -> Tensor:
    """How much of the advantage an agent's own action accounts for: E[A^i(a^i)²] of the best fit A^i = w · score, a
    scalar.

    With one V(s) for the whole team, all agents share one Â and E|Â| cannot tell them apart; its part that is
    explained by an agent's action can.

    Args:
        score: [M, A] gradient of log π^i with respect to the distribution's parameters; zero where absent.
        advantages: [M].
    """
    gradient = (score * advantages.unsqueeze(-1)).mean(0)
    fisher = score.mT @ score / len(score)
    ridge = 1e-6 * torch.eye(len(gradient), device=score.device)
    # Without a look at whether it could be solved, for which the host would wait: the ridge sees to that.
    return gradient.dot(torch.linalg.solve_ex(fisher + ridge, gradient).result)
