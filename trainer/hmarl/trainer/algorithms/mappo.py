"""MAPPO: all agents at once climb the clipped surrogate on one centralised V(s).

Source: Yu et al. 2022, "The Surprising Effectiveness of PPO in Cooperative Multi-Agent Games", Algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from hmarl.trainer.algorithms.happo import Happo, HappoSettings
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.sequential.heterogeneous import Estimate, per_agent_metrics


class MappoSettings(HappoSettings):
    """Settings of MAPPO."""

    share_parameters: bool = Field(
        True, description="agents of a group share one network, told apart by a one-hot input"
    )


class Mappo(Happo):
    """HAPPO's step without the sequence: no agent's advantage knows of the others' updates."""

    settings_class: ClassVar[type[AlgorithmSettings]] = MappoSettings
    settings: MappoSettings

    def update_agents(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """Each row of parameters climbs once: a shared one on the samples of all who share it."""
        advantages = self.per_agent_advantages(rollout, estimate)
        features = self.features(rollout)
        metrics: dict[int, dict[str, float]] = {}
        for g, (group, policy) in enumerate(zip(self.spec.groups, self.policies, strict=True)):
            width = policy.members if policy.shared else 1
            for first in range(0, policy.members, width):
                members = slice(first, first + width)
                samples = self.samples_of(rollout, features, g, members)
                theirs = advantages[:, :, list(group.agents[members])].flatten()
                metrics[group.agents[first]] = self.descend(g, first, samples, theirs, schedule).metrics
        return per_agent_metrics(self.spec, metrics)

    def per_agent_advantages(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B, N]: the joint advantage for each agent."""
        return self.agents_advantages(rollout, estimate).unsqueeze(-1).expand_as(rollout.rewards)
