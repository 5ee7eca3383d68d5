"""A team: whatever chooses the actions of all agents of B environments."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec


class Team(Protocol):
    """Acts for all agents of B environments that run side by side.

    Policies served by separate processes, policies in this process and the trainer's own torch policies (which may look
    at ``observation.state``) all look like this to ``evaluate``.
    """

    @property
    def name(self) -> str:
        """For tables."""
        ...

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start B episodes; ``seeds``: [B] int64, the episodes' seeds."""
        ...

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """Actions of all agents, one array per group: [B, N_group, *action_shape].

        Args:
            observation: what is seen now, as NumPy arrays.
            running: [B] bool; rows that have finished need no action (what is returned for them is ignored).
        """
        ...

    def close(self) -> None:
        """Free connections and memory."""
        ...


class RandomTeam:
    """Uniformly random legal actions, the yardstick below every trained team."""

    name = "random"

    def __init__(self, spec: EnvironmentSpec) -> None:
        self._spec = spec
        self._generator = np.random.default_rng(0)

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Seed the draws with the episodes' seeds."""
        self._generator = np.random.default_rng(np.asarray(seeds, dtype=np.uint64))

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """Draw every action uniformly, illegal ones excluded."""
        batch = running.shape[0]
        return tuple(
            sample_actions(group.example.action_space, (batch, len(group.agents)), mask, self._generator)
            for group, mask in zip(self._spec.groups, observation.action_masks, strict=True)
        )

    def close(self) -> None:
        """Nothing to free."""


def sample_actions(
    space: Any, leading: tuple[int, ...], mask: npt.NDArray[np.bool_] | None, generator: np.random.Generator
) -> npt.NDArray[Any]:
    """Uniform legal actions [*leading, *action_shape] of a Discrete, MultiDiscrete or Box space."""
    if hasattr(space, "n"):
        scores = generator.random((*leading, int(space.n)))
        return np.asarray(np.where(mask, scores, -1.0).argmax(-1) if mask is not None else scores.argmax(-1))
    if hasattr(space, "nvec"):
        scores = generator.random((*leading, int(space.nvec.sum())))
        scores = np.where(mask, scores, -1.0) if mask is not None else scores
        branches = np.split(scores, np.cumsum(space.nvec)[:-1], axis=-1)
        return np.stack([branch.argmax(-1) for branch in branches], axis=-1)
    return generator.uniform(space.low, space.high, (*leading, *space.shape)).astype(np.float32)
