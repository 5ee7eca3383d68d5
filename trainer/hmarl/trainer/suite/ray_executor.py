"""Runs trained by the machines of a Ray cluster, each by a process of its own beside an actor that watches it.

The directories of runs are those of the suite's own paths: a cluster needs storage that all its machines share, at the
same place. A run's process outlives its actor by as long as it takes to save.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hmarl.runtime.command_line import ExitCode
from hmarl.trainer.runs.ray_session import DEVICES_ARE_TORCHS, ray_session
from hmarl.trainer.suite.executor import Executor, LocalExecutor, LocalProcess, Started

_WATCH_S, _KILL_S = 1.0, 5.0
# Ray would kill what an actor has started when the actor ends: by its own rules it saves, and ends.
_ENDS_BY_ITSELF = {"RAY_kill_child_processes_on_worker_exit": "0"}
# What a run's loggers are told by the environment of whoever types the command.
_PASSED_ON = ("WANDB_", "MLFLOW_")


@contextmanager
def executor_at(address: str | None) -> Iterator[Executor]:
    """Where runs are trained: in this machine's processes, or by the Ray cluster at an address.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: no cluster is there.
        RayError: it does not start.
    """
    if address is None:
        yield LocalExecutor()
        return
    with ray_session(address) as ray:
        yield RayExecutor(ray)


class Watch:
    """Starts hmarl-train in the machine that Ray has chosen, and watches it.

    Args:
        folder: its working directory, from which paths are told.
        path: where it imports from besides.
        variables: of its environment besides.
    """

    def __init__(self, folder: str, path: Sequence[str], variables: Mapping[str, str]) -> None:
        self._executor = LocalExecutor(Path(folder), path, variables)
        self._process: LocalProcess | None = None

    def start(self, words: Sequence[str], log: str, threads: int) -> None:
        """See ``Executor``."""
        self._process = self._executor.start(words, Path(log), threads)

    @property
    def process(self) -> LocalProcess:
        """What was started."""
        assert self._process is not None
        return self._process

    def exit_code(self) -> int | None:
        """See ``Started``; None after a second, so that whoever asks need not ask all the time."""
        return self.process.exit_code(_WATCH_S)

    def ask_to_stop(self) -> None:
        """See ``Started``."""
        self.process.ask_to_stop()

    def kill(self) -> None:
        """See ``Started``."""
        self.process.kill()


class RayExecutor:
    """Starts runs where the cluster has room.

    Args:
        ray: connected.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        # Not as a part of Ray's runtime environment, which Ray writes into its logs: there are keys among them.
        self._variables = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        variables = {**DEVICES_ARE_TORCHS, **_ENDS_BY_ITSELF}
        self._watch = ray.remote(max_restarts=0, max_task_retries=0, runtime_env={"env_vars": variables})(Watch)

    def start(self, words: Sequence[str], log: Path, threads: int) -> Started:
        """See ``Executor``; whether it could be started is known once there was room."""
        path = [place for place in sys.path if place]
        actor = self._watch.options(num_cpus=self._cpus(threads)).remote(str(Path.cwd()), path, self._variables)
        return _RayProcess(self._ray, actor, actor.start.remote(list(words), str(log.absolute()), threads), log)

    def _cpus(self, threads: int) -> float:
        """One a thread, but no more than a machine has: it would wait for ever."""
        machines = [node["Resources"].get("CPU", 0.0) for node in self._ray.nodes() if node["Alive"]]
        return float(min(threads, max(machines, default=0.0)))


class _RayProcess:
    """A process somewhere in the cluster; it waits until there is room. See ``Started``.

    Args:
        ray: connected.
        actor: its ``Watch``.
        started: there once it has been started.
        log: in which is said why it was lost.
    """

    def __init__(self, ray: Any, actor: Any, started: Any, log: Path) -> None:
        self._ray, self._actor, self._log = ray, actor, log
        self._asked = started
        self._begun = False
        self._code: int | None = None

    def waits(self) -> bool:
        """See ``Started``."""
        return not self._begun and self._code is None and not self._answered()

    def _answered(self) -> bool:
        return bool(self._ray.wait([self._asked], timeout=0)[0])

    def exit_code(self) -> int | None:
        """See ``Started``; as one that was killed where its machine, or the actor that watches it, is lost."""
        if self._code is None and self._answered():
            self._code = self._answer()
            if self._code is None:
                self._begun, self._asked = True, self._actor.exit_code.remote()
            else:
                self._free()
        return self._code

    def _answer(self) -> int | None:
        """What the actor has answered: nothing to being asked to start, the exit code once there is one.

        Raises:
            OSError: it could not be started.
        """
        try:
            answer: int | None = self._ray.get(self._asked)
        except self._ray.exceptions.RayTaskError as error:
            self._free()
            raise OSError(f"{_told(error.cause or error)}; does every machine see {self._log.parent}?") from error
        except self._ray.exceptions.RayError as error:
            with suppress(OSError), self._log.open("a", encoding="utf-8") as log:
                log.write(f"lost by Ray: {_told(error)}\n")
            return -int(signal.SIGKILL)
        return answer

    def ask_to_stop(self) -> None:
        """See ``Started``; one that still waits for room is not begun."""
        if self.waits():
            self._code = int(ExitCode.INTERRUPTED)
            self._free()
        elif self._code is None:
            self._actor.ask_to_stop.remote()

    def kill(self) -> None:
        """See ``Started``."""
        with suppress(Exception):  # it may be out of reach
            self._ray.get(self._actor.kill.remote(), timeout=_KILL_S)
        self._free()

    def _free(self) -> None:
        """Its room is another's."""
        with suppress(Exception):
            self._ray.kill(self._actor)


def _told(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
