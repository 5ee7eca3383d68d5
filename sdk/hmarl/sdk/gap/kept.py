"""The episodes that have been played, kept as they end: what was killed goes on, and comes to the same.

plan.json                what is measured, so that nothing else is gone on with
episodes/NN-RUNG.jsonl   a line for each wave of episodes that were played side by side
"""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.runtime.bundle import remove_temporaries
from hmarl.sdk.errors import BundleError, UsageError
from hmarl.sdk.evaluation.closed_loop import Evaluation
from hmarl.sdk.files import make_directory, write_text
from hmarl.sdk.gap.document import Serving
from hmarl.sdk.spaces import EnvironmentSpec

PLAN = "plan.json"
_T = TypeVar("_T")


class Wave(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Episodes ``first`` and on, of one rung, that were played side by side.

    ``actions`` has for each episode the fingerprints of what all agents did at each step (``fingerprints``), None where
    actions are no choices; ``successes`` is None where the task knows no success.
    """

    first: int
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    successes: list[bool] | None
    unfinished: int
    actions: list[str] | None
    serving: Serving | None


def wave_of(first: int, evaluation: Evaluation, spec: EnvironmentSpec, serving: Serving | None) -> Wave:
    """What is kept of a wave."""
    return Wave(
        first=first,
        seeds=evaluation.seeds.tolist(),
        returns=evaluation.returns.tolist(),
        lengths=evaluation.lengths.tolist(),
        successes=None if evaluation.successes is None else evaluation.successes.tolist(),
        unfinished=evaluation.unfinished,
        actions=_fingerprinted(evaluation, spec),
        serving=serving,
    )


def _fingerprinted(evaluation: Evaluation, spec: EnvironmentSpec) -> list[str] | None:
    """Two computations of a continuous action differ in their last bits, which says nothing."""
    if evaluation.actions is None or any(isinstance(group.example.action_space, spaces.Box) for group in spec.groups):
        return None
    found = []
    for episode, length in enumerate(evaluation.lengths.tolist()):
        steps = [
            zlib.crc32(b"".join(np.ascontiguousarray(block[episode, step]).tobytes() for block in evaluation.actions))
            for step in range(length)
        ]
        found.append(base64.b64encode(np.array(steps, "<u4").tobytes()).decode())
    return found


def fingerprints(kept: str) -> npt.NDArray[np.uint32]:
    """[T] a number for the actions of each step of an episode; equal actions have equal ones."""
    return np.frombuffer(base64.b64decode(kept), "<u4")


class Kept:
    """The folder of one measurement.

    Args:
        folder: where to; made where it is not there.
        plan: what is measured, as plain values.
        resume: go on with what is there.

    Raises:
        UsageError: something is there and is not to be gone on with, or is of something else.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], resume: bool) -> None:
        self._folder = folder / "episodes"
        path, now = folder / PLAN, json.loads(json.dumps(plan))
        if not resume:
            refuse_begun(folder)
        if path.exists():
            _check_same(path, now)
        else:
            make_directory(self._folder)
            write_text(path, json.dumps(now, indent=1) + "\n")
        remove_temporaries(folder)
        make_directory(self._folder)

    def waves(self, place: int, rung: str) -> list[Wave]:
        """The waves of a rung that are whole, in order; a line that was cut off is dropped from the file."""
        path = self._path(place, rung)
        if not path.exists():
            return []
        found: list[Wave] = []
        content, good, expected = path.read_bytes(), 0, 0
        for line in content.splitlines(keepends=True):
            try:
                wave = msgspec.json.decode(line, type=Wave)
            except (msgspec.DecodeError, UnicodeDecodeError):
                break
            if wave.first != expected or not line.endswith(b"\n"):
                break
            found.append(wave)
            expected += len(wave.returns)
            good += len(line)
        if good < len(content):
            with path.open("rb+") as stream:
                stream.truncate(good)
        return found

    def add(self, place: int, rung: str, wave: Wave) -> None:
        """Keep one more wave, durably."""
        with self._path(place, rung).open("ab") as stream:
            stream.write(msgspec.json.encode(wave) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _path(self, place: int, rung: str) -> Path:
        slug = re.sub(r"[^A-Za-z0-9_.=-]+", "-", rung)[:80]
        return self._folder / f"{place:02d}-{slug}.jsonl"


def refuse_begun(folder: Path) -> None:
    """Refuse to write over a measurement.

    Raises:
        UsageError: there is one.
    """
    if (folder / PLAN).exists():
        raise UsageError(
            f"--out: got {folder}, which holds a measurement: --resume goes on with it, another begins anew"
        )


def _check_same(path: Path, now: Mapping[str, Any]) -> None:
    """Refuse to go on with something else."""
    try:
        before = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{path}: damaged ({error}); choose another --out") from error
    differing = [
        f"{key}: got {now.get(key)!r}, begun with {before.get(key)!r}"
        for key in {**before, **now}
        if now.get(key) != before.get(key)
    ]
    if differing:
        raise UsageError(
            f"--resume: got other settings than {path.parent} was begun with ({'; '.join(differing)}): repeat them, "
            "or choose another --out"
        )


def joined(waves: Sequence[Wave]) -> Wave:
    """All waves of a rung as one."""
    serving = [each.serving for each in waves if each.serving is not None]
    total = serving[0] if serving else None
    for each in serving[1:]:
        total = each if total is None else total + each
    return Wave(
        first=0,
        seeds=[seed for each in waves for seed in each.seeds],
        returns=[value for each in waves for value in each.returns],
        lengths=[length for each in waves for length in each.lengths],
        successes=_all_or_none([each.successes for each in waves]),
        unfinished=sum(each.unfinished for each in waves),
        actions=_all_or_none([each.actions for each in waves]),
        serving=total,
    )


def _all_or_none(lists: Sequence[list[_T] | None]) -> list[_T] | None:
    known = [each for each in lists if each is not None]
    return [one for each in known for one in each] if len(known) == len(lists) else None
