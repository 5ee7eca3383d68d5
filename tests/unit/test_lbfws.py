from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from foraging_teams import ForagingTeam, JointTeam, Outcome, SoloTeam, UnarrangedTeam, play
from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.environments import make, tasks
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.environments.lbfws import LbfwsEnvironment
from hmarl.sdk.environments.mpe.drawing import agent_colour
from hmarl.sdk.errors import UsageError
from hmarl.sdk.team import RandomTeam

NONE, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
AWAY = (-1, -1)
Place = tuple[int, int]

# Three agents on 7 by 7 cells who see 2 cells far; a store lasts 20 steps, a level of food 6.
SMALL: dict[str, Any] = {
    "agents": 3,
    "size": 7,
    "food": [1, 2],
    "horizon": 50,
    "sight": 2,
    "endurance": 20,
    "nutrition": 6,
    "regrowth": 4,
}


def small(batch_size: int = 1, **arguments: Any) -> LbfwsEnvironment:
    environment = make("lbfws/hard", batch_size, **{**SMALL, **arguments})
    assert isinstance(environment, LbfwsEnvironment)
    environment.reset(np.arange(batch_size))
    return environment


def place(
    environment: LbfwsEnvironment,
    agents: Sequence[Place],
    food: Sequence[Place],
    *,
    energies: Sequence[float] = (10, 10, 10),
    waits: Sequence[int] = (0, 0),
    steps: int = 0,
) -> Observation:
    """The same situation in every environment; energies are in steps."""
    state = environment.get_state()
    state["agents"][:], state["food"][:] = agents, food
    state["energies"][:], state["waits"][:], state["steps"][:] = energies, waits, steps
    return environment.set_state(state)


def act(environment: LbfwsEnvironment, *actions: int) -> StepResult:
    return environment.step((np.tile(actions, (environment.batch_size, 1)),))


def places(environment: LbfwsEnvironment) -> list[Place]:
    return [(row, column) for row, column in environment.get_state()["agents"][0].tolist()]


def legal(observation: Observation, agent: int) -> list[int]:
    return np.flatnonzero(observation.action_masks[0][0, agent]).tolist()


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("easy", {"horizon": 30, "endurance": 12}),
        ("hard", {"horizon": 30, "endurance": 12}),
        ("hard", {"agents": 1, "horizon": 30, "endurance": 12, "regrowth": 0, "sight": 1}),
        ("easy", {"agents": 7, "horizon": 20, "endurance": 8, "sight": 11}),
    ],
)
def test_it_keeps_the_contract(task: str, arguments: dict[str, Any]) -> None:
    results = check_environment(lambda batch: make(f"lbfws/{task}", batch, **arguments), batch_size=3)
    assert not [result for result in results if not result.passed]
    details = {result.name: result.detail for result in results}
    alone = arguments.get("agents") == 1  # then the episode ends with the agent
    assert alone or "agents leave" in details["active agents"]
    assert "bit for bit" in details["save and restore"]


def test_an_episode_depends_on_its_seed_alone() -> None:
    large, single = make("lbfws/hard", 16), make("lbfws/hard", 1)
    seen, _ = large.reset(np.arange(16)), single.reset(np.array([11]))
    team = JointTeam(large.spec)
    for _ in range(120):  # over the end of the episode, with food eaten and grown
        (actions,) = team.act(seen, np.ones(16, dtype=bool))
        result, other = large.step((actions,)), single.step((actions[11:12],))
        np.testing.assert_array_equal(result.rewards[11], other.rewards[0])
        np.testing.assert_array_equal(result.observation.state[11], other.observation.state[0])
        np.testing.assert_array_equal(result.observation.observations[0][11], other.observation.observations[0][0])
        seen = result.observation
    assert not np.array_equal(seen.state[11], seen.state[12])


@pytest.mark.parametrize(("agents", "size"), [(1, 5), (2, 7), (5, 10), (7, 12), (10, 15)])
def test_field_and_food_grow_with_the_team(agents: int, size: int) -> None:
    assert tasks("lbfws") == ["easy", "hard"]
    easy, hard = (make(f"lbfws/{task}", 1, agents=agents).spec for task in tasks("lbfws"))
    assert easy.arguments["size"] == hard.arguments["size"] == size
    assert easy.arguments["food"] == [1] * agents
    assert hard.arguments["food"] == ([1, 2, 2, 3, 3] * 2)[:agents]
    assert len(easy.agents) == agents
    assert easy.team_reward == "sum"
    assert easy.has_success
    assert make("lbfws/hard", 1, **hard.arguments).spec == hard


