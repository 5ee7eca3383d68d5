"""Tensors on the wire as a client needs them: ``hmarl.agent.v1.Tensor`` from observations and masks, to actions."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.sdk.clients.agent import AgentError

_DTYPES: dict[agent_pb2.DataType, np.dtype[Any]] = {
    agent_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    agent_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    agent_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}
_INT64 = agent_pb2.DATA_TYPE_INT64


def write_observation(tensor: agent_pb2.Tensor, observation: npt.NDArray[np.float32]) -> None:
    """Fill an empty message with an observation [observation_size]."""
    tensor.data_type = agent_pb2.DATA_TYPE_FLOAT32
    tensor.shape.append(len(observation))
    tensor.data = observation.tobytes() if sys.byteorder == "little" else observation.astype("<f4").tobytes()


def write_mask(tensor: agent_pb2.Tensor, mask: npt.NDArray[np.bool_]) -> None:
    """Fill an empty message with a mask [mask_size]."""
    tensor.data_type = agent_pb2.DATA_TYPE_BOOL
    tensor.shape.append(len(mask))
    tensor.data = mask.tobytes()


def decode_action(tensor: agent_pb2.Tensor) -> int | npt.NDArray[Any]:
    """The action of a message: an int when it is a scalar, else an array.

    Raises:
        AgentError: the message does not fit its own description.
    """
    data = tensor.data
    # Most actions; the way is short because a client that wakes up for one reply has cold caches.
    if tensor.data_type == _INT64 and len(data) == 8 and not tensor.shape:
        return int.from_bytes(data, "little", signed=True)
    array = decode(tensor)
    return array if array.ndim else array.item()


def decode(tensor: agent_pb2.Tensor) -> npt.NDArray[Any]:
    """The array of a message, in native byte order.

    Raises:
        AgentError: the message does not fit its own description.
    """
    dtype = _DTYPES.get(tensor.data_type)
    shape = tuple(tensor.shape)
    if dtype is None or len(tensor.data) != dtype.itemsize * math.prod(shape):
        raise AgentError(f"got a tensor of type {tensor.data_type}, shape {shape} and {len(tensor.data)} bytes")
    return np.frombuffer(tensor.data, dtype).astype(dtype.newbyteorder("=")).reshape(shape)
