"""Which episodes an evaluation plays side by side, and with which seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmarl.sdk.errors import UsageError


@dataclass(frozen=True)
class Wave:
    """Episodes that are played side by side.

    Attributes:
        first: number of the first row's episode in the evaluation.
        seeds: [B] int64.
        wanted: [B] bool, rows whose episodes count; the surplus rows of a last wave do not.
    """

    first: int
    seeds: npt.NDArray[np.int64]
    wanted: npt.NDArray[np.bool_]


def episode_seeds(seed: int, episodes: int) -> npt.NDArray[np.int64]:
    """Seeds of episodes 0 … episodes-1, each in [0, 2**31).

    Episode e's seed is word e of ``numpy.random.SeedSequence(seed).generate_state`` (uint32) without its highest bit;
    it depends on ``seed`` and e alone, not on the number of episodes or the batch size.

    Returns:
        [episodes] int64.

    Raises:
        UsageError: a negative seed.
    """
    if seed < 0:
        raise UsageError(f"seed: got {seed}, expected a number of at least 0")
    words = np.random.SeedSequence(seed).generate_state(episodes, np.uint32)
    return (words & np.uint32(0x7FFFFFFF)).astype(np.int64)


def waves_of(seed: int, episodes: int, batch_size: int, first: int = 0) -> list[Wave]:
    """All waves of an evaluation.

    Args:
        seed: see ``episode_seeds``.
        episodes: E.
        batch_size: B.
        first: number of the evaluation's first episode among those of the seed.

    Raises:
        UsageError: a negative seed.
    """
    begins = range(0, episodes, batch_size)
    seeds = episode_seeds(seed, first + len(begins) * batch_size)[first:]
    places = np.arange(batch_size)
    return [Wave(begin, seeds[begin : begin + batch_size], begin + places < episodes) for begin in begins]
