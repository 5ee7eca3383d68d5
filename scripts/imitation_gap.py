"""The imitation gap, seen in a minute: two agents name numbers that must add up to ten, and neither observes anything.

    python scripts/imitation_gap.py --runs runs/imitation_gap --out docs/results

MAT plays several solutions and is always right; students of a teacher who plays all alike (CTDS) draw independently
and are right once in as many times as there are solutions; MAGPO's local policies are right. Every pair of algorithm
and task is trained with its preset, without options; the local policies are exported, served by one process each, and
play sampled actions over gRPC. Runs that are done are not trained again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from demo import serving
from rich.console import Console

from hmarl.runtime.command_line import PATH, command, option, run
from hmarl.sdk import Evaluation, FleetTeam, evaluate, make_environment
from hmarl.sdk.files import write_text
from hmarl.trainer.export.export import export_run
from hmarl.trainer.export.policy_source import load_team

SEEDS = (1, 2, 3, 4, 5)
EPISODES = 1000
# The least share of the episodes that counts a solution as alive.
ALIVE = 0.005
TASKS = {
    "coordsum/sum-to-10": ("two solutions, (4, 6) and (6, 4)", "1/2"),
    "coordsum/sum-to-10-full": ("eleven solutions, (0, 10) … (10, 0)", "1/11"),
}
ALGORITHMS = {
    "mat": "MAT's guider, drawn in the trainer",
    "ctds": "CTDS's students, served",
    "magpo": "MAGPO's local policies, served",
}


def train(algorithm: str, task: str, seed: int, run: Path) -> None:
    """With the preset and no options, unless it is done."""
    if not (run / "summary.json").exists():
        words = [sys.executable, "-m", "hmarl.trainer.commands.train"]
        begun = any((run / "checkpoints").glob("*.json"))
        words += ["--resume", str(run)] if begun else [algorithm, "--env", task, "--seed", str(seed), "--out", str(run)]
        print(" ".join(words), flush=True)
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


def played(algorithm: str, task: str, run: Path) -> Evaluation:
    """Sampled episodes: of the guider where nothing can be deployed, else of the served local policies."""
    if algorithm == "mat":
        make_team, _, _ = load_team(run, checkpoint="last", sample=True)
        environment = make_environment(task, 100)
        return evaluate(environment, make_team(environment.spec), EPISODES, seed=0, record=True)
    bundle = run / "bundle"
    if not bundle.exists():
        export_run(run, bundle, "last")
    environment = make_environment(task, 1)
    with serving(bundle, run / "endpoints.json", Console(quiet=True)) as endpoints:
        team = FleetTeam(endpoints, environment.spec, sample=True)
        try:
            return evaluate(environment, team, EPISODES, seed=0, record=True)
        finally:
            team.close()


def solutions_alive(evaluation: Evaluation) -> int:
    """How many joint actions that are right were played in at least ``ALIVE`` of the episodes."""
    assert evaluation.actions is not None
    joint = evaluation.actions[0][:, 0].reshape(EPISODES, -1)[evaluation.returns > 0]
    _, counts = np.unique(joint, axis=0, return_counts=True)
    return int((counts >= ALIVE * EPISODES).sum())


def rows(task: str, runs: Path) -> Iterator[str]:
    """The table of a task."""
    yield f"| | right, median of {len(SEEDS)} seeds | every seed | solutions played, every seed | training, median |"
    yield "|---|---|---|---|---|"
    for algorithm, who in ALGORITHMS.items():
        shares, alive, seconds = [], [], []
        for seed in SEEDS:
            run = runs / f"{task.split('/')[1]}-{algorithm}-seed{seed}"
            train(algorithm, task, seed, run)
            evaluation = played(algorithm, task, run)
            shares.append(float(evaluation.returns.mean()))
            alive.append(solutions_alive(evaluation))
            seconds.append(json.loads((run / "summary.json").read_text())["wall_s"])
        every = ", ".join(f"{share:.3f}" for share in shares)
        yield (
            f"| {who} | {np.median(shares):.3f} | {every} | {', '.join(map(str, alive))} | {np.median(seconds):.0f} s |"
        )


@command(
    "scripts/imitation_gap.py",
    option("--out", "where imitation_gap.md goes", PATH, default=Path("docs/results")),
    option("--runs", "where the run directories go", PATH, default=Path("runs/imitation_gap")),
)
def main(out: Path, runs: Path) -> None:
    """Train what is missing, serve and play it, and write the tables."""
    paragraphs = [
        "# The imitation gap",
        f"Made by `python scripts/imitation_gap.py`: presets, no options, seeds {SEEDS[0]} to {SEEDS[-1]}; sampled "
        f"actions, {EPISODES:,} episodes of one step. A solution counts as played if {ALIVE:.1%} or more end in it. "
        "On the full game CTDS's teacher has an entropy bonus of 0.5, to keep many solutions alive, which its students "
        "mix up; MAT's is 0.1, and it settles on one or two.",
    ]
    for task, (solutions, expected) in TASKS.items():
        paragraphs += [
            f"## {task}",
            f"There are {solutions}. A teacher that plays all of them equally often is always right; "
            f"students that imitate it one by one are right {expected} of the time.",
            "\n".join(rows(task, runs)),
        ]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "imitation_gap.md", "\n\n".join(paragraphs) + "\n")
    print(f"wrote {out / 'imitation_gap.md'}")


if __name__ == "__main__":
    sys.exit(run(main))
