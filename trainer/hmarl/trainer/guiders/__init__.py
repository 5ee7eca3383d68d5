"""Centralised autoregressive policies that guide decentralised learners."""

from __future__ import annotations

from hmarl.trainer.guiders.attention import AttentionGuider
from hmarl.trainer.guiders.guider import Guider
from hmarl.trainer.guiders.retention import RetentionGuider

GUIDERS: dict[str, type[Guider]] = {"mat": AttentionGuider, "sable": RetentionGuider}
