"""Any environment with faults on purpose between it and its agents: late, lost and noisy observations, late and lost
actions, agents that are out.

The game itself goes on undisturbed: states, rewards, ends and who is there are the environment's own, so that a central
critic sees the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environment import (
    Array,
    FindsFaults,
    LocatesAgents,
    Observation,
    StepResult,
    VectorEnvironment,
    as_array,
    as_numpy,
)
from hmarl.sdk.environments.authoring import checked_actions, checked_state, not_begun
from hmarl.sdk.errors import UsageError
from hmarl.sdk.faults.injector import Injector
from hmarl.sdk.faults.model import FaultModel
from hmarl.sdk.spaces import EnvironmentSpec

ARGUMENT = "faults"
_PREFIX = "faults."


def is_faults(argument: str) -> bool:
    """Whether an argument of an environment is about faults: ``faults`` or ``faults.NAME``."""
    return argument == ARGUMENT or argument.startswith(_PREFIX)


def split_faults(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Any, dict[str, Any]]]:
    """An environment's own arguments, and those for ``parse_faults``."""
    own = {key: value for key, value in arguments.items() if not is_faults(key)}
    single = {key.removeprefix(_PREFIX): value for key, value in arguments.items() if key.startswith(_PREFIX)}
    return own, (arguments.get(ARGUMENT), single)


def with_faults(environment: VectorEnvironment, model: FaultModel) -> VectorEnvironment:
    """The environment with faults; the very same one where nothing goes wrong with any of its agents.

    Raises:
        UsageError: faults of an agent that is not there, or a fallback that cannot act for one; the environment is
            then closed.
    """
    try:
        model.check_agents(environment.spec.agent_ids)
        if not model.any_of(environment.spec.agent_ids):
            return environment
        return FaultyEnvironment(environment, model)
    except UsageError:
        environment.close()
        raise


class FaultyEnvironment:
    """An environment with faults; a ``VectorEnvironment`` that hands out NumPy arrays, whatever the other one does.

    What else the other one offers (``agent_pixels``, ``findings``, what it promises) it offers too.

    Args:
        environment: is stepped, and closed with this one.
        model: what goes wrong.

    Raises:
        UsageError: faults of an agent that is not there, or a fallback that cannot act for one.
    """

    def __init__(self, environment: VectorEnvironment, model: FaultModel) -> None:
        self.inner = environment
        self.batch_size = environment.batch_size
        self.spec = _spec(environment.spec, model)
        self.independent_copies = bool(getattr(environment, "independent_copies", True))
        self.deterministic = bool(getattr(environment, "deterministic", False))
        if isinstance(environment, LocatesAgents):
            self.agent_pixels = environment.agent_pixels
        if isinstance(environment, FindsFaults):
            self.findings = environment.findings
        self._injector = Injector(model, self.spec.agents, self.spec.groups, self.batch_size)
        self._started = False

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes; what goes wrong in them follows from the seeds as well."""
        observation = as_numpy(self.inner.reset(seeds))
        self._started = True
        return self._injector.begin(np.asarray(seeds), observation)

    def step(self, actions: tuple[Array, ...]) -> StepResult:
        """Advance by what comes of the actions; see ``VectorEnvironment.step``.

        Raises:
            UsageError: before the first ``reset``, or actions of a wrong shape or kind; nothing has then changed.
        """
        if not self._started:
            raise not_begun("step")
        chosen = checked_actions(tuple(map(as_array, actions)), self.spec.groups, self.batch_size)
        result = self.inner.step(self._injector.done(chosen))
        ended = np.flatnonzero(as_array(result.terminated) | as_array(result.truncated))
        if result.final is None:
            return replace(result, observation=self._injector.seen(as_numpy(result.observation)))
        final = self._injector.seen(as_numpy(result.final))
        observation = self._injector.begin_next(ended, as_numpy(result.observation))
        return replace(result, observation=observation, final=final)

    def get_state(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """The other environment's state and what is under way; None where that cannot be saved."""
        state = self.inner.get_state()
        if state is None:
            return None
        return {**state, **{_PREFIX + name: array for name, array in self._injector.get_state().items()}}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue where ``get_state`` was called.

        Raises:
            UsageError: an array is missing, unknown, of another shape or kind; nothing has then changed.
        """
        own = {name.removeprefix(_PREFIX): array for name, array in state.items() if name.startswith(_PREFIX)}
        saved = checked_state(own, self._injector.get_state())
        inner = {name: array for name, array in state.items() if not name.startswith(_PREFIX)}
        observation = as_numpy(self.inner.set_state(inner))
        self._started = True
        return self._injector.set_state(saved, observation)

    def render(self, index: int = 0) -> npt.NDArray[np.uint8] | None:
        """How things are, not how they are seen."""
        return self.inner.render(index)

    def close(self) -> None:
        """Close the other environment."""
        self.inner.close()


def _spec(spec: EnvironmentSpec, model: FaultModel) -> EnvironmentSpec:
    """Of the environment with faults: what all agents see alike they may no longer see alike."""
    kinds = [model.of(each) for each in spec.agent_ids]
    alike = all(each == kinds[0] and each.same_for_all for each in kinds)
    return replace(spec, common_observations=spec.common_observations if alike else (), faults=str(model))
