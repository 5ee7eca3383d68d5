"""A running Prometheus, as Debian has it, with the alert rules that ship."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from installed import ROOT
from scraping import get

DEPLOY = ROOT / "runtime" / "deploy" / "prometheus"
LIMIT_S = 60.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Prometheus:
    """A running one, asked over its own interface."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **arguments: str) -> Any:
        query = f"?{urllib.parse.urlencode(arguments)}" if arguments else ""
        return json.loads(get(self.address, f"/api/v1/{path}{query}"))["data"]

    def values(self, query: str) -> dict[str, float]:
        """The values of a query by the label agent."""
        found = self.ask("query", query=query)["result"]
        return {each["metric"].get("agent", ""): float(each["value"][1]) for each in found}

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire now, and for which agent."""
        alerts = self.ask("alerts")["alerts"]
        return {
            (each["labels"]["alertname"], each["labels"].get("agent", ""))
            for each in alerts
            if each["state"] == "firing"
        }

    def ever_fired(self) -> set[tuple[str, str]]:
        """Alerts that have fired at any time, and for which agent."""
        found = self.ask("query", query='count by (alertname, agent) (max_over_time(ALERTS{alertstate="firing"}[1h]))')
        return {(each["metric"]["alertname"], each["metric"].get("agent", "")) for each in found["result"]}


@contextmanager
def prometheus(program: str, folder: Path, config: str) -> Iterator[Prometheus]:
    """One with a configuration, and with the alert rules that we ship."""
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_text((DEPLOY / "alerts.yml").read_text())
    address = f"127.0.0.1:{free_port()}"
    words = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    words += [f"--web.listen-address={address}", "--log.level=warn"]
    with subprocess.Popen(words) as process:
        try:
            until(lambda: ready(address), "Prometheus")
            yield Prometheus(address)
        finally:
            process.terminate()


def ready(address: str) -> bool:
    try:
        return "Ready" in get(address, "/-/ready")
    except OSError:
        return False


def until(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> float:
    """Wait for something; returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, f"{what}: not within {limit_s} s"
        time.sleep(0.2)
    return time.monotonic() - began
