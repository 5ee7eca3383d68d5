"""Networks over the hierarchy's graph: of workers, and of superiors who set a goal for each of their subordinates.

Agents of a group share all layers, and nothing depends on the agents' order: representations of single agents are
combined by means and counts alone. All graphs of a batch are worked on at once, messages as one list of edges.

Source: Marzi et al. 2025 (HiMPo), Eq. 1 and section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.hierarchy.graph import membership, natural_order
from hmarl.trainer.networks.activation import Activation
from hmarl.trainer.networks.flat import FlatNetwork
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.layers import ACTIVATIONS, Parameters, Shapes, dense, linear_shapes, norm, norm_shapes


@dataclass(frozen=True)
class TeamGraph:
    """A team at M moments, as all levels see it.

    Attributes:
        features: per group [M, N_group, D] normalised observations.
        active: [M, N] bool, who is there.
        positions: [M, N, P] where they are; P is 0 where that is not known.
        edges: [M, N, N] bool, entry [m, i, j] says that i hears j.
        cluster: [M, N] int64, the sub-manager to whom each agent reports.
        goal: [M, N, G] what each worker's sub-manager has told it, or None without sub-managers.
        sub_goal: [M, S, G] what the manager has told each sub-manager, or None without a manager.
        clock: [M] int64, steps since all agents decided; None where no value sees it.
    """

    features: list[Tensor]
    active: Tensor
    positions: Tensor
    edges: Tensor
    cluster: Tensor
    goal: Tensor | None = None
    sub_goal: Tensor | None = None
    clock: Tensor | None = None

    @property
    def moments(self) -> int:
        """M."""
        return len(self.active)

    def take(self, rows: Tensor) -> TeamGraph:
        """The moments ``rows``: [m] int64, or [M] bool."""
        return TeamGraph(
            [features[rows] for features in self.features],
            self.active[rows],
            self.positions[rows],
            self.edges[rows],
            self.cluster[rows],
            None if self.goal is None else self.goal[rows],
            None if self.sub_goal is None else self.sub_goal[rows],
            None if self.clock is None else self.clock[rows],
        )


@dataclass(frozen=True)
class GraphStructure:
    """What the networks of all levels have in common.

    Attributes:
        width: E of all representations.
        rounds: L, how often neighbours exchange messages.
        activation: of all layers.
        goal_size: G, 0 without goals.
        position_size: P.
    """

    width: int
    rounds: int
    activation: Activation
    goal_size: int
    position_size: int


class GraphNetwork(Protocol):
    """What a level owes: a pure function of flat parameters and a graph."""

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        ...

    @property
    def of_agents(self) -> bool:
        """Whether there is an output for every agent, which may leave; not for every superior."""
        ...

    def initialise(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters [P]."""
        ...

    def __call__(self, theta: Tensor, graph: TeamGraph) -> list[Tensor]:
        """[M, units, outputs] of every output layer.

        Args:
            theta: [P].
            graph: M moments.
        """
        ...


