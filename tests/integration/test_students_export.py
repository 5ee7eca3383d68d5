"""hmarl-export --distil: students in an ordinary bundle, served as torch acts; refusals; killed and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.runtime.bundle import Bundle, StudentsModel, load_bundle, to_plain
from hmarl.runtime.manifest import from_plain
from hmarl.runtime.verify import verify_bundle
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.environment import as_numpy
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation import episode_seeds, evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.export.export import export_run
from hmarl.trainer.export.policy_source import load_team
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.runs.loaded_run import load_run
from hmarl.trainer.students.dagger import REPORT_SEED, Distilled, distil_run
from hmarl.trainer.students.kept import KeptDistillation
from hmarl.trainer.students.settings import DistillationSettings
from installed import ROOT
from scripts_loaded import load_script
from training_runs import tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread", "without_pictures")
Call = Callable[..., tuple[int, str, str]]
GUIDED: dict[str, Any] = {"embedding_size": 8, "epochs": 2, "minibatches": 2}
CONDUCTED: dict[str, Any] = {"conductor_hidden_sizes": (8,), "instructions": 3}
SETTINGS: dict[str, Any] = {
    "environments": 8,
    "steps": 12,
    "rounds": 2,
    "epochs": 2,
    "chunk_length": 4,
    "hidden_sizes": [8],
    "memory_size": 6,
    "decision_sizes": [7],
    "evaluation_episodes": 6,
}
LEAVING = "toy_environments:leaving"


def words(settings: dict[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"distillation.{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAT in a team of unlike agents that leave; do not change it."""
    run = tmp_path_factory.mktemp("mat") / "run"
    train(tiny_config("mat", LEAVING, GUIDED), run)
    return run


@pytest.fixture
def run(mat: Path, tmp_path: Path) -> Path:
    """A copy of ``mat``."""
    return Path(shutil.copytree(mat, tmp_path / "run"))


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def distilled(run: Path, settings: dict[str, Any]) -> Distilled:
    """Without exporting them, which takes longer."""
    loaded = load_run(run, "last")
    checked = validate(DistillationSettings, settings, "distillation")
    return distil_run(run, loaded.algorithm, loaded.config, loaded.checkpoint, checked)


