"""HCPO's extensions: instructions that are vectors, and past rollouts that are learnt from again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.runtime.session import Policy
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.conductors.past_rollouts import PastRollouts, v_trace_estimate
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.export.export import export_run
from hmarl.trainer.export.samples import example_inputs
from hmarl.trainer.learning.imitation import distil
from hmarl.trainer.learning.instructions import agreement, instruction_metrics, latent_instructions
from hmarl.trainer.networks.distributions import DiagonalGaussian
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.runs.config import make_config
from hmarl.trainer.runs.loaded_run import load_run
from training_runs import new_hcpo, team_samples, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

LATENT: dict[str, Any] = {"instruction_space": "continuous", "instruction_size": 3}


def collected(**settings: Any) -> tuple[Hcpo, Rollout]:
    algorithm, rollout, collector = new_hcpo(**settings)
    collector.collect(algorithm)
    return algorithm, rollout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**LATENT, "critic": "q"}, "algorithm.critic: got 'q', expected 'v' with instruction_space=continuous"),
        ({**LATENT, "instruction_weight": "paper"}, "algorithm.instruction_weight: got 'paper', expected 'ratio'"),
        ({"replay_rollouts": 1, "critic": "q"}, "algorithm.critic: got 'q', expected 'v' with replay_rollouts=1"),
        ({"replay_rollouts": 1, "recurrent": True}, "algorithm.recurrent: got True, expected False"),
        ({"replay_rollouts": 1, "instruction_interval": 2}, "algorithm.instruction_interval: got 2, expected 1"),
        ({"replay_weight_limit": 0.5}, "algorithm.replay_weight_limit: got 0.5"),
    ],
)
def test_what_has_not_been_worked_out_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_config("hcpo", "mpe/simple_spread", settings, {}, {})
    assert message in str(error.value)


# --- continuous instructions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 3])
def test_actors_see_the_vector_in_force(interval: int) -> None:
    algorithm, rollout = collected(**LATENT, instruction_interval=interval)
    held, decided = rollout.extras["instruction"], rollout.extras["decided"]
    assert held.shape == (12, 6, 3)
    same = (held[1:] == held[:-1]).all(-1)
    assert torch.equal(same, ~decided[1:])
    samples = team_samples(algorithm, rollout).of_agent(1)
    assert torch.equal(samples.inputs[:, -3:], held.flatten(0, 1))


def test_vectors_are_about_standard_normal_at_the_start() -> None:
    _, rollout = collected(**LATENT, batch_size=256)
    drawn = rollout.extras["instruction"]
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.1)
    assert drawn.std().item() == pytest.approx(1.0, abs=0.1)


def test_weights_are_density_ratios() -> None:
    """The new conductor's mean is ½ further in the first component: log w̄/w = ½·M₀ − ⅛ where w is standard normal."""
    algorithm, rollout = collected(**LATENT)
    algorithm.conductor.policy.theta.zero_()
    states = torch.zeros(72, algorithm.spec.state_size)
    instruction = rollout.extras["instruction"].flatten(0, 1)
    samples = algorithm.conductor.samples(rollout, states)
    new = DiagonalGaussian(torch.tensor([0.5, 0.0, 0.0]).expand(72, 3), torch.zeros(3))
    weights = algorithm.conductor.agents_weights(rollout, algorithm.features(rollout), samples, new)
    torch.testing.assert_close(weights.surrogate, (0.5 * instruction[:, 0] - 0.125).exp())
    assert weights.kl is None


def test_both_levels_improve_within_their_limits() -> None:
    algorithm, rollout, collector = new_hcpo("mpe/simple_spread", 16, 25, **LATENT, kl_limit=0.003)
    for update in range(3):
        before = algorithm.conductor.policy.theta.clone()
        collector.collect(algorithm)
        metrics = algorithm.update(rollout, update / 3)
        assert metrics["conductor_kl"] <= 0.01
        assert metrics["agent_kl_max"] <= 0.003
        assert math.isfinite(metrics["bound"])
    assert not torch.equal(algorithm.conductor.policy.theta, before)


def test_local_conductors_come_to_match_the_mean_and_the_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    head = latent_instructions(2)
    students = GroupPolicy.create(2, 3, head, AlgorithmSettings(hidden_sizes=(32,)), generator)
    inputs = torch.randn(2, 400, 3, generator=generator)
    inputs[1] = -inputs[0]
    teacher = DiagonalGaussian(inputs[0, :, :2], torch.tensor([math.log(0.5), 0.0]))
    optimiser = FlatAdam(students.theta, 1e-2, 10.0)
    first = distil(students, optimiser, inputs, teacher, None, generator, epochs=1, minibatches=4)
    last = distil(students, optimiser, inputs, teacher, None, generator, epochs=80, minibatches=4)
    local = students.all_distributions(inputs)
    assert isinstance(local, DiagonalGaussian)
    assert last < 0.05 * first
    assert agreement(teacher, local) > 0.97
    torch.testing.assert_close(local.log_std[:, 0].exp(), torch.tensor([[0.5, 1.0]] * 2), atol=0.05, rtol=0)


