"""hmarl-eval as users run it: a bundle in process, a fleet over gRPC, results on the disk, errors with exit codes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.command_line import run
from hmarl.sdk import Bundle, BundleTeam, FleetTeam, UsageError, evaluate, load_endpoints, make_environment
from hmarl.sdk.commands.evaluate import evaluate_command
from toy_bundle import write_toy_bundle
from training_runs import tiny_config, train

Call = Callable[..., tuple[int, str, str]]
AGENTS = ("agent_0", "agent_1", "agent_2")
ENVIRONMENT = {
    "name": "mpe/simple_spread",
    "arguments": {"max_cycles": 8},
    "team_reward": "sum",
    "control_period_s": 0.1,
}


@pytest.fixture(scope="module")
def spread_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("spread") / "bundle"
    return write_toy_bundle(path, agents=AGENTS, observation_size=18, environment=ENVIRONMENT)


@pytest.fixture(scope="module")
def endpoints(spread_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("fleet") / "endpoints.json"
    with ExitStack() as stack:
        processes = {agent: stack.enter_context(AgentProcess(spread_bundle.path, agent)) for agent in AGENTS}
        path.write_text(json.dumps({"agents": {agent: process.address for agent, process in processes.items()}}))
        yield path


def hmarl_eval(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hmarl.sdk.commands.evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def call_eval(capsys: pytest.CaptureFixture[str]) -> Call:
    """The same in this process: (*arguments) -> exit code, stdout, stderr, the latter in one line."""

    def run_here(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(evaluate_command, [*map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, " ".join(output.err.split())

    return run_here


def test_a_bundle_is_evaluated_and_everything_is_written(spread_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = hmarl_eval("--bundle", spread_bundle.path, "--episodes", 5, "--seed", 3, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["environment"] == "mpe/simple_spread"
    assert figures["episodes"] == 5
    assert figures["length_mean"] == 8.0  # the bundle's arguments are the environment's defaults
    assert figures["return_ci95"][0] <= figures["return_iqm"] <= figures["return_ci95"][1]
    assert {"return_mean", "return_median", "success_rate", "latency_p50_us", "latency_p99_us"} <= figures.keys()
    names = ["episode.gif", "episodes.csv", "evaluation.json", "report.html"]
    assert sorted(path.name for path in out.iterdir()) == names

    rows = list(csv.DictReader((out / "episodes.csv").read_text().splitlines()))
    returns = [float(row["return"]) for row in rows]
    assert np.mean(returns) == pytest.approx(figures["return_mean"])
    own = [sum(float(row[f"return_{agent}"]) for agent in AGENTS) for row in rows]
    assert own == pytest.approx(returns, rel=1e-5)
    document = json.loads((out / "evaluation.json").read_text())
    (runs,) = document["mpe"]["simple_spread"].values()
    assert runs["seed_3"]["absolute_metrics"]["return"] == returns

    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "<h3>Instructions over time</h3>" in page  # of HCPO's conductor
    assert page.count("data:image/gif;base64,") == 1
    assert "http" not in page  # self-contained
    assert f"hmarl-eval --bundle {spread_bundle.path} --episodes 5 --seed 3" in page


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sample", [False, True])
def test_a_fleet_plays_the_same_actions_as_its_bundle(
    spread_bundle: Bundle, endpoints: Path, stream: bool, sample: bool
) -> None:
    environment = make_environment("mpe/simple_spread", batch_size=3, max_cycles=8)
    local = BundleTeam(spread_bundle, environment.spec, sample=sample)
    expected = evaluate(environment, local, 5, seed=3, record=True)
    fleet = FleetTeam(endpoints, environment.spec, sample=sample, stream=stream)
    try:
        served = evaluate(environment, fleet, 5, seed=3, record=True)
        assert all(client.statistics.fallbacks == 0 for clients in fleet.clients.values() for client in clients)
    finally:
        fleet.close()
    assert served.actions is not None
    assert expected.actions is not None
    np.testing.assert_array_equal(served.actions[0], expected.actions[0])
    np.testing.assert_array_equal(served.returns, expected.returns)
    assert served.latencies_s.size == 5 * 8 * len(AGENTS)
    assert len(np.unique(served.actions[0])) > 1


def test_a_team_of_two_bundles_is_refused(endpoints: Path, tmp_path: Path) -> None:
    other = write_toy_bundle(
        tmp_path / "b", agents=AGENTS, observation_size=18, environment={**ENVIRONMENT, "arguments": {"max_cycles": 9}}
    )
    spec = make_environment("mpe/simple_spread", batch_size=1, max_cycles=8).spec
    with AgentProcess(other.path, "agent_1") as stranger:
        addresses = {**load_endpoints(endpoints), "agent_1": stranger.address}
        with pytest.raises(UsageError, match=rf"agent 'agent_1' at .*: got bundle {other.sha256}"):
            FleetTeam(addresses, spec)


def test_the_command_evaluates_a_fleet_and_repeats_itself(endpoints: Path, tmp_path: Path) -> None:
    results = [
        json.loads(hmarl_eval("--endpoints", endpoints, "--episodes", 3, "--seed", 1, "--sample", "--json").stdout)
        for _ in range(2)
    ]
    assert results[0]["return_mean"] == results[1]["return_mean"]
    assert results[0]["latency_of"] == "one agent's act over gRPC"
    assert results[0]["written"] == []
    assert list(tmp_path.iterdir()) == []


def test_arguments_override_the_bundles(spread_bundle: Bundle) -> None:
    done = hmarl_eval("--bundle", spread_bundle.path, "--episodes", 2, "--set", "env.max_cycles=4", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["length_mean"] == 4.0


def test_without_the_eval_extra_the_figures_come_and_the_extra_is_named(spread_bundle: Bundle, tmp_path: Path) -> None:
    # -S without site-packages would lose NumPy too; blocking the imports is what an absent extra looks like.
    blocked = "import importlib.util as u, sys; real = u.find_spec\n"
    blocked += "u.find_spec = lambda name, *rest: None if name in ('matplotlib', 'rliable') else real(name, *rest)\n"
    blocked += "from hmarl.sdk.commands.evaluate import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", blocked, "--bundle", spread_bundle.path, "--episodes", "2", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "no report and video without matplotlib, rliable: pip install 'hmarl[eval]'" in " ".join(done.stdout.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes.csv", "evaluation.json"]


def test_mistakes_are_told_with_their_exit_codes(spread_bundle: Bundle, call_eval: Call, tmp_path: Path) -> None:
    bundle = spread_bundle.path
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (tmp_path / "endpoints.json").write_text('{"agents": {"agent_0": 5}}')
    for arguments, code, message in [
        ([], 2, "expected exactly one of --bundle, --endpoints and --run"),
        (["--bundle", "a", "--run", "b"], 2, "got --bundle and --run"),
        (["--bundle", damaged], 3, "manifest.json' is missing"),
        (["--endpoints", tmp_path / "none.json"], 2, "No such file"),
        (["--endpoints", tmp_path / "endpoints.json"], 2, "agents.agent_0: got 5, expected an address"),
        (["--bundle", bundle, "--env", "mpe/simple_sprea"], 2, "did you mean 'simple_spread'"),
        (
            ["--bundle", bundle, "--env", "mpe/simple_reference"],
            2,
            "agent 'agent_0': observation size: got 18",
        ),
        (
            ["--bundle", bundle, "--set", "env.N=4"],
            2,
            "no agent 'agent_3', which the environment has",
        ),
        (["--bundle", bundle, "--episodes", 0], 2, "episodes"),
    ]:
        ended, _, error = call_eval(*arguments)
        assert ended == code, (arguments, error)
        assert message in error, (arguments, error)
        assert "Traceback" not in error


def test_a_team_without_one_of_the_agents_is_refused(toy_bundle: Bundle, endpoints: Path) -> None:
    spec = make_environment("mpe/simple_spread", N=4).spec
    with pytest.raises(UsageError, match=r"no agent 'agent_3', which the environment has \(there: agent_0, agent_1"):
        FleetTeam(endpoints, spec)
    with pytest.raises(UsageError, match=r"no agent 'agent_2'"):
        BundleTeam(toy_bundle, spec)
    assert set(load_endpoints(endpoints)) == set(AGENTS)


def test_endpoints_of_another_bundle_are_refused(endpoints: Path, tmp_path: Path) -> None:
    stale = tmp_path / "stale.json"
    stale.write_text(json.dumps({**json.loads(endpoints.read_text()), "bundle_sha256": "0" * 64}))
    done = hmarl_eval("--endpoints", stale, "--episodes", 1)
    assert done.returncode == 2, done.stderr
    assert f"expected {'0' * 64}, which the endpoints file names" in " ".join(done.stderr.split())


def test_a_run_whose_team_acts_as_one_is_evaluated_with_its_guider(call_eval: Call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny_config("mat", "mpe/simple_spread", {"embedding_size": 8}), folder)
    words = ("--run", folder, "--episodes", "3", "--seed", "1", "--json")
    done = hmarl_eval(*words)
    assert done.returncode == 0, done.stderr
    said = [json.loads(done.stdout.splitlines()[-1])["return_mean"]]
    for more in ((), ("--sample",)):
        code, output, error = call_eval(*words, "--variant", "guider", *more)
        assert code == 0, error
        said.append(json.loads(output.splitlines()[-1])["return_mean"])
    assert said[0] == said[1] != said[2]
    code, _, error = call_eval("--run", folder, "--variant", "local")
    assert (code, "got 'local', expected one of guider" in error) == (2, True)


@pytest.mark.parametrize(
    ("team", "option", "value", "expected"),
    [
        ("bundle", "variant", "local", "run"),
        ("bundle", "checkpoint", "last", "run"),
        ("bundle", "stream", None, "endpoints"),
        ("endpoints", "provider", "cuda", "bundle"),
        ("endpoints", "variant", "local", "run"),
        ("endpoints", "checkpoint", "4096", "run"),
    ],
)
def test_what_says_something_of_another_kind_of_team_is_refused(
    spread_bundle: Bundle, endpoints: Path, team: str, option: str, value: str | None, expected: str, call_eval: Call
) -> None:
    path = spread_bundle.path if team == "bundle" else endpoints
    code, _, error = call_eval(f"--{team}", path, f"--{option}", *([] if value is None else [value]), "--episodes", 1)
    assert code == 2
    assert f"--{option}: got it with --{team}, expected it with --{expected}" in error
