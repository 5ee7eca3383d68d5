"""The dynamic graph G*_t: who exchanges messages with whom, and who reports to which sub-manager.

Both follow from the agents' positions, which are read from the part of their observations that is called
``position``. Where an environment does not say where its agents are, all agents are near one another.

Source: Marzi et al. 2025, "Hierarchical Message-Passing Policies for Multi-Agent Reinforcement Learning", section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec

GraphKind = Literal["radius", "nearest", "all", "none"]
_CLUSTER_ROUNDS = 4  # of reassigning agents and moving centres; a handful of agents settles sooner


class Positions:
    """Reads where the agents are from their observations.

    Args:
        spec: the environment.

    Attributes:
        dimensions: of a position; 0 when at least one agent's observation has no part ``position``.
    """

    def __init__(self, spec: EnvironmentSpec) -> None:
        # Agents of a group need not observe in the same order.
        of_agents = [list(agent.observation_columns("position")) for agent in spec.agents]
        columns = [[of_agents[agent] for agent in group.agents] for group in spec.groups]
        self._natural = torch.tensor(natural_order(spec))
        widths = {len(of_agent) for of_agent in of_agents}
        self.dimensions = widths.pop() if len(widths) == 1 else 0
        self._columns = [torch.tensor(group) for group in columns] if self.dimensions else []

    def __call__(self, observations: Sequence[Tensor]) -> Tensor:
        """[..., N, dimensions] of raw observations per group [..., N_group, D]."""
        if not self.dimensions:
            lead = observations[0].shape[:-2]
            return observations[0].new_zeros(*lead, len(self._natural), 0)
        parts = [
            seen.gather(-1, columns.to(seen.device).expand(*seen.shape[:-1], -1))
            for seen, columns in zip(observations, self._columns, strict=True)
        ]
        return torch.cat(parts, dim=-2).index_select(-2, self._natural.to(parts[0].device))


def natural_order(spec: EnvironmentSpec) -> list[int]:
    """For every agent its place when the groups are put one after the other."""
    grouped = [agent for group in spec.groups for agent in group.agents]
    return [grouped.index(agent) for agent in range(len(spec.agents))]


def message_edges(positions: Tensor, active: Tensor, kind: GraphKind, radius: float, nearest: int) -> Tensor:
    """[M, N, N] bool: entry [m, i, j] says that i hears j. No agent hears itself, or one that has left.

    Args:
        positions: [M, N, P]; of no matter for ``all`` and ``none``.
        active: [M, N] bool.
        kind: ``radius``: all within it; ``nearest``: the k nearest; ``all``; ``none``.
        radius: in units of the positions.
        nearest: k.
    """
    agents = active.shape[-1]
    present = active.unsqueeze(-1) & active.unsqueeze(-2)
    present = present & ~torch.eye(agents, dtype=torch.bool, device=active.device)
    if kind == "none":
        return torch.zeros_like(present)
    if kind == "all" or agents == 1:
        return present
    distance = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    if kind == "radius":
        return present & (distance <= radius)
    distance = distance.masked_fill(~present, torch.inf)
    closest = distance.topk(min(nearest, agents - 1), dim=-1, largest=False).indices
    return present & torch.zeros_like(present).scatter(-1, closest, True)


def first_centres(positions: Tensor, active: Tensor, count: int) -> Tensor:
    """[M, S, P] centres far from one another: the agent farthest from the middle, then always the agent farthest from
    all centres so far.

    Args:
        positions: [M, N, P].
        active: [M, N] bool.
        count: S.
    """
    weight = active.unsqueeze(-1).float()
    middle = (positions * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1.0)
    distance = (positions - middle).square().sum(-1)
    centres: list[Tensor] = []
    for _ in range(count):
        farthest = distance.masked_fill(~active, -1.0).argmax(-1)
        centre = positions.gather(-2, farthest.view(-1, 1, 1).expand(-1, 1, positions.shape[-1]))
        centres.append(centre)
        apart = (positions - centre).square().sum(-1)
        distance = apart if len(centres) == 1 else torch.minimum(distance, apart)
    return torch.cat(centres, dim=-2)


def spatial_clusters(positions: Tensor, active: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means from given centres, so that a cluster keeps its number while its agents wander.

    Args:
        positions: [M, N, P].
        active: [M, N] bool; agents who have left move no centre.
        centres: [M, S, P].

    Returns:
        [M, N] int64 clusters, and [M, S, P] centres; that of an empty cluster stays where it was.
    """
    count = centres.shape[-2]
    for _ in range(_CLUSTER_ROUNDS):
        cluster = (positions.unsqueeze(-2) - centres.unsqueeze(-3)).square().sum(-1).argmin(-1)
        belongs = membership(cluster, active, count)
        size = belongs.sum(-2).unsqueeze(-1)
        centres = torch.where(size > 0, belongs.mT @ positions / size.clamp(min=1.0), centres)
    return cluster, centres


def clusters_by_number(agents: int, count: int) -> Tensor:
    """[N] int64: as many neighbouring numbers for each of S sub-managers, where nothing is known of positions."""
    return torch.arange(agents) * count // agents


def membership(cluster: Tensor, active: Tensor, count: int) -> Tensor:
    """[M, N, S] float32, 1 where an agent that is there belongs to a cluster."""
    belongs = torch.nn.functional.one_hot(cluster, count)
    return (belongs * active.unsqueeze(-1)).float()
