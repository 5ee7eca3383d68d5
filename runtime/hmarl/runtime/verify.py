"""Checks that a bundle is what it says: hashes, schema, graphs, batching, and parity with the trainer's own outputs.

Parity samples. A bundle may hold, for each agent, recorded inputs ``parity/<agent>.<tensor>.npy`` and the outputs that
the trainer computed for them, ``parity/<agent>.expected.<tensor>.npy`` (rows first, never pickled). ONNX Runtime is run
on the inputs: floating-point outputs may differ by ``parity_tolerance`` of the provider. A discrete output ``X`` may
differ in a row only where it is a near tie, that is where the two best recorded scores ``X_logits`` (the noise of X's
purpose added, as the graph adds it) are within ``NEAR_TIE`` of each other; the further outputs of such a row are not
compared, because they follow from the choice.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime._graph import DTYPES, graph_inputs, graph_outputs
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import BundleError
from hmarl.runtime.manifest import AgentModel, MultiDiscreteSpace, TensorModel
from hmarl.runtime.session import Policy

Array = npt.NDArray[Any]
BATCH_SIZES = (1, 3, 17)
NEAR_TIE = 2e-5
DEFAULT_TOLERANCE = 1e-5


@dataclass
class AgentReport:
    """What the checks of one agent found.

    Attributes:
        batch_error: largest difference between a row of a batch and the same row alone.
        parity_samples: recorded rows that were compared.
        parity_error: largest difference from the recorded outputs.
        near_ties: rows in which a discrete output differs at a near tie.
        problems: what is wrong; empty when all is well.
    """

    agent: str
    batch_error: float = 0.0
    parity_samples: int = 0
    parity_error: float = 0.0
    near_ties: int = 0
    problems: list[str] = field(default_factory=list)


def verify_agent(bundle: Bundle, agent_id: str, provider: str = "cpu") -> AgentReport:
    """Load one agent's graph and run all checks on it.

    Raises:
        UsageError: unknown agent, or the provider is not available.
    """
    report = AgentReport(agent_id)
    try:
        policy = Policy(bundle, agent_id, provider)
        tolerance = bundle.manifest.parity_tolerance.get(provider.partition(":")[0], DEFAULT_TOLERANCE)
        _check_batches(policy, tolerance, report)
        _check_parity(policy, tolerance, report)
    except BundleError as error:
        report.problems.append(str(error))
    return report


def _check_batches(policy: Policy, tolerance: float, report: AgentReport) -> None:
    """Rows computed together must equal the rows computed one by one, and all must be finite."""
    generator = np.random.default_rng(0)
    for batch in BATCH_SIZES:
        feeds = random_feeds(policy.agent, batch, generator)
        together = policy.run_batch(feeds)
        alone = [policy.run_batch({name: rows[row : row + 1] for name, rows in feeds.items()}) for row in range(batch)]
        single = {name: np.concatenate([outputs[name] for outputs in alone]) for name in together}
        for name, rows in together.items():
            if not np.isfinite(rows).all():
                report.problems.append(f"output '{name}': got NaN or infinity for finite inputs")
        found = _compare(policy.agent, feeds, together, single, tolerance)
        report.batch_error = max(report.batch_error, found.error)
        report.problems += [f"batch of {batch} against single rows: {problem}" for problem in found.problems]


def random_feeds(agent: AgentModel, batch: int, generator: np.random.Generator) -> dict[str, Array]:
    """Random non-zero inputs: normal observations and states, uniform or normal noise, masks with legal actions."""
    feeds: dict[str, Array] = {}
    uniform = {noise.name for noise in agent.noises if noise.distribution == "uniform"}
    for tensor in graph_inputs(agent):
        shape = (batch, *tensor.shape)
        if tensor.dtype == "bool":
            mask = generator.random(shape) < 0.7
            mask[:, _first_of_branches(agent)] = True
            feeds[tensor.name] = mask
        elif tensor.name in uniform:
            feeds[tensor.name] = generator.uniform(1e-3, 1 - 1e-3, shape).astype(np.float32)
        elif tensor.name in {state.input for state in agent.states}:
            reset = next(state.reset for state in agent.states if state.input == tensor.name)
            feeds[tensor.name] = np.broadcast_to(np.reshape(reset, tensor.shape), shape).astype(DTYPES[tensor.dtype])
        else:
            feeds[tensor.name] = generator.normal(size=shape).astype(DTYPES[tensor.dtype])
    return feeds


def _first_of_branches(agent: AgentModel) -> list[int]:
    space = agent.action_space
    if isinstance(space, MultiDiscreteSpace):
        return [int(start) for start in np.cumsum([0, *space.n[:-1]])]
    return [0]


def _check_parity(policy: Policy, tolerance: float, report: AgentReport) -> None:
    """Compare ONNX Runtime with the outputs that the trainer recorded, where the bundle holds them."""
    agent = policy.agent
    inputs = _recorded(policy.bundle, f"parity/{agent.id}.", graph_inputs(agent))
    expected = _recorded(policy.bundle, f"parity/{agent.id}.expected.", graph_outputs(agent))
    if not inputs and not expected:
        return
    missing = {tensor.name for tensor in graph_inputs(agent)} - inputs.keys()
    if missing or not expected:
        raise BundleError(f"parity samples of agent '{agent.id}': got no {sorted(missing) or 'expected outputs'}")
    lengths = {len(rows) for rows in (*inputs.values(), *expected.values())}
    if len(lengths) != 1:
        raise BundleError(f"parity samples of agent '{agent.id}': got {sorted(lengths)} rows, expected equal numbers")
    outputs = policy.run_batch(inputs)
    found = _compare(agent, inputs, {name: outputs[name] for name in expected}, expected, tolerance)
    report.parity_samples = lengths.pop()
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
        try:
            array = np.load(io.BytesIO(bundle.read(file)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise BundleError(f"{file}: not a plain .npy file: {error}") from error
        if array.dtype != DTYPES[tensor.dtype] or list(array.shape[1:]) != tensor.shape or not array.ndim:
            sizes = ", ".join(["rows", *map(str, tensor.shape)])
            raise BundleError(f"{file}: got {array.dtype} {array.shape}, expected {tensor.dtype} [{sizes}]")
        arrays[tensor.name] = array
    return arrays


@dataclass
class _Comparison:
    error: float = 0.0
    near_ties: int = 0
    problems: list[str] = field(default_factory=list)


def _compare(
    agent: AgentModel, feeds: dict[str, Array], got: dict[str, Array], expected: dict[str, Array], tolerance: float
) -> _Comparison:
    """Compare outputs row by row: discrete ones first, because the others follow from them."""
    found = _Comparison()
    comparable = np.ones(len(next(iter(expected.values()))), np.bool_)
    # An instruction is chosen before the action, so that it is judged first.
    discrete = sorted(
        (name for name in expected if expected[name].dtype.kind != "f"), key=lambda name: name == "action"
    )
    for name in discrete:
        differs = _rows(got[name] != expected[name]).any(axis=1) & comparable
        ties = differs & _near_tie(agent, name, feeds, expected)
        found.near_ties += int(ties.sum())
        wrong = int((differs & ~ties).sum())
        if wrong:
            found.problems.append(f"'{name}' differs in {wrong} rows that are no near ties (gap above {NEAR_TIE:g})")
        comparable &= ~differs
    for name, rows in expected.items():
        if name in discrete or not comparable.any():
            continue
        error = float(np.abs(got[name][comparable] - rows[comparable]).max(initial=0.0))
        found.error = max(found.error, error)
        if not error <= tolerance:
            found.problems.append(f"'{name}' differs by {error:.3g}, the tolerance is {tolerance:g}")
    return found


def _rows(array: Array) -> Array:
    """[rows, ...] flattened to [rows, size], also for scalars and for no rows at all."""
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def _near_tie(
    agent: AgentModel, name: str, feeds: dict[str, Array], expected: dict[str, Array]
) -> npt.NDArray[np.bool_]:
    """Rows in which the two best scores of some branch of a discrete output are (nearly) equal; [rows] bool."""
    rows = len(expected[name])
    if f"{name}_logits" not in expected:
        return np.zeros(rows, np.bool_)
    scores = expected[f"{name}_logits"].astype(np.float64)
    purpose = "instruction" if name == "instruction" else "action"
    for noise in agent.noises:
        uniform = feeds.get(noise.name)
        if noise.purpose == purpose and noise.distribution == "uniform" and uniform is not None:
            drawn = uniform > 0
            safe = np.where(drawn, uniform, 0.5).astype(np.float64)
            scores = scores + np.where(drawn, -np.log(-np.log(safe)), 0.0)
    if name == "action" and agent.action_mask is not None:
        scores = np.where(feeds[agent.action_mask.name], scores, -np.inf)
    near = np.zeros(rows, np.bool_)
    cuts = _first_of_branches(agent)[1:] if name == "action" else []
    for branch in np.split(scores, cuts, axis=1):
        if branch.shape[1] > 1:
            best = np.sort(branch, axis=1)[:, -2:]
            near |= best[:, 1] - best[:, 0] <= NEAR_TIE
    return near
