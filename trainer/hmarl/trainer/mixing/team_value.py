"""The team's value as a mixture of the agents' utilities, learnt from replayed fragments of episodes.

What VDN, QMIX and MAVEN have in common: the utilities and the mixer, their target networks, the λ-returns that they
regress on, and one gradient step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.experience.replay import Rows
from hmarl.trainer.learning.returns import generalised_advantages
from hmarl.trainer.learning.reward_scale import RewardScale
from hmarl.trainer.mixing.mixer import Mixer
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.flat import Memory
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.networks.optimiser import FlatAdam, descend_all
from hmarl.trainer.networks.policies import by_group, memory_along


class UtilitySettings(Protocol):
    """The settings that a team's value reads."""

    gamma: float
    td_lambda: float
    learning_rate: float
    max_gradient_norm: float
    target_rate: float
    normalise_values: bool


@dataclass(frozen=True)
class Batch:
    """b replayed fragments of L steps, ready for the networks; time comes first.

    Attributes:
        inputs: per group [N_g, (L + 1)·b, input_size].
        masks: per group bool [N_g, (L + 1)·b, A], or None.
        memories: how a group's rows follow one another, None without memory.
        actions: per group [N_g, L, b].
        present: [L + 1, b, N] float32, 0 for agents that are not there.
        states: [L + 1, b, state_size] normalised.
        context: [L + 1, b, C], what the mixing depends on: the state, and what all agents see alike.
        rewards: [L, b] the team's, scaled.
        terminated, valid: [L, b] bool.
    """

    inputs: list[Tensor]
    masks: list[Tensor | None]
    memories: list[Memory | None]
    actions: list[Tensor]
    present: Tensor
    states: Tensor
    context: Tensor
    rewards: Tensor
    terminated: Tensor
    valid: Tensor


