"""A team that collects with its guider."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.acting import LocalActing, Outcome
from hmarl.trainer.experience.rollout import Decision
from hmarl.trainer.guiders.trained import Remembered, TrainedGuider


class GuidedActing:
    """The guider acts for all agents, in an order drawn for every rollout; the local policies look on.

    Args:
        guider: who acts.
        local: the local policies, of whose noise the guider draws, and who remember what they see.

    Attributes:
        order: of the agents, in which they decide in this rollout.
        memory: [B, *memory_shape] of the guider.
    """

    def __init__(self, guider: TrainedGuider, local: LocalActing) -> None:
        self.guider, self.local = guider, local
        self.order = list(range(guider.agents))
        self.memory = guider.no_memory(0)
        self._at_ends: tuple[Tensor, ...] = ()

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the rollout's noise and the order in which the agents decide."""
        self.local.begin_rollout(steps, batch_size)
        self.order = self.guider.draw_order().tolist()
        self._at_ends = ()
        if len(self.memory) != batch_size:
            self.memory = self.guider.no_memory(batch_size)

    def act(self, observation: Observation, step: int) -> Decision:
        """The guider's actions, without an instruction."""
        return self.act_in_context(observation, step, None)

    @torch.no_grad()
    def act_in_context(self, observation: Observation, step: int, context: Tensor | None) -> Decision:
        """The guider's actions, given a conductor's instruction [B, K]; V and log μ are recorded."""
        memories = (*self.local.memories, self.memory.unsqueeze(0))
        acted = self.guider.act(observation, context, self.local.noise_at(step), self.memory, order=self.order)
        said = {"value": acted.value, "log_prob": acted.log_prob}
        decision = Decision(acted.actions, self.guider.actors.to_environment(acted.actions), said)
        if self.guider.remembers and self.local.records(step):
            decision.memories = memories
        self.memory = acted.memory
        self.local.watch(observation, context)
        return decision

    def episodes_ended(self, ended: Tensor) -> None:
        """Nothing is remembered of the episodes that have ended, but for the value of what was seen last."""
        self.local.episodes_ended(ended)
        memory = self.memory
        if len(memory) == len(ended):
            self._at_ends = (*self._at_ends, memory[ended])
            self.memory = memory.masked_fill(ended.view(-1, *(1,) * (memory.dim() - 1)), 0.0)

    def remembered(self) -> Remembered:
        """What the guider remembers at the rollout's end, and did where episodes ended in it."""
        return Remembered(self.memory, self._at_ends)

    def state(self) -> dict[str, Tensor]:
        """What local policies and guider remember."""
        return self.local.state() | {"guider_memory": self.memory}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.local.load_state(state)
        self.memory = state["guider_memory"].clone()

    def outcome(self) -> Outcome:
        """The order in which the agents decided, and what the guider remembered where episodes ended."""
        at_ends = torch.cat([self.memory[:0], *self._at_ends])
        return Outcome({"order": torch.tensor(self.order)}, {"guider_memory": at_ends})

    def take_over(self, outcome: Outcome) -> None:
        """See ``outcome``; what is remembered at the end comes with ``load_state``."""
        self.order = outcome.alike["order"].tolist()
        self._at_ends = (outcome.at_ends["guider_memory"],)
