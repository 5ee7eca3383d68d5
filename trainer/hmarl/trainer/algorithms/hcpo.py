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

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.conductors.acting import ConductedActing
from hmarl.trainer.conductors.advice import conductor_advice
from hmarl.trainer.conductors.bound_plot import ImprovementBoundPlot
from hmarl.trainer.conductors.improvement_bound import BoundMonitor
from hmarl.trainer.conductors.level import ConductorLevel
from hmarl.trainer.conductors.local_share import LocalShare, conducted_locally, locally_conducted, own_instructions
from hmarl.trainer.conductors.past_rollouts import PastRollouts, v_trace_estimate
from hmarl.trainer.conductors.settings import ConductorFields
from hmarl.trainer.conductors.stand_ins import LocalStandIns
from hmarl.trainer.conductors.teacher import ConductedTeacher
from hmarl.trainer.conductors.teams import conducted_teams
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.deployable import Instructing
from hmarl.trainer.contract.shown import EvaluatedTeam
from hmarl.trainer.contract.stand_ins import StandIns
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.instructions import InstructionWeights
from hmarl.trainer.learning.returns import normalise_each
from hmarl.trainer.networks.policies import Context
from hmarl.trainer.networks.settings import AlgorithmSettings, CriticFields, PolicyGradientFields
from hmarl.trainer.records.plots import Plot, diagnostics
from hmarl.trainer.sequential.constrained_steps import AgentLimitFields, TrustRegionFields, improve_by_trust_region
from hmarl.trainer.sequential.estimates import Estimate, joint_estimate
from hmarl.trainer.sequential.samples import TeamSamples
from hmarl.trainer.sequential.turns import Improvement, Turn, one_after_the_other, random_order


class HcpoSettings(
    ConductorFields, AgentLimitFields, TrustRegionFields, CriticFields, PolicyGradientFields, AlgorithmSettings
):
    """Settings of HCPO; ``kl_limit`` is δ₂ of the agents."""

    kl_limit: float = Field(0.005, gt=0, description="δ₂, largest mean KL of one agent's step, in nats")
    critic: Literal["v", "q"] = Field("v", description="v: joint GAE at both levels; q: V(s) and Q(s, M), Eqs. 5-7")
    advantage_noise: float = Field(
        0.0, ge=0, description="noise on both levels' advantages, in their standard deviations: what errors cost"
    )
    local_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the environments that local conductors conduct in rollouts; the conductor learns from "
        "the others alone, with 1 not at all",
    )
    local_share_end: float | None = Field(
        None, ge=0, le=1, description="what it comes to by the end of training; as at the start where it is not given"
    )
    replay_rollouts: int = Field(
        0, ge=0, description="past rollouts that every update learns from again (an extension); 0 is on-policy"
    )
    replay_weight_limit: float = Field(1.0, ge=1, description="c, largest importance weight of a replayed sample")

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        """Refuse what has not been worked out."""
        if self.instruction_space == "continuous":
            self.need("instruction_space=continuous", critic="v")
        if self.conducts_locally:
            by = "local_share" if self.local_share else "local_share_end"
            self.need(
                f"{by}={getattr(self, by)}",
                conductor_sees="state",
                critic="v",
                instruction_weight="ratio",
                replay_rollouts=0,
            )
        if self.replay_rollouts:
            self.need(
                f"replay_rollouts={self.replay_rollouts}",
                critic="v",
                instruction_weight="ratio",
                instruction_interval=1,
                recurrent=False,
            )
        return self

    def check_rollouts(self, length: int, environments: int) -> None:
        """A share is of whole environments: one of less than one would never be."""
        super().check_rollouts(length, environments)
        for name in ("local_share", "local_share_end"):
            share = getattr(self, name)
            if share and not locally_conducted(share, environments):
                raise UsageError(
                    f"algorithm.{name}: got {share}, which of run.environments={environments} is none; expected 0, or "
                    f"at least {1 / environments:.3g}"
                )

    @property
    def conducts_locally(self) -> bool:
        """Whether local conductors ever conduct rollouts."""
        return bool(self.local_share or self.local_share_end)

    def local_share_at(self, progress: float) -> float:
        """The share when that share of the training is done."""
        end = self.local_share if self.local_share_end is None else self.local_share_end
        return self.local_share + (end - self.local_share) * progress


