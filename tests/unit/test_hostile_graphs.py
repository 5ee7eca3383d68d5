"""Graphs that no exporter writes: whatever they hold besides pure tensor operators is found, in whatever encoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from hmarl.runtime._onnx import checked_graph
from hmarl.runtime.bundle import BundleError, load_bundle
from hmarl.runtime.session import Policy
from raw_bundle import plain_graph, raw_graph
from toy_bundle import toy_graph

Change = Callable[[onnx.ModelProto], None]


def changed(change: Change) -> bytes:
    """The toy graph with something done to it."""
    model = onnx.load_from_string(plain_graph())
    change(model)
    return bytes(model.SerializeToString())


def problem(graph: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        checked_graph("agents/a.onnx", graph)
    message = str(caught.value)
    assert message.startswith("agents/a.onnx: ")
    assert message.isprintable()
    return message


# external data, however it is written


def varint(number: int, padding: int = 0) -> bytes:
    """A varint of protobuf; ``padding`` more bytes than it needs, which is legal."""
    encoded = bytearray()
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    for _ in range(padding):
        encoded[-1] |= 128
        encoded.append(0)
    return bytes(encoded)


def field(number: int, content: bytes, padding: int = 0) -> bytes:
    """A length-delimited field, tag and length both padded."""
    return varint(number << 3 | 2, padding) + varint(len(content), padding) + content


def outside(location: str, padding: int) -> bytes:
    """A uint8 weight of 64 values that lie in another file."""
    tensor = TensorProto(name="w0", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    entries = ((b"location", location.encode()), (b"length", b"64"))
    return bytes(tensor.SerializeToString()) + b"".join(
        field(13, field(1, key, padding) + field(2, value, padding), padding) for key, value in entries
    )


def place_in_initializer(model: onnx.ModelProto, tensor: bytes, padding: int) -> bytes:
    return model.SerializeToString() + field(7, field(5, tensor, padding), padding)


def place_in_attribute(model: onnx.ModelProto, tensor: bytes, padding: int) -> bytes:
    attribute = (
        field(1, b"value") + field(5, tensor, padding) + varint(20 << 3) + varint(AttributeProto.TENSOR, padding)
    )
    node = field(2, b"constant") + field(4, b"Constant") + field(5, attribute, padding)
    return model.SerializeToString() + field(7, field(1, node, padding), padding)


def place_in_sparse(model: onnx.ModelProto, tensor: bytes, padding: int) -> bytes:
    return model.SerializeToString() + field(7, field(15, field(1, tensor, padding), padding), padding)


def place_in_sub_graph(model: onnx.ModelProto, tensor: bytes, padding: int) -> bytes:
    attribute = field(1, b"then_branch") + field(6, field(5, tensor, padding), padding)
    node = field(4, b"If") + field(5, attribute, padding)
    return model.SerializeToString() + field(7, field(1, node, padding), padding)


def place_in_function(model: onnx.ModelProto, tensor: bytes, padding: int) -> bytes:
    attribute = field(1, b"value") + field(5, tensor, padding)
    return model.SerializeToString() + field(
        25, field(7, field(4, b"Constant") + field(5, attribute, padding)), padding
    )


def place_in_training(model: onnx.ModelProto, tensor: bytes, padding: int) -> bytes:
    return model.SerializeToString() + field(20, field(1, field(5, tensor, padding), padding), padding)


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize(
    "place",
    [
        place_in_initializer,
        place_in_attribute,
        place_in_sparse,
        place_in_sub_graph,
        place_in_function,
        place_in_training,
    ],
)
def test_external_data_is_refused_wherever_it_is_and_however_it_is_encoded(
    place: Callable[[onnx.ModelProto, bytes, int], bytes], padding: int
) -> None:
    graph = place(onnx.load_from_string(plain_graph()), outside("../secret", padding), padding)
    onnx.load_from_string(graph)  # a legal encoding
    assert "which no" in problem(graph)


def test_a_bundle_with_external_data_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    graph = place_in_initializer(
        onnx.load_from_string(plain_graph()), outside(str(tmp_path / "secret"), padding=1), padding=1
    )
    with pytest.raises(BundleError, match="weights in another file, which no hash covers"):
        Policy(load_bundle(raw_graph(tmp_path / "b", graph)), "a")


def test_a_location_that_is_stated_without_external_data_is_refused() -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL

    assert "lies in another file" in problem(changed(change))


# what else is refused


def sub_graph() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["observation"], ["y"])], "body", [], [])


def add_node(operator: str, inputs: list[str], domain: str = "", **attributes: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(operator, inputs, ["more"], domain=domain, **attributes))

    return change


def import_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def add_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [], [helper.make_opsetid("", 18)]))


def add_sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [10**6]))


def add_strings(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [1], [b"x"]))


def add_sequence(model: onnx.ModelProto) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    model.graph.value_info.append(helper.make_value_info("sequence", kind))


def weight(**fields: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(TensorProto(name="more", **fields))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_node("Loop", ["", ""], body=sub_graph()), "has a sub-graph"),
        (add_node("Loop", ["", ""]), "operator 'Loop' is not among"),
        (add_node("Scan", ["observation"], num_scan_inputs=1), "operator 'Scan' is not among"),
        (add_node("RandomNormal", [], shape=[2]), "operator 'RandomNormal' is not among"),
        (add_node("NonZero", ["observation"]), "operator 'NonZero' is not among"),
        (add_node("SequenceEmpty", []), "operator 'SequenceEmpty' is not among"),
        (add_node("Gelu", ["observation"], domain="com.microsoft"), "operator 'com.microsoft.Gelu' is not among"),
        (add_node("Add\x1b[2J", []), r"operator 'Add\x1b[2J' is not among"),
        (import_domain, "uses the operators of 'com.microsoft'"),
        (add_function, "has functions of its own"),
        (add_sparse, "has sparse weights"),
        (add_strings, "has strings"),
        (add_sequence, "has a sequence"),
        (weight(data_type=TensorProto.STRING, dims=[0]), "got data type 8, expected numbers"),
        (weight(data_type=TensorProto.FLOAT, dims=[2**40], raw_data=b"1234"), "got sizes [1099511627776]"),
        (weight(data_type=TensorProto.FLOAT, dims=[-1], raw_data=b""), "got sizes [-1]"),
        (weight(data_type=TensorProto.FLOAT, dims=[2**20] * 3, raw_data=b"1234"), "mean 1,152,921,504,606,846,976"),
        (weight(data_type=TensorProto.FLOAT, dims=[1] * 1000, raw_data=b"1234"), "expected at most 8"),
        (weight(data_type=TensorProto.FLOAT, dims=[2], raw_data=b"1234"), "sizes [2] mean 2 values, got others"),
        (weight(data_type=TensorProto.FLOAT, dims=[2]), "sizes [2] mean 2 values, got others"),
        (weight(data_type=TensorProto.INT64, dims=[1], int64_data=[1], float_data=[1.0]), "got others"),
    ],
)
def test_what_no_exporter_writes_is_refused(change: Change, message: str) -> None:
    assert message in problem(changed(change))


def test_a_file_of_another_format_is_refused() -> None:
    for content in (b"junk", plain_graph()[:-1], b"\x08\x00\x00\x00ORTM" + bytes(100), b"\x0b" * 1000):
        with pytest.raises(BundleError):
            checked_graph("agents/a.onnx", content)


def test_onnx_runtime_gets_what_was_checked_and_nothing_else(tmp_path: Path) -> None:
    model = onnx.load_from_string(plain_graph())
    helper.set_model_props(model, {"ort_config": '{"session_options": {"inter_op_num_threads": 100}}'})
    model.doc_string = "x" * 100_000
    checked = checked_graph("agents/a.onnx", model.SerializeToString())
    assert len(checked) < 10_000
    known = onnx.load_from_string(checked)
    assert not known.metadata_props
    assert known.graph == model.graph


# sizes that are observed


def constant(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def resized(*nodes: onnx.NodeProto) -> Change:
    """More nodes, with constants to use."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node.extend(nodes)
        model.graph.initializer.extend([constant("one", 1), constant("two", 2), constant("zero", 0)])

    return change


