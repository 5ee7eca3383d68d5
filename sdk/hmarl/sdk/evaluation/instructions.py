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
    models: Sequence[AgentModel], diagnostics: Sequence[Mapping[str, npt.NDArray[Any]]]
) -> TeamAnnotation | None:
    """The instruction that each agent of a team has just followed.

    Args:
        models: of all agents.
        diagnostics: of the same agents, by name, without a batch dimension.

    Returns:
        None where some agents follow none, or have not told it, or where they are of several kinds.
    """
    told = [_one(model, tensors) for model, tensors in zip(models, diagnostics, strict=True)]
    goals = [each for each in told if each is not None]
    if len(goals) < max(len(told), 1) or len({each.shape for each in goals}) > 1:
        return None
    return TeamAnnotation(
        edges=np.zeros((0, 2), np.int64),
        active=np.ones(len(goals), np.bool_),
        goals=np.stack(goals),
        goals_set=np.ones(len(goals), np.bool_),
        discrete=not np.ndim(diagnostics[0][_NAME]),
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
