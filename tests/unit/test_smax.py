import logging
import subprocess
import sys
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

from hmarl.sdk.environments import make, tasks
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.errors import UsageError
from hmarl.sdk.team import RandomTeam

pytestmark = pytest.mark.skipif(find_spec("jaxmarl") is None, reason="jaxmarl is not installed")

# Compiling takes seconds for each map, set of arguments and batch size: the tests keep to one.
BATCH = 2
SHORT = {"max_steps": 30}
SEEDS = np.array([5, 11])
STOP, FIRST_ATTACK = 4, 5


def make_small(task="3m", batch=BATCH):
    return make(f"smax/{task}", batch, **SHORT)


@cache
def jaxmarl_battle():
    """JAX's random numbers, JaxMARL's own environment, its auto-resetting step compiled, quickly rather than well."""
    # In here, as JAX takes a second to import, in every process that collects this file.
    import jax  # noqa: PLC0415

    from hmarl.sdk.environments.smax.package import SCENARIOS, HeuristicEnemySMAX  # noqa: PLC0415

    battle = HeuristicEnemySMAX(scenario=SCENARIOS["3m"], **SHORT)
    quick = {"xla_backend_optimization_level": 0}
    return jax.random, battle, jax.jit(battle.step, compiler_options=quick)


def attack_or_rush(masks):
    """The first attack that is legal, else to the right (move 1), else stop: allies that fight, and win at times."""
    attacks = masks[..., FIRST_ATTACK:]
    move = np.where(masks[..., 1], 1, STOP)
    return np.where(attacks.any(-1), FIRST_ATTACK + attacks.argmax(-1), move)


def test_battles_equal_jaxmarls_single_environment_over_whole_episodes():
    environment = make_small()
    seen = environment.reset(SEEDS)
    random, battle, step = jaxmarl_battle()
    streams, states = [], []
    for seed in SEEDS:
        stream, key = random.split(random.PRNGKey(seed))
        _, state = battle.reset(key)
        streams.append(stream)
        states.append(state)
    ends = 0
    for number in range(70):
        # Both kinds of end: a fight, then idle allies whom the enemy needs long to find.
        masks = seen.action_masks[0]
        chosen = attack_or_rush(masks) if number < 40 else np.full(masks.shape[:2], STOP)
        result = environment.step((chosen,))
        for row in range(BATCH):
            streams[row], key = random.split(streams[row])
            actions = {agent: chosen[row, index] for index, agent in enumerate(battle.agents)}
            theirs, states[row], rewards, done, _ = step(key, states[row], actions)
            ours = result.observation
            for index, agent in enumerate(battle.agents):
                np.testing.assert_allclose(ours.observations[0][row, index], theirs[agent], atol=1e-5)
            np.testing.assert_allclose(ours.state[row], theirs["world_state"], atol=1e-4)
            np.testing.assert_allclose(result.rewards[row].sum(), rewards["ally_0"], atol=1e-5)
            assert (result.terminated[row] or result.truncated[row]) == bool(done["__all__"])
            legal = battle.get_avail_actions(states[row])
            for index, agent in enumerate(battle.agents):
                if ours.active[row, index]:
                    np.testing.assert_array_equal(ours.action_masks[0][row, index], np.asarray(legal[agent], bool))
            ends += bool(done["__all__"])
        seen = result.observation
    assert ends >= 3


def place(environment, healths, positions=None, cooldowns=0.0):
    """Set the units' health, in both battles; 0 fells a unit."""
    state = environment.get_state()
    state["unit_health"][:] = healths
    state["unit_alive"][:] = np.asarray(healths) > 0
    state["unit_weapon_cooldowns"][:] = cooldowns
    if positions is not None:
        state["unit_positions"][:] = positions
    return environment.set_state(state)


# Three allies at the left, three enemies within range of the first; marines shoot 9 of 45, as far as 5.
APART = [[10, 16], [10, 4], [10, 28], [13, 16], [30, 4], [30, 28]]


@pytest.mark.parametrize(
    ("healths", "attack", "expected", "won"),
    [
        # The only enemy falls: 9/45 of one of three enemies, and the bonus.
        ([45, 45, 45, 9, 0, 0], True, 9 / 45 / 3 + 1, True),
        ([45, 0, 45, 9, 0, 0], True, 9 / 45 / 3 + 1, True),
        # The last ally falls, and the enemy does not.
        ([9, 0, 0, 45, 0, 0], False, 0.0, False),
        # Both at once: no bonus, no success.
        ([9, 0, 0, 9, 0, 0], True, 9 / 45 / 3, False),
    ],
)
def test_the_end_of_a_battle_worked_out_by_hand(healths, attack, expected, won):
    environment = make_small()
    environment.reset(SEEDS)
    place(environment, healths, APART)
    # The enemy acts on what it saw before: one step for it to see, in which it is not ready to shoot.
    result = environment.step((np.full((BATCH, 3), STOP),))
    assert not (result.terminated | result.truncated).any()
    before = place(environment, healths, APART)
    actions = np.full((BATCH, 3), STOP)
    actions[:, 0] = FIRST_ATTACK if attack else STOP
    result = environment.step((actions,))
    assert result.terminated.all()
    assert not result.truncated.any()
    np.testing.assert_array_equal(result.success, [won] * BATCH)
    np.testing.assert_allclose(environment.spec.team_rewards(result.rewards), expected, atol=1e-6)
    shares = np.where(before.active, expected / before.active.sum(1, keepdims=True), 0)
    np.testing.assert_allclose(result.rewards, shares, atol=1e-6)
    assert result.final.active.any(1).tolist() == [won] * BATCH
    assert result.observation.active.all()


