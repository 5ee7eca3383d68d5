"""Requests and replies of every method of hmarl.agent.v1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from google.protobuf.message import Message

from hmarl.agent.v1 import agent_pb2 as pb
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.manifest import to_json

SESSION = "fH2kXkcM2oUJ5Fz0pPb2Hw"  # a session's id is any text


def messages(bundle: Bundle) -> Iterator[tuple[str, str, Message]]:
    """(name, method, message), requests before replies."""
    yield from _description(bundle)
    yield from _episode(bundle)
    yield from _acts()


def _description(bundle: Bundle) -> Iterator[tuple[str, str, Message]]:
    method, manifest = "GetAgentInfo", bundle.manifest
    yield "description asked for", method, pb.GetAgentInfoRequest()
    yield "description of a bundle asked for", method, pb.GetAgentInfoRequest(bundle_sha256=bundle.sha256)
    yield (
        "description",
        method,
        pb.GetAgentInfoResponse(
            agent_id="continuous",
            agent_manifest_json=to_json(bundle.agent("continuous")),
            bundle_name=manifest.name,
            bundle_sha256=bundle.sha256,
            algorithm=manifest.algorithm,
            execution_provider="CPUExecutionProvider",
            hmarl_version="0.1.0",
            control_period_seconds=0.1,
            environment_json=to_json(manifest.environment),
        ),
    )


def _episode(bundle: Bundle) -> Iterator[tuple[str, str, Message]]:
    start = pb.StartEpisodeRequest
    yield "episode with defaults", "StartEpisode", start()
    yield (
        "episode with everything",
        "StartEpisode",
        start(
            seed=2**64 - 1,
            sample=True,
            instruction_choice=pb.INSTRUCTION_CHOICE_COMMON,
            first_step=2**53 + 1,
            diagnostics=True,
            bundle_sha256=bundle.sha256,
        ),
    )
    yield (
        "episode started",
        "StartEpisode",
        pb.StartEpisodeResponse(
            session_id=SESSION, state_reset_mid_episode=True, agent_id="discrete", bundle_sha256=bundle.sha256
        ),
    )
    yield "episode ends", "EndEpisode", pb.EndEpisodeRequest(session_id=SESSION)
    yield "episode ended", "EndEpisode", pb.EndEpisodeResponse(steps=20, missed_steps=1)


def _acts() -> Iterator[tuple[str, str, Message]]:
    observation = to_tensor(np.array([0.0, -0.25, 1.5, 3.0e38, 1e-45, -2.0], np.float32))
    mask = to_tensor(np.array([True, False, True, False, True]))
    first = pb.ActRequest(session_id=SESSION, observation=observation)
    act = pb.ActRequest(session_id=SESSION, step=300, observation=observation, action_mask=mask)
    yield "act at step 0 without a mask", "Act", first
    yield "act with a mask", "Act", act
    yield (
        "act of many numbers",
        "Act",
        pb.ActRequest(session_id=SESSION, step=1, observation=to_tensor(np.arange(200, dtype=np.float32))),
    )
    picture = to_tensor(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 11)
    yield "act on a picture", "Act", pb.ActRequest(session_id=SESSION, step=2, observation=picture)
    discrete = pb.ActResponse(step=300, action=to_tensor(3), missed_steps=2, replayed=True)
    yield "discrete action", "Act", discrete
    yield "action of several branches", "Act", pb.ActResponse(step=1, action=to_tensor(np.array([2, 0])))
    continuous = pb.ActResponse(action=to_tensor(np.array([0.5, -1.0], np.float32)))
    continuous.diagnostics["instruction"].CopyFrom(to_tensor(np.array(2)))
    yield "continuous action with a diagnostic", "Act", continuous
    yield "act of a stream", "StreamAct", pb.StreamActRequest(act=act)
    yield "act of a stream with metadata", "StreamAct", pb.StreamActRequest(act=act, metadata={"x-request-id": "m/7"})
    yield "action of a stream", "StreamAct", pb.StreamActResponse(act=discrete)
    error = pb.StreamActError(step=300, code=5, message=f"session '{SESSION}' is not open")
    yield "refusal of a stream", "StreamAct", pb.StreamActResponse(error=error)
