"""Foraging and warehouses, against the real packages."""

import re

import gymnasium
import numpy as np
import pytest
import rware
from lbforaging.foraging import ForagingEnv
from rware.warehouse import RewardType, Warehouse

from hmarl.sdk.environments import lbf, make, tasks
from hmarl.sdk.environments import rware as warehouses
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.environments.workers.process import episode_seed
from hmarl.sdk.errors import UsageError

FORAGING, WAREHOUSE = "lbf/8x8-2p-2f-coop", "rware/tiny-2ag"


def original(name):
    """The package's own environment, without Gymnasium's wrappers, which refuse lists of rewards."""
    family, _, task = name.partition("/")
    identifier = f"Foraging-{task}-v3" if family == "lbf" else f"rware-{task}-v2"
    return gymnasium.make(identifier, disable_env_checker=True).unwrapped


@pytest.mark.parametrize("name", [FORAGING, "lbf/2s-9x9-3p-2f", WAREHOUSE, "rware/small-4ag-hard"])
@pytest.mark.parametrize("workers", [0, 2])
def test_episodes_equal_the_packages_own(name, workers):
    environment, bare = make(name, 2, workers=workers), original(name)
    seen, (expected, _) = environment.reset(np.array([5, 6])), bare.reset(seed=6)
    generator, episode = np.random.default_rng(0), 0
    choices = int(environment.spec.agents[0].action_space.n)
    for _ in range(environment.spec.horizon + 40):
        np.testing.assert_array_equal(seen.observations[0][1], np.stack(expected))
        np.testing.assert_array_equal(seen.state[1], np.concatenate(expected))
        actions = generator.integers(choices, size=(2, len(environment.spec.agents)))
        result = environment.step((actions,))
        expected, rewards, done, _, _ = bare.step(actions[1].tolist())
        np.testing.assert_array_equal(result.rewards[1], np.float32(rewards))
        assert (result.terminated | result.truncated)[1] == done
        if done:
            np.testing.assert_array_equal(result.final.observations[0][1], np.stack(expected))
            episode += 1
            # A new one: foraging's own reset depends on where the last episode has ended.
            bare = original(name)
            expected, _ = bare.reset(seed=episode_seed(6, episode))
        seen = result.observation
    assert episode == 1
    environment.close()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (FORAGING, {"max_episode_steps": 9, "workers": 1}),
        ("lbf/2s-15x15-3p-5f", {"workers": 0}),
        ("lbf/5x5-1p-1f-ind-pen", {"workers": 0}),
        (WAREHOUSE, {"max_steps": 9, "workers": 0}),
        ("rware/imgdict-Nd-3s-tiny-5h-3ag-easy", {"max_inactivity_steps": 7, "workers": 0}),
        (WAREHOUSE, {"max_steps": 9, "msg_bits": 2, "reward_type": "global", "workers": 0}),
    ],
)
def test_every_conformance_check_passes(name, arguments):
    results = check_environment(lambda batch: make(name, batch, **arguments), steps=30)
    assert [result for result in results if not result.passed] == []


def test_an_episode_of_foraging_succeeds_and_terminates_when_no_food_is_left():
    environment = make("lbf/5x5-2p-2f-ind", 8, workers=0, max_episode_steps=40)
    assert environment.spec.has_success
    assert (environment.spec.team_reward, environment.spec.horizon) == ("sum", 40)
    environment.reset(np.arange(8))
    generator, returns, outcomes = np.random.default_rng(0), np.zeros(8), []
    for _ in range(200):
        result = environment.step((generator.integers(6, size=(8, 2)),))
        returns += environment.spec.team_rewards(result.rewards)
        ended = result.terminated | result.truncated
        np.testing.assert_array_equal(result.success[ended], result.terminated[ended])
        outcomes += [(bool(result.success[row]), round(float(returns[row]), 5)) for row in np.flatnonzero(ended)]
        returns[ended] = 0.0
    # All the food of an episode makes 1, whoever gets it.
    assert {share == 1.0 for won, share in outcomes if won} == {True}
    assert {share < 1.0 for won, share in outcomes if not won} == {True}
    environment.close()


def test_a_warehouse_is_truncated_at_its_limit_and_terminated_by_inactivity():
    environment = make(WAREHOUSE, 1, max_steps=6)
    environment.reset(np.array([0]))
    results = [environment.step((np.zeros((1, 2), np.int64),)) for _ in range(6)]
    assert [bool(result.truncated[0]) for result in results] == [False] * 5 + [True]
    idle = make(WAREHOUSE, 1, max_inactivity_steps=4)
    idle.reset(np.array([0]))
    results = [idle.step((np.zeros((1, 2), np.int64),)) for _ in range(4)]
    assert [bool(result.terminated[0]) for result in results] == [False] * 3 + [True]
    assert not environment.spec.has_success
    environment.close()
    idle.close()


