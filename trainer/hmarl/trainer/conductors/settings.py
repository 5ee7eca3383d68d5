"""Settings of a conductor, and what its level and the local conductors read of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, Field, model_validator

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentGroup
from hmarl.trainer.learning.instructions import discrete_instructions, latent_instructions
from hmarl.trainer.networks.distributions import ActionHead
from hmarl.trainer.networks.settings import HiddenSizes, NetworkSettings, OnlyWith
from hmarl.trainer.sequential.constrained_steps import StepSearch


class ConductorFields(BaseModel):
    """Of algorithms with a conductor above their agents; its step is searched for as ``TrustRegionFields`` say."""

    instruction_space: Literal["discrete", "continuous"] = Field(
        "discrete", description="one of K instructions, or (an extension) a vector of D real numbers"
    )
    instructions: Annotated[int, OnlyWith("instruction_space", "discrete")] = Field(
        10, ge=1, description="K, the number of discrete instructions"
    )
    instruction_size: Annotated[int, OnlyWith("instruction_space", "continuous")] = Field(
        4, ge=1, description="D, the width of a continuous instruction"
    )
    instruction_scale: float = Field(
        1.0, gt=0, description="factor on instructions where they are seen: a louder one tells policies apart sooner"
    )
    instruction_roles: Annotated[bool, OnlyWith("share_parameters", True)] = Field(
        False,
        description="an instruction hands out roles: agent i of a group sees (M + i) mod K, and no identity",
    )
    instruction_interval: int = Field(1, ge=1, description="steps for which an instruction holds")
    conductor_sees: Literal["state", "common", "nothing"] = Field(
        "state",
        description="state, with local conductors when deployed; common: what all agents observe alike, the step and "
        "its own last instruction, with copies when deployed; nothing: the same without observations",
    )
    conductor_remembers: Annotated[bool, OnlyWith("conductor_sees", "common", "nothing")] = Field(
        True, description="a conductor that does not see the state sees its own last instruction"
    )
    common_search: Annotated[int, OnlyWith("conductor_sees", "common")] = Field(
        5, ge=1, description="rollouts in which what all agents observe alike is found, where it is not declared"
    )
    conductor_learns: bool = Field(
        True, description="false: a conductor whose instructions stay uniformly random, to compare with"
    )
    conductor_kl_limit: Annotated[float, OnlyWith("conductor_learns", True)] = Field(
        0.01, gt=0, description="δ₁, largest mean KL of the conductor's step, in nats"
    )
    conductor_hidden_sizes: HiddenSizes = Field((64, 64), description="hidden layers of all conductors")
    conductor_entropy_coefficient: Annotated[float, OnlyWith("conductor_learns", True)] = Field(
        0.0, ge=0, description="weight of the instructions' entropy"
    )
    instruction_weight: Literal["ratio", "paper"] = Field(
        "ratio", description="ratio: samples weighted by w_new/w_old, unweighted KL; paper: Algorithm 3 as printed"
    )
    distillation_learning_rate: Annotated[float, OnlyWith("conductor_sees", "state")] = Field(
        1e-3, gt=0, description="Adam's step size for the local conductors"
    )
    distillation_epochs: Annotated[int, OnlyWith("conductor_sees", "state")] = Field(
        1, ge=1, description="passes over the rollout per distillation; at most, with distillation_patience"
    )
    distillation_patience: int = Field(
        0, ge=0, description="passes without improvement on held-out steps that end a distillation; 0: none does"
    )
    share_local_conductors: bool | None = Field(
        None, description="local conductors of a group share one network; as share_parameters where it is not given"
    )
    local_conductors_remember: bool = Field(False, description="every local conductor sees its own last instruction")
    distillation_minibatches: Annotated[int, OnlyWith("conductor_sees", "state")] = Field(
        4, ge=1, description="parts into which a pass is divided"
    )

    @model_validator(mode="after")
    def _instructions_can_be_weighted(self) -> Self:
        """Refuse weights that vectors do not have: Algorithm 3 as printed takes probabilities, not densities."""
        if self.instruction_space == "continuous":
            self.need("instruction_space=continuous", instruction_weight="ratio")
        return self

    @model_validator(mode="after")
    def _roles_are_choices(self) -> Self:
        """Refuse roles where nothing numbers them, or where agents are not to be told apart."""
        if self.instruction_roles:
            self.need("instruction_roles=true", instruction_space="discrete", agent_identity=True)
        return self

    @model_validator(mode="after")
    def _only_choices_are_uniform(self) -> Self:
        """Refuse a conductor that does not learn where nothing is uniform."""
        if not self.conductor_learns:
            self.need("conductor_learns=false", instruction_space="discrete")
        return self

    @model_validator(mode="after")
    def _nothing_follows_a_copy(self) -> Self:
        """Refuse settings of local conductors where there are none."""
        if self.conductor_sees != "state":
            self.need(
                f"conductor_sees={self.conductor_sees}",
                distillation_patience=0,
                share_local_conductors=None,
                local_conductors_remember=False,
            )
        return self

    @model_validator(mode="after")
    def _interchangeable_to_the_last(self) -> Self:
        """Refuse local conductors of their own for agents that one graph acts for."""
        if not getattr(self, "agent_identity", True) and self.share_local_conductors is False:
            raise UsageError(
                "algorithm.share_local_conductors: got False, expected True (or nothing) with agent_identity=False: "
                "interchangeable agents are one policy, their local conductor included"
            )
        return self

    def check_roles(self, groups: Sequence[AgentGroup]) -> None:
        """Refuse fewer roles than agents who share a network: some could not be told apart.

        Raises:
            UsageError: there are.
        """
        largest = max(len(group.agents) for group in groups)
        if self.roles and self.roles < largest:
            raise UsageError(
                f"algorithm.instructions: got {self.roles}, expected at least {largest} with instruction_roles=true: "
                f"{largest} agents share a network, and what tells them apart is their roles"
            )

    @property
    def roles(self) -> int:
        """K, where instructions hand out roles to agents who share a network; else 0."""
        return self.instructions if self.instruction_roles and getattr(self, "share_parameters", False) else 0

    def need(self, by: str, **needed: object) -> None:
        """Refuse other values than those needed by a setting.

        Raises:
            UsageError: names the setting, its value, the needed one and who needs it.
        """
        for name, expected in needed.items():
            if getattr(self, name) != expected:
                raise UsageError(f"algorithm.{name}: got {getattr(self, name)!r}, expected {expected!r} with {by}")

    @property
    def instruction_head(self) -> ActionHead:
        """What instructions are; its ``output_size`` is the width of what agents see of one: K (one-hot) or D."""
        if self.instruction_space == "continuous":
            return latent_instructions(self.instruction_size)
        return discrete_instructions(self.instructions)


class ConductorSettings(NetworkSettings, StepSearch, Protocol):
    """The settings that a conductor's level reads, those of the local conductors among them."""

    instruction_scale: float
    instruction_interval: int
    conductor_hidden_sizes: HiddenSizes
    distillation_learning_rate: float
    distillation_epochs: int
    distillation_minibatches: int
    distillation_patience: int
    share_local_conductors: bool | None
    local_conductors_remember: bool
    share_parameters: bool
    max_gradient_norm: float
    conductor_remembers: bool
    common_search: int
    conductor_learns: bool
    conductor_kl_limit: float
    conductor_entropy_coefficient: float
    normalise_observations: bool
    gamma: float

    @property
    def conductor_sees(self) -> Literal["state", "common", "nothing"]:
        """What the conductor sees."""
        ...

    @property
    def instruction_weight(self) -> str:
        """How the agents' samples are weighted."""
        ...

    @property
    def instruction_head(self) -> ActionHead:
        """What instructions are."""
        ...


class LocalConductorSettings(NetworkSettings, Protocol):
    """The settings that local conductors read."""

    instruction_scale: float
    instruction_interval: int
    conductor_hidden_sizes: HiddenSizes
    distillation_learning_rate: float
    distillation_epochs: int
    distillation_minibatches: int
    distillation_patience: int
    share_local_conductors: bool | None
    local_conductors_remember: bool
    share_parameters: bool
    max_gradient_norm: float
