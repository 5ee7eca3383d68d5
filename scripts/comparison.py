"""What a comparison is: algorithms and settings on a task, with equal budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hmarl.sdk.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Variant:
    """One line of a comparison: an algorithm, and the settings in which it differs from its preset.

    Attributes:
        label: as the page has it.
        algorithm: its name.
        settings: ``--set`` options.
        seeds: how many.
        preset: by name; None for the one that algorithm and task have by themselves.
    """

    label: str
    algorithm: str
    settings: tuple[str, ...] = ()
    seeds: int = 3
    preset: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Variants on one environment with equal budgets.

    Attributes:
        name: of files, sections and ``--only``.
        steps: environment steps of every run.
        evaluation_interval: steps between evaluations.
        settings: extra ``--set`` options for all variants, beyond their presets.
        environment_settings: the same for the environment, without ``env.``: they make it another task.
        references: label -> value, drawn beside ours.
        early: a number of steps at which others' results are known; the table has a column for it.
        measure: of the deployed policies; of the guider where nothing is deployed.
        instruction_choices: also compare how HCPO's deployed agents choose their instructions.
        remark: what it shows, read off the figures and written down beside them.
    """

    name: str
    environment: str
    steps: int
    evaluation_interval: int
    variants: tuple[Variant, ...]
    settings: tuple[str, ...] = ()
    environment_settings: tuple[str, ...] = ()
    references: tuple[tuple[str, float], ...] = ()
    early: int | None = None
    measure: Literal["return_mean", "success_rate"] = "return_mean"
    instruction_choices: bool = False
    remark: str = ""

    @property
    def task(self) -> str:
        """The environment, and in which settings it is another task."""
        return " ".join((self.environment, *self.environment_settings))


def selected(comparisons: Sequence[Comparison], only: Sequence[str]) -> list[Comparison]:
    """The comparisons that ``--only`` names, in their own order; all where it names none.

    Raises:
        UsageError: an unknown name, with a suggestion.
    """
    known = [comparison.name for comparison in comparisons]
    for name in only:
        if name not in known:
            raise UsageError(f"--only: {unknown_name('comparison', name, known)}")
    return [comparison for comparison in comparisons if not only or comparison.name in only]


def algorithms(*names: str, seeds: int = 3) -> tuple[Variant, ...]:
    """Algorithms with their presets."""
    return tuple(Variant(name, name, seeds=seeds) for name in names)


def settings_of(algorithm: str, name: str, values: tuple[object, ...], label: str) -> tuple[Variant, ...]:
    """One setting of an algorithm at several values, three seeds each."""
    return tuple(Variant(f"{label}={v}", algorithm, (f"algorithm.{name}={v}",)) for v in values)


# Of evaluations on tasks whose episodes are dear.
FEW_EPISODES = ("run.evaluation_episodes=32",)
