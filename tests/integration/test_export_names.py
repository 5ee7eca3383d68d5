"""Agents' names are theirs, file names are ours: any printable name trains, is exported, served and played."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.verify import verify_bundle
from hmarl.sdk.clients.endpoints import load_endpoints
from hmarl.sdk.commands._common import parse_settings
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.trainer.export import export
from training_runs import tiny_config, train

TEAM = "pettingzoo/named_teams:make"
NAMES = ["a,b=c", "../up", "[red]агент[/]: 2 $x", "Up", "up"]
RUN = "[bold]my team: $x$"
FILES = ["0-a_b_c", "1-up", "2-red_2_x", "Up", "4-up"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named") / RUN
    config = tiny_config("happo", TEAM, None, None, {"workers": 0, "names": NAMES})
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def bundle_path(run: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        return export.export_run(Path(), run.parent / "bundle").path


def test_graphs_and_samples_have_names_of_our_own(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    assert list(bundle.agent_ids) == NAMES
    assert [agent.file for agent in bundle.manifest.agents] == [f"agents/{stem}.onnx" for stem in FILES]
    for stem in FILES:
        assert {f"parity/{stem}.observation.npy", f"parity/{stem}.expected.action.npy"} <= bundle.manifest.files.keys()
    lowered = [name.casefold() for name in bundle.manifest.files]
    assert len(set(lowered)) == len(lowered)
    reports = verify_bundle(bundle)
    assert [(report.agent, report.parity_samples, report.problems) for report in reports] == [
        (name, 64, []) for name in NAMES
    ]
    graph = onnx.load_from_string(bundle.read(bundle.manifest.agents[0].file))
    assert graph.ir_version == 8


@contextlib.contextmanager
def fleet(bundle: Path, out: Path, agents: str) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(bundle), "--out", str(out)]
    command += ["--agents", agents, "--socket-dir", str(out.parent / "s")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                assert process.poll() is None, "the fleet has ended"
                if out.exists():
                    break
                time.sleep(0.1)
            yield load_endpoints(out)
        finally:
            process.terminate()
            process.wait(30)


def test_a_fleet_serves_them_by_name(bundle_path: Path, tmp_path: Path) -> None:
    """Commas and equals signs in names: an entry of --agents with a comma stands in quotes."""
    environment = make(TEAM, 2, workers=0, names=NAMES)
    bundle = load_bundle(bundle_path)
    listed = '"a,b=c", ../up,[red]агент[/]: 2 $x,Up,up'
    with fleet(bundle_path, tmp_path / "endpoints.json", listed) as endpoints:
        assert list(endpoints) == NAMES
        assert list(json.loads((tmp_path / "endpoints.json").read_text(encoding="utf-8"))["agents"]) == NAMES
        assert all(address.startswith("unix:") for address in endpoints.values())
        assert len(list((tmp_path / "s").iterdir())) == len(NAMES)
        teams = (FleetTeam(endpoints, environment.spec), BundleTeam(bundle, environment.spec))
        served, local = (evaluate(environment, team, 2, seed=0, record=True) for team in teams)
        teams[0].close()
    assert served.actions is not None
    assert local.actions is not None
    for ours, theirs in zip(served.actions, local.actions, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    environment.close()


def test_what_is_written_holds_names_as_they_are(run: Path, bundle_path: Path) -> None:
    card = load_bundle(bundle_path).read("README.md").decode()
    assert f"# {RUN}\n" in card
    command = next(line for line in card.splitlines() if line.startswith("hmarl-train "))
    given = [word for word in shlex.split(command) if word.startswith("env.")]
    assert parse_settings(given)["env"] == {"workers": 0, "names": NAMES}
    events = b"".join(path.read_bytes() for path in (run / "tensorboard").iterdir())
    assert "agent_kl/[red]агент[/]: 2 $x".encode() in events
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {f"agent_kl/{name}" for name in NAMES} <= rows[-1].keys()


@pytest.mark.parametrize("name", ["", "two\nlines", "bell\x07", "x" * 257, "\u202eright to left"])
def test_names_that_cannot_be_shown_are_refused_before_training(name: str, tmp_path: Path) -> None:
    config = tiny_config("happo", TEAM, None, None, {"workers": 0, "names": ["a", name]})
    with pytest.raises(UsageError, match=r"agents\[1\].id: got '.*expected 1 to 256 printable characters"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["", "two\nlines"])
def test_a_bundles_name_that_cannot_be_shown_is_refused_before_any_work(name: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--name: got .* expected 1 to 256 printable characters, e.g. --name"):
        export.export_run(run, tmp_path / "bundle", name=name)
