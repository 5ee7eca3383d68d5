"""Experience for off-policy algorithms: rollouts cut into fragments of episodes, and a ring buffer of them."""

from __future__ import annotations

import torch
from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.trainer.experience.finite import are_finite
from hmarl.trainer.experience.rollout import Rollout

Rows = dict[str, Tensor]


def cut_into_fragments(rollout: Rollout, chunk_length: int) -> Rows:
    """A rollout as pieces of single episodes, each as long as the rollout or the chunk allows.

    A fragment begins where an episode, a chunk or the rollout does, and ends where one of them does, after at most L
    steps (the chunk's, or those of a declared horizon where it is shorter). One row of observations more than of
    actions is kept: the last one is what followed the last step, at an episode's end the final observation. So a
    fragment can be learnt from alone, whatever became of the environment.

    Args:
        rollout: full. Of its ``extras`` those that hold for a whole episode (see Returns) are kept.
        chunk_length: divides the rollout's steps; memories were recorded at its multiples.

    Returns:
        F fragments, padded to L steps, by name:

        - ``observations.g`` [F, L + 1, N_g, D], ``action_masks.g`` bool [F, L + 1, N_g, A] where there are masks,
          ``actions.g`` [F, L, N_g, ...] and, for recurrent policies, ``memories.g`` [F, N_g, H] before the first step;
        - ``states`` [F, L + 1, state_size], ``active`` bool [F, L + 1, N];
        - ``rewards`` (the team's), ``terminated`` and ``valid`` (False where padded) [F, L];
        - ``extras.NAME`` [F, ...] at the first step.
    """
    steps = rollout.steps
    fresh = torch.zeros_like(rollout.terminated)
    fresh[1:] = rollout.ended[:-1]
    begins = fresh.clone()
    begins[::chunk_length] = True
    first, environment = begins.nonzero(as_tuple=True)
    length = min(chunk_length, rollout.spec.declared_horizon or chunk_length)
    offsets = torch.arange(length, device=first.device)
    valid = offsets < _lengths(begins)[first, environment].unsqueeze(-1)
    step = (first.unsqueeze(-1) + offsets).clamp(max=steps - 1)
    every = environment.unsqueeze(-1)

    def with_following(current: Tensor, following: Tensor) -> Tensor:
        return torch.cat([current[first, environment].unsqueeze(1), following[step, every]], dim=1)

    rows: Rows = {
        "states": with_following(rollout.states, rollout.next_states()),
        "active": with_following(rollout.active, rollout.next_active()),
        "rewards": rollout.team_rewards[step, every],
        "terminated": rollout.terminated[step, every] & valid,
        "valid": valid,
    }
    rows |= {f"extras.{name}": values[first, environment] for name, values in rollout.extras.items()}
    for g in range(len(rollout.observations)):
        rows[f"observations.{g}"] = with_following(rollout.observations[g], rollout.next_observations(g))
        masks, next_masks = rollout.action_masks[g], rollout.next_action_masks(g)
        if masks is not None and next_masks is not None:
            rows[f"action_masks.{g}"] = with_following(masks, next_masks)
        rows[f"actions.{g}"] = rollout.actions[g][step, every]
        if rollout.memories:
            recorded = torch.stack([memories[g] for memories in rollout.memories])  # [n, N_g, B, H]
            kept = (~fresh[first, environment]).view(-1, 1, 1)
            rows[f"memories.{g}"] = recorded[first // chunk_length, :, environment] * kept
    return rows


def cut_into_transitions(rollout: Rollout, steps_ahead: int, gamma: float) -> Rows:
    """A rollout as single moments, each with what was earned in the n steps after it and what was seen then.

    Where the episode or the rollout ends before, there are fewer: R = Σ_{k<m} γ^k r_{t+k} with m ≤ n.

    Args:
        rollout: full.
        steps_ahead: n.
        gamma: discount per step.

    Returns:
        T·B rows, by name:

        - ``observations.g`` [T·B, N_g, D], ``action_masks.g`` bool [T·B, N_g, A] where there are masks, ``states``
          [T·B, state_size] and ``active`` bool [T·B, N], and each again as ``next_NAME``, m steps later;
        - ``actions.g`` [T·B, N_g, ...] raw;
        - ``rewards`` [T·B] R of the team, and ``discounts`` [T·B] γ^m, 0 after termination.
    """
    earned, discounts, last = _steps_ahead(rollout, steps_ahead, gamma)
    every = torch.arange(rollout.batch_size, device=last.device)
    rows: Rows = {
        "states": rollout.states[:-1],
        "next_states": rollout.next_states()[last, every],
        "active": rollout.active,
        "next_active": rollout.next_active()[last, every],
        "rewards": earned,
        "discounts": discounts.masked_fill(rollout.terminated[last, every], 0.0),
    }
    for g in range(len(rollout.observations)):
        rows[f"observations.{g}"] = rollout.observations[g]
        rows[f"next_observations.{g}"] = rollout.next_observations(g)[last, every]
        masks, next_masks = rollout.action_masks[g], rollout.next_action_masks(g)
        if masks is not None and next_masks is not None:
            rows[f"action_masks.{g}"], rows[f"next_action_masks.{g}"] = masks, next_masks[last, every]
        rows[f"actions.{g}"] = rollout.actions[g]
    return {name: values.flatten(0, 1) for name, values in rows.items()}


def _steps_ahead(rollout: Rollout, steps_ahead: int, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of every step [T, B]: R, γ^m, and the last of the m steps that R is made of."""
    steps, rewards = rollout.steps, rollout.team_rewards
    last = torch.arange(steps, device=rewards.device).unsqueeze(-1).repeat(1, rollout.batch_size)
    earned, discounts = rewards.clone(), torch.full_like(rewards, gamma)
    runs = ~rollout.ended  # whether the episode goes on after the steps that are counted
    for k in range(1, min(steps_ahead, steps)):
        reaches = runs[: steps - k]
        earned[: steps - k] += torch.where(reaches, gamma**k * rewards[k:], 0.0)
        discounts[: steps - k] = torch.where(reaches, gamma ** (k + 1), discounts[: steps - k])
        last[: steps - k] += reaches
        runs = reaches & ~rollout.ended[k:]
    return earned, discounts, last


def _lengths(begins: Tensor) -> Tensor:
    """[T, B] steps from each step to the next beginning after it, or to the rollout's end."""
    steps = begins.shape[0]
    at = torch.arange(steps, device=begins.device).unsqueeze(-1)
    beginnings = torch.where(begins, at, steps).flip(0).cummin(0).values.flip(0)
    following = torch.cat([beginnings[1:], torch.full_like(beginnings[:1], steps)])
    return following - at


def _padded(name: str, values: Tensor, like: Tensor) -> Tensor:
    """Rows that are at least as long as those of ``like``: the last step again and again, which is not valid."""
    if values.dim() < 2 or values.shape[1] >= like.shape[1]:
        return values
    last = values[:, -1:].expand(-1, like.shape[1] - values.shape[1], *values.shape[2:])
    return torch.cat([values, torch.zeros_like(last) if name in ("valid", "terminated") else last], dim=1)


def all_finite(rows: Rows) -> bool:
    """Whether no number among the rows is NaN or infinite."""
    return are_finite(rows.values())


class Replay:
    """A ring buffer of rows; the oldest make room for the newest.

    Args:
        capacity: rows that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self._next = 0
        self._storage: Rows = {}

    def __len__(self) -> int:
        return self.count

    def add(self, rows: Rows) -> None:
        """Append rows, [F, ...] by name, the same names and shapes at every call.

        Raises:
            UsageError: there is no memory for so many of them.
        """
        if not self._storage:
            self._allocate(rows)
        rows = self._of_one_length(rows)
        added = len(next(iter(rows.values())))
        kept = min(added, self.capacity)
        device = next(iter(rows.values())).device
        places = (self._next + torch.arange(added - kept, added, device=device)) % self.capacity
        for name, values in rows.items():
            self._storage[name][places] = values[added - kept :]
        self._next = (self._next + added) % self.capacity
        self.count = min(self.count + added, self.capacity)

    def _of_one_length(self, rows: Rows) -> Rows:
        """The rows, padded to the length of those that are stored, which are padded themselves where they are shorter.

        Fragments of one run are equally long, unless it was begun when guessed horizons still cut them.
        """
        stored = self._storage
        if all(values.shape[1:] == stored[name].shape[1:] for name, values in rows.items()):
            return rows
        self._storage = {name: _padded(name, values, rows[name]) for name, values in stored.items()}
        return {name: _padded(name, values, self._storage[name]) for name, values in rows.items()}

    def _allocate(self, rows: Rows) -> None:
        try:
            self._storage = {name: values.new_zeros(self.capacity, *values.shape[1:]) for name, values in rows.items()}
        except (RuntimeError, MemoryError) as error:
            row_bytes = sum(values[0].nbytes for values in rows.values())
            raise UsageError(
                f"algorithm.replay_capacity: got {self.capacity:,}, for which this machine lacks the memory; expected "
                f"fewer: each takes {row_bytes:,} bytes"
            ) from error

    def sample(self, size: int, generator: torch.Generator) -> Rows:
        """``size`` rows, drawn uniformly with replacement.

        Raises:
            ValueError: the buffer is empty.
        """
        if not self.count:
            raise ValueError("replay: got an empty buffer, expected at least one row")
        places = torch.randint(self.count, (size,), generator=generator, device=generator.device)
        return {name: values[places] for name, values in self._storage.items()}

    def state_dict(self) -> Rows:
        """The rows that are filled, and where the next one goes."""
        filled = {f"rows.{name.replace('.', '/')}": values[: self.count] for name, values in self._storage.items()}
        return {"next": torch.tensor(self._next), **filled}

    def load_state_dict(self, state: dict[str, Tensor | Rows]) -> None:
        """Restore what ``state_dict`` returned, into an empty buffer of the same capacity."""
        position, rows = state["next"], state.get("rows", {})
        assert isinstance(position, Tensor)
        assert isinstance(rows, dict)
        if rows:
            self.add({name.replace("/", "."): values for name, values in rows.items()})
        self._next = int(position)
