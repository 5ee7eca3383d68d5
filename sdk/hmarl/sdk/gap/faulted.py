"""Under which faults a team is played: curves over one fault each, or what the user asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

from hmarl.sdk.errors import UsageError
from hmarl.sdk.faults import AgentFaults, FaultModel, Outage, parse_faults
from hmarl.sdk.gap.document import Curve
from hmarl.sdk.gap.ladder import SERVED, faulted_name

AGENTS_OUT = "agents out"
_STRENGTHS = {"delay": ("1", "2", "4"), "loss": ("0.1", "0.2", "0.4"), "noise": ("0.01", "0.03", "0.1")}
_MOST_OUT = 2
_GONE = Outage(0, math.inf)
_NOTHING = AgentFaults()


def usual_faults(agent_ids: Sequence[str]) -> list[str]:
    """Observations late, lost and noisy at three strengths each, and one or two agents out from the first step on."""
    single = [f"{name}={value}" for name, values in _STRENGTHS.items() for value in values]
    most = min(_MOST_OUT, len(agent_ids) - 1)
    out = AgentFaults(out=_GONE)
    gone = [FaultModel(agents=dict.fromkeys(agent_ids[:count], out)) for count in range(1, most + 1)]
    return [*single, *map(str, gone)]


def asked_faults(given: Sequence[str], agent_ids: Sequence[str]) -> list[str]:
    """Each ``--faults`` as one rung, in its usual spelling; without any, the usual ones; ``none``: no rungs.

    Raises:
        UsageError: an unknown fault or agent, or the same faults twice.
    """
    if not given:
        return usual_faults(agent_ids)
    models = [parse_faults(each) for each in given]
    for model in models:
        model.check_agents(agent_ids)
    texts = [str(model) for model in models if model.any_of(agent_ids)]
    for text in texts:
        if texts.count(text) > 1:
            raise UsageError(f"--faults: got '{text}' twice, expected each once: each is a rung of its own")
    return texts


def curves_of(faults: Sequence[str], agent_ids: Sequence[str]) -> list[Curve]:
    """The faults that differ from nothing in one number alone, as curves that begin at ``served``."""
    found: dict[str, list[tuple[float, str]]] = {}
    for text in faults:
        point = _strength(parse_faults(text), agent_ids)
        if point is not None:
            found.setdefault(point[0], []).append((point[1], faulted_name(text)))
    curves = []
    for fault, points in found.items():
        values, rungs = zip(*sorted(points), strict=True)
        curves.append(Curve(fault=fault, values=[0.0, *values], rungs=[SERVED, *rungs]))
    return curves


def _strength(model: FaultModel, agent_ids: Sequence[str]) -> tuple[str, float] | None:
    """Which one fault it is, and how strong; None where it is several, or no number says how strong."""
    of_each = [model.of(each) for each in agent_ids]
    gone = [each == AgentFaults(out=_GONE) for each in of_each]
    if any(gone) and all(is_gone or each == _NOTHING for is_gone, each in zip(gone, of_each, strict=True)):
        return AGENTS_OUT, float(sum(gone))
    if model.agents:
        return None
    changed = [each.name for each in fields(_NOTHING) if getattr(of_each[0], each.name) != getattr(_NOTHING, each.name)]
    if len(changed) != 1:
        return None
    value = getattr(of_each[0], changed[0])
    if isinstance(value, tuple):
        return (changed[0], float(value[1])) if value[0] == value[1] else None
    return (changed[0], float(value)) if isinstance(value, float) else None
