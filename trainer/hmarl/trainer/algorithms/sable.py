"""Sable: MAT's surrogate on a retention network, which remembers the episode.

Source: Mahjoub et al. 2025, "Sable: a Performant, Efficient and Scalable Sequence Model for MARL", section 3.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from hmarl.trainer.algorithms.mat import Mat, MatSettings
from hmarl.trainer.config import AlgorithmSettings


class SableSettings(MatSettings):
    """Settings of Sable."""

    guider: Literal["mat", "sable"] = Field("sable", description="sable; mat is without memory")


class Sable(Mat):
    """Centralised execution: one retention network that remembers; cannot be exported as separate agents."""

    settings_class: ClassVar[type[AlgorithmSettings]] = SableSettings
    settings: SableSettings
