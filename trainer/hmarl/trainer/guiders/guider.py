"""What an algorithm needs of a guider: a policy μ and a value of a whole team, as one pure function.

Source: Li et al. 2025 (MAGPO), section 4.1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from hmarl.sdk.spaces import AgentGroup
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.flat import FlatNetwork
from hmarl.trainer.networks.layers import Parameters
from hmarl.trainer.networks.policies import GroupPolicy


class GuiderStructure(Protocol):
    """The settings that an autoregressive guider is built from."""

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


@dataclass(frozen=True)
class TeamView:
    """What a guider sees of a team, over any leading dimensions [...].

    Attributes:
        features: per group [..., N_group, D] normalised observations.
        action_masks: per group [..., N_group, A] bool, or None.
        context: [..., C] what all agents are seen with, beside the observations (the state), or None.
        instruction: [..., K] what actions, but not values, depend on as well (a conductor's instruction), or None.
    """

    features: Sequence[Tensor]
    action_masks: Sequence[Tensor | None]
    context: Tensor | None = None
    instruction: Tensor | None = None


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


class Guider(FlatNetwork):
    """A policy of a whole team and its value, as a pure function of flat parameters.

    Args:
        groups: of agents with equal spaces.
        heads: how each group acts.
        context_size, instruction_size: C and K of the views.
    """

    backtracks: ClassVar[bool] = False

    def __init__(
        self, groups: Sequence[AgentGroup], heads: Sequence[ActionHead], context_size: int, instruction_size: int
    ) -> None:
        self.groups, self.heads = groups, heads
        self.context_size, self.instruction_size = context_size, instruction_size
        self.agents = sum(len(group.agents) for group in groups)
        self.grouped = [agent for group in groups for agent in group.agents]

    @property
    @abstractmethod
    def memory_shape(self) -> tuple[int, ...]:
        """What is remembered of an environment from step to step; (0,) for a network without memory."""

    def no_memory(self, batch: int, device: torch.device) -> Tensor:
        """[batch, *memory_shape]: what is remembered when an episode begins."""
        return torch.zeros(batch, *self.memory_shape, device=device)

    @abstractmethod
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

    @abstractmethod
    def value(self, parameters: Parameters, view: TeamView, memory: Tensor) -> Tensor:
        """[B] or [B, N] normalised value of what is seen, [B, ...], after ``memory``."""

    @abstractmethod
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
        for order in orders:
            yield self.judge(parameters, view, actions, order, memory, begins)

    def backtrack(self, theta: Tensor, policies: Sequence[GroupPolicy]) -> None:
        """Become the local policies, in place (MAGPO, section 4.1, step 4).

        Raises:
            TypeError: this network is not built as they are (``backtracks``).
        """
        raise TypeError(f"{type(self).__name__} is not built as the local policies are")
