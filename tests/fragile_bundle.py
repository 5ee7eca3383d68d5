"""A policy that computes NaN when it is shown a number above 1e30, as one whose sums overflow does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from hmarl.runtime.bundle import Bundle, write_bundle
from toy_bundle import ActionType, toy_agent, toy_graph, toy_manifest


def write_fragile_bundle(path: Path, action: ActionType, output: str) -> Bundle:
    """A toy bundle of agent_0 whose ``output``, and what follows from it, is NaN where observation[0] is above 1e30."""
    model = onnx.load_model_from_string(toy_graph(action=action))
    nodes = model.graph.node
    for node in nodes:  # the output becomes the sum of what it was and 0 * (1e30 * observation[0])
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
    constants = {"zero": np.float32(0), "huge": np.float32(1e30), "first": np.array([0])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    make = onnx.helper.make_node
    trap = [
        make("Gather", ["observation", "first"], ["head"], axis=1),
        make("Mul", ["head", "huge"], ["scaled"]),
        make("Mul", ["scaled", "zero"], ["trap"]),
        make("Add", [f"{output}_before", "trap"], [output]),
    ]
    before = next(index for index, node in enumerate(nodes) if f"{output}_before" in node.output) + 1
    ordered = [*nodes[:before], *trap, *nodes[before:]]
    del nodes[:]
    nodes.extend(ordered)
    agent = toy_agent("agent_0", observation_size=6, action=action, sizes=(8,), plain=False)
    return write_bundle(path, toy_manifest([agent]), {"agents/agent_0.onnx": model.SerializeToString()})
