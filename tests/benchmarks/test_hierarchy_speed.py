"""What a step of training a hierarchy costs by number of agents and of messages, in time and memory.

Every row is a process of its own, so that its peak of memory is its own too. ``nearest`` has three messages an agent,
``all`` as many as there are pairs: from 3 to 30 agents the first should grow tenfold, the second in its messages
two-hundredfold. All environments start at once, so that one rollout sees many agents and the next one few: times and
messages are means of the same rollouts.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

BATCH, STEPS, ROUNDS = 32, 50, 4
CHILD = f"""
import json, sys
import torch
from hmarl.trainer.runs.memory import keep_freed_memory
from training_speed import Training, matrix_product_gflops, peak_gigabytes

torch.set_num_threads(1)
keep_freed_memory()  # as runs do
agents, graph = int(sys.argv[1]), sys.argv[2]
started = peak_gigabytes()
settings = dict(graph=graph, neighbours=3, epochs=4, minibatches=4)
training = Training("himpo", "lbfws/easy", {BATCH}, {STEPS}, dict(agents=agents), **settings)
training.iterate()
rollout = update = messages = 0.0
for _ in range({ROUNDS}):
    took = training.iterate()
    rollout, update = rollout + took[0], update + took[1]
    messages += float(training.rollout.extras["edges"].sum())
frames = {ROUNDS * BATCH * STEPS}
print(json.dumps(dict(
    rollout_us=1e6 * rollout / frames, update_us=1e6 * update / frames,
    messages=messages / frames,
    gigabytes=peak_gigabytes() - started, gflops=matrix_product_gflops(),
)))
"""


def measured(agents: int, graph: str) -> dict[str, float]:
    """One row, in a fresh process."""
    command = [sys.executable, "-c", CHILD, str(agents), graph]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=None)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def test_hierarchy_speed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with capsys.disabled():
        print(f"\nlbfws/easy, {BATCH} x {STEPS}, 4 epochs of 4 minibatches, one thread; time per frame, peak memory")
        print(" graph    agents  messages  rollout us  update us  us/message        GB  GFLOP/s")
        messages = {}
        for graph in ("nearest", "all"):
            for agents in (3, 10, 30):
                row = measured(agents, graph)
                assert row["gigabytes"] > 0
                messages[graph, agents] = row["messages"]
                each = row["update_us"] / max(row["messages"], 1.0)
                print(
                    f"{graph:>8}{agents:>8}{row['messages']:>10.1f}{row['rollout_us']:>12.0f}{row['update_us']:>11.0f}"
                    f"{each:>12.1f}{row['gigabytes']:>10.2f}{row['gflops']:>9.0f}"
                )
    assert messages["nearest", 3] == messages["all", 3]
    assert messages["nearest", 30] <= 3 * 30 < messages["all", 30]