class GraphLayers:
    """The layers that the networks of all levels have in common, as a part of each.

    Args:
        spec: the environment.
        features: per group the width D of its members' features.
        structure: widths and rounds.
        outputs: sizes of the output layers: one per group of workers, or one for all subordinates.
        output_gain: of the output layers' initial weights; small values start a policy near uniform.
        told: whether goals are received from above.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        features: Sequence[int],
        structure: GraphStructure,
        outputs: Sequence[int],
        output_gain: float,
        told: bool,
    ) -> None:
        self.spec, self.sizes, self.structure = spec, tuple(features), structure
        self.outputs, self.output_gain, self.told = tuple(outputs), output_gain, told
        self.activate = ACTIVATIONS[structure.activation]
        self._natural = torch.tensor(natural_order(spec))

    def shapes_around(self, inner: Shapes) -> Shapes:
        """Input layers per group, what the level has between, output layers."""
        width = self.structure.width
        shapes: Shapes = {}
        for g, size in enumerate(self.sizes):
            shapes |= linear_shapes(f"observation.{g}", size, width)
        if self.told:
            shapes["goal.weight"] = (width, self.structure.goal_size)
        shapes |= inner
        for layer, size in enumerate(self.outputs):
            shapes |= linear_shapes(f"output.{layer}", width, size)
        return shapes

    def gain(self, name: str) -> float:
        """Gain of one weight's orthogonal initialisation."""
        return self.output_gain if name.startswith("output.") else 2.0**0.5

    def message_shapes(self, edge_size: int) -> Shapes:
        """Of ``exchange``; messages over edges of this many numbers."""
        width = self.structure.width
        shapes: Shapes = {}
        for r in range(self.structure.rounds):
            shapes |= linear_shapes(f"message.{r}.receiver", width, width)
            shapes[f"message.{r}.sender.weight"] = (width, width)
            if edge_size:
                shapes[f"message.{r}.edge.weight"] = (width, edge_size)
            shapes |= linear_shapes(f"update.{r}", 2 * width, width) | norm_shapes(f"update.{r}.norm", width)
        return shapes

    def agents(self, parameters: Parameters, graph: TeamGraph, goal: Tensor | None) -> Tensor:
        """[M, N, E] of all agents' observations and goals, 0 where an agent has left."""
        seen = [dense(parameters, f"observation.{g}", features) for g, features in enumerate(graph.features)]
        encoded = seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)[:, self._natural.to(seen[0].device)]
        if goal is not None:
            encoded = encoded + goal @ parameters["goal.weight"].mT
        return self.activate(encoded) * graph.active.unsqueeze(-1)

    def exchange(self, parameters: Parameters, nodes: Tensor, edges: Tensor, positions: Tensor | None) -> Tensor:
        """L rounds of h_i ← UPDATE(h_i, mean_{j∈N(i)} MSG(h_j, h_i, e_ij)) (Eq. 1).

        Args:
            parameters: named.
            nodes: [M, K, E].
            edges: [M, K, K] bool, entry [m, i, j] says that i hears j.
            positions: [M, K, P], of which e_ij = p_j − p_i is made; None without.
        """
        moments, count, width = nodes.shape
        if not self.structure.rounds:
            return nodes
        moment, receiver, sender = edges.nonzero(as_tuple=True)
        receiver, sender = moment * count + receiver, moment * count + sender
        share = edges.sum(-1).clamp(min=1).reciprocal().view(-1, 1)
        apart = None
        if positions is not None:
            places = positions.flatten(0, 1)
            apart = places.index_select(0, sender) - places.index_select(0, receiver)
        held = nodes.flatten(0, 1)
        for r in range(self.structure.rounds):
            # Layers before gathering: there are more edges than agents.
            message = dense(parameters, f"message.{r}.receiver", held).index_select(0, receiver)
            message = message + (held @ parameters[f"message.{r}.sender.weight"].mT).index_select(0, sender)
            if apart is not None:
                message = message + apart @ parameters[f"message.{r}.edge.weight"].mT
            heard = torch.zeros_like(held).index_add(0, receiver, self.activate(message)) * share
            step = self.activate(dense(parameters, f"update.{r}", torch.cat([held, heard], dim=-1)))
            held = norm(parameters, f"update.{r}.norm", held + step)
        return held.view(moments, count, width)


