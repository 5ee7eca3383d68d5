"""What ``hmarl-gap`` writes: gap.json, read and written as these classes.

Returns are undiscounted sums of the team reward over an episode. An interval is [low, high], a percentile bootstrap at
95 %. A difference is of the same episodes, the later rung less the earlier: below zero is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from hmarl.sdk.errors import BundleError
from hmarl.sdk.files import write_text

FILE = "gap.json"
SCHEMA_VERSION = 1

Verdict = Literal["none", "lost", "gained"]
Interval = tuple[float, float]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, and nothing that is not declared."""


class Serving(_Strict, frozen=True, kw_only=True):
    """What the clients of served agents counted; see ``AgentStatistics``.

    ``reasons`` counts the fallbacks by what kept a fresh action.
    """

    acts: int = 0
    fallbacks: int = 0
    late_replies: int = 0
    missed_steps: int = 0
    rejoins: int = 0
    state_resets: int = 0
    reasons: dict[str, int] = {}

    def __add__(self, other: Serving) -> Serving:
        """Both together."""
        names = {*self.reasons, *other.reasons}
        reasons = {name: self.reasons.get(name, 0) + other.reasons.get(name, 0) for name in sorted(names)}
        counted = [each for each in self.__struct_fields__ if each != "reasons"]
        return Serving(reasons=reasons, **{each: getattr(self, each) + getattr(other, each) for each in counted})


class RungResult(_Strict, frozen=True, kw_only=True):
    """What one rung came to.

    ``name`` is ``central``, ``local``, ``onnx``, ``served``, or ``served, FAULTS``; ``faults`` is empty where nothing
    went wrong on purpose. ``success_rate`` is null where the task knows no success, ``serving`` where nothing is
    served.
    """

    name: str
    title: str
    faults: str
    mean: float
    mean_ci95: Interval
    iqm: float
    iqm_ci95: Interval
    length_mean: float
    success_rate: float | None
    unfinished: int
    serving: Serving | None
    returns: list[float]


class Suspect(_Strict, frozen=True, kw_only=True):
    """What a loss is likely due to: the rule that names it, what speaks for it, and what to do."""

    rule: str
    why: str
    remedy: str


class Difference(_Strict, frozen=True, kw_only=True):
    """What ``to`` earns more than ``start`` in the same episodes.

    ``verdict`` is ``none`` where the interval holds 0, or where all of it is rounding. ``share`` is the part of what is
    lost in all from the first rung to ``served``, where that is a loss. ``same_actions`` counts the episodes in which
    all actions were the same; ``first_step`` is the median of the first steps that differ, in the others. Both are null
    where actions are no choices. ``suspects`` are in the order of suspicion, and empty where nothing is lost.
    """

    start: str
    to: str
    mean: float
    ci95: Interval
    verdict: Verdict
    share: float | None = None
    same_actions: int | None = None
    first_step: float | None = None
    suspects: list[Suspect] = []


class Curve(_Strict, frozen=True, kw_only=True):
    """One fault at several strengths: ``values`` ascending, and by which rungs they were played; 0 is ``served``."""

    fault: str
    values: list[float]
    rungs: list[str]


class Gap(_Strict, frozen=True, kw_only=True):
    """The whole of gap.json.

    ``graphs`` are the SHA-256 of the bundle's graphs, by file: figures hold for any bundle with the same.
    ``checkpoint`` and ``steps`` are of the training, ``checkpoint`` null where no run was at hand; ``trained_faults``
    is what the team was trained with. ``actions`` were taken greedily or drawn. ``total`` is from the first rung to
    ``served``; ``differences`` are between neighbours on the way there, ``under_faults`` between ``served`` and each
    rung under faults.
    """

    schema_version: int
    hmarl_version: str
    name: str
    algorithm: str
    environment: str
    environment_arguments: dict[str, Any]
    bundle_sha256: str
    graphs: dict[str, str]
    checkpoint: str | None
    steps: int | None
    trained_faults: str
    remembers: bool
    actions: Literal["greedy", "sampled"]
    seed: int
    episodes: int
    seeds: list[int]
    deadline_s: float
    rungs: list[RungResult]
    differences: list[Difference]
    total: Difference
    under_faults: list[Difference]
    curves: list[Curve]

    def rung(self, name: str) -> RungResult:
        """One rung by name."""
        return next(each for each in self.rungs if each.name == name)


def write_gap(path: Path, gap: Gap) -> None:
    """Write gap.json, whole or not at all."""
    write_text(path, msgspec.json.format(msgspec.json.encode(gap), indent=1).decode() + "\n")


def read_gap(path: Path) -> Gap:
    """Read and check gap.json.

    Raises:
        BundleError: it cannot be read, or is none; names the field.
    """
    try:
        gap = msgspec.json.decode(path.read_bytes(), type=Gap)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); hmarl-gap writes it") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: no {FILE} of schema version {SCHEMA_VERSION} ({error}); measure again") from error
    if gap.schema_version != SCHEMA_VERSION:
        raise BundleError(f"{path}: got schema version {gap.schema_version}, this hmarl reads version {SCHEMA_VERSION}")
    return gap
