"""What the synchronous and the asyncio client share: options, the check of who is served, errors."""

from __future__ import annotations

import time

import grpc

from hmarl.agent.v1 import agent_pb2
from hmarl.sdk.agent import AgentError, AgentStatistics, check_spec
from hmarl.sdk.errors import UsageError
from hmarl.sdk.fallback import Fail, Fallback
from hmarl.sdk.remote_episode import RemoteEpisode, described_agent
from hmarl.sdk.spaces import AgentSpec

# gRPC waits up to two minutes between attempts to reconnect unless told otherwise: too long for a control loop.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)
RETRY_PAUSE_S = 0.02


class ClientBase:
    """One agent, served by another process. One episode and one call at a time.

    Args:
        address: ``HOST:PORT`` or ``unix:PATH``.
        timeout_s: seconds that one act may take, retries included.
        fallback: decides when no fresh action arrives in time; by default that is an error.
        stream: send acts over one bidirectional stream per episode, which is faster, instead of one call each.
        rejoin: join the episode again by itself when the server has forgotten it.
        diagnostics: ask for the policy's further outputs in every reply, which takes longer.
        expected: the agent's expected id and spaces; None accepts whatever is served.
        connect_timeout_s: seconds that connecting and starting an episode may take.
        credentials: for TLS; None for a plain connection.

    Attributes:
        info: what the server said about itself when the client connected.

    Raises:
        UsageError: an argument is out of range.
    """

    info: agent_pb2.GetAgentInfoResponse
    _episode: RemoteEpisode

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 1.0,
        fallback: Fallback | None = None,
        stream: bool = False,
        rejoin: bool = True,
        diagnostics: bool = False,
        expected: AgentSpec | None = None,
        connect_timeout_s: float = 10.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        for name, value in (("timeout_s", timeout_s), ("connect_timeout_s", connect_timeout_s)):
            if not value > 0:
                raise UsageError(f"{name}: got {value}, expected a positive number of seconds")
        self.address = address
        self._timeout_s = timeout_s
        self._fallback = fallback if fallback is not None else Fail()
        self._stream_wanted = stream
        self._rejoin = rejoin
        self._diagnostics = diagnostics
        self._expected = expected
        self._connect_timeout_s = connect_timeout_s
        self._credentials = credentials
        self._open()

    def _open(self) -> None:
        """Set up what the kind of client needs."""
        raise NotImplementedError

    @property
    def spec(self) -> AgentSpec:
        """The agent's id, observation size and spaces."""
        return self._episode.spec

    @property
    def statistics(self) -> AgentStatistics:
        """Counters since the client was made."""
        return self._episode.statistics

    @property
    def timeout_s(self) -> float:
        """Seconds that one act may take, retries included; may be changed between acts."""
        return self._episode.timeout_s

    @timeout_s.setter
    def timeout_s(self, seconds: float) -> None:
        self._episode.timeout_s = seconds

    def _described(self, info: agent_pb2.GetAgentInfoResponse) -> None:
        """Take what the server says about itself, checked against what is expected."""
        spec = described_agent(info, self.address)
        if self._expected is not None:
            check_spec(spec, self._expected, self.address)
        self.info = info
        self._episode = RemoteEpisode(
            spec,
            fallback=self._fallback,
            timeout_s=self._timeout_s,
            rejoin=self._rejoin,
            diagnostics=self._diagnostics,
            source=self.address,
        )

    def _deadline(self) -> float:
        """When connecting or starting an episode, begun now, has taken too long (monotonic clock)."""
        return time.monotonic() + self._connect_timeout_s

    def _error(self, doing: str, error: grpc.RpcError) -> Exception:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return UsageError(f"{self.address}: {details}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = f"no answer within {self._connect_timeout_s} s; is 'hmarl-agent' or 'hmarl-fleet' running there?"
        return AgentError(f"{self.address}: {doing}: {code.name}: {details}")


def worth_retrying(error: grpc.RpcError, deadline: float) -> bool:
    """Whether a server that is still loading its policy, or is about to be replaced, should be asked again."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and time.monotonic() + RETRY_PAUSE_S < deadline
