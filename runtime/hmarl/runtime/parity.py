"""When two computations of a policy agree: what the exporter checks against torch and ``hmarl-verify`` repeats.

Floating-point outputs may differ by the provider's tolerance plus the rounding of float32 sums of the row's size. A
discrete output ``X`` may differ in a row only where it is a near tie, that is where the two best scores ``X_logits``
(the noise of X's purpose added, as the graph adds it) are within ``NEAR_TIE`` of each other; the further outputs of
such a row are not compared, because they follow from the choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.manifest import AgentModel, MultiDiscreteSpace

Array = npt.NDArray[Any]
NEAR_TIE = 2e-5
# Eight units in the last place of float32: logits of size 40 cannot agree to 1e-5 when summed in another order.
ROUNDING = 1e-6
# Logits of illegal actions lie below; their size says nothing about the others' rounding.
MASKED = -1e9


@dataclass
class Comparison:
    """What comparing one batch found.

    Attributes:
        error: largest absolute difference of floating-point outputs.
        near_ties: rows in which a discrete output differs at a near tie.
        problems: differences beyond the tolerance, in words; empty when all is well.
    """

    error: float = 0.0
    near_ties: int = 0
    problems: list[str] = field(default_factory=list)


def compare_outputs(
    agent: AgentModel, feeds: dict[str, Array], got: dict[str, Array], expected: dict[str, Array], tolerance: float
) -> Comparison:
    """Compare two computations of the same graph row by row: discrete outputs first, the others follow from them.

    Args:
        agent: the graph's description.
        feeds: the inputs, [rows, ...] each.
        got: outputs of ONNX Runtime.
        expected: the outputs to hold them against.
        tolerance: allowed absolute difference, to which ``ROUNDING`` times the row's largest value is added.
    """
    found = Comparison()
    comparable = np.ones(len(next(iter(expected.values()))), np.bool_)
    # An instruction is chosen before the action, so that it is judged first.
    discrete = sorted(
        (name for name in expected if expected[name].dtype.kind != "f"), key=lambda name: name == "action"
    )
    for name in discrete:
        differs = _rows(got[name] != expected[name]).any(axis=1) & comparable
        ties = differs & _near_tie(agent, name, feeds, expected)
        found.near_ties += int(ties.sum())
        wrong = int((differs & ~ties).sum())
        if wrong:
            found.problems.append(f"'{name}' differs in {wrong} rows that are no near ties (gap above {NEAR_TIE:g})")
        comparable &= ~differs
    for name, rows in expected.items():
        if name in discrete or not comparable.any():
            continue
        wanted = _rows(rows[comparable])
        errors = np.abs(_rows(got[name][comparable]) - wanted)
        allowed = tolerance + ROUNDING * np.abs(np.where(wanted > MASKED, wanted, 0.0)).max(axis=1, initial=0.0)
        error = float(errors.max(initial=0.0))
        found.error = max(found.error, error) if np.isfinite(error) else float("inf")
        if not (errors <= allowed[:, None]).all():
            found.problems.append(f"'{name}' differs by {error:.3g}, the tolerance is {tolerance:g}")
    return found


def _rows(array: Array) -> Array:
    """[rows, ...] flattened to [rows, size], also for scalars and for no rows at all."""
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def _near_tie(
    agent: AgentModel, name: str, feeds: dict[str, Array], expected: dict[str, Array]
) -> npt.NDArray[np.bool_]:
    """Rows in which the two best scores of some branch of a discrete output are (nearly) equal; [rows] bool."""
    rows = len(expected[name])
    if f"{name}_logits" not in expected:
        return np.zeros(rows, np.bool_)
    scores = expected[f"{name}_logits"].astype(np.float64)
    purpose = "instruction" if name == "instruction" else "action"
    for noise in agent.noises:
        uniform = feeds.get(noise.name)
        if noise.purpose == purpose and noise.distribution == "uniform" and uniform is not None:
            drawn = uniform > 0
            safe = np.where(drawn, uniform, 0.5).astype(np.float64)
            scores = scores + np.where(drawn, -np.log(-np.log(safe)), 0.0)
    if name == "action" and agent.action_mask is not None:
        scores = np.where(feeds[agent.action_mask.name], scores, -np.inf)
    near = np.zeros(rows, np.bool_)
    cuts = first_of_branches(agent)[1:] if name == "action" else []
    for branch in np.split(scores, cuts, axis=1):
        if branch.shape[1] > 1:
            best = np.sort(branch, axis=1)[:, -2:]
            near |= best[:, 1] - best[:, 0] <= NEAR_TIE
    return near


def first_of_branches(agent: AgentModel) -> list[int]:
    """Where each branch of the action's logits (and mask) begins."""
    space = agent.action_space
    if isinstance(space, MultiDiscreteSpace):
        return [int(start) for start in np.cumsum([0, *space.n[:-1]])]
    return [0]
