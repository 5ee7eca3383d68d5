"""The level above the agents that draws one latent per episode, and the one below that guesses it from what they do.

Source: Mahajan et al. 2019, "MAVEN: Multi-Agent Variational Exploration", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.learning.metrics import read
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.normalisation import ValueNormaliser
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.settings import AlgorithmSettings

# Share of the latest episodes in the recorded mean distribution, per update.
_MEAN_RATE = 0.05


class LatentPolicy:
    """π(z | s₀) over K latents, improved by policy gradient on whole episodes' returns, with a learnt baseline b(s₀).

    Args:
        state_size: width of the state.
        latents: K.
        hidden_sizes: hidden layers.
        settings: activation, gradient norm and whether returns are normalised.
        learning_rate: Adam's step size.
        entropy_coefficient: weight of the entropy bonus.
        generator: CPU generator of the initial weights.

    Attributes:
        mean: [K] running mean of π(·|s₀) over the start states of training: what stands in for π where s₀ is not known.
    """

    def __init__(
        self,
        state_size: int,
        latents: int,
        hidden_sizes: Sequence[int],
        settings: AlgorithmSettings,
        learning_rate: float,
        entropy_coefficient: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.latents, self.entropy_coefficient = latents, entropy_coefficient
        self.network = Mlp(state_size, hidden_sizes, latents + 1, settings.activation)  # the last output is b(s₀)
        self.theta = self.network.initialise(generator).to(device)
        self.optimiser = FlatAdam(self.theta, learning_rate, settings.max_gradient_norm)
        self.normaliser = ValueNormaliser(device, settings.normalise_values)
        self.mean = torch.full((latents,), 1.0 / latents, device=device)

    def distribution(self, states: Tensor) -> Categorical:
        """π(·|s₀) of normalised states [..., state_size]."""
        return Categorical(self.network(self.theta, states)[..., :-1])

    def loss(self, theta: Tensor, states: Tensor, latents: Tensor, returns: Tensor) -> Tensor:
        """Scalar −E[ (G − b(s₀)) · log π(z|s₀) ] − c·H + ½ E[ (G − b(s₀))² ] (MAVEN, J_RL; Williams 1992).

        Args:
            theta: [P].
            states: [E, state_size] normalised start states.
            latents: [E] int64, the latents in force.
            returns: [E] normalised episode returns G.
        """
        output = self.network(theta, states)
        distribution, baseline = Categorical(output[:, :-1]), output[:, -1]
        surplus = returns - baseline
        objective = (surplus.detach() * distribution.log_prob(latents)).mean()
        bonus = self.entropy_coefficient * distribution.entropy().mean()
        return -objective - bonus + 0.5 * surplus.square().mean()

    def learn(self, states: Tensor, latents: Tensor, returns: Tensor, schedule: float) -> dict[str, float]:
        """One step on the episodes that have just ended; the arguments are those of ``loss``, returns in their own
        units.
        """
        if not len(returns):
            return {}
        self.normaliser.update(returns)
        loss = self.loss(self.optimiser.parameter, states, latents, self.normaliser.normalise(returns))
        self.optimiser.step(loss, schedule)
        with torch.no_grad():
            distribution = self.distribution(states)
            self.mean.lerp_(distribution.log_probs.exp().mean(0), _MEAN_RATE)
            return read({"latent_entropy": distribution.entropy().mean(), "latent_mean_max": self.mean.max()})

    def state_dict(self) -> dict[str, Tensor | dict[str, Tensor]]:
        """Parameters, optimiser, moments of the returns and the mean distribution."""
        return {
            "theta": self.theta,
            "optimiser": self.optimiser.state_dict(),
            "normaliser": {"moments": self.normaliser.moments},
            "mean": self.mean,
        }

    def load_state_dict(self, state: dict[str, Tensor | dict[str, Tensor]]) -> None:
        """Restore what ``state_dict`` returned."""
        theta, mean, normaliser = state["theta"], state["mean"], state["normaliser"]
        optimiser = state.get("optimiser", {})
        assert isinstance(theta, Tensor)
        assert isinstance(mean, Tensor)
        assert isinstance(normaliser, dict)
        assert isinstance(optimiser, dict)
        self.theta.copy_(theta)
        self.mean.copy_(mean)
        self.normaliser.moments = normaliser["moments"].clone()
        self.optimiser.load_state_dict(optimiser)


def latent_log_likelihood(
    network: Mlp, theta: Tensor, behaviour: Tensor, states: Tensor, valid: Tensor, latents: Tensor
) -> Tensor:
    """[b] log q(z | τ), the variational term of the mutual information between the latent and the trajectory.

    I(z; τ) ≥ H(z) + E[ log q(z|τ) ] for every q (MAVEN, J_V), so that raising the likelihood raises the bound, both by
    a better guess and by behaviour that is easier to tell apart.

    Differs: q's logits are the mean over the steps of a network's outputs; the source's read the steps by a recurrent
    network.

    Args:
        network: of q, behaviour_size + state_size → K.
        theta: [P] its parameters.
        behaviour: [L, b, behaviour_size] all agents' softmaxed utilities.
        states: [L, b, state_size] normalised.
        valid: [L, b] float32, 0 where the trajectory is padded.
        latents: [b] int64.
    """
    outputs = network(theta, torch.cat([behaviour, states], dim=-1)) * valid.unsqueeze(-1)
    logits = outputs.sum(0) / valid.sum(0).clamp(min=1.0).unsqueeze(-1)
    return -functional.cross_entropy(logits, latents, reduction="none")
