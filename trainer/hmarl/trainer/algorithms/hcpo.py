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

from functools import cached_property
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.algorithm import StateDict
from hmarl.trainer.algorithms.hatrpo import HatrpoSettings, improve_by_trust_region
from hmarl.trainer.config import HiddenSizes
from hmarl.trainer.critic import Critic
from hmarl.trainer.distillation import distil
from hmarl.trainer.distributions import ActionHead, Distribution
from hmarl.trainer.heterogeneous import AgentSamples, Estimate, HeterogeneousAgents, Improvement
from hmarl.trainer.improvement_bound import BoundMonitor
from hmarl.trainer.instructions import (
    InstructionWeights,
    agreement,
    discrete_instructions,
    held_until_renewed,
    instruction_context,
    instruction_metrics,
    latent_instructions,
    no_instructions,
    since_decision,
)
from hmarl.trainer.optimiser import FlatAdam
from hmarl.trainer.policies import GroupPolicy
from hmarl.trainer.returns import decision_advantages, normalise_advantages
from hmarl.trainer.rollout import Decision, Rollout
from hmarl.trainer.rollout_replay import Replayed, RolloutReplay, replayed_estimate


class HcpoSettings(HatrpoSettings):
    """Settings of HCPO; ``kl_limit`` is δ₂ of the agents."""

    kl_limit: float = Field(0.005, gt=0, description="δ₂, largest mean KL of one agent's step, in nats")
    instruction_space: Literal["discrete", "continuous"] = Field(
        "discrete", description="one of K instructions, or (an extension) a vector of D real numbers"
    )
    instructions: int = Field(10, ge=1, description="K, the number of discrete instructions")
    instruction_size: int = Field(4, ge=1, description="D, the width of a continuous instruction")
    instruction_interval: int = Field(1, ge=1, description="steps for which an instruction holds")
    conductor_kl_limit: float = Field(0.01, gt=0, description="δ₁, largest mean KL of the conductor's step, in nats")
    conductor_hidden_sizes: HiddenSizes = Field((64, 64), description="hidden layers of all conductors")
    conductor_entropy_coefficient: float = Field(0.0, ge=0, description="weight of the instructions' entropy")
    critic: Literal["v", "q"] = Field("v", description="v: joint GAE at both levels; q: V(s) and Q(s, M), Eqs. 5-7")
    instruction_weight: Literal["ratio", "paper"] = Field(
        "ratio", description="ratio: samples weighted by w_new/w_old, unweighted KL; paper: Algorithm 3 as printed"
    )
    distillation_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for the local conductors")
    distillation_epochs: int = Field(1, ge=1, description="passes over the rollout per distillation")
    distillation_minibatches: int = Field(4, ge=1, description="parts into which a pass is divided")
    replay_rollouts: int = Field(
        0, ge=0, description="past rollouts that every update learns from again (an extension); 0 is on-policy"
    )
    replay_weight_limit: float = Field(1.0, ge=1, description="c, largest importance weight of a replayed sample")

    @model_validator(mode="after")
    def _combinations(self) -> HcpoSettings:
        """Refuse what has not been worked out."""
        if self.instruction_space == "continuous":
            self._need("instruction_space=continuous", critic="v", instruction_weight="ratio")
        if self.replay_rollouts:
            self._need(
                f"replay_rollouts={self.replay_rollouts}",
                critic="v", instruction_weight="ratio", instruction_interval=1, recurrent=False,
            )  # fmt: skip
        return self

    def _need(self, by: str, **needed: object) -> None:
        for name, expected in needed.items():
            if getattr(self, name) != expected:
                raise UsageError(f"algorithm.{name}: got {getattr(self, name)!r}, expected {expected!r} with {by}")


