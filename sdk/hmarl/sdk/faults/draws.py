"""When faults happen: random numbers that are a pure function of (episode's seed, episode, agent, step).

Philox4x32 with 10 rounds (Salmon et al. 2011), counted and keyed like the numbers that deployed policies draw
(``hmarl.runtime.noise``), but for whole batches at once: no number depends on the batch, on what was drawn before, or
on who plays.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_STEPS_AT_ONCE = 32


class Chance(IntEnum):
    """What a number is drawn for; its place among the words of a step."""

    DELAY = 0
    LOSS = 1
    FREEZE = 2
    OUT = 3
    ACTION_DELAY = 4
    ACTION_LOSS = 5
    RESTART = 6


_DECISION_BLOCKS = 2  # of four words each
Words = npt.NDArray[np.uint64]


def philox(counter: Sequence[Any], key: Sequence[Any]) -> Words:
    """Four random words for each counter.

    Args:
        counter: four arrays of 32-bit words, as uint64, of shapes that broadcast to [...].
        key: two.

    Returns:
        [..., 4] uint64, each below 2**32.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, np.uint64) for word in key)
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1)


class Draws:
    """The numbers of B environments' agents at their present steps.

    Args:
        agent_ids: [N]; an agent's numbers follow from its id.
        batch_size: B.
        decides: whether ``uniform`` is asked for.
    """

    def __init__(self, agent_ids: Sequence[str], batch_size: int, decides: bool = True) -> None:
        words = [blake2b(each.encode(), digest_size=4).digest() for each in agent_ids]
        self._agents = np.array([int.from_bytes(word, "little") for word in words], np.uint64)
        self.seeds = np.zeros(batch_size, np.int64)
        self.episodes = np.zeros(batch_size, np.int64)
        self.steps = np.zeros(batch_size, np.int64)
        self._decides = decides
        shape = (batch_size if decides else 0, _STEPS_AT_ONCE, len(agent_ids), 4 * _DECISION_BLOCKS)
        self._table = np.zeros(shape, np.float32)
        self._rows = np.arange(batch_size)

    def begin(self, seeds: npt.NDArray[np.int64] | npt.NDArray[np.uint64], first_step: int = 0) -> None:
        """A step of the first episode of each environment; seeds [B]."""
        self.seeds, self.episodes = seeds.astype(np.int64), np.zeros_like(self.episodes)
        self.steps = np.full_like(self.steps, first_step)
        self._fill(self._rows)

    def advance(self) -> None:
        """The next step everywhere."""
        self.steps = self.steps + 1
        self._fill(np.flatnonzero(self.steps % _STEPS_AT_ONCE == 0))

    def next_episode(self, rows: npt.NDArray[np.intp]) -> None:
        """Step 0 of the next episode of some environments."""
        self.episodes, self.steps = self.episodes.copy(), self.steps.copy()
        self.episodes[rows] += 1
        self.steps[rows] = 0
        self._fill(rows)

    def restore(
        self, seeds: npt.NDArray[np.int64], episodes: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]
    ) -> None:
        """Go on from where ``seeds``, ``episodes`` and ``steps`` [B] were read."""
        self.seeds, self.episodes, self.steps = seeds, episodes, steps
        self._fill(self._rows)

    def uniform(self, chance: Chance) -> npt.NDArray[np.float32]:
        """[B, N] in [0, 1)."""
        drawn: npt.NDArray[np.float32] = self._table[self._rows, self.steps % _STEPS_AT_ONCE, :, chance]
        return drawn

    def normal(self, agents: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.float32]:
        """[B, len(agents), size] of a standard normal distribution, by Box and Muller."""
        blocks = np.arange(_DECISION_BLOCKS, _DECISION_BLOCKS + -(-size // 4), dtype=np.uint64)
        words = self._words(self._rows, self.steps[:, None, None], self._agents[agents][:, None], blocks)
        uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
        radius, angle = np.sqrt(-2.0 * np.log(uniform[..., :2])), 2.0 * np.pi * uniform[..., 2:]
        pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        return pairs.reshape(*pairs.shape[:2], -1)[..., :size].astype(np.float32)

    def _fill(self, rows: npt.NDArray[np.intp]) -> None:
        """Draw a stretch of steps ahead for these rows."""
        if not len(rows) or not self._decides:
            return
        first = self.steps[rows] - self.steps[rows] % _STEPS_AT_ONCE
        steps = first[:, None, None, None] + np.arange(_STEPS_AT_ONCE)[:, None, None]
        words = self._words(rows, steps, self._agents[:, None], np.arange(_DECISION_BLOCKS, dtype=np.uint64))
        uniform = (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
        self._table[rows] = uniform.reshape(len(rows), *self._table.shape[1:])

    def _words(self, rows: npt.NDArray[np.intp], steps: npt.NDArray[np.int64], agents: Words, blocks: Words) -> Words:
        """[R, ..., N, blocks, 4] for steps that broadcast to [R, ..., 1, 1]."""
        lead = (len(rows), *(1,) * (steps.ndim - 1))
        seeds, episodes = (each[rows].astype(np.uint64).reshape(lead) for each in (self.seeds, self.episodes))
        return philox((blocks, steps.astype(np.uint64) & _LOW, agents, episodes), (seeds & _LOW, seeds >> _HALF))
