"""Environments with SMAC's interface, in this interpreter and in another one; StarCraft II itself is not needed."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmarl.sdk.environments import make, tasks
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.environments.workers import process as worker_process
from hmarl.sdk.errors import EnvironmentFault, UsageError
from skirmish import STRIKE, WAIT
from training_runs import tiny_config, train

TESTS = str(Path(__file__).parent.parent)
SKIRMISH = "skirmish:Skirmish"
HERE, THERE = {"workers": 0}, {"python": sys.executable}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Other interpreters find the battle as users' own would be found."""
    monkeypatch.setenv("PYTHONPATH", TESTS)


@pytest.fixture(scope="session")
def old_protobuf(tmp_path_factory):
    """The interpreter of a virtual environment with NumPy and a protobuf that hmarl cannot use."""
    folder = tmp_path_factory.mktemp("old") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "numpy", "protobuf<3.21"]
    subprocess.run(install, check=True)
    return str(folder / "bin" / "python")


def weapons(environment, observation):
    """The action that hits, of every agent of every copy."""
    return STRIKE + observation.observations[0][:, :, 1].astype(np.int64)


def strike_twice(environment):
    seen = environment.reset(np.arange(environment.batch_size))
    for _ in range(2):
        seen = environment.step((weapons(environment, seen),)).observation


# --- what the interface means ----------------------------------------------------------------------------------------


def test_the_spec_is_that_of_get_env_info():
    environment = make("smac/3m", 2, entry=SKIRMISH, n_agents=4, **HERE)
    spec = environment.spec
    assert spec.agent_ids == ("agent_0", "agent_1", "agent_2", "agent_3")
    assert (spec.agents[0].observation_size, spec.agents[0].mask_size, spec.agents[0].has_action_mask) == (3, 4, True)
    assert (spec.state_size, spec.horizon, spec.team_reward, spec.has_success) == (9, 6, "sum", True)
    assert dict(spec.arguments) == {"entry": SKIRMISH, "n_agents": 4}
    assert environment._copies[1].environment.map_name == "3m"
    environment.close()


@pytest.mark.parametrize("where", [HERE, THERE])
def test_the_dead_fall_silent_and_the_living_share_the_reward(where):
    environment = make("smac/3m", 1, entry=SKIRMISH, **where)
    seen = environment.reset(np.array([3]))
    assert seen.action_masks[0][0].tolist() == [[False, True, True, True]] * 3
    for _ in range(2):
        actions = weapons(environment, seen)
        actions[0, 0] = WAIT
        result = environment.step((actions,))
        seen = result.observation
        np.testing.assert_allclose(result.rewards[0], [1 / 3] * 3, rtol=1e-6)  # two hits of 1/2, among three
    assert seen.active.tolist() == [[False, True, True]]
    assert not seen.observations[0][0, 0].any()
    assert seen.action_masks[0][0, 0].all()
    # What a policy says for the dead is ignored: the battle accepts nothing but the no-op.
    actions = weapons(environment, seen)
    actions[0, 0] = STRIKE
    result = environment.step((actions,))
    assert (bool(result.terminated[0]), bool(result.truncated[0]), bool(result.success[0])) == (True, False, True)
    np.testing.assert_allclose(result.rewards[0], [0.0, 5.5, 5.5])
    np.testing.assert_allclose(environment.spec.team_rewards(result.rewards), [11.0])
    assert result.final.active.tolist() == [[False, True, True]]
    assert result.final.state[0, -1] == 0.0
    assert result.observation.active.all()
    environment.close()


def test_a_lost_battle_terminates_and_one_at_its_limit_is_truncated():
    environment = make("smac/3m", 1, entry=SKIRMISH, episode_limit=3, **HERE)
    environment.reset(np.array([3]))
    lost = [environment.step((np.full((1, 3), WAIT),)) for _ in range(2)][-1]
    assert (bool(lost.terminated[0]), bool(lost.truncated[0]), bool(lost.success[0])) == (True, False, False)
    assert not lost.final.active.any()
    miss = 2 * STRIKE + 1 - weapons(environment, lost.observation)
    drawn = [environment.step((miss,)) for _ in range(3)][-1]
    assert (bool(drawn.terminated[0]), bool(drawn.truncated[0]), bool(drawn.success[0])) == (False, True, False)
    assert drawn.final.active.all()
    environment.close()


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        *((entry, HERE) for entry in ("Skirmish", "SeededSkirmish", "OldSkirmish")),
        ("SeededSkirmish", THERE),
        # Half a minute each: every reset starts another interpreter's environment.
        *(pytest.param(entry, THERE, marks=pytest.mark.slow) for entry in ("Skirmish", "OldSkirmish")),
    ],
)
def test_every_conformance_check_passes_however_it_is_seeded(entry, where):
    results = check_environment(lambda batch: make("smac/3m", batch, entry=f"skirmish:{entry}", **where))
    assert [result for result in results if not result.passed] == []


def test_both_families_list_their_tasks():
    assert "3m" in tasks("smac")[0]
    assert "10gen_zerg" in tasks("smacv2")


