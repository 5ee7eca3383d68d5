"""A run that is ended where it stands counts by an evaluation of its last state, as one whose goal that was does."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.evaluation.marl_eval import RunCurve, run_curve
from hmarl.trainer.records.checkpoint import find_checkpoint
from hmarl.trainer.records.metrics import evaluation_path, read_metrics
from hmarl.trainer.records.problems import StorageError
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.stopping import Interrupted, StopRequest
from hmarl.trainer.suite.engine import Engine, Limits, Places
from hmarl.trainer.suite.executor import LocalExecutor
from hmarl.trainer.suite.ledger import Ledger
from hmarl.trainer.suite.planned import PlannedRun
from hmarl.trainer.suite.records import read_record, record_of, write_record
from hmarl.trainer.suite.results import record_path, steps_of
from training_process import Training
from training_runs import command_line, final_hash, resumed, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread", "without_pictures")

TROUBLED = "troubled_environment:make"
CUT = 120  # after three of four updates
EARLIER = {"none before": 10**6, "one before": 80}


class At(StopRequest):
    """Asked to stop, as by Ctrl-C, once a run has done so many steps."""

    def __init__(self, run: Run, steps: int) -> None:
        super().__init__()
        self._run, self._steps = run, steps

    def __call__(self) -> bool:
        return self._run.counters.steps >= self._steps


def metrics(run: Path) -> list[dict[str, Any]]:
    """What was recorded, but for wall times."""
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_metrics(run)]


def config_of(interval: int, steps: int = 160, **trouble: Any) -> RunConfig:
    return tiny_config("happo", TROUBLED, {}, {"steps": steps, "evaluation_interval": interval, "loggers": ()}, trouble)


def stopped(config: RunConfig, directory: Path) -> Path:
    """A run that was stopped after ``CUT`` steps."""
    run = Run.create(config, directory)
    with pytest.raises(Interrupted):
        run.train(At(run, CUT))
    run.close()
    return directory


def concluded(directory: Path, steps: int | None = CUT) -> dict[str, Any]:
    """Ends a run where it stands; returns its summary."""
    return resumed(directory, steps)


def curve_of(directory: Path) -> RunCurve:
    """What a suite's page shows of a run."""
    found = run_curve(steps_of(record_of(directory)), "return")
    assert found is not None, "the run does not count"
    return found


def check_alike(directory: Path, ordinary: Path) -> None:
    """Whether a run that was ended where it stood has all that one has whose goal that was."""
    assert metrics(directory) == metrics(ordinary)
    assert final_hash(directory) == final_hash(ordinary)
    for name in ("last", "best"):
        ours, theirs = find_checkpoint(directory, name), find_checkpoint(ordinary, name)
        assert (ours.path.name, ours.counters, ours.pending) == (theirs.path.name, theirs.counters, None)
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (directory, ordinary))
    assert ours["best_return"] == theirs["best_return"]
    assert ours["best"]["steps"] == theirs["best"]["steps"]


@pytest.mark.parametrize("interval", EARLIER.values(), ids=EARLIER)
def test_a_run_that_is_ended_where_it_stands_counts_by_what_it_came_to(interval: int, tmp_path: Path) -> None:
    run = stopped(config_of(interval), tmp_path / "run")
    rows = metrics(run)
    concluded(run)
    train(config_of(interval, CUT), tmp_path / "ordinary")
    check_alike(run, tmp_path / "ordinary")
    assert metrics(run)[:-1] == rows[:-1]
    assert rows[-1].items() <= metrics(run)[-1].items(), "the evaluation is added to what the update was"
    curve, record = curve_of(run), record_of(run)
    assert (curve.steps[-1], curve.values[-1]) == (CUT, pytest.approx(record.final_returns.mean()))


def test_what_was_concluded_is_not_evaluated_again_and_goes_on(tmp_path: Path) -> None:
    run = stopped(config_of(10**6), tmp_path / "run")
    concluded(run)
    before, written = metrics(run), evaluation_path(run, CUT).stat().st_mtime_ns
    concluded(run, None)
    assert (metrics(run), evaluation_path(run, CUT).stat().st_mtime_ns) == (before, written)
    concluded(run, 160)
    train(config_of(10**6), tmp_path / "unbroken")
    assert metrics(run)[:-1] == before
    assert metrics(run)[-1] == metrics(tmp_path / "unbroken")[-1]
    assert final_hash(run) == final_hash(tmp_path / "unbroken")