def test_masks_allow_what_lies_within_range():
    environment = make_small()
    environment.reset(SEEDS)
    state = environment.get_state()
    state["unit_positions"][:] = APART
    environment.set_state(state)
    masks = environment.step((np.full((BATCH, 3), STOP),)).observation.action_masks[0]
    assert masks[:, :, :FIRST_ATTACK].all()
    np.testing.assert_array_equal(masks[:, :, FIRST_ATTACK:], [[[1, 0, 0], [0, 0, 0], [0, 0, 0]]] * BATCH)


def test_an_undecided_battle_is_truncated_after_one_step_more_than_max_steps():
    environment = make_small()
    environment.reset(SEEDS)
    place(environment, [45] * 6, [[2, 2], [2, 4], [2, 6], [30, 30], [30, 28], [30, 26]])
    state = environment.get_state()
    state["step"][:] = [SHORT["max_steps"] - 1, SHORT["max_steps"]]
    environment.set_state(state)
    idle = (np.full((BATCH, 3), STOP),)
    first, second = environment.step(idle), environment.step(idle)
    assert first.truncated.tolist() == [False, True]
    assert second.truncated.tolist() == [True, False]
    assert not (first.terminated | second.terminated | first.success).any()
    assert environment.spec.horizon == SHORT["max_steps"] + 1


def test_a_saved_state_continues_bit_for_bit_in_a_fresh_instance():
    environment, fresh = make_small(), make_small()
    play(environment, environment.reset(SEEDS), 10)
    saved = environment.get_state()
    assert all(array.shape[0] == BATCH and not array.dtype.hasobject for array in saved.values())
    assert {"stream", "unit_positions", "step", "enemy_memory_default_target", "sight_observations"} <= set(saved)
    copies = {name: array.copy() for name, array in saved.items()}
    expected = play(environment, environment.set_state(saved), 40)
    np.testing.assert_equal({name: array.copy() for name, array in saved.items()}, copies)
    np.testing.assert_equal(play(fresh, fresh.set_state(saved), 40), expected)


def play(environment, seen, steps):
    team, happened = RandomTeam(environment.spec), []
    team.reset(np.array([1]))
    for _ in range(steps):
        result = environment.step(team.act(seen, np.ones(BATCH, bool)))
        seen = result.observation
        happened += [seen.observations[0], seen.action_masks[0], seen.state, seen.active, result.rewards]
        happened += [result.terminated, result.truncated, result.success]
    return happened


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_state_that_does_not_fit_is_refused(change):
    environment = make_small()
    environment.reset(SEEDS)
    saved = environment.get_state()
    if change == "missing":
        del saved["stream"]
    else:
        saved["stream"] = saved["stream"][:1]
    with pytest.raises(UsageError, match="stream"):
        environment.set_state(saved)


def test_every_conformance_check_passes():
    results = check_environment(make_small_batch, batch_size=BATCH, steps=65)
    assert [result for result in results if not result.passed] == []


def make_small_batch(batch):
    return make_small(batch=batch)


def test_many_battles_that_start_at_once_are_those_of_their_seeds():
    many = make_small(batch=11)
    seen = many.reset(np.array([*range(100, 109), *SEEDS]))
    two = make_small()
    expected = two.reset(SEEDS)
    np.testing.assert_array_equal(seen.observations[0][-BATCH:], expected.observations[0])
    saved, wanted = many.get_state(), two.get_state()
    np.testing.assert_equal({name: array[-BATCH:] for name, array in saved.items()}, wanted)
    assert len(np.unique(saved["unit_positions"][:, 0], axis=0)) == 11


def test_the_spec_names_the_parts_of_an_observation():
    spec = make("smax/8m_vs_9m", 3).spec
    assert spec.agent_ids == tuple(f"ally_{index}" for index in range(8))
    assert len(spec.groups) == 1
    agent = spec.agents[0]
    assert agent.action_space.n == FIRST_ATTACK + 9
    assert sum(length for _, length in agent.observation_layout) == agent.observation_size == 7 * 13 + 9 * 13 + 10
    assert "unit_type_bit" in agent.observation_layout[-1][0]
    assert [part for part in agent.observation_layout if part[0] == "position"] == [("position", 2)]
    assert (spec.horizon, spec.team_reward, spec.control_period_s, spec.has_success) == (101, "sum", 0.5, True)
    assert spec.arguments["see_enemy_actions"] is True