def test_an_episode_begins_with_full_stores_and_food_that_can_be_reached() -> None:
    environment = make("lbfws/hard", 300)
    environment.reset(np.arange(300))
    state = dict(environment.get_state() or {})
    assert (state["energies"] == 40).all()
    assert state["food"].min() == 1
    assert state["food"].max() == 8
    apart = np.abs(state["food"][:, :, None] - state["food"][:, None]).sum(axis=-1)
    assert apart[:, ~np.eye(5, dtype=bool)].min() >= 3
    everything = np.concatenate([state["agents"], state["food"]], axis=1) @ [10, 1]
    assert all(len(set(cells)) == 10 for cells in everything.tolist())
    counts = np.bincount((state["agents"] @ [10, 1]).ravel(), minlength=100)
    assert counts.min() > 0, "some cell never holds an agent at first"


# --- moves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "expected"), [(NORTH, (2, 3)), (SOUTH, (4, 3)), (WEST, (3, 2)), (EAST, (3, 4))])
def test_a_step_leads_to_the_next_cell(action: int, expected: Place) -> None:
    environment = small()
    place(environment, [(3, 3), (0, 0), (6, 6)], [(5, 1), (1, 5)])
    act(environment, action, NONE, NONE)
    assert places(environment) == [expected, (0, 0), (6, 6)]


def test_edges_food_and_agents_are_in_the_way() -> None:
    environment = small()
    seen = place(environment, [(0, 0), (0, 1), (2, 1)], [(1, 1), (4, 4)])
    assert legal(seen, 0) == [NONE, SOUTH]
    assert legal(seen, 1) == [NONE, EAST, LOAD]  # food to the south, an agent to the west
    assert legal(seen, 2) == [NONE, SOUTH, WEST, EAST, LOAD]
    for actions in [(NORTH, NORTH, NORTH), (EAST, WEST, NORTH), (LOAD, SOUTH, NORTH)]:
        act(environment, *actions)
        assert places(environment) == [(0, 0), (0, 1), (2, 1)]


def test_no_one_steps_onto_a_cell_that_is_just_being_left() -> None:
    environment = small()
    place(environment, [(3, 3), (3, 4), (0, 0)], [(5, 1), (1, 5)])
    act(environment, EAST, EAST, NONE)
    assert places(environment) == [(3, 3), (3, 5), (0, 0)]


def test_of_several_agents_one_gets_the_cell_and_not_always_the_same() -> None:
    environment = small()
    before, winners = [(3, 2), (2, 3), (3, 4)], []
    for step in range(6):
        place(environment, before, [(5, 1), (1, 5)], steps=step)
        act(environment, EAST, SOUTH, WEST)
        (winner,) = (agent for agent, where in enumerate(places(environment)) if where == (3, 3))
        assert sum(now == then for now, then in zip(places(environment), before, strict=True)) == 2
        winners.append(winner)
    assert winners == [0, 2, 1, 0, 2, 1]


# --- food and energy -------------------------------------------------------------------------------------------------


def test_food_of_level_1_is_eaten_by_one_agent() -> None:
    environment = small()
    place(environment, [(3, 2), (0, 0), (6, 6)], [(3, 3), (1, 5)])
    result = act(environment, LOAD, NONE, NONE)
    state = environment.get_state()
    np.testing.assert_array_equal(state["energies"], [[10 - 1 + 6, 9, 9]])
    np.testing.assert_array_equal(state["food"][0, 0], AWAY)
    np.testing.assert_array_equal(state["waits"], [[4, 0]])
    np.testing.assert_allclose(result.rewards, np.array([[1 + 6, 1, 1]]) / (2 * 50), rtol=1e-6)
    np.testing.assert_allclose(result.observation.observations[0][0, :, 2], np.array([15, 9, 9]) / 20)


