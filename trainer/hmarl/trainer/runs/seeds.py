"""Where a run's random numbers begin."""

from __future__ import annotations

import numpy as np

# All evaluations of all runs play the same episodes, unless run.evaluation_seed says otherwise.
EVALUATION_SEED = 1_000_003
# Purposes of ``derived_seeds``: 0 and upwards are those of the updates.
REDISTILLATION = 2**32
_ROLLOUTS, _REPLACED = 2**32 + 1, 2**32 + 2


def derived_seeds(seed: int, purpose: int, count: int) -> np.ndarray:
    """[count] int64 environment seeds from (run seed, purpose), each in [0, 2³¹)."""
    words = np.random.SeedSequence((seed, purpose)).generate_state(count, np.uint32)
    return (words >> 1).astype(np.int64)


def rollout_seed(seed: int, update: int, worker: int | None = None) -> int:
    """What a worker draws an update's rollout from; without a worker, what all workers draw alike."""
    words = np.random.SeedSequence((seed, _ROLLOUTS, update, 0 if worker is None else 1 + worker))
    return int(words.generate_state(1, np.uint64)[0] >> 1)


def anew_seeds(seed: int, update: int, worker: int, count: int) -> np.ndarray:
    """[count] int64 seeds of the episodes that begin where a worker is replaced whose environments were not saved."""
    words = np.random.SeedSequence((seed, _REPLACED, update, 1 + worker)).generate_state(count, np.uint32)
    return (words >> 1).astype(np.int64)
