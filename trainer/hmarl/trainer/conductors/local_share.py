"""Environments in which the local conductors conduct the rollouts, as they do when deployed.

In a share of the environments every agent acts under its own M^i ∼ ψ^i(·|o^i), all drawn with the same numbers. What is
learnt there is how to act under what will be deployed: those samples weigh 1 in the agents' surrogates, and say nothing
of the central conductor, who takes its step on the others.

Source: this project's own, between HCPO's Algorithm 1, where the central conductor conducts all rollouts, and the local
conductors' rollouts in notes on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.conductors.level import LOCALLY, OWN_BEFORE, ConductorLevel, InForce
from hmarl.trainer.contract.acting import LocalActing
from hmarl.trainer.experience.rollout import Decision, Rollout

_OWN = "own_instructions."


class LocalShare:
    """Who is conducted locally, and by what.

    Args:
        acting: the team below.
        conductor: the level above it, with local conductors.
        share: of the environments, the first ones, in the next rollout.

    Attributes:
        share: the same.
        part: where it acts in a part of a run's environments, the first of them, and how many there are in all.
    """

    def __init__(self, acting: LocalActing, conductor: ConductorLevel, share: float) -> None:
        assert conductor.local is not None
        self.share = share
        self.part: tuple[int, int] | None = None
        self._acting, self._actors = acting, acting.actors
        self._conductor, self._local = conductor, conductor.local
        self._own: list[Tensor] = []

    @torch.no_grad()
    def act(self, observation: Observation, step: int, central: InForce, decided: Tensor, noise: Tensor) -> Decision:
        """The team's actions, every agent's under its own instruction.

        Args:
            observation: tensors on the training device.
            step: of the rollout.
            central: what the central conductor has put in force.
            decided: [B] bool, where instructions are renewed.
            noise: [B, K] or [B, D], the same for all agents.

        Returns:
            With ``locally`` [B] bool and the instruction of each agent, per group [B, N_group, ...], to be recorded.
        """
        batch_size = len(decided)
        first, environments = self.part or (0, batch_size)
        place = first + torch.arange(batch_size, device=decided.device)
        locally = place < locally_conducted(self.share, environments)
        record, own = {LOCALLY: locally}, []
        for g, seen in enumerate(self._actors.normalised(observation.observations)):
            last = self._before(g, central, seen.shape[1])
            drawn = self._local.drawn(g, seen, noise, last)
            everywhere = central.instruction.unsqueeze(1).expand_as(drawn)
            held = self._own[g] if self._holds(batch_size) else drawn
            if last is not None:
                record[f"{OWN_BEFORE}{g}"] = last
            theirs = torch.where(_fit(decided, drawn), drawn, held)
            own.append(torch.where(_fit(locally, drawn), theirs, everywhere))
            record[f"{_OWN}{g}"] = own[g]
        self._own = own
        decision = self._acting.act_in_context(observation, step, [self._conductor.seen_of(each) for each in own])
        decision.extras |= record
        return decision

    def _holds(self, batch_size: int) -> bool:
        """Whether instructions of the step before are there."""
        return bool(self._own) and len(self._own[0]) == batch_size

    def _before(self, group: int, central: InForce, members: int) -> Tensor | None:
        """[B, N_group, K] or [B, N_group, D] what was seen of the instruction before, zeros where an episode begins;
        None for local conductors that do not remember.
        """
        if not self._local.remember:
            return None
        if not self._holds(len(central.step)):
            size = self._conductor.head.output_size
            return torch.zeros(len(central.step), members, size, device=central.step.device)
        seen = self._conductor.seen_of(self._own[group])
        return seen * _fit(central.step > 1, seen)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """The share, and the mean team reward of a step under each kind of conductor, where there is one."""
        locally = rollout.extras[LOCALLY]
        shown = {"local_share": float(locally.float().mean())}
        for name, part in (("local", locally), ("central", ~locally)):
            if bool(part.any()):
                shown[f"step_reward/{name}"] = float(rollout.team_rewards[part].mean())
        return shown

    def state(self) -> dict[str, Tensor]:
        """The share and the agents' own instructions."""
        own = {f"{_OWN}{g}": instruction for g, instruction in enumerate(self._own)}
        return {"local_share": torch.tensor(self.share, dtype=torch.float64), **own}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.share = float(state["local_share"])
        groups = range(len(self._actors.spec.groups))
        self._own = [state[f"{_OWN}{g}"].clone() for g in groups if f"{_OWN}{g}" in state]


def locally_conducted(share: float, environments: int) -> int:
    """How many of the environments the local conductors conduct: the share, to the nearest whole number."""
    return round(share * environments)


def own_instructions(rollout: Rollout) -> Sequence[Tensor] | None:
    """Per group [T, B, N_group, ...] the instruction of each agent; None where all rollouts are conducted centrally."""
    if LOCALLY not in rollout.extras:
        return None
    return [rollout.extras[f"{_OWN}{g}"] for g in range(len(rollout.spec.groups))]


def conducted_locally(rollout: Rollout) -> Tensor | None:
    """[T, B] bool: who was conducted locally; None where all rollouts are conducted centrally."""
    return rollout.extras.get(LOCALLY)


def _fit(rows: Tensor, values: Tensor) -> Tensor:
    """[B] as [B, 1, ...] beside ``values`` [B, N_group, ...]."""
    return rows.view(-1, *(1,) * (values.dim() - 1))
