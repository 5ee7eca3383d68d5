"""Kill training at random moments, resume it until it is done, compare with a run that was never killed, bit for bit.

    python scripts/kills.py --kills 65 --seed 1

Every run is started, killed by SIGKILL (at any moment: while it is built, collects, learns, writes, evaluates) and
started again in a process of its own until it is done. Compared are the newest checkpoint's tensors, its counters,
which checkpoint is best, and all metrics but the wall times.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hmarl.runtime.command_line import command, integer, option, run
from hmarl.sdk import HmarlError
from hmarl.trainer.runs.config import RunConfig, make_config
from hmarl.trainer.runs.run import Run

RUN: dict[str, Any] = {
    "steps": 40 * 4 * 9,
    "environments": 4,
    "rollout_length": 9,
    "threads": 1,
    "checkpoint_interval": 2,
    "evaluation_interval": 300,
    "evaluation_episodes": 2,
}
SMALL: dict[str, Any] = {"hidden_sizes": (8,), "critic_hidden_sizes": (8,)}
GUIDED: dict[str, Any] = {"embedding_size": 8, "epochs": 2, "hidden_sizes": (8,)}
# Algorithm, environment, its arguments, settings; the last one's environments cannot be saved.
RUNS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("happo", "mpe/simple_spread", {}, SMALL),
    ("hcpo", "mpe/simple_spread", {}, {**SMALL, "instructions": 3, "instruction_interval": 3}),
    (
        "hcpo",
        "mpe/simple_spread",
        {},
        {**SMALL, "instructions": 3, "instruction_interval": 3, "conductor_sees": "common"},
    ),
    (
        "hcpo",
        "mpe/simple_spread",
        {},
        {**SMALL, "instructions": 3, "local_share": 0.5, "local_conductors_remember": True},
    ),
    ("himpo", "mpe/simple_spread", {}, {"embedding_size": 8, "goal_interval": 3, "manager_interval": 2}),
    ("mappo", "mpe/simple_spread", {}, {**SMALL, "credit": "own"}),
    ("magpo", "mpe/simple_spread", {}, {**GUIDED, "recurrent": True, "chunk_length": 3}),
    ("maven", "mpe/simple_spread", {}, {"hidden_sizes": (8,), "replay_capacity": 40}),
    ("happo", "lbf/8x8-2p-2f", {"workers": 0}, SMALL),
]


def go_on(config: RunConfig, directory: Path) -> None:
    """Begin or resume, as the directory demands, and train to the end."""
    run = Run.resume(directory) if (directory / "config.json").exists() else Run.create(config, directory)
    try:
        run.train()
    finally:
        run.close()


def outcome(directory: Path) -> dict[str, Any]:
    """Everything that has to be equal."""
    newest = max((directory / "checkpoints").glob("step-*.safetensors"))
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "tensors": hashlib.sha256(newest.read_bytes()).hexdigest(),
        "counters": json.loads(newest.with_suffix(".json").read_text()),
        "best": json.loads((directory / "checkpoints" / "best.json").read_text()),
        "metrics": [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows],
        "left": [str(path) for path in directory.rglob("*.tmp")],
    }


def killed_and_resumed(config: RunConfig, directory: Path, kills: int, longest_s: float, seed: int) -> int:
    """Train with up to so many kills, each after a random time below ``longest_s``; returns how many there were."""
    context, moments, done = multiprocessing.get_context("forkserver"), random.Random(seed), 0
    while True:
        process = context.Process(target=go_on, args=(config, directory))
        process.start()
        if done < kills:
            process.join(moments.uniform(0.0, longest_s))
            if process.is_alive():
                process.kill()
                done += 1
        process.join()
        if process.exitcode == 0:
            return done
        if process.exitcode != -9:
            raise RuntimeError(f"{directory}: exit code {process.exitcode}")


@command(
    "scripts/kills.py",
    option("--kills", "of all runs together", integer(1), default=65, parameter="wanted"),
    option("--seed", "of the moments", integer(0), default=1, parameter="first_seed"),
)
def main(wanted: int, first_seed: int) -> None:
    """Kill runs and resume them, again and again; exits with 4 when one differs from a run that was never killed."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["hmarl.trainer.runs.run"])
    kills = differing = 0
    with tempfile.TemporaryDirectory() as folder:
        for index, (algorithm, environment, arguments, settings) in enumerate(RUNS):
            config = make_config(algorithm, environment, settings, RUN, arguments)
            unbroken = Path(folder, f"{index}-unbroken")
            begin = time.monotonic()
            killed_and_resumed(config, unbroken, 0, 0.0, 0)
            # Long enough to get on between two kills, short enough to be killed several times.
            longest_s = 0.4 * (time.monotonic() - begin)
            share, times, runs = wanted // len(RUNS) + (index < wanted % len(RUNS)), 0, 0
            while times < share:
                killed = Path(folder, f"{index}-killed-{runs}")
                seed = first_seed + 100 * index + runs
                times += killed_and_resumed(config, killed, share - times, longest_s, seed)
                runs += 1
                if outcome(killed) != outcome(unbroken):
                    differing += 1
            kills += times
            print(f"{algorithm} on {environment}: {times} kills of {runs} runs", flush=True)
    told = f"{kills} kills, {differing} runs that differ from the one that was never killed"
    if differing:
        raise HmarlError(told)
    print(told)


if __name__ == "__main__":
    sys.exit(run(main))
