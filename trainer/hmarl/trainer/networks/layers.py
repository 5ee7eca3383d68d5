"""Layers as pure functions of named parameters, for networks that are built of several (``FlatNetwork.named``)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

Parameters = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    """Of a layer for ``dense``."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, width: int) -> Shapes:
    """Of a layer for ``norm``."""
    return {f"{name}.gain": (width,), f"{name}.bias": (width,)}


def dense(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """``x Wᵀ + b``."""
    return functional.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def norm(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Layer normalisation."""
    gain = parameters[f"{name}.gain"]
    return functional.layer_norm(x, gain.shape, gain, parameters[f"{name}.bias"])
