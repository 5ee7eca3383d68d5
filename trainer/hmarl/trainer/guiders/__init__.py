"""Centralised policies that guide decentralised learners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hmarl.sdk.spaces import AgentGroup
from hmarl.trainer.guiders.attention import AttentionNetwork
from hmarl.trainer.guiders.factorised import FactorisedGuider
from hmarl.trainer.guiders.guider import Guider
from hmarl.trainer.guiders.retention import RetentionNetwork
from hmarl.trainer.guiders.sequence import SequenceGuider
from hmarl.trainer.guiders.settings import GuiderSettings
from hmarl.trainer.networks.distributions import ActionHead

Build = Callable[[Sequence[AgentGroup], Sequence[ActionHead], GuiderSettings, int, int], Guider]

GUIDERS: dict[str, Build] = {
    "mat": partial(SequenceGuider, AttentionNetwork),
    "sable": partial(SequenceGuider, RetentionNetwork),
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
