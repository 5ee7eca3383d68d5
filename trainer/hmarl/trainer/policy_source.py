"""How ``hmarl-eval --run`` finds the trainer's policies, through the entry-point group ``hmarl.policy_sources``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmarl.sdk.errors import UsageError
from hmarl.sdk.team import Team
from hmarl.trainer.export import load_run
from hmarl.trainer.team import teams


def load_team(
    run: Path, *, variant: str | None = None, checkpoint: str = "best", sample: bool = False
) -> tuple[Team, str, dict[str, Any]]:
    """A run's policies in torch, its environment's name and arguments.

    Args:
        run: run directory.
        variant: ``local`` (what is deployed) or, for HCPO, ``central``, ``random`` or ``none``; None is ``local``.
        checkpoint: ``best``, ``last`` or a number of steps.
        sample: draw actions instead of argmax or mean.

    Raises:
        UsageError: unknown variant.
        CheckpointError: no run, or no such checkpoint.
    """
    loaded = load_run(run, checkpoint)
    known = teams(loaded.algorithm, sample)
    name = variant or "local"
    if name not in known:
        raise UsageError(f"variant: got '{name}', expected one of {', '.join(known)}")
    return known[name], loaded.config.environment, loaded.config.environment_arguments
