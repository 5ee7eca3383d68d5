"""The plots of a run, which are its algorithm's."""

from __future__ import annotations

from pathlib import Path

from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.shown import return_plot
from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.records.plots import draw_plots, write_plots
from hmarl.trainer.records.problems import Problems
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.directory import resume_command


def run_plots(directory: Path, config: RunConfig, algorithm: Algorithm) -> dict[str, bytes]:
    """All plots for which a run has metrics, PNG by file name."""
    title = f"{config.algorithm} on {config.environment}"
    return draw_plots(read_metrics(directory), title, (return_plot(algorithm.teams()), *algorithm.plots))


def draw_run(directory: Path, config: RunConfig, algorithm: Algorithm, problems: Problems) -> None:
    """Write plots/; what keeps them from being drawn is reported to ``problems``."""
    try:
        write_plots(directory, run_plots(directory, config, algorithm))
    except Exception as error:
        told = f"plots: not drawn ({type(error).__name__}: {error})"
        problems.add("plots", told, f"{resume_command(directory)} draws them again")
