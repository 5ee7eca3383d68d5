"""Agents with faults in a loop of one's own meet the very same ones as in an environment, and act alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.runtime.errors import InferenceError
from hmarl.sdk import (
    Action,
    BundleTeam,
    LocalAgent,
    MisuseError,
    ObservationError,
    StaleActionError,
    UsageError,
    load_bundle,
    make_environment,
)
from hmarl.sdk import evaluate as evaluated
from hmarl.sdk.clients.faulty_agent import FaultyAgent
from hmarl.sdk.evaluation import episode_seeds
from literal_bundle import write_literal_bundle
from serving import SHIPPED_BUNDLE

EVERYTHING = (
    "delay=0..2,loss=0.2,noise=0.1,freeze=0.05:3,action_delay=0..1,action_loss=0.1,out=0.05:2,restart=0.1:2,"
    "fallback=hold:2:noop:3;agent_1:delay=3"
)


@contextmanager
def faulty(faults: str) -> Iterator[list[FaultyAgent]]:
    bundle = load_bundle(SHIPPED_BUNDLE)
    with ExitStack() as stack:
        yield [stack.enter_context(FaultyAgent(LocalAgent(bundle, each.id), faults)) for each in bundle.manifest.agents]


@pytest.mark.parametrize("sample", [False, True])
def test_a_loop_with_faulty_agents_plays_like_an_environment_with_faults(sample: bool) -> None:
    episodes = 6
    environment = make_environment("mpe/simple_spread", 2, faults=EVERYTHING)
    expected = evaluated(
        environment, BundleTeam(load_bundle(SHIPPED_BUNDLE), environment.spec, sample=sample), episodes, 5
    )
    bare, returns, fresh = make_environment("mpe/simple_spread", 1), [], []
    with faulty(EVERYTHING) as agents:
        for seed in episode_seeds(5, episodes):
            seen, total, ended = bare.reset(np.array([seed])), 0.0, False
            for agent in agents:
                agent.reset(int(seed), sample=sample)
            while not ended:
                acts = [agent.act(seen.observations[0][0, place]) for place, agent in enumerate(agents)]
                fresh += [act.fresh for act in acts]
                result = bare.step((np.array([[act.action for act in acts]]),))
                seen, ended = result.observation, bool(result.truncated[0] | result.terminated[0])
                total += float(result.rewards.astype(np.float64).sum())
            returns.append(total)
        fallbacks = sum(agent.statistics.fallbacks for agent in agents)
    np.testing.assert_allclose(returns, expected.returns, rtol=1e-12)
    assert fallbacks == len(fresh) - sum(fresh) > 0


def test_a_refused_observation_changes_nothing() -> None:
    with faulty("delay=1") as (agent, *_):
        ones, twos = np.ones(18, np.float32), np.full(18, 2, np.float32)
        with pytest.raises(MisuseError, match=r"it has no episode yet; call reset\(seed\) first"):
            agent.act(ones)
        agent.reset(1)
        first = agent.act(ones)
        for wrong in (np.full(18, np.nan, np.float32), np.ones(17, np.float32)):
            with pytest.raises(ObservationError):
                agent.act(wrong)
        assert (first.step, agent.act(twos).step) == (0, 1)
        agent.reset(1, first_step=7)
        assert agent.act(ones).step == 7


def test_wrong_faults_are_refused() -> None:
    for text, said in (("dealy=1", "unknown fault 'dealy'"), ("loss=0.1,fallback=noop:9", "NoOp.action: got 9")):
        with pytest.raises(UsageError, match=said), faulty(text):
            pass


CHANCES = "out=0.1:3,restart=0.05:2,freeze=0.1:2,loss=0.2,action_loss=0.2,fallback=noop:3"


def freshness(agent: FaultyAgent, skips: dict[int, int], steps: int = 60) -> dict[int, bool]:
    """Which of an agent's acts were its own, by their steps; at the first of ``skips`` so many are left out."""
    fresh: dict[int, bool] = {}
    step = 0
    while step < steps:
        if step in skips:
            agent.skip(skips[step])
            step += skips[step]
        act = agent.act(np.full(18, 0.1 * step, np.float32))
        assert act.step == step
        fresh[step] = act.fresh
        step += 1
    return fresh


@pytest.mark.parametrize("skips", [{5: 10}, {0: 10}, {0: 3, 19: 2, 40: 1}, {5: 16}, {18: 7}])
@pytest.mark.parametrize("faults", ["out=20..22,fallback=noop:3", "restart=7..9,fallback=noop:3", CHANCES])
def test_steps_that_are_skipped_shift_no_faults(faults: str, skips: dict[int, int]) -> None:
    with faulty(faults) as (agent, *_), faulty(faults) as (skipping, *_):
        for each in (agent, skipping):
            each.reset(3)
        expected, got = freshness(agent, {}), freshness(skipping, skips)
    assert 0 < sum(expected.values()) < len(expected)
    assert len(got) == len(expected) - sum(skips.values())
    assert got == {step: expected[step] for step in got}


