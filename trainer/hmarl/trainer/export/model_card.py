"""The model card of a bundle: what it is, how it was made, how well it does, with plots."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmarl.runtime.bundle import ParityModel, StudentsModel
from hmarl.runtime.choices import effective_choice
from hmarl.sdk.commands._common import parse_settings
from hmarl.trainer.export.redistillation import STANDINGS, standings, verdict
from hmarl.trainer.students.report import figures

if TYPE_CHECKING:
    from hmarl.trainer.export.instruction_choice import ChosenChoice
    from hmarl.trainer.export.redistillation import Redistillation
    from hmarl.trainer.records.checkpoint import Checkpoint
    from hmarl.trainer.runs.config import RunConfig


def model_card(
    config: RunConfig,
    checkpoint: Checkpoint,
    summary: dict[str, Any],
    evaluation: dict[str, dict[str, Any]],
    parity: ParityModel,
    name: str,
    plots: Iterable[str],
    students: StudentsModel | None = None,
    chosen: ChosenChoice | None = None,
    again: Redistillation | None = None,
    price: str = "",
) -> str:
    """The card as Markdown with Hugging Face front matter.

    Args:
        config: of the run.
        checkpoint: that is exported.
        summary: of the run, empty where it has not ended.
        evaluation: of the checkpoint, empty where it was not evaluated.
        parity: what the comparison with torch found.
        name: the bundle's.
        plots: the files that show the training, as the card reaches them.
        students: what a distillation came to, None without one.
        chosen: how instructions are chosen by default, None without them.
        again: what came of distilling local conductors once more, None where that was not done.
        price: the section on what deployment costs, empty where that was not measured.
    """
    table = "\n".join(
        f"| {key} | {row['return_mean']:.2f} | {row['return_median']:.2f} | {row['return_iqm']:.2f} "
        f"| {row['episodes']} |"
        for key, row in evaluation.items()
    )
    deployed = students.students_return if students else evaluation.get("local", {}).get("return_mean")
    if chosen is not None and chosen.means:
        deployed = chosen.means[chosen.choice]
    if again is not None and again.kept:
        deployed = again.after.return_mean
    sections = [
        _front_matter(config, deployed),
        f"# {name}",
        f"A team trained with **{config.algorithm}** on `{config.environment}`, one local policy per agent: each sees "
        "its own observation only and exchanges no message.",
        "## Use\n\n```\nhmarl-verify .\nhmarl-fleet . --out endpoints.json\n"
        f"hmarl-eval --endpoints endpoints.json --env {shlex.quote(config.environment)} --episodes 100 --seed 0\n```",
        f"## Evaluation\n\nReturns of {_acting(config)}, undiscounted episode sums of the team reward, fixed seeds, by "
        f"which the best checkpoint was chosen; after {checkpoint.counters.steps:,} steps.\n\n"
        f"| policies | mean | median | IQM | episodes |\n|---|---|---|---|---|\n{table}"
        if table
        else "",
        _distillation(students) if students else "",
        _instructions(config, chosen) if chosen else "",
        _redistillation(again) if again else "",
        price,
        "\n\n".join(f"![{Path(file).stem}]({file})" for file in plots),
        _provenance(config, checkpoint, summary),
        f"## Parity\n\nONNX Runtime (CPU) against torch on {parity.samples:,} random and rollout inputs: largest error "
        f"{parity.max_error:.1e}; no choice differed, {parity.near_ties} near ties apart.",
        "## Limits\n\nTrained in simulation for this task and these spaces; observations far from those seen in "
        "training are clipped at ten standard deviations, and nothing is promised there.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _acting(config: RunConfig) -> str:
    return (
        "deterministic policies" if config.settings().deterministic_evaluation else "policies that draw their actions"
    )


def _front_matter(config: RunConfig, deployed: float | None) -> str:
    lines = ["---", "library_name: hmarl", "tags:", "- multi-agent-reinforcement-learning", f"- {config.algorithm}"]
    if deployed is not None:
        lines += [
            "model-index:",
            f"- name: {config.algorithm}",
            "  results:",
            "  - task:",
            "      type: reinforcement-learning",
            "    dataset:",
            f"      name: {_yaml(config.environment)}",
            f"      type: {_yaml(config.environment)}",
            "    metrics:",
            "    - type: mean_return",
            f"      value: {deployed:.2f}",
        ]
    return "\n".join([*lines, "---"])


def _distillation(students: StudentsModel) -> str:
    rows = "\n".join(f"| {name} | {figure} |" for name, figure in figures(students))
    changed = " ".join(f"{key}={_value(value)}" for key, value in students.settings.items())
    return (
        "## Students\n\nThe team that was trained knows more at a step than one of its agents can. The policies are "
        f"students that were distilled from it (its {students.teacher}) by DAgger: each acts on what its own agent has "
        "observed so far. What that costs, and how far the students follow:\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        f"Settings: `{changed}`"
    )


def _instructions(config: RunConfig, chosen: ChosenChoice) -> str:
    if not chosen.means:
        return (
            "## Instructions\n\nEvery agent has a copy of the conductor, which sees what all agents observe alike; the "
            "copies draw the same instruction with numbers that the team shares (`common`), without a message, as in "
            "training."
        )
    rows = "\n".join(f"| `{choice}` | {mean:.2f} |" for choice, mean in chosen.means.items())
    return (
        "## Instructions\n\nEvery agent chooses its instruction by what it observes alone: with numbers that the team "
        "shares (`common`), the likeliest (`argmax`), or with numbers of its own (`sample`). Unless told otherwise "
        f"this bundle's agents choose by `{chosen.choice}`; {chosen.episodes} episodes, the same for "
        f"all, brought what the table says. (In the table of evaluations `local` was played by "
        f"`{effective_choice(None, not config.settings().deterministic_evaluation)}`.)\n\n"
        f"| choice | mean return |\n|---|---|\n{rows}"
    )


def _rows(again: Redistillation) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in standings(again.plain()))


def _redistillation(again: Redistillation) -> str:
    bundled = (
        "`local` in the table of evaluations is from before." if again.kept else "The bundle has those of the training."
    )
    return (
        "## Local conductors\n\nAt export the local conductors were distilled once more, on steps of episodes that the "
        f"deployed team played ({again.rounds} rounds, {again.moments:,} steps), {verdict(again.plain())}. {bundled} "
        "Divergence from the central conductor and share of equal instructions, along the episodes of the team itself:"
        f"\n\n| {' | '.join(STANDINGS)} |\n|---|---|---|---|---|\n{_rows(again)}"
    )


def _provenance(config: RunConfig, checkpoint: Checkpoint, summary: dict[str, Any]) -> str:
    settings = {f"algorithm.{key}": value for key, value in config.algorithm_settings.items()}
    told_apart = {"steps", "seed", *(["device"] if config.run["device"] == "cpu" else [])}
    settings |= {f"run.{key}": value for key, value in config.run.items() if key not in told_apart}
    settings |= {f"env.{key}": value for key, value in config.environment_arguments.items()}
    words = ["hmarl-train", config.algorithm, "--env", config.environment, "--steps", str(config.run["steps"])]
    words += ["--seed", str(config.run["seed"])]
    for key, value in settings.items():
        words += ["--set", f"{key}={_value(value)}"]
    command = shlex.join(words)
    whole = summary.get("wall_s") and not summary.get("resumed_at")  # else the time of the last part alone is known
    duration = f", {summary['wall_s']:.0f} s on {summary['machine']['cores']} cores" if whole else ""
    return (
        f"## Training\n\nhmarl {config.hmarl_version}, seed {config.run['seed']}, "
        f"checkpoint at {checkpoint.counters.steps:,} steps{duration}. "
        f"{_repeated(config, summary)}:\n\n```\n{command}\n```"
    )


def _repeated(config: RunConfig, summary: dict[str, Any]) -> str:
    """What the command of a run brings when it is given again."""
    if summary.get("resumed_at"):
        return (
            "It was resumed. The same command on the same machine gives the same weights if the goal (`--steps`) was "
            "the same throughout and the environments' state can be saved"
        )
    if config.run["device"] != "cpu":
        return "The same command gives such a team again, up to what rounding makes of it on that device"
    return (
        "The same command on the same machine gives the same weights (up to rounding, if it was trained together with "
        "other seeds)"
    )


def _value(value: Any) -> str:
    """A value as ``--set`` reads it: text as it is, but for text that would be read as something else."""
    if isinstance(value, str) and parse_settings([f"env.x={value}"])["env"]["x"] == value:
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _yaml(text: str) -> str:
    """Text as a value of the front matter, in quotes where YAML would read something else."""
    return text if re.fullmatch(r"[A-Za-z](?:[\w./-]|:\w)*", text, re.ASCII) else json.dumps(text, ensure_ascii=False)
