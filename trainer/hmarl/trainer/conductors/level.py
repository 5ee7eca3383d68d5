"""The conductor's level: a central conductor instructs the team, local conductors stand in for it when deployed.

An algorithm puts the level above its agents by composing a ``ConductorLevel`` and a ``ConductedActing``, which shows
its agents the instruction:

    acting      begin_rollout; instruct at every step; episodes_ended
    learning    decision_advantages, then improve: Ψ ← trust-region step with δ₁ (Algorithm 2), and ψ^i ← argmin
                −E_{w_new}[log ψ^i] (Algorithm 1, line 10); it leaves the weights of the agents' samples
    deployed    local_conductor(group) chooses from the agent's own observation

States and observations come in normalised, by the algorithm whose level it is.

Source: Liu et al. 2025, "HCPO: Hierarchical Conductor-Based Policy Optimization in Multi-Agent Reinforcement Learning",
Algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.imitation import distil
from hmarl.trainer.learning.instructions import (
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
from hmarl.trainer.learning.returns import decision_advantages, normalise_advantages
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.networks.settings import HiddenSizes, NetworkSettings
from hmarl.trainer.sequential.constrained_steps import StepSearch, improve_by_trust_region
from hmarl.trainer.sequential.estimates import Estimate
from hmarl.trainer.sequential.samples import AgentSamples


class ConductorFields(BaseModel):
    """Of algorithms with a conductor above their agents; its step is searched for as ``TrustRegionFields`` say."""

    instruction_space: Literal["discrete", "continuous"] = Field(
        "discrete", description="one of K instructions, or (an extension) a vector of D real numbers"
    )
    instructions: int = Field(10, ge=1, description="K, the number of discrete instructions")
    instruction_size: int = Field(4, ge=1, description="D, the width of a continuous instruction")
    instruction_interval: int = Field(1, ge=1, description="steps for which an instruction holds")
    conductor_kl_limit: float = Field(0.01, gt=0, description="δ₁, largest mean KL of the conductor's step, in nats")
    conductor_hidden_sizes: HiddenSizes = Field((64, 64), description="hidden layers of all conductors")
    conductor_entropy_coefficient: float = Field(0.0, ge=0, description="weight of the instructions' entropy")
    instruction_weight: Literal["ratio", "paper"] = Field(
        "ratio", description="ratio: samples weighted by w_new/w_old, unweighted KL; paper: Algorithm 3 as printed"
    )
    distillation_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for the local conductors")
    distillation_epochs: int = Field(1, ge=1, description="passes over the rollout per distillation")
    distillation_minibatches: int = Field(4, ge=1, description="parts into which a pass is divided")

    @model_validator(mode="after")
    def _instructions_can_be_weighted(self) -> Self:
        """Refuse weights that vectors do not have: Algorithm 3 as printed takes probabilities, not densities."""
        if self.instruction_space == "continuous":
            self.need("instruction_space=continuous", instruction_weight="ratio")
        return self

    def need(self, by: str, **needed: object) -> None:
        """Refuse other values than those needed by a setting.

        Raises:
            UsageError: names the setting, its value, the needed one and who needs it.
        """
        for name, expected in needed.items():
            if getattr(self, name) != expected:
                raise UsageError(f"algorithm.{name}: got {getattr(self, name)!r}, expected {expected!r} with {by}")

    @property
    def instruction_head(self) -> ActionHead:
        """What instructions are; its ``output_size`` is the width of what agents see of one: K (one-hot) or D."""
        if self.instruction_space == "continuous":
            return latent_instructions(self.instruction_size)
        return discrete_instructions(self.instructions)


class ConductorSettings(NetworkSettings, StepSearch, Protocol):
    """The settings that a conductor's level reads."""

    instruction_interval: int
    conductor_kl_limit: float
    conductor_hidden_sizes: HiddenSizes
    conductor_entropy_coefficient: float
    distillation_learning_rate: float
    distillation_epochs: int
    distillation_minibatches: int
    share_parameters: bool
    max_gradient_norm: float
    gamma: float

    @property
    def instruction_weight(self) -> str:
        """How the agents' samples are weighted."""
        ...

    @property
    def instruction_head(self) -> ActionHead:
        """What instructions are."""
        ...