class Hcpo(Algorithm):
    """Two-level trust-region optimisation under a conductor, with local conductors for deployment."""

    settings_class: ClassVar[type[AlgorithmSettings]] = HcpoSettings
    sees_images: ClassVar[bool] = True
    live_metrics: ClassVar[tuple[str, ...]] = ("agent_kl", "conductor_kl", "instruction_entropy", "explained_variance")
    plots: ClassVar[tuple[Plot, ...]] = (
        diagnostics(("agent_entropy", "instruction_entropy"), ("agent_kl", "conductor_kl")),
        ImprovementBoundPlot(),
    )
    settings: HcpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HcpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        settings.check_roles(spec.groups)
        super().__init__(spec, settings, generator, device)
        self.critic = Critic(spec.state_size, settings, generator, device, image=spec.state_image)
        self.conductor = ConductorLevel(spec, settings, self.state_normaliser, generator, device)
        self.local_share = (
            LocalShare(self.local_acting, self.conductor, settings.local_share) if settings.conducts_locally else None
        )
        self.acting = ConductedActing(self.local_acting, self.conductor, self.noise_generator, self.local_share)
        self.instruction_critic = (
            Critic(spec.state_size, settings, generator, device, settings.instructions, spec.state_image)
            if settings.critic == "q"
            else None
        )
        self.monitor = BoundMonitor(settings.gamma, device)
        self.past = PastRollouts(spec, settings.replay_rollouts)

    @property
    def context_size(self) -> int:
        """K, the width of the one-hot instruction, or D of a continuous one."""
        return self.settings.instruction_head.output_size

    @property
    def roles(self) -> int:
        """K, where instructions hand out roles."""
        return self.settings.roles

    def act_in_part(self, first: int, environments: int) -> None:
        """Those conducted locally are the first of the run's environments, whoever acts in them."""
        if self.local_share is not None:
            self.local_share.part = first, environments

    # --- learning (Algorithm 1, lines 5 to 14) ----------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """One iteration, on the rollout alone or on past ones beside it."""
        if self.settings.replay_rollouts:
            return self._update_off_policy(rollout, progress)
        estimate = joint_estimate(rollout, self.critic, self.state_normaliser, self.settings)  # 5
        metrics = self._improve(rollout, estimate, rollout, None, progress)
        self.update_normalisers(rollout)
        self.conductor.sight.learn(rollout)
        if self.local_share is not None:
            metrics |= self.local_share.metrics(rollout)
            self.local_share.share = self.settings.local_share_at(progress)
        return metrics

    def _update_off_policy(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """The same with replayed rollouts (an extension): by V-trace, every sample with its importance weight ρ."""
        settings = self.settings
        joined = self.past.beside(rollout)
        log_likelihood = self._log_likelihood(joined.rollout)
        weight = self.past.weights(log_likelihood, settings.replay_weight_limit)  # ρ
        estimate = v_trace_estimate(joined, weight, self.critic, self.state_normaliser, settings)  # 5
        metrics = self._improve(joined.rollout, estimate, rollout, weight.flatten(), progress)
        self.update_normalisers(rollout)
        self.conductor.sight.learn(rollout)
        self.past.add(rollout, log_likelihood[:, : rollout.batch_size])
        replayed = weight[:, rollout.batch_size :]
        return metrics | ({"replay_weight": float(replayed.mean())} if replayed.numel() else {})

    def _improve(
        self, rollout: Rollout, estimate: Estimate, fresh: Rollout, weight: Tensor | None, progress: float
    ) -> dict[str, float]:
        """Conductor, local conductors, agents and critics; Theorem 1 is watched meanwhile.

        Args:
            rollout: that is learnt from.
            estimate: of it, by the critic.
            fresh: the part of it that the present policies collected.
            weight: [M] importance weights of its samples, or None.
            progress: share of the training done.
        """
        schedule, features = self.schedule(progress), self.features(rollout)
        watched = self.monitor.begin(fresh.team_rewards, estimate.advantages.flatten(), weight)
        of_instructions, of_actions = (
            disturbed(advantages, self.settings.advantage_noise, self.noise_generator)
            for advantages in self.advantages(rollout, estimate)
        )
        # 6: Ψ ← Ψ + αʲβx (Algorithm 2); 10: ψ^i ← argmin −E_{w_new}[log ψ^i]
        instructed = self.conductor.improve(
            rollout,
            estimate.states,
            of_instructions,
            features,
            self.noise_generator,
            schedule,
            weight=weight,
            fresh=fresh,
        )
        watched.conductor_moved(instructed.ratio, instructed.kl)
        # 7 to 12: for a random permutation, θ^i ← θ^i + αʲβx (Algorithm 3) on Θ · A(a|s, M); Θ ← ratio · Θ
        joint = normalise_each(of_actions, conducted_locally(rollout)).flatten()
        metrics = instructed.metrics | one_after_the_other(
            self.samples(rollout, features, instructed.weights),
            order=random_order(self.generator),
            advantage=lambda _, factor: factor * joint,
            improve=self._step,
            schedule=schedule,
            moved=watched.agent_moved,
        )
        # 14: φ ← argmin E[ (V_φ(s) − R)² ], and with critic q E[ (Q(s, M) − R)² ]
        metrics |= watched.metrics() | self.critic.fit(
            estimate.states, estimate.returns.flatten(), self.noise_generator, schedule
        )
        if self.instruction_critic is not None:
            fitted = self.instruction_critic.fit(
                estimate.states,
                estimate.returns.flatten(),
                self.noise_generator,
                schedule,
                chosen=rollout.extras["instruction"].flatten(),
            )
            metrics |= {f"instruction_{key}": value for key, value in fitted.items()}
        return metrics

    def _step(self, turn: Turn) -> Improvement:
        """θ^i ← θ^i + αʲβx (Algorithm 3)."""
        settings = self.settings
        return improve_by_trust_region(
            turn.policy,
            turn.member,
            turn.samples,
            turn.advantages,
            settings,
            kl_limit=settings.kl_limit,
            entropy_coefficient=settings.entropy_coefficient,
        )

    def advantages(self, rollout: Rollout, estimate: Estimate) -> tuple[Tensor, Tensor]:
        """[T, B] A(M|s) and A(a|s, M): both the joint GAE (critic v), or Q(s, M) − V(s) and R − Q(s, M) (critic q,
        Eqs. 5 and 6, which add up to the joint advantage as in Eq. 7).
        """
        if self.instruction_critic is None:
            of_instructions = self.conductor.decision_advantages(rollout, estimate, self.settings.gae_lambda)
            return of_instructions, estimate.advantages
        values, instruction = self.instruction_critic.values(estimate.states), rollout.extras["instruction"]
        chosen = values.gather(-1, instruction.flatten().unsqueeze(-1)).view(instruction.shape)
        return chosen - estimate.values, estimate.returns - chosen

    def samples(
        self, rollout: Rollout, features: list[Tensor], weights: InstructionWeights | None = None
    ) -> TeamSamples:
        """The rollout as the agents' samples, with the instructions that they saw."""
        own = own_instructions(rollout)
        context: Context = self.conductor.seen_of(rollout.extras["instruction"])
        if own is not None:
            context = [self.conductor.seen_of(instruction) for instruction in own]
        return TeamSamples(rollout, self.policies, features, context, weights)

    @torch.no_grad()
    def _log_likelihood(self, rollout: Rollout) -> Tensor:
        """[T, B] log w(M|s) + Σ_i log π^i(a^i|o^i, M) under the present policies, over the agents that were there."""
        states = self.state_normaliser(rollout.states).flatten(0, 1)
        total = self.conductor.samples(rollout, states).old_log_prob.view(rollout.terminated.shape)
        team = self.samples(rollout, self.features(rollout))
        for agent in self.position:
            samples = team.of_agent(agent)
            own = samples.old_log_prob if samples.active is None else samples.old_log_prob * samples.active
            total = total + own.view(total.shape)
        return total

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """What a conductor may bring with it."""
        return conductor_advice(metrics)

    # --- what it is judged by, deployed and distilled ---------------------------------------------------------------

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """The local policies under their local conductors, and under those that are not deployed."""
        return super().teams(sample) | conducted_teams(self.actors, self.conductor, sample)

    def teacher(self) -> Teacher | None:
        """The agents under the central conductor; none where every agent has a copy of it."""
        return ConductedTeacher(self.actors, self.conductor) if self.conductor.common is None else None

    def stand_ins(self) -> StandIns | None:
        """The local conductors; none where every agent has a copy of the conductor."""
        return LocalStandIns.of(self.actors, self.conductor)

    def instructing(self, agent: int) -> Instructing:
        """w^i, which stands in for the conductor when deployed, or a copy of it."""
        return self.conductor.instructing(agent, *self.position[agent])

    # --- persistence ------------------------------------------------------------------------------------------------

    def components(self) -> StateDict:
        """The shared parts, the critics, the conductor's level and what watches the bound."""
        parts = {"critic": self.critic, **super().components(), **self.conductor.components(), "monitor": self.monitor}
        if self.instruction_critic is not None:
            parts["instruction_critic"] = self.instruction_critic
        return parts

    def experience(self) -> StateDict:
        """The rollouts that are kept for replaying."""
        return {"replay": self.past} if self.settings.replay_rollouts else {}


def disturbed(advantages: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """[T, B] advantages with noise of so many of their standard deviations; without any, they themselves."""
    if not noise:
        return advantages
    drawn = torch.randn(advantages.shape, generator=generator, device=advantages.device)
    return advantages + noise * advantages.std() * drawn
