"""Teachers for tests of students, for agents that observe three numbers as those of ``toy_environments`` do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.teacher import GoalKind, Labels
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.policies import select_all


class FollowingTeacher:
    """Labels and goals are read off what each agent saw one step before.

    A goal is what was seen (``GoalKind(3)``) or which of the numbers was the largest (``GoalKind(3, discrete=True)``).
    """

    name = variant = "follower"

    def __init__(self, algorithm: Algorithm, goal: GoalKind | None = None, sharpness: float = 6.0) -> None:
        self._algorithm = algorithm
        self.goal_kinds: Sequence[GoalKind | None] = [goal] * len(algorithm.spec.groups)
        generator = torch.Generator().manual_seed(9)
        self._maps = [sharpness * torch.randn(3, head.output_size, generator=generator) for head in algorithm.heads]
        self._first = [torch.randn(head.output_size, generator=generator) for head in algorithm.heads]
        self.begin(0)

    def begin(self, batch_size: int) -> None:
        self._before = [torch.zeros(batch_size, len(group.agents), 3) for group in self._algorithm.spec.groups]

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        return select_all(self._distributions(observation), perturbations)

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        labels = Labels(self._distributions(observation), [self._goal(before) for before in self._before])
        self._before = [seen.clone() for seen in observation.observations]
        return labels

    def episodes_ended(self, ended: Tensor) -> None:
        self._before = [before.masked_fill(ended.view(-1, 1, 1), 0.0) for before in self._before]

    def _distributions(self, observation: Observation) -> list[Distribution]:
        distributions = []
        for g, head in enumerate(self._algorithm.heads):
            mask, output = observation.action_masks[g], self._before[g] @ self._maps[g] + self._first[g]
            output = (output.tanh() if head.continuous else output).transpose(0, 1)
            legal = None if mask is None else mask.transpose(0, 1)
            distributions.append(head.distribution(output, torch.full((head.extra_size,), -1.0), legal))
        return distributions

    def _goal(self, before: Tensor) -> Tensor | None:
        kind, seen = self.goal_kinds[0], before.transpose(0, 1)
        if kind is None or not kind.discrete:
            return None if kind is None else seen
        return functional.one_hot(seen.argmax(-1), 3).float()


class SkilledTeacher(FollowingTeacher):
    """Does what the toys reward, which can be read off what each agent sees; goals are still one step late."""

    name = "skilled"

    def _distributions(self, observation: Observation) -> list[Distribution]:
        distributions = []
        for g, head in enumerate(self._algorithm.heads):
            seen, mask = observation.observations[g].transpose(0, 1), observation.action_masks[g]
            legal = None if mask is None else mask.transpose(0, 1)
            space, extra = head.space, torch.full((head.extra_size,), -2.0)
            if isinstance(space, spaces.Box):
                low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
                output = 2.0 * (seen[..., : len(low)] - low) / (high - low) - 1.0
            else:
                sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [int(space.n)]
                wanted = [((seen[..., d] + 1.0) * 0.499 * size).long() for d, size in enumerate(sizes)]
                chosen = [functional.one_hot(each, size) for each, size in zip(wanted, sizes, strict=True)]
                # Where what is wanted is illegal, one of the others is the likeliest too.
                output = 6.0 * torch.cat(chosen, dim=-1) + torch.arange(head.output_size)
            distributions.append(head.distribution(output, extra, legal))
        return distributions
