"""Local conductors ψ^i(M|o^i), who stand in for a conductor that sees more than one agent does."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.deployable import Instructing
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.imitation import distil
from hmarl.trainer.learning.instructions import agreement
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.networks.settings import HiddenSizes, NetworkSettings


class LocalConductorSettings(NetworkSettings, Protocol):
    """The settings that local conductors read."""

    instruction_scale: float
    instruction_interval: int
    conductor_hidden_sizes: HiddenSizes
    distillation_learning_rate: float
    distillation_epochs: int
    distillation_minibatches: int
    share_parameters: bool
    max_gradient_norm: float


class LocalConductors:
    """One for every agent, and how they follow the conductor.

    Args:
        spec: the environment.
        settings: of networks and distillation.
        head: what instructions are.
        generator: CPU generator of the initial weights.
        device: where networks live.

    Attributes:
        policies: ψ^i per group; distillers: their optimisers.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        settings: LocalConductorSettings,
        head: ActionHead,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.spec, self.settings = spec, settings
        self.policies = [
            GroupPolicy.create(
                len(group.agents), group.example.observation_size, head, settings, generator,
                shared=settings.share_parameters, hidden_sizes=settings.conductor_hidden_sizes,
            )
            for group in spec.groups
        ]  # fmt: skip
        for policy in self.policies:
            policy.theta = policy.theta.to(device)
        self.distillers = [
            FlatAdam(policy.theta, settings.distillation_learning_rate, settings.max_gradient_norm)
            for policy in self.policies
        ]

    def inputs(self, group: int, features: Tensor) -> Tensor:
        """[N_group, M, input_size] what a group's local conductors see; ``features`` [T, B, N_group, D]."""
        return self.policies[group].inputs(features).flatten(0, 1).transpose(0, 1).contiguous()

    def choices(self, group: int, features: Tensor) -> Distribution:
        """[N_group, M] ψ^i(·|o^i)."""
        return self.policies[group].all_distributions(self.inputs(group, features))

    def drawn(self, group: int, features: Tensor, noise: Tensor) -> Tensor:
        """[B, N_group, ...] M^i ∼ ψ^i(·|o^i), with numbers that all agents share.

        Args:
            group: of agents.
            features: [B, N_group, D] normalised observations.
            noise: [B, K] or [B, D].
        """
        choice = self.choices(group, features.unsqueeze(0))
        return choice.select(noise.unsqueeze(0)).transpose(0, 1)

    def probabilities(self, features: list[Tensor], chosen: Tensor) -> dict[int, Tensor]:
        """Per agent, [M] ψ^i(M|o^i) of the instructions ``chosen`` [M]."""
        return {
            agent: theirs
            for g, group in enumerate(self.spec.groups)
            for agent, theirs in zip(
                group.agents,
                self.choices(g, features[g]).log_prob(chosen.expand(len(group.agents), -1)).exp(),
                strict=True,
            )
        }

    def follow(
        self,
        rollout: Rollout,
        features: list[Tensor],
        conductor: Distribution,
        generator: torch.Generator,
        schedule: float,
    ) -> dict[str, float]:
        """ψ^i ← argmin −E_{w_{k+1}}[log ψ^i(M|o^i)] on the same batch (line 10); also reports how far they agree."""
        gaps, agreements = [], []
        for g, (local, distiller) in enumerate(zip(self.policies, self.distillers, strict=True)):
            inputs = self.inputs(g, features[g])
            members = list(self.spec.groups[g].agents)
            weight = None if rollout.all_active else rollout.active[:, :, members].flatten(0, 1).T.float()
            gaps.append(
                distil(
                    local, distiller, inputs, conductor, weight, generator,
                    self.settings.distillation_epochs, self.settings.distillation_minibatches, schedule,
                )
            )  # fmt: skip
            agreements.append(agreement(conductor, local.all_distributions(inputs)))
        return {
            "local_conductor_kl": sum(gaps) / len(gaps),
            "local_conductor_agreement": sum(agreements) / len(agreements),
        }

    def instructing(self, group: int, member: int) -> Instructing:
        """w^i inside of one agent's graph."""
        settings = self.settings
        return Instructing.of(self.policies[group], member, settings.instruction_interval, settings.instruction_scale)

    def components(self) -> dict[str, object]:
        """The networks and their optimisers, as ``Algorithm.components`` names them."""
        parts: dict[str, object] = {}
        for g, (local, distiller) in enumerate(zip(self.policies, self.distillers, strict=True)):
            parts |= {f"local_conductors.{g}": local.theta, f"distillers.{g}": distiller}
        return parts
