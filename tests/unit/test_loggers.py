"""What shows a run's figures beside metrics.jsonl: it may fail or hang, and costs the run nothing."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hmarl.runtime.errors import MissingExtraError, UsageError
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.records.loggers import BackgroundLogger, check_loggers
from hmarl.trainer.runs.settings import RunSettings
from training_runs import command_line, final_hash, tiny_config, train


@dataclass
class Kept:
    """A tracker that fails, or hangs, where it is told to."""

    fail_at: int | None = None
    hang: threading.Event | None = None
    rows: list[tuple[dict[str, float], int]] = field(default_factory=list)
    finished: bool = False

    def log(self, figures: Mapping[str, float], steps: int) -> None:
        if self.hang is not None:
            self.hang.wait(60)
        if steps == self.fail_at:
            raise ConnectionError("no route\nto host")
        self.rows.append((dict(figures), steps))

    def finish(self) -> None:
        self.finished = True


def test_figures_arrive_in_order_and_finite_before_the_end() -> None:
    tracker = Kept()
    logger = BackgroundLogger("mine", lambda: tracker)
    for steps in (1, 2, 3):
        logger.log({"a": float(steps), "b": float("nan")}, steps)
    logger.close()
    assert tracker.rows == [({"a": 1.0}, 1), ({"a": 2.0}, 2), ({"a": 3.0}, 3)]
    assert tracker.finished
    assert logger.problem is None


def test_one_that_fails_is_told_once_and_asked_no_more(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Kept(fail_at=2)
    logger = BackgroundLogger("mine", lambda: tracker)
    for steps in (1, 2, 3):
        logger.log({"a": 1.0}, steps)
    logger.close()
    told = "mine: failed (ConnectionError: no route to host); metrics.jsonl has the figures"
    assert logger.problem == told
    assert len(tracker.rows) == 1
    assert [record.message for record in caplog.records] == [f"{told}; training goes on"]


def refused() -> Kept:
    raise SystemExit("not logged in")


def test_one_that_cannot_be_opened_is_told() -> None:
    logger = BackgroundLogger("mine", refused)
    logger.log({"a": 1.0}, 1)
    logger.close()
    assert logger.problem == "mine: failed (SystemExit: not logged in); metrics.jsonl has the figures"


def test_one_that_hangs_delays_nothing_but_the_end_and_that_not_for_long() -> None:
    hang = threading.Event()
    logger = BackgroundLogger("mine", lambda: Kept(hang=hang), close_s=0.2)
    begin = time.monotonic()
    for steps in range(10_000):
        logger.log({"a": 1.0}, steps)
    logger.close()
    hang.set()
    assert time.monotonic() - begin < 30.0, "it waited for the tracker"
    assert logger.problem == "mine: has not taken 4,096 updates; metrics.jsonl has the figures"
    other = BackgroundLogger("other", lambda: Kept(hang=threading.Event()), close_s=0.2)
    other.log({"a": 1.0}, 1)
    other.close()
    assert other.problem == "other: has not ended within 0.2 s; metrics.jsonl has the figures"


def test_they_are_named_as_they_are_typed() -> None:
    typed = {"tensorboard,wandb": ("tensorboard", "wandb"), "none": (), "mlflow": ("mlflow",)}
    for text, expected in typed.items():
        assert validate(RunSettings, {"loggers": text}, "run").loggers == expected
    assert RunSettings().loggers == ("tensorboard",)
    with pytest.raises(UsageError, match=r"run.loggers.*: got 'tensorbord', expected one of 'tensorboard'"):
        validate(RunSettings, {"loggers": "tensorbord"}, "run")


def test_without_any_there_is_metrics_jsonl_alone(tmp_path: Path, single_thread: None) -> None:
    run = tmp_path / "run"
    summary = train(tiny_config("mappo", "coordsum/sum-to-10", run_settings={"loggers": ()}), run)
    assert not (run / "tensorboard").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert summary["problems"] == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_is_not_installed_is_refused_before_training(
    name: str, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    words = command_line(tiny_config("mappo", "coordsum/sum-to-10"), tmp_path / "run")
    code, _, error = call("train", *words, "--set", f"run.loggers=tensorboard,{name}")
    assert (code, f"hmarl[{name}]" in error) == (2, True), error
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingExtraError):
        check_loggers([name])


def test_one_that_fails_at_the_beginning_costs_the_run_nothing(tmp_path: Path, single_thread: None) -> None:
    """As where a run is resumed on a machine without the package."""
    config = tiny_config("mappo", "coordsum/sum-to-10", run_settings={"loggers": ("wandb",)})
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    train(config, tmp_path / "run")
    train(tiny_config("mappo", "coordsum/sum-to-10"), tmp_path / "without")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["problems"]) == 1
    assert summary["problems"][0].startswith("wandb: failed (ModuleNotFoundError: No module named 'wandb')")
    assert final_hash(tmp_path / "run") == final_hash(tmp_path / "without")
