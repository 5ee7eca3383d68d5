"""Gymnasium environments of several agents, with Tuple spaces and lists of rewards, as PettingZoo parallel ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gymnasium import Env, spaces

from hmarl.sdk.environments.workers.process import FAILURES, explained
from hmarl.sdk.errors import UsageError, unknown_name


class GymnasiumTeam:
    """A Gymnasium environment with one entry per agent in its spaces, behind PettingZoo's parallel API.

    The agents are called ``agent_0``, ``agent_1``, ...; all of them stay until the episode ends.

    Args:
        environment: its action and observation spaces are Tuples, its rewards one number per agent.
        is_cut_off: tells at the end of an episode whether it was cut off, for packages that call every end termination.
    """

    def __init__(self, environment: Env[Any, Any], is_cut_off: Callable[[], bool]) -> None:
        assert isinstance(environment.action_space, spaces.Tuple)
        assert isinstance(environment.observation_space, spaces.Tuple)
        self.environment = environment
        self.metadata = environment.metadata
        self.possible_agents = [f"agent_{index}" for index in range(len(environment.action_space))]
        self.agents: list[str] = []
        self._action_spaces: dict[str, spaces.Space[Any]] = self._by_agent(environment.action_space)
        self._observation_spaces: dict[str, spaces.Space[Any]] = self._by_agent(environment.observation_space)
        self._is_cut_off = is_cut_off

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """What the agent sees."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """What the agent can do."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; returns observations and (empty) infos by agent."""
        observations, _ = self.environment.reset(seed=seed)
        self.agents = list(self.possible_agents)
        return self._by_agent(observations), {}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Advance by one step; returns observations, rewards, terminations, truncations and infos by agent."""
        chosen = [actions[agent] for agent in self.possible_agents]
        observations, rewards, done, truncated, _ = self.environment.step(chosen)
        over = bool(done or truncated)
        cut_off = over and (bool(truncated) or self._is_cut_off())
        if over:
            self.agents = []
        terminations = dict.fromkeys(self.possible_agents, over and not cut_off)
        truncations = dict.fromkeys(self.possible_agents, cut_off)
        return self._by_agent(observations), self._by_agent(rewards), terminations, truncations, {}  # type: ignore[arg-type]

    def render(self) -> Any:
        """A picture, where the package can draw (it needs a display)."""
        # Both packages take the mode here rather than from the constructor.
        return self.environment.render(mode="rgb_array")  # type: ignore[call-arg]

    def close(self) -> None:
        """Close the environment."""
        self.environment.close()

    def _by_agent(self, values: Iterable[Any]) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))


def build(name: str, kind: Callable[..., Env[Any, Any]], arguments: Mapping[str, Any]) -> Env[Any, Any]:
    """Make an environment of the class ``kind``.

    Raises:
        UsageError: an argument that the class does not take, or one that it refuses.
    """
    takes = list(inspect.signature(kind).parameters)
    for argument in arguments:
        if argument not in takes:
            raise UsageError(unknown_name(f"argument of {name}", argument, takes))
    try:
        return kind(**arguments)
    except FAILURES as error:
        given = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
        raise UsageError(f"{name} with {given}: {explained(error)}") from error
