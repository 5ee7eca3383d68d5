"""What it costs an act to be recorded: agents with and without --record, asked in turns in the same run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.session import Policy
from hmarl.sdk.clients.client import AgentClient
from recorded import recorded
from toy_bundle import write_toy_bundle

pytestmark = pytest.mark.benchmark
SETS = int(os.environ.get("HMARL_RECORDING_SETS", "6"))
ROUNDS, ACTS = 20, 100
KINDS = ("without", "again without", "recorded")  # the second: how far apart two of the same are
TICKS_S = os.sysconf("SC_CLK_TCK")


def processor_s(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def interval(ratios: list[float]) -> str:
    """The median of ratios, and where it lies in 95 of 100 resamples."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"


def acting(bundle: Bundle, folder: Path, stream: bool, period_s: float) -> dict[str, tuple[float, float, float]]:
    """By kind, of processes that are started for it: p50 and p99 of an act, and the agent's processor time, in us."""
    observation = np.random.default_rng(0).normal(size=18).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in KINDS}
    taken = dict.fromkeys(KINDS, 0.0)
    with ExitStack() as stack:
        clients: dict[str, tuple[AgentClient, int]] = {}
        for name in KINDS:
            options = ("--record", str(folder / "box")) if name == "recorded" else ()
            listen = f"unix:{folder}/{name.replace(' ', '-')}"
            process = stack.enter_context(AgentProcess(bundle.path, "agent_0", listen=listen, options=options))
            client = stack.enter_context(AgentClient(process.address, stream=stream, timeout_s=10.0))
            client.reset(1)
            for _ in range(200):
                client.act(observation)
            clients[name] = client, process.process.pid
        for turn in range(ROUNDS):
            for name in KINDS[turn % len(KINDS) :] + KINDS[: turn % len(KINDS)]:
                client, pid = clients[name]
                before_s = processor_s(pid)
                for _ in range(ACTS):
                    began = time.perf_counter()
                    client.act(observation)
                    times[name].append((time.perf_counter() - began) * 1e6)
                    if period_s:
                        time.sleep(max(0.0, period_s - (time.perf_counter() - began)))
                time.sleep(0.3)  # what is recorded is written by then
                taken[name] += processor_s(pid) - before_s
    acts = ROUNDS * ACTS
    return {
        name: (*np.quantile(times[name], [0.5, 0.99]), taken[name] / acts * 1e6)  # type: ignore[misc]
        for name in KINDS
    }


@pytest.mark.parametrize("hz", [0, 200])
@pytest.mark.parametrize("stream", [False, True])
def test_acting_while_recorded(tmp_path: Path, stream: bool, hz: int) -> None:
    bundle = write_toy_bundle(tmp_path / "b", observation_size=18, sizes=(64, 64), plain=True)
    sets = [acting(bundle, tmp_path, stream, 1 / hz if hz else 0.0) for _ in range(SETS if not hz else 1)]
    how = f"{'streamed' if stream else 'unary'}, {f'at {hz} Hz' if hz else 'one after the other'}"
    print(f"\n{how}, {len(sets)} processes of each kind", end="")
    for name in KINDS:
        for index, what in enumerate(("p50", "p99", "processor time")):
            median = statistics.median(each[name][index] for each in sets)
            ratios = [each[name][index] / each["without"][index] for each in sets]
            print(f"; {name} {what} {median:.0f} us, ratio {interval(ratios)}", end="")


@pytest.mark.parametrize("plain", [True, False])
def test_what_is_done_for_each_act(tmp_path: Path, plain: bool) -> None:
    """Without processes and gRPC: what the acting thread does, and what all threads take of the processor."""
    bundle = write_toy_bundle(tmp_path / "b", observation_size=18, sizes=(64, 64), plain=plain)
    generator = np.random.default_rng(0)
    observation = generator.normal(size=18).astype(np.float32)
    mask = None if plain else np.ones(5, bool)
    with recorded(bundle, tmp_path / "box") as policy:
        sessions = {"without": Policy(bundle, "agent_0").session(), "recorded": policy.session()}
        taken: dict[tuple[str, str], list[float]] = {}
        clocks: dict[str, Callable[[], float]] = {"thread": time.thread_time, "all": time.process_time}
        for session in sessions.values():
            session.reset(1)
        for _ in range(12):
            for name, session in sessions.items():
                before = {what: clock() for what, clock in clocks.items()}
                for _ in range(1000):
                    session.act(observation, mask)
                of_thread = clocks["thread"]() - before["thread"]
                time.sleep(0.6)  # what is recorded is written by then
                taken.setdefault((name, "thread"), []).append(of_thread * 1e3)
                taken.setdefault((name, "all"), []).append((clocks["all"]() - before["all"]) * 1e3)
    print("\nplain policy" if plain else "\npolicy with state, mask and diagnostics", end="")
    for what in clocks:
        with_it, without = (statistics.median(taken[name, what]) for name in ("recorded", "without"))
        where = "the acting thread" if what == "thread" else "all threads"
        print(f"; {where}: {without:.1f} us without, {with_it - without:.1f} us more for each act", end="")
