"""HCPO: a conductor instructs the team; conductor and agents improve in two trust-region levels.

The joint policy is π_mar(a|s) = E_{M∼w(·|s)} Π_i π^i(a^i | o^i, M), with K discrete instructions M (or, an extension,
vectors). An iteration (Algorithm 1):

    3   collect with the centralised conductor w_Ψ and the actors π^i_θ
    5   A(M|s) and A(a|s,M) from the critic by GAE
    6   Ψ ← trust-region step with δ₁ (Algorithm 2)
    7   random permutation of the agents
    10  ψ^i ← argmin −E_{w_new}[log ψ^i]: local conductors follow the conductor
    11  θ^i ← trust-region step with δ₂ (Algorithm 3), 12 Θ ← ratio · Θ
    14  φ ← regression of V on the λ-returns

Source: Liu et al. 2025, "HCPO: Hierarchical Conductor-Based Policy Optimization in Multi-Agent Reinforcement Learning".
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.algorithms.hatrpo import HatrpoSettings
from hmarl.trainer.conductors.bound_plot import ImprovementBoundPlot
from hmarl.trainer.conductors.conducted import Conducted
from hmarl.trainer.conductors.improvement_bound import BoundMonitor
from hmarl.trainer.conductors.level import ConductorSettings
from hmarl.trainer.conductors.rollout_replay import Replayed, RolloutReplay, replayed_estimate
from hmarl.trainer.contract.algorithm import StateDict
from hmarl.trainer.experience.rollout import Decision, Rollout
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.instructions import InstructionWeights
from hmarl.trainer.learning.returns import normalise_advantages
from hmarl.trainer.records.plots import Plot, diagnostics
from hmarl.trainer.sequential.heterogeneous import AgentSamples, Estimate, HeterogeneousAgents, Improvement
from hmarl.trainer.sequential.trust_region_steps import improve_by_trust_region


class HcpoSettings(ConductorSettings, HatrpoSettings):
    """Settings of HCPO; ``kl_limit`` is δ₂ of the agents."""

    kl_limit: float = Field(0.005, gt=0, description="δ₂, largest mean KL of one agent's step, in nats")
    critic: Literal["v", "q"] = Field("v", description="v: joint GAE at both levels; q: V(s) and Q(s, M), Eqs. 5-7")
    replay_rollouts: int = Field(
        0, ge=0, description="past rollouts that every update learns from again (an extension); 0 is on-policy"
    )
    replay_weight_limit: float = Field(1.0, ge=1, description="c, largest importance weight of a replayed sample")

    @model_validator(mode="after")
    def _combinations(self) -> HcpoSettings:
        """Refuse what has not been worked out."""
        if self.instruction_space == "continuous":
            self._need("instruction_space=continuous", critic="v")
        if self.replay_rollouts:
            self._need(
                f"replay_rollouts={self.replay_rollouts}",
                critic="v", instruction_weight="ratio", instruction_interval=1, recurrent=False,
            )  # fmt: skip
        return self


class Hcpo(Conducted, HeterogeneousAgents):
    """Two-level trust-region optimisation under a conductor, with local conductors for deployment."""

    settings_class = HcpoSettings
    live_metrics: ClassVar[tuple[str, ...]] = ("agent_kl", "conductor_kl", "instruction_entropy", "explained_variance")
    plots: ClassVar[tuple[Plot, ...]] = (
        diagnostics(("agent_entropy", "instruction_entropy"), ("agent_kl", "conductor_kl")),
        ImprovementBoundPlot(),
    )
    settings: HcpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HcpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.instruction_critic: Critic | None = None
        if settings.critic == "q":
            self.instruction_critic = Critic(spec.state_size, settings, generator, device, settings.instructions)
        self._weights: InstructionWeights | None = None
        self.monitor = BoundMonitor(settings.gamma, device)
        self.replay = RolloutReplay(spec, settings.replay_rollouts)
        self._fresh: Rollout | None = None
        self._replayed: Replayed | None = None

    # --- acting (Algorithm 1, line 3) -------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """M ∼ w(·|s) where an instruction has run out, then a^i ∼ π^i(·|o^i, M)."""
        context, extras = self.instruct(observation, step)
        decision = self.act_in_context(observation, step, context)
        decision.extras = extras
        return decision

    # --- the conductor's level (lines 5, 6 and 10) ------------------------------------------------------------------

    def update_conductor(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """Ψ ← Ψ + αʲβx (Algorithm 2), then the local conductors follow (line 10)."""
        weight = self._replay_weight()
        self.monitor.begin((self._fresh or rollout).team_rewards, estimate.advantages.flatten(), weight)
        improvement = self.conductor.improve(
            rollout, estimate.states, self._instruction_advantages(rollout, estimate), self.features(rollout),
            self.noise_generator, schedule, weight=weight, fresh=self._fresh,
        )  # fmt: skip
        self.monitor.conductor_moved(improvement.ratio, improvement.kl)
        self._weights = improvement.weights
        return improvement.metrics

    def _instruction_advantages(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B] A(M|s): the joint GAE (critic v), or Q(s, M) − V(s) (critic q, Eq. 5)."""
        if self.instruction_critic is None:
            return self.conductor.decision_advantages(rollout, estimate, self.settings.gae_lambda)
        return self._instruction_values(rollout, estimate) - estimate.values

    def _instruction_values(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B] Q(s_t, M_t)."""
        assert self.instruction_critic is not None
        values = self.instruction_critic.values(estimate.states)
        instruction = rollout.extras["instruction"]
        return values.gather(-1, instruction.flatten().unsqueeze(-1)).view(instruction.shape)

    def instruction_weights(self, rollout: Rollout, agent: int) -> tuple[Tensor | None, Tensor | None]:
        """Set by the conductor's update just before."""
        assert self._weights is not None
        return self._weights.of(agent)

    # --- the agents' level (lines 9 to 14) --------------------------------------------------------------------------

    def context(self, rollout: Rollout) -> Tensor:
        """[T, B, context_size] the instructions."""
        return self.conductor.seen_of(rollout.extras["instruction"])

    def agents_advantages(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B] A(a|s, M): the joint GAE (critic v), or the λ-return − Q(s, M) (critic q: Eq. 6, and so Eq. 7)."""
        if self.instruction_critic is None:
            return normalise_advantages(estimate.advantages)
        return normalise_advantages(estimate.returns - self._instruction_values(rollout, estimate))

    def improve_agent(self, agent: int, samples: AgentSamples, advantages: Tensor, schedule: float) -> Improvement:
        """θ^i ← θ^i + αʲβx (Algorithm 3)."""
        group, member = self.position[agent]
        improvement = improve_by_trust_region(
            self.policies[group], member, samples, advantages, self.settings,
            kl_limit=self.settings.kl_limit, entropy_coefficient=self.settings.entropy_coefficient,
        )  # fmt: skip
        log_ratio = improvement.policy.log_prob(samples.actions) - samples.old_log_prob
        self.monitor.agent_moved(log_ratio, samples.old.kl(improvement.policy), samples.active)
        return improvement

    def update_agents(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """As the family, and Theorem 1 for the step of conductor and agents."""
        return super().update_agents(rollout, estimate, schedule) | self.monitor.finish()

    def update_critic(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """V and, with critic q, Q(s, M) regress on the full λ-returns."""
        metrics = super().update_critic(rollout, estimate, schedule)
        if self.instruction_critic is not None:
            fitted = self.instruction_critic.fit(
                estimate.states, estimate.returns.flatten(), self.noise_generator, schedule,
                chosen=rollout.extras["instruction"].flatten(),
            )  # fmt: skip
            metrics |= {f"instruction_{key}": value for key, value in fitted.items()}
        return metrics

    # --- past rollouts (an extension) -------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """One iteration, on the rollout and the replayed ones beside it."""
        if not self.settings.replay_rollouts:
            return super().update(rollout, progress)
        joined, rows = self.replay.beside(rollout)
        log_likelihood = self._log_likelihood(joined)
        weight = self.replay.weights(log_likelihood, self.settings.replay_weight_limit)
        self._fresh, self._replayed = rollout, Replayed(joined, rows["next_states"], weight)
        try:
            metrics = super().update(joined, progress)
        finally:
            self._fresh = self._replayed = None
        self.replay.add(rollout, log_likelihood[:, : rollout.batch_size])
        replayed = weight[:, rollout.batch_size :]
        return metrics | ({"replay_weight": float(replayed.mean())} if replayed.numel() else {})

    @torch.no_grad()
    def _log_likelihood(self, rollout: Rollout) -> Tensor:
        """[T, B] log w(M|s) + Σ_i log π^i(a^i|o^i, M) under the present policies, over the agents that were there."""
        conductor = self.conductor.distribution(self.state_normaliser(rollout.states))
        total = conductor.log_prob(rollout.extras["instruction"])
        features = self.features(rollout)
        for group, member in self.position.values():
            samples = self.samples_of(rollout, features, group, slice(member, member + 1))
            own = samples.old_log_prob if samples.active is None else samples.old_log_prob * samples.active
            total = total + own.view(total.shape)
        return total

    def _replay_weight(self) -> Tensor | None:
        """[M] ρ of the samples, or None when nothing is replayed."""
        return None if self._replayed is None else self._replayed.weight.flatten()

    def estimate(self, rollout: Rollout) -> Estimate:
        """As the family; with replayed rollouts by V-trace."""
        if self._replayed is None:
            return super().estimate(rollout)
        settings = self.settings
        return replayed_estimate(
            self._replayed, self.critics["critic"], self.state_normaliser, settings.gamma, settings.gae_lambda
        )

    def update_normalisers(self, rollout: Rollout) -> None:
        """Every rollout counts once."""
        super().update_normalisers(self._fresh or rollout)

    def experience(self) -> StateDict:
        """The rollouts that are kept for replaying."""
        return {"replay": self.replay} if self.settings.replay_rollouts else {}

    # --- persistence ------------------------------------------------------------------------------------------------

    def components(self) -> StateDict:
        """The shared parts, the conductor's level and what watches the bound."""
        parts = super().components() | {"monitor": self.monitor}
        if self.instruction_critic is not None:
            parts["instruction_critic"] = self.instruction_critic
        return parts
