"""Small bundles made without torch: every feature that a deployed policy can have, in graphs of a few nodes.

hidden    = tanh(... tanh(observation W0 + state Ws (+ step/10 Wt)) ...)
instruct. = argmax(hidden Wi + gumbel(instruction_noise))
logits    = hidden W1 + Wk[instruction]
action    = argmax(where(mask, logits, -1e9) + gumbel(action_noise))     (one per branch for multi_discrete)
          | low + (high - low) (tanh(logits + 0.1 action_noise) + 1)/2   (box)
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hmarl.runtime.bundle import SCHEMA_VERSION, Bundle, write_bundle

HIDDEN = 8
INSTRUCTIONS = 4
ActionType = Literal["discrete", "multi_discrete", "box"]
ACTION_SPACES: dict[ActionType, dict[str, Any]] = {
    "discrete": {"type": "discrete", "n": 5},
    "multi_discrete": {"type": "multi_discrete", "n": [3, 2]},
    "box": {"type": "box", "low": [-1.0, 0.0], "high": [1.0, 10.0]},
}


class _Graph:
    """Collects nodes; every method returns the name of its result."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(seed)

    def add(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def weight(self, *shape: int) -> str:
        return self.constant((self.generator.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32))

    def gumbel(self, uniform: str) -> str:
        """-log(-log(u)), and 0 where u is 0 (deterministic mode)."""
        zero = self.constant(np.float32(0))
        drawn = self.add("Greater", uniform, zero)
        safe = self.add("Where", drawn, uniform, self.constant(np.float32(0.5)))
        noise = self.add("Neg", self.add("Log", self.add("Neg", self.add("Log", safe))))
        return self.add("Where", drawn, noise, zero)

    def clock(self, size: int) -> str:
        """step/10 times weights."""
        self.nodes.append(helper.make_node("Cast", ["step"], ["float_step"], to=TensorProto.FLOAT))
        column = self.add("Unsqueeze", "float_step", self.constant(np.array([1], np.int64)))
        return self.add("MatMul", self.add("Mul", column, self.constant(np.float32(0.1))), self.weight(1, size))


def toy_graph(
    *,
    observation_size: int = 6,
    action: ActionType = "discrete",
    sizes: tuple[int, ...] = (HIDDEN,),
    plain: bool = False,
    counts: bool = False,
    seed: int = 0,
) -> bytes:
    """The ONNX file of one agent.

    ``plain`` leaves mask, state, noise, instructions and diagnostics out; ``counts`` adds the number of the step.
    """
    graph = _Graph(seed)
    outputs = _outputs(action, sizes[-1], plain)
    hidden, width = "observation", observation_size
    for layer, size in enumerate(sizes):
        total = graph.add("Gemm", hidden, graph.weight(width, size), graph.weight(size))
        if layer == 0 and not plain:
            total = graph.add("Add", total, graph.add("MatMul", "state", graph.weight(sizes[-1], size)))
        if layer == 0 and counts:
            total = graph.add("Add", total, graph.clock(size))
        last = layer == len(sizes) - 1 and not plain
        hidden, width = graph.add("Tanh", total, to="next_state" if last else ""), size
    logits_size = outputs_size(action)
    logits = graph.add("Gemm", hidden, graph.weight(width, logits_size), graph.weight(logits_size))
    if not plain:
        scores = graph.add("MatMul", hidden, graph.weight(width, INSTRUCTIONS))
        scores = graph.add("Add", scores, graph.gumbel("instruction_noise"))
        instruction = graph.add("ArgMax", scores, axis=1, keepdims=0, to="instruction")
        table = graph.weight(INSTRUCTIONS, logits_size)
        logits = graph.add("Add", logits, graph.add("Gather", table, instruction), to="action_logits")
    _add_action(graph, action, logits, plain)
    inputs = _inputs(observation_size, action, sizes[-1], plain, counts)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, "toy", [_info(*each) for each in inputs], [_info(*each) for each in outputs], graph.weights
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def outputs_size(action: ActionType) -> int:
    """Number of logits."""
    return {"discrete": 5, "multi_discrete": 5, "box": 2}[action]


def _add_action(graph: _Graph, action: ActionType, logits: str, plain: bool) -> None:
    if action == "box":
        noise = (
            logits
            if plain
            else graph.add("Add", logits, graph.add("Mul", "action_noise", graph.constant(np.float32(0.1))))
        )
        space = ACTION_SPACES["box"]
        low, high = np.float32(space["low"]), np.float32(space["high"])
        unit = graph.add("Add", graph.add("Tanh", noise), graph.constant(np.float32(1)))
        graph.add("Add", graph.add("Mul", unit, graph.constant((high - low) / 2)), graph.constant(low), to="action")
        return
    if not plain:
        legal = graph.add("Where", "action_mask", logits, graph.constant(np.float32(-1e9)))
        logits = graph.add("Add", legal, graph.gumbel("action_noise"))
    if action == "discrete":
        graph.add("ArgMax", logits, axis=1, keepdims=0, to="action")
        return
    sizes = graph.constant(np.array(ACTION_SPACES["multi_discrete"]["n"], np.int64))
    graph.nodes.append(helper.make_node("Split", [logits, sizes], ["branch0", "branch1"], axis=1))
    chosen = [graph.add("ArgMax", f"branch{index}", axis=1, keepdims=1) for index in range(2)]
    graph.add("Concat", *chosen, axis=1, to="action")


def _info(name: str, kind: int, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def _inputs(
    observation_size: int, action: ActionType, width: int, plain: bool, counts: bool
) -> list[tuple[str, int, list[int]]]:
    inputs = [("observation", TensorProto.FLOAT, [observation_size])]
    if counts:
        inputs.append(("step", TensorProto.INT64, []))
    if not plain:
        inputs.append(("state", TensorProto.FLOAT, [width]))
        inputs.append(("action_noise", TensorProto.FLOAT, [outputs_size(action)]))
        inputs.append(("instruction_noise", TensorProto.FLOAT, [INSTRUCTIONS]))
        if action != "box":
            inputs.append(("action_mask", TensorProto.BOOL, [outputs_size(action)]))
    return inputs


def _outputs(action: ActionType, width: int, plain: bool) -> list[tuple[str, int, list[int]]]:
    shape = {"discrete": [], "multi_discrete": [2], "box": [2]}[action]
    outputs = [("action", TensorProto.FLOAT if action == "box" else TensorProto.INT64, shape)]
    if not plain:
        outputs.append(("next_state", TensorProto.FLOAT, [width]))
        outputs.append(("instruction", TensorProto.INT64, []))
        outputs.append(("action_logits", TensorProto.FLOAT, [outputs_size(action)]))
    return outputs


def toy_agent(
    agent_id: str,
    *,
    observation_size: int,
    action: ActionType,
    sizes: tuple[int, ...],
    plain: bool,
    counts: bool = False,
) -> dict[str, Any]:
    """The manifest's entry that goes with ``toy_graph``."""
    dtypes = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.BOOL: "bool"}
    tensors = {
        name: {"name": name, "shape": shape, "dtype": dtypes[kind], "meaning": f"toy {name}"}
        for name, kind, shape in (
            *_inputs(observation_size, action, sizes[-1], plain, counts),
            *_outputs(action, sizes[-1], plain),
        )
    }
    entry: dict[str, Any] = {
        "id": agent_id,
        "file": f"agents/{agent_id}.onnx",
        "kind": "toy",
        "action_space": ACTION_SPACES[action],
        "observation": tensors["observation"],
        "action": tensors["action"],
    }
    if counts:
        entry["step"] = tensors["step"]
    if plain:
        return entry
    entry["action_mask"] = tensors.get("action_mask")
    state = {"input": "state", "output": "next_state", "shape": [sizes[-1]], "dtype": "float32", "meaning": "memory"}
    entry["states"] = [{**state, "reset": [0.25] * sizes[-1]}]
    entry["noises"] = [
        {
            "name": "action_noise",
            "shape": [outputs_size(action)],
            "distribution": "normal" if action == "box" else "uniform",
            "stream": "private",
            "purpose": "action",
        },
        {
            "name": "instruction_noise",
            "shape": [INSTRUCTIONS],
            "distribution": "uniform",
            "stream": "common",
            "purpose": "instruction",
        },
    ]
    entry["diagnostics"] = [tensors["instruction"], tensors["action_logits"]]
    return entry


def toy_manifest(agents: list[dict[str, Any]], environment: dict[str, Any] | None = None) -> dict[str, Any]:
    """Manifest fields without ``files``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": "toy",
        "created_by": "tests",
        "algorithm": "toy",
        "environment": environment or {"name": "toy/toy", "team_reward": "sum", "control_period_s": 0.1},
        "agents": agents,
        "normalisation": "none",
        "opset": 18,
        "parity": [],
        "parity_tolerance": {"cpu": 1e-5},
    }


def write_toy_bundle(
    path: Path,
    *,
    agents: tuple[str, ...] = ("agent_0", "agent_1"),
    observation_size: int = 6,
    action: ActionType = "discrete",
    sizes: tuple[int, ...] = (HIDDEN,),
    plain: bool = False,
    interchangeable: tuple[str, ...] = (),
    environment: dict[str, Any] | None = None,
    more_files: dict[str, bytes] | None = None,
) -> Bundle:
    """Write a bundle at ``path`` (a zip when it ends with .zip); every agent has weights of its own.

    The agents whose ids begin with one of ``interchangeable`` share a graph of that name.
    """
    shape: dict[str, Any] = {"observation_size": observation_size, "action": action, "sizes": sizes, "plain": plain}
    entries = [toy_agent(agent, **shape) for agent in agents]
    for entry in entries:
        for name in interchangeable:
            if entry["id"].startswith(name):
                entry |= {"file": f"agents/{name}.onnx", "interchangeable": True}
    files = {entry["file"]: toy_graph(**shape, seed=zlib.crc32(entry["file"].encode())) for entry in entries}
    files["README.md"] = b"# A toy\n"
    files.update(more_files or {})
    manifest = toy_manifest(entries, environment)
    return write_bundle(path, manifest, files)
