"""Local conductors ψ^i(M|o^i), who stand in for a conductor that sees more than one agent does."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.conductors.settings import LocalConductorSettings
from hmarl.trainer.contract.deployable import Instructing
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.imitation import distil, distil_until_settled
from hmarl.trainer.learning.instructions import agreement
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import Context, GroupPolicy, context_of


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
        remembered = head.output_size if settings.local_conductors_remember else 0
        shared = settings.share_local_conductors
        shared = settings.share_parameters if shared is None else shared
        self.policies = [
            GroupPolicy.create(
                len(group.agents),
                group.example.observation_size + remembered,
                head,
                settings,
                generator,
                shared=shared,
                hidden_sizes=settings.conductor_hidden_sizes,
                image=group.example.image,
            )
            for group in spec.groups
        ]
        for policy in self.policies:
            policy.theta = policy.theta.to(device)
        self.distillers = [
            FlatAdam(policy.theta, settings.distillation_learning_rate, settings.max_gradient_norm)
            for policy in self.policies
        ]

    @property
    def remember(self) -> bool:
        """Whether they see their own instruction before."""
        return self.settings.local_conductors_remember

    def inputs(self, group: int, features: Tensor, last: Context | None = None) -> Tensor:
        """[N_group, M, input_size] what a group's local conductors see.

        Args:
            group: of agents.
            features: [T, B, N_group, D] normalised observations.
            last: what the agents saw of the instruction before (see ``Context``); where they remember.
        """
        seen = self.policies[group].inputs(features, context_of(last, group))
        return seen.flatten(0, 1).transpose(0, 1).contiguous()

    def choices(self, group: int, features: Tensor, last: Context | None = None) -> Distribution:
        """[N_group, M] ψ^i(·|o^i)."""
        return self.policies[group].all_distributions(self.inputs(group, features, last))

    def drawn(self, group: int, features: Tensor, noise: Tensor, last: Tensor | None = None) -> Tensor:
        """[B, N_group, ...] M^i ∼ ψ^i(·|o^i), with numbers that all agents share.

        Args:
            group: of agents.
            features: [B, N_group, D] normalised observations.
            noise: [B, K] or [B, D].
            last: [B, N_group, K] or [B, N_group, D] what they saw of their own instruction before; where they remember.
        """
        seen = self.policies[group].inputs(features, last).transpose(0, 1)
        choice = self.policies[group].all_distributions(seen)
        return choice.select(noise.unsqueeze(0)).transpose(0, 1)

    def probabilities(self, features: list[Tensor], chosen: Tensor, last: Context | None = None) -> dict[int, Tensor]:
        """Per agent, [M] ψ^i(M|o^i) of the instructions ``chosen`` [M]."""
        return {
            agent: theirs
            for g, group in enumerate(self.spec.groups)
            for agent, theirs in zip(
                group.agents,
                self.choices(g, features[g], last).log_prob(chosen.expand(len(group.agents), -1)).exp(),
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
        last: Context | None = None,
    ) -> dict[str, float]:
        """ψ^i ← argmin −E_{w_{k+1}}[log ψ^i(M|o^i)] on the same batch (line 10); also reports how far they agree."""
        gaps, agreements, passes = [], [], []
        for g, (local, distiller) in enumerate(zip(self.policies, self.distillers, strict=True)):
            inputs = self.inputs(g, features[g], last)
            members = on_device(self.spec.groups[g].agents, rollout.device)
            weight = None if rollout.all_active else rollout.active[:, :, members].flatten(0, 1).T.float()
            gap, made = self._distil(local, distiller, inputs, conductor, weight, generator, schedule)
            gaps.append(gap)
            passes.append(made)
            agreements.append(agreement(conductor, local.all_distributions(inputs), weight))
        return {
            "local_conductor_kl": sum(gaps) / len(gaps),
            "local_conductor_agreement": sum(agreements) / len(agreements),
            "distillation_epochs": sum(passes) / len(passes),
        }

    def _distil(
        self,
        local: GroupPolicy,
        distiller: FlatAdam,
        inputs: Tensor,
        conductor: Distribution,
        weight: Tensor | None,
        generator: torch.Generator,
        schedule: float,
    ) -> tuple[float, int]:
        """One group's; returns the KL that is left, and the passes that were made."""
        epochs, minibatches = self.settings.distillation_epochs, self.settings.distillation_minibatches
        given = (local, distiller, inputs, conductor, weight, generator, epochs, minibatches)
        if self.settings.distillation_patience:
            return distil_until_settled(*given, self.settings.distillation_patience, schedule)
        return distil(*given, schedule), epochs

    def instructing(self, group: int, member: int) -> Instructing:
        """w^i inside of one agent's graph."""
        settings = self.settings
        return Instructing.of(
            self.policies[group],
            member,
            settings.instruction_interval,
            settings.instruction_scale,
            remembers=settings.local_conductors_remember,
        )

    def components(self) -> dict[str, object]:
        """The networks and their optimisers, as ``Algorithm.components`` names them."""
        parts: dict[str, object] = {}
        for g, (local, distiller) in enumerate(zip(self.policies, self.distillers, strict=True)):
            parts |= {f"local_conductors.{g}": local.theta, f"distillers.{g}": distiller}
        return parts
