"""What all agents observe alike: declared by the environment, or found in the first rollouts, and verified ever after.

A conductor that sees nothing else can be copied into every agent: each copy sees the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.experience.rollout import Rollout


@dataclass(frozen=True)
class Feature:
    """One number that every agent observes.

    Attributes:
        part: of the agents' observation layouts; ``observation`` where they have none.
        name: of the number, for people: the part's, with its place in it.
        places: [N] where it lies in each agent's observation.
    """

    part: str
    name: str
    places: tuple[int, ...]


def comparable_features(spec: EnvironmentSpec) -> tuple[Feature, ...]:
    """The numbers that may be common: parts of one name and length in all agents' layouts; where the agents have no
    layouts, numbers at one place, if all observations are of one size.
    """
    parts = [_parts(agent) for agent in spec.agents]
    shared = [key for key in parts[0] if all(key in each for each in parts)]
    return tuple(
        Feature(name, name if length == 1 else f"{name}[{place}]", tuple(each[key] + place for each in parts))
        for key in shared
        for name, length in (key[::2],)
        for place in range(length)
    )


def _parts(agent: AgentSpec) -> dict[tuple[str, int, int], int]:
    """Where each part begins, by name, which of that name it is, and length."""
    layout = agent.observation_layout or (("observation", agent.observation_size),)
    parts, seen, start = {}, Counter[str](), 0
    for name, length in layout:
        parts[name, seen[name], length] = start
        seen[name] += 1
        start += length
    return parts


class CommonObservations:
    """The common numbers of all agents' observations.

    Args:
        spec: the environment; what it declares (``common_observations``) is not searched for.
        device: where rollouts live.
        search: rollouts in which they are searched for. Until then none is known.
        nothing: look for none.

    Attributes:
        features: C of them that are compared.
        known: [C] bool, which of them are common.
    """

    def __init__(self, spec: EnvironmentSpec, device: torch.device, search: int, *, nothing: bool = False) -> None:
        self._spec, declared = spec, spec.common_observations
        self.features = tuple(
            feature
            for feature in comparable_features(spec)
            if not nothing and (not declared or feature.part in declared)
        )
        self._order = [agent for group in spec.groups for agent in group.agents]
        self._places = [
            torch.tensor([[feature.places[agent] for feature in self.features] for agent in group.agents])
            .long()
            .view(len(group.agents), len(self.features))
            .to(device)
            for group in spec.groups
        ]
        self._search = 0 if declared else search
        self._searched = torch.zeros((), dtype=torch.int64, device=device)
        self._alike = torch.ones(len(self.features), dtype=torch.bool, device=device)
        self.known = self._known()

    def _known(self) -> Tensor:
        """[C] bool: none before the search is over."""
        return self._alike & (self._searched >= self._search)

    def places_of(self, agent: int) -> Tensor:
        """[C] int64: where the features lie in one agent's observation."""
        return torch.tensor([feature.places[agent] for feature in self.features], dtype=torch.int64)

    def check_interchangeable(self) -> None:
        """Whether agents of a group could be served by one graph.

        Raises:
            UsageError: two of them observe a common number at different places.
        """
        for group in self._spec.groups:
            first, *others = group.agents
            for feature in self.features:
                other = next((each for each in others if feature.places[each] != feature.places[first]), None)
                if other is not None:
                    one, two = (self._spec.agents[agent].id for agent in (first, other))
                    raise UsageError(
                        "algorithm.agent_identity: got False, expected True with conductor_sees=common: "
                        f"'{feature.name}' lies at number {feature.places[first]} of what '{one}' observes and at "
                        f"number {feature.places[other]} of what '{two}' does, so that one graph cannot serve both"
                    )

    def of(self, observations: Sequence[Tensor], active: Tensor) -> Tensor:
        """What the first agent that is there observes of the features.

        Args:
            observations: per group [..., N_group, observation_size].
            active: [..., N] bool.

        Returns:
            [..., C] float32.
        """
        first = active[..., self._order].int().argmax(-1)
        seen = self._of_all(observations)
        return seen.gather(-2, first[..., None, None].expand(*first.shape, 1, seen.shape[-1])).squeeze(-2)

    def _of_all(self, observations: Sequence[Tensor]) -> Tensor:
        """[..., N, C] what every agent observes of the features, group by group."""
        return torch.cat(
            [
                observed.gather(-1, places.expand(*observed.shape[:-1], -1))
                for observed, places in zip(observations, self._places, strict=True)
            ],
            dim=-2,
        )

    def compare(self, rollout: Rollout) -> None:
        """Search in a rollout, or verify that what is known to be common still is.

        Raises:
            UsageError: two agents have observed a common number differently; names it, them and what they saw.
        """
        seen, active = self._of_all(rollout.observations), rollout.active[..., self._order]
        differs = (seen != self.of(rollout.observations, rollout.active).unsqueeze(-2)) & active.unsqueeze(-1)
        alike = ~differs.flatten(0, 2).any(0)
        if bool((self.known & ~alike).any()):
            raise UsageError(self._difference(seen, active, differs & self.known))
        if int(self._searched) < self._search:
            self._alike = self._alike & alike
            self._searched = self._searched + 1
            self.known = self._known()

    def _difference(self, seen: Tensor, active: Tensor, differs: Tensor) -> str:
        """The first difference in words."""
        step, row, other, place = (int(index) for index in differs.nonzero()[0])
        one = int(active[step, row].int().argmax())
        names = [self._spec.agents[self._order[agent]].id for agent in (one, other)]
        values = [f"{float(seen[step, row, agent, place]):g}" for agent in (one, other)]
        declared = bool(self._spec.common_observations)
        source = "the environment declares as common" if declared else "was common in the first rollouts"
        advice = "correct the declaration" if declared else "raise algorithm.common_search"
        return (
            f"algorithm.conductor_sees: got common, but '{self.features[place].name}', which {source}, is {values[0]} "
            f"for agent '{names[0]}' and {values[1]} for agent '{names[1]}' at one step, so that their conductors "
            f"would part; {advice}, or set algorithm.conductor_sees=nothing"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What has been found so far."""
        return {"searched": self._searched, "alike": self._alike}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self._searched, self._alike = state["searched"].clone(), state["alike"].clone()
        self.known = self._known()
