"""Adam on flat parameter vectors, with a state that is tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class FlatAdam:
    """``torch.optim.Adam`` on one tensor of parameters, updated in place, with gradient clipping.

    Args:
        theta: [P] or [N, P]; shares its storage, so that every view of it sees the update.
        learning_rate: step size before the schedule's factor.
        max_gradient_norm: the gradient of each row is scaled down to this norm.
    """

    def __init__(self, theta: Tensor, learning_rate: float, max_gradient_norm: float) -> None:
        self.parameter = torch.nn.Parameter(theta)
        self.learning_rate = learning_rate
        self.max_gradient_norm = max_gradient_norm
        self._adam = torch.optim.Adam([self.parameter], lr=learning_rate, eps=1e-5)

    def step(self, loss: Tensor, schedule: float = 1.0) -> Tensor:
        """One descent step on a scalar ``loss``; returns the largest gradient norm before clipping, a scalar."""
        (gradient,) = torch.autograd.grad(loss, self.parameter)
        return self.descend(gradient, schedule)

    def descend(self, gradient: Tensor, schedule: float = 1.0) -> Tensor:
        """``step`` with a gradient in hand, shaped like the parameters."""
        norm = gradient.norm(dim=-1, keepdim=True)
        self.parameter.grad = gradient * (self.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0)
        self._adam.param_groups[0]["lr"] = self.learning_rate * schedule
        self._adam.step()
        return norm.max()

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's moments and step count; empty before the first step."""
        return {key: torch.as_tensor(value) for key, value in self._adam.state[self.parameter].items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        # Adam counts its steps on the CPU, wherever the parameters live.
        device = self.parameter.device
        self._adam.state[self.parameter] = {
            key: value.to("cpu" if key == "step" else device, copy=True) for key, value in state.items()
        }


def descend_all(optimisers: Sequence[FlatAdam], loss: Tensor, schedule: float = 1.0) -> Tensor:
    """One descent step of each on a scalar loss that they share; returns the largest gradient norm before clipping."""
    gradients = torch.autograd.grad(loss, [optimiser.parameter for optimiser in optimisers])
    steps = zip(optimisers, gradients, strict=True)
    return torch.stack([optimiser.descend(gradient, schedule) for optimiser, gradient in steps]).max()
