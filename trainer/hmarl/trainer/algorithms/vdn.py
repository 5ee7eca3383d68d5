"""VDN: the team's value is the sum of the agents' utilities.

Off-policy, for discrete actions. An iteration:

    1   collect: every agent takes the best legal action of its utility Qⁱ(oⁱ, ·), or with probability ε a random one
    2   store the rollout's fragments of episodes in the replay buffer
    3   several times, on fragments drawn from the buffer: descend E[ (Q_tot(s, a) − y)² ] with
            Q_tot = Σᵢ Qⁱ(oⁱ, aⁱ)
            y_t   = r_t + γ·((1 − λ)·V(s_{t+1}) + λ·y_{t+1}),  V = Q_tot⁻ of the utilities' best actions
        and let the target networks follow

The state is not used: whatever a utility depends on, its agent sees.

Source: Sunehag et al. 2018, "Value-Decomposition Networks For Cooperative Multi-Agent Learning".
Differs: target networks and double Q-learning, as in QMIX's authors' code; no messages between the agents' networks;
rewards are scaled; see docs/algorithms/vdn.md.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.advice import given
from hmarl.trainer.learning.metrics import mean_metrics
from hmarl.trainer.learning.reward_scale import runaway_advice
from hmarl.trainer.mixing.acting import EpsilonGreedyActing
from hmarl.trainer.mixing.mixer import SumMixer
from hmarl.trainer.mixing.plots import VALUE_PLOTS
from hmarl.trainer.mixing.replayed import ReplayedFragments
from hmarl.trainer.mixing.settings import UtilityFields
from hmarl.trainer.mixing.team_value import TeamValue
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.records.plots import Plot


class VdnSettings(UtilityFields, AlgorithmSettings):
    """Settings of VDN."""


class Vdn(Algorithm):
    """The team's value as the sum of the agents' utilities, learnt off-policy."""

    settings_class: ClassVar[type[AlgorithmSettings]] = VdnSettings
    discrete_only: ClassVar[bool] = True
    greedy: ClassVar[bool] = True
    live_metrics: ClassVar[tuple[str, ...]] = ("td_loss", "epsilon")
    plots: ClassVar[tuple[Plot, ...]] = VALUE_PLOTS
    settings: VdnSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: VdnSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.value = TeamValue(self.actors, self.state_normaliser, SumMixer(), settings, generator)
        self.fragments = ReplayedFragments(settings, self.noise_generator)
        self.acting = EpsilonGreedyActing(self.local_acting, self.fragments.exploration, self.noise_generator)

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Store the rollout, and learn from replayed fragments."""
        schedule = self.schedule(progress)
        # 2: the rollout's fragments of episodes go to the replay buffer
        self.fragments.store(rollout)
        self.update_normalisers(rollout)
        self.value.scale.update(rollout)
        # 3: θ ← descent on E[ (Q_tot(s, a) − y)² ]; θ⁻ ← (1 − τ)·θ⁻ + τ·θ
        drawn = map(self.value.prepare, self.fragments.draws())
        metrics = mean_metrics(self.value.improve(batch, schedule) for batch in drawn)
        return metrics | self.fragments.metrics()

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Values that run away."""
        return given(runaway_advice(metrics, self.settings.gamma, self.settings.normalise_values))

    def components(self) -> StateDict:
        """The shared parts, target networks, optimisers and counters."""
        return super().components() | self.value.components() | self.fragments.components()

    def experience(self) -> StateDict:
        """The replay buffer."""
        return self.fragments.experience()
