"""A guider that is built as the local policies are, so that backtracking can be taken literally.

Every agent decides by itself from its own observation, and only the value is the team's. Such a guider explores no
better than the local policies do; it is there to compare: after every update it becomes what they are, as the tabular
MAGPO prescribes, where other guiders are held near them by the double clip and the masked divergence.

Source: Li et al. 2025 (MAGPO), section 4.1, step 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from hmarl.sdk.spaces import AgentGroup
from hmarl.trainer.guiders.guider import Acted, Judged, TeamView
from hmarl.trainer.guiders.settings import GuiderSettings
from hmarl.trainer.networks.distributions import ActionHead
from hmarl.trainer.networks.flat import FlatNetwork, Mlp
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.layers import Parameters
from hmarl.trainer.networks.policies import GroupPolicy, select_all, step_all


class FactorisedGuider(FlatNetwork):
    """The local policies' networks, and a perceptron that values what all agents see together.

    Args:
        groups: of agents with equal spaces.
        heads: how each group acts.
        settings: of the local policies; the value's network takes its width from ``embedding_size``.
        context_size, instruction_size: C and K of the views.
    """

    backtracks: ClassVar[bool] = True

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        heads: Sequence[ActionHead],
        settings: GuiderSettings,
        context_size: int = 0,
        instruction_size: int = 0,
    ) -> None:
        self.groups, self.heads, self.settings = groups, heads, settings
        self.instruction_size = instruction_size
        self.grouped = [agent for group in groups for agent in group.agents]
        self.agents = len(self.grouped)
        self.policies = self._create_policies(torch.Generator())
        seen = context_size + sum(len(group.agents) * group.example.observation_size for group in groups)
        width = (settings.embedding_size, settings.embedding_size)
        self.own_values = settings.credit == "own"
        outputs = self.agents if self.own_values else 1
        self.critic = Mlp(seen, width, outputs, settings.activation, 1.0, settings.normalise_layers)

    def _create_policies(self, generator: torch.Generator) -> list[GroupPolicy]:
        settings = self.settings
        return [
            GroupPolicy.create(
                len(group.agents),
                group.example.observation_size + self.instruction_size,
                head,
                settings,
                generator,
                shared=settings.share_parameters,
                recurrent=settings.recurrent,
            )
            for group, head in zip(self.groups, self.heads, strict=True)
        ]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The policies', one block a group, and the value's."""
        shapes = {f"policies.{g}": tuple(policy.theta.shape) for g, policy in enumerate(self.policies)}
        return shapes | {"critic": (self.critic.size,)}

    def _gain(self, name: str) -> float:
        raise NotImplementedError("policies and critic draw their own weights")

    def initialise(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters [P]."""
        policies = [policy.theta.flatten() for policy in self._create_policies(generator)]
        return torch.cat([*policies, self.critic.initialise(generator)])

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Every agent's, group by group."""
        return (sum(policy.members * policy.network.memory_size for policy in self.policies),)

    def _memories(self, memory: Tensor) -> list[Tensor]:
        """Per group [N_group, B, H] of [B, M]."""
        sizes = [policy.members * policy.network.memory_size for policy in self.policies]
        return [
            part.unflatten(1, (policy.members, policy.network.memory_size)).transpose(0, 1)
            for part, policy in zip(memory.split(sizes, dim=1), self.policies, strict=True)
        ]

    def act(
        self,
        parameters: Parameters,
        view: TeamView,
        perturbations: Sequence[Tensor] | None,
        order: Sequence[int],
        memory: Tensor,
        taken: Sequence[Tensor] | None = None,
    ) -> Acted:
        """All agents' actions at once; the order is of no matter."""
        policies = [replace(policy, theta=parameters[f"policies.{g}"]) for g, policy in enumerate(self.policies)]
        memories = self._memories(memory)
        distributions, following = step_all(
            policies, view.features, view.action_masks, view.instruction, memories, view.there
        )
        actions = select_all(distributions, perturbations) if taken is None else tuple(taken)
        log_prob = torch.zeros(len(memory), self.agents, device=memory.device)
        for group, distribution, action in zip(self.groups, distributions, actions, strict=True):
            log_prob[:, on_device(group.agents, log_prob.device)] = distribution.log_prob(action.transpose(0, 1)).T
        after = torch.cat([each.transpose(0, 1).flatten(1) for each in following or memories], dim=1)
        return Acted(actions, log_prob, self._value(parameters, view), after)

    def value(self, parameters: Parameters, view: TeamView, memory: Tensor) -> Tensor:
        """[B] or [B, N] normalised value of what is seen; memory is of no matter."""
        return self._value(parameters, view)

    def _value(self, parameters: Parameters, view: TeamView) -> Tensor:
        """[...] of views [..., N_group, D], or [..., N] every agent's own."""
        seen = [features.flatten(-2) for features in view.features]
        seen += [] if view.context is None else [view.context]
        values = self.critic(parameters["critic"], torch.cat(seen, dim=-1))
        return values if self.own_values else values.squeeze(-1)

    def judge(
        self,
        parameters: Parameters,
        view: TeamView,
        actions: Sequence[Tensor],
        order: Tensor,
        memory: Tensor,
        begins: Tensor,
    ) -> Judged:
        """Policies and values at recorded steps."""
        distributions = [
            policy.along(
                view.features[g],
                view.instruction,
                view.action_masks[g],
                remembered,
                begins,
                parameters[f"policies.{g}"],
                None if view.there is None else view.there[g],
            )
            for g, (policy, remembered) in enumerate(zip(self.policies, self._memories(memory), strict=True))
        ]
        values = self._value(parameters, view)
        if self.own_values:
            values = values.index_select(-1, on_device(self.grouped, values.device))
        return Judged(distributions, values)

    def judge_orders(
        self,
        parameters: Parameters,
        view: TeamView,
        actions: Sequence[Tensor],
        orders: Sequence[Tensor],
        memory: Tensor,
        begins: Tensor,
    ) -> Iterator[Judged]:
        """``judge`` in each of several orders, which are of no matter."""
        for order in orders:
            yield self.judge(parameters, view, actions, order, memory, begins)

    def backtrack(self, theta: Tensor, policies: Sequence[GroupPolicy]) -> None:
        """Copy the local policies' parameters."""
        named = self.named(theta)
        for g, policy in enumerate(policies):
            named[f"policies.{g}"].copy_(policy.theta)
