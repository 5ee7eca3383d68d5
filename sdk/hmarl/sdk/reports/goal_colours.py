"""Colours of goals and clusters: equal goals have equal colours, similar goals similar ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmarl.sdk.evaluation.annotation import TeamAnnotation

Numbers = npt.NDArray[np.float64]

# Apart from the colours in which agents are drawn; used again from the start beyond six clusters.
_CLUSTER_COLOURS = np.array(
    [
        (0.84, 0.00, 0.49),
        (0.00, 0.52, 0.56),
        (0.25, 0.19, 0.60),
        (0.43, 0.56, 0.00),
        (0.62, 0.16, 0.11),
        (0.3, 0.3, 0.3),
    ]
)
# Of the colours of goals in Oklab: how far from grey, how light, and how far lighter or darker.
_CHROMA, _LIGHTNESS, _LIGHTNESS_RANGE = 0.15, 0.72, 0.16
_FULL_COLOUR = 0.9  # the share of goals that lie within full colour
_MANY_GOALS = 6  # beyond which every second discrete goal is darker
_EQUAL = 1e-6  # goals that differ by less, relative to their size, do not differ


def cluster_colour(cluster: int) -> Numbers:
    """Red, green and blue in [0, 1]."""
    colour: Numbers = _CLUSTER_COLOURS[cluster % len(_CLUSTER_COLOURS)]
    return colour


@dataclass(frozen=True)
class PrincipalComponents:
    """The directions in which points differ most.

    Attributes:
        mean: [G] of the points.
        directions: [3, G] orthonormal, the strongest first; zero where there are fewer.
        shares: [3] of the points' variance.
    """

    mean: Numbers
    directions: Numbers
    shares: Numbers

    @classmethod
    def of(cls, points: Numbers) -> PrincipalComponents:
        """Of points [M, G], M at least 1."""
        mean = points.mean(0)
        _, strengths, directions = np.linalg.svd(points - mean, full_matrices=False)
        variances = strengths**2 / max(float((strengths**2).sum()), 1e-300)
        missing = max(3 - len(variances), 0)
        return cls(mean, np.pad(directions, ((0, missing), (0, 0)))[:3], np.pad(variances, (0, missing))[:3])

    def project(self, points: npt.ArrayLike) -> Numbers:
        """[..., 3] coordinates of points [..., G]."""
        return np.asarray((np.asarray(points) - self.mean) @ self.directions.T)


class GoalColours:
    """Colours for the goals of one episode.

    Vectors: the first two principal components are the colour's hue and strength, grey in the middle, the third one its
    lightness. Discrete goals: one hue each.

    Args:
        goals: [M, G] all goals that were told, M at least 1.
        discrete: they are one-hot.
    """

    def __init__(self, goals: npt.NDArray[np.float32], discrete: bool) -> None:
        self.discrete = discrete
        self.components = PrincipalComponents.of(goals.astype(np.float64))
        distances = np.hypot(*self.components.project(goals)[:, :2].T)
        differ = float(distances.max()) > _EQUAL * (1.0 + float(np.abs(goals).max()))
        self.extent = float(np.quantile(distances, _FULL_COLOUR)) if differ else np.inf

    @classmethod
    def of(cls, annotations: Sequence[TeamAnnotation]) -> GoalColours | None:
        """For what the agents were told in an episode; None where no agent was told anything."""
        told = [each.goals[each.active] for each in annotations if each.goals is not None]
        return cls(np.concatenate(told), annotations[0].discrete) if sum(map(len, told)) else None

    @classmethod
    def of_sub_goals(cls, annotations: Sequence[TeamAnnotation]) -> GoalColours | None:
        """For what the sub-managers were told."""
        told = [each.sub_goals for each in annotations if each.sub_goals is not None]
        return cls(np.concatenate(told), annotations[0].discrete) if told else None

    def __call__(self, goals: npt.ArrayLike) -> Numbers:
        """[..., 3] red, green and blue in [0, 1] of goals [..., G]."""
        goals = np.asarray(goals)
        if self.discrete:
            return np.asarray(choice_colours(goals.shape[-1])[goals.argmax(-1)])
        return self.of_components(self.components.project(goals))

    def of_components(self, components: Numbers) -> Numbers:
        """[..., 3] colours of principal components [..., 3]."""
        place = np.clip(components / self.extent, -1.2, 1.2)
        return _from_oklab(
            _LIGHTNESS + _LIGHTNESS_RANGE * place[..., 2], _CHROMA * place[..., 0], _CHROMA * place[..., 1]
        )


def choice_colours(count: int) -> Numbers:
    """[count, 3] colours of discrete goals."""
    number = np.arange(count)
    angle = 2 * np.pi * number / count + 0.5
    lightness = np.where((number % 2 == 1) & (count > _MANY_GOALS), _LIGHTNESS - _LIGHTNESS_RANGE, _LIGHTNESS)
    return _from_oklab(lightness, _CHROMA * np.cos(angle), _CHROMA * np.sin(angle))


def _from_oklab(lightness: Numbers, green_red: Numbers, blue_yellow: Numbers) -> Numbers:
    """[..., 3] sRGB of colours in Oklab, in which equal distances look equally far apart.

    Source: Ottosson 2020, "A perceptual color space for image processing".
    """
    lab = np.stack([lightness, green_red, blue_yellow], axis=-1)
    cones = lab @ np.array([(1.0, 1.0, 1.0), (0.3963377774, -0.1055613458, -0.0894841775),
                            (0.2158037573, -0.0638541728, -1.2914855480)])  # fmt: skip
    linear = cones**3 @ np.array([(4.0767416621, -1.2684380046, -0.0041960863),
                                  (-3.3077115913, 2.6097574011, -0.7034186147),
                                  (0.2309699292, -0.3413193965, 1.7076147010)])  # fmt: skip
    linear = np.clip(linear, 0.0, 1.0)
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))
