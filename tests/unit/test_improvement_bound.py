"""Theorem 1's terms by hand and in a real update; the plots of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmarl.trainer.conductors.bound_plot import ImprovementBoundPlot, realised_points
from hmarl.trainer.conductors.improvement_bound import BoundMonitor, ImprovementBound
from hmarl.trainer.networks.distributions import Categorical, Distribution
from hmarl.trainer.sequential.estimates import joint_estimate
from hmarl.trainer.sequential.samples import AgentSamples
from hmarl.trainer.sequential.turns import Move
from training_runs import CPU, new_hcpo, team_samples, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")


def test_bound_hand_computed() -> None:
    """γ = ½: C = 4 · ½ · 3 / ¼ = 24; surrogate 5; penalty 24 · (0.25 + 0.5) = 18."""
    bound = ImprovementBound(2.0, 3.0, 0.25, 0.5, 3.0, 0.5)
    assert (bound.constant, bound.surrogate, bound.penalty, bound.value) == (24.0, 5.0, 18.0, -13.0)
    assert ImprovementBound(0, 0, 0, 0, 1.0, 0.99).constant == pytest.approx(39_600)


class Moved(Categorical):
    """A policy of which the step's log-ratio and divergence are given."""

    def __init__(self, log_ratio: list[float], divergence: list[float]) -> None:
        super().__init__(torch.zeros(len(log_ratio), 2))
        self.log_ratio, self.divergence = torch.tensor(log_ratio), torch.tensor(divergence)

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_ratio

    def kl(self, other: Distribution) -> Tensor:
        return self.divergence


def move(log_ratio: list[float], divergence: list[float], active: Tensor | None = None) -> Move:
    """An agent's samples, and its new policy there."""
    policy, nothing = Moved(log_ratio, divergence), torch.zeros(len(log_ratio))
    return Move(AgentSamples(nothing, None, None, nothing, active, None, None, policy, nothing), policy)


def test_monitor_hand_computed() -> None:
    """Four samples, two agents of which the second is absent at the last; γ = ½, so that ρ has mass 2."""
    monitor = BoundMonitor(0.5, CPU)
    # Mean 1, so that the centred advantages are 1, -1, 2, -2.
    step = monitor.begin(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0, 0.0, 3.0, -1.0]))
    step.conductor_moved(torch.tensor([2.0, 1.0, 0.5, 1.0]), torch.tensor([0.1, 0.3]))
    log2 = math.log(2.0)
    step.agent_moved(move([log2, 0.0, 0.0, 0.0], [0.1, 0.0, 0.4, 0.0]))
    step.agent_moved(move([0.0, log2, 0.0, 9.0], [0.1, 0.2, 0.3, 9.0], torch.tensor([1.0, 1.0, 1.0, 0.0])))
    # Conductor: 2 · (2 − 1 + 1 − 2) / 4 = 0. Joint: 2 · (4 − 2 + 1 − 2) / 4 = ½. KL: 0.3 and 0.4 + 0.3.
    metrics = step.metrics()
    assert metrics["bound_surrogate_conductor"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["bound_surrogate_agents"] == pytest.approx(0.5)
    assert metrics["bound_kl_conductor_max"] == pytest.approx(0.3)
    assert metrics["bound_kl_agents_max"] == pytest.approx(0.7)
    assert metrics["bound_advantage_max"] == 3.0
    assert metrics["bound"] == pytest.approx(0.5 - 24.0 * 1.0)


def test_weights_of_old_samples_enter_every_mean() -> None:
    """Weights 3 and 1: centre (3·1 + 1·5)/4 = 2, centred −1 and 3; conductor 2 · (3·1·−1 + 1·2·3)/4 = 1.5."""
    monitor = BoundMonitor(0.5, CPU)
    step = monitor.begin(torch.ones(1, 1), torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0]))
    step.conductor_moved(torch.tensor([1.0, 2.0]), torch.zeros(0))
    assert step.bound().conductor_surrogate == pytest.approx(1.5)
    assert step.bound().conductor_kl_max == 0.0


