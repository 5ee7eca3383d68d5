"""What a team that knows more than one agent can offers to be distilled into local students."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from hmarl.sdk.environment import Observation
from hmarl.trainer.networks.distributions import Distribution


@dataclass(frozen=True)
class GoalKind:
    """What the goals of a group's agents are, and how a predicted one is compared with the true one.

    Attributes:
        size: G: the width of a goal, or the number of goals to choose from.
        discrete: whether a goal is one of G (one-hot; logits are predicted) or a vector of G numbers.
    """

    size: int
    discrete: bool = False

    def errors(self, predicted: Tensor, goals: Tensor) -> Tensor:
        """[...] cross-entropy in nats of discrete goals, mean squared error over the components of continuous ones.

        Args:
            predicted: [..., G] logits or vectors.
            goals: [..., G] one-hots (or probabilities) or vectors.
        """
        if self.discrete:
            return -(goals * functional.log_softmax(predicted, dim=-1)).sum(-1)
        return (predicted - goals).square().mean(-1)


@dataclass(frozen=True)
class Labels:
    """What a teacher would do at one step of B episodes.

    Attributes:
        distributions: per group [N_group, B] over raw actions, without gradient.
        goals: per group [N_group, B, G] float32 as the group's ``GoalKind`` says, or None without goals.
    """

    distributions: Sequence[Distribution]
    goals: Sequence[Tensor | None]


class Teacher(Protocol):
    """Says along B episodes what each agent should do, whoever acts.

    At every step ``label`` is called once, with the actions that were really taken, and moves on whatever the teacher
    remembers; ``act`` may be called before it and changes nothing. No randomness is the teacher's own.

    Attributes:
        name: for people, e.g. ``central conductor``.
        variant: what the same team is called among ``Algorithm.teams``, which may draw what a teacher does not.
        goal_kinds: per group, None without goals.
    """

    name: str
    variant: str
    goal_kinds: Sequence[GoalKind | None]

    def begin(self, batch_size: int) -> None:
        """B new episodes, of which nothing is remembered."""
        ...

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the teacher's own raw actions.

        Args:
            observation: tensors on the training device.
            perturbations: per group [N_group, B, A], see ``ActionHead``; None selects the modes.
        """
        ...

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """What each agent should do, given what was done.

        Args:
            observation: tensors on the training device.
            actions: per group [B, N_group, ...] raw actions that were taken.
        """
        ...

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: forget the episodes that have just ended."""
        ...
