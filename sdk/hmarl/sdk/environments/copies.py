"""How many copies of an environment a machine takes: what one costs, declared or measured, against cores and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.runtime.children import python
from hmarl.sdk.environment import CopyCost, VectorEnvironment
from hmarl.sdk.environments import copy_cost, make
from hmarl.sdk.environments.own_modules import own_folder, own_modules
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import RandomTeam

# Processes of their own for each core: while one waits for its turn, another is stepped.
_PER_CORE = 4
# Share of the memory that environments may fill: the rest is for learning, and for what else runs.
_SHARE = 0.5
_MOST_EVALUATED = 100
_MEASURING_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Machine:
    """What environments have to share.

    Attributes:
        cores: that this process may use.
        memory_bytes: of the machine, or of the container that this process is in.
    """

    cores: int
    memory_bytes: int

    @classmethod
    def this(cls) -> Machine:
        """The machine that this process runs on."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with suppress(OSError, ValueError):  # "max" where there is no limit, no file where there is no control group
            memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
        return cls(cores, memory)

    @property
    def any_number(self) -> int:
        """So many copies are made of any environment without asking what they cost."""
        return _PER_CORE * self.cores

    def fitting(self, cost: CopyCost, wanted: int) -> int:
        """``wanted`` copies where they fit; else the largest power of 2 that does, at least 1."""
        most = wanted
        if cost.processes:
            most = min(most, _PER_CORE * self.cores // cost.processes)
        if cost.memory_bytes:
            most = min(most, int(_SHARE * self.memory_bytes) // cost.memory_bytes)
        return wanted if most >= wanted else 1 << (max(most, 1).bit_length() - 1)

    def room_bytes(self, cost: CopyCost, copies: int) -> int:
        """What so many copies leave of the memory that environments may fill, for each of them."""
        return int(_SHARE * self.memory_bytes) // copies - cost.memory_bytes

    def complaint(self, cost: CopyCost, copies: int) -> str:
        """Why so many copies do not fit, in words; empty where they do."""
        memory, processes = copies * cost.memory_bytes, copies * cost.processes
        reasons = []
        if memory > self.memory_bytes:
            reasons.append(f"{_gigabytes(memory)} of memory where there are {_gigabytes(self.memory_bytes)}")
        if processes > 4 * _PER_CORE * self.cores:
            reasons.append(f"{processes} processes on {self.cores} cores")
        return " and ".join(reasons)


def few_copies(name: str, wanted: int, beside: int | None = None) -> int:
    """How many copies to make for a few episodes, of at most ``wanted``; episodes are played in waves.

    Args:
        name: the environment's name.
        wanted: so many where they cost next to nothing.
        beside: copies that were made already of an environment that does not say what one costs: no more than those.
    """
    cost, machine = copy_cost(name), Machine.this()
    if cost is None:
        return min(wanted, beside or machine.any_number)
    return min(wanted, machine.cores) if cost.processes else machine.fitting(cost, wanted)


def evaluation_copies(name: str, episodes: int, trained: int) -> int:
    """How many copies to evaluate ``episodes`` episodes with, beside ``trained`` that are trained in."""
    return few_copies(name, min(episodes, _MOST_EVALUATED), trained)


def measured_cost(name: str, arguments: Mapping[str, Any]) -> CopyCost | None:
    """What a copy costs, measured on the first two in a process of their own; None where that fails.

    A failure is none of this function's business: whoever makes the environment in earnest will meet it.
    """
    request = json.dumps({"path": sys.path, "own": own_folder(), "name": name, "arguments": dict(arguments)})
    process = subprocess.Popen(
        python("-m", "hmarl.sdk.environments.copies"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,  # so that what the environment has started can be stopped with it
    )
    try:
        written, _ = process.communicate(request, _MEASURING_TIMEOUT_S)
        return CopyCost(**json.loads(written))
    except (OSError, subprocess.SubprocessError, TypeError, ValueError):
        return None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _measure(name: str, arguments: Mapping[str, Any]) -> CopyCost:
    """In this process: make two environments, and see what the second one adds."""
    made: list[VectorEnvironment] = []
    try:
        made.append(_played(name, arguments))
        first = _process_tree()
        with suppress(Exception):  # some are alone on a machine: then the first one says what one costs
            made.append(_played(name, arguments))
        second = _process_tree() if len(made) > 1 else [*first, *first]
        memory = max(0, sum(second) - sum(first))
        return CopyCost(memory, max(0, len(second) - len(first)), step_bytes=_seen_bytes(made[0].spec))
    finally:
        for environment in made:
            environment.close()


def _seen_bytes(spec: EnvironmentSpec) -> int:
    """All observations and the state at one step."""
    seen = sum(agent.observation_size * agent.observation_dtype.itemsize for agent in spec.agents)
    return int(seen + spec.state_size * spec.state_dtype.itemsize)


def _played(name: str, arguments: Mapping[str, Any]) -> VectorEnvironment:
    """One copy after a few steps: some allocate only then what they need."""
    environment = make(name, 1, **arguments)
    team, seeds = RandomTeam(environment.spec), np.zeros(1, np.int64)
    team.reset(seeds)
    observation = environment.reset(seeds)
    for _ in range(3):
        observation = environment.step(team.act(observation, np.ones(1, np.bool_))).observation
    return environment


def _process_tree() -> list[int]:
    """Bytes of memory of this process and of each of its descendants (Linux; nothing elsewhere)."""
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything; the parent is the second field after it.
            parents[int(folder.name)] = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            sizes[int(folder.name)] = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    tree = [os.getpid()]
    for process in tree:
        tree += [child for child, parent in parents.items() if parent == process]
    return [sizes[process] for process in tree if process in sizes]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _main() -> None:
    request = json.loads(sys.stdin.read())
    sys.path[:] = request["path"]
    with own_modules(request["own"]), redirect_stdout(sys.stderr):  # environments print
        cost = _measure(request["name"], request["arguments"])
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    _main()
