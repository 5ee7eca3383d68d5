"""hmarl-gap as users type it: tiny runs of four algorithms, changed weights, kill -9 and --resume, cards at export."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from command_lines import command, run_in_terminal, surroundings
from hmarl.runtime.bundle import load_bundle, to_plain, write_bundle
from hmarl.runtime.command_line import run
from hmarl.sdk.gap.document import Gap, read_gap
from hmarl.trainer.commands.gap import gap as gap_command
from hmarl.trainer.export.export import export_run
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.students.settings import DistillationSettings
from installed import ROOT
from processes import alive, children, wait_for
from right_or_wrong import STEPS, write_choosing_bundle
from toy_bundle import write_toy_bundle
from training_runs import tiny_config, train

SHIPPED = ROOT / "models" / "simple-spread-hcpo"
TASK = "right_or_wrong:make"
EPISODES = 4
QUICK = {"environments": 4, "rounds": 1, "evaluation_episodes": 4, "hidden_sizes": (8,), "memory_size": 8}
SMALL: dict[str, dict[str, Any]] = {
    "hcpo": {"conductor_sees": "state", "conductor_hidden_sizes": (8,), "instructions": 3, "distillation_epochs": 1},
    "himpo": {"embedding_size": 8, "epochs": 1, "minibatches": 1},
    "magpo": {"embedding_size": 8, "epochs": 1, "minibatches": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny runs with their bundles, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def made(algorithm: str) -> Path:
        directory = folder / algorithm
        if not directory.exists():
            train(tiny_config(algorithm, TASK, SMALL.get(algorithm)), directory)
            quick = validate(DistillationSettings, QUICK, "distillation") if algorithm == "himpo" else None
            export_run(directory, directory / "bundle", distillation=quick)
        return directory

    return made


def measured(*words: object) -> Gap:
    """By the command, in this process."""
    arguments = [*map(str, words)]
    out = Path(arguments[arguments.index("--out") + 1])
    assert run(gap_command, [*arguments, "--deadline-s", "30"]) == 0
    return read_gap(out / "gap.json")


@pytest.mark.parametrize(
    ("algorithm", "central", "actions"),
    [
        ("hcpo", "central conductor, in torch", "greedy"),
        ("magpo", "guider, in torch", "sampled"),
        pytest.param("himpo", "hierarchy, in torch", "greedy", marks=pytest.mark.slow),
        pytest.param("hamdpo", None, "sampled", marks=pytest.mark.slow),
    ],
)
def test_every_rung_of_a_tiny_run(
    runs: Callable[[str], Path], tmp_path: Path, algorithm: str, central: str | None, actions: str
) -> None:
    """What is deployed is what was trained: from torch to served nothing changes, down to each action."""
    words = ("--episodes", EPISODES, "--batch-size", 2, "--faults", "delay=1", "--actions", actions)
    gap = measured(runs(algorithm), *words, "--out", tmp_path)
    first = [] if central is None else ["central"]
    assert [rung.name for rung in gap.rungs] == [*first, "local", "onnx", "served", "served, delay=1"]
    assert central is None or gap.rungs[0].title == central
    assert (gap.algorithm, gap.actions, gap.steps, gap.environment) == (algorithm, actions, 160, TASK)
    *imitated, exported, served = gap.differences
    for each in (exported, served):
        assert (each.mean, each.verdict, each.same_actions) == (0.0, "none", EPISODES)
    assert gap.rung("local").returns == gap.rung("onnx").returns == gap.rung("served").returns
    if imitated and imitated[0].verdict == "lost":
        assert imitated[0].suspects[0].rule == "imitation"
    serving = gap.rung("served").serving
    assert serving is not None
    assert (serving.acts, serving.fallbacks) == (2 * STEPS * EPISODES, 0)
    page = (tmp_path / "gap.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert re.search(r"(src|href)=.http", page) is None, "something is fetched"


def test_weights_that_were_changed_are_seen_on_the_rung_of_onnx(runs: Callable[[str], Path], tmp_path: Path) -> None:
    """A policy whose weights are all zero makes the first choice, which is never right: it earns nothing."""
    directory = runs("hamdpo")
    bundle = load_bundle(directory / "bundle")
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    files = {name: _zeroed(content) if name.endswith(".onnx") else content for name, content in files.items()}
    plain = to_plain(bundle.manifest)
    del plain["files"]
    changed = write_bundle(tmp_path / "changed", plain, files)
    words = (directory, "--bundle", changed.path, "--episodes", EPISODES, "--faults", "none", "--actions", "greedy")
    gap = measured(*words, "--out", tmp_path / "out")
    assert gap.rung("onnx").returns == gap.rung("served").returns == [0.0] * EPISODES
    exported = gap.differences[0]
    assert exported.mean == -gap.rung("local").mean
    if exported.verdict == "lost":
        assert exported.suspects[0].rule == "export parity"


def _zeroed(content: bytes) -> bytes:
    """The graph with all float weights zero."""
    model = onnx.load_from_string(content)
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype == np.float32 and array.ndim:
            weight.CopyFrom(numpy_helper.from_array(np.zeros_like(array), weight.name))
    return bytes(model.SerializeToString())


def test_what_is_killed_goes_on_and_comes_to_the_same(tmp_path: Path) -> None:
    """kill -9 in the middle of the served rungs; the fleet ends with it, and no episode is played twice."""
    bundle = write_choosing_bundle(tmp_path / "bundle", {"left": 1}, trained="delay=1").path
    words = ["--bundle", bundle, "--env", TASK, "--episodes", 40, "--batch-size", 2, "--deadline-s", 30]
    words += ["--faults", "delay=1", "--faults", "loss=0.5"]
    line = command("hmarl-gap", *words, "--out", tmp_path / "broken")
    played = tmp_path / "broken" / "episodes" / "02-served-delay=1.jsonl"
    with subprocess.Popen(line, env=surroundings(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: played.exists() and played.read_bytes().count(b"\n") >= 2, "two waves under delay")
            os.kill(process.pid, signal.SIGSTOP)
            started = children(process.pid)
            again = subprocess.run([*line, "--resume"], env=surroundings(), capture_output=True, text=True, check=False)
        finally:
            process.kill()
    assert f"--out {tmp_path / 'broken'}: in use by process {process.pid}" in again.stderr
    wait_for(lambda: not any(map(alive, started)), "the end of the fleet")
    before = played.read_bytes()
    before = before[: before.rindex(b"\n") + 1]
    assert before.count(b"\n") < 20, "it was killed too late to tell"
    assert not (tmp_path / "broken" / "gap.json").exists()
    refused = subprocess.run(line, env=surroundings(), capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "which holds a measurement: --resume goes on with it" in refused.stderr
    subprocess.run([*line, "--resume"], env=surroundings(), check=True, capture_output=True)
    assert played.read_bytes().startswith(before)
    whole = measured(*words, "--out", tmp_path / "whole")
    assert (tmp_path / "broken" / "gap.json").read_bytes() == (tmp_path / "whole" / "gap.json").read_bytes()
    assert (whole.trained_faults, whole.checkpoint) == ("delay=1", None)


def test_the_card_of_a_later_export_has_the_figures_of_the_very_same_graphs(
    runs: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(runs("hamdpo"), directory)
    before = load_bundle(directory / "bundle")
    gap = measured(directory, "--episodes", 2, "--faults", "none", "--out", directory / "gap")
    assert gap.bundle_sha256 == load_bundle(directory / "bundle").sha256 == before.sha256, "it is as it was"
    again = export_run(directory, tmp_path / "again")
    card = again.read("README.md").decode()
    assert (directory / "gap" / "card.md").read_text().strip() in card
    assert again.sha256 != before.sha256
    assert {name: again.manifest.files[name] for name in gap.graphs} == gap.graphs
    other = export_run(directory, tmp_path / "other", str(80))
    assert "The price of deployment" not in other.read("README.md").decode()


def test_progress_fits_a_terminal_and_names_the_rung(tmp_path: Path) -> None:
    words = ("--bundle", SHIPPED, "--episodes", 8, "--batch-size", 4, "--faults", "agent_0:out=0", "--deadline-s", 30)
    code, lines = run_in_terminal(80, "hmarl-gap", *words, "--out", tmp_path / "out")
    assert code == 0, lines
    assert lines[0].startswith(f"hmarl-gap: {SHIPPED}, 8 episodes a rung")
    bars = [line.rstrip() for line in lines if "ETA" in line]
    assert {len(line) <= 80 for line in bars} == {True}
    assert any(line.startswith("served over gRPC") for line in bars)
    table = [line.rstrip() for line in lines if "│" in line]
    assert any("served, agent_0:out=0" in line for line in table)
    assert all(len(line) <= 80 for line in table)


def test_what_does_not_belong_together_is_told(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: object) -> str:
        assert run(gap_command, [*map(str, words), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err.splitlines()[-1].removeprefix("hmarl-gap: ")

    assert told(SHIPPED).startswith(
        f"RUN: got a bundle, {SHIPPED}, expected a run directory of hmarl-train: use --bundle"
    )
    stranger = write_choosing_bundle(tmp_path / "stranger").path
    assert told("--bundle", stranger).startswith(
        f"the team was trained in '{TASK}', which would be imported and called"
    )
    directory = runs("hamdpo")
    assert told(directory, "--bundle", runs("magpo") / "bundle").startswith(
        "--bundle: it was exported from a checkpoint of"
    )
    assert told(directory, "--bundle", stranger).startswith("--bundle: it was exported from checkpoint None, which")
    evil = {"name": "no_such_module:make", "team_reward": "sum"}
    elsewhere = write_toy_bundle(tmp_path / "elsewhere", plain=True, environment=evil).path
    assert told(directory, "--bundle", elsewhere).startswith("--bundle: it was exported from checkpoint None, which")
    assert told(directory, "--set", "env.faults.delay=1").startswith("--set: got env.faults, expected --faults")
    assert told(directory, "--faults", "delay=x").startswith("faults: delay: got 'x', expected steps from 0 to 100")
    assert told(directory, "--endpoints", tmp_path / "none.json", "--faults", "none").startswith("endpoints file")
    assert not (tmp_path / "out" / "gap.json").exists()


def test_the_last_line_of_json_has_means_and_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_choosing_bundle(tmp_path / "bundle").path
    words = ["--bundle", bundle, "--env", TASK, "--episodes", 2, "--faults", "delay=1", "--deadline-s", 30, "--json"]
    assert run(gap_command, [*map(str, words), "--out", str(tmp_path / "out")]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["rungs"]["served"] == {"mean": 2.0 * STEPS, "ci95": [2.0 * STEPS, 2.0 * STEPS]}
    (lost,) = document["lost"]
    assert (lost["to"], lost["mean"], lost["suspect"]) == (
        "served, delay=1",
        2.0 - 2.0 * STEPS,
        "trained without faults",
    )
    assert [Path(each).name for each in document["written"]] == ["gap.json", "card.md", "gap.html"]
