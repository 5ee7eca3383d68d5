"""hmarl-export distils local conductors once more: said on the screen, in card and manifest; the run stays as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from hmarl.runtime import command_line
from hmarl.runtime.bundle import load_bundle
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam
from hmarl.trainer.commands.export import export
from hmarl.trainer.export.policy_source import load_team
from training_runs import tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread", "without_pictures")
TASK = "coordsum/2x4-6"


def hashes(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def trained(folder: Path, algorithm: str = "hcpo", **settings: object) -> Path:
    """A conductor that is apart from its local ones, who hardly learn in training and fast afterwards."""
    known = {"conductor_hidden_sizes": [8], "instructions": 3, "distillation_learning_rate": 0.02, **settings}
    train(tiny_config(algorithm, TASK, known, {"evaluation_episodes": 8}), folder)
    return folder


def exported(run: Path, target: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict, str]:
    words = [str(run), "--out", str(target), "--json", *options]
    assert command_line.run(export, words) == 0
    streams = capsys.readouterr()
    return json.loads(streams.out.splitlines()[-1]), streams.err


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("hcpo", {"local_conductors_remember": True}),
        pytest.param("guided-hcpo", {"embedding_size": 8, "epochs": 1}, marks=pytest.mark.slow),
    ],
)
def test_it_is_done_said_and_repeatable(
    algorithm: str, settings: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", algorithm, **settings)
    before = hashes(run)
    told, screen = exported(run, tmp_path / "one", capsys)
    assert hashes(run) == before
    bundle = load_bundle(tmp_path / "one")
    again = bundle.manifest.training["redistillation"]
    assert told["redistillation"] == again
    assert again["after"]["kl"] <= again["before"]["kl"]
    assert "distilled once more" in screen
    card = (tmp_path / "one" / "README.md").read_text()
    for row in (again["before"], again["after"]):
        figures = f"{row['kl']:.4f} | {row['agreement']:.1%} | {row['return_mean']:.2f} | {row['choice']} |"
        assert figures in card
    environment = make(TASK, 8)
    played = evaluate(environment, BundleTeam(bundle, environment.spec), 8, 1_000_019).returns.mean()
    assert played == pytest.approx(again["after" if again["kept"] else "before"]["return_mean"])
    exported(run, tmp_path / "two", capsys)
    graphs = [{path.name: path.read_bytes() for path in (tmp_path / at / "agents").iterdir()} for at in ("one", "two")]
    assert graphs[0] == graphs[1]


def test_left_out_the_bundle_plays_as_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "run")
    told, screen = exported(run, tmp_path / "bundle", capsys, "--no-redistil")
    assert "redistillation" not in told
    assert "once more" not in screen
    bundle, environment = load_bundle(tmp_path / "bundle"), make(TASK, 8)
    make_team, _, _ = load_team(run, instruction_choice="common")
    of_run = evaluate(environment, make_team(environment.spec), 8, 1).returns
    deployed = BundleTeam(bundle, environment.spec, instruction_choice="common")
    np.testing.assert_array_equal(evaluate(environment, deployed, 8, 1).returns, of_run)


def test_copies_of_a_conductor_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, _ = exported(trained(tmp_path / "run", conductor_sees="common"), tmp_path / "bundle", capsys)
    assert "redistillation" not in told
