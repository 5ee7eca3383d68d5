"""Compare algorithms on tasks over several seeds: trains what is missing, resumes what was cut off, then writes
curves and tables.

    python scripts/study.py --out docs/results --runs runs/study

Every run is an ordinary run directory; a study that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import typer
from matplotlib import pyplot as plt

from hmarl.sdk.statistics import iqm, iqm_interval
from hmarl.trainer.plots import read_metrics

COLOURS = {
    "hcpo": "#d55e00", "hatrpo": "#0072b2", "happo": "#009e73", "hamdpo": "#cc79a7", "a2po": "#e69f00",
    "haa2c": "#56b4e9", "mappo": "#999999", "ippo": "#000000", "maven": "#f0e442",
}  # fmt: skip
CONDUCTORS = ("local", "central", "random", "none")


@dataclass(frozen=True)
class Task:
    """One environment with its budget, and the figures of others that are drawn beside ours.

    Attributes:
        settings: extra ``--set`` options for all algorithms, beyond their presets.
        references: label -> return.
        early: a number of steps at which others' results are known; evaluations are placed so that one falls there.
        algorithms: compared with one another.
    """

    environment: str
    steps: int
    early: int
    settings: tuple[str, ...] = ()
    references: tuple[tuple[str, float], ...] = ()
    algorithms: tuple[str, ...] = ("hcpo", "hatrpo", "happo")

    @property
    def slug(self) -> str:
        """Name for files."""
        return self.environment.replace("/", "-")


TASKS = (
    Task(
        "mpe/simple_spread",
        2_000_000,
        early=136_000,
        references=(("random", -79.8), ("HARL HAPPO after 136k frames", -65.0), ("scripted centralised team", -25.6)),
        algorithms=("hcpo", "hatrpo", "happo", "a2po", "haa2c", "mappo"),
    ),
    Task("vmas/navigation", 500_000, early=205_000, references=(("BenchMARL MAPPO after 205k frames", 0.91),)),
    Task(
        "mamujoco/HalfCheetah-2x3",
        500_000,
        early=100_000,
        settings=("run.evaluation_episodes=32", "env.threads=1"),
        algorithms=("hcpo", "hamdpo", "hatrpo", "happo"),
    ),
)


def train(algorithm: str, task: Task, seed: int, folder: Path) -> Path:
    """One run, from the start, from its last checkpoint, or not at all when it is done."""
    run = folder / f"{task.slug}-{algorithm}-seed{seed}"
    if (run / "summary.json").exists():
        return run
    command = [sys.executable, "-m", "hmarl.trainer.cli"]
    if any((run / "checkpoints").glob("*.json")):
        command += ["--resume", str(run)]
    else:
        command += [algorithm, "--env", task.environment, "--steps", str(task.steps), "--seed", str(seed)]
        command += ["--out", str(run)]
        for setting in (*task.settings, f"run.evaluation_interval={task.early // 2}"):
            command += ["--set", setting]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    return run


def curve(runs: list[Path], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [E] and the metric [seeds, E] at the evaluations (or updates) that all runs have."""
    series = []
    for run in runs:
        series.append({row["steps"]: row[key] for row in read_metrics(run) if row.get(key) is not None})
    steps = sorted(set.intersection(*(set(points) for points in series)))
    return np.array(steps), np.array([[points[step] for step in steps] for points in series])


