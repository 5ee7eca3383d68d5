"""What a GPU brings, measured at once, in less than ten minutes: tests, rollouts, updates and serving beside the CPU.

    python scripts/gpu_check.py                       # writes docs/results/gpu.md
    python scripts/gpu_check.py --minutes 4 --out /tmp/gpu.md
    python scripts/gpu_check.py --cpu                 # the CPU's columns, where there is no GPU

Without a CUDA device it says so, and every row of one is marked "not run"; it ends well all the same. What one row
raises is written in its place and keeps no other from being measured. Needs the extras ``train``, ``vmas`` and ``dev``,
and for the rows of serving ``onnxruntime-gpu`` in the place of ``onnxruntime``.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.command_line import PATH, POSITIVE, command, flag, option, run
from hmarl.runtime.session import Policy
from hmarl.runtime.verify import verify_agent
from hmarl.trainer.runs.config import make_config
from hmarl.trainer.runs.training import Training

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "gpu.md"
BUNDLE = ROOT / "models" / "simple-spread-hcpo"
TESTS = [
    "tests/unit/test_host_waits.py", "tests/unit/test_torch_backends.py", "tests/unit/test_device_rollouts.py",
    "tests/unit/test_device_parity.py", "tests/unit/test_matmul_precision.py", "tests/unit/test_policy_session.py",
    "tests/unit/test_captured.py",
]  # fmt: skip
NOT_RUN = "not run"
STEPS = 25  # of a rollout, in each environment
LONGEST_S = 6.0  # after which no further rollout and update of a row begin


@dataclass
class Table:
    """A table of the page.

    Attributes:
        title: above it.
        columns: its head.
        rows: its cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def text(self) -> str:
        """As Markdown."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return f"## {self.title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True)
class Budget:
    """Until when rows may begin, on the clock of ``time.monotonic``."""

    end_s: float

    @property
    def left_s(self) -> float:
        """Seconds."""
        return self.end_s - time.monotonic()


@dataclass(frozen=True)
class Case:
    """What is trained: an algorithm with its settings, a task, and its arguments by column."""

    algorithm: str
    task: str
    environments: int
    on_cpu: dict[str, Any]
    on_gpu: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In a table."""
        return f"`{self.task}`, B = {self.environments:,}"


def cell(measure: Callable[[], str], there: bool, budget: Budget) -> str:
    """What a measurement says, or why there is none."""
    if not there:
        return NOT_RUN
    if budget.left_s <= 0:
        return f"{NOT_RUN}: out of time"
    try:
        return measure()
    except Exception as error:  # a row must not keep the others from being measured
        return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def iterations_s(case: Case, device: str, budget: Budget, updated: bool = True, **settings: Any) -> tuple[float, float]:
    """Median seconds of a rollout and of an update, after two to warm up; of ten, or fewer slow ones."""
    arguments = case.on_cpu if device == "cpu" else case.on_gpu
    run_settings = {"device": device, "environments": case.environments, "rollout_length": STEPS, **settings}
    training = Training(make_config(case.algorithm, case.task, case.settings, run_settings, arguments))
    rollouts, updates = [], []
    try:
        begin = time.monotonic()
        for _ in range(12):
            rollouts.append(timed(device, training.collect))
            updates.append(timed(device, lambda: training.update(0.0)) if updated else 0.0)
            if len(updates) > 2 and (time.monotonic() - begin > LONGEST_S or budget.left_s < 0):
                break
    finally:
        training.close()
    return statistics.median(rollouts[2:]), statistics.median(updates[2:])


