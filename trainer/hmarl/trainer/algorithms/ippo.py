"""IPPO: every agent learns from its own reward and values its own observation.

Source: de Witt et al. 2020, "Is Independent Learning All You Need in the StarCraft Multi-Agent Challenge?"
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.trainer.algorithms.mappo import Mappo
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.returns import generalised_advantages, normalise_advantages
from hmarl.trainer.sequential.heterogeneous import Estimate


class Ippo(Mappo):
    """MAPPO's step on local values V(o^i), one critic per group."""

    def create_critics(self) -> dict[str, Critic]:
        """One V(o^i, i) per group."""
        return {
            f"critics.{g}": Critic(
                group.example.observation_size + len(group.agents), self.settings, self.generator, self.device
            )
            for g, group in enumerate(self.spec.groups)
        }

    @torch.no_grad()
    def estimate(self, rollout: Rollout) -> Estimate:
        """As the joint estimate, for every agent: all fields but ``states`` are [T, B, N]."""
        values = torch.empty(rollout.steps + 1, *rollout.rewards.shape[1:], device=self.device)
        final_values = torch.empty(len(rollout.final_states), len(self.spec.agents), device=self.device)
        for g, group in enumerate(self.spec.groups):
            members = list(group.agents)
            values[:-1, :, members] = self._values(g, rollout.observations[g])
            values[-1, :, members] = self._values(g, rollout.last_observations[g])
            final_values[:, members] = self._values(g, rollout.final_observations(g))
        following, ended = rollout.next_values_of_agents(values, final_values)
        advantages = generalised_advantages(
            rollout.rewards, values[:-1], following, ended, self.settings.gamma, self.settings.gae_lambda
        )
        states = rollout.states[:-1].flatten(0, 1)
        return Estimate(states, values[:-1], following, advantages, advantages + values[:-1])

    def _values(self, group: int, observations: Tensor) -> Tensor:
        """[..., N_group] of observations [..., N_group, D]."""
        return self.critics[f"critics.{group}"].values(self._critic_inputs(group, observations))

    def _critic_inputs(self, group: int, observations: Tensor) -> Tensor:
        """[..., N_group, D + N_group]: normalised observations with a one-hot identity."""
        features = self.observation_normalisers[group](observations)
        members = observations.shape[-2]
        identity = torch.eye(members, device=features.device).expand(*features.shape[:-1], members)
        return torch.cat([features, identity], dim=-1)

    def per_agent_advantages(self, rollout: Rollout, estimate: Estimate) -> Tensor:
        """[T, B, N]: each agent's own advantage."""
        return normalise_advantages(estimate.advantages, None if rollout.all_active else rollout.active.float())

    def update_critic(self, rollout: Rollout, estimate: Estimate, schedule: float) -> dict[str, float]:
        """Every V(o^i) regresses on its agents' own λ-returns at the steps at which they were there."""
        rows = []
        for g, group in enumerate(self.spec.groups):
            there = rollout.active[:, :, list(group.agents)]
            if there.any():
                inputs = self._critic_inputs(g, rollout.observations[g])[there]
                targets = estimate.returns[:, :, list(group.agents)][there]
                rows.append(self.critics[f"critics.{g}"].fit(inputs, targets, self.noise_generator, schedule))
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
