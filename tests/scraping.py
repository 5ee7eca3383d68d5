"""Metrics as Prometheus reads them: over HTTP, as text."""

from __future__ import annotations

import json
import ssl
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


class Scraped:
    """The samples of one reading."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """One sample; 0 where there is none."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of all samples of a name."""
        return [dict(labels) for (each, labels) in self.samples if each == name]


def get(address: str, path: str = "/metrics", context: ssl.SSLContext | None = None, token: str | None = None) -> str:
    """What is served at a path, over TLS with a context, with a bearer token if there is one."""
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    scheme = "http" if context is None else "https"
    request = urllib.request.Request(f"{scheme}://{address}{path}")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.build_opener(*handlers).open(request, timeout=20) as answer:
        return str(answer.read().decode())


def scrape(address: str) -> Scraped:
    """The metrics that are served now."""
    return Scraped(get(address))


def targets(address: str) -> list[dict[str, Any]]:
    """What Prometheus' discovery by HTTP reads."""
    found: list[dict[str, Any]] = json.loads(get(address, "/targets"))
    return found
