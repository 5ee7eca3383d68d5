"""Results as the MARL libraries exchange them, and what algorithms come to over tasks, by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate, marl_eval_json
from hmarl.sdk.evaluation.comparing import compare, held
from hmarl.sdk.evaluation.marl_eval import Document, Results, RunCurve, read_marl_eval, run_curve
from hmarl.sdk.team import RandomTeam
from hmarl.trainer.records.problems import CheckpointError
from hmarl.trainer.suite.definition import Task
from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.suite.records import Best, Record, read_record, write_record
from hmarl.trainer.suite.results import document_of, put_together, read_others, record_path, steps_of


def record(*returns: float, wins: bool = False) -> Record:
    rows: list[dict[str, Any]] = [
        {"steps": 10 * (at + 1), "evaluation/local/return_mean": value, "evaluation/guider/return_mean": 99.0}
        for at, value in enumerate(returns)
    ]
    for row in rows if wins else ():
        row["evaluation/local/success_rate"] = row["steps"] / 100
    best = Best(10, {"local": [7.0, 9.0]}, {})
    return Record(5.0, rows, {"local": [1.0, 2.0], "guider": [3.0]}, best=best)


def test_a_record_as_marl_eval_has_it() -> None:
    assert steps_of(record(1.0, 2.5, wins=True)) == {
        "step_0": {"step_count": 10, "return": [1.0], "success_rate": [0.1]},
        "step_1": {"step_count": 20, "return": [2.5], "success_rate": [0.2]},
        "absolute_metrics": {"return": [7.0, 9.0], "success_rate": [0.1]},  # of the best checkpoint, at 10
    }


def test_a_document_has_all_runs_by_environment_task_algorithm_and_seed(tmp_path: Path) -> None:
    tasks = {
        "mpe/simple_spread N=5": Task("mpe/simple_spread N=5", "mpe/simple_spread", "return", None),
        "own": Task("own", "coordsum/3x10-30", "return", None),
    }
    runs = [
        PlannedRun(f"{task}-{seed}".replace("/", "-"), "happo", task, seed, 20, ()) for task in tasks for seed in (1, 2)
    ]
    for run in runs[:3]:
        write_record(record(float(run.seed)), record_path(tmp_path, run.name))
    document = document_of(runs, tasks, tmp_path)
    assert list(document) == ["mpe", "coordsum"]
    assert document["mpe"]["simple_spread N=5"]["happo"].keys() == {"seed_1", "seed_2"}
    assert document["coordsum"]["own"]["happo"].keys() == {"seed_1"}
    assert document["mpe"]["simple_spread N=5"]["happo"]["seed_2"]["step_0"] == {"step_count": 10, "return": [2.0]}


def written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_documents_of_others_are_read_by_their_names_for_the_same(tmp_path: Path) -> None:
    theirs = {"VMAS": {"navigation": {"mappo": {"0": {
        "step_2": {"step_count": 20, "mean_episode_return": [2.0, 4.0]}, "step_1": {"step_count": 10, "return": [1.0]},
        "absolute_metrics": {"return": [9.0]},
    }}}}}  # fmt: skip
    results = Results()
    ours = {"vmas": {"navigation": {"mappo": {"seed_1": {"step_0": {"step_count": 10, "return": [5.0]}}}}}}
    results.add(ours, {})
    results.add(read_marl_eval(written(tmp_path / "theirs.json", theirs), "--beside theirs.json"), {}, " (theirs)")
    assert results.algorithms() == ["mappo", "mappo (theirs)"]
    (curve,) = results.curves["vmas/navigation"]["mappo (theirs)"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([10, 20], [1.0, 3.0])


def finals(results: Results) -> dict[str, dict[str, list[float]]]:
    """By task and algorithm what each run came to."""
    return {
        task: {name: [float(curve.values[-1]) for curve in runs] for name, runs in of.items()}
        for task, of in results.curves.items()
    }


def came_to(value: float) -> dict[str, Any]:
    return {"seed_1": {"step_0": {"step_count": 10, "return": [value]}}}


def test_a_name_that_is_ours_on_one_task_is_ours_on_all() -> None:
    results = Results()
    results.add({"mpe": {"one": {"mappo": came_to(1.0)}, "two": {}}}, {})
    theirs = {"mpe": {name: {"mappo": came_to(5.0), "ippo": came_to(6.0)} for name in ("one", "two", "three")}}
    results.add(theirs, {}, " (theirs)")
    beside = {"mappo (theirs)": [5.0], "ippo": [6.0]}
    assert finals(results) == {"mpe/one": {"mappo": [1.0], **beside}, "mpe/two": beside, "mpe/three": beside}
    results.add({"mpe": {"two": {"ippo": came_to(7.0)}}}, {}, " (others)")
    assert finals(results)["mpe/two"] == {**beside, "ippo (others)": [7.0]}, "and so are names of those before"


def test_a_name_that_is_planned_is_ours_before_it_has_a_run() -> None:
    tasks = {name: Task(name, name, "return", None) for name in ("mpe/one", "mpe/two")}
    runs = [PlannedRun(f"{label}-1", label, "mpe/one", 1, 20, ()) for label in ("happo", "mappo")]
    ours: Document = {"mpe": {"one": {"happo": came_to(1.0)}, "two": {}}}
    theirs: Document = {"mpe": {"one": {"mappo": came_to(5.0)}, "two": {"mappo": came_to(6.0)}}}
    results = put_together(runs, tasks, ours, {"theirs": theirs})
    assert results.algorithms() == ["happo", "mappo (theirs)"]
    assert ours["mpe"]["one"].keys() == {"happo"}, "what is written for other tools has runs alone"


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/evaluation.json", "b/evaluation.json", "b/others.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, {"mpe": {"one": {name[0]: came_to(1.0)}}})
    monkeypatch.chdir(tmp_path / "a")
    paths = [Path("evaluation.json"), Path("../b/evaluation.json"), Path("../b/others.json")]
    found = read_others(paths)
    assert {name: list(document["mpe"]["one"]) for name, document in found.items()} == {
        "a/evaluation": ["a"],
        "b/evaluation": ["b"],
        "others": ["b"],
    }
    results = put_together((), {}, {}, found)
    assert results.algorithms() == ["a", "b", "b (others)"]


def test_files_that_no_name_tells_apart_are_refused(tmp_path: Path) -> None:
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
        written(tmp_path / name / "evaluation.json", {})
    first, second = (tmp_path / name / "evaluation.json" for name in ("a/x", "b/x"))
    message = f"--beside: got {first} and {second}, which are both called 'x/evaluation', expected files of which each"
    with pytest.raises(UsageError, match=re.escape(message)):
        read_others([first, second])
    with pytest.raises(UsageError, match="both called 'x/evaluation'"):
        read_others([first, first])


def test_a_measure_that_a_run_lacks_is_no_curve() -> None:
    run = {"step_0": {"step_count": 10, "return": [1.0]}}
    assert run_curve(run, "success_rate") is None


@pytest.mark.parametrize("name", ["win_rate", "success"])
def test_success_is_read_by_its_other_names(name: str) -> None:
    """``success`` is what hmarl-eval called it up to 0.2."""
    found = run_curve({"step_0": {"step_count": 10, name: [0.0, 1.0]}}, "success_rate")
    assert found is not None
    assert found.values.tolist() == [0.5]


@pytest.mark.parametrize("measure", ["return", "success_rate"])
def test_an_evaluation_of_hmarl_eval_counts_beside_others_by_each_measure(measure: str, tmp_path: Path) -> None:
    environment = make("coordsum/sum-to-10", 4)
    played = evaluate(environment, RandomTeam(environment.spec), 8, 0)
    environment.close()
    path = written(tmp_path / "evaluation.json", marl_eval_json([played]))
    results = Results()
    results.add(read_marl_eval(path, "--beside evaluation.json"), {"coordsum/sum-to-10": measure})
    ((curve,),) = results.curves["coordsum/sum-to-10"].values()
    summary = played.summary()
    expected = summary["return_mean"] if measure == "return" else summary["success_rate"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([0], [pytest.approx(expected)])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], r"the document: got '\[1\]', which is no object"),
        ({"e": {"t": {"a": {"r": {"step_1": {"return": [1.0]}}}}}}, "e / t / a / r / step_1: got no step_count"),
        ({"e": {"t": {"a": {"r": {"step_1": {"step_count": 1, "return": "x"}}}}}}, "step_1: return: got 'x'"),
    ],
)
def test_another_shape_is_refused_with_its_place(document: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_marl_eval(written(tmp_path / "x.json", document), "--beside x.json")
    with pytest.raises(UsageError, match=r"--beside y\.json: cannot be read"):
        read_marl_eval(tmp_path / "y.json", "--beside y.json")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ('{"step_count": NaN, "return": [1.0]}', r"step_1: step_count: got nan, expected a number from 0 to 1e\+100"),
        ('{"step_count": 1e999, "return": [1.0]}', "step_1: step_count: got inf"),
        ('{"step_count": -5, "return": [1.0]}', "step_1: step_count: got -5"),
        ('{"step_count": true, "return": [1.0]}', "step_1: step_count: got True"),
        ('{"step_count": 5, "return": [1.0, NaN]}', r"step_1: return\[1\]: got nan, expected a finite number"),
        ('{"step_count": 5, "return": [-Infinity]}', r"step_1: return\[0\]: got -inf"),
        (f'{{"step_count": 5, "return": [1{"0" * 400}]}}', r"step_1: return\[0\]: got 1000"),
        ('{"step_count": 5, "return": [1e308, 1e308]}', r"step_1: return\[0\]: got 1e\+308"),
        ('{"step_count": 5, "win_rate": [0.5, NaN]}', r"step_1: win_rate\[1\]: got nan"),
        ('{"step_count": 5, "success": [0.5, NaN]}', r"step_1: success\[1\]: got nan"),
    ],
)
def test_what_is_no_figure_is_refused_with_file_and_field(step: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'{{"e": {{"t": {{"a": {{"r": {{"step_1": {step}}}}}}}}}}}')
    with pytest.raises(UsageError, match=rf"^--beside x\.json: e / t / a / r / {message}"):
        read_marl_eval(path, "--beside x.json")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"local": [1.0, 2.0]', '"local": [1.0, NaN]', r"returns: local\[1\]: got nan, expected a finite number"),
        ("[7.0, 9.0]", "[1e999]", r"best: returns: local\[0\]: got inf"),
        ('return_mean": 2.5', 'return_mean": -Infinity', r"metrics\[1\]: evaluation/local/return_mean: got -inf"),
        ("[7.0, 9.0]", '["x"]', r"best: returns: local\[0\]: got x"),
    ],
)
def test_a_record_without_figures_is_refused_with_file_and_field(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    write_record(record(1.0, 2.5), path)
    text = json.dumps(json.loads(path.read_text()))
    assert read_record(path) == record(1.0, 2.5)
    path.write_text(text.replace(before, after))
    with pytest.raises(CheckpointError, match=rf"run\.json: {message}"):
        read_record(path)


def test_what_is_not_compared_may_be_anything(tmp_path: Path) -> None:
    document = {"e": {"t": {"a": {"r": {"step_1": {"step_count": 5, "return": [1], "loss": [float("nan")]}}}}}}
    assert read_marl_eval(written(tmp_path / "x.json", document), "x")["e"]["t"]["a"]["r"]["step_1"]["return"] == [1]


def test_runs_whose_steps_are_unknown_are_compared_by_what_they_came_to() -> None:
    """An evaluation of hmarl-eval says 0 where it knows no training steps."""
    unknown = [RunCurve(np.array([0]), np.array([value])) for value in (3.0, 5.0)]
    alone = compare(Results({"a/one": {"good": unknown, "bad": unknown[:1]}}), resamples=20)
    assert alone is not None
    assert (alone.shares[0], alone.shares[-1]) == (1.0, 1.0)
    assert alone.aggregates["good"]["mean"].value == pytest.approx(0.5), "3 and 5 count as 0 and 1"
    beside = compare(Results({"a/one": {"good": unknown, "bad": curves(4.0, 2.0)}}), resamples=20)
    assert beside is not None
    assert beside.shares[0] == 1.0
    assert beside.curves["good"].values[-1] == pytest.approx(beside.aggregates["good"]["IQM"].value)
    assert beside.curves["bad"].values[-1] == pytest.approx(beside.aggregates["bad"]["IQM"].value)


def curves(*finals: float, start: float = 0.0) -> list[RunCurve]:
    """Runs that begin at ``start`` after 10 steps and come to these values after 20."""
    return [RunCurve(np.array([10, 20]), np.array([start, final])) for final in finals]


def test_a_comparison_over_tasks_by_hand() -> None:
    results = Results({
        "a/one": {"good": curves(10.0, 8.0), "bad": curves(4.0, 2.0)},
        "a/two": {"good": curves(1.0, 1.0), "bad": curves(1.0, 0.5)},
        "a/own": {"good": curves(3.0)},
    })  # fmt: skip
    found = compare(results, {"a/two": (0.0, 2.0)}, resamples=50)
    assert found is not None
    assert (found.tasks, found.left_out) == (("a/one", "a/two"), ("a/own",))
    assert found.runs == {"good": 2, "bad": 2}
    good, bad = found.aggregates["good"], found.aggregates["bad"]
    # Scores: good 1, 0.8 and 0.5, 0.5; bad 0.4, 0.2 and 0.5, 0.25.
    assert good["mean"].value == pytest.approx(0.7)
    assert good["IQM"].value == pytest.approx((0.5 + 0.8) / 2)
    assert bad["median"].value == pytest.approx((0.3 + 0.375) / 2)
    assert bad["optimality gap"].value == pytest.approx(1 - 1.35 / 4)
    assert good["IQM"].low <= good["IQM"].value <= good["IQM"].high
    improvement = found.improvement["good", "bad"]
    assert improvement.value == pytest.approx((1 + 0.75) / 2), "a tie counts half"
    assert found.improvement["bad", "good"].value == pytest.approx(1 - improvement.value)
    assert found.profiles["good"].values[0] == 1.0
    assert found.profiles["good"].values[np.searchsorted(found.thresholds, 0.6)] == 0.5
    assert (found.shares[0], found.shares[-1]) == (0.5, 1.0)
    assert found.curves["good"].values[0] == pytest.approx(0.0)
    assert found.curves["good"].values[-1] == pytest.approx(good["IQM"].value)


def test_nothing_in_common_is_no_comparison() -> None:
    assert compare(Results({"a/one": {"good": curves(1.0)}, "a/two": {"bad": curves(1.0)}})) is None
    assert compare(Results()) is None


def test_a_curve_holds_its_last_evaluation() -> None:
    curve = RunCurve(np.array([10, 20]), np.array([1.0, 2.0]))
    assert held(curve, np.array([0, 10, 19, 20, 99])).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0]
