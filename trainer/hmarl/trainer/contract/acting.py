"""How a team acts while it learns: a part that an algorithm is given, and that remembers from step to step.

``LocalActing`` is the agents' own; a conductor (``conductors.acting``), a guider (``guiders.acting``), a latent
(``mixing.acting``) and a hierarchy (``hierarchy.acting``) have one each, some of them around a ``LocalActing``. Its
``begin_rollout`` draws the rollout's action noise and ``noise_at`` hands it out, where no agent has a policy as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.experience.rollout import Decision
from hmarl.trainer.networks.policies import Context, without_restarted


@dataclass(frozen=True)
class Outcome:
    """What learning needs of a rollout's acting that was not recorded step by step.

    Attributes:
        alike: the same in all environments.
        at_ends: [F, ...] where episodes ended, in the order of the rollout's ``final_states``.
    """

    alike: dict[str, Tensor] = field(default_factory=dict)
    at_ends: dict[str, Tensor] = field(default_factory=dict)


def environments_axis(name: str, state: Tensor) -> int | None:
    """Along which axis of an acting's ``state`` the environments lie; None for what is theirs in common."""
    if state.dim() == 0:
        return None
    return 1 if name.startswith("memories.") else 0


def forgotten_where_broken(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An acting's ``state`` with zeros, which is nothing, where a number that is not finite is remembered: for all that
    an agent remembers in ``memories.g``, and for all of an environment elsewhere.
    """
    return {name: _forgotten_where_broken(name, held) for name, held in state.items()}


def _forgotten_where_broken(name: str, held: Tensor) -> Tensor:
    environments = environments_axis(name, held)
    if environments is None or not held.is_floating_point():
        return held
    whole = held.shape[: environments + 1]
    broken = ~torch.isfinite(held).reshape(*whole, -1).all(dim=-1)
    return held.masked_fill(broken.view(*whole, *(1,) * (held.dim() - len(whole))), 0.0)


class Acting(Protocol):
    """What the collector needs (see ``experience.rollout.Actor``), and what a resumed run goes on with."""

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Called before a rollout's first step, e.g. to draw its noise at once."""
        ...

    def act(self, observation: Observation, step: int) -> Decision:
        """Choose all agents' actions; ``observation`` holds tensors on the training device, ``step`` counts from 0."""
        ...

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: forget what belongs to the episodes that have just ended."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What is remembered from step to step, so that a resumed run acts on as if never stopped.

        Tensors [B, ...], those called ``memories.g`` [N_group, B, H]; scalars for what all environments share.
        """
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        ...

    def outcome(self) -> Outcome:
        """Of the rollout that has just ended; for others that act with the same parameters elsewhere, see
        ``take_over``.
        """
        ...

    def take_over(self, outcome: Outcome) -> None:
        """Learn as if the rollout with this outcome had been acted here."""
        ...


class ActingInContext(Acting, Protocol):
    """An acting that can be told what all agents see alike, by a level above it."""

    def act_in_context(self, observation: Observation, step: int, context: Tensor | None) -> Decision:
        """``act`` given what all agents see alike, ``context`` [B, C]."""
        ...


class LocalActing:
    """Local policies, each on its own agent's observation.

    Args:
        actors: whose policies.
        chunk_length: steps between two recordings of what is remembered; None records a rollout's beginning alone.
        generator: of the action noise, on the device.

    Attributes:
        noise: of the rollout, per group [T, N_group, B, A].
        memories: per group [N_group, B, H]; empty without memory.
        records_log_probs: whether the actions' log-probabilities are recorded, for whoever learns from them later.
    """

    def __init__(self, actors: Actors, chunk_length: int | None, generator: torch.Generator) -> None:
        self.actors = actors
        self.noise: list[Tensor] = []
        self.memories: list[Tensor] = []
        self.records_log_probs = False
        self._generator = generator
        self._chunk_length = chunk_length
        self._recorded_every = 1

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the rollout's noise."""
        actors = self.actors
        self.noise = [
            head.draw_perturbations((steps, len(group.agents), batch_size), self._generator)
            for group, head in zip(actors.spec.groups, actors.heads, strict=True)
        ]
        self._recorded_every = self._chunk_length or steps
        if not self.memories or self.memories[0].shape[1] != batch_size:
            self.memories = actors.no_memories(batch_size)

    def noise_at(self, step: int) -> list[Tensor]:
        """Per group [N_group, B, A]."""
        return [noise[step] for noise in self.noise]

    def records(self, step: int) -> bool:
        """Whether what is remembered before a step of the rollout is recorded: a chunk begins."""
        return step % self._recorded_every == 0

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """Sample all agents' actions, a group at a time."""
        return self.act_in_context(observation, step, None)

    @torch.no_grad()
    def act_in_context(self, observation: Observation, step: int, context: Context | None) -> Decision:
        """``act`` given what all agents see alike, ``context`` [B, C], or what each sees; see ``Context``."""
        self.memories = without_restarted(self.actors.spec.groups, self.memories, observation.restarted)
        before = tuple(self.memories)
        decision, self.memories = self.actors.decide(
            observation, context, self.noise_at(step), self.memories, judged=self.records_log_probs
        )
        if before and self.records(step):
            decision.memories = before
        return decision

    @torch.no_grad()
    def watch(self, observation: Observation, context: Context | None) -> None:
        """Remember a step at which others act."""
        if self.memories:
            _, self.memories = self.actors.distributions(observation, context, self.memories)

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: forget what was remembered of the episodes that have just ended."""
        if self.memories and self.memories[0].shape[1] == len(ended):
            self.memories = [memory.masked_fill(ended.view(1, -1, 1), 0.0) for memory in self.memories]

    def state(self) -> dict[str, Tensor]:
        """What the agents remember."""
        return {f"memories.{g}": memory for g, memory in enumerate(self.memories)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        if self.actors.recurrent:
            self.memories = [state[f"memories.{g}"].clone() for g in range(len(self.actors.policies))]

    def outcome(self) -> Outcome:
        """All is recorded."""
        return Outcome()

    def take_over(self, outcome: Outcome) -> None:
        """All is recorded."""
