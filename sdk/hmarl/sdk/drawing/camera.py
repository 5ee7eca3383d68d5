"""Where the points of a two-dimensional world lie in its picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """One mapping from a world, x to the right and y upwards, to pixels from the picture's upper left corner.

    Attributes:
        left, top: the world's point in that corner.
        scale: pixels that one unit of the world takes.
        height, width: of the picture, in pixels.
    """

    left: float
    top: float
    scale: float
    height: int
    width: int

    @classmethod
    def square(cls, centre: tuple[float, float], half_width: float, size_pixels: int) -> Camera:
        """A square picture around ``centre`` that shows ``half_width`` to each side."""
        left, top = centre[0] - half_width, centre[1] + half_width
        return cls(left, top, size_pixels / (2.0 * half_width), size_pixels, size_pixels)

    def pixels(self, points: npt.ArrayLike) -> _Numbers:
        """[..., 2] x and y in the picture of the world's points [..., 2]."""
        return np.asarray((np.asarray(points, np.float64) - (self.left, self.top)) * (self.scale, -self.scale))

    def discs(self, centres: npt.ArrayLike, radii: npt.ArrayLike, present: npt.ArrayLike = True) -> _Numbers:
        """[N, 3] as ``agent_pixels`` hands them out: x, y and radius in pixels, NaN for those who are not there.

        Args:
            centres: [N, 2] in the world.
            radii: [N] or one for all.
            present: [N] bool, or one for all.
        """
        places = self.pixels(centres)
        sizes = np.broadcast_to(np.asarray(radii, np.float64) * self.scale, places.shape[:1])
        found = np.concatenate([places, sizes[:, None]], axis=1)
        return np.where(np.broadcast_to(present, places.shape[:1])[:, None], found, np.nan)

    def axes(self) -> tuple[_Numbers, _Numbers]:
        """The world's x of the middles of all columns, and y of all rows."""
        x = self.left + (np.arange(self.width, dtype=np.float64) + 0.5) / self.scale
        y = self.top - (np.arange(self.height, dtype=np.float64) + 0.5) / self.scale
        return x, y
