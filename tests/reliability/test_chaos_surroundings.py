"""`make chaos`: a team plays while its surroundings fail: dead links, a full disk, clocks that jump or disagree.

Wrong or stale actions: 0. What is slow or stood in for by the fallback is told, not judged: it depends on the machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

import team_under_trouble
from agent_process import AgentProcess
from healthy_client import BUNDLE
from network_namespaces import needs_namespaces, network
from processes import children, wait_for
from rude_peers import undecodable
from small_disk import fill, small_disk

pytestmark = pytest.mark.reliability
SECONDS = 2 * float(os.environ.get("HMARL_CHAOS_SECONDS", "15"))
AGENTS = ("agent_0", "agent_1", "agent_2")
_SETTLED_S = 8.0  # before the end nothing goes wrong any more
Stir = Callable[[], object]


def played_beside(
    stir: Stir,
    endpoints: Mapping[str, str],
    *,
    before: Sequence[str] = (),
    timeout_s: float = 0.04,
) -> list[dict[str, object]]:
    """What a team's client reports, a process of its own, while ``stir`` makes trouble again and again."""
    words = [*before, sys.executable, team_under_trouble.__file__, str(BUNDLE), json.dumps(endpoints)]
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    words += [str(SECONDS + _SETTLED_S), str(timeout_s)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kept) as process:
        time.sleep(3.0)
        end = time.monotonic() + SECONDS - 3.0
        while time.monotonic() < end and process.poll() is None:
            stir()
        output, errors = process.communicate(timeout=SECONDS + 120)
    assert process.returncode == 0, errors
    report: list[dict[str, object]] = json.loads(output.splitlines()[-1])
    return report


def judge(what: str, report: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{what}: acts | missed | wrong or stale | p50 ms | p99 ms")
        for line in report:
            print(f"  {line['agent']}: {line['row']}")
    assert [line["wrong"] for line in report] == [0] * len(AGENTS)
    assert [line["fresh"] for line in report] == [True] * len(AGENTS), "not fresh at the end, with all in order again"


def test_dead_links(capsys: pytest.CaptureFixture[str]) -> None:
    """Every agent at the end of a cable of its own; cables are pulled out, one or all, for up to three seconds."""
    needs_namespaces()
    generator, cuts = random.Random(1), 0
    with ExitStack() as stack:
        net = stack.enter_context(network(len(AGENTS)))
        endpoints = {}
        for agent_id, cable in zip(AGENTS, net.cables, strict=True):
            agent = AgentProcess(BUNDLE, agent_id, cable.address, before=cable.inside, options=("--insecure",))
            endpoints[agent_id] = stack.enter_context(agent).address

        def stir() -> None:
            nonlocal cuts
            cut = generator.choice([*([cable] for cable in net.cables), list(net.cables)])
            for cable in cut:
                cable.cut()
            time.sleep(generator.uniform(0.05, 3.0))
            for cable in cut:
                cable.mend()
            cuts += len(cut)
            time.sleep(generator.uniform(0.2, 2.0))

        report = played_beside(stir, endpoints, before=net.client)
    judge(f"{cuts} dead links", report, capsys)


def test_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Endpoints file and log lie on a disk that fills up and empties, while peers cause log lines and agents die."""
    generator, kills = random.Random(2), 0
    with small_disk(tmp_path / "disk") as disk, (disk / "log").open("ab") as log:
        out, filler = disk / "endpoints.json", disk / "filler"
        command = [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(BUNDLE), "--out", str(out)]
        fleet = subprocess.Popen([*command, "--log-level", "debug"], stdout=subprocess.DEVNULL, stderr=log)
        try:
            wait_for(out.exists, "starting the fleet")
            written = out.read_bytes()
            endpoints = json.loads(written)["agents"]

            def stir() -> None:
                nonlocal kills
                fill(filler)
                time.sleep(generator.uniform(0.5, 2.0))
                os.kill(generator.choice(children(fleet.pid)), signal.SIGKILL)
                kills += 1
                time.sleep(generator.uniform(1.0, 4.0))
                filler.unlink()
                time.sleep(0.5)

            with undecodable(endpoints["agent_0"]):
                report = played_beside(stir, endpoints)
            assert out.read_bytes() == written
        finally:
            fleet.send_signal(signal.SIGTERM)
            assert fleet.wait(60) == 0
        assert not out.exists()
        lines = (disk / "log").stat().st_size
    judge(f"a disk that was full {kills} times, as many agents killed, {lines} bytes of log", report, capsys)


FAKETIME = os.environ.get("HMARL_FAKETIME", "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
JUMPS = ("+3600", "-3600", "+31536000", "-86400", "+0", "+5", "-5")


def test_clocks_that_jump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The agents' time of day jumps by seconds, hours and a year.

    The library that fakes it makes every wait of gRPC long, so acts have five seconds here, and clients keep their own
    clock: in their processes it breaks ``time.sleep``.
    """
    if not Path(FAKETIME).exists():
        pytest.skip("libfaketime is not installed: apt-get install libfaketime, or HMARL_FAKETIME=PATH")
    generator, jumps, clock = random.Random(3), 0, tmp_path / "clock"
    clock.write_text("+0\n")
    faked = [f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1"]
    before = ["env", *faked, "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"]

    def stir() -> None:
        nonlocal jumps
        clock.write_text(generator.choice(JUMPS) + "\n")
        jumps += 1
        time.sleep(generator.uniform(0.2, 1.5))

    with ExitStack() as stack:
        agents = {agent_id: stack.enter_context(AgentProcess(BUNDLE, agent_id, before=before)) for agent_id in AGENTS}
        endpoints = {agent_id: agent.address for agent_id, agent in agents.items()}
        report = played_beside(stir, endpoints, timeout_s=5.0)
    judge(f"{jumps} jumps of the agents' time of day", report, capsys)


def test_clocks_that_disagree(capsys: pytest.CaptureFixture[str]) -> None:
    """Agents die and come back on machines that have been up for seconds, or for years: nothing compares clocks."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--time", "true"], check=False).returncode:
        pytest.skip("time namespaces cannot be made here (unshare --time)")
    generator, restarts = random.Random(4), 0

    def elsewhen() -> list[str]:
        up = str(generator.choice((0, 60, 86400, 10**8)))
        return ["unshare", "--time", "--monotonic", up, "--boottime", up]

    agents = {agent_id: AgentProcess(BUNDLE, agent_id, before=elsewhen()) for agent_id in AGENTS}

    def stir() -> None:
        nonlocal restarts
        agent_id = generator.choice(AGENTS)
        address = agents[agent_id].address
        agents[agent_id].kill()
        agents[agent_id] = AgentProcess(BUNDLE, agent_id, address, before=elsewhen())
        restarts += 1
        time.sleep(generator.uniform(0.5, 2.0))

    try:
        endpoints = {agent_id: agent.address for agent_id, agent in agents.items()}
        report = played_beside(stir, endpoints, before=elsewhen())
    finally:
        for agent in agents.values():
            agent.kill()
    judge(f"{restarts} restarts, each with another clock", report, capsys)
