"""Several seeds of a suite that one process trains: which they are, and what becomes of each when it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hmarl.trainer.runs.lock import RunLock
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.suite.costs import time_left
from hmarl.trainer.suite.engine import Limits, failures
from hmarl.trainer.suite.planned import PlannedRun
from scripted_suite import Bench, Heard, Scripted
from suite_definitions import defined, refusal

SUITE = 'tasks = ["coordsum/sum-to-10"]\nalgorithms = ["mappo"]\nsteps = 100\n'


def seeds(*numbers: int, at_once: int = 3, label: str = "a") -> list[PlannedRun]:
    return [
        PlannedRun(f"{label}{seed}", label, "task", seed, 100, words(label, seed), at_once=at_once) for seed in numbers
    ]


def words(label: str, seed: int) -> tuple[str, ...]:
    return (label, "--steps", "100", "--seed", str(seed), "--set", "run.threads=1")


def status(bench: Bench, runs: list[PlannedRun], limits: Limits, heard: Heard | None = None) -> dict[str, str]:
    ledger = bench.train(runs, limits, heard)
    return {run.name: ledger.of(run.name).status for run in runs}


def test_one_process_trains_as_many_seeds_as_it_may(tmp_path: Path) -> None:
    bench, heard = Bench(tmp_path, Scripted({})), Heard()
    runs = [*seeds(1, 2, 3, 4), *seeds(1, label="b"), *seeds(1, 2, at_once=1, label="c")]
    assert set(status(bench, runs, Limits(jobs=1), heard).values()) == {"done"}
    at = tmp_path / "runs"
    settings = ["--set", "run.threads=1"]
    assert bench.executor.starts == [
        ["a", "--steps", "100", *settings, "--seeds", "1,2,3", *outs(at, "a1", "a2", "a3")],
        [*words("a", 4), *outs(at, "a4")],
        [*words("b", 1), *outs(at, "b1")],
        [*words("c", 1), *outs(at, "c1")],
        [*words("c", 2), *outs(at, "c2")],
    ]
    assert heard.most == 3, "all that one process trains go on"
    assert sorted(bench.kept) == sorted(run.name for run in runs)
    assert f"trained along with a1, see {at / 'a1.log'}" in (at / "a2.log").read_text()


def outs(folder: Path, *names: str) -> list[str]:
    return [word for name in names for word in ("--out", str(folder / name))]


def resumes(folder: Path, *names: str) -> list[str]:
    return [word for name in names for word in ("--resume", str(folder / name))]


def test_each_goes_on_by_itself_after_a_failure_and_is_counted_from_there(tmp_path: Path) -> None:
    bench, heard = Bench(tmp_path, Scripted({"a1": ["first4"], "a2": ["3", "good"], "a3": ["4", "killed"]})), Heard()
    runs = seeds(1, 2, 3)
    ledger = bench.train(runs, Limits(retries=1), heard)
    at = tmp_path / "runs"
    assert bench.kept == ["a1", "a2"], "the first had come to its end; the second began again"
    assert bench.executor.starts[1:3] == [
        [*resumes(at, "a2"), "--steps", "100"],
        [*resumes(at, "a3"), "--steps", "100"],
    ]
    assert (tmp_path / "failed" / "a2.1").exists()
    assert not (tmp_path / "failed" / "a1.1").exists()
    assert (ledger.of("a2").attempts, ledger.of("a3").attempts) == (2, 2)
    assert failures(ledger, runs) == {"a3": f"killed by signal 9, see {at / 'a3.log'}"}
    assert f"a2: exit code 4, see {at / 'a1.log'}; goes on by itself" in heard.said


def test_what_was_stopped_goes_on_at_once_and_what_is_done_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"a1": ["slow"]}))
    heard = Heard(stop=StopRequest(), when=tmp_path / "runs" / "a1" / "slow")
    assert status(bench, seeds(1, 2), Limits(), heard) == {"a1": "stopped", "a2": "stopped"}
    bench.kept.append("a2")
    at = tmp_path / "runs"
    with RunLock(at / "a1"):
        heard = Heard(stop=StopRequest(), when=at / "a4" / "summary.json")
        assert status(bench, seeds(1, 2, 3, 4), Limits(), heard)["a3"] == "done"
    assert bench.executor.starts[1][-4:] == outs(at, "a3", "a4"), "the first belongs to another process, for now"
    (at / "a5").mkdir()
    (at / "a5" / "config.json").touch()
    assert set(status(bench, seeds(1, 2, 3, 4, 5, 6), Limits()).values()) == {"done"}
    assert bench.executor.starts[2] == [*resumes(at, "a1", "a5"), "--steps", "100"]
    assert bench.executor.starts[3] == [*words("a", 6), *outs(at, "a6")]


def test_time_is_shared_and_each_is_concluded_as_it_stands(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"a1": ["slow"]}))
    ledger = bench.train(seeds(1, 2), Limits(jobs=1, run_s=3.0))
    assert {ledger.of(name).status for name in ("a1", "a2")} == {"cut off"}
    assert ledger.of("a1").spent_s == pytest.approx(ledger.of("a2").spent_s)
    assert ledger.spent_s >= 2 * 3.0, "half of it for each"
    at = tmp_path / "runs"
    assert bench.executor.starts[1:] == [[*resumes(at, name), "--steps", "40"] for name in ("a1", "a2")]
    assert [json.loads((at / name / "summary.json").read_text()) for name in ("a1", "a2")] == [{"steps": 40}] * 2


def test_one_whose_time_is_left_goes_on_when_another_is_cut_off(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"a1": ["slow"]}))
    (tmp_path / "suite.json").write_text(json.dumps({"spent_s": 0.0, "runs": {"a1": {"spent_s": 3000.0}}}))
    assert status(bench, seeds(1, 2), Limits(run_s=3001)) == {"a1": "cut off", "a2": "done"}


def test_a_suite_says_how_many_and_a_variant_for_itself(tmp_path: Path) -> None:
    def at_once(text: str) -> list[int]:
        return [run.at_once for run in defined(tmp_path, SUITE + text).runs]

    assert at_once("") == [1, 1, 1]
    assert at_once("seeds_at_once = false\n") == [1, 1, 1]
    assert at_once("seeds = 5\nseeds_at_once = true\n") == [5] * 5
    assert at_once("seeds = [7, 9]\nseeds_at_once = 3\n") == [2, 2]
    variants = 'seeds = 2\nseeds_at_once = 2\n[[variants]]\nalgorithm = "hcpo"\nseeds_at_once = 1\n'
    assert at_once(variants) == [2, 1, 2, 1]
    same = defined(tmp_path, SUITE).runs[0], defined(tmp_path, SUITE + "seeds_at_once = true\n").runs[0]
    assert same[0].name == same[1].name, "what is done stays done"
    threads = defined(tmp_path, SUITE + "[settings]\nrun.threads = 4\n").runs[0].threads
    assert threads == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('seeds_at_once = true\n[[variants]]\nalgorithm = "hatrpo"\n',
         r"seeds_at_once: got hatrpo, expected one of haa2c, happo, ippo, mappo; give hatrpo seeds_at_once = 1 in"),
        ("seeds_at_once = 2\n[settings]\nalgorithm.recurrent = true\n", r"seeds_at_once: got algorithm.recurrent=true"),
        ("seeds_at_once = 2\n[settings]\nrun.workers = 2\n", r"seeds_at_once: got run\.workers=2, expected 0"),
        ("seeds_at_once = 0\n", r"seeds_at_once.*got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_at_once_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    told = refusal(tmp_path, SUITE + text)
    assert re.search(message, told), told


def test_what_is_left_counts_processes_not_seeds() -> None:
    runs = seeds(1, 2, 3, 4, at_once=2)
    assert time_left(runs, 400, 10.0) == 400 / 20
    assert time_left(runs[:1], 100, 10.0) == 10.0, "the last one goes alone"
    assert time_left([], 0, None) == 0.0
    assert time_left(runs, 400, None) is None
