"""One level of the hierarchy: a policy and a value over the graph, improved by clipped surrogates (PPO).

Its *units* are what it decides for: a worker's are the workers (their actions), a superior's its subordinates (a goal
for each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hmarl.trainer.contract.algorithm import StateDict
from hmarl.trainer.hierarchy.networks import GraphNetwork, TeamGraph
from hmarl.trainer.learning.metrics import mean_metrics
from hmarl.trainer.learning.returns import explained_variance, normalise_advantages, weighted_mean
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.normalisation import ValueNormaliser
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.sequential.gradient_steps import clipped_surrogate, minibatches


class LevelSettings(Protocol):
    """The settings that a level learns by."""

    learning_rate: float
    critic_learning_rate: float
    max_gradient_norm: float
    epochs: int
    minibatches: int
    clip: float
    normalise_values: bool


@dataclass(frozen=True)
class Decisions:
    """What a level decided at M moments, and what came of it.

    Attributes:
        graph: what it saw.
        actions: per output layer [M, units of it, ...] raw.
        masks: per output layer [M, units of it, A] bool, or None.
        values: [M, V] before, of the V who judge: a worker judges for itself, a superior for its subordinates.
        advantages: [M, units], not normalised.
        returns: [M, V], targets of the value.
        weight: [M, units] float32, 0 where there was no agent to decide for.
        judged: [M, V] bool, False where there was no agent to judge.
    """

    graph: TeamGraph
    actions: list[Tensor]
    masks: list[Tensor | None]
    values: Tensor
    advantages: Tensor
    returns: Tensor
    weight: Tensor
    judged: Tensor

    def take(self, rows: Tensor) -> Decisions:
        """The moments ``rows``: [m] int64, or [M] bool."""
        return Decisions(
            self.graph.take(rows),
            [actions[rows] for actions in self.actions],
            [None if mask is None else mask[rows] for mask in self.masks],
            self.values[rows],
            self.advantages[rows],
            self.returns[rows],
            self.weight[rows],
            self.judged[rows],
        )

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the units that there were, of [M, units] -> scalar."""
        return weighted_mean(values, self.weight)


