"""The skeleton of all algorithms in which a centralised guider collects: rollout → advantage → epochs of minibatches.

A member says in ``learn`` what is learnt from a minibatch: the guider alone (MAT, Sable), or a guider and the local
policies that it guides (MAGPO, CTDS).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import AgentGroup, EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.shown import EvaluatedTeam
from hmarl.trainer.contract.teacher import GoalKind, Labels, Teacher
from hmarl.trainer.experience.rollout import Decision, Rollout
from hmarl.trainer.guiders import create_guider
from hmarl.trainer.guiders.guider import Acted, Judged, TeamView
from hmarl.trainer.guiders.settings import GuidedSettings
from hmarl.trainer.guiders.team_batch import TeamBatch
from hmarl.trainer.guiders.teams import CentralTeam
from hmarl.trainer.learning.returns import explained_variance, generalised_advantages
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.normalisation import ValueNormaliser
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import group_head
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.sequential.gradient_steps import minibatches
from hmarl.trainer.sequential.heterogeneous import Estimate


class GuidedTeam(Algorithm):
    """A team that collects with its guider.

    Args:
        spec: the environment.
        settings: of the member's own class.
        generator: CPU generator of the initial weights and the agents' orders.
        device: where networks and rollouts live.
    """

    settings_class: ClassVar[type[AlgorithmSettings]] = GuidedSettings
    settings: GuidedSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: GuidedSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        context = spec.state_size if settings.guider_sees_state else 0
        self.guider = create_guider(spec.groups, self.heads, settings, context, self.context_size)
        self.guider_theta = self.guider.initialise(generator).to(device)
        self._guider_parameters = self.guider.named(self.guider_theta)  # views, which see every update
        self.guider_optimiser = FlatAdam(self.guider_theta, settings.learning_rate, settings.max_gradient_norm)
        self.value_normaliser = ValueNormaliser(device, settings.normalise_values)
        self._order = list(range(len(spec.agents)))
        self._guider_memory = self.guider.no_memory(0, device)
        self._memories_at_ends: list[Tensor] = []

    def head(self, group: AgentGroup) -> ActionHead:
        """Continuous actions as the settings say."""
        return group_head(group, self.settings)

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """As all algorithms, and the guider acting for the whole team."""
        return super().teams(sample) | {CentralTeam.name: CentralTeam(self, sample)}

    @property
    def remembers(self) -> bool:
        """Whether guider or local policies remember."""
        return self.settings.recurrent or self.guider.memory_shape != (0,)

    # --- acting -----------------------------------------------------------------------------------------------------

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the rollout's noise and the order in which the agents decide."""
        super().begin_rollout(steps, batch_size)
        self._order = self._draw_order().tolist()
        self._memories_at_ends = []
        if len(self._guider_memory) != batch_size:
            self._guider_memory = self.guider.no_memory(batch_size, self.device)

    def _draw_order(self) -> Tensor:
        """[N] int64."""
        agents = len(self.spec.agents)
        if not self.settings.shuffle_agents:
            return torch.arange(agents)
        return torch.randperm(agents, generator=self.generator)

    def view(
        self,
        observations: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        states: Tensor,
        instruction: Tensor | None = None,
    ) -> TeamView:
        """What the guider sees of raw observations [..., N_group, D], masks, states [..., S] and, where there is a
        conductor, its instruction [..., K].
        """
        context = self.state_normaliser(states) if self.settings.guider_sees_state else None
        return TeamView(self.normalised(observations), masks, context, instruction)

    def instruct(self, observation: Observation, step: int) -> tuple[Tensor | None, dict[str, Tensor]]:
        """What a level above instructs all agents to do, [B, K], and what to record of it; nothing here."""
        return None, {}

    def likeliest_instruction(self, observation: Observation) -> tuple[Tensor | None, int]:
        """What a level above would most likely instruct all agents to do, [B, K], and for how many steps that holds;
        nothing here.
        """
        return None, 1

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """a^{i_1} ∼ μ(·|o), a^{i_2} ∼ μ(·|o, a^{i_1}), … ."""
        noise = [perturbation[step] for perturbation in self._perturbations]
        memories = (*self._memories, self._guider_memory)
        instruction, record = self.instruct(observation, step)
        acted = self._guide_step(observation, instruction, noise, self._order, self._guider_memory)
        decision = Decision(acted.actions, self.to_environment(acted.actions), {"value": acted.value, **record})
        if self.remembers and step % self._chunk_length == 0:
            decision.memories = memories
        self._guider_memory = acted.memory
        if self._memories:
            _, self._memories = self.decide(observation, instruction, None, self._memories)
        return decision

    @torch.no_grad()
    def act_centrally(
        self,
        observation: Observation,
        instruction: Tensor | None,
        perturbations: Sequence[Tensor] | None,
        memory: Tensor,
        taken: Sequence[Tensor] | None = None,
    ) -> Acted:
        """The guider's step, agents in their natural order.

        Args:
            observation: tensors on the training device.
            instruction: [B, K] of a level above, or None.
            perturbations: per group [N_group, B, A]; None selects the modes.
            memory: [B, *memory_shape] of the guider.
            taken: see ``Guider.act``.
        """
        order = range(len(self.spec.agents))
        return self._guide_step(observation, instruction, perturbations, order, memory, taken)

    @torch.no_grad()
    def judge_centrally(self, observation: Observation, taken: Sequence[Tensor], memory: Tensor) -> list[Distribution]:
        """Per group [N_group, B]: what the guider would have every agent do at a step, given what those before it in
        their natural order did.

        Args:
            observation: tensors on the training device.
            taken: per group [B, N_group, ...] raw actions.
            memory: [B, *memory_shape] of the guider before the step.
        """
        view = self.view(
            [seen.unsqueeze(0) for seen in observation.observations],
            [None if mask is None else mask.unsqueeze(0) for mask in observation.action_masks],
            observation.state.unsqueeze(0),
        )
        order = torch.arange(len(self.spec.agents), device=self.device)
        begins = torch.zeros(1, len(memory), dtype=torch.bool, device=self.device)
        actions = [action.unsqueeze(0) for action in taken]
        return self.guider.judge(self._guider_parameters, view, actions, order, memory, begins).distributions

    def _guide_step(
        self,
        observation: Observation,
        instruction: Tensor | None,
        perturbations: Sequence[Tensor] | None,
        order: Sequence[int],
        memory: Tensor,
        taken: Sequence[Tensor] | None = None,
    ) -> Acted:
        view = self.view(observation.observations, observation.action_masks, observation.state, instruction)
        return self.guider.act(self._guider_parameters, view, perturbations, order, memory, taken)

    def episodes_ended(self, ended: Tensor) -> None:
        """Nothing is remembered of the episodes that have ended, but for the value of what was seen last."""
        super().episodes_ended(ended)
        memory = self._guider_memory
        if len(memory) == len(ended):
            self._memories_at_ends.append(memory[ended])
            self._guider_memory = memory.masked_fill(ended.view(-1, *(1,) * (memory.dim() - 1)), 0.0)

    def acting_state(self) -> dict[str, Tensor]:
        """What local policies and guider remember."""
        return super().acting_state() | {"guider_memory": self._guider_memory}

    def load_acting_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``acting_state`` returned."""
        super().load_acting_state(state)
        self._guider_memory = state["guider_memory"].clone()

    # --- learning ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Epochs of minibatches over the rollout, the agents in a new order in each.

        Args:
            rollout: full.
            progress: share of the training done, in [0, 1), for schedules.
        """
        settings, schedule = self.settings, self.schedule(progress)
        estimate = self.estimate(rollout)
        conducted = self.update_conductor(rollout, estimate, schedule)
        batch = self.batch(rollout, estimate)
        self.value_normaliser.update(estimate.returns)
        behaviour = self.guider_theta.clone()
        old_log_probs: dict[tuple[int, ...], Tensor] = {}  # of few agents there are few orders, and epochs share them
        rows: dict[str, list[Tensor]] = defaultdict(list)
        for _ in range(settings.epochs):
            drawn = self._draw_order()
            order, key = drawn.to(self.device), tuple(drawn.tolist())
            if key not in old_log_probs:
                old_log_probs[key] = self._log_prob(batch, order, behaviour)
            for units in minibatches(batch.sequences, 1, settings.minibatches, self.noise_generator):
                part = batch if units is None else batch.take(units)
                old_log_prob = old_log_probs[key] if units is None else batch.rows(old_log_probs[key], units)
                for name, value in self.learn(part, order, old_log_prob, schedule).items():
                    rows[name].append(value)
        self.update_normalisers(rollout)
        metrics = {name: float(torch.stack(values).mean()) for name, values in rows.items()}
        return conducted | metrics | {"explained_variance": explained_variance(estimate.values, estimate.returns)}

    def update_conductor(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """A level above guider and local policies updates here, before them; there is none here."""
        return {}

    def learn(self, part: TeamBatch, order: Tensor, old_log_prob: Tensor, schedule: float) -> dict[str, Tensor]:
        """Descend once on a minibatch.

        Args:
            part: the minibatch.
            order: [N] int64, in which the agents decide.
            old_log_prob: [N, L·C] of the actions, agents group by group, under the guider that collected, in that
                order.
            schedule: factor on all step sizes.

        Returns:
            Metrics, scalars.
        """
        raise NotImplementedError

    def judge(self, part: TeamBatch, order: Tensor, theta: Tensor) -> Judged:
        """The guider with parameters ``theta`` at the steps of a minibatch."""
        return self.guider.judge(
            self.guider.named(theta), part.view, part.actions, order, part.guider_memory, part.begins
        )

    @torch.no_grad()
    def _log_prob(self, batch: TeamBatch, order: Tensor, theta: Tensor) -> Tensor:
        """[N, L·C] of a batch's actions under the guider with parameters ``theta``; a minibatch's worth at a time."""
        size, log_probs = -(-batch.sequences // self.settings.minibatches), []
        for first in range(0, batch.sequences, size):
            part = batch.take(slice(first, first + size))
            log_prob = part.log_prob(self.judge(part, order, theta).distributions)
            log_probs.append(log_prob.unflatten(1, part.begins.shape))
        return torch.cat(log_probs, dim=-1).flatten(1)

    def guider_step(
        self, part: TeamBatch, judged: Judged, objective: Tensor, penalty: Tensor | None, schedule: float
    ) -> dict[str, Tensor]:
        """Descend −objective + penalty − c_ent · H + c_v · L_V on the guider.

        Args:
            part: the minibatch.
            judged: the guider there, with gradient.
            objective: [N, L·C] surrogate.
            penalty: scalar, or None.
            schedule: factor on the step size.
        """
        entropy = part.mean(torch.cat([distribution.entropy() for distribution in judged.distributions]))
        value_loss = self._value_loss(part, judged.values)
        loss = -part.mean(objective) - self.settings.entropy_coefficient * entropy
        loss = loss + self.settings.value_coefficient * value_loss
        norm = self.guider_optimiser.step(loss if penalty is None else loss + penalty, schedule)
        return {"agent_entropy": entropy.detach(), "critic_loss": value_loss.detach(), "guider_gradient_norm": norm}

    def _value_loss(self, part: TeamBatch, values: Tensor) -> Tensor:
        """E[ max( (V − R)², (clip(V, V_old ± ε) − R)² ) ] in normalised units (Schulman et al.'s code; Yu et al. 2022,
        Eq. 3).
        """
        targets, old = self.value_normaliser.normalise(part.returns), part.values
        clipped = old + (values - old).clamp(-self.settings.clip, self.settings.clip)
        return torch.maximum((values - targets).square(), (clipped - targets).square()).mean()

    # --- rollouts as batches ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def estimate(self, rollout: Rollout) -> Estimate:
        """The guider's values, joint advantages by GAE and λ-returns of a rollout."""
        values, next_values = self._values(rollout)
        advantages = generalised_advantages(
            rollout.team_rewards, values, next_values, rollout.ended, self.settings.gamma, self.settings.gae_lambda
        )
        states = self.state_normaliser(rollout.states[:-1]).flatten(0, 1)
        return Estimate(states, values, next_values, advantages, advantages + values)

    def instructions(self, rollout: Rollout) -> tuple[Tensor | None, Tensor | None]:
        """[T, B, K] what was instructed, and [T, B] how the steps weigh in the surrogates for it; nothing here."""
        return None, None

    @torch.no_grad()
    def batch(self, rollout: Rollout, estimate: Estimate) -> TeamBatch:
        """A rollout as sequences."""
        instruction, weight = self.instructions(rollout)
        view = self.view(rollout.observations, rollout.action_masks, rollout.states[:-1])
        length = self._chunk_length if self.remembers else 1
        chunks = rollout.steps // length
        guider_memory, memories = self._starting_memories(rollout, chunks * rollout.batch_size)

        def sequences(x: Tensor) -> Tensor:
            """[T, B, ...] -> [L, n·B, ...]."""
            return x.unflatten(0, (chunks, length)).transpose(0, 1).flatten(1, 2)

        grouped = [agent for group in self.spec.groups for agent in group.agents]
        return TeamBatch(
            view=TeamView(
                [sequences(features) for features in view.features],
                [None if mask is None else sequences(mask) for mask in view.action_masks],
                None if view.context is None else sequences(view.context),
                None if instruction is None else sequences(instruction),
            ),
            actions=[sequences(actions) for actions in rollout.actions],
            active=None if rollout.all_active else sequences(rollout.active[:, :, grouped]).flatten(0, 1).T.float(),
            begins=sequences(rollout.begins),
            advantages=sequences(estimate.advantages),
            returns=sequences(estimate.returns),
            values=sequences(rollout.extras["value"]),
            guider_memory=guider_memory,
            memories=memories,
            weight=None if weight is None else sequences(weight),
        )

    def _starting_memories(self, rollout: Rollout, sequences: int) -> tuple[Tensor, list[Tensor]]:
        """[C, *memory_shape] and per group [N_group, C, H]: what was remembered where each sequence starts."""
        nothing = [torch.zeros(policy.members, sequences, 0, device=self.device) for policy in self.policies]
        if not self.remembers:
            return self.guider.no_memory(sequences, self.device), nothing
        *local, guider = zip(*rollout.memories, strict=True)
        memories = [torch.stack(group).transpose(0, 1).flatten(1, 2) for group in local]
        return torch.cat(guider), memories or nothing

    def _values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """[T, B] V as the guider had it when it acted, and [T, B] of what followed (0 after termination)."""
        parameters, groups = self._guider_parameters, range(len(self.spec.groups))
        last = self.guider.value(
            parameters,
            self.view(rollout.last_observations, rollout.last_action_masks, rollout.states[-1]),
            self._guider_memory,
        )
        finals = last[:0]
        if len(rollout.final_states):
            seen = [rollout.final_observations(g) for g in groups]
            view = self.view(seen, [None for _ in groups], rollout.final_states)
            finals = self.guider.value(parameters, view, torch.cat(self._memories_at_ends))
        values = torch.cat([rollout.extras["value"], last.unsqueeze(0)])
        values, finals = self.value_normaliser.denormalise(values), self.value_normaliser.denormalise(finals)
        return values[:-1], rollout.next_values(values, finals)

    # --- deployment and persistence ---------------------------------------------------------------------------------

    def teacher(self) -> Teacher:
        """The guider."""
        return GuiderTeacher(self)

    def components(self) -> StateDict:
        """The shared parts and the guider."""
        return super().components() | {
            "guider": self.guider_theta,
            "guider_optimiser": self.guider_optimiser,
            "value_moments": self.value_normaliser,
        }


class GuiderTeacher:
    """A guider, agents in their natural order: an agent's label depends on what those before it really did.

    Args:
        algorithm: whose guider.
    """

    name = "guider"

    def __init__(self, algorithm: GuidedTeam) -> None:
        self._algorithm = algorithm
        self.goal_kinds: Sequence[GoalKind | None] = (None,) * len(algorithm.spec.groups)
        self.begin(0)

    def begin(self, batch_size: int) -> None:
        """B new episodes, of which nothing is remembered."""
        self._memory = self._algorithm.guider.no_memory(batch_size, self._algorithm.device)

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the guider's own raw actions."""
        return self._algorithm.act_centrally(observation, None, perturbations, self._memory).actions

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """μ(·|o, a of those before); what the guider remembers follows the actions."""
        algorithm, memory = self._algorithm, self._memory
        distributions = algorithm.judge_centrally(observation, actions, memory)
        if algorithm.guider.memory_shape != (0,):
            self._memory = algorithm.act_centrally(observation, None, None, memory, actions).memory
        return Labels(distributions, [None] * len(distributions))

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: nothing is remembered of what has ended."""
        self._memory = self._memory.masked_fill(ended.view(-1, *(1,) * (self._memory.dim() - 1)), 0.0)
