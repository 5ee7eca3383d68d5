"""MAGPO's monotone improvement, watched: what an update promises guider and local policies, and what came of it.

MAGPO's Theorem 4.1: let (1) the guider begin where the local policies are, μ_k = π_k, (2) step by policy mirror
descent, and (3) let π_{k+1} be its projection, argmin_π KL(μ_{k+1} ‖ π). Then J(π_{k+1}) ≥ J(π_k). It holds for tables,
exact advantages and exact steps, and names no constant. Of samples and networks one can watch, to first order about the
guider that collected,

    promised_improvement_guider   E_{s,a∼μ_k}[ Π_i μ^i_{k+1}/μ^i_k · Â ] / (1 − γ)    whether (2) improves
    promised_improvement          the same of Π_i π^i_{k+1}/μ^i_k                      what of it (3) leaves
    projection_kl                 E[ KL(μ_{k+1} ‖ π_{k+1}) ], and its largest value: how far (3), and (1) of the next
                                  update, are from exact (with guider=factorised the guider then becomes π_{k+1}, and
                                  (1) is)
    realised_improvement          see ``Performance``: J of the guider, who collects

Source: Li et al. 2025, "Multi-Agent Guided Policy Optimization", Theorem 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmarl.trainer.conductors.bound_plot import realised_points
from hmarl.trainer.guiders.batch import TeamBatch
from hmarl.trainer.guiders.following import Followers
from hmarl.trainer.guiders.trained import TrainedGuider
from hmarl.trainer.learning.metrics import Figure, read
from hmarl.trainer.networks.indices import sent
from hmarl.trainer.records.canvas import draw_points, label_axes, new_figure, png, points
from hmarl.trainer.records.metrics import MetricRows


def promised(advantages: Tensor, log_ratio: Tensor, active: Tensor | None, gamma: float) -> Tensor:
    """E[ Π_i new^i/old^i · Â ] / (1 − γ), Â centred, because under the old policies its mean is 0; a scalar.

    Args:
        advantages: [M] of the team, not normalised.
        log_ratio: [N, M] log new/old of the actions.
        active: [N, M] 0 or 1, or None: who had left counts with ratio 1.
        gamma: below 1.
    """
    joint = (log_ratio if active is None else log_ratio * active).sum(dim=0).exp()
    return (joint * (advantages - advantages.mean())).mean().double() / (1.0 - gamma)


@torch.no_grad()
def promises(guider: TrainedGuider, followers: Followers, batch: TeamBatch) -> dict[str, float]:
    """What the update that has been made of a batch promises, judged on one minibatch's worth of its sequences; of the
    team's reward, so nothing with ``credit=own``.

    Args:
        guider: after the update, before it becomes what the local policies are.
        followers: after it.
        batch: the whole rollout.
    """
    gamma, order = guider.settings.gamma, sent(batch.acting_order, guider.actors.device)
    if gamma >= 1.0 or batch.advantages.dim() == 3:
        return {}
    part = batch.take(torch.arange(0, batch.sequences, guider.settings.minibatches, device=order.device))
    judged, local = guider.judge(part, order, guider.theta).distributions, followers.distributions(part)
    of_guider, of_local = (part.log_prob(each) - part.acting_log_prob for each in (judged, local))
    apart = torch.cat([mu.kl(pi) for mu, pi in zip(judged, local, strict=True)])
    advantages, present = part.advantages.flatten(), part.active
    figures: dict[str, Figure] = {
        "promised_improvement_guider": promised(advantages, of_guider, present, gamma),
        "promised_improvement": promised(advantages, of_local, present, gamma),
        "projection_kl": part.mean(apart),
        "projection_kl_max": (apart if present is None else apart * present).max(),
    }
    return read(figures)


@dataclass(frozen=True)
class ImprovementPlot:
    """What the updates promised and what they brought, and how far the projection is from exact."""

    file: str = "improvement.png"

    def draw(self, rows: MetricRows, title: str) -> bytes | None:
        """None where nothing was promised."""
        local = points(rows, "promised_improvement")
        if not local:
            return None
        figure = new_figure(11, 4)
        left, right = figure.subplots(1, 2)
        realised = realised_points(rows, of="promised_improvement")
        draw_points(left, realised, ".", ms=3, color="#777777", label="realised, J of the guider from the rollouts")
        promised_to_guider = points(rows, "promised_improvement_guider")
        draw_points(left, promised_to_guider, color="#d62728", lw=1, label="promised, guider")
        draw_points(left, local, color="#0072b2", lw=1, label="promised, local policies")
        left.axhline(0.0, color="black", lw=0.6)
        falls = sum(value < 0 for _, value in realised)
        said = f"realised: {falls} of {len(realised)} updates fell" if realised else ""
        label_axes([left], xlabel="environment steps", ylabel="improvement of J per update", title=said)
        for metric, label, style in (("projection_kl", "mean", "-"), ("projection_kl_max", "largest", ":")):
            draw_points(right, points(rows, metric), style, color="#d62728", lw=1, label=label)
        right.set_yscale("log")
        label_axes([right], xlabel="environment steps", ylabel="KL(μ ‖ π) an agent after the update (nats)")
        for axes in (left, right):
            axes.legend(frameon=False, fontsize=8)
        figure.suptitle(f"{title}: improvement, promised and realised", fontsize=10)
        return png(figure)
