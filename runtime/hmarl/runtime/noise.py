"""Random numbers of deployed policies: a pure function of (seed, agent, step, noise input).

Philox, a counter-based generator, is keyed by (episode's seed, stream) and counted by (step, noise input). Nothing
is carried from step to step, so that a replayed step and an episode rejoined in the middle draw the same numbers, and
agents that share the ``common`` stream agree without exchanging a message.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.manifest import NoiseModel


def _hash64(text: str) -> int:
    """A stable 64-bit hash (Python's own differs from process to process)."""
    from hashlib import blake2b  # noqa: PLC0415 - memory that agents without random numbers do without

    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


class NoiseSource:
    """Draws one noise input of one agent.

    Args:
        noise: the manifest's description of the input.
        agent_id: keys the ``private`` stream; the ``common`` stream does not know it.
        stream: ``private`` or ``common``; None takes the one that the manifest names.
    """

    def __init__(self, noise: NoiseModel, agent_id: str, stream: str | None = None) -> None:
        self.noise = noise
        self._size = math.prod(noise.shape)
        self._shape = tuple(noise.shape)
        self._normal = noise.distribution == "normal"
        self._generator = np.random.Philox(0)
        self._state: Any = dict(self._generator.state)
        self._key = np.zeros(2, np.uint64)
        self._counter = np.zeros(4, np.uint64)
        self._state["state"] = {"key": self._key, "counter": self._counter}
        self._key[1] = _hash64("common" if (stream or noise.stream) == "common" else f"private:{agent_id}")
        self._noise_key = _hash64(noise.name)

    def draw(self, seed: int, step: int) -> npt.NDArray[np.float32]:
        """The numbers of one step: [*shape] float32.

        Args:
            seed: the episode's seed, in [0, 2**64).
            step: the step, in [0, 2**64).
        """
        self._key[0] = seed
        # Word 0 counts the blocks drawn within the step; word 3 stays free.
        self._counter[:] = (0, self._noise_key, step, 0)
        self._generator.state = self._state
        if self._normal:
            words = self._generator.random_raw(2 * self._size)
            return _normal(words[: self._size], words[self._size :]).reshape(self._shape)
        return _uniform(self._generator.random_raw(self._size)).reshape(self._shape)


def _uniform(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Uniform in the open interval (0, 1): (k + 1/2) / 2^23 is exact in float32 and never rounds to 0 or 1."""
    return ((words >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def _normal(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Standard normal by Box and Muller, computed in float64."""
    radius_uniform = ((first >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    angle = (second >> np.uint64(11)).astype(np.float64) * (2.0 * math.pi * 2.0**-53)
    return np.asarray(np.sqrt(-2.0 * np.log(radius_uniform)) * np.cos(angle), dtype=np.float32)


def noise_for(
    noise: NoiseModel,
    agent_id: str,
    seeds: npt.NDArray[np.int64] | npt.NDArray[np.uint64],
    step: int | npt.NDArray[np.int64],
    *,
    stream: str | None = None,
) -> npt.NDArray[np.float32]:
    """The numbers that sessions of B episodes draw, so that a batch can be compared with them.

    Args:
        noise: the manifest's description of the input.
        agent_id: the agent that draws.
        seeds: [B] the episodes' seeds.
        step: the step of all episodes, or [B] one each.
        stream: ``private`` or ``common``; None takes the one that the manifest names.

    Returns:
        [B, *shape] float32.
    """
    source = NoiseSource(noise, agent_id, stream)
    steps = np.broadcast_to(np.asarray(step), np.shape(seeds))
    drawn = [source.draw(int(seed), int(at)) for seed, at in zip(seeds, steps, strict=True)]
    return np.stack(drawn) if drawn else np.zeros((0, *noise.shape), np.float32)
