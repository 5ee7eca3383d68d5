"""Two robots lift a pane of glass onto a shelf. Neither can do it alone, and they cannot talk.

Each drives to its own end and lifts it notch by notch; winches slip. Two notches between the ends, and the glass falls.
"""

import sys
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from hmarl.sdk import AgentClient, load_endpoints

AWAY, SHELF, HORIZON, SLIPS = 3, 6, 40, 0.2
WAIT, DRIVE, LIFT = range(3)


class Lift(ParallelEnv):
    """The game: how far away each robot is, and how high its end of the pane."""

    metadata = {"name": "lift", "render_fps": 5}  # noqa: RUF012 - five steps a second: the control period

    def __init__(self) -> None:
        self.possible_agents = ["left", "right"]
        self.random, self.away, self.height = np.random.default_rng(), dict[str, int](), dict[str, int]()

    def observation_space(self, agent: str) -> spaces.Box:
        """Distance and height of its own, then of the other robot; all from 0 to 1."""
        return spaces.Box(0.0, 1.0, (4,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """Wait, drive or lift."""
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin with the pane on the floor, and the robots somewhere beside it."""
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents, self.steps = list(self.possible_agents), 0
        self.away = {agent: int(self.random.integers(1, AWAY + 1)) for agent in self.agents}
        self.height = dict.fromkeys(self.agents, 0)
        return self.observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[dict[str, Any], ...]:
        """What both do at the same time; they share the reward."""
        agents, lowest = self.agents, min(self.height.values())
        for agent in agents:
            if actions[agent] == DRIVE:
                self.away[agent] = max(self.away[agent] - 1, 0)
            elif actions[agent] == LIFT and not self.away[agent] and self.random.random() >= SLIPS:
                self.height[agent] = min(self.height[agent] + 1, SHELF)
        self.steps += 1
        broken = max(self.height.values()) - min(self.height.values()) > 1
        over, late = broken or self.episode_success(), self.steps == HORIZON
        reward = (min(self.height.values()) - lowest) / SHELF + self.episode_success() - broken
        self.agents = [] if over or late else agents
        ends = dict.fromkeys(agents, over), dict.fromkeys(agents, late and not over)  # terminated, truncated
        return self.observations(), dict.fromkeys(agents, reward / 2), *ends, {agent: {} for agent in agents}

    def observations(self) -> dict[str, Any]:
        """What each robot sees."""
        left, right = ([self.away[agent] / AWAY, self.height[agent] / SHELF] for agent in self.possible_agents)
        return {"left": np.array(left + right, np.float32), "right": np.array(right + left, np.float32)}

    def episode_success(self) -> bool:
        """Whether the pane is on the shelf; makes "success" a column of every table."""
        return min(self.height.values()) == SHELF

    def picture(self) -> str:
        """The robots and the pane, from the shelf down to the floor."""
        lines = []
        for level in range(SHELF, -1, -1):
            pane = "".join("====" if self.height[agent] == level else "    " for agent in self.possible_agents)
            left, right = ("R" + " " * self.away[agent] if level == 0 else "" for agent in self.possible_agents)
            lines.append(f"{left:>{AWAY + 1}}{pane}{right[::-1]}".rstrip())
        return "\n".join(lines)


parallel_env = Lift  # what hmarl calls: pettingzoo/lift:parallel_env


def watch(endpoints: str, seed: int) -> None:
    """Play one episode with a served team, and print every step of it."""
    game, addresses = Lift(), load_endpoints(endpoints)
    team = {agent: AgentClient(address, timeout_s=1.0) for agent, address in addresses.items()}
    observations, _ = game.reset(seed)
    for client in team.values():
        client.reset(seed=seed)
    while game.agents:
        observations = game.step({agent: int(team[agent].act(observations[agent]).action) for agent in game.agents})[0]
        print(f"{game.picture()}\n{'-' * 16} step {game.steps}")
    for client in team.values():
        client.close()
    print("On the shelf." if game.episode_success() else "Not on the shelf.")


if __name__ == "__main__":
    watch(sys.argv[1], seed=5)
