"""Checks that a bundle is what it says: hashes, schema, graphs, batching, and parity with the trainer's own outputs.

Parity samples. A bundle may hold, for each graph ``agents/<name>.onnx``, recorded inputs ``parity/<name>.<tensor>.npy``
and the outputs that the trainer computed for them, ``parity/<name>.expected.<tensor>.npy`` (rows first, never pickled).
ONNX Runtime is run on the inputs and the outputs compared by ``hmarl.runtime.parity`` with the provider's
``parity_tolerance``.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime._graph import DTYPES, graph_inputs, graph_outputs, parse_provider
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import BundleError, UsageError, one_line
from hmarl.runtime.manifest import AgentModel, TensorModel
from hmarl.runtime.parity import compare_outputs, first_of_branches
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import PROVIDER
from hmarl.runtime.trial import try_graphs

Array = npt.NDArray[Any]
BATCH_SIZES = (1, 3, 17)
DEFAULT_TOLERANCE = 1e-5
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass
class AgentReport:
    """What the checks of one agent found.

    Attributes:
        same_graph_as: the agent by whose checks this one's graph has been checked already; None for its own.
        batch_error: largest difference between a row of a batch and the same row alone.
        parity_samples: recorded rows that were compared.
        parity_error: largest difference from the recorded outputs.
        near_ties: rows in which a discrete output differs at a near tie.
        problems: what is wrong; empty when all is well.
    """

    agent: str
    same_graph_as: str | None = None
    batch_error: float = 0.0
    parity_samples: int = 0
    parity_error: float = 0.0
    near_ties: int = 0
    problems: list[str] = field(default_factory=list)


def verify_bundle(bundle: Bundle, provider: str = PROVIDER) -> list[AgentReport]:
    """Check all agents, every graph once; of a graph that several share, the others' entries are held against it.

    Graphs that do not pass their trial (``hmarl.runtime.trial``) are not opened in this process.

    Raises:
        UsageError: the provider is not available.
    """
    parse_provider(provider)
    first: dict[str, str] = {}
    for agent in bundle.manifest.agents:
        first.setdefault(agent.file, agent.id)
    refused = _refused(bundle, first)
    reports = []
    for agent in bundle.manifest.agents:
        if agent.file in refused:
            shared = None if first[agent.file] == agent.id else first[agent.file]
            reports.append(AgentReport(agent.id, same_graph_as=shared, problems=[refused[agent.file]]))
            continue
        if first[agent.file] == agent.id:
            reports.append(_check_agent(bundle, agent.id, provider))
            continue
        report = AgentReport(agent.id, same_graph_as=first[agent.file])
        try:
            Policy(bundle, agent.id, provider)
        except BundleError as error:
            report.problems.append(str(error))
        reports.append(report)
    return reports


def _refused(bundle: Bundle, agents: dict[str, str]) -> dict[str, str]:
    """The graphs that do not pass their trial, and why; ``agents`` has an agent for each graph."""
    refused = {}
    try:
        try_graphs(bundle, dict.fromkeys(agents.values()), rows=BATCH_SIZES)
    except BundleError as problem:  # of the first of them; the others are not known yet
        for file, agent_id in agents.items():
            try:
                if len(agents) == 1:
                    raise problem
                try_graphs(bundle, {agent_id: None}, rows=BATCH_SIZES)
            except BundleError as error:
                refused[file] = str(error)
    return refused


def verify_agent(bundle: Bundle, agent_id: str, provider: str = PROVIDER) -> AgentReport:
    """Try one agent's graph, load it and run all checks on it.

    Raises:
        UsageError: unknown agent, or the provider is not available.
    """
    parse_provider(provider)
    try:
        try_graphs(bundle, {agent_id: None}, rows=BATCH_SIZES)
    except BundleError as error:
        return AgentReport(agent_id, problems=[str(error)])
    return _check_agent(bundle, agent_id, provider)


def _check_agent(bundle: Bundle, agent_id: str, provider: str) -> AgentReport:
    """All checks of one agent whose graph has passed its trial."""
    report = AgentReport(agent_id)
    try:
        policy = Policy(bundle, agent_id, provider)
        tolerance = _tolerance(bundle, provider)
        _check_batches(policy, tolerance, report)
        _check_parity(policy, tolerance, report)
    except BundleError as error:
        report.problems.append(str(error))
    except UsageError:
        raise
    except Exception as error:  # ONNX Runtime raises many unrelated types
        report.problems.append(f"the graph does not run: {one_line(error)}")
    return report


def _check_batches(policy: Policy, tolerance: float, report: AgentReport) -> None:
    """Rows computed together must equal the rows computed one by one, and all must be finite."""
    generator = np.random.default_rng(0)
    for batch in BATCH_SIZES:
        feeds = random_feeds(policy.agent, batch, generator)
        together = policy.run_batch(feeds, finite=False)  # told below, of every output
        rows_alone = ({name: rows[row : row + 1] for name, rows in feeds.items()} for row in range(batch))
        alone = [policy.run_batch(each, finite=False) for each in rows_alone]
        single = {name: np.concatenate([outputs[name] for outputs in alone]) for name in together}
        for name, rows in together.items():
            if not np.isfinite(rows).all():
                report.problems.append(f"output '{name}': got NaN or infinity for finite inputs")
        found = compare_outputs(policy.agent, feeds, together, single, tolerance)
        report.batch_error = max(report.batch_error, found.error)
        report.problems += [f"batch of {batch} against single rows: {problem}" for problem in found.problems]


def random_feeds(agent: AgentModel, batch: int, generator: np.random.Generator) -> dict[str, Array]:
    """Random inputs: normal observations or pixels, states as reset, uniform or normal noise, legal masks, steps."""
    feeds: dict[str, Array] = {}
    uniform = {noise.name for noise in agent.noises if noise.distribution == "uniform"}
    for tensor in graph_inputs(agent):
        shape = (batch, *tensor.shape)
        if tensor.dtype == "bool":
            mask = generator.random(shape) < 0.7
            mask[:, first_of_branches(agent)] = True
            feeds[tensor.name] = mask
        elif tensor == agent.step:
            feeds[tensor.name] = generator.integers(1000, size=shape)
        elif tensor.name in uniform:
            feeds[tensor.name] = generator.uniform(1e-3, 1 - 1e-3, shape).astype(np.float32)
        elif tensor.name in {state.input for state in agent.states}:
            reset = next(state.reset for state in agent.states if state.input == tensor.name)
            feeds[tensor.name] = np.broadcast_to(np.reshape(reset, tensor.shape), shape).astype(DTYPES[tensor.dtype])
        elif tensor.dtype == "uint8":
            feeds[tensor.name] = generator.integers(256, size=shape, dtype=np.uint8)
        else:
            feeds[tensor.name] = generator.normal(size=shape).astype(DTYPES[tensor.dtype])
    return feeds


def parity_files(bundle: Bundle, agent: AgentModel) -> list[str]:
    """The files of a bundle that hold what the trainer recorded of an agent's graph."""
    return [file for file in bundle.manifest.files if file.startswith(f"{_parity_prefix(agent)}.")]


