"""Debian's Prometheus scrapes a fleet under load; alerts are silent while all is well and fire when agents fail.

Run with -s for the report of docs/results/watching.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, start_http_server

from hmarl.runtime.bundle import load_bundle
from hmarl.sdk import AgentClient, ClientMetrics, Zero
from processes import children, fleet_process
from running_prometheus import DEPLOY, LIMIT_S, Prometheus, free_port, prometheus, until
from scraping import get
from serving import SHIPPED_BUNDLE

pytestmark = pytest.mark.peers
HEALTHY_S = 30.0
OF_A_FREEZE = ("HmarlAgentDown", "HmarlFallbacks", "HmarlAgentRestarted")
HZ = 20.0
TIMEOUT_S = 0.5  # other things may run on this machine; a deadline that it misses is rightly an alert


def say(text: str) -> None:
    print(f"\n{text}", end="")


def checked(*words: str, stdin: str | None = None) -> str:
    """What a program says, which must succeed."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_the_rules_are_valid_and_each_fires_when_it_should(installed_program: Callable[[str], str]) -> None:
    promtool = installed_program("promtool")
    say(checked(promtool, "check", "config", str(DEPLOY / "prometheus.yml")).strip())
    say(checked(promtool, "check", "config", "--syntax-only", str(DEPLOY / "prometheus-tls.yml")).strip())
    say(checked(promtool, "test", "rules", str(DEPLOY / "alerts_test.yml")).strip())


