"""What came of a hierarchy's decisions: a rollout as graphs, and every level's advantages over its own windows.

Source: Marzi et al. 2025 (HiMPo), section 3.3.
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


def local_rewards(rollout: Rollout, cluster: Tensor, sub_managers: int) -> Tensor:
    """[T, B, S] the team's reward at every step as it would be if all earned what the workers under each sub-manager
    earn on average. (Their sum would pay workers for crowding into one cluster.)

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
        values: [T, B, V] of the V who judge (every worker, or every superior) before the decisions; this and the others
            are meaningful where something was decided.
        advantages: [T, B, V].
        returns: [T, B, V], λ-returns.
    """

    values: Tensor
    advantages: Tensor
    returns: Tensor


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
            rest = (force["cluster"], force["goal"], force["sub_goal"])
            return hierarchy.graph(features(observations), active, positions, edges, *rest)

        static, ended = hierarchy.settings.static_graph, rollout.ended
        flat = {name: value.flatten(0, 1) for name, value in extras.items()}
        self.moments = graph(seen, rollout.active.flatten(0, 1), flat, flat["edges"])
        finals = [rollout.final_observations(g) for g in range(len(seen))]
        at_ends = {name: value[ended] for name, value in extras.items()}
        self.finals = graph(finals, rollout.next_active()[ended], at_ends, at_ends["edges"] if static else None)
        force = standing.tensors()
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
        if decided is None:
            values = level.values(self.moments).unflatten(0, lead)
        else:
            values = torch.zeros_like(rewards)
            values[decided] = level.values(self.moments.take(decided.flatten()))
        following = torch.cat([values, level.values(self.last).unsqueeze(0)])
        finals = level.values(self.finals)

        def advantages(gae_lambda: float) -> Tensor:
            if decided is None:
                next_values, ended = rollout.next_values_of_agents(following, finals)
                return generalised_advantages(rewards, values, next_values, ended, settings.gamma, gae_lambda)
            next_values = rollout.next_values(following, finals)
            given = (rewards, values, next_values, rollout.ended, decided, settings.gamma, gae_lambda)
            return decision_advantages(*given, "decision")

        gae_lambda = settings.gae_lambda if decided is None else settings.manager_gae_lambda
        return Outcome(values, advantages(gae_lambda), advantages(settings.value_lambda) + values)
