"""What off-policy algorithms of utilities keep of their rollouts, and draw again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from hmarl.trainer.experience.replay import Replay, cut_into_fragments
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.mixing.replayed import ReplayedFragments
from training_runs import CPU, new_algorithm, of_use

pytestmark = pytest.mark.usefixtures("single_thread")


@dataclass
class Settings:
    chunk_length: int | None = None
    replay_capacity: int = 64
    gradient_steps: int = 3
    batch_fragments: int = 5
    epsilon_start: float = 1.0
    epsilon_final: float = 0.2
    exploration_steps: int = 100


def full() -> Rollout:
    """A rollout of 4 × 8 steps."""
    sizes = of_use("qmix", {"mixing_hidden_sizes": (8,), "mixing_embedding": 4})
    algorithm, rollout, collector = new_algorithm("qmix", "toy_environments:masked_discrete", 4, 8, None, **sizes)
    collector.collect(algorithm)
    return rollout


def fragments(**settings: Any) -> ReplayedFragments:
    return ReplayedFragments(Settings(**settings), torch.Generator(CPU).manual_seed(0))


def test_nothing_is_drawn_before_something_is_stored() -> None:
    kept = fragments()
    assert list(kept.draws()) == []
    assert kept.metrics() == {"epsilon": 1.0, "replay_fragments": 0.0}
    kept.store(full())
    drawn = list(kept.draws())
    assert [len(rows["rewards"]) for rows in drawn] == [5, 5, 5]
    assert not torch.equal(drawn[0]["states"], drawn[1]["states"])


def test_what_is_stored_counts_towards_the_end_of_exploration() -> None:
    kept, rollout = fragments(), full()
    kept.store(rollout)
    assert kept.metrics()["epsilon"] == pytest.approx(1.0 - 0.8 * 32 / 100)
    for _ in range(5):
        kept.store(rollout)
    assert kept.metrics()["epsilon"] == pytest.approx(0.2)
    assert kept.components()["frames"].item() == 6 * 32


def test_rows_that_nothing_learns_from_are_left_out_and_shorter_fragments_made_where_asked() -> None:
    rollout = full()
    whole, parts = fragments(), fragments(chunk_length=4)
    whole.store(rollout, without=("active",))
    parts.store(rollout)
    (rows, *_), (shorter, *_) = whole.draws(), parts.draws()
    assert "active" not in rows
    assert "active" in shorter
    assert rows["valid"].shape[1] == min(8, rollout.spec.horizon or 8)
    assert shorter["valid"].shape[1] == 4
    assert len(parts.replay) > len(whole.replay)


def test_a_rollout_that_is_not_finite_is_counted_and_not_kept() -> None:
    rollout = full()
    kept = fragments()
    rollout.team_rewards[3, 1] = torch.nan
    kept.store(rollout)
    assert len(kept.replay) == 0
    assert list(kept.draws()) == []
    assert kept.components()["frames"].item() == 32
    assert kept.experience() == {"replay": kept.replay}


@pytest.mark.parametrize(("horizon", "guessed", "length"), [(5, False, 5), (4, True, 8), (None, False, 8)])
def test_only_a_declared_horizon_makes_fragments_shorter(horizon: int | None, guessed: bool, length: int) -> None:
    # Episodes have five steps; a guess may be too small, and episodes go on after it.
    rollout = full()
    rollout.spec = replace(rollout.spec, horizon=horizon, horizon_guessed=guessed)
    rollout.terminated = rollout.ended
    rows = cut_into_fragments(rollout, 8)
    assert rows["valid"].shape[1] == length
    assert int(rows["valid"].sum()) == rollout.steps * rollout.batch_size
    assert int(rows["terminated"].sum()) == int(rollout.terminated.sum()) == 4
    kept = (rows["rewards"] * rows["valid"]).sum()
    torch.testing.assert_close(kept, rollout.team_rewards.sum())


def test_fragments_of_before_are_replayed_beside_longer_ones() -> None:
    # As a run has them that was begun when a guessed horizon still cut fragments.
    rollout = full()
    short, long = cut_into_fragments(rollout, 4), cut_into_fragments(rollout, 8)
    old, replay = Replay(40), Replay(40)
    old.add(short)
    state = old.state_dict()
    replay.load_state_dict(
        {"next": state.pop("next"), "rows": {key.removeprefix("rows."): rows for key, rows in state.items()}}
    )
    replay.add(long)
    replay.add(short)
    kept = {key.removeprefix("rows.").replace("/", "."): rows for key, rows in replay.state_dict().items()}
    first, second = len(short["valid"]), len(short["valid"]) + len(long["valid"])
    for name in long:
        before, after, again = kept[name][:first], kept[name][first:second], kept[name][second:]
        assert torch.equal(after, long[name]), name
        assert torch.equal(before, again), name
        if before.shape[1:] != short[name].shape[1:]:
            assert torch.equal(before[:, : short[name].shape[1]], short[name]), name
    assert kept["observations.0"].shape[1] == 6, "five steps and what followed them"
    assert not kept["valid"][:first, 4:].any()
    assert not kept["terminated"][:first, 4:].any()
    assert kept["action_masks.0"].any(-1).all(), "some choice is legal everywhere"
