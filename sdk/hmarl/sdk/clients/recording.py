"""Records what a client asked for and was given; the extra ``record``. See ``hmarl.runtime.recording``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.tensors import write_tensor
from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.manifest import AgentModel
from hmarl.runtime.observing import ENDED, REPLACED
from hmarl.runtime.recording.agent import (
    about_process,
    act_bytes,
    recorded_step,
    refused_act,
    timed,
    write_request,
)
from hmarl.runtime.recording.recorder import CLIENT, RecordedEpisode, Recorder, session_digest
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.sdk.clients.agent import Action

Array = npt.NDArray[Any]


@dataclass
class _Delivery:
    """How the act that is under way comes by its action."""

    timeout_s: float
    fallback_kind: str = ""


class ClientRecorder:
    """Records one client's episodes. Its acts come one at a time, as the client's do.

    Args:
        settings: where, and how much.
        model: of the agent, as its server describes it.
        source: the server's address.

    Raises:
        UsageError: the folder cannot be made, or is not to be written to.
    """

    def __init__(self, settings: RecordSettings, model: AgentModel, source: str) -> None:
        about = {**about_process(), "source": source}
        self._recorder = Recorder(settings, CLIENT, model.id, about, act_bytes(model))
        self._seen = np.dtype(model.observation.dtype)
        self._model = model
        self._episode: RecordedEpisode | None = None
        self._delivery = _Delivery(0.0)
        self._steps = 0

    def takes_over(self, model: AgentModel) -> None:
        """Episodes that begin from now on are of another bundle, in which this is the agent's model."""
        self._model = model

    def began(
        self, request: agent_pb2.StartEpisodeRequest, session_id: str, info: agent_pb2.GetAgentInfoResponse
    ) -> None:
        """An episode was started, or goes on with another bundle; ``info`` says on what."""
        self._end(REPLACED)
        said = {"sha256": info.bundle_sha256, "agent_id": info.agent_id, "name": info.bundle_name}
        said["agent_manifest"] = info.agent_manifest_json
        states = [(state.input, state.output) for state in self._model.states]
        self._episode = self._recorder.episode(info.bundle_sha256, request, {}, states, lambda: said)
        self._episode.session = session_digest(session_id)
        self._steps = 0

    def asks(self, timeout_s: float) -> int:
        """An act begins; returns when, of ``time.monotonic_ns``."""
        self._delivery = _Delivery(timeout_s)
        return time.monotonic_ns()

    def falls_back(self, kind: str) -> None:
        """The act that is under way gets no fresh action."""
        self._delivery.fallback_kind = kind

    def acted(self, began_ns: int, observation: Array, mask: Array | None, action: Action, session_id: str) -> None:
        """It has its action, in this session."""
        if self._episode is None:
            return
        self._steps += 1
        done = np.array(action.action), {name: np.array(array) for name, array in action.diagnostics.items()}
        values = (
            began_ns,
            time.monotonic_ns(),
            time.time_ns(),
            (np.array(observation), None if mask is None else np.array(mask)),
            (action.step, action.missed_steps, action.replayed),
            done,
            self._told(action.fresh, session_id),
        )
        self._recorder.act(self._episode, action.step, _act, values)

    def refused(
        self, began_ns: int, step: int, observation: object, mask: object, error: BaseException, session_id: str | None
    ) -> None:
        """It ended with an error."""
        if self._episode is None:
            return
        step = recorded_step(step)
        values = (
            began_ns,
            time.monotonic_ns(),
            time.time_ns(),
            step,
            (_copied(observation, self._seen), _copied(mask, np.dtype(np.bool_))),
            (type(error).__name__, str(error)),
            self._told(False, session_id or ""),
        )
        self._recorder.act(self._episode, step, _refused, values)

    def ended(self) -> None:
        """The episode is over."""
        self._end(ENDED)

    def close(self) -> None:
        """Write what waits and finish the file."""
        self._recorder.close()

    def _end(self, reason: str) -> None:
        if self._episode is not None:
            self._recorder.end(self._episode, self._steps, 0, reason)
            self._episode = None

    def _told(self, fresh: bool, session_id: str) -> tuple[bool, str, float, str]:
        delivery = self._delivery
        return fresh, delivery.fallback_kind, delivery.timeout_s * 1e6, session_id


def _act(
    began_ns: int,
    ended_ns: int,
    wall_ns: int,
    given: tuple[Array, Array | None],
    about: tuple[int, int, bool],
    done: tuple[Array, Mapping[str, Array]],
    told: tuple[bool, str, float, str],
) -> pb.Act:
    """The message of an act; in the writing thread."""
    step, missed_steps, replayed = about
    act = timed(began_ns, ended_ns, wall_ns)
    write_request(act.request, step, *given)
    response = act.response
    response.step, response.missed_steps, response.replayed = step, missed_steps, replayed
    write_tensor(response.action, done[0])
    for name, array in done[1].items():
        write_tensor(response.diagnostics[name], array)
    _deliver(act, told)
    return act


def _refused(
    began_ns: int,
    ended_ns: int,
    wall_ns: int,
    step: int,
    given: tuple[Array | None, Array | None],
    error: tuple[str, str],
    told: tuple[bool, str, float, str],
) -> pb.Act:
    """The message of an act that ended with an error; in the writing thread."""
    act = refused_act(began_ns, ended_ns, wall_ns, step, given, error)
    _deliver(act, told)
    return act


def _deliver(act: pb.Act, told: tuple[bool, str, float, str]) -> None:
    delivery, session_id = act.delivery, told[3]
    delivery.fresh, delivery.fallback_kind, delivery.timeout_us = told[:3]
    delivery.session = session_digest(session_id) if session_id else ""


def _copied(given: object, dtype: np.dtype[Any]) -> Array | None:
    """A copy of what was given, where it is an array of the expected type."""
    return np.array(given) if isinstance(given, np.ndarray) and given.dtype == dtype else None
