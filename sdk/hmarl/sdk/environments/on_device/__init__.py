"""Families of our own once more in torch, so that thousands of copies run on a GPU: ``env.backend=torch``.

They are the NumPy ones step by step: the same draws from the same seeds, the same arithmetic in float64. Observations,
rewards and ends are tensors that never leave the device. What the host must know it knows without asking: the steps of
every episode, from which its end follows. Only where an episode may end early (``terminate_on_success``) is the device
asked once a step whether one has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.runtime.manifest import BoxSpace
from hmarl.sdk.environments.authoring import checked_actions
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentGroup


def device_named(name: str, environment: str) -> torch.device:
    """The torch device on which an environment is to compute.

    Args:
        name: as given, e.g. ``cpu`` or ``cuda:1``.
        environment: ``FAMILY/TASK``, for messages.

    Raises:
        UsageError: no device's name, or none of this machine.
    """
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise NotImplementedError(f"its own kind, {device.type}, is not known to work")
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{environment}: device: got {name!r}, expected 'cpu' or a CUDA device of this machine: {why}"
        ) from error
    return device


def actions_on(
    device: torch.device, actions: tuple[Any, ...], groups: tuple[AgentGroup, ...], batch_size: int
) -> tuple[Tensor, ...]:
    """The actions as an environment may use them; see ``checked_actions``.

    On the CPU everything is checked. On a GPU what the host knows is checked (how many, shape and kind), and numbers
    are taken into range: to look at them would make the host wait at every step.

    Args:
        device: of the environment.
        actions: one tensor or array per group.
        groups: ``EnvironmentSpec.groups``.
        batch_size: B.

    Raises:
        UsageError: as ``checked_actions``.
    """
    if device.type == "cpu":
        arrays = tuple(np.asarray(each) for each in actions)
        return tuple(torch.from_numpy(each) for each in checked_actions(arrays, groups, batch_size))
    if len(actions) != len(groups):
        raise UsageError(f"actions: got {len(actions)} arrays, expected {len(groups)}, one per group of agents")
    return tuple(
        _within(torch.as_tensor(each, device=device), group, batch_size)
        for each, group in zip(actions, groups, strict=True)
    )


def _within(action: Tensor, group: AgentGroup, batch_size: int) -> Tensor:
    """A group's actions on a GPU, in range."""
    agent = group.example
    continuous, shape = isinstance(agent.action_space_model, BoxSpace), (batch_size, len(group.agents))
    if tuple(action.shape) != (*shape, *agent.action_shape) or action.is_floating_point() != continuous:
        wanted = f"{agent.action_dtype} {[*shape, *agent.action_shape]}"
        raise UsageError(f"actions of '{agent.id}': got {action.dtype} {list(action.shape)}, expected {wanted}")
    if not continuous:
        return action.long().clamp(0, agent.mask_size - 1)
    low, high = (float(bound.flat[0]) for bound in map(np.asarray, agent.action_bounds))
    return action.float().clamp(low, high)


def uploaded(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A NumPy array's numbers on the device, apart from the array's own memory."""
    return torch.tensor(values, device=device)
