"""A process on one processor core: whoever is woken there finds its caches warm, at the price of waiting its turn."""

from __future__ import annotations

import os

from hmarl.runtime.errors import UsageError


def available_cores() -> list[int]:
    """The cores on which this process may run, ascending.

    Raises:
        UsageError: the system has no means to choose one (it is not Linux).
    """
    if not hasattr(os, "sched_getaffinity"):
        raise UsageError("core: this system cannot keep a process on one core; leave it to the scheduler")
    return sorted(os.sched_getaffinity(0))


def stay_on(core: int) -> None:
    """Keep this process, and all threads that it will start, on one core.

    Raises:
        UsageError: no such core, or none that this process may use.
    """
    cores = available_cores()
    if core not in cores:
        raise UsageError(f"core: got {core}, expected one of {', '.join(map(str, cores))}")
    os.sched_setaffinity(0, {core})
