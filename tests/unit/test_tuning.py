"""The search for settings: what is searched, trials that find a planted optimum, pruning, resuming, and whose seeds."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.errors import UsageError
from hmarl.trainer.runs.preset_files import read_preset
from hmarl.trainer.runs.request import requested
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.suite.definition import FIRST_SEED, read_definition
from hmarl.trainer.suite.engine import Places
from hmarl.trainer.suite.executor import LocalProcess, Started
from hmarl.trainer.tuning.found import Found, write_found
from hmarl.trainer.tuning.plan import FIRST_SEARCH_SEED, SEARCH_EVALUATION_SEED, SearchPlan
from hmarl.trainer.tuning.search import Search, SearchLimits, open_study
from hmarl.trainer.tuning.space import Choice, Range, parse_dimension

# Earns less the farther gamma is from 0.7, and 1 more with the activation tanh; learns in five evaluations.
TRAINER = """
import json, pathlib, signal, sys, time
words = sys.argv[1:]
resumed = words[0] == "--resume"
run = pathlib.Path(words[1] if resumed else words[words.index("--out") + 1])
run.mkdir(parents=True, exist_ok=True)
if not resumed: (run / "config.json").write_text(json.dumps(words))
said = dict(w.split("=", 1) for w in json.loads((run / "config.json").read_text()) if "=" in w)
goal = 10 - 10 * abs(float(said["algorithm.gamma"]) - 0.7) + (said.get("algorithm.activation") == '"tanh"')
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
deaths = run.parent / "deaths"
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for at in range(done + 1, 6):
    row = {"steps": 20 * at, "evaluation/local/return_mean": goal * at / 5, "evaluation/guider/return_mean": 99}
    with metrics.open("a") as file: file.write(json.dumps(row) + "\\n")
    if (run.parent / "slow").exists(): time.sleep(30)
    if deaths.exists() and at in json.loads(deaths.read_text()): signal.raise_signal(signal.SIGKILL)
    # Once there is something to compare with, what is poor goes on only after it should have been ended.
    if at == 2 and goal < 5 and int(run.name[6:10]) > 3 and (run.parent / "patient").exists(): time.sleep(60)
