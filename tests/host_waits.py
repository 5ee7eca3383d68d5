"""What makes the host wait for a device, found on the CPU by looking at what is asked of torch.

With a GPU the same questions are refused by torch itself (``torch.cuda.set_sync_debug_mode``).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Those whose answer is the host's, or whose shape follows from numbers that only the device knows; and those that take
# what lies in the host's memory to a device.
_ASKS = {
    *("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__"),
    *("nonzero", "masked_select", "unique", "bincount", "equal", "allclose", "argwhere", "isin"),
    *("tensor", "from_numpy", "solve"),
}
# Who deals with the CPU alone, wherever the parameters live: orders of agents are drawn by a CPU generator, the host
# counts Adam's steps; what is taken to a device once, from pinned memory.
_ON_THE_CPU = {
    ("turns.py", "next_agent"),
    ("hasac.py", "_improve"),
    ("optimiser.py", "state_dict"),
    ("trained.py", "_order_of_epoch"),
    ("indices.py", "sent"),
    ("metrics.py", "seen"),
}
# Who brings tensors home for others, whose lines are of interest.
_READERS = {"metrics.py"}


class HostWaits(TorchFunctionMode):
    """Notes every wait while it is entered.

    Attributes:
        places: how often each function of hmarl's waited, ``module.py:function``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How often the host waited."""
        return sum(self.places.values())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _ASKS or (name in ("__getitem__", "__setitem__") and _is_waited_for(args[1])):
            self._note()
        return func(*args, **(kwargs or {}))

    def _note(self) -> None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            file, function = Path(frame.f_code.co_filename), frame.f_code.co_name
            if (file.name, function) in _ON_THE_CPU:
                return
            if "hmarl" in file.parts and file.name not in _READERS:
                self.places[f"{file.name}:{function}"] += 1
                return
            frame = frame.f_back
        self.places["elsewhere"] += 1


def _is_waited_for(index: Any) -> bool:
    """Whether an index is known to the device alone (a mask), or to the host alone (a list of numbers)."""
    if isinstance(index, tuple):
        return any(_is_waited_for(part) for part in index)
    if isinstance(index, Tensor):
        return index.dtype in (torch.bool, torch.uint8)
    return isinstance(index, Sequence) and not isinstance(index, str)
