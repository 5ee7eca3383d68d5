"""What a measurement says, in words: lines for a terminal, and a section for a model card."""

from __future__ import annotations

from collections.abc import Iterator

from hmarl.sdk.gap.document import Difference, Gap

# A percentile bootstrap knows no t-distribution: of 20 normal values a 95 % interval holds their mean in 93 % of cases,
# of 8 in 89 %, of 4 in 81 %.
FEW_EPISODES = 20


def difference_of(gap: Gap, name: str) -> str:
    """What a rung earns more than the one that it is compared with; empty for the first."""
    found = next((each for each in (*gap.differences, *gap.under_faults) if each.to == name), None)
    return "" if found is None else span_of(found)


def span_of(difference: Difference) -> str:
    """A difference with its interval."""
    low, high = difference.ci95
    return f"{difference.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def verdict_of(difference: Difference) -> str:
    """What came of a step, with the first suspect where something is lost."""
    if difference.verdict == "none":
        return "none"
    if difference.verdict == "gained":
        return "gained"
    first = difference.suspects[0]
    return f"lost; first suspect: {first.rule}: {first.why}; {first.remedy}"


def caution(gap: Gap) -> str:
    """What is to be said of intervals from few episodes; empty where there are enough."""
    if gap.episodes >= FEW_EPISODES:
        return ""
    narrow = f"of fewer than {FEW_EPISODES} intervals are too narrow, and a loss may be chance"
    return f"{gap.episodes} episodes are few: {narrow}."


def told(gap: Gap) -> Iterator[str]:
    """One line for each step, for all of them, for each first suspect under faults, and for too few episodes."""
    for difference in gap.differences:
        yield f"{difference.start} → {difference.to}: {span_of(difference)}: {verdict_of(difference)}"
    if len(gap.differences) > 1:
        total = gap.total
        word = {"none": "no difference", "lost": "lost in all", "gained": "gained in all"}[total.verdict]
        yield f"{total.start} → {total.to}: {span_of(total)}: {word}"
    grouped: dict[str, list[str]] = {}
    for difference in gap.under_faults:
        grouped.setdefault(verdict_of(difference), []).append(gap.rung(difference.to).faults)
    for verdict, faults in grouped.items():
        yield f"served under {' | '.join(faults)}: {verdict}"
    for rung in gap.rungs:
        if rung.serving is not None and rung.serving.fallbacks:
            yield f"{rung.name}: {served_of(gap, rung.name)}"
    if words := caution(gap):
        yield words


def served_of(gap: Gap, name: str) -> str:
    """What the clients counted on a rung; empty where nothing is served."""
    serving = gap.rung(name).serving
    if serving is None:
        return ""
    causes = ", ".join(f"{reason} {count:,}" for reason, count in serving.reasons.items())
    return (
        f"{serving.fallbacks:,} of {serving.acts:,} acts by fallback{f' ({causes})' if causes else ''}, "
        f"{serving.late_replies:,} late replies, {serving.missed_steps:,} missed steps, {serving.rejoins:,} rejoins"
    )


def card_section(gap: Gap) -> str:
    """The section of a model card, as Markdown."""
    rows = []
    for rung in gap.rungs:
        low, high = rung.mean_ci95
        difference = next((each for each in (*gap.differences, *gap.under_faults) if each.to == rung.name), None)
        suspect = difference.suspects[0].rule if difference is not None and difference.suspects else ""
        verdict = "" if difference is None else difference.verdict
        rows.append(
            f"| {rung.name} | {rung.mean:.2f} [{low:.2f}, {high:.2f}] | {difference_of(gap, rung.name)} | "
            f"{verdict}{f': {suspect}' if suspect else ''} |"
        )
    few = f"{words} " if (words := caution(gap)) else ""
    trained = f"trained with the faults `{gap.trained_faults}`" if gap.trained_faults else "trained without faults"
    return (
        f"## The price of deployment\n\nMean returns of {gap.episodes} episodes with {gap.actions} actions, the same "
        f"episodes on every rung (seed {gap.seed}), measured by `hmarl-gap`: as the training knows the team, by local "
        "policies in torch, by the graphs of this bundle, served by one process an agent, and served under faults. "
        "Differences are paired, of each rung and the one before it (under faults: and `served`), with 95 % bootstrap "
        f"intervals; one whose interval holds 0 is none, and suspects are no culprits. {few}The team was "
        f"{trained}.\n\n| rung | return | difference | what is lost: first suspect |\n|---|---|---|---|\n"
        + "\n".join(rows)
    )