def _parity_prefix(agent: AgentModel) -> str:
    return f"parity/{PurePosixPath(agent.file).stem}"


def parity_problems(policy: Policy, provider: str = PROVIDER) -> list[str]:
    """What differs from the outputs that the trainer recorded; for graphs that passed their trial.

    Args:
        policy: loaded.
        provider: on which it computes: ``cpu``, or another one with its tolerance.

    Raises:
        BundleError: the recorded samples are not in order.
    """
    report = AgentReport(policy.agent.id)
    _check_parity(policy, _tolerance(policy.bundle, provider), report)
    return report.problems


def hold_to_parity(policy: Policy, provider: str) -> None:
    """Refuse a policy that does not compute on its device what the trainer recorded.

    On the processor nothing is run: that is compared when a bundle is exported, verified or reloaded. A device is this
    machine's own, and what its driver and libraries make of a graph is known here alone.

    Raises:
        BundleError: it does not; or the recorded samples are not in order.
    """
    if provider == PROVIDER:
        return
    problems = parity_problems(policy, provider)
    if problems:
        raise BundleError(
            f"{policy.agent.file}: with --provider {provider} ({policy.execution_provider}): {one_line(problems[0])}; "
            "update the driver and onnxruntime-gpu, or choose --provider cpu"
        )


