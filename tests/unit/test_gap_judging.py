"""What a measurement of the price of deployment says, on episodes whose returns are known by construction."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.sdk.errors import BundleError, UsageError
from hmarl.sdk.evaluation import episode_seeds, evaluate
from hmarl.sdk.evaluation.statistics import iqm_interval, mean_interval
from hmarl.sdk.gap.card import card_section, told
from hmarl.sdk.gap.document import Gap, Serving, read_gap, write_gap
from hmarl.sdk.gap.faulted import asked_faults, curves_of, usual_faults
from hmarl.sdk.gap.judging import Measured, judge, verdict_of
from hmarl.sdk.gap.kept import Kept
from hmarl.sdk.gap.ladder import CENTRAL, LOCAL, ONNX, SERVED, Rung, faulted_name
from hmarl.sdk.gap.playing import Games, play
from hmarl.sdk.gap.suspects import Facts
from hmarl.sdk.reports.gap_page import write_gap_page
from right_or_wrong import AGENTS, STEPS, KnowingTeam, RightOrWrong
from toy_bundle import write_toy_bundle

EPISODES = 10
GAMES = Games("right_or_wrong:make", {}, EPISODES, 0, 4)
ODD = int((episode_seeds(0, EPISODES) % 2).sum())
LATE = faulted_name("delay=1")


class Silent:
    """Watches, and counts."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.counts: list[int] = []

    def begins(self, rung: Rung) -> None:
        self.begun.append(rung.name)

    def played(self, episodes: int) -> None:
        self.counts.append(episodes)


def ladder() -> list[Rung]:
    """Local policies err at step 1, both; served ones at step 2 as well, the left one, in odd episodes."""
    served = [(1, (0, 1), False)]
    return [
        Rung(CENTRAL, "the one who knows, in torch", lambda spec: KnowingTeam()),
        Rung(LOCAL, "local policies, in torch", lambda spec: KnowingTeam((1,))),
        Rung(ONNX, "ONNX, in process", lambda spec: KnowingTeam((1,))),
        Rung(SERVED, "served over gRPC", lambda spec: Sometimes(served)),
        Rung(LATE, "served, delay=1", lambda spec: Sometimes(served), "delay=1"),
    ]


class Sometimes(KnowingTeam):
    """Errs at step 1, and in odd episodes the left one at step 2."""

    def __init__(self, _: object) -> None:
        super().__init__((1,))

    def act(self, observation: Any, running: Any) -> tuple[Any, ...]:
        step = self._step
        (chosen,) = super().act(observation, running)
        if step == 2:
            chosen[self._seeds % 2 == 1, 0] = 0
        return (chosen,)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    environment = {"name": "right_or_wrong:make", "arguments": {}, "team_reward": "sum"}
    return write_toy_bundle(tmp_path / "bundle", agents=AGENTS, plain=True, environment=environment)


def measured(bundle: Bundle) -> Measured:
    return Measured(bundle, Facts(bundle.manifest, AGENTS), GAMES, sample=False, deadline_s=1.0, of_run=True)


@pytest.fixture
def gap(bundle: Bundle, tmp_path: Path) -> Gap:
    rungs = ladder()
    return judge(rungs, play(rungs, GAMES, Kept(tmp_path / "out", {}, False), Silent()), measured(bundle))


def test_returns_and_paired_differences_are_those_of_the_construction(gap: Gap) -> None:
    best = 2.0 * STEPS
    assert gap.rung(CENTRAL).returns == [best] * EPISODES
    assert gap.rung(LOCAL).returns == [best - 2.0] * EPISODES
    assert sorted(gap.rung(SERVED).returns) == [best - 3.0] * ODD + [best - 2.0] * (EPISODES - ODD)
    imitated, exported, served = gap.differences
    assert (imitated.start, imitated.to) == (CENTRAL, LOCAL)
    assert (imitated.mean, imitated.ci95, imitated.verdict) == (-2.0, (-2.0, -2.0), "lost")
    assert (imitated.same_actions, imitated.first_step) == (0, 1.0)
    assert (exported.mean, exported.ci95, exported.verdict, exported.suspects) == (0.0, (0.0, 0.0), "none", [])
    assert (exported.same_actions, exported.first_step) == (EPISODES, None)
    assert served.mean == pytest.approx(-ODD / EPISODES)
    assert (served.same_actions, served.first_step) == (EPISODES - ODD, 2.0)
    assert gap.total.mean == pytest.approx(imitated.mean + exported.mean + served.mean)
    assert sum(each.share or 0.0 for each in gap.differences) == pytest.approx(1.0)
    assert str(exported.share) == "0.0"
    assert gap.seeds == episode_seeds(0, EPISODES).tolist()


