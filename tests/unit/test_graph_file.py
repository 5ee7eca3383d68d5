"""Names, IR version and size of ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from hmarl.trainer.export.graphs import file_stems, lower_ir_version

SHIPPED = Path(__file__).parents[2] / "models" / "simple-spread-hcpo" / "agents"


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["agent_0", "agent_1", "red-2", "robot.1"], ["agent_0", "agent_1", "red-2", "robot.1"]),
        (["agent:2", "team/blue 1", "../up", "a,b=c"], ["0-agent_2", "1-team_blue_1", "2-up", "3-a_b_c"]),
        (["агент", "代理人", "…"], ["0", "1", "2"]),
        (["éclair", "naïve"], ["0-clair", "1-na_ve"]),
        (["Agent", "agent", "AGENT"], ["Agent", "1-agent", "2-AGENT"]),
        (["x:1", "0-x_1", "0-X_1"], ["0-x_1", "1-0_x_1", "2-0_X_1"]),
        (["con", "NUL.txt", "com1", "console"], ["0-con", "1-NUL_txt", "2-com1", "console"]),
        ([".hidden", "dot.", "-v", "..", "~"], ["0-hidden", "1-dot", "2-v", "3", "4"]),
        (["a" * 64, "a" * 65], ["a" * 64, "1-" + "a" * 40]),
        (["1", ":", "0"], ["1", "1-2", "0"]),
    ],
)
def test_every_name_has_a_file_of_its_own_on_any_disk(names: list[str], stems: list[str]) -> None:
    got = file_stems(names)
    assert got == stems
    assert len({stem.casefold() for stem in got}) == len(names)


def tiny_model(opset: int, weights: np.ndarray) -> onnx.ModelProto:
    """y = x + weights, with metadata as exporters leave it."""
    node = helper.make_node("Add", ["x", "w"], ["y"], doc_string="where from")
    node.metadata_props.add(key="stack", value="trace")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph([node], "tiny", values[:1], values[1:], [numpy_helper.from_array(weights, "w")])
    graph.metadata_props.add(key="stack", value="trace")
    graph.initializer[0].metadata_props.add(key="stack", value="trace")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(("opset", "version"), [(18, 8), (19, 9), (21, 10)])
def test_the_ir_version_is_the_lowest_that_the_opset_needs(opset: int, version: int) -> None:
    model = tiny_model(opset, np.array([1.0, 2.0], np.float32))
    lower_ir_version(model)
    assert model.ir_version == version
    assert b"trace" not in model.SerializeToString()
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.ones((1, 2), np.float32)})[0], [[2.0, 3.0]])


def test_types_that_came_later_keep_their_version() -> None:
    model = tiny_model(18, np.array([1.0, 2.0], np.float32))
    later = helper.make_tensor("eighth", TensorProto.FLOAT8E4M3FN, [1], b"\x00", raw=True)
    model.graph.initializer.append(later)
    lower_ir_version(model)
    assert model.ir_version == 10


def test_the_shipped_bundle_is_read_by_the_oldest_runtimes() -> None:
    graphs = sorted(SHIPPED.glob("*.onnx"))
    assert graphs
    for path in graphs:
        model = onnx.load(path)
        assert (model.ir_version, [(each.domain, each.version) for each in model.opset_import]) == (8, [("", 18)])
        onnx.checker.check_model(model, full_check=True)
