"""Renderers of all kinds: what they make is filmed, and one that fails costs nothing but the film."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from rich.console import Console

from hmarl.sdk.commands.evaluate import _record
from hmarl.sdk.drawing.frames import as_frame
from hmarl.sdk.environments import make
from hmarl.sdk.errors import EnvironmentFault
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.reports.report import ReportContent, write_report
from hmarl.sdk.reports.video import record_episode, write_video
from hmarl.sdk.team import RandomTeam
from toy_bundle import write_toy_bundle

PAINTER = "pettingzoo/odd_toys:Painter"


def record(kind, workers):
    environment = make(PAINTER, 2, workers=workers, kind=kind, render_mode="rgb_array")
    try:
        return record_episode(environment, RandomTeam(environment.spec), 3)
    finally:
        environment.close()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["sound", "list", "alpha", "float", "grey", "grows", "none"])
def test_pictures_of_all_kinds_make_a_film(kind, workers, tmp_path):
    recording = record(kind, workers)
    assert recording.problem is None
    assert len(recording.frames) == (4 if kind == "none" else 5)
    assert recording.rewards.tolist() == [2.0] * 5
    assert all(frame.dtype == np.uint8 and frame.shape[2] == 3 for frame in recording.frames)
    if kind not in ("grows", "none"):
        # White up to x = 5, 10, ..., black beyond, whatever the kind.
        assert [int(frame[0, :, 0].sum()) // 255 for frame in recording.frames] == [5, 10, 15, 20, 25]
    for name in ("episode.gif", "episode.mp4"):
        write_video(tmp_path / name, recording.frames, 10.0)
        height, width = imageio.imread(tmp_path / name, index=0).shape[:2]
        assert (height >= max(frame.shape[0] for frame in recording.frames), width >= 30) == (True, True)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "frames", "problem"),
    [
        ("fails", 2, "environment 0: render: RuntimeError: cannot connect to display"),
        ("exits", 0, r"environment 0: render: it called sys.exit\(1\)"),
        ("text", 0, "environment 0: render: got a .*expected a picture"),
    ],
)
def test_a_renderer_that_fails_costs_the_pictures_from_there_on(kind, frames, problem, workers):
    recording = record(kind, workers)
    assert len(recording.frames) == frames
    assert recording.rewards.tolist() == [2.0] * 5
    assert re.match(problem, recording.problem)


def test_a_renderer_that_takes_its_process_along_is_named():
    with pytest.raises(EnvironmentFault, match=r"the worker process died \(exit code 9\)|the environment is closed"):
        record("crashes", workers=1)


@pytest.mark.parametrize(
    ("kind", "told"), [("fails", "the video ends after 2 pictures: environment 0: render:"), ("crashes", "no video: ")]
)
def test_an_evaluation_keeps_all_but_the_film(kind, told, tmp_path):
    arguments = {"kind": kind, "render_mode": "rgb_array", "workers": 1}
    environment = {"name": PAINTER, "arguments": arguments, "team_reward": "sum", "control_period_s": 0.1}
    bundle = write_toy_bundle(tmp_path / "bundle", agents=("a", "b"), observation_size=2, environment=environment)
    command = [
        "hmarl.sdk.commands.evaluate",
        "--bundle",
        bundle.path,
        "--env",
        PAINTER,
        "--episodes",
        "2",
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"episodes.csv", "evaluation.json", "report.html"}
    assert ("episode.gif" in written) == (kind == "fails")


class Fickle(RandomTeam):
    """Draws on from episode to episode."""

    def reset(self, seeds):
        if not hasattr(self, "begun"):
            super().reset(seeds)
        self.begun = True


@pytest.mark.parametrize("team", [RandomTeam, Fickle])
def test_a_film_of_another_episode_is_named(team, tmp_path):
    environment, told = make("mpe/simple_spread", 2, max_cycles=5), io.StringIO()
    played = team(environment.spec)
    evaluation = evaluate(environment, played, 3, 0)
    recording, video = _record(tmp_path, "gif", environment, played, evaluation, Console(file=told, width=300))
    assert video == tmp_path / "episode.gif"
    assert (recording.differs is None) == (team is RandomTeam)
    said = told.getvalue()
    assert said == ("" if team is RandomTeam else f"the film: {recording.differs}\n")
    content = ReportContent(evaluation, "", {}, None, recording, video)
    write_report(tmp_path / "report.html", content)
    assert ("Not as it was evaluated" in (tmp_path / "report.html").read_text()) == (team is Fickle)


# --- one picture -----------------------------------------------------------------------------------------------------


def test_what_is_a_picture_becomes_one():
    assert as_frame(None) is None
    half = np.full((2, 4, 3), 0.5)
    assert as_frame(half)[0, 0].tolist() == [128] * 3
    assert as_frame(half * 400.0)[0, 0].tolist() == [200] * 3
    assert as_frame(np.ones((2, 4), bool))[1, 3].tolist() == [255] * 3
    assert as_frame(np.moveaxis(np.arange(30, dtype=np.uint8).reshape(2, 5, 3), -1, 0))[1, 0].tolist() == [15, 16, 17]
    assert as_frame([np.zeros((2, 4, 3), np.uint8), np.full((2, 4, 3), 7, np.uint8)])[0, 0].tolist() == [7] * 3
    # Half of black over white.
    assert as_frame(np.array([[[0, 0, 0, 128]]], np.uint8))[0, 0].tolist() == [127] * 3
    assert as_frame(np.array([[[0.0, np.nan, 1.0]]]))[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    "wrong", ["ansi", np.zeros(3), np.zeros((2, 4, 5)), np.zeros((0, 4, 3)), 3.0, np.zeros((2, 2), complex)]
)
def test_what_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected a picture \[height, width, 3\]"):
        as_frame(wrong)
