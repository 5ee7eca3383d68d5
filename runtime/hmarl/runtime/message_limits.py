"""How large messages may be, worked out from the manifest: what a server takes, and what a client does."""

from __future__ import annotations

import math

from hmarl.runtime.manifest import AgentModel, TensorModel

# Beside the tensors' data: ids, steps, shapes, and room for wrong messages to be refused by name and not by size.
ROOM_BYTES = 64 * 1024
# What a tensor's fields take on the wire beside name and data, and one size of its shape, at most.
_FRAME_BYTES, _SIZE_BYTES = 64, 10
_ITEM_BYTES = {"float32": 4, "int64": 8, "bool": 1, "uint8": 1}
_TYPED_BYTES = {**_ITEM_BYTES, "int64": 10, "uint8": 2}  # of typed contents, at most
# Of the Open Inference Protocol: how many rows one request may have, fewer where they are large.
_MAX_ROWS = 128
_ROWS_BYTES = 2**20


def request_limit_bytes(agent: AgentModel, oip: bool = False) -> int:
    """The largest message that an agent's server takes.

    Args:
        agent: the manifest's entry.
        oip: whether it speaks the Open Inference Protocol too.

    Returns:
        Room for an observation, a mask, and some more; with ``oip`` for as many rows of all inputs as it takes at once,
        also after a reload, which may bring larger states.
    """
    if oip:
        return max(_ROWS_BYTES, _row_bytes(agent)) + ROOM_BYTES
    tensors = [agent.observation, *([agent.action_mask] if agent.action_mask is not None else [])]
    return sum(map(_data_bytes, tensors)) + ROOM_BYTES


def max_rows(agent: AgentModel) -> int:
    """How many rows one request of the Open Inference Protocol may have."""
    return min(max(_ROWS_BYTES // _row_bytes(agent), 1), _MAX_ROWS)


def _row_bytes(agent: AgentModel) -> int:
    """Observation, mask and states of one row, raw or typed."""
    masks = [agent.action_mask] if agent.action_mask is not None else []
    shapes = [(each.shape, each.dtype) for each in (agent.observation, *masks)]
    shapes += [(each.shape, each.dtype) for each in agent.states]
    return max(sum(math.prod(shape) * _TYPED_BYTES[dtype] for shape, dtype in shapes), 1)


def reply_limit_bytes(agent: AgentModel) -> int:
    """The largest reply to an act, or a bit more: an action, all diagnostics with their names, and some room."""
    tensors = [agent.action, *agent.diagnostics]
    names = sum(len(tensor.name.encode()) + _FRAME_BYTES + _SIZE_BYTES * len(tensor.shape) for tensor in tensors)
    return sum(map(_data_bytes, tensors)) + names + ROOM_BYTES


def _data_bytes(tensor: TensorModel) -> int:
    return math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]
