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
λ-returns instead of one-step targets; double Q-learning; see docs/algorithms/maven.md.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.algorithm import Algorithm, StateDict
from hmarl.trainer.contract.deployable import DeployablePolicy, Instructing
from hmarl.trainer.contract.fixed import FixedPreference
from hmarl.trainer.experience.replay import Rows
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.learning.advice import given
from hmarl.trainer.learning.metrics import mean_metrics
from hmarl.trainer.learning.reward_scale import runaway_advice
from hmarl.trainer.mixing.acting import EpsilonGreedyActing, LatentActing, one_hot
from hmarl.trainer.mixing.latent import LatentPolicy, latent_log_likelihood
from hmarl.trainer.mixing.mixer import MonotoneMixer
from hmarl.trainer.mixing.replayed import ReplayedFragments
from hmarl.trainer.mixing.settings import MixingFields, UtilityFields
from hmarl.trainer.mixing.team_value import Batch, TeamValue
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.optimiser import FlatAdam, descend_all
from hmarl.trainer.networks.settings import AlgorithmSettings, HiddenSizes
from hmarl.trainer.records.plots import Panel, PanelPlot, Plot


class MavenSettings(UtilityFields, MixingFields, AlgorithmSettings):
    """Settings of MAVEN."""

    latents: int = Field(4, ge=1, description="K, the number of latents; 1 is QMIX")
    latent_hidden_sizes: HiddenSizes = Field((64,), description="hidden layers of π(z|s₀) and of the discriminator")
    latent_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for π(z|s₀)")
    latent_entropy_coefficient: float = Field(0.03, ge=0, description="weight of the latents' entropy")
    mutual_information_coefficient: float = Field(0.01, ge=0, description="weight of log q(z|τ) in the loss")


