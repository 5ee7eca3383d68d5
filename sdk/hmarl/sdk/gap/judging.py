"""From episodes to what they say: returns, paired differences between neighbours, and where return is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt

from hmarl.runtime.bundle import Bundle
from hmarl.sdk.evaluation.statistics import iqm, iqm_interval, mean_interval
from hmarl.sdk.gap.document import SCHEMA_VERSION, Difference, Gap, RungResult, Verdict
from hmarl.sdk.gap.faulted import curves_of
from hmarl.sdk.gap.kept import Wave, fingerprints
from hmarl.sdk.gap.ladder import SERVED, Rung
from hmarl.sdk.gap.playing import Games
from hmarl.sdk.gap.suspects import Facts, Step, suspects_of

# Of the size of the returns: two computations of one float32 policy may differ by so much.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        bundle: whose agents were served.
        facts: what rules look at.
        games: what was played.
        sample: whether actions were drawn.
        deadline_s: of one act.
        of_run: whether the run was at hand.
    """

    bundle: Bundle
    facts: Facts
    games: Games
    sample: bool
    deadline_s: float
    of_run: bool


def judge(rungs: Sequence[Rung], played: Sequence[Wave], measured: Measured) -> Gap:
    """The whole document."""
    results = [result_of(rung, wave) for rung, wave in zip(rungs, played, strict=True)]
    waves = {rung.name: wave for rung, wave in zip(rungs, played, strict=True)}
    ladder = [rung for rung in rungs if not rung.faults]
    faulted = [rung for rung in rungs if rung.faults]
    facts, manifest = measured.facts, measured.bundle.manifest
    served = next(rung for rung in ladder if rung.name == SERVED)
    total = compared(ladder[0], served, waves)
    differences = [compared(start, to, waves) for start, to in pairwise(ladder)]
    training, first = manifest.training, waves[ladder[0].name]
    return Gap(
        schema_version=SCHEMA_VERSION,
        hmarl_version=version("hmarl"),
        name=manifest.name,
        algorithm=manifest.algorithm,
        environment=measured.games.environment,
        environment_arguments=dict(measured.games.arguments),
        bundle_sha256=measured.bundle.sha256,
        graphs=graphs_of(manifest.files),
        checkpoint=training.get("checkpoint") if measured.of_run else None,
        steps=training.get("steps"),
        trained_faults=str(facts.trained) if facts.trained.any_of(facts.agent_ids) else "",
        remembers=facts.remembers,
        actions="sampled" if measured.sample else "greedy",
        seed=measured.games.seed,
        episodes=measured.games.episodes,
        seeds=first.seeds,
        deadline_s=measured.deadline_s,
        rungs=results,
        differences=[_shared(_suspected(each, ladder, waves, facts), total) for each in differences],
        total=total,
        under_faults=[_suspected(compared(served, rung, waves), faulted, waves, facts) for rung in faulted],
        curves=curves_of([rung.faults for rung in faulted], facts.agent_ids),
    )


def graphs_of(files: dict[str, str]) -> dict[str, str]:
    """The SHA-256 of a bundle's graphs, by file."""
    return {name: sha256 for name, sha256 in files.items() if name.endswith(".onnx")}


def result_of(rung: Rung, wave: Wave) -> RungResult:
    """A rung's returns, and what else is told of it."""
    returns = np.array(wave.returns)
    return RungResult(
        name=rung.name,
        title=rung.title,
        faults=rung.faults,
        mean=float(returns.mean()),
        mean_ci95=mean_interval(returns),
        iqm=float(iqm(returns)),
        iqm_ci95=iqm_interval(returns),
        length_mean=float(np.mean(wave.lengths)),
        success_rate=None if wave.successes is None else float(np.mean(wave.successes)),
        unfinished=wave.unfinished,
        serving=wave.serving,
        returns=wave.returns,
    )


def compared(start: Rung, to: Rung, waves: dict[str, Wave]) -> Difference:
    """What the later rung earns more in the same episodes, not yet with suspects."""
    before, after = waves[start.name], waves[to.name]
    difference = np.array(after.returns) - np.array(before.returns)
    low, high = mean_interval(difference)
    size = float(np.abs([before.returns, after.returns]).mean())
    same, first_step = _same_actions(before, after)
    return Difference(
        start=start.name,
        to=to.name,
        mean=float(difference.mean()),
        ci95=(low, high),
        verdict=verdict_of(low, high, size),
        same_actions=same,
        first_step=first_step,
    )


def verdict_of(low: float, high: float, size: float) -> Verdict:
    """What an interval says; ``size`` is that of the returns."""
    if low <= 0.0 <= high or max(abs(low), abs(high)) <= ROUNDING * size:
        return "none"
    return "lost" if high < 0.0 else "gained"


def _same_actions(before: Wave, after: Wave) -> tuple[int | None, float | None]:
    """In how many episodes all actions were the same; in the others, the median of the first steps that differ."""
    if before.actions is None or after.actions is None:
        return None, None
    firsts = [
        _first_difference(fingerprints(one), fingerprints(other))
        for one, other in zip(before.actions, after.actions, strict=True)
    ]
    differing = [each for each in firsts if each is not None]
    return len(firsts) - len(differing), float(np.median(differing)) if differing else None


def _first_difference(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> int | None:
    length = min(len(one), len(other))
    steps = np.flatnonzero(one[:length] != other[:length])
    if steps.size:
        return int(steps[0])
    return None if len(one) == len(other) else length


def _suspected(difference: Difference, rungs: Sequence[Rung], waves: dict[str, Wave], facts: Facts) -> Difference:
    """With suspects, where something is lost."""
    if difference.verdict != "lost":
        return difference
    to = next(rung for rung in rungs if rung.name == difference.to)
    wave = waves[to.name]
    step = Step(difference.start, to.name, to.faults, difference.same_actions, len(wave.returns), wave.serving)
    return msgspec.structs.replace(difference, suspects=suspects_of(step, facts))


def _shared(difference: Difference, total: Difference) -> Difference:
    """With its share of what is lost in all."""
    if total.verdict != "lost":
        return difference
    return msgspec.structs.replace(difference, share=difference.mean / total.mean + 0.0)  # no negative zero