def test_food_of_level_2_needs_two_agents_at_once() -> None:
    environment = small()
    beside = [(3, 2), (3, 4), (2, 3)]
    for actions, gains in [
        ((LOAD, NONE, NONE), (0, 0, 0)),
        ((LOAD, EAST, NONE), (0, 0, 0)),
        ((LOAD, NONE, LOAD), (6, 0, 6)),
        ((LOAD, LOAD, LOAD), (4, 4, 4)),
    ]:
        place(environment, beside, [(5, 5), (3, 3)])
        result = act(environment, *actions)
        np.testing.assert_array_equal(environment.get_state()["energies"][0], 10 - 1 + np.array(gains))
        np.testing.assert_allclose(result.rewards[0], (1 + np.array(gains)) / 100, rtol=1e-6)
        assert (environment.get_state()["waits"][0, 1] > 0) == any(gains)


def test_to_load_is_not_to_be_diagonal_or_away() -> None:
    environment = small()
    seen = place(environment, [(2, 2), (3, 5), (3, 2)], [(5, 5), (3, 3)])
    assert [LOAD in legal(seen, agent) for agent in range(3)] == [False, False, True]
    act(environment, LOAD, LOAD, LOAD)
    np.testing.assert_array_equal(environment.get_state()["energies"], [[9, 9, 9]])
    # Beside the one item and diagonal to the other.
    place(environment, [(2, 2), (0, 0), (4, 3)], [(2, 1), (3, 3)])
    act(environment, LOAD, NONE, LOAD)
    np.testing.assert_array_equal(environment.get_state()["waits"], [[4, 0]])


def test_a_store_holds_no_more_than_it_can_but_the_meal_is_paid_in_full() -> None:
    environment = small()
    place(environment, [(3, 2), (0, 0), (6, 6)], [(3, 3), (1, 5)], energies=(18, 20, 20))
    result = act(environment, LOAD, NONE, NONE)
    np.testing.assert_array_equal(environment.get_state()["energies"], [[20, 19, 19]])
    np.testing.assert_allclose(result.rewards[0, 0], 7 / 100, rtol=1e-6)


def test_a_meal_at_the_last_step_saves_and_shares_that_round_do_not() -> None:
    environment = small(nutrition=5)
    place(environment, [(3, 2), (3, 4), (2, 3)], [(5, 5), (3, 3)], energies=(1, 1, 1))
    act(environment, LOAD, LOAD, LOAD)
    np.testing.assert_allclose(environment.get_state()["energies"], [[10 / 3] * 3])
    # What is left of 1/3 + 1/3 + 1/3 - 1 is nothing, whatever the rounding.
    place(environment, [(3, 2), (0, 0), (6, 6)], [(5, 5), (3, 3)], energies=(1.0000000001, 9, 9))
    assert not act(environment, NONE, NONE, NONE).observation.active[0, 0]


def test_food_is_back_after_its_time_on_an_inner_cell_away_from_other_food() -> None:
    environment = small(64)
    place(environment, [(3, 2), (0, 0), (6, 6)], [(3, 3), (5, 5)])
    act(environment, LOAD, NONE, NONE)
    for wait in (3, 2, 1):
        act(environment, NONE, NONE, NONE)
        assert (environment.get_state()["waits"][:, 0] == wait).all()
        assert (environment.get_state()["food"][:, 0] == -1).all()
    act(environment, NONE, NONE, NONE)
    state = environment.get_state()
    food = state["food"][:, 0]
    assert (state["waits"] == 0).all()
    assert food.min() == 1
    assert food.max() == 5
    assert np.abs(food - [5, 5]).sum(axis=1).min() >= 3
    assert not (food == [3, 2]).all(axis=1).any()
    assert len(np.unique(food, axis=0)) > 10


def test_without_delay_food_is_back_at_once() -> None:
    environment = small(regrowth=0)
    place(environment, [(3, 2), (0, 0), (6, 6)], [(3, 3), (1, 5)])
    result = act(environment, LOAD, NONE, NONE)
    assert environment.get_state()["food"].min() > 0
    assert np.isfinite(result.observation.state).all()


def test_food_without_room_waits_for_it() -> None:
    environment = small(agents=1, size=5, food=[1, 1], regrowth=0)
    # From the middle one item keeps all the nine inner cells.
    state = environment.get_state()
    state["agents"][:], state["food"][:], state["energies"][:] = (2, 1), [(2, 2), AWAY], 10
    environment.set_state(state)
    act(environment, NONE)
    np.testing.assert_array_equal(environment.get_state()["food"][0, 1], AWAY)
    np.testing.assert_array_equal(environment.get_state()["waits"], [[0, 0]])


