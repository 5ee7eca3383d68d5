"""PettingZoo's spaces as flat vectors: observations in a stated order, actions back in the environment's own form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten

from hmarl.sdk.environments.workers.process import shown
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import ActionSpace, ImageFormat, float32_box

MASK_KEY = "action_mask"
# By so much of its size a number may pass a bound of its space: what float32 rounds.
_ROUNDING = 1e-6


class ObservationFlattener:
    """Turns one agent's observation into a vector: of float32, or of a picture's numbers.

    The order is that of ``gymnasium.spaces.flatten``: a Dict by the order of its space's keys, a Tuple by position,
    arrays row by row, Discrete and MultiDiscrete as one-hot vectors. The key ``action_mask`` of a Dict is left out.

    Args:
        agent: the agent's id, for messages.
        space: its observation space.
        images: whether a Box of rank 3 (height, width, channels) is a picture.

    Attributes:
        image: what picture the observation is; None where it is none.
        size: length of the vector.
        layout: (name, length) of its parts in order, e.g. ``(("camera.depth", 64), ("speed", 1))``.
        mask_inside: whether the observation carries the action mask.

    Raises:
        UsageError: the space has no vector of a fixed length (Graph, Sequence), or one of length 0.
    """

    def __init__(self, agent: str, space: spaces.Space[Any], images: bool = True) -> None:
        self.mask_inside = isinstance(space, spaces.Dict) and MASK_KEY in space.spaces
        if isinstance(space, spaces.Dict) and self.mask_inside:
            space = spaces.Dict({key: part for key, part in space.spaces.items() if key != MASK_KEY})
        self._space = space
        self.image = image_format(space) if images and isinstance(space, spaces.Box) else None
        self._is_array = isinstance(space, spaces.Box | spaces.MultiBinary)
        try:
            self.size = flatdim(space)
            self._leaves = tuple(_leaves(space))
        except (NotImplementedError, ValueError) as error:
            raise UsageError(f"agent '{agent}': observation space {space} has no fixed length: {error}") from error
        self.layout = tuple((leaf.name or "observation", leaf.end - leaf.start) for leaf in self._leaves)
        if self.size == 0:
            raise UsageError(
                f"agent '{agent}': observation space {space} holds no numbers, expected at least one (may be constant)"
            )

    def __call__(self, observation: Any) -> npt.NDArray[Any]:
        """Observation -> [size] numbers that float32 is made of, or those of a picture.

        Raises:
            ValueError: no such vector can be made of it.
        """
        try:
            if self._is_array:
                return as_pixels(_numbers(observation, self.size), self.image)
            vector = np.zeros(self.size, np.float32)
            for leaf in self._leaves:
                part = observation
                for key in leaf.path:
                    part = part[key]
                leaf.write(part, vector)
            return vector
        except Exception as error:
            found = self.misfit(observation, bounds=False)
            raise ValueError(str(error) if found is None else f"{found.what}: got {found.got}") from error

    def misfit(self, observation: Any, *, bounds: bool) -> Misfit | None:
        """What keeps an observation, its mask apart, from being one of the space; see ``misfit``."""
        return misfit(self._space, observation, "observation", bounds=bounds)


def image_format(box: spaces.Box | npt.NDArray[Any]) -> ImageFormat | None:
    """What picture a space's values, or an array, are: of rank 3, uint8 or floats; None otherwise."""
    shape, kind = box.shape, np.dtype(box.dtype)
    if len(shape) != 3 or 0 in shape or not (kind == np.uint8 or kind.kind == "f"):
        return None
    height, width, channels = (int(side) for side in shape)
    return ImageFormat(height, width, channels, "uint8" if kind == np.uint8 else "float32")


def as_pixels(numbers: npt.NDArray[Any], image: ImageFormat | None) -> npt.NDArray[Any]:
    """Numbers of any type in a picture's own, the same array where they are; as they are where there is no picture.

    Raises:
        ValueError: they are no bytes, and the picture's type is uint8.
    """
    if image is None or image.dtype != "uint8" or numbers.dtype == np.uint8:
        return numbers
    pixels = numbers.astype(np.uint8)
    if (pixels != numbers).any():
        raise ValueError(f"got a picture of {numbers.dtype}, expected whole numbers from 0 to 255")
    return pixels


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
        return Misfit(f"{name} is missing", "None")
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


class _Leaf(NamedTuple):
    """A part of an observation that has no parts.

    Attributes:
        name: where it is, for people; empty when it is all of the observation.
        path: keys and positions that lead to it.
        space: its own.
        start, end: its place in the vector.
    """

    name: str
    path: tuple[Any, ...]
    space: spaces.Space[Any]
    start: int
    end: int

    def write(self, value: Any, vector: npt.NDArray[np.float32]) -> None:
        """Write a value to its place in the vector, which is all zero there, as ``gymnasium.spaces.flatten`` does."""
        space = self.space
        if isinstance(space, spaces.Box | spaces.MultiBinary):
            vector[self.start : self.end] = _numbers(value, self.end - self.start)
        elif isinstance(space, spaces.Discrete):
            choice = int(value.reshape(()) if isinstance(value, np.ndarray) else value) - int(space.start)
            _require_choices(0 <= choice < int(space.n))
            vector[self.start + choice] = 1.0
        elif isinstance(space, spaces.MultiDiscrete):
            choices = _numbers(value, space.nvec.size) - np.reshape(space.start, -1)
            sizes = np.reshape(space.nvec, -1)
            _require_choices(((choices >= 0) & (choices < sizes)).all())
            vector[self.start + np.cumsum(sizes) - sizes + choices.astype(np.int64)] = 1.0
        else:
            vector[self.start : self.end] = flatten(space, value)


def _leaves(space: spaces.Space[Any], name: str = "", path: tuple[Any, ...] = (), start: int = 0) -> Iterator[_Leaf]:
    parts: list[tuple[Any, spaces.Space[Any], str]]
    if isinstance(space, spaces.Dict):
        parts = [(key, part, f"{name}.{key}" if name else str(key)) for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [(position, part, f"{name}[{position}]") for position, part in enumerate(space.spaces)]
    else:
        yield _Leaf(name, path, space, start, start + flatdim(space))
        return
    for key, part, its_name in parts:
        yield from _leaves(part, its_name, (*path, key), start)
        start += flatdim(part)


def _numbers(value: Any, size: int) -> npt.NDArray[Any]:
    """``value`` as [size] numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"observation is no array of numbers: got {shown(value)}")
    if array.size != size:
        raise ValueError(f"got an observation of {array.size} numbers, expected {size}")
    return array if array.ndim == 1 else array.reshape(-1)


def _require_choices(fits: Any) -> None:
    if not fits:
        raise ValueError("observation is outside its space's bounds")


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
