"""What ``scripts/study.py`` compares: algorithms and settings on tasks, with equal budgets."""

from __future__ import annotations

import comparisons_of_conductors
import comparisons_of_guiders
import comparisons_of_hierarchies
from comparison import Comparison, algorithms

COMPARISONS = (
    *comparisons_of_conductors.COMPARISONS,
    *comparisons_of_guiders.COMPARISONS,
    *comparisons_of_hierarchies.COMPARISONS,
    Comparison(
        "pistonball", "pettingzoo/pettingzoo.butterfly.pistonball_v6:parallel_env", 4_096, 1_024,
        algorithms("mappo", seeds=1), settings=("env.workers=2", "run.evaluation_episodes=8"),
        references=(("random play", 28.6),),
        remark=(
            "Five pistons that see pixels alone (457 x 120 x 3 bytes each; the critic sees everything). One seed, "
            "trained while other programs kept the machine busy. In every evaluated episode the ball reaches the left "
            "wall, after 11 steps; under random play, episodes last 105 of at most 125 steps. Part of the task can be "
            "done blind: of seven blind teams whose pistons stood still, high or low, the best earned 77 in four "
            "episodes, the others 17 to 61. Exported and served by a fleet, the policy earned 98.7 in eight episodes "
            "over gRPC."
        ),
    ),
)  # fmt: skip
