"""What the steps of an update say of themselves, and how it gets from the device to the host.

To read one number from a device makes the host wait until the device has done all that it was given. So whatever is
computed step by step, or agent by agent, stays a tensor until there is no more to do, and is then read at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)

Figure = Tensor | float
"""A number, or a scalar tensor that will be one."""


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Scalars, all of one device, as Python's numbers: one copy, for which the host waits once."""
    if not scalars:
        return []
    values: list[float] = torch.stack([scalar.detach().double() for scalar in scalars]).tolist()
    return values


def read(figures: Mapping[K, Figure]) -> dict[K, float]:
    """Figures as numbers, those that are tensors read at once."""
    tensors = {key: value for key, value in figures.items() if isinstance(value, Tensor)}
    known = dict(zip(tensors, numbers(list(tensors.values())), strict=True))
    return {key: known[key] if isinstance(value, Tensor) else value for key, value in figures.items()}


def seen(flag: Tensor) -> bool:
    """Whether a flag is set, as far as that can be seen without a wait: on the CPU alone."""
    return flag.device.type == "cpu" and bool(flag)


def mean_metrics(steps: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Mean over steps of every metric, scalars on the device until then; the steps are taken as they are asked for."""
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for step in steps:
        for name, value in step.items():
            rows[name].append(value)
    return read({name: torch.stack(values).mean() for name, values in rows.items()})
