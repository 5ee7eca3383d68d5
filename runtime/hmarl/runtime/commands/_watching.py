"""What watches a serving process, put together from its options: metrics, their page, traces."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hmarl.runtime.commands._ending import at_end
from hmarl.runtime.commands._output import lines_dropped
from hmarl.runtime.errors import UsageError

if TYPE_CHECKING:
    from hmarl.runtime.access import Access
    from hmarl.runtime.fleet import Fleet
    from hmarl.runtime.metrics import AgentMetrics, FleetMetrics
    from hmarl.runtime.metrics_page import Content, MetricsPage, Render
    from hmarl.runtime.server import AgentServer
    from hmarl.runtime.settings import SecuritySettings
    from hmarl.runtime.telemetry import Observer, Telemetry

LOGGER = logging.getLogger("hmarl.fleet")
METRICS, TARGETS = "/metrics", "/targets"
READY, LIVE = "/readyz", "/livez"  # as Kubernetes and etcd call them
_ANY = {"0.0.0.0", "[::]"}


class AgentWatch:
    """What watches one agent.

    Args:
        agent: its id.
        metrics: where its metrics are read; None for nowhere.
        traces: whether its requests are traced.
        security: who is let in where others reach them.

    Attributes:
        telemetry: for its server.
        address: where its metrics are read, with the real port; None for nowhere, and before ``watch``.

    Raises:
        UsageError: the address is malformed, or others would read there unasked, or an extra is missing.
    """

    def __init__(self, agent: str, metrics: str | None, traces: bool, security: SecuritySettings) -> None:
        self._metrics: AgentMetrics | None = None
        self.address: str | None = None
        self._listen = metrics
        self._scheme = "http"
        observers: list[Observer] = []
        if metrics is not None:
            check_metrics_address(metrics, security)
            self._metrics = _agent_metrics()
            observers.append(self._metrics)
        if traces:
            observers.append(_traced(agent))
        from hmarl.runtime.telemetry import Telemetry  # noqa: PLC0415 - what needs gRPC comes late

        self.telemetry: Telemetry = Telemetry(*observers)

    def watch(self, server: AgentServer) -> None:
        """Say from now on how a server is.

        Raises:
            HmarlError: the address cannot be bound.
        """
        if self._metrics is not None and self._listen is not None:
            self._metrics.watch(server, lambda: server.access.expires_at)
            health = {READY: lambda: server.serving, LIVE: lambda: server.alive}
            self.address = open_page(self._listen, self._metrics, self._text, health, server.access).address
            self._scheme = scheme(self._listen, server.access)

    def _text(self) -> bytes:
        self.telemetry.flush()
        return b"" if self._metrics is None else self._metrics.text()

    @property
    def url(self) -> str | None:
        """Where its metrics are read; None for nowhere."""
        return None if self.address is None else f"{self._scheme}://{self.address}{METRICS}"

    @property
    def ready(self) -> dict[str, str]:
        """What is told of it when the agent serves."""
        return {} if self.address is None else {"metrics": self.address}


class FleetWatch:
    """What watches a fleet: its own metrics, and where those of its members are read.

    Args:
        metrics: where they are read; None for nowhere.

    Attributes:
        address: where they are read, with the real port; None for nowhere, and before ``watch``.
        members_from: host and port of the first member's; None for nowhere.
        exposed: the host, where others reach it; None otherwise.

    Raises:
        UsageError: the address is malformed, or the extra is missing.
    """

    def __init__(self, metrics: str | None) -> None:
        self.address: str | None = None
        self.members_from: tuple[str, int] | None = None
        self.exposed: str | None = None
        self._listen = metrics
        self._scheme = "http"
        self._fleet: Fleet | None = None
        self._metrics: FleetMetrics | None = None
        if metrics is None:
            return
        host, port = metrics_address(metrics)
        self.members_from = host, port + 1 if port else 0
        self.exposed = host if is_exposed(host) else None
        import hmarl.runtime.metrics  # noqa: F401, PLC0415 - part of the metrics extra: missing, it is told now

    def watch(self, fleet: Fleet, security: SecuritySettings) -> None:
        """Say from now on how a fleet is.

        Args:
            fleet: which one.
            security: of the fleet's own page: who is let in where others reach it.

        Raises:
            UsageError: a file of its security cannot be used.
            HmarlError: the address cannot be bound.
        """
        if self._listen is None:
            return
        from hmarl.runtime.metrics import FleetMetrics, without_created  # noqa: PLC0415 - part of the metrics extra

        without_created()
        self._fleet = fleet
        self._metrics = FleetMetrics(fleet, lines_dropped)
        access = _access(security) if self.exposed is not None else None
        if access is not None:
            self._scheme = scheme(self._listen, access)
        health = {READY: lambda: fleet.serving, LIVE: lambda: fleet.attentive}
        pages = {TARGETS: self._targets}
        self.address = open_page(self._listen, self._metrics, self._metrics.text, health, access, pages).address

    @property
    def url(self) -> str | None:
        """Where its pages are, without their paths; None for nowhere."""
        return None if self.address is None else f"{self._scheme}://{self.address}"

    def description(self, fleet: Fleet) -> dict[str, Any]:
        """For the endpoints file."""
        if self.address is None:
            return {}
        return {"metrics": {"scheme": self._scheme, "fleet": self.address, "agents": fleet.metrics}}

    def _targets(self, host: str) -> Content:
        """What Prometheus asks for service discovery by HTTP: the fleet and its agents, by the host it asked."""
        from hmarl.runtime.metrics_page import Content  # noqa: PLC0415 - not always needed

        agents = {} if self._fleet is None else self._fleet.metrics
        listed = targets(self.address or "", agents, host, self._scheme)
        return Content("application/json", json.dumps(listed).encode())


def targets(fleet: str, agents: Mapping[str, str], host: str, scheme: str) -> list[dict[str, Any]]:
    """Targets for Prometheus' ``http_sd_configs``, with the label ``fleet``: so alerts tell one team from another.

    Args:
        fleet: where the fleet's own metrics are read.
        agents: where those of its agents are, by id; a port of 0 is not known yet.
        host: by which the fleet was asked; an address that stands for all of the machine's is replaced by it.
        scheme: ``http`` or ``https``.
    """

    def seen(address: str) -> str:
        own, _, port = address.rpartition(":")
        return f"{host if own in _ANY and host else own}:{port}"

    team = {"fleet": seen(fleet), **({} if scheme == "http" else {"__scheme__": scheme})}

    def target(address: str, labels: dict[str, str]) -> dict[str, Any]:
        return {"targets": [seen(address)], "labels": team | labels}

    known = {agent_id: address for agent_id, address in agents.items() if not address.endswith(":0")}
    return [target(fleet, {}), *(target(address, {"agent": agent_id}) for agent_id, address in known.items())]


def open_page(
    listen: str,
    metrics: AgentMetrics | FleetMetrics,
    text: Callable[[], bytes],
    health: Mapping[str, Callable[[], bool]],
    access: Access | None,
    more: Mapping[str, Render] | None = None,
) -> MetricsPage:
    """A page at an address.

    Args:
        listen: ``HOST:PORT``.
        metrics: told of those who are not let in.
        text: the metrics, as the page has them.
        health: whether all is well, by path.
        access: who gets in where others reach it; on the loopback interface all do.
        more: other content by path.

    Raises:
        UsageError: it is malformed.
        HmarlError: it cannot be bound.
    """
    from hmarl.runtime.metrics import CONTENT_TYPE_LATEST  # noqa: PLC0415 - part of the metrics extra
    from hmarl.runtime.metrics_page import Content, MetricsPage  # noqa: PLC0415 - not always needed
    from hmarl.runtime.page_door import PageDoor  # noqa: PLC0415 - not always needed

    def told(well: Callable[[], bool]) -> Render:
        return lambda host: Content("text/plain", *((b"ok\n", 200) if well() else (b"not ok\n", 503)))

    host, port = metrics_address(listen)
    door = PageDoor(access, metrics.turned_away) if access is not None and is_exposed(host) else None
    pages = {METRICS: lambda host: Content(CONTENT_TYPE_LATEST, text()), **(more or {})}
    return MetricsPage(host, port, pages, door, {path: told(well) for path, well in health.items()})


def scheme(listen: str, access: Access) -> str:
    """By which a page is called."""
    exposed = is_exposed(metrics_address(listen)[0])
    return "https" if exposed and access.certificate is not None else "http"


def metrics_address(listen: str) -> tuple[str, int]:
    """Host and port of ``--metrics``.

    Raises:
        UsageError: it is malformed.
    """
    from hmarl.runtime.access import parse_address  # noqa: PLC0415 - not always needed

    try:
        return parse_address(listen)
    except UsageError:
        raise UsageError(f"--metrics: got '{listen}', expected HOST:PORT (for example 127.0.0.1:9464)") from None


def check_metrics_address(listen: str, security: SecuritySettings) -> None:
    """Refuse to be read by others without asking who they are, as acts are.

    Raises:
        UsageError: it is malformed, or others would read there unasked.
    """
    from hmarl.runtime.access import check_exposure  # noqa: PLC0415 - needs gRPC

    check_exposure(security, metrics_address(listen)[0], None, "--metrics", "127.0.0.1")


def is_exposed(host: str) -> bool:
    """Whether others than this machine may reach a host."""
    from hmarl.runtime.access import is_loopback  # noqa: PLC0415 - needs gRPC

    return not is_loopback(host)


def _access(security: SecuritySettings) -> Access:
    """What protects a page of a process that serves nothing else."""
    from hmarl.runtime.access import Access  # noqa: PLC0415 - needs gRPC
    from hmarl.runtime.repeats import RepeatLog  # noqa: PLC0415 - likewise

    access = Access(security, RepeatLog(LOGGER))
    access.start(threading.Event())  # until the process ends
    return access


def _agent_metrics() -> AgentMetrics:
    from hmarl.runtime.metrics import AgentMetrics, without_created  # noqa: PLC0415 - part of the metrics extra

    without_created()
    return AgentMetrics(lines_dropped)


def check_traces() -> None:
    """Refuse at once what every member of a fleet would refuse to send traces by.

    Raises:
        UsageError: the environment names an exporter that there is not.
        MissingExtraError: the extra ``otel`` is not installed.
    """
    from hmarl.runtime.tracing import exporter  # noqa: PLC0415 - part of the otel extra

    exporter()


def _traced(agent: str) -> Observer:
    from hmarl.runtime.tracing import TracedRequests, exporting_provider  # noqa: PLC0415 - part of the otel extra

    provider = exporting_provider("hmarl-agent", {"hmarl.agent": agent})
    at_end(provider.shutdown)
    return TracedRequests(provider)
