"""Running normalisation of observations, states and value targets."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningNormaliser:
    """Mean and variance of all data seen so far; frozen while a rollout is collected, so that the policy does not
    drift in it.

    Args:
        shape: shape of the statistics, e.g. [N_group, observation_size]: every agent has its own. With
            [1, observation_size] all agents are pooled into one.
        enabled: False turns ``__call__`` into the identity.
        clip: normalised values are cut off at ± this many standard deviations.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, enabled: bool = True, clip: float = 10.0) -> None:
        self.enabled = enabled
        self.clip = clip
        self.count = torch.zeros((*shape[:-1], 1), dtype=torch.float64, device=device)
        self.mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self.variance = torch.ones(shape, dtype=torch.float64, device=device)
        self.shift, self.scale = self._in_use()

    def _in_use(self) -> tuple[Tensor, Tensor]:
        """What ``__call__`` subtracts and multiplies by, float32."""
        return self.mean.float(), (self.variance + 1e-8).rsqrt().float()

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [..., *shape] float32."""
        return self.scaled(x, self.shift, self.scale)

    def scaled(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """The same by another one's ``shift`` and ``scale``, or by those of many [..., *shape]."""
        if not self.enabled:
            return x
        return ((x - shift) * scale).clamp_(-self.clip, self.clip)

    def update(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Merge a batch [M, *shape] into the statistics (Chan et al. 1979).

        Args:
            x: [M, *shape] float32; [M, N_group, observation_size] also where all agents are pooled.
            weight: [M, *shape[:-1]] 0 or 1, or [M, N_group]; rows of weight 0 (agents that have left) do not count.
        """
        if not self.enabled or x.shape[0] == 0:
            return
        x = x.double().reshape(-1, *self.mean.shape)
        if weight is None:
            added = torch.full((), float(x.shape[0]), dtype=torch.float64, device=x.device)
            batch_variance, batch_mean = torch.var_mean(x, dim=0, correction=0)
        else:
            weight = weight.double().reshape(-1, *self.count.shape)
            added = weight.sum(0)
            batch_mean = (x * weight).sum(0) / added.clamp(min=1.0)
            batch_variance = ((x - batch_mean).square() * weight).sum(0) / added.clamp(min=1.0)
        total = (self.count + added).clamp(min=1.0)
        difference = batch_mean - self.mean
        combined = (
            self.variance * self.count + batch_variance * added + difference.square() * self.count * added / total
        )
        self.mean = self.mean + difference * added / total
        self.variance = torch.where(self.count + added > 0, combined / total, self.variance)
        self.count = self.count + added
        self.shift, self.scale = self._in_use()

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics as tensors."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self.count, self.mean, self.variance = (state[key].clone() for key in ("count", "mean", "variance"))
        self.shift, self.scale = self._in_use()


def seen_as_it_is(rows: tuple[int, ...], device: torch.device) -> RunningNormaliser:
    """What pictures are given: the identity, without statistics; encoders scale them.

    Args:
        rows: the leading sizes of the statistics' shape.
        device: where they would live.
    """
    return RunningNormaliser((*rows, 0), device, enabled=False)


class ValueNormaliser:
    """Scales value targets to mean 0, variance 1 by exponentially weighted moments, so that the critic's loss has one
    scale.

    Source: Yu et al. 2022 (MAPPO), section 5.1; ``decay`` is per update of the critic's targets.
    """

    def __init__(self, device: torch.device, enabled: bool = True, decay: float = 0.99) -> None:
        self.enabled = enabled
        self.decay = decay
        self.moments = torch.zeros(3, dtype=torch.float64, device=device)  # Σ weight, weighted x, weighted x²

    def _mean_std(self) -> tuple[Tensor, Tensor]:
        """Scalars, float32 as the values are, worked out in float64."""
        weight, first, second = self.moments.unbind()
        known = weight > 0
        mean = torch.where(known, first / weight, 0.0)
        variance = torch.where(known, second / weight - mean * mean, 1.0)
        return mean.float(), variance.clamp(min=1e-6).sqrt().float()

    def update(self, targets: Tensor) -> None:
        """Take in the value targets of one rollout, any shape; of none, nothing."""
        if not targets.numel():
            return
        targets = targets.double()
        batch = torch.stack([torch.ones_like(targets.mean()), targets.mean(), targets.square().mean()])
        self.moments = self.decay * self.moments + (1 - self.decay) * batch

    def normalise(self, values: Tensor) -> Tensor:
        """Returns → the critic's units."""
        if not self.enabled:
            return values
        mean, std = self._mean_std()
        return (values - mean) / std

    def denormalise(self, values: Tensor) -> Tensor:
        """The critic's units → returns."""
        if not self.enabled:
            return values
        mean, std = self._mean_std()
        return values * std + mean

    def state_dict(self) -> dict[str, Tensor]:
        """The moments."""
        return {"moments": self.moments}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self.moments = state["moments"].clone()
