"""The trust-region step on problems whose solution is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hmarl.trainer.learning.trust_region import TrustRegionSettings, conjugate_gradient, trust_region_step
from training_runs import new_algorithm, team_samples

pytestmark = pytest.mark.usefixtures("single_thread")


def identity(theta: Tensor) -> Tensor:
    """The parameters are the policy."""
    return theta


def positive_definite(size: int, seed: int = 0) -> Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64)


def test_conjugate_gradient_solves_a_random_system() -> None:
    matrix = positive_definite(12)
    b = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solution = conjugate_gradient(lambda v: matrix @ v, b, steps=40, tolerance=1e-24)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-10)


def test_conjugate_gradient_needs_one_step_for_each_different_eigenvalue() -> None:
    matrix = torch.diag(torch.tensor([2.0, 2.0, 5.0, 5.0], dtype=torch.float64))
    b = torch.tensor([1.0, -2.0, 3.0, 1.0], dtype=torch.float64)
    products = []

    def product(vector: Tensor) -> Tensor:
        products.append(vector)
        return matrix @ vector

    torch.testing.assert_close(conjugate_gradient(product, b, steps=10), b / matrix.diagonal())
    assert len(products) == 2


def test_conjugate_gradient_of_nothing_is_nothing() -> None:
    assert conjugate_gradient(lambda v: 2.0 * v, torch.zeros(3), steps=5).tolist() == [0.0, 0.0, 0.0]


GRADIENT = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
HESSIAN = positive_definite(3, seed=2)
START = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def linear(theta: Tensor) -> Tensor:
    return GRADIENT.dot(theta)


def quadratic(theta: Tensor) -> Tensor:
    return 0.5 * (theta - START) @ HESSIAN @ (theta - START)


def settings(**changes: float) -> TrustRegionSettings:
    return TrustRegionSettings(**{"kl_limit": 0.02, "damping": 0.0, **changes})  # type: ignore[arg-type]


def natural_step(hessian: Tensor, kl_limit: float) -> Tensor:
    """√(2δ / gᵀH⁻¹g) · H⁻¹g."""
    direction = torch.linalg.solve(hessian, GRADIENT)
    return (2 * kl_limit / GRADIENT.dot(direction)).sqrt() * direction


def test_step_on_a_quadratic_is_the_known_closed_form() -> None:
    """The KL is shrunk by a hair, because rounding may put the full step just above the limit."""
    step = trust_region_step(START, identity, linear, lambda theta: quadratic(theta) * (1 - 1e-9), settings())
    torch.testing.assert_close(step.theta, START + natural_step(HESSIAN, 0.02), rtol=1e-6, atol=1e-8)
    assert step.accepted
    assert torch.equal(step.policy, step.theta)
    assert step.tries == 1
    assert step.kl == pytest.approx(0.02, rel=1e-6)
    expected = math.sqrt(2 * 0.02 * float(GRADIENT.dot(torch.linalg.solve(HESSIAN, GRADIENT))))
    assert step.improvement == pytest.approx(expected, rel=1e-6)
    assert step.predicted_improvement == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1e3])
def test_the_steps_length_is_the_limits_and_not_the_gradients(scale: float) -> None:
    """Of the gradients' largest entries, 2, one is scaled to 1."""
    step = trust_region_step(START, identity, lambda theta: scale * linear(theta), quadratic, settings())
    shrunk = 0.8 ** (step.tries - 1)  # rounding may put the full step just above the limit
    assert step.tries <= 2
    torch.testing.assert_close(step.theta, START + shrunk * natural_step(HESSIAN, 0.02), rtol=1e-6, atol=1e-8)
    assert step.predicted_improvement == pytest.approx(step.improvement, rel=1e-6)


def test_a_divergence_of_just_the_limit_keeps_it() -> None:
    def at_the_limit(theta: Tensor) -> Tensor:
        divergence = quadratic(theta)
        return (divergence - divergence.detach()) + 0.02

    step = trust_region_step(START, identity, linear, at_the_limit, settings())
    assert (step.accepted, step.tries, step.kl) == (True, 1, 0.02)


def test_a_try_that_improves_nothing_is_not_accepted() -> None:
    """Not even where nothing of the prediction has to be realised."""

    def promising(theta: Tensor) -> Tensor:
        return linear(theta) - linear(theta).detach()

    step = trust_region_step(START, identity, promising, quadratic, settings(accept_ratio=0.0))
    assert (step.accepted, step.improvement, step.tries) == (False, 0.0, 10)
    expected = math.sqrt(2 * 0.02 * float(GRADIENT.dot(torch.linalg.solve(HESSIAN, GRADIENT))))
    assert step.predicted_improvement == pytest.approx(expected, rel=1e-6)
    assert torch.equal(step.policy, START)


def test_a_model_is_computed_once_for_gradient_and_hessian() -> None:
    """The policy e^θ: g = J g_π and H = J H_π J with J = diag(e^θ), so that the direction is J⁻¹ H_π⁻¹ g_π."""
    jacobian = START.exp()

    def divergence(policy: Tensor) -> Tensor:
        return 0.5 * (policy - jacobian) @ HESSIAN @ (policy - jacobian)

    step = trust_region_step(START, torch.exp, linear, divergence, settings())
    full = natural_step(HESSIAN, 0.02) / jacobian
    torch.testing.assert_close(step.theta, START + 0.8 ** (step.tries - 1) * full, rtol=1e-6, atol=1e-8)
    assert step.accepted
    torch.testing.assert_close(step.policy, step.theta.exp())


