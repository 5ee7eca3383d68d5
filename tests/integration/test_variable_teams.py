"""Teams of another size than was trained: exported once, served by real processes, and equal to torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.runtime.bundle import Bundle, UsageError
from hmarl.runtime.session import noise_for
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.environment import as_numpy
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.export.export import export_run
from hmarl.trainer.export.policy_source import load_team
from hmarl.trainer.runs.loaded_run import load_run
from training_runs import tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")
INTERCHANGEABLE: dict[str, Any] = {"share_parameters": True, "agent_identity": False}
TOY = "toy_environments:masked_discrete"


def trained(folder: Path, algorithm: str, environment: str, arguments: dict[str, Any], **settings: Any) -> Bundle:
    """A short run's bundle, beside the run."""
    train(tiny_config(algorithm, environment, {**INTERCHANGEABLE, **settings}, None, arguments), folder / "run")
    return export_run(folder / "run", folder / "bundle", redistilling=False)


def command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", f"hmarl.{module}", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)


@contextmanager
def fleet(bundle: Bundle, out: Path, *options: object) -> Iterator[Path]:
    """A running hmarl-fleet; its endpoints file."""
    words = [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(bundle.path), "--out", str(out), "--json"]
    with subprocess.Popen([*words, *map(str, options)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the fleet ended before it was serving"
            yield out
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module")
def navigation(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three agents that see their goal and the others by lidar: the same sizes in teams of all sizes."""
    pytest.importorskip("vmas")
    return trained(tmp_path_factory.mktemp("navigation"), "mappo", "vmas/navigation", {"n_agents": 3})


@pytest.mark.parametrize(("count", "sample"), [(5, True), (2, False)])
def test_a_fleet_of_another_size_acts_as_torch_does(
    navigation: Bundle, count: int, sample: bool, tmp_path: Path
) -> None:
    algorithm = load_run(navigation.path.parent / "run").algorithm
    environment = make("vmas/navigation", 2, n_agents=count)
    local, bundled = (
        LocalTeam(algorithm, sample, spec=environment.spec),
        BundleTeam(navigation, environment.spec, sample=sample),
    )
    seeds = np.array([3, 4])
    with (
        fleet(navigation, tmp_path / "endpoints.json", "--count", count) as endpoints,
        closing(FleetTeam(endpoints, environment.spec, sample=sample)) as served,
    ):
        assert list(served.clients) == [f"agent_{n}" for n in range(count)]
        for team in (local, bundled, served):
            team.reset(seeds)
        observation = as_numpy(environment.reset(seeds))
        module = algorithm.deployable(0)
        for step in range(6):
            ours, exported, theirs = (
                team.act(observation, np.ones(2, np.bool_))[0] for team in (local, bundled, served)
            )
            np.testing.assert_array_equal(theirs, exported)
            np.testing.assert_allclose(exported, ours, atol=1e-5)
            for agent in range(count):  # the one policy, applied to what this agent sees and draws
                noise = noise_for(bundled._policies[agent].agent.noises[0], f"agent_{agent}", seeds, step)
                seen = torch.from_numpy(observation.observations[0][:, agent].copy())
                with torch.no_grad():
                    by_hand = module(seen, torch.from_numpy(noise * sample))[0].numpy()
                np.testing.assert_allclose(theirs[:, agent], by_hand, atol=1e-5)
            observation = as_numpy(environment.step((theirs,)).observation)


@pytest.mark.slow
def test_the_commands_evaluate_a_team_of_another_size(navigation: Bundle, tmp_path: Path) -> None:
    play = ("--set", "env.n_agents=5", "--set", "env.max_steps=10", "--episodes", 2, "--json")
    bundled = command("sdk.commands.evaluate", "--bundle", navigation.path, *play)
    with fleet(navigation, tmp_path / "endpoints.json", "--agents", "agent_0,agent_3,agent_4=agent_1") as endpoints:
        # No process serves agents 1 and 2: where nothing is drawn another agent can act for them.
        served = command("sdk.commands.evaluate", "--endpoints", endpoints, *play)
        drawn = command("sdk.commands.evaluate", "--endpoints", endpoints, "--sample", *play)
    results = [json.loads(done.stdout.splitlines()[-1]) for done in (bundled, served)]
    assert results[0]["return_mean"] == results[1]["return_mean"]
    assert results[0]["length_mean"] == 10
    assert (drawn.returncode, drawn.stdout) == (2, "")
    assert "no agent 'agent_1', which the environment has; 'agent_0' could act for it, but" in drawn.stderr
    run = command("sdk.commands.evaluate", "--run", navigation.path.parent / "run", *play)
    assert json.loads(run.stdout.splitlines()[-1])["return_mean"] == pytest.approx(results[0]["return_mean"], abs=1e-3)


def test_whoever_is_served_acts_for_those_who_are_not_unless_numbers_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMARL_LIKE", "chooser_0")  # an option of hmarl-agent; a fleet's roster says who is like whom
    bundle = trained(tmp_path, "mappo", TOY, {"agents": 2})
    environment = make(TOY, 2, agents=4)
    with fleet(bundle, tmp_path / "endpoints.json", "--agents", "chooser_1,chooser_3") as endpoints:
        with closing(FleetTeam(endpoints, environment.spec)) as team:
            assert {name: clients[0].spec.id for name, clients in team.clients.items()} == {
                "chooser_0": "chooser_1",
                "chooser_1": "chooser_1",
                "chooser_2": "chooser_1",
                "chooser_3": "chooser_3",
            }
            served = evaluate(environment, team, 4, seed=2).returns
        with pytest.raises(UsageError, match="no agent 'chooser_0', which the environment has; 'chooser_1' could act"):
            FleetTeam(endpoints, environment.spec, sample=True)
    local = BundleTeam(bundle, environment.spec)
    np.testing.assert_array_equal(served, evaluate(environment, local, 4, seed=2).returns)


@pytest.mark.parametrize(("algorithm", "recurrent"), [("hcpo", True), ("maven", False)])
def test_more_and_fewer_agents_earn_what_torch_earns(algorithm: str, recurrent: bool, tmp_path: Path) -> None:
    """Memories, instructions and drawn numbers of those who were not trained are their own."""
    bundle = trained(tmp_path, algorithm, TOY, {"agents": 3}, recurrent=recurrent, memory_size=5)
    make_team, _, _ = load_team(tmp_path / "run", sample=True)
    for agents in (5, 3, 1):
        environment = make(TOY, 4, agents=agents)
        expected = evaluate(environment, make_team(environment.spec), 6, seed=2, record=True)
        got = evaluate(environment, BundleTeam(bundle, environment.spec, sample=True), 6, seed=2, record=True)
        np.testing.assert_array_equal(got.returns, expected.returns)
        assert got.agent_returns.shape == (6, agents)
        if agents == 5 and algorithm == "hcpo":
            actions = got.actions[0]
            assert not np.array_equal(actions[..., 3], actions[..., 4]), "two further agents draw the same numbers"


def test_an_agent_in_this_process_may_be_like_another(interchangeable_bundle: Bundle) -> None:
    with LocalAgent(interchangeable_bundle, "robot", like="agent_0") as robot:
        assert robot.spec.id == "robot"
        robot.reset(3, sample=True)
        assert 0 <= robot.act(np.zeros(6, np.float32), np.ones(5, np.bool_)).action < 5
    with pytest.raises(UsageError, match="unknown agent 'robot'"):
        LocalAgent(interchangeable_bundle, "robot")


def test_observations_that_grow_with_the_team_are_told(tmp_path: Path) -> None:
    bundle = trained(tmp_path, "happo", "mpe/simple_spread", {})
    expected = (
        r"no agent 'agent_3', which the environment has \(there: agent_0, agent_1, agent_2\), and no interchangeable "
        r"one fits: 'agent_0': observation size: got 18, the environment expects 30"
    )
    spec = make("mpe/simple_spread", 1, N=5).spec
    for source in (
        lambda: BundleTeam(bundle, spec),
        lambda: load_team(tmp_path / "run")[0](spec),
    ):
        with pytest.raises(UsageError, match=expected):
            source()
    with pytest.raises(UsageError, match=r"agent 'agent_0': observation size: got 18, the environment expects 12"):
        BundleTeam(bundle, make("mpe/simple_spread", 1, N=2).spec)
    done = command("sdk.commands.evaluate", "--bundle", bundle.path, "--set", "env.N=5", "--episodes", 1)
    assert done.returncode == 2
    assert "observation size: got 18, the environment expects 30" in " ".join(done.stderr.split())


def test_a_conductor_needs_the_team_that_it_was_trained_with(tmp_path: Path) -> None:
    config = tiny_config("hcpo", TOY, {**INTERCHANGEABLE, "conductor_hidden_sizes": [8]}, None, {"agents": 3})
    train(config, tmp_path / "run")
    make_team, _, _ = load_team(tmp_path / "run", variant="central")
    make_team(make(TOY, 1, agents=3).spec)
    with pytest.raises(
        UsageError, match="variant central: got an environment with the agents chooser_0, chooser_1 and"
    ):
        make_team(make(TOY, 1, agents=2).spec)


def test_where_an_environment_hands_out_no_mask_every_choice_is_legal(tmp_path: Path) -> None:
    bundle = trained(tmp_path, "mappo", TOY, {})
    environment, seeds, running = make(TOY, 4), np.arange(4), np.ones(4, dtype=np.bool_)
    seen = environment.reset(seeds)
    assert not all(mask is not None and mask.all() for mask in seen.action_masks)
    legal = [np.ones_like(mask) for mask in seen.action_masks if mask is not None]
    played = []
    for masks in ([None] * len(legal), legal):
        for team in (
            LocalTeam(load_run(tmp_path / "run", "last").algorithm),
            BundleTeam(bundle, environment.spec),
        ):
            team.reset(seeds)
            played.append(team.act(replace(seen, action_masks=tuple(masks)), running))
    for actions in played[1:]:
        for ours, theirs in zip(played[0], actions, strict=True):
            np.testing.assert_array_equal(ours, theirs)
