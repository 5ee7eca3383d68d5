"""A guider as a teacher of local students."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.teacher import GoalKind, Labels
from hmarl.trainer.guiders.trained import TrainedGuider


class GuiderTeacher:
    """A guider, agents in their natural order: an agent's label depends on what those before it really did.

    Args:
        guider: who teaches.
    """

    name = variant = "guider"

    def __init__(self, guider: TrainedGuider) -> None:
        self._guider = guider
        self.goal_kinds: Sequence[GoalKind | None] = (None,) * len(guider.actors.spec.groups)
        self._memory = guider.no_memory(0)

    def begin(self, batch_size: int) -> None:
        """B new episodes, of which nothing is remembered."""
        self._memory = self._guider.no_memory(batch_size)

    def act(self, observation: Observation, perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Per group [B, N_group, ...] the guider's own raw actions."""
        return self._guider.act(observation, None, perturbations, self._memory).actions

    def label(self, observation: Observation, actions: Sequence[Tensor]) -> Labels:
        """μ(·|o, a of those before); what the guider remembers follows the actions."""
        guider, memory = self._guider, self._memory
        distributions = guider.distributions(observation, actions, memory)
        if guider.network.memory_shape != (0,):
            self._memory = guider.act(observation, None, None, memory, taken=actions).memory
        return Labels(distributions, [None] * len(distributions))

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: nothing is remembered of what has ended."""
        self._memory = self._memory.masked_fill(ended.view(-1, *(1,) * (self._memory.dim() - 1)), 0.0)
