"""A policy that works for some observations and fails for others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hmarl.runtime.bundle import Bundle, write_bundle
from toy_bundle import toy_manifest

ACTIONS = [2, 0, 1]


def picky_bundle(path: Path) -> Bundle:
    """A policy that looks its action up at the place that it observes, and fails where there is none."""
    nodes = [
        helper.make_node("Cast", ["observation"], ["places"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["places", "axis"], ["place"]),
        helper.make_node("Gather", ["actions", "place"], ["action"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(ACTIONS), "actions"),
        numpy_helper.from_array(np.array([1]), "axis"),
    ]
    graph = helper.make_graph(
        nodes,
        "picky",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("action", TensorProto.INT64, ["batch"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    agent = {
        "id": "agent_0",
        "file": "agents/agent_0.onnx",
        "kind": "toy",
        "action_space": {"type": "discrete", "n": 3},
        "observation": {"name": "observation", "shape": [1], "dtype": "float32", "meaning": "a place"},
        "action": {"name": "action", "shape": [], "dtype": "int64", "meaning": "what is there"},
    }
    return write_bundle(path, toy_manifest([agent]), {"agents/agent_0.onnx": model.SerializeToString()})
