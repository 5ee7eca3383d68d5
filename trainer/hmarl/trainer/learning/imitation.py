"""Distillation: students that see less imitate a teacher that sees more."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy


def mean_of_each(values: Tensor, weight: Tensor | None) -> Tensor:
    """[N] mean over all M samples of values [N, M], of which those of weight [N, M] 0 count as 0: who was there for
    less learns less.
    """
    return (values if weight is None else values * weight).mean(dim=1)


def imitation_loss(teacher: Distribution, students: Distribution, weight: Tensor | None) -> Tensor:
    """[N] mean KL(teacher ‖ student) of every student.

    Args:
        teacher: [N, M], or [M] the same for all; without gradient.
        students: [N, M].
        weight: [N, M] 0 or 1, or None.
    """
    return mean_of_each(teacher.kl(students), weight)


def distil(
    students: GroupPolicy,
    optimiser: FlatAdam,
    inputs: Tensor,
    teacher: Distribution,
    weight: Tensor | None,
    generator: torch.Generator,
    epochs: int,
    minibatches: int,
    schedule: float = 1.0,
) -> float:
    """Minimise the cross-entropy −E_teacher[ log student ] (HCPO Algorithm 1, line 10) of all students of a group at
    once; the losses just add up.

    What is descended is KL(teacher ‖ student), which differs from it by the teacher's entropy, a constant.

    Args:
        students: policies of the teacher's kind.
        optimiser: of ``students.theta``.
        inputs: [N, M, input_size].
        teacher: [M] without gradient, the same for all.
        weight: [N, M] 0 or 1, or None.
        generator: of the minibatches.
        epochs: passes over the data.
        minibatches: parts of a pass.
        schedule: factor on the step size.

    Returns:
        Mean KL(teacher ‖ student) in nats over the last pass.
    """
    gap = torch.zeros(())
    for _ in range(epochs):
        order = torch.randperm(inputs.shape[1], generator=generator, device=generator.device)
        gap = _descend(students, optimiser, inputs, teacher, weight, order, minibatches, schedule)
    return float(gap)


# Of the steps of a batch, those on which it is seen whether students still learn; and what counts as learning.
_HELD_OUT = 10
_LEAST_IMPROVEMENT = 0.01


def distil_until_settled(
    students: GroupPolicy,
    optimiser: FlatAdam,
    inputs: Tensor,
    teacher: Distribution,
    weight: Tensor | None,
    generator: torch.Generator,
    limit: int,
    minibatches: int,
    patience: int,
    schedule: float = 1.0,
) -> tuple[float, int]:
    """``distil`` until a tenth of the steps, which are not learnt from, say that it no longer helps.

    Args:
        students: policies of the teacher's kind.
        optimiser: of ``students.theta``.
        inputs: [N, M, input_size].
        teacher: [M] without gradient, the same for all.
        weight: [N, M] 0 or 1, or None.
        generator: of the steps held out and the minibatches.
        limit: passes at most.
        minibatches: parts of a pass.
        patience: passes that may bring less than a hundredth, before it ends; the students go back to the best.
        schedule: factor on the step size.

    Returns:
        Mean KL(teacher ‖ student) in nats on the steps held out, and the passes that were made.
    """
    order = torch.randperm(inputs.shape[1], generator=generator, device=generator.device)
    held_out, learnt = order[: -(-len(order) // _HELD_OUT)], order[-(-len(order) // _HELD_OUT) :]
    best, best_theta, waited, passes = _gap(students, inputs, teacher, weight, held_out), students.theta.clone(), 0, 0
    while passes < limit and waited < patience and len(learnt):
        mixed = learnt[torch.randperm(len(learnt), generator=generator, device=generator.device)]
        _descend(students, optimiser, inputs, teacher, weight, mixed, minibatches, schedule)
        passes += 1
        gap = _gap(students, inputs, teacher, weight, held_out)
        waited = 0 if gap < (1.0 - _LEAST_IMPROVEMENT) * best else waited + 1
        if gap < best:
            best, best_theta = gap, students.theta.clone()
    students.theta.copy_(best_theta)
    return best, passes


def _descend(
    students: GroupPolicy,
    optimiser: FlatAdam,
    inputs: Tensor,
    teacher: Distribution,
    weight: Tensor | None,
    order: Tensor,
    minibatches: int,
    schedule: float,
) -> Tensor:
    """One pass over the rows ``order``; returns the mean KL met on the way, a scalar."""
    last = []
    for rows in order.split(-(-len(order) // minibatches)):
        student = students.all_distributions(inputs[:, rows], theta=optimiser.parameter)
        present = _present(inputs, weight, rows)
        loss = imitation_loss(teacher.take(rows), student, present)
        optimiser.step(loss.sum(), schedule)
        last.append(loss.detach().sum() * len(rows) / present.sum().clamp(min=1.0))
    return torch.stack(last).mean()


@torch.no_grad()
def gap_left(students: GroupPolicy, inputs: Tensor, teacher: Distribution, weight: Tensor | None) -> float:
    """Mean KL(teacher ‖ student) in nats over all rows; arguments as of ``distil``."""
    return _gap(students, inputs, teacher, weight, torch.arange(inputs.shape[1], device=inputs.device))


@torch.no_grad()
def _gap(students: GroupPolicy, inputs: Tensor, teacher: Distribution, weight: Tensor | None, rows: Tensor) -> float:
    """Mean KL(teacher ‖ student) at some rows."""
    present = _present(inputs, weight, rows)
    loss = imitation_loss(teacher.take(rows), students.all_distributions(inputs[:, rows]), present)
    return float(loss.sum() * len(rows) / present.sum().clamp(min=1.0))


def _present(inputs: Tensor, weight: Tensor | None, rows: Tensor) -> Tensor:
    """[N, m] 0 or 1: which students were there at the rows."""
    return torch.ones(inputs.shape[0], len(rows), device=inputs.device) if weight is None else weight[:, rows]
