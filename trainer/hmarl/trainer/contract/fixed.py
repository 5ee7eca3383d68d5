"""What deployed policies are put together from: parts of what was learnt, with their parameters copied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmarl.trainer.networks.flat import Mlp, RecurrentNetwork
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.networks.policies import GroupPolicy, role


class FixedNormaliser(nn.Module):
    """(x − shift) · scale, cut off at ± clip; of no size: pictures, which pass as they are."""

    def __init__(self, shift: Tensor, scale: Tensor, clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", shift.detach().cpu().clone())
        self.register_buffer("scale", scale.detach().cpu().clone())

    @classmethod
    def of(cls, normaliser: RunningNormaliser, rows: int = 1, row: int = 0) -> FixedNormaliser:
        """One row of a normaliser's statistics [rows, size], or [1, size] which all rows have in common."""
        if not normaliser.enabled:
            return cls(torch.zeros(normaliser.mean.shape[-1]), torch.ones(normaliser.mean.shape[-1]), float("inf"))
        size = normaliser.mean.shape[-1]
        shift, scale = (each.expand(rows, size)[row] for each in (normaliser.shift, normaliser.scale))
        return cls(shift, scale, normaliser.clip)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, size] -> [batch, size]."""
        if not len(self.shift):
            return x
        x = (x - self.shift) * self.scale
        return x if self.clip == float("inf") else x.clamp(-self.clip, self.clip)


class FixedNetwork(nn.Module):
    """One row of a ``GroupPolicy`` with its parameters copied, as an ordinary module.

    Args:
        network: its structure.
        theta: [P] its parameters.
        identity: [N] that is appended to its input, or None.
        role: [K] in which order it sees the last K numbers of its input, or None: as they come.
    """

    def __init__(
        self,
        network: Mlp | RecurrentNetwork,
        theta: Tensor,
        identity: Tensor | None = None,
        role: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        parameters = network.named(theta.detach().cpu().clone())
        self.weights = nn.ParameterDict(
            {key.replace(".", "_"): nn.Parameter(value.contiguous(), False) for key, value in parameters.items()}
        )
        self.identity: Tensor | None
        self.register_buffer("identity", identity)
        self.role: Tensor | None
        self.register_buffer("role", role)

    @classmethod
    def of(cls, policy: GroupPolicy, member: int) -> FixedNetwork:
        """The network of one member; what tells it apart, where several share one, is built in."""
        identity = torch.eye(policy.members)[member] if policy.told_apart else None
        of_member = torch.tensor(role(policy.roles, member)) if policy.roles else None
        return cls(policy.network, policy.row(member)[: policy.network.size], identity, of_member)

    @property
    def output_size(self) -> int:
        """Number of outputs."""
        return self.network.output_size

    def forward(self, x: Tensor) -> Tensor:
        """[batch, input_size without identity] -> [batch, output_size]; of a network without memory."""
        assert isinstance(self.network, Mlp)
        return self.network.apply(self._named(), self._told_apart(x))

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a recurrent network, which also takes and returns its memory [batch, H]."""
        assert isinstance(self.network, RecurrentNetwork)
        return self.network.step(self._named(), self._told_apart(x), memory)

    def _named(self) -> dict[str, Tensor]:
        return {name: self.weights[name.replace(".", "_")] for name in self.network.shapes}

    def _told_apart(self, x: Tensor) -> Tensor:
        if self.role is not None:
            rest = x.shape[-1] - len(self.role)
            x = torch.cat([x[:, :rest], x[:, rest:].index_select(-1, self.role)], dim=-1)
        return x if self.identity is None else torch.cat([x, self.identity.expand(x.shape[0], -1)], dim=-1)


class FixedPreference(nn.Module):
    """Chooses an instruction without looking: the same logits [K] whatever is observed."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits: Tensor
        self.register_buffer("logits", logits.detach().cpu().clone())

    @property
    def output_size(self) -> int:
        """K."""
        return self.logits.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> [batch, K]."""
        return self.logits.expand(x.shape[0], -1)


def clock(step: Tensor, horizon: int) -> Tensor:
    """What conductors see of the step [...] int64: 2 t / (t + horizon), [...] float32 in [0, 2), and 1 at the horizon.

    It is bounded, and grows for ever, however long an episode lasts.
    """
    t = step.float()
    return 2.0 * t / (t + float(horizon))


class CommonSight(nn.Module):
    """What every agent's copy of a common-knowledge conductor sees: common numbers of the observation, and the clock.

    Args:
        places: [C] int64, where the numbers lie in the agent's observation.
        known: [C] bool, which of them are relied upon; the others are 0.
        normaliser: of the numbers.
        horizon: of the clock.
    """

    def __init__(self, places: Tensor, known: Tensor, normaliser: FixedNormaliser, horizon: int) -> None:
        super().__init__()
        self.normaliser, self.horizon = normaliser, horizon
        self.places: Tensor
        self.known: Tensor
        self.register_buffer("places", places.cpu().clone())
        self.register_buffer("known", known.cpu().float())

    def forward(self, observation: Tensor, step: Tensor) -> Tensor:
        """[batch, observation_size] raw and [batch] int64 -> [batch, C + 1]."""
        now = clock(step, self.horizon).unsqueeze(-1)
        if not len(self.places):
            return now
        return torch.cat([self.normaliser(observation[:, self.places]) * self.known, now], dim=-1)
