"""HCPO's Theorem 1, watched: the lower bound on a step's improvement beside the improvement that came of it.

    J(π̄) − J(π) ≥ E_{s∼ρ}[ E_{M∼w̄} A(M|s) + E_{M∼w̄, a∼π̄} A(a|s,M) ]
                  − C · max_s KL(w ‖ w̄) − C · max_s Σ_j w(M^j|s) KL(π(·|s,M^j) ‖ π̄(·|s,M^j))
    C = 4γ · max|A| / (1 − γ)²

What the theorem takes over all states is taken here over the visited ones. It motivates the trust regions and is
vacuous in practice: at γ = 0.99 C is 39,600 · max|A|.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.trainer.learning.performance import Performance
from hmarl.trainer.sequential.turns import Move


@dataclass(frozen=True)
class ImprovementBound:
    """The terms of Theorem 1 (HCPO Eq. 15) for one step of conductor and agents; all but the KLs in units of J.

    Attributes:
        conductor_surrogate: E_{s∼ρ, M∼w̄} A(M|s).
        agents_surrogate: E_{s∼ρ, M∼w̄, a∼π̄} A(a|s,M).
        conductor_kl_max: max_s KL(w ‖ w̄), nats.
        agents_kl_max: max of the joint policy's KL given the instruction, nats.
        advantage_max: max|A|.
        gamma: γ < 1.
    """

    conductor_surrogate: float
    agents_surrogate: float
    conductor_kl_max: float
    agents_kl_max: float
    advantage_max: float
    gamma: float

    @property
    def constant(self) -> float:
        """C."""
        return 4.0 * self.gamma * self.advantage_max / (1.0 - self.gamma) ** 2

    @property
    def surrogate(self) -> float:
        """L(π̄) − J(π), what the step promises to first order (Eq. 14)."""
        return self.conductor_surrogate + self.agents_surrogate

    @property
    def penalty(self) -> float:
        """What the theorem subtracts for the distance moved."""
        return self.constant * (self.conductor_kl_max + self.agents_kl_max)

    @property
    def value(self) -> float:
        """The lower bound on J(π̄) − J(π)."""
        return self.surrogate - self.penalty

    def metrics(self) -> dict[str, float]:
        """As a run logs them."""
        return {
            "bound": self.value,
            "bound_surrogate": self.surrogate,
            "bound_surrogate_conductor": self.conductor_surrogate,
            "bound_surrogate_agents": self.agents_surrogate,
            "bound_penalty": self.penalty,
            "bound_constant": self.constant,
            "bound_advantage_max": self.advantage_max,
            "bound_kl_conductor_max": self.conductor_kl_max,
            "bound_kl_agents_max": self.agents_kl_max,
        }


class WatchedStep:
    """One step of conductor and agents while it is taken: ``conductor_moved``, ``agent_moved`` …, then ``metrics``.

    Every quantity is a mean over the visited states, times 1/(1 − γ), the mass of ρ: visited states weigh the same
    instead of by γ^t.

    Args:
        gamma: the discount; at 1 there is no bound, and nothing is reported.
        advantages: [M] joint advantage Â(s, a), not normalised, of the update's samples.
        weight: [M] importance weights of samples that older policies collected, or None.
        known: what is reported beside the bound.
    """

    def __init__(self, gamma: float, advantages: Tensor, weight: Tensor | None, known: dict[str, float]) -> None:
        self._gamma, self._known = gamma, known
        self._advantages = advantages
        self._weight = torch.ones_like(advantages) if weight is None else weight
        self._conductor_ratio = torch.ones_like(advantages)
        self._conductor_kl_max = 0.0
        self._joint_ratio = torch.ones_like(advantages)
        self._kl = torch.zeros_like(advantages)

    def conductor_moved(self, ratio: Tensor, kl: Tensor) -> None:
        """The conductor's step: w̄/w [M] of the instructions in force, and KL(w ‖ w̄) [any] where it decided."""
        self._conductor_ratio, self._conductor_kl_max = ratio, float(kl.max()) if len(kl) else 0.0

    def agent_moved(self, move: Move) -> None:
        """One agent's step, from the policy that collected to that after the last turn."""
        if self._gamma >= 1.0:
            return
        samples = move.collected
        self._joint_ratio = self._joint_ratio * samples.ratio_where_active(move.policy)
        kl = samples.old.kl(move.policy)
        self._kl = self._kl + (kl if samples.active is None else kl * samples.active)

    def metrics(self) -> dict[str, float]:
        """What the step promises, and what the one before it brought."""
        return {} if self._gamma >= 1.0 else self._known | self.bound().metrics()

    def bound(self) -> ImprovementBound:
        """Theorem 1 for the step just taken.

        Under the old policies E[A] = 0; the critic's estimate is centred accordingly. The sum over instructions is at
        most its largest term, so the largest KL of the visited pairs (s, M) stands for the largest sum.
        """
        mass = 1.0 / (1.0 - self._gamma)
        total = self._weight.sum().clamp(min=1e-12)
        centred = self._advantages - (self._weight * self._advantages).sum() / total
        of_conductor = self._weight * self._conductor_ratio * centred
        conductor = mass * float(of_conductor.sum() / total)
        joint = mass * float((of_conductor * self._joint_ratio).sum() / total)
        return ImprovementBound(
            conductor,
            joint - conductor,
            self._conductor_kl_max,
            float(self._kl.max()),
            float(self._advantages.abs().max()),
            self._gamma,
        )


class BoundMonitor:
    """Compares what each step promised with what came of it (``Performance``), in one unit.

    Args:
        gamma: the discount; at 1 there is no bound, and nothing is reported.
        device: of the rollouts.
    """

    def __init__(self, gamma: float, device: torch.device) -> None:
        self.gamma = gamma
        self._performance = Performance(gamma, device)

    def begin(self, team_rewards: Tensor, advantages: Tensor, weight: Tensor | None = None) -> WatchedStep:
        """A rollout has been collected: the step that is taken on it, to be watched.

        Args:
            team_rewards: [T, B] of the policy in force.
            advantages: [M] joint advantage Â(s, a), not normalised, of the update's samples.
            weight: [M] importance weights, see ``WatchedStep``.
        """
        return WatchedStep(self.gamma, advantages, weight, self._performance.of(team_rewards))

    def state_dict(self) -> dict[str, Tensor]:
        """What the next update compares itself with."""
        return self._performance.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self._performance.load_state_dict(state)