class Hcpo(HeterogeneousAgents):
    """Two-level trust-region optimisation under a conductor, with local conductors for deployment."""

    settings_class = HcpoSettings
    settings: HcpoSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HcpoSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        head = self.instruction_head
        sizes = settings.conductor_hidden_sizes
        self.conductor = GroupPolicy.create(1, spec.state_size, head, settings, generator, hidden_sizes=sizes)
        self.conductor.theta = self.conductor.theta.to(device)
        self.local_conductors = [
            GroupPolicy.create(
                len(group.agents), group.example.observation_size, head, settings, generator,
                shared=settings.share_parameters, hidden_sizes=sizes,
            )
            for group in spec.groups
        ]  # fmt: skip
        for local in self.local_conductors:
            local.theta = local.theta.to(device)
        self.distillers = [
            FlatAdam(local.theta, settings.distillation_learning_rate, settings.max_gradient_norm)
            for local in self.local_conductors
        ]
        self.instruction_critic: Critic | None = None
        if settings.critic == "q":
            self.instruction_critic = Critic(spec.state_size, settings, generator, device, settings.instructions)
        self._instruction = no_instructions(head, 0, device)
        self._remaining = torch.zeros(0, dtype=torch.int64, device=device)
        self._instruction_noise = torch.zeros(0, device=device)
        self._weights: InstructionWeights | None = None
        self.monitor = BoundMonitor(settings.gamma, device)
        self.replay = RolloutReplay(spec, settings.replay_rollouts)
        self._fresh: Rollout | None = None
        self._replayed: Replayed | None = None

    @cached_property
    def instruction_head(self) -> ActionHead:
        """What instructions are."""
        settings = self.settings
        if settings.instruction_space == "continuous":
            return latent_instructions(settings.instruction_size)
        return discrete_instructions(settings.instructions)

    @property
    def context_size(self) -> int:
        """K, the width of the one-hot instruction, or D of a continuous one."""
        return self.instruction_head.output_size

    # --- acting (Algorithm 1, line 3) -------------------------------------------------------------------------------

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the conductor's noise and the agents'."""
        super().begin_rollout(steps, batch_size)
        self._instruction_noise = self.conductor.head.draw_perturbations((steps, batch_size), self.noise_generator)
        if self._instruction.shape[0] != batch_size:
            self._instruction = no_instructions(self.instruction_head, batch_size, self.device)
            self._remaining = torch.zeros(batch_size, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """M ∼ w(·|s) where an instruction has run out, then a^i ∼ π^i(·|o^i, M)."""
        drawn = self.central_conductor(observation.state).select(self._instruction_noise[step])
        decided = self._remaining <= 0
        self._instruction = held_until_renewed(decided, drawn, self._instruction)
        self._remaining = torch.where(decided, self.settings.instruction_interval, self._remaining) - 1
        decision = self.act_in_context(observation, step, self.seen_of(self._instruction))
        decision.extras = {"instruction": self._instruction, "decided": decided}
        return decision

    def central_conductor(self, state: Tensor) -> Distribution:
        """w(·|s) of states [..., state_size], not normalised."""
        return self.conductor.distribution(self.conductor.row(0), self.state_normaliser(state))

    def seen_of(self, instruction: Tensor) -> Tensor:
        """What the actors see of instructions, [..., context_size] float32."""
        return instruction_context(self.instruction_head, instruction)

    def episodes_ended(self, ended: Tensor) -> None:
        """A new episode starts with a new instruction and nothing remembered."""
        super().episodes_ended(ended)
        if self._remaining.shape == ended.shape:  # else nothing has been instructed yet
            self._remaining = self._remaining.masked_fill(ended, 0)

    def acting_state(self) -> dict[str, Tensor]:
        """The instructions in force and what the agents remember."""
        return super().acting_state() | {"instruction": self._instruction, "remaining": self._remaining}

    def load_acting_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``acting_state`` returned."""
        super().load_acting_state(state)
        self._instruction, self._remaining = state["instruction"].clone(), state["remaining"].clone()

    # --- the conductor's level (lines 5, 6 and 10) ------------------------------------------------------------------

    def update_conductor(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """Ψ ← Ψ + αʲβx (Algorithm 2), then the local conductors follow."""
        settings, instruction = self.settings, rollout.extras["instruction"].flatten(0, 1)
        decided = rollout.extras["decided"].flatten().float()
        samples = self._conductor_samples(estimate.states, instruction, decided)
        advantages = self._instruction_advantages(rollout, estimate)
        at_decisions = normalise_advantages(advantages.flatten(), decided)
        two_level = settings.model_copy(
            update={
                "kl_limit": settings.conductor_kl_limit,
                "entropy_coefficient": settings.conductor_entropy_coefficient,
            }
        )
        improvement = improve_by_trust_region(self.conductor, 0, samples, at_decisions, two_level)
        new = improvement.policy
        fresh, weight = self._fresh or rollout, self._replay_weight()
        self.monitor.begin(fresh.team_rewards, estimate.advantages.flatten(), weight)
        ratio = self._since_decision(samples.ratio(new), rollout)
        self.monitor.conductor_moved(ratio, samples.old.kl(new)[decided > 0])
        self._weights = self._agents_weights(rollout, samples, new)
        metrics = {key.replace("agent_", "conductor_"): value for key, value in improvement.metrics.items()}
        metrics |= instruction_metrics(self.instruction_head, fresh.extras["instruction"].flatten(0, 1), new)
        return metrics | self._distil(rollout, new, schedule)

    @torch.no_grad()
    def _conductor_samples(self, states: Tensor, instruction: Tensor, decided: Tensor) -> AgentSamples:
        """The conductor seen as an agent whose observation is the state, present at its decision steps."""
        old = self.conductor.distribution(self.conductor.row(0), states)
        active = None if self.settings.instruction_interval == 1 else decided
        weight = self._replay_weight()
        return AgentSamples(states, None, None, instruction, active, weight, None, old, old.log_prob(instruction))

    def _instruction_advantages(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B] A(M|s): the joint GAE (critic v), or Q(s, M) − V(s) (critic q, Eq. 5)."""
        if self.instruction_critic is not None:
            return self._instruction_values(rollout, estimate) - estimate.values
        if self.settings.instruction_interval == 1:
            return estimate.advantages
        return decision_advantages(
            rollout.team_rewards, estimate.values, estimate.next_values, rollout.ended, rollout.extras["decided"],
            self.settings.gamma, self.settings.gae_lambda,
        )  # fmt: skip

    def _instruction_values(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B] Q(s_t, M_t)."""
        assert self.instruction_critic is not None
        values = self.instruction_critic.values(estimate.states)
        instruction = rollout.extras["instruction"]
        return values.gather(-1, instruction.flatten().unsqueeze(-1)).view(instruction.shape)

    def agents_advantages(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B] A(a|s, M): the joint GAE (critic v), or the λ-return − Q(s, M) (critic q: Eq. 6, and so Eq. 7)."""
        if self.instruction_critic is None:
            return normalise_advantages(estimate.advantages)
        return normalise_advantages(estimate.returns - self._instruction_values(rollout, estimate))

    @torch.no_grad()
    def _agents_weights(self, rollout: Rollout, samples: AgentSamples, new: Distribution) -> InstructionWeights:
        """How the updated conductor weights the agents' samples.

        Eq. 17 sums over instructions with weight w_{k+1}(M|s). The samples' instructions were drawn from w_k, so the
        ratio w_{k+1}/w_k estimates that sum without bias (``ratio``); Algorithm 3 as printed multiplies by
        w_{k+1}(M|s) and weights the KL by the old local conductor (``paper``).
        """
        new_log_prob = new.log_prob(samples.actions)
        if self.settings.instruction_weight == "ratio":
            ratio = self._since_decision((new_log_prob - samples.old_log_prob).exp(), rollout)
            weight = self._replay_weight()
            return InstructionWeights(ratio if weight is None else ratio * weight, None)
        local = [
            self._local_choices(g, observations).log_prob(samples.actions.expand(observations.shape[2], -1))
            for g, observations in enumerate(rollout.observations)
        ]
        weights = {
            agent: self._since_decision(local[group][member].exp(), rollout)
            for agent, (group, member) in self.position.items()
        }
        return InstructionWeights(self._since_decision(new_log_prob.exp(), rollout), weights)

    def _since_decision(self, weight: Tensor, rollout: Rollout) -> Tensor:
        """[T·B]: the weight where the instruction in force was chosen; 1 before the rollout's first decision."""
        if self.settings.instruction_interval == 1:
            return weight
        return since_decision(weight.view(rollout.terminated.shape), rollout.extras["decided"]).flatten()

    def instruction_weights(self, rollout: Rollout, agent: int) -> tuple[Tensor | None, Tensor | None]:
        """Set by the conductor's update just before."""
        assert self._weights is not None
        return self._weights.surrogate, None if self._weights.kl is None else self._weights.kl[agent]

    def _local_inputs(self, group: int, observations: Tensor) -> Tensor:
        """[N_group, T·B, input_size] what a group's local conductors see."""
        features = self.observation_normalisers[group](observations)
        return self.local_conductors[group].inputs(features).flatten(0, 1).transpose(0, 1).contiguous()

    def _local_choices(self, group: int, observations: Tensor) -> Distribution:
        """[N_group, T·B] ψ^i(·|o^i)."""
        return self.local_conductors[group].all_distributions(self._local_inputs(group, observations))

    def _distil(self, rollout: Rollout, conductor: Distribution, schedule: float) -> dict[str, float]:
        """ψ^i ← argmin −E_{w_{k+1}}[log ψ^i(M|o^i)] on the same batch (line 10); also reports how far they agree."""
        gaps, agreements = [], []
        for g, (local, distiller) in enumerate(zip(self.local_conductors, self.distillers, strict=True)):
            inputs = self._local_inputs(g, rollout.observations[g])
            members = list(self.spec.groups[g].agents)
            weight = None if rollout.all_active else rollout.active[:, :, members].flatten(0, 1).T.float()
            gaps.append(
                distil(
                    local, distiller, inputs, conductor, weight, self.noise_generator,
                    self.settings.distillation_epochs, self.settings.distillation_minibatches, schedule,
                )
            )  # fmt: skip
            agreements.append(agreement(conductor, local.all_distributions(inputs)))
        return {
            "local_conductor_kl": sum(gaps) / len(gaps),
            "local_conductor_agreement": sum(agreements) / len(agreements),
        }

    # --- the agents' level (lines 9 to 14) --------------------------------------------------------------------------

    def context(self, rollout: Rollout) -> Tensor:
        """[T, B, context_size] the instructions."""
        return self.seen_of(rollout.extras["instruction"])

    def improve_agent(self, agent: int, samples: AgentSamples, advantages: Tensor, schedule: float) -> Improvement:
        """θ^i ← θ^i + αʲβx (Algorithm 3)."""
        group, member = self.position[agent]
        improvement = improve_by_trust_region(self.policies[group], member, samples, advantages, self.settings)
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
        total = self.central_conductor(rollout.states).log_prob(rollout.extras["instruction"])
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

    # --- deployment and persistence ---------------------------------------------------------------------------------

    def local_conductor(self, group: int) -> tuple[GroupPolicy | None, int]:
        """w^i, which stands in for the conductor when deployed."""
        return self.local_conductors[group], self.settings.instruction_interval

    def components(self) -> dict[str, object]:
        """The shared parts, the conductor and the local conductors with their optimisers."""
        parts = super().components() | {"conductor": self.conductor.theta, "monitor": self.monitor}
        for g, (local, distiller) in enumerate(zip(self.local_conductors, self.distillers, strict=True)):
            parts |= {f"local_conductors.{g}": local.theta, f"distillers.{g}": distiller}
        if self.instruction_critic is not None:
            parts["instruction_critic"] = self.instruction_critic
        return parts
