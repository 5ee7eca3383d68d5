"""What computes an environment of ours: NumPy, or torch on whatever device (``env.backend=torch env.device=cuda``)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from hmarl.sdk.errors import MissingExtraError, UsageError

BACKEND_ARGUMENTS = ("backend", "device")


def torch_device(environment: str, arguments: Mapping[str, Any]) -> str | None:
    """The torch device that an environment's arguments ask for; None where NumPy is to compute.

    Args:
        environment: ``FAMILY/TASK``, for messages.
        arguments: as given; of them ``backend`` and ``device`` are read.

    Raises:
        UsageError: no such backend, or a device for NumPy.
        MissingExtraError: torch is not installed.
    """
    backend, device = arguments.get("backend", "numpy"), arguments.get("device")
    if backend not in ("numpy", "torch"):
        raise UsageError(f"backend: got {backend!r}, expected 'numpy' or 'torch'")
    if backend == "numpy":
        if device not in (None, "cpu"):
            raise UsageError(f"device: got {device!r} with backend=numpy, expected 'cpu'; add backend=torch")
        return None
    if device is not None and not isinstance(device, str):
        raise UsageError(f"device: got {device!r}, expected the name of a torch device, e.g. cpu or cuda:0")
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "train", f"{environment} with backend=torch")
    return device or "cpu"