# --- another interpreter ---------------------------------------------------------------------------------------------


def test_the_workers_file_needs_nothing_but_numpy_and_python_3_8():
    tree = ast.parse(Path(worker_process.__file__).read_text(), feature_version=(3, 8))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in imports for name in ([node.module] if isinstance(node, ast.ImportFrom) else _names(node))}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"numpy"}


def _names(node):
    return [alias.name for alias in node.names]


def test_another_interpreter_plays_as_this_one_does():
    environments = [make("smac/3m", 3, entry=SKIRMISH, **where) for where in (HERE, {**THERE, "workers": 2})]
    for environment in environments:
        environment.reset(np.array([5, 6, 7]))
    generator = np.random.default_rng(0)
    for _ in range(20):
        actions = generator.integers(1, 4, size=(3, 3))
        here, there = (environment.step((actions,)) for environment in environments)
        np.testing.assert_array_equal(here.observation.state, there.observation.state)
        np.testing.assert_array_equal(here.rewards, there.rewards)
        np.testing.assert_array_equal(here.success, there.success)
    for environment in environments:
        environment.close()


def test_happo_trains_in_another_interpreter(tmp_path, single_thread):
    arguments = {"entry": SKIRMISH, "python": sys.executable}
    summary = train(tiny_config("happo", "smac/3m", environment_arguments=arguments), tmp_path / "run")
    assert summary["steps"] == 160


@pytest.mark.slow
def test_happo_trains_beside_a_protobuf_that_hmarl_cannot_use(old_protobuf, tmp_path, single_thread):
    arguments = {"entry": SKIRMISH, "python": old_protobuf, "protobuf": "3.20"}
    results = check_environment(lambda batch: make("smac/3m", batch, **arguments))
    assert [result for result in results if not result.passed] == []
    summary = train(tiny_config("happo", "smac/3m", environment_arguments=arguments), tmp_path / "run")
    assert summary["steps"] == 160


@pytest.mark.parametrize("where", [HERE, THERE])
def test_a_reward_in_an_array_and_no_info_are_taken(where):
    environment = make("smac/3m", 1, entry="skirmish:Plain", **where)
    seen = environment.reset(np.array([3]))
    result = environment.step((weapons(environment, seen),))
    np.testing.assert_allclose(result.rewards[0], [0.5] * 3)
    environment.close()


@pytest.mark.parametrize("where", [HERE, THERE])
def test_copies_know_their_numbers(where):
    environment = make("smac/3m", 2, entry="skirmish:Numbered", **where)
    states = [environment.reset(np.arange(2)).state]
    states += [environment.step((np.full((2, 3), WAIT),)).observation.state for _ in range(2)]
    numbers = [state[:, -1].astype(int).tolist() for state in states]
    assert all(row[1] - row[0] == 101 and row[0] % 101 == 0 for row in numbers)
    environment.close()


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [HERE, THERE])
@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        (SKIRMISH, {"fail_at": 2}, "environment 0: ValueError: the bridge is out"),
        ("skirmish:Gymnast", {}, r"environment 0: step: got 5 values, expected \(reward, terminated, info\)"),
        ("skirmish:Spread", {}, r"environment 0: step: got the reward an array of shape \(3,\).*expected one number"),
        (
            "skirmish:Lost",
            {},
            r"environment 0: (get_obs: got .*None.*expected an array|ValueError: setting)",
        ),
        ("skirmish:Blind", {}, r"environment 0: get_obs: got an array of shape \(3, 2\), expected \(3, 3\)"),
    ],
)
def test_what_an_environment_does_wrong_is_named(entry, arguments, message, where):
    environment = make("smac/3m", 2, entry=entry, **arguments, **where)
    with pytest.raises(EnvironmentFault, match=message):
        strike_twice(environment)
    with pytest.raises(EnvironmentFault, match="the environment is closed"):
        environment.reset(np.array([0, 1]))


