"""The conductor's level: a conductor instructs the team, and its agents are instructed without it when deployed.

An algorithm puts the level above its agents by composing a ``ConductorLevel`` and a ``ConductedActing``, which shows
its agents the instruction:

    acting      instruct at every step, given what is in force
    learning    decision_advantages, then improve: Ψ ← trust-region step with δ₁ (Algorithm 2), and ψ^i ← argmin
                −E_{w_new}[log ψ^i] (Algorithm 1, line 10); it leaves the weights of the agents' samples
    deployed    instructing(agent): a local conductor, or a copy of a common-knowledge conductor

The conductor sees what ``settings.conductor_sees`` says, see ``conductors.sight``.

Source: Liu et al. 2025, "HCPO: Hierarchical Conductor-Based Policy Optimization in Multi-Agent Reinforcement Learning",
Algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.conductors.local_conductors import LocalConductors
from hmarl.trainer.conductors.settings import ConductorSettings
from hmarl.trainer.conductors.sight import CommonKnowledge, Sight, StateSight
from hmarl.trainer.contract.deployable import Instructing
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.instructions import (
    InstructionWeights,
    held_until_renewed,
    instruction_context,
    instruction_metrics,
    no_instructions,
    since_decision,
)
from hmarl.trainer.learning.metrics import read
from hmarl.trainer.learning.returns import decision_advantages, normalise_advantages
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.networks.policies import Context, GroupPolicy
from hmarl.trainer.sequential.constrained_steps import improve_by_trust_region
from hmarl.trainer.sequential.estimates import Estimate
from hmarl.trainer.sequential.samples import AgentSamples

# Recorded where local conductors conduct a part of the environments, see ``conductors.local_share``.
LOCALLY = "locally"
OWN_BEFORE = "own_before."  # of local conductors that remember: per group, what was seen of the instruction before


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


@dataclass(frozen=True)
class InForce:
    """The instructions in force in B episodes.

    Attributes:
        instruction: [B] int64 or [B, D] float32; without meaning before an episode's first step.
        remaining: [B] int64, steps for which they still hold.
        step: [B] int64, steps of the episodes that lie behind.
    """

    instruction: Tensor
    remaining: Tensor
    step: Tensor

    def ended(self, ended: Tensor) -> InForce:
        """``ended`` [B] bool: a new episode starts, with a new instruction."""
        return InForce(self.instruction, self.remaining.masked_fill(ended, 0), self.step.masked_fill(ended, 0))

    def state(self) -> dict[str, Tensor]:
        """As tensors by name."""
        return {"instruction": self.instruction, "remaining": self.remaining, "episode_step": self.step}

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> InForce:
        """What ``state`` returned; older versions did not count the steps, which their conductors never saw."""
        instruction, remaining = state["instruction"].clone(), state["remaining"].clone()
        return cls(instruction, remaining, state.get("episode_step", torch.zeros_like(remaining)).clone())


class ConductorLevel:
    """A conductor w_Ψ and, where it sees the state, every agent's local conductor ψ^i(M|o^i).

    Args:
        spec: the environment.
        settings: of the algorithm whose level it is.
        state_normaliser: the algorithm's, who updates it.
        generator: CPU generator of the initial weights.
        device: where networks and rollouts live.

    Attributes:
        head: what instructions are.
        common: what the conductor sees if it is common knowledge, else None.
        sight: what the conductor sees.
        policy: w_Ψ, of one member.
        local: the local conductors, None if the conductor is common knowledge.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        settings: ConductorSettings,
        state_normaliser: RunningNormaliser,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.settings, self.device, self.head = settings, device, settings.instruction_head
        self.common: CommonKnowledge | None = None
        self.sight: Sight = StateSight(spec.state_size, state_normaliser)
        if settings.conductor_sees != "state":
            if settings.conductor_sees == "common" and spec.images:
                raise UsageError(
                    f"algorithm.conductor_sees: got common, but {spec.images[0]}: what is common is searched for among "
                    "the numbers of vectors; choose state or nothing"
                )
            size = self.head.output_size if settings.conductor_remembers else 0
            self.sight = self.common = CommonKnowledge(
                spec,
                device,
                sees=settings.conductor_sees,
                instruction_size=size,
                search=settings.common_search,
                normalise=settings.normalise_observations,
            )
            if not settings.agent_identity:
                self.common.common.check_interchangeable()
        self.policy = GroupPolicy.create(
            1,
            self.sight.size,
            self.head,
            settings,
            generator,
            hidden_sizes=settings.conductor_hidden_sizes,
            image=spec.state_image if self.common is None else None,
        )
        self.policy.theta = self.policy.theta.to(device)
        if not settings.conductor_learns:
            self.policy.theta.zero_()  # all logits are 0: instructions are uniformly random
        self.local = LocalConductors(spec, settings, self.head, generator, device) if self.common is None else None

    # --- acting (Algorithm 1, line 3) -------------------------------------------------------------------------------

    def nothing_in_force(self, batch_size: int) -> InForce:
        """B episodes begin."""
        remaining, step = torch.zeros(2, batch_size, dtype=torch.int64, device=self.device).unbind()
        return InForce(no_instructions(self.head, batch_size, self.device), remaining.clone(), step.clone())

    def draw_noise(self, steps: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """[T, B, K] or [T, B, D] a rollout's noise, from a generator on the device."""
        return self.head.draw_perturbations((steps, batch_size), generator)

    def step_noise(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """[B, K] or [B, D] one step's noise on the training device, from a generator on the CPU."""
        return self.draw_noise(1, batch_size, generator)[0].to(self.device)

    @torch.no_grad()
    def instruct(
        self, observation: Observation, before: InForce, noise: Tensor | None
    ) -> tuple[InForce, dict[str, Tensor]]:
        """M ∼ w(·|s) where an instruction has run out.

        Args:
            observation: tensors on the training device.
            before: what was in force at the step before.
            noise: [B, K] or [B, D] of this step; None takes the likeliest instructions.

        Returns:
            What is in force at this step; and what ``improve`` needs recorded of it: ``instruction`` ([B] int64 or
            [B, D] float32) and whether it was ``decided`` ([B] bool) here, and what the conductor saw.
        """
        last = self.seen_of(before.instruction) * (before.step > 0).unsqueeze(-1)
        choice = self.distribution(self.sight.now(observation, before.step, last))
        after = self.renewed(before, choice.mode() if noise is None else choice.select(noise))
        record = {"instruction": after.instruction, "decided": before.remaining <= 0}
        if self.local is not None and self.local.remember:
            record["last_instruction"] = last
        return after, record | self.sight.record(before.step, last)

    def renewed(self, before: InForce, chosen: Tensor) -> InForce:
        """What is in force one step later, ``chosen`` [B] or [B, D] where an instruction has run out."""
        decided = before.remaining <= 0
        instruction = held_until_renewed(decided, chosen, before.instruction)
        remaining = torch.where(decided, self.settings.instruction_interval, before.remaining) - 1
        return InForce(instruction, remaining, before.step + 1)

    def distribution(self, seen: Tensor) -> Distribution:
        """w(·|s) of what ``sight`` shows, [..., size]."""
        return self.policy.distribution(self.policy.row(0), seen)

    def seen_of(self, instruction: Tensor) -> Tensor:
        """What the agents see of instructions, [..., K] or [..., D] float32."""
        return instruction_context(self.head, instruction, self.settings.instruction_scale)

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
            states: [M, state_size] normalised, for a conductor that sees them.
            advantages: [T, B] A(M|s), not normalised; meaningful where an instruction was decided.
            features: per group, normalised observations [T, B, N_group, observation_size].
            generator: of the distillation's minibatches, on the device.
            schedule: factor on the distillation's step size.
            weight: [M] importance weights of samples that older policies collected, or None.
            fresh: the part of the rollout that the present policies collected, for the metrics; None is all of it.
        """
        settings, decided = self.settings, self._decided(rollout)
        samples = self.samples(rollout, states, weight)
        metrics, new = {"conductor_kl": 0.0}, samples.old
        if settings.conductor_learns:
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
            known = read(improvement.metrics)
            metrics = {key.replace("agent_", "conductor_"): value for key, value in known.items()}
        metrics |= instruction_metrics(self.head, (fresh or rollout).extras["instruction"].flatten(0, 1), new)
        weights = self.agents_weights(rollout, features, samples, new)  # with the local conductors as they were
        if self.local is not None:
            metrics |= self.local.follow(rollout, features, new, generator, schedule, self._last(rollout))
        ratio = self._since_decision(samples.ratio(new), rollout)
        return ConductorImprovement(ratio, samples.old.kl(new)[decided], weights, metrics)

    @torch.no_grad()
    def samples(self, rollout: Rollout, states: Tensor, weight: Tensor | None = None) -> AgentSamples:
        """The conductor seen as an agent who observes what ``sight`` shows, present at its decision steps."""
        instruction, decided = rollout.extras["instruction"].flatten(0, 1), self._decided(rollout)
        everywhere = self.settings.instruction_interval == 1 and LOCALLY not in rollout.extras
        active = None if everywhere else decided.float()
        seen = self.sight.along(rollout, states)
        old = self.distribution(seen)
        return AgentSamples(seen, None, None, instruction, active, weight, None, old, old.log_prob(instruction))

    @torch.no_grad()
    def agents_weights(
        self, rollout: Rollout, features: list[Tensor], samples: AgentSamples, new: Distribution
    ) -> InstructionWeights:
        """How the updated conductor weights the agents' samples.

        HCPO's Eq. 17 sums over instructions with weight w_{k+1}(M|s). The samples' instructions were drawn from w_k, so
        the ratio w_{k+1}/w_k estimates that sum without bias (``ratio``); Algorithm 3 as printed multiplies by
        w_{k+1}(M|s) and weights the KL by the old local conductor (``paper``), which a common-knowledge conductor is.
        """
        weight, kl = samples.surrogate_weight, None
        if self.settings.instruction_weight == "ratio":
            surrogate = self._since_decision(samples.ratio(new), rollout)
        else:
            surrogate = self._probability_since_decision(new.log_prob(samples.actions).exp(), rollout)
            kl = self._probabilities_when_deployed(rollout, features, samples)
        return InstructionWeights(surrogate if weight is None else surrogate * weight, kl)

    def _probabilities_when_deployed(
        self, rollout: Rollout, features: list[Tensor], samples: AgentSamples
    ) -> dict[int, Tensor]:
        """Per agent, [M] ψ^i(M|o^i) of the instruction in force, where it was chosen."""
        if self.local is None:
            old = self._probability_since_decision(samples.old_log_prob.exp(), rollout)
            return dict.fromkeys(range(len(rollout.spec.agents)), old)
        probabilities = self.local.probabilities(features, samples.actions, self._last(rollout))
        return {agent: self._probability_since_decision(theirs, rollout) for agent, theirs in probabilities.items()}

    def _last(self, rollout: Rollout) -> Context | None:
        """What the agents saw of the instruction before, for local conductors that see it too."""
        if self.local is None or not self.local.remember:
            return None
        if LOCALLY in rollout.extras:
            return [rollout.extras[f"{OWN_BEFORE}{g}"] for g in range(len(rollout.spec.groups))]
        return rollout.extras["last_instruction"]

    def _decided(self, rollout: Rollout) -> Tensor:
        """[M] bool: where this conductor has chosen an instruction that was followed."""
        decided = rollout.extras["decided"]
        locally = rollout.extras.get(LOCALLY)
        return (decided if locally is None else decided & ~locally).flatten()

    def _probability_since_decision(self, probability: Tensor, rollout: Rollout) -> Tensor:
        """[M]: the instruction's probability where it was chosen; before the rollout's first decision, where it is not
        known, the mean of the others, so that those steps weigh as much as all; 1 in a rollout without a decision.
        """
        decided = self._decided(rollout).float()
        decisions = decided.sum()
        mean = (probability * decided).sum() / decisions.clamp(min=1.0)
        return self._since_decision(probability, rollout, torch.where(decisions > 0, mean, 1.0))

    def _since_decision(self, weight: Tensor, rollout: Rollout, before: Tensor | float = 1.0) -> Tensor:
        """[M]: the weight where the instruction in force was chosen, ``before`` until the rollout's first decision; 1
        where local conductors have chosen.
        """
        if self.settings.instruction_interval > 1:
            shape, decided = rollout.terminated.shape, rollout.extras["decided"]
            weight = since_decision(weight.view(shape), decided, before).flatten()
        locally = rollout.extras.get(LOCALLY)
        return weight if locally is None else weight.masked_fill(locally.flatten(), 1.0)

    # --- deployment and persistence ---------------------------------------------------------------------------------

    def instructing(self, agent: int, group: int, member: int) -> Instructing:
        """Who instructs an agent when deployed: its local conductor, or its copy of this one."""
        if self.local is not None:
            return self.local.instructing(group, member)
        assert self.common is not None
        return Instructing.of(
            self.policy,
            0,
            self.settings.instruction_interval,
            self.settings.instruction_scale,
            self.common.fixed(agent),
            self.common.remembers,
        )

    def components(self) -> dict[str, object]:
        """The conductor, what it sees and the local conductors, as ``Algorithm.components`` names them."""
        local = {} if self.local is None else self.local.components()
        return {"conductor": self.policy.theta, **local, **self.sight.components()}
