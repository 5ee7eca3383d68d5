"""What the synchronous and the asyncio client share: options, the check of who is served, misuse, errors."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, TypedDict

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.status import Code
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.sdk.clients.agent import AgentStatistics, check_spec, refuse_copy
from hmarl.sdk.clients.forks import FORKS
from hmarl.sdk.clients.link import LinkWatch
from hmarl.sdk.clients.operations import CallFailed
from hmarl.sdk.clients.remote_episode import RemoteEpisode, described_model
from hmarl.sdk.clients.wires import END_TIMEOUT_S, Dialling, is_frames
from hmarl.sdk.clock import checked_seconds, now_s
from hmarl.sdk.errors import AgentError, MisuseError, UsageError
from hmarl.sdk.fallback import Fail, Fallback
from hmarl.sdk.spaces import AgentSpec

if TYPE_CHECKING:
    import grpc

    from hmarl.sdk.clients.recording import ClientRecorder
    from hmarl.sdk.clients.security import Security
    from hmarl.sdk.clients.spans import ClientSpans

_LONGEST_SPIN_S = 0.001
_LAST_LOOK_S = 0.25  # at what is wrong with a connection, once the time for an answer is over


class ClientOptions(TypedDict, total=False):
    """What a client may be told beside the address; meanings and defaults are those of ``ClientBase``."""

    timeout_s: float
    fallback: Fallback | None
    stream: bool
    rejoin: bool
    diagnostics: bool
    expected: AgentSpec | None
    connect_timeout_s: float
    security: Security | None
    credentials: grpc.ChannelCredentials | None
    allow_bundle_change: bool
    traces: bool
    spin_s: float
    record: RecordSettings | Path | str | None


class ClientBase:
    """One agent, served by another process. One episode and one call at a time.

    Args:
        address: ``HOST:PORT`` or ``unix:PATH``, over gRPC; ``frames:PATH``, which is quicker, on the same host.
        timeout_s: seconds that one act may take, retries included.
        fallback: decides when no fresh action arrives in time; by default that is an error.
        stream: over gRPC, send acts over one bidirectional stream per episode, which is faster, instead of one call
            each. Frames are always quicker than either.
        rejoin: join the episode again by itself when the server has forgotten it.
        diagnostics: ask for the policy's further outputs in every reply, which takes longer.
        expected: the agent's expected id and spaces; None accepts whatever is served when the client connects.
        connect_timeout_s: seconds that connecting and starting an episode may take.
        security: how client and agent know each other: TLS, a client certificate, a token. Its files are read again
            when they change, without losing a step. None for a plain connection.
        credentials: for TLS, made by the caller, who also sees to their renewal; instead of ``security``.
        allow_bundle_change: go on when the agent comes back with another bundle, if its spaces are the same. Another
            agent, or other spaces, are always an error.
        spin_s: over frames, seconds for which an act looks for its response again and again before it sleeps, 0.001 at
            most: a response that comes meanwhile is taken sooner, by the time that waking up takes, and the processor
            core is busy as long. The client of asyncio always sleeps.
        traces: make a span of each call, by the program's own provider of OpenTelemetry (the extra ``otel``).
        record: where what it asks for and is given is recorded, for ``hmarl-replay``: a folder, or a ``RecordSettings``
            with bounds as well (the extra ``record``). None records nothing.

    Raises:
        UsageError: an argument is out of range, or an extra is missing.
    """

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
        security: Security | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        allow_bundle_change: bool = False,
        traces: bool = False,
        spin_s: float = 0.0,
        record: RecordSettings | Path | str | None = None,
    ) -> None:
        if not isinstance(address, str) or not address:
            raise UsageError(
                f"address: got {address!r}, expected HOST:PORT (for example 127.0.0.1:50051), unix:PATH or frames:PATH"
            )
        self.address = address
        self._timeout_s = checked_seconds("timeout_s", timeout_s)
        self._fallback = fallback if fallback is not None else Fail()
        self._rejoin = rejoin
        self._diagnostics = diagnostics
        self._expected = expected
        self._connect_timeout_s = checked_seconds("connect_timeout_s", connect_timeout_s)
        if security is not None and credentials is not None:
            raise UsageError("credentials: got them beside security, expected one of the two")
        self._dialling = replace(_dialling(address, bool(stream), security, credentials), spin_s=_checked_spin(spin_s))
        self._keys = self._dialling.keys
        self._allow_bundle_change = allow_bundle_change
        self._spans = _spans(address) if traces else None
        self._record = None if record is None else _record_settings(record)
        self._recorder: ClientRecorder | None = None  # until it is known who is recorded
        self._watch = LinkWatch()
        self._born = FORKS.count
        self._closed = False
        self._episode: RemoteEpisode | None = None  # until the server has said who it is

    @property
    def info(self) -> agent_pb2.GetAgentInfoResponse:
        """What the server said about itself when the client connected, or when it went on with another bundle."""
        return self._connected.info

    @property
    def spec(self) -> AgentSpec:
        """The agent's id, observation size and spaces."""
        return self._connected.spec

    @property
    def statistics(self) -> AgentStatistics:
        """Counters since the client was made."""
        return self._connected.statistics

    @property
    def timeout_s(self) -> float:
        """Seconds that one act may take, retries included; may be changed between acts."""
        return self._timeout_s

    @timeout_s.setter
    def timeout_s(self, seconds: float) -> None:
        self._timeout_s = checked_seconds("timeout_s", seconds)
        if self._episode is not None:
            self._episode.timeout_s = self._timeout_s

    def skip(self, steps: int = 1, *, away: bool = False) -> None:
        """Steps go by at which the agent is not asked; see ``Agent.skip``.

        Raises:
            UsageError: no number of steps.
            MisuseError: the client is closed, was inherited by a fork, or is not connected.
        """
        self._check_usable()
        self._connected.skip(steps)

    @property
    def _connected(self) -> RemoteEpisode:
        episode = self._episode
        if episode is None:
            raise MisuseError(f"{self.address}: the client is not connected yet: 'async with' it, or await connect()")
        return episode

    def _described(self, info: agent_pb2.GetAgentInfoResponse) -> None:
        """Take what the server says about itself, checked against what is expected."""
        episode = RemoteEpisode(
            info,
            self._watch,
            fallback=self._fallback,
            timeout_s=self._timeout_s,
            rejoin=self._rejoin,
            diagnostics=self._diagnostics,
            allow_bundle_change=self._allow_bundle_change,
            source=self.address,
            recorder=self._made_recorder(info),
        )
        if self._expected is not None:
            check_spec(episode.spec, self._expected, self.address)
        self._episode = episode

    def _made_recorder(self, info: agent_pb2.GetAgentInfoResponse) -> ClientRecorder | None:
        """What records the client's acts; None where nothing is to be recorded."""
        if self._record is None:
            return None
        from hmarl.sdk.clients.recording import ClientRecorder  # noqa: PLC0415 - part of the record extra

        self._recorder = ClientRecorder(self._record, described_model(info, self.address), self.address)
        weakref.finalize(self, self._recorder.close)  # of a client that is forgotten
        return self._recorder

    def _end_recording(self) -> None:
        """Finish the recording's file, if there is one."""
        if self._recorder is not None:
            self._recorder.close()

    def _why(self, limit_s: float = _LAST_LOOK_S) -> str | None:
        """Why no answer comes, where it can be told within so many seconds."""
        if self._dialling.credentials is not None or is_frames(self.address):
            return None  # they do not tell what they are; and a Unix socket says by itself what is wrong
        from hmarl.sdk.clients.tls_trouble import why_unreachable  # noqa: PLC0415 - in trouble only

        security = None if self._keys is None else self._keys.security
        return why_unreachable(self.address, security, limit_s)

    def _examined(self, why: str | None) -> None:
        """Go on waiting for an agent, unless it is known why it will not answer."""
        if why is not None:
            raise AgentError(f"{self.address}: connecting: {why}")

    def _check_usable(self) -> None:
        """Say at once when the client is not to be used any longer.

        Raises:
            MisuseError: it is closed, or belongs to the process that this one was forked from.
        """
        if self._closed:
            raise MisuseError(f"{self.address}: the client is closed: make a new one")
        if self._inherited:
            raise MisuseError(
                f"{self.address}: the client was made before this process was forked, and its connection and episode "
                "are the parent's: make a client in each process"
            )

    @property
    def _inherited(self) -> bool:
        """Whether the client belongs to the process that this one was forked from."""
        return self._born != FORKS.count

    def _used_twice(self, doing: str, callers: str) -> MisuseError:
        return MisuseError(
            f"{self.address}: {doing}: the client is in use by another call, of which there may be one at a time: "
            f"make a client for each {callers}, or wait for the other call"
        )

    def _span(self, method: str) -> AbstractContextManager[Any]:
        """What the block does is a call of the service, which is traced if calls are."""
        return nullcontext() if self._spans is None else self._spans.span(method)

    def _deadline(self) -> float:
        """When connecting or starting an episode, begun now, has taken too long."""
        return now_s() + self._connect_timeout_s

    def _end_timeout_s(self) -> float:
        """Seconds to wait for the server to hear that an episode is over: none where it did not answer before."""
        return 0.0 if self._watch.silent else END_TIMEOUT_S

    def _error(self, doing: str, failure: CallFailed, why: str | None = None) -> Exception:
        if why is not None:
            return AgentError(f"{self.address}: {doing}: {why}")
        code, details = failure.code, failure.details
        if code is Code.INVALID_ARGUMENT:
            return UsageError(f"{self.address}: {details}")
        if code is Code.DEADLINE_EXCEEDED:
            details = f"no answer within {self._connect_timeout_s} s; is 'hmarl-agent' or 'hmarl-fleet' running there?"
        return AgentError(f"{self.address}: {doing}: {code.name}: {details}")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        refuse_copy(self, f"make a client of '{self.address}' where it is needed")


