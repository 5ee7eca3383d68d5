"""HiMPo: a feudal hierarchy of message-passing policies, each level rewarded with the advantage of the one above.

Workers act at every step, sub-managers set each of their workers a goal every α steps, a manager sets each sub-manager
one every K·α (levels=3). An iteration:

    1  collect with all agents' policies over the dynamic graph G*_t: messages among neighbours, goals from above
    2  from the top down, over the windows [t₀, t₀ + α) and [t₀, t₀ + K·α) in which goals were in force:
           A^m from the external reward
           r^s = A^m(o^{m→s}_{t₀}, g^{m→s}_{t₀}) / K + the sub-manager's local reward
           r^w_t = A^s(o^{s→w}_{t₀}, g^{s→w}_{t₀}) / α at every step of the window                    (Eq. 5)
       or, with telescoped rewards, at every step the TD error δ_t of the level above; over a window they add up to A
    3  each level climbs its own advantages by clipped surrogates (HiMPPO), on its own time scale

So the external reward reaches workers through the advantages of those above them alone, as numbers without gradient.

Decisions of this project where the source is silent: a rollout's first step opens new windows everywhere, so that
every window's outcome lies in one rollout; γ is applied per decision of a level; Eq. 5 divides by α, and by K, also
where an episode or a rollout cuts a window short; the value of a pair of superior and subordinate ends when the
subordinate leaves, and goes on with the next pair of a worker who changes its superior (with edge_values=false a
superior has one value of what it sees, and such a worker takes none along). Telescoped rewards are this project's own.

Source: Marzi et al. 2025, "Hierarchical Message-Passing Policies for Multi-Agent Reinforcement Learning".
"""

from __future__ import annotations

import logging
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentGroup, EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.shown import EvaluatedTeam
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.hierarchy.acting import HierarchyActing, HierarchyActors
from hmarl.trainer.hierarchy.graph import membership
from hmarl.trainer.hierarchy.hierarchy import Hierarchy
from hmarl.trainer.hierarchy.level import Decisions, Judgements, Level
from hmarl.trainer.hierarchy.outcome import Outcome, RolloutGraphs, local_rewards
from hmarl.trainer.hierarchy.settings import HierarchySettings
from hmarl.trainer.hierarchy.teacher import HierarchyTeacher
from hmarl.trainer.hierarchy.teams import HierarchyTeam
from hmarl.trainer.networks.settings import AlgorithmSettings

_log = logging.getLogger(__name__)


