"""Rollouts as plain arrays: workers collect a share of the environments each, and the shares become one rollout.

A share is a few large arrays, whatever its steps: what a worker sends is one message. Shares are put together in the
order of the workers, so that the whole does not depend on who was ready first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.trainer.experience.rollout import Rollout

Arrays = dict[str, npt.NDArray[Any]]


def share_sizes(environments: int, workers: int) -> list[int]:
    """How many of the environments each worker has; the first ones have one more where they do not divide."""
    least, more = divmod(environments, workers)
    return [least + (worker < more) for worker in range(workers)]


def share_slices(environments: int, workers: int) -> list[slice]:
    """Which of the environments each worker has."""
    slices, begin = [], 0
    for size in share_sizes(environments, workers):
        slices.append(slice(begin, begin + size))
        begin += size
    return slices


def to_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    """Tensors as arrays, which share their memory where that is possible."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def to_tensor(array: npt.NDArray[Any]) -> Tensor:
    """An array as a tensor on its memory, to be read: what came from another process must not be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.as_tensor(array)


def to_tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays as tensors, see ``to_tensor``."""
    return {name: to_tensor(array) for name, array in arrays.items()}


def byte_count(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Bytes of all of them."""
    return sum(array.nbytes for array in arrays.values())


def pack(rollout: Rollout) -> Arrays:
    """A full rollout as arrays, on its own memory where that is possible, which the next one is written to."""
    tensors = {name: getattr(rollout, name) for name in ("states", "rewards", "terminated", "truncated", "last_active")}
    if not rollout.all_active:
        tensors["active"] = rollout.active
    if rollout.restarted is not None:
        tensors["restarted"] = rollout.restarted
    tensors |= {f"extras.{name}": values for name, values in rollout.extras.items()}
    for g in range(len(rollout.observations)):
        tensors |= {f"observations.{g}": rollout.observations[g], f"actions.{g}": rollout.actions[g]}
        tensors[f"last_observations.{g}"] = rollout.last_observations[g]
        masks, last_masks = rollout.action_masks[g], rollout.last_action_masks[g]
        if masks is not None and last_masks is not None:
            tensors |= {f"action_masks.{g}": masks, f"last_action_masks.{g}": last_masks}
        if rollout.log_probs:
            tensors[f"log_probs.{g}"] = rollout.log_probs[g]
    for index, recorded in enumerate(zip(*rollout.memories, strict=True)):
        tensors[f"memories.{index}"] = torch.stack(recorded)
    return to_arrays(tensors | _packed_finals(rollout))


def _packed_finals(rollout: Rollout) -> dict[str, Tensor]:
    """What was seen last in episodes that ended, [F, ...]; nothing where none did."""
    finals = rollout.finals
    if not finals:
        return {}
    tensors = {
        "final_steps": torch.cat([torch.full_like(final.rows, final.step) for final in finals]),
        "final_rows": torch.cat([final.rows for final in finals]),
        "final_states": rollout.final_states,
        "final_active": torch.cat([final.active for final in finals]),
    }
    for g in range(len(rollout.observations)):
        tensors[f"final_observations.{g}"] = rollout.final_observations(g)
        if masks := [mask for final in finals if (mask := final.action_masks[g]) is not None]:
            tensors[f"final_action_masks.{g}"] = torch.cat(masks)
    return tensors


def unpack(parts: Sequence[Arrays], rollout: Rollout) -> None:
    """Fill a rollout with the shares of all workers, side by side.

    Args:
        parts: what ``pack`` returned, in the order of the workers.
        rollout: of all environments together; each array is copied into it.
    """
    rollout.begin()
    whole = _Whole(parts, rollout.device)
    rollout.all_active = not whole.anywhere("active")
    whole.fill("active", rollout.active, otherwise=True)
    for name in ("states", "rewards", "terminated", "truncated"):
        whole.fill(name, getattr(rollout, name))
    if whole.anywhere("restarted"):
        rollout.restarted = torch.zeros_like(rollout.active) if rollout.restarted is None else rollout.restarted
        whole.fill("restarted", rollout.restarted, otherwise=False)
    groups = range(len(rollout.observations))
    for g in groups:
        whole.fill(f"observations.{g}", rollout.observations[g])
        if (masks := rollout.action_masks[g]) is not None:
            whole.fill(f"action_masks.{g}", masks)
    rollout.actions = [whole.joined(f"actions.{g}", 1) for g in groups]
    rollout.extras = {
        name.removeprefix("extras."): whole.joined(name, 1) for name in parts[0] if name.startswith("extras.")
    }
    rollout.log_probs = [whole.joined(f"log_probs.{g}", 1) for g in groups if whole.anywhere(f"log_probs.{g}")]
    remembered = [whole.joined(name, 2).unbind() for name in parts[0] if name.startswith("memories.")]
    rollout.memories = list(zip(*remembered, strict=True))
    rollout.finish(_seen_last(whole, rollout))
    for begin, part in zip(whole.begins, parts, strict=True):
        _add_finals(to_tensors(part), begin, rollout)
    rollout.finals.sort(key=lambda final: final.step)  # stable: within a step in the order of the workers


class _Whole:
    """The arrays of all workers, side by side."""

    def __init__(self, parts: Sequence[Arrays], device: torch.device) -> None:
        self._parts, self._device = parts, device
        sizes = [part["states"].shape[1] for part in parts]
        self.begins = [sum(sizes[:worker]) for worker in range(len(sizes))]
        self._sizes = sizes

    def anywhere(self, name: str) -> bool:
        """Whether a worker has sent it."""
        return any(name in part for part in self._parts)

    def _tensors(self, name: str) -> Iterator[tuple[int, int, Tensor | None]]:
        for begin, size, part in zip(self.begins, self._sizes, self._parts, strict=True):
            yield begin, begin + size, to_tensor(part[name]) if name in part else None

    def fill(self, name: str, buffer: Tensor, otherwise: bool | None = None) -> None:
        """Copy into a buffer [T, B, ...]; ``otherwise`` where a worker has not sent it."""
        for begin, end, values in self._tensors(name):
            if values is not None:
                buffer[:, begin:end] = values.to(buffer.device)
            elif otherwise is not None:
                buffer[:, begin:end] = otherwise

    def joined(self, name: str, axis: int) -> Tensor:
        """A new tensor, the workers' along the axis of the environments."""
        return torch.cat([to_tensor(part[name]) for part in self._parts], dim=axis).to(self._device)


def _seen_last(whole: _Whole, rollout: Rollout) -> Observation:
    """What is seen after the last step."""
    masks: list[Tensor | None] = [
        None if mask is None else whole.joined(f"last_action_masks.{g}", 0)
        for g, mask in enumerate(rollout.action_masks)
    ]
    observations = tuple(whole.joined(f"last_observations.{g}", 0) for g in range(len(masks)))
    return Observation(observations, tuple(masks), rollout.states[-1].clone(), whole.joined("last_active", 0))


def _add_finals(part: Mapping[str, Tensor], begin: int, rollout: Rollout) -> None:
    """The episodes that ended with one worker, step by step."""
    if "final_steps" not in part:
        return
    steps, groups = part["final_steps"], range(len(rollout.observations))
    for step in steps.unique().tolist():
        at = (steps == step).nonzero().squeeze(-1)

        def pick(name: str, at: Tensor = at) -> Tensor:
            return part[name][at].to(rollout.device)

        masks = [pick(name) if (name := f"final_action_masks.{g}") in part else None for g in groups]
        rollout.add_final(
            step,
            pick("final_rows") + begin,
            pick("final_states"),
            [pick(f"final_observations.{g}") for g in groups],
            masks,
            pick("final_active"),
        )


def in_final_order(parts: Sequence[Arrays], said: Sequence[npt.NDArray[Any]]) -> Tensor:
    """What workers say of episodes that ended, [F, ...] each, in the order of the whole rollout's ``final_states``."""
    steps = np.concatenate([part.get("final_steps", np.zeros(0, np.int64)) for part in parts])
    return torch.from_numpy(np.concatenate(said)[np.argsort(steps, kind="stable")])