@pytest.mark.parametrize(
    ("reward_type", "team_reward"), [("INDIVIDUAL", "sum"), ("two_stage", "sum"), ("global", "shared")]
)
def test_the_team_reward_of_a_warehouse_follows_from_its_rewards(reward_type, team_reward):
    environment = make(WAREHOUSE, 1, reward_type=reward_type)
    assert environment.spec.team_reward == team_reward
    assert environment._copies[0].environment.environment.reward_type is RewardType[reward_type.upper()]
    environment.close()


@pytest.mark.parametrize("task", ["8x8-2p-2f-coop", "2s-10x10-3p-3f", "2s-8x8-2p-2f-coop", "15x15-3p-4f"])
def test_names_of_foraging_mean_what_the_package_registers(task):
    registered = gymnasium.spec(f"Foraging-{task}-v3")
    assert registered.entry_point == "lbforaging.foraging:ForagingEnv"
    assert lbf._parsed(task) == registered.kwargs


@pytest.mark.parametrize(
    "task", ["tiny-2ag", "small-4ag-easy", "medium-6ag-hard", "large-19ag", "img-tiny-2ag", "imgdict-Nd-large-3ag-hard"]
)
def test_names_of_warehouses_mean_what_the_package_registers(task):
    if f"rware-{task}-v2" not in gymnasium.registry:
        rware.image_registration()
    registered = gymnasium.spec(f"rware-{task}-v2").kwargs
    parsed = warehouses._parsed(task)
    assert {name: parsed[name] for name in registered} == registered


@pytest.mark.parametrize(
    ("own", "short"),
    [
        ("lbf/Foraging-2s-8x8-2p-2f-coop-v3", "lbf/2s-8x8-2p-2f-coop"),
        ("lbf/Foraging-8x8-2p-2f", "lbf/8x8-2p-2f"),
        ("lbf/5x5-1p-1f-pen-v3", "lbf/5x5-1p-1f-pen"),
        ("rware/rware-tiny-2ag-v2", "rware/tiny-2ag"),
        ("rware/rware-img-small-4ag-hard-v2", "rware/img-small-4ag-hard"),
    ],
)
def test_the_packages_own_ids_mean_the_same(own, short):
    module = lbf if own.startswith("lbf/") else warehouses
    assert module._parsed(own.partition("/")[2]) == module._parsed(short.partition("/")[2])
    environment = make(own, 1)
    assert environment.spec.name == own
    environment.close()


def test_every_id_that_the_packages_register_is_taken():
    if "rware-img-tiny-2ag-v2" not in gymnasium.registry:
        rware.image_registration()
    taken = {"Foraging": lbf, "rware": warehouses}
    ids = [id_ for id_ in gymnasium.registry if id_.split("-")[0] in taken and not re.search("grid|-1ag-hard", id_)]
    assert len(ids) > 1000
    for id_ in ids:
        taken[id_.split("-")[0]]._parsed(id_)


def test_combinations_that_no_one_registered_work_too():
    environment = make("lbf/3s-21x21-11p-6f-coop-ind-pen", 1)
    foraging = environment._copies[0].environment.environment
    assert isinstance(foraging, ForagingEnv)
    assert (foraging.sight, foraging.field_size, foraging.n_agents, foraging.penalty) == (3, (21, 21), 11, 0.1)
    assert foraging.max_food_level.tolist() == [1] * 6
    warehouse = make("rware/2s-medium-10h-20ag", 1)._copies[0].environment.environment
    assert isinstance(warehouse, Warehouse)
    assert (warehouse.sensor_range, warehouse.column_height, warehouse.n_agents) == (2, 10, 20)


def test_the_families_list_their_patterns():
    assert "8x8-2p-2f-coop" in tasks("lbf")[0]
    assert "tiny-2ag" in tasks("rware")[0]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("lbf/8x8-2p", {}, "lbf/8x8-2p: expected a name like 8x8-2p-2f-coop"),
        ("lbf/Foraging-8x8-2p-2f-v2", {}, "expected a name like 8x8-2p-2f-coop"),
        ("rware/rware-tiny-2ag-v1", {}, "expected a name like tiny-2ag"),
        ("lbf/8x9-2p-2f", {}, "expected a square field"),
        ("lbf/4x4-2p-2f", {}, "at least 5x5"),
        (FORAGING, {"penality": 1.0}, "unknown argument of lbf/8x8-2p-2f-coop 'penality'; did you mean 'penalty'"),
        (FORAGING, {"min_player_level": 3}, "lbf/8x8-2p-2f-coop with players=2.*AssertionError"),
        (FORAGING, {"workers": -1}, "workers: got -1"),
        (FORAGING, {"timeout_s": 0}, "timeout_s: got 0, expected a positive number of seconds"),
        ("rware/huge-2ag", {}, "rware/huge-2ag: expected a name like tiny-2ag"),
        ("rware/tiny-1ag-hard", {}, "1 agents make 0 requested shelves"),
        (WAREHOUSE, {"max_step": 9}, "unknown argument of rware/tiny-2ag 'max_step'; did you mean 'max_steps'"),
        (WAREHOUSE, {"reward_type": "globl"}, "unknown value of reward_type 'globl'; did you mean 'global'"),
    ],
)
def test_wrong_use_is_explained(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        make(name, 1, **arguments)
