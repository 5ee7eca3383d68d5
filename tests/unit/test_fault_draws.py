"""The numbers behind faults, each worked out by itself: one word at a time, from whose, where and when it is drawn."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt
import pytest

from hmarl.sdk.faults.draws import Chance, Draws, philox

IDS = ["a", "b", "arm 2"]
SEEDS = np.array([3, 2**40 + 5, -1], np.int64)


def words(seed: int, episode: int, step: int, agent_id: str, block: int) -> list[int]:
    """Four words of ``philox``, which is held against its authors' vectors elsewhere."""
    agent = int.from_bytes(hashlib.blake2b(agent_id.encode(), digest_size=4).digest(), "little")
    key = (seed % 2**64 % 2**32, seed % 2**64 // 2**32)
    return [int(word) for word in philox((block, step, agent, episode), key)]


def uniform(seed: int, episode: int, step: int, agent_id: str, chance: Chance) -> float:
    word = words(seed, episode, step, agent_id, chance // 4)[chance % 4]
    return (word // 256) / 2**24


def normal(seed: int, episode: int, step: int, agent_id: str, index: int) -> float:
    """By Box and Muller: two radii and two angles of each block of four words, after the two blocks for decisions."""
    drawn = [(word + 0.5) / 2**32 for word in words(seed, episode, step, agent_id, 2 + index // 4)]
    place = index % 4
    radius, angle = math.sqrt(-2 * math.log(drawn[place % 2])), 2 * math.pi * drawn[2 + place % 2]
    return radius * (math.cos(angle) if place < 2 else math.sin(angle))


def all_uniform(draws: Draws, chance: Chance) -> npt.NDArray[np.float64]:
    return np.array(
        [
            [uniform(int(seed), int(episode), int(step), name, chance) for name in IDS]
            for seed, episode, step in zip(draws.seeds, draws.episodes, draws.steps, strict=True)
        ]
    )


def check(draws: Draws, episodes: list[int], steps: list[int]) -> None:
    """The draws are at these steps of these episodes, and draw the numbers of there."""
    assert (draws.seeds.tolist(), draws.episodes.tolist(), draws.steps.tolist()) == (SEEDS.tolist(), episodes, steps)
    for chance in Chance:
        np.testing.assert_array_equal(draws.uniform(chance), all_uniform(draws, chance))


def test_a_decision_follows_from_whose_where_and_when_it_is() -> None:
    draws = Draws(IDS, 3)
    draws.begin(SEEDS)
    check(draws, [0, 0, 0], [0, 0, 0])
    for step in range(1, 70):  # over two ends of what is drawn ahead
        draws.advance()
        if step in {1, 31, 32, 33, 63, 64, 69}:
            check(draws, [0, 0, 0], [step] * 3)
    draws.begin(SEEDS, 45)
    check(draws, [0, 0, 0], [45] * 3)
    assert draws.uniform(Chance.LOSS).dtype == np.float32


def test_environments_begin_their_next_episodes_on_their_own() -> None:
    draws = Draws(IDS, 3)
    draws.begin(SEEDS)
    for _ in range(40):
        draws.advance()
    seeds, episodes, steps = draws.seeds, draws.episodes, draws.steps
    draws.next_episode(np.array([1]))
    check(draws, [0, 1, 0], [40, 0, 40])
    draws.advance()
    draws.next_episode(np.array([1, 2]))
    check(draws, [0, 2, 1], [41, 0, 0])
    for _ in range(32):
        draws.advance()
    check(draws, [0, 2, 1], [73, 32, 32])
    assert (episodes.tolist(), steps.tolist()) == ([0, 0, 0], [40, 40, 40]), "what was read stays as it was"
    draws.restore(seeds, episodes, steps)
    check(draws, [0, 0, 0], [40, 40, 40])
    draws.next_episode(np.array([0]))
    draws.begin(SEEDS)
    check(draws, [0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("size", [1, 4, 5, 10])
def test_a_normal_number_follows_from_whose_where_and_when_it_is(size: int) -> None:
    draws = Draws(IDS, 3)
    draws.begin(SEEDS)
    for _ in range(7):
        draws.advance()
    draws.next_episode(np.array([2]))
    agents = np.array([2, 0])
    drawn = draws.normal(agents, size)
    assert (drawn.shape, drawn.dtype) == ((3, 2, size), np.float32)
    wanted = [
        [[normal(int(seed), episode, step, IDS[agent], index) for index in range(size)] for agent in agents]
        for seed, episode, step in zip(SEEDS, (0, 0, 1), (7, 7, 0), strict=True)
    ]
    np.testing.assert_allclose(drawn, np.array(wanted), rtol=3e-7, atol=1e-7)


def test_where_nothing_is_decided_no_table_is_kept_and_normal_numbers_are_the_same() -> None:
    with_table, without = Draws(IDS, 3), Draws(IDS, 3, decides=False)
    for draws in (with_table, without):
        draws.begin(SEEDS)
        draws.advance()
    assert without._table.size == 0
    np.testing.assert_array_equal(with_table.normal(np.arange(3), 6), without.normal(np.arange(3), 6))
