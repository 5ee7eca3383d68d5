"""Requests that an agent refuses, with the status code and the words, as a served agent answers them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf import text_format
from google.protobuf.message import Message

from hmarl.agent.v1 import agent_pb2 as pb
from hmarl.agent.v1 import agent_pb2_grpc
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.server import AgentServer
from hmarl.runtime.service import SERVICE
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import ServerSettings

AGENT = "discrete"
PLACEHOLDER = "SESSION---------------"  # as long as the session ids of an agent, whose bytes take its place
STEP = 3  # the session has acted at this step
OBSERVATION = np.array([0.0, 0.25, -0.5, 1.0, -2.0, 0.75], np.float32)
MASK = np.array([True, True, False, True, False])


def errors(bundle: Bundle) -> dict[str, Any]:
    """The file's content."""
    before: dict[str, Message] = {"start": pb.StartEpisodeRequest(seed=1), "act": _act()}
    refused = [
        {**_case(name, method, request), "code": code.name, "number": code.value[0], "message": message}
        for name, method, request, code, message in _answers(bundle)
    ]
    before_hex = {name: message.SerializeToString(deterministic=True).hex() for name, message in before.items()}
    return {"agent": AGENT, "placeholder": PLACEHOLDER, "before": before_hex, "refused": refused}


def _case(name: str, method: str, request: Message | bytes) -> dict[str, Any]:
    if isinstance(request, bytes):
        return {"name": name, "method": method, "hex": request.hex()}
    text = text_format.MessageToString(request, as_utf8=True)
    return {"name": name, "method": method, "text": text, "hex": request.SerializeToString(deterministic=True).hex()}


def _act(**changed: Any) -> pb.ActRequest:
    """A request in order, but for what is changed; None leaves a field out."""
    fields: dict[str, Any] = {"session_id": PLACEHOLDER, "step": STEP, "observation": to_tensor(OBSERVATION)}
    fields |= {"action_mask": to_tensor(MASK), **changed}
    return pb.ActRequest(**{name: value for name, value in fields.items() if value is not None})


def _with_number(value: float) -> pb.Tensor:
    observation = OBSERVATION.copy()
    observation[2] = value
    return to_tensor(observation)


def _requests() -> Iterator[tuple[str, str, Message | bytes]]:
    strange = pb.Tensor(data_type=9, shape=[6], data=OBSERVATION.tobytes())  # type: ignore[arg-type]
    negative = pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[-6], data=OBSERVATION.tobytes())
    short = pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[6], data=OBSERVATION.tobytes()[:-1])
    two = pb.Tensor(data_type=pb.DATA_TYPE_BOOL, shape=[5], data=b"\1\1\0\2\0")
    later = {"step": STEP + 1}
    yield "no message", "Act", b"\xff"
    yield "no session", "Act", _act(session_id=None, **later)
    yield "unknown session", "Act", _act(session_id="unknown", **later)
    yield "no observation", "Act", _act(observation=None, **later)
    yield "observation of another length", "Act", _act(observation=to_tensor(OBSERVATION[:5]), **later)
    yield "observation of another rank", "Act", _act(observation=to_tensor(OBSERVATION.reshape(1, 6)), **later)
    yield "observation of another type", "Act", _act(observation=to_tensor(np.arange(6)), **later)
    yield "observation of no type", "Act", _act(observation=strange, **later)
    yield "observation of a negative size", "Act", _act(observation=negative, **later)
    yield "observation of too few bytes", "Act", _act(observation=short, **later)
    yield "NaN", "Act", _act(observation=_with_number(float("nan")), **later)
    yield "infinity", "Act", _act(observation=_with_number(float("-inf")), **later)
    yield "no mask", "Act", _act(action_mask=None, **later)
    yield "mask of another length", "Act", _act(action_mask=to_tensor(MASK[:4]), **later)
    yield "mask of another type", "Act", _act(action_mask=to_tensor(MASK.astype(np.int64)), **later)
    yield "mask that is neither 0 nor 1", "Act", _act(action_mask=two, **later)
    yield "no legal action", "Act", _act(action_mask=to_tensor(np.zeros(5, np.bool_)), **later)
    yield "older step", "Act", _act(step=STEP - 1)
    yield "same step with other content", "Act", _act(observation=_with_number(7.0))
    yield "unknown instruction choice", "StartEpisode", pb.StartEpisodeRequest(seed=1, instruction_choice=9)  # type: ignore[arg-type]
    yield "bundle that is not held", "StartEpisode", pb.StartEpisodeRequest(seed=1, bundle_sha256="0" * 64)
    yield "description of a bundle that is not held", "GetAgentInfo", pb.GetAgentInfoRequest(bundle_sha256="0" * 64)
    yield "end of an unknown session", "EndEpisode", pb.EndEpisodeRequest(session_id="unknown")


def _answers(bundle: Bundle) -> Iterator[tuple[str, str, Message | bytes, grpc.StatusCode, str]]:
    logging.getLogger("hmarl.agent").addHandler(logging.NullHandler())  # says what it refuses
    server = AgentServer(ServerSettings(listen="127.0.0.1:0"))
    server.serve(Policy(bundle, AGENT))
    try:
        with grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            for name, method, request in _requests():
                yield name, method, request, *_refusal(channel, method, request)
    finally:
        server.stop(0)


def _refusal(channel: grpc.Channel, method: str, request: Message | bytes) -> tuple[grpc.StatusCode, str]:
    """The answer to a request, after an episode in which the agent has acted once."""
    stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
    session_id = stub.StartEpisode(pb.StartEpisodeRequest(seed=1)).session_id
    if len(session_id) != len(PLACEHOLDER):
        raise RuntimeError(f"session id: got {len(session_id)} characters, expected {len(PLACEHOLDER)}")
    stub.Act(_act(session_id=session_id))
    body = request if isinstance(request, bytes) else request.SerializeToString(deterministic=True)
    try:
        channel.unary_unary(f"/{SERVICE}/{method}")(body.replace(PLACEHOLDER.encode(), session_id.encode()))
    except grpc.RpcError as error:
        return error.code(), error.details().replace(session_id, PLACEHOLDER)
    raise RuntimeError(f"{method}: got an answer, expected a refusal of {request!r}")
