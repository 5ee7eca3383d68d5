"""Numbers of agents as indices that lie on the device: a Python list would be copied there each time it is used, and
each time the host would wait until the device has done all that it was given before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def on_device(indices: Sequence[int], device: torch.device) -> Tensor:
    """[n] int64 on the device, never to be written to: the same tensor for the same indices, as long as the process is.

    Args:
        indices: that belong to the structure of a team, e.g. a group's agents; what is drawn anew is ``sent``.
        device: where they are used.
    """
    return _on_device(tuple(indices), device)


# None is ever let go: what a device repeats by itself (``learning.captured``) knows them by their place in its memory.
@cache
def _on_device(indices: tuple[int, ...], device: torch.device) -> Tensor:
    return sent(indices, device)


def sent(indices: Sequence[int], device: torch.device) -> Tensor:
    """[n] int64 on the device, e.g. an order that was drawn, without a wait."""
    there = torch.tensor(indices, dtype=torch.int64)
    # From pinned memory it gets there by itself.
    return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there.to(device)
