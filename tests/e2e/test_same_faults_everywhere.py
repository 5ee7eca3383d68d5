"""hmarl-eval with faults on purpose: a run, its bundle and its fleet meet the same ones, and do the same in them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import load_bundle
from hmarl.sdk import BundleTeam, FleetTeam, UsageError, evaluate, make_environment
from hmarl.sdk.commands._common import run as run_program
from hmarl.sdk.commands.evaluate import evaluate_command
from hmarl.trainer.export.export import export_run
from hmarl.trainer.export.policy_source import load_team
from hmarl.trainer.runs.training import Training
from training_runs import tiny_config, train

Call = Callable[..., tuple[int, str, str]]
ENVIRONMENT, ARGUMENTS = "mpe/simple_spread", {"N": 2, "max_cycles": 15}
TRAINED_WITH = {"faults": "delay=1", "faults.agent_1:loss": 0.1}
FAULTS = ("delay=0..2,loss=0.2,noise=0.05,action_loss=0.1", "agent_1:restart=0.1:2,fallback=hold:1:noop:3")
EPISODES = 6


@dataclass(frozen=True)
class Team:
    """One team in its three forms."""

    run: Path
    bundle: Path
    endpoints: Path


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    run, bundle, endpoints = folder / "run", folder / "bundle", folder / "endpoints.json"
    config = tiny_config("happo", ENVIRONMENT, {"recurrent": True}, None, {**ARGUMENTS, **TRAINED_WITH})
    train(config, run)
    export_run(run, bundle, checkpoint="last")
    with ExitStack() as stack:
        agents = {each: stack.enter_context(AgentProcess(bundle, each)) for each in ("agent_0", "agent_1")}
        endpoints.write_text(json.dumps({"agents": {name: agent.address for name, agent in agents.items()}}))
        yield Team(run, bundle, endpoints)


@pytest.fixture
def hmarl_eval(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command, in this process: loading it takes longer than what is played here."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run_program(evaluate_command, [str(word) for word in words])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def played(hmarl_eval: Call, out: Path, *words: object) -> tuple[dict[str, object], list[dict[str, str]]]:
    """What ``hmarl-eval`` says, and its episodes."""
    common = ("--episodes", EPISODES, "--seed", 4, "--no-video", "--no-report", "--json", "--out", out)
    code, output, said = hmarl_eval(*words, *common)
    assert code == 0, said
    return json.loads(output.splitlines()[-1]), list(csv.DictReader((out / "episodes.csv").read_text().splitlines()))


def test_a_run_its_bundle_and_its_fleet_do_the_same_under_the_same_faults(
    team: Team, hmarl_eval: Call, tmp_path: Path
) -> None:
    faults = [word for each in FAULTS for word in ("--faults", each)]
    forms = {
        "bundle": ("--bundle", team.bundle, "--batch-size", 6),
        "run": ("--run", team.run, "--checkpoint", "last", "--batch-size", 4),
        "endpoints": ("--endpoints", team.endpoints, "--batch-size", 1),
    }
    results = {name: played(hmarl_eval, tmp_path / name, *words, *faults) for name, words in forms.items()}
    figures, episodes = results["bundle"]
    assert figures["faults"] == ";".join((FAULTS[0], f"agent_1:{FAULTS[1].removeprefix('agent_1:')}"))
    for name in ("run", "endpoints"):
        assert results[name][1] == episodes, name
        assert results[name][0]["faults"] == figures["faults"]
    document = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(document["mpe"]) == [f"simple_spread [{figures['faults']}]"]
    without, other = played(hmarl_eval, tmp_path / "none", *forms["bundle"], "--faults", "none")
    assert without["faults"] is None
    assert [row["return"] for row in other] != [row["return"] for row in episodes]


def test_a_team_is_played_with_the_faults_that_it_was_trained_with_unless_told_otherwise(
    team: Team, hmarl_eval: Call, tmp_path: Path
) -> None:
    def faults(*words: object) -> object:
        return played(hmarl_eval, tmp_path / "out", "--bundle", team.bundle, *words)[0]["faults"]

    assert faults() == "delay=1;agent_1:loss=0.1"
    assert faults("--set", "env.faults.delay=2") == "delay=2;agent_1:loss=0.1"
    assert faults("--set", "env.faults=noise=0.5") == "noise=0.5;agent_1:loss=0.1"
    assert faults("--faults", "out=3") == "out=3"


def test_the_table_and_the_page_say_what_went_wrong(team: Team, hmarl_eval: Call, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    words = ("--bundle", team.bundle, "--episodes", 3, "--no-video", "--out", tmp_path / "out", "--faults", "delay=2")
    code, output, said = hmarl_eval(*words)
    assert code == 0, said
    assert "with the faults delay=2" in said
    assert any("faults" in line and "delay=2" in line for line in output.splitlines())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "faults on purpose: delay=2" in page
    assert "--faults delay=2" in page


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ("dealy=2", "faults: unknown fault 'dealy'; did you mean 'delay'?"),
        ("robot:delay=2", "faults: unknown agent 'robot' (known: agent_0, agent_1)"),
        ("loss=2", "faults: loss: got '2', expected a probability from 0 to 1"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(team: Team, hmarl_eval: Call, faults: str, said: str) -> None:
    code, output, errors = hmarl_eval("--bundle", team.bundle, "--faults", faults)
    assert (code, output) == (2, "")
    assert said in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1


def test_who_is_restarted_has_forgotten_what_it_remembered(team: Team) -> None:
    """Out for a while, with and without its memory: the same up to its return, and then no longer."""
    bundle = load_bundle(team.bundle)
    actions = {}
    for fault in ("out", "restart"):
        environment = make_environment(ENVIRONMENT, 4, **ARGUMENTS, faults=f"agent_1:{fault}=6..6")
        make_team, *_ = load_team(team.run, checkpoint="last", sample=True)
        forms = {
            "bundle": BundleTeam(bundle, environment.spec, sample=True),
            "run": make_team(environment.spec),
            "fleet": FleetTeam(team.endpoints, environment.spec, sample=True),
        }
        for name, form in forms.items():
            blocks = evaluate(environment, form, 24, seed=3, record=True).actions
            form.close()
            assert blocks is not None
            actions[name, fault] = blocks[0]
    for name in ("run", "fleet"):
        for fault in ("out", "restart"):
            np.testing.assert_array_equal(actions[name, fault], actions["bundle", fault])
    out, restart = actions["bundle", "out"], actions["bundle", "restart"]
    assert (out[:, :7] == restart[:, :7]).all()
    assert (out[:, 7:, 1] != restart[:, 7:, 1]).any()


def test_agents_with_a_memory_are_not_trained_to_lose_it() -> None:
    config = tiny_config("happo", ENVIRONMENT, {"recurrent": True}, None, {"faults": "restart=0.1:2"})
    with pytest.raises(UsageError, match=r"env\.faults: got restart, expected none while agents with a memory"):
        Training(config)
    Training(tiny_config("happo", ENVIRONMENT, None, None, {"faults": "restart=0.1:2"})).close()
