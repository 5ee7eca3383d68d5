"""Networks over the graph do not depend on the agents' order or number, and send what Eq. 1 says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gymnasium import spaces

from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.hierarchy.networks import (
    GraphNetwork,
    GraphStructure,
    SuperiorNetwork,
    TeamGraph,
    WorkerNetwork,
)

STRUCTURE = GraphStructure(width=8, rounds=2, activation="tanh", goal_size=3, position_size=2)
SUB_MANAGERS = 2


def spec(agents: int) -> EnvironmentSpec:
    space = spaces.Discrete(4)
    members = tuple(AgentSpec(f"agent_{i}", 5, space, False, (("position", 2), ("rest", 3))) for i in range(agents))
    return EnvironmentSpec("test/team", members, 1, None, "sum")


def worker_network(agents: int) -> WorkerNetwork:
    return WorkerNetwork(spec(agents), [5], STRUCTURE, [4], 1.0, told=True)


def superior_network(agents: int, of_manager: bool, values: bool) -> SuperiorNetwork:
    return SuperiorNetwork(spec(agents), [5], STRUCTURE, 3, 1.0, not of_manager, SUB_MANAGERS, of_manager, values)


NETWORKS = {
    "workers": worker_network,
    "sub-managers": lambda agents: superior_network(agents, of_manager=False, values=False),
    "manager": lambda agents: superior_network(agents, of_manager=True, values=False),
    "sub-managers' values": lambda agents: superior_network(agents, of_manager=False, values=True),
    "manager's values": lambda agents: superior_network(agents, of_manager=True, values=True),
}
# Whose outputs are the sub-managers', not the workers'.
OF_SUB_MANAGERS = ("manager", "sub-managers' values")


def graph(agents: int, moments: int = 6) -> TeamGraph:
    generator = torch.Generator().manual_seed(3)
    edges = torch.rand(moments, agents, agents, generator=generator) < 0.6
    return TeamGraph(
        [torch.randn(moments, agents, 5, generator=generator)],
        torch.ones(moments, agents, dtype=torch.bool),
        torch.randn(moments, agents, 2, generator=generator),
        edges & ~torch.eye(agents, dtype=torch.bool),
        torch.randint(SUB_MANAGERS, (moments, agents), generator=generator),
        torch.randn(moments, agents, 3, generator=generator),
        torch.randn(moments, SUB_MANAGERS, 3, generator=generator),
    )


def output(network: GraphNetwork, seen: TeamGraph) -> torch.Tensor:
    theta = network.initialise(torch.Generator().manual_seed(5))
    (result,) = network(theta, seen)
    return result


def padded(seen: TeamGraph, more: int) -> TeamGraph:
    """The same team beside ``more`` agents who have left, whose numbers are nonsense."""
    moments, agents = seen.active.shape

    def beside(x: torch.Tensor, value: float) -> torch.Tensor:
        return torch.cat([x, torch.full((moments, more, *x.shape[2:]), value).to(x.dtype)], dim=1)

    edges = torch.zeros(moments, agents + more, agents + more, dtype=torch.bool)
    edges[:, :agents, :agents] = seen.edges
    assert seen.goal is not None
    return TeamGraph(
        [beside(seen.features[0], 7.0)],
        beside(seen.active, 0),
        beside(seen.positions, 9.0),
        edges,
        beside(seen.cluster, 0),
        beside(seen.goal, 5.0),
        seen.sub_goal,
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_who_is_named_first_does_not_matter(name: str) -> None:
    seen, order = graph(4), torch.tensor([2, 0, 3, 1])
    assert seen.goal is not None
    shuffled = TeamGraph(
        [seen.features[0][:, order]],
        seen.active[:, order],
        seen.positions[:, order],
        seen.edges[:, order][:, :, order],
        seen.cluster[:, order],
        seen.goal[:, order],
        seen.sub_goal,
    )
    expected = output(NETWORKS[name](4), seen)
    if name in ("workers", "sub-managers"):
        expected = expected[:, order]
    torch.testing.assert_close(output(NETWORKS[name](4), shuffled), expected)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "workers"])
def test_nor_do_the_sub_managers_numbers(name: str) -> None:
    seen = graph(4)
    assert seen.sub_goal is not None
    swapped = replace(seen, cluster=1 - seen.cluster, sub_goal=seen.sub_goal.flip(1))
    expected = output(NETWORKS[name](4), seen)
    if name in OF_SUB_MANAGERS:
        expected = expected.flip(1)
    torch.testing.assert_close(output(NETWORKS[name](4), swapped), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_three_agents_padded_to_seven_decide_as_three(name: str) -> None:
    seen = graph(3)
    expected = output(NETWORKS[name](3), seen)
    padded_output = output(NETWORKS[name](7), padded(seen, 4))
    torch.testing.assert_close(padded_output[:, : expected.shape[1]], expected)


def test_messages_are_the_means_of_eq_1_by_hand() -> None:
    network = WorkerNetwork(spec(3), [5], replace(STRUCTURE, rounds=1), [4], 1.0, told=True)
    seen = graph(3, moments=1)
    edges = torch.tensor([[[False, True, True], [False, False, True], [False, False, False]]])
    seen = replace(seen, edges=edges)
    theta = network.initialise(torch.Generator().manual_seed(5))
    p, linear = network.named(theta), torch.nn.functional.linear
    assert seen.goal is not None
    hidden = torch.tanh(
        linear(seen.features[0][0], p["observation.0.weight"], p["observation.0.bias"])
        + seen.goal[0] @ p["goal.weight"].T
    )
    after = []
    for i, neighbours in enumerate([[1, 2], [2], []]):
        messages = [
            torch.tanh(
                linear(hidden[i], p["message.0.receiver.weight"], p["message.0.receiver.bias"])
                + p["message.0.sender.weight"] @ hidden[j]
                + p["message.0.edge.weight"] @ (seen.positions[0, j] - seen.positions[0, i])
            )
            for j in neighbours
        ]
        heard = torch.stack(messages).mean(0) if messages else torch.zeros(8)
        step = torch.tanh(linear(torch.cat([hidden[i], heard]), p["update.0.weight"], p["update.0.bias"]))
        after.append(torch.nn.functional.layer_norm(hidden[i] + step, (8,)))
    last = torch.tanh(linear(torch.stack(after), p["hidden.weight"], p["hidden.bias"]))
    expected = linear(last, p["output.0.weight"], p["output.0.bias"])
    torch.testing.assert_close(network(theta, seen)[0][0], expected)


def test_without_messages_no_agent_depends_on_the_others() -> None:
    network = WorkerNetwork(spec(3), [5], replace(STRUCTURE, rounds=0), [4], 1.0, told=True)
    seen = graph(3)
    others = seen.features[0].clone()
    others[:, 1:] += 1.0
    changed = replace(seen, features=[others])
    assert output(network, seen)[:, 0].equal(output(network, changed)[:, 0])
    assert not output(worker_network(3), seen)[:, 0].equal(output(worker_network(3), changed)[:, 0])


def test_a_goal_reaches_its_worker_and_its_workers_neighbours_alone() -> None:
    network = worker_network(3)
    seen = replace(graph(3), edges=torch.zeros(6, 3, 3, dtype=torch.bool))
    assert seen.goal is not None
    goal = seen.goal.clone()
    goal[:, 0] += 1.0
    before, after = output(network, seen), output(network, replace(seen, goal=goal))
    assert not before[:, 0].equal(after[:, 0])
    assert before[:, 1:].equal(after[:, 1:])
