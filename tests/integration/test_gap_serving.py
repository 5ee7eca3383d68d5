"""The rungs of a bundle over real processes, with losses that are known by construction, and their suspects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.sdk.clients.endpoints import load_endpoints
from hmarl.sdk.errors import AgentError, UsageError
from hmarl.sdk.evaluation.deployed_teams import FleetTeam
from hmarl.sdk.faults.link import FaultyLink, LinkFaults
from hmarl.sdk.faults.model import FALLBACK
from hmarl.sdk.gap.deployed import Deployment, deployed_rungs
from hmarl.sdk.gap.document import Gap, Serving
from hmarl.sdk.gap.judging import Measured, judge
from hmarl.sdk.gap.kept import Kept
from hmarl.sdk.gap.ladder import LOCAL, ONNX, SERVED, Rung
from hmarl.sdk.gap.playing import Games, play
from hmarl.sdk.gap.serving import OwnFleet
from hmarl.sdk.gap.suspects import Facts
from hmarl.sdk.spaces import EnvironmentSpec
from right_or_wrong import AGENTS, STEPS, KnowingTeam, write_choosing_bundle

EPISODES = 3
BEST = 2.0 * STEPS
GAMES = Games("right_or_wrong:make", {}, EPISODES, 0, 2)
DEADLINE_S = 0.6


class Unseen:
    def begins(self, rung: Rung) -> None:
        """Nothing looks."""

    def played(self, episodes: int) -> None:
        """Nothing looks."""


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_choosing_bundle(tmp_path_factory.mktemp("right") / "bundle")


@pytest.fixture(scope="module")
def fleet(right: Bundle) -> Iterator[OwnFleet]:
    with OwnFleet(right.path) as running:
        yield running


def measure(
    out: Path,
    bundle: Bundle,
    endpoints: Callable[[], Path],
    faults: tuple[str, ...] = (),
    before: tuple[Rung, ...] = (),
) -> Gap:
    rungs = [*before, *deployed_rungs(Deployment(bundle, False, endpoints, 30.0), faults)]
    facts = Facts(bundle.manifest, AGENTS, list)
    measured = Measured(bundle, facts, GAMES, sample=False, deadline_s=30.0, of_run=bool(before))
    return judge(rungs, play(rungs, GAMES, Kept(out, {}, False), Unseen()), measured)


def test_served_agents_earn_what_their_graphs_do_and_faults_cost_what_they_must(
    right: Bundle, fleet: OwnFleet, tmp_path: Path
) -> None:
    """Every step shows another choice: who sees the one before is right at the first step alone."""
    gap = measure(tmp_path, right, fleet.endpoints, ("delay=1", "left:out=0"))
    assert gap.rung(ONNX).returns == gap.rung(SERVED).returns == [BEST] * EPISODES
    assert gap.rung(SERVED).serving == Serving(acts=2 * STEPS * EPISODES)
    (served,) = gap.differences
    assert (served.verdict, served.mean, served.same_actions) == ("none", 0.0, EPISODES)
    late, absent = gap.under_faults
    assert gap.rung(late.to).returns == [2.0] * EPISODES
    assert (late.mean, late.ci95, late.verdict) == (2.0 - BEST, (2.0 - BEST, 2.0 - BEST), "lost")
    assert [each.rule for each in late.suspects] == ["trained without faults", "no memory", "lost information"]
    # An agent that is out from the first step on does the first choice, which is never right.
    assert (absent.mean, absent.suspects[1].rule) == (-float(STEPS), "missing agents")
    assert [(each.fault, each.values) for each in gap.curves] == [("delay", [0.0, 1.0]), ("agents out", [0.0, 1.0])]


def test_graphs_that_choose_otherwise_lose_on_the_rung_of_onnx(tmp_path: Path, right: Bundle) -> None:
    wrong = write_choosing_bundle(tmp_path / "wrong", {"left": 1})
    before = (Rung(LOCAL, "local policies, in torch", lambda spec: KnowingTeam()),)
    with OwnFleet(wrong.path) as running:
        gap = measure(tmp_path / "out", wrong, running.endpoints, before=before)
    exported, served = gap.differences
    assert (exported.start, exported.to, exported.verdict) == (LOCAL, ONNX, "lost")
    assert (exported.mean, exported.ci95, exported.share) == (-float(STEPS), (-float(STEPS), -float(STEPS)), 1.0)
    assert (exported.same_actions, exported.first_step) == (0, 0.0)
    assert (served.verdict, served.mean) == ("none", 0.0)


def test_an_agent_that_always_misses_its_deadline_is_seen_on_the_served_rung(
    right: Bundle, fleet: OwnFleet, tmp_path: Path
) -> None:
    """Its fallback makes the first choice, which is never right: half of the return is lost.

    On a busy machine the other agent may be late as well; whenever one is, it loses 1.
    """
    games = replace(GAMES, episodes=2)
    addresses = load_endpoints(fleet.endpoints())
    with FaultyLink(addresses["left"]) as link:

        class LateOnceStarted(FleetTeam):
            def reset(self, seeds: npt.NDArray[np.int64]) -> None:
                super().reset(seeds)
                link.faults = LinkFaults(delay_s=DEADLINE_S)

            def close(self) -> None:
                link.faults = LinkFaults()
                super().close()

        def late(spec: EnvironmentSpec) -> FleetTeam:
            through = {**addresses, "left": link.address}
            return LateOnceStarted(through, spec, timeout_s=DEADLINE_S, fallback=FALLBACK)

        rungs = [
            deployed_rungs(Deployment(right, False, fleet.endpoints, DEADLINE_S), ())[0],
            Rung(SERVED, "late", late),
        ]
        facts = Facts(right.manifest, AGENTS)
        measured = Measured(right, facts, games, sample=False, deadline_s=DEADLINE_S, of_run=False)
        gap = judge(rungs, play(rungs, games, Kept(tmp_path, {}, False), Unseen()), measured)
    (served,) = gap.differences
    serving = gap.rung(SERVED).serving
    assert serving is not None
    assert (serving.acts, serving.fallbacks >= 2 * STEPS) == (2 * 2 * STEPS, True)
    assert sum(gap.rung(SERVED).returns) == 2 * BEST - serving.fallbacks
    assert served.verdict == "lost"
    assert served.suspects[0].rule == "deadlines"
    assert served.suspects[0].why.startswith(f"{serving.fallbacks} of {serving.acts} acts (")
    assert sum(serving.reasons.get(each, 0) for each in ("DEADLINE_EXCEEDED", "LATE_REPLY")) == serving.fallbacks


def test_a_fleet_of_another_bundle_is_refused(right: Bundle, fleet: OwnFleet, tmp_path: Path) -> None:
    other = write_choosing_bundle(tmp_path / "other", {"left": 2})
    with pytest.raises(UsageError, match=rf"got a fleet that serves bundle {right.sha256}, expected {other.sha256}"):
        measure(tmp_path / "out", other, fleet.endpoints)


def test_a_fleet_that_does_not_start_says_why(tmp_path: Path) -> None:
    with OwnFleet(tmp_path / "nowhere") as fleet, pytest.raises(AgentError, match=r"ended with exit code 3: .*nowhere"):
        fleet.endpoints()
