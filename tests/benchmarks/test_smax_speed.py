"""Frames/s of batched SMAX, everything included, beside JaxMARL's own environment, compiled, in the same run.

JaxMARL's runs singly and, the fairer comparison, batched with ``vmap``, its state kept in JAX.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hmarl.sdk.environments.smax")

import jax

from hmarl.sdk.environments import make
from hmarl.sdk.environments.smax.package import SCENARIOS, HeuristicEnemySMAX

pytestmark = pytest.mark.benchmark

BATCH_SIZES = (1, 64, 1024)
ROUNDS = 5
FRAMES = 10_000
MOST_STEPS = 200
TASKS = ["2s3z", "3s5z"]


def draw(generator: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """Random legal actions."""
    return (generator.random(masks.shape, np.float32) * masks).argmax(-1)


def batched(task: str, batch_size: int) -> tuple[int, Callable[[], None]]:
    """Frames of one run of ours, and the run."""
    environment = make(f"smax/{task}", batch_size)
    generator, seen = np.random.default_rng(0), [environment.reset(np.arange(batch_size))]
    steps = min(MOST_STEPS, FRAMES // batch_size)

    def run() -> None:
        for _ in range(steps):
            seen[0] = environment.step((draw(generator, np.asarray(seen[0].action_masks[0])),)).observation

    return steps * batch_size, run


def original(task: str, batch_size: int) -> tuple[int, Callable[[], None]]:
    """The same of JaxMARL's, of a single environment where the batch size is 1; masks and state are part of it."""
    battle: Any = HeuristicEnemySMAX(scenario=SCENARIOS[task])

    def step(key: Any, state: Any, actions: Any) -> Any:
        chosen = {agent: actions[index] for index, agent in enumerate(battle.agents)}
        seen, state, rewards, done, _ = battle.step(key, state, chosen)
        legal = battle.get_avail_actions(state)
        masks = jax.numpy.stack([legal[agent] for agent in battle.agents])
        return jax.random.split(key)[0], state, masks, (seen, rewards, done)

    single, key = batch_size == 1, jax.random.PRNGKey(0)
    compiled = jax.jit(step if single else jax.vmap(step))
    keys = key if single else jax.random.split(key, batch_size)
    _, state = (battle.reset if single else jax.jit(jax.vmap(battle.reset)))(keys)
    masks = np.zeros((*keys.shape[:-1], battle.num_allies, battle.num_ally_actions), bool)
    masks[..., 4] = True
    generator, now = np.random.default_rng(0), [keys, state, masks]
    steps = min(MOST_STEPS, FRAMES // batch_size)

    def run() -> None:
        for _ in range(steps):
            *now[:], seen = compiled(now[0], now[1], draw(generator, np.asarray(now[2])))
            jax.block_until_ready(seen)

    return steps * batch_size, run


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_faster_than_jaxmarls_single_environment(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    runs: dict[tuple[str, int], tuple[int, Callable[[], None]]] = {}
    for batch_size in BATCH_SIZES:
        runs["hmarl", batch_size] = batched(task, batch_size)
        runs["JaxMARL", batch_size] = original(task, batch_size)
    speeds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for number in range(ROUNDS + 1):
        for key, (frames, run) in runs.items():
            start = time.perf_counter()
            run()
            if number:  # the first round compiles
                speeds[key].append(frames / (time.perf_counter() - start))
    best = {key: max(measured) for key, measured in speeds.items()}
    single = best["JaxMARL", 1]
    with capsys.disabled():
        print(f"\n{task}: JaxMARL's single environment {single:,.0f} frames/s")
        for batch_size in BATCH_SIZES:
            ours, theirs = best["hmarl", batch_size], best["JaxMARL", batch_size]
            median = np.median(speeds["hmarl", batch_size])
            print(
                f"  B = {batch_size:4}: {ours:9,.0f} frames/s (median {median:,.0f}), {ours / single:5.1f} x single, "
                f"{ours / theirs:4.2f} x JaxMARL's of that size ({theirs:,.0f})"
            )
    assert best["hmarl", 1] > 0.5 * single
    assert best["hmarl", 64] > 4 * single
