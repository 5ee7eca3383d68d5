"""One agent's ONNX graph: opened with a chosen provider, checked against the manifest, run with fixed buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hmarl.runtime._onnx import checked_graph
from hmarl.runtime._onnx_runtime import ort
from hmarl.runtime.errors import BundleError, HmarlError, UsageError, one_line, unknown_name
from hmarl.runtime.manifest import AgentModel, BoxSpace, DataType, DiscreteSpace, TensorModel, branch_sizes

Array = npt.NDArray[Any]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
DTYPES: dict[DataType, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
    "uint8": np.dtype(np.uint8),
}
_ORT_TYPES: dict[DataType, str] = {
    "float32": "tensor(float)",
    "int64": "tensor(int64)",
    "bool": "tensor(bool)",
    "uint8": "tensor(uint8)",
}


def graph_inputs(agent: AgentModel) -> list[TensorModel]:
    """All input tensors of an agent's graph, as the manifest describes them."""
    optional = [tensor for tensor in (agent.action_mask, agent.step) if tensor is not None]
    states = [
        TensorModel(name=state.input, shape=state.shape, dtype=state.dtype, meaning=state.meaning)
        for state in agent.states
    ]
    noises = [
        TensorModel(name=noise.name, shape=noise.shape, dtype="float32", meaning=noise.purpose)
        for noise in agent.noises
    ]
    return [agent.observation, *optional, *states, *noises]


def graph_outputs(agent: AgentModel) -> list[TensorModel]:
    """All output tensors of an agent's graph, as the manifest describes them."""
    states = [
        TensorModel(name=state.output, shape=state.shape, dtype=state.dtype, meaning=state.meaning)
        for state in agent.states
    ]
    return [agent.action, *states, *agent.diagnostics]


