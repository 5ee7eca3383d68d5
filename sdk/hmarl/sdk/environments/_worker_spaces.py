"""PettingZoo's spaces as flat vectors: observations in a stated order, actions back in the environment's own form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import ActionSpace, float32_box

MASK_KEY = "action_mask"


class ObservationFlattener:
    """Turns one agent's observation into a float32 vector.

    The order is that of ``gymnasium.spaces.flatten``: a Dict by the order of its space's keys, a Tuple by position,
    arrays row by row, Discrete and MultiDiscrete as one-hot vectors. The key ``action_mask`` of a Dict is left out.

    Args:
        agent: the agent's id, for messages.
        space: its observation space.

    Attributes:
        size: length of the vector.
        layout: (name, length) of its parts in order, e.g. ``(("camera.depth", 64), ("speed", 1))``.
        mask_inside: whether the observation carries the action mask.

    Raises:
        UsageError: the space has no vector of a fixed length (Text, Graph, Sequence).
    """

    def __init__(self, agent: str, space: spaces.Space[Any]) -> None:
        self.mask_inside = isinstance(space, spaces.Dict) and MASK_KEY in space.spaces
        if isinstance(space, spaces.Dict) and self.mask_inside:
            space = spaces.Dict({key: part for key, part in space.spaces.items() if key != MASK_KEY})
        self._space = space
        self._is_array = isinstance(space, spaces.Box | spaces.MultiBinary)
        try:
            self.size = flatdim(space)
            self.layout = tuple(_layout(space, ""))
        except (NotImplementedError, ValueError) as error:
            raise UsageError(f"agent '{agent}': observation space {space} has no fixed length: {error}") from error

    def __call__(self, observation: Any) -> npt.NDArray[np.float32]:
        """Observation -> [size] float32."""
        if self.mask_inside:
            observation = {key: part for key, part in observation.items() if key != MASK_KEY}
        vector = observation if self._is_array else flatten(self._space, observation)
        return np.asarray(vector, dtype=np.float32).reshape(-1)


def _layout(space: spaces.Space[Any], prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _layout(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(space, spaces.Tuple):
        for position, part in enumerate(space.spaces):
            yield from _layout(part, f"{prefix}[{position}]")
    else:
        yield prefix or "observation", flatdim(space)


def convert_action_space(agent: str, space: spaces.Space[Any]) -> tuple[ActionSpace, Callable[[npt.NDArray[Any]], Any]]:
    """The action space as a policy sees it, and the way back to the environment's own actions.

    Discrete starts at 0 (the environment's ``start`` is added on the way back); MultiDiscrete and Box become
    one-dimensional; MultiBinary becomes MultiDiscrete with two choices per bit.

    Args:
        agent: the agent's id, for messages.
        space: the environment's action space.

    Returns:
        (space, restore): ``restore`` takes one action of ``space`` as an array and returns one of the original.

    Raises:
        UsageError: an unbounded or integer Box, or a space of another kind.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return spaces.Discrete(int(space.n)), lambda action: int(action) + start
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return _convert_branches(space)
    if isinstance(space, spaces.Box):
        return _convert_box(agent, space)
    raise UsageError(
        f"agent '{agent}': got action space {space}, expected Discrete, MultiDiscrete, MultiBinary or a bounded Box"
    )


def _convert_branches(
    space: spaces.MultiDiscrete | spaces.MultiBinary,
) -> tuple[ActionSpace, Callable[[npt.NDArray[Any]], Any]]:
    shape, dtype = space.shape, space.dtype
    if isinstance(space, spaces.MultiBinary):
        choices, start = np.full(int(np.prod(shape)), 2), np.zeros(shape, dtype=np.int64)
    else:
        choices, start = space.nvec.reshape(-1), np.asarray(space.start)

    def restore(action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(action.reshape(shape) + start).astype(dtype)

    return spaces.MultiDiscrete(choices), restore


def _convert_box(agent: str, space: spaces.Box) -> tuple[ActionSpace, Callable[[npt.NDArray[Any]], Any]]:
    if not np.issubdtype(space.dtype, np.floating):
        raise UsageError(f"agent '{agent}': got an action Box of dtype {space.dtype}, expected a floating-point one")
    flat, low, high = float32_box(agent, space), space.low, space.high

    def restore(action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # Where no float32 lies between the bounds, the nearest one lies outside.
        return np.asarray(np.clip(action.reshape(low.shape).astype(space.dtype), low, high))

    return flat, restore
