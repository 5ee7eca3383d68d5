"""What an update by workers behind a slow link takes, beside what the cost model of docs/scaling.md says.

    python scripts/ray_link.py --mbit 10 --mbit 50 --workers 1 --workers 2    # as root: network namespaces
    python scripts/ray_link.py --table                                        # the model alone, for many workers

The learner and the head of a Ray cluster are in one namespace, all workers in another one; the virtual cable between
them lets so many Mbit/s pass each way (``tc``, token bucket). What an update takes without a limit is measured first;
what the model then adds is the link alone.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hmarl.runtime.command_line import command, flag, integer, option, run
from hmarl.sdk.errors import HmarlError, UsageError
from hmarl.trainer.runs.ray_session import ray_module
from hmarl.trainer.runs.workers.ray_hands import ray_hands

MBIT_BYTES = 125_000
# Of what goes over a cable: TCP, IP and Ethernet take 66 of 1,514 bytes, what Ray says around an object the rest.
PAYLOAD = 0.95
ADDRESSES, STORE_BYTES = ("10.78.0.1", "10.78.0.2"), 200_000_000


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a run by workers is made of. Times in seconds, sizes in bytes.

    Attributes:
        steps: T, of a rollout.
        environments: of each worker.
        step_s: of one environment; a worker's take turns.
        act_s: of acting in all environments of a worker, a step.
        frame_bytes: that a worker sends for each step of an environment.
        weights_bytes: that go to each machine once an update; its workers read them there.
        call_s: of the learner's time for asking a worker and taking its share, an update.
        join_s_per_byte: of the learner's time for putting shares together.
        learn_s: of an update, a frame.
        link_bytes_per_s: that reach the learner's machine, or leave it.
        machines: that workers are on, beside the learner's.
    """

    steps: int
    environments: int
    step_s: float
    act_s: float
    frame_bytes: float
    weights_bytes: float
    call_s: float
    join_s_per_byte: float
    learn_s: float
    link_bytes_per_s: float
    machines: int = 1


@dataclass(frozen=True)
class Update:
    """What one update takes, in seconds.

    Attributes:
        frames: that it learns from.
        sent: parameters, to all machines.
        collected: by workers.
        back: shares, over the learner's link.
        joined: asking, and putting shares together.
        learnt: the update itself.
    """

    frames: int
    sent: float
    collected: float
    back: float
    joined: float
    learnt: float

    @property
    def rollout_s(self) -> float:
        """Until a rollout is there."""
        return self.sent + self.collected + self.back + self.joined

    def frames_per_s(self, stale: bool = False) -> float:
        """Of the run; ``stale`` where the next rollout is collected meanwhile (shares are fetched after it)."""
        meanwhile = self.sent + self.collected
        waited = max(meanwhile, self.learnt) if stale else meanwhile + self.learnt
        return self.frames / (waited + self.back + self.joined)

    @property
    def limit(self) -> str:
        """What takes most."""
        parts = {
            "environments": self.collected, "link": self.sent + self.back, "learner": self.joined + self.learnt,
        }  # fmt: skip
        return max(parts, key=lambda name: parts[name])


def predicted(cost: Cost, workers: int) -> Update:
    """An update by so many workers: what the learner and its link do, they do for one worker after the other."""
    frames = workers * cost.environments * cost.steps
    size = frames * cost.frame_bytes
    return Update(
        frames=frames,
        sent=cost.machines * cost.weights_bytes / cost.link_bytes_per_s,
        collected=cost.steps * (cost.environments * cost.step_s + cost.act_s),
        back=size / cost.link_bytes_per_s,
        joined=workers * cost.call_s + size * cost.join_s_per_byte,
        learnt=frames * cost.learn_s,
    )


# Measured on two cores (docs/scaling.md): MAPPO, mpe/simple_spread, networks of 64-64, two environments a worker.
ASSUMED = Cost(
    steps=25,
    environments=2,
    step_s=0.01,
    act_s=0.0013,
    frame_bytes=514.0,
    weights_bytes=25_332.0,
    call_s=0.0016,
    join_s_per_byte=0.7e-9,
    learn_s=18e-6,
    link_bytes_per_s=1_000 * MBIT_BYTES * PAYLOAD,
)
WORKERS_A_MACHINE = 32
LINKS_MBIT = (100, 1_000, 10_000)
# Three agents' pictures; networks and their gradients cost in proportion to what was measured of small ones, or more.
PICTURES: dict[str, Any] = {"frame_bytes": 3 * 64 * 64 * 3.0, "weights_bytes": 4_000_000.0, "learn_s": 500e-6}