def test_a_rule_that_cannot_fire_is_noticed(installed_program: Callable[[str], str], tmp_path: Path) -> None:
    rules = (DEPLOY / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(rules.replace("hmarl_fleet_restarts_total", "hmarl_fleet_restart_total"))
    (tmp_path / "alerts_test.yml").write_text((DEPLOY / "alerts_test.yml").read_text())
    words = [installed_program("promtool"), "test", "rules", str(tmp_path / "alerts_test.yml")]
    assert subprocess.run(words, capture_output=True, check=False, timeout=LIMIT_S).returncode != 0


class Player:
    """A client in a control loop of 20 Hz, in a thread of its own."""

    def __init__(self, address: str, size: int, metrics: ClientMetrics, stream: bool) -> None:
        self._address, self._size, self._metrics, self._stream = address, size, metrics, stream
        self._stopped = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        observation = np.zeros(self._size, np.float32)
        try:
            with AgentClient(self._address, timeout_s=TIMEOUT_S, fallback=Zero(), stream=self._stream) as agent:
                self._metrics.add(agent)
                agent.reset(1)
                while not self._stopped.wait(1 / HZ):
                    agent.act(observation)
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(LIMIT_S)
        assert self.error is None


def test_a_fleet_is_watched_through_a_kill_and_a_freeze(
    installed_program: Callable[[str], str], tmp_path: Path
) -> None:
    program, promtool = installed_program("prometheus"), installed_program("promtool")
    bundle = load_bundle(SHIPPED_BUNDLE)
    registry = CollectorRegistry()
    robot = free_port()
    start_http_server(robot, "127.0.0.1", registry)
    metrics = ClientMetrics(registry=registry)
    with fleet_process(
        bundle, tmp_path / "endpoints.json", "--metrics", "127.0.0.1:0", "--log-level", "error"
    ) as fleet:
        assert fleet.stdout is not None
        told = json.loads(fleet.stdout.readline())
        players = [
            Player(address, bundle.agent(name).observation.shape[0], metrics, stream=bool(index % 2))
            for index, (name, address) in enumerate(told["agents"].items())
        ]
        config = (DEPLOY / "prometheus.yml").read_text().replace("127.0.0.1:9464", told["metrics"]["fleet"])
        config += f'  - job_name: robot\n    static_configs: [{{targets: ["127.0.0.1:{robot}"]}}]\n'
        with prometheus(program, tmp_path, config) as watching:
            pids = members(fleet.pid)
            _healthy(watching, promtool, told["metrics"], robot)
            _killed(watching, pids["agent_0"])
            _frozen(watching, pids["agent_1"])
            fired = watching.ever_fired()
            say(f"alerts that fired in all: {sorted(fired)}")
            due = {("HmarlAgentRestarted", "agent_0"), *((name, "agent_1") for name in OF_A_FREEZE)}
            # What was asked of them meanwhile may be many acts or few; agent_2 has no part in it.
            also = {("HmarlActsFail", "agent_0"), ("HmarlActsFail", "agent_1"), ("HmarlFallbacks", "agent_0")}
            assert due <= fired <= due | also
        for player in players:
            player.stop()


def members(fleet: int) -> dict[str, int]:
    """Process ids of a fleet's agents."""
    found = {}
    for pid in children(fleet):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        found.update({word.removeprefix("--agent="): pid for word in words if word.startswith("--agent=")})
    return found


def _healthy(watching: Prometheus, promtool: str, told: dict[str, Any], robot: int) -> None:
    agents = sorted(told["agents"])
    until(lambda: watching.values('up{agent!=""} == 1').keys() == set(agents), "targets")
    began = time.monotonic()
    while time.monotonic() - began < HEALTHY_S:
        alerts = watching.ask("alerts")["alerts"]
        assert not alerts, [(each["labels"], each["annotations"]["summary"]) for each in alerts]
        time.sleep(1)
    say(f"healthy for {HEALTHY_S:g} s, {len(agents)} agents at {HZ:g} Hz each: no alert, none pending")
    acts = watching.values('sum by (agent) (rate(hmarl_agent_requests_total{method=~"Act|StreamAct", code="OK"}[20s]))')
    fresh = watching.values("rate(hmarl_client_fresh_acts_total[20s])")
    assert all(acts[name] > HZ / 4 for name in agents)
    for name in agents:
        for_agent = f'histogram_quantile(0.5, sum by (agent, le) (rate(%s_bucket{{agent="{name}"}}[20s])))'
        quantiles = [
            1e6 * watching.values(for_agent % each)[name]
            for each in ("hmarl_agent_policy_seconds", "hmarl_agent_act_seconds", "hmarl_client_act_seconds")
        ]
        say(
            f"{name}: {acts[name]:.1f} acts/s, {fresh[name]:.1f} of them fresh at the client; median in the policy "
            f"{quantiles[0]:.0f} us, in the server {quantiles[1]:.0f} us, at the client {quantiles[2]:.0f} us"
        )
    for where in (told["fleet"], *told["agents"].values(), f"127.0.0.1:{robot}"):
        said = checked(promtool, "check", "metrics", stdin=get(where)).strip()
        assert said == "", said
    say(f"promtool check metrics: fleet, {len(agents)} agents and the program that acts: nothing to complain of")


def _killed(watching: Prometheus, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    took = until(lambda: ("HmarlAgentRestarted", "agent_0") in watching.firing(), "the alert of a restart")
    say(f"agent_0 killed: HmarlAgentRestarted fires after {took:.1f} s")
    until(lambda: watching.values('up{agent="agent_0"}') == {"agent_0": 1.0}, "agent_0")


def _frozen(watching: Prometheus, pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    took = until(lambda: ("HmarlAgentDown", "agent_1") in watching.firing(), "the alert of a freeze")
    say(f"agent_1 frozen: HmarlAgentDown fires after {took:.1f} s")
    until(lambda: ("HmarlFallbacks", "agent_1") in watching.firing(), "the alert of fallbacks")
    took = until(lambda: ("HmarlAgentRestarted", "agent_1") in watching.firing(), "the restart of the frozen one")
    say(f"HmarlFallbacks fires, and the fleet starts agent_1 again: HmarlAgentRestarted {took:.1f} s later")
    took = until(lambda: ("HmarlAgentDown", "agent_1") not in watching.firing(), "the end of the alert")
    say(f"HmarlAgentDown is over {took:.1f} s later")
    frozen = watching.values('hmarl_fleet_restarts_total{reason="frozen"}')
    assert (frozen["agent_0"], frozen["agent_1"]) == (0, 1)
