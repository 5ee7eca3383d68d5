"""Settings of guiders, and of the local policies that follow one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, Field, model_validator

from hmarl.sdk.errors import UsageError
from hmarl.trainer.networks.settings import NetworkSettings, OnlyWith


class GuiderFields(BaseModel):
    """Of algorithms in which a guider collects: its network, and how it learns.

    Listed before ``AlgorithmSettings`` and ``GradientStepFields``, whose defaults for gradients and epochs are not a
    guider's.
    """

    before: ClassVar[Mapping[str, Any]] = {"team_value": False}

    guider: Literal["mat", "sable", "factorised"] = Field(
        "mat",
        description="mat: attention over the agents; sable: retention over agents and time, which remembers; "
        "factorised: built as the local policies are (to compare)",
    )
    embedding_size: int = Field(64, ge=1, description="E, width of the guider (factorised: of its value's network)")
    blocks: Annotated[int, OnlyWith("guider", "mat", "sable")] = Field(
        1, ge=1, description="blocks of its encoder, and as many of its decoder"
    )
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
    reshuffle: Annotated[bool, OnlyWith("shuffle_agents", True)] = Field(
        True,
        description="a new order in every epoch; False: all epochs keep the order in which the agents acted, in which "
        "the actions' probabilities are known already (faster)",
    )
    epochs: int = Field(10, ge=1, description="passes over the rollout per update")
    guider_epochs: int | None = Field(
        None,
        ge=1,
        description="passes in which the guider learns as well, the first of epochs; in the others the local policies "
        "follow it as it is then, which costs far less. By default it learns in all",
    )
    minibatches: int = Field(4, ge=1, description="parts into which a pass is divided")
    clip: float = Field(
        0.2, gt=0, lt=1, description="ε: ratios are clipped to 1 ± ε, values (normalised) to the old ones ± ε"
    )
    value_clip: bool = Field(True, description="clip V about what it was; False: its plain squared error is descended")
    initial_gains: Annotated[Literal["unit", "small"], OnlyWith("guider", "mat", "sable")] = Field(
        "unit",
        description="of mat's and sable's weights. unit: all 1, but 0.01 for the policy's outputs; small, as their "
        "authors': 0.01 for all that attention, perceptrons and V put out, √2 before, and a norm before V",
    )
    value_encoder: Annotated[Literal["shared", "own"], OnlyWith("guider", "mat", "sable")] = Field(
        "shared",
        description="of mat's and sable's V. shared: the one that the policy decides by, as in the papers; own: "
        "one of its own, as large, so that neither loss bends what the other one sees (factorised: always)",
    )
    team_value: Annotated[bool, OnlyWith("credit", "own"), OnlyWith("guider", "mat", "sable")] = Field(
        True,
        description="of mat's and sable's Vⁱ: what all tokens say of the team on average, and what "
        "the agent's own adds; False: what its own token says alone, as in the papers (factorised: always)",
    )
    value_coefficient: float = Field(0.5, gt=0, description="c_v, weight of the value loss")
    cuda_graphs: bool = Field(
        False,
        description="on a GPU, the steps of an update are recorded once as a CUDA graph, which the GPU then repeats by "
        "itself: the same operations, without what the host spends on starting each; no effect on the CPU, and "
        "little use with delta=auto, which has them recorded anew whenever δ moves",
    )
    max_gradient_norm: float = Field(
        0.5, gt=0, description="gradients are scaled down to this norm; guiders have diverged with 10"
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.embedding_size % self.attention_heads:
            raise UsageError(
                f"algorithm.attention_heads: got {self.attention_heads}, expected a divisor of "
                f"algorithm.embedding_size ({self.embedding_size})"
            )
        return self

    @model_validator(mode="after")
    def _guider_learns_in_some_of_the_epochs(self) -> Self:
        if self.guider_epochs is not None and self.guider_epochs > self.epochs:
            raise UsageError(
                f"algorithm.guider_epochs: got {self.guider_epochs}, expected at most algorithm.epochs ({self.epochs})"
            )
        return self


class FollowerFields(BaseModel):
    """Of algorithms in which local policies follow the guider: how far the two may part."""

    delta: Annotated[float, Field(gt=1)] | Literal["auto"] = Field(
        1.5,
        description="δ, how far guider and local policies may part: ratios μ/π within (1/δ, δ); auto (an "
        "extension): from 1.5 on, as imitation_gap says",
    )
    imitation_gap: Annotated[float, OnlyWith("delta", "auto")] = Field(
        0.02, gt=0, description="mean KL(μ ‖ π) per agent, in nats, around which δ shrinks or grows"
    )
    reinforcement_weight: float = Field(
        1.0, ge=0, description="λ, weight of the local policies' own surrogate; 0: they only imitate"
    )
    double_clip: bool = Field(
        True,
        description="the guider's surrogate has no gradient away from the local policies beyond δ; False: its ratio is "
        "clipped once, to 1 ± ε (ablation)",
    )
    backtracking: bool = Field(
        True,
        description="where actions lie outside (1/δ, δ) the KL draws the guider to the local policies, or (factorised) "
        "it becomes what they are after every update; False: neither (ablation)",
    )
    learner_learning_rate: float | None = Field(
        None, gt=0, description="Adam's step size for the local policies; by default learning_rate, the guider's"
    )


class GuiderSettings(NetworkSettings, Protocol):
    """The settings that a guider reads."""

    embedding_size: int
    blocks: int
    attention_heads: int
    guider_sees_state: bool
    shuffle_agents: bool
    reshuffle: bool
    share_parameters: bool
    recurrent: bool
    gamma: float
    gae_lambda: float
    learning_rate: float
    max_gradient_norm: float
    normalise_values: bool
    epochs: int
    minibatches: int
    clip: float
    value_clip: bool
    entropy_coefficient: float
    value_coefficient: float

    @property
    def credit(self) -> Literal["team", "own"]:
        """Whether V is one, or every agent's own."""
        ...

    @property
    def initial_gains(self) -> Literal["unit", "small"]:
        """How the guider's weights are drawn."""
        ...

    @property
    def team_value(self) -> bool:
        """Whether own values have a part that is the team's."""
        ...

    @property
    def value_encoder(self) -> Literal["shared", "own"]:
        """Whether V shares the encoder of the policy, or has one of its own."""
        ...

    @property
    def guider(self) -> str:
        """Its name among ``GUIDERS``."""
        ...
