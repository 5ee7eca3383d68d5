"""How students learn from demonstrations: KL to the teacher on actions, and a loss on goals, through time."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from hmarl.trainer.learning.imitation import imitation_loss, mean_of_each
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.sequential.gradient_steps import minibatches
from hmarl.trainer.students.demonstrations import Demonstrations
from hmarl.trainer.students.settings import DistillationSettings
from hmarl.trainer.students.student import StudentPolicy, Students


class Learner:
    """Descends KL(teacher ‖ student) + goal_weight · goal error.

    Args:
        students: who learn, in place.
        settings: of the distillation.
        chunks: how many of them a round is cut into; gradients flow back to a chunk's first step.
        generator: of the minibatches, on the students' device.
    """

    def __init__(
        self, students: Students, settings: DistillationSettings, chunks: int, generator: torch.Generator
    ) -> None:
        self.students, self.settings, self.chunks, self.generator = students, settings, chunks, generator
        self.optimisers = [
            FlatAdam(policy.theta, settings.learning_rate, settings.max_gradient_norm) for policy in students.policies
        ]

    def learn(self, rounds: Demonstrations) -> dict[str, float]:
        """Epochs of minibatches, each of chunks from all sequences.

        Args:
            rounds: [T, C] whole rounds.

        Returns:
            Metrics of the last epoch: ``kl`` and, where there are goals, ``goal_error``.
        """
        chunks = rounds.in_chunks(self.chunks)
        rows: dict[str, list[Tensor]] = {}
        for _ in range(self.settings.epochs):
            rows = defaultdict(list)
            memories = [self.memories(policy, g, rounds) for g, policy in enumerate(self.students.policies)]
            for units in minibatches(chunks.sequences, 1, self.settings.minibatches, self.generator):
                part = chunks.take(units)
                for g, memory in enumerate(memories):
                    for name, value in self._step(g, part, memory if units is None else memory[:, units]).items():
                        rows[name].append(value)
        return {name: float(torch.stack(values).mean()) for name, values in rows.items()}

    def _step(self, group: int, part: Demonstrations, memory: Tensor) -> dict[str, Tensor]:
        """Descend once; returns means over agents and steps."""
        policy, optimiser = self.students.policies[group], self.optimisers[group]
        theta, weight = optimiser.parameter, part.weight(group)
        remembered = policy.remembered(part.features(group), memory, part.forgotten(group), theta, part.there(group))
        predicted, predicted_goals = policy.decided(remembered, part.mask(group), theta)
        losses = {"kl": imitation_loss(part.labels(group, policy.head), predicted, weight)}
        loss, goals, kind = losses["kl"], part.goals(group), policy.goal_kind
        if goals is not None and kind is not None and predicted_goals is not None:
            losses["goal_error"] = mean_of_each(kind.errors(predicted_goals, goals), weight)
            loss = loss + self.settings.goal_weight * losses["goal_error"]
        optimiser.step(loss.mean() if policy.shared else loss.sum())
        present = weight.mean(1).sum().clamp(min=1e-8)
        return {name: each.detach().sum() / present for name, each in losses.items()}

    @torch.no_grad()
    def memories(self, policy: StudentPolicy, group: int, rounds: Demonstrations) -> Tensor:
        """[N, n · C, H] what the students, as they are now, remember before each chunk."""
        nothing = torch.zeros(policy.members, rounds.sequences, policy.network.memory_size, device=policy.theta.device)
        if self.chunks == 1:
            return nothing
        carried = policy.carried(
            rounds.features(group), nothing, rounds.forgotten(group), policy.theta, rounds.there(group)
        )
        at_ends = carried.unflatten(1, (self.chunks, -1, rounds.sequences))[:, :-1, -1]  # [N, n - 1, C, H]
        return torch.cat([nothing.unsqueeze(1), at_ends], dim=1).flatten(1, 2)