# --- leaving and ends ------------------------------------------------------------------------------------------------


def test_an_agent_without_energy_leaves() -> None:
    environment = small()
    place(environment, [(3, 3), (3, 4), (6, 6)], [(5, 1), (1, 5)], energies=(1, 9, 9))
    result = act(environment, NONE, NONE, NONE)
    seen = result.observation
    np.testing.assert_array_equal(seen.active, [[False, True, True]])
    assert not seen.observations[0][0, 0].any()
    assert seen.action_masks[0][0, 0].all()
    np.testing.assert_allclose(result.rewards, [[0, 0.01, 0.01]], rtol=1e-6)
    assert places(environment) == [AWAY, (3, 4), (6, 6)]
    assert not result.terminated.any()
    # Its cell is free, and what it does no longer matters.
    assert WEST in legal(seen, 1)
    result = act(environment, LOAD, WEST, NONE)
    assert places(environment) == [AWAY, (3, 3), (6, 6)]
    np.testing.assert_array_equal(result.rewards[0, 0], 0)


def test_the_episode_is_terminated_when_all_are_out() -> None:
    environment = small()
    place(environment, [(3, 3), (3, 4), AWAY], [(5, 1), (1, 5)], energies=(1, 1, 0))
    result = act(environment, NONE, NONE, NONE)
    assert result.terminated.all()
    assert not (result.truncated | result.success).any()
    assert result.final is not None
    assert not result.final.active.any()
    assert result.observation.active.all()
    np.testing.assert_array_equal(environment.get_state()["energies"], [[20, 20, 20]])
    np.testing.assert_array_equal(environment.get_state()["steps"], [0])


@pytest.mark.parametrize(
    ("energies", "truncated", "success"),
    [((2, 2, 2), True, True), ((2, 1, 2), True, False), ((1, 1, 1), False, False)],
)
def test_it_is_truncated_at_the_horizon_a_success_if_none_is_out(
    energies: Sequence[float], truncated: bool, success: bool
) -> None:
    environment = small()
    place(environment, [(3, 3), (3, 4), (6, 6)], [(5, 1), (1, 5)], energies=energies, steps=49)
    result = act(environment, NONE, NONE, NONE)
    assert (result.truncated[0], result.terminated[0], result.success[0]) == (truncated, not truncated, success)
    assert result.final is not None
    assert result.final.state[0, -1] == 1.0
    assert result.observation.state[0, -1] == 0.0


def test_only_the_environments_whose_episode_ended_start_anew() -> None:
    environment = small(2)
    place(environment, [(3, 3), (3, 4), (6, 6)], [(5, 1), (1, 5)], energies=(9, 9, 9), steps=20)
    state = environment.get_state()
    state["steps"][1] = 49
    environment.set_state(state)
    result = act(environment, NONE, NONE, NONE)
    np.testing.assert_array_equal(result.truncated, [False, True])
    assert result.final is not None
    for now, final in [(result.observation.state, result.final.state)]:
        np.testing.assert_array_equal(now[0], final[0])
        np.testing.assert_allclose(final[1, :3], [3 / 6, 3 / 6, 8 / 20])
        assert (now[1, [2, 5, 8]] == 1).all()
    # The masks that the next step goes by are those of the new episode.
    assert environment.set_state(environment.get_state()).action_masks[0].tolist() == (
        result.observation.action_masks[0].tolist()
    )


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_an_agent_sees_its_surroundings_and_no_farther() -> None:
    environment = small()
    seen = place(environment, [(1, 2), (2, 4), (5, 5)], [(3, 3), (1, 5)], energies=(5, 10, 20))
    layout = environment.spec.agents[0].observation_layout
    parts = {"position": 2, "energy": 1, "food in sight": 25, "other agents in sight": 25, "outside the field": 25}
    assert dict(layout) == parts
    assert list(dict(layout)) == list(parts)
    position, energy, food, others, outside = np.split(seen.observations[0][0, 0], np.cumsum(list(parts.values()))[:-1])
    np.testing.assert_allclose(position, [1 / 6, 2 / 6])
    np.testing.assert_allclose(energy, [0.25])
    expected: dict[Place, float] = {(4, 3): 0.5}  # level 1 of 2; the food three columns away is out of sight
    np.testing.assert_array_equal(food.reshape(5, 5), picture(expected))
    np.testing.assert_array_equal(others.reshape(5, 5), picture({(3, 4): 1.0}))
    np.testing.assert_array_equal(outside.reshape(5, 5), picture({(0, column): 1.0 for column in range(5)}))


