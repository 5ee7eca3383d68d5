"""B copies of a single environment as one ``VectorEnvironment``, in this process or spread over worker processes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from hmarl.sdk.clock import checked_seconds
from hmarl.sdk.drawing.frames import as_frame
from hmarl.sdk.environment import Array, Finding, Observation, StepResult
from hmarl.sdk.environments.workers.parallel_copy import ParallelCopy, buffer_layout
from hmarl.sdk.environments.workers.pool import CopySource, WorkerPool
from hmarl.sdk.environments.workers.process import (
    Buffers,
    ContractError,
    EntryError,
    Moment,
    explained,
    failure_message,
    is_failure,
    numbered,
)
from hmarl.sdk.errors import EnvironmentFault, HmarlError, UsageError
from hmarl.sdk.spaces import EnvironmentSpec

_Made = TypeVar("_Made")


class Copy(Protocol):
    """One environment behind flat arrays."""

    def reset(self, buffers: Buffers, row: int) -> None:
        """Start an episode from ``buffers.seeds[row]``."""

    def step(self, buffers: Buffers, row: int) -> None:
        """Advance by one step with the actions of ``row``; start anew when the episode has ended."""

    def render(self) -> Any:
        """What the environment's renderer makes, None when there is nothing."""

    def findings(self) -> list[dict[str, Any]]:
        """What the environment has done against its own interface, as fields of ``Finding``; watched from now on."""

    def close(self) -> None:
        """Close the environment."""


class CopyNumbers:
    """Numbers for B copies, the lowest ones that no other copy of this process has while it lives.

    Training and evaluation environments live side by side, and their simulators must not take the same ports.

    Args:
        batch_size: B.

    Attributes:
        numbers: [B], each 0 or more. They are free again when this object is gone, or ``release`` was called.
    """

    _taken: set[int] = set()  # noqa: RUF012 - shared by all on purpose

    def __init__(self, batch_size: int) -> None:
        free = (number for number in itertools.count() if number not in self._taken)
        self.numbers = list(itertools.islice(free, batch_size))
        self._taken.update(self.numbers)
        self.release = weakref.finalize(self, self._taken.difference_update, list(self.numbers))

    def __enter__(self) -> CopyNumbers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave them taken by what was made meanwhile, unless that failed."""
        if kind is not None:
            self.release()


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


class LiftedVector:
    """B copies of one environment.

    Args:
        spec: what they look like.
        batch_size: B.
        workers: number of worker processes, at most B; 0 for none.
        make_copy: makes one copy, for use in this process.
        source: where worker processes get theirs from.
        numbers: by which the copies know themselves; released by ``close``.
        first: a copy made before, with the first number, to find out the spec; it is used or closed.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        batch_size: int,
        workers: int,
        make_copy: Callable[[], Copy],
        source: CopySource,
        numbers: CopyNumbers,
        first: Copy | None = None,
    ) -> None:
        self.spec, self.batch_size = spec, batch_size
        self._numbers = numbers
        self._pool: WorkerPool | None = None
        self._copies: list[Copy] = []
        self._closed = False
        layout = buffer_layout(spec, batch_size)
        if workers == 0:
            self._copies = [] if first is None else [first]
            try:
                for number in numbers.numbers[len(self._copies) :]:
                    self._copies.append(made(make_copy, number))
            except BaseException:
                self.close()
                raise
            self._buffers = Buffers(layout)
            return
        if first is not None:
            first.close()
        _check_json(spec.arguments)
        self._pool = WorkerPool(layout, batch_size, workers, source, numbers.numbers)
        self._buffers = self._pool.buffers

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes, copy b by ``reset(seed=seeds[b])``."""
        self._check_open()
        self._buffers.seeds[:] = np.asarray(seeds).reshape(self.batch_size)
        if self._pool is not None:
            self._in_workers(self._pool.reset)
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
            self._in_workers(self._pool.step)
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
        """Picture of one copy; None unless made with ``render_mode="rgb_array"``.

        Raises:
            EnvironmentFault: the renderer failed, or made something else than a picture; the environments go on.
        """
        self._check_open()
        if self.spec.arguments.get("render_mode") != "rgb_array":
            return None
        if self._pool is not None:
            picture = self._in_workers(partial(self._pool.render, index))
        else:
            try:
                picture = self._copies[index].render()
            except BaseException as error:
                if not is_failure(error):
                    raise
                raise EnvironmentFault(f"environment {index}: render: {explained(error)}") from error
        try:
            return as_frame(picture)
        except ValueError as error:
            raise EnvironmentFault(f"environment {index}: render: {error}") from error

    def findings(self) -> list[Finding]:
        """What the copies have done against their own interface; see ``FindsFaults``."""
        self._check_open()
        found: dict[tuple[str, str], Finding] = {}
        each = self._in_workers(self._pool.findings) if self._pool is not None else self._findings_here()
        for one in (Finding(**fields) for fields in each):
            known = found.setdefault((one.check, one.what), one)
            if known is not one:
                found[one.check, one.what] = dataclasses.replace(known, count=known.count + one.count)
        return list(found.values())

    def close(self) -> None:
        """Close the environments, stop the workers, free the shared memory; a second call does nothing."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()
        while self._copies:
            self._copies.pop().close()
        self._numbers.release()

    def _findings_here(self) -> list[dict[str, Any]]:
        return [finding for copy in self._copies for finding in copy.findings()]

    def _in_workers(self, act: Callable[[], _Made]) -> _Made:
        """Let the workers act; when one of them fails, all are closed."""
        try:
            return act()
        except BaseException:
            if self._pool is not None and self._pool.closed:
                self.close()
            raise

    def _each(self, act: Callable[[Copy, int], None]) -> None:
        for row, copy in enumerate(self._copies):
            try:
                act(copy, row)
            except BaseException as error:
                if not is_failure(error):
                    raise
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
        EnvironmentFault: the environment failed while it was looked at.
    """
    workers = checked_workers(workers, batch_size)
    maker = f"{make_copy.__module__}:{make_copy.__qualname__}"
    source = CopySource(maker, settings, timeout_s=checked_seconds("timeout_s", timeout_s))
    make_one = partial(make_copy, **settings)
    with CopyNumbers(batch_size) as numbers:
        first = made(make_one, numbers.numbers[0])
        try:
            spec = complete(first)
        except BaseException:
            first.close()
            raise
        return LiftedVector(spec, batch_size, workers, make_one, source, numbers, first)


def made(make_copy: Callable[[], _Made], number: int) -> _Made:
    """A copy that knows its number.

    Raises:
        HmarlError, ContractError, EntryError: as ``make_copy``.
        EnvironmentFault: it failed in another way.
    """
    try:
        with numbered(str(number)):
            return make_copy()
    except (HmarlError, ContractError, EntryError):
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise EnvironmentFault(f"the environment could not be made: {explained(error)}") from error


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
