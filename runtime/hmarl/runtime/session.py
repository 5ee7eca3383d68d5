"""A loaded agent policy, and the state of one episode that it acts in.

    policy = Policy(load_bundle(path), "agent_0")
    session = policy.session()
    session.reset(seed=1)
    action = session.act(observation).action

Sessions of one policy share its weights and nothing else; they may be used from several threads. Nothing in this module
knows a transport.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from hmarl.runtime import _graph
from hmarl.runtime.actions import ActionCheck
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.choices import InstructionChoice, checked_choice, drawn_noises
from hmarl.runtime.errors import (
    BundleError,
    InferenceError,
    NonFiniteError,
    ObservationError,
    SessionError,
    StepOrderError,
    UsageError,
    one_line,
)
from hmarl.runtime.inputs import InputCheck, Observation, checked_integer, flags
from hmarl.runtime.manifest import BoxSpace, branch_sizes
from hmarl.runtime.noise import NoiseSource, noise_for
from hmarl.runtime.observing import ENDED, RESTARTED, EpisodeStart, PolicyObserver
from hmarl.runtime.parity import Comparison, compare_outputs
from hmarl.runtime.settings import PROVIDER

__all__ = [
    "Action",
    "Comparison",
    "InstructionChoice",
    "Policy",
    "PolicySession",
    "check_finite",
    "compare_outputs",
    "noise_for",
]

_STEPS: Final = 2**64
_LAST_STEP: Final = 2**63 - 1  # that an int64 holds; steps may be larger
_isfinite: Final = np.isfinite


class Action:
    """What an agent does at one step.

    Attributes:
        action: Discrete: an int. MultiDiscrete: int64 [branches]. Box: float32 [D], in the environment's own units.
        step: the step that it belongs to.
        missed_steps: steps between the previous observation of the episode and this one that never arrived.
        replayed: True when this is the recorded reply of a repeated step.
        diagnostics: the policy's further outputs by name (instruction, logits, ...), without the batch dimension; empty
            when the episode was started without them.
    """

    __slots__ = ("action", "diagnostics", "missed_steps", "replayed", "step")

    def __init__(
        self,
        action: int | npt.NDArray[Any],
        step: int,
        missed_steps: int,
        replayed: bool,
        diagnostics: dict[str, npt.NDArray[Any]],
    ) -> None:
        self.action = action
        self.step = step
        self.missed_steps = missed_steps
        self.replayed = replayed
        self.diagnostics = diagnostics

    def __repr__(self) -> str:
        return f"Action({self.action!r}, step={self.step}, missed_steps={self.missed_steps}, replayed={self.replayed})"


class Policy:
    """One agent's policy, loaded, checked against the manifest and warmed up.

    Args:
        bundle: the verified bundle.
        agent_id: which agent of it.
        provider: ``cpu``, ``cuda`` or ``tensorrt``, the latter two optionally with ``:device``.
        like: for an agent that was not trained, the interchangeable one by whose graph it acts; its private random
            numbers are its own.

    Attributes:
        bundle: where it came from.
        agent: the manifest's entry of the agent.
        execution_provider: ONNX Runtime's name of the provider in use.
        like: as it was given.
        observer: is told what the sessions do that are made from now on; None: no one is.

    Raises:
        UsageError: unknown agent or provider, a provider that is not available, or ``like`` is not interchangeable.
        BundleError: the graph is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, agent_id: str, provider: str = PROVIDER, like: str | None = None) -> None:
        self.bundle = bundle
        self.agent = bundle.agent(agent_id, like)
        self.like = like
        self.observer: PolicyObserver | None = None
        _graph.check_manifest(self.agent)
        self._session = _graph.open_graph(bundle.read(self.agent.file), self.agent, provider)
        self.execution_provider: str = self._session.get_providers()[0]
        self._inputs = _graph.graph_inputs(self.agent)
        self._output_names = [tensor.name for tensor in _graph.graph_outputs(self.agent)]
        self._defaults = self._default_rows()
        self._warm_up()

    @property
    def recurrent(self) -> bool:
        """Whether the policy carries state from step to step."""
        return bool(self.agent.states)

    def session(self) -> PolicySession:
        """A new, independent session; call its ``reset`` first."""
        return PolicySession(self, self.observer)

    def run_batch(
        self, feeds: Mapping[str, npt.NDArray[Any]], *, finite: npt.NDArray[np.bool_] | bool = True
    ) -> dict[str, npt.NDArray[Any]]:
        """Run many rows at once, without any session.

        Args:
            feeds: arrays [B, *shape] by input name. Left out, states take their reset values, noises zero
                (deterministic), the mask all-true.
            finite: [B] bool, rows whose outputs have to be finite; True: all, False: none.

        Returns:
            All outputs by name: [B, *shape].

        Raises:
            ObservationError: an array of wrong name, shape or dtype.
            NonFiniteError: the policy computed NaN or infinity; names the agent, the row and the output.
        """
        observation = feeds.get(self.agent.observation.name)
        if observation is None:
            raise ObservationError(f"feeds: got {sorted(feeds)}, expected at least '{self.agent.observation.name}'")
        batch = observation.shape[0] if observation.ndim else 0
        unknown = feeds.keys() - self._defaults.keys()
        if unknown:
            raise ObservationError(f"feeds: got unknown {sorted(unknown)}, expected some of {sorted(self._defaults)}")
        complete = {}
        for tensor in self._inputs:
            array = feeds.get(tensor.name)
            if array is None:
                array = np.repeat(self._defaults[tensor.name], batch, axis=0)
            if array.shape != (batch, *tensor.shape) or array.dtype != _graph.DTYPES[tensor.dtype]:
                raise ObservationError(
                    f"{tensor.name}: got {array.dtype} {array.shape}, expected {tensor.dtype} "
                    f"{(batch, *tensor.shape)} (batch first)"
                )
            complete[tensor.name] = array
        outputs = dict(zip(self._output_names, self._session.run(self._output_names, complete), strict=True))
        if finite is not False:
            check_finite(self.agent.id, outputs, observation, finite)
        return outputs

    def make_buffers(self) -> _graph.Buffers:
        """Buffers for one row, set to the inputs' default values."""
        buffers = _graph.make_buffers(self._session, self.agent)
        for name, row in self._defaults.items():
            buffers.inputs[name][...] = row
        return buffers

    def _default_rows(self) -> dict[str, npt.NDArray[Any]]:
        """One row [1, *shape] for each input: zeros, legal masks, reset states."""
        rows = {tensor.name: np.zeros((1, *tensor.shape), _graph.DTYPES[tensor.dtype]) for tensor in self._inputs}
        if self.agent.action_mask is not None:
            rows[self.agent.action_mask.name][...] = True
        for state in self.agent.states:
            rows[state.input][...] = np.asarray(state.reset).reshape(state.shape)
        return rows

    def _warm_up(self) -> None:
        """Run a few times, so that the first real step is not the slow one and a broken graph fails here."""
        try:
            buffers = self.make_buffers()
            for _ in range(3):
                buffers.run()
        except Exception as error:  # ONNX Runtime raises many unrelated types
            raise BundleError(f"{self.agent.file}: the graph does not run: {one_line(error)}") from error


