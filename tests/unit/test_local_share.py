"""A share of the environments conducted by the local conductors: who acts under what, and what is learnt from whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.conductors.local_share import conducted_locally, own_instructions
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.learning.returns import normalise_each
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.sequential.estimates import Estimate, joint_estimate
from training_runs import new_hcpo

pytestmark = pytest.mark.usefixtures("single_thread")

TOY = "toy_environments:masked_discrete"


def collected(**settings: Any) -> tuple[Hcpo, Rollout, Collector]:
    """Six toy environments of which the first three are conducted locally; each agent's local conductor differs."""
    algorithm, rollout, collector = new_hcpo(**{"local_share": 0.5, **settings})
    assert algorithm.conductor.local is not None
    for local in algorithm.conductor.local.policies:
        local.theta.normal_(generator=torch.Generator().manual_seed(1))
    collector.collect(algorithm)
    return algorithm, rollout, collector


def estimate_of(algorithm: Hcpo, rollout: Rollout) -> Estimate:
    return joint_estimate(rollout, algorithm.critic, algorithm.state_normaliser, algorithm.settings)


def own(rollout: Rollout) -> Tensor:
    """[T, B, N] of the toy's one group."""
    instructions = own_instructions(rollout)
    assert instructions is not None
    return instructions[0]


@pytest.mark.parametrize("interval", [1, 3])
def test_agents_act_under_their_own_instruction_where_conducted_locally(interval: int) -> None:
    algorithm, rollout, _ = collected(instruction_interval=interval)
    locally = conducted_locally(rollout)
    assert locally is not None
    assert locally.all(0).tolist() == [True, True, True, False, False, False]
    assert torch.equal(own(rollout)[:, 3:], rollout.extras["instruction"][:, 3:].unsqueeze(-1).expand(-1, -1, 2))
    assert (own(rollout)[:, :3, 0] != own(rollout)[:, :3, 1]).any(), "the agents' local conductors differ"
    kept = ~rollout.extras["decided"][1:]
    assert torch.equal(own(rollout)[1:][kept], own(rollout)[:-1][kept])
    # What an agent's policy saw in the rollout is what its samples show.
    team = algorithm.samples(rollout, algorithm.features(rollout))
    for agent in range(2):
        samples = team.of_agent(agent)
        shown = samples.inputs.view(12, 6, -1)[..., -4:].argmax(-1)
        assert torch.equal(shown, own(rollout)[:, :, agent])


def test_local_conductors_draw_with_numbers_that_the_agents_share() -> None:
    """Equal local conductors choose alike, though each agent sees something else of no matter to them."""
    algorithm, rollout, collector = new_hcpo(local_share=1.0)
    assert algorithm.conductor.local is not None
    for local in algorithm.conductor.local.policies:
        local.theta.zero_()
    collector.collect(algorithm)
    assert torch.equal(own(rollout)[..., 0], own(rollout)[..., 1])
    assert len(own(rollout).unique()) == 4
    metrics = algorithm.update(rollout, 0.0)
    assert metrics["local_share"] == 1.0
    assert "step_reward/central" not in metrics


@pytest.mark.parametrize(("environments", "share"), [(4, 0.5), (8, 0.75)])
def test_the_conductor_measures_its_step_where_it_conducted(environments: int, share: float) -> None:
    """Every fourth sample is of an environment that local conductors conduct."""
    algorithm, rollout, collector = new_hcpo(batch_size=environments, local_share=share, curvature_fraction=0.25)
    for _ in range(2):
        collector.collect(algorithm)
        metrics = algorithm.update(rollout, 0.0)
        assert metrics["conductor_accepted"] == 1.0
        assert metrics["conductor_kl"] > 1e-4


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_the_share_is_of_all_environments_whoever_acts_in_them(share: float) -> None:
    locally = []
    for worker in range(4):
        algorithm, rollout, collector = new_hcpo(batch_size=2, local_share=share)
        algorithm.act_in_part(2 * worker, 8)
        collector.collect(algorithm)
        locally += rollout.extras["locally"].all(0).tolist()
    assert locally == [place < 8 * share for place in range(8)]


