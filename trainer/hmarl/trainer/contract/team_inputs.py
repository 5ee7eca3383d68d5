"""What every team that plays with the trainer's policies does alike: seeds, noise, tensors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.networks.distributions import ActionHead


class ActsInGroups(Protocol):
    """Whatever acts for groups of agents with equal spaces."""

    @property
    def spec(self) -> EnvironmentSpec:
        """The environment."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it acts."""
        ...

    @property
    def heads(self) -> list[ActionHead]:
        """What turns outputs into actions, one a group."""
        ...


def drawn_noise(acts: ActsInGroups, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """One step's action noise, per group [N_group, B, A] on the training device; the generator is on the CPU."""
    return [
        head.draw_perturbations((len(group.agents), batch_size), generator).to(acts.device)
        for group, head in zip(acts.spec.groups, acts.heads, strict=True)
    ]


def joint_seed(seeds: npt.NDArray[np.int64]) -> int:
    """One seed of all episodes' seeds."""
    seed = np.random.SeedSequence(np.asarray(seeds, dtype=np.uint64).tolist()).generate_state(1, np.uint64)[0]
    return int(seed >> np.uint64(1))


def as_tensors(observation: Observation, device: torch.device) -> Observation:
    """The same observation as tensors on a device."""
    return Observation(
        tuple(torch.as_tensor(o, device=device) for o in observation.observations),
        tuple(None if m is None else torch.as_tensor(m, device=device) for m in observation.action_masks),
        torch.as_tensor(observation.state, device=device),
        torch.as_tensor(observation.active, device=device),
        None if observation.restarted is None else torch.as_tensor(observation.restarted, device=device),
    )
