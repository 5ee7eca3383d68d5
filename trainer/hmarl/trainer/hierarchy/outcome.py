"""What came of a hierarchy's decisions: a rollout as graphs, every level's advantages over its own windows, and what
those below earn by them.

Source: Marzi et al. 2025 (HiMPo), section 3.3; telescoped rewards are this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.hierarchy.graph import membership
from hmarl.trainer.hierarchy.hierarchy import Hierarchy, Standing
from hmarl.trainer.hierarchy.level import Level
from hmarl.trainer.hierarchy.networks import TeamGraph
from hmarl.trainer.learning.instructions import since_decision
from hmarl.trainer.learning.returns import decision_advantages, generalised_advantages


def told_reward(advantages: Tensor, decided: Tensor, length: int) -> Tensor:
    """[T, B, U] r_t = A(o_{t₀}, g_{t₀}) / length: what those who pursue a goal earn in its window (Eq. 5).

    Args:
        advantages: [T, B, U] of superiors' decisions, meaningful where ``decided``.
        decided: [T, B] bool, true at the first step.
        length: α, or K; of the whole window, also where it was cut short.
    """
    return since_decision(advantages.detach(), decided) / length


def step_errors(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, decided: Tensor, gamma: float
) -> Tensor:
    """[T, B, U] δ_t = r_t + c_t·V(o_{t+1}) − V(o_t), a superior's TD error at every step, also between its decisions.

    c_t is γ where the next decision follows, the episode ends or the rollout does, and 1 inside a window: γ is applied
    once per decision, so that over a window the errors add up to the decision's advantage with λ = 0.

    Args:
        rewards: [T, B, U] of every step.
        values: [T, B, U] at every step.
        next_values: [T, B, U] of what followed: 0 where the episode terminated, of the final state where it was
            truncated.
        ended: [T, B] or [T, B, U] bool.
        decided: [T, B] bool.
        gamma: per decision.
    """
    closes = ended.clone() if ended.dim() == rewards.dim() else ended.unsqueeze(-1).clone()
    closes[:-1] |= decided[1:].unsqueeze(-1)
    closes[-1] = True
    return rewards + torch.where(closes, gamma, 1.0) * next_values - values


def windows_begin(force: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is in force, at the first step of a window: so what follows an episode or a rollout is judged."""
    return force | ({"clock": torch.zeros_like(force["clock"])} if "clock" in force else {})


def local_rewards(rollout: Rollout, cluster: Tensor, sub_managers: int) -> Tensor:
    """[T, B, S] the team's reward at every step as it would be if all earned what the workers under each sub-manager
    earn on average; those who have left are among all, and in no average. (Their sum would pay workers for crowding
    into one cluster.)

    Args:
        rollout: of T steps.
        cluster: [T, B, N] int64.
        sub_managers: S.
    """
    belongs = membership(cluster, rollout.active, sub_managers)
    earned = (belongs * rollout.rewards.unsqueeze(-1)).sum(-2) / belongs.sum(-2).clamp(min=1.0)  # [T, B, S]
    scale = rollout.rewards.shape[-1] if rollout.spec.team_reward == "sum" else 1
    return scale * earned


@dataclass(frozen=True)
class Outcome:
    """What came of one level's decisions.

    Attributes:
        values: [T, B, V] of the V who judge (every worker, every superior, or every pair of a superior and a
            subordinate) before the decisions; this and the others are meaningful where something was decided.
        advantages: [T, B, V].
        returns: [T, B, V], λ-returns.
        errors: [T, B, V] of every step, where those below earn them (telescoped). None elsewhere.
        every_step: whether values and returns are meaningful at every step: a superior's return is then that of the
            rest of its window.
    """

    values: Tensor
    advantages: Tensor
    returns: Tensor
    errors: Tensor | None = None
    every_step: bool = False

    def told(self, decided: Tensor, length: int, earns: Tensor | None = None) -> Tensor:
        """[T, B, V] what those below earn at every step, without gradient.

        Args:
            decided: [T, B] bool, where this level decided.
            length: α, or K.
            earns: [T, B] bool, where those below decide themselves: what is divided by K comes once a decision. None
                where they do so at every step.
        """
        if self.errors is not None:
            return self.errors.detach()
        told = told_reward(self.advantages, decided, length)
        return told if earns is None else told * earns.unsqueeze(-1)