def test_metrics_of_vectors_hand_computed() -> None:
    """Means −1 and 1 lie apart by a deviation of 1; a local conductor that says 0 meets none of it, one at half ¾."""
    conductor = DiagonalGaussian(torch.tensor([[-1.0], [1.0]]), torch.tensor([math.log(2.0)]))
    metrics = instruction_metrics(latent_instructions(1), torch.zeros(2, 1), conductor)
    assert metrics["instruction_spread"] == pytest.approx(1.0)
    assert metrics["instruction_std"] == pytest.approx(2.0)
    constant, half = (DiagonalGaussian(conductor.mean[None] * share, torch.zeros(1)) for share in (0.0, 0.5))
    assert agreement(conductor, constant) == pytest.approx(0.0)
    assert agreement(conductor, half) == pytest.approx(0.75)


@pytest.mark.parametrize("interval", [1, 3])
def test_a_run_with_vectors_evaluates_exports_and_deploys(interval: int, tmp_path: Path) -> None:
    settings = {**LATENT, "conductor_hidden_sizes": [8], "instruction_interval": interval}
    summary = train(tiny_config("hcpo", "mpe/simple_spread", settings), tmp_path / "run")
    assert set(summary["final"]) == {"local", "central", "random", "none"}
    bundle = export_run(tmp_path / "run", tmp_path / "bundle", redistilling=False)
    loaded = load_run(tmp_path / "run")
    module = loaded.algorithm.deployable(0)
    noise = next(noise for noise in module.describe("").noises if noise.purpose == "instruction")
    assert (noise.shape, noise.distribution, noise.stream) == ([3], "normal", "common")
    inputs = example_inputs(module, 33, np.random.default_rng(5))
    got = Policy(bundle, "agent_0").run_batch({name: value.numpy() for name, value in inputs.items()})
    expected = dict(zip(module.output_names, module(*inputs.values()), strict=True))
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value.numpy(), atol=1e-5)
    drawn = inputs["instruction_noise"].abs().sum(-1) > 0
    chosen = expected["instruction"] if interval == 1 else None
    if chosen is not None:
        assert torch.equal((chosen != expected["instruction_mean"]).any(-1), drawn)


def test_a_held_vector_is_renewed_when_its_steps_are_over() -> None:
    algorithm, _ = collected(**LATENT, instruction_interval=2)
    module = algorithm.deployable(0)
    entry = module.describe("")
    assert entry.states[0].shape == [4]
    rows = {
        name: torch.zeros_like(value) for name, value in example_inputs(module, 2, np.random.default_rng(0)).items()
    }
    rows["action_mask"][:] = True
    rows["instruction_noise"][:] = 1.0
    rows["instruction_state"] = torch.tensor([[7.0, 8.0, 9.0, 1.0], [7.0, 8.0, 9.0, 1.0]])
    rows["step"] = torch.tensor([3, 4])
    outputs = dict(zip(module.output_names, module(*rows.values()), strict=True))
    assert outputs["next_instruction_state"][0].tolist() == [7.0, 8.0, 9.0, 1.0]
    drawn = outputs["instruction_mean"][1] + module.instruction_log_std.exp()
    torch.testing.assert_close(outputs["next_instruction_state"][1], torch.cat([drawn, torch.ones(1)]))


def test_random_vectors_differ_from_the_local_conductors() -> None:
    algorithm, _, _ = new_hcpo("mpe/simple_spread", 4, 12, **LATENT)
    for policy in algorithm.policies:
        policy.theta += torch.randn(policy.theta.shape, generator=torch.Generator().manual_seed(1))
    environment = make("mpe/simple_spread", 4)
    played = [
        evaluate(environment, team, 4, 1).returns
        for team in (LocalTeam(algorithm), algorithm.teams()["random"], algorithm.teams()["random"])
    ]
    np.testing.assert_array_equal(played[1], played[2])
    assert not np.array_equal(played[0], played[1])


# --- replayed rollouts ----------------------------------------------------------------------------------------------