def timed(device: str, do: Callable[[], object]) -> float:
    """Seconds until all that was asked for has been done."""
    begin = time.perf_counter()
    do()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def training_tables(there: bool, with_cpu: bool, budget: Budget) -> list[Table]:
    """Rollouts by environment and backend, updates by algorithm."""
    torch_cpu, torch_gpu = {"backend": "torch"}, {"backend": "torch", "device": "cuda"}
    rollouts = Table("Rollouts, frames/s", ("HAPPO", "CPU, NumPy", "CPU, torch", "GPU, torch", "GPU memory"))
    for task in ("mpe/simple_spread", "coordsum/3x10-30"):
        for count in (256, 4096, 16384):
            plain, device = Case("happo", task, count, {}, torch_gpu), Case("happo", task, count, torch_cpu, torch_gpu)
            cells = [
                cell(lambda case=plain: rate(case, "cpu", budget), with_cpu, budget),  # type: ignore[misc]
                cell(lambda case=device: rate(case, "cpu", budget), with_cpu, budget),  # type: ignore[misc]
                cell(lambda case=device: rate(case, "cuda", budget), there, budget),  # type: ignore[misc]
                cell(memory, there, budget),
            ]
            rollouts.rows.append((plain.name, *cells))
    vmas = Case("mappo", "vmas/navigation", 1024, {}, {"device": "cuda"})
    cells = [cell(lambda: rate(vmas, "cpu", budget), with_cpu, budget)]
    cells += [cell(lambda: rate(vmas, "cuda", budget), there, budget), cell(memory, there, budget)]
    rollouts.rows.append((f"MAPPO, {vmas.name}", "", *cells))
    head = ("`mpe/simple_spread`, B = 1,024", "CPU", "GPU", "GPU, `run.matmul_precision=high`")
    updates = Table("Updates, seconds", head)
    for algorithm in ("happo", "mappo", "hatrpo", "hcpo", "magpo"):
        case = Case(algorithm, "mpe/simple_spread", 1024, {}, torch_gpu)
        cells = [
            cell(lambda case=case: update(case, "cpu", budget), with_cpu, budget),  # type: ignore[misc]
            cell(lambda case=case: update(case, "cuda", budget), there, budget),  # type: ignore[misc]
            cell(
                lambda case=case: update(case, "cuda", budget, matmul_precision="high"),  # type: ignore[misc]
                there,
                budget,
            ),
        ]
        updates.rows.append((algorithm.upper(), *cells))
    return [rollouts, updates]


def graphs_table(there: bool, budget: Budget) -> Table:
    """Guiders' updates as CUDA graphs and step by step, with MAPPO's beside them."""
    head = ("`mpe/simple_spread`, B = 1,024, GPU", "update by the host, s", "as a graph, s", "frames/s", "as a graph")
    table = Table("Updates as CUDA graphs", head)
    on_gpu = {"backend": "torch", "device": "cuda"}
    for name, algorithm, settings in (
        ("MAPPO", "mappo", {}),
        ("MAGPO", "magpo", {}),
        ("MAGPO, guider=sable", "magpo", {"guider": "sable"}),
        ("MAGPO, guider_epochs=3", "magpo", {"guider_epochs": 3}),
        ("MAT", "mat", {}),
    ):
        found: list[tuple[str, str]] = []
        for graphs in (False, True) if algorithm != "mappo" else (None,):
            chosen = settings if graphs is None else {**settings, "cuda_graphs": graphs}
            case = Case(algorithm, "mpe/simple_spread", 1024, {}, on_gpu, chosen)
            both = cell(lambda case=case: pace(case, budget), there, budget)  # type: ignore[misc]
            update_s, _, frames = both.partition("|")
            found.append((update_s, frames or update_s))
        of_host, of_graph = found[0], found[1] if len(found) > 1 else ("–", "–")
        table.rows.append((name, of_host[0], of_graph[0], of_host[1], of_graph[1]))
    return table


def pace(case: Case, budget: Budget) -> str:
    """Seconds of an update, and frames/s of rollouts and updates, divided by a bar."""
    rollout_s, update_s = iterations_s(case, "cuda", budget)
    return f"{update_s:.3f}|{case.environments * STEPS / (rollout_s + update_s):,.0f}"


