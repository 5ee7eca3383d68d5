"""What is deployed in the place of a part that sees more than one agent can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hmarl.sdk.environment import Observation


@dataclass(frozen=True)
class Visited:
    """M moments in which a team has been, of any episodes.

    Attributes:
        seen: tensors: per group [M, N_group, D], [M, state_size] and who was there, [M, N]; without action masks.
        last: per group [M, N_group, K] or [M, N_group, D], what its agents saw of their instructions before; empty
            where they do not remember.
    """

    seen: Observation
    last: Sequence[Tensor] = ()

    def __len__(self) -> int:
        return len(self.seen.state)

    @staticmethod
    def join(parts: Sequence[Visited]) -> Visited:
        """All moments, one after the other."""
        seen = [part.seen for part in parts]
        return Visited(
            Observation(
                tuple(torch.cat(blocks) for blocks in zip(*(each.observations for each in seen), strict=True)),
                (),
                torch.cat([torch.as_tensor(each.state) for each in seen]),
                torch.cat([torch.as_tensor(each.active) for each in seen]),
            ),
            [torch.cat(blocks) for blocks in zip(*(part.last for part in parts), strict=True)],
        )


@dataclass(frozen=True)
class Following:
    """How far stand-ins follow.

    Attributes:
        kl: mean KL(what sees more ‖ stand-in) in nats.
        agreement: share of equal choices; of vectors, of the variance that is met.
    """

    kl: float
    agreement: float


class StandIns(Protocol):
    """Policies that are deployed in the place of one that sees more, and learn to do as it does."""

    @property
    def thetas(self) -> list[Tensor]:
        """Their parameters, which are changed in place."""
        ...

    @property
    def remember(self) -> bool:
        """Whether they see what they have chosen before."""
        ...

    def learn(self, visited: Visited, generator: torch.Generator) -> None:
        """Learn what would be done in these moments, until it no longer helps.

        Args:
            visited: on the training device.
            generator: of the minibatches, there too.
        """
        ...

    def compare(self, visited: Visited) -> Following:
        """How far they follow in these moments."""
        ...
