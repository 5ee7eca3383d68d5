"""``Tensor`` to NumPy and back, for servers and clients alike. Row-major, little-endian; bool, uint8: a byte each."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2

_DTYPES: dict[int, np.dtype[Any]] = {
    agent_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    agent_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    agent_pb2.DATA_TYPE_BOOL: np.dtype(np.bool_),
    agent_pb2.DATA_TYPE_UINT8: np.dtype(np.uint8),
}
_DATA_TYPES: dict[np.dtype[Any], Any] = {dtype: data_type for data_type, dtype in _DTYPES.items()}
MAX_RANK = 64  # of NumPy's arrays
_FLOAT32, _INT64 = agent_pb2.DATA_TYPE_FLOAT32, agent_pb2.DATA_TYPE_INT64
_FLOAT32_DTYPE = _DTYPES[_FLOAT32]
_LITTLE_ENDIAN = sys.byteorder == "little"


class WireError(ValueError):
    """A message does not fit its own description, or what is expected.

    The protocol knows none of hmarl's errors: servers and clients turn it into one of their own.
    """


def to_array(tensor: agent_pb2.Tensor, name: str, shape: Sequence[int] | None = None) -> npt.NDArray[Any]:
    """A read-only view of a tensor's data; what refusing it costs does not grow with the message.

    Args:
        tensor: the message.
        name: what it is, for error messages.
        shape: the shape that is expected; others are refused before anything is worked out, but for one-dimensional
            float32 of another length: its view costs nothing, and the caller's own check names it. None takes any.

    Raises:
        WireError: unknown data type, another shape, a negative size, data of the wrong length, or a bool that is not 0
            or 1.
    """
    data_type, data = tensor.data_type, tensor.data
    # Nearly every observation; the way is short because a process that wakes up for one request has cold caches.
    # True division: a length that is no multiple of 4 equals no size.
    if data_type == _FLOAT32 and tensor.shape == [len(data) / 4]:
        return np.frombuffer(data, _FLOAT32_DTYPE)
    dtype = _DTYPES.get(data_type)
    if dtype is None:
        raise WireError(f"{name}.data_type: got {data_type}, expected one of {sorted(_DTYPES)}")
    rank = len(tensor.shape)
    if rank > MAX_RANK or (shape is not None and rank != len(shape)):
        raise WireError(f"{name}.shape: got {len(data)} bytes for {rank} sizes, expected {_expected(shape)}")
    got = tuple(tensor.shape)
    if any(size < 0 for size in got):
        raise WireError(f"{name}.shape: got {got}, expected sizes of at least 0")
    if len(data) != math.prod(got) * dtype.itemsize:
        raise WireError(f"{name}.data: got {len(data)} bytes for {dtype.name} {got}, expected {_expected(shape)}")
    if shape is not None and got != tuple(shape):
        raise WireError(f"{name}.shape: got {dtype.name} {got}, expected {_expected(shape)}")
    if dtype == np.bool_ and data.translate(None, b"\0\1"):
        raise WireError(f"{name}.data: got a byte that is neither 0 nor 1, expected one byte 0 or 1 an element")
    try:
        return np.frombuffer(data, dtype).reshape(got)
    except ValueError:  # one size is 0 and the others are more than fit into memory
        raise WireError(f"{name}.shape: got {got}, expected sizes that fit into memory") from None


def to_own_array(
    tensor: agent_pb2.Tensor, name: str, shape: Sequence[int] | None = None, dtype: np.dtype[Any] | None = None
) -> npt.NDArray[Any]:
    """A tensor's data as an array of the caller's own, in native byte order.

    Args:
        tensor: the message.
        name: what it is, for error messages.
        shape: the only shape that is taken; None takes any.
        dtype: the only type that is taken; None takes any.

    Raises:
        WireError: as ``to_array``, or another type.
    """
    view = to_array(tensor, name, shape)
    array = view.astype(view.dtype.newbyteorder("="))
    if shape is not None and array.shape != tuple(shape):
        raise WireError(f"{name}.shape: got {array.dtype.name} {array.shape}, expected {_expected(shape)}")
    if dtype is not None and array.dtype != dtype:
        raise WireError(f"{name}.data_type: got {array.dtype.name}, expected {dtype.name}")
    return array


def to_action(
    tensor: agent_pb2.Tensor, name: str, shape: Sequence[int], dtype: np.dtype[Any]
) -> int | npt.NDArray[Any]:
    """The action of a reply: an int when it is a scalar, else an array of the caller's own.

    Args:
        tensor: the message.
        name: what it is, for error messages.
        shape: the agent's; () for Discrete.
        dtype: the agent's.

    Raises:
        WireError: it is not of this shape and type, or does not fit its own description.
    """
    data = tensor.data
    # Most actions; the way is short because a client that wakes up for one reply has cold caches.
    if not shape and tensor.data_type == _INT64 and len(data) == 8 and not tensor.shape:
        return int.from_bytes(data, "little", signed=True)
    array = to_own_array(tensor, name, shape, dtype)
    return array if array.ndim else int(array)


def _expected(shape: Sequence[int] | None) -> str:
    return f"at most {MAX_RANK} sizes and as many bytes as they need" if shape is None else f"the shape {tuple(shape)}"


def to_tensor(value: int | npt.NDArray[Any]) -> agent_pb2.Tensor:
    """A message of a float32, int64, bool or uint8 array; a Python int becomes an int64 scalar."""
    tensor = agent_pb2.Tensor()
    write_tensor(tensor, value)
    return tensor


def write_tensor(tensor: agent_pb2.Tensor, value: int | npt.NDArray[Any]) -> None:
    """Fill an empty message, in place in the message that it belongs to, with what ``to_tensor`` takes."""
    if isinstance(value, int):
        tensor.data_type = _INT64
        tensor.data = value.to_bytes(8, "little", signed=True)
        return
    data_type = _DATA_TYPES[value.dtype if _LITTLE_ENDIAN else value.dtype.newbyteorder("<")]
    tensor.data_type = data_type
    tensor.shape.extend(value.shape)
    tensor.data = value.tobytes() if _LITTLE_ENDIAN else value.astype(_DTYPES[data_type]).tobytes()
