import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from mpe2 import simple_spread_v3

from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.environments.workers.parallel_copy import episode_seed
from hmarl.sdk.errors import EnvironmentFault, MissingExtraError, UsageError
from hmarl.sdk.team import RandomTeam

TESTS = str(Path(__file__).parent.parent)
TRIO = "pettingzoo/parallel_toys:Trio"
SPREAD = "pettingzoo/mpe2.simple_spread_v3:parallel_env"
SHARED_MEMORY = Path("/dev/shm")


def shared_blocks():
    return {path.name for path in SHARED_MEMORY.glob("psm_*")} if SHARED_MEMORY.is_dir() else set()


def legal_actions(spec, observation, batch):
    team = RandomTeam(spec)
    team.reset(np.arange(batch))
    return team.act(observation, np.ones(batch, bool))


def play(environment, steps, seeds):
    """Random legal play: the first observation and all results."""
    observation = environment.reset(np.asarray(seeds))
    team, first, results = RandomTeam(environment.spec), observation, []
    team.reset(np.asarray(seeds))
    for _ in range(steps):
        results.append(environment.step(team.act(observation, np.ones(len(seeds), bool))))
        observation = results[-1].observation
    return first, results


def test_the_spec_describes_unlike_agents_and_their_flattened_observations():
    environment = make(TRIO, 1)
    scout, carrier, signaller = environment.spec.agents
    assert scout.action_space == spaces.Discrete(3)
    assert scout.observation_layout == (("observation.kind", 3), ("observation.position", 2))
    assert carrier.action_space == spaces.Box(-2.0, 2.0, (4,), np.float32)
    assert signaller.action_space == spaces.MultiDiscrete([2, 2, 2])
    assert signaller.observation_layout == (("[0]", 3), ("[1]", 1))
    assert [agent.has_action_mask for agent in environment.spec.agents] == [True, False, True]
    assert environment.spec.horizon == 4
    assert environment.spec.control_period_s == 0.25
    # Trio has no state(): the observations one after the other.
    assert environment.spec.state_size == 5 + 4 + 4
    environment.close()


def test_masks_are_read_from_the_observation_and_from_info():
    environment = make(TRIO, 1)
    seen = environment.reset(np.array([3]))
    assert seen.action_masks[0][0, 0].tolist() == [True, False, False]
    assert seen.action_masks[1] is None
    assert seen.action_masks[2][0, 0].tolist() == [True, False, True, True, True, True]
    environment.close()


