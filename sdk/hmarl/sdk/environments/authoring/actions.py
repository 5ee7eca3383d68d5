"""Checks the actions that an environment is given, so that what it computes with is in range."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.manifest import BoxSpace
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentGroup


def checked_actions(
    actions: tuple[npt.NDArray[Any], ...], groups: tuple[AgentGroup, ...], batch_size: int
) -> tuple[npt.NDArray[Any], ...]:
    """The actions as an environment may use them; the first thing that its ``step`` does, before anything changes.

    Args:
        actions: as given to ``step``: one array per group.
        groups: ``EnvironmentSpec.groups``.
        batch_size: B.

    Returns:
        Discrete actions as contiguous int64 [B, N_group] in range, those of a Box as float32 [B, N_group, D] clipped to
        its bounds.

    Raises:
        UsageError: a wrong number of arrays, a wrong shape or kind of number, a discrete action out of range, or NaN.
    """
    if len(actions) != len(groups):
        raise UsageError(f"actions: got {len(actions)} arrays, expected {len(groups)}, one per group of agents")
    return tuple(
        _checked_group_actions(np.asarray(array), group, batch_size)
        for array, group in zip(actions, groups, strict=True)
    )


def _checked_group_actions(array: npt.NDArray[Any], group: AgentGroup, batch_size: int) -> npt.NDArray[Any]:
    agent = group.example
    continuous = isinstance(agent.action_space_model, BoxSpace)
    shape = (batch_size, len(group.agents), *agent.action_shape)
    kind = "f" if continuous else "iu"
    if array.shape != shape or array.dtype.kind not in kind:
        wanted = f"{agent.action_dtype} {list(shape)}"
        raise UsageError(f"actions of '{agent.id}': got {array.dtype} {list(array.shape)}, expected {wanted}")
    if continuous:
        clipped: npt.NDArray[np.float32] = np.clip(array.astype(np.float32, copy=False), *agent.action_bounds)
        if np.isnan(clipped).any():
            raise UsageError(f"actions of '{agent.id}': got NaN")
        return clipped
    numbers = np.ascontiguousarray(array, dtype=np.int64)
    # Read as unsigned, a negative number is a huge one: one pass checks both ends.
    if numbers.view(np.uint64).max() >= agent.mask_size:
        raise UsageError(
            f"actions of '{agent.id}': got {numbers.min()} to {numbers.max()}, expected 0 to {agent.mask_size - 1}"
        )
    return numbers
