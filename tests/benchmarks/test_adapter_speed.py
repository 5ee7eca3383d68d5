"""Frames per second of the PettingZoo adapter and of VMAS, each beside the bare package in the same run."""

import time

import numpy as np
import pytest

from hmarl.sdk.environments import make

torch = pytest.importorskip("torch")
vmas = pytest.importorskip("vmas")
mpe2_spread = pytest.importorskip("mpe2.simple_spread_v3")


@pytest.fixture(autouse=True)
def _one_thread():
    # VMAS's tensors are small: on a busy machine torch's threads wait for each other far longer than they compute.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def frames_per_s(step, batch, steps):
    for _ in range(5):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return batch * steps / (time.perf_counter() - start)


@pytest.mark.benchmark
@pytest.mark.parametrize("batch", [1, 64, 1024])
def test_vmas_navigation(batch):
    environment = make("vmas/navigation", batch, max_steps=1000)
    environment.reset(np.arange(batch))
    actions = (torch.zeros((batch, 4, 2)),)
    bare = vmas.make_env("navigation", batch, terminated_truncated=True, clamp_actions=True)
    bare_actions = [torch.zeros((batch, 2)) for _ in range(4)]
    assert environment.step(actions).rewards.shape == (batch, 4)
    ours = frames_per_s(lambda: environment.step(actions), batch, 60)
    theirs = frames_per_s(lambda: bare.step(bare_actions), batch, 60)
    print(f"\nvmas/navigation B={batch}: {ours:,.0f} frames/s, bare VMAS {theirs:,.0f}, ratio {ours / theirs:.2f}")


@pytest.mark.benchmark
@pytest.mark.parametrize("workers", [0, 2])
def test_mpe2_simple_spread(workers):
    batch = 16
    environment = make("pettingzoo/mpe2.simple_spread_v3:parallel_env", batch, workers=workers)
    environment.reset(np.arange(batch))
    actions = (np.zeros((batch, 3), np.int64),)
    bare = mpe2_spread.parallel_env(max_cycles=10**6)
    bare.reset(seed=0)
    bare_actions = dict.fromkeys(bare.agents, 0)
    assert environment.step(actions).rewards.shape == (batch, len(bare_actions))
    ours = frames_per_s(lambda: environment.step(actions), batch, 100)
    theirs = frames_per_s(lambda: bare.step(bare_actions), 1, 1000)
    environment.close()
    print(f"\nmpe2 simple_spread, {workers} workers: {ours:,.0f} frames/s, bare {theirs:,.0f}, {ours / theirs:.2f}")
