"""Encoders of pictures, the first layers of networks that see any: convolutions as pure functions of named parameters.

A picture comes as it is in the rollout: its numbers row by row, bytes where the environment gives bytes, with what is
seen beside it behind them. Whatever is done to it is done here, and so is part of the exported graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import ImageFormat
from hmarl.trainer.networks.activation import Activation, EncoderKind
from hmarl.trainer.networks.layers import ACTIVATIONS, Parameters, Shapes

# Without gradients so many pictures at a time, which bounds what the layers between take.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Convolution:
    """One layer: ``channels`` filters of ``kernel`` by ``kernel`` pixels."""

    channels: int
    kernel: int
    stride: int
    padding: int = 0

    def side(self, side: int) -> int:
        """Pixels of the output's height or width, from those of the input; below 1 where the kernel does not fit."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1


# Mnih et al. 2015; the dense layer of 512 is hidden_sizes.
NATURE = (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1))
# For pictures on which the kernels of the former do not fit.
SMALL = (Convolution(16, 3, 2, 1), Convolution(32, 3, 2, 1))
# Espeholt et al. 2018 (IMPALA), the deep network: channels of its three sections of residual blocks.
IMPALA = (16, 32, 32)
_SAME, _POOL = Convolution(0, 3, 1, 1), Convolution(0, 3, 2, 1)


class ImageSettings(Protocol):
    """The settings that encoders read."""

    image_encoder: EncoderKind
    image_downsample: int
    activation: Activation


