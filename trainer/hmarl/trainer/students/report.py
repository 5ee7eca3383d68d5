"""How far students reach: along their own episodes, step by step, and in what they earn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.runtime.bundle import StudentsModel
from hmarl.trainer.students.demonstrations import Demonstrations
from hmarl.trainer.students.student import StudentPolicy, Students

# Goals whose variance is a smaller share of their mean square are one goal: there is nothing to guess.
_GOALS_VARY = 1e-4


@dataclass(frozen=True)
class Fidelity:
    """What students make of demonstrations, over all agents and steps at which they were there.

    Attributes:
        kl: mean KL(teacher ‖ student) in nats.
        action_agreement: share of equal likeliest actions of the agents with discrete ones, None without such.
        action_difference: mean absolute difference of the mean actions of the others, in the environment's units.
        goal_accuracy: share of equal likeliest goals, None without discrete goals.
        goal_variance_explained: share of the variance of continuous goals that is predicted: 1 is all of it, 0 no
            better than their mean; None without such.
    """

    kl: float
    action_agreement: float | None = None
    action_difference: float | None = None
    goal_accuracy: float | None = None
    goal_variance_explained: float | None = None


def figures(students: StudentsModel) -> list[tuple[str, str]]:
    """What the report says, in words: names and figures."""
    acted = "drawn" if students.sampled else "likeliest"
    share = "" if students.ratio is None else f" ({students.ratio:.1%} of the return kept)"
    shares = {
        "steps with the teacher's action": students.action_agreement,
        "steps with the teacher's goal": students.goal_accuracy,
        "variance of the goals that is predicted": students.goal_variance_explained,
    }
    difference = students.action_difference
    return [
        (f"teacher's mean return, {students.episodes} episodes, {acted} actions", f"{students.teacher_return:.2f}"),
        ("students' mean return, same seeds", f"{students.students_return:.2f}"),
        ("gap", f"{students.gap:.2f}{share}"),
        *((name, f"{value:.1%}") for name, value in shares.items() if value is not None),
        *([] if difference is None else [("mean absolute difference of actions", f"{difference:.3g}")]),
        ("divergence from the teacher, per agent and step", f"{students.kl:.3g} nats"),
        ("rounds", f"{students.rounds}, ended by: {students.stopped}"),
        ("environment steps", f"{students.steps:,}"),
    ]


@torch.no_grad()
def measure(students: Students, rounds: Demonstrations) -> Fidelity:
    """How well the students do what was demonstrated, run through from each sequence's begin; nothing is learnt."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
    for g, policy in enumerate(students.policies):
        for name, row in _compared(g, policy, rounds).items():
            sums[name] = sums[name] + row.double().cpu()
    shares = {name: float(total / count.clamp(min=1e-8)) for name, (total, count) in sums.items()}
    missed, spread = shares.pop("goal_missed", None), shares.pop("goal_spread", None)
    if missed is not None and spread is not None and spread > _GOALS_VARY:
        shares["goal_variance_explained"] = 1.0 - missed
    return Fidelity(**shares)


def _compared(group: int, policy: StudentPolicy, rounds: Demonstrations) -> dict[str, Tensor]:
    """By name, [2] a sum over agents and steps and what it is divided by."""
    weight = rounds.weight(group)
    nothing = torch.zeros(policy.members, rounds.sequences, policy.network.memory_size, device=weight.device)
    remembered = policy.remembered(
        rounds.features(group), nothing, rounds.forgotten(group), policy.theta, rounds.there(group)
    )
    predicted, predicted_goals = policy.decided(remembered, rounds.mask(group), policy.theta)
    labels = rounds.labels(group, policy.head)

    def summed(values: Tensor) -> Tensor:
        """[2] of values [N, M]."""
        return torch.stack([(values * weight).sum(), weight.sum()])

    mine, theirs = (policy.head.to_environment(each.mode()) for each in (predicted, labels))
    found = {"kl": summed(labels.kl(predicted))}
    if policy.head.continuous:
        found["action_difference"] = summed((mine - theirs).abs().mean(-1))
    else:
        equal = mine == theirs
        found["action_agreement"] = summed((equal.all(-1) if equal.dim() > 2 else equal).float())
    goals, kind = rounds.goals(group), policy.goal_kind
    if goals is not None and kind is not None and predicted_goals is not None:
        if kind.discrete:
            found["goal_accuracy"] = summed((predicted_goals.argmax(-1) == goals.argmax(-1)).float())
        else:
            centre = (goals * weight.unsqueeze(-1)).sum((0, 1)) / weight.sum().clamp(min=1.0)
            missed, spread = ((goals - x).square().mean(-1) for x in (predicted_goals, centre))
            found["goal_missed"] = torch.stack([(missed * weight).sum(), (spread * weight).sum()])
            found["goal_spread"] = torch.stack([(spread * weight).sum(), (goals.square().mean(-1) * weight).sum()])
    return found
