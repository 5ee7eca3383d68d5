"""One PettingZoo environment that reads its actions from, and writes what it shows to, one row of flat arrays."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environment import Finding
from hmarl.sdk.environments.workers.process import (
    COPY_INDEX,
    FAILURES,
    Buffers,
    Moment,
    episode_seed,
    numbered,
    one_number,
    shown,
)
from hmarl.sdk.environments.workers.spaces import (
    MASK_KEY,
    ObservationFlattener,
    as_pixels,
    convert_action_space,
    image_format,
)
from hmarl.sdk.errors import EnvironmentFault, UsageError
from hmarl.sdk.spaces import ActionSpace, AgentSpec, EnvironmentSpec, ImageFormat, mask_branches

# Numbers beyond float32 become infinite, which is found and named later on; NumPy need not warn of it as well.
_NARROWING = partial(np.errstate, over="ignore")


def buffer_layout(spec: EnvironmentSpec, batch: int) -> list[tuple[str, tuple[int, ...], str]]:
    """The arrays of ``batch`` environments of that spec."""
    boolean, real, integer = "|b1", "<f4", "<i8"
    team = (batch, len(spec.agents))
    layout: list[tuple[str, tuple[int, ...], str]] = [
        ("rewards", team, real),
        ("terminated", (batch,), boolean),
        ("truncated", (batch,), boolean),
        ("success", (batch,), boolean),
        ("at_work", (batch,), boolean),
        ("seeds", (batch,), integer),
    ]
    for moment in ("now", "final"):
        layout += [
            (f"{moment}.state", (batch, spec.state_size), spec.state_dtype.str),
            (f"{moment}.active", team, boolean),
        ]
    for index, group in enumerate(spec.groups):
        agent, leading = group.example, (batch, len(group.agents))
        layout.append((f"actions.{index}", (*leading, *agent.action_shape), agent.action_dtype.str))
        for moment in ("now", "final"):
            seen = (*leading, agent.observation_size), agent.observation_dtype.str
            layout.append((f"{moment}.observations.{index}", *seen))
            if agent.has_action_mask:
                layout.append((f"{moment}.masks.{index}", (*leading, agent.mask_size), boolean))
    return layout


class ParallelCopy:
    """One PettingZoo parallel environment behind flat arrays.

    An agent that leaves (its termination or truncation flag is set, or it is missing in ``agents``) is inactive from
    then on: observation zero, mask all true, reward 0; its last reward counts. One that stays in ``agents`` after its
    flag was set has left all the same: it is asked for no action, and what it is paid is dropped. It comes back when it
    was off the list for a step or more and then is on it again without a flag. The episode ends when none is left: by
    truncation when an agent was cut off at the last step, else by termination, however others ended before. The next
    episode starts at once with ``episode_seed``. The final observation shows those that were cut off at the last step,
    for whom the game would have gone on; after termination, those that were there before it.

    Args:
        environment: a PettingZoo parallel environment; it is reset once here, to find out sizes and masks.
        name: the environment's name in the spec and in messages.
        masks: whether agents with discrete actions have masks; None to look for them in the observations' spaces and
            in the infos of the first reset.
        images: whether observations and states of rank 3 (height, width, channels) are pictures; else they are vectors
            of float32 like all others.

    Attributes:
        spec: agents, spaces and state size; horizon and rewards are filled in by the caller.

    Raises:
        UsageError: a space that cannot be flattened, no agents or two of one name.
        EnvironmentFault: ``reset`` does not do what a parallel environment's does.
    """

    def __init__(self, environment: Any, name: str, masks: bool | None = None, images: bool = True) -> None:
        self.environment = environment
        self._ids = _checked_ids(environment, name)
        self._known = set(self._ids)
        self._number = os.environ.get(COPY_INDEX)
        self._flatten = {
            id_: ObservationFlattener(str(id_), _space(environment, "observation", id_), images) for id_ in self._ids
        }
        converted = {id_: convert_action_space(str(id_), _space(environment, "action", id_)) for id_ in self._ids}
        _check_takes_seed(environment, name)
        _, infos = _checked_parts("reset", environment.reset(seed=0), _RESET)
        masked, maskless = self._masked(infos, {id_: space for id_, (space, _) in converted.items()}, masks)
        agents = tuple(
            AgentSpec(
                id=str(id_),
                observation_size=self._flatten[id_].size,
                action_space=converted[id_][0],
                has_action_mask=id_ in masked,
                observation_layout=self._flatten[id_].layout,
                image=self._flatten[id_].image,
            )
            for id_ in self._ids
        )
        state = self._own_state()
        self._has_own_state = state is not None
        state_size = sum(agent.observation_size for agent in agents) if state is None else state.size
        state_image = _stacked_images(agents) if state is None else (image_format(state) if images else None)
        self._success = getattr(environment, "episode_success", None)
        has_success = self._success is not None
        self.spec = EnvironmentSpec(
            name, agents, state_size, None, "sum", has_success=has_success, state_image=state_image
        )
        places = {
            self._ids[agent]: (group, position)
            for group, members in enumerate(self.spec.groups)
            for position, agent in enumerate(members.agents)
        }
        self._actors = [(id_, *places[id_], converted[id_][1]) for id_ in self._ids]
        self._rows = [(id_, *places[id_], id_ in maskless) for id_ in self._ids]
        self._masks = {id_: _MaskReader(agent) for id_, agent in zip(self._ids, agents, strict=True) if id_ in masked}
        self._seed, self._episode, self._steps = 0, 0, 0
        self._present: set[Any] = set()
        # Those who have left and are still in the environment's list.
        self._lingering: set[Any] = set()
        self._findings: dict[str, Finding] | None = None

    def reset(self, buffers: Buffers, row: int) -> None:
        """Start an episode from ``buffers.seeds[row]``."""
        self._seed, self._episode = int(buffers.seeds[row]), 0
        self._begin(buffers, row, self._seed)

    def step(self, buffers: Buffers, row: int) -> None:
        """Advance by one step with the actions of ``row``; start anew when the episode has ended."""
        before = self._present
        self._steps += 1
        chosen = buffers.actions
        actions = {
            id_: restore(chosen[group][row, position])
            for id_, group, position, restore in self._actors
            if id_ in before
        }
        observations, rewards, terminations, truncations, infos = self._stepped(actions)
        with _NARROWING():
            buffers.rewards[row] = [self._reward(id_, rewards) if id_ in before else 0.0 for id_ in self._ids]
        if self._findings is not None and self._lingering:
            self._note_lingering(rewards)
        listed = self._listed()
        over = {id_ for id_ in before | listed if terminations.get(id_) or truncations.get(id_)}
        cut_off: set[Any] = set()
        if over or self._lingering or listed != before:
            gone = {id_ for id_ in before if id_ in over or id_ not in listed}
            cut_off = {id_ for id_ in gone if truncations.get(id_) and not terminations.get(id_)}
            self._lingering = (self._lingering | over) & listed
            self._present = listed - self._lingering
        ended = not self._present
        buffers.success[row] = self._success is not None and self._success()
        buffers.truncated[row] = ended and bool(cut_off)
        buffers.terminated[row] = ended and not cut_off
        if not ended:
            self._show(buffers.now, row, observations, infos, self._present)
            return
        self._show(buffers.final, row, observations, infos, cut_off or before)
        self._episode += 1
        self._begin(buffers, row, episode_seed(self._seed, self._episode))

    def render(self) -> npt.NDArray[Any] | None:
        """What the environment's renderer makes, as an array; None when it makes nothing."""
        picture = self.environment.render()
        return None if picture is None else np.asarray(picture)

    def findings(self) -> list[dict[str, Any]]:
        """What the environment has done against its own interface, as fields of ``Finding``; watched from now on."""
        found = [] if self._findings is None else list(self._findings.values())
        self._findings = {} if self._findings is None else self._findings
        return [asdict(each) for each in found]

    def close(self) -> None:
        """Close the environment; what fails on the way out no longer matters."""
        with suppress(*FAILURES):
            self.environment.close()

    def _begin(self, buffers: Buffers, row: int, seed: int) -> None:
        with numbered(self._number):
            observations, infos = _checked_parts("reset", self.environment.reset(seed=seed), _RESET)
        self._present, self._lingering = self._listed(), set()
        self._steps = 0
        if not self._present:
            raise EnvironmentFault("reset: env.agents is empty, expected at least one agent to begin with")
        self._show(buffers.now, row, observations, infos, self._present)

    def _masked(
        self, infos: Mapping[Any, Any], actions: Mapping[Any, ActionSpace], masks: bool | None
    ) -> tuple[set[Any], set[Any]]:
        """Who has a mask, and of whom none is expected although they could bring one."""
        able = {id_ for id_ in self._ids if not isinstance(actions[id_], spaces.Box)}
        if masks is not None:
            return (able if masks else set()), set()
        found = {id_ for id_ in able if self._flatten[id_].mask_inside or MASK_KEY in (infos.get(id_) or ())}
        return found, able - found

    def _stepped(self, actions: Mapping[Any, Any]) -> Sequence[Mapping[Any, Any]]:
        """Observations, rewards, terminations, truncations and infos of one step."""
        try:
            result = self.environment.step(actions)
        except FAILURES as error:
            if self._lingering:
                names = ", ".join(f"'{id_}'" for id_ in sorted(self._lingering, key=str))
                error.add_note(f"no action was sent for {names}: ended, but still in env.agents")
            raise
        return _checked_parts("step", result, _STEP)

    def _reward(self, id_: Any, rewards: Mapping[Any, Any]) -> float:
        reward = rewards.get(id_, 0.0)
        return reward if type(reward) is float else one_number(f"agent '{id_}'", reward)

    def _listed(self) -> set[Any]:
        """Who is in the environment's list."""
        listed = set(self.environment.agents)
        if not listed <= self._known:
            stranger = sorted(listed - self._known, key=str)[0]
            known = ", ".join(f"'{id_}'" for id_ in self._ids)
            raise EnvironmentFault(f"agent '{stranger}' is in env.agents, but not in env.possible_agents ({known})")
        return listed

    def _show(
        self,
        target: Moment,
        row: int,
        observations: Mapping[Any, Any],
        infos: Mapping[Any, Any],
        visible: Collection[Any],
    ) -> None:
        """Write one row of ``target``: the visible agents as they are, the others as having left."""
        target.active[row] = [id_ in visible for id_ in self._ids]
        for id_, group, position, maskless in self._rows:
            shown_, mask = id_ in visible, target.action_masks[group]
            with _NARROWING():
                target.observations[group][row, position] = self._vector(id_, observations) if shown_ else 0.0
            if mask is not None:
                mask[row, position] = self._mask(id_, observations, infos) if shown_ else True
            elif maskless and shown_ and _mask_of(id_, observations, infos) is not None:
                raise EnvironmentFault(
                    f"agent '{id_}': got an action mask at step {self._steps}, but none in its observation space or in "
                    "the infos of the first reset; hand one out there, or declare it with --set env.action_masks=true"
                )
        target.state[row] = self._state(target, row)

    def _vector(self, id_: Any, observations: Mapping[Any, Any]) -> npt.NDArray[Any] | float:
        if id_ not in observations:
            if self._findings is not None and id_ in self._present:
                self._note("active agents", f"agent '{id_}' is in env.agents, but has no observation")
            return 0.0
        observation, flatten = observations[id_], self._flatten[id_]
        try:
            vector = flatten(observation)
        except ValueError as error:
            raise EnvironmentFault(f"agent '{id_}': {error} (step {self._steps} of the episode)") from error
        if self._findings is not None:
            found = flatten.misfit(observation, bounds=True)
            if found is not None:
                self._note("shapes and dtypes", f"agent '{id_}': {found.what}", f"got {found.got}")
        return vector

    def _mask(
        self, id_: Any, observations: Mapping[Any, Any], infos: Mapping[Any, Any]
    ) -> npt.NDArray[np.bool_] | bool:
        mask = _mask_of(id_, observations, infos)
        if mask is None:
            return True
        try:
            return self._masks[id_](mask)
        except ValueError as error:
            raise EnvironmentFault(f"agent '{id_}': {error} (step {self._steps} of the episode)") from error

    def _note_lingering(self, rewards: Mapping[Any, Any]) -> None:
        """Note who is still in the list after the end, and what the environment would pay for it."""
        for id_ in self._lingering:
            # What to do stands with the fault, for it is easily done.
            advice = "take it off the list in the step that sets its flag"
            self._note("active agents", f"agent '{id_}' stays in env.agents after its end; {advice}")
            if paid := self._reward(id_, rewards):
                self._note("active agents", f"agent '{id_}' is paid after its end, which is dropped", f"{paid:g}")

    def _note(self, check: str, what: str, example: str = "") -> None:
        assert self._findings is not None
        known = self._findings.get(what)
        if known is None:
            self._findings[what] = Finding(check, what, 1, f"{example} at step {self._steps} of an episode".strip())
        else:
            self._findings[what] = Finding(check, what, known.count + 1, known.example)

    def _state(self, target: Moment, row: int) -> npt.NDArray[Any]:
        if not self._has_own_state:
            seen = target.observations
            return np.concatenate([seen[group][row, position] for _, group, position, _ in self._rows])
        state = np.asarray(self.environment.state())
        if state.size != self.spec.state_size:
            raise EnvironmentFault(f"state(): got {state.size} numbers, expected {self.spec.state_size}")
        try:
            return as_pixels(state, self.spec.state_image).reshape(-1)
        except ValueError as error:
            raise EnvironmentFault(f"state(): {error}") from error

    def _own_state(self) -> npt.NDArray[Any] | None:
        """The environment's own global state; None where it has none that is an array of numbers."""
        try:
            state = np.asarray(self.environment.state())
            state.astype(np.float32)
            return state
        except Exception:
            return None


