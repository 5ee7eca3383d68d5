"""Whose policy improves when: one agent after the other, or all at once.

Both hand every agent's ``improve`` a ``Turn``, which is all that it may know. One after the other (HATRPO, Algorithm 1,
lines 5 to 11):

    F ← 1
    for an order i_1 … i_N of the agents:
        θ^{i_m} ← improve on the advantage given F, e.g. F · Â
        F ← F · π^{i_m}_new(a|o) / π^{i_m}_old(a|o)

π_old is the policy before the first turn, which collected the samples. Where agents share parameters, each turn moves
the policies of all of them: F then is Π π_now/π_old over the agents that have had their turn, with their policies as
they are when it is the next one's.

Source: Kuba et al. 2022, "Trust Region Policy Optimisation in Multi-Agent Reinforcement Learning"; Zhong et al. 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.learning.metrics import Figure, read
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.sequential.samples import AgentSamples, TeamSamples


@dataclass(frozen=True)
class Turn:
    """What is known when one agent's policy improves, or the policy of several agents who share it.

    Attributes:
        agent: whose turn it is, the first of those who share the policy.
        group, member: the agent's group, and which of its members it is.
        policy: of the group; improved in place.
        samples: the agents' part of the rollout, M rows, with the weights that a conductor's update has left.
        advantages: [M] what is to be maximised.
        factor: [M] F, the product of the ratios π_now/π_old of the agents before; all 1 where all improve at once.
        place: in the order, from 1; agents: N.
        schedule: factor on step sizes.
        progress: share of the training done, in [0, 1).
    """

    agent: int
    group: int
    member: int
    policy: GroupPolicy
    samples: AgentSamples
    advantages: Tensor
    factor: Tensor
    place: int
    agents: int
    schedule: float = 1.0
    progress: float = 0.0

    @property
    def units(self) -> int:
        """See ``AgentSamples.units``."""
        return self.samples.units

    def take(self, units: Tensor) -> Turn:
        """The same with a part of the samples, ``units`` [u] int64 (see ``AgentSamples.units``)."""
        rows = self.samples.rows(units)
        return replace(
            self, samples=self.samples.take(units), advantages=self.advantages[rows], factor=self.factor[rows]
        )

    @property
    def kind(self) -> Hashable:
        """Equal for turns of one algorithm that can be stacked; None where samples cannot be."""
        shapes = self.samples.shapes
        return None if shapes is None else (self.group, self.place, self.agents, shapes)

    @staticmethod
    def stacked(turns: Sequence[Turn]) -> Turn:
        """Turns of one ``kind`` as one whose tensors have a leading dimension [S, ...], the policy the first one's."""
        return replace(
            turns[0],
            samples=AgentSamples.stacked([turn.samples for turn in turns]),
            advantages=torch.stack([turn.advantages for turn in turns]),
            factor=torch.stack([turn.factor for turn in turns]),
        )


@dataclass(frozen=True)
class Improvement:
    """What one turn made.

    Attributes:
        policy: the new policy at the turn's samples, without gradient.
        metrics: of the update; scalars on the device are read when all agents have had their turn.
    """

    policy: Distribution
    metrics: Mapping[str, Figure]


@dataclass(frozen=True)
class Move:
    """What all turns together have made of one agent's policy.

    Attributes:
        collected: its samples, ``old`` being the policy that collected them.
        policy: the new policy at these samples, without gradient.
    """

    collected: AgentSamples
    policy: Distribution


Order = Callable[[Sequence[int], Tensor], int]
"""Whose turn is next: of the agents that remain, ascending, given F [M]."""


def random_order(generator: torch.Generator) -> Order:
    """A random permutation, drawn agent by agent from a CPU generator."""

    def next_agent(remaining: Sequence[int], factor: Tensor) -> int:
        return remaining[int(torch.randint(len(remaining), (), generator=generator))]

    return next_agent


def one_after_the_other(
    team: TeamSamples,
    order: Order,
    advantage: Callable[[int, Tensor], Tensor],
    improve: Callable[[Turn], Improvement],
    *,
    schedule: float = 1.0,
    progress: float = 0.0,
    moved: Callable[[Move], None] | None = None,
) -> dict[str, float]:
    """Every agent improves once, knowing how those before it have changed.

    Args:
        team: the rollout.
        order: whose turn is next.
        advantage: an agent and F [M] ↦ [M] what it maximises when it is its turn.
        improve: improves a policy in place.
        schedule: factor on step sizes.
        progress: share of the training done, in [0, 1).
        moved: told of every agent how far its policy has come: after its turn, or after the last one if it shares
            parameters.

    Returns:
        ``per_agent_metrics``, and the largest F.
    """
    remaining, agents = list(range(len(team.spec.agents))), len(team.spec.agents)
    none = torch.ones(team.rollout.team_rewards.numel(), device=team.rollout.team_rewards.device)
    factor, ratios = none, dict[int, Tensor]()  # of the agents that have had their turn, π_now/π_old [M]
    shared = SharedTurns(team)
    rows: dict[int, Mapping[str, Figure]] = {}
    while remaining:
        agent = order(remaining, factor)
        remaining.remove(agent)
        group, member = team.place_of(agent)
        turn = Turn(
            agent,
            group,
            member,
            team.policies[group],
            shared.of_agent(agent),
            advantage(agent, factor),
            factor,
            agents - len(remaining),
            agents,
            schedule,
            progress,
        )
        improvement = improve(turn)
        rows[agent] = improvement.metrics
        if moved is not None and not shared.of(agent):
            moved(Move(turn.samples, improvement.policy))
        if remaining:
            ratios |= shared.moved_with(agent, ratios)
            ratios[agent] = turn.samples.ratio_where_active(improvement.policy)
            factor = reduce(torch.mul, ratios.values(), none)
    if moved is not None:
        for move in shared.moves():
            moved(move)
    return per_agent_metrics(team.spec, rows, {"sequential_factor_max": factor.max()})


