"""What all agents observe alike: what may be, what is, and that it stays so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.conductors.common_observations import CommonObservations, comparable_features
from hmarl.trainer.experience.rollout import Rollout
from training_runs import new_hcpo

CPU = torch.device("cpu")
MOVE = spaces.Discrete(3)


def team(*layouts: tuple[tuple[str, int], ...], common: tuple[str, ...] = ()) -> EnvironmentSpec:
    agents = tuple(
        AgentSpec(f"agent_{i}", sum(length for _, length in layout), MOVE, observation_layout=layout)
        for i, layout in enumerate(layouts)
    )
    return EnvironmentSpec("toy", agents, 2, 10, "shared", common_observations=common)


# Two agents of one size and one of another: two groups.
SPEC = team((("clock", 1), ("goal", 2)), (("goal", 2), ("clock", 1)), (("own", 2), ("clock", 1), ("goal", 2)))


def seen(clock: float, goal: tuple[float, float], other: float | None = None) -> list[Tensor]:
    """Per group [1, N_group, D]; ``other`` is the second agent's clock."""
    second = [*goal, clock if other is None else other]
    return [torch.tensor([[[clock, *goal], second]]), torch.tensor([[[7.0, 8.0, clock, *goal]]])]


def rollout(spec: EnvironmentSpec, steps: list[list[Tensor]], active: Tensor | None = None) -> Rollout:
    made = Rollout(spec, len(steps), 1, CPU)
    made.observations = [torch.stack([step[g] for step in steps]) for g in range(len(spec.groups))]
    if active is not None:
        made.active, made.all_active = active, bool(active.all())
    return made


def test_features_are_matched_by_name_and_length() -> None:
    features = comparable_features(SPEC)
    assert [(feature.name, feature.places) for feature in features] == [
        ("clock", (0, 2, 2)),
        ("goal[0]", (1, 0, 3)),
        ("goal[1]", (2, 1, 4)),
    ]
    assert comparable_features(team((("goal", 2),), (("goal", 1), ("x", 1)))) == ()
    twice = team((("a", 1), ("b", 1), ("a", 1)), (("a", 1), ("a", 1), ("b", 1)))
    assert [(feature.name, feature.places) for feature in comparable_features(twice)] == [
        ("a", (0, 0)),
        ("b", (1, 2)),
        ("a", (2, 1)),
    ]


def test_without_layouts_numbers_at_one_place_are_compared() -> None:
    agents = tuple(AgentSpec(f"agent_{i}", 2, MOVE) for i in range(2))
    spec = EnvironmentSpec("toy", agents, 2, 10, "shared")
    assert [feature.name for feature in comparable_features(spec)] == ["observation[0]", "observation[1]"]
    unlike = EnvironmentSpec("toy", (agents[0], AgentSpec("agent_1", 3, MOVE)), 2, 10, "shared")
    assert comparable_features(unlike) == ()


def test_what_all_see_alike_is_found_in_the_first_rollouts() -> None:
    common = CommonObservations(SPEC, CPU, search=2)
    alike, unlike = seen(0.5, (1.0, 2.0)), seen(0.5, (1.0, 2.0), other=0.25)
    common.compare(rollout(SPEC, [alike, alike]))
    assert common.known.tolist() == [False, False, False]  # not yet
    common.compare(rollout(SPEC, [alike, unlike]))
    assert common.known.tolist() == [False, True, True]
    common.compare(rollout(SPEC, [unlike]))  # the clock is not relied upon
    again = CommonObservations(SPEC, CPU, search=2)
    again.load_state_dict(common.state_dict())
    assert again.known.tolist() == [False, True, True]


def test_a_feature_that_once_differs_is_named() -> None:
    common = CommonObservations(SPEC, CPU, search=1)
    common.compare(rollout(SPEC, [seen(0.5, (1.0, 2.0))]))
    assert common.known.all()
    message = "'clock', which was common in the first rollouts, is 0.75 for agent 'agent_0' and 0.5 for agent 'agent_1'"
    with pytest.raises(UsageError, match=message):
        common.compare(rollout(SPEC, [seen(0.5, (1.0, 2.0)), seen(0.75, (1.0, 2.0), other=0.5)]))


def test_what_is_declared_is_known_at_once_and_nothing_else() -> None:
    common = CommonObservations(replace(SPEC, common_observations=("clock",)), CPU, search=3)
    assert [feature.name for feature in common.features] == ["clock"]
    assert common.known.tolist() == [True]
    with pytest.raises(UsageError, match="'clock', which the environment declares as common"):
        common.compare(rollout(SPEC, [seen(0.75, (1.0, 2.0), other=0.5)]))


def test_who_has_left_is_not_asked() -> None:
    common = CommonObservations(SPEC, CPU, search=1)
    gone = torch.tensor([[[False, True, True]]])
    observations = seen(0.0, (1.0, 2.0), other=0.5)
    observations[1][..., 2] = 0.5
    common.compare(rollout(SPEC, [observations], gone))
    assert common.known.all()
    np.testing.assert_array_equal(common.of(observations, gone[0]), [[0.5, 1.0, 2.0]])
    np.testing.assert_array_equal(
        common.of(seen(0.5, (1.0, 2.0)), torch.ones(1, 3, dtype=torch.bool)), [[0.5, 1.0, 2.0]]
    )
    for agent, observed in enumerate((*observations[0][0], observations[1][0, 0])):
        if agent:
            np.testing.assert_array_equal(observed[common.places_of(agent)], [0.5, 1.0, 2.0])


def test_a_declaration_must_be_in_every_layout() -> None:
    with pytest.raises(ValueError, match="common_observations: got 'goal', expected a part of one length in every"):
        team((("goal", 2),), (("goal", 1),), common=("goal",))
    with pytest.raises(ValueError, match="common_observations: got 'nothing'"):
        team((("goal", 2),), (("goal", 2),), common=("nothing",))
    assert make("coordsum/3x10-30").spec.common_observations == ("target", "step")


def test_agents_who_observe_it_elsewhere_cannot_share_a_graph() -> None:
    CommonObservations(team((("clock", 1), ("own", 1)), (("clock", 1), ("own", 1))), CPU, 1).check_interchangeable()
    CommonObservations(SPEC, CPU, 1, nothing=True).check_interchangeable()
    message = "'clock' lies at number 0 of what 'agent_0' observes and at number 2 of what 'agent_1' does"
    with pytest.raises(UsageError, match=message):
        CommonObservations(SPEC, CPU, 1).check_interchangeable()
    settings = {"conductor_sees": "common", "share_parameters": True, "agent_identity": False}
    new_hcpo("coordsum/2x4-6", **settings)
