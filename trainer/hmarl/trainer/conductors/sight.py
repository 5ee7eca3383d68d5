"""What a conductor sees: the state, as in the paper, or what is common knowledge among the agents.

A common-knowledge conductor w(M|c) sees c alone: what all agents observe alike, the step of the episode and its own
instruction before. Every agent can hold a copy of it, and copies that draw with the same random numbers z choose the
same M without a message. So the policy that is deployed is the one that was trained,

    π_mar(a|s) = E_z Π_i π^i(a^i | o^i, M(c, z)),

and needs no local conductors that follow. ``CommonSight`` (contract/fixed.py) is the same inside of an agent's graph.

Source: this project's own. Related: Schroeder de Witt et al. 2019, "Multi-Agent Common Knowledge Reinforcement
Learning", whose pairs of agents act jointly on what they know in common.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.conductors.common_observations import CommonObservations
from hmarl.trainer.contract.fixed import CommonSight, FixedNormaliser, clock
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.networks.normalisation import RunningNormaliser

# Of the clock, where the environment does not say how long episodes are.
UNKNOWN_HORIZON = 100


class Sight(Protocol):
    """What a conductor sees, at one step and along a rollout; normalised."""

    size: int

    def now(self, observation: Observation, step: Tensor, last: Tensor) -> Tensor:
        """[B, size] at one step.

        Args:
            observation: tensors on the training device.
            step: [B] int64 of the episodes.
            last: [B, K] or [B, D] what agents saw of the instruction before, zeros where there is none.
        """
        ...

    def record(self, step: Tensor, last: Tensor) -> dict[str, Tensor]:
        """What ``along`` needs recorded of a step."""
        ...

    def along(self, rollout: Rollout, states: Tensor) -> Tensor:
        """[M, size] at all steps; ``states`` [M, state_size] normalised."""
        ...

    def learn(self, rollout: Rollout) -> None:
        """Take a rollout into the statistics, and see what is common in it.

        Raises:
            UsageError: what was common is not.
        """
        ...

    def components(self) -> dict[str, object]:
        """What a checkpoint holds, by name."""
        ...


class StateSight:
    """The global state, as the algorithm normalises it.

    Args:
        size: of the state.
        normaliser: the algorithm's, who updates it.
    """

    def __init__(self, size: int, normaliser: RunningNormaliser) -> None:
        self.size, self._normaliser = size, normaliser

    def now(self, observation: Observation, step: Tensor, last: Tensor) -> Tensor:
        """[B, state_size]."""
        return self._normaliser(observation.state)

    def record(self, step: Tensor, last: Tensor) -> dict[str, Tensor]:
        """Nothing: rollouts hold the states."""
        return {}

    def along(self, rollout: Rollout, states: Tensor) -> Tensor:
        """The states themselves."""
        return states

    def learn(self, rollout: Rollout) -> None:
        """Nothing of its own."""

    def components(self) -> dict[str, object]:
        """Nothing of its own."""
        return {}


class CommonKnowledge:
    """What all agents know: C common numbers of their observations, the clock, and the instruction before.

    Args:
        spec: the environment.
        device: where rollouts live.
        sees: ``common``, or ``nothing`` of the observations.
        instruction_size: K or D, the width of what is seen of the instruction before; 0 leaves it out.
        search: rollouts in which common numbers are searched for.
        normalise: whether they are normalised by running statistics.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        device: torch.device,
        *,
        sees: Literal["common", "nothing"],
        instruction_size: int,
        search: int,
        normalise: bool,
    ) -> None:
        self.common = CommonObservations(spec, device, search, nothing=sees == "nothing")
        self.remembers = instruction_size > 0
        self.size = len(self.common.features) + 1 + instruction_size
        self.horizon = spec.declared_horizon or UNKNOWN_HORIZON
        self._normaliser = RunningNormaliser((len(self.common.features),), device, normalise)

    def now(self, observation: Observation, step: Tensor, last: Tensor) -> Tensor:
        """[B, C + 1 (+ K or D)]."""
        seen = self.common.of(observation.observations, observation.active)
        return self._seen(seen, step, last)

    def _seen(self, common: Tensor, step: Tensor, last: Tensor) -> Tensor:
        parts = [self._normaliser(common) * self.common.known, clock(step, self.horizon).unsqueeze(-1)]
        return torch.cat([*parts, last] if self.remembers else parts, dim=-1)

    def record(self, step: Tensor, last: Tensor) -> dict[str, Tensor]:
        """The step and the instruction before; rollouts hold the observations."""
        return {"episode_step": step, "last_instruction": last}

    def along(self, rollout: Rollout, states: Tensor) -> Tensor:
        """[M, size] of the observations, whatever the states."""
        seen = self.common.of(rollout.observations, rollout.active)
        return self._seen(seen, rollout.extras["episode_step"], rollout.extras["last_instruction"]).flatten(0, 1)

    def learn(self, rollout: Rollout) -> None:
        """Search or verify, then take the common numbers into their statistics."""
        self.common.compare(rollout)
        if self.common.features:
            self._normaliser.update(self.common.of(rollout.observations, rollout.active).flatten(0, 1))

    def fixed(self, agent: int) -> CommonSight:
        """The same inside of one agent's graph."""
        normaliser = FixedNormaliser.of(self._normaliser)
        return CommonSight(self.common.places_of(agent), self.common.known, normaliser, self.horizon)

    def components(self) -> dict[str, object]:
        """What is common, and its statistics."""
        return {"common_observations": self.common, "common_normaliser": self._normaliser}
