"""How ``hmarl-eval --run`` finds the trainer's policies, through the entry-point group ``hmarl.policy_sources``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hmarl.runtime.choices import InstructionChoice
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import Team
from hmarl.trainer.conductors.teams import NOT_CONDUCTED
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.runs.loaded_run import load_run


def load_team(
    run: Path,
    *,
    variant: str | None = None,
    checkpoint: str = "best",
    sample: bool = False,
    instruction_choice: InstructionChoice | None = None,
) -> tuple[Callable[[EnvironmentSpec], Team], str, dict[str, Any]]:
    """What makes a team for an environment of a run's policies in torch, and its own environment's name and arguments.

    It plays on as many threads as it was trained on (``run.threads``).

    Args:
        run: run directory.
        variant: a name of the algorithm's ``teams``: ``local`` (what is deployed), ``central``, ``random`` or ``none``
            under a conductor, ``guider``, and so on; None is the first of them.
        checkpoint: ``best``, ``last`` or a number of steps.
        sample: draw actions instead of argmax or mean.
        instruction_choice: how the local conductors choose, see ``PolicySession.reset``; ``local`` alone has a choice.

    Raises:
        UsageError: unknown variant, or an instruction choice for one without.
        CheckpointError: no run, or no such checkpoint.
    """
    loaded = load_run(run, checkpoint)
    # As in training: small batches on more threads mostly wait for them.
    torch.set_num_threads(loaded.config.run_settings().threads)
    algorithm = loaded.algorithm
    known = algorithm.teams(sample)
    name = variant or next(iter(known))
    if name not in known:
        raise UsageError(f"variant: got '{name}', expected one of {', '.join(known)}")
    if instruction_choice is not None and (name != "local" or not set(NOT_CONDUCTED) <= set(known)):
        of = f"the variant {name}" if name != "local" else loaded.config.algorithm
        raise UsageError(f"instruction_choice: got '{instruction_choice}', but {of} has no instructions to choose")

    def make_team(spec: EnvironmentSpec) -> Team:
        if name == "local":
            return LocalTeam(algorithm, sample, instruction_choice, spec)
        got, trained = ((each.state_size, *each.agent_ids) for each in (spec, algorithm.spec))
        if got != trained:
            raise UsageError(
                f"variant {name}: got an environment with the agents {', '.join(spec.agent_ids)} and a state of "
                f"{spec.state_size}, expected {', '.join(algorithm.spec.agent_ids)} and {algorithm.spec.state_size} as "
                "in training; the variant local plays in teams of other sizes where agents are interchangeable"
            )
        return known[name]

    return make_team, loaded.config.environment, loaded.config.environment_arguments
