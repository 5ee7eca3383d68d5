"""A whole hierarchy that acts for its team."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.contract.acting import LocalActing, Outcome
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.experience.rollout import Decision
from hmarl.trainer.hierarchy.hierarchy import Hierarchy, Noise, Standing, Step


class HierarchyActors:
    """All agents of all levels, as pure functions of what is seen and of what is in force.

    Args:
        actors: the team's spaces and the scale of what it observes; it has no local policies.
        hierarchy: the levels.
    """

    def __init__(self, actors: Actors, hierarchy: Hierarchy) -> None:
        self.actors, self.hierarchy = actors, hierarchy

    def decide(self, observation: Observation, standing: Standing, noise: Noise | None) -> Step:
        """One step of the whole hierarchy.

        Args:
            observation: tensors on the training device.
            standing: what is in force.
            noise: of the step; None takes all agents' most likely choices.
        """
        return self.hierarchy.step(
            self.worker_features(observation.observations),
            observation.action_masks,
            observation.observations,
            observation.active,
            standing,
            noise,
        )

    def worker_features(self, observations: Sequence[Tensor]) -> list[Tensor]:
        """Per group [..., N_group, D] of raw observations [..., N_group, observation_size]."""
        features = self.actors.normalised(observations)
        if not self.hierarchy.settings.agent_identity:
            return features
        return [
            torch.cat([seen, torch.eye(seen.shape[-2], device=seen.device).expand(*seen.shape[:-1], -1)], dim=-1)
            for seen in features
        ]


class HierarchyActing:
    """Goals where they have run out, then all agents' actions.

    Args:
        together: the hierarchy's agents.
        local: draws the action noise.
        generator: of the goals' noise, on the device.

    Attributes:
        standing: what is in force.
    """

    def __init__(self, together: HierarchyActors, local: LocalActing, generator: torch.Generator) -> None:
        self.standing = together.hierarchy.nothing_in_force(0)
        self._together, self._local, self._generator = together, local, generator
        self._goal_noise = together.hierarchy.draw_goal_noise((0,), generator)

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the rollout's noise; all decide anew at its first step."""
        self._local.begin_rollout(steps, batch_size)
        hierarchy = self._together.hierarchy
        if len(self.standing.clock) != batch_size:
            self.standing = hierarchy.nothing_in_force(batch_size)
        self.standing = replace(self.standing, clock=torch.zeros_like(self.standing.clock))
        self._goal_noise = hierarchy.draw_goal_noise((steps, batch_size), self._generator)

    @torch.no_grad()
    def act(self, observation: Observation, step: int) -> Decision:
        """One step of the hierarchy; what learning needs of it is recorded."""
        noise = Noise(self._local.noise_at(step), *(drawn[step] for drawn in self._goal_noise))
        taken = self._together.decide(observation, self.standing, noise)
        self.standing = taken.standing
        return Decision(taken.actions, self._together.actors.to_environment(taken.actions), taken.record)

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: a new episode starts with nothing in force."""
        if len(self.standing.clock) == len(ended):
            self.standing = self._together.hierarchy.ended(self.standing, ended)

    def state(self) -> dict[str, Tensor]:
        """What is in force."""
        return self.standing.tensors()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.standing = Standing(**{name: state[name].clone() for name in self.standing.tensors()})

    def outcome(self) -> Outcome:
        """All is recorded."""
        return Outcome()

    def take_over(self, outcome: Outcome) -> None:
        """All is recorded."""
