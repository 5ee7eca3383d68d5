"""The model card of a bundle: what it is, how it was made, how well it does, with plots."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from hmarl.runtime.bundle import ParityModel

if TYPE_CHECKING:
    from hmarl.trainer.checkpoint import Checkpoint
    from hmarl.trainer.training import RunConfig

_COLOURS = {"local": "#0072b2", "central": "#d55e00", "random": "#999999", "none": "#cc79a7", "training": "#56b4e9"}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def return_plot(rows: list[dict[str, Any]], title: str) -> bytes:
    """Training and evaluation returns over environment steps, PNG."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    training = [(row["steps"], row["return"]) for row in rows if row.get("return") is not None]
    axes.plot(*zip(*training, strict=True), color=_COLOURS["training"], lw=1, label="training (sampled actions)")
    for name in ("local", "central", "random", "none"):
        key = f"evaluation/{name}/return_mean"
        points = [(row["steps"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            label = f"evaluation, {name} conductor" if name != "local" else "evaluation, deployed policies"
            axes.plot(*zip(*points, strict=True), "o-", ms=3, color=_COLOURS[name], label=label)
    axes.set(xlabel="environment steps", ylabel="return of the team", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def diagnostics_plot(rows: list[dict[str, Any]]) -> bytes:
    """Entropies and divergences over environment steps, PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, keys, label in (
        (left, ("agent_entropy", "instruction_entropy"), "entropy (nats)"),
        (right, ("agent_kl", "conductor_kl"), "mean KL(old ‖ new) (nats)"),
    ):
        for key in keys:
            points = [(row["steps"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), lw=1, label=key.replace("_", " "))
        axes.set(xlabel="environment steps", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def model_card(
    run: Path, config: RunConfig, checkpoint: Checkpoint, summary: dict[str, Any], parity: ParityModel, name: str
) -> tuple[str, dict[str, bytes]]:
    """The card as Markdown with Hugging Face front matter, and its plots by file name."""
    rows = read_metrics(run)
    plots = {}
    if any(row.get("return") is not None for row in rows):
        plots["plots/return.png"] = return_plot(rows, f"{config.algorithm} on {config.environment}")
        plots["plots/diagnostics.png"] = diagnostics_plot(rows)
    final = summary.get("final", {})
    table = "\n".join(
        f"| {key} | {row['return_mean']:.2f} | {row['return_median']:.2f} | {row['return_iqm']:.2f} "
        f"| {row['episodes']} |"
        for key, row in final.items()
    )
    deployed = final.get("local", {}).get("return_mean")
    sections = [
        _front_matter(config, deployed),
        f"# {name}",
        f"A team trained with **{config.algorithm}** on `{config.environment}`, one local policy per agent: each sees "
        "its own observation only and exchanges no message.",
        "## Use\n\n```\nhmarl-verify .\nhmarl-fleet . --out endpoints.json\n"
        f"hmarl-eval --endpoints endpoints.json --env {config.environment} --episodes 100 --seed 0\n```",
        "## Final evaluation\n\nReturns of deterministic policies, undiscounted episode sums of the team reward, fixed "
        f"seeds, at {summary.get('steps', 0):,} steps.\n\n| policies | mean | median | IQM | episodes |\n"
        f"|---|---|---|---|---|\n{table}"
        if table
        else "",
        "\n\n".join(f"![{Path(file).stem}]({file})" for file in plots),
        _provenance(config, checkpoint, summary),
        f"## Parity\n\nONNX Runtime (CPU) against torch on {parity.samples:,} random and rollout inputs: largest error "
        f"{parity.max_error:.1e}; no choice differed, {parity.near_ties} near ties apart.",
        "## Limits\n\nTrained in simulation for this task and these spaces; observations far from those seen in "
        "training are clipped at ten standard deviations, and nothing is promised there.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n", plots


def _front_matter(config: RunConfig, deployed: float | None) -> str:
    lines = ["---", "library_name: hmarl", "tags:", "- multi-agent-reinforcement-learning", f"- {config.algorithm}"]
    if deployed is not None:
        lines += [
            "model-index:", f"- name: {config.algorithm}", "  results:", "  - task:",
            "      type: reinforcement-learning",
            "    dataset:", f"      name: {config.environment}", f"      type: {config.environment}", "    metrics:",
            "    - type: mean_return", f"      value: {deployed:.2f}",
        ]  # fmt: skip
    return "\n".join([*lines, "---"])


def _provenance(config: RunConfig, checkpoint: Checkpoint, summary: dict[str, Any]) -> str:
    settings = " ".join(
        [f"--set algorithm.{key}={_value(value)}" for key, value in config.algorithm_settings.items()]
        + [
            f"--set run.{key}={_value(value)}"
            for key, value in config.run.items()
            if key not in ("steps", "seed", "device")
        ]
        + [f"--set env.{key}={_value(value)}" for key, value in config.environment_arguments.items()]
    )
    command = (
        f"hmarl-train {config.algorithm} --env {config.environment} --steps {config.run['steps']} "
        f"--seed {config.run['seed']} {settings}"
    )
    duration = f", {summary['wall_s']:.0f} s on {summary['machine']['cores']} cores" if summary.get("wall_s") else ""
    return (
        f"## Training\n\nhmarl {config.hmarl_version}, seed {config.run['seed']}, "
        f"checkpoint at {checkpoint.counters.steps:,} steps{duration}. "
        f"The same command on the same machine gives the same weights:\n\n```\n{command}\n```"
    )


def _value(value: Any) -> str:
    """A value as ``--set`` reads it, without characters that a shell would take apart."""
    text = json.dumps(value, separators=(",", ":"))
    return text.strip('"') if isinstance(value, str) else text