class SharedTurns:
    """What turns mean for agents who share parameters, whose policies move with every turn of one of them.

    Args:
        team: the rollout, before the first turn.
    """

    def __init__(self, team: TeamSamples) -> None:
        self._team = team
        self._collected = {
            agent: team.of_agent(agent)
            for group, policy in zip(team.spec.groups, team.policies, strict=True)
            for agent in group.agents
            if policy.shared and policy.members > 1
        }

    def of_agent(self, agent: int) -> AgentSamples:
        """One agent's samples, as ``TeamSamples.of_agent``, with the probabilities that they were collected with."""
        collected = self._collected.get(agent)
        return self._team.of_agent(agent) if collected is None else replace(collected, old=self._now(agent))

    def moved_with(self, agent: int, others: Iterable[int]) -> dict[int, Tensor]:
        """π_now/π_old [M] of those of the others who share parameters with an agent that has just had its turn."""
        if not self.of(agent):
            return {}
        mates = set(self._team.spec.groups[self._team.place_of(agent)[0]].agents).intersection(others)
        return {mate: self._collected[mate].ratio_where_active(self._now(mate)) for mate in sorted(mates)}

    def of(self, agent: int) -> bool:
        """Whether an agent shares parameters."""
        return agent in self._collected

    def moves(self) -> Iterator[Move]:
        """After the last turn, of the agents who share parameters."""
        for agent, collected in self._collected.items():
            yield Move(collected, self._now(agent))

    @torch.no_grad()
    def _now(self, agent: int) -> Distribution:
        """The policy of an agent who shares parameters, as it is."""
        group, member = self._team.place_of(agent)
        policy = self._team.policies[group]
        return self._collected[agent].under(policy, policy.row(member))


def all_at_once(
    team: TeamSamples,
    advantages: Tensor,
    improve: Callable[[Turn], Improvement],
    *,
    schedule: float = 1.0,
    progress: float = 0.0,
) -> dict[str, float]:
    """Each row of parameters improves once, a shared one on the samples of all who share it; none knows of the others.

    Args:
        team: the rollout.
        advantages: [T, B, N] what each agent maximises.
        improve: improves a policy in place.
        schedule: factor on step sizes.
        progress: share of the training done, in [0, 1).

    Returns:
        ``per_agent_metrics``.
    """
    rows: dict[int, Mapping[str, Figure]] = {}
    for g, (group, policy) in enumerate(zip(team.spec.groups, team.policies, strict=True)):
        width = policy.members if policy.shared else 1
        for first in range(0, policy.members, width):
            members = slice(first, first + width)
            theirs = advantages[:, :, on_device(group.agents[members], advantages.device)].flatten()
            agent = group.agents[first]
            turn = Turn(
                agent,
                g,
                first,
                policy,
                team.of_members(g, members),
                theirs,
                torch.ones_like(theirs),
                1,
                len(team.spec.agents),
                schedule,
                progress,
            )
            rows[agent] = improve(turn).metrics
    return per_agent_metrics(team.spec, rows)


def per_agent_metrics(
    spec: EnvironmentSpec, figures: Mapping[int, Mapping[str, Figure]], of_team: Mapping[str, Figure] | None = None
) -> dict[str, float]:
    """Mean over agents of every metric; for divergences also the largest and every agent's.

    Args:
        spec: the environment.
        figures: every agent's, which are read from the device together.
        of_team: further ones, read with them and returned as they are.
    """
    keyed: dict[tuple[int | None, str], Figure] = {
        (agent, name): figure
        for agent, row in (*figures.items(), (None, of_team or {}))
        for name, figure in row.items()
    }
    known = read(keyed)
    rows = {agent: {name: known[agent, name] for name in row} for agent, row in figures.items()}
    names = next(iter(rows.values()))
    merged = {name: sum(row[name] for row in rows.values()) / len(rows) for name in names}
    merged |= {f"{name}_max": max(row[name] for row in rows.values()) for name in names if name.endswith("kl")}
    merged |= {f"agent_kl/{spec.agents[agent].id}": row["agent_kl"] for agent, row in rows.items()}
    return merged | {name: known[None, name] for name in of_team or {}}
