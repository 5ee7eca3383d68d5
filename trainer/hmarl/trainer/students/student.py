"""Students: recurrent policies, each of one agent's own observations, that also predict what the agent is to aim at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.errors import UsageError
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.deployable import DeployablePolicy, check_size
from hmarl.trainer.contract.teacher import GoalKind
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.flat import RecurrentNetwork
from hmarl.trainer.networks.policies import (
    GroupPolicy,
    by_group,
    fresh_rows,
    memory_along,
    no_memories,
    select_all,
    step_all,
    without_restarted,
)
from hmarl.trainer.students.settings import DistillationSettings


@dataclass
class StudentPolicy(GroupPolicy):
    """The students of a group.

    Attributes:
        network: which predicts goals where there are any.
        goal_kind: what goals are; None without goals.
    """

    network: RecurrentNetwork
    goal_kind: GoalKind | None = None

    def remembered(
        self, features: Tensor, memory: Tensor, forgotten: Tensor, theta: Tensor, there: Tensor | None = None
    ) -> Tensor:
        """[N, L·C, H] what all agents decide by at each step of C sequences of L steps.

        Args:
            features: [L, C, N, D] normalised observations.
            memory: [N, C, H] before the first step.
            forgotten: bool, True where nothing from before a step is remembered, see ``memory_along``.
            theta: parameters [rows, P].
            there: [L, C, N] bool, False where an agent is away, or None; see ``Memory``.
        """
        along = memory_along(memory, forgotten, there)
        return self.network.remembered(self._named(theta), self._rows(features), along)

    def carried(
        self, features: Tensor, memory: Tensor, forgotten: Tensor, theta: Tensor, there: Tensor | None = None
    ) -> Tensor:
        """[N, L·C, H] what all agents carry into the step after each; arguments as of ``remembered``."""
        along = memory_along(memory, forgotten, there)
        return self.network.carried(self._named(theta), self._rows(features), along)

    def _rows(self, features: Tensor) -> Tensor:
        """[N, L·C, input_size] of features [L, C, N, D]."""
        return self.inputs(features).flatten(0, 1).transpose(0, 1)

    def decided(self, remembered: Tensor, mask: Tensor | None, theta: Tensor) -> tuple[Distribution, Tensor | None]:
        """[N, M] all agents' distributions and [N, M, G] predicted goals (or their logits), None without goals.

        Args:
            remembered: [N, M, H].
            mask: [N, M, A] bool, or None.
            theta: parameters [rows, P].
        """
        parameters, network = self._named(theta), self.network
        extra = theta[:, network.size :].expand(self.members, -1).unsqueeze(1)
        distribution = self.head.distribution(network.output(parameters, remembered), extra, mask)
        return distribution, network.predicted_goal(parameters, remembered) if self.goal_kind else None

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        return self.network.named(theta[:, : self.network.size].expand(self.members, -1))


class Students:
    """The students of all agents: one an agent, or one a group where they share parameters.

    Args:
        algorithm: whose team is imitated; it gives the normalisers and heads.
        goal_kinds: per group, None without goals.
        settings: what the students are.
        generator: CPU generator of the first weights.

    Raises:
        UsageError: the run's agents are interchangeable, and the settings would tell them apart; or a student would be
            too large for an ONNX file.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        goal_kinds: Sequence[GoalKind | None],
        settings: DistillationSettings,
        generator: torch.Generator,
    ) -> None:
        if algorithm.spec.images:
            raise UsageError(f"distillation: {algorithm.spec.images[0]}, expected vectors (students take no pictures)")
        run = algorithm.settings
        share = run.share_parameters if settings.share_parameters is None else settings.share_parameters
        if run.interchangeable and not share:
            raise UsageError(
                "distillation.share_parameters: got False, expected true or null with algorithm.agent_identity=False "
                "(networks of their own tell agents apart)"
            )
        self.spec, self.position, self.interchangeable = algorithm.spec, algorithm.position, run.interchangeable
        self.heads, self.normalisers = algorithm.heads, algorithm.observation_normalisers
        self.state_normaliser = algorithm.state_normaliser
        self.policies, self._settings = [], settings
        team = sum(agent.observation_size for agent in self.spec.agents)
        told = {"nothing": 0, "team": team, "state": self.spec.state_size}[settings.told]
        for group, head, goal in zip(self.spec.groups, self.heads, goal_kinds, strict=True):
            members = len(group.agents)
            shared = share and members > 1
            told_apart = shared and run.agent_identity
            network = RecurrentNetwork(
                group.example.observation_size + told + (members if told_apart else 0),
                settings.hidden_sizes,
                head.output_size,
                run.activation,
                normalise_layers=run.normalise_layers,
                memory=settings.memory_size,
                decision_sizes=settings.decision_sizes,
                goal=goal,
            )
            if settings.told == "nothing":  # else they are not exported
                check_size(group.example, 4 * network.size, "distillation.hidden_sizes")
            theta = fresh_rows(1 if shared else members, network, head, generator).to(algorithm.device)
            self.policies.append(StudentPolicy(network, head, theta, members, told_apart, goal_kind=goal))

    def no_memories(self, batch_size: int) -> list[Tensor]:
        """Per group [N_group, B, H] zeros: what the students remember when an episode begins."""
        return no_memories(self.policies, batch_size)

    def features(self, observations: Sequence[Tensor], state: Tensor) -> list[Tensor]:
        """Per group [..., N_group, D'] what the students see: their own observations, and after it what they are told.

        Args:
            observations: per group [..., N_group, D] raw.
            state: [..., state_size] raw.
        """
        own = [normaliser(x) for normaliser, x in zip(self.normalisers, observations, strict=True)]
        if self._settings.told == "nothing":
            return own
        if self._settings.told == "team":
            told = torch.cat([x.flatten(-2) for x in own], dim=-1)
        else:
            told = self.state_normaliser(state)
        return [torch.cat([x, told.unsqueeze(-2).expand(*x.shape[:-1], -1)], dim=-1) for x in own]

    @torch.no_grad()
    def act(
        self, observation: Observation, perturbations: Sequence[Tensor] | None, memories: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """All agents' raw actions, per group [B, N_group, ...], and what they remember after them.

        Args:
            observation: tensors on the training device.
            perturbations: per group [N_group, B, A]; None selects the modes.
            memories: per group [N_group, B, H].
        """
        seen = self.features(observation.observations, observation.state)
        there = by_group(self.spec.groups, observation.active)
        before = without_restarted(self.spec.groups, memories, observation.restarted)
        distributions, following = step_all(self.policies, seen, observation.action_masks, None, before, there)
        return select_all(distributions, perturbations), following

    def deployable(self, agent: int) -> DeployablePolicy:
        """The agent's student as one module, with a copy of the parameters.

        Raises:
            UsageError: the students see more than their agents do.
        """
        self._settings.check_deployable()
        group, member = self.position[agent]
        return DeployablePolicy.create(
            self.spec.agents[agent],
            normaliser=self.normalisers[group],
            policy=self.policies[group],
            member=member,
        )
