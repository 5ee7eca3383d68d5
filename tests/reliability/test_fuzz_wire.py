"""`make fuzz`: changed messages on every method. None may be INTERNAL, leak memory, or cost others anything.

Half are changed as bytes, and mostly no message any more; half field by field. The methods are those of hmarl's own
protocol, of health, reflection, and the Open Inference Protocol.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from agent_process import AgentProcess
from healthy_client import AGENT, BUNDLE, HealthyClient
from hmarl.agent.v1 import agent_pb2 as pb
from hmarl.agent.v1.tensors import to_tensor
from hmarl.oip import open_inference_pb2 as oip
from hmarl.runtime.authority import Authority
from hmarl.sdk.clients.security import Security
from inference_client import infer_request
from processes import rss_mib
from secured import security, server_options, write_tokens
from wire_mutations import mutated, scrambled

pytestmark = pytest.mark.reliability
MESSAGES = int(os.environ.get("HMARL_FUZZ_MESSAGES", "140000"))
SEED = int(os.environ.get("HMARL_FUZZ_SEED", "1"))
_SERVICE = "/hmarl.agent.v1.AgentService/"
_INFERENCE = "/inference.GRPCInferenceService/"
_UNARY = {
    "Act": _SERVICE + "Act",
    "StartEpisode": _SERVICE + "StartEpisode",
    "EndEpisode": _SERVICE + "EndEpisode",
    "GetAgentInfo": _SERVICE + "GetAgentInfo",
    "Check": "/grpc.health.v1.Health/Check",
    "ServerLive": _INFERENCE + "ServerLive",
    "ServerReady": _INFERENCE + "ServerReady",
    "ModelReady": _INFERENCE + "ModelReady",
    "ServerMetadata": _INFERENCE + "ServerMetadata",
    "ModelMetadata": _INFERENCE + "ModelMetadata",
    "ModelInfer": _INFERENCE + "ModelInfer",
}
_STREAMED = {
    "StreamAct": _SERVICE + "StreamAct",
    "reflection": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
_WATCHED = {"Watch": "/grpc.health.v1.Health/Watch"}
_KINDS: dict[str, Any] = {
    "Act": pb.ActRequest,
    "StreamAct": pb.StreamActRequest,
    "StartEpisode": pb.StartEpisodeRequest,
    "EndEpisode": pb.EndEpisodeRequest,
    "GetAgentInfo": pb.GetAgentInfoRequest,
    "Check": health_pb2.HealthCheckRequest,
    "Watch": health_pb2.HealthCheckRequest,
    "reflection": reflection_pb2.ServerReflectionRequest,
    "ServerLive": oip.ServerLiveRequest,
    "ServerReady": oip.ServerReadyRequest,
    "ModelReady": oip.ModelReadyRequest,
    "ServerMetadata": oip.ServerMetadataRequest,
    "ModelMetadata": oip.ModelMetadataRequest,
    "ModelInfer": oip.ModelInferRequest,
}
_REFUSALS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
_PER_STREAM = 50
_KNOWN = ("certificate", "token", "stranger")
_TOKEN = "correct-horse-battery-staple"
_PER_SESSION = 500


def raw(data: bytes) -> bytes:
    """Neither the client's nor the server's message classes touch what is sent."""
    return data


def seeds_of(session_id: str) -> dict[str, list[bytes]]:
    """Valid messages of each method, to be mutated."""
    observation = np.zeros(18, np.float32)
    act = pb.ActRequest(session_id=session_id, step=1, observation=to_tensor(observation))
    masked = pb.ActRequest(
        session_id=session_id, step=2, observation=to_tensor(observation), action_mask=to_tensor(np.ones(5, np.bool_))
    )
    start = pb.StartEpisodeRequest(seed=2**63, sample=True, first_step=5, instruction_choice=3, diagnostics=True)
    return {
        "Act": [act.SerializeToString(), masked.SerializeToString()],
        "StreamAct": [pb.StreamActRequest(act=each).SerializeToString() for each in (act, masked)],
        "StartEpisode": [start.SerializeToString()],
        "EndEpisode": [pb.EndEpisodeRequest(session_id="x" * 22).SerializeToString()],
        "GetAgentInfo": [b""],
        "Check": [b"", b"\n\x1bhmarl.agent.v1.AgentService"],
        "Watch": [b"", b"\n\x1bhmarl.agent.v1.AgentService"],
        "reflection": [b":\x00", b"\x1a\x1dhmarl.agent.v1.AgentService.x", b'"\x00'],
        **inference_seeds(),
    }


def inference_seeds() -> dict[str, list[bytes]]:
    """The same of the Open Inference Protocol: rows by themselves, raw and typed, and a sequence's steps."""
    rows = {"observation": np.zeros((3, 18), np.float32)}
    row = {"observation": np.zeros((1, 18), np.float32)}
    sequence: dict[str, Any] = {"sequence_id": 5, "sample": True, "seed": 2**62, "instruction_choice": "common"}
    requests = [
        infer_request(AGENT, rows),
        infer_request(AGENT, rows, raw=False, outputs=["action"], priority=1),
        infer_request(AGENT, row, sample=True, seed="18446744073709551615", step=3),
        infer_request(AGENT, row, sequence_start=True, **sequence),
        infer_request(AGENT, row, sequence_id=5, step=9),
        infer_request(AGENT, row, sequence_id="a", sequence_start=True, sequence_end=True),
    ]
    model = oip.ModelReadyRequest(name=AGENT, version="1").SerializeToString()
    return {
        "ServerLive": [b""],
        "ServerReady": [b""],
        "ModelReady": [model],
        "ServerMetadata": [b""],
        "ModelMetadata": [model, model[:-3]],
        "ModelInfer": [request.SerializeToString() for request in requests],
    }