def table() -> Iterator[str]:
    """The model for 10, 100 and 1,000 workers: frames/s, and what takes most of an update."""
    yield "| an agent sees | workers | " + " | ".join(f"{mbit:,} Mbit/s" for mbit in LINKS_MBIT) + " | stale |"
    yield "|---|---|" + "---|" * (len(LINKS_MBIT) + 1)
    for seen, other in (("18 numbers", {}), ("64 × 64 × 3 bytes", PICTURES)):
        for workers in (10, 100, 1_000):
            machines = -(-workers // WORKERS_A_MACHINE)
            costs = [
                replace(ASSUMED, link_bytes_per_s=mbit * MBIT_BYTES * PAYLOAD, machines=machines, **other)
                for mbit in LINKS_MBIT
            ]
            updates = [predicted(cost, workers) for cost in costs]
            cells = [f"{update.frames_per_s():,.0f} ({update.limit})" for update in updates]
            cells.append(f"{updates[-1].frames_per_s(stale=True):,.0f}")
            yield f"| {seen} | {workers:,} | " + " | ".join(cells) + " |"


# --- measured -------------------------------------------------------------------------------------------------------


def ip(*words: object) -> None:
    """Run iproute2's ip."""
    subprocess.run(["ip", *map(str, words)], check=True)


@contextmanager
def two_namespaces() -> Iterator[tuple[str, str]]:
    """Namespaces with a cable between them, until the end of the block."""
    names = [f"hmarl-{secrets.token_hex(3)}-{end}" for end in ("learner", "workers")]
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
            ip("-netns", name, "link", "set", "lo", "up")
        ip("-netns", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-netns", name, "address", "add", f"{address}/30", "dev", "eth0")
            ip("-netns", name, "link", "set", "eth0", "up")
        yield names[0], names[1]


def limit(namespaces: Sequence[str], mbit: int | None) -> None:
    """Let so much pass each way; all there is without a number."""
    for name in namespaces:
        tc = ["ip", "netns", "exec", name, "tc", "qdisc"]
        subprocess.run([*tc, "delete", "dev", "eth0", "root"], check=False, capture_output=True)
        if mbit is not None:
            shape = ["tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "200ms"]
            subprocess.run([*tc, "add", "dev", "eth0", "root", *shape], check=True)


@contextmanager
def ray_node(namespace: str, number: int, cpus: int, session: str, head: str) -> Iterator[str]:
    """A node of the cluster in a namespace; where the cluster's head is.

    Raises:
        HmarlError: it does not start.
    """
    words = [sys.executable, __file__, "--node", json.dumps([number, cpus, session, head])]
    process = subprocess.Popen(["ip", "netns", "exec", namespace, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next((line.split()[1] for line in lines if line.startswith("serving ")), None)
        if address is None:
            raise HmarlError(f"Ray did not start in {namespace}; see /tmp/ray/{session}")
        yield address
    finally:
        process.terminate()
        process.wait(60)


def serve_node(number: int, cpus: int, session: str, head: str) -> None:
    """Start a node of this namespace, and keep it until this process is ended."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from ray_cluster import node  # noqa: PLC0415 - what starts on a busy machine too

    ray_module("ray_link")
    from ray._private.node import Node  # noqa: PLC0415 - once Ray is set up
    from ray._private.parameter import RayParams  # noqa: PLC0415

    own = {"node_ip_address": ADDRESSES[number], "num_gpus": 0, "object_store_memory": STORE_BYTES}
    joined = {"gcs_address": head, "redis_address": head} if head else {}
    settings = RayParams(**node(session, cpus, head=not head), **own, **joined)
    started = Node(settings, head=not head, shutdown_at_exit=True, spawn_reaper=True)
    print("serving", started.gcs_address, flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.sigwait({signal.SIGTERM})


@contextmanager
def cluster(workers: int) -> Iterator[tuple[tuple[str, str], str]]:
    """The learner's node, which has no CPUs for workers, and theirs: both namespaces, and where the head is."""
    session = f"session_hmarl_{secrets.token_hex(4)}_{os.getpid()}"
    with (
        two_namespaces() as ends,
        ray_node(ends[0], 0, 0, session, "") as head,
        ray_node(ends[1], 1, workers, session, head),
    ):
        yield ends, head


def measure(learner: str, head: str, workers: int, hidden: int, updates: int) -> dict[str, float]:
    """A run of its own, in the learner's namespace."""
    program = ["ip", "netns", "exec", learner, sys.executable, __file__, "--inside", head]
    options = ["--workers", str(workers), "--hidden", str(hidden), "--updates", str(updates)]
    done = subprocess.run([*program, *options], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_inside(head: str, workers: int, hidden: int, updates: int) -> None:
    """One run; prints its figures as JSON."""
    from ray_speed import configured, measured  # noqa: PLC0415 - a script beside this one

    config = configured("mpe/simple_spread", 64 * workers, workers, False, updates)
    networks = {"hidden_sizes": (hidden, hidden), "critic_hidden_sizes": (64, 64), "epochs": 1}
    config = config.model_copy(update={"algorithm_settings": {**config.algorithm_settings, **networks}})
    found = measured(config, ray_hands(head, lambda text: print(text, file=sys.stderr)))
    print(json.dumps({**found, "frames": 64 * workers * config.run["rollout_length"]}), flush=True)


def compare(workers: Sequence[int], mbits: Sequence[int], hidden: Sequence[int], updates: int) -> None:
    """Print what the model says of each link beside what was measured; collecting itself is left out of both."""
    print("| workers | networks | parameters, bytes | rollout, bytes | Mbit/s | sending, model | sending, measured |")
    print("|---|---|---|---|---|---|---|")
    with cluster(max(workers)) as (ends, head):
        for count in workers:
            for width in hidden:
                limit(ends, None)
                free = measure(ends[0], head, count, width, updates)
                size = free["bytes_per_frame"] * free["frames"]
                about = f"| {count} | {width}-{width} | {free['weights_bytes']:,.0f} | {size:,.0f}"
                print(f"{about} | no limit | | {beside_collecting(free):.2f} s |", flush=True)
                for mbit in mbits:
                    limit(ends, mbit)
                    found = beside_collecting(measure(ends[0], head, count, width, updates))
                    link_s = (free["weights_bytes"] + size) / (mbit * MBIT_BYTES * PAYLOAD)
                    print(f"{about} | {mbit} | {beside_collecting(free) + link_s:.2f} s | {found:.2f} s |", flush=True)


def beside_collecting(found: dict[str, float]) -> float:
    """Seconds of a rollout in which the slowest worker did not collect."""
    return found["rollout_s"] - found["collected_s"]


@command(
    "ray_link",
    option("--workers", "of a run; repeatable", integer(1), many=True),
    option("--mbit", "of the link; repeatable", integer(1), many=True),
    option("--hidden", "width of the policies' layers; repeatable", integer(1), many=True),
    option("--updates", "of a run", integer(4), default=6),
    flag("--table", "print the model for many workers, and measure nothing", parameter="table_only"),
    option("--inside", "one run, in the learner's namespace; for this program itself", shown="HOST:PORT"),
    option("--node", "a node of the cluster, in its namespace; for this program itself", shown="JSON"),
)
def link(
    workers: Sequence[int],
    mbit: Sequence[int],
    hidden: Sequence[int],
    updates: int,
    table_only: bool,
    inside: str | None,
    node: str | None,
) -> None:
    """Measure workers behind a slow link."""
    if table_only:
        print("\n".join(table()))
    elif inside is not None:
        run_inside(inside, workers[0], hidden[0], updates)
    elif node is not None:
        serve_node(*json.loads(node))
    elif os.geteuid():
        raise UsageError("ray_link: got an ordinary user, expected root, who may make network namespaces")
    else:
        compare(workers or (1, 2), mbit or (10, 50), hidden or (64, 512), updates)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(run(link))
