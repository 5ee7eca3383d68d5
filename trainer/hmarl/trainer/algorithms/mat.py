"""MAT: one sequence model acts for the whole team and climbs the clipped surrogate.

It needs all agents' observations to act, and so cannot be deployed as separate agents, unless local students are
distilled from it at export. It is the guider of MAGPO and the teacher of CTDS, and a reference for what a team could
earn if it acted as one.

Source: Wen et al. 2022, "Multi-Agent Reinforcement Learning is a Sequence Modeling Problem", Eqs. 4 and 5.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NoReturn

from pydantic import Field
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.trainer.guiders.guided_team import GuidedTeam
from hmarl.trainer.guiders.settings import GuidedSettings
from hmarl.trainer.guiders.team_batch import TeamBatch
from hmarl.trainer.networks.policies import GroupPolicy
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.sequential.gradient_steps import clipped_surrogate


class MatSettings(GuidedSettings):
    """Settings of MAT."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"hidden_sizes", "recurrent", "memory_size", "chunk_length"})

    guider: Literal["mat"] = Field("mat", description="attention over the agents")


class Mat(GuidedTeam):
    """Centralised execution: one attention network for the team; cannot be exported as separate agents."""

    settings_class: ClassVar[type[AlgorithmSettings]] = MatSettings
    exportable: ClassVar[bool] = False
    settings: GuidedSettings

    def create_policies(self) -> list[GroupPolicy]:
        """No agent has a policy of its own."""
        return []

    def learn(self, part: TeamBatch, order: Tensor, old_log_prob: Tensor, schedule: float) -> dict[str, Tensor]:
        """−E[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) ], r = μ_φ/μ_old of every agent's action (Eq. 5)."""
        judged = self.judge(part, order, self.guider_optimiser.parameter)
        log_ratio = part.log_prob(judged.distributions) - old_log_prob
        objective = clipped_surrogate(log_ratio.exp(), part.normalised_advantages(), self.settings.clip)
        metrics = self.guider_step(part, judged, objective, None, schedule)
        return metrics | {"agent_kl": part.moved(log_ratio)}

    @classmethod
    def check_exportable(cls, settings: AlgorithmSettings) -> NoReturn:
        """Always refused."""
        assert isinstance(settings, GuidedSettings)
        raise UsageError(
            f"{cls.__name__.lower()}: acts for the whole team at once from all agents' observations, so that there is "
            "no policy of a single agent to deploy; hmarl-export --distil distils a local student for each agent, and "
            f"magpo (or ctds) with --set algorithm.guider={settings.guider} trains one for each"
        )

    def deployable(self, agent: int) -> NoReturn:
        """Always refused."""
        self.check_exportable(self.settings)