class RolloutGraphs:
    """A rollout as graphs.

    Args:
        hierarchy: that collected it.
        rollout: full.
        features: per group of raw observations what workers see of them.
        standing: what is in force after the last step.

    Attributes:
        moments: the graphs of all T·B moments.
        finals: of what was seen last in the F episodes that ended.
        last: of what is seen after the last step, B.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        rollout: Rollout,
        features: Callable[[Sequence[Tensor]], list[Tensor]],
        standing: Standing,
    ) -> None:
        self.rollout, self._settings, extras = rollout, hierarchy.settings, rollout.extras
        seen = [observations.flatten(0, 1) for observations in rollout.observations]

        def graph(
            observations: Sequence[Tensor], active: Tensor, force: dict[str, Tensor], edges: Tensor | None
        ) -> TeamGraph:
            positions = hierarchy.positions(observations)
            edges = hierarchy.edges(positions, active) if edges is None else edges
            rest = (force["cluster"], force["goal"], force["sub_goal"], force.get("clock"))
            return hierarchy.graph(features(observations), active, positions, edges, *rest)

        static, ended = hierarchy.settings.static_graph, rollout.ended
        flat = {name: value.flatten(0, 1) for name, value in extras.items()}
        self.moments = graph(seen, rollout.active.flatten(0, 1), flat, flat["edges"])
        finals = [rollout.final_observations(g) for g in range(len(seen))]
        at_ends = windows_begin({name: value[ended] for name, value in extras.items()})
        self.finals = graph(finals, rollout.next_active()[ended], at_ends, at_ends["edges"] if static else None)
        force = windows_begin(standing.tensors())
        last_edges = force["edges"] if static else None
        self.last = graph(rollout.last_observations, rollout.last_active, force, last_edges)

    @torch.no_grad()
    def outcome(self, level: Level, rewards: Tensor, decided: Tensor | None = None) -> Outcome:
        """What came of a level's decisions, by GAE from decision to decision.

        Args:
            level: whose decisions.
            rewards: [T, B, V] of every step, of the V who judge.
            decided: [T, B] bool where a superior level decided; None for workers, who always do.
        """
        rollout, lead, settings = self.rollout, self.rollout.ended.shape, self._settings
        every_step = decided is None or settings.judges_every_step
        if every_step:
            values = level.values(self.moments).unflatten(0, lead)
        else:
            assert decided is not None
            values = torch.zeros_like(rewards)
            values[decided] = level.values(self.moments.take(decided.flatten()))
        following = torch.cat([values, level.values(self.last).unsqueeze(0)])
        finals = level.values(self.finals)

        if level.value.of_agents:
            next_values, ended = rollout.next_values_of_agents(following, finals)
        else:
            next_values, ended = rollout.next_values(following, finals), rollout.ended

        def advantages(gae_lambda: float) -> Tensor:
            given = (rewards, values, next_values, ended)
            if decided is None:
                return generalised_advantages(*given, settings.gamma, gae_lambda)
            return decision_advantages(*given, decided, settings.gamma, gae_lambda, "decision")

        def of_decisions(gae_lambda: float) -> Tensor:
            if decided is None or not level.value.of_agents:
                return advantages(gae_lambda)
            # Nothing was decided for an agent that was not there, and no value of that pair has been learnt.
            return advantages(gae_lambda).masked_fill(~rollout.active, 0.0)

        gae_lambda = settings.gae_lambda if decided is None else settings.manager_gae_lambda
        errors = None
        if decided is not None and settings.telescoped:
            errors = step_errors(rewards, values, next_values, ended, decided, settings.gamma)
        returns = advantages(settings.value_lambda) + values
        return Outcome(values, of_decisions(gae_lambda), returns, errors, every_step)
