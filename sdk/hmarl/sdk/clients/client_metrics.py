"""What a program's clients have counted, for Prometheus; the extra ``metrics``."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator

from hmarl.sdk.clients.agent import LATENCY_BOUNDS_S, Agent, AgentStatistics
from hmarl.sdk.errors import MissingExtraError

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "prometheus_client", "metrics", "ClientMetrics") from error

_COUNTERS = {
    "acts": "Actions that the program asked for.",
    "fresh": "Acts that the policy's own action answered in time.",
    "late_replies": "Replies that were dropped because their step's time was over.",
    "missed_steps": "Observations that the policy never received.",
    "rejoins": "Episodes that were joined again because the server had forgotten them.",
    "state_resets": "Rejoins that lost recurrent state.",
}
# Told from the beginning: what a counter had when it first appeared is no increase to Prometheus.
_USUAL_REASONS = ("DEADLINE_EXCEEDED", "LATE_REPLY", "NOT_FOUND", "UNAVAILABLE")


class ClientMetrics(Collector):
    """The statistics of agents as ``hmarl_client_*``, by agent id, in a registry of the program.

        ClientMetrics(agent)                        # in prometheus_client's own registry
        metrics = ClientMetrics(registry=registry)  # in another one
        metrics.add(another)                        # any number of them; those of one id are added up

    Agents are counted on when they are gone, so that no counter ever falls.

    Args:
        agents: clients, which are connected, or agents in this process.
        registry: where they are collected.

    Raises:
        MissingExtraError: the extra is not installed.
        MisuseError: a client is not connected yet.
    """

    def __init__(self, *agents: Agent, registry: CollectorRegistry = REGISTRY) -> None:
        self._lock = threading.Lock()
        self._statistics: dict[int, tuple[str, AgentStatistics]] = {}
        self._gone: dict[str, AgentStatistics] = {}
        for agent in agents:
            self.add(agent)
        registry.register(self)

    def add(self, agent: Agent) -> None:
        """Count one more.

        Raises:
            MisuseError: it is not connected yet.
        """
        name, statistics = agent.spec.id, agent.statistics
        with self._lock:
            known = id(statistics) in self._statistics
            self._statistics[id(statistics)] = (name, statistics)
        if not known:
            weakref.finalize(agent, self._forget, id(statistics)).atexit = False

    def describe(self) -> Iterable[Metric]:
        """Nothing is read when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        totals = self._totals()
        for field, about in _COUNTERS.items():
            name = "fresh_acts" if field == "fresh" else field
            family = CounterMetricFamily(f"hmarl_client_{name}", about, labels=["agent"])
            for agent_id, total in totals.items():
                family.add_metric([agent_id], getattr(total, field))
            yield family
        fallbacks = CounterMetricFamily(
            "hmarl_client_fallbacks", "Acts without a fresh action, by what kept it.", labels=["agent", "reason"]
        )
        seconds = HistogramMetricFamily(
            "hmarl_client_act_seconds", "From the call of act to its return.", labels=["agent"]
        )
        for agent_id, total in totals.items():
            for reason in sorted({*_USUAL_REASONS, *total.fallback_reasons}):
                fallbacks.add_metric([agent_id, reason], total.fallback_reasons[reason])
            seconds.add_metric([agent_id], _buckets(total), total.latency_sum_s)
        yield fallbacks
        yield seconds

    def _totals(self) -> dict[str, AgentStatistics]:
        with self._lock:
            totals: dict[str, AgentStatistics] = {}
            for name, statistics in (*self._gone.items(), *self._statistics.values()):
                totals.setdefault(name, AgentStatistics()).add(statistics)
            return totals

    def _forget(self, key: int) -> None:
        with self._lock:
            name, statistics = self._statistics.pop(key)
            self._gone.setdefault(name, AgentStatistics()).add(statistics)


def _buckets(statistics: AgentStatistics) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as Prometheus has them."""
    found, so_far = [], 0
    for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), statistics.latency_counts, strict=True):
        so_far += count
        found.append((bound, float(so_far)))
    return found
