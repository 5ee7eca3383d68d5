"""Several seeds of a run trained at once: each is an ordinary run, and comes to what it comes to alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.trainer.export.export import export_run
from hmarl.trainer.records.checkpoint import newest_checkpoint
from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.many_seeds import ManyRuns
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.shared_environments import TeamsOfSeeds
from hmarl.trainer.runs.stopping import Interrupted, StopRequest
from hmarl.trainer.together.company import Outcome
from training_runs import as_tensors, new_algorithm, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")
SEEDS = (100, 101, 102)
ALGORITHMS = ("happo", "mappo", "ippo", "haa2c")
Outcomes = list[Outcome[dict[str, Any]]]
Call = Callable[..., tuple[int, str, str]]


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"run": {**config.run, "seed": seed}})


def train_at_once(config: RunConfig, folder: Path, stop: StopRequest | None = None) -> Outcomes:
    directories = [folder / f"seed{seed}" for seed in SEEDS]
    many = ManyRuns.create([with_seed(config, seed) for seed in SEEDS], directories, stop or StopRequest())
    try:
        return many.train()
    finally:
        many.close()


def equal_draws(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Generators and environments stand where they stand in the run alone."""
    assert ours.keys() == theirs.keys()
    drawn = [key for key in ours if key.startswith(("generators.", "collector."))]
    assert any(key.startswith("collector.environment.") for key in drawn)
    for key in drawn:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-6, msg=key)
    assert all(torch.equal(ours[key], theirs[key]) for key in ("generators.order", "generators.noise"))


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("environment", "minibatches"), [("mpe/simple_spread", 1), ("toy_environments:masked_discrete", 2)]
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_after_an_update_each_seed_is_where_it_is_alone(
    name: str, environment: str, minibatches: int, tmp_path: Path
) -> None:
    run = {"steps": 40, "checkpoint_interval": 1, "evaluation_episodes": 1}
    config = tiny_config(name, environment, {"minibatches": minibatches}, run)
    outcomes = train_at_once(config, tmp_path)
    assert [outcome.error for outcome in outcomes] == [None] * len(SEEDS)
    seen = []
    for seed in SEEDS[:2]:
        train(with_seed(config, seed), tmp_path / "alone" / str(seed))
        alone = newest_checkpoint(tmp_path / "alone" / str(seed) / "checkpoints").tensors
        beside = newest_checkpoint(tmp_path / f"seed{seed}" / "checkpoints").tensors
        equal_draws(beside, alone)
        for key, value in alone.items():
            if key.startswith("algorithm."):
                size = float(value.double().abs().max()) if value.numel() else 0.0
                torch.testing.assert_close(beside[key], value, rtol=1e-5, atol=1e-5 * max(size, 1e-6), msg=key)
        seen.append(beside["algorithm.policies.0"])
    assert not torch.equal(*seen), "both seeds are the same"


def test_each_seed_is_an_ordinary_run(tmp_path: Path) -> None:
    """Metrics, evaluation, summary, plots; it is resumed, and exported."""
    config = tiny_config("mappo", "mpe/simple_spread", {}, {"evaluation_interval": 80})
    outcomes = train_at_once(config, tmp_path)
    for seed, outcome in zip(SEEDS, outcomes, strict=True):
        directory = tmp_path / f"seed{seed}"
        alone = tmp_path / "alone" / str(seed)
        train(with_seed(config, seed), alone)
        rows, expected = list(read_metrics(directory)), list(read_metrics(alone))
        assert [row.keys() for row in rows] == [row.keys() for row in expected]
        for row, wanted in zip(rows, expected, strict=True):
            for figure in ("return", "agent_kl", "agent_gradient_norm", "critic_loss", "eval/local/return_mean"):
                if figure in wanted:
                    assert row[figure] == pytest.approx(wanted[figure], rel=1e-3, abs=1e-5), figure
        assert outcome.value is not None
        assert outcome.value["seed"] == seed
        assert json.loads((directory / "summary.json").read_text())["steps"] == 160
        assert RunConfig.read(directory) == RunConfig.read(alone)
        assert list((directory / "plots").iterdir())
    resumed = Run.resume(tmp_path / "seed101", steps=240)
    try:
        assert resumed.counters.steps == 160
        assert resumed.train()["steps"] == 240
    finally:
        resumed.close()
    export_run(tmp_path / "seed101", tmp_path / "bundle")


