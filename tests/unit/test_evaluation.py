"""Evaluation: returns of staggered, terminated and truncated episodes, seeds, waves, and the forms of the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from counting_environment import HORIZON, CountingEnvironment, StepTeam
from hmarl.sdk.environment import StepResult
from hmarl.sdk.errors import EnvironmentFault, MissingExtraError, UsageError
from hmarl.sdk.evaluation import Evaluation, episode_seeds, evaluate, marl_eval_json
from hmarl.sdk.reports.video import record_episode, record_played, write_video
from hmarl.sdk.team import RandomTeam

WALKER = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0]


def played(episodes: int = 7, batch: int = 3, record: bool = False) -> tuple[Evaluation, CountingEnvironment, StepTeam]:
    environment, team = CountingEnvironment(batch), StepTeam()
    return evaluate(environment, team, episodes, seed=5, record=record), environment, team


def test_episode_seeds_are_stable_and_do_not_depend_on_their_number() -> None:
    assert episode_seeds(0, 3).tolist() == [
        word & 0x7FFFFFFF for word in np.random.SeedSequence(0).generate_state(3).tolist()
    ]
    np.testing.assert_array_equal(episode_seeds(5, 100)[:7], episode_seeds(5, 7))
    assert episode_seeds(5, 7).tolist() != episode_seeds(6, 7).tolist()
    assert (episode_seeds(1, 1000) >= 0).all()
    assert (episode_seeds(1, 1000) < 2**31).all()
    with pytest.raises(UsageError, match="seed: got -1"):
        episode_seeds(-1, 1)


@pytest.mark.parametrize("batch", [1, 3, 7, 10])
def test_returns_hand_computed_whatever_the_batch(batch: int) -> None:
    evaluation, *_ = played(batch=batch)
    lengths = np.minimum(episode_seeds(5, 7) % 8 + 1, HORIZON)
    assert len(set(lengths.tolist())) > 2  # the ends are staggered
    np.testing.assert_array_equal(evaluation.lengths, lengths)
    walker = [sum(WALKER[:length]) for length in lengths]
    arm = [1.5 * min(length, 2) for length in lengths]
    np.testing.assert_allclose(evaluation.agent_returns, np.stack([walker, arm], axis=1))
    np.testing.assert_allclose(evaluation.returns, np.add(walker, arm))
    assert evaluation.successes is not None
    np.testing.assert_array_equal(evaluation.successes, episode_seeds(5, 7) % 8 + 1 <= HORIZON)


def test_waves_reset_with_their_seeds_and_ask_only_for_what_still_runs() -> None:
    _, environment, team = played(episodes=4, batch=3)
    seeds = episode_seeds(5, 6)
    assert environment.resets == [seeds[:3].tolist(), seeds[3:].tolist()]
    assert team.running[0] == [True, True, True]
    assert team.running[-1] == [True, False, False]  # the last wave's surplus rows never run


def test_recorded_actions_end_with_the_episode_and_leave_absent_agents_out() -> None:
    evaluation, *_ = played(record=True)
    assert evaluation.actions is not None
    walker, arm = evaluation.actions
    assert walker.shape == (7, evaluation.lengths.max(), 1)
    assert arm.shape == (7, evaluation.lengths.max(), 1, 2)
    for episode, length in enumerate(evaluation.lengths):
        assert walker[episode, :length, 0].tolist() == WALKER[:length]
        assert not walker[episode, length:].any()
        assert arm[episode, : min(length, 2), 0].tolist() == [[1.0, 0.5]] * min(length, 2)
        assert not arm[episode, 2:].any()


def test_progress_reaches_the_number_of_episodes() -> None:
    calls: list[tuple[int, int]] = []
    evaluate(CountingEnvironment(3), StepTeam(), 7, 5, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (7, 7)


def test_wrong_requests_and_endless_episodes_are_clear_errors() -> None:
    with pytest.raises(UsageError, match="episodes: got 0, expected at least 1"):
        evaluate(CountingEnvironment(3), StepTeam(), 0, 5)
    with pytest.raises(EnvironmentFault, match="goes on after its horizon of 6 steps"):
        evaluate(CountingEnvironment(7, honest=False), StepTeam(), 7, 5)


def test_random_team_plays_legal_actions() -> None:
    evaluation = evaluate(CountingEnvironment(3), RandomTeam(CountingEnvironment(1).spec), 7, 5)
    assert evaluation.team == "random"


def test_summary_and_marl_eval_form() -> None:
    evaluation, *_ = played()
    summary = evaluation.summary()
    assert summary["episodes"] == 7
    assert summary["return_mean"] == pytest.approx(evaluation.returns.mean())
    assert summary["return_median"] == np.median(evaluation.returns)
    assert summary["return_iqm"] == pytest.approx(np.sort(evaluation.returns)[1:6].mean())
    low, high = summary["return_ci95"]
    assert low < summary["return_iqm"] < high
    assert summary["success_rate"] == pytest.approx(evaluation.successes.mean())
    assert 0 < summary["latency_p50_us"] <= summary["latency_p99_us"]
    run = marl_eval_json([evaluation])["toy"]["counting"]["steps"]["seed_5"]
    assert run["step_0"]["step_count"] == 0
    assert run["step_0"]["return"] == run["absolute_metrics"]["return"] == evaluation.returns.tolist()


def test_a_recording_shows_one_picture_before_every_step(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v3")
    recording = record_episode(CountingEnvironment(2), StepTeam(), seed=3)
    assert recording.rewards.tolist() == [2.5, 3.5, 3.0, 4.0]
    assert [int(frame[0, 0, 0]) for frame in recording.frames] == [0, 40, 80, 120]
    for name in ("episode.gif", "episode.mp4"):
        write_video(tmp_path / name, recording.frames, 10.0)
        shape = imageio.imread(tmp_path / name).shape
        assert shape[0] == 4
        assert shape[3] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode.gif", "episode.mp4"]
    with pytest.raises(UsageError, match=r"expected a name ending in \.gif or \.mp4"):
        write_video(tmp_path / "episode.avi", recording.frames, 10.0)


class Crowd(CountingEnvironment):
    """Whose episodes depend on all that are played beside them, and on what is done there."""

    independent_copies = False

    def step(self, actions: tuple[np.ndarray, ...]) -> StepResult:
        result = super().step(actions)
        total = (self._seeds % 97).sum() + actions[0].sum()
        return replace(result, rewards=result.rewards + np.float32(total))


@pytest.mark.parametrize("kind", [CountingEnvironment, Crowd])
@pytest.mark.parametrize("first", [0, 2])
def test_an_episode_of_an_evaluation_is_played_once_more_as_it_was(kind: type[CountingEnvironment], first: int) -> None:
    environment = kind(3)
    team = RandomTeam(environment.spec)  # draws for all rows at once
    evaluation = evaluate(environment, team, 7, 5, first=first)
    assert (evaluation.batch_size, evaluation.first) == (3, first)
    for episode in range(7):
        recording = record_played(environment, team, evaluation, episode)
        assert recording.differs is None
        assert recording.seed == evaluation.seeds[episode]
        assert recording.rewards.sum() == pytest.approx(evaluation.returns[episode], rel=1e-12)
        assert [int(frame[0, 0, 0]) for frame in recording.frames] == [
            40 * step for step in range(evaluation.lengths[episode])
        ]


def test_what_is_played_once_more_runs_as_in_the_evaluation() -> None:
    environment, team = CountingEnvironment(3), StepTeam()
    evaluation = evaluate(environment, team, 4, 5)
    asked, resets = team.running, environment.resets
    team.running, environment.resets = [], []
    record_played(environment, team, evaluation, 3)
    assert environment.resets == resets[1:]
    assert team.running == [each for each in asked if not any(each[1:])][-len(team.running) :]
    assert not any(any(each[1:]) for each in team.running), "a surplus row is played"


def test_a_film_of_another_episode_says_so() -> None:
    evaluation = evaluate(Crowd(3), StepTeam(), 7, 5)
    found = record_played(Crowd(2), StepTeam(), evaluation, 4)
    assert found.differs == (
        f"played once more, episode 4 (seed {evaluation.seeds[4]}) returned {found.rewards.sum():g} after "
        f"{len(found.rewards)} steps; in the evaluation it returned {evaluation.returns[4]:g} after "
        f"{evaluation.lengths[4]}: what is shown is another episode"
    )
    alone = evaluate(CountingEnvironment(3), StepTeam(), 7, 5)
    assert record_played(CountingEnvironment(2), StepTeam(), alone, 4).differs is None


def test_a_video_without_imageio_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio.v3", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hmarl\[eval\]'"):
        write_video(tmp_path / "episode.gif", [np.zeros((4, 4, 3), np.uint8)], 10.0)
