"""Settings of a distillation (``hmarl-export --distil --set distillation.KEY=VALUE``)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.networks.settings import HiddenSizes, Settings

# Steps of a round, at least, where neither the settings nor the environment say how long an episode is.
_UNKNOWN_HORIZON = 128


class DistillationSettings(Settings):
    """How students are distilled, and what they are."""

    environments: int = Field(64, ge=1, description="B, environments stepped together")
    steps: int | None = Field(
        None,
        ge=1,
        description="steps per environment and round, rounded up to whole chunks; null: one episode (its declared "
        f"horizon), without one {_UNKNOWN_HORIZON}, or the guessed horizon if that is longer",
    )
    rounds: int = Field(40, ge=1, description="rounds at most: the team acts, the teacher labels, the students learn")
    kept_rounds: int = Field(10, ge=1, description="newest rounds whose data the students learn from")
    epochs: int = Field(10, ge=1, description="passes over the kept data per round")
    minibatches: int = Field(4, ge=1, description="parts into which a pass is divided")
    chunk_length: int = Field(32, ge=1, description="steps through which gradients flow back")
    learning_rate: float = Field(3e-3, gt=0, description="Adam's step size")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    goal_weight: float = Field(1.0, ge=0, description="weight of the loss on goals beside the one on actions")
    hidden_sizes: HiddenSizes = Field((64,), description="hidden layers before the memory")
    memory_size: int = Field(64, ge=1, description="width of the recurrent state")
    decision_sizes: HiddenSizes = Field((64,), description="hidden layers from memory and predicted goal to the action")
    share_parameters: bool | None = Field(
        None, description="students of a group share one network, told apart by a one-hot input; null: as the run says"
    )
    told: Literal["nothing", "team", "state"] = Field(
        "nothing",
        description="team, state: students also see what all their team mates observe, or the global state, which "
        "tells whether that is what local ones lack; kept in RUN/students-told-*, reported on and not exported",
    )
    patience: int = Field(10, ge=1, description="rounds without a better return after which the distillation ends")
    tolerance: float = Field(
        0.005, ge=0, description="what counts as better: more than this share of the teacher's return"
    )
    evaluation_episodes: int = Field(100, ge=1, description="episodes of one evaluation, the same seeds every round")
    seed: int = Field(0, ge=0, lt=2**31, description="seeds the students' first weights, action noise and environments")

    def check_deployable(self) -> None:
        """Refuse to deploy students that see more than their agents do.

        Raises:
            UsageError: they do.
        """
        if self.told != "nothing":
            raise UsageError(
                f"distillation.told: got {self.told}, expected nothing for students that are deployed (at execution "
                "nothing tells an agent what it does not observe)"
            )

    @property
    def folder(self) -> str:
        """Where the distillation is kept in the run directory."""
        return "students" if self.told == "nothing" else f"students-told-{self.told}"

    def chunks(self, spec: EnvironmentSpec) -> tuple[int, int]:
        """How a round lies in time: the number of chunks and the steps of each."""
        steps = self.steps or spec.declared_horizon or max(spec.horizon or 0, _UNKNOWN_HORIZON)
        length = min(self.chunk_length, steps)
        return math.ceil(steps / length), length
