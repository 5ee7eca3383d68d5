"""PettingZoo's spaces as flat vectors: observations in a stated order, actions back in the environment's own form."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import ActionSpace

MASK_KEY = "action_mask"
# By so much of its size a number may pass a bound of its space: what float32 rounds.
_ROUNDING = 1e-6


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
        UsageError: the space has no vector of a fixed length (Graph, Sequence), or one of length 0.
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
        if self.size == 0:
            raise UsageError(
                f"agent '{agent}': observation space {space} holds no numbers, expected at least one (may be constant)"
            )

    def __call__(self, observation: Any) -> npt.NDArray[np.float32]:
        """Observation -> [size] float32.

        Raises:
            ValueError: no such vector can be made of it.
        """
        if not self._is_array:
            found = self.misfit(observation, bounds=False)
            if found is not None:
                raise ValueError(f"{found.what}: got {found.got}")
            observation = flatten(self._space, observation)
        vector = np.asarray(observation)
        if vector.dtype.kind not in "fiub":
            raise ValueError(f"observation is no array of numbers: got {shown(observation)}")
        if vector.size != self.size:
            raise ValueError(f"got an observation of {vector.size} numbers, expected {self.size}")
        return vector.astype(np.float32, copy=False).reshape(-1)

    def misfit(self, observation: Any, *, bounds: bool) -> Misfit | None:
        """What keeps an observation, its mask apart, from being one of the space; see ``misfit``."""
        return misfit(self._space, observation, "observation", bounds=bounds)


class Misfit(NamedTuple):
    """Why a value is none of its space: what is wrong, the same words every time, and the value that was got."""

    what: str
    got: str


def misfit(space: spaces.Space[Any], value: Any, name: str, *, bounds: bool) -> Misfit | None:
    """What keeps a value from being one of a space, None when nothing does.

    Types of numbers do not matter, for all of them become float32.

    Args:
        space: of any kind.
        value: looked at.
        name: of the value, for messages.
        bounds: look at the bounds and shapes of arrays too; what lies outside can still be made a vector of.
    """
    if value is None:
        return Misfit(f"{name} is None", "None")
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _part_misfit(space, value, name, bounds)
    limits = _limits(space)
    if limits is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        return Misfit(f"{name} is no array of numbers", shown(value))
    if bounds or not isinstance(space, spaces.Box | spaces.MultiBinary):
        return _range_misfit(space, limits, array, name)
    return None


def _limits(space: spaces.Space[Any]) -> tuple[Any, Any] | None:
    """Least and largest numbers of a space, None where its values are no numbers."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(space.start, np.int64)
        return start, start + np.asarray(space.nvec, np.int64) - 1
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start) + int(space.n) - 1
    return None


def _part_misfit(space: spaces.Dict | spaces.Tuple, value: Any, name: str, bounds: bool) -> Misfit | None:
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            return Misfit(f"{name} is no dictionary", shown(value))
        missing = next((key for key in space.spaces if key not in value), None)
        if missing is not None:
            return Misfit(f"{name} has no '{missing}'", f"only {', '.join(map(str, value)) or 'an empty one'}")
        parts = [(part, value[key], f"{name}.{key}") for key, part in space.spaces.items()]
    else:
        if not isinstance(value, list | tuple) or len(value) != len(space.spaces):
            return Misfit(f"{name} is no tuple of {len(space.spaces)}", shown(value))
        parts = [(part, value[index], f"{name}[{index}]") for index, part in enumerate(space.spaces)]
    found = (misfit(part, each, path, bounds=bounds) for part, each, path in parts)
    return next((one for one in found if one is not None), None)


def _range_misfit(
    space: spaces.Space[Any], limits: tuple[Any, Any], array: npt.NDArray[Any], name: str
) -> Misfit | None:
    shape = space.shape or ()
    # Sides of length 1 do not matter: a number is an array of one element.
    if [side for side in array.shape if side != 1] != [side for side in shape if side != 1]:
        return Misfit(f"{name} does not have its space's shape {shape}", f"shape {array.shape}")
    values = array.reshape(shape).astype(np.float64)
    least, most = (np.broadcast_to(np.asarray(limit, np.float64), shape) for limit in limits)
    margin = _ROUNDING * np.maximum(1.0, np.abs(values))
    outside = (values < least - margin) | (values > most + margin)
    if not outside.any():
        return None
    place = tuple(np.argwhere(outside)[0])
    return Misfit(
        f"{name} is outside its space's bounds", f"{values[place]:g}, expected {least[place]:g} to {most[place]:g}"
    )


def shown(value: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(value, np.ndarray) and value.size > 1:
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return " ".join(reprlib.repr(value).split())


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
    if not space.is_bounded():
        raise UsageError(f"agent '{agent}': got the unbounded action space {space}, expected finite bounds")
    low, high = space.low, space.high
    flat = spaces.Box(low.reshape(-1).astype(np.float32), high.reshape(-1).astype(np.float32), dtype=np.float32)

    def restore(action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # float32 can round a float64 bound outwards.
        return np.asarray(np.clip(action.reshape(low.shape).astype(space.dtype), low, high))

    return flat, restore
