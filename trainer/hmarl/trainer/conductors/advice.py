"""What goes wrong under a conductor, as metrics show it, and what helps."""

from __future__ import annotations

from hmarl.trainer.learning.advice import given
from hmarl.trainer.records.metrics import evaluation_metric

# Of the larger return's size: what a deployed team may earn less than under the central conductor.
_FAR_BELOW = 0.15
_NOT_FOLLOWING = 0.5  # nats
_TOOK_OVER = 0.95


def conductor_advice(metrics: dict[str, float]) -> list[str]:
    """Advice on an update's or an evaluation's metrics; empty where nothing is wrong."""
    return given(_left_behind(metrics), _not_following(metrics), _taken_over(metrics), _collapsed(metrics))


def _left_behind(metrics: dict[str, float]) -> str | None:
    if not (_far_below(metrics, "return_mean") and _far_below(metrics, "return_median")):
        return None
    return (
        "under its local conductors the team earns far less than under the central one, and it is they that are "
        "deployed: instructions carry what only the state holds. Try algorithm.conductor_sees=common, whose "
        "conductor every agent has a copy of, or algorithm.local_share=0.5"
    )


def _not_following(metrics: dict[str, float]) -> str | None:
    if metrics.get("local_conductor_kl", 0.0) <= _NOT_FOLLOWING:
        return None
    return (
        f"the local conductors do not follow the central one: more than {_NOT_FOLLOWING:g} nats are between them. "
        "Try algorithm.distillation_patience=2 with algorithm.distillation_epochs=50, a larger "
        "algorithm.distillation_learning_rate, or algorithm.conductor_sees=common if what they see does not suffice"
    )


def _taken_over(metrics: dict[str, float]) -> str | None:
    usage = [share for name, share in metrics.items() if name.startswith("instruction_usage/")]
    if len(usage) < 2 or max(usage) <= _TOOK_OVER:
        return None
    return (
        f"one instruction took over: it is in force in more than {_TOOK_OVER:.0%} of the steps, and the agents "
        "learn nothing of the others. Raise algorithm.conductor_entropy_coefficient or lower "
        "algorithm.conductor_kl_limit; if the task needs no conductor, hatrpo is the same without one"
    )


def _collapsed(metrics: dict[str, float]) -> str | None:
    if metrics.get("agent_accepted") != 0.0 or metrics.get("agent_predicted_improvement", 0.0) <= 0.0:
        return None
    return (
        "the trust region has collapsed: no agent's step was accepted though all promised an improvement. Lower "
        "algorithm.kl_limit, raise algorithm.damping or algorithm.backtracks, or set "
        "algorithm.curvature_fraction=1"
    )


def _far_below(metrics: dict[str, float], figure: str) -> bool:
    """Whether an evaluation's figure is far lower under the local conductors than under the central one."""
    local, central = (metrics.get(evaluation_metric(name, figure)) for name in ("local", "central"))
    if local is None or central is None:
        return False
    return central - local > _FAR_BELOW * max(abs(local), abs(central))
