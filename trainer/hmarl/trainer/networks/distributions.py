"""Action distributions and the heads that turn network outputs into them.

A *raw action* is what a distribution is over: the index of a choice, one index a branch, or (continuous) a vector in
the policy's own units; ``ActionHead.to_environment`` maps it to the environment's units. All log-probabilities,
entropies and
divergences are those of raw actions: the map is fixed, so ratios and divergences do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.spaces import ActionSpace

# Finite, so that 0 · log 0 stays 0 in entropies and divergences.
_MASKED_LOGIT = -1e10


class Distribution(Protocol):
    """A distribution over raw actions, batched over the leading dimensions [...]."""

    def log_prob(self, action: Tensor) -> Tensor:
        """[...] log-probability (density) of raw actions."""
        ...

    def entropy(self) -> Tensor:
        """[...] entropy in nats."""
        ...

    def kl(self, other: Distribution) -> Tensor:
        """[...] KL(self ‖ other) in nats."""
        ...

    def mode(self) -> Tensor:
        """The most probable raw action."""
        ...

    def select(self, perturbation: Tensor) -> Tensor:
        """The raw action that a perturbation (see ``ActionHead``) selects; an all-zero one selects the mode."""
        ...

    def take(self, rows: Tensor) -> Distribution:
        """The distributions at some rows [m] of the first dimension."""
        ...

    def detach(self) -> Distribution:
        """The same without gradient."""
        ...

    def stacked(self, others: Sequence[Any]) -> Distribution:
        """This one and others of the same class and shape, [S, ...]."""
        ...

    def score(self, action: Tensor) -> Tensor:
        """[..., A] gradient of ``log_prob`` with respect to the logits, or to the mean."""
        ...


def stacked_distribution(distributions: Sequence[Distribution]) -> Distribution:
    """[S, ...] of distributions of the same class and shape."""
    return distributions[0].stacked(distributions[1:])


def gumbel_from_uniform(noise: Tensor) -> Tensor:
    """Standard Gumbel variates from uniform ones in (0, 1); 0 stays 0 (no noise)."""
    drawn = noise > 0
    return torch.where(drawn, -torch.log(-torch.log(torch.where(drawn, noise, 0.5))), 0.0)


class Categorical:
    """Choice among A actions.

    Args:
        logits: [..., A] float32, unnormalised.
        mask: [..., A] bool, True where legal; None when all are.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        self.logits = logits if mask is None else torch.where(mask, logits, _MASKED_LOGIT)

    @cached_property
    def log_probs(self) -> Tensor:
        """[..., A] normalised log-probabilities."""
        return torch.log_softmax(self.logits, dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """``action``: [...] int64."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """-Σ p log p."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Distribution) -> Tensor:
        """Σ p (log p - log q)."""
        assert isinstance(other, Categorical)
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def mode(self) -> Tensor:
        """[...] int64."""
        return self.logits.argmax(-1)

    def select(self, perturbation: Tensor) -> Tensor:
        """Gumbel-max; ``perturbation``: [..., A] standard Gumbel."""
        return (self.logits + perturbation).argmax(-1)

    def take(self, rows: Tensor) -> Categorical:
        """At ``rows`` [m] int64."""
        return Categorical(self.logits[rows])

    def detach(self) -> Categorical:
        """The same without gradient."""
        return Categorical(self.logits.detach())

    def stacked(self, others: Sequence[Categorical]) -> Categorical:
        """This one first."""
        return Categorical(torch.stack([self.logits, *(each.logits for each in others)]))

    def score(self, action: Tensor) -> Tensor:
        """The chosen action's indicator less the probabilities."""
        return torch.zeros_like(self.logits).scatter(-1, action.unsqueeze(-1), 1.0) - self.log_probs.exp()


class MultiCategorical:
    """Independent choices, one per branch; logits, masks and noise are the branches', concatenated."""

    def __init__(self, logits: Tensor, branches: tuple[int, ...], mask: Tensor | None = None) -> None:
        masks: tuple[Tensor | None, ...] = (None,) * len(branches) if mask is None else mask.split(branches, dim=-1)
        self.branches = branches
        self.parts = [Categorical(part, m) for part, m in zip(logits.split(branches, dim=-1), masks, strict=True)]
        self.logits = torch.cat([part.logits for part in self.parts], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """``action``: [..., D] int64."""
        terms = [part.log_prob(action[..., d]) for d, part in enumerate(self.parts)]
        return torch.stack(terms).sum(0)

    def entropy(self) -> Tensor:
        """Sum over branches."""
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def kl(self, other: Distribution) -> Tensor:
        """Sum over branches."""
        assert isinstance(other, MultiCategorical)
        return torch.stack([p.kl(q) for p, q in zip(self.parts, other.parts, strict=True)]).sum(0)

    def mode(self) -> Tensor:
        """[..., D] int64."""
        return torch.stack([part.mode() for part in self.parts], dim=-1)

    def select(self, perturbation: Tensor) -> Tensor:
        """Gumbel-max per branch; ``perturbation``: [..., ΣA] standard Gumbel."""
        pieces = perturbation.split(self.branches, dim=-1)
        return torch.stack([part.select(piece) for part, piece in zip(self.parts, pieces, strict=True)], dim=-1)

    def take(self, rows: Tensor) -> MultiCategorical:
        """At ``rows`` [m] int64."""
        return MultiCategorical(self.logits[rows], self.branches)

    def detach(self) -> MultiCategorical:
        """The same without gradient."""
        return MultiCategorical(self.logits.detach(), self.branches)

    def stacked(self, others: Sequence[MultiCategorical]) -> MultiCategorical:
        """This one first."""
        return MultiCategorical(torch.stack([self.logits, *(each.logits for each in others)]), self.branches)

    def score(self, action: Tensor) -> Tensor:
        """The branches', concatenated."""
        return torch.cat([part.score(action[..., d]) for d, part in enumerate(self.parts)], dim=-1)


class DiagonalGaussian:
    """Independent normal components: ``mean`` [..., D], ``log_std`` broadcastable to it."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std.expand_as(mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """``action``: [..., D] float32."""
        standardised = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * standardised.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Σ log σ + D/2 · log 2πe."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, other: Distribution) -> Tensor:
        """Closed form, summed over components."""
        assert isinstance(other, DiagonalGaussian)
        variance_ratio = (2 * (self.log_std - other.log_std)).exp()
        distance = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return 0.5 * (variance_ratio + distance - 1 - 2 * (self.log_std - other.log_std)).sum(-1)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def select(self, perturbation: Tensor) -> Tensor:
        """``perturbation``: [..., D] standard normal."""
        return self.mean + self.log_std.exp() * perturbation

    def take(self, rows: Tensor) -> DiagonalGaussian:
        """At ``rows`` [m] int64."""
        return DiagonalGaussian(self.mean[rows], self.log_std[rows])

    def detach(self) -> DiagonalGaussian:
        """The same without gradient."""
        return DiagonalGaussian(self.mean.detach(), self.log_std.detach())

    def stacked(self, others: Sequence[DiagonalGaussian]) -> DiagonalGaussian:
        """This one first."""
        means, log_stds = zip(*((each.mean, each.log_std) for each in (self, *others)), strict=True)
        return DiagonalGaussian(torch.stack(means), torch.stack(log_stds))

    def score(self, action: Tensor) -> Tensor:
        """(a − μ) / σ²."""
        return (action - self.mean) * (-2 * self.log_std).exp()


@dataclass(frozen=True)
class ActionHead:
    """Turns a network's output into a distribution over raw actions, and raw actions into the environment's.

    Attributes:
        space: the agent's action space.
        squash: continuous only: ``tanh`` maps raw actions into the bounds smoothly, ``clip`` cuts them off.
        initial_std: continuous only: standard deviation at the start, in units of half the action range.
        seen_std: continuous only: whether standard deviations follow from what is seen, as further outputs of the
            network; else they are parameters of their own.
    """

    space: ActionSpace
    squash: Literal["tanh", "clip"] = "clip"
    initial_std: float = 0.6
    seen_std: bool = False

    @property
    def continuous(self) -> bool:
        """Whether actions are real vectors."""
        return isinstance(self.space, spaces.Box)

    @property
    def action_size(self) -> int:
        """A, the number of logits, or of a continuous action's components."""
        if isinstance(self.space, spaces.Discrete):
            return int(self.space.n)
        if isinstance(self.space, spaces.MultiDiscrete):
            return int(self.space.nvec.sum())
        return int(np.prod(self.space.shape))

    @property
    def output_size(self) -> int:
        """Number of network outputs: logits, or the means and, where it is seen, the spread's logarithms."""
        return self.action_size * (2 if self.continuous and self.seen_std else 1)

    @property
    def extra_size(self) -> int:
        """Number of free parameters beside the network's: one log standard deviation per continuous component."""
        return self.action_size if self.continuous and not self.seen_std else 0

    @property
    def noise_distribution(self) -> Literal["uniform", "normal"]:
        """Distribution of the deployed policy's noise input; its size is ``action_size``."""
        return "normal" if self.continuous else "uniform"

    def perturbation(self, noise: Tensor) -> Tensor:
        """What ``Distribution.select`` takes, from noise [..., action_size] of ``noise_distribution``; 0 stays 0."""
        return noise if self.continuous else gumbel_from_uniform(noise)

    def draw_perturbations(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Fresh perturbations [*shape, action_size] for a whole rollout at once."""
        drawn = torch.empty(*shape, self.action_size, device=generator.device)
        if self.continuous:
            return drawn.normal_(generator=generator)
        return drawn.exponential_(generator=generator).clamp_(min=1e-30).log_().neg_()

    def initialise(self) -> Tensor:
        """Fresh extra parameters [extra_size]."""
        return torch.full((self.extra_size,), math.log(self.initial_std))

    def distribution(self, output: Tensor, extra: Tensor, mask: Tensor | None = None) -> Distribution:
        """The distribution over raw actions.

        Args:
            output: [..., output_size].
            extra: [extra_size] or broadcastable [..., extra_size].
            mask: [..., action_size] bool for discrete choices, or None.
        """
        if isinstance(self.space, spaces.Discrete):
            return Categorical(output, mask)
        if isinstance(self.space, spaces.MultiDiscrete):
            return MultiCategorical(output, tuple(int(n) for n in self.space.nvec), mask)
        if self.seen_std:
            output, log_std = output.chunk(2, dim=-1)
            extra = log_std + math.log(self.initial_std)
        return DiagonalGaussian(output, extra.clamp(-5.0, 1.0))

    def to_environment(self, raw_action: Tensor) -> Tensor:
        """Raw actions in the environment's units; continuous ones scaled from [-1, 1] to [low, high] and within them.

        The middle of the range is where raw actions are 0, so that small ones keep their digits; rounding errs by units
        in the last place of the range, and the bounds cut off what it carries past them.
        """
        if not isinstance(self.space, spaces.Box):
            return raw_action
        bounded = torch.tanh(raw_action) if self.squash == "tanh" else raw_action.clamp(-1.0, 1.0)
        middle, half, low, high = self._range_on(raw_action.device)
        return torch.minimum(torch.maximum(middle + half * bounded, low), high)

    def _range_on(self, device: torch.device) -> tuple[Tensor, ...]:
        """``_range`` as tensors, which are taken to a device once: every such copy makes the host wait for it."""
        if device.type == "cpu":
            return tuple(torch.from_numpy(each) for each in self._range)
        if device not in self._uploaded:
            self._uploaded[device] = tuple(torch.from_numpy(each).to(device) for each in self._range)
        return self._uploaded[device]

    @cached_property
    def _uploaded(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}

    @cached_property
    def _range(self) -> tuple[npt.NDArray[np.float32], ...]:
        """Middle, half width, low and high of a Box, [D] float32 each."""
        assert isinstance(self.space, spaces.Box)
        # In float64, where neither sum nor difference of two float32 overflows or cancels.
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        return tuple(each.astype(np.float32) for each in ((low + high) / 2, (high - low) / 2, low, high))
