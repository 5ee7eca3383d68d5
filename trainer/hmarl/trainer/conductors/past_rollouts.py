"""Off-policy HCPO: past rollouts are learnt from again, weighted by how likely the present policies act like that.

Each sample's weight is the truncated importance ratio of instruction and joint action,

    ρ_t = min( c, w_k(M|s) Π_i π^i_k(a^i|o^i,M) / ( w_β(M|s) Π_i π^i_β(a^i|o^i,M) ) )

with β the policies that collected it and k the present ones. Advantages and value targets follow V-trace with traces
min(1, ρ): Â_t = δ_t + γλ min(1, ρ_{t+1}) Â_{t+1} and v_t = V(s_t) + min(1, ρ_t) Â_t.

Source: the HCPO paper's open question on off-policy learning; Espeholt et al. 2018, "IMPALA", section 4.1 (V-trace).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.experience.replay import Rows, all_finite
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.returns import generalised_advantages
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.sequential.estimates import Discounting, Estimate


@dataclass(frozen=True)
class Joined:
    """A rollout with past ones beside it, as if further environments had been played.

    Attributes:
        rollout: all of them, B(n + 1) environments, the fresh one first.
        next_states: [T, B(n + 1), state_size] the states that followed, final ones where episodes ended.
    """

    rollout: Rollout
    next_states: Tensor


def rows_of(rollout: Rollout) -> Rows:
    """A rollout's content by name, [T, B, ...] each."""
    rows: Rows = {
        "states": rollout.states[:-1],
        "next_states": rollout.next_states(),
        "team_rewards": rollout.team_rewards,
        "terminated": rollout.terminated,
        "truncated": rollout.truncated,
        "active": rollout.active,
    }
    for g, (observations, actions) in enumerate(zip(rollout.observations, rollout.actions, strict=True)):
        rows |= {f"observations.{g}": observations, f"actions.{g}": actions}
        mask = rollout.action_masks[g]
        if mask is not None:
            rows[f"action_masks.{g}"] = mask
    return rows | {f"extras.{name}": values for name, values in rollout.extras.items()}


def rollout_of(spec: EnvironmentSpec, rows: Rows) -> Rollout:
    """A rollout that an update can read, without what follows its last step; nothing is copied."""
    steps, batch_size = rows["terminated"].shape
    rollout = Rollout(spec, steps, 0, rows["states"].device)
    rollout.batch_size = batch_size
    groups = range(len(spec.groups))
    rollout.observations = [rows[f"observations.{g}"] for g in groups]
    rollout.actions = [rows[f"actions.{g}"] for g in groups]
    rollout.action_masks = [rows.get(f"action_masks.{g}") for g in groups]
    rollout.states, rollout.team_rewards = rows["states"], rows["team_rewards"]
    rollout.terminated, rollout.truncated, rollout.active = rows["terminated"], rows["truncated"], rows["active"]
    rollout.all_active = bool(rows["active"].all())
    prefix = "extras."
    rollout.extras = {name.removeprefix(prefix): rows[name] for name in rows if name.startswith(prefix)}
    return rollout


class PastRollouts:
    """The last rollouts, each with the log-likelihood [T, B] of what was done in it under those who did it.

    Args:
        spec: the environment.
        capacity: n, rollouts that are kept.
    """

    def __init__(self, spec: EnvironmentSpec, capacity: int) -> None:
        self.spec, self.capacity = spec, capacity
        self.kept: list[Rows] = []  # oldest first

    def beside(self, rollout: Rollout) -> Joined:
        """The rollout with the kept ones beside it."""
        fresh = rows_of(rollout)
        joined = {name: torch.cat([values, *(rows[name] for rows in self.kept)], 1) for name, values in fresh.items()}
        return Joined(rollout_of(self.spec, joined), joined["next_states"])

    def weights(self, log_likelihood: Tensor, limit: float) -> Tensor:
        """[T, B(n + 1)] ρ of the joined rollouts, given their log-likelihood under the present policies."""
        fresh = log_likelihood.shape[1] - sum(rows["terminated"].shape[1] for rows in self.kept)
        behaviour = torch.cat([log_likelihood[:, :fresh], *(rows["log_likelihood"] for rows in self.kept)], 1)
        return (log_likelihood - behaviour).exp().clamp(max=limit)

    def add(self, rollout: Rollout, log_likelihood: Tensor) -> None:
        """Keep a copy, unless something in it is NaN or infinite; the oldest makes room."""
        rows = {**rows_of(rollout), "log_likelihood": log_likelihood}
        if all_finite(rows):
            self.kept = [*self.kept, {name: values.clone() for name, values in rows.items()}][-self.capacity :]

    def state_dict(self) -> dict[str, Tensor]:
        """Every kept tensor."""
        return {
            f"{number}.{name.replace('.', '/')}": values
            for number, rows in enumerate(self.kept)
            for name, values in rows.items()
        }

    def load_state_dict(self, state: dict[str, Rows]) -> None:
        """Restore what ``state_dict`` returned."""
        self.kept = [
            {name.replace("/", "."): values.clone() for name, values in state[number].items()}
            for number in sorted(state, key=int)
        ]


@torch.no_grad()
def v_trace_estimate(
    joined: Joined, weight: Tensor, critic: Critic, normaliser: RunningNormaliser, discounting: Discounting
) -> Estimate:
    """Values, V-trace advantages and targets of all samples by the present critic.

    Args:
        joined: the rollouts.
        weight: [T, B(n + 1)] ρ; 1 in the fresh rollout.
        critic: V(s).
        normaliser: of the states.
        discounting: γ and λ.
    """
    rollout, trace = joined.rollout, weight.clamp(max=1.0)
    states = normaliser(rollout.states)
    values = critic.values(states)
    next_values = critic.values(normaliser(joined.next_states)).masked_fill(rollout.terminated, 0.0)
    advantages = generalised_advantages(
        rollout.team_rewards,
        values,
        next_values,
        rollout.ended,
        discounting.gamma,
        discounting.gae_lambda,
        correction=trace,
    )
    return Estimate(states.flatten(0, 1), values, next_values, advantages, values + trace * advantages)
