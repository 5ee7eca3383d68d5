"""Sable: MAT's surrogate on a retention network, which remembers the episode.

Source: Mahjoub et al. 2025, "Sable: a Performant, Efficient and Scalable Sequence Model for MARL", section 3.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from hmarl.trainer.algorithms.mat import Mat
from hmarl.trainer.guiders.settings import GuidedSettings
from hmarl.trainer.networks.settings import AlgorithmSettings


class SableSettings(GuidedSettings):
    """Settings of Sable."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"hidden_sizes", "recurrent", "memory_size"})

    guider: Literal["sable"] = Field("sable", description="retention over agents and time, which remembers")


class Sable(Mat):
    """Centralised execution: one retention network that remembers; cannot be exported as separate agents."""

    settings_class: ClassVar[type[AlgorithmSettings]] = SableSettings
    settings: GuidedSettings
