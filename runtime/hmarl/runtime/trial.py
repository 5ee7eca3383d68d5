"""A bundle's graphs are opened and run in a process of their own first, which may take only so much memory and time.

    with TrialProcess() as process:  # imports what graphs need, while this one reads the bundle
        trial = Trial(load_bundle(path), process=process)
        ...  # imports and the like, meanwhile
        trial.result()

A graph that would fill the memory, never end or crash ONNX Runtime does so there, and is a ``BundleError`` here. Graphs
whose sizes do not depend on what is observed are the only ones that are opened, so that a policy costs in every run
what it costs in the trial. Programs that open a bundle from elsewhere make the trial; ``Policy`` itself does not.

The limits are the operating system's, of Linux; elsewhere only the time is limited.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self

from hmarl.runtime.children import python
from hmarl.runtime.errors import BundleError, HmarlError, one_line
from hmarl.runtime.orphans import die_with_parent

if TYPE_CHECKING:  # the process is started before anything else is imported
    from hmarl.runtime.bundle import Bundle
    from hmarl.runtime.manifest import AgentModel

PROCESSOR_LIMIT_S = 10
WALL_LIMIT_S = 60  # of a machine that has much else to do
START_LIMIT_S = 60
# What a graph may take: something for any, several copies of its weights (the file's bytes, parsed, ONNX Runtime's),
# and the intermediate results of every element that goes in or comes out.
_BASE_BYTES = 192 * 2**20
_COPIES = 6
_BYTES_PER_ELEMENT = 256
_ADDRESSES_BYTES = 2**29  # address space that is reserved and never used
_REPORT_LIMIT_BYTES = 2**16
_POLL_S = 0.05
_NO_MEMORY = (
    "bad_alloc",
    "Failed to serialize",
    "bad allocation",
    "Failed to allocate",
    "annot allocate memory",
    "std::length_error",
)


class TrialProcess:
    """The other process, which imports what graphs need and waits for its order; a context manager, which ends it.

    Args:
        niceness: how far it stands back behind others that want the processor.

    Raises:
        HmarlError: it cannot be started.
    """

    def __init__(self, niceness: int = 0) -> None:
        command = python("-m", "hmarl.runtime.trial", str(os.getpid()), str(niceness))
        try:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise HmarlError(f"cannot start a process to try a bundle's graphs in: {error}") from error

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.popen.kill()
        self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        with contextlib.suppress(OSError):
            self.popen.stdin.close()
        self.popen.stdout.close()


class Trial:
    """Opens and runs graphs in another process; a context manager, which ends that process.

    Args:
        bundle: the verified bundle.
        agents: whose graphs, and for agents that were not trained, like whom they act; None: all that were trained.
        rows: the batch sizes to run.
        processor_s: processor time that one graph may take, in whole seconds.
        parity: whether the graphs are also held against the outputs that the trainer recorded.
        process: where, if it has been started already.

    Raises:
        HmarlError: the process cannot be started.
    """

    def __init__(
        self,
        bundle: Bundle,
        agents: Mapping[str, str | None] | None = None,
        *,
        rows: Sequence[int] = (1,),
        processor_s: int = PROCESSOR_LIMIT_S,
        parity: bool = False,
        process: TrialProcess | None = None,
    ) -> None:
        self._bundle = bundle
        models = (
            bundle.agent(agent_id, like) for agent_id, like in (agents or dict.fromkeys(bundle.agent_ids)).items()
        )
        graphs = {model.file: model for model in models}  # agents that share a graph share the trial
        ids = {model.id: (agents or {}).get(model.id) for model in graphs.values()}
        order = {
            "bundle": str(bundle.path.absolute()),
            "sha256": bundle.sha256,
            "agents": ids,
            "rows": list(rows),
            "processor_s": processor_s,
            "parity": parity,
        }
        self._deadline = time.monotonic() + START_LIMIT_S + WALL_LIMIT_S * len(graphs)
        self._output = b""
        self._owner = process or TrialProcess()
        self._process = self._owner.popen
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode())
            self._process.stdin.close()
        except OSError:
            """It has ended; ``result`` says how."""

    def result(self) -> None:
        """Wait until all graphs have run.

        Raises:
            BundleError: a graph is refused, does not run, or takes too much; the message says which and what.
            HmarlError: the trial itself failed.
        """
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                if time.monotonic() > self._deadline:
                    self._process.kill()
                if selector.select(_POLL_S):
                    fresh = os.read(self._process.stdout.fileno(), _REPORT_LIMIT_BYTES)
                    if not fresh:
                        return self._judge(self._process.wait())
                    self._output = (self._output + fresh)[-_REPORT_LIMIT_BYTES:]

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner.__exit__(kind, error, traceback)

    def _judge(self, code: int) -> None:
        """Make an error of what the process said, or of how it ended."""
        said = [json.loads(line) for line in self._output.splitlines() if line.startswith(b"{") and line.endswith(b"}")]
        last: dict[str, Any] = said[-1] if said else {}
        where = f"bundle {self._bundle.path}"
        if "done" in last:
            return
        if "problem" in last:
            raise BundleError(str(last["problem"]))
        if "trying" in last:
            raise BundleError(f"{where}: {last['trying']}: {_ending(code)} when it was opened and run for a trial")
        raise HmarlError(f"{where}: the process to try its graphs in failed: {last.get('failed') or _ending(code)}")


def try_graphs(bundle: Bundle, agents: Mapping[str, str | None] | None = None, *, rows: Sequence[int] = (1,)) -> None:
    """Open and run graphs in another process and wait for it; arguments and errors are ``Trial``'s."""
    with Trial(bundle, agents, rows=rows) as trial:
        trial.result()


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code == -signal.SIGXCPU:
        return "took more processor time than it may"
    if code in (-signal.SIGALRM, -signal.SIGKILL):
        return "took too long, or the machine had no memory left,"
    if code < 0:
        return f"crashed ONNX Runtime ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _run_trial(orders: IO[str]) -> None:
    """In the other process: open and run graph after graph, each within its limits."""
    import numpy as np  # noqa: PLC0415 - what is imported is not limited

    from hmarl.runtime.bundle import open_bundle  # noqa: PLC0415
    from hmarl.runtime.session import Policy  # noqa: PLC0415
    from hmarl.runtime.verify import parity_problems  # noqa: PLC0415

    order = json.load(orders)
    bundle = open_bundle(Path(order["bundle"]), order["sha256"])
    for agent_id, like in order["agents"].items():
        model = bundle.agent(agent_id, like)
        memory_bytes = _budget(bundle, model, max(order["rows"]), order["parity"])
        _say(trying=model.file)
        _limit(memory_bytes, order["processor_s"])
        try:
            policy = Policy(bundle, agent_id, like=like)
            for rows in order["rows"]:
                policy.run_batch(
                    {model.observation.name: np.zeros((rows, *model.observation.shape), model.observation.dtype)},
                    finite=False,
                )
            problems = parity_problems(policy) if order["parity"] else []
        except Exception as error:  # ONNX Runtime raises many unrelated types
            if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
                raise BundleError(
                    f"{model.file}: opening and running it takes more than {memory_bytes // 2**20:,} MiB, which is "
                    "several times what its weights, inputs and outputs need"
                ) from error
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{model.file}: the graph does not run: {one_line(error)}") from error
        if problems:
            raise BundleError(f"bundle {bundle.path}: agent '{agent_id}': {problems[0]}")
        del policy


