"""A small task for each family of environments, for tests that go through all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """A small task that stands for its family.

    Attributes:
        environment: its name, ``FAMILY/TASK``.
        arguments: that keep its episodes short and its copies in this process.
        discrete: further ones that make its actions discrete, for algorithms that learn no others.
    """

    environment: str
    arguments: dict[str, Any] = field(default_factory=dict)
    discrete: dict[str, Any] = field(default_factory=dict)


# Two agents each where that is possible: most of a cell's time goes into exporting one graph per agent.
SKIRMISH = {"entry": "skirmish:Skirmish", "workers": 0, "n_agents": 2}  # StarCraft II itself is not needed
TASKS = {
    "mpe": Task("mpe/simple_spread", {"N": 2, "max_cycles": 8}),
    "coordsum": Task("coordsum/2x10-20"),
    # Unlike agents, one of them with continuous actions, one that leaves.
    "pettingzoo": Task("pettingzoo/parallel_toys:Trio", {"workers": 0}),
    "vmas": Task("vmas/navigation", {"n_agents": 2, "max_steps": 8}, discrete={"continuous_actions": False}),
    "lbf": Task("lbf/8x8-2p-2f-coop", {"max_episode_steps": 8, "workers": 0}),
    "rware": Task("rware/tiny-2ag", {"max_steps": 8, "workers": 0}),
    "smac": Task("smac/3m", SKIRMISH),
    "smacv2": Task("smacv2/10gen_terran", SKIRMISH),
    "smax": Task("smax/3m", {"max_steps": 8}),
    "mamujoco": Task("mamujoco/Walker2d-2x3", {"horizon": 8, "threads": 1}),
    # Agents who do not find food leave.
    "lbfws": Task("lbfws/hard", {"agents": 2, "size": 5, "horizon": 8, "endurance": 6}),
}
