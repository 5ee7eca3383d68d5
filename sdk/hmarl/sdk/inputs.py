"""What an agent is given at a step, checked before anything is sent or a fallback is asked."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.runtime.bundle import ObservationError
from hmarl.sdk.spaces import ActionSpace, AgentSpec

_FLOAT32 = np.dtype(np.float32)
_BOOL = np.dtype(np.bool_)

Observation = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class InputCheck:
    """Checks observations and masks against an agent's spec, with the words that a session uses for the same.

    Args:
        spec: the agent.
    """

    def __init__(self, spec: AgentSpec) -> None:
        self._spec = spec
        self._shape = (spec.observation_size,)
        self._mask_shape = (spec.mask_size,)
        self._finite = np.ones(self._shape, np.bool_)
        self._branches = mask_branches(spec.action_space) if spec.has_action_mask else []

    def checked(self, observation: Observation, action_mask: Mask | None) -> tuple[Observation, Mask | None]:
        """Both as plain arrays in native byte order. Subclasses, memory maps and big-endian arrays are taken as well.

        Args:
            observation: [observation_size] float32, finite.
            action_mask: [mask_size] bool, at least one True a branch; None exactly when the policy has no mask input.

        Raises:
            ObservationError: wrong shape, dtype or content.
        """
        if type(observation) is not np.ndarray or observation.dtype != _FLOAT32:
            observation = _plain("observation", observation, self._shape, _FLOAT32)
        if observation.shape != self._shape:
            raise _wrong_array("observation", observation, self._shape, _FLOAT32)
        # Searching the bytes is several times faster than ndarray.all on arrays this small.
        if b"\0" in np.isfinite(observation, self._finite).tobytes():
            where = np.flatnonzero(~self._finite)[0]
            raise ObservationError(f"observation[{where}]: got {observation[where]}, expected finite numbers")
        if self._spec.has_action_mask:
            action_mask = self._checked_mask(action_mask)
        elif action_mask is not None:
            raise ObservationError("action_mask: got one, but this policy has no mask input: leave it out")
        return observation, action_mask

    def _checked_mask(self, mask: Mask | None) -> Mask:
        if type(mask) is not np.ndarray or mask.dtype != _BOOL:
            mask = _plain("action_mask", mask, self._mask_shape, _BOOL)
        if mask.shape != self._mask_shape:
            raise _wrong_array("action_mask", mask, self._mask_shape, _BOOL)
        legal = mask.tobytes()
        for branch, part in enumerate(self._branches):
            if b"\1" not in legal[part]:
                where = f" in branch {branch}" if len(self._branches) > 1 else ""
                raise ObservationError(f"action_mask: got no legal action{where}, expected at least one True")
        return mask


def mask_branches(space: ActionSpace) -> list[slice]:
    """Where each branch of a mask lies: all of it for Discrete, one part per branch for MultiDiscrete."""
    if isinstance(space, spaces.MultiDiscrete):
        ends = np.cumsum([0, *space.nvec]).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]
    return [slice(0, int(space.n))] if isinstance(space, spaces.Discrete) else []


def _plain(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A subclass of arrays, or another byte order, as a plain native array."""
    if isinstance(array, np.ndarray) and (array.dtype.kind, array.itemsize) == (dtype.kind, dtype.itemsize):
        return np.asarray(array, dtype)
    raise _wrong_array(name, array, shape, dtype)


def _wrong_array(name: str, got: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ObservationError:
    if not isinstance(got, np.ndarray):
        shown = "nothing" if got is None else f"a {type(got).__name__}"
        return ObservationError(f"{name}: got {shown}, expected a NumPy array of {dtype} {shape}")
    cast = f"; cast it with .astype(np.{dtype}{'_' if dtype == _BOOL else ''})" if got.dtype != dtype else ""
    size = f" {got.shape}" if got.shape != shape else ""
    return ObservationError(f"{name}: got {got.dtype}{size}, expected {dtype} {shape}{cast}")
