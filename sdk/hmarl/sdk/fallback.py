"""What a client does when no fresh action arrives in time.

A fallback is a plain value without state: the client tells it the situation, it answers with an action or raises
``StaleActionError``. One fallback may therefore serve any number of clients.

    Hold(expires_after_s=0.2)                       repeat the last fresh action for at most 0.2 s, then raise
    Hold(expires_after_steps=5, then=Zero())        repeat it for five steps, then the zero action
    NoOp(4)                                         a fixed action
    Call(lambda situation: brake(situation.step))   the application's own rule
    Fail()                                          raise at once (the default of the clients)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.actions import ActionCheck
from hmarl.runtime.manifest import ActionSpaceModel, BoxSpace
from hmarl.sdk.errors import StaleActionError, UsageError
from hmarl.sdk.spaces import (
    ACTION_SPACE_FIELD,
    ActionSpaceField,
    action_shape,
    bounds,
    given_space,
    mask_branches,
    space_model,
)


@dataclass(frozen=True)
class Situation:
    """What a fallback may look at.

    Attributes:
        step: the step that has no fresh action.
        action_space: the agent's action space, of Gymnasium.
        action_mask: [mask_size] bool, the legal actions at this step; None where all are.
        last_action: the last fresh action of this episode, [*action_shape]; None when there was none yet.
        age_s: seconds of a monotonic clock since the last fresh action arrived; infinite when there was none.
        age_steps: steps since then, at least 1; infinite when there was none.
        reason: why there is no fresh action, for messages.

    Raises:
        UsageError: the mask is not one of the action space.
    """

    step: int
    action_space: ActionSpaceField = ACTION_SPACE_FIELD
    action_mask: npt.NDArray[np.bool_] | None = None
    last_action: npt.NDArray[Any] | None = None
    age_s: float = math.inf
    age_steps: float = math.inf
    reason: str = "no fresh action"

    def __post_init__(self) -> None:
        mask, branches = self.action_mask, mask_branches(self.action_space_model)
        if mask is None or not branches:
            return
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (branches[-1].stop,):
            got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else f"a {type(mask).__name__}"
            raise UsageError(f"action_mask: got {got}, expected a NumPy array of bool ({branches[-1].stop},)")

    @cached_property
    def action_space_model(self) -> ActionSpaceModel:
        """The action space as the manifest writes it, for which Gymnasium is not needed."""
        return space_model(given_space(self))


class Fallback(ABC):
    """Decides when no fresh action arrives in time."""

    @abstractmethod
    def decide(self, situation: Situation) -> npt.NDArray[Any]:
        """The action to take instead, [*action_shape], legal under the situation's mask.

        Raises:
            StaleActionError: nothing may stand in for a fresh action.
        """

    def may_rejoin(self, situation: Situation) -> bool:
        """Whether the client may rejoin an episode by itself; asked before every automatic rejoin."""
        return True


@dataclass(frozen=True)
class Fail(Fallback):
    """Raise at once."""

    def decide(self, situation: Situation) -> npt.NDArray[Any]:
        """Always raises."""
        raise StaleActionError(
            f"step {situation.step}: {situation.reason}; the last fresh action is "
            + ("missing" if situation.last_action is None else f"{situation.age_s:.3f} s old")
        )


@dataclass(frozen=True)
class Zero(Fallback):
    """The zero action: 0 in every branch, or the point of the Box nearest to zero.

    Where 0 is illegal, the first legal action (of the branch) is taken.
    """

    def decide(self, situation: Situation) -> npt.NDArray[Any]:
        """Zero, or the first legal action."""
        space = situation.action_space_model
        if isinstance(space, BoxSpace):
            return np.asarray(np.clip(np.float32(0), *bounds(space)), np.float32)
        return nearest_legal(np.zeros(action_shape(space), np.int64), space, situation.action_mask)


@dataclass(frozen=True)
class NoOp(Fallback):
    """A fixed action, e.g. the environment's own no-op.

    Where it is illegal, the first legal action (of the branch) is taken.

    Args:
        action: [*action_shape].
    """

    action: int | tuple[float, ...]

    def decide(self, situation: Situation) -> npt.NDArray[Any]:
        """The fixed action, or the first legal one."""
        action = _checked(self.action, situation, "NoOp.action")
        return nearest_legal(action, situation.action_space_model, situation.action_mask)


@dataclass(frozen=True)
class Call(Fallback):
    """The application's own rule.

    Args:
        function: from the situation to an action [*action_shape]; it may raise ``StaleActionError`` itself. An
            action of wrong shape or outside of the space is an error; so is an illegal one.
    """

    function: Callable[[Situation], Any]

    def decide(self, situation: Situation) -> npt.NDArray[Any]:
        """What the function answers, checked."""
        action = _checked(self.function(situation), situation, "Call.function")
        if not is_legal(action, situation.action_space_model, situation.action_mask):
            raise StaleActionError(
                f"step {situation.step}: Call.function answered {action.tolist()}, which the action mask excludes"
            )
        return action


@dataclass(frozen=True)
class Hold(Fallback):
    """Repeat the last fresh action until it expires, or until the mask excludes it.

    Args:
        expires_after_s: the greatest age in seconds (monotonic clock) at which the action is still repeated.
        expires_after_steps: the same in steps; with both, whichever comes first.
        then: what decides afterwards, and where there is nothing to hold.

    Raises:
        UsageError: neither limit is given, or one is not positive.
    """

    expires_after_s: float = math.inf
    expires_after_steps: float = math.inf
    then: Fallback = field(default_factory=Fail)

    def __post_init__(self) -> None:
        for name in ("expires_after_s", "expires_after_steps"):
            if not getattr(self, name) > 0:
                raise UsageError(f"Hold.{name}: got {getattr(self, name)}, expected a positive number")
        if math.isinf(self.expires_after_s) and math.isinf(self.expires_after_steps):
            raise UsageError(
                "Hold: got no limit, expected expires_after_s or expires_after_steps; a held action must expire"
            )

    def expired(self, situation: Situation) -> bool:
        """Whether the last fresh action is too old to be repeated (or there is none)."""
        return (
            situation.last_action is None
            or situation.age_s > self.expires_after_s
            or situation.age_steps > self.expires_after_steps
        )

    def decide(self, situation: Situation) -> npt.NDArray[Any]:
        """The last fresh action, or what ``then`` decides."""
        if situation.last_action is None or self.expired(situation):
            return self.then.decide(situation)
        if not is_legal(situation.last_action, situation.action_space_model, situation.action_mask):
            return self.then.decide(situation)
        return situation.last_action

    def may_rejoin(self, situation: Situation) -> bool:
        """False once the held action has expired into a failure: then only an explicit ``reset`` goes on."""
        # Before the first fresh action nothing was held, so nothing can have expired.
        if situation.last_action is None or not self.expired(situation):
            return True
        return not isinstance(self.then, Fail) and self.then.may_rejoin(situation)


def is_legal(action: npt.NDArray[Any], space: ActionSpaceModel, mask: npt.NDArray[np.bool_] | None) -> bool:
    """Whether it is an action [*action_shape] that the mask allows: mask [mask_size] bool or None (all are legal)."""
    return ActionCheck(space).problem(action, mask) is None


def nearest_legal(
    action: npt.NDArray[Any], space: ActionSpaceModel, mask: npt.NDArray[np.bool_] | None
) -> npt.NDArray[Any]:
    """The action, with every choice that the mask excludes replaced by the first legal one of its branch."""
    if mask is None or isinstance(space, BoxSpace):
        return action
    branches = [mask[branch] for branch in mask_branches(space)]
    choices = np.atleast_1d(action)
    legal = [
        int(choice) if branch[choice] else int(branch.argmax())
        for choice, branch in zip(choices, branches, strict=True)
    ]
    return np.asarray(legal, np.int64).reshape(action.shape)


def _checked(action: Any, situation: Situation, name: str) -> npt.NDArray[Any]:
    """The action as an array of the space.

    Raises:
        UsageError: it is not in the space.
    """
    space = situation.action_space_model
    given, dtype = np.asarray(action), np.float32 if isinstance(space, BoxSpace) else np.int64
    if np.can_cast(given.dtype, dtype, "same_kind"):  # a fraction is no choice, and is not cut off to one
        array = given.astype(dtype)
        if is_legal(array, space, None) and _within(array, space):
            return array
    raise UsageError(f"{name}: got {given.tolist()}, expected an action of {situation.action_space}")


def _within(action: npt.NDArray[Any], space: ActionSpaceModel) -> bool:
    """Whether every number of an action [*action_shape] lies within the bounds, where there are some."""
    if not isinstance(space, BoxSpace):
        return True
    low, high = bounds(space)
    return bool(np.all((low <= action) & (action <= high)))
