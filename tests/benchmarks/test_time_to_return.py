"""Time to the same return: hmarl-train by its preset beside BenchMARL, HARL and JaxMARL by their own settings.

The peer trains a part of its own budget; then hmarl-train runs until it has reached the best that the peer has. Time
counts from the start of the command, by the clock and by the processor time of all processes, which other work on the
machine disturbs less. Ours includes its evaluations, and HARL's; BenchMARL's are left out of its time.

Each peer needs an interpreter with what it needs; HARL and JaxMARL's training scripts, which are in no package, a
checkout besides::

    python3.11 -m venv peers/benchmarl
    peers/benchmarl/bin/pip install torch==2.13.0 benchmarl==1.5.2 vmas==1.5.2
    python3.11 -m venv peers/harl
    peers/harl/bin/pip install torch==2.13.0 numpy pygame-ce pyyaml tensorboardX setproctitle absl-py cloudpickle
    peers/harl/bin/pip install --no-deps pettingzoo==1.22.3 supersuit==3.7.0 gymnasium==0.28.1 jax-jumpy tinyscaler
    python3.11 -m venv peers/jaxmarl
    peers/jaxmarl/bin/pip install jax==0.10.2 jaxmarl==0.2.0 distrax==0.1.9 hydra-core optax
    HMARL_BENCHMARL_PYTHON=peers/benchmarl/bin/python \\
    HMARL_HARL=.../HARL HMARL_HARL_PYTHON=peers/harl/bin/python \\
    HMARL_JAXMARL=.../JaxMARL HMARL_JAXMARL_PYTHON=peers/jaxmarl/bin/python \\
    make benchmark PYTEST_ARGS='-k time_to_return'

Without one its races are skipped; ``-k "benchmarl-navigation and seed0"`` runs one race.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from pace import Point, Reached, first, json_rows, paced, whole_lines
from training_speed import matrix_product_gflops

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

PEERS = Path(__file__).parent / "peers"
THREADS = "1"  # of an operation, for all
EVALUATED, TRAINING = "evaluation/local/return_mean", "return"
Command = Callable[[Path, int], tuple[list[str], Callable[[], Sequence[Reached]]]]


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        pytest.skip(f"{name} does not say where the peer is: see {Path(__file__).name}")
    return str(Path(value).absolute())  # a virtual environment's interpreter is a link, which must stay


def _benchmarl(algorithm: str) -> Command:
    def command(folder: Path, seed: int) -> tuple[list[str], Callable[[], Sequence[Reached]]]:
        def reached() -> list[Reached]:
            rows = json_rows(folder / "peer.txt")
            return [Reached(row["frames"], row["return"], row["aside_s"], row["aside_processor_s"]) for row in rows]

        script = str(PEERS / "benchmarl_pace.py")
        return [_variable("HMARL_BENCHMARL_PYTHON"), script, algorithm, str(seed), THREADS], reached

    return command


def _harl(scenario: str, apart: float) -> Command:
    """Its tuned file, with evaluations of 100 episodes at every 10th update (of 20 episodes, at every 25th).

    Its returns are ``apart`` below those of today's version of the task.
    """

    def command(folder: Path, seed: int) -> tuple[list[str], Callable[[], Sequence[Reached]]]:
        def reached() -> list[Reached]:
            lines = [line.split(",") for path in folder.rglob("progress.txt") for line in whole_lines(path)]
            return [Reached(int(frames), float(result) + apart) for frames, result in lines]

        checkout = Path(_variable("HMARL_HARL"))
        tuned = checkout / f"tuned_configs/pettingzoo_mpe/{scenario}-discrete/happo/config.json"
        options = {
            "load_config": tuned, "cuda": False, "torch_threads": THREADS, "seed": seed, "eval_interval": 10,
            "eval_episodes": 100, "log_dir": folder,
        }  # fmt: skip
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return [_variable("HMARL_HARL_PYTHON"), str(checkout / "examples/train.py"), *words], reached

    return command


def _jaxmarl(script: str, frames: int, result: str, scale: float = 1.0) -> Command:
    """What it logs of training episodes after each update but the first, which counts some that have not ended as 0.

    Its returns times ``scale`` are those of our episodes.
    """

    def command(folder: Path, seed: int) -> tuple[list[str], Callable[[], Sequence[Reached]]]:
        def reached() -> list[Reached]:
            rows = json_rows(folder / "peer.txt")[1:]
            return [Reached(row["frames"], scale * row[result]) for row in rows]

        settings = [f"SEED={seed}", "NUM_SEEDS=1", f"hydra.run.dir={folder / 'hydra'}"]
        path = str(Path(_variable("HMARL_JAXMARL")) / "baselines" / script)
        words = [str(PEERS / "jaxmarl_pace.py"), path, str(frames), *settings]
        return [_variable("HMARL_JAXMARL_PYTHON"), *words], reached

    return command


def _ours(algorithm: str, task: str, measure: str, evaluated: int) -> Command:
    """The preset; evaluations are deterministic, of 100 episodes."""

    def command(folder: Path, seed: int) -> tuple[list[str], Callable[[], Sequence[Reached]]]:
        def reached() -> list[Reached]:
            rows = json_rows(folder / "run/metrics.jsonl")
            return [Reached(row["steps"], row[measure]) for row in rows if row.get(measure) is not None]

        words = ["-m", "hmarl.trainer.commands.train", algorithm, "--env", task, "--seed", str(seed)]
        settings = {"threads": THREADS, "evaluation_interval": evaluated, "evaluation_episodes": 100}
        chosen = [word for key, value in settings.items() for word in ("--set", f"run.{key}={value}")]
        judged = ["--set", "run.evaluation_modes=judged"]
        return [sys.executable, *words, *chosen, *judged, "--out", str(folder / "run")], reached

    return command


@dataclass(frozen=True)
class Race:
    """A task, who trains it, and how far the peer goes.

    Attributes:
        of: the peer's own budget, in frames.
        frames: the part of it that it trains here.
    """

    peer: Command
    frames: int
    of: int
    ours: Command
    needs: tuple[str, ...]


# In simple_spread_v2 each of three agents collides with itself, for half a point a step. (And it moves by the new
# velocity, v3 by the old.)
_OWN_COLLISIONS = 37.5
_STEPS = 25 / 26  # JaxMARL's episodes of simple_spread have 26 steps
_NAVIGATION = _ours("happo", "vmas/navigation", EVALUATED, 6_400)
_HARL = ("HMARL_HARL", "HMARL_HARL_PYTHON")
_JAXMARL = ("HMARL_JAXMARL", "HMARL_JAXMARL_PYTHON")
RACES = {
    "benchmarl-navigation": Race(
        _benchmarl("mappo"), 30_000, 3_000_000, _NAVIGATION, ("HMARL_BENCHMARL_PYTHON",)
    ),
    "harl-spread": Race(
        _harl("simple_spread_v2", _OWN_COLLISIONS), 200_000, 10_000_000,
        _ours("happo", "mpe/simple_spread", EVALUATED, 16_000), _HARL,
    ),
    "harl-speaker": Race(
        _harl("simple_speaker_listener_v3", 0.0), 200_000, 10_000_000,
        _ours("happo", "mpe/simple_speaker_listener", EVALUATED, 16_000), _HARL,
    ),
    "jaxmarl-spread": Race(
        _jaxmarl("IPPO/ippo_ff_mpe.py", 16 * 128, "returned_episode_returns", _STEPS), 100 * 16 * 128, 10_000_000,
        _ours("happo", "mpe/simple_spread", TRAINING, 10_000_000), _JAXMARL,
    ),
}  # fmt: skip


def _compiling(points: Sequence[Point]) -> tuple[float, float]:
    """By how much the first update took longer than the others do: clock and processor."""
    if len(points) < 3:
        return 0.0, 0.0
    pairs = list(pairwise(points))
    usual = (
        statistics.median(after.wall_s - before.wall_s for before, after in pairs),
        statistics.median(after.processor_s - before.processor_s for before, after in pairs),
    )
    return points[0].wall_s - usual[0], points[0].processor_s - usual[1]


def _tell(name: str, race: Race, seed: int, theirs: Sequence[Point], ours: Sequence[Point]) -> None:
    print(f"\n{name}, seed {seed}: {race.frames:,} of the peer's {race.of:,} frames; load {os.getloadavg()[0]:.1f},")
    print(f"matrix product {matrix_product_gflops():.0f} GFLOP/s, {THREADS} thread an operation")
    print(f"{'return':>8} | {'peer: frames':>12} {'s':>8} {'cpu s':>8} | {'ours: frames':>12} {'s':>7} {'cpu s':>7} |")
    best = -float("inf")
    for point in theirs:
        if point.result <= best:
            continue
        best, mine = point.result, first(ours, point.result)
        if mine is not None:
            print(
                f"{best:>8.2f} | {point.frames:>12,} {point.wall_s:>8.1f} {point.processor_s:>8.1f} | "
                f"{mine.frames:>12,} {mine.wall_s:>7.1f} {mine.processor_s:>7.1f} | "
                f"{point.wall_s / mine.wall_s:.1f} x, {point.processor_s / mine.processor_s:.1f} x",
                flush=True,
            )
    for who, points in (("peer", theirs), ("ours", ours)):
        wall_s, spent_s = _compiling(points)
        rate = (points[-1].frames - points[0].frames) / max(points[-1].processor_s - points[0].processor_s, 1e-9)
        told = " ".join(f"{point.frames:,}:{point.result:.2f}" for point in points[:: max(1, len(points) // 30)])
        print(f"{who}: up to the first update {wall_s:.1f} s more than later ones, {spent_s:.1f} of the processor;")
        print(f"  {rate:,.0f} frames a second of the processor; frames and returns: {told}", flush=True)


@pytest.mark.parametrize("seed", [0, 1, 2], ids=lambda seed: f"seed{seed}")
@pytest.mark.parametrize("name", RACES)
def test_time_to_return(name: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    race = RACES[name]
    for variable in race.needs:
        _variable(variable)
    command, reached = race.peer(tmp_path, seed)
    plain = {"OMP_NUM_THREADS": THREADS, "PYTHONPATH": _variable(race.needs[0]) if len(race.needs) > 1 else ""}
    theirs = paced(command, tmp_path / "peer.txt", reached, lambda point: point.frames >= race.frames, plain)
    target = max(point.result for point in theirs)
    command, reached = race.ours(tmp_path, seed)
    ours = paced(
        command, tmp_path / "ours.txt", reached, lambda point: point.result >= target, {"OMP_NUM_THREADS": THREADS}
    )
    with capsys.disabled():
        _tell(name, race, seed, theirs, ours)
    assert first(ours, target) is not None