@dataclass(frozen=True)
class ImageEncoder:
    """Pictures [..., H·W·C + rest] to features [..., F + rest]; what lies behind a picture is passed on.

    Attributes:
        image: the pictures' format.
        kind: which layers.
        downsample: k: every k-th pixel of each row and column is looked at, the first one half a step from the edge.
        activation: after each convolution.
    """

    image: ImageFormat
    kind: Literal["nature", "impala", "small"]
    downsample: int = 1
    activation: Activation = "relu"

    @classmethod
    def of(cls, image: ImageFormat | None, settings: ImageSettings) -> ImageEncoder | None:
        """As the settings say; None for what is no picture.

        Raises:
            UsageError: pictures are too small, or too little would be left of them.
        """
        if image is None:
            return None
        kind, most = settings.image_encoder, 2 * min(image.height, image.width)
        if settings.image_downsample > most:
            raise UsageError(
                f"algorithm.image_downsample: got {settings.image_downsample} for pictures of {image}, expected at "
                f"most {most}: nothing would be left of them"
            )
        if kind == "auto":
            fits = cls(image, "nature", settings.image_downsample).least_side >= 1
            kind = "nature" if fits else "small"
        encoder = cls(image, kind, settings.image_downsample, settings.activation)
        if encoder.least_side < 1:
            raise UsageError(
                f"algorithm.image_encoder: got {kind} for pictures of {image} with image_downsample="
                f"{settings.image_downsample}, expected at least 36 x 36 pixels after it; choose small or impala, or a "
                "smaller image_downsample"
            )
        return encoder

    @property
    def _start(self) -> int:
        return (self.downsample - 1) // 2

    @cached_property
    def _sides(self) -> tuple[int, int]:
        """Height and width of what is looked at."""
        height, width = (len(range(self._start, side, self.downsample)) for side in self.image.shape[:2])
        return height, width

    @property
    def _layers(self) -> Sequence[Convolution]:
        if self.kind == "impala":
            return [_POOL] * len(IMPALA)
        return NATURE if self.kind == "nature" else SMALL

    def _after(self) -> list[int]:
        """Height and width of the last layer's output."""
        sides = list(self._sides)
        for layer in self._layers:
            sides = [layer.side(side) if side >= 1 else side for side in sides]
        return sides

    @property
    def least_side(self) -> int:
        """Of the last layer's output; below 1 where the picture is too small."""
        return min(*self._after(), *self._sides)

    @cached_property
    def size(self) -> int:
        """F, the number of features."""
        height, width = self._after()
        return height * width * (IMPALA[-1] if self.kind == "impala" else self._layers[-1].channels)

    def width(self, input_size: int) -> int:
        """F + rest, from the width of a network's input."""
        return input_size - self.image.size + self.size

    @cached_property
    def shapes(self) -> Shapes:
        """Name and shape of every parameter, in the order in which they lie in the flat vector."""
        shapes: Shapes = {}
        before = self.image.channels
        if self.kind == "impala":
            for section, channels in enumerate(IMPALA):
                shapes |= _filters(f"encoder.{section}", before, channels, 3)
                for layer in range(4):
                    shapes |= _filters(f"encoder.{section}.{layer}", channels, channels, 3)
                before = channels
            return shapes
        for number, convolution in enumerate(self._layers):
            shapes |= _filters(f"encoder.{number}", before, convolution.channels, convolution.kernel)
            before = convolution.channels
        return shapes

    def __call__(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Encode.

        Args:
            parameters: of one network, or of a stack of N.
            x: [..., H·W·C + rest]; [N, M, H·W·C + rest] for a stack. Bytes as ``beside`` has joined them, or float32.
        """
        first = parameters["encoder.0.weight"]
        own = {name: value for name, value in parameters.items() if name.startswith("encoder.")}
        if first.dim() == 4:
            return self._encoded(own, x)
        if first.stride(0) == 0 or len(first) == 1:  # one network under N names
            return self._encoded({name: value[0] for name, value in own.items()}, x)
        each = ({name: value[n] for name, value in own.items()} for n in range(len(first)))
        return torch.stack([self._encoded(one, rows) for one, rows in zip(each, x, strict=True)])

    def _encoded(self, parameters: Parameters, x: Tensor) -> Tensor:
        """[..., F + rest] by one network."""
        size = self.image.size
        rows = x.reshape(-1, x.shape[-1])
        # Guarded by what an exported graph, of any number of rows, does not ask.
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and len(rows) > _ROWS_AT_ONCE:
            features = torch.cat([self._features(parameters, part[:, :size]) for part in rows.split(_ROWS_AT_ONCE)])
        else:
            features = self._features(parameters, rows[:, :size])
        features = features.reshape(*x.shape[:-1], self.size)
        if x.shape[-1] == size:
            return features
        return torch.cat([features, _rest(x[..., size:])], dim=-1)

    def _features(self, parameters: Parameters, pixels: Tensor) -> Tensor:
        """[M, F] of pictures [M, H·W·C]."""
        picture = pixels.reshape(-1, *self.image.shape)
        if self.downsample > 1:
            picture = picture[:, self._start :: self.downsample, self._start :: self.downsample]
        picture = picture.permute(0, 3, 1, 2).float()
        if self.image.dtype == "uint8":
            picture = picture * (1.0 / 255.0)
        activation = ACTIVATIONS[self.activation]
        if self.kind == "impala":
            return activation(self._residual(parameters, picture)).flatten(1)
        for number, layer in enumerate(self._layers):
            picture = activation(_convolved(parameters, f"encoder.{number}", picture, layer))
        return picture.flatten(1)

    def _residual(self, parameters: Parameters, x: Tensor) -> Tensor:
        """IMPALA's sections: a convolution, max pooling, two residual blocks of two convolutions each."""
        activation = ACTIVATIONS[self.activation]
        for section in range(len(IMPALA)):
            x = _convolved(parameters, f"encoder.{section}", x, _SAME)
            x = functional.max_pool2d(x, _POOL.kernel, _POOL.stride, _POOL.padding)
            for block in (0, 2):
                inner = _convolved(parameters, f"encoder.{section}.{block}", activation(x), _SAME)
                x = x + _convolved(parameters, f"encoder.{section}.{block + 1}", activation(inner), _SAME)
        return x


def _filters(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _convolved(parameters: Parameters, name: str, x: Tensor, layer: Convolution) -> Tensor:
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    return functional.conv2d(x, weight, bias, stride=layer.stride, padding=layer.padding)


def beside(features: Tensor, rest: Sequence[Tensor]) -> Tensor:
    """A network's input: [..., D] what is observed, then what is seen beside it.

    Behind pictures of bytes numbers lie as their bytes, four each: as float32 the pictures would take four times the
    memory.

    Args:
        features: [..., D] float32, or uint8 pixels.
        rest: [..., C] float32 each.
    """
    if not rest:
        return features
    if features.dtype != torch.uint8:
        return torch.cat([features, *rest], dim=-1)
    return torch.cat([features, torch.cat(list(rest), dim=-1).view(torch.uint8)], dim=-1)


def _rest(rest: Tensor) -> Tensor:
    """[..., C] float32 what ``beside`` has put behind a picture."""
    if rest.dtype != torch.uint8:
        return rest
    return rest.clone(memory_format=torch.contiguous_format).view(torch.float32)