def test_weights_are_truncated_ratios_and_1_in_the_fresh_rollout() -> None:
    """One step, one environment: now ln ¼; kept rollouts were collected at ln ½ and ln ⅛: ratios ½ and 2, limit 1½."""
    _, rollout = collected(batch_size=1, steps=1)
    replay = PastRollouts(rollout.spec, 2)
    for then in (9.0, 0.5, 0.125):  # the first makes room
        replay.add(rollout, torch.tensor([[then]]).log())
    joined = replay.beside(rollout)
    assert joined.rollout.batch_size == 3
    assert joined.next_states.shape == (1, 3, rollout.spec.state_size)
    weights = replay.weights(torch.tensor([[0.7, 0.25, 0.25]]).log(), 1.5)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.5, 1.5]]))


def test_a_rollout_that_is_not_finite_is_not_kept() -> None:
    _, rollout = collected()
    replay = PastRollouts(rollout.spec, 2)
    rollout.team_rewards[3, 2] = math.nan
    replay.add(rollout, torch.zeros(12, 6))
    assert replay.kept == []


def test_advantages_and_targets_follow_v_trace() -> None:
    """γ = λ = ½, V ≡ 0, rewards 1, 2, 4, weights 1½, ½, 2 (traces 1, ½, 1), nothing ends:
    Â = 4; 2 + ¼·1·4 = 3; 1 + ¼·½·3 = 1⅜. Targets: 1·1⅜, ½·3, 1·4.
    """
    algorithm, rollout = collected(batch_size=1, steps=3, replay_rollouts=1, gamma=0.5, gae_lambda=0.5)
    algorithm.critic.theta.zero_()
    joined = algorithm.past.beside(rollout)
    joined.rollout.terminated[:] = joined.rollout.truncated[:] = False
    joined.rollout.team_rewards[:, 0] = torch.tensor([1.0, 2.0, 4.0])
    weight = torch.tensor([[1.5], [0.5], [2.0]])
    estimate = v_trace_estimate(joined, weight, algorithm.critic, algorithm.state_normaliser, algorithm.settings)
    assert estimate.advantages[:, 0].tolist() == pytest.approx([1.375, 3.0, 4.0])
    assert estimate.returns[:, 0].tolist() == pytest.approx([1.375, 1.5, 4.0])


def test_without_kept_rollouts_an_update_is_the_on_policy_one() -> None:
    """Episodes of 5 steps end inside the rollout, by termination and truncation. Rounding differs, and the natural
    gradient enlarges that.
    """
    plain, rollout = collected()
    replaying, same = collected(replay_rollouts=2)
    before = {name: plain.components()[name].clone() for name in ("policies.0", "conductor", "local_conductors.0")}
    plain.update(rollout, 0.0)
    replaying.update(same, 0.0)
    for name, old in before.items():
        step = plain.components()[name] - old
        assert (replaying.components()[name] - plain.components()[name]).norm() < 0.01 * step.norm(), name
    torch.testing.assert_close(replaying.critic.theta, plain.critic.theta, atol=1e-4, rtol=1e-3)


def test_replayed_samples_move_both_levels_and_the_normalisers_see_each_rollout_once() -> None:
    moved = []
    for spoil in (False, True):
        algorithm, rollout, collector = new_hcpo(replay_rollouts=2)
        collector.collect(algorithm)
        algorithm.update(rollout, 0.0)
        if spoil:
            algorithm.past.kept[0]["team_rewards"] *= -1.0
        collector.collect(algorithm)
        metrics = algorithm.update(rollout, 0.0)
        assert 0.0 < metrics["replay_weight"] <= 1.0
        moved.append(algorithm)
    first, second = moved
    assert not torch.equal(first.conductor.policy.theta, second.conductor.policy.theta)
    assert not torch.equal(first.policies[0].theta, second.policies[0].theta)
    assert len(first.past.kept) == 2
    plain, rollout, collector = new_hcpo()
    for _ in range(2):
        collector.collect(plain)
        plain.update(rollout, 0.0)
    assert first.state_normaliser.state_dict()["count"] == plain.state_normaliser.state_dict()["count"]


def test_the_stored_likelihood_is_that_of_the_policies_that_collected() -> None:
    """Worked out agent by agent; the second agent's absences do not count."""
    algorithm, rollout, collector = new_hcpo("toy_environments:leaving", replay_rollouts=1)
    collector.collect(algorithm)
    states = algorithm.state_normaliser(rollout.states[:-1])
    conductor = algorithm.conductor.distribution(states)
    expected = conductor.log_prob(rollout.extras["instruction"])
    for agent in range(len(algorithm.spec.agents)):
        samples = team_samples(algorithm, rollout).of_agent(agent)
        own = samples.old_log_prob.view(12, 6)
        expected = expected + torch.where(rollout.active[:, :, agent], own, 0.0)
    algorithm.update(rollout, 0.0)
    torch.testing.assert_close(algorithm.past.kept[0]["log_likelihood"], expected)
