"""What an ONNX file may hold to be opened: one flat graph of pure tensor operators, with its weights inside.

The file is parsed with protobuf, as ONNX Runtime does it, by a schema that has the fields of exported policies and no
others: whatever else there is, in whatever encoding, is an unknown field and refused. ONNX Runtime is given what was
checked, written anew, never the file's own bytes, so that no two readers can understand them differently.

Sizes of results follow from constants and from the inputs' sizes, never from what is observed. What one run costs is
therefore what every run costs, and ``hmarl.runtime.trial`` finds it out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from hmarl.runtime.errors import BundleError, one_line

# Names are ``bytes``: ONNX Runtime does not insist on UTF-8 either. ``*`` is repeated; a capital is a message. What
# onnx.proto has besides (external data, sub-graphs, functions, sparse and string tensors, ...) is refused.
_SCHEMA: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        1: ("ir_version", "int64"), 2: ("producer_name", "bytes"), 3: ("producer_version", "bytes"),
        4: ("domain", "bytes"), 5: ("model_version", "int64"), 6: ("doc_string", "bytes"), 7: ("graph", "Graph"),
        8: ("opset_import", "*OperatorSet"), 14: ("metadata_props", "*Entry"),
    },
    "OperatorSet": {1: ("domain", "bytes"), 2: ("version", "int64")},
    "Entry": {1: ("key", "bytes"), 2: ("value", "bytes")},
    "Graph": {
        1: ("node", "*Node"), 2: ("name", "bytes"), 5: ("initializer", "*Tensor"), 10: ("doc_string", "bytes"),
        11: ("input", "*ValueInfo"), 12: ("output", "*ValueInfo"), 13: ("value_info", "*ValueInfo"),
        16: ("metadata_props", "*Entry"),
    },
    "Node": {
        1: ("input", "*bytes"), 2: ("output", "*bytes"), 3: ("name", "bytes"), 4: ("op_type", "bytes"),
        5: ("attribute", "*Attribute"), 6: ("doc_string", "bytes"), 7: ("domain", "bytes"),
        9: ("metadata_props", "*Entry"),
    },
    "Attribute": {
        1: ("name", "bytes"), 2: ("f", "float"), 3: ("i", "int64"), 4: ("s", "bytes"), 5: ("t", "Tensor"),
        7: ("floats", "*float"), 8: ("ints", "*int64"), 9: ("strings", "*bytes"), 13: ("doc_string", "bytes"),
        20: ("type", "int32"),
    },
    "ValueInfo": {
        1: ("name", "bytes"), 2: ("type", "Type"), 3: ("doc_string", "bytes"), 4: ("metadata_props", "*Entry"),
    },
    "Type": {1: ("tensor_type", "TensorType"), 6: ("denotation", "bytes")},
    "TensorType": {1: ("elem_type", "int32"), 2: ("shape", "Shape")},
    "Shape": {1: ("dim", "*Dimension")},
    "Dimension": {1: ("dim_value", "int64"), 2: ("dim_param", "bytes"), 3: ("denotation", "bytes")},
    "Tensor": {
        1: ("dims", "*int64"), 2: ("data_type", "int32"), 4: ("float_data", "*float"), 5: ("int32_data", "*int32"),
        7: ("int64_data", "*int64"), 8: ("name", "bytes"), 9: ("raw_data", "bytes"), 10: ("double_data", "*double"),
        11: ("uint64_data", "*uint64"), 12: ("doc_string", "bytes"), 14: ("data_location", "int32"),
        16: ("metadata_props", "*Entry"),
    },
}  # fmt: skip
_ONE_OF = {("Dimension", "dim_value"), ("Dimension", "dim_param")}
# What the fields that are most likely to be met are called.
_REFUSED = {
    ("Model", 20): "training_info", ("Model", 25): "functions of its own",
    ("Graph", 14): "quantisation", ("Graph", 15): "sparse weights",
    ("Node", 8): "an overloaded operator",
    ("Attribute", 6): "a sub-graph", ("Attribute", 11): "sub-graphs", ("Attribute", 10): "a list of tensors",
    ("Attribute", 21): "a reference to a function's attribute", ("Attribute", 22): "a sparse tensor",
    ("Attribute", 23): "sparse tensors",
    ("Type", 4): "a sequence", ("Type", 5): "a map", ("Type", 8): "a sparse tensor", ("Type", 9): "an optional value",
    ("Tensor", 3): "a tensor in segments", ("Tensor", 6): "strings",
}  # fmt: skip
_EXTERNAL_DATA = ("Tensor", 13)

_DEFAULT_DOMAINS = (b"", b"ai.onnx")
_NODES_LIMIT = 20_000
_RANK_LIMIT = 8
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_TYPED_DATA = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}

# Pure functions of tensors. Nothing that runs a graph of its own, draws random numbers, or has results whose size is
# the outcome of a computation on values (NonZero, Unique, Compress, ...).
_OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
    Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf
    IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu
    Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor
    Einsum Gemm MatMul
    ArgMax ArgMin CumSum Hardmax LogSoftmax ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK
    BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LpNormalization LRN
    MeanVarianceNormalization RMSNormalization
    Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND OneHot Pad Range
    Reshape ReverseSequence ScatterElements ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu
    Unsqueeze
    AveragePool Conv ConvTranspose GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool
    GRU LSTM RNN
    """.split()  # noqa: SIM905 - a hundred names in quotes are hard to read
)
# Inputs, by their places, that say how large an operator's result is.
_SIZES: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,), "Expand": (1,), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Unsqueeze": (1,),
    **{name: (1,) for name in _OPERATORS if name.startswith("Reduce")},
}  # fmt: skip
_LEFT_OUT = {b""}  # the name of an optional input or output that is not there
_GIVE_SIZES = ("Shape", "Size")  # their results are sizes, whatever the values are


