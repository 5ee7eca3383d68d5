"""What the first commit of 0.1 wrote is read by this version: its bundle acts as it did, its runs are played and go on.

``tests/vectors/0.1`` was written by the first commit that could train and export (b712492):

    hmarl-train ALGORITHM --env mpe/simple_spread --steps 200 --seed 1 --set run.environments=4
        --set run.rollout_length=25 --set run.evaluation_episodes=4 --set run.threads=1
        --set algorithm.hidden_sizes=[8] --set algorithm.critic_hidden_sizes=[8] --out ALGORITHM
        (and --set algorithm.conductor_hidden_sizes=[8] for hcpo)
    hmarl-export hcpo --out bundle

and ``actions.json`` what that commit's own ``LocalAgent`` did with the bundle.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from command_lines import run_in_pipes
from hmarl.runtime.bundle import BundleError, load_bundle
from hmarl.sdk import LocalAgent
from hmarl.trainer.export.export import export_run
from hmarl.trainer.records.checkpoint import read_checkpoint
from hmarl.trainer.records.problems import CheckpointError
from hmarl.trainer.runs.loaded_run import load_run
from hmarl.trainer.runs.run import Run
from installed import ROOT
from raw_bundle import hash_line
from training_runs import tiny_config, train

OLD = ROOT / "tests" / "vectors" / "0.1"
ALGORITHMS = ("hcpo", "happo")

pytestmark = pytest.mark.usefixtures("single_thread")


def test_the_old_bundle_verifies_and_does_what_it_did() -> None:
    bundle = load_bundle(OLD / "bundle")
    assert bundle.manifest.created_by == "hmarl 0.1.0"
    code, output, error = run_in_pipes("hmarl-verify", OLD / "bundle")
    assert code == 0, error
    assert output.count(": ok; ") == 3
    recorded = json.loads((OLD / "actions.json").read_text())
    for agent_id, episodes in recorded.items():
        for mode, episode in episodes.items():
            with LocalAgent(bundle, agent_id) as agent:
                agent.reset(seed=7, sample=mode == "sampled")
                done = [int(agent.act(np.array(each, np.float32)).action) for each in episode["observations"]]
            assert done == episode["actions"], (agent_id, mode)


@pytest.fixture(params=ALGORITHMS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / request.param, tmp_path / request.param))


def test_an_old_run_is_read_and_exported(run: Path, tmp_path: Path) -> None:
    assert load_run(run, "last").checkpoint.counters.steps == 200
    bundle = export_run(run, tmp_path / "bundle", redistilling=False)
    assert bundle.manifest.algorithm == run.name


def test_an_old_run_goes_on(run: Path) -> None:
    resumed = Run.resume(run, steps=400)
    assert resumed.train()["steps"] == 400
    resumed.close()


def test_what_is_a_picture_now_stays_the_vector_that_an_old_run_has_learnt_from(tmp_path: Path) -> None:
    """Before there were pictures, no setting said how they are seen."""
    run = tmp_path / "run"
    train(tiny_config("mappo", "pettingzoo/pixel_toys:Lit", {}, {}, {"workers": 0, "images": False}), run)
    config = json.loads((run / "config.json").read_text())
    del config["environment_arguments"]["images"]
    for name in ("image_encoder", "image_downsample"):
        del config["algorithm_settings"][name]
    (run / "config.json").write_text(json.dumps(config))
    assert load_run(run, "last").spec.images == ()
    resumed = Run.resume(run, steps=200)
    assert resumed.train()["steps"] == 200
    resumed.close()


def test_a_bundle_of_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(OLD / "bundle", tmp_path / "bundle"))
    manifest = (bundle / "manifest.json").read_text().replace('"schema_version": 1', '"schema_version": 0')
    (bundle / "manifest.json").write_text(manifest)
    (bundle / "manifest.sha256").write_bytes(hash_line(manifest.encode()))
    with pytest.raises(
        BundleError, match=r"schema_version: got 0.*another version of hmarl exported it: export its run"
    ):
        load_bundle(bundle)


def test_a_checkpoint_of_another_format_is_refused_with_what_to_do(run: Path) -> None:
    (path,) = (run / "checkpoints").glob("step-*200.json")
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(
        CheckpointError, match="got format 0, expected format 1: another version of hmarl wrote it; go on"
    ):
        read_checkpoint(path.with_suffix(".safetensors"))
