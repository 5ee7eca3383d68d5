"""Who hears whom, and who reports to whom."""

from __future__ import annotations

from dataclasses import replace

import torch
from gymnasium import spaces

from hmarl.sdk.environments import make
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.hierarchy.graph import (
    Positions,
    clusters_by_number,
    first_centres,
    message_edges,
    natural_order,
    spatial_clusters,
)

# Two pairs far apart, and one who has left, who stands beside the first pair.
PLACES = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 2.0], [0.0, 0.5]]])
THERE = torch.tensor([[True, True, True, True, False]])


def pairs(edges: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for _, i, j in edges.nonzero()}


def test_within_the_radius_neighbours_hear_one_another_and_no_agent_hears_who_has_left() -> None:
    assert pairs(message_edges(PLACES, THERE, "radius", 1.0, 0)) == {(0, 1), (1, 0)}
    assert pairs(message_edges(PLACES, THERE, "radius", 2.0, 0)) == {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_the_nearest_are_heard_whatever_the_distance() -> None:
    assert pairs(message_edges(PLACES, THERE, "nearest", 0.0, 1)) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    # With as many neighbours as there are others all agents are heard, but for the one that has left.
    assert message_edges(PLACES, THERE, "nearest", 0.0, 9).equal(message_edges(PLACES, THERE, "all", 0.0, 0))


def test_all_and_none() -> None:
    assert int(message_edges(PLACES, THERE, "all", 0.0, 0).sum()) == 4 * 3
    assert int(message_edges(PLACES, THERE, "none", 9.0, 9).sum()) == 0


def test_clusters_are_the_groups_of_agents_who_stand_together() -> None:
    cluster, centres = spatial_clusters(PLACES, THERE, first_centres(PLACES, THERE, 2))
    assert cluster[0, 0] == cluster[0, 1] != cluster[0, 2] == cluster[0, 3]
    # The one who has left belongs to the nearest cluster, and does not move its centre.
    assert cluster[0, 4] == cluster[0, 0]
    assert centres[0, cluster[0, 0]].tolist() == [0.0, 0.5]
    assert centres[0, cluster[0, 2]].tolist() == [10.0, 1.0]


def test_a_cluster_keeps_its_number_while_its_agents_wander() -> None:
    cluster, centres = spatial_clusters(PLACES, THERE, first_centres(PLACES, THERE, 2))
    moved = PLACES + torch.tensor([1.0, -1.0])
    again, _ = spatial_clusters(moved, THERE, centres)
    assert again.equal(cluster)


def test_an_empty_cluster_stays_where_it_was() -> None:
    together = torch.zeros(1, 3, 2)
    there = torch.ones(1, 3, dtype=torch.bool)
    centres = torch.tensor([[[0.0, 0.0], [5.0, 5.0]]])
    cluster, after = spatial_clusters(together, there, centres)
    assert cluster.tolist() == [[0, 0, 0]]
    assert after.equal(centres)


def test_first_centres_lie_far_from_one_another_and_do_not_depend_on_the_agents_order() -> None:
    centres = first_centres(PLACES, THERE, 2)
    assert (centres[0, 0] - centres[0, 1]).norm() > 9.0
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = first_centres(PLACES[:, order], THERE[:, order], 2)
    assert shuffled.equal(centres)


def test_without_positions_workers_are_shared_out_by_number() -> None:
    assert clusters_by_number(5, 2).tolist() == [0, 0, 0, 1, 1]
    assert clusters_by_number(2, 3).tolist() == [0, 1]


def test_positions_are_read_from_the_part_of_the_observation_that_is_called_so() -> None:
    environment = make("mpe/simple_spread", 2)
    observation = environment.reset([1, 2])
    positions = Positions(environment.spec)
    assert positions.dimensions == 2
    seen = torch.as_tensor(observation.observations[0])
    assert positions([seen]).equal(seen[..., 2:4])  # after the velocity


def test_agents_of_a_group_may_observe_in_another_order() -> None:
    place, speed = ("position", 2), ("speed", 1)
    agents = tuple(
        AgentSpec(f"agent_{i}", 3, spaces.Discrete(2), observation_layout=layout)
        for i, layout in enumerate([(place, speed), (speed, place)])
    )
    spec = EnvironmentSpec("toy/mixed", agents, state_size=1, horizon=None, team_reward="shared")
    positions = Positions(spec)
    assert len(spec.groups) == 1
    assert positions([torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])]).tolist() == [[[1.0, 2.0], [5.0, 6.0]]]
    mute = replace(spec, agents=(agents[0], replace(agents[1], observation_layout=(("speed", 3),))))
    assert Positions(mute).dimensions == 0


def test_agents_of_several_groups_stand_in_their_natural_order() -> None:
    class Spec:
        """Groups of agents 0 and 2, and 1 and 3."""

        class _Group:
            def __init__(self, *agents: int) -> None:
                self.agents = agents

        agents = (None,) * 4
        groups = (_Group(0, 2), _Group(1, 3))

    assert natural_order(Spec()) == [0, 2, 1, 3]  # type: ignore[arg-type]


def test_where_no_position_is_known_there_are_no_numbers() -> None:
    environment = make("coordsum/3x10-30", 2)
    positions = Positions(environment.spec)
    assert positions.dimensions == 0
    assert positions([torch.as_tensor(environment.reset([1, 2]).observations[0])]).shape == (2, 3, 0)
