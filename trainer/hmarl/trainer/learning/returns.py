"""Advantage estimation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
    correction: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation: Â_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V(s_{t+1}) − V(s_t).

    Args:
        rewards: [T, ...] float32.
        values: [T, ...] V(s_t).
        next_values: [T, ...] V of the state that followed: 0 where the episode terminated, V of the *final* state
            (not of the one after auto-reset) where it was truncated.
        ended: [T, ...] bool, terminated or truncated: nothing flows back across these steps.
        gamma: discount per step.
        gae_lambda: λ.
        correction: [T, ...] factor c_t on everything that earlier steps take from step t on (truncated importance
            weights), or None.

    Returns:
        [T, ...] advantages; adding ``values`` gives the λ-returns.

    Source: Schulman et al. 2018, Eq. 16; with ``correction`` Wang et al. 2023, Eq. 4, and Espeholt et al. 2018.
    """
    deltas = rewards + gamma * next_values - values
    decay = gamma * gae_lambda * (~ended).to(deltas.dtype)
    if correction is not None:
        decay[:-1] *= correction[1:]
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in range(deltas.shape[0] - 1, -1, -1):
        running = deltas[t] + decay[t] * running
        advantages[t] = running
    return advantages


def decision_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    ended: Tensor,
    decided: Tensor,
    gamma: float,
    gae_lambda: float,
    discount: Literal["step", "decision"] = "step",
) -> Tensor:
    """Advantage estimation for a level that decides at some steps only (an instruction or goal that holds for a while).

    Between two decisions rewards are summed, and λ is applied once per decision. With a decision at every step this is
    ``generalised_advantages``.

    Args:
        rewards: [T, B, ...] float32.
        values: [T, B, ...], as above; of no matter where nothing was decided.
        next_values: [T, B, ...], as above.
        ended: [T, B] or [T, B, ...], as above.
        decided: [T, B] bool, True where a decision was taken.
        gamma: discount.
        gae_lambda: λ per decision.
        discount: when γ is applied. ``step``: at every one, to rewards as well, so that a decision's value is
            discounted by γ to the power of the steps before it. ``decision``: once per decision; the rewards in between
            are just added up.

    Returns:
        [T, B, ...]; meaningful where ``decided``. A window that the rollout cuts off is bootstrapped with the last next
        value.
    """
    per_step, per_decision = (gamma, 1.0) if discount == "step" else (1.0, gamma)
    ended, decided = (flags.view(*flags.shape, *(1,) * (rewards.dim() - flags.dim())) for flags in (ended, decided))
    advantages = torch.zeros_like(rewards)
    # Seen from step t: the discounted reward until the next decision and its bootstrap value, and that decision's
    # advantage.
    window_return = per_decision * next_values[-1]
    carried = torch.zeros_like(window_return)
    for t in range(rewards.shape[0] - 1, -1, -1):
        window_return = rewards[t] + per_step * torch.where(ended[t], per_decision * next_values[t], window_return)
        carried = torch.where(ended[t], 0.0, per_step * carried)
        advantage = window_return - values[t] + gae_lambda * carried
        advantages[t] = advantage
        window_return = torch.where(decided[t], per_decision * values[t], window_return)
        carried = torch.where(decided[t], per_decision * advantage, carried)
    return advantages


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the entries of weight 1, both of any one shape -> scalar; 0 where there are none."""
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


def normalise_advantages(advantages: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean 0, standard deviation 1 over the entries of weight 1; any shape."""
    if weight is None:
        std, mean = torch.std_mean(advantages, correction=0)
        return (advantages - mean) / (std + 1e-8)
    mean = weighted_mean(advantages, weight)
    std = weighted_mean((advantages - mean).square(), weight).sqrt()
    return (advantages - mean) / (std + 1e-8)


def normalise_each(advantages: Tensor, part: Tensor | None) -> Tensor:
    """Mean 0, standard deviation 1 over the entries where ``part`` is true and over the others, apart; both of any
    shape. None: over all.
    """
    if part is None:
        return normalise_advantages(advantages)
    inside, outside = (normalise_advantages(advantages, each.float()) for each in (part, ~part))
    return torch.where(part, inside, outside)


def explained_variance(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 − Var(targets − predictions) / Var(targets): 1 is a perfect critic, 0 one that predicts the mean; a scalar."""
    variance = targets.var(correction=0)
    return 1.0 - (targets - predictions).var(correction=0) / variance.clamp(min=1e-12)
