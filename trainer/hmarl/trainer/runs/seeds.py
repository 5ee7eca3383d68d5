"""Where a run's random numbers begin."""

from __future__ import annotations

import numpy as np

# All evaluations of all runs play the same episodes, unless run.evaluation_seed says otherwise.
EVALUATION_SEED = 1_000_003
# Purposes of ``derived_seeds``: 0 and upwards are those of the updates.
REDISTILLATION = 2**32


def derived_seeds(seed: int, purpose: int, count: int) -> np.ndarray:
    """[count] int64 environment seeds from (run seed, purpose), each in [0, 2³¹)."""
    words = np.random.SeedSequence((seed, purpose)).generate_state(count, np.uint32)
    return (words >> 1).astype(np.int64)
