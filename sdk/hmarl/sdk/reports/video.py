"""Pictures of an episode: played once more, drawn step by step, written as GIF or MP4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from hmarl.sdk.evaluation.closed_loop import Evaluation, limit_of
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
        annotations: what the team told of itself at every step, T of them, no agent being active where it told nothing;
            empty when it never tells anything.
        drawn_over: the frames show the annotations, see ``draw_over``: the environment knows where its agents are.
        problem: why there are no pictures from some step on; None where the renderer did what it should.
        differs: how it differs from the episode that was to be played once more; None where it is the same.
    """

    seed: int
    frames: list[Frame]
    rewards: npt.NDArray[np.float64]
    annotations: list[TeamAnnotation] = field(default_factory=list)
    drawn_over: bool = False
    problem: str | None = None
    differs: str | None = None


def record_episode(
    environment: VectorEnvironment, team: Team, seed: int, max_frames: int = 1000, step_limit: int | None = None
) -> Recording:
    """Play one episode in row 0 and draw it. A renderer that fails costs the pictures, not the episode.

    Args:
        environment: any batch size; the other rows play along and are ignored. Where episodes depend on those beside
            them, it is none of an evaluation's: see ``record_played``.
        team: who acts.
        seed: the episode's seed (not that of an evaluation).
        max_frames: pictures kept at most, the first ones.
        step_limit: steps after which the episode is cut off, as in an evaluation: see ``limit_of``.
    """
    batch = environment.batch_size
    return _record(environment, team, np.full(batch, seed, np.int64), np.arange(batch) == 0, 0, max_frames, step_limit)


def record_played(
    environment: VectorEnvironment, team: Team, evaluation: Evaluation, episode: int, max_frames: int = 1000
) -> Recording:
    """Play an episode of an evaluation once more, beside those that it was played beside, and draw it.

    They belong to it: VMAS draws for all environments of a batch from one stream, and so do teams that act centrally
    or by chance. In another batch size it is played alone. ``Recording.differs`` says where it became another episode.

    Args:
        environment: that of the evaluation, or one of as many environments.
        team: who acted.
        evaluation: what was played.
        episode: number of the episode in it.
        max_frames: pictures kept at most, the first ones.
    """
    seed, limit = int(evaluation.seeds[episode]), evaluation.step_limit
    if environment.batch_size == evaluation.batch_size:
        wave = evaluation.wave_of(episode)
        row = episode - wave.first
        recording = _record(environment, team, wave.seeds, wave.wanted, row, max_frames, limit)
    else:
        recording = record_episode(environment, team, seed, max_frames, limit)
    return replace(recording, differs=_difference(recording, evaluation, episode))


def _difference(recording: Recording, evaluation: Evaluation, episode: int) -> str | None:
    """How a recording differs from the episode of an evaluation, in words; None where it is the same."""
    steps, expected = len(recording.rewards), int(evaluation.lengths[episode])
    earned, played = float(recording.rewards.sum()), float(evaluation.returns[episode])
    if steps == expected and math.isclose(earned, played, rel_tol=1e-9, abs_tol=1e-9):
        return None
    return (
        f"played once more, episode {episode} (seed {recording.seed}) returned {earned:g} after {steps} steps; in the "
        f"evaluation it returned {played:g} after {expected}: what is shown is another episode"
    )


def _record(
    environment: VectorEnvironment,
    team: Team,
    seeds: npt.NDArray[np.int64],
    running: npt.NDArray[np.bool_],
    row: int,
    max_frames: int,
    step_limit: int | None,
) -> Recording:
    """Play a batch until the episode of one row ends, and draw that one; ``running`` [B] rows are played."""
    observation = as_numpy(environment.reset(seeds))
    team.reset(seeds)
    frames: list[Frame] = []
    places: list[npt.NDArray[np.float64]] = []
    rewards: list[float] = []
    told: list[TeamAnnotation | None] = []
    problem: str | None = None
    for _ in range(limit_of(environment.spec, step_limit)):
        # Drawn before the step: after the last one the environment has already started its next episode.
        picture = None
        if len(frames) < max_frames and problem is None:
            picture, problem = _drawn(environment, row)
        if picture is not None:
            frames.append(picture)
            if isinstance(environment, LocatesAgents):
                places.append(environment.agent_pixels(row))
        actions = team.act(observation, running)
        told.append(explanation(team, row))
        result = environment.step(actions)
        earned = environment.spec.team_rewards(as_array(result.rewards).astype(np.float64), observation.active)
        rewards.append(float(earned[row]))
        running = running & ~(as_array(result.terminated) | as_array(result.truncated))
        if not running[row]:
            break
        observation = as_numpy(result.observation)
    annotations = _of_all_steps(told)
    drawn_over = bool(annotations and places)
    if drawn_over:
        # Only now, because the goals' colours depend on all of them.
        frames = draw_over(frames, annotations, places)
    return Recording(int(seeds[row]), frames, np.asarray(rewards), annotations, drawn_over, problem)


def _of_all_steps(told: Sequence[TeamAnnotation | None]) -> list[TeamAnnotation]:
    """An annotation a step, so that each stays beside its picture; none at all of a team that never told anything."""
    example = next((each for each in told if each is not None), None)
    return [] if example is None else [each or example.silent() for each in told]


def _drawn(environment: VectorEnvironment, row: int) -> tuple[Frame | None, str | None]:
    """The picture of a row, and what went wrong."""
    try:
        return as_frame(environment.render(row)), None
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
