"""Three seeds of one run at once, beside the same three runs one after the other: whole runs, start and end included.

Networks of 64-64 on mpe/simple_spread. Both ways take turns in one process; or commands do, in processes of their own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.runs.config import RunConfig, make_config
from hmarl.trainer.runs.many_seeds import ManyRuns
from hmarl.trainer.runs.run import Run
from hmarl.trainer.runs.stopping import StopRequest
from training_speed import matrix_product_gflops

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

SEEDS = (100, 101, 102)
NETWORKS = {"hidden_sizes": (64, 64), "critic_hidden_sizes": (64, 64)}
UPDATES, ROUNDS = 40, 3
COMMANDS_UPDATES = 200
# How many processes at a time, and which seeds each trains at once.
WAYS: dict[str, tuple[int, list[list[int]]]] = {
    "in turn": (1, [[100], [101], [102]]),
    "at once": (1, [[100, 101, 102]]),
    "two processes": (2, [[100], [101], [102]]),
    "three processes": (3, [[100], [101], [102]]),
    "two, 2 + 1 at once": (2, [[100, 101], [102]]),
}


def config(name: str, environments: int, threads: int, seed: int) -> RunConfig:
    run: dict[str, Any] = {
        "steps": environments * 25 * UPDATES,
        "environments": environments,
        "rollout_length": 25,
        "threads": threads,
        "seed": seed,
        "evaluation_episodes": 10,
        "loggers": "none",
    }
    return make_config(name, "mpe/simple_spread", NETWORKS, run, {})


def at_once(configs: list[RunConfig], folder: Path) -> float:
    begin = time.perf_counter()
    many = ManyRuns.create(configs, [folder / str(number) for number in range(len(configs))], StopRequest())
    try:
        assert all(outcome.error is None for outcome in many.train())
    finally:
        many.close()
    return time.perf_counter() - begin


def one_after_the_other(configs: list[RunConfig], folder: Path) -> float:
    begin = time.perf_counter()
    for number, each in enumerate(configs):
        run = Run.create(each, folder / str(number))
        try:
            run.train()
        finally:
            run.close()
    return time.perf_counter() - begin


@pytest.mark.parametrize("name", ["happo", "mappo"])
def test_three_seeds_at_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{name}, three seeds, 64-64, {UPDATES} updates; load {os.getloadavg()[0]:.1f}")
        print(f"{'batch':>10} {'threads':>8} {'in turn s':>10} {'at once s':>10} {'frames/s':>10} {'ratio':>6} GFLOP/s")
    for environments in (16, 64, 256):
        for threads in (1, 2):
            configs = [config(name, environments, threads, seed) for seed in SEEDS]
            pairs = []
            for number in range(ROUNDS):
                folder = tmp_path / f"{environments}-{threads}-{number}"
                pairs.append((one_after_the_other(configs, folder / "a"), at_once(configs, folder / "b")))
            in_turn, together = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratio = statistics.median(alone / beside for alone, beside in pairs)
            frames = len(SEEDS) * environments * 25 * UPDATES / together
            with capsys.disabled():
                print(
                    f"{environments:>5} × 25 {threads:>8} {in_turn:>10.2f} {together:>10.2f} {frames:>10,.0f} "
                    f"{ratio:>6.2f} {matrix_product_gflops():>7.0f}",
                    flush=True,
                )
            assert ratio > 0.5


def by_commands(name: str, environments: int, processes: int, shares: list[list[int]], folder: Path) -> float:
    """Seconds that all seeds take, each share of them in an hmarl-train of its own."""
    settings = {
        "run.steps": environments * 25 * COMMANDS_UPDATES, "run.environments": environments, "run.rollout_length": 25,
        "run.threads": 1, "run.evaluation_episodes": 10, "run.loggers": "none",
        "algorithm.hidden_sizes": "[64,64]", "algorithm.critic_hidden_sizes": "[64,64]",
    }  # fmt: skip
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def train(seeds: list[int]) -> None:
        told = ",".join(map(str, seeds))
        words = [sys.executable, "-m", "hmarl.trainer.commands.train", name, "--env", "mpe/simple_spread", *chosen]
        words += ["--seed" if len(seeds) == 1 else "--seeds", told, "--out", str(folder / told)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    begin = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(train, shares))
    return time.perf_counter() - begin


@pytest.mark.parametrize("name", ["happo", "mappo"])
def test_three_seeds_by_commands(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On all cores of the machine, one thread a process, as a suite trains them; starts and imports included."""
    with capsys.disabled():
        print(f"\n{name}, three seeds, 64-64, {COMMANDS_UPDATES} updates, {os.cpu_count()} cores")
        print("seconds, and how many times as fast as in turn: " + " | ".join(WAYS))
    for environments in (16, 64):
        rounds = []
        for number in range(ROUNDS):
            folders = [tmp_path / f"{environments}-{number}-{way}" for way in range(len(WAYS))]
            rounds.append([
                by_commands(name, environments, *ways, folder)
                for folder, ways in zip(folders, WAYS.values(), strict=True)
            ])  # fmt: skip
        times = [statistics.median(each) for each in zip(*rounds, strict=True)]
        ratios = [statistics.median(row[0] / row[way] for row in rounds) for way in range(len(WAYS))]
        with capsys.disabled():
            told = " | ".join(f"{each:.1f} s {ratio:.2f} x" for each, ratio in zip(times, ratios, strict=True))
            print(f"{environments:>5} × 25: {told}   ({matrix_product_gflops():.0f} GFLOP/s)", flush=True)
