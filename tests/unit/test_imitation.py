"""Imitation: what a student is measured by, and passes of distillation worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.trainer.learning.imitation import distil, imitation_loss, mean_of_each
from hmarl.trainer.networks.distributions import ActionHead, Categorical
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy

pytestmark = pytest.mark.usefixtures("single_thread")
# What the teacher does at four samples: the probability of the first of two actions.
FIRST = (0.75, 0.5, 0.6, 0.9)
TEACHER = torch.tensor([[first, 1.0 - first] for first in FIRST])
WEIGHT = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])


def divergence(first: float, student: float = 0.5) -> float:
    """KL(teacher ‖ student) of two actions, by the probabilities of the first."""
    return first * math.log(first / student) + (1 - first) * math.log((1 - first) / (1 - student))


def two_students() -> GroupPolicy:
    """Students who see nothing but a bias, and begin with (½, ½)."""
    network = Mlp(1, (), 2)
    return GroupPolicy(network, ActionHead(spaces.Discrete(2)), torch.zeros(2, network.size), members=2)


def distilled(rate: float, weight: Tensor | None = None, **options: float) -> tuple[float, Tensor, FlatAdam]:
    """The gap, the biases of both students [2, 2], and the optimiser."""
    students = two_students()
    optimiser = FlatAdam(students.theta, rate, 10.0)
    passes = {"epochs": 1, "minibatches": 1} | options
    gap = distil(
        students,
        optimiser,
        torch.zeros(2, 4, 1),
        Categorical(TEACHER.log()),
        weight,
        torch.Generator().manual_seed(3),
        **passes,  # type: ignore[arg-type]
    )
    return gap, students.theta[:, -2:].clone(), optimiser


def test_means_over_all_samples_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert mean_of_each(values, None).tolist() == [2.0, 5.0]
    halves = mean_of_each(values, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(halves, torch.tensor([4 / 3, 0.0]))


def test_the_teacher_comes_first_in_the_divergence() -> None:
    students = Categorical(torch.tensor([[0.2, 0.8]]).log().expand(1, 4, 2))
    expected = sum(divergence(first, 0.2) for first in FIRST) / 4
    torch.testing.assert_close(imitation_loss(Categorical(TEACHER.log()), students, None), torch.tensor([expected]))


def test_the_gap_is_the_mean_over_samples_and_students() -> None:
    gap, _, _ = distilled(1e-9)
    assert gap == pytest.approx(sum(map(divergence, FIRST)) / 4, rel=1e-5)
    # In parts: every sample once.
    assert distilled(1e-9, minibatches=2)[0] == pytest.approx(gap, rel=1e-5)
    assert distilled(1e-9, minibatches=4)[0] == pytest.approx(gap, rel=1e-5)


def test_the_gap_counts_those_who_were_there() -> None:
    there = [FIRST[0], FIRST[1], FIRST[3], FIRST[2]]
    assert distilled(1e-9, WEIGHT)[0] == pytest.approx(sum(map(divergence, there)) / 4, rel=1e-5)
    alone = torch.zeros(2, 4)
    alone[1, 3] = 1.0
    assert distilled(1e-9, alone)[0] == pytest.approx(divergence(0.9), rel=1e-5)
    assert distilled(1e-9, torch.zeros(2, 4))[0] == 0.0


@pytest.mark.parametrize(("schedule", "rate"), [({}, 0.1), ({"schedule": 0.5}, 0.05)])
def test_one_step_by_hand(schedule: dict[str, float], rate: float) -> None:
    """The gradient at student n's first bias is the mean of w (½ − teacher); Adam's first step is its sign."""
    _, biases, optimiser = distilled(0.1, WEIGHT, **schedule)
    gradients = torch.tensor([-(0.25 + 0.0 + 0.4) / 4, -0.1 / 4])
    expected = -rate * gradients / (gradients.abs() + 1e-5)
    torch.testing.assert_close(biases, torch.stack([expected, -expected], dim=1))
    torch.testing.assert_close(optimiser.state_dict()["exp_avg"][:, -2], 0.1 * gradients)


def test_the_gap_is_that_of_the_last_pass() -> None:
    _, biases, _ = distilled(0.1)
    learnt = torch.softmax(biases, 1)[0, 0].item()
    gap, _, optimiser = distilled(0.1, epochs=2)
    assert gap == pytest.approx(sum(divergence(first, learnt) for first in FIRST) / 4, rel=1e-4)
    assert optimiser.state_dict()["step"] == 2
    assert distilled(0.1, epochs=3, minibatches=2)[2].state_dict()["step"] == 6
    assert distilled(0.1, minibatches=3)[2].state_dict()["step"] == 2  # of two samples each


def test_only_the_generator_decides_the_order() -> None:
    learnt = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        learnt.append(distilled(0.1, epochs=3, minibatches=4)[1])
    assert torch.equal(*learnt)