def _budget(bundle: Bundle, model: AgentModel, rows: int, parity: bool) -> int:
    """Bytes that opening and running a graph may take, and comparing what the trainer recorded with it."""
    from hmarl.runtime._graph import graph_inputs, graph_outputs  # noqa: PLC0415
    from hmarl.runtime.verify import parity_files  # noqa: PLC0415

    files = [model.file, *(parity_files(bundle, model) if parity else [])]
    elements = sum(math.prod(tensor.shape) for tensor in (*graph_inputs(model), *graph_outputs(model)))
    content_bytes = sum(len(bundle.read(file)) for file in files)
    return _BASE_BYTES + _COPIES * content_bytes + _BYTES_PER_ELEMENT * rows * elements


def _limit(memory_bytes: int, processor_s: int) -> None:
    """Limit what this process takes from now on."""
    signal.alarm(WALL_LIMIT_S)  # ends it, whatever it is doing
    if not sys.platform.startswith("linux"):
        return
    import resource  # noqa: PLC0415 - not on all systems

    usage = resource.getrusage(resource.RUSAGE_SELF)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: math.ceil(usage.ru_utime + usage.ru_stime) + processor_s}
    status = Path("/proc/self/status")
    if status.exists():  # not in every container
        lines = (line.split() for line in status.read_text().splitlines())
        used = {words[0]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
        limits[resource.RLIMIT_DATA] = used["VmData:"] + memory_bytes
        limits[resource.RLIMIT_AS] = used["VmSize:"] + memory_bytes + _ADDRESSES_BYTES
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def main(arguments: Sequence[str], orders: IO[str]) -> NoReturn:
    """The other process."""
    try:
        die_with_parent(int(arguments[0]), signal.SIGKILL)
        with contextlib.suppress(OSError):  # a courtesy
            os.nice(int(arguments[1]))
        _run_trial(orders)
    except BundleError as error:
        _say(problem=str(error)[:4000])
    except Exception as error:
        _say(failed=f"{type(error).__name__}: {one_line(error)}")
    else:
        _say(done=True)
    os._exit(0)  # all is said: who waits for it need not wait for the interpreter's end as well


if __name__ == "__main__":
    main(sys.argv[1:], sys.stdin)
