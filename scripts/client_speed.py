"""How long an act takes with the clients of each language: Python's, TypeScript's and C++'s, side by side.

python scripts/client_speed.py --rounds 30 --acts 200

Each client is a process of its own that stays connected. In each round all act in turn, so that what else the machine
does meets all alike; what is printed is the median of the rounds' medians, and of each round's ratio to Python's client
over the same door. Build the others first: make -C clients/cpp build/latency, and npm run build in clients/typescript.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hmarl.runtime.command_line import command, integer, option, run
from hmarl.sdk import AgentClient

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "models" / "simple-spread-hcpo"
AGENT = "agent_0"
WORKER = "--worker"
NAMES = {"grpc": "gRPC, unary", "stream": "gRPC, streamed", "frames": "frames"}


@dataclass
class Client:
    """A process that acts when it is told to.

    Attributes:
        language: of the client.
        door: ``grpc``, ``stream`` or ``frames``.
        process: its process.
        rounds: microseconds of each act, for each round.
    """

    language: str
    door: str
    process: subprocess.Popen[str]
    rounds: list[list[float]] = field(default_factory=list)

    def act(self, acts: int) -> None:
        """Act so many times, and note how long each took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(acts, file=self.process.stdin, flush=True)
        self.rounds.append(json.loads(self.process.stdout.readline()))

    @property
    def medians(self) -> list[float]:
        """Of each round."""
        return [statistics.median(each) for each in self.rounds]


def worker(door: str, address: str) -> None:
    """Python's client, as the other languages' programs."""
    with AgentClient(address, stream=door == "stream", timeout_s=10) as agent:
        observation = np.full(agent.spec.observation_size, 0.5, np.float32)
        agent.reset(1)
        for line in sys.stdin:
            print(json.dumps([1e6 * agent.act(observation).latency_s for _ in range(int(line))]), flush=True)


def programs() -> dict[str, list[str]]:
    """The command of each language's client that is built; door and address follow."""
    cpp, typescript = ROOT / "clients/cpp/build/latency", ROOT / "clients/typescript/dist/test/latency.js"
    commands = {"Python": [sys.executable, str(Path(__file__).resolve()), WORKER]}
    if typescript.exists():
        commands["TypeScript"] = ["node", str(typescript)]
    if cpp.exists():
        commands["C++"] = [str(cpp)]
    return commands


def serves_frames() -> bool:
    """Whether this version of hmarl has that door."""
    help_text = subprocess.run(
        [sys.executable, "-m", "hmarl.runtime.commands.agent", "--help"], capture_output=True, text=True, check=True
    ).stdout
    return "--frames" in help_text


def measured(rounds: int, acts: int) -> list[Client]:
    """All clients, with what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--frames", f"{folder}/frames"] if serves_frames() else []
        command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(BUNDLE), "--agent", AGENT, "--json"]
        command += ["--listen", f"unix:{folder}/socket", "--log-level", "error", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
            try:
                assert agent.stdout is not None
                address = json.loads(agent.stdout.readline())["address"]
                clients = started(address, f"{folder}/frames" if options else None)
                for each in clients:
                    each.act(acts)  # connections and caches are warm
                    each.rounds.clear()
                for _ in range(rounds):
                    for each in clients:
                        each.act(acts)
                for each in clients:
                    each.process.communicate(timeout=30)
            finally:
                agent.terminate()
    return clients


def started(address: str, frames: str | None) -> list[Client]:
    """A client of each language for each door."""
    clients = []
    for door in NAMES:
        for language, program in programs().items():
            if door == "frames" and (frames is None or language == "TypeScript"):
                continue
            where = address if door != "frames" else f"frames:{frames}" if language == "Python" else str(frames)
            process = subprocess.Popen(
                [*program, door, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            clients.append(Client(language, door, process))
    return clients


def report(clients: list[Client]) -> None:
    """Print a table in Markdown."""
    print("| door | client | median, µs | 99 %, µs | by Python's |\n|---|---|---|---|---|")
    python = {each.door: each.medians for each in clients if each.language == "Python"}
    for each in clients:
        ratio = statistics.median(a / b for a, b in zip(each.medians, python[each.door], strict=True))
        worst = float(np.percentile(np.concatenate(each.rounds), 99))
        print(
            f"| {NAMES[each.door]} | {each.language} | {statistics.median(each.medians):.0f} | {worst:.0f} "
            f"| {ratio:.2f} |"
        )


@command(
    "scripts/client_speed.py",
    option("--rounds", "rounds in which all clients act in turn", integer(1), default=30),
    option("--acts", "acts of a client in a round", integer(1), default=200),
)
def main(rounds: int, acts: int) -> int:
    """Measure what an act takes with the clients of each language."""
    before = os.getloadavg()[0]
    clients = measured(rounds, acts)
    after = os.getloadavg()[0]
    print(f"{rounds} rounds of {acts} acts; {os.cpu_count()} cores, load {before:.1f} before and {after:.1f} after\n")
    report(clients)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        worker(*sys.argv[2:4])
    else:
        sys.exit(run(main))
