"""Actions as critics see them, drawn so that gradients flow from what critics say of them back to the policies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.networks.distributions import (
    ActionHead,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)


@dataclass(frozen=True)
class Drawn:
    """Actions of many rows.

    Attributes:
        seen: [..., A] as ``seen_action``.
        log_prob: [...] their log-probability, or log-density in [-1, 1]; of choices its mean over all of them, −H.
    """

    seen: Tensor
    log_prob: Tensor


def seen_action(head: ActionHead, raw_action: Tensor) -> Tensor:
    """Raw actions as critics see them, [..., A] float32: squashed to [-1, 1], or one-hot, branches side by side."""
    if head.continuous:
        return torch.tanh(raw_action)
    if isinstance(head.space, spaces.Discrete):
        return functional.one_hot(raw_action, head.action_size).float()
    assert isinstance(head.space, spaces.MultiDiscrete)
    branches = zip(raw_action.unbind(-1), head.space.nvec, strict=True)
    return torch.cat([functional.one_hot(choice, int(size)) for choice, size in branches], dim=-1).float()


def draw(distribution: Distribution, perturbation: Tensor) -> Drawn:
    """Draw actions, with gradients.

    A continuous action is tanh(u), u ∼ N(μ, σ²), and ln π(a) = ln N(u) − Σ ln(1 − tanh² u). A choice is one-hot going
    forward, and going back the softmax of the logits with the noise that has chosen it (Gumbel-softmax, straight
    through).

    Args:
        distribution: over raw actions, [...].
        perturbation: [..., A] as ``Distribution.select`` takes it.

    Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", appendix C; Jang et al. 2017.
    """
    if isinstance(distribution, DiagonalGaussian):
        raw = distribution.select(perturbation)
        slope = 2.0 * (math.log(2.0) - raw - functional.softplus(-2.0 * raw))  # ln(1 − tanh² u)
        return Drawn(torch.tanh(raw), distribution.log_prob(raw) - slope.sum(-1))
    if isinstance(distribution, MultiCategorical):
        pieces = perturbation.split(distribution.branches, dim=-1)
        parts = [_draw_choice(part, piece) for part, piece in zip(distribution.parts, pieces, strict=True)]
        return Drawn(torch.cat(parts, dim=-1), -distribution.entropy())
    assert isinstance(distribution, Categorical)
    return Drawn(_draw_choice(distribution, perturbation), -distribution.entropy())


def _draw_choice(distribution: Categorical, perturbation: Tensor) -> Tensor:
    """[..., A] one-hot, with the gradient of the softmax."""
    soft = (distribution.logits + perturbation).softmax(-1)
    hard = functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())