def test_the_part_called_position_is_where_a_unit_stands():
    environment = make("smax/2s3z", 2)
    observation, agent = environment.reset(np.array([1, 2])), environment.spec.agents[0]
    names = [name for name, _ in agent.observation_layout]
    start = sum(length for _, length in agent.observation_layout[: names.index("position")])
    seen = observation.observations[0][..., start : start + 2]
    stands = environment.get_state()["unit_positions"][:, :5]
    # The map is 32 wide and high.
    np.testing.assert_allclose(seen, stands / 32.0, atol=1e-6)


def test_the_asked_for_maps_are_listed():
    wanted = "2s3z 3s5z 5m_vs_6m 8m_vs_9m 10m_vs_11m 27m_vs_30m 3s5z_vs_3s6z smacv2_5_units smacv2_10_units"
    assert set(wanted.split()) <= set(tasks("smax"))
    assert all(make(f"smax/{task}", 1).spec.name == f"smax/{task}" for task in tasks("smax"))


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("2s3y", {}, "unknown smax task '2s3y'; did you mean '2s3z'"),
        ("3m", {"wall_cause_death": True}, "unknown argument of smax/3m 'wall_cause_death'; did you mean 'walls_cause"),
        ("3m", {"max_steps": 0}, r"max_steps: got 0, expected an integer of at least 1 \(smax/3m takes walls"),
        ("3m", {"walls_cause_death": 1}, "walls_cause_death: got 1, expected true or false"),
        ("3m", {"attack_mode": "nearest"}, "attack_mode: got 'nearest', expected 'closest' or 'random'"),
        ("3m", {"time_per_step": 0.0}, "time_per_step: got 0.0, expected a number above 0"),
        ("3m", {"map_width": 8}, "map_width: got 8, expected an integer of at least 16"),
        ("3m", {"device": "abacus"}, "device: got 'abacus', expected 'cpu' or one that JAX knows"),
        ("3m", {"device": "cpu:99"}, "device: got 'cpu:99'"),
    ],
)
def test_wrong_use_is_explained(task, arguments, message):
    with pytest.raises(UsageError, match=message):
        make(f"smax/{task}", 2, **arguments)


def test_steps_before_the_first_reset_and_wrong_actions_and_seeds_are_refused():
    environment = make_small()
    with pytest.raises(UsageError, match="step: the environment has no episode yet"):
        environment.step((np.zeros((BATCH, 3), int),))
    with pytest.raises(UsageError, match="seeds: got -1"):
        environment.reset(np.array([1, -1]))
    environment.reset(SEEDS)
    with pytest.raises(UsageError, match="actions of 'ally_0': got 0 to 8, expected 0 to 7"):
        environment.step((np.array([[0, 0, 8]] * BATCH),))


def test_the_first_calls_are_timed_in_the_log(caplog):
    with caplog.at_level(logging.INFO, "hmarl.sdk.environments.smax"):
        make_small().reset(SEEDS)
    assert "smax/3m: the first 'start' took" in caplog.text


def test_render_shows_units_their_health_and_shots():
    environment = make_small()
    environment.reset(SEEDS)
    place(environment, [45] * 6, APART)
    whole = environment.render(1)
    assert (whole.shape, whole.dtype) == ((400, 400, 3), np.uint8)
    x, y = 10, 16
    row, column = round(200 - (y - 16) / 33 * 400), round(200 + (x - 16) / 33 * 400)
    blue = whole[row, column]
    assert blue[2] > blue[0]
    place(environment, [45, 45, 45, 45, 0, 45], APART)
    felled = environment.render()
    row, column = round(200 - (4 - 16) / 33 * 400), round(200 + (30 - 16) / 33 * 400)
    assert (whole[row, column] != felled[row, column]).any()
    before = environment.render()
    environment.step((np.array([[FIRST_ATTACK, STOP, STOP]] * BATCH),))
    place(environment, [45, 45, 45, 45, 0, 45], APART)
    assert (environment.render()[row - 150 : row - 140] != before[row - 150 : row - 140]).any()
    environment.close()
    environment.close()


def test_jaxmarls_other_environments_stay_unloaded_but_can_be_imported_later():
    program = (
        "import sys; from hmarl.sdk.environments import make, tasks; tasks('smax');"
        "assert not {'torch', 'matplotlib', 'gymnax', 'jaxmarl', 'jaxmarl.environments.mpe'} & set(sys.modules);"
        "print('quiet');"
        "import jaxmarl;"
        "from hmarl.sdk.environments.smax.package import HeuristicEnemySMAX;"
        "assert jaxmarl.make('HeuristicEnemySMAX').__class__ is HeuristicEnemySMAX"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("quiet")
