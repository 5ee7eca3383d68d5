"""What an agent and a fleet measure, for Prometheus; the extra ``metrics``. ``metrics_page`` serves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from hmarl.agent.v1.status import Code
from hmarl.runtime import __version__
from hmarl.runtime.errors import ForbiddenError, HmarlError, MissingExtraError, QuotaError, UnauthenticatedError
from hmarl.runtime.telemetry import ACT, RELOAD_REFUSED, RELOADED, STREAM_ACT, Act, Answer, Observer

try:
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        Histogram,
        ProcessCollector,
        disable_created_metrics,
        generate_latest,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "prometheus_client", "metrics", "--metrics") from error

if TYPE_CHECKING:
    from hmarl.runtime.fleet import FleetState
    from hmarl.runtime.session import Policy

__all__ = ["CONTENT_TYPE_LATEST", "AgentMetrics", "FleetMetrics"]

# Seconds: 10 µs to 1 s, three to a decade.
BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
# What a request that ends like this says of its peer.
_REJECTED = {
    Code.UNAUTHENTICATED: "unauthenticated",
    Code.PERMISSION_DENIED: "forbidden",
    Code.RESOURCE_EXHAUSTED: "limit",
}
_TURNED_AWAY: dict[type[HmarlError], Code] = {
    UnauthenticatedError: Code.UNAUTHENTICATED,
    ForbiddenError: Code.PERMISSION_DENIED,
    QuotaError: Code.RESOURCE_EXHAUSTED,
}


class Served(Protocol):
    """What is asked of a server when it is looked at."""

    @property
    def policy(self) -> Policy | None:
        """What new episodes are played with; None while it is being loaded."""
        ...

    @property
    def serving(self) -> bool:
        """Whether health is SERVING."""
        ...

    @property
    def open_sessions(self) -> int:
        """How many there are."""
        ...

    @property
    def open_streams(self) -> int:
        """How many there are."""
        ...


class AgentMetrics(Observer):
    """Counts what one agent does, in a registry of its own.

    Args:
        lines_dropped: reads how many lines of output were lost.
    """

    def __init__(self, lines_dropped: Callable[[], int] = lambda: 0) -> None:
        self._registry = registry = CollectorRegistry()
        self._policy_seconds = Histogram(
            "hmarl_agent_policy_seconds", "Time in the policy, of each act.", buckets=BUCKETS, registry=registry
        )
        served = Histogram(
            "hmarl_agent_act_seconds",
            "Time in the server, of each act that succeeded: from its request to its reply, the policy's included.",
            ["method"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._served_seconds = {method: served.labels(method) for method in (ACT, STREAM_ACT)}
        self._requests = Counter(
            "hmarl_agent_requests", "Requests by gRPC status code.", ["method", "code"], registry=registry
        )
        self._outcomes = {
            (method, code): self._requests.labels(method, code.name)
            for method in (ACT, STREAM_ACT)
            for code in (Code.OK, Code.NOT_FOUND, Code.INVALID_ARGUMENT)
        }
        self._missed = Counter(
            "hmarl_agent_missed_steps", "Observations of episodes that never arrived.", registry=registry
        )
        self._replays = Counter(
            "hmarl_agent_replays", "Acts that were asked for again and answered from the record.", registry=registry
        )
        self._rejected = _Rejected("hmarl_agent_rejected_peers", registry)
        self._reloads = Counter(
            "hmarl_agent_reloads", "Attempts to serve another bundle.", ["outcome"], registry=registry
        )
        for outcome in (RELOADED, RELOAD_REFUSED):
            self._reloads.labels(outcome)
        self._now = _AgentNow(lines_dropped)
        registry.register(self._now)
        ProcessCollector(registry=registry)

    def watch(self, server: Served, certificate_expires_at: Callable[[], float | None] = lambda: None) -> None:
        """Say from now on how a server is.

        Args:
            server: which one.
            certificate_expires_at: reads when its certificate ends, in seconds since 1970; None without any.
        """
        self._now.server = server
        self._now.certificate_expires_at = certificate_expires_at

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return bytes(generate_latest(self._registry))

    def answered(self, answers: Sequence[Answer]) -> None:
        """See ``Observer``."""
        for answer in answers:
            self._answered(answer.method, answer.code, answer.ended_s - answer.began_s)

    def acted(self, acts: Sequence[Act]) -> None:
        """See ``Observer``."""
        for act in acts:
            if act.replayed:
                self._replays.inc()
                continue
            self._policy_seconds.observe(act.seconds)
            if act.missed_steps:
                self._missed.inc(act.missed_steps)

    def _answered(self, method: str, code: Code, seconds: float) -> None:
        counter = self._outcomes.get((method, code))
        if counter is None:
            counter = self._outcomes[method, code] = self._requests.labels(method, code.name)
        counter.inc()
        if code is Code.OK:
            histogram = self._served_seconds.get(method)
            if histogram is not None:
                histogram.observe(seconds)
        else:
            self._rejected.answered(code)

    def turned_away(self, error: HmarlError) -> None:
        """Count a peer that may not read the metrics.

        Args:
            error: why.
        """
        self._rejected.turned_away(error)

    def reloaded(self, outcome: str) -> None:
        """See ``Observer``."""
        self._reloads.labels(outcome).inc()


class _Rejected:
    """Counts who was turned away because of who called, or for asking too much."""

    def __init__(self, name: str, registry: CollectorRegistry) -> None:
        about = "Calls that were turned away because of who called."
        self._counter = Counter(name, about, ["reason"], registry=registry)
        for reason in _REJECTED.values():
            self._counter.labels(reason)

    def answered(self, code: Code) -> None:
        """A call that ended with this code, which says nothing of its peer unless it is one of these."""
        if code in _REJECTED:
            self._counter.labels(_REJECTED[code]).inc()

    def turned_away(self, error: HmarlError) -> None:
        """A call that ended with this error; likewise."""
        self.answered(next((code for kind, code in _TURNED_AWAY.items() if isinstance(error, kind)), Code.OK))


class _AgentNow(Collector):
    """What is read when it is asked for."""

    def __init__(self, lines_dropped: Callable[[], int]) -> None:
        self.server: Served | None = None
        self.certificate_expires_at: Callable[[], float | None] = lambda: None
        self._lines_dropped = lines_dropped

    def collect(self) -> Iterable[Metric]:
        """All of it."""
        server = self.server
        policy = None if server is None else server.policy
        yield _build()
        yield _gauge(
            "hmarl_agent_serving",
            "1 while health is SERVING, else 0.",
            float(server is not None and server.serving),
        )
        yield _gauge("hmarl_agent_open_sessions", "Episodes that are open.", server.open_sessions if server else 0)
        yield _gauge("hmarl_agent_open_streams", "Streams that are open.", server.open_streams if server else 0)
        dropped = CounterMetricFamily(
            "hmarl_agent_log_lines_dropped", "Lines of output that were lost because nothing read them."
        )
        dropped.add_metric([], self._lines_dropped())
        yield dropped
        if policy is not None:
            yield _bundle(policy)
        expires_at = self.certificate_expires_at()
        if expires_at is not None:
            yield _gauge(
                "hmarl_agent_certificate_expiry_timestamp_seconds",
                "When the server's certificate ends, in seconds since 1970.",
                expires_at,
            )


class FleetMetrics(Collector):
    """What a fleet knows of its members.

    Args:
        fleet: whose.
        lines_dropped: reads how many lines of output were lost.
    """

    def __init__(
        self,
        fleet: FleetState,
        lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self._fleet = fleet
        self._lines_dropped = lines_dropped
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._rejected = _Rejected("hmarl_fleet_rejected_peers", self._registry)
        ProcessCollector(registry=self._registry)

    def turned_away(self, error: HmarlError) -> None:
        """Count a peer that may not read the metrics.

        Args:
            error: why.
        """
        self._rejected.turned_away(error)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterable[Metric]:
        """All of it."""
        members = self._fleet.members
        yield _build()
        yield InfoMetricFamily("hmarl_fleet_bundle", "The bundle of the fleet.", {"sha256": self._fleet.bundle_sha256})
        yield _gauge("hmarl_fleet_agents", "Agents that the fleet keeps running.", len(members))
        serving = GaugeMetricFamily("hmarl_fleet_agent_serving", "1 while the agent serves, else 0.", labels=["agent"])
        restarts = CounterMetricFamily(
            "hmarl_fleet_restarts", "How often an agent had to be started again.", labels=["agent", "reason"]
        )
        for agent_id, member in members.items():
            serving.add_metric([agent_id], float(member.serving))
            for reason, count in member.restarts.items():
                restarts.add_metric([agent_id, reason], count)
        yield serving
        yield restarts
        reloads = CounterMetricFamily(
            "hmarl_fleet_reloads", "Attempts to serve another bundle, of the whole team.", labels=["outcome"]
        )
        for outcome, count in self._fleet.reloads.items():
            reloads.add_metric([outcome], count)
        yield reloads
        dropped = CounterMetricFamily(
            "hmarl_fleet_log_lines_dropped", "Lines of output that were lost because nothing read them."
        )
        dropped.add_metric([], self._lines_dropped())
        yield dropped


def without_created() -> None:
    """Leave out when each counter was made, as a metric beside it: for programs, since it holds for a whole process."""
    disable_created_metrics()  # type: ignore[no-untyped-call]


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value)


def _build() -> Metric:
    return InfoMetricFamily("hmarl_build", "The version of hmarl.", {"version": __version__})


def _bundle(policy: Policy) -> Metric:
    return InfoMetricFamily(
        "hmarl_agent_bundle",
        "What new episodes are played with.",
        {
            "agent_id": policy.agent.id,
            "bundle": policy.bundle.manifest.name,
            "sha256": policy.bundle.sha256,
            "algorithm": policy.bundle.manifest.algorithm,
            "provider": policy.execution_provider,
        },
    )