def _checked_spin(seconds: object) -> float:
    """How long to spin; 0 is no time at all.

    Raises:
        UsageError: it is none such.
    """
    if seconds == 0 and not isinstance(seconds, bool):
        return 0.0
    checked = checked_seconds("spin_s", seconds)
    if checked > _LONGEST_SPIN_S:
        raise UsageError(f"spin_s: got {seconds!r}, expected at most {_LONGEST_SPIN_S}: sleeping is cheaper than that")
    return checked


def _dialling(
    address: str, streaming: bool, security: Security | None, credentials: grpc.ChannelCredentials | None
) -> Dialling:
    """How the client's connections are made.

    Raises:
        UsageError: what is shown cannot be used.
    """
    if is_frames(address) and (security is not None or credentials is not None):
        shown = "security" if security is not None else "credentials"
        raise UsageError(f"{shown}: got it for {address}, where the kernel says who connects: leave it out")
    if security is None:
        return Dialling(address, streaming, FORKS.count, credentials=credentials)
    from hmarl.sdk.clients.security import Keys  # noqa: PLC0415 - needs gRPC

    return Dialling(address, streaming, FORKS.count, Keys(security, address))


def _spans(address: str) -> ClientSpans:
    from hmarl.sdk.clients.spans import ClientSpans  # noqa: PLC0415 - part of the otel extra

    return ClientSpans(address)


def _record_settings(record: RecordSettings | Path | str) -> RecordSettings:
    from hmarl.runtime.recording import library  # noqa: F401, PLC0415 - part of the record extra, missed at once

    return record if isinstance(record, RecordSettings) else RecordSettings(Path(record).absolute())
