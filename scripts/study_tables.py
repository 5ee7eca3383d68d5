"""The tables of a study's page, drawn from the records of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from comparison import Comparison

from hmarl.sdk.evaluation.statistics import iqm, iqm_interval_of_runs
from hmarl.trainer.suite.records import Record, curve

CONDUCTORS = {"local": "#0072b2", "central": "#d55e00", "random": "#999999", "none": "#cc79a7"}

_CONDUCTED = {"central": "the central conductor", "random": "random instructions"}

Records = dict[str, list[Record]]
"""What is kept of finished runs, per variant's label."""

Row = dict[str, str]
"""Cells by the heading of their column."""


def table(comparison: Comparison, runs: Records) -> str:
    """Markdown: a row a variant.

    The final IQM, the mean of each seed, the paper's measure, an early value, frames/s; where a team has a guider, for
    all variants what they come to in the other mode and at the best checkpoint, and for guided ones their gaps; where
    several teams have a conductor, what each comes to under another one.
    """
    conducted = [name for name in ("central", "random") if sum(name in r[0].returns for r in runs.values()) > 1]
    guided = any("guider" in records[0].returns for records in runs.values())
    rows = [
        {
            "": label,
            **_final(records),
            **_medians(comparison, records),
            **(_early(comparison.early, records) if comparison.early else {}),
            **({**_other_ways(records), **_guider(records)} if guided else {}),
            **{f"under {_CONDUCTED[name]}": _each(_means(records, name)) for name in conducted},
            "frames/s": _speed(records),
        }
        for label, records in runs.items()
    ]
    return _markdown(rows)


def _markdown(rows: list[Row]) -> str:
    """The rows under the columns of the first."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([row[column] for column in rows[0]] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _speed(records: list[Record]) -> str:
    """The median of those that are known."""
    known = [record.steps_per_s for record in records if record.steps_per_s is not None]
    return f"{np.median(known):,.0f}" if known else ""


def _final(records: list[Record]) -> Row:
    returns = [record.final_returns for record in records]
    return {
        "actions": records[0].actions,
        "IQM of the final returns [95 %]": _iqm_with_interval(returns),
        "mean of each seed": _each([float(of_seed.mean()) for of_seed in returns]),
    }


def _medians(comparison: Comparison, records: list[Record]) -> Row:
    """The HCPO paper's measure."""
    _, curves = curve(records, records[0].measured("return_mean"))
    row = {"median of the last ten evaluations": _mean_and_deviation(np.median(curves[:, -10:], axis=1))}
    if comparison.measure == "success_rate":
        _, shares = curve(records, records[0].measured(comparison.measure))
        won = ", ".join(f"{share:.0%}" for share in np.median(shares[:, -10:], axis=1))
        row["won, each seed, median of the last ten"] = won
    return row


def _early(early: int, records: list[Record]) -> Row:
    steps, curves = curve(records, records[0].measured("return_mean"))
    at = min(int(np.searchsorted(steps, early)), len(steps) - 1)
    return {f"at {early:,} frames": f"{curves[:, at].mean():.2f} (at {steps[at]:,})"}


def _other_ways(records: list[Record]) -> Row:
    """What the team comes to in the mode in which it is not judged, and what its best checkpoint comes to in both."""
    judged_by, other = records[0].judged_by, records[0].other_mode
    bests = [record.best for record in records if record.best is not None]
    in_other = [best.otherwise[judged_by] for best in bests if judged_by in best.otherwise]
    best = _each([float(np.mean(best.returns[judged_by])) for best in bests])
    return {
        "in the other mode": _named(other, [r.otherwise[judged_by] for r in records if judged_by in r.otherwise]),
        "best checkpoint": "; ".join(part for part in (best, _named(other, in_other)) if part),
    }


def _guider(records: list[Record]) -> Row:
    """What the guider comes to and how far the deployed policies stay below it, empty for teams without."""
    row = {"guider's IQM [95 %]": "", "gap to the guider": ""}
    if "guider" not in records[0].returns:
        return row
    row["guider's IQM [95 %]"] = _iqm_with_interval([record.returns["guider"] for record in records])
    if "local" in records[0].returns:
        judged = [float(np.mean(r.returns["guider"]) - np.mean(r.returns["local"])) for r in records]
        both = [r.otherwise for r in records if {"guider", "local"} <= r.otherwise.keys()]
        parts = (_each(judged), _named(records[0].other_mode, [each["guider"] - each["local"] for each in both]))
        row["gap to the guider"] = "; ".join(part for part in parts if part)
    return row


def _means(records: list[Record], player: str) -> list[float]:
    """The mean return of each seed, none of teams without such a player."""
    return [float(np.mean(record.returns[player])) for record in records if player in record.returns]


def _each(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _named(mode: str, values: list[float]) -> str:
    """The values of a mode, nothing where there are none."""
    return f"{mode} {_each(values)}" if values else ""


def _mean_and_deviation(values: np.ndarray) -> str:
    """Mean ± standard deviation over seeds, as the HCPO paper reports (C.1)."""
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def _iqm_with_interval(returns: Sequence[npt.ArrayLike]) -> str:
    """Of [E] returns a seed."""
    low, high = iqm_interval_of_runs(returns)
    return f"{float(iqm(np.concatenate(returns))):.2f} [{low:.2f}, {high:.2f}]"


def returns_table(by: str, returns: Mapping[str, list[list[float]]]) -> str:
    """Markdown: the IQM and the means of teams that act in several ways, each with returns [seeds, E]."""
    rows = [
        {
            by: name,
            "IQM [95 % bootstrap interval]": _iqm_with_interval(values),
            "mean of each seed": _each([float(np.mean(of_seed)) for of_seed in values]),
        }
        for name, values in returns.items()
    ]
    return _markdown(rows)


def conductors_of(records: list[Record]) -> dict[str, str]:
    """The conductors under which runs were evaluated, each with its colour: no central one where agents have copies."""
    return {name: colour for name, colour in CONDUCTORS.items() if name in records[0].returns}


def conductor_table(records: list[Record]) -> str:
    """Markdown: teams under their conductors at the last evaluation."""
    return returns_table(
        "conductor", {name: [record.returns[name] for record in records] for name in conductors_of(records)}
    )
