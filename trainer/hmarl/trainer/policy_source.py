"""How ``hmarl-eval --run`` finds the trainer's policies, through the entry-point group ``hmarl.policy_sources``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmarl.runtime.session import InstructionChoice
from hmarl.sdk.errors import UsageError
from hmarl.sdk.team import Team
from hmarl.trainer.export import load_run
from hmarl.trainer.team import teams


def load_team(
    run: Path,
    *,
    variant: str | None = None,
    checkpoint: str = "best",
    sample: bool = False,
    instruction_choice: InstructionChoice | None = None,
) -> tuple[Team, str, dict[str, Any]]:
    """A run's policies in torch, its environment's name and arguments.

    Args:
        run: run directory.
        variant: ``local`` (what is deployed) or, for HCPO, ``central``, ``random`` or ``none``; None is ``local``.
        checkpoint: ``best``, ``last`` or a number of steps.
        sample: draw actions instead of argmax or mean.
        instruction_choice: how the local conductors choose, see ``PolicySession.reset``; ``local`` alone has a choice.

    Raises:
        UsageError: unknown variant, or an instruction choice for one without.
        CheckpointError: no run, or no such checkpoint.
    """
    loaded = load_run(run, checkpoint)
    known = teams(loaded.algorithm, sample, instruction_choice)
    name = variant or "local"
    if name not in known:
        raise UsageError(f"variant: got '{name}', expected one of {', '.join(known)}")
    if instruction_choice is not None and (name != "local" or len(known) == 1):
        of = f"the variant {name}" if name != "local" else loaded.config.algorithm
        raise UsageError(f"instruction_choice: got '{instruction_choice}', but {of} has no instructions to choose")
    return known[name], loaded.config.environment, loaded.config.environment_arguments
