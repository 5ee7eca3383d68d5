"""The distillation's rounds: students come to do what their teacher does, stop, and go on bit for bit."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toy_environments
from following_teacher import SkilledTeacher
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.contract.teacher import GoalKind
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.records.checkpoint import Counters
from hmarl.trainer.records.problems import CheckpointError, DivergedError
from hmarl.trainer.runs.seeds import EVALUATION_SEED
from hmarl.trainer.students.dagger import REPORT_SEED, Distillation, Distilled
from hmarl.trainer.students.kept import KeptDistillation
from hmarl.trainer.students.settings import DistillationSettings
from training_runs import CPU, tiny_networks

pytestmark = pytest.mark.usefixtures("single_thread")
LEAVING, ALIKE = "toy_environments:leaving", "toy_environments:masked_discrete"
SMALL: dict[str, Any] = {
    "environments": 8,
    "steps": 10,
    "rounds": 4,
    "epochs": 2,
    "chunk_length": 5,
    "hidden_sizes": (8,),
    "memory_size": 6,
    "decision_sizes": (7,),
    "evaluation_episodes": 6,
    "kept_rounds": 2,
}


def settings_of(**settings: Any) -> DistillationSettings:
    return validate(DistillationSettings, {**SMALL, **settings}, "distillation")


class Stopped(Exception):
    """Stands for whatever ends the process."""


class StoppingAfter(KeptDistillation):
    """Ends the distillation as soon as so many rounds have been kept."""

    rounds = 0

    def save(self, state: Any, newest: Any, counters: Counters) -> None:
        super().save(state, newest, counters)
        if counters.update == self.rounds:
            raise Stopped


def kept_in(
    folder: Path, settings: DistillationSettings, kind: type[KeptDistillation] = KeptDistillation, **origin: Any
) -> Any:
    origin = {"checkpoint": "step-1", **{f"distillation.{k}": v for k, v in settings.model_dump().items()}, **origin}
    return kind(folder, origin, settings.kept_rounds)


def distil(
    kept: KeptDistillation,
    settings: DistillationSettings,
    environment: str = LEAVING,
    goal: GoalKind | None = None,
    name: str = "happo",
    **algorithm_settings: Any,
) -> Distilled:
    """Of a skilled teacher, who knows no more than the students do; of the algorithm's own where it has one."""
    made = make(environment, 1)
    made.close()
    algorithm_class = find_algorithm(name)
    given = {**tiny_networks(name), "normalise_observations": False, **algorithm_settings}
    checked = validate(algorithm_class.settings_class, given, "algorithm")
    algorithm = algorithm_class(made.spec, checked, torch.Generator().manual_seed(3), CPU)
    teacher = algorithm.teacher() or SkilledTeacher(algorithm, goal)
    with closing(Distillation(algorithm, teacher, environment, {}, settings)) as distillation:
        return distillation.run(kept)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def thetas(distilled: Distilled) -> list[Tensor]:
    return [policy.theta for policy in distilled.students.policies]


@pytest.mark.parametrize("sampled", [False, True])
def test_students_come_to_do_what_their_teacher_does(sampled: bool, tmp_path: Path) -> None:
    settings = settings_of(
        environments=32,
        rounds=5,
        epochs=15,
        learning_rate=0.01,
        memory_size=16,
        hidden_sizes=(32,),
        kept_rounds=6,
        evaluation_episodes=50,
    )
    distilled = distil(
        kept_in(tmp_path / "students", settings), settings, ALIKE, GoalKind(3), deterministic_evaluation=not sampled
    )
    rows, report = metrics(tmp_path / "students"), distilled.report
    assert rows[-1]["imitation_kl"] < 0.2 * rows[0]["imitation_kl"]
    assert rows[-1]["learnt_kl"] < 0.2 * rows[0]["imitation_kl"]
    assert rows[-1]["learnt_goal_error"] < 0.1
    assert rows[0]["action_agreement"] < 0.6
    assert report.action_agreement is not None
    assert report.action_agreement > 0.9
    assert report.kl < 0.2 * rows[0]["imitation_kl"]
    assert report.goal_variance_explained is not None
    assert report.goal_variance_explained > 0.8
    assert report.action_difference is report.goal_accuracy is None
    assert (report.teacher, report.sampled, report.episodes) == ("skilled", sampled, 50)
    assert report.seed == REPORT_SEED != EVALUATION_SEED
    assert report.students_return == distilled.evaluation["return_mean"]
    assert report.gap == pytest.approx(report.teacher_return - report.students_return)
    assert report.ratio == pytest.approx(report.students_return / report.teacher_return)
    assert report.ratio > 0.9
    assert report.rounds == len(rows)
    assert report.steps == report.rounds * 32 * 10 == rows[-1]["steps"]
    assert report.settings == settings.model_dump(mode="json")