def draw(task: Task, runs: dict[str, list[Path]], path: Path) -> None:
    """Evaluation returns of the deployed policies: every seed thin, the mean thick."""
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for algorithm, directories in runs.items():
        steps, returns = curve(directories, "evaluation/local/return_mean")
        for row in returns:
            axes.plot(steps, row, color=COLOURS[algorithm], lw=0.7, alpha=0.4)
        axes.plot(steps, returns.mean(0), color=COLOURS[algorithm], lw=2, label=f"{algorithm} (deployed policies)")
    for label, value in task.references:
        axes.axhline(value, color="#777777", lw=0.8, ls="--")
        axes.annotate(label, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    axes.set(xlabel="environment steps", ylabel="return of the team", title=task.environment)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_conductors(task: Task, runs: list[Path], path: Path) -> None:
    """HCPO under its four conductors, and the instructions' entropy."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, colour in zip(CONDUCTORS, ("#0072b2", "#d55e00", "#999999", "#cc79a7"), strict=True):
        steps, returns = curve(runs, f"evaluation/{name}/return_mean")
        left.plot(steps, returns.mean(0), "o-", ms=3, color=colour, label=f"{name} conductor")
        left.fill_between(steps, returns.min(0), returns.max(0), color=colour, alpha=0.15)
    left.set(xlabel="environment steps", ylabel="return of the team", title=f"HCPO on {task.environment}")
    steps, entropy = curve(runs, "instruction_entropy")
    right.plot(steps, entropy.T, color="#0072b2", lw=0.7)
    right.axhline(np.log(10), color="#777777", lw=0.8, ls="--")
    right.annotate("uniform over 10", (0.99, np.log(10)), xycoords=("axes fraction", "data"), ha="right", va="top")
    right.set(xlabel="environment steps", ylabel="entropy of the conductor (nats)", title="every seed")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def final_returns(run: Path, conductor: str = "local") -> np.ndarray:
    """[E] returns of a run's last evaluation."""
    last = sorted((run / "eval").glob("step-*.json"))[-1]
    return np.array(json.loads(last.read_text())[conductor]["returns"])


def table(task: Task, runs: dict[str, list[Path]]) -> str:
    """Markdown: per algorithm the final IQM, the mean of each seed, an early value, frames/s."""
    lines = [
        f"| algorithm | final IQM [95 % bootstrap interval] | mean of each seed "
        f"| median of the last ten evaluations, mean ± sd of seeds | at {task.early:,} frames "
        "| frames/s, evaluations included |",
        "|---|---|---|---|---|---|",
    ]
    for algorithm, directories in runs.items():
        returns = np.stack([final_returns(run) for run in directories])
        steps, curves = curve(directories, "evaluation/local/return_mean")
        at = int(np.searchsorted(steps, task.early))
        last_ten = np.median(curves[:, -10:], axis=1)  # the HCPO paper's measure (C.1)
        rates = [json.loads((run / "summary.json").read_text())["steps_per_s"] for run in directories]
        lines.append(
            f"| {algorithm} | {_iqm_with_interval(returns)} | {', '.join(f'{v:.2f}' for v in returns.mean(1))} "
            f"| {last_ten.mean():.2f} ± {last_ten.std(ddof=1) if len(last_ten) > 1 else 0:.2f} "
            f"| {curves[:, min(at, len(steps) - 1)].mean():.2f} (at {steps[min(at, len(steps) - 1)]:,}) "
            f"| {np.median(rates):,.0f} |"
        )
    return "\n".join(lines)


def _iqm_with_interval(returns: np.ndarray) -> str:
    low, high = iqm_interval(returns.ravel())
    return f"{float(iqm(returns.ravel())):.2f} [{low:.2f}, {high:.2f}]"


def conductor_table(runs: list[Path]) -> str:
    """Markdown: HCPO's four conductors at the last evaluation."""
    lines = ["| conductor | IQM [95 % bootstrap interval] | mean of each seed |", "|---|---|---|"]
    for name in CONDUCTORS:
        returns = np.stack([final_returns(run, name) for run in runs])
        means = ", ".join(f"{v:.2f}" for v in returns.mean(1))
        lines.append(f"| {name} | {_iqm_with_interval(returns)} | {means} |")
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option(help="where the report goes")] = Path("docs/results"),
    runs: Annotated[Path, typer.Option(help="where the run directories go")] = Path("runs/study"),
    seeds: Annotated[int, typer.Option(help="seeds 100, 101, … per algorithm and task")] = 3,
    only: Annotated[str | None, typer.Option(help="only this environment")] = None,
) -> None:
    """Train, then write one Markdown page with plots."""
    out.mkdir(parents=True, exist_ok=True)
    names = ", ".join(str(100 + seed) for seed in range(seeds))
    sections = [
        "# Learning results",
        f"Made by `python scripts/study.py`; seeds {names}. Returns are those of the deployed (local, deterministic) "
        "policies over 100 episodes with fixed seeds (32 on mamujoco). Every pair of algorithm and task ran with its "
        "preset, one thread a run.",
    ]
    for task in TASKS:
        if only not in (None, task.environment):
            continue
        done: dict[str, Any] = {name: [] for name in task.algorithms}
        for seed in range(seeds):
            for algorithm in task.algorithms:
                done[algorithm].append(train(algorithm, task, 100 + seed, runs))
        draw(task, done, out / f"{task.slug}.png")
        draw_conductors(task, done["hcpo"], out / f"{task.slug}-conductors.png")
        sections += [
            f"## {task.environment}, {task.steps:,} frames",
            table(task, done), f"![curves]({task.slug}.png)",
            "HCPO under its four conductors:", conductor_table(done["hcpo"]),
            f"![conductors]({task.slug}-conductors.png)",
        ]  # fmt: skip
    (out / "README.md").write_text("\n\n".join(sections) + "\n")
    print(f"wrote {out / 'README.md'}")


if __name__ == "__main__":
    typer.run(main)
