"""The messages of an act and of an episode, written and read in one place by servers and clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.status import Code, code_of
from hmarl.agent.v1.tensors import WireError, to_array, write_tensor

_PREFIX = "INSTRUCTION_CHOICE_"

# How instructions are chosen, by the name that programs use; None leaves it to the agent. The enum is the one list.
INSTRUCTION_CHOICES: dict[str | None, agent_pb2.InstructionChoice] = {
    None if number == agent_pb2.INSTRUCTION_CHOICE_UNSPECIFIED else name.removeprefix(_PREFIX).lower(): number
    for name, number in agent_pb2.InstructionChoice.items()
}
_CHOICE_NAMES: dict[int, str | None] = {number: name for name, number in INSTRUCTION_CHOICES.items()}


def choice_name(number: int) -> str | None:
    """The name of an instruction choice, None for the agent's own.

    Raises:
        WireError: the protocol has no such number.
    """
    if number not in _CHOICE_NAMES:
        raise WireError(f"instruction_choice: got {number}, expected one of {sorted(_CHOICE_NAMES)}")
    return _CHOICE_NAMES[number]


def write_act(
    request: agent_pb2.ActRequest,
    session_id: str,
    step: int,
    observation: npt.NDArray[Any],
    action_mask: npt.NDArray[np.bool_] | None,
) -> None:
    """Fill an empty request, in place: nothing is copied into the message of a stream.

    Args:
        request: the message.
        session_id: whose act it is.
        step: which one.
        observation: [observation_size] float32, or a picture.
        action_mask: [mask_size]; None exactly when the policy has no mask input.
    """
    request.session_id = session_id
    request.step = step
    write_tensor(request.observation, observation)
    if action_mask is not None:
        write_tensor(request.action_mask, action_mask)


def read_act(
    request: agent_pb2.ActRequest, observation_shape: list[int], mask_shape: list[int] | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Observation and mask of a request, as read-only views.

    Args:
        request: the message.
        observation_shape: what is expected, see ``to_array``.
        mask_shape: likewise; None for a policy without a mask input, whose caller refuses a mask by its name.

    Raises:
        WireError: a tensor does not fit its own description, or is not of the expected shape.
    """
    observation = to_array(request.observation, "observation", observation_shape)
    if not request.HasField("action_mask"):
        return observation, None
    return observation, to_array(request.action_mask, "action_mask", mask_shape)


def write_reply(
    response: agent_pb2.ActResponse,
    action: int | npt.NDArray[Any],
    step: int,
    missed_steps: int,
    replayed: bool,
    diagnostics: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Fill an empty response, in place; what has its default value is not on the wire, and not written."""
    response.step = step
    write_tensor(response.action, action)
    if missed_steps:
        response.missed_steps = missed_steps
    if replayed:
        response.replayed = True
    for name, array in diagnostics.items():
        write_tensor(response.diagnostics[name], array)


def refusal(step: int, code: Code, message: str) -> agent_pb2.StreamActResponse:
    """A stream's response to a request that is refused."""
    error = agent_pb2.StreamActError(step=step, code=code, message=message)
    return agent_pb2.StreamActResponse(error=error)


def status_of(error: agent_pb2.StreamActError) -> Code:
    """The status code of a refusal; UNKNOWN for a number that gRPC has no name for."""
    return code_of(error.code)
