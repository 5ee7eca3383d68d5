"""The random numbers of deployed policies, from the generator's words, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hmarl.runtime.bundle import NoiseModel
from hmarl.runtime.noise import _normal, noise_for

HALF = math.sqrt(2.0 * math.log(2.0))  # √(−2 ln ½)


@pytest.mark.parametrize(
    ("turns", "expected"), [(0.0, HALF), (0.125, HALF * math.sqrt(0.5)), (0.25, 0.0), (0.5, -HALF), (0.75, 0.0)]
)
def test_a_normal_number_by_hand(turns: float, expected: float) -> None:
    """Box and Muller: √(−2 ln u₁) cos 2π u₂; a word of 2⁶³ is u = ½."""
    drawn = _normal(np.array([2**63], np.uint64), np.array([int(turns * 2**64)], np.uint64))
    assert drawn.dtype == np.float32
    assert float(drawn[0]) == pytest.approx(expected, abs=1e-6)


def test_the_largest_normal_number_by_hand() -> None:
    """The word 0 is half of the smallest step: u₁ = 2⁻⁵⁴."""
    zero = np.zeros(1, np.uint64)
    assert float(_normal(zero, zero)[0]) == pytest.approx(math.sqrt(2.0 * 54.0 * math.log(2.0)), abs=1e-5)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_numbers_have_the_shape_of_the_input(distribution: Any) -> None:
    noise = NoiseModel(name="n", shape=[2, 3], distribution=distribution, stream="private", purpose="action")
    drawn = noise_for(noise, "a", np.array([1, 2]), 3)
    assert (drawn.shape, drawn.dtype) == ((2, 2, 3), np.float32)
    assert len(np.unique(drawn)) == 12
    none = noise_for(noise, "a", np.zeros(0, np.int64), 3)
    assert (none.shape, none.dtype) == ((0, 2, 3), np.float32)
