"""The clients against a real agent process: equal to the policy in process, and sound when the process is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent_process import DOORS, AgentProcess
from hmarl.runtime.bundle import Bundle, ObservationError
from hmarl.sdk.clients.agent import agent_spec
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.errors import AgentError, StaleActionError, UsageError
from hmarl.sdk.fallback import Call, Hold, NoOp

MASK = np.array([True, True, False, True, True])
STEPS = 12


def observations(count: int = STEPS) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 6)).astype(np.float32)


@pytest.fixture(scope="module", params=DOORS)
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def served(toy_bundle: Bundle, door: str) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0", door=door) as process:
        yield process


def local_actions(bundle: Bundle, **episode: object) -> list[int]:
    with LocalAgent(bundle, "agent_0") as agent:
        agent.reset(7, **episode)  # type: ignore[arg-type]
        return [int(agent.act(observation, MASK).action) for observation in observations()]


@pytest.mark.parametrize("episode", [{}, {"sample": True}, {"sample": True, "instruction_choice": "sample"}])
def test_client_acts_like_the_local_agent(
    served: AgentProcess, toy_bundle: Bundle, door: str, episode: dict[str, object]
) -> None:
    with AgentClient(served.address, stream=door == "stream", diagnostics=True) as agent:
        agent.reset(7, **episode)  # type: ignore[arg-type]
        actions = [agent.act(observation, MASK) for observation in observations()]
    assert [action.action for action in actions] == local_actions(toy_bundle, **episode)
    assert all(action.fresh for action in actions)
    assert [action.step for action in actions] == list(range(STEPS))
    assert set(actions[0].diagnostics) == {tensor.name for tensor in toy_bundle.agent("agent_0").diagnostics}
    assert agent.statistics.acts == STEPS
    assert agent.statistics.fallbacks == agent.statistics.late_replies == agent.statistics.missed_steps == 0


def test_asyncio_client_acts_like_the_local_agent(served: AgentProcess, toy_bundle: Bundle, door: str) -> None:
    async def play() -> list[int]:
        async with AsyncAgentClient(served.address, stream=door == "stream") as agent:
            await agent.reset(7, sample=True)
            return [int((await agent.act(observation, MASK)).action) for observation in observations()]

    assert asyncio.run(play()) == local_actions(toy_bundle, sample=True)


def test_a_client_gets_diagnostics_only_when_it_asks_for_them(served: AgentProcess) -> None:
    with AgentClient(served.address) as agent:
        agent.reset(7)
        assert agent.act(observations()[0], MASK).diagnostics == {}


def test_episodes_of_one_client_are_independent(served: AgentProcess, toy_bundle: Bundle, door: str) -> None:
    with AgentClient(served.address, stream=door == "stream") as agent:
        for _ in range(2):
            agent.reset(7)
            assert [agent.act(observation, MASK).action for observation in observations()] == local_actions(toy_bundle)


def test_wrong_observations_are_errors_that_use_no_step_up(served: AgentProcess, door: str) -> None:
    good = observations()[0]
    with AgentClient(served.address, stream=door == "stream") as agent:
        agent.reset(1)
        for bad, message in [
            (good[:3], r"observation: got .*\(3,\), expected float32 \(6,\)"),
            (good.astype(np.float64), "observation: got float64, expected"),
            (np.full(6, np.nan, np.float32), "observation.*nan"),
        ]:
            with pytest.raises(ObservationError, match=message):
                agent.act(bad, MASK)
        with pytest.raises(ObservationError, match="action_mask: got no legal action"):
            agent.act(good, np.zeros(5, np.bool_))
        action = agent.act(good, MASK)
        assert (action.step, action.missed_steps, action.fresh) == (0, 0, True)


def test_an_agent_other_than_the_expected_one_is_refused(served: AgentProcess, toy_bundle: Bundle) -> None:
    expected = agent_spec(toy_bundle.agent("agent_0"))
    AgentClient(served.address, expected=expected).close()
    with pytest.raises(UsageError, match="agent 'agent_1': id: got agent_0"):
        AgentClient(served.address, expected=replace(expected, id="agent_1"))
    with pytest.raises(UsageError, match="observation size: got 6, the environment expects 18"):
        AgentClient(served.address, expected=replace(expected, observation_size=18))


def test_no_agent_at_the_address_and_no_episode_are_clear_errors(served: AgentProcess, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"no answer within 0\.3 s; is 'hmarl-agent'"):
        AgentClient(f"unix:{tmp_path}/empty", connect_timeout_s=0.3)
    with AgentClient(served.address) as agent, pytest.raises(AgentError, match=r"call reset\(seed\) first"):
        agent.act(observations()[0], MASK)


def test_a_frozen_server_means_fallback_and_no_late_action_is_ever_taken(toy_bundle: Bundle, door: str) -> None:
    seen = observations()
    hold = Hold(expires_after_steps=2, then=NoOp(4))
    with (
        AgentProcess(toy_bundle.path, "agent_0", door=door) as process,
        AgentClient(process.address, timeout_s=2.0, fallback=hold, stream=door == "stream") as agent,
    ):
        agent.reset(7)
        first = agent.act(seen[0], MASK)
        agent.timeout_s = 0.1
        process.freeze()
        frozen = [agent.act(seen[step], MASK) for step in (1, 2, 3)]
        process.thaw()
        agent.timeout_s = 5.0
        after = [agent.act(seen[step], MASK) for step in (4, 5)]
    assert [action.fresh for action in frozen] == [False] * 3
    assert [action.action for action in frozen] == [first.action, first.action, 4]
    assert [(action.step, action.fresh) for action in after] == [(4, True), (5, True)]
    assert agent.statistics.fallbacks == 3
    if door != "unary":
        # Every observation reached the policy in order, so the recurrent state is that of an undisturbed episode.
        assert [action.action for action in after] == local_actions(toy_bundle)[4:6]
        assert agent.statistics.late_replies == 3
        assert agent.statistics.missed_steps == 0


def test_a_restarted_server_is_rejoined_at_the_current_step(toy_bundle: Bundle, door: str) -> None:
    seen = observations()
    with (
        AgentProcess(toy_bundle.path, "agent_0", door=door) as process,
        AgentClient(process.address, timeout_s=10.0, stream=door == "stream") as agent,
        LocalAgent(toy_bundle, "agent_0") as reference,
    ):
        agent.reset(7, sample=True)
        for step in range(3):
            agent.act(seen[step], MASK)
        process.kill()
        process.start()
        rejoined = [agent.act(seen[step], MASK) for step in range(3, 6)]
        reference.reset(7, sample=True, first_step=3)
        expected = [reference.act(seen[step], MASK).action for step in range(3, 6)]
    assert [action.action for action in rejoined] == expected
    assert [action.step for action in rejoined] == [3, 4, 5]
    assert all(action.fresh and action.missed_steps == 0 for action in rejoined)
    assert (agent.statistics.rejoins, agent.statistics.state_resets) == (1, 1)


def test_the_asyncio_client_survives_freezing_and_restarting(toy_bundle: Bundle, door: str) -> None:
    seen = observations()

    async def play(process: AgentProcess) -> AsyncAgentClient:
        async with AsyncAgentClient(process.address, timeout_s=0.2, fallback=NoOp(1), stream=door == "stream") as agent:
            await agent.reset(7)
            process.freeze()
            assert not (await agent.act(seen[0], MASK)).fresh
            process.thaw()
            agent.timeout_s = 10.0
            assert (await agent.act(seen[1], MASK)).fresh
            process.kill()
            process.start()
            assert (await agent.act(seen[2], MASK)).fresh
            return agent

    with AgentProcess(toy_bundle.path, "agent_0", door=door) as process:
        statistics = asyncio.run(play(process)).statistics
    assert (statistics.acts, statistics.fallbacks, statistics.rejoins) == (3, 1, 1)
    assert statistics.late_replies == (1 if door != "unary" else 0)


def test_rejoining_can_be_switched_off_and_never_follows_an_expired_hold(toy_bundle: Bundle, door: str) -> None:
    seen = observations()
    with AgentProcess(toy_bundle.path, "agent_0", door=door) as process:
        fallback = Hold(expires_after_steps=1)
        with (
            AgentClient(process.address, timeout_s=5.0, rejoin=False) as stubborn,
            AgentClient(process.address, timeout_s=0.1, fallback=fallback) as careful,
        ):
            for agent in (stubborn, careful):
                agent.reset(7)
                agent.timeout_s = 5.0
                agent.act(seen[0], MASK)
            process.kill()
            careful.timeout_s = 0.1
            assert not careful.act(seen[1], MASK).fresh
            process.start()
            for agent, step in ((stubborn, 1), (careful, 2)):
                agent.timeout_s = 5.0
                with pytest.raises(StaleActionError, match=rf"NOT_FOUND.*reset\(seed, first_step={step}\)"):
                    agent.act(seen[step], MASK)
                assert agent.statistics.rejoins == 0
            careful.reset(7, first_step=3)
            assert careful.act(seen[3], MASK).fresh


def test_a_server_that_is_gone_leaves_the_decision_to_the_fallback(toy_bundle: Bundle, door: str) -> None:
    reasons = []
    with AgentProcess(toy_bundle.path, "agent_0", door=door) as process:
        fallback = Call(lambda situation: reasons.append(situation.reason) or 3)
        with AgentClient(process.address, timeout_s=0.3, fallback=fallback) as agent:
            agent.reset(7)
            process.kill()
            action = agent.act(observations()[0], MASK)
    assert (action.action, action.fresh) == (3, False)
    assert f"agent 'agent_0' at {process.address}" in reasons[0]