def picture(filled: dict[Place, float]) -> npt.NDArray[np.float64]:
    cells = np.zeros((5, 5))
    for where, value in filled.items():
        cells[where] = value
    return cells


def test_what_is_out_of_sight_makes_no_difference() -> None:
    environment = small()
    near = place(environment, [(1, 1), (6, 6), (6, 0)], [(2, 2), (5, 5)]).observations[0][0, 0]
    far = place(environment, [(1, 1), (4, 4), (5, 2)], [(2, 2), AWAY], waits=(0, 3), steps=30).observations[0][0, 0]
    np.testing.assert_array_equal(near, far)


def test_the_state_holds_everything() -> None:
    environment = small()
    state = place(
        environment, [(1, 2), (2, 4), AWAY], [(3, 3), AWAY], energies=(5, 10, 0), waits=(0, 3), steps=30
    ).state[0]
    food = np.zeros((7, 7))
    food[3, 3] = 0.5
    np.testing.assert_allclose(state[:9], [1 / 6, 2 / 6, 5 / 20, 2 / 6, 4 / 6, 10 / 20, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(state[9:58], food.ravel())
    np.testing.assert_allclose(state[58:], [0, 3 / 4, 30 / 50])


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agent": 3}, "unknown argument of lbfws/hard 'agent'; did you mean 'agents'"),
        ({"agents": 0}, "agents: got 0, expected an integer of at least 1"),
        ({"agents": True}, "agents: got True, expected an integer of at least 1"),
        ({"size": 4}, "size: got 4, expected an integer from 5 to 50"),
        ({"food": []}, "food: got [], expected a list of levels from 1 to 4"),
        ({"food": [1, 5]}, "food: got [1, 5], expected a list of levels from 1 to 4"),
        ({"food": 3}, "food: got 3, expected a list of levels from 1 to 4"),
        ({"food": [1, 3], "agents": 2}, "food: got level 3, expected at most 2, the number of agents"),
        ({"agents": 24, "size": 5, "food": [1, 1]}, "agents: got 24, expected at most 23 beside 2 items of food"),
        ({"agents": 3000}, "agents: got 3000, expected at most"),
        ({"horizon": 1.5}, "horizon: got 1.5, expected an integer of at least 1"),
        ({"sight": 0}, "sight: got 0, expected an integer of at least 1"),
        ({"sight": 10}, "sight: got 10, expected less than the field's size 10"),
        ({"endurance": 0}, "endurance: got 0, expected an integer of at least 1"),
        ({"nutrition": -1}, "nutrition: got -1, expected an integer of at least 1"),
        ({"regrowth": -1}, "regrowth: got -1, expected an integer of at least 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make("lbfws/hard", 1, **arguments)
    assert message in str(caught.value)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UsageError, match="unknown lbfws task 'hart'; did you mean 'hard'"):
        make("lbfws/hart")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("agents", lambda agents: agents + 7, "'agents': got what cannot be in environment 0, expected cells"),
        ("agents", lambda agents: agents[:, [0, 0, 2]], "one agent or item of food a cell"),
        ("agents", lambda agents: np.full_like(agents, -1), "an agent on the field in every environment"),
        ("food", lambda food: food * [1, 0], "'food': got what cannot be in environment 0, expected cells"),
        ("food", lambda food: food[:, [0, 0]] - [(0, 0), (1, 1)], "items at least 3 steps apart"),
        ("energies", lambda energies: energies * np.nan, r"numbers in \[0, 20\]"),
        ("energies", lambda energies: energies * 3, r"numbers in \[0, 20\]"),
        ("energies", lambda energies: energies * [1, 0, 1], "energy where the agent is on the field"),
        ("waits", lambda waits: waits + 5, r"numbers in \[0, 4\]"),
        ("waits", lambda waits: waits + 1, "0 where the food is on the field"),
        ("steps", lambda steps: steps + 50, r"numbers in \[0, 50\)"),
        ("steps", lambda steps: steps[:1], r"'steps': got int64 \[1\], expected int64 \[2\]"),
    ],
)
def test_wrong_states_are_named_and_change_nothing(name: str, change: Any, message: str) -> None:
    environment = small(2)
    place(environment, [(3, 3), (3, 4), (6, 6)], [(5, 2), (1, 5)])
    before = environment.get_state()
    with pytest.raises(UsageError, match=message):
        environment.set_state({**before, name: change(before[name])})
    for key, array in environment.get_state().items():
        np.testing.assert_array_equal(array, before[key])


