"""All agents' local policies, as pure functions of what is seen and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.experience.rollout import Decision
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.networks.policies import Context, GroupPolicy, by_group, no_memories, select_all, step_all


@dataclass(frozen=True)
class Actors:
    """Who acts, and how what they see and do is scaled. Nothing is remembered here: memories come in and go out.

    Attributes:
        spec: the environment.
        device: where networks live.
        heads: per group, what turns a network's output into actions.
        policies: per group; empty where no agent has a policy of its own.
        normalisers: per group, of the observations.
        recurrent: whether policies remember.
    """

    spec: EnvironmentSpec
    device: torch.device
    heads: list[ActionHead]
    policies: list[GroupPolicy]
    normalisers: list[RunningNormaliser]
    recurrent: bool

    def normalised(self, observations: Sequence[Tensor]) -> list[Tensor]:
        """Observations per group [..., N_group, observation_size] as the networks see them."""
        return [normaliser(x) for normaliser, x in zip(self.normalisers, observations, strict=True)]

    def no_memories(self, batch_size: int) -> list[Tensor]:
        """Per group [N_group, B, H] zeros: what is remembered when an episode begins; empty without memory."""
        return no_memories(self.policies, batch_size) if self.recurrent else []

    def distributions(
        self, observation: Observation, context: Context | None, memories: Sequence[Tensor]
    ) -> tuple[list[Distribution], list[Tensor]]:
        """Per group [N_group, B] what actions are drawn from, and what is remembered after them.

        Args:
            observation: tensors on the training device.
            context: see ``Context``; or None.
            memories: as ``no_memories`` returns them.
        """
        seen = self.normalised(observation.observations)
        there = by_group(self.spec.groups, observation.active) if self.recurrent else None
        return step_all(self.policies, seen, observation.action_masks, context, memories, there)

    def decide(
        self,
        observation: Observation,
        context: Context | None,
        perturbations: list[Tensor] | None,
        memories: Sequence[Tensor],
        *,
        judged: bool = False,
    ) -> tuple[Decision, list[Tensor]]:
        """All agents' actions, and what is remembered after them.

        Args:
            observation: tensors on the training device.
            context: see ``Context``; or None.
            perturbations: per group [N_group, B, A]; None selects the modes.
            memories: as ``no_memories`` returns them.
            judged: whether the actions' log-probabilities are wanted as well.
        """
        distributions, following = self.distributions(observation, context, memories)
        actions = select_all(distributions, perturbations)
        decision = Decision(actions, self.to_environment(actions))
        if judged:
            decision.log_probs = tuple(
                distribution.log_prob(action.transpose(0, 1)).T
                for distribution, action in zip(distributions, actions, strict=True)
            )
        return decision, following

    def to_environment(self, actions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Raw actions per group in the environment's units."""
        return tuple(head.to_environment(action) for head, action in zip(self.heads, actions, strict=True))
