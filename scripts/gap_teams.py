"""The teams whose price of deployment ``scripts/gap.py`` shows, and how each is measured."""

from __future__ import annotations

from dataclasses import dataclass

from comparison import Comparison, Variant
from comparisons_of_conductors import STATE_CONDUCTOR

_TRAINED_FAULTS = ("env.faults.delay=2", "env.faults.loss=0.2")


@dataclass(frozen=True)
class Shown:
    """One section of the page.

    Attributes:
        comparison: what is trained.
        episodes: of each rung.
        faults: of the rungs under faults.
        exported: settings of the distillation at export.
        remark: what it shows, read off the figures and written down beside them.
    """

    comparison: Comparison
    episodes: int
    faults: tuple[str, ...] = ("delay=2", "loss=0.2", "agent_0:out=0")
    exported: tuple[str, ...] = ()
    remark: str = ""


TEAMS = (
    Shown(
        Comparison(
            "hcpo",
            "coordsum/3x10-30",
            500_000,
            50_000,
            (Variant("hcpo", "hcpo", STATE_CONDUCTOR),),
            environment_settings=("record=own",),
        ),
        episodes=24,
        faults=("delay=1", "delay=2", "delay=4", "loss=0.2", "noise=0.03", "agent_0:out=0"),
        remark="**All of the loss comes from imitation, none from export and serving.** A fifth of the return is lost "
        "when local conductors replace the one that sees the state; from torch to served not one action differs. "
        "Under faults the game is all or nothing: each step asks for a new number, so an agent that hears it a step "
        "late, or is missing, makes nearly every sum wrong. The rules first name what the team was not trained for; "
        "here no training could bridge a delay. The runs are those of the study's comparison "
        "coordsum-state-counterparts, and were not retrained.",
    ),
    Shown(
        Comparison(
            "magpo",
            "coordsum/3x30-50",
            1_000_000,
            100_000,
            (Variant("magpo", "magpo"),),
            settings=("run.evaluation_episodes=32",),
            environment_settings=("record=own",),
        ),
        episodes=32,
        faults=("delay=1", "delay=2", "delay=4", "loss=0.2", "noise=0.03", "agent_0:out=0"),
        remark="**Nothing is lost on the way; with two of three seeds something is gained.** The guider decides agent "
        "by agent and knows what the agents before have chosen. The local policies do not, yet with greedy actions "
        "they earn as much as it does or more: they follow it, and improve the return themselves. So there is no "
        "suspect up to serving: from torch to served not one action differs, and not one act was a fallback's. Under "
        "faults it is as with HCPO above: an agent that hears a number a step late, or is missing, makes the sum "
        "wrong; the rules first name what the team was not trained for. The runs are those of the study's comparison "
        "coordsum-common-3x30-50, and were not retrained.",
    ),
    Shown(
        Comparison(
            "magpo",
            "coordsum/sum-to-10-full",
            40_000,
            40_000,
            (Variant("magpo", "magpo"),),
        ),
        episodes=200,
        faults=("agent_0:out=0",),
        remark="**Nothing is lost on the way.** The guider is held where local policies can follow: every sum of "
        "sampled actions is right, from the guider to the served agents. This is the game of one step.",
    ),
    Shown(
        Comparison("himpo", "lbfws/hard", 500_000, 50_000, (Variant("himpo", "himpo"),)),
        episodes=16,
        exported=(
            "distillation.rounds=3",
            "distillation.environments=32",
            "distillation.evaluation_episodes=32",
        ),
        remark="**A third is lost to imitation**, most likely because students were distilled in 3 short rounds. With "
        "the default settings the students of a team that trained for 1,000,000 steps kept 97.6 % "
        "([students](students.md)). The hierarchies are those of the study's comparison lbfws-hard-parts, and were "
        "not retrained.",
    ),
    Shown(
        Comparison("hamdpo", "mpe/simple_spread", 150_000, 150_000, (Variant("hamdpo", "hamdpo"),)),
        episodes=50,
        remark="**Nothing is lost up to serving**: there is nothing above its agents that deployment would remove. "
        "The team is at the beginning of its training, so it has little to lose to faults either.",
    ),
    Shown(
        Comparison(
            "happo",
            "mpe/simple_spread",
            600_000,
            600_000,
            (Variant("trained without faults", "happo"), Variant("trained with faults", "happo", _TRAINED_FAULTS)),
        ),
        episodes=50,
        faults=("delay=2,loss=0.2", "delay=2", "loss=0.2"),
        remark="**Trained with delay 2 and loss 0.2 a team keeps more of its return under them**: it loses 2 where the "
        "other one loses 12, and ends above it by 3.5: with all three seeds, one of them clearly more than chance. It "
        "pays for that with 6.5 where nothing goes wrong, and with 5.0 under loss alone: neither team remembers "
        "anything, so a team that expects late observations always does.",
    ),
)
