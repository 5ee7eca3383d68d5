"""MAVEN: QMIX under a latent z that is drawn when an episode begins and explored by as a committed joint strategy.

Off-policy, for discrete actions. An iteration:

    1   collect: z ~ π(z|s₀) per episode; every agent takes the best action of its utility Qⁱ(oⁱ, ·; z), or with
        probability ε a random legal one
    2   store the rollout's fragments of episodes in the replay buffer
    3   π(z|s₀) climbs the returns of the episodes that ended (J_RL)
    4   several times, on fragments drawn from the buffer: utilities and mixing regress Q_tot on λ-returns (J_QL), and
        utilities and discriminator raise log q(z|τ), a bound of the mutual information of z and the trajectory (J_V)

Source: Mahajan et al. 2019, "MAVEN: Multi-Agent Variational Exploration", Algorithm 1; Rashid et al. 2018 (QMIX).
Differs: z is an input of the utilities and of the mixing (the source makes the utilities' last layer from it);
λ-returns instead of one-step targets; double Q-learning; see docs/algorithms.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.deployable import DeployablePolicy, Instructing
from hmarl.trainer.contract.fixed import FixedPreference
from hmarl.trainer.experience.replay import Replay, Rows, all_finite, cut_into_fragments
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.metrics import mean_metrics
from hmarl.trainer.learning.returns import generalised_advantages
from hmarl.trainer.mixing.acting import Exploration, LatentActing, one_hot
from hmarl.trainer.mixing.latent import LatentPolicy, latent_log_likelihood
from hmarl.trainer.mixing.mixer import MonotoneMixer
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.flat import Memory, Mlp
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import AlgorithmSettings, HiddenSizes
from hmarl.trainer.records.plots import Panel, PanelPlot, Plot


class MavenSettings(AlgorithmSettings):
    """Settings of MAVEN."""

    share_parameters: bool = Field(
        True, description="agents of a group share one network, told apart by a one-hot input"
    )
    normalise_values: bool = Field(True, description="rewards are scaled, values count from the average")
    latents: int = Field(4, ge=1, description="K, the number of latents; 1 is QMIX")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for utilities, mixing and discriminator")
    gradient_steps: int = Field(16, ge=1, description="steps on replayed fragments per rollout")
    batch_fragments: int = Field(32, ge=1, description="fragments of episodes per gradient step")
    replay_capacity: int = Field(4096, ge=1, description="fragments that are kept; all are part of every checkpoint")
    td_lambda: float = Field(0.8, ge=0, le=1, description="λ of the targets; 0 is one-step Q-learning")
    target_rate: float = Field(0.01, gt=0, le=1, description="share of the networks that the targets take on per step")
    epsilon_start: float = Field(1.0, ge=0, le=1, description="share of random actions at first")
    epsilon_final: float = Field(0.05, ge=0, le=1, description="share of random actions at last")
    exploration_steps: int = Field(50_000, ge=1, description="environment steps over which that share falls")
    mixing_embedding: int = Field(32, ge=1, description="width of the mixing network's hidden layer")
    mixing_hidden_sizes: HiddenSizes = Field((64,), description="hidden layers of the mixing hypernetwork")
    latent_hidden_sizes: HiddenSizes = Field((64,), description="hidden layers of π(z|s₀) and of the discriminator")
    latent_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for π(z|s₀)")
    latent_entropy_coefficient: float = Field(0.03, ge=0, description="weight of the latents' entropy")
    mutual_information_coefficient: float = Field(0.01, ge=0, description="weight of log q(z|τ) in the loss")


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
        context: [L + 1, b, state_size + K], what the mixing depends on.
        latent: [b] int64.
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
    latent: Tensor
    rewards: Tensor
    terminated: Tensor
    valid: Tensor


class Maven(Algorithm):
    """Latent-conditioned QMIX, off-policy: monotone mixing, a latent per episode, a mutual-information bonus."""

    settings_class: ClassVar[type[AlgorithmSettings]] = MavenSettings
    discrete_only: ClassVar[bool] = True
    live_metrics: ClassVar[tuple[str, ...]] = ("td_loss", "latent_entropy")
    plots: ClassVar[tuple[Plot, ...]] = (
        PanelPlot(
            "diagnostics.png",
            (Panel("loss of the values", ("td_loss",)), Panel("entropy of the latent (nats)", ("latent_entropy",))),
        ),
    )
    settings: MavenSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: MavenSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__(spec, settings, generator, device)
        self.latent_policy = LatentPolicy(
            spec.state_size,
            settings.latents,
            settings.latent_hidden_sizes,
            settings,
            settings.latent_learning_rate,
            settings.latent_entropy_coefficient,
            generator,
            device,
        )
        self.mixer = MonotoneMixer(
            len(spec.agents),
            spec.state_size + settings.latents,
            settings.mixing_hidden_sizes,
            settings.mixing_embedding,
            settings.activation,
        )
        self.mixer_theta = self.mixer.network.initialise(generator).to(device)
        behaviour_size = sum(policy.members * policy.head.output_size for policy in self.policies)
        self.discriminator = Mlp(
            behaviour_size + spec.state_size, settings.latent_hidden_sizes, settings.latents, settings.activation
        )
        self.discriminator_theta = self.discriminator.initialise(generator).to(device)
        learnt = [policy.theta for policy in self.policies] + [self.mixer_theta, self.discriminator_theta]
        self.optimisers = [FlatAdam(theta, settings.learning_rate, settings.max_gradient_norm) for theta in learnt]
        self.targets = [theta.clone() for theta in learnt[:-1]]  # utilities per group, mixer
        self.step_moments = RunningNormaliser((2,), device)  # reward, terminates
        self.replay = Replay(settings.replay_capacity)
        self.exploration = Exploration(
            settings.epsilon_start, settings.epsilon_final, settings.exploration_steps, device
        )
        order = [agent for group in spec.groups for agent in group.agents]
        self._agent_order = torch.tensor(order, device=device).argsort()
        self.acting = self.under_latents = LatentActing(
            self.local_acting, self.latent_policy, self.state_normaliser, self.exploration, self.noise_generator
        )

    @property
    def context_size(self) -> int:
        """K, the width of the one-hot latent."""
        return self.settings.latents

    # --- learning ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Store the rollout, improve π(z|s₀) on its episodes, and everything else on replayed fragments."""
        settings, schedule = self.settings, self.schedule(progress)
        self.exploration.frames += rollout.steps * rollout.batch_size
        # 2: the rollout's fragments of episodes go to the replay buffer
        rows = cut_into_fragments(rollout, settings.chunk_length or rollout.steps)
        if all_finite(rows):
            del rows["extras.first_state"], rows["extras.earned"]  # of π(z|s₀) alone
            self.replay.add(rows)
        self.update_normalisers(rollout)
        self.step_moments.update(torch.stack([rollout.team_rewards, rollout.terminated.float()], dim=-1).flatten(0, 1))
        # 3: π(z|s₀) climbs the returns of the episodes that ended
        returns, earned = episode_returns(rollout)
        self.under_latents.earn(earned)
        ended = rollout.ended & returns.isfinite()
        first_states = self.state_normaliser(rollout.extras["first_state"][ended])
        metrics = self.latent_policy.learn(first_states, rollout.extras["latent"][ended], returns[ended], schedule)
        metrics |= {"epsilon": self.exploration.epsilon, "replay_fragments": float(len(self.replay))}
        # 4: utilities, mixing and discriminator on fragments drawn from the buffer
        steps = settings.gradient_steps if len(self.replay) else 0
        return metrics | mean_metrics(self._improve(schedule) for _ in range(steps))

    @property
    def reward_scale(self) -> Tensor:
        """Factor on rewards, a float64 scalar: 1 / (their root mean square · √H), H being the steps over which they add
        up.
        """
        moments = self.step_moments
        if not self.settings.normalise_values:
            return torch.ones_like(moments.mean[0])
        mean_square = moments.mean[0].square() + moments.variance[0]
        discounted = 1.0 / max(1.0 - self.settings.gamma, 1e-3)
        return 1.0 / (mean_square * min(discounted, self.spec.horizon or discounted)).sqrt().clamp(min=1e-2)

    @property
    def value_offset(self) -> Tensor:
        """What an average step is worth, r̄ / (1 − γ·(1 − p)) with p the share of steps that terminate, scaled; a
        float64 scalar.

        Q_tot is this plus what the networks say. Without it values that start at 0 are optimistic where rewards are
        negative: whatever was seen least looks best, and the agents flee to where nothing has been learnt. It depends
        on no value, so that it cannot drive the values that depend on it.
        """
        reward, terminates = self.step_moments.mean.unbind()
        if not self.settings.normalise_values:
            return torch.zeros_like(reward)
        return self.reward_scale * reward / (1.0 - self.settings.gamma * (1.0 - terminates)).clamp(min=1e-3)

    def _improve(self, schedule: float) -> dict[str, Tensor]:
        """One gradient step on fragments drawn from the replay buffer; the targets follow."""
        batch = self.prepare(self.replay.sample(self.settings.batch_fragments, self.noise_generator))
        parameters: list[Tensor] = [optimiser.parameter for optimiser in self.optimisers]
        utilities = self.utilities(parameters[:-2], batch)
        loss, metrics = self.loss(parameters, batch, utilities, self.lambda_returns(batch, utilities))
        norms = [
            optimiser.descend(gradient, schedule)
            for optimiser, gradient in zip(self.optimisers, torch.autograd.grad(loss, parameters), strict=True)
        ]
        with torch.no_grad():
            for target, parameter in zip(self.targets, parameters[:-1], strict=True):
                target.lerp_(parameter, self.settings.target_rate)
        return metrics | {"gradient_norm": torch.stack(norms).max()}

    @torch.no_grad()
    def prepare(self, rows: Rows) -> Batch:
        """Replayed fragments as the networks want them; ``rows`` as ``cut_into_fragments`` returns them."""
        states = self.state_normaliser(rows["states"]).transpose(0, 1)
        latent = rows["extras.latent"]
        length, size = states.shape[:2]
        context = one_hot(latent, self.settings.latents).expand(length, -1, -1)
        inputs: list[Tensor] = []
        masks: list[Tensor | None] = []
        memories: list[Memory | None] = []
        for g, policy in enumerate(self.policies):
            features = self.observation_normalisers[g](rows[f"observations.{g}"]).transpose(0, 1)
            inputs.append(policy.inputs(features, context).permute(2, 0, 1, 3).flatten(1, 2))
            mask = rows.get(f"action_masks.{g}")
            masks.append(None if mask is None else mask.permute(2, 1, 0, 3).flatten(1, 2))
            kept = torch.ones(1, length, size, 1, device=self.device)
            memories.append(Memory(rows[f"memories.{g}"].transpose(0, 1), kept) if self.settings.recurrent else None)
        return Batch(
            inputs,
            masks,
            memories,
            [rows[f"actions.{g}"].permute(2, 1, 0) for g in range(len(inputs))],
            rows["active"].transpose(0, 1).float(),
            states,
            torch.cat([states, context], dim=-1),
            latent,
            rows["rewards"].T * self.reward_scale.float(),
            rows["terminated"].T,
            rows["valid"].T,
        )

    def loss(
        self, learnt: list[Tensor], batch: Batch, utilities: list[Categorical], targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to be descended: E[(Q_tot − y)²] − c_MI · E[log q(z|τ)], over valid steps and fragments.

        Args:
            learnt: parameters of the utilities per group, of the mixer and of the discriminator.
            batch: b fragments.
            utilities: under ``learnt``.
            targets: [L, b] y.

        Returns:
            The loss and its parts.
        """
        valid = batch.valid.float()
        chosen = self._of_agents([u.logits[:, :-1] for u in utilities], batch.actions)
        totals = self.value_offset.float() + self.mixer(learnt[-2], chosen * batch.present[:-1], batch.context[:-1])
        td_loss = ((totals - targets) * valid).square().sum() / valid.sum()
        guessed = latent_log_likelihood(
            self.discriminator,
            learnt[-1],
            self._behaviour(utilities, batch)[:-1],
            batch.states[:-1],
            valid,
            batch.latent,
        ).mean()
        q_mean = (targets * valid).sum() / valid.sum()
        metrics = {"td_loss": td_loss.detach(), "latent_log_likelihood": guessed.detach(), "q_mean": q_mean}
        return td_loss - self.settings.mutual_information_coefficient * guessed, metrics

    def utilities(self, thetas: list[Tensor], batch: Batch) -> list[Categorical]:
        """All agents' utilities at all rows, as the logits [N_g, L + 1, b, A] of one Categorical per group; those of
        illegal actions lie below all others.

        Args:
            thetas: parameters per group, [N_g, P] or [1, P].
            batch: b fragments.
        """
        found = []
        for policy, theta, inputs, mask, memory in zip(
            self.policies, thetas, batch.inputs, batch.masks, batch.memories, strict=True
        ):
            distribution = policy.all_distributions(inputs, mask, memory, theta)
            assert isinstance(distribution, Categorical)
            found.append(Categorical(distribution.logits.unflatten(1, batch.states.shape[:2])))
        return found

    def _of_agents(self, values: list[Tensor], actions: list[Tensor]) -> Tensor:
        """[L, b, N] what all agents' utilities (per group [N_g, L, b, A]) say of actions [N_g, L, b]."""
        picked = [v.gather(-1, a.unsqueeze(-1)).squeeze(-1) for v, a in zip(values, actions, strict=True)]
        return torch.cat(picked)[self._agent_order].permute(1, 2, 0)

    @torch.no_grad()
    def lambda_returns(self, batch: Batch, utilities: list[Categorical]) -> Tensor:
        """[L, b] the targets y = r + γ·((1 − λ)·V' + λ·y'), with y' = V' after a fragment's last step and V' = 0 after
        termination (Peng & Williams 1994).

        V is the target networks' Q_tot of the actions that the learnt utilities think best (double Q-learning).
        """
        settings, valid = self.settings, batch.valid
        values = [u.logits for u in self.utilities(self.targets[:-1], batch)]
        best = self._of_agents(values, [u.mode() for u in utilities])
        totals = self.value_offset.float() + self.mixer(self.targets[-1], best * batch.present, batch.context)
        following = totals[1:].masked_fill(batch.terminated, 0.0)
        last = valid & ~torch.cat([valid[1:], torch.zeros_like(valid[:1])])
        surplus = generalised_advantages(
            batch.rewards, totals[:-1], following, last, settings.gamma, settings.td_lambda
        )
        return surplus + totals[:-1]

    def _behaviour(self, utilities: list[Categorical], batch: Batch) -> Tensor:
        """[L + 1, b, ΣN_g·A] all agents' softmaxed utilities, 0 for agents that are not there."""
        present, parts = batch.present.permute(2, 0, 1), []
        for group, distribution in zip(self.spec.groups, utilities, strict=True):
            theirs = distribution.log_probs.exp() * present[on_device(group.agents, present.device)].unsqueeze(-1)
            parts.append(theirs.permute(1, 2, 0, 3).flatten(2))
        return torch.cat(parts, dim=-1)

    # --- deployment and persistence ---------------------------------------------------------------------------------

    def deployable(self, agent: int) -> DeployablePolicy:
        """The greedy policy of the agent's utility. Its latent is drawn once per episode from the common random numbers
        under the mean of π(z|s₀), the same for all agents; without sampling it is the likeliest one.
        """
        group, member = self.position[agent]
        return DeployablePolicy.create(
            self.spec.agents[agent],
            normaliser=self.observation_normalisers[group],
            policy=self.policies[group],
            member=member,
            instructing=Instructing.of(FixedPreference(self.latent_policy.mean.log()), interval=None),
            greedy=True,
        )

    def components(self) -> StateDict:
        """The shared parts, π(z|s₀), mixer, discriminator, target networks, optimisers and counters."""
        parts = super().components() | {
            "latent_policy": self.latent_policy,
            "mixer": self.mixer_theta,
            "discriminator": self.discriminator_theta,
            "step_moments": self.step_moments,
            "frames": self.exploration.frames,
        }
        parts |= {f"targets.{index}": target for index, target in enumerate(self.targets)}
        return parts | {f"optimisers.{index}": optimiser for index, optimiser in enumerate(self.optimisers)}

    def experience(self) -> StateDict:
        """The replay buffer."""
        return {"replay": self.replay}


def episode_returns(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """[T, B] what each running episode has earned up to each step, earlier rollouts included; and [B] what those that
    still run have earned at the end.
    """
    earned, returns = rollout.extras["earned"][0], torch.empty_like(rollout.team_rewards)
    for t in range(rollout.steps):
        earned = earned + rollout.team_rewards[t]
        returns[t] = earned
        earned = earned.masked_fill(rollout.ended[t], 0.0)
    return returns, earned
