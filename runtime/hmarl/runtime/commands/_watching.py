"""What watches a serving process, put together from its options: metrics, their page, traces."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hmarl.runtime.commands._ending import at_end
from hmarl.runtime.commands._output import lines_dropped
from hmarl.runtime.errors import UsageError

if TYPE_CHECKING:
    from hmarl.runtime.fleet import Fleet
    from hmarl.runtime.metrics import AgentMetrics, FleetMetrics
    from hmarl.runtime.metrics_page import MetricsPage, Render
    from hmarl.runtime.server import AgentServer
    from hmarl.runtime.telemetry import Observer, Telemetry

METRICS, TARGETS = "/metrics", "/targets"
_ANY = {"0.0.0.0", "[::]"}


class AgentWatch:
    """What watches one agent.

    Args:
        agent: its id.
        metrics: where its metrics are read; None for nowhere.
        traces: whether its requests are traced.

    Attributes:
        telemetry: for its server.
        address: where its metrics are read, with the real port; None for nowhere.

    Raises:
        UsageError: the address is malformed or open to others, or an extra is missing.
        HmarlError: the address cannot be bound.
    """

    def __init__(self, agent: str, metrics: str | None, traces: bool) -> None:
        self._metrics: AgentMetrics | None = None
        self.address: str | None = None
        observers: list[Observer] = []
        if metrics is not None:
            self._metrics = _agent_metrics()
            observers.append(self._metrics)
        if traces:
            observers.append(_traced(agent))
        from hmarl.runtime.telemetry import Telemetry  # noqa: PLC0415 - what needs gRPC comes late

        self.telemetry: Telemetry = Telemetry(*observers)
        if metrics is not None:
            self.address = open_page(metrics, {METRICS: self._text}).address

    def watch(self, server: AgentServer) -> None:
        """Say from now on how a server is."""
        if self._metrics is not None:
            self._metrics.watch(server, lambda: server.access.expires_at)

    def _text(self) -> bytes:
        self.telemetry.flush()
        return b"" if self._metrics is None else self._metrics.text()

    @property
    def ready(self) -> dict[str, str]:
        """What is told of it when the agent serves."""
        return {} if self.address is None else {"metrics": self.address}


class FleetWatch:
    """What watches a fleet: its own metrics, and where those of its members are read.

    Args:
        metrics: where they are read; None for nowhere.

    Attributes:
        address: where they are read, with the real port; None for nowhere.
        members_from: host and port of the first member's; None for nowhere.

    Raises:
        UsageError: the address is malformed or open to others, or the extra is missing.
        HmarlError: it cannot be bound.
    """

    def __init__(self, metrics: str | None) -> None:
        self.address: str | None = None
        self.members_from: tuple[str, int] | None = None
        self._fleet: Fleet | None = None
        self._metrics: FleetMetrics | None = None
        if metrics is None:
            return
        host, port = metrics_address(metrics)
        self.members_from = host, port + 1 if port else 0
        self.address = open_page(metrics, {METRICS: self._text}, {TARGETS: self._targets}).address

    def watch(self, fleet: Fleet) -> None:
        """Say from now on how a fleet is."""
        if self.address is not None:
            from hmarl.runtime.metrics import FleetMetrics, without_created  # noqa: PLC0415 - part of the metrics extra

            without_created()
            self._fleet = fleet
            self._metrics = FleetMetrics(fleet, lines_dropped)

    def description(self, fleet: Fleet) -> dict[str, Any]:
        """For the endpoints file."""
        return {} if self.address is None else {"metrics": {"fleet": self.address, "agents": fleet.metrics}}

    def _text(self) -> bytes:
        return b"" if self._metrics is None else self._metrics.text()

    def _targets(self, host: str) -> tuple[str, bytes]:
        """What Prometheus asks for service discovery by HTTP: the fleet and its agents, by the host it asked."""
        agents = {} if self._fleet is None else self._fleet.metrics
        return "application/json", json.dumps(targets(self.address or "", agents, host)).encode()


def targets(fleet: str, agents: Mapping[str, str], host: str) -> list[dict[str, Any]]:
    """Targets for Prometheus' ``http_sd_configs``.

    Args:
        fleet: where the fleet's own metrics are read.
        agents: where those of its agents are, by id; a port of 0 is not known yet.
        host: by which the fleet was asked; an address that stands for all of the machine's is replaced by it.
    """

    def target(address: str, labels: dict[str, str]) -> dict[str, Any]:
        own, _, port = address.rpartition(":")
        return {"targets": [f"{host if own in _ANY and host else own}:{port}"], "labels": labels}

    known = {agent_id: address for agent_id, address in agents.items() if not address.endswith(":0")}
    return [target(fleet, {}), *(target(address, {"agent": agent_id}) for agent_id, address in known.items())]


def open_page(
    listen: str, texts: Mapping[str, Callable[[], bytes]], more: Mapping[str, Render] | None = None
) -> MetricsPage:
    """A page at an address.

    Args:
        listen: ``HOST:PORT``.
        texts: metrics by path.
        more: other content by path.

    Raises:
        UsageError: it is malformed or open to others.
        HmarlError: it cannot be bound.
    """
    from hmarl.runtime.metrics import CONTENT_TYPE_LATEST  # noqa: PLC0415 - part of the metrics extra
    from hmarl.runtime.metrics_page import MetricsPage  # noqa: PLC0415 - not always needed

    def rendered(text: Callable[[], bytes]) -> Render:
        return lambda host: (CONTENT_TYPE_LATEST, text())

    host, port = metrics_address(listen)
    return MetricsPage(host, port, {path: rendered(text) for path, text in texts.items()} | dict(more or {}))


def metrics_address(listen: str) -> tuple[str, int]:
    """Host and port of ``--metrics``.

    Raises:
        UsageError: it is malformed or open to others.
    """
    from hmarl.runtime.access import is_loopback, parse_address  # noqa: PLC0415 - not always needed

    try:
        host, port = parse_address(listen)
    except UsageError:
        raise UsageError(f"--metrics: got '{listen}', expected HOST:PORT (for example 127.0.0.1:9464)") from None
    if not is_loopback(host):
        raise UsageError(
            f"--metrics: got {host}, where anyone can read it: listen on 127.0.0.1, and have a Prometheus or "
            "a proxy on this machine pass it on"
        )
    return host, port


def _agent_metrics() -> AgentMetrics:
    from hmarl.runtime.metrics import AgentMetrics, without_created  # noqa: PLC0415 - part of the metrics extra

    without_created()
    return AgentMetrics(lines_dropped)


def _traced(agent: str) -> Observer:
    from hmarl.runtime.tracing import TracedRequests, exporting_provider  # noqa: PLC0415 - part of the otel extra

    provider = exporting_provider("hmarl-agent", {"hmarl.agent": agent})
    at_end(provider.shutdown)
    return TracedRequests(provider)
