"""HiMPo's credit by plain loops over steps, environments and agents, on real rollouts of foragers who starve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hmarl.trainer.algorithms.himpo import Himpo
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.hierarchy.level import Level
from hmarl.trainer.hierarchy.outcome import RolloutGraphs
from training_runs import new_algorithm

STEPS, BATCH, AGENTS, SUB_MANAGERS = 18, 3, 5, 2
INTERVAL, MANAGER_INTERVAL = 3, 2  # α and K
SMALL = {
    "embedding_size": 8,
    "goal_size": 3,
    "goal_interval": INTERVAL,
    "manager_interval": MANAGER_INTERVAL,
    "sub_managers": SUB_MANAGERS,
    "epochs": 1,
    "minibatches": 1,
    "worker_reward": "window",
    "edge_values": False,
}
# Agents starve after five steps without a meal, at different times; episodes are cut off after eight.
STARVING = {"endurance": 5, "horizon": 8}
TELESCOPED = {"worker_reward": "telescoped"}
PAIRS = {"edge_values": True}


def foragers(**settings: Any) -> tuple[Himpo, Rollout, Collector]:
    return new_algorithm("himpo", "lbfws/hard", BATCH, STEPS, STARVING, **{**SMALL, **settings})


def graphs_of(algorithm: Himpo, rollout: Rollout) -> RolloutGraphs:
    return RolloutGraphs(
        algorithm.hierarchy, rollout, algorithm.together.worker_features, algorithm.all_levels.standing
    )


class ByLoops:
    """A rollout's windows, rewards and advantages by plain loops over steps, environments and agents.

    Args:
        algorithm: that collected it.
        rollout: of T steps.
        graphs: of it; only what the levels value is taken from them.
    """

    def __init__(self, algorithm: Himpo, rollout: Rollout, graphs: RolloutGraphs) -> None:
        self.settings, self.rollout, self._graphs = algorithm.settings, rollout, graphs
        hierarchy = algorithm.hierarchy
        self._of_agents = [hierarchy.workers, *([hierarchy.sub_managers] if algorithm.settings.edge_values else [])]
        self._valued: dict[int, Tensor] = {}
        self._finals = {(int(t), int(b)): index for index, (t, b) in enumerate(rollout.ended.nonzero())}

    def windows(self, b: int, length: int) -> list[tuple[int, int]]:
        """[start, stop) of an environment's windows, cut by the ends of its episodes and of the rollout."""
        found, start = [], 0
        for t in range(STEPS):
            if t + 1 - start == length or self.rollout.ended[t, b] or t + 1 == STEPS:
                found.append((start, t + 1))
                start = t + 1
        return found

    def values(self, level: Level) -> Tensor:
        """[T, B, V]."""
        if id(level) not in self._valued:
            self._valued[id(level)] = level.values(self._graphs.moments).unflatten(0, (STEPS, BATCH))
        return self._valued[id(level)]

    def value_after(self, level: Level, t: int, b: int) -> Tensor:
        """[V] of what followed step t: nothing after termination, of the final state after truncation. Where there
        is a value for each worker, none looks forward to anything once it has left.
        """
        if self.rollout.terminated[t, b]:
            return torch.zeros(self.values(level).shape[-1])
        if self.rollout.ended[t, b]:
            after = level.values(self._graphs.finals)[self._finals[t, b]]
        else:
            after = level.values(self._graphs.last)[b] if t + 1 == STEPS else self.values(level)[t + 1, b]
        return after * self.rollout.next_active()[t, b] if level in self._of_agents else after

    def advantages(
        self, level: Level, rewards: Tensor, length: int, gae_lambda: float, every_step: bool = False
    ) -> Tensor:
        """[T, B, V] of a level that decides at the starts of windows; 0 at all other steps, or, at every step, what the
        rest of its window brings. γ and λ per decision.
        """
        values, gamma = self.values(level), self.settings.gamma
        found = torch.zeros_like(values)
        for b in range(BATCH):
            later = torch.zeros(values.shape[-1])
            for start, stop in reversed(self.windows(b, length)):
                if self.rollout.ended[stop - 1, b]:
                    later = torch.zeros_like(later)
                for t in reversed(range(start, stop)):
                    there = self.rollout.next_active()[t, b] if level in self._of_agents else 1.0
                    if t + 1 == stop:
                        rest = gamma * self.value_after(level, t, b) + gamma * gae_lambda * later * there
                    else:  # who leaves inside a window earns nothing in the rest of it
                        rest = rest * there
                    rest = rewards[t, b] + rest
                    if every_step or t == start:
                        found[t, b] = rest - values[t, b]
                later = found[start, b]
        return found

    def step_errors(self, level: Level, rewards: Tensor, length: int) -> Tensor:
        """[T, B, V] r_t + V(o_{t+1}) − V(o_t), with γ before what follows a window's last step."""
        values, found = self.values(level), torch.zeros_like(rewards)
        for b in range(BATCH):
            for start, stop in self.windows(b, length):
                for t in range(start, stop):
                    after = self.value_after(level, t, b) * (self.settings.gamma if t + 1 == stop else 1.0)
                    found[t, b] = rewards[t, b] + after - values[t, b]
        return found

    def managers_pay(self, above: Tensor) -> Tensor:
        """[T, B, S] A^m(t₀) / K once for each of the sub-managers' decisions in the manager's window."""
        rewards = torch.zeros(STEPS, BATCH, SUB_MANAGERS)
        for b in range(BATCH):
            starts = {start for start, _ in self.windows(b, INTERVAL)}
            for start, stop in self.windows(b, INTERVAL * MANAGER_INTERVAL):
                for t in range(start, stop):
                    rewards[t, b] += above[start, b] / MANAGER_INTERVAL if t in starts else 0.0
        return rewards

    def sub_managers_rewards(self, paid: Tensor) -> Tensor:
        """[T, B, S] what the manager pays, and what the workers of their own clusters earn on average, as if the whole
        team did.
        """
        rewards, extras = paid.clone(), self.rollout.extras
        for t, b, s in self._cells(SUB_MANAGERS):
            workers = [i for i in range(AGENTS) if extras["cluster"][t, b, i] == s and self.rollout.active[t, b, i]]
            if self.settings.local_rewards and workers:
                rewards[t, b, s] += AGENTS * sum(self.rollout.rewards[t, b, i] for i in workers) / len(workers)
        return rewards

    def sub_managers_pay(self, above: Tensor) -> Tensor:
        """[T, B, S] A^s(t₀) / α at every step of a window."""
        paid = torch.zeros_like(above)
        for b in range(BATCH):
            for start, stop in self.windows(b, INTERVAL):
                for t in range(start, stop):
                    paid[t, b] = above[start, b] / INTERVAL
        return paid

    def of_pairs(self, rewards: Tensor) -> Tensor:
        """[T, B, N] of [T, B, S]: what the sub-manager earns to whom a worker reports."""
        pairs = torch.zeros(STEPS, BATCH, AGENTS)
        for t, b, i in self._cells(AGENTS):
            pairs[t, b, i] = rewards[t, b, self.rollout.extras["cluster"][t, b, i]]
        return pairs

    def workers_rewards(self, paid: Tensor) -> Tensor:
        """[T, B, N] what the sub-manager of the own cluster pays, to whom a worker reports since the window began; paid
        to pairs [T, B, N], it is the worker's already.
        """
        rewards, cluster = torch.zeros(STEPS, BATCH, AGENTS), self.rollout.extras["cluster"]
        for b in range(BATCH):
            for start, stop in self.windows(b, INTERVAL):
                for t in range(start, stop):
                    for i in range(AGENTS):
                        payer = i if self.settings.edge_values else cluster[start, b, i]
                        rewards[t, b, i] = paid[t, b, payer]
        if self.settings.workers_see_reward:
            rewards += self.rollout.team_rewards.unsqueeze(-1)
        return rewards

    def rows(self, length: int) -> list[int]:
        """t·B + b of all decisions, in order."""
        return sorted(start * BATCH + b for b in range(BATCH) for start, _ in self.windows(b, length))

    @staticmethod
    def _cells(units: int) -> Iterator[tuple[int, int, int]]:
        return ((t, b, u) for t in range(STEPS) for b in range(BATCH) for u in range(units))


