"""What ``Fallback``s decide for many agents at once: the same as ``Fallback.decide`` for each, without a loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.manifest import ActionSpaceModel, BoxSpace
from hmarl.sdk.errors import UsageError
from hmarl.sdk.fallback import Call, Fail, Fallback, Hold, NoOp, Situation, Zero
from hmarl.sdk.spaces import AgentSpec, action_shape, mask_branches


@dataclass(frozen=True)
class Situations:
    """What R agents' fallbacks may look at; see ``Situation``.

    Attributes:
        space: of all.
        steps: [R].
        masks: [R, mask_size] bool; None where all is legal.
        last: [R, *action_shape] the last fresh actions.
        age: [R] steps since they were fresh; infinite where there was none.
    """

    space: ActionSpaceModel
    steps: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_] | None
    last: npt.NDArray[Any]
    age: npt.NDArray[np.float64]

    def of(self, rows: npt.NDArray[np.intp]) -> Situations:
        """Some of them."""
        masks = None if self.masks is None else self.masks[rows]
        return replace(self, steps=self.steps[rows], masks=masks, last=self.last[rows], age=self.age[rows])

    def one(self, row: int) -> Situation:
        """One of them as fallbacks see it; seconds are unknown."""
        age = float(self.age[row])
        return Situation(
            step=int(self.steps[row]),
            action_space=self.space,
            action_mask=None if self.masks is None else self.masks[row],
            last_action=None if math.isinf(age) else self.last[row],
            age_steps=age,
            reason="no fresh action has arrived",
        )


def check_fallback(fallback: Fallback, agent: AgentSpec) -> None:
    """Refuse a fallback that cannot stand in at every step.

    Raises:
        UsageError: it may fail, counts seconds, or names an action that the agent does not have.
    """
    where, last = f"faults: fallback of '{agent.id}'", fallback
    while isinstance(last, Hold):
        if math.isinf(last.expires_after_steps):
            raise UsageError(f"{where}: got {last}, expected expires_after_steps: steps have no seconds here")
        last = last.then
    if isinstance(last, Fail):
        raise UsageError(f"{where}: got {fallback}, expected one that always acts, such as Zero()")
    if not isinstance(last, Call):
        try:
            last.decide(Situation(step=0, action_space=agent.action_space_model))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def stand_ins(fallback: Fallback, seen: Situations) -> npt.NDArray[Any]:
    """What one fallback decides in R situations: [R, *action_shape]."""
    if isinstance(fallback, Zero | NoOp):
        fixed = fallback.decide(Situation(step=0, action_space=seen.space))
        return nearest_legal_rows(np.repeat(fixed[None], len(seen.steps), axis=0), seen.space, seen.masks)
    if isinstance(fallback, Hold):
        holds = (seen.age <= fallback.expires_after_steps) & legal_rows(seen.last, seen.space, seen.masks)
        decided, others = seen.last.copy(), np.flatnonzero(~holds)
        if len(others):
            decided[others] = stand_ins(fallback.then, seen.of(others))
        return decided
    shape = (len(seen.steps), *action_shape(seen.space))
    return np.stack([fallback.decide(seen.one(row)) for row in range(shape[0])]).reshape(shape)


def legal_rows(
    actions: npt.NDArray[Any], space: ActionSpaceModel, masks: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.bool_]:
    """[...] whether masks [..., mask_size] allow actions [..., *action_shape]."""
    leading = actions.shape[: actions.ndim - len(action_shape(space))]
    if masks is None or isinstance(space, BoxSpace):
        return np.ones(leading, np.bool_)
    starts = np.array([branch.start for branch in mask_branches(space)])
    places = actions.reshape(*leading, len(starts)) + starts
    return np.asarray(np.take_along_axis(masks, places, axis=-1).all(-1))


def nearest_legal_rows(
    actions: npt.NDArray[Any], space: ActionSpaceModel, masks: npt.NDArray[np.bool_] | None
) -> npt.NDArray[Any]:
    """Actions [R, *action_shape] with each choice that its mask excludes replaced by the first legal one."""
    if masks is None or isinstance(space, BoxSpace):
        return actions
    choices = actions.reshape(len(actions), -1)
    legal = [
        np.where(np.take_along_axis(masks[:, branch], chosen[:, None], 1)[:, 0], chosen, masks[:, branch].argmax(1))
        for branch, chosen in zip(mask_branches(space), choices.T, strict=True)
    ]
    return np.stack(legal, axis=1).reshape(actions.shape)
