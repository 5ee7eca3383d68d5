"""Settings of hierarchies of message-passing policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from hmarl.sdk.errors import UsageError
from hmarl.trainer.learning.instructions import discrete_instructions, latent_instructions
from hmarl.trainer.networks.distributions import ActionHead
from hmarl.trainer.networks.settings import AlgorithmSettings, GradientStepFields, OnlyWith, PolicyGradientFields


class HierarchySettings(PolicyGradientFields, AlgorithmSettings, GradientStepFields):
    """Settings of HiMPo."""

    before: ClassVar[Mapping[str, Any]] = {"worker_reward": "window", "edge_values": False}

    without_effect: ClassVar[frozenset[str]] = frozenset({"hidden_sizes", "memory_size", "chunk_length"})

    levels: Literal[1, 2, 3] = Field(
        3,
        description="3: a manager, sub-managers and workers; 2: sub-managers and workers; 1: workers alone, a flat "
        "team (reference)",
    )
    sub_managers: int = Field(2, ge=1, description="S, sub-managers, to each of whom the workers of one place report")
    goal_interval: Annotated[int, OnlyWith("levels", 2, 3)] = Field(
        5, ge=1, description="α, steps for which a sub-manager's goals hold"
    )
    manager_interval: Annotated[int, OnlyWith("levels", 3)] = Field(
        2, ge=1, description="K, sub-managers' decisions for which a manager's goals hold"
    )
    goal_space: Literal["continuous", "discrete"] = Field(
        "continuous", description="goals are vectors of goal_size numbers, or one of goal_size"
    )
    goal_size: int = Field(4, ge=1, description="G, width of a goal, or how many there are to choose from")
    goal_entropy_coefficient: float = Field(0.0, ge=0, description="weight of the goals' entropy")
    graph: Literal["auto", "radius", "nearest", "all", "none"] = Field(
        "auto",
        description="who exchanges messages: all within radius; the nearest; all; none. auto: radius where the "
        "environment says where its agents are, else all",
    )
    radius: Annotated[float, OnlyWith("graph", "radius", "auto")] = Field(
        0.5, gt=0, description="how far messages reach, in units of the observed positions"
    )
    neighbours: Annotated[int, OnlyWith("graph", "nearest")] = Field(
        3, ge=1, description="from how many an agent hears"
    )
    message_rounds: int = Field(1, ge=0, description="L, rounds of messages before a decision; 0: no messages")
    clustering: Literal["auto", "spatial", "number"] = Field(
        "auto",
        description="to whom workers report: spatial, to the sub-manager of their place; number, as many neighbouring "
        "numbers to each, for ever. auto: spatial where the environment says where its agents are, else number",
    )
    static_graph: bool = Field(
        False, description="True: messages and reports go the ways of an episode's first step (ablation SG)"
    )
    worker_reward: Literal["window", "telescoped"] = Field(
        "telescoped",
        description="what subordinates earn while a goal holds. window: their superior's advantage, in equal parts; "
        "telescoped: at every step their superior's TD error of that step, which add up to it",
    )
    edge_values: bool = Field(
        True,
        description="superiors judge every pair of themselves and a subordinate, as Eq. 5 writes it; False: what they "
        "see, once for all their subordinates",
    )
    step_values: bool | None = Field(
        None,
        description="superiors' values are judged and learnt at every step, not only where they decide; by default "
        "with telescoped rewards, which need it",
    )
    values_see_step: bool = Field(
        False,
        description="superiors' values of every step see which step of their window it is; else they learn one for "
        "all, and telescoped rewards err by what is left of the window",
    )
    local_rewards: Annotated[bool, OnlyWith("levels", 3)] = Field(
        True, description="sub-managers under a manager also earn what their workers do; False: not (ablation NL)"
    )
    workers_see_reward: bool = Field(
        False, description="True: workers also earn the external reward directly (ablation FL)"
    )
    manager_gae_lambda: float = Field(
        0.0, ge=0, le=1, description="λ of managers' and sub-managers' advantages; gae_lambda is the workers'"
    )
    value_lambda: float = Field(0.95, ge=0, le=1, description="λ of the returns that all levels' values learn")
    embedding_size: int = Field(64, ge=1, description="E, width of all levels' networks")
    critic_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for the levels' values")
    minibatches: int = Field(4, ge=1, description="parts into which a pass is divided")
    clip: float = Field(0.2, gt=0, lt=1, description="ε, ratios are clipped to 1 ± ε")
    share_parameters: bool = Field(True, description="always: the agents of a group share their level's network")
    agent_identity: bool = Field(
        False, description="workers are told apart by a one-hot; without it the students serve teams of any size"
    )

    @model_validator(mode="after")
    def _what_a_hierarchy_can_be(self) -> HierarchySettings:
        """Refuse what there is not."""
        if self.recurrent:
            raise UsageError(
                "algorithm.recurrent: got True, expected False (a hierarchy's policies do not remember; the students "
                "that hmarl-export makes of them do)"
            )
        if self.telescoped and self.step_values is False:
            raise UsageError(
                "algorithm.step_values: got False, expected True with worker_reward=telescoped, which pays those below "
                "by a value that has to be right at every step"
            )
        if self.values_see_step and not self.judges_every_step:
            raise UsageError(
                "algorithm.values_see_step: got True, expected False with worker_reward=window and step_values=False: "
                "such values are asked for at a window's first step alone"
            )
        if not self.share_parameters:
            raise UsageError("algorithm.share_parameters: got False, expected True (any number of agents may come)")
        return self

    def check_rollouts(self, length: int, environments: int) -> None:
        """Windows end with their rollout: a longer one would never be."""
        super().check_rollouts(length, environments)
        if self.levels > 1 and self.goal_interval > length:
            raise UsageError(
                f"algorithm.goal_interval: got {self.goal_interval}, expected at most run.rollout_length ({length}), "
                "at whose end all goals do"
            )
        if self.levels > 2 and self.goal_interval * self.manager_interval > length:
            raise UsageError(
                f"algorithm.manager_interval: got {self.manager_interval} times goal_interval={self.goal_interval} "
                f"steps, expected at most run.rollout_length ({length}), at whose end all goals do"
            )

    @property
    def telescoped(self) -> bool:
        """Whether subordinates earn their superiors' TD errors."""
        return self.worker_reward == "telescoped"

    @property
    def judges_every_step(self) -> bool:
        """Whether superiors' values are judged and learnt at every step."""
        return self.telescoped if self.step_values is None else self.step_values

    @property
    def goal_head(self) -> ActionHead:
        """What goals are; its ``output_size`` is the width of what subordinates see of one."""
        if self.goal_space == "continuous":
            return latent_instructions(self.goal_size)
        return discrete_instructions(self.goal_size)
