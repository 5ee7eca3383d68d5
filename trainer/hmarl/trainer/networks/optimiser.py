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

    Source: Kingma and Ba 2015, Algorithm 1. ``torch.optim.Adam`` makes the same operations in the same order, to the
    last bit, but spends more time around them than small networks take to be evaluated.
    """

    def __init__(self, theta: Tensor, learning_rate: float, max_gradient_norm: float) -> None:
        self.parameter = torch.nn.Parameter(theta)
        self.learning_rate = self.step_size = learning_rate
        self.max_gradient_norm = max_gradient_norm
        self._state: dict[str, Tensor] = {}

    @property
    def steps(self) -> int:
        """How many have been taken."""
        return int(self._state["step"]) if self._state else 0

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
        state = self._state = self._state or self._new_state()
        state["step"] += 1
        steps, self.step_size = state["step"].item(), self.learning_rate * schedule
        # m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(clipped, 1 - _DECAY)
        square.mul_(_SQUARE_DECAY).addcmul_(clipped, clipped, value=1 - _SQUARE_DECAY)
        # θ ← θ − α · m̂ / (√v̂ + ε)
        root = (square.sqrt() / (1 - _SQUARE_DECAY**steps) ** 0.5).add_(_EPSILON)
        self.parameter.addcdiv_(mean, root, value=-(self.step_size / (1 - _DECAY**steps)))
        return norm.squeeze(-1)

    def _new_state(self) -> dict[str, Tensor]:
        """Before the first step. Steps are counted on the CPU, wherever the parameters live."""
        like = self.parameter.detach()
        return {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(like), "exp_avg_sq": torch.zeros_like(like)}

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's moments and step count; empty before the first step."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        device = self.parameter.device
        self._state = {key: value.to("cpu" if key == "step" else device, copy=True) for key, value in state.items()}

    # --- several at once --------------------------------------------------------------------------------------------

    @classmethod
    def stacked(cls, optimisers: Sequence[FlatAdam]) -> FlatAdam:
        """One for the rows [S, P] of several that are set alike and have taken equally many steps."""
        first = optimisers[0]
        rows = torch.stack([each.parameter.detach() for each in optimisers])
        joint = cls(rows, first.learning_rate, first.max_gradient_norm)
        for key, value in first.state_dict().items():
            alike = value.clone() if key == "step" else torch.stack([each.state_dict()[key] for each in optimisers])
            joint._state[key] = alike
        return joint

    @torch.no_grad()
    def give_back(self, optimisers: Sequence[FlatAdam]) -> None:
        """To each of those that were ``stacked`` its row, and its part of the state."""
        for row, each in enumerate(optimisers):
            each.parameter.copy_(self.parameter[row])
            each.step_size = self.step_size
            each.load_state_dict({key: v if key == "step" else v[row] for key, v in self._state.items()})


def descend_all(optimisers: Sequence[FlatAdam], loss: Tensor, schedule: float = 1.0) -> Tensor:
    """One descent step of each on a scalar loss that they share; returns the largest gradient norm before clipping."""
    gradients = torch.autograd.grad(loss, [optimiser.parameter for optimiser in optimisers])
    steps = zip(optimisers, gradients, strict=True)
    return torch.stack([optimiser.descend(gradient, schedule) for optimiser, gradient in steps]).max()