def test_realised_improvement_is_the_difference_to_the_rollout_before_also_after_resuming() -> None:
    """Mean rewards 2 and 2.5 a step, γ = ½: J is 4, then 5."""
    monitor = BoundMonitor(0.5, CPU)
    first = monitor.begin(torch.tensor([[1.0, 3.0]]), torch.zeros(2)).metrics()
    assert first["performance"] == 4.0
    assert "realised_improvement" not in first
    resumed = BoundMonitor(0.5, CPU)
    resumed.load_state_dict({key: value.clone() for key, value in monitor.state_dict().items()})
    second = resumed.begin(torch.tensor([[2.5, 2.5]]), torch.zeros(2)).metrics()
    assert second["realised_improvement"] == 1.0


def test_without_discount_there_is_no_bound() -> None:
    algorithm, rollout, collector = new_hcpo(gamma=1.0)
    collector.collect(algorithm)
    assert not [key for key in algorithm.update(rollout, 0.0) if key.startswith("bound")]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", ["ratio", "paper"])
def test_an_updates_terms_are_those_of_its_steps(mode: str, shared: bool) -> None:
    """Ratios and divergences worked out anew from the parameters before and after."""
    algorithm, rollout, collector = new_hcpo(
        instruction_weight=mode, gamma=0.9, normalise_observations=False, share_parameters=shared, kl_limit=0.05
    )
    collector.collect(algorithm)
    estimate = joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    instruction = rollout.extras["instruction"].flatten()
    old_conductor = algorithm.conductor.distribution(estimate.states)
    team = team_samples(algorithm, rollout)
    rollout_of = {agent: team.of_agent(agent) for agent in algorithm.position}
    metrics = algorithm.update(rollout, 0.0)
    new_conductor = algorithm.conductor.distribution(estimate.states)
    log_ratio = new_conductor.log_prob(instruction) - old_conductor.log_prob(instruction)
    centred = (estimate.advantages - estimate.advantages.mean()).flatten()
    assert metrics["bound_surrogate_conductor"] == pytest.approx(
        float(10 * (log_ratio.exp() * centred).mean()), rel=1e-4
    )
    assert metrics["bound_kl_conductor_max"] == pytest.approx(float(old_conductor.kl(new_conductor).max()), rel=1e-4)
    divergence = torch.zeros(len(instruction))
    for agent, samples in rollout_of.items():
        group, member = algorithm.position[agent]
        new = samples.under(algorithm.policies[group], algorithm.policies[group].row(member))
        log_ratio = log_ratio + new.log_prob(samples.actions) - samples.old_log_prob
        divergence = divergence + samples.old.kl(new)
    assert metrics["bound_surrogate"] == pytest.approx(float(10 * (log_ratio.exp() * centred).mean()), rel=1e-3)
    assert metrics["bound_kl_agents_max"] == pytest.approx(float(divergence.max()), rel=1e-4)
    assert metrics["bound_kl_agents_max"] > 0
    assert metrics["bound_penalty"] > 0


def test_what_a_step_brought_is_drawn_at_that_step() -> None:
    rows = [
        {"steps": 10, "bound": -5.0},
        {"steps": 20, "rolled_back": 1.0},
        {"steps": 30, "bound": -4.0, "realised_improvement": 2.0},
        {"steps": 40, "bound": -3.0, "realised_improvement": -1.0},
    ]
    assert realised_points(rows) == [(10, 2.0), (30, -1.0)]


def test_plots_can_be_drawn_after_a_single_update() -> None:
    row = {"steps": 10} | ImprovementBound(0.0, 0.0, 0.0, 0.0, 0.0, 0.9).metrics()
    drawn = ImprovementBoundPlot().draw([row], "x")
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")
    assert ImprovementBoundPlot().draw([], "x") is None


@pytest.mark.parametrize("name", ["hcpo", "hatrpo"])
def test_a_run_draws_its_plots(name: str, tmp_path: Path) -> None:
    train(tiny_config(name, "toy_environments:masked_discrete"), tmp_path / "run")
    drawn = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
    assert drawn == {"return.png", "diagnostics.png"} | ({"improvement_bound.png"} if name == "hcpo" else set())
