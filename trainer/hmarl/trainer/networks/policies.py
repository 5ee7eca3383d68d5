"""The policies of a group of agents with equal spaces: one row of parameters an agent, acting in one batched call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hmarl.sdk.spaces import AgentGroup, ImageFormat
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.flat import FlatNetwork, Memory, Mlp, RecurrentNetwork
from hmarl.trainer.networks.images import ImageEncoder, beside
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.settings import (
    AlgorithmSettings,
    NetworkSettings,
    PolicyGradientFields,
    SquashedGaussianFields,
)


@dataclass
class GroupPolicy:
    """π(a | input) of the N agents of a group.

    Attributes:
        network: shared structure of all members.
        head: turns the network's output into a distribution.
        theta: [N, P] parameters: the network's, then the head's; [1, P] when the members share them.
        members: N.
        told_apart: whether members who share parameters see a one-hot identity; False where they do not share.
        roles: K, where members who share parameters are told apart by their roles instead; see ``role``. Else 0.
    """

    network: Mlp | RecurrentNetwork
    head: ActionHead
    theta: Tensor
    members: int
    told_apart: bool = False
    roles: int = 0

    @classmethod
    def create(
        cls,
        members: int,
        input_size: int,
        head: ActionHead,
        settings: NetworkSettings,
        generator: torch.Generator,
        *,
        shared: bool = False,
        hidden_sizes: tuple[int, ...] | None = None,
        recurrent: bool = False,
        image: ImageFormat | None = None,
        roles: int = 0,
    ) -> GroupPolicy:
        """Fresh policies.

        Args:
            members: N.
            input_size: width of the input, without the identity that ``shared`` adds.
            head: of the action space.
            settings: hidden layers, activation, and whether members who share a network are told apart.
            shared: all members use one network, told apart by a one-hot appended to the input or not at all.
            generator: CPU generator of the initial weights.
            hidden_sizes: instead of the settings' own.
            recurrent: with a memory of the settings' size.
            image: what picture the input begins with, if any.
            roles: K, the width of the context that tells members apart who share a network; 0: an identity does.
        """
        shared = shared and members > 1  # no other to be told apart from
        roles = roles if shared else 0
        told_apart = shared and settings.agent_identity and not roles
        structure: dict[str, Any] = {
            "input_size": input_size + (members if told_apart else 0),
            "hidden_sizes": settings.hidden_sizes if hidden_sizes is None else hidden_sizes,
            "output_size": head.output_size,
            "activation": settings.activation,
            "normalise_layers": settings.normalise_layers,
            "encoder": ImageEncoder.of(image, settings),
        }
        network: Mlp | RecurrentNetwork = (
            RecurrentNetwork(**structure, memory=settings.memory_size) if recurrent else Mlp(**structure)
        )
        theta = fresh_rows(1 if shared else members, network, head, generator)
        return cls(network, head, theta, members, told_apart, roles)

    @property
    def shared(self) -> bool:
        """Whether all members use one row of parameters."""
        return self.theta.shape[0] == 1 and self.members > 1

    @property
    def recurrent(self) -> bool:
        """Whether members remember."""
        return isinstance(self.network, RecurrentNetwork)

    def row(self, member: int) -> Tensor:
        """[P] parameters of one member, a view."""
        return self.theta[0 if self.shared else member]

    def inputs(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """Network inputs of all members: [..., N, input_size], features with the context, each in its own role, and the
        identity appended.

        Args:
            features: [..., N, D] normalised observations, or pixels.
            context: [..., C] what all members see alike (the one-hot instruction), or [..., N, C] what each sees; or
                None.
        """
        parts = []
        if context is not None:
            each = context if context.dim() == features.dim() else context.unsqueeze(-2)
            each = each.expand(*features.shape[:-1], context.shape[-1])
            if self.roles:
                places = [place for member in range(self.members) for place in role(self.roles, member)]
                each = each.gather(-1, on_device(places, each.device).view(self.members, -1).expand(each.shape))
            parts.append(each)
        if self.told_apart:
            identity = torch.eye(self.members, device=features.device)
            parts.append(identity.expand(*features.shape[:-1], self.members))
        return beside(features, parts)

    def distribution(
        self, theta: Tensor, inputs: Tensor, mask: Tensor | None = None, memory: Memory | None = None
    ) -> Distribution:
        """One member's distribution at many rows; or, of a stack of parameters and of rows, a stack of them.

        Args:
            theta: [P]; or [S, P], and the others with a leading dimension S as well.
            inputs: [M, input_size].
            mask: [M, A] bool, or None.
            memory: how the rows follow one another; for recurrent networks only.
        """
        size = self.network.size
        extra = theta[size:] if theta.dim() == 1 else theta[:, size:].unsqueeze(1)
        return self.head.distribution(self._outputs(theta[..., :size], inputs, memory), extra, mask)

    def all_distributions(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        memory: Memory | None = None,
        theta: Tensor | None = None,
    ) -> Distribution:
        """All agents' distributions in one batched call.

        Args:
            inputs: [N, M, input_size].
            mask: [N, M, A] bool, or None.
            memory: how the rows follow one another (``initial`` [N, n·B, H]); for recurrent networks only.
            theta: instead of the own parameters.
        """
        theta = (self.theta if theta is None else theta).expand(self.members, -1)
        return self.distribution(theta, inputs, mask, memory)

    def along(
        self,
        features: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        memory: Tensor,
        begins: Tensor,
        theta: Tensor,
        there: Tensor | None = None,
    ) -> Distribution:
        """[N, L·C] all agents' distributions along C sequences of L steps.

        Args:
            features: [L, C, N, D] normalised observations.
            context: [L, C, K] what all members see alike, or None.
            mask: [L, C, N, A] bool, or None.
            memory: [N, C, H] before the first step; of no matter to networks without memory.
            begins: bool, True where nothing from before a step is remembered; see ``forgotten`` of ``memory_along``.
            theta: parameters [rows, P].
            there: [L, C, N] bool, False where an agent is away, or None; see ``Memory``.
        """
        inputs = self.inputs(features, context).flatten(0, 1).transpose(0, 1)
        legal = None if mask is None else mask.flatten(0, 1).transpose(0, 1)
        remembered = memory_along(memory, begins, there) if self.recurrent else None
        return self.all_distributions(inputs, legal, remembered, theta)

    def _outputs(self, theta: Tensor, inputs: Tensor, memory: Memory | None) -> Tensor:
        if isinstance(self.network, RecurrentNetwork):
            assert memory is not None
            return self.network.sequence(self.network.named(theta), inputs, memory)
        return self.network(theta, inputs)

    def step(
        self, inputs: Tensor, mask: Tensor | None, memory: Tensor | None, there: Tensor | None = None
    ) -> tuple[Distribution, Tensor | None]:
        """All agents' distributions at one step, and what they remember after it.

        Args:
            inputs: [N, B, input_size].
            mask: [N, B, A] bool, or None.
            memory: [N, B, H] for recurrent networks, else None.
            there: [N, B] bool, False where an agent is away, and what it remembers stands still; None: all are there.
        """
        if not isinstance(self.network, RecurrentNetwork):
            return self.all_distributions(inputs, mask), None
        assert memory is not None
        theta, size = self.theta.expand(self.members, -1), self.network.size
        output, following = self.network.step(self.network.named(theta[:, :size]), inputs, memory, there)
        return self.head.distribution(output, theta[:, size:].unsqueeze(1), mask), following


def role(roles: int, member: int) -> list[int]:
    """Which of the K entries of the instruction's one-hot a member sees at each place.

    Where the instruction is M, the i-th member of a group sees (M + i) mod K. All of them then act by one function of
    what they see and of a role, and an instruction hands the roles out anew.
    """
    return [(place - member) % roles for place in range(roles)]


def memory_along(memory: Tensor, forgotten: Tensor, there: Tensor | None) -> Memory:
    """What N agents remember along C sequences of L steps.

    Args:
        memory: [N, C, H] before the first step.
        forgotten: [L, C] bool, True where nothing from before a step is remembered: it begins an episode; or
            [L, C, N], where that differs between agents: some were restarted.
        there: [L, C, N] bool, False where an agent is away; None: all are always there.
    """

    def of_agents(x: Tensor) -> Tensor:
        """[N, 1, L, C, 1]."""
        return x.permute(2, 0, 1).unsqueeze(1).unsqueeze(-1)

    kept = (~forgotten).float()
    kept = kept.view(1, *kept.shape, 1) if kept.dim() == 2 else of_agents(kept)
    return Memory(memory, kept, None if there is None else of_agents(there))


def fresh_rows(rows: int, network: FlatNetwork, head: ActionHead, generator: torch.Generator) -> Tensor:
    """[rows, P] fresh parameters, of a network and of its head each."""
    return torch.stack([torch.cat([network.initialise(generator), head.initialise()]) for _ in range(rows)])


def by_group(groups: Sequence[AgentGroup], active: Tensor) -> list[Tensor]:
    """Per group [..., N_group] of what is known of all agents [..., N]."""
    return [active[..., on_device(group.agents, active.device)] for group in groups]


def without_restarted(
    groups: Sequence[AgentGroup], memories: Sequence[Tensor], restarted: Tensor | None
) -> list[Tensor]:
    """What agents remember, per group [N_group, B, H] or nothing at all, once those ``restarted`` [B, N] bool have
    forgotten everything; None: no agent was.
    """
    if restarted is None or not memories:
        return list(memories)
    rows = by_group(groups, restarted)
    return [memory.masked_fill(each.T.unsqueeze(-1), 0.0) for memory, each in zip(memories, rows, strict=True)]


def no_memories(policies: Sequence[GroupPolicy], batch_size: int) -> list[Tensor]:
    """Per group [N_group, B, H] zeros: what agents remember when an episode begins."""
    return [
        torch.zeros(policy.members, batch_size, policy.network.memory_size, device=policy.theta.device)
        for policy in policies
    ]


Context = Tensor | Sequence[Tensor]
"""What agents see beside their observations: [..., C] all alike, or per group [..., N_group, C] each its own."""


def context_of(context: Context | None, group: int) -> Tensor | None:
    """A group's part of what is seen."""
    return context if context is None or isinstance(context, Tensor) else context[group]