def test_the_interval_of_a_difference_is_that_of_its_pairs_and_not_of_both_returns(gap: Gap) -> None:
    """Of n values that are 0 or −1 the mean of a resample is −k/n with k binomial: worked out without resampling."""
    (low, high), share = gap.differences[2].ci95, ODD / EPISODES
    chances = np.zeros(EPISODES + 1)
    for drawn in product((0, 1), repeat=EPISODES):
        chances[sum(drawn)] += share ** sum(drawn) * (1 - share) ** (EPISODES - sum(drawn))
    below = np.cumsum(chances)
    assert -low * EPISODES == pytest.approx(float(np.searchsorted(below, 0.975)), abs=1.0)
    assert -high * EPISODES == pytest.approx(float(np.searchsorted(below, 0.025)), abs=1.0)
    assert low < gap.differences[2].mean < high


def test_intervals_of_known_samples() -> None:
    assert mean_interval([3.0] * 5) == (3.0, 3.0)
    # Of two values a resample's mean is 0, 1/2 or 1 with 1/4, 1/2 and 1/4.
    assert mean_interval([0.0, 1.0]) == (0.0, 1.0)
    assert mean_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)
    # The middle half of eight leaves the two outliers on each side out, the mean does not.
    values = [-100.0, -100.0, 0.0, 0.0, 0.0, 0.0, 100.0, 100.0]
    assert iqm_interval(values, confidence=0.2) != mean_interval(values, confidence=0.2)


def test_a_verdict_is_none_where_the_interval_holds_0_or_is_rounding() -> None:
    assert verdict_of(-1.0, 0.0, 10.0) == verdict_of(0.0, 1.0, 10.0) == verdict_of(-1.0, 1.0, 10.0) == "none"
    assert verdict_of(-2.0, -1.0, 10.0) == "lost"
    assert verdict_of(1.0, 2.0, 10.0) == "gained"
    assert verdict_of(-1e-4, -1e-5, 10.0) == "none"
    assert verdict_of(-2e-4, -1.5e-4, 10.0) == "lost"


def test_the_document_reads_back_and_what_is_no_document_is_refused(gap: Gap, tmp_path: Path) -> None:
    write_gap(tmp_path / "gap.json", gap)
    assert read_gap(tmp_path / "gap.json") == gap
    (tmp_path / "other.json").write_text('{"schema_version": 1}')
    with pytest.raises(BundleError, match=r"other.json: no gap.json of schema version 1 \(Object missing required"):
        read_gap(tmp_path / "other.json")
    write_gap(tmp_path / "later.json", msgspec.structs.replace(gap, schema_version=2))
    with pytest.raises(BundleError, match=r"later.json: got schema version 2, this hmarl reads version 1"):
        read_gap(tmp_path / "later.json")


def test_words_tell_each_step_with_its_first_suspect(gap: Gap) -> None:
    lines = list(told(gap))
    assert lines[0].startswith("central → local: -2.00 [-2.00, -2.00]: lost; first suspect: imitation: local policies")
    assert lines[1] == "local → onnx: +0.00 [+0.00, +0.00]: none"
    assert any(line.startswith("served under delay=1: lost; first suspect: trained without faults") for line in lines)
    section = card_section(gap)
    assert section.startswith("## The price of deployment\n")
    assert "| local | 4.00 [4.00, 4.00] | -2.00 [-2.00, -2.00] | lost: imitation |" in section


