"""Telescoped rewards: a superior's TD error at every step of a window, by hand, and what they add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from credit_by_loops import (
    BATCH,
    INTERVAL,
    MANAGER_INTERVAL,
    STEPS,
    SUB_MANAGERS,
    TELESCOPED,
    ByLoops,
    foragers,
    graphs_of,
)
from hmarl.trainer.hierarchy.level import Decisions, Judgements
from hmarl.trainer.hierarchy.outcome import Outcome, step_errors

pytestmark = pytest.mark.usefixtures("single_thread")

GAMMA = 0.5
REWARDS = [1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 1.0]
VALUES = [4.0, 6.0, 2.0, 8.0, 1.0, 5.0, 7.0]


def errors_of(next_values: list[float], ended: list[int], decided: list[int]) -> list[float]:
    """Of one environment and one superior over seven steps."""

    def at(steps: list[int]) -> Tensor:
        return torch.tensor([[t in steps] for t in range(7)])

    rewards, values, following = (torch.tensor(row).view(7, 1, 1) for row in (REWARDS, VALUES, next_values))
    return step_errors(rewards, values, following, at(ended), at(decided), GAMMA).flatten().tolist()


def test_inside_a_window_values_are_not_discounted_and_where_the_next_one_opens_they_are() -> None:
    # Windows [0, 3), [3, 6) and [6, 7), cut short by the rollout, after which V is 10.
    found = errors_of([6.0, 2.0, 8.0, 1.0, 5.0, 7.0, 10.0], ended=[], decided=[0, 3, 6])
    assert found == [
        1 + 6 - 4,
        0 + 2 - 6,
        2 + 0.5 * 8 - 2,
        0 + 1 - 8,
        3 + 5 - 1,
        0 + 0.5 * 7 - 5,
        1 + 0.5 * 10 - 7,
    ]
    assert sum(found[:3]) == 1 + 0 + 2 + GAMMA * 8 - 4  # the decision's advantage with λ = 0


def test_an_episodes_end_closes_a_window_with_nothing_after_termination_and_the_final_value_after_truncation() -> None:
    # The episode terminates at step 1 (what follows is worth 0), the next is cut off at step 4, where V was 20.
    found = errors_of([6.0, 0.0, 8.0, 1.0, 20.0, 7.0, 10.0], ended=[1, 4], decided=[0, 2, 5])
    assert found == [
        1 + 6 - 4,
        0 + 0 - 6,
        2 + 8 - 2,
        0 + 1 - 8,
        3 + 0.5 * 20 - 1,
        0 + 7 - 5,
        1 + 0.5 * 10 - 7,
    ]


def test_those_below_earn_the_errors_at_every_step_and_no_gradient_passes_up() -> None:
    errors = torch.tensor([[3.0], [-4.0]]).view(2, 1, 1).requires_grad_()
    nothing, decided = torch.zeros(2, 1, 1), torch.tensor([[True], [False]])
    told = Outcome(nothing, nothing + 9.0, nothing, errors).told(decided, 2, earns=decided)
    assert told.flatten().tolist() == [3.0, -4.0]
    assert not told.requires_grad


@pytest.mark.parametrize("levels", [2, 3])
def test_over_a_window_they_add_up_to_the_superiors_advantage(levels: int) -> None:
    algorithm, rollout, collector = foragers(**TELESCOPED, levels=levels)
    collector.collect(algorithm)
    assert rollout.terminated.any()
    assert (rollout.ended & ~rollout.terminated).any()
    assert not rollout.active.all()
    graphs = graphs_of(algorithm, rollout)
    loops, hierarchy, checked = ByLoops(algorithm, rollout, graphs), algorithm.hierarchy, 0
    for level, superiors, length, name in (
        (hierarchy.manager, 1, INTERVAL * MANAGER_INTERVAL, "manager_decided"),
        (hierarchy.sub_managers, SUB_MANAGERS, INTERVAL, "decided"),
    ):
        if level is None:
            continue
        rewards = torch.randn(STEPS, BATCH, superiors, generator=torch.Generator().manual_seed(5))
        outcome = graphs.outcome(level, rewards, rollout.extras[name])
        assert outcome.errors is not None
        for b in range(BATCH):
            for start, stop in loops.windows(b, length):
                torch.testing.assert_close(
                    outcome.errors[start:stop, b].sum(0), outcome.advantages[start, b], rtol=1e-5, atol=1e-5
                )
                checked += 1
    assert checked > 10 * (levels - 1)


def test_a_worker_earns_the_error_of_the_sub_manager_to_whom_it_reports() -> None:
    algorithm, rollout, collector = foragers(**TELESCOPED, levels=2, gae_lambda=0.0, normalise_values=False)
    collector.collect(algorithm)
    rollout.extras["cluster"] = torch.tensor([0, 1, 1, 0, 1]).expand(STEPS, BATCH, 5).clone()
    graphs = graphs_of(algorithm, rollout)
    workers, sub_managers = algorithm.hierarchy.workers, algorithm.hierarchy.sub_managers
    assert sub_managers is not None
    workers.value_theta.zero_()  # what it earns is its advantage then
    team = rollout.team_rewards.unsqueeze(-1).expand(-1, -1, SUB_MANAGERS)
    errors = graphs.outcome(sub_managers, team, rollout.extras["decided"]).errors
    _, _, decisions, _ = algorithm._judged(graphs)[-1]
    assert errors is not None
    earned = decisions.advantages.unflatten(0, (STEPS, BATCH))
    torch.testing.assert_close(earned, errors[..., [0, 1, 1, 0, 1]])
    assert not errors[..., 0].equal(errors[..., 1])


def test_superiors_values_learn_from_every_step_and_their_policies_from_their_decisions() -> None:
    algorithm, rollout, collector = foragers(**TELESCOPED)
    collector.collect(algorithm)
    manager, sub_managers, workers = algorithm._judged(graphs_of(algorithm, rollout))
    for (_, _, decisions, judgements), name in ((manager, "manager_decided"), (sub_managers, "decided")):
        assert decisions.graph.moments == int(rollout.extras[name].sum()) < STEPS * BATCH
        assert judgements.graph.moments == STEPS * BATCH
        assert judgements.judged.all()
    assert workers[2].graph is workers[3].graph


def test_the_minibatches_of_a_value_that_learns_from_more_moments_cover_them_all() -> None:
    algorithm, rollout, collector = foragers(**TELESCOPED, levels=2, epochs=2, minibatches=3)
    collector.collect(algorithm)
    (_, level, decisions, judgements), _ = algorithm._judged(graphs_of(algorithm, rollout))
    fitted, climbed = [], []

    def fit(part: Judgements, schedule: float) -> dict[str, Tensor]:
        fitted.append(part.returns)
        return {"critic_loss": torch.zeros(())}

    def climb(part: Decisions, old: Tensor, advantages: Tensor, schedule: float) -> dict[str, Tensor]:
        climbed.append(part.advantages)
        return {"kl": torch.zeros(())}

    marked = replace(judgements, returns=torch.arange(STEPS * BATCH).unsqueeze(-1).expand(-1, SUB_MANAGERS) * 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level, "_fit", fit)
        patch.setattr(level, "_climb", climb)
        level.improve(decisions, marked, torch.Generator().manual_seed(3), 1.0)
    assert sum(len(part) for part in climbed) == 2 * decisions.graph.moments
    for epoch in (fitted[:3], fitted[3:]):
        assert sorted(torch.cat(epoch)[:, 0].tolist()) == list(range(STEPS * BATCH))
