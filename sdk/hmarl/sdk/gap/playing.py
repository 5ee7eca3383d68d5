"""Plays the rungs, one after the other, in waves of episodes that are kept as they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.environments import make
from hmarl.sdk.environments.faulty import ARGUMENT, is_faults
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.gap.document import Serving
from hmarl.sdk.gap.kept import Kept, Wave, joined, wave_of
from hmarl.sdk.gap.ladder import Rung


class Watcher(Protocol):
    """Is told how far it is."""

    def begins(self, rung: Rung) -> None:
        """A rung is about to be played."""
        ...

    def played(self, episodes: int) -> None:
        """So many episodes are done in all, those that were kept included."""
        ...


@dataclass(frozen=True)
class Games:
    """What every rung plays.

    Attributes:
        environment: its name.
        arguments: of the environment, without faults.
        episodes: E.
        seed: what the episodes' seeds are derived from.
        batch_size: environments side by side.
        step_limit: see ``limit_of``.
    """

    environment: str
    arguments: Mapping[str, Any]
    episodes: int
    seed: int
    batch_size: int
    step_limit: int | None = None


def without_faults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """An environment's own arguments."""
    return {key: value for key, value in arguments.items() if not is_faults(key)}


def play(rungs: Sequence[Rung], games: Games, kept: Kept, watcher: Watcher) -> list[Wave]:
    """All episodes of all rungs, those that are kept already not again.

    Returns:
        For each rung its E episodes.
    """
    found = []
    for place, rung in enumerate(rungs):
        waves = kept.waves(place, rung.name)
        done = sum(len(each.returns) for each in waves)
        if done < games.episodes:
            watcher.begins(rung)
            before = place * games.episodes
            waves += _play_rung(place, rung, games, kept, done, before, watcher)
        found.append(joined(waves))
        watcher.played((place + 1) * games.episodes)
    return found


def _play_rung(
    place: int, rung: Rung, games: Games, kept: Kept, done: int, before: int, watcher: Watcher
) -> list[Wave]:
    """The waves of a rung that are missing; ``before`` episodes belong to the rungs before."""
    waves = []
    arguments = {**games.arguments, **({ARGUMENT: rung.faults} if rung.faults else {})}
    with (
        closing(make(games.environment, batch_size=games.batch_size, **arguments)) as environment,
        closing(rung.make_team(environment.spec)) as team,
    ):
        for first in range(done, games.episodes, games.batch_size):
            evaluation = evaluate(
                environment,
                team,
                min(games.batch_size, games.episodes - first),
                games.seed,
                first=first,
                record=True,
                step_limit=games.step_limit,
                progress=lambda played, _, first=first: watcher.played(before + first + played),  # type: ignore[misc]
            )
            wave = wave_of(first, evaluation, environment.spec, _serving(evaluation.serving))
            kept.add(place, rung.name, wave)
            waves.append(wave)
    return waves


def _serving(counted: AgentStatistics | None) -> Serving | None:
    """What was counted, as gaps keep it."""
    if counted is None:
        return None
    names = [name for name in Serving.__struct_fields__ if name != "reasons"]
    reasons = dict(sorted(counted.fallback_reasons.items()))
    return Serving(reasons=reasons, **{name: getattr(counted, name) for name in names})
