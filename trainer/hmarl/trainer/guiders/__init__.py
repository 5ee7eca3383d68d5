"""Centralised autoregressive policies that guide decentralised learners."""

from __future__ import annotations

from hmarl.trainer.guiders.attention import AttentionGuider
from hmarl.trainer.guiders.guider import Guider

GUIDERS: dict[str, type[Guider]] = {"mat": AttentionGuider}
