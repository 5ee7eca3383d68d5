"""Records the sessions of an agent's policy: an observer of it, see ``hmarl.runtime.observing``."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
import weakref
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import INSTRUCTION_CHOICES
from hmarl.agent.v1.tensors import to_tensor, write_tensor
from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime import __version__
from hmarl.runtime._graph import DTYPES, graph_outputs
from hmarl.runtime.errors import one_line
from hmarl.runtime.manifest import AgentModel, to_json
from hmarl.runtime.observing import EpisodeStart
from hmarl.runtime.recording.recorder import AGENT, LAST_STEP, RecordedEpisode, Recorder, session_digest
from hmarl.runtime.recording.settings import RecordSettings

if TYPE_CHECKING:
    from hmarl.runtime._graph import Buffers
    from hmarl.runtime.session import Action, Policy

Array = npt.NDArray[Any]
_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(np.bool_)
_now_ns, _wall_ns = time.monotonic_ns, time.time_ns


def about_process() -> dict[str, str]:
    """What may matter when numbers are not the same elsewhere."""
    return {
        "hmarl_version": __version__,
        "onnxruntime_version": version("onnxruntime"),
        "numpy_version": np.__version__,
        "python_version": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "byte_order": sys.byteorder,
        "process_id": str(os.getpid()),
        "monotonic_ns": str(_now_ns()),
        "wall_ns": str(_wall_ns()),
    }


def act_bytes(agent: AgentModel) -> int:
    """The numbers of one act: what it is given and all that it computes."""
    masks = [] if agent.action_mask is None else [agent.action_mask]
    tensors = (agent.observation, *masks, *graph_outputs(agent))
    return sum(math.prod(each.shape) * DTYPES[each.dtype].itemsize for each in tensors)


class AgentRecorder:
    """Records all sessions that are made of the policies that it observes.

    Args:
        settings: where, and how much.
        agent: whose.

    Raises:
        UsageError: the folder cannot be made, or is not to be written to.
    """

    def __init__(self, settings: RecordSettings, agent: AgentModel) -> None:
        self.recorder = Recorder(settings, AGENT, agent.id, about_process(), act_bytes(agent))
        self._layouts: weakref.WeakKeyDictionary[Policy, _Layout] = weakref.WeakKeyDictionary()

    def session(self, policy: Policy, buffers: Buffers) -> _SessionRecorder:
        """See ``PolicyObserver``."""
        layout = self._layouts.get(policy)
        if layout is None:
            layout = self._layouts[policy] = _Layout(policy, buffers)
        return _SessionRecorder(self.recorder, layout, buffers)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.recorder.folder

    def close(self) -> None:
        """Write what waits and finish the file."""
        self.recorder.close()


class _Layout:
    """Where the outputs of a policy lie, and what is said of it; for all of its sessions.

    Args:
        policy: which.
        buffers: of any session.
    """

    def __init__(self, policy: Policy, buffers: Buffers) -> None:
        self.agent = agent = policy.agent
        self.bundle_sha256 = policy.bundle.sha256
        self.state_names = [(state.input, state.output) for state in agent.states]
        self._policy = weakref.ref(policy)
        begin = _address(buffers.numbers)
        self._floats: list[tuple[str, int, int, tuple[int, ...]]] = []
        self.others: list[str] = []
        for name, array in buffers.outputs.items():
            if array.dtype == _FLOAT32:
                first = (_address(array) - begin) // array.itemsize
                self._floats.append((name, first, first + array.size, array.shape[1:]))
            else:
                self.others.append(name)

    def bundle(self) -> Mapping[str, str]:
        """What the files say of the bundle; in the writing thread."""
        policy = self._policy()
        said = {"sha256": self.bundle_sha256, "agent_id": self.agent.id, "agent_manifest": to_json(self.agent)}
        if policy is not None:
            manifest = policy.bundle.manifest
            said |= {"name": manifest.name, "path": str(policy.bundle.path), "provider": policy.execution_provider}
            said |= {"manifest": to_json(manifest), "like": policy.like or ""}
        return said

    def act(
        self,
        began_ns: int,
        ended_ns: int,
        wall_ns: int,
        action: tuple[int, int, bool],
        given: tuple[Array, Array | None],
        numbers: Array,
        others: list[Array],
    ) -> pb.Act:
        """The message of an act; in the writing thread."""
        step, missed_steps, replayed = action
        act = timed(began_ns, ended_ns, wall_ns)
        write_request(act.request, step, *given)
        response = act.response
        response.step, response.missed_steps, response.replayed = step, missed_steps, replayed
        outputs = [(name, numbers[first:last].reshape(shape)) for name, first, last, shape in self._floats]
        outputs += zip(self.others, others, strict=True)
        for name, array in outputs:
            write_tensor(response.action if name == self.agent.action.name else response.diagnostics[name], array)
        return act


class _SessionRecorder:
    """Records one session; see ``SessionObserver``."""

    def __init__(self, recorder: Recorder, layout: _Layout, buffers: Buffers) -> None:
        agent = layout.agent
        self._recorder = recorder
        self._layout = layout
        self._episode: RecordedEpisode | None = None
        self._observation = buffers.inputs[agent.observation.name][0, ...]
        self._mask = None if agent.action_mask is None else buffers.inputs[agent.action_mask.name][0, ...]
        self._numbers = buffers.numbers
        self._others = [buffers.outputs[name][0, ...] for name in layout.others]

    def began(self, start: EpisodeStart) -> None:
        layout = self._layout
        request = agent_pb2.StartEpisodeRequest(
            seed=start.seed,
            sample=start.sample,
            instruction_choice=INSTRUCTION_CHOICES[start.instruction_choice],
            first_step=start.first_step,
            diagnostics=start.diagnostics,
        )
        states = {name: to_tensor(array) for name, array in (start.states or {}).items()}
        self._episode = self._recorder.episode(layout.bundle_sha256, request, states, layout.state_names, layout.bundle)

    def named(self, session_id: str) -> None:
        if self._episode is not None:
            self._episode.session = session_digest(session_id)

    def acted(self, began_ns: int, action: Action, buffers: Buffers) -> None:
        episode, mask = self._episode, self._mask
        if episode is None:
            return
        values = (
            began_ns,
            _now_ns(),
            _wall_ns(),
            (action.step, action.missed_steps, action.replayed),
            (self._observation.copy(), None if mask is None else mask.copy()),
            self._numbers.copy(),
            [each.copy() for each in self._others],
        )
        self._recorder.act(episode, action.step, self._layout.act, values)

    def refused(self, began_ns: int, step: int, observation: object, action_mask: object, error: Exception) -> None:
        if self._episode is None:
            return
        given = (_copied(observation, self._observation), _copied(action_mask, self._mask))
        step = recorded_step(step)
        values = began_ns, _now_ns(), _wall_ns(), step, given, (type(error).__name__, str(error))
        self._recorder.act(self._episode, step, refused_act, values)

    def ended(self, steps: int, missed_steps: int, reason: str) -> None:
        if self._episode is not None:
            self._recorder.end(self._episode, steps, missed_steps, reason)


def recorded_step(step: int) -> int:
    """The step of an act that was refused; 0 where no message holds it: it may be what was wrong."""
    return step if 0 <= step <= LAST_STEP else 0


def refused_act(
    began_ns: int,
    ended_ns: int,
    wall_ns: int,
    step: int,
    given: tuple[Array | None, Array | None],
    error: tuple[str, str],
) -> pb.Act:
    """The message of an act that ended with an error; in the writing thread."""
    act = timed(began_ns, ended_ns, wall_ns)
    write_request(act.request, step, *given)
    act.refusal.kind, act.refusal.message = error[0], one_line(error[1])
    return act


def timed(began_ns: int, ended_ns: int, wall_ns: int) -> pb.Act:
    """A message of when an act was; ``wall_ns`` is the time of day when it had ended."""
    took_ns = ended_ns - began_ns
    return pb.Act(monotonic_ns=began_ns, wall_ns=wall_ns - took_ns, latency_us=took_ns / 1e3)


def write_request(request: agent_pb2.ActRequest, step: int, observation: Array | None, mask: Array | None) -> None:
    """What an act was given, where it has the form of it."""
    request.step = step
    if observation is not None:
        write_tensor(request.observation, observation)
    if mask is not None:
        write_tensor(request.action_mask, mask)


def _copied(given: object, like: Array | None) -> Array | None:
    """A copy of what was given, where it has the form of what is expected; its content may be what is wrong."""
    if isinstance(given, np.ndarray) and like is not None and (given.dtype, given.shape) == (like.dtype, like.shape):
        return np.array(given)
    return None


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
