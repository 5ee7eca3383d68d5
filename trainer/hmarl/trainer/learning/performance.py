"""J of the policies that collect, from their rollouts, and what every update brought it."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.trainer.learning.metrics import numbers


class Performance:
    """J(π_k), the mean team reward per step of the rollout that π_k collected, times 1/(1 − γ), and its differences.

    The improvement that an update brings is known only once the next rollout has been collected:
    ``realised_improvement`` in the metrics of update k is J(π_k) − J(π_{k−1}), of the step that update k − 1 took.

    Args:
        gamma: the discount; at 1 nothing is reported.
        device: of the rollouts.
    """

    def __init__(self, gamma: float, device: torch.device) -> None:
        self.gamma = gamma
        # J of the policy before, and whether it is known; a tensor, because checkpoints hold it.
        self._before = torch.zeros(2, dtype=torch.float64, device=device)

    def of(self, team_rewards: Tensor) -> dict[str, float]:
        """Metrics of a rollout's rewards [T, B]."""
        if self.gamma >= 1.0:
            return {}
        reward, before, there = numbers([team_rewards.double().mean(), *self._before.unbind()])
        now = reward / (1.0 - self.gamma)
        self._before.copy_(torch.tensor([now, 1.0]))
        return {"performance": now} | ({"realised_improvement": now - before} if there > 0 else {})

    def state_dict(self) -> dict[str, Tensor]:
        """What the next update compares itself with."""
        return {"performance": self._before}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned; checkpoints that are older than this hold nothing of it."""
        if "performance" in state:
            self._before.copy_(state["performance"])
