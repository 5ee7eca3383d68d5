"""How large messages may be, worked out from the manifest: what a server takes, and what a client does."""

from __future__ import annotations

import math

from hmarl.runtime.manifest import AgentModel, TensorModel

# Beside the tensors' data: ids, steps, shapes, and room for wrong messages to be refused by name and not by size.
ROOM_BYTES = 64 * 1024
# What a tensor's fields take on the wire beside name and data, and one size of its shape, at most.
_FRAME_BYTES, _SIZE_BYTES = 64, 10
_ITEM_BYTES = {"float32": 4, "int64": 8, "bool": 1}


def request_limit_bytes(agent: AgentModel) -> int:
    """The largest message that an agent's server takes: an observation, a mask, and some room."""
    tensors = [agent.observation, *([agent.action_mask] if agent.action_mask is not None else [])]
    return sum(map(_data_bytes, tensors)) + ROOM_BYTES


def reply_limit_bytes(agent: AgentModel) -> int:
    """The largest reply to an act, or a bit more: an action, all diagnostics with their names, and some room."""
    tensors = [agent.action, *agent.diagnostics]
    names = sum(len(tensor.name.encode()) + _FRAME_BYTES + _SIZE_BYTES * len(tensor.shape) for tensor in tensors)
    return sum(map(_data_bytes, tensors)) + names + ROOM_BYTES


def _data_bytes(tensor: TensorModel) -> int:
    return math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]
