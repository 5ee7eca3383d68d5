"""What the steps of an update say of themselves, together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def mean_metrics(steps: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Mean over steps of every metric, scalars on the device until then; the steps are taken as they are asked for."""
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for step in steps:
        for name, value in step.items():
            rows[name].append(value)
    return {name: float(torch.stack(values).mean()) for name, values in rows.items()}
