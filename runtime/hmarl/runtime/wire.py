"""Tensors on the wire: ``hmarl.agent.v1.Tensor`` to NumPy and back. Row-major, little-endian, bool one byte each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.runtime.errors import ObservationError

_DTYPES: dict[int, np.dtype[Any]] = {
    agent_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    agent_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    agent_pb2.DATA_TYPE_BOOL: np.dtype(np.bool_),
}
_DATA_TYPES: dict[np.dtype[Any], Any] = {dtype: data_type for data_type, dtype in _DTYPES.items()}
MAX_RANK = 64  # of NumPy's arrays
_FLOAT32, _INT64 = agent_pb2.DATA_TYPE_FLOAT32, agent_pb2.DATA_TYPE_INT64
_FLOAT32_DTYPE = _DTYPES[_FLOAT32]


def to_array(tensor: agent_pb2.Tensor, name: str, shape: Sequence[int] | None = None) -> npt.NDArray[Any]:
    """A read-only view of a tensor's data; what refusing it costs does not grow with the message.

    Args:
        tensor: the message.
        name: what it is, for error messages.
        shape: the only shape that is taken, checked before anything is worked out; None takes any.

    Raises:
        ObservationError: unknown data type, another shape, a negative size, data of the wrong length, or a bool that is
            not 0 or 1.
    """
    data_type, data = tensor.data_type, tensor.data
    # Nearly every observation; the way is short because a process that wakes up for one request has cold caches.
    # True division: a length that is no multiple of 4 equals no size.
    if data_type == _FLOAT32 and tensor.shape == [len(data) / 4]:
        return np.frombuffer(data, _FLOAT32_DTYPE)
    dtype = _DTYPES.get(data_type)
    if dtype is None:
        raise ObservationError(f"{name}.data_type: got {data_type}, expected one of {sorted(_DTYPES)}")
    rank = len(tensor.shape)
    if rank > MAX_RANK or (shape is not None and rank != len(shape)):
        raise ObservationError(f"{name}.shape: got {len(data)} bytes for {rank} sizes, expected {_expected(shape)}")
    got = tuple(tensor.shape)
    if any(size < 0 for size in got):
        raise ObservationError(f"{name}.shape: got {got}, expected sizes of at least 0")
    if len(data) != math.prod(got) * dtype.itemsize:
        raise ObservationError(
            f"{name}.data: got {len(data)} bytes for {dtype.name} {got}, expected {_expected(shape)}"
        )
    if shape is not None and got != tuple(shape):
        raise ObservationError(f"{name}.shape: got {dtype.name} {got}, expected {_expected(shape)}")
    if dtype == np.bool_ and data.translate(None, b"\0\1"):
        raise ObservationError(f"{name}.data: got a byte that is neither 0 nor 1, expected one byte 0 or 1 an element")
    try:
        return np.frombuffer(data, dtype).reshape(got)
    except ValueError:  # one size is 0 and the others are more than fit into memory
        raise ObservationError(f"{name}.shape: got {got}, expected sizes that fit into memory") from None


def _expected(shape: Sequence[int] | None) -> str:
    return f"at most {MAX_RANK} sizes and as many bytes as they need" if shape is None else f"the shape {tuple(shape)}"


def to_tensor(value: int | npt.NDArray[Any]) -> agent_pb2.Tensor:
    """A message of a float32, int64 or bool array; a Python int becomes an int64 scalar."""
    tensor = agent_pb2.Tensor()
    write_tensor(tensor, value)
    return tensor


def write_tensor(tensor: agent_pb2.Tensor, value: int | npt.NDArray[Any]) -> None:
    """Fill an empty message, in place in the reply that it belongs to, with what ``to_tensor`` takes."""
    if isinstance(value, int):
        tensor.data_type = _INT64
        tensor.data = value.to_bytes(8, "little", signed=True)
        return
    tensor.data_type = _DATA_TYPES[value.dtype]
    tensor.shape.extend(value.shape)
    tensor.data = value.tobytes()
