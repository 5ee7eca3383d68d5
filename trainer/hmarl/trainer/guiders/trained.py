"""A guider in training: its network with parameters, optimiser and value, as a part that an algorithm composes.

In an update

    estimate     V as the guider had it when it acted, Â by GAE and the λ-returns R
    batch        the rollout as sequences, λ-returns in units of V
    minibatches  of several epochs, the agents in a new order in each, with log μ_old of the actions in that order;
                 at last those of epochs in which the guider learns no more, with what it would do there
    judge        μ_φ(·|o, a of those before) and V_φ there
    descend      on −objective + penalty − c·H + c_v·L_V

The algorithm says what the objective is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders import create_guider
from hmarl.trainer.guiders.batch import TeamBatch, team_batch
from hmarl.trainer.guiders.guider import Acted, Judged, TeamView
from hmarl.trainer.guiders.settings import GuiderSettings
from hmarl.trainer.learning.returns import explained_variance, weighted_mean
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.indices import sent
from hmarl.trainer.networks.normalisation import RunningNormaliser, ValueNormaliser
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import by_group
from hmarl.trainer.sequential.estimates import Estimate, counted, estimate_by
from hmarl.trainer.sequential.gradient_steps import minibatches


@dataclass(frozen=True)
class Remembered:
    """What a guider remembers where a rollout's values need a bootstrap.

    Attributes:
        last: [B, *memory_shape] after the last step.
        at_ends: of every step at which episodes ended, [ended, *memory_shape].
    """

    last: Tensor
    at_ends: tuple[Tensor, ...]


@dataclass(frozen=True)
class Minibatch:
    """A part of a rollout to descend on once.

    Attributes:
        part: the sequences.
        order: [N] int64, in which the agents decide.
        old_log_prob: [N, L·C] of the actions, agents group by group, under the guider that collected, in that order.
        teachers: per group [N_group, L·C] the guider there, without gradient, when it learns no more; else None.
    """

    part: TeamBatch
    order: Tensor
    old_log_prob: Tensor
    teachers: list[Distribution] | None = None


class TrainedGuider:
    """A guider's network, what it has learnt, and how it learns.

    Args:
        actors: whose team it guides; their observations are what it sees.
        state_normaliser: of the state, for guiders that see it.
        settings: of network, optimiser and epochs.
        instruction_size: K, the width of a conductor's instruction; 0 without one.
        generator: CPU generator of the initial weights and of the agents' orders.

    Attributes:
        network: the guider as a pure function.
        theta: [P] its parameters.
        value_normaliser: the units of V.
    """

    def __init__(
        self,
        actors: Actors,
        state_normaliser: RunningNormaliser,
        settings: GuiderSettings,
        instruction_size: int,
        generator: torch.Generator,
    ) -> None:
        spec, device = actors.spec, actors.device
        self.actors, self.settings = actors, settings
        self._state_normaliser, self._generator = state_normaliser, generator
        context_size = spec.state_size if settings.guider_sees_state else 0
        self.network = create_guider(spec.groups, actors.heads, settings, context_size, instruction_size)
        self.theta = self.network.initialise(generator).to(device)
        self._parameters = self.network.named(self.theta)  # views, which see every update
        self.optimiser = FlatAdam(self.theta, settings.learning_rate, settings.max_gradient_norm)
        self.value_normaliser = ValueNormaliser(device, settings.normalise_values)

    # --- acting -----------------------------------------------------------------------------------------------------

    @property
    def agents(self) -> int:
        """N."""
        return len(self.actors.spec.agents)

    @property
    def remembers(self) -> bool:
        """Whether the guider or the local policies remember."""
        return self.actors.recurrent or self.network.memory_shape != (0,)

    def no_memory(self, batch_size: int) -> Tensor:
        """[B, *memory_shape]: what is remembered when an episode begins."""
        return torch.zeros(batch_size, *self.network.memory_shape, device=self.actors.device)

    def draw_order(self) -> Tensor:
        """[N] int64: a random order of the agents, or their natural one."""
        if not self.settings.shuffle_agents:
            return torch.arange(self.agents)
        return torch.randperm(self.agents, generator=self._generator)

    def view(
        self,
        observations: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        states: Tensor,
        instruction: Tensor | None = None,
        active: Tensor | None = None,
    ) -> TeamView:
        """What the guider sees of raw observations [..., N_group, D], masks, states [..., S] and, where there is a
        conductor, its instruction [..., K]; ``active`` [..., N] bool says who is there, None that all are.
        """
        context = self._state_normaliser(states) if self.settings.guider_sees_state else None
        there = None if active is None else by_group(self.actors.spec.groups, active)
        return TeamView(self.actors.normalised(observations), masks, context, instruction, there)

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        instruction: Tensor | None,
        perturbations: Sequence[Tensor] | None,
        memory: Tensor,
        *,
        order: Sequence[int] | None = None,
        taken: Sequence[Tensor] | None = None,
    ) -> Acted:
        """a^{i_1} ∼ μ(·|o), a^{i_2} ∼ μ(·|o, a^{i_1}), … .

        Args:
            observation: tensors on the training device.
            instruction: [B, K] of a conductor, or None.
            perturbations: per group [N_group, B, A]; None selects the modes.
            memory: [B, *memory_shape].
            order: of all agents; None is their natural one.
            taken: see ``Guider.act``.
        """
        seen, masks = observation.observations, observation.action_masks
        view = self.view(seen, masks, observation.state, instruction, observation.active)
        order = range(self.agents) if order is None else order
        return self.network.act(self._parameters, view, perturbations, order, memory, taken)

    @torch.no_grad()
    def distributions(self, observation: Observation, taken: Sequence[Tensor], memory: Tensor) -> list[Distribution]:
        """Per group [N_group, B]: what the guider would have every agent do at a step, given what those before it in
        their natural order did.

        Args:
            observation: tensors on the training device.
            taken: per group [B, N_group, ...] raw actions.
            memory: [B, *memory_shape] before the step.
        """
        view = self.view(
            [seen.unsqueeze(0) for seen in observation.observations],
            [None if mask is None else mask.unsqueeze(0) for mask in observation.action_masks],
            observation.state.unsqueeze(0),
        )
        order = torch.arange(self.agents, device=self.actors.device)
        begins = torch.zeros(1, len(memory), dtype=torch.bool, device=self.actors.device)
        actions = [action.unsqueeze(0) for action in taken]
        return self.network.judge(self._parameters, view, actions, order, memory, begins).distributions

    # --- what came of a rollout -------------------------------------------------------------------------------------

    @torch.no_grad()
    def estimate(self, rollout: Rollout, remembered: Remembered) -> Estimate:
        """V as the guider had it when it acted, advantages by GAE and λ-returns: the team's, or every agent's own."""
        seen_last = self.view(rollout.last_observations, rollout.last_action_masks, rollout.states[-1])
        last = self.network.value(self._parameters, seen_last, remembered.last)
        finals = last[:0]
        if len(rollout.final_states):
            groups = range(len(rollout.spec.groups))
            seen = [rollout.final_observations(g) for g in groups]
            view = self.view(seen, [None for _ in groups], rollout.final_states)
            finals = self.network.value(self._parameters, view, torch.cat(remembered.at_ends))
        values = torch.cat([rollout.extras["value"], last.unsqueeze(0)])
        values, finals = self.value_normaliser.denormalise(values), self.value_normaliser.denormalise(finals)
        states = self._state_normaliser(rollout.states[:-1]).flatten(0, 1)
        return estimate_by(rollout, states, values, finals, self.settings)

    def adopt_units(self, rollout: Rollout, estimate: Estimate) -> float:
        """From now on V is learnt in the units of the λ-returns that count.

        Returns:
            How much of their variance V has explained.
        """
        values, returns = counted(rollout, estimate.values), counted(rollout, estimate.returns)
        self.value_normaliser.update(returns)
        return float(explained_variance(values, returns))

    @torch.no_grad()
    def batch(
        self,
        rollout: Rollout,
        estimate: Estimate,
        acting_order: Sequence[int],
        instruction: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> TeamBatch:
        """The rollout as sequences, λ-returns in the units that V is learnt in from now on.

        Args:
            rollout: full.
            estimate: of it.
            acting_order: in which the agents decided.
            instruction: [T, B, K] of a conductor, or None.
            weight: [T, B] of the steps in the policies' surrogates, or None.
        """
        active = None if rollout.all_active else rollout.active
        view = self.view(rollout.observations, rollout.action_masks, rollout.states[:-1], active=active)
        return team_batch(
            rollout,
            view,
            estimate,
            self.value_normaliser.normalise(estimate.returns),
            acting_order,
            self.no_memory(1),
            self.actors.policies,
            instruction=instruction,
            weight=weight,
        )

    # --- learning ---------------------------------------------------------------------------------------------------

    def minibatches(
        self, batch: TeamBatch, generator: torch.Generator, guider_epochs: int | None = None
    ) -> Iterator[Minibatch]:
        """Epochs of minibatches, the agents in a new order in each epoch; ratios are to the guider as it is now.

        Args:
            batch: the whole rollout.
            generator: of the minibatches, on the device.
            guider_epochs: after so many the guider learns no more; None: it learns in all.
        """
        epochs = self.settings.epochs
        learning = epochs if guider_epochs is None else guider_epochs
        orders = [self._order_of_epoch(batch) for _ in range(learning)]
        old_log_probs = self._old_log_probs(batch, orders)
        for order in orders:
            yield from self._epoch(batch, generator, order, old_log_probs[order])
        if learning < epochs:
            # What the guider would do there is the same in each of these epochs, and judged once.
            kept = [
                replace(each, teachers=self._teachers(each))
                for each in self._epoch(batch, generator, batch.acting_order, batch.acting_log_prob)
            ]
            for _ in range(epochs - learning):
                yield from kept

    def _epoch(
        self, batch: TeamBatch, generator: torch.Generator, order: tuple[int, ...], old: Tensor
    ) -> Iterator[Minibatch]:
        """The minibatches of one pass, with log μ_old [N, L·C] of the whole batch in that order."""
        placed = sent(order, self.actors.device)
        for units in minibatches(batch.sequences, 1, self.settings.minibatches, generator):
            if units is None:
                yield Minibatch(batch, placed, old)
            else:
                yield Minibatch(batch.take(units), placed, batch.rows(old, units))

    def _order_of_epoch(self, batch: TeamBatch) -> tuple[int, ...]:
        """A new order, or the one in which the agents acted."""
        return tuple(self.draw_order().tolist()) if self.settings.reshuffle else batch.acting_order

    @torch.no_grad()
    def _old_log_probs(self, batch: TeamBatch, orders: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """By order, [N, L·C] of a batch's actions under the guider that collected; a minibatch's worth at a time.

        In the order of acting they are known. Of few agents there are few orders, and epochs share them.
        """
        known = {batch.acting_order: batch.acting_log_prob}
        others = [order for order in dict.fromkeys(orders) if order not in known]
        placed = [sent(order, self.actors.device) for order in others]
        rows: dict[tuple[int, ...], list[Tensor]] = {order: [] for order in others}
        size = -(-batch.sequences // self.settings.minibatches)
        for first in range(0, batch.sequences, size) if others else ():
            part = batch.take(slice(first, first + size))
            judged = self.network.judge_orders(
                self._parameters, part.view, part.actions, placed, part.guider_memory, part.begins
            )
            for order, each in zip(others, judged, strict=True):
                rows[order].append(part.log_prob(each.distributions).unflatten(1, part.begins.shape))
        return known | {order: torch.cat(found, dim=-1).flatten(1) for order, found in rows.items()}

    @torch.no_grad()
    def _teachers(self, minibatch: Minibatch) -> list[Distribution]:
        """Per group [N_group, L·C] the guider at the steps of a minibatch."""
        return self.judge(minibatch.part, minibatch.order, self.theta).distributions

    def judge(self, part: TeamBatch, order: Tensor, theta: Tensor | None = None) -> Judged:
        """The guider at the steps of a minibatch: with gradient, or with parameters ``theta``."""
        parameters = self.network.named(self.optimiser.parameter if theta is None else theta)
        return self.network.judge(parameters, part.view, part.actions, order, part.guider_memory, part.begins)

    def descend(
        self, part: TeamBatch, judged: Judged, objective: Tensor, penalty: Tensor | None, schedule: float
    ) -> dict[str, Tensor]:
        """φ ← descent on −objective + penalty − c · H + c_v · L_V.

        Args:
            part: the minibatch.
            judged: the guider there, with gradient.
            objective: [N, L·C] surrogate.
            penalty: scalar, or None.
            schedule: factor on the step size.

        Returns:
            Metrics, scalars.
        """
        settings = self.settings
        entropy = part.mean(torch.cat([distribution.entropy() for distribution in judged.distributions]))
        clip = settings.clip if settings.value_clip else math.inf
        value_loss = clipped_value_loss(judged.values, part.values, part.targets, clip, part.valued)
        loss = -part.mean(objective) - settings.entropy_coefficient * entropy
        loss = loss + settings.value_coefficient * value_loss
        norm = self.optimiser.step(loss if penalty is None else loss + penalty, schedule)
        return {"agent_entropy": entropy.detach(), "critic_loss": value_loss.detach(), "guider_gradient_norm": norm}

    def components(self) -> dict[str, object]:
        """The guider, as ``Algorithm.components`` names it."""
        return {"guider": self.theta, "guider_optimiser": self.optimiser, "value_moments": self.value_normaliser}


def clipped_value_loss(
    values: Tensor, old: Tensor, targets: Tensor, clip: float, weight: Tensor | None = None
) -> Tensor:
    """E[ max( (V − R)², (clip(V, V_old ± ε) − R)² ) ] in normalised units (Schulman et al.'s code; Yu et al. 2022,
    Eq. 3).

    Args:
        values: [L, C] V, or [L, C, N] V^i.
        old: the same, what the network said when it acted.
        targets: the same, R.
        clip: ε; infinite leaves E[ (V − R)² ].
        weight: [L, C, N] 0 or 1, or None.
    """
    clipped = old + (values - old).clamp(-clip, clip)
    errors = torch.maximum((values - targets).square(), (clipped - targets).square())
    return errors.mean() if weight is None else weighted_mean(errors, weight)
