"""A2PO: agent by agent, with the advantage itself corrected for the agents updated before.

Where HAPPO multiplies one fixed advantage by the earlier agents' ratios, A2PO estimates it anew for every agent:

    Â^i_t = δ_t + Σ_{k≥1} γᵏ ( Π_{j=1..k} λ · min(1, F_{t+j}) ) δ_{t+k}        F: ratios of the agents updated before

and clips the joint ratio l = r^i · clip(F, 1 ± ε/2) to 1 ± ε^i, where ε^i grows with the agent's place in the order.
Agents are picked semi-greedily: at every other place the one with the largest advantage, at the others a random one.

Source: Wang et al. 2023, "Order Matters: Agent-by-agent Policy Optimization", Eqs. 4 and 7 and section 4.2.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from hmarl.trainer.algorithms.happo import Happo, HappoSettings
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.returns import generalised_advantages, normalise_advantages
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.sequential.gradient_steps import clipped_surrogate
from hmarl.trainer.sequential.heterogeneous import AgentSamples, Estimate, Improvement


class A2poSettings(HappoSettings):
    """Settings of A2PO."""

    first_clip_share: float = Field(0.5, gt=0, le=1, description="c, the first agent's clip as a share of ε")
    semi_greedy: bool = Field(True, description="False draws the whole order at random")


class A2po(Happo):
    """Clipped steps, one agent after the other, on advantages corrected for those before."""

    settings_class = A2poSettings
    settings: A2poSettings

    def update_agents(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """The skeleton's loop; scores are those of the policies before it."""
        self._place = 0
        self._factor = torch.ones(0)
        self._scores: dict[int, Tensor] = {}
        if self.settings.semi_greedy:
            features = self.features(rollout)
            for agent in range(len(self.spec.agents)):
                samples = self.samples(rollout, features, agent)
                score = samples.old.score(samples.actions)
                self._scores[agent] = score if samples.active is None else score * samples.active.unsqueeze(-1)
        return super().update_agents(rollout, estimate, schedule)

    def next_agent(self, remaining: list[int], rollout: Rollout, advantages: Tensor, factor: Tensor) -> int:
        """At even places the agent with the largest advantage, at odd ones a random one (section 4.2)."""
        if not self.settings.semi_greedy or self._place % 2:
            return super().next_agent(remaining, rollout, advantages, factor)
        sizes = [explained_advantage(self._scores[agent], factor * advantages) for agent in remaining]
        return remaining[max(range(len(remaining)), key=sizes.__getitem__)]

    def advantages_given(self, factor: Tensor, joint: Tensor, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[M] Â^i, normalised; F stays behind for the clipped joint ratio."""
        self._factor, self._place = factor, self._place + 1
        shape = rollout.terminated.shape
        corrected = generalised_advantages(
            rollout.team_rewards, estimate.values, estimate.next_values, rollout.ended, self.settings.gamma,
            self.settings.gae_lambda, factor.view(shape).clamp(max=1.0),
        )  # fmt: skip
        return normalise_advantages(corrected).flatten()

    @property
    def clip(self) -> float:
        """ε^i = ε · (c + (1 − c) · place / N): the earlier an agent, the more the others build on its step."""
        share = self.settings.first_clip_share
        return self.settings.clip * (share + (1.0 - share) * self._place / len(self.spec.agents))

    def improve_agent(self, agent: int, samples: AgentSamples, advantages: Tensor, schedule: float) -> Improvement:
        """As HAPPO, with clip(F, 1 ± ε/2) in the joint ratio."""
        half = self.settings.clip / 2
        weighted = replace(samples, surrogate_weight=self._factor.clamp(1.0 - half, 1.0 + half))
        return super().improve_agent(agent, weighted, advantages, schedule)

    def loss(self, new: Distribution, samples: AgentSamples, advantages: Tensor) -> Tensor:
        """−E[ min(l·Â, clip(l, 1 ± ε^i)·Â) ] − c·H."""
        assert samples.surrogate_weight is not None
        joint = samples.ratio(new) * samples.surrogate_weight
        objective = samples.mean(clipped_surrogate(joint, advantages, self.clip))
        return -objective - self.settings.entropy_coefficient * samples.mean(new.entropy())

    def report(self, new: Distribution, samples: AgentSamples) -> dict[str, float]:
        """The share of joint ratios beyond the agent's clipping range."""
        assert samples.surrogate_weight is not None
        beyond = (samples.ratio(new) * samples.surrogate_weight - 1.0).abs() > self.clip
        return {"agent_clipped": float(samples.mean(beyond.float()))}


def explained_advantage(score: Tensor, advantages: Tensor) -> float:
    """How much of the advantage an agent's own action accounts for: E[A^i(a^i)²] of the best fit A^i = w · score.

    With one V(s) for the whole team, all agents share one Â and E|Â| cannot tell them apart; its part that is
    explained by an agent's action can.

    Args:
        score: [M, A] gradient of log π^i with respect to the distribution's parameters; zero where absent.
        advantages: [M].
    """
    gradient = (score * advantages.unsqueeze(-1)).mean(0)
    fisher = score.mT @ score / len(score)
    ridge = 1e-6 * torch.eye(len(gradient), device=score.device)
    return float(gradient.dot(torch.linalg.solve(fisher + ridge, gradient)))
