"""A way between an agent and its environment, on which messages are late or lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_NEVER = np.iinfo(np.int64).max
Arrays = dict[str, npt.NDArray[Any]]


class Channel:
    """One message a step from each of B x N senders; the newest one that has arrived stays.

    A message that arrives after a newer one is dropped, as clients drop late replies.

    Args:
        parts: what one message consists of, as shape and dtype of each part.
        lead: (B, N).
        most_late: steps that a message may be late.

    Attributes:
        held: the newest message that has arrived, [B, N, *shape] for each part.
    """

    def __init__(self, parts: Sequence[tuple[tuple[int, ...], Any]], lead: tuple[int, int], most_late: int) -> None:
        depth = most_late + 1
        self.held = [np.zeros((*lead, *shape), dtype) for shape, dtype in parts]
        self._under_way = [np.zeros((depth, *lead, *shape), dtype) for shape, dtype in parts]
        self._due = np.full((depth, *lead), _NEVER)
        self._sent = np.full(depth, -1)
        self._newest = np.full(lead, -1)
        self._clock = 0
        self._places = np.arange(lead[0])[:, None], np.arange(lead[1])[None]

    def send(
        self,
        message: Sequence[npt.NDArray[Any]],
        late: npt.NDArray[np.int64],
        lost: npt.NDArray[np.bool_],
        deaf: npt.NDArray[np.bool_] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Let a step pass.

        Args:
            message: [B, N, *shape] for each part.
            late: [B, N] steps; 0 arrives at once.
            lost: [B, N] never arrives.
            deaf: [B, N] whatever arrives now is dropped, whenever it was sent; None: nowhere.

        Returns:
            [B, N] whether a newer message than before has arrived.
        """
        self._clock += 1
        slot = self._clock % len(self._sent)
        for under_way, part in zip(self._under_way, message, strict=True):
            under_way[slot] = part
        self._due[slot] = np.where(lost, _NEVER, self._clock + late)
        self._sent[slot] = self._clock
        if deaf is not None:
            self._due = np.where(deaf & (self._due <= self._clock), _NEVER, self._due)
        candidates: npt.NDArray[np.int64] = np.where(self._due <= self._clock, self._sent[:, None, None], -1).max(0)
        arrived: npt.NDArray[np.bool_] = candidates > self._newest
        self._newest = np.where(arrived, candidates, self._newest)
        slots = candidates % len(self._sent)
        for number, under_way in enumerate(self._under_way):
            self.held[number] = _chosen(arrived, under_way[slots, *self._places], self.held[number])
        return arrived

    def pass_step(self, deaf: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
        """Let a step pass at which nothing is sent; [B, N] whether a newer message than before has arrived."""
        late = np.zeros_like(self._newest)
        return self.send(self.held, late, np.ones_like(late, np.bool_), deaf)

    def begin(self, begun: npt.NDArray[np.bool_], message: Sequence[npt.NDArray[Any]]) -> None:
        """Hold a message of now, and forget what is under way, where ``begun`` [B, N]."""
        self._newest = np.where(begun, self._clock, self._newest)
        self.held = [_chosen(begun, part, held) for part, held in zip(message, self.held, strict=True)]

    @property
    def age(self) -> npt.NDArray[np.int64]:
        """[B, N] steps since what is held was sent."""
        return self._clock - self._newest

    def get_state(self) -> Arrays:
        """All that determines the future."""
        state = {"clock": np.array([self._clock]), "due": self._due, "sent": self._sent, "newest": self._newest}
        state |= {f"held.{number}": part for number, part in enumerate(self.held)}
        state |= {f"under_way.{number}": part for number, part in enumerate(self._under_way)}
        return {name: array.copy() for name, array in state.items()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where ``get_state`` was called; keeps the arrays."""
        self._clock = int(state["clock"][0])
        self._due, self._sent, self._newest = state["due"], state["sent"], state["newest"]
        self.held = [state[f"held.{number}"] for number in range(len(self.held))]
        self._under_way = [state[f"under_way.{number}"] for number in range(len(self._under_way))]


def _chosen(first: npt.NDArray[np.bool_], one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``one`` [B, N, ...] where ``first`` [B, N], else ``other``; a new array."""
    return np.where(first.reshape(*first.shape, *(1,) * (other.ndim - 2)), one, other)