def test_wrong_actions_change_nothing() -> None:
    environment = make("lbfws/easy", 2)
    actions = np.zeros((2, 5), dtype=np.int64)
    for call in (lambda: environment.step((actions,)), environment.get_state, environment.render):
        with pytest.raises(UsageError, match="call reset"):
            call()
    environment.reset(np.array([1, 2]))
    before = dict(environment.get_state() or {})
    for wrong in (actions + 6, actions[:1], actions.astype(float)):
        with pytest.raises(UsageError, match="actions of 'agent_0'"):
            environment.step((wrong,))
    for name, array in dict(environment.get_state() or {}).items():
        np.testing.assert_array_equal(array, before[name])


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_show_food_agents_and_who_is_out() -> None:
    environment = small(2)
    place(environment, [(3, 3), (0, 0), (6, 6)], [(5, 2), (1, 5)])
    before = environment.render(1)
    assert before.shape == (400, 400, 3)
    assert before.dtype == np.uint8
    np.testing.assert_array_equal(before, environment.render(0))
    act(environment, EAST, NONE, NONE)
    changed = (environment.render(1) != before).any(axis=2)
    assert changed[:, 160:200].any()
    assert not changed[100:300, :100].any()
    place(environment, [AWAY, (0, 0), (6, 6)], [(5, 2), AWAY], energies=(0, 10, 10), waits=(0, 3))
    after = environment.render(1)
    for colour, left in ((agent_colour(0) * 255, 0.5), ((0.78 * 255, 0.12 * 255, 0.22 * 255), 0.4)):
        shown, still_shown = ((abs(picture - colour) < 1.5).all(axis=2).sum() for picture in (before, after))
        assert 0 < still_shown < left * shown


# --- what the tasks ask ----------------------------------------------------------------------------------------------

EPISODES = 32


def outcome(task: str, team: type[RandomTeam | ForagingTeam], *arguments: int, agents: int = 5) -> Outcome:
    environment = make(f"lbfws/{task}", EPISODES, agents=agents)
    return play(environment, team(environment.spec, *arguments))


@pytest.mark.parametrize("task", ["easy", "hard"])
def test_chance_is_not_enough(task: str) -> None:
    played = outcome(task, RandomTeam)
    assert played.success_rate == 0
    assert played.survivors < 0.2


def test_easy_can_be_lived_on_alone_also_with_own_eyes() -> None:
    for sight in ((), (3,)):
        played = outcome("easy", SoloTeam, *sight)
        assert played.success_rate > 0.65
        assert played.survivors > 4.5
        assert 5 < played.episode_return < 8


def test_hard_starves_those_who_forage_alone() -> None:
    alone, unarranged = (outcome("hard", team) for team in (SoloTeam, UnarrangedTeam))
    assert alone.success_rate == 0
    assert unarranged.success_rate < 0.25
    for played in (alone, unarranged):
        assert played.survivors < 1.5
        assert played.episode_return < 3.5


def test_hard_feeds_those_who_forage_together() -> None:
    played = outcome("hard", JointTeam)
    assert played.success_rate > 0.9
    assert played.survivors > 4.8
    assert 5.5 < played.episode_return < 8
    assert outcome("hard", JointTeam, 3).success_rate > 0.6


@pytest.mark.parametrize("agents", [3, 6])
def test_so_it_is_in_teams_of_other_sizes(agents: int) -> None:
    alone, together = (outcome("hard", team, agents=agents) for team in (SoloTeam, JointTeam))
    assert alone.success_rate == 0
    assert alone.survivors < agents / 2
    assert together.success_rate > 0.9
