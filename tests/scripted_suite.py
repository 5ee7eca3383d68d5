"""A suite's engine whose runs do in a moment what hmarl-train does in hours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.suite.engine import Engine, Limits, Places
from hmarl.trainer.suite.executor import LocalProcess, Started
from hmarl.trainer.suite.ledger import Ledger
from hmarl.trainer.suite.planned import PlannedRun

# Trains like hmarl-train as far as the engine can tell: ``script`` says how each start of a process ends.
TRAINER = """
import json, pathlib, signal, sys, time
how, words = sys.argv[1], sys.argv[2:]
option = "--resume" if words[0] == "--resume" else "--out"
runs = [pathlib.Path(value) for name, value in zip(words, words[1:]) if name == option]
goal = int(words[words.index("--steps") + 1])
for run in runs:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text("{}")
def steps(n, runs=runs):
    for run in runs:
        row = json.dumps({"steps": n, "steps_per_s": 100.0, "return": 1.0})
        (run / "metrics.jsonl").open("a").write(row + "\\n")
def done(run):
    metrics = run / "metrics.jsonl"
    return json.loads(metrics.read_text().splitlines()[-1])["steps"] if metrics.exists() else 0
def end(run):
    at = max(goal, done(run))
    steps(at, [run])
    (run / "summary.json").write_text(json.dumps({"steps": at}))
def interrupted(*_): steps(40); sys.exit(130)
if how == "deaf": time.sleep(60)
signal.signal(signal.SIGTERM, interrupted)
if how.startswith("first"): end(runs[0]); steps(20, runs[1:]); sys.exit(int(how[5:]))
if how.isdigit(): steps(20); sys.exit(int(how))
if how == "killed": steps(20); signal.raise_signal(signal.SIGKILL)
while how == "seen" and not (runs[0].parent / "seen").exists(): time.sleep(0.01)
if how == "slow" and done(runs[0]) < goal: (runs[0] / "slow").touch(); time.sleep(60)
for run in runs: end(run)
"""


@dataclass
class Scripted:
    """Starts the trainer above; a start of a run ends as its script says, and well when that is over."""

    scripts: dict[str, list[str]]
    starts: list[list[str]] = field(default_factory=list)

    def start(self, words: Sequence[str], log: Path, threads: int) -> Started:
        self.starts.append(list(words))
        script = self.scripts.get(log.stem, [])
        how = script.pop(0) if script else "good"
        return LocalProcess(
            subprocess.Popen([sys.executable, "-S", "-c", TRAINER, how, *words], start_new_session=True)
        )


@dataclass
class Heard:
    """A watcher that remembers, and may ask to stop."""

    said: list[str] = field(default_factory=list)
    stop: StopRequest | None = None
    when: Path | None = None
    most: int = 0
    sees: Path | None = None  # is there once two were seen at a time

    def show(self, ledger: Ledger) -> None:
        self.most = max(self.most, sum(entry.status == "running" for entry in ledger.runs.values()))
        if self.sees is not None and self.most >= 2:
            self.sees.touch()
        if self.stop is not None and self.when is not None and self.when.exists() and not self.stop():
            self.stop.ask()

    def say(self, text: str) -> None:
        self.said.append(text)


def planned(*names: str) -> list[PlannedRun]:
    return [PlannedRun(name, name, "task", 1, 100, ("happo", "--seed", "1", "--steps", "100")) for name in names]


@dataclass
class Bench:
    """A suite in a folder, which one engine after the other trains."""

    folder: Path
    executor: Scripted
    kept: list[str] = field(default_factory=list)

    @property
    def places(self) -> Places:
        return Places(self.folder / "runs", self.folder / "failed")

    def train(self, runs: list[PlannedRun], limits: Limits, heard: Heard | None = None) -> Ledger:
        heard = heard or Heard()
        ledger = Ledger.read(self.folder / "suite.json")
        engine = Engine(
            runs, self.places, lambda run: self.kept.append(run.name), lambda run: run.name in self.kept,
            self.executor, limits, ledger, heard,
        )  # fmt: skip
        engine.train(heard.stop or StopRequest())
        return Ledger.read(self.folder / "suite.json")
