"""What users' environments hand out: taken where it is clear what is meant, else named with agent and field."""

import numpy as np
import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.errors import EnvironmentFault, UsageError

TOYS = "pettingzoo/odd_toys"


def play(toy, steps=4, actions=None, workers=0, **arguments):
    environment = make(f"{TOYS}:{toy}", 1, workers=workers, **arguments)
    try:
        observations = [environment.reset(np.array([3]))]
        results = []
        for _ in range(steps):
            chosen = [np.zeros((1, len(g.agents), *g.example.action_shape), np.int64) for g in environment.spec.groups]
            for block, mask in zip(chosen, observations[-1].action_masks, strict=True):
                if mask is not None and block.ndim == 2:
                    block[...] = mask.argmax(-1)
            results.append(environment.step(tuple(chosen)))
            observations.append(results[-1].observation)
        return environment.spec, observations, results
    finally:
        environment.close()


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_that_begin_after_the_reset_are_an_error_that_says_what_to_do():
    message = r"environment 0: agent 'a': got an action mask at step 1, but none in its .*--set env.action_masks=true"
    with pytest.raises(EnvironmentFault, match=message):
        play("Masked", when="step")


def test_so_are_masks_in_observations_whose_space_has_none_until_they_are_declared():
    with pytest.raises(EnvironmentFault, match=r"environment 0: agent 'a': got an action mask at step 0"):
        play("MaskedUndeclared")
    _, observations, _ = play("MaskedUndeclared", action_masks=True)
    assert observations[1].action_masks[0][0].tolist() == [[False, True, True]] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_declared_masks_are_obeyed_from_the_step_that_they_appear_at(workers):
    spec, observations, _ = play("Masked", when="step", action_masks=True, workers=workers)
    assert [agent.has_action_mask for agent in spec.agents] == [True, True]
    assert spec.arguments["action_masks"] is True
    masks = [seen.action_masks[0][0].tolist() for seen in observations]
    assert masks == [[[True] * 3] * 2] + [[[False, True, True]] * 2] * 4


def test_masks_of_some_agents_are_theirs_alone_and_all_can_be_passed_over():
    spec, observations, _ = play("Masked", when="one")
    assert [agent.has_action_mask for agent in spec.agents] == [True, False]
    assert observations[2].action_masks[0][0].tolist() == [[False, True, True]]
    environment = make(f"{TOYS}:Masked", 1, action_masks=False)
    assert not any(agent.has_action_mask for agent in environment.spec.agents)
    environment.close()


@pytest.mark.parametrize(("legal", "multi"), [((0, 0, 0), False), ((1, 0, 0, 0), True)])
def test_a_mask_without_a_legal_action_names_environment_agent_and_what_to_do(legal, multi):
    with pytest.raises(
        EnvironmentFault, match=r"environment 0: agent 'a': its action mask allows no action.*allow one"
    ):
        play("Masked", legal=legal, multi=multi)


def test_whether_there_are_masks_is_true_or_false():
    with pytest.raises(UsageError, match="action_masks: got 'yes', expected true or false"):
        make(f"{TOYS}:Masked", 1, action_masks="yes")


# --- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "matrix", "integer", "boolean", "float32", "zero_d"])
@pytest.mark.filterwarnings("error")
def test_a_reward_is_any_one_number(kind):
    _, _, results = play("Paid", kind=kind)
    assert [result.rewards[0].tolist() for result in results] == [[1.0, 1.0]] * 4


@pytest.mark.parametrize(
    ("kind", "got"),
    [
        ("vector", r"an array of shape \(2,\) and dtype float64, expected one number; of several objectives"),
        ("none", "None"),
        ("text", "'1.0'"),
        ("complex", r"\(1\+2j\)"),
        ("empty", r"array\(\[\]"),
    ],
)
def test_what_is_no_reward_is_named_with_its_agent(kind, got):
    with pytest.raises(EnvironmentFault, match=rf"environment 0: agent 'b': got the reward {got}"):
        play("Paid", kind=kind)


# --- observations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("none", "observation is missing: got None"),
        ("holds_none", r"observation is no array of numbers: got \[1.0, None\]"),
        ("none_inside", "observation.place is missing: got None"),
        ("missing_part", "observation has no 'place': got only kind"),
        ("part_outside", "observation.kind is outside its space's bounds: got 0, expected 1 to 3"),
        ("negative", "observation is outside its space's bounds: got -1, expected 0 to 2"),
        ("too_many", "observation is outside its space's bounds: got 3, expected 0 to 2"),
        ("neighbour", "observation is outside its space's bounds: got 2, expected 0 to 1"),
        ("longer", "got an observation of 3 numbers, expected 2"),
        ("complex", "observation is no array of numbers"),
    ],
)
def test_what_is_no_observation_is_named_with_agent_field_and_step(case, message):
    with pytest.raises(EnvironmentFault, match=rf"environment 0: agent 'b': {message}.*\(step 2 of the episode\)"):
        play("Viewed", case=case)


