"""Tensors on the wire: ``hmarl.agent.v1.Tensor`` to NumPy and back. Row-major, little-endian, bool one byte each."""

from __future__ import annotations

import math
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
_FLOAT32, _INT64 = agent_pb2.DATA_TYPE_FLOAT32, agent_pb2.DATA_TYPE_INT64
_FLOAT32_DTYPE = _DTYPES[_FLOAT32]


def to_array(tensor: agent_pb2.Tensor, name: str) -> npt.NDArray[Any]:
    """A read-only view of a tensor's data.

    Args:
        tensor: the message.
        name: what it is, for error messages.

    Raises:
        ObservationError: unknown data type, a negative size, data of the wrong length, or a bool that is not 0 or 1.
    """
    data_type, data = tensor.data_type, tensor.data
    # Nearly every observation; the way is short because a process that wakes up for one request has cold caches.
    # True division: a length that is no multiple of 4 equals no size.
    if data_type == _FLOAT32 and tensor.shape == [len(data) / 4]:
        return np.frombuffer(data, _FLOAT32_DTYPE)
    dtype = _DTYPES.get(data_type)
    if dtype is None:
        raise ObservationError(f"{name}.data_type: got {data_type}, expected one of {sorted(_DTYPES)}")
    shape = tuple(tensor.shape)
    if (shape and min(shape) < 0) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ObservationError(
            f"{name}.data: got {len(data)} bytes for {dtype.name} {shape}, expected "
            f"{max(math.prod(shape), 0) * dtype.itemsize} bytes and sizes of at least 0"
        )
    if dtype == np.bool_ and data.translate(None, b"\0\1"):
        raise ObservationError(f"{name}.data: got a byte that is neither 0 nor 1, expected one byte 0 or 1 an element")
    return np.frombuffer(data, dtype).reshape(shape)


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
