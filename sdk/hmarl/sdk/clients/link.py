"""The connection between a client and its agent: how it is set up, and when it is given up."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence

from hmarl.agent.v1.status import Code
from hmarl.sdk.clock import now_s

# Pings while a call or stream is open: without a reply for this long the connection is closed. gRPC passes the limit on
# to TCP (TCP_USER_TIMEOUT) as well; both names are needed, the core takes the one or the other by version.
_KEEPALIVE_MS = 2000
_PING_TIMEOUT_MS = 2000
# Descriptions of agents grow with their spaces; replies may be larger still, which the description then says.
LEAST_RECEIVE_LIMIT_BYTES = 64 * 2**20

_LEAST_PATIENCE_S = 0.5
_MOST_PATIENCE_S = 8.0
_LEAST_CONNECT_TIMEOUT_S = 0.6
_MOST_CONNECT_TIMEOUT_S = 20.0
_LEAST_TRIES = 5
_HELD_UP_S = 0.25


def channel_options(
    address: str,
    connect_timeout_s: float,
    receive_limit_bytes: int = LEAST_RECEIVE_LIMIT_BYTES,
    *,
    streaming: bool = False,
) -> Sequence[tuple[str, int]]:
    """The channel arguments of gRPC.

    Args:
        address: of the agent.
        connect_timeout_s: how long one attempt to connect may take, from the first packet to the peer's greeting.
        receive_limit_bytes: the largest message that is taken.
        streaming: whether acts go over streams.
    """
    return (
        # gRPC waits up to two minutes between attempts to reconnect unless told otherwise: too long for a control loop.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", max(1, int(min(connect_timeout_s, 3600.0) * 1000))),  # one attempt's limit
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        # What is tried again is decided by RemoteEpisode. Without the core's own retries a call is a bit quicker, an
        # exchange over a stream is not.
        ("grpc.enable_retries", 1 if streaming else 0),
        # A new channel means a new connection; the process' pool would hand the dead one out again.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0 if stays_on_this_machine(address) else 1),
        ("grpc.max_receive_message_length", min(receive_limit_bytes, 2**31 - 1)),
    )


def stays_on_this_machine(address: str) -> bool:
    """Whether an address is by its form one of this machine, a Unix socket or a loopback host, and behind no proxy."""
    scheme, colon, rest = address.partition(":")
    if scheme in {"unix", "unix-abstract"} and colon:
        return True
    if scheme in {"dns", "ipv4", "ipv6"} and colon:
        address = rest.rsplit("/", 1)[-1]
    host = address.rpartition(":")[0] if address.count(":") == 1 or "]:" in address else address
    host = host.strip("[]").partition("%")[0].rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    # Connecting to 0.0.0.0 or [::] reaches this machine.
    return ip.is_loopback or ip.is_unspecified or (mapped is not None and mapped.is_loopback)


class LinkWatch:
    """Judges by what is answered whether a connection still leads anywhere.

    Packets that are lost without a word are repeated by TCP after pauses that double, so that a dead connection needs
    as long again as it was dead before it works. Therefore a connection is given up, and another one made, when nothing
    has been answered over it for a while. An agent that does not answer may as well be slow: the patience grows with
    the answers that do come, and doubles with each connection that was given up in vain.
    """

    def __init__(self) -> None:
        self.given_up = False
        self._patience_s = _LEAST_PATIENCE_S
        self._slow_s = 0.0
        self._fastest_s = math.inf
        self._since_s: float | None = None
        self._waited_s = 0.0
        self._tries = 0

    @property
    def silent(self) -> bool:
        """Whether the last request was not answered."""
        return self._since_s is not None or self.given_up

    @property
    def patience_left_s(self) -> float:
        """Seconds that a request may take before the connection is given up."""
        return self._patience_s - self._waited_s

    @property
    def connect_timeout_s(self) -> float:
        """Seconds that an attempt to connect may take: several round trips, and short otherwise.

        An attempt that began while the link was dead is worth nothing; the next one begins when it is over.
        """
        if math.isinf(self._fastest_s):
            return _MOST_CONNECT_TIMEOUT_S
        return min(max(4.0 * self._fastest_s, _LEAST_CONNECT_TIMEOUT_S), _MOST_CONNECT_TIMEOUT_S)

    def connected(self, took_s: float) -> None:
        """Connecting, with a first request, took that long; a server that was not there yet makes it long."""
        self._fastest_s = min(took_s, self._fastest_s)

    def answered(self, latency_s: float) -> None:
        """A request was answered."""
        # Comparisons are several times quicker than min and max, and this is done at every act.
        slow_s, fastest_s = 0.7 * self._slow_s, self._fastest_s
        self._slow_s = slow_s = latency_s if latency_s > slow_s else slow_s
        patience_s = 4.0 * slow_s
        self._patience_s = patience_s if patience_s > _LEAST_PATIENCE_S else _LEAST_PATIENCE_S
        self._fastest_s = latency_s if latency_s < fastest_s else fastest_s
        if self._since_s is not None:
            self._restart()

    def failed(self, code: Code, begin_s: float, allowed_s: float, heard: bool = False) -> None:
        """A request, sent at ``begin_s``, failed; without an answer in the time allowed when the code says so.

        Args:
            code: how it ended.
            begin_s: when it was sent.
            allowed_s: seconds that it was given.
            heard: whether something else was answered meanwhile.
        """
        if code is not Code.DEADLINE_EXCEEDED:
            return
        now = now_s()
        if heard or now - begin_s > allowed_s + _HELD_UP_S:
            self._restart()  # slow but there; or this process was stopped, which tells nothing about the link
            return
        if self._since_s is None:
            self._since_s = begin_s
        self._waited_s += min(now - begin_s, allowed_s)
        self._tries += 1
        silent_s = now - self._since_s
        if self._waited_s >= self._patience_s or (self._tries >= _LEAST_TRIES and silent_s >= self._patience_s):
            self.given_up = True

    def replaced(self) -> None:
        """There is a new connection."""
        self.given_up = False
        self._patience_s = min(2.0 * self._patience_s, max(_MOST_PATIENCE_S, 4.0 * self._slow_s))
        self._restart()

    def _restart(self) -> None:
        self._since_s, self._waited_s, self._tries = None, 0.0, 0