@pytest.mark.usefixtures("without_pictures")
def test_a_resumed_seed_goes_on_as_it_would_have(tmp_path: Path) -> None:
    """Alone, from the checkpoint that was written among others; up to rounding."""
    for name, steps in (("half", 80), ("whole", 160)):
        train_at_once(tiny_config("happo", "mpe/simple_spread", {}, {"steps": steps}), tmp_path / name)
    resumed = Run.resume(tmp_path / "half" / "seed102", steps=160)
    try:
        resumed.train()
    finally:
        resumed.close()
    went_on = newest_checkpoint(tmp_path / "half" / "seed102" / "checkpoints").tensors
    unbroken = newest_checkpoint(tmp_path / "whole" / "seed102" / "checkpoints").tensors
    equal_draws(went_on, unbroken)
    for key, value in unbroken.items():
        if key.startswith("algorithm.policies"):
            torch.testing.assert_close(went_on[key], value, rtol=1e-3, atol=1e-4, msg=key)


def resumed_at_once(folder: Path, steps: int) -> Outcomes:
    many = ManyRuns.resume([folder / f"seed{seed}" for seed in SEEDS], steps, StopRequest())
    try:
        return many.train()
    finally:
        many.close()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("environment", ["mpe/simple_spread", "toy_environments:leaving"])
