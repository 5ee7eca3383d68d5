"""What renderers make, as the pictures that films are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.drawing.canvas import Frame

_CHANNELS = (1, 3, 4)


def as_frame(picture: Any) -> Frame | None:
    """A renderer's picture as an array [height, width, 3] uint8 of its own; None when it made none.

    Lists are taken as arrays, of several pictures the last one; grey becomes colour, and what lies behind a transparent
    pixel is white. Floats are brightnesses in [0, 1], or in [0, 255] where one is above 1.

    Raises:
        ValueError: it is no picture; the message says what was got.
    """
    if picture is None:
        return None
    array = np.asarray(picture)
    if array.ndim == 4 and len(array):
        array = array[-1]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.dtype.kind not in "fiub" or array.ndim != 3 or array.shape[-1] not in _CHANNELS or not array.size:
        got = f"{type(picture).__name__} of shape {np.shape(array)} and dtype {array.dtype}"
        raise ValueError(f"got a {got}, expected a picture [height, width, 3]")
    return _coloured(_bytes(array))


def _bytes(array: npt.NDArray[Any]) -> Frame:
    if array.dtype == np.uint8:
        return array
    values = np.nan_to_num(array.astype(np.float64))
    in_unit = array.dtype.kind == "b" or (array.dtype.kind == "f" and values.max() <= 1.0)
    return np.asarray(np.clip(values * 255.0 if in_unit else values, 0.0, 255.0).round().astype(np.uint8))


def _coloured(array: Frame) -> Frame:
    """Red, green and blue of a picture with 1, 3 or 4 channels."""
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    if array.shape[-1] == 4:
        opacity = array[..., 3:].astype(np.float64) / 255.0
        return (array[..., :3] * opacity + 255.0 * (1.0 - opacity)).round().astype(np.uint8)
    return np.ascontiguousarray(array).copy()
