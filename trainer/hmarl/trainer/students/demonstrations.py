"""Demonstrations: what a team saw along episodes, and what the teacher would have done there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.teacher import Labels, Teacher
from hmarl.trainer.experience.rollout import Decision, Rollout
from hmarl.trainer.networks.distributions import (
    ActionHead,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)
from hmarl.trainer.students.student import Students


class Demonstrator:
    """Acts, as the teacher or as the students do, and has the teacher label every step; a collector's ``Actor``.

    Args:
        algorithm: whose team.
        teacher: who labels.
        students: who act, unless the teacher does.
        sample: draw actions instead of taking the modes.
    """

    def __init__(self, algorithm: Algorithm, teacher: Teacher, students: Students, sample: bool) -> None:
        self._algorithm, self._teacher, self._students, self._sample = algorithm, teacher, students, sample
        self._noise: list[Tensor] | None = None
        self._memories: list[Tensor] = []
        self._generator = torch.Generator(algorithm.device)
        self._teacher_acts = False

    def prepare(self, teacher_acts: bool, seed: int) -> None:
        """Before a rollout: who acts in it, and what seeds its action noise."""
        self._teacher_acts, self._memories = teacher_acts, []
        self._generator.manual_seed(seed)

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """New episodes everywhere."""
        self._teacher.begin(batch_size)
        self._memories = self._students.no_memories(batch_size)
        if self._sample:
            self._noise = [
                head.draw_perturbations((steps, len(group.agents), batch_size), self._generator)
                for group, head in zip(self._algorithm.spec.groups, self._algorithm.heads, strict=True)
            ]

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """All agents' actions; the labels are recorded beside it."""
        noise = None if self._noise is None else [each[step] for each in self._noise]
        if self._teacher_acts:
            actions = self._teacher.act(observation, noise)
        else:
            actions, self._memories = self._students.act(observation, noise, self._memories)
        labels = self._teacher.label(observation, actions)
        return Decision(actions, self._algorithm.to_environment(actions), _recorded(labels))

    def episodes_ended(self, ended: Tensor) -> None:
        """Forget what belongs to the episodes that have just ended."""
        if self._memories:  # else no episode has begun yet
            self._teacher.episodes_ended(ended)
            self._memories = [memory.masked_fill(ended.view(1, -1, 1), 0.0) for memory in self._memories]


def _recorded(labels: Labels) -> dict[str, Tensor]:
    """Labels as a rollout records them, [B, N_group, ...] per group; names as in ``Demonstrations``."""
    recorded = {}
    for g, (distribution, goals) in enumerate(zip(labels.distributions, labels.goals, strict=True)):
        recorded[f"label.{g}"] = _parameters(distribution).transpose(0, 1)
        if goals is not None:
            recorded[f"goal.{g}"] = goals.transpose(0, 1)
    return recorded


def _parameters(distribution: Distribution) -> Tensor:
    """[..., P] that ``Demonstrations.labels`` reads."""
    if isinstance(distribution, DiagonalGaussian):
        return torch.cat([distribution.mean, distribution.log_std], dim=-1)
    assert isinstance(distribution, Categorical | MultiCategorical)
    return distribution.logits


@dataclass(frozen=True)
class Demonstrations:
    """C sequences of L steps.

    Attributes:
        tensors: [L, C, ...] by name. ``begins`` [L, C] bool is True where a step begins an episode, a sequence's first
            step apart. Of group g there are

            - ``features.g`` [..., N_group, D] what the students see;
            - ``mask.g`` [..., N_group, A] bool, where there are masks;
            - ``active.g`` [..., N_group] bool, False where an agent had left;
            - ``restarted.g`` [..., N_group] bool, True where an agent lost what it remembered, where that happens;
            - ``label.g`` [..., N_group, P] logits, or mean and logarithmic standard deviation;
            - ``goal.g`` [..., N_group, G], where there are goals.
    """

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, rollout: Rollout, students: Students) -> Demonstrations:
        """A copy of the rollout that a ``Demonstrator`` has filled."""
        tensors = {"begins": rollout.begins, **rollout.extras}
        features = students.features(rollout.observations, rollout.states[:-1])
        for g, (group, mask) in enumerate(zip(rollout.spec.groups, rollout.action_masks, strict=True)):
            tensors |= {f"features.{g}": features[g], f"active.{g}": rollout.active[:, :, list(group.agents)]}
            tensors |= {} if mask is None else {f"mask.{g}": mask}
            if rollout.restarted is not None:
                tensors[f"restarted.{g}"] = rollout.restarted[:, :, list(group.agents)]
        return cls({name: tensor.clone() for name, tensor in tensors.items()})

    @classmethod
    def join(cls, parts: Sequence[Demonstrations]) -> Demonstrations:
        """The sequences of several with equal L, one after the other."""
        names = dict.fromkeys(name for part in parts for name in part.tensors)
        return cls({name: torch.cat([part._of(name) for part in parts], dim=1) for name in names})

    def _of(self, name: str) -> Tensor:
        """[L, C, ...]; rounds that an earlier version kept tell nothing of restarts."""
        if name.startswith("restarted.") and name not in self.tensors:
            return torch.zeros_like(self.tensors[name.replace("restarted", "active")])
        return self.tensors[name]

    def in_chunks(self, count: int) -> Demonstrations:
        """L / count steps each: sequence k · C + c is chunk k of sequence c."""

        def cut(x: Tensor) -> Tensor:
            return x.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)

        return Demonstrations({name: cut(tensor) for name, tensor in self.tensors.items()})

    def take(self, units: Tensor | None) -> Demonstrations:
        """The sequences ``units`` [c] int64; None takes all."""
        return self if units is None else Demonstrations({name: x[:, units] for name, x in self.tensors.items()})

    @property
    def begins(self) -> Tensor:
        """[L, C] bool."""
        return self.tensors["begins"]

    @property
    def sequences(self) -> int:
        """C."""
        return self.begins.shape[1]

    def features(self, group: int) -> Tensor:
        """[L, C, N_group, D]."""
        return self.tensors[f"features.{group}"]

    def there(self, group: int) -> Tensor:
        """[L, C, N_group] bool, False where an agent had left."""
        return self.tensors[f"active.{group}"]

    def forgotten(self, group: int) -> Tensor:
        """[L, C] or [L, C, N_group] bool: where an episode begins, or an agent lost what it remembered."""
        restarted = self.tensors.get(f"restarted.{group}")
        return self.begins if restarted is None else self.begins.unsqueeze(-1) | restarted

    def mask(self, group: int) -> Tensor | None:
        """[N_group, L·C, A] bool, or None."""
        return self._rows(f"mask.{group}")

    def goals(self, group: int) -> Tensor | None:
        """[N_group, L·C, G], or None."""
        return self._rows(f"goal.{group}")

    def weight(self, group: int) -> Tensor:
        """[N_group, L·C] float32, 0 where an agent had left."""
        return self.there(group).flatten(0, 1).T.float()

    def labels(self, group: int, head: ActionHead) -> Distribution:
        """[N_group, L·C]; illegal choices stay as unlikely as their masks made them."""
        parameters = self.tensors[f"label.{group}"].flatten(0, 1).transpose(0, 1)
        output, extra = parameters.split([head.output_size, head.extra_size], dim=-1)
        return head.distribution(output, extra)

    def _rows(self, name: str) -> Tensor | None:
        """[N_group, L·C, ...] of what is there."""
        return self.tensors[name].flatten(0, 1).transpose(0, 1) if name in self.tensors else None
