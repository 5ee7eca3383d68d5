"""A MuJoCo team in a control loop, each agent served by a process: how well it keeps time.

    python scripts/control_loop.py                        # 50, 200 and 500 Hz, a minute each, alone and beside hogs
    python scripts/control_loop.py --machine --seconds 5  # what settings of the machine bring, one after the other

The robot is a HalfCheetah whose front and hind legs are an agent each (``models/halfcheetah-2x3-hamdpo``); a tick reads
what both observe, asks both, and advances the physics. Every loop is run by a process of its own. With ``--machine``
all settings take turns in each round, in another order each time. Prints tables for docs/results/control-loop.md.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.runtime.command_line import POSITIVE, command, flag, integer, option, run
from hmarl.sdk import (
    AgentClient,
    Command,
    ControlLoop,
    Hold,
    LoopSummary,
    StampedObservation,
    UsageError,
    Zero,
    make_environment,
)

BUNDLE = Path(__file__).parents[1] / "models" / "halfcheetah-2x3-hamdpo"
IDS = ("agent_0", "agent_1")
RATES_HZ = (50.0, 200.0, 500.0)
TRANSPORTS = {"frames": ("frames", False), "unix, streamed": ("unix", True), "tcp, unary": ("tcp", False)}
MACHINE_RATE_HZ = 200.0
_PR_SET_TIMERSLACK = 29
_MCL_CURRENT_AND_FUTURE = 3


class Robot:
    """The simulated robot: what its agents observe, and what is done."""

    def __init__(self) -> None:
        self._environment = make_environment("mamujoco/HalfCheetah-2x3", 1, threads=1, horizon=10**9)
        self._seen = self._environment.reset(np.array([0]))
        self._observations: dict[str, StampedObservation] = {}
        self._observe()

    def _observe(self) -> None:
        spec = self._environment.spec
        for group, block in zip(spec.groups, self._seen.observations, strict=True):
            for place, agent in enumerate(group.agents):
                self._observations[spec.agents[agent].id] = StampedObservation(block[0, place])

    def read(self) -> dict[str, StampedObservation]:
        """What the agents observe."""
        return self._observations

    def write(self, commands: Any) -> None:
        """Advance the physics."""
        told: dict[str, Command] = commands
        spec = self._environment.spec
        actions = [
            np.array([[told[spec.agents[agent].id].action for agent in group.agents]], np.float32)
            for group in spec.groups
        ]
        self._seen = self._environment.step(tuple(actions)).observation
        self._observe()


@contextmanager
def served(folder: Path, transport: str) -> Iterator[dict[str, tuple[str, int]]]:
    """Address and process of each agent."""
    with ExitStack() as stack:
        found = {}
        for agent_id in IDS:
            line = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(BUNDLE), "--agent", agent_id]
            line += ["--json", "--log-level", "warning"]
            if transport == "frames":
                line += ["--no-grpc", "--frames", f"{folder}/{agent_id}.sock"]
            else:
                line += ["--listen", f"unix:{folder}/{agent_id}.sock" if transport == "unix" else "127.0.0.1:0"]
            process = stack.enter_context(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            assert process.stdout is not None
            found[agent_id] = json.loads(process.stdout.readline())["address"], process.pid
        yield found


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Processes that do nothing, as fast as they can."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def threads_of(process: int) -> list[int]:
    """All threads of a process."""
    return [int(task.name) for task in Path(f"/proc/{process}/task").iterdir()]


def pin(agents: list[int]) -> None:
    """The loop on one core, its agents on the others."""
    first, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {first})
    for thread in (thread for agent in agents for thread in threads_of(agent)):
        os.sched_setaffinity(thread, others or {first})


def first_come(agents: list[int]) -> None:
    """SCHED_FIFO: loop and agents go before whatever is not of a real-time class; the loop before its agents."""
    for thread in (thread for agent in agents for thread in threads_of(agent)):
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(40))
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))


def lock_memory(agents: list[int]) -> None:
    """No page of this process leaves memory, nor has to be brought in."""
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT_AND_FUTURE):
        raise OSError(ctypes.get_errno(), "mlockall")


def no_slack(agents: list[int]) -> None:
    """Timers of this thread, and of those that it starts, are not rounded (by 50 us)."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def no_garbage(agents: list[int]) -> None:
    """What there is by now is not looked through for garbage any more, nor what comes."""
    gc.collect()
    gc.freeze()
    gc.disable()


SETTINGS: dict[str, tuple[Callable[[list[int]], None], ...]] = {
    "none": (),
    "none, again": (),
    "timer slack 1 ns": (no_slack,),
    "gc frozen and off": (no_garbage,),
    "memory locked": (lock_memory,),
    "cores apart": (pin,),
    "SCHED_FIFO": (first_come,),
    "spin 1 ms": (),
    "SCHED_FIFO, slack, gc, memory": (no_slack, no_garbage, lock_memory, first_come),
}


def play(
    addresses: dict[str, tuple[str, int]], stream: bool, rate_hz: float, seconds: float, setting: str, answer: Any
) -> None:
    """Run a loop in this process, and send its summary."""
    robot = Robot()
    spin_s = 0.001 if setting.startswith("spin") else 0.0
    with ExitStack() as stack:
        # Threads take over what the one that starts them has: first the settings, then the clients.
        for apply in SETTINGS[setting]:
            apply([process for _, process in addresses.values()])
        agents = [stack.enter_context(AgentClient(addresses[agent_id][0], stream=stream)) for agent_id in IDS]
        for agent in agents:
            agent.reset(0)
        fallback = Hold(expires_after_s=0.5, then=Zero())
        loop = stack.enter_context(
            ControlLoop(rate_hz, agents, robot.read, robot.write, fallback=fallback, spin_s=spin_s)
        )
        answer.send(loop.run(duration_s=seconds))


