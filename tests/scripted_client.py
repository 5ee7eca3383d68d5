"""A client's scripts taken through by hand, with replies and failures of every kind, by a clock that is told."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.status import Code
from hmarl.runtime.bundle import Bundle, to_json
from hmarl.sdk.clients import link, remote_episode
from hmarl.sdk.clients.link import LinkWatch
from hmarl.sdk.clients.operations import Act, CallFailed, Operation, Start
from hmarl.sdk.clients.remote_episode import RemoteEpisode
from hmarl.sdk.fallback import Fallback, NoOp, Situation
from told_clock import Clock

OBSERVATION = np.asarray([0.5, -1.0, 2.0, 0.0, 3.0, -0.25], np.float32)
MASK = np.asarray([True, False, True, True, False])


@dataclass(frozen=True)
class Noting(Fallback):
    """Notes what it was told; the action 2, or whatever ``then`` decides."""

    told: list[Situation] = field(default_factory=list)
    then: Fallback = field(default_factory=lambda: NoOp(2))
    rejoins: bool = True

    def decide(self, situation: Situation) -> Any:
        self.told.append(situation)
        return self.then.decide(situation)

    def may_rejoin(self, situation: Situation) -> bool:
        self.told.append(situation)
        return self.rejoins


@dataclass(frozen=True)
class Always(Fallback):
    """One array, again and again."""

    action: Any

    def decide(self, situation: Situation) -> Any:
        return self.action


def new_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """By which the client and its link judge from now on."""
    told = Clock()
    monkeypatch.setattr(remote_episode, "now_s", told)
    monkeypatch.setattr(link, "now_s", told)
    return told


def info_of(bundle: Bundle, agent: str = "agent_0", sha256: str = "a1") -> agent_pb2.GetAgentInfoResponse:
    return agent_pb2.GetAgentInfoResponse(
        agent_id=agent, agent_manifest_json=to_json(bundle.agent(agent)), bundle_name="toy", bundle_sha256=sha256
    )


Make = Callable[..., RemoteEpisode]


def maker(toy_bundle: Bundle, clock: Clock, fallback: Noting) -> Make:
    """Makes a client's episode, started as session "s0" at a step unless ``first_step`` is None."""

    def make(first_step: int | None = 7, **options: Any) -> RemoteEpisode:
        chosen: dict[str, Any] = {"rejoin": True, "diagnostics": False, "allow_bundle_change": False}
        chosen |= {"timeout_s": 2.0, "fallback": fallback} | options
        info = chosen.pop("info", None) or info_of(toy_bundle)
        episode = RemoteEpisode(info, LinkWatch(), source="robot:1", **chosen)
        if first_step is not None:
            request = episode.starting(5, True, "sample", first_step)
            script = episode.start(request, clock.now + 10.0)
            assert next(script) == Start(request, 0.5)
            assert finished(script, session("s0")) is None
        return episode

    return make


def session(name: str, sha256: str = "a1", agent: str = "agent_0", reset: bool = False) -> Any:
    return agent_pb2.StartEpisodeResponse(
        session_id=name, agent_id=agent, bundle_sha256=sha256, state_reset_mid_episode=reset
    )


def reply(action: int = 3, step: int = 7, **fields: Any) -> Any:
    tensor = agent_pb2.Tensor(data_type=agent_pb2.DATA_TYPE_INT64, data=action.to_bytes(8, "little"))
    return agent_pb2.ActResponse(step=step, action=tensor, **fields)


def failure(code: Code, heard: bool = False) -> CallFailed:
    return CallFailed(code, "so it is", heard=heard)


def answer(script: Generator[Operation, Any, Any], outcome: Any) -> Operation:
    """What is asked for next, after this response or failure."""
    return script.throw(outcome) if isinstance(outcome, Exception) else script.send(outcome)


def finished(script: Generator[Operation, Any, Any], outcome: Any) -> Any:
    """What the script returns after this response or failure, which has to be the last."""
    with pytest.raises(StopIteration) as end:
        answer(script, outcome)
    return end.value.value


def raised(script: Generator[Operation, Any, Any], outcome: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as error:
        answer(script, outcome)
    return str(error.value)


def acting(episode: RemoteEpisode) -> tuple[Generator[Operation, Any, Any], Act]:
    """An act of the episode, and what it asks for first."""
    script = episode.act(OBSERVATION, MASK)
    first = next(script)
    assert isinstance(first, Act)
    return script, first
