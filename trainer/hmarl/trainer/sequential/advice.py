"""What goes wrong with gradient steps that nothing bounds, as metrics show it, and what helps."""

from __future__ import annotations

from typing import Protocol

# Nats from the old policy to the new one, mean over the agents. Ordinary updates stay below 0.05.
_FAR = 0.3


class BoundlessSettings(Protocol):
    """The settings that decide how far gradient steps go."""

    learning_rate: float
    epochs: int

    @property
    def learning_rate_decay(self) -> str:
        """``none`` or ``linear``."""
        ...


def went_far(metrics: dict[str, float], settings: BoundlessSettings) -> str | None:
    """Advice where an update has moved the policies so far that its samples say little of the new ones; None elsewhere.

    Clipping does not prevent it: a clipped ratio has no gradient, so nothing draws it back. Deviations that have become
    small make it likely, since the same change of the mean is then a larger divergence.
    """
    if metrics.get("agent_kl", 0.0) <= _FAR:
        return None
    remedies = [f"Lower algorithm.learning_rate (now {settings.learning_rate:g})"]
    if settings.epochs > 1:
        remedies.append(f"lower algorithm.epochs (now {settings.epochs})")
    if settings.learning_rate_decay == "none":
        remedies.append("set algorithm.learning_rate_decay=linear")
    return (
        f"the agents' steps have become too long: an update moved their policies by more than {_FAR:g} nats "
        "(agent_kl), and what was learnt may be lost again; with continuous actions this happens as the standard "
        f"deviations shrink. {', or '.join(remedies)}; hatrpo and hamdpo hold every step to a divergence"
    )