@pytest.mark.parametrize("before", [0, 3])
def test_a_restart_within_skipped_steps_is_one(before: int) -> None:
    class Counted(LocalAgent):
        resets: list[int]

        def reset(self, seed: int, *, first_step: int = 0, **options: Any) -> None:
            super().reset(seed, first_step=first_step, **options)
            self.resets.append(first_step)

    inner = Counted(load_bundle(SHIPPED_BUNDLE), "agent_0")
    inner.resets = []
    with FaultyAgent(inner, "restart=4..5,fallback=noop:3") as agent:
        agent.reset(1)
        for step in range(before):
            agent.act(np.full(18, step, np.float32))
        agent.skip(8 - before)
        assert agent.act(np.ones(18, np.float32)).fresh
        agent.act(np.ones(18, np.float32))
    assert inner.resets == [0, 8]


def test_what_is_under_way_arrives_while_steps_are_skipped() -> None:
    zeros = np.zeros(18, np.float32)
    with faulty("action_delay=2,fallback=noop:3") as (agent, *_):
        agent.reset(1)
        assert [agent.act(zeros).fresh for _ in range(4)] == [False, False, True, True]
        agent.skip(2)  # at which what was chosen at 2 and 3 arrives
        assert [agent.act(zeros).fresh for _ in range(3)] == [False, False, True]


class Seeing(LocalAgent):
    """Keeps what it is shown, by step."""

    def __init__(self) -> None:
        super().__init__(load_bundle(SHIPPED_BUNDLE), "agent_0")
        self.saw: dict[int, float] = {}
        self.forgot: list[int] = []

    def reset(self, seed: int, *, first_step: int = 0, **options: Any) -> None:
        super().reset(seed, first_step=first_step, **options)
        self.forgot.append(first_step)

    def act(self, observation: Any, action_mask: Any = None) -> Action:
        action = super().act(observation, action_mask)
        self.saw[action.step] = float(observation[0])
        return action


@pytest.mark.parametrize("fault", ["out", "restart", "freeze"])
def test_what_arrives_in_an_outage_is_lost_also_where_its_steps_are_skipped(fault: str) -> None:
    inner = Seeing()
    with FaultyAgent(inner, f"delay=3,{fault}=5..7") as agent:
        agent.reset(1)
        for step in range(12):
            if step in (6, 7):
                agent.skip()
            else:
                agent.act(np.full(18, step, np.float32))
    assert inner.saw == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 8: 5, 9: 5, 10: 5, 11: 8}
    assert inner.forgot == ([0, 8] if fault == "restart" else [0])


def test_a_step_at_which_the_agent_raises_delays_nothing() -> None:
    class Moody(LocalAgent):
        raises = False

        def act(self, *arguments: Any) -> Action:
            if self.raises:
                self.skip(1)
                raise StaleActionError("not now")
            return super().act(*arguments)

    inner, zeros = Moody(load_bundle(SHIPPED_BUNDLE), "agent_0"), np.zeros(18, np.float32)
    with FaultyAgent(inner, "action_delay=1,fallback=noop:3") as agent:
        agent.reset(1)
        assert [agent.act(zeros).fresh for _ in range(2)] == [False, True]
        inner.raises = True
        with pytest.raises(StaleActionError):
            agent.act(zeros)
        inner.raises = False
        assert [agent.act(zeros).fresh for _ in range(2)] == [False, True], "nothing was chosen at the step before"


@pytest.mark.parametrize("skips", [False, True], ids=["acts on", "skips it, as a control loop does"])
def test_a_step_at_which_the_policy_fails_is_used_up_once(skips: bool, tmp_path: Path) -> None:
    right, wrong, mask = np.ones(6, np.float32), np.full(6, 99, np.float32), np.ones(5, np.bool_)
    inner = LocalAgent(write_literal_bundle(tmp_path / "b", "discrete"), "agent_0")
    with FaultyAgent(inner, "out=4..5,fallback=noop:3") as agent:
        agent.reset(1)
        agent.act(right, mask)
        with pytest.raises(InferenceError):
            agent.act(wrong, mask)
        if skips:
            agent.skip(1)
        acts = [agent.act(right, mask) for _ in range(5)]
    assert [(act.step, act.fresh) for act in acts] == [(2, True), (3, True), (4, False), (5, False), (6, True)]
    assert inner.statistics.missed_steps == 1
