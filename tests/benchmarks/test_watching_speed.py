"""What it costs an act to be watched: agents with and without metrics and traces, asked in turns in the same run.

Two processes of one kind differ by several hundredths for as long as they live: each kind is started anew many times.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.metrics import AgentMetrics
from hmarl.runtime.session import Action
from hmarl.runtime.telemetry import Observer, Telemetry
from hmarl.runtime.tracing import TracedRequests, exporting_provider
from hmarl.sdk.clients.client import AgentClient
from scraping import get
from toy_bundle import write_toy_bundle

pytestmark = pytest.mark.benchmark
SETS = int(os.environ.get("HMARL_WATCHING_SETS", "12"))
ROUNDS, ACTS = 20, 50
KINDS: dict[str, list[str]] = {
    "without": [],
    "again without": [],  # how far apart two of the same are
    "metrics": ["--metrics", "127.0.0.1:0"],
    "traces, none sampled": ["--traces"],
    "traces, all sampled": ["--traces"],
}
SAMPLERS = {"traces, all sampled": "always_on"}


def paired(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of an act, over rounds in which all take turns, each time in another order."""
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for _ in range(ACTS):
                started = time.perf_counter()
                functions[name]()
                times[name].append((time.perf_counter() - started) * 1e6)
    return {name: statistics.median(each) for name, each in times.items()}


def interval(ratios: list[float]) -> str:
    """The median of ratios, and where it lies in 95 of 100 resamples."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"


def acting(bundle: Bundle, folder: Path, transport: str, stream: bool) -> dict[str, float]:
    """Microseconds of an act by kind, of processes that are started for it."""
    observation = np.random.default_rng(0).normal(size=18).astype(np.float32)
    functions: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        scraped = None
        for number, (name, options) in enumerate(KINDS.items()):
            listen = f"unix:{folder}/{number}" if transport == "unix" else "127.0.0.1:0"
            variables = {"OTEL_TRACES_EXPORTER": "none", "OTEL_TRACES_SAMPLER": SAMPLERS.get(name, "always_off")}
            before = ["env", *(f"{key}={value}" for key, value in variables.items())]
            process = AgentProcess(bundle.path, "agent_0", listen=listen, before=before, options=options)
            stack.enter_context(process)
            scraped = process.ready.get("metrics", scraped)
            client = stack.enter_context(AgentClient(process.address, stream=stream, timeout_s=10.0))
            client.reset(1)
            functions[name] = lambda client=client: client.act(observation)  # type: ignore[misc]
            for _ in range(200):
                functions[name]()
        assert scraped is not None
        over = threading.Event()
        reader = threading.Thread(target=scrape_every_second, args=(scraped, over))
        reader.start()
        times = paired(functions)
        over.set()
        reader.join()
    return times


def scrape_every_second(address: str, over: threading.Event) -> None:
    while not over.wait(1.0):
        get(address)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("stream", [False, True])
def test_acting_while_watched(tmp_path: Path, transport: str, stream: bool) -> None:
    bundle = write_toy_bundle(tmp_path / "b", observation_size=18, sizes=(64, 64), plain=True)
    sets = [acting(bundle, tmp_path, transport, stream) for _ in range(SETS)]
    print(f"\n{transport} {'streamed' if stream else 'unary'}, {SETS} processes of each kind", end="")
    for name in KINDS:
        median = statistics.median(times[name] for times in sets)
        ratios = [times[name] / times["without"] for times in sets]
        print(f"; {name} {median:.0f} us, ratio {interval(ratios)}", end="")


@pytest.mark.parametrize("kind", ["metrics", "traces, none sampled", "traces, all sampled"])
def test_what_is_done_for_each_act(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without processes and gRPC: the processor's time alone."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", SAMPLERS.get(kind, "always_off"))
    observer: Observer = AgentMetrics() if kind == "metrics" else TracedRequests(exporting_provider("benchmark"))
    without, watched = handling(Telemetry()), handling(Telemetry(observer))
    took: dict[Callable[[], object], list[float]] = {without: [], watched: []}
    for _ in range(15):
        for function, times in took.items():
            began = time.process_time()
            for _ in range(5000):
                function()
            times.append((time.process_time() - began) / 5000 * 1e6)
    print(
        f"\n{kind}: {statistics.median(took[watched]) - statistics.median(took[without]):.1f} us for each act", end=""
    )


class Call:
    """What handlers ask of a call that goes well."""

    def code(self) -> None:
        return None

    def is_active(self) -> bool:
        return True

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("user-agent", "grpc-python/1.85"),)


def handling(telemetry: Telemetry) -> Callable[[], object]:
    """One unary act, of which nothing but its being watched is done."""
    done = Action(0, 0, 0, False, {})
    act = telemetry.acting(lambda session, observation, mask, *, step: done)

    def handle(bodies: Iterator[bytes], context: object) -> bytes:
        act(None, None, None, step=0)
        return next(bodies)

    handle.experimental_thread_pool = None  # type: ignore[attr-defined]
    watched = telemetry.methods({"Act": grpc.stream_unary_rpc_method_handler(handle)})["Act"].stream_unary
    return lambda: watched(iter((b"",)), Call())