def check_finite(
    agent_id: str,
    outputs: Mapping[str, npt.NDArray[Any]],
    observation: npt.NDArray[Any],
    finite: npt.NDArray[np.bool_] | Literal[True] = True,
) -> None:
    """Refuse a batch of outputs of which a number that matters is none.

    Args:
        agent_id: whose.
        outputs: [B, *shape] by name.
        observation: [B, ...] of what.
        finite: [B] bool, rows that matter; True: all.

    Raises:
        NonFiniteError: names the agent, the first such output and its first row.
    """
    for name, array in outputs.items():
        if array.dtype.kind != "f" or 0 not in _isfinite(array).tobytes():  # cheaper than .all() on few rows
            continue
        wrong = ~_isfinite(array.reshape(len(array), -1))
        rows = np.flatnonzero(wrong.any(axis=1) & finite)
        if rows.size:
            row = rows[0]
            where = np.flatnonzero(wrong[row])[0]
            raise NonFiniteError(
                f"agent '{agent_id}': row {row}: the policy computed {name}[{where}] = {array[row].flat[where]}, "
                "expected finite numbers: look at its weights, and at what it observes there (the largest number is "
                f"{np.abs(observation[row]).max(initial=0):g})"
            )


class PolicySession:
    """The state of one episode of one agent. Made by ``Policy.session``.

    Args:
        policy: which acts.
        observer: is told what the session does, if there is one.
    """

    def __init__(self, policy: Policy, observer: PolicyObserver | None = None) -> None:
        agent = policy.agent
        self.policy = policy
        self._lock = threading.Lock()
        self._buffers = buffers = policy.make_buffers()
        self._run = buffers.run
        self._observation = buffers.inputs[agent.observation.name][0, ...]
        self._mask = buffers.inputs[agent.action_mask.name][0, ...] if agent.action_mask is not None else None
        self._step = buffers.inputs[agent.step.name] if agent.step is not None else None
        branches = branch_sizes(agent.action_space) if agent.action_mask is not None else None
        self._checked = InputCheck(self._observation.shape, branches, self._observation.dtype).checked
        self._states = [(buffers.inputs[state.input], buffers.outputs[state.output]) for state in agent.states]
        self._next_states = [(state.output, buffers.outputs[state.output][0, ...]) for state in agent.states]
        self._action = buffers.outputs[agent.action.name][0, ...]
        discrete = not isinstance(agent.action_space, BoxSpace)  # continuous ones are among the numbers
        self._action_problem = ActionCheck(agent.action_space).problem if discrete else None
        self._diagnostics = [(each.name, buffers.outputs[each.name][0, ...]) for each in agent.diagnostics]
        self._diagnostics_wanted = self._diagnostics
        self._numbers = buffers.numbers
        self._numbers_finite, self._numbers_finite_bytes = flags(self._numbers.shape)
        self._noises: list[tuple[npt.NDArray[Any], NoiseSource]] = []
        self._seed: int | None = None
        self._next_step = 0
        self._last_step = -1  # -1: nothing to replay
        self._last_missed = 0
        self.steps = 0
        self.missed_steps = 0
        self._observer = None if observer is None else observer.session(policy, buffers)

    def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
        diagnostics: bool = True,
        states: Mapping[str, npt.NDArray[Any]] | None = None,
        next_states: bool = False,
    ) -> None:
        """Start an episode; recurrent state takes its reset value, unless it is given.

        Args:
            seed: the episode's seed in [0, 2**64), the same for all agents of a team.
            sample: False for argmax or mean, True to draw actions.
            instruction_choice: how a policy with instructions chooses them: ``argmax``; ``sample``, with numbers of the
                agent's own; ``common``, with numbers that all agents of the team share. None: as the bundle's manifest
                says, where it says nothing ``common`` when sampling, else ``argmax``.
            first_step: the step of the first observation, above 0 when an episode is rejoined in the middle.
            diagnostics: whether actions carry the policy's further outputs.
            states: recurrent state to go on from, by input name; what is left out takes its reset value.
            next_states: whether actions carry the recurrent state that follows, by output name, among the diagnostics.

        Raises:
            UsageError: an argument out of range, or an instruction choice for a policy without instructions.
            ObservationError: a state of unknown name, wrong shape or dtype, or that is not finite.
        """
        seed = checked_integer("seed", seed)
        first_step = checked_integer("first_step", first_step)
        sources = self._noise_sources(sample, instruction_choice)
        begin = self._first_states(states or {})
        with self._lock:
            if self._observer is not None:
                if self._seed is not None:
                    self._observer.ended(self.steps, self.missed_steps, RESTARTED)
                start = EpisodeStart(seed, sample, instruction_choice, first_step, diagnostics, states)
                self._observer.began(start)
            self._seed = seed
            wanted = self._diagnostics if diagnostics else []
            self._diagnostics_wanted = [*wanted, *self._next_states] if next_states else wanted
            for noise in self.policy.agent.noises:
                self._buffers.inputs[noise.name][...] = 0.0
            self._noises = [(self._buffers.inputs[source.noise.name][0, ...], source) for source in sources]
            for (current, _), first in zip(self._states, begin, strict=True):
                current[0, ...] = first
            self._next_step, self._last_step = first_step, -1
            self.steps = self.missed_steps = 0

    def act(
        self,
        observation: Observation,
        action_mask: npt.NDArray[np.bool_] | None = None,
        *,
        step: int | None = None,
    ) -> Action:
        """Choose the action of one step.

        Args:
            observation: [observation_size] float32, finite, or a picture of the manifest's shape and type. Subclasses
                of arrays, memory maps among them, and big-endian float32 are taken as well.
            action_mask: [mask_size] bool, True where legal, when the policy has a mask input.
            step: None for the step after the last one. A gap is legal and counted; the last step again, with the same
                content, returns the recorded action and does not advance the state.

        Raises:
            ObservationError: wrong shape, dtype or content.
            StepOrderError: an older step, or the last one with other content.
            UsageError: the step is no integer in [0, 2**64): none follows the last of these.
            SessionError: no episode was started.
            NonFiniteError: the policy computed NaN or infinity; the step is not used up, the state has not changed.
            InferenceError: the graph did not run, or what it computed is no action of its space, or one that the mask
                excludes; the same holds.
        """
        with self._lock:
            if self._observer is None:
                return self._act(observation, action_mask, step)
            began_ns = time.monotonic_ns()
            try:
                action = self._act(observation, action_mask, step)
            except Exception as error:
                asked = step if type(step) is int else self._next_step
                self._observer.refused(began_ns, asked, observation, action_mask, error)
                raise
            self._observer.acted(began_ns, action, self._buffers)
            return action

    def named(self, session_id: str) -> None:
        """Tell who observes it by which id the session is known."""
        if self._observer is not None:
            self._observer.named(session_id)

    def end(self, reason: str = ENDED) -> None:
        """Tell who observes it that the episode is over, and why: one of the reasons in ``observing``.

        Waits for nothing: an act that is under way is told after it.
        """
        if self._observer is not None:
            self._observer.ended(self.steps, self.missed_steps, reason)

    def _act(self, observation: Observation, action_mask: npt.NDArray[np.bool_] | None, step: int | None) -> Action:
        """What ``act`` does, within the session's lock."""
        if self._seed is None:
            raise SessionError("no episode has been started: call reset(seed) first")
        observation, action_mask = self._checked(observation, action_mask)
        missed = 0
        if step is None:
            step = self._next_step
        elif step != self._next_step or type(step) is not int:
            step = checked_integer("step", step)
            if step < self._next_step:
                return self._replay(observation, action_mask, step)
            missed = step - self._next_step
        if step >= _STEPS:
            checked_integer("step", step)  # which refuses it
        self._last_step = -1  # the buffers that a replay reads are about to change
        self._observation[...] = observation
        if self._mask is not None:
            self._mask[...] = action_mask
        if self._step is not None:
            self._step[...] = min(step, _LAST_STEP)
        for buffer, source in self._noises:
            buffer[...] = source.draw(self._seed, step)
        try:
            self._run()
        except Exception as error:  # ONNX Runtime raises many unrelated types
            agent_id = self.policy.agent.id
            raise InferenceError(f"agent '{agent_id}': step {step}: inference failed: {error}") from error
        _isfinite(self._numbers, self._numbers_finite)
        if 0 in self._numbers_finite_bytes:
            raise self._not_finite(step)
        action = self._chosen()
        if self._action_problem is not None and (problem := self._action_problem(action, self._mask)) is not None:
            raise InferenceError(
                f"agent '{self.policy.agent.id}': step {step}: the policy computed no action that it has: {problem}; "
                "none is handed out and its state has not changed: go on with the next observation, and mend the graph"
            )
        for current, following in self._states:
            current[...] = following
        self._next_step, self._last_step, self._last_missed = step + 1, step, missed
        self.steps += 1
        self.missed_steps += missed
        return self._reply(action, step, missed, replayed=False)

    def _chosen(self) -> int | npt.NDArray[Any]:
        """The action that lies in the output buffers, copied out."""
        return self._action.copy() if self._action.ndim else self._action.item()

    def _reply(self, action: int | npt.NDArray[Any], step: int, missed: int, *, replayed: bool) -> Action:
        """An action with the diagnostics that lie in the output buffers, copied out."""
        wanted = self._diagnostics_wanted
        diagnostics = {name: array.copy() for name, array in wanted} if wanted else {}
        return Action(action, step, missed, replayed, diagnostics)

    def _not_finite(self, step: int) -> NonFiniteError:
        """What is wrong with the output buffers: the first output that is not finite, and how large the input was."""
        outputs = self._buffers.outputs
        name = next(name for name, row in outputs.items() if not np.isfinite(row).all())
        where = np.flatnonzero(~np.isfinite(outputs[name]))[0]
        return NonFiniteError(
            f"agent '{self.policy.agent.id}': step {step}: the policy computed {name}[{where}] = "
            f"{outputs[name].flat[where]}, expected "
            "finite numbers; no action is handed out and its state has not changed: go on with the next observation "
            f"(the largest number of this one is {np.abs(self._observation).max(initial=0.0):g})"
        )

    def _replay(self, observation: Observation, action_mask: npt.NDArray[np.bool_] | None, step: int) -> Action:
        """The reply of the last step once more; the input buffers still hold what it was computed from."""
        if step != self._last_step:
            raise StepOrderError(f"step: got {step}, expected {self._next_step} or later (steps increase strictly)")
        same = observation.tobytes() == self._observation.tobytes()
        if same and self._mask is not None and action_mask is not None:
            same = action_mask.tobytes() == self._mask.tobytes()
        if not same:
            raise StepOrderError(
                f"step: got {step} again with other content; repeat it unchanged, "
                f"or go on with {self._next_step} or later"
            )
        return self._reply(self._chosen(), step, self._last_missed, replayed=True)

    def _first_states(self, given: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """What an episode begins with: [*shape] of each state, given or its reset value."""
        agent = self.policy.agent
        unknown = given.keys() - {state.input for state in agent.states}
        if unknown:
            known = [state.input for state in agent.states]
            raise ObservationError(f"states: got unknown {sorted(unknown)}, agent '{agent.id}' has {known}")
        begin = []
        for state in agent.states:
            first = given.get(state.input)
            if first is None:
                first = np.asarray(state.reset).reshape(state.shape)
            elif first.dtype != state.dtype or first.shape != tuple(state.shape):
                raise ObservationError(
                    f"{state.input}: got {first.dtype} {first.shape}, expected {state.dtype} {tuple(state.shape)}"
                )
            elif not np.isfinite(first).all():
                raise ObservationError(f"{state.input}: got NaN or infinity, expected finite numbers")
            begin.append(first)
        return begin

    def _noise_sources(self, sample: bool, choice: InstructionChoice | None) -> list[NoiseSource]:
        """Sources of the noise inputs that are drawn; the others stay zero, which means deterministic."""
        agent = self.policy.agent
        choice = checked_choice(choice)
        if choice is not None and all(noise.purpose != "instruction" for noise in agent.noises):
            raise UsageError(
                f"instruction_choice: got '{choice}', but agent '{agent.id}' has no instructions to choose"
            )
        return [NoiseSource(noise, agent.id, stream) for noise, stream in drawn_noises(agent, sample, choice)]
