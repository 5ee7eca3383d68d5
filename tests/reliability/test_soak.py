"""`make soak`: a million acts, each held against the same policy in this process; memory, threads and files."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from agent_process import AgentProcess
from healthy_client import AGENT, BUNDLE, Reference
from hmarl.sdk.clients.client import AgentClient
from processes import descriptors, rss_mib, threads

pytestmark = pytest.mark.reliability
ACTS = int(os.environ.get("HMARL_SOAK_ACTS", "1000000"))
_EPISODE = 1000
_PARTS = 10
_PATIENCE_S = 60.0  # a machine that others share may stand still for seconds


def test_a_million_acts(capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    rows, wrong, stale = [], 0, 0
    with capsys.disabled():
        print("\n  part | RSS, MiB | threads | files | p50, us | p99, us | s")
    reference = Reference()
    with AgentProcess(BUNDLE, AGENT) as agent:
        pid = agent.process.pid
        clients = [AgentClient(agent.address, timeout_s=_PATIENCE_S, stream=stream) for stream in (False, True)]
        for part in range(_PARTS):
            latencies, begun = [], time.monotonic()
            for act in range(ACTS // _PARTS):
                client = clients[act // _EPISODE % 2]
                if act % _EPISODE == 0:
                    client.reset(act)
                observation = generator.normal(size=18).astype(np.float32)
                got = client.act(observation)
                latencies.append(got.latency_s)
                stale += not got.fresh
                wrong += got.action != reference.action(observation)
            p50, p99 = np.percentile(latencies, (50, 99)) * 1e6
            rows.append((rss_mib(pid), threads(pid), descriptors(pid), p50, p99, time.monotonic() - begun))
            with capsys.disabled():
                print(f"  {part} | " + " | ".join(f"{value:.1f}" for value in rows[-1]), flush=True)
        for client in clients:
            client.close()
    with capsys.disabled():
        print(f"{ACTS:,} acts, half unary, half streamed: wrong {wrong}, not fresh {stale}")
    assert wrong == 0
    assert stale == 0
    first, last = rows[1], rows[-1]  # the first part fills pools and caches
    assert last[0] <= 1.05 * first[0]
    assert last[1] <= first[1] + 10, "pools add a thread where a call comes while all are busy; a leak is one a call"
    assert last[2] <= first[2] + 2