def fill_sessions(channel: grpc.Channel) -> str:
    """Open as many sessions as there may be, and act in each, so that their memory is not taken for a leak; returns the
    last one.
    """
    start = channel.unary_unary(_UNARY["StartEpisode"], raw, pb.StartEpisodeResponse.FromString)
    act = channel.unary_unary(_UNARY["Act"], pb.ActRequest.SerializeToString, raw)
    drawn = pb.StartEpisodeRequest(sample=True, diagnostics=True).SerializeToString()
    last = ""
    for _ in range(2000):
        try:
            last = start(drawn, timeout=10).session_id
        except grpc.RpcError:
            return last
        act(pb.ActRequest(session_id=last, observation=to_tensor(np.zeros(18, np.float32))), timeout=10)
    raise AssertionError("there is no limit on sessions")


def fresh_seeds(channel: grpc.Channel) -> dict[str, list[bytes]]:
    """Messages for a new session; none where the server has no room for one just now."""
    start = channel.unary_unary(_UNARY["StartEpisode"], raw, pb.StartEpisodeResponse.FromString)
    try:
        return seeds_of(start(b"", timeout=10).session_id)
    except grpc.RpcError:
        return {}


def unary_codes(
    channel: grpc.Channel, path: str, messages: Iterator[bytes], codes: Counter[str], texts: dict[str, str]
) -> None:
    call = channel.unary_unary(path, raw, raw)
    for message in messages:
        try:
            call(message, timeout=10)
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
            texts.setdefault(error.code().name, (error.details() or "")[:200])


def stream_codes(
    channel: grpc.Channel, path: str, messages: Iterator[bytes], codes: Counter[str], texts: dict[str, str]
) -> None:
    """Many messages over each stream; an error in-band is counted by its code, the stream's own as well."""
    call = channel.stream_stream(path, raw, raw)
    while batch := [message for _, message in zip(range(_PER_STREAM), messages, strict=False)]:
        answered = 0
        try:
            for reply in call(iter(batch), timeout=10):
                answered += 1
                if path.endswith("StreamAct"):
                    code = pb.StreamActResponse.FromString(reply).error.code
                    codes[next(each.name for each in grpc.StatusCode if each.value[0] == code)] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
            texts.setdefault(error.code().name, (error.details() or "")[:200])


def watch_codes(
    channel: grpc.Channel, path: str, messages: Iterator[bytes], codes: Counter[str], texts: dict[str, str]
) -> None:
    """Calls that stay open, each given up after its first answer."""
    watch = channel.stream_stream(path, raw, raw)
    for message in messages:
        call = watch(iter([message]), timeout=10)
        try:
            next(call)
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
            texts.setdefault(error.code().name, (error.details() or "")[:200])
        call.cancel()