def expected(loops: ByLoops, algorithm: Himpo) -> list[tuple[Tensor, Tensor]]:
    """Of each level from the top down [decisions, units] advantages and [judgements, V] returns less values."""
    hierarchy, settings, found = algorithm.hierarchy, algorithm.settings, []
    team, telescoped = loops.rollout.team_rewards.unsqueeze(-1), settings.worker_reward == "telescoped"
    edges = settings.edge_values

    def judge(level: Level, rewards: Tensor, length: int) -> tuple[Tensor, list[int], Tensor]:
        """[T, B, V] advantages, the rows where there is a decision, and what values learn less what they are."""
        rows = loops.rows(length)
        above = loops.advantages(level, rewards, length, settings.manager_gae_lambda)
        gained = loops.advantages(level, rewards, length, settings.value_lambda, telescoped).flatten(0, 1)
        return above, rows, gained if telescoped else gained[rows]

    rewards = team.expand(-1, -1, SUB_MANAGERS)
    if hierarchy.manager is not None:
        length = INTERVAL * MANAGER_INTERVAL
        external = team.expand(-1, -1, SUB_MANAGERS) if edges else team
        above, rows, gained = judge(hierarchy.manager, external, length)
        found.append((above.flatten(0, 1)[rows].expand(-1, SUB_MANAGERS), gained))
        errors = loops.step_errors(hierarchy.manager, external, length).expand(-1, -1, SUB_MANAGERS)
        rewards = loops.sub_managers_rewards(errors if telescoped else loops.managers_pay(above))
    assert hierarchy.sub_managers is not None
    rewards = loops.of_pairs(rewards) if edges else rewards
    above, rows, gained = judge(hierarchy.sub_managers, rewards, INTERVAL)
    cluster, decided = loops.rollout.extras["cluster"].flatten(0, 1), above.flatten(0, 1)[rows]
    found.append((decided if edges else decided.gather(-1, cluster[rows]), gained))
    errors = loops.step_errors(hierarchy.sub_managers, rewards, INTERVAL)
    paid = loops.workers_rewards(errors if telescoped else loops.sub_managers_pay(above))
    own, gained = (
        loops.advantages(hierarchy.workers, paid, 1, gae_lambda)
        for gae_lambda in (settings.gae_lambda, settings.value_lambda)
    )
    return [*found, (own.flatten(0, 1), gained.flatten(0, 1))]
