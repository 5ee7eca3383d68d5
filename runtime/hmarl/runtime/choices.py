"""How a policy with instructions chooses them: the one table of choices, their default, and the numbers they draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from hmarl.runtime.errors import UsageError

if TYPE_CHECKING:
    from hmarl.runtime.manifest import AgentModel, NoiseModel

# ``argmax``; ``sample``, with numbers of the agent's own; ``common``, with numbers that all agents of the team share.
InstructionChoice = Literal["argmax", "sample", "common"]
CHOICES: Final[tuple[InstructionChoice, ...]] = get_args(InstructionChoice)
# The stream of random numbers from which each choice draws; None draws nothing.
_STREAMS: Final[dict[InstructionChoice, str | None]] = {"argmax": None, "sample": "private", "common": "common"}


def checked_choice(choice: Any) -> InstructionChoice | None:
    """A choice, or None for the default.

    Raises:
        UsageError: there is no such choice.
    """
    if choice is not None and (not isinstance(choice, str) or choice not in CHOICES):
        raise UsageError(f"instruction_choice: got {choice!r}, expected one of {', '.join(CHOICES)}")
    known: InstructionChoice | None = choice
    return known


def effective_choice(
    choice: InstructionChoice | None, sample: bool, model: AgentModel | None = None
) -> InstructionChoice:
    """What None stands for: what the agent's manifest says; where it is silent, ``common`` when actions are drawn, else
    ``argmax``.
    """
    said = None if model is None else model.instruction_choice
    return choice or said or ("common" if sample else "argmax")


def drawn_noises(
    model: AgentModel, sample: bool, instruction_choice: InstructionChoice | None
) -> list[tuple[NoiseModel, str]]:
    """The noise inputs that are drawn, each with its stream; the others stay zero, which means deterministic."""
    stream = _STREAMS[effective_choice(instruction_choice, sample, model)]
    drawn: list[tuple[NoiseModel, str]] = []
    for noise in model.noises:
        if noise.purpose == "instruction" and stream is not None:
            drawn.append((noise, stream))
        elif noise.purpose == "action" and sample:
            drawn.append((noise, noise.stream))
    return drawn
