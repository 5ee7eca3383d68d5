"""Whether the agents of mpe/simple_spread have landmarks of their own, or divide them anew in every episode.

    python scripts/roles.py runs/study/mpe-simple_spread-* --out docs/results

Plays each run's deployed policies and looks which landmark each agent is nearest to at the end. A team with fixed roles
has an assignment that it keeps; one that divides landmarks by who is near has none, and shorter ways.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime import command_line
from hmarl.runtime.command_line import PATH, argument, command, integer, option
from hmarl.sdk import UsageError, evaluate, make_environment
from hmarl.sdk.environment import Observation
from hmarl.sdk.files import write_text
from hmarl.sdk.spaces import AgentSpec
from hmarl.sdk.team import Team
from hmarl.trainer.export.policy_source import load_team

_SEED = 70_000  # what the episodes' seeds are derived from: no evaluation's are
_HEADER = ("run", "return, mean", "at its usual landmark", "all landmarks covered")


def usual_share(nearest: npt.NDArray[np.int64]) -> float:
    """How often an agent is at the landmark that is its own in the assignment that the team comes closest to.

    Args:
        nearest: [E, N] the landmark that each agent is nearest to, of N.

    Returns:
        1 where every agent has a landmark for ever, 1/N where all assignments are as frequent.
    """
    agents = nearest.shape[1]
    frequency = (nearest[:, :, None] == np.arange(agents)).mean(0)  # [N, N]
    return max(float(frequency[range(agents), own].mean()) for own in map(list, permutations(range(agents))))


def covered_share(nearest: npt.NDArray[np.int64]) -> float:
    """The share of episodes in which no two agents are nearest to the same landmark, of [E, N]."""
    return float((np.sort(nearest, axis=1) == np.arange(nearest.shape[1])).all(1).mean())


class Watched:
    """A team that is watched on mpe/simple_spread.

    Args:
        team: acts.
        agent: any of its agents, which all observe alike.

    Attributes:
        nearest: [E, N] the landmark that each agent of E episodes was nearest to when it acted last.

    Raises:
        UsageError: the agents observe no landmarks.
    """

    def __init__(self, team: Team, agent: AgentSpec) -> None:
        self.team, self.name, self.nearest = team, team.name, np.zeros((0, 0), np.int64)
        self._columns = agent.observation_columns("landmarks_relative")
        if not self._columns:
            raise UsageError("RUN: got a task whose agents observe no landmarks, expected mpe/simple_spread")

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start the team's episodes."""
        self.team.reset(seeds)

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """The team's actions."""
        relative = observation.observations[0][..., self._columns]
        self.nearest = np.linalg.norm(relative.reshape(*relative.shape[:2], -1, 2), axis=-1).argmin(-1)
        return self.team.act(observation, running)

    def close(self) -> None:
        """Close the team."""
        self.team.close()


def played(run: Path, episodes: int) -> tuple[float, npt.NDArray[np.int64]]:
    """The mean return of a run's deployed policies, and [E, N] the landmark that each agent ends nearest to."""
    make_team, name, arguments = load_team(run, checkpoint="last")
    environment = make_environment(name, episodes, **arguments)
    team = Watched(make_team(environment.spec), environment.spec.agents[0])
    with closing(environment), closing(team):
        returns = evaluate(environment, team, episodes, seed=_SEED).returns
    return float(returns.mean()), team.nearest


def rows(runs: Sequence[Path], episodes: int) -> Iterator[tuple[str, ...]]:
    """The table."""
    yield _HEADER
    yield ("---",) * len(_HEADER)
    for run in runs:
        mean, nearest = played(run, episodes)
        yield run.name, f"{mean:.2f}", f"{usual_share(nearest):.0%}", f"{covered_share(nearest):.0%}"


@command(
    "scripts/roles.py",
    argument("runs", "run directories, of mpe/simple_spread", PATH, many=True),
    option("--out", "where roles.md goes", PATH, default=Path("docs/results")),
    option("--episodes", "played by each run's deployed policies", integer(1), default=1000),
)
def main(runs: tuple[Path, ...], out: Path, episodes: int) -> None:
    """Play every run and write the table."""
    paragraphs = [
        "# Roles on simple_spread",
        "Made by `python scripts/roles.py RUN …`. Shows which landmark each agent is nearest to at the end of "
        f"{episodes:,} episodes, with the greedy actions of the last policies. *At its usual landmark*: how often an "
        "agent is at its own landmark in the assignment that the team comes closest to; by chance, a third.",
        "\n".join(f"| {' | '.join(row)} |" for row in rows(runs, episodes)),
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "roles.md", "\n\n".join(paragraphs) + "\n")
    print(f"wrote {out / 'roles.md'}")


if __name__ == "__main__":
    sys.exit(command_line.run(main))