class TeamValue:
    """Q_tot(s, a) = mix( Q¹(o¹, a¹), …, Qᴺ(oᴺ, aᴺ) ; s ).

    Args:
        actors: the utilities Qⁱ, as the logits of policies; their parameters are learnt in place.
        state_normaliser: of what the mixing depends on.
        mixer: of the utilities.
        settings: of the targets and steps.
        generator: CPU generator of the mixer's initial weights.

    Attributes:
        thetas: what is learnt: the utilities per group, then the mixer's parameters where it has any.
        targets: of the target networks, likewise.
        optimisers: likewise.
        scale: of the rewards.
    """

    def __init__(
        self,
        actors: Actors,
        state_normaliser: RunningNormaliser,
        mixer: Mixer,
        settings: UtilitySettings,
        generator: torch.Generator,
    ) -> None:
        self.spec: EnvironmentSpec = actors.spec
        self.actors, self.policies, self.mixer, self.settings = actors, actors.policies, mixer, settings
        self.state_normaliser = state_normaliser
        weights = mixer.initialise(generator)
        self.thetas = [policy.theta for policy in self.policies]
        self.thetas += [] if weights is None else [weights.to(actors.device)]
        self.optimisers = [FlatAdam(each, settings.learning_rate, settings.max_gradient_norm) for each in self.thetas]
        self.targets = [theta.clone() for theta in self.thetas]
        self.scale = RewardScale(settings.gamma, self.spec, actors.device, settings.normalise_values)
        order = [agent for group in self.spec.groups for agent in group.agents]
        self._agent_order = torch.tensor(order, device=actors.device).argsort()

    @property
    def learnt(self) -> list[Tensor]:
        """``thetas`` as parameters, of which losses have gradients."""
        return [optimiser.parameter for optimiser in self.optimisers]

    # --- what it says -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, rows: Rows, context: Tensor | None = None) -> Batch:
        """Replayed fragments as the networks want them.

        Args:
            rows: as ``cut_into_fragments`` returns them.
            context: [b, K] what all agents, and the mixing, see alike in a fragment; or None.
        """
        states = self.state_normaliser(rows["states"]).transpose(0, 1)
        seen = None if context is None else context.expand(len(states), -1, -1)
        features = self.actors.normalised([rows[f"observations.{g}"] for g in range(len(self.policies))])
        inputs: list[Tensor] = []
        masks: list[Tensor | None] = []
        for g, policy in enumerate(self.policies):
            inputs.append(policy.inputs(features[g].transpose(0, 1), seen).permute(2, 0, 1, 3).flatten(1, 2))
            mask = rows.get(f"action_masks.{g}")
            masks.append(None if mask is None else mask.permute(2, 1, 0, 3).flatten(1, 2))
        return Batch(
            inputs,
            masks,
            self._memories(rows) if self.actors.recurrent else [None] * len(self.policies),
            [rows[f"actions.{g}"].permute(2, 1, 0) for g in range(len(inputs))],
            rows["active"].transpose(0, 1).float(),
            states,
            states if seen is None else torch.cat([states, seen], dim=-1),
            rows["rewards"].T * self.scale.factor,
            rows["terminated"].T,
            rows["valid"].T,
        )

    def _memories(self, rows: Rows) -> list[Memory | None]:
        """Per group what its agents remember along fragments, which begin an episode at their first step or nowhere."""
        there = by_group(self.spec.groups, rows["active"].transpose(0, 1))
        begins = torch.zeros(there[0].shape[:2], dtype=torch.bool, device=there[0].device)
        initial = [rows[f"memories.{g}"].transpose(0, 1) for g in range(len(self.policies))]
        return [memory_along(before, begins, here) for before, here in zip(initial, there, strict=True)]

    def utilities(self, thetas: Sequence[Tensor], batch: Batch) -> list[Categorical]:
        """All agents' utilities at all rows, as the logits [N_g, L + 1, b, A] of one Categorical per group; those of
        illegal actions lie below all others.

        Args:
            thetas: of the utilities per group, [N_g, P] or [1, P]; what follows them is of no matter.
            batch: b fragments.
        """
        found = []
        for policy, theta, inputs, mask, memory in zip(
            self.policies, thetas[: len(self.policies)], batch.inputs, batch.masks, batch.memories, strict=True
        ):
            distribution = policy.all_distributions(inputs, mask, memory, theta)
            assert isinstance(distribution, Categorical)
            found.append(Categorical(distribution.logits.unflatten(1, batch.states.shape[:2])))
        return found

    def _mixed(self, thetas: Sequence[Tensor], utilities: Tensor, context: Tensor) -> Tensor:
        """[...] Q_tot of utilities [..., N] that are 0 for agents who are not there."""
        weights = thetas[len(self.policies) :]
        return self.scale.offset + self.mixer(weights[0] if weights else None, utilities, context)

    def _of_agents(self, values: list[Tensor], actions: list[Tensor]) -> Tensor:
        """[L, b, N] what all agents' utilities (per group [N_g, L, b, A]) say of actions [N_g, L, b]."""
        picked = [v.gather(-1, a.unsqueeze(-1)).squeeze(-1) for v, a in zip(values, actions, strict=True)]
        return torch.cat(picked)[self._agent_order].permute(1, 2, 0)

    # --- what it learns ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def lambda_returns(self, batch: Batch, utilities: list[Categorical]) -> Tensor:
        """[L, b] the targets y = r + γ·((1 − λ)·V' + λ·y'), with y' = V' after a fragment's last step and V' = 0 after
        termination (Peng & Williams 1994).

        V is the target networks' Q_tot of the actions that the learnt utilities think best (double Q-learning).
        """
        settings, valid = self.settings, batch.valid
        values = [u.logits for u in self.utilities(self.targets, batch)]
        best = self._of_agents(values, [u.mode() for u in utilities])
        totals = self._mixed(self.targets, best * batch.present, batch.context)
        following = totals[1:].masked_fill(batch.terminated, 0.0)
        last = valid & ~torch.cat([valid[1:], torch.zeros_like(valid[:1])])
        surplus = generalised_advantages(
            batch.rewards, totals[:-1], following, last, settings.gamma, settings.td_lambda
        )
        return surplus + totals[:-1]

    def td_loss(
        self, thetas: Sequence[Tensor], batch: Batch, utilities: list[Categorical], targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar E[ (Q_tot − y)² ] over valid steps.

        Args:
            thetas: what is learnt.
            batch: b fragments.
            utilities: under ``thetas``.
            targets: [L, b] y.

        Returns:
            The loss, and metrics.
        """
        valid = batch.valid.float()
        chosen = self._of_agents([u.logits[:, :-1] for u in utilities], batch.actions)
        totals = self._mixed(thetas, chosen * batch.present[:-1], batch.context[:-1])
        loss = ((totals - targets) * valid).square().sum() / valid.sum()
        return loss, {"td_loss": loss.detach(), "q_mean": (targets * valid).sum() / valid.sum()}

    def improve(self, batch: Batch, schedule: float = 1.0) -> dict[str, Tensor]:
        """θ ← descent on E[ (Q_tot(s, a) − y)² ]; θ⁻ ← (1 − τ)·θ⁻ + τ·θ. Returns metrics."""
        utilities = self.utilities(self.learnt, batch)
        targets = self.lambda_returns(batch, utilities)
        loss, metrics = self.td_loss(self.learnt, batch, utilities, targets)
        norm = descend_all(self.optimisers, loss, schedule)
        self.follow()
        return metrics | {"gradient_norm": norm}

    @torch.no_grad()
    def follow(self) -> None:
        """The target networks take on ``target_rate`` of what has been learnt."""
        for target, theta in zip(self.targets, self.thetas, strict=True):
            target.lerp_(theta, self.settings.target_rate)

    def components(self) -> dict[str, Any]:
        """What is learnt beside the utilities, the target networks and the optimisers, as ``Algorithm.components``
        names them.
        """
        own = self.thetas[len(self.policies) :]
        parts: dict[str, Any] = {"mixer": own[0]} if own else {}
        parts["step_moments"] = self.scale.moments
        parts |= {f"targets.{index}": target for index, target in enumerate(self.targets)}
        return parts | {f"optimisers.{index}": optimiser for index, optimiser in enumerate(self.optimisers)}
