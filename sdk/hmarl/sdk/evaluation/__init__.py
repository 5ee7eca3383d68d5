"""Whole episodes in closed loop: they are played (``closed_loop``), by teams that are deployed, and summarised."""

from hmarl.sdk.environment import as_array, as_numpy
from hmarl.sdk.evaluation.closed_loop import (
    STEP_LIMIT,
    Evaluation,
    TimedTeam,
    evaluate,
    limit_of,
    marl_eval_json,
    serving_remark,
    unfinished_remark,
)
from hmarl.sdk.evaluation.waves import episode_seeds

__all__ = [
    "STEP_LIMIT",
    "Evaluation",
    "TimedTeam",
    "as_array",
    "as_numpy",
    "episode_seeds",
    "evaluate",
    "limit_of",
    "marl_eval_json",
    "serving_remark",
    "unfinished_remark",
]
