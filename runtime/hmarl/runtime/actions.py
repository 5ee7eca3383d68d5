"""What an agent is to do, checked: by a session before it answers, by a client and a control loop before it is done.

This is on the way of every act, and so it is written for speed.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hmarl.runtime.inputs import branch_slices
from hmarl.runtime.manifest import ActionSpaceModel, BoxSpace, DiscreteSpace, branch_sizes

_ARRAY: Final = np.ndarray
_TRUE: Final = b"\1"
_isfinite: Final = math.isfinite


class ActionCheck:
    """Checks actions of one agent.

    Continuous ones have to be finite and no more: the rounding of a graph that rescales may carry them past a bound, so
    environments and control loops bring them within it.

    Args:
        space: the agent's.
    """

    def __init__(self, space: ActionSpaceModel) -> None:
        sizes = branch_sizes(space)
        self._one_choice = space.n if isinstance(space, DiscreteSpace) else 0
        names = ["action"] if self._one_choice else [f"action[{place}]" for place in range(len(sizes))]
        starts = [part.start for part in branch_slices(sizes)]
        self._branches = list(zip(names, sizes, starts, strict=True))
        self._all_legal = _TRUE * sum(sizes)
        self._continuous = isinstance(space, BoxSpace)
        self._kinds = "iuf" if self._continuous else "iu"
        width = len(space.low) if isinstance(space, BoxSpace) else len(sizes)
        self._shape = () if self._one_choice else (width,)

    def problem(self, action: int | npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None = None) -> str | None:
        """Why this is no action of the agent, in words that name the field; None if it is one.

        Args:
            action: an int, or an array, which should be [*action_shape] of integers, or of numbers where continuous.
            action_mask: [mask_size] bool, the legal choices; None where all are.
        """
        if type(action) is int and 0 <= action < self._one_choice and (action_mask is None or action_mask[action]):
            return None
        numbers = action if type(action) is _ARRAY else np.asarray(action)
        if numbers.shape != self._shape or numbers.dtype.kind not in self._kinds:
            kind = "numbers" if self._continuous else "integers"
            return f"action: got {numbers.dtype} {numbers.shape}, expected {kind} {self._shape}"
        chosen = numbers.tolist() if self._shape else [numbers.item()]
        if self._continuous:
            # For as few numbers as these a sum takes a third of the time of np.isfinite.
            return None if _isfinite(sum(chosen)) else self._not_finite(chosen)
        legal = self._all_legal if action_mask is None else action_mask.tobytes()
        for choice, (name, size, start) in zip(chosen, self._branches, strict=True):
            if not 0 <= choice < size:
                return f"{name}: got {choice}, expected a choice from 0 to {size - 1}"
            if not legal[start + choice]:
                return f"{name}: got {choice}, expected a choice that the action mask allows"
        return None

    def _not_finite(self, numbers: list[float]) -> str | None:
        for place, number in enumerate(numbers):
            if not _isfinite(number):
                return f"action[{place}]: got {number}, expected finite numbers"
        return None  # large ones, whose sum is not
