"""Frames/s of the batched MPE port, everything included, beside those of the mpe2 package in the same run."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.environments.mpe import MpeEnvironment
from hmarl.sdk.team import sample_actions

pytestmark = pytest.mark.benchmark

BATCH_SIZES = (1, 20, 64, 1024)
EPISODE_STEPS = 25


def best_seconds(episode: Callable[[], None], repetitions: int) -> float:
    """The fastest of several runs, after one that is not counted: what the code takes when nothing else runs."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        episode()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def port_frames_per_s(task: str, batch_size: int) -> float:
    environment = make(f"mpe/{task}", batch_size)
    assert isinstance(environment, MpeEnvironment)
    generator = np.random.default_rng(0)
    actions = [
        tuple(
            sample_actions(group.example.action_space, (batch_size, len(group.agents)), None, generator)
            for group in environment.spec.groups
        )
        for _ in range(EPISODE_STEPS)
    ]
    environment.reset(np.arange(batch_size))

    def episode() -> None:
        for chosen in actions:
            environment.step(chosen)

    return EPISODE_STEPS * batch_size / best_seconds(episode, repetitions=40)


def original_frames_per_s(task: str) -> float:
    modules: Any = pytest.importorskip("mpe2.all_modules").mpe_environments
    (module,) = (module for name, module in modules.items() if f"/{task}_v" in name)
    environment = module.parallel_env()
    generator = np.random.default_rng(0)
    actions = [
        {agent: int(generator.integers(environment.action_space(agent).n)) for agent in environment.possible_agents}
        for _ in range(EPISODE_STEPS)
    ]

    def episode() -> None:
        environment.reset()
        for chosen in actions:
            environment.step(chosen)
            environment.state()

    return EPISODE_STEPS / best_seconds(episode, repetitions=20)


@pytest.mark.parametrize("task", ["simple_spread", "simple_reference", "simple_speaker_listener"])
def test_port_is_faster_than_mpe2(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    original = original_frames_per_s(task)
    speeds = {batch_size: port_frames_per_s(task, batch_size) for batch_size in BATCH_SIZES}
    with capsys.disabled():
        print(f"\n{task}: mpe2 {original:,.0f} frames/s")
        for batch_size, speed in speeds.items():
            ratio, step_us = speed / original, batch_size / speed * 1e6
            print(f"  B = {batch_size:4}: {speed:11,.0f} frames/s, {ratio:6.1f} x mpe2, {step_us:6.0f} us a step")
    assert speeds[1] > original
    assert speeds[20] > 20 * original
    assert speeds[1024] > 80 * original