def test_actions_reach_the_environment_in_its_own_form():
    environment = make(TRIO, 1)
    environment.reset(np.array([3]))
    box = np.array([[[-2.0, -1.0, 1.0, 2.0]]], np.float32)
    # Action 0 of the scout is the environment's 1, the first of its Discrete(3, start=1).
    seen = environment.step((np.array([[0]]), box, np.array([[[0, 1, 0]]]))).observation
    assert seen.observations[1][0, 0].tolist() == [-2.0, -1.0, 1.0, 2.0]
    assert seen.observations[2][0, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    environment.close()


def test_an_agent_that_leaves_keeps_its_last_reward_and_then_falls_silent():
    environment = make(TRIO, 1)
    _, results = play(environment, 4, [7])
    assert [result.rewards[0].tolist() for result in results] == [[1, 1, 1], [5, 2, 2], [0, 3, 3], [0, 4, 4]]
    after = results[1].observation
    assert after.active.tolist() == [[False, True, True]]
    assert not after.observations[0].any()
    assert after.action_masks[0].all()
    # The scout terminated, the others were cut off: the episode is truncated, and seen to its end by those two.
    assert [bool(result.truncated[0]) for result in results] == [False, False, False, True]
    assert not any(result.terminated[0] for result in results)
    assert results[3].final.active.tolist() == [[False, True, True]]
    assert results[3].final.observations[2][0, 0, 3] == 4.0
    assert results[3].observation.active.all()
    assert results[3].observation.observations[2][0, 0, 3] == 0.0
    environment.close()


def test_an_episode_in_which_all_terminate_is_terminated_and_its_final_observation_kept():
    environment = make(TRIO, 1, ends="termination", length=3)
    _, results = play(environment, 3, [7])
    assert (bool(results[2].terminated[0]), bool(results[2].truncated[0])) == (True, False)
    assert results[2].final.active.tolist() == [[False, True, True]]
    assert results[2].final.state[0, -1] == 3.0
    environment.close()


def test_an_agent_that_terminates_as_the_others_are_cut_off_is_not_in_the_final_observation():
    environment = make(TRIO, 1, length=2)
    _, results = play(environment, 2, [7])
    assert results[1].truncated[0]
    assert results[1].final.active.tolist() == [[False, True, True]]
    environment.close()


@pytest.mark.parametrize(
    ("a", "b", "cut_off", "shown"),
    [
        ("2 truncation", "4 termination", False, [False, True]),
        ("2 truncation", "4 off", False, [False, True]),
        ("2 termination", "4 truncation", True, [False, True]),
        ("2 off", "4 truncation", True, [False, True]),
        ("4 truncation", "4 termination", True, [True, False]),
        ("4 termination", "4 off", False, [True, True]),
        ("2 truncation", "4 truncation", True, [False, True]),
    ],
)
def test_how_an_episode_ends_is_how_those_end_who_are_there_to_the_last(a, b, cut_off, shown):
    # What is bootstrapped after a truncation is the value of the final observation: there has to be something to see.
    environment = make("pettingzoo/odd_toys:Apart", 1, a=a, b=b)
    _, results = play(environment, 8, [7])
    for end in (results[3], results[7]):
        assert (bool(end.truncated[0]), bool(end.terminated[0])) == (cut_off, not cut_off)
        assert end.final.active.tolist() == [shown]
        assert end.final.observations[0][0, :, 0].tolist() == [4.0 * there for there in shown]
        assert end.final.state[0, ::2].tolist() == [4.0 * there for there in shown]
    assert not any(result.terminated[0] or result.truncated[0] for result in results[:3] + results[4:7])
    environment.close()


@pytest.mark.parametrize("name", [TRIO, SPREAD])
def test_workers_and_this_process_play_the_same(name):
    here, there = make(name, 3, workers=0), make(name, 3, workers=2)
    (first, results), (other_first, other_results) = play(here, 30, [5, 6, 7]), play(there, 30, [5, 6, 7])
    np.testing.assert_array_equal(first.state, other_first.state)
    assert any(result.final is not None for result in results)
    for one, other in zip(results, other_results, strict=True):
        np.testing.assert_array_equal(one.rewards, other.rewards)
        np.testing.assert_array_equal(one.truncated, other.truncated)
        np.testing.assert_array_equal(one.observation.active, other.observation.active)
        assert (one.final is None) == (other.final is None)
        for seen, other_seen in [(one.observation, other.observation), (one.final, other.final)]:
            if seen is not None:
                np.testing.assert_array_equal(seen.state, other_seen.state)
                for block, other_block in zip(seen.observations, other_seen.observations, strict=True):
                    np.testing.assert_array_equal(block, other_block)
    here.close()
    there.close()


def test_episodes_equal_mpe2_reset_with_the_documented_seeds():
    environment, original = make(SPREAD, 2, workers=0, max_cycles=5), simple_spread_v3.parallel_env(max_cycles=5)
    seen = environment.reset(np.array([11, 12]))
    for seed in (12, episode_seed(12, 1), episode_seed(12, 2)):
        expected, _ = original.reset(seed=seed)
        for step in range(5):
            np.testing.assert_array_equal(seen.observations[0][1], np.stack(list(expected.values())))
            actions = np.full((2, 3), step)
            result = environment.step((actions,))
            expected, rewards, *_ = original.step(dict.fromkeys(original.agents, step))
            np.testing.assert_array_equal(result.rewards[1], np.float32(list(rewards.values())))
            seen = result.observation
        np.testing.assert_array_equal(result.final.observations[0][1], np.stack(list(expected.values())))
        assert result.truncated.all()
    environment.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_conformance_check_passes(workers):
    results = check_environment(lambda batch: make(TRIO, batch, workers=workers), steps=13)
    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_an_environment_names_its_index_and_closes_all(workers):
    before = shared_blocks()
    environment = make(TRIO, 3, workers=workers, fail_at=2)
    with pytest.raises(EnvironmentFault, match=r"environment 0: ValueError: the bridge is out"):
        play(environment, 3, [1, 2, 3])
    with pytest.raises(EnvironmentFault, match="the environment is closed"):
        environment.reset(np.array([1, 2, 3]))
    environment.close()
    assert shared_blocks() == before


def test_a_worker_that_dies_is_named_with_its_environment():
    environment = make(TRIO, 3, workers=3, die_at=2)
    processes = [worker.process for worker in environment._pool._workers]
    with pytest.raises(EnvironmentFault, match=r"environment 0: the worker process died \(exit code 7\)"):
        play(environment, 3, [1, 2, 3])
    assert all(process.poll() is not None for process in processes)
    environment.close()


def test_workers_end_and_memory_goes_when_closed_twice_or_forgotten():
    before = shared_blocks()
    for forgotten in (False, True):
        environment = make(TRIO, 2, workers=2)
        processes = [worker.process for worker in environment._pool._workers]
        if not forgotten:
            environment.close()
            environment.close()
        del environment
        assert [process.wait(5) for process in processes] == [0, 0]
    assert shared_blocks() == before


def test_workers_die_with_a_parent_that_is_killed():
    program = (
        "import os, sys, time\nfrom hmarl.sdk.environments import make\n"
        f"environment = make({TRIO!r}, 2, workers=2)\n"
        "print(*[worker.process.pid for worker in environment._pool._workers], flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": TESTS}
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    blocks = {name for pid in pids for name in re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text())}
    assert blocks
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    # Their blocks are freed by Python's resource tracker, which ends after them.
    while (any(map(_is_running, pids)) or any(map(os.path.exists, blocks))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_running, pids))
    assert not [block for block in blocks if os.path.exists(block)]


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_come_from_environments_made_to_draw(workers):
    environment = make(TRIO, 2, workers=workers, render_mode="rgb_array")
    environment.reset(np.array([0, 1]))
    environment.step(legal_actions(environment.spec, environment.reset(np.array([0, 1])), 2))
    picture = environment.render(1)
    assert (picture.shape, picture.dtype, int(picture[0, 0, 0])) == ((6, 8, 3), np.uint8, 10)
    environment.close()
    plain = make(TRIO, 1)
    plain.reset(np.array([0]))
    assert plain.render() is None
    plain.close()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pettingzoo/nowhere_at_all:env", {}, "tried to import 'nowhere_at_all'.*is the package .*installed"),
        ("pettingzoo/parallel_toys:Tria", {}, "no function 'Tria'; did you mean 'Trio'"),
        ("pettingzoo/parallel_toys", {}, "expected an import path"),
        (TRIO, {"lenght": 3}, "unexpected keyword argument 'lenght'; it takes: length=4, ends='truncation'"),
        (SPREAD, {"M": 3}, "it takes: N=3"),
        (TRIO, {"unbounded": True}, "agent 'carrier': got the unbounded action space"),
        (TRIO, {"team_reward": "max"}, "team_reward: got 'max', expected one of sum, mean, shared"),
        (TRIO, {"horizon": 0}, "horizon: got 0"),
        (TRIO, {"control_period_s": -1}, "control_period_s: got -1"),
        (TRIO, {"workers": -1}, "workers: got -1"),
        ("pettingzoo/mpe2.simple_spread_v3:env", {}, "turn-based"),
        ("pettingzoo/math:sqrt", {}, "it takes"),
        ("pettingzoo/builtins:object", {}, "got a object without possible_agents, reset, step"),
    ],
)
def test_wrong_use_is_explained(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        make(name, 1, **arguments)


def test_arguments_that_workers_cannot_be_given_are_refused():
    with pytest.raises(UsageError, match=r"ends: got a object.*use workers=0"):
        make(TRIO, 2, workers=2, ends=object())


def test_a_missing_package_of_ours_names_the_extra(monkeypatch):
    class NoMpe2:
        def find_spec(self, name, path=None, target=None):
            if name == "mpe2":
                raise ModuleNotFoundError("No module named 'mpe2'", name="mpe2")

    for name in [name for name in sys.modules if name.partition(".")[0] == "mpe2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoMpe2(), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"pip install 'hmarl\[mpe\]'"):
        make("pettingzoo/mpe2.simple_push_v3:parallel_env", 1)


def test_actions_of_a_wrong_shape_are_refused():
    environment = make(SPREAD, 2, workers=0)
    environment.reset(np.array([0, 1]))
    with pytest.raises(UsageError, match=r"actions\[0\]: got shape \(2,\), expected \(2, 3\)"):
        environment.step((np.zeros(2, np.int64),))
    environment.close()
