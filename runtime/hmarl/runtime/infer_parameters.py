"""What the parameters of a ModelInfer request say: Triton's of a sequence, and hmarl's of what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hmarl.oip import open_inference_pb2 as pb
from hmarl.runtime.choices import InstructionChoice, checked_choice
from hmarl.runtime.errors import UsageError, one_line, unknown_name
from hmarl.runtime.inputs import checked_integer

# Hints for a server's scheduling, which Triton's clients may send; nothing waits here.
_IGNORED = ("priority", "timeout")
_IGNORED_PREFIX = "triton_"
_SHOWN = 60  # characters of a name
_ID_LIMIT = 256
_OF_THE_START = ("seed", "sample", "instruction_choice")


@dataclass(frozen=True)
class InferParameters:
    """What a request says beside its tensors; None is what it leaves to the server.

    Attributes:
        sequence_id: which sequence; 0 or empty for a request by itself.
        sequence_start: whether it is the sequence's first.
        sequence_end: whether it is the sequence's last.
        seed: see ``PolicySession.reset``.
        sample: likewise.
        instruction_choice: likewise.
        step: which step; in a sequence None for the next one.
        reset_state: whether a request by itself begins with the recurrent state's reset values.
    """

    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    seed: int | None = None
    sample: bool | None = None
    instruction_choice: InstructionChoice | None = None
    step: int | None = None
    reset_state: bool | None = None


def read_parameters(parameters: Mapping[str, pb.InferParameter]) -> InferParameters:
    """Read and check the parameters of a request.

    Raises:
        UsageError: an unknown parameter, a value of the wrong kind or out of range, or some that do not go together.
    """
    read = {}
    for name, value in parameters.items():
        reader = _READERS.get(name)
        if reader is not None:
            read[name] = reader(name, value)
        elif name not in _IGNORED and not name.startswith(_IGNORED_PREFIX):
            raise UsageError(unknown_name("parameter", one_line(name, _SHOWN), _READERS))
    found = InferParameters(**read)
    _check_together(found)
    return found


def _check_together(found: InferParameters) -> None:
    for name in ("sequence_start", "sequence_end"):
        if getattr(found, name) and not found.sequence_id:
            raise UsageError(f"{name}: got true without a sequence, expected a sequence_id that is not 0 or empty")
    if found.sequence_id and found.reset_state is not None:
        raise UsageError("reset_state: got one in a sequence, whose start resets the state: leave it out")
    if found.sequence_id and not found.sequence_start:
        for name in _OF_THE_START:
            if getattr(found, name) is not None:
                raise UsageError(
                    f"{name}: got one in the middle of a sequence, expected it with sequence_start alone: leave it out"
                )


def _flag(name: str, value: pb.InferParameter) -> bool:
    if value.WhichOneof("parameter_choice") != "bool_param":
        raise UsageError(f"{name}: got {_shown(value)}, expected true or false")
    return bool(value.bool_param)


def _integer(name: str, value: pb.InferParameter) -> int:
    """An integer in [0, 2**64); a string of digits too, since some clients have no larger integers than int64."""
    match value.WhichOneof("parameter_choice"):
        case "int64_param":
            return checked_integer(name, value.int64_param)
        case "uint64_param":
            return int(value.uint64_param)
        case "string_param" if value.string_param.isascii() and value.string_param.isdigit():
            digits = value.string_param.lstrip("0") or "0"
            if len(digits) <= 20:
                return checked_integer(name, int(digits))
    raise UsageError(f"{name}: got {_shown(value)}, expected an integer, 0 <= {name} < 2**64")


def _sequence_id(name: str, value: pb.InferParameter) -> int | str:
    if value.WhichOneof("parameter_choice") != "string_param":
        return _integer(name, value)
    if len(value.string_param) > _ID_LIMIT:
        raise UsageError(f"{name}: got {len(value.string_param)} characters, expected at most {_ID_LIMIT}")
    return str(value.string_param)


def _choice(name: str, value: pb.InferParameter) -> InstructionChoice | None:
    if value.WhichOneof("parameter_choice") != "string_param":
        raise UsageError(f"{name}: got {_shown(value)}, expected a string")
    return checked_choice(one_line(value.string_param, _SHOWN))


def _shown(value: pb.InferParameter) -> str:
    kind = value.WhichOneof("parameter_choice")
    return "nothing" if kind is None else one_line(repr(getattr(value, kind)), _SHOWN)


_READERS: dict[str, Callable[[str, pb.InferParameter], Any]] = {
    "sequence_id": _sequence_id,
    "sequence_start": _flag,
    "sequence_end": _flag,
    "seed": _integer,
    "sample": _flag,
    "instruction_choice": _choice,
    "step": _integer,
    "reset_state": _flag,
}
