"""Hold the four papers' claims against what was measured here, as the study's records say.

    python scripts/claims.py

Claims and the rules by which they are judged stand in ``claimed.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from claimed import CLAIMS, Claim, Elsewhere, Measured, Verdict
from comparison import Comparison
from comparisons import COMPARISONS
from study import records_of

from hmarl.runtime import command_line
from hmarl.runtime.command_line import PATH, option
from hmarl.sdk.evaluation.statistics import iqm, iqm_interval_of_runs
from hmarl.sdk.files import write_text
from hmarl.trainer.suite.records import Record, curve

_EARLY = 0.25
_LEAST_SEEDS = 2


@dataclass(frozen=True)
class Team:
    """A variant's finished runs, played by one of its players.

    Attributes:
        name: for the page.
        returns: [seeds, E] of the last evaluations.
        early: [seeds] mean returns at a quarter of the budget.
    """

    name: str
    returns: np.ndarray
    early: np.ndarray

    @property
    def seeds(self) -> int:
        """How many runs there are."""
        return len(self.returns)

    @property
    def means(self) -> np.ndarray:
        """[seeds]."""
        return np.asarray(self.returns.mean(axis=1))

    def interval(self) -> tuple[float, float]:
        """95 % of the interquartile mean: seeds are drawn anew, and of each its episodes."""
        return iqm_interval_of_runs(list(self.returns))

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.name} {float(iqm(self.returns.ravel())):.2f} [{low:.2f}, {high:.2f}] ({_seeds(self.seeds)})"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


@dataclass(frozen=True)
class Finding:
    """What a piece of evidence comes to: a verdict, the figures and where more stands."""

    verdict: Verdict
    figures: str
    link: str


def find_comparison(name: str) -> Comparison:
    """By its name; a KeyError where there is none."""
    return {comparison.name: comparison for comparison in COMPARISONS}[name]


def team_of(comparison: Comparison, label: str, player: str | None, kept: Path) -> Team | None:
    """A variant's runs of which there are records, played by that player; None without any."""
    if label not in (known := [variant.label for variant in comparison.variants]):
        raise KeyError(f"{comparison.name}: no variant '{label}', there are {', '.join(known)}")
    records = [
        record
        for record in records_of(comparison, kept).get(label, [])
        if (player or record.judged_by) in record.returns
    ]
    if not records:
        return None
    played_by = player or records[0].judged_by
    every = [record.returns[played_by] for record in records]
    returns = np.array([of_seed[: min(map(len, every))] for of_seed in every])  # the same episodes of each seed
    return Team(label if player is None else f"{label} ({player})", returns, _early_returns(records, played_by))


def _early_returns(records: Sequence[Record], player: str) -> np.ndarray:
    """[seeds] at the first evaluation after a quarter of the budget."""
    steps, returns = curve(records, f"evaluation/{player}/return_mean")
    return returns[:, int(np.searchsorted(steps, _EARLY * steps[-1]))]


def judge(evidence: Measured | Elsewhere, kept: Path, page: str) -> Finding:
    """What a piece of evidence comes to.

    Args:
        evidence: of a claim.
        kept: the records.
        page: README.md, whose sections are linked to.
    """
    if isinstance(evidence, Elsewhere):
        return Finding(evidence.verdict, evidence.figures, f"[{_title(evidence.link)}]({evidence.link})")
    comparison = find_comparison(evidence.comparison)
    link = _section(comparison, page)
    about = f"`{comparison.task}`, {comparison.steps:,} frames"
    team = team_of(comparison, evidence.team, evidence.player, kept)
    others = [(name, _other(comparison, name, evidence.against, kept)) for name in evidence.others]
    there = [other for _, other in others if other is not None]
    missing = [evidence.team] * (team is None) + [name.split(":")[-1] for name, other in others if other is None]
    figures = [str(each) for each in (team, *there) if each is not None]
    figures += [f"no records of {', '.join(missing)}"] * bool(missing)
    compared = [other for other in there if other.seeds >= _LEAST_SEEDS]
    if team is None or team.seeds < _LEAST_SEEDS or (others and not compared):
        too_few = ["too few seeds to tell"] * (team is not None and len(there) == len(others))
        return Finding("open", "; ".join([f"{about}: {figures[0]}", *figures[1:], *too_few]), link)
    held, said = _RULES[evidence.rule](team, compared, evidence.value)
    verdict: Verdict = "not reproduced"
    if held:  # by all that there are: others may still come
        verdict = "reproduced" if len(compared) == len(others) else "open"
    return Finding(verdict, "; ".join([f"{about}: {figures[0]}", *figures[1:], said]), link)


def _other(comparison: Comparison, name: str, player: str | None, kept: Path) -> Team | None:
    """A label of the same comparison, or of another one, ``comparison:label``."""
    other, _, label = name.rpartition(":")
    return team_of(find_comparison(other) if other else comparison, label, player, kept)


# --- the rules -------------------------------------------------------------------------------------------------------


def _standing(team: Team, other: Team) -> str:
    """Ahead, behind or level, interval against interval."""
    (low, high), (lower, higher) = team.interval(), other.interval()
    return "ahead of" if low > higher else "behind" if high < lower else "level with"


