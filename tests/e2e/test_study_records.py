"""What a study keeps of its runs: written as each one ends, with both modes and the best checkpoint, old files too."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hmarl.trainer.records.problems import CheckpointError, IncompleteError
from training_runs import tiny_config, train

SCRIPTS = Path(__file__).parents[2] / "scripts"
RECORDS = SCRIPTS.parent / "docs" / "results" / "records"
MODULES = ("study", "study_tables", "comparisons")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(SCRIPTS)
    import study  # noqa: PLC0415 - a script, found by the path above

    yield study
    for name in MODULES:
        sys.modules.pop(name, None)


def one_comparison(study: ModuleType, *variants: tuple[str, tuple[str, ...]], **known: Any) -> Any:
    made = tuple(study.Variant(label, "mappo", settings, 1) for label, settings in variants)
    few = ("run.environments=4", "run.rollout_length=4", "run.evaluation_episodes=2")
    return study.Comparison("toy", "coordsum/sum-to-10", 32, 16, made, settings=few, **known)


def test_a_record_is_written_when_its_run_ends_and_failures_cost_no_other(study: ModuleType, tmp_path: Path) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "records"
    bad = ("algorithm.clip=none",)
    comparison = one_comparison(study, ("bad", bad), ("good", ()), ("late", ("algorithm.clip=0.1",)))
    with pytest.raises(IncompleteError, match=r"clip=none-seed100 \(exit code 2, see .*\.log\)"):
        study.train_all([comparison], runs, kept, study.Limits(jobs=1, retries=0))
    good, late = (kept / f"{study.run_name(comparison, comparison.variants[at], 100)}.json" for at in (1, 2))
    assert sorted(kept.iterdir()) == sorted([good, late])
    assert good.stat().st_mtime < (runs / late.stem / "summary.json").stat().st_mtime, "not when all have ended"
    record = study.read_record(good)
    assert record.actions == "greedy"
    assert record.otherwise.keys() == {"local"}
    assert study.without_record([comparison], kept) == [(comparison, comparison.variants[0], 100)]


def test_a_run_that_two_comparisons_show_is_trained_once(study: ModuleType, tmp_path: Path) -> None:
    twice = [one_comparison(study, ("a", ())), one_comparison(study, ("b", ()))]
    assert len(study.without_record(twice, tmp_path)) == 1


def test_a_name_stands_for_one_run_only(study: ModuleType, tmp_path: Path) -> None:
    one = one_comparison(study, ("a", ()))
    other = replace(one, name="other", settings=(*one.settings, "algorithm.gamma=0.5"))
    with pytest.raises(ValueError, match="of toy and other, which train it with other settings"):
        study.without_record([one, other], tmp_path)


def test_runs_that_comparisons_share_are_trained_alike_and_kept_as_planned(study: ModuleType) -> None:
    """Else a curve would be drawn through the few evaluations that its seeds have in common."""
    planned: dict[str, tuple[str, ...]] = {}
    for comparison in study.COMPARISONS:
        for variant, seed in ((v, s) for v in comparison.variants for s in study.seeds_of(v)):
            run = study.planned_run(comparison, variant, seed)
            assert planned.setdefault(run.name, run.words) == run.words, f"{run.name} in {comparison.name}"
            kept = study.record_path(run.name, RECORDS)
            if kept.is_file():
                evaluations = len(study.read_record(kept).metrics)
                due = comparison.steps / comparison.evaluation_interval
                assert abs(evaluations - due) <= 1, f"{kept.name}: evaluated {evaluations} times, {comparison.name}"


def recorded(study: ModuleType, directory: Path, algorithm: str = "magpo") -> Any:
    small = {"embedding_size": 8, "epochs": 1, "learning_rate": 0.05} if algorithm == "magpo" else {}
    train(tiny_config(algorithm, "mpe/simple_spread", small, {"evaluation_interval": 40}), directory)
    return study.record_of(directory)


def test_a_record_holds_both_modes_last_and_best(study: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    record = recorded(study, run)
    summary = json.loads((run / "summary.json").read_text())
    last, best = summary["final"], summary["best"]
    assert (record.actions, record.other_mode) == ("greedy", "sampled")
    assert record.otherwise == {name: last[name]["sampled"]["return_mean"] for name in ("local", "guider")}
    assert record.best.steps == best["steps"]
    for name, row in best["teams"].items():
        assert sum(record.best.returns[name]) / 2 == pytest.approx(row["return_mean"])
        assert record.best.otherwise[name] == row["sampled"]["return_mean"]
    study.write_record(record, tmp_path / "kept.json")
    assert study.read_record(tmp_path / "kept.json") == record


def test_the_table_shows_modes_best_and_gaps_of_guided_teams(study: ModuleType) -> None:
    from hmarl.trainer.suite.records import Best, Record  # noqa: PLC0415 - beside the study

    def record(local: float, guider: float | None) -> Any:
        both = {"local": local} if guider is None else {"local": local, "guider": guider}
        return Record(
            100.0,
            [{"steps": 32, "evaluation/local/return_mean": local}],
            {name: [value, value] for name, value in both.items()},
            actions="greedy",
            otherwise={name: value + 10 for name, value in both.items()},
            best=Best(16, {name: [value + 1] * 2 for name, value in both.items()}, {"local": local + 5}),
        )

    comparison = one_comparison(study)
    old = Record(90.0, [{"steps": 32, "evaluation/local/return_mean": 1.0}], {"local": [1.0, 1.0]})
    runs = {"magpo": [record(3.0, 4.5), record(5.0, 5.0)], "mappo": [record(2.0, None)], "old": [old]}
    columns, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in study.table(comparison, runs).splitlines()
    ]
    magpo, mappo, without = (dict(zip(columns, row, strict=True)) for row in rows)
    assert [row["actions"] for row in (magpo, mappo, without)] == ["greedy", "greedy", ""]
    assert magpo["mean of each seed"] == "3.00, 5.00"
    assert magpo["in the other mode"] == "sampled 13.00, 15.00"
    assert magpo["best checkpoint"] == "4.00, 6.00; sampled 8.00, 10.00"
    assert magpo["gap to the guider"] == "1.50, 0.00; sampled 1.50, 0.00"
    assert (mappo["in the other mode"], mappo["gap to the guider"]) == ("sampled 12.00", "")
    assert (without["in the other mode"], without["best checkpoint"]) == ("", "")
    unguided = study.table(comparison, {"mappo": [record(2.0, None)]})
    assert "gap" not in unguided
    assert "other mode" not in unguided


def test_the_table_shows_teams_under_other_conductors(study: ModuleType) -> None:
    from hmarl.trainer.suite.records import Record  # noqa: PLC0415 - beside the study

    def record(**returns: float) -> Any:
        metrics = [{"steps": 32, "evaluation/local/return_mean": returns["local"]}]
        return Record(100.0, metrics, {name: [value, value] for name, value in returns.items()})

    conducted = [record(local=3.0, central=4.0, random=2.0), record(local=3.5, central=5.0, random=2.5)]
    runs = {"hcpo": conducted, "copies": [record(local=3.0, random=1.0)], "hatrpo": [record(local=9.0)]}
    columns, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in study.table(one_comparison(study), runs).splitlines()
    ]
    assert "under the central conductor" not in columns
    under = [row[columns.index("under random instructions")] for row in rows]
    assert under == ["2.00, 2.50", "1.00", ""]
    assert "under" not in study.table(one_comparison(study), {"hcpo": conducted})


def test_runs_that_were_resumed_at_their_end_have_no_speed(study: ModuleType) -> None:
    from hmarl.trainer.suite.records import Record  # noqa: PLC0415 - beside the study

    metrics = [{"steps": 32, "evaluation/local/return_mean": 1.0}]
    fast, slow, resumed = (Record(speed, metrics, {"local": [1.0, 1.0]}) for speed in (3000.0, 1000.0, None))
    runs = {"mixed": [fast, resumed, slow], "none": [resumed]}
    _, _, *rows = study.table(one_comparison(study), runs).splitlines()
    assert [row.split("|")[-2].strip() for row in rows] == ["2,000", ""]


def test_old_records_stay_readable_and_others_are_refused(study: ModuleType, tmp_path: Path) -> None:
    old = {"steps_per_s": 1.0, "metrics": [], "returns": {"local": [1.0]}, "choices": {}}
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    record = study.read_record(path)
    assert (record.actions, record.other_mode, record.otherwise, record.best) == ("", "", {}, None)
    path.write_text(json.dumps({**old, "colour": "red"}))
    with pytest.raises(CheckpointError, match=r"old\.json: .*colour.*expected a record with steps_per_s"):
        study.read_record(path)


def test_a_table_of_choices_is_left_out_where_records_have_none(study: ModuleType, tmp_path: Path) -> None:
    """As of records that are older than the choices, whose runs are gone."""
    from hmarl.trainer.suite.records import Record  # noqa: PLC0415 - beside the study

    comparison = one_comparison(study, ("hcpo", ()), ("hatrpo", ()), instruction_choices=True)
    old = Record(1.0, [{"steps": 32, "evaluation/local/return_mean": 1.0}], {"local": [1.0, 2.0]})
    chosen = replace(old, choices={name: [1.0, 2.0] for name in study.CHOICES})
    words = "instructions chosen by every agent"
    assert words in study.section(comparison, {"hcpo": [chosen, chosen]}, tmp_path)
    assert words not in study.section(comparison, {"hcpo": [chosen, old]}, tmp_path)
    assert words not in study.section(comparison, {"hatrpo": [old]}, tmp_path)


def test_no_two_lines_of_a_plot_have_one_colour(study: ModuleType) -> None:
    algorithms = {name: name for name in ("hcpo", "hatrpo")}
    settings = dict.fromkeys(("hcpo, louder", "hatrpo, shared", "a", "b", "c", "d", "e", "f", "g", "h", "i"))
    for lines in (algorithms | settings, settings, settings | algorithms):
        found = study.colours(lines)
        assert found.keys() == lines.keys()
        assert len(set(found.values())) == len(lines)
        assert all(found[name] == study.COLOURS[name] for name in algorithms if name in lines)


@pytest.mark.parametrize("lines", [2, 7, 14])
def test_long_names_leave_a_plot_its_width(study: ModuleType, lines: int) -> None:
    figure, axes = study.plt.subplots(figsize=(8, 4.6), layout="constrained")
    for line in range(lines):
        axes.plot([0, 1], [0, line], label=f"E=32, {line} guider epochs, shuffled once, steps of 0.004")
    study.name_lines(figure, axes)
    figure.draw_without_rendering()
    width, height = axes.get_window_extent().size / figure.dpi
    study.plt.close(figure)
    assert width > 6
    assert height > 3
