"""Agents with faults in a loop of one's own meet the very same ones as in an environment, and act alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from hmarl.sdk import BundleTeam, LocalAgent, MisuseError, ObservationError, UsageError, load_bundle, make_environment
from hmarl.sdk import evaluate as evaluated
from hmarl.sdk.clients.faulty_agent import FaultyAgent
from hmarl.sdk.evaluation import episode_seeds
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
