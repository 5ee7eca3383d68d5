"""Instructions chosen by argmax, in private or in common: compared where agents must agree, in torch and deployed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hmarl.runtime.choices import InstructionChoice
from hmarl.runtime.session import Policy
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.export.export import export_run
from hmarl.trainer.export.gap_teams import torch_rungs
from hmarl.trainer.export.instruction_choice import best_choice
from hmarl.trainer.export.policy_source import load_team
from training_runs import new_hcpo, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread", "without_pictures")


def obedient() -> Hcpo:
    """Local conductors to whom all four instructions are alike, and actors that do instruction k as action k."""
    algorithm, _, _ = new_hcpo("mpe/simple_spread")
    assert algorithm.conductor.local is not None
    for local in algorithm.conductor.local.policies:
        local.theta.zero_()
    for policy in algorithm.policies:
        policy.theta.zero_()
        for member in range(policy.members):
            weights = policy.network.named(policy.row(member)[: policy.network.size])
            weights["0.weight"][:4, -4:] = torch.eye(4)
            weights["1.weight"][:4, :4] = 50.0 * torch.eye(4)
    return algorithm


def actions(choice: InstructionChoice | None, sample: bool = False, steps: int = 40) -> np.ndarray:
    """[steps, 8 episodes, 3 agents] what obedient agents do."""
    environment = make("mpe/simple_spread", 8)
    team = LocalTeam(obedient(), sample, choice)
    seeds = np.arange(8, dtype=np.int64)
    team.reset(seeds)
    observation = environment.reset(seeds)
    return np.stack([team.act(observation, np.ones(8, dtype=np.bool_))[0] for _ in range(steps)])


def test_in_common_agents_agree_and_vary_privately_they_disagree_by_argmax_they_never_vary() -> None:
    """By chance three agents agree on one of four instructions in 1 of 16 steps; 0.06 ± 0.04 at five deviations."""
    agreed = {c: (a := actions(c)).max(-1) == a.min(-1) for c in ("argmax", "sample", "common")}
    assert agreed["common"].all()
    assert agreed["sample"].mean() == pytest.approx(1 / 16, abs=0.07)
    assert len(np.unique(actions("common"))) == len(np.unique(actions("sample"))) == 4
    assert (actions("argmax") == 0).all()


def test_without_a_choice_instructions_are_drawn_in_common_when_actions_are() -> None:
    np.testing.assert_array_equal(actions(None), actions("argmax"))
    np.testing.assert_array_equal(actions(None, sample=True), actions("common", sample=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice") / "run"
    train(tiny_config("hcpo", "mpe/simple_spread", {"conductor_hidden_sizes": [8], "instructions": 4}), folder)
    return folder


def test_deployed_agents_choose_as_the_trainers_do(run: Path, tmp_path: Path) -> None:
    bundle = export_run(run, tmp_path / "bundle", redistilling=False)
    environment = make("mpe/simple_spread", 4)
    returns = {}
    for choice in ("argmax", "sample", "common"):
        make_team, _, _ = load_team(run, instruction_choice=choice)
        returns[choice] = evaluate(environment, make_team(environment.spec), 4, 1).returns
        deployed = BundleTeam(bundle, environment.spec, instruction_choice=choice)
        np.testing.assert_allclose(evaluate(environment, deployed, 4, 1).returns, returns[choice], rtol=1e-5)
    assert not np.array_equal(returns["argmax"], returns["common"])
    assert not np.array_equal(returns["sample"], returns["common"])


def test_the_card_says_what_the_agents_earn_as_they_choose(run: Path, tmp_path: Path) -> None:
    bundle = export_run(run, tmp_path / "bundle", redistilling=False)
    card = (tmp_path / "bundle" / "README.md").read_text()
    decided = bundle.manifest.training["instruction_choice"]
    assert f"value: {decided['mean_returns'][decided['chosen']]:.2f}\n" in card
    assert "`local` was played by `argmax`" in card


def test_the_central_rung_is_the_run_s_own_central_team(run: Path, tmp_path: Path) -> None:
    """Drawn actions, drawn instructions."""
    bundle = export_run(run, tmp_path / "bundle", redistilling=False)
    environment = make("mpe/simple_spread", 4)
    for sample in (False, True):
        central, local = torch_rungs(run, bundle, sample)
        assert (central.name, local.name) == ("central", "local")
        make_team, _, _ = load_team(run, variant="central", sample=sample)
        expected = evaluate(environment, make_team(environment.spec), 4, 1).returns
        np.testing.assert_array_equal(
            evaluate(environment, central.make_team(environment.spec), 4, 1).returns, expected
        )


def test_a_choice_that_does_not_apply_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 'common', but the variant central has no instructions to choose"):
        load_team(run, variant="central", instruction_choice="common")
    train(tiny_config("hatrpo", "mpe/simple_spread"), tmp_path / "flat")
    with pytest.raises(UsageError, match="got 'sample', but hatrpo has no instructions to choose"):
        load_team(tmp_path / "flat", instruction_choice="sample")


def test_a_common_knowledge_conductor_is_drawn_from_in_common_unless_told_otherwise(tmp_path: Path) -> None:
    settings = {"conductor_hidden_sizes": [8], "instructions": 4, "conductor_sees": "common", "instruction_interval": 2}
    train(tiny_config("hcpo", "coordsum/2x4-6", settings), tmp_path / "run")
    bundle = export_run(tmp_path / "run", tmp_path / "bundle")
    assert {agent.instruction_choice for agent in bundle.manifest.agents} == {"common"}
    assert "Every agent has a copy of the conductor" in (tmp_path / "bundle" / "README.md").read_text()
    environment = make("coordsum/2x4-6", 4)
    instructions, returns = {}, {}
    for choice in (None, "common", "argmax"):
        make_team, _, _ = load_team(tmp_path / "run", checkpoint="last", instruction_choice=choice)
        torch_team = make_team(environment.spec)
        deployed = BundleTeam(bundle, environment.spec, instruction_choice=choice)
        returns[choice] = evaluate(environment, torch_team, 4, 1).returns
        np.testing.assert_array_equal(evaluate(environment, deployed, 4, 1).returns, returns[choice])
        sessions = [Policy(bundle, agent).session() for agent in bundle.agent_ids]
        for session in sessions:
            session.reset(3, instruction_choice=choice)
        instructions[choice] = [
            [int(session.act(np.float32([0.5, step / 100])).diagnostics["instruction"]) for session in sessions]
            for step in range(30)
        ]
        assert all(first == second for first, second in instructions[choice]), "the copies have parted"
    assert instructions[None] == instructions["common"] != instructions["argmax"]
    np.testing.assert_array_equal(returns[None], returns["common"])


def test_the_default_is_the_choice_that_earns_most() -> None:
    """Of choices within the standard error of their difference the first: common, argmax, sample."""
    alike = np.array([1.0, 2.0, 3.0, 4.0])
    noisy = alike + np.array([2.0, -2.0, 1.0, 0.0])  # a quarter more, give or take 0.85
    assert best_choice({"common": alike, "argmax": alike, "sample": alike}) == "common"
    assert best_choice({"common": alike, "argmax": noisy, "sample": alike}) == "common"
    assert best_choice({"common": alike, "argmax": alike + 0.1, "sample": alike}) == "argmax"
    assert best_choice({"common": alike, "argmax": alike, "sample": alike + 0.1}) == "sample"
    assert best_choice({"common": alike + 1.0, "argmax": alike, "sample": alike}) == "common"
    assert best_choice({"common": alike[:1], "argmax": alike[:1] + 0.1, "sample": alike[:1]}) == "argmax"


def test_a_bundle_plays_by_the_choice_that_was_decided_at_export(run: Path, tmp_path: Path) -> None:
    bundle = export_run(run, tmp_path / "bundle")
    (chosen,) = {agent.instruction_choice for agent in bundle.manifest.agents}
    told = bundle.manifest.training["instruction_choice"]
    assert told["chosen"] == chosen
    assert set(told["mean_returns"]) == {"common", "argmax", "sample"}
    assert told["episodes"] == 2
    environment = make("mpe/simple_spread", 4)
    for choice, mean in told["mean_returns"].items():
        team = BundleTeam(bundle, environment.spec, instruction_choice=choice)
        assert evaluate(environment, team, 2, told["seed"]).returns.mean() == pytest.approx(mean, rel=1e-5)
    by_default = evaluate(environment, BundleTeam(bundle, environment.spec), 4, 1).returns
    by_choice = evaluate(environment, BundleTeam(bundle, environment.spec, instruction_choice=chosen), 4, 1).returns
    np.testing.assert_array_equal(by_default, by_choice)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert f"choose by `{chosen}`" in card
    assert all(f"| `{choice}` | {mean:.2f} |" in card for choice, mean in told["mean_returns"].items())
