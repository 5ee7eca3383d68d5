"""Local conductors are distilled once more at export, in the moments to which the deployed team comes.

In training they follow the conductor where the *conducted* team comes. Deployed, the team goes by what they say, and
elsewhere: there nothing has taught them. So a round plays the deployed team, asks the conductor what it would have said
at every step, and lets the local conductors learn that until it no longer helps; rounds follow each other, on all
moments so far, while the divergence in new moments falls. What comes out is kept if playing with it is not worse.

Source: Ross et al. 2011 (DAgger) for the rounds; HCPO, Algorithm 1, line 10, for what is learnt. That it is done at
export is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hmarl.runtime.choices import InstructionChoice
from hmarl.sdk.environment import Observation
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.contract.stand_ins import Following, StandIns, Visited
from hmarl.trainer.export.instruction_choice import ChosenChoice, beaten, decide_choice, playground
from hmarl.trainer.runs.loaded_run import LoadedRun
from hmarl.trainer.runs.seeds import REDISTILLATION, derived_seeds

_ROUNDS = 5
_LEAST_IMPROVEMENT = 0.01


@dataclass(frozen=True)
class Standing:
    """How the deployed team stands.

    Attributes:
        kl, agreement: as of ``Following``, in the moments to which this very team comes.
        return_mean: of the episodes by which the instruction choice is decided, too.
        choice: by which its agents choose their instructions.
    """

    kl: float
    agreement: float
    return_mean: float
    choice: InstructionChoice


@dataclass(frozen=True)
class Redistillation:
    """What came of it.

    Attributes:
        kept: whether the bundle has what was learnt.
        before: as trained.
        after: as learnt, kept or not.
        rounds: that were made.
        moments: that were learnt from.
        chosen: how the bundle's agents choose their instructions.
    """

    kept: bool
    before: Standing
    after: Standing
    rounds: int
    moments: int
    chosen: ChosenChoice

    def plain(self) -> dict[str, Any]:
        """For a manifest."""
        return {name: value for name, value in asdict(self).items() if name != "chosen"}


STANDINGS = ("local conductors", "KL (nats)", "agreement", "mean return", "instructions by")


def standings(again: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows under ``STANDINGS``: how the deployed team stood before and after.

    Args:
        again: what ``Redistillation.plain`` returned.
    """
    return [
        (when, f"{row['kl']:.4f}", f"{row['agreement']:.1%}", f"{row['return_mean']:.2f}", str(row["choice"]))
        for when, row in (("as trained", again["before"]), ("distilled once more", again["after"]))
    ]


def verdict(again: Mapping[str, Any]) -> str:
    """Whether the bundle has what was learnt, and why not; ``again`` as for ``standings``."""
    if again["kept"]:
        return "kept"
    return "not kept: " + (
        "the team plays worse with them"
        if again["after"]["kl"] < again["before"]["kl"]
        else "they follow no better than before"
    )


def redistil(loaded: LoadedRun, chosen: ChosenChoice) -> Redistillation | None:
    """Let a run's local conductors learn once more, in place; None where nothing stands in for a conductor.

    Everything follows from the run's seed; nothing is written. What is not kept is undone.

    Args:
        loaded: on the CPU.
        chosen: how instructions are chosen as trained.
    """
    stand_ins = loaded.algorithm.stand_ins()
    if stand_ins is None:
        return None
    torch.set_num_threads(loaded.config.run_settings().threads)
    trained = [theta.clone() for theta in stand_ins.thetas]
    words = derived_seeds(loaded.config.run_settings().seed, REDISTILLATION, _ROUNDS + 2).tolist()
    generator = torch.Generator().manual_seed(words[0])
    learnt = until_settled(
        stand_ins, lambda number: _visit(loaded, stand_ins, chosen.choice, words[1 + number]), generator
    )
    follows_better = learnt.after.kl < learnt.before.kl
    now = (decide_choice(loaded) if follows_better else None) or chosen
    kept = follows_better and not beaten(now.returns, by=chosen.returns)
    if not kept:
        _put_back(stand_ins, trained)
    before, after = (
        Standing(following.kl, following.agreement, float(choice.returns.mean()), choice.choice)
        for following, choice in ((learnt.before, chosen), (learnt.after, now))
    )
    return Redistillation(kept, before, after, learnt.rounds, learnt.moments, now if kept else chosen)


@dataclass(frozen=True)
class Learnt:
    """What the rounds came to; see ``Redistillation``."""

    before: Following
    after: Following
    rounds: int
    moments: int


def until_settled(stand_ins: StandIns, visit: Callable[[int], Visited], generator: torch.Generator) -> Learnt:
    """Rounds of playing and learning, until one brings less than a hundredth where the team then comes, or five.

    The stand-ins end as they were when they followed best.

    Args:
        stand_ins: changed in place.
        visit: plays the deployed team as it is then, the number of the round its argument.
        generator: of the minibatches.
    """
    moments = [visit(0)]
    before = best = stand_ins.compare(moments[0])
    best_thetas, rounds, learnt_from = [theta.clone() for theta in stand_ins.thetas], 0, 0
    while rounds < _ROUNDS:
        rounds += 1
        learnt_from = sum(map(len, moments))
        stand_ins.learn(Visited.join(moments), generator)
        moments.append(visit(rounds))
        now = stand_ins.compare(moments[-1])
        settled = now.kl >= (1.0 - _LEAST_IMPROVEMENT) * best.kl
        if now.kl < best.kl:
            best, best_thetas = now, [theta.clone() for theta in stand_ins.thetas]
        if settled:
            break
    _put_back(stand_ins, best_thetas)
    return Learnt(before, best, rounds, learnt_from)


def _put_back(stand_ins: StandIns, thetas: list[torch.Tensor]) -> None:
    for theta, value in zip(stand_ins.thetas, thetas, strict=True):
        theta.copy_(value)


def _visit(loaded: LoadedRun, stand_ins: StandIns, choice: InstructionChoice, seed: int) -> Visited:
    """Episodes of the deployed team, played as a bundle plays them."""
    settings = loaded.config.run_settings()
    team = LocalTeam(loaded.algorithm, not loaded.algorithm.settings.deterministic_evaluation, choice)
    watched = WatchedTeam(team, stand_ins.remember)
    with closing(playground(loaded)) as environment:
        evaluate(environment, watched, settings.evaluation_episodes, seed, step_limit=settings.evaluation_step_limit)
    return watched.visited()


def _kept(block: npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> torch.Tensor:
    """A copy of some rows; pictures of bytes stay bytes."""
    kept = torch.tensor(block[rows])
    return kept if kept.dtype == torch.uint8 else kept.float()


class WatchedTeam:
    """A deployed team, with everything that it meets kept.

    Args:
        team: that acts.
        remembers: whether its agents see the instruction before.
    """

    name = LocalTeam.name

    def __init__(self, team: LocalTeam, remembers: bool) -> None:
        self._team, self._remembers = team, remembers
        self._met: list[Visited] = []

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes."""
        self._team.reset(seeds)

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """The team's actions; of episodes that still run, what is seen is kept."""
        rows = np.flatnonzero(running)
        seen = Observation(
            tuple(_kept(block, rows) for block in observation.observations),
            (),
            _kept(observation.state, rows),
            torch.tensor(observation.active[rows]),
        )
        last = self._team.carried("last_instruction") if self._remembers else []
        self._met.append(Visited(seen, [block[rows] for block in last]))
        return self._team.act(observation, running)

    def visited(self) -> Visited:
        """All that it has met."""
        return Visited.join(self._met)

    def close(self) -> None:
        """Nothing to free."""
