"""How many environments are stepped together by default: as many as cores and memory take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hmarl.sdk.environment import CopyCost
from hmarl.sdk.environments import copy_cost
from hmarl.sdk.environments.copies import Machine, evaluation_copies, measured_cost
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.runs.settings import RunSettings

# So often rollouts hold what is seen at a step: kept, and learnt from. Pictures take more than the games that they
# show.
_HELD = 2
# Fewer environments collect for longer, so that an update still has something to learn from, but not without end.
_LONGEST = 8

Say = Callable[[str], None]


def fitted_run(
    name: str, arguments: Mapping[str, Any], given: Mapping[str, Any], say: Say, at_once: int = 1
) -> dict[str, Any]:
    """A run's settings with numbers of environments and steps that suit the environment and this machine.

    Args:
        name: of the environment.
        arguments: of the environment.
        given: the run's settings, from the user or a preset; a number of environments among them is kept.
        say: told what is measured and chosen, and that what was asked for does not fit.
        at_once: how many such runs share the machine.

    Raises:
        UsageError: a setting out of range, or no such environment.
    """
    settings = validate(RunSettings, dict(given), "run")
    if "environments" in given:
        _warn(name, arguments, settings, say, at_once)
        return dict(given)
    default, length = settings.environments, settings.rollout_length
    cost = _cost(name, arguments, say)
    count = max(_fitting(name, _with_rollouts(cost, length), default * at_once, say) // at_once, 1)
    longer = length * max(1, min(_LONGEST, default // count, _rollouts_in_room(cost, count * at_once, length)))
    return {**given, "environments": count, "rollout_length": given.get("rollout_length", longer)}


def _with_rollouts(cost: CopyCost | None, length: int) -> CopyCost | None:
    """A copy with a rollout of it."""
    return cost and replace(cost, memory_bytes=cost.memory_bytes + _HELD * length * cost.step_bytes)


def _rollouts_in_room(cost: CopyCost | None, copies: int, length: int) -> int:
    """How many such rollouts of each copy fit beside all of them."""
    if cost is None or not cost.step_bytes:
        return _LONGEST
    return Machine.this().room_bytes(cost, copies) // (_HELD * length * cost.step_bytes)


def fitted_count(name: str, arguments: Mapping[str, Any], wanted: int, say: Say) -> int:
    """``wanted`` where as many copies of the environment fit, else fewer, which is said."""
    return _fitting(name, _cost(name, arguments, say), wanted, say)


def _fitting(name: str, cost: CopyCost | None, wanted: int, say: Say) -> int:
    """The same, given what a copy costs."""
    machine = Machine.this()
    count = min(wanted, machine.any_number) if cost is None else machine.fitting(cost, wanted)
    if count < wanted:
        say(
            f"{count} copies of {name} instead of {wanted}: {_described(cost)}, and this machine has {machine.cores} "
            f"cores and {machine.memory_bytes / 1e9:.0f} GB; --set decides otherwise"
        )
    return count


def _cost(name: str, arguments: Mapping[str, Any], say: Say) -> CopyCost | None:
    """Declared by the environment's family, else measured; None where that fails."""
    declared = copy_cost(name)
    if declared is not None:
        return declared
    say(f"measuring what a copy of {name} costs")
    return measured_cost(name, arguments)


def _warn(name: str, arguments: Mapping[str, Any], settings: RunSettings, say: Say, at_once: int) -> None:
    """Say so where the number that was asked for does not fit."""
    count, machine = settings.environments * at_once, Machine.this()
    if copy_cost(name) is None and count <= machine.any_number:
        return
    cost = _with_rollouts(_cost(name, arguments, say), settings.rollout_length)
    copies = count + at_once * evaluation_copies(name, settings.evaluation_episodes, settings.environments)
    complaint = "" if cost is None else machine.complaint(cost, copies)
    if complaint:
        say(
            f"warning: run.environments={settings.environments}{f' of {at_once} runs' if at_once > 1 else ''} and "
            f"{copies - count} more to evaluate: {copies} copies of {name} need about {complaint}; going on, as asked"
        )


def _described(cost: CopyCost | None) -> str:
    """What a copy costs, in words."""
    if cost is None:
        return "what a copy costs could not be measured"
    parts = [f"{cost.memory_bytes / 1e6:.0f} MB"] if cost.memory_bytes else []
    parts += ["a process of its own" if cost.processes == 1 else f"{cost.processes} processes"] * bool(cost.processes)
    return f"each takes {' and '.join(parts)}"
