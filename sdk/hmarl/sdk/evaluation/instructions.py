"""Which instructions deployed agents follow, by what their policies tell besides their actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.bundle import AgentModel
from hmarl.sdk.evaluation.annotation import TeamAnnotation

_NAME = "instruction"  # of the diagnostic, and the purpose of the noise with which it is chosen


def instructed(
    models: Sequence[AgentModel], diagnostics: Sequence[Mapping[str, npt.NDArray[Any]] | None]
) -> TeamAnnotation | None:
    """The instruction that each agent of a team has just followed.

    Args:
        models: of all agents.
        diagnostics: of the same agents, by name, without a batch dimension; None for an agent that was not asked, which
            is not active then.

    Returns:
        None where no agent was asked, where one of those asked follows none or has not told it, or where they are of
        several kinds.
    """
    asked = np.array([tensors is not None for tensors in diagnostics], np.bool_)
    told = [_one(model, each) for model, each in zip(models, diagnostics, strict=True) if each is not None]
    followed = [each for each in told if each is not None]
    if len(followed) < max(len(told), 1) or len({each.shape for each in followed}) > 1:
        return None
    goals = np.zeros((len(asked), *followed[0].shape), np.float32)
    goals[asked] = followed
    first = next(each for each in diagnostics if each is not None)
    return TeamAnnotation(
        edges=np.zeros((0, 2), np.int64),
        active=asked,
        goals=goals,
        goals_set=asked,
        discrete=not np.ndim(first[_NAME]),
        told="instruction",
    )


def _one(model: AgentModel, diagnostics: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32] | None:
    """A vector [D], or one of K instructions as one-hot [K]."""
    value = diagnostics.get(_NAME)
    if value is None or value.ndim:
        return value
    noise = next((each for each in model.noises if each.purpose == _NAME), None)
    if noise is None:
        return None
    one_hot: npt.NDArray[np.float32] = np.eye(noise.shape[0], dtype=np.float32)[value]
    return one_hot
