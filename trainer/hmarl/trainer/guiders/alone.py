"""A guider without followers: what it descends on, and why it is not exported."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from hmarl.sdk.errors import UsageError
from hmarl.trainer.guiders.trained import Minibatch, TrainedGuider
from hmarl.trainer.sequential.gradient_steps import clipped_surrogate


def guide_alone(guider: TrainedGuider, minibatch: Minibatch, clip: float, schedule: float) -> dict[str, Tensor]:
    """φ ← descent on −E[ min(r·Â, clip(r, 1−ε, 1+ε)·Â) ] − c·H + c_v·L_V, r = μ_φ/μ_old of every agent's action
    (MAT, Eq. 5).

    Returns:
        Metrics, scalars.
    """
    part = minibatch.part
    judged = guider.judge(part, minibatch.order)
    log_ratio = part.log_prob(judged.distributions) - minibatch.old_log_prob
    objective = clipped_surrogate(log_ratio.exp(), part.normalised_advantages(), clip)
    return guider.descend(part, judged, objective, None, schedule) | {"agent_kl": part.moved(log_ratio)}


def refuse_export(name: str, guider: str) -> NoReturn:
    """Say that there is no policy of a single agent, and what to do.

    Args:
        name: of the algorithm.
        guider: as the settings name it.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"{name}: acts for the whole team at once from all agents' observations, so that there is "
        "no policy of a single agent to deploy; hmarl-export --distil distils a local student for each agent, and "
        f"magpo (or ctds) with --set algorithm.guider={guider} trains one for each"
    )
