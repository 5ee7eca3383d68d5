"""An agent with faults on purpose, for a control loop of one's own: the same as in an environment with faults."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hmarl.runtime.choices import InstructionChoice
from hmarl.runtime.errors import InferenceError
from hmarl.runtime.inputs import InputCheck
from hmarl.sdk.clients.agent import Action, Agent, AgentStatistics
from hmarl.sdk.environment import Observation
from hmarl.sdk.errors import MisuseError
from hmarl.sdk.faults.injector import Injector
from hmarl.sdk.faults.model import FaultModel, parse_faults
from hmarl.sdk.spaces import AgentGroup, AgentSpec, branch_sizes


class FaultyAgent:
    """An agent whose observations are late or lost on the way to it, and whose actions on the way back; an ``Agent``.

    What ``act`` returns is what is to be done: the newest action that has arrived, or what the faults' fallback decides
    (``Action.fresh`` is then False). Faults follow from the episode's seed, so an agent meets those that it meets in an
    environment with the same ones.

    Args:
        agent: ``LocalAgent`` or ``AgentClient``; is closed with this one.
        faults: what goes wrong, as ``--faults`` spells it or as a model.

    Raises:
        UsageError: an unknown fault, or a fallback that cannot act for the agent.
    """

    def __init__(self, agent: Agent, faults: FaultModel | str) -> None:
        model = parse_faults(faults) if isinstance(faults, str) else faults
        model = FaultModel(model.of(agent.spec.id))  # a team's model names other agents, too
        self._agent = agent
        branches = branch_sizes(agent.spec.action_space_model) if agent.spec.has_action_mask else None
        self._check = InputCheck(agent.spec.observation_shape, branches, agent.spec.observation_dtype)
        self._injector = Injector(model, [agent.spec], [AgentGroup((0,), agent.spec)], 1)
        self._fallbacks = 0
        self._seed: int | None = None
        self._options: dict[str, Any] = {}
        self._step = self._first_step = 0
        self._begun = self._failed = False

    @property
    def spec(self) -> AgentSpec:
        """The agent's id, observation size and spaces."""
        return self._agent.spec

    @property
    def statistics(self) -> AgentStatistics:
        """Those of the agent, with the fallbacks that faults have brought about."""
        of_agent = self._agent.statistics
        return replace(of_agent, fallbacks=of_agent.fallbacks + self._fallbacks)

    @property
    def timeout_s(self) -> float:
        """That of the client whose faults these are; an agent in this process has none, and so has this one then."""
        timeout_s: float = self._agent.timeout_s  # type: ignore[attr-defined]
        return timeout_s

    @timeout_s.setter
    def timeout_s(self, seconds: float) -> None:
        self._agent.timeout_s = seconds  # type: ignore[attr-defined]

    def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
    ) -> None:
        """Start an episode; see ``Agent.reset``."""
        options = {"sample": sample, "instruction_choice": instruction_choice}
        self._agent.reset(seed, sample=sample, instruction_choice=instruction_choice, first_step=first_step)
        self._seed, self._options, self._step, self._first_step = seed, options, first_step, first_step
        self._begun = self._failed = False

    def act(self, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None = None) -> Action:
        """What is to be done at the next step; see ``Agent.act``.

        A step at which the agent raises is used up, one whose observation is refused is not.

        Raises:
            MisuseError: before the first ``reset``.
            ObservationError: wrong shape, dtype or content.
        """
        if self._seed is None:
            raise MisuseError(f"agent '{self.spec.id}': it has no episode yet; call reset(seed) first")
        now = _as_batch(*self._check.checked(observation, action_mask))
        if self._failed:
            self.skip(1)
        step = self._step
        self._step += 1
        if self._begun:
            seen = self._injector.seen(now)
        else:
            seeds, first = np.array([self._seed], np.uint64), self._first_step
            seen = self._injector.begin(seeds, now, first, skipped=step - first)
            self._begun = True
        (mask,) = seen.action_masks
        shown = self.spec.observed(seen.observations[0][0, 0])
        try:
            if seen.restarted is not None and seen.restarted.any():
                self._agent.reset(self._seed, first_step=step, **self._options)
            chosen = self._agent.act(shown, None if mask is None else mask[0, 0])
        except BaseException as error:
            self._injector.idle()
            if isinstance(error, InferenceError):
                # The agent is still at this step. It is skipped once: by a caller that keeps count, or by the next act.
                self._step, self._failed = step, True
            raise
        (done,) = self._injector.done([np.asarray(chosen.action, self.spec.action_dtype)[None, None]])
        fresh = chosen.fresh and bool(self._injector.fresh.all())
        self._fallbacks += chosen.fresh and not fresh
        action = done[0, 0] if self.spec.action_shape else int(done[0, 0])
        return replace(chosen, action=action, step=step, fresh=fresh)

    def skip(self, steps: int = 1, *, away: bool = False) -> None:
        """Steps go by at which the agent is not asked; see ``Agent.skip``.

        Faults come and go in them as if it had been: outages begin and end, and what is under way arrives. Of an agent
        that was away nothing is under way: its next observation arrives at once, and no action is held.
        """
        if away:
            self._agent.skip(steps, away=True)
        else:
            self._agent.skip(steps)  # also of an agent of one's own that knows no absence
        self._step += steps
        if self._begun and steps:
            self._injector.skip(steps - self._failed, away)
            self._failed = False

    def close(self) -> None:
        """Close the agent."""
        self._agent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _as_batch(observation: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None) -> Observation:
    """One team of one agent."""
    masks = None if mask is None else mask[None, None]
    return Observation(
        (observation.reshape(1, 1, -1),), (masks,), np.zeros((1, 1), np.float32), np.ones((1, 1), np.bool_)
    )
