"""Who is served: the agents that were trained, some of them, or more agents like them.

A roster names every agent and, for one that was not trained, the interchangeable agent by whose graph it acts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import UsageError

Roster = dict[str, str | None]


def split_names(text: str) -> list[str]:
    """The entries of ``NAME[=LIKE],...``; one with a comma in it stands in double quotes, its own quotes doubled.

    Raises:
        UsageError: a quote that is not closed.
    """
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UsageError(
            f'agents: got {text}: {error}, expected NAME[=LIKE],... with names that contain a comma as "NAME"'
        ) from error
    return [entry.strip() for row in rows for entry in row] or [""]


def named_roster(bundle: Bundle, names: Iterable[str]) -> Roster:
    """The roster of some names, each ``NAME`` or ``NAME=LIKE``.

    Without ``=LIKE`` a name that was not trained acts like the bundle's interchangeable agents, if those are of one
    kind.

    Raises:
        UsageError: a name is empty or comes twice, or no agent, or several kinds of them, could act for it.
    """
    roster: Roster = {}
    for word in names:
        name, like = _parted(bundle, word)
        if name in roster:
            raise UsageError(f"agents: got '{name}' twice, expected every name once")
        if like is None and name not in bundle.agent_ids:
            like = _only_kind(bundle, f"agents: '{name}' was not trained", name)[0]
        roster[bundle.agent(name, like).id] = like
    return roster


def _parted(bundle: Bundle, word: str) -> tuple[str, str | None]:
    """``NAME`` or ``NAME=LIKE``; names may contain the sign: a trained agent's is not parted, and LIKE is one."""
    if word in bundle.agent_ids:
        return word, None
    parts = word.split("=")
    ways = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
    return next((way for way in ways if way[1] in bundle.agent_ids), ways[0] if ways else (word, None))


def counted_roster(bundle: Bundle, count: int) -> Roster:
    """The first ``count`` trained agents, followed, when these are too few, by further ones numbered on from them.

    Raises:
        UsageError: more than were trained, and not exactly one kind of agents is interchangeable, or their names do not
            end in numbers.
    """
    roster: Roster = dict.fromkeys(bundle.agent_ids[:count])
    if len(roster) == count:
        return roster
    kind = _only_kind(bundle, f"count: got {count}, but {len(roster)} agents were trained", "NAME")
    numbered = [re.fullmatch(r"(.*?)(\d+)", name, re.DOTALL) for name in kind]
    last = max((match for match in numbered if match), key=lambda match: int(match[2]), default=None)
    if last is None:
        raise UsageError(
            f"count: got {count}, but the names of {', '.join(kind)} do not end in numbers that could be carried on; "
            "give all names: --agents NAME,NAME,..."
        )
    number = int(last[2])
    while len(roster) < count:
        number += 1
        roster.setdefault(f"{last[1]}{number:0{len(last[2])}d}", kind[0])
    return roster


def _only_kind(bundle: Bundle, problem: str, name: str) -> list[str]:
    """Ids of the bundle's interchangeable agents, which must share one graph; for messages why, and for whom."""
    kinds: dict[str, list[str]] = {}
    for agent in bundle.manifest.agents:
        if agent.interchangeable:
            kinds.setdefault(agent.file, []).append(agent.id)
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    if not kinds:
        raise UsageError(
            f"{problem}, and no agent of bundle {bundle.path} is interchangeable (trained: "
            f"{', '.join(bundle.agent_ids)}); agents trained with algorithm.share_parameters=true and "
            "algorithm.agent_identity=false are"
        )
    choices = [ids[0] for ids in kinds.values()]
    raise UsageError(
        f"{problem}, and another may act like any of {', '.join(choices)}: say which, e.g. --agents {name}={choices[0]}"
    )