def checked_graph(file: str, model: bytes) -> bytes:
    """An ONNX file, checked and written anew with what running it needs.

    Args:
        file: what messages call it.
        model: its content.

    Raises:
        BundleError: not an ONNX file, or anything in it that no exported policy has.
    """
    parsed = _parsed(file, model)
    _check_operators(file, parsed)
    for tensor in parsed.graph.initializer:
        _check_tensor(file, f"weight '{_text(tensor.name)}'", tensor)
    _check_sizes(file, parsed.graph)
    for field in ("metadata_props", "doc_string"):
        parsed.ClearField(field)
    return bytes(parsed.SerializeToString())


@cache
def _message_class() -> type[Message]:
    """The class that parses a ``Model``."""
    file = descriptor_pb2.FileDescriptorProto(name="hmarl/onnx.proto", package="hmarl.onnx", syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field_name, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            repeated, type_name = kind.startswith("*"), kind.removeprefix("*")
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if type_name in _SCHEMA:
                field.type, field.type_name = field.TYPE_MESSAGE, f".hmarl.onnx.{type_name}"
            else:
                field.type = getattr(field, f"TYPE_{type_name.upper()}")
                field.options.packed = repeated and type_name != "bytes"
            if (name, field_name) in _ONE_OF:
                field.oneof_index = 0
        if any(message_name == name for message_name, _ in _ONE_OF):
            message.oneof_decl.add(name="value")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName("hmarl.onnx.Model"))
    return found