def served_as_torch_acts(run: Path, bundle: Bundle, settings: dict[str, Any], environment: str) -> None:
    """Whole episodes with the served students, and agent by agent with ``LocalAgent``, are torch's."""
    students = distilled(run, settings).students  # those that are there already
    vector = make(environment, 4)
    for sample in (False, True):
        teams = [BundleTeam(bundle, vector.spec, sample=sample), LocalTeam(students, sample)]
        served, torchs = (evaluate(vector, team, 4, seed=3, record=True) for team in teams)
        assert served.actions is not None
        assert torchs.actions is not None
        for ours, theirs in zip(served.actions, torchs.actions, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    one = make(environment, 1)
    seeds = episode_seeds(3, 1)
    observation, team = as_numpy(one.reset(seeds)), LocalTeam(students)
    team.reset(seeds)
    agents = [LocalAgent(bundle, agent_id) for agent_id in one.spec.agent_ids]
    for agent in agents:
        agent.reset(int(seeds[0]))
    for _ in range(5):
        actions = team.act(observation, np.ones(1, np.bool_))
        for g, group in enumerate(one.spec.groups):
            mask = observation.action_masks[g]
            for m, index in enumerate(group.agents):
                own_mask = None if mask is None else mask[0, m]
                action = agents[index].act(observation.observations[g][0, m], own_mask)
                np.testing.assert_allclose(action.action, actions[g][0, m], atol=1e-5)
        observation = as_numpy(one.step(actions).observation)
    for each in (vector, one):
        each.close()


def test_students_of_a_guider_are_an_ordinary_bundle(run: Path, call: Call, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    command = ["export", str(run), "--distil", "--out", str(target), "--checkpoint", "last", *words(SETTINGS), "--json"]
    code, output, said = call(*command)
    assert code == 0, said
    bundle, document = load_bundle(target), json.loads(output.splitlines()[-1])
    students = bundle.manifest.students
    assert students is not None
    assert document["students"] == to_plain(students)
    assert (students.teacher, students.rounds, students.steps, students.seed) == ("guider", 2, 192, REPORT_SEED)
    assert students.settings["hidden_sizes"] == [8]
    assert bundle.manifest.algorithm == "mat"
    assert bundle.manifest.evaluation["students"]["return_mean"] == students.students_return
    assert "guider" in bundle.manifest.evaluation
    assert "students of the guider" in said
    assert f"{students.gap:.2f}" in said
    assert not any(report.problems for report in verify_bundle(bundle))
    for agent in bundle.manifest.agents:
        assert [(state.input, state.shape) for state in agent.states] == [("memory", [6])]
        assert [noise.name for noise in agent.noises] == ["action_noise"]
    card = bundle.read("README.md").decode()
    assert "## Students" in card
    assert f"| gap | {students.gap:.2f}" in card
    assert f"      value: {students.students_return:.2f}" in card
    served_as_torch_acts(run, bundle, SETTINGS, LEAVING)
    vector = make(LEAVING, 6)
    make_team, *_ = load_team(run, variant="guider", checkpoint="last")
    expected = evaluate(vector, make_team(vector.spec), 6, REPORT_SEED).returns.mean()
    got = evaluate(vector, BundleTeam(bundle, vector.spec), 6, REPORT_SEED).returns.mean()
    assert students.teacher_return == pytest.approx(expected)
    assert students.students_return == pytest.approx(got, abs=1e-4)
    assert students.gap == pytest.approx(expected - got, abs=1e-4)


@pytest.mark.slow
def test_the_page_serves_students_as_they_were_reported_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn actions: the fleet's students, and those of the report, play the same episodes alike."""
    run, bundle = tmp_path / "run", tmp_path / "run" / "students-bundle"
    train(tiny_config("mat", LEAVING, {**GUIDED, "deterministic_evaluation": False}), run)
    export_run(run, bundle, "last", distillation=validate(DistillationSettings, SETTINGS, "distillation"))
    report = load_bundle(bundle).manifest.students
    assert report is not None
    assert report.sampled
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # as it is when the script runs
    script = load_script("students")
    monkeypatch.setattr(script, "EPISODES", SETTINGS["evaluation_episodes"])
    assert script.served(load_bundle(bundle), run).returns.mean() == pytest.approx(report.students_return)


def test_students_that_are_done_are_used_again(run: Path, call: Call, tmp_path: Path) -> None:
    report = distilled(run, SETTINGS).report
    target = tmp_path / "bundle"
    command = ["export", str(run), "--distil", "--out", str(target), "--checkpoint", "last", *words(SETTINGS), "--json"]
    code, output, said = call(*command)
    assert code == 0, said
    assert "rounds" not in said.split("students of")[0], "what is done must not be done again"
    assert json.loads(output.splitlines()[-1])["students"] == to_plain(report)


def test_students_replace_the_local_conductors(call: Call, tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "bundle"
    train(tiny_config("hcpo", "toy_environments:masked_discrete", CONDUCTED), run)
    distilled(run, {**SETTINGS, "rounds": 1})
    settings = {**SETTINGS, "share_parameters": True}
    code, _, said = call(
        "export",
        str(run),
        "--distil",
        "--out",
        str(target),
        "--checkpoint",
        "last",
        *words(settings),
        "--restart-students",
    )
    assert code == 0, said
    bundle = load_bundle(target)
    assert bundle.manifest.students is not None
    assert bundle.manifest.students.teacher == "central conductor"
    for agent in bundle.manifest.agents:
        assert [noise.name for noise in agent.noises] == ["action_noise"], "an instruction is left"
        assert [state.input for state in agent.states] == ["memory"]
    served_as_torch_acts(run, bundle, settings, "toy_environments:masked_discrete")


@pytest.mark.parametrize("told", ["team", "state"])
def test_students_that_are_told_more_are_reported_on_and_not_exported(
    told: str, run: Path, call: Call, tmp_path: Path
) -> None:
    target, settings = tmp_path / "bundle", {**SETTINGS, "told": told}
    local = distilled(run, SETTINGS).report
    command = ["export", str(run), "--distil", "--checkpoint", "last", *words(settings)]
    code, output, said = call(*command, "--json")
    assert code == 0, said
    informed = from_plain(StudentsModel, json.loads(output.splitlines()[-1])["students"])
    assert informed == distilled(run, settings).report
    assert (informed.teacher_return, informed.seed) == (local.teacher_return, local.seed)
    assert informed.kl != local.kl
    assert "students of the guider" in said
    assert "no bundle" in said
    assert not (run / "bundle").exists()
    code, _, said = call(*command, "--out", str(target))
    assert code == 2
    assert f"hmarl-export: --out: got {target}, expected nothing with distillation.told={told}" in said
    assert not target.exists()
    with pytest.raises(UsageError, match=rf"distillation.told: got {told}, expected nothing"):
        export_run(run, target, "last", distillation=validate(DistillationSettings, settings, "distillation"))
    assert distilled(run, SETTINGS).report == local, "the local students were lost"


def test_interchangeable_students_are_one_graph(call: Call, tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "bundle"
    alike = {"share_parameters": True, "agent_identity": False}
    train(tiny_config("sable", "toy_environments:masked_discrete", {**GUIDED, **alike}), run)
    code, _, said = call("export", str(run), "--distil", "--out", str(target), "--checkpoint", "last", *words(SETTINGS))
    assert code == 0, said
    bundle = load_bundle(target)
    assert {agent.file for agent in bundle.manifest.agents} == {"agents/chooser.onnx"}
    assert all(agent.interchangeable for agent in bundle.manifest.agents)
    served_as_torch_acts(run, bundle, SETTINGS, "toy_environments:masked_discrete")
    code, _, said = call(
        "export",
        str(run),
        "--distil",
        "--out",
        str(target),
        "--restart-students",
        "--set",
        "distillation.share_parameters=false",
    )
    assert code == 2
    assert "hmarl-export: distillation.share_parameters: got False, expected true or null" in said


def test_what_is_in_the_way_of_the_bundle_is_said_before_anything_is_distilled(run: Path, call: Call) -> None:
    before = files(run)
    code, _, said = call("export", str(run), "--distil", "--out", str(run / "config.json"), *words(SETTINGS))
    assert code == 2
    assert "exists and is not a bundle" in said
    assert files(run) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "hmarl-export: mat: acts for the whole team at once .* hmarl-export --distil"),
        (["--set", "distillation.rounds=3"], "hmarl-export: --set distillation.*: got it without --distil"),
        (["--restart-students"], "hmarl-export: --restart-students: got it without --distil"),
        (["--distil", "--set", "distillation.round=3"], "unknown setting 'distillation.round'; did you mean"),
        (["--distil", "--set", "distillation.rounds=0"], "distillation.rounds: got 0, expected a number of at least 1"),
        (["--distil", "--set", "algorithm.gamma=1"], "--set: unknown prefix 'algorithm'"),
    ],
)
def test_refusals_write_nothing(options: list[str], said: str, run: Path, call: Call, tmp_path: Path) -> None:
    before, target = files(run), tmp_path / "bundle"
    code, output, error = call("export", str(run), "--out", str(target), *options)
    assert (code, output) == (2, "")
    first, _, second = said.partition(" .* ")
    assert first in error
    assert second in error
    assert not target.exists()
    assert files(run) == before


def test_who_has_no_teacher_is_not_distilled(call: Call, tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "bundle"
    train(tiny_config("happo", LEAVING), run)
    before = files(run)
    code, output, error = call("export", str(run), "--distil", "--out", str(target))
    assert (code, output) == (2, "")
    assert "hmarl-export: --distil: no part of happo knows more than its agents do" in error
    assert not target.exists()
    assert files(run) == before


def test_students_of_another_checkpoint_or_with_other_settings_are_not_gone_on_with(
    run: Path, call: Call, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    settings = {**SETTINGS, "rounds": 1}
    distilled(run, settings)
    first = ["export", str(run), "--distil", "--out", str(target), *words(settings)]
    before = files(run)
    code, _, said = call(*first, "--checkpoint", "80")
    assert code == 2
    assert "checkpoint: got 'step-000000000080.safetensors', begun with 'step-000000000160.safetensors'" in said
    code, _, said = call(*first, "--checkpoint", "last", "--set", "distillation.seed=4")
    assert code == 2
    assert "distillation.seed: got 4, begun with 0); --restart-students discards them" in said
    assert files(run) == before
    assert not target.exists()


def test_a_number_of_environments_that_is_not_given_is_the_one_begun_with(
    run: Path, call: Call, tmp_path: Path
) -> None:
    """By default it follows the machine, and the same command has to go on in a smaller container too."""
    distilled(run, SETTINGS)
    before = files(run / "students")
    others = {key: value for key, value in SETTINGS.items() if key != "environments"}
    again = ["export", str(run), "--distil", "--out", str(tmp_path / "bundle"), "--checkpoint", "last"]
    code, _, said = call(*again, *words(others))
    assert code == 0, said
    assert files(run / "students") == before
    code, _, said = call(*again, *words({**SETTINGS, "environments": 4}))
    assert code == 2
    assert "distillation.environments: got 4, begun with 8" in said


def test_the_runs_step_limit_holds_for_students_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where episodes do not end by themselves, every round would play 5,000 steps of each otherwise."""
    run = tmp_path / "run"
    train(tiny_config("mat", LEAVING, GUIDED, {"evaluation_step_limit": 2}), run)
    caplog.clear()
    found = distilled(run, {**SETTINGS, "rounds": 1})
    assert (found.evaluation["length_mean"], found.evaluation["unfinished"]) == (2, 6)
    assert "6 of 6 episodes still ran after 2 steps" in caplog.text
    assert "run.evaluation_step_limit" in caplog.text


def test_ctrl_c_says_that_the_same_command_goes_on(
    run: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = KeptDistillation.save

    def save(self: KeptDistillation, *arguments: Any) -> None:
        inner(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(KeptDistillation, "save", save)
    code, _, said = call("export", str(run), "--distil", "--out", str(tmp_path / "bundle"), *words(SETTINGS))
    assert code == 130
    assert "the rounds that are done are kept in" in said
    assert "the same command goes on" in said.replace("\n", " ")
    assert "--restart-students" not in said
    assert len(list((run / "students" / "checkpoints").glob("*.json"))) == 1
    assert not (tmp_path / "bundle").exists()
    _, _, said = call("export", str(run), "--distil", "--restart-students", *words(SETTINGS))
    assert "the same command without --restart-students goes on" in said.replace("\n", " ")


def test_the_report_in_the_manifest_is_strict() -> None:
    fields = {
        "teacher": "guider",
        "rounds": 2,
        "steps": 10,
        "stopped": "rounds",
        "episodes": 3,
        "seed": 1,
        "sampled": False,
        "teacher_return": 1.0,
        "students_return": 0.5,
        "gap": 0.5,
        "kl": 0.1,
    }
    assert from_plain(StudentsModel, fields).ratio is None
    for wrong in ({"gap": None}, {"stopped": "tired"}, {"agreement": 1.0}, {"goal_accuracy": "high"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            from_plain(StudentsModel, {**fields, **wrong})


def test_algorithms_with_a_teacher_list_the_settings(call: Call) -> None:
    assert "distillation.goal_weight" in json.loads(call("algorithms", "sable", "--json")[1].splitlines()[-1])
    assert "distillation.goal_weight" not in json.loads(call("algorithms", "happo", "--json")[1].splitlines()[-1])


def test_a_damaged_checkpoint_that_is_passed_over_is_named(mat: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mat, tmp_path / "run"))
    newest = max((run / "checkpoints").glob("step-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    process = start(str(run), "--distil", "--checkpoint", "last", *words({**SETTINGS, "rounds": 1}))
    said = " ".join(process.communicate()[0].split())
    assert process.returncode == 0, said
    assert f"{newest.name}: the file is damaged" in said
    assert "trying the one before it" in said


def start(*arguments: str) -> subprocess.Popen[str]:
    """The real program in a process of its own; the toy environments can be imported there."""
    program = "from hmarl.trainer.commands.export import export_main; export_main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def test_killed_and_gone_on_with_equals_unbroken(tmp_path: Path) -> None:
    settings = {**SETTINGS, "rounds": 15, "patience": 15, "kept_rounds": 3, "evaluation_episodes": 40}
    able = {"steps": 1600, "evaluation_interval": 1600}  # a teacher whom students need many rounds to equal
    train(tiny_config("mat", LEAVING, GUIDED, able), tmp_path / "run")
    unbroken, killed = (Path(shutil.copytree(tmp_path / "run", tmp_path / name)) for name in ("unbroken", "killed"))
    options = ["--distil", "--checkpoint", "last", *words(settings)]
    process = start(str(killed), *options)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("students/checkpoints/step-*.json"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (killed / "students" / "data").exists(), "the distillation ended before it was killed"
    assert not (killed / "bundle").exists()
    thetas = [[policy.theta for policy in distilled(run, settings).students.policies] for run in (killed, unbroken)]
    assert all(torch.equal(first, second) for first, second in zip(*thetas, strict=True))
    states = [max((run / "students" / "checkpoints").glob("*.safetensors")) for run in (killed, unbroken)]
    assert states[0].name == states[1].name
    assert states[0].read_bytes() == states[1].read_bytes()
    rows = [(run / "students" / "metrics.jsonl").read_text() for run in (killed, unbroken)]
    assert rows[0] == rows[1]
