"""The scale of values that are learnt from replayed experience."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.networks.normalisation import RunningNormaliser

# Rewards that are all alike add up to √H, scaled; values beyond this many times as much are none.
_FAR_BEYOND = 10.0


class RewardScale:
    """What rewards are multiplied by, and from where values count, by the moments of all steps so far.

    Rewards are kept in the buffer as they came, and scaled when they are learnt from.

    Args:
        gamma: discount per step.
        spec: of the environment, whose declared horizon bounds the steps over which rewards add up.
        enabled: False leaves rewards as they are.

    Attributes:
        moments: of the team's reward, and of whether a step terminates.
    """

    def __init__(self, gamma: float, spec: EnvironmentSpec, device: torch.device, enabled: bool = True) -> None:
        self.moments = RunningNormaliser((2,), device)
        self._gamma, self._horizon, self._enabled = gamma, spec.declared_horizon, enabled

    def update(self, rollout: Rollout) -> None:
        """Take in a rollout's steps."""
        steps = torch.stack([rollout.team_rewards, rollout.terminated.float()], dim=-1)
        self.moments.update(steps.flatten(0, 1))

    @property
    def factor(self) -> Tensor:
        """1 / (the rewards' root mean square · √H), H being the steps over which they add up; a float32 scalar."""
        return self._exact_factor.float()

    @property
    def offset(self) -> Tensor:
        """What an average step is worth, r̄ / (1 − γ·(1 − p)) with p the share of steps that terminate, scaled; a
        float32 scalar.

        Values are this plus what the networks say. Without it values that start at 0 are optimistic where rewards are
        negative: whatever was seen least looks best, and the agents flee to where nothing has been learnt. It depends
        on no value, so that it cannot drive the values that depend on it.
        """
        reward, terminates = self.moments.mean.unbind()
        if not self._enabled:
            return torch.zeros_like(reward).float()
        return (self._exact_factor * reward / (1.0 - self._gamma * (1.0 - terminates)).clamp(min=1e-3)).float()

    @property
    def _exact_factor(self) -> Tensor:
        moments = self.moments
        if not self._enabled:
            return torch.ones_like(moments.mean[0])
        mean_square = moments.mean[0].square() + moments.variance[0]
        discounted = 1.0 / max(1.0 - self._gamma, 1e-3)
        return 1.0 / (mean_square * min(discounted, self._horizon or discounted)).sqrt().clamp(min=1e-2)


def runaway_advice(
    metrics: dict[str, float], gamma: float, normalised: bool, step_size: str = "learning_rate"
) -> str | None:
    """Advice where scaled values have left what rewards can add up to; None where they have not, or are not scaled.

    Args:
        metrics: of an update, with ``q_mean``.
        gamma: discount per step.
        normalised: whether rewards are scaled.
        step_size: name of the setting that is Adam's step size for the values.
    """
    limit = _FAR_BEYOND / max(1.0 - gamma, 1e-3) ** 0.5
    if not normalised or abs(metrics.get("q_mean", 0.0)) < limit:
        return None
    return (
        f"the values run away: q_mean is beyond ±{limit:.0f}, which no rewards add up to. Lower algorithm.target_rate "
        f"or algorithm.{step_size}, or take fewer algorithm.gradient_steps per rollout"
    )