def open_graph(model: bytes, agent: AgentModel, provider: str) -> ort.InferenceSession:
    """Open a graph with one thread that does not spin, and check its tensors against the manifest.

    Args:
        model: the ONNX file's content.
        agent: the manifest's entry.
        provider: ``cpu``, ``cuda`` or ``tensorrt``, the latter two optionally with ``:device``.

    Raises:
        UsageError: the provider is unknown or not available; never replaced by another one.
        BundleError: the graph cannot be opened or is not what the manifest says.
    """
    name, device = parse_provider(provider)
    checked = checked_graph(agent.file, model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never guessed from the first bytes
    options.log_severity_level = 4  # what fails raises anyway; a line on standard error would wait for its reader
    wanted: list[Any] = [PROVIDERS[name]]
    if name != "cpu":
        chain = ("tensorrt", "cuda") if name == "tensorrt" else ("cuda",)
        wanted = [(PROVIDERS[each], {"device_id": str(device)}) for each in chain]
    try:
        if name != "cpu":
            _load_libraries()
        # A fallback would be told on standard output, which is an agent's own.
        session = ort.InferenceSession(checked, options, providers=wanted, enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises many unrelated types
        if name != "cpu":
            open_graph(model, agent, "cpu")  # raises where the graph is at fault
            raise UsageError(_not_started(provider, one_line(error))) from error
        raise BundleError(
            f"{agent.file}: ONNX Runtime cannot open the graph with '{provider}': {one_line(error)}"
        ) from error
    if session.get_providers()[0] != PROVIDERS[name]:
        raise UsageError(_not_started(provider, f"it would run on {session.get_providers()[0]}"))
    _check_tensors(agent, "input", graph_inputs(agent), session.get_inputs())
    _check_tensors(agent, "output", graph_outputs(agent), session.get_outputs())
    return session


def _not_started(provider: str, why: str) -> str:
    """What to say of a provider that this ONNX Runtime has and cannot use."""
    return (
        f"provider '{provider}': ONNX Runtime could not start {PROVIDERS[parse_provider(provider)[0]]} ({why}); "
        "check the driver and the CUDA libraries, or choose --provider cpu"
    )


@cache
def _load_libraries() -> None:
    """CUDA's libraries, from where ``pip install onnxruntime-gpu[cuda,cudnn]`` puts them; the system's own are found
    anyhow, and what is missing is told by the provider, which then does not start.
    """
    preload = getattr(ort, "preload_dlls", None)  # from 1.21 on
    if preload is not None:
        with redirect_stdout(StringIO()):  # an agent's standard output is its own
            preload()


def parse_provider(provider: str) -> tuple[str, int]:
    """Split ``name[:device]`` and make sure that this ONNX Runtime has the provider.

    Raises:
        UsageError: unknown name, wrong device, or a provider that is not installed.
    """
    name, separator, device = provider.partition(":")
    if name not in PROVIDERS:
        raise UsageError(unknown_name("provider", name, PROVIDERS))
    if separator and (name == "cpu" or not device.isdecimal()):
        raise UsageError(f"provider '{provider}': expected 'cpu', or 'cuda' or 'tensorrt' with ':' and a device number")
    available = ort.get_available_providers()
    if PROVIDERS[name] not in available:
        raise UsageError(
            f"provider '{provider}': this ONNX Runtime has no {PROVIDERS[name]} (it has {', '.join(available)}); "
            "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]', or choose --provider cpu"
        )
    return name, int(device or 0)


def _check_tensors(agent: AgentModel, kind: str, expected: list[TensorModel], got: list[Any]) -> None:
    """Names, dtypes and shapes of a graph's inputs or outputs must be the manifest's."""
    by_name = {tensor.name: tensor for tensor in got}
    names = [tensor.name for tensor in expected]
    if sorted(by_name) != sorted(names):
        raise BundleError(
            f"{agent.file}: got {kind}s {one_line(sorted(by_name))}, the manifest expects {one_line(sorted(names))}"
        )
    for tensor in expected:
        node = by_name[tensor.name]
        if node.type != _ORT_TYPES[tensor.dtype]:
            raise BundleError(
                f"{agent.file}: {kind} '{tensor.name}': got {node.type}, the manifest expects {tensor.dtype}"
            )
        batch, *rest = node.shape or [0]
        # ONNX Runtime does not always infer an output's sizes; the warm-up run checks those against its buffers.
        known = [
            size if isinstance(size, int) or kind == "input" else want for size, want in _pairs(rest, tensor.shape)
        ]
        if isinstance(batch, int) or known != tensor.shape:
            raise BundleError(
                f"{agent.file}: {kind} '{tensor.name}': got shape {one_line(node.shape)}, the manifest expects "
                f"[batch, {', '.join(map(str, tensor.shape))}] with a dynamic batch"
            )


def _pairs(got: list[Any], expected: list[int]) -> Iterator[tuple[Any, Any]]:
    """Sizes got with those expected; None where there is none to expect."""
    return ((size, expected[index] if index < len(expected) else None) for index, size in enumerate(got))


def check_manifest(agent: AgentModel) -> None:
    """Check that an agent's entry agrees with itself: action, mask and states.

    Raises:
        BundleError: names the field, what was got and what was expected.
    """
    space = agent.action_space
    if isinstance(space, BoxSpace):
        want_shape, want_dtype = [len(space.low)], "float32"
    elif isinstance(space, DiscreteSpace):
        want_shape, want_dtype = [], "int64"
    else:
        want_shape, want_dtype = [len(space.n)], "int64"
    expectations: list[tuple[str, object, object]] = [
        ("action.shape", agent.action.shape, want_shape),
        ("action.dtype", agent.action.dtype, want_dtype),
    ]
    if (len(agent.observation.shape), agent.observation.dtype) != (3, "uint8"):  # else a picture of bytes
        expectations.append(("observation.dtype", agent.observation.dtype, "float32"))
    if agent.action_mask is not None:
        expectations.append(("action_mask.shape", agent.action_mask.shape, [sum(branch_sizes(space))]))
        expectations.append(("action_mask.dtype", agent.action_mask.dtype, "bool"))
    if agent.step is not None:
        expectations.append(("step.shape", agent.step.shape, []))
        expectations.append(("step.dtype", agent.step.dtype, "int64"))
    for state in agent.states:
        expectations.append((f"states.{state.input}.reset: length", len(state.reset), math.prod(state.shape)))
    for field, got, expected in expectations:
        if got != expected:
            raise BundleError(
                f"manifest: agent '{agent.id}': {field}: got {one_line(got)}, expected {one_line(expected)}"
            )


class Buffers(Protocol):
    """A graph with fixed buffers for one row. Write ``inputs``, call ``run``, read ``outputs``.

    ``numbers`` [M] float32 is the memory of all float outputs, so that one look tells whether they are finite.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    numbers: Array

    def run(self) -> None:
        """Compute ``outputs`` from ``inputs``."""
        ...


def make_buffers(session: ort.InferenceSession, agent: AgentModel) -> Buffers:
    """Buffers for one row; every session has its own, so that sessions never share memory."""
    inputs = {tensor.name: np.zeros((1, *tensor.shape), DTYPES[tensor.dtype]) for tensor in graph_inputs(agent)}
    outputs, numbers = _output_rows(graph_outputs(agent))
    if session.get_providers()[0] == PROVIDERS["cpu"]:
        return _BoundBuffers(session, inputs, outputs, numbers)
    return _FedBuffers(session, inputs, outputs, numbers)


def _output_rows(tensors: list[TensorModel]) -> tuple[dict[str, Array], Array]:
    """Zeros [1, *shape] by name, and the block [M] float32 that all float ones are parts of."""
    floats = [tensor for tensor in tensors if tensor.dtype == "float32"]
    # Each begins at a multiple of 64 bytes within the block.
    sizes = [-(-math.prod(tensor.shape) // 16) * 16 for tensor in floats]
    numbers = np.zeros(sum(sizes), DTYPES["float32"])
    parts = dict(zip((tensor.name for tensor in floats), np.split(numbers, np.cumsum(sizes)[:-1]), strict=False))
    rows = {}
    for tensor in tensors:
        shape = (1, *tensor.shape)
        if tensor.name in parts:
            rows[tensor.name] = parts[tensor.name][: math.prod(shape)].reshape(shape)
        else:
            rows[tensor.name] = np.zeros(shape, DTYPES[tensor.dtype])
    return rows, numbers


class _BoundBuffers:
    """CPU: the graph reads and writes the NumPy arrays in place, which saves a third of the time of ``run``."""

    def __init__(
        self, session: ort.InferenceSession, inputs: dict[str, Array], outputs: dict[str, Array], numbers: Array
    ) -> None:
        self.inputs, self.outputs, self.numbers = inputs, outputs, numbers
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        self._run = session.run_with_iobinding

    def run(self) -> None:
        self._run(self._binding)


class _FedBuffers:
    """Other providers copy bound inputs to the device when they are bound, so they are fed anew at every run."""

    def __init__(
        self, session: ort.InferenceSession, inputs: dict[str, Array], outputs: dict[str, Array], numbers: Array
    ) -> None:
        self.inputs, self.outputs, self.numbers = inputs, outputs, numbers
        self._session = session
        self._names = list(outputs)

    def run(self) -> None:
        for name, result in zip(self._names, self._session.run(self._names, self.inputs), strict=True):
            if result.shape != self.outputs[name].shape:
                raise HmarlError(f"output '{name}': got shape {result.shape}, expected {self.outputs[name].shape}")
            self.outputs[name][...] = result