def test_seeds_go_on_at_once_from_where_each_stands(environment: str, tmp_path: Path) -> None:
    """One of them is farther than the others; up to rounding."""
    for name, steps in (("half", 80), ("whole", 160)):
        train_at_once(
            tiny_config("happo", environment, {}, {"steps": steps, "checkpoint_interval": 1}), tmp_path / name
        )
    farther = Run.resume(tmp_path / "half" / "seed101", steps=120)
    farther.train()
    farther.close()
    with pytest.raises(UsageError, match=r"--steps: got 100, expected at least 120, the steps that .*seed101 has done"):
        resumed_at_once(tmp_path / "half", 100)
    goals = [RunConfig.read(tmp_path / "half" / f"seed{seed}").run["steps"] for seed in SEEDS]
    assert goals == [80, 120, 80], "refused for one, none has another goal"
    outcomes = resumed_at_once(tmp_path / "half", 160)
    assert [outcome.error for outcome in outcomes] == [None] * len(SEEDS)
    assert [outcome.value["resumed_at"] for outcome in outcomes if outcome.value] == [80, 120, 80]
    for seed in SEEDS:
        went_on, unbroken = (
            newest_checkpoint(tmp_path / name / f"seed{seed}" / "checkpoints") for name in ("half", "whole")
        )
        assert went_on.counters.steps == 160
        assert RunConfig.read(tmp_path / "half" / f"seed{seed}").run["steps"] == 160
        equal_draws(went_on.tensors, unbroken.tensors)
        for key, value in unbroken.tensors.items():
            if key.startswith("algorithm.policies"):
                torch.testing.assert_close(went_on.tensors[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.usefixtures("without_pictures")
def test_environments_that_cannot_be_saved_go_on_at_once_from_the_same_step(tmp_path: Path) -> None:
    config = tiny_config("mappo", "toy_environments:masked_discrete", {}, {"steps": 80}, {"saves": False})
    train_at_once(config, tmp_path)
    assert [outcome.error for outcome in resumed_at_once(tmp_path, 160)] == [None] * len(SEEDS)
    alone = Run.resume(tmp_path / "seed101", steps=240)
    alone.train()
    alone.close()
    told = r"--resume: got .*seed100 at 160 steps, .*seed101 at 240 steps.*expected checkpoints of the same step"
    with pytest.raises(UsageError, match=told):
        resumed_at_once(tmp_path, 320)
    Run.resume(tmp_path / "seed100").close()  # no lock is left


def test_only_runs_that_differ_in_their_seeds_go_on_at_once(tmp_path: Path) -> None:
    for seed, clip in zip(SEEDS, (0.2, 0.2, 0.1), strict=True):
        config = tiny_config("mappo", "coordsum/3x10-30", {"clip": clip}, {"steps": 40, "seed": seed})
        Run.create(config, tmp_path / f"seed{seed}").close()
    with pytest.raises(
        UsageError, match=r"--resume .*seed102: got another algorithm\.clip than .*seed100, expected runs"
    ):
        resumed_at_once(tmp_path, 80)


@pytest.mark.usefixtures("without_pictures")
def test_all_stop_after_the_same_update_when_asked_to(tmp_path: Path) -> None:
    stop = StopRequest()
    with stop.postponed():
        stop.ask()
    outcomes = train_at_once(tiny_config("happo", "mpe/simple_spread"), tmp_path, stop=stop)
    assert all(isinstance(outcome.error, Interrupted) for outcome in outcomes)
    steps = [newest_checkpoint(tmp_path / f"seed{seed}" / "checkpoints").counters.steps for seed in SEEDS]
    assert steps == [40, 40, 40]


@pytest.mark.usefixtures("without_pictures")
def test_a_seed_that_fails_leaves_the_others_at_work(tmp_path: Path) -> None:
    many = ManyRuns.create(
        [with_seed(tiny_config("happo", "mpe/simple_spread"), seed) for seed in SEEDS],
        [tmp_path / f"seed{seed}" for seed in SEEDS],
        StopRequest(),
    )
    with torch.no_grad():
        many.runs[1].algorithm.policies[0].theta.fill_(float("nan"))  # every update of it diverges
    try:
        outcomes = many.train()
    finally:
        many.close()
    assert outcomes[0].value is not None
    assert outcomes[2].value is not None
    assert outcomes[1].value is None or outcomes[1].value["steps"] == 160
    train(with_seed(tiny_config("happo", "mpe/simple_spread"), 102), tmp_path / "alone")
    beside = newest_checkpoint(tmp_path / "seed102" / "checkpoints").tensors["algorithm.policies.0"]
    alone = newest_checkpoint(tmp_path / "alone" / "checkpoints").tensors["algorithm.policies.0"]
    torch.testing.assert_close(beside, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("environment", ["mpe/simple_spread", "toy_environments:leaving"])
def test_teams_act_at_once_as_each_does_alone(environment: str) -> None:
    algorithms = []
    for seed in range(3):
        algorithm, _, _ = new_algorithm("happo", environment, 4, 5)
        for policy in algorithm.policies:
            policy.theta += torch.randn(policy.theta.shape, generator=torch.Generator().manual_seed(seed))
        for normaliser in algorithm.observation_normalisers:
            noise = torch.randn(8, *normaliser.mean.shape, generator=torch.Generator().manual_seed(seed))
            normaliser.update(noise.float())
        algorithm.noise_generator.manual_seed(seed)
        algorithms.append(algorithm)
    seen = as_tensors(make(environment, 12).reset(np.arange(12)))
    teams = TeamsOfSeeds(algorithms)
    teams.begin_rollout(5, 12)
    actions = teams.act(seen, 2).raw_actions
    for place, algorithm in enumerate(algorithms):
        algorithm.noise_generator.manual_seed(place)
        algorithm.begin_rollout(5, 4)
        rows = slice(4 * place, 4 * place + 4)
        theirs = type(seen)(
            tuple(each[rows] for each in seen.observations),
            tuple(None if each is None else each[rows] for each in seen.action_masks),
            seen.state[rows],
            seen.active[rows],
        )
        for ours, expected in zip(actions, algorithm.act(theirs, 2).raw_actions, strict=True):
            torch.testing.assert_close(ours[rows], expected)


def test_a_part_of_a_rollout_is_what_those_environments_alone_have_made() -> None:
    """Episodes end inside of it, at other steps in each environment."""
    whole_algorithm, whole, collector = new_algorithm("happo", "toy_environments:leaving", 6, 12)
    torch.manual_seed(0)
    statistics = collector.collect(whole_algorithm)
    rows = slice(2, 5)
    part = whole.of(rows)
    assert part.batch_size == 3
    for ours, theirs in zip(part.observations, whole.observations, strict=True):
        assert torch.equal(ours, theirs[:, rows])
    assert torch.equal(part.states, whole.states[:, rows])
    assert torch.equal(part.next_states(), whole.next_states()[:, rows])
    assert torch.equal(part.next_active(), whole.next_active()[:, rows])
    assert part.final_places == [(step, row - 2) for step, row in whole.final_places if 2 <= row < 5]
    of_part = statistics.of(rows)
    ended = [place for place, environment in enumerate(statistics.environments) if 2 <= environment < 5]
    assert of_part.returns == [statistics.returns[place] for place in ended]
    assert len(of_part.lengths) == len(part.final_places)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("hatrpo", {}, "--seeds: got hatrpo, expected one of haa2c, happo, ippo, mappo; train one after the other"),
        ("happo", {"recurrent": True}, "--seeds: got algorithm.recurrent=true, expected policies without memory"),
    ],
)
def test_what_cannot_be_trained_at_once_is_refused_by_name(
    name: str, settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        train_at_once(tiny_config(name, "mpe/simple_spread", settings), tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures_are_refused_by_name(tmp_path: Path) -> None:
    told = r"--seeds: in pettingzoo/pixel_toys:Lit agent 'eye_0' observes .*, expected vectors; train one seed"
    with pytest.raises(UsageError, match=told):
        train_at_once(tiny_config("mappo", "pettingzoo/pixel_toys:Lit", {}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_pictures")
def test_the_command_trains_them_below_a_directory(call: Call, tmp_path: Path) -> None:
    words = ["mappo", "--env", "coordsum/3x10-30", "--steps", "80", "--out", str(tmp_path)]
    for key, value in {"environments": 4, "rollout_length": 10, "threads": 1, "evaluation_episodes": 2}.items():
        words += ["--set", f"run.{key}={value}"]
    code, output, error = call("train", *words, "--seeds", "7,8", "--json")
    assert code == 0, error
    told = json.loads(output.splitlines()[-1])["runs"]
    assert [(Path(each["run"]).name, each["seed"], each["steps"]) for each in told] == [
        ("seed7", 7, 80),
        ("seed8", 8, 80),
    ]
    assert "seed 8: " in error
    code, _, error = call("train", *words, "--seeds", "8,9")
    assert code == 2
    assert "seed8 already holds a run" in error
    assert not (tmp_path / "seed9").exists()
    code, _, error = call("train", *words, "--out", str(tmp_path / "seed7"), "--seeds", "8,9")
    assert code == 2
    assert "seed7 already holds a run" in error, "runs do not lie in one another"
    both = [word for seed in (7, 8) for word in ("--resume", str(tmp_path / f"seed{seed}"))]
    code, output, error = call("train", *both, "--steps", "120", "--json")
    assert code == 0, error
    assert [each["resumed_at"] for each in json.loads(output.splitlines()[-1])["runs"]] == [80, 80]
    assert f"resuming {tmp_path / 'seed8'} at 80 of 120 steps" in error


@pytest.mark.usefixtures("without_pictures")
def test_each_seed_may_have_a_directory_of_its_own(call: Call, tmp_path: Path) -> None:
    words = ["mappo", "--env", "coordsum/3x10-30", "--steps", "40"]
    for setting in ("environments=4", "rollout_length=10", "evaluation_episodes=2"):
        words += ["--set", f"run.{setting}"]
    words += ["--seeds", "7,8"]
    outs = [word for name in "ab" for word in ("--out", str(tmp_path / name))]
    code, _, error = call("train", *words, *outs)
    assert code == 0, error
    assert [RunConfig.read(tmp_path / name).run["seed"] for name in "ab"] == [7, 8]
    code, _, error = call("train", *words, *outs, "--out", str(tmp_path / "c"))
    assert (code, "--out: got 3 directories, expected one, or one for each of the 2 seeds" in error) == (2, True)
    code, _, error = call("train", *words[:-2], *outs)
    assert (code, "--out: got 2 directories, expected one" in error) == (2, True)


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        (("--seeds", "1,1"), "--seeds: got '1,1', expected seeds that differ"),
        (("--seeds", "1,x"), "--seeds: got '1,x', expected seeds that differ"),
        (("--seeds", "1,2", "--seed", "1"), "--seeds: got --seed as well"),
    ],
)
def test_wrong_seeds_are_refused(seeds: tuple[str, ...], told: str, call: Call, tmp_path: Path) -> None:
    code, _, error = call("train", "mappo", "--env", "coordsum/3x10-30", "--out", str(tmp_path / "run"), *seeds)
    assert code == 2
    assert told in error
