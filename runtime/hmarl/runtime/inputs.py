"""What an agent is given at a step, checked: by a session before it acts, by a client before anything is sent.

Both refuse the same inputs with the same words. This is on the way of every act, and so it is written for speed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hmarl.runtime.errors import ObservationError, UsageError

Observation = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_FLOAT32: Final = np.dtype(np.float32)
_BOOL: Final = np.dtype(np.bool_)
_ARRAY: Final = np.ndarray
_TRUE: Final = b"\1"
_isfinite: Final = np.isfinite


class InputCheck:
    """Checks observations and masks of one agent. Keeps a buffer: one caller at a time.

    Args:
        observation_shape: of an observation: (size,), or a picture's.
        branches: the number of choices in each branch of the action mask; None for a policy without a mask input.
        observation_dtype: float32, or the bytes of a picture.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        branches: Sequence[int] | None,
        observation_dtype: np.dtype[Any] = _FLOAT32,
    ) -> None:
        self._shape, self._dtype = observation_shape, observation_dtype
        self._numbers = observation_dtype == _FLOAT32
        self._finite, self._finite_bytes = flags(self._shape if self._numbers else (0,))
        self._branches = None if branches is None else branch_slices(branches)
        self._mask_shape = (sum(branches or ()),)

    def checked(self, observation: Observation, action_mask: Mask | None) -> tuple[Observation, Mask | None]:
        """Both as plain arrays in native byte order. Subclasses, memory maps and big-endian arrays are taken as well.

        Args:
            observation: of the shape and type given, finite.
            action_mask: [mask_size] bool, at least one True a branch; None exactly when the policy has no mask input.

        Raises:
            ObservationError: wrong shape, dtype or content.
        """
        if type(observation) is not _ARRAY or observation.dtype != self._dtype or observation.shape != self._shape:
            observation = _plain("observation", observation, self._shape, self._dtype)
        if self._numbers:
            _isfinite(observation, self._finite)
            if 0 in self._finite_bytes:
                raise self._not_finite(observation)
        if self._branches is None:
            if action_mask is not None:
                raise ObservationError("action_mask: got one, but this policy has no mask input: leave it out")
            return observation, None
        if type(action_mask) is not _ARRAY or action_mask.dtype != _BOOL or action_mask.shape != self._mask_shape:
            action_mask = _plain("action_mask", action_mask, self._mask_shape, _BOOL)
        legal = action_mask.tobytes()
        for branch, part in enumerate(self._branches):
            if _TRUE not in legal[part]:
                where = f" in branch {branch}" if len(self._branches) > 1 else ""
                raise ObservationError(f"action_mask: got no legal action{where}, expected at least one True")
        return observation, action_mask

    def _not_finite(self, observation: Observation) -> ObservationError:
        where = tuple(int(index) for index in np.argwhere(~self._finite)[0])
        place = ", ".join(map(str, where))
        return ObservationError(f"observation[{place}]: got {observation[where]}, expected finite numbers")


def flags(shape: tuple[int, ...]) -> tuple[Mask, bytearray]:
    """An array of bools to be written, and its bytes, all of them 1 at first.

    Searching the bytes is several times faster than ``ndarray.all`` on arrays as small as these.
    """
    size = math.prod(shape)
    content = bytearray(_TRUE * max(size, 1))  # some versions of NumPy take no empty buffer
    return np.frombuffer(content, np.bool_)[:size].reshape(shape), content


def branch_slices(branches: Sequence[int]) -> list[slice]:
    """Where each branch of a mask lies, given the number of its choices."""
    return [slice(start, end) for start, end in pairwise(accumulate(branches, initial=0))]


def checked_integer(name: str, value: object) -> int:
    """A seed or a step.

    Raises:
        UsageError: not an integer in [0, 2**64).
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"{name}: got {value!r}, expected an integer") from None
    if not 0 <= number < 2**64:
        raise UsageError(f"{name}: got {number}, expected 0 <= {name} < 2**64")
    return number


def _plain(name: str, got: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A subclass of arrays, or one in another byte order, as a plain native array.

    Raises:
        ObservationError: no array of this shape, kind and width.
    """
    if not isinstance(got, np.ndarray):
        shown = "nothing" if got is None else f"a {type(got).__name__}"
        raise ObservationError(f"{name}: got {shown}, expected a NumPy array of {dtype} {shape}")
    same_kind = (got.dtype.kind, got.itemsize) == (dtype.kind, dtype.itemsize)
    if not same_kind or got.shape != shape:
        cast = "" if same_kind else f"; cast it with .astype(np.{dtype}{'_' if dtype == _BOOL else ''})"
        size = "" if got.shape == shape else f" {got.shape}"
        raise ObservationError(f"{name}: got {got.dtype}{size}, expected {dtype} {shape}{cast}")
    return np.asarray(got, dtype)
