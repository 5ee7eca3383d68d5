"""A policy that does what its observation says, whether or not there is such an action."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hmarl.runtime.bundle import Bundle, write_bundle
from toy_bundle import ActionType, toy_agent, toy_manifest


def write_literal_bundle(path: Path, action: ActionType) -> Bundle:
    """A bundle of agent_0, which observes six numbers: its action is the first, or the first two, of them.

    Discrete ones have a mask, of which the policy takes no notice.
    """
    kind = TensorProto.FLOAT if action == "box" else TensorProto.INT64
    shape: list[int] = [] if action == "discrete" else [2]
    inputs = [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", 6])]
    if action != "box":
        inputs.append(helper.make_tensor_value_info("action_mask", TensorProto.BOOL, ["batch", 5]))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["observation", "places"], ["chosen"], axis=1),
            helper.make_node("Cast", ["chosen"], ["action"], to=kind),
        ],
        "literal",
        inputs,
        [helper.make_tensor_value_info("action", kind, ["batch", *shape])],
        [numpy_helper.from_array(np.arange(2) if shape else np.array(0), "places")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    agent = toy_agent("agent_0", observation_size=6, action=action, sizes=(8,), plain=True)
    if action != "box":
        agent["action_mask"] = {"name": "action_mask", "shape": [5], "dtype": "bool", "meaning": "legal choices"}
    return write_bundle(path, toy_manifest([agent]), {"agents/agent_0.onnx": model.SerializeToString()})