class Level:
    """A policy, a value, and how they learn.

    Args:
        policy, value: networks over the same graph; the value's has one output for each of the V who judge.
        heads: one per output layer of the policy.
        units: per output layer, which of the level's units it decides for.
        settings: of the optimisers and epochs.
        entropy_coefficient: weight of the entropy bonus.
        generator: CPU generator of the initial weights.
        device: where the networks live.
    """

    def __init__(
        self,
        policy: GraphNetwork,
        value: GraphNetwork,
        heads: Sequence[ActionHead],
        units: Sequence[Sequence[int]],
        settings: LevelSettings,
        entropy_coefficient: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.policy, self.value, self.heads, self.settings = policy, value, list(heads), settings
        self.entropy_coefficient = entropy_coefficient
        order = [unit for layer in units for unit in layer]
        self._natural = torch.tensor([order.index(unit) for unit in range(len(order))], device=device)
        extras = [head.initialise() for head in heads]
        self.theta = torch.cat([policy.initialise(generator), *extras]).to(device)
        self.value_theta = value.initialise(generator).to(device)
        self.optimiser = FlatAdam(self.theta, settings.learning_rate, settings.max_gradient_norm)
        self.value_optimiser = FlatAdam(self.value_theta, settings.critic_learning_rate, settings.max_gradient_norm)
        self.normaliser = ValueNormaliser(device, settings.normalise_values)

    # --- deciding ---------------------------------------------------------------------------------------------------

    def distributions(
        self,
        graph: TeamGraph,
        masks: Sequence[Tensor | None],
        theta: Tensor | None = None,
        *,
        units_first: bool = False,
    ) -> list[Distribution]:
        """Per output layer [M, units of it] over raw actions, or [units of it, M].

        Args:
            graph: M moments.
            masks: per output layer [M, units of it, A] bool, or None.
            theta: instead of the own parameters.
            units_first: which way round.
        """
        theta = self.theta if theta is None else theta
        network, *extras = theta.split([self.policy.size, *(head.extra_size for head in self.heads)])
        outputs = self.policy(network, graph)
        if units_first:
            outputs = [output.transpose(0, 1) for output in outputs]
            masks = [None if mask is None else mask.transpose(0, 1) for mask in masks]
        return [
            head.distribution(output, extra, mask)
            for head, output, extra, mask in zip(self.heads, outputs, extras, masks, strict=True)
        ]

    @torch.no_grad()
    def values(self, graph: TeamGraph) -> Tensor:
        """[M, V] in units of the level's rewards."""
        (output,) = self.value(self.value_theta, graph)
        return self.normaliser.denormalise(output.squeeze(-1))

    def log_prob(self, distributions: Sequence[Distribution], actions: Sequence[Tensor]) -> Tensor:
        """[M, units] of raw actions per output layer."""
        parts = [distribution.log_prob(action) for distribution, action in zip(distributions, actions, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)[:, self._natural]

    # --- learning ---------------------------------------------------------------------------------------------------

    def improve(self, decisions: Decisions, generator: torch.Generator, schedule: float) -> dict[str, float]:
        """Epochs of minibatches on −E[ min( r·Â, clip(r, 1−ε, 1+ε)·Â ) ] − c·H and on (V − R)².

        Args:
            decisions: of a rollout.
            generator: of the minibatches.
            schedule: factor on the step sizes.
        """
        settings = self.settings
        with torch.no_grad():
            old = self.log_prob(self.distributions(decisions.graph, decisions.masks), decisions.actions)
        advantages = normalise_advantages(decisions.advantages, decisions.weight)
        judged = decisions.judged
        self.normaliser.update(decisions.returns[judged])
        parts = min(settings.minibatches, decisions.graph.moments)
        metrics = mean_metrics(
            self._step(decisions, old, advantages, schedule)
            if units is None
            else self._step(decisions.take(units), old[units], advantages[units], schedule)
            for units in minibatches(decisions.graph.moments, settings.epochs, parts, generator)
        )
        return metrics | {"explained_variance": explained_variance(decisions.values[judged], decisions.returns[judged])}

    def _step(self, part: Decisions, old: Tensor, advantages: Tensor, schedule: float) -> dict[str, Tensor]:
        distributions = self.distributions(part.graph, part.masks, self.optimiser.parameter)
        log_ratio = self.log_prob(distributions, part.actions) - old
        entropies = [distribution.entropy() for distribution in distributions]
        entropy = part.mean(entropies[0] if len(entropies) == 1 else torch.cat(entropies, dim=1)[:, self._natural])
        objective = part.mean(clipped_surrogate(log_ratio.exp(), advantages, self.settings.clip))
        norm = self.optimiser.step(-objective - self.entropy_coefficient * entropy, schedule)
        (predicted,) = self.value(self.value_optimiser.parameter, part.graph)
        errors = predicted.squeeze(-1) - self.normaliser.normalise(part.returns)
        value_loss = weighted_mean(errors.square(), part.judged.float())
        self.value_optimiser.step(value_loss, schedule)
        with torch.no_grad():
            moved = part.mean(log_ratio.exp() - 1.0 - log_ratio)
        return {"kl": moved, "entropy": entropy.detach(), "gradient_norm": norm, "critic_loss": value_loss.detach()}

    # --- persistence ------------------------------------------------------------------------------------------------

    def components(self, name: str) -> StateDict:
        """What a checkpoint holds, by name."""
        return {
            name: self.theta,
            f"{name}_optimiser": self.optimiser,
            f"{name}_value": self.value_theta,
            f"{name}_value_optimiser": self.value_optimiser,
            f"{name}_value_moments": self.normaliser,
        }
