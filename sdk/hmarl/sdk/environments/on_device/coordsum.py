"""CoordSum in torch, see ``hmarl.sdk.environments.coordsum.CoordSum``, whose states it takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.drawing.canvas import Frame
from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.environments.authoring import EpisodeStreams, RandomStreams
from hmarl.sdk.environments.coordsum import EPISODE_STEPS, CoordSum
from hmarl.sdk.environments.on_device import actions_on, device_named, uploaded
from hmarl.sdk.spaces import EnvironmentSpec


class DeviceCoordSum:
    """B copies of CoordSum on a torch device; a ``VectorEnvironment`` whose arrays are tensors.

    Args:
        batch_size: B.
        rules: one copy in NumPy, whose spec, rules and pictures these are.
        device: torch device.
    """

    def __init__(self, batch_size: int, rules: CoordSum, device: str) -> None:
        self.batch_size = batch_size
        self.device = device_named(device, rules.spec.name)
        self.spec: EnvironmentSpec = rules.spec_with(backend="torch", device=device)
        self._rules = rules
        self._record_of = uploaded(rules.record_of, self.device)
        records, numbers = rules.record_shape
        self._targets = self._zeros(batch_size, EPISODE_STEPS + 1)
        self._record = self._zeros(batch_size, records, numbers)
        self._rows = torch.arange(batch_size, device=self.device)
        # The steps are known to host and device alike.
        self._steps = np.zeros(batch_size, dtype=np.int64)
        self._steps_there = self._zeros(batch_size)
        self._active = torch.ones(batch_size, len(self.spec.agents), dtype=torch.bool, device=self.device)
        self._streams = EpisodeStreams(batch_size)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes, those of the NumPy backend.

        Args:
            seeds: [B] integers, at least 0.

        Raises:
            UsageError: seeds of another shape, or negative.
        """
        self._restart(self._streams.begin(seeds), np.arange(self.batch_size))
        return self._observe()

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        """Compare the named numbers with the targets.

        Args:
            actions: one tensor or array [B, N] int64.

        Raises:
            UsageError: before the first ``reset``, or actions that ``actions_on`` refuses; nothing has then changed.
        """
        streams = self._streams.running("step")
        (named,) = actions_on(self.device, actions, self.spec.groups, self.batch_size)
        target, first = self._target(), named[:, 0]
        surprising = first != self._guess(target)
        rewards = torch.where(named.sum(1) == target, 1.0 + surprising.float(), 0.0)
        self._record[self._rows, self._record_of[target], first] += 1
        self._steps += 1
        self._steps_there += 1
        ended = self._steps >= EPISODE_STEPS
        observation, final = self._observe(), None
        if ended.any():
            self._restart(streams, np.flatnonzero(ended))
            observation, final = self._observe(), observation
        terminated = uploaded(ended, self.device) if final is not None else torch.zeros_like(self._active[:, 0])
        return StepResult(
            observation,
            rewards.unsqueeze(1).repeat(1, len(self.spec.agents)),
            terminated,
            torch.zeros_like(terminated),
            final,
        )

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that determines the future, as new arrays: those of the NumPy backend, which may go on from it.

        Raises:
            UsageError: before the first ``reset``.
        """
        streams = self._streams.running("get_state")
        there = {"targets": self._targets, "record": self._record}
        return {
            **{name: values.cpu().numpy().copy() for name, values in there.items()},
            "steps": self._steps.copy(),
            **streams.get_state(),
        }

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue where ``get_state`` was called, of either backend.

        Raises:
            UsageError: as of the NumPy backend; nothing has then changed.
        """
        saved = self._rules.checked_episodes(state, self.batch_size)
        self._streams.resume(saved)
        self._targets, self._record, self._steps_there = (
            uploaded(saved[name], self.device) for name in ("targets", "record", "steps")
        )
        self._steps = saved["steps"]
        return self._observe()

    def render(self, index: int = 0) -> Frame:
        """The present target of copy ``index``; what was named before is not kept here.

        Raises:
            UsageError: before the first ``reset``.
            IndexError: there is no copy ``index``.
        """
        self._streams.running("render")
        return self._rules.draw_target(int(self._target()[index]))

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        """[N, 3] x, y and radius of the agents in that picture."""
        return self._rules.agent_pixels()

    def close(self) -> None:
        """Nothing to free."""

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int64, device=self.device)

    def _restart(self, streams: RandomStreams, rows: npt.NDArray[np.intp]) -> None:
        drawn = uploaded(self._rules.draw_targets(streams, rows), self.device)
        there = uploaded(rows, self.device)
        self._targets[there] = drawn
        self._record[there] = 0
        self._steps_there[there] = 0
        self._steps[rows] = 0

    def _target(self) -> Tensor:
        return self._targets[self._rows, self._steps_there]

    def _guess(self, target: Tensor) -> Tensor:
        """The adversary's guess [B]; argmax takes the smallest number of equal counts, and 0 of an empty record."""
        return self._record[self._rows, self._record_of[target]].argmax(1)

    def _observe(self) -> Observation:
        target = self._target()
        parts = (target, self._steps_there, self._guess(target))
        scales = (self._rules.target_count, EPISODE_STEPS, self._rules.record_shape[1])
        # Divided in float64, as NumPy divides integers.
        state = torch.stack([part.double() / scale for part, scale in zip(parts, scales, strict=True)], dim=1).float()
        seen = state[:, None, :2].repeat(1, len(self.spec.agents), 1)
        return Observation((seen,), (None,), state, self._active)
