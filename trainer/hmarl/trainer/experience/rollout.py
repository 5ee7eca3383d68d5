"""One preallocated buffer of T steps in B environments, and the collector that fills it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from hmarl.sdk.environment import Observation, StepResult, VectorEnvironment
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.experience.finite import broken_observation

# Below this many agents a step (all environments), waking a second thread costs more than it computes.
SINGLE_THREAD_ROWS = 2048


def torch_dtype(kind: np.dtype[Any]) -> torch.dtype:
    """float32, or the bytes that pictures are held as."""
    return torch.uint8 if kind == np.uint8 else torch.float32


@dataclass
class Decision:
    """What an algorithm chose for one step.

    Attributes:
        raw_actions: one per group, [B, N_group, ...]: what the distributions were sampled for.
        environment_actions: the same in the environment's units.
        extras: further per-step tensors to record, [B, ...] (e.g. the instruction in force).
        memories: what was remembered before this step, where the algorithm wants it recorded: by the agents, one per
            group [N_group, B, H], and by what acts for all of them [1, B, ...]; None elsewhere.
        log_probs: of the raw actions, one per group [B, N_group], where whoever learns from them may have moved on.
    """

    raw_actions: tuple[Tensor, ...]
    environment_actions: tuple[Tensor, ...]
    extras: dict[str, Tensor] = field(default_factory=dict)
    memories: tuple[Tensor, ...] | None = None
    log_probs: tuple[Tensor, ...] | None = None


class Actor(Protocol):
    """The part of an algorithm that the collector needs."""

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Called before the first step, e.g. to draw the rollout's noise at once."""
        ...

    def act(self, observation: Observation, step: int) -> Decision:
        """Choose all agents' actions; ``observation`` holds tensors on the training device, ``step`` counts from 0."""
        ...

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: forget what belongs to the episodes that have just ended (recurrent state, instructions)."""
        ...


@dataclass(frozen=True)
class _Finals:
    """What was seen last in the episodes that ended at one step: ``rows`` [F] are their environments."""

    step: int
    rows: Tensor
    states: Tensor
    observations: list[Tensor]
    action_masks: list[Tensor | None]
    active: Tensor

    def of(self, environments: slice) -> _Finals:
        """Of some of the environments alone, counted from the first of them."""
        theirs = (self.rows >= environments.start) & (self.rows < environments.stop)
        masks = [None if mask is None else mask[theirs] for mask in self.action_masks]
        seen = [each[theirs] for each in self.observations]
        rows = self.rows[theirs] - environments.start
        return _Finals(self.step, rows, self.states[theirs], seen, masks, self.active[theirs])


class Rollout:
    """Everything that one update needs; team fields [T, B, ...], per-agent fields one block per group [T, B, N_group,
    ...].

    Attributes:
        observations: per group, [T, B, N_group, ...]; pictures of bytes stay bytes.
        last_observations, last_action_masks, last_active: what is seen after the last step, [B, ...].
        action_masks: per group, [T, B, N_group, ...].
        actions: raw actions per group.
        states: [T + 1, B, state_size]; the last one follows the last step.
        rewards: [T, B, N]; team_rewards: [T, B].
        terminated, truncated: [T, B] bool.
        active: [T, B, N] bool.
        restarted: [T, B, N] bool, agents that remember nothing from before a step; None where that never happens.
        extras: what the algorithm recorded, [T, B, ...].
        memories: per recording, what was remembered before that step, see ``Decision``.
        log_probs: per group [T, B, N_group] of the actions under the policies that collected, where they were recorded.
        correction: [T, B] truncated importance weights where older policies have collected, else None.
        final_states: the true last states of episodes that ended inside the rollout, [F, state_size] (``states`` holds
            the state after auto-reset there).
    """

    def __init__(self, spec: EnvironmentSpec, steps: int, batch_size: int, device: torch.device) -> None:
        self.spec, self.steps, self.batch_size, self.device = spec, steps, batch_size, device
        lead = (steps, batch_size)
        self.observations: list[Tensor] = []
        self.action_masks: list[Tensor | None] = []
        for group in spec.groups:
            example, members = group.example, len(group.agents)
            seen, kind = (*lead, members, example.observation_size), torch_dtype(example.observation_dtype)
            self.observations.append(torch.zeros(seen, dtype=kind, device=device))
            mask = torch.ones(*lead, members, example.mask_size, dtype=torch.bool, device=device)
            self.action_masks.append(mask if example.has_action_mask else None)
        kind = torch_dtype(spec.state_dtype)
        self.states = torch.zeros(steps + 1, batch_size, spec.state_size, dtype=kind, device=device)
        self.rewards = torch.zeros(*lead, len(spec.agents), device=device)
        self.team_rewards = torch.zeros(*lead, device=device)
        self.terminated = torch.zeros(*lead, dtype=torch.bool, device=device)
        self.truncated = torch.zeros(*lead, dtype=torch.bool, device=device)
        self.active = torch.ones(*lead, len(spec.agents), dtype=torch.bool, device=device)
        self.all_active = True
        self.restarted: Tensor | None = None
        self.actions: list[Tensor] = []
        self.extras: dict[str, Tensor] = {}
        self.memories: list[tuple[Tensor, ...]] = []
        self.log_probs: list[Tensor] = []
        self.correction: Tensor | None = None
        self.last_observations: list[Tensor] = []
        self.last_action_masks: list[Tensor | None] = []
        self.last_active = torch.ones(batch_size, len(spec.agents), dtype=torch.bool, device=device)
        self._finals: list[_Finals] = []

    def begin(self) -> None:
        """Forget the previous rollout's episode ends; all other fields are overwritten."""
        self._finals = []
        self.memories = []
        self.all_active = True
        self.correction = None

    def record(self, step: int, observation: Observation, decision: Decision, result: StepResult) -> None:
        """Copy one step into the buffer."""
        for buffer, value in zip(self.observations, observation.observations, strict=True):
            buffer[step] = value
        for mask_buffer, mask in zip(self.action_masks, observation.action_masks, strict=True):
            if mask_buffer is not None and mask is not None:
                mask_buffer[step] = mask
        if not self.actions:
            self.actions = [a.new_zeros((self.steps, *a.shape)) for a in decision.raw_actions]
            self.extras = {key: v.new_zeros((self.steps, *v.shape)) for key, v in decision.extras.items()}
        for buffer, value in zip(self.actions, decision.raw_actions, strict=True):
            buffer[step] = value
        for key, value in decision.extras.items():
            self.extras[key][step] = value
        if decision.memories is not None:
            self.memories.append(decision.memories)
        if decision.log_probs is not None:
            if not self.log_probs:
                self.log_probs = [each.new_zeros((self.steps, *each.shape)) for each in decision.log_probs]
            for buffer, value in zip(self.log_probs, decision.log_probs, strict=True):
                buffer[step] = value
        self.states[step] = observation.state
        self.active[step] = observation.active
        if observation.restarted is not None:
            self.restarted = torch.zeros_like(self.active) if self.restarted is None else self.restarted
            self.restarted[step] = observation.restarted
        self.rewards[step] = as_tensor(result.rewards, self.device)
        self.terminated[step] = as_tensor(result.terminated, self.device)
        self.truncated[step] = as_tensor(result.truncated, self.device)
        if result.final is not None:
            rows = (self.terminated[step] | self.truncated[step]).nonzero().squeeze(-1)
            self._finals.append(self._final(step, rows, result.final))

    def _final(self, step: int, rows: Tensor, final: Observation) -> _Finals:
        """The ``rows`` of what was seen last."""

        def pick(values: Any) -> Tensor:
            return as_tensor(values, self.device)[rows]

        masks = [None if mask is None else pick(mask) for mask in final.action_masks]
        seen = [pick(observations) for observations in final.observations]
        return _Finals(step, rows, pick(final.state), seen, masks, pick(final.active))

    @property
    def finals(self) -> list[_Finals]:
        """What was seen last in episodes that ended, step by step."""
        return self._finals

    def add_final(
        self,
        step: int,
        rows: Tensor,
        states: Tensor,
        observations: list[Tensor],
        action_masks: list[Tensor | None],
        active: Tensor,
    ) -> None:
        """Episodes ended after a step; ``rows`` [F] are their environments, and [F, ...] is what was seen last."""
        self._finals.append(_Finals(step, rows, states, observations, action_masks, active))

    def finish(self, last: Observation) -> None:
        """Store what is seen after the last step, form the team rewards, and see whether all agents were there."""
        self.states[self.steps] = last.state
        self.last_observations = list(last.observations)
        self.last_action_masks, self.last_active = list(last.action_masks), last.active
        self.all_active = bool(self.active.all())
        self.team_rewards = self.spec.team_rewards(self.rewards, None if self.all_active else self.active)

    def of(self, environments: slice) -> Rollout:
        """Of some of the environments alone, copied: as if no others had been stepped beside them."""

        def pick(values: Tensor) -> Tensor:
            return values[:, environments].contiguous()

        part = copy(self)
        part.batch_size = environments.stop - environments.start
        part.observations = [pick(each) for each in self.observations]
        part.action_masks = [None if each is None else pick(each) for each in self.action_masks]
        part.actions = [pick(each) for each in self.actions]
        part.extras = {key: pick(each) for key, each in self.extras.items()}
        part.memories = [tuple(pick(each) for each in recorded) for recorded in self.memories]
        part.states, part.rewards, part.team_rewards = pick(self.states), pick(self.rewards), pick(self.team_rewards)
        part.terminated, part.truncated, part.active = pick(self.terminated), pick(self.truncated), pick(self.active)
        part.restarted = None if self.restarted is None else pick(self.restarted)
        part.all_active = self.all_active or bool(part.active.all())
        part.last_observations = [each[environments] for each in self.last_observations]
        part.last_action_masks = [None if each is None else each[environments] for each in self.last_action_masks]
        part.last_active = self.last_active[environments]
        part._finals = [each for final in self._finals if len((each := final.of(environments)).rows)]
        return part

    @property
    def ended(self) -> Tensor:
        """[T, B] bool."""
        return self.terminated | self.truncated

    @property
    def begins(self) -> Tensor:
        """[T, B] bool: where a step begins an episode, the rollout's first step apart."""
        begins = torch.zeros_like(self.terminated)
        begins[1:] = self.ended[:-1]
        return begins

    def next_values(self, values: Tensor, final_values: Tensor) -> Tensor:
        """Value of the state that followed each step: 0 after termination, the final state's after truncation.

        Args:
            values: [T + 1, B, ...] V of ``states``, or of every agent's observations.
            final_values: [F, ...] V of ``final_states``, or of ``final_observations``.
        """
        following = self._with_finals(values[1:].clone(), final_values)
        terminated = self.terminated.view(*self.terminated.shape, *(1,) * (values.dim() - 2))
        return following.masked_fill(terminated, 0.0)

    def next_values_of_agents(self, values: Tensor, final_values: Tensor) -> tuple[Tensor, Tensor]:
        """The same where each agent has a value of its own, and where an agent's part ends: to leave is to terminate.

        Args:
            values: [T + 1, B, N].
            final_values: [F, N].

        Returns:
            [T, B, N] float32, 0 also for agents who have gone, and [T, B, N] bool.
        """
        gone = ~self.next_active()
        return self.next_values(values, final_values).masked_fill(gone, 0.0), self.ended.unsqueeze(-1) | gone

    def _with_finals(self, following: Tensor, finals: Tensor) -> Tensor:
        """``following`` [T, B, ...] with ``finals`` [F, ...] where episodes ended, in place."""
        if self._finals:
            steps = torch.cat([torch.full_like(final.rows, final.step) for final in self._finals])
            following[steps, torch.cat([final.rows for final in self._finals])] = finals
        return following

    def next_observations(self, group: int) -> Tensor:
        """[T, B, N_group, observation_size] what a group saw after each step: the final observation where an episode
        ended, not the first one of the next.
        """
        following = torch.cat([self.observations[group][1:], self.last_observations[group].unsqueeze(0)])
        return self._with_finals(following, self.final_observations(group))

    def next_action_masks(self, group: int) -> Tensor | None:
        """[T, B, N_group, mask_size] the masks that go with ``next_observations``, or None."""
        masks, last = self.action_masks[group], self.last_action_masks[group]
        if masks is None or last is None:
            return None
        finals = [masks[0, :0]] + [mask for final in self._finals if (mask := final.action_masks[group]) is not None]
        return self._with_finals(torch.cat([masks[1:], last.unsqueeze(0)]), torch.cat(finals))

    def next_states(self) -> Tensor:
        """[T, B, state_size] the state after each step, the final one where an episode ended."""
        return self._with_finals(self.states[1:].clone(), self.final_states)

    def next_active(self) -> Tensor:
        """[T, B, N] bool: who was there after each step."""
        finals = torch.cat([self.active[0, :0], *(final.active for final in self._finals)])
        return self._with_finals(torch.cat([self.active[1:], self.last_active.unsqueeze(0)]), finals)

    @property
    def final_states(self) -> Tensor:
        """[F, state_size]."""
        if not self._finals:
            return self.states.new_zeros(0, self.spec.state_size)
        return torch.cat([final.states for final in self._finals])

    @property
    def final_places(self) -> list[tuple[int, int]]:
        """Step and environment of each of the ``final_states``."""
        return [(final.step, int(row)) for final in self._finals for row in final.rows]

    def final_observations(self, group: int) -> Tensor:
        """[F, N_group, observation_size] what a group saw last in episodes that ended inside the rollout."""
        if not self._finals:
            return self.observations[group].new_zeros(0, *self.observations[group].shape[2:])
        return torch.cat([final.observations[group] for final in self._finals])


