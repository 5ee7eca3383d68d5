"""What an algorithm needs of a guider: a policy μ and a value of a whole team, as one pure function.

Source: Li et al. 2025 (MAGPO), section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.layers import Parameters
from hmarl.trainer.networks.policies import GroupPolicy


class GuiderStructure(Protocol):
    """The settings that an autoregressive guider is built from: width E, number of blocks and of heads."""

    embedding_size: int
    blocks: int
    attention_heads: int

    @property
    def credit(self) -> Literal["team", "own"]:
        """Whether V is one, or every agent's own."""
        ...

    @property
    def initial_gains(self) -> Literal["unit", "small"]:
        """How the weights are drawn."""
        ...

    @property
    def team_value(self) -> bool:
        """Whether own values have a part that is the team's."""
        ...

    @property
    def value_encoder(self) -> Literal["shared", "own"]:
        """Whether V shares the encoder of the policy, or has one of its own."""
        ...


def head_width(structure: GuiderStructure) -> int:
    """Width d = E / heads of a head.

    Raises:
        ValueError: the heads do not divide the width.
    """
    width, remainder = divmod(structure.embedding_size, structure.attention_heads)
    if remainder:
        raise ValueError(
            f"embedding_size: got {structure.embedding_size}, expected a multiple of attention_heads "
            f"({structure.attention_heads})"
        )
    return width


@dataclass(frozen=True)
class TeamView:
    """What a guider sees of a team, over any leading dimensions [...].

    Attributes:
        features: per group [..., N_group, D] normalised observations.
        action_masks: per group [..., N_group, A] bool, or None.
        context: [..., C] what all agents are seen with, beside the observations (the state), or None.
        instruction: [..., K] what actions, but not values, depend on as well (a conductor's instruction), or None.
        there: per group [..., N_group] bool, False for agents that are away: what they remember by themselves stands
            still. None where all are there.
    """

    features: Sequence[Tensor]
    action_masks: Sequence[Tensor | None]
    context: Tensor | None = None
    instruction: Tensor | None = None
    there: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Acted:
    """One step of a team.

    Attributes:
        actions: per group [B, N_group, ...] raw.
        log_prob: [B, N] of every agent's action, given those before it.
        value: [B] normalised; [B, N] where every agent has its own.
        memory: [B, *memory_shape] after the step.
    """

    actions: tuple[Tensor, ...]
    log_prob: Tensor
    value: Tensor
    memory: Tensor


@dataclass(frozen=True)
class Judged:
    """A guider at recorded steps.

    Attributes:
        distributions: per group [N_group, L·C] of every agent's action, given those before it.
        values: [L, C] normalised; [L, C, N], agents group by group, where every agent has its own.
    """

    distributions: list[Distribution]
    values: Tensor


class Guider(Protocol):
    """A policy of a whole team and its value, as a pure function of flat parameters."""

    @property
    def backtracks(self) -> bool:
        """Whether it is built as the local policies are, and so can become what they are."""
        ...

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """What is remembered of an environment from step to step, all zero where an episode begins; (0,) for a network
        without memory.
        """
        ...

    def initialise(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters [P]."""
        ...

    def named(self, theta: Tensor) -> Parameters:
        """Views of the flat parameters under their names."""
        ...

    def act(
        self,
        parameters: Parameters,
        view: TeamView,
        perturbations: Sequence[Tensor] | None,
        order: Sequence[int],
        memory: Tensor,
        taken: Sequence[Tensor] | None = None,
    ) -> Acted:
        """Draw all agents' actions, or follow what was done instead.

        Args:
            parameters: named.
            view: [B, ...].
            perturbations: per group [N_group, B, A]; None selects the modes.
            order: of all agents, in which they decide.
            memory: [B, *memory_shape].
            taken: per group [B, N_group, ...] raw actions that are taken, whatever the policy would do; None lets it
                choose.
        """
        ...

    def value(self, parameters: Parameters, view: TeamView, memory: Tensor) -> Tensor:
        """[B] or [B, N] normalised value of what is seen, [B, ...], after ``memory``."""
        ...

    def judge(
        self,
        parameters: Parameters,
        view: TeamView,
        actions: Sequence[Tensor],
        order: Tensor,
        memory: Tensor,
        begins: Tensor,
    ) -> Judged:
        """Policies and values at recorded steps.

        Args:
            parameters: named.
            view: [L, C, ...].
            actions: per group [L, C, N_group, ...] raw.
            order: [N] int64, the order in which the agents decide.
            memory: [C, *memory_shape] before the first step.
            begins: [L, C] bool, True where a step begins an episode.
        """
        ...

    def judge_orders(
        self,
        parameters: Parameters,
        view: TeamView,
        actions: Sequence[Tensor],
        orders: Sequence[Tensor],
        memory: Tensor,
        begins: Tensor,
    ) -> Iterator[Judged]:
        """``judge`` in each of several orders."""
        ...

    def backtrack(self, theta: Tensor, policies: Sequence[GroupPolicy]) -> None:
        """Become the local policies, in place (MAGPO, section 4.1, step 4).

        Raises:
            TypeError: this network is not built as they are (``backtracks``).
        """
        ...
