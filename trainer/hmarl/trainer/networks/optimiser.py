"""Adam on flat parameter vectors, with a state that is tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-5  # β₁, β₂, ε


class FlatAdam:
    """Adam on one tensor of parameters, updated in place, with gradient clipping.

    Args:
        theta: [P] or [N, P]; shares its storage, so that every view of it sees the update.
        learning_rate: step size before the schedule's factor.
        max_gradient_norm: the gradient of each row is scaled down to this norm.

    Attributes:
        step_size: of the newest step.
        steps: how many have been taken.
        rates: [2] where steps read on the device what the host alone knows of them, also those that the host makes
            (the arithmetic is another in the last bit), where a device makes some by itself (``learning.captured``);
            None where the host makes every step.

    Source: Kingma and Ba 2015, Algorithm 1. ``torch.optim.Adam`` makes the same operations in the same order, to the
    last bit, but spends more time around them than small networks take to be evaluated.
    """

    def __init__(self, theta: Tensor, learning_rate: float, max_gradient_norm: float) -> None:
        self.parameter = torch.nn.Parameter(theta)
        self.learning_rate = self.step_size = learning_rate
        self.max_gradient_norm = max_gradient_norm
        self.steps = 0
        self.rates: Tensor | None = None
        self._moments: tuple[Tensor, Tensor] | None = None

    def step(self, loss: Tensor, schedule: float = 1.0) -> Tensor:
        """One descent step on a scalar ``loss``; returns the largest gradient norm before clipping, a scalar."""
        return self.step_rows(loss, schedule).max()

    def descend(self, gradient: Tensor, schedule: float = 1.0) -> Tensor:
        """``step`` with a gradient in hand, shaped like the parameters."""
        return self._descend(gradient, schedule).max()

    def step_rows(self, losses: Tensor, schedule: float = 1.0) -> Tensor:
        """One descent step on a scalar loss, or on one a row [N]; returns the gradients' norms before clipping, a
        scalar or [N].
        """
        (gradient,) = torch.autograd.grad(losses if losses.dim() == 0 else losses.sum(), self.parameter)
        return self._descend(gradient, schedule)

    @torch.no_grad()
    def _descend(self, gradient: Tensor, schedule: float) -> Tensor:
        norm = gradient.norm(dim=-1, keepdim=True)
        clipped = gradient * (self.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0)
        if self._moments is None:
            self._moments = torch.zeros_like(clipped), torch.zeros_like(clipped)
        self.steps += 1
        self.step_size = self.learning_rate * schedule
        # m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²
        mean, square = self._moments
        mean.lerp_(clipped, 1 - _DECAY)
        square.mul_(_SQUARE_DECAY).addcmul_(clipped, clipped, value=1 - _SQUARE_DECAY)
        # θ ← θ − α · m̂ / (√v̂ + ε)
        if self.rates is None:
            unbiased, size = self._of_step
            self.parameter.addcdiv_(mean, (square.sqrt() / unbiased).add_(_EPSILON), value=-size)
        else:
            if not (self.rates.is_cuda and torch.cuda.is_current_stream_capturing()):
                self._tell(self.rates)
            unbiased_there, size_there = self.rates.unbind()
            self.parameter.sub_(mean / (square.sqrt() / unbiased_there).add_(_EPSILON) * size_there)
        return norm.squeeze(-1)

    @property
    def _of_step(self) -> tuple[float, float]:
        """√(1 − β₂ᵗ) and α / (1 − β₁ᵗ) of the newest step t."""
        return (1 - _SQUARE_DECAY**self.steps) ** 0.5, self.step_size / (1 - _DECAY**self.steps)

    def repeat(self, schedule: float) -> None:
        """Count a step that the device makes by itself, and tell it, without a wait, how far that one goes.

        Args:
            schedule: factor on the step size.
        """
        assert self.rates is not None
        self.steps, self.step_size = self.steps + 1, self.learning_rate * schedule
        self._tell(self.rates)

    def _tell(self, rates: Tensor) -> None:
        for place, value in zip(rates, self._of_step, strict=True):
            place.fill_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's moments and step count; empty before the first step. Steps are counted by the host."""
        if self._moments is None or not self.steps:
            return {}
        return {"step": torch.tensor(float(self.steps)), "exp_avg": self._moments[0], "exp_avg_sq": self._moments[1]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self.steps = int(state["step"]) if state else 0
        if self._moments is None:
            self._moments = torch.zeros_like(self.parameter), torch.zeros_like(self.parameter)
        # In place, where steps that a device makes by itself know them to be.
        for moment, name in zip(self._moments, ("exp_avg", "exp_avg_sq"), strict=True):
            moment.copy_(state[name]) if state else moment.zero_()

    # --- several at once --------------------------------------------------------------------------------------------

    @classmethod
    def stacked(cls, optimisers: Sequence[FlatAdam]) -> FlatAdam:
        """One for the rows [S, P] of several that are set alike and have taken equally many steps."""
        first = optimisers[0]
        rows = torch.stack([each.parameter.detach() for each in optimisers])
        joint = cls(rows, first.learning_rate, first.max_gradient_norm)
        states = [each.state_dict() for each in optimisers]
        joint.load_state_dict(
            {key: v if key == "step" else torch.stack([state[key] for state in states]) for key, v in states[0].items()}
        )
        return joint

    @torch.no_grad()
    def give_back(self, optimisers: Sequence[FlatAdam]) -> None:
        """To each of those that were ``stacked`` its row, and its part of the state."""
        for row, each in enumerate(optimisers):
            each.parameter.copy_(self.parameter[row])
            each.step_size = self.step_size
            each.load_state_dict({key: v if key == "step" else v[row] for key, v in self.state_dict().items()})


def descend_all(optimisers: Sequence[FlatAdam], loss: Tensor, schedule: float = 1.0) -> Tensor:
    """One descent step of each on a scalar loss that they share; returns the largest gradient norm before clipping."""
    gradients = torch.autograd.grad(loss, [optimiser.parameter for optimiser in optimisers])
    steps = zip(optimisers, gradients, strict=True)
    return torch.stack([optimiser.descend(gradient, schedule) for optimiser, gradient in steps]).max()