def test_killed_while_it_is_concluded_it_is_concluded_all_the_same(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    trouble = {"evaluation": "kill", "armed": str(armed)}
    run = stopped(config_of(10**6, **trouble), tmp_path / "run")
    armed.touch()
    killed = Training("--resume", str(run), "--steps", str(CUT))
    assert killed.ended() == -signal.SIGKILL, killed.output
    armed.unlink()
    concluded(run)
    train(config_of(10**6, CUT, **trouble), tmp_path / "ordinary")
    check_alike(run, tmp_path / "ordinary")


@pytest.mark.parametrize("failing", ["mark_best", "settle_checkpoint"])
def test_a_disk_that_is_full_while_it_is_concluded_spoils_nothing(
    failing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = stopped(config_of(80), tmp_path / "run")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "x.json")

    # As if there were no score of before: then the last state is marked as the best.
    (run / "checkpoints" / "best.json").unlink()
    newest = max((run / "checkpoints").glob("step-*.json"))
    newest.write_text(json.dumps({**json.loads(newest.read_text()), "best_return": None}))
    with monkeypatch.context() as patched:
        patched.setattr(f"hmarl.trainer.runs.saver.{failing}", full)
        with pytest.raises(StorageError):
            concluded(run)
    concluded(run)
    assert metrics(run)[-1]["update"] == 3
    assert "evaluation/local/return_mean" in metrics(run)[-1]
    assert find_checkpoint(run, "best").counters.last_evaluation == CUT


def test_an_evaluation_that_failed_at_the_end_is_made_good(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config_of(80, CUT, evaluation="KeyError"), run)
    assert [row.get("evaluation_failed") for row in metrics(run)] == [None, 1.0, 1.0]
    mended = config_of(80, CUT)
    mended.write(run)
    assert concluded(run, None)["best"]["steps"] == CUT
    assert [row.get("evaluation_failed") for row in metrics(run)] == [None, 1.0, None]
    assert curve_of(run).steps.tolist() == [CUT]


@dataclass
class Clock:
    """Uses up a run's time as soon as ``when`` says so."""

    name: str
    when: Callable[[], bool]

    def show(self, ledger: Ledger) -> None:
        if self.when() and ledger.of(self.name).spent_s < 1e6:
            ledger.of(self.name).spent_s = 1e6

    def say(self, text: str) -> None:
        pass


@pytest.mark.parametrize(
    "evaluating",
    [
        pytest.param(False, id="between evaluations"),
        pytest.param(True, id="in an evaluation", marks=pytest.mark.slow),  # a minute
    ],
)
def test_a_suites_run_whose_time_is_used_up_counts_with_fewer_steps(evaluating: bool, tmp_path: Path) -> None:
    """In an evaluation as well, whose update has no line yet."""
    goal, armed, places = 10**7, tmp_path / "armed", Places(tmp_path / "runs", tmp_path / "failed")
    settings: dict[str, Any] = {"steps": goal, "evaluation_interval": goal, "evaluation_modes": "judged"}
    trouble = {}
    if evaluating:  # for so long that it is stopped before the end
        settings |= {"evaluation_interval": 40, "evaluation_step_limit": 6000}
        trouble = {"evaluation": "endless", "armed": str(armed)}
    words = command_line(tiny_config("happo", TROUBLED, {}, settings, trouble), places.runs / "a")
    at = words.index("--out")
    run = PlannedRun("a", "happo", "task", 1, goal, (*words[:at], *words[at + 2 :]))
    directory, kept = places.directory(run), tmp_path / "records"
    engine = Engine(
        [run], places,
        lambda each: write_record(record_of(places.directory(each)), record_path(kept, each.name)),
        lambda each: record_path(kept, each.name).exists(),
        LocalExecutor(path=[str(Path(__file__).parents[1])]),
        Limits(run_s=1e5, retries=0), Ledger.read(tmp_path / "suite.json"),
        Clock("a", armed.exists if evaluating else lambda: len(read_metrics(directory)) >= 3),
    )  # fmt: skip
    kept.mkdir()
    engine.train(StopRequest())
    entry = engine.ledger.of("a")
    assert (entry.status, entry.error) == ("cut off", "")
    record, last = read_record(record_path(kept, "a")), read_metrics(directory)[-1]
    found = run_curve(steps_of(record), "return")
    assert found is not None
    assert found.steps.tolist() == [last["steps"]]
    assert found.values[-1] == pytest.approx(record.final_returns.mean())
    assert find_checkpoint(directory, "best").counters.steps == last["steps"]
    assert last["steps"] == 40 if evaluating else last["steps"] >= CUT