class WorkerNetwork(FlatNetwork):
    """Observation and goal → messages among neighbours → one output per agent; built as ``GraphLayers`` is."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        features: Sequence[int],
        structure: GraphStructure,
        outputs: Sequence[int],
        output_gain: float,
        told: bool,
    ) -> None:
        self.spec, self.structure = spec, structure
        self.layers = GraphLayers(spec, features, structure, outputs, output_gain, told)

    @property
    def of_agents(self) -> bool:
        """Always."""
        return True

    @cached_property
    def shapes(self) -> Shapes:
        """Between input and output: messages and a last hidden layer."""
        width = self.structure.width
        messages = self.layers.message_shapes(self.structure.position_size)
        return self.layers.shapes_around(messages | linear_shapes("hidden", width, width))

    def _gain(self, name: str) -> float:
        return self.layers.gain(name)

    def __call__(self, theta: Tensor, graph: TeamGraph) -> list[Tensor]:
        """Per output layer [M, N_group, outputs], or [M, N, outputs] where there is one for all."""
        parameters = self.named(theta)
        nodes = self.layers.agents(parameters, graph, graph.goal)
        positions = graph.positions if self.structure.position_size else None
        nodes = self.layers.exchange(parameters, nodes, graph.edges, positions)
        hidden = self.layers.activate(dense(parameters, "hidden", nodes))
        if len(self.layers.outputs) == 1:
            return [dense(parameters, "output.0", hidden)]
        return [
            dense(parameters, f"output.{g}", hidden[:, on_device(group.agents, hidden.device)])
            for g, group in enumerate(self.spec.groups)
        ]


class SuperiorNetwork(FlatNetwork):
    """Subordinates' reports → messages among superiors → one output for each subordinate, or for each superior.

    Args:
        sub_managers: S.
        of_manager: the superior is the manager, and its subordinates are the sub-managers, of each of whom it sees a
            summary of its workers; else the superiors are the sub-managers, and their subordinates the workers.
        values: outputs are the superiors' own (a value of what each sees), not one for each subordinate (a goal, or a
            value of the pair).
        window: α, or K·α, steps of the superior's window, where the outputs know which of them it is; else 0.

    The others are ``GraphLayers``'.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        features: Sequence[int],
        structure: GraphStructure,
        outputs: int,
        output_gain: float,
        told: bool,
        sub_managers: int,
        of_manager: bool,
        values: bool,
        window: int = 0,
    ) -> None:
        self.structure, self.told = structure, told
        self.layers = GraphLayers(spec, features, structure, [outputs], output_gain, told)
        self.sub_managers, self.of_manager, self.values, self.window = sub_managers, of_manager, values, window

    @property
    def of_agents(self) -> bool:
        """Of sub-managers' outputs for each of their workers."""
        return not self.of_manager and not self.values

    @cached_property
    def shapes(self) -> Shapes:
        """Between input and output: reports, messages among sub-managers, a last hidden layer of (superior,
        subordinate).
        """
        width = self.structure.width
        shapes = linear_shapes("report", width, width) | {"reporters.weight": (width, 1)}
        if self.of_manager:
            shapes["workers.weight"] = (width, 1)
        else:
            shapes |= self.layers.message_shapes(0)
        if not self.values:
            shapes["subordinate.weight"] = (width, width)
        if self.window:
            shapes["step.weight"] = (width, self.window)
        return self.layers.shapes_around(shapes | linear_shapes("superior", width, width))

    def _gain(self, name: str) -> float:
        return self.layers.gain(name)

    def __call__(self, theta: Tensor, graph: TeamGraph) -> list[Tensor]:
        """[M, N, outputs] for every worker, or [M, S, outputs] for every sub-manager; of values [M, S, outputs] of
        the sub-managers, or [M, 1, outputs] of the manager.
        """
        parameters = self.named(theta)
        workers = self.layers.agents(parameters, graph, None)
        belongs = membership(graph.cluster, graph.active, self.sub_managers)
        if self.of_manager:
            subordinates = _summary(parameters["workers.weight"], workers, belongs)  # [M, S, E]
            belongs = (belongs.sum(1) > 0).float().unsqueeze(-1)  # empty clusters do not report
        else:
            subordinates = workers
        reports = self.layers.activate(dense(parameters, "report", subordinates))
        superiors = _summary(parameters["reporters.weight"], reports, belongs)  # [M, S, E], or [M, 1, E]
        if graph.sub_goal is not None and self.told:
            superiors = superiors + graph.sub_goal @ parameters["goal.weight"].mT
        if not self.of_manager:
            superiors = self.layers.exchange(parameters, superiors, _peers(belongs.sum(1) > 0), None)
        hidden = dense(parameters, "superior", superiors)
        if not self.values:
            if not self.of_manager:
                hidden = hidden.gather(1, graph.cluster.unsqueeze(-1).expand(-1, -1, self.structure.width))
            hidden = hidden + subordinates @ parameters["subordinate.weight"].mT
        if self.window:
            assert graph.clock is not None
            hidden = hidden + parameters["step.weight"].mT[graph.clock % self.window].unsqueeze(1)
        return [dense(parameters, "output.0", self.layers.activate(hidden))]


def _summary(weight: Tensor, nodes: Tensor, belongs: Tensor) -> Tensor:
    """[M, K, E] mean of the nodes [M, N, E] that belong [M, N, K] to each, plus how many those are, ``weight`` [E, 1]
    times log(1 + number); 0 where there are none.
    """
    size = belongs.sum(1).unsqueeze(-1)
    return belongs.mT @ nodes / size.clamp(min=1.0) + size.log1p() @ weight.mT


def _peers(present: Tensor) -> Tensor:
    """[M, S, S] bool: each hears all others that are there [M, S]."""
    others = ~torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    return present.unsqueeze(-2) & others
