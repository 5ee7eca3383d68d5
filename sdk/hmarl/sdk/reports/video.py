"""Pictures of an episode: played once more, drawn step by step, written as GIF or MP4."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.runtime.bundle import replacing
from hmarl.sdk.drawing.canvas import Frame
from hmarl.sdk.drawing.frames import as_frame
from hmarl.sdk.environment import LocatesAgents, VectorEnvironment, as_array, as_numpy
from hmarl.sdk.errors import HmarlError, MissingExtraError, UsageError
from hmarl.sdk.evaluation.annotation import TeamAnnotation, explanation
from hmarl.sdk.evaluation.closed_loop import limit_of
from hmarl.sdk.reports.overlay import draw_over
from hmarl.sdk.team import Team

_MP4_BLOCK = 16  # H.264 codes blocks of this many pixels


@dataclass(frozen=True)
class Recording:
    """One episode.

    Attributes:
        seed: the episode's seed.
        frames: pictures [height, width, 3], one before each step; empty when the task cannot be drawn, cut short when
            its renderer fails.
        rewards: [T] float64, the team reward of every step.
        annotations: what the team told of itself at every step, T of them; empty when it tells nothing.
        drawn_over: the frames show the annotations, see ``draw_over``: the environment knows where its agents are.
        problem: why there are no pictures from some step on; None where the renderer did what it should.
    """

    seed: int
    frames: list[Frame]
    rewards: npt.NDArray[np.float64]
    annotations: list[TeamAnnotation] = field(default_factory=list)
    drawn_over: bool = False
    problem: str | None = None


def record_episode(
    environment: VectorEnvironment, team: Team, seed: int, max_frames: int = 1000, step_limit: int | None = None
) -> Recording:
    """Play one episode in row 0 and draw it. A renderer that fails costs the pictures, not the episode.

    Args:
        environment: any batch size; the other rows play along and are ignored.
        team: who acts.
        seed: the episode's seed (not that of an evaluation).
        max_frames: pictures kept at most, the first ones.
        step_limit: steps after which the episode is cut off, as in an evaluation: see ``limit_of``.
    """
    batch = environment.batch_size
    seeds = np.full(batch, seed, np.int64)
    observation = as_numpy(environment.reset(seeds))
    team.reset(seeds)
    running = np.arange(batch) == 0
    frames: list[Frame] = []
    places: list[npt.NDArray[np.float64]] = []
    rewards: list[float] = []
    annotations: list[TeamAnnotation] = []
    problem: str | None = None
    for _ in range(limit_of(environment.spec, step_limit)):
        # Drawn before the step: after the last one the environment has already started its next episode.
        picture = None
        if len(frames) < max_frames and problem is None:
            picture, problem = _drawn(environment)
        if picture is not None:
            frames.append(picture)
            if isinstance(environment, LocatesAgents):
                places.append(environment.agent_pixels(0))
        actions = team.act(observation, running)
        told = explanation(team)
        if told is not None:
            annotations.append(told)
        result = environment.step(actions)
        rewards.append(float(environment.spec.team_rewards(as_array(result.rewards), observation.active)[0]))
        if result.terminated[0] or result.truncated[0]:
            break
        observation = as_numpy(result.observation)
    drawn_over = bool(annotations and places)
    if drawn_over:
        # Only now, because the goals' colours depend on all of them.
        frames = draw_over(frames, annotations, places)
    return Recording(seed, frames, np.asarray(rewards), annotations, drawn_over, problem)


def _drawn(environment: VectorEnvironment) -> tuple[Frame | None, str | None]:
    """The picture of row 0, and what went wrong."""
    try:
        return as_frame(environment.render(0)), None
    except HmarlError as error:
        return None, str(error)
    # The renderer of a foreign environment may do anything, sys.exit included.
    except (Exception, SystemExit) as error:
        return None, f"render: {type(error).__name__}: {error}"


def write_video(path: Path, frames: list[Frame], frames_per_second: float) -> None:
    """Write pictures as an animated GIF or an MP4 (H.264), by the name's ending; whole or not at all.

    Args:
        path: ending in ``.gif`` or ``.mp4``.
        frames: pictures, at least one; smaller ones lie in the upper left corner of a white ground.
        frames_per_second: speed of playing.

    Raises:
        UsageError: another ending, or no pictures.
        MissingExtraError: imageio is not installed.
    """
    if path.suffix not in (".gif", ".mp4"):
        raise UsageError(f"video: got '{path.name}', expected a name ending in .gif or .mp4")
    if not frames:
        raise UsageError("video: got no pictures; this environment cannot be drawn")
    try:
        import imageio.v3 as imageio  # noqa: PLC0415 - part of the eval extra
    except ImportError as error:
        raise MissingExtraError("imageio", "eval", "writing a video") from error
    options: dict[str, Any] = {"duration": 1000.0 / frames_per_second, "loop": 0}
    height, width = (max(frame.shape[side] for frame in frames) for side in (0, 1))
    if path.suffix == ".mp4":
        height, width = (-(-size // _MP4_BLOCK) * _MP4_BLOCK for size in (height, width))
        options = {"fps": frames_per_second, "codec": "libx264", "plugin": "FFMPEG", "macro_block_size": _MP4_BLOCK}
    with replacing(path, path.suffix) as temporary:
        imageio.imwrite(temporary, np.stack([_on_ground(frame, height, width) for frame in frames]), **options)


def _on_ground(frame: Frame, height: int, width: int) -> Frame:
    """The picture in the corner of a white ground of that size."""
    if frame.shape[:2] == (height, width):
        return frame
    ground = np.full((height, width, 3), 255, np.uint8)
    ground[: frame.shape[0], : frame.shape[1]] = frame
    return ground
