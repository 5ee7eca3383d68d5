"""``toy_environments:masked_discrete`` with trouble in it, by import path, e.g. ``troubled_environment:make``.

``evaluation`` is what happens in evaluations alone, which are told by their batch of ``EVALUATED``: ``KeyError``,
``endless``, ``hang``, ``kill`` (the process, as long as the file ``armed`` is there), ``nan`` or ``nan reward`` (of
``chooser_1`` in environment 1 after 4 steps); in all but the first episodes ``KeyError later`` and ``endless later``.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.sdk.environment import Observation, StepResult
from toy_environments import ToyEnvironment, masked_discrete

EVALUATED = 2


class Troubled(ToyEnvironment):
    """See above.

    Args:
        batch_size: B.
        evaluation: what goes wrong there.
        armed: a file: for ``kill``, and made before a step that hangs or is of an endless episode.
        nan_at: step, over all episodes of training, at which agent ``chooser_1`` of environment 1 sees NaN as number 2.
        hang_at: step, over all episodes, that hangs.
        forks_at: step at which a child is forked that does nothing for a minute.
        saves: whether the state can be saved.
    """

    def __init__(
        self, batch_size: int, evaluation: str, armed: str, nan_at: int, hang_at: int, forks_at: int, saves: bool
    ) -> None:
        toy = masked_discrete(batch_size)
        super().__init__("toy/troubled", toy.spec.agents, batch_size, saves=saves)
        if evaluation.startswith("endless"):
            self.spec = replace(self.spec, horizon=None)
        self._trouble = evaluation if batch_size == EVALUATED else ""
        if batch_size == EVALUATED:
            nan_at = 4 if evaluation == "nan" else -1
        self._resets = 0
        self._armed, self._nan_at, self._hang_at, self._forks_at = armed, nan_at, hang_at, forks_at

    def reset(self, seeds: Any) -> Observation:
        if self._trouble == "kill" and Path(self._armed).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        self._resets += 1
        if self._resets > 1:
            self._trouble = self._trouble.removesuffix(" later")
        return super().reset(seeds)

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        if self._trouble == "KeyError":
            raise KeyError("fuel")
        hangs = self._trouble == "hang" or self._steps_in_all + 1 == self._hang_at
        if self._armed and (hangs or self._trouble == "endless"):
            Path(self._armed).touch()
        if hangs:
            time.sleep(600)
        if self._steps_in_all + 1 == self._forks_at and os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        result = super().step(actions)
        if self._steps_in_all == self._nan_at:
            result.observation.observations[0][1, 1, 2] = np.nan
        if self._trouble == "nan reward" and self._steps_in_all == 4:
            result.rewards[1, 1] = np.inf
        if self._trouble == "endless":
            none = np.zeros(self.batch_size, np.bool_)
            return replace(result, terminated=none, truncated=none, final=None)
        return result


def make(
    batch_size: int,
    evaluation: str = "",
    armed: str = "",
    nan_at: int = -1,
    hang_at: int = -1,
    forks_at: int = -1,
    build_s: float = 0.0,
    saves: bool = True,
) -> Troubled:
    """See above; it takes ``build_s`` seconds to make."""
    time.sleep(build_s)
    return Troubled(batch_size, evaluation, armed, nan_at, hang_at, forks_at, saves)
