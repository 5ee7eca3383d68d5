"""The policies of a group of agents with equal spaces: one row of parameters an agent, acting in one batched call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.sdk.spaces import AgentGroup
from hmarl.trainer.config import AlgorithmSettings
from hmarl.trainer.distributions import ActionHead, Distribution
from hmarl.trainer.networks import Mlp


@dataclass
class GroupPolicy:
    """π(a | input) of the N agents of a group.

    Attributes:
        network: shared structure of all members.
        head: turns the network's output into a distribution.
        theta: [N, P] parameters: the network's, then the head's; [1, P] when the members share them.
        members: N.
        inputs_before_identity: width of the input without the one-hot identity that shared parameters need.
    """

    network: Mlp
    head: ActionHead
    theta: Tensor
    members: int

    @classmethod
    def create(
        cls,
        members: int,
        input_size: int,
        head: ActionHead,
        settings: AlgorithmSettings,
        generator: torch.Generator,
        *,
        shared: bool = False,
        hidden_sizes: tuple[int, ...] | None = None,
    ) -> GroupPolicy:
        """Fresh policies.

        Args:
            members: N.
            input_size: width of the input, without the identity that ``shared`` adds.
            head: of the action space.
            settings: hidden layers and activation.
            shared: all members use one network, told apart by a one-hot appended to the input.
            generator: CPU generator of the initial weights.
            hidden_sizes: instead of the settings' own.
        """
        network = Mlp(
            input_size + (members if shared else 0),
            settings.hidden_sizes if hidden_sizes is None else hidden_sizes,
            head.output_size,
            settings.activation,
            normalise_layers=settings.normalise_layers,
        )
        rows = [torch.cat([network.initialise(generator), head.initialise()]) for _ in range(1 if shared else members)]
        return cls(network, head, torch.stack(rows), members)

    @property
    def shared(self) -> bool:
        """Whether all members use one row of parameters."""
        return self.theta.shape[0] == 1 and self.members > 1

    def row(self, member: int) -> Tensor:
        """[P] parameters of one member, a view."""
        return self.theta[0 if self.shared else member]

    def inputs(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """Network inputs of all members: [..., N, input_size], features with the context and the identity appended.

        Args:
            features: [..., N, D] normalised observations.
            context: [..., C] what all members see alike (the one-hot instruction), or None.
        """
        parts = [features]
        if context is not None:
            parts.append(context.unsqueeze(-2).expand(*features.shape[:-1], context.shape[-1]))
        if self.shared:
            identity = torch.eye(self.members, device=features.device)
            parts.append(identity.expand(*features.shape[:-1], self.members))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else features

    def distribution(self, theta: Tensor, inputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """One member's distribution: ``theta`` [P], ``inputs`` [M, input_size], ``mask`` [M, A] or None."""
        size = self.network.size
        return self.head.distribution(self.network(theta[:size], inputs), theta[size:], mask)

    def all_distributions(self, inputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """Everybody's distribution in one batched call: ``inputs`` [N, M, input_size], ``mask`` [N, M, A]."""
        theta = self.theta.expand(self.members, -1)
        size = self.network.size
        output = self.network(theta[:, :size], inputs)
        return self.head.distribution(output, theta[:, size:].unsqueeze(1), mask)


def group_head(group: AgentGroup, settings: AlgorithmSettings) -> ActionHead:
    """The head for the group's action space."""
    return ActionHead(group.example.action_space, settings.squash, settings.initial_std)