class Door:
    """How an agent is reached, and what the fuzzing client shows of itself.

    Args:
        kind: ``plaintext``, ``certificate``, ``token`` (over TLS) or ``stranger``, who has none of those.
        folder: for certificates and tokens.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.options: list[str] = []
        self.security: Security | None = None
        self._credentials: grpc.ChannelCredentials | None = None
        if kind == "plaintext":
            return
        authority = Authority.create(folder / "keys")
        agent, client = authority.issue_agent(AGENT), authority.issue_client("fuzzer")
        ca = authority.certificate.read_bytes()
        if kind == "certificate":
            self.options = server_options(authority, agent)
            self.security = security(authority, client)
            self._credentials = grpc.ssl_channel_credentials(
                ca, client.key.read_bytes(), client.certificate.read_bytes()
            )
            return
        tokens, own = write_tokens(folder / "tokens", f"fuzzer {_TOKEN}"), write_tokens(folder / "own", _TOKEN)
        self.options = ["--tls-cert", str(agent.certificate), "--tls-key", str(agent.key), "--token-file", str(tokens)]
        self.security = security(authority, token_file=own)
        self._credentials = grpc.ssl_channel_credentials(ca)
        if kind == "token":
            shown = grpc.access_token_call_credentials(_TOKEN)
            self._credentials = grpc.composite_channel_credentials(self._credentials, shown)

    def channel(self, address: str) -> grpc.Channel:
        """To the agent."""
        return (
            grpc.insecure_channel(address)
            if self._credentials is None
            else grpc.secure_channel(address.replace("127.0.0.1", "localhost"), self._credentials)
        )


@pytest.mark.parametrize(("kind", "messages"), [("plaintext", MESSAGES), *((kind, MESSAGES // 4) for kind in _KNOWN)])
def test_mutated_messages(kind: str, messages: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(SEED)
    door = Door(kind, tmp_path)
    methods = {
        **{name: (unary_codes, path) for name, path in _UNARY.items()},
        **{name: (stream_codes, path) for name, path in _STREAMED.items()},
        **{name: (watch_codes, path) for name, path in _WATCHED.items()},
    }
    shares = dict.fromkeys(methods, messages // len(methods))
    with (
        AgentProcess(BUNDLE, AGENT, options=["--oip", *door.options]) as agent,
        HealthyClient(agent.address, security=door.security) as healthy,
    ):
        pid = agent.process.pid
        with door.channel(agent.address) as channel:
            seeds = seeds_of("x" * 22 if kind == "stranger" else fill_sessions(channel))

            def mutants(name: str, count: int) -> Iterator[bytes]:
                for number in range(count):
                    if number % _PER_SESSION == 0:  # a session that is not used for long gives way to others
                        seeds.update(fresh_seeds(channel))
                    message = generator.choice(seeds[name])
                    if number % 2:
                        yield scrambled(message, _KINDS[name], generator)
                    else:
                        yield mutated(message, generator)

            everything: dict[str, Counter[str]] = {name: Counter() for name in shares}
            texts: dict[str, str] = {}
            memory = 0.0
            for part in (0.1, 0.9):  # pools and caches fill during the first tenth
                for name, share in shares.items():
                    run, path = methods[name]
                    run(channel, path, mutants(name, int(share * part)), everything[name], texts)
                memory = memory or rss_mib(pid)
        after = rss_mib(pid)
    with capsys.disabled():
        print(f"\n{messages:,} mutated messages, {kind}, seed {SEED}: RSS {memory:.1f} -> {after:.1f} MiB")
        for name, codes in everything.items():
            print(f"  {name}: {dict(codes.most_common())}")
        print(f"  beside them, 200 Hz, 50 ms: acts | missed | wrong | p50 ms | p99 ms: {healthy.tally.row()}")
    allowed = {"UNAUTHENTICATED"} if kind == "stranger" else _REFUSALS
    unexpected = {name: codes for name, codes in everything.items() if set(codes) - allowed}
    assert not unexpected, (unexpected, texts)
    assert after <= 1.05 * memory
    assert healthy.tally.wrong == 0
    assert not healthy.tally.errors
