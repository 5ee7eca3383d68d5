"""Settings: each one's default, meaning and limits, once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.trainer.networks.activation import Activation, EncoderKind
from hmarl.trainer.networks.settings_errors import TRUTH_VALUE, explained

HiddenSizes = tuple[Annotated[int, Field(ge=1)], ...]


STRICT = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
"""Unknown keys are refused, values are checked and never change afterwards."""


class OnlyWith:
    """In the annotation of a setting: it changes nothing unless another one has one of these values.

        memory_size: Annotated[int, OnlyWith("recurrent", True)] = Field(...)

    Args:
        setting: the other one's name; an algorithm that has no such setting always satisfies it.
        values: of the other one.
    """

    def __init__(self, setting: str, *values: bool | int | str) -> None:
        self.setting = setting
        self.values = values

    def __str__(self) -> str:
        return f"{self.setting}={' or '.join(map(_shown, self.values))}"


def _shown(value: object) -> str:
    """A value as it is given on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _truth_is_no_number(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Pydantic would take ``true`` for 1."""
    kind = cls.model_fields[str(info.field_name)].annotation
    if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
        raise PydanticCustomError(TRUTH_VALUE, "Input should be neither true nor false")
    return value


class Settings(BaseModel):
    """Base of all settings that stand by themselves; those of an algorithm are composed, see ``AlgorithmSettings``.

    Attributes:
        retired: names of settings that there were once, without which everything is as it was with them. They are in
            the config.json of old runs and in commands written down long ago, and are passed over.
        without_effect: names of those that there is no use for; other values than the default are refused.
    """

    before: ClassVar[Mapping[str, Any]] = {}
    retired: ClassVar[frozenset[str]] = frozenset()
    without_effect: ClassVar[frozenset[str]] = frozenset()

    model_config = STRICT
    _check_truth = field_validator("*", mode="before")(_truth_is_no_number)


class AlgorithmSettings(BaseModel):
    """What all algorithms share (``--set algorithm.KEY=VALUE``).

    An algorithm's settings are this and the groups of fields (``…Fields``) of the parts that it composes, side by side:

        class HappoSettings(CriticFields, PolicyGradientFields, AlgorithmSettings, GradientStepFields)

    They state the defaults in which the algorithm differs by naming the field again, and derive from no other
    algorithm's, so that a default changed in one changes no other. Fields are listed from the last base to the first.

    Attributes:
        before: what runs did before there was a setting for it, by name: an old run's config.json does not name it,
            and the run goes on as it began.
        retired: as of ``Settings``.
        without_effect: names of those that an algorithm has no use for; other values than the default are refused.
    """

    before: ClassVar[Mapping[str, Any]] = {}
    retired: ClassVar[frozenset[str]] = frozenset()
    without_effect: ClassVar[frozenset[str]] = frozenset()

    model_config = STRICT
    _check_truth = field_validator("*", mode="before")(_truth_is_no_number)

    gamma: float = Field(0.99, ge=0, le=1, description="discount per step")
    hidden_sizes: HiddenSizes = Field((64, 64), description="hidden layers of the policies")
    activation: Activation = Field("relu", description="activation of all networks")
    normalise_layers: bool = Field(False, description="layer normalisation of inputs and hidden layers")
    image_encoder: EncoderKind = Field(
        "auto",
        description="first layers of networks that see pictures: nature (three convolutions), impala (residual "
        "blocks), small (two convolutions of 3 by 3); auto: nature where pictures have 36 by 36 pixels, else small",
    )
    image_downsample: int = Field(
        1, ge=1, description="k: of pictures every k-th pixel of each row and column is looked at"
    )
    share_parameters: bool = Field(
        False, description="agents of a group share one network, told apart by a one-hot input"
    )
    agent_identity: bool = Field(
        True,
        description="shared networks see a one-hot of the agent; without it one graph serves teams of any size",
    )
    recurrent: bool = Field(False, description="policies remember: a gated recurrent unit after the hidden layers")
    memory_size: Annotated[int, OnlyWith("recurrent", True)] = Field(
        64, ge=1, description="width of the recurrent state"
    )
    chunk_length: int | None = Field(
        None,
        ge=1,
        description="steps through which gradients flow back; run.rollout_length (the default) or a divisor",
    )
    max_gradient_norm: float = Field(10.0, gt=0, description="gradients are scaled down to this norm")
    learning_rate_decay: Literal["none", "linear"] = Field("none", description="schedule of all Adam step sizes to 0")
    normalise_observations: bool = Field(True, description="running mean and variance of every agent's observations")
    normalise_values: bool = Field(True, description="running mean and variance of the value targets")
    deterministic_evaluation: bool = Field(True, description="evaluate and deploy argmax or mean instead of samples")

    @model_validator(mode="after")
    def _identity_of_those_who_share(self) -> Self:
        """Only agents who share a network can do without being told apart."""
        if self.interchangeable and not self.share_parameters:
            raise UsageError(
                "algorithm.agent_identity: got False, expected True with share_parameters=False "
                "(networks of their own tell agents apart; set algorithm.share_parameters=true as well)"
            )
        return self

    @model_validator(mode="after")
    def _what_has_an_effect(self) -> Self:
        """A setting that would change nothing is refused."""
        for name in sorted(self.without_effect):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise UsageError(
                    f"algorithm.{name}: got {value!r}, which has no effect in this algorithm; leave it out"
                )
        return self

    def check_rollouts(self, length: int, environments: int) -> None:
        """Refuse settings that do not go with rollouts of ``length`` steps in so many environments.

        Raises:
            UsageError: some do not.
        """
        if self.chunk_length is not None and length % self.chunk_length:
            raise UsageError(
                f"algorithm.chunk_length: got {self.chunk_length}, expected a divisor of run.rollout_length ({length})"
            )

    @property
    def interchangeable(self) -> bool:
        """Whether the agents of a group are one policy, which does not know which of them it acts for."""
        return not self.agent_identity


class NetworkSettings(Protocol):
    """The settings that networks are built from."""

    hidden_sizes: HiddenSizes
    activation: Activation
    normalise_layers: bool
    image_encoder: EncoderKind
    image_downsample: int
    agent_identity: bool
    memory_size: int


class PolicyGradientFields(BaseModel):
    """Of algorithms with stochastic policies and advantages."""

    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of the advantage estimate")
    squash: Literal["clip", "tanh"] = Field("clip", description="how continuous actions are kept in bounds")
    initial_std: float = Field(0.6, gt=0, description="first standard deviation, in half action ranges")


class SquashedGaussianFields(BaseModel):
    """Of algorithms with squashed Gaussians for continuous actions, whose deviations follow from what is seen."""

    initial_std: float = Field(1.0, gt=0, description="first standard deviation of continuous actions, not squashed")


class CreditFields(BaseModel):
    """Of algorithms in which agents may learn from the team's reward, or each from its own."""

    credit: Literal["team", "own"] = Field(
        "team",
        description="team: one V, and each agent learns from the team's reward; own: each learns from its own reward, "
        "with a V of its own (where the environment shares one reward, they are alike)",
    )


class CriticFields(BaseModel):
    """Of algorithms with a critic of its own."""

    critic_hidden_sizes: HiddenSizes = Field((128, 128), description="hidden layers of the centralised critic")
    critic_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for the critic")
    critic_epochs: int = Field(5, ge=1, description="passes over the rollout per critic update")
    critic_minibatches: int = Field(4, ge=1, description="parts into which a pass is divided")
    critic_loss: Literal["mse", "huber"] = Field("huber", description="loss on normalised value targets")
    huber_delta: float = Field(10.0, gt=0, description="where the Huber loss turns linear")


class GradientStepFields(BaseModel):
    """Of algorithms that climb a surrogate by minibatch Adam."""

    learning_rate: float = Field(5e-4, gt=0, description="Adam's step size for the policies")
    epochs: int = Field(5, ge=1, description="passes over the rollout per update of a policy")
    minibatches: int = Field(1, ge=1, description="parts into which a pass is divided")
    entropy_coefficient: float = Field(0.01, ge=0, description="weight of the entropy bonus")


def conditions(model: type[Settings | AlgorithmSettings], name: str) -> list[OnlyWith]:
    """What else has to be set for a setting to change anything; one whose other setting there is not is left out."""
    stated = [each for each in model.model_fields[name].metadata if isinstance(each, OnlyWith)]
    return [each for each in stated if each.setting in model.model_fields]


def idle(settings: AlgorithmSettings, given: Iterable[str]) -> list[str]:
    """Of the settings that a user gave by name, a line for each that changes nothing, as the others are."""
    return [
        f"algorithm.{name}: got {_shown(getattr(settings, name))}, which has no effect with {each.setting}="
        f"{_shown(getattr(settings, each.setting))}, only with {each}"
        for name in given
        if name in type(settings).model_fields
        for each in conditions(type(settings), name)
        if getattr(settings, each.setting) not in each.values
    ]


S = TypeVar("S", bound=Settings | AlgorithmSettings)


def without_retired(model: type[S], values: dict[str, Any]) -> dict[str, Any]:
    """The values but for those of ``retired`` settings."""
    return {key: value for key, value in values.items() if key not in model.retired}


def validate(model: type[S], values: dict[str, Any], prefix: str, algorithm: str = "ALGORITHM") -> S:
    """Check settings, with errors that name the key, what was got and what was expected.

    Args:
        model: the settings' class.
        values: keys and values; missing ones take their defaults.
        prefix: how the user names this group, e.g. ``"algorithm"``.
        algorithm: whose settings ``hmarl-algorithms`` is said to list.

    Raises:
        UsageError: unknown key (with a suggestion) or a value out of range.
    """
    values = without_retired(model, values)
    for key in values:
        if key not in model.model_fields:
            names = [f"{prefix}.{name}" for name in model.model_fields if name not in model.without_effect]
            listed_by = f"hmarl-algorithms {algorithm}"
            raise UsageError(unknown_name("setting", f"{prefix}.{key}", names, listed_by))
    try:
        return model(**values)
    except ValidationError as error:
        raise UsageError(f"{prefix}.{explained(error, values)}") from error