def shapes_check(case, workers):
    results = check_environment(
        lambda batch: make(f"{TOYS}:Viewed", batch, workers=workers, case=case), batch_size=2, steps=10
    )
    return next(result for result in results if result.name == "shapes and dtypes")


OUTSIDE = "observation is outside its space's bounds (4 times, first got 500, expected -1 to 9 at step 2"
TRANSPOSED = "observation does not have its space's shape (3, 2) (4 times, first got shape (2, 3) at step 2"


@pytest.mark.parametrize(
    ("case", "message", "workers"),
    [
        ("outside", OUTSIDE, 0),
        ("outside", OUTSIDE, 2),
        ("transposed", TRANSPOSED, 0),
        pytest.param("transposed", TRANSPOSED, 2, marks=pytest.mark.slow),
    ],
)
def test_observations_outside_their_space_are_played_but_counted_by_the_checks(case, message, workers):
    play("Viewed", case=case)
    found = shapes_check(case, workers)
    assert not found.passed
    assert f"agent 'b': {message}" in found.detail


@pytest.mark.parametrize("case", ["list", "rounded"])
def test_lists_and_rounded_numbers_are_in_their_space(case):
    assert shapes_check(case, workers=0).passed


def test_an_observation_without_numbers_is_refused_by_name():
    with pytest.raises(UsageError, match=r"agent 'a': observation space Box.*holds no numbers, expected at least one"):
        make(f"{TOYS}:Viewed", 1, case="nothing")


def test_so_it_is_in_an_environment_of_ones_own():
    with pytest.raises(
        UsageError, match="environment 'own_vectors:narrow': agent 'a': observation_size: got 0, expected"
    ):
        make("own_vectors:narrow", 2)


# --- reset, step and the agents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("no_agents", UsageError, "odd_toys:Contrary: env.possible_agents is empty"),
        ("same_names", UsageError, "env.possible_agents has two agents called '1'"),
        ("no_seed", UsageError, r"reset\(\) takes no seed, expected reset\(seed=None, options=None\)"),
        ("one_value", EnvironmentFault, r"reset: got a dict, expected \(observations, infos\)"),
        ("list_of_infos", EnvironmentFault, r"reset: got \[1, 2\] as infos, expected a dictionary by agent"),
        ("no agents", EnvironmentFault, "environment 0: reset: env.agents is empty"),
        (
            "stranger",
            EnvironmentFault,
            "environment 0: agent 'newcomer' is in env.agents, but not in env.possible_agents",
        ),
        (
            "four",
            EnvironmentFault,
            r"environment 0: step: got 4 values, expected \(observations, rewards, terminations,",
        ),
        ("list", EnvironmentFault, r"environment 0: step: got \[1.0, 1.0\] as rewards, expected a dictionary by agent"),
    ],
)
def test_what_breaks_the_interface_is_named(how, kind, message):
    with pytest.raises(kind, match=message):
        play("Contrary", how=how)


def test_an_agent_without_an_observation_is_found_by_the_checks():
    results = check_environment(
        lambda batch: make(f"{TOYS}:Contrary", batch, workers=0, how="blind"), batch_size=2, steps=10
    )
    (failed,) = [result for result in results if not result.passed]
    told = "agent 'b' is in env.agents, but has no observation (4 times, first at step 3 of an episode)"
    assert (failed.name, failed.detail) == ("active agents", told)


def test_infos_that_are_none_and_spaces_in_dictionaries_are_taken():
    _, _, results = play("Contrary", how="no_infos")
    assert results[-1].rewards.tolist() == [[1.0, 1.0]]
    spec, _, _ = play("OldSpaces")
    assert [int(agent.action_space.n) for agent in spec.agents] == [3, 3]


# --- arguments -------------------------------------------------------------------------------------------------------


def test_a_function_that_takes_any_argument_gets_them_and_others_refuse_with_a_guess():
    make(f"{TOYS}:any_number", 1).close()
    with pytest.raises(
        UsageError, match=r"any_number with lenght=3: AssertionError: .*it takes: any other \(\*\*others\)"
    ):
        make(f"{TOYS}:any_number", 1, lenght=3)
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'lenght'; it takes: length=5.*mean 'length'\?"):
        make(f"{TOYS}:Pair", 1, lenght=3)
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'horizn'.*did you mean 'horizon'\?"):
        make(f"{TOYS}:Pair", 1, horizn=3)


def test_functions_of_ones_own_refuse_other_arguments_too():
    message = (
        r"environment 'own_vectors:narrow': got an unexpected keyword argument 'widht'; it takes: width=0; did you"
    )
    with pytest.raises(UsageError, match=message):
        make("own_vectors:narrow", 2, widht=3)
    with pytest.raises(
        UsageError, match="got one of PettingZoo's API, which is called pettingzoo/own_vectors:parallel"
    ):
        make("own_vectors:parallel", 2)
