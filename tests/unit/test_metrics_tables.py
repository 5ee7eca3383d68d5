"""docs/runtime.md lists the metrics that there are, all of them and no others, with their labels."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from hmarl.agent.v1.status import Code
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.metrics import AgentMetrics, FleetMetrics
from hmarl.runtime.session import Policy
from hmarl.runtime.telemetry import Answer
from hmarl.sdk import ClientMetrics, LocalAgent
from installed import ROOT

PAGE = ROOT / "docs" / "runtime.md"
RULES = ROOT / "runtime" / "deploy" / "prometheus"


class Server:
    """One that serves a policy."""

    serving, open_sessions, open_streams = True, 0, 0

    def __init__(self, policy: Policy) -> None:
        self.policy = policy


class Member:
    """One of a fleet."""

    def __init__(self) -> None:
        self.serving, self.restarts = True, Counter(exited=0)


class Team:
    """A fleet."""

    bundle_sha256 = "x"

    def __init__(self) -> None:
        self.members, self.reloads = {"agent_0": Member()}, Counter(reloaded=0)


def exported(bundle: Bundle) -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric of ours, by the name that is written of it."""
    agent = AgentMetrics()
    agent.answered([Answer("Act", Code.OK, 0.0, 0.0)])
    agent.watch(Server(Policy(bundle, "agent_0")), lambda: 0.0)
    fleet = FleetMetrics(Team())
    registry = CollectorRegistry()
    with LocalAgent(bundle, "agent_0") as local:
        ClientMetrics(local, registry=registry)
        text = (agent.text() + fleet.text() + generate_latest(registry)).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name if family.type in ("counter", "gauge") else family.name
            if name.startswith("hmarl_") and not name.endswith("_created"):
                kind = "info" if name.endswith("_info") else family.type
                found[name] = (kind, set(sample.labels) - {"le"})
    return found


def listed(page: Path) -> dict[str, tuple[str, set[str]]]:
    """Those of the page's tables."""
    found = {}
    for cell, kind in re.findall(r"^\| (`hmarl_.*?) \| (.*?) \|", page.read_text(), re.MULTILINE):
        what, _, labels = kind.partition("; ")
        for name in re.findall(r"`(\w+)`", cell):
            found[name] = (what, set(filter(None, labels.split(", "))))
    return found


def test_the_page_lists_every_metric_and_no_other(toy_bundle: Bundle) -> None:
    assert listed(PAGE) == exported(toy_bundle)


def test_rules_ask_for_metrics_that_there_are_and_each_is_tested(toy_bundle: Bundle) -> None:
    known = exported(toy_bundle).keys()
    rules, tests = ((RULES / name).read_text() for name in ("alerts.yml", "alerts_test.yml"))
    names = re.findall(r"\bhmarl_\w+", rules)
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert min(len(names), len(alerts)) > 10
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in names} <= known
    assert [alert for alert in alerts if f'alertname="{alert}"' not in tests] == []