def _tolerance(bundle: Bundle, provider: str) -> float:
    """Of the provider, as the bundle states it."""
    return bundle.manifest.parity_tolerance.get(provider.partition(":")[0], DEFAULT_TOLERANCE)


def _check_parity(policy: Policy, tolerance: float, report: AgentReport) -> None:
    """Compare ONNX Runtime with the outputs that the trainer recorded, where the bundle holds them."""
    agent = policy.agent
    prefix = _parity_prefix(agent)
    inputs = _recorded(policy.bundle, f"{prefix}.", graph_inputs(agent))
    expected = _recorded(policy.bundle, f"{prefix}.expected.", graph_outputs(agent))
    if not inputs and not expected:
        return
    missing = {tensor.name for tensor in graph_inputs(agent)} - inputs.keys()
    if missing or not expected:
        raise BundleError(f"parity samples of agent '{agent.id}': got no {sorted(missing) or 'expected outputs'}")
    lengths = {len(rows) for rows in (*inputs.values(), *expected.values())}
    rows = lengths.pop()
    if lengths or not rows:
        raise BundleError(
            f"parity samples of agent '{agent.id}': got {sorted({*lengths, rows})} rows, expected equal numbers above 0"
        )
    outputs = _run_in_parts(policy, inputs, rows)
    found = compare_outputs(agent, inputs, {name: outputs[name] for name in expected}, expected, tolerance)
    report.parity_samples = rows
    report.parity_error = found.error
    report.near_ties = found.near_ties
    report.problems += [f"parity with the trainer: {problem}" for problem in found.problems]


def _recorded(bundle: Bundle, prefix: str, tensors: list[TensorModel]) -> dict[str, Array]:
    """The recorded arrays [rows, *shape] of some tensors, those that are there."""
    arrays = {}
    for tensor in tensors:
        file = f"{prefix}{tensor.name}.npy"
        if file not in bundle.manifest.files:
            continue
        array = _read_npy(file, bundle.read(file))
        if array.dtype != DTYPES[tensor.dtype] or list(array.shape[1:]) != tensor.shape or not array.ndim:
            sizes = ", ".join(["rows", *map(str, tensor.shape)])
            raise BundleError(f"{file}: got {array.dtype} {array.shape}, expected {tensor.dtype} [{sizes}]")
        arrays[tensor.name] = array
    return arrays


def _read_npy(file: str, content: bytes) -> Array:
    """The array of a .npy file. What its header says is believed only where the content is there."""
    stream = io.BytesIO(content)
    try:
        read_header = _NPY_HEADERS[np.lib.format.read_magic(stream)]
        shape, by_columns, dtype = read_header(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
            raise ValueError(f"got {len(content) - stream.tell():,} bytes for {dtype} {shape}")
        flat = np.frombuffer(content, dtype, offset=stream.tell())
        return np.ascontiguousarray(flat.reshape(shape, order="F" if by_columns else "C"))
    except Exception as error:  # NumPy evaluates the header, which raises many unrelated types
        raise BundleError(f"{file}: not a plain .npy file: {one_line(error, 200)}") from error


def _run_in_parts(policy: Policy, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
    """Outputs of any number of rows, of which no more are computed at once than have been tried."""
    size = max(BATCH_SIZES)
    parts = [
        policy.run_batch({name: array[start : start + size] for name, array in inputs.items()}, finite=False)
        for start in range(0, rows, size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