(run / "summary.json").write_text(json.dumps({"steps": 100}))
"""


@dataclass
class Scripted:
    starts: list[list[str]] = field(default_factory=list)

    def start(self, words: Sequence[str], log: Path, threads: int) -> Started:
        self.starts.append(list(words))
        return LocalProcess(subprocess.Popen([sys.executable, "-S", "-c", TRAINER, *words], start_new_session=True))


class Unstartable(Scripted):
    """Half of all starts fail at once, the others when they are asked."""

    def start(self, words: Sequence[str], log: Path, threads: int) -> Started:
        self.starts.append(list(words))
        if len(self.starts) == 1:
            raise OSError("no room")
        return Unstarted()


class Unstarted:
    def waits(self) -> bool:
        return True

    def exit_code(self) -> int | None:
        raise OSError("no room")

    def ask_to_stop(self) -> None: ...

    def kill(self) -> None: ...


GAMMA = {"algorithm.gamma": Range(0.0, 1.0)}


def plan(seeds: int = 1, **known: Any) -> SearchPlan:
    space = {**GAMMA, "algorithm.activation": Choice(("relu", "tanh"))}
    return SearchPlan("mappo", "coordsum/sum-to-10", None, (), space, 100, 5, seeds, "return", **known)


@dataclass
class Bench:
    folder: Path
    executor: Scripted = field(default_factory=Scripted)
    said: list[str] = field(default_factory=list)

    def search(
        self, of: SearchPlan, limits: SearchLimits, pruner: str = "none", stop: StopRequest | None = None
    ) -> Any:
        self.folder.mkdir(exist_ok=True)
        study = open_study(of, self.folder, pruner, "tpe", of.check())
        places = Places(self.folder / "runs", self.folder / "failed")
        Search(of, study, places, self.executor, limits, self.said.append).run(stop or StopRequest())
        return study

    def found(self, of: SearchPlan, study: Any) -> Found:
        return write_found(of, study, self.folder, of.check())


def test_a_planted_optimum_is_found_and_becomes_a_preset(tmp_path: Path) -> None:
    bench, of = Bench(tmp_path / "search"), plan()
    study = bench.search(of, SearchLimits(trials=25, jobs=4))
    found = bench.found(of, study)
    best = found.best[0]["settings"]
    assert best["algorithm.activation"] == "tanh"
    assert abs(best["algorithm.gamma"] - 0.7) < 0.12
    assert found.counts == {"done": 25}
    assert found.before == pytest.approx(10 - 2), "the first trial has the preset's settings: gamma 0.9, relu"
    assert found.best[0]["value"] > found.before + 1.5
    preset = read_preset(str(tmp_path / "search" / "best.toml"), "mappo")
    assert preset.algorithm_settings["gamma"] == best["algorithm.gamma"]
    assert preset.algorithm_settings["activation"] == "tanh"
    assert (preset.steps, preset.search_seeds) == (100, of.search_seeds)
    assert found.command is not None
    assert "--preset" in found.command
    rows = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert len(rows) == 25
    assert len(rows[0]["curve"]) == 5


def test_trials_that_stay_behind_are_ended_early(tmp_path: Path) -> None:
    bench, of = Bench(tmp_path / "search"), plan()
    (tmp_path / "search" / "runs").mkdir(parents=True)
    (tmp_path / "search" / "runs" / "patient").touch()
    study = bench.search(of, SearchLimits(trials=12, jobs=2), pruner="median")
    counts = bench.found(of, study).counts
    assert counts["pruned"] >= 1
    assert counts["done"] >= 4
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert min(len(trial.intermediate_values) for trial in pruned) < 5
    assert any("pruned" in line for line in bench.said)


def test_no_trial_is_ended_at_its_first_evaluation(tmp_path: Path) -> None:
    of = plan()
    study = open_study(of, tmp_path, "median", "tpe", of.check())

    def begun(*curve: float) -> Any:
        trial = study.ask()
        for step, value in enumerate(curve, 1):
            trial.report(value, step)
        return trial

    for value in (5.0, 6.0, 7.0, 8.0):
        study.tell(begun(value, value), value)
    assert not begun(0.0).should_prune()
    assert begun(0.0, 0.0).should_prune()
    assert not begun(6.6, 0.0).should_prune(), "its best value so far counts"


def test_every_trial_has_all_search_seeds_and_their_mean(tmp_path: Path) -> None:
    bench, of = Bench(tmp_path / "search"), plan(seeds=2)
    study = bench.search(of, SearchLimits(trials=2, jobs=2))
    seeds = [words[words.index("--seed") + 1] for words in bench.executor.starts]
    assert sorted(seeds) == sorted(map(str, of.search_seeds * 2))
    curve = study.trials[0].intermediate_values
    assert len(curve) == 10
    assert curve[max(curve)] == pytest.approx(study.trials[0].value)


def test_a_search_that_was_stopped_goes_on_with_the_same_trials(tmp_path: Path) -> None:
    bench, of = Bench(tmp_path / "search"), plan()
    runs = tmp_path / "search" / "runs"
    runs.mkdir(parents=True)
    (runs / "slow").touch()
    study = bench.search(of, SearchLimits(trials=4, jobs=2, total_s=3.0))
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "RUNNING"]
    drawn = [dict(trial.params) for trial in study.trials]
    assert bench.found(of, study).counts == {"open": 2}
    (runs / "slow").unlink()
    again = bench.search(of, SearchLimits(trials=4, jobs=2))
    assert [trial.state.name for trial in again.trials] == ["COMPLETE"] * 4
    assert [dict(trial.params) for trial in again.trials[:2]] == drawn
    resumed = [words for words in bench.executor.starts if words[0] == "--resume"]
    assert len(resumed) == 2
    assert all(len(trial.intermediate_values) == 5 for trial in again.trials)
    bench.search(of, SearchLimits(trials=4))
    assert len(bench.executor.starts) == 6, "there are enough"


def test_a_run_that_was_killed_goes_on_as_often_as_it_may(tmp_path: Path) -> None:
    runs = tmp_path / "search" / "runs"
    runs.mkdir(parents=True)
    (runs / "deaths").write_text("[2, 4]")
    bench, of = Bench(tmp_path / "search"), plan(seeds=2)
    study = bench.search(of, SearchLimits(trials=1, retries=2))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"], "counted for each run"
    assert len(bench.executor.starts) == 6
    assert sum("killed by signal 9" in line for line in bench.said) == 4
    study = bench.search(of, SearchLimits(trials=2, retries=1))
    assert study.trials[1].state.name == "FAIL"
    assert study.trials[1].user_attrs["error"].startswith("killed by signal 9, see ")


def test_a_run_that_cannot_be_started_is_a_trial_that_fails(tmp_path: Path) -> None:
    bench, of = Bench(tmp_path / "search", Unstartable()), plan()
    study = bench.search(of, SearchLimits(trials=2))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL"]
    assert study.trials[0].user_attrs["error"] == "could not be started (no room)"


def test_a_run_that_ended_without_a_figure_is_a_trial_that_fails(tmp_path: Path) -> None:
    bench, of = Bench(tmp_path / "search"), replace(plan(), measure="success_rate")
    bench.folder.mkdir()
    study = open_study(of, bench.folder, "none", "tpe", of.check())
    study.ask()
    ended = bench.folder / "runs" / f"trial-0000-seed{FIRST_SEARCH_SEED}"
    ended.mkdir(parents=True)
    (ended / "summary.json").write_text('{"steps": 100}')  # then the search was killed
    study = bench.search(of, SearchLimits(trials=2))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL"]
    assert len(bench.executor.starts) == 1
    for trial in study.trials:
        run = f"trial-{trial.number:04d}-seed{FIRST_SEARCH_SEED}"
        told = f"its run has ended, and no evaluation of it has a success_rate, see {bench.folder}/runs/{run}.log"
        assert trial.user_attrs["error"] == told
    assert bench.found(of, study).counts == {"failed": 2}


@pytest.mark.parametrize("summary", ["{", '{"steps": null}', "{}"])
def test_a_run_whose_summary_is_damaged_is_gone_on_with(summary: str, tmp_path: Path) -> None:
    bench, of = Bench(tmp_path / "search"), plan()
    bench.folder.mkdir()
    open_study(of, bench.folder, "none", "tpe", of.check()).ask()
    left = bench.folder / "runs" / f"trial-0000-seed{FIRST_SEARCH_SEED}"
    left.mkdir(parents=True)
    (left / "summary.json").write_text(summary)
    study = bench.search(of, SearchLimits(trials=1))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]
    assert json.loads((left / "summary.json").read_text()) == {"steps": 100}


def test_a_measure_that_the_task_does_not_have_is_refused_before_the_search() -> None:
    task = replace(plan(), environment="mpe/simple_speaker_listener")
    assert task.check()
    message = "--measure: got success_rate, expected return: mpe/simple_speaker_listener does not say when an episode"
    with pytest.raises(UsageError, match=message):
        replace(task, measure="success_rate").check()
    assert replace(plan(), measure="success_rate").check()


def test_another_search_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    open_study(plan(), tmp_path, "none", "tpe", {})
    with pytest.raises(UsageError, match=r"--out: .* holds another search"):
        open_study(plan(seeds=2), tmp_path, "none", "tpe", {})


def test_the_seeds_of_a_search_are_never_those_of_a_report(tmp_path: Path) -> None:
    bench, of = Bench(tmp_path / "search"), plan(seeds=2)
    found = bench.found(of, bench.search(of, SearchLimits(trials=1)))
    assert found.preset is not None
    assert found.confirm is not None
    assert all(f"run.evaluation_seed={SEARCH_EVALUATION_SEED}" in words for words in bench.executor.starts)
    written = tomllib.loads(Path(found.preset).read_text())
    assert "evaluation_seed" not in written["settings"].get("run", {}), "reports play episodes of their own"
    suite = read_definition(Path(found.confirm))
    seeds = {run.seed for run in suite.runs}
    assert seeds == set(range(FIRST_SEED, FIRST_SEED + 3))
    assert not seeds & set(of.search_seeds)
    assert {run.label for run in suite.runs} == {"before", "found"}
    for seed in of.search_seeds:
        with pytest.raises(UsageError, match=rf"--seed: got {seed}, by which .*best\.toml was searched for"):
            requested("mappo", "coordsum/sum-to-10", {"seed": seed}, (), found.preset, lambda name, arguments: None)
    once_more = plan(seeds=2, seen=of.search_seeds)
    assert not set(once_more.search_seeds) & set(of.search_seeds)
    assert once_more.preset_of({}, "").search_seeds == (*of.search_seeds, *once_more.search_seeds)


def test_what_is_searched_is_checked_before_the_first_trial() -> None:
    assert plan().check() == {"algorithm.gamma": 0.9, "algorithm.activation": "relu"}
    wide = SearchPlan(
        "mappo", "coordsum/sum-to-10", None, (), {"algorithm.gamma": Range(0.5, 1.5)}, 100, 5, 1, "return"
    )
    with pytest.raises(UsageError, match=r"algorithm.gamma: got 1.5"):
        wide.check()
    assert FIRST_SEARCH_SEED > 10**8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1..10", Range(1, 10)),
        ("0.1..1", Range(0.1, 1)),
        ("log:1e-4..1e-2", Range(1e-4, 1e-2, log=True)),
        ("relu|tanh", Choice(("relu", "tanh"))),
        ("true|false", Choice((True, False))),
        ("[64]|[64,64]", Choice(([64], [64, 64]))),
        ([0.1, 0.2], Choice((0.1, 0.2))),
    ],
)
def test_values_as_they_are_typed(text: Any, expected: Any) -> None:
    found = parse_dimension("--search x", text)
    assert found == expected
    assert isinstance(found, Choice) or found.integers == (text == "1..10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10..1", "expected LOW < HIGH"),
        ("log:0..1", "expected 0 < LOW < HIGH"),
        ("a..b", "expected numbers at both ends"),
        ("exp:1..2", "expected LOW..HIGH, log:LOW..HIGH"),
        ("relu", "got 'relu' alone"),
        (3, "got 3, expected LOW..HIGH"),
    ],
)
def test_wrong_values_are_refused(text: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_dimension("--search x", text)
