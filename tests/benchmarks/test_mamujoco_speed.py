"""Frames/s of the batched MaMuJoCo, everything included, beside those of mamujoco_v1 in the same run.

The batches use every CPU, the original one: the ratio is meant for a machine on which nothing else runs.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("gymnasium_robotics")

from gymnasium_robotics import mamujoco_v1

from hmarl.sdk.environments import make
from hmarl.sdk.environments.mamujoco import MamujocoEnvironment
from hmarl.sdk.team import sample_actions

pytestmark = pytest.mark.benchmark

BATCH_SIZES = (1, 64, 1024)
ROUNDS = 4
# A step costs more with more contacts: both play from a reset, equally far, with many seeds.
STEPS = 50
ORIGINAL_SEEDS = 20
TASKS = [
    "HalfCheetah-2x3",
    "HalfCheetah-6x1",
    "Walker2d-2x3",
    "Ant-4x2",
    "Hopper-3x1",
    "ManySegmentSwimmer-3x2",
]


def batched(task: str, batch_size: int) -> tuple[int, Callable[[], None]]:
    """Frames of one run of the batched environment, and the run."""
    environment = make(f"mamujoco/{task}", batch_size)
    assert isinstance(environment, MamujocoEnvironment)
    generator = np.random.default_rng(0)
    actions = [
        tuple(
            sample_actions(group.example.action_space, (batch_size, len(group.agents)), None, generator)
            for group in environment.spec.groups
        )
        for _ in range(STEPS)
    ]
    repetitions = max(1, ORIGINAL_SEEDS // batch_size)

    def run() -> None:
        for first_seed in range(repetitions):
            environment.reset(np.arange(batch_size) + first_seed)
            for chosen in actions:
                environment.step(chosen)

    return repetitions * STEPS * batch_size, run


def original(task: str) -> tuple[int, Callable[[], None]]:
    """The same of the single original, its state included."""
    robot, _, partition = task.partition("-")
    environment = mamujoco_v1.parallel_env(robot, partition)
    generator = np.random.default_rng(0)
    actions = [
        {
            agent: generator.uniform(space.low, space.high).astype(np.float32)
            for agent, space in environment.action_spaces.items()
        }
        for _ in range(STEPS)
    ]

    def run() -> None:
        for seed in range(ORIGINAL_SEEDS):
            environment.reset(seed=seed)
            for chosen in actions:
                _, _, terminated, truncated, _ = environment.step(chosen)
                environment.state()
                if terminated["agent_0"] or truncated["agent_0"]:
                    environment.reset()

    return ORIGINAL_SEEDS * STEPS, run


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_faster_than_the_original(
    task: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the original writes a log into the working directory
    runs = {0: original(task), **{batch_size: batched(task, batch_size) for batch_size in BATCH_SIZES}}
    speeds: dict[int, list[float]] = {key: [] for key in runs}
    for number in range(ROUNDS + 1):
        for key, (frames, run) in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                speeds[key].append(frames / (time.perf_counter() - start))
    best = {key: max(measured) for key, measured in speeds.items()}
    with capsys.disabled():
        print(f"\n{task}: mamujoco_v1 {best[0]:,.0f} frames/s (median {np.median(speeds[0]):,.0f})")
        for batch_size in BATCH_SIZES:
            ratio, median = best[batch_size] / best[0], np.median(speeds[batch_size])
            print(f"  B = {batch_size:4}: {best[batch_size]:9,.0f} frames/s (median {median:,.0f}), {ratio:5.1f} x")
    assert best[1] > 0.7 * best[0]
    assert best[64] > 1.2 * best[0]