_RESET = ("observations", "infos")
_STEP = ("observations", "rewards", "terminations", "truncations", "infos")


def _checked_parts(where: str, result: Any, names: Sequence[str]) -> list[Mapping[Any, Any]]:
    """What ``reset`` or ``step`` returned, all of it dictionaries by agent; infos that are None are empty."""
    if not isinstance(result, tuple | list) or len(result) != len(names):
        got = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
        raise EnvironmentFault(f"{where}: got {got}, expected ({', '.join(names)})")
    *parts, infos = result
    parts.append({} if infos is None else infos)
    for name, part in zip(names, parts, strict=True):
        # Most are plain dictionaries, and to ask an abstract class takes long.
        if type(part) is not dict and not isinstance(part, Mapping):
            raise EnvironmentFault(f"{where}: got {shown(part)} as {name}, expected a dictionary by agent")
    return parts


def _mask_of(id_: Any, observations: Mapping[Any, Any], infos: Mapping[Any, Any]) -> Any:
    """The mask in an agent's observation, else the one in its info, else None."""
    observation, info = observations.get(id_), infos.get(id_)
    if isinstance(observation, dict) and observation.get(MASK_KEY) is not None:
        return observation[MASK_KEY]
    return info.get(MASK_KEY) if info else None


class _MaskReader:
    """Turns one agent's mask, an array or one for each branch, into bools, each branch with a legal action."""

    def __init__(self, agent: AgentSpec) -> None:
        self._size = agent.mask_size
        self._starts = [branch.start for branch in mask_branches(agent.action_space)]

    def __call__(self, mask: Any) -> npt.NDArray[np.bool_]:
        if isinstance(mask, list | tuple):
            mask = np.concatenate([np.reshape(part, -1) for part in mask])
        legal = np.asarray(mask, np.bool_).reshape(-1)
        if legal.size != self._size:
            raise ValueError(f"got an action mask of {legal.size} entries, expected {self._size}")
        if not (legal.any() if len(self._starts) == 1 else np.logical_or.reduceat(legal, self._starts).all()):
            raise ValueError(
                "its action mask allows no action at all; allow one that does nothing, or terminate the agent"
            )
        return legal


