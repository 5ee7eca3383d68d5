"""Agents behind TLS, certificates and tokens for tests, made by hmarl-keys' own functions, and bare clients of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime.authority import Authority, Issued
from hmarl.sdk.clients.security import Security

LOCAL_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
OBSERVATION, MASK = to_tensor(np.zeros(6, np.float32)), to_tensor(np.ones(5, np.bool_))


def server_options(authority: Authority, agent: Issued, *more: object) -> list[str]:
    """Options of hmarl-agent for TLS with client certificates."""
    words = ["--tls-cert", agent.certificate, "--tls-key", agent.key, "--tls-client-ca", authority.certificate]
    return [str(word) for word in (*words, *more)]


def security(authority: Authority, client: Issued | None = None, **more: object) -> Security:
    """What a client of the authority shows."""
    own = {} if client is None else {"cert": client.certificate, "key": client.key}
    return Security(ca=authority.certificate, **own, **more)  # type: ignore[arg-type]


def write_tokens(path: Path, *lines: str) -> Path:
    """A token file that its owner alone may read; replaced whole."""
    other = path.with_suffix(".new")
    other.touch(0o600)
    other.write_text("".join(f"{line}\n" for line in lines))
    other.replace(path)
    return path


class Bare:
    """A client by the bare protocol, which sends what ``AgentClient`` never would."""

    def __init__(self, channel: grpc.Channel, token: str | None = None) -> None:
        self.channel = channel
        self.stub = agent_pb2_grpc.AgentServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def describe(self) -> agent_pb2.GetAgentInfoResponse:
        return self.stub.GetAgentInfo(agent_pb2.GetAgentInfoRequest(), timeout=20, metadata=self.metadata)

    def start(self) -> str:
        request = agent_pb2.StartEpisodeRequest(seed=1)
        return str(self.stub.StartEpisode(request, timeout=20, metadata=self.metadata).session_id)

    def request(self, session_id: str, step: int) -> agent_pb2.ActRequest:
        return agent_pb2.ActRequest(session_id=session_id, step=step, observation=OBSERVATION, action_mask=MASK)

    def act(self, session_id: str, step: int = 0) -> agent_pb2.ActResponse:
        return self.stub.Act(self.request(session_id, step), timeout=20, metadata=self.metadata)

    def stream(self, requests: Iterator[agent_pb2.StreamActRequest]) -> Iterator[agent_pb2.StreamActResponse]:
        return self.stub.StreamAct(requests, timeout=20, metadata=self.metadata)

    def end(self, session_id: str) -> agent_pb2.EndEpisodeResponse:
        request = agent_pb2.EndEpisodeRequest(session_id=session_id)
        return self.stub.EndEpisode(request, timeout=20, metadata=self.metadata)

    def healthy(self) -> bool:
        answer = self.health.Check(health_pb2.HealthCheckRequest(), timeout=20, metadata=self.metadata)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def bare(
    address: str,
    authority: Authority | None = None,
    client: Issued | None = None,
    token: str | None = None,
    options: Sequence[tuple[str, object]] = (),
) -> Iterator[Bare]:
    """A bare client; without an authority in plaintext."""
    if authority is None:
        channel = grpc.insecure_channel(address, [*LOCAL_OPTIONS, *options])
    else:
        own = () if client is None else (client.key.read_bytes(), client.certificate.read_bytes())
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes(), *own)
        channel = grpc.secure_channel(address, credentials, [*LOCAL_OPTIONS, *options])
    with channel:
        yield Bare(channel, token)