@dataclass(frozen=True)
class ConductorImprovement:
    """What an update of the conductor's level made of M = T·B samples.

    Attributes:
        ratio: [M] w_new/w_old of the instruction in force, 1 where it was chosen in the rollout before.
        kl: [decisions] KL(w_old ‖ w_new) in nats.
        weights: of the agents' samples.
        metrics: of the update.
    """

    ratio: Tensor
    kl: Tensor
    weights: InstructionWeights
    metrics: dict[str, float]


class ConductorLevel:
    """A central conductor w_Ψ(M|s) and every agent's local conductor ψ^i(M|o^i).

    Args:
        spec: the environment.
        settings: of the algorithm whose level it is.
        generator: CPU generator of the initial weights.
        device: where networks and rollouts live.

    Attributes:
        head: what instructions are.
        policy: w_Ψ, of one member, who observes the state.
        local_conductors: ψ^i per group; distillers: their optimisers.
    """

    def __init__(
        self, spec: EnvironmentSpec, settings: ConductorSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        self.spec, self.settings, self.device = spec, settings, device
        self.head, sizes = settings.instruction_head, settings.conductor_hidden_sizes
        self.policy = GroupPolicy.create(1, spec.state_size, self.head, settings, generator, hidden_sizes=sizes)
        self.local_conductors = [
            GroupPolicy.create(
                len(group.agents),
                group.example.observation_size,
                self.head,
                settings,
                generator,
                shared=settings.share_parameters,
                hidden_sizes=sizes,
            )
            for group in spec.groups
        ]
        for policy in (self.policy, *self.local_conductors):
            policy.theta = policy.theta.to(device)
        self.distillers = [
            FlatAdam(local.theta, settings.distillation_learning_rate, settings.max_gradient_norm)
            for local in self.local_conductors
        ]
        self._noise = torch.zeros(0, device=device)
        self._instruction = no_instructions(self.head, 0, device)
        self._remaining = torch.zeros(0, dtype=torch.int64, device=device)

    # --- acting (Algorithm 1, line 3) -------------------------------------------------------------------------------

    def begin_rollout(self, steps: int, batch_size: int, generator: torch.Generator) -> None:
        """Draw the rollout's noise, [T, B, K] or [T, B, D], from a generator on the device."""
        self._noise = self.head.draw_perturbations((steps, batch_size), generator)
        if len(self._instruction) != batch_size:
            self._instruction = no_instructions(self.head, batch_size, self.device)
            self._remaining = torch.zeros(batch_size, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def instruct(self, states: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """M ∼ w(·|s) where an instruction has run out.

        Args:
            states: [B, state_size] normalised.
            step: of the rollout, from 0.

        Returns:
            What the agents see, [B, K] or [B, D] float32; and what ``improve`` needs recorded of the step:
            ``instruction`` ([B] int64 or [B, D] float32) in force and whether it was ``decided`` ([B] bool) here.
        """
        drawn = self.distribution(states).select(self._noise[step])
        decided = self._remaining <= 0
        self._instruction = held_until_renewed(decided, drawn, self._instruction)
        self._remaining = torch.where(decided, self.settings.instruction_interval, self._remaining) - 1
        return self.seen_of(self._instruction), {"instruction": self._instruction, "decided": decided}

    def distribution(self, states: Tensor) -> Distribution:
        """w(·|s) of normalised states [..., state_size]."""
        return self.policy.distribution(self.policy.row(0), states)

    def seen_of(self, instruction: Tensor) -> Tensor:
        """What the agents see of instructions, [..., K] or [..., D] float32."""
        return instruction_context(self.head, instruction)

    def episodes_ended(self, ended: Tensor) -> None:
        """A new episode starts with a new instruction; ``ended`` [B] bool."""
        if self._remaining.shape == ended.shape:  # else nothing has been instructed yet
            self._remaining = self._remaining.masked_fill(ended, 0)

    def likeliest(self, states: Tensor) -> Tensor:
        """[B] or [B, D] the mode of w(·|s) of normalised states [B, state_size]."""
        return self.distribution(states).mode()

    def acting_state(self) -> dict[str, Tensor]:
        """The instructions in force and the steps for which they still hold."""
        return {"instruction": self._instruction, "remaining": self._remaining}

    def load_acting_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``acting_state`` returned."""
        self._instruction, self._remaining = state["instruction"].clone(), state["remaining"].clone()

    # --- learning (lines 5, 6 and 10) -------------------------------------------------------------------------------

    def decision_advantages(self, rollout: Rollout, estimate: Estimate, gae_lambda: float) -> Tensor:
        """[T, B] A(M|s) by GAE with V(s) alone: the joint advantage, from decision to decision where instructions hold
        for several steps.
        """
        if self.settings.instruction_interval == 1:
            return estimate.advantages
        return decision_advantages(
            rollout.team_rewards,
            estimate.values,
            estimate.next_values,
            rollout.ended,
            rollout.extras["decided"],
            self.settings.gamma,
            gae_lambda,
        )

    def improve(
        self,
        rollout: Rollout,
        states: Tensor,
        advantages: Tensor,
        features: list[Tensor],
        generator: torch.Generator,
        schedule: float = 1.0,
        *,
        weight: Tensor | None = None,
        fresh: Rollout | None = None,
    ) -> ConductorImprovement:
        """Ψ ← Ψ + αʲβx (Algorithm 2), then the local conductors follow (line 10).

        Args:
            rollout: full, with the extras of ``instruct``.
            states: [M, state_size] normalised.
            advantages: [T, B] A(M|s), not normalised; meaningful where an instruction was decided.
            features: per group, normalised observations [T, B, N_group, observation_size].
            generator: of the distillation's minibatches, on the device.
            schedule: factor on the distillation's step size.
            weight: [M] importance weights of samples that older policies collected, or None.
            fresh: the part of the rollout that the present policies collected, for the metrics; None is all of it.
        """
        settings, decided = self.settings, rollout.extras["decided"].flatten()
        samples = self.samples(rollout, states, weight)
        improvement = improve_by_trust_region(
            self.policy,
            0,
            samples,
            normalise_advantages(advantages.flatten(), decided.float()),
            settings,
            kl_limit=settings.conductor_kl_limit,
            entropy_coefficient=settings.conductor_entropy_coefficient,
        )
        new = improvement.policy
        metrics = {key.replace("agent_", "conductor_"): value for key, value in improvement.metrics.items()}
        metrics |= instruction_metrics(self.head, (fresh or rollout).extras["instruction"].flatten(0, 1), new)
        weights = self.agents_weights(rollout, features, samples, new)  # with the local conductors as they were
        metrics |= self._distil(rollout, features, new, generator, schedule)
        ratio = self._since_decision(samples.ratio(new), rollout)
        return ConductorImprovement(ratio, samples.old.kl(new)[decided], weights, metrics)

    @torch.no_grad()
    def samples(self, rollout: Rollout, states: Tensor, weight: Tensor | None = None) -> AgentSamples:
        """The conductor seen as an agent whose observation is the state, present at its decision steps."""
        instruction, decided = rollout.extras["instruction"].flatten(0, 1), rollout.extras["decided"].flatten()
        active = None if self.settings.instruction_interval == 1 else decided.float()
        old = self.distribution(states)
        return AgentSamples(states, None, None, instruction, active, weight, None, old, old.log_prob(instruction))

    @torch.no_grad()
    def agents_weights(
        self, rollout: Rollout, features: list[Tensor], samples: AgentSamples, new: Distribution
    ) -> InstructionWeights:
        """How the updated conductor weights the agents' samples.

        HCPO's Eq. 17 sums over instructions with weight w_{k+1}(M|s). The samples' instructions were drawn from w_k, so
        the ratio w_{k+1}/w_k estimates that sum without bias (``ratio``); Algorithm 3 as printed multiplies by
        w_{k+1}(M|s) and weights the KL by the old local conductor (``paper``).
        """
        weight, kl = samples.surrogate_weight, None
        if self.settings.instruction_weight == "ratio":
            surrogate = self._since_decision(samples.ratio(new), rollout)
        else:
            surrogate = self._since_decision(new.log_prob(samples.actions).exp(), rollout)
            kl = self._local_probabilities(rollout, features, samples.actions)
        return InstructionWeights(surrogate if weight is None else surrogate * weight, kl)

    def _local_probabilities(self, rollout: Rollout, features: list[Tensor], chosen: Tensor) -> dict[int, Tensor]:
        """Per agent, [M] ψ^i(M|o^i) of the instruction in force, where it was chosen."""
        probabilities = {}
        for g, group in enumerate(self.spec.groups):
            local = self._local_choices(g, features[g]).log_prob(chosen.expand(len(group.agents), -1))
            for member, agent in enumerate(group.agents):
                probabilities[agent] = self._since_decision(local[member].exp(), rollout)
        return probabilities

    def _since_decision(self, weight: Tensor, rollout: Rollout) -> Tensor:
        """[M]: the weight where the instruction in force was chosen; 1 before the rollout's first decision."""
        if self.settings.instruction_interval == 1:
            return weight
        return since_decision(weight.view(rollout.terminated.shape), rollout.extras["decided"]).flatten()

    def _local_inputs(self, group: int, features: Tensor) -> Tensor:
        """[N_group, M, input_size] what a group's local conductors see."""
        return self.local_conductors[group].inputs(features).flatten(0, 1).transpose(0, 1).contiguous()

    def _local_choices(self, group: int, features: Tensor) -> Distribution:
        """[N_group, M] ψ^i(·|o^i)."""
        return self.local_conductors[group].all_distributions(self._local_inputs(group, features))

    def _distil(
        self,
        rollout: Rollout,
        features: list[Tensor],
        conductor: Distribution,
        generator: torch.Generator,
        schedule: float,
    ) -> dict[str, float]:
        """ψ^i ← argmin −E_{w_{k+1}}[log ψ^i(M|o^i)] on the same batch (line 10); also reports how far they agree."""
        gaps, agreements = [], []
        for g, (local, distiller) in enumerate(zip(self.local_conductors, self.distillers, strict=True)):
            inputs = self._local_inputs(g, features[g])
            members = list(self.spec.groups[g].agents)
            weight = None if rollout.all_active else rollout.active[:, :, members].flatten(0, 1).T.float()
            gaps.append(
                distil(
                    local,
                    distiller,
                    inputs,
                    conductor,
                    weight,
                    generator,
                    self.settings.distillation_epochs,
                    self.settings.distillation_minibatches,
                    schedule,
                )
            )
            agreements.append(agreement(conductor, local.all_distributions(inputs)))
        return {
            "local_conductor_kl": sum(gaps) / len(gaps),
            "local_conductor_agreement": sum(agreements) / len(agreements),
        }

    # --- deployment and persistence ---------------------------------------------------------------------------------

    def local_conductor(self, group: int) -> tuple[GroupPolicy, int]:
        """w^i, which stands in for the conductor when deployed, and for how many steps its instructions hold."""
        return self.local_conductors[group], self.settings.instruction_interval

    def components(self) -> dict[str, object]:
        """The conductor and the local conductors with their optimisers, as ``Algorithm.components`` names them."""
        parts: dict[str, object] = {"conductor": self.policy.theta}
        for g, (local, distiller) in enumerate(zip(self.local_conductors, self.distillers, strict=True)):
            parts |= {f"local_conductors.{g}": local.theta, f"distillers.{g}": distiller}
        return parts
