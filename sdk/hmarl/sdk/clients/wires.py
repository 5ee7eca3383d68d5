"""How a client reaches its agent: what gRPC and frames have in common, and which of the two an address means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.framing import SCHEME
from hmarl.agent.v1.status import Code
from hmarl.sdk.clients.agent import AgentStatistics
from hmarl.sdk.clients.link import channel_options
from hmarl.sdk.clients.operations import Abandon, Act, CallFailed, Describe, End, Reconnect, Start

if TYPE_CHECKING:
    import grpc

    from hmarl.sdk.clients.security import Keys

# Ending an episode is a courtesy, the server forgets it by itself; closing must not wait for one that does not answer.
END_TIMEOUT_S = 0.3
# An episode that takes longer to start than anything waits for it is ended when it has started at last.
START_TIMEOUT_S = 30.0
# By which method of a wire a client does what a script asks for, acts excepted.
METHODS: dict[type, str] = {
    Start: "start",
    Abandon: "abandon",
    End: "end",
    Describe: "describe",
    Reconnect: "reconnect",
}


def is_frames(address: str) -> bool:
    """Whether an address is that of a Unix socket for frames."""
    return address.startswith(SCHEME)


@dataclass(frozen=True)
class Dialling:
    """How the connections of a client are made.

    Attributes:
        address: of the agent.
        streaming: whether acts go over streams of gRPC.
        born: how often the process had been forked when the client was made.
        keys: what is shown, from files; None for none.
        credentials: for TLS, made by the caller; None for none.
        spin_s: see ``ClientBase``.
    """

    address: str
    streaming: bool
    born: int
    keys: Keys | None = None
    credentials: grpc.ChannelCredentials | None = None
    spin_s: float = 0.0

    def options(self, connect_timeout_s: float, receive_limit_bytes: int) -> Sequence[tuple[str, Any]]:
        """Of a channel of gRPC."""
        own = channel_options(self.address, connect_timeout_s, receive_limit_bytes, streaming=self.streaming)
        return own if self.keys is None else (*own, *self.keys.channel_options)

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel that is made now; None for a plain one."""
        return self.credentials if self.keys is None else self.keys.channel_credentials()

    def outdated(self, failure: CallFailed, version: int) -> bool:
        """Whether a call was refused for what its connection shows, and the client's files hold something else now.

        Args:
            failure: how the call ended.
            version: of the files' content, when the connection was made.
        """
        keys = self.keys
        if keys is None or failure.code is not Code.UNAUTHENTICATED:
            return False
        return keys.look(now=True) or keys.version != version


class Wire(Protocol):
    """The connection of a synchronous client to its agent, and what is asked over it; that of asyncio awaits the same.

    Whatever fails raises ``CallFailed``.

    """

    @property
    def receive_limit_bytes(self) -> int:
        """The largest message that it takes."""
        ...

    def act(self, operation: Act, statistics: AgentStatistics) -> agent_pb2.ActResponse:
        """Send an act and wait for its response; counts late ones to older acts."""
        ...

    def start(self, operation: Start) -> agent_pb2.StartEpisodeResponse:
        """Wait for an episode to start; when that takes too long, the next call with the same request waits on."""
        ...

    def abandon(self, operation: Abandon | None = None) -> None:
        """Wait no longer for an episode that is being started; should it start nevertheless, it is ended."""
        ...

    def end(self, operation: End) -> None:
        """End a session without waiting."""
        ...

    def describe(self, operation: Describe) -> agent_pb2.GetAgentInfoResponse:
        """Ask who is served."""
        ...

    def reconnect(self, operation: Reconnect) -> None:
        """Leave the connection, and make a new one."""
        ...

    def finish(self, request: agent_pb2.EndEpisodeRequest, timeout_s: float) -> None:
        """End an episode, if that can be done in time; what of it is on its way is waited for no longer."""
        ...

    def finish_acts(self) -> None:
        """Let no act of the episode be on its way any longer."""
        ...

    def outdated(self, failure: CallFailed) -> bool:
        """See ``Dialling``."""
        ...

    def keep_renewed(self, connect_timeout_s: float) -> None:
        """Between two steps: go over to a connection made with the files' present content, once it stands."""
        ...

    def leave(self) -> None:
        """Leave the connection to the process that this one was forked from."""
        ...

    def close(self) -> None:
        """Leave the connection, and whatever is on its way over it, without waiting."""
        ...
