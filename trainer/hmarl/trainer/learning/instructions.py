"""Instructions: one of K, or (our extension) a vector of D real numbers. The conductors' heads say which.

A conductor is a policy whose actions are instructions, so that an ``ActionHead`` describes them: Categorical over K, or
a diagonal Gaussian over ℝ^D whose first standard deviation is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.learning.metrics import read
from hmarl.trainer.networks.distributions import ActionHead, DiagonalGaussian, Distribution


@dataclass(frozen=True)
class InstructionWeights:
    """Weights that a conductor update leaves for the agents' updates.

    Attributes:
        surrogate: [M] of the samples in every agent's surrogate.
        kl: per agent, [M] of the samples in its KL, or None.
    """

    surrogate: Tensor
    kl: dict[int, Tensor] | None

    def of(self, agent: int) -> tuple[Tensor, Tensor | None]:
        """[M] weights of one agent's samples in its surrogate and in its KL."""
        return self.surrogate, None if self.kl is None else self.kl[agent]


def discrete_instructions(count: int) -> ActionHead:
    """The head of conductors that choose one of K instructions."""
    return ActionHead(spaces.Discrete(count))


def latent_instructions(size: int) -> ActionHead:
    """The head of conductors that draw D real numbers, about standard normal at the start."""
    return ActionHead(spaces.Box(-1.0, 1.0, (size,), dtype=np.float32), initial_std=1.0)


def no_instructions(head: ActionHead, batch_size: int, device: torch.device | str) -> Tensor:
    """[B] int64 or [B, D] float32 zeros: what is in force before the first instruction."""
    if head.continuous:
        return torch.zeros(batch_size, head.output_size, device=device)
    return torch.zeros(batch_size, dtype=torch.int64, device=device)


def random_instructions(head: ActionHead, batch_size: int, generator: np.random.Generator) -> Tensor:
    """[B] uniform choices or [B, D] standard normal vectors, which no conductor has learnt."""
    if head.continuous:
        return torch.from_numpy(generator.normal(size=(batch_size, head.output_size)).astype(np.float32))
    return torch.from_numpy(generator.integers(head.output_size, size=batch_size))


def instruction_context(head: ActionHead, instruction: Tensor, scale: float = 1.0) -> Tensor:
    """What the actors see of an instruction: [..., K] one-hot of [...] int64, or the vector [..., D] itself; scaled."""
    seen = instruction if head.continuous else functional.one_hot(instruction, head.output_size).float()
    return seen if scale == 1.0 else seen * scale


def held_until_renewed(renew: Tensor, drawn: Tensor, held: Tensor) -> Tensor:
    """``drawn`` where ``renew`` [B] is true, else ``held``; [B, ...]."""
    return torch.where(renew.view(-1, *(1,) * (drawn.dim() - 1)), drawn, held)


def since_decision(weight: Tensor, decided: Tensor, before: Tensor | float = 1.0) -> Tensor:
    """The weight of the step at which the instruction in force was chosen.

    Args:
        weight: [T, B, ...], meaningful where ``decided``.
        decided: [T, B] bool.
        before: the weight before the rollout's first decision, a scalar.
    """
    weights, held = weight.clone(), torch.ones_like(weight[0]) * before
    for t in range(weight.shape[0]):
        held = held_until_renewed(decided[t], weight[t], held)
        weights[t] = held
    return weights


def instruction_metrics(head: ActionHead, instruction: Tensor, conductor: Distribution) -> dict[str, float]:
    """How instructions are used.

    Args:
        head: of the conductors.
        instruction: [M] or [M, D] in force.
        conductor: [M] w(·|s).

    Returns:
        The conductor's entropy given the state. Discrete: the entropy of all instructions used as a share of log K, and
        their histogram. Continuous: how far its means lie apart from state to state, and its standard deviation.
    """
    entropy = {"instruction_entropy": conductor.entropy().mean()}
    if isinstance(conductor, DiagonalGaussian):
        spread = conductor.mean.std(0, correction=0).mean()
        return read({**entropy, "instruction_spread": spread, "instruction_std": conductor.log_std.exp().mean()})
    usage = functional.one_hot(instruction, head.output_size).sum(0) / len(instruction)
    of_usage = {"instruction_usage_entropy": -(usage * usage.clamp(min=1e-12).log()).sum()}
    shares = {f"instruction_usage/{k}": share for k, share in enumerate(usage.unbind())}
    metrics = read({**entropy, **of_usage, **shares})
    metrics["instruction_usage_entropy"] /= max(math.log(head.output_size), 1e-12)
    return metrics


@torch.no_grad()
def agreement(conductor: Distribution, local: Distribution, weight: Tensor | None = None) -> float:
    """How well local conductors follow: the share of equal best instructions; of vectors the share of the means'
    variance that is met (1 is all of it, 0 no better than a constant).

    Args:
        conductor: [M] w(·|s).
        local: [N, M] w^i(·|o^i).
        weight: [N, M] 0 or 1, whose local conductor counts where; None: all do.
    """
    if isinstance(conductor, DiagonalGaussian):
        missed = _mean((local.mode() - conductor.mean).square().mean(-1), weight)
        return float(1.0 - missed / conductor.mean.var(0, correction=0).mean().clamp(min=1e-8))
    return float(_mean((local.mode() == conductor.mode()).float(), weight))


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Of [N, M] values those that count."""
    return values.mean() if weight is None else (values * weight).sum() / weight.sum().clamp(min=1.0)
