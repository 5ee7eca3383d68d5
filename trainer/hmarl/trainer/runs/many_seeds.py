"""Several seeds of one run, trained at once: their environments are stepped as one batch, in which all teams act in one
call a group, and their gradient steps are taken together.

Each seed is an ordinary run with a directory, and draws what it would draw alone; what it computes equals that up to
rounding. It works in a thread of its own (``together.company``) and meets the others where they compute as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms import ALGORITHMS, find_algorithm
from hmarl.trainer.runs.config import RunConfig, refuse_other_run
from hmarl.trainer.runs.directory import resumable_checkpoint, resume_command, with_goal
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.shared_environments import SeedsPart, SharedEnvironments
from hmarl.trainer.runs.sources import RolloutSource
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.runs.training import MakeSource
from hmarl.trainer.together.company import Company, Outcome


def check_many_seeds(config: RunConfig, option: str = "--seeds", instead: str = "") -> None:
    """Whether seeds of such a run can be trained at once.

    Args:
        config: of one of them.
        option: by which that is asked for.
        instead: what to do where they cannot; by default to train them one after the other.

    Raises:
        UsageError: they cannot; says what to do.
    """
    instead = instead or f"train one after the other: hmarl-train {config.algorithm} --seed N"
    if not find_algorithm(config.algorithm).many_seeds:
        able = ", ".join(name for name, kind in ALGORITHMS.items() if kind.many_seeds)
        raise UsageError(f"{option}: got {config.algorithm}, expected one of {able}; {instead}")
    if config.settings().recurrent:
        raise UsageError(
            f"{option}: got algorithm.recurrent=true, expected policies without memory; leave it out, or {instead}"
        )
    if workers := config.run_settings().workers:
        raise UsageError(
            f"{option}: got run.workers={workers}, expected 0: the environments of all seeds are stepped as one batch; "
            f"leave it out, or {instead}"
        )


def check_resumed_seeds(configs: Sequence[RunConfig], directories: Sequence[Path]) -> None:
    """Whether runs can be gone on with at once.

    Raises:
        UsageError: they differ in more than their seeds, or are of a kind that cannot; says what to do.
    """
    instead = "resume one after the other"
    for config, directory in zip(configs, directories, strict=True):
        check_many_seeds(config, f"--resume {directory}", instead)
        if differing := sorted(_differences(configs[0], config)):
            raise UsageError(
                f"--resume {directory}: got another {', '.join(differing)} than {directories[0]}, expected runs that "
                f"differ in their seeds alone; {instead}"
            )


def _differences(one: RunConfig, other: RunConfig) -> set[str]:
    """Names of what differs between two runs, their seeds apart."""
    ours, theirs = _named_settings(one), _named_settings(other)
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} - {"run.seed"}


def _named_settings(config: RunConfig) -> dict[str, Any]:
    """All that determines a run, by name."""
    groups = {
        "algorithm": config.settings().model_dump(),
        "run": config.run_settings().model_dump(),
        "env": config.environment_arguments,
    }
    named = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    return {"algorithm": config.algorithm, "environment": config.environment, **named}


def _given(part: SeedsPart, config: RunConfig) -> RolloutSource:
    return part


class ManyRuns:
    """Runs that differ in their seeds, trained at once. ``create`` makes them.

    Args:
        runs: one a seed.
        parts: of the environments that they share.
        stop: once asked, all end with a checkpoint after the same update.
    """

    def __init__(self, runs: Sequence[Run], parts: Sequence[SeedsPart], stop: StopRequest) -> None:
        self.runs, self._parts, self._stop = runs, parts, stop

    @classmethod
    def create(cls, configs: Sequence[RunConfig], directories: Sequence[Path], stop: StopRequest) -> ManyRuns:
        """Fresh runs, as ``Run.create`` makes one.

        Args:
            configs: which differ in their seeds alone.
            directories: where they write.
            stop: see the class.

        Raises:
            UsageError: they cannot be trained at once; or as ``Run.create``.
            StorageError: there is no space for config.json.
        """
        check_many_seeds(configs[0])
        for directory in directories:
            refuse_other_run(directory)

        def create(number: int, make_source: MakeSource, among: str) -> Run:
            return Run.create(configs[number], directories[number], make_source, among)

        return cls._opened(configs, stop, create, Run.withdraw)

    @classmethod
    def resume(cls, directories: Sequence[Path], steps: int | None, stop: StopRequest) -> ManyRuns:
        """Go on with runs, as ``Run.resume`` does with one.

        Args:
            directories: theirs.
            steps: a new goal of all, at least what each has done.
            stop: see the class.

        Raises:
            UsageError: they cannot be trained at once; or as ``Run.resume``.
            CheckpointError: as ``Run.resume``.
        """
        configs = [RunConfig.read(directory) for directory in directories]
        if steps is not None:
            # Of all, before the first one's config.json has it.
            configs = [
                with_goal(config, steps, directory, resumable_checkpoint(directory, torch.device("cpu")))
                for config, directory in zip(configs, directories, strict=True)
            ]
        check_resumed_seeds(configs, directories)

        def resume(number: int, make_source: MakeSource, among: str) -> Run:
            return Run.resume(directories[number], steps, make_source, among)

        many = cls._opened(configs, stop, resume, Run.close)
        try:
            many.check_in_step()
        except BaseException:
            many.close()
            raise
        return many

    @classmethod
    def _opened(
        cls,
        configs: Sequence[RunConfig],
        stop: StopRequest,
        open_run: Callable[[int, MakeSource, str], Run],
        undo: Callable[[Run], None],
    ) -> ManyRuns:
        """All of them, each opened by its number with its part of the environments; ``undo`` where another fails."""
        shared = SharedEnvironments(configs)
        with ExitStack() as undone:
            undone.callback(shared.environment.close)
            runs, parts = list[Run](), list[SeedsPart]()
            for number, config in enumerate(configs):
                part = shared.part(number, config, stop)
                run = open_run(number, partial(_given, part), f"seed {config.run_settings().seed}")
                undone.callback(undo, run)
                shared.take(run.algorithm)
                parts.append(part)
                runs.append(run)
            undone.pop_all()
        return cls(runs, parts, stop)

    def resume_command(self) -> str:
        """What to type to continue with all of them."""
        return resume_command(*(run.directory for run in self.runs))

    def check_in_step(self) -> None:
        """Environments that cannot be saved begin new episodes at every checkpoint, all at the same one.

        Raises:
            UsageError: checkpoints are of different updates there.
        """
        updates = {run.counters.update for run in self.runs}
        if len(updates) > 1 and not self._parts[0].saves:
            told = ", ".join(f"{run.directory} at {run.counters.steps:,} steps" for run in self.runs)
            raise UsageError(
                f"--resume: got {told}, expected checkpoints of the same step, for the state of "
                f"{self.runs[0].config.environment} cannot be saved; resume one after the other"
            )

    def train(self) -> list[Outcome[dict[str, Any]]]:
        """Train all of them to their end, as ``Run.train`` does one.

        Returns:
            By run its summary, or the error that ended it; the others have gone on.
        """
        works = [partial(run.train, part.told) for run, part in zip(self.runs, self._parts, strict=True)]
        with self._stop.postponed():
            return Company().work(works)

    def close(self) -> None:
        """Free the environments and the directories."""
        for run in self.runs:
            run.close()