class Himpo(Algorithm):
    """A hierarchy: managers set workers goals, agents message their neighbours, each level learns at its own pace."""

    settings_class: ClassVar[type[AlgorithmSettings]] = HierarchySettings
    exportable: ClassVar[bool] = False
    distils: ClassVar[bool] = True
    settings: HierarchySettings

    def __init__(
        self, spec: EnvironmentSpec, settings: HierarchySettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        sizes = [self.feature_size(group) for group in spec.groups]
        self.hierarchy = Hierarchy(spec, settings, self.heads, sizes, generator, device)
        self.together = HierarchyActors(self.actors, self.hierarchy)
        self.acting = self.all_levels = HierarchyActing(self.together, self.local_acting, self.noise_generator)
        if settings.graph in ("auto", "radius", "nearest") and not self.hierarchy.positions.dimensions:
            _log.warning(
                "himpo: no observation of %s has a part 'position', so that all agents hear one another and "
                "sub-managers take the workers by number; set algorithm.graph=none for a team without messages",
                spec.name,
            )

    def feature_size(self, group: AgentGroup) -> int:
        """D, the width of what workers of a group see: the observation, and who they are if they are told apart."""
        return group.example.observation_size + (len(group.agents) if self.settings.agent_identity else 0)

    # --- learning (lines 2 and 3) -----------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """What came of each level's decisions, from the top down; then each level learns from its own."""
        schedule = self.schedule(progress)
        # 2: what came of each level's decisions, the reward of the level below being the advantage of the one above
        graphs = RolloutGraphs(self.hierarchy, rollout, self.together.worker_features, self.all_levels.standing)
        judged = self._judged(graphs)
        metrics = self._graph_metrics(rollout)
        # 3: θ ← descent on −E[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) ] − c·H, φ on E[ (V − R)² ], of each level
        for prefix, level, decisions, judgements in judged:
            improved = level.improve(decisions, judgements, self.noise_generator, schedule)
            metrics |= {f"{prefix}{name}": value for name, value in improved.items()}
        self.update_normalisers(rollout)
        return {
            {"kl": "agent_kl", "entropy": "agent_entropy"}.get(name, name): value for name, value in metrics.items()
        }

    def _judged(self, graphs: RolloutGraphs) -> list[tuple[str, Level, Decisions, Judgements]]:
        """Per level from the top down: a prefix of its metrics, and its decisions with what came of them, which
        rewards the level below.
        """
        settings, hierarchy, extras = self.settings, self.hierarchy, graphs.rollout.extras
        external = graphs.rollout.team_rewards.unsqueeze(-1)
        judged: list[tuple[str, Level, Decisions, Judgements]] = []
        rewards, edges = external, settings.edge_values
        if hierarchy.manager is not None:
            chosen = extras["manager_decided"]
            outcome = graphs.outcome(hierarchy.manager, self._each_cluster(rewards) if edges else rewards, chosen)
            judged.append(("manager_", hierarchy.manager, *self._goals_set(graphs, outcome, chosen, "sub_goal")))
            rewards = self._sub_managers_rewards(graphs.rollout, outcome)
        if hierarchy.sub_managers is not None:
            decided = extras["decided"]
            rewards = self._each_cluster(rewards)
            rewards = rewards.gather(-1, extras["cluster"]) if edges else rewards
            outcome = graphs.outcome(hierarchy.sub_managers, rewards, decided)
            judged.append(("sub_manager_", hierarchy.sub_managers, *self._goals_set(graphs, outcome, decided, "goal")))
            told = outcome.told(decided, settings.goal_interval)
            rewards = told if edges else told.gather(-1, extras["cluster"])
            if settings.workers_see_reward:
                rewards = rewards + external
        outcome = graphs.outcome(hierarchy.workers, rewards.expand_as(graphs.rollout.rewards))
        return [*judged, ("", hierarchy.workers, *self._actions_taken(graphs, outcome))]

    def _sub_managers_rewards(self, rollout: Rollout, above: Outcome) -> Tensor:
        """[T, B, S] what the manager's advantage brings its sub-managers, and their local rewards."""
        settings, extras = self.settings, rollout.extras
        told = above.told(extras["manager_decided"], settings.manager_interval, earns=extras["decided"])
        rewards = self._each_cluster(told)
        if not settings.local_rewards:
            return rewards
        return rewards + local_rewards(rollout, extras["cluster"], settings.sub_managers)

    def _each_cluster(self, rewards: Tensor) -> Tensor:
        """[T, B, S] of [T, B, 1] or [T, B, S]."""
        return rewards.expand(*rewards.shape[:-1], self.settings.sub_managers)

    def _goals_set(
        self, graphs: RolloutGraphs, outcome: Outcome, decided: Tensor, goal: str
    ) -> tuple[Decisions, Judgements]:
        """A superior level's decisions; those for an empty cluster, or for an agent that has left, weigh nothing."""
        rows, graph = decided.flatten(), graphs.moments.take(decided.flatten())
        goals = graphs.rollout.extras[goal].flatten(0, 1)[rows]
        advantages, edges = outcome.advantages[decided], self.settings.edge_values
        if goal == "goal":
            weight = graph.active.float()
            # Of the superiors: a decision's is that of its superior.
            advantages = advantages if edges else advantages.gather(-1, graph.cluster)
        else:
            weight = membership(graph.cluster, graph.active, self.settings.sub_managers).amax(1)
            advantages = advantages.expand_as(weight)
        decisions = Decisions(graph, [goals], [None], advantages, weight)
        if outcome.every_step:
            graph, values, returns = graphs.moments, outcome.values.flatten(0, 1), outcome.returns.flatten(0, 1)
        else:
            values, returns = outcome.values[decided], outcome.returns[decided]
        # A superior judges an empty cluster as well: an agent may come. A pair with an agent that has left is none.
        judged = graph.active if edges and goal == "goal" else torch.ones_like(values, dtype=torch.bool)
        return decisions, Judgements(graph, values, returns, judged)

    def _actions_taken(self, graphs: RolloutGraphs, outcome: Outcome) -> tuple[Decisions, Judgements]:
        """The workers' decisions."""
        rollout, graph = graphs.rollout, graphs.moments
        active = rollout.active.flatten(0, 1)
        actions = [actions.flatten(0, 1) for actions in rollout.actions]
        masks = [None if mask is None else mask.flatten(0, 1) for mask in rollout.action_masks]
        values, returns = outcome.values.flatten(0, 1), outcome.returns.flatten(0, 1)
        decisions = Decisions(graph, actions, masks, outcome.advantages.flatten(0, 1), active.float())
        return decisions, Judgements(graph, values, returns, active)

    def _graph_metrics(self, rollout: Rollout) -> dict[str, float]:
        """How many an agent hears, and how many clusters have an agent in them."""
        heard = rollout.extras["edges"].sum(-1).float().mean()
        metrics = {"neighbours": float(heard)}
        if self.hierarchy.sub_managers is not None:
            belongs = membership(rollout.extras["cluster"], rollout.active, self.settings.sub_managers)
            metrics["clusters"] = float(belongs.amax(-2).sum(-1).mean())
        return metrics

    # --- deployment and persistence ---------------------------------------------------------------------------------

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """The whole hierarchy."""
        return {HierarchyTeam.name: HierarchyTeam(self.together, sample)}

    def teacher(self) -> Teacher:
        """The whole hierarchy."""
        return HierarchyTeacher(self.together)

    @classmethod
    def check_exportable(cls, settings: AlgorithmSettings) -> NoReturn:
        """Always refused."""
        raise UsageError(
            f"{cls.__name__.lower()}: agents hear one another and are told goals, so that there is no policy of a "
            "single agent to deploy as it is; hmarl-export distils a local student for each"
        )

    def components(self) -> StateDict:
        """The shared parts and the levels."""
        parts = super().components()
        for name, level in self.hierarchy.levels():
            parts |= level.components(name)
        return parts
