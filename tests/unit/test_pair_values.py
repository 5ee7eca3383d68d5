"""Values of pairs of a superior and a subordinate (``edge_values``): whom they are of, and where they end."""

from __future__ import annotations

import pytest
import torch

from credit_by_loops import AGENTS, BATCH, PAIRS, STEPS, SUB_MANAGERS, foragers, graphs_of
from hmarl.trainer.learning.returns import decision_advantages

pytestmark = pytest.mark.usefixtures("single_thread")


def test_a_pairs_value_is_of_its_own_subordinate_and_a_superiors_own_is_one() -> None:
    for settings, workers, sub_managers in ((PAIRS, AGENTS, SUB_MANAGERS), ({}, SUB_MANAGERS, 1)):
        algorithm, rollout, collector = foragers(**settings)
        collector.collect(algorithm)
        graphs, hierarchy = graphs_of(algorithm, rollout), algorithm.hierarchy
        assert hierarchy.manager is not None
        assert hierarchy.sub_managers is not None
        assert hierarchy.sub_managers.values(graphs.moments).shape == (STEPS * BATCH, workers)
        assert hierarchy.manager.values(graphs.moments).shape == (STEPS * BATCH, sub_managers)
    algorithm, rollout, collector = foragers(**PAIRS)
    collector.collect(algorithm)
    rollout.extras["cluster"] = torch.zeros_like(rollout.extras["cluster"])
    assert algorithm.hierarchy.sub_managers is not None
    values = algorithm.hierarchy.sub_managers.values(graphs_of(algorithm, rollout).moments)
    assert values.std(dim=1).min() > 0  # of one superior, and yet apart


@pytest.mark.parametrize("worker_reward", ["window", "telescoped"])
def test_a_pair_with_an_agent_that_has_left_is_not_judged(worker_reward: str) -> None:
    algorithm, rollout, collector = foragers(**PAIRS, worker_reward=worker_reward)
    collector.collect(algorithm)
    assert not rollout.active.all()
    manager, sub_managers, _ = algorithm._judged(graphs_of(algorithm, rollout))
    assert manager[3].judged.all()
    assert sub_managers[3].judged.equal(sub_managers[3].graph.active)
    assert not sub_managers[3].judged.all()


def test_a_window_ends_for_an_agent_that_leaves_and_goes_on_for_the_others() -> None:
    # One window of four steps, after which V is 10; the second agent leaves after the second step.
    rewards = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]]).unsqueeze(1)
    values = torch.full((4, 1, 2), 3.0)
    following = torch.tensor([[3.0, 3.0], [3.0, 0.0], [3.0, 0.0], [10.0, 0.0]]).unsqueeze(1)
    ended = torch.tensor([[False, False], [False, True], [False, True], [False, True]]).unsqueeze(1)
    decided = torch.tensor([[True], [False], [False], [False]])
    found = decision_advantages(rewards, values, following, ended, decided, 0.5, 0.0, "decision")
    assert found[0, 0].tolist() == [15 + 0.5 * 10 - 3, 3 - 3]
