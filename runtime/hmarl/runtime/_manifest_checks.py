"""What a manifest has to be besides well-typed: names that can be shown, sizes and numbers that can be served.

Buffers are allocated from a manifest's shapes and lines are printed from its names, so both are judged when it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hmarl.runtime.manifest import AgentModel, Manifest

NAME_LIMIT = 256  # characters of a name
TEXT_LIMIT = 4096  # characters of an explanation
AGENTS_LIMIT = 4096
FILES_LIMIT = 10_000
RANK_LIMIT = 8
# All elements of an agent's inputs and outputs for one row: 64 MiB of float32, of which every session has its own.
ELEMENTS_LIMIT = 2**24
FLOAT32_MAX = 3.4028234663852886e38
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_printable(field: str, text: str, limit: int = NAME_LIMIT) -> None:
    """Names are of any alphabet, without what a terminal or a log would obey instead of showing.

    Control characters, line separators, marks of direction, surrogates and unassigned characters are not printable.

    Raises:
        ValueError: the text is empty, too long, or holds something that cannot be shown.
    """
    if not text or len(text) > limit or not text.isprintable():
        shown = ascii(text if len(text) <= 100 else text[:100] + "…")
        raise ValueError(f"{field}: got {shown}, expected 1 to {limit} printable characters")


def check_manifest(manifest: Manifest) -> None:
    """Check what the types of the fields leave open.

    Raises:
        ValueError: names the field, what was got and what was expected.
    """
    for field in ("name", "algorithm", "created_by", "normalisation"):
        check_printable(field, getattr(manifest, field), TEXT_LIMIT)
    check_printable("environment.name", manifest.environment.name)
    horizon, period = manifest.environment.horizon, manifest.environment.control_period_s
    if horizon is not None and not 1 <= horizon < 2**63:
        raise ValueError(f"environment.horizon: got {horizon}, expected a number of steps or null")
    if period is not None and not 0 < period < math.inf:
        raise ValueError(f"environment.control_period_s: got {period}, expected seconds above 0 or null")
    if not 1 <= manifest.opset < 2**31:
        raise ValueError(f"opset: got {manifest.opset}, expected the version of an ONNX operator set")
    if len(manifest.agents) > AGENTS_LIMIT:
        raise ValueError(f"agents: got {len(manifest.agents):,}, expected at most {AGENTS_LIMIT:,}")
    if len(manifest.files) > FILES_LIMIT:
        raise ValueError(f"files: got {len(manifest.files):,}, expected at most {FILES_LIMIT:,}")
    for name, sha256 in manifest.files.items():
        if not _SHA256.fullmatch(sha256):
            raise ValueError(
                f"files.{name[:100]!a}: got {sha256[:100]!a}, expected the 64 hexadecimal digits of a SHA-256"
            )
    for index, agent in enumerate(manifest.agents):
        _check_agent(f"agents.{index}", agent, manifest.files)
    seen: set[str] = set()
    for agent in manifest.agents:
        if agent.id in seen:
            raise ValueError(f"agents: got the id '{agent.id}' more than once")
        seen.add(agent.id)


def _check_agent(field: str, agent: AgentModel, files: Mapping[str, str]) -> None:
    check_printable(f"{field}.id", agent.id)
    check_printable(f"{field}.kind", agent.kind)
    if agent.file not in files:
        raise ValueError(f"{field}.file: '{agent.file[:100]}' of agent '{agent.id}' is not listed in files")
    for name, length in agent.observation_layout:
        check_printable(f"{field}.observation_layout", name)
        if not 0 <= length <= ELEMENTS_LIMIT:
            raise ValueError(f"{field}.observation_layout.{name}: got {length}, expected a length")
    _check_tensors(field, agent)
    _check_space(f"{field}.action_space", agent)
    if agent.instruction_choice is not None and all(noise.purpose != "instruction" for noise in agent.noises):
        raise ValueError(
            f"{field}.instruction_choice: got '{agent.instruction_choice}', expected null without a noise of purpose "
            "'instruction'"
        )
    for index, state in enumerate(agent.states):
        _check_numbers(f"{field}.states.{index}.reset", state.reset)


def _check_tensors(field: str, agent: AgentModel) -> None:
    """Names, shapes and the sum of all sizes of what goes into a graph and comes out of it."""
    tensors = {"observation": agent.observation, "action": agent.action}
    if agent.action_mask is not None:
        tensors["action_mask"] = agent.action_mask
    if agent.step is not None:
        tensors["step"] = agent.step
    tensors |= {f"diagnostics.{index}": tensor for index, tensor in enumerate(agent.diagnostics)}
    shapes = [(where, tensor.name, tensor.shape) for where, tensor in tensors.items()]
    shapes += [(f"noises.{index}", noise.name, noise.shape) for index, noise in enumerate(agent.noises)]
    for index, state in enumerate(agent.states):
        shapes += [(f"states.{index}", state.input, state.shape), (f"states.{index}", state.output, state.shape)]
    names: set[str] = set()
    elements = 0
    for where, name, shape in shapes:
        check_printable(f"{field}.{where}.name", name)
        if name in names:
            raise ValueError(f"{field}.{where}.name: got '{name}' a second time, expected tensors of different names")
        names.add(name)
        elements += _elements(f"{field}.{where}.shape", shape)
        if elements > ELEMENTS_LIMIT:
            raise ValueError(
                f"{field}: inputs and outputs up to '{name}' have {elements:,} elements, expected at most "
                f"{ELEMENTS_LIMIT:,} in all"
            )
    if len(agent.observation.shape) not in (1, 3):
        raise ValueError(
            f"{field}.observation.shape: got {agent.observation.shape}, expected [length] or [height, width, channels]"
        )


def _elements(field: str, shape: list[int]) -> int:
    """The number of elements; sizes are judged before they are multiplied."""
    if len(shape) > RANK_LIMIT or any(not 1 <= size <= ELEMENTS_LIMIT for size in shape):
        raise ValueError(
            f"{field}: got {_cut(shape)}, expected at most {RANK_LIMIT} sizes from 1 to {ELEMENTS_LIMIT:,}"
        )
    return math.prod(shape)


def _check_space(field: str, agent: AgentModel) -> None:
    space = agent.action_space
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is not None and high is not None:
        _check_numbers(f"{field}.low", low)
        _check_numbers(f"{field}.high", high)
        if not low or len(low) != len(high) or any(a > b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"{field}: got low {_cut(low)} and high {_cut(high)}, expected low <= high of one length")
        return
    sizes = getattr(space, "n")  # noqa: B009 - of both other kinds
    for size in sizes if isinstance(sizes, list) else [sizes]:
        if not 1 <= size <= ELEMENTS_LIMIT:
            raise ValueError(f"{field}.n: got {_cut(size)}, expected 1 to {ELEMENTS_LIMIT:,} choices")


def _check_numbers(field: str, numbers: Iterable[float]) -> None:
    for number in numbers:
        if not -FLOAT32_MAX <= number <= FLOAT32_MAX:
            raise ValueError(f"{field}: got {number}, expected numbers that float32 can hold")


def _cut(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:100] + "…"