def _stacked_images(agents: Sequence[AgentSpec]) -> ImageFormat | None:
    """What all agents see, one above the other; None unless all see pictures of one format."""
    image = agents[0].image
    if image is None or any(agent.image != image for agent in agents):
        return None
    return dataclasses.replace(image, height=len(agents) * image.height)


def _checked_ids(environment: Any, name: str) -> list[Any]:
    ids = list(environment.possible_agents)
    texts = [str(id_) for id_ in ids]
    if not ids:
        raise UsageError(f"{name}: env.possible_agents is empty, expected at least one agent")
    if len(set(texts)) != len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UsageError(f"{name}: env.possible_agents has two agents called '{twice}', expected a name each")
    return ids


def _space(environment: Any, kind: str, id_: Any) -> spaces.Space[Any]:
    """An agent's observation or action space, from the method or, as of old, from the dictionary."""
    method = getattr(environment, f"{kind}_space", None)
    space: Any = method(id_) if callable(method) else getattr(environment, f"{kind}_spaces", {}).get(id_)
    if not isinstance(space, spaces.Space):
        raise UsageError(f"agent '{id_}': got {shown(space)} as {kind} space, expected one of gymnasium.spaces")
    return space


def _check_takes_seed(environment: Any, name: str) -> None:
    try:
        parameters = inspect.signature(environment.reset).parameters
    except (TypeError, ValueError):
        return
    if "seed" not in parameters and all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
        raise UsageError(
            f"{name}: reset({', '.join(parameters)}) takes no seed, expected reset(seed=None, options=None): an "
            "episode has to follow from its seed"
        )


def check_is_parallel(environment: Any, name: str) -> None:
    """Refuse what is no parallel environment.

    Raises:
        UsageError: a turn-based (AEC) environment, or something else altogether.
    """
    if hasattr(environment, "agent_iter"):
        raise UsageError(f"{name}: got a turn-based (AEC) environment, expected a parallel one, e.g. ':parallel_env'")
    missing = [name for name in ("possible_agents", "reset", "step") if not hasattr(environment, name)]
    if missing:
        kind = type(environment).__name__
        raise UsageError(f"{name}: got a {kind} without {', '.join(missing)}, expected a parallel environment")
