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
class Judgements:
    """What a level's value said at M moments, and what came then.

    Attributes:
        graph: what it saw.
        values: [M, V] of the V who judge: a worker judges for itself, a superior for its subordinates.
        returns: [M, V], targets of the value.
        judged: [M, V] bool, False where there was no agent to judge.
    """

    graph: TeamGraph
    values: Tensor
    returns: Tensor
    judged: Tensor

    def take(self, rows: Tensor) -> Judgements:
        """The moments ``rows``: [m] int64, or [M] bool."""
        return Judgements(self.graph.take(rows), self.values[rows], self.returns[rows], self.judged[rows])


@dataclass(frozen=True)
class Decisions:
    """What a level decided at M moments, and what came of it.

    Attributes:
        graph: what it saw.
        actions: per output layer [M, units of it, ...] raw.
        masks: per output layer [M, units of it, A] bool, or None.
        advantages: [M, units], not normalised.
        weight: [M, units] float32, 0 where there was no agent to decide for.
    """

    graph: TeamGraph
    actions: list[Tensor]
    masks: list[Tensor | None]
    advantages: Tensor
    weight: Tensor

    def take(self, rows: Tensor) -> Decisions:
        """The moments ``rows``: [m] int64, or [M] bool."""
        return Decisions(
            self.graph.take(rows),
            [actions[rows] for actions in self.actions],
            [None if mask is None else mask[rows] for mask in self.masks],
            self.advantages[rows],
            self.weight[rows],
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

    def improve(
        self, decisions: Decisions, judgements: Judgements, generator: torch.Generator, schedule: float
    ) -> dict[str, float]:
        """Epochs of minibatches on −E[ min( r·Â, clip(r, 1−ε, 1+ε)·Â ) ] − c·H and on (V − R)².

        Args:
            decisions: of a rollout.
            judgements: of the same moments, or of more; where the graph is the decisions' own, so are the minibatches.
            generator: of the minibatches.
            schedule: factor on the step sizes.
        """
        with torch.no_grad():
            old = self.log_prob(self.distributions(decisions.graph, decisions.masks), decisions.actions)
        advantages = normalise_advantages(decisions.advantages, decisions.weight)
        returns = judgements.returns[judgements.judged]
        self.normaliser.update(returns)
        steps = self._minibatches(decisions.graph, generator)
        metrics = mean_metrics(
            self._climb(decisions, old, advantages, schedule)
            if units is None
            else self._climb(decisions.take(units), old[units], advantages[units], schedule)
            for units in steps
        )
        if judgements.graph is not decisions.graph:
            steps = self._minibatches(judgements.graph, generator)
        metrics |= mean_metrics(
            self._fit(judgements if units is None else judgements.take(units), schedule) for units in steps
        )
        explained = explained_variance(judgements.values[judgements.judged], returns)
        return metrics | {"explained_variance": float(explained)}

    def _minibatches(self, graph: TeamGraph, generator: torch.Generator) -> list[Tensor | None]:
        """Of all epochs, the moments of each; None for all."""
        settings = self.settings
        parts = min(settings.minibatches, graph.moments)
        return list(minibatches(graph.moments, settings.epochs, parts, generator))

    def _climb(self, part: Decisions, old: Tensor, advantages: Tensor, schedule: float) -> dict[str, Tensor]:
        """A step of the policy."""
        distributions = self.distributions(part.graph, part.masks, self.optimiser.parameter)
        log_ratio = self.log_prob(distributions, part.actions) - old
        entropies = [distribution.entropy() for distribution in distributions]
        entropy = part.mean(entropies[0] if len(entropies) == 1 else torch.cat(entropies, dim=1)[:, self._natural])
        objective = part.mean(clipped_surrogate(log_ratio.exp(), advantages, self.settings.clip))
        norm = self.optimiser.step(-objective - self.entropy_coefficient * entropy, schedule)
        with torch.no_grad():
            moved = part.mean(log_ratio.exp() - 1.0 - log_ratio)
        return {"kl": moved, "entropy": entropy.detach(), "gradient_norm": norm}

    def _fit(self, part: Judgements, schedule: float) -> dict[str, Tensor]:
        """A step of the value."""
        (predicted,) = self.value(self.value_optimiser.parameter, part.graph)
        errors = predicted.squeeze(-1) - self.normaliser.normalise(part.returns)
        loss = weighted_mean(errors.square(), part.judged.float())
        self.value_optimiser.step(loss, schedule)
        return {"critic_loss": loss.detach()}

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
