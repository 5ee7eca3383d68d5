"""What goes wrong under a conductor, as metrics show it, and what helps."""

from __future__ import annotations

from hmarl.trainer.records.metrics import evaluation_metric

# Of the larger return's size: what a deployed team may earn less than under the central conductor.
_FAR_BELOW = 0.15
_NOT_FOLLOWING = 0.5  # nats
_TOOK_OVER = 0.95


def conductor_advice(metrics: dict[str, float]) -> str | None:
    """Advice on an update's or an evaluation's metrics; None where nothing is wrong."""
    if _far_below(metrics, "return_mean") and _far_below(metrics, "return_median"):
        return (
            "under its local conductors the team earns far less than under the central one, and it is they that are "
            "deployed: instructions carry what only the state holds. Try algorithm.conductor_sees=common, whose "
            "conductor every agent has a copy of, or algorithm.local_share=0.5"
        )
    if metrics.get("local_conductor_kl", 0.0) > _NOT_FOLLOWING:
        return (
            f"the local conductors do not follow the central one: more than {_NOT_FOLLOWING:g} nats are between them. "
            "Try algorithm.distillation_patience=2 with algorithm.distillation_epochs=50, a larger "
            "algorithm.distillation_learning_rate, or algorithm.conductor_sees=common if what they see does not suffice"
        )
    usage = [share for name, share in metrics.items() if name.startswith("instruction_usage/")]
    if len(usage) > 1 and max(usage) > _TOOK_OVER:
        return (
            f"one instruction took over: it is in force in more than {_TOOK_OVER:.0%} of the steps, and the agents "
            "learn nothing of the others. Raise algorithm.conductor_entropy_coefficient or lower "
            "algorithm.conductor_kl_limit; if the task needs no conductor, hatrpo is the same without one"
        )
    if metrics.get("agent_accepted") == 0.0 and metrics.get("agent_predicted_improvement", 0.0) > 0.0:
        return (
            "the trust region has collapsed: no agent's step was accepted though all promised an improvement. Lower "
            "algorithm.kl_limit, raise algorithm.damping or algorithm.backtracks, or set "
            "algorithm.curvature_fraction=1"
        )
    return None


def _far_below(metrics: dict[str, float], figure: str) -> bool:
    """Whether an evaluation's figure is far lower under the local conductors than under the central one."""
    local, central = (metrics.get(evaluation_metric(name, figure)) for name in ("local", "central"))
    if local is None or central is None:
        return False
    return central - local > _FAR_BELOW * max(abs(local), abs(central))