def test_who_comes_late_is_in_step_with_the_team_at_the_next_renewal() -> None:
    """Equal local conductors, one of whose agents comes at step 1: it renews its instruction with the others'."""
    algorithm, _, _ = new_hcpo(instruction_interval=4)
    assert algorithm.conductor.local is not None
    for local in algorithm.conductor.local.policies:
        local.theta.zero_()
    team, environment, seeds = LocalTeam(algorithm, True, "common"), make(TOY, 40), np.arange(40)
    team.reset(seeds)
    observation, running = environment.reset(seeds), np.ones(40, np.bool_)
    alike = []
    for step in range(6):
        there = np.ones((40, 2), np.bool_)
        there[:, 1] = step > 0
        actions = team.act(replace(observation, active=there), running)
        first, second = team.carried("instruction_state")[0][..., 0].T
        alike.append(bool((first == second).all()))
        observation = environment.step(actions).observation
    assert alike == [False, False, False, False, True, True]


def test_the_conductor_learns_from_those_that_it_conducted() -> None:
    algorithm, rollout, _ = collected()
    estimate = estimate_of(algorithm, rollout)
    samples = algorithm.conductor.samples(rollout, estimate.states)
    assert samples.active is not None
    assert samples.active.view(12, 6).mean(0).tolist() == [0, 0, 0, 1, 1, 1]
    # Whatever the others earned, the step is the same.
    steps = []
    for spoilt in (0.0, 50.0):
        algorithm, rollout, _ = collected()
        advantages = estimate.advantages.clone()
        advantages[:, :3] += spoilt * torch.arange(12.0).unsqueeze(-1)
        features = algorithm.features(rollout)
        improved = algorithm.conductor.improve(
            rollout, estimate.states, advantages, features, algorithm.noise_generator
        )
        steps.append(algorithm.conductor.policy.theta.clone())
    torch.testing.assert_close(steps[0], steps[1])
    assert len(improved.kl) == 36
    ratio = improved.weights.surrogate.view(12, 6)
    assert ratio[:, :3].eq(1.0).all(), "samples of local conductors weigh 1"
    assert ratio[:, 3:].std() > 0.01
    assert torch.equal(improved.ratio.view(12, 6), ratio)


def test_advantages_are_normalised_for_each_kind_apart() -> None:
    advantages = torch.tensor([[1.0, 3.0, 10.0, 30.0]])
    part = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(normalise_each(advantages, part), torch.tensor([[-1.0, 1.0, -1.0, 1.0]]))
    whole = normalise_each(advantages, None)
    assert float(whole.mean()) == pytest.approx(0.0, abs=1e-6)
    assert whole[0, 0] > whole[0, 0] * 2 - whole[0, 1]


def test_the_share_follows_its_schedule_and_a_copy_goes_on_alike() -> None:
    algorithm, rollout, collector = collected(local_share=0.0, local_share_end=1.0, instruction_interval=3)
    counts = []
    for progress in (0.0, 0.5, 0.99):
        metrics = algorithm.update(rollout, progress)
        counts.append(metrics["local_share"])
        collector.collect(algorithm)
    assert counts == [0.0, 0.0, 0.5]
    fresh, _, _ = new_hcpo(local_share=0.0, local_share_end=1.0, instruction_interval=3)
    fresh.load_acting_state(algorithm.acting_state())
    for key, value in algorithm.acting_state().items():
        assert torch.equal(fresh.acting_state()[key], value), key
    assert fresh.local_share is not None
    assert fresh.local_share.share == 0.99


def test_rewards_under_both_kinds_are_reported() -> None:
    algorithm, rollout, _ = collected()
    metrics = algorithm.update(rollout, 0.0)
    assert metrics["step_reward/local"] == pytest.approx(float(rollout.team_rewards[:, :3].mean()))
    assert metrics["step_reward/central"] == pytest.approx(float(rollout.team_rewards[:, 3:].mean()))


@pytest.mark.parametrize(
    "other", [{"conductor_sees": "common"}, {"critic": "q"}, {"instruction_weight": "paper"}, {"replay_rollouts": 1}]
)
def test_what_has_not_been_worked_out_is_refused(other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(UsageError, match=rf"algorithm\.{name}: got .* with local_share"):
        validate(Hcpo.settings_class, {"local_share": 0.5, **other}, "algorithm")