def step_all(
    policies: Sequence[GroupPolicy],
    features: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    context: Context | None,
    memories: Sequence[Tensor],
    there: Sequence[Tensor] | None,
) -> tuple[list[Distribution], list[Tensor]]:
    """All agents' distributions at one step, and what they remember after it.

    Args:
        policies: one a group.
        features: per group [B, N_group, D] normalised observations.
        masks: per group [B, N_group, A] bool, or None.
        context: see ``Context``; or None.
        memories: per group [N_group, B, H] for recurrent policies, else empty.
        there: per group [B, N_group] bool: what agents remember stands still while they are away. None: all are there.

    Returns:
        Per group [N_group, B]; and memories as they came.
    """
    distributions, following = [], []
    for g, policy in enumerate(policies):
        mask = masks[g]
        distribution, memory = policy.step(
            policy.inputs(features[g], context_of(context, g)).transpose(0, 1),
            None if mask is None else mask.transpose(0, 1),
            memories[g] if memories else None,
            None if there is None else there[g].T,
        )
        distributions.append(distribution)
        following += [] if memory is None else [memory]
    return distributions, following


def select_all(distributions: Sequence[Distribution], perturbations: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """Raw actions per group [B, N_group, ...] of distributions [N_group, B].

    Args:
        distributions: one a group.
        perturbations: per group [N_group, B, A]; None selects the modes.
    """
    if perturbations is None:
        return tuple(each.mode().transpose(0, 1) for each in distributions)
    drawn = zip(distributions, perturbations, strict=True)
    return tuple(each.select(perturbation).transpose(0, 1) for each, perturbation in drawn)


def group_head(group: AgentGroup, settings: AlgorithmSettings) -> ActionHead:
    """What turns a network's output into actions of the group, continuous ones as the settings say."""
    if isinstance(settings, PolicyGradientFields):
        return ActionHead(group.example.action_space, settings.squash, settings.initial_std)
    if isinstance(settings, SquashedGaussianFields):
        return ActionHead(group.example.action_space, "tanh", settings.initial_std, seen_std=True)
    return ActionHead(group.example.action_space)
