"""Distillation: students that see less imitate a teacher that sees more."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.trainer.distributions import Distribution
from hmarl.trainer.optimiser import FlatAdam
from hmarl.trainer.policies import GroupPolicy


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
            loss = teacher.take(rows).kl(student)
            present = torch.ones_like(loss) if weight is None else weight[:, rows]
            optimiser.step((loss * present).mean(dim=1).sum(), schedule)
            gap = loss.detach() * present
            last.append(gap.sum() / present.sum().clamp(min=1.0))
    return float(torch.stack(last).mean())
