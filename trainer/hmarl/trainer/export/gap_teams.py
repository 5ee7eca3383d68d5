"""A run's teams in torch as ``hmarl-gap`` plays them: the one that knows most, and the policies that a bundle holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hmarl.runtime.bundle import Bundle, StudentsModel
from hmarl.sdk.errors import UsageError
from hmarl.sdk.gap.ladder import CENTRAL, LOCAL, Rung
from hmarl.trainer.contract.local_team import LocalPolicies, LocalTeam
from hmarl.trainer.export.instruction_choice import decide_choice
from hmarl.trainer.export.redistillation import redistil
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.records.checkpoint import newest_checkpoint, read_object
from hmarl.trainer.runs.loaded_run import LoadedRun, load_run
from hmarl.trainer.students.settings import DistillationSettings
from hmarl.trainer.students.student import Students


def torch_rungs(run: Path, bundle: Bundle, sample: bool) -> list[Rung]:
    """The rungs before a bundle's: the central team, where the algorithm has one, and the bundle's policies in torch.

    Args:
        run: run directory, from which the bundle was exported.
        bundle: that bundle.
        sample: whether actions are drawn.

    Raises:
        UsageError: the bundle is of another run or checkpoint, or its students are not there any longer.
        CheckpointError: no run, or it is damaged.
    """
    loaded = _exported(run, bundle.manifest.training)
    torch.set_num_threads(loaded.config.run_settings().threads)
    algorithm, teacher = loaded.algorithm, loaded.algorithm.teacher()
    policies, choice = _deployed(run, loaded, bundle), bundle.manifest.agents[0].instruction_choice
    rungs = [Rung(LOCAL, "local policies, in torch", lambda spec: LocalTeam(policies, sample, choice, spec))]
    if teacher is not None:
        team = algorithm.teams(sample)[teacher.variant]
        central = Rung(CENTRAL, f"{teacher.name}, in torch", lambda spec: team)
        rungs.insert(0, central)
    return rungs


def _exported(run: Path, training: Mapping[str, Any]) -> LoadedRun:
    """The run as it was at the checkpoint that was exported."""
    name, sha256 = str(training.get("checkpoint")), training.get("checkpoint_sha256")
    steps = Path(name).stem.removeprefix("step-")
    if not steps.isdecimal() or not (run / "checkpoints" / name).is_file():
        raise UsageError(
            f"--bundle: it was exported from checkpoint {name}, which {run} does not have: take the run that it is of, "
            "or export this one anew"
        )
    loaded = load_run(run, str(int(steps)))
    if loaded.checkpoint.sha256 != sha256:
        raise UsageError(
            f"--bundle: it was exported from a checkpoint of SHA-256 {sha256}, but {name} of {run} has "
            f"{loaded.checkpoint.sha256}: take the run that it is of, or export this one anew"
        )
    return loaded


def _deployed(run: Path, loaded: LoadedRun, bundle: Bundle) -> LocalPolicies:
    """The very policies that the bundle holds."""
    manifest = bundle.manifest
    if manifest.students is not None:
        return _students(run, loaded, manifest.students)
    again = manifest.training.get("redistillation")
    if again is not None and again["kept"]:
        chosen = decide_choice(loaded)
        assert chosen is not None
        redistil(loaded, chosen)
    return loaded.algorithm


def _students(run: Path, loaded: LoadedRun, report: StudentsModel) -> Students:
    """The students of RUN/students as they were exported."""
    teacher = loaded.algorithm.teacher()
    settings = validate(DistillationSettings, report.settings, "distillation")
    folder = run / settings.folder
    if teacher is None or not (folder / "distillation.json").exists():
        raise UsageError(f"--bundle: it holds students, which {folder} does not: export the run again")
    if read_object(folder / "distillation.json").get("checkpoint_sha256") != loaded.checkpoint.sha256:
        raise UsageError(f"--bundle: it holds students of {loaded.checkpoint.path.name}, {folder} those of another one")
    kept = newest_checkpoint(folder / "checkpoints").tensors
    students = Students(loaded.algorithm, teacher.goal_kinds, settings, torch.Generator().manual_seed(settings.seed))
    for group, policy in enumerate(students.policies):
        policy.theta.copy_(kept[f"best.{group}"])
    return students