def test_damping_enters_the_hessian() -> None:
    damped = HESSIAN + 0.7 * torch.eye(3, dtype=torch.float64)
    step = trust_region_step(START, identity, linear, quadratic, settings(damping=0.7))
    torch.testing.assert_close(step.theta, START + natural_step(damped, 0.02), rtol=1e-6, atol=1e-8)


def test_curvature_from_a_part_of_the_samples_shapes_the_step_but_not_the_constraint() -> None:
    """A Hessian that is four times too small makes the step twice too long: it is shrunk until the true KL fits."""
    step = trust_region_step(START, identity, linear, quadratic, settings(), lambda theta: 0.25 * quadratic(theta))
    # 2 · 0.8^j ≤ 1 first at j = 4.
    torch.testing.assert_close(step.theta, START + 2 * 0.8**4 * natural_step(HESSIAN, 0.02), rtol=1e-6, atol=1e-8)
    assert step.tries == 5
    assert step.kl <= 0.02


def test_backtracking_stops_at_the_first_try_that_keeps_the_limit() -> None:
    """The KL grows faster than its Hessian says: full steps overshoot, and the accepted one does not."""

    def steep(theta: Tensor) -> Tensor:
        return quadratic(theta) + 1e3 * quadratic(theta) ** 2

    step = trust_region_step(START, identity, linear, steep, settings())
    assert step.accepted
    assert step.tries > 1
    assert 0.0 < step.kl <= 0.02
    longer = START + (step.theta - START) / 0.8
    assert float(steep(longer)) > 0.02, "a longer try would have kept the limit too"


def test_a_try_must_realise_its_share_of_the_predicted_improvement() -> None:
    """The surrogate −|x|·c + x along the direction realises 0.4 of the prediction: enough for 0.3, not for 0.5."""

    def disappointing(theta: Tensor) -> Tensor:
        gain = GRADIENT.dot(theta - START)
        return torch.where(gain.abs() < 1e-12, gain, 0.4 * gain)

    assert trust_region_step(START, identity, disappointing, quadratic, settings(accept_ratio=0.3)).accepted
    assert not trust_region_step(START, identity, disappointing, quadratic, settings(accept_ratio=0.5)).accepted


def test_old_parameters_come_back_exactly_when_nothing_improves() -> None:
    def spiteful(theta: Tensor) -> Tensor:
        """Has an uphill gradient at the start and is lower everywhere else."""
        return GRADIENT.dot(theta - START) - 1e6 * (theta - START).square().sum().sqrt().detach()

    before = START.clone()
    step = trust_region_step(START, identity, spiteful, quadratic, settings(backtracks=4))
    assert not step.accepted
    assert torch.equal(step.theta, before)
    assert torch.equal(START, before), "the argument itself must not be changed"
    assert (step.kl, step.improvement, step.tries) == (0.0, 0.0, 4)


def test_a_vanishing_gradient_changes_nothing_and_a_broken_one_is_passed_on() -> None:
    flat = trust_region_step(START, identity, lambda theta: 0.0 * theta.sum(), quadratic, settings())
    assert (flat.accepted, flat.tries, torch.equal(flat.theta, START)) == (False, 0, True)
    assert (flat.kl, flat.improvement, flat.predicted_improvement) == (0.0, 0.0, 0.0)
    assert torch.equal(flat.policy, START)
    broken = trust_region_step(START, identity, lambda theta: math.nan * theta.sum(), quadratic, settings())
    assert torch.isnan(broken.theta).all(), "the caller must see that the update diverged"


@pytest.mark.parametrize("limit", [0.001, 0.02])
@pytest.mark.parametrize("continuous", [False, True])
def test_real_updates_keep_every_agents_kl_within_the_limit(continuous: bool, limit: float) -> None:
    algorithm, rollout, collector = new_algorithm(
        "hatrpo", "mpe/simple_spread", 16, 25, {"continuous_actions": continuous}, kl_limit=limit
    )
    accepted = []
    for update in range(4):
        collector.collect(algorithm)
        before = [policy.theta.clone() for policy in algorithm.policies]
        old = [team_samples(algorithm, rollout).of_agent(agent) for agent in range(3)]
        metrics = algorithm.update(rollout, update / 4)
        assert metrics["agent_kl_max"] <= limit
        accepted.append(metrics["agent_accepted"])
        for agent in range(3):
            # The same by an independent computation from the parameters before and after.
            new = algorithm.policies[0].distribution(algorithm.policies[0].row(agent), old[agent].inputs, None)
            kl = float(old[agent].old.kl(new).mean())
            assert kl == pytest.approx(metrics[f"agent_kl/agent_{agent}"], abs=1e-6)
            assert kl <= limit * (1 + 1e-4)
        assert not torch.equal(before[0], algorithm.policies[0].theta)
    assert max(accepted) == 1.0