def rate(case: Case, device: str, budget: Budget) -> str:
    """Frames/s of rollouts."""
    rollout_s, _ = iterations_s(case, device, budget, updated=False)
    return f"{case.environments * STEPS / rollout_s:,.0f}"


def update(case: Case, device: str, budget: Budget, **settings: Any) -> str:
    """Seconds of an update."""
    return f"{iterations_s(case, device, budget, **settings)[1]:.3f}"


def memory() -> str:
    """The most that torch has held on the device since the row before."""
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f"{peak:.2f} GiB"


def serving_table(with_cpu: bool, budget: Budget) -> Table:
    """Start-up, parity and latency of one agent on every provider."""
    table = Table("Serving `models/simple-spread-hcpo`", ("", "start, s", "parity error", "act p50, µs", "p99, µs"))
    for provider, name in (("cpu", "CPU"), ("cuda", "CUDA"), ("tensorrt", "Tensorrt")):
        there = with_cpu if provider == "cpu" else f"{name}ExecutionProvider" in onnxruntime.get_available_providers()
        found = cell(lambda provider=provider: served(provider), there, budget)  # type: ignore[misc]
        cells = found.split("|") if "|" in found else [found, "", "", ""]
        table.rows.append((f"`--provider {provider}`", *cells))
    return table


def served(provider: str) -> str:
    """Cells of one provider's row, divided by bars."""
    bundle = load_bundle(BUNDLE)
    agent = bundle.manifest.agents[0].id
    begin = time.perf_counter()
    policy = Policy(bundle, agent, provider)
    start_s = time.perf_counter() - begin
    report = verify_agent(bundle, agent, provider)
    if report.problems:
        raise RuntimeError(report.problems[0])
    session = policy.session()
    session.reset(0)
    observation = np.zeros(policy.agent.observation.shape, np.float32)
    taken_us = []
    for _ in range(3000):
        begin = time.perf_counter()
        session.act(observation)
        taken_us.append((time.perf_counter() - begin) * 1e6)
    p50, p99 = np.percentile(taken_us[500:], [50, 99])
    return f"{start_s:.2f}|{report.parity_error:.1e}|{p50:.0f}|{p99:.0f}"


def device_tests(there: bool, budget: Budget) -> str:
    """The last line that pytest says."""
    if not there:
        return NOT_RUN
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    try:
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, timeout=max(budget.left_s / 2, 60.0), check=False
        )
    except subprocess.TimeoutExpired as error:
        return f"cut off after {error.timeout:.0f} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return "\n".join([done.stdout.strip().splitlines()[-1], *failed])


def machine(there: bool) -> str:
    """What was measured on."""
    cpu = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {cpu}" if there else f"no CUDA device; {cpu}"


@command(
    "gpu_check.py",
    option("--out", "the page to be written", PATH, default=PAGE),
    option("--minutes", "in which all is to be done", POSITIVE, default=9.0),
    flag("--cpu", "measure the CPU's columns where there is no GPU as well"),
)
def check(out: Path, minutes: float, cpu: bool) -> int:
    """Measure everything, and write the page."""
    there, budget = torch.cuda.is_available(), Budget(time.monotonic() + 60.0 * minutes)
    if not there:
        print(f"no CUDA device here (torch {torch.__version__}): its rows are marked '{NOT_RUN}'")
    tests = device_tests(there, budget)
    tables = [
        serving_table(there or cpu, budget),
        *training_tables(there, there or cpu, budget),
        graphs_table(there, budget),  # last: where it fails, no other row has to be measured after it
    ]
    text = "\n\n".join(
        [
            "# On a GPU",
            "Written by `python scripts/gpu_check.py`, which runs the tests of devices and measures all at once; "
            f"“{NOT_RUN}”: there was no such device, or no time.",
            f"Machine: {machine(there)}.",
            f"Tests of devices: {tests}.",
            *(table.text() for table in tables),
        ]
    )
    out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(check))
