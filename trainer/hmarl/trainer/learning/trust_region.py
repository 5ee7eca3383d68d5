"""The trust-region step: natural gradient, step length from the KL limit, backtracking line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from hmarl.trainer.learning.metrics import numbers, seen

P = TypeVar("P")
"""What the parameters make: a distribution at every sample, or the parameters themselves."""


@dataclass(frozen=True)
class TrustRegionSettings:
    """Constants of one kind of trust-region step.

    Attributes:
        kl_limit: δ, the largest allowed mean KL(old ‖ new), in nats.
        conjugate_gradient_steps: iterations of the linear solver.
        damping: added to the Hessian's diagonal.
        backtracks: tries of the line search.
        backtrack_coefficient: the step shrinks by this factor per try.
        accept_ratio: smallest accepted ratio of realised to predicted improvement.
    """

    kl_limit: float = 0.01
    conjugate_gradient_steps: int = 10
    damping: float = 1e-2
    backtracks: int = 10
    backtrack_coefficient: float = 0.8
    accept_ratio: float = 0.5


@dataclass(frozen=True)
class TrustRegionStep(Generic[P]):
    """What a step did.

    Attributes:
        theta: [P], the new parameters; the old ones when no try was accepted.
        policy: the model at ``theta``, without gradient.
        accepted: whether a try was accepted.
        kl: constrained KL(old ‖ new) at ``theta``.
        improvement: surrogate(new) − surrogate(old); predicted_improvement: by the gradient.
        tries: line-search tries, 0 when the gradient vanished.
    """

    theta: Tensor
    policy: P
    accepted: bool
    kl: float
    improvement: float
    predicted_improvement: float
    tries: int


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float = 1e-10) -> Tensor:
    """Solve H x = b for symmetric positive definite H, given v ↦ H v.

    Args:
        product: the matrix-vector product.
        b: [P].
        steps: iterations at most.
        tolerance: stop when the squared residual is below this share of ‖b‖².

    Returns:
        [P]. Source: Shewchuk 1994, B2.
    """
    x = torch.zeros_like(b)
    residual, direction = b.clone(), b.clone()
    squared = residual.dot(residual)
    stop = tolerance * squared.double()
    done = squared.double() <= stop
    for _ in range(steps):
        if seen(done):
            break
        image = product(direction)
        step = squared / direction.dot(image)
        # On a device who is done stays where it is: to ask, and to leave, would make the host wait at every step.
        x = torch.where(done, x, x + step * direction)
        residual = residual - step * image
        new_squared = residual.dot(residual)
        direction = residual + (new_squared / squared) * direction
        squared = new_squared
        done = done | (squared.double() <= stop)
    return x


def trust_region_step(
    theta: Tensor,
    model: Callable[[Tensor], P],
    surrogate: Callable[[P], Tensor],
    kl: Callable[[P], Tensor],
    settings: TrustRegionSettings,
    curvature_kl: Callable[[Tensor], Tensor] | None = None,
) -> TrustRegionStep[P]:
    """Maximise ``surrogate`` subject to ``kl`` ≤ δ, starting at ``theta``.

    x = H⁻¹g by conjugate gradient, H the Hessian of the KL at ``theta``; full step √(2δ / xᵀHx) · x; then the longest
    of the steps shrunk by ``backtrack_coefficientʲ`` that improves the surrogate by at least ``accept_ratio`` of the
    prediction and keeps the KL within δ. Without one, the old parameters are returned.

    Args:
        theta: [P], not modified.
        model: θ ↦ policy π_θ, computed once for both expectations.
        surrogate: policy ↦ scalar, to be maximised.
        kl: policy ↦ scalar mean KL(π_theta_old ‖ π_θ), 0 and flat at ``theta``.
        settings: δ and the constants of solver and line search.
        curvature_kl: θ ↦ the same on a part of the samples, for the Hessian alone; the constraint is always checked
            with ``kl``.

    Source: Schulman et al. 2015, appendix C; HATRPO (Kuba et al. 2022), Algorithm 1; HCPO Algorithms 2 and 3.
    """
    leaf = theta.detach().clone().requires_grad_(True)
    start = model(leaf)
    old_surrogate = surrogate(start)
    (gradient,) = torch.autograd.grad(old_surrogate, leaf, retain_graph=curvature_kl is None)
    largest = float(gradient.abs().max())
    if not math.isfinite(largest) or largest == 0.0:
        # A non-finite gradient is passed on: the caller names it and rolls back.
        broken = theta if largest == 0.0 else theta + gradient
        return _stay(broken.detach(), model, 0.0, 0)
    divergence = kl(start) if curvature_kl is None else curvature_kl(leaf)
    (kl_gradient,) = torch.autograd.grad(divergence, leaf, create_graph=True)

    def hessian_product(vector: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(kl_gradient, leaf, grad_outputs=vector, retain_graph=True)
        return product + settings.damping * vector

    direction = conjugate_gradient(hessian_product, gradient, settings.conjugate_gradient_steps)
    curvature = direction.dot(hessian_product(direction)).clamp(min=1e-12)
    full_step = (2.0 * settings.kl_limit / curvature).sqrt() * direction
    promise = gradient.dot(full_step)
    return _line_search(theta.detach(), full_step, old_surrogate, promise, model, surrogate, kl, settings)


@torch.no_grad()
def _line_search(
    theta: Tensor,
    full_step: Tensor,
    old_surrogate: Tensor,
    promise: Tensor,
    model: Callable[[Tensor], P],
    surrogate: Callable[[P], Tensor],
    kl: Callable[[P], Tensor],
    settings: TrustRegionSettings,
) -> TrustRegionStep[P]:
    """The host waits for the device once a try, mostly once in all: whether another one follows is for it to say."""
    fraction, predicted = 1.0, 0.0
    for attempt in range(1, settings.backtracks + 1):
        candidate = theta + fraction * full_step
        policy = model(candidate)
        after, divergence, before, predicted = numbers([surrogate(policy), kl(policy), old_surrogate, promise])
        improvement, expected = after - before, predicted * fraction
        if divergence <= settings.kl_limit and improvement > 0 and improvement >= settings.accept_ratio * expected:
            return TrustRegionStep(candidate, policy, True, divergence, improvement, expected, attempt)
        fraction *= settings.backtrack_coefficient
    return _stay(theta.clone(), model, predicted, settings.backtracks)


@torch.no_grad()
def _stay(theta: Tensor, model: Callable[[Tensor], P], predicted: float, tries: int) -> TrustRegionStep[P]:
    return TrustRegionStep(theta, model(theta), False, 0.0, 0.0, predicted, tries)
