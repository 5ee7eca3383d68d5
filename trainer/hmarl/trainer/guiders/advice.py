"""What goes wrong between a guider, its local policies and the agents, as metrics show it, and what helps."""

from __future__ import annotations

from typing import Protocol

import torch

from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.guiders.settings import FollowerFields
from hmarl.trainer.learning.metrics import numbers
from hmarl.trainer.networks.indices import on_device

# Share of actions outside (1/δ, δ) beyond which guider and local policies have parted.
_PARTED = 0.5
# Share of steps in which all agents of a kind do the same, beyond which they have come to act alike.
_ALIKE = 0.95


class AlikeSettings(Protocol):
    """The settings by which agents can be told apart."""

    shuffle_agents: bool
    share_parameters: bool
    agent_identity: bool

    @property
    def guider(self) -> str:
        """Its name among ``GUIDERS``."""
        ...


def parted(metrics: dict[str, float], remedy: str) -> str | None:
    """Advice where most actions lie beyond δ; None elsewhere."""
    if metrics.get("outside_share", 0.0) <= _PARTED:
        return None
    return (
        f"guider and local policies part: more than {_PARTED:.0%} of the actions lie outside (1/δ, δ); what is "
        f"deployed will do worse than the guider. {remedy}"
    )


def to_follow(settings: FollowerFields) -> str:
    """What helps local policies to follow their guider, as far as the settings leave it to be done."""
    held = "" if settings.backtracking else "Set algorithm.backtracking=true, which draws the guider back. "
    return (
        f"{held}Lower algorithm.delta (now {settings.delta}) or algorithm.learning_rate, or raise "
        "algorithm.learner_learning_rate or algorithm.epochs, so that the local policies can follow"
    )


def alike(rollout: Rollout) -> dict[str, float]:
    """``same_action_share``: of the steps at which several agents of a group were there, those at which all of them
    did the same; the largest of all groups. Nothing where no two agents choose among the same actions.
    """
    shares = []
    for group, actions in zip(rollout.spec.groups, rollout.actions, strict=True):
        if len(group.agents) < 2 or actions.is_floating_point():
            continue
        chosen = actions.flatten(0, 1).flatten(2) if actions.dim() > 3 else actions.flatten(0, 1).unsqueeze(-1)
        present = rollout.active[:, :, on_device(group.agents, actions.device)].flatten(0, 1)
        first = present.int().argmax(dim=1)
        as_first = (chosen == chosen[torch.arange(len(chosen), device=chosen.device), first].unsqueeze(1)).all(-1)
        counted = present.sum(dim=1) > 1
        alike = ((as_first | ~present).all(dim=1) & counted).sum()
        shares.append(torch.where(counted.any(), alike.float() / counted.sum(), -1.0))
    known = [share for share in numbers(shares) if share >= 0.0]
    return {"same_action_share": max(known)} if known else {}


def collapsed(metrics: dict[str, float], settings: AlikeSettings) -> str | None:
    """Advice where coordination has collapsed: agents of a kind, who could share out roles, all do the same.

    Source: MAGPO's failure signatures, with the remedy "ensure conditioning on a_{<i} is working".
    """
    if metrics.get("same_action_share", 0.0) <= _ALIKE:
        return None
    remedies = []
    if settings.guider == "factorised":
        remedies.append("set algorithm.guider=mat (or sable), whose agents know what those before them have chosen")
    if not settings.agent_identity:
        remedies.append("set algorithm.agent_identity=true, so that a shared network can tell agents apart")
    elif settings.share_parameters:
        remedies.append("set algorithm.share_parameters=false, so that local policies can differ")
    if not settings.shuffle_agents:
        remedies.append("set algorithm.shuffle_agents=true")
    remedies.append("raise algorithm.entropy_coefficient, so that the guider goes on trying what differs")
    return (
        f"coordination may have collapsed: in more than {_ALIKE:.0%} of the steps all agents of a kind do the same. "
        f"Unless the task wants just that, {'; '.join(remedies)}"
    )