def _standings(team: Team, others: list[Team]) -> tuple[list[str], str]:
    found = [_standing(team, other) for other in others]
    return found, ", ".join(f"{how} {other.name}" for how, other in zip(found, others, strict=True))


def _ahead(team: Team, others: list[Team], value: float) -> tuple[bool, str]:
    found, said = _standings(team, others)
    return all(how == "ahead of" for how in found), said


def _not_behind(team: Team, others: list[Team], value: float) -> tuple[bool, str]:
    found, said = _standings(team, others)
    return all(how != "behind" for how in found), said


def _steadier(team: Team, others: list[Team], value: float) -> tuple[bool, str]:
    deviations = [float(each.means.std(ddof=1)) for each in (team, *others)]
    said = ", ".join(f"{each.name} ± {sd:.2f}" for each, sd in zip((team, *others), deviations, strict=True))
    return deviations[0] < min(deviations[1:]), f"deviation over the seeds {said}"


def _sooner(team: Team, others: list[Team], value: float) -> tuple[bool, str]:
    said = ", ".join(f"{each.name} {each.early.min():.2f} to {each.early.max():.2f}" for each in (team, *others))
    return all(team.early.min() > other.early.max() for other in others), f"at a quarter of the budget {said}"


def _reaches(team: Team, others: list[Team], value: float) -> tuple[bool, str]:
    return team.interval()[1] >= value, f"claimed {value:g}"


_RULES = {"ahead": _ahead, "not behind": _not_behind, "steadier": _steadier, "sooner": _sooner, "reaches": _reaches}


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim: reproduced where every task that could tell says so, not where one says no, open where none tells."""
    told = [verdict for verdict in verdicts if verdict != "open"]
    if not told:
        return "open"
    return "reproduced" if all(verdict == "reproduced" for verdict in told) else "not reproduced"


# --- the page --------------------------------------------------------------------------------------------------------


def _title(link: str) -> str:
    return Path(link.partition("#")[0]).stem.replace("_", " ")


def _section(comparison: Comparison, page: str) -> str:
    """A link to a comparison's section, its name where there is none."""
    found = re.search(rf"^## ({re.escape(comparison.name)}: .*)$", page, flags=re.MULTILINE)
    if found is None:
        return f"{comparison.name} (no section)"
    anchor = re.sub(r"[^\w\- ]", "", found[1].lower()).replace(" ", "-")
    return f"[{comparison.name}](README.md#{anchor})"


def row(claim: Claim, kept: Path, page: str) -> tuple[str, ...]:
    """A claim's cells, without its paper: kind, claimed, measured, verdict, why, where more stands."""
    found = [judge(evidence, kept, page) for evidence in claim.evidence]
    measured = "<br>".join(
        finding.figures if len(found) == 1 else f"{finding.figures} → {finding.verdict}" for finding in found
    )
    links = "<br>".join(dict.fromkeys(finding.link for finding in found))
    verdict = f"**{together([finding.verdict for finding in found])}**"
    cells = (claim.kind, f"{claim.claimed} ({claim.where})", measured, verdict, claim.why, links)
    return tuple(cell.replace("|", "\\|") for cell in cells)


INTRODUCTION = (
    "# What the papers claim, and what was found here",
    "Made by `python scripts/claims.py` from [records](records) and `scripts/claimed.py`. Figures are interquartile "
    "means of the last evaluations (100 episodes, 32 on large tasks) with 95 % intervals, from resampling the seeds "
    "and the episodes of each. *ahead*, *behind*: the intervals do not overlap; *level*: they do. A claim is "
    "**reproduced** where every task with records for two seeds or more bears it out, **not reproduced** where one "
    "does not, and **open** where records are missing or there is only one seed. So a claim that is not reproduced is "
    "not refuted: budgets are smaller than the papers', and so are some tasks.",
)


def draw(kept: Path, page: str) -> str:
    """The whole page."""
    rows = [(claim, row(claim, kept, page)) for claim in CLAIMS]
    counts = {
        paper: [cells[3] for claim, cells in rows if claim.paper == paper]
        for paper in dict.fromkeys(claim.paper for claim in CLAIMS)
    }
    verdicts = ("reproduced", "not reproduced", "open")
    overview = [f"| | {' | '.join(verdicts)} |", "|---|---|---|---|"]
    overview += [
        f"| {paper} | {' | '.join(str(got.count(f'**{v}**')) for v in verdicts)} |" for paper, got in counts.items()
    ]
    parts = [*INTRODUCTION, "\n".join(overview)]
    for paper in counts:
        lines = [
            "| kind | claimed | measured here | verdict | why | more |",
            "|---|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(cells)} |" for claim, cells in rows if claim.paper == paper]
        parts += [f"## {paper}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


@command_line.command(
    "scripts/claims.py",
    option("--results", "where the records and the study's page are, and claims.md goes", PATH,
           default=Path("docs/results")),
)  # fmt: skip
def main(results: Path) -> None:
    """Write claims.md from the records at hand."""
    page = results / "README.md"
    drawn = draw(results / "records", page.read_text(encoding="utf-8") if page.exists() else "")
    write_text(results / "claims.md", drawn)
    print(f"wrote {results / 'claims.md'}")


if __name__ == "__main__":
    sys.exit(command_line.run(main))
