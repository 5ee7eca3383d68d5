"""How runs of a suite are trained: by processes that do in a moment what hmarl-train does in hours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hmarl.sdk.errors import UsageError
from hmarl.trainer.records.problems import CheckpointError
from hmarl.trainer.runs.lock import RunLock
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.suite.engine import Limits, failures, in_use
from hmarl.trainer.suite.ledger import Ledger
from scripted_suite import Bench, Heard, Scripted, planned


def test_so_many_run_at_a_time_and_each_is_kept_once(tmp_path: Path) -> None:
    bench, heard = Bench(tmp_path, Scripted({"a": ["seen"], "b": ["seen"]})), Heard(sees=tmp_path / "runs" / "seen")
    ledger = bench.train(planned("a", "b", "c"), Limits(jobs=2), heard)
    assert sorted(bench.kept) == ["a", "b", "c"]
    assert heard.most == 2
    assert {entry.status for entry in ledger.runs.values()} == {"done"}
    assert bench.executor.starts[0] == [*planned("a")[0].words, "--out", str(tmp_path / "runs" / "a")]
    bench.train(planned("a", "b", "c"), Limits())
    assert len(bench.executor.starts) == 3, "what is done is not started again"


def test_a_failure_is_tried_again_and_costs_no_other_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"a": ["killed"], "b": ["4", "4", "4"]}))
    ledger = bench.train(planned("a", "b", "c"), Limits(retries=1))
    assert sorted(bench.kept) == ["a", "c"]
    assert (ledger.of("a").attempts, ledger.of("b").attempts) == (2, 2)
    assert ["--resume", str(tmp_path / "runs" / "a"), "--steps", "100"] in bench.executor.starts
    told = failures(ledger, planned("a", "b", "c"))
    assert told.keys() == {"b"}
    assert told["b"].startswith("exit code 4, see ")
    bench.train(planned("a", "b", "c"), Limits(retries=1))
    assert sorted(bench.kept) == ["a", "b", "c"], "the same command tries it again"


def test_what_is_refused_is_not_tried_again_and_what_is_broken_is_put_aside(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"refused": ["2"], "broken": ["3"]}))
    ledger = bench.train(planned("refused", "broken"), Limits(retries=3))
    assert (ledger.of("refused").status, ledger.of("refused").attempts) == ("failed", 1)
    assert bench.kept == ["broken"]
    assert (tmp_path / "failed" / "broken.1" / "metrics.jsonl").exists()
    assert "--resume" not in bench.executor.starts[-1], "it began again"


def test_a_run_whose_time_is_used_up_counts_as_it_stands_and_goes_on_with_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"a": ["slow"]}))
    ledger = bench.train(planned("a"), Limits(run_s=3.0))
    directory = tmp_path / "runs" / "a"
    assert bench.executor.starts[-1] == ["--resume", str(directory), "--steps", "40"], "concluded where it stood"
    assert json.loads((directory / "summary.json").read_text()) == {"steps": 40}
    assert (ledger.of("a").status, bench.kept) == ("cut off", ["a"])
    bench.train(planned("a"), Limits(run_s=3.0))
    assert len(bench.executor.starts) == 2, "no time is left"
    ledger = bench.train(planned("a"), Limits(run_s=600))
    assert json.loads((directory / "summary.json").read_text()) == {"steps": 100}
    assert (ledger.of("a").status, bench.kept) == ("done", ["a", "a"])


@pytest.mark.parametrize("summary", ["{", '{"steps": null}', "{}"])
def test_a_run_whose_summary_is_damaged_is_gone_on_with(summary: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({}))
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "summary.json").write_text(summary)
    ledger = bench.train(planned("a", "b"), Limits())
    assert (ledger.of("a").status, bench.kept) == ("done", ["a", "b"])
    assert json.loads((tmp_path / "runs" / "a" / "summary.json").read_text()) == {"steps": 100}


def test_the_suites_own_time_is_counted_over_all_commands(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"a": ["slow"]}))
    ledger = bench.train(planned("a", "b"), Limits(total_s=3.0))
    assert (ledger.of("a").status, ledger.of("b").status) == ("stopped", "waiting")
    assert ledger.spent_s >= 3.0
    bench.train(planned("a", "b"), Limits(total_s=3.0))
    assert bench.kept == []
    bench.train(planned("a", "b"), Limits(total_s=600))
    assert bench.kept == ["a", "b"]


def test_one_that_is_stopped_before_it_could_listen_has_not_failed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"a": ["deaf"]}))
    ledger = bench.train(planned("a"), Limits(total_s=3.0))
    assert (ledger.of("a").status, ledger.of("a").error) == ("stopped", "")


def test_asked_to_stop_all_runs_save_and_nothing_is_started(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({"a": ["slow"]}))
    heard = Heard(stop=StopRequest(), when=tmp_path / "runs" / "a" / "slow")
    ledger = bench.train(planned("a", "b"), Limits(), heard)
    assert (ledger.of("a").status, ledger.of("b").status) == ("stopped", "waiting")
    assert len(bench.executor.starts) == 1
    bench.train(planned("a", "b"), Limits())
    assert bench.executor.starts[1] == ["--resume", str(tmp_path / "runs" / "a"), "--steps", "100"]
    assert bench.kept == ["a", "b"]


def test_a_run_that_another_process_still_saves_is_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({}))
    code = (
        "import pathlib, sys, time\nfrom hmarl.trainer.runs.lock import RunLock\n"
        "lock = RunLock(pathlib.Path(sys.argv[1])); print('locked', flush=True); time.sleep(1)\n"
    )
    directory = tmp_path / "runs" / "a"
    with subprocess.Popen([sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        bench.train(planned("a", "b"), Limits(jobs=1))
        assert other.poll() is not None or bench.executor.starts[0][-1].endswith("b")
    assert bench.kept == ["b", "a"]


def test_one_that_was_killed_before_its_record_was_written_is_only_recorded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Scripted({}))
    directory = tmp_path / "runs" / "a"
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text('{"steps": 100}')
    bench.train(planned("a"), Limits())
    assert (bench.kept, bench.executor.starts) == (["a"], [])


def test_a_directory_that_cannot_be_locked_is_no_run_of_another_process(tmp_path: Path) -> None:
    """The run starts, and says itself what is wrong, instead of waiting for ever."""
    (tmp_path / "runs" / "a" / ".lock").mkdir(parents=True)
    assert not in_use(tmp_path / "runs" / "a")
    bench = Bench(tmp_path, Scripted({"a": ["2"]}))
    ledger = bench.train(planned("a", "b"), Limits())
    assert (ledger.of("a").status, bench.kept) == ("failed", ["b"])


def test_the_directory_lock_names_whose_it_is(tmp_path: Path) -> None:
    with (
        RunLock(tmp_path, "suite directory"),
        pytest.raises(UsageError, match=r"suite directory .*: in use by process"),
    ):
        RunLock(tmp_path, "suite directory")


def test_times_are_kept_between_commands(tmp_path: Path) -> None:
    ledger = Ledger(path=tmp_path / "suite.json", spent_s=3.0)
    ledger.of("a").spent_s = 2.0
    ledger.write()
    again = Ledger.read(tmp_path / "suite.json")
    assert (again.spent_s, again.of("a").spent_s, again.of("a").status) == (3.0, 2.0, "waiting")
    (tmp_path / "suite.json").write_text('{"runs": {"a": {"colour": 1}}, "spent_s": 0}')
    with pytest.raises(CheckpointError, match=r"colour.*expected runs with status"):
        Ledger.read(tmp_path / "suite.json")
