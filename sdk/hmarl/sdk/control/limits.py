"""The safety filter: what a robot is told stays within bounds and changes no faster than it may."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hmarl.runtime.actions import ActionCheck
from hmarl.runtime.manifest import BoxSpace
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec

Values: TypeAlias = float | tuple[float, ...] | list[float] | npt.NDArray[Any]
Limit = Literal["bounds", "rate"]


@dataclass(frozen=True, eq=False)
class ActionLimits:
    """How far, and how fast, one agent's continuous actions may go; discrete ones are left alone.

    Each is a number for all components, or one for each. Units are those of the actions.

    Attributes:
        low: the lowest that is let through; None: the lower bound of the action space, below which none goes anyway.
        high: the highest likewise.
        max_rate: the greatest change in units per second; None: any.
        initial: the command in force when a loop begins, from which the first action may go as far as a period allows;
            None: the first action is not limited in rate.
    """

    low: Values | None = None
    high: Values | None = None
    max_rate: Values | None = None
    initial: Values | None = None


class ActionFilter:
    """``ActionLimits`` at work for one agent.

    Args:
        limits: of this agent.
        spec: the agent.
        period_s: of the loop. However long after the one before it is written, an action may differ from it by what
            one period allows: a loop that was held up makes no leap.

    Raises:
        UsageError: a limit has the wrong shape or sign, or no action lies within the bounds.
    """

    def __init__(self, limits: ActionLimits, spec: AgentSpec, period_s: float) -> None:
        self._spec = spec
        self._period_s = period_s
        self._continuous = isinstance(spec.action_space_model, BoxSpace)
        self._problem = ActionCheck(spec.action_space_model).problem
        self._last: npt.NDArray[Any] | None = None
        self._last_s = -math.inf
        if not self._continuous:
            self._refuse_limits(limits)
            return
        lowest, highest = spec.action_bounds
        self._low = np.maximum(lowest, self._values("low", limits.low, lowest))
        self._high = np.minimum(highest, self._values("high", limits.high, highest))
        if (self._low > self._high).any():
            raise UsageError(
                f"agent '{spec.id}': limits: got low {self._low.tolist()} and high {self._high.tolist()} together with "
                "the action space's bounds, expected low <= high"
            )
        unlimited = np.full_like(lowest, np.inf)
        self._max_rate = self._values("max_rate", limits.max_rate, unlimited)
        if not (self._max_rate > 0.0).all():
            raise UsageError(f"agent '{spec.id}': max_rate: got {limits.max_rate}, expected positive numbers")
        self._limits_rate = limits.max_rate is not None
        if limits.initial is not None:
            self._last = self._values("initial", limits.initial, lowest)

    def _refuse_limits(self, limits: ActionLimits) -> None:
        given = [name for name in ("low", "high", "max_rate", "initial") if getattr(limits, name) is not None]
        if given:
            raise UsageError(
                f"agent '{self._spec.id}': {given[0]}: got a limit, expected none: its actions are discrete"
            )

    def _values(self, name: str, values: Values | None, default: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if values is None:
            return default
        try:
            array = np.broadcast_to(np.asarray(values, np.float32), default.shape)
        except (TypeError, ValueError):
            array = np.full(1, np.nan, np.float32)
        if np.isnan(array).any():
            raise UsageError(
                f"agent '{self._spec.id}': {name}: got {values!r}, expected a number or {default.shape[0]} of them"
            )
        return array

    def usable(self, action: int | npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None = None) -> bool:
        """Whether an action is one of the agent's at all, and legal; limits are another matter."""
        return self._problem(action, action_mask) is None

    def enforce(self, action: npt.NDArray[Any], now_s: float) -> tuple[npt.NDArray[Any], tuple[Limit, ...]]:
        """What may be written now instead of an action [*action_shape], and which limits have changed it."""
        if not self._continuous:
            return action, ()
        allowed = self._bounded(action)
        limited: tuple[Limit, ...] = () if (allowed == action).all() else ("bounds",)
        if self._limits_rate and self._last is not None:
            most = self._max_rate * np.float32(min(self._period_s, max(now_s - self._last_s, 0.0)))
            # The command in force may lie outside of the bounds: then it is led back as fast as the rate allows.
            slowed = np.minimum(np.maximum(allowed, self._last - most), self._last + most)
            if (slowed != allowed).any():
                limited = (*limited, "rate")
            allowed = slowed
        self._last, self._last_s = allowed, now_s
        return allowed, limited

    def release(self, action: npt.NDArray[Any], now_s: float) -> tuple[npt.NDArray[Any], tuple[Limit, ...]]:
        """The same for a loop's last action, after which none would finish what the rate holds back: bounds alone."""
        if not self._continuous:
            return action, ()
        self._last, self._last_s = self._bounded(action), now_s
        return self._last, () if (self._last == action).all() else ("bounds",)

    def _bounded(self, action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(np.minimum(np.maximum(action, self._low), self._high), np.float32)
