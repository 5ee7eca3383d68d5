"""Settings of all algorithms in which a guider collects."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hmarl.sdk.errors import UsageError
from hmarl.trainer.networks.settings import PolicyGradientSettings, StochasticGradientSettings


class GuidedSettings(PolicyGradientSettings, StochasticGradientSettings):
    """Settings of all algorithms with a guider."""

    guider: Literal["mat", "sable", "factorised"] = Field(
        "mat",
        description="mat: attention over the agents; sable: retention over agents and time, which remembers; "
        "factorised: built as the local policies are (to compare)",
    )
    embedding_size: int = Field(64, ge=1, description="E, width of the guider (factorised: of its value's network)")
    blocks: int = Field(1, ge=1, description="blocks of its encoder, and as many of its decoder")
    attention_heads: int = Field(
        1, ge=1, description="heads of each of its attention or retention layers; a divisor of E"
    )
    guider_sees_state: bool = Field(
        False, description="policy and value of the guider see the global state beside all observations (an extension)"
    )
    shuffle_agents: bool = Field(
        True,
        description="the agents decide in a random order, drawn for every rollout and every epoch; False: always in "
        "their natural one",
    )
    epochs: int = Field(10, ge=1, description="passes over the rollout per update")
    minibatches: int = Field(4, ge=1, description="parts into which a pass is divided")
    clip: float = Field(
        0.2, gt=0, lt=1, description="ε: ratios are clipped to 1 ± ε, values (normalised) to the old ones ± ε"
    )
    value_coefficient: float = Field(0.5, gt=0, description="c_v, weight of the value loss")
    max_gradient_norm: float = Field(
        0.5, gt=0, description="gradients are scaled down to this norm; guiders have diverged with 10"
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> GuidedSettings:
        if self.embedding_size % self.attention_heads:
            raise UsageError(
                f"algorithm.attention_heads: got {self.attention_heads}, expected a divisor of "
                f"algorithm.embedding_size ({self.embedding_size})"
            )
        return self
