"""A team that explores by its utilities: ε-greedily, and under a latent drawn when an episode begins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.acting import LocalActing, Outcome
from hmarl.trainer.experience.rollout import Decision
from hmarl.trainer.mixing.latent import LatentPolicy
from hmarl.trainer.networks.normalisation import RunningNormaliser

# Gumbel noise of this size leaves nothing of the utilities' order: a uniform choice among the legal actions.
_OVERRIDING = 1e6


class Exploration:
    """ε, the share of random actions: from ``start`` to ``final`` while the first ``steps`` environment steps go by.

    Attributes:
        frames: int64 scalar, environment steps so far; a tensor, because checkpoints hold it.
    """

    def __init__(self, start: float, final: float, steps: int, device: torch.device) -> None:
        self.frames = torch.zeros((), dtype=torch.int64, device=device)
        self._start, self._final, self._steps = start, final, steps

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        done = min(1.0, float(self.frames) / self._steps)
        return self._start + done * (self._final - self._start)


class EpsilonGreedyActing:
    """All agents' best actions by their utilities, or with probability ε random legal ones.

    Args:
        local: the utilities, as policies that take the best action unless noise overrides it.
        exploration: ε.
        generator: of noise, on the device.
    """

    def __init__(self, local: LocalActing, exploration: Exploration, generator: torch.Generator) -> None:
        self.local, self.exploration, self._generator = local, exploration, generator

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the rollout's exploration."""
        self.local.begin_rollout(steps, batch_size)
        for noise in self.local.noise:
            drawn = torch.rand(noise.shape[:-1], generator=self._generator, device=noise.device)
            noise.mul_(((drawn < self.exploration.epsilon) * _OVERRIDING).unsqueeze(-1))

    def act(self, observation: Observation, step: int) -> Decision:
        """Choose all agents' actions."""
        return self.local.act(observation, step)

    def act_in_context(self, observation: Observation, step: int, context: Tensor | None) -> Decision:
        """``act`` given what all agents see alike, ``context`` [B, C]."""
        return self.local.act_in_context(observation, step, context)

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: forget what was remembered of the episodes that have just ended."""
        self.local.episodes_ended(ended)

    def state(self) -> dict[str, Tensor]:
        """What the agents remember."""
        return self.local.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.local.load_state(state)

    def outcome(self) -> Outcome:
        """All is recorded."""
        return self.local.outcome()

    def take_over(self, outcome: Outcome) -> None:
        """All is recorded."""


class LatentActing:
    """z ∼ π(z|s₀) where an episode begins, then all agents' ε-greedy actions of their utilities under z.

    Args:
        agents: who act by their utilities, ε-greedily.
        latent_policy: π(z|s₀).
        state_normaliser: of what it sees.
        generator: of the latents' noise, on the device.
    """

    def __init__(
        self,
        agents: EpsilonGreedyActing,
        latent_policy: LatentPolicy,
        state_normaliser: RunningNormaliser,
        generator: torch.Generator,
    ) -> None:
        actors = agents.local.actors
        self.agents, device = agents, actors.device
        self._latent_policy, self._state_normaliser, self._generator = latent_policy, state_normaliser, generator
        self._noise = torch.zeros(0, device=device)  # [T, B, K]
        self._latent = torch.zeros(0, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(0, dtype=torch.bool, device=device)
        self._first_state = torch.zeros(0, actors.spec.state_size, device=device)
        self._earned = torch.zeros(0, device=device)  # by running episodes in earlier rollouts

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the rollout's exploration and the noise of its latents."""
        self.agents.begin_rollout(steps, batch_size)
        device = self._earned.device
        noise = torch.empty(steps, batch_size, self._latent_policy.latents, device=device)
        self._noise = noise.exponential_(generator=self._generator).clamp_(min=1e-30).log_().neg_()
        if len(self._latent) != batch_size:
            self._latent = torch.zeros(batch_size, dtype=torch.int64, device=device)
            self._drawn = torch.zeros(batch_size, dtype=torch.bool, device=device)
            self._first_state = torch.zeros(batch_size, self._first_state.shape[1], device=device)
            self._earned = torch.zeros(batch_size, device=device)

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """Draw z where an episode begins, then all agents' actions; z, s₀ and what was earned before are recorded."""
        drawn = self._latent_policy.distribution(self._state_normaliser(observation.state))
        begins = ~self._drawn
        self._latent = torch.where(begins, drawn.select(self._noise[step]), self._latent)
        self._first_state = torch.where(begins.unsqueeze(-1), observation.state, self._first_state)
        self._drawn = torch.ones_like(begins)
        decision = self.agents.act_in_context(observation, step, one_hot(self._latent, self._latent_policy.latents))
        decision.extras = {"latent": self._latent, "first_state": self._first_state, "earned": self._earned}
        return decision

    def earn(self, earned: Tensor) -> None:
        """What the running episodes had earned when the rollout ended, [B]."""
        self._earned = earned

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: a new episode draws a new latent, and has earned nothing."""
        self.agents.episodes_ended(ended)
        if len(self._drawn) == len(ended):
            self._drawn = self._drawn & ~ended
            self._earned = self._earned.masked_fill(ended, 0.0)

    def state(self) -> dict[str, Tensor]:
        """The latents in force, what the agents remember, and where running episodes began and what they earned."""
        own = {"latent": self._latent, "drawn": self._drawn, "first_state": self._first_state, "earned": self._earned}
        return self.agents.state() | own

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.agents.load_state(state)
        self._latent, self._drawn = state["latent"].clone(), state["drawn"].clone()
        self._first_state, self._earned = state["first_state"].clone(), state["earned"].clone()

    def outcome(self) -> Outcome:
        """All is recorded."""
        return Outcome()

    def take_over(self, outcome: Outcome) -> None:
        """All is recorded."""


def one_hot(latent: Tensor, latents: int) -> Tensor:
    """[...] int64 -> [..., K] float32."""
    return functional.one_hot(latent, latents).float()
