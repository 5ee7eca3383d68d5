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
    samples = inputs.shape[1]
    last: list[Tensor] = []
    for _ in range(epochs):
        last = []
        order = torch.randperm(samples, generator=generator, device=generator.device)
        for rows in order.split(-(-samples // minibatches)):
            student = students.all_distributions(inputs[:, rows], theta=optimiser.parameter)
            present = (
                torch.ones(inputs.shape[0], len(rows), device=inputs.device) if weight is None else weight[:, rows]
            )
            loss = imitation_loss(teacher.take(rows), student, present)
            optimiser.step(loss.sum(), schedule)
            last.append(loss.detach().sum() * len(rows) / present.sum().clamp(min=1.0))
    return float(torch.stack(last).mean())