@pytest.mark.parametrize(
    ("entry", "arguments", "message"),
    [
        ("skirmish:Quitter", {}, r"environment 0: the worker process died \(exit code 7\)"),
        (SKIRMISH, {"hang_at": 2, "timeout_s": 4}, r"environment 0: no reply within 4 s, so the worker .* was stopped"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_an_error_and_leaves_no_process(entry, arguments, message):
    environment = make("smac/3m", 2, entry=entry, workers=1, **arguments)
    processes = [worker.process for worker in environment._pool._workers]
    with pytest.raises(EnvironmentFault, match=message):
        strike_twice(environment)
    assert all(process.poll() is not None for process in processes)


@pytest.mark.parametrize("where", [HERE, THERE])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"entry": "nowhere_at_all:Env"},
            "'nowhere_at_all:Env' could not be imported by .*No module named 'nowhere_at",
        ),
        ({"entry": "skirmish:Skirmash"}, "module 'skirmish' has no attribute 'Skirmash'"),
        ({"entry": "skirmish:NOOP"}, "skirmish:NOOP: got a int, expected a class or function"),
        ({"entry": "skirmish"}, "entry: got 'skirmish', expected an import path PACKAGE.MODULE:CLASS"),
        ({"entry": "skirmish:Nameless"}, "skirmish:Nameless: get_env_info: got no n_agents, expected SMAC's"),
        ({"entry": "builtins:dict"}, "builtins:dict: got a dict without get_obs"),
        ({"entry": SKIRMISH, "lenght": 3}, "unexpected keyword argument 'lenght'; it takes: map_name, seed, n_agents"),
        ({"entry": SKIRMISH, "seed": 3}, "seed: every copy is given its own"),
        ({"entry": SKIRMISH, "timeout_s": -1}, "timeout_s: got -1, expected a positive number of seconds"),
    ],
)
def test_wrong_use_is_explained(arguments, message, where):
    with pytest.raises(UsageError, match=message):
        make("smac/3m", 1, **{**where, **arguments})


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/nowhere/bin/python", "python: got '/nowhere/bin/python', expected the path of a Python interpreter"),
        ("/bin/false", r"the worker process died \(exit code 1\).*has to be Python 3.8 or newer, with NumPy"),
    ],
)
def test_an_interpreter_that_is_none_is_an_error(python, message):
    with pytest.raises(UsageError, match=message):
        make("smac/3m", 1, entry=SKIRMISH, python=python)


def test_another_interpreter_needs_a_worker():
    with pytest.raises(UsageError, match="workers: got 0, expected a whole number, 1 or more"):
        make("smac/3m", 1, entry=SKIRMISH, workers=0, python=sys.executable)


@pytest.mark.parametrize(
    ("name", "repository"),
    [("smac/3m", "https://github.com/oxwhirl/smac.git"), ("smacv2/10gen_terran", "github.com/oxwhirl/smacv2.git")],
)
def test_without_the_package_the_error_says_how_to_install_it(name, repository):
    with pytest.raises(UsageError) as raised:
        make(name, 1, **THERE)
    for part in ("-m venv", "protobuf<3.21", repository, "env.python=", "s2client-proto", "SC2PATH", "env.entry="):
        assert part in str(raised.value)


# --- the packages' own classes, played by the skirmish: their names and arguments are what is tested ------------------

STARCRAFT = """
import skirmish
class {name}(skirmish.Skirmish):
    def __init__(self, **arguments):
        print("made with", arguments)
        assert arguments.pop("continuing_episode")
        super().__init__(arguments.pop("map_name"), arguments.pop("seed", None))
        assert arguments == {expected}, arguments
"""
CAPABILITIES = {
    "n_units": 4,
    "n_enemies": 6,
    "team_gen": {
        "dist_type": "weighted_teams",
        "unit_types": ["stalker", "zealot", "colossus"],
        "exception_unit_types": ["colossus"],
        "weights": [0.45, 0.45, 0.1],
        "observe": True,
    },
    "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
}
SMACV2 = {
    "capability_config": CAPABILITIES,
    "conic_fov": True,
    "obs_own_pos": True,
    "use_unit_ranges": True,
    "min_attack_range": 2,
    "fully_observable": False,
}


@pytest.mark.parametrize(
    ("name", "arguments", "module", "class_name", "expected"),
    [
        ("smac/8m", {"difficulty": "3"}, "smac/env.py", "StarCraft2Env", {"difficulty": "3"}),
        (
            "smacv2/10gen_protoss",
            {"n_units": 4, "n_enemies": 6, "conic_fov": True},
            "smacv2/env/starcraft2/wrapper.py",
            "StarCraftCapabilityEnvWrapper",
            SMACV2,
        ),
    ],
)
def test_the_packages_classes_get_their_arguments(name, arguments, module, class_name, expected, tmp_path, monkeypatch):
    (tmp_path / module).parent.mkdir(parents=True)
    (tmp_path / module).write_text(STARCRAFT.format(name=class_name, expected=expected))
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{tmp_path}")
    monkeypatch.setenv("SC2PATH", str(tmp_path / "StarCraftII"))
    if sys.platform == "linux":
        with pytest.raises(
            UsageError, match=r"there is no folder .*StarCraftII. StarCraft II itself: .*s2client-proto"
        ):
            make(name, 2, **arguments, **THERE)
    (tmp_path / "StarCraftII").mkdir()
    environment = make(name, 2, **arguments, **THERE)
    seen = environment.reset(np.array([0, 1]))
    assert seen.active.all()
    environment.close()


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("10gen_teran", {}, "unknown smacv2 task '10gen_teran'; did you mean '10gen_terran'"),
        ("10gen_terran", {"n_units": 0}, "n_units: got 0, expected a whole number, 1 or more"),
        ("10gen_terran", {"n_enemies": 2.5}, "n_enemies: got 2.5"),
    ],
)
def test_wrong_tasks_and_team_sizes_of_smacv2_are_refused(task, arguments, message):
    with pytest.raises(UsageError, match=message):
        make(f"smacv2/{task}", 1, **arguments)
