"""Frames/s of grid worlds and SMAC's interface at several batch sizes, beside one original in the same run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.team import sample_actions
from skirmish import Skirmish

pytestmark = pytest.mark.benchmark

BATCH_SIZES = (1, 64, 1024)
FRAMES = 20_000


def frames_per_s(step: Callable[[], None], frames: int, batch: int = 1) -> float:
    """After a few steps that are not counted."""
    for _ in range(3):
        step()
    steps = max(5, frames // batch)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return batch * steps / (time.perf_counter() - start)


def stepped(name: str, batch: int, **arguments: Any) -> float:
    environment = make(name, batch, **arguments)
    generator = np.random.default_rng(0)
    seen = environment.reset(np.arange(batch))

    def step() -> None:
        nonlocal seen
        (group,) = environment.spec.groups
        shape = (batch, len(group.agents))
        actions = sample_actions(group.example.action_space, shape, seen.action_masks[0], generator)
        seen = environment.step((actions,)).observation

    try:
        return frames_per_s(step, FRAMES if batch > 1 else FRAMES // 4, batch)
    finally:
        environment.close()


def report(name: str, original: float, capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[int, float]:
    """Print and return the frames/s of each batch size."""
    speeds = {batch: stepped(name, batch, **arguments) for batch in BATCH_SIZES}
    with capsys.disabled():
        print(f"\n{name}: one original {original:,.0f} frames/s")
        for batch, speed in speeds.items():
            print(f"  B = {batch:4}: {speed:9,.0f} frames/s, {speed / original:5.2f} x the original")
    return speeds


def gymnasium_frames_per_s(package: str, identifier: str) -> float:
    """Of one copy of a grid world that is registered with Gymnasium by its package."""
    pytest.importorskip(package)
    import gymnasium  # noqa: PLC0415 - the package registers itself with it

    original: Any = gymnasium.make(identifier, disable_env_checker=True).unwrapped
    original.reset(seed=0)
    generator = np.random.default_rng(0)
    choices = [int(space.n) for space in original.action_space]

    def step() -> None:
        if original.step(generator.integers(choices).tolist())[2]:
            original.reset()

    return frames_per_s(step, FRAMES // 4)


@pytest.mark.parametrize(
    ("name", "package", "identifier"),
    [
        ("lbf/8x8-2p-2f-coop", "lbforaging", "Foraging-8x8-2p-2f-coop-v3"),
        ("rware/tiny-2ag", "rware", "rware-tiny-2ag-v2"),
    ],
)
def test_gymnasium_packages(name: str, package: str, identifier: str, capsys: pytest.CaptureFixture[str]) -> None:
    original = gymnasium_frames_per_s(package, identifier)
    # Copies in worker processes cannot win on a busy machine; they should not lose much either.
    assert report(name, original, capsys)[64] > original / 3


def test_foraging_with_survival(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside foraging without survival, on a field of the same size with as many players."""
    original = gymnasium_frames_per_s("lbforaging", "Foraging-2s-10x10-5p-4f-v3")
    assert report("lbfws/hard", original, capsys, sight=2)[64] > 5 * original


def test_smac_interface(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    original = Skirmish()
    original.reset()
    generator = np.random.default_rng(0)

    def step() -> None:
        legal = original.get_avail_actions()
        actions = [int(generator.choice(np.flatnonzero(row))) for row in legal]
        _, ended, _ = original.step(actions)
        if ended:
            original.reset()
        original.get_obs(), original.get_state()

    single = frames_per_s(step, FRAMES // 4)
    assert report("smac/3m", single, capsys, entry="skirmish:Skirmish")[64] > single / 3
