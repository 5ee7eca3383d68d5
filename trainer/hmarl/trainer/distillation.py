"""Distillation: students that see less imitate a teacher that sees more."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.trainer.distributions import Categorical
from hmarl.trainer.optimiser import FlatAdam
from hmarl.trainer.policies import GroupPolicy


def cross_entropy(teacher_log_probs: Tensor, student: Categorical) -> Tensor:
    """−E_teacher[ log student ], per sample: [..., K], [..., K] -> [...] (HCPO Algorithm 1, line 10)."""
    return -(teacher_log_probs.exp() * student.log_probs).sum(-1)


def distil(
    students: GroupPolicy,
    optimiser: FlatAdam,
    inputs: Tensor,
    teacher_log_probs: Tensor,
    weight: Tensor | None,
    generator: torch.Generator,
    epochs: int,
    minibatches: int,
    schedule: float = 1.0,
) -> float:
    """Minimise the cross-entropy of all students of a group at once; they share no parameters, so the losses just add
    up.

    Args:
        students: discrete policies.
        optimiser: of ``students.theta``.
        inputs: [N, M, input_size].
        teacher_log_probs: [M, K], the same teacher for all.
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
    teacher_entropy = -(teacher_log_probs.exp() * teacher_log_probs).sum(-1)
    for _ in range(epochs):
        last = []
        order = torch.randperm(samples, generator=generator, device=generator.device)
        for rows in order.split(-(-samples // minibatches)):
            theta = optimiser.parameter.expand(students.members, -1)
            size = students.network.size
            student = Categorical(students.network(theta[:, :size], inputs[:, rows]))
            loss = cross_entropy(teacher_log_probs[rows], student)
            present = torch.ones_like(loss) if weight is None else weight[:, rows]
            optimiser.step((loss * present).mean(dim=1).sum(), schedule)
            gap = (loss.detach() - teacher_entropy[rows]) * present
            last.append(gap.sum() / present.sum().clamp(min=1.0))
    return float(torch.stack(last).mean())
