"""Centralised policies that guide decentralised learners."""

from __future__ import annotations

from collections.abc import Sequence

from hmarl.sdk.spaces import AgentGroup
from hmarl.trainer.guiders.attention import AttentionGuider
from hmarl.trainer.guiders.factorised import FactorisedGuider
from hmarl.trainer.guiders.guider import Guider
from hmarl.trainer.guiders.retention import RetentionGuider
from hmarl.trainer.guiders.settings import GuiderSettings
from hmarl.trainer.networks.distributions import ActionHead

GUIDERS: dict[str, type[AttentionGuider] | type[RetentionGuider] | type[FactorisedGuider]] = {
    "mat": AttentionGuider,
    "sable": RetentionGuider,
    "factorised": FactorisedGuider,
}


def create_guider(
    groups: Sequence[AgentGroup],
    heads: Sequence[ActionHead],
    settings: GuiderSettings,
    context_size: int,
    instruction_size: int,
) -> Guider:
    """The guider that the settings name.

    Args:
        groups: of agents with equal spaces.
        heads: how each group acts.
        settings: which guider, and its size.
        context_size: C of its views.
        instruction_size: K of its views.
    """
    return GUIDERS[settings.guider](groups, heads, settings, context_size, instruction_size)
