"""Workers, sub-managers and a manager: who decides when, and what is in force in between.

Source: Marzi et al. 2025 (HiMPo), section 3.1: workers act at every step, sub-managers set goals every α steps, the
manager every K·α.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.hierarchy.graph import (
    Positions,
    clusters_by_number,
    first_centres,
    message_edges,
    spatial_clusters,
)
from hmarl.trainer.hierarchy.level import Level
from hmarl.trainer.hierarchy.networks import GraphStructure, SuperiorNetwork, TeamGraph, WorkerNetwork
from hmarl.trainer.hierarchy.settings import HierarchySettings
from hmarl.trainer.learning.instructions import held_until_renewed, instruction_context, no_instructions
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.policies import select_all


@dataclass(frozen=True)
class Standing:
    """What is in force in B environments.

    Attributes:
        clock: [B] int64, steps since all agents decided.
        fresh: [B] bool, whether the next step is an episode's first.
        edges: [B, N, N] bool, who hears whom.
        cluster: [B, N] int64, to whom each worker reports; centres: [B, S, P] of the clusters.
        goal: [B, N] int64 or [B, N, G], what the sub-managers told each worker.
        sub_goal: [B, S] int64 or [B, S, G], what the manager told each sub-manager.
    """

    clock: Tensor
    fresh: Tensor
    edges: Tensor
    cluster: Tensor
    centres: Tensor
    goal: Tensor
    sub_goal: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By name, for checkpoints."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Noise:
    """Perturbations of one step: of actions per group [N_group, B, A], of goals [B, N, G] and [B, S, G]."""

    actions: Sequence[Tensor]
    goals: Tensor
    sub_goals: Tensor


@dataclass(frozen=True)
class Step:
    """What a hierarchy decided at one step.

    Attributes:
        actions: per group [B, N_group, ...] raw.
        workers: per group [N_group, B] what they were drawn from.
        graph: what it saw, goals included.
        standing: what is in force from here on.
        record: what learning needs of it, [B, ...] by name.
    """

    actions: tuple[Tensor, ...]
    workers: list[Distribution]
    graph: TeamGraph
    standing: Standing
    record: dict[str, Tensor]


class Hierarchy:
    """The levels of a hierarchy.

    Args:
        spec: the environment.
        settings: of the algorithm.
        heads: per group, of the workers' actions.
        features: per group the width D of the workers' features.
        generator: CPU generator of the initial weights.
        device: where networks live.

    Raises:
        UsageError: clusters are to be spatial where no positions are known.

    Attributes:
        workers, sub_managers, manager: the levels; None where there is none.
        spatial: whether workers report to the sub-manager of their place.
        goal_head: what goals are.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        settings: HierarchySettings,
        heads: Sequence[ActionHead],
        features: Sequence[int],
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.spec, self.settings, self.device = spec, settings, device
        self.positions, self.goal_head = Positions(spec), settings.goal_head
        self.count = settings.sub_managers
        self.spatial = self.positions.dimensions > 0 and settings.clustering != "number"
        if settings.clustering == "spatial" and not self.spatial:
            raise UsageError(
                f"algorithm.clustering: got spatial, expected auto or number (no observation of {spec.name} has a part "
                "'position')"
            )
        goal_size = self.goal_head.output_size if settings.levels > 1 else 0
        structure = GraphStructure(
            settings.embedding_size, settings.message_rounds, settings.activation, goal_size, self.positions.dimensions
        )
        groups = [group.agents for group in spec.groups]
        self.workers = Level(
            WorkerNetwork(spec, features, structure, [head.output_size for head in heads], 0.01, settings.levels > 1),
            WorkerNetwork(spec, features, structure, [1], 1.0, settings.levels > 1),
            heads,
            groups,
            settings,
            settings.entropy_coefficient,
            generator,
            device,
        )

        def superiors(of_manager: bool, told: bool) -> Level:
            window = settings.goal_interval * (settings.manager_interval if of_manager else 1)
            policy, value = (
                SuperiorNetwork(spec, features, structure, outputs, gain, told, self.count, of_manager, values, steps)
                for outputs, gain, values, steps in (
                    (self.goal_head.output_size, 0.01, False, 0),
                    (1, 1.0, not settings.edge_values, window if settings.values_see_step else 0),
                )
            )
            units = [range(self.count if of_manager else len(spec.agents))]
            return Level(
                policy, value, [self.goal_head], units, settings, settings.goal_entropy_coefficient, generator, device
            )

        self.sub_managers = superiors(False, settings.levels == 3) if settings.levels > 1 else None
        self.manager = superiors(True, False) if settings.levels == 3 else None

    # --- what is in force -------------------------------------------------------------------------------------------

    def nothing_in_force(self, batch: int) -> Standing:
        """At the start of B episodes."""
        agents = len(self.spec.agents)

        def goals(units: int) -> Tensor:
            return no_instructions(self.goal_head, batch * units, self.device).unflatten(0, (batch, units))

        return Standing(
            clock=torch.zeros(batch, dtype=torch.int64, device=self.device),
            fresh=torch.ones(batch, dtype=torch.bool, device=self.device),
            edges=torch.zeros(batch, agents, agents, dtype=torch.bool, device=self.device),
            cluster=clusters_by_number(agents, self.count).to(self.device).repeat(batch, 1),
            centres=torch.zeros(batch, self.count, self.positions.dimensions, device=self.device),
            goal=goals(agents),
            sub_goal=goals(self.count),
        )

    def ended(self, standing: Standing, ended: Tensor) -> Standing:
        """Nothing stays in force in the environments whose episodes have ended, [B] bool."""
        nothing = self.nothing_in_force(len(ended))
        return Standing(
            **{
                name: held_until_renewed(ended, value, standing.tensors()[name])
                for name, value in nothing.tensors().items()
            }
        )

    def edges(self, positions: Tensor, active: Tensor) -> Tensor:
        """[M, N, N] bool, who hears whom at [M, N, P] positions."""
        settings = self.settings
        kind = settings.graph
        if kind == "auto":
            kind = "radius"
        if kind in ("radius", "nearest") and not self.positions.dimensions:
            kind = "all"
        return message_edges(positions, active, kind, settings.radius, settings.neighbours)

    def seen(self, goal: Tensor) -> Tensor:
        """What subordinates see of goals: one-hot, or the vectors themselves."""
        return instruction_context(self.goal_head, goal)

    def graph(
        self,
        features: list[Tensor],
        active: Tensor,
        positions: Tensor,
        edges: Tensor,
        cluster: Tensor,
        goal: Tensor,
        sub_goal: Tensor,
        clock: Tensor | None = None,
    ) -> TeamGraph:
        """A team at M moments, with as many goals as there are levels; see ``TeamGraph``. Edges that were drawn earlier
        may be of agents who have left since.
        """
        told, levels = self.seen, self.settings.levels
        return TeamGraph(
            features,
            active,
            positions,
            edges & active.unsqueeze(-1) & active.unsqueeze(-2),
            cluster,
            told(goal) if levels > 1 else None,
            told(sub_goal) if levels == 3 else None,
            clock,
        )

    def draw_goal_noise(self, lead: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Perturbations of goals, [*lead, N, G] of the workers' and [*lead, S, G] of the sub-managers'."""
        draw, agents = self.goal_head.draw_perturbations, len(self.spec.agents)
        return draw((*lead, agents), generator), draw((*lead, self.count), generator)

    # --- deciding ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(
        self,
        features: list[Tensor],
        masks: Sequence[Tensor | None],
        observations: Sequence[Tensor],
        active: Tensor,
        standing: Standing,
        noise: Noise | None,
    ) -> Step:
        """Goals where they have run out, from the top down, then all agents' actions.

        Args:
            features: per group [B, N_group, D] normalised.
            masks: per group [B, N_group, A] bool, or None.
            observations: per group [B, N_group, D] as the environment gave them.
            active: [B, N] bool.
            standing: what is in force.
            noise: of this step; None takes all agents' most likely choices.
        """
        settings = self.settings
        goal_noise, sub_goal_noise = (None, None) if noise is None else (noise.goals, noise.sub_goals)
        decided = standing.clock % settings.goal_interval == 0
        manager_decided = standing.clock % (settings.goal_interval * settings.manager_interval) == 0
        positions = self.positions(observations)
        standing = self._redrawn(standing, positions, active, decided)
        graph = self.graph(
            features, active, positions, standing.edges, standing.cluster, standing.goal, standing.sub_goal
        )
        if self.manager is not None:
            sub_goal = self._renewed(self.manager, graph, manager_decided, standing.sub_goal, sub_goal_noise)
            standing = replace(standing, sub_goal=sub_goal)
            graph = replace(graph, sub_goal=self.seen(sub_goal))
        if self.sub_managers is not None:
            goal = self._renewed(self.sub_managers, graph, decided, standing.goal, goal_noise)
            standing = replace(standing, goal=goal)
            graph = replace(graph, goal=self.seen(goal))
        workers = self.workers.distributions(graph, masks, units_first=True)
        actions = select_all(workers, None if noise is None else noise.actions)
        record = {name: standing.tensors()[name] for name in ("cluster", "goal", "sub_goal")}
        record |= {"edges": graph.edges, "decided": decided, "manager_decided": manager_decided}
        if settings.values_see_step:
            record["clock"] = standing.clock
        after = replace(standing, clock=standing.clock + 1, fresh=torch.zeros_like(standing.fresh))
        return Step(actions, workers, graph, after, record)

    def _redrawn(self, standing: Standing, positions: Tensor, active: Tensor, decided: Tensor) -> Standing:
        """The graph of a step: messages anew at every step, reports where goals are set; with a static graph both at
        an episode's first step alone.
        """
        static = self.settings.static_graph
        edges = self.edges(positions, active)
        if static:
            edges = held_until_renewed(standing.fresh, edges, standing.edges)
        if not self.spatial or self.sub_managers is None:
            return replace(standing, edges=edges)
        centres = held_until_renewed(standing.fresh, first_centres(positions, active, self.count), standing.centres)
        cluster, centres = spatial_clusters(positions, active, centres)
        moves = standing.fresh if static else decided
        return replace(
            standing,
            edges=edges,
            cluster=held_until_renewed(moves, cluster, standing.cluster),
            centres=held_until_renewed(moves, centres, standing.centres),
        )

    def _renewed(self, level: Level, graph: TeamGraph, decided: Tensor, held: Tensor, noise: Tensor | None) -> Tensor:
        """Goals [B, units, ...] after a level's decisions in the environments where it decides, [B] bool."""
        rows = decided.nonzero().squeeze(-1)
        if not len(rows):
            return held
        (distribution,) = level.distributions(graph.take(rows), [None])
        drawn = distribution.mode() if noise is None else distribution.select(noise[rows])
        return held.index_copy(0, rows, drawn)

    def levels(self) -> Iterator[tuple[str, Level]]:
        """Name and level, from the workers up."""
        yield "workers", self.workers
        if self.sub_managers is not None:
            yield "sub_managers", self.sub_managers
        if self.manager is not None:
            yield "manager", self.manager
