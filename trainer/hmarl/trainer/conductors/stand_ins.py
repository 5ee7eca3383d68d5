"""Local conductors that learn once more, in whatever moments they are shown."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import ConductorLevel
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.contract.stand_ins import Following, Visited
from hmarl.trainer.learning.imitation import distil_until_settled, gap_left
from hmarl.trainer.learning.instructions import agreement
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy

_PASSES = 50
_PATIENCE = 2


class LocalStandIns:
    """ψ^i ← argmin −E_{w(·|s)}[log ψ^i(M|o^i)] (HCPO, Algorithm 1, line 10) for any s and o^i.

    Args:
        actors: who say how observations are normalised.
        conductor: the level with the local conductors.
    """

    def __init__(self, actors: Actors, conductor: ConductorLevel) -> None:
        assert conductor.local is not None
        self._actors, self._conductor, self._local = actors, conductor, conductor.local

    @classmethod
    def of(cls, actors: Actors, conductor: ConductorLevel) -> LocalStandIns | None:
        """None where every agent has a copy of the conductor."""
        return None if conductor.local is None else cls(actors, conductor)

    @property
    def thetas(self) -> list[Tensor]:
        """The local conductors' parameters."""
        return [policy.theta for policy in self._local.policies]

    @property
    def remember(self) -> bool:
        """Whether they see their own instruction before."""
        return self._local.remember

    def learn(self, visited: Visited, generator: torch.Generator) -> None:
        """By Adam from a fresh start; at most fifty passes, until two have not brought a hundredth."""
        settings, conductor = self._local.settings, self._instructing(visited.seen)
        for local, inputs, weight in self._lessons(visited):
            optimiser = FlatAdam(local.theta, settings.distillation_learning_rate, settings.max_gradient_norm)
            parts = settings.distillation_minibatches
            distil_until_settled(local, optimiser, inputs, conductor, weight, generator, _PASSES, parts, _PATIENCE)

    @torch.no_grad()
    def compare(self, visited: Visited) -> Following:
        """Means over the agents that were there."""
        conductor = self._instructing(visited.seen)
        gaps, agreements, present = [], [], []
        for local, inputs, weight in self._lessons(visited):
            gaps.append(gap_left(local, inputs, conductor, weight))
            agreements.append(agreement(conductor, local.all_distributions(inputs), weight))
            present.append(float(weight.sum()))
        total = max(sum(present), 1.0)
        return Following(
            sum(gap * count for gap, count in zip(gaps, present, strict=True)) / total,
            sum(share * count for share, count in zip(agreements, present, strict=True)) / total,
        )

    def _lessons(self, visited: Visited) -> Iterator[tuple[GroupPolicy, Tensor, Tensor]]:
        """Per group its local conductors, what they saw [N_group, M, size] and who was there [N_group, M]."""
        features = self._actors.normalised([torch.as_tensor(block) for block in visited.seen.observations])
        for g, group in enumerate(self._actors.spec.groups):
            last = [block.unsqueeze(0) for block in visited.last] or None
            inputs = self._local.inputs(g, features[g].unsqueeze(0), last)
            yield self._local.policies[g], inputs, torch.as_tensor(visited.seen.active)[:, list(group.agents)].T.float()

    @torch.no_grad()
    def _instructing(self, seen: Observation) -> Distribution:
        """[M] w(·|s)."""
        nothing = torch.zeros(len(seen.state), dtype=torch.int64)
        return self._conductor.distribution(self._conductor.sight.now(seen, nothing, nothing)).detach()