class Maven(Algorithm):
    """Latent-conditioned QMIX, off-policy: monotone mixing, a latent per episode, a mutual-information bonus."""

    settings_class: ClassVar[type[AlgorithmSettings]] = MavenSettings
    discrete_only: ClassVar[bool] = True
    greedy: ClassVar[bool] = True
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
        mixer = MonotoneMixer(
            len(spec.agents),
            spec.state_size + settings.latents,
            settings.mixing_hidden_sizes,
            settings.mixing_embedding,
            settings.activation,
        )
        self.value = TeamValue(self.actors, self.state_normaliser, mixer, settings, generator)
        behaviour_size = sum(policy.members * policy.head.output_size for policy in self.policies)
        self.discriminator = Mlp(
            behaviour_size + spec.state_size, settings.latent_hidden_sizes, settings.latents, settings.activation
        )
        self.discriminator_theta = self.discriminator.initialise(generator).to(device)
        self.discriminator_optimiser = FlatAdam(
            self.discriminator_theta, settings.learning_rate, settings.max_gradient_norm
        )
        self.fragments = ReplayedFragments(settings, self.noise_generator)
        agents = EpsilonGreedyActing(self.local_acting, self.fragments.exploration, self.noise_generator)
        self.acting = self.under_latents = LatentActing(
            agents, self.latent_policy, self.state_normaliser, self.noise_generator
        )

    @property
    def context_size(self) -> int:
        """K, the width of the one-hot latent."""
        return self.settings.latents

    # --- learning ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Store the rollout, improve π(z|s₀) on its episodes, and everything else on replayed fragments."""
        schedule = self.schedule(progress)
        # 2: the rollout's fragments of episodes go to the replay buffer
        self.fragments.store(rollout, without=("extras.first_state", "extras.earned"))  # of π(z|s₀) alone
        self.update_normalisers(rollout)
        self.value.scale.update(rollout)
        # 3: π(z|s₀) climbs the returns of the episodes that ended
        returns, earned = episode_returns(rollout)
        self.under_latents.earn(earned)
        ended = rollout.ended & returns.isfinite()
        first_states = self.state_normaliser(rollout.extras["first_state"][ended])
        metrics = self.latent_policy.learn(first_states, rollout.extras["latent"][ended], returns[ended], schedule)
        metrics |= self.fragments.metrics()
        # 4: utilities, mixing and discriminator on fragments drawn from the buffer
        return metrics | mean_metrics(self._improve(rows, schedule) for rows in self.fragments.draws())

    def pass_over(self, rollout: Rollout) -> None:
        """What running episodes earned in it stays theirs: where that was not finite, neither is their return."""
        super().pass_over(rollout)
        _, earned = episode_returns(rollout)
        self.under_latents.earn(earned)

    def _improve(self, rows: Rows, schedule: float) -> dict[str, Tensor]:
        """One gradient step on fragments drawn from the replay buffer; the targets follow."""
        batch = self.prepare(rows)
        utilities = self.value.utilities(self.value.learnt, batch)
        loss, metrics = self.loss(
            self.value.learnt,
            self.discriminator_optimiser.parameter,
            batch,
            rows["extras.latent"],
            utilities,
            self.value.lambda_returns(batch, utilities),
        )
        norm = descend_all([*self.value.optimisers, self.discriminator_optimiser], loss, schedule)
        self.value.follow()
        return metrics | {"gradient_norm": norm}

    def prepare(self, rows: Rows) -> Batch:
        """Replayed fragments as the networks want them, the latent beside what is seen; ``rows`` as
        ``cut_into_fragments`` returns them.
        """
        return self.value.prepare(rows, one_hot(rows["extras.latent"], self.settings.latents))

    def loss(
        self,
        learnt: list[Tensor],
        discriminator: Tensor,
        batch: Batch,
        latents: Tensor,
        utilities: list[Categorical],
        targets: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to be descended: E[(Q_tot − y)²] − c_MI · E[log q(z|τ)], over valid steps and fragments.

        Args:
            learnt: parameters of the utilities per group, and of the mixer.
            discriminator: parameters of q.
            batch: b fragments.
            latents: [b] int64, z.
            utilities: under ``learnt``.
            targets: [L, b] y.

        Returns:
            The loss and its parts.
        """
        td_loss, metrics = self.value.td_loss(learnt, batch, utilities, targets)
        guessed = latent_log_likelihood(
            self.discriminator,
            discriminator,
            self._behaviour(utilities, batch)[:-1],
            batch.states[:-1],
            batch.valid.float(),
            latents,
        ).mean()
        metrics |= {"latent_log_likelihood": guessed.detach()}
        return td_loss - self.settings.mutual_information_coefficient * guessed, metrics

    def _behaviour(self, utilities: list[Categorical], batch: Batch) -> Tensor:
        """[L + 1, b, ΣN_g·A] all agents' softmaxed utilities, 0 for agents that are not there."""
        present, parts = batch.present.permute(2, 0, 1), []
        for group, distribution in zip(self.spec.groups, utilities, strict=True):
            theirs = distribution.log_probs.exp() * present[on_device(group.agents, present.device)].unsqueeze(-1)
            parts.append(theirs.permute(1, 2, 0, 3).flatten(2))
        return torch.cat(parts, dim=-1)

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """Values that run away."""
        return given(runaway_advice(metrics, self.settings.gamma, self.settings.normalise_values))

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
            # A latent that is never drawn any more is as unlikely as can be said, and not impossible: -inf is no logit.
            instructing=Instructing.of(FixedPreference(self.latent_policy.mean.clamp(min=1e-30).log()), interval=None),
            greedy=self.greedy,
        )

    def components(self) -> StateDict:
        """The shared parts, π(z|s₀), mixer, discriminator, target networks, optimisers and counters."""
        parts = super().components() | self.value.components() | self.fragments.components()
        return parts | {
            "latent_policy": self.latent_policy,
            "discriminator": self.discriminator_theta,
            f"optimisers.{len(self.value.optimisers)}": self.discriminator_optimiser,
        }

    def experience(self) -> StateDict:
        """The replay buffer."""
        return self.fragments.experience()


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
