"""How much of a team's return its local students keep: distil, export, serve by one process an agent, and play.

    python scripts/students.py runs/study/vmas-sampling-* --out docs/results

Takes runs whose teams know more than their agents can (himpo, mat, sable, or hcpo under its central conductor).
Where the students keep less than 95 %, others are distilled that also see what their team mates observe (or what a
central conductor sees), which tells whether that is what they lack. What is distilled already is not distilled again,
and what was cut off goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo import serving
from rich.console import Console

from hmarl.runtime import command_line
from hmarl.runtime.bundle import EnvironmentModel, StudentsModel
from hmarl.runtime.command_line import PATH, argument, command, option
from hmarl.sdk import Bundle, Evaluation, FleetTeam, VectorEnvironment, evaluate, load_bundle, make_environment
from hmarl.sdk.environments.copies import evaluation_copies
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.statistics import iqm, iqm_interval
from hmarl.sdk.files import write_text
from hmarl.trainer.export.export import export_run
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.runs.loaded_run import load_run
from hmarl.trainer.students.dagger import REPORT_SEED, distil_run
from hmarl.trainer.students.settings import DistillationSettings

ENOUGH = 0.95  # of the teacher's return
EPISODES = validate(DistillationSettings, {}, "distillation").evaluation_episodes
_HEADER = (
    "run",
    "teacher's return",
    "students, served",
    "share",
    "share, told",
    "their action is the teacher's",
    "goals",
    "rounds",
    "environment steps",
)


def distilled(run: Path) -> Bundle:
    """The bundle of a run's students, distilled with default settings."""
    bundle = run / "students-bundle"
    if not bundle.exists():
        export_run(run, bundle, "last", distillation=validate(DistillationSettings, {}, "distillation"))
    return load_bundle(bundle)


def like_the_teachers(about: EnvironmentModel, settings: dict[str, Any]) -> VectorEnvironment:
    """One environment; as many as the teacher played in where episodes depend on those that are played beside them."""
    environment = make_environment(about.name, 1, **about.arguments)
    if getattr(environment, "independent_copies", True):
        return environment
    environment.close()
    distillation = validate(DistillationSettings, settings, "distillation")
    copies = evaluation_copies(about.name, distillation.evaluation_episodes, distillation.environments)
    return make_environment(about.name, copies, **about.arguments)


def served(bundle: Bundle, folder: Path) -> Evaluation:
    """Episodes of the students, each in a process of its own: those of the bundle's own report, acting as there.

    Raises:
        UsageError: that report is of another number of episodes than the page says.
    """
    report = bundle.manifest.students
    assert report is not None
    if report.episodes != EPISODES:
        raise UsageError(
            f"{bundle.path}: its teacher played {report.episodes} episodes, and the page is of {EPISODES}; remove it, "
            "and it is distilled again"
        )
    environment = like_the_teachers(bundle.manifest.environment, report.settings)
    with serving(folder / "students-bundle", folder / "endpoints.json", Console(quiet=True)) as endpoints:
        team = FleetTeam(endpoints, environment.spec, sample=report.sampled)
        try:
            return evaluate(environment, team, EPISODES, seed=REPORT_SEED)
        finally:
            team.close()
            environment.close()


def informed(run: Path, teacher: str) -> StudentsModel:
    """The report on students that also see what all their team mates observe; of a central conductor, the state."""
    loaded = load_run(run, "last")
    settings = validate(DistillationSettings, {"told": "state" if "conductor" in teacher else "team"}, "distillation")
    return distil_run(run, loaded.algorithm, loaded.config, loaded.checkpoint, settings).report


def rows(runs: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """The table."""
    yield _HEADER
    yield ("---",) * len(_HEADER)
    for run in runs:
        bundle = distilled(run)
        report, played = bundle.manifest.students, served(bundle, run)
        assert report is not None
        low, high = iqm_interval(played.returns)
        mean = float(played.returns.mean())
        share = mean / report.teacher_return if report.teacher_return > 0 else None
        told = informed(run, report.teacher).ratio if share is not None and share < ENOUGH else None
        yield (
            run.name,
            f"{report.teacher_return:.2f}",
            f"{mean:.2f} (IQM {float(iqm(played.returns)):.2f} [{low:.2f}, {high:.2f}])",
            "–" if share is None else f"{share:.1%}{'' if share >= ENOUGH else ' ‡'}",
            "–" if told is None else f"{told:.1%}",
            _acted(report.action_agreement, report.action_difference),
            _guessed(report.goal_accuracy, report.goal_variance_explained),
            f"{report.rounds}, {report.stopped}",
            f"{report.steps:,}",
        )


def introduction() -> str:
    """What the table shows."""
    return (
        "Made by `python scripts/students.py RUN …`. Recurrent students, one an agent, see their own agent's "
        "observations alone; they were distilled by DAgger with default settings, exported, and served by one process "
        f"each. Teacher and students play the same {EPISODES} episodes, on seeds by which no round was chosen; where "
        "an episode depends on those that are played beside it (VMAS), as many side by side. "
        f"‡ below {ENOUGH:.0%} of the teacher's return: others were distilled that are told what all their team "
        "mates observe, or what the conductor sees (`--set distillation.told=team`, `state`). "
        "§ in rows of VMAS that were drawn before this was so, the teacher's and the students' episodes differ: the "
        "teacher played side by side, the students one by one. The seeds are the same, the games are not, and the "
        "share is of two samples."
    )


def _acted(agreement: float | None, difference: float | None) -> str:
    words = [] if agreement is None else [f"{agreement:.1%} of the steps"]
    return "; ".join(words + ([] if difference is None else [f"off by {difference:.3f} on average"]))


def _guessed(accuracy: float | None, explained: float | None) -> str:
    words = [] if accuracy is None else [f"{accuracy:.1%} guessed"]
    return "; ".join(words + ([] if explained is None else [f"{explained:.0%} of their variance"])) or "none"


@command(
    "scripts/students.py",
    argument("runs", "run directories", PATH, many=True),
    option("--out", "where students.md goes", PATH, default=Path("docs/results")),
)
def main(runs: tuple[Path, ...], out: Path) -> None:
    """Distil what is not distilled yet, serve and play it, and write the table."""
    paragraphs = [
        "# Students",
        introduction(),
        "\n".join(f"| {' | '.join(row)} |" for row in rows(runs)),
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "students.md", "\n\n".join(paragraphs) + "\n")
    print(f"wrote {out / 'students.md'}")


if __name__ == "__main__":
    sys.exit(command_line.run(main))