@dataclass
class EpisodeStatistics:
    """Undiscounted returns and lengths of the episodes that ended in one rollout, and in which environments."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    successes: list[float] = field(default_factory=list)
    environments: list[int] = field(default_factory=list)

    def of(self, environments: slice) -> EpisodeStatistics:
        """Of some of the environments alone, counted from the first of them."""
        theirs = range(environments.start, environments.stop)
        places = [place for place, environment in enumerate(self.environments) if environment in theirs]
        return EpisodeStatistics(
            [self.returns[place] for place in places],
            [self.lengths[place] for place in places],
            [self.successes[place] for place in places] if self.successes else [],
            [self.environments[place] - environments.start for place in places],
        )


class Collector:
    """Steps an environment with an actor and fills a rollout; episodes go on across rollouts.

    Args:
        environment: stepped in place.
        rollout: the buffer to fill.
        seeds: [B] the environments' first seeds.
    """

    def __init__(self, environment: VectorEnvironment, rollout: Rollout, seeds: np.ndarray) -> None:
        self.environment, self.rollout = environment, rollout
        first = environment.reset(seeds)
        self._numpy_environment = isinstance(first.state, np.ndarray)
        self.observation = self._to_device(first)
        self.episode_returns = np.zeros(environment.batch_size)
        self.episode_lengths = np.zeros(environment.batch_size, dtype=np.int64)

    def _to_device(self, observation: Observation) -> Observation:
        device = self.rollout.device
        return Observation(
            tuple(as_tensor(o, device) for o in observation.observations),
            tuple(None if m is None else as_tensor(m, device) for m in observation.action_masks),
            as_tensor(observation.state, device),
            as_tensor(observation.active, device),
            None if observation.restarted is None else as_tensor(observation.restarted, device),
        )

    def _to_environment(self, actions: tuple[Tensor, ...]) -> tuple[Any, ...]:
        if self._numpy_environment:
            return tuple(action.cpu().numpy() for action in actions)
        return actions

    def collect(self, actor: Actor) -> EpisodeStatistics:
        """Fill the rollout with T steps."""
        rows = self.environment.batch_size * len(self.environment.spec.agents)
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if rows < SINGLE_THREAD_ROWS else threads)
        try:
            return self._collect(actor)
        except Exception as error:
            # Actions made of such numbers may be what an environment has choked on.
            if broken := broken_observation(self.environment.spec, self.observation):
                error.add_note(broken)
            raise
        finally:
            torch.set_num_threads(threads)

    def _collect(self, actor: Actor) -> EpisodeStatistics:
        rollout, successes = self.rollout, {}
        rollout.begin()
        actor.begin_rollout(rollout.steps, rollout.batch_size)
        for step in range(rollout.steps):
            decision = actor.act(self.observation, step)
            result = self.environment.step(self._to_environment(decision.environment_actions))
            rollout.record(step, self.observation, decision, result)
            if result.final is not None:
                actor.episodes_ended(rollout.terminated[step] | rollout.truncated[step])
                if result.success is not None:
                    successes[step] = as_tensor(result.success, rollout.device)
            self.observation = self._to_device(result.observation)
        rollout.finish(self.observation)
        return self._counted(successes)

    def _counted(self, successes: Mapping[int, Tensor]) -> EpisodeStatistics:
        """The episodes that ended in the rollout, of which the host learns when it is full, not step by step.

        Args:
            successes: [B] by step, where episodes ended.
        """
        statistics, rollout = EpisodeStatistics(), self.rollout
        active = None if rollout.all_active else rollout.active.cpu().numpy()
        rewards = self.environment.spec.team_rewards(rollout.rewards.cpu().numpy().astype(np.float64), active)
        for step, ended in enumerate(rollout.ended.cpu().numpy()):
            self.episode_returns += rewards[step]
            self.episode_lengths += 1
            if not ended.any():
                continue
            statistics.returns += self.episode_returns[ended].tolist()
            statistics.lengths += self.episode_lengths[ended].tolist()
            statistics.environments += np.flatnonzero(ended).tolist()
            if step in successes:
                statistics.successes += successes[step].cpu().numpy()[ended].astype(float).tolist()
            self.episode_returns[ended] = 0.0
            self.episode_lengths[ended] = 0
        return statistics

    def restart(self, seeds: np.ndarray, actor: Actor) -> None:
        """Begin new episodes everywhere; counts as truncation for the rollout's last step."""
        self.observation = self._to_device(self.environment.reset(seeds))
        actor.episodes_ended(torch.ones(self.environment.batch_size, dtype=torch.bool, device=self.rollout.device))
        self.episode_returns[:] = 0.0
        self.episode_lengths[:] = 0

    def get_state(self) -> dict[str, np.ndarray] | None:
        """The environment's state and the running episodes' sums; None when the environment does not support it."""
        state = self.environment.get_state()
        if state is None:
            return None
        counters = {"episode_returns": self.episode_returns.copy(), "episode_lengths": self.episode_lengths.copy()}
        return {**{f"environment.{key}": np.asarray(value) for key, value in state.items()}, **counters}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what ``get_state`` returned."""
        prefix = "environment."
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self.observation = self._to_device(self.environment.set_state(inner))
        self.episode_returns = np.array(state["episode_returns"])
        self.episode_lengths = np.array(state["episode_lengths"])


def as_tensor(values: Any, device: torch.device) -> Tensor:
    """What an environment hands over, as a tensor on the device; what lies there already is not copied.

    Args:
        values: a NumPy array, a tensor, or an array of whatever library lends its memory by DLPack (JAX).
        device: where it is to be.
    """
    if isinstance(values, Tensor | np.ndarray) or not hasattr(values, "__dlpack__"):
        return torch.as_tensor(values, device=device)
    return from_dlpack(values).to(device)
