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

    Source: Kingma and Ba 2015, Algorithm 1. ``torch.optim.Adam`` makes the same operations in the same order, to the
    last bit, but spends more time around them than small networks take to be evaluated.
    """

    def __init__(self, theta: Tensor, learning_rate: float, max_gradient_norm: float) -> None:
        self.parameter = torch.nn.Parameter(theta)
        self.learning_rate = self.step_size = learning_rate
        self.max_gradient_norm = max_gradient_norm
        self.steps = 0
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
        steps, self.step_size = self.steps, self.learning_rate * schedule
        # m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²
        mean, square = self._moments
        mean.lerp_(clipped, 1 - _DECAY)
        square.mul_(_SQUARE_DECAY).addcmul_(clipped, clipped, value=1 - _SQUARE_DECAY)
        # θ ← θ − α · m̂ / (√v̂ + ε)
        root = (square.sqrt() / (1 - _SQUARE_DECAY**steps) ** 0.5).add_(_EPSILON)
        self.parameter.addcdiv_(mean, root, value=-(self.step_size / (1 - _DECAY**steps)))
        return norm.squeeze(-1)

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's moments and step count; empty before the first step. Steps are counted by the host."""
        if self._moments is None:
            return {}
        return {"step": torch.tensor(float(self.steps)), "exp_avg": self._moments[0], "exp_avg_sq": self._moments[1]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        if not state:
            self.steps, self._moments = 0, None
            return
        device = self.parameter.device
        self.steps = int(state["step"])
        self._moments = state["exp_avg"].to(device, copy=True), state["exp_avg_sq"].to(device, copy=True)

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
