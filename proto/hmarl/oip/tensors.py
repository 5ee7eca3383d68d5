"""Tensors of the Open Inference Protocol to NumPy and back, raw or typed. Every tensor has its rows first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1.tensors import WireError
from hmarl.oip import open_inference_pb2 as pb

_PREFIX = "inputs."


class _Kind(NamedTuple):
    """A data type: the protocol's name, the field of typed contents, how the raw ones lie."""

    datatype: str
    field: str
    raw: np.dtype[Any]


_KINDS: dict[str, _Kind] = {
    "float32": _Kind("FP32", "fp32_contents", np.dtype("<f4")),
    "int64": _Kind("INT64", "int64_contents", np.dtype("<i8")),
    "bool": _Kind("BOOL", "bool_contents", np.dtype(np.bool_)),
    "uint8": _Kind("UINT8", "uint_contents", np.dtype(np.uint8)),
}


def datatype_of(dtype: str) -> str:
    """The protocol's name of a NumPy type."""
    return _KINDS[dtype].datatype


def read_tensor(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, dtype: str, shape: Sequence[int], max_rows: int
) -> npt.NDArray[Any]:
    """An input as an array [rows, *shape]; what refusing it costs does not grow with the message.

    Args:
        tensor: the message.
        raw: its raw contents; None where its own are typed.
        dtype: the only type that is taken: ``float32``, ``int64``, ``bool`` or ``uint8``.
        shape: the only shape of a row that is taken.
        max_rows: as many are taken.

    Raises:
        WireError: another type or shape, too many rows, contents of the wrong length or kind, or a bool that is not 0
            or 1.
    """
    name, kind = f"{_PREFIX}{tensor.name}", _KINDS[dtype]
    if tensor.datatype != kind.datatype:
        raise WireError(f"{name}.datatype: got {tensor.datatype[:40]!r}, expected {kind.datatype}")
    if tensor.parameters:
        raise WireError(f"{name}.parameters: got some, expected none: there is no shared memory")
    if len(tensor.shape) != 1 + len(shape) or list(tensor.shape[1:]) != list(shape):
        got = f"{list(tensor.shape)}" if len(tensor.shape) <= 2 + len(shape) else f"{len(tensor.shape)} sizes"
        raise WireError(f"{name}.shape: got {got}, expected {[-1, *shape]}, rows first")
    rows = tensor.shape[0]
    if not 1 <= rows <= max_rows:
        raise WireError(f"{name}.shape: got {rows} rows, expected 1 to {max_rows}")
    count = rows * math.prod(shape)
    array = _typed(name, tensor.contents, kind, count) if raw is None else _raw(name, raw, kind, count)
    return array.reshape(rows, *shape)


def _raw(name: str, raw: bytes, kind: _Kind, count: int) -> npt.NDArray[Any]:
    if len(raw) != count * kind.raw.itemsize:
        raise WireError(
            f"{name}: got {len(raw)} bytes in raw_input_contents, expected {count * kind.raw.itemsize} for its shape"
        )
    if kind.raw == np.bool_ and raw.translate(None, b"\0\1"):
        raise WireError(f"{name}: got a byte that is neither 0 nor 1, expected one byte 0 or 1 an element")
    return np.frombuffer(raw, kind.raw).astype(kind.raw.newbyteorder("="), copy=False)


def _typed(name: str, contents: pb.InferTensorContents, kind: _Kind, count: int) -> npt.NDArray[Any]:
    filled = [field.name for field, _ in contents.ListFields()]
    if filled not in ([kind.field], []):
        raise WireError(f"{name}.contents: got {', '.join(filled)}, expected {kind.field} alone")
    got = getattr(contents, kind.field)
    if len(got) != count:
        raise WireError(f"{name}.contents: got {len(got)} elements, expected {count} for its shape")
    if kind.raw == np.uint8 and max(got, default=0) > 255:
        raise WireError(f"{name}.contents: got {max(got)}, expected numbers from 0 to 255")
    return np.array(got, kind.raw.newbyteorder("="))


def write_tensor(response: pb.ModelInferResponse, name: str, array: npt.NDArray[Any], raw: bool) -> None:
    """Add an output [rows, *shape] to a response, raw or typed; all of one response are alike."""
    kind = _KINDS[array.dtype.name]
    output = response.outputs.add(name=name, datatype=kind.datatype, shape=array.shape)
    if raw:
        response.raw_output_contents.append(array.astype(kind.raw, copy=False).tobytes())
    else:
        getattr(output.contents, kind.field).extend(array.ravel().tolist())
