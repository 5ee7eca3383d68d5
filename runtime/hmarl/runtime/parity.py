"""When two computations of a policy agree: what the exporter checks against torch and ``hmarl-verify`` repeats.

All is judged in the outputs' own units. A floating-point output may differ by the provider's tolerance plus the
rounding of float32 sums of the row's size (and length). A continuous action follows its mean with a slope of half its
range, so it may differ by half the range times what the mean may, plus one step of float32 at its bounds. A discrete
output ``X`` may differ in a row only where it is a near tie, that is where the two best scores ``X_logits`` (the noise
of X's purpose added, as the graph adds it) are so near to each other that either could be the best, each being off by
what it may be. The further outputs of such a row are not compared, because they follow from the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.inputs import branch_slices
from hmarl.runtime.manifest import AgentModel, BoxSpace, branch_sizes

Array = npt.NDArray[Any]
# Eight units in the last place of float32: logits of size 40 cannot agree to 1e-5 when summed in another order.
ROUNDING = 1e-6
# Of more observed numbers sums are so long that their rounding, a random walk of half units, goes beyond.
_LONG_SUM = 2**10
# Logits of illegal actions lie below; their size says nothing about the others' rounding.
MASKED = -1e9


@dataclass
class Comparison:
    """What comparing one batch found.

    Attributes:
        error: largest difference of floating-point outputs, as a share of what is allowed, times the tolerance: above
            the tolerance it is a problem, whatever the outputs' units and size.
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
        tolerance: allowed difference of a number of size 1, see above.
    """
    found = Comparison()
    comparable = np.ones(len(next(iter(expected.values()))), np.bool_)
    # An instruction is chosen before the action, so that it is judged first.
    discrete = sorted(
        (name for name in expected if expected[name].dtype.kind != "f"), key=lambda name: name == "action"
    )
    for name in discrete:
        differs = _rows(got[name] != expected[name]).any(axis=1) & comparable
        ties = differs & _near_tie(agent, name, feeds, expected, tolerance)
        found.near_ties += int(ties.sum())
        wrong = int((differs & ~ties).sum())
        if wrong:
            found.problems.append(
                f"'{name}' differs in {wrong} rows that are no near ties (gap above {tie_gap(agent, 0.0, tolerance):g} "
                f"plus {tie_gap(agent, 1.0, 0.0):g} of the largest score)"
            )
        comparable &= ~differs
    kept = {name: rows[comparable] for name, rows in expected.items()}
    for name in [each for each in expected if each not in discrete] if comparable.any() else ():
        _compare_numbers(agent, name, got[name][comparable], kept, tolerance, found)
    return found


def _compare_numbers(
    agent: AgentModel, name: str, got: Array, expected: dict[str, Array], tolerance: float, found: Comparison
) -> None:
    """Add the differences of a floating-point output to ``found``."""
    errors = np.abs(_rows(got) - _rows(expected[name]).astype(np.float64))
    allowed = np.broadcast_to(_allowed(agent, name, expected, tolerance), errors.shape)
    shares = errors / allowed
    if not (shares <= 1.0).all():
        shares = np.where(np.isnan(shares), np.inf, shares)
        worst = np.unravel_index(np.argmax(shares), shares.shape)
        found.problems.append(f"'{name}' differs by {errors[worst]:.3g}, {allowed[worst]:.3g} is allowed")
    found.error = max(found.error, float(shares.max(initial=0.0)) * tolerance)


def tie_gap(agent: AgentModel, size: float | Array, tolerance: float) -> Any:
    """How far apart the two best scores are at most at a near tie, with scores up to ``size``."""
    return 2.0 * _allowance(agent, size, tolerance)


def _allowance(agent: AgentModel, size: float | Array, tolerance: float) -> Any:
    """What numbers up to ``size`` may differ by."""
    long = max(1.0, math.prod(agent.observation.shape) / _LONG_SUM)
    return tolerance + ROUNDING * math.sqrt(long) * size


def _allowed(agent: AgentModel, name: str, expected: dict[str, Array], tolerance: float) -> Array:
    """What the numbers of an output may differ by, [rows, 1] or [rows, size]."""
    space = agent.action_space
    if name != agent.action.name or not isinstance(space, BoxSpace):
        return np.asarray(_allowance(agent, _sizes(expected[name]), tolerance))
    mean = expected.get(f"{name}_mean")
    sizes = np.ones((len(expected[name]), 1)) if mean is None else np.maximum(_sizes(mean), 1.0)
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    step = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32)).astype(np.float64)
    return np.asarray(_allowance(agent, sizes, tolerance) * (high - low) / 2 + step)


def _sizes(array: Array) -> Array:
    """The largest absolute value of each row, [rows, 1], less what is masked."""
    rows = _rows(array).astype(np.float64)
    return np.asarray(np.abs(np.where(rows > MASKED, rows, 0.0)).max(axis=1, initial=0.0, keepdims=True))


def _rows(array: Array) -> Array:
    """[rows, ...] flattened to [rows, size], also for scalars and for no rows at all."""
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def _near_tie(
    agent: AgentModel, name: str, feeds: dict[str, Array], expected: dict[str, Array], tolerance: float
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
    allowed = tie_gap(agent, _sizes(scores)[:, 0], tolerance)
    near = np.zeros(rows, np.bool_)
    cuts = first_of_branches(agent)[1:] if name == "action" else []
    for branch in np.split(scores, cuts, axis=1):
        if branch.shape[1] > 1:
            best = np.sort(branch, axis=1)[:, -2:]
            near |= best[:, 1] - best[:, 0] < allowed
    return near


def first_of_branches(agent: AgentModel) -> list[int]:
    """Where each branch of the action's logits (and mask) begins."""
    return [part.start for part in branch_slices(branch_sizes(agent.action_space))]