def _parsed(file: str, model: bytes) -> Any:
    """A ``Model`` that has no field that the schema does not have, anywhere."""
    parsed: Any = _message_class()()
    try:
        parsed.ParseFromString(model)
        size = parsed.ByteSize()
        parsed.DiscardUnknownFields()
        if parsed.ByteSize() == size:
            return parsed
        parsed.ParseFromString(model)
    except DecodeError as error:
        raise BundleError(f"{file}: not an ONNX file ({one_line(error)}); export it again") from error
    kind, number = next(iter(_unknown_fields(parsed)))
    if (kind, number) == _EXTERNAL_DATA:
        raise BundleError(
            f"{file}: the graph keeps weights in another file, which no hash covers; export it with its weights "
            "inside (external_data=False)"
        )
    what = _REFUSED.get((kind, number), f"field {number} of {kind}Proto")
    raise BundleError(f"{file}: the graph has {what}, which no exported policy has; export it again")


def _unknown_fields(message: Any) -> Iterable[tuple[str, int]]:
    for field in UnknownFieldSet(message):
        yield message.DESCRIPTOR.name, field.field_number
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                yield from _unknown_fields(each)


def _check_operators(file: str, parsed: Any) -> None:
    graph = parsed.graph
    for opset in parsed.opset_import:
        if opset.domain not in _DEFAULT_DOMAINS:
            raise BundleError(
                f"{file}: uses the operators of '{_text(opset.domain)}', expected the default domain alone"
            )
    for what, got in (("nodes", graph.node), ("weights", graph.initializer), ("values", graph.value_info)):
        if len(got) > _NODES_LIMIT:
            raise BundleError(f"{file}: got {len(got):,} {what}, expected at most {_NODES_LIMIT:,}")
    for node in graph.node:
        operator = _text(node.op_type)
        if node.domain not in _DEFAULT_DOMAINS or operator not in _OPERATORS:
            name = f"{_text(node.domain)}.{operator}" if node.domain else operator
            raise BundleError(f"{file}: operator '{name}' is not among those of an exported policy")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _check_tensor(file, f"'{_text(attribute.name)}' of a {operator}", attribute.t)


def _check_tensor(file: str, what: str, tensor: Any) -> None:
    """As many values as its sizes say, and all of them here."""
    if tensor.data_location:
        raise BundleError(
            f"{file}: {what} lies in another file, which no hash covers; export it with its weights inside"
        )
    item_bytes = _ITEM_BYTES.get(tensor.data_type)
    if item_bytes is None:
        raise BundleError(f"{file}: {what}: got data type {tensor.data_type}, expected numbers")
    dims = list(tensor.dims[: _RANK_LIMIT + 1])
    if len(dims) > _RANK_LIMIT or any(not 0 <= size < 2**31 for size in dims):
        raise BundleError(f"{file}: {what}: got sizes {dims}, expected at most {_RANK_LIMIT} from 0 to 2**31")
    count = math.prod(dims)
    typed = _TYPED_DATA.get(tensor.data_type, "int32_data")
    held = {name: len(getattr(tensor, name)) for name in ("int32_data", *set(_TYPED_DATA.values()))}
    values = len(tensor.raw_data) / item_bytes if tensor.HasField("raw_data") else held.pop(typed)
    if values != count or (any(held.values())):
        raise BundleError(f"{file}: {what}: sizes {dims} mean {count:,} values, got others")


def _check_sizes(file: str, graph: Any) -> None:
    """No size of any result may depend on the values of an input."""
    readers = defaultdict(list)
    for node in graph.node:
        if _text(node.op_type) not in _GIVE_SIZES:
            for name in set(node.input) - _LEFT_OUT:
                readers[name].append(node)
    observed = {value.name for value in graph.input}
    pending = list(observed)
    while pending:
        for node in readers[pending.pop()]:
            fresh = set(node.output) - observed - _LEFT_OUT
            observed |= fresh
            pending += fresh
    for node in graph.node:
        operator = _text(node.op_type)
        for place in _SIZES.get(operator, ()):
            if place < len(node.input) and node.input[place] in observed:
                raise BundleError(
                    f"{file}: the result of a {operator} is as large as an observed value says, which no exported "
                    "policy's is"
                )


def _text(name: bytes) -> str:
    """A name for a message: printable, and short."""
    return one_line(name[:60].decode(errors="replace"))
