"""B copies of a single environment as one ``VectorEnvironment``, in this process or spread over worker processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environment import Array, Observation, StepResult
from hmarl.sdk.environments._worker_copy import ParallelCopy, buffer_layout
from hmarl.sdk.environments._worker_pool import CopySource, WorkerPool
from hmarl.sdk.environments._worker_process import Buffers, Moment, failure_message
from hmarl.sdk.errors import EnvironmentFault, UsageError
from hmarl.sdk.spaces import EnvironmentSpec


class Copy(Protocol):
    """One environment behind flat arrays."""

    def reset(self, buffers: Buffers, row: int) -> None:
        """Start an episode from ``buffers.seeds[row]``."""

    def step(self, buffers: Buffers, row: int) -> None:
        """Advance by one step with the actions of ``row``; start anew when the episode has ended."""

    def render(self) -> npt.NDArray[np.uint8] | None:
        """A picture, None when there is none."""

    def close(self) -> None:
        """Close the environment."""


def checked_workers(workers: int | None, batch_size: int, fewest: int = 0) -> int:
    """Number of worker processes for ``batch_size`` environments.

    Args:
        workers: as given; None for min(B, CPUs), or ``fewest`` where B is 1.
        batch_size: B.
        fewest: 0, or 1 where the environments cannot run in this process.

    Raises:
        UsageError: not a whole number of at least ``fewest``.
    """
    if workers is None:
        return fewest if batch_size == 1 else min(os.cpu_count() or 1, batch_size)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < fewest:
        raise UsageError(f"workers: got {workers!r}, expected a whole number, {fewest} or more")
    return min(workers, batch_size)


def checked_seconds(name: str, value: Any) -> float:
    """``value`` as a positive number of seconds.

    Raises:
        UsageError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UsageError(f"{name}: got {value!r}, expected a positive number of seconds")
    return float(value)


class LiftedVector:
    """B copies of one environment.

    Args:
        spec: what they look like.
        batch_size: B.
        workers: number of worker processes, at most B; 0 for none.
        make_copy: makes one copy, for use in this process.
        source: where worker processes get theirs from.
        first: a copy made before, to find out the spec; it is used or closed.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        batch_size: int,
        workers: int,
        make_copy: Callable[[], Copy],
        source: CopySource,
        first: Copy | None = None,
    ) -> None:
        self.spec, self.batch_size = spec, batch_size
        self._pool: WorkerPool | None = None
        self._copies: list[Copy] = []
        self._closed = False
        layout = buffer_layout(spec, batch_size)
        if workers == 0:
            self._copies = [] if first is None else [first]
            while len(self._copies) < batch_size:
                self._copies.append(make_copy())
            self._buffers = Buffers(layout)
            return
        if first is not None:
            first.close()
        _check_json(spec.arguments)
        self._pool = WorkerPool(layout, batch_size, workers, source)
        self._buffers = self._pool.buffers

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes, copy b by ``reset(seed=seeds[b])``."""
        self._check_open()
        self._buffers.seeds[:] = np.asarray(seeds).reshape(self.batch_size)
        if self._pool is not None:
            self._pool.reset()
        else:
            self._each(lambda copy, row: copy.reset(self._buffers, row))
        return _copied(self._buffers.now)

    def step(self, actions: tuple[Array, ...]) -> StepResult:
        """Advance every copy by one step; see ``VectorEnvironment.step``.

        Raises:
            UsageError: an array of actions has a wrong shape.
            EnvironmentFault: an environment raised an error or its worker died; all are then closed.
        """
        self._check_open()
        for index, (target, given) in enumerate(zip(self._buffers.actions, actions, strict=True)):
            array = np.asarray(given)
            if array.shape != target.shape:
                raise UsageError(f"actions[{index}]: got shape {array.shape}, expected {target.shape}")
            target[...] = array
        if self._pool is not None:
            self._pool.step()
        else:
            self._each(lambda copy, row: copy.step(self._buffers, row))
        buffers = self._buffers
        ended = buffers.terminated | buffers.truncated
        return StepResult(
            observation=_copied(buffers.now),
            rewards=buffers.rewards.copy(),
            terminated=buffers.terminated.copy(),
            truncated=buffers.truncated.copy(),
            final=_merged(buffers.now, buffers.final, ended) if ended.any() else None,
            success=buffers.success.copy() if self.spec.has_success else None,
        )

    def get_state(self) -> None:
        """None: environments of this kind do not hand out their state."""

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Not supported.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.spec.name}: environments of this kind can be neither saved nor restored")

    def render(self, index: int = 0) -> npt.NDArray[np.uint8] | None:
        """Picture of one copy; None unless made with ``render_mode="rgb_array"``."""
        self._check_open()
        if self.spec.arguments.get("render_mode") != "rgb_array":
            return None
        if self._pool is not None:
            return self._pool.render(index)
        return self._copies[index].render()

    def close(self) -> None:
        """Close the environments, stop the workers, free the shared memory; a second call does nothing."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()
        while self._copies:
            self._copies.pop().close()

    def _each(self, act: Callable[[Copy, int], None]) -> None:
        for row, copy in enumerate(self._copies):
            try:
                act(copy, row)
            except Exception as error:
                self.close()
                raise EnvironmentFault(failure_message(row, error)) from error

    def _check_open(self) -> None:
        if self._closed or (self._pool is not None and self._pool.closed):
            raise EnvironmentFault(f"{self.spec.name}: the environment is closed")


def lift(
    make_copy: Callable[..., ParallelCopy],
    settings: Mapping[str, Any],
    complete: Callable[[ParallelCopy], EnvironmentSpec],
    batch_size: int,
    workers: int | None,
    timeout_s: float,
) -> LiftedVector:
    """B copies of an environment with PettingZoo's parallel API.

    Args:
        make_copy: a function of a module, so that worker processes can import it.
        settings: keyword arguments for it.
        complete: the spec of a copy with what only the family knows: horizon, team reward, arguments.
        batch_size: B.
        workers: number of worker processes; 0 for none, None for the default.
        timeout_s: seconds within which a worker process has to make a step.

    Raises:
        UsageError: ``workers`` or ``timeout_s`` out of range; whatever ``make_copy`` and ``complete`` raise.
    """
    workers = checked_workers(workers, batch_size)
    maker = f"{make_copy.__module__}:{make_copy.__qualname__}"
    source = CopySource(maker, settings, timeout_s=checked_seconds("timeout_s", timeout_s))
    first = make_copy(**settings)
    return LiftedVector(complete(first), batch_size, workers, partial(make_copy, **settings), source, first)


def _copied(seen: Moment) -> Observation:
    """A copy that the next step does not overwrite."""
    return Observation(
        observations=tuple(array.copy() for array in seen.observations),
        action_masks=tuple(None if mask is None else mask.copy() for mask in seen.action_masks),
        state=seen.state.copy(),
        active=seen.active.copy(),
    )


def _merged(now: Moment, final: Moment, ended: npt.NDArray[np.bool_]) -> Observation:
    """``final`` in the rows whose episode has ended, ``now`` in the others."""
    merged = _copied(now)
    pairs = [
        *zip(merged.observations, final.observations, strict=True),
        *zip(merged.action_masks, final.action_masks, strict=True),
        (merged.state, final.state),
        (merged.active, final.active),
    ]
    for target, source in pairs:
        if target is not None and source is not None:
            target[ended] = source[ended]
    return merged


def _check_json(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{name}: got a {type(value).__name__}, which worker processes cannot be given; use workers=0"
            ) from error