def test_all_kinds_of_agents_are_measured(tmp_path: Path) -> None:
    settings = settings_of(rounds=2)
    report = distil(kept_in(tmp_path, settings), settings, LEAVING, GoalKind(3, discrete=True)).report
    for share in (report.action_agreement, report.goal_accuracy):
        assert share is not None
        assert 0.0 < share < 1.0
    assert report.action_difference is not None
    assert report.action_difference > 0
    assert report.goal_variance_explained is None


def test_goals_that_are_all_one_leave_nothing_to_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = SkilledTeacher._goal

    def collapsed(self: SkilledTeacher, before: Tensor) -> Tensor | None:
        goal = inner(self, before)
        return None if goal is None else 1.0 + 1e-4 * goal

    monkeypatch.setattr(SkilledTeacher, "_goal", collapsed)
    settings = settings_of(rounds=1)
    report = distil(kept_in(tmp_path, settings), settings, ALIKE, GoalKind(3)).report
    assert report.goal_variance_explained is report.goal_accuracy is None
    assert math.isfinite(report.kl)


@pytest.mark.parametrize(
    ("environment", "goal", "settings", "algorithm_settings"),
    [
        (LEAVING, GoalKind(3), {}, {}),
        # Labels follow from what the agents before have drawn.
        ("coordsum/2x4-6", None, {}, {"name": "sable", "embedding_size": 8, "deterministic_evaluation": False}),
        (ALIKE, GoalKind(3, discrete=True), {"kept_rounds": 10, "minibatches": 1}, {"share_parameters": True}),
    ],
)
def test_what_was_cut_off_goes_on_bit_for_bit(
    environment: str,
    goal: GoalKind | None,
    settings: dict[str, Any],
    algorithm_settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    checked = settings_of(rounds=5, **settings)
    whole = distil(kept_in(tmp_path / "whole", checked), checked, environment, goal, **algorithm_settings)
    cut = tmp_path / "cut"
    for rounds in (1, 4):
        kept = kept_in(cut, checked, StoppingAfter)
        kept.rounds = rounds
        with pytest.raises(Stopped):
            distil(kept, checked, environment, goal, **algorithm_settings)
    resumed = distil(kept_in(cut, checked), checked, environment, goal, **algorithm_settings)
    assert all(torch.equal(a, b) for a, b in zip(thetas(whole), thetas(resumed), strict=True))
    assert resumed.report == whole.report
    assert metrics(cut) == metrics(tmp_path / "whole")
    assert [row["update"] for row in metrics(cut)] == [1, 2, 3, 4, 5]
    ends = [max((tmp_path / name / "checkpoints").glob("*.json")).read_text() for name in ("cut", "whole")]
    assert ends[0] == ends[1]


def test_a_damaged_round_is_passed_over(tmp_path: Path) -> None:
    settings = settings_of()
    whole = distil(kept_in(tmp_path / "whole", settings), settings)
    kept = kept_in(tmp_path / "cut", settings, StoppingAfter)
    kept.rounds = 3
    with pytest.raises(Stopped):
        distil(kept, settings)
    newest = max((tmp_path / "cut" / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = distil(kept_in(tmp_path / "cut", settings), settings)
    assert all(torch.equal(a, b) for a, b in zip(thetas(whole), thetas(resumed), strict=True))
    assert resumed.report == whole.report


def test_rounds_of_another_length_are_refused(tmp_path: Path) -> None:
    # As an earlier version left them, which cut rounds at a guessed horizon.
    settings, longer = settings_of(), settings_of(steps=15)
    kept = kept_in(tmp_path, settings, StoppingAfter)
    kept.rounds = 2
    with pytest.raises(Stopped):
        distil(kept, settings)
    with pytest.raises(UsageError, match=r"got rounds of 10 steps, expected 15 .* --restart-students"):
        distil(kept_in(tmp_path, settings), longer)


def test_a_finished_distillation_survives_a_kill_while_its_data_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, **_: Any) -> None:
        max(Path(folder).glob("*.safetensors")).unlink()
        raise Stopped

    settings = settings_of()
    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(Stopped):
        distil(kept_in(tmp_path, settings), settings)
    monkeypatch.undo()
    again = distil(kept_in(tmp_path, settings), settings)
    whole = distil(kept_in(tmp_path / "whole", settings), settings)
    assert all(torch.equal(a, b) for a, b in zip(thetas(whole), thetas(again), strict=True))
    assert not (tmp_path / ".data").exists()


def test_a_damaged_end_is_not_made_up_for_without_its_data(tmp_path: Path) -> None:
    settings = settings_of()
    distil(kept_in(tmp_path, settings), settings)
    newest = max((tmp_path / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{newest.name}: damaged, .* is deleted; --restart-students"):
        distil(kept_in(tmp_path, settings), settings)


def test_damaged_data_are_named_with_what_helps(tmp_path: Path) -> None:
    settings = settings_of()
    kept = kept_in(tmp_path, settings, StoppingAfter)
    kept.rounds = 3
    with pytest.raises(Stopped):
        distil(kept, settings)
    newest = max((tmp_path / "data").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{newest.name}.*damaged.*--restart-students"):
        distil(kept_in(tmp_path, settings), settings)
    (tmp_path / "distillation.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"distillation.json: damaged .*--restart-students"):
        distil(kept_in(tmp_path, settings), settings)


def test_what_is_done_is_used_again_and_its_data_are_gone(tmp_path: Path) -> None:
    settings = settings_of(rounds=2)
    first = distil(kept_in(tmp_path, settings), settings)
    assert not (tmp_path / "data").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = distil(kept_in(tmp_path, settings), settings)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert again.report == first.report
    assert all(torch.equal(a, b) for a, b in zip(thetas(first), thetas(again), strict=True))


def test_another_distillation_is_not_gone_on_with_unasked(tmp_path: Path) -> None:
    settings, other = settings_of(rounds=2), settings_of(rounds=2, learning_rate=0.1, hidden_sizes=(9,))
    distil(kept_in(tmp_path, settings), settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as refused:
        distil(kept_in(tmp_path, other, checkpoint="step-2"), other)
    said = str(refused.value)
    assert "checkpoint: got 'step-2', begun with 'step-1'" in said
    assert "distillation.learning_rate: got 0.1, begun with 0.003" in said
    assert "distillation.hidden_sizes: got [9], begun with [8]" in said
    assert "rounds" not in said
    assert "--restart-students" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    restarted = KeptDistillation(tmp_path, {"checkpoint": "step-2"}, other.kept_rounds, restart=True)
    distil(restarted, other)
    fresh = distil(KeptDistillation(tmp_path / "fresh", {"checkpoint": "step-2"}, other.kept_rounds), other)
    assert metrics(tmp_path) == metrics(tmp_path / "fresh")
    assert all(torch.isfinite(theta).all() for theta in thetas(fresh))


def test_it_ends_when_the_students_no_longer_improve(tmp_path: Path) -> None:
    settings = settings_of(rounds=9, patience=2, learning_rate=1e-12)
    report = distil(kept_in(tmp_path, settings), settings).report
    assert (report.stopped, report.rounds) == ("patience", 3)


def test_it_ends_when_the_teachers_return_is_reached(tmp_path: Path) -> None:
    settings = settings_of(
        environments=32,
        rounds=30,
        epochs=10,
        kept_rounds=9,
        learning_rate=0.01,
        hidden_sizes=(32,),
        evaluation_episodes=2,
    )
    report = distil(kept_in(tmp_path, settings), settings, ALIKE).report
    assert report.stopped == "teacher reached"
    rows = metrics(tmp_path)
    assert [row["return"] >= row["teacher_return"] for row in rows] == [False] * (len(rows) - 1) + [True]


def test_the_best_round_is_exported_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(rounds=3)
    earned = iter([1.0, 3.0, 2.0])
    seen: list[list[Tensor]] = []
    inner = Distillation._take_stock

    def take_stock(self: Distillation, _: float) -> None:
        seen.append([policy.theta.clone() for policy in self.students.policies])
        inner(self, next(earned))

    monkeypatch.setattr(Distillation, "_take_stock", take_stock)
    monkeypatch.setattr(Distillation, "_teacher_return", property(lambda _: 10.0))
    distilled = distil(kept_in(tmp_path, settings), settings)
    assert distilled.report.rounds == 3
    assert all(torch.equal(a, b) for a, b in zip(thetas(distilled), seen[1], strict=True))
    assert not torch.equal(seen[1][0], seen[2][0])


@pytest.mark.parametrize(
    ("tolerance", "stopped"), [(0.0, "rounds"), (0.09, "rounds"), (0.19, "rounds"), (0.21, "patience")]
)
def test_to_improve_is_to_earn_more_by_a_share_of_the_teachers_return(
    tolerance: float, stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Improvements of one each, of a teacher's ten: two of them are more than 0.19 allows."""
    earned, inner = iter([-13.0, -12.0, -11.0]), Distillation._take_stock
    monkeypatch.setattr(Distillation, "_take_stock", lambda self, _: inner(self, next(earned)))
    monkeypatch.setattr(Distillation, "_teacher_return", property(lambda _: -10.0))
    settings = settings_of(rounds=3, patience=2, tolerance=tolerance)
    report = distil(kept_in(tmp_path, settings), settings).report
    assert (report.stopped, report.rounds) == (stopped, 3)


def test_students_that_are_no_longer_finite_are_an_error(tmp_path: Path) -> None:
    settings = settings_of(learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"distillation: '.*' is (nan|inf) in round 1.*distillation.learning_rate"):
        distil(kept_in(tmp_path, settings), settings)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("given", "horizon", "guessed", "expected"),
    [
        ({}, 100, False, (4, 32)),
        ({}, 25, False, (1, 25)),
        ({}, None, False, (4, 32)),
        ({}, 25, True, (4, 32)),  # episodes may last longer than a guess
        ({}, 300, True, (10, 32)),
        ({"steps": 10, "chunk_length": 4}, 100, False, (3, 4)),
        ({"steps": 64}, 1, False, (2, 32)),
        ({"steps": 64}, 300, True, (2, 32)),
    ],
)
def test_a_round_is_whole_chunks(
    given: dict[str, int], horizon: int | None, guessed: bool, expected: tuple[int, int]
) -> None:
    environment = make(ALIKE, 1)
    spec = replace(environment.spec, horizon=horizon, horizon_guessed=guessed)
    assert validate(DistillationSettings, given, "distillation").chunks(spec) == expected


@pytest.mark.parametrize(
    ("steps", "horizon", "said"), [(3, None, True), (None, None, False), (5, None, False), (3, 5, False)]
)
def test_episodes_that_outlast_a_round_are_told_once(
    steps: int | None, horizon: int | None, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(steps=steps, chunk_length=1, rounds=2, epochs=1, environments=2)
    made = toy_environments.masked_discrete(1)
    spec = replace(made.spec, horizon=horizon)
    algorithm_class = find_algorithm("happo")
    checked = validate(algorithm_class.settings_class, tiny_networks("happo"), "algorithm")
    algorithm = algorithm_class(spec, checked, torch.Generator().manual_seed(3), CPU)
    with closing(Distillation(algorithm, SkilledTeacher(algorithm, None), ALIKE, {}, settings)) as distillation:
        distillation.run(kept_in(tmp_path, settings))
    told = [record.getMessage() for record in caplog.records if "distillation.steps" in record.getMessage()]
    assert len(told) == said
    assert all("an episode of the skilled had 5" in each for each in told), told
    assert all("Set distillation.steps=5 or more" in each for each in told), told
    assert not any("declares no horizon" in each for each in told), "the steps were asked for"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"round": 3}, "unknown setting 'distillation.round'; did you mean 'distillation.rounds'"),
        ({"rounds": 0}, "distillation.rounds: got 0, expected a number of at least 1"),
        ({"learning_rate": math.inf}, "distillation.learning_rate: got inf"),
        ({"hidden_sizes": [0]}, "distillation.hidden_sizes.0: got 0"),
        ({"seed": "x"}, "distillation.seed: got 'x'"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        validate(DistillationSettings, given, "distillation")
    assert said in str(refused.value)
    assert all(field.description for field in DistillationSettings.model_fields.values())
