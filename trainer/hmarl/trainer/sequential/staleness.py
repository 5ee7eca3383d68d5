"""Rollouts that older policies have collected: learnt from by truncated importance weights.

With ρ_t = Π_i π^i(a^i_t|o^i_t) / μ^i(a^i_t|o^i_t), where μ has collected and π is improved now, the weight is
c_t = min(1, ρ_t):

    advantages   what earlier steps take from step t on is multiplied by c_t, and V regresses on V + c_t·Â_t
    surrogates   a step's weight is c_t

Source: Espeholt et al. 2018, "IMPALA", section 4.1, with ρ̄ = c̄ = 1; λ as in the estimates of newer rollouts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.trainer.sequential.samples import TeamSamples


@torch.no_grad()
def importance(team: TeamSamples) -> Tensor:
    """[T, B] ρ of a rollout whose log-probabilities were recorded; agents that are not there count for nothing."""
    rollout = team.rollout
    difference = torch.zeros_like(rollout.team_rewards)
    for g, group in enumerate(team.spec.groups):
        for member, agent in enumerate(group.agents):
            now = team.of_members(g, slice(member, member + 1)).old_log_prob.view_as(difference)
            before = rollout.log_probs[g][:, :, member]
            difference += torch.where(rollout.active[:, :, agent], now - before, 0.0)
    return difference.exp()


def correct(team: TeamSamples) -> dict[str, float]:
    """Weight a rollout's steps before it is learnt from.

    Returns:
        Metrics: the means of ρ and of the weights.
    """
    ratio = importance(team)
    team.rollout.correction = ratio.clamp(max=1.0)
    return {"stale_ratio": float(ratio.mean()), "stale_weight": float(team.rollout.correction.mean())}