NODE = helper.make_node
OBSERVED = [NODE("Cast", ["observation"], ["whole"], to=TensorProto.INT64), NODE("Flatten", ["whole"], ["sizes"])]


@pytest.mark.parametrize(
    "last",
    [
        NODE("ConstantOfShape", ["sizes"], ["y"]),
        NODE("Expand", ["one", "sizes"], ["y"]),
        NODE("Tile", ["one", "sizes"], ["y"]),
        NODE("Range", ["zero", "sizes", "one"], ["y"]),
        NODE("Pad", ["one", "sizes"], ["y"]),
        NODE("Reshape", ["observation", "sizes"], ["y"]),
        NODE("OneHot", ["one", "sizes", "two"], ["y"]),
        NODE("Slice", ["one", "zero", "sizes"], ["y"]),
        NODE("ReduceSum", ["observation", "sizes"], ["y"]),
    ],
    ids=lambda node: str(node.op_type),
)
def test_a_size_that_an_observation_says_is_refused(last: onnx.NodeProto) -> None:
    expected = f"the result of a {last.op_type} is as large as an observed value says"
    assert expected in problem(changed(resized(*OBSERVED, last)))
    assert expected in problem(changed(resized(last, *OBSERVED)))  # the nodes' order does not matter


def test_sizes_of_the_batch_and_of_constants_are_allowed() -> None:
    nodes = [
        NODE("Shape", ["observation"], ["shape"]),
        NODE("Gather", ["shape", "zero"], ["batch"]),
        NODE("Concat", ["batch", "two"], ["wanted"], axis=0),
        NODE("Expand", ["one", "wanted"], ["y"]),
        NODE("Clip", ["observation", "", ""], ["z"]),
        NODE("Reshape", ["z", "wanted"], ["", "zz"]),
        NODE("Clip", ["one", "", "two"], ["sizes"]),
        NODE("Expand", ["one", "sizes"], ["yy"]),
    ]
    checked_graph("agents/a.onnx", changed(resized(*nodes)))


@pytest.mark.parametrize(("ir_version", "opset"), [(99, 18), (10, 999), (10, 0)])
def test_versions_that_onnx_runtime_does_not_know_are_refused(tmp_path: Path, ir_version: int, opset: int) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.ir_version = ir_version
        model.opset_import[0].version = opset

    with pytest.raises(BundleError, match=r"agents/a\.onnx: ONNX Runtime cannot open"):
        Policy(load_bundle(raw_graph(tmp_path / "b", changed(change))), "a")


@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "box"])
def test_the_graphs_that_policies_have_are_allowed(action: Any) -> None:
    graph = toy_graph(action=action)
    assert onnx.load_from_string(checked_graph("agents/a.onnx", graph)).graph == onnx.load_from_string(graph).graph
