"""How a bundle's agents choose their instructions unless they are told: decided by playing.

What was trained, π_mar, is a mixture over instructions, drawn for the whole team at once. Local conductors follow it in
part; which of the choices then earns most is a matter of the task: ``common`` draws for all agents with the same
numbers, ``argmax`` plays one instruction a situation, which is another policy, and ``sample`` draws for each apart.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np

from hmarl.runtime.choices import CHOICES, InstructionChoice
from hmarl.sdk.environment import VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.environments.copies import evaluation_copies
from hmarl.sdk.evaluation.closed_loop import Evaluation, evaluate
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.runs.loaded_run import LoadedRun

# As good as each other are choices whose returns differ by less than their standard error; the first one is taken.
_PREFERRED: tuple[InstructionChoice, ...] = ("common", *(choice for choice in CHOICES if choice != "common"))
_SEED = 1_000_019


@dataclass(frozen=True)
class ChosenChoice:
    """What is chosen, and why.

    Attributes:
        choice: the default.
        means: mean return of every choice that was played; empty where nothing had to be decided.
        evaluation: of the episodes under the one that was chosen, the same for all; None where none were played.
    """

    choice: InstructionChoice
    means: dict[InstructionChoice, float]
    evaluation: Evaluation | None = None

    @property
    def episodes(self) -> int:
        """That each choice played."""
        return 0 if self.evaluation is None else self.evaluation.episodes

    @property
    def returns(self) -> np.ndarray:
        """[E] under the one that was chosen."""
        return np.zeros(0) if self.evaluation is None else np.asarray(self.evaluation.returns, np.float64)

    def plain(self) -> dict[str, object]:
        """For a manifest."""
        return {"chosen": self.choice, "mean_returns": self.means, "episodes": self.episodes, "seed": _SEED}


def decide_choice(loaded: LoadedRun) -> ChosenChoice | None:
    """The default choice of a run's agents; None for agents without conductors.

    A common-knowledge conductor's copies draw in common, as it was trained, whatever else might earn.
    """
    instructing = loaded.algorithm.instructing(0)
    if instructing is None:
        return None
    if instructing.sight is not None:
        return ChosenChoice("common", {})
    played = {choice: _play(loaded, choice) for choice in _PREFERRED}
    returns = {choice: np.asarray(evaluation.returns, np.float64) for choice, evaluation in played.items()}
    best = best_choice(returns)
    return ChosenChoice(best, {choice: float(values.mean()) for choice, values in returns.items()}, played[best])


def best_choice(returns: dict[InstructionChoice, np.ndarray]) -> InstructionChoice:
    """The first, in order of preference, that no other beats by more than the standard error of their difference.

    Args:
        returns: per choice [E] returns of the same episodes.
    """
    best = max(_PREFERRED, key=lambda choice: float(returns[choice].mean()))
    return next((choice for choice in _PREFERRED if not beaten(returns[choice], returns[best])), best)


def beaten(returns: np.ndarray, by: np.ndarray) -> bool:
    """Whether the others are higher on average by more than the standard error of the difference.

    Args:
        returns: [E].
        by: [E] the others, of the same episodes.
    """
    difference = by - returns
    error = float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return float(difference.mean()) > error


def playground(loaded: LoadedRun) -> VectorEnvironment:
    """Environments in which a run's evaluations are played."""
    config, settings = loaded.config, loaded.config.run_settings()
    copies = evaluation_copies(config.environment, settings.evaluation_episodes, settings.environments)
    return make(config.environment, copies, **config.environment_arguments)


def _play(loaded: LoadedRun, choice: InstructionChoice) -> Evaluation:
    """The deployed policies, playing as the run was evaluated."""
    settings = loaded.config.run_settings()
    team = LocalTeam(loaded.algorithm, not loaded.algorithm.settings.deterministic_evaluation, choice)
    with closing(playground(loaded)) as environment:
        return evaluate(
            environment, team, settings.evaluation_episodes, _SEED, step_limit=settings.evaluation_step_limit
        )