def in_a_process(*arguments: Any) -> LoopSummary:
    """The summary of a loop that another process runs."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=play, args=(*arguments, send))
    process.start()
    send.close()
    try:
        summary: LoopSummary = receive.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"control_loop: a loop ended with exit code {process.exitcode}, see above") from None
    process.join()
    return summary


def check_permitted() -> None:
    """Say at once when a real-time class is out of reach.

    Raises:
        UsageError: it is.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        raise UsageError("SCHED_FIFO: got no permission for it; run as root, or with ulimit -r 50") from None


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def rates(seconds: float, hog_count: int) -> None:
    """All rates and transports: alone, beside hogs, and beside hogs in a real-time class."""
    columns = ["transport", "Hz", "hogs", "setting", "ticks", "fresh", "missed", "skipped"]
    columns += ["lateness p50 / p99 / max, ms", "jitter p99 / max, ms", "execution p50 / p99 / max, ms"]
    print(row(*columns), row(*["---"] * len(columns)), sep="\n", flush=True)
    for name, (transport, stream) in TRANSPORTS.items():
        for beside, setting in ((0, "none"), (hog_count, "none"), (hog_count, "SCHED_FIFO")):
            for rate_hz in RATES_HZ:
                with tempfile.TemporaryDirectory() as folder, served(Path(folder), transport) as agents, hogs(beside):
                    summary = in_a_process(agents, stream, rate_hz, seconds, setting)
                print(row(name, f"{rate_hz:g}", beside, setting, *told(summary)), flush=True)


def told(summary: LoopSummary) -> list[str]:
    """A summary in cells."""
    fresh = sum(agent.fresh for agent in summary.agents.values()) / max(1, len(IDS) * summary.ticks)
    late, jitter, took = summary.lateness_s, summary.jitter_s, summary.execution_s
    return [
        f"{summary.ticks:,}",
        f"{100.0 * fresh:.2f} %",
        f"{summary.deadline_misses:,}",
        f"{summary.skipped:,}",
        ms(late.p50_s, late.p99_s, late.max_s),
        ms(jitter.p99_s, jitter.max_s),
        ms(took.p50_s, took.p99_s, took.max_s),
    ]


def ms(*times_s: float) -> str:
    """Times in milliseconds."""
    return " / ".join(f"{1000.0 * each:.3f}" for each in times_s)


def machine(seconds: float, rounds: int, hog_count: int) -> None:
    """All settings in turns, at one rate: medians over rounds, and the worst of all."""
    found: dict[str, list[LoopSummary]] = {name: [] for name in SETTINGS}
    for turn in range(rounds):
        names = list(SETTINGS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            # Agents are started anew: what a setting does to them ends with them.
            with tempfile.TemporaryDirectory() as folder, served(Path(folder), "frames") as agents, hogs(hog_count):
                found[name].append(in_a_process(agents, False, MACHINE_RATE_HZ, seconds, name))
            print(f"round {turn + 1}: {name}", file=sys.stderr, flush=True)
    columns = ["setting", "fresh", "missed", "skipped"]
    columns += ["lateness p50, ms", "p99", "worst", "execution p50, ms", "p99", "worst"]
    print(f"\n{hog_count} hogs, {MACHINE_RATE_HZ:g} Hz, {rounds} x {seconds:g} s\n")
    print(row(*columns), row(*["---"] * len(columns)), sep="\n")
    for name, summaries in found.items():
        print(row(name, *compared(summaries)), flush=True)


def compared(summaries: list[LoopSummary]) -> list[str]:
    """Several summaries in cells."""
    ticks = sum(each.ticks for each in summaries)
    fresh = sum(agent.fresh for each in summaries for agent in each.agents.values()) / (len(IDS) * ticks)
    cells = [f"{100.0 * fresh:.2f} %", str(sum(each.deadline_misses for each in summaries))]
    cells.append(str(sum(each.skipped for each in summaries)))
    for times in ([each.lateness_s for each in summaries], [each.execution_s for each in summaries]):
        cells += [ms(statistics.median(each.p50_s for each in times)), ms(statistics.median(e.p99_s for e in times))]
        cells.append(ms(max(each.max_s for each in times)))
    return cells


@command(
    "scripts/control_loop.py",
    flag("--machine", "what settings of the machine bring, instead of rates", parameter="of_machine"),
    option("--seconds", "of each loop", POSITIVE, default=60.0),
    option("--rounds", "with --machine", integer(1), default=6),
    option("--hogs", "processes that loops run beside; by default one a core", integer(1), parameter="hog_count"),
)
def main(of_machine: bool, seconds: float, rounds: int, hog_count: int | None) -> None:
    """How well a control loop keeps time; prints tables."""
    check_permitted()
    hog_count = hog_count or os.cpu_count() or 1
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{os.cpu_count()} cores, Linux {os.uname().release}, load before {load}, Python {sys.version.split()[0]}\n")
    if of_machine:
        for count in (0, hog_count):
            machine(seconds, rounds, count)
    else:
        rates(seconds, hog_count)


if __name__ == "__main__":
    sys.exit(run(main))