def test_few_episodes_are_said_to_be_few_on_the_terminal_the_card_and_the_page(gap: Gap, tmp_path: Path) -> None:
    words = "10 episodes are few: of fewer than 20 intervals are too narrow, and a loss may be chance."
    enough = msgspec.structs.replace(gap, episodes=20)
    assert list(told(gap)) == [*told(enough), words]
    assert f"suspects are no culprits. {words} The team was" in card_section(gap)
    write_gap_page(tmp_path / "few.html", gap)
    assert words in (tmp_path / "few.html").read_text()
    write_gap_page(tmp_path / "enough.html", enough)
    assert "are few" not in (tmp_path / "enough.html").read_text() + card_section(enough)


def test_episodes_played_part_by_part_are_those_played_at_once() -> None:
    whole = evaluate(RightOrWrong(4), KnowingTeam((1,), only_odd=True), EPISODES, 0)
    parts = [
        evaluate(RightOrWrong(4), KnowingTeam((1,), only_odd=True), min(4, EPISODES - first), 0, first=first)
        for first in range(0, EPISODES, 4)
    ]
    assert np.concatenate([each.seeds for each in parts]).tolist() == whole.seeds.tolist()
    assert np.concatenate([each.returns for each in parts]).tolist() == whole.returns.tolist()
    with pytest.raises(UsageError, match="first: got -1, expected at least 0"):
        evaluate(RightOrWrong(4), KnowingTeam(), 1, 0, first=-1)


def test_what_is_kept_is_not_played_again_and_a_torn_line_is(bundle: Bundle, tmp_path: Path, gap: Gap) -> None:
    rungs, out = ladder(), tmp_path / "out"
    first = sorted((out / "episodes").iterdir())[1]
    assert first.name == "01-local.jsonl"
    content = first.read_bytes()
    first.write_bytes(content[: content.rindex(b"\n", 0, -1) + 30])  # the last wave is cut off in its line
    watcher = Silent()
    assert judge(rungs, play(rungs, GAMES, Kept(out, {}, True), watcher), measured(bundle)) == gap
    assert watcher.begun == [LOCAL]
    assert first.read_bytes() == content


def test_another_measurement_is_neither_overwritten_nor_gone_on_with(gap: Gap, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--out: got .*out, which holds a measurement: --resume goes on with it"):
        Kept(tmp_path / "out", {}, False)
    with pytest.raises(UsageError, match=r"\(episodes: got 5, begun with None\)"):
        Kept(tmp_path / "out", {"episodes": 5}, True)


def test_usual_faults_make_curves_over_one_fault_each() -> None:
    agents = ("a", "b", "c")
    curves = {each.fault: each for each in curves_of(usual_faults(agents), agents)}
    assert {name: curve.values for name, curve in curves.items()} == {
        "delay": [0.0, 1.0, 2.0, 4.0],
        "loss": [0.0, 0.1, 0.2, 0.4],
        "noise": [0.0, 0.01, 0.03, 0.1],
        "agents out": [0.0, 1.0, 2.0],
    }
    assert curves["agents out"].rungs == ["served", "served, a:out=0", "served, a:out=0;b:out=0"]
    assert [each.fault for each in curves_of(usual_faults(("a",)), ("a",))] == ["delay", "loss", "noise"]
    assert curves_of(["delay=1..3", "delay=1,loss=0.1", "a:delay=2", "a:out=5"], agents) == []


def test_asked_faults_are_spelled_in_one_way_and_each_is_played_once() -> None:
    assert asked_faults(["loss=.2,delay=2", "none"], ("a",)) == ["delay=2,loss=0.2"]
    assert asked_faults(["none"], ("a",)) == []
    with pytest.raises(UsageError, match="--faults: got 'delay=2' twice"):
        asked_faults(["delay=2", "delay=2"], ("a",))
    with pytest.raises(UsageError, match="unknown agent 'b'"):
        asked_faults(["b:out=1"], ("a",))


def test_counts_of_clients_add_up() -> None:
    one = Serving(acts=3, fallbacks=1, reasons={"LATE_REPLY": 1})
    two = Serving(acts=2, fallbacks=2, rejoins=1, reasons={"LATE_REPLY": 1, "UNAVAILABLE": 1})
    assert one + two == Serving(acts=5, fallbacks=3, rejoins=1, reasons={"LATE_REPLY": 2, "UNAVAILABLE": 1})
